"""A multi-label classifier as D_r: the weights by hand, and draws against the exact joint class."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from toys import GENERATED, LABELS, POPULATION, DiscreteGenerator, true_joint_class

import spml_fast as sf
from spml_fast import reference

LEVEL = 1e-3
TARGETS = [((0,), ()), ((0, 2), (1,)), ((0, 1, 2), ()), ((1,), (0, 2))]


class Row(nn.Module):
    """The row of a table that x (B, 1) names."""

    def __init__(self, table):
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, x):
        return self.table[x[:, 0].long()]


@pytest.mark.parametrize(("I", "J"), TARGETS)
def test_weights_are_those_of_the_probabilities(I, J):
    z, v = torch.randn(500, 3, dtype=torch.float64), torch.randn(500, 1, dtype=torch.float64)
    class_logits, validity = sf.MultiLabelDensityRatio(Row(z), Row(v))(torch.arange(500.0)[:, None])
    assert validity.shape == (500,)
    p = z.sigmoid()
    weight = p[:, I].amin(1) - (p[:, J].amax(1) if J else 0)
    expected = torch.where(weight > 0, weight.clamp(min=0).log() + v[:, 0], -math.inf)
    found = reference.s2m_log_weight(class_logits, validity, I, J)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("I", "J"), TARGETS)
def test_draws_are_of_the_joint_class(I, J):
    """States either have an attribute or not; a classifier that knows leaves p_data within the joint class."""
    classifier = Row(torch.where(LABELS.bool(), 40.0, -40.0).double())
    validity = Row((POPULATION / GENERATED).log())
    sampler = sf.S2MSampler(DiscreteGenerator(), sf.MultiLabelDensityRatio(classifier, validity))
    result = sampler.sample(I, J, 50_000, 200, seed=3)
    counts = np.bincount(result.samples[:, 0].long().numpy(), minlength=len(LABELS))
    expected = true_joint_class(I, J)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert stats.chisquare(counts[possible], expected[possible] * counts.sum()).pvalue > LEVEL
