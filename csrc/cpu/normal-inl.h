// Standard normal numbers and flags that are a function of seed, group, row and column alone, so
// that neither threads nor chunks nor instruction sets choose them: Philox4x32-10 (Salmon et al.,
// "Parallel random numbers: as easy as 1, 2, 3", 2011), made normal by Box and Muller's method.
// Included inside the ISA's namespace, after tanh-inl.h.
//
// Column n of row r in group g has the word n % 64 / 16 of the counter (n / 64 * 16 + n % 16, r,
// g). A flag is whether that word is small. Of numbers, words 0 and 1 make those of both, and so do
// words 2 and 3:
//
//   sqrt(-2 log u) cos(2 pi t) and sqrt(-2 log u) sin(2 pi t), u and t of 24 bits, 0 < u <= 1
//
// Nothing here is a fused multiply-add, which the baseline does not have: its bits would be others.

using Words = Vec<uint32_t>;
using WideWords = Vec<uint64_t>;
using SignedWords = Vec<int32_t>;

constexpr int kNormalBlock = 64;

// The high halves of x * m.
inline Words multiply_high(Words x, uint64_t m) {
  const WideWords pairs = reinterpret_cast<WideWords>(x);
  const WideWords even = (pairs & 0xffffffffu) * m, odd = (pairs >> 32) * m;
  return reinterpret_cast<Words>(even >> 32 | (odd & 0xffffffff00000000u));
}

inline void philox(Words (&c)[4], uint32_t key0, uint32_t key1) {
  constexpr uint32_t m0 = 0xd2511f53, m1 = 0xcd9e8d57;
  for (int round = 0; round < 10; ++round) {
    const Words high0 = multiply_high(c[0], m0), high1 = multiply_high(c[2], m1);
    const Words low0 = c[0] * m0, low1 = c[2] * m1;
    c[0] = high1 ^ c[1] ^ key0;
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ key1;
    c[3] = low0;
    key0 += 0x9e3779b9;
    key1 += 0xbb67ae85;
  }
}

template <int N>
inline Vec<float> unfused_polynomial(const float (&coefficients)[N], Vec<float> x) {
  Vec<float> sum = broadcast(coefficients[N - 1]);
#pragma GCC unroll 8
  for (int i = N - 2; i >= 0; --i) sum = sum * x + coefficients[i];
  return sum;
}

// sqrt(-2 log u) for a normal number u, 0 < u <= 1.
inline Vec<float> radius(Vec<float> u) {
  const SignedWords bits = reinterpret_cast<SignedWords>(u);
  const SignedWords exponent = (bits - 0x3f3504f3) >> 23;  // u = 2^e m, m in [sqrt(1/2), sqrt(2))
  const Vec<float> m = reinterpret_cast<Vec<float>>(bits - (exponent << 23));
  const Vec<float> s = (m - 1.0f) / (m + 1.0f);
  constexpr float terms[] = {2.0f, 2.0f / 3, 2.0f / 5, 2.0f / 7, 2.0f / 9, 2.0f / 11};
  const Vec<float> log = __builtin_convertvector(exponent, Vec<float>) * 0.693147181f +
                         s * unfused_polynomial(terms, s * s);
  const Vec<float> x = -2.0f * log;
  // 1 / sqrt(x) from its bits, and by Newton's method.
  Vec<float> y = reinterpret_cast<Vec<float>>(0x5f3759df - (reinterpret_cast<SignedWords>(x) >> 1));
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) y = y * (1.5f - 0.5f * x * y * y);
  return x * y;
}

inline void box_muller(Words first, Words second, Vec<float>* cosine, Vec<float>* sine) {
  const Vec<float> u =
      __builtin_convertvector(reinterpret_cast<SignedWords>(first >> 8), Vec<float>) * 0x1p-24f +
      0x1p-25f;
  const Vec<float> r = radius(u);
  const SignedWords turns = reinterpret_cast<SignedWords>(second >> 8);
  const SignedWords quarter = (turns + (1 << 21)) >> 22;
  const Vec<float> a =
      __builtin_convertvector(turns - (quarter << 22), Vec<float>) * (6.283185307f * 0x1p-24f);
  constexpr float of_sine[] = {1.0f, -1.0f / 6, 1.0f / 120, -1.0f / 5040, 1.0f / 362880};
  constexpr float of_cosine[] = {1.0f, -0.5f, 1.0f / 24, -1.0f / 720, 1.0f / 40320};
  const Vec<float> s = r * a * unfused_polynomial(of_sine, a * a);
  const Vec<float> c = r * unfused_polynomial(of_cosine, a * a);
  const SignedWords odd = -(quarter & 1);
  *cosine = odd ? s : c;
  *sine = odd ? c : s;
  *cosine = ((quarter + 1) & 2) == 2 ? -*cosine : *cosine;
  *sine = (quarter & 2) == 2 ? -*sine : *sine;
}

// The words of the columns [begin + from + 16 k, ... + L) for k = 0 to 3, of a block that begins at
// column `begin`.
inline void words_of(uint64_t seed, int64_t row, int64_t group, int64_t begin, int from,
                     Words (&c)[4]) {
  Words lane;
  for (int i = 0; i < kLanes<float>; ++i) lane[i] = static_cast<uint32_t>(i);
  const Words none{};
  c[0] = lane + static_cast<uint32_t>(begin / 4 + from);
  c[1] = none + static_cast<uint32_t>(row);
  c[2] = none + static_cast<uint32_t>(row >> 32);
  c[3] = none + static_cast<uint32_t>(group);
  philox(c, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// One row of a group; times `scale`, where there is one.
template <class C>
void normal_row(uint64_t seed, int64_t row, int64_t group, int64_t columns, const C* scale, C* to) {
  constexpr int L = kLanes<float>;
  for (int64_t begin = 0; begin < columns; begin += kNormalBlock) {
    alignas(64) float found[kNormalBlock];
    for (int from = 0; from < kNormalBlock / 4; from += L) {
      Words c[4];
      words_of(seed, row, group, begin, from, c);
      for (int pair = 0; pair < 4; pair += 2) {
        Vec<float> cosine, sine;
        box_muller(c[pair], c[pair + 1], &cosine, &sine);
        store_aligned(found + pair * kNormalBlock / 4 + from, cosine);
        store_aligned(found + (pair + 1) * kNormalBlock / 4 + from, sine);
      }
    }
    const int64_t count = std::min<int64_t>(kNormalBlock, columns - begin);
    for (int64_t j = 0; j < count; ++j) {
      const C x = static_cast<C>(found[j]);
      to[begin + j] = scale ? scale[begin + j] * x : x;
    }
  }
}

// Rows [begin, end) of [.., G, H], contiguous.
void normal(const Normal& n, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t g = 0; g < n.G; ++g) {
      const int64_t at = (r * n.G + g) * n.H;
      if (n.type == Type::float64) {
        normal_row<double>(n.seed, r, g, n.H, nullptr, static_cast<double*>(n.out) + at);
      } else {
        normal_row<float>(n.seed, r, g, n.H, nullptr, static_cast<float*>(n.out) + at);
      }
    }
  }
}

// Rows [begin, end) of [.., G, H], contiguous.
void flags(const Flags& f, int64_t begin, int64_t end) {
  typedef uint8_t Bytes __attribute__((vector_size(kLanes<float>)));
  constexpr int L = kLanes<float>;
  const uint32_t most = static_cast<uint32_t>(std::max(f.probability * 0x1p32, 1.0) - 1);
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t g = 0; g < f.G; ++g) {
      bool* const to = f.out + (r * f.G + g) * f.H;
      for (int64_t n = 0; n < f.H; n += kNormalBlock) {
        uint8_t found[kNormalBlock];
        for (int from = 0; from < kNormalBlock / 4; from += L) {
          Words c[4];
          words_of(f.seed, r, g, n, from, c);
          for (int k = 0; k < 4; ++k) {
            const Bytes few = __builtin_convertvector((c[k] <= most) & 1, Bytes);
            std::memcpy(found + k * kNormalBlock / 4 + from, &few, sizeof few);
          }
        }
        std::memcpy(to + n, found, static_cast<size_t>(std::min<int64_t>(kNormalBlock, f.H - n)));
      }
    }
  }
}
