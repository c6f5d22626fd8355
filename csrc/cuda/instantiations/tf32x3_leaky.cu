#include "../instantiate_step.cuh"

namespace fused_bptt {

const void* kernel_tf32x3_leaky(int32_t row_tiles) {
  return special_step_of<Math::tf32x3, Step::leaky>(row_tiles);
}

}  // namespace fused_bptt
