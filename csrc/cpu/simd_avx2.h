// AVX2 with FMA and F16C: what the vector extensions of the compiler do not say.
// Included inside the ISA's namespace, after vector-inl.h, after <immintrin.h>.

// 16 registers: sums, weights, broadcast.
constexpr int kTileRows[9] = {0, 12, 6, 4, 3, 2, 2, 1, 1};

inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm256_fmadd_pd(a, b, c);
}

alignas(32) constexpr int32_t kMask32[16] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                             0,  0,  0,  0,  0,  0,  0,  0};
alignas(32) constexpr int64_t kMask64[8] = {-1, -1, -1, -1, 0, 0, 0, 0};

inline __m256i first32(int n) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask32 + 8 - n));
}
inline __m256i first64(int n) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask64 + 4 - n));
}

// The first n lanes, 0 < n < lanes; the others read as zero and are not written.
inline Vec<float> load_first(const float* p, int n) { return _mm256_maskload_ps(p, first32(n)); }
inline Vec<double> load_first(const double* p, int n) { return _mm256_maskload_pd(p, first64(n)); }
inline void store_first(float* p, int n, Vec<float> x) { _mm256_maskstore_ps(p, first32(n), x); }
inline void store_first(double* p, int n, Vec<double> x) { _mm256_maskstore_pd(p, first64(n), x); }

inline Vec<float> from_half(Half16 x) { return _mm256_cvtph_ps(reinterpret_cast<__m128i>(x)); }
inline Half16 to_half(Vec<float> x) {
  return reinterpret_cast<Half16>(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
