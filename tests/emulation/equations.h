// The equations of problem.h in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "cuda/recurrence.cuh"

namespace emulation {

using namespace fused_bptt;

inline double activation(Phi phi, double x) {
  switch (phi) {
    case Phi::tanh:
      return std::tanh(x);
    case Phi::relu:
      return 0 > x ? 0 : x;
    case Phi::sigmoid:
      return 1 / (1 + std::exp(-x));
    case Phi::softplus:
      return std::log1p(std::exp(x));
    default:
      return x;
  }
}

// d, of the value f of phi; or f itself.
inline double slope(Phi phi, double f) {
  switch (phi) {
    case Phi::tanh:
      return 1 - f * f;
    case Phi::relu:
      return f <= 0 ? 0 : 1;
    case Phi::sigmoid:
      return f * (1 - f);
    case Phi::softplus:
      return 1 - std::exp(-f);
    case Phi::identity:
      return 1;
    default:
      return f;
  }
}

// A number of a sequence, or of a state; zero where there is none.
template <class Storage>
double number(const Problem& p, const Sequence& s, int64_t t, int64_t b, int64_t g, int64_t n) {
  if (!s.data) return 0;
  const int64_t at = origin(p, s, t) + b * s.row + g * s.group + n;
  return widen(static_cast<const Storage*>(s.data)[at]);
}
template <class Storage>
double number(const State& s, int64_t b, int64_t g, int64_t n) {
  if (!s.data) return 0;
  return widen(static_cast<const Storage*>(s.data)[g * s.group + b * s.row + n]);
}

// W of a group times a vector; in an adjoint, its transpose.
template <class Storage>
std::vector<double> product(const Problem& p, int64_t g, const std::vector<double>& vector) {
  const Storage* weight = static_cast<const Storage*>(p.weight.data) + g * p.weight.group;
  std::vector<double> sums;
  for (int64_t n = 0; n < p.H; ++n) {
    double sum = 0;
    for (int64_t k = 0; k < p.H; ++k) {
      const int64_t row = p.adjoint ? k : n, column = p.adjoint ? n : k;
      sum += vector[static_cast<size_t>(k)] *
             widen(weight[row * p.weight.row + column * p.weight.column]);
    }
    sums.push_back(sum);
  }
  return sums;
}

// What BPTT clips: the cotangent of a row's state.
inline void hold(const Clip& clip, std::vector<double>& row) {
  double squares = 0;
  for (const double x : row) squares += x * x;
  const double share = clip.limit / std::sqrt(squares);
  for (double& x : row) {
    if (clip.kind == Clip::Kind::norm) x *= share > 1 ? 1 : share;
    if (clip.kind == Clip::Kind::value && !std::isnan(x))
      x = std::clamp(x, -clip.limit, clip.limit);
  }
}

// The two primitives without a leak, one row at a time.
template <class Storage>
void reference(const Problem& p, std::vector<double>& out, std::vector<double>& last) {
  const size_t H = static_cast<size_t>(p.H);
  for (int64_t g = 0; g < p.G; ++g) {
    for (int64_t b = 0; b < p.B; ++b) {
      std::vector<double> state(H, 0.0), sum(H, 0.0);
      const auto multiply = [&] { sum = product<Storage>(p, g, state); };
      const auto begin = [&](const State& s) {
        for (int64_t n = 0; n < p.H; ++n) {
          state[static_cast<size_t>(n)] = number<Storage>(s, b, g, n);
        }
      };
      const bool backwards = walks_backwards(p, g);
      const bool multiplies_first = !p.adjoint && (p.initial.data || p.cuts.replacement.data);
      begin(p.initial);
      bool begun = false;
      for (int64_t i = 0; i < p.T; ++i) {
        const int64_t t = backwards ? p.T - 1 - i : i;
        if (b >= rows_at(p, t)) continue;
        const int64_t boundary = t + (backwards ? 1 : 0);
        if (begun || (multiplies_first && !backwards)) {
          if (cut_at(p, g, boundary, b)) {
            begin(p.cuts.replacement);
          } else if (p.cuts.window > 0 && boundary > 0 && boundary % p.cuts.window == 0) {
            begin({});
          }
        }
        if (p.adjoint && !begun) {
          sum = state;
        } else if (begun || multiplies_first) {
          multiply();
        }
        begun = true;
        for (int64_t n = 0; n < p.H; ++n) {
          sum[static_cast<size_t>(n)] += number<Storage>(p, p.drive, t, b, g, n);
        }
        hold(p.clip, sum);
        for (int64_t n = 0; n < p.H; ++n) {
          const double x = sum[static_cast<size_t>(n)];
          const double f = number<Storage>(p, p.factor, t, b, g, n);
          double& s = state[static_cast<size_t>(n)];
          s = p.primitive == Primitive::recurrence ? activation(p.phi, x) : slope(p.phi, f) * x;
          const int64_t at = origin(p, p.out, t) + b * p.out.row + g * p.out.group + n;
          out[static_cast<size_t>(at)] = s;
        }
      }
      if (p.adjoint && begun) {
        multiply();
        state = sum;
        if (backwards && cut_at(p, g, 0, b)) begin({});
      }
      for (int64_t n = 0; n < p.H; ++n) {
        last[static_cast<size_t>(g * p.last.group + b * p.last.row + n)] =
            state[static_cast<size_t>(n)];
      }
    }
  }
}

}  // namespace emulation
