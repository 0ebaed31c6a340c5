"""Methods that take their samples from all proposals of a run: rejection and importance resampling.

Statistical tests: fixed seeds, level 1e-3.
"""

import functools
import json
import math
import warnings
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_exactness import chi_square_p
from torch import nn
from toys import (
    IMPOSSIBLE,
    PROBE_ROWS,
    DiscreteGenerator,
    Interrupted,
    LineGenerator,
    RowwiseClassifier,
    RowwiseGenerator,
    TiltClassifier,
    assert_same,
    counts_only,
    discrete,
    in_blocks,
    rowwise,
    true_joint_class,
)

from spml_fast import (
    LatentMixture,
    MinMax,
    Mixture,
    Plan,
    Rejection,
    Resample,
    Run,
    S2MSampler,
    _ops,
    reference,
    s2m_sample,
)
from spml_fast.sampling import SamplingWarning
from spml_fast.sampling import run as loop
from spml_fast.sampling.kernels import pooled
from spml_fast.sampling.kernels.pooled import RESAMPLING_BIAS, accepted, rejection_uniforms, resampled

LEVEL = 1e-3
pytestmark = pytest.mark.filterwarnings("ignore:.*the bound on the distance", "ignore:.*samples of .* are missing")
SURE = stats.norm.isf(LEVEL / 2)  # standard errors
METHODS = {"rejection": Rejection, "resample": Resample}
DTYPES = [torch.float32, torch.float64]
JOINT_CLASSES = [((0,), ()), ((0, 1), ()), ((0,), (1, 2)), ((1, 2), (0,)), ((0, 1, 2), ()), ((2,), (0,))]
I, J = (0, 1), (2,)  # of RowwiseGenerator: M is about 18


class Double(RowwiseGenerator):
    """In float64, so that no choice hangs on how the kernel and the reference round."""

    def __init__(self):
        super().__init__()
        self.register_buffer("anchor", torch.zeros(1, dtype=torch.float64))


def line(tilt, **options):
    return S2MSampler(LineGenerator(), TiltClassifier(tilt), **options)


# --- the choice itself ----------------------------------------------------------------------------


def picked_of(log_weights, n, uniform):
    """The indices that are resampled, of weights in one block."""
    return resampled(lambda: [log_weights], n, uniform)


log_weights_lists = st.lists(
    st.one_of(st.floats(-40, 40), st.just(-math.inf), st.sampled_from([0.0, -800.0])), min_size=1, max_size=60
)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(
    log_weights=log_weights_lists,
    n=st.integers(1, 200),
    uniform=st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 2**-33, 1 - 2**-33, 1 - 2**-53])),
)
def test_resampling_is_systematic(log_weights, n, uniform):
    log_weights = np.array(log_weights)
    picked = picked_of(log_weights, n, uniform)
    if (log_weights == -math.inf).all():
        assert len(picked) == 0
        return
    assert picked.shape == (n,)
    assert (log_weights[picked] > -math.inf).all()
    counts = np.bincount(picked, minlength=len(log_weights))
    weights = np.exp(log_weights - log_weights.max())
    mean = n * weights / weights.sum()
    slack = 1e-9 * n
    assert (counts >= np.floor(mean - slack)).all()
    assert (counts <= np.ceil(mean + slack)).all()


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(log_weights=log_weights_lists.filter(lambda x: max(x) > -math.inf), n=st.integers(1, 20))
def test_expected_counts_are_the_weights(log_weights, n):
    """Over a fine grid of offsets: n w / sum w on average."""
    log_weights = np.array(log_weights)
    grid = (np.arange(500) + 0.5) / 500
    counts = sum(np.bincount(picked_of(log_weights, n, u), minlength=len(log_weights)) for u in grid) / len(grid)
    weights = np.exp(log_weights - log_weights.max())
    np.testing.assert_allclose(counts, n * weights / weights.sum(), atol=4e-3 * n)


def all_at_once(log_weights, n, uniform):
    """The indices that are resampled, by one sum over all weights."""
    if (log_weights == -math.inf).all():
        return np.zeros(0, dtype=int)
    sums = np.cumsum(np.exp(log_weights.astype(np.float64) - log_weights.max()))
    teeth = (np.arange(n) + uniform) / n * sums[-1]
    return np.minimum(np.searchsorted(sums, teeth, side="right"), np.flatnonzero(log_weights > -math.inf)[-1])


cuts_of_60 = st.sets(st.integers(1, 59))


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(
    log_weights=log_weights_lists,
    dtype=st.sampled_from([np.float32, np.float64]),
    n=st.integers(1, 200),
    uniform=st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 2**-33, 1 - 2**-33, 1 - 2**-53])),
    cuts=cuts_of_60,
)
def test_resampling_from_blocks_is_resampling_from_all_at_once(log_weights, dtype, n, uniform, cuts):
    """Bit for bit: sums are carried from one block to the next."""
    log_weights = np.array(log_weights, dtype)
    blocks = np.split(log_weights, sorted(cut for cut in cuts if cut < len(log_weights)))
    expected = all_at_once(log_weights, n, uniform)
    assert np.array_equal(picked_of(log_weights, n, uniform), expected)
    assert np.array_equal(resampled(lambda: iter(blocks), n, uniform), expected)


def test_resampling_holds_few_blocks_at_a_time():
    alive, most = weakref.WeakValueDictionary(), []

    def blocks():
        for number in range(20):
            block = np.linspace(-3, 0, 1000) + number % 3
            alive[number] = block
            most.append(len(alive))
            yield block
            del block

    assert len(resampled(blocks, 500, 0.3)) == 500
    assert len(most) == 60
    assert max(most) < 5


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    pairs=st.lists(
        st.tuples(st.one_of(st.floats(-40, 40), st.just(-math.inf)), st.floats(2**-33, 1)), min_size=1, max_size=50
    ),
    lower=st.floats(0, 5),
)
def test_acceptance_is_by_the_share_of_the_bound(pairs, lower):
    log_weights, uniforms = (torch.tensor(part, dtype=torch.float64) for part in zip(*pairs, strict=True))
    log_uniforms = uniforms.log()
    top = float(log_weights.max())
    mask = accepted(log_weights, log_uniforms, top)
    assert mask.dtype == torch.bool
    assert not mask[log_weights == -math.inf].any()
    if top > -math.inf:
        assert mask[log_weights == top].all()
        clear = (uniforms - (log_weights - top).exp()).abs() > 1e-12
        assert torch.equal(mask[clear], (uniforms < (log_weights - top).exp())[clear])
        assert not (mask & ~accepted(log_weights, log_uniforms, top - lower)).any()


def test_uniforms_are_those_of_the_accept_step():
    chains = torch.tensor([3, 4, 2**33])
    got = rejection_uniforms(chains.expand(3, -1), torch.arange(3)[:, None].expand(-1, 3), -5).exp()
    for step in range(3):
        expected = reference.philox_uniform(chains.tolist(), [step] * 3, -5)
        torch.testing.assert_close(got[step], expected, rtol=1e-14, atol=0)


# --- the whole run, by hand -----------------------------------------------------------------------


def the_pool(G, clf, n_chains, n_steps, seed, first_chain=0, label=None, target=(I, J), **options):
    """Latents (S, C, D), x and float64 log weights (S, C) of all proposals, by the specification."""
    steps, chains = np.divmod(np.arange(n_chains * n_steps), n_chains)
    chains = torch.from_numpy(chains + first_chain)
    steps = torch.from_numpy(steps)
    z = _ops.philox_normal(chains, steps, seed, G.z_dim, dtype=torch.float64)
    x = G(z) if label is None else G(z, torch.full((len(z),), label))
    output = clf(x)
    class_logits, fake, validity = output if len(output) == 3 else (output[0], None, output[1])
    weights = reference.s2m_log_weight(
        class_logits.double(),
        validity.double(),
        *target,
        fake_logits=None if label is None else fake,
        proposal_class=label or 0,
        **options,
    )
    uniforms = _ops.philox_uniform(chains, steps, seed, dtype=torch.float64)
    return z, x, weights, uniforms


@pytest.mark.parametrize(("n_chains", "n_steps", "first_chain", "seed"), [(40, 25, 0, 3), (40, 5, 1000, -7)])
def test_rejection_accepts_what_the_specification_accepts(n_chains, n_steps, first_chain, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = Run(first_chain=first_chain)
        result = rowwise(Double()).sample(I, J, n_chains, n_steps, method="rejection", seed=seed, run=run)
    z, x, weights, uniforms = the_pool(Double(), RowwiseClassifier(), n_chains, n_steps, seed, first_chain)
    (rows,) = torch.nonzero(uniforms <= (weights - weights.max()).exp(), as_tuple=True)
    assert (n_steps == 25) == (len(rows) > n_chains)  # too many, and too few
    kept = rows[:n_chains]
    assert torch.equal(result.latents, z[kept])
    assert torch.equal(result.samples, x[kept])
    torch.testing.assert_close(result.log_weights, weights[kept], rtol=0, atol=1e-12)
    assert torch.equal(result.chains, first_chain + kept % n_chains)
    assert_diagnostics(result, weights, n_chains, n_steps, "rejection", len(torch.unique(kept)))


@pytest.mark.parametrize(("n_chains", "n_steps", "first_chain", "seed"), [(40, 25, 0, 3), (30, 2, 1000, -7)])
def test_resampling_takes_what_the_specification_takes(n_chains, n_steps, first_chain, seed):
    run = Run(first_chain=first_chain)
    result = rowwise(Double()).sample(I, J, n_chains, n_steps, method="resample", seed=seed, run=run)
    z, x, weights, _ = the_pool(Double(), RowwiseClassifier(), n_chains, n_steps, seed, first_chain)
    assert len(result.samples) == n_chains
    # Rows of the result as rows of the pool, in whichever order they come.
    where = {tuple(latent.tolist()): row for row, latent in enumerate(z)}
    rows = torch.tensor([where[tuple(latent.tolist())] for latent in result.latents])
    assert torch.equal(result.samples, x[rows])
    torch.testing.assert_close(result.log_weights, weights[rows], rtol=0, atol=1e-12)
    assert torch.equal(result.chains, first_chain + rows % n_chains)
    mean = n_chains * torch.softmax(weights, 0)
    counts = torch.bincount(rows, minlength=len(z))
    assert ((counts == mean.floor()) | (counts == mean.ceil())).all()
    u = float(reference.philox_uniform([first_chain], [n_steps], seed))
    tooth, total, expected = 0, 0.0, []
    for row, share in enumerate(torch.softmax(weights, 0).tolist()):
        total += share
        while tooth < n_chains and (tooth + u) / n_chains < total:
            expected.append(row)
            tooth += 1
    assert sorted(rows.tolist()) == expected
    assert_diagnostics(result, weights, n_chains, n_steps, "resample", len(torch.unique(rows)))


def assert_diagnostics(result, weights, n_chains, n_steps, method, n_distinct):
    """The fields again, from the log weights of all proposals."""
    d, n = result.diagnostics, n_chains * n_steps
    w = weights.exp().numpy()
    ess = w.sum() ** 2 / (w**2).sum()
    assert (d.method, d.n_chains, d.n_steps, d.burn_in) == (method, n_chains, n_steps, n_steps)
    assert d.n_samples == len(result.samples)
    assert d.acceptance_rate == n_distinct / n
    assert d.support_rate == (w > 0).mean()
    assert d.ess_per_proposal == pytest.approx(ess / n, rel=1e-9)
    assert d.max_weight_ratio == pytest.approx(w.max() / w.mean(), rel=1e-9)
    assert d.log_mean_weight == pytest.approx(math.log(w.mean()), abs=1e-9)
    bound = w.max() / w.sum() if method == "rejection" else min(1, RESAMPLING_BIAS / ess)
    assert d.tv_bound == pytest.approx(bound, rel=1e-9)
    assert (d.chains_without_support, d.interrupted, d.r_hat, d.step_size) == (0, False, None, None)
    assert 0 < d.proposals_per_second < math.inf
    assert min(d.seconds_in_generator, d.seconds_in_classifier, d.seconds_in_sampler) >= 0
    assert json.loads(json.dumps(d.to_dict(), allow_nan=False)) == d.to_dict()


# --- against the exact joint class ----------------------------------------------------------------


def n_and_steps(method):
    # Resampled draws are as good as independent only where the pool holds many times as many effective ones.
    return (100_000, "auto") if method == "rejection" else (20_000, 60)


def drawn_p(sampler, expected, method, I, J, dtype=torch.float64, **options):
    n, n_steps = n_and_steps(method)
    result = sampler.sample(I, J, n, n_steps, method=method, seed=17, **options)
    d = result.diagnostics
    assert len(result.samples) == d.n_samples == n
    assert d.tv_bound < 1e-3
    assert method == "rejection" or d.ess_per_proposal * d.n_steps * d.n_chains > 5 * n
    return chi_square_p(result.samples[:, 0].cpu().numpy(), expected, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("I", "J"), JOINT_CLASSES)
@pytest.mark.parametrize("method", METHODS)
def test_discrete(method, I, J, dtype, device):
    sampler = discrete(dtype, plan=Plan(device=device))
    assert drawn_p(sampler, true_joint_class(I, J), method, I, J, dtype) > LEVEL


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("I", "J", "label"), [((0, 1), (), None), ((1, 2), (0,), 2)])
def test_discrete_with_conditional_proposals(I, J, label, method):
    sampler = discrete(conditional=True)
    assert drawn_p(sampler, true_joint_class(I, J), method, I, J, proposal_class=label) > LEVEL


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("I", "J"), [((0,), (1, 2)), ((0, 1, 2), ())])
def test_discrete_with_labels_drawn_among_positives(I, J, method):
    assert drawn_p(discrete(class_first=False), true_joint_class(I, J), method, I, J) > LEVEL


RATIOS = dict(gamma=[0.5, 1.2, 0.8], gamma_J=[1.0, 0.9, 1.1], temperature=1.5, validity_temperature=0.8)


def by_the_weights(clf, I, J, label=None):
    """Proposal density times weight under RATIOS, by the specification."""
    x = torch.arange(len(clf.validity))[:, None]
    class_logits, fake, validity = clf(x)
    gamma = torch.tensor([RATIOS["gamma_J" if i in J else "gamma"][i] for i in range(3)], dtype=torch.float64)
    log_weight = reference.s2m_log_weight(
        class_logits,
        validity,
        I,
        J,
        log_gamma=gamma.log(),
        temperature=1.5,
        validity_temperature=0.8,
        fake_logits=fake,
        proposal_class=label or 0,
    )
    density = DiscreteGenerator(conditional=label is not None).density()[label or 0]
    p = density * log_weight.exp()
    return (p / p.sum()).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("I", "J", "label"), [((0,), (1,), None), ((0, 1), (), None), ((1,), (2,), 1)])
def test_gamma_and_temperatures(I, J, label, method):
    sampler = discrete(conditional=label is not None, weight=MinMax(**RATIOS))
    expected = by_the_weights(sampler.models.clf, I, J, label)
    assert drawn_p(sampler, expected, method, I, J) > LEVEL
    assert drawn_p(sampler, true_joint_class(I, J), method, I, J) < LEVEL


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("I", "J"), [((0,), (1, 2)), ((2,), (0,))])
def test_a_dropped_max_term_is_caught(I, J, method):
    assert drawn_p(discrete(), true_joint_class(I, J), method, I, ()) < LEVEL


def changed(change):
    """Resampling by other weights."""
    return lambda blocks, n, uniform: resampled(lambda: map(change, blocks()), n, uniform)


def test_dropped_weights_are_caught(monkeypatch):
    monkeypatch.setattr(pooled, "accepted", lambda w, u, bound: accepted(w, u, bound - 1))
    assert drawn_p(discrete(), true_joint_class((0,), ()), "rejection", (0,), ()) < LEVEL
    by_support = changed(lambda log_weights: np.where(log_weights > -np.inf, 0, log_weights))
    monkeypatch.setattr(pooled, "resampled", by_support)
    assert drawn_p(discrete(), true_joint_class((0,), ()), "resample", (0,), ()) < LEVEL


# --- the bias, where it can be seen ---------------------------------------------------------------

TILT = 1.0
HALVES = stats.norm.ppf(np.arange(1, 8) / 8) + TILT
"""Between these, each an eighth of the target lies."""


def bias(method, n_chains, n_steps, n_runs=700, row=None, tilt=TILT, **options):
    """Largest error of P(x < t) over several t, and its standard error; mean tv_bound.

    Of a row drawn at random of each run, or of the given one. Runs average over their rows, so that all count
    alike.
    """
    shares, bounds = [], []
    sampler = line(tilt)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(n_runs):
            result = sampler.sample(0, (), n_chains, n_steps, method=method, seed=seed, **options)
            x = result.samples[:, 0].numpy()
            x = x if row is None else x[[row]]
            shares.append((x[:, None] < HALVES - TILT + tilt).mean(0))
            bounds.append(result.diagnostics.tv_bound)
    shares = np.array(shares)
    error = np.abs(shares.mean(0) - np.arange(1, 8) / 8)
    at = error.argmax()
    return error[at], shares[:, at].std(ddof=1) / n_runs**0.5, np.mean(bounds)


@pytest.mark.slow
@pytest.mark.parametrize(("n_chains", "n_steps"), [(4, 2), (16, 4), (64, 8)])
@pytest.mark.parametrize("method", METHODS)
def test_the_bias_is_within_its_bound(method, n_chains, n_steps):
    error, noise, bound = bias(method, n_chains, n_steps)
    assert error <= bound + SURE * noise
    if n_chains == 4:
        assert error > SURE * noise  # there is a bias to be seen


@pytest.mark.slow
def test_a_bias_beyond_its_bound_would_be_seen(monkeypatch):
    """The power of the test above: a bound on the weights that is too small, and weights left out."""
    monkeypatch.setattr(pooled, "accepted", lambda w, u, bound: accepted(w, u, bound - 3))
    error, noise, bound = bias("rejection", 64, 8)
    assert error > bound + SURE * noise
    monkeypatch.setattr(pooled, "resampled", changed(np.zeros_like))
    error, noise, bound = bias("resample", 64, 8)
    assert error > bound + SURE * noise


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_bias_of_automatic_runs_is_within_its_bound(method):
    error, noise, bound = bias(METHODS[method](tol=0.1), 16, "auto", n_runs=500, tilt=1.5)
    assert error <= bound + SURE * noise


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_each_row_is_as_good_as_another(method):
    """tv_bound is of each sample."""
    error, noise, bound = bias(method, 128, 4, row=0)
    assert error <= bound + SURE * noise


# --- one pool for all -----------------------------------------------------------------------------

TARGETS = [((0,), ()), (I, J), ((0,), (1, 2)), ((2,), ())]


@pytest.mark.parametrize("method", METHODS)
def test_targets_of_one_call_equal_separate_calls(method):
    together = rowwise().sample_targets(TARGETS, 70, 40, method=method, seed=5)
    for target, result in zip(TARGETS, together, strict=True):
        alone = rowwise().sample(*target, 70, 40, method=method, seed=5)
        assert_same(result, alone)
        assert counts_only(result.diagnostics) == counts_only(alone.diagnostics)


@pytest.mark.parametrize("method", METHODS)
def test_automatic_runs_are_as_long_as_the_target_that_needs_most(method):
    together = rowwise().sample_targets(TARGETS, 70, method=method, seed=5)
    alone = [rowwise().sample(*target, 70, method=method, seed=5).diagnostics.n_steps for target in TARGETS]
    assert max(alone) <= together[0].diagnostics.n_steps
    n_steps = {result.diagnostics.n_steps for result in together}
    assert len(n_steps) == 1
    fixed = rowwise().sample_targets(TARGETS, 70, *n_steps, method=method, seed=5)
    for a, b in zip(together, fixed, strict=True):
        assert_same(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_steps", [33, None])
def test_same_samples_whatever_the_batches(method, n_steps):
    expected = rowwise().sample(I, J, 50, n_steps, method=method, seed=1)
    for plan in (Plan(batch_size=7), Plan(block_steps=1), Plan(batch_size=64, block_steps=5)):
        got = rowwise(plan=plan).sample(I, J, 50, n_steps, method=method, seed=1)
        assert_same(got, expected)
        assert counts_only(got.diagnostics) == counts_only(expected.diagnostics)


def cut(method, cuts):
    """The method, with blocks of steps that end at ``cuts``; and the lengths of the blocks it chose from."""
    seen = []

    class Cut(METHODS[method]):
        def propose(self, problem, state, at, n):
            return super().propose(problem, state, at, min([n, *(end - at for end in cuts if end > at)]))

        def draws(self, problem, state, at):
            seen.append([len(weights[0]) for weights in state.log_weights])
            return super().draws(problem, state, at)

    return Cut(), seen


@functools.cache
def in_one_block(method, stochastic):
    kernel, seen = cut(method, ())
    result = rowwise(stochastic=stochastic).sample_targets(TARGETS, 50, 60, method=kernel, seed=1)
    assert seen == [[60]]
    return result


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    method=st.sampled_from(list(METHODS)),
    cuts=cuts_of_60,
    batch_size=st.sampled_from([None, 7, 64]),
    stochastic=st.booleans(),
)
def test_samples_are_the_same_for_any_blocks(method, cuts, batch_size, stochastic):
    kernel, seen = cut(method, cuts)
    sampler = rowwise(stochastic=stochastic, plan=Plan(batch_size=batch_size))
    results = sampler.sample_targets(TARGETS, 50, 60, method=kernel, seed=1)
    assert seen == [np.diff([0, *sorted(cuts), 60]).tolist()]
    for result, expected in zip(results, in_one_block(method, stochastic), strict=True):
        assert_same(result, expected)
        assert counts_only(result.diagnostics) == counts_only(expected.diagnostics)


@pytest.mark.parametrize("method", METHODS)
def test_blocks_that_end_with_the_time_change_nothing(method, monkeypatch):
    """Of one step each, or of as many as a batch holds."""
    expected = in_one_block(method, False)
    monkeypatch.setattr(loop, "BLOCK_SECONDS", 0.0)
    for batch_size, lengths in ((30, {1, 2}), (175, {3, 4})):
        kernel, seen = cut(method, ())
        results = rowwise(plan=Plan(batch_size=batch_size)).sample_targets(TARGETS, 50, 60, method=kernel, seed=1)
        assert set(seen[0][:-1]) <= lengths
        for result, other in zip(results, expected, strict=True):
            assert_same(result, other)


def test_rejection_has_no_row_twice_and_resampling_may():
    once = rowwise().sample(I, J, 300, 25, method="rejection", seed=0)
    assert len(torch.unique(once.latents, dim=0)) == len(once.latents)
    several = rowwise().sample(I, J, 300, 2, method="resample", seed=0)
    distinct = len(torch.unique(several.latents, dim=0))
    assert distinct < 300
    assert several.diagnostics.acceptance_rate == distinct / 600


def test_more_steps_keep_what_was_accepted_while_the_largest_weight_stands():
    runs = [rowwise().sample(I, J, 5, n, method="rejection", seed=0) for n in (400, 440)]
    tops = [run.diagnostics.max_weight_ratio / run.diagnostics.n_steps for run in runs]
    assert tops[1] < tops[0]
    assert_same(*runs)


@pytest.mark.parametrize("method", METHODS)
def test_the_default_length_is_auto(method):
    a = rowwise().sample(I, J, seed=3, method=method)
    kernel = METHODS[method](tol=0.01, max_steps=10_000)
    assert_same(a, rowwise().sample(I, J, 64, "auto", seed=3, method=kernel))
    x = s2m_sample(RowwiseGenerator(), RowwiseClassifier(), I, J, seed=3, method=method)
    assert torch.equal(x, a.samples)
    assert a.samples.shape == (64, 3)


@pytest.mark.parametrize("method", METHODS)
def test_samples_can_be_trained_on(method):
    result = rowwise().sample(I, J, 10, method=method, seed=0)
    weight = torch.ones(3, requires_grad=True)
    (result.samples * weight).sum().backward()
    assert not result.latents.is_inference()


# --- automatic length -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_samples", [1, 7, 500])
@pytest.mark.parametrize("tol", [0.3, 0.01, 0.002])
def test_auto_ends_with_what_was_asked_for(method, n_samples, tol):
    for seed in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # Of one sample, the budget is in proposals what max_steps is.
            kernel = METHODS[method](tol=tol, max_steps=100_000)
            result = rowwise().sample(I, J, n_samples, seed=seed, method=kernel)
        d = result.diagnostics
        assert len(result.samples) == d.n_samples == n_samples
        assert d.tv_bound <= tol * (1 + 1e-6)
        if method == "resample":
            assert d.ess_per_proposal * d.n_steps * d.n_chains >= n_samples * (1 - 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_auto_is_not_much_longer_than_needed(method):
    """Less than twice: shorter runs that are half as long do not meet what was asked for."""
    for n_samples, tol in ((500, 0.01), (20, 0.003)):
        d = rowwise().sample(I, J, n_samples, method=METHODS[method](tol=tol), seed=0).diagnostics
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            half = rowwise().sample(I, J, n_samples, d.n_steps // 2, method=method, seed=0).diagnostics
        enough = half.n_samples == n_samples and half.tv_bound <= tol
        if method == "resample":
            enough &= half.ess_per_proposal * half.n_steps * half.n_chains >= n_samples
        assert not enough


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_that_ends_first_is_said(method):
    with pytest.warns(SamplingWarning, match=r"after max_steps=40 steps .* not tol=0.001"):
        d = rowwise().sample(I, J, 10, method=METHODS[method](tol=0.001, max_steps=40), seed=0).diagnostics
    assert (d.n_steps, d.interrupted) == (40, False)
    assert d.tv_bound > 0.001


def test_too_few_effective_samples_at_the_end_of_the_budget_are_said():
    with pytest.warns(SamplingWarning, match=r"worth 2\d\d\d independent ones"):
        d = rowwise().sample(I, J, 5000, method=Resample(max_steps=4), seed=0).diagnostics
    assert d.n_steps == 4
    assert d.tv_bound <= 0.01  # a sample by itself is good
    assert d.ess_per_proposal * d.n_steps * d.n_chains < 3000


@pytest.mark.parametrize("n_steps", [4, "auto"])
def test_rejection_says_how_many_are_missing(n_steps):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = rowwise().sample(I, J, 400, n_steps, method=Rejection(max_steps=4), seed=0)
    n = len(result.samples)
    assert 0 < n < 400
    assert result.diagnostics.n_samples == n
    said = [str(w.message) for w in caught if w.category is SamplingWarning]
    expected = f"{400 - n} of 400 samples of +0+1-2 are missing: rejection accepted too few of 1600 proposals"
    assert any(expected in text for text in said)


@pytest.mark.parametrize(
    "call",
    [
        lambda s, **o: s.sample_targets([(I, J)], **o),
        lambda s, **o: s.sample(I, J, **o),
        lambda s, **o: s2m_sample(s.models.G, s.models.clf, I, J, **o),
    ],
)
def test_a_warning_is_of_the_line_that_called(call):
    with pytest.warns(SamplingWarning) as caught:
        call(rowwise(), n_samples=400, n_steps=4, method="rejection", seed=0)
    assert caught[0].filename == __file__


# --- joint classes that are hardly met, or never --------------------------------------------------


class Beyond(nn.Module):
    """Attribute 0: x_0 above a threshold."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        has = torch.where(x[:, 0] > self.threshold, 5.0, -5.0)
        return torch.stack([has, 0 * has], 1), 0 * has


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_steps", [5, "auto"])
def test_what_is_never_met_has_no_sample(method, n_steps):
    targets = [(0, 1), (1, 0)]
    with pytest.warns(SamplingWarning, match=r"10 of 10 chains never met the support of \+0-1 in \d+ steps"):
        never, met = rowwise(clf=Beyond(100.0)).sample_targets(
            targets, 10, n_steps, method=METHODS[method](max_steps=30), seed=0
        )
    assert never.samples.shape == (0, 3)
    assert never.latents.shape == (0, 4)
    assert never.log_weights.shape == never.chains.shape == (0,)
    d = never.diagnostics
    assert (d.n_samples, d.acceptance_rate, d.support_rate, d.ess_per_proposal) == (0, 0, 0, 0)
    assert (d.chains_without_support, d.tv_bound, d.n_steps) == (10, 1, 5 if n_steps == 5 else 30)
    # All of the other weigh the same: every proposal is accepted, and all are effective samples.
    assert len(met.samples) == 10
    assert met.diagnostics.max_weight_ratio == pytest.approx(1)


@pytest.mark.parametrize("method", METHODS)
def test_a_proposal_of_no_weight_is_never_taken(method):
    result = rowwise(clf=Beyond(3.0)).sample(0, 1, 50, method=METHODS[method](tol=0.1), seed=0)
    assert len(result.samples) == 50
    assert (result.samples[:, 0] > 3).all()
    assert torch.isfinite(result.log_weights).all()
    d = result.diagnostics
    assert (
        d.support_rate == pytest.approx(d.ess_per_proposal, rel=1e-5) == pytest.approx(stats.norm.sf(2), rel=0.5)
    )
    assert d.chains_without_support == 0


@pytest.mark.parametrize("method", METHODS)
def test_one_proposal_of_weight(method):
    """Rejection has the one sample, resampling repeats it."""
    sampler = S2MSampler(LineGenerator(), lambda x: (torch.stack([x[:, 0], 0 * x[:, 0]], 1), 0 * x[:, 0]))
    z = torch.zeros(4, 5, 1, dtype=torch.float64)
    z[2, 3] = 9.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = sampler.sample(0, 1, proposal=z, method=method, seed=0)
    n = 1 if method == "rejection" else 5
    assert result.samples[:, 0].tolist() == n * [9.0]
    assert result.chains.tolist() == n * [3]
    d = result.diagnostics
    assert (d.acceptance_rate, d.support_rate, d.max_weight_ratio) == (1 / 20, 1 / 20, pytest.approx(20))
    assert d.tv_bound == pytest.approx(1)
    assert any("4 of 5 samples" in str(w.message) for w in caught) == (method == "rejection")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n_samples", "n_steps"), [(1, 1), (1, 50), (50, 1)])
def test_the_smallest_runs(method, n_samples, n_steps):
    result = line(1.0).sample(0, (), n_samples, n_steps, method=method, seed=4)
    assert 1 <= len(result.samples) <= n_samples
    assert (result.diagnostics.n_chains, result.diagnostics.n_steps) == (n_samples, n_steps)
    if method == "resample":
        assert len(result.samples) == n_samples
    if n_samples == n_steps == 1:
        only = line(1.0).sample(0, (), 1, 1, seed=4)
        assert_same(result, only)
        assert result.diagnostics.tv_bound == 1


# --- other proposals ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("block_steps", [None, 1, 7])
def test_a_stochastic_generator_keeps_its_samples(method, drawn, block_steps):
    seen = {}

    class Noisy(RowwiseGenerator):
        def forward(self, z):
            x = super().forward(z) + 0.3 * torch.randn(len(z), 1)
            seen.update({tuple(latent.tolist()): row for latent, row in zip(z, x, strict=True)})
            return x

    sampler = rowwise(Noisy(), stochastic=True, plan=Plan(block_steps=block_steps))
    options = dict(proposal=lambda n, g: torch.randn(n, 4, generator=g)) if drawn else {}
    result = sampler.sample(I, J, 60, method=METHODS[method](tol=0.05), seed=9, **options)
    assert len(result.samples) == 60
    for latent, x in zip(result.latents, result.samples, strict=True):
        assert torch.equal(seen[tuple(latent.tolist())], x)
    x = result.samples
    assert (torch.minimum(x[:, 0], x[:, 1]) > x[:, 2]).all()


def shifted(n, generator):
    z = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    z[:, 0] += 0.3
    return z, (-0.5 * z.square() + 0.5 * (z - z.new_tensor([0.3, 0, 0])).square()).sum(1)


def a_mixture(dim=3):
    one = torch.ones(1, dtype=torch.float64)
    return LatentMixture(one, torch.full((1, dim), 0.4).double(), torch.full((1, dim), 1.1).double(), 0.2)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("proposal", [shifted, a_mixture()], ids=["drawn", "mixture"])
def test_other_proposals_are_corrected(method, proposal):
    expected = true_joint_class((0, 1), ())
    assert drawn_p(discrete(), expected, method, (0, 1), (), proposal=proposal) > LEVEL


@pytest.mark.parametrize("method", METHODS)
def test_a_correction_left_out_is_caught(method):
    expected = true_joint_class((0, 1), ())
    wrong = drawn_p(discrete(), expected, method, (0, 1), (), proposal=lambda n, g: shifted(n, g)[0])
    assert wrong < LEVEL


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("proposal", [lambda n, g: torch.randn(n, 4, generator=g), a_mixture(4)])
def test_other_proposals_whatever_the_batches(method, proposal):
    expected = rowwise().sample(I, J, 50, method=method, seed=1, proposal=proposal)
    fixed = rowwise().sample(I, J, 50, expected.diagnostics.n_steps, method=method, seed=1, proposal=proposal)
    assert_same(fixed, expected)
    for plan in (Plan(batch_size=7), Plan(block_steps=1), Plan(batch_size=64, block_steps=5)):
        assert_same(rowwise(plan=plan).sample(I, J, 50, method=method, seed=1, proposal=proposal), expected)
    assert torch.equal(RowwiseGenerator()(expected.latents), expected.samples)


@pytest.mark.parametrize("method", METHODS)
def test_given_latents(method):
    steps, chains = np.divmod(np.arange(40 * 25), 40)
    z = _ops.philox_normal(torch.from_numpy(chains), torch.from_numpy(steps), 3, 4).view(25, 40, 4)
    expected = rowwise().sample(I, J, 40, 25, method=method, seed=3)
    got = rowwise().sample(I, J, proposal=z, method=method, seed=3)
    assert_same(got, expected)
    assert counts_only(got.diagnostics) == counts_only(expected.diagnostics)
    assert_same(rowwise().sample(I, J, proposal=z.numpy(), method=method, seed=3), expected)


class Corner(nn.Module):
    """Attribute i: x_i > 1.8."""

    def forward(self, x):
        has = torch.where(x > 1.8, 0.0, IMPOSSIBLE)
        none = torch.where((x > 1.8).any(1), IMPOSSIBLE, 0.0)
        return torch.cat([has, none[:, None]], 1), 0 * none


class Same(nn.Module):
    z_dim = 2

    def forward(self, z):
        return 1 * z


@pytest.mark.slow
@pytest.mark.parametrize("method", [pytest.param("rejection", marks=pytest.mark.slow), "resample"])
def test_adapted_proposals_have_the_target_distribution(method):
    sampler = S2MSampler(Same(), Corner())
    n, n_steps = (3000, None) if method == "rejection" else (3000, 100)
    result = sampler.sample([0, 1], (), n, n_steps, method=method, proposal=Mixture(), seed=3)
    d = result.diagnostics
    assert result.adaptation is not None
    assert d.ess_per_proposal > 20 * stats.norm.sf(1.8) ** 2
    assert d.ess_per_proposal * d.n_steps * n > 3 * n
    assert d.tv_bound < 0.01
    for i in (0, 1):
        truth = stats.truncnorm(1.8, math.inf)
        assert stats.kstest(result.samples[:, i].numpy(), truth.cdf).pvalue > LEVEL / 2
    assert_same(
        sampler.sample([0, 1], (), n, d.n_steps, method=method, seed=3, proposal=result.adaptation.mixture), result
    )


# --- Ctrl-C ---------------------------------------------------------------------------------------

STEP_BY_STEP = Plan(block_steps=1, batch_size=10**6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_steps", ["auto", 60])
@pytest.mark.parametrize("at", [1, 5])
def test_ctrl_c_chooses_from_what_there_is(method, n_steps, at):
    sampler = rowwise(Interrupted(at), plan=STEP_BY_STEP)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = sampler.sample(I, J, 200, n_steps, method=METHODS[method](tol=1e-4), seed=0)
        expected = rowwise().sample(I, J, 200, at, method=method, seed=0)
    d = result.diagnostics
    assert d.interrupted
    assert (d.n_steps, d.burn_in) == (at, at)
    assert d.tv_bound == expected.diagnostics.tv_bound
    assert_same(result, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("drawn", [False, True])
def test_a_run_goes_on_after_ctrl_c(method, drawn, tmp_path):
    options = dict(
        method=method, seed=1, proposal=(lambda n, g: torch.randn(n, 4, generator=g)) if drawn else None
    )
    expected = rowwise().sample(I, J, 50, 40, **options)
    sampler = rowwise(Interrupted(6), plan=STEP_BY_STEP)  # one call before the first step, to tell G by
    run = Run(checkpoint=tmp_path / "chains")
    first = sampler.sample(I, J, 50, 40, run=run, **options)
    assert first.diagnostics.interrupted
    assert first.diagnostics.n_steps == 5
    assert_same(sampler.sample(I, J, 50, 40, run=run, **options), expected)


@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_before_anything_is_raised(method):
    with pytest.raises(KeyboardInterrupt):
        rowwise(Interrupted(0)).sample(I, J, 200, method=method, seed=0)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(method="Rejection"), ValueError, "method must be one of imh, rejection, resample, mala"),
        (dict(method=None), TypeError, "method must be one of"),
        (dict(method=Rejection), TypeError, "method must be one of imh, rejection, resample, mala, or a kernel"),
        (
            dict(method="rejection", samples_per_chain=2),
            TypeError,
            r"argument .samples_per_chain.; write method=spml_fast.IMH\(samples_per_chain=...\)",
        ),
        (
            dict(method="resample", thin=2),
            TypeError,
            r"argument .thin.; write method=spml_fast.IMH\(thin=...\)",
        ),
        (dict(method="rejection", n_steps="all"), ValueError, "n_steps must be a number or 'auto', got 'all'"),
        (dict(method="resample", n_steps=0), ValueError, "n_steps must be between 1 and"),
        (dict(method="rejection", n_samples=0), ValueError, "n_samples must be between 1 and"),
        (
            dict(method="rejection", n_steps="auto", proposal=np.zeros((5, 6, 4))),
            ValueError,
            "given latents fix the number of steps",
        ),
        (dict(method="resample", proposal=np.zeros((5, 6, 3))), ValueError, "latents must have shape"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        rowwise().sample(0, **arguments)


@pytest.mark.parametrize("kernel", METHODS.values())
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(tol=0), ValueError, "tol must be between 0 and 1, got 0"),
        (dict(tol="0.1"), ValueError, "tol must be between 0 and 1, got '0.1'"),
        (dict(max_steps=0), ValueError, "max_steps must be between 1 and"),
        (dict(max_steps=2.5), TypeError, "max_steps must be an integer, got 2.5"),
        # Their samples do not belong to chains.
        (dict(samples_per_chain=2), TypeError, "unexpected keyword argument 'samples_per_chain'"),
        (dict(thin=2), TypeError, "unexpected keyword argument 'thin'"),
    ],
)
def test_bad_options(kernel, options, error, message):
    with pytest.raises(error, match=message):
        kernel(**options)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_logits_are_an_error_that_names_the_step(method, bad):
    class Broken(RowwiseClassifier):
        calls = 0

        def forward(self, x):
            class_logits, validity = super().forward(x)
            self.calls += len(x) > PROBE_ROWS
            if self.calls == 4:
                validity[2] = bad
            return class_logits, validity

    with pytest.raises(ValueError, match="NaN or infinite logits for the proposal of chain 2 at step 3"):
        rowwise(clf=Broken(), plan=in_blocks(1)).sample(I, J, 20, 10, method=method, seed=0)
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        rowwise(clf=Broken(), plan=in_blocks(1)).sample(I, J, 20, method=METHODS[method](tol=1e-4), seed=0)
