// The walk of the primitives with a leak, written once for every exchange and every way to
// multiply. Which primitive and which phi it is are branches on numbers of the call, in kernels of
// their own: the others have no trace of them.
//
//   sum[b, n] = sum over k of W[n, k] operand[b, k]        product: as in recurrence.cuh
//   state, rate, operand'[b, n] = f(sum, memory[b, n])     epilogue: each word has a thread
//   memory'[b, n] = state, or keep * state in an adjoint   what the unit keeps for the next step
//   out[t, b, n] = state
//
// What W multiplies is the state (leaky_rate, outer), phi of it (leaky_voltage) or d times it
// (inner); the adjoint of outer has the shape of inner, and that of inner the shape of outer. So
// what is sent is apart from what is kept. What is kept stays with its unit, in the type of sums,
// with the thread that owns the word: a walk that goes on has it in registers for the first words
// of a thread; the rest is in global memory, where nobody else reads or writes it.
//
// Round 0 of a walk takes no step. It gives the rows of the first step their beginning, as each
// round does to the rows that begin at the next one. Round i takes step i - 1, and multiplies carry
// i: carry 0 is never made. No product is taken after the last step; nobody asks for one.
#pragma once

#include "recurrence.cuh"

namespace fused_bptt {

// What Team says of the steps of a walk, of its rounds.
struct LeakyTeam : Team {
  using Team::Team;

  FUSED_BPTT_DEVICE int64_t time(int64_t i) const { return Team::time(i - 1); }
  FUSED_BPTT_DEVICE int32_t rows(int64_t i) const { return Team::rows(i - 1); }
  FUSED_BPTT_DEVICE int32_t carried(int32_t before, int32_t rows) const {
    return carries_initial() ? rows : at_most(before, rows);
  }
  // Of no rows, where the first ones begin with zero.
  FUSED_BPTT_DEVICE bool multiplies(int64_t i) const { return i > 0 && i <= steps; }
};

template <class Product, template <class, class> class Exchange>
class LeakyWalk {
  using Ops = typename Product::Ops;
  using Storage = typename Product::Storage;
  using Operand = typename Product::Operand;
  using Sum = typename Product::Sum;
  static constexpr int kPer = kPerWord<Operand>;
  // Whether what a thread knows outlives the round.
  static constexpr bool kGoesOn =
      !std::is_same_v<Exchange<Product, LeakyTeam>, ExchangeLaunches<Product, LeakyTeam>>;
  // As in recurrence.cuh.
  static constexpr int kAhead = kGoesOn ? 2 : 0;
  static constexpr int kTogether = kGoesOn ? 2 / kPer : 4;
  // Steps that memory is asked for L2 lines in advance.
  static constexpr int64_t kFarAhead = 8;

 public:
  FUSED_BPTT_DEVICE LeakyWalk(const LeakyTeam& team, const Product& product)
      : team_(team),
        p_(team.problem),
        product_(product),
        exchange_(team),
        sums_(reinterpret_cast<Sum*>(shared_memory() + sums_offset(team.plan))),
        sums_row_(static_cast<int32_t>(sums_row(team.plan))),
        split_stride_(static_cast<int32_t>(carry_rows(team.plan)) * sums_row_) {}

  FUSED_BPTT_DEVICE void run() {
    if (team_.steps == 0) return;
    exchange_.begin();
    int32_t before = 0, rows = 0, next = team_.rows(1);
    for (int64_t i = 0;; ++i) {
      const int32_t after = team_.rows(i + 2);
      round(i, before, rows, next);
      if (!team_.multiplies(i + 1)) break;
      exchange_.publish(i + 1);
      before = rows, rows = next, next = after;
    }
    exchange_.end();
  }

  // Round i alone, of a walk that is launched for each of them.
  FUSED_BPTT_DEVICE void run_round(int64_t i) {
    if (i > team_.steps) return;  // others of a packed batch have more steps
    round(i, team_.rows(i - 1), team_.rows(i), team_.rows(i + 1));
  }

 private:
  // The numbers of a word, as they are stored; `factor` is the gain or d. And what its units keep.
  struct Word {
    Storage drive[kPer], keep[kPer], factor[kPer];
    Sum memory[kPer];
  };

  // Row b has a step in the round if b < rows, and a product if b < carried; it has a further step
  // if b < next, and that one a product if b < sent. `boundary` is the one between the two, and
  // `cut` says that the window cuts all rows there.
  struct Rows {
    int32_t rows, next, carried, sent;
    int64_t boundary;
    bool cut;
  };

  struct Made {
    Sum state, rate, operand;
  };

  FUSED_BPTT_DEVICE void round(int64_t i, int32_t before, int32_t rows, int32_t next) {
    const int32_t carried = team_.multiplies(i) ? team_.carried(before, rows) : 0;
    // Who counts carries waits for one of no rows too.
    if (kGoesOn ? team_.multiplies(i) : carried > 0) {
      exchange_.multiply(i, carried, product_, sums_, split_stride_);
    }
    sync_block();
    const int64_t boundary = team_.time(i) + (team_.down ? 0 : 1);
    finish(i, {rows, next, carried, team_.carried(rows, next), boundary,
               team_.window_ends_at(boundary)});
  }

  FUSED_BPTT_DEVICE void finish(int64_t i, const Rows& r) {
    const int32_t touched = at_least(r.rows, r.next);
    Cursor at(team_.plan.threads, team_.plan.units / kPer);
#pragma unroll
    for (int m = 0; m < kAhead; ++m) {
      if (at.row < touched) finish_word(i, at.row, unit_of(at), r, ahead_[m]);
      if (at.row < r.next) fetch(team_.time(i + 1), at.row, unit_of(at), ahead_[m]);
      at.advance();
    }
#pragma unroll 1
    while (at.row < touched) {
      Word words[kTogether];
      Cursor asked = at;
#pragma unroll
      for (int m = 0; m < kTogether; ++m) {
        if (asked.row < r.rows) {
          fetch(team_.time(i), asked.row, unit_of(asked), words[m]);
          recall(asked.row, unit_of(asked), words[m]);
        }
        asked.advance();
      }
#pragma unroll
      for (int m = 0; m < kTogether; ++m) {
        if (at.row < touched) finish_word(i, at.row, unit_of(at), r, words[m]);
        if (at.row < r.next) remember(at.row, unit_of(at), words[m]);
        at.advance();
      }
    }
  }

  // What the peers wait for is sent before the rest is stored.
  FUSED_BPTT_DEVICE void finish_word(int64_t i, int32_t b, int32_t n, const Rows& r, Word& word) {
    const bool steps = b < r.rows, goes_on = b < r.next;
    // Who begins at the next step begins with its initial state, and who is cut there with another
    // one. Where a walk down begins, nobody is cut.
    const bool masked = goes_on && (steps || !team_.down) && team_.cut_at(r.boundary, b);
    const bool anew = !steps || masked || r.cut;
    const State state = masked ? p_.cuts.replacement : steps ? State{} : p_.initial;
    Sum sum[kPer]{};
    if (b < r.carried) add_splits(team_, sums_, sums_row_, split_stride_, b, n, sum);
    Packed<Operand> sent{};
    Storage states[kPer], rates[kPer];
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      if (n + j >= p_.H) continue;
      Sum kept{}, operand{};
      if (steps) {
        const Made made = step_value(word, j, sum[j]);
        states[j] = round_to<Storage>(made.state), rates[j] = round_to<Storage>(made.rate);
        kept = p_.adjoint ? widen(word.keep[j]) * made.state : made.state;
        operand = made.operand;
      }
      if (goes_on && anew) {
        kept = widen(number_of<Product>(team_, state, b, n + j));
        operand = p_.primitive == Primitive::leaky_voltage ? activate(p_.phi, kept) : kept;
      }
      word.memory[j] = kept;
      sent.value[j] = Ops::operand(operand);
    }
    if (b < r.sent && n < team_.sent_columns()) exchange_.send(i + 1, b, n, sent.word);
    if (!steps) return;
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      if (n + j >= p_.H) continue;
      at(p_.out, team_.time(i), b, n)[j] = states[j];
      if (p_.rate.data) at(p_.rate, team_.time(i), b, n)[j] = rates[j];
    }
  }

  FUSED_BPTT_DEVICE Made step_value(const Word& word, int j, Sum sum) const {
    const Sum drive = widen(word.drive[j]), keep = widen(word.keep[j]);
    const Sum factor = widen(word.factor[j]), past = word.memory[j];
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

  FUSED_BPTT_DEVICE void fetch(int64_t t, int32_t b, int32_t n, Word& word) const {
    const Sequence& of_factor = p_.primitive == Primitive::leaky_rate ? p_.gain : p_.factor;
    const Storage* drive = at(p_.drive, t, b, n);
    const Storage* keep = at(p_.keep, t, b, n);
    const Storage* factor = of_factor.data ? at(of_factor, t, b, n) : nullptr;
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      if (n + j >= p_.H) continue;
      word.drive[j] = drive[j];
      word.keep[j] = keep[j];
      word.factor[j] = factor ? factor[j] : round_to<Storage>(Sum{0});
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

  FUSED_BPTT_DEVICE void recall(int32_t b, int32_t n, Word& word) const {
#pragma unroll
    for (int j = 0; j < kPer; ++j) word.memory[j] = memory(b, n)[j];
  }
  FUSED_BPTT_DEVICE void remember(int32_t b, int32_t n, const Word& word) const {
#pragma unroll
    for (int j = 0; j < kPer; ++j) memory(b, n)[j] = word.memory[j];
  }

  const LeakyTeam& team_;
  const Problem& p_;
  const Product& product_;
  Exchange<Product, LeakyTeam> exchange_;
  Sum* sums_;
  const int32_t sums_row_, split_stride_;
  Word ahead_[kGoesOn ? kAhead : 1];
};

template <class Product, template <class, class> class Exchange>
FUSED_BPTT_GLOBAL(kMostThreads)
leaky_kernel(FUSED_BPTT_ARGS args) {
  walk_teams<LeakyTeam, Product, LeakyWalk<Product, Exchange>>(args);
}

// One round of every team. The CTAs lie as those of step_kernel do.
template <class Product>
FUSED_BPTT_GLOBAL(kMostThreads)
leaky_round_kernel(FUSED_BPTT_ARGS args) {
  const int32_t teams = static_cast<int32_t>(args.plan.teams);
  const LeakyTeam team(args, block_index() % teams, block_index() / teams);
  const Product product(args, team);
  LeakyWalk<Product, ExchangeLaunches>(team, product).run_round(args.step);
}

}  // namespace fused_bptt
