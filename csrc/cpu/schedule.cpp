#include "schedule.h"

#include <algorithm>

namespace fused_bptt {
namespace {

// The cost model, in cycles of one core of the machine of docs/kernels.md. What matters is only
// which of two schedules is the quicker one.
constexpr double kFmaPerCycle = 2;         // vector multiply-adds
constexpr double kElementwiseVector = 25;  // epilogue of one vector: loads, tanh, stores
constexpr double kLoadShare = 0.12;        // of a load, in cycles
constexpr double kTile = 30;               // fixed cost of a tile: call, prologue, stores
constexpr double kBarrier = 1000;          // one barrier among threads, 0.4 us
constexpr double kRegion = 80000;          // opening a parallel region, 30 us
constexpr double kL2BytesPerCycle = 48;
constexpr double kL3BytesPerCycle = 9;
constexpr double kL2Bytes = 1.25 * 1024 * 1024;  // of W: the rest of the cache is for rows

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

double weight_bytes(int64_t vectors, const Problem& p, const Machine& m, int64_t bytes) {
  return static_cast<double>(vectors) * m.lanes * p.H * bytes;
}

// Cycles of one k for `rows` rows and `vectors` vectors in panels `width` wide. Two multiply-adds
// a cycle, but four cycles from one to the next in the same chain; loads (weights once a tile,
// broadcasts once a panel) steal some of their slots: 14x2 tiles reach 83 % of the peak, 9x3 90 %.
double product_cycles(int64_t rows, int64_t vectors, int64_t width, const Machine& m) {
  const int64_t panels = divide_up(vectors, width);
  const int64_t blocks = divide_up(rows, m.rows[width]);
  const double multiply = static_cast<double>(rows) * vectors / kFmaPerCycle;
  const double loads = static_cast<double>(rows * panels + blocks * vectors);
  return std::max({multiply + kLoadShare * loads, loads / 2, 4.0 * blocks * panels});
}

int32_t panel_for(int64_t rows, int64_t vectors, const Machine& machine) {
  int32_t best = 1;
  for (int32_t width = 2; width <= 8; ++width) {
    if (product_cycles(rows, vectors, width, machine) <
        0.999 * product_cycles(rows, vectors, best, machine)) {
      best = width;
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
  const double tiles = static_cast<double>(divide_up(rows, m.rows[s.panel_vectors])) *
                       divide_up(vectors, s.panel_vectors);
  const double traffic = weight_bytes(vectors, p, m, bytes);
  const double rate = traffic <= kL2Bytes ? kL2BytesPerCycle : kL3BytesPerCycle;
  const double product =
      std::max(product_cycles(rows, vectors, s.panel_vectors, m) * p.H, traffic / rate);
  const double step = product + tiles * kTile + rows * vectors * kElementwiseVector +
                      (s.column_parts > 1 ? kBarrier : 0);
  return static_cast<double>(p.T) * units * step;
}

Choice choose(const Problem& p, const Machine& m, int64_t bytes, int32_t threads) {
  Choice best{};
  const int64_t vectors = divide_up(p.H, m.lanes);
  // The norm of a row is one thread's to know.
  const int64_t most = p.clip.kind == Clip::Kind::norm ? 1 : vectors;
  for (int32_t columns = 1; columns <= std::min<int64_t>(threads, most); ++columns) {
    const int32_t teams = threads / columns;
    // Cut rows no finer than there are teams for: one group's parts, or what the groups leave.
    const int64_t parts = std::clamp<int64_t>(divide_up(teams, std::max<int64_t>(p.G, 1)), 1,
                                              std::max<int64_t>(p.B, 1));
    Schedule s{};
    s.row_parts = static_cast<int32_t>(parts);
    s.column_parts = columns;
    s.teams = teams;
    s.panel_vectors = panel_for(divide_up(p.B, parts), divide_up(vectors, columns), m);
    s.panels_outside = weight_bytes(divide_up(vectors, columns), p, m, bytes) > kL2Bytes;
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

int64_t chunk_steps(const Layer& layer) {
  const Problem& p = layer.walk;
  return std::min(chunk_steps(p.B / sums_of(layer)), std::max<int64_t>(p.T, 1));
}

LayerSchedule make_layer_schedule(const Layer& layer, const Machine& machine, int64_t compute_bytes,
                                  int32_t threads) {
  const Problem& p = layer.walk;
  LayerSchedule s{};
  s.walk = make_schedule(p, machine, compute_bytes, threads);
  s.steps = chunk_steps(layer);
  const int64_t hidden = divide_up(p.H, machine.lanes), input = divide_up(layer.I, machine.lanes);
  s.input_panel = panel_for(s.steps * p.B, layer.backward ? input : hidden, machine);
  s.hidden_gradient = panel_for(p.H, hidden, machine);
  s.input_gradient = panel_for(p.H, input, machine);
  return s;
}

double product_cycles(const Layer& layer, const Machine& m) {
  const Problem& p = layer.walk;
  const int64_t columns = layer.backward ? 2 * layer.I + p.H : layer.I;
  return static_cast<double>(layer.rows) * p.G * p.H * columns / m.lanes / kFmaPerCycle / 0.8;
}

int32_t worthwhile_threads(const Problem& problem, const Machine& machine, int64_t compute_bytes,
                           int32_t available, double divisible) {
  int32_t best = 1;
  if (available == 1) return best;
  double best_cycles = divisible + choose(problem, machine, compute_bytes, 1).cycles;
  // Powers of two and the whole machine: the curve is flat between them.
  for (int32_t threads = 2; threads < 2 * available; threads *= 2) {
    const int32_t n = std::min(threads, available);
    const double cycles =
        kRegion + divisible / n + choose(problem, machine, compute_bytes, n).cycles;
    if (cycles < 0.95 * best_cycles) {
      best = n;
      best_cycles = cycles;
    }
  }
  return best;
}

}  // namespace fused_bptt
