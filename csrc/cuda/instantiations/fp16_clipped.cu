#include "../instantiate_step.cuh"

namespace fused_bptt {

const void* kernel_fp16_clipped(int32_t row_tiles) {
  return special_step_of<Math::fp16, Step::clipped>(row_tiles);
}

const void* kernel_fp16_norm_clipped(int32_t row_tiles) {
  return special_step_of<Math::fp16, Step::norm_clipped>(row_tiles);
}

const void* clip_fp16() { return clip_of<Math::fp16>(); }

}  // namespace fused_bptt
