// A walk with a leak in clusters: every primitive, every way to multiply, whatever cuts a walk.
#include "run.h"

using namespace emulation;

namespace {

constexpr auto kCluster = fused_bptt::Exchange::cluster;

void cases() {
  const Cut three{.exchange = kCluster, .ctas = 3, .k_splits = 2, .batch_tile = 3};
  Cut two{.exchange = kCluster, .ctas = 2, .batch_tile = 4};
  Shape packed = kPacked;
  packed.H = 33;
  const Shape two_ways{.T = 5, .B = 5, .G = 2, .H = 61, .reverse_groups = 1};
  run_leaky<Math::fp64, 1, 32, ExchangeCluster>("fp64", three, {.T = 5, .B = 4, .G = 2, .H = 70});
  run_leaky<Math::fp64, 1, 32, ExchangeCluster>("fp64 packed", two, packed);
  run_leaky<Math::fp64, 1, 32, ExchangeCluster>("fp64 one step", two, {.T = 1, .B = 1, .H = 33});
  run_leaky<Math::fp64, 1, 32, ExchangeCluster>("fp64 two steps", two, {.T = 2, .B = 1, .H = 33});
  run_leaky<Math::fp64, 1, 32, ExchangeCluster>("fp64 no steps", two, {.T = 0, .B = 2, .H = 33});
  two.batch_tile = 3;
  run_leaky<Math::fp32, 1, 16, ExchangeCluster>("fp32", two, two_ways);
  two.ctas = 4, two.batch_tile = 8;
  run_leaky<Math::tf32, 1, 8, ExchangeCluster>("tf32", two, two_ways);
  run_leaky<Math::tf32x3, 1, 8, ExchangeCluster>("tf32x3", two, two_ways);
  run_leaky<Math::bf16, 1, 8, ExchangeCluster>("bf16", two, two_ways);
  run_leaky<Math::fp16, 1, 8, ExchangeCluster>("fp16", two, two_ways);
  two.ctas = 3;
  run_leaky<Math::bf16, 1, 8, ExchangeCluster>("bf16 packed", two, packed);
}

}  // namespace

int main(int argc, char** argv) { return main_of(argc, argv, cases); }
