// A launch for each step: the carry goes through global memory, and the end of a launch is what all
// wait for. So there may be more CTAs than the device holds at once, and H may be of any size.
//
// Launch i reads carry i, in buffer i % 2 of the team, and writes carry i + 1 into the other one.
// What a launch wrote is seen by the next on the same stream. Within a launch nobody waits for
// another CTA.
#pragma once

#include "global_carry.cuh"
#include "product_streamed.cuh"

namespace fused_bptt {

template <class Product, class Team>
class ExchangeLaunches {
 public:
  using Operand = typename Product::Operand;

  FUSED_BPTT_DEVICE explicit ExchangeLaunches(const Team& team) : carry_(team) {}

  FUSED_BPTT_DEVICE void multiply(int64_t i, int32_t rows, const Product& product,
                                  typename Product::Sum* sums, int32_t split_stride) {
    typename Product::Stream stream(product);
    carry_.for_each_part(i, rows, [&](int32_t first, int32_t end, const std::byte* part) {
      stream.multiply(part, rows, first, end);
    });
    stream.store(rows, split_stride, sums);
  }

  FUSED_BPTT_DEVICE void send(int64_t i, int32_t b, int32_t n, WordOf<Operand> word) {
    carry_.write(i, b, n, word);
  }

 private:
  GlobalCarry<Product> carry_;
};

}  // namespace fused_bptt
