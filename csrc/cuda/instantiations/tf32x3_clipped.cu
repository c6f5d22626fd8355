#include "../instantiate_step.cuh"

namespace fused_bptt {

const void* kernel_tf32x3_clipped(int32_t row_tiles) {
  return special_step_of<Math::tf32x3, Step::clipped>(row_tiles);
}

}  // namespace fused_bptt
