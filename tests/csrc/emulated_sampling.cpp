// The CUDA sampling kernels behind a C interface, for test_cuda_kernels.py.
#include "cuda_emulator.h"

#include "sampling/kernels_cuda.cuh"

namespace spml::cuda {
alignas(64) unsigned char shared_memory[1 << 20];
}

using namespace spml;
using namespace spml::cuda;

namespace {

unsigned blocks(int64_t items) { return static_cast<unsigned>((items + kThreads - 1) / kThreads); }

template <class Scalar>
void run_scan(const LogWeightParams& p, const ScanParams& scan, bool staged) {
  const Dim3 grid{static_cast<unsigned>((p.chains + kChains - 1) / kChains),
                  static_cast<unsigned>((p.n_targets + kTargets - 1) / kTargets)};
  launch(grid, kThreads, [&] {
    if (staged) {
      s2m_imh_scan_kernel<Scalar, true>(p, scan);
    } else {
      s2m_imh_scan_kernel<Scalar, false>(p, scan);
    }
  });
}

}  // namespace

extern "C" {

// dtype: 0 float32, 1 float64, 2 float16, 3 bfloat16
void emulated_s2m_imh_scan(int dtype, const LogWeightParams* p, const ScanParams* scan, int staged) {
  switch (dtype) {
    case 0:
      return run_scan<float>(*p, *scan, staged);
    case 1:
      return run_scan<double>(*p, *scan, staged);
    case 2:
      return run_scan<Half>(*p, *scan, staged);
    default:
      return run_scan<BFloat16>(*p, *scan, staged);
  }
}

void emulated_s2m_log_weight(const LogWeightParams* p) {
  launch({blocks(p->steps * p->chains)}, kThreads, [&] { log_weight_kernel<float>(*p); });
}

void emulated_imh_scan(const LogWeightParams* p, const ScanParams* scan) {
  launch({blocks(p->n_targets * p->chains)}, kThreads, [&] { imh_scan_kernel<float>(*p, *scan); });
}

void emulated_philox_normal(const NoiseParams* p) {
  launch({blocks(p->rows * ((p->dim + 3) / 4))}, kThreads, [&] { normal_kernel<float>(*p); });
}

void emulated_philox_uniform(const NoiseParams* p) {
  launch({blocks(p->rows)}, kThreads, [&] { uniform_kernel<float>(*p); });
}

}  // extern "C"
