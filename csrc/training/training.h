// The launchers that training.cpp chooses between by device.
#pragma once

#include "core/dtype.h"
#include "training/adam_linear.h"

namespace spml {

namespace cpu {
void adam_linear_(Dtype weight, const AdamLinearParams& p);
}  // namespace cpu

#ifdef SPML_WITH_CUDA
// Launched on the current stream of `device`; nothing synchronises.
namespace cuda {
void adam_linear_(Dtype weight, const AdamLinearParams& p, int device);
}  // namespace cuda
#endif

}  // namespace spml
