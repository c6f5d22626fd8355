#include "../instantiate.cuh"

namespace fused_bptt {

const void* kernel_fp16_cta(Primitive primitive, int32_t row_tiles) {
  return kernel_of<Math::fp16, ExchangeCta>(primitive, row_tiles);
}

const void* pack_fp16(int32_t row_tiles) { return pack_of<Math::fp16>(row_tiles); }

}  // namespace fused_bptt
