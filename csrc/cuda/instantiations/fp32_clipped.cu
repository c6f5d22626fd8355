#include "../instantiate_step.cuh"

namespace fused_bptt {

const void* kernel_fp32_clipped(int32_t row_tiles) {
  return special_step_of<Math::fp32, Step::clipped>(row_tiles);
}

const void* kernel_fp32_norm_clipped(int32_t row_tiles) {
  return special_step_of<Math::fp32, Step::norm_clipped>(row_tiles);
}

const void* clip_fp32() { return clip_of<Math::fp32>(); }

}  // namespace fused_bptt
