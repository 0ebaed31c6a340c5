// Launch helpers of the CUDA sources. They include only what a CPU-only PyTorch ships plus the CUDA runtime, so
// that `nvcc -c` compiles every .cu on a machine without a GPU.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <cstdint>

#include "core/dtype.h"

namespace spml::cuda {

// Calls f(Scalar{}) with the storage type of `dtype`.
template <class F>
void with_storage_type(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(float{});
    case Dtype::kFloat64:
      return f(double{});
    case Dtype::kFloat16:
      return f(Half{});
    case Dtype::kBFloat16:
      return f(BFloat16{});
  }
}

// Calls f(T{}) with float or double.
template <class F>
void with_compute_type(Dtype dtype, F&& f) {
  if (dtype == Dtype::kFloat64) {
    f(double{});
  } else {
    f(float{});
  }
}

}  // namespace spml::cuda
