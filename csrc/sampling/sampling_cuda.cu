// Launches of the sampling kernels.
#include "core/launch.cuh"
#include "sampling/kernels_cuda.cuh"
#include "sampling/sampling.h"

namespace spml::cuda {
namespace {

// Blocks for `items` threads of work; kernels loop over the rest with a grid stride.
int grid_for(int64_t items) {
  return static_cast<int>(std::min<int64_t>((items + kThreads - 1) / kThreads, int64_t{1} << 30));
}

template <class Scalar, bool kStaged>
void launch_scan(const LogWeightParams& p, const ScanParams& scan, size_t shared_bytes, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((p.chains + kChains - 1) / kChains),
                  static_cast<unsigned>((p.n_targets + kTargets - 1) / kTargets));
  const auto kernel = s2m_imh_scan_kernel<Scalar, kStaged>;
  if (shared_bytes > 48 * 1024) {
    C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shared_bytes)));
  }
  kernel<<<grid, kThreads, shared_bytes, stream>>>(p, scan);
}

}  // namespace

void s2m_log_weight(Dtype logits, const LogWeightParams& p, int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  with_storage_type(logits, [&](auto scalar) {
    log_weight_kernel<decltype(scalar)><<<grid_for(p.steps * p.chains), kThreads, 0, stream>>>(p);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void s2m_imh_scan(Dtype logits, const LogWeightParams& p, const ScanParams& scan, int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  int shared_limit = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  with_storage_type(logits, [&](auto scalar) {
    using Scalar = decltype(scalar);
    using T = typename Compute<Scalar>::type;
    const size_t tile = sizeof(ScanTile<T>);
    const size_t staged = tile + sizeof(T) * kThreads * static_cast<size_t>(row_stride(p.n_classes));
    if (staged <= static_cast<size_t>(shared_limit) / 2) {  // two blocks a multiprocessor, or it does not pay
      launch_scan<Scalar, true>(p, scan, staged, stream);
    } else {
      launch_scan<Scalar, false>(p, scan, tile, stream);
    }
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void imh_scan(Dtype weights, const LogWeightParams& p, const ScanParams& scan, int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  with_compute_type(weights, [&](auto t) {
    imh_scan_kernel<decltype(t)><<<grid_for(p.n_targets * p.chains), kThreads, 0, stream>>>(p, scan);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void philox_uniform(Dtype out, const NoiseParams& p, int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  with_compute_type(out, [&](auto t) {
    uniform_kernel<decltype(t)><<<grid_for(p.rows), kThreads, 0, stream>>>(p);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void philox_normal(Dtype out, const NoiseParams& p, int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const int64_t calls = p.rows * ((p.dim + kNormalsPerCall - 1) / kNormalsPerCall);
  with_compute_type(out, [&](auto t) {
    normal_kernel<decltype(t)><<<grid_for(calls), kThreads, 0, stream>>>(p);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace spml::cuda
