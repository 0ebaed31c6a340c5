import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spml_fast import _ops

DEVICES = ["cpu"]
if torch.cuda.is_available() and _ops.extension.cuda_archs:
    DEVICES.append("cuda")


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """Sets the number of threads; the old number comes back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


FINGERPRINTS = """
import json
from spml_fast import _ops
import {module}
print(json.dumps([_ops.extension.cpu_isa(), {module}.fingerprints()]))
"""


@pytest.fixture(scope="session")
def environment():
    """The variables of this process, with which another one finds what the tests import."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


@pytest.fixture
def on_every_isa(environment):
    """``on_every_isa(__file__)``: what the test file's ``fingerprints()`` are on each instruction set, by name."""

    def run(file):
        found = {}
        file = Path(file).resolve()
        command = [sys.executable, "-c", FINGERPRINTS.format(module=file.stem)]
        vector = torch.backends.cpu.get_cpu_capability() != "DEFAULT"
        for isa in ["baseline", *(["avx2", "avx512"] if vector else [])]:
            env = {**environment, "SPML_FAST_ISA": isa}
            done = subprocess.run(
                command, env=env, cwd=file.parent, capture_output=True, text=True, check=False, timeout=120
            )
            if done.returncode != 0:
                assert "this processor has no" in done.stderr, done.stderr
                continue
            name, found[isa] = json.loads(done.stdout)
            assert name == isa
        return found

    return run
