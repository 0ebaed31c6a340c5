"""Values of a seed do not change: bit for bit those that ``golden.npz`` holds, however a run is run."""

import os

import numpy as np
import pytest
import torch
from golden_cases import CASES, FILE, arrays, probe, scans
from several import Children, at_call, before, child, die, rank_here

from spml_fast import Run


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(FILE))


@pytest.fixture(scope="module")
def same_pytorch(golden):
    """Whether PyTorch's exponentials are those of the machine that recorded the file."""
    return np.array_equal(probe(), golden["probe"])


def differences(found, golden, name):
    expected = {key: value for key, value in golden.items() if key.startswith(f"{name}/")}
    assert expected.keys() == {f"{name}/{key}" for key in found}
    return [key for key, value in found.items() if not alike(key, value, expected[f"{name}/{key}"], name)]


def alike(key, a, b, name):
    """Bit for bit, but for sums of what PyTorch's own exponentials give: the last bit is the machine's."""
    if key.endswith("measures") and CASES[name].by_pytorch:
        return np.allclose(a, b, rtol=1e-13, atol=0, equal_nan=True)
    return same(a, b)


def same(a, b):
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def requires(case, same_pytorch):
    if case.by_pytorch and not same_pytorch:
        pytest.skip("PyTorch's exponentials have other bits on this machine than where the file was recorded")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_in_one_process(golden, same_pytorch, name):
    requires(CASES[name], same_pytorch)
    assert not differences(arrays(CASES[name].run()), golden, name)


def test_accept_steps(golden):
    for name, value in scans().items():
        assert same(value, golden[name]), name


def test_another_seed_differs(golden):
    assert differences(arrays(CASES["imh"].run(seed=1)), golden, "imh")


# --- two processes, a checkpoint, a kill ----------------------------------------------------------


def run_all(folder):
    found = {name: arrays(case.run(run=run_of(case, gather=True))) for name, case in CASES.items()}
    torch.save(found, folder / f"{rank_here()}.pt")


def run_of(case, **options):
    run = case.call.get("run", Run())
    return Run(first_chain=run.first_chain, **options)


@pytest.mark.slow
def test_in_two_processes(golden, same_pytorch, tmp_path):
    children = Children(tmp_path, 2, run_all, tmp_path)
    assert children.end() == [0, 0], (children.said(0), children.said(1))
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for name, case in CASES.items():
            if same_pytorch or not case.by_pytorch:
                assert not differences(found[name], golden, name), (rank, name)


KILLED = [
    *("imh", "imh, auto", "imh, several samples", "imh, conditional", "imh, stochastic", "imh, full mixture"),
    *("imh, first chain", "imh, drawn", "imh, drawn with weights", "resample, drawn with weights"),
    *("rejection", "rejection, conditional", "rejection, stochastic", "resample", "resample, loose, float64"),
    *("mala", "mala, several samples"),
]


def killed_run(folder, name, call):
    """A run that is killed in the n-th call of G, after as many blocks as fit into it."""
    case = CASES[name]
    make = case.make

    def hooked():
        sampler = make()
        sampler.describe()
        before(sampler.models.G, at_call(call, die))
        return sampler

    case.make = hooked
    case.run(run=run_of(case, checkpoint=folder / f"{name}.pt", every=0))
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_after_a_kill(golden, same_pytorch, tmp_path, name):
    requires(CASES[name], same_pytorch)
    path = tmp_path / f"{name}.pt"
    labels = 3 if "conditional" in name else 1  # the checkpoint's probe of the models calls G once for each
    child(tmp_path / "child", killed_run, tmp_path, name, labels + 4)
    assert torch.load(path)["parts"], "killed before a block was over"
    case = CASES[name]
    assert not differences(arrays(case.run(run=run_of(case, checkpoint=path))), golden, name)
    # The file of a finished run gives the same once more.
    assert not differences(arrays(case.run(run=run_of(case, checkpoint=path))), golden, name)
