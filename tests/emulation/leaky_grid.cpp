// A walk with a leak on CTAs that meet in global memory: waves of teams, the carry in parts.
#include "run.h"

using namespace emulation;

namespace {

constexpr auto kGrid = fused_bptt::Exchange::grid;

void cases() {
  const Cut three{.exchange = kGrid, .ctas = 3, .k_splits = 2, .batch_tile = 2};
  Shape packed = kPacked;
  packed.H = 33;
  Cut waves{.exchange = kGrid, .ctas = 2, .batch_tile = 4, .resident_teams = 2};
  Cut parts{.exchange = kGrid,
            .residence = Residence::global,
            .ctas = 2,
            .k_splits = 2,
            .batch_tile = 3,
            .carry_quanta = 4};
  const Shape two_ways{.T = 5, .B = 5, .G = 2, .H = 61, .reverse_groups = 1};
  run_leaky<Math::fp64, 1, 32, ExchangeGrid>("fp64", three, {.T = 5, .B = 3, .H = 70});
  run_leaky<Math::fp64, 1, 32, ExchangeGrid>("fp64 packed, in waves", waves, packed);
  run_leaky<Math::fp64, 1, 32, ExchangeGrid>("fp64 one step", waves, {.T = 1, .B = 6, .H = 33});
  run_leaky<Math::fp64, 1, 32, ExchangeGrid>("fp64 no steps", waves, {.T = 0, .B = 6, .H = 33});
  run_leaky<Math::fp64, 1, 8, ExchangeGrid>("fp64 streamed, in parts", parts, two_ways);
  waves.batch_tile = 3;
  run_leaky<Math::fp32, 1, 16, ExchangeGrid>("fp32 in waves", waves, two_ways);
  waves.ctas = 4, waves.batch_tile = 8;
  run_leaky<Math::tf32, 1, 8, ExchangeGrid>("tf32", waves, two_ways);
  run_leaky<Math::tf32x3, 1, 8, ExchangeGrid>("tf32x3", waves, two_ways);
  run_leaky<Math::bf16, 1, 8, ExchangeGrid>("bf16", waves, two_ways);
  run_leaky<Math::bf16, 1, 8, ExchangeGrid>("bf16 packed", waves, packed);
  run_leaky<Math::fp16, 1, 8, ExchangeGrid>("fp16", waves, two_ways);
}

}  // namespace

int main(int argc, char** argv) { return main_of(argc, argv, cases); }
