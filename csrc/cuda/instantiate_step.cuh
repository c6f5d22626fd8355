// The steps of one product that are not plain, for the files of instantiations/.
#pragma once

#include "instantiations.h"
#include "norm_step.cuh"
#include "recurrence.cuh"

namespace fused_bptt {

template <Step step, class Product>
const void* special_step_of() {
  if constexpr (step == Step::norm_clipped) {
    return reinterpret_cast<const void*>(&sums_kernel<Product>);
  } else {
    return reinterpret_cast<const void*>(&step_kernel<Product, Primitive::linear, true>);
  }
}

template <Math math, Step step>
const void* special_step_of(int32_t row_tiles) {
  switch (row_tiles) {
    case 2:
      return special_step_of<step, StreamedProduct<math, 2>>();
    case 4:
      return special_step_of<step, StreamedProduct<math, 4>>();
    default:
      return nullptr;
  }
}

template <Math math>
const void* clip_of() {
  return reinterpret_cast<const void*>(&clip_kernel<OpsOf<math>>);
}

}  // namespace fused_bptt
