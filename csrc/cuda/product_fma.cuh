// Products of one warp by multiply-adds, in float and double: 32 rows of W, one a lane, by one
// batch row, 16 bytes of k at a time. All lanes read the same part of the carry.
#pragma once

#include "device.cuh"

namespace fused_bptt {

template <Math kMath>
struct FmaOps {
  static constexpr Math math = kMath;
  using Sum = std::conditional_t<math == Math::fp64, double, float>;
  using Storage = Sum;
  using Operand = Sum;

  static constexpr int kColumns = 1;
  static constexpr int kWidest = math == Math::fp64 ? 2 : 4;
  static constexpr int kAhead = math == Math::fp64 ? 1 : 2;
  static constexpr int kDepth = 16 / sizeof(Operand);

  FUSED_BPTT_DEVICE static Operand operand(Sum x) { return x; }

  union Lane {
    Vector16 vector;
    Operand value[kDepth];
  };

  template <class Value>
  FUSED_BPTT_DEVICE static Vector16 fragment(int lane, int64_t row, int64_t k, const Value& value) {
    Lane f;
#pragma unroll
    for (int i = 0; i < kDepth; ++i) f.value[i] = value(row + lane, k + i);
    return f.vector;
  }

  using Column = Lane;
  FUSED_BPTT_DEVICE static Column column(int, const std::byte* carry, int32_t) {
    Column c;
    c.vector = *reinterpret_cast<const Vector16*>(carry);
    return c;
  }

  struct Block {
    Sum sum[1];
  };

  FUSED_BPTT_DEVICE static void multiply(Block& block, const Vector16& w, const Column& column) {
    Lane f;
    f.vector = w;
#pragma unroll
    for (int i = 0; i < kDepth; ++i) {
      block.sum[0] = multiply_add(f.value[i], column.value[i], block.sum[0]);
    }
  }

  FUSED_BPTT_DEVICE static void store(const Block& block, int lane, Sum* sums, int32_t) {
    sums[lane] = block.sum[0];
  }
  FUSED_BPTT_DEVICE static Block load(int lane, const Sum* sums, int32_t) { return {{sums[lane]}}; }
};

}  // namespace fused_bptt
