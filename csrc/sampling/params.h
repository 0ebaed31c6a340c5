// What the sampling ops hand to their kernels: raw pointers, shapes in comments.
//   S steps, C chains, N classes, F classes of D_f, T targets, W = ceil(N / 64) words of a class mask.
#pragma once

#include <cstdint>

namespace spml {

struct LogWeightParams {
  const void* class_logits;        // [S, C, N]
  const void* validity_logit;      // [S, C]
  const void* fake_logits;         // [S, C, F] or null
  const void* log_correction;      // [S, C] or null; added to every target's log weight
  const int64_t* masks;            // [T, 2, W] bits of I, then bits of J
  const void* log_gamma;           // [T, N]
  const void* inv_temperature;     // [T, 2] 1/T, then 1/T_v
  void* log_weights;               // [T, S, C], written by s2m_log_weight, read by imh_scan
  int64_t steps, chains;
  int n_classes, n_fake_classes, n_targets, words;
  int proposal_class;              // column of fake_logits
};

struct ScanParams {
  void* weights;      // [4, T, C] Chain<T>'s floating-point fields
  int32_t* counts;    // [3, T, C] Chain<T>'s integer fields
  int64_t* invalid;   // [1] smallest (step * C + chain) with a NaN or +inf weight
  uint64_t seed;
  int64_t first_chain;
  int32_t first_step;
};

struct NoiseParams {
  const int64_t* chains;  // [R]
  const int64_t* steps;   // [R]
  void* out;              // [R] uniforms or [R, dim] normals
  int64_t rows;
  int64_t dim;
  uint64_t seed;
};

}  // namespace spml
