#include "launch.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "instantiations.h"
#include "plan.h"

namespace fused_bptt {
namespace {

void check(cudaError_t error, const std::string& what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // an error of a launch would be reported again by the next one
  throw std::runtime_error(what + ": " + cudaGetErrorString(error));
}

std::string words_of(const Plan& p) {
  return std::string(name_of(p.math)) + " kernel of a " + name_of(p.step) + " step (" +
         name_of(p.exchange) + " of " + std::to_string(p.ctas) + ", W in " + name_of(p.residence) +
         ", " + std::to_string(p.threads) + " threads, " + std::to_string(p.shared_bytes) +
         " bytes of shared memory)";
}

const void* kernel_for(const Plan& p, Primitive primitive) {
  const int math = static_cast<int>(p.math);
  const void* kernel = p.step == Step::clipped ? kClipped[math](p.row_tiles)
                       : p.step == Step::norm_clipped
                           ? kNormClipped[math](p.row_tiles)
                           : kKernels[math][static_cast<int>(p.exchange)](primitive, p.row_tiles);
  if (!kernel) throw std::runtime_error(words_of(p) + ": expected to be compiled in, is not");
  return kernel;
}

struct Launch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attribute{};

  Launch(int64_t ctas, int32_t threads, int64_t shared, void* stream) {
    if (ctas > INT32_MAX) {
      throw std::runtime_error("grid: expected at most 2147483647 CTAs, got " +
                               std::to_string(ctas));
    }
    config.gridDim = dim3(static_cast<unsigned>(ctas));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.stream = static_cast<cudaStream_t>(stream);
  }
  void in_clusters_of(int32_t ctas) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(ctas), 1, 1};
    attach();
  }
  void all_at_once() {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    attach();
  }

 private:
  void attach() {
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
};

// More than 48 KiB, and clusters of more than 8, are to be asked for.
void allow(const void* kernel, const Plan& p) {
  if (p.shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(p.shared_bytes)),
          "shared memory of the " + words_of(p));
  }
  if (p.exchange == Exchange::cluster && p.ctas > 8) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
          "cluster size of the " + words_of(p));
  }
}

int attribute(cudaDeviceAttr name, int32_t device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device),
        "attribute of CUDA device " + std::to_string(device));
  return value;
}

DeviceLimits query(int32_t device) {
  DeviceLimits limits{};
  limits.name = "cuda:" + std::to_string(device);
  limits.capability = 10 * attribute(cudaDevAttrComputeCapabilityMajor, device) +
                      attribute(cudaDevAttrComputeCapabilityMinor, device);
  if (limits.capability < 80) {
    throw std::runtime_error("CUDA device " + std::to_string(device) +
                             ": expected compute capability 8.0 or later, got " +
                             std::to_string(limits.capability / 10) + "." +
                             std::to_string(limits.capability % 10));
  }
  limits.sms = attribute(cudaDevAttrMultiProcessorCount, device);
  limits.shared_of_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  limits.shared_of_sm = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  limits.l2_bytes = attribute(cudaDevAttrL2CacheSize, device);
  limits.clock_ghz = attribute(cudaDevAttrClockRate, device) * 1e-6;  // of kHz
  // kHz, two transfers a clock, bits.
  limits.memory_bytes_per_ns = attribute(cudaDevAttrMemoryClockRate, device) * 1e-6 * 2 *
                               attribute(cudaDevAttrGlobalMemoryBusWidth, device) / 8;
  if (limits.capability < 90) return limits;

  // Asked for the largest CTA that a plan makes: a smaller one has no fewer clusters.
  Plan largest{};
  largest.math = Math::bf16;
  largest.exchange = Exchange::cluster;
  largest.threads = 32 * kMostWarps;
  largest.row_tiles = kRowTiles[0];
  largest.ctas = kLargestCluster;
  largest.shared_bytes = limits.shared_of_block;
  const void* kernel = kernel_for(largest, Primitive::recurrence);
  allow(kernel, largest);
  for (int32_t ctas = 2; ctas <= kLargestCluster; ++ctas) {
    Launch launch(ctas, largest.threads, largest.shared_bytes, nullptr);
    launch.in_clusters_of(ctas);
    // A size that this device does not have is an error to it and a zero here.
    if (cudaOccupancyMaxActiveClusters(&limits.active_clusters[ctas], kernel, &launch.config) !=
        cudaSuccess) {
      cudaGetLastError();
      limits.active_clusters[ctas] = 0;
    }
  }
  return limits;
}

// Arguments of a kernel, of which there may be 32764 bytes (CUDA 12.1 and later).
struct Rows {
  static constexpr int kSteps = 2000;
  int64_t sizes[kSteps];
  int64_t first[kSteps];
};

__global__ void write_tables(Rows rows, int64_t* sizes, int64_t* first, int steps) {
  for (int i = threadIdx.x; i < steps; i += blockDim.x) {
    sizes[i] = rows.sizes[i];
    first[i] = rows.first[i];
  }
}

// Teams of the grid exchange that are on the device at once: its CTAs wait for one another.
int64_t teams_at_once(const void* kernel, const KernelArgs& args, const DeviceLimits& limits) {
  const Plan& p = args.plan;
  int of_sm = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_sm, kernel, p.threads,
                                                      static_cast<size_t>(p.shared_bytes)),
        "occupancy of the " + words_of(p));
  const int64_t teams = static_cast<int64_t>(of_sm) * limits.sms / p.ctas;
  if (teams < 1) {
    throw std::runtime_error(words_of(p) + ": expected " + std::to_string(p.ctas) +
                             " CTAs at once, the device has room for " +
                             std::to_string(static_cast<int64_t>(of_sm) * limits.sms));
  }
  return std::min(p.teams, teams);
}

}  // namespace

const DeviceLimits& device_limits(int32_t index) {
  static std::mutex mutex;
  static std::map<int32_t, DeviceLimits> known;
  const std::lock_guard lock(mutex);
  const auto found = known.find(index);
  return found != known.end() ? found->second : known.emplace(index, query(index)).first->second;
}

Plan plan_for(const Problem& problem, Float32 float32, int32_t index) {
  using Key = std::tuple<int32_t, Type, Float32, int64_t, int64_t, int64_t, Step, std::string>;
  static std::mutex mutex;
  static std::map<Key, Plan> known;
  const DeviceLimits& limits = device_limits(index);
  const char* restricted = std::getenv("FUSED_BPTT_CUDA_PLAN");
  const std::string only = restricted ? restricted : "";
  const Sizes sizes{problem.B, problem.G, problem.H, step_of(problem)};
  const Key key{index, problem.type, float32, sizes.B, sizes.G, sizes.H, sizes.step, only};
  const std::lock_guard lock(mutex);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  const std::optional<Plan> plan =
      make_plan(sizes, products_for(problem.type, float32), limits, only_of(only));
  if (!plan) {
    throw std::runtime_error("H = " + std::to_string(problem.H) + ": expected a plan for its " +
                             name_of(sizes.step) + " step on this device" +
                             (only.empty() ? "" : " with FUSED_BPTT_CUDA_PLAN=" + only) +
                             ", got none (`fused-bptt info --shape` says why)");
  }
  return known.emplace(key, *plan).first->second;
}

void copy_tables(const Problem& problem, int64_t* tables, void* stream) {
  for (int64_t t = 0; t < problem.T; t += Rows::kSteps) {
    Rows rows;
    const int steps = static_cast<int>(std::min<int64_t>(Rows::kSteps, problem.T - t));
    std::copy_n(problem.batch_sizes + t, steps, rows.sizes);
    std::copy_n(problem.first_rows + t, steps, rows.first);
    write_tables<<<1, 256, 0, static_cast<cudaStream_t>(stream)>>>(rows, tables + t,
                                                                   tables + problem.T + t, steps);
    check(cudaGetLastError(), "copying batch_sizes");
  }
}

void launch(const KernelArgs& args, const DeviceLimits& limits, void* stream) {
  const Problem& problem = args.problem;
  const Plan& p = args.plan;
  if (problem.B == 0 || problem.G == 0 || problem.H == 0) return;
  KernelArgs copy = args;
  void* parameters[] = {&copy};

  const int64_t zeros = workspace_zero_bytes(p);
  if (zeros > 0) {
    check(cudaMemsetAsync(args.workspace, 0, static_cast<size_t>(zeros),
                          static_cast<cudaStream_t>(stream)),
          "flags of the " + words_of(p));
  }
  const void* pack = kPacks[static_cast<int>(p.math)](p.row_tiles);
  if (!pack) throw std::runtime_error(words_of(p) + ": expected its packing to be compiled in");
  const Launch packing(pack_blocks(p, problem.H, problem.G), p.threads, 0, stream);
  check(cudaLaunchKernelExC(&packing.config, pack, parameters), "packing W for the " + words_of(p));

  const void* kernel = kernel_for(p, problem.primitive);
  allow(kernel, p);
  const int64_t teams =
      p.exchange == Exchange::grid ? teams_at_once(kernel, args, limits) : p.teams;
  Launch walk(teams * p.ctas, p.threads, p.shared_bytes, stream);
  if (p.exchange == Exchange::cluster) walk.in_clusters_of(p.ctas);
  if (p.exchange == Exchange::grid) walk.all_at_once();
  const bool by_norm = p.step == Step::norm_clipped;
  const void* clip = by_norm ? kClips[static_cast<int>(p.math)]() : nullptr;
  const Launch rows(by_norm ? p.teams * p.batch_tile : 0, kRowThreads, kRowSharedBytes, stream);
  for (copy.step = 0; copy.step < launches(p, problem); ++copy.step) {
    check(cudaLaunchKernelExC(&walk.config, kernel, parameters), words_of(p));
    if (clip) check(cudaLaunchKernelExC(&rows.config, clip, parameters), words_of(p));
  }
}

}  // namespace fused_bptt
