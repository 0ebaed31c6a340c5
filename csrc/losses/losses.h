// The launchers that losses.cpp chooses between by device.
#pragma once

#include <cstdint>

#include "losses/params.h"

namespace spml {

#define SPML_DECLARE_LOSS_LAUNCHERS(...)                                                                       \
  /* Any loss; of float64 arithmetic or float32. */                                                            \
  void loss(bool float64, const LossParams& p __VA_ARGS__);                                                    \
  /* The sum of sigmoid(logits) into out. */                                                                   \
  void probability_sum(bool float64, const LossParams& p, double* out __VA_ARGS__);                            \
  /* grad *= scale, [n] in place; nothing moves where scale is 1. */                                           \
  void scale(void* grad, Element element, int64_t n, const void* scale, bool float64 __VA_ARGS__);             \
  /* out [n_out, L] = zeros, then out[index[r]] += rows[r]. */                                                 \
  void scatter_rows(bool float64, const void* rows, const int64_t* index, int64_t n_rows, int64_t n_columns,   \
                    void* out, int64_t n_out __VA_ARGS__);                                                     \
  /* One unobserved column of each row, -1 where there is none. */                                             \
  void draw_unobserved(const SelectParams& p, int64_t* out __VA_ARGS__);                                       \
  /* The k-th largest logit among unobserved labels; infinity where k is 0 or none is unobserved. */           \
  void large_loss_threshold(bool float64, const SelectParams& p, void* out __VA_ARGS__);                       \
  /* Marks unobserved labels whose logit reaches the threshold. */                                             \
  void flip_labels(bool float64, const SelectParams& p __VA_ARGS__);

namespace cpu {
SPML_DECLARE_LOSS_LAUNCHERS()
}  // namespace cpu

#ifdef SPML_WITH_CUDA
// Launched on the current stream of `device`; nothing synchronises.
namespace cuda {
#define SPML_DEVICE , int device
SPML_DECLARE_LOSS_LAUNCHERS(SPML_DEVICE)
#undef SPML_DEVICE

// What kernels of earlier calls found wrong on `device`, once: entry or row as LossParams::invalid has it, or
// kNoInvalid. Looks at host memory only.
int64_t take_invalid(int device);
}  // namespace cuda
#endif

}  // namespace spml
