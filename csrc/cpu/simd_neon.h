// NEON on aarch64: what the vector extensions of the compiler do not say.
// Included inside the ISA's namespace, after vector-inl.h, after <arm_neon.h>.

// 32 registers: sums, weights, broadcast.
constexpr int kTileRows[9] = {0, 14, 14, 9, 6, 5, 4, 3, 3};

inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return reinterpret_cast<Vec<float>>(vfmaq_f32(reinterpret_cast<float32x4_t>(c),
                                                reinterpret_cast<float32x4_t>(a),
                                                reinterpret_cast<float32x4_t>(b)));
}
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return reinterpret_cast<Vec<double>>(vfmaq_f64(reinterpret_cast<float64x2_t>(c),
                                                 reinterpret_cast<float64x2_t>(a),
                                                 reinterpret_cast<float64x2_t>(b)));
}

template <class C>
inline Vec<C> load_first(const C* p, int n) {
  Vec<C> x{};
  std::memcpy(&x, p, static_cast<size_t>(n) * sizeof(C));
  return x;
}
template <class C>
inline void store_first(C* p, int n, Vec<C> x) {
  std::memcpy(p, &x, static_cast<size_t>(n) * sizeof(C));
}

inline Vec<float> from_half(Half16 x) {
  return reinterpret_cast<Vec<float>>(vcvt_f32_f16(reinterpret_cast<float16x4_t>(x)));
}
inline Half16 to_half(Vec<float> x) {
  return reinterpret_cast<Half16>(vcvt_f16_f32(reinterpret_cast<float32x4_t>(x)));
}
