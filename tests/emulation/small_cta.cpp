// A few cases of one CTA, for the sanitizer and for planted faults.
#include "run.h"

using namespace emulation;

namespace {

void cases() {
  for (const bool adjoint : {false, true}) {
    run<Math::fp32, 1, 16, ExchangeCta, Primitive::linear>(
        "fp32", {.row_warps = 2, .k_splits = 2, .batch_tile = 5}, {.T = 4, .B = 7, .H = 43},
        {.phi = Phi::given, .adjoint = adjoint});
    run<Math::fp32, 1, 16, ExchangeCta, Primitive::linear>(
        "fp32 packed", {.row_warps = 1, .k_splits = 2, .batch_tile = 4}, kPacked,
        {.phi = Phi::given, .adjoint = adjoint});
  }
  run<Math::bf16, 1, 2, ExchangeCta, Primitive::linear>(
      "bf16 shared", {.residence = Residence::shared, .row_warps = 4}, {.T = 3, .B = 9, .H = 61},
      {.adjoint = true});
  const Shape two_ways{.T = 6, .B = 7, .G = 2, .H = 13, .reverse_groups = 1};
  run_cuts<Math::fp32, 1, 16, ExchangeCta>("fp32 cut", {.row_warps = 1, .k_splits = 2, .batch_tile = 4}, two_ways);
  Shape leaving = kPacked;
  leaving.H = 13;
  run_cuts<Math::fp32, 1, 16, ExchangeCta>("fp32 packed, cut", {.row_warps = 1, .k_splits = 2, .batch_tile = 4}, leaving);
}

}  // namespace

int main(int argc, char** argv) { return main_of(argc, argv, cases); }
