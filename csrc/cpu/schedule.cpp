#include "schedule.h"

#include <algorithm>

namespace fused_bptt {
namespace {

// The cost model, in cycles of one core. Measured on Sapphire/Granite Rapids and Cascade Lake
// servers; what matters is only which of two schedules is the quicker one.
constexpr double kFmaPerCycle = 2;          // vector multiply-adds
constexpr double kElementwiseVector = 25;   // epilogue of one vector: loads, tanh, stores
constexpr double kTile = 30;                // fixed cost of a tile: call, prologue, stores
constexpr double kBarrier = 700;            // one barrier among threads, 0.25 us
constexpr double kRegion = 8000;            // opening a parallel region, 3 us
constexpr double kL2BytesPerCycle = 48;
constexpr double kL3BytesPerCycle = 9;
constexpr double kL2Bytes = 1.25 * 1024 * 1024;  // of W: the rest of the cache is for rows

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The narrowest row tile that keeps the multiply-add units busy wins: wide panels for few rows
// (each load of W is used by few rows, but many sums are in flight), narrow ones for many rows.
int32_t panel_for(int64_t rows, int64_t vectors, const Machine& machine) {
  int32_t best = 1;
  double best_cost = 0;
  for (const int32_t width : {1, 2, 3, 4, 8}) {
    if (machine.rows[width] == 0) continue;
    const int64_t blocks = divide_up(std::max<int64_t>(rows, 1), machine.rows[width]);
    const double per_block = static_cast<double>(std::max<int64_t>(rows, 1)) / blocks;
    const int64_t used = std::min<int64_t>(width, vectors);
    // Per k: multiply-adds at two a cycle but at least one latency (4 cycles) for the chain;
    // loads (weights and broadcasts) at two a cycle.
    const double multiply = std::max(per_block * used / kFmaPerCycle, 4.0);
    const double loads = (per_block + used) / 2;
    const double cost = std::max(multiply, loads) * blocks * divide_up(vectors, used);
    if (best_cost == 0 || cost < 0.999 * best_cost) {
      best = width;
      best_cost = cost;
    }
  }
  return best;
}

struct Choice {
  Schedule schedule;
  double cycles;  // the whole walk
};

double walk_cycles(const Problem& p, const Machine& m, int64_t bytes, const Schedule& s) {
  const int64_t vectors = divide_up(divide_up(p.H, m.lanes), s.column_parts);
  const int64_t rows = divide_up(p.B, s.row_parts);
  const int64_t units = divide_up(p.G * s.row_parts, s.teams);
  const int64_t width = std::min<int64_t>(s.panel_vectors, vectors);
  const int64_t blocks = divide_up(rows, m.rows[s.panel_vectors]);
  const double tiles = static_cast<double>(blocks) * divide_up(vectors, width);
  const double per_k = std::max({static_cast<double>(rows) * vectors / kFmaPerCycle, 4.0 * tiles,
                                 (rows * divide_up(vectors, width) + blocks * vectors) / 2.0});
  const double weight_bytes = static_cast<double>(vectors) * m.lanes * p.H * bytes;
  const double rate = weight_bytes <= kL2Bytes ? kL2BytesPerCycle : kL3BytesPerCycle;
  const double product = std::max(per_k * p.H, weight_bytes / rate);
  const double step = product + tiles * kTile + rows * vectors * kElementwiseVector +
                      (s.column_parts > 1 ? kBarrier : 0);
  return static_cast<double>(p.T) * units * step;
}

Choice choose(const Problem& p, const Machine& m, int64_t bytes, int32_t threads) {
  Choice best{};
  const int64_t vectors = divide_up(p.H, m.lanes);
  for (int32_t columns = 1; columns <= std::min<int64_t>(threads, vectors); ++columns) {
    const int32_t teams = threads / columns;
    // Cut rows no finer than there are teams for: one group's parts, or what the groups leave.
    const int64_t parts =
        std::clamp<int64_t>(divide_up(teams, std::max<int64_t>(p.G, 1)), 1, std::max<int64_t>(p.B, 1));
    Schedule s{};
    s.row_parts = static_cast<int32_t>(parts);
    s.column_parts = columns;
    s.teams = teams;
    s.panel_vectors = panel_for(divide_up(p.B, parts), divide_up(vectors, columns), m);
    const double cycles = walk_cycles(p, m, bytes, s);
    if (best.schedule.teams == 0 || cycles < best.cycles) best = {s, cycles};
  }
  return best;
}

}  // namespace

Schedule make_schedule(const Problem& problem, const Machine& machine, int64_t compute_bytes,
                       int32_t threads) {
  return choose(problem, machine, compute_bytes, threads).schedule;
}

int32_t worthwhile_threads(const Problem& problem, const Machine& machine, int64_t compute_bytes,
                           int32_t available) {
  int32_t best = 1;
  double best_cycles = choose(problem, machine, compute_bytes, 1).cycles;
  // Powers of two and the whole machine: the curve is flat between them.
  for (int32_t threads = 2; threads < 2 * available; threads *= 2) {
    const int32_t n = std::min(threads, available);
    const double cycles = kRegion + choose(problem, machine, compute_bytes, n).cycles;
    if (cycles < 0.95 * best_cycles) {
      best = n;
      best_cycles = cycles;
    }
  }
  return best;
}

}  // namespace fused_bptt
