// Launches of the training kernels.
#include "core/launch.cuh"
#include "training/kernels_cuda.cuh"
#include "training/training.h"

namespace spml::cuda {

void adam_linear_(Dtype weight, const AdamLinearParams& p, int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const auto blocks = static_cast<unsigned int>(std::min<int64_t>(AdamTiles::of(p).count, int64_t{1} << 30));
  with_compute_type(weight, [&](auto t) {
    adam_linear_kernel<decltype(t)><<<blocks, kAdamThreads, 0, stream>>>(p);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace spml::cuda
