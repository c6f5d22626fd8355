#include "../instantiate.cuh"

namespace fused_bptt {

const void* kernel_tf32_cluster(Primitive primitive, int32_t row_tiles) {
  return kernel_of<Math::tf32, ExchangeCluster>(primitive, row_tiles);
}

}  // namespace fused_bptt
