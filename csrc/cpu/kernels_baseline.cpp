// The kernels for every machine: 16-byte vectors, SSE2 on x86-64.
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

#include "kernels.h"
#include "storage.h"

namespace fused_bptt {
namespace {

constexpr int kVectorBytes = 16;
#include "vector-inl.h"
#include "simd_baseline.h"
#include "simd-inl.h"
#include "tanh-inl.h"
#include "exponential-inl.h"
#include "normal-inl.h"
#include "products-inl.h"
#include "walk-inl.h"
#include "layer-inl.h"

}  // namespace

extern const Kernels kernels_baseline = {
    "baseline", machine<float>(), machine<double>(), &walk, &layer, &normal, &flags};

}  // namespace fused_bptt
