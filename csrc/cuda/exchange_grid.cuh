// CTAs anywhere on the device share the units: the carry goes through global memory, which is L2,
// and each CTA has a flag that counts the carries whose slice it has made visible.
//
// Carry i is in buffer i % 2 of the team. A CTA writes carry i + 1 after it has seen flag i of all,
// and a peer raises its flag to i after its threads have met behind the product of carry i - 1: so
// the buffer is free, as in exchange_cluster.cuh. Visibility: the slice is written by all threads,
// they meet, one of them raises the flag with release at the scope of the device, which covers what
// it has seen at the barrier; who reads the flags does so with acquire, and its CTA meets before
// the carry is read. The carry is read through L2 so that no old line of L1 can answer.
//
// A CTA waits for its peers without end, so all CTAs of a team must be on the device together: the
// launcher starts no more teams than can be, and each CTA walks several teams, one after another. A
// team has flags and buffers of its own, so that a fast CTA may begin its next team at once.
#pragma once

#include "exchange.cuh"
#include "product.cuh"

namespace fused_bptt {

template <class Product>
class ExchangeGrid {
 public:
  using Operand = typename Product::Operand;

  FUSED_BPTT_DEVICE explicit ExchangeGrid(const Team& team)
      : team_(team),
        flags_(static_cast<uint64_t*>(team.args.workspace) + team.index * team.plan.ctas),
        carry_(static_cast<std::byte*>(team.args.workspace) + workspace_zero_bytes(team.plan) +
               2 * team.index * global_carry_bytes(team.plan, team.problem.H)),
        buffer_bytes_(global_carry_bytes(team.plan, team.problem.H)),
        row_bytes_(global_carry_row_bytes(team.plan, team.problem.H)),
        chunk_(shared_memory() + carry_offset()) {}

  FUSED_BPTT_DEVICE void begin() {}

  // The carry comes into shared memory whole, or in parts where it is too large.
  FUSED_BPTT_DEVICE void multiply(int64_t i, int32_t rows, const Product& product,
                                  typename Product::Sum* sums, int32_t split_stride) {
    if (i > 0) {
      for (int32_t peer = thread_index(); peer < team_.plan.ctas; peer += team_.plan.threads) {
        while (ptx::ld_acquire_gpu(flags_ + peer) < static_cast<uint64_t>(i)) {
        }
      }
      sync_block();
    }
    const int32_t width = static_cast<int32_t>(carry_width(team_.plan, team_.problem.H));
    const int32_t quantum = static_cast<int32_t>(k_quantum(team_.plan));
    for (int32_t from = 0; from < width; from += team_.plan.carry_columns) {
      const int32_t columns = at_most(width - from, team_.plan.carry_columns);
      if (from > 0) sync_block();  // the part before has been read
      if (i == 0) {
        carry_initial<Product>(team_, rows, from, from + columns, chunk_);
      } else {
        copy(i, rows, from, columns);
      }
      sync_block();
      product.multiply(chunk_, rows, split_stride, from / quantum, (from + columns) / quantum,
                       from == 0, team_.plan.residence, sums);
    }
  }

  FUSED_BPTT_DEVICE void send(int64_t i, int32_t b, int32_t n, WordOf<Operand> word) {
    *reinterpret_cast<WordOf<Operand>*>(carry_ + i % 2 * buffer_bytes_ + b * row_bytes_ +
                                        n * static_cast<int32_t>(sizeof(Operand))) = word;
  }

  FUSED_BPTT_DEVICE void publish(int64_t i) {
    sync_block();
    if (thread_index() == 0) ptx::st_release_gpu(flags_ + team_.rank, static_cast<uint64_t>(i));
  }

  FUSED_BPTT_DEVICE void end() {}

 private:
  // Columns of carry i into shared memory, and zeros behind its end. A thread has four loads under
  // way, or each of them would wait for L2 in turn.
  FUSED_BPTT_DEVICE void copy(int64_t i, int32_t rows, int32_t from, int32_t columns) {
    constexpr int kLoads = 4;
    const int32_t vectors = columns * static_cast<int32_t>(sizeof(Operand)) / 16;
    const int32_t first = from * static_cast<int32_t>(sizeof(Operand)) / 16;
    const int32_t row_vectors = static_cast<int32_t>(row_bytes_ / 16);
    const int32_t chunk_row = static_cast<int32_t>(carry_row_bytes(team_.plan) / 16);
    const Vector16* source = reinterpret_cast<const Vector16*>(carry_ + i % 2 * buffer_bytes_);
    Vector16* to = reinterpret_cast<Vector16*>(chunk_);
    Cursor at(team_.plan.threads, vectors);
    while (at.row < rows) {
      Vector16 loaded[kLoads];
      int32_t place[kLoads];
#pragma unroll
      for (int m = 0; m < kLoads; ++m) {
        place[m] = at.row < rows ? at.row * chunk_row + at.column : -1;
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

  const Team& team_;
  uint64_t* flags_;
  std::byte* carry_;
  const int64_t buffer_bytes_, row_bytes_;
  std::byte* chunk_;
};

}  // namespace fused_bptt
