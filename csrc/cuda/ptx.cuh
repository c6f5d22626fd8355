// Instructions that CUDA C++ has no word for. The only file with asm. Each function has the name
// of its instruction, and a link to it in the PTX manual:
// https://docs.nvidia.com/cuda/parallel-thread-execution/
//
// tests/emulation/emulation.h has the same functions for the host.
#pragma once

#include "device.cuh"

#if !defined(FUSED_BPTT_EMULATION)

namespace fused_bptt::ptx {

// No instruction: x, as a number that the compiler knows nothing of. So what is computed of it is
// not computed once before the time loop, in registers that W needs.
template <class T>
FUSED_BPTT_DEVICE T unforeseen(T x) {
  if constexpr (sizeof(T) == 8) {
    asm volatile("" : "+l"(x));
  } else {
    asm volatile("" : "+r"(x));
  }
  return x;
}

// ------------------------------------------------------------------------------ tensor cores
// #warp-level-matrix-fragment-mma-16816-float and #...-1688. D = A B + D, fp32 sums. With r = lane
// / 4 and q = lane % 4, words: a[0] row r, a[1] row r + 8, both of the lower k; a[2] and a[3] the
// same rows of the upper k; b[0] lower k, b[1] upper k of column r; d[0], d[1] row r, columns 2q
// and 2q + 1, d[2], d[3] row r + 8. A word of the lower k is k = 2q and 2q + 1 (16 bits) or q
// (tf32), of the upper one 8 (or 4) more.

FUSED_BPTT_DEVICE void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
  static_assert(sizeof(a) == 16 && sizeof(b) == 8 && sizeof(d) == 16);
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

FUSED_BPTT_DEVICE void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
  static_assert(sizeof(a) == 16 && sizeof(b) == 8 && sizeof(d) == 16);
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

FUSED_BPTT_DEVICE void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
  static_assert(sizeof(a) == 16 && sizeof(b) == 8 && sizeof(d) == 16);
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// #data-movement-and-conversion-instructions-cvt. Nearest, ties away from zero.
FUSED_BPTT_DEVICE uint32_t cvt_rna_tf32_f32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// ------------------------------------------------------------------------- flags in global memory
// #data-movement-and-conversion-instructions-ld, -st; #memory-consistency-model. What was written
// before the release, by this thread or by one that it has met at a barrier, is seen after the
// acquire that reads the flag.

FUSED_BPTT_DEVICE uint64_t ld_acquire_gpu(const uint64_t* flag) {
  uint64_t value;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(flag) : "memory");
  return value;
}

FUSED_BPTT_DEVICE void st_release_gpu(uint64_t* flag, uint64_t value) {
  asm volatile("st.release.gpu.global.u64 [%0], %1;" : : "l"(flag), "l"(value) : "memory");
}

// #data-movement-and-conversion-instructions-prefetch-prefetchu. A hint.
FUSED_BPTT_DEVICE void prefetch_global_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" : : "l"(address));
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// ----------------------------------------------------------------------------------- clusters
// An address in the shared memory of a CTA of the cluster.
using ClusterAddress = uint32_t;

FUSED_BPTT_DEVICE uint32_t shared_address(const void* local) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(local));
}

// #data-movement-and-conversion-instructions-mapa. The place of `local` in the CTA of that rank.
FUSED_BPTT_DEVICE ClusterAddress mapa(const void* local, uint32_t rank) {
  ClusterAddress address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(shared_address(local)), "r"(rank));
  return address;
}

// #parallel-synchronization-and-communication-instructions-barrier-cluster. Every thread of the
// cluster; what was written before it is seen after it.
FUSED_BPTT_DEVICE void barrier_cluster() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;" ::
          : "memory");
}

// #parallel-synchronization-and-communication-instructions-mbarrier. A phase is complete when its
// arrivals have come and as many bytes as were expected.
FUSED_BPTT_DEVICE void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
               :
               : "r"(shared_address(barrier)), "r"(arrivals)
               : "memory");
}

// After mbarrier_init and before barrier_cluster: the peers, and what they push, see the barrier
// made. #parallel-synchronization-and-communication-instructions-membar
FUSED_BPTT_DEVICE void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

FUSED_BPTT_DEVICE void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;"
               :
               : "r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Waits for the end of the phase of that parity; then what was pushed in it can be read.
FUSED_BPTT_DEVICE void mbarrier_wait_parity(uint64_t* barrier, uint32_t parity) {
  const uint32_t address = shared_address(barrier);
  uint32_t done = 0;
  while (!done) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n"
        "selp.u32 %0, 1, 0, done;\n"
        "}"
        : "=r"(done)
        : "r"(address), "r"(parity)
        : "memory");
  }
}

// #data-movement-and-conversion-instructions-st-async. Stores into a peer's shared memory and tells
// the barrier there how many bytes have come. `barrier` is in the CTA of `to`.
FUSED_BPTT_DEVICE void st_async(ClusterAddress to, uint32_t value, ClusterAddress barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];"
               :
               : "r"(to), "r"(value), "r"(barrier)
               : "memory");
}

FUSED_BPTT_DEVICE void st_async(ClusterAddress to, uint64_t value, ClusterAddress barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u64 [%0], %1, [%2];"
               :
               : "r"(to), "l"(value), "r"(barrier)
               : "memory");
}

#endif

}  // namespace fused_bptt::ptx

#endif
