// A few cases of clusters, for the sanitizer and for planted faults.
#include "run.h"

using namespace emulation;

namespace {

constexpr auto kCluster = fused_bptt::Exchange::cluster;

void cases() {
  for (const bool adjoint : {false, true}) {
    run<Math::fp32, 1, 32, ExchangeCluster, Primitive::linear>(
        "fp32", {.exchange = kCluster, .ctas = 3, .batch_tile = 3}, {.T = 7, .B = 3, .H = 70},
        {.phi = Phi::given, .adjoint = adjoint});
    Shape packed = kPacked;
    packed.H = 37;
    run<Math::fp32, 1, 32, ExchangeCluster, Primitive::linear>(
        "fp32 packed", {.exchange = kCluster, .ctas = 2, .k_splits = 2, .batch_tile = 6}, packed,
        {.phi = Phi::given, .adjoint = adjoint});
  }
  // Tensor cores write the sums of eight rows, of which some have ended and are still being read.
  Shape packed = kPacked;
  packed.H = 31;
  run<Math::bf16, 1, 8, ExchangeCluster, Primitive::linear>(
      "bf16 packed", {.exchange = kCluster, .ctas = 2, .k_splits = 2}, packed, {.adjoint = true});
  const Shape two_ways{.T = 6, .B = 7, .G = 2, .H = 37, .reverse_groups = 1};
  run_cuts<Math::fp32, 1, 32, ExchangeCluster>("fp32 cut", {.exchange = kCluster, .ctas = 2, .batch_tile = 6}, two_ways);
  Shape leaving = kPacked;
  leaving.H = 37;
  run_cuts<Math::fp32, 1, 32, ExchangeCluster>("fp32 packed, cut", {.exchange = kCluster, .ctas = 2, .batch_tile = 6}, leaving);
}

}  // namespace

int main(int argc, char** argv) { return main_of(argc, argv, cases); }
