// What a CTA knows of its part of the problem: which group, batch rows and units are its own, which
// steps its rows have, and how many rows are carried from one to the next.
#pragma once

#include "ptx.cuh"

namespace fused_bptt {

constexpr int kMostThreads = 256;  // of a CTA

struct Team {
  FUSED_BPTT_DEVICE Team(const KernelArgs& args, int32_t team, int32_t rank)
      : args(args), problem(args.problem), plan(args.plan), index(team), rank(rank) {
    const int32_t tiles = static_cast<int32_t>((problem.B + plan.batch_tile - 1) / plan.batch_tile);
    group = team / tiles;
    first_row = static_cast<int64_t>(team % tiles) * plan.batch_tile;
    tile_rows = static_cast<int32_t>(fewer(plan.batch_tile, problem.B - first_row));
    first_unit = rank * plan.units;
    down = walks_backwards_device();
    steps = count_steps();
  }

  // Time of step i of the walk.
  FUSED_BPTT_DEVICE int64_t time(int64_t i) const { return down ? steps - 1 - i : i; }

  // Rows of the tile that have a step i; none before the walk and after it.
  FUSED_BPTT_DEVICE int32_t rows(int64_t i) const {
    if (i < 0 || i >= steps) return 0;
    if (!problem.batch_sizes) return tile_rows;
    const int64_t rows = problem.batch_sizes[time(i)] - first_row;
    return static_cast<int32_t>(fewer(rows < 0 ? 0 : rows, plan.batch_tile));
  }

  // An initial state that is to be multiplied is carried like any other. An adjoint walk begins
  // with the product already given; and from zero none is taken: 0 times an infinite weight would
  // be NaN.
  FUSED_BPTT_DEVICE bool carries_initial() const {
    return (problem.initial.data || problem.cuts.replacement.data) && !problem.adjoint;
  }

  // Whether the mask cuts row b of the tile at boundary t.
  FUSED_BPTT_DEVICE bool cut_at(int64_t t, int32_t b) const {
    const Cuts& c = problem.cuts;
    if (!c.mask) return false;
    t = ptx::unforeseen(t);
    const int64_t origin = problem.first_rows ? problem.first_rows[t] * c.row : t * c.step;
    return c
        .mask[origin + ptx::unforeseen(first_row + b) * c.row + ptx::unforeseen(group) * c.group];
  }

  // Whether the window cuts all rows at the boundary t > 0. Both are less than 2^32: a division of
  // 64 bits takes registers that W needs.
  FUSED_BPTT_DEVICE bool window_ends_at(int64_t t) const {
    const uint32_t window = static_cast<uint32_t>(problem.cuts.window);
    return window > 0 && static_cast<uint32_t>(t) % window == 0;
  }

  // Rows whose product step i takes, given the rows of steps i - 1 and i. The adjoint takes one
  // product more of a row than it has steps: then `rows` is smaller than `before`.
  FUSED_BPTT_DEVICE int32_t carried(int32_t before, int32_t rows) const {
    if (problem.adjoint) return before;
    return carries_initial() ? rows : at_most(before, rows);
  }

  // Whether step i takes a product: the one after the last does only in the adjoint.
  FUSED_BPTT_DEVICE bool multiplies(int64_t i) const {
    return i == 0 ? carries_initial() : i < steps || (i == steps && problem.adjoint);
  }

  // Units n < sent_columns are exchanged: H and what fills its last 16 bytes, which is zero.
  FUSED_BPTT_DEVICE int32_t sent_columns() const {
    return static_cast<int32_t>(round_up(problem.H, 16 / operand_bytes(plan.math)));
  }

  const KernelArgs& args;
  const Problem& problem;
  const Plan& plan;
  const int32_t index;  // of the team
  const int32_t rank;   // of this CTA in it
  int32_t group;
  int64_t first_row, steps;
  int32_t first_unit;  // less than 2^31: W would not fit in any memory
  int32_t tile_rows;
  bool down;

 private:
  FUSED_BPTT_DEVICE static int64_t fewer(int64_t a, int64_t b) { return a < b ? a : b; }

  FUSED_BPTT_DEVICE bool walks_backwards_device() const {
    return (group >= problem.G - problem.reverse_groups) != problem.adjoint;
  }

  // Rows leave a packed batch and never come back, so the tile has the steps before that at which
  // its first row leaves.
  FUSED_BPTT_DEVICE int64_t count_steps() const {
    if (!problem.batch_sizes) return problem.T;
    int64_t has = 0, past = problem.T;
    while (has < past) {
      const int64_t middle = has + (past - has) / 2;
      if (problem.batch_sizes[middle] > first_row) {
        has = middle + 1;
      } else {
        past = middle;
      }
    }
    return has;
  }
};

}  // namespace fused_bptt
