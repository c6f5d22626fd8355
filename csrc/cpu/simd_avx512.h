// AVX-512 (F, BW, DQ, VL): what the vector extensions of the compiler do not say.
// Included inside the ISA's namespace, after vector-inl.h, after <immintrin.h>.

// kTileRows[n]: rows of the register tile n vectors wide. 32 registers: sums, weights, broadcast.
constexpr int kTileRows[9] = {0, 14, 14, 9, 6, 5, 4, 3, 3};

inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm512_fmadd_pd(a, b, c);
}

// The first n lanes, 0 < n < lanes; the others read as zero and are not written.
inline Vec<float> load_first(const float* p, int n) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
inline Vec<double> load_first(const double* p, int n) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
}
inline void store_first(float* p, int n, Vec<float> x) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), x);
}
inline void store_first(double* p, int n, Vec<double> x) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), x);
}

inline Vec<float> from_half(Half16 x) { return _mm512_cvtph_ps(reinterpret_cast<__m256i>(x)); }
inline Half16 to_half(Vec<float> x) {
  return reinterpret_cast<Half16>(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
