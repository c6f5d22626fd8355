// Which CTAs compute what, and where W lies: a pure function of sizes, products and device limits.
// It changes the time a call takes, and never what is computed. docs/kernels.md explains it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kernel_args.h"
#include "limits.h"

namespace fused_bptt {

// Of a problem that is computed on CUDA.
Step step_of(const Problem& problem);

// Values of Plan that kernels are compiled for; see instantiations/.
constexpr int32_t kFragments = 32;
constexpr int32_t kRowTiles[] = {1, 2, 4};
constexpr int32_t kRowTilesOfLaunches[] = {2, 4};
// Elsewhere with a leak: those beyond are the cheapest of no shape, or by less than a tenth.
// Nothing chooses tf32x3.
constexpr int32_t most_row_tiles_with_a_leak(Math math) {
  return math == Math::tf32x3 ? 0 : by_tensor_cores(math) ? 2 : 1;
}
constexpr int32_t kMostWarps = 8;  // of a CTA: each thread may have 255 registers

// How float32 may be multiplied: as it is; in TF32 where that is quicker; by three products in
// TF32. The last stands in for the first only when its error has been measured on a GPU: tensor
// cores truncate as they add, and an infinite operand gives NaN. Tests and measurements ask for it.
enum class Float32 : int32_t { strict, tf32, tf32x3 };

// The products that may be used for a type; the cheapest plan over all of them is taken.
std::vector<Math> products_for(Type type, Float32 float32);

enum class Refusal : int32_t {
  none,
  by_launches_alone,  // the step is clipped
  one_cta_too_small,  // units = the most that one CTA covers
  cluster_too_small,  // ... a cluster of 16
  device_too_small,   // ... all SMs
  one_cta_is_enough,  // nothing to exchange
  no_clusters,        // before sm_90
  no_active_cluster,  // of this size on this device
  registers_too_few,  // for all of W
  nothing_rests,      // registers hold all of W
  too_many_ctas,      // for a launch
  shared_too_small,   // shared_bytes is what it would take
};

struct Candidate {
  Plan plan;  // step_us and teams are meant only without a refusal
  Refusal refusal;
};

// Sizes of a problem, and what its steps are. The plan is per step: it does not depend on T.
struct Sizes {
  int64_t B, G, H;
  Step step = Step::plain;
};

// Every candidate for products of one kind, in a fixed order.
void for_each_candidate(const Sizes& sizes, Math math, const DeviceLimits& limits,
                        const std::function<void(const Candidate&)>& visit);

// Teams that are on the device at once. Launches: those whose CTAs are; 1 where not even one's are.
int64_t resident_teams(const Plan& plan, const DeviceLimits& limits);

// Restricts the choice, so that tests and measurements reach every kernel with few shapes.
struct Only {
  std::optional<Exchange> exchange;
  std::optional<Residence> residence;
};

// Of names of exchanges and residences, parted by commas; "" restricts nothing. Throws
// std::runtime_error.
Only only_of(const std::string& text);

// The cheapest candidate that is not refused; nothing where all of them are.
std::optional<Plan> make_plan(const Sizes& sizes, const std::vector<Math>& products,
                              const DeviceLimits& limits, const Only& only = {});

const char* name_of(Math math);
const char* name_of(Exchange exchange);
const char* name_of(Residence residence);
const char* name_of(Step step);

// Why a candidate was refused, in words.
std::string words_of(const Candidate& candidate, const Sizes& sizes, const DeviceLimits& limits);

}  // namespace fused_bptt
