// The CUDA loss kernels behind a C interface, for test_cuda_loss_kernels.py.
#define __shared__ static
#include "cuda_emulator.h"

#include "losses/kernels_cuda.cuh"
#include "losses/table.h"

using namespace spml;
using namespace spml::cuda;

namespace {

// As a launch has it: one thread to an item, blocks for all of them, or fewer that loop.
unsigned blocks_for(int64_t items) { return static_cast<unsigned>((items + kLossThreads - 1) / kLossThreads); }

// Calls f(Scalar{}); dtype: 0 float32, 1 float64, 2 float16, 3 bfloat16.
template <class F>
void with_dtype(int dtype, F&& f) {
  switch (dtype) {
    case 0:
      return f(float{});
    case 1:
      return f(double{});
    case 2:
      return f(Half{});
    default:
      return f(BFloat16{});
  }
}

template <class F>
void with_compute_type(bool float64, F&& f) {
  float64 ? f(double{}) : f(float{});
}

void start_reduction(void* workspace) { static_cast<Workspace*>(workspace)->blocks_done = 0; }

template <template <class> class Loss>
void run_loss(int dtype, const LossParams& p, bool packed, unsigned blocks) {
  with_dtype(dtype, [&](auto scalar) {
    using Scalar = decltype(scalar);
    if (p.kind != LossKind::kRole) {
      launch({blocks}, kLossThreads, [&] { loss_kernel<Loss, Scalar, false>(p, packed); });
    } else if constexpr (!Loss<float>::kAux) {
      launch({blocks}, kLossThreads, [&] { loss_kernel<Loss, Scalar, true>(p, packed); });
    }
  });
}

}  // namespace

extern "C" {

// sizeof of what Python declares again
int emulated_size(int which) {
  const size_t sizes[] = {sizeof(Matrix), sizeof(LossParams), sizeof(SelectParams), sizeof(Workspace),
                          sizeof(Selection)};
  return static_cast<int>(sizes[which]);
}

void emulated_block_order(int last_first) { last_block_first = last_first != 0; }

// False: this file has no kernel of that loss.
bool emulated_loss(int dtype, const LossParams* p, bool packed, unsigned blocks) {
  start_reduction(p->workspace);
  switch (p->loss) {
    case kLoss_an:
      run_loss<An>(dtype, *p, packed, blocks);
      return true;
    case kLoss_bce:
      run_loss<Bce>(dtype, *p, packed, blocks);
      return true;
    case kLoss_asl:
      run_loss<Asl>(dtype, *p, packed, blocks);
      return true;
    case kLoss_gr:
      run_loss<Gr>(dtype, *p, packed, blocks);
      return true;
    case kLoss_gr_standard:
      run_loss<GrStandard>(dtype, *p, packed, blocks);
      return true;
    case kLoss_em_apl:
      run_loss<EmApl>(dtype, *p, packed, blocks);
      return true;
    case kLoss_large_loss:
      run_loss<LargeLoss>(dtype, *p, packed, blocks);
      return true;
    default:
      return false;
  }
}

void emulated_ranking(int dtype, const LossParams* p, unsigned blocks) {
  start_reduction(p->workspace);
  with_dtype(dtype, [&](auto scalar) {
    launch({blocks}, kLossThreads, [&] { ranking_kernel<decltype(scalar)>(*p); });
  });
}

void emulated_probability_sum(bool float64, const Matrix* m, int64_t rows, int64_t columns, double factor,
                              double* out, void* workspace, unsigned blocks) {
  start_reduction(workspace);
  with_compute_type(float64, [&](auto t) {
    auto* work = static_cast<Workspace*>(workspace);
    launch({blocks}, kLossThreads,
           [&] { probability_sum_kernel<decltype(t)>(*m, rows, columns, factor, out, work); });
  });
}

void emulated_scale(int dtype, void* grad, int64_t n, const void* by, unsigned blocks) {
  with_dtype(dtype, [&](auto scalar) {
    using Scalar = decltype(scalar);
    using T = typename Compute<Scalar>::type;
    launch({blocks}, kLossThreads,
           [&] { scale_kernel<Scalar>(static_cast<Scalar*>(grad), n, static_cast<const T*>(by)); });
  });
}

void emulated_scatter_rows(bool float64, const void* rows, const int64_t* index, int64_t n_rows, int64_t n_columns,
                           void* table, int64_t table_rows) {
  with_compute_type(float64, [&](auto t) {
    using T = decltype(t);
    launch({static_cast<unsigned>(n_rows)}, kLossThreads, [&] {
      scatter_rows_kernel<T>(static_cast<const T*>(rows), index, n_rows, n_columns, static_cast<T*>(table),
                             table_rows);
    });
  });
}

void emulated_draw_unobserved(const SelectParams* p, int64_t* out) {
  launch({blocks_for(p->rows)}, kLossThreads, [&] { draw_unobserved_kernel(*p, out); });
}

void emulated_large_loss_threshold(bool float64, const SelectParams* p, void* out, unsigned blocks) {
  *static_cast<Selection*>(p->workspace) = Selection{};
  with_compute_type(float64, [&](auto t) {
    using T = decltype(t);
    for (int shift = static_cast<int>(sizeof(T)) * 8; shift > 0;) {
      const int bits = kDigitBits < shift ? kDigitBits : shift;
      shift -= bits;
      launch({blocks}, kLossThreads, [&] { histogram_kernel<T>(*p, shift, bits); });
      launch({1}, 1, [&] { digit_kernel<T>(*p, shift, bits, static_cast<T*>(out)); });
    }
  });
}

void emulated_flip_labels(bool float64, const SelectParams* p, unsigned blocks) {
  with_compute_type(float64, [&](auto t) {
    launch({blocks}, kLossThreads, [&] { flip_labels_kernel<decltype(t)>(*p); });
  });
}

}  // extern "C"
