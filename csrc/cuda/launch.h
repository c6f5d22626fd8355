// From a problem to kernels on a stream. No Torch.
#pragma once

#include <cstdint>
#include <string>

#include "kernel_args.h"
#include "plan.h"

namespace fused_bptt {

// The limits of device `index`, asked for once. Throws std::runtime_error.
const DeviceLimits& device_limits(int32_t index);

// The cheapest plan for `problem` on device `index`, remembered; of those that the environment
// variable FUSED_BPTT_CUDA_PLAN allows (see only_of), if it is set. Throws std::runtime_error where
// there is none.
Plan plan_for(const Problem& problem, Float32 float32, int32_t index);

// batch_sizes and first_rows [T each], in host memory, to `tables` [2, T] in device memory. They
// travel as arguments of kernels: nothing waits, and a captured graph holds a copy.
void copy_tables(const Problem& problem, int64_t* tables, void* stream);

// The walk, in order on `stream` of the current device. Every pointer of `args` is one to memory
// of that device. Throws std::runtime_error.
void launch(const KernelArgs& args, const DeviceLimits& limits, void* stream);

}  // namespace fused_bptt
