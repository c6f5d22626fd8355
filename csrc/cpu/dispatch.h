// The CPU engine's front: chooses the instruction set, the schedule and the threads, and runs.
#pragma once

#include <cstdint>
#include <vector>

#include "../problem.h"
#include "kernels.h"

namespace fused_bptt {

// Runs f(begin, end, context) over [0, n), in parallel as far as the caller's threads allow.
using ParallelFor = void (*)(int64_t n, void (*f)(int64_t, int64_t, void*), void* context);

// The instruction sets compiled in, and those of them that this machine has; best last.
std::vector<const Kernels*> compiled_kernels();
std::vector<const Kernels*> supported_kernels();

// The one in use: the best supported, or the one that FUSED_BPTT_CPU names. Throws
// std::runtime_error, which says what was expected, when it names another.
const Kernels& active_kernels();

// Solves the problem, with as many of `available` threads as are worth waking.
void run(const Kernels& kernels, const Problem& problem, int32_t available,
         ParallelFor parallel_for);

void run(const Kernels& kernels, const Layer& layer, int32_t available, ParallelFor parallel_for);

// The same with exactly so many threads, at least one, as far as they come.
void run_with(const Kernels& kernels, const Problem& problem, int32_t threads,
              ParallelFor parallel_for);
void run_with(const Kernels& kernels, const Layer& layer, int32_t threads,
              ParallelFor parallel_for);

}  // namespace fused_bptt
