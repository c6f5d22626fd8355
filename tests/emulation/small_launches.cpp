// A few cases of a launch for each step, for the sanitizer and for planted faults.
#include "run.h"

using namespace emulation;

namespace {

void cases() {
  const Cut cut{.exchange = fused_bptt::Exchange::launches,
                .residence = Residence::global,
                .ctas = 2,
                .k_splits = 2,
                .batch_tile = 6,
                .carry_quanta = 4};
  run_clipped<Math::fp32, 2>("fp32", cut, {.T = 3, .B = 3, .H = 71});
  Shape packed = kPacked;
  packed.H = 71;
  for (const bool adjoint : {false, true}) {
    run<Math::fp32, 2, 0, ExchangeLaunches, Primitive::linear>(
        "fp32 packed, in parts", cut, packed, {.phi = Phi::given, .adjoint = adjoint});
    run<Math::bf16, 2, 0, ExchangeLaunches, Primitive::linear>(
        "bf16 in parts", cut, {.T = 3, .B = 9, .H = 63}, {.adjoint = adjoint});
  }
  run<Math::fp32, 2, 0, ExchangeLaunches, Primitive::recurrence>(
      "fp32 in parts", cut, {.T = 4, .B = 3, .H = 97}, {.phi = Phi::relu});
  // A launch is a thread of the host for each of its own: few steps, or the sanitizer takes
  // minutes.
  const Shape two_ways{.T = 4, .B = 7, .G = 2, .H = 71, .reverse_groups = 1};
  run_cuts<Math::fp32, 2, 0, ExchangeLaunches>("fp32 cut", cut, two_ways);
  Shape leaving = packed;
  leaving.batch_sizes = {10, 9, 4, 1};
  run_cuts<Math::fp32, 2, 0, ExchangeLaunches>("fp32 packed, cut", cut, leaving);
}

}  // namespace

int main(int argc, char** argv) { return main_of(argc, argv, cases); }
