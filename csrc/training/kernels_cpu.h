// A step of Adam on the CPU. A few rows of the weight at a time: their gradient, for as many columns as stay in the L1
// cache, then one pass over the rows themselves, one square root and one division to an element.
//
// Bytes per weight: reads and writes it and its two moments. x comes from the caches, once for every kAdamRows rows.
//
// The products are not fused: the square root and the division take longer, so it gained 3 % at most, and processors
// without the instruction would call a function for each.
//
// No standard or torch header may be included from here: see core/macros.h.
#pragma once

#include "training/adam_linear.h"

SPML_NAMESPACE_BEGIN

constexpr int kAdamRows = 5;        // of the weight at a time: 2 were a quarter slower, 8 no faster
constexpr int kAdamBatch = 8;       // rows of x that one pass over a gradient adds
constexpr int kAdamColumns = 2112;  // 2048 features and a bias in one go: rows in pieces were up to a tenth slower

template <class T>
struct alignas(64) AdamGradient {
  T row[kAdamRows][kAdamColumns];
};

// gradient (+)= products of kBatch rows of x, from this one on, with their columns of grad_logits.
template <int kBatch, bool kFirst, class T>
inline void add_products(const T* x, int64_t x_stride, const T* grad, int64_t batch_stride, int64_t row_stride,
                         int rows, int n, AdamGradient<T>& gradient) {
  T factor[kBatch][kAdamRows];
  for (int b = 0; b < kBatch; ++b) {
    for (int r = 0; r < kAdamRows; ++r) {
      factor[b][r] = r < rows ? grad[b * batch_stride + r * row_stride] : T(0);
    }
  }
  SPML_VECTORISE
  for (int d = 0; d < n; ++d) {
    T sum[kAdamRows];
#pragma GCC unroll 5
    for (int r = 0; r < kAdamRows; ++r) {
      sum[r] = kFirst ? T(0) : gradient.row[r][d];
    }
#pragma GCC unroll 8
    for (int b = 0; b < kBatch; ++b) {
      const T value = x[b * x_stride + d];
#pragma GCC unroll 5
      for (int r = 0; r < kAdamRows; ++r) {
        sum[r] = sum[r] + factor[b][r] * value;
      }
    }
#pragma GCC unroll 5
    for (int r = 0; r < kAdamRows; ++r) {
      gradient.row[r][d] = sum[r];
    }
  }
}

// The gradient of rows [row, row + rows) and columns [column, column + n).
template <class T>
inline void compute_gradient(const AdamLinearParams& p, int64_t row, int rows, int64_t column, int n,
                             AdamGradient<T>& gradient) {
  const T* x = static_cast<const T*>(p.x) + column;
  const T* grad = static_cast<const T*>(p.grad_logits) + row * p.grad_row_stride;
  const int64_t step = p.grad_batch_stride;
  int64_t b = 0;
  if (p.batch >= kAdamBatch) {
    add_products<kAdamBatch, true>(x, p.x_stride, grad, step, p.grad_row_stride, rows, n, gradient);
    b = kAdamBatch;
  } else {
    for (T(&sums)[kAdamColumns] : gradient.row) {
      for (int d = 0; d < n; ++d) {
        sums[d] = T(0);
      }
    }
  }
  for (; b + kAdamBatch <= p.batch; b += kAdamBatch) {
    add_products<kAdamBatch, false>(x + b * p.x_stride, p.x_stride, grad + b * step, step, p.grad_row_stride, rows, n,
                                    gradient);
  }
  for (; b < p.batch; ++b) {
    add_products<1, false>(x + b * p.x_stride, p.x_stride, grad + b * step, step, p.grad_row_stride, rows, n, gradient);
  }
}

// Rows [begin, end) of the weight.
template <class T>
void run_adam_linear(const AdamLinearParams& p, int64_t begin, int64_t end) {
  AdamGradient<T> gradient;
  const AdamStep<T> step(p);
  for (int64_t row = begin; row < end; row += kAdamRows) {
    const int rows = static_cast<int>(minimum<int64_t>(kAdamRows, end - row));
    for (int64_t column = 0; column < p.columns; column += kAdamColumns) {
      const int n = static_cast<int>(minimum<int64_t>(kAdamColumns, p.columns - column));
      compute_gradient(p, row, rows, column, n, gradient);
      for (int r = 0; r < rows; ++r) {
        const T rate = step.rate(static_cast<const T*>(p.lr)[(row + r) * p.lr_stride]);
        const int64_t first = (row + r) * p.columns + column;
        T* weight = static_cast<T*>(p.weight) + first;
        T* mean = static_cast<T*>(p.exp_avg) + first;
        T* square = static_cast<T*>(p.exp_avg_sq) + first;
        const T* sums = gradient.row[r];
        SPML_VECTORISE
        for (int d = 0; d < n; ++d) {
          step(sums[d], rate, weight[d], mean[d], square[d]);
        }
      }
    }
  }
}

SPML_NAMESPACE_END
