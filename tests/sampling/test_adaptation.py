"""Latent adaptation: mixtures as densities, draws by number, adapted runs against the exact target.

Statistical tests: fixed seeds, level 1e-3.
"""

import contextlib
import functools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from several import RareClassifier
from test_exactness import chi_square_p
from threadpoolctl import threadpool_limits
from torch import distributions, nn
from toys import (
    GaussianClassifier,
    GaussianGenerator,
    RowwiseClassifier,
    RowwiseGenerator,
    assert_same,
    counts_only,
    discrete,
    gaussian_marginal_cdfs,
    true_joint_class,
)

from spml_fast import LatentMixture, MinMax, Mixture, Plan, Run, S2MSampler, _ops
from spml_fast.sampling import AdaptationPath, JointClass, SamplingWarning, adaptation
from spml_fast.sampling.adaptation import candidates
from spml_fast.sampling.proposals import MixtureProposal, mixture

LEVEL = 1e-3
pytestmark = pytest.mark.filterwarnings("ignore:.*never met the support")
COVARIANCES = ["diag", "full"]
BAD = (2.0, 2.5, True, "2", [2])
P = 0.3
THRESHOLD = 0.5244  # P(z > THRESHOLD) = 0.3


def a_mixture(covariance="diag", prior_share=0.2, k=3, dim=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(k, generator=g, dtype=torch.float64) + 0.2
    means = 2 * torch.randn(k, dim, generator=g, dtype=torch.float64)
    scales = 0.3 + torch.rand(k, dim, generator=g, dtype=torch.float64)
    if covariance == "full":
        below = torch.randn(k, dim, dim, generator=g, dtype=torch.float64).tril(-1)
        scales = below + torch.diag_embed(scales)
    return LatentMixture(weights / weights.sum(), means, scales, prior_share)


def prior(dim):
    return distributions.Independent(distributions.Normal(torch.zeros(dim, dtype=torch.float64), 1.0), 1)


def fitted_part(mixture):
    if mixture.scales.dim() == 2:
        parts = distributions.Independent(distributions.Normal(mixture.means, mixture.scales), 1)
    else:
        parts = distributions.MultivariateNormal(mixture.means, scale_tril=mixture.scales)
    return distributions.MixtureSameFamily(distributions.Categorical(mixture.weights), parts)


def log_density(mixture, z):
    """log p~_z by torch.distributions."""
    log_prior = prior(mixture.dim).log_prob(z) + math.log(mixture.prior_share)
    if mixture.prior_share == 1:
        return log_prior
    return torch.logaddexp(log_prior, fitted_part(mixture).log_prob(z) + math.log1p(-mixture.prior_share))


def same_mixture(a, b):
    return a.prior_share == b.prior_share and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("weights", "means", "scales")
    )


def three_blobs(n=600, dim=3, k=3, seed=0):
    rng = np.random.default_rng(seed)
    centres = 8 * np.eye(3, dim)[:k]
    return centres[rng.integers(k, size=n)] + 0.5 * rng.normal(size=(n, dim))


# --- the density ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prior_share", [1e-6, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_log_correction_is_that_of_torch_distributions(covariance, k, prior_share):
    mixture = a_mixture(covariance, prior_share, k, dim=5)
    z = 3 * torch.randn(500, 5, dtype=torch.float64)
    got = mixture.log_correction(z)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, prior(5).log_prob(z) - log_density(mixture, z), rtol=1e-11, atol=1e-11)
    assert torch.equal(mixture.log_correction(z.float()), mixture.log_correction(z.float().double()))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_density_integrates_to_one(covariance):
    """E_{p~_z}[p_z/p~_z] = 1: a constant missing from one of the two would show."""
    mixture = a_mixture(covariance, prior_share=0.3, dim=2)
    n = 200_000
    z = mixture.place(torch.randn(n, 2, dtype=torch.float64), torch.rand(n, dtype=torch.float64))
    ratio = mixture.log_correction(z).exp()
    error = ratio.std() / n**0.5
    assert abs(ratio.mean() - 1) < stats.norm.isf(LEVEL / 2) * error


@pytest.mark.slow
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_place_draws_that_density(covariance):
    mixture = a_mixture(covariance)
    n = 100_000
    z = mixture.place(torch.randn(n, 4, dtype=torch.float64), torch.rand(n, dtype=torch.float64)).numpy()
    weights, means = mixture.weights.numpy(), mixture.means.numpy()
    spread = mixture.scales if covariance == "diag" else mixture.scales.square().sum(2).sqrt()
    for d in range(4):

        def cdf(value, d=d):
            each = stats.norm.cdf(value[:, None], means[:, d], spread.numpy()[:, d]) @ weights
            return 0.2 * stats.norm.cdf(value) + 0.8 * each

        assert stats.kstest(z[:, d], cdf).pvalue > LEVEL / 4
    # Across dimensions: second moments of the fitted part, against torch's.
    moments = 0.2 * np.eye(4)
    for k in range(3):
        s = mixture.scales[k].numpy()
        covariance_k = np.diag(s**2) if s.ndim == 1 else s @ s.T
        moments = moments + 0.8 * weights[k] * (covariance_k + np.outer(means[k], means[k]))
    products = z[:, :, None] * z[:, None]
    error = products.std(0) / n**0.5
    assert (np.abs(products.mean(0) - moments) < stats.norm.isf(LEVEL / 20) * error).all()


def test_place_takes_the_prior_and_the_components_in_their_shares():
    weights = torch.tensor([0.5, 0.0, 0.15, 0.35], dtype=torch.float64)
    means = torch.tensor([[100.0], [200.0], [300.0], [400.0]], dtype=torch.float64)
    mixture = LatentMixture(weights, means, torch.ones(4, 1, dtype=torch.float64), 0.2)
    n = 100_000
    normals, uniforms = torch.randn(n, 1, dtype=torch.float64), torch.rand(n, dtype=torch.float64)
    z = mixture.place(normals, uniforms)
    counts = np.bincount((z / 100).round().long()[:, 0].numpy(), minlength=5)
    assert counts[2] == 0
    expected = n * np.array([0.2, 0.4, 0.0, 0.12, 0.28])
    assert stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > LEVEL
    from_prior = z.abs() < 50
    assert torch.equal(from_prior[:, 0], uniforms < 0.2)
    assert torch.equal(z[from_prior], normals[from_prior])
    ends = mixture.place(torch.zeros(3, 1).double(), torch.tensor([0.0, 1 - 2**-53, 1.0], dtype=torch.float64))
    assert ends[:, 0].tolist() == [0, 400, 400]


@settings(deadline=None, max_examples=150)
@given(
    prior_share=st.floats(1e-9, 1),
    z=st.lists(st.floats(-50, 50), min_size=2, max_size=2),
    mean=st.floats(-20, 20),
    scale=st.floats(1e-3, 20),
    covariance=st.sampled_from(COVARIANCES),
)
def test_the_share_of_the_prior_bounds_the_correction(prior_share, z, mean, scale, covariance):
    scales = torch.full((2, 2), scale, dtype=torch.float64)
    if covariance == "full":
        scales = torch.diag_embed(scales)
    weights = torch.tensor([0.9, 0.1], dtype=torch.float64)
    mixture = LatentMixture(weights, torch.tensor([[mean, 0], [0, mean]]).double(), scales, prior_share)
    log_ratio = float(mixture.log_correction(torch.tensor([z], dtype=torch.float64)))
    assert math.isfinite(log_ratio)
    assert log_ratio <= -math.log(prior_share) + 1e-9


# --- the fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("k", [1, 3])
def test_bic_finds_the_number_of_components(k, covariance):
    z = three_blobs(k=k, seed=k)
    mixture = LatentMixture.fit(z, Mixture(covariance=covariance))
    assert len(mixture.weights) == k
    assert len(mixture.bic) == 5
    assert int(np.argmin(mixture.bic)) == k - 1
    assert mixture.weights.sum() == pytest.approx(1)
    centres = mixture.means[mixture.means[:, :k].argmax(1).argsort()].numpy()
    np.testing.assert_allclose(centres, 8 * np.eye(3)[:k], atol=0.2)
    spread = mixture.scales if covariance == "diag" else mixture.scales.square().sum(2).sqrt()
    np.testing.assert_allclose(spread, 0.5, atol=0.1)


def test_given_components_and_their_shapes():
    z = torch.randn(100, 2, 2)
    for k in (1, 4):
        diag, full = (LatentMixture.fit(z, Mixture(n_components=k, covariance=c)) for c in COVARIANCES)
        assert (diag.scales.shape, full.scales.shape) == ((k, 4), (k, 4, 4))
        assert full.means.shape == (k, 4)
        assert diag.dim == 4
        assert diag.bic == ()
        assert torch.equal(full.scales, full.scales.tril())
    assert len(LatentMixture.fit(z, Mixture(max_components=2)).bic) == 2


def test_a_full_covariance_is_that_of_the_latents():
    mix = torch.tensor([[1.0, 0, 0], [0.9, 0.3, 0], [-0.5, 0.2, 0.8]], dtype=torch.float64)
    z = torch.randn(20_000, 3, dtype=torch.float64) @ mix.T
    mixture = LatentMixture.fit(z, Mixture(n_components=1, covariance="full"))
    expected = torch.cov(z.T, correction=0) + 1e-3 * torch.eye(3)  # the floor under the variances
    torch.testing.assert_close(mixture.scales[0] @ mixture.scales[0].T, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mixture.means[0], z.mean(0))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_fit_is_the_same_again_and_with_any_number_of_threads(covariance, threads):
    z = torch.from_numpy(three_blobs(2000, dim=8, seed=5)).float()
    first = LatentMixture.fit(z, Mixture(covariance=covariance), seed=3)
    for n in (1, 2):
        threads(n)
        with threadpool_limits(n):
            again = LatentMixture.fit(z.numpy(), Mixture(covariance=covariance), seed=3)
        assert same_mixture(first, again)
        assert first.bic == again.bic
    LatentMixture.fit(z, seed=2**64 - 1)
    LatentMixture.fit(z, seed=-(2**63))


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_repeated_latents(distinct, covariance):
    """Chains that rarely accept leave a few latents many times."""
    z = torch.randn(distinct, 6).repeat(200, 1)
    mixture = LatentMixture.fit(z, Mixture(covariance=covariance))
    spread = mixture.scales if covariance == "diag" else mixture.scales.diagonal(dim1=1, dim2=2)
    assert all(torch.isfinite(part).all() for part in (mixture.weights, mixture.means, mixture.scales))
    assert (spread > 0.03).all()  # no spike: sqrt(1e-3)
    drawn = mixture.place(torch.randn(100, 6).double(), torch.rand(100).double())
    assert torch.isfinite(mixture.log_correction(drawn)).all()
    two = LatentMixture.fit(torch.zeros(2, 3), Mixture(covariance=covariance))
    assert torch.isfinite(two.log_correction(torch.randn(5, 3))).all()


@pytest.mark.parametrize(
    ("z", "options", "message"),
    [
        (np.zeros((1, 3)), {}, "at least two latents, got 1"),
        (np.zeros((0, 3)), {}, "at least two latents, got 0"),
        (np.array([[0.0, 1.0], [np.nan, 0.0]]), {}, "must be finite"),
        (np.array([[0.0, 1.0], [np.inf, 0.0]]), {}, "must be finite"),
        (np.eye(5), dict(n_components=6), "n_components must be at most the number of latents, 5, got 6"),
    ],
)
def test_bad_fits(z, options, message):
    with pytest.raises(ValueError, match=message):
        LatentMixture.fit(z, Mixture(**options))


COUNTS = ("n_chains", "max_steps", "n_components", "max_components")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        *(({name: 0}, ValueError, f"{name} must be between") for name in COUNTS),
        *(({name: -3}, ValueError, f"{name} must be between") for name in COUNTS),
        *(({name: 2**63}, ValueError, f"{name} must be between") for name in COUNTS),
        *(({name: value}, TypeError, f"{name} must be an integer, got") for name in COUNTS for value in BAD),
        (dict(n_chains=1), ValueError, "n_chains must be between 2 and .*, got 1"),
        *(({name: None}, TypeError, f"{name} must be an integer, got None") for name in COUNTS[:2]),
        (dict(max_components=None), TypeError, "max_components must be an integer, got None"),
        *(
            (dict(covariance=value), ValueError, f"covariance must be one of diag, full, got {value!r}")
            for value in ("x", "tied", "Diag", None, 1, True)
        ),
        *(
            (dict(prior_share=value), ValueError, f"prior_share must be more than 0 and at most 1, got {value}")
            for value in (0, 1.5, -0.1, math.nan, math.inf, 2)
        ),
        *(
            (dict(prior_share=value), TypeError, "prior_share must be a number more than 0 and at most 1, got")
            for value in (True, False, "0.1", None, [0.1])
        ),
    ],
)
def test_options_of_a_mixture_are_checked_when_it_is_made(options, error, message):
    """Before anything is drawn."""
    with pytest.raises(error, match=message):
        Mixture(**options)


def test_options_of_a_mixture_that_are_right():
    Mixture()
    how = Mixture(np.int64(2), np.int32(1), 1, 1, "full", 1)
    assert (how.n_chains, how.max_steps, how.prior_share) == (2, 1, 1)
    assert Mixture(n_components=None).n_components is None
    for prior_share in (1e-9, np.float32(0.5), 1.0):
        assert Mixture(prior_share=prior_share).prior_share == prior_share
    assert Mixture(n_chains=300) == Mixture(n_chains=300) != Mixture(n_chains=301)


NOT_MIXTURES = [Mixture, dict(n_chains=300), "full", True, 3, [Mixture()]]


@pytest.mark.parametrize("proposal", NOT_MIXTURES)
def test_what_is_no_proposal_is_an_error_before_anything_is_drawn(proposal):
    sampler = six()
    with pytest.raises(TypeError, match="proposal must be a LatentMixture, a Mixture, latents, or a function"):
        sampler.sample((0, 1, 2), (), 100, 20, proposal=proposal)
    with pytest.raises(TypeError, match=r"how must be a spml_fast\.Mixture, got"):
        sampler.adapt((0, 1, 2), how=proposal)
    assert sampler.models.G.rows == 0


def test_more_components_than_samples_to_fit_them_to_are_an_error_before_anything_is_drawn():
    sampler, how = six(), Mixture(n_chains=30, n_components=31)
    for call in (lambda: sampler.sample(0, proposal=how), lambda: sampler.adapt(0, how=how)):
        with pytest.raises(ValueError, match="n_components=31 components cannot be fitted to n_chains=30 samples"):
            call()
    assert sampler.models.G.rows == 0
    assert len(LatentMixture.fit(torch.randn(40, 2), how).weights) == 31  # of more latents they can


# --- a mixture made by hand -----------------------------------------------------------------------


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


EYE = torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
COVARIANCE = torch.tensor([[1.0, 0.4], [0.4, 0.7]], dtype=torch.float64).expand(2, 2, 2)
RIGHT = dict(weights=double(0.4, 0.6), means=torch.zeros(2, 2).double(), scales=torch.ones(2, 2).double())
NAN = torch.full((2, 2), math.nan, dtype=torch.float64)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        (dict(weights=double(0.4, 0.5)), ValueError, r"must sum to 1, got .*\(sum 0.9\)"),
        (dict(weights=double(0.4, 0.7)), ValueError, r"must sum to 1, got .*\(sum 1.1\)"),
        (dict(weights=double(4, 6)), ValueError, r"must sum to 1, got .*\(sum 10\)"),
        (dict(weights=double(0.4, 0.6001)), ValueError, "must sum to 1"),
        (dict(weights=double(0, 0)), ValueError, "must sum to 1"),
        (dict(weights=double(-0.5, 1.5)), ValueError, "weights must not be negative"),
        (dict(weights=double(math.nan, 1)), ValueError, "weights must be finite"),
        (dict(weights=double(math.inf, 0)), ValueError, "weights must be finite"),
        (dict(means=NAN), ValueError, "means must be finite"),
        (dict(scales=NAN), ValueError, "scales must be finite"),
        (dict(scales=EYE / 0), ValueError, "scales must be finite"),
        (dict(scales=RIGHT["scales"] * 0), ValueError, "standard deviations must be positive, got 0"),
        (dict(scales=-RIGHT["scales"]), ValueError, "standard deviations must be positive, got -1"),
        (dict(scales=double([1, 1], [1, -1e-9])), ValueError, "standard deviations must be positive, got -1e-09"),
        (dict(scales=-EYE), ValueError, "diagonals of the Cholesky factors must be positive, got -1"),
        (dict(scales=0 * EYE), ValueError, "diagonals of the Cholesky factors must be positive, got 0"),
        (dict(scales=COVARIANCE), ValueError, r"lower Cholesky factors .* torch.linalg.cholesky\(covariances\)"),
        (dict(scales=torch.linalg.cholesky(COVARIANCE).mT), ValueError, "lower Cholesky factors"),
        (dict(weights=double(1)), ValueError, r"expected weights \(K,\).* got weights \(1,\), means \(2, 2\)"),
        (dict(weights=double([0.4, 0.6])), ValueError, r"expected weights \(K,\).* got weights \(1, 2\)"),
        (dict(means=torch.zeros(2).double()), ValueError, r"means \(K, D\).* means \(2,\)"),
        (dict(means=torch.zeros(2, 3).double()), ValueError, r"means \(2, 3\), scales \(2, 2\)"),
        (dict(scales=torch.ones(2).double()), ValueError, r"scales \(K, D\) or \(K, D, D\), got .*scales \(2,\)"),
        (dict(scales=torch.ones(2, 3).double()), ValueError, r"got .*scales \(2, 3\)"),
        (dict(scales=torch.ones(1, 2).double()), ValueError, r"got .*scales \(1, 2\)"),
        (dict(scales=torch.ones(2, 2, 1).double()), ValueError, r"got .*scales \(2, 2, 1\)"),
        (
            dict(weights=double(), means=torch.zeros(0, 2).double(), scales=torch.ones(0, 2).double()),
            ValueError,
            r"means \(0, 2\)",
        ),
        (dict(weights=[0.4, 0.6]), TypeError, "weights must be a floating-point tensor, got list"),
        (dict(means=np.zeros((2, 2))), TypeError, "means must be a floating-point tensor, got ndarray"),
        (
            dict(scales=torch.ones(2, 2).long()),
            TypeError,
            "scales must be a floating-point tensor, got torch.int64",
        ),
        (dict(prior_share=0.0), ValueError, "prior_share must be more than 0 and at most 1, got 0"),
        (dict(prior_share=math.nan), ValueError, "prior_share must be more than 0 and at most 1, got nan"),
        (dict(prior_share=True), TypeError, "prior_share must be a number"),
    ],
)
def test_a_mixture_made_by_hand_is_checked(parts, error, message):
    with pytest.raises(error, match=message):
        LatentMixture(**RIGHT | parts)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(logits=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=300))
def test_weights_that_sum_to_one_within_rounding_are_right(logits):
    weights = torch.tensor(logits).softmax(0)
    k = len(logits)
    mixture = LatentMixture(weights, torch.zeros(k, 1), torch.ones(k, 1))
    z = torch.linspace(-3, 3, 7)[:, None]
    torch.testing.assert_close(mixture.log_correction(z), torch.zeros(7), rtol=0, atol=1e-5)


def test_mixtures_made_by_hand_that_are_right():
    for scales in (RIGHT["scales"], EYE, torch.linalg.cholesky(COVARIANCE), 1e-6 * EYE):
        assert LatentMixture(**RIGHT | {"scales": scales}).dim == 2
    assert LatentMixture(double(0, 1), RIGHT["means"], RIGHT["scales"], 1).prior_share == 1


# --- draws by number ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_blocks_of_any_size_and_recall_agree(covariance, dtype, device):
    mixture = a_mixture(covariance)
    chains = torch.arange(23, device=device)
    proposal = MixtureProposal(mixture, (4,), chains, 9, dtype)
    whole, log_weights = proposal.rows(0, 12 * 23)
    assert whole.shape == (12 * 23, 4)
    assert (whole.dtype, log_weights.dtype) == (dtype, torch.float64)
    assert whole.device.type == device.type
    if device.type == "cpu":  # of the latents as G gets them, rounded
        assert torch.equal(log_weights, mixture.log_correction(whole))
    for sizes in ([23] * 12, [5, 7, 12 * 23 - 12], [253, 23], [92, 92, 92], [1, 24, 251]):
        ends = np.cumsum(sizes).tolist()
        blocks = [proposal.rows(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        assert torch.equal(torch.cat([z for z, _ in blocks]), whole)
        torch.testing.assert_close(torch.cat([w for _, w in blocks]), log_weights, rtol=1e-14, atol=1e-14)
    order = torch.randperm(12 * 23, device=device)
    recalled = proposal.recall(order % 23, order // 23)
    assert torch.equal(recalled, whole[order])
    assert len(torch.unique(whole, dim=0)) == 12 * 23
    assert proposal.recall(order[:0], order[:0]).shape == (0, 4)


def test_log_weights_do_not_depend_on_the_blocks():
    """As S2MSampler says of its results: to the last bit, whatever block_steps is."""
    for n_chains in range(23, 83):
        proposal = MixtureProposal(a_mixture(), (4,), torch.arange(n_chains), 9)
        steps = torch.cat([proposal.rows(step * n_chains, (step + 1) * n_chains)[1] for step in range(12)])
        assert torch.equal(steps, proposal.rows(0, 12 * n_chains)[1])


def test_float32_draws_are_the_float64_draws_rounded():
    wide, narrow = (
        MixtureProposal(a_mixture(), (4,), torch.arange(50), 3, dtype).rows(0, 250)[0]
        for dtype in (torch.float64, torch.float32)
    )
    assert torch.equal(wide.float(), narrow)


def test_chains_are_numbered():
    mixture = a_mixture()
    all_chains, log_weights = MixtureProposal(mixture, (4,), torch.arange(30), 5).rows(60, 150)
    proposal = MixtureProposal(mixture, (4,), torch.arange(11, 18), 5)
    some, some_weights = proposal.rows(14, 35)
    assert torch.equal(some.view(3, 7, 4), all_chains.view(3, 30, 4)[:, 11:18])
    assert torch.equal(some_weights.view(3, 7), log_weights.view(3, 30)[:, 11:18])
    recalled = proposal.recall(torch.tensor([3]), torch.tensor([4]))
    assert torch.equal(recalled[0], some.view(3, 7, 4)[2, 3])
    assert not torch.equal(MixtureProposal(mixture, (4,), torch.arange(30), 6).rows(60, 150)[0], all_chains)


def test_latents_of_several_dimensions():
    flat, log_weights = MixtureProposal(a_mixture(dim=6), (6,), torch.arange(10), 1).rows(0, 40)
    proposal = MixtureProposal(a_mixture(dim=6), (2, 3), torch.arange(10), 1)
    shaped, shaped_weights = proposal.rows(0, 40)
    assert torch.equal(shaped, flat.view(40, 2, 3))
    assert torch.equal(shaped_weights, log_weights)
    assert torch.equal(proposal.recall(torch.arange(10), torch.zeros(10).long()), shaped[:10])
    generator = RowwiseGenerator()
    mixture = a_mixture()
    wrapped = S2MSampler(lambda z: generator(z.flatten(1)), RowwiseClassifier(), z_dim=(2, 2))
    result = wrapped.sample(0, 1, 30, 30, seed=0, proposal=mixture)
    assert result.latents.shape == (30, 2, 2)
    expected = S2MSampler(generator, RowwiseClassifier()).sample(0, 1, 30, 30, seed=0, proposal=mixture)
    assert torch.equal(result.samples, expected.samples)
    assert LatentMixture.fit(result.latents).dim == 4


def test_a_mixture_of_other_latents_is_an_error():
    with pytest.raises(ValueError, match="the mixture is of latents of 4 numbers, G takes 6"):
        MixtureProposal(a_mixture(), (2, 3), torch.arange(10), 0)
    with pytest.raises(ValueError, match="the mixture is of latents of 5 numbers, G takes 4"):
        S2MSampler(RowwiseGenerator(), RowwiseClassifier()).sample(0, 1, 5, 5, proposal=a_mixture(dim=5))


def component_tables(seed, n_chains=500, n_steps=200):
    """p-values of independence of the component from the accept uniform, and from the normals."""
    weights = torch.full((4,), 0.25, dtype=torch.float64)
    means = 100 * torch.arange(1, 5, dtype=torch.float64)[:, None]
    mixture = LatentMixture(weights, means, torch.ones(4, 1, dtype=torch.float64), 0.2)
    proposal = MixtureProposal(mixture, (1,), torch.arange(n_chains), seed, torch.float64)
    z, _ = proposal.rows(0, n_steps * n_chains)
    component = (z[:, 0] / 100).round().long()
    normals = z[:, 0] - 100 * component
    steps, chains = (
        part.reshape(-1) for part in torch.meshgrid(*map(torch.arange, (n_steps, n_chains)), indexing="ij")
    )
    uniforms = _ops.philox_uniform(chains, steps, seed, dtype=torch.float64)
    found = []
    for u in (uniforms, torch.special.ndtr(normals)):
        table = torch.bincount(component * 10 + (u * 10).long().clamp(max=9), minlength=50).reshape(5, 10)
        found.append(stats.chi2_contingency(table.numpy()).pvalue)
    return found


@pytest.mark.parametrize("seed", [0, 12345, -1, 2**63 - 1, -(2**63)])
def test_components_are_independent_of_accept_steps_and_of_normals(seed):
    assert min(component_tables(seed)) > LEVEL / 10


def test_components_by_the_accept_uniforms_would_be_seen(monkeypatch):
    monkeypatch.setattr(mixture, "COMPONENT_KEY", 0)
    assert component_tables(0)[0] < 1e-6


# --- exactness ------------------------------------------------------------------------------------

N_DRAWS = 100_000


@pytest.fixture
def adapt_all(monkeypatch):
    """Proposals are adapted to every target, however well the prior serves it."""
    monkeypatch.setattr(adaptation, "KEEP_PRIOR_ESS", 2.0)


def bias(result):
    """About the share of the target's mass that its chains have not reached: E_target[(1 - 1/r)^n], r = w/E_q[w].

    tv_bound is this at the largest r of all, met in the prior's far tails, where the mixture's share of the prior
    lets r be ten times what the prior's own is.
    """
    w = result.log_weights.double().exp()
    mean_weight = result.diagnostics.support_rate / (1 / w).mean()  # E_target[1/w] = P_q(w > 0) / E_q[w]
    return float((1 - (mean_weight / w).clamp(max=1)).pow(result.diagnostics.n_steps).mean())


def exact_p(sampler, I, J, *, n_steps=60, **options):
    result = sampler.sample(I, J, N_DRAWS, n_steps, seed=21, **options)
    if isinstance(options.get("proposal"), Mixture):
        assert result.adaptation is not None
    assert bias(result) < 1e-4
    assert len(result.samples) == N_DRAWS
    return chi_square_p(result.samples[:, 0].numpy(), true_joint_class(I, J), result.log_weights.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("covariance", ["diag", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("I", "J"), [((0,), (1, 2)), ((0, 1, 2), ())])
def test_discrete_with_a_fitted_mixture(I, J, covariance):
    sampler = discrete()
    latents = sampler.sample(I, J, 500, 20, seed=1).latents
    mixture = LatentMixture.fit(latents, Mixture(covariance=covariance))
    assert exact_p(sampler, I, J, proposal=mixture) > LEVEL


@pytest.mark.slow
@pytest.mark.parametrize(("I", "J", "order"), [((0, 1), (2,), (1, 2, 0)), ((1, 2), (0,), None)])
def test_discrete_with_repeated_adaptation(I, J, order, monkeypatch):
    monkeypatch.setattr(adaptation, "DIRECT_FIT_ESS", 2.0)  # one attribute at a time
    sampler = discrete()
    path = sampler.adapt(I, J, Mixture(n_chains=300), order=order, seed=4)
    assert len(path.stages) == 3
    assert exact_p(sampler, I, J, proposal=path.mixture) > LEVEL


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_discrete_with_adapt(dtype, adapt_all):
    assert exact_p(discrete(dtype), (0, 1, 2), (), proposal=Mixture()) > LEVEL


@pytest.mark.slow
@pytest.mark.parametrize("how", ["adapt", pytest.param("path", marks=pytest.mark.slow)])
def test_discrete_with_adapted_conditional_proposals(how, adapt_all):
    sampler = discrete(conditional=True)
    if how == "adapt":
        assert exact_p(sampler, (1, 2), (0,), proposal=Mixture(), n_steps=80) > LEVEL
    else:
        how = Mixture(n_chains=300, covariance="full")
        mixture = sampler.adapt((1, 2), (0,), how, proposal_class=2, seed=5).mixture
        assert exact_p(sampler, (1, 2), (0,), proposal=mixture, proposal_class=2, n_steps=80) > LEVEL


@pytest.mark.slow
@pytest.mark.parametrize("conditional", [False, True])
def test_a_dropped_correction_is_caught(conditional, monkeypatch):
    """The power of the tests above: with log p_z - log p~_z left out, they reject."""
    sampler = discrete(conditional=conditional)
    mixture = LatentMixture.fit(sampler.sample((0, 1, 2), (), 500, 20, seed=1).latents)
    monkeypatch.setattr(LatentMixture, "log_correction", lambda self, z: z.new_zeros(len(z), dtype=torch.float64))
    assert exact_p(sampler, (0, 1, 2), (), proposal=mixture) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_gaussian_with_an_adapted_proposal(covariance):
    gamma = np.array([1.0, 1.5, 0.8])
    sampler = S2MSampler(GaussianGenerator(), GaussianClassifier(), weight=MinMax(gamma=gamma))
    I, J = (0, 1), (2,)
    mixture = sampler.adapt(I, J, Mixture(n_chains=1000, covariance=covariance), seed=2).mixture
    result = sampler.sample(I, J, N_DRAWS // 2, 60, seed=11, proposal=mixture)
    assert bias(result) < 1e-4
    directions = [(1.0, 0.0), (0.0, 1.0), (0.6, 0.8)]
    for direction, cdf in zip(directions, gaussian_marginal_cdfs(I, J, gamma, directions, n=1001), strict=True):
        assert stats.kstest(result.samples.numpy() @ np.array(direction), cdf).pvalue > LEVEL / 3


# --- adaptation, one attribute after the other ----------------------------------------------------


class Identity(nn.Module):
    def __init__(self, dim=6):
        super().__init__()
        self.z_dim = dim
        self.rows = 0

    def forward(self, z):
        self.rows += len(z)
        return z


class Thresholds(nn.Module):
    """Attribute k where z_k is above its threshold; labels drawn uniformly among an instance's attributes."""

    def __init__(self, thresholds=(THRESHOLD,) * 6):
        super().__init__()
        self.thresholds = torch.tensor(thresholds)
        self.rows = 0

    def forward(self, x):
        self.rows += len(x)
        has = x > self.thresholds
        return torch.where(has, 0.0, -1e4), torch.where(has.any(1), 0.0, -1e4)


def six(*thresholds, **options):
    clf = Thresholds(thresholds or (THRESHOLD,) * 6)
    return S2MSampler(Identity(len(clf.thresholds)), clf, **options)


SIX = [((0, 1, 2, 3, 4, 5), ()), ((0, 2, 4), (1, 3, 5))]


@pytest.fixture(scope="module")
def six_path():
    return six().adapt(range(6), seed=0)


def assert_is_a_path(path, I, J):
    target = JointClass(I, J)
    before = (set(), set())
    for stage in path.stages:
        now = (set(stage.joint_class.I), set(stage.joint_class.J))
        assert before[0] <= now[0]
        assert before[1] <= now[1]
        assert before != now
        before = now
    assert path.stages[0].joint_class.I
    assert path.stages[-1].joint_class == target
    assert path.mixture is path.stages[-1].mixture
    assert path.proposals == sum(stage.proposals for stage in path.stages)
    assert sorted(path.order) == sorted((*target.I, *target.J))
    assert path.order[0] in target.I


@pytest.mark.slow
def test_six_attributes_one_after_the_other(six_path):
    assert isinstance(six_path, AdaptationPath)
    assert_is_a_path(six_path, range(6), ())
    assert len(six_path.stages) >= 3
    for stage in six_path.stages[:-1]:
        assert stage.mixture.dim == 6


@pytest.mark.slow
@pytest.mark.parametrize("case", [0, 1])
def test_an_adapted_proposal_is_worth_its_stages(case, six_path):
    """Against the prior, which has p = 0.3^6 (about 0.0007) or 0.3^3 0.7^3 (about 0.009) effective samples."""
    (I, J), sampler = SIX[case], six()
    path = six_path if case == 0 else sampler.adapt(I, J, seed=0)
    assert_is_a_path(path, I, J)
    by_prior = sampler.sample(I, J, 2000, 100, seed=1).diagnostics.ess_per_proposal
    adapted = sampler.sample(I, J, 2000, 100, seed=1, proposal=path.mixture).diagnostics
    p = P ** len(I) * (1 - P) ** len(J)
    assert by_prior == pytest.approx(p, rel=0.3)
    assert adapted.ess_per_proposal >= (20 if case == 0 else 15) * by_prior


@pytest.mark.slow
@pytest.mark.parametrize(("I", "J"), SIX)
def test_six_attributes_have_truncated_normal_latents(I, J, adapt_all):
    """What the adapted run draws is exactly the prior, cut off at the thresholds: KS in every dimension."""
    result = six().sample(I, J, 10_000, 300, seed=13, proposal=Mixture())
    assert result.adaptation is not None
    assert bias(result) < 2e-3  # a tenth of the distance that KS sees in 10,000 draws
    x = result.samples.double().numpy()
    for k in range(6):
        ends = (THRESHOLD, np.inf) if k in I else (-np.inf, THRESHOLD)
        assert stats.kstest(x[:, k], stats.truncnorm(*ends).cdf).pvalue > LEVEL / 6
    correlations = np.corrcoef(x.T)[np.triu_indices(6, 1)]
    assert np.abs(correlations).max() < stats.norm.isf(LEVEL / 30) / len(x) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("order", [(4, 1, 0, 3, 5, 2), (0, 5, 3, 1, 2, 4)])
def test_a_given_order_is_kept(order):
    I, J = SIX[1]
    path = six().adapt(I, J, Mixture(n_chains=200), order=order, seed=0)
    assert path.order == order
    assert_is_a_path(path, I, J)
    for k, stage in enumerate(path.stages, 1):
        assert {*stage.joint_class.I, *stage.joint_class.J} == set(order[:k])
        assert set(stage.joint_class.J) <= set(J)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ((0, 1), "order must name each attribute"),
        ((0, 1, 2, 3), "order must name each attribute"),
        ((0, 1, 1), "order must name each attribute"),
        ((), "order must name each attribute"),
        ((2, 0, 1), r"order must begin with an attribute of I=\(0, 1\), got 2"),
    ],
)
def test_bad_orders(order, message):
    with pytest.raises(ValueError, match=message):
        six().adapt((0, 1), 2, order=order, seed=0)


def test_the_attribute_served_best_comes_next():
    """Independent attributes of probability 0.02, 0.5, 0.08 and 0.2: the commonest first."""
    sampler = six(*stats.norm.isf([0.02, 0.5, 0.08, 0.2]).tolist())
    path = sampler.adapt(range(4), seed=0)
    assert path.order[0] == 1
    # Each choice, checked against the effective samples that the proposals before give each candidate.
    assert [stage.joint_class for stage in path.stages[:2]] == [JointClass((1,)), JointClass((1, 3))]
    mixture = path.stages[1].mixture
    looks = sampler.sample_targets([((1, 2, 3), ()), ((0, 1, 3), ())], 2000, 32, seed=9, proposal=mixture)
    assert looks[0].diagnostics.ess_per_proposal > 1.5 * looks[1].diagnostics.ess_per_proposal
    assert path.stages[2].joint_class == JointClass((1, 2, 3))
    assert path.order == (1, 3, 2, 0)


def test_candidates():
    target = JointClass((3, 0), (1,))
    of = JointClass
    assert candidates(target, (), None) == [of(3), of(0)]
    assert candidates(target, (0,), None) == [of((3, 0)), of(0, 1)]
    assert candidates(target, (0, 1), None) == [target]
    assert candidates(target, (0,), (0, 1, 3)) == [of(0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(("stochastic", "order"), [(False, None), (True, None), (True, (0, 1, 2, 3, 4, 5))])
def test_proposals_are_all_that_were_made(stochastic, order):
    sampler = six(stochastic=stochastic)
    models = sampler.models
    sampler.describe()
    models.G.rows = models.clf.rows = 0  # without the probe's
    path = sampler.adapt(range(6), how=Mixture(n_chains=256), order=order, seed=2)
    assert models.clf.rows == path.proposals
    assert models.G.rows == path.proposals


def test_a_common_joint_class_takes_one_stage():
    for I, J in [((0,), ()), ((0, 1), ()), ((0,), (1, 2, 3))]:
        path = six().adapt(I, J, Mixture(n_chains=256), seed=0)
        assert len(path.stages) == 1
        assert_is_a_path(path, I, J)
        assert path.order == (*I, *J)


@pytest.mark.slow
def test_an_impossible_joint_class_is_an_error():
    sampler = six(0.0, -100.0, 0.0)  # every instance has attribute 1
    for I, J in [(0, 1), ((0, 2), 1)]:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match=r"64 chains hardly met .*-1 in \d+ steps, too little to fit"):
                sampler.adapt(I, J, Mixture(n_chains=64, max_steps=50), seed=0)
    with pytest.warns(SamplingWarning, match=r"1024 chains hardly met .*-1 in .*; the prior is kept"):
        result = sampler.sample(0, 1, 10, 10, proposal=Mixture(), seed=0)
    assert result.adaptation is None


@pytest.mark.slow
def test_adapt_is_reproducible(threads):
    how = Mixture(n_chains=128)
    path = six().adapt(*SIX[1], how, seed=7)
    threads(2)
    again = six(plan=Plan(batch_size=3000, block_steps=7)).adapt(*SIX[1], how, seed=7)
    assert [stage.joint_class for stage in again.stages] == [stage.joint_class for stage in path.stages]
    assert again.proposals == path.proposals
    assert all(same_mixture(a.mixture, b.mixture) for a, b in zip(path.stages, again.stages, strict=True))
    assert not same_mixture(six().adapt(*SIX[1], how, seed=8).mixture, path.mixture)
    torch.manual_seed(5)
    by_torch = six().adapt(*SIX[1], how)
    torch.manual_seed(5)
    assert same_mixture(six().adapt(*SIX[1], how).mixture, by_torch.mixture)


def test_stages_say_nothing_of_lost_chains():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = six(1.5, -1.5).adapt(0, 1, Mixture(n_chains=64, max_steps=17), order=(0, 1), seed=0)
    assert any(stage.diagnostics.chains_without_support > 0 for stage in path.stages)


def test_options_of_the_fit_are_passed_on():
    how = Mixture(n_chains=100, covariance="full", n_components=2, prior_share=0.4)
    path = six().adapt(0, how=how, seed=0)
    assert path.mixture.scales.shape == (2, 6, 6)
    assert path.mixture.prior_share == 0.4


@pytest.mark.slow
@pytest.mark.parametrize("max_steps", [5, 16, 30])
def test_max_steps_is_a_limit(max_steps):
    path = six().adapt(range(6), how=Mixture(n_chains=500, max_steps=max_steps), seed=0)
    assert all(stage.diagnostics.n_steps <= max_steps for stage in path.stages)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(I=()), ValueError, "I is empty"),
        (dict(I=(0, 1), J=1), ValueError, "index 1 is in both"),
        (dict(I=9), ValueError, "index 9 in I="),
        (dict(I=0, how="full"), TypeError, "how must be a spml_fast.Mixture, got 'full'"),
        (dict(I=0, how=a_mixture(dim=6)), TypeError, "how must be a spml_fast.Mixture, got LatentMixture"),
        (
            dict(I=0, n_chains=100),
            TypeError,
            r"argument .n_chains.; write how=.*Mixture\(n_chains=...\)",
        ),
        (dict(I=0, covariance="full"), TypeError, r"write how=.*Mixture\(covariance=...\)"),
        (dict(I=0, run=Run(first_chain=3)), ValueError, "an adaptation has no checkpoint, .* and no first chain"),
        (dict(I=0, run=Run(checkpoint="run.pt")), ValueError, "an adaptation has no checkpoint"),
        (dict(I=0, seed=2**64), ValueError, "seed must fit"),
        (dict(I=0, proposal_class=1), ValueError, "G takes no label"),
    ],
)
def test_bad_arguments_of_adapt(arguments, error, message):
    sampler = six()
    with pytest.raises(error, match=message):
        sampler.adapt(**arguments)
    if arguments["I"] != 9:  # how many classes there are is known from the first batch
        assert sampler.models.G.rows == 0


# --- proposals adapted to each target ---------------------------------------------------------------


def test_options_of_the_mixture_are_those_of_its_stages():
    how = Mixture(n_chains=300, max_steps=100, covariance="full", n_components=1)
    result = six().sample((0, 1, 2), (), 100, 20, seed=6, proposal=how)
    (stage, *_) = result.adaptation.stages
    assert stage.diagnostics.n_chains == 300
    assert stage.mixture.scales.shape == (1, 6, 6)
    for adapt in (True, dict(n_chains=300)):
        with pytest.raises(TypeError, match=r"argument .adapt.; write proposal=.*Mixture\(...\)"):
            six().sample((0, 1, 2), (), 100, 20, adapt=adapt)


@pytest.mark.slow
def test_only_badly_served_targets_are_adapted():
    thresholds = (-1.0, -1.5) + (THRESHOLD,) * 4
    targets = [((0,), ()), ((2, 3, 4, 5), ()), ((0, 1), ()), ((2, 3), (4, 5))]
    served, rare, also_served, rarer = six(*thresholds).sample_targets(
        targets, 200, 60, seed=6, proposal=Mixture()
    )
    assert served.adaptation is None
    assert also_served.adaptation is None
    assert_is_a_path(rare.adaptation, *targets[1])
    assert_is_a_path(rarer.adaptation, *targets[3])
    without = six(*thresholds).sample_targets([targets[0], targets[2]], 200, 60, seed=6)
    for adapted, plain in zip((served, also_served), without, strict=True):
        assert_same(adapted, plain)
        assert adapted.diagnostics.ess_per_proposal == plain.diagnostics.ess_per_proposal
        assert plain.adaptation is None
        assert plain.diagnostics.ess_per_proposal > 0.3
    for t, result in ((1, rare), (3, rarer)):
        alone = six(*thresholds).sample(*targets[t], 200, 60, seed=6, proposal=result.adaptation.mixture)
        assert_same(result, alone)
        has = result.samples > torch.tensor(thresholds)
        assert has[:, list(targets[t][0])].all()
        assert not has[:, list(targets[t][1])].any()
        assert result.diagnostics.ess_per_proposal > 0.05
    plan = Plan(batch_size=1000, block_steps=7)
    again = six(*thresholds, plan=plan).sample_targets(targets, 200, 60, seed=6, proposal=Mixture())
    for a, b in zip((served, rare, also_served, rarer), again, strict=True):
        assert_same(a, b)
    run = Run(first_chain=100)
    shifted = six(*thresholds).sample_targets(targets, 100, 60, seed=6, proposal=Mixture(), run=run)
    assert torch.equal(shifted[1].samples, rare.samples[100:])


def assert_same_adaptation(a, b):
    if a is None or b is None:
        assert a is b
        return
    assert len(a.stages) == len(b.stages)
    for mine, other in zip(a.stages, b.stages, strict=True):
        assert mine.joint_class == other.joint_class
        assert mine.proposals == other.proposals
        assert torch.equal(mine.samples, other.samples)
        assert same_mixture(mine.mixture, other.mixture)
        assert counts_only(mine.diagnostics) == counts_only(other.diagnostics)


SEVERAL = {
    # A sampler, its targets, how many of which are adapted, and methods.
    "some are well served": (
        lambda **options: six(-1.0, -1.5, *[THRESHOLD] * 4, **options),
        [((0,), ()), ((2, 3, 4), ()), ((4, 3, 2), ()), ((0, 1), ()), ((2, 3), (4, 5))],
        3,
        ("imh", "resample"),
    ),
    "with gradients": (
        lambda **options: S2MSampler(RowwiseGenerator(), RareClassifier(), **options),
        [((0,), ()), ((0, 1, 2), ()), ((1, 2), ())],
        2,
        ("rejection", "mala"),
    ),
    "conditional": (
        functools.partial(discrete, conditional=True),
        [((0, 1, 2), ()), ((1, 2), (0,)), ((0,), (1, 2))],
        3,
        ("imh", "resample"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [(name, method) for name in SEVERAL for method in SEVERAL[name][3]])
def test_targets_of_one_call_equal_separate_calls(name, method, request):
    """Whatever the others and their order: stages draw by a seed of their own target."""
    make, targets, n_adapted, _ = SEVERAL[name]
    if name == "conditional":
        request.getfixturevalue("adapt_all")
    how = Mixture(n_chains=128)

    def run(*targets, **options):
        return make(**options).sample_targets(targets, 50, 20, seed=6, proposal=how, method=method)

    found = dict(zip(targets, run(*targets), strict=True))
    assert sum(result.adaptation is not None for result in found.values()) == n_adapted
    turned = targets[::-1]
    others = [*zip(turned, run(*turned, plan=Plan(block_steps=7)), strict=True)]
    others += [(target, *run(target)) for target in targets]
    others += [(target, result) for target in targets for result in run(target, target)[1:]][:2]
    for target, other in others:
        assert_same(other, found[target])
        assert_same_adaptation(other.adaptation, found[target].adaptation)
        assert counts_only(other.diagnostics) == counts_only(found[target].diagnostics)


@pytest.mark.slow
def test_pilot_runs_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = six().sample(*SIX[1], 100, 800, seed=0, proposal=Mixture())
    assert len(result.samples) == 100
    with pytest.warns(SamplingWarning, match="never met the support"):
        six().sample(*SIX[1], 100, 200, seed=0)


@pytest.mark.parametrize("steps", [5, 20])
def test_an_interrupted_stage_ends_the_adaptation(steps):
    """Ctrl-C in a stage, or in the look before it, must not just shorten it and let all others run on."""

    class Interrupted(Thresholds):
        stopped_at = None

        def forward(self, x):
            if self.stopped_at is None and self.rows >= 256 * steps:
                self.stopped_at = self.rows
                raise KeyboardInterrupt
            return super().forward(x)

    clf = Interrupted()
    with contextlib.suppress(KeyboardInterrupt):
        S2MSampler(Identity(), clf, plan=Plan(block_steps=1)).adapt(range(6), how=Mixture(n_chains=256), seed=0)
    assert clf.rows == clf.stopped_at


@pytest.mark.slow
def test_what_the_pilot_never_met_is_adapted():
    """p = 0.15^6, about 1e-5: 16,384 proposals hold none, and all weights are about exp(-1e4)."""
    result = six(*[1.0364] * 6).sample(range(6), (), 100, 100, seed=0, proposal=Mixture())
    assert result.adaptation is not None


@pytest.mark.slow
def test_no_stage_is_fitted_to_what_it_never_met():
    """With 64 chains a first look holds 0.75 instances of all six attributes."""
    how = Mixture(n_chains=64)
    paths = [six().adapt(range(6), how=how, seed=seed) for seed in range(10)]
    assert all(len(path.stages) > 1 for path in paths)
