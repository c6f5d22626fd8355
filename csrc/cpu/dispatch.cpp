#include "dispatch.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

namespace fused_bptt {
namespace {

struct FreeAligned {
  void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<std::byte[], FreeAligned>;

Buffer allocate(int64_t bytes) {
  return Buffer(new (std::align_val_t{64})
                    std::byte[static_cast<size_t>(std::max<int64_t>(bytes, 1))]);
}

int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

struct Call {
  const Kernels& kernels;
  const Problem& problem;
  Workspace space;
  Gate gate;
  int32_t threads;
};

void work(int64_t begin, int64_t end, void* context) {
  Call& call = *static_cast<Call*>(context);
  const int32_t rank = call.gate.enter(end - begin, call.threads);
  if (rank < 0) return;
  const int32_t size = call.gate.size();
  const Type type = call.problem.type;
  const Schedule schedule =
      make_schedule(call.problem, machine_of(call.kernels, type), compute_bytes(type), size);
  const FlushDenormals flush;
  call.kernels.walk(call.problem, schedule, call.space, rank, size);
}

bool machine_has(const Kernels* kernels) {
#if defined(__x86_64__)
  if (kernels == &kernels_avx512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
  }
  if (kernels == &kernels_avx2) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
  }
#endif
  return kernels != nullptr;
}

const Kernels& choose_kernels() {
  const std::vector<const Kernels*> supported = supported_kernels();
  const char* wanted = std::getenv("FUSED_BPTT_CPU");
  if (wanted == nullptr || *wanted == '\0') return *supported.back();
  std::string names;
  for (const Kernels* kernels : supported) {
    if (std::string(wanted) == kernels->name) return *kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels->name);
  }
  throw std::runtime_error("FUSED_BPTT_CPU: expected one of " + names +
                           " (what this build and this machine both have), got " + wanted);
}

}  // namespace

std::vector<const Kernels*> compiled_kernels() {
#if defined(__x86_64__)
  return {&kernels_baseline, &kernels_avx2, &kernels_avx512};
#elif defined(__aarch64__)
  return {&kernels_baseline, &kernels_neon};
#else
  return {&kernels_baseline};
#endif
}

std::vector<const Kernels*> supported_kernels() {
  std::vector<const Kernels*> kernels = compiled_kernels();
  std::erase_if(kernels, [](const Kernels* k) { return !machine_has(k); });
  return kernels;
}

const Kernels& active_kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

void run(const Kernels& kernels, const Problem& p, int32_t available, ParallelFor parallel_for) {
  const int32_t threads = worthwhile_threads(p, machine_of(kernels, p.type), compute_bytes(p.type),
                                             std::max(available, 1));
  run_with(kernels, p, threads, parallel_for);
}

void run_with(const Kernels& kernels, const Problem& p, int32_t threads, ParallelFor parallel_for) {
  if (p.B == 0 || p.G == 0 || p.H == 0) return;
  const int64_t bytes = compute_bytes(p.type);
  const int64_t columns = round_up(p.H, machine_of(kernels, p.type).lanes);
  // An odd number of cache lines from row to row: rows a power of two apart would share one set of
  // the L1 cache, which has fewer ways than a tile has rows.
  const int64_t line = 64 / bytes;
  const int64_t carry_stride = (round_up(columns, line) / line | 1) * line;

  const Buffer weights = allocate(p.G * p.H * columns * bytes);
  const Buffer carry = allocate(p.G * 2 * p.B * carry_stride * bytes);
  const std::unique_ptr<Barrier[]> barriers(new Barrier[static_cast<size_t>(threads) + 1]);
  Call call{kernels,
            p,
            {weights.get(), carry.get(), carry_stride, &barriers[0], &barriers[1]},
            {},
            threads};
  if (threads == 1) {
    work(0, 1, &call);
  } else {
    parallel_for(threads, &work, &call);
  }
}

}  // namespace fused_bptt
