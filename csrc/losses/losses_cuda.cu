// Launches of the loss kernels.
#include "core/launch.cuh"
#include "losses/losses.h"
#include "losses/kernels_cuda.cuh"
#include "losses/table.h"

#include <atomic>

namespace spml::cuda {
namespace {

// A word of host memory for each device that its kernels can write: how they report without anyone waiting.
constexpr int kMaxDevices = 64;

struct Mailbox {
  volatile int64_t* host = nullptr;
  int64_t* device = nullptr;
};

Mailbox& mailbox(int device) {
  static Mailbox all[kMaxDevices];
  Mailbox& box = all[device % kMaxDevices];
  if (box.host == nullptr) {
    void* host = nullptr;
    void* mapped = nullptr;
    C10_CUDA_CHECK(cudaHostAlloc(&host, sizeof(int64_t), cudaHostAllocMapped | cudaHostAllocPortable));
    C10_CUDA_CHECK(cudaHostGetDevicePointer(&mapped, host, 0));
    *static_cast<int64_t*>(host) = kNoInvalid;
    box.device = static_cast<int64_t*>(mapped);
    box.host = static_cast<int64_t*>(host);
  }
  return box;
}

// Blocks for `items` threads of work, a few for every multiprocessor; kernels loop over the rest with a grid stride.
unsigned int blocks_for(int64_t items, int device) {
  int multiprocessors = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  const int64_t wanted = (items + kLossThreads - 1) / kLossThreads;
  const int64_t most = std::min<int64_t>(kMaxBlocks, int64_t{8} * multiprocessors);
  return static_cast<unsigned int>(std::max<int64_t>(1, std::min(wanted, most)));
}

void start_reduction(void* workspace, unsigned int blocks, cudaStream_t stream) {
  if (blocks > 1) {
    auto* work = static_cast<Workspace*>(workspace);
    C10_CUDA_CHECK(cudaMemsetAsync(&work->blocks_done, 0, sizeof(work->blocks_done), stream));
  }
}

template <class T>
void sum_probabilities(const LossParams& p, const Matrix& m, double factor, double* out, int device,
                       cudaStream_t stream) {
  const unsigned int blocks = blocks_for(p.rows * p.columns, device);
  start_reduction(p.workspace, blocks, stream);
  probability_sum_kernel<T><<<blocks, kLossThreads, 0, stream>>>(m, p.rows, p.columns, factor, out,
                                                                 static_cast<Workspace*>(p.workspace));
}

template <template <class> class Loss, class Scalar>
void launch_loss(const LossParams& p, int device, cudaStream_t stream) {
  constexpr int64_t kSize = Pack<Scalar>::kSize;
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const bool packed = p.logits.column_stride == 1 && p.logits.row_stride == p.columns && aligned(p.logits.data) &&
                      aligned(p.grad);
  const unsigned int blocks = blocks_for((p.rows * p.columns + kSize - 1) / kSize, device);
  if (p.out != nullptr) {
    start_reduction(p.workspace, blocks, stream);
  }
  if (p.kind == LossKind::kRole) {
    if constexpr (!Loss<float>::kAux) {
      loss_kernel<Loss, Scalar, true><<<blocks, kLossThreads, 0, stream>>>(p, packed);
    }
  } else {
    loss_kernel<Loss, Scalar, false><<<blocks, kLossThreads, 0, stream>>>(p, packed);
  }
}

Dtype dtype_of(Element element) {
  switch (element) {
    case Element::kFloat64:
      return Dtype::kFloat64;
    case Element::kFloat16:
      return Dtype::kFloat16;
    case Element::kBFloat16:
      return Dtype::kBFloat16;
    default:
      return Dtype::kFloat32;
  }
}

}  // namespace

int64_t take_invalid(int device) {
  Mailbox& box = mailbox(device);
  const int64_t invalid = *box.host;
  if (invalid != kNoInvalid) {
    *box.host = kNoInvalid;
  }
  return invalid;
}

void loss(bool float64, const LossParams& given, int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  LossParams p = given;
  p.invalid = mailbox(device).device;
  if (p.penalty_slope != 0 && p.k_hat == nullptr) {
    auto* work = static_cast<Workspace*>(p.workspace);
    const double per_row = 1.0 / static_cast<double>(p.rows);
    with_compute_type(float64 ? Dtype::kFloat64 : Dtype::kFloat32, [&](auto t) {
      using T = decltype(t);
      sum_probabilities<T>(p, p.logits, per_row, &work->k_hat[0], device, stream);
      if (p.kind == LossKind::kRole) {
        sum_probabilities<T>(p, p.aux, per_row, &work->k_hat[1], device, stream);
      }
    });
    p.k_hat = work->k_hat;
  }
  with_storage_type(dtype_of(p.element), [&](auto scalar) {
    using Scalar = decltype(scalar);
    if (p.kind == LossKind::kRanking) {
      const unsigned int blocks = blocks_for(p.rows * kLossThreads, device);
      if (p.out != nullptr) {
        start_reduction(p.workspace, blocks, stream);
      }
      ranking_kernel<Scalar><<<blocks, kLossThreads, 0, stream>>>(p);
      return;
    }
    switch (p.loss) {
#define SPML_LAUNCH_LOSS(name, Functor, eps)             \
  case kLoss_##name:                                     \
    return launch_loss<Functor, Scalar>(p, device, stream);
      SPML_ELEMENTWISE_LOSSES(SPML_LAUNCH_LOSS)
#undef SPML_LAUNCH_LOSS
      default:
        return;
    }
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void probability_sum(bool float64, const LossParams& p, double* out, int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  with_compute_type(float64 ? Dtype::kFloat64 : Dtype::kFloat32, [&](auto t) {
    sum_probabilities<decltype(t)>(p, p.logits, 1.0, out, device, stream);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void scale(void* grad, Element element, int64_t n, const void* by, bool, int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  with_storage_type(dtype_of(element), [&](auto scalar) {
    using Scalar = decltype(scalar);
    scale_kernel<Scalar><<<blocks_for(n, device), kLossThreads, 0, stream>>>(
        static_cast<Scalar*>(grad), n, static_cast<const typename Compute<Scalar>::type*>(by));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void scatter_rows(bool float64, const void* rows, const int64_t* index, int64_t n_rows, int64_t n_columns, void* out,
                  int64_t n_out, int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  with_compute_type(float64 ? Dtype::kFloat64 : Dtype::kFloat32, [&](auto t) {
    using T = decltype(t);
    C10_CUDA_CHECK(cudaMemsetAsync(out, 0, static_cast<size_t>(n_out * n_columns) * sizeof(T), stream));
    scatter_rows_kernel<T><<<static_cast<unsigned int>(n_rows), kLossThreads, 0, stream>>>(
        static_cast<const T*>(rows), index, n_rows, n_columns, static_cast<T*>(out), n_out);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void draw_unobserved(const SelectParams& p, int64_t* out, int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const auto blocks = static_cast<unsigned int>((p.rows + kLossThreads - 1) / kLossThreads);
  draw_unobserved_kernel<<<blocks, kLossThreads, 0, stream>>>(p, out);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void large_loss_threshold(bool float64, const SelectParams& p, void* out, int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(cudaMemsetAsync(p.workspace, 0, sizeof(Selection), stream));
  with_compute_type(float64 ? Dtype::kFloat64 : Dtype::kFloat32, [&](auto t) {
    using T = decltype(t);
    const unsigned int blocks = blocks_for(p.rows * p.columns, device);
    for (int shift = static_cast<int>(sizeof(T)) * 8; shift > 0;) {
      const int bits = std::min(kDigitBits, shift);
      shift -= bits;
      histogram_kernel<T><<<blocks, kLossThreads, 0, stream>>>(p, shift, bits);
      digit_kernel<T><<<1, 1, 0, stream>>>(p, shift, bits, static_cast<T*>(out));
    }
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void flip_labels(bool float64, const SelectParams& p, int device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  with_compute_type(float64 ? Dtype::kFloat64 : Dtype::kFloat32, [&](auto t) {
    flip_labels_kernel<decltype(t)><<<blocks_for(p.rows * p.columns, device), kLossThreads, 0, stream>>>(p);
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace spml::cuda
