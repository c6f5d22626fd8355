#include "../instantiate.cuh"

namespace fused_bptt {

const void* kernel_tf32_cta(Primitive primitive, int32_t row_tiles) {
  return kernel_of<Math::tf32, ExchangeCta>(primitive, row_tiles);
}

const void* pack_tf32(int32_t row_tiles) { return pack_of<Math::tf32>(row_tiles); }

}  // namespace fused_bptt
