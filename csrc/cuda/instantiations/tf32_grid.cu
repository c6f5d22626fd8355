#include "../instantiate.cuh"

namespace fused_bptt {

const void* kernel_tf32_grid(Primitive primitive, int32_t row_tiles) {
  return kernel_of<Math::tf32, ExchangeGrid>(primitive, row_tiles);
}

}  // namespace fused_bptt
