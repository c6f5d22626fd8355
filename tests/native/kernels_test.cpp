// The kernels without Torch: every ISA of this machine, both primitives, against plain loops in
// double. Each buffer is a heap block of its exact size, so that a sanitizer sees a step outside.
//
// Built and run by tests/test_native.py under AddressSanitizer with UBSan, and ThreadSanitizer.
#include <algorithm>
#include <cstring>
#include <limits>

#include "reference.h"

namespace {

using namespace fused_bptt;

template <class S>
void check(const Kernels& kernels, const Case& c, Type type, double tolerance) {
  std::mt19937 generator(1);
  const Shape shape(c);
  Problem p = shape.problem;
  p.type = type;
  const int64_t elements = shape.rows * c.G * c.H, states = c.G * c.B * c.H;
  const auto drive = random_block<S>(elements, 1, generator);
  const auto factor = random_block<S>(elements, 1, generator);
  const auto initial = random_block<S>(states, 1, generator);
  const auto weight = random_block<S>(c.G * c.H * c.H, 1.5 / std::sqrt(c.H), generator);
  p.weight = {weight.get(), c.H * c.H, c.H, 1};

  for (int variant = 0; variant < 12; ++variant) {
    const int kind = variant % 6;  // tanh, relu; then the linear recurrence
    p.primitive = kind < 2 ? Primitive::recurrence : Primitive::linear;
    p.phi = kind == 0 || kind == 3 ? Phi::tanh : kind == 1 || kind == 4 ? Phi::relu : Phi::given;
    p.adjoint = kind >= 2 && variant >= 6;
    p.drive = shape.sequence(kind == 5 ? nullptr : drive.get());
    p.factor = shape.sequence(kind < 2 ? nullptr : factor.get());
    p.initial = shape.state(kind >= 2 && kind % 2 ? nullptr : initial.get());

    std::vector<double> expected(static_cast<size_t>(elements), 0.0);
    std::vector<double> expected_last(static_cast<size_t>(states), 0.0);
    const std::unique_ptr<S[]> out(new S[static_cast<size_t>(elements)]);
    const std::unique_ptr<S[]> last(new S[static_cast<size_t>(states)]);
    p.out = shape.sequence(out.get());
    p.last = shape.state(last.get());
    reference<S>(p, expected.data(), expected_last.data());

    std::vector<S> first;
    for (const int count : {1, 2, 3, 5}) {
      for (const ParallelFor loop : {&threads, &alone}) {
        const S nan = std::numeric_limits<S>::quiet_NaN();
        std::fill(out.get(), out.get() + elements, nan);
        std::fill(last.get(), last.get() + states, nan);
        run_in_new_memory(kernels, p, count, loop);
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
        const std::string where = std::string(kernels.name) + " " + name_of(c) +
                                  " variant=" + std::to_string(variant) +
                                  " threads=" + std::to_string(count);
        expect_close(where, out.get(), expected, tolerance);
        expect_close(where + " last", last.get(), expected_last, tolerance);
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
