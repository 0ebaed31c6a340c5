// Storage types of logits and the types that arithmetic on them uses.
#pragma once

#include "core/math.h"

SPML_NAMESPACE_BEGIN

enum class Dtype : int { kFloat32, kFloat64, kFloat16, kBFloat16 };

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

SPML_HD float widen(float x) { return x; }
SPML_HD double widen(double x) { return x; }

SPML_HD float widen(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

SPML_HD float widen(Half x) {
  // Shifted into place, the exponent is 112 too small; multiplying by 2^112 also makes subnormals right.
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const float scaled = bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t special = bit_cast<uint32_t>(scaled) | 0x7f800000;  // inf and NaN keep their exponent
  return bit_cast<float>(((x.bits & 0x7c00) == 0x7c00 ? special : bit_cast<uint32_t>(scaled)) | sign);
}

template <class Scalar>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

SPML_NAMESPACE_END
