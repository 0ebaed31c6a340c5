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

// Rounding to nearest, ties to even; NaN stays NaN.
SPML_HD BFloat16 narrow_bfloat16(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>(x == x ? rounded : 0x7fc0u)};
}

SPML_HD Half narrow_half(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  // Normal numbers: exponent less 112, and rounding that may carry into it.
  const uint32_t normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Subnormal numbers: adding 1/2 leaves them, rounded, in the low bits of the sum.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  uint32_t half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x47800000 ? 0x7c00u : half;  // 2^16 and more: infinity
  half = magnitude > 0x7f800000 ? 0x7e00u : half;
  return {static_cast<uint16_t>(sign | half)};
}

template <class To>
struct Narrow {
  template <class T>
  SPML_HD static To from(T x) {
    return static_cast<To>(x);
  }
};
template <>
struct Narrow<Half> {
  template <class T>
  SPML_HD static Half from(T x) {
    return narrow_half(static_cast<float>(x));
  }
};
template <>
struct Narrow<BFloat16> {
  template <class T>
  SPML_HD static BFloat16 from(T x) {
    return narrow_bfloat16(static_cast<float>(x));
  }
};

template <class Scalar>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

SPML_NAMESPACE_END
