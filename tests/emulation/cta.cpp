// One CTA: every way to multiply, every place for W, both primitives, every option of a problem.
#include "run.h"

using namespace emulation;

namespace {

template <Math math, int kRowTiles, int kFragments>
void both(const std::string& name, const Cut& cut, const Shape& shape) {
  run_linear<math, kRowTiles, kFragments, ExchangeCta>(name, cut, shape);
  run_recurrence<math, kRowTiles, kFragments, ExchangeCta>(name, cut, shape);
}

void cases() {
  // The shapes of a problem, by the simplest product.
  const Cut cut{.row_warps = 2, .batch_tile = 4};
  both<Math::fp64, 1, 8>("fp64 plain", cut, {.T = 4, .B = 3, .H = 5});
  both<Math::fp64, 1, 8>("fp64 packed", cut, kPacked);
  both<Math::fp64, 1, 8>("fp64 tiles", {.row_warps = 2, .k_splits = 3, .batch_tile = 5},
                         {.T = 3, .B = 11, .G = 2, .H = 43, .reverse_groups = 1});
  both<Math::fp64, 1, 8>("fp64 least", cut, {.T = 1, .B = 1, .H = 1});
  both<Math::fp64, 1, 8>("fp64 no steps", cut, {.T = 0, .B = 3, .G = 2, .H = 5});
  both<Math::fp64, 1, 8>("fp64 all reversed", cut, {.T = 3, .G = 2, .reverse_groups = 2});
  both<Math::fp64, 1, 8>("fp64 rows end at once", cut,
                         {.B = 6, .H = 7, .batch_sizes = {6, 2, 0, 0}});
  for (const bool adjoint : {false, true}) {
    run<Math::fp64, 1, 8, ExchangeCta, Primitive::linear>("fp64 stride 0", cut, {.T = 4, .B = 3},
                                                          {.adjoint = adjoint, .still = true});
  }
  for (const bool adjoint : {false, true}) {
    run<Math::fp64, 1, 8, ExchangeCta, Primitive::linear>(
        "fp64 infinite weight", cut, {.T = 3, .B = 3, .H = 7},
        {.adjoint = adjoint, .initial = false, .infinite = true});
  }

  // Walks that are cut, the tiles of rows and of units apart.
  const Shape two_ways{.T = 7, .B = 11, .G = 2, .H = 43, .reverse_groups = 1};
  run_cuts<Math::fp64, 1, 8, ExchangeCta>("fp64 cut", {.row_warps = 2, .k_splits = 3,
                                                       .batch_tile = 5}, two_ways);
  run_cuts<Math::fp64, 1, 8, ExchangeCta>("fp64 packed, cut", cut, kPacked);
  run_cuts<Math::fp32, 1, 8, ExchangeCta>("fp32 cut", {.row_warps = 2, .k_splits = 2}, two_ways);
  run_cuts<Math::tf32, 2, 8, ExchangeCta>("tf32 cut", {.row_warps = 2, .k_splits = 3}, two_ways);
  run_cuts<Math::tf32x3, 1, 8, ExchangeCta>("tf32x3 cut", {.row_warps = 3}, two_ways);
  run_cuts<Math::bf16, 1, 8, ExchangeCta>("bf16 cut", {.row_warps = 3}, two_ways);
  run_cuts<Math::bf16, 1, 8, ExchangeCta>("bf16 packed, cut", cut, kPacked);
  run_cuts<Math::fp16, 2, 8, ExchangeCta>("fp16 cut", {.row_warps = 2, .k_splits = 2}, two_ways);
  run<Math::fp64, 1, 8, ExchangeCta, Primitive::linear>(
      "fp64 infinite weight, nothing to replace", cut, {.T = 1, .B = 3, .H = 7},
      {.initial = false, .infinite = true, .reset = true});

  // Every product: tiles one above the other, splits of k, registers in groups and cut groups.
  const Shape odd{.T = 3, .B = 11, .H = 45};
  const Cut three{.row_warps = 3, .k_splits = 1, .batch_tile = 11};
  const Cut split{.row_warps = 2, .k_splits = 2, .batch_tile = 11};
  both<Math::fp32, 1, 8>("fp32", {.row_warps = 2, .k_splits = 2, .batch_tile = 7}, odd);
  run_linear<Math::fp32, 2, 32, ExchangeCta>("fp32 two tiles", {.k_splits = 2}, odd);
  run_linear<Math::tf32, 2, 8, ExchangeCta>("tf32", {.row_warps = 2, .k_splits = 3}, odd);
  run_linear<Math::tf32x3, 1, 8, ExchangeCta>("tf32x3", three, odd);
  both<Math::bf16, 1, 8>("bf16", three, odd);
  both<Math::bf16, 1, 8>("bf16 packed", cut, kPacked);
  run_linear<Math::bf16, 4, 16, ExchangeCta>("bf16 four tiles", {.batch_tile = 3}, odd);
  run_linear<Math::fp16, 2, 8, ExchangeCta>("fp16", split, odd);

  // The rest of W elsewhere.
  for (const Residence residence : {Residence::shared, Residence::global}) {
    const std::string where = residence == Residence::shared ? " shared" : " global";
    run_linear<Math::bf16, 2, 8, ExchangeCta>(
        "bf16" + where, {.residence = residence, .row_warps = 3},
        {.T = 2, .B = 3, .G = 2, .H = 81, .reverse_groups = 1});
    run_linear<Math::fp32, 1, 8, ExchangeCta>("fp32" + where,
                                              {.residence = residence, .row_warps = 2}, odd);
  }
}

}  // namespace

int main(int argc, char** argv) { return main_of(argc, argv, cases); }
