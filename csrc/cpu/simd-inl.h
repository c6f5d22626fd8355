// The vector vocabulary that is the same for every ISA, on top of simd_<isa>.h: loads and stores
// of each storage type as the type it is computed in.
// Included inside the ISA's namespace.

template <class C>
inline Vec<C> broadcast(C x) {
  return x - Vec<C>{};  // x - 0 keeps the sign of zero; the compiler makes one broadcast of it
}

template <class C>
inline Vec<C> load_aligned(const C* p) {
  return *reinterpret_cast<const Vec<C>*>(p);
}
template <class C>
inline void store_aligned(C* p, Vec<C> x) {
  *reinterpret_cast<Vec<C>*>(p) = x;
}

inline Vec<float> widen(Half16 x, const BFloat16*) {
  return reinterpret_cast<Vec<float>>(__builtin_convertvector(x, Vec<uint32_t>) << 16);
}
inline Vec<float> widen(Half16 x, const Float16*) { return from_half(x); }

inline Half16 narrow(Vec<float> x, const BFloat16*) {
  const Vec<uint32_t> bits = reinterpret_cast<Vec<uint32_t>>(x);
  // To nearest, ties to even; a NaN keeps its sign and becomes quiet (rounding could make it inf).
  const Vec<uint32_t> rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const Vec<uint32_t> chosen = x != x ? (bits | 0x00400000u) : rounded;
  return __builtin_convertvector(chosen >> 16, Half16);
}
inline Half16 narrow(Vec<float> x, const Float16*) { return to_half(x); }

// n lanes of storage type S as compute type C; lanes beyond n read as zero.
template <class S, class C>
inline Vec<C> load(const S* p, int n) {
  if constexpr (std::is_same_v<S, C>) {
    if (n < kLanes<C>) return load_first(p, n);
    Vec<C> x;
    std::memcpy(&x, p, sizeof x);
    return x;
  } else {
    Half16 x{};
    if (n < kLanes<C>) {
      std::memcpy(&x, p, static_cast<size_t>(n) * sizeof(S));
    } else {
      std::memcpy(&x, p, sizeof x);
    }
    return widen(x, p);
  }
}

// n flags as the numbers 1 and 0; lanes beyond n read as zero.
template <class C>
inline Vec<C> load_flags(const bool* p, int n) {
  typedef uint8_t Bytes __attribute__((vector_size(kLanes<C>)));
  using Integers = Vec<std::conditional_t<sizeof(C) == 8, int64_t, int32_t>>;
  Bytes bytes{};
  if (n < kLanes<C>) {
    std::memcpy(&bytes, p, static_cast<size_t>(n));
  } else {
    std::memcpy(&bytes, p, sizeof bytes);
  }
  return __builtin_convertvector(bytes, Integers) != 0 ? broadcast(C{1}) : Vec<C>{};
}

template <class S, class C>
inline void store(S* p, int n, Vec<C> x) {
  if constexpr (std::is_same_v<S, C>) {
    if (n < kLanes<C>) return store_first(p, n, x);
    std::memcpy(p, &x, sizeof x);
  } else {
    const Half16 y = narrow(x, p);
    if (n < kLanes<C>) {
      std::memcpy(p, &y, static_cast<size_t>(n) * sizeof(S));
    } else {
      std::memcpy(p, &y, sizeof y);
    }
  }
}
