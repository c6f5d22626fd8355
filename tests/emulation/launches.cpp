// A launch for each step: more CTAs than meet elsewhere, the carry in parts, every way to multiply.
#include "run.h"

using namespace emulation;

namespace {

constexpr auto kLaunches = fused_bptt::Exchange::launches;

template <Math math, int kRowTiles>
void both(const std::string& name, const Cut& cut, const Shape& shape) {
  run_linear<math, kRowTiles, 0, ExchangeLaunches>(name, cut, shape);
  run_recurrence<math, kRowTiles, 0, ExchangeLaunches>(name, cut, shape);
}

void cases() {
  const Cut one{.exchange = kLaunches,
                .residence = Residence::global,
                .ctas = 1,
                .k_splits = 2,
                .batch_tile = 5};
  Cut two = one;
  two.ctas = 2, two.k_splits = 1, two.batch_tile = 4;
  Cut parts = two;
  parts.carry_quanta = 4;
  Shape packed = kPacked;
  packed.H = 71;
  both<Math::fp64, 2>("fp64", one, {.T = 4, .B = 6, .G = 2, .H = 43, .reverse_groups = 1});
  both<Math::fp64, 2>("fp64 packed, in parts", parts, packed);
  both<Math::fp64, 2>("fp64 least", one, {.T = 1, .B = 1, .H = 1});
  both<Math::fp64, 2>("fp64 no steps", two, {.T = 0, .B = 6, .H = 70});
  both<Math::fp64, 2>("fp64 rows end at once", one, {.B = 6, .H = 7, .batch_sizes = {6, 2, 0, 0}});
  for (const bool adjoint : {false, true}) {
    run<Math::fp64, 2, 0, ExchangeLaunches, Primitive::linear>(
        "fp64 infinite weight", one, {.T = 3, .B = 3, .H = 7},
        {.adjoint = adjoint, .initial = false, .infinite = true});
  }
  const Shape two_ways{.T = 7, .B = 6, .G = 2, .H = 71, .reverse_groups = 1};
  run_cuts<Math::fp64, 2, 0, ExchangeLaunches>("fp64 cut, in parts", parts, two_ways);
  run_cuts<Math::fp64, 2, 0, ExchangeLaunches>("fp64 packed, cut", parts, packed);
  run_cuts<Math::fp32, 2, 0, ExchangeLaunches>("fp32 cut", two, two_ways);
  parts.ctas = 3;
  run_cuts<Math::tf32, 2, 0, ExchangeLaunches>("tf32 cut", parts, two_ways);
  run_cuts<Math::tf32x3, 2, 0, ExchangeLaunches>("tf32x3 cut", parts, two_ways);
  run_cuts<Math::bf16, 2, 0, ExchangeLaunches>("bf16 cut", parts, two_ways);
  run_cuts<Math::bf16, 2, 0, ExchangeLaunches>("bf16 packed, cut", parts, packed);
  run_cuts<Math::fp16, 2, 0, ExchangeLaunches>("fp16 cut", parts, two_ways);
  run_clipped<Math::fp64, 2>("fp64 packed", two, packed);
  run_clipped<Math::fp32, 4>("fp32 in parts", parts, two_ways);
  run_clipped<Math::bf16, 2>("bf16 in parts", parts, two_ways);
  parts.ctas = 2;
  Cut wide = parts;
  wide.ctas = 1, wide.batch_tile = 16;
  run_linear<Math::fp32, 4, 0, ExchangeLaunches>("fp32", wide, {.T = 3, .B = 18, .H = 75});
  wide.batch_tile = 21, wide.ctas = 2;
  run_linear<Math::bf16, 2, 0, ExchangeLaunches>("bf16", wide, {.T = 3, .B = 21, .H = 61});
  run_recurrence<Math::bf16, 2, 0, ExchangeLaunches>("bf16 packed", two, kPacked);
  wide.ctas = 1, wide.batch_tile = 64;
  run_linear<Math::fp16, 4, 0, ExchangeLaunches>("fp16", wide, {.T = 2, .B = 64, .H = 61});
  run_linear<Math::tf32, 4, 0, ExchangeLaunches>("tf32", parts, {.T = 3, .B = 9, .H = 101});
  run_linear<Math::tf32x3, 2, 0, ExchangeLaunches>("tf32x3", parts, {.T = 3, .B = 2, .H = 41});
}

}  // namespace

int main(int argc, char** argv) { return main_of(argc, argv, cases); }
