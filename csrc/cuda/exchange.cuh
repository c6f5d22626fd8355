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
// `Team` says which carries there are, and of how many rows: with a leak (LeakyTeam) the first one
// is carry 1, which may have none.
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

// Unit k < H of a state of the tile's row b; zero where there is no such state.
template <class Product>
FUSED_BPTT_DEVICE typename Product::Storage number_of(const Team& team, const State& s, int32_t b,
                                                      int64_t k) {
  using Storage = typename Product::Storage;
  if (!s.data) return round_to<Storage>(typename Product::Sum{0});
  return static_cast<const Storage*>(s.data)[ptx::unforeseen(team.group) * s.group +
                                             ptx::unforeseen(team.first_row + b) * s.row + k];
}

// What row b carries into the first step of the walk.
template <class Product>
FUSED_BPTT_DEVICE typename Product::Storage first_state(const Team& team, int32_t b, int64_t k) {
  const Problem& p = team.problem;
  const bool cut = !team.down && team.cut_at(0, b);
  return number_of<Product>(team, cut ? p.cuts.replacement : p.initial, b, k);
}

// The first states of `rows` rows, columns [from, to), into a carry in shared memory; zero from H
// on.
template <class Product>
FUSED_BPTT_DEVICE void carry_initial(const Team& team, int32_t rows, int32_t from, int32_t to,
                                     std::byte* carry) {
  using Operand = typename Product::Operand;
#pragma unroll 1
  for (Cursor at(team.plan.threads, to - from); at.row < rows; at.advance()) {
    const int32_t k = from + at.column;
    reinterpret_cast<Operand*>(carry + at.row * carry_row_bytes(team.plan))[at.column] =
        k < team.problem.H ? Product::Ops::operand(widen(first_state<Product>(team, at.row, k)))
                           : Product::Ops::operand(0);
  }
}

// Zeros where no slice is ever sent to: W is zero there too, but zero times a NaN is none.
template <class Product>
FUSED_BPTT_DEVICE void clear_padding(const Team& team, std::byte* carry) {
  using Operand = typename Product::Operand;
  const int32_t from = team.sent_columns();
  const int32_t columns = team.plan.carry_columns - from;
  if (columns <= 0) return;
#pragma unroll 1
  for (Cursor at(team.plan.threads, columns); at.row < team.plan.batch_tile; at.advance()) {
    reinterpret_cast<Operand*>(carry + at.row * carry_row_bytes(team.plan))[from + at.column] =
        Product::Ops::operand(0);
  }
}

}  // namespace fused_bptt
