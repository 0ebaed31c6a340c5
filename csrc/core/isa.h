// The CPU kernels of one instruction set, and the choice between them at run time.
#pragma once

#include "losses/params.h"
#include "sampling/params.h"
#include "training/adam_linear.h"

namespace spml {

using SamplingKernel = void (*)(const LogWeightParams&, const ScanParams&, int64_t begin, int64_t end,
                                void* scratch);
using NoiseKernel = void (*)(const NoiseParams&, int64_t begin, int64_t end);
using LossKernel = void (*)(const LossParams&, int64_t begin, int64_t end, void* scratch);
using AdamLinearKernel = void (*)(const AdamLinearParams&, int64_t begin, int64_t end);

constexpr int kDtypes = 4;        // in the order of Dtype
constexpr int kComputeTypes = 2;  // float32, float64

struct CpuKernels {
  const char* name;

  int lanes;
  int64_t (*scratch_bytes[kDtypes])(const LogWeightParams&);
  SamplingKernel log_weight[kDtypes];
  SamplingKernel s2m_imh_scan[kDtypes];
  SamplingKernel imh_scan[kComputeTypes];
  NoiseKernel uniform[kComputeTypes];
  NoiseKernel normal[kComputeTypes];

  int loss_block;                            // entries of a block
  int64_t loss_scratch_bytes;
  LossKernel loss[kComputeTypes];            // over blocks of entries
  LossKernel logit_sum[kComputeTypes];       // likewise: the sum of sigmoid(logits)
  LossKernel aux_sum[kComputeTypes];         // likewise: the sum of sigmoid(aux)
  LossKernel ranking[kComputeTypes];         // over rows

  AdamLinearKernel adam_linear[kComputeTypes];  // over rows of the weight
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
