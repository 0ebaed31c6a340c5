// What the argument checks of all ops share, and the choice between CPU and CUDA.
#pragma once

#include <ATen/core/Tensor.h>

#include "core/dtype.h"

namespace spml {

inline Dtype dtype_of(const at::Tensor& t, const char* op, const char* name) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return Dtype::kFloat32;
    case at::kDouble:
      return Dtype::kFloat64;
    case at::kHalf:
      return Dtype::kFloat16;
    case at::kBFloat16:
      return Dtype::kBFloat16;
    default:
      TORCH_CHECK_TYPE(false, op, ": ", name, " must be float32, float64, float16 or bfloat16, got ", t.scalar_type());
  }
}

inline at::ScalarType compute_type(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? at::kDouble : at::kFloat;
}

inline void check_device(const at::Tensor& t, const at::Tensor& like, const char* op, const char* name) {
  TORCH_CHECK_VALUE(t.device() == like.device(), op, ": ", name, " is on ", t.device(), ", expected ", like.device());
}

inline void check_tensor(const at::Tensor& t, const at::Tensor& like, at::ScalarType type, at::IntArrayRef shape,
                         const char* op, const char* name) {
  TORCH_CHECK_VALUE(t.sizes() == shape, op, ": ", name, " must have shape ", shape, ", got ", t.sizes());
  TORCH_CHECK_TYPE(t.scalar_type() == type, op, ": ", name, " must be ", type, ", got ", t.scalar_type());
  check_device(t, like, op, name);
}

}  // namespace spml

// Calls cpu::op(...) or cuda::op(..., device), whichever has the tensor.
#ifdef SPML_WITH_CUDA
#define SPML_LAUNCH(tensor, op, ...)                                       \
  do {                                                                     \
    if ((tensor).is_cuda()) {                                              \
      cuda::op(__VA_ARGS__, static_cast<int>((tensor).get_device()));      \
    } else {                                                               \
      cpu::op(__VA_ARGS__);                                                \
    }                                                                      \
  } while (false)
#else
#define SPML_LAUNCH(tensor, op, ...)                                                                         \
  do {                                                                                                       \
    TORCH_CHECK(!(tensor).is_cuda(), #op ": this build of spml_fast has no CUDA kernels; see `spml-fast info`"); \
    cpu::op(__VA_ARGS__);                                                                                    \
  } while (false)
#endif
