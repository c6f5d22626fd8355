// Products of matrices: register tiles over packed panels. The walk takes one such product a step,
// a layer three more over all steps: the input projection and the gradients.
// Included inside the ISA's namespace, after simd_<isa>.h and simd-inl.h.
//
// Every sum is one chain of multiply-adds with k ascending, whatever the tile, so its bits depend
// neither on the number of rows nor on how rows and columns are split over threads.

// -------------------------------------------------------------------------------------- tiles

// z[i, :] = sum over k of a[i, k] * w[k, :], for MR rows and a panel NV vectors wide. a[i, k] lies
// at a[i * row + k * column].
template <class C, int MR, int NV>
void product(const C* a, int64_t row, int64_t column, const C* w, int64_t K, C* z, int64_t ldz) {
  constexpr int L = kLanes<C>;
  Vec<C> sum[MR][NV] = {};
  for (int64_t k = 0; k < K; ++k) {
    Vec<C> weights[NV];
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) weights[j] = load_aligned(w + j * L);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const Vec<C> x = broadcast(a[i * row]);
#pragma GCC unroll 8
      for (int j = 0; j < NV; ++j) sum[i][j] = fma(x, weights[j], sum[i][j]);
    }
    a += column;
    w += NV * L;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < NV; ++j) store_aligned(z + i * ldz + j * L, sum[i][j]);
  }
}

template <class C>
using Product = void (*)(const C*, int64_t, int64_t, const C*, int64_t, C*, int64_t);

constexpr int kMostRows = 16;

template <class C>
struct ProductTable {
  Product<C> tile[9][kMostRows + 1];  // [vectors][rows]
};

template <class C, int NV, int... Rows>
constexpr void fill_products(ProductTable<C>& table, std::integer_sequence<int, Rows...>) {
  ((table.tile[NV][Rows + 1] = &product<C, Rows + 1, NV>), ...);
}

template <class C>
constexpr ProductTable<C> make_products() {
  ProductTable<C> table{};
  fill_products<C, 1>(table, std::make_integer_sequence<int, kTileRows[1]>{});
  fill_products<C, 2>(table, std::make_integer_sequence<int, kTileRows[2]>{});
  fill_products<C, 3>(table, std::make_integer_sequence<int, kTileRows[3]>{});
  fill_products<C, 4>(table, std::make_integer_sequence<int, kTileRows[4]>{});
  fill_products<C, 5>(table, std::make_integer_sequence<int, kTileRows[5]>{});
  fill_products<C, 6>(table, std::make_integer_sequence<int, kTileRows[6]>{});
  fill_products<C, 7>(table, std::make_integer_sequence<int, kTileRows[7]>{});
  fill_products<C, 8>(table, std::make_integer_sequence<int, kTileRows[8]>{});
  return table;
}

template <class C>
constexpr ProductTable<C> kProducts = make_products<C>();

template <class C>
constexpr int kMostTile = 32 * kLanes<C>;  // elements of a tile: it is held in 32 registers

// ------------------------------------------------------------------------------------- panels

// `vectors` columns are cut into equal panels of at most `widest`: a narrow one left over would
// keep the multiply-add units waiting for its loads.
inline int64_t panel_count(int64_t vectors, int widest) { return (vectors + widest - 1) / widest; }

// Panel `index` of the vectors [begin, end).
struct Panel {
  int64_t vector;
  int width;
};
inline Panel panel_of(int64_t begin, int64_t end, int widest, int64_t index) {
  const int64_t count = panel_count(end - begin, widest);
  const int64_t first = part_begin(end - begin, count, index);
  return {begin + first, static_cast<int>(part_begin(end - begin, count, index + 1) - first)};
}

// Rows [0, count) in equal blocks, none higher than the register tile.
template <class F>
void for_each_block(int width, int64_t begin, int64_t end, const F& f) {
  if (begin >= end) return;
  const int64_t count = (end - begin + kTileRows[width] - 1) / kTileRows[width];
  for (int64_t block = 0; block < count; ++block) {
    const int64_t b = begin + part_begin(end - begin, count, block);
    f(b, static_cast<int>(begin + part_begin(end - begin, count, block + 1) - b));
  }
}

template <class S, class C>
C value_of(S x) {
  if constexpr (std::is_same_v<S, C>) {
    return x;
  } else if constexpr (std::is_same_v<S, BFloat16>) {
    return bfloat16_to_float(x.bits);
  } else {
    return half_to_float(x.bits);
  }
}

// A matrix to be packed: element (k, n) lies at data[k * along_k + n * along_n].
template <class S>
struct Source {
  const S* data;
  int64_t along_k, along_n;
};

// The lower or upper halves of a and b, element by element in turn.
template <int half, class C, int... I>
inline Vec<C> interleave(Vec<C> a, Vec<C> b, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(a, b, (half * kLanes<C> / 2 + I / 2 + (I & 1) * kLanes<C>)...);
}

// panel[k * width + n] = from[n * along_n + k] for a square of lanes x lanes.
template <class C>
void transpose_square(const C* from, int64_t along_n, C* panel, int64_t width) {
  constexpr int L = kLanes<C>;
  using Indices = std::make_integer_sequence<int, L>;
  Vec<C> x[L], y[L];
#pragma GCC unroll 16
  for (int n = 0; n < L; ++n) x[n] = load<C, C>(from + n * along_n, L);
  // Each round is a perfect shuffle of all elements, which moves one bit of the index.
  for (int round = 1; round < L; round *= 2) {
#pragma GCC unroll 16
    for (int n = 0; n < L / 2; ++n) {
      y[2 * n] = interleave<0, C>(x[n], x[n + L / 2], Indices{});
      y[2 * n + 1] = interleave<1, C>(x[n], x[n + L / 2], Indices{});
    }
#pragma GCC unroll 16
    for (int n = 0; n < L; ++n) x[n] = y[n];
  }
#pragma GCC unroll 16
  for (int k = 0; k < L; ++k) store_aligned(panel + k * width, x[k]);
}

// Copies rows [0, K) and `valid` columns into a panel [K][vectors * lanes], the rest zero.
template <class S, class C>
void pack_panel(const Source<S>& w, int64_t K, int64_t valid, int vectors, C* panel) {
  constexpr int64_t L = kLanes<C>;
  const int64_t width = vectors * L;
  if (valid < width) std::fill(panel, panel + K * width, C{0});
  for (int64_t k0 = 0; k0 < K; k0 += L) {
    const int64_t k1 = std::min(K, k0 + L);
    for (int64_t n0 = 0; n0 < valid; n0 += L) {
      const int64_t n1 = std::min(valid, n0 + L);
      if constexpr (std::is_same_v<S, C>) {
        if (w.along_k == 1 && k1 - k0 == L && n1 - n0 == L) {
          transpose_square(w.data + k0 + n0 * w.along_n, w.along_n, panel + k0 * width + n0, width);
          continue;
        }
      }
      for (int64_t k = k0; k < k1; ++k) {
        const S* row = w.data + k * w.along_k;
        for (int64_t n = n0; n < n1; ++n) {
          panel[k * width + n] = value_of<S, C>(row[n * w.along_n]);
        }
      }
    }
  }
}

// ------------------------------------------------------------------------------ whole products

// Rows of results c[i, :], which begin as a copy of `bias` (null: zero) or keep what they hold.
// Noise, where there is some, is added times its scale.
template <class C>
struct Result {
  C* data;
  int64_t row;
  const C* bias;  // as many as there are columns, padded to whole vectors
  bool accumulate;
  const C* noise = nullptr;
  int64_t noise_row = 0;
  const C* noise_scale = nullptr;  // null: 1
};

// Rows x columns of a tile just made, to where they belong.
template <class C>
void put(const C* z, int rows, int width, int64_t columns, int64_t column, const Result<C>& c,
         int64_t first_row) {
  constexpr int L = kLanes<C>;
  for (int i = 0; i < rows; ++i) {
    C* to = c.data + (first_row + i) * c.row + column;
    for (int j = 0; j < width; ++j) {
      const int n = static_cast<int>(std::min<int64_t>(L, columns - column - j * L));
      Vec<C> x = load_aligned(z + (i * width + j) * L);
      if (c.bias) x += load_aligned(c.bias + column + j * L);
      if (c.accumulate) x += load<C, C>(to + j * L, n);
      if (c.noise) {
        const int64_t at = column + j * L;
        const Vec<C> noise = load<C, C>(c.noise + (first_row + i) * c.noise_row + at, n);
        x += c.noise_scale ? load<C, C>(c.noise_scale + at, n) * noise : noise;
      }
      store<C, C>(to + j * L, n, x);
    }
  }
}

// Asks for the rows of c that the tile under way will be put to.
template <class C>
void ask_for(const Result<C>& c, int64_t first_row, int rows, int width, int64_t column) {
  for (int i = 0; i < rows; ++i) {
    const C* to = c.data + (first_row + i) * c.row + column;
    for (int j = 0; j < width; ++j) __builtin_prefetch(to + j * kLanes<C>, 1);
  }
}

// c[i, :] = sum over k of a[i, k] * w[k, :] for the rows [begin, end) and one panel. Chains of at
// most `chain` multiply-adds are added up.
template <class C>
void multiply_panel(const C* a, int64_t row, int64_t column, int64_t begin, int64_t end,
                    const C* panel, int64_t K, int64_t chain, const Panel& at, int64_t columns,
                    const Result<C>& c) {
  constexpr int L = kLanes<C>;
  alignas(64) C sums[kMostTile<C>];
  alignas(64) C z[kMostTile<C>];
  for_each_block(at.width, begin, end, [&](int64_t i, int rows) {
    ask_for(c, i, rows, at.width, at.vector * L);
    const Product<C> tile = kProducts<C>.tile[at.width][rows];
    tile(a + i * row, row, column, panel, std::min(K, chain), sums, at.width * L);
    for (int64_t k = chain; k < K; k += chain) {
      tile(a + i * row + k * column, row, column, panel + k * at.width * L, std::min(K - k, chain),
           z, at.width * L);
      for (int j = 0; j < rows * at.width; ++j) {
        store_aligned(sums + j * L, load_aligned(sums + j * L) + load_aligned(z + j * L));
      }
    }
    put(sums, rows, at.width, columns, at.vector * L, c, i);
  });
}
