// One step of the primitives with a leak, for a launch of each step. Which primitive and which phi
// it is are branches on numbers of the call, in a kernel of their own: the others have no trace of
// them.
//
//   sum[b, n] = sum over k of W[n, k] operand[b, k]        product: as in recurrence.cuh
//   state, rate, operand'[b, n] = f(sum, memory[b, n])     epilogue: each word has a thread
//   memory'[b, n] = state, or keep * state in an adjoint   what the unit keeps for the next step
//   out[t, b, n] = state
//
// What W multiplies is the state (leaky_rate, outer), phi of it (leaky_voltage) or d times it
// (inner); the adjoint of outer has the shape of inner, and that of inner the shape of outer. So
// what is sent is apart from what is kept. What is kept stays with its unit: in global memory, in
// the type of sums, read and written by the thread that owns the word, in every launch the same
// one.
//
// The first launch takes no step. It gives the rows of the first step their beginning, as each step
// does to the rows that begin at the next one: so step i multiplies carry i + 1. No product is
// taken after the last step; nobody asks for one.
#pragma once

#include "activation.cuh"
#include "global_carry.cuh"
#include "product_streamed.cuh"

namespace fused_bptt {

template <class Product>
class LeakyStep {
  using Ops = typename Product::Ops;
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  using Sum = typename Product::Sum;
  static constexpr int kPer = kPerWord<Operand>;
  // Words of a thread whose numbers are fetched together.
  static constexpr int kTogether = 4;
  // Steps that memory is asked for L2 lines in advance.
  static constexpr int64_t kFarAhead = 8;

 public:
  FUSED_BPTT_DEVICE LeakyStep(const Team& team, const Product& product)
      : team_(team),
        p_(team.problem),
        product_(product),
        carry_(team),
        sums_(reinterpret_cast<Sum*>(shared_memory() + sums_offset(team.plan))),
        sums_row_(static_cast<int32_t>(sums_row(team.plan))),
        split_stride_(static_cast<int32_t>(carry_rows(team.plan)) * sums_row_) {}

  // Step i; -1 is the launch that takes none.
  FUSED_BPTT_DEVICE void run(int64_t i) {
    if (i >= team_.steps) return;  // others of a packed batch have more steps
    const int32_t before = team_.rows(i - 1), rows = team_.rows(i), next = team_.rows(i + 1);
    const int32_t carried = multiplied(before, rows);
    if (carried > 0) multiply(i, carried);
    sync_block();
    const int64_t boundary = team_.time(i) + (team_.down ? 0 : 1);
    finish(i,
           {rows, next, carried, multiplied(rows, next), boundary, team_.window_ends_at(boundary)});
  }

 private:
  // The numbers of a word, as they are stored; `factor` is the gain or d.
  struct Fetched {
    Storage drive[kPer], keep[kPer], factor[kPer];
    Sum past[kPer];
  };

  // Row b has a step i if b < rows, and a product if b < carried; it has a further step if b <
  // next, and that one a product if b < sent. `boundary` is the one between the two, and `cut` says
  // that the window cuts all rows there.
  struct Rows {
    int32_t rows, next, carried, sent;
    int64_t boundary;
    bool cut;
  };

  struct Made {
    Sum state, rate, operand;
  };

  // Rows whose product a step takes, given those of the step before and its own.
  FUSED_BPTT_DEVICE int32_t multiplied(int32_t before, int32_t rows) const {
    return team_.carries_initial() ? rows : at_most(before, rows);
  }

  FUSED_BPTT_DEVICE void multiply(int64_t i, int32_t rows) {
    typename Product::Stream stream(product_);
    carry_.for_each_part(i + 1, rows, [&](int32_t first, int32_t end, const std::byte* part) {
      stream.multiply(part, rows, first, end);
    });
    stream.store(rows, split_stride_, sums_);
  }

  FUSED_BPTT_DEVICE void finish(int64_t i, const Rows& r) {
    const int32_t touched = at_least(r.rows, r.next);
    Cursor at(team_.plan.threads, team_.plan.units / kPer);
#pragma unroll 1
    while (at.row < touched) {
      Fetched fetched[kTogether];
      Cursor asked = at;
#pragma unroll
      for (int m = 0; m < kTogether; ++m) {
        if (asked.row < r.rows) fetch(team_.time(i), asked.row, unit_of(asked), fetched[m]);
        asked.advance();
      }
#pragma unroll
      for (int m = 0; m < kTogether; ++m) {
        if (at.row < touched) finish_word(i, at.row, unit_of(at), r, fetched[m]);
        at.advance();
      }
    }
  }

  FUSED_BPTT_DEVICE void finish_word(int64_t i, int32_t b, int32_t n, const Rows& r,
                                     const Fetched& fetched) {
    const bool steps = b < r.rows, goes_on = b < r.next;
    // Who begins at the next step begins with its initial state, and who is cut there with another
    // one. Where a walk down begins, nobody is cut.
    const bool masked = goes_on && (steps || !team_.down) && team_.cut_at(r.boundary, b);
    const bool anew = !steps || masked || r.cut;
    const State state = masked ? p_.cuts.replacement : steps ? State{} : p_.initial;
    Packed<Operand> word{};
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      if (n + j >= p_.H) continue;
      Sum kept{}, operand{};
      if (steps) {
        const Made made = step_value(fetched, j, b < r.carried ? sum_of(b, n + j) : Sum{0});
        at(p_.out, team_.time(i), b, n)[j] = round_to<Storage>(made.state);
        if (p_.rate.data) at(p_.rate, team_.time(i), b, n)[j] = round_to<Storage>(made.rate);
        kept = p_.adjoint ? widen(fetched.keep[j]) * made.state : made.state;
        operand = made.operand;
      }
      if (!goes_on) continue;
      if (anew) {
        kept = widen(number_of<Product>(team_, state, b, n + j));
        operand = p_.primitive == Primitive::leaky_voltage ? activate(p_.phi, kept) : kept;
      }
      memory(b, n)[j] = kept;
      word.value[j] = Ops::operand(operand);
    }
    if (b < r.sent && n < team_.sent_columns()) carry_.write(i + 2, b, n, word.word);
  }

  FUSED_BPTT_DEVICE Made step_value(const Fetched& fetched, int j, Sum sum) const {
    const Sum drive = widen(fetched.drive[j]), keep = widen(fetched.keep[j]);
    const Sum factor = widen(fetched.factor[j]), past = fetched.past[j];
    if (p_.primitive == Primitive::outer || p_.primitive == Primitive::inner) {
      // d multiplies the sum, or what the next sum is taken of.
      const bool of_sum = (p_.primitive == Primitive::outer) != p_.adjoint;
      const Sum kept = p_.adjoint ? past + drive : multiply_add(keep, past, drive);
      const Sum state = kept + (of_sum ? factor * sum : sum);
      return {state, Sum{0}, of_sum ? state : factor * state};
    }
    const bool voltage = p_.primitive == Primitive::leaky_voltage;
    const Sum z = voltage ? multiply_add(keep, past, drive + sum) : drive + sum;
    const Sum rate = activate(p_.phi, z);
    if (voltage) return {z, rate, rate};
    const Sum state = multiply_add(keep, past, factor * rate);
    return {state, rate, state};
  }

  // The parts of the splits, added in ascending order.
  FUSED_BPTT_DEVICE Sum sum_of(int32_t b, int32_t n) const {
    const Sum* part = sums_ + b * sums_row_ + (n - team_.first_unit);
    Sum sum = part[0];
#pragma unroll 1
    for (int32_t split = 1; split < team_.plan.k_splits; ++split) {
      sum += part[split * split_stride_];
    }
    return sum;
  }

  FUSED_BPTT_DEVICE void fetch(int64_t t, int32_t b, int32_t n, Fetched& fetched) const {
    const Sequence& of_factor = p_.primitive == Primitive::leaky_rate ? p_.gain : p_.factor;
    const Storage* drive = at(p_.drive, t, b, n);
    const Storage* keep = at(p_.keep, t, b, n);
    const Storage* factor = of_factor.data ? at(of_factor, t, b, n) : nullptr;
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      if (n + j >= p_.H) continue;
      fetched.drive[j] = drive[j];
      fetched.keep[j] = keep[j];
      fetched.factor[j] = factor ? factor[j] : round_to<Storage>(Sum{0});
      fetched.past[j] = memory(b, n)[j];
    }
    if (p_.batch_sizes || n >= p_.H) return;
    const int64_t far = t + (team_.down ? -kFarAhead : kFarAhead);
    if (far < 0 || far >= team_.steps) return;
    ptx::prefetch_global_l2(at(p_.drive, far, b, n));
    ptx::prefetch_global_l2(at(p_.keep, far, b, n));
    if (factor) ptx::prefetch_global_l2(at(of_factor, far, b, n));
  }

  FUSED_BPTT_DEVICE int32_t unit_of(const Cursor& at) const {
    return team_.first_unit + at.column * kPer;
  }

  FUSED_BPTT_DEVICE Storage* at(const Sequence& s, int64_t t, int32_t b, int32_t n) const {
    const int64_t origin = p_.first_rows ? p_.first_rows[t] * s.row : t * s.step;
    return static_cast<Storage*>(s.data) + origin + (team_.first_row + b) * s.row +
           team_.group * s.group + n;
  }

  FUSED_BPTT_DEVICE Sum* memory(int32_t b, int32_t n) const {
    const Plan& plan = team_.plan;
    std::byte* begin =
        static_cast<std::byte*>(team_.args.workspace) + memory_offset(plan, p_.H, p_.G);
    return reinterpret_cast<Sum*>(begin) +
           (static_cast<int64_t>(team_.index) * plan.batch_tile + b) * memory_row(plan) + n;
  }

  const Team& team_;
  const Problem& p_;
  const Product& product_;
  GlobalCarry<Product> carry_;
  Sum* sums_;
  const int32_t sums_row_, split_stride_;
};

// The CTAs lie as those of step_kernel do.
template <class Product>
FUSED_BPTT_GLOBAL(kMostThreads)
leaky_step_kernel(FUSED_BPTT_ARGS args) {
  const int32_t teams = static_cast<int32_t>(args.plan.teams);
  const Team team(args, block_index() % teams, block_index() / teams);
  const Product product(args, team);
  LeakyStep<Product>(team, product).run(args.step - 1);
}

}  // namespace fused_bptt
