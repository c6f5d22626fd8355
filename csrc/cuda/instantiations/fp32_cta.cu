#include "../instantiate.cuh"

namespace fused_bptt {

const void* kernel_fp32_cta(Primitive primitive, int32_t row_tiles) {
  return kernel_of<Math::fp32, ExchangeCta>(primitive, row_tiles);
}

const void* pack_fp32(int32_t row_tiles) { return pack_of<Math::fp32>(row_tiles); }

}  // namespace fused_bptt
