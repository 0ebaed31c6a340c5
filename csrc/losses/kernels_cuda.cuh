// The losses on CUDA: the functors of elementwise.h and role.h over a matrix, one thread to 16 bytes of logits.
//
// Sums are of one block's entries, added up in the order of the blocks by whichever block ends last; so results do
// not depend on which that is. Nothing of the CUDA runtime is named here, so the tests can run these very kernels on
// the CPU, a thread for a thread (tests/csrc/cuda_emulator.h).
#pragma once

#include "losses/elementwise.h"
#include "losses/params.h"
#include "losses/role.h"
#include "losses/views.h"

namespace spml::cuda {

constexpr int kLossThreads = 256;  // of every block

// What LossParams::workspace points to.
struct Workspace {
  double k_hat[2];
  unsigned int blocks_done;  // zero before each kernel that reduces
  double partial[kMaxBlocks];
};
static_assert(sizeof(Workspace) <= kWorkspaceBytes, "the workspace is too small");

// Sum over the block's threads, in every thread.
__device__ inline double block_sum(double value) {
  __shared__ double lanes[kLossThreads];
  lanes[threadIdx.x] = value;
  __syncthreads();
  for (int half = kLossThreads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half) {
      lanes[threadIdx.x] += lanes[threadIdx.x + half];
    }
    __syncthreads();
  }
  const double sum = lanes[0];
  __syncthreads();
  return sum;
}

// Calls use(sum over all blocks) in one thread of the block that ends last.
template <class Use>
__device__ void grid_sum(double value, Workspace& work, Use use) {
  const double sum = block_sum(value);
  if (gridDim.x == 1) {
    if (threadIdx.x == 0) {
      use(sum);
    }
    return;
  }
  __shared__ bool last;
  if (threadIdx.x == 0) {
    work.partial[blockIdx.x] = sum;
    __threadfence();
    last = atomicAdd(&work.blocks_done, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) {
    return;
  }
  __threadfence();
  double mine = 0;
  for (unsigned int b = threadIdx.x; b < gridDim.x; b += kLossThreads) {
    mine += work.partial[b];
  }
  const double total = block_sum(mine);
  if (threadIdx.x == 0) {
    use(total);
  }
}

template <class T>
__device__ void write_loss(const LossParams& p, double sum) {
  *static_cast<T*>(p.out) = static_cast<T>((sum + penalty_of(p)) * p.out_scale);
}

// Where several labels are invalid, any of them may be reported.
__device__ inline void note_invalid(const LossParams& p, int64_t what) {
  if (p.invalid != nullptr) {
    *static_cast<volatile int64_t*>(p.invalid) = what;
  }
}

// Rows and columns of consecutive entries, with what belongs to a row read once.
struct Cursor {
  int64_t row, column;
  int64_t positive = -1;  // column of the observed positive in the index form
  int64_t negative = -1;  // column of the pseudo-negative
  bool valid = true;      // the row's index

  __device__ Cursor(const LossParams& p, int64_t entry) {
    const int64_t total = p.rows * p.columns;
    if (total <= INT32_MAX) {  // a 64-bit division costs as much as a loss
      const uint32_t quotient = static_cast<uint32_t>(entry) / static_cast<uint32_t>(p.columns);
      row = quotient;
    } else {
      row = entry / p.columns;
    }
    column = entry - row * p.columns;
    enter(p);
  }
  __device__ void next(const LossParams& p) {
    if (++column == p.columns) {
      column = 0;
      if (++row < p.rows) {
        enter(p);
      }
    }
  }
  __device__ void enter(const LossParams& p) {
    valid = true;
    if (p.labels.matrix.data == nullptr) {
      const int64_t label = p.labels.positives[row];
      valid = label >= -1 && label < p.label_columns;
      positive = label - p.first_column;
    }
    if (p.labels.negatives != nullptr) {
      negative = p.labels.negatives[row] - p.first_column;
    }
    if (p.aux.index != nullptr) {
      const int64_t index = p.aux.index[row];
      valid = valid && index >= 0 && index < p.aux.data_rows;
    }
    if (!valid) {
      note_invalid(p, -1 - row);
    }
  }
};

// The label under the cursor; invalid ones are noted and NaN.
template <class T>
__device__ T label_under(const LossParams& p, const Cursor& at, bool full) {
  T label;
  if (p.labels.matrix.data != nullptr) {
    label = element_at<T>(p.labels.matrix, at.row, at.column);
    if (!valid_label(label, full)) {
      note_invalid(p, at.row * p.columns + at.column);
      return infinity<T>() - infinity<T>();
    }
  } else {
    label = at.column == at.positive ? T(1) : T(0);
  }
  return at.column == at.negative && label == T(0) ? T(-1) : label;
}

template <class Scalar>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / static_cast<int>(sizeof(Scalar));
  Scalar entry[kSize];
};

// An elementwise or ROLE loss. `packed`: logits and gradients lie row by row without gaps, aligned to 16 bytes.
// Bytes per entry: reads the logit (and its label, in the matrix form; ROLE: its estimate), writes the gradients.
template <template <class> class Loss, class Scalar, bool kRole>
__global__ void __launch_bounds__(kLossThreads) loss_kernel(LossParams p, bool packed) {
  using T = typename Compute<Scalar>::type;
  constexpr int kSize = Pack<Scalar>::kSize;
  const Loss<T> loss(hyper_of<T>(p));
  const bool full = Loss<T>::kFullLabels && !kRole;
  const T eps = static_cast<T>(p.eps);
  const T scale = static_cast<T>(p.scale);
  const T pull = penalty_pull<T>(p, 0);
  const T aux_pull = kRole ? penalty_pull<T>(p, 1) : T(0);
  const T* class_weight = static_cast<const T*>(p.class_weight);
  const Scalar* logits = static_cast<const Scalar*>(p.logits.data);
  Scalar* grad = static_cast<Scalar*>(p.grad);
  Scalar* values = static_cast<Scalar*>(p.values);
  T* aux_grad = static_cast<T*>(p.aux_grad);
  const int64_t total = p.rows * p.columns;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kLossThreads * kSize;
  double sum = 0;
  for (int64_t first = (static_cast<int64_t>(blockIdx.x) * kLossThreads + threadIdx.x) * kSize; first < total;
       first += stride) {
    const bool whole = packed && first + kSize <= total;
    Pack<Scalar> in{};
    if (whole) {
      in = *reinterpret_cast<const Pack<Scalar>*>(logits + first);
    }
    Pack<Scalar> out{};
    Cursor at(p, first);
    T part = T(0);
#pragma unroll
    for (int k = 0; k < kSize; ++k) {
      if (first + k < total) {
        if (k > 0) {
          at.next(p);
        }
        const Scalar raw =
            whole ? in.entry[k] : logits[at.row * p.logits.row_stride + at.column * p.logits.column_stride];
        const T z = static_cast<T>(widen(raw));
        const T weight = class_weight == nullptr ? scale : scale * class_weight[at.column];
        const Logit<T, Eps::kAny> x(z, Sigmoid<T>::of(z), eps);
        T label = label_under<T>(p, at, full);
        T aux = T(0);
        if ((Loss<T>::kAux || kRole) && p.aux.data != nullptr && at.valid) {
          aux = element_at<T>(p.aux, at.row, at.column);
        }
        T value, slope;
        if (kRole) {
          const Logit<T, Eps::kAny> y(aux, Sigmoid<T>::of(aux), eps);
          const RoleEntry<T> entry = evaluate_role(loss, x, y, label);
          value = weight * entry.value;
          slope = fused(pull, x.slope(), weight * entry.derivative);
          if (aux_grad != nullptr) {
            aux_grad[first + k] = fused(aux_pull, y.slope(), weight * entry.estimate_derivative);
          }
        } else {
          const Entry<T> entry = evaluate(loss, x, label, aux);
          value = weight * entry.value;
          slope = fused(pull, x.slope(), weight * entry.derivative);
        }
        if (label != label || !at.valid) {
          value = infinity<T>() - infinity<T>();
        }
        part += value;
        if (values != nullptr) {
          values[first + k] = Narrow<Scalar>::from(value);
        }
        out.entry[k] = Narrow<Scalar>::from(slope);
        if (grad != nullptr && !whole) {
          grad[first + k] = out.entry[k];
        }
      }
    }
    if (grad != nullptr && whole) {
      *reinterpret_cast<Pack<Scalar>*>(grad + first) = out;
    }
    sum += static_cast<double>(part);
  }
  if (p.out != nullptr) {
    grid_sum(sum, *static_cast<Workspace*>(p.workspace), [&](double total_loss) { write_loss<T>(p, total_loss); });
  }
}

// out = factor * the sum of sigmoid(matrix). Reads every logit once.
template <class T>
__global__ void __launch_bounds__(kLossThreads)
    probability_sum_kernel(Matrix m, int64_t rows, int64_t columns, double factor, double* out, Workspace* work) {
  const int64_t total = rows * columns;
  double sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kLossThreads + threadIdx.x; i < total;
       i += static_cast<int64_t>(gridDim.x) * kLossThreads) {
    const int64_t row = i / columns;
    const bool valid = m.index == nullptr || (m.index[row] >= 0 && m.index[row] < m.data_rows);
    if (valid) {  // the loss that follows reports it
      sum += static_cast<double>(Sigmoid<T>::of(element_at<T>(m, row, i - row * columns)).p);
    }
  }
  grid_sum(sum, *work, [&](double total_sum) { *out = factor * total_sum; });
}

// Pairwise ranking, a block a row at a time: see run_ranking in kernels_cpu.h. Reads a row twice, the second time
// from cache.
template <class Scalar>
__global__ void __launch_bounds__(kLossThreads) ranking_kernel(LossParams p) {
  using T = typename Compute<Scalar>::type;
  const T scale = static_cast<T>(p.scale);
  const T* class_weight = static_cast<const T*>(p.class_weight);
  Scalar* grad = static_cast<Scalar*>(p.grad);
  Scalar* values = static_cast<Scalar*>(p.values);
  double loss = 0;  // of this thread's entries
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    double weights = 0;      // A
    double probability = 0;  // B
    double others = 0;       // C
    const auto each = [&](auto use) {
      Cursor at(p, row * p.columns);
      for (at.column = threadIdx.x; at.column < p.columns; at.column += kLossThreads) {
        const T label = label_under<T>(p, at, /*full=*/false);
        const Sigmoid<T> s = Sigmoid<T>::of(element_at<T>(p.logits, row, at.column));
        const T weight = class_weight == nullptr ? scale : scale * class_weight[at.column];
        use(at, label, s, weight);
      }
    };
    each([&](const Cursor&, T label, const Sigmoid<T>& s, T weight) {
      const bool positive = label > T(0);
      weights += positive ? static_cast<double>(weight) : 0.0;
      probability += positive ? 0.0 : static_cast<double>(s.p);
      others += positive ? 0.0 : 1.0;
    });
    weights = block_sum(weights);
    probability = block_sum(probability);
    others = block_sum(others);
    each([&](const Cursor& at, T label, const Sigmoid<T>& s, T weight) {
      const bool positive = label > T(0);
      const T cost = static_cast<T>(others) * s.n + static_cast<T>(probability);
      T value = positive ? weight * cost : T(0);
      if (label != label || !at.valid) {
        value = infinity<T>() - infinity<T>();
      }
      loss += static_cast<double>(value);
      const int64_t entry = row * p.columns + at.column;
      if (values != nullptr) {
        values[entry] = Narrow<Scalar>::from(value);
      }
      if (grad != nullptr) {
        const T factor = positive ? -static_cast<T>(others) * weight : static_cast<T>(weights);
        grad[entry] = Narrow<Scalar>::from(s.p * s.n * factor);
      }
    });
  }
  if (p.out != nullptr) {
    grid_sum(loss, *static_cast<Workspace*>(p.workspace), [&](double total) { write_loss<T>(p, total); });
  }
}

// grad *= scale. Reads one number and ends where that is 1; otherwise reads and writes the gradient.
template <class Scalar>
__global__ void __launch_bounds__(kLossThreads)
    scale_kernel(Scalar* grad, int64_t n, const typename Compute<Scalar>::type* scale) {
  using T = typename Compute<Scalar>::type;
  const T factor = *scale;
  if (factor == T(1)) {
    return;
  }
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kLossThreads + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * kLossThreads) {
    grad[i] = Narrow<Scalar>::from(static_cast<T>(widen(grad[i])) * factor);
  }
}

// table[index[r]] += rows[r], where the table was zero. A block a row; of rows with the same index the first adds them
// all up, in order.
template <class T>
__global__ void __launch_bounds__(kLossThreads)
    scatter_rows_kernel(const T* rows, const int64_t* index, int64_t n_rows, int64_t n_columns, T* table,
                        int64_t table_rows) {
  const int64_t row = blockIdx.x;
  const int64_t target = index[row];
  double earlier = 0;
  double later = 0;
  for (int64_t r = threadIdx.x; r < n_rows; r += kLossThreads) {
    earlier += index[r] == target && r < row ? 1.0 : 0.0;
    later += index[r] == target && r > row ? 1.0 : 0.0;
  }
  earlier = block_sum(earlier);
  later = block_sum(later);
  if (earlier > 0 || target < 0 || target >= table_rows) {
    return;
  }
  for (int64_t c = threadIdx.x; c < n_columns; c += kLossThreads) {
    T sum = rows[row * n_columns + c];
    for (int64_t r = row + 1; later > 0 && r < n_rows; ++r) {
      if (index[r] == target) {
        sum += rows[r * n_columns + c];
      }
    }
    table[target * n_columns + c] = sum;
  }
}

__global__ void __launch_bounds__(kLossThreads) draw_unobserved_kernel(SelectParams p, int64_t* out) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kLossThreads + threadIdx.x;
  if (row < p.rows) {
    out[row] = draw_unobserved(p.labels, row, p.columns, p.seed, static_cast<uint64_t>(*p.step));
  }
}

// --- large_loss_threshold: a histogram of one digit of the keys a pass, then the digit of the k-th largest --------

constexpr int kDigits = 1 << kDigitBits;

// What SelectParams::workspace points to; zero at the start.
struct Selection {
  uint64_t prefix, decided;  // digits found so far, and which bits those are
  int64_t remaining;         // rank among the keys that share the prefix
  int64_t none;              // there is no such logit
  unsigned long long histogram[kDigits];
};
static_assert(sizeof(Selection) <= kSelectionBytes, "the selection's workspace is too small");

template <class T>
__device__ bool is_candidate(const SelectParams& p, int64_t row, int64_t column) {
  if (p.flips.data != nullptr) {
    const int64_t index = p.flips.index[row];
    if (index < 0 || index >= p.flips.data_rows || element_at<T>(p.flips, row, column) > T(0)) {
      return false;
    }
  }
  return label_at<T>(p.labels, row, column, 0) == T(0);
}

template <class T>
__global__ void __launch_bounds__(kLossThreads) histogram_kernel(SelectParams p, int shift, int bits) {
  using UInt = typename Float<T>::UInt;
  Selection& state = *static_cast<Selection*>(p.workspace);
  __shared__ unsigned int counts[kDigits];
  for (int d = threadIdx.x; d < kDigits; d += kLossThreads) {
    counts[d] = 0;
  }
  __syncthreads();
  const UInt prefix = static_cast<UInt>(state.prefix);
  const UInt decided = static_cast<UInt>(state.decided);
  const UInt mask = (UInt(1) << bits) - 1;
  const int64_t total = p.rows * p.columns;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kLossThreads + threadIdx.x; i < total;
       i += static_cast<int64_t>(gridDim.x) * kLossThreads) {
    const int64_t row = i / p.columns;
    const int64_t column = i - row * p.columns;
    const UInt key = ordered_bits(element_at<T>(p.logits, row, column));
    if ((key & decided) == prefix && is_candidate<T>(p, row, column)) {
      atomicAdd(&counts[(key >> shift) & mask], 1u);
    }
  }
  __syncthreads();
  for (int d = threadIdx.x; d < kDigits; d += kLossThreads) {
    if (counts[d] != 0) {
      atomicAdd(&state.histogram[d], static_cast<unsigned long long>(counts[d]));
    }
  }
}

// One thread; 2048 counters at most.
template <class T>
__global__ void digit_kernel(SelectParams p, int shift, int bits, T* out) {
  using UInt = typename Float<T>::UInt;
  Selection& state = *static_cast<Selection*>(p.workspace);
  if (state.decided == 0) {
    int64_t total = 0;
    for (int d = 0; d < kDigits; ++d) {
      total += static_cast<int64_t>(state.histogram[d]);
    }
    state.remaining = minimum(p.k, total);
    state.none = state.remaining == 0;
  }
  int digit = (1 << bits) - 1;
  for (; digit > 0 && state.remaining > static_cast<int64_t>(state.histogram[digit]); --digit) {
    state.remaining -= static_cast<int64_t>(state.histogram[digit]);
  }
  state.prefix |= static_cast<uint64_t>(digit) << shift;
  state.decided |= ((uint64_t{1} << bits) - 1) << shift;
  for (int d = 0; d < kDigits; ++d) {
    state.histogram[d] = 0;
  }
  *out = state.none ? infinity<T>() : from_ordered_bits<T>(static_cast<UInt>(state.prefix));
}

template <class T>
__global__ void __launch_bounds__(kLossThreads) flip_labels_kernel(SelectParams p) {
  const T threshold = *static_cast<const T*>(p.threshold);
  const int64_t total = p.rows * p.columns;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kLossThreads + threadIdx.x; i < total;
       i += static_cast<int64_t>(gridDim.x) * kLossThreads) {
    const int64_t row = i / p.columns;
    const int64_t column = i - row * p.columns;
    if (is_candidate<T>(p, row, column) && element_at<T>(p.logits, row, column) >= threshold) {
      p.flip_table[p.flips.index[row] * p.flips.row_stride + column] = 1;
    }
  }
}

}  // namespace spml::cuda
