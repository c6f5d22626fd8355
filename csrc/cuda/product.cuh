// A CTA's share of the step's product: which warp multiplies what, and where W is between steps.
//
//   sums[split][b][n] = sum over the k of that split of W[n][k] carry[b][k]
//
// Of a row's fragments along k, number j of split s is number j * k_splits + s. The first ones are
// in registers; the rest, if there is one, in shared or global memory, fragment by fragment, so
// that a warp reads 512 bytes in a row.
#pragma once

#include "product_fma.cuh"
#include "product_mma.cuh"

namespace fused_bptt {

template <Math math>
using OpsOf = std::conditional_t<by_tensor_cores(math), MmaOps<math>, FmaOps<math>>;

// The recurrent weights of one group as the step reads them: the adjoint reads them transposed.
// Zero outside of H x H.
template <class Storage>
struct WeightReader {
  const Storage* data;
  int64_t receive, send;  // strides
  int64_t H;

  FUSED_BPTT_DEVICE WeightReader(const Problem& p, int64_t group)
      : data(static_cast<const Storage*>(p.weight.data) + group * p.weight.group),
        receive(p.adjoint ? p.weight.column : p.weight.row),
        send(p.adjoint ? p.weight.row : p.weight.column),
        H(p.H) {}

  FUSED_BPTT_DEVICE auto operator()(int64_t n, int64_t k) const {
    return n < H && k < H ? widen(data[n * receive + k * send]) : decltype(widen(*data))(0);
  }
};

// Where the parts of W that the threads of a CTA read are: fragment (j, i) of thread t is entry
// (j * row_tiles + i) * threads + t.
FUSED_BPTT_DEVICE Vector16* packed_weights(const KernelArgs& args, int64_t group, int64_t rank) {
  const int64_t H = args.problem.H;
  return reinterpret_cast<Vector16*>(
      static_cast<std::byte*>(args.workspace) + packed_offset(args.plan, H) +
      (group * args.plan.ctas + rank) * packed_bytes_of_cta(args.plan, H));
}

template <Math kMath, int kRowTiles, int kFragments>
class Product {
 public:
  static constexpr Math math = kMath;
  using Ops = OpsOf<math>;
  using Storage = typename Ops::Storage;
  using Operand = typename Ops::Operand;
  using Sum = typename Ops::Sum;
  static constexpr int kRegistersOfK = kFragments / kRowTiles;
  static_assert(kFragments % kRowTiles == 0);

  FUSED_BPTT_DEVICE explicit Product(const KernelArgs& args)
      : k_splits_(args.plan.k_splits),
        threads_(args.plan.threads),
        lane_(thread_index() % kWarp),
        split_(thread_index() / kWarp % k_splits_),
        row_(thread_index() / kWarp / k_splits_ * kRowTiles * tile_rows(math)),
        carry_row_bytes_(static_cast<int32_t>(carry_row_bytes(args.plan))),
        sums_row_(static_cast<int32_t>(sums_row(args.plan))) {}

  // Takes W, which pack_kernel has put in order, into registers and shared memory.
  FUSED_BPTT_DEVICE void load(const KernelArgs& args, int64_t group, int64_t rank) {
    const Vector16* from = packed_weights(args, group, rank) + thread_index();
    const int32_t of_k = static_cast<int32_t>(fragments_of_k(args.plan, args.problem.H));
#pragma unroll
    for (int j = 0; j < kRegistersOfK; ++j) {
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        if (j < of_k) registers_[j][i] = load_constant(from + (j * kRowTiles + i) * threads_);
      }
    }
    rest_ = from + kFragments * threads_;
    if (args.plan.residence == Residence::shared) {
      Vector16* rest = reinterpret_cast<Vector16*>(shared_memory() + rest_offset(args.plan));
      rest += thread_index();
      for (int32_t n = 0; n < of_k * kRowTiles - kFragments; ++n) {
        rest[n * threads_] = load_constant(rest_ + static_cast<int64_t>(n) * threads_);
      }
      rest_ = rest;
    }
  }

  // Puts this thread's part of fragment (j, i) of its warp where load() will look for it.
  FUSED_BPTT_DEVICE void pack(const KernelArgs& args, int64_t group, int64_t rank, int32_t j,
                              int32_t i) const {
    const int64_t row = rank * args.plan.units + row_ + i * tile_rows(math);
    const int64_t k = (j * k_splits_ + split_) * fragment_depth(math);
    packed_weights(args, group, rank)[(j * kRowTiles + i) * threads_ + thread_index()] =
        Ops::fragment(lane_, row, k, WeightReader<Storage>(args.problem, group));
  }

  // The sums of `rows` batch rows over this warp's fragments [first, end). `carry` holds their k
  // and no others before them. `sums` is split 0, batch row 0, unit 0 of the CTA. Unless `fresh`,
  // what is there is added to.
  FUSED_BPTT_DEVICE void multiply(const std::byte* carry, int32_t rows, int32_t split_stride,
                                  int32_t first, int32_t end, bool fresh, Residence residence,
                                  Sum* sums) const {
    carry += split_ * fragment_bytes_of_k(math);
    sums += split_ * split_stride + row_;
    int32_t b = 0;
    for (; b + (Ops::kWidest - 1) * Ops::kColumns < rows; b += Ops::kWidest * Ops::kColumns) {
      multiply_block<Ops::kWidest>(carry + b * carry_row_bytes_, first, end, fresh, residence,
                                   sums + b * sums_row_);
    }
    for (; b < rows; b += Ops::kColumns) {
      multiply_block<1>(carry + b * carry_row_bytes_, first, end, fresh, residence,
                        sums + b * sums_row_);
    }
  }

 private:
  // Where this thread's part of a fragment is, counted from what follows the registers.
  FUSED_BPTT_DEVICE int64_t rest_index(int32_t j, int i) const {
    return static_cast<int64_t>((j - kRegistersOfK) * kRowTiles + i) * threads_;
  }

  template <int kBlocks>
  FUSED_BPTT_DEVICE void multiply_block(const std::byte* carry, int32_t first, int32_t end,
                                        bool fresh, Residence residence, Sum* sums) const {
    using Block = typename Ops::Block;
    Block blocks[kRowTiles][kBlocks];
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int c = 0; c < kBlocks; ++c) {
        blocks[i][c] = fresh ? Block{} : Ops::load(lane_, tile(sums, i, c), sums_row_);
      }
    }
    // The carry of a fragment is loaded kAhead fragments before it is multiplied. (Whole groups of
    // fragments with one guard, and single ones where a group is cut, need no clamped address but
    // are twice the code.)
    constexpr int kAhead = Ops::kAhead;
    typename Ops::Column columns[kAhead][kBlocks];
#pragma unroll
    for (int j = 0; j < kAhead; ++j)
      load_columns<kBlocks>(carry, at_most(j, end - first - 1), columns[j]);
#pragma unroll
    for (int j = 0; j < kRegistersOfK; ++j) {
      if (j >= first && j < end) {
        multiply_columns<kBlocks>(registers_[j], columns[j % kAhead], blocks);
        load_columns<kBlocks>(carry, at_most(j + kAhead, end - 1) - first, columns[j % kAhead]);
      }
    }
    const int32_t from = at_least(first, kRegistersOfK);
    // Loads of W under way a thread: 4 of 16 bytes, by 256 threads, are twice what L2's latency
    // takes at its bandwidth, and more registers than these are not there.
    constexpr int kInFlight = kRowTiles < 2 ? 2 : 1;
    if (residence == Residence::shared) {
#pragma unroll 1
      for (int32_t j = from; j < end; ++j) {
        Vector16 w[kRowTiles];
        typename Ops::Column columns[kBlocks];
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) w[i] = rest_[rest_index(j, i)];
        load_columns<kBlocks>(carry, j - first, columns);
        multiply_columns<kBlocks>(w, columns, blocks);
      }
    } else if (residence == Residence::global) {
#pragma unroll kInFlight
      for (int32_t j = from; j < end; ++j) {
        Vector16 w[kRowTiles];
        typename Ops::Column columns[kBlocks];
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) w[i] = load_constant(rest_ + rest_index(j, i));
        load_columns<kBlocks>(carry, j - first, columns);
        multiply_columns<kBlocks>(w, columns, blocks);
      }
    }
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int c = 0; c < kBlocks; ++c) {
        Ops::store(blocks[i][c], lane_, tile(sums, i, c), sums_row_);
      }
    }
  }

  // The carry of fragment j of this split, counted from the first in shared memory.
  template <int kBlocks>
  FUSED_BPTT_DEVICE void load_columns(const std::byte* carry, int32_t j,
                                      typename Ops::Column (&columns)[kBlocks]) const {
    const std::byte* at = carry + j * (k_splits_ * fragment_bytes_of_k(math));
#pragma unroll
    for (int c = 0; c < kBlocks; ++c) {
      columns[c] = Ops::column(lane_, at + c * Ops::kColumns * carry_row_bytes_, carry_row_bytes_);
    }
  }

  template <int kBlocks>
  FUSED_BPTT_DEVICE static void multiply_columns(
      const Vector16 (&w)[kRowTiles], const typename Ops::Column (&columns)[kBlocks],
      typename Ops::Block (&blocks)[kRowTiles][kBlocks]) {
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int c = 0; c < kBlocks; ++c) Ops::multiply(blocks[i][c], w[i], columns[c]);
    }
  }

  FUSED_BPTT_DEVICE Sum* tile(Sum* sums, int i, int c) const {
    return sums + i * tile_rows(math) + c * Ops::kColumns * sums_row_;
  }

  const int32_t k_splits_, threads_, lane_, split_;
  const int32_t row_;  // the first of this warp's rows in the CTA
  const int32_t carry_row_bytes_, sums_row_;
  Vector16 registers_[kRegistersOfK][kRowTiles];
  const Vector16* rest_ = nullptr;  // this thread's part of what follows the registers
};

}  // namespace fused_bptt
