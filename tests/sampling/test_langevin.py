"""Chains of Langevin steps, method="mala", and what is measured of them.

Statistical tests: fixed seeds, level 1e-3.
"""

import functools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from toys import (
    FIELDS,
    PROBE_ROWS,
    ConditionalGaussianClassifier,
    ConditionalGaussianGenerator,
    GaussianClassifier,
    GaussianGenerator,
    Interrupted,
    LineGenerator,
    RowwiseClassifier,
    RowwiseGenerator,
    assert_same,
    counts_only,
    gaussian_marginal_cdfs,
    rowwise,
)

from spml_fast import MALA, LatentMixture, MinMax, Mixture, Plan, Run, S2MSampler, reference, s2m_sample
from spml_fast.sampling import SamplingWarning
from spml_fast.sampling.kernels import mala as langevin
from spml_fast.sampling.kernels.mala import START_STEPS, TARGET_ACCEPTANCE
from spml_fast.sampling.statistics import mixing

LEVEL = 1e-3
pytestmark = pytest.mark.filterwarnings("ignore::spml_fast.sampling.SamplingWarning")
DTYPES = [torch.float32, torch.float64]
GAMMA = (1.0, 1.5, 0.8)
DIRECTIONS = ((1.0, 0.0), (0.0, 1.0), (0.6, 0.8))
I, J = (0, 1), (2,)


def mala(sampler, I, J=(), n_samples=50, n_steps=20, samples_per_chain=1, thin=None, **options):
    method = MALA(samples_per_chain, thin)
    return sampler.sample(I, J, n_samples, n_steps, **{"method": method, "seed": 0, **options})


# --- against the exact joint class ----------------------------------------------------------------


@functools.cache
def exact_cdfs(I, J):
    return gaussian_marginal_cdfs(I, J, GAMMA, DIRECTIONS, n=1001)


def smallest_p(x, cdfs):
    """Of the marginals along DIRECTIONS, for as many tests."""
    x = x.double().cpu().numpy()
    pairs = zip(DIRECTIONS, cdfs, strict=True)
    return len(DIRECTIONS) * min(stats.kstest(x @ np.array(along), cdf).pvalue for along, cdf in pairs)


def gaussian(dtype=torch.float64, conditional=False, changed=None, **options):
    """``changed`` may change what clf returns."""
    if conditional:
        G, exact = ConditionalGaussianGenerator(dtype), ConditionalGaussianClassifier(dtype)
    else:
        G, exact = GaussianGenerator(dtype), GaussianClassifier(dtype)
    clf = exact if changed is None else lambda x: changed(*exact(x))
    return S2MSampler(G, clf, **{"weight": MinMax(gamma=GAMMA), **options})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("I", "J"), [((0,), ()), ((0, 1), ()), ((0,), (2,)), ((0, 1), (2,))])
def test_gaussian(I, J, dtype, device):
    result = mala(gaussian(dtype, plan=Plan(device=device)), I, J, 10_000, 40, seed=11)
    assert len(result.samples) == 10_000
    assert result.samples.dtype == result.log_weights.dtype == dtype
    assert smallest_p(result.samples, exact_cdfs(I, J)) > LEVEL


@pytest.mark.slow
@pytest.mark.parametrize(("I", "J", "label"), [((0, 1), (), None), ((0,), (2,), None), ((0, 1), (2,), 2)])
def test_gaussian_with_conditional_proposals(I, J, label):
    result = mala(gaussian(conditional=True), I, J, 10_000, 40, seed=12, proposal_class=label)
    assert smallest_p(result.samples, exact_cdfs(I, J)) > LEVEL


@pytest.mark.slow
def test_a_dropped_fake_class_term_is_caught():
    sampler = gaussian(conditional=True, changed=lambda a, fake, v: (a, 0 * fake, v))
    result = mala(sampler, (0, 1), (), 10_000, 40, seed=12)
    assert smallest_p(result.samples, exact_cdfs((0, 1), ())) < LEVEL


@pytest.mark.slow
@pytest.mark.parametrize(("I", "J"), [((0,), (1,)), ((0, 2), ())])
def test_gamma_and_temperatures(I, J):
    """Proposal density times weight on a grid, by the specification."""
    gamma, gamma_J = [0.7, 1.2, 0.8], [1.0, 0.5, 1.1]
    ratios = dict(gamma=gamma, gamma_J=gamma_J, temperature=1.6, validity_temperature=1.3)
    axis = torch.linspace(-11, 11, 601, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    used = torch.tensor([gamma_J[i] if i in J else gamma[i] for i in range(3)], dtype=torch.float64)
    temperatures = dict(temperature=1.6, validity_temperature=1.3)
    log_weight = reference.s2m_log_weight(
        *GaussianClassifier()(points), I, J, log_gamma=used.log(), **temperatures
    )
    mass = (log_weight - (points / 2).square().sum(1) / 2).exp().view(601, 601)
    x = mala(gaussian(weight=MinMax(**ratios)), I, J, 10_000, 40, seed=3).samples
    for d in (0, 1):
        marginal = mass.sum(1 - d).numpy()
        cumulative = np.cumsum(marginal) / marginal.sum()
        centred = (cumulative + np.r_[0, cumulative[:-1]]) / 2
        assert stats.kstest(x[:, d].numpy(), lambda v, c=centred: np.interp(v, axis.numpy(), c)).pvalue > LEVEL / 2
    assert smallest_p(x, exact_cdfs(I, J)) < LEVEL


def test_a_dropped_max_term_is_caught():
    result = mala(gaussian(), (0, 1), (), 10_000, 40, seed=11)
    assert smallest_p(result.samples, exact_cdfs((0, 1), (2,))) < LEVEL


def test_a_dropped_correction_is_caught(monkeypatch):
    """The way back as likely as the way there: the drift that makes it so, at every second call."""
    drift, forth = langevin.Points.drift, []

    def symmetric(self, step_size):
        if not forth:
            forth.append((self.z, drift(self, step_size)))
            return forth[0][1]
        z, there = forth.pop()
        return 2 * z + there - 2 * self.z

    monkeypatch.setattr(langevin.Points, "drift", symmetric)
    result = mala(gaussian(), (0, 1), (), 10_000, 40, seed=11)
    assert smallest_p(result.samples, exact_cdfs((0, 1), ())) < LEVEL


def test_a_dropped_prior_is_caught(monkeypatch):
    monkeypatch.setattr(langevin.Points, "log_density", lambda self: self.log_weight.double())
    result = mala(gaussian(), (0, 1), (), 10_000, 40, seed=11)
    assert smallest_p(result.samples, exact_cdfs((0, 1), ())) < LEVEL


@pytest.mark.slow
def test_a_gradient_that_is_wrong_does_no_harm():
    """The drift is part of a proposal that is corrected for."""
    sampler = gaussian(changed=lambda a, v: (a, v.detach()))
    result = mala(sampler, (0, 1), (2,), 10_000, 60, seed=11)
    assert smallest_p(result.samples, exact_cdfs((0, 1), (2,))) > LEVEL


def shifted(n, generator):
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64) + 0.5
    return z, (-0.5 * z.square() + 0.5 * (z - 0.5).square()).sum(1)


def a_mixture():
    one = torch.ones(1, dtype=torch.float64)
    return LatentMixture(one, torch.full((1, 2), 0.8).double(), torch.full((1, 2), 0.5).double(), 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("proposal", [shifted, a_mixture()], ids=["drawn", "mixture"])
def test_where_chains_start_does_not_matter(proposal):
    result = mala(gaussian(), (0, 1), (2,), 10_000, 60, seed=5, proposal=proposal)
    assert smallest_p(result.samples, exact_cdfs((0, 1), (2,))) > LEVEL


@pytest.mark.slow
def test_thinned_samples_have_the_target_distribution():
    """500 chains of 20 samples each, far enough apart for tests of independent ones."""
    result = mala(gaussian(), (0, 1), (2,), 10_000, 60, seed=2, samples_per_chain=20, thin=25)
    assert result.diagnostics.n_chains == 500
    assert smallest_p(result.samples, exact_cdfs((0, 1), (2,))) > LEVEL


# --- where independent proposals do not go --------------------------------------------------------


class Far(nn.Module):
    """log w that makes the target of x = z N(centre, scale^2) in each dimension."""

    def __init__(self, centre, scale):
        super().__init__()
        self.centre, self.scale = centre, scale

    def forward(self, x):
        v = ((x * x - ((x - self.centre) / self.scale) ** 2) / 2).sum(1)
        return torch.stack([0 * v, 0 * v], 1), v


class Same(nn.Module):
    z_dim = 2

    def forward(self, z):
        return 1 * z


def test_a_narrow_target_far_out():
    """Where plain chains, ten times as long, have not arrived."""
    sampler = S2MSampler(Same(), Far(4.0, 0.1))
    truth = stats.norm(4.0, 0.1)
    result = mala(sampler, 0, (), 500, 200, seed=1)
    for d in (0, 1):
        assert stats.kstest(result.samples[:, d].double().numpy(), truth.cdf).pvalue > LEVEL / 2
    plain = sampler.sample(0, (), 500, 2000, seed=1)
    assert stats.kstest(plain.samples[:, 0].double().numpy(), truth.cdf).pvalue < LEVEL
    d = result.diagnostics
    assert d.ess_per_proposal > 0.1 > 1e4 * plain.diagnostics.ess_per_proposal
    assert d.r_hat < 1.1
    assert 0.03 < d.step_size < 0.3


class Edge(nn.Module):
    """Attribute 0 and not 1: x > at, more likely the farther."""

    def __init__(self, at, steep=5.0):
        super().__init__()
        self.at, self.steep = at, steep

    def forward(self, x):
        a = self.steep * (x[:, 0] - self.at)
        return torch.stack([a, 0 * a], 1), 0 * a


def edge_cdf(at, steep=5.0):
    x = torch.linspace(at, at + 6, 20_001, dtype=torch.float64)[:, None]
    mass = (reference.s2m_log_weight(*Edge(at, steep)(x), (0,), (1,)) - x[:, 0].square() / 2).exp().numpy()
    return lambda v: np.interp(v, x[:, 0].numpy(), np.cumsum(mass) / mass.sum())


@pytest.mark.parametrize("dtype", DTYPES)
def test_chains_that_begin_where_others_are_end_right(dtype):
    sampler = S2MSampler(LineGenerator(dtype), Edge(2.8))
    start = sampler.sample(0, 1, 2000, START_STEPS, seed=3)
    assert 10 < len(start.samples) < 150
    result = mala(sampler, 0, 1, 2000, 120, seed=3)
    d = result.diagnostics
    assert len(result.samples) == d.n_samples == 2000
    assert d.chains_without_support == 0
    assert (result.samples > 2.8).all()
    assert stats.kstest(result.samples[:, 0].double().numpy(), edge_cdf(2.8)).pvalue > LEVEL
    early = mala(sampler, 0, 1, 2000, 1, seed=3)
    assert stats.kstest(early.samples[:, 0].double().numpy(), edge_cdf(2.8)).pvalue < LEVEL


def test_what_is_never_met_has_no_sample():
    sampler = S2MSampler(LineGenerator(), Edge(50.0))
    with pytest.warns(SamplingWarning, match=r"20 of 20 chains never met the support of \+0-1"):
        never, met = sampler.sample_targets([(0, 1), (1, 0)], 20, 30, method="mala", seed=0)
    assert never.samples.shape == never.latents.shape == (0, 1)
    assert never.log_weights.shape == never.chains.shape == (0,)
    d = never.diagnostics
    assert (d.method, d.n_samples, d.chains_without_support, d.tv_bound) == ("mala", 0, 20, None)
    assert (d.n_steps, d.burn_in, d.interrupted) == (START_STEPS, START_STEPS, False)
    assert len(met.samples) == 20
    assert met.diagnostics.n_steps == 30


# --- the step size --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dim", [2, 40])
def test_the_step_size_is_tuned(dim):
    """And fixed after warm-up: the same number for any number of samples of each chain."""

    class Wide(Same):
        z_dim = dim

    sampler = S2MSampler(Wide(), Far(0.3, 0.5))
    short = mala(sampler, 0, (), 200, 150).diagnostics
    long = mala(sampler, 0, (), 400, 150, samples_per_chain=2, thin=450).diagnostics
    assert short.step_size == long.step_size
    assert (long.n_steps, long.burn_in, long.thin) == (600, 150, 450)
    assert long.acceptance_rate == pytest.approx(TARGET_ACCEPTANCE, abs=0.02)
    assert short.acceptance_rate == pytest.approx(TARGET_ACCEPTANCE, abs=0.04)


def test_the_trace_is_of_the_steps_after_warm_up(monkeypatch):
    seen = []
    monkeypatch.setattr(langevin, "mixing", lambda trace: seen.append(trace) or (0.5, 1.0))
    result = mala(rowwise(), I, J, 30, 21, samples_per_chain=2, thin=4)
    (trace,) = seen
    assert trace.shape == (21 + 4 - 11, 15)
    log_density = result.log_weights - result.latents.square().sum(1) / 2
    np.testing.assert_allclose(trace[[9, 13]].reshape(-1), log_density.numpy(), rtol=1e-5)
    assert (result.diagnostics.ess_per_proposal, result.diagnostics.r_hat) == (0.5, 1.0)


# --- reproducible ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("proposal", [None, lambda n, g: (torch.randn(n, 4, generator=g), torch.zeros(n))])
def test_same_samples_whatever_the_batches(proposal):
    expected = mala(rowwise(), I, J, proposal=proposal)
    for plan in (Plan(batch_size=7), Plan(block_steps=1), Plan(batch_size=64, block_steps=5)):
        got = mala(rowwise(plan=plan), I, J, proposal=proposal)
        assert_same(got, expected)
        assert counts_only(got.diagnostics) == counts_only(expected.diagnostics)


def test_seeds_differ():
    a, again, b = (mala(rowwise(), I, J, seed=seed) for seed in (1, 1, 2))
    assert_same(a, again)
    assert not torch.equal(a.samples, b.samples)
    torch.manual_seed(5)
    c = mala(rowwise(), I, J, seed=None)
    torch.manual_seed(5)
    assert_same(c, mala(rowwise(), I, J, seed=None))
    torch.manual_seed(5)
    x = s2m_sample(RowwiseGenerator(), RowwiseClassifier(), I, J, 50, 20, method="mala")
    assert torch.equal(x, c.samples)


def test_the_global_generators_are_left_alone():
    before = torch.get_rng_state()
    mala(rowwise(), I, J)
    assert torch.equal(torch.get_rng_state(), before)


POOLS = {
    # A sampler, and targets: of one pool, of one that holds a target which is never met, and of one a label.
    "unconditional": (rowwise, [((0,), ()), (I, J), ((2,), (0,))]),
    "one is never met": (
        lambda **options: S2MSampler(LineGenerator(), Edge(50.0), **options),
        [((1,), (0,)), ((0,), (1,)), ((1,), ())],
    ),
    "conditional": (
        functools.partial(gaussian, conditional=True),
        [((0,), ()), ((1,), (0,)), ((0, 1), (2,)), ((2,), ()), ((1, 2), ())],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("proposal", [None, "drawn"])
@pytest.mark.parametrize("pool", POOLS)
def test_targets_of_one_call_equal_separate_calls(pool, proposal):
    make, targets = POOLS[pool]
    method = MALA(samples_per_chain=2)

    def draw(n, generator):
        z = torch.randn(n, make().models.z_shape[0], generator=generator, dtype=make().models.dtype)
        return 1.1 * z, (1.1 * z).square().sum(1) / -2 + z.square().sum(1) / 2

    options = dict(method=method, seed=3, proposal=draw if proposal else None)
    together = make().sample_targets(targets, 40, 20, **options)
    turned = make(plan=Plan(batch_size=17)).sample_targets(targets[::-1], 40, 20, **options)[::-1]
    for target, result, other in zip(targets, together, turned, strict=True):
        alone = make().sample(*target, 40, 20, **options)
        for found in (result, other):
            assert_same(found, alone)
            assert counts_only(found.diagnostics) == counts_only(alone.diagnostics)
    assert sum(len(result.samples) > 0 for result in together) == len(targets) - (pool == "one is never met")


def test_one_chain():
    result = mala(rowwise(), I, J, 1, 50, seed=1)
    assert result.samples.shape == (1, 3)
    assert 0 <= result.diagnostics.acceptance_rate <= 1


class OneStepSize(MALA):
    """The step size is not tuned."""

    def accept(self, problem, state, offer):
        super().accept(problem, state, offer)
        state.log_step = [-0.5] * len(state.log_step)


def test_chains_of_any_number_agree_once_the_step_size_is_given():
    """It is tuned over all of them. Each has a state to start from here."""
    many = mala(rowwise(), 0, (), 60, 30, seed=2, method=OneStepSize())
    few = mala(rowwise(), 0, (), 10, 30, seed=2, method=OneStepSize(), run=Run(first_chain=20))
    assert many.diagnostics.step_size == few.diagnostics.step_size == math.exp(-0.5)
    assert torch.equal(few.samples, many.samples[20:30])
    assert few.chains.tolist() == list(range(20, 30))
    tuned = mala(rowwise(), 0, (), 10, 30, seed=2, run=Run(first_chain=20))
    assert not torch.equal(tuned.samples, few.samples)


def test_samples_are_states_of_the_long_chain():
    every = mala(rowwise(), I, J, 20 * 31, 24, samples_per_chain=31, thin=1, seed=4)
    assert every.chains.tolist() == 31 * list(range(20))
    for n_samples, per_chain, thin in ((20, 1, None), (60, 3, 7), (50, 3, 7), (40, 2, 30)):
        n_chains = -(-n_samples // per_chain)
        if n_chains != 20:
            continue
        result = mala(rowwise(), I, J, n_samples, 24, samples_per_chain=per_chain, thin=thin, seed=4)
        d = result.diagnostics
        assert (d.n_chains, d.burn_in, d.thin, d.n_samples) == (20, 24, thin or 24, n_samples)
        assert d.n_steps == 24 + (per_chain - 1) * (thin or 24)
        rows = [20 * i * (thin or 0) + c for i in range(per_chain) for c in range(20)][:n_samples]
        for field in FIELDS:
            assert torch.equal(getattr(result, field), getattr(every, field)[rows])


def test_rows_are_cut_to_what_was_asked_for():
    whole = mala(rowwise(), I, J, 12, 10, samples_per_chain=3, thin=2)
    cut = mala(rowwise(), I, J, 10, 10, samples_per_chain=3, thin=2)
    assert cut.diagnostics.n_chains == 4
    assert cut.chains.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert_same(cut, whole.first(10))
    assert cut.diagnostics.n_samples == 10


def test_result_fields():
    sampler = gaussian()
    result = mala(sampler, (0,), (2,), 40, 30)
    assert torch.equal(sampler.models.G(result.latents), result.samples)
    expected = reference.s2m_log_weight(
        *sampler.models.clf(result.samples), (0,), (2,), log_gamma=torch.tensor(GAMMA, dtype=torch.float64).log()
    )
    torch.testing.assert_close(result.log_weights, expected, rtol=0, atol=1e-12)
    assert result.chains.tolist() == list(range(40))
    d = result.diagnostics
    assert d.method == "mala"
    assert d.tv_bound is None
    start = sampler.sample((0,), (2,), 40, START_STEPS, seed=0).diagnostics
    assert (d.max_weight_ratio, d.log_mean_weight) == (start.max_weight_ratio, start.log_mean_weight)
    assert 0 < d.support_rate < 1
    assert json.loads(json.dumps(d.to_dict(), allow_nan=False)) == d.to_dict()
    for tensor in (result.samples, result.latents, result.log_weights):
        assert not tensor.is_inference()
        assert not tensor.requires_grad


@pytest.mark.parametrize("n_steps", [1, 2, 3, 8])
def test_the_shortest_runs(n_steps):
    result = mala(rowwise(), I, J, 20, n_steps)
    assert result.samples.shape == (20, 3)
    d = result.diagnostics
    assert (d.n_steps, d.burn_in, d.thin) == (n_steps, n_steps, n_steps)
    assert torch.isfinite(result.log_weights).all()


def test_latents_of_dcgans():
    class Shaped(RowwiseGenerator):
        z_dim = (4, 1, 1)

        def forward(self, z):
            assert z.shape[1:] == (4, 1, 1)
            return super().forward(z.flatten(1))

    flat, shaped = mala(rowwise(), I, J), mala(rowwise(Shaped()), I, J)
    assert shaped.latents.shape == (50, 4, 1, 1)
    assert torch.equal(shaped.latents.flatten(1), flat.latents)
    assert torch.equal(shaped.samples, flat.samples)
    assert torch.equal(shaped.log_weights, flat.log_weights)


def test_parameters_and_modes_are_left_as_they_were():
    class Trained(RowwiseGenerator):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3))
            self.norm = nn.BatchNorm1d(3)

        def forward(self, z):
            assert not self.training
            return self.norm(super().forward(z) * self.gain)

    G = Trained().train()
    state = {name: value.clone() for name, value in G.state_dict().items()}
    result = mala(rowwise(G), I, J)
    assert G.training
    assert G.norm.training
    assert G.gain.requires_grad
    assert all(parameter.grad is None for parameter in G.parameters())
    assert all(torch.equal(value, state[name]) for name, value in G.state_dict().items())
    (result.samples * G.gain).sum().backward()
    assert G.gain.grad is not None


def test_autocast():
    net = nn.Linear(4, 3)
    clf = nn.Linear(3, 4)
    sampler = S2MSampler(net, lambda x: clf(x).split([3, 1], 1), z_dim=4, plan=Plan(precision=torch.bfloat16))
    result = mala(sampler, 0, 1, 40, 20)
    assert result.log_weights.dtype == torch.float32
    assert torch.isfinite(result.log_weights).all()


@pytest.mark.parametrize("batch_size", [None, 64])
def test_memory_that_does_not_suffice_for_gradients(batch_size):
    """Batches become smaller, unless their size was given."""

    class Large(RowwiseGenerator):
        def forward(self, z):
            if torch.is_grad_enabled() and len(z) > 10:
                raise torch.OutOfMemoryError("no memory")
            return super().forward(z)

    sampler = rowwise(Large(), plan=Plan(batch_size=batch_size))
    if batch_size:
        with pytest.raises(torch.OutOfMemoryError):
            mala(sampler, I, J)
    else:
        assert_same(mala(sampler, I, J), mala(rowwise(), I, J))


@pytest.mark.parametrize("grad", [torch.no_grad, torch.enable_grad])
def test_whatever_the_caller_does_with_gradients(grad):
    with grad():
        got = mala(rowwise(), I, J)
    assert_same(got, mala(rowwise(), I, J))


def test_within_inference_mode():
    with torch.inference_mode():
        got = mala(rowwise(), I, J)
    assert_same(got, mala(rowwise(), I, J))


def test_a_generator_that_keeps_what_it_computes():
    """As positional encodings and grids are, made at the first call."""

    class Lazy(RowwiseGenerator):
        gain = None

        def forward(self, z):
            if self.gain is None:
                self.gain = torch.ones(4)
            return super().forward(z * self.gain)

    assert_same(mala(rowwise(Lazy()), I, J), mala(rowwise(), I, J))


@pytest.mark.parametrize("targets", [[((0,), ())], [((0,), ()), ((1,), ())]])
def test_progress_counts_the_steps_of_all_chains(targets, capsys):
    rowwise().sample_targets(targets, 50, 20, method="mala", seed=0, progress=True)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "100%" in last
    assert "| 1.80k/1.80k [" in last  # 50 chains, 16 + 20 steps


def test_adapted_starts():
    """The path comes along; the chains start from the proposal that was fitted."""
    sampler = S2MSampler(LineGenerator(), Edge(2.8))
    result = mala(sampler, 0, 1, 1000, 60, seed=3, proposal=Mixture())
    assert result.adaptation is not None
    assert stats.kstest(result.samples[:, 0].numpy(), edge_cdf(2.8)).pvalue > LEVEL
    assert_same(result, mala(sampler, 0, 1, 1000, 60, seed=3, proposal=result.adaptation.mixture))


# --- Ctrl-C ---------------------------------------------------------------------------------------


# With one batch a step, G is called START_STEPS times for all targets, then, for each of them, once for where its
# chains start and once a step.
STARTED = START_STEPS + 1  # calls: the start, the gradients there


def interrupted(at, targets=((I, J),), **options):
    sampler = rowwise(Interrupted(at), plan=Plan(block_steps=1, batch_size=10**6))
    try:
        return sampler.sample_targets(targets, 60, 30, method=MALA(**options), seed=0)
    except KeyboardInterrupt:  # which would end pytest
        raise RuntimeError("Ctrl-C was not caught") from None


@pytest.mark.parametrize("late", [1, 10, 29])
def test_ctrl_c_keeps_the_chains_where_they_are(late):
    (result,) = interrupted(STARTED + late)
    d = result.diagnostics
    assert d.interrupted
    assert (d.n_steps, d.burn_in) == (late, late)
    assert len(result.samples) == d.n_samples == 60
    assert torch.equal(RowwiseGenerator()(result.latents), result.samples)


@pytest.mark.parametrize("steps", [1, 5, START_STEPS])
@pytest.mark.parametrize("targets", [((I, J),), (((0,), ()), (I, J))])
def test_ctrl_c_before_the_chains_move_keeps_the_states_that_they_would_start_from(steps, targets):
    """Those of independent Metropolis-Hastings; chains without one have no sample."""
    results = interrupted(steps, targets)
    expected = rowwise().sample_targets(targets, 60, steps, seed=0)
    for result, start in zip(results, expected, strict=True):
        assert_same(result, start)
        d = result.diagnostics
        assert (d.interrupted, d.method, d.tv_bound, d.r_hat, d.step_size) == (True, "mala", None, None, None)
        counts = counts_only(start.diagnostics)
        same = ("n_steps", "burn_in", "n_samples", "n_chains", "chains_without_support", "max_weight_ratio")
        for name in (*same, "acceptance_rate", "support_rate", "ess_per_proposal", "log_mean_weight"):
            assert getattr(d, name) == counts[name], name
        assert d.proposals_per_second > 0


@pytest.mark.parametrize("call", [START_STEPS, STARTED])
def test_ctrl_c_in_the_first_move(call):
    (result,) = interrupted(call)
    assert_same(result, rowwise().sample(I, J, 60, START_STEPS, seed=0))


@pytest.mark.slow
@pytest.mark.parametrize(("late", "taken"), [(30, 1), (36, 1), (37, 2), (40, 2)])
def test_ctrl_c_between_samples_keeps_those_taken(late, taken):
    options = dict(samples_per_chain=3, thin=7)
    full = mala(rowwise(), I, J, 60, 30, **options)
    (result,) = interrupted(STARTED + late, **options)
    d = result.diagnostics
    assert d.interrupted
    assert (d.n_steps, d.burn_in, d.thin, d.n_samples) == (late, 30, 7, 20 * taken)
    assert_same(result, full.first(20 * taken))


def test_ctrl_c_at_the_very_start_is_raised():
    with pytest.raises(RuntimeError, match="not caught"):
        interrupted(0)


TWO = (((0,), ()), ((1,), ()))


@pytest.mark.slow
@pytest.mark.parametrize("late", [1, 5, 29])
@pytest.mark.parametrize("second", [False, True])
def test_ctrl_c_stops_all_targets_at_the_same_step(late, second):
    """Whichever's proposals it comes in."""
    results = interrupted(START_STEPS + 2 + 2 * late + second, TWO)
    for target, result in zip(TWO, results, strict=True):
        (alone,) = interrupted(STARTED + late, (target,))
        assert_same(result, alone)
        assert counts_only(result.diagnostics) == counts_only(alone.diagnostics)
        assert result.diagnostics.interrupted
        assert result.diagnostics.n_steps == late


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(n_steps="auto"), "method='mala' has no bound to stop at"),
        (
            dict(proposal=np.zeros((5, 6, 4)), n_steps=None, n_samples=None),
            "given latents fix the number of steps",
        ),
        (dict(n_steps=0), "n_steps must be between 1 and"),
        (dict(thin=0), "thin must be between 1 and"),
        (dict(samples_per_chain=3, n_steps=2**30), r"would take 3221225472 steps, more than 2\^31"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        mala(rowwise(), 0, **options)


def test_a_stochastic_generator_is_refused():
    with pytest.raises(ValueError, match="must not draw noise of its own"):
        mala(rowwise(stochastic=True), 0)


def without_gradient(x):
    with torch.no_grad():
        return RowwiseClassifier()(x)


class Detached(RowwiseGenerator):
    def forward(self, z):
        return super().forward(z).detach()


class ByNumpy(RowwiseGenerator):
    def forward(self, z):
        return torch.from_numpy(super().forward(z).detach().numpy())


@pytest.mark.parametrize("models", [(Detached(), None), (None, without_gradient), (ByNumpy(), None)])
def test_models_that_cut_gradients(models):
    with pytest.raises(ValueError, match=r"follows the gradient of clf\(G\(z\)\).*cuts it off"):
        mala(rowwise(*models), 0)


def test_models_that_cut_gradients_and_have_parameters():
    """As most that cut them have."""

    class OwnParameters(Detached):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3))

        def forward(self, z):
            return super().forward(z) * self.gain

    with pytest.raises(ValueError, match=r"follows the gradient of clf\(G\(z\)\).*cuts it off"):
        mala(rowwise(OwnParameters()), 0)


class Broken(RowwiseClassifier):
    """One bad logit at one call; calls with gradients come after those of the start."""

    def __init__(self, bad, at, logit="validity"):
        super().__init__()
        self.bad, self.at, self.logit, self.calls = bad, at, logit, 0

    def forward(self, x):
        class_logits, validity = super().forward(x)
        self.calls += torch.is_grad_enabled()
        if self.calls == self.at and len(x) > PROBE_ROWS:
            which = torch.arange(len(x)) == 2
            if self.logit == "validity":
                validity = torch.where(which, self.bad, validity)
            else:
                class_logits = torch.where(which[:, None], class_logits.new_tensor([self.bad, 0, 0]), class_logits)
        return class_logits, validity


@pytest.mark.parametrize("at", [0, 1])
def test_nan_logits_are_an_error(at):
    with pytest.raises(ValueError, match="NaN or infinite"):
        mala(rowwise(clf=Broken(math.nan, at)), I, J)


@pytest.mark.parametrize("at", [1, 18])
@pytest.mark.parametrize(
    ("bad", "logit"),
    [
        (math.nan, "validity"),
        (math.nan, "class"),
        (math.inf, "class"),
        (math.inf, "validity"),
    ],
)
def test_infinite_logits_are_an_error_at_any_step(bad, logit, at):
    """The README: NaN or infinite logits are an error that names the step."""
    with pytest.raises(ValueError, match=f"NaN or infinite logits at Langevin step {max(at - 2, 0)}"):
        mala(rowwise(clf=Broken(bad, at, logit)), (0,), ())


def test_models_that_fail_in_a_later_targets_gradients():
    """One error for all, whichever target's chains meet it."""
    clf = Broken(math.nan, 4)  # the first target's start and move, the second's start, and its move
    with pytest.raises(ValueError, match="NaN or infinite logits at Langevin step 0"):
        rowwise(clf=clf).sample_targets([((0,), ()), ((1,), ())], 20, 9, method="mala", seed=0)
    assert clf.calls == 4


class MovedEdge(Edge):
    """Its edge lies elsewhere under gradients: a stand-in for logits that round differently in other batches."""

    def forward(self, x):
        return super().forward(x - 0.2 if torch.is_grad_enabled() else x)


def test_a_start_that_turns_out_to_have_no_weight():
    result = mala(S2MSampler(LineGenerator(), MovedEdge(1.0)), 0, 1, 200, 100)
    assert math.isfinite(result.diagnostics.step_size)
    assert (result.samples > 1.2).all()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_of_low_precision_at_the_edge_of_the_support(dtype):
    """Where log w falls to -inf its gradient is beyond float16; any drift would do, as it is corrected for."""

    class Low(Edge):
        def forward(self, x):
            class_logits, validity = super().forward(x)
            return class_logits.to(dtype), validity.to(dtype)

    sampler = S2MSampler(LineGenerator(torch.float32), Low(1.0, steep=1.0))
    result = mala(sampler, 0, 1, 2000, 80, proposal=lambda n, g: (torch.full((n, 1), 1 + 1e-5), torch.zeros(n)))
    assert stats.kstest(result.samples[:, 0].numpy(), edge_cdf(1.0, steep=1.0)).pvalue > LEVEL


# --- effective samples and R-hat ------------------------------------------------------------------


def autoregression(phi, steps=600, chains=100, seed=0):
    rng = np.random.default_rng(seed)
    x = np.empty((steps, chains))
    x[0] = rng.normal(size=chains)
    for t in range(1, steps):
        x[t] = phi * x[t - 1] + math.sqrt(1 - phi**2) * rng.normal(size=chains)
    return x


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.6, 0.9, -0.3])
def test_autoregressions(phi):
    """(1 - phi) / (1 + phi) effective samples per draw."""
    ess, r_hat = mixing(autoregression(phi, steps=4000 if phi > 0.5 else 600))
    assert ess == pytest.approx((1 - phi) / (1 + phi), rel=0.1)
    assert r_hat == pytest.approx(1, abs=0.02)


def test_anticorrelated_chains_are_bounded():
    trace = autoregression(-0.98)
    ess, _ = mixing(trace)
    assert ess == pytest.approx(math.log10(trace.size))


def test_constant_chains():
    assert mixing(np.full((50, 4), 2.5)) == (0.0, math.inf)
    assert mixing(np.tile([1.0, 2.0, 3.0], (50, 1))) == (0.0, math.inf)
    assert mixing(np.repeat([1.0, 2.0], 25)[:, None]) == (0.0, math.inf)  # one jump, between its halves


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_too_short_to_tell(steps):
    assert all(math.isnan(value) for value in mixing(np.random.default_rng(0).normal(size=(steps, 5))))


def test_chains_that_disagree():
    trace = autoregression(0.3)
    apart = trace + 5 * (np.arange(trace.shape[1]) % 2)
    ess, r_hat = mixing(apart)
    assert r_hat == pytest.approx(math.sqrt(1 + 6.25), rel=0.05)
    assert ess < 0.02
    drifting = trace + np.linspace(0, 5, len(trace))[:, None]  # which halves of one chain show
    assert mixing(drifting)[1] > 1.3
    assert mixing(drifting[:, :1])[1] > 1.3


def by_the_formulas(x):
    """Equations 3.1 to 3.4 and 10 of Vehtari et al., one lag at a time."""
    half = len(x) // 2
    x = np.concatenate([x[:half], x[-half:]], axis=1)
    n, m = x.shape
    within = np.mean([np.sum((c - c.mean()) ** 2) / (n - 1) for c in x.T])
    between = n * np.sum((x.mean(0) - x.mean()) ** 2) / (m - 1)
    plus = (n - 1) / n * within + between / n

    def rho(t):
        if t == 0:
            return 1.0
        covariances = [np.sum((c[: n - t] - c.mean()) * (c[t:] - c.mean())) / (n - 1) for c in x.T]
        return 1 - (within - np.mean(covariances)) / plus

    total, smallest, t = 0.0, math.inf, 0
    while t + 1 < n:
        pair = rho(t) + rho(t + 1)
        if pair <= 0:
            break
        smallest = min(smallest, pair)
        total += smallest
        t += 2
    return 1 / max(2 * total - 1, 1 / math.log10(n * m)), math.sqrt(plus / within)


@settings(deadline=None, max_examples=100)
@given(
    steps=st.integers(4, 60),
    chains=st.integers(1, 6),
    phi=st.floats(-0.9, 0.95),
    apart=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 2**16),
    scale=st.floats(1e-3, 1e3),
    shift=st.floats(-1e3, 1e3),
)
def test_mixing_is_that_of_the_formulas(steps, chains, phi, apart, seed, scale, shift):
    trace = autoregression(phi, steps, chains, seed) + apart * np.arange(chains)
    found = mixing(trace)
    assert found == pytest.approx(by_the_formulas(trace), rel=1e-6)
    assert mixing(scale * trace[:, ::-1]) == pytest.approx(found, rel=1e-6)
    assert mixing(trace + shift) == pytest.approx(found, rel=1e-4)
    half = steps // 2
    assert 0 < found[0] <= math.log10(2 * half * chains) + 1e-9


class Needle(nn.Module):
    """Attribute 0 only within 1e-9 of 0.5, which no Langevin step hits."""

    def forward(self, x):
        has = torch.where((x[:, 0] - 0.5).abs() < 1e-9, 5.0, -5.0) + 0 * x[:, 0]
        return torch.stack([has, 0 * has], 1), 0 * has


def at_the_needle(n, generator):
    return torch.full((n, 1), 0.5, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)


@pytest.mark.parametrize("n_chains", [1, 20])
def test_chains_that_are_stuck_say_so(n_chains):
    result = mala(S2MSampler(LineGenerator(), Needle()), 0, 1, n_chains, 40, proposal=at_the_needle)
    d = result.diagnostics
    assert (result.samples == 0.5).all()
    assert (d.acceptance_rate, d.support_rate, d.ess_per_proposal, d.r_hat) == (0, 0, 0, math.inf)


@pytest.mark.parametrize(("n_steps", "tells"), [(1, False), (2, False), (6, False), (7, False), (8, True)])
def test_chains_too_short_to_tell_are_not_stuck(n_steps, tells):
    """Four steps after warm-up, which is the first half, tell."""
    stuck = mala(S2MSampler(LineGenerator(), Needle()), 0, 1, 20, n_steps, proposal=at_the_needle).diagnostics
    moving = mala(gaussian(), (0,), (), 20, n_steps).diagnostics
    if tells:
        assert (stuck.r_hat, stuck.ess_per_proposal) == (math.inf, 0)
        assert 0.5 < moving.r_hat < 3
        assert moving.ess_per_proposal > 0
    else:
        assert stuck.r_hat is moving.r_hat is None
        assert math.isnan(stuck.ess_per_proposal)
        assert math.isnan(moving.ess_per_proposal)


def test_the_density_of_latents_has_to_be_known():
    with pytest.raises(ValueError, match="at step 0 returned no log weights: Langevin chains need"):
        mala(rowwise(), I, J, proposal=lambda n, g: torch.rand(n, 4, generator=g))
