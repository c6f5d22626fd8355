// The step with a leak: every primitive, every way to multiply, whatever cuts a walk.
#include "run.h"

using namespace emulation;

namespace {

void cases() {
  const Cut one{.exchange = fused_bptt::Exchange::launches,
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
  const Shape two_ways{.T = 5, .B = 6, .G = 2, .H = 71, .reverse_groups = 1};
  run_leaky<Math::fp64, 2>("fp64", one, {.T = 4, .B = 6, .G = 2, .H = 43, .reverse_groups = 1});
  run_leaky<Math::fp64, 2>("fp64 in parts", parts, two_ways);
  run_leaky<Math::fp64, 2>("fp64 packed, in parts", parts, packed);
  run_leaky<Math::fp64, 2>("fp64 least", one, {.T = 1, .B = 1, .H = 1});
  run_leaky<Math::fp64, 2>("fp64 no steps", two, {.T = 0, .B = 6, .H = 70});
  run_leaky<Math::fp64, 2>("fp64 rows end at once", one,
                           {.B = 6, .H = 7, .batch_sizes = {6, 2, 0, 0}});
  for (const bool adjoint : {false, true}) {
    const Shape shape{.T = 3, .B = 3, .H = 7};
    const Options infinite{.phi = Phi::given, .adjoint = adjoint, .infinite = true};
    run<Math::fp64, 2, 0, ExchangeLaunches, Primitive::outer>("fp64 outer, infinite weight", one,
                                                              shape, infinite);
    run<Math::fp64, 2, 0, ExchangeLaunches, Primitive::inner>("fp64 inner, infinite weight", one,
                                                              shape, infinite);
  }
  run_leaky<Math::fp64, 4>("fp64 four row tiles", two, {.T = 3, .B = 5, .H = 150});
  run_leaky<Math::fp32, 2>("fp32", two, two_ways);
  run_leaky<Math::fp32, 4>("fp32 packed", two, packed);
  parts.ctas = 3;
  run_leaky<Math::tf32, 2>("tf32 in parts", parts, two_ways);
  run_leaky<Math::tf32x3, 2>("tf32x3 in parts", parts, two_ways);
  run_leaky<Math::bf16, 2>("bf16 in parts", parts, two_ways);
  run_leaky<Math::bf16, 2>("bf16 packed, in parts", parts, packed);
  run_leaky<Math::fp16, 2>("fp16 in parts", parts, two_ways);
  Cut wide = one;
  wide.batch_tile = 21;
  run_leaky<Math::bf16, 4>("bf16 wide", wide, {.T = 3, .B = 21, .H = 61});
}

}  // namespace

int main(int argc, char** argv) { return main_of(argc, argv, cases); }
