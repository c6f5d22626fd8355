// What the programs here share: loops over threads, random operands, and the equations of
// problem.h as plain loops, one row at a time.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/dispatch.h"

namespace fused_bptt {

// A parallel loop of its own, one thread for each index, as the engine expects of Torch's.
inline void threads(int64_t n, void (*f)(int64_t, int64_t, void*), void* context) {
  std::vector<std::thread> team;
  for (int64_t i = 1; i < n; ++i) team.emplace_back(f, i, i + 1, context);
  f(0, 1, context);
  for (std::thread& t : team) t.join();
}

// One thread is handed everything, as in a nested parallel region.
inline void alone(int64_t n, void (*f)(int64_t, int64_t, void*), void* context) {
  f(0, n, context);
}

// With so many threads: the engine itself would not wake them for work so small. Called by a thread
// that has kept no working memory of an earlier call, larger than what this one needs.
template <class P>
void run_in_new_memory(const Kernels& kernels, const P& problem, int32_t count, ParallelFor loop) {
  std::thread([&] { run_with(kernels, problem, count, loop); }).join();
}

struct Case {
  int64_t T, B, G, H, reverse_groups;
  std::vector<int64_t> batch_sizes;  // empty: padded
};

inline std::string name_of(const Case& c) {
  return "T=" + std::to_string(c.T) + " B=" + std::to_string(c.B) + " G=" + std::to_string(c.G) +
         " H=" + std::to_string(c.H) + " reverse=" + std::to_string(c.reverse_groups) +
         (c.batch_sizes.empty() ? "" : " packed");
}

// The case's part of a problem, and the tables that it points into.
struct Shape {
  explicit Shape(const Case& c) : batch_sizes(c.batch_sizes), packed(!batch_sizes.empty()) {
    for (const int64_t size : batch_sizes) first_rows.push_back(rows), rows += size;
    if (!packed) rows = c.T * c.B;
    problem.T = c.T, problem.B = c.B, problem.G = c.G, problem.H = c.H;
    problem.reverse_groups = c.reverse_groups;
    if (packed) problem.batch_sizes = batch_sizes.data(), problem.first_rows = first_rows.data();
  }
  Shape(const Shape&) = delete;

  // Contiguous sequences and states.
  Sequence sequence(void* data) const {
    const int64_t row = problem.G * problem.H;
    return {data, packed ? 0 : problem.B * row, row, problem.H};
  }
  State state(void* data) const { return {data, problem.B * problem.H, problem.H}; }

  const std::vector<int64_t> batch_sizes;
  const bool packed;
  std::vector<int64_t> first_rows;
  int64_t rows = 0;
  Problem problem{};
};

template <class S>
std::unique_ptr<S[]> random_block(int64_t n, double scale, std::mt19937& generator) {
  std::uniform_real_distribution<double> uniform(-scale, scale);
  std::unique_ptr<S[]> block(new S[static_cast<size_t>(n)]);
  for (int64_t i = 0; i < n; ++i) block[i] = static_cast<S>(uniform(generator));
  return block;
}

template <class S>
void reference(const Problem& p, double* out, double* last) {
  const S* weight = static_cast<const S*>(p.weight.data);
  const auto value = [&](const Sequence& s, int64_t t, int64_t b, int64_t g, int64_t n) {
    if (!s.data) return 0.0;
    return static_cast<double>(
        static_cast<const S*>(s.data)[origin(p, s, t) + b * s.row + g * s.group + n]);
  };
  for (int64_t g = 0; g < p.G; ++g) {
    for (int64_t b = 0; b < p.B; ++b) {
      std::vector<double> state(static_cast<size_t>(p.H), 0.0);
      std::vector<double> sum(static_cast<size_t>(p.H));
      const auto multiply = [&] {
        for (int64_t n = 0; n < p.H; ++n) {
          sum[n] = 0;
          for (int64_t k = 0; k < p.H; ++k) {
            const int64_t row = p.adjoint ? k : n, column = p.adjoint ? n : k;
            sum[n] += state[k] *
                      weight[g * p.weight.group + row * p.weight.row + column * p.weight.column];
          }
        }
      };
      if (p.initial.data) {
        const S* initial = static_cast<const S*>(p.initial.data);
        for (int64_t n = 0; n < p.H; ++n) {
          state[n] = initial[g * p.initial.group + b * p.initial.row + n];
        }
      }
      bool begun = false;
      for (int64_t i = 0; i < p.T; ++i) {
        const int64_t t = walks_backwards(p, g) ? p.T - 1 - i : i;
        if (b >= rows_at(p, t)) continue;
        if (p.adjoint && !begun) {
          sum = state;
        } else {
          multiply();
        }
        begun = true;
        for (int64_t n = 0; n < p.H; ++n) {
          const double x = value(p.drive, t, b, g, n) + sum[n];
          const double f = value(p.factor, t, b, g, n);
          if (p.primitive == Primitive::recurrence) {
            state[n] = p.phi == Phi::tanh ? std::tanh(x) : std::fmax(x, 0.0);
          } else if (p.phi == Phi::given) {
            state[n] = f * x;
          } else {
            state[n] = p.phi == Phi::tanh ? (1 - f * f) * x : (f > 0 ? x : 0.0);
          }
          out[origin(p, p.out, t) + b * p.out.row + g * p.out.group + n] = state[n];
        }
      }
      if (p.adjoint && begun) {
        multiply();
        state = sum;
      }
      for (int64_t n = 0; n < p.H; ++n) last[g * p.last.group + b * p.last.row + n] = state[n];
    }
  }
}

inline int failures = 0;

// Every difference is within the tolerance; NaN, which no element is when all are written, is not.
template <class S>
void expect_close(const std::string& where, const S* found, const std::vector<double>& expected,
                  double tolerance) {
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::fabs(found[i] - expected[i]) <= tolerance) continue;
    ++failures;
    std::printf("%s: element %zu: expected %.17g, got %.17g\n", where.c_str(), i, expected[i],
                static_cast<double>(found[i]));
    return;
  }
}

}  // namespace fused_bptt
