"""The example of a kernel of one's own: exact, shared out by torchrun, killed and gone on with."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from scipy import stats

EXAMPLE = Path(__file__).parent.parent / "examples" / "own_kernel.py"

RUN = f"""
import importlib.util, sys, time
import torch
spec = importlib.util.spec_from_file_location("own_kernel", {str(EXAMPLE)!r})
example = importlib.util.module_from_spec(spec)
sys.modules["own_kernel"] = example
spec.loader.exec_module(example)
pause = float(sys.argv[1])
forward = example.FarGenerator.forward
example.FarGenerator.forward = lambda self, z: (time.sleep(pause), forward(self, z))[1]
result = example.main(["--steps", "60", *sys.argv[3:]])
torch.save([result.latents, result.log_weights, result.chains], sys.argv[2])
"""


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("own_kernel", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["own_kernel"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def alone(example):
    """What one process draws in 60 steps."""
    result = example.main(["--steps", "60"])
    return [result.latents, result.log_weights, result.chains]


def start(tmp_path, *arguments, pause=0.0, out="out.pt", launcher=()):
    script = tmp_path / "script.py"
    script.write_text(RUN)
    command = [sys.executable, *launcher, str(script), str(pause), str(tmp_path / out), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def same(path, expected):
    found = torch.load(path)
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_its_samples_are_the_datas(example, capsys):
    """Independent chains of 300 steps against N(1.2, 1), eight coordinates, each at 1e-3."""
    result = example.main(["--steps", "300"])
    for column in result.samples.double().T:
        assert stats.kstest(column.numpy(), stats.norm(1.2, 1).cdf).pvalue > 1e-3
    assert "pcn: acceptance 0.6" in capsys.readouterr().out


@pytest.mark.slow
def test_under_torchrun(tmp_path, alone):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start(tmp_path, launcher=launcher)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert same(tmp_path / "out.pt", alone)


@pytest.mark.slow
def test_killed_and_gone_on_with(tmp_path, alone):
    checkpoint = tmp_path / "run.pt"
    process = start(tmp_path, "--checkpoint", str(checkpoint), pause=0.08)
    deadline = time.monotonic() + 60
    while not (checkpoint.exists() and torch.load(checkpoint)["parts"]):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = torch.load(checkpoint)["parts"]["pool 0"]["done"]
    assert 0 < done < 60
    process = start(tmp_path, "--checkpoint", str(checkpoint))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert same(tmp_path / "out.pt", alone)
