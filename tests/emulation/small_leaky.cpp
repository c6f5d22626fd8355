// A few cases of the step with a leak, for the sanitizer and for planted faults.
#include "run.h"

using namespace emulation;

namespace {

void cases() {
  const Cut cut{.exchange = fused_bptt::Exchange::launches,
                .residence = Residence::global,
                .ctas = 2,
                .k_splits = 2,
                .batch_tile = 9,
                .carry_quanta = 4};
  const Shape packed{.B = 9, .G = 2, .H = 71, .reverse_groups = 1, .batch_sizes = {9, 5, 5, 3, 1}};
  run_leaky<Math::fp32, 2>("fp32 packed", cut, packed);
}

}  // namespace

int main(int argc, char** argv) { return main_of(argc, argv, cases); }
