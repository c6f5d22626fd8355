// Threads that work on one call together. The team is made of those that really come: a caller
// may be nested in another parallel region, or share its threads with another call, and then
// fewer arrive than were asked for.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fused_bptt {

inline void spin_pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins while the condition holds; after a bounded number of turns it yields the core, so that a
// machine with more threads than cores still moves on.
template <class Condition>
inline void spin_while(const Condition& condition) {
  for (int turn = 0; condition(); ++turn) {
    if (turn < 1024) {
      spin_pause();
    } else {
      std::this_thread::yield();
    }
  }
}

// While one lives, this thread's results too small for a normal number are zero. A gradient that
// vanishes over many steps would otherwise end in such numbers, each of which costs as much as a
// hundred others: here, and in every product that later reads it.
class FlushDenormals {
 public:
#if defined(__x86_64__)
  FlushDenormals() : saved_(_mm_getcsr()) {
    _mm_setcsr(saved_ | flush_to_zero | denormals_are_zero);
  }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  static constexpr uint32_t flush_to_zero = 0x8000, denormals_are_zero = 0x0040;
  const uint32_t saved_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(saved_ | flush_to_zero));
  }
  ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  static constexpr uint64_t flush_to_zero = 1u << 24;
  uint64_t saved_;
#endif
 public:
#if !defined(__x86_64__) && !defined(__aarch64__)
  FlushDenormals() = default;
#endif
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
};

class Barrier {
 public:
  void wait(int32_t size) {
    if (size == 1) return;
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
    } else {
      spin_while([&] { return phase_.load(std::memory_order_acquire) == phase; });
    }
  }

 private:
  alignas(64) std::atomic<int32_t> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

// A gate that closes: whoever enters before it closes is in the team, whoever comes later is not
// needed and goes home.
class Gate {
 public:
  // `share` of `expected` is what this caller was handed by the parallel loop; the shares of all
  // callers add up to `expected`, so a caller who was handed everything knows that it is alone.
  // Returns this caller's rank, or -1 when the gate is closed. The first to enter closes it, once
  // all have come or the wait has been long enough.
  int32_t enter(int64_t share, int64_t expected) {
    const uint32_t before = entered_.fetch_add(1, std::memory_order_acq_rel);
    if (before & closed) return -1;
    shares_.fetch_add(share, std::memory_order_acq_rel);
    if (before == 0) {
      // ~50 us: a thread of the pool wakes in a few microseconds when a core is free.
      for (int turn = 0; turn < 1024 && shares_.load(std::memory_order_acquire) != expected;
           ++turn) {
        spin_pause();
      }
      const uint32_t in = entered_.fetch_or(closed, std::memory_order_acq_rel);
      size_.store(static_cast<int32_t>(in), std::memory_order_release);
    } else {
      spin_while([&] { return size_.load(std::memory_order_acquire) == 0; });
    }
    return static_cast<int32_t>(before);
  }

  int32_t size() const { return size_.load(std::memory_order_acquire); }

 private:
  static constexpr uint32_t closed = 1u << 31;
  alignas(64) std::atomic<uint32_t> entered_{0};
  std::atomic<int64_t> shares_{0};
  alignas(64) std::atomic<int32_t> size_{0};
};

}  // namespace fused_bptt
