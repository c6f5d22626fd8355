// The operators on CPU tensors.
#include "../bridge.h"
#include "dispatch.h"

namespace fused_bptt {
namespace {

void torch_threads(int64_t n, void (*f)(int64_t, int64_t, void*), void* context) {
  STABLE_TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, n, 1, f, context));
}

template <class P>
void solve(const P& problem) {
  run(active_kernels(), problem, static_cast<int32_t>(torch::stable::get_num_threads()),
      &torch_threads);
}

Tensor recurrence_(const Tensor& u, const Tensor& weight, const Tensor& h0,
                   const std::optional<Tensor>& batch_sizes, int64_t reverse_groups,
                   int64_t nonlinearity, int64_t /*float32_products*/,
                   const std::optional<Tensor>& reset, const std::optional<Tensor>& reset_state) {
  const Bridged bridged = bridge_recurrence(u, weight, h0, batch_sizes, reverse_groups,
                                            nonlinearity, reset, reset_state);
  solve(bridged.problem);
  return *bridged.last;
}

std::tuple<Tensor, Tensor> linear_recurrence(const Tensor& factor, const std::optional<Tensor>& v,
                                             const Tensor& weight, const std::optional<Tensor>& s0,
                                             const std::optional<Tensor>& batch_sizes,
                                             int64_t reverse_groups, int64_t derivative,
                                             bool adjoint, int64_t /*float32_products*/,
                                             const std::optional<Tensor>& reset,
                                             const std::optional<Tensor>& reset_state,
                                             int64_t window, int64_t clip, double clip_limit) {
  const Bridged bridged =
      bridge_linear_recurrence(factor, v, weight, s0, batch_sizes, reverse_groups, derivative,
                               adjoint, reset, reset_state, window, clip, clip_limit);
  solve(bridged.problem);
  return {*bridged.out, *bridged.last};
}

std::tuple<Tensor, Tensor> leaky_recurrence(
    const Tensor& u, const Tensor& keep, const std::optional<Tensor>& gain, const Tensor& weight,
    const Tensor& initial, const std::optional<Tensor>& batch_sizes, int64_t reverse_groups,
    int64_t nonlinearity, int64_t /*float32_products*/, const std::optional<Tensor>& reset,
    const std::optional<Tensor>& reset_state) {
  const Bridged bridged = bridge_leaky_recurrence(u, keep, gain, weight, initial, batch_sizes,
                                                  reverse_groups, nonlinearity, reset, reset_state);
  solve(bridged.problem);
  return {*bridged.out, *bridged.rate};
}

Tensor leaky_linear(const Tensor& w, const Tensor& keep, const Tensor& factor, const Tensor& weight,
                    const std::optional<Tensor>& batch_sizes, int64_t reverse_groups, bool inner,
                    bool adjoint, int64_t /*float32_products*/, const std::optional<Tensor>& reset,
                    int64_t window) {
  const Bridged bridged = bridge_leaky_linear(w, keep, factor, weight, batch_sizes, reverse_groups,
                                              inner, adjoint, reset, window);
  solve(bridged.problem);
  return *bridged.out;
}

std::tuple<Tensor, Tensor> layer(const Tensor& x, const Tensor& weight_ih, const Tensor& weight_hh,
                                 const std::optional<Tensor>& bias_ih,
                                 const std::optional<Tensor>& bias_hh, const Tensor& h0,
                                 const std::optional<Tensor>& batch_sizes, int64_t reverse_groups,
                                 int64_t nonlinearity, const std::optional<Tensor>& reset,
                                 const std::optional<Tensor>& reset_state) {
  const BridgedLayer bridged =
      bridge_layer_forward(x, weight_ih, weight_hh, bias_ih, bias_hh, h0, batch_sizes,
                           reverse_groups, nonlinearity, reset, reset_state);
  solve(bridged.layer);
  return {*bridged.out, *bridged.last};
}

std::tuple<std::optional<Tensor>, Tensor, std::optional<Tensor>, std::optional<Tensor>,
           std::optional<Tensor>, std::optional<Tensor>>
layer_backward(const std::optional<Tensor>& g, const std::optional<Tensor>& g_last, const Tensor& h,
               const Tensor& x, const Tensor& weight_ih, const Tensor& weight_hh, const Tensor& h0,
               const std::optional<Tensor>& batch_sizes, int64_t reverse_groups,
               int64_t nonlinearity, bool need_x, bool need_weight_ih, bool need_weight_hh,
               bool need_bias, const std::optional<Tensor>& reset,
               const std::optional<Tensor>& reset_state, int64_t window, int64_t clip,
               double clip_limit, int64_t members, bool need_reset_state) {
  const BridgedLayer bridged =
      bridge_layer_backward(g, g_last, h, x, weight_ih, weight_hh, h0, batch_sizes, reverse_groups,
                            nonlinearity, need_x, need_weight_ih, need_weight_hh, need_bias, reset,
                            reset_state, window, clip, clip_limit, members, need_reset_state);
  solve(bridged.layer);
  return {bridged.x_bar,         *bridged.last,    bridged.weight_ih_bar,
          bridged.weight_hh_bar, bridged.bias_bar, bridged.replaced};
}

Tensor normal(const Tensor& like, int64_t groups, int64_t seed) {
  Tensor out = empty(Shape(like), like);
  const Normal problem = bridge_normal(out, groups, seed);
  torch_threads(
      problem.rows,
      [](int64_t begin, int64_t end, void* p) {
        active_kernels().normal(*static_cast<const Normal*>(p), begin, end);
      },
      const_cast<Normal*>(&problem));
  return out;
}

Tensor flags(const Tensor& like, int64_t groups, double probability, const Tensor& seed) {
  Tensor out = empty(Shape(like), like, aoti_torch_dtype_bool());
  const Flags problem = bridge_flags(out, groups, probability, seed);
  torch_threads(
      problem.rows,
      [](int64_t begin, int64_t end, void* p) {
        active_kernels().flags(*static_cast<const Flags*>(p), begin, end);
      },
      const_cast<Flags*>(&problem));
  return out;
}

std::tuple<Tensor, Tensor, Tensor> leaky_layer(
    const Tensor& x, const Tensor& weight_ih, const Tensor& weight_hh,
    const std::optional<Tensor>& bias, const Tensor& keep, const std::optional<Tensor>& gain,
    const Tensor& initial, const std::optional<Tensor>& noise,
    const std::optional<Tensor>& noise_scale, const std::optional<Tensor>& batch_sizes,
    int64_t reverse_groups, int64_t nonlinearity, const std::optional<Tensor>& reset,
    const std::optional<Tensor>& reset_state, std::optional<int64_t> seed) {
  const BridgedLayer bridged = bridge_leaky_layer_forward(
      x, weight_ih, weight_hh, bias, keep, gain, initial, noise, noise_scale, batch_sizes,
      reverse_groups, nonlinearity, reset, reset_state, seed);
  solve(bridged.layer);
  return {*bridged.out, *bridged.rate, *bridged.last};
}

std::tuple<std::optional<Tensor>, std::optional<Tensor>, std::optional<Tensor>,
           std::optional<Tensor>, std::optional<Tensor>, std::optional<Tensor>,
           std::optional<Tensor>, Tensor, std::optional<Tensor>>
leaky_layer_backward(const std::optional<Tensor>& g, const std::optional<Tensor>& g_rate,
                     const std::optional<Tensor>& g_last, const Tensor& state, const Tensor& rate,
                     const Tensor& x, const Tensor& weight_ih, const Tensor& weight_hh,
                     const Tensor& keep, const std::optional<Tensor>& gain, const Tensor& initial,
                     const Tensor& sent_initial, const std::optional<Tensor>& noise,
                     const std::optional<Tensor>& batch_sizes, int64_t reverse_groups,
                     int64_t nonlinearity, bool need_x, bool need_weight_ih, bool need_weight_hh,
                     bool need_bias, bool need_leak, const std::optional<Tensor>& reset,
                     const std::optional<Tensor>& reset_state,
                     const std::optional<Tensor>& sent_reset_state, int64_t window, int64_t clip,
                     double clip_limit) {
  const BridgedLayer bridged = bridge_leaky_layer_backward(
      g, g_rate, g_last, state, rate, x, weight_ih, weight_hh, keep, gain, initial, sent_initial,
      noise, batch_sizes, reverse_groups, nonlinearity, need_x, need_weight_ih, need_weight_hh,
      need_bias, need_leak, reset, reset_state, sent_reset_state, window, clip, clip_limit);
  solve(bridged.layer);
  return {bridged.x_bar,           bridged.weight_ih_bar, bridged.weight_hh_bar,
          bridged.bias_bar,        bridged.keep_bar,      bridged.gain_bar,
          bridged.noise_scale_bar, *bridged.ends,         bridged.replaced};
}

Tensor layer_backward_(const std::optional<Tensor>& g, const std::optional<Tensor>& g_last,
                       const Tensor& h, const Tensor& x, const Tensor& weight_ih,
                       const Tensor& weight_hh, const Tensor& h0,
                       const std::optional<Tensor>& batch_sizes, int64_t reverse_groups,
                       int64_t nonlinearity, const std::optional<Tensor>& x_bar,
                       const std::optional<Tensor>& weight_ih_bar,
                       const std::optional<Tensor>& weight_hh_bar,
                       const std::optional<Tensor>& bias_bar, const std::optional<Tensor>& reset,
                       const std::optional<Tensor>& reset_state, int64_t window, int64_t before,
                       int64_t clip, double clip_limit, const std::optional<Tensor>& replaced) {
  const BridgedLayer bridged = bridge_layer_backward_into(
      g, g_last, h, x, weight_ih, weight_hh, h0, batch_sizes, reverse_groups, nonlinearity, x_bar,
      weight_ih_bar, weight_hh_bar, bias_bar, reset, reset_state, window, before, clip, clip_limit,
      replaced);
  solve(bridged.layer);
  return *bridged.last;
}

}  // namespace
}  // namespace fused_bptt

STABLE_TORCH_LIBRARY_IMPL(fused_bptt, CPU, m) {
  m.impl("recurrence_", TORCH_BOX(&fused_bptt::recurrence_));
  m.impl("linear_recurrence", TORCH_BOX(&fused_bptt::linear_recurrence));
  m.impl("leaky_recurrence", TORCH_BOX(&fused_bptt::leaky_recurrence));
  m.impl("leaky_linear", TORCH_BOX(&fused_bptt::leaky_linear));
  m.impl("normal", TORCH_BOX(&fused_bptt::normal));
  m.impl("flags", TORCH_BOX(&fused_bptt::flags));
  m.impl("leaky_layer", TORCH_BOX(&fused_bptt::leaky_layer));
  m.impl("leaky_layer_backward", TORCH_BOX(&fused_bptt::leaky_layer_backward));
  m.impl("layer", TORCH_BOX(&fused_bptt::layer));
  m.impl("layer_backward", TORCH_BOX(&fused_bptt::layer_backward));
  m.impl("layer_backward_", TORCH_BOX(&fused_bptt::layer_backward_));
}
