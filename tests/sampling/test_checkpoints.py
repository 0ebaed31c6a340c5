"""Sampling that was killed at any moment ends, when called again, with the samples of a run that nobody disturbed.

Most killed runs are children that kill themselves at a given call of G, or while they write the file, by which the
moment is exact.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
import random
import signal
import tempfile
import time
import types

import numpy as np
import pytest
import several
import torch
from several import (
    AT_FILE,
    CASES,
    CONVOLUTIONAL,
    FEW,
    NOTHING,
    Case,
    Children,
    Weighted,
    a_mixture,
    at_call,
    at_write,
    before,
    checkpointed,
    child,
    conditional,
    differences,
    interrupt,
    latents,
    rowwise,
)
from toys import FIELDS, RowwiseClassifier, RowwiseGenerator

from spml_fast import IMH, MinMax, Mixture, Plan, Run, S2MSampler, s2m_sample
from spml_fast.sampling import checkpoint as module

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*never met the support", "ignore:.*the bound on the distance", "ignore:.*are missing"
)
KILLED = -signal.SIGKILL


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.ckpt"


@functools.cache
def undisturbed(name):
    """What a case gives without a checkpoint, and its calls of G with one."""
    with tempfile.TemporaryDirectory() as folder:
        _, n_calls = again(os.path.join(folder, "run.ckpt"), name)
    return (CASES | FEW | NOTHING)[name].run(), n_calls


def probed(name):
    """Calls of clf in a case with a checkpoint by which G and clf are told from others: one for each label."""
    case = (CASES | FEW | NOTHING)[name]
    models = case.make().models
    labels = {target[0][0] for target in case.targets} if models.conditional else {None}
    return len(labels) * (1 + models.stochastic)


def again(path, name, **options):
    """The same call, in this process; the calls of G that it made."""
    calls = itertools.count()
    found = (CASES | FEW | NOTHING)[name].run(lambda: next(calls), checkpoint=path, **options)
    return found, next(calls)


def kill(tmp_path, *arguments, **options):
    """A child that samples and kills itself."""
    statuses, said = child(tmp_path, functools.partial(checkpointed, **options), *arguments)
    assert statuses == [KILLED], said


def read(path):
    return torch.load(path, weights_only=True)


# --- killed ---------------------------------------------------------------------------------------


OFTEN = [("imh", 0.8), ("rejection", 0.35), ("mala", 0.8), ("stochastic", 0.35), ("several pools", 0.8)]
SELDOM = [case for case in itertools.product(CASES, (0.35, 0.8)) if case not in OFTEN]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "when"), OFTEN + [pytest.param(*case, marks=pytest.mark.slow) for case in SELDOM]
)
def test_killed_in_a_call_of_g(tmp_path, path, name, when):
    expected, n_calls = undisturbed(name)
    kill(tmp_path, path, name, "G", max(2, round(when * n_calls)))
    parts = read(path)["parts"]
    found, calls = again(path, name)
    assert differences(found, expected) == []
    assert calls < n_calls if parts else calls == n_calls


PHASES = {  # of the file, when killed there: in which calls of G
    "in the start of Langevin chains": ("mala", 4, {"pool 0"}),
    "in Langevin steps": ("mala", 21, {"pool 0"}),
    "in Langevin steps near the end": ("mala", 51, {"pool 0"}),
    "in an adaptation": ("adapt", 5, set()),
    "in the third pool": ("several pools", 22, {"pool 0", "pool 1", "pool 2"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_killed_in_every_phase(tmp_path, path, phase):
    name, n, parts = PHASES[phase]
    kill(tmp_path, path, name, "G", n)
    assert set(read(path)["parts"]) == parts
    assert differences(again(path, name)[0], undisturbed(name)[0]) == []


def test_langevin_chains_go_on_in_batches_as_large(path):
    """As those of the run before; and not in batches of 64 to the end."""
    case, sizes = Case(dict(method="mala", n_steps=8, n_samples=300)), []
    with pytest.raises(ArithmeticError):
        case.run(at_call(18, _fail), checkpoint=path, every=0.0)
    sampler = rowwise()
    sampler.models.G.register_forward_pre_hook(lambda _, z: sizes.append(len(z[0])))
    Case(case.call, lambda: sampler).run(checkpoint=path)
    *stepping, decoding = sizes
    assert max(stepping) == 300
    assert decoding == 600


@pytest.mark.slow
def test_an_adaptation_is_not_done_again(tmp_path, path):
    n_calls = undisturbed("adapt")[1]
    kill(tmp_path, path, "adapt", "file with its name", 2)
    assert set(read(path)["parts"]) == {"adaptation"}
    found, calls = again(path, "adapt")
    assert differences(found, undisturbed("adapt")[0]) == []
    assert calls < n_calls / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "n", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("moment", AT_FILE)
@pytest.mark.parametrize("name", ["imh", "mala", "adapt", "several pools"])
def test_killed_while_the_file_is_written(tmp_path, path, name, moment, n):
    kill(tmp_path, path, name, moment, n)
    assert path.exists() == (n > 1 or moment == "file with its name")
    assert differences(again(path, name)[0], undisturbed(name)[0]) == []
    assert [file.name for file in tmp_path.glob(".*")] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["auto, several samples per chain", "draw, auto, several samples per chain", "mala"]
)
def test_killed_again_and_again_at_random_moments(tmp_path, path, name):
    rng, deaths = random.Random(name), 0
    for _ in range(100):
        run = Children(tmp_path, 1, functools.partial(checkpointed, pace="slow"), path, name)
        run.children[0].join(rng.uniform(0.1, 0.6))
        if run.children[0].is_alive():
            os.kill(run.children[0].pid, signal.SIGKILL)
            deaths += 1
        if run.end() == [0]:
            break
    assert deaths > 0
    assert differences(torch.load(f"{path}.0"), undisturbed(name)[0]) == []


def test_convolutions_agree_but_for_rounding(path):
    expected = CONVOLUTIONAL.run()
    with pytest.raises(ArithmeticError):
        CONVOLUTIONAL.run(at_call(40, _fail), checkpoint=path, every=0.0)
    for a, b in zip(CONVOLUTIONAL.run(checkpoint=path), expected, strict=True):
        assert torch.equal(a["chains"], b["chains"])
        same = (a["latents"] == b["latents"]).all(1)
        assert same.float().mean() > 0.98
        torch.testing.assert_close(a["samples"][same], b["samples"][same], rtol=1e-4, atol=1e-5)


def _fail():
    raise ArithmeticError("G is broken")


def test_a_generator_that_breaks_leaves_a_checkpoint_too(path):
    with pytest.raises(ArithmeticError):
        again_with(path, "imh", at_call(6, _fail))
    found, calls = again(path, "imh")
    assert differences(found, undisturbed("imh")[0]) == []
    assert calls < undisturbed("imh")[1]


def again_with(path, name, hook, **options):
    return CASES[name].run(hook, checkpoint=path, every=0.0, **options)


# --- in another number of processes ---------------------------------------------------------------


OTHER_PROCESSES = [
    ("imh", 2, 1),
    ("rejection", 1, 3),
    ("mala", 1, 2),
    ("stochastic, several samples per chain", 2, 1),
]
MORE_OTHER_PROCESSES = [
    ("imh", 1, 2),
    ("auto, several samples per chain", 2, 3),
    ("rejection", 3, 1),
    ("resample", 2, 1),
    ("mala", 3, 1),
    ("adapt", 2, 1),
    ("adapt, mala", 1, 2),
    ("several pools", 3, 2),
    ("stochastic, rejection", 1, 2),
    ("draw, auto, several samples per chain", 2, 1),
    ("draw, resample", 1, 2),
    ("given latents", 2, 2),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "before", "after"),
    OTHER_PROCESSES + [pytest.param(*case, marks=pytest.mark.slow) for case in MORE_OTHER_PROCESSES],
)
def test_killed_and_called_again_in_other_processes(tmp_path, path, name, before, after):
    lost = before - 1
    moment = ("G", max(2, round(0.7 * undisturbed(name)[1])))
    if name.startswith("adapt"):  # after the adaptation
        moment, lost = ("file with its name", 3), 0
    run = Children(tmp_path / "before", before, checkpointed, path, name, *moment, None, lost)
    statuses = run.end()
    assert statuses.pop(lost) == KILLED
    assert statuses == [1] * (before - 1)
    for rank in {*range(before)} - {lost}:
        assert "LostProcessError" in run.said(rank)
    assert read(path)["parts"]
    function = functools.partial(checkpointed, gather=True)
    statuses, said = child(tmp_path / "after", function, path, name, size=after)
    assert statuses == [0] * after, said
    for rank in range(after):
        assert differences(torch.load(f"{path}.{rank}"), undisturbed(name)[0]) == []
    assert differences(again(path, name)[0], undisturbed(name)[0]) == []


@pytest.mark.slow
def test_the_first_process_is_lost(tmp_path, path):
    statuses, said = child(tmp_path, checkpointed, path, "imh", "G", 6, size=2)
    assert statuses == [KILLED, 1]
    assert "start it again: with a checkpoint it goes on from there" in said[1]
    assert differences(again(path, "imh")[0], undisturbed("imh")[0]) == []


@pytest.mark.slow
def test_fewer_chains_than_processes(tmp_path, path):
    """One that runs a chain of another's along neither adds to the file nor lacks anything from it."""
    name = "several samples per chain"
    options = dict(n_samples=3)
    expected = CASES[name].run(**options)
    kill(tmp_path, path, name, "G", 4, **options)
    statuses, said = child(tmp_path, functools.partial(checkpointed, gather=True, **options), path, name, size=3)
    assert statuses == [0] * 3, said
    for rank in range(3):
        assert differences(torch.load(f"{path}.{rank}"), expected) == []


@pytest.mark.slow
def test_other_call_is_refused_in_every_process(tmp_path, path):
    again(path, "imh")
    statuses, said = child(tmp_path, functools.partial(checkpointed, n_steps=7), path, "imh", size=2)
    assert statuses == [1, 1]
    assert all("is of a run with n_steps=33, not 7" in text for text in said)


# --- Ctrl-C ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ctrl_c_leaves_a_checkpoint(path, name):
    expected, n_calls = undisturbed(name)
    with contextlib.suppress(KeyboardInterrupt):  # in a pool's first block, or where samples are decoded
        found = CASES[name].run(at_call(min(n_calls, max(3, round(0.7 * n_calls))), interrupt), checkpoint=path)
        assert any(result["diagnostics"]["interrupted"] for result in found)
    found, calls = again(path, name)
    assert differences(found, expected) == []
    assert calls <= n_calls


@pytest.mark.parametrize("name", ["mala", "draw, mala"])
def test_ctrl_c_in_the_start_of_langevin_chains(path, name):
    with contextlib.suppress(KeyboardInterrupt):
        CASES[name].run(at_call(4, interrupt), checkpoint=path)
    assert 0 < read(path)["parts"]["pool 0"]["done"] < 16
    assert differences(again(path, name)[0], undisturbed(name)[0]) == []


def test_ctrl_c_twice(path):
    for n in (4, 3):
        found = CASES["imh"].run(at_call(n, interrupt), checkpoint=path)
        assert found[0]["diagnostics"]["interrupted"]
    assert differences(again(path, "imh")[0], undisturbed("imh")[0]) == []


@pytest.mark.parametrize("n", [1, 2])
def test_ctrl_c_at_once_leaves_a_file_to_start_from_or_none(path, n):
    """In the call of G that tells it from others, before there is a file; in the first of the chains."""
    with pytest.raises(KeyboardInterrupt):
        CASES["imh"].run(at_call(n, interrupt), checkpoint=path)
    assert path.exists() == (n == 2)
    assert n == 1 or read(path)["parts"] == {}
    assert differences(again(path, "imh")[0], undisturbed("imh")[0]) == []


def test_ctrl_c_while_the_file_is_written(path, monkeypatch):
    with monkeypatch.context() as patch:
        at_write(path, 3, lambda *_: interrupt(), patch.setattr)
        with pytest.raises(KeyboardInterrupt):
            again_with(path, "imh", None)
    assert differences(again(path, "imh")[0], undisturbed("imh")[0]) == []


# --- what a file is good for ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CASES, *NOTHING, "imh, 1 samples", "mala, 1 samples"])
def test_a_finished_run_is_not_run_again(path, name, monkeypatch):
    expected, _ = undisturbed(name)
    case = (CASES | FEW | NOTHING)[name]
    assert differences(case.run(checkpoint=path), expected) == []
    clf = []
    monkeypatch.setattr(case, "make", _counting(case.make, clf))
    found, calls = again(path, name)
    assert differences(found, expected) == []
    assert len(clf) == probed(name)
    assert calls <= 3 * len(expected) + probed(name)  # to decode the samples


def _counting(make, calls):
    def counted():
        sampler = make()
        sampler.describe()  # its probe is not counted
        before(sampler.models.clf, lambda: calls.append(1))
        return sampler

    return counted


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_holds_no_code(path, name):
    CASES[name].run(checkpoint=path)
    assert read(path)["s2m_sampling"] == module.VERSION


@pytest.mark.slow
def test_other_batches_may_go_on(tmp_path, path):
    for name, other in {
        "auto": rowwise(plan=Plan(block_steps=3, batch_size=17)),
        "rejection": rowwise(plan=Plan(block_steps=1)),
        "several samples per chain": rowwise(plan=Plan(block_steps=1000, batch_size=1000)),
        "stochastic": rowwise(stochastic=True, plan=Plan(block_steps=2, batch_size=50)),
        "draw": rowwise(plan=Plan(block_steps=3, batch_size=17)),
    }.items():
        file = path.with_name(name)
        kill(tmp_path, file, name, "G", 4)
        assert differences(Case(CASES[name].call, lambda other=other: other).run(checkpoint=file),
                           undisturbed(name)[0]) == []  # fmt: skip


def test_a_seed_that_nobody_gave_is_that_of_the_file(tmp_path, path):
    kill(tmp_path, path, "imh", "G", 4, seed=None)
    seed = read(path)["call"]["seed"]
    torch.manual_seed(77)
    found, _ = again(path, "imh", seed=None)
    assert differences(found, CASES["imh"].run(seed=seed)) == []
    assert differences(again(path, "imh", seed=seed)[0], found) == []
    with pytest.raises(ValueError, match="seed="):
        again(path, "imh", seed=seed ^ 1)


def test_gather_and_progress_may_differ(path, capfd):
    again(path, "imh")
    for options in (dict(gather=True), dict(distributed=False), dict(progress=True), dict(every=5)):
        assert differences(again(path, "imh", **options)[0], undisturbed("imh")[0]) == []
    capfd.readouterr()


def test_a_path_may_be_a_string(path):
    G, clf = several.models()
    a = s2m_sample(G, clf, (0, 1), (2,), 50, 9, seed=0)
    for checkpoint in (path, str(path)):
        run = Run(checkpoint)
        assert torch.equal(S2MSampler(G, clf).sample((0, 1), (2,), 50, 9, seed=0, run=run).samples, a)


@pytest.mark.parametrize(("every", "expected"), [(0.0, 8), (3.0, 3), (1000.0, 1)])
def test_it_is_written_as_often_as_asked_for(path, monkeypatch, every, expected):
    """By a clock that goes a second a call of G: one before the first block and a call more in it, 33 steps in
    blocks of five.
    """
    clock, writes = itertools.count(), []
    now = [0.0]
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda *args, **kw: writes.append(now[0]) or real(*args, **kw))
    CASES["imh"].run(lambda: now.__setitem__(0, float(next(clock) + 1)), checkpoint=path, every=every)
    assert writes[0] == 1  # before sampling
    assert len(writes) - 1 == expected  # and at the end
    assert all(b - a >= every for a, b in itertools.pairwise(writes[1:-1]))


def test_a_part_that_lies_about_does_no_harm(path):
    path.with_name(f".{path.name}.123-456.part").write_bytes(b"half a file")
    assert differences(again(path, "imh")[0], undisturbed("imh")[0]) == []
    assert not list(path.parent.glob(".*"))


@pytest.mark.slow
def test_time_adds_up(path):
    """Over all processes that worked on it."""

    def run(hook=None):
        sampler = rowwise()
        sampler.describe()
        before(sampler.models.G, lambda: (time.sleep(0.05), hook and hook()))
        return sampler.sample(0, (), 20, 40, seed=0, run=Run(path, every=0.0)).diagnostics

    with pytest.raises(ArithmeticError):
        run(at_call(7, _fail))
    assert 0.4 < run().seconds_in_generator < 2


# --- what is refused ------------------------------------------------------------------------------


def weighted(*scale, **options):
    return S2MSampler(Weighted(*scale), RowwiseClassifier(), **options)


CALL = dict(targets=[((0, 1), (2,))], n_samples=20, n_steps=6, seed=1)
CHANGES = {  # and what the message names
    "targets": (dict(targets=[((0, 1), ())]), "targets"),
    "n_samples": (dict(n_samples=21), "n_samples"),
    "n_steps": (dict(n_steps=7), "n_steps"),
    "method": (dict(method="rejection"), "method"),
    "samples_per_chain": (dict(method=IMH(samples_per_chain=2)), r"method\.samples_per_chain"),
    "thin": (dict(method=IMH(thin=2)), r"method\.thin"),
    "tol": (dict(method=IMH(tol=0.02)), r"method\.tol"),
    "max_steps": (dict(method=IMH(max_steps=77)), r"method\.max_steps"),
    "adaptation": (dict(proposal=Mixture()), "proposal"),
    "seed": (dict(seed=2), "seed"),
    "first_chain": (dict(run=Run(first_chain=1)), "first_chain"),
    "proposal": (dict(proposal=a_mixture()), "proposal"),
    "latents": (dict(proposal=latents(6, 20)), "proposal"),
}
MODELS = {
    "gamma": lambda: weighted(1.0, 1, 1, weight=MinMax(gamma=0.5)),
    "gamma_J": lambda: weighted(1.0, 1, 1, weight=MinMax(gamma_J=np.ones(3))),
    "temperature": lambda: weighted(1.0, 1, 1, weight=MinMax(temperature=2)),
    "validity_temperature": lambda: weighted(1.0, 1, 1, weight=MinMax(validity_temperature=2)),
    "stochastic": lambda: weighted(1.0, 1, 1, stochastic=True),
    "G": lambda: weighted(1.0, 1, 1.5),
    "clf": lambda: S2MSampler(Weighted(1.0, 1, 1), several.NoClass()),
    "precision": lambda: weighted(1.0, 1, 1, plan=Plan(precision=torch.bfloat16)),
    "conditional": lambda: S2MSampler(lambda z, label: z, _with_D_f, z_dim=4, conditional=True),
}


def _with_D_f(x):  # noqa: N802
    class_logits, validity = RowwiseClassifier()(x)
    return class_logits, class_logits, validity


@pytest.fixture
def finished(path):
    weighted(1.0, 1, 1).sample_targets(**CALL, run=Run(path))
    return path


@pytest.mark.parametrize("name", CHANGES)
def test_another_call_is_refused_by_name(finished, name):
    change, named = CHANGES[name]
    call = CALL | change
    call["run"] = dataclasses.replace(call.get("run", Run()), checkpoint=finished)
    before = finished.read_bytes()
    with pytest.raises(ValueError, match=rf"is of a run with {named}=.*, not .*another file") as e:
        weighted(1.0, 1, 1).sample_targets(**call)
    assert str(finished) in str(e.value)
    assert finished.read_bytes() == before


@pytest.mark.parametrize("name", MODELS)
def test_another_sampler_is_refused_by_name(finished, name):
    other = "G" if name == "conditional" else name
    with pytest.raises(ValueError, match=rf"is of a run with {other}="):
        MODELS[name]().sample_targets(**CALL, run=Run(finished))


def test_another_proposal_class_is_refused(path):
    conditional().sample(0, (), 20, 5, seed=0, run=Run(path))
    with pytest.raises(ValueError, match="proposal_class=None, not 1"):
        conditional().sample(0, (), 20, 5, seed=0, proposal_class=1, run=Run(path))


def test_another_share_of_the_prior_is_refused(path):
    rowwise().sample(0, (), 20, 5, seed=0, run=Run(path), proposal=a_mixture(0.3))
    with pytest.raises(ValueError, match="proposal"):
        rowwise().sample(0, (), 20, 5, seed=0, run=Run(path), proposal=a_mixture(0.4))


def test_weights_in_another_order_are_refused(path):
    weighted(1.0, 2, 1).sample_targets(**CALL, run=Run(path))
    with pytest.raises(ValueError, match="G="):
        weighted(2.0, 1, 1).sample_targets(**CALL, run=Run(path))


def test_latents_in_another_order_are_refused(path):
    rowwise().sample(0, (), seed=0, run=Run(path), proposal=latents())
    with pytest.raises(ValueError, match="proposal="):
        rowwise().sample(0, (), seed=0, run=Run(path), proposal=latents().flip(0))


def test_another_number_of_numpy_is_refused(path):
    rowwise(weight=MinMax(gamma=np.float32(0.5))).sample(0, 1, 20, 5, seed=0, run=Run(path))
    with pytest.raises(ValueError, match="gamma="):
        rowwise(weight=MinMax(gamma=np.float32(0.25))).sample(0, 1, 20, 5, seed=0, run=Run(path))


NUMPY = {
    "gamma": (dict(weight=MinMax(gamma=np.float64(0.5))), {}),
    "gamma of each class": (dict(weight=MinMax(gamma=list(np.ones(3)))), {}),
    "temperature": (dict(weight=MinMax(temperature=np.float64(2))), {}),
    "tol": ({}, dict(n_steps="auto", method=IMH(tol=np.float64(0.1)))),
    "max_steps": ({}, dict(n_steps="auto", method=IMH(max_steps=np.int64(30)))),
    "samples_per_chain": ({}, dict(n_steps=5, method=IMH(samples_per_chain=np.int64(2)))),
    "thin": ({}, dict(n_steps=5, method=IMH(samples_per_chain=2, thin=np.int64(2)))),
    "first_chain": ({}, dict(n_steps=5, run=Run(first_chain=np.int64(3)))),
}
GOOD_NUMPY = {
    "seed": ({}, dict(n_steps=5, seed=np.int64(3))),
    "n_steps": ({}, dict(n_steps=np.int64(5))),
    "n_samples": ({}, dict(n_steps=5, n_samples=np.int64(20))),
    "targets": ({}, dict(n_steps=5, targets=[(np.array([0, 1]), np.int64(2))])),
    "gamma array": (dict(weight=MinMax(gamma=np.ones(3))), dict(n_steps=5)),
}


@pytest.mark.parametrize("name", [*GOOD_NUMPY, *NUMPY])
def test_numbers_of_numpy_are_numbers(path, name):
    of_sampler, call = (GOOD_NUMPY | NUMPY)[name]
    call = dict(targets=[((0, 1), (2,))], n_samples=20, seed=1, n_steps=5, run=Run()) | call
    call["run"] = dataclasses.replace(call["run"], checkpoint=path)
    first, second = (rowwise(**of_sampler).sample_targets(**call)[0] for _ in range(2))
    assert all(torch.equal(getattr(first, row), getattr(second, row)) for row in FIELDS)


class Bomb:
    """Unpickled, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("hidden", [False, True])
def test_code_is_not_executed(path, hidden):
    marker = path.with_name("executed")
    again(path, "imh")
    torch.save(read(path) | {"extra": Bomb(marker)} if hidden else Bomb(marker), path)
    with pytest.raises(ValueError, match=str(path)):
        again(path, "imh")
    assert not marker.exists()
    torch.load(path, weights_only=False)  # which shows that it was dangerous
    assert marker.exists()


def nothing_sampled():
    pytest.fail("G was called")


DAMAGE = {
    "empty": lambda whole: b"",
    "cut": lambda whole: whole[: len(whole) // 2],
    "garbage": lambda whole: b"\x00garbage\xff" * 99,
    "a byte less": lambda whole: whole[:-1],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_by_name(path, damage):
    again(path, "imh")
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"{path} is not a checkpoint"):
        CASES["imh"].run(nothing_sampled, checkpoint=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "state",
    [
        {"a": 1},
        {"s2m_sampling": module.VERSION + 1},
        [1, 2],
        torch.zeros(2),
        {"s2m_sampling": module.VERSION},
        {"s2m_sampling": module.VERSION - 1, "call": {}, "parts": {}},
    ],
    ids=str,
)
def test_a_file_of_something_else_is_refused_by_name(path, state):
    torch.save(state, path)
    with pytest.raises(ValueError, match=str(path)):
        CASES["imh"].run(nothing_sampled, checkpoint=path)


def test_where_nothing_can_be_written_is_said_first(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing"):
        CASES["imh"].run(nothing_sampled, checkpoint=tmp_path / "missing" / "file")
    with pytest.raises(ValueError, match="irectory"):
        CASES["imh"].run(nothing_sampled, checkpoint=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        CASES["imh"].run(nothing_sampled, checkpoint=tmp_path / "file" / "inside")


def test_the_generator_is_a_type():
    """Or the tests of other weights would show nothing."""
    assert list(RowwiseGenerator().state_dict()) == []
    assert list(Weighted(1.0, 1, 1).state_dict()) == ["scale"]
