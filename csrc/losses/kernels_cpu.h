// The losses on the CPU. Entries are counted row by row and cut into blocks of kBlock. A block is loaded into
// floating-point lanes, whatever the dtype, strides and label form; a functor runs over the lanes in one loop that
// the compiler turns into vector instructions; the results are stored. What depends on the functor (the loop) and
// what depends on the form of the data (loading and storing) never multiply.
//
// A block is the unit of threading and of summation, so results do not depend on the number of threads.
//
// Bytes per entry: reads the logit (and its label, in the matrix form), writes the gradient.
//
// No standard or torch header may be included from here: see core/macros.h.
#pragma once

#include "losses/elementwise.h"
#include "losses/params.h"
#include "losses/role.h"
#include "losses/table.h"
#include "losses/views.h"

SPML_NAMESPACE_BEGIN

constexpr int kBlock = 512;
constexpr int kVector = 16;  // loops run over multiples of it: no scalar remainders

template <class T>
struct alignas(64) SigmoidLanes {
  T p[kBlock], n[kBlock], neg_log_p[kBlock], neg_log_n[kBlock];
};

template <class T>
struct alignas(64) Lanes {
  T logit[kBlock];
  T label[kBlock];
  T aux[kBlock];
  SigmoidLanes<T> of_logit;
  SigmoidLanes<T> of_aux;  // for ROLE, whose aux are logits as well
  T weight[kBlock];
  T value[kBlock];
  T grad[kBlock];
  T aux_grad[kBlock];
};

template <class T>
struct LossScratch {
  Lanes<T> entries;
  Lanes<T> observed;  // in the index form: entries of a block that are not unobserved
  int position[kBlock];
};

SPML_HD int padded(int n) { return (n + kVector - 1) / kVector * kVector; }

// Calls f(row, column, offset in block, count) for each piece of a row in entries [first, first + n).
template <class F>
SPML_HD void for_row_pieces(int64_t columns, int64_t first, int n, F&& f) {
  int64_t row = first / columns;
  int64_t column = first - row * columns;
  for (int at = 0; at < n;) {
    const int count = static_cast<int>(minimum<int64_t>(columns - column, n - at));
    f(row, column, at, count);
    at += count;
    ++row;
    column = 0;
  }
}

template <class T>
inline void load_block(const Matrix& m, int64_t columns, int64_t first, int n, T* out) {
  with_element(m.element, [&](auto u) {
    using U = decltype(u);
    const U* data = static_cast<const U*>(m.data);
    if (m.index == nullptr && m.column_stride == 1 && m.row_stride == columns) {
      const U* source = data + first;
      SPML_VECTORISE
      for (int i = 0; i < n; ++i) {
        out[i] = element_as<T>(source[i]);
      }
      return;
    }
    for_row_pieces(columns, first, n, [&](int64_t row, int64_t column, int at, int count) {
      const U* source = data + (m.index == nullptr ? row : m.index[row]) * m.row_stride + column * m.column_stride;
      const int64_t stride = m.column_stride;
      T* target = out + at;
      if (stride == 1) {
        SPML_VECTORISE
        for (int i = 0; i < count; ++i) {
          target[i] = element_as<T>(source[i]);
        }
      } else {
        for (int i = 0; i < count; ++i) {
          target[i] = element_as<T>(source[i * stride]);
        }
      }
    });
  });
}

template <class U, class T>
inline void store_as(void* data, int64_t first, int n, const T* lanes) {
  U* target = static_cast<U*>(data) + first;
  SPML_VECTORISE
  for (int i = 0; i < n; ++i) {
    target[i] = Narrow<U>::from(lanes[i]);
  }
}

template <class T>
inline void store_block(void* data, Element element, int64_t first, int n, const T* lanes) {
  switch (element) {
    case Element::kFloat64:
      return store_as<double>(data, first, n, lanes);
    case Element::kFloat16:
      return store_as<Half>(data, first, n, lanes);
    case Element::kBFloat16:
      return store_as<BFloat16>(data, first, n, lanes);
    default:
      return store_as<float>(data, first, n, lanes);
  }
}

// Weight of each entry's value and derivative: the class weight times the scale.
template <class T>
inline void load_weights(const LossParams& p, int64_t first, int n, T* out) {
  const T scale = static_cast<T>(p.scale);
  const T* class_weight = static_cast<const T*>(p.class_weight);
  if (class_weight == nullptr) {
    SPML_VECTORISE
    for (int i = 0; i < n; ++i) {
      out[i] = scale;
    }
    return;
  }
  for_row_pieces(p.columns, first, n, [&](int64_t, int64_t column, int at, int count) {
    const T* source = class_weight + column;
    T* target = out + at;
    SPML_VECTORISE
    for (int i = 0; i < count; ++i) {
      target[i] = scale * source[i];
    }
  });
}

inline void note_invalid(int64_t* invalid, int64_t entry) {
  int64_t seen = __atomic_load_n(invalid, __ATOMIC_RELAXED);
  while (entry < seen &&
         !__atomic_compare_exchange_n(invalid, &seen, entry, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

// Labels of the matrix form, checked. Pseudo-negatives are laid over them.
template <class T>
inline void load_labels(const LossParams& p, bool full, int64_t first, int n, T* out) {
  load_block(p.labels.matrix, p.columns, first, n, out);
  int bad = 0;
  SPML_VECTORISE
  for (int i = 0; i < n; ++i) {
    bad |= !valid_label(out[i], full);
  }
  for (int i = 0; bad != 0 && i < n; ++i) {
    if (!valid_label(out[i], full)) {
      note_invalid(p.invalid, first + i);
      break;
    }
  }
  if (p.labels.negatives != nullptr) {
    for_row_pieces(p.columns, first, n, [&](int64_t row, int64_t column, int at, int count) {
      const int64_t i = p.labels.negatives[row] - p.first_column - column;
      if (i >= 0 && i < count && out[at + i] == T(0)) {
        out[at + i] = T(-1);
      }
    });
  }
}

// In the index form: which entries of a block are observed, and their labels. Returns their number.
template <class T>
inline int find_observed(const LossParams& p, int64_t first, int n, int* position, T* label) {
  int found = 0;
  for_row_pieces(p.columns, first, n, [&](int64_t row, int64_t column, int at, int count) {
    const int64_t positive = p.labels.positives[row] - p.first_column - column;
    if (positive >= 0 && positive < count) {
      position[found] = at + static_cast<int>(positive);
      label[found++] = T(1);
    }
    if (p.labels.negatives != nullptr) {
      const int64_t negative = p.labels.negatives[row] - p.first_column - column;
      if (negative >= 0 && negative < count && negative != positive) {
        position[found] = at + static_cast<int>(negative);
        label[found++] = T(-1);
      }
    }
  });
  return found;
}

template <class T>
using EntryKernel = void (*)(const LossParams& p, Lanes<T>& lanes, int n);

// A loop of its own, before that of the functor: one chain of dependent operations as long as both leaves the
// processor too few independent ones to work on (GR: 1.4 to 1.0 ns an entry).
template <class T>
inline void sigmoids(const T* logit, int n, SigmoidLanes<T>& lanes) {
  n = padded(n);
  SPML_VECTORISE
  for (int i = 0; i < n; ++i) {
    const Sigmoid<T> s = Sigmoid<T>::of(logit[i]);
    lanes.p[i] = s.p;
    lanes.n[i] = s.n;
    lanes.neg_log_p[i] = s.neg_log_p;
    lanes.neg_log_n[i] = s.neg_log_n;
  }
}

template <class T>
SPML_HD Sigmoid<T> sigmoid_at(const SigmoidLanes<T>& lanes, int i) {
  return {lanes.p[i], lanes.n[i], lanes.neg_log_p[i], lanes.neg_log_n[i]};
}

template <template <class> class Loss, class T, Eps kEps, bool kMatrix>
void elementwise_entries(const LossParams& p, Lanes<T>& lanes, int n) {
  sigmoids(lanes.logit, n, lanes.of_logit);
  const Loss<T> loss(hyper_of<T>(p));
  const T eps = static_cast<T>(p.eps);
  const T pull = penalty_pull<T>(p, 0);
  n = padded(n);
  SPML_VECTORISE
  for (int i = 0; i < n; ++i) {
    const Logit<T, kEps> x(lanes.logit[i], sigmoid_at(lanes.of_logit, i), eps);
    const T aux = Loss<T>::kAux ? lanes.aux[i] : T(0);
    const Entry<T> entry = kMatrix ? evaluate(loss, x, lanes.label[i], aux) : loss.unobserved(x, aux);
    lanes.value[i] = lanes.weight[i] * entry.value;
    lanes.grad[i] = fused(pull, x.slope(), lanes.weight[i] * entry.derivative);
  }
}

template <template <class> class Loss, class T, Eps kEps, bool kMatrix>
void role_entries(const LossParams& p, Lanes<T>& lanes, int n) {
  sigmoids(lanes.logit, n, lanes.of_logit);
  sigmoids(lanes.aux, n, lanes.of_aux);
  const Loss<T> loss(hyper_of<T>(p));
  const T eps = static_cast<T>(p.eps);
  const T pull = penalty_pull<T>(p, 0);
  const T aux_pull = penalty_pull<T>(p, 1);
  n = padded(n);
  SPML_VECTORISE
  for (int i = 0; i < n; ++i) {
    const Logit<T, kEps> x(lanes.logit[i], sigmoid_at(lanes.of_logit, i), eps);
    const Logit<T, kEps> y(lanes.aux[i], sigmoid_at(lanes.of_aux, i), eps);
    const RoleEntry<T> entry = evaluate_role(loss, x, y, kMatrix ? lanes.label[i] : T(0));
    lanes.value[i] = lanes.weight[i] * entry.value;
    lanes.grad[i] = fused(pull, x.slope(), lanes.weight[i] * entry.derivative);
    lanes.aux_grad[i] = fused(aux_pull, y.slope(), lanes.weight[i] * entry.estimate_derivative);
  }
}

template <class T>
struct EntryKernels {
  EntryKernel<T> kernel[2][2];       // [eps][matrix form]
  EntryKernel<T> role_kernel[2][2];  // null where the loss reads a second matrix itself
  bool full_labels, aux;
};

template <template <class> class Loss, class T, bool kHasEps>
constexpr EntryKernels<T> entry_kernels() {
  constexpr Eps kGiven = kHasEps ? Eps::kPositive : Eps::kZero;
  EntryKernels<T> all{};
  all.kernel[0][0] = elementwise_entries<Loss, T, Eps::kZero, false>;
  all.kernel[0][1] = elementwise_entries<Loss, T, Eps::kZero, true>;
  all.kernel[1][0] = elementwise_entries<Loss, T, kGiven, false>;
  all.kernel[1][1] = elementwise_entries<Loss, T, kGiven, true>;
  if constexpr (!Loss<T>::kAux) {
    all.role_kernel[0][0] = role_entries<Loss, T, Eps::kZero, false>;
    all.role_kernel[0][1] = role_entries<Loss, T, Eps::kZero, true>;
    all.role_kernel[1][0] = role_entries<Loss, T, kGiven, false>;
    all.role_kernel[1][1] = role_entries<Loss, T, kGiven, true>;
  }
  all.full_labels = Loss<T>::kFullLabels;
  all.aux = Loss<T>::kAux;
  return all;
}

template <class T>
constexpr EntryKernels<T> kEntryKernels[kLossCount] = {
#define SPML_ENTRY_KERNELS(name, Functor, eps) entry_kernels<Functor, T, eps != 0>(),
    SPML_ELEMENTWISE_LOSSES(SPML_ENTRY_KERNELS)
#undef SPML_ENTRY_KERNELS
};

template <class T>
inline double block_sum(const T* value, int n) {
  constexpr int kParts = 64;
  alignas(64) T part[kParts] = {};
  int i = 0;
  for (; i + kParts <= n; i += kParts) {
    SPML_VECTORISE
    for (int l = 0; l < kParts; ++l) {
      part[l] += value[i + l];
    }
  }
#pragma GCC unroll 6
  for (int half = kParts / 2; half > 0; half /= 2) {
    SPML_VECTORISE
    for (int l = 0; l < half; ++l) {
      part[l] += part[l + half];
    }
  }
  double sum = static_cast<double>(part[0]);
  for (; i < n; ++i) {
    sum += static_cast<double>(value[i]);
  }
  return sum;
}

// Fills what lies past the last entry of a short block.
template <class T>
inline void pad(T* lanes, int n) {
  for (int i = n; i < padded(n); ++i) {
    lanes[i] = T(0);
  }
}

// Blocks [begin, end) of an elementwise or ROLE loss.
template <class T>
void run_loss(const LossParams& p, int64_t begin, int64_t end, void* memory) {
  LossScratch<T>& scratch = *static_cast<LossScratch<T>*>(memory);
  Lanes<T>& lanes = scratch.entries;
  Lanes<T>& observed = scratch.observed;
  const EntryKernels<T>& kernels = kEntryKernels<T>[p.loss];
  const bool matrix = p.labels.matrix.data != nullptr;
  const bool role = p.kind == LossKind::kRole;
  const auto& variants = role ? kernels.role_kernel : kernels.kernel;
  const EntryKernel<T> kernel = variants[p.eps != 0][matrix];
  const EntryKernel<T> observed_kernel = variants[p.eps != 0][1];
  const bool has_aux = p.aux.data != nullptr;
  const int64_t total = p.rows * p.columns;
  int weights_for = -1;
  if (kernels.aux && !has_aux) {
    for (T& aux : lanes.aux) {
      aux = T(0);
    }
  }
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kBlock;
    const int n = static_cast<int>(minimum<int64_t>(kBlock, total - first));
    load_block(p.logits, p.columns, first, n, lanes.logit);
    pad(lanes.logit, n);
    if (has_aux) {
      load_block(p.aux, p.columns, first, n, lanes.aux);
      pad(lanes.aux, n);
    }
    if (p.class_weight != nullptr || weights_for != n) {
      load_weights(p, first, n, lanes.weight);
      pad(lanes.weight, n);
      weights_for = n;
    }
    if (matrix) {
      load_labels(p, kernels.full_labels && !role, first, n, lanes.label);
      pad(lanes.label, n);
    }
    kernel(p, lanes, n);
    if (!matrix) {
      const int found = find_observed(p, first, n, scratch.position, observed.label);
      if (found > 0) {
        for (int i = 0; i < found; ++i) {
          const int at = scratch.position[i];
          observed.logit[i] = lanes.logit[at];
          observed.weight[i] = lanes.weight[at];
          observed.aux[i] = has_aux ? lanes.aux[at] : T(0);
        }
        pad(observed.logit, found);
        pad(observed.weight, found);
        pad(observed.aux, found);
        pad(observed.label, found);
        observed_kernel(p, observed, found);
        for (int i = 0; i < found; ++i) {
          const int at = scratch.position[i];
          lanes.value[at] = observed.value[i];
          lanes.grad[at] = observed.grad[i];
          if (role) {
            lanes.aux_grad[at] = observed.aux_grad[i];
          }
        }
      }
    }
    if (p.partial != nullptr) {
      p.partial[block] = block_sum(lanes.value, n);
    }
    if (p.values != nullptr) {
      store_block(p.values, p.element, first, n, lanes.value);
    }
    if (p.grad != nullptr) {
      store_block(p.grad, p.element, first, n, lanes.grad);
    }
    if (p.aux_grad != nullptr) {
      store_as<T>(p.aux_grad, first, n, lanes.aux_grad);
    }
  }
}

// Blocks [begin, end) of the sum of sigmoid(logits), or of the aux matrix's rows.
template <class T, bool kOfAux>
void run_probability_sum(const LossParams& p, int64_t begin, int64_t end, void* memory) {
  Lanes<T>& lanes = static_cast<LossScratch<T>*>(memory)->entries;
  const int64_t total = p.rows * p.columns;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kBlock;
    const int n = static_cast<int>(minimum<int64_t>(kBlock, total - first));
    load_block(kOfAux ? p.aux : p.logits, p.columns, first, n, lanes.logit);
    pad(lanes.logit, n);
    sigmoids(lanes.logit, n, lanes.of_logit);
    p.partial[block] = block_sum(lanes.of_logit.p, n);
  }
}

// Rows [begin, end) of pairwise ranking: for each observed positive i, the sum over all labels j of the row that are
// none of 1 - p_i + p_j, whose hinge is always open. With C such j and B the sum of their p, positive i costs
// C (1 - p_i) + B, so a row is read twice: for C, B and the total weight A of its positives, then for the rest.
template <class T>
void run_ranking(const LossParams& p, int64_t begin, int64_t end, void* memory) {
  Lanes<T>& lanes = static_cast<LossScratch<T>*>(memory)->entries;
  const bool matrix = p.labels.matrix.data != nullptr;
  const auto for_pieces = [&](int64_t row, auto&& f) {
    for (int64_t column = 0; column < p.columns; column += kBlock) {
      const int64_t first = row * p.columns + column;
      const int n = static_cast<int>(minimum<int64_t>(kBlock, p.columns - column));
      load_block(p.logits, p.columns, first, n, lanes.logit);
      pad(lanes.logit, n);
      load_weights(p, first, n, lanes.weight);
      if (matrix) {
        load_labels(p, /*full=*/false, first, n, lanes.label);
      } else {
        for (int i = 0; i < n; ++i) {
          lanes.label[i] = p.labels.positives[row] == column + i ? T(1) : T(0);
        }
      }
      sigmoids(lanes.logit, n, lanes.of_logit);
      f(first, n);
    }
  };
  for (int64_t row = begin; row < end; ++row) {
    double weight = 0;    // A
    double probability = 0;  // B
    int64_t others = 0;   // C
    for_pieces(row, [&](int64_t, int n) {
      for (int i = 0; i < n; ++i) {
        const bool positive = lanes.label[i] > T(0);
        lanes.value[i] = positive ? T(0) : lanes.of_logit.p[i];
        lanes.grad[i] = positive ? lanes.weight[i] : T(0);
        others += !positive;
      }
      probability += block_sum(lanes.value, n);
      weight += block_sum(lanes.grad, n);
    });
    double sum = 0;
    for_pieces(row, [&](int64_t first, int n) {
      for (int i = 0; i < n; ++i) {
        const bool positive = lanes.label[i] > T(0);
        const T cost = static_cast<T>(others) * lanes.of_logit.n[i] + static_cast<T>(probability);
        lanes.value[i] = positive ? lanes.weight[i] * cost : T(0);
        const T slope = lanes.of_logit.p[i] * lanes.of_logit.n[i];
        lanes.grad[i] = slope * (positive ? -static_cast<T>(others) * lanes.weight[i] : static_cast<T>(weight));
      }
      sum += block_sum(lanes.value, n);
      if (p.values != nullptr) {
        store_block(p.values, p.element, first, n, lanes.value);
      }
      if (p.grad != nullptr) {
        store_block(p.grad, p.element, first, n, lanes.grad);
      }
    });
    if (p.partial != nullptr) {
      p.partial[row] = sum;
    }
  }
}

SPML_NAMESPACE_END
