// The kernels for AVX2 with FMA and F16C.
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
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace fused_bptt {
namespace {

constexpr int kVectorBytes = 32;
#include "vector-inl.h"
#include "simd_avx2.h"
#include "simd-inl.h"
#include "tanh-inl.h"
#include "exponential-inl.h"
#include "normal-inl.h"
#include "products-inl.h"
#include "walk-inl.h"
#include "layer-inl.h"

}  // namespace

extern const Kernels kernels_avx2 = {
    "avx2", machine<float>(), machine<double>(), &walk, &layer, &normal, &flags};

}  // namespace fused_bptt
