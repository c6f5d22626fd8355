#include "../instantiate_leaky.cuh"

namespace fused_bptt {

const void* kernel_fp64_leaky(int32_t row_tiles) { return leaky_kernel_of<Math::fp64>(row_tiles); }

}  // namespace fused_bptt
