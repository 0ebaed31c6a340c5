// Defines the kernel table of the instruction set that the including file selected by SPML_ISA and SPML_TABLE.
#include "core/isa.h"
#include "losses/kernels_cpu.h"
#include "sampling/kernels_cpu.h"
#include "training/kernels_cpu.h"

namespace spml {

#define SPML_STRING_(x) #x
#define SPML_STRING(x) SPML_STRING_(x)

extern const CpuKernels SPML_TABLE = {
    SPML_STRING(SPML_ISA),
    kLanes,
    {scratch_bytes<float>, scratch_bytes<double>, scratch_bytes<float>, scratch_bytes<float>},
    {run_log_weight<float, float>, run_log_weight<double, double>, run_log_weight<Half, float>,
     run_log_weight<BFloat16, float>},
    {run_scan<float, float, true>, run_scan<double, double, true>, run_scan<Half, float, true>,
     run_scan<BFloat16, float, true>},
    {run_scan<float, float, false>, run_scan<double, double, false>},
    {run_uniform<float>, run_uniform<double>},
    {run_normal<float>, run_normal<double>},
    kBlock,
    sizeof(LossScratch<double>),
    {run_loss<float>, run_loss<double>},
    {run_probability_sum<float, false>, run_probability_sum<double, false>},
    {run_probability_sum<float, true>, run_probability_sum<double, true>},
    {run_ranking<float>, run_ranking<double>},
    {run_adam_linear<float>, run_adam_linear<double>},
};

}  // namespace spml
