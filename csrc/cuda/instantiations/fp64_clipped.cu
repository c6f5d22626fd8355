#include "../instantiate_step.cuh"

namespace fused_bptt {

const void* kernel_fp64_clipped(int32_t row_tiles) {
  return special_step_of<Math::fp64, Step::clipped>(row_tiles);
}

}  // namespace fused_bptt
