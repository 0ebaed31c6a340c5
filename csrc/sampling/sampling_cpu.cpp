#include "sampling/sampling.h"

#include <algorithm>
#include <vector>

#include <ATen/Parallel.h>

#include "core/isa.h"

namespace spml::cpu {
namespace {

struct alignas(64) CacheLine {
  char bytes[64];
};

// About how many exponentials and logarithms one thread should do before a second one pays for its start.
constexpr int64_t kGrain = 20000;

void run_tiles(SamplingKernel kernel, int dtype, const LogWeightParams& p, const ScanParams& scan) {
  const CpuKernels& isa = cpu_kernels();
  const int64_t tiles = (p.chains + isa.lanes - 1) / isa.lanes;
  const int64_t work_per_tile =
      std::max<int64_t>(1, p.steps * isa.lanes * (p.n_classes + p.n_fake_classes + 4 * int64_t{p.n_targets}));
  const int64_t grain = std::max<int64_t>(1, kGrain / work_per_tile);
  at::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
    std::vector<CacheLine> scratch((isa.scratch_bytes[dtype](p) + sizeof(CacheLine) - 1) / sizeof(CacheLine));
    kernel(p, scan, begin * isa.lanes, std::min(end * isa.lanes, p.chains), scratch.data());
  });
}

void run_rows(NoiseKernel kernel, const NoiseParams& p) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, p.dim));
  at::parallel_for(0, p.rows, grain, [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

}  // namespace

void s2m_log_weight(Dtype logits, const LogWeightParams& p) {
  const int dtype = static_cast<int>(logits);
  run_tiles(cpu_kernels().log_weight[dtype], dtype, p, {});
}

void s2m_imh_scan(Dtype logits, const LogWeightParams& p, const ScanParams& scan) {
  const int dtype = static_cast<int>(logits);
  run_tiles(cpu_kernels().s2m_imh_scan[dtype], dtype, p, scan);
}

void imh_scan(Dtype weights, const LogWeightParams& p, const ScanParams& scan) {
  const int dtype = static_cast<int>(weights);
  run_tiles(cpu_kernels().imh_scan[dtype], dtype, p, scan);
}

void philox_uniform(Dtype out, const NoiseParams& p) {
  run_rows(cpu_kernels().uniform[static_cast<int>(out)], p);
}

void philox_normal(Dtype out, const NoiseParams& p) {
  run_rows(cpu_kernels().normal[static_cast<int>(out)], p);
}

}  // namespace spml::cpu
