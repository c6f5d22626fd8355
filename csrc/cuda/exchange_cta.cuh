// One CTA owns all units: the carry stays in its shared memory.
//
// One buffer is enough: the threads meet after the product has read carry i and before anyone
// writes carry i + 1, and again before carry i + 1 is read.
#pragma once

#include "exchange.cuh"
#include "product.cuh"

namespace fused_bptt {

template <class Product, class Team>
class ExchangeCta {
 public:
  using Operand = typename Product::Operand;

  FUSED_BPTT_DEVICE explicit ExchangeCta(const Team& team)
      : team_(team),
        carry_(shared_memory() + carry_offset()),
        row_bytes_(static_cast<int32_t>(carry_row_bytes(team.plan))) {}

  FUSED_BPTT_DEVICE void begin() {
    clear_padding<Product>(team_, carry_);
    if (team_.multiplies(0)) {
      carry_initial<Product>(team_, team_.rows(0), 0, team_.sent_columns(), carry_);
    }
    sync_block();
  }

  FUSED_BPTT_DEVICE void multiply(int64_t, int32_t rows, const Product& product,
                                  typename Product::Sum* sums, int32_t split_stride) {
    product.multiply(carry_, rows, split_stride, 0,
                     static_cast<int32_t>(fragments_of_k(team_.plan, team_.problem.H)), true,
                     team_.plan.residence, sums);
  }

  FUSED_BPTT_DEVICE void send(int64_t, int32_t b, int32_t n, WordOf<Operand> word) {
    *reinterpret_cast<WordOf<Operand>*>(carry_ + b * row_bytes_ +
                                        n * static_cast<int32_t>(sizeof(Operand))) = word;
  }

  FUSED_BPTT_DEVICE void publish(int64_t) { sync_block(); }

  FUSED_BPTT_DEVICE void end() {}

 private:
  const Team& team_;
  std::byte* carry_;
  const int32_t row_bytes_;
};

}  // namespace fused_bptt
