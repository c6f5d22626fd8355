// sigmoid, softplus and 1 - e^-a, at most 2.5 ULP (tests/test_activations.py measures it); NaN and
// infinities come out right.
// Included inside the ISA's namespace, after tanh-inl.h, whose constants they share.
//
//   e^-a         = 2^n (1 + m),  m = e^r - 1 = r + r^2 Q(r),  -a = n ln 2 + r
//   1 - e^-a     = (1 - 2^n) - 2^n m              loses nothing where a is small
//   log(1 + f)   = f - s (f - R),  s = f / (2 + f),  R = 2 (s^2 / 3 + s^4 / 5 + ...),  0 <= f <= 1
//   sigmoid(x)   = 1 / (1 + e^-x), or e^x / (1 + e^x) where x is negative
//   softplus(x)  = max(x, 0) + log(1 + e^-|x|)    without a threshold

template <class C>
struct Exponential {
  Vec<C> power, rest;  // 2^n and m
};

// Of e^-a, for a >= 0 that does not make it subnormal; beyond, as if a were the largest such
// number.
template <class C>
inline Exponential<C> exponential(Vec<C> a) {
  using K = TanhConstants<C>;
  using Bits = Vec<typename K::Bits>;
  const Vec<C> y = -(a > K::largest ? broadcast(K::largest) : a);
  const Vec<C> shifted =
      fma(y, broadcast(static_cast<C>(1.4426950408889634)), broadcast(K::shifter));
  const Vec<C> n = shifted - K::shifter;
  Vec<C> r = fma(n, broadcast(-K::ln2_high), y);
  r = fma(n, broadcast(-K::ln2_low), r);
  const Vec<C> power =
      reinterpret_cast<Vec<C>>((reinterpret_cast<Bits>(shifted) << K::fraction_bits) + K::one_bits);
  return {power, fma(r * r, polynomial(K::q, r), r)};
}

// e^-|x|; zero where it would be subnormal.
template <class C>
inline Vec<C> exp_of_minus_magnitude(Vec<C> x) {
  const Vec<C> a = C{0} > x ? -x : x;
  const Exponential<C> e = exponential<C>(a);
  // Not rest * power + power: where there is no fused multiply-add, the product may be subnormal.
  return a > TanhConstants<C>::largest ? Vec<C>{} : (e.rest + static_cast<C>(1)) * e.power;
}

// 1 - e^-a for a >= 0.
template <class C>
inline Vec<C> one_minus_exp(Vec<C> a) {
  const Exponential<C> e = exponential<C>(a);
  return fma(-e.rest, e.power, static_cast<C>(1) - e.power);
}

template <class C>
inline Vec<C> sigmoid(Vec<C> x) {
  const Vec<C> e = exp_of_minus_magnitude<C>(x);
  return (C{0} > x ? e : broadcast(C{1})) / (static_cast<C>(1) + e);
}

template <class C>
inline Vec<C> softplus(Vec<C> x) {
  constexpr int terms = std::is_same_v<C, float> ? 7 : 16;
  const Vec<C> f = exp_of_minus_magnitude<C>(x);
  const Vec<C> s = f / (static_cast<C>(2) + f);
  const Vec<C> z = s * s;
  Vec<C> r = broadcast(static_cast<C>(2.0 / (2 * terms + 1)));
#pragma GCC unroll 16
  for (int k = terms - 1; k >= 1; --k) {
    r = fma(r, z, broadcast(static_cast<C>(2.0 / (2 * k + 1))));
  }
  return (x > C{0} ? x : Vec<C>{}) + (f - s * (f - z * r));
}
