#include "../instantiate_clipped.cuh"

namespace fused_bptt {

const void* kernel_fp32_clipped(int32_t row_tiles) {
  return clipped_kernel_of<Math::fp32>(row_tiles);
}

}  // namespace fused_bptt
