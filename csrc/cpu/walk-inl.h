// The two time loops, written once and compiled for every ISA.
// Included inside the ISA's namespace, after tanh-inl.h and products-inl.h.
//
// A step is, for every row b and unit n of a group,
//
//   sum[b, n] = sum over k of carry[b, k] * packed[k, n]        product: register tiles
//   carry'[b, n] = phi(u + sum)  or  d * (v + sum)  or ...      epilogue, on the tile just made
//   out[t, b, n] = carry'[b, n] rounded to the storage type
//
// Every sum is one chain of multiply-adds with k ascending, whatever the tile, so the bits of the
// result depend neither on the batch size nor on how rows and columns are split over threads.

// ----------------------------------------------------------------------------------- epilogue

// A tile of one step: rows x columns, and where its operands and results lie.
template <class S, class C>
struct Tile {
  int rows;
  int columns;  // without the padding
  const S* drive;
  const S* factor;
  S* out;
  int64_t drive_row, factor_row, out_row;
  C* carry;  // holds the sums, receives the new state
  int64_t carry_row;
};

template <class C, Phi phi>
inline Vec<C> activate(Vec<C> x) {
  if constexpr (phi == Phi::tanh) return tanh<C>(x);
  if constexpr (phi == Phi::relu) return C{0} > x ? Vec<C>{} : x;  // false for NaN, which passes
  if constexpr (phi == Phi::sigmoid) return sigmoid<C>(x);
  if constexpr (phi == Phi::softplus) return softplus<C>(x);
  return x;
}

// d * x, where d is f itself or the slope of phi where it is f.
template <class C, Phi phi>
inline Vec<C> times_slope(Vec<C> f, Vec<C> x) {
  if constexpr (phi == Phi::tanh) return fma(-f, f, broadcast(C{1})) * x;
  if constexpr (phi == Phi::relu) return f <= C{0} ? Vec<C>{} : x;  // as ATen's threshold
  if constexpr (phi == Phi::sigmoid) return fma(-f, f, f) * x;
  if constexpr (phi == Phi::softplus) return one_minus_exp<C>(f) * x;
  if constexpr (phi == Phi::identity) return x;
  return f * x;
}

template <class S, class C, Primitive primitive, Phi phi>
inline Vec<C> step_value(const Tile<S, C>& tile, int row, int column, int n, Vec<C> sum) {
  const Vec<C> x =
      tile.drive ? load<S, C>(tile.drive + row * tile.drive_row + column, n) + sum : sum;
  if constexpr (primitive == Primitive::recurrence) {
    return activate<C, phi>(x);
  } else {
    return times_slope<C, phi>(load<S, C>(tile.factor + row * tile.factor_row + column, n), x);
  }
}

template <class S, class C, Primitive primitive, Phi phi>
void epilogue(const Tile<S, C>& tile) {
  constexpr int L = kLanes<C>;
  for (int i = 0; i < tile.rows; ++i) {
    C* carry = tile.carry + i * tile.carry_row;
    S* out = tile.out + i * tile.out_row;
    int j = 0;
    for (; j + L <= tile.columns; j += L) {
      const Vec<C> x = step_value<S, C, primitive, phi>(tile, i, j, L, load_aligned(carry + j));
      store_aligned(carry + j, x);
      store<S, C>(out + j, L, x);
    }
    if (j < tile.columns) {
      const int n = tile.columns - j;
      const Vec<C> x = step_value<S, C, primitive, phi>(tile, i, j, n, load_aligned(carry + j));
      store_aligned(carry + j, x);
      store<S, C>(out + j, n, x);
    }
  }
}

template <class S, class C>
using Epilogue = void (*)(const Tile<S, C>&);

// Calls f with p.phi as a constant of the compiler.
template <class F>
auto with_phi(Phi phi, const F& f) {
  switch (phi) {
    case Phi::tanh:
      return f(std::integral_constant<Phi, Phi::tanh>{});
    case Phi::relu:
      return f(std::integral_constant<Phi, Phi::relu>{});
    case Phi::sigmoid:
      return f(std::integral_constant<Phi, Phi::sigmoid>{});
    case Phi::softplus:
      return f(std::integral_constant<Phi, Phi::softplus>{});
    case Phi::identity:
      return f(std::integral_constant<Phi, Phi::identity>{});
    default:
      return f(std::integral_constant<Phi, Phi::given>{});
  }
}

// The Euclidean norm. Eight sums of squares and a double's width, whatever the vectors': the same
// bits on every ISA, and no overflow of floats.
template <class C>
inline double norm(const C* x, int count) {
  double sums[8] = {};
  int j = 0;
  for (; j + 8 <= count; j += 8) {
    for (int k = 0; k < 8; ++k) {
      const double y = x[j + k];
      sums[k] += y * y;
    }
  }
  for (int k = 0; j < count; ++j, ++k) {
    const double y = x[j];
    sums[k] += y * y;
  }
  return __builtin_sqrt(((sums[0] + sums[1]) + (sums[2] + sums[3])) +
                        ((sums[4] + sums[5]) + (sums[6] + sums[7])));
}

// Clips one row, or the part of it that a thread has where each number is clipped.
template <class C>
void clip_row(const Clip& clip, C* row, int columns) {
  constexpr int L = kLanes<C>;
  if (clip.kind == Clip::Kind::norm) {
    const double share = clip.limit / norm(row, columns);
    if (share >= 1) return;  // false for NaN, which passes
    const Vec<C> scale = broadcast(static_cast<C>(share));
    for (int j = 0; j < columns; j += L) store_aligned(row + j, load_aligned(row + j) * scale);
  } else {
    const Vec<C> most = broadcast(static_cast<C>(clip.limit));
    for (int j = 0; j < columns; j += L) {
      const Vec<C> x = load_aligned(row + j);
      store_aligned(row + j, x > most ? most : x < -most ? -most : x);
    }
  }
}

// The epilogue of clipped BPTT. Its tile is all that a thread has of some rows: the norm of a row
// is known only when all its sums are.
template <class S, class C, Phi phi>
void clipped_epilogue(const Tile<S, C>& tile, const Clip& clip) {
  constexpr int L = kLanes<C>;
  for (int i = 0; i < tile.rows; ++i) {
    C* carry = tile.carry + i * tile.carry_row;
    const S* drive = tile.drive ? tile.drive + i * tile.drive_row : nullptr;
    const S* factor = tile.factor + i * tile.factor_row;
    S* out = tile.out + i * tile.out_row;
    const auto lanes_at = [&](int j) { return std::min(L, tile.columns - j); };
    for (int j = 0; drive && j < tile.columns; j += L) {
      store_aligned(carry + j, load<S, C>(drive + j, lanes_at(j)) + load_aligned(carry + j));
    }
    clip_row(clip, carry, tile.columns);
    for (int j = 0; j < tile.columns; j += L) {
      const Vec<C> x =
          times_slope<C, phi>(load<S, C>(factor + j, lanes_at(j)), load_aligned(carry + j));
      store_aligned(carry + j, x);
      store<S, C>(out + j, lanes_at(j), x);
    }
  }
}

template <class S, class C>
using ClippedEpilogue = void (*)(const Tile<S, C>&, const Clip&);

template <class S, class C>
ClippedEpilogue<S, C> clipped_epilogue_of(const Problem& p) {
  if (p.clip.kind == Clip::Kind::none) return nullptr;
  return with_phi(p.phi, [](auto phi) -> ClippedEpilogue<S, C> {
    return &clipped_epilogue<S, C, decltype(phi)::value>;
  });
}

template <class S, class C>
Epilogue<S, C> epilogue_of(const Problem& p) {
  if (p.clip.kind != Clip::Kind::none) return [](const Tile<S, C>&) {};  // sums wait for their row
  return with_phi(p.phi, [&](auto phi) -> Epilogue<S, C> {
    return p.primitive == Primitive::recurrence
               ? &epilogue<S, C, Primitive::recurrence, decltype(phi)::value>
               : &epilogue<S, C, Primitive::linear, decltype(phi)::value>;
  });
}

// ------------------------------------------------------------------------- epilogue with a leak

// What is kept from step to step is apart from what is multiplied: the memory of a unit is read and
// written by the thread that owns it alone, and so there is one of it.
template <class S, class C>
struct LeakyTile : Tile<S, C> {
  const S* keep;
  const S* gain;
  const bool* held;
  S* rate;
  S* total;  // BPTT: where y goes, with out's stride; null: nowhere
  int64_t keep_row, gain_row, held_row, rate_row;
  C* memory;  // with the carry's stride
};

// k and a of n units.
template <class C>
struct Leak {
  Vec<C> keep, gain;
};

template <class S, class C, Primitive primitive, bool held>
inline Leak<C> leak_at(const LeakyTile<S, C>& tile, int row, int column, int n) {
  if constexpr (held) {
    const Vec<C> keep = load_flags<C>(tile.held + row * tile.held_row + column, n);
    return {keep, broadcast(C{1}) - keep};
  }
  Leak<C> leak{load<S, C>(tile.keep + row * tile.keep_row + column, n), Vec<C>{}};
  if constexpr (primitive == Primitive::leaky_rate) {
    leak.gain = load<S, C>(tile.gain + row * tile.gain_row + column, n);
  }
  return leak;
}

// Of BPTT, r and the cotangent c of it.
template <class C>
struct Rate {
  Vec<C> r, c;
};

template <class S, class C>
inline Rate<C> rate_at(const LeakyTile<S, C>& tile, int row, int column, int n) {
  return {load<S, C>(tile.factor + row * tile.factor_row + column, n),
          tile.rate ? load<S, C>(tile.rate + row * tile.rate_row + column, n) : Vec<C>{}};
}

// The cotangent of the state, from what the steps after this one hand back.
template <class C, Primitive primitive, Phi phi>
inline Vec<C> state_cotangent(const Rate<C>& rate, Vec<C> past, Vec<C> drive, Vec<C> sum) {
  if constexpr (primitive == Primitive::leaky_rate) return past + drive + sum;
  return past + drive + times_slope<C, phi>(rate.r, sum + rate.c);
}

// And that of what W h or W r is added to.
template <class C, Primitive primitive, Phi phi>
inline Vec<C> sum_cotangent(const Rate<C>& rate, const Leak<C>& leak, Vec<C> x) {
  if constexpr (primitive == Primitive::leaky_rate) {
    return times_slope<C, phi>(rate.r, fma(leak.gain, x, rate.c));
  }
  return x;
}

// As clipped_epilogue; until its row is clipped, the cotangent of the state is in the memory.
template <class S, class C, Primitive primitive, Phi phi>
void clipped_leaky_epilogue(const LeakyTile<S, C>& tile, const Clip& clip) {
  constexpr int L = kLanes<C>;
  for (int i = 0; i < tile.rows; ++i) {
    C* carry = tile.carry + i * tile.carry_row;
    C* memory = tile.memory + i * tile.carry_row;
    for (int j = 0; j < tile.columns; j += L) {
      const int n = std::min(L, tile.columns - j);
      const Vec<C> drive =
          tile.drive ? load<S, C>(tile.drive + i * tile.drive_row + j, n) : Vec<C>{};
      store_aligned(memory + j, state_cotangent<C, primitive, phi>(rate_at(tile, i, j, n),
                                                                   load_aligned(memory + j), drive,
                                                                   load_aligned(carry + j)));
    }
    clip_row(clip, memory, tile.columns);
    for (int j = 0; j < tile.columns; j += L) {
      const int n = std::min(L, tile.columns - j);
      const Leak<C> leak = leak_at<S, C, primitive, false>(tile, i, j, n);
      const Vec<C> x = load_aligned(memory + j);
      const Vec<C> q = sum_cotangent<C, primitive, phi>(rate_at(tile, i, j, n), leak, x);
      if (tile.total) store<S, C>(tile.total + i * tile.out_row + j, n, x);
      store<S, C>(tile.out + i * tile.out_row + j, n, q);
      store_aligned(carry + j, q);
      store_aligned(memory + j, leak.keep * x);
    }
  }
}

template <class S, class C, Primitive primitive, bool adjoint, bool held, Phi phi>
void leaky_epilogue(const LeakyTile<S, C>& tile) {
  constexpr int L = kLanes<C>;
  for (int i = 0; i < tile.rows; ++i) {
    C* carry = tile.carry + i * tile.carry_row;
    C* memory = tile.memory + i * tile.carry_row;
    for (int j = 0; j < tile.columns; j += L) {
      const int n = std::min(L, tile.columns - j);
      const auto read = [&](const S* p, int64_t row) { return load<S, C>(p + i * row + j, n); };
      const Vec<C> sum = load_aligned(carry + j), past = load_aligned(memory + j);
      const Vec<C> drive = tile.drive ? read(tile.drive, tile.drive_row) : Vec<C>{};
      const Leak<C> leak = leak_at<S, C, primitive, held>(tile, i, j, n);
      const Vec<C> keep = leak.keep;
      Vec<C> x, rate, operand;
      if constexpr (adjoint && phi != Phi::given) {
        const Rate<C> of_rate = rate_at(tile, i, j, n);
        x = state_cotangent<C, primitive, phi>(of_rate, past, drive, sum);
        operand = sum_cotangent<C, primitive, phi>(of_rate, leak, x);
        if (tile.total) store<S, C>(tile.total + i * tile.out_row + j, n, x);
      } else if constexpr (primitive == Primitive::leaky_rate) {
        rate = activate<C, phi>(drive + sum);
        x = fma(keep, past, leak.gain * rate);
        operand = x;
      } else if constexpr (primitive == Primitive::leaky_voltage) {
        x = fma(keep, past, drive + sum);
        rate = activate<C, phi>(x);
        operand = rate;
      } else {
        const Vec<C> d = read(tile.factor, tile.factor_row);
        // d multiplies the sum, or what the next sum is taken of.
        constexpr bool before = (primitive == Primitive::outer) != adjoint;
        x = (adjoint ? past + drive : fma(keep, past, drive)) + (before ? d * sum : sum);
        operand = before ? x : d * x;
      }
      constexpr bool bptt = adjoint && phi != Phi::given;
      store<S, C>(tile.out + i * tile.out_row + j, n, bptt ? operand : x);
      if constexpr (phi != Phi::given && !adjoint) {
        store<S, C>(tile.rate + i * tile.rate_row + j, n, rate);
      }
      store_aligned(carry + j, operand);
      store_aligned(memory + j, adjoint ? keep * x : x);
    }
  }
}

template <class S, class C>
using LeakyEpilogue = void (*)(const LeakyTile<S, C>&);

template <class S, class C>
LeakyEpilogue<S, C> leaky_epilogue_of(const Problem& p) {
  using enum Primitive;
  if (p.clip.kind != Clip::Kind::none) return [](const LeakyTile<S, C>&) {};
  if (p.primitive == outer) {
    return p.adjoint ? &leaky_epilogue<S, C, outer, true, false, Phi::given>
                     : &leaky_epilogue<S, C, outer, false, false, Phi::given>;
  }
  if (p.primitive == inner) {
    return p.adjoint ? &leaky_epilogue<S, C, inner, true, false, Phi::given>
                     : &leaky_epilogue<S, C, inner, false, false, Phi::given>;
  }
  return with_phi(p.phi, [&](auto code) -> LeakyEpilogue<S, C> {
    constexpr Phi phi = decltype(code)::value;
    if (p.held.data) {
      return p.adjoint ? &leaky_epilogue<S, C, leaky_rate, true, true, phi>
                       : &leaky_epilogue<S, C, leaky_rate, false, true, phi>;
    }
    if (p.primitive == leaky_rate) {
      return p.adjoint ? &leaky_epilogue<S, C, leaky_rate, true, false, phi>
                       : &leaky_epilogue<S, C, leaky_rate, false, false, phi>;
    }
    return p.adjoint ? &leaky_epilogue<S, C, leaky_voltage, true, false, phi>
                     : &leaky_epilogue<S, C, leaky_voltage, false, false, phi>;
  });
}

template <class S, class C>
using ClippedLeakyEpilogue = void (*)(const LeakyTile<S, C>&, const Clip&);

template <class S, class C>
ClippedLeakyEpilogue<S, C> clipped_leaky_epilogue_of(const Problem& p) {
  using enum Primitive;
  if (p.clip.kind == Clip::Kind::none) return nullptr;
  return with_phi(p.phi, [&](auto code) -> ClippedLeakyEpilogue<S, C> {
    constexpr Phi phi = decltype(code)::value;
    return p.primitive == leaky_rate ? &clipped_leaky_epilogue<S, C, leaky_rate, phi>
                                     : &clipped_leaky_epilogue<S, C, leaky_voltage, phi>;
  });
}

// --------------------------------------------------------------------------------- the walk

// One thread's part of a walk: a group, its rows [row_begin, row_end), its vectors of columns.
struct Slice {
  int64_t group;
  int64_t row_begin, row_end;
  int64_t vector_begin, vector_end;
};

template <class S, class C, bool leaky = false>
class Walk {
 public:
  Walk(const Problem& p, const Schedule& schedule, const Workspace& space, const Slice& slice)
      : p_(p),
        widest_(schedule.panel_vectors),
        panels_outside_(schedule.panels_outside),
        slice_(slice),
        stride_(space.carry_stride) {
    if constexpr (leaky) {
      epilogue_ = leaky_epilogue_of<S, C>(p);
      clipped_ = clipped_leaky_epilogue_of<S, C>(p);
    } else {
      epilogue_ = epilogue_of<S, C>(p);
      clipped_ = clipped_epilogue_of<S, C>(p);
    }
    constexpr int64_t L = kLanes<C>;
    const int64_t vectors = (p.H + L - 1) / L;
    weights_ = reinterpret_cast<const C*>(space.weights) + slice.group * p.H * vectors * L;
    carry_ = reinterpret_cast<C*>(space.carry) + slice.group * kBuffers * p.B * stride_;
  }

  // The next `count` steps, and after the last step what ends the walk. Row r of the sequence is
  // written to row r - first_row of `out`, and of `total` what BPTT with a leak has beside it.
  // `barrier` is met by the `size` threads that share the rows.
  void advance(int64_t count, void* out, void* total, int64_t first_row, Barrier& barrier,
               int32_t size) {
    if (p_.T == 0) {
      begin(buffer(0), 0, p_.B);
      if (leaky) return finish_leaky(0, 0, p_.B);
      return store_state(p_.last, buffer(0), 0, p_.B);
    }
    out_ = static_cast<S*>(out) - first_row * p_.out.row;
    total_ = total ? static_cast<S*>(total) - first_row * p_.out.row : nullptr;
    if (next_ == 0 && carries_initial()) {
      begin(buffer(0), 0, rows_of_step(0));
      if (!backwards()) cut(buffer(0), 0);
    }
    for (const int64_t end = std::min(p_.T, next_ + count); next_ < end; ++next_) {
      barrier.wait(size);
      const int64_t rows = rows_of_step(next_);
      finish(next_, rows, carried_);
      step(next_, time_of(next_), rows, std::min(rows, carried_));
      if (next_ + 1 < p_.T) cut(buffer(next_ + 1), time_of(next_) + (backwards() ? 0 : 1));
      if (carries_initial()) begin(buffer(next_ + 1), rows, rows_of_step(next_ + 1));
      carried_ = rows;
    }
    if (next_ < p_.T) return;
    barrier.wait(size);
    finish(next_, 0, carried_);
  }

  int64_t group() const { return slice_.group; }

 private:
  static constexpr int kBuffers = leaky ? 3 : 2;

  bool backwards() const { return walks_backwards(p_, slice_.group); }
  int64_t time_of(int64_t i) const { return backwards() ? p_.T - 1 - i : i; }
  int64_t rows_of_step(int64_t i) const { return i < p_.T ? rows_at(p_, time_of(i)) : 0; }

  // An initial state that is to be multiplied is carried like any other. An adjoint walk begins
  // with the product already given; and from zero none is taken: 0 times an infinite weight would
  // be NaN.
  bool carries_initial() const {
    return (p_.initial.data || p_.cuts.replacement.data) && !p_.adjoint;
  }

  // Step i reads buffer(i) and writes buffer(i + 1).
  C* buffer(int64_t i) const { return carry_ + (i & 1) * p_.B * stride_; }
  C* memory() const { return carry_ + 2 * p_.B * stride_; }

  // Gives the rows [from, to) of this slice, which have no step behind them, their initial state.
  void begin(C* carry, int64_t from, int64_t to) const { fill(carry, from, to, p_.initial); }

  void fill(C* carry, int64_t from, int64_t to, const State& state) const {
    const S* data = static_cast<const S*>(state.data);
    for_each_vector(from, to, [&](int64_t b, int64_t column, int n) {
      const int64_t at = slice_.group * state.group + b * state.row + column;
      Vec<C> x = data ? load<S, C>(data + at, n) : Vec<C>{};
      if constexpr (leaky) {
        store_aligned(memory() + b * stride_ + column, x);
        if (p_.adjoint) {
          x = Vec<C>{};
        } else if (p_.primitive == Primitive::leaky_voltage) {
          x = with_phi(p_.phi, [&](auto phi) { return activate<C, decltype(phi)::value>(x); });
        }
      }
      store_aligned(carry + b * stride_ + column, x);
    });
  }

  // Replaces what is carried over boundary t by the rows that are cut there.
  void cut(C* carry, int64_t t) const {
    if (!may_cut(p_, t)) return;
    const bool all = window_cuts(p_, t);
    const int64_t end = std::min(rows_at(p_, t), slice_.row_end);
    for (int64_t b = slice_.row_begin; b < end; ++b) {
      const bool replaced = cut_at(p_, slice_.group, t, b);
      if (replaced) add_replaced(carry, b);
      if (replaced || all) fill(carry, b, b + 1, replaced ? p_.cuts.replacement : State{});
    }
  }

  // What row b hands back goes to the state that a cut put in its place.
  void add_replaced(const C* carry, int64_t b) const {
    if (p_.replaced_product.data) add_row(p_.replaced_product, carry, b);
    if (leaky && p_.replaced.data) add_row(p_.replaced, memory(), b);
  }

  // What h_0 was cut off from has no share in its cotangent; `carry` is what the product was of.
  void cut_last(const C* carry, int64_t to) const {
    for (int64_t b = slice_.row_begin; b < std::min(to, slice_.row_end); ++b) {
      if (!cut_at(p_, slice_.group, 0, b)) continue;
      add_replaced(carry, b);
      S* last = static_cast<S*>(p_.last.data) + slice_.group * p_.last.group + b * p_.last.row;
      for_each_vector(b, b + 1, [&](int64_t, int64_t column, int n) {
        store<S, C>(last + column, n, Vec<C>{});
      });
    }
  }

  void store_state(const State& to_state, const C* carry, int64_t from, int64_t to) const {
    S* data = static_cast<S*>(to_state.data);
    for_each_vector(from, to, [&](int64_t b, int64_t column, int n) {
      const int64_t at = slice_.group * to_state.group + b * to_state.row + column;
      store<S, C>(data + at, n, load_aligned(carry + b * stride_ + column));
    });
  }

  // In double: a row may be cut at every step.
  void add_row(const State& sums, const C* carry, int64_t b) const {
    double* sum = static_cast<double*>(sums.data) + slice_.group * sums.group + b * sums.row;
    for (int64_t n = column_begin(); n < column_end(); ++n) sum[n] += carry[b * stride_ + n];
  }

  template <class F>
  void for_each_vector(int64_t from, int64_t to, const F& f) const {
    constexpr int64_t L = kLanes<C>;
    for (int64_t b = std::max(from, slice_.row_begin); b < std::min(to, slice_.row_end); ++b) {
      for (int64_t v = slice_.vector_begin; v < slice_.vector_end; ++v) {
        f(b, v * L, static_cast<int>(std::min<int64_t>(L, p_.H - v * L)));
      }
    }
  }

  // The rows [from, to) had a step before step i and have none now.
  void finish(int64_t i, int64_t from, int64_t to) const {
    from = std::max(from, slice_.row_begin);
    to = std::min(to, slice_.row_end);
    if (leaky) return finish_leaky(i, from, to);
    if (from >= to) return;
    if (!p_.adjoint) return store_state(p_.last, buffer(i), from, to);
    // One product more. These rows of the other buffer are free: no step will read them.
    for_each_panel(i, [&](int64_t vector, int width) {
      for_each_block(width, from, to,
                     [&](int64_t b, int rows) { multiply(i, vector, width, b, rows); });
    });
    store_state(p_.last, buffer(i + 1), from, to);
    if (p_.cuts.mask && backwards()) cut_last(buffer(i), to);
  }

  // With a leak no product more is taken: what BPTT hands to the states before its first steps is
  // few rows, and the caller's.
  void finish_leaky(int64_t i, int64_t from, int64_t to) const {
    if (!p_.last.data) return;
    if (p_.last_product.data) {
      if (p_.T > 0 && from < to && backwards()) cut(buffer(i), 0);
      store_state(p_.last_product, buffer(i), from, to);
    }
    store_state(p_.last, memory(), from, to);
  }

  // Step i at time t: rows below `carried` have a step behind them, the others begin here.
  void step(int64_t i, int64_t t, int64_t rows, int64_t carried) const {
    const int64_t first = slice_.row_begin;
    const int64_t end = std::min(rows, slice_.row_end);
    const int64_t multiplied = carries_initial() ? end : std::min(end, carried);
    begin(buffer(i + 1), std::max(first, multiplied), end);  // sums without a product
    Ahead ahead = look_ahead(i);
    const auto tile_step = [&](int64_t vector, int width, int64_t b, int block) {
      prefetch(ahead);
      multiply(i, vector, width, b, block);
      epilogue_(tile_at(i, t, vector, width, b, block));
    };
    if (panels_outside_) {
      for_each_panel(i, [&](int64_t vector, int width) {
        for_each_block(width, first, multiplied,
                       [&](int64_t b, int block) { tile_step(vector, width, b, block); });
      });
    } else {
      for_each_block(widest_, first, multiplied, [&](int64_t b, int block) {
        for_each_panel(i, [&](int64_t vector, int width) { tile_step(vector, width, b, block); });
      });
    }
    for_each_block(widest_, std::max(first, multiplied), end, [&](int64_t b, int block) {
      for_each_panel(
          i, [&](int64_t vector, int width) { epilogue_(tile_at(i, t, vector, width, b, block)); });
    });
    if (!clipped_) return;
    const int vectors = static_cast<int>(slice_.vector_end - slice_.vector_begin);
    for_each_block(widest_, first, end, [&](int64_t b, int block) {
      clipped_(tile_at(i, t, slice_.vector_begin, vectors, b, block), p_.clip);
    });
  }

  // What the next step reads from memory that nothing has touched lately: its rows of drive and
  // factor, asked for a few lines a tile while this step computes. Asking for a tile's own lines
  // just before its product measured slower: so many at once hold up the loads of the product.
  struct Ahead {
    int64_t t;            // the next step's time
    int64_t row, column;  // the next line to ask for
    int64_t row_end;
    int64_t lines_per_tile;
  };

  Ahead look_ahead(int64_t i) const {
    if (i + 1 >= p_.T) return {};
    const int64_t t = time_of(i + 1);
    const int64_t end = std::min(rows_at(p_, t), slice_.row_end);
    const int64_t rows = std::max<int64_t>(end - slice_.row_begin, 0);
    const int64_t lines = rows * ((column_end() - column_begin() + kLine - 1) / kLine);
    // Less than this the hardware fetches ahead well enough by itself.
    if (lines < 256) return {};
    const int64_t tiles = panel_count(slice_.vector_end - slice_.vector_begin, widest_) *
                          ((rows + kTileRows[widest_] - 1) / kTileRows[widest_]);
    return {t, slice_.row_begin, column_begin(), end, lines / tiles + 1};
  }

  void prefetch(Ahead& ahead) const {
    for (int64_t k = 0; k < ahead.lines_per_tile && ahead.row < ahead.row_end; ++k) {
      // A null pointer is harmless here: a prefetch never faults.
      __builtin_prefetch(at(p_.drive, ahead.t, ahead.row, ahead.column));
      __builtin_prefetch(at(p_.factor, ahead.t, ahead.row, ahead.column));
      ahead.column += kLine;
      if (ahead.column >= column_end()) {
        ahead.column = column_begin();
        ++ahead.row;
      }
    }
  }

  static constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(S));
  int64_t column_begin() const { return slice_.vector_begin * kLanes<C>; }
  int64_t column_end() const { return std::min(slice_.vector_end * kLanes<C>, p_.H); }

  // Up the panels on even steps and down on odd ones: when W does not fit the L2 cache, the part
  // used last is still there.
  template <class F>
  void for_each_panel(int64_t i, const F& f) const {
    const int64_t count = panel_count(slice_.vector_end - slice_.vector_begin, widest_);
    for (int64_t q = 0; q < count; ++q) {
      const Panel panel =
          panel_of(slice_.vector_begin, slice_.vector_end, widest_, (i & 1) ? count - 1 - q : q);
      f(panel.vector, panel.width);
    }
  }

  void multiply(int64_t i, int64_t vector, int width, int64_t b, int rows) const {
    const int64_t column = vector * kLanes<C>;
    kProducts<C>.tile[width][rows](buffer(i) + b * stride_, stride_, 1, weights_ + column * p_.H,
                                   p_.H, buffer(i + 1) + b * stride_ + column, stride_);
  }

  std::conditional_t<leaky, LeakyTile<S, C>, Tile<S, C>> tile_at(int64_t i, int64_t t,
                                                                 int64_t vector, int width,
                                                                 int64_t b, int rows) const {
    const int64_t column = vector * kLanes<C>;
    std::conditional_t<leaky, LeakyTile<S, C>, Tile<S, C>> tile;
    tile.rows = rows;
    tile.columns = static_cast<int>(std::min<int64_t>(width * kLanes<C>, p_.H - column));
    tile.drive = at(p_.drive, t, b, column);
    tile.factor = at(p_.factor, t, b, column);
    tile.out = out_ + offset(p_.out, t, b, column);
    tile.drive_row = p_.drive.row;
    tile.factor_row = p_.factor.row;
    tile.out_row = p_.out.row;
    tile.carry = buffer(i + 1) + b * stride_ + column;
    tile.carry_row = stride_;
    if constexpr (leaky) {
      tile.keep = at(p_.keep, t, b, column);
      tile.gain = at(p_.gain, t, b, column);
      tile.held = p_.held.data
                      ? static_cast<const bool*>(p_.held.data) + offset(p_.held, t, b, column)
                      : nullptr;
      tile.rate = at(p_.rate, t, b, column);
      tile.total = total_ ? total_ + offset(p_.out, t, b, column) : nullptr;
      tile.keep_row = p_.keep.row;
      tile.gain_row = p_.gain.row;
      tile.held_row = p_.held.row;
      tile.rate_row = p_.rate.row;
      tile.memory = memory() + b * stride_ + column;
    }
    return tile;
  }

  int64_t offset(const Sequence& s, int64_t t, int64_t b, int64_t column) const {
    return origin(p_, s, t) + b * s.row + slice_.group * s.group + column;
  }
  S* at(const Sequence& s, int64_t t, int64_t b, int64_t column) const {
    return s.data ? static_cast<S*>(s.data) + offset(s, t, b, column) : nullptr;
  }

  const Problem& p_;
  const int widest_;
  const bool panels_outside_;
  const Slice slice_;
  const int64_t stride_;
  std::conditional_t<leaky, LeakyEpilogue<S, C>, Epilogue<S, C>> epilogue_;
  // Null: not clipped.
  std::conditional_t<leaky, ClippedLeakyEpilogue<S, C>, ClippedEpilogue<S, C>> clipped_;
  const C* weights_;
  C* carry_;
  int64_t next_ = 0;     // the step that comes next, in the order of the walk
  int64_t carried_ = 0;  // rows that have a step behind them
  S* out_ = nullptr;     // where row 0 of the sequence is or would be
  S* total_ = nullptr;
};

// Packs this thread's share of every group's weights: the columns that it will itself read, dealt
// out among the teams. W^T for the forward walk, W for the adjoint.
template <class S, class C>
void pack_share(const Problem& p, const Schedule& schedule, const Workspace& space, int32_t rank) {
  constexpr int64_t L = kLanes<C>;
  const int64_t vectors = (p.H + L - 1) / L;
  if (rank >= schedule.teams * schedule.column_parts) return;
  const int32_t part = rank % schedule.column_parts;
  const int64_t begin = part_begin(vectors, schedule.column_parts, part);
  const int64_t end = part_begin(vectors, schedule.column_parts, part + 1);
  int64_t turn = rank / schedule.column_parts;
  for (int64_t g = 0; g < p.G; ++g) {
    C* weights = reinterpret_cast<C*>(space.weights) + g * p.H * vectors * L;
    const int64_t count = panel_count(end - begin, schedule.panel_vectors);
    for (int64_t panel = 0; panel < count; ++panel) {
      if (turn-- > 0) continue;
      turn = schedule.teams - 1;
      const Panel to = panel_of(begin, end, schedule.panel_vectors, panel);
      const int64_t column = to.vector * L;
      const Source<S> w{static_cast<const S*>(p.weight.data) + g * p.weight.group +
                            column * (p.adjoint ? p.weight.column : p.weight.row),
                        p.adjoint ? p.weight.row : p.weight.column,
                        p.adjoint ? p.weight.column : p.weight.row};
      pack_panel<S, C>(w, p.H, std::min<int64_t>(to.width * L, p.H - column), to.width,
                       weights + column * p.H);
    }
  }
}

// The walks that thread `rank` takes part in, one after the other: its team's share of the groups
// and row parts.
template <class S, class C, bool leaky = false>
std::vector<Walk<S, C, leaky>> walks_of(const Problem& p, const Schedule& schedule,
                                        const Workspace& space, int32_t rank) {
  constexpr int64_t L = kLanes<C>;
  const int64_t vectors = (p.H + L - 1) / L;
  const int32_t columns = schedule.column_parts;
  const int32_t team = rank / columns;
  std::vector<Walk<S, C, leaky>> walks;
  if (team >= schedule.teams) return walks;
  for (int64_t unit = team; unit < p.G * schedule.row_parts; unit += schedule.teams) {
    const int64_t part = unit % schedule.row_parts;
    Slice slice;
    slice.group = unit / schedule.row_parts;
    slice.row_begin = part_begin(p.B, schedule.row_parts, part);
    slice.row_end = part_begin(p.B, schedule.row_parts, part + 1);
    slice.vector_begin = part_begin(vectors, columns, rank % columns);
    slice.vector_end = part_begin(vectors, columns, rank % columns + 1);
    walks.emplace_back(p, schedule, space, slice);
  }
  return walks;
}

template <class S, class C, bool leaky>
void walk_typed(const Problem& p, const Schedule& schedule, const Workspace& space, int32_t rank,
                int32_t size) {
  pack_share<S, C>(p, schedule, space, rank);
  space.everyone->wait(size);
  Barrier& barrier = space.teams[rank / schedule.column_parts];
  for (auto& walk : walks_of<S, C, leaky>(p, schedule, space, rank)) {
    walk.advance(p.T, p.out.data, nullptr, 0, barrier, schedule.column_parts);
  }
}

template <class S, class C>
void walk_stored_as(const Problem& p, const Schedule& schedule, const Workspace& space,
                    int32_t rank, int32_t size) {
  if (has_leak(p)) return walk_typed<S, C, true>(p, schedule, space, rank, size);
  walk_typed<S, C, false>(p, schedule, space, rank, size);
}

void walk(const Problem& p, const Schedule& schedule, const Workspace& space, int32_t rank,
          int32_t size) {
  switch (p.type) {
    case Type::float32:
      return walk_stored_as<float, float>(p, schedule, space, rank, size);
    case Type::float64:
      return walk_stored_as<double, double>(p, schedule, space, rank, size);
    case Type::bfloat16:
      return walk_stored_as<BFloat16, float>(p, schedule, space, rank, size);
    case Type::float16:
      return walk_stored_as<Float16, float>(p, schedule, space, rank, size);
  }
}
