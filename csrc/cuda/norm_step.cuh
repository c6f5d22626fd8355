// One step of an adjoint whose rows are clipped by their norms, in two launches. The norm of a row
// is known only when all its sums are, and all CTAs of a team make them. So the first launch makes
// sums alone, and in the second each row of the batch has a CTA of its own.
//
//   r[b, n] = sum over k of W[n, k] q_{t+1}[b, k]     sums_kernel: product as in recurrence.cuh
//   a = g + r                                          clip_kernel
//   q[b, n] = d * a * min(1, limit / |a|)
//   out[t, b, n] = q[b, n]                             and the row's words of the next carry
//
// Between the two r is in global memory, in the type of sums. Squares are added in doubles, which
// hold those of any float, in an order that H alone decides.
#pragma once

#include "activation.cuh"
#include "exchange_launches.cuh"

namespace fused_bptt {

// The sums of row b of a team, from unit 0 on.
template <class Sum>
FUSED_BPTT_DEVICE Sum* sums_of_row(const Team& team, int32_t b) {
  const Plan& plan = team.plan;
  std::byte* begin = static_cast<std::byte*>(team.args.workspace) +
                     memory_offset(plan, team.problem.H, team.problem.G);
  return reinterpret_cast<Sum*>(begin) +
         (static_cast<int64_t>(team.index) * plan.batch_tile + b) * memory_row(plan);
}

// The CTAs lie as those of step_kernel do.
template <class Product>
FUSED_BPTT_GLOBAL(kMostThreads)
sums_kernel(FUSED_BPTT_ARGS args) {
  using Sum = typename Product::Sum;
  const int32_t teams = static_cast<int32_t>(args.plan.teams);
  const Team team(args, block_index() % teams, block_index() / teams);
  const Product product(args, team);
  const int64_t i = args.step;
  const int32_t rows = team.multiplies(i) ? team.carried(team.rows(i - 1), team.rows(i)) : 0;
  if (rows == 0) return;
  Sum* parts = reinterpret_cast<Sum*>(shared_memory() + sums_offset(args.plan));
  const int32_t row = static_cast<int32_t>(sums_row(args.plan));
  const int32_t split_stride = static_cast<int32_t>(carry_rows(args.plan)) * row;
  ExchangeLaunches<Product, Team>(team).multiply(i, rows, product, parts, split_stride);
  sync_block();
#pragma unroll 1
  for (Cursor at(args.plan.threads, args.plan.units); at.row < rows; at.advance()) {
    const Sum* part = parts + at.row * row + at.column;
    Sum sum = part[0];
#pragma unroll 4
    for (int32_t split = 1; split < args.plan.k_splits; ++split) sum += part[split * split_stride];
    sums_of_row<Sum>(team, at.row)[team.first_unit + at.column] = sum;
  }
}

// Row b of a team.
template <class Ops>
class ClippedRow {
  using Storage = typename Ops::Storage;
  using Operand = typename Ops::Operand;
  using Sum = typename Ops::Sum;
  static constexpr int kPer = kPerWord<Operand>;
  // Words of a thread whose numbers are fetched together.
  static constexpr int kTogether = 4;
  // Steps that memory is asked for L2 lines in advance.
  static constexpr int64_t kFarAhead = 8;

 public:
  FUSED_BPTT_DEVICE ClippedRow(const Team& team, int32_t b)
      : team_(team), p_(team.problem), b_(b), sums_(sums_of_row<Sum>(team, b)), carry_(team) {}

  FUSED_BPTT_DEVICE void run(int64_t i) {
    multiplied_ = team_.multiplies(i) && b_ < team_.rows(i - 1);
    if (b_ < team_.rows(i)) {
      step(i);
    } else if (multiplied_ || (i == 0 && team_.steps == 0)) {
      store_last();
    }
  }

 private:
  FUSED_BPTT_DEVICE void step(int64_t i) {
    const int64_t t = team_.time(i);
    drive_ = p_.drive.data ? at(p_.drive, t) : nullptr;
    const Sum scale = scale_of_row();
    const Storage* factor = at(p_.factor, t);
    Storage* out = at(p_.out, t);
    // A row that is cut carries zero: an adjoint has no other replacement.
    const int64_t boundary = t + (team_.down ? 0 : 1);
    const bool cut =
        b_ < team_.rows(i + 1) && (team_.window_ends_at(boundary) || team_.cut_at(boundary, b_));
    constexpr int32_t kStride = kRowThreads * kPer;
    const int32_t H = static_cast<int32_t>(p_.H), columns = team_.sent_columns();
#pragma unroll 1
    for (int32_t from = thread_index() * kPer; from < columns; from += kTogether * kStride) {
      Sum a[kTogether][kPer], f[kTogether][kPer];
#pragma unroll
      for (int m = 0; m < kTogether; ++m) {
#pragma unroll
        for (int j = 0; j < kPer; ++j) {
          const int32_t n = from + m * kStride + j;
          if (n >= H) continue;
          a[m][j] = cotangent(n);
          f[m][j] = widen(factor[n]);
        }
        ask_for(t, from + m * kStride);
      }
#pragma unroll
      for (int m = 0; m < kTogether; ++m) {
        Packed<Operand> word{};
#pragma unroll
        for (int j = 0; j < kPer; ++j) {
          const int32_t n = from + m * kStride + j;
          if (n >= H) continue;
          out[n] = round_to<Storage>(times_slope<Sum>(p_.phi, f[m][j], a[m][j] * scale));
          if (!cut) word.value[j] = Ops::operand(widen(out[n]));
        }
        const int32_t n = from + m * kStride;
        if (n < columns) carry_.write(i + 1, b_, n, word.word);
      }
    }
  }

  // min(1, limit / |a|); of a NaN it is one.
  FUSED_BPTT_DEVICE Sum scale_of_row() const {
    double* parts = reinterpret_cast<double*>(shared_memory());
    double squares = 0;
#pragma unroll 4
    for (int32_t n = thread_index(); n < p_.H; n += kRowThreads) {
      const double a = cotangent(n);
      squares = multiply_add(a, a, squares);
    }
    parts[thread_index()] = squares;
#pragma unroll 1
    for (int32_t half = kRowThreads / 2; half > 0; half /= 2) {
      sync_block();
      if (thread_index() < half) parts[thread_index()] += parts[thread_index() + half];
    }
    sync_block();
    const double share = p_.clip.limit / sqrt_of(parts[0]);
    return static_cast<Sum>(share > 1 ? 1 : share);  // false for NaN, which passes
  }

  // What is left of a row when it has no further step: the cotangent of its initial state. What
  // that was cut off from has no share in it.
  FUSED_BPTT_DEVICE void store_last() const {
    const bool cut_off = multiplied_ && team_.down && team_.cut_at(0, b_);
#pragma unroll 1
    for (int32_t n = thread_index(); n < p_.H; n += kRowThreads) {
      of_state(p_.last)[n] = round_to<Storage>(cut_off ? Sum{0} : cotangent(n));
    }
  }

  // g + r of unit n. A row without a product begins with the cotangent of its last state.
  FUSED_BPTT_DEVICE Sum cotangent(int32_t n) const {
    const Sum sum = multiplied_       ? sums_[n]
                    : p_.initial.data ? Sum(widen(of_state(p_.initial)[n]))
                                      : Sum{0};
    return drive_ ? widen(drive_[n]) + sum : sum;
  }

  FUSED_BPTT_DEVICE void ask_for(int64_t t, int32_t n) const {
    const int64_t far = t + (team_.down ? -kFarAhead : kFarAhead);
    if (p_.batch_sizes || n >= p_.H || far < 0 || far >= team_.steps) return;
    if (drive_) ptx::prefetch_global_l2(at(p_.drive, far) + n);
    ptx::prefetch_global_l2(at(p_.factor, far) + n);
  }

  FUSED_BPTT_DEVICE Storage* at(const Sequence& s, int64_t t) const {
    const int64_t origin = p_.first_rows ? p_.first_rows[t] * s.row : t * s.step;
    return static_cast<Storage*>(s.data) + origin + (team_.first_row + b_) * s.row +
           team_.group * s.group;
  }
  FUSED_BPTT_DEVICE Storage* of_state(const State& s) const {
    return static_cast<Storage*>(s.data) + team_.group * s.group + (team_.first_row + b_) * s.row;
  }

  const Team& team_;
  const Problem& p_;
  const int32_t b_;
  const Sum* sums_;
  GlobalCarry<Ops> carry_;
  bool multiplied_ = false;
  const Storage* drive_ = nullptr;
};

// A CTA of kRowThreads for each row of every team's tile.
template <class Ops>
FUSED_BPTT_GLOBAL(kRowThreads)
clip_kernel(FUSED_BPTT_ARGS args) {
  const Team team(args, block_index() / args.plan.batch_tile, 0);
  const int32_t b = block_index() % args.plan.batch_tile;
  if (b < team.tile_rows) ClippedRow<Ops>(team, b).run(args.step);
}

}  // namespace fused_bptt
