// Clusters: sizes that divide nothing, both primitives, packed rows, every way to multiply.
#include "run.h"

using namespace emulation;

namespace {

constexpr auto kCluster = fused_bptt::Exchange::cluster;

void cases() {
  const Cut three{.exchange = kCluster, .ctas = 3, .k_splits = 2, .batch_tile = 3};
  run_linear<Math::fp64, 1, 32, ExchangeCluster>("fp64", three, {.T = 5, .B = 4, .H = 70});
  run_recurrence<Math::fp64, 1, 32, ExchangeCluster>("fp64", three, {.T = 6, .B = 3, .H = 65});
  Cut two{.exchange = kCluster, .ctas = 2, .batch_tile = 4};
  Shape packed = kPacked;
  packed.H = 33;
  run_linear<Math::fp64, 1, 32, ExchangeCluster>("fp64 packed", two, packed);
  run_recurrence<Math::fp64, 1, 32, ExchangeCluster>("fp64 packed", two, packed);
  run_linear<Math::fp64, 1, 32, ExchangeCluster>("fp64 one step", two, {.T = 1, .B = 1, .H = 33});
  run_linear<Math::fp64, 1, 32, ExchangeCluster>("fp64 no steps", two, {.T = 0, .B = 2, .H = 33});

  const Shape two_ways{.T = 7, .B = 5, .G = 2, .H = 61, .reverse_groups = 1};
  two.batch_tile = 3;
  run_cuts<Math::fp64, 1, 32, ExchangeCluster>("fp64 cut", two, two_ways);
  run_cuts<Math::fp64, 1, 32, ExchangeCluster>("fp64 packed, cut", two, packed);
  run_cuts<Math::fp32, 1, 16, ExchangeCluster>("fp32 cut", two, two_ways);
  two.ctas = 4, two.batch_tile = 8;
  run_cuts<Math::tf32, 1, 8, ExchangeCluster>("tf32 cut", two, two_ways);
  run_cuts<Math::tf32x3, 1, 8, ExchangeCluster>("tf32x3 cut", two, two_ways);
  run_cuts<Math::bf16, 1, 8, ExchangeCluster>("bf16 cut", two, two_ways);
  run_cuts<Math::fp16, 1, 8, ExchangeCluster>("fp16 cut", two, two_ways);
  two.ctas = 3;
  run_cuts<Math::bf16, 1, 8, ExchangeCluster>("bf16 packed, cut", two, packed);

  run_linear<Math::fp32, 1, 16, ExchangeCluster>("fp32", {.exchange = kCluster, .ctas = 2},
                                                 {.T = 4, .B = 5, .H = 61});
  run_linear<Math::tf32, 1, 8, ExchangeCluster>(
      "tf32", {.exchange = kCluster, .ctas = 4, .k_splits = 2}, {.T = 3, .B = 9, .H = 61});
  run_linear<Math::tf32x3, 1, 8, ExchangeCluster>("tf32x3", {.exchange = kCluster, .ctas = 3},
                                                  {.T = 3, .B = 2, .H = 41});
  run_recurrence<Math::bf16, 1, 8, ExchangeCluster>(
      "bf16", {.exchange = kCluster, .ctas = 3, .batch_tile = 11}, {.T = 5, .B = 11, .H = 45});
  packed.H = 29;
  run_linear<Math::bf16, 1, 8, ExchangeCluster>(
      "bf16 packed", {.exchange = kCluster, .ctas = 2, .batch_tile = 7}, packed);
  run_linear<Math::fp16, 2, 8, ExchangeCluster>("fp16", {.exchange = kCluster, .ctas = 2},
                                                {.T = 4, .B = 3, .H = 63});
  run<Math::fp16, 2, 8, ExchangeCluster, Primitive::linear>(
      "fp16 sixteen", {.exchange = kCluster, .residence = Residence::shared, .ctas = 16},
      {.T = 3, .B = 2, .H = 500}, {.adjoint = true});
}

}  // namespace

int main(int argc, char** argv) { return main_of(argc, argv, cases); }
