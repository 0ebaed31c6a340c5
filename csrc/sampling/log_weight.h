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

// One term of logsumexp(a / T) - top = log(sum_c exp(a_c / T - top)), for top = max_c a_c / T. Both arguments come
// in units of ln 2, beta2 = log2(e) / T and top2 = top * log2(e): what that rounds is small where the term counts.
template <class T>
SPML_HD T softmax_term(T logit, T beta2, T top2) {
  return exp2_nonpositive(fused(logit, beta2, -top2));
}

// l_c before the logsumexp is taken off.
template <class T>
SPML_HD T scaled_logit(T logit, T beta, T log_gamma) {
  return fused(logit, beta, log_gamma);
}

// log w from m = min over I and M = max over J of scaled logits. Both differences are taken before anything is
// rounded into their sum: M - m decides on the support, m - top stays exact for large logits.
//
// A logit of -inf is a legal "never": weight 0 for a class in I, nothing for one in J. NaN and +inf make the softmax
// sum NaN, and so does a row of -inf alone; the accept step refuses and reports NaN and +inf.
template <class T>
SPML_HD T log_weight(T m, T M, T top, T softmax_sum, T validity, T other) {
  const bool inside = M < m;
  const T log_difference = (m - top) + log1mexp(inside ? M - m : T(-1));
  return ((inside ? log_difference : -infinity<T>()) - log(softmax_sum)) + (validity + other);
}

SPML_NAMESPACE_END
