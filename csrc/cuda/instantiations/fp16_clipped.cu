#include "../instantiate_step.cuh"

namespace fused_bptt {

const void* kernel_fp16_clipped(int32_t row_tiles) {
  return special_step_of<Math::fp16, Step::clipped>(row_tiles);
}

}  // namespace fused_bptt
