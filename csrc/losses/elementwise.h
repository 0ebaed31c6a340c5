// What each elementwise loss is: the value and the derivative by the logit of one entry, for an observed positive,
// an unobserved label and an observed negative. Names and formulas are those of spml_fast/losses.
//
// A new loss is a class here, a row in losses/table.h, a reference function and a Python function with its module;
// loops, label forms, dtypes, reductions, weights, threads and devices are written once, elsewhere.
#pragma once

#include "core/math.h"
#include "losses/params.h"

SPML_NAMESPACE_BEGIN

template <class T>
struct Entry {
  T value, derivative;
};

template <class T>
SPML_HD Entry<T> operator+(Entry<T> a, Entry<T> b) {
  return {a.value + b.value, a.derivative + b.derivative};
}

template <class T>
SPML_HD Entry<T> operator*(T factor, Entry<T> a) {
  return {factor * a.value, factor * a.derivative};
}

template <class T>
SPML_HD Entry<T> choose(bool condition, Entry<T> a, Entry<T> b) {
  return {condition ? a.value : b.value, condition ? a.derivative : b.derivative};
}

// What follows from a logit z alone: p = sigmoid(z), n = 1 - p and their logarithms.
template <class T>
struct Sigmoid {
  T p, n, neg_log_p, neg_log_n;

  SPML_HD static Sigmoid of(T z) {
    const T lower = negative_magnitude(z);
    const T e = exp_nonpositive(lower);
    const T larger = T(1) / (T(1) + e);
    const T smaller = e * larger;
    const T tail = log1p_unit(e);
    const auto negative = mask_if_negative(z);
    return {select(negative, smaller, larger), select(negative, larger, smaller), tail - masked(negative, lower),
            tail - masked(~negative, lower)};
  }
};

// Whether eps is zero, positive, or known at run time only.
enum class Eps { kZero, kPositive, kAny };

// A logit as losses see it. Unused fields cost nothing: all is inlined.
template <class T, Eps kEps>
struct Logit : Sigmoid<T> {
  using Sigmoid<T>::p;
  using Sigmoid<T>::n;
  T z, eps;
  Entry<T> log_loss_positive;  // -log p, or -log(p + eps) as authors write it
  Entry<T> log_loss_negative;  // -log(1 - p), or -log(1 - p + eps)

  SPML_HD Logit(T logit, const Sigmoid<T>& sigmoid, T added) : Sigmoid<T>(sigmoid), z(logit), eps(added) {
    if (kEps == Eps::kPositive || (kEps == Eps::kAny && eps != T(0))) {
      log_loss_positive = {-log(p + eps), -p * n / (p + eps)};
      log_loss_negative = {-log(n + eps), p * n / (n + eps)};
    } else {
      log_loss_positive = {this->neg_log_p, -n};
      log_loss_negative = {this->neg_log_n, p};
    }
  }

  SPML_HD Logit shifted(T by) const { return Logit(z + by, Sigmoid<T>::of(z + by), eps); }
  SPML_HD T slope() const { return p * n; }  // dp/dz
};

// An exponent q >= 0, the same for all entries.
template <class T>
struct Exponent {
  using UInt = typename Float<T>::UInt;
  T q, inverse;
  UInt zero, one, two, four;  // masks: a branch on q would keep loops from vectorising

  SPML_HD explicit Exponent(double given)
      : q(static_cast<T>(given)),
        inverse(given == 0 ? T(0) : static_cast<T>(1 / given)),
        zero(mask_if<T>(given == 0)),
        one(mask_if<T>(given == 1)),
        two(mask_if<T>(given == 2)),
        four(mask_if<T>(given == 4)) {}

  // x^q for 0 <= x <= 1 and neg_log = -log x; the usual whole numbers by multiplication.
  SPML_HD T power(T x, T neg_log) const {
    const T x2 = x * x;
    T result = exp_nonpositive(-q * neg_log);
    result = select(zero, T(1), result);
    result = select(one, x, result);
    result = select(two, x2, result);
    return select(four, x2 * x2, result);
  }

  // The loss (1 - x^q) / q of generalised cross entropy (Zhang and Sabuncu, 2018), whose limit at q = 0 is -log x, or
  // what authors write for it, with x^q, which is its derivative by -log x.
  struct BoxCox {
    T value, power;
  };
  SPML_HD BoxCox box_cox(T x, T one_minus_x, T neg_log, T limit) const {
    T value = one_minus_exp(-q * neg_log) * inverse;
    T rest = fused(-q, value, T(1));
    value = select(zero, limit, value);
    value = select(one, one_minus_x, value);
    rest = select(one, x, rest);
    return {value, select(zero, T(1), rest)};
  }
};

template <class T>
struct Hyper {
  const double* value;  // in the order of the Python function's arguments
  T threshold;          // what a loss over the whole batch computed first
};

// --- losses -------------------------------------------------------------------------------------------------------
// kFullLabels: labels are full, 0 is a negative and fractions are soft targets: s positive + (1 - s) unobserved.
// kAux: reads a second matrix beside the labels.

// Assume negative; also binary cross entropy.
template <class T>
struct An {
  static constexpr bool kFullLabels = false;
  static constexpr bool kAux = false;
  SPML_HD explicit An(Hyper<T>) {}
  template <class X>
  SPML_HD Entry<T> positive(const X& x) const {
    return x.log_loss_positive;
  }
  template <class X>
  SPML_HD Entry<T> unobserved(const X& x, T) const {
    return x.log_loss_negative;
  }
  template <class X>
  SPML_HD Entry<T> negative(const X& x) const {
    return x.log_loss_negative;
  }
};

template <class T>
struct Bce : An<T> {
  static constexpr bool kFullLabels = true;
  SPML_HD explicit Bce(Hyper<T> h) : An<T>(h) {}
};

// Assume negative, with label smoothing.
template <class T>
struct AnLs : An<T> {
  T smoothing;
  SPML_HD explicit AnLs(Hyper<T> h) : An<T>(h), smoothing(static_cast<T>(h.value[0])) {}
  template <class X>
  SPML_HD Entry<T> positive(const X& x) const {
    return (T(1) - smoothing) * x.log_loss_positive + smoothing * x.log_loss_negative;
  }
  template <class X>
  SPML_HD Entry<T> unobserved(const X& x, T) const {
    return (T(1) - smoothing) * x.log_loss_negative + smoothing * x.log_loss_positive;
  }
  template <class X>
  SPML_HD Entry<T> negative(const X& x) const {
    return unobserved(x, T(0));
  }
};

template <class T>
struct BceLs : AnLs<T> {
  static constexpr bool kFullLabels = true;
  SPML_HD explicit BceLs(Hyper<T> h) : AnLs<T>(h) {}
};

// Ignore unobserved.
template <class T>
struct Iu : An<T> {
  SPML_HD explicit Iu(Hyper<T> h) : An<T>(h) {}
  template <class X>
  SPML_HD Entry<T> unobserved(const X&, T) const {
    return {T(0), T(0)};
  }
};

// Ignore unobserved negatives: aux holds the true labels.
template <class T>
struct Iun : An<T> {
  static constexpr bool kAux = true;
  SPML_HD explicit Iun(Hyper<T> h) : An<T>(h) {}
  template <class X>
  SPML_HD Entry<T> unobserved(const X& x, T truth) const {
    return choose(truth == T(0), x.log_loss_negative, Entry<T>{T(0), T(0)});
  }
};

// Weak assume negative.
template <class T>
struct Wan : An<T> {
  T weight;
  SPML_HD explicit Wan(Hyper<T> h) : An<T>(h), weight(static_cast<T>(h.value[0])) {}
  template <class X>
  SPML_HD Entry<T> unobserved(const X& x, T) const {
    return weight * x.log_loss_negative;
  }
};

// Entropy maximisation. The gradient of p L+ + (1 - p) L- flows through p as well.
template <class T>
struct Em : An<T> {
  T alpha;
  SPML_HD explicit Em(Hyper<T> h) : An<T>(h), alpha(static_cast<T>(h.value[0])) {}
  template <class X>
  SPML_HD Entry<T> unobserved(const X& x, T) const {
    const Entry<T> a = x.log_loss_positive;
    const Entry<T> b = x.log_loss_negative;
    const T entropy = x.p * a.value + x.n * b.value;
    const T direct = x.eps == T(0) ? T(0) : x.p * a.derivative + x.n * b.derivative;  // cancels without eps
    return {-alpha * entropy, -alpha * (x.slope() * (a.value - b.value) + direct)};
  }
};

// Entropy maximisation with asymmetric pseudo-labels: aux holds a soft pseudo-label, or a negative number for none.
template <class T>
struct EmApl : Em<T> {
  static constexpr bool kAux = true;
  T beta;
  SPML_HD explicit EmApl(Hyper<T> h) : Em<T>(h), beta(static_cast<T>(h.value[1])) {}
  template <class X>
  SPML_HD Entry<T> unobserved(const X& x, T pseudo) const {
    const Entry<T> fit =
        beta * (pseudo * x.log_loss_positive + (T(1) - pseudo) * x.log_loss_negative);
    return choose(pseudo >= T(0), fit, Em<T>::unobserved(x, T(0)));
  }
};

// Focal loss with a margin on positives: (1 - p_m)^gamma (-log p_m), p^gamma (-log(1 - p)).
template <class T>
struct FocalMargin : An<T> {
  T margin;
  Exponent<T> gamma;
  SPML_HD explicit FocalMargin(Hyper<T> h)
      : An<T>(h), margin(static_cast<T>(h.value[0])), gamma(h.value[1]) {}
  // (1 - p)^gamma (-log p)
  template <class X>
  SPML_HD Entry<T> focal_positive(const X& x) const {
    const T factor = gamma.power(x.n, x.neg_log_n);
    return {factor * x.neg_log_p, -factor * (x.n + gamma.q * x.p * x.neg_log_p)};
  }
  template <class X>
  SPML_HD Entry<T> positive(const X& x) const {
    return focal_positive(x.shifted(-margin));
  }
  template <class X>
  SPML_HD Entry<T> unobserved(const X& x, T) const {
    const T factor = gamma.power(x.p, x.neg_log_p);
    return {factor * x.neg_log_n, factor * (x.p + gamma.q * x.n * x.neg_log_n)};
  }
  template <class X>
  SPML_HD Entry<T> negative(const X& x) const {
    return unobserved(x, T(0));
  }
};

// Positives as focal margin; (lambda - p) p^2 otherwise.
template <class T>
struct Hill : FocalMargin<T> {
  T lambda;
  SPML_HD explicit Hill(Hyper<T> h) : FocalMargin<T>(h), lambda(static_cast<T>(h.value[2])) {}
  template <class X>
  SPML_HD Entry<T> unobserved(const X& x, T) const {
    const T p2 = x.p * x.p;
    return {(lambda - x.p) * p2, p2 * x.n * (T(2) * lambda - T(3) * x.p)};
  }
  template <class X>
  SPML_HD Entry<T> negative(const X& x) const {
    return unobserved(x, T(0));
  }
};

// Focal margin that takes an unobserved label with p > tau for a positive. tau > 1 switches that off.
template <class T>
struct Splc : FocalMargin<T> {
  T tau;
  SPML_HD explicit Splc(Hyper<T> h) : FocalMargin<T>(h), tau(static_cast<T>(h.value[2])) {}
  template <class X>
  SPML_HD Entry<T> unobserved(const X& x, T) const {
    return choose(x.p > tau, this->focal_positive(x), FocalMargin<T>::unobserved(x, T(0)));
  }
};

// Asymmetric loss: (1 - p)^gamma+ (-log p), p_m^gamma- (-log(1 - p_m)) with p_m = max(p - m, 0).
template <class T>
struct Asl : An<T> {
  Exponent<T> gamma_positive, gamma_negative;
  T margin;
  SPML_HD explicit Asl(Hyper<T> h)
      : An<T>(h),
        gamma_positive(h.value[0]),
        gamma_negative(h.value[1]),
        margin(static_cast<T>(h.value[2])) {}
  template <class X>
  SPML_HD Entry<T> positive(const X& x) const {
    const T factor = gamma_positive.power(x.n, x.neg_log_n);
    return {factor * x.neg_log_p, -factor * (x.n + gamma_positive.q * x.p * x.neg_log_p)};
  }
  template <class X>
  SPML_HD Entry<T> unobserved(const X& x, T) const {
    const T shifted = x.p - margin;
    const bool inside = shifted > T(0);
    const T p = inside ? shifted : T(1);
    // With no margin the tail of -log(1 - p) would be lost in 1 - p.
    const T neg_log = margin == T(0) ? x.neg_log_n : -log(minimum(x.n + margin, T(1)));
    const T factor = gamma_negative.power(p, -log(p));
    const T kept = margin == T(0) ? x.p : x.slope() / (x.n + margin);
    const T derivative = factor * (gamma_negative.q * neg_log * x.slope() / p + kept);
    const T outside = T(0) * x.p;  // zero; NaN stays NaN
    return choose(inside, Entry<T>{factor * neg_log, derivative}, Entry<T>{outside, outside});
  }
  template <class X>
  SPML_HD Entry<T> negative(const X& x) const {
    return unobserved(x, T(0));
  }
};

// Generalized robust loss: L1(p); v (k L2(p) + (1 - k) L3(p)), k and v without gradient; L3(p). L1(p) and L2(p) are
// (1 - p^q) / q, L3(p) is that of 1 - p. kStandard: q1 = 0, q2 none of 0 and 1, q3 = 1 as in the paper: L1 is -log p,
// L3 is p, and one power of three is left.
template <class T, bool kStandard>
struct GrOf : An<T> {
  T w, b, mu, width;  // w and b for powers of two; v = 2^-((p - mu) width)^2
  Exponent<T> q1, q2, q3;
  static constexpr double kLog2E = 1.44269504088896340736;
  static constexpr double kRootHalfLog2E = 0.84932180028801904272;
  SPML_HD explicit GrOf(Hyper<T> h)
      : An<T>(h),
        w(static_cast<T>(h.value[0] * kLog2E)),
        b(static_cast<T>(h.value[1] * kLog2E)),
        mu(static_cast<T>(h.value[2])),
        width(static_cast<T>(kRootHalfLog2E / h.value[3])),
        q1(h.value[4]),
        q2(h.value[5]),
        q3(h.value[6]) {}
  template <class X>
  SPML_HD static Entry<T> robust_positive(const X& x, const Exponent<T>& q) {
    const auto l = q.box_cox(x.p, x.n, x.neg_log_p, x.log_loss_positive.value);
    return {l.value, l.power * select(q.zero, x.log_loss_positive.derivative, -x.n)};
  }
  template <class X>
  SPML_HD static Entry<T> robust_negative(const X& x, const Exponent<T>& q) {
    const auto l = q.box_cox(x.n, x.p, x.neg_log_n, x.log_loss_negative.value);
    return {l.value, l.power * select(q.zero, x.log_loss_negative.derivative, x.p)};
  }
  template <class X>
  SPML_HD T weight(const X& x) const {
    const T distance = (x.p - mu) * width;
    return exp2_nonpositive(-distance * distance);
  }
  template <class X>
  SPML_HD Entry<T> positive(const X& x) const {
    return kStandard ? x.log_loss_positive : robust_positive(x, q1);
  }
  template <class X>
  SPML_HD Entry<T> negative(const X& x) const {
    return kStandard ? Entry<T>{x.p, x.slope()} : robust_negative(x, q3);
  }
  template <class X>
  SPML_HD Entry<T> unobserved(const X& x, T) const {
    const T u = fused(w, x.p, b);
    const T e = exp2_nonpositive(negative_magnitude(u));
    const T larger = weight(x) / (T(1) + e);
    const T smaller = e * larger;
    const auto below = mask_if_negative(u);
    const T if_positive = select(below, smaller, larger);  // v k
    const T if_negative = select(below, larger, smaller);  // v (1 - k)
    if (kStandard) {
      const T lost = one_minus_exp(-q2.q * x.neg_log_p);  // 1 - p^q2
      const T a = if_positive * q2.inverse;
      return {fused(a, lost, if_negative * x.p),
              fused(-if_positive, (T(1) - lost) * x.n, if_negative * x.slope())};
    }
    return if_positive * robust_positive(x, q2) + if_negative * negative(x);
  }
};

template <class T>
using Gr = GrOf<T, false>;
template <class T>
using GrStandard = GrOf<T, true>;

// GR with pseudo-labels from outside, aux in {-1, 0, 1}: a positive one is fitted as the soft label rho with weight
// 1 - v, clamped; a negative one as a negative with weight v.
template <class T>
struct Gpr : Gr<T> {
  static constexpr bool kAux = true;
  T rho, lowest, highest;
  SPML_HD explicit Gpr(Hyper<T> h)
      : Gr<T>(h),
        rho(static_cast<T>(h.value[7])),
        lowest(static_cast<T>(h.value[8])),
        highest(static_cast<T>(h.value[9])) {}
  template <class X>
  SPML_HD Entry<T> unobserved(const X& x, T pseudo) const {
    const T v = this->weight(x);
    const Entry<T> fit = rho * x.log_loss_positive + (T(1) - rho) * x.log_loss_negative;
    const Entry<T> positive = minimum(maximum(T(1) - v, lowest), highest) * fit;
    const Entry<T> negative = v * x.log_loss_negative;
    return choose(pseudo > T(0), positive, choose(pseudo < T(0), negative, Gr<T>::unobserved(x, T(0))));
  }
};

// Large loss: from the threshold on, an unobserved label is dropped, or flipped to positive; aux marks labels that
// were flipped for good.
template <class T>
struct LargeLoss : An<T> {
  static constexpr bool kAux = true;
  T threshold;
  bool flip;
  SPML_HD explicit LargeLoss(Hyper<T> h) : An<T>(h), threshold(h.threshold), flip(h.value[0] != 0) {}
  template <class X>
  SPML_HD Entry<T> unobserved(const X& x, T flipped) const {
    const Entry<T> zero = {T(0), T(0)};
    const Entry<T> changed = choose(flip, x.log_loss_positive, zero);
    const Entry<T> kept = choose(x.z >= threshold, changed, x.log_loss_negative);
    return choose(flipped > T(0), x.log_loss_positive, kept);
  }
};

// --- one entry ----------------------------------------------------------------------------------------------------

// By its label: 1, 0 or -1, or anything between 0 and 1 where labels are full.
template <class T, class Loss, class X>
SPML_HD Entry<T> evaluate(const Loss& loss, const X& x, T label, T aux) {
  const Entry<T> positive = loss.positive(x);
  const Entry<T> unobserved = loss.unobserved(x, aux);
  if (Loss::kFullLabels) {
    return label * positive + (T(1) - label) * unobserved;
  }
  return choose(label > T(0), positive, choose(label < T(0), loss.negative(x), unobserved));
}

SPML_NAMESPACE_END
