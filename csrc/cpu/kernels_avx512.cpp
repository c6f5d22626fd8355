// The kernels for AVX-512 (F, BW, DQ, VL).
//
// The standard headers come before the target pragma: their inline functions must not be compiled
// with instructions that another machine, sharing them through the linker, does not have.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include <immintrin.h>

#include "kernels.h"
#include "storage.h"

#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

namespace fused_bptt {
namespace {

constexpr int kVectorBytes = 64;
#include "vector-inl.h"
#include "simd_avx512.h"
#include "simd-inl.h"
#include "tanh-inl.h"
#include "exponential-inl.h"
#include "normal-inl.h"
#include "products-inl.h"
#include "walk-inl.h"
#include "layer-inl.h"

}  // namespace

extern const Kernels kernels_avx512 = {
    "avx512", machine<float>(), machine<double>(), &walk, &layer, &normal, &flags};

}  // namespace fused_bptt
