// Every elementwise loss: its name in Python, its functor in losses/elementwise.h.
//
// `eps`: 1 where the authors add eps inside the logarithm, which costs a second instantiation.
#pragma once

#define SPML_ELEMENTWISE_LOSSES(X)  \
  /* name         functor      eps */ \
  X(bce,          Bce,         1)   \
  X(bce_ls,       BceLs,       1)   \
  X(an,           An,          1)   \
  X(an_ls,        AnLs,        1)   \
  X(iu,           Iu,          1)   \
  X(iun,          Iun,         1)   \
  X(wan,          Wan,         1)   \
  X(em,           Em,          1)   \
  X(em_apl,       EmApl,       1)   \
  X(focal_margin, FocalMargin, 0)   \
  X(hill,         Hill,        0)   \
  X(splc,         Splc,        0)   \
  X(asl,          Asl,         0)   \
  X(gr,           Gr,          1)   \
  X(gr_standard,  GrStandard,  1)   \
  X(gpr,          Gpr,         1)   \
  X(large_loss,   LargeLoss,   0)

namespace spml {

enum LossId : int {
#define SPML_LOSS_ID(name, Functor, eps) kLoss_##name,
  SPML_ELEMENTWISE_LOSSES(SPML_LOSS_ID)
#undef SPML_LOSS_ID
      kLossCount
};

}  // namespace spml
