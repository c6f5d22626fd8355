#include "../instantiate.cuh"

namespace fused_bptt {

const void* kernel_bf16_cta(Primitive primitive, int32_t row_tiles) {
  return kernel_of<Math::bf16, ExchangeCta>(primitive, row_tiles);
}

const void* pack_bf16(int32_t row_tiles) { return pack_of<Math::bf16>(row_tiles); }

}  // namespace fused_bptt
