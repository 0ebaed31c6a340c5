// One element of a matrix or of the labels, for host and device.
#pragma once

#include "core/dtype.h"
#include "core/philox.h"
#include "losses/elementwise.h"
#include "losses/params.h"

SPML_NAMESPACE_BEGIN

template <class T>
SPML_HD T element_as(float x) { return static_cast<T>(x); }
template <class T>
SPML_HD T element_as(double x) { return static_cast<T>(x); }
template <class T>
SPML_HD T element_as(Half x) { return static_cast<T>(widen(x)); }
template <class T>
SPML_HD T element_as(BFloat16 x) { return static_cast<T>(widen(x)); }
template <class T>
SPML_HD T element_as(int8_t x) { return static_cast<T>(x); }
template <class T>
SPML_HD T element_as(uint8_t x) { return static_cast<T>(x); }
template <class T>
SPML_HD T element_as(int32_t x) { return static_cast<T>(x); }
template <class T>
SPML_HD T element_as(int64_t x) { return static_cast<T>(x); }

// Calls f(U{}) with the type in which `element` is stored.
template <class F>
SPML_HD void with_element(Element element, F&& f) {
  switch (element) {
    case Element::kFloat32:
      return f(float{});
    case Element::kFloat64:
      return f(double{});
    case Element::kFloat16:
      return f(Half{});
    case Element::kBFloat16:
      return f(BFloat16{});
    case Element::kInt8:
      return f(int8_t{});
    case Element::kUInt8:
      return f(uint8_t{});
    case Element::kInt32:
      return f(int32_t{});
    case Element::kInt64:
      return f(int64_t{});
  }
}

template <class T>
SPML_HD T element_at(const Matrix& m, int64_t row, int64_t column) {
  const int64_t data_row = m.index == nullptr ? row : m.index[row];
  const int64_t offset = data_row * m.row_stride + column * m.column_stride;
  T result = T(0);
  with_element(m.element, [&](auto u) { result = element_as<T>(static_cast<const decltype(u)*>(m.data)[offset]); });
  return result;
}

// Whether a label may stand in a matrix; NaN may not.
template <class T>
SPML_HD bool valid_label(T label, bool full) {
  return full ? (label >= T(0)) & (label <= T(1)) : (label == T(0)) | (label == T(1)) | (label == T(-1));
}

// The label of a column, counted from Labels' first column.
template <class T>
SPML_HD T label_at(const Labels& labels, int64_t row, int64_t column, int64_t first_column) {
  T label;
  if (labels.matrix.data != nullptr) {
    label = element_at<T>(labels.matrix, row, column);
  } else {
    label = labels.positives[row] == first_column + column ? T(1) : T(0);
  }
  if (labels.negatives != nullptr && labels.negatives[row] == first_column + column && label == T(0)) {
    label = T(-1);
  }
  return label;
}

template <class T>
SPML_HD Hyper<T> hyper_of(const LossParams& p) {
  return {p.hyper, p.threshold == nullptr ? T(0) : *static_cast<const T*>(p.threshold)};
}

// Gradient of the expected-positive penalty by p: the same for every entry of the batch.
template <class T>
SPML_HD T penalty_pull(const LossParams& p, int which) {
  return p.penalty_slope == 0 ? T(0) : static_cast<T>(p.penalty_slope * (p.k_hat[which] - p.expected_positives));
}

// What the penalty on expected positives adds to the reduced loss.
SPML_HD double penalty_of(const LossParams& p) {
  double sum = 0;
  for (int i = 0; p.penalty != 0 && i < (p.kind == LossKind::kRole ? 2 : 1); ++i) {
    const double excess = p.k_hat[i] - p.expected_positives;
    sum += p.penalty * excess * excess;
  }
  return sum;
}

// Unsigned integers in the order of the numbers they stand for; NaN of either sign lies outside the infinities.
template <class T>
SPML_HD typename Float<T>::UInt ordered_bits(T x) {
  using UInt = typename Float<T>::UInt;
  const UInt bits = bit_cast<UInt>(x);
  const UInt sign = UInt(1) << (sizeof(T) * 8 - 1);
  return (bits & sign) != 0 ? ~bits : bits | sign;
}

template <class T>
SPML_HD T from_ordered_bits(typename Float<T>::UInt key) {
  using UInt = typename Float<T>::UInt;
  const UInt sign = UInt(1) << (sizeof(T) * 8 - 1);
  return bit_cast<T>((key & sign) != 0 ? key ^ sign : ~key);
}

constexpr uint32_t kPseudoNegativeStream = 0xffffffff;

// floor(u n / 2^64) for a uniform 64-bit u: uniform on 0 ... n - 1 to within 2^-32.
SPML_HD int64_t uniform_below(int64_t n, uint32_t high, uint32_t low) {
  const uint64_t m = static_cast<uint64_t>(n);
  return static_cast<int64_t>((high * m + ((low * m) >> 32)) >> 32);
}

// An unobserved column of a row, every one with the same probability; -1 if there is none. Counter: (row, step).
SPML_HD int64_t draw_unobserved(const Labels& labels, int64_t row, int64_t columns, uint64_t seed, uint64_t step) {
  const auto is_unobserved = [&](int64_t c) { return label_at<float>(labels, row, c, 0) == 0.0f; };
  const uint64_t chain = static_cast<uint64_t>(row) ^ (step & 0xffffffff00000000u);
  const Philox random = philox(seed, chain, static_cast<uint32_t>(step), kPseudoNegativeStream);
  // One try hits most often where positives are rare; after it, an exact draw among those that there are.
  const int64_t candidate = uniform_below(columns, random.word[0], random.word[1]);
  if (columns > 0 && is_unobserved(candidate)) {
    return candidate;
  }
  int64_t unobserved = 0;
  for (int64_t c = 0; c < columns; ++c) {
    unobserved += is_unobserved(c);
  }
  int64_t rank = uniform_below(unobserved, random.word[2], random.word[3]);
  for (int64_t c = 0; c < columns; ++c) {
    if (is_unobserved(c) && rank-- == 0) {
      return c;
    }
  }
  return -1;
}

SPML_NAMESPACE_END
