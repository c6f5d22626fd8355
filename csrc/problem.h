// What a kernel receives: sizes, strides and pointers. No Torch, no CUDA headers.
//
// T steps, B batch rows, G independent recurrences (groups), H hidden units.
#pragma once

#include <cstdint>

namespace fused_bptt {

enum class Type : int32_t { float32, float64, bfloat16, float16 };

// recurrence         h_t = phi(u_t + W h_{t-1})
// linear recurrence  s_t = d_t * (v_t + W s_{t-1})
// leaky_rate         h_t = k_t * h_{t-1} + a_t * r_t,  r_t = phi(u_t + W h_{t-1})
// leaky_voltage      v_t = k_t * v_{t-1} + u_t + W r_{t-1},  r_t = phi(v_t)
// outer              m_t = w_t + k_t * m_{t-1} + d_t * (W m_{t-1})
// inner              m_t = w_t + k_t * m_{t-1} + W (d_{t-1} * m_{t-1})
// The last two begin with zero, and have no initial state, no last one and no replacement.
enum class Primitive : int32_t { recurrence, linear, leaky_rate, leaky_voltage, outer, inner };

// The two recurrences with and the two without a leak: which phi. Linear recurrence: where d_t
// comes from. `given` means that `factor` is d itself; otherwise `factor` is h, and d = phi' is
// taken from it: 1 - h^2 (tanh), [h > 0] (relu), h (1 - h) (sigmoid), 1 - e^-h (softplus), 1
// (identity).
enum class Phi : int32_t { given = 0, tanh = 1, relu = 2, sigmoid = 3, softplus = 4, identity = 5 };

// A sequence [T, B, G, H] whose last dimension is contiguous. Element (t, b, g, n) lies at
// data[origin(t) + b * row + g * group + n], where origin(t) is t * step, or first_rows[t] * row
// when the sequence is packed. Strides are in elements and may be 0 or negative.
struct Sequence {
  void* data;
  int64_t step;
  int64_t row;
  int64_t group;
};

// The recurrent weights [G, H, H]: weight_hh of group g, row = unit that receives.
struct Weights {
  const void* data;
  int64_t group;
  int64_t row;
  int64_t column;
};

// A state of every row at an end of its walk, [G, B, H], the last dimension contiguous.
struct State {
  void* data;
  int64_t group;
  int64_t row;
};

// Where walks are cut, each row on its own. The boundary between the steps t - 1 and t of row b in
// group g is cut where mask[origin + b * row + g * group] is not 0; origin is t * step, or
// first_rows[t] * row when the sequence is packed. A walk that crosses it, in either direction,
// carries `replacement` on from there, or zero where that is null; what it stores is not changed.
// Boundary 0 cuts h_0 off a walk that goes up in time, and, the adjoint of that, makes `last` of a
// walk down zero. The boundaries where the other walks begin and end are never cut.
struct Cuts {
  const bool* mask;  // null: none
  int64_t step, row, group;
  State replacement;  // [G, B, H]; null in an adjoint
  // Linear recurrence: beside these, all rows carry zero over the boundaries k * window, k > 0. 0:
  // none. Steps are counted from that of a whole sequence of which `before` steps come before
  // these.
  int64_t window;
  int64_t before;
};

// What BPTT does to the cotangent of every state, a_t = g_t + W^T q_{t+1} or with a leak y_t (of
// leaky_voltage q_t), before it goes on to anything: each number is held within [-limit, limit], or
// each row is multiplied by limit / |a_t| where that is less than 1.
struct Clip {
  enum class Kind : int32_t { none = 0, value = 1, norm = 2 };
  Kind kind;
  double limit;
};

struct Problem {
  Primitive primitive;
  Phi phi;
  // Walk every group the other way in time, with W^T:
  //   linear  q_t = d_t * (v_t + r_t), r_t = W^T q_{t+1}
  //   outer   y_t = w_t + k_{t+1} * y_{t+1} + W^T (d_{t+1} * y_{t+1})
  //   inner   y_t = w_t + k_{t+1} * y_{t+1} + d_t * (W^T y_{t+1})
  // and BPTT of the two with a leak, with the cotangents g of the state and c of r:
  //   leaky_rate     y_t = g_t + k_{t+1} * y_{t+1} + W^T q_{t+1}, q_t = phi' * (a_t * y_t + c_t)
  //   leaky_voltage  q_t = g_t + k_{t+1} * q_{t+1} + phi' * (W^T q_{t+1} + c_t)
  bool adjoint;
  Type type;
  int64_t T, B, G, H;
  // The last `reverse_groups` groups walk from the last step to the first.
  int64_t reverse_groups;
  // Packed sequences: rows at each step [T], never increasing, and the row that each step begins
  // at [T]. Both null: B rows at every step.
  const int64_t* batch_sizes;
  const int64_t* first_rows;
  Sequence drive;   // u, v, w or g; null v or g stands for zero
  Sequence factor;  // d or h; of BPTT with a leak r
  Sequence keep;    // k; of those with a leak
  Sequence gain;    // a; of leaky_rate
  // Of leaky_rate, bool: whether a unit keeps its state. k is 1 or 0 for it and a is 1 - k, and
  // there are no others.
  Sequence held;
  Weights weight;
  // Where each row's walk starts: h_0 or s_0; adjoint: r after the last step, which is the
  // cotangent of the last state. Null stands for zero, and then no product is taken with it at all.
  // BPTT with a leak: the cotangent of the last state, which takes the place of k * y.
  State initial;
  Sequence out;   // h, in the place of u; or s, h, v, m, q
  Sequence rate;  // r, of leaky_rate and leaky_voltage; of their BPTT c, null for zero
  // Where each row's walk ends: h, s or v after its last step; adjoint: W^T q_1, the cotangent of
  // s_0; BPTT with a leak: k_1 * y_1. Null: not wanted.
  State last;
  Cuts cuts;
  State last_product;  // BPTT with a leak: q_1
  // BPTT: the sums of q_t, and with a leak of k_t * y_t, over the steps that each row began with a
  // replacement are added to these. float64, whatever the type. Null: not wanted.
  State replaced_product, replaced;
  Clip clip;  // of an adjoint of linear, and of BPTT with a leak
};

// States as a walk met them before its steps: in the sequence; h_0; and what a cut made of them,
// where null stands for zero and walk.cuts says where.
struct Carried {
  Sequence sequence;
  State initial, replacement;
};

// A whole layer of a network: the recurrence together with the products over all steps that go with
// it. `rows` is the number of rows of the sequence, T * B or the sum of batch_sizes.
//   forward    u_t = W_ih x_t + b_ih + b_hh into walk.out, which the recurrence then overwrites
//   backward   q = adjoint(phi'(h), g, W_hh), kept only as long as it is needed, for
//              x_bar_t = W_ih^T q_t, W_ih_bar = sum q_t x_t^T, W_hh_bar = sum q_t h_{t-1}^T, and
//              b_bar = sum q_t
// With a leak, u_t has s * noise_t added, W_hh multiplies h or r, and there are also
//              k_bar = sum y_t * (h or v)_{t-1}, a_bar = sum y_t * r_t, s_bar = sum q_t * noise_t
struct Layer {
  Problem walk;  // forward: drive = out = h; backward: the adjoint, factor = h or r, no out
  bool backward;
  int64_t I, rows;
  const void* x;        // [rows, I], contiguous
  Weights weight_ih;    // [G, H, I]
  const void* bias_ih;  // [G, H], contiguous; both biases are null where there are none
  const void* bias_hh;
  Sequence noise;           // null: none
  const void* noise_scale;  // s [G, H], contiguous; null: 1
  bool draws;               // forward: noise is drawn from the seed, and there is no other
  uint64_t seed;
  // Backward only. The gradients are contiguous, and null where they are not wanted.
  // members: 0, the gradients of the weights are one sum over all rows; n, the rows of each step
  // are those of n members, side by side, and there is a sum for each, [n, ...].
  int64_t members;
  Carried sent;         // what W_hh multiplied
  Carried state;        // with a leak: h or v
  void* x_bar;          // [rows, I]
  void* weight_ih_bar;  // [G, H, I]
  void* weight_hh_bar;  // [G, H, H]
  void* bias_bar;       // [G, H]
  void* keep_bar;       // [G, H], as the two that follow
  void* gain_bar;
  void* noise_scale_bar;
  bool accumulate;  // the gradients of the weights are added to what is there
};

// Standard normal numbers, float32 or float64, for [rows, G, H]; contiguous.
struct Normal {
  void* out;
  Type type;
  int64_t rows, G, H;
  uint64_t seed;
};

// For [rows, G, H], contiguous, true with this probability, above 0.
struct Flags {
  bool* out;
  int64_t rows, G, H;
  uint64_t seed;
  double probability;
};

inline int64_t rows_at(const Problem& p, int64_t t) {
  return p.batch_sizes ? p.batch_sizes[t] : p.B;
}

inline int64_t origin(const Problem& p, const Sequence& s, int64_t t) {
  return p.first_rows ? p.first_rows[t] * s.row : t * s.step;
}

// The row of the sequence that step t begins at, 0 <= t <= T; the steps are contiguous rows.
inline int64_t first_row(const Problem& p, int64_t t) {
  if (!p.first_rows) return t * p.B;
  return t < p.T ? p.first_rows[t] : (t == 0 ? 0 : p.first_rows[t - 1] + p.batch_sizes[t - 1]);
}

// Whether the state that is carried is apart from what W multiplies.
inline bool has_leak(const Problem& p) { return p.primitive >= Primitive::leaky_rate; }

// Whether the window cuts all rows at boundary t.
inline bool window_cuts(const Problem& p, int64_t t) {
  return p.cuts.window > 0 && t > 0 && (p.cuts.before + t) % p.cuts.window == 0;
}

// Whether anything may be cut at boundary t; `cut_at` says whether the mask cuts a row there.
inline bool may_cut(const Problem& p, int64_t t) { return p.cuts.mask || window_cuts(p, t); }

inline bool cut_at(const Problem& p, int64_t g, int64_t t, int64_t b) {
  const Cuts& c = p.cuts;
  const int64_t origin = p.first_rows ? p.first_rows[t] * c.row : t * c.step;
  return c.mask && c.mask[origin + b * c.row + g * c.group];
}

// How many sums over the rows there are.
inline int64_t sums_of(const Layer& layer) { return layer.members > 0 ? layer.members : 1; }

// Whether y is wanted where it is not q.
inline bool wants_total(const Layer& layer) {
  return layer.walk.primitive == Primitive::leaky_rate && (layer.keep_bar || layer.gain_bar);
}

inline bool walks_backwards(const Problem& p, int64_t g) {
  return (g >= p.G - p.reverse_groups) != p.adjoint;
}

}  // namespace fused_bptt
