// The CUDA training kernels behind a C interface, for test_cuda_training_kernels.py.
#define __shared__ static
#include "cuda_emulator.h"

#include "training/kernels_cuda.cuh"

using namespace spml;
using namespace spml::cuda;

extern "C" {

// sizeof of what Python declares again
int emulated_size() { return static_cast<int>(sizeof(AdamLinearParams)); }

// As a launch has it: a block to a tile, or fewer that loop.
int emulated_tiles(const AdamLinearParams* p) { return static_cast<int>(AdamTiles::of(*p).count); }

void emulated_adam_linear(bool float64, const AdamLinearParams* p, unsigned blocks) {
  launch({blocks}, kAdamThreads, [&] { float64 ? adam_linear_kernel<double>(*p) : adam_linear_kernel<float>(*p); });
}

}  // extern "C"
