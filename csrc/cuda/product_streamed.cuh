// A CTA's share of the step's product where W is read from global memory, once for all rows of the
// tile: the sums are in registers along all of k instead of W.
//
// The k of fragment j of a split, and the place of W's parts in memory, are those of product.cuh.
#pragma once

#include "product.cuh"

namespace fused_bptt {

template <Math kMath, int kRowTiles>
class StreamedProduct {
 public:
  static constexpr Math math = kMath;
  using Ops = OpsOf<math>;
  using Storage = typename Ops::Storage;
  using Operand = typename Ops::Operand;
  using Sum = typename Ops::Sum;
  using Block = typename Ops::Block;
  static constexpr int kBlocks = rows_of_launch(math) / Ops::kColumns;
  // Fragments along k whose part of W is under way: eight loads of 16 bytes a thread, which by 256
  // threads are twice what L2's latency takes at its bandwidth.
  static constexpr int kUnderWay = 8 / kRowTiles;

  FUSED_BPTT_DEVICE StreamedProduct(const KernelArgs& args, const Team& team)
      : k_splits_(args.plan.k_splits),
        threads_(args.plan.threads),
        lane_(thread_index() % kWarp),
        split_(thread_index() / kWarp % k_splits_),
        row_(thread_index() / kWarp / k_splits_ * kRowTiles * tile_rows(math)),
        carry_row_bytes_(static_cast<int32_t>(carry_row_bytes(args.plan))),
        sums_row_(static_cast<int32_t>(sums_row(args.plan))),
        of_k_(static_cast<int32_t>(fragments_of_k(args.plan, args.problem.H))),
        weights_(packed_weights(args, team.group, team.rank) + thread_index()) {}

  // The sums of one step: parts of the carry are multiplied in ascending order, and then stored.
  class Stream {
   public:
    FUSED_BPTT_DEVICE explicit Stream(const StreamedProduct& product) : p_(product) {
#pragma unroll
      for (int j = 0; j < kUnderWay; ++j) load(j);
    }

    // Fragments [first, end), whose carry is in `carry`; `first` is a multiple of kCarryAhead.
    FUSED_BPTT_DEVICE void multiply(const std::byte* carry, int32_t rows, int32_t first,
                                    int32_t end) {
      carry += p_.split_ * fragment_bytes_of_k(math);
#pragma unroll 1
      for (int32_t from = first; from < end; from += kUnderWay) {
#pragma unroll
        for (int a = 0; a < kUnderWay; ++a) {
          if (from + a >= end) break;
#pragma unroll
          for (int c = 0; c < kBlocks; ++c) {
            if (c * Ops::kColumns >= rows) break;
            const typename Ops::Column column = Ops::column(
                p_.lane_, carry + c * Ops::kColumns * p_.carry_row_bytes_, p_.carry_row_bytes_);
#pragma unroll
            for (int i = 0; i < kRowTiles; ++i) Ops::multiply(blocks_[i][c], w_[a][i], column);
          }
          carry += p_.k_splits_ * fragment_bytes_of_k(math);
          load(from + a + kUnderWay, a);
        }
      }
    }

    // `sums` is split 0, batch row 0, unit 0 of the CTA.
    FUSED_BPTT_DEVICE void store(int32_t rows, int32_t split_stride, Sum* sums) const {
      sums += p_.split_ * split_stride + p_.row_;
#pragma unroll
      for (int c = 0; c < kBlocks; ++c) {
        if (c * Ops::kColumns >= rows) break;
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
          Ops::store(blocks_[i][c], p_.lane_,
                     sums + i * tile_rows(math) + c * Ops::kColumns * p_.sums_row_, p_.sums_row_);
        }
      }
    }

   private:
    FUSED_BPTT_DEVICE void load(int32_t j) { load(j, j); }
    FUSED_BPTT_DEVICE void load(int32_t j, int place) {
      if (j >= p_.of_k_) return;
      const Vector16* from = p_.weights_ + static_cast<int64_t>(j) * kRowTiles * p_.threads_;
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) w_[place][i] = load_constant(from + i * p_.threads_);
    }

    const StreamedProduct& p_;
    Block blocks_[kRowTiles][kBlocks] = {};
    Vector16 w_[kUnderWay][kRowTiles];
  };

 private:
  const int32_t k_splits_, threads_, lane_, split_;
  const int32_t row_;  // the first of this warp's rows in the CTA
  const int32_t carry_row_bytes_, sums_row_;
  const int32_t of_k_;       // fragments along k
  const Vector16* weights_;  // this thread's part of the first fragment
};

}  // namespace fused_bptt
