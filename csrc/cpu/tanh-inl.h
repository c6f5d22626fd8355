// tanh, at most 1.5 ULP in float and 2 ULP in double (tests/test_tanh.py measures it); NaN and
// infinities come out right.
// Included inside the ISA's namespace.
//
//   |x| < 0.625   x + x^3 P(x^2)
//   otherwise     sign(x) (1 - 2 / (e^(2|x|) + 1)),  e^y = 2^n e^r,  e^r = 1 + r + r^2 Q(r)
//
// The split is that of the Cephes library (S. Moshier): above it the subtraction loses nothing.
// P and Q are minimax polynomials in the relative error of tanh and of e^r, rounded to the type.

template <class C>
struct TanhConstants;

template <>
struct TanhConstants<float> {
  using Bits = int32_t;
  static constexpr int fraction_bits = 23;
  static constexpr Bits one_bits = 0x3f800000;
  static constexpr float shifter = 0x1.8p23f;
  static constexpr float saturated = 10.0f;     // tanh rounds to 1 from 9.02
  static constexpr float largest = 87.336540f;  // e^-a is a normal number up to here: 126 ln 2
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float p[] = {-0.3333328068256378f, 0.13331441581249237f, -0.05373971536755562f,
                                0.02063908614218235f, -0.005704987794160843f};
  static constexpr float q[] = {0.4999999403953552f, 0.1666652113199234f, 0.04166838526725769f,
                                0.0083687175065279f, 0.0013814654666930437f};
};

template <>
struct TanhConstants<double> {
  using Bits = int64_t;
  static constexpr int fraction_bits = 52;
  static constexpr Bits one_bits = 0x3ff0000000000000;
  static constexpr double shifter = 0x1.8p52;
  static constexpr double saturated = 20.0;             // tanh rounds to 1 from 19.1
  static constexpr double largest = 708.3964185322641;  // 1022 ln 2
  static constexpr double ln2_high = 0x1.62e42fee00000p-1, ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double p[] = {
      -0.33333333333332854,    0.1333333333326209,    -0.0539682539312671,    0.02186948757608539,
      -0.008863221002542105,   0.0035919891732742065, -0.0014549588758667367, 0.0005863165350317242,
      -0.00022856420291172584, 7.714435947232364e-05, -1.607256695448728e-05};
  static constexpr double q[] = {
      0.5000000000000011,     0.16666666666666413,   0.04166666666653022,    0.008333333333494449,
      0.0013888888943612335,  0.0001984126950653971, 2.4801493118372587e-05, 2.7557586464411234e-06,
      2.7630241259625256e-07, 2.500001743494651e-08};
};

template <class C, int N>
inline Vec<C> polynomial(const C (&coefficients)[N], Vec<C> x) {
  Vec<C> sum = broadcast(coefficients[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) sum = fma(sum, x, broadcast(coefficients[i]));
  return sum;
}

template <class C>
inline Vec<C> tanh(Vec<C> x) {
  using K = TanhConstants<C>;
  using Bits = Vec<typename K::Bits>;
  constexpr typename K::Bits sign_bit = std::numeric_limits<typename K::Bits>::min();

  const Bits sign = reinterpret_cast<Bits>(x) & sign_bit;
  const Vec<C> a = reinterpret_cast<Vec<C>>(reinterpret_cast<Bits>(x) & ~sign_bit);

  const Vec<C> z = x * x;
  const Vec<C> near = fma(x * z, polynomial(K::p, z), x);

  // A NaN fails the comparison and stays itself; it then survives every step below.
  const Vec<C> bounded = a > K::saturated ? broadcast(K::saturated) : a;
  const Vec<C> y = bounded + bounded;
  // Adding the shifter leaves no bit for a fraction: the sum's low bits are the nearest integer.
  const Vec<C> shifted =
      fma(y, broadcast(static_cast<C>(1.4426950408889634)), broadcast(K::shifter));
  const Vec<C> n = shifted - K::shifter;
  Vec<C> r = fma(n, broadcast(-K::ln2_high), y);
  r = fma(n, broadcast(-K::ln2_low), r);
  const Vec<C> exp_r = fma(r * r, polynomial(K::q, r), r) + static_cast<C>(1);
  const Vec<C> power =
      reinterpret_cast<Vec<C>>((reinterpret_cast<Bits>(shifted) << K::fraction_bits) + K::one_bits);
  const Vec<C> far = static_cast<C>(1) - static_cast<C>(2) / fma(exp_r, power, broadcast(C{1}));
  const Vec<C> far_signed = reinterpret_cast<Vec<C>>(reinterpret_cast<Bits>(far) | sign);

  return a < static_cast<C>(0.625) ? near : far_signed;
}
