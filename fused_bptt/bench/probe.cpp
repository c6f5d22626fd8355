// What a core can do at most: multiply-adds, reading, and streaming, for probe.py.
//
// Every thread works on memory of its own, all at once, and the rates returned are a core's: the
// sum over threads divided by their number.

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));
constexpr int kLanes = kBytes / static_cast<int>(sizeof(float));

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class Array {
 public:
  explicit Array(std::size_t bytes)
      : vectors(bytes / kBytes),
        data(static_cast<Vector*>(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096))) {
    if (data == nullptr) throw std::bad_alloc();
    for (std::size_t i = 0; i < vectors; ++i) data[i] = Vector{} + 1e-3f;
  }
  ~Array() { std::free(data); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  const std::size_t vectors;
  Vector* const data;
};

// Passes over a small array are bundled, so that reading the clock does not count.
int passes(std::size_t bytes) {
  constexpr std::size_t kBundle = 1 << 20;
  return static_cast<int>(std::max<std::size_t>(1, kBundle / bytes));
}

// Keeps the compiler from dropping the work that made the value.
void keep(Vector value) { __asm__ volatile("" : : "m"(value) : "memory"); }

// Calls a pass, which returns its amount of work, for the time given; returns the work per second.
template <class Pass>
double rate(double seconds, Pass&& pass) {
  double work = 0.0;
  const double start = now();
  double elapsed = 0.0;
  do {
    work += pass();
    elapsed = now() - start;
  } while (elapsed < seconds);
  return work / elapsed;
}

// Runs a measurement on every thread at once, several times, and returns the best mean over
// threads.
template <class Setup>
double best_per_thread(int threads, Setup&& setup) {
  constexpr int kRepeats = 3;
  double best = 0.0;
  double sum = 0.0;
#pragma omp parallel num_threads(threads)
  {
    auto measure = setup();
    measure();  // warms up
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
#pragma omp barrier
#pragma omp single
      sum = 0.0;
      const double mine = measure();
#pragma omp atomic
      sum += mine;
#pragma omp barrier
#pragma omp single
      best = std::max(best, sum / omp_get_num_threads());
    }
  }
  return best;
}

}  // namespace

extern "C" {

// Float operations per second in fused multiply-adds on registers; a multiply-add is two.
double probe_multiply_add(int threads, double seconds) {
  return best_per_thread(threads, [=] {
    return [=] {
      constexpr int kChains = 12, kTurns = 4096;
      Vector chain[kChains] = {};
      const Vector a = Vector{} + 0.999f, b = Vector{} + 1e-3f;
      return rate(seconds, [&]() -> double {
        for (int turn = 0; turn < kTurns; ++turn)
#pragma GCC unroll 12
          for (int i = 0; i < kChains; ++i) chain[i] = chain[i] * a + b;
        for (const Vector& value : chain) keep(value);
        return 2.0 * kTurns * kChains * kLanes;
      });
    };
  });
}

// Bytes per second read from a working set of that many bytes a thread.
double probe_read(int threads, std::int64_t bytes, double seconds) {
  return best_per_thread(threads, [=] {
    return [=, array = std::make_shared<Array>(bytes)] {
      const Vector* data = array->data;
      const std::size_t vectors = array->vectors;
      return rate(seconds, [&]() -> double {
        constexpr int kSums = 8;
        Vector sums[kSums] = {};
        for (int pass = 0; pass < passes(bytes); ++pass) {
          for (std::size_t i = 0; i + kSums <= vectors; i += kSums)
#pragma GCC unroll 8
            for (int j = 0; j < kSums; ++j) sums[j] += data[i + j];
          keep(sums[0]);
        }
        for (const Vector& value : sums) keep(value);
        return static_cast<double>(bytes) * passes(bytes);
      });
    };
  });
}

// Bytes per second of a copy whose source and target have that many bytes a thread together: per
// element, 4 bytes are read, and 4 are written after 4 were read for it.
double probe_stream(int threads, std::int64_t bytes, double seconds) {
  return best_per_thread(threads, [=] {
    return [=, from = std::make_shared<Array>(bytes / 2), to = std::make_shared<Array>(bytes / 2)] {
      const Vector* source = from->data;
      Vector* target = to->data;
      const std::size_t vectors = from->vectors;
      return rate(seconds, [&]() -> double {
        for (int pass = 0; pass < passes(bytes); ++pass) {
          for (std::size_t i = 0; i < vectors; ++i) target[i] = source[i] + 1.0f;
          keep(target[0]);
        }
        return 12.0 * static_cast<double>(vectors) * kLanes * passes(bytes);
      });
    };
  });
}

}  // extern "C"
