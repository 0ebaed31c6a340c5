#include "training/training.h"

#include <algorithm>

#include <ATen/Parallel.h>

#include "core/isa.h"

namespace spml::cpu {
namespace {

// Weights that are worth a second thread: about 3 us of work.
constexpr int64_t kGrain = 8192;

}  // namespace

void adam_linear_(Dtype weight, const AdamLinearParams& p) {
  const AdamLinearKernel kernel = cpu_kernels().adam_linear[static_cast<int>(weight)];
  const int64_t grain = std::max<int64_t>(1, kGrain / p.columns);
  at::parallel_for(0, p.rows, grain, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

}  // namespace spml::cpu
