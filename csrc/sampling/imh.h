// One step of an independent Metropolis-Hastings chain, and what it remembers.
#pragma once

#include "core/dtype.h"

SPML_NAMESPACE_BEGIN

// The proposals of IMH do not depend on the state, so a chain is: the weight of its state, the step that
// proposed it, and running sums over everything that it was offered.
template <class T>
struct Chain {
  T log_weight;      // of the state; -inf: no proposal yet had any
  T max_log_weight;  // over all proposals
  T sum;             // sum of w / exp(max_log_weight)
  T sum_of_squares;  // sum of (w / exp(max_log_weight))^2
  int32_t winner;    // step of the last accepted proposal; -1: none
  int32_t accepted;  // number of accepted proposals, the first included
  int32_t supported; // number of proposals with positive weight
};

constexpr int kChainWeights = 4;  // floating-point fields of Chain, in this order in memory
constexpr int kChainCounts = 3;   // integer fields

template <class T>
SPML_HD bool valid_log_weight(T log_weight) {
  return log_weight < infinity<T>();  // false for NaN too
}

// Accept when log u <= log w' - log w. A state of weight 0 (-inf) accepts any proposal of positive weight, and
// -inf against -inf is NaN, so it compares false: both rules come out of IEEE arithmetic without a branch.
template <class T>
SPML_HD void imh_step(Chain<T>& chain, T proposal, T log_uniform, int32_t step) {
  const bool supported = valid_log_weight(proposal) & (proposal > -infinity<T>());
  const T offered = supported ? proposal : -infinity<T>();
  const bool accept = log_uniform <= offered - chain.log_weight;
  chain.log_weight = accept ? offered : chain.log_weight;
  chain.winner = accept ? step : chain.winner;
  chain.accepted += accept ? 1 : 0;
  chain.supported += supported ? 1 : 0;

  // The sums stay relative to the largest weight so far; one exponential serves a new maximum and an old one.
  const T above = supported ? offered - chain.max_log_weight : -infinity<T>();
  const bool record = above > T(0);
  const T ratio = exp2_nonpositive((record ? -above : above) * Float<T>::kLog2E);
  const T square = ratio * ratio;
  chain.sum = record ? fused(chain.sum, ratio, T(1)) : chain.sum + ratio;
  chain.sum_of_squares = record ? fused(chain.sum_of_squares, square, T(1)) : chain.sum_of_squares + square;
  chain.max_log_weight = record ? offered : chain.max_log_weight;
}

SPML_NAMESPACE_END
