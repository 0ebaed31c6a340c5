#include "core/isa.h"

#include <cstdlib>
#include <string>

#include <c10/util/Exception.h>

namespace spml {
namespace {

const CpuKernels& choose() {
  const char* forced = std::getenv("SPML_FAST_ISA");
  const std::string name = forced == nullptr ? "" : forced;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  TORCH_CHECK(name != "avx512" || avx512, "SPML_FAST_ISA=avx512, but this processor has no AVX-512 (F, BW, DQ, VL)");
  TORCH_CHECK(name != "avx2" || avx2, "SPML_FAST_ISA=avx2, but this processor has no AVX2 with FMA");
  TORCH_CHECK(name.empty() || name == "baseline" || name == "avx2" || name == "avx512",
              "SPML_FAST_ISA=", name, ": expected baseline, avx2 or avx512");
  if (name == "avx512" || (name.empty() && avx512)) {
    return kCpuAvx512;
  }
  if (name == "avx2" || (name.empty() && avx2)) {
    return kCpuAvx2;
  }
#else
  TORCH_CHECK(name.empty() || name == "baseline", "SPML_FAST_ISA=", name,
              ": only baseline exists on this architecture");
#endif
  return kCpuBaseline;
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

}  // namespace spml
