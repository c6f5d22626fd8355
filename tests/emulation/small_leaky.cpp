// A few cases of a walk with a leak in every exchange, for the sanitizer and for planted faults.
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
  // Of two words a thread knows what they keep; of the rest it reads it.
  const Shape few{.B = 7, .G = 2, .H = 33, .reverse_groups = 1, .batch_sizes = {7, 4, 4, 1}};
  const Cut one{.row_warps = 2, .batch_tile = 5};
  run_leaky<Math::fp32, 1, 16, ExchangeCta>("fp32 cta packed", one, few);
  const Cut cluster{.exchange = fused_bptt::Exchange::cluster, .ctas = 2, .batch_tile = 6};
  run_leaky<Math::fp32, 1, 32, ExchangeCluster>("fp32 cluster packed", cluster, few);
  const Cut grid{
      .exchange = fused_bptt::Exchange::grid, .ctas = 2, .batch_tile = 6, .resident_teams = 1};
  run_leaky<Math::fp32, 1, 32, ExchangeGrid>("fp32 grid packed", grid, few);
}

}  // namespace

int main(int argc, char** argv) { return main_of(argc, argv, cases); }
