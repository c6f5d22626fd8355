#include "plan.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <set>
#include <sstream>
#include <stdexcept>

namespace fused_bptt {
namespace {

// ---------------------------------------------------------------------------------- the model
//
// Cycles of one step of one team, after the limit table of docs/kernels.md. Latencies and
// bandwidths are Hopper's (Luo et al., arXiv:2402.13499 and 2501.12084), used for all devices:
// what matters is which of two plans is the quicker one. The exchange's are estimates, to be
// replaced by what `make gpu` measures.
constexpr double kStep = 70;        // two block barriers, u's arrival, loop
constexpr double kMmaLatency = 25;  // of an mma that waits for the sums of the one before
constexpr double kFfmaShare = 0.9;  // of the peak that plain multiply-adds reach
constexpr double kFfmaLatency = 60;
constexpr double kElement = 20;           // sum, phi, stores of one output, in one thread
constexpr double kLeakyElement = 40;      // the same with a leak: three loads and two stores more
constexpr double kSharedBytes = 128;      // a cycle, of an SM
constexpr double kCtaExchange = 60;       // write to shared memory, one block barrier
constexpr double kClusterExchange = 220;  // st.async and mbarrier, one way
constexpr double kClusterBytes = 13;      // a cycle, into one SM
constexpr double kGridExchange = 750;     // flag and data through L2
constexpr double kL2BytesOfSm = 30;       // a cycle; 3942 over all SMs of H100
constexpr double kGridBytes = 48;         // a cycle, the same lines read by every CTA
constexpr double kGridPass = 150;         // a further part of the carry: barrier, L2 latency
constexpr double kL2Share = 0.7;          // of the L2 cache that W may take
constexpr double kLaunchNs = 2000;        // from a launch to the one that follows it
constexpr double kThreadsOfSm = 2048;     // at once

constexpr double kSend = 4;  // cycles between two st.async of a warp

constexpr Exchange kExchanges[] = {Exchange::cta, Exchange::cluster, Exchange::grid,
                                   Exchange::launches};
constexpr Residence kResidences[] = {Residence::registers, Residence::shared, Residence::global};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Batch rows that a warp multiplies its tiles of W with at once: kWidest blocks of columns of
// product_mma.cuh and product_fma.cuh, or as many as have sums in registers.
int64_t passes_over_rows(const Plan& p) {
  if (p.exchange == Exchange::launches) return divide_up(p.batch_tile, rows_of_launch(p.math));
  const int64_t rows = by_tensor_cores(p.math) ? 16 : p.math == Math::fp64 ? 2 : 4;
  return divide_up(p.batch_tile, rows);
}

double product_cycles(const Plan& p, int64_t H, const Rates& rates) {
  const double fragments = static_cast<double>(p.row_tiles) * fragments_of_k(p, H);
  // Warps are dealt out to the four parts of an SM.
  const double warps_of_part = divide_up(warps(p), 4);
  if (by_tensor_cores(p.math)) {
    // 3xTF32 splits its operands between the three: about as many cycles as two more.
    const double products = p.math == Math::tf32x3 ? 5 : 1;
    const double columns = divide_up(p.batch_tile, 8);
    const double issue = products * fragments * columns * warps_of_part * rates.mma;
    // Along k every mma adds to the sums of the one before it.
    const double chain = products * fragments_of_k(p, H) * passes_over_rows(p) * kMmaLatency;
    return std::max(issue, chain) + kMmaLatency;
  }
  const double fma = p.math == Math::fp64 ? rates.dfma : rates.ffma;
  const double chain = fragments * fragment_depth(p.math) * p.batch_tile;
  return chain * warps_of_part * fma / kFfmaShare + kFfmaLatency;
}

// How often the device is filled: with teams, or, where no CTA waits for another, with CTAs.
int64_t waves(const Plan& p, const DeviceLimits& limits) {
  if (p.exchange == Exchange::launches) return divide_up(p.teams * p.ctas, limits.sms);
  return divide_up(p.teams, resident_teams(p, limits));
}

// The carry is read by every warp that shares it; what is left of W once for each pass over
// columns; the sums of a split k are written and read.
double shared_cycles(const Plan& p, int64_t H) {
  const double carry = static_cast<double>(warps(p)) * fragments_of_k(p, H) *
                       fragment_bytes_of_k(p.math) * carry_rows(p);
  const double passes = passes_over_rows(p);
  const double rest = p.residence == Residence::shared ? passes * rest_of_weights(p, H) : 0;
  const double sums = 2.0 * p.k_splits * carry_rows(p) * p.units * sum_bytes(p.math);
  return (carry + rest + sums) / kSharedBytes;
}

double streamed_cycles(const Plan& p, const Sizes& s, const DeviceLimits& limits) {
  if (p.residence != Residence::global) return 0;
  const double of_cta = static_cast<double>(passes_over_rows(p)) * rest_of_weights(p, s.H);
  const double all = static_cast<double>(rest_of_weights(p, s.H)) * p.ctas * s.G;
  if (all <= kL2Share * limits.l2_bytes) return of_cta / kL2BytesOfSm;
  const double memory = limits.memory_bytes_per_ns / limits.clock_ghz;  // bytes a cycle
  if (p.exchange == Exchange::launches) {
    // The CTAs that read the same part of W do so together: it comes from memory once a step.
    return std::max(of_cta / kL2BytesOfSm, all / memory / waves(p, limits));
  }
  const double ctas = static_cast<double>(p.ctas) * std::min(p.teams, resident_teams(p, limits));
  return std::max(of_cta / kL2BytesOfSm, of_cta * ctas / memory);
}

double exchange_cycles(const Plan& p, int64_t H) {
  if (p.exchange == Exchange::cta) return kCtaExchange;
  const double carry = static_cast<double>(p.batch_tile) * H * operand_bytes(p.math);
  if (p.exchange == Exchange::cluster) {
    // Every thread sends its words to every peer.
    const int64_t word = std::max(operand_bytes(p.math), 4);
    const double bytes = static_cast<double>(p.batch_tile) * p.units * operand_bytes(p.math);
    const double sends = bytes / word / 32 * p.ctas * kSend;
    return kClusterExchange + std::max(carry * (p.ctas - 1) / p.ctas / kClusterBytes, sends);
  }
  const double passes = divide_up(carry_width(p, H), p.carry_columns);
  if (p.exchange == Exchange::launches) return carry / kGridBytes + passes * kGridPass;
  return kGridExchange + carry / kGridBytes + (passes - 1) * kGridPass;
}

// The second launch of a step that is clipped by norms: a CTA for each row, which passes over it
// twice.
double clip_ns(const Plan& p, int64_t H, const DeviceLimits& limits) {
  const double threads = static_cast<double>(p.teams) * p.batch_tile * kRowThreads;
  const double waves = std::ceil(threads / (limits.sms * kThreadsOfSm));
  return waves * (kStep + 2 * divide_up(H, kRowThreads) * kElement) / limits.clock_ghz;
}

double step_us(const Plan& p, const Sizes& s, const DeviceLimits& limits) {
  const double outputs = divide_up(static_cast<int64_t>(p.batch_tile) * p.units, p.threads);
  const double cycles = std::max({product_cycles(p, s.H, rates_of(limits.capability)),
                                  shared_cycles(p, s.H), streamed_cycles(p, s, limits)}) +
                        kStep + outputs * (p.step == Step::leaky ? kLeakyElement : kElement) +
                        exchange_cycles(p, s.H);
  const double launch = p.exchange == Exchange::launches ? kLaunchNs : 0;
  const double clip = p.step == Step::norm_clipped ? kLaunchNs + clip_ns(p, s.H, limits) : 0;
  return (waves(p, limits) * cycles / limits.clock_ghz + launch + clip) / 1000;
}

// ------------------------------------------------------------------------------- the candidates

// Batch tiles worth a look: the batch in equal parts. A device has room for few hundred teams.
std::vector<int32_t> batch_tiles(int64_t B) {
  constexpr int64_t kMostRows = 1024;
  std::set<int64_t> tiles;
  for (int64_t parts = 1; parts <= std::min<int64_t>(B, 512); ++parts) {
    tiles.insert(divide_up(B, parts));
  }
  for (int64_t rows = 1; rows <= std::min(B, kMostRows); rows *= 2) tiles.insert(rows);
  std::vector<int32_t> found;
  for (const int64_t rows : tiles) {
    if (rows <= kMostRows) found.push_back(static_cast<int32_t>(rows));
  }
  return found;
}

bool covers(const Plan& p, int64_t H) { return static_cast<int64_t>(p.ctas) * p.units >= H; }

// The whole carry where it fits; else as much of it as does, where it goes through global memory.
void set_carry_columns(Plan& p, int64_t H, const DeviceLimits& limits) {
  p.carry_columns = static_cast<int32_t>(carry_width(p, H));
  p.shared_bytes = shared_bytes(p, H);
  const bool in_parts = p.exchange == Exchange::grid || p.exchange == Exchange::launches;
  if (!in_parts || p.shared_bytes <= limits.shared_of_block) return;
  const int64_t quantum = k_quantum(p) * kCarryAhead;
  const int64_t quanta = divide_up(p.carry_columns, quantum);
  for (int64_t parts = 2; p.shared_bytes > limits.shared_of_block && parts < 2 * quanta;
       parts *= 2) {
    p.carry_columns = static_cast<int32_t>(divide_up(quanta, parts) * quantum);
    p.shared_bytes = shared_bytes(p, H);
  }
}

// What is compiled of an exchange. A launch keeps nothing of W.
bool exists(Exchange exchange, Residence residence, int32_t row_tiles, Math math, Step step) {
  if (exchange != Exchange::launches) {
    return step != Step::leaky || row_tiles <= most_row_tiles_with_a_leak(math);
  }
  return residence == Residence::global &&
         std::count(std::begin(kRowTilesOfLaunches), std::end(kRowTilesOfLaunches), row_tiles) > 0;
}

// Everything about a plan that does not depend on the batch tile.
Refusal refuse(const Plan& p, const Sizes& s, const DeviceLimits& limits) {
  const bool by_launches_alone = p.step != Step::plain && p.step != Step::leaky;
  if (by_launches_alone && p.exchange != Exchange::launches) return Refusal::by_launches_alone;
  if (p.exchange == Exchange::cta && !covers(p, s.H)) return Refusal::one_cta_too_small;
  const bool shares = p.exchange == Exchange::cluster || p.exchange == Exchange::grid;
  if (shares && p.ctas == 1) return Refusal::one_cta_is_enough;
  if (p.exchange == Exchange::cluster) {
    if (limits.capability < 90) return Refusal::no_clusters;
    if (p.ctas > kLargestCluster) return Refusal::cluster_too_small;
    if (limits.active_clusters[p.ctas] < 1) return Refusal::no_active_cluster;
  }
  if (p.exchange == Exchange::grid && p.ctas > limits.sms) return Refusal::device_too_small;
  const bool all_in_registers = rest_of_weights(p, s.H) == 0;
  if (p.residence == Residence::registers && !all_in_registers) return Refusal::registers_too_few;
  if (p.residence != Residence::registers && all_in_registers) return Refusal::nothing_rests;
  return Refusal::none;
}

}  // namespace

Step step_of(const Problem& problem) {
  if (has_leak(problem)) return Step::leaky;
  switch (problem.clip.kind) {
    case Clip::Kind::value:
      return Step::clipped;
    case Clip::Kind::norm:
      return Step::norm_clipped;
    default:
      return Step::plain;
  }
}

std::vector<Math> products_for(Type type, Float32 float32) {
  switch (type) {
    case Type::float64:
      return {Math::fp64};
    case Type::bfloat16:
      return {Math::bf16};
    case Type::float16:
      return {Math::fp16};
    default:
      if (float32 == Float32::tf32x3) return {Math::tf32x3};
      if (float32 == Float32::tf32) return {Math::fp32, Math::tf32};
      return {Math::fp32};
  }
}

int64_t resident_teams(const Plan& plan, const DeviceLimits& limits) {
  // A CTA with all its registers has an SM to itself. Smaller ones could share one, at the price
  // of sharing its arithmetic: not counted.
  if (plan.exchange == Exchange::cluster) return limits.active_clusters[plan.ctas];
  return std::max(limits.sms / plan.ctas, 1);
}

void for_each_candidate(const Sizes& sizes, Math math, const DeviceLimits& limits,
                        const std::function<void(const Candidate&)>& visit) {
  const Sizes s{std::max<int64_t>(sizes.B, 1), std::max<int64_t>(sizes.G, 1),
                std::max<int64_t>(sizes.H, 1), sizes.step};
  const std::vector<int32_t> tiles = batch_tiles(s.B);
  for (const Exchange exchange : kExchanges) {
    for (const Residence residence : kResidences) {
      for (const int32_t row_tiles : kRowTiles) {
        if (!exists(exchange, residence, row_tiles, math, s.step)) continue;
        for (int32_t row_warps = 1; row_warps <= kMostWarps; ++row_warps) {
          for (int32_t k_splits = 1; row_warps * k_splits <= kMostWarps; ++k_splits) {
            Candidate c{};
            Plan& p = c.plan;
            p.math = math;
            p.exchange = exchange;
            p.residence = residence;
            p.step = s.step;
            p.row_tiles = row_tiles;
            p.fragments = exchange == Exchange::launches ? 0 : kFragments;
            p.k_splits = k_splits;
            p.threads = 32 * row_warps * k_splits;
            p.units = unit_quantum(p);
            const int64_t ctas = exchange == Exchange::cta ? 1 : divide_up(s.H, p.units);
            p.ctas = static_cast<int32_t>(std::min<int64_t>(ctas, INT32_MAX));
            p.batch_tile = 1;
            c.refusal = refuse(p, s, limits);
            if (c.refusal != Refusal::none) {
              visit(c);
              continue;
            }
            for (const int32_t rows : tiles) {
              if (exchange == Exchange::launches && rows > rows_of_launch(math)) break;
              p.batch_tile = rows;
              p.teams = s.G * divide_up(s.B, rows);
              set_carry_columns(p, s.H, limits);
              c.refusal = p.shared_bytes > limits.shared_of_block ? Refusal::shared_too_small
                          : p.teams > INT32_MAX / p.ctas          ? Refusal::too_many_ctas
                                                                  : Refusal::none;
              p.step_us = c.refusal == Refusal::none ? step_us(p, s, limits) : 0;
              visit(c);
              if (c.refusal == Refusal::shared_too_small) break;  // nor would more rows fit
            }
          }
        }
      }
    }
  }
}

Only only_of(const std::string& text) {
  Only only;
  std::istringstream words(text);
  for (std::string word; std::getline(words, word, ',');) {
    bool known = false;
    for (const Exchange exchange : kExchanges) {
      if (word == name_of(exchange)) only.exchange = exchange, known = true;
    }
    for (const Residence residence : kResidences) {
      if (word == name_of(residence)) only.residence = residence, known = true;
    }
    if (!known) {
      throw std::runtime_error(
          "FUSED_BPTT_CUDA_PLAN: expected cta, cluster, grid or launches, and registers, shared or "
          "global, parted by a comma, got " +
          text);
    }
  }
  return only;
}

std::optional<Plan> make_plan(const Sizes& sizes, const std::vector<Math>& products,
                              const DeviceLimits& limits, const Only& only) {
  std::optional<Plan> best;
  for (const Math math : products) {
    for_each_candidate(sizes, math, limits, [&](const Candidate& c) {
      if (c.refusal != Refusal::none) return;
      if (only.exchange && c.plan.exchange != *only.exchange) return;
      if (only.residence && c.plan.residence != *only.residence) return;
      if (!best || c.plan.step_us < best->step_us) best = c.plan;
    });
  }
  return best;
}

const char* name_of(Math math) {
  constexpr const char* names[] = {"fp64", "fp32", "tf32x3", "tf32", "bf16", "fp16"};
  return names[static_cast<int>(math)];
}

const char* name_of(Exchange exchange) {
  constexpr const char* names[] = {"cta", "cluster", "grid", "launches"};
  return names[static_cast<int>(exchange)];
}

const char* name_of(Residence residence) {
  constexpr const char* names[] = {"registers", "shared", "global"};
  return names[static_cast<int>(residence)];
}

const char* name_of(Step step) {
  constexpr const char* names[] = {"plain", "leaky", "clipped", "norm-clipped"};
  return names[static_cast<int>(step)];
}

std::string words_of(const Candidate& candidate, const Sizes& sizes, const DeviceLimits& limits) {
  const Plan& p = candidate.plan;
  const auto covered = [&](int64_t ctas) {
    return std::to_string(ctas * p.units) + " units, H = " + std::to_string(sizes.H);
  };
  const auto kib = [](int64_t bytes) { return std::to_string(divide_up(bytes, 1024)) + " KiB"; };
  switch (candidate.refusal) {
    case Refusal::none:
      return "";
    case Refusal::by_launches_alone:
      return std::string("of a ") + name_of(p.step) + " step only a launch for each is compiled";
    case Refusal::one_cta_too_small:
      return "one CTA covers " + covered(1);
    case Refusal::cluster_too_small:
      return "a cluster of 16 covers " + covered(kLargestCluster);
    case Refusal::device_too_small:
      return std::to_string(limits.sms) + " SMs cover " + covered(limits.sms);
    case Refusal::one_cta_is_enough:
      return "one CTA covers " + covered(1) + ": nothing to exchange";
    case Refusal::no_clusters:
      return "clusters need sm_90, this is sm_" + std::to_string(limits.capability);
    case Refusal::no_active_cluster:
      return "the device has no room for a cluster of " + std::to_string(p.ctas);
    case Refusal::registers_too_few:
      return "a warp holds " + std::to_string(registers_of_k(p)) + " of the " +
             std::to_string(fragments_of_k(p, sizes.H)) + " fragments along k in registers";
    case Refusal::nothing_rests:
      return "registers hold all of W";
    case Refusal::shared_too_small:
      return "shared memory of a CTA is " + kib(limits.shared_of_block) + ", " +
             kib(p.shared_bytes) + " are needed with " + std::to_string(p.batch_tile) +
             (p.batch_tile == 1 ? " batch row" : " batch rows");
    case Refusal::too_many_ctas:
      return "a grid has at most 2147483647 CTAs, " + std::to_string(p.teams) + " teams of " +
             std::to_string(p.ctas) + " are needed";
  }
  return "";
}

}  // namespace fused_bptt
