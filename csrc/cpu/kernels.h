// What an instruction set offers to the engine: one table of functions for each.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../problem.h"
#include "schedule.h"
#include "team.h"

namespace fused_bptt {

// One call's working memory and meeting points, shared by its threads.
struct Workspace {
  std::byte* weights;  // [G][panels of H * vectors * lanes] in the compute type
  // [G][2][B][carry_stride] in the compute type; with a leak 3, the last one memory.
  std::byte* carry;
  int64_t carry_stride;
  std::byte* products;  // a layer's packed input weights, bias, q and panels
  Barrier* everyone;
  Barrier* teams;  // one a team
};

struct Kernels {
  const char* name;
  Machine machine32;  // computing in float: float32, bfloat16, float16
  Machine machine64;  // computing in double
  // The share of thread `rank` of `size` in the whole problem.
  void (*walk)(const Problem&, const Schedule&, const Workspace&, int32_t rank, int32_t size);
  // The same for a layer; float32 and float64.
  void (*layer)(const Layer&, const LayerSchedule&, const Workspace&, int32_t rank, int32_t size);
  // Rows [begin, end).
  void (*normal)(const Normal&, int64_t begin, int64_t end);
  void (*flags)(const Flags&, int64_t begin, int64_t end);
};

inline const Machine& machine_of(const Kernels& kernels, Type type) {
  return type == Type::float64 ? kernels.machine64 : kernels.machine32;
}

inline int64_t compute_bytes(Type type) { return type == Type::float64 ? 8 : 4; }

extern const Kernels kernels_baseline;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#elif defined(__aarch64__)
extern const Kernels kernels_neon;
#endif

}  // namespace fused_bptt
