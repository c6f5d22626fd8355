#include "../instantiate_clipped.cuh"

namespace fused_bptt {

const void* kernel_fp16_clipped(int32_t row_tiles) {
  return clipped_kernel_of<Math::fp16>(row_tiles);
}

}  // namespace fused_bptt
