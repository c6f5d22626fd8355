// The clipped step of one product, for the files of instantiations/.
#pragma once

#include "instantiations.h"
#include "recurrence.cuh"

namespace fused_bptt {

template <Math math>
const void* clipped_kernel_of(int32_t row_tiles) {
  switch (row_tiles) {
    case 2:
      return reinterpret_cast<const void*>(&clipped_step_kernel<StreamedProduct<math, 2>>);
    case 4:
      return reinterpret_cast<const void*>(&clipped_step_kernel<StreamedProduct<math, 4>>);
    default:
      return nullptr;
  }
}

}  // namespace fused_bptt
