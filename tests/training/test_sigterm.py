"""SIGTERM during a training ends the process as it would without one; what is on the disk by then is whole."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from trainings import train

from spml_fast import DensityRatioFit, Heads, train_density_ratio
from spml_fast._checkpoint import load_state

SLOW = """
import sys, time
from pathlib import Path
import torch
from torch import nn
import spml_fast as sf

torch.set_num_threads(1)
folder, n, batches = Path(sys.argv[1]), 64, 0
x, labels = torch.randn(n, 2), torch.arange(n) % 2


def batch():
    # "under way" appears in the second epoch of eight batches or more; the last one is minutes away.
    global batches
    batches += 1
    if batches == 20:
        (folder / "under way").touch()
    time.sleep(0.05)


class SlowLoss(nn.Module):
    def forward(self, logits, labels):
        batch()
        return nn.functional.cross_entropy(logits, labels)


def G(z):
    batch()
    return 1.5 * z


options = dict(loss=SlowLoss(), validation=0, out=folder / "run", accelerator="cpu", progress=False)
"""
TRAININGS = {
    "linear": "sf.train_classifier((x, labels), linear=sf.LinearPhase(1e-2, 8, 1000), **options)",
    "finetune": "sf.train_classifier("
    "(x, labels), finetune=sf.FineTuning(nn.Linear(2, 4), batch_size=8, epochs=1000), **options)",
    "density ratio": "sf.train_density_ratio("
    "G, x, labels, heads=sf.Heads(nn.Linear(2, 4)), z_dim=2, progress=False, "
    "fit=sf.DensityRatioFit(1000, batch_size=8, patience=1000, accelerator='cpu'))",
}
CHECKPOINTS = {"linear": "linear.pt", "finetune": "finetune.ckpt"}


@pytest.mark.slow
@pytest.mark.parametrize("training", TRAININGS)
def test_the_process_ends_within_a_batch(training, tmp_path):
    script = f"{SLOW}\n{TRAININGS[training]}\nprint('went on')"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "under way").exists():
            assert child.poll() is None, child.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        signalled = time.monotonic()
        said, complained = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == -signal.SIGTERM, complained.decode()
    assert time.monotonic() - signalled < 5  # all epochs would take minutes
    assert said == b""
    if training in CHECKPOINTS:
        run = tmp_path / "run"
        state = load_state(run / CHECKPOINTS[training])
        epochs = state["group"]["epoch"] if training == "linear" else state["epoch"] + 1
        assert epochs >= 1
        assert not (run / "metrics.json").exists()


# --- a handler of the user's ----------------------------------------------------------------------


NEVER = 10**6


class Terminated(nn.Module):
    """A user's loss during whose n-th batch the process is told to end."""

    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, logits, labels):
        self.n -= 1
        if self.n == 0:
            signal.raise_signal(signal.SIGTERM)
        return nn.functional.cross_entropy(logits, labels)


def classifier(training, n):
    linear = dict(epochs=3) if training == "linear" else None
    finetune = None if training == "linear" else dict(trunk=nn.Linear(2, 4), epochs=3)
    labels = torch.arange(64) % 2
    loss = Terminated(n + 1)  # one batch is tried before the training
    return train((torch.randn(64, 2), labels), loss=loss, validation=0, linear=linear, finetune=finetune)


def density_ratio(n):
    loss = Terminated(n)

    def generate(z):
        loss(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
        return 1.5 * z

    fit = DensityRatioFit(3, batch_size=16, accelerator="cpu")
    labels = torch.arange(64) % 2
    heads = Heads(nn.Linear(2, 4))
    return train_density_ratio(generate, torch.randn(64, 2), labels, heads=heads, fit=fit, z_dim=2, progress=False)


def run(training, n):
    return density_ratio(n) if training == "density ratio" else classifier(training, n)


@pytest.fixture
def handle():
    """``handle(function)``: the handler of SIGTERM for this test."""
    before = signal.getsignal(signal.SIGTERM)
    yield lambda function: signal.signal(signal.SIGTERM, function)
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("training", TRAININGS)
def test_a_handler_that_exits_is_not_swallowed(training, handle):
    def leave(*_):
        sys.exit(7)

    handle(leave)
    with pytest.raises(SystemExit) as e:
        run(training, 6)  # in the second epoch
    assert e.value.code == 7
    assert signal.getsignal(signal.SIGTERM) is leave


@pytest.mark.parametrize("training", TRAININGS)
def test_a_handler_that_takes_note_lets_the_training_go_on(training, handle):
    heard = []
    handle(lambda *_: heard.append(1))
    result = run(training, 6)
    assert heard == [1]
    assert len(result.metrics["epochs"]) == 3 if training != "density ratio" else result.report.epochs == 3


@pytest.mark.parametrize("training", ["finetune", "density ratio"])
def test_after_a_training_the_signal_is_as_it_was(training):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    run(training, NEVER)
    assert {number: signal.getsignal(number) for number in handlers} == handlers
