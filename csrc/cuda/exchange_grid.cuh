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

#include "global_carry.cuh"
#include "product.cuh"

namespace fused_bptt {

template <class Product, class Team>
class ExchangeGrid {
 public:
  using Operand = typename Product::Operand;

  FUSED_BPTT_DEVICE explicit ExchangeGrid(const Team& team)
      : team_(team),
        flags_(static_cast<uint64_t*>(team.args.workspace) + team.index * team.plan.ctas),
        carry_(team) {}

  FUSED_BPTT_DEVICE void begin() {}

  FUSED_BPTT_DEVICE void multiply(int64_t i, int32_t rows, const Product& product,
                                  typename Product::Sum* sums, int32_t split_stride) {
    if (i > 0) {
      for (int32_t peer = thread_index(); peer < team_.plan.ctas; peer += team_.plan.threads) {
        while (ptx::ld_acquire_gpu(flags_ + peer) < static_cast<uint64_t>(i)) {
        }
      }
      sync_block();
    }
    carry_.for_each_part(i, rows, [&](int32_t first, int32_t end, const std::byte* part) {
      product.multiply(part, rows, split_stride, first, end, first == 0, team_.plan.residence,
                       sums);
    });
  }

  FUSED_BPTT_DEVICE void send(int64_t i, int32_t b, int32_t n, WordOf<Operand> word) {
    carry_.write(i, b, n, word);
  }

  FUSED_BPTT_DEVICE void publish(int64_t i) {
    sync_block();
    if (thread_index() == 0) ptx::st_release_gpu(flags_ + team_.rank, static_cast<uint64_t>(i));
  }

  FUSED_BPTT_DEVICE void end() {}

 private:
  const Team& team_;
  uint64_t* flags_;
  GlobalCarry<Product> carry_;
};

}  // namespace fused_bptt
