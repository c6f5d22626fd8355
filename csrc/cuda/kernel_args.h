// What a CUDA kernel is launched with, and where its memory lies: plain structs and arithmetic, so
// that the plan, the launcher, the kernel and the emulation agree. No Torch, no CUDA headers.
//
// A team of P CTAs carries one (group, batch tile) through all steps. Each of its CTAs owns `units`
// rows of W. A CTA's warps share them: `k_splits` warps divide a row's k between them and their
// sums are added in a fixed order; the others take other rows.
#pragma once

#include <cstdint>

#include "../problem.h"

#if defined(__CUDACC__)
#define FUSED_BPTT_HOST_DEVICE __host__ __device__
#else
#define FUSED_BPTT_HOST_DEVICE
#endif

namespace fused_bptt {

// How products are made. The storage type follows: double, float (three of them), bfloat16, half.
enum class Math : int32_t { fp64, fp32, tf32x3, tf32, bf16, fp16 };
// Who shares a group's hidden units: one CTA, a cluster, CTAs anywhere on the device; or any number
// of CTAs, with a launch for each step.
enum class Exchange : int32_t { cta, cluster, grid, launches };
// Where the part of W lies that `fragments` registers do not hold: nowhere (they hold all of it),
// in shared memory, or in global memory, streamed at every step.
enum class Residence : int32_t { registers, shared, global };

// What a step has beside its product: nothing, a leak, or, in an adjoint, a clip by values or by
// the norms of rows. A clip is compiled for a launch of each step alone, and by norms for two.
enum class Step : int32_t { plain, leaky, clipped, norm_clipped };

struct Plan {
  Math math;
  Exchange exchange;
  Residence residence;
  int32_t ctas;           // P: CTAs that share the units of one (group, batch tile); 1 for cta
  int32_t units;          // rows of W of one CTA: unit_quantum(); ctas * units >= H
  int32_t batch_tile;     // b: batch rows that one team of P CTAs carries
  int32_t threads;        // of a CTA, a multiple of 32 * k_splits
  int32_t k_splits;       // warps that share one output, summed in fixed order
  int32_t row_tiles;      // tiles of W, one above the other, of a warp; template argument
  int32_t fragments;      // pieces of W in a thread's registers (4 each); template argument; 0 for
                          // launches
  int32_t carry_columns;  // k of the carry in shared memory at once: carry_width(), or parts of it
                          // (grid, launches)
  Step step;
  int64_t shared_bytes;  // dynamic shared memory of a CTA
  int64_t teams;         // G * ceil(B / b); gridDim = teams * ctas, or fewer whole teams (grid)
  double step_us;        // predicted, of the model in plan.cpp
};

struct KernelArgs {
  Problem problem;  // batch_sizes and first_rows, where there are any, in device memory
  Plan plan;
  void* workspace;   // workspace_bytes(); the first workspace_zero_bytes() are zero at launch
  int64_t step = 0;  // launches: the step that this one computes
};

FUSED_BPTT_HOST_DEVICE constexpr int64_t round_up(int64_t n, int64_t to) {
  return (n + to - 1) / to * to;
}

// A product of tensor cores, or a plain one of multiply-adds?
FUSED_BPTT_HOST_DEVICE constexpr bool by_tensor_cores(Math math) {
  return math != Math::fp64 && math != Math::fp32;
}

// The carry and W are kept in the operand's type.
FUSED_BPTT_HOST_DEVICE constexpr int operand_bytes(Math math) {
  return math == Math::fp64 ? 8 : math == Math::bf16 || math == Math::fp16 ? 2 : 4;
}

FUSED_BPTT_HOST_DEVICE constexpr int sum_bytes(Math math) { return math == Math::fp64 ? 8 : 4; }

// A fragment is a tile of W that a warp holds in four registers a thread: 16 rows by 32 bytes of k
// for tensor cores, 32 rows (one a lane) by 16 bytes of k for multiply-adds.
FUSED_BPTT_HOST_DEVICE constexpr int tile_rows(Math math) {
  return by_tensor_cores(math) ? 16 : 32;
}
FUSED_BPTT_HOST_DEVICE constexpr int fragment_bytes_of_k(Math math) {
  return by_tensor_cores(math) ? 32 : 16;
}
FUSED_BPTT_HOST_DEVICE constexpr int fragment_depth(Math math) {
  return fragment_bytes_of_k(math) / operand_bytes(math);
}

// Launches: batch rows whose sums a warp keeps in registers along all of k, so that W is read once
// a step for so many rows. No batch tile is larger.
FUSED_BPTT_HOST_DEVICE constexpr int rows_of_launch(Math math) {
  return by_tensor_cores(math) ? 64 : 16;
}

// How often a walk's kernel is launched: for each step, and, in the adjoint, for the product after
// the last, or, with a leak, for the beginning of the first rows; without steps the initial state
// is still stored.
FUSED_BPTT_HOST_DEVICE constexpr int64_t launches(const Plan& plan, const Problem& problem) {
  const int64_t steps = problem.T + (problem.adjoint || plan.step == Step::leaky ? 1 : 0);
  return plan.exchange == Exchange::launches && problem.T > 0 ? steps : 1;
}

// Threads of the CTA that clips a row by its norm, which add its squares in shared memory.
constexpr int32_t kRowThreads = 128;
constexpr int64_t kRowSharedBytes = kRowThreads * sizeof(double);

FUSED_BPTT_HOST_DEVICE constexpr int32_t warps(const Plan& plan) { return plan.threads / 32; }

// Rows of W that the warps of a CTA cover: what `units` must be.
FUSED_BPTT_HOST_DEVICE constexpr int32_t unit_quantum(const Plan& plan) {
  return warps(plan) / plan.k_splits * plan.row_tiles * tile_rows(plan.math);
}

// k is padded so that every warp of a split has as many fragments.
FUSED_BPTT_HOST_DEVICE constexpr int64_t k_quantum(const Plan& plan) {
  return static_cast<int64_t>(fragment_depth(plan.math)) * plan.k_splits;
}
FUSED_BPTT_HOST_DEVICE constexpr int64_t carry_width(const Plan& plan, int64_t H) {
  return round_up(H, k_quantum(plan));
}

// Where the carry comes in parts, a part is a multiple of so many k_quantum(): the registers that
// the carry is loaded into in advance take turns, and each part begins with the first.
constexpr int kCarryAhead = 4;

// Fragments along k of one warp.
FUSED_BPTT_HOST_DEVICE constexpr int64_t fragments_of_k(const Plan& plan, int64_t H) {
  return carry_width(plan, H) / k_quantum(plan);
}
// Those of them that are in registers.
FUSED_BPTT_HOST_DEVICE constexpr int64_t registers_of_k(const Plan& plan) {
  return plan.fragments / plan.row_tiles;
}

// Bytes of W that a CTA keeps outside of its registers.
FUSED_BPTT_HOST_DEVICE constexpr int64_t rest_of_weights(const Plan& plan, int64_t H) {
  const int64_t rest = fragments_of_k(plan, H) - registers_of_k(plan);
  return rest > 0 ? rest * plan.row_tiles * plan.threads * 16 : 0;
}

// ---------------------------------------------------------------------------- shared memory

// A row of the carry, in bytes. Lanes that read a fragment's columns for tensor cores touch four
// rows at once, 32 bytes of each: rows that lie 32 bytes apart, modulo the banks, do not collide.
FUSED_BPTT_HOST_DEVICE constexpr int64_t carry_row_bytes(const Plan& plan) {
  return round_up(static_cast<int64_t>(plan.carry_columns) * operand_bytes(plan.math), 128) + 32;
}

// Tensor cores take the batch by eights.
FUSED_BPTT_HOST_DEVICE constexpr int64_t carry_rows(const Plan& plan) {
  return by_tensor_cores(plan.math) ? round_up(plan.batch_tile, 8) : plan.batch_tile;
}

FUSED_BPTT_HOST_DEVICE constexpr int64_t carry_buffer_bytes(const Plan& plan) {
  return carry_rows(plan) * carry_row_bytes(plan);
}

// A peer pushes into the one buffer while the other one is read. Alone, a CTA needs one.
FUSED_BPTT_HOST_DEVICE constexpr int carry_buffers(Exchange exchange) {
  return exchange == Exchange::cluster ? 2 : 1;
}

// Sums of one batch row: the lanes of a tensor core's result write to eight rows by four at a time,
// and 4 more than a multiple of 32 keeps them apart.
FUSED_BPTT_HOST_DEVICE constexpr int64_t sums_row(const Plan& plan) {
  return round_up(plan.units, 32) + 4;
}

// In this order: two mbarriers, carry, sums, W's rest.
FUSED_BPTT_HOST_DEVICE constexpr int64_t carry_offset() { return 128; }
FUSED_BPTT_HOST_DEVICE constexpr int64_t sums_offset(const Plan& plan) {
  return carry_offset() + carry_buffers(plan.exchange) * carry_buffer_bytes(plan);
}
FUSED_BPTT_HOST_DEVICE constexpr int64_t rest_offset(const Plan& plan) {
  return round_up(
      sums_offset(plan) + plan.k_splits * carry_rows(plan) * sums_row(plan) * sum_bytes(plan.math),
      128);
}
FUSED_BPTT_HOST_DEVICE constexpr int64_t shared_bytes(const Plan& plan, int64_t H) {
  return rest_offset(plan) + (plan.residence == Residence::shared ? rest_of_weights(plan, H) : 0);
}

// -------------------------------------------------------------------------------- workspace

// Grid: a flag for each CTA of each team, which counts the carries whose slice it has made visible.
// Grid and launches: the carry, twice, for each team. Always: W by fragments for each CTA of each
// group. A number for each unit of each row, in the type of sums: with a leak what it keeps, with a
// clip by norm its sum. In this order.
FUSED_BPTT_HOST_DEVICE constexpr int64_t workspace_zero_bytes(const Plan& plan) {
  return plan.exchange == Exchange::grid ? round_up(plan.teams * plan.ctas * 8, 128) : 0;
}
FUSED_BPTT_HOST_DEVICE constexpr int64_t global_carry_row_bytes(const Plan& plan, int64_t H) {
  return round_up(H * operand_bytes(plan.math), 16);
}
FUSED_BPTT_HOST_DEVICE constexpr int64_t global_carry_bytes(const Plan& plan, int64_t H) {
  return plan.batch_tile * global_carry_row_bytes(plan, H);
}
FUSED_BPTT_HOST_DEVICE constexpr int64_t packed_offset(const Plan& plan, int64_t H) {
  const bool global = plan.exchange == Exchange::grid || plan.exchange == Exchange::launches;
  const int64_t carry = global ? 2 * plan.teams * global_carry_bytes(plan, H) : 0;
  return round_up(workspace_zero_bytes(plan) + carry, 128);
}
FUSED_BPTT_HOST_DEVICE constexpr int64_t packed_bytes_of_cta(const Plan& plan, int64_t H) {
  return fragments_of_k(plan, H) * plan.row_tiles * plan.threads * 16;
}
FUSED_BPTT_HOST_DEVICE constexpr int64_t memory_offset(const Plan& plan, int64_t H, int64_t G) {
  return packed_offset(plan, H) + G * plan.ctas * packed_bytes_of_cta(plan, H);
}
FUSED_BPTT_HOST_DEVICE constexpr int64_t memory_row(const Plan& plan) {
  return static_cast<int64_t>(plan.ctas) * plan.units;
}
FUSED_BPTT_HOST_DEVICE constexpr int64_t workspace_bytes(const Plan& plan, int64_t H, int64_t G) {
  const bool remembers = plan.step == Step::leaky || plan.step == Step::norm_clipped;
  const int64_t rows = remembers ? plan.teams * plan.batch_tile : 0;
  return memory_offset(plan, H, G) + rows * memory_row(plan) * sum_bytes(plan.math);
}
// CTAs of pack_kernel: one for each fragment of every warp of a CTA.
FUSED_BPTT_HOST_DEVICE constexpr int64_t pack_blocks(const Plan& plan, int64_t H, int64_t G) {
  return G * plan.ctas * fragments_of_k(plan, H) * plan.row_tiles;
}

}  // namespace fused_bptt
