// CTAs that meet in global memory: waves of teams, the carry in parts, W streamed.
#include "run.h"

using namespace emulation;

namespace {

constexpr auto kGrid = fused_bptt::Exchange::grid;

void cases() {
  const Cut three{.exchange = kGrid, .ctas = 3, .k_splits = 2, .batch_tile = 2};
  run_linear<Math::fp64, 1, 32, ExchangeGrid>("fp64", three, {.T = 5, .B = 3, .H = 70});
  run_recurrence<Math::fp64, 1, 32, ExchangeGrid>("fp64", three, {.T = 6, .B = 2, .H = 65});
  Shape packed = kPacked;
  packed.H = 33;
  Cut waves{.exchange = kGrid, .ctas = 2, .batch_tile = 4, .resident_teams = 2};
  run_linear<Math::fp64, 1, 32, ExchangeGrid>("fp64 packed, in waves", waves, packed);
  run_recurrence<Math::fp64, 1, 32, ExchangeGrid>("fp64 packed, in waves", waves, packed);
  run_linear<Math::fp64, 1, 32, ExchangeGrid>("fp64 no steps", waves, {.T = 0, .B = 6, .H = 33});
  Cut parts{.exchange = kGrid,
            .residence = Residence::global,
            .ctas = 2,
            .k_splits = 2,
            .batch_tile = 3,
            .carry_quanta = 4};
  run_linear<Math::fp64, 1, 8, ExchangeGrid>(
      "fp64 streamed, in parts", parts, {.T = 3, .B = 3, .G = 2, .H = 59, .reverse_groups = 1});

  const Shape two_ways{.T = 7, .B = 5, .G = 2, .H = 61, .reverse_groups = 1};
  waves.batch_tile = 3;
  run_cuts<Math::fp64, 1, 32, ExchangeGrid>("fp64 cut, in waves", waves, two_ways);
  run_cuts<Math::fp64, 1, 32, ExchangeGrid>("fp64 packed, cut", waves, packed);
  run_cuts<Math::fp64, 1, 8, ExchangeGrid>("fp64 cut, in parts", parts, two_ways);
  run_cuts<Math::fp32, 1, 16, ExchangeGrid>("fp32 cut", waves, two_ways);
  waves.ctas = 4, waves.batch_tile = 8;
  run_cuts<Math::tf32, 1, 8, ExchangeGrid>("tf32 cut", waves, two_ways);
  run_cuts<Math::tf32x3, 1, 8, ExchangeGrid>("tf32x3 cut", waves, two_ways);
  run_cuts<Math::bf16, 1, 8, ExchangeGrid>("bf16 cut", waves, two_ways);
  run_cuts<Math::bf16, 1, 8, ExchangeGrid>("bf16 packed, cut", waves, packed);
  run_cuts<Math::fp16, 1, 8, ExchangeGrid>("fp16 cut", waves, two_ways);

  run_linear<Math::fp32, 1, 16, ExchangeGrid>("fp32", {.exchange = kGrid, .ctas = 2},
                                              {.T = 4, .B = 5, .H = 61});
  run_linear<Math::tf32, 1, 8, ExchangeGrid>("tf32", {.exchange = kGrid, .ctas = 4},
                                             {.T = 3, .B = 9, .H = 61});
  run_linear<Math::tf32x3, 1, 8, ExchangeGrid>("tf32x3", {.exchange = kGrid, .ctas = 3},
                                               {.T = 3, .B = 2, .H = 41});
  parts.ctas = 6, parts.k_splits = 1;
  run_linear<Math::bf16, 1, 2, ExchangeGrid>("bf16 streamed, in parts", parts,
                                             {.T = 3, .B = 3, .H = 81});
  run_recurrence<Math::bf16, 1, 8, ExchangeGrid>(
      "bf16", {.exchange = kGrid, .ctas = 3, .batch_tile = 11}, {.T = 5, .B = 11, .H = 45});
  run_linear<Math::fp16, 2, 8, ExchangeGrid>(
      "fp16 shared", {.exchange = kGrid, .residence = Residence::shared, .ctas = 3},
      {.T = 4, .B = 3, .H = 81});
}

}  // namespace

int main(int argc, char** argv) { return main_of(argc, argv, cases); }
