// Products of one warp on tensor cores: 16 rows of W by 8 batch rows, 32 bytes of k at a time.
//
// The sum runs over k in whatever order, so which k stands where in an instruction is free as long
// as W and the carry agree. Here lane q of four takes the k of bytes [8 q, 8 q + 8) of a fragment:
// its lower word is what the instruction calls the lower k, its upper word the upper k. So a lane
// reads its part of the carry in one load of 8 bytes, and bfloat16, float16 and tf32 lie alike.
#pragma once

#include "ptx.cuh"

namespace fused_bptt {

template <Math math>
struct MmaTraits;

template <>
struct MmaTraits<Math::bf16> {
  using Storage = Bfloat16;
  using Operand = Bfloat16;
  FUSED_BPTT_DEVICE static Operand operand(float x) { return round_to_bfloat16(x); }
};

template <>
struct MmaTraits<Math::fp16> {
  using Storage = Float16;
  using Operand = Float16;
  FUSED_BPTT_DEVICE static Operand operand(float x) { return round_to_float16(x); }
};

template <>
struct MmaTraits<Math::tf32> {
  using Storage = float;
  using Operand = float;
  // Rounded once here; the instruction itself would cut the low bits off.
  FUSED_BPTT_DEVICE static Operand operand(float x) { return float_of(ptx::cvt_rna_tf32_f32(x)); }
};

template <>
struct MmaTraits<Math::tf32x3> {
  using Storage = float;
  using Operand = float;
  FUSED_BPTT_DEVICE static Operand operand(float x) { return x; }
};

// A float as the sum of two tf32 numbers. What is left out is below 2^-22 of it. Of an infinity
// the low part is zero, not infinity less infinity.
struct Split {
  uint32_t high, low;
};
FUSED_BPTT_DEVICE Split split_tf32(uint32_t bits) {
  const float x = float_of(bits);
  const uint32_t high = ptx::cvt_rna_tf32_f32(x);
  const float rest = x - float_of(high);
  return {high, rest == rest ? ptx::cvt_rna_tf32_f32(rest) : 0u};
}

template <Math kMath>
struct MmaOps {
  static constexpr Math math = kMath;
  using Storage = typename MmaTraits<math>::Storage;
  using Operand = typename MmaTraits<math>::Operand;
  using Sum = float;

  // Batch rows of one block of columns, and the widest that is computed at once.
  static constexpr int kColumns = 8;
  static constexpr int kWidest = 2;
  // Fragments whose part of the carry is loaded before they are multiplied; divides kCarryAhead.
  static constexpr int kAhead = math == Math::tf32x3 ? 2 : 4;

  FUSED_BPTT_DEVICE static Operand operand(float x) { return MmaTraits<math>::operand(x); }

  // This lane's part of the fragment whose first row and k are given; value(row, k) is W's entry.
  template <class Value>
  FUSED_BPTT_DEVICE static Vector16 fragment(int lane, int64_t row, int64_t k, const Value& value) {
    constexpr int kPerWord = 4 / sizeof(Operand);
    Vector16 f;
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      const int64_t n = row + lane / 4 + (word % 2) * 8;
      const int64_t first = k + (lane % 4) * 2 * kPerWord + (word / 2) * kPerWord;
      if constexpr (kPerWord == 2) {
        const uint32_t low = operand(value(n, first)).bits;
        const uint32_t high = operand(value(n, first + 1)).bits;
        f.word[word] = low | high << 16;
      } else {
        f.word[word] = bits_of(operand(value(n, first)));
      }
    }
    return f;
  }

  // This lane's part of 8 batch rows of a fragment's k; `carry` is the first of those bytes.
  struct Column {
    uint32_t word[2];
  };
  FUSED_BPTT_DEVICE static Column column(int lane, const std::byte* carry, int32_t row_bytes) {
    struct alignas(8) Words {
      uint32_t low, high;
    };
    const Words x =
        *reinterpret_cast<const Words*>(carry + (lane / 4) * row_bytes + (lane % 4) * 8);
    return {{x.low, x.high}};
  }

  struct Block {
    float sum[4];
  };

  FUSED_BPTT_DEVICE static void multiply(Block& block, const Vector16& w, const Column& column) {
    if constexpr (math == Math::bf16) {
      ptx::mma_m16n8k16_bf16(block.sum, w.word, column.word);
    } else if constexpr (math == Math::fp16) {
      ptx::mma_m16n8k16_f16(block.sum, w.word, column.word);
    } else if constexpr (math == Math::tf32) {
      ptx::mma_m16n8k8_tf32(block.sum, w.word, column.word);
    } else {
      // low low is below float's own rounding; the small products first.
      uint32_t w_high[4], w_low[4], c_high[2], c_low[2];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Split s = split_tf32(w.word[i]);
        w_high[i] = s.high, w_low[i] = s.low;
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const Split s = split_tf32(column.word[i]);
        c_high[i] = s.high, c_low[i] = s.low;
      }
      ptx::mma_m16n8k8_tf32(block.sum, w_low, c_high);
      ptx::mma_m16n8k8_tf32(block.sum, w_high, c_low);
      ptx::mma_m16n8k8_tf32(block.sum, w_high, c_high);
    }
  }

  // `sums` is the entry of the tile's first row and the block's first batch row.
  FUSED_BPTT_DEVICE static void store(const Block& block, int lane, Sum* sums, int32_t sums_row) {
    Sum* at = sums + lane / 4 + (lane % 4) * 2 * sums_row;
    at[0] = block.sum[0];
    at[sums_row] = block.sum[1];
    at[8] = block.sum[2];
    at[sums_row + 8] = block.sum[3];
  }
  FUSED_BPTT_DEVICE static Block load(int lane, const Sum* sums, int32_t sums_row) {
    const Sum* at = sums + lane / 4 + (lane % 4) * 2 * sums_row;
    return {{at[0], at[sums_row], at[8], at[sums_row + 8]}};
  }
};

}  // namespace fused_bptt
