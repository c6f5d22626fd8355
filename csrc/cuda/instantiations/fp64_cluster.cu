#include "../instantiate.cuh"

namespace fused_bptt {

const void* kernel_fp64_cluster(Primitive primitive, int32_t row_tiles) {
  return kernel_of<Math::fp64, ExchangeCluster>(primitive, row_tiles);
}

}  // namespace fused_bptt
