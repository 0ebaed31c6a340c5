"""Drawn samples against the exact distribution of the joint class: fixed seeds, level 1e-3."""

import numpy as np
import pytest
import torch
from scipy import stats
from toys import (
    DiscreteClassifier,
    DiscreteGenerator,
    GaussianClassifier,
    GaussianGenerator,
    class_first_gamma,
    gaussian_marginal_cdfs,
    true_joint_class,
)

from spml_fast import MinMax, Plan, S2MSampler

LEVEL = 1e-3
N_DRAWS = 50_000
N_STEPS = 150  # the bounds stay under 1e-4, far under what 50,000 draws can see
PLAN = Plan(batch_size=2**16)  # these models are small: time goes into calling them

JOINT_CLASSES = [((0,), ()), ((0, 1), ()), ((0,), (1, 2)), ((1, 2), (0,)), ((0, 1, 2), ()), ((2,), (0,))]
DTYPES = [torch.float32, torch.float64]


def chi_square_p(states, expected, dtype=torch.float64):
    """p-value of the counts; a state outside the support of the target is impossible, so p = 0.

    In float32 the min and the max of equal densities differ by rounding, which leaves such states a share of
    about 1e-6: fewer than one of 50,000 draws is expected there, more than four would be an error.
    """
    counts = np.bincount(states, minlength=len(expected))
    possible = expected > 0
    if counts[~possible].sum() > (4 if dtype == torch.float32 else 0):
        return 0.0
    return stats.chisquare(counts[possible], expected[possible] * counts[possible].sum()).pvalue


def discrete_p(I, J, J_used, *, dtype, device, conditional=False, class_first=True, **options):
    """p-value of draws made with J_used against the joint class (I, J)."""
    G = DiscreteGenerator(dtype, conditional)
    clf = DiscreteClassifier(G, dtype, class_first).to(device)
    gamma = class_first_gamma() if class_first else 1.0
    sampler = S2MSampler(G.to(device), clf, weight=MinMax(gamma=gamma), plan=PLAN)
    result = sampler.sample(I, J_used, N_DRAWS, N_STEPS, seed=7, **options)
    assert result.log_weights.dtype == dtype
    assert result.diagnostics.tv_bound < 1e-4
    assert len(result.samples) == N_DRAWS
    return chi_square_p(result.samples[:, 0].cpu().numpy(), true_joint_class(I, J), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("I", "J"), JOINT_CLASSES)
def test_discrete(I, J, dtype, device):
    assert discrete_p(I, J, J, dtype=dtype, device=device) > LEVEL


@pytest.mark.slow
@pytest.mark.parametrize(("I", "J"), [((0,), (1, 2)), ((1, 2), (0,)), ((0, 1, 2), ())])
def test_discrete_with_labels_drawn_among_positives(I, J, device):
    """gamma = 1 is exact for joint classes that say something of every attribute."""
    assert discrete_p(I, J, J, dtype=torch.float64, device=device, class_first=False) > LEVEL


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("I", "J", "label"), [((0, 1), (), None), ((0,), (1, 2), None), ((1, 2), (0,), 2)])
def test_discrete_with_conditional_proposals(I, J, label, dtype, device):
    p = discrete_p(I, J, J, dtype=dtype, device=device, conditional=True, proposal_class=label)
    assert p > LEVEL


@pytest.mark.slow
@pytest.mark.parametrize(("I", "J"), [((0,), (1, 2)), ((1, 2), (0,)), ((2,), (0,))])
def test_a_dropped_max_term_is_caught(I, J, device):
    """The power of the test above: with the -max over J left out of the weight, it rejects."""
    assert discrete_p(I, J, (), dtype=torch.float64, device=device) < LEVEL


@pytest.mark.slow
def test_a_dropped_fake_class_term_is_caught(device):
    G = DiscreteGenerator(torch.float64, conditional=True)
    clf = DiscreteClassifier(G, class_first=True)
    clf.fake_logits.zero_()
    sampler = S2MSampler(G.to(device), clf.to(device), weight=MinMax(gamma=class_first_gamma()), plan=PLAN)
    result = sampler.sample((0, 1), (), N_DRAWS, N_STEPS, seed=7)
    assert chi_square_p(result.samples[:, 0].cpu().numpy(), true_joint_class((0, 1), ())) < LEVEL


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("I", "J"), [((0,), ()), ((0, 1), ()), ((0,), (2,)), ((0, 1), (2,))])
def test_gaussian(I, J, dtype, device):
    gamma = np.array([1.0, 1.5, 0.8])
    result = S2MSampler(
        GaussianGenerator(dtype).to(device),
        GaussianClassifier(dtype).to(device),
        weight=MinMax(gamma=gamma),
        plan=PLAN,
    ).sample(I, J, N_DRAWS, 100, seed=11)
    assert result.diagnostics.tv_bound < 1e-4
    x = result.samples.double().cpu().numpy()
    directions = [(1.0, 0.0), (0.0, 1.0), (0.6, 0.8)]
    for direction, cdf in zip(directions, gaussian_marginal_cdfs(I, J, gamma, directions), strict=True):
        assert stats.kstest(x @ np.array(direction), cdf).pvalue > LEVEL / len(directions)


@pytest.mark.slow
def test_gaussian_with_dropped_max_term_is_caught(device):
    gamma = np.array([1.0, 1.5, 0.8])
    G, clf = GaussianGenerator().to(device), GaussianClassifier().to(device)
    sampler = S2MSampler(G, clf, weight=MinMax(gamma=gamma), plan=PLAN)
    x = sampler.sample((0, 1), (), N_DRAWS, 100, seed=11).samples.cpu().numpy()
    (cdf,) = gaussian_marginal_cdfs((0, 1), (2,), gamma, [(0.0, 1.0)])
    assert stats.kstest(x[:, 1], cdf).pvalue < LEVEL


@pytest.mark.slow
def test_adapted_latents_are_corrected(device):
    """Latents drawn from N(0.5, 1) instead of the prior, with log p_z - log p~_z as their log weight."""
    G = DiscreteGenerator().to(device)
    clf = DiscreteClassifier(DiscreteGenerator(), class_first=True).to(device)
    sampler = S2MSampler(G, clf, weight=MinMax(gamma=class_first_gamma()), plan=PLAN)

    def draw(n, generator):
        z = torch.randn(n, 3, generator=generator, device=generator.device, dtype=torch.float64) + 0.5
        return z, (-0.5 * z.square() + 0.5 * (z - 0.5).square()).sum(1)

    exact = sampler.sample((0, 1), (), N_DRAWS, 60, seed=3, proposal=draw)
    wrong = sampler.sample((0, 1), (), N_DRAWS, 60, seed=3, proposal=lambda n, g: draw(n, g)[0])
    expected = true_joint_class((0, 1), ())
    assert chi_square_p(exact.samples[:, 0].cpu().numpy(), expected) > LEVEL
    assert chi_square_p(wrong.samples[:, 0].cpu().numpy(), expected) < LEVEL
