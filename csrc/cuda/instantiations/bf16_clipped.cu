#include "../instantiate_step.cuh"

namespace fused_bptt {

const void* kernel_bf16_clipped(int32_t row_tiles) {
  return special_step_of<Math::bf16, Step::clipped>(row_tiles);
}

const void* kernel_bf16_norm_clipped(int32_t row_tiles) {
  return special_step_of<Math::bf16, Step::norm_clipped>(row_tiles);
}

const void* clip_bf16() { return clip_of<Math::bf16>(); }

}  // namespace fused_bptt
