// The time loop of both primitives, written once for every exchange and every way to multiply.
//
// Step i of a walk is, for the batch rows b of this CTA's team and the units n of this CTA,
//
//   sum[b, n] = sum over k of W[n, k] carry[b, k]       product: warps share units and k
//   x = drive + sum                                      epilogue: each word of units has a thread
//   carry'[b, n] = phi(x)  or  d * x
//   out[t, b, n] = carry'[b, n]                          and its slice of the next carry is sent
//
// Where the walk is cut ahead, another state is sent than the one that is stored.
// The threads of a CTA meet twice in a step: between the product and the epilogue, and after it.
#pragma once

#include "activation.cuh"
#include "exchange_cta.cuh"
#include "exchange_grid.cuh"
#include "exchange_launches.cuh"
#if defined(FUSED_BPTT_EMULATION) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#include "exchange_cluster.cuh"
#endif

namespace fused_bptt {

// The parts of the splits for the word of unit n, always added in the same order. Some of them are
// read together.
template <class Sum, int kPer>
FUSED_BPTT_DEVICE void add_splits(const Team& team, const Sum* sums, const int32_t& row,
                                  const int32_t& stride, int32_t b, int32_t n, Sum (&sum)[kPer]) {
  constexpr int kTogether = 4;
  const int32_t splits = team.plan.k_splits;
  const Sum* part = sums + b * row + (n - team.first_unit);
#pragma unroll
  for (int j = 0; j < kPer; ++j) sum[j] = part[j];
#pragma unroll 1
  for (int32_t split = 1; split < splits; split += kTogether) {
    Sum parts[kTogether][kPer];
#pragma unroll
    for (int s = 0; s < kTogether; ++s) {
      part += stride;
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        if (split + s < splits) parts[s][j] = part[j];
      }
    }
#pragma unroll
    for (int s = 0; s < kTogether; ++s) {
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        if (split + s < splits) sum[j] += parts[s][j];
      }
    }
  }
}

// `clips`: p.clip, by values.
template <class Product, template <class, class> class Exchange, Primitive primitive,
          bool clips = false>
class Walk {
  using Ops = typename Product::Ops;
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  using Sum = typename Product::Sum;
  static constexpr int kPer = kPerWord<Operand>;
  // Whether what a thread knows outlives the step.
  static constexpr bool kGoesOn =
      !std::is_same_v<Exchange<Product, Team>, ExchangeLaunches<Product, Team>>;
  // Words of a thread whose drive and factor are fetched while the step before is computed. What a
  // larger tile has beyond them is fetched when it is needed, so many words together as there are
  // registers for beside W.
  static constexpr int kAhead = 2;
  static constexpr int kTogether = kGoesOn ? 2 / kPer : 4;
  // Steps that memory is asked for L2 lines in advance.
  static constexpr int64_t kFarAhead = 8;

 public:
  FUSED_BPTT_DEVICE Walk(const Team& team, const Product& product)
      : team_(team),
        p_(team.problem),
        product_(product),
        exchange_(team),
        sums_(reinterpret_cast<Sum*>(shared_memory() + sums_offset(team.plan))),
        sums_row_(static_cast<int32_t>(sums_row(team.plan))),
        split_stride_(static_cast<int32_t>(carry_rows(team.plan)) * sums_row_),
        words_of_row_(team.plan.units / kPer) {}

  FUSED_BPTT_DEVICE void run() {
    if (team_.steps == 0) {
      store_initials();
      return;
    }
    exchange_.begin();
    int32_t before = 0, rows = team_.rows(0), next = team_.rows(1);
    fetch(0, rows);
    for (int64_t i = 0;; ++i) {
      const int32_t after = team_.rows(i + 2);
      const int32_t carried = team_.multiplies(i) ? team_.carried(before, rows) : 0;
      if (carried > 0) exchange_.multiply(i, carried, product_, sums_, split_stride_);
      sync_block();
      const int32_t sent = team_.multiplies(i + 1) ? team_.carried(rows, next) : 0;
      step(i, {rows, next, carried, sent, team_.window_ends_at(boundary_ahead(i))});
      if (!team_.multiplies(i + 1)) break;
      exchange_.publish(i + 1);
      before = rows, rows = next, next = after;
    }
    exchange_.end();
  }

  // Step i alone, of a walk that is launched for each of its steps.
  FUSED_BPTT_DEVICE void run_step(int64_t i) {
    if (team_.steps == 0) {
      if (i == 0) store_initials();
      return;
    }
    if (i > 0 && !team_.multiplies(i)) return;  // others of a packed batch have more steps
    const int32_t before = team_.rows(i - 1), rows = team_.rows(i), next = team_.rows(i + 1);
    fetch(i, rows);
    const int32_t carried = team_.multiplies(i) ? team_.carried(before, rows) : 0;
    if (carried > 0) exchange_.multiply(i, carried, product_, sums_, split_stride_);
    sync_block();
    const int32_t sent = team_.multiplies(i + 1) ? team_.carried(rows, next) : 0;
    step(i, {rows, next, carried, sent, team_.window_ends_at(boundary_ahead(i))});
  }

 private:
  // The numbers of a word, as they are stored.
  struct Fetched {
    Storage drive[kPer];
    Storage factor[kPer];
  };

  // How far each row of the tile has come at step i: row b has a step if b < rows, and a product if
  // b < carried; carry i + 1 is sent of the rows below `sent`; rows at `next` and above have no
  // further step. `cut` says that all of them begin anew there.
  struct Rows {
    int32_t rows, next, carried, sent;
    bool cut;
  };

  // This thread's words of a tile, one after another.
  FUSED_BPTT_DEVICE Cursor words() const { return Cursor(team_.plan.threads, words_of_row_); }
  FUSED_BPTT_DEVICE int32_t unit_of(const Cursor& at) const {
    return team_.first_unit + at.column * kPer;
  }

  // The boundary between the steps i and i + 1.
  FUSED_BPTT_DEVICE int64_t boundary_ahead(int64_t i) const {
    return team_.time(i) + (team_.down ? 0 : 1);
  }

  FUSED_BPTT_DEVICE void fetch(int64_t i, int32_t rows) {
    Cursor at = words();
#pragma unroll
    for (int m = 0; m < kAhead; ++m) {
      if (at.row < rows) fetch_word(team_.time(i), at.row, unit_of(at), ahead_[m]);
      at.advance();
    }
  }

  FUSED_BPTT_DEVICE void step(int64_t i, const Rows& r) {
    const int64_t t = team_.time(i);
    const int32_t touched = at_least(at_least(r.rows, r.carried), at_least(r.sent, r.next));
    Cursor at = words();
#pragma unroll
    for (int m = 0; m < kAhead; ++m) {
      if (at.row < touched) finish_word(i, t, at.row, unit_of(at), r, ahead_[m]);
      if (kGoesOn && at.row < r.next) {
        fetch_word(team_.time(i + 1), at.row, unit_of(at), ahead_[m]);
      }
      at.advance();
    }
#pragma unroll 1
    while (at.row < touched) {
      Fetched fetched[kTogether];
      Cursor asked = at;
#pragma unroll
      for (int m = 0; m < kTogether; ++m) {
        if (asked.row < r.rows) fetch_word(t, asked.row, unit_of(asked), fetched[m]);
        asked.advance();
      }
#pragma unroll
      for (int m = 0; m < kTogether; ++m) {
        if (at.row < touched) finish_word(i, t, at.row, unit_of(at), r, fetched[m]);
        at.advance();
      }
    }
  }

  // The sums of a word's units become its next state, which the peers wait for: it is sent before
  // it is stored.
  FUSED_BPTT_DEVICE void finish_word(int64_t i, int64_t t, int32_t b, int32_t n, const Rows& r,
                                     const Fetched& fetched) {
    const bool steps = b < r.rows, multiplied = b < r.carried;
    Sum sum[kPer];
    if (multiplied) {
      add_splits(team_, sums_, sums_row_, split_stride_, b, n, sum);
    } else {
      // A row at its first step has no product; in the adjoint, the cotangent of its last state.
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        sum[j] = p_.initial.data && n + j < p_.H ? Sum(widen(initial(b, n)[j])) : Sum{0};
      }
    }
    Packed<Operand> word{};
    Storage value[kPer];
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      // A row that begins at the next step carries its initial state; one that has ended, nothing.
      value[j] = round_to<Storage>(steps ? step_value(fetched, j, sum[j]) : sum[j]);
      if (n + j < p_.H) word.value[j] = Ops::operand(widen(value[j]));
    }
    if (steps && b < r.next) {
      const bool masked = team_.cut_at(boundary_ahead(i), b);
      if (masked || r.cut) begin_anew(b, n, masked ? p_.cuts.replacement : State{}, word);
    }
    if (b < r.sent && n < team_.sent_columns()) exchange_.send(i + 1, b, n, word.word);
    // What h_0 was cut off from has no share in its cotangent.
    const bool ends = p_.adjoint ? !steps && multiplied : steps && b >= r.next;
    const bool cut_off = p_.adjoint && ends && team_.down && team_.cut_at(0, b);
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      if (n + j >= p_.H) continue;
      if (steps) at(p_.out, t, b, n)[j] = value[j];
      if (ends) last(b, n)[j] = cut_off ? round_to<Storage>(Sum{0}) : value[j];
    }
  }

  // The word of the next carry of a row that is cut.
  FUSED_BPTT_DEVICE void begin_anew(int32_t b, int32_t n, const State& state,
                                    Packed<Operand>& word) const {
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      if (n + j < p_.H) {
        word.value[j] = Ops::operand(widen(number_of<Product>(team_, state, b, n + j)));
      }
    }
  }

  FUSED_BPTT_DEVICE Sum step_value(const Fetched& fetched, int j, Sum sum) const {
    const Sum x = p_.drive.data ? widen(fetched.drive[j]) + sum : sum;
    if constexpr (primitive == Primitive::recurrence) {
      return activate(p_.phi, x);
    } else if constexpr (clips) {
      const Sum most = static_cast<Sum>(p_.clip.limit);
      const Sum held = x > most ? most : x < -most ? -most : x;  // NaN passes
      return times_slope<Sum>(p_.phi, widen(fetched.factor[j]), held);
    } else {
      return times_slope<Sum>(p_.phi, widen(fetched.factor[j]), x);
    }
  }

  // Of a walk without steps.
  FUSED_BPTT_DEVICE void store_initials() const {
#pragma unroll 1
    for (Cursor at = words(); at.row < team_.tile_rows; at.advance()) {
      const int32_t n = unit_of(at);
      for (int j = 0; j < kPer && n + j < p_.H; ++j) {
        last(at.row, n)[j] = p_.initial.data ? initial(at.row, n)[j] : round_to<Storage>(Sum{0});
      }
    }
  }

  FUSED_BPTT_DEVICE void fetch_word(int64_t t, int32_t b, int32_t n, Fetched& fetched) const {
    const Storage* drive = p_.drive.data ? at(p_.drive, t, b, n) : nullptr;
    const Storage* factor = primitive == Primitive::linear ? at(p_.factor, t, b, n) : nullptr;
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      if (n + j >= p_.H) continue;
      if (drive) fetched.drive[j] = drive[j];
      if (factor) fetched.factor[j] = factor[j];
    }
    if (p_.batch_sizes || n >= p_.H) return;
    const int64_t far = t + (team_.down ? -kFarAhead : kFarAhead);
    if (far < 0 || far >= team_.steps) return;
    if (drive) ptx::prefetch_global_l2(at(p_.drive, far, b, n));
    if (factor) ptx::prefetch_global_l2(at(p_.factor, far, b, n));
  }

  FUSED_BPTT_DEVICE Storage* at(const Sequence& s, int64_t t, int32_t b, int32_t n) const {
    const int64_t origin = p_.first_rows ? p_.first_rows[t] * s.row : t * s.step;
    return static_cast<Storage*>(s.data) + origin + (team_.first_row + b) * s.row +
           team_.group * s.group + n;
  }
  FUSED_BPTT_DEVICE Storage* of_state(const State& s, int32_t b, int32_t n) const {
    return static_cast<Storage*>(s.data) + team_.group * s.group + (team_.first_row + b) * s.row +
           n;
  }
  FUSED_BPTT_DEVICE Storage* last(int32_t b, int32_t n) const { return of_state(p_.last, b, n); }
  FUSED_BPTT_DEVICE const Storage* initial(int32_t b, int32_t n) const {
    return of_state(p_.initial, b, n);
  }

  const Team& team_;
  const Problem& p_;
  const Product& product_;
  Exchange<Product, Team> exchange_;
  Sum* sums_;
  const int32_t sums_row_, split_stride_;
  const int32_t words_of_row_;
  Fetched ahead_[kAhead];
};

// A CTA walks one team; with the grid exchange several, one after another.
template <class Team, class Product, class Walk>
FUSED_BPTT_DEVICE void walk_teams(const KernelArgs& args) {
  const int32_t ctas = args.plan.ctas;
  const int32_t teams = static_cast<int32_t>(args.plan.teams);
  const int32_t rank = block_index() % ctas;
  Product product(args);
  int32_t loaded = -1;
  for (int32_t index = block_index() / ctas; index < teams; index += grid_blocks() / ctas) {
    const Team team(args, index, rank);
    sync_block();  // nobody is in the team before any more
    if (team.group != loaded) product.load(args, team.group, rank);
    loaded = team.group;
    sync_block();
    Walk(team, product).run();
  }
}

template <class Product, template <class, class> class Exchange, Primitive primitive>
FUSED_BPTT_GLOBAL(kMostThreads)
recurrence_kernel(FUSED_BPTT_ARGS args) {
  walk_teams<Team, Product, Walk<Product, Exchange, primitive>>(args);
}

// One step of every team. The CTAs of all teams that read the same part of W follow one another, so
// that it comes from memory once.
template <class Product, Primitive primitive, bool clips = false>
FUSED_BPTT_GLOBAL(kMostThreads)
step_kernel(FUSED_BPTT_ARGS args) {
  const int32_t teams = static_cast<int32_t>(args.plan.teams);
  const Team team(args, block_index() % teams, block_index() / teams);
  const Product product(args, team);
  Walk<Product, ExchangeLaunches, primitive, clips>(team, product).run_step(args.step);
}

// Before the walk: puts W in the order in which its threads read it, on pack_blocks()
// CTAs. (Each CTA reading its own part of W as it lies measured as half of the kernel's code, and
// made the teams of one group read the same W in the same scattered way.)
template <class Product>
FUSED_BPTT_GLOBAL(kMostThreads)
pack_kernel(FUSED_BPTT_ARGS args) {
  const int32_t tiles = args.plan.row_tiles;
  const int32_t of_k = static_cast<int32_t>(fragments_of_k(args.plan, args.problem.H));
  const int32_t fragment = block_index() / tiles;
  const int32_t cta = fragment / of_k;
  Product(args).pack(args, cta / args.plan.ctas, cta % args.plan.ctas, fragment % of_k,
                     block_index() % tiles);
}

}  // namespace fused_bptt
