// The kernels of one product and one exchange, for the files of instantiations/.
#pragma once

#include "instantiations.h"
#include "leaky_walk.cuh"
#include "plan.h"
#include "recurrence.cuh"

namespace fused_bptt {

template <Math math, int row_tiles, template <class, class> class Exchange>
const void* kernel_of(Primitive primitive) {
  using P = Product<math, row_tiles, kFragments>;
  switch (primitive) {
    case Primitive::recurrence:
      return reinterpret_cast<const void*>(&recurrence_kernel<P, Exchange, Primitive::recurrence>);
    case Primitive::linear:
      return reinterpret_cast<const void*>(&recurrence_kernel<P, Exchange, Primitive::linear>);
    default:
      if constexpr (row_tiles <= most_row_tiles_with_a_leak(math)) {
        return reinterpret_cast<const void*>(&leaky_kernel<P, Exchange>);
      }
      return nullptr;
  }
}

template <Math math, template <class, class> class Exchange>
const void* kernel_of(Primitive primitive, int32_t row_tiles) {
  switch (row_tiles) {
    case 1:
      return kernel_of<math, 1, Exchange>(primitive);
    case 2:
      return kernel_of<math, 2, Exchange>(primitive);
    case 4:
      return kernel_of<math, 4, Exchange>(primitive);
    default:
      return nullptr;
  }
}

template <Math math, int row_tiles>
const void* step_kernel_of(Primitive primitive) {
  using P = StreamedProduct<math, row_tiles>;
  switch (primitive) {
    case Primitive::recurrence:
      return reinterpret_cast<const void*>(&step_kernel<P, Primitive::recurrence>);
    case Primitive::linear:
      return reinterpret_cast<const void*>(&step_kernel<P, Primitive::linear>);
    default:
      return reinterpret_cast<const void*>(&leaky_round_kernel<P>);
  }
}

template <Math math>
const void* step_kernel_of(Primitive primitive, int32_t row_tiles) {
  switch (row_tiles) {
    case 2:
      return step_kernel_of<math, 2>(primitive);
    case 4:
      return step_kernel_of<math, 4>(primitive);
    default:
      return nullptr;
  }
}

template <Math math>
const void* pack_of(int32_t row_tiles) {
  switch (row_tiles) {
    case 1:
      return reinterpret_cast<const void*>(&pack_kernel<Product<math, 1, kFragments>>);
    case 2:
      return reinterpret_cast<const void*>(&pack_kernel<Product<math, 2, kFragments>>);
    case 4:
      return reinterpret_cast<const void*>(&pack_kernel<Product<math, 4, kFragments>>);
    default:
      return nullptr;
  }
}

}  // namespace fused_bptt
