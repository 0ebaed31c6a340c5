#include "losses/losses.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <mutex>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <ATen/Parallel.h>

#include "core/isa.h"
#include "losses/kernels_cpu.h"  // of the generic instruction set, for what is not arithmetic

namespace spml::cpu {
namespace {

// Entries that are worth a second thread: about 5 us of work.
constexpr int64_t kGrain = 4096;

void run_blocks(LossKernel kernel, const LossParams& p, int64_t units, int64_t entries_per_unit) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, entries_per_unit));
  at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) {
    alignas(64) unsigned char scratch[sizeof(LossScratch<double>)];
    kernel(p, begin, end, scratch);
  });
}

int64_t block_count(const LossParams& p) { return (p.rows * p.columns + kBlock - 1) / kBlock; }

// In order, whoever computed them.
double add_up(const double* partial, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum += partial[i];
  }
  return sum;
}

// Partial sums of a small batch need no memory of their own.
class Partials {
 public:
  explicit Partials(int64_t n) : n_(n) {
    if (n > kInline) {
      heap_.resize(static_cast<size_t>(n));
    }
  }
  double* data() { return n_ > kInline ? heap_.data() : inline_; }
  double sum() { return add_up(data(), n_); }

 private:
  static constexpr int64_t kInline = 64;
  int64_t n_;
  double inline_[kInline];
  std::vector<double> heap_;
};

double sum_of_probabilities(LossKernel kernel, LossParams p) {
  Partials partials(block_count(p));
  p.partial = partials.data();
  run_blocks(kernel, p, block_count(p), kBlock);
  return partials.sum();
}

int64_t element_size(Element element) {
  int64_t size = 0;
  with_element(element, [&](auto u) { size = sizeof(u); });
  return size;
}

// A large gradient comes in fresh pages, and touching them 4 KiB at a time took twice as long as computing it.
void prefer_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = uintptr_t{1} << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kHuge * kHuge;
  if (data != nullptr && end > begin) {
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a wish: whether it is granted matters not
  }
#endif
}

}  // namespace

void loss(bool float64, const LossParams& given) {
  const CpuKernels& isa = cpu_kernels();
  LossParams p = given;
  prefer_huge_pages(p.grad, p.rows * p.columns * element_size(p.element));
  prefer_huge_pages(p.aux_grad, p.rows * p.columns * (float64 ? 8 : 4));
  double k_hat[2] = {0, 0};
  if (p.penalty_slope != 0 && p.k_hat == nullptr) {
    const double rows = static_cast<double>(p.rows);
    k_hat[0] = sum_of_probabilities(isa.logit_sum[float64], p) / rows;
    if (p.kind == LossKind::kRole) {
      k_hat[1] = sum_of_probabilities(isa.aux_sum[float64], p) / rows;
    }
    p.k_hat = k_hat;
  }
  const bool by_row = p.kind == LossKind::kRanking;
  const int64_t units = by_row ? p.rows : block_count(p);
  Partials partials(p.out == nullptr ? 0 : units);
  p.partial = p.out == nullptr ? nullptr : partials.data();
  run_blocks(by_row ? isa.ranking[float64] : isa.loss[float64], p, units, by_row ? p.columns : kBlock);
  if (p.out != nullptr) {
    const double sum = (partials.sum() + penalty_of(p)) * p.out_scale;
    if (float64) {
      *static_cast<double*>(p.out) = sum;
    } else {
      *static_cast<float*>(p.out) = static_cast<float>(sum);
    }
  }
}

void probability_sum(bool float64, const LossParams& p, double* out) {
  *out = sum_of_probabilities(cpu_kernels().logit_sum[float64], p);
}

void scale(void* grad, Element element, int64_t n, const void* by, bool float64) {
  const double factor = float64 ? *static_cast<const double*>(by) : *static_cast<const float*>(by);
  if (factor == 1) {
    return;
  }
  with_element(element, [&](auto u) {
    using U = decltype(u);
    using T = std::conditional_t<std::is_same_v<U, double>, double, float>;
    at::parallel_for(0, n, 1 << 15, [&](int64_t begin, int64_t end) {
      U* data = static_cast<U*>(grad);
      for (int64_t i = begin; i < end; ++i) {
        data[i] = Narrow<U>::from(element_as<T>(data[i]) * static_cast<T>(factor));
      }
    });
  });
}

void scatter_rows(bool float64, const void* rows, const int64_t* index, int64_t n_rows, int64_t n_columns, void* out,
                  int64_t n_out) {
  const size_t size = float64 ? 8 : 4;
  prefer_huge_pages(out, n_out * n_columns * static_cast<int64_t>(size));
  // For each row of the table, the rows that go there, in order.
  std::vector<int64_t> first(static_cast<size_t>(n_out), -1);
  std::vector<int64_t> next(static_cast<size_t>(n_rows), -1);
  for (int64_t r = n_rows - 1; r >= 0; --r) {
    next[r] = std::exchange(first[index[r]], r);
  }
  const auto run = [&](auto t) {
    using T = decltype(t);
    at::parallel_for(0, n_out, std::max<int64_t>(1, (int64_t{1} << 15) / n_columns), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        T* target = static_cast<T*>(out) + row * n_columns;
        const auto source = [&](int64_t r) { return static_cast<const T*>(rows) + r * n_columns; };
        int64_t r = first[row];
        if (r < 0) {
          std::fill_n(target, n_columns, T(0));
          continue;
        }
        std::copy_n(source(r), n_columns, target);
        for (r = next[r]; r >= 0; r = next[r]) {
          std::transform(target, target + n_columns, source(r), target, std::plus<T>());
        }
      }
    });
  };
  float64 ? run(double{}) : run(float{});
}

void draw_unobserved(const SelectParams& p, int64_t* out) {
  at::parallel_for(0, p.rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      out[row] = spml::draw_unobserved(p.labels, row, p.columns, p.seed, static_cast<uint64_t>(*p.step));
    }
  });
}

namespace {

// Calls share(for_blocks) once for each thread, and for_blocks(use) calls use(first, n, logits, labels) for each of the
// thread's blocks. A label is 0 where it is unobserved and has not been flipped.
template <class T, class Share>
void for_candidates(const SelectParams& p, Share&& share) {
  const int64_t total = p.rows * p.columns;
  const int64_t blocks = (total + kBlock - 1) / kBlock;
  at::parallel_for(0, blocks, std::max<int64_t>(1, kGrain / kBlock), [&](int64_t begin, int64_t end) {
    LossParams view;
    view.labels = p.labels;
    view.columns = p.columns;
    alignas(64) T logit[kBlock];
    alignas(64) T label[kBlock];
    alignas(64) T flipped[kBlock];
    int position[kBlock];
    int64_t ignored = kNoInvalid;
    view.invalid = &ignored;  // the loss that follows reports it
    share([&](auto&& use) {
      for (int64_t block = begin; block < end; ++block) {
        const int64_t first = block * kBlock;
        const int n = static_cast<int>(std::min<int64_t>(kBlock, total - first));
        load_block(p.logits, p.columns, first, n, logit);
        if (p.labels.matrix.data != nullptr) {
          load_labels(view, /*full=*/false, first, n, label);
        } else {
          std::fill(label, label + n, T(0));
          T observed[kBlock];
          const int found = find_observed(view, first, n, position, observed);
          for (int i = 0; i < found; ++i) {
            label[position[i]] = observed[i];
          }
        }
        if (p.flips.data != nullptr) {
          load_block(p.flips, p.columns, first, n, flipped);
          for (int i = 0; i < n; ++i) {
            label[i] = flipped[i] > T(0) ? T(1) : label[i];
          }
        }
        use(first, n, logit, label);
      }
    });
  });
}

// Few enough keys to be copied out and searched by the library.
constexpr int64_t kFewKeys = 4096;

// The k-th largest candidate by its bits, most significant digit first, a histogram of one digit a pass over the
// logits, until few share the digits found; no copy of the others, no sorting.
template <class T>
T select_threshold(const SelectParams& p) {
  using UInt = typename Float<T>::UInt;
  UInt prefix = 0;
  UInt decided = 0;  // bits of the prefix that are known
  int64_t rank = p.k;
  int64_t left = p.rows * p.columns;  // at most so many share the prefix
  for (int shift = static_cast<int>(sizeof(T)) * 8; left > kFewKeys && shift > 0;) {
    const int bits = std::min(kDigitBits, shift);
    shift -= bits;
    const UInt digit_mask = (UInt(1) << bits) - 1;
    std::vector<int64_t> histogram(size_t{1} << bits);
    std::mutex merging;
    for_candidates<T>(p, [&](auto&& for_blocks) {
      // Neighbours count in different columns: most share a digit, and each would wait for the one before it.
      constexpr int kColumns = 4;
      std::vector<std::array<uint32_t, kColumns>> counts(histogram.size());
      for_blocks([&](int64_t, int n, const T* logit, const T* label) {
        if (decided == 0) {
          for (int i = 0; i < n; ++i) {
            counts[ordered_bits(logit[i]) >> shift][i % kColumns] += label[i] == T(0);
          }
        } else {
          for (int i = 0; i < n; ++i) {
            const UInt key = ordered_bits(logit[i]);
            if ((key & decided) == prefix && label[i] == T(0)) {
              ++counts[(key >> shift) & digit_mask][0];
            }
          }
        }
      });
      const std::lock_guard<std::mutex> lock(merging);
      for (size_t digit = 0; digit < counts.size(); ++digit) {
        histogram[digit] += std::accumulate(counts[digit].begin(), counts[digit].end(), int64_t{0});
      }
    });
    if (decided == 0) {
      rank = std::min(rank, std::accumulate(histogram.begin(), histogram.end(), int64_t{0}));
      if (rank == 0) {
        return std::numeric_limits<T>::infinity();
      }
    }
    size_t digit = digit_mask;
    for (; rank > histogram[digit]; --digit) {
      rank -= histogram[digit];
    }
    left = histogram[digit];
    prefix |= static_cast<UInt>(digit) << shift;
    decided |= digit_mask << shift;
  }
  if (left > kFewKeys) {  // all of one value
    return from_ordered_bits<T>(prefix);
  }
  std::vector<UInt> keys(static_cast<size_t>(left));
  std::atomic<int64_t> found{0};
  for_candidates<T>(p, [&](auto&& for_blocks) {
    for_blocks([&](int64_t, int n, const T* logit, const T* label) {
      UInt mine[kBlock + 1];
      int count = 0;
      for (int i = 0; i < n; ++i) {
        const UInt key = ordered_bits(logit[i]);
        mine[count] = key;
        count += label[i] == T(0) && (key & decided) == prefix;
      }
      std::copy_n(mine, count, keys.begin() + found.fetch_add(count, std::memory_order_relaxed));
    });
  });
  rank = std::min(rank, found.load());
  if (rank == 0) {
    return std::numeric_limits<T>::infinity();
  }
  const auto wanted = keys.begin() + (rank - 1);
  std::nth_element(keys.begin(), wanted, keys.begin() + found, std::greater<UInt>());
  return from_ordered_bits<T>(*wanted);
}

}  // namespace

void large_loss_threshold(bool float64, const SelectParams& p, void* out) {
  if (float64) {
    *static_cast<double*>(out) = select_threshold<double>(p);
  } else {
    *static_cast<float*>(out) = select_threshold<float>(p);
  }
}

void flip_labels(bool float64, const SelectParams& p) {
  const auto run = [&](auto t) {
    using T = decltype(t);
    const T threshold = *static_cast<const T*>(p.threshold);
    for_candidates<T>(p, [&](auto&& for_blocks) {
      for_blocks([&](int64_t first, int n, const T* logit, const T* label) {
        for_row_pieces(p.columns, first, n, [&](int64_t row, int64_t column, int at, int count) {
          uint8_t* flips = p.flip_table + p.flips.index[row] * p.flips.row_stride + column;
          for (int i = 0; i < count; ++i) {
            if (label[at + i] == T(0) && logit[at + i] >= threshold) {
              flips[i] = 1;  // no |=: another thread may have the same row of the table
            }
          }
        });
      });
    });
  };
  float64 ? run(double{}) : run(float{});
}

}  // namespace spml::cpu
