// The CPU kernels of one instruction set, and the choice between them at run time.
#pragma once

#include "sampling/params.h"

namespace spml {

using SamplingKernel = void (*)(const LogWeightParams&, const ScanParams&, int64_t begin, int64_t end,
                                void* scratch);
using NoiseKernel = void (*)(const NoiseParams&, int64_t begin, int64_t end);

constexpr int kDtypes = 4;  // in the order of Dtype

struct CpuKernels {
  const char* name;
  int lanes;
  int64_t (*scratch_bytes[kDtypes])(const LogWeightParams&);
  SamplingKernel log_weight[kDtypes];
  SamplingKernel s2m_imh_scan[kDtypes];
  SamplingKernel imh_scan[kDtypes];  // of the compute type: float32 and float64 only
  NoiseKernel uniform[kDtypes];      // likewise
  NoiseKernel normal[kDtypes];       // likewise
};

extern const CpuKernels kCpuBaseline;
#if defined(__x86_64__)
extern const CpuKernels kCpuAvx2;
extern const CpuKernels kCpuAvx512;
#endif

// The widest instruction set that this machine has, or the one that SPML_FAST_ISA names
// (baseline, avx2, avx512), chosen once.
const CpuKernels& cpu_kernels();

}  // namespace spml
