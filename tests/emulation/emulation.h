// The vocabulary of csrc/cuda/device.cuh and ptx.cuh on the host: one OS thread for each CUDA
// thread, so that the real loops run, and a sanitizer sees how they share memory.
//
// - Shared memory is full of NaN when a CTA starts, and fenced by a pattern that is checked.
// - A push into a peer (st.async) arrives at once or, when asked, only as its barrier completes
//   and in reverse order: then whoever does not wait for it reads what was there before.
// - Barriers order memory for ThreadSanitizer exactly as the instruction does: a push releases, a
//   wait acquires, and nothing else of an mbarrier orders anything. What the emulation itself needs
//   to be safe is hidden from the sanitizer.
//
// What it cannot show: a race between lanes of one warp, which meet at every tensor core product;
// the hardware's weaker order of memory (the host's own is strong, and the
// sanitizer knows threads and not scopes), proxies, and whether CTAs are on the device together.
#pragma once

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include <sched.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif
#include <unistd.h>

#define FUSED_BPTT_DEVICE inline
#define FUSED_BPTT_GLOBAL(most_threads) inline void
#define FUSED_BPTT_ARGS const fused_bptt::KernelArgs&
#define FUSED_BPTT_UNSEEN __attribute__((no_sanitize("thread"), noinline))

namespace emulation {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s\n", what);
  std::fflush(nullptr);
  _exit(3);
}

// Sleeps until `word` is no longer `seen`, or for no reason. Not std::atomic::wait: all who wait in
// it share a few counters, which the sanitizer takes for order between them.
inline void sleep_while(const uint32_t* word, uint32_t seen) {
#if defined(__linux__)
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
#else
  sched_yield();
#endif
}
inline void wake_all(const uint32_t* word) {
#if defined(__linux__)
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#endif
}

class Barrier {
 public:
  explicit Barrier(int32_t size) : size_(size) {}
  void wait() {
    std::atomic_ref<uint32_t> now(generation_);
    const uint32_t generation = now.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      now.fetch_add(1, std::memory_order_release);
      wake_all(&generation_);
    } else {
      while (now.load(std::memory_order_acquire) == generation) {
        sleep_while(&generation_, generation);
      }
    }
  }

 private:
  const int32_t size_;
  std::atomic<int32_t> arrived_{0};
  uint32_t generation_ = 0;
};

// A push that is under way.
struct Push {
  void* to;
  uint64_t value;
  int bytes;
};

// The pushes that a barrier has been told of and that are not delivered.
struct Pushes {
  static constexpr int kMost = 1 << 16;
  std::unique_ptr<Push[]> list;
  int count = 0;
  int lock = 0;
};

// What the lanes of a warp show each other.
struct Warp {
  Barrier barrier{32};
  struct Slot {
    uint32_t a[4], b[2];
  } slot[2][32];
};

struct Block {
  static constexpr int64_t kFence = 1024;
  static constexpr int kBarriers = 16;

  Block(int64_t index, int32_t threads, int64_t shared_bytes)
      : index(index),
        shared_bytes(shared_bytes),
        barrier(threads),
        memory(static_cast<size_t>(shared_bytes + 2 * kFence + 128)) {
    std::memset(memory.data(), 0xFF, memory.size());
    const uintptr_t at = reinterpret_cast<uintptr_t>(memory.data()) + kFence;
    shared = reinterpret_cast<std::byte*>((at + 127) / 128 * 128);
    std::memset(shared - kFence, 0xA5, kFence);
    std::memset(shared + shared_bytes, 0xA5, kFence);
    for (int32_t w = 0; w < (threads + 31) / 32; ++w) warps.push_back(std::make_unique<Warp>());
  }

  void check_fences() const {
    for (int64_t i = 0; i < kFence; ++i) {
      if (shared[-1 - i] != std::byte{0xA5} || shared[shared_bytes + i] != std::byte{0xA5}) {
        fail("a write outside of shared memory");
      }
    }
    for (const Pushes& p : pushes) {
      if (p.count > 0) fail("a CTA has gone while pushes to it were under way");
    }
  }

  const int64_t index;
  const int64_t shared_bytes;
  Barrier barrier;
  std::vector<std::byte> memory;
  std::byte* shared;
  std::vector<std::unique_ptr<Warp>> warps;
  Pushes pushes[kBarriers];
  std::atomic<bool> gone{false};
};

struct Cluster {
  explicit Cluster(int32_t threads) : barrier(threads) {}
  Barrier barrier;
  std::vector<Block*> blocks;
};

struct Thread {
  Block* block;
  Cluster* cluster;
  int32_t index;
  int64_t grid_blocks;
  uint32_t turn = 0;  // counts this lane's uses of its warp's slots
};

inline thread_local Thread* self = nullptr;
inline bool late_delivery = false;

inline Warp& warp() { return *self->block->warps[static_cast<size_t>(self->index / 32)]; }

// Which CTA of the cluster an address belongs to.
inline Block& block_of(const void* address) {
  const std::byte* at = static_cast<const std::byte*>(address);
  for (Block* block : self->cluster->blocks) {
    if (at >= block->shared && at < block->shared + block->shared_bytes) return *block;
  }
  fail("an address outside of the cluster's shared memory");
}

// The state of an mbarrier is its word in shared memory: phase, arrivals of a phase, arrivals and
// bytes still expected. Every change is a read-modify-write that releases, so that who acquires the
// last one has all of them.
struct MbarrierState {
  uint8_t phase;
  uint8_t arrivals;
  uint16_t pending;
  int32_t bytes;
};
static_assert(sizeof(MbarrierState) == 8);
constexpr uint8_t kMade = 0x40;  // set in `arrivals`, and not in the poison

inline MbarrierState checked(uint64_t word) {
  const MbarrierState s = std::bit_cast<MbarrierState>(word);
  if ((s.arrivals & 0xC0) != kMade) fail("an mbarrier is used before it is made");
  return s;
}

// The half of the word whose change ends a wait: phase and arrivals. (Numbers are little-endian.)
inline const uint32_t* phase_of(const uint64_t* barrier) {
  return reinterpret_cast<const uint32_t*>(barrier);
}

template <class Change>
bool change(uint64_t* barrier, const Change& f) {
  std::atomic_ref<uint64_t> word(*barrier);
  uint64_t old = word.load(std::memory_order_relaxed);
  for (;;) {
    MbarrierState s = checked(old);
    f(s);
    if (s.bytes < 0) fail("more bytes are pushed than the mbarrier expects");
    const bool complete = s.pending == 0 && s.bytes == 0;
    if (complete) s.phase ^= 1, s.pending = s.arrivals & 0x3F;
    if (word.compare_exchange_weak(old, std::bit_cast<uint64_t>(s), std::memory_order_release,
                                   std::memory_order_relaxed)) {
      if (complete) wake_all(phase_of(barrier));
      return complete;
    }
  }
}

// A lock and its list, which the sanitizer must not take for order between the pushers.
FUSED_BPTT_UNSEEN inline void lock(Pushes& p) {
  while (__atomic_exchange_n(&p.lock, 1, __ATOMIC_ACQUIRE)) sched_yield();
}
FUSED_BPTT_UNSEEN inline void unlock(Pushes& p) { __atomic_store_n(&p.lock, 0, __ATOMIC_RELEASE); }
FUSED_BPTT_UNSEEN inline void keep(Pushes& p, const Push& push) {
  if (!p.list) p.list.reset(new Push[Pushes::kMost]);
  if (p.count == Pushes::kMost) fail("too many pushes are under way");
  p.list[p.count++] = push;
}

inline void deliver(const Push& push) {
  // Not memcpy: the sanitizer should see a store of this size.
  if (push.bytes == 8) {
    *static_cast<uint64_t*>(push.to) = push.value;
  } else {
    *static_cast<uint32_t*>(push.to) = static_cast<uint32_t>(push.value);
  }
}

inline void push(const Push& push, uint64_t* barrier) {
  Block& to = block_of(push.to);
  if (&to != &block_of(barrier)) fail("a push and its mbarrier are in different CTAs");
  if (to.gone) fail("a push to a CTA that has gone");
  if (reinterpret_cast<uintptr_t>(push.to) % static_cast<size_t>(push.bytes) != 0) {
    fail("a push to an address that is not aligned");
  }
  const auto arrive = [&](MbarrierState& s) { s.bytes -= push.bytes; };
  if (!late_delivery) {
    deliver(push);
    change(barrier, arrive);
    return;
  }
  const ptrdiff_t which = barrier - reinterpret_cast<uint64_t*>(to.shared);
  if (which >= Block::kBarriers) fail("an mbarrier is expected to be among the first words");
  Pushes& pushes = to.pushes[which];
  lock(pushes);
  keep(pushes, push);
  const MbarrierState s =
      checked(std::atomic_ref<uint64_t>(*barrier).load(std::memory_order_relaxed));
  if (s.pending == 0 && s.bytes == push.bytes) {
    while (pushes.count > 0) deliver(pushes.list[--pushes.count]);
  }
  change(barrier, arrive);
  unlock(pushes);
}

// Runs `kernel` on every thread of the blocks [first, first + count), which are on the device
// together, in clusters of `cluster`.
template <class Kernel>
void run_together(const Kernel& kernel, int64_t first, int64_t count, int64_t grid_blocks,
                  int32_t threads, int32_t cluster, int64_t shared_bytes) {
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<std::unique_ptr<Cluster>> clusters;
  for (int64_t i = 0; i < count; ++i) {
    if (i % cluster == 0) clusters.push_back(std::make_unique<Cluster>(cluster * threads));
    blocks.push_back(std::make_unique<Block>(first + i, threads, shared_bytes));
    clusters.back()->blocks.push_back(blocks.back().get());
  }
  std::vector<std::atomic<int32_t>> left(static_cast<size_t>(count));
  std::vector<std::thread> team;
  for (int64_t i = 0; i < count; ++i) {
    left[static_cast<size_t>(i)] = threads;
    for (int32_t t = 0; t < threads; ++t) {
      team.emplace_back([&, i, t] {
        Thread thread{blocks[static_cast<size_t>(i)].get(),
                      clusters[static_cast<size_t>(i / cluster)].get(), t, grid_blocks};
        self = &thread;
        kernel();
        if (--left[static_cast<size_t>(i)] == 0) thread.block->gone = true;
      });
    }
  }
  for (std::thread& t : team) t.join();
  for (const auto& block : blocks) block->check_fences();
}

// Runs a kernel whose threads never meet, without shared memory.
template <class Kernel>
void run_one_by_one(const Kernel& kernel, int64_t blocks, int32_t threads) {
  for (int64_t i = 0; i < blocks; ++i) {
    Block block(i, threads, 0);
    for (int32_t t = 0; t < threads; ++t) {
      Thread thread{&block, nullptr, t, blocks};
      self = &thread;
      kernel();
    }
  }
  self = nullptr;
}

}  // namespace emulation

namespace fused_bptt {

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

struct alignas(16) Vector16 {
  uint32_t word[4];
};

inline int32_t thread_index() { return emulation::self->index; }
inline int32_t block_index() { return static_cast<int32_t>(emulation::self->block->index); }
inline int32_t grid_blocks() { return static_cast<int32_t>(emulation::self->grid_blocks); }
inline void sync_block() { emulation::self->block->barrier.wait(); }
// It brings lanes together for an instruction of the warp; the kernels do not order memory by it.
inline void sync_warp() {}
inline std::byte* shared_memory() { return emulation::self->block->shared; }

inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline double multiply_add(double a, double b, double c) { return std::fma(a, b, c); }
inline double sqrt_of(double x) { return std::sqrt(x); }
inline float tanh_of(float x) { return std::tanh(x); }
inline double tanh_of(double x) { return std::tanh(x); }
inline float exp_of(float x) { return std::exp(x); }
inline double exp_of(double x) { return std::exp(x); }
inline float expm1_of(float x) { return std::expm1(x); }
inline double expm1_of(double x) { return std::expm1(x); }
inline float log1p_of(float x) { return std::log1p(x); }
inline double log1p_of(double x) { return std::log1p(x); }
inline uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
inline float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }

inline float widen(Bfloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
inline Bfloat16 round_to_bfloat16(float x) {
  if (std::isnan(x)) return {0x7FFF};
  const uint32_t bits = bits_of(x);
  return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

inline float widen(Float16 x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const float magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                          : std::ldexp(1024.0f + fraction, exponent - 25);
  return x.bits >> 15 ? -magnitude : magnitude;
}
inline Float16 round_to_float16(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return {0x7FFF};
  const float magnitude = std::fabs(x);
  if (magnitude >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7C00)};
  if (magnitude < 0x1p-14f) {  // the rounded fraction may be that of the least normal number
    return {static_cast<uint16_t>(sign | static_cast<int>(std::nearbyint(magnitude * 0x1p24f)))};
  }
  const int exponent = std::ilogb(magnitude);
  const int fraction = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return {static_cast<uint16_t>(sign | ((exponent + 15) * 1024 + fraction - 1024))};
}

inline Vector16 load_through_l2(const Vector16* from) { return *from; }
inline Vector16 load_constant(const Vector16* from) { return *from; }

namespace ptx {

template <class T>
T unforeseen(T x) {
  return x;
}

// D = A B + D of a warp. The lanes show each other their words; each then takes its four sums. Two
// sets of slots take turns: when a lane writes one again, all have passed the barrier of the other.
template <class Pair>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Pair& pair) {
  emulation::Thread& self = *emulation::self;
  emulation::Warp& warp = emulation::warp();
  auto& slot = warp.slot[self.turn++ % 2];
  const int lane = self.index % 32;
  std::memcpy(slot[lane].a, a, sizeof(a));
  std::memcpy(slot[lane].b, b, sizeof(b));
  warp.barrier.wait();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8;
    const int column = lane % 4 * 2 + i % 2;
    double sum = d[i];
    for (int upper = 0; upper < 2; ++upper) {
      for (int q = 0; q < 4; ++q) {
        sum += pair(slot[row % 8 * 4 + q].a[row / 8 + 2 * upper], slot[column * 4 + q].b[upper]);
      }
    }
    d[i] = static_cast<float>(sum);
  }
}

template <class Half>
double product_of_halves(uint32_t x, uint32_t y) {
  const auto number = [](uint32_t bits) {
    return double{widen(Half{static_cast<uint16_t>(bits)})};
  };
  return number(x) * number(y) + number(x >> 16) * number(y >> 16);
}
// The instruction does not see the low 13 bits.
inline double product_tf32(uint32_t x, uint32_t y) {
  return double{float_of(x & ~0x1FFFu)} * float_of(y & ~0x1FFFu);
}

inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma(d, a, b, product_of_halves<Bfloat16>);
}
inline void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma(d, a, b, product_of_halves<Float16>);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma(d, a, b, product_tf32);
}

inline uint32_t cvt_rna_tf32_f32(float x) {
  const uint32_t bits = bits_of(x);
  if (std::isnan(x)) return 0x7FFFFFFF;
  return (bits & 0x7FFFFFFF) >= 0x7F800000 ? bits : (bits + 0x1000u) & ~0x1FFFu;
}

inline uint64_t ld_acquire_gpu(const uint64_t* flag) {
  std::atomic_ref<uint64_t> word(*const_cast<uint64_t*>(flag));
  const uint64_t value = word.load(std::memory_order_acquire);
  sched_yield();  // who polls lets others work
  return value;
}
inline void st_release_gpu(uint64_t* flag, uint64_t value) {
  std::atomic_ref<uint64_t>(*flag).store(value, std::memory_order_release);
}
inline void prefetch_global_l2(const void*) {}

using ClusterAddress = std::byte*;

inline ClusterAddress mapa(const void* local, uint32_t rank) {
  const emulation::Thread& self = *emulation::self;
  if (rank >= self.cluster->blocks.size()) emulation::fail("a rank outside of the cluster");
  return self.cluster->blocks[rank]->shared +
         (static_cast<const std::byte*>(local) - self.block->shared);
}

inline void barrier_cluster() { emulation::self->cluster->barrier.wait(); }

inline void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  const emulation::MbarrierState s{0, static_cast<uint8_t>(arrivals | emulation::kMade),
                                   static_cast<uint16_t>(arrivals), 0};
  std::atomic_ref<uint64_t>(*barrier).store(std::bit_cast<uint64_t>(s), std::memory_order_relaxed);
}
inline void fence_mbarrier_init() {}

inline void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes) {
  emulation::change(barrier, [&](emulation::MbarrierState& s) {
    if (s.pending == 0) emulation::fail("an mbarrier is armed twice in one phase");
    s.bytes += static_cast<int32_t>(bytes);
    --s.pending;
  });
}

inline void mbarrier_wait_parity(uint64_t* barrier, uint32_t parity) {
  std::atomic_ref<uint64_t> word(*barrier);
  for (;;) {
    const uint64_t now = word.load(std::memory_order_acquire);
    // The phase of `parity` is over when the barrier is in one of the other parity.
    if (emulation::checked(now).phase != parity) return;
    emulation::sleep_while(emulation::phase_of(barrier), static_cast<uint32_t>(now));
  }
}

inline void st_async(ClusterAddress to, uint32_t value, ClusterAddress barrier) {
  emulation::push({to, value, 4}, reinterpret_cast<uint64_t*>(barrier));
}
inline void st_async(ClusterAddress to, uint64_t value, ClusterAddress barrier) {
  emulation::push({to, value, 8}, reinterpret_cast<uint64_t*>(barrier));
}

}  // namespace ptx
}  // namespace fused_bptt
