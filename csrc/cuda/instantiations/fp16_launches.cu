#include "../instantiate.cuh"

namespace fused_bptt {

const void* kernel_fp16_launches(Primitive primitive, int32_t row_tiles) {
  return step_kernel_of<Math::fp16>(primitive, row_tiles);
}

}  // namespace fused_bptt
