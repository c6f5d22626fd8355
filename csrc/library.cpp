// The schemas of the operators. Each backend registers its own kernels; autograd and fake kernels
// are in Python.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fused_bptt, m) {
  // h_t = phi(u_t + W h_{t-1}) for every group, in the place of u; gives each row's last h [G, B,
  // H]. u [T, B, G, H], or packed rows [N, G, H] with batch_sizes [T]; weight [G, H, H]; h0 [G, B,
  // H]. The last reverse_groups groups walk time backwards. With one group,
  // sequences and weight may leave out G. nonlinearity: 1 tanh, 2 relu, 3 sigmoid, 4 softplus, 5
  // identity. float32_products,
  // on CUDA: 0 float32, 1 TF32 where it is quicker, 2 3xTF32. reset [T, B] or [T, B, G], packed [N]
  // or [N, G]: where it is true, reset_state [G, B, H], or zero, takes the place of the state
  // between this step and the one before it in time.
  m.def(
      "recurrence_(Tensor(a!) u, Tensor weight, Tensor h0, Tensor? batch_sizes, "
      "int reverse_groups, int nonlinearity, int float32_products=0, Tensor? reset=None, "
      "Tensor? reset_state=None) -> Tensor");
  // s_t = d_t * (v_t + W s_{t-1}) from s_0, and each row's last s [G, B, H]. Adjoint: q_t = d_t *
  // (v_t + r_t), r_t = W^T q_{t+1}, from r_T = s0, and r_0 = W^T q_1. derivative: 0 factor is d; 1
  // to 5 factor is h and d the slope of that nonlinearity. No v or s0 stands for zero. An
  // adjoint has no reset_state. window: nothing is carried over its multiples in time either; 0
  // none. clip, of an adjoint: v_t + r_t is held within clip_limit before d_t multiplies
  // it: 1 each number, 2 the norm of each row; 0 none.
  m.def(
      "linear_recurrence(Tensor factor, Tensor? v, Tensor weight, Tensor? s0, "
      "Tensor? batch_sizes, int reverse_groups, int derivative, bool adjoint, "
      "int float32_products=0, Tensor? reset=None, Tensor? reset_state=None, int window=0, "
      "int clip=0, float clip_limit=0.0) -> (Tensor, Tensor)");
  // With a leak. With gain: h_t = keep_t * h_{t-1} + gain_t * r_t, r_t = phi(u_t + W h_{t-1}), h_0
  // = initial. Without: v_t = keep_t * v_{t-1} + u_t + W r_{t-1}, r_t = phi(v_t), v_0 = initial.
  // Gives h or v, and r. keep and gain have u's shape and any strides.
  m.def(
      "leaky_recurrence(Tensor u, Tensor keep, Tensor? gain, Tensor weight, Tensor initial, "
      "Tensor? batch_sizes, int reverse_groups, int nonlinearity, int float32_products=0, "
      "Tensor? reset=None, Tensor? reset_state=None) -> (Tensor, Tensor)");
  // What their derivatives are made of, d = factor: outer, m_t = w_t + keep_t * m_{t-1} + d_t * (W
  // m_{t-1}); inner, m_t = w_t + keep_t * m_{t-1} + W (d_{t-1} * m_{t-1}). Adjoint: the transposed
  // map. A walk begins with zero, and goes on with zero after a reset or a multiple of window.
  m.def(
      "leaky_linear(Tensor w, Tensor keep, Tensor factor, Tensor weight, Tensor? batch_sizes, "
      "int reverse_groups, bool inner, bool adjoint, int float32_products=0, Tensor? reset=None, "
      "int window=0) -> Tensor");
  // A whole layer on the CPU, float32 or float64: u = x W_ih^T + b_ih + b_hh, then the recurrence.
  // x [T, B, I] or [N, I]; weight_ih [G * H, I]; weight_hh [G, H, H] or [H, H]; biases [G * H].
  // Gives h [T, B, G * H] or [N, G * H], and each row's last h.
  m.def(
      "layer(Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, "
      "Tensor h0, Tensor? batch_sizes, int reverse_groups, int nonlinearity, Tensor? reset=None, "
      "Tensor? reset_state=None) -> (Tensor, Tensor)");
  // Its BPTT, from the cotangents of h and of the last h (none: zero): the gradients of x, h0,
  // weight_ih, weight_hh and of either bias, of which all but h0's are left out where not needed;
  // and, with need_reset_state, the sum of q over the steps that each row began with reset_state,
  // float64 [G, B, H], of which W_hh^T makes that of reset_state.
  // clip as in linear_recurrence. members: with n > 0, the rows of each step are those of n
  // members, side by side, and the gradients of the weights and biases are of each, [n, ...].
  // A SymInt: vmap's size is one, and a compiler is not to make a graph for each.
  m.def(
      "layer_backward(Tensor? g, Tensor? g_last, Tensor h, Tensor x, Tensor weight_ih, "
      "Tensor weight_hh, Tensor h0, Tensor? batch_sizes, int reverse_groups, int nonlinearity, "
      "bool need_x, bool need_weight_ih, bool need_weight_hh, bool need_bias, "
      "Tensor? reset=None, Tensor? reset_state=None, int window=0, int clip=0, "
      "float clip_limit=0.0, SymInt members=0, bool need_reset_state=False) -> "
      "(Tensor?, Tensor, Tensor?, Tensor?, Tensor?, Tensor?)");
  // Standard normal numbers of the shape, dtype (float32 or float64) and device of `like` [..., G *
  // H]; a number is a function of the seed and of its row, group and unit alone.
  m.def("normal(Tensor like, int groups, int seed) -> Tensor");
  // In the same way bool, true with this probability, above 0; `like` is of any dtype. seed: int64
  // [], so that a graph may draw it.
  m.def("flags(Tensor like, int groups, float probability, Tensor seed) -> Tensor");
  // A layer with a leak: u = x W_ih^T + bias + noise_scale * noise, then leaky_recurrence with
  // keep, gain and noise_scale [G * H]; keep and gain also [T, B, G * H] or [N, G * H], any
  // strides. keep may be bool, of each step: 1 or 0, with gain 1 - keep. With a seed, noise is what
  // `normal` gives. Gives h or v, and r, as wide as noise, [T, B, G * H] or [N, G * H]; and each
  // row's last h or v.
  m.def(
      "leaky_layer(Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor? bias, Tensor keep, "
      "Tensor? gain, Tensor initial, Tensor? noise, Tensor? noise_scale, Tensor? batch_sizes, "
      "int reverse_groups, int nonlinearity, Tensor? reset=None, Tensor? reset_state=None, "
      "int? seed=None) -> (Tensor, Tensor, Tensor)");
  // Its BPTT, from the cotangents of the three: the gradients of x, weight_ih, weight_hh and bias,
  // and of keep, gain and noise_scale (need_leak; none where keep or gain is a sequence), all left
  // out where not needed; and ends [2, G, B, H]: the cotangents of W h_0 and of keep * h_0; with
  // reset, float64 [2, G, B, H]: the sums of both over the steps that began with a replaced state.
  // sent_*: what W multiplies of a state, r in the form without gain. clip as in linear_recurrence,
  // of the cotangent of the state; not where keep is bool.
  m.def(
      "leaky_layer_backward(Tensor? g, Tensor? g_rate, Tensor? g_last, Tensor state, Tensor rate, "
      "Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor keep, Tensor? gain, Tensor initial, "
      "Tensor sent_initial, Tensor? noise, Tensor? batch_sizes, int reverse_groups, "
      "int nonlinearity, bool need_x, bool need_weight_ih, bool need_weight_hh, bool need_bias, "
      "bool need_leak, Tensor? reset=None, Tensor? reset_state=None, "
      "Tensor? sent_reset_state=None, int window=0, int clip=0, float clip_limit=0.0) -> "
      "(Tensor?, Tensor?, Tensor?, Tensor?, Tensor?, Tensor?, Tensor?, Tensor, Tensor?)");
  // The BPTT of `layer` for a part of the steps: the gradient of x is written, those of the weights
  // and biases are added to (none: not needed). Parts that are whole chunks of chunk_steps(B)
  // steps, from the walk's beginning to its end, give the bits that one call for all steps does.
  // `before` steps of the whole come before these: window counts from there. clip as in
  // linear_recurrence. replaced: what layer_backward gives last is added to it. Gives the gradient
  // of h0.
  m.def(
      "layer_backward_(Tensor? g, Tensor? g_last, Tensor h, Tensor x, Tensor weight_ih, "
      "Tensor weight_hh, Tensor h0, Tensor? batch_sizes, int reverse_groups, int nonlinearity, "
      "Tensor(a!)? x_bar, Tensor(b!)? weight_ih_bar, Tensor(c!)? weight_hh_bar, "
      "Tensor(d!)? bias_bar, Tensor? reset=None, Tensor? reset_state=None, int window=0, "
      "int before=0, int clip=0, float clip_limit=0.0, Tensor(e!)? replaced=None) -> Tensor");
  m.def("chunk_steps(int B) -> int");
  // When a GradientMonitor reads. clock float64 [3] on the CPU: passes so far; read each so
  // many-th, 0 to read when time has come; that time, in seconds of the steady clock. watch: key
  // means this clock; none: nothing any more. is_due counts a pass and says whether it is to be
  // read; without a clock it never is. `observe`, which asks that in a backward pass and hands its
  // arguments on to `read`, is defined in Python: this interface knows no tags.
  m.def("watch(int key, Tensor? clock) -> ()");
  m.def("is_due(int key) -> bool");
  // What this build and this machine have, for `fused-bptt info` and the tests.
  m.def("compiled_isas() -> str");
  m.def("cpu_isas() -> str");
  m.def("cpu_isa() -> str");
  m.def("cuda_archs() -> str");
  // How a problem would be computed on CUDA, and what else was weighed: lines of `name=value`.
  // products: a dtype, `float32 tf32` (TF32 where it is quicker), or one kind (fp64, fp32, tf32x3,
  // tf32, bf16, fp16).
  // device_limits: one of named_limits(), or what cuda_limits(device) gives. step: plain,
  // leaky (leaky_recurrence and leaky_linear), clipped or norm-clipped (clip 1 or 2 of
  // linear_recurrence).
  m.def(
      "explain_plan(int B, int G, int H, str products, str device_limits, str step='plain') -> "
      "str");
  m.def("named_limits() -> str");
  m.def("cuda_limits(int device) -> str");
}
