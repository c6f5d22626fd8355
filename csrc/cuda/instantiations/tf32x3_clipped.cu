#include "../instantiate_step.cuh"

namespace fused_bptt {

const void* kernel_tf32x3_clipped(int32_t row_tiles) {
  return special_step_of<Math::tf32x3, Step::clipped>(row_tiles);
}

const void* kernel_tf32x3_norm_clipped(int32_t row_tiles) {
  return special_step_of<Math::tf32x3, Step::norm_clipped>(row_tiles);
}

const void* clip_tf32x3() { return clip_of<Math::tf32x3>(); }

}  // namespace fused_bptt
