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

  // `rank` is the CTA's place in its team.
  FUSED_BPTT_DEVICE Product(const KernelArgs& args, int64_t rank)
      : k_splits_(args.plan.k_splits),
        threads_(args.plan.threads),
        lane_(thread_index() % kWarp),
        split_(thread_index() / kWarp % k_splits_),
        row_(thread_index() / kWarp / k_splits_ * kRowTiles * tile_rows(math)),
        unit_(rank * args.plan.units),
        carry_row_bytes_(carry_row_bytes(args.plan)),
        sums_row_(sums_row(args.plan)) {}

  // Fills the registers, and shared memory if the rest of W is there.
  FUSED_BPTT_DEVICE void load(const KernelArgs& args, int64_t group, int64_t rank) {
    const WeightReader<Storage> value(args.problem, group);
    const int64_t of_k = fragments_of_k(args.plan, args.problem.H);
#pragma unroll
    for (int j = 0; j < kRegistersOfK; ++j) {
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        if (j < of_k) registers_[j][i] = fragment(value, j, i);
      }
    }
    if (args.plan.residence == Residence::shared) {
      Vector16* rest = reinterpret_cast<Vector16*>(shared_memory() + rest_offset(args.plan));
      store_rest(value, of_k, rest);
      rest_ = rest;
    } else if (args.plan.residence == Residence::global) {
      rest_ = packed(args, group, rank);
    }
  }

  // Writes what the registers do not hold to the workspace.
  FUSED_BPTT_DEVICE void pack(const KernelArgs& args, int64_t group, int64_t rank) const {
    const WeightReader<Storage> value(args.problem, group);
    store_rest(value, fragments_of_k(args.plan, args.problem.H), packed(args, group, rank));
  }

  // The sums of `rows` batch rows over this warp's fragments [first, end). `carry` holds their k
  // and no others before them. `sums` is split 0, batch row 0, unit 0 of the CTA. Unless `fresh`,
  // what is there is added to.
  FUSED_BPTT_DEVICE void multiply(const std::byte* carry, int32_t rows, int64_t split_stride,
                                  int32_t first, int32_t end, bool fresh, Residence residence,
                                  Sum* sums) const {
    carry += static_cast<int64_t>(split_) * fragment_bytes_of_k(math);
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
  template <class Value>
  FUSED_BPTT_DEVICE Vector16 fragment(const Value& value, int64_t j, int i) const {
    const int64_t k = (j * k_splits_ + split_) * fragment_depth(math);
    return Ops::fragment(lane_, unit_ + row_ + i * tile_rows(math), k, value);
  }

  FUSED_BPTT_DEVICE int64_t rest_index(int64_t j, int i) const {
    return ((j - kRegistersOfK) * kRowTiles + i) * threads_ + thread_index();
  }

  template <class Value>
  FUSED_BPTT_DEVICE void store_rest(const Value& value, int64_t of_k, Vector16* rest) const {
    for (int64_t j = kRegistersOfK; j < of_k; ++j) {
      for (int i = 0; i < kRowTiles; ++i) rest[rest_index(j, i)] = fragment(value, j, i);
    }
  }

  FUSED_BPTT_DEVICE static Vector16* packed(const KernelArgs& args, int64_t group, int64_t rank) {
    const int64_t H = args.problem.H;
    return reinterpret_cast<Vector16*>(static_cast<std::byte*>(args.workspace) +
                                       packed_offset(args.plan, H) +
                                       (group * args.plan.ctas + rank) *
                                           rest_of_weights(args.plan, H));
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
    // From registers: by groups, whose loads of the carry are all under way before the first sum
    // waits for one; and one by one where a group is cut.
    constexpr int kGroup = Ops::kGroup < kRegistersOfK ? Ops::kGroup : kRegistersOfK;
#pragma unroll
    for (int g = 0; g < kRegistersOfK; g += kGroup) {
      if (g >= first && g + kGroup <= end) {
        typename Ops::Column columns[kGroup][kBlocks];
#pragma unroll
        for (int j = 0; j < kGroup; ++j) load_columns<kBlocks>(carry, g + j - first, columns[j]);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          multiply_columns<kBlocks>(registers_[g + j], columns[j], blocks);
        }
      } else {
#pragma unroll
        for (int j = g; j < g + kGroup; ++j) {
          if (j < first || j >= end) continue;
          typename Ops::Column columns[kBlocks];
          load_columns<kBlocks>(carry, j - first, columns);
          multiply_columns<kBlocks>(registers_[j], columns, blocks);
        }
      }
    }
    const int32_t from = at_least(first, kRegistersOfK);
    // Loads of W under way a thread: 4 of 16 bytes, by 256 threads, are twice what L2's latency
    // takes at its bandwidth, and more registers than these are not there.
    constexpr int kInFlight = kRowTiles < 4 ? 4 / kRowTiles : 1;
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
    const std::byte* at = carry + static_cast<int64_t>(j) * k_splits_ * fragment_bytes_of_k(math);
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
  const int32_t row_;   // the first of this warp's rows in the CTA
  const int64_t unit_;  // the first of the CTA's rows in W
  const int64_t carry_row_bytes_, sums_row_;
  Vector16 registers_[kRegistersOfK][kRowTiles];
  const Vector16* rest_ = nullptr;
};

}  // namespace fused_bptt
