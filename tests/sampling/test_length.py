"""How long chains run, and at which steps they give samples. Statistical tests: fixed seeds, level 1e-3."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_exactness import chi_square_p
from toys import (
    DiscreteClassifier,
    DiscreteGenerator,
    Interrupted,
    RowwiseClassifier,
    RowwiseGenerator,
    class_first_gamma,
    discrete,
    in_blocks,
    rowwise,
    true_joint_class,
)

from spml_fast import IMH, LatentMixture, MinMax, Plan, Run, S2MSampler, s2m_sample
from spml_fast.sampling import SamplingWarning
from spml_fast.sampling.length import bound_steps

LEVEL = 1e-3
FIRST_LOOK = IMH.first_look
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*never met the support", "ignore:.*the bound on the distance", "ignore:.*are missing"
)
ONE_STEP = Plan(batch_size=10**6, block_steps=1)
I, J = (0, 1), (2,)  # of RowwiseGenerator: M is about 18, so automatic chains look more than once


def rows_equal(a, b):
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("samples", "latents", "log_weights", "chains"))


def slice_of(result, rows):
    return [getattr(result, f)[rows] for f in ("samples", "latents", "log_weights", "chains")]


def bound(diagnostics, n):
    return (1 - 1 / diagnostics.max_weight_ratio) ** n


# --- the arithmetic -------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(tol=st.floats(1e-6, 0.99), ratio=st.floats(1.0, 1e6))
def test_needed_is_the_smallest_number_of_steps(tol, ratio):
    n = bound_steps(ratio, tol)
    assert n == int(n) >= 1
    assert (1 - 1 / ratio) ** n <= tol * (1 + 1e-9)
    assert n == 1 or (1 - 1 / ratio) ** (n - 1) > tol * (1 - 1e-9)


def test_needed_without_weights():
    assert bound_steps(math.inf, 0.1) == math.inf
    assert bound_steps(math.nan, 0.1) == math.inf
    assert bound_steps(1.0, 0.1) == 1
    assert bound_steps(1 - 1e-12, 0.1) == 1


# --- automatic length -----------------------------------------------------------------------------


@pytest.mark.parametrize("tol", [0.9, 0.2, 0.05, 0.01, 1e-4])
def test_auto_stops_at_the_first_look_that_meets_the_bound(tol):
    """The looks, done by hand: runs of fixed length up to each of them."""
    result = rowwise().sample(I, J, 300, "auto", method=IMH(tol=tol), seed=5)
    steps = FIRST_LOOK
    while True:
        fixed = rowwise().sample(I, J, 300, steps, seed=5)
        if bound(fixed.diagnostics, steps) <= tol:
            break
        ratio = fixed.diagnostics.max_weight_ratio
        needed = math.ceil(math.log(tol) / math.log(1 - 1 / ratio))
        steps = min(2 * steps, max(steps + 1, needed))
    d = result.diagnostics
    assert d.n_steps == steps
    assert rows_equal(result, fixed)
    assert d.burn_in == d.n_steps
    assert d.thin <= d.burn_in
    assert bound(d, d.thin) <= tol
    assert d.tv_bound <= tol
    assert d.max_weight_ratio == fixed.diagnostics.max_weight_ratio
    assert not d.interrupted


def test_auto_by_default_asks_for_a_hundredth():
    d = rowwise().sample(I, J, 100, "auto", seed=0).diagnostics
    assert bound(d, d.n_steps) <= 0.01
    assert d.n_steps > 2 * FIRST_LOOK  # several looks, or the tests here show little
    assert rows_equal(rowwise().sample(I, J, 100, "auto", seed=0), rowwise().sample(I, J, 100, d.n_steps, seed=0))


@pytest.mark.parametrize("max_steps", [3, 16, 20, 40])
def test_the_budget_is_kept_and_said(max_steps):
    message = rf"^\+0\+1-2: .*max_steps={max_steps} .*tol=0\.001.*proposal=Mixture\(\).*validity_temperature"
    with pytest.warns(SamplingWarning, match=message) as caught:
        result = rowwise().sample(I, J, 500, "auto", method=IMH(tol=1e-3, max_steps=max_steps), seed=0)
    assert len([w for w in caught if "max_steps" in str(w.message)]) == 1
    d = result.diagnostics
    assert d.n_steps == d.burn_in == max_steps
    assert d.tv_bound > 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert rows_equal(result, rowwise().sample(I, J, 500, max_steps, seed=0))


def test_a_bound_that_was_met_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rowwise().sample(I, J, 300, "auto", method=IMH(tol=0.05), seed=0)
        rowwise().sample(0, (), 300, 40, seed=0)  # long enough for the bound to be below 0.1


def test_auto_without_any_support_uses_the_budget():
    sampler = rowwise(clf=lambda x: (x * 0, x[:, 0]))
    with pytest.warns(SamplingWarning) as caught:
        result = sampler.sample(0, 1, 20, "auto", method=IMH(max_steps=50), seed=0)
    assert {"never met" in str(w.message) for w in caught} == {True, False}
    assert len(result.samples) == 0
    assert (result.diagnostics.n_steps, result.diagnostics.tv_bound) == (50, 1.0)


TOL, N_CHAINS, SEEDS = 0.05, 20_000, 20
TARGET = ((0, 1, 2), ())


def total_variation(result):
    expected = true_joint_class(*TARGET)
    shares = np.bincount(result.samples[:, 0].numpy(), minlength=len(expected)) / len(result.samples)
    return np.abs(shares - expected).sum() / 2


def noise(n):
    """Expected TV of n draws' shares, were they exact: at most half the sum of their standard deviations."""
    p = true_joint_class(*TARGET)
    return np.sqrt(p * (1 - p) / n).sum() / 2


def hard_discrete():
    """The discrete toy, but proposals hold little of what has all attributes, and in wrong shares."""

    class Rare(DiscreteGenerator):
        def __init__(self):
            super().__init__()
            p = torch.diff(self.cdf[0], prepend=torch.zeros(1), append=torch.ones(1)).double()
            p[13:] = torch.tensor([0.035, 0.01])
            self.cdf = (p / p.sum()).cumsum(0)[:-1][None].contiguous()

    G = Rare()
    weight, plan = MinMax(gamma=class_first_gamma()), Plan(batch_size=2**16)
    return S2MSampler(G, DiscreteClassifier(G, class_first=True), weight=weight, plan=plan)


@pytest.mark.slow
def test_the_distance_to_the_target_is_below_tol():
    """Estimated from 20,000 chains. An estimate's mean is at most the true distance plus ``noise``."""
    sampler = hard_discrete()
    met, lengths = 0, []
    for seed in range(SEEDS):
        result = sampler.sample(*TARGET, N_CHAINS, "auto", method=IMH(tol=TOL), seed=seed)
        lengths.append(result.diagnostics.n_steps)
        assert result.diagnostics.tv_bound <= TOL
        met += total_variation(result) <= TOL + noise(N_CHAINS)
    assert met >= SEEDS - 1
    assert min(lengths) > FIRST_LOOK  # or nothing was automatic
    short = sampler.sample(*TARGET, N_CHAINS, max(lengths) // 10, seed=0)
    assert total_variation(short) > TOL + noise(N_CHAINS)  # the estimate sees chains that are too short


@pytest.mark.slow
def test_auto_does_not_depend_on_the_batches(threads):
    method = IMH(tol=0.02, samples_per_chain=3)
    expected = rowwise().sample(I, J, 150, "auto", method=method, seed=3)
    for n_threads, batch_size, block_steps in itertools.product((1, 2), (64, 10**6), (1, 7, 200)):
        threads(n_threads)
        sampler = rowwise(plan=Plan(batch_size, block_steps))
        result = sampler.sample(I, J, 150, "auto", method=method, seed=3)
        assert rows_equal(result, expected)
        for name in ("n_steps", "burn_in", "thin", "tv_bound", "max_weight_ratio", "ess_per_proposal"):
            assert getattr(result.diagnostics, name) == getattr(expected.diagnostics, name)


def test_several_targets_run_as_long_as_the_neediest():
    targets = [((0,), ()), (I, J), ((0,), (1, 2))]
    alone = [rowwise().sample(*t, 200, "auto", method=IMH(tol=0.02), seed=4).diagnostics for t in targets]
    together = rowwise().sample_targets(targets, 200, "auto", method=IMH(tol=0.02), seed=4)
    n = {result.diagnostics.n_steps for result in together}
    assert len(n) == 1
    (n,) = n
    assert len({d.n_steps for d in alone}) > 1
    assert n == max(alone, key=lambda d: d.max_weight_ratio).n_steps
    assert all(result.diagnostics.tv_bound <= 0.02 for result in together)
    for result, fixed in zip(together, rowwise().sample_targets(targets, 200, n, seed=4), strict=True):
        assert rows_equal(result, fixed)


def test_each_pool_of_a_conditional_generator_has_its_own_length():
    G = DiscreteGenerator(conditional=True)
    sampler = S2MSampler(G, DiscreteClassifier(G, class_first=True), weight=MinMax(gamma=class_first_gamma()))
    targets = [((0,), (1, 2)), ((1,), ()), ((2, 0), ())]
    together = sampler.sample_targets(targets, 500, "auto", method=IMH(tol=1e-3), seed=4)
    for target, result in zip(targets, together, strict=True):
        alone = sampler.sample(*target, 500, "auto", method=IMH(tol=1e-3), seed=4)
        assert alone.diagnostics.n_steps == result.diagnostics.n_steps
        assert rows_equal(alone, result)
    assert len({result.diagnostics.n_steps for result in together}) == 3


def test_auto_with_other_proposals():
    one = torch.ones(1, dtype=torch.float64)
    mixture = LatentMixture(one, torch.full((1, 4), 0.3).double(), torch.full((1, 4), 1.1).double(), 0.3)

    def draw(n, generator):
        return torch.randn(n, 4, generator=generator)

    for proposal in (mixture, draw):
        result = rowwise().sample(I, J, 200, "auto", method=IMH(tol=0.02), seed=4, proposal=proposal)
        assert result.diagnostics.tv_bound <= 0.02
        fixed = rowwise().sample(I, J, 200, result.diagnostics.n_steps, seed=4, proposal=proposal)
        assert rows_equal(result, fixed)


# --- Ctrl-C ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 7, FIRST_LOOK, FIRST_LOOK + 3, 40])
def test_ctrl_c_before_the_automatic_length_is_known(at):
    sampler = rowwise(Interrupted(at), plan=ONE_STEP)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = sampler.sample(I, J, 200, "auto", method=IMH(tol=1e-4, samples_per_chain=2), seed=0)
        assert not any("max_steps" in str(w.message) for w in caught)
        expected = rowwise().sample(I, J, 100, at, seed=0)
    d = result.diagnostics
    assert d.interrupted
    assert (d.n_steps, d.burn_in) == (at, at)
    assert d.tv_bound == bound(d, at)
    assert rows_equal(result, expected)


def test_ctrl_c_before_anything_is_raised():
    with pytest.raises(KeyboardInterrupt):
        rowwise(Interrupted(0), plan=ONE_STEP).sample(I, J, 200, "auto", seed=0)


@pytest.mark.parametrize("n_steps", ["auto", 60])
def test_ctrl_c_between_samples_keeps_those_taken(n_steps):
    method = IMH(tol=0.05, samples_per_chain=3, thin=25)
    full = rowwise().sample(I, J, 300, n_steps, method=method, seed=0)
    burn_in = full.diagnostics.burn_in
    for late, taken in ((0, 1), (10, 1), (24, 1), (25, 2), (30, 2), (49, 2)):
        sampler = rowwise(Interrupted(burn_in + late), plan=ONE_STEP)
        result = sampler.sample(I, J, 300, n_steps, method=method, seed=0)
        d = result.diagnostics
        assert d.interrupted
        assert (d.n_steps, d.burn_in, d.thin) == (burn_in + late, burn_in, 25)
        rows = slice(0, 100 * taken)
        assert len(result.samples) == 100 * taken
        for got, expected in zip(slice_of(result, rows), slice_of(full, rows), strict=True):
            assert torch.equal(got, expected)


# --- several samples of each chain ----------------------------------------------------------------


@pytest.mark.parametrize(("n_samples", "per_chain", "n_chains"), [(12, 3, 4), (10, 3, 4), (5, 8, 1), (7, 1, 7)])
def test_rows_and_chains(n_samples, per_chain, n_chains):
    method = IMH(samples_per_chain=per_chain, thin=7)
    result = rowwise().sample(I, J, n_samples, 40, method=method, seed=2)
    d = result.diagnostics
    assert result.samples.shape == (n_samples, 3)
    assert result.latents.shape == (n_samples, 4)
    assert result.log_weights.shape == (n_samples,)
    assert result.chains.tolist() == [row % n_chains for row in range(n_samples)]
    assert (d.n_chains, d.burn_in, d.thin) == (n_chains, 40, 7)
    assert d.n_steps == 40 + (per_chain - 1) * 7
    assert d.tv_bound == bound(d, 40 if per_chain == 1 else 7)
    whole = rowwise().sample(I, J, n_chains * per_chain, 40, method=method, seed=2)
    for got, expected in zip(slice_of(result, slice(None)), slice_of(whole, slice(n_samples)), strict=True):
        assert torch.equal(got, expected)


def assert_states_of_the_long_chain(make, n_chains, n_steps, method, **options):
    """Sample i of each chain is the state that a run of burn_in + i * thin steps ends in, bit for bit."""
    per_chain = method.samples_per_chain
    result = make().sample_targets([(I, J), ((0,), (1,))], n_chains * per_chain, n_steps, method=method, **options)
    for t, several in enumerate(result):
        d = several.diagnostics
        assert len(several.samples) == n_chains * per_chain
        for i in range(per_chain):
            steps = d.burn_in + i * d.thin
            single = make().sample_targets([(I, J), ((0,), (1,))], n_chains, steps, **options)[t]
            rows = slice(i * n_chains, (i + 1) * n_chains)
            for got, expected in zip(slice_of(several, rows), slice_of(single, slice(None)), strict=True):
                assert torch.equal(got, expected)
        assert d.n_steps == d.burn_in + (per_chain - 1) * d.thin
    return result


@pytest.mark.slow
@pytest.mark.parametrize("block_steps", [None, 1, 7])
@pytest.mark.parametrize(("n_steps", "thin"), [(50, None), (50, 3), (60, 75), ("auto", None), ("auto", 11)])
def test_samples_are_states_of_the_long_chain(n_steps, thin, block_steps):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = assert_states_of_the_long_chain(
            lambda: rowwise(plan=Plan(block_steps=block_steps)),
            60,
            n_steps,
            IMH(tol=0.05, samples_per_chain=3, thin=thin),
            seed=9,
        )
    d = results[0].diagnostics
    if thin is not None:
        assert d.thin == thin
    elif n_steps == 50:
        assert d.thin == 50
    else:
        at_burn_in = rowwise().sample_targets([(I, J), ((0,), (1,))], 60, d.burn_in, seed=9)
        needed = [bound_steps(result.diagnostics.max_weight_ratio, 0.05) for result in at_burn_in]
        assert d.thin == max(needed) <= d.burn_in


@pytest.mark.parametrize("with_weights", [False, True])
def test_samples_of_drawn_proposals(with_weights):
    def draw(n, generator):
        z = 1.2 * torch.randn(n, 4, generator=generator)
        return (z, -(z * z).sum(1) / 2 * (1 - 1 / 1.44)) if with_weights else z

    make = lambda: rowwise(plan=in_blocks(4))  # noqa: E731
    assert_states_of_the_long_chain(make, 60, 50, IMH(samples_per_chain=3, thin=9), seed=9, proposal=draw)


def test_samples_of_mixture_proposals():
    one = torch.ones(1, dtype=torch.float64)
    mixture = LatentMixture(one, torch.full((1, 4), 0.3).double(), torch.full((1, 4), 1.1).double(), 0.3)
    method = IMH(samples_per_chain=3, thin=9)
    for first_chain in (0, 5):
        run = Run(first_chain=first_chain)
        assert_states_of_the_long_chain(rowwise, 60, 50, method, seed=9, proposal=mixture, run=run)


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [False, True])
def test_samples_of_a_stochastic_generator(drawn):
    """x depends on noise: each row keeps the x and the latent that met in one call."""
    seen = {}

    class Noisy(RowwiseGenerator):
        def forward(self, z):
            x = super().forward(z) + 0.3 * torch.randn(len(z), 1)
            seen.update({tuple(latent.tolist()): row for latent, row in zip(z, x, strict=True)})
            return x

    def make():
        torch.manual_seed(11)  # of the noise
        return rowwise(Noisy(), stochastic=True, plan=ONE_STEP)

    def draw(n, generator):
        return torch.randn(n, 4, generator=generator)

    options = dict(proposal=draw) if drawn else {}
    assert_states_of_the_long_chain(make, 40, 30, IMH(samples_per_chain=3, thin=10), seed=9, **options)
    seen.clear()
    sampler = rowwise(Noisy(), stochastic=True, plan=in_blocks(7))
    result = sampler.sample(I, J, 120, "auto", method=IMH(tol=0.1, samples_per_chain=3), seed=9, **options)
    assert len(result.samples) == 120
    for latent, x in zip(result.latents, result.samples, strict=True):
        assert torch.equal(seen[tuple(latent.tolist())], x)


@pytest.mark.slow
@pytest.mark.parametrize("n_steps", [80, "auto"])
def test_thinned_samples_have_the_target_distribution(n_steps):
    """2,000 chains of 50 samples each; bound and correlation of neighbours are under 1e-4."""
    result = discrete().sample(*TARGET, 100_000, n_steps, method=IMH(tol=1e-4, samples_per_chain=50), seed=7)
    assert len(result.samples) == 100_000
    d = result.diagnostics
    assert d.n_chains == 2000
    assert bound(d, d.thin) < 1.5e-4
    assert chi_square_p(result.samples[:, 0].numpy(), true_joint_class(*TARGET)) > LEVEL


@pytest.mark.slow
def test_too_little_thinning_would_be_seen():
    """The power of the test above: neighbours one step apart are copies as often as the chain rejects."""
    result = discrete().sample(*TARGET, 100_000, 80, method=IMH(samples_per_chain=1000, thin=1), seed=7)
    assert chi_square_p(result.samples[:, 0].numpy(), true_joint_class(*TARGET)) < LEVEL


def test_chains_of_any_number_agree_with_several_samples():
    method = IMH(samples_per_chain=3, thin=7)
    many = rowwise().sample(I, J, 300, 40, method=method, seed=2)
    shifted = rowwise().sample(I, J, 30, 40, method=method, seed=2, run=Run(first_chain=50))
    assert torch.equal(shifted.samples.view(3, 10, 3), many.samples.view(3, 100, 3)[:, 50:60])


def rare(x):
    a = torch.stack([torch.where(x[:, 0] > 3.2, 5.0, -5.0), torch.zeros(len(x))], 1)
    return a, torch.zeros(len(x))


def test_a_chain_gives_samples_once_it_has_met_the_support():
    sampler = rowwise(clf=rare)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = sampler.sample(0, 1, 300, 20, method=IMH(samples_per_chain=3), seed=0)
        stops = [sampler.sample(0, 1, 100, n, seed=0) for n in (20, 40, 60)]
    assert result.chains.tolist() == [c for stop in stops for c in stop.chains.tolist()]
    assert torch.equal(result.samples, torch.cat([stop.samples for stop in stops]))
    assert (result.samples[:, 0] > 3.2).all()


def test_samples_that_are_missing_are_said():
    """Chains that met the support only after their first sample was due give fewer samples."""
    with pytest.warns(SamplingWarning):
        result = rowwise(clf=rare).sample(0, 1, 300, 20, method=IMH(samples_per_chain=60, thin=20), seed=0)
    assert len(result.samples) < 300
    assert result.diagnostics.chains_without_support == 0


@pytest.mark.parametrize("thin", [2, None])
def test_the_budget_is_not_blamed_for_thinning(thin):
    """With thin=2 it is the user who misses the bound; with none, M has grown a little since the burn-in."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method = IMH(tol=0.05, samples_per_chain=3, thin=thin)
        d = rowwise().sample(I, J, 180, "auto", method=method, seed=9).diagnostics
    assert d.burn_in < 10_000
    assert not any("after max_steps=10000 steps" in str(w.message) for w in caught)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(n_steps="all"), ValueError, "n_steps must be a number or 'auto', got 'all'"),
        (dict(n_steps="Auto"), ValueError, "n_steps must be a number or 'auto'"),
        (dict(n_steps=2.5), TypeError, "n_steps must be an integer, got 2.5"),
        (dict(n_steps=True), TypeError, "n_steps must be an integer, got True"),
        (dict(n_steps=2**31), ValueError, "n_steps must be between 1 and"),
        (
            dict(method=IMH(samples_per_chain=3), n_steps=2**30),
            ValueError,
            r"would take 3221225472 steps, more than 2\^31",
        ),
        (
            dict(proposal=np.zeros((5, 6, 4)), method=IMH(samples_per_chain=2)),
            ValueError,
            "given latents fix the number of steps",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        rowwise().sample(0, **arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(tol=0), ValueError, "tol must be between 0 and 1, got 0"),
        (dict(tol=1), ValueError, "tol must be between 0 and 1, got 1"),
        (dict(tol=-0.1), ValueError, "tol must be between 0 and 1"),
        (dict(tol=math.nan), ValueError, "tol must be between 0 and 1, got nan"),
        (dict(max_steps=0), ValueError, "max_steps must be between 1 and"),
        (dict(max_steps=1e4), TypeError, "max_steps must be an integer, got 10000.0"),
        (dict(samples_per_chain=0), ValueError, "samples_per_chain must be between 1 and"),
        (dict(samples_per_chain=1.5), TypeError, "samples_per_chain must be an integer"),
        (dict(samples_per_chain=2, thin=0), ValueError, "thin must be between 1 and"),
        (dict(samples_per_chain=2, thin=0.5), TypeError, "thin must be an integer"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        IMH(**options)


def test_thinning_does_not_enter_the_bound_of_chains_with_one_sample():
    bounds = [
        rowwise().sample(I, J, 100, 60, method=IMH(thin=thin), seed=0).diagnostics.tv_bound
        for thin in (None, 1, 7)
    ]
    assert bounds[0] == bounds[1] == bounds[2] < 0.1


@pytest.mark.parametrize("n_steps", ["auto", "all"])
def test_given_latents_have_no_automatic_length(n_steps):
    with pytest.raises(ValueError, match="n_steps"):
        rowwise().sample(0, proposal=np.zeros((5, 6, 4)), n_steps=n_steps)


# --- defaults -------------------------------------------------------------------------------------


def test_defaults_are_one_sample_at_the_end():
    plain = rowwise().sample(I, J, seed=0)
    d = plain.diagnostics
    assert (d.n_chains, d.n_steps, d.burn_in, d.thin) == (64, 200, 200, 200)
    assert d.tv_bound == bound(d, 200)
    assert plain.adaptation is None
    spelt_out = dict(method=IMH(samples_per_chain=1, thin=None, max_steps=3, tol=0.5), proposal=None, run=Run())
    assert rows_equal(rowwise().sample(I, J, 64, 200, seed=0, **spelt_out), plain)
    assert torch.equal(s2m_sample(RowwiseGenerator(), RowwiseClassifier(), I, J, seed=0), plain.samples)
    assert {"burn_in", "thin"} <= set(d.to_dict())
    given_latents = rowwise().sample(0, proposal=torch.randn(5, 6, 4), seed=0).diagnostics
    assert (given_latents.n_steps, given_latents.burn_in, given_latents.thin) == (5, 5, 5)
