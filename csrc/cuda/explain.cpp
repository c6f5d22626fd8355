// `explain_plan`: every way of computing a problem that was weighed, with its price or the reason
// why not, for `fused-bptt info` and the tests. No GPU is needed.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "plan.h"

namespace fused_bptt {
namespace {

// One of the tables by its name; or, as device_limits() writes it, what a device said of itself.
DeviceLimits limits_of(const std::string& text) {
  if (const DeviceLimits* known = find_limits(text)) return *known;
  DeviceLimits limits{};
  std::istringstream words(text);
  std::string name;
  words >> limits.name >> limits.capability >> limits.sms >> limits.shared_of_block >>
      limits.shared_of_sm >> limits.l2_bytes >> limits.clock_ghz >> limits.memory_bytes_per_ns;
  for (int32_t n = 1; n <= kLargestCluster; ++n) words >> limits.active_clusters[n];
  if (words.fail()) {
    throw std::runtime_error("device_limits: expected one of " + names_of_limits() + ", got " +
                             text);
  }
  return limits;
}

std::vector<Math> products_named(const std::string& text) {
  if (text == "float32") return products_for(Type::float32, Float32::strict);
  if (text == "float32 tf32") return products_for(Type::float32, Float32::tf32);
  if (text == "float64") return products_for(Type::float64, Float32::strict);
  if (text == "bfloat16") return products_for(Type::bfloat16, Float32::strict);
  if (text == "float16") return products_for(Type::float16, Float32::strict);
  for (int i = 0; i < 6; ++i) {
    if (text == name_of(static_cast<Math>(i))) return {static_cast<Math>(i)};
  }
  throw std::runtime_error(
      "products: expected float64, float32, `float32 tf32`, bfloat16, float16, fp64, fp32, tf32x3, "
      "tf32, bf16 or fp16, got " +
      text);
}

Step step_named(const std::string& text) {
  for (const Step step : {Step::plain, Step::leaky, Step::clipped, Step::norm_clipped}) {
    if (text == name_of(step)) return step;
  }
  throw std::runtime_error("step: expected plain, leaky, clipped or norm-clipped, got " + text);
}

void write(std::ostream& out, const char* verdict, const Candidate& c, const Sizes& sizes,
           const DeviceLimits& limits) {
  const Plan& p = c.plan;
  out << verdict << " math=" << name_of(p.math) << " exchange=" << name_of(p.exchange)
      << " residence=" << name_of(p.residence);
  if (c.refusal != Refusal::none) {
    out << " why=" << words_of(c, sizes, limits) << "\n";
    return;
  }
  out << " ctas=" << p.ctas << " units=" << p.units << " batch_tile=" << p.batch_tile
      << " threads=" << p.threads << " k_splits=" << p.k_splits << " row_tiles=" << p.row_tiles
      << " fragments=" << p.fragments << " carry_columns=" << p.carry_columns
      << " shared_bytes=" << p.shared_bytes << " teams=" << p.teams
      << " resident=" << resident_teams(p, limits)
      << " workspace_bytes=" << workspace_bytes(p, sizes.H, sizes.G) << " step_us=" << p.step_us
      << "\n";
}

// Of two candidates with the same product, exchange and residence: the cheaper one, or, where both
// are refused, the one that failed a later condition, or failed the same one by less.
bool better(const Candidate& a, const Candidate& b, int64_t H) {
  const auto misses = [&](const Candidate& c) -> double {
    switch (c.refusal) {
      case Refusal::none:
        return c.plan.step_us;
      case Refusal::registers_too_few:
        return static_cast<double>(fragments_of_k(c.plan, H)) / registers_of_k(c.plan);
      case Refusal::shared_too_small:
        return static_cast<double>(c.plan.shared_bytes);
      default:
        return -c.plan.units;
    }
  };
  const auto rank = [](const Candidate& c) {
    return c.refusal == Refusal::none ? INT32_MAX : static_cast<int32_t>(c.refusal);
  };
  return rank(a) != rank(b) ? rank(a) > rank(b) : misses(a) < misses(b);
}

std::string explain_plan(int64_t B, int64_t G, int64_t H, std::string products,
                         std::string device_limits, std::string step) {
  const Sizes sizes{B, G, H, step_named(step)};
  const DeviceLimits limits = limits_of(device_limits);
  const std::vector<Math> maths = products_named(products);
  const std::optional<Plan> chosen = make_plan(sizes, maths, limits);
  std::ostringstream out;
  out << "limits name=" << limits.name << " capability=" << limits.capability
      << " sms=" << limits.sms << " shared_of_block=" << limits.shared_of_block
      << " clock_ghz=" << limits.clock_ghz << "\n";
  if (chosen) write(out, "chosen", {*chosen, Refusal::none}, sizes, limits);
  for (const Math math : maths) {
    std::optional<Candidate> best[4][3];  // there is nothing of some
    for_each_candidate(sizes, math, limits, [&](const Candidate& c) {
      auto& of_kind = best[static_cast<int>(c.plan.exchange)][static_cast<int>(c.plan.residence)];
      if (!of_kind || better(c, *of_kind, H)) of_kind = c;
    });
    for (const auto& of_exchange : best) {
      for (const std::optional<Candidate>& c : of_exchange) {
        if (c) write(out, c->refusal == Refusal::none ? "priced" : "refused", *c, sizes, limits);
      }
    }
  }
  return out.str();
}

std::string named_limits() { return names_of_limits(); }

}  // namespace
}  // namespace fused_bptt

STABLE_TORCH_LIBRARY_IMPL(fused_bptt, CompositeExplicitAutograd, m) {
  m.impl("explain_plan", TORCH_BOX(&fused_bptt::explain_plan));
  m.impl("named_limits", TORCH_BOX(&fused_bptt::named_limits));
}
