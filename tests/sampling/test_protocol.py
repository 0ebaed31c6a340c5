"""The protocol of kernels: two small methods of one's own, which get from the driver what the package's have.

Statistical tests: fixed seeds, level 1e-3.
"""

import dataclasses
import functools
import itertools
import math
import os
import signal
from dataclasses import dataclass

import pytest
import several
import torch
from scipy import stats
from several import Case, child, differences, gaussian, interrupt, rank_here
from toys import (
    FIELDS,
    PROBE_ROWS,
    Interrupted,
    LineGenerator,
    RowwiseClassifier,
    RowwiseGenerator,
    TiltClassifier,
    assert_same,
    counts_only,
    rowwise,
)

from spml_fast import Mixture, Plan, Run, S2MSampler
from spml_fast.sampling import Draws, Kernel, OneStep, SamplingWarning, State, along

LEVEL = 1e-3
pytestmark = pytest.mark.filterwarnings("ignore::spml_fast.sampling.SamplingWarning")
I, J = (0, 1), (2,)


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


# --- a method that goes a step at a time ----------------------------------------------------------


@dataclass
class Walkers(State):
    z: torch.Tensor = along(1)  # (T, C, *z_shape)
    log_weight: torch.Tensor = along(1)  # (T, C)
    counts: dict[str, torch.Tensor] = along(1)  # of (T, C)
    log_size: list[float]  # of each target


@dataclass
class Move(OneStep):
    at: int
    z: torch.Tensor
    log_weight: torch.Tensor


@dataclass(frozen=True)
class RandomWalk(Kernel):
    """Gaussian steps in latent space, whose size the first half of the steps tunes."""

    samples_per_chain: int = 1
    thin: int | None = None
    name = "walk"

    def init(self, problem):
        T, C = len(problem.joint_classes), len(problem.chains)
        like = torch.zeros(T, C, dtype=problem.models.dtype, device=problem.models.device)
        z = torch.zeros(T, C, *problem.models.z_shape, dtype=like.dtype, device=like.device)
        counts = {"accepted": torch.zeros_like(like), "supported": torch.zeros_like(like)}
        return Walkers(z, like - torch.inf, counts, [0.0] * T)

    def propose(self, problem, state, at, n):
        z = []
        for here, log_weight, log_size in zip(state.z, state.log_weight, state.log_size, strict=True):
            noise = problem.normal(at)
            lost = (log_weight == -torch.inf).view(-1, *[1] * (noise.ndim - 1))  # these are offered the prior's
            z.append(torch.where(lost, noise, here + math.exp(log_size) * noise))
        return Move(at, torch.stack(z), torch.stack([problem.log_weights(t, rows) for t, rows in enumerate(z)]))

    def log_density(self, z, log_weight):
        return log_weight.double() - z.double().flatten(2).square().sum(2) / 2

    def accept(self, problem, state, move):
        ratio = self.log_density(move.z, move.log_weight) - self.log_density(state.z, state.log_weight)
        accept = problem.log_uniform(move.at) <= ratio
        state.z[accept] = move.z[accept]
        state.log_weight[accept] = move.log_weight[accept]
        state.counts["accepted"] += accept
        state.counts["supported"] += move.log_weight > -torch.inf
        if move.at < problem.n_steps // 2:
            rates = problem.gather(accept.double(), 1).mean(1).tolist()
            state.log_size = [s + rate - 0.3 for s, rate in zip(state.log_size, rates, strict=True)]

    def draws(self, problem, state, at):
        rows = torch.nonzero(state.log_weight > -torch.inf, as_tuple=True)
        return Draws(*rows, state.log_weight[rows], kept={"latents": state.z[rows]})

    def diagnostics(self, problem, state, at, between, chosen):
        n = at * problem.shard.n_chains
        accepted, supported = (problem.gather(part, 1).sum(1) / n for part in state.counts.values())
        met = problem.gather(state.log_weight, 1) > -torch.inf
        return [
            {
                "acceptance_rate": float(accepted[t]),
                "support_rate": float(supported[t]),
                "step_size": math.exp(size),
                "chains_without_support": int((~met[t]).sum()),
            }
            for t, size in enumerate(state.log_size)
        ]


def line(tilt=1.0):
    return S2MSampler(LineGenerator(), TiltClassifier(tilt))


def p_of(kernel, tilt=1.0, n_samples=4000, n_steps=60):
    """The p-value of the Kolmogorov-Smirnov test against the joint class, N(tilt, 1)."""
    x = line(tilt).sample(0, (), n_samples, n_steps, method=kernel, seed=2).samples[:, 0]
    return stats.kstest(x.numpy(), stats.norm(tilt, 1).cdf).pvalue


def test_a_kernel_of_ones_own_is_exact():
    assert p_of(RandomWalk()) > LEVEL
    assert p_of(RandomWalk(samples_per_chain=4, thin=40)) > LEVEL
    assert p_of(RandomWalk(), tilt=-0.5) > LEVEL


class WithoutPrior(RandomWalk):
    def log_density(self, z, log_weight):
        return log_weight.double()


class WithoutWeight(RandomWalk):
    def log_density(self, z, log_weight):
        return super().log_density(z, torch.where(log_weight > -torch.inf, 0.0, log_weight))


@pytest.mark.parametrize("kernel", [WithoutPrior(), WithoutWeight()])
def test_a_dropped_term_is_caught(kernel):
    assert p_of(kernel) < LEVEL


def test_a_run_too_short_is_caught():
    assert p_of(RandomWalk(), tilt=3.0, n_steps=4) < LEVEL


# --- several targets, batches, seeds --------------------------------------------------------------

TARGETS = [((0,), ()), (I, J), ((2,), (0,))]
WALK = Case(dict(method=RandomWalk(samples_per_chain=3, thin=5), n_steps=12), gaussian)
"""34 chains of two targets; 22 steps, in each of which G is called twice."""


def walk(sampler, I=I, J=J, n_samples=50, n_steps=20, **options):
    return sampler.sample(I, J, n_samples, n_steps, **{"method": RandomWalk(), "seed": 3, **options})


def test_targets_of_one_call_equal_separate_calls():
    together = rowwise().sample_targets(TARGETS, 50, 20, method=RandomWalk(), seed=3)
    for target, result in zip(TARGETS, together, strict=True):
        alone = walk(rowwise(), *target)
        assert_same(result, alone)
        assert counts_only(result.diagnostics) == counts_only(alone.diagnostics)


def test_pools_of_conditional_proposals_equal_separate_calls():
    targets = [((0,), (1,)), ((1, 2), ()), ((0, 2), ())]
    together = several.conditional().sample_targets(targets, 30, 9, method=RandomWalk(), seed=3)
    for target, result in zip(targets, together, strict=True):
        assert_same(result, walk(several.conditional(), *target, 30, 9))


def test_same_samples_whatever_the_batches():
    expected = walk(rowwise())
    for plan in (Plan(batch_size=7), Plan(block_steps=1), Plan(batch_size=64, block_steps=5)):
        assert_same(walk(rowwise(plan=plan)), expected)
    assert torch.equal(RowwiseGenerator()(expected.latents), expected.samples)
    assert not torch.equal(walk(rowwise(), seed=4).samples, expected.samples)


def test_batches_that_do_not_fit_are_halved():
    class Large(RowwiseGenerator):
        def forward(self, z):
            if len(z) > 10:
                raise torch.OutOfMemoryError("no memory")
            return super().forward(z)

    assert_same(walk(rowwise(Large())), walk(rowwise()))


def test_samples_are_states_of_the_long_chain():
    every = walk(rowwise(), n_samples=20 * 31, n_steps=24, method=RandomWalk(samples_per_chain=31, thin=1))
    some = walk(rowwise(), n_samples=60, n_steps=24, method=RandomWalk(samples_per_chain=3, thin=7))
    d = some.diagnostics
    assert (d.method, d.n_chains, d.n_steps, d.burn_in, d.thin, d.n_samples) == ("walk", 20, 38, 24, 7, 60)
    rows = [140 * i + chain for i in range(3) for chain in range(20)]
    for field in FIELDS:
        assert torch.equal(getattr(some, field), getattr(every, field)[rows])


def test_chains_without_a_state_have_no_sample():
    never, met = S2MSampler(RowwiseGenerator(), several.NoClass()).sample_targets(
        [(0, 1), (0, ())], 30, 9, method=RandomWalk(), seed=0
    )
    assert never.samples.shape == (0, 3)
    assert never.diagnostics.chains_without_support == 30
    assert len(met.samples) == 30
    with pytest.warns(SamplingWarning, match=r"\d+ of 30 chains never met the support of \+0\+1-2 in 1 steps"):
        few = walk(rowwise(), n_samples=30, n_steps=1)
    assert 0 < len(few.samples) == 30 - few.diagnostics.chains_without_support < 30


def test_what_a_kernel_does_not_report_is_not_there():
    d = walk(rowwise()).diagnostics
    assert 0 < d.acceptance_rate <= d.support_rate <= 1
    assert all(math.isnan(value) for value in (d.ess_per_proposal, d.max_weight_ratio, d.log_mean_weight))
    assert d.tv_bound is d.r_hat is None
    assert d.proposals_per_second > 0


@pytest.mark.parametrize("targets", [TARGETS, TARGETS[:1]])
def test_the_progress_bar_comes_to_its_end(targets, capsys):
    rowwise().sample_targets(targets, 50, 20, method=RandomWalk(), seed=3, progress=True)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "100%" in last
    assert "| 1.00k/1.00k [" in last


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(n_steps="auto"), ValueError, "method='walk' has no bound to stop at: n_steps must be a number"),
        (dict(n_steps=0), ValueError, "n_steps must be between 1 and"),
        (dict(method=RandomWalk), TypeError, "method must be one of .*, or a kernel, got <class"),
        (
            dict(method=RandomWalk(samples_per_chain=3, thin=2**30)),
            ValueError,
            r"would take 2147483668 steps, more than 2\^31 - 1",
        ),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        walk(rowwise(), **options)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_logits_are_an_error(bad):
    calls = itertools.count(1)

    class Broken(RowwiseClassifier):
        def forward(self, x):
            class_logits, validity = super().forward(x)
            return class_logits, validity + (bad if len(x) > PROBE_ROWS and next(calls) == 4 else 0)

    with pytest.raises(ValueError, match="NaN or infinite logits"):
        walk(rowwise(clf=Broken()))
    assert next(calls) == 5


# --- processes, checkpoints, signals --------------------------------------------------------------


def acting(act, at, late):
    """The kernel of WALK, which acts at step ``at``: before it proposes or, ``late``, when all is classified."""
    acts = [act]

    class Acting(RandomWalk):
        def propose(self, problem, state, at_now, n):
            if at_now == at and acts and not late:
                acts.pop()()
            found = super().propose(problem, state, at_now, n)
            if at_now == at and acts:
                acts.pop()()
            return found

    Acting.__qualname__ = RandomWalk.__qualname__  # by which a checkpoint knows it
    return Acting(samples_per_chain=3, thin=5)


@functools.cache
def undisturbed():
    return WALK.run()


def send(number):
    os.kill(os.getpid(), number)


ENDS = {"killed": signal.SIGKILL, "told to end": signal.SIGTERM}


def walk_here(path, end=None, at=0, late=False, lost=0, **options):
    """In a child: a run with a checkpoint, which ends process ``lost`` at a step; what came out is saved."""
    if end is not None and rank_here() == lost:
        options["method"] = acting(functools.partial(send, ENDS[end]), at, late)
    torch.save(WALK.run(checkpoint=path, every=0.0, **options), f"{path}.{rank_here()}")


def in_processes(path, size, **options):
    """What each process returns."""
    statuses, said = child(path.parent, functools.partial(walk_here, **options), path, size=size)
    assert statuses == [0] * size, said
    return [torch.load(f"{path}.{rank}", weights_only=True) for rank in range(size)]


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_the_chains(tmp_path, size):
    for found in in_processes(tmp_path / "run", size, gather=True):
        assert differences(found, undisturbed()) == []
    shares = in_processes(tmp_path / "other", size)
    bounds = [rank * 34 // size for rank in range(size + 1)]
    for t, whole in enumerate(undisturbed()):
        for rank, share in enumerate(shares):
            here = (whole["chains"] >= bounds[rank]) & (whole["chains"] < bounds[rank + 1])
            assert here.any()
            for name in FIELDS:
                assert torch.equal(share[t][name], whole[name][here])


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("at", "late"), [(0, False), (0, True), (5, False), (11, True), (16, True)])
@pytest.mark.parametrize(("size", "then"), [(1, 2), (2, 1)])
def test_a_run_that_was_ended_goes_on(tmp_path, end, at, late, size, then):
    path = tmp_path / "run"
    statuses, said = child(tmp_path, walk_here, path, end, at, late, size - 1, size=size)
    assert statuses == [*[1] * (size - 1), -ENDS[end]], said
    assert all("LostProcessError" in text for text in said[:-1])
    steps = at + (late and end == "told to end")  # with the step that was classified by then
    part = torch.load(path, weights_only=True)["parts"].get("pool 0")
    assert (part["done"] if part else 0) == steps
    for found in in_processes(path, then, gather=True):
        assert differences(found, undisturbed()) == []


by_signal = functools.partial(send, signal.SIGINT)


def ctrl_c(at, late, act=by_signal, **options):
    """WALK's results, with Ctrl-C at a step."""
    call = WALK.call | {"method": acting(act, at, late), "seed": 5, "n_samples": 101} | options
    return gaussian().sample_targets(several.BOTH, **call)


@pytest.mark.parametrize("act", [by_signal, interrupt], ids=["signal", "raised"])
@pytest.mark.parametrize(
    ("at", "late", "done", "samples"),
    [(1, False, 1, 34), (1, True, 2, 34), (11, True, 12, 34), (13, False, 13, 34), (16, True, 17, 68)],
)
def test_ctrl_c_keeps_what_is_classified(act, at, late, done, samples):
    """The steps that are classified are accepted, and samples that were due by then taken."""
    if act is interrupt and late:
        done -= 1  # raised within the proposal, which is lost with it
        samples = 34
    results = ctrl_c(at, late, act)
    for target, result in zip(several.BOTH, results, strict=True):
        d = result.diagnostics
        assert d.interrupted
        assert (d.n_steps, d.n_chains) == (done, 34)
        assert d.n_samples == len(result.samples) == samples - d.chains_without_support
        if done < 12:
            expected = gaussian().sample(*target, 34, done, method=Half(), seed=5)
        else:
            expected = gaussian().sample(*target, 101, 12, method=WALK.call["method"], seed=5).first(samples)
            later = gaussian().sample(*target, 34, done, method=Half(), seed=5)
            assert d.acceptance_rate == later.diagnostics.acceptance_rate
        assert_same(result, expected)


class Half(RandomWalk):
    """Tunes the size of its steps for the first six, however many there are."""

    def accept(self, problem, state, move):
        super().accept(dataclasses.replace(problem, n_steps=12), state, move)


@pytest.mark.parametrize("act", [by_signal, interrupt])
def test_ctrl_c_before_the_first_step_is_raised(act):
    with pytest.raises(KeyboardInterrupt):
        ctrl_c(0, False, act)


def test_ctrl_c_with_a_checkpoint_goes_on(tmp_path):
    run = Run(tmp_path / "run")
    first = ctrl_c(7, True, run=run)
    assert [result.diagnostics.n_steps for result in first] == [8, 8]
    again = WALK.run(checkpoint=run.checkpoint)
    assert differences(again, undisturbed()) == []


def test_another_kernel_is_refused_by_the_checkpoint(tmp_path):
    path = tmp_path / "run"
    WALK.run(checkpoint=path)
    for method, name in (
        (RandomWalk(), r"method\.samples_per_chain"),
        (RandomWalk(3, 4), r"method\.thin"),
        (WithoutPrior(3, 5), r"method\.class"),
        ("imh", "method"),
    ):
        with pytest.raises(ValueError, match=f"is of a run with {name}=.*; give another file or delete this one"):
            WALK.run(checkpoint=path, method=method)


@dataclass(frozen=True)
class Careless(RandomWalk):
    """Its samples are the tensors that its chains go on in."""

    def draws(self, problem, state, at):
        T, C = state.log_weight.shape
        rows = torch.arange(T).repeat_interleave(C), torch.arange(C).repeat(T)
        return Draws(*rows, state.log_weight.view(-1), kept={"latents": state.z.flatten(0, 1)})


def test_samples_are_not_moved_by_the_steps_after_them():
    options = dict(samples_per_chain=3, thin=2)
    assert_same(walk(line(), 0, (), method=Careless(**options)), walk(line(), 0, (), method=RandomWalk(**options)))


def test_a_latent_of_a_stochastic_generator_has_no_weight():
    with pytest.raises(ValueError, match=r"a latent of a stochastic G has no weight of its own.*offer\(at, n\)"):
        walk(rowwise(stochastic=True))


@dataclass
class Nested(State):
    parts: list = along(0)


@dataclass(frozen=True)
class Strange(RandomWalk):
    """Its state is what no checkpoint could hold."""

    part: object = None

    def init(self, problem):
        return Nested([super().init(problem)] if self.part is None else self.part)


@pytest.mark.parametrize(
    ("part", "message"), [(None, "Nested.parts: a state may be a field"), ((torch.zeros(3),), "not in tuples")]
)
def test_states_that_a_checkpoint_cannot_hold(tmp_path, part, message):
    G = Interrupted(1)  # called once, to know it by what it returns
    with pytest.raises(TypeError, match=message):
        walk(rowwise(G), method=Strange(part=part), run=Run(tmp_path / "run"))
    assert next(G.calls) == 1


# --- a method whose proposals do not depend on its chains -----------------------------------------


@dataclass
class Chains(State):
    log_weight: torch.Tensor = along(1)
    step: torch.Tensor = along(1)
    latents: torch.Tensor | None = along(1, lambda: None)


@dataclass(frozen=True)
class Plain(Kernel):
    """Independent Metropolis-Hastings once more, in PyTorch, from what the driver offers."""

    name = "plain"

    def init(self, problem):
        shape = len(problem.joint_classes), len(problem.chains)
        weightless = torch.full(shape, -torch.inf, dtype=problem.models.dtype)
        return Chains(weightless, torch.full(shape, -1))

    def accept(self, problem, state, offer):
        weights, output = problem.weights(offer.output), offer.output
        for s in range(offer.steps):
            correction = None if offer.log_correction is None else offer.log_correction[s]
            rows = type(output)(*(None if part is None else part[s] for part in output))
            log_weight = weights.log_weights(rows, correction)
            accept = problem.log_uniform(offer.at + s) <= (log_weight - state.log_weight).double()
            accept &= log_weight > -torch.inf
            state.log_weight = torch.where(accept, log_weight, state.log_weight)
            state.step[accept] = offer.at + s
            if "latents" in offer.kept:
                if state.latents is None:
                    state.latents = torch.zeros(*accept.shape, *offer.kept["latents"].shape[2:])
                state.latents = torch.where(accept[..., None], offer.kept["latents"][s], state.latents)

    def draws(self, problem, state, at):
        rows = torch.nonzero(state.step >= 0, as_tuple=True)
        kept = {} if state.latents is None else {"latents": state.latents[rows]}
        return Draws(*rows, state.log_weight[rows], state.step[rows], kept=kept)


@pytest.mark.slow
@pytest.mark.parametrize(
    "proposal",
    [None, several.draw, several.draw_weighted, several.a_mixture(), several.latents(24, 60), Mixture()],
)
@pytest.mark.parametrize("make", [rowwise, several.rare])
def test_offers_are_those_of_independent_chains(proposal, make):
    n = (None, None) if isinstance(proposal, torch.Tensor) else (60, 24)
    options = dict(seed=3, proposal=proposal)
    found = make().sample_targets(TARGETS, *n, method=Plain(), **options)
    for result, expected in zip(found, make().sample_targets(TARGETS, *n, **options), strict=True):
        assert_same(result, expected)
        assert (result.adaptation is None) == (expected.adaptation is None)
        d = result.diagnostics
        assert (d.method, d.n_steps, d.burn_in, d.tv_bound) == ("plain", 24, 24, None)


def test_offers_may_be_of_any_number_of_steps():
    expected = rowwise().sample(I, J, 60, 24, seed=3)
    for plan in (Plan(block_steps=5), Plan(block_steps=1), Plan(batch_size=7, block_steps=9)):
        assert_same(rowwise(plan=plan).sample(I, J, 60, 24, seed=3, method=Plain()), expected)


@pytest.mark.parametrize("drawn", [False, True])
def test_offers_under_a_checkpoint(tmp_path, drawn):
    proposal = several.draw_weighted if drawn else None
    options = dict(method=Plain(), seed=3, proposal=proposal)
    expected = rowwise().sample(I, J, 60, 24, **options)
    sampler, run = rowwise(Interrupted(9), plan=Plan(block_steps=1, batch_size=10**6)), Run(tmp_path / "run")
    first = sampler.sample(I, J, 60, 24, run=run, **options)
    assert 6 <= first.diagnostics.n_steps <= 8
    assert_same(sampler.sample(I, J, 60, 24, run=run, **options), expected)
