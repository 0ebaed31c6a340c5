"""Findings of late reviews: each test failed before what it is of was mended."""

import dataclasses
import functools
import itertools
import os
import re
import signal
import threading
import time
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import several
import torch
from test_protocol import RandomWalk
from toys import PROBE_ROWS, RowwiseClassifier, RowwiseGenerator, assert_same, rowwise

from spml_fast import (
    IMH,
    MALA,
    JointClass,
    LatentMixture,
    MinMax,
    Mixture,
    Plan,
    Rejection,
    Resample,
    Run,
    s2m_sample,
)
from spml_fast.sampling import (
    Draws,
    Kernel,
    Problem,
    SamplingWarning,
    State,
    Stopped,
    along,
    pack_targets,
    s2m_log_weight,
)
from spml_fast.sampling.checkpoint import identity
from spml_fast.sampling.fingerprints import of_model
from spml_fast.sampling.processes import Processes, Shard
from spml_fast.sampling.proposals import PriorProposal

pytestmark = pytest.mark.filterwarnings("ignore::spml_fast.sampling.SamplingWarning")


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


# --- what a checkpoint knows a function by --------------------------------------------------------


class Drawing:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, n, generator):
        return self.scale * torch.randn(n, 4, generator=generator)

    method = __call__


class Holder:
    def __init__(self, scale):
        self.options = {"scale": [scale]}

    def set(self, options):
        self.options = options

    def draw(self, n, generator):
        return self.options["scale"][0] * torch.randn(n, 4, generator=generator)


class Flow(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, n, generator):
        return self.scale * torch.randn(n, 4, generator=generator)


def with_default(scale):
    def draw(n, generator, *, scale=scale):
        return scale * torch.randn(n, 4, generator=generator)

    return draw


def with_closure(value, of=float):
    def draw(n, generator):
        return of(value) * torch.randn(n, 4, generator=generator)

    return draw


def scaled(scale, n, generator):
    return scale * torch.randn(n, 4, generator=generator)


def other_code(scale):
    if scale == 1:
        return lambda n, generator: torch.randn(n, 4, generator=generator)
    return lambda n, generator: torch.rand(n, 4, generator=generator)


def other_constant(scale):
    if scale == 1:
        return lambda n, generator: next(2.0 * z for z in torch.randn(1, n, 4, generator=generator))
    return lambda n, generator: next(2.5 * z for z in torch.randn(1, n, 4, generator=generator))


DRAWS = {
    "another lambda": other_code,
    "another constant within": other_constant,
    "a keyword's default": with_default,
    "a list": lambda a: with_closure([a], lambda v: v[0]),
    "a dict": lambda a: with_closure({"scale": a}, lambda v: v["scale"]),
    "a tensor in a list": lambda a: with_closure([torch.tensor(float(a))], lambda v: v[0]),
    "a function within": lambda a: with_closure(lambda: a, lambda f: f()),
    "a partial": lambda a: functools.partial(scaled, a),
    "a partial's keyword": lambda a: functools.partial(scaled, scale=a),
    "a callable object": Drawing,
    "a method": lambda a: Drawing(a).method,
    "a method whose attribute another one sets": lambda a: Holder(a).draw,
    "a module": Flow,
    "a decorated function": lambda a: functools.lru_cache(with_closure(a)),
    "an array in a keyword": lambda a: functools.partial(scaled, scale=np.full(4, a)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_another_draw_function_of_the_same_name_is_another(name):
    make = DRAWS[name]
    assert identity(make(1.0)) == identity(make(1.0))
    assert identity(make(1.0)) != identity(make(2.0))


def test_another_draw_function_of_the_same_name_is_refused(path):
    call = dict(seed=1, run=Run(path))
    rowwise().sample(0, (), 20, 5, proposal=functools.partial(scaled, 1.0), **call)
    with pytest.raises(ValueError, match="is of a run with proposal='function"):
        rowwise().sample(0, (), 20, 5, proposal=functools.partial(scaled, 1.5), **call)


class Counting:
    def __init__(self):
        self.calls = self.later = 0
        self.sizes = []

    def __call__(self, n, generator):
        self.calls += 1
        self.sizes.append(n)
        self.note()
        return torch.randn(n, 4, generator=generator)

    def note(self):
        self.later += 1


def counting(kind):
    calls, sizes, noise = 0, [0], torch.Generator()
    seen, buffer, other, count = {}, torch.zeros(20, 4), torch.zeros(20, 4), itertools.count()

    def draw(n, generator):
        nonlocal calls
        calls += 1
        next(count)
        sizes[0] += n
        sizes.append(n)
        seen["n"] = n
        torch.rand(3, generator=noise)
        other[:] = 1.0
        torch.randn(n, 4, generator=generator, out=buffer)
        return buffer.mul_(1.5)

    return draw if kind == "function" else Counting()


@pytest.mark.parametrize("kind", ["function", "object"])
def test_what_a_draw_function_counts_is_no_part_of_it(path, kind):
    draw, run = counting(kind), Run(path)
    first = rowwise().sample(0, (), 20, 5, seed=1, proposal=draw, run=run)
    assert_same(rowwise().sample(0, (), 20, 5, seed=1, proposal=draw, run=run), first)
    assert_same(rowwise().sample(0, (), 20, 5, seed=1, proposal=counting(kind), run=run), first)


def test_devices_and_what_has_no_bytes_do_not_tell_functions_apart():
    def make(device, values):
        return lambda n, generator: torch.zeros(n, 4, device=device) * values

    sparse, objects = torch.eye(3).to_sparse(), np.array([object()])
    assert len({identity(make(device, 1)) for device in ("cuda:0", "cuda:1")}) == 1
    assert len({identity(make(torch.device("cuda", index), 1)) for index in (0, 1)}) == 1
    assert len({identity(make("cpu", values)) for values in (1, sparse, objects)}) == 3


def test_an_empty_cell_is_no_error():
    def draw(n, generator):
        return later * n

    assert identity(draw).startswith("function ")
    later = 1
    assert identity(draw).startswith("function ")


def test_models_are_known_by_their_code_and_not_by_their_numbers():
    def model(number):
        return lambda z: number * z

    assert of_model(model(1)) == of_model(model(2)) != of_model(lambda z: z + 1)
    assert of_model(functools.partial(scaled, 1)) == of_model(functools.partial(scaled, 2))


@dataclass(frozen=True, slots=True)
class Slotted(RandomWalk):
    size: float = 0.3


def test_options_in_slots_count(path):
    rowwise().sample(0, (), 20, 5, seed=1, method=Slotted(), run=Run(path))
    with pytest.raises(ValueError, match=r"is of a run with method\.size=0\.3, not 0\.4"):
        rowwise().sample(0, (), 20, 5, seed=1, method=Slotted(size=0.4), run=Run(path))


# --- seeds, warnings and Ctrl-C -------------------------------------------------------------------


class Asking(RowwiseGenerator):
    """Its first call has something done in another thread."""

    def __init__(self, act):
        super().__init__()
        self.acts = [act]

    def forward(self, z):
        if self.acts:
            thread = threading.Thread(target=self.acts.pop())
            thread.start()
            thread.join(0.1)
        return super().forward(z)


def test_threads_without_a_seed_draw_different_samples(path):
    found = []

    def other():
        found.append(rowwise().sample(0, (), 20, 5))

    found.append(rowwise(Asking(other)).sample(0, (), 20, 5, run=Run(path)))
    while len(found) < 2:
        time.sleep(0.01)
    found.append(rowwise().sample(0, (), 20, 5))
    for a, b in itertools.combinations(found, 2):
        assert not torch.equal(a.latents[:5], b.latents[:5])


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_the_short_form_says_that_ctrl_c_came():
    G = RowwiseGenerator()
    several.before(G, several.at_call(5, ctrl_c))
    with pytest.warns(SamplingWarning, match=r"Ctrl-C ended the run of \+0 after \d+ steps") as caught:
        x = s2m_sample(G, RowwiseClassifier(), 0, (), 64, 10_000, seed=0)
    assert len(x) == 64
    assert caught[0].filename == __file__


def test_an_adaptation_leaves_the_filters_of_warnings_alone():
    found, G = [], RowwiseGenerator()
    several.before(G, lambda: found.append(list(warnings.filters)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rowwise(G).adapt(0, how=Mixture(n_chains=64, n_components=1), seed=0)
        assert found
        assert all(filters == list(warnings.filters) for filters in found)


@pytest.mark.parametrize("of", ["decoding", "fit"])
def test_ctrl_c_at_the_end_of_an_adaptation_is_raised(monkeypatch, of):
    how = Mixture(n_chains=64, n_components=1)
    G = RowwiseGenerator()
    if of == "fit":
        fit = LatentMixture.fit
        monkeypatch.setattr(LatentMixture, "fit", lambda *args, **options: (ctrl_c(), fit(*args, **options))[1])
    else:
        calls = itertools.count(1)
        several.before(G, lambda: next(calls))
        rowwise(G).adapt(0, how=how, seed=0)
        several.before(G, several.at_call(next(calls) - 1, ctrl_c))
    with pytest.raises(KeyboardInterrupt):
        rowwise(G).adapt(0, how=how, seed=0)


# --- options, and what errors say -----------------------------------------------------------------


class Late(RowwiseClassifier):
    """The weight of one proposal after the first look is heavy."""

    def __init__(self, at):
        super().__init__()
        self.at, self.calls = at, itertools.count()

    def forward(self, x):
        class_logits, validity = super().forward(x)
        heavy = torch.zeros_like(validity)
        heavy[0] = 9.0 * (len(x) > PROBE_ROWS and next(self.calls) == self.at)
        return class_logits, 0 * validity + heavy


@pytest.mark.parametrize("thin", [None, 1])
def test_a_length_that_later_weights_prove_short_is_told(thin):
    sampler = rowwise(clf=Late(20), plan=Plan(block_steps=1, batch_size=100))
    method = IMH(tol=0.05, samples_per_chain=4 if thin is None else 8, thin=thin)
    with pytest.warns(SamplingWarning, match=r"heavier weights came.* not tol=0.05 .*n_steps=\d+ would"):
        d = sampler.sample(0, (), 800 if thin else 400, "auto", method=method, seed=0).diagnostics
    assert d.burn_in == 16
    assert d.tv_bound > 0.05


def test_thinning_by_choice_is_not_told():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        d = rowwise().sample(0, (), 300, "auto", method=IMH(samples_per_chain=3, thin=1), seed=0).diagnostics
    assert d.tv_bound > 0.01


def test_unknown_options_are_those_of_the_function_that_was_called():
    with pytest.raises(TypeError, match=r"S2MSampler\.sample\(\) got an unexpected keyword argument 'chains'"):
        rowwise().sample(0, chains=3)
    with pytest.raises(TypeError, match=r"^S2MSampler\.sample no longer has the argument 'tol'"):
        rowwise().sample(0, tol=0.1)


NOW = {
    "batch_size": r"spml_fast.S2MSampler\(G, clf, plan=spml_fast.Plan\(batch_size=...\)\).sample\(I, J\).samples",
    "adapt": r"spml_fast.S2MSampler\(G, clf\).sample\(I, J, proposal=spml_fast.Mixture\(...\)\).samples",
    "checkpoint": r"spml_fast.S2MSampler\(G, clf\).sample\(I, J, run=spml_fast.Run\(checkpoint=...\)\).samples",
    "tol": r"method=spml_fast.IMH\(tol=...\), ",
    "gamma": r"weight=spml_fast.MinMax\(gamma=...\)",
}


@pytest.mark.parametrize("name", NOW)
def test_old_keywords_of_the_short_form_say_what_works(name):
    with pytest.raises(TypeError, match=f"; write {NOW[name]}"):
        s2m_sample(RowwiseGenerator(), RowwiseClassifier(), 0, **{name: 1})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: LatentMixture.fit(torch.zeros(3, 4), covariance="full"),
            r"how=spml_fast.Mixture\(covariance=...\)",
        ),
        (lambda: pack_targets([], 3, gamma=1), r"weight=spml_fast.MinMax\(gamma=...\)"),
        (lambda: s2m_log_weight(0, 0, 0, gamma_J=1), r"weight=spml_fast.MinMax\(gamma_J=...\)"),
        (lambda: s2m_log_weight(0, 0, 0, extra_log_weight=1), "log_correction=..."),
    ],
)
def test_old_keywords_of_other_functions(call, message):
    with pytest.raises(TypeError, match=f"no longer has the argument .*; write {message}"):
        call()


@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([True, False, True]),
        np.array([True, False]),
        [True, False],
        torch.tensor(True),
        np.array(True),
        np.True_,
    ],
)
def test_masks_are_no_indices(mask):
    with pytest.raises(TypeError, match=r"^I must (hold integers, got .*for a mask, give|be class indices)"):
        JointClass(mask)
    assert JointClass(torch.tensor([0, 2]), np.int64(1)) == JointClass((0, 2), (1,))


@pytest.mark.parametrize(
    ("option", "value", "error", "message"),
    [
        ("gamma", "a", TypeError, "gamma must be a number, one number per class, or a function.*, got 'a'"),
        ("gamma", "2", TypeError, "gamma must be a number"),
        ("gamma", True, TypeError, "gamma must be a number, .*, got True"),
        ("gamma", None, TypeError, "gamma must be a number, .*, got None"),
        ("gamma", [1, None], TypeError, r"gamma must be a number, .*, got \[1, None\]"),
        ("gamma", [[1, 2], [3]], TypeError, "gamma must be a number"),
        ("gamma_J", torch.ones(3, dtype=torch.bool), TypeError, r"gamma_J must be .*, got Tensor of shape \(3,\)"),
        (
            "gamma",
            np.zeros(1000),
            ValueError,
            r"gamma must be .*finite, got ndarray of shape \(1000,\)$",
        ),
        ("temperature", [1, 2], ValueError, r"temperature must be a number or a function .*, got shape \(2,\)"),
        ("temperature", None, TypeError, "temperature must be a number or a function .*, got None"),
        (
            "validity_temperature",
            True,
            TypeError,
            "validity_temperature must be a number or .*, got True",
        ),
    ],
)
def test_options_of_the_weight_are_told_by_name(option, value, error, message):
    with pytest.raises(error, match=message):
        MinMax(**{option: value})
    with pytest.raises(error, match=message):
        pack_targets([JointClass(0)], 3, MinMax(**{option: lambda I, J: value}))


def test_numbers_of_any_kind_are_weights():
    for gamma in (2, np.float32(2), torch.tensor(2.0), torch.tensor(2), Fraction(2), torch.tensor(2.0).bfloat16()):
        assert MinMax(gamma, temperature=gamma).values(JointClass(0))["gamma"] == 2
    assert list(MinMax([1, Fraction(1, 2), np.float64(3)]).values(JointClass(0))["gamma"]) == [1, 0.5, 3]


def test_errors_are_short():
    many = list(range(5000))
    for call in (
        lambda: JointClass([*many, 0]),
        lambda: JointClass(many, many),
        lambda: rowwise().sample(0, proposal=[many] * 10),
        lambda: rowwise().sample(many),
        lambda: rowwise().sample_targets([many]),
        lambda: LatentMixture(torch.ones(5000) / 4999, torch.zeros(5000, 2), torch.ones(5000, 2)),
    ):
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("as_array", [False, True])
def test_bad_latents_are_not_blamed_on_the_classifier(as_array):
    latents = torch.zeros(5, 6, 4)
    latents[3, 2, 1] = torch.nan
    G = RowwiseGenerator()
    several.before(G, lambda: pytest.fail("G was called"))
    with pytest.raises(ValueError, match=r"^proposal=latents must be finite, .* chain 2 at step 3$"):
        rowwise(G).sample(0, proposal=latents.numpy() if as_array else latents)
    with pytest.raises(ValueError, match=r"^proposal=latents must have shape \(n_steps, n_samples, 4\)"):
        rowwise(G).sample(0, proposal=latents[0])


def test_drawn_latents_are_of_the_models_dtype():
    def draw(n, generator):
        return torch.randn(n, 4, generator=generator, dtype=torch.float64)

    assert rowwise().sample(0, (), 20, 5, seed=0, proposal=draw).latents.dtype == torch.float32


def test_an_index_out_of_range_leaves_no_checkpoint(path):
    with pytest.raises(ValueError, match="index 7 in I"):
        rowwise().sample(7, (), 20, 5, seed=0, run=Run(path))
    assert list(path.parent.iterdir()) == []
    rowwise().sample(1, (), 20, 5, seed=0, run=Run(path))
    with pytest.raises(ValueError, match="is of a run with n_steps=5"):
        rowwise().sample(1, (), 20, 6, seed=0, run=Run(path))
    assert path.exists()


def test_integers_of_numpy_do_not_overflow():
    options = Mixture(
        n_chains=np.int8(100), max_steps=np.int8(100), n_components=np.int8(2), max_components=np.int8(3)
    )
    kernels = IMH(max_steps=np.int8(100), samples_per_chain=np.int8(100), thin=np.int8(100))
    others = Rejection(max_steps=np.int8(100)), Resample(max_steps=np.int8(3)), Run(first_chain=np.int8(100))
    chains = MALA(samples_per_chain=np.int8(2), thin=np.int8(3))
    for value in (options, kernels, *others, chains):
        assert not any(isinstance(part, np.generic) for part in vars(value).values())
    d = rowwise().sample(0, (), 200, 5, seed=0, method=kernels).diagnostics
    assert (d.n_chains, d.n_steps) == (2, 9905)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("full", [False, True])
def test_mixtures_of_half_precision_have_the_density_of_their_draws(dtype, full):
    means = torch.tensor([[0.3, -1.7], [12.3, 0.1]]).to(dtype)
    scales = torch.tensor([[0.013, 0.7], [1.3, 0.9]]).to(dtype)
    scales = torch.diag_embed(scales) if full else scales
    half = LatentMixture(torch.tensor([0.25, 0.75]).to(dtype), means, scales, 0.3)
    double = LatentMixture(torch.tensor([0.25, 0.75]).double(), means.double(), scales.double(), 0.3)
    normals, uniforms = torch.randn(500, 2).double(), torch.rand(500).double()
    z = double.place(normals, uniforms)
    assert torch.equal(half.place(normals, uniforms), z)
    assert torch.equal(half.log_correction(z), double.log_correction(z))


# --- kernels of one's own -------------------------------------------------------------------------


@dataclass
class Holding(State):
    log_weight: torch.Tensor = along(1)
    part: object = None


@dataclass(frozen=True)
class Own(Kernel):
    """Its chains stay where step 0 puts them; ``change`` is done to what it returns."""

    change: object = None
    at: str = ""

    def changed(self, name, value):
        return self.change(value) if self.at == name else value

    def init(self, problem):
        return self.changed("init", Holding(torch.zeros(len(problem.joint_classes), len(problem.chains))))

    def propose(self, problem, state, at, n):
        return self.changed("propose", problem.offer(at, n))

    def accept(self, problem, state, offer):
        self.changed("accept", state)

    def draws(self, problem, state, at):
        T, C = state.log_weight.shape
        rows = torch.arange(T).repeat_interleave(C), torch.arange(C).repeat(T)
        return self.changed(
            "draws", Draws(*rows, state.log_weight.view(-1), torch.zeros(T * C, dtype=torch.int64))
        )

    def diagnostics(self, problem, state, at, between, chosen):
        return self.changed("diagnostics", [{} for _ in problem.joint_classes])


def own(at="", change=None, sampler=None, **options):
    method = Own(change, at)
    return (sampler or rowwise()).sample(0, (), 20, 5, seed=0, method=method, **options)


def holding(value):
    def change(state):
        state.part = value
        return state

    return change


NOT_HELD = {
    "ndarray": np.zeros(3),
    "Generator": torch.Generator(),
    "float64": (np.float64(1),),
    "frozenset": frozenset([1]),
    "object": [object()],
    "function": {"a": [lambda: 0]},
    "int64": {np.int64(1): 2},
}


@pytest.mark.parametrize("name", NOT_HELD)
def test_states_that_a_checkpoint_cannot_hold_are_told_first(path, name):
    G = RowwiseGenerator()
    calls = itertools.count()
    several.before(G, lambda: next(calls))
    with pytest.raises(
        TypeError, match=f"^Holding.part holds something of type {name}, which a checkpoint cannot"
    ):
        own("init", holding(NOT_HELD[name]), rowwise(G), run=Run(path))
    assert next(calls) == 3  # the probe, and to know it by what it returns
    with pytest.raises(
        TypeError, match=f"^Holding.part holds something of type {name}, which a checkpoint cannot"
    ):
        own("accept", holding(NOT_HELD[name]), run=Run(path))
    own("init", holding(NOT_HELD[name]))


@pytest.mark.parametrize(
    "value",
    [
        np.float32(0.5),
        [np.int64(3), {"a": np.bool_(True)}],
        (1, "a", (2.5, None)),
        {1, 2},
        {(1, 2): torch.float32},
        torch.Size([2]),
        b"a",
        1j,
        OrderedDict(a=torch.device("cpu")),
    ],
)
def test_states_that_a_checkpoint_holds(path, value):
    own("init", holding(value), run=Run(path))
    found = torch.load(path, weights_only=True)["parts"]["pool 0"]["state"]["part"]
    assert found == value


@pytest.mark.parametrize("begins", [False, True])
def test_a_field_that_becomes_a_state_is_told_before_the_first_save(path, begins):
    inner = Holding(torch.zeros(1, 20))
    first, then = (inner, None) if begins else (None, inner)

    class Becoming(Own):
        def init(self, problem):
            return holding(first)(super().init(problem))

    method = Becoming(holding(then), "accept")
    with pytest.raises(TypeError, match=r"^Holding\.part: init\(\) must give a field that holds a state one"):
        rowwise().sample(0, (), 20, 5, seed=0, method=method, run=Run(path))
    rowwise().sample(0, (), 20, 5, seed=0, method=method)


class Reading(Own):
    """It looks at what it is offered."""

    def propose(self, problem, state, at, n):
        offer = problem.offer(at, n)
        assert 1 <= offer.steps <= n
        assert offer.output.class_logits.shape[:2] == (offer.steps, 20)
        return offer


@pytest.mark.parametrize("raised", [False, True])
@pytest.mark.parametrize("at", [0, 1, 3, 7])
def test_an_offer_is_never_empty(raised, at):
    G = RowwiseGenerator()
    sampler = rowwise(G, plan=Plan(block_steps=2, batch_size=7))
    sampler.describe()
    several.before(G, several.at_call(at + 1, several.interrupt if raised else ctrl_c))
    if at < 2:  # a step is twenty rows
        with pytest.raises(KeyboardInterrupt):
            sampler.sample(0, (), 20, 12, seed=0, method=Reading())
    else:
        d = sampler.sample(0, (), 20, 12, seed=0, method=Reading()).diagnostics
        assert d.interrupted
        assert d.n_steps == 7 * (at if raised else at + 1) // 20


def test_what_is_classified_when_an_offer_stops_is_held():
    seen, sampler = [], rowwise(plan=Plan(batch_size=7))
    sampler.describe()
    models = sampler.models
    several.before(models.G, lambda: seen.append(1))
    shard, chains = Shard(20, Processes()), torch.arange(20)
    proposal = PriorProposal((4,), chains, 3)
    problem = Problem((JointClass(0),), MinMax(), models.given(None), proposal, shard, 3, 0, 20, 5)
    problem.stop = lambda some_step: len(seen) == 2
    with pytest.raises(Stopped):
        problem.offer(0, 2)
    problem.stop = lambda some_step: False
    assert problem.offer(0, 2).steps == 2
    assert len(seen) == 6
    problem.offer(3, 1)
    with pytest.raises(ValueError, match=r"offer\(2, \.\.\.\).*is over|step 2 is over"):
        problem.offer(2, 1)


def test_no_latents_have_no_weights():
    class Weighing(Own):
        def propose(self, problem, state, at, n):
            assert problem.log_weights(0, torch.zeros(0, 4)).shape == (0,)
            return super().propose(problem, state, at, n)

    rowwise().sample(0, (), 20, 5, seed=0, method=Weighing())


def test_a_kernel_that_lacks_a_method_is_told_by_name():
    class Without(Kernel):
        def init(self, problem):
            return Holding(torch.zeros(1, 20))

    class Automatic(Own):
        automatic = True

    for kernel, name in ((Without(), "accept"), (Automatic(), "needed"), (Kernel(), "init")):
        with pytest.raises(
            TypeError, match=rf"^{type(kernel).__name__} is no whole kernel: it has no method {name}"
        ):
            rowwise().sample(0, method=kernel)
    with pytest.raises(TypeError, match=r"got <class .*IMH'>; write IMH\(\)$"):
        rowwise().sample(0, method=IMH)
    with pytest.raises(ValueError, match="samples_per_chain must be between 1"):
        rowwise().sample(0, method=RandomWalk(samples_per_chain=0))


@pytest.mark.parametrize(
    ("at", "change", "options", "error", "message"),
    [
        ("init", lambda _: {}, {}, TypeError, r"Own.init\(\) must return a State, got {}"),
        ("propose", lambda _: None, {}, TypeError, r"Own.propose\(\) must return proposals .*, got None"),
        ("draws", lambda _: [1], {}, TypeError, r"Own.draws\(\) must return Draws, got \[1\]"),
        ("diagnostics", lambda _: [], {}, TypeError, r"Own.diagnostics\(\) must return .*1 dicts"),
        (
            "draws",
            lambda draws: dataclasses.replace(draws, step=None),
            {},
            ValueError,
            r"Own.draws\(\) must return Draws\(.*latents.*without the step",
        ),
        (
            "draws",
            lambda draws: draws,
            dict(proposal=several.draw),
            ValueError,
            r"Own.draws\(\) must return Draws\(.*latents.*that a function drew",
        ),
        (
            "draws",
            lambda draws: draws,
            dict(sampler=rowwise(stochastic=True)),
            ValueError,
            r"Own.draws\(\) must return Draws\(.*'x'.*stochastic",
        ),
    ],
)
def test_what_a_kernel_returns_is_checked(at, change, options, error, message):
    with pytest.raises(error, match=message):
        own(at, change, **options)


GUIDE = Path(__file__).parents[2] / "docs" / "own_kernel.md"


def test_the_code_of_the_guide_runs():
    """Its weights of an offer are those by which the package's own chains move."""
    found = {}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        exec(block, found)

    class Weighing(Own):
        def accept(self, problem, state, offer):
            log_weights = found["log_weights_of"](problem, offer)
            assert log_weights.shape == (1, offer.steps, 20)
            state.log_weight = log_weights[:, -1]

        def draws(self, problem, state, at):
            return dataclasses.replace(super().draws(problem, state, at), step=torch.full((20,), at - 1))

    x = rowwise(plan=Plan(block_steps=2)).sample(0, 1, 20, 5, seed=0, method=Weighing())
    expected = s2m_log_weight(*RowwiseClassifier()(x.samples), 0, 1)
    assert torch.equal(x.log_weights, expected)
    assert isinstance(found["Walk"](*[torch.zeros(1, 2)] * 3), State)


def test_the_guide_counts_the_lines_of_the_example():
    source = (GUIDE.parents[1] / "examples" / "own_kernel.py").read_text()
    method = source[source.index("@dataclass") : source.index("# --- a generator")]
    n_lines = sum(bool(line.strip()) for line in method.splitlines())
    assert f"in {n_lines} lines of code" in GUIDE.read_text()
