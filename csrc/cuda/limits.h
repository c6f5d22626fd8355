// What a plan needs to know of a device: queried at run time, or one of the named tables here.
#pragma once

#include <cstdint>
#include <string>

namespace fused_bptt {

constexpr int32_t kLargestCluster = 16;

struct DeviceLimits {
  std::string name;
  int32_t capability;       // 10 * major + minor
  int32_t sms;              // streaming multiprocessors
  int64_t shared_of_block;  // bytes of dynamic shared memory that a CTA may ask for
  int64_t shared_of_sm;     // bytes, of which every CTA takes 1 KiB more than it asks for
  int64_t l2_bytes;
  double clock_ghz;
  double memory_bytes_per_ns;
  // Clusters of n CTAs that are on the device at once, each CTA with an SM of its own.
  int32_t active_clusters[kLargestCluster + 1];
};

// Cycles between two instructions of one of an SM's four parts.
struct Rates {
  double mma;   // m16n8k16 of 16-bit types, and m16n8k8 of TF32, with float32 sums
  double ffma;  // 32 multiply-adds of float32
  double dfma;  // 32 multiply-adds of float64
};

// The peaks are those of NVIDIA's architecture papers: multiply-adds a clock of a tensor core in 16
// bits and in TF32 are 512 and 256 of GH100, 256 and 128 of GA100, 64 and 32 of GA102 and AD102
// (float32 sums). mma.sync reaches about 63 % of Hopper's peak (Luo et al., arXiv:2402.13499).
// float64 runs at half of float32's rate in GH100 and GA100 and at 1/64 in GA102 and AD102.
inline Rates rates_of(int32_t capability) {
  if (capability >= 120) return {32, 1, 64};  // GeForce, as AD102
  if (capability >= 90) return {6.6, 1, 2};
  if (capability == 80) return {8.5, 2, 4};
  return {32, 1, 64};
}

// One of the tables below; null for an unknown name.
const DeviceLimits* find_limits(const std::string& name);
std::string names_of_limits();  // all of them, parted by commas

}  // namespace fused_bptt
