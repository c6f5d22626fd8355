// A few cases of the grid exchange, for the sanitizer and for planted faults.
#include "run.h"

using namespace emulation;

namespace {

constexpr auto kGrid = fused_bptt::Exchange::grid;

void cases() {
  for (const bool adjoint : {false, true}) {
    run<Math::fp32, 1, 32, ExchangeGrid, Primitive::linear>(
        "fp32", {.exchange = kGrid, .ctas = 3, .batch_tile = 3}, {.T = 7, .B = 3, .H = 70},
        {.phi = Phi::given, .adjoint = adjoint});
    Shape packed = kPacked;
    packed.H = 37;
    run<Math::fp32, 1, 32, ExchangeGrid, Primitive::linear>(
        "fp32 packed, in waves",
        {.exchange = kGrid, .ctas = 2, .k_splits = 2, .batch_tile = 6, .resident_teams = 1}, packed,
        {.phi = Phi::given, .adjoint = adjoint});
  }
  run<Math::bf16, 1, 2, ExchangeGrid, Primitive::linear>("bf16 streamed, in parts",
                                                         {.exchange = kGrid,
                                                          .residence = Residence::global,
                                                          .ctas = 3,
                                                          .row_warps = 2,
                                                          .carry_quanta = 4},
                                                         {.T = 3, .B = 3, .H = 81},
                                                         {.adjoint = true});
  const Shape two_ways{.T = 6, .B = 7, .G = 2, .H = 37, .reverse_groups = 1};
  run_cuts<Math::fp32, 1, 32, ExchangeGrid>("fp32 cut", {.exchange = kGrid, .ctas = 2, .batch_tile = 6, .resident_teams = 1}, two_ways);
  Shape leaving = kPacked;
  leaving.H = 37;
  run_cuts<Math::fp32, 1, 32, ExchangeGrid>("fp32 packed, cut", {.exchange = kGrid, .ctas = 2, .batch_tile = 6, .resident_teams = 1}, leaving);
}

}  // namespace

int main(int argc, char** argv) { return main_of(argc, argv, cases); }
