// When a GradientMonitor reads a pass. A compiled graph asks in every backward pass, and an
// operator in Python would cost several times as much; what a reading is, is in
// fused_bptt/inspection.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

namespace fused_bptt {
namespace {

using torch::stable::Tensor;

/// What a monitor's clock holds. The monitor may write it at any time.
enum Clock { kPasses, kEvery, kDue, kClockSize };

struct Held {
  Tensor clock;
  double* values;
};

/// The clocks of the monitors that are open; never destroyed, as torch may be gone by then.
struct Clocks {
  std::mutex mutex;
  std::unordered_map<int64_t, Held> of;
};

Clocks& clocks() {
  static Clocks& all = *new Clocks;
  return all;
}

void watch(int64_t key, const std::optional<Tensor>& clock) {
  const std::lock_guard<std::mutex> lock(clocks().mutex);
  clocks().of.erase(key);
  if (!clock) return;
  STD_TORCH_CHECK(clock->scalar_type() == torch::headeronly::ScalarType::Double &&
                      clock->is_cpu() && clock->dim() == 1 && clock->size(0) == kClockSize &&
                      clock->is_contiguous(),
                  "clock: expected float64 [3] on the CPU");
  clocks().of.emplace(key, Held{*clock, static_cast<double*>(clock->mutable_data_ptr())});
}

bool is_due(int64_t key) {
  const std::lock_guard<std::mutex> lock(clocks().mutex);
  const auto found = clocks().of.find(key);
  if (found == clocks().of.end()) return false;
  double* clock = found->second.values;
  const double before = clock[kPasses]++;
  if (clock[kEvery] > 0) return std::fmod(before, clock[kEvery]) == 0;
  const std::chrono::duration<double> now = std::chrono::steady_clock::now().time_since_epoch();
  return now.count() >= clock[kDue];
}

using Maybe = std::optional<Tensor>;

void read(int64_t key, const Maybe& g, const Tensor& h, const Tensor& weight,
          const std::optional<std::vector<Maybe>>& rest, int64_t outputs, int64_t window) {
  using torch::stable::detail::from;
  StableIValue stack[] = {from(key),  from(g),       from(h),     from(weight),
                          from(rest), from(outputs), from(window)};
  // The stable interface tells that it failed, and not how; `read` prints that.
  STD_TORCH_CHECK(
      torch_call_dispatcher("fused_bptt::read", "", stack, TORCH_ABI_VERSION) == AOTI_TORCH_SUCCESS,
      "GradientMonitor: a reading failed; its own error is printed before this one");
}

void observe(int64_t key, const Tensor& g, const Tensor& h, const Tensor& weight) {
  if (is_due(key)) read(key, g, h, weight, std::nullopt, 1, 0);
}

void observe_more(int64_t key, const Maybe& g, const Tensor& h, const Tensor& weight,
                  const std::optional<std::vector<Maybe>>& rest, int64_t outputs, int64_t window) {
  if (is_due(key)) read(key, g, h, weight, rest, outputs, window);
}

}  // namespace
}  // namespace fused_bptt

STABLE_TORCH_LIBRARY_IMPL(fused_bptt, CompositeExplicitAutograd, m) {
  m.impl("watch", TORCH_BOX(&fused_bptt::watch));
  m.impl("is_due", TORCH_BOX(&fused_bptt::is_due));
  m.impl("observe", TORCH_BOX(&fused_bptt::observe));
  m.impl("observe_more", TORCH_BOX(&fused_bptt::observe_more));
}
