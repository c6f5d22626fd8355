// phi and its slope, by the numbers of the call: which phi is the same for all threads.
//
//   sigmoid(x)  = 1 / (1 + e^-x), or e^x / (1 + e^x) where x is negative
//   softplus(x) = max(x, 0) + log(1 + e^-|x|)    without a threshold
#pragma once

#include "device.cuh"

namespace fused_bptt {

template <class Sum>
FUSED_BPTT_DEVICE Sum activate(Phi phi, Sum x) {
  if (phi == Phi::tanh) return tanh_of(x);
  if (phi == Phi::relu) return Sum{0} > x ? Sum{0} : x;  // false for NaN, which therefore passes
  if (phi == Phi::identity) return x;
  const Sum e = exp_of(Sum{0} > x ? x : -x);
  if (phi == Phi::sigmoid) return (Sum{0} > x ? e : Sum{1}) / (Sum{1} + e);
  return (x > Sum{0} ? x : Sum{0}) + log1p_of(e);
}

// d * x, where d is f itself or the slope of phi where it is f.
template <class Sum>
FUSED_BPTT_DEVICE Sum times_slope(Phi phi, Sum f, Sum x) {
  if (phi == Phi::tanh) return multiply_add(-f, f, Sum{1}) * x;
  if (phi == Phi::relu) return f <= Sum{0} ? Sum{0} : x;  // as ATen's threshold
  if (phi == Phi::sigmoid) return multiply_add(-f, f, f) * x;
  if (phi == Phi::softplus) return -expm1_of(-f) * x;
  if (phi == Phi::identity) return x;
  return f * x;
}

}  // namespace fused_bptt
