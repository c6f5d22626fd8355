#include "../instantiate_step.cuh"

namespace fused_bptt {

const void* kernel_fp64_clipped(int32_t row_tiles) {
  return special_step_of<Math::fp64, Step::clipped>(row_tiles);
}

const void* kernel_fp64_norm_clipped(int32_t row_tiles) {
  return special_step_of<Math::fp64, Step::norm_clipped>(row_tiles);
}

const void* clip_fp64() { return clip_of<Math::fp64>(); }

}  // namespace fused_bptt
