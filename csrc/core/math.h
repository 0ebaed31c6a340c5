// exp, log, sine and cosine that give the same bits on every CPU and GPU.
//
// The library functions of glibc, of Sleef and of CUDA differ in the last bit, and one bit is enough to turn
// an accept into a reject. These are written out in IEEE additions, multiplications, divisions, explicit fused
// multiply-adds and integer operations only; the build forbids the compilers to fuse on their own
// (-ffp-contract=off, -fmad=false). There is no branch, so loops over them vectorise.
//
// Polynomials: cephes (float exp, sine, cosine), musl/FreeBSD (log, double sine and cosine), Taylor (double exp).
// Polynomials of float exponentials and logarithms are summed in pairs (Estrin), not one term after another: kernels chain
// several, and what holds them up is how long each result takes, not how many instructions there are.
#pragma once

#include "core/macros.h"

SPML_NAMESPACE_BEGIN

template <class T>
struct Float;

template <>
struct Float<float> {
  using UInt = uint32_t;
  static constexpr int kMantissa = 23;
  static constexpr UInt kBias = 127;
  static constexpr float kShifter = 0x1.8p23f;     // adding it rounds to an integer held in the low bits
  static constexpr UInt kIntegerBits = 0x4b000000;  // bits of 2^23: or-ing in a small integer adds it
  static constexpr float kIntegerBase = 0x1p23f;
  static constexpr UInt kSqrtHalfBits = 0x3f3504f3;
  static constexpr float kMinNormal = 0x1p-126f;
  static constexpr float kMax = 0x1.fffffep127f;
  static constexpr float kExpUnderflow = -87.3f;
  static constexpr float kExp2Underflow = -125.0f;
  static constexpr float kLog2E = 1.44269504088896341f;
  static constexpr float kLn2Hi = 0.693359375f;
  static constexpr float kLn2Lo = -2.12194440e-4f;
};

template <>
struct Float<double> {
  using UInt = uint64_t;
  static constexpr int kMantissa = 52;
  static constexpr UInt kBias = 1023;
  static constexpr double kShifter = 0x1.8p52;
  static constexpr UInt kIntegerBits = 0x4330000000000000;
  static constexpr double kIntegerBase = 0x1p52;
  static constexpr UInt kSqrtHalfBits = 0x3fe6a09e667f3bcd;
  static constexpr double kMinNormal = 0x1p-1022;
  static constexpr double kMax = 0x1.fffffffffffffp1023;
  static constexpr double kExpUnderflow = -708.0;
  static constexpr double kExp2Underflow = -1021.0;
  static constexpr double kLog2E = 1.44269504088896338700;
  static constexpr double kLn2Hi = 6.93147180369123816490e-01;
  static constexpr double kLn2Lo = 1.90821492927058770002e-10;
};

template <class To, class From>
SPML_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <class T>
SPML_HD T infinity() {
  return static_cast<T>(__builtin_inff());
}

template <class T>
SPML_HD T minimum(T a, T b) {
  return a < b ? a : b;
}

template <class T>
SPML_HD T maximum(T a, T b) {
  return a > b ? a : b;
}

// a * b + c, rounded once. One instruction but on x86-64 machines older than FMA, where libm does it.
SPML_HD float fused(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return __builtin_fmaf(a, b, c);
#endif
}

SPML_HD double fused(double a, double b, double c) {
#ifdef __CUDA_ARCH__
  return __fma_rn(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

// (e^r - 1) for |r| <= ln(2)/2.
SPML_HD float expm1_reduced(float r) {
  const float r2 = r * r;
  const float a = fused(1.6666665459e-1f, r, 5.0000001201e-1f);
  const float b = fused(8.3334519073e-3f, r, 4.1665795894e-2f);
  const float c = fused(1.9875691500e-4f, r, 1.3981999507e-3f);
  return fused(r2, fused(fused(c, r2, b), r2, a), r);
}

SPML_HD double expm1_reduced(double r) {
  double q = 1.0 / 6227020800.0;
  q = fused(q, r, 1.0 / 479001600.0);
  q = fused(q, r, 1.0 / 39916800.0);
  q = fused(q, r, 1.0 / 3628800.0);
  q = fused(q, r, 1.0 / 362880.0);
  q = fused(q, r, 1.0 / 40320.0);
  q = fused(q, r, 1.0 / 5040.0);
  q = fused(q, r, 1.0 / 720.0);
  q = fused(q, r, 1.0 / 120.0);
  q = fused(q, r, 1.0 / 24.0);
  q = fused(q, r, 1.0 / 6.0);
  q = fused(q, r, 0.5);
  return fused(r * r, q, r);
}

// The exponentials of negative numbers here stop at about the smallest normal number instead of reaching zero:
// added to a sum that holds a 1, as all of them are, that is zero.

// e^x = scale * (1 + expm1) for x <= 0; NaN stays NaN.
template <class T>
struct ExpParts {
  T scale, expm1;
};

template <class T>
SPML_HD ExpParts<T> exp_parts(T x) {
  using F = Float<T>;
  x = x < F::kExpUnderflow ? F::kExpUnderflow : x;
  const T shifted = fused(x, F::kLog2E, F::kShifter);
  const T k = shifted - F::kShifter;
  const T r = fused(k, -F::kLn2Lo, fused(k, -F::kLn2Hi, x));
  const auto exponent = bit_cast<typename F::UInt>(shifted) + F::kBias;
  return {bit_cast<T>(exponent << F::kMantissa), expm1_reduced(r)};
}

// 2^f for |f| <= 1/2.
SPML_HD float exp2_reduced(float f) {
  const float f2 = f * f;
  const float a = fused(6.931472028550421e-1f, f, 1.0f);
  const float b = fused(5.550332471162809e-2f, f, 2.402264791363012e-1f);
  const float c = fused(1.339887440266574e-3f, f, 9.618437357674640e-3f);
  return fused(fused(fused(1.535336188319500e-4f, f2, c), f2, b), f2, a);
}

SPML_HD double exp2_reduced(double f) { return 1.0 + expm1_reduced(f * 0.693147180559945309417); }

// 2^t for t <= 0, at least the smallest normal number; NaN stays NaN. The cheapest exponential there is: k is
// added to the exponent of 2^(t - k) as an integer.
template <class T>
SPML_HD T exp2_nonpositive(T t) {
  using F = Float<T>;
  t = t < F::kExp2Underflow ? F::kExp2Underflow : t;
  const T shifted = t + F::kShifter;
  const T fraction = exp2_reduced(t - (shifted - F::kShifter));
  using UInt = typename F::UInt;
  return bit_cast<T>(bit_cast<UInt>(fraction) + (bit_cast<UInt>(shifted) << F::kMantissa));
}

// e^r for |r| <= ln(2)/2, to within 2e-9 and rounding.
SPML_HD float exp_reduced(float r) {
  const float r2 = r * r;
  const float low = fused(fused(1.666652069e-01f, r, 4.999999345e-01f), r2, 1.0f + r);
  const float high = fused(1.381461315e-03f, r2, fused(8.368709826e-03f, r, 4.166838736e-02f));
  return fused(high, r2 * r2, low);
}

SPML_HD double exp_reduced(double r) { return 1.0 + expm1_reduced(r); }

// e^x for x <= 0, at least about the smallest normal number; NaN stays NaN.
template <class T>
SPML_HD T exp_nonpositive(T x) {
  using F = Float<T>;
  using UInt = typename F::UInt;
  x = x < F::kExpUnderflow ? F::kExpUnderflow : x;
  const T shifted = fused(x, F::kLog2E, F::kShifter);
  const T k = shifted - F::kShifter;
  const T r = fused(k, -F::kLn2Lo, fused(k, -F::kLn2Hi, x));
  return bit_cast<T>(bit_cast<UInt>(exp_reduced(r)) + (bit_cast<UInt>(shifted) << F::kMantissa));
}

// All bits set or none: conditionals that a compiler cannot turn into branches, and that cost one instruction.
template <class T>
SPML_HD typename Float<T>::UInt mask_if(bool condition) {
  using UInt = typename Float<T>::UInt;
  return UInt(0) - static_cast<UInt>(condition);
}

template <class T>
SPML_HD typename Float<T>::UInt mask_if_negative(T x) {
  using UInt = typename Float<T>::UInt;
  return UInt(0) - (bit_cast<UInt>(x) >> (sizeof(T) * 8 - 1));
}

template <class T>
SPML_HD T masked(typename Float<T>::UInt mask, T x) {
  return bit_cast<T>(bit_cast<typename Float<T>::UInt>(x) & mask);
}

template <class T>
SPML_HD T select(typename Float<T>::UInt mask, T a, T b) {
  using UInt = typename Float<T>::UInt;
  return bit_cast<T>((bit_cast<UInt>(a) & mask) | (bit_cast<UInt>(b) & ~mask));
}

// -|x|
template <class T>
SPML_HD T negative_magnitude(T x) {
  using UInt = typename Float<T>::UInt;
  return bit_cast<T>(bit_cast<UInt>(x) | (UInt(1) << (sizeof(T) * 8 - 1)));
}

// 1 - e^x for x <= 0, exact to a few units in the last place also where x is small.
template <class T>
SPML_HD T one_minus_exp(T x) {
  const ExpParts<T> e = exp_parts(x);
  return fused(-e.scale, e.expm1, T(1) - e.scale);
}

// The atanh series of log(1 + f) with s = f / (2 + f).
SPML_HD float log_series(float s2) {
  float q = 0.24279078841f;
  q = fused(q, s2, 0.28498786688f);
  q = fused(q, s2, 0.40000972152f);
  q = fused(q, s2, 0.66666662693f);
  return q * s2;
}

SPML_HD double log_series(double s2) {
  double q = 1.479819860511658591e-01;
  q = fused(q, s2, 1.531383769920937332e-01);
  q = fused(q, s2, 1.818357216161805012e-01);
  q = fused(q, s2, 2.222219843214978396e-01);
  q = fused(q, s2, 2.857142874366239149e-01);
  q = fused(q, s2, 3.999999999940941908e-01);
  q = fused(q, s2, 6.666666666666735130e-01);
  return q * s2;
}

// Natural logarithm; zero and subnormal numbers give -inf, NaN stays NaN.
template <class T>
SPML_HD T log(T x) {
  using F = Float<T>;
  using UInt = typename F::UInt;
  const UInt bits = bit_cast<UInt>(x);
  const UInt biased = (bits - F::kSqrtHalfBits + (F::kBias << F::kMantissa)) >> F::kMantissa;
  const T k = bit_cast<T>(biased | F::kIntegerBits) - (F::kIntegerBase + T(F::kBias));
  const T mantissa = bit_cast<T>(bits - ((biased - F::kBias) << F::kMantissa));
  const T f = mantissa - T(1);
  const T s = f / (T(2) + f);
  const T half_f2 = T(0.5) * f * f;
  T result = fused(s, half_f2 + log_series(s * s), k * F::kLn2Lo);
  result = fused(k, F::kLn2Hi, f - (half_f2 - result));
  result = x < F::kMinNormal ? -infinity<T>() : result;
  result = x > F::kMax ? infinity<T>() : result;
  return x == x ? result : x;
}

// log(1 + e) for 0 <= e <= 1, exact to a few units in the last place also where e is small. In float a polynomial
// fitted to the least largest relative error, 3e-8, saves the division.
SPML_HD float log1p_unit(float e) {
  const float e2 = e * e;
  const float e4 = e2 * e2;
  const float a = fused(3.332132261e-01f, e, -4.999964796e-01f);
  const float b = fused(1.915365454e-01f, e, -2.485716357e-01f);
  const float c = fused(7.920452530e-02f, e, -1.375380148e-01f);
  const float d = fused(5.364822746e-03f, e, -3.006578596e-02f);
  const float q = fused(fused(d, e2, c), e4, fused(b, e2, a));
  return fused(e2, q, e);
}

SPML_HD double log1p_unit(double e) {
  using F = Float<double>;
  const bool halve = e > 0.414213562373095049;
  const double f = halve ? 0.5 * (e - 1.0) : e;
  const double k = halve ? 1.0 : 0.0;
  const double s = f / (2.0 + f);
  const double half_f2 = 0.5 * f * f;
  const double low = fused(s, half_f2 + log_series(s * s), k * F::kLn2Lo);
  return fused(k, F::kLn2Hi, f - (half_f2 - low));
}

// log(1 - e^x) for x <= 0: -inf at 0, 0 at -inf.
template <class T>
SPML_HD T log1mexp(T x) {
  return log(one_minus_exp(x));
}

SPML_HD float sine_reduced(float a, float z) {
  float q = -1.9515295891e-4f;
  q = fused(q, z, 8.3321608736e-3f);
  q = fused(q, z, -1.6666654611e-1f);
  return fused(a * z, q, a);
}

SPML_HD float cosine_reduced(float z) {
  float q = 2.443315711809948e-5f;
  q = fused(q, z, -1.388731625493765e-3f);
  q = fused(q, z, 4.166664568298827e-2f);
  return fused(z * z, q, fused(-0.5f, z, 1.0f));
}

SPML_HD double sine_reduced(double a, double z) {
  double q = 1.58969099521155010221e-10;
  q = fused(q, z, -2.50507602534068634195e-08);
  q = fused(q, z, 2.75573137070700676789e-06);
  q = fused(q, z, -1.98412698298579493134e-04);
  q = fused(q, z, 8.33333333332248946124e-03);
  q = fused(q, z, -1.66666666666666324348e-01);
  return fused(a * z, q, a);
}

SPML_HD double cosine_reduced(double z) {
  double q = -1.13596475577881948265e-11;
  q = fused(q, z, 2.08757232129817482790e-09);
  q = fused(q, z, -2.75573143513906633035e-07);
  q = fused(q, z, 2.48015872894767294178e-05);
  q = fused(q, z, -1.38888888888741095749e-03);
  q = fused(q, z, 4.16666666666666019037e-02);
  return fused(z * z, q, fused(-0.5, z, 1.0));
}

// Sine and cosine of 2*pi*turns, 0 <= turns <= 1.
template <class T>
struct SinCos {
  T sine, cosine;
};

template <class T>
SPML_HD SinCos<T> sincos_turns(T turns) {
  using F = Float<T>;
  const T shifted = fused(turns, T(4), F::kShifter);
  const T quarter = shifted - F::kShifter;
  const auto quadrant = bit_cast<typename F::UInt>(shifted) & 3;
  const T a = fused(quarter, T(-0.25), turns) * T(6.28318530717958647693);
  const T z = a * a;
  const T s = sine_reduced(a, z);
  const T c = cosine_reduced(z);
  const bool swap = (quadrant & 1) != 0;
  const T sine = swap ? c : s;
  const T cosine = swap ? s : c;
  return {quadrant >= 2 ? -sine : sine, quadrant == 1 || quadrant == 2 ? -cosine : cosine};
}

SPML_HD float square_root(float x) { return __builtin_sqrtf(x); }
SPML_HD double square_root(double x) { return __builtin_sqrt(x); }

SPML_NAMESPACE_END
