// The schemas of the operators. Each backend registers its own kernels; autograd and fake kernels
// are in Python.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(fused_bptt, m) {
  // h_t = phi(u_t + W h_{t-1}) for every group. u [T, B, G, H], or packed rows [N, G, H] with
  // batch_sizes [T]; weight [G, H, H]; h0 [G, B, H]. The last reverse_groups groups walk time
  // backwards. nonlinearity: 1 tanh, 2 relu.
  m.def(
      "recurrence(Tensor u, Tensor weight, Tensor h0, Tensor? batch_sizes, int reverse_groups, "
      "int nonlinearity) -> Tensor");
  // s_t = d_t * (v_t + W s_{t-1}), or, adjoint, q_t = d_t * (v_t + W^T q_{t+1}). derivative: 0
  // factor is d; 1 factor is h and d = 1 - h^2; 2 factor is h and d = [h > 0].
  m.def(
      "linear_recurrence(Tensor factor, Tensor v, Tensor weight, Tensor? s0, "
      "Tensor? batch_sizes, int reverse_groups, int derivative, bool adjoint) -> Tensor");
  // What this build and this machine have, for `fused-bptt info` and the tests.
  m.def("compiled_isas() -> str");
  m.def("cpu_isas() -> str");
  m.def("cpu_isa() -> str");
  m.def("cuda_archs() -> str");
}
