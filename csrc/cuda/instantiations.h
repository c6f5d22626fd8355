// The closed list of compiled kernels: for each product and exchange, both primitives, one kernel
// for those with a leak, and every number of row tiles of kRowTiles, or kRowTilesOfLaunches; and
// for each product the clipped step, of kRowTilesOfLaunches. Null for any other number.
#pragma once

#include <cstdint>

#include "kernel_args.h"

namespace fused_bptt {

using KernelOf = const void* (*)(Primitive primitive, int32_t row_tiles);
using StepOf = const void* (*)(int32_t row_tiles);
using PackOf = const void* (*)(int32_t row_tiles);
using ClipOf = const void* (*)();

#define FUSED_BPTT_KERNELS(math)                            \
  const void* kernel_##math##_cta(Primitive, int32_t);      \
  const void* kernel_##math##_cluster(Primitive, int32_t);  \
  const void* kernel_##math##_grid(Primitive, int32_t);     \
  const void* kernel_##math##_launches(Primitive, int32_t); \
  const void* kernel_##math##_clipped(int32_t);             \
  const void* kernel_##math##_norm_clipped(int32_t);        \
  const void* clip_##math();                                \
  const void* pack_##math(int32_t)
FUSED_BPTT_KERNELS(fp64);
FUSED_BPTT_KERNELS(fp32);
FUSED_BPTT_KERNELS(tf32x3);
FUSED_BPTT_KERNELS(tf32);
FUSED_BPTT_KERNELS(bf16);
FUSED_BPTT_KERNELS(fp16);
#undef FUSED_BPTT_KERNELS

// [Math][Exchange]
constexpr KernelOf kKernels[6][4] = {
    {kernel_fp64_cta, kernel_fp64_cluster, kernel_fp64_grid, kernel_fp64_launches},
    {kernel_fp32_cta, kernel_fp32_cluster, kernel_fp32_grid, kernel_fp32_launches},
    {kernel_tf32x3_cta, kernel_tf32x3_cluster, kernel_tf32x3_grid, kernel_tf32x3_launches},
    {kernel_tf32_cta, kernel_tf32_cluster, kernel_tf32_grid, kernel_tf32_launches},
    {kernel_bf16_cta, kernel_bf16_cluster, kernel_bf16_grid, kernel_bf16_launches},
    {kernel_fp16_cta, kernel_fp16_cluster, kernel_fp16_grid, kernel_fp16_launches},
};

// [Math]: one step of the adjoint of the linear recurrence, clipped.
constexpr StepOf kClipped[6] = {kernel_fp64_clipped, kernel_fp32_clipped, kernel_tf32x3_clipped,
                                kernel_tf32_clipped, kernel_bf16_clipped, kernel_fp16_clipped};

// [Math]: the two launches of such a step that is clipped by norms: its product, and all else.
constexpr StepOf kNormClipped[6] = {kernel_fp64_norm_clipped,   kernel_fp32_norm_clipped,
                                    kernel_tf32x3_norm_clipped, kernel_tf32_norm_clipped,
                                    kernel_bf16_norm_clipped,   kernel_fp16_norm_clipped};
constexpr ClipOf kClips[6] = {clip_fp64, clip_fp32, clip_tf32x3, clip_tf32, clip_bf16, clip_fp16};

// [Math]: lays W out as the kernels read it.
constexpr PackOf kPacks[6] = {pack_fp64, pack_fp32, pack_tf32x3, pack_tf32, pack_bf16, pack_fp16};

}  // namespace fused_bptt
