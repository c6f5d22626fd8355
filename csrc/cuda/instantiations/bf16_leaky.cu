#include "../instantiate_leaky.cuh"

namespace fused_bptt {

const void* kernel_bf16_leaky(int32_t row_tiles) { return leaky_kernel_of<Math::bf16>(row_tiles); }

}  // namespace fused_bptt
