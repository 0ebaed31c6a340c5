"""Findings of late reviews: each test failed before what it is of was mended."""

import functools
import itertools
from dataclasses import dataclass

import pytest
import torch
from test_protocol import RandomWalk
from toys import assert_same, rowwise

from spml_fast import Run
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
        return lambda n, generator: [2.0 * z for z in torch.randn(1, n, 4, generator=generator)][0]
    return lambda n, generator: [2.5 * z for z in torch.randn(1, n, 4, generator=generator)][0]


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
