#include "../instantiate_clipped.cuh"

namespace fused_bptt {

const void* kernel_tf32_clipped(int32_t row_tiles) {
  return clipped_kernel_of<Math::tf32>(row_tiles);
}

}  // namespace fused_bptt
