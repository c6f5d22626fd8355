// The kernels without Torch: every ISA of this machine, both primitives, against plain loops in
// double. Each buffer is a heap block of its exact size, so that a sanitizer sees a step outside.
//
// Built and run by tests/test_native.py under AddressSanitizer with UBSan, and ThreadSanitizer.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/dispatch.h"

namespace {

using namespace fused_bptt;

// A parallel loop of its own, one thread for each index, as the engine expects of Torch's.
void threads(int64_t n, void (*f)(int64_t, int64_t, void*), void* context) {
  std::vector<std::thread> team;
  for (int64_t i = 1; i < n; ++i) team.emplace_back(f, i, i + 1, context);
  f(0, 1, context);
  for (std::thread& t : team) t.join();
}

// One thread is handed everything, as in a nested parallel region.
void alone(int64_t n, void (*f)(int64_t, int64_t, void*), void* context) { f(0, n, context); }

struct Case {
  int64_t T, B, G, H, reverse_groups;
  std::vector<int64_t> batch_sizes;  // empty: padded
};

template <class S>
std::unique_ptr<S[]> random_block(int64_t n, double scale, std::mt19937& generator) {
  std::uniform_real_distribution<double> uniform(-scale, scale);
  std::unique_ptr<S[]> block(new S[static_cast<size_t>(n)]);
  for (int64_t i = 0; i < n; ++i) block[i] = static_cast<S>(uniform(generator));
  return block;
}

// The equations of problem.h, one row at a time.
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

int failures = 0;

template <class S>
void check(const Kernels& kernels, const Case& c, Type type, double tolerance) {
  std::mt19937 generator(1);
  Problem p{};
  p.type = type;
  p.T = c.T, p.B = c.B, p.G = c.G, p.H = c.H, p.reverse_groups = c.reverse_groups;
  std::vector<int64_t> first_rows;
  int64_t rows = 0;
  for (const int64_t size : c.batch_sizes) first_rows.push_back(rows), rows += size;
  const bool packed = !c.batch_sizes.empty();
  if (packed) p.batch_sizes = c.batch_sizes.data(), p.first_rows = first_rows.data();
  if (!packed) rows = c.T * c.B;

  const int64_t elements = rows * c.G * c.H, states = c.G * c.B * c.H;
  const auto drive = random_block<S>(elements, 1, generator);
  const auto factor = random_block<S>(elements, 1, generator);
  const auto initial = random_block<S>(states, 1, generator);
  const auto weight = random_block<S>(c.G * c.H * c.H, 1.5 / std::sqrt(c.H), generator);
  const auto sequence = [&](S* data) {
    return Sequence{data, packed ? 0 : c.B * c.G * c.H, c.G * c.H, c.H};
  };
  const auto state = [&](S* data) { return State{data, c.B * c.H, c.H}; };
  p.weight = {weight.get(), c.H * c.H, c.H, 1};

  for (int variant = 0; variant < 12; ++variant) {
    const int kind = variant % 6;  // tanh, relu; then the linear recurrence
    p.primitive = kind < 2 ? Primitive::recurrence : Primitive::linear;
    p.phi = kind == 0 || kind == 3 ? Phi::tanh : kind == 1 || kind == 4 ? Phi::relu : Phi::given;
    p.adjoint = kind >= 2 && variant >= 6;
    p.drive = sequence(kind == 5 ? nullptr : drive.get());
    p.factor = sequence(kind < 2 ? nullptr : factor.get());
    p.initial = state(kind >= 2 && kind % 2 ? nullptr : initial.get());

    std::vector<double> expected(static_cast<size_t>(elements), 0.0);
    std::vector<double> expected_last(static_cast<size_t>(states), 0.0);
    const std::unique_ptr<S[]> out(new S[static_cast<size_t>(elements)]);
    const std::unique_ptr<S[]> last(new S[static_cast<size_t>(states)]);
    p.out = sequence(out.get());
    p.last = state(last.get());
    reference<S>(p, expected.data(), expected_last.data());

    std::vector<S> first;
    for (const int count : {1, 2, 3, 5}) {
      for (const ParallelFor loop : {&threads, &alone}) {
        // The engine itself would not wake threads for work so small.
        run_with(kernels, p, count, loop);
        // The bits depend neither on how many threads there are nor on how many of them come.
        if (count == 1 && loop == &threads) {
          first.assign(out.get(), out.get() + elements);
          first.insert(first.end(), last.get(), last.get() + states);
        } else if (std::memcmp(first.data(), out.get(), elements * sizeof(S)) != 0 ||
                   std::memcmp(first.data() + elements, last.get(), states * sizeof(S)) != 0) {
          ++failures;
          std::printf("%s H=%ld variant=%d threads=%d: other bits\n", kernels.name, long(c.H),
                      variant, count);
        }
        double worst = 0;
        for (int64_t i = 0; i < elements; ++i) {
          worst = std::fmax(worst, std::fabs(out[i] - expected[i]));
        }
        for (int64_t i = 0; i < states; ++i) {
          worst = std::fmax(worst, std::fabs(last[i] - expected_last[i]));
        }
        if (!(worst <= tolerance)) {
          ++failures;
          std::printf("%s T=%ld B=%ld G=%ld H=%ld packed=%d variant=%d threads=%d: off by %g\n",
                      kernels.name, long(c.T), long(c.B), long(c.G), long(c.H), packed, variant,
                      count, worst);
        }
      }
    }
  }
}

}  // namespace

int main() {
  // Sizes on both sides of every tile: rows 1, 3, 6, 9, 14; vectors of 4, 8 and 16.
  const std::vector<Case> cases = {
      {0, 3, 1, 5, 0, {}},
      {1, 1, 1, 1, 0, {}},
      {3, 2, 2, 7, 1, {}},
      {4, 15, 1, 17, 0, {}},
      {3, 4, 3, 33, 2, {}},
      {2, 29, 1, 65, 1, {}},
      {3, 1, 1, 131, 0, {}},
      {2, 10, 2, 48, 1, {}},
      {4, 5, 2, 19, 1, {5, 3, 3, 1}},
      {3, 16, 1, 40, 1, {16, 16, 7}},
      {5, 2, 3, 9, 2, {2, 2, 2, 1, 1}},
  };
  for (const Kernels* kernels : supported_kernels()) {
    for (const Case& c : cases) {
      check<float>(*kernels, c, Type::float32, 3e-5);
      check<double>(*kernels, c, Type::float64, 1e-13);
    }
    std::printf("%s: %s\n", kernels->name, failures == 0 ? "ok" : "FAILED");
  }
  return failures == 0 ? 0 : 1;
}
