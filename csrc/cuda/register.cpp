// The operators on CUDA tensors.
#include <torch/csrc/stable/accelerator.h>

#include <sstream>

#include "../bridge.h"
#include "launch.h"

// Declared by PyTorch's shim where it is built with CUDA, and defined only there. Weak: this
// library loads without.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace fused_bptt {
namespace {

void* current_stream(int32_t device) {
  check(aoti_torch_get_current_cuda_stream != nullptr,
        "torch: expected a build with CUDA, got one without");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return stream;
}

// Memory of PyTorch's caching allocator, which gives it to nobody else before the work that is on
// the stream by then is done.
Tensor memory(int64_t count, int32_t dtype, const Tensor& model) {
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(model.get(), &device_type));
  const int64_t stride = 1;
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, &count, &stride, dtype, device_type,
                                                         model.get_device_index(), &handle));
  return Tensor(handle);
}

Float32 float32_of(int64_t code) {
  check(code >= 0 && code <= 2, "float32_products: expected 0, 1 or 2, got ", code);
  return static_cast<Float32>(code);
}

void solve(const Bridged& bridged, const Tensor& model, int64_t float32_products) {
  const int32_t device = model.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Plan plan = plan_for(bridged.problem, float32_of(float32_products), device);
  void* stream = current_stream(device);
  KernelArgs args{bridged.problem, plan, nullptr};

  const int64_t T = args.problem.T;
  int64_t& window = args.problem.cuts.window;
  if (window >= T) window = 0;  // it never ends
  check(window == 0 || T <= UINT32_MAX, "window: expected at most 4294967295 steps on CUDA, got ",
        T);
  std::optional<Tensor> tables;
  if (args.problem.batch_sizes && T > 0) {
    tables = memory(2 * T, aoti_torch_dtype_int64(), model);
    int64_t* begin = static_cast<int64_t*>(tables->mutable_data_ptr());
    copy_tables(args.problem, begin, stream);
    args.problem.batch_sizes = begin;
    args.problem.first_rows = begin + T;
  }
  const Tensor workspace = memory(workspace_bytes(plan, args.problem.H, args.problem.G),
                                  aoti_torch_dtype_uint8(), model);
  args.workspace = workspace.mutable_data_ptr();
  launch(args, device_limits(device), stream);
}

Tensor recurrence_(const Tensor& u, const Tensor& weight, const Tensor& h0,
                   const std::optional<Tensor>& batch_sizes, int64_t reverse_groups,
                   int64_t nonlinearity, int64_t float32_products,
                   const std::optional<Tensor>& reset, const std::optional<Tensor>& reset_state) {
  const Bridged bridged = bridge_recurrence(u, weight, h0, batch_sizes, reverse_groups,
                                            nonlinearity, reset, reset_state);
  solve(bridged, u, float32_products);
  return *bridged.last;
}

std::tuple<Tensor, Tensor> linear_recurrence(const Tensor& factor, const std::optional<Tensor>& v,
                                             const Tensor& weight, const std::optional<Tensor>& s0,
                                             const std::optional<Tensor>& batch_sizes,
                                             int64_t reverse_groups, int64_t derivative,
                                             bool adjoint, int64_t float32_products,
                                             const std::optional<Tensor>& reset,
                                             const std::optional<Tensor>& reset_state,
                                             int64_t window, int64_t clip, double clip_limit) {
  const Bridged bridged =
      bridge_linear_recurrence(factor, v, weight, s0, batch_sizes, reverse_groups, derivative,
                               adjoint, reset, reset_state, window, clip, clip_limit);
  solve(bridged, factor, float32_products);
  return {*bridged.out, *bridged.last};
}

std::tuple<Tensor, Tensor> leaky_recurrence(
    const Tensor& u, const Tensor& keep, const std::optional<Tensor>& gain, const Tensor& weight,
    const Tensor& initial, const std::optional<Tensor>& batch_sizes, int64_t reverse_groups,
    int64_t nonlinearity, int64_t float32_products, const std::optional<Tensor>& reset,
    const std::optional<Tensor>& reset_state) {
  const Bridged bridged = bridge_leaky_recurrence(u, keep, gain, weight, initial, batch_sizes,
                                                  reverse_groups, nonlinearity, reset, reset_state);
  solve(bridged, u, float32_products);
  return {*bridged.out, *bridged.rate};
}

Tensor leaky_linear(const Tensor& w, const Tensor& keep, const Tensor& factor, const Tensor& weight,
                    const std::optional<Tensor>& batch_sizes, int64_t reverse_groups, bool inner,
                    bool adjoint, int64_t float32_products, const std::optional<Tensor>& reset,
                    int64_t window) {
  const Bridged bridged = bridge_leaky_linear(w, keep, factor, weight, batch_sizes, reverse_groups,
                                              inner, adjoint, reset, window);
  solve(bridged, w, float32_products);
  return *bridged.out;
}

// As explain_plan() reads it.
std::string cuda_limits(int64_t device) {
  const DeviceLimits& limits = device_limits(static_cast<int32_t>(device));
  std::ostringstream text;
  text << limits.name << " " << limits.capability << " " << limits.sms << " "
       << limits.shared_of_block << " " << limits.shared_of_sm << " " << limits.l2_bytes << " "
       << limits.clock_ghz << " " << limits.memory_bytes_per_ns;
  for (int32_t n = 1; n <= kLargestCluster; ++n) text << " " << limits.active_clusters[n];
  return text.str();
}

}  // namespace
}  // namespace fused_bptt

STABLE_TORCH_LIBRARY_IMPL(fused_bptt, CUDA, m) {
  m.impl("recurrence_", TORCH_BOX(&fused_bptt::recurrence_));
  m.impl("linear_recurrence", TORCH_BOX(&fused_bptt::linear_recurrence));
  m.impl("leaky_recurrence", TORCH_BOX(&fused_bptt::leaky_recurrence));
  m.impl("leaky_linear", TORCH_BOX(&fused_bptt::leaky_linear));
}

STABLE_TORCH_LIBRARY_IMPL(fused_bptt, CompositeExplicitAutograd, m) {
  m.impl("cuda_limits", TORCH_BOX(&fused_bptt::cuda_limits));
}
