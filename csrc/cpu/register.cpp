// The operators on CPU tensors.
#include "../bridge.h"
#include "dispatch.h"

namespace fused_bptt {
namespace {

void torch_threads(int64_t n, void (*f)(int64_t, int64_t, void*), void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, n, 1, f, context));
}

Tensor solve(const Bridged& bridged) {
  run(active_kernels(), bridged.problem, static_cast<int32_t>(torch::stable::get_num_threads()),
      &torch_threads);
  return bridged.out;
}

Tensor recurrence(const Tensor& u, const Tensor& weight, const Tensor& h0,
                  const std::optional<Tensor>& batch_sizes, int64_t reverse_groups,
                  int64_t nonlinearity) {
  return solve(bridge_recurrence(u, weight, h0, batch_sizes, reverse_groups, nonlinearity));
}

Tensor linear_recurrence(const Tensor& factor, const Tensor& v, const Tensor& weight,
                         const std::optional<Tensor>& s0, const std::optional<Tensor>& batch_sizes,
                         int64_t reverse_groups, int64_t derivative, bool adjoint) {
  return solve(bridge_linear_recurrence(factor, v, weight, s0, batch_sizes, reverse_groups,
                                        derivative, adjoint));
}

std::string names(const std::vector<const Kernels*>& kernels) {
  std::string text;
  for (const Kernels* k : kernels) text += (text.empty() ? "" : " ") + std::string(k->name);
  return text;
}

std::string compiled_isas() { return names(compiled_kernels()); }
std::string cpu_isas() { return names(supported_kernels()); }
std::string cpu_isa() { return active_kernels().name; }

}  // namespace
}  // namespace fused_bptt

STABLE_TORCH_LIBRARY_IMPL(fused_bptt, CPU, m) {
  m.impl("recurrence", TORCH_BOX(&fused_bptt::recurrence));
  m.impl("linear_recurrence", TORCH_BOX(&fused_bptt::linear_recurrence));
}

STABLE_TORCH_LIBRARY_IMPL(fused_bptt, CompositeExplicitAutograd, m) {
  m.impl("compiled_isas", TORCH_BOX(&fused_bptt::compiled_isas));
  m.impl("cpu_isas", TORCH_BOX(&fused_bptt::cpu_isas));
  m.impl("cpu_isa", TORCH_BOX(&fused_bptt::cpu_isa));
}
