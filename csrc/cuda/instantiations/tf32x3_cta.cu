#include "../instantiate.cuh"

namespace fused_bptt {

const void* kernel_tf32x3_cta(Primitive primitive, int32_t row_tiles) {
  return kernel_of<Math::tf32x3, ExchangeCta>(primitive, row_tiles);
}

const void* pack_tf32x3(int32_t row_tiles) { return pack_of<Math::tf32x3>(row_tiles); }

}  // namespace fused_bptt
