// The operators on CPU tensors.
#include "../bridge.h"
#include "dispatch.h"

namespace fused_bptt {
namespace {

void torch_threads(int64_t n, void (*f)(int64_t, int64_t, void*), void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, n, 1, f, context));
}

void solve(const Bridged& bridged) {
  run(active_kernels(), bridged.problem, static_cast<int32_t>(torch::stable::get_num_threads()),
      &torch_threads);
}

Tensor recurrence_(const Tensor& u, const Tensor& weight, const Tensor& h0,
                   const std::optional<Tensor>& batch_sizes, int64_t reverse_groups,
                   int64_t nonlinearity, int64_t /*float32_products*/) {
  const Bridged bridged =
      bridge_recurrence(u, weight, h0, batch_sizes, reverse_groups, nonlinearity);
  solve(bridged);
  return *bridged.last;
}

std::tuple<Tensor, Tensor> linear_recurrence(const Tensor& factor, const std::optional<Tensor>& v,
                                             const Tensor& weight, const std::optional<Tensor>& s0,
                                             const std::optional<Tensor>& batch_sizes,
                                             int64_t reverse_groups, int64_t derivative,
                                             bool adjoint, int64_t /*float32_products*/) {
  const Bridged bridged = bridge_linear_recurrence(factor, v, weight, s0, batch_sizes,
                                                   reverse_groups, derivative, adjoint);
  solve(bridged);
  return {*bridged.out, *bridged.last};
}

}  // namespace
}  // namespace fused_bptt

STABLE_TORCH_LIBRARY_IMPL(fused_bptt, CPU, m) {
  m.impl("recurrence_", TORCH_BOX(&fused_bptt::recurrence_));
  m.impl("linear_recurrence", TORCH_BOX(&fused_bptt::linear_recurrence));
}
