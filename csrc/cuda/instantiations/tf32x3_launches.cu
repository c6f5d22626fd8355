#include "../instantiate.cuh"

namespace fused_bptt {

const void* kernel_tf32x3_launches(Primitive primitive, int32_t row_tiles) {
  return step_kernel_of<Math::tf32x3>(primitive, row_tiles);
}

}  // namespace fused_bptt
