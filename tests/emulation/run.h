// Launches a kernel in the emulation with the plan that a test names, on random data, and compares
// with the equations in double.
#pragma once

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda/leaky_walk.cuh"
#include "cuda/norm_step.cuh"
#include "equations.h"
#include "leaky_reference.h"

namespace emulation {

using namespace fused_bptt;

// How the work is cut; the rest of the plan follows.
struct Cut {
  Exchange exchange = Exchange::cta;
  Residence residence = Residence::registers;
  int32_t ctas = 1;
  int32_t row_warps = 1;
  int32_t k_splits = 1;
  int32_t batch_tile = 8;
  int32_t resident_teams = 0;  // grid: teams on the device together, 0 for all
  int32_t carry_quanta = 0;    // grid, launches: of k in shared memory at once, 0 for all
};

struct Shape {
  int64_t T = 3, B = 2, G = 1, H = 5, reverse_groups = 0;
  std::vector<int64_t> batch_sizes = {};  // empty: padded
};

struct Options {
  Phi phi = Phi::tanh;
  bool adjoint = false;
  bool drive = true;
  bool initial = true;
  bool still = false;       // linear: drive and factor the same at every step, by a stride of 0
  bool infinite = false;    // one entry of W: a product with a zero that nobody gave is NaN
  bool transposed = false;  // W through its strides
  bool reset = false;       // a mask, of each group its own; boundary 0 too
  bool replacement = false;
  int64_t window = 0;
  double clip = 0;       // launches, linear, adjoint: the largest number, or
  bool by_norm = false;  // the largest norm of a row
};

// `fragments` of a launch is 0: it keeps nothing of W.
inline Plan plan_of(Math math, const Cut& cut, const Shape& shape, int32_t row_tiles,
                    int32_t fragments, Step step) {
  Plan plan{};
  plan.math = math;
  plan.exchange = cut.exchange;
  plan.residence = cut.residence;
  plan.ctas = cut.ctas;
  plan.batch_tile = cut.batch_tile;
  plan.k_splits = cut.k_splits;
  plan.threads = 32 * cut.row_warps * cut.k_splits;
  plan.row_tiles = row_tiles;
  plan.fragments = fragments;
  plan.step = step;
  plan.units = unit_quantum(plan);
  plan.carry_columns = static_cast<int32_t>(cut.carry_quanta ? cut.carry_quanta * k_quantum(plan)
                                                             : carry_width(plan, shape.H));
  plan.teams = shape.G * ((shape.B + cut.batch_tile - 1) / cut.batch_tile);
  plan.shared_bytes = shared_bytes(plan, shape.H);
  if (plan.ctas * plan.units < shape.H) fail("the case's plan has too few units");
  if ((plan.exchange == Exchange::launches) != (fragments == 0)) {
    fail("the case's plan keeps W in registers of a launch, or nothing of it");
  }
  const bool fits = fragments_of_k(plan, shape.H) <= registers_of_k(plan);
  if (fits != (plan.residence == Residence::registers)) {
    fail("the case's plan keeps W in registers or it does not");
  }
  return plan;
}

template <class Storage>
Storage stored(double x) {
  if constexpr (std::is_same_v<Storage, double>) {
    return x;
  } else {
    return round_to<Storage>(static_cast<float>(x));
  }
}

// Numbers with a fence of NaN on either side.
template <class Storage>
class Numbers {
 public:
  explicit Numbers(int64_t count)
      : all_(static_cast<size_t>(count + 2 * kFence), stored<Storage>(NAN)) {}
  Storage* data() { return all_.data() + kFence; }
  int64_t count() const { return static_cast<int64_t>(all_.size()) - 2 * kFence; }
  void draw(std::mt19937& generator, double scale) {
    std::uniform_real_distribution<double> uniform(-scale, scale);
    for (int64_t i = 0; i < count(); ++i) data()[i] = stored<Storage>(uniform(generator));
  }
  bool fences_hold() {
    for (int64_t i = 1; i <= kFence; ++i) {
      if (!std::isnan(widen(data()[-i])) || !std::isnan(widen(data()[count() - 1 + i])))
        return false;
    }
    return true;
  }

 private:
  static constexpr int64_t kFence = 64;
  std::vector<Storage> all_;
};

inline int failures = 0;
inline bool one_is_enough = false;

// The largest difference that rounding of operands and stores leaves, for states of size one.
inline double tolerance(Math math) {
  switch (math) {
    case Math::fp64:
      return 1e-14;
    case Math::fp32:
    case Math::tf32x3:
      return 4e-6;
    case Math::tf32:
    case Math::fp16:
      return 6e-3;
    default:
      return 5e-2;
  }
}

constexpr bool leaks(Primitive primitive) { return primitive >= Primitive::leaky_rate; }

// The kernels on the plan of `args`, whose workspace holds what it may.
template <Math math, int kRowTiles, int kFragments, template <class, class> class Exchange,
          Primitive primitive>
void solve(KernelArgs args, int64_t resident_teams) {
  const Plan& plan = args.plan;
  const Problem& p = args.problem;
  std::memset(args.workspace, 0, static_cast<size_t>(workspace_zero_bytes(plan)));
  // W lies alike whatever a kernel keeps of it.
  using Packed = Product<math, kRowTiles, kFragments == 0 ? kRowTiles : kFragments>;
  run_one_by_one([&] { pack_kernel<Packed>(args); }, pack_blocks(plan, p.H, p.G), plan.threads);
  if constexpr (kFragments == 0) {
    using Streamed = StreamedProduct<math, kRowTiles>;
    const auto kernel = [&] {
      if constexpr (leaks(primitive)) {
        leaky_round_kernel<Streamed>(args);
      } else if (plan.step == Step::norm_clipped) {
        sums_kernel<Streamed>(args);
      } else if (plan.step == Step::clipped) {
        step_kernel<Streamed, Primitive::linear, true>(args);
      } else {
        step_kernel<Streamed, primitive>(args);
      }
    };
    const int64_t ctas = plan.teams * plan.ctas;
    for (args.step = 0; args.step < launches(plan, p); ++args.step) {
      run_together(kernel, 0, ctas, ctas, plan.threads, 1, plan.shared_bytes);
      if (plan.step != Step::norm_clipped) continue;
      const int64_t rows = plan.teams * plan.batch_tile;
      for (int64_t row = 0; row < rows; ++row) {
        run_together([&] { clip_kernel<OpsOf<math>>(args); }, row, 1, rows, kRowThreads, 1,
                     kRowSharedBytes);
      }
    }
  } else {
    const auto kernel = [&] {
      if constexpr (leaks(primitive)) {
        leaky_kernel<Packed, Exchange>(args);
      } else {
        recurrence_kernel<Packed, Exchange, primitive>(args);
      }
    };
    if (plan.exchange == fused_bptt::Exchange::grid) {
      const int64_t ctas = (resident_teams ? resident_teams : plan.teams) * plan.ctas;
      run_together(kernel, 0, ctas, ctas, plan.threads, 1, plan.shared_bytes);
    } else {
      for (int64_t team = 0; team < plan.teams; ++team) {
        run_together(kernel, team * plan.ctas, plan.ctas, plan.teams * plan.ctas, plan.threads,
                     plan.ctas, plan.shared_bytes);
      }
    }
  }
}

template <Math math, int kRowTiles, int kFragments, template <class, class> class Exchange,
          Primitive primitive>
void run(const std::string& name, const Cut& cut, const Shape& shape, const Options& options) {
  using Storage = typename OpsOf<math>::Storage;
  std::mt19937 generator(7);
  KernelArgs args{};
  const Step step = leaks(primitive)   ? Step::leaky
                    : options.by_norm  ? Step::norm_clipped
                    : options.clip > 0 ? Step::clipped
                                       : Step::plain;
  args.plan = plan_of(math, cut, shape, kRowTiles, kFragments, step);
  Problem& p = args.problem;
  p.primitive = primitive;
  p.phi = options.phi;
  p.adjoint = options.adjoint;
  p.T = shape.T, p.B = shape.B, p.G = shape.G, p.H = shape.H;
  p.reverse_groups = shape.reverse_groups;
  const bool packed = !shape.batch_sizes.empty();
  std::vector<int64_t> first_rows;
  int64_t rows = 0;
  for (const int64_t size : shape.batch_sizes) first_rows.push_back(rows), rows += size;
  if (packed) {
    p.batch_sizes = shape.batch_sizes.data();
    p.first_rows = first_rows.data();
    p.T = static_cast<int64_t>(shape.batch_sizes.size());
    if (shape.batch_sizes[0] != p.B) fail("the case's B is not that of its first step");
  } else {
    rows = shape.T * shape.B;
  }

  const int64_t elements = rows * p.G * p.H, states = p.G * p.B * p.H;
  Numbers<Storage> drive(elements), factor(elements), out(elements), initial(states), last(states);
  Numbers<Storage> replacement(states), keep(elements), gain(elements), rate(elements);
  Numbers<Storage> weight(p.G * p.H * p.H);
  drive.draw(generator, 1), factor.draw(generator, 1), initial.draw(generator, 1);
  replacement.draw(generator, 1);
  weight.draw(generator, 1.5 / std::sqrt(static_cast<double>(p.H)));
  keep.draw(generator, 1), gain.draw(generator, 1);
  if (options.infinite) weight.data()[1] = stored<Storage>(INFINITY);
  const auto sequence = [&](Numbers<Storage>& numbers, bool still) {
    return Sequence{numbers.data(), packed || still ? 0 : p.B * p.G * p.H, p.G * p.H, p.H};
  };
  p.weight = {weight.data(), p.H * p.H, p.H, 1};
  if (options.transposed) std::swap(p.weight.row, p.weight.column);
  if (options.drive) p.drive = sequence(drive, options.still);
  constexpr bool has_factor = primitive == Primitive::linear || primitive == Primitive::outer ||
                              primitive == Primitive::inner;
  constexpr bool has_rate =
      primitive == Primitive::leaky_rate || primitive == Primitive::leaky_voltage;
  if (has_factor) p.factor = sequence(factor, options.still);
  if (leaks(primitive)) p.keep = sequence(keep, options.still);
  if (primitive == Primitive::leaky_rate) p.gain = sequence(gain, options.still);
  if (has_rate) p.rate = sequence(rate, false);
  if (options.initial && !(leaks(primitive) && has_factor))
    p.initial = {initial.data(), p.B * p.H, p.H};
  const std::unique_ptr<bool[]> mask(new bool[static_cast<size_t>(rows * p.G)]);
  for (int64_t i = 0; i < rows * p.G; ++i) mask[i] = generator() % 3 == 0;
  if (options.reset) p.cuts = {mask.get(), packed ? 0 : p.B * p.G, p.G, 1, {}, 0};
  if (options.replacement) p.cuts.replacement = {replacement.data(), p.B * p.H, p.H};
  p.cuts.window = options.window;
  if (options.clip > 0) {
    p.clip = {options.by_norm ? Clip::Kind::norm : Clip::Kind::value, options.clip};
  }
  // The recurrence writes h over u.
  p.out = sequence(primitive == Primitive::recurrence ? drive : out, false);
  if (!leaks(primitive)) p.last = {last.data(), p.B * p.H, p.H};

  std::vector<double> expected(static_cast<size_t>(elements), NAN);
  std::vector<double> expected_last(static_cast<size_t>(states), NAN);
  std::vector<double> expected_rate(static_cast<size_t>(elements), NAN);
  if constexpr (leaks(primitive)) {
    leaky_reference<Storage>(p, expected, expected_rate);
  } else {
    reference<Storage>(p, expected, expected_last);
  }

  const Plan& plan = args.plan;
  std::vector<std::byte> workspace(static_cast<size_t>(workspace_bytes(plan, p.H, p.G) + 128),
                                   std::byte{0xFF});
  args.workspace =
      reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(workspace.data()) + 127) / 128 * 128);
  solve<math, kRowTiles, kFragments, Exchange, primitive>(args, cut.resident_teams);

  double error = 0;
  const auto compare = [&](Numbers<Storage>& actual, const std::vector<double>& truth) {
    for (size_t i = 0; i < truth.size(); ++i) {
      const double a = widen(actual.data()[i]);
      // NaN is as wrong as can be, unless it is expected.
      if (std::isnan(a) != std::isnan(truth[i])) error = INFINITY;
      if (!std::isnan(truth[i]) && a != truth[i]) {
        error = std::max(error, std::fabs(a - truth[i]) / std::max(1.0, std::fabs(truth[i])));
      }
    }
  };
  compare(primitive == Primitive::recurrence ? drive : out, expected);
  if (has_rate) compare(rate, expected_rate);
  if (!leaks(primitive)) compare(last, expected_last);
  const bool fences =
      drive.fences_hold() && out.fences_hold() && last.fences_hold() && rate.fences_hold();
  const bool good = error <= tolerance(plan.math) && fences;
  std::printf("%s %s error %.3g%s\n", good ? "ok" : "FAILED", name.c_str(), error,
              fences ? "" : " written outside");
  std::fflush(stdout);
  if (good) return;
  ++failures;
  if (one_is_enough) std::exit(1);
}

// The ways to ask for a linear recurrence and its adjoint.
inline const std::vector<std::pair<std::string, Options>> kLinear = {
    {"given", {.phi = Phi::given}},
    {"given,adjoint", {.phi = Phi::given, .adjoint = true}},
    {"tanh,adjoint,no initial", {.adjoint = true, .initial = false}},
    {"relu,no initial", {.phi = Phi::relu, .initial = false}},
    {"relu,adjoint,no drive,transposed",
     {.phi = Phi::relu, .adjoint = true, .drive = false, .transposed = true}},
    {"tanh,no drive", {.drive = false}},
};
inline const std::vector<std::pair<std::string, Options>> kRecurrence = {
    {"tanh", {}},
    {"relu,transposed", {.phi = Phi::relu, .transposed = true}},
    {"tanh,no initial", {.initial = false}},
};

// The ways to cut a walk, in either direction, and the nonlinearities and slopes beyond tanh's and
// relu's.
inline const std::vector<std::pair<std::string, Options>> kCutLinear = {
    {"reset,adjoint", {.phi = Phi::given, .adjoint = true, .reset = true}},
    {"reset,adjoint,no initial",
     {.phi = Phi::identity, .adjoint = true, .initial = false, .reset = true}},
    {"reset and window,adjoint",
     {.phi = Phi::sigmoid, .adjoint = true, .reset = true, .window = 2}},
    {"window", {.phi = Phi::softplus, .window = 3}},
    {"replaced", {.phi = Phi::given, .reset = true, .replacement = true}},
    {"replaced,no initial,window",
     {.phi = Phi::sigmoid, .initial = false, .reset = true, .replacement = true, .window = 2}},
};
inline const std::vector<std::pair<std::string, Options>> kCutRecurrence = {
    {"sigmoid,reset", {.phi = Phi::sigmoid, .reset = true}},
    {"softplus,replaced", {.phi = Phi::softplus, .reset = true, .replacement = true}},
    {"identity,replaced,no initial",
     {.phi = Phi::identity, .initial = false, .reset = true, .replacement = true}},
    {"tanh,reset,no initial", {.initial = false, .reset = true}},
};

// A clipped adjoint.
inline const std::vector<std::pair<std::string, Options>> kClippedAdjoint = {
    {"given", {.phi = Phi::given, .adjoint = true, .clip = 0.6}},
    {"tanh,no drive", {.adjoint = true, .drive = false, .clip = 0.4}},
    {"relu,reset and window",
     {.phi = Phi::relu,
      .adjoint = true,
      .initial = false,
      .reset = true,
      .window = 2,
      .clip = 0.6}},
    {"infinite", {.phi = Phi::identity, .adjoint = true, .infinite = true, .clip = 0.6}},
};

// The primitives with a leak, without cuts and with whatever cuts them.
inline const std::vector<std::pair<std::string, Options>> kLeakyRecurrence = {
    {"tanh", {}},
    {"relu,still", {.phi = Phi::relu, .still = true}},
    {"sigmoid,replaced", {.phi = Phi::sigmoid, .reset = true, .replacement = true}},
    {"softplus,reset,transposed", {.phi = Phi::softplus, .transposed = true, .reset = true}},
    {"identity,replaced", {.phi = Phi::identity, .reset = true, .replacement = true}},
};
inline const std::vector<std::pair<std::string, Options>> kLeakyLinear = {
    {"forward", {.phi = Phi::given}},
    {"adjoint", {.phi = Phi::given, .adjoint = true}},
    {"adjoint,still,transposed",
     {.phi = Phi::given, .adjoint = true, .still = true, .transposed = true}},
    {"reset", {.phi = Phi::given, .reset = true}},
    {"reset,adjoint", {.phi = Phi::given, .adjoint = true, .reset = true}},
    {"window", {.phi = Phi::given, .window = 3}},
    {"reset and window,adjoint", {.phi = Phi::given, .adjoint = true, .reset = true, .window = 2}},
};

// Both directions, rows that leave and join, and more rows than one team carries.
inline const Shape kPacked{
    .B = 10, .G = 2, .H = 13, .reverse_groups = 1, .batch_sizes = {10, 9, 9, 4, 1, 1}};

template <Math math, int kRowTiles, int kFragments, template <class, class> class Exchange>
void run_linear(const std::string& name, const Cut& cut, const Shape& shape) {
  for (const auto& [words, options] : kLinear) {
    run<math, kRowTiles, kFragments, Exchange, Primitive::linear>(name + "[" + words + "]", cut,
                                                                  shape, options);
  }
}
template <Math math, int kRowTiles, int kFragments, template <class, class> class Exchange>
void run_recurrence(const std::string& name, const Cut& cut, const Shape& shape) {
  for (const auto& [words, options] : kRecurrence) {
    run<math, kRowTiles, kFragments, Exchange, Primitive::recurrence>(name + "[" + words + "]", cut,
                                                                      shape, options);
  }
}

// Whatever cuts a walk.
template <Math math, int kRowTiles, int kFragments, template <class, class> class Exchange>
void run_cuts(const std::string& name, const Cut& cut, const Shape& shape) {
  for (const auto& [words, options] : kCutLinear) {
    run<math, kRowTiles, kFragments, Exchange, Primitive::linear>(name + "[" + words + "]", cut,
                                                                  shape, options);
  }
  for (const auto& [words, options] : kCutRecurrence) {
    run<math, kRowTiles, kFragments, Exchange, Primitive::recurrence>(name + "[" + words + "]", cut,
                                                                      shape, options);
  }
}

// Every primitive with a leak.
template <Math math, int kRowTiles, int kFragments = 0,
          template <class, class> class Exchange = ExchangeLaunches>
void run_leaky(const std::string& name, const Cut& cut, const Shape& shape) {
  for (const auto& [words, options] : kLeakyRecurrence) {
    const std::string in = "[" + words + "]";
    run<math, kRowTiles, kFragments, Exchange, Primitive::leaky_rate>(name + " rate" + in, cut,
                                                                      shape, options);
    run<math, kRowTiles, kFragments, Exchange, Primitive::leaky_voltage>(name + " voltage" + in,
                                                                         cut, shape, options);
  }
  for (const auto& [words, options] : kLeakyLinear) {
    const std::string in = "[" + words + "]";
    run<math, kRowTiles, kFragments, Exchange, Primitive::outer>(name + " outer" + in, cut, shape,
                                                                 options);
    run<math, kRowTiles, kFragments, Exchange, Primitive::inner>(name + " inner" + in, cut, shape,
                                                                 options);
  }
}

// By values and by norms.
template <Math math, int kRowTiles>
void run_clipped(const std::string& name, const Cut& cut, const Shape& shape) {
  for (auto [words, options] : kClippedAdjoint) {
    run<math, kRowTiles, 0, ExchangeLaunches, Primitive::linear>(name + " clipped[" + words + "]",
                                                                 cut, shape, options);
    options.by_norm = true;
    options.clip = options.clip * std::sqrt(shape.H / 2.0);  // some of the rows reach it
    run<math, kRowTiles, 0, ExchangeLaunches, Primitive::linear>(
        name + " clipped by norm[" + words + "]", cut, shape, options);
  }
}

// A program of cases. Arguments: `late` has pushes arrive late; `first` ends it at the first case
// that fails; a number is the seconds after which the program is taken to hang, and ends itself.
inline int main_of(int argc, char** argv, void (*cases)()) {
  unsigned seconds = 540;  // under a sanitizer, on a busy machine
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "late") {
      late_delivery = true;
    } else if (std::string(argv[i]) == "first") {
      one_is_enough = true;
    } else {
      seconds = static_cast<unsigned>(std::stoul(argv[i]));
    }
  }
  std::signal(SIGALRM, [](int) {
    static const char words[] = "emulation: hangs\n";
    [[maybe_unused]] const ssize_t written = write(2, words, sizeof(words) - 1);
    _exit(4);
  });
  alarm(seconds);
  cases();
  std::printf("%d failures\n", failures);
  return failures ? 1 : 0;
}

}  // namespace emulation
