// 16-byte vectors without any intrinsic: SSE2 on x86-64, and whatever else the compiler knows.
// Included inside the ISA's namespace, after vector-inl.h.

// 16 registers: sums, weights, broadcast, one product.
constexpr int kTileRows[9] = {0, 8, 6, 4, 3, 2, 2, 1, 1};

inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return a * b + c; }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return a * b + c; }

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
  Vec<float> y{};
  for (int i = 0; i < kVectorBytes / 4; ++i) y[i] = half_to_float(x[i]);
  return y;
}
inline Half16 to_half(Vec<float> x) {
  Half16 y{};
  for (int i = 0; i < kVectorBytes / 4; ++i) y[i] = float_to_half(x[i]);
  return y;
}
