// A step of Adam on CUDA: the update of adam_linear.h, one thread to a column of a few rows of the weight, the sums in
// the order in which the CPU adds them up.
//
// Nothing of the CUDA runtime is named here, so the tests can run this very kernel on the CPU, a thread for a thread
// (tests/csrc/cuda_emulator.h).
#pragma once

#include "training/adam_linear.h"

namespace spml::cuda {

constexpr int kAdamThreads = 128;  // of every block; columns of a tile
constexpr int kAdamTileRows = 4;   // rows of a tile
constexpr int kAdamStage = 64;     // rows of grad_logits that lie in shared memory at a time

struct AdamTiles {
  int64_t across, count;  // tiles beside one another, and in all

  SPML_HD static AdamTiles of(const AdamLinearParams& p) {
    const int64_t across = (p.columns + kAdamThreads - 1) / kAdamThreads;
    return {across, across * ((p.rows + kAdamTileRows - 1) / kAdamTileRows)};
  }
};

// Bytes per weight: reads and writes it and its two moments, on their way while the gradient is summed; and reads
// N / kAdamTileRows entries of x, from the L2 cache but for the first rows.
template <class T>
__global__ void __launch_bounds__(kAdamThreads) adam_linear_kernel(AdamLinearParams p) {
  __shared__ T factor[kAdamStage][kAdamTileRows];
  const AdamStep<T> step(p);
  const T* grad = static_cast<const T*>(p.grad_logits);
  const T* lr = static_cast<const T*>(p.lr);
  const AdamTiles tiles = AdamTiles::of(p);
  for (int64_t tile = blockIdx.x; tile < tiles.count; tile += gridDim.x) {
    const int64_t row = tile / tiles.across * kAdamTileRows;
    const int64_t column = tile % tiles.across * kAdamThreads + threadIdx.x;
    const int rows = static_cast<int>(minimum<int64_t>(kAdamTileRows, p.rows - row));
    const bool inside = column < p.columns;
    const int64_t first = row * p.columns + column;
    T* weight = static_cast<T*>(p.weight) + first;
    T* mean = static_cast<T*>(p.exp_avg) + first;
    T* square = static_cast<T*>(p.exp_avg_sq) + first;
    const T* x = static_cast<const T*>(p.x) + column;
    T w[kAdamTileRows], m[kAdamTileRows], v[kAdamTileRows], sum[kAdamTileRows];
#pragma unroll
    for (int r = 0; r < kAdamTileRows; ++r) {
      const bool valid = inside && r < rows;
      w[r] = valid ? weight[r * p.columns] : T(0);
      m[r] = valid ? mean[r * p.columns] : T(0);
      v[r] = valid ? square[r * p.columns] : T(0);
      sum[r] = T(0);
    }
    for (int64_t staged = 0; staged < p.batch; staged += kAdamStage) {
      const int n = static_cast<int>(minimum<int64_t>(kAdamStage, p.batch - staged));
      __syncthreads();  // everyone is done with what was staged before
      for (int i = threadIdx.x; i < n * kAdamTileRows; i += kAdamThreads) {
        const int b = i / kAdamTileRows;
        const int r = i % kAdamTileRows;
        factor[b][r] = r < rows ? grad[(staged + b) * p.grad_batch_stride + (row + r) * p.grad_row_stride] : T(0);
      }
      __syncthreads();
      if (inside) {
        for (int b = 0; b < n; ++b) {
          const T value = x[(staged + b) * p.x_stride];
#pragma unroll
          for (int r = 0; r < kAdamTileRows; ++r) {
            sum[r] = sum[r] + factor[b][r] * value;
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kAdamTileRows; ++r) {
      if (inside && r < rows) {
        step(sum[r], step.rate(lr[(row + r) * p.lr_stride]), w[r], m[r], v[r]);
        weight[r * p.columns] = w[r];
        mean[r * p.columns] = m[r];
        square[r * p.columns] = v[r];
      }
    }
  }
}

}  // namespace spml::cuda
