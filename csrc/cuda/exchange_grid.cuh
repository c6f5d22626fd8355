// CTAs anywhere on the device share the units: the carry goes through global memory, which is L2,
// and each CTA has a flag that counts the carries whose slice it has made visible.
//
// Carry i is in buffer i % 2 of the team. A CTA writes carry i + 1 after it has seen flag i of all,
// and a peer raises its flag to i after its threads have met behind the product of carry i - 1: so
// the buffer is free, as in exchange_cluster.cuh. Visibility: the slice is written by all threads,
// they meet, one of them raises the flag with release at the scope of the device, which covers what
// it has seen at the barrier; who reads the flags does so with acquire, and its CTA meets before the
// carry is read. The carry is read through L2 so that no old line of L1 can answer.
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
    const int64_t H = team_.problem.H;
    const int64_t quantum = k_quantum(team_.plan);
    for (int64_t from = 0; from < H; from += team_.plan.carry_columns) {
      const int64_t left = carry_width(team_.plan, H) - from;
      const int64_t columns = left < team_.plan.carry_columns ? left : team_.plan.carry_columns;
      if (from > 0) sync_block();  // the part before has been read
      if (i == 0) {
        carry_initial<Product>(team_, rows, from, from + columns, chunk_);
      } else {
        copy(i, rows, from, columns);
      }
      sync_block();
      product.multiply(chunk_, rows, split_stride, static_cast<int32_t>(from / quantum),
                       static_cast<int32_t>((from + columns) / quantum), from == 0,
                       team_.plan.residence, sums);
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
  FUSED_BPTT_DEVICE void copy(int64_t i, int32_t rows, int64_t from, int64_t columns) {
    const int64_t bytes = columns * static_cast<int64_t>(sizeof(Operand));
    const int64_t first = from * static_cast<int64_t>(sizeof(Operand));
    for (int32_t b = 0; b < rows; ++b) {
      const std::byte* source = carry_ + i % 2 * buffer_bytes_ + b * row_bytes_ + first;
      std::byte* to = chunk_ + b * carry_row_bytes(team_.plan);
      for (int64_t at = thread_index() * 16; at < bytes; at += team_.plan.threads * 16) {
        *reinterpret_cast<Vector16*>(to + at) =
            first + at < row_bytes_
                ? load_through_l2(reinterpret_cast<const Vector16*>(source + at))
                : Vector16{};
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
