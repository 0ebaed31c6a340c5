// One step of Adam (Kingma and Ba, 2015) for a linear layer whose weight gradient is never stored: what the op hands
// to its kernels, and the update of one weight.
//
//   g = sum over n, in order, of grad_logits[n, k] * x[n, d]
//   m = m + (1 - beta1) (g - m)
//   v = beta2 v + (1 - beta2) g^2
//   w = w - lr[k] / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
#pragma once

#include "core/math.h"

namespace spml {

// N rows of a batch, K rows and D columns of the weight; all float or all double.
struct AdamLinearParams {
  void* weight;             // [K, D]
  void* exp_avg;            // [K, D] m
  void* exp_avg_sq;         // [K, D] v
  const void* grad_logits;  // [N, K] of any strides
  const void* x;            // [N, D], a row without gaps
  const void* lr;           // [K]
  int64_t rows, columns, batch;                                     // K, D, N
  int64_t grad_batch_stride, grad_row_stride, x_stride, lr_stride;  // in elements
  double beta1, beta2, eps;
  double correction1, correction2;  // 1 - beta^step
};

}  // namespace spml

SPML_NAMESPACE_BEGIN

template <class T>
struct AdamStep {
  double correction1;
  T share1, beta2, share2, root_scale, eps;

  SPML_HD explicit AdamStep(const AdamLinearParams& p)
      : correction1(p.correction1),
        share1(static_cast<T>(1 - p.beta1)),
        beta2(static_cast<T>(p.beta2)),
        share2(static_cast<T>(1 - p.beta2)),
        root_scale(static_cast<T>(1 / square_root(p.correction2))),
        eps(static_cast<T>(p.eps)) {}

  // The factor of m / (sqrt(v) ...) for a row with this learning rate.
  SPML_HD T rate(T lr) const { return static_cast<T>(static_cast<double>(lr) / correction1); }

  SPML_HD void operator()(T gradient, T rate, T& weight, T& mean, T& square) const {
    mean = mean + share1 * (gradient - mean);
    square = beta2 * square + share2 * gradient * gradient;
    weight = weight - rate * mean / (square_root(square) * root_scale + eps);
  }
};

SPML_NAMESPACE_END
