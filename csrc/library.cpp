// The schemas of the operators. Each backend registers its own kernels; autograd and fake kernels
// are in Python.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fused_bptt, m) {
  // h_t = phi(u_t + W h_{t-1}) for every group, in the place of u; gives each row's last h [G, B,
  // H]. u [T, B, G, H], or packed rows [N, G, H] with batch_sizes [T]; weight [G, H, H]; h0 [G, B,
  // H]. The last reverse_groups groups walk time backwards. With one group,
  // sequences and weight may leave out G. nonlinearity: 1 tanh, 2 relu. float32_products,
  // on CUDA: 0 float32, 1 TF32 where it is quicker, 2 3xTF32. reset [T, B] or [T, B, G], packed [N]
  // or [N, G]: where it is true, reset_state [G, B, H], or zero, takes the place of the state
  // between this step and the one before it in time.
  m.def(
      "recurrence_(Tensor(a!) u, Tensor weight, Tensor h0, Tensor? batch_sizes, "
      "int reverse_groups, int nonlinearity, int float32_products=0, Tensor? reset=None, "
      "Tensor? reset_state=None) -> Tensor");
  // s_t = d_t * (v_t + W s_{t-1}) from s_0, and each row's last s [G, B, H]. Adjoint: q_t = d_t *
  // (v_t + r_t), r_t = W^T q_{t+1}, from r_T = s0, and r_0 = W^T q_1. derivative: 0 factor is d; 1
  // factor is h and d = 1 - h^2; 2 factor is h and d = [h > 0]. No v or s0 stands for zero. An
  // adjoint has no reset_state. window: nothing is carried over its multiples in time either; 0
  // none.
  m.def(
      "linear_recurrence(Tensor factor, Tensor? v, Tensor weight, Tensor? s0, "
      "Tensor? batch_sizes, int reverse_groups, int derivative, bool adjoint, "
      "int float32_products=0, Tensor? reset=None, Tensor? reset_state=None, int window=0) -> "
      "(Tensor, Tensor)");
  // A whole layer on the CPU, float32 or float64: u = x W_ih^T + b_ih + b_hh, then the recurrence.
  // x [T, B, I] or [N, I]; weight_ih [G * H, I]; weight_hh [G, H, H] or [H, H]; biases [G * H].
  // Gives h [T, B, G * H] or [N, G * H], and each row's last h.
  m.def(
      "layer(Tensor x, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, "
      "Tensor h0, Tensor? batch_sizes, int reverse_groups, int nonlinearity, Tensor? reset=None, "
      "Tensor? reset_state=None) -> (Tensor, Tensor)");
  // Its BPTT, from the cotangents of h and of the last h (none: zero): the gradients of x, h0,
  // weight_ih, weight_hh and of either bias, of which all but h0's are left out where not needed.
  m.def(
      "layer_backward(Tensor? g, Tensor? g_last, Tensor h, Tensor x, Tensor weight_ih, "
      "Tensor weight_hh, Tensor h0, Tensor? batch_sizes, int reverse_groups, int nonlinearity, "
      "bool need_x, bool need_weight_ih, bool need_weight_hh, bool need_bias, "
      "Tensor? reset=None, Tensor? reset_state=None, int window=0) -> "
      "(Tensor?, Tensor, Tensor?, Tensor?, Tensor?)");
  // What this build and this machine have, for `fused-bptt info` and the tests.
  m.def("compiled_isas() -> str");
  m.def("cpu_isas() -> str");
  m.def("cpu_isa() -> str");
  m.def("cuda_archs() -> str");
  // How a problem would be computed on CUDA, and what else was weighed: lines of `name=value`.
  // products: a dtype, `float32 tf32` (TF32 where it is quicker), or one kind (fp64, fp32, tf32x3,
  // tf32, bf16, fp16).
  // device_limits: one of named_limits(), or what cuda_limits(device) gives.
  m.def("explain_plan(int B, int G, int H, str products, str device_limits) -> str");
  m.def("named_limits() -> str");
  m.def("cuda_limits(int device) -> str");
}
