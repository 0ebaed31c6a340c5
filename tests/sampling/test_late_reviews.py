"""Findings of late reviews: each test failed before what it is of was mended."""

import functools
import itertools
import os
import signal
import threading
import time
import warnings
from dataclasses import dataclass

import pytest
import several
import torch
from test_protocol import RandomWalk
from toys import RowwiseClassifier, RowwiseGenerator, assert_same, rowwise

from spml_fast import IMH, LatentMixture, Mixture, Plan, Run, s2m_sample
from spml_fast.sampling import SamplingWarning, pack_targets, s2m_log_weight
from spml_fast.sampling.checkpoint import identity
from spml_fast.sampling.fingerprints import of_model

pytestmark = pytest.mark.filterwarnings("ignore::spml_fast.sampling.SamplingWarning")


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run"


# --- what a checkpoint knows a function by --------------------------------------------------------


class Draws:
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
    "a callable object": Draws,
    "a method": lambda a: Draws(a).method,
    "a method whose attribute another one sets": lambda a: Holder(a).draw,
    "a module": Flow,
    "a decorated function": lambda a: functools.lru_cache(with_closure(a)),
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
    several.before(G, several.at_call(3, ctrl_c))
    with pytest.warns(SamplingWarning, match=r"Ctrl-C ended the run of \+0 after \d+ steps") as caught:
        x = s2m_sample(G, RowwiseClassifier(), 0, (), 64, 10_000, seed=0)
    assert len(x) == 64
    assert caught[0].filename == __file__


def test_an_adaptation_leaves_the_filters_of_warnings_alone():
    found, G = [], RowwiseGenerator()
    several.before(G, lambda: found.append(list(warnings.filters)))
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
        heavy[0] = 9.0 * (next(self.calls) == self.at)
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
