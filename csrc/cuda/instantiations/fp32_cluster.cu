#include "../instantiate.cuh"

namespace fused_bptt {

const void* kernel_fp32_cluster(Primitive primitive, int32_t row_tiles) {
  return kernel_of<Math::fp32, ExchangeCluster>(primitive, row_tiles);
}

}  // namespace fused_bptt
