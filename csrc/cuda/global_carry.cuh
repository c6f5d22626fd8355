// The carry of a team in global memory, which is L2: twice, as one is written while the other is
// read. It comes into shared memory whole, or in parts where it is too large.
#pragma once

#include "exchange.cuh"

namespace fused_bptt {

template <class Product>
class GlobalCarry {
 public:
  using Operand = typename Product::Operand;

  FUSED_BPTT_DEVICE explicit GlobalCarry(const Team& team) : team_(team) {}

  // Carry i + 1 is written while carry i is read.
  FUSED_BPTT_DEVICE void write(int64_t i, int32_t b, int32_t n, WordOf<Operand> word) {
    *reinterpret_cast<WordOf<Operand>*>(buffer(i) + b * row_bytes() +
                                        n * static_cast<int32_t>(sizeof(Operand))) = word;
  }

  // Calls f(first, end, part) for each part of carry i in turn, when it is in shared memory:
  // `part` holds the fragments [first, end) of its k.
  template <class F>
  FUSED_BPTT_DEVICE void for_each_part(int64_t i, int32_t rows, const F& f) {
    const int32_t width = static_cast<int32_t>(carry_width(team_.plan, team_.problem.H));
    const int32_t quantum = static_cast<int32_t>(k_quantum(team_.plan));
    std::byte* part = shared_memory() + carry_offset();
    for (int32_t from = 0; from < width; from += team_.plan.carry_columns) {
      const int32_t columns = at_most(width - from, team_.plan.carry_columns);
      if (from > 0) sync_block();  // the part before has been read
      if (i == 0) {
        carry_initial<Product>(team_, rows, from, from + columns, part);
      } else {
        copy(i, rows, from, columns, part);
      }
      sync_block();
      f(from / quantum, (from + columns) / quantum, part);
    }
  }

 private:
  // Columns of carry i into shared memory, and zeros behind its end. A thread has four loads under
  // way, or each of them would wait for L2 in turn.
  FUSED_BPTT_DEVICE void copy(int64_t i, int32_t rows, int32_t from, int32_t columns,
                              std::byte* part) {
    constexpr int kLoads = 4;
    const int32_t vectors = columns * static_cast<int32_t>(sizeof(Operand)) / 16;
    const int32_t first = from * static_cast<int32_t>(sizeof(Operand)) / 16;
    const int32_t row_vectors = static_cast<int32_t>(row_bytes() / 16);
    const int32_t part_row = static_cast<int32_t>(carry_row_bytes(team_.plan) / 16);
    const Vector16* source = reinterpret_cast<const Vector16*>(buffer(i));
    Vector16* to = reinterpret_cast<Vector16*>(part);
    Cursor at(team_.plan.threads, vectors);
    while (at.row < rows) {
      Vector16 loaded[kLoads];
      int32_t place[kLoads];
#pragma unroll
      for (int m = 0; m < kLoads; ++m) {
        place[m] = at.row < rows ? at.row * part_row + at.column : -1;
        const int32_t vector = first + at.column;
        loaded[m] = at.row < rows && vector < row_vectors
                        ? load_through_l2(source + at.row * row_vectors + vector)
                        : Vector16{};
        at.advance();
      }
#pragma unroll
      for (int m = 0; m < kLoads; ++m) {
        if (place[m] >= 0) to[place[m]] = loaded[m];
      }
    }
  }

  FUSED_BPTT_DEVICE std::byte* buffer(int64_t i) const {
    return static_cast<std::byte*>(team_.args.workspace) + workspace_zero_bytes(team_.plan) +
           (2 * static_cast<int64_t>(team_.index) + i % 2) *
               global_carry_bytes(team_.plan, team_.problem.H);
  }
  FUSED_BPTT_DEVICE int64_t row_bytes() const {
    return global_carry_row_bytes(team_.plan, team_.problem.H);
  }

  const Team& team_;
};

}  // namespace fused_bptt
