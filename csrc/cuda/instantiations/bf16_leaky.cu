#include "../instantiate_step.cuh"

namespace fused_bptt {

const void* kernel_bf16_leaky(int32_t row_tiles) {
  return special_step_of<Math::bf16, Step::leaky>(row_tiles);
}

}  // namespace fused_bptt
