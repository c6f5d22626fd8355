#include "../instantiate.cuh"

namespace fused_bptt {

const void* kernel_fp32_launches(Primitive primitive, int32_t row_tiles) {
  return step_kernel_of<Math::fp32>(primitive, row_tiles);
}

}  // namespace fused_bptt
