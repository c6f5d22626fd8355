// Plans as plan.cpp makes them, run as they are: of each exchange, residence and number of row
// tiles the cheapest, on a device so small that shared memory refuses some, cuts the carry of
// others, and teams come in waves.
#include <map>
#include <tuple>

#include "cuda/plan.h"
#include "run.h"

using namespace emulation;

namespace {

DeviceLimits small_device() {
  DeviceLimits limits = *find_limits("h200");
  limits.sms = 12;
  limits.shared_of_block = 9 * 1024;
  return limits;
}

template <Math math, int kRowTiles, int kFragments, template <class, class> class Exchange,
          Primitive primitive>
void run_plan(const Plan& p, const Shape& shape, const std::string& name) {
  Cut cut{p.exchange, p.residence, p.ctas, p.threads / 32 / p.k_splits, p.k_splits, p.batch_tile};
  cut.resident_teams = static_cast<int32_t>(std::min(p.teams, resident_teams(p, small_device())));
  if (p.carry_columns != carry_width(p, shape.H)) {
    cut.carry_quanta = static_cast<int32_t>(p.carry_columns / k_quantum(p));
  }
  const Plan again = plan_of(math, cut, shape, kRowTiles, p.fragments, p.step);
  if (again.units != p.units || again.teams != p.teams || again.shared_bytes != p.shared_bytes) {
    fail("plan.cpp and kernel_args.h disagree");
  }
  run<math, kRowTiles, kFragments, Exchange, primitive>(name, cut, shape, {.adjoint = true});
}

template <Math math, int kRowTiles, Primitive primitive>
void run_plan(const Plan& p, const Shape& shape, const std::string& name) {
  switch (p.exchange) {
    case fused_bptt::Exchange::cta:
      return run_plan<math, kRowTiles, kFragments, ExchangeCta, primitive>(p, shape, name);
    case fused_bptt::Exchange::cluster:
      return run_plan<math, kRowTiles, kFragments, ExchangeCluster, primitive>(p, shape, name);
    case fused_bptt::Exchange::grid:
      return run_plan<math, kRowTiles, kFragments, ExchangeGrid, primitive>(p, shape, name);
    case fused_bptt::Exchange::launches:
      return run_plan<math, kRowTiles, 0, ExchangeLaunches, primitive>(p, shape, name);
  }
}
template <Math math, int kRowTiles>
void run_plan(const Plan& p, const Shape& shape, const std::string& name) {
  if (p.step == Step::leaky) return run_plan<math, kRowTiles, Primitive::inner>(p, shape, name);
  run_plan<math, kRowTiles, Primitive::linear>(p, shape, name);
}

template <Math math>
void run_plans(const Shape& shape, Step step = Step::plain) {
  const DeviceLimits limits = small_device();
  std::map<std::tuple<fused_bptt::Exchange, Residence, int32_t, bool>, Plan> cheapest;
  for_each_candidate({shape.B, shape.G, shape.H, step}, math, limits, [&](const Candidate& c) {
    const Plan& p = c.plan;
    if (c.refusal != Refusal::none) return;
    const int64_t together = p.exchange == fused_bptt::Exchange::grid
                                 ? std::min(p.teams, resident_teams(p, limits))
                             : p.exchange == fused_bptt::Exchange::launches ? p.teams
                                                                            : 1;
    if (together * p.ctas * p.threads > 640) return;  // threads of this machine
    const bool parts = p.carry_columns != carry_width(p, shape.H);
    const auto [at, fresh] = cheapest.try_emplace({p.exchange, p.residence, p.row_tiles, parts}, p);
    if (!fresh && p.step_us < at->second.step_us) at->second = p;
  });
  for (const auto& [kind, p] : cheapest) {
    const std::string name =
        std::string(name_of(math)) + " " + name_of(p.exchange) + " of " + std::to_string(p.ctas) +
        ", " + name_of(p.residence) + ", " + std::to_string(p.row_tiles) + " row tiles" +
        (std::get<3>(kind) ? ", in parts" : "") + (step == Step::leaky ? ", with a leak" : "");
    if (p.row_tiles == 1) run_plan<math, 1>(p, shape, name);
    if (p.row_tiles == 2) run_plan<math, 2>(p, shape, name);
    if (p.row_tiles == 4) run_plan<math, 4>(p, shape, name);
  }
}

void cases() {
  run_plans<Math::bf16>({.T = 3, .B = 5, .G = 2, .H = 200, .reverse_groups = 1});
  run_plans<Math::bf16>({.T = 3, .B = 21, .H = 70});
  run_plans<Math::fp32>({.T = 3, .B = 5, .G = 2, .H = 100, .reverse_groups = 1});
  run_plans<Math::bf16>({.T = 3, .B = 5, .G = 2, .H = 200, .reverse_groups = 1}, Step::leaky);
  run_plans<Math::bf16>({.T = 3, .B = 21, .H = 70}, Step::leaky);
}

}  // namespace

int main(int argc, char** argv) { return main_of(argc, argv, cases); }
