#include "dispatch.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "memory.h"

namespace fused_bptt {
namespace {

int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// An odd number of cache lines from row to row: rows a power of two apart would share one set of
// the L1 cache, which has fewer ways than a tile has rows.
int64_t odd_lines(int64_t elements, int64_t bytes) {
  const int64_t line = 64 / bytes;
  return (round_up(elements, line) / line | 1) * line;
}

struct Call {
  const Kernels& kernels;
  const Problem& problem;
  const Layer* layer;  // null for the walk alone
  Workspace space;
  Gate gate;
  int32_t threads;
};

void work(int64_t begin, int64_t end, void* context) {
  Call& call = *static_cast<Call*>(context);
  const int32_t rank = call.gate.enter(end - begin, call.threads);
  if (rank < 0) return;
  const int32_t size = call.gate.size();
  const Type type = call.problem.type;
  const Machine& machine = machine_of(call.kernels, type);
  const FlushDenormals flush;
  if (call.layer) {
    const LayerSchedule schedule =
        make_layer_schedule(*call.layer, machine, compute_bytes(type), size);
    call.kernels.layer(*call.layer, schedule, call.space, rank, size);
  } else {
    const Schedule schedule = make_schedule(call.problem, machine, compute_bytes(type), size);
    call.kernels.walk(call.problem, schedule, call.space, rank, size);
  }
}

// Allocates what the call needs and lets the threads in; `products` bytes for a layer.
void start(const Kernels& kernels, const Problem& p, const Layer* layer, int64_t products,
           int32_t threads, ParallelFor parallel_for) {
  const int64_t bytes = compute_bytes(p.type);
  const int64_t columns = round_up(p.H, machine_of(kernels, p.type).lanes);
  const int64_t carry_stride = odd_lines(columns, bytes);
  const int64_t weights = round_up(p.G * p.H * columns * bytes, 64);
  const int64_t carry = p.G * (has_leak(p) ? 3 : 2) * p.B * carry_stride * bytes;
  const Scratch scratch(weights + carry + products);
  std::byte* const at = scratch.data();
  const std::unique_ptr<Barrier[]> barriers(new Barrier[static_cast<size_t>(threads) + 1]);
  const Workspace space{at,           at + weights, carry_stride, at + weights + carry,
                        &barriers[0], &barriers[1]};
  Call call{kernels, p, layer, space, {}, threads};
  if (threads == 1) {
    work(0, 1, &call);
  } else {
    parallel_for(threads, &work, &call);
  }
}

bool machine_has(const Kernels* kernels) {
#if defined(__x86_64__)
  if (kernels == &kernels_avx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
  }
  if (kernels == &kernels_avx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
  }
#endif
  return kernels != nullptr;
}

const Kernels& choose_kernels() {
  const std::vector<const Kernels*> supported = supported_kernels();
  const char* wanted = std::getenv("FUSED_BPTT_CPU");
  if (wanted == nullptr || *wanted == '\0') return *supported.back();
  std::string names;
  for (const Kernels* kernels : supported) {
    if (std::string(wanted) == kernels->name) return *kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels->name);
  }
  throw std::runtime_error("FUSED_BPTT_CPU: expected one of " + names +
                           " (what this build and this machine both have), got " + wanted);
}

}  // namespace

std::vector<const Kernels*> compiled_kernels() {
#if defined(__x86_64__)
  return {&kernels_baseline, &kernels_avx2, &kernels_avx512};
#elif defined(__aarch64__)
  return {&kernels_baseline, &kernels_neon};
#else
  return {&kernels_baseline};
#endif
}

std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> kernels = compiled_kernels();
  std::erase_if(kernels, [](const Kernels* k) { return !machine_has(k); });
  return kernels;
}

const Kernels& active_kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

void run(const Kernels& kernels, const Problem& p, int32_t available, ParallelFor parallel_for) {
  const int32_t threads = worthwhile_threads(p, machine_of(kernels, p.type), compute_bytes(p.type),
                                             std::max(available, 1), 0);
  run_with(kernels, p, threads, parallel_for);
}

void run(const Kernels& kernels, const Layer& layer, int32_t available, ParallelFor parallel_for) {
  const Problem& p = layer.walk;
  const Machine& machine = machine_of(kernels, p.type);
  const int32_t threads = worthwhile_threads(
      p, machine, compute_bytes(p.type), std::max(available, 1), product_cycles(layer, machine));
  run_with(kernels, layer, threads, parallel_for);
}

void run_with(const Kernels& kernels, const Problem& p, int32_t threads, ParallelFor parallel_for) {
  if (p.B == 0 || p.G == 0 || p.H == 0) return;
  start(kernels, p, nullptr, 0, threads, parallel_for);
}

void run_with(const Kernels& kernels, const Layer& given, int32_t threads,
              ParallelFor parallel_for) {
  Layer layer = given;
  Problem& p = layer.walk;
  const int64_t bytes = compute_bytes(p.type);
  if (p.H == 0 || p.G == 0) {  // what is not empty then is zero
    if (layer.x_bar) std::memset(layer.x_bar, 0, static_cast<size_t>(layer.rows * layer.I * bytes));
    return;
  }
  if (!layer.backward) {
    ask_for_large_pages(p.out.data, layer.rows * p.G * p.H * bytes);
    if (p.rate.data) ask_for_large_pages(p.rate.data, layer.rows * p.G * p.H * bytes);
  } else {
    const int64_t units = sums_of(layer) * p.G * p.H;
    if (layer.weight_hh_bar) ask_for_large_pages(layer.weight_hh_bar, units * p.H * bytes);
    if (layer.weight_ih_bar) ask_for_large_pages(layer.weight_ih_bar, units * layer.I * bytes);
  }
  const Machine& machine = machine_of(kernels, p.type);
  const int64_t lanes = machine.lanes, columns = round_up(p.H, lanes);
  const int64_t q_row = odd_lines(columns, bytes);
  const int64_t steps = chunk_steps(layer);
  if (layer.backward) {
    p.out = {nullptr, p.first_rows ? 0 : p.B * q_row, q_row, steps * p.B * q_row};
  }
  const int64_t weights = layer.backward ? p.H * round_up(layer.I, lanes) : layer.I * columns;
  const int64_t kept = chunks_at_once(steps, p.T) * (wants_total(layer) ? 2 : 1);  // q, and y
  const int64_t q = layer.backward ? kept * steps * p.B * q_row : 0;
  const int64_t elements =
      p.G * (weights + columns + q) + columns + threads * kSumBlock * kSumVectors * lanes;
  start(kernels, p, &layer, elements * bytes, threads, parallel_for);
}

}  // namespace fused_bptt
