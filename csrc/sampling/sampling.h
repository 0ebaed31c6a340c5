// The launchers that sampling.cpp chooses between by device.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "sampling/params.h"

namespace spml {

namespace cpu {
void s2m_log_weight(Dtype logits, const LogWeightParams& p);
void s2m_imh_scan(Dtype logits, const LogWeightParams& p, const ScanParams& scan);
void imh_scan(Dtype weights, const LogWeightParams& p, const ScanParams& scan);
void philox_uniform(Dtype out, const NoiseParams& p);
void philox_normal(Dtype out, const NoiseParams& p);
}  // namespace cpu

#ifdef SPML_WITH_CUDA
// Launched on the current stream of `device`; nothing synchronises.
namespace cuda {
void s2m_log_weight(Dtype logits, const LogWeightParams& p, int device);
void s2m_imh_scan(Dtype logits, const LogWeightParams& p, const ScanParams& scan, int device);
void imh_scan(Dtype weights, const LogWeightParams& p, const ScanParams& scan, int device);
void philox_uniform(Dtype out, const NoiseParams& p, int device);
void philox_normal(Dtype out, const NoiseParams& p, int device);
}  // namespace cuda
#endif

}  // namespace spml
