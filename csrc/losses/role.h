// The two-tensor ROLE loss of one entry (Cole et al., CVPR 2021, equations 11 to 13): a classifier's logit z and the
// label estimator's logit, each fitted to the other's probability, which counts as a constant.
#pragma once

#include "losses/elementwise.h"

SPML_NAMESPACE_BEGIN

template <class T>
struct RoleEntry {
  T value, derivative, estimate_derivative;
};

// Half of what one side pays: its distance to the other's probability and to the observed label.
template <class T, class Loss, class X>
SPML_HD Entry<T> fit(const Loss& loss, const X& x, T target, T label) {
  const Iu<T> observed(Hyper<T>{});
  return T(0.5) * (target * loss.positive(x) + (T(1) - target) * loss.unobserved(x, T(0)) +
                   evaluate(observed, x, label, T(0)));
}

// The elementwise loss stands where the paper has cross entropy, which is An.
template <class T, class Loss, class X>
SPML_HD RoleEntry<T> evaluate_role(const Loss& loss, const X& classifier, const X& estimate, T label) {
  const Entry<T> a = fit(loss, classifier, estimate.p, label);
  const Entry<T> b = fit(loss, estimate, classifier.p, label);
  return {a.value + b.value, a.derivative, b.derivative};
}

SPML_NAMESPACE_END
