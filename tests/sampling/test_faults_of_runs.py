"""Runs that something goes wrong with: nothing that was sampled is lost, and nobody waits for nothing."""

import contextlib
import functools
import itertools
import json
import math
import os
import random
import resource
import shutil
import signal
import threading
import time
import warnings

import pytest
import torch
import torch.distributed as dist
from several import (
    CASES,
    Children,
    at_call,
    at_write,
    before,
    child,
    differences,
    plain,
    rank_here,
    rowwise,
    said_by,
)
from toys import (
    FIELDS,
    PROBE_ROWS,
    ConditionalGaussianClassifier,
    ConditionalGaussianGenerator,
    RowwiseClassifier,
    RowwiseGenerator,
)

from spml_fast import IMH, MALA, MinMax, Mixture, Plan, Rejection, Run, S2MSampler
from spml_fast.sampling import SamplingWarning
from spml_fast.sampling import run as module

pytestmark = pytest.mark.filterwarnings("ignore:.*never met the support", "ignore:.*are missing")
several_processes = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="needs torch.distributed with gloo"
)
TERMINATED = -signal.SIGTERM
KILLED = -signal.SIGKILL


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.ckpt"


def read(path):
    return torch.load(path, weights_only=True)


def hidden(folder):
    return sorted(file.name for file in folder.glob(".*"))


def wait_for(file, seconds=30):
    end = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < end, f"{file} did not come"
        time.sleep(0.005)


# --- another G, clf or gamma ----------------------------------------------------------------------


class Scaled(RowwiseGenerator):
    """Its scale is neither a parameter nor a buffer."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, z):
        return self.scale * super().forward(z)


class Sharp(RowwiseClassifier):
    def __init__(self, sharpness):
        super().__init__()
        self.sharpness = sharpness

    def forward(self, x):
        class_logits, validity_logit = super().forward(x)
        return self.sharpness * class_logits, validity_logit


class OneLabelMoved(ConditionalGaussianGenerator):
    def __init__(self, label, by):
        super().__init__()
        self.label, self.by = label, by

    def forward(self, z, label):
        return super().forward(z, label) + self.by * (label == self.label)[:, None]


def called(function):
    return lambda argument: function(argument)


def gamma_of(value):
    return lambda I, J: value


BY_BEHAVIOUR = {  # (sampler of a number, targets)
    "G, a lambda": lambda a: S2MSampler(called(Scaled(a)), RowwiseClassifier(), z_dim=4),
    "G, a plain attribute": lambda a: S2MSampler(Scaled(a), RowwiseClassifier()),
    "clf, a lambda": lambda a: S2MSampler(RowwiseGenerator(), called(Sharp(a))),
    "clf, a plain attribute": lambda a: S2MSampler(RowwiseGenerator(), Sharp(a)),
    "G, one label alone": lambda a: S2MSampler(
        OneLabelMoved(1, a), ConditionalGaussianClassifier(), conditional=True
    ),
    "gamma, a function": lambda a: rowwise(weight=MinMax(gamma=gamma_of(a))),
    "gamma_J, a function": lambda a: rowwise(weight=MinMax(gamma_J=gamma_of(a))),
    "temperature, a function": lambda a: rowwise(weight=MinMax(temperature=gamma_of(a))),
}


@pytest.mark.parametrize("name", BY_BEHAVIOUR)
def test_models_that_behave_otherwise_are_refused(path, name):
    """They differ in nothing but what they return; types, names and parameters are the same."""
    make, call = BY_BEHAVIOUR[name], dict(n_samples=20, n_steps=6, seed=1, run=Run(path))
    targets = [((0,), (2,)), ((1,), (2,))]
    expected = [plain(result) for result in make(1.0).sample_targets(targets, **call)]
    before = path.read_bytes()
    named = "another G or clf" if name[0] in "Gc" else rf"{name.split(',')[0]}="
    with pytest.raises(ValueError, match=rf"{path} is of a run with {named}.*another file or delete") as e:
        make(1.2).sample_targets(targets, **call)
    assert "\n" not in str(e.value)
    assert path.read_bytes() == before
    found = [plain(result) for result in make(1.0).sample_targets(targets, **call)]
    assert differences(found, expected) == []


class Noisy(RowwiseGenerator):
    """It takes numbers from torch's generator, and does nothing with them."""

    def forward(self, z):
        torch.rand(3)
        return super().forward(z)


def test_to_tell_models_takes_no_random_numbers(path):
    """Without a file, with a new one, and with one that is there: none beyond those of the chains' own calls."""
    plan = Plan(block_steps=50)  # the x of the states are made again at the end, with a file and without
    states = []
    for run in (Run(), Run(path)):
        torch.manual_seed(3)
        S2MSampler(Noisy(), RowwiseClassifier(), plan=plan).sample(0, (), 20, 6, seed=1, run=run)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    calls = itertools.count()
    sampler = S2MSampler(Noisy(), RowwiseClassifier(), plan=plan)
    sampler.describe()
    before(sampler.models.G, lambda: next(calls))
    torch.manual_seed(3)
    sampler.sample(0, (), 20, 6, seed=1, run=Run(path))
    assert next(calls) == 2  # to tell it, and to decode
    state = torch.get_rng_state()
    torch.manual_seed(3)
    torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)


# --- one process fails ----------------------------------------------------------------------------


class FailingGenerator(RowwiseGenerator):
    """In process 1 alone, its ``at``-th call raises an error."""

    def __init__(self, at, error=ArithmeticError):
        super().__init__()
        self.at, self.error, self.calls = at, error, itertools.count(1)

    def forward(self, z):
        if len(z) > PROBE_ROWS and next(self.calls) == self.at and rank_here() == 1:
            raise self.error("G is broken")
        return super().forward(z)


class FailingClassifier(RowwiseClassifier):
    """In process 1 alone, it returns NaN the third time."""

    def __init__(self):
        super().__init__()
        self.calls = itertools.count(1)

    def forward(self, x):
        class_logits, validity_logit = super().forward(x)
        bad = len(x) > PROBE_ROWS and next(self.calls) == 3 and rank_here() == 1
        return class_logits * (math.nan if bad else 1), validity_logit


def failing_draw():
    calls = itertools.count(1)

    def draw(n, generator):
        if next(calls) == 3 and rank_here() == 1:
            raise ArithmeticError("no more numbers")
        return torch.randn(n, 4, generator=generator)

    return draw


class UnpicklableError(Exception):
    def __init__(self, message):
        super().__init__(message, lambda: None)


STEPWISE = Plan(block_steps=1, batch_size=64)


def failing_sampler(G=None, clf=None):
    return S2MSampler(G or RowwiseGenerator(), clf or RowwiseClassifier(), plan=STEPWISE)


FAILURES = {  # a call, and the error of process 1
    "NaN logits": (lambda: failing_sampler(clf=FailingClassifier()).sample(0, (), 101, 33), "ValueError", "NaN"),
    "G": (lambda: failing_sampler(FailingGenerator(3)).sample(0, (), 101, 33), "ArithmeticError", "G is broken"),
    "G, another kind of exception": (
        lambda: failing_sampler(FailingGenerator(3, UnpicklableError)).sample(0, (), 101, 33),
        "UnpicklableError",
        "G is broken",
    ),
    "memory": (
        lambda: failing_sampler(FailingGenerator(3, torch.OutOfMemoryError)).sample(0, (), 101, 33),
        "OutOfMemoryError",
        "G is broken",
    ),
    "a function that draws": (
        lambda: failing_sampler().sample(0, (), 101, 33, proposal=failing_draw()),
        "ArithmeticError",
        "no more numbers",
    ),
    "decoding": (
        lambda: failing_sampler(FailingGenerator(5)).sample(0, (), 101, 4),
        "ArithmeticError",
        "G is broken",
    ),
    "a Langevin step": (
        lambda: failing_sampler(FailingGenerator(20)).sample(0, (), 101, 33, method=MALA()),
        "ArithmeticError",
        "G is broken",
    ),
    "an adaptation": (
        lambda: failing_sampler(FailingGenerator(3)).adapt((0, 1), how=Mixture(n_chains=100)),
        "ArithmeticError",
        "G is broken",
    ),
}


def fail_and_sample_again(folder, name):
    found = said_by(FAILURES[name][0])
    ended = time.time()
    torch.save((found, ended, CASES["imh"].run(gather=True)), folder / f"failed{rank_here()}.pt")


@pytest.mark.slow
@several_processes
@pytest.mark.parametrize("name", FAILURES)
def test_a_process_that_fails_ends_the_run_in_all_at_once(tmp_path, name):
    """The group is alive: the same processes sample again."""
    statuses, said = child(tmp_path, fail_and_sample_again, tmp_path, name, size=2, limit=20)
    assert statuses == [0, 0], said
    (first, ended_0, again_0), (second, ended_1, again_1) = (
        torch.load(tmp_path / f"failed{r}.pt") for r in (0, 1)
    )
    _, kind, message = FAILURES[name]
    assert second[0] == kind
    assert message in second[1]
    assert first == (
        "FailedProcessError",
        f"S2M sampling in process 0 of 2 ends because process 1 failed: {kind}: {second[1]}",
    )
    assert abs(ended_0 - ended_1) < 1
    expected = CASES["imh"].run()
    assert differences(again_0, expected) == []
    assert differences(again_1, expected) == []


def fail_to_open(folder):
    sampler, rank = rowwise(), rank_here()
    missing = Run(folder / "missing" / "file")
    found = said_by(lambda: sampler.sample(0, (), 20, 5, run=missing))
    torch.save((found, CASES["imh"].run(gather=True)), folder / f"failed{rank}.pt")


@several_processes
def test_a_checkpoint_that_cannot_be_opened_ends_the_run_in_all(tmp_path):
    """The first process opens it for all."""
    statuses, said = child(tmp_path, fail_to_open, tmp_path, size=2, limit=20)
    assert statuses == [0, 0], said
    (first, _), (second, again) = (torch.load(tmp_path / f"failed{r}.pt") for r in (0, 1))
    assert first[0] == "FileNotFoundError"
    assert second[0] == "FailedProcessError"
    assert f"process 0 failed: FileNotFoundError: {first[1]}" in second[1]
    assert differences(again, CASES["imh"].run()) == []


# --- two runs on one file -------------------------------------------------------------------------


def run_slowly(folder, path, name="imh", calls=0, then=None, **options):
    """A run of which a file tells that it made so many calls of G, and another one that it returned."""

    def hook():
        time.sleep(0.02)
        count()

    count = at_call(calls, lambda: (folder / f"going {rank_here()}").touch())
    found = CASES[name].run(hook, checkpoint=path, **options)
    (folder / f"returned {rank_here()}").touch()
    torch.save(found, folder / f"found{rank_here()}.pt")


@pytest.mark.parametrize("end", ["killed", "over"])
def test_a_file_is_for_one_run_at_a_time(tmp_path, path, end):
    run = Children(tmp_path, 1, functools.partial(run_slowly, every=0.0), tmp_path, path, "imh", 3)
    wait_for(tmp_path / "going 0")
    with pytest.raises(ValueError, match=rf"{path} is in use by another run"):
        CASES["imh"].run(lambda: pytest.fail("G was called"), checkpoint=path)
    if end == "killed":
        os.kill(run.children[0].pid, signal.SIGKILL)
    assert run.end() == [KILLED if end == "killed" else 0], run.said(0)
    expected = CASES["imh"].run()
    assert differences(CASES["imh"].run(checkpoint=path), expected) == []
    if end == "over":
        assert differences(torch.load(tmp_path / "found0.pt"), expected) == []
    assert hidden(tmp_path) == []


def test_a_run_within_a_run_is_refused_its_file(path):
    """Of the same process."""
    said = []

    def another():
        said.append(said_by(lambda: CASES["imh"].run(checkpoint=path)))

    found = CASES["imh"].run(at_call(3, another), checkpoint=path, every=0.0)
    assert said == [("ValueError", f"{path} is in use by another run, which is not over")]
    assert differences(found, CASES["imh"].run()) == []
    assert hidden(path.parent) == []


def test_runs_with_files_of_their_own_go_on_side_by_side(path):
    said = []

    def another():
        said.append(differences(CASES["imh"].run(checkpoint=path.with_name("other")), CASES["imh"].run()))

    CASES["imh"].run(at_call(3, another), checkpoint=path, every=0.0)
    assert said == [[]]


# --- a file that cannot be written ----------------------------------------------------------------


def warned_run(hook, **options):
    """Results of a case as plain values, and the warnings of its run but for those of its samples."""
    sampler = rowwise()
    sampler.describe()
    before(sampler.models.G, hook or (lambda: None))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = sampler.sample_targets([((0, 1), (2,)), ((0,), ())], 101, 33, seed=5, run=Run(**options))
    warned = [warning for warning in caught if "checkpoint" in str(warning.message)]
    assert all(issubclass(warning.category, SamplingWarning) for warning in warned)
    return [plain(result) for result in results], [str(warning.message) for warning in warned]


def full(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("n", [2, 4])
def test_a_write_that_fails_is_told_and_tried_again(path, monkeypatch, n):
    at_write(path, n, full, monkeypatch.setattr)
    sizes = []
    found, warned = warned_run(
        lambda: sizes.append(path.exists() and len(read(path)["parts"])), checkpoint=path, every=0.0
    )
    assert differences(found, CASES["imh"].run()) == []
    assert len(warned) == 1
    assert str(path) in warned[0]
    assert "No space left on device" in warned[0]
    assert sizes[-1] == 1
    assert read(path)["parts"]["pool 0"]["done"] == 33
    assert hidden(path.parent) == []


def test_a_first_write_that_fails_ends_the_run_before_it_begins(path, monkeypatch):
    at_write(path, 1, full, monkeypatch.setattr)
    with pytest.raises(OSError, match="No space left on device"):
        warned_run(None, checkpoint=path)
    assert list(path.parent.iterdir()) == []
    assert differences(warned_run(None, checkpoint=path)[0], CASES["imh"].run()) == []


def test_a_folder_that_goes_and_comes_back(path):
    folder = path.parent / "folder"
    folder.mkdir()
    file = folder / "run.ckpt"
    going, coming = at_call(4, lambda: shutil.rmtree(folder)), at_call(6, folder.mkdir)
    found, warned = warned_run(lambda: (going(), coming()), checkpoint=file, every=0.0)
    assert differences(found, CASES["imh"].run()) == []
    assert 1 <= len(warned) <= 2
    assert all(str(file) in text for text in warned)
    assert read(file)["parts"]["pool 0"]["done"] == 33
    assert hidden(folder) == []


def short_of_space(folder, path):
    """Files may have no more than a few bytes between the third and the sixth call of G."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    less = at_call(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1])))
    more = at_call(6, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
    found, warned = warned_run(lambda: (less(), more()), checkpoint=path, every=0.0)
    torch.save((found, warned), folder / "found.pt")


def test_a_file_that_does_not_fit(tmp_path, path):
    statuses, said = child(tmp_path, short_of_space, tmp_path, path)
    assert statuses == [0], said
    found, warned = torch.load(tmp_path / "found.pt")
    assert differences(found, CASES["imh"].run()) == []
    assert len(warned) >= 1
    assert all(str(path) in text for text in warned)
    assert read(path)["parts"]["pool 0"]["done"] == 33
    assert hidden(tmp_path) == []


# --- Ctrl-C at any time ---------------------------------------------------------------------------


class CountedGenerator(RowwiseGenerator):
    rows = 0

    def forward(self, z):
        self.rows += len(z) if len(z) > PROBE_ROWS else 0
        return super().forward(z)


class FiveClasses(RowwiseClassifier):
    def forward(self, x):
        class_logits, validity_logit = super().forward(x)
        return torch.cat([class_logits, class_logits[:, :2].flip(1) - 0.3 * x[:, 2:]], 1), validity_logit


SUBSETS = [I for n in (1, 2, 3) for I in itertools.combinations(range(5), n)]
HUNDRED = [(I, J) for I in SUBSETS for J in [(), *SUBSETS] if not {*I} & {*J}][:100]
INTERRUPTED = {  # targets, n_samples, n_steps, options
    "imh": ([((0, 1), (2,)), ((0,), ())], 64, 3000, {}),
    "rejection": (HUNDRED, 64, 300, {"method": Rejection()}),
}


def sample(name, G, n_steps=None):
    targets, n_samples, steps, options = INTERRUPTED[name]
    sampler = S2MSampler(G, FiveClasses(), plan=Plan(block_steps=25))
    return sampler.sample_targets(targets, n_samples, n_steps or steps, seed=5, **options)


def interrupted_at_random(folder, name, n):
    """Runs that SIGINT comes to, each at a random moment: what they return, rows of G, whether it came in time."""
    warnings.simplefilter("ignore", SamplingWarning)
    rng, found, rows, came = random.Random(name), [None] * n, [], [True] * n
    for _ in range(2):
        began = time.monotonic()
        sample(name, CountedGenerator())
        seconds = time.monotonic() - began
    for k in range(n):
        moment, G = (k + rng.random()) / n * 0.95 * seconds, CountedGenerator()
        timer = threading.Timer(moment, os.kill, (os.getpid(), signal.SIGINT))
        with contextlib.suppress(KeyboardInterrupt):
            timer.start()
            found[k] = sample(name, G)
            came[k] = timer.finished.is_set()
            timer.join()
            time.sleep(0.05)
        timer.join()
        rows.append(G.rows)
    found = [results and [plain(result) for result in results] for results in found]
    torch.save([*zip(found, rows, came, strict=True)], folder / "found.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERRUPTED)
def test_ctrl_c_at_random_moments(tmp_path, name):
    """Whatever was accepted is returned."""
    statuses, said = child(tmp_path, interrupted_at_random, tmp_path, name, 8)
    assert statuses == [0], said
    runs = torch.load(tmp_path / "found.pt")
    assert len(runs) == 8
    n_interrupted, whole = 0, INTERRUPTED[name][2]
    assert sum(came for *_, came in runs) >= 3
    for found, rows, _ in runs:
        if found is None:
            assert rows == 0  # nothing there to return
            continue
        n_steps = found[0]["diagnostics"]["n_steps"]
        assert n_steps == whole or found[0]["diagnostics"]["interrupted"]
        n_interrupted += n_steps < whole
        expected = sample(name, CountedGenerator(), n_steps)
        for got, want in zip(found, map(plain, expected), strict=True):
            assert [row for row in FIELDS if not torch.equal(got[row], want[row])] == []
    assert n_interrupted >= 1


def kept(call):
    try:
        return call()
    except KeyboardInterrupt:
        pytest.fail("the run is lost")


def test_ctrl_c_while_the_file_is_written_waits(path, monkeypatch):
    at_write(path, 3, lambda *_: os.kill(os.getpid(), signal.SIGINT), monkeypatch.setattr)
    found = kept(lambda: CASES["imh"].run(checkpoint=path, every=0.0))
    assert found[0]["diagnostics"]["interrupted"]
    done = read(path)["parts"]["pool 0"]["done"]
    assert 0 < found[0]["diagnostics"]["n_steps"] == done < 33
    assert differences(CASES["imh"].run(checkpoint=path), CASES["imh"].run()) == []


def test_ctrl_c_while_samples_are_decoded_loses_none(monkeypatch):
    monkeypatch.setattr("spml_fast.sampling.run.KEPT_BYTES", 0)
    G = CountedGenerator()
    before(G, at_call(8, lambda: os.kill(os.getpid(), signal.SIGINT)))
    sampler = S2MSampler(G, RowwiseClassifier(), plan=Plan(block_steps=5))
    result = kept(lambda: sampler.sample(0, (), 64, 30, seed=5))
    assert G.rows > 64 * 30  # the eighth call decodes
    assert result.diagnostics.n_steps == 30
    assert result.diagnostics.interrupted
    assert torch.equal(result.samples, rowwise().sample(0, (), 64, 30, seed=5).samples)


def test_ctrl_c_a_second_time_raises_at_once(path):
    """While G still computes."""
    reached = []

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("first")
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("second")

    with pytest.raises(KeyboardInterrupt):
        CASES["imh"].run(at_call(5, twice), checkpoint=path, every=0.0)
    assert reached == ["first"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert read(path)["parts"]["pool 0"]["done"] > 0
    assert differences(CASES["imh"].run(checkpoint=path), CASES["imh"].run()) == []


def test_ctrl_c_a_second_time_in_a_later_pool_raises_as_well():
    """It is not taken for the first, which ends the pool and returns those before it."""
    pools = []

    class Twice(ConditionalGaussianGenerator):
        def forward(self, z, label):
            pools.append(int(label[0]))
            if pools[-1] == 1:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return super().forward(z, label)

    with pytest.raises(KeyboardInterrupt):
        S2MSampler(Twice(), ConditionalGaussianClassifier()).sample_targets([(0, ()), (1, ())], 20, 5, seed=0)
    assert set(pools) == {0, 1}


def test_models_of_numbers_without_dimensions_are_told_apart(path):
    """G may return one number for each latent."""

    def sampler(scale):
        return S2MSampler(lambda z: scale * z[:, 0], lambda x: (torch.stack([x, -x], 1), x), z_dim=2)

    call = dict(n_samples=10, n_steps=4, seed=0, run=Run(path))
    first = sampler(1.0).sample(0, (), **call)
    assert differences(plain(sampler(1.0).sample(0, (), **call)), plain(first)) == []
    with pytest.raises(ValueError, match=r"is of a run with (another G or clf|G=)"):
        sampler(2.0).sample(0, (), **call)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_handler_of_the_callers_own_is_left(path, number):
    came = []
    handler = lambda *_: came.append(number)  # noqa: E731
    old = signal.signal(number, handler)
    try:
        found = CASES["imh"].run(at_call(4, lambda: os.kill(os.getpid(), number)), checkpoint=path)
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, old)
    assert came == [number]
    assert differences(found, CASES["imh"].run()) == []


def test_handlers_are_put_back(path):
    """After a run, and after one that failed."""
    old = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    CASES["imh"].run(checkpoint=path)
    with pytest.raises(ZeroDivisionError):
        CASES["imh"].run(lambda: 1 / 0)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == old


# --- a slow generator -----------------------------------------------------------------------------


class SlowImages(RowwiseGenerator):
    """Images of 32 x 32, so many a second; a file tells how many rows it was asked for."""

    def __init__(self, per_second, log):
        super().__init__()
        self.per_second, self.log = per_second, log

    def forward(self, z):
        with self.log.open("a") as file:
            file.write(f"{len(z)}\n")
        time.sleep(len(z) / self.per_second)
        return super().forward(z)[:, :, None, None] * torch.ones(32, 32)


class ImageClassifier(RowwiseClassifier):
    def forward(self, x):
        return super().forward(x[:, :, 0, 0])


def of_images(log, n_steps, every, per_second=math.inf, path=None):
    sampler = S2MSampler(SlowImages(per_second, log), ImageClassifier())
    return sampler.sample((0, 1), (2,), 64, n_steps, seed=1, run=Run(path, every=every))


def sample_images(folder, log, *arguments, block_seconds):
    module.BLOCK_SECONDS = block_seconds
    result = of_images(log, *arguments)
    torch.save(
        (vars(result) | {"joint_class": None, "diagnostics": result.diagnostics.to_dict()}), folder / "found.pt"
    )


def rows_in(log):
    return sum(map(int, log.read_text().split()))


def send(folder, number, after, *arguments, block_seconds):
    """The exit status of a child that gets a signal some seconds after its first image, and how long that took."""
    log = arguments[0]
    run = Children(folder, 1, functools.partial(sample_images, block_seconds=block_seconds), folder, *arguments)
    wait_for(log)
    time.sleep(after)
    sent = time.monotonic()
    os.kill(run.children[0].pid, number)
    (status,) = run.end()
    return status, time.monotonic() - sent


PACES = [  # images a second, steps, seconds between checkpoints and blocks, and to the signal
    pytest.param(10_000, 512, 0.3, 0.1, 1.2, id="fast"),
    pytest.param(2_000, 1024, 2.0, 1.0, 5.0, id="slow", marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize(("per_second", "n_steps", "every", "block_seconds", "after"), PACES)
def test_ctrl_c_with_a_slow_generator(tmp_path, per_second, n_steps, every, block_seconds, after):
    log = tmp_path / "rows"
    status, seconds = send(
        tmp_path, signal.SIGINT, after, log, n_steps, every, per_second, block_seconds=block_seconds
    )
    assert status == 0
    assert seconds < 2
    found = torch.load(tmp_path / "found.pt")
    steps = found["diagnostics"]["n_steps"]
    assert found["diagnostics"]["interrupted"]
    assert len(found["samples"]) == 64
    assert 0 <= rows_in(log) - 64 * steps <= 2 * 64  # decoded, and a batch that was not whole
    assert steps > after * per_second / 64 / 2
    expected = of_images(tmp_path / "all", steps, every)
    for field in FIELDS:
        assert torch.equal(found[field], getattr(expected, field)), field


@pytest.mark.slow
@pytest.mark.parametrize(("per_second", "n_steps", "every", "block_seconds", "after"), PACES)
def test_killed_with_a_slow_generator(tmp_path, path, per_second, n_steps, every, block_seconds, after):
    log, rest = tmp_path / "rows", tmp_path / "rest"
    arguments = (log, n_steps, every, per_second, path)
    status, _ = send(tmp_path, signal.SIGKILL, after, *arguments, block_seconds=block_seconds)
    assert status == KILLED
    result = of_images(rest, n_steps, every, path=path)
    twice = rows_in(log) + rows_in(rest) - 64 * n_steps - 64 - 2 * 4  # less what is decoded, and probes
    assert rows_in(log) > after * per_second / 2
    assert twice <= (every + block_seconds) * per_second + 64
    expected = of_images(tmp_path / "all", n_steps, every)
    for field in FIELDS:
        assert torch.equal(getattr(result, field), getattr(expected, field)), field


# --- SIGTERM --------------------------------------------------------------------------------------

LONG = dict(n_steps=2000, every=1000.0)


def terminate(folder, path, size, which, name="imh", calls=5, **options):
    """Processes of which some get SIGTERM; their exit statuses, and the seconds they took."""
    run = Children(folder, size, functools.partial(run_slowly, **options), folder, path, name, calls)
    for rank in range(size):
        wait_for(folder / f"going {rank}")
    sent = time.monotonic()
    for rank in which:
        os.kill(run.children[rank].pid, signal.SIGTERM)
    statuses = run.end()
    seconds = time.monotonic() - sent
    assert not list(folder.glob("returned*"))
    return statuses, seconds, [run.said(rank) for rank in range(size)]


@pytest.mark.slow
def test_sigterm_ends_the_process_once_the_file_is_written(tmp_path, path):
    statuses, seconds, said = terminate(tmp_path, path, 1, [0], **LONG)
    assert statuses == [TERMINATED], said
    assert seconds < 2
    assert read(path)["parts"]["pool 0"]["done"] >= 5 * 3
    assert hidden(tmp_path) == []
    found = CASES["imh"].run(checkpoint=path, **LONG)
    assert differences(found, CASES["imh"].run(n_steps=2000)) == []


@pytest.mark.slow
@several_processes
@pytest.mark.parametrize("which", [[0, 1], [1], [0]])
def test_sigterm_in_two_processes(tmp_path, path, which):
    """All of them, as of an agent; or one, of which the other one is told."""
    statuses, seconds, said = terminate(tmp_path, path, 2, which, **LONG)
    assert statuses == [TERMINATED if rank in which else 1 for rank in range(2)], said
    assert seconds < 2
    for rank in {0, 1} - {*which}:
        assert "LostProcessError" in said[rank]
        assert "SIGTERM" in said[rank]
    assert read(path)["parts"]["pool 0"]["done"] >= 5 * 3
    assert hidden(tmp_path) == []
    found = CASES["imh"].run(checkpoint=path, **LONG)
    assert differences(found, CASES["imh"].run(n_steps=2000)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "calls", "parts"), [("adapt", 5, set()), ("mala", 25, {"pool 0"})])
def test_sigterm_in_other_phases(tmp_path, path, name, calls, parts):
    statuses, seconds, said = terminate(tmp_path, path, 1, [0], name, calls)
    assert statuses == [TERMINATED], said
    assert seconds < 2
    found = read(path)["parts"]
    assert {part: found[part]["done"] > 16 for part in found} == dict.fromkeys(parts, True)
    assert differences(CASES[name].run(checkpoint=path), CASES[name].run()) == []


def test_sigterm_without_a_checkpoint_ends_the_process_there(tmp_path):
    """In the middle of a call of G."""
    statuses, seconds, said = terminate(tmp_path, None, 1, [0], n_steps=2000)
    assert statuses == [TERMINATED], said
    assert seconds < 2


# --- what a checkpoint sends ----------------------------------------------------------------------


class Large(RowwiseGenerator):
    """Images of 16 KiB."""

    def forward(self, z):
        return super().forward(z)[:, :, None].repeat(1, 1, 1366)


class OfLarge(RowwiseClassifier):
    def forward(self, x):
        return super().forward(x[:, :, 0])


def received(folder, path):
    """Bytes that each process receives: without a checkpoint, and for one."""
    total = 0

    def counting(name, rows):
        real = getattr(dist, name)

        def call(*arguments, **options):
            nonlocal total
            total += sum(tensor.numel() * tensor.element_size() for tensor in rows(*arguments))
            return real(*arguments, **options)

        setattr(dist, name, call)

    counting("broadcast", lambda tensor, source, *_: [tensor] if source != rank_here() else [])
    counting("recv", lambda tensor, *_: [tensor])
    counting("all_gather", lambda tensors, *_: tensors)
    found = []
    for checkpoint in (None, path):
        total = 0
        sampler = S2MSampler(Large(), OfLarge(), plan=Plan(block_steps=5), stochastic=True)
        sampler.sample(0, (), 60, 20, seed=1, method=IMH(samples_per_chain=2), run=Run(checkpoint, every=0.0))
        found.append(total)
    (folder / f"received{rank_here()}").write_text(json.dumps(found))


@several_processes
def test_a_checkpoint_is_gathered_in_the_first_process_alone(tmp_path, path):
    """Or what all chains keep would be in the memory of every process."""
    statuses, said = child(tmp_path, received, tmp_path, path, size=2)
    assert statuses == [0, 0], said
    (none_0, bytes_0), (none_1, bytes_1) = (json.loads((tmp_path / f"received{r}").read_text()) for r in (0, 1))
    chains = 15 * 16 * 1024  # of the images that the other process keeps
    assert none_0 < chains
    assert none_1 < chains
    assert bytes_0 - none_0 > 4 * chains
    assert bytes_1 - none_1 < chains / 10
