// Memory of a call: aligned, and in large pages where it is large.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fused_bptt {

constexpr int64_t kLargePage = int64_t{2} << 20;

// Memory that is about to be written for the first time comes faster in large pages: 4 MiB in 90 us
// instead of 1300 on the machine of docs/kernels.md. Only a hint, for the whole large pages inside.
inline void ask_for_large_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t end = (begin + static_cast<uintptr_t>(bytes)) / kLargePage * kLargePage;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  static_cast<void>(data), static_cast<void>(bytes);
#endif
}

struct FreeAligned {
  std::align_val_t alignment;
  void operator()(std::byte* p) const { ::operator delete[](p, alignment); }
};
using Buffer = std::unique_ptr<std::byte[], FreeAligned>;

inline Buffer allocate(int64_t bytes) {
  const std::align_val_t alignment{bytes < kLargePage ? 64 : static_cast<size_t>(kLargePage)};
  Buffer buffer(new (alignment) std::byte[static_cast<size_t>(std::max<int64_t>(bytes, 1))],
                FreeAligned{alignment});
  ask_for_large_pages(buffer.get(), bytes);
  return buffer;
}

// Working memory of one call at a time. A thread keeps a small one for its next call: memory that
// goes back to the system after each call, and comes anew, can cost more than the call itself.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    thread_local Kept kept;
    if (bytes > kMostKept) {
      own_ = allocate(bytes);
      data_ = own_.get();
      return;
    }
    if (bytes > kept.bytes) kept = {allocate(bytes), bytes};
    data_ = kept.buffer.get();
  }
  std::byte* data() const { return data_; }

 private:
  struct Kept {
    Buffer buffer;
    int64_t bytes = -1;
  };
  static constexpr int64_t kMostKept = int64_t{16} << 20;
  Buffer own_;
  std::byte* data_;
};

}  // namespace fused_bptt
