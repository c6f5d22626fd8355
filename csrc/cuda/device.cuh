// The words that the kernels are written in: threads, barriers, memory, numbers. Beyond these and
// those of ptx.cuh they use plain C++, so that tests/emulation can give each word a meaning on the
// host and run the same loops there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernel_args.h"

#if defined(FUSED_BPTT_EMULATION)
#include "emulation.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define FUSED_BPTT_DEVICE __device__ __forceinline__
#define FUSED_BPTT_GLOBAL(most_threads) __global__ void __launch_bounds__(most_threads, 1)
#define FUSED_BPTT_ARGS const __grid_constant__ fused_bptt::KernelArgs

namespace fused_bptt {

// 16-bit numbers are bits here; arithmetic is done in float.
struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

struct alignas(16) Vector16 {
  uint32_t word[4];
};

FUSED_BPTT_DEVICE int32_t thread_index() { return static_cast<int32_t>(threadIdx.x); }
FUSED_BPTT_DEVICE int32_t block_index() { return static_cast<int32_t>(blockIdx.x); }
FUSED_BPTT_DEVICE int32_t grid_blocks() { return static_cast<int32_t>(gridDim.x); }

// Every thread of the CTA; what was written before it is seen after it.
FUSED_BPTT_DEVICE void sync_block() { __syncthreads(); }

// The lanes of a warp are together again, as its instructions for tensor cores need them.
FUSED_BPTT_DEVICE void sync_warp() { __syncwarp(); }

// The CTA's dynamic shared memory.
FUSED_BPTT_DEVICE std::byte* shared_memory() {
  extern __shared__ __align__(128) unsigned char fused_bptt_shared[];
  return reinterpret_cast<std::byte*>(fused_bptt_shared);
}

FUSED_BPTT_DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
FUSED_BPTT_DEVICE double multiply_add(double a, double b, double c) { return __fma_rn(a, b, c); }
FUSED_BPTT_DEVICE double sqrt_of(double x) { return ::sqrt(x); }
FUSED_BPTT_DEVICE float tanh_of(float x) { return ::tanhf(x); }
FUSED_BPTT_DEVICE double tanh_of(double x) { return ::tanh(x); }
FUSED_BPTT_DEVICE float exp_of(float x) { return ::expf(x); }
FUSED_BPTT_DEVICE double exp_of(double x) { return ::exp(x); }
FUSED_BPTT_DEVICE float expm1_of(float x) { return ::expm1f(x); }
FUSED_BPTT_DEVICE double expm1_of(double x) { return ::expm1(x); }
FUSED_BPTT_DEVICE float log1p_of(float x) { return ::log1pf(x); }
FUSED_BPTT_DEVICE double log1p_of(double x) { return ::log1p(x); }

FUSED_BPTT_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
FUSED_BPTT_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

FUSED_BPTT_DEVICE float widen(Bfloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
FUSED_BPTT_DEVICE float widen(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }
FUSED_BPTT_DEVICE Bfloat16 round_to_bfloat16(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
FUSED_BPTT_DEVICE Float16 round_to_float16(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

// From L2: another CTA wrote it, and this SM's L1 may hold what was there before.
FUSED_BPTT_DEVICE Vector16 load_through_l2(const Vector16* from) {
  const uint4 x = __ldcg(reinterpret_cast<const uint4*>(from));
  return {{x.x, x.y, x.z, x.w}};
}

// From memory that nobody writes while the kernel runs.
FUSED_BPTT_DEVICE Vector16 load_constant(const Vector16* from) {
  const uint4 x = __ldg(reinterpret_cast<const uint4*>(from));
  return {{x.x, x.y, x.z, x.w}};
}

}  // namespace fused_bptt

#endif

namespace fused_bptt {

constexpr int kWarp = 32;

FUSED_BPTT_DEVICE float widen(float x) { return x; }
FUSED_BPTT_DEVICE double widen(double x) { return x; }

template <class To, class From>
FUSED_BPTT_DEVICE To round_to(From x) {
  if constexpr (std::is_same_v<To, Bfloat16>) {
    return round_to_bfloat16(x);
  } else if constexpr (std::is_same_v<To, Float16>) {
    return round_to_float16(x);
  } else {
    return static_cast<To>(x);
  }
}

// Deals the elements of a rectangle out to the threads of a CTA, row by row, without dividing at
// every step: this thread's elements, one after another.
struct Cursor {
  FUSED_BPTT_DEVICE Cursor(int32_t threads, int32_t columns)
      : columns(columns), rows_ahead(threads / columns), columns_ahead(threads % columns) {
    row = thread_index() / columns;
    column = thread_index() % columns;
  }
  FUSED_BPTT_DEVICE void advance() {
    row += rows_ahead;
    column += columns_ahead;
    if (column >= columns) column -= columns, ++row;
  }
  const int32_t columns, rows_ahead, columns_ahead;
  int32_t row, column;
};

FUSED_BPTT_DEVICE int32_t at_most(int32_t a, int32_t b) { return a < b ? a : b; }
FUSED_BPTT_DEVICE int32_t at_least(int32_t a, int32_t b) { return a > b ? a : b; }

}  // namespace fused_bptt
