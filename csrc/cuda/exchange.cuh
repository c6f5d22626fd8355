// What every exchange policy does, and what is common to them.
//
// An exchange policy says how the slices that the CTAs of a team compute become the carry that all
// of them multiply. For step i of a walk the time loop calls, in every thread of the CTA,
//
//   begin(product)            once, before the first step: row r's initial state becomes carry 0
//   multiply(i, rows, ...)    waits for carry i, and has the product made of it
//   send(i, b, n, word)       a word of carry i that this thread computed, n < sent_columns()
//   publish(i)                after the thread's last word of carry i
//
// Between multiply(i) and the first send(i + 1), and in publish(i), the threads of the CTA meet.
#pragma once

#include "team.cuh"

namespace fused_bptt {

// A word is what is sent at once: 4 bytes (two numbers of 16 bits), or a double.
template <class Operand>
using WordOf = std::conditional_t<sizeof(Operand) == 8, uint64_t, uint32_t>;
template <class Operand>
constexpr int kPerWord = sizeof(WordOf<Operand>) / sizeof(Operand);

// The numbers of a word.
template <class Operand>
union Packed {
  WordOf<Operand> word;
  Operand value[kPerWord<Operand>];
};

// Initial states of `rows` rows, columns [from, to), into a carry in shared memory; zero from H on.
template <class Product>
FUSED_BPTT_DEVICE void carry_initial(const Team& team, int32_t rows, int64_t from, int64_t to,
                                     std::byte* carry) {
  using Operand = typename Product::Operand;
  const Problem& p = team.problem;
  const typename Product::Storage* initial =
      static_cast<const typename Product::Storage*>(p.initial.data) + team.group * p.initial.group +
      team.first_row * p.initial.row;
  for (int32_t b = 0; b < rows; ++b) {
    Operand* row = reinterpret_cast<Operand*>(carry + b * carry_row_bytes(team.plan));
    for (int64_t k = from + thread_index(); k < to; k += team.plan.threads) {
      row[k - from] = k < p.H ? Product::Ops::operand(widen(initial[b * p.initial.row + k]))
                              : Product::Ops::operand(0);
    }
  }
}

// Zeros where no slice is ever sent to: W is zero there too, but zero times a NaN is none.
template <class Product>
FUSED_BPTT_DEVICE void clear_padding(const Team& team, std::byte* carry) {
  using Operand = typename Product::Operand;
  for (int32_t b = 0; b < team.plan.batch_tile; ++b) {
    Operand* row = reinterpret_cast<Operand*>(carry + b * carry_row_bytes(team.plan));
    for (int64_t k = team.sent_columns() + thread_index(); k < team.plan.carry_columns;
         k += team.plan.threads) {
      row[k] = Product::Ops::operand(0);
    }
  }
}

}  // namespace fused_bptt
