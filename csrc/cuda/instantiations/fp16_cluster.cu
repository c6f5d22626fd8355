#include "../instantiate.cuh"

namespace fused_bptt {

const void* kernel_fp16_cluster(Primitive primitive, int32_t row_tiles) {
  return kernel_of<Math::fp16, ExchangeCluster>(primitive, row_tiles);
}

}  // namespace fused_bptt
