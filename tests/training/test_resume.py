"""A training that was killed at any moment ends as one that nobody disturbed.

The killed runs are children of a server process that has imported everything once. Most kill themselves at a given
point, by which the moment is exact; the points are calls of ``os.replace``, with which a file gets its final name,
and calls in the middle of an epoch.
"""

import functools
import itertools
import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from torch import nn
from trainings import TRACKED, leave_out_pictures
from trainings import train as train_on_cpu

import spml_fast.training.linear
from spml_fast._checkpoint import exclusive
from spml_fast.cli import main
from spml_fast.data import MultiLabelData, digit_attributes
from spml_fast.training import RunRecord, Validation

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["pytest", "spml_fast.cli", "spml_fast.training.finetune", "sklearn.datasets", "sklearn.model_selection"]
)
LINEAR_LOSSES = ("role", "em_apl", "ll_cp", "gr", "pns")
EPOCHS, BATCH_SIZES = 4, (32, 64)
LINEAR_EPOCHS = EPOCHS * len(BATCH_SIZES)
BEFORE = 2  # epochs of the linear phase of LinearInit
FOREVER = 300
"""Seconds that a child waits for its end from outside: it never comes to the end of them."""


# --- runs -----------------------------------------------------------------------------------------


class Own(nn.Module):
    """A user's loss with a state of its own: it counts its batches, and the count matters."""

    def __init__(self):
        super().__init__()
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, logits, labels):
        self.batches += 1
        target = torch.nn.functional.one_hot(labels.clamp_min(0), logits.shape[1]).float()
        loss = nn.functional.binary_cross_entropy_with_logits(logits, target)
        return loss * (1 + 0.5 * torch.sin(self.batches))


def trunk(dropout=0.3):
    """What is easily lost: running statistics, and what dropout draws."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(72, 24),
        )


@functools.cache
def digits(images, rows=600):
    """Digits with few rows; every row has an observed label."""
    splits = digit_attributes(images=images)
    train = splits.train
    keep = (train.observed >= 0).nonzero().flatten()[:rows]
    test = splits.test
    return (
        MultiLabelData(train.x[keep], train.labels[keep], train.observed[keep], train.names),
        MultiLabelData(test.x[:150], test.labels[:150], names=test.names),
    )


GRID = dict(lr=(1e-2, 1e-3), batch_size=BATCH_SIZES, epochs=EPOCHS)


def train(mode, loss, out, dropout=0.3, *, linear=None, finetune=None, **options):
    """The runs of this file, whose phases' options ``linear`` and ``finetune`` change; "own" is a loss as well."""
    data, test = digits(mode != "linear", 600 if mode == "linear" else 200)
    phases = {}
    if mode == "linear" or linear is not None:
        phases["linear"] = GRID | (linear or {})
    if mode == "linear_init":
        phases["linear"] = dict(lr=1e-2, batch_size=32, epochs=BEFORE) | (linear or {})
    if mode != "linear":
        phases["finetune"] = dict(trunk=trunk(dropout), lr=1e-3, batch_size=32, epochs=EPOCHS) | (finetune or {})
    options = dict(loss=Own() if loss == "own" else loss, test=test, seed=3) | options
    return train_on_cpu(data, out=out, **phases, **options)


@functools.cache
def undisturbed(mode, loss, dropout=0.3):
    return train(mode, loss, TRACKED, dropout)


# --- ends -----------------------------------------------------------------------------------------


def as_here():
    """In a child: one thread, no pictures."""
    torch.set_num_threads(1)
    leave_out_pictures()


def at_call(n, owner, name, act, only=lambda *args: True, patch=setattr):
    """At the n-th call of ``owner.name`` for which ``only`` holds, ``act(the call as it was, *arguments)``."""
    real, calls = getattr(owner, name), itertools.count(1)

    def call(*args, **kwargs):
        if only(*args) and next(calls) == n:
            act(functools.partial(real, *args, **kwargs), *args)
        return real(*args, **kwargs)

    patch(owner, name, call)


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def wait(*_):
    time.sleep(FOREVER)


def _half(_, part, __):
    os.truncate(part, os.path.getsize(part) // 2)
    die()


def _after(replace, *_):
    replace()
    die()


AT_FILE = {"half of the part": _half, "part without a name": die, "file with its name": _after}


def in_an_epoch(n, act, patch=setattr):
    """``act`` at the n-th batch, counted from 1 in either loop."""
    from spml_fast.training.module import SPMLModule

    at_call(n, spml_fast.training.linear.LinearGroup, "train_batch", act, patch=patch)
    at_call(n, SPMLModule, "training_step", act, patch=patch)


def _child(run, moment, place, n, act):
    """Train until ``act`` at the n-th ``moment``: a file name's, or a batch."""
    as_here()
    if moment == "batch":
        in_an_epoch(n, act)
    else:
        at_call(n, os, "replace", act, only=lambda _, target: Path(target).name == place)
    train(*run)


def killed(*arguments):
    """A child that trains as ``_child(*arguments)`` does and kills itself."""
    child = PROCESSES.Process(target=_child, args=arguments)
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


def killed_from_outside(target, arguments, file, signal_number=signal.SIGKILL):
    """Its exit status, after a signal once ``file`` is there."""
    child = PROCESSES.Process(target=target, args=arguments)
    child.start()
    for _ in range(6000):
        if file.exists() or not child.is_alive():
            break
        time.sleep(0.01)
    assert child.is_alive()
    os.kill(child.pid, signal_number)
    child.join(60)
    return child.exitcode


# --- what must be the same ------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _one_thread_and_no_pictures(monkeypatch, threads):
    threads(1)  # one order of operations, and no threads that wait for each other in small networks
    leave_out_pictures(monkeypatch.setattr)


@pytest.fixture
def trained(monkeypatch):
    """Names of the epochs that this process trains: a list of "linear" and "finetune"."""
    from spml_fast.training.module import SPMLModule

    epochs = []
    for owner, name, phase in (
        (spml_fast.training.linear.LinearGroup, "train_epoch", "linear"),
        (SPMLModule, "on_train_epoch_start", "finetune"),
    ):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda self, real=real, phase=phase: epochs.append(phase) or real(self))
    return epochs


def assert_close(a, b, where="result"):
    """Nested, within 1e-6; "seconds" aside."""
    if isinstance(a, torch.Tensor | np.ndarray):
        a, b = torch.as_tensor(a), torch.as_tensor(b)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=lambda m: f"{where}: {m}")
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            if key != "seconds":
                assert_close(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_close(x, y, f"{where}[{i}]")
    elif isinstance(a, float):
        assert b == pytest.approx(a, abs=1e-6, nan_ok=True), where
    else:
        assert a == b, where


FIELDS = ("metrics", "rows", "train_probabilities", "estimates", "test_probabilities", "counts")


def assert_same_result(result, expected):
    for name in FIELDS:
        assert_close(getattr(result, name), getattr(expected, name), name)
    assert_close(dict(result.model.state_dict()), dict(expected.model.state_dict()), "weights")


def same_bits(a, b):
    weights = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return torch.equal(a.train_probabilities, b.train_probabilities) and all(torch.equal(x, y) for x, y in weights)


# --- the linear phase -----------------------------------------------------------------------------

BATCHES = {size: -(-480 // size) for size in BATCH_SIZES}  # four fifths of 600 rows
LINEAR_ENDS = [
    # moment, n, how, epochs in the checkpoint then, or None: no checkpoint yet
    ("file", 1, "half of the part", 0),
    ("file", 3, "half of the part", 2),
    ("file", 6, "part without a name", 5),
    ("file", 4, "file with its name", 4),  # between the two batch sizes
    ("file", 8, "file with its name", 8),
    ("batch", BATCHES[32] + 5, None, 1),
    ("batch", 4 * BATCHES[32] + 2 * BATCHES[64] + 3, None, 6),
]


def end_of(end):
    moment, n, how, _ = end
    return f"{moment} {n} {how or ''}".strip()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "end"),
    [
        pytest.param(loss, end, id=f"{loss}, {end_of(end)}")
        for loss in (*LINEAR_LOSSES, "own")
        for end in (LINEAR_ENDS if loss == "role" else LINEAR_ENDS[2::2])
    ],
)
def test_a_killed_linear_phase_continues(tmp_path, trained, loss, end):
    moment, n, how, kept = end
    run = ("linear", loss, tmp_path)
    killed(run, moment, "linear.pt", n, die if how is None else AT_FILE[how])
    assert not (tmp_path / "metrics.json").exists()
    assert (tmp_path / "linear.pt").exists() == (kept > 0)
    result = train(*run)
    assert trained == ["linear"] * (LINEAR_EPOCHS - kept)
    expected = undisturbed("linear", loss)
    assert_same_result(result, expected)
    assert same_bits(result, expected)


def test_what_must_be_kept_matters():
    """That the states above are there to be lost: without them the results would differ."""
    pns, again = undisturbed("linear", "pns"), train("linear", {"name": "pns", "seed": 1}, None)
    assert not torch.allclose(pns.train_probabilities, again.train_probabilities, atol=1e-3)
    assert undisturbed("linear", "role").estimates is not None
    drop = [undisturbed("finetune", "gr"), train("finetune", "gr", None, seed=4)]
    assert not torch.allclose(*(result.train_probabilities for result in drop), atol=1e-3)


@pytest.mark.slow
def test_killed_again_and_again(tmp_path, trained):
    run = ("linear", "role", tmp_path)
    killed(run, "batch", None, 3, die)
    killed(run, "file", "linear.pt", 2, AT_FILE["file with its name"])
    killed(
        run, "file", "linear.pt", 2, AT_FILE["part without a name"]
    )  # the second of this process: one more kept
    killed(run, "batch", None, 5, die)
    result = train(*run)
    assert trained == ["linear"] * (LINEAR_EPOCHS - 3)
    assert_same_result(result, undisturbed("linear", "role"))


# --- fine-tuning ----------------------------------------------------------------------------------

TUNED = [
    # mode, loss, dropout
    ("finetune", "role", 0.3),
    ("finetune", "gr", 0.3),
    ("linear_init", "role", 0.3),
    ("linear_init", "gr", 0.3),
    ("finetune", "role", 0.0),
    ("finetune", "ll_cp", 0.0),
]
STEPS = 5  # batches of 32 of 160 rows
FINETUNE_ENDS = [
    ("file", 1, "half of the part", 0),
    ("file", 3, "half of the part", 2),
    ("file", 2, "part without a name", 1),
    ("file", 3, "file with its name", 3),
    ("file", 4, "file with its name", 4),
    ("batch", 2 * STEPS + 3, None, 2),
]
TUNED_AND_KILLED = [
    pytest.param(
        case,
        end,
        id=f"{case[0]} {case[1]} {case[2]}, {end_of(end)}",
    )
    for case in TUNED
    for end in (FINETUNE_ENDS if case in (TUNED[0], TUNED[-1]) else FINETUNE_ENDS[1::4])
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "end"), TUNED_AND_KILLED)
def test_killed_fine_tuning_continues(tmp_path, trained, case, end):
    (mode, loss, dropout), (moment, n, how, kept) = case, end
    run = (mode, loss, tmp_path, dropout)
    if moment == "batch":
        killed_in_fine_tuning(run, n)
    else:
        killed(run, moment, "finetune.ckpt", n, AT_FILE[how])
    assert not (tmp_path / "metrics.json").exists()
    assert (tmp_path / "finetune.ckpt").exists() == (kept > 0)
    result = train(*run)
    assert trained == ["finetune"] * (EPOCHS - kept)
    assert_same_result(result, undisturbed(mode, loss, dropout))


def killed_in_fine_tuning(run, n):
    """At the n-th batch there, whatever went before."""
    child = PROCESSES.Process(target=_die_in_fine_tuning, args=(run, n))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


def _die_in_fine_tuning(run, n):
    from spml_fast.training.module import SPMLModule

    as_here()
    at_call(n, SPMLModule, "training_step", die)
    train(*run)


class Noisy(torch.utils.data.Dataset):
    """Augmentation: images with noise that is new each time."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row] + 0.3 * torch.randn(self.x.shape[1:])


def train_on_noisy_images(out, **changes):
    data, _ = digits(True, 200)
    noisy = MultiLabelData(Noisy(data.x), data.labels, data.observed, data.names)
    finetune = dict(trunk=trunk(0.0), epochs=3, batch_size=32, lr=1e-3, **changes)
    return train_on_cpu(noisy, finetune=finetune, out=out, validation=(data.x[:50], data.labels[:50]))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_augmentation_does_not_depend_on_whether_the_run_was_resumed(tmp_path, workers):
    expected = train_on_noisy_images(TRACKED, workers=workers)
    with pytest.raises(KeyError):
        train_on_noisy_images(tmp_path, workers=workers, trainer_options={"callbacks": [_StopAfter(2)]})
    result = train_on_noisy_images(tmp_path, workers=workers)
    assert_close(result.metrics["epochs"], expected.metrics["epochs"])
    assert_close(dict(result.model.state_dict()), dict(expected.model.state_dict()))


class _StopAfter(lightning.Callback):
    """Raises at the start of the epoch after so many."""

    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == self.epochs:
            raise KeyError


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["role", "gr"])
def test_linear_init_killed_in_its_linear_phase_continues(tmp_path, trained, loss):
    run = ("linear_init", loss, tmp_path)
    killed(run, "file", "linear.pt", 1, AT_FILE["file with its name"])
    result = train(*run)
    assert trained == ["linear"] * (BEFORE - 1) + ["finetune"] * EPOCHS
    assert_same_result(result, undisturbed("linear_init", loss))


def test_linear_init_killed_between_its_phases_continues(tmp_path, trained):
    run = ("linear_init", "role", tmp_path)
    killed(run, "file", "linear.pt", BEFORE, AT_FILE["file with its name"])
    result = train(*run)
    assert trained == ["finetune"] * EPOCHS
    assert_same_result(result, undisturbed("linear_init", "role"))


def test_what_a_continued_run_writes_is_what_it_returns(tmp_path):
    run = ("linear_init", "role", tmp_path)
    killed(run, "file", "finetune.ckpt", 2, AT_FILE["half of the part"])
    result = train(*run)
    assert_close(json.loads((tmp_path / "metrics.json").read_text()), _as_json(result.metrics))
    with np.load(tmp_path / "predictions.npz") as arrays:
        assert_close(arrays["train_probabilities"], result.train_probabilities)
        assert_close(arrays["train_estimates"], result.estimates)
        assert_close(arrays["test_probabilities"], result.test_probabilities)
        assert_close(arrays["train_rows"], result.rows)


def _as_json(metrics):
    return json.loads(json.dumps(metrics))


# --- from outside, and while results are written --------------------------------------------------


def _train_and_wait(run, n):
    """Trains n batches after which it does nothing more."""
    as_here()
    in_an_epoch(n, wait)
    train(*run)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "file", "n"), [("linear", "linear.pt", 70), ("finetune", "finetune.ckpt", 12)])
def test_killed_from_outside_as_soon_as_there_is_a_checkpoint(tmp_path, trained, mode, file, n):
    """Wherever it then is."""
    run = (mode, "role", tmp_path, 0.0)
    assert killed_from_outside(_train_and_wait, (run, n), tmp_path / file) == -signal.SIGKILL
    result = train(*run)
    assert 0 < len(trained) < (LINEAR_EPOCHS if mode == "linear" else EPOCHS)
    assert_same_result(result, undisturbed(mode, "role", 0.0))


@pytest.mark.slow
@pytest.mark.parametrize("how", AT_FILE)
@pytest.mark.parametrize("file", ["settings.json", "model.safetensors", "predictions.npz", "metrics.json"])
def test_killed_while_other_files_are_written(tmp_path, trained, file, how):
    run = ("linear", "gr", tmp_path)
    killed(run, "file", file, 1, AT_FILE[how])
    result = train(*run)
    assert trained == (["linear"] * LINEAR_EPOCHS if file == "settings.json" else [])
    assert_same_result(result, undisturbed("linear", "gr"))
    assert_close(json.loads((tmp_path / "metrics.json").read_text()), _as_json(result.metrics))
    assert (tmp_path / "report.html").exists()


# --- Ctrl+C ---------------------------------------------------------------------------------------


def interrupt(*_):
    signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "n", "kept"),
    [
        ("linear", 2, 0),
        ("linear", 2 * BATCHES[32] + 2, 2),
        ("finetune", 2, 0),
        ("finetune", STEPS + 2, 1),
    ],
)
def test_ctrl_c_leaves_a_checkpoint_and_the_same_call_continues(tmp_path, trained, monkeypatch, mode, n, kept):
    run, handler = (mode, "role", tmp_path, 0.0), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        in_an_epoch(n, interrupt, patch.setattr)
        with pytest.raises(KeyboardInterrupt):
            train(*run)
    assert signal.getsignal(signal.SIGINT) is handler
    file = {"linear": "linear.pt", "finetune": "finetune.ckpt"}[mode]
    assert (tmp_path / file).exists() == (kept > 0)
    assert not (tmp_path / "metrics.json").exists()
    trained.clear()
    result = train(*run)
    assert len(trained) == (LINEAR_EPOCHS if mode == "linear" else EPOCHS) - kept
    assert_same_result(result, undisturbed(mode, "role", 0.0))


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "file"), [("linear", "linear.pt"), ("finetune", "finetune.ckpt")])
def test_ctrl_c_while_the_checkpoint_is_written(tmp_path, monkeypatch, trained, mode, file):
    run = (mode, "role", tmp_path, 0.0)
    with monkeypatch.context() as patch:
        only = lambda _, target: Path(target).name == file  # noqa: E731
        at_call(2, os, "replace", interrupt, only, patch.setattr)
        with pytest.raises(KeyboardInterrupt):
            train(*run)
    trained.clear()
    assert_same_result(train(*run), undisturbed(mode, "role", 0.0))
    epochs = LINEAR_EPOCHS if mode == "linear" else EPOCHS
    assert epochs - 2 <= len(trained) <= epochs - 1


CLI = {
    "linear": [
        "--data", "digits", "--set", "linear.epochs=4", "--set", "linear.lr=0.01", "--set", "linear.batch_size=32",
    ],
    "finetune": [
        "--data", "digits", "--finetune", f"{__name__}:trunk", "--set", "finetune.trunk.dropout=0.0",
        "--set", "data.images=true", "--set", "finetune.epochs=3", "--set", "finetune.batch_size=128",
        "--set", "finetune.lr=0.001",
    ],
}  # fmt: skip
"""Settings of ``spml-fast train``."""


def cli(mode, out):
    return ["train", *CLI[mode], "--loss", "role", "--accelerator", "cpu", "--quiet", "--out", str(out)]


def _cli_and_wait(arguments, n, stderr):
    as_here()
    in_an_epoch(n, wait)
    with stderr.open("w") as sys.stderr:
        status = main(arguments)
    os._exit(status)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "file", "n"), [("linear", "linear.pt", 60), ("finetune", "finetune.ckpt", 12)])
def test_ctrl_c_at_the_command_line(tmp_path, capsys, trained, mode, file, n):
    out, stderr = tmp_path / "run", tmp_path / "stderr"
    arguments = (cli(mode, out), n, stderr)
    assert killed_from_outside(_cli_and_wait, arguments, out / file, signal.SIGINT) == 130
    assert "interrupted; the same command continues" in stderr.read_text()
    assert "Traceback" not in stderr.read_text()
    assert (out / file).exists()
    assert not (out / "metrics.json").exists()
    assert main(cli(mode, out)) == 0
    assert 0 < len(trained) < {"linear": 4, "finetune": 3}[mode]
    continued = json.loads((out / "metrics.json").read_text())
    assert main(cli(mode, tmp_path / "undisturbed")) == 0
    assert_close(continued, json.loads((tmp_path / "undisturbed" / "metrics.json").read_text()))
    capsys.readouterr()


# --- finished, changed, started anew --------------------------------------------------------------


@pytest.fixture(params=["linear", "finetune", "linear_init"])
def finished(request, tmp_path):
    """(arguments of a run, its result)"""
    run = (request.param, "role", tmp_path)
    return run, train(*run)


@pytest.mark.slow
def test_a_finished_run_given_again_trains_nothing_and_returns_the_same(finished, trained):
    run, result = finished
    again = train(*run)
    assert trained == []
    assert_same_result(again, result)
    assert same_bits(again, result)


CHANGES = {
    "linear.lr": dict(linear=dict(lr=0.5)),  # there was no linear phase
    "loss": dict(loss={"name": "role", "expected_positives": 3.0}),
    "seed": dict(seed=4),
    "validation": dict(validation=0.3),
    "validation.labels": dict(validation=Validation(labels="observed")),
    "finetune.lr": dict(finetune=dict(lr=2e-3)),
    "finetune.epochs": dict(finetune=dict(epochs=EPOCHS + 1)),
    "finetune.batch_size": dict(finetune=dict(batch_size=16)),
    "finetune.head_factor": dict(finetune=dict(head_factor=3.0)),
    "finetune.precision": dict(finetune=dict(precision="bf16-mixed")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_other_settings_are_refused_by_name(tmp_path, trained, name):
    train("finetune", "role", tmp_path)
    trained.clear()
    changes = {"loss": "role", **CHANGES[name]}
    with pytest.raises(
        ValueError, match=rf"holds a run of other settings .*{name} was .*, is .*resume=False"
    ) as e:
        train("finetune", changes.pop("loss"), tmp_path, **changes)
    assert str(tmp_path) in str(e.value)
    assert trained == []


def test_another_loss_is_refused_by_name(tmp_path):
    train("linear", "gr", tmp_path)
    with pytest.raises(ValueError, match="loss was 'gr', is 'role'"):
        train("linear", "role", tmp_path)


def test_a_folder_is_for_one_run_at_a_time(tmp_path):
    """A second training in it would be written over the first one's files; parts of a killed run are removed."""
    left = tmp_path / ".linear.pt.1234-5678.part"
    left.write_text("by a run that was killed")
    with exclusive(tmp_path), pytest.raises(ValueError, match=f"{tmp_path} is in use by another run"):
        train("linear", "gr", tmp_path)
    train("linear", "gr", tmp_path)
    assert not left.exists()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_other_data_are_refused(tmp_path):
    train("linear", "gr", tmp_path)
    data, test = digits(False)
    x = data.x.clone()
    x[3, 5] += 0.01
    observed = data.observed.clone()
    observed[0] = (observed[0] + 1) % 9
    for other in (
        MultiLabelData(x, data.labels, data.observed, data.names),
        MultiLabelData(data.x, data.labels, observed, data.names),
        MultiLabelData(data.x[:-1], data.labels[:-1], data.observed[:-1], data.names),
    ):
        with pytest.raises(ValueError, match=r"data was '.*', is '.*'"):
            train_on_cpu(other, test=test, linear=GRID, seed=3, out=tmp_path)


def test_a_trunk_of_other_weights_is_refused(tmp_path):
    """Whose features the classifier of linear.pt was not trained on."""
    run = ("linear_init", "gr", tmp_path)
    killed(run, "file", "linear.pt", BEFORE, AT_FILE["file with its name"])
    with pytest.raises(ValueError, match="trunk"):
        train(*run, finetune=dict(trunk=nn.Sequential(nn.Flatten(), nn.Linear(64, 24))))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["progress", "title"])
def test_what_a_run_need_not_have_in_common_may_change(tmp_path, trained, capsys, what):
    killed(("linear", "gr", tmp_path), "file", "linear.pt", 3, AT_FILE["file with its name"])
    record = RunRecord(tmp_path, title="the digits" if what == "title" else None)
    result = train("linear", "gr", record, progress=what == "progress")
    expected = undisturbed("linear", "gr")
    assert_same_result(result, replace(expected, metrics=expected.metrics | {"data": record.title}))
    assert len(trained) == LINEAR_EPOCHS - 3
    capsys.readouterr()


def anew(run):
    """The run without what was left of it."""
    return (*run[:2], RunRecord(run[2], resume=False), *run[3:])


@pytest.mark.slow
def test_resume_false_starts_anew(finished, trained):
    run, result = finished
    again = train(*anew(run))
    before = {"linear": ["linear"] * LINEAR_EPOCHS, "finetune": [], "linear_init": ["linear"] * BEFORE}[run[0]]
    assert trained == before + ["finetune"] * (0 if run[0] == "linear" else EPOCHS)
    assert_same_result(again, result)


def test_resume_false_takes_other_settings(tmp_path, trained):
    train("linear", "gr", tmp_path)
    trained.clear()
    result = train(*anew(("linear", "role", tmp_path)))
    assert trained == ["linear"] * LINEAR_EPOCHS
    assert_same_result(result, undisturbed("linear", "role"))
    trained.clear()
    train("linear", "role", tmp_path)
    assert trained == []


def test_resume_false_leaves_no_result_of_the_run_before(tmp_path):
    """Which would be taken for the one that was started anew, if that one is killed."""
    train("linear", "gr", tmp_path)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(*anew(("linear", _Broken(), tmp_path)))
    left = {path.name for path in tmp_path.iterdir()}
    assert not left & {"metrics.json", "model.safetensors", "predictions.npz", "report.html"}


class _Broken(nn.Module):
    def forward(self, logits, labels):
        if len(logits) > 2:  # more than are tried before training
            raise RuntimeError("out of memory")
        return logits.sum()


@pytest.mark.parametrize("changed", ["other settings", "finished linear phase"])
def test_resume_false_in_a_process_that_does_not_write(tmp_path, monkeypatch, changed):
    """It must not depend on whether the first process has already removed what lay there."""
    from spml_fast.training.run_folder import RunFolder

    train("linear", "gr", tmp_path)
    settings = json.loads((tmp_path / "settings.json").read_text())
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    if changed == "other settings":
        settings["seed"] = 99
    folder = RunFolder(tmp_path, settings, resume=False)
    assert folder.load_linear() is None


NUMPY = [
    # phase, option, value
    ("linear", "lr", np.float64(1e-2)),
    ("linear", "batch_size", np.int64(64)),
    ("linear", "epochs", np.int64(2)),
    ("finetune", "epochs", np.int64(2)),
    ("finetune", "batch_size", np.int64(64)),
    ("finetune", "lr", np.float64(1e-3)),
    ("finetune", "head_factor", np.float64(3)),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "name", "value"),
    NUMPY,
)
def test_numbers_of_numpy_are_numbers(tmp_path, trained, mode, name, value):
    small = dict(lr=1e-2, batch_size=64) if mode == "linear" else {}
    plain, numpy = (
        {mode: small | {name: v}, "seed": seed} for v, seed in ((value.item(), 3), (value, np.int64(3)))
    )
    expected = train(mode, "gr", TRACKED, **plain)
    assert_same_result(train(mode, "gr", tmp_path, **numpy), expected)
    trained.clear()
    assert_same_result(train(mode, "gr", tmp_path, **numpy), expected)
    assert trained == []


SAME = {
    "a list": dict(linear=dict(lr=[1e-2, 1e-3])),
    "a list of integers": dict(linear=dict(batch_size=list(BATCH_SIZES))),
    "an integer": dict(finetune=dict(head_factor=10)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_the_same_settings_written_otherwise_are_the_same(tmp_path, trained, name):
    run = ("linear" if "linear" in SAME[name] else "finetune", "gr", tmp_path)
    expected = train(*run)
    trained.clear()
    assert_same_result(train(*run, **SAME[name]), expected)
    assert trained == []


# --- files that are not what they should be -------------------------------------------------------

DAMAGE = {
    "empty": lambda whole: b"",
    "cut": lambda whole: whole[: len(whole) // 2],
    "garbage": lambda whole: b"\x00garbage\xff" * 99,
    "a byte less": lambda whole: whole[:-1],
}
FILES = [("linear", "linear.pt"), ("finetune", "finetune.ckpt")]


TUNING_FAILS = [FILES[0], pytest.param(*FILES[1])]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("mode", "file"), TUNING_FAILS)
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, mode, file, damage):
    run = (mode, "gr", tmp_path)
    train(*run)
    path = tmp_path / file
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(ValueError, match=str(path)):
        train(*run)
    assert_same_result(train(*anew(run)), undisturbed(mode, "gr"))


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "file"), FILES)
@pytest.mark.parametrize("state", [{"a": 1}, [1, 2], {"finished": [], "group": {"weight": torch.zeros(2)}}])
def test_a_checkpoint_of_something_else_is_refused_by_name(tmp_path, mode, file, state):
    run = (mode, "gr", tmp_path)
    train(*run)
    torch.save(state, tmp_path / file)
    with pytest.raises(ValueError, match=str(tmp_path / file)):
        train(*run)


def test_damaged_settings_are_refused_by_name(tmp_path):
    run = ("linear", "gr", tmp_path)
    train(*run)
    (tmp_path / "settings.json").write_text('{"loss": "g')
    with pytest.raises(ValueError, match=r"settings\.json"):
        train(*run)


class Bomb:
    """Unpickled, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def with_a_bomb(run, path, hidden):
    """A finished run whose checkpoint is code to pickle; returns the file that shows that it was executed."""
    marker = path.with_name("executed")
    train(*run)
    state = Bomb(marker)
    if hidden:  # in a checkpoint that is good otherwise
        state = torch.load(path, weights_only=True) | {"extra": state}
    torch.save(state, path)
    return marker


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "file"), FILES)
@pytest.mark.parametrize("hidden", [False, True])
def test_code_in_a_checkpoint_is_not_executed(tmp_path, mode, file, hidden):
    run, path = (mode, "gr", tmp_path), tmp_path / file
    marker = with_a_bomb(run, path, hidden)
    with pytest.raises(Exception, match=r"Weights only|not a checkpoint"):
        train(*run)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # which shows that it was dangerous
    assert marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "file"), TUNING_FAILS)
@pytest.mark.parametrize("hidden", [False, True])
def test_a_checkpoint_with_code_is_refused_by_name(tmp_path, mode, file, hidden):
    run, path = (mode, "gr", tmp_path), tmp_path / file
    with_a_bomb(run, path, hidden)
    with pytest.raises(ValueError, match=str(path)):
        train(*run)


@pytest.mark.parametrize(("mode", "file"), FILES)
def test_a_part_that_lies_about_does_no_harm(tmp_path, trained, mode, file):
    run = (mode, "gr", tmp_path)
    for name in (file, "settings.json", "metrics.json", "model.safetensors", "predictions.npz"):
        (tmp_path / f".{name}.123-456.part").write_bytes(b"half a file")
    assert_same_result(train(*run), undisturbed(mode, "gr"))
    assert not list(tmp_path.glob(".*.part"))
