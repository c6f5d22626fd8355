#include "../instantiate_leaky.cuh"

namespace fused_bptt {

const void* kernel_fp32_leaky(int32_t row_tiles) { return leaky_kernel_of<Math::fp32>(row_tiles); }

}  // namespace fused_bptt
