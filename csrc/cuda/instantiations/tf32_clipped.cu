#include "../instantiate_step.cuh"

namespace fused_bptt {

const void* kernel_tf32_clipped(int32_t row_tiles) {
  return special_step_of<Math::tf32, Step::clipped>(row_tiles);
}

const void* kernel_tf32_norm_clipped(int32_t row_tiles) {
  return special_step_of<Math::tf32, Step::norm_clipped>(row_tiles);
}

const void* clip_tf32() { return clip_of<Math::tf32>(); }

}  // namespace fused_bptt
