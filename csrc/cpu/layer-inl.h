// A whole layer: the walk and the products over all steps, a chunk of steps at a time, so that what
// one makes is still in the cache when the other reads it. q of a chunk is kept nowhere else.
// Included inside the ISA's namespace, after products-inl.h and walk-inl.h.

// Rows [begin, end) of the sequence.
struct Rows {
  int64_t begin, end;
};

// The rows of one member among `stride` side by side; all rows, if stride is 1.
struct RowsOf {
  int64_t begin, end, stride;
  int64_t count() const { return (end - begin + stride - 1) / stride; }
};

// One of `of` parts of some work.
struct Part {
  int64_t index, of;
};

// The rows of the steps [i, i + count) of group g's walk, and the time of the earliest of them.
inline Rows rows_of_chunk(const Problem& p, int64_t g, int64_t i, int64_t count, int64_t* time) {
  const int64_t end = std::min(p.T, i + count);
  const int64_t from = walks_backwards(p, g) ? p.T - end : i;
  *time = from;
  return {first_row(p, from), first_row(p, from + end - i)};
}

template <class C, bool leaky>
class LayerShare {
 public:
  LayerShare(const Layer& layer, const LayerSchedule& schedule, const Workspace& space,
             int32_t rank, int32_t size)
      : layer_(layer), p_(layer.walk), s_(schedule), space_(space), rank_(rank), size_(size) {
    C* at = reinterpret_cast<C*>(space.products);
    input_weights_ = at;
    at += p_.G * (layer.backward ? p_.H * padded(layer.I) : layer.I * padded(p_.H));
    bias_ = at;
    at += p_.G * padded(p_.H);
    q_ = at;
    const int64_t kept = chunks_at_once(schedule.steps, p_.T) * p_.G * p_.out.group;
    if (layer.backward) at += kept;
    total_ = wants_total(layer) ? at : nullptr;
    if (total_) at += kept;
    zeros_ = at;
    at += padded(p_.H);
    panel_ = at + rank * kSumBlock * kSumVectors * L;
  }

  void forward() {
    pack_share<C, C>(p_, s_.walk, space_, rank_);
    pack_input_weights();
    pack_bias();
    std::vector<Walk<C, C, leaky>> walks = walks_of<C, C, leaky>(p_, s_.walk, space_, rank_);
    space_.everyone->wait(size_);
    for (int64_t i = 0; i == 0 || i < p_.T; i += s_.steps) {
      for (int64_t g = 0; g < p_.G; ++g) project(g, i);
      space_.everyone->wait(size_);
      for (Walk<C, C, leaky>& walk : walks) {
        walk.advance(s_.steps, p_.out.data, nullptr, 0, team(), columns());
      }
    }
  }

  void backward() {
    pack_share<C, C>(p_, s_.walk, space_, rank_);
    if (layer_.x_bar) {
      pack_input_weights();
      C* x_bar = static_cast<C*>(layer_.x_bar);
      const Rows sums = share_of({0, p_.G > 1 ? layer_.rows * layer_.I : 0});
      std::fill(x_bar + sums.begin, x_bar + sums.end, C{0});
    }
    if (rank_ == 0 && p_.cuts.mask) std::fill(zeros_, zeros_ + p_.H, C{0});
    std::vector<Walk<C, C, leaky>> walks = walks_of<C, C, leaky>(p_, s_.walk, space_, rank_);
    space_.everyone->wait(size_);
    for (int64_t i = 0; i == 0 || i < p_.T; i += s_.steps) {
      // The other one may still be read.
      const int64_t turn = (i / s_.steps & 1) * p_.G * p_.out.group;
      C* q = q_ + turn;
      C* total = total_ ? total_ + turn : nullptr;
      for (Walk<C, C, leaky>& walk : walks) {
        int64_t time;
        const Rows rows = rows_of_chunk(p_, walk.group(), i, s_.steps, &time);
        walk.advance(s_.steps, q, total, rows.begin, team(), columns());
      }
      space_.everyone->wait(size_);
      for (int64_t g = 0; g < p_.G; ++g) {
        gradients(g, i, q + g * p_.out.group);
        if (leaky)
          leak_gradients(g, i, q + g * p_.out.group, (total ? total : q) + g * p_.out.group);
      }
    }
  }

 private:
  static constexpr int64_t L = kLanes<C>;
  static int64_t padded(int64_t columns) { return (columns + L - 1) / L * L; }
  Barrier& team() const { return space_.teams[rank_ / columns()]; }
  int32_t columns() const { return s_.walk.column_parts; }

  // This thread's part of a range.
  Rows share_of(Rows all) const {
    const int64_t count = all.end - all.begin;
    return {all.begin + part_begin(count, size_, rank_),
            all.begin + part_begin(count, size_, rank_ + 1)};
  }

  // The panels of `columns` columns that are this thread's when G groups have as many.
  template <class F>
  void for_each_own_panel(int64_t columns, int widest, const F& f) const {
    const int64_t vectors = padded(columns) / L;
    const int64_t count = panel_count(vectors, widest);
    for (int64_t turn = rank_; turn < p_.G * count; turn += size_) {
      f(turn / count, panel_of(0, vectors, widest, turn % count));
    }
  }

  // u = x W_ih^T forward, x_bar = q W_ih backward.
  void pack_input_weights() const {
    const Weights& w = layer_.weight_ih;
    const bool back = layer_.backward;
    const int64_t K = back ? p_.H : layer_.I, columns = back ? layer_.I : p_.H;
    for_each_own_panel(columns, s_.input_panel, [&](int64_t g, const Panel& panel) {
      const int64_t column = panel.vector * L;
      const int64_t along_n = back ? w.column : w.row;
      const Source<C> source{static_cast<const C*>(w.data) + g * w.group + column * along_n,
                             back ? w.row : w.column, along_n};
      pack_panel<C, C>(source, K, std::min(panel.width * L, columns - column), panel.width,
                       input_weights_ + (g * padded(columns) + column) * K);
    });
  }

  void pack_bias() const {
    if (!layer_.bias_ih) return;
    const C* ih = static_cast<const C*>(layer_.bias_ih);
    const C* hh = static_cast<const C*>(layer_.bias_hh);
    for_each_own_panel(p_.H, 1, [&](int64_t g, const Panel& panel) {
      const int64_t column = panel.vector * L;
      const int n = static_cast<int>(std::min(L, p_.H - column));
      const int64_t at = g * p_.H + column;
      const Vec<C> other = hh ? load<C, C>(hh + at, n) : Vec<C>{};
      store_aligned(bias_ + g * padded(p_.H) + column, load<C, C>(ih + at, n) + other);
    });
  }

  // This thread's share of the rows of chunk i: u = W_ih x + b_ih + b_hh.
  void project(int64_t g, int64_t i) const {
    int64_t time;
    const Rows rows = rows_of_chunk(p_, g, i, s_.steps, &time);
    Result<C> u{static_cast<C*>(p_.out.data) + g * p_.out.group, p_.out.row,
                layer_.bias_ih ? bias_ + g * padded(p_.H) : nullptr, false};
    if (leaky && layer_.noise.data) {
      u.noise = static_cast<const C*>(layer_.noise.data) + g * layer_.noise.group;
      u.noise_row = layer_.noise.row;
      const C* scale = static_cast<const C*>(layer_.noise_scale);
      u.noise_scale = scale ? scale + g * p_.H : nullptr;
    }
    if (leaky && layer_.draws) {
      const Rows own = share_of(rows);
      const C* scale = static_cast<const C*>(layer_.noise_scale);
      for (int64_t r = own.begin; r < own.end; ++r) {
        normal_row<C>(layer_.seed, r, g, p_.H, scale ? scale + g * p_.H : nullptr,
                      u.data + r * u.row);
      }
      u.accumulate = true;
    }
    multiply_rows(static_cast<const C*>(layer_.x), layer_.I, 0, rows, layer_.I, g, p_.H, u);
  }

  // c[r, :] = a[r - first, :] times the input weights of group g, for this thread's share of rows.
  void multiply_rows(const C* a, int64_t row, int64_t first, Rows rows, int64_t K, int64_t g,
                     int64_t columns, const Result<C>& c) const {
    const Rows own = share_of(rows);
    const int64_t vectors = padded(columns) / L;
    for (int64_t index = 0; index < panel_count(vectors, s_.input_panel); ++index) {
      const Panel panel = panel_of(0, vectors, s_.input_panel, index);
      multiply_panel(a - first * row, row, 1, own.begin, own.end,
                     input_weights_ + (g * padded(columns) + panel.vector * L) * K, K, K, panel,
                     columns, c);
    }
  }

  // This thread's share of what q of chunk i adds to the gradients.
  void gradients(int64_t g, int64_t i, const C* q) const {
    int64_t time;
    const Rows rows = rows_of_chunk(p_, g, i, s_.steps, &time);
    if (layer_.x_bar) {
      // A row's gradient is the sum over the groups, which may be at the same rows: they take
      // turns.
      const Result<C> x_bar{static_cast<C*>(layer_.x_bar), layer_.I, nullptr, p_.G > 1};
      multiply_rows(q, p_.out.row, rows.begin, rows, p_.H, g, layer_.I, x_bar);
      if (g + 1 < p_.G) space_.everyone->wait(size_);
    }
    // Threads share the members, or, where there are too few, what is summed for each.
    const int64_t members = sums_of(layer_);
    const bool by_members = members >= size_;
    const Rows own = by_members ? share_of({0, members}) : Rows{0, members};
    const Part part = by_members ? Part{0, 1} : Part{rank_, size_};
    for (int64_t member = own.begin; member < own.end; ++member) {
      sums(g, i, time, q + member * p_.out.row, {rows.begin + member, rows.end, members},
           member * p_.G + g, part);
    }
  }

  // What the rows add to their sums, which are those number `at`.
  void sums(int64_t g, int64_t i, int64_t time, const C* q, const RowsOf& rows, int64_t at,
            const Part& part) const {
    const bool accumulate = layer_.accumulate || i > 0;
    if (layer_.weight_hh_bar) {
      const auto previous = [&](int64_t r, int64_t count, const C** states) {
        find_previous(layer_.sent, g, time, r, rows.stride, count, states);
      };
      sum_of_products(q, rows, p_.H, s_.hidden_gradient, part, accumulate,
                      static_cast<C*>(layer_.weight_hh_bar) + at * p_.H * p_.H, previous);
    }
    if (layer_.weight_ih_bar) {
      const C* x = static_cast<const C*>(layer_.x);
      const auto inputs = [&](int64_t r, int64_t count, const C** xs) {
        for (int64_t k = 0; k < count; ++k) xs[k] = x + (r + k * rows.stride) * layer_.I;
      };
      sum_of_products(q, rows, layer_.I, s_.input_gradient, part, accumulate,
                      static_cast<C*>(layer_.weight_ih_bar) + at * p_.H * layer_.I, inputs);
    }
    if (layer_.bias_bar) {
      sum_of_rows(q, rows.count(), rows.stride * p_.out.row, part, accumulate,
                  static_cast<C*>(layer_.bias_bar) + at * p_.H);
    }
  }

  // Where the states lie that the steps of `count` rows from r on, `stride` apart, began with;
  // `time` is a step at or before that of r.
  void find_previous(const Carried& carried, int64_t g, int64_t time, int64_t r, int64_t stride,
                     int64_t count, const C** states) const {
    const Sequence& s = carried.sequence;
    const C* h = static_cast<const C*>(s.data) + g * s.group;
    const C* h0 = static_cast<const C*>(carried.initial.data) + g * carried.initial.group;
    const C* reset = static_cast<const C*>(carried.replacement.data);
    if (reset) reset += g * carried.replacement.group;
    const bool backwards = !walks_backwards(p_, g);  // of the recurrence; p_ is its adjoint
    int64_t t = time;
    for (int64_t k = 0; k < count; ++k, r += stride) {
      while (t + 1 < p_.T && r >= first_row(p_, t + 1)) ++t;
      const int64_t b = r - first_row(p_, t);
      const int64_t from = backwards ? t + 1 : t - 1;
      const bool inside = from >= 0 && from < p_.T && b < rows_at(p_, from);
      states[k] = inside ? h + (first_row(p_, from) + b) * s.row : h0 + b * carried.initial.row;
      if (p_.cuts.mask && (inside || !backwards) && cut_at(p_, g, backwards ? from : t, b)) {
        states[k] = reset ? reset + b * carried.replacement.row : zeros_;
      }
    }
  }

  // This thread's share of what chunk i adds to the gradients of k, a and s; y is `total`.
  void leak_gradients(int64_t g, int64_t i, const C* q, const C* total) const {
    int64_t time;
    const Rows rows = rows_of_chunk(p_, g, i, s_.steps, &time);
    const auto sum = [&](void* bar, const C* y, const auto& find) {
      if (bar) sum_of_rows(y, rows, i > 0, static_cast<C*>(bar) + g * p_.H, find);
    };
    const auto in = [&](const Sequence& s) {
      return [&, from = static_cast<const C*>(s.data) + g * s.group](int64_t r, int64_t count,
                                                                     const C** found) {
        for (int64_t k = 0; k < count; ++k) found[k] = from + (r + k) * s.row;
      };
    };
    sum(layer_.keep_bar, total, [&](int64_t r, int64_t count, const C** found) {
      find_previous(layer_.state, g, time, r, 1, count, found);
    });
    sum(layer_.gain_bar, total, in(p_.factor));
    sum(layer_.noise_scale_bar, q, in(layer_.noise));
  }

  // c (+)= sum over the rows r of q_r y_r^T. `find(r, count, y)` says where the rows y_r, of
  // `columns` each, are.
  template <class F>
  void sum_of_products(const C* q, const RowsOf& rows, int64_t columns, int widest,
                       const Part& part, bool accumulate, C* c, const F& find) const {
    if (columns == 0) return;
    const int64_t panels = panel_count(padded(columns) / L, widest);
    // Threads share the columns, or, where there are too few, the hidden units.
    const bool by_columns = panels >= part.of;
    const auto own = [&](int64_t total, bool shared) -> Rows {
      if (!shared) return {0, total};
      return {part_begin(total, part.of, part.index), part_begin(total, part.of, part.index + 1)};
    };
    const Rows units = own(p_.H, !by_columns);
    const auto [begin, end] = own(panels, by_columns);
    const int64_t step = std::max<int64_t>(1, kSumVectors / widest);
    for (int64_t first = begin; first < end; first += step) {
      sum_to_panels(q, rows, columns, widest, {first, std::min(end, first + step)}, units,
                    accumulate, c, find);
    }
  }

  template <class F>
  void sum_to_panels(const C* q, const RowsOf& rows, int64_t columns, int widest, Rows panels,
                     Rows units, bool accumulate, C* c, const F& find) const {
    const int64_t vectors = padded(columns) / L;
    const int64_t q_row = rows.stride * p_.out.row;
    int64_t done = 0;
    do {
      const int64_t K = std::min(kSumBlock, rows.count() - done);
      const C* y[kSumBlock];
      find(rows.begin + done * rows.stride, K, y);
      C* to = panel_;
      for (int64_t index = panels.begin; index < panels.end; ++index) {
        const Panel panel = panel_of(0, vectors, widest, index);
        pack_rows(y, K, panel, columns, to);
        to += K * panel.width * L;
      }
      const Result<C> result{c, columns, nullptr, accumulate || done > 0};
      const C* a = q + done * q_row;
      // All these columns of a block of rows before the next block: c is gone through once.
      for_each_block(widest, units.begin, units.end, [&](int64_t unit, int count) {
        const C* from = panel_;
        for (int64_t index = panels.begin; index < panels.end; ++index) {
          const Panel panel = panel_of(0, vectors, widest, index);
          multiply_panel(a, 1, q_row, unit, unit + count, from, K, kSumChain, panel, columns,
                         result);
          from += K * panel.width * L;
        }
      });
      done += K;
    } while (done < rows.count());
  }

  static void pack_rows(const C* const* rows, int64_t count, const Panel& panel, int64_t columns,
                        C* to) {
    for (int64_t k = 0; k < count; ++k) {
      int64_t column = panel.vector * L;
      for (int j = 0; j < panel.width; ++j, column += L, to += L) {
        const int n = static_cast<int>(std::min(L, columns - column));
        store_aligned(to, load<C, C>(rows[k] + column, n));
      }
    }
  }

  // c (+)= sum over the rows r of q_r * y_r, this thread's vectors of it; `find` as above.
  template <class F>
  void sum_of_rows(const C* q, Rows rows, bool accumulate, C* c, const F& find) const {
    const int64_t vectors = padded(p_.H) / L;
    const int64_t begin = part_begin(vectors, size_, rank_);
    const int64_t end = part_begin(vectors, size_, rank_ + 1);
    int64_t r = rows.begin;
    do {
      const int64_t K = std::min(kSumChain, rows.end - r);
      const C* y[kSumChain];
      find(r, K, y);
      const C* a = q + (r - rows.begin) * p_.out.row;
      for (int64_t v = begin; v < end; ++v) {
        const int n = static_cast<int>(std::min(L, p_.H - v * L));
        Vec<C> sum[4] = {};
        for (int64_t k = 0; k < K; ++k) {
          sum[k & 3] = fma(load<C, C>(a + k * p_.out.row + v * L, n), load<C, C>(y[k] + v * L, n),
                           sum[k & 3]);
        }
        Vec<C> total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
        if (accumulate || r > rows.begin) total += load<C, C>(c + v * L, n);
        store<C, C>(c + v * L, n, total);
      }
      r += K;
    } while (r < rows.end);
  }

  // c (+)= sum of `count` rows of q, `row` apart, this part's vectors of it.
  void sum_of_rows(const C* q, int64_t count, int64_t row, const Part& part, bool accumulate,
                   C* c) const {
    const int64_t vectors = padded(p_.H) / L;
    const int64_t end = part_begin(vectors, part.of, part.index + 1);
    for (int64_t v = part_begin(vectors, part.of, part.index); v < end; ++v) {
      const int n = static_cast<int>(std::min(L, p_.H - v * L));
      Vec<C> total{};
      for (int64_t first = 0; first < count; first += kSumChain) {
        Vec<C> sum[4] = {};
        const int64_t last = std::min(count, first + kSumChain);
        for (int64_t r = first; r < last; ++r) {
          sum[r & 3] += load<C, C>(q + r * row + v * L, n);
        }
        total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
      }
      if (accumulate) total += load<C, C>(c + v * L, n);
      store<C, C>(c + v * L, n, total);
    }
  }

  const Layer& layer_;
  const Problem& p_;
  const LayerSchedule& s_;
  const Workspace& space_;
  const int32_t rank_, size_;
  C* input_weights_;
  C* bias_;
  C* q_;      // of two chunks, or of the only one, with the strides of walk.out
  C* total_;  // y of them, where it is wanted beside q
  C* zeros_;  // a state
  C* panel_;
};

template <class C, bool leaky>
void layer_typed(const Layer& layer, const LayerSchedule& schedule, const Workspace& space,
                 int32_t rank, int32_t size) {
  LayerShare<C, leaky> share(layer, schedule, space, rank, size);
  if (layer.backward) return share.backward();
  share.forward();
}

void layer(const Layer& layer, const LayerSchedule& schedule, const Workspace& space, int32_t rank,
           int32_t size) {
  const bool leaky = has_leak(layer.walk), wide = layer.walk.type == Type::float64;
  const auto typed = leaky ? (wide ? &layer_typed<double, true> : &layer_typed<float, true>)
                           : (wide ? &layer_typed<double, false> : &layer_typed<float, false>);
  typed(layer, schedule, space, rank, size);
}

template <class C>
constexpr Machine machine() {
  Machine m{};
  m.lanes = kLanes<C>;
  for (int i = 0; i < 9; ++i) m.rows[i] = kTileRows[i];
  return m;
}
