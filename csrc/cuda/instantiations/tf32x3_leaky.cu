#include "../instantiate_leaky.cuh"

namespace fused_bptt {

const void* kernel_tf32x3_leaky(int32_t row_tiles) {
  return leaky_kernel_of<Math::tf32x3>(row_tiles);
}

}  // namespace fused_bptt
