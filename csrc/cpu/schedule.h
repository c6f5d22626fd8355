// Which thread computes what: a pure function of the problem, the vector width and the number of
// threads. It changes the time a call takes, never its bits.
#pragma once

#include <cstdint>

#include "../problem.h"

namespace fused_bptt {

// What the schedule knows of an instruction set.
struct Machine {
  int64_t lanes;    // elements of the compute type in one vector
  int64_t rows[9];  // rows[n]: most rows of a register tile n vectors wide
};

struct Schedule {
  int32_t row_parts;      // each group's batch rows are cut into this many parts
  int32_t column_parts;   // each vector of hidden units belongs to one of this many threads
  int32_t teams;          // teams of column_parts threads; each takes (group, row part) in turn
  int32_t panel_vectors;  // widest panel of packed weights, in vectors
  // Loop over panels outside and blocks of rows inside: each part of W comes into the L2 cache once
  // a step. The other way round, better when W stays there, a block of rows stays in L1.
  bool panels_outside;
};

// How a layer's walk and products take turns.
struct LayerSchedule {
  Schedule walk;
  int64_t steps;            // of a chunk, chunk_steps()
  int32_t input_panel;      // widest panels, in vectors: of u or x_bar,
  int32_t hidden_gradient;  // of W_hh_bar
  int32_t input_gradient;   // and of W_ih_bar
};

// Steps that a layer projects, walks and multiplies in turn: as many as make some 512 rows.
inline int64_t chunk_steps(int64_t B) { return 512 / (B < 1 ? 1 : B > 512 ? 512 : B); }

// Rows of a sum over time that are packed at once, and of one chain of multiply-adds: rounding
// grows with a chain's length.
constexpr int64_t kSumBlock = 512;
constexpr int64_t kSumChain = 128;
// Vectors of such rows, together: 256 KiB, which stay in the L2 cache.
constexpr int64_t kSumVectors = 8;

Schedule make_schedule(const Problem& problem, const Machine& machine, int64_t compute_bytes,
                       int32_t threads);

// The same of a layer with as few steps as it may have. Of each member as many rows: a sum is gone
// through once a chunk, and what all members' sums come to is in no cache.
int64_t chunk_steps(const Layer& layer);

// How many chunks of q there is room for: one is read while the next is made.
inline int64_t chunks_at_once(int64_t steps, int64_t T) { return steps < T ? 2 : 1; }

LayerSchedule make_layer_schedule(const Layer& layer, const Machine& machine, int64_t compute_bytes,
                                  int32_t threads);

// Cycles of a layer's products on one core; they divide evenly among threads.
double product_cycles(const Layer& layer, const Machine& machine);

// The number of threads worth waking for this problem, from 1 to `available`, and for `divisible`
// cycles of work beside it.
int32_t worthwhile_threads(const Problem& problem, const Machine& machine, int64_t compute_bytes,
                           int32_t available, double divisible);

// Cuts [0, total) into `parts` nearly equal parts and gives the beginning of part `index`.
inline int64_t part_begin(int64_t total, int64_t parts, int64_t index) {
  return total / parts * index + (index < total % parts ? index : total % parts);
}

}  // namespace fused_bptt
