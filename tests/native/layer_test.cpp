// Whole layers without Torch: every ISA of this machine, forward and backward, against plain loops
// in double. Each buffer is a heap block of its exact size, so that a sanitizer sees a step
// outside.
//
// Built and run by tests/test_native.py under AddressSanitizer with UBSan, and ThreadSanitizer.
#include <algorithm>
#include <cstring>
#include <limits>

#include "reference.h"

namespace {

using namespace fused_bptt;

// An operand in the type under test, and the same numbers in double.
template <class S>
struct Operand {
  Operand(int64_t n, double scale, std::mt19937& generator)
      : data(random_block<S>(n, scale, generator)), wide(data.get(), data.get() + n) {}
  std::unique_ptr<S[]> data;
  std::vector<double> wide;
};

template <class S>
struct Operands {
  Operands(const Shape& shape, int64_t I, std::mt19937& random)
      : Operands(shape.problem.G, shape.problem.B, shape.problem.H, I, shape.rows, random) {}
  Operands(int64_t G, int64_t B, int64_t H, int64_t I, int64_t rows, std::mt19937& random)
      : x(rows * I, 1, random),
        weight_ih(G * H * I, 1 / std::sqrt(I + 1), random),
        weight_hh(G * H * H, 1 / std::sqrt(H + 1), random),
        bias_ih(G * H, 1, random),
        bias_hh(G * H, 1, random),
        h0(G * B * H, 1, random),
        h(rows * G * H, 1, random),
        g(rows * G * H, 1, random),
        g_last(G * B * H, 1, random) {}
  Operand<S> x, weight_ih, weight_hh, bias_ih, bias_hh, h0, h, g, g_last;
};

// What is chosen beside the shape. `transposed`: the weights lie in memory column by column.
struct Options {
  Phi phi;
  bool transposed;
  bool biases;     // forward
  bool g, g_last;  // backward
};

enum Wanted { kX = 1, kWeightIh = 2, kWeightHh = 4, kBias = 8, kAll = 15 };

template <class S>
void* data_of(Operand<S>& operand) {
  return operand.data.get();
}
template <class S>
void* wide_of(Operand<S>& operand) {
  return operand.wide.data();
}

// The layer of these operands, each found by `at`: as it is, or in double.
template <class S, class F>
Layer layer_of(const Shape& shape, int64_t I, Operands<S>& o, const Options& options, bool backward,
               const F& at) {
  Layer layer{};
  Problem& p = layer.walk;
  p = shape.problem;
  const int64_t H = p.H;
  const bool turned = options.transposed;
  p.weight = {at(o.weight_hh), H * H, turned ? 1 : H, turned ? H : 1};
  p.phi = options.phi;
  layer.weight_ih = {at(o.weight_ih), H * I, turned ? 1 : I, turned ? H : 1};
  layer.I = I;
  layer.rows = shape.rows;
  layer.x = at(o.x);
  layer.sent.initial = shape.state(at(o.h0));
  layer.backward = backward;
  if (backward) {
    p.primitive = Primitive::linear;
    p.adjoint = true;
    p.factor = layer.sent.sequence = shape.sequence(at(o.h));
    p.drive = shape.sequence(options.g ? at(o.g) : nullptr);
    p.initial = shape.state(options.g_last ? at(o.g_last) : nullptr);
  } else {
    p.primitive = Primitive::recurrence;
    p.initial = layer.sent.initial;
    layer.bias_ih = options.biases ? at(o.bias_ih) : nullptr;
    layer.bias_hh = options.biases ? at(o.bias_hh) : nullptr;
  }
  return layer;
}

using Expected = std::vector<std::vector<double>>;

double element(const Weights& w, int64_t g, int64_t row, int64_t column) {
  return static_cast<const double*>(w.data)[g * w.group + row * w.row + column * w.column];
}

// h and the last h.
Expected forward(Layer layer, const Shape& shape) {
  Problem& p = layer.walk;
  const auto* x = static_cast<const double*>(layer.x);
  const auto* bias_ih = static_cast<const double*>(layer.bias_ih);
  const auto* bias_hh = static_cast<const double*>(layer.bias_hh);
  std::vector<double> u(static_cast<size_t>(layer.rows * p.G * p.H));
  std::vector<double> h(u.size()), last(static_cast<size_t>(p.G * p.B * p.H));
  for (int64_t r = 0; r < layer.rows; ++r) {
    for (int64_t g = 0; g < p.G; ++g) {
      for (int64_t n = 0; n < p.H; ++n) {
        double& sum = u[(r * p.G + g) * p.H + n];
        if (bias_ih) sum = bias_ih[g * p.H + n] + bias_hh[g * p.H + n];
        for (int64_t i = 0; i < layer.I; ++i) {
          sum += element(layer.weight_ih, g, n, i) * x[r * layer.I + i];
        }
      }
    }
  }
  p.drive = p.out = shape.sequence(u.data());
  p.last = shape.state(last.data());
  reference<double>(p, h.data(), last.data());
  return {h, last};
}

// The gradients of h_0, x, W_ih, W_hh and a bias.
Expected backward(Layer layer, const Shape& shape) {
  Problem& p = layer.walk;
  const int64_t H = p.H, I = layer.I;
  const auto block = [](int64_t n) { return std::vector<double>(static_cast<size_t>(n), 0.0); };
  Expected bars = {block(p.G * p.B * H), block(layer.rows * I), block(p.G * H * I),
                   block(p.G * H * H), block(p.G * H)};
  std::vector<double> q = block(layer.rows * p.G * H);
  p.out = shape.sequence(q.data());
  p.last = shape.state(bars[0].data());
  reference<double>(p, q.data(), bars[0].data());

  const auto* x = static_cast<const double*>(layer.x);
  const auto* h = static_cast<const double*>(p.factor.data);
  for (int64_t g = 0; g < p.G; ++g) {
    for (int64_t b = 0; b < p.B; ++b) {
      const State& h0 = layer.sent.initial;
      const double* previous = static_cast<const double*>(h0.data) + g * h0.group + b * h0.row;
      for (int64_t i = 0; i < p.T; ++i) {
        const bool backwards = g >= p.G - p.reverse_groups;
        const int64_t t = backwards ? p.T - 1 - i : i;
        if (b >= rows_at(p, t)) continue;
        const int64_t r = first_row(p, t) + b;
        for (int64_t n = 0; n < H; ++n) {
          const double qn = q[(r * p.G + g) * H + n];
          for (int64_t k = 0; k < I; ++k) {
            bars[1][r * I + k] += qn * element(layer.weight_ih, g, n, k);
            bars[2][(g * H + n) * I + k] += qn * x[r * I + k];
          }
          for (int64_t k = 0; k < H; ++k) bars[3][(g * H + n) * H + k] += qn * previous[k];
          bars[4][g * H + n] += qn;
        }
        previous = h + (r * p.G + g) * H;
      }
    }
  }
  return bars;
}

// A result to be written, and written whole: it begins as NaN. Empty where it is not wanted.
template <class S>
struct Block {
  Block(bool wanted, const std::vector<double>& model) : size(wanted ? model.size() : 0) {
    if (!wanted) return;
    data.reset(new S[size]);
    std::fill(data.get(), data.get() + size, std::numeric_limits<S>::quiet_NaN());
  }
  std::unique_ptr<S[]> data;
  size_t size;
};

template <class S>
std::vector<Block<S>> solve(const Kernels& kernels, Layer layer, const Shape& shape, int wanted,
                            const Expected& expected, int count, ParallelFor loop) {
  std::vector<Block<S>> found;
  for (size_t i = 0; i < expected.size(); ++i) {
    const bool always = i == 0 || !layer.backward;
    found.emplace_back(always || (wanted >> (i - 1) & 1), expected[i]);
  }
  if (layer.backward) {
    layer.walk.last = shape.state(found[0].data.get());
    layer.x_bar = found[1].data.get();
    layer.weight_ih_bar = found[2].data.get();
    layer.weight_hh_bar = found[3].data.get();
    layer.bias_bar = found[4].data.get();
  } else {
    layer.walk.out = layer.walk.drive = shape.sequence(found[0].data.get());
    layer.walk.last = shape.state(found[1].data.get());
  }
  run_in_new_memory(kernels, layer, count, loop);
  return found;
}

template <class S>
void check(const std::string& name, const Layer& layer, const Shape& shape,
           const std::vector<int>& wanted, const Expected& expected, double tolerance) {
  for (const Kernels* kernels : supported_kernels()) {
    std::vector<Block<S>> first;
    for (const int count : {1, 2, 3, 5}) {
      for (const ParallelFor loop : {&threads, &alone}) {
        if (count == 1 && loop == &alone) continue;  // the same
        for (const int some : wanted) {
          if (some != wanted[0] && count != 2) continue;
          const std::string where = name + " " + kernels->name + " wanted=" + std::to_string(some) +
                                    " threads=" + std::to_string(count) +
                                    (loop == &alone ? " alone" : "");
          std::vector<Block<S>> found =
              solve<S>(*kernels, layer, shape, some, expected, count, loop);
          // The bits depend neither on how many threads there are nor on how many of them come, nor
          // on what else is wanted.
          if (first.empty()) {
            for (size_t i = 0; i < found.size(); ++i) {
              double largest = 1;
              for (const double value : expected[i]) largest = std::max(largest, std::fabs(value));
              expect_close(where + " result " + std::to_string(i), found[i].data.get(), expected[i],
                           tolerance * largest);
            }
            first = std::move(found);
            continue;
          }
          for (size_t i = 0; i < found.size(); ++i) {
            if (!found[i].data || std::memcmp(found[i].data.get(), first[i].data.get(),
                                              found[i].size * sizeof(S)) == 0) {
              continue;
            }
            ++failures;
            std::printf("%s result %zu: other bits\n", where.c_str(), i);
          }
        }
      }
    }
  }
}

template <class S>
void check_case(const Case& c, int64_t I, Type type, double tolerance) {
  std::mt19937 random(1);
  Shape shape(c);
  shape.problem.type = type;
  Operands<S> operands(shape, I, random);
  const auto data = [](Operand<S>& operand) { return data_of(operand); };
  const auto wide = [](Operand<S>& operand) { return wide_of(operand); };
  const std::string name =
      name_of(c) + " I=" + std::to_string(I) + (sizeof(S) == 4 ? " float" : "");

  for (const Options& options : {Options{Phi::tanh, false, true, false, false},
                                 Options{Phi::relu, true, false, false, false}}) {
    const Expected expected = forward(layer_of(shape, I, operands, options, false, wide), shape);
    check<S>(name + " forward", layer_of(shape, I, operands, options, false, data), shape, {kAll},
             expected, tolerance);
  }
  struct Backward {
    Options options;
    std::vector<int> wanted;  // all first
  };
  const Backward ways[] = {
      {{Phi::tanh, false, false, true, true}, {kAll, 0, kX, kWeightIh, kWeightHh, kBias}},
      {{Phi::relu, true, false, false, true}, {kAll}},
      {{Phi::tanh, true, false, true, false}, {kAll, kWeightIh | kWeightHh | kBias}},
      {{Phi::relu, false, false, false, false}, {kAll}},
  };
  for (const auto& [options, wanted] : ways) {
    const Expected expected = backward(layer_of(shape, I, operands, options, true, wide), shape);
    check<S>(name + " backward", layer_of(shape, I, operands, options, true, data), shape, wanted,
             expected, tolerance);
  }
}

// From B rows at the first of T steps to none at the last.
std::vector<int64_t> shrinking(int64_t T, int64_t B) {
  std::vector<int64_t> sizes;
  for (int64_t t = 0; t < T; ++t) sizes.push_back(B - B * t / (T - 1));
  return sizes;
}

}  // namespace

int main() {
  struct {
    Case shape;
    int64_t I;
  } const cases[] = {
      // Nothing of one kind or another.
      {{0, 3, 1, 5, 0, {}}, 4},
      {{0, 2, 2, 7, 1, {}}, 3},
      {{3, 0, 2, 5, 1, {}}, 3},
      {{4, 3, 2, 0, 1, {}}, 5},
      {{5, 3, 2, 7, 1, {}}, 0},
      {{4, 0, 2, 3, 1, {0, 0, 0, 0}}, 3},
      // Sizes on both sides of every tile and of vectors of 2, 4, 8 and 16.
      {{1, 1, 1, 1, 0, {}}, 1},
      {{3, 5, 3, 9, 2, {}}, 10},
      {{2, 14, 1, 65, 1, {}}, 130},
      // Several chunks of some hundred rows, the last one shorter.
      {{90, 13, 1, 16, 0, {}}, 9},
      {{90, 13, 1, 17, 1, {}}, 16},
      {{75, 15, 2, 33, 1, {}}, 31},
      {{19, 64, 2, 15, 2, {}}, 8},
      {{19, 60, 2, 9, 0, {}}, 3},
      {{600, 1, 1, 35, 0, {}}, 17},
      // Steps longer than a block of a sum.
      {{3, 520, 1, 9, 0, {}}, 5},
      {{2, 1030, 2, 5, 1, {}}, 19},
      // Packed, with steps that have no rows at the end.
      {{4, 5, 2, 19, 1, {5, 3, 3, 1}}, 2},
      {{6, 250, 1, 19, 0, {250, 250, 120, 60, 0, 0}}, 7},
      {{6, 250, 1, 8, 1, {250, 250, 120, 60, 0, 0}}, 7},
      {{101, 20, 2, 33, 1, shrinking(101, 20)}, 12},
      {{251, 5, 2, 7, 2, shrinking(251, 5)}, 3},
      {{4, 600, 2, 3, 1, {600, 520, 260, 0}}, 33},
  };
  for (const auto& [shape, I] : cases) {
    check_case<float>(shape, I, Type::float32, 3e-5);
    check_case<double>(shape, I, Type::float64, 1e-13);
  }
  std::printf("%s\n", failures == 0 ? "ok" : "FAILED");
  return failures == 0 ? 0 : 1;
}
