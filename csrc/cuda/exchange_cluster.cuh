// A thread block cluster shares the units: each CTA pushes its slice of the carry into the shared
// memory of all, itself included, with st.async. Two buffers, each with an mbarrier that completes
// when all bytes of a carry have come. There is no barrier of the cluster in the step.
//
// Carry i is in buffer i % 2. Why nothing is overwritten or missed:
//
// - Buffer free. A CTA sends carry i + 1 after it has all of carry i, so after every peer sent its
//   slice of it. A peer sends its slice of carry i only after its threads have met behind the
//   product of carry i - 1. So nobody reads carry i - 1 any more, whose buffer carry i + 1 is
//   written into. The chain is release (the push completes on the mbarrier) and acquire (the wait)
//   at the scope of the cluster, with barriers of a CTA between.
// - Phase. Carry i is phase (i - 1) / 2 of its barrier: carry 0 is not pushed. Since a peer that
//   sends carry i + 1 has seen carry i complete, which this CTA contributed to after it had waited
//   for carry i - 1, a push never meets the phase before its own.
// - Armed before it is pushed to. Carries 1 and 2 are armed before the cluster first meets; carry
//   i + 2 is armed by thread 0 once it has waited for carry i and before the CTA sends carry i + 1,
//   which every peer needs before it can send carry i + 2. So the bytes that are still expected
//   never fall below zero.
// - Exit. Every CTA waits for every byte that is pushed to it, because no carry is sent that is not
//   multiplied. Still the cluster meets at the end, once: shared memory must outlive the pushes.
#pragma once

#include "exchange.cuh"
#include "product.cuh"

namespace fused_bptt {

template <class Product, class Team>
class ExchangeCluster {
 public:
  using Operand = typename Product::Operand;

  FUSED_BPTT_DEVICE explicit ExchangeCluster(const Team& team)
      : team_(team),
        barriers_(reinterpret_cast<uint64_t*>(shared_memory())),
        carry_(shared_memory() + carry_offset()),
        buffer_bytes_(static_cast<int32_t>(carry_buffer_bytes(team.plan))),
        row_bytes_(static_cast<int32_t>(carry_row_bytes(team.plan))) {}

  FUSED_BPTT_DEVICE void begin() {
    if (thread_index() == 0) {
      for (int i = 0; i < 2; ++i) ptx::mbarrier_init(barriers_ + i, 1);
      ptx::fence_mbarrier_init();
      arm(1);
      arm(2);
    }
    clear_padding<Product>(team_, carry_);
    clear_padding<Product>(team_, carry_ + buffer_bytes_);
    if (team_.multiplies(0)) {
      carry_initial<Product>(team_, team_.rows(0), 0, team_.sent_columns(), carry_);
    }
    ptx::barrier_cluster();
  }

  FUSED_BPTT_DEVICE void multiply(int64_t i, int32_t rows, const Product& product,
                                  typename Product::Sum* sums, int32_t split_stride) {
    if (i > 0) {
      ptx::mbarrier_wait_parity(barriers_ + i % 2, static_cast<uint32_t>((i - 1) / 2 % 2));
      if (thread_index() == 0) arm(i + 2);
      sync_warp();
    }
    product.multiply(carry_ + static_cast<int32_t>(i % 2) * buffer_bytes_, rows, split_stride, 0,
                     static_cast<int32_t>(fragments_of_k(team_.plan, team_.problem.H)), true,
                     team_.plan.residence, sums);
  }

  FUSED_BPTT_DEVICE void send(int64_t i, int32_t b, int32_t n, WordOf<Operand> word) {
    const std::byte* to = carry_ + static_cast<int32_t>(i % 2) * buffer_bytes_ + b * row_bytes_ +
                          n * static_cast<int32_t>(sizeof(Operand));
    const uint64_t* barrier = barriers_ + i % 2;
    // Each begins with its neighbour, so that not all push to one at a time.
    uint32_t peer = static_cast<uint32_t>(team_.rank);
    const uint32_t peers = static_cast<uint32_t>(team_.plan.ctas);
#pragma unroll 1
    for (uint32_t sent = 0; sent < peers; ++sent) {
      peer = peer + 1 == peers ? 0 : peer + 1;
      ptx::st_async(ptx::mapa(to, peer), word, ptx::mapa(barrier, peer));
    }
  }

  // The sums that this step read are free for the next product.
  FUSED_BPTT_DEVICE void publish(int64_t) { sync_block(); }

  FUSED_BPTT_DEVICE void end() { ptx::barrier_cluster(); }

 private:
  // The barrier of carry i expects its bytes, if it will be sent.
  FUSED_BPTT_DEVICE void arm(int64_t i) {
    if (!team_.multiplies(i)) return;
    const int64_t rows = team_.carried(team_.rows(i - 1), team_.rows(i));
    const int64_t bytes = rows * team_.sent_columns() * sizeof(Operand);
    ptx::mbarrier_arrive_expect_tx(barriers_ + i % 2, static_cast<uint32_t>(bytes));
  }

  const Team& team_;
  uint64_t* barriers_;
  std::byte* carry_;
  const int32_t buffer_bytes_, row_bytes_;
};

}  // namespace fused_bptt
