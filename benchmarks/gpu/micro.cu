// The figures that the limits of docs/kernels.md are made of, one JSON object a line.
//
//   clusters    how many clusters of n CTAs with all of an SM's shared memory are active at once
//   st_async    cycles of a round trip between two CTAs of a cluster: 4 bytes and their mbarrier
//   dsmem       bytes a cycle that each CTA of a cluster receives while all push to all
//   flag        cycles of a round trip between two CTAs through a flag in L2
//   mma         cycles between two mma of a warp, for one or two warps in each part of an SM
//   mma_chain   cycles of an mma that waits for the one before
//   broadcast   cycles between two loads of 16 bytes from shared memory that all lanes of a warp
//               share, of an SM whose 8 warps load at once
//   launch      microseconds from a kernel on all SMs to the next one that follows it on the
//   stream,
//               launched one by one and by a graph
//
// Cycles are clock64() of one SM; the clock it ran at is with the machine's other facts.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

constexpr int kRounds = 2000;
constexpr int kThreads = 256;

// The median of some runs of a kernel that writes one number of cycles.
template <class F>
double median_cycles(const F& launch) {
  long long* cycles = nullptr;
  check(cudaMallocManaged(&cycles, sizeof *cycles), "memory");
  std::vector<double> found;
  for (int run = 0; run < 9; ++run) {
    *cycles = 0;
    launch(cycles);
    check(cudaDeviceSynchronize(), "a kernel");
    found.push_back(static_cast<double>(*cycles));
  }
  check(cudaFree(cycles), "memory");
  std::nth_element(found.begin(), found.begin() + found.size() / 2, found.end());
  return found[found.size() / 2];
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define CLUSTER_CODE 0
#else
#define CLUSTER_CODE 1
#endif

#if CLUSTER_CODE
__device__ uint32_t address(const void* local) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(local));
}
__device__ uint32_t rank_in_cluster() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ uint32_t at_peer(uint32_t local, uint32_t rank) {
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(local), "r"(rank));
  return there;
}
__device__ void meet() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}
__device__ void init(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ void expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(address(barrier)),
      "r"(bytes)
      : "memory");
}
__device__ void wait(uint64_t* barrier, uint32_t parity) {
  uint32_t done = 0;
  while (!done) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(address(barrier)), "r"(parity)
        : "memory");
  }
}
__device__ void push(uint32_t to, uint32_t value, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(to),
      "r"(value), "r"(barrier)
      : "memory");
}
#endif

// The first and the last CTA of a cluster answer each other.
__global__ void ping_pong_st_async(long long* cycles) {
#if CLUSTER_CODE
  __shared__ uint64_t barrier;
  __shared__ uint32_t word;
  const uint32_t rank = rank_in_cluster(), last = gridDim.x - 1;
  if (threadIdx.x == 0) {
    init(&barrier);
    expect(&barrier, 4);
  }
  meet();
  if (threadIdx.x == 0 && (rank == 0 || rank == last)) {
    const uint32_t to = at_peer(address(&word), last - rank);
    const uint32_t there = at_peer(address(&barrier), last - rank);
    const long long begin = clock64();
    for (int i = 0; i < kRounds; ++i) {
      if (rank == 0) push(to, i, there);
      wait(&barrier, i & 1);
      if (i + 1 < kRounds) expect(&barrier, 4);
      if (rank == last) push(to, i, there);
    }
    if (rank == 0) *cycles = clock64() - begin;
  }
  meet();
#endif
}

// Every CTA pushes `words` words to each of its peers, round after round: an exchange of the carry.
__global__ void all_to_all(long long* cycles, int words) {
#if CLUSTER_CODE
  extern __shared__ uint32_t memory[];
  uint64_t* barriers = reinterpret_cast<uint64_t*>(memory);
  uint32_t* inbox = memory + 4;
  const uint32_t rank = rank_in_cluster(), peers = gridDim.x;
  const uint32_t bytes = 4u * words * (peers - 1);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      init(barriers + i);
      expect(barriers + i, bytes);
    }
  }
  meet();
  const long long begin = clock64();
  constexpr int kSteps = 200;
  for (int step = 0; step < kSteps; ++step) {
    const uint32_t mine = address(inbox + (step & 1) * words * peers + rank * words);
    const uint32_t barrier = address(barriers + (step & 1));
    for (int i = threadIdx.x; i < words; i += kThreads) {
      for (uint32_t p = 1; p < peers; ++p) {
        const uint32_t peer = (rank + p) % peers;
        push(at_peer(mine + 4 * i, peer), step, at_peer(barrier, peer));
      }
    }
    wait(barriers + (step & 1), (step >> 1) & 1);
    if (threadIdx.x == 0 && step + 2 < kSteps) expect(barriers + (step & 1), bytes);
    __syncthreads();
  }
  if (rank == 0 && threadIdx.x == 0) *cycles = (clock64() - begin) / kSteps;
  meet();
#endif
}

__device__ void raise(unsigned* flag, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory");
}
__device__ unsigned seen(const unsigned* flag) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
  return value;
}

// Two CTAs on two SMs: launched cooperatively, each with an SM's shared memory.
__global__ void ping_pong_flag(unsigned* flags, long long* cycles) {
  if (threadIdx.x != 0) return;
  unsigned *mine = flags + 64 * blockIdx.x, *theirs = flags + 64 * (1 - blockIdx.x);
  const long long begin = clock64();
  for (unsigned i = 1; i <= kRounds; ++i) {
    if (blockIdx.x == 0) raise(mine, i);
    while (seen(theirs) < i) {
    }
    if (blockIdx.x == 1) raise(mine, i);
  }
  if (blockIdx.x == 0) *cycles = clock64() - begin;
}

template <bool k16>
__device__ void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (k16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// `kChains` independent sums; W's fragments stay in registers, as in the kernels.
template <bool k16, int kChains>
__global__ void mma_interval(long long* cycles, float* keep) {
  float d[kChains][4] = {};
  const uint32_t a[4] = {threadIdx.x, threadIdx.x + 1, threadIdx.x + 2, threadIdx.x + 3};
  const uint32_t b[2] = {threadIdx.x, threadIdx.x + 5};
  __syncthreads();
  const long long begin = clock64();
  for (int i = 0; i < kRounds; ++i) {
#pragma unroll
    for (int c = 0; c < kChains; ++c) multiply<k16>(d[c], a, b);
  }
  __syncthreads();
  if (threadIdx.x == 0) *cycles = clock64() - begin;
  float sum = 0;
  for (int c = 0; c < kChains; ++c) sum += d[c][0] + d[c][3];
  if (sum == 1.5f) *keep = sum;  // never; the sums are not for nothing
}

template <class... Given, class... Args>
void launch_cluster(void (*kernel)(Given...), int ctas, size_t shared, Args... args) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared)),
        "shared memory");
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(ctas), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(ctas);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, args...), "a cluster");
}

int active_clusters(int ctas, size_t shared) {
  const auto kernel = &all_to_all;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster");
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared)),
        "shared memory");
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(ctas), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(ctas);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int count = 0;
  if (cudaOccupancyMaxActiveClusters(&count, kernel, &config) != cudaSuccess) {
    cudaGetLastError();
    return -1;
  }
  return count;
}

template <bool k16>
void time_mma(const char* name) {
  float* keep = nullptr;
  check(cudaMalloc(&keep, sizeof *keep), "memory");
  const double chain =
      median_cycles([&](long long* c) { mma_interval<k16, 1><<<1, 32>>>(c, keep); });
  std::printf("{\"what\": \"mma_chain\", \"shape\": \"%s\", \"cycles\": %.2f}\n", name,
              chain / kRounds);
  for (const int warps : {4, 8}) {
    const double all =
        median_cycles([&](long long* c) { mma_interval<k16, 8><<<1, 32 * warps>>>(c, keep); });
    // Of one part of the SM, which has a quarter of the warps.
    std::printf(
        "{\"what\": \"mma\", \"shape\": \"%s\", \"warps\": %d, \"cycles_of_a_part\": %.2f}\n", name,
        warps, all / (kRounds * 8.0) / (warps / 4));
  }
  check(cudaFree(keep), "memory");
}

__global__ void broadcast_loads(long long* cycles, float* keep) {
  __shared__ float4 words[32];
  if (threadIdx.x < 32) words[threadIdx.x] = {1, 2, 3, 4};
  __syncthreads();
  float sums[8] = {};
  const long long begin = clock64();
  for (int round = 0; round < kRounds; ++round) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float4 x = words[(round + i) % 32];
      sums[i] += x.x + x.y + x.z + x.w;
    }
  }
  __syncthreads();
  const long long end = clock64();
  float sum = 0;
  for (const float s : sums) sum += s;
  keep[threadIdx.x] = sum;
  if (threadIdx.x == 0) *cycles = end - begin;
}

__global__ void nothing() {}

double microseconds_of_a_launch(int sms, bool graphed) {
  constexpr int kLaunches = 500;
  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream), "a stream");
  const auto launch_all = [&] {
    for (int i = 0; i < kLaunches; ++i) nothing<<<sms, kThreads, 0, stream>>>();
  };
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  if (graphed) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "a graph");
    launch_all();
    check(cudaStreamEndCapture(stream, &graph), "a graph");
    check(cudaGraphInstantiate(&replay, graph, 0), "a graph");
  }
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaEventCreate(&begin), "an event");
  check(cudaEventCreate(&end), "an event");
  std::vector<float> found;
  for (int run = 0; run < 9; ++run) {
    check(cudaEventRecord(begin, stream), "an event");
    if (graphed) {
      check(cudaGraphLaunch(replay, stream), "a graph");
    } else {
      launch_all();
    }
    check(cudaEventRecord(end, stream), "an event");
    check(cudaStreamSynchronize(stream), "a kernel");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "an event");
    found.push_back(ms);
  }
  std::nth_element(found.begin(), found.begin() + found.size() / 2, found.end());
  return 1e3 * found[found.size() / 2] / kLaunches;
}

}  // namespace

int main() {
  cudaDeviceProp device{};
  check(cudaGetDeviceProperties(&device, 0), "no CUDA device");
  const size_t shared = device.sharedMemPerBlockOptin;
  if (device.major >= 9) {
    for (int n = 2; n <= 16; ++n) {
      std::printf("{\"what\": \"clusters\", \"ctas\": %d, \"active\": %d}\n", n,
                  active_clusters(n, shared));
    }
    for (const int n : {2, 4, 8, 16}) {
      if (active_clusters(n, 4096) < 1) continue;
      const double cycles =
          median_cycles([&](long long* c) { launch_cluster(ping_pong_st_async, n, 0, c); });
      std::printf("{\"what\": \"st_async\", \"ctas\": %d, \"round_trip_cycles\": %.1f}\n", n,
                  cycles / kRounds);
    }
    for (const int n : {2, 4, 8, 16}) {
      for (const int words : {64, 256, 1024}) {  // that a CTA sends to each peer
        const size_t bytes = 16 + 2 * 4 * static_cast<size_t>(words) * n;
        if (bytes > shared || active_clusters(n, bytes) < 1) continue;
        const double cycles =
            median_cycles([&](long long* c) { launch_cluster(all_to_all, n, bytes, c, words); });
        std::printf(
            "{\"what\": \"dsmem\", \"ctas\": %d, \"bytes_received\": %d, \"cycles\": %.0f, "
            "\"bytes_a_cycle\": %.2f}\n",
            n, 4 * words * (n - 1), cycles, 4.0 * words * (n - 1) / cycles);
      }
    }
  }
  unsigned* flags = nullptr;
  check(cudaMalloc(&flags, 1024), "memory");
  const double flag = median_cycles([&](long long* c) {
    check(cudaMemset(flags, 0, 1024), "memory");
    check(cudaFuncSetAttribute(ping_pong_flag, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)),
          "shared memory");
    void* args[] = {&flags, &c};
    check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(&ping_pong_flag), dim3(2),
                                      dim3(32), args, shared, nullptr),
          "two CTAs");
  });
  std::printf("{\"what\": \"flag\", \"round_trip_cycles\": %.1f}\n", flag / kRounds);
  time_mma<true>("m16n8k16");
  time_mma<false>("m16n8k8");
  float* keep = nullptr;
  check(cudaMalloc(&keep, kThreads * sizeof *keep), "memory");
  const double loads =
      median_cycles([&](long long* c) { broadcast_loads<<<1, kThreads>>>(c, keep); });
  std::printf("{\"what\": \"broadcast\", \"cycles\": %.2f}\n",
              loads / (kRounds * 8.0) / (kThreads / 32));
  for (const bool graphed : {false, true}) {
    std::printf("{\"what\": \"launch\", \"by\": \"%s\", \"microseconds\": %.2f}\n",
                graphed ? "graph" : "stream",
                microseconds_of_a_launch(device.multiProcessorCount, graphed));
  }
  return 0;
}
