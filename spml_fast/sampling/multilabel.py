"""A multi-label classifier in the place of D_r."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid


class MultiLabelDensityRatio(nn.Module):
    """What :class:`~spml_fast.S2MSampler` takes as ``clf``, from a multi-label and a validity classifier.

    A multi-label classifier estimates p(y_i = 1 | x) = sigmoid(z_i), and pi_i p(x | y_i = 1) is that times p(x):
    the sampler's target (Cho et al., NeurIPS 2022) is

        p_(I,J)(x) ~ p_G(x) exp(v(x)) (min_I sigmoid(z_i) - max_J sigmoid(z_j))+,

    with no class ratio to guess: leave ``gamma`` and both temperatures of the sampler at 1. It is as good as the
    probabilities: a classifier trained with AN takes what was not observed for absent and says little of joint
    classes; see to calibration.

    The sampler normalises class logits over the classes, which multi-label probabilities are not; the logarithm of
    their sum, which that takes off, is added to the validity logit.

    Args:
        classifier: x -> multi-label logits (B, L), for example the model of :func:`spml_fast.train_classifier`.
        validity: x -> logit (B,) or (B, 1) of real against generated, log p_data(x) / p_G(x).
    """

    def __init__(self, classifier: nn.Module, validity: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.classifier, self.validity = classifier, validity

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(class logits (B, L), validity logit (B,))."""
        log_p = logsigmoid(self.classifier(x))
        return log_p, self.validity(x).flatten() + torch.logsumexp(log_p, dim=1)
