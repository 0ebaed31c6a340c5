// log p_(I,J)(x) / q(x) of one proposal, up to a constant (S2M sampling, NeurIPS 2022, Algorithm 1).
//
//   l_i   = log gamma_i + a_i / T - logsumexp(a / T)
//   log r = m + log(1 - exp(M - m)),   m = min over I of l_i,   M = max over J of l_j
//   log w = log r + v / T_v  [ - log D_f(c|x) ]  [ + log p_z(z) - log p~_z(z) ]
//
// The pieces are per proposal; the CPU applies each to a tile of chains, a CUDA thread to its own proposal,
// both over classes in ascending order, so they round alike.
#pragma once

#include "core/dtype.h"

SPML_NAMESPACE_BEGIN

// One term of the sum below: exp(a_c / T - top), beta = 1 / T.
template <class T>
SPML_HD T softmax_term(T logit, T beta, T top) {
  return exp_nonpositive(fused(logit, beta, -top));
}

// log sum_c exp(a_c / T), given top = max_c a_c / T and sum = sum_c exp(a_c / T - top).
template <class T>
SPML_HD T finish_logsumexp(T top, T sum) {
  return top + log(sum);
}

// 0 for a finite logit, NaN otherwise. Added up over all that clf returned, it turns the weight of a proposal
// with any NaN or infinity into NaN, which the accept step refuses and reports.
template <class T>
SPML_HD T poison(T logit) {
  return logit - logit;
}

// log(e^m - e^M)^+ for m = min over I and M = max over J, both before the logsumexp is taken off.
template <class T>
SPML_HD T log_difference(T m, T M) {
  const bool inside = M < m;
  return inside ? m + log1mexp(inside ? M - m : T(-1)) : -infinity<T>();
}

template <class T>
SPML_HD T log_weight(T m, T M, T logsumexp, T validity, T other) {
  return log_difference(m, M) - logsumexp + (validity + other);
}

SPML_NAMESPACE_END
