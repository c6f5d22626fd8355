#include "limits.h"

#include <vector>

namespace fused_bptt {
namespace {

constexpr int64_t KiB = 1024;
constexpr int64_t MiB = 1024 * KiB;

// Clusters stay within a GPC. H100 and H200 have 132 SMs of 144, here as six GPCs with 16 SMs and
// two with 18; which ones are missing differs from part to part. For clusters of 8, 15 were seen
// instead of 16 (accel-sim, pull request 87), so one is taken off from there on.
DeviceLimits hopper(const char* name, double memory_bytes_per_ns) {
  // NVIDIA H100 Tensor Core GPU Architecture, v1.04; CUDA Programming Guide, compute capabilities;
  // the clock is the highest that the driver reports for the SXM parts.
  DeviceLimits limits{name, 90, 132, 227 * KiB, 228 * KiB, 50 * MiB, 1.98, memory_bytes_per_ns, {}};
  for (int32_t n = 1; n <= kLargestCluster; ++n) {
    limits.active_clusters[n] = 6 * (16 / n) + 2 * (18 / n) - (n >= 8 ? 1 : 0);
  }
  return limits;
}

const std::vector<DeviceLimits>& tables() {
  static const std::vector<DeviceLimits> all = {
      hopper("h200", 4800),  // H200 datasheet: 4.8 TB/s
      hopper("h100", 3350),  // H100 SXM datasheet: 3.35 TB/s
      // NVIDIA A100 Tensor Core GPU Architecture, v1.0; the 80 GB part's memory.
      {"a100", 80, 108, 163 * KiB, 164 * KiB, 40 * MiB, 1.41, 2039, {}},
      // NVIDIA Ada GPU Architecture, v2.01.
      {"rtx4090", 89, 128, 99 * KiB, 100 * KiB, 72 * MiB, 2.52, 1008, {}},
      // NVIDIA Ampere GA102 GPU Architecture, v2.0.
      {"rtx3090", 86, 82, 99 * KiB, 100 * KiB, 6 * MiB, 1.695, 936, {}},
  };
  return all;
}

}  // namespace

const DeviceLimits* find_limits(const std::string& name) {
  for (const DeviceLimits& limits : tables()) {
    if (limits.name == name) return &limits;
  }
  return nullptr;
}

std::string names_of_limits() {
  std::string names;
  for (const DeviceLimits& limits : tables()) names += (names.empty() ? "" : ", ") + limits.name;
  return names;
}

}  // namespace fused_bptt
