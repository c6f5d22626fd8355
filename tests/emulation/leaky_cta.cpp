// A walk with a leak in one CTA: every primitive, every way to multiply, whatever cuts a walk.
#include "run.h"

using namespace emulation;

namespace {

void cases() {
  const Cut cut{.row_warps = 2, .batch_tile = 4};
  const Cut split{.row_warps = 2, .k_splits = 3, .batch_tile = 5};
  const Shape two_ways{.T = 5, .B = 11, .G = 2, .H = 43, .reverse_groups = 1};
  run_leaky<Math::fp64, 1, 8, ExchangeCta>("fp64", split, two_ways);
  run_leaky<Math::fp64, 1, 8, ExchangeCta>("fp64 packed", cut, kPacked);
  run_leaky<Math::fp64, 1, 8, ExchangeCta>("fp64 least", cut, {.T = 1, .B = 1, .H = 1});
  run_leaky<Math::fp64, 1, 8, ExchangeCta>("fp64 no steps", cut, {.T = 0, .B = 3, .G = 2, .H = 5});
  run_leaky<Math::fp64, 1, 8, ExchangeCta>("fp64 rows end at once", cut,
                                           {.B = 6, .H = 7, .batch_sizes = {6, 2, 0, 0}});
  for (const bool adjoint : {false, true}) {
    const Shape shape{.T = 3, .B = 3, .H = 7};
    const Options infinite{.phi = Phi::given, .adjoint = adjoint, .infinite = true};
    run<Math::fp64, 1, 8, ExchangeCta, Primitive::outer>("fp64 outer, infinite weight", cut, shape,
                                                         infinite);
    run<Math::fp64, 1, 8, ExchangeCta, Primitive::inner>("fp64 inner, infinite weight", cut, shape,
                                                         infinite);
  }

  // More words than a thread has registers for what they keep.
  const Cut wide{.batch_tile = 21};
  run_leaky<Math::bf16, 4, 16, ExchangeCta>("bf16 wide", wide, {.T = 3, .B = 21, .H = 61});
  run_leaky<Math::fp32, 2, 32, ExchangeCta>("fp32", {.k_splits = 2, .batch_tile = 7}, two_ways);
  run_leaky<Math::fp32, 1, 8, ExchangeCta>("fp32 packed", cut, kPacked);
  run_leaky<Math::tf32, 2, 8, ExchangeCta>("tf32", {.row_warps = 2, .k_splits = 3}, two_ways);
  run_leaky<Math::tf32x3, 1, 8, ExchangeCta>("tf32x3", {.row_warps = 3}, two_ways);
  run_leaky<Math::bf16, 1, 8, ExchangeCta>("bf16", {.row_warps = 3}, two_ways);
  run_leaky<Math::bf16, 1, 8, ExchangeCta>("bf16 packed", cut, kPacked);
  run_leaky<Math::fp16, 2, 8, ExchangeCta>("fp16", {.row_warps = 2, .k_splits = 2}, two_ways);
  run_leaky<Math::bf16, 2, 8, ExchangeCta>(
      "bf16 shared", {.residence = Residence::shared, .row_warps = 3}, {.T = 2, .B = 3, .H = 81});
}

}  // namespace

int main(int argc, char** argv) { return main_of(argc, argv, cases); }
