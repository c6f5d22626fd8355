// The kernels for NEON on aarch64.
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

#include <arm_neon.h>

#include "kernels.h"
#include "storage.h"

namespace fused_bptt {
namespace {

constexpr int kVectorBytes = 16;
#include "vector-inl.h"
#include "simd_neon.h"
#include "simd-inl.h"
#include "tanh-inl.h"
#include "exponential-inl.h"
#include "normal-inl.h"
#include "products-inl.h"
#include "walk-inl.h"
#include "layer-inl.h"

}  // namespace

extern const Kernels kernels_neon = {
    "neon", machine<float>(), machine<double>(), &walk, &layer, &normal, &flags};

}  // namespace fused_bptt
