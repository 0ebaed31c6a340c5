"""The CUDA kernels, run on the CPU by cuda_emulator.h, against the CPU kernels: the same bits.

This is no substitute for a GPU, where the same comparison runs in tests/sampling/test_kernels.py, but it finds
wrong indices, remainders and missing barriers on any machine.
"""

import ctypes
import shutil
from pathlib import Path

import pytest
import torch

from spml_fast import MinMax, _ops
from spml_fast.sampling import ChainState, JointClass, pack_targets

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


class LogWeightParams(ctypes.Structure):
    """csrc/sampling/params.h"""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("class_logits", "validity_logit", "fake_logits")]
        + [(name, ctypes.c_void_p) for name in ("log_correction", "masks")]
        + [(name, ctypes.c_void_p) for name in ("log_gamma", "inv_temperature", "log_weights")]
        + [(name, ctypes.c_int64) for name in ("steps", "chains")]
        + [(name, ctypes.c_int) for name in ("n_classes", "n_fake", "n_targets", "words", "proposal_class")]
    )


class ScanParams(ctypes.Structure):
    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("invalid", ctypes.c_void_p),
        ("seed", ctypes.c_uint64),
        ("first_chain", ctypes.c_int64),
        ("first_step", ctypes.c_int32),
    )


class NoiseParams(ctypes.Structure):
    _fields_ = (
        ("chains", ctypes.c_void_p),
        ("steps", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
    )


@pytest.fixture(scope="module")
def emulator(emulate):
    return emulate("sampling")


def pointer(tensor):
    return None if tensor is None else tensor.data_ptr()


def log_weight_params(class_logits, validity, targets, fake=None, correction=None, log_weights=None):
    steps, chains, n_classes = class_logits.shape
    return LogWeightParams(
        *map(pointer, (class_logits, validity, fake, correction, *targets, log_weights)),
        steps,
        chains,
        n_classes,
        0 if fake is None else fake.shape[-1],
        len(targets.log_gamma),
        targets.masks.shape[-1],
        1,
    )


def scan_params(state, seed=3, first_chain=7, first_step=5):
    return ScanParams(*map(pointer, (state.weights, state.counts, state.invalid)), seed, first_chain, first_step)


def assert_same(a, b):
    assert torch.equal(a.counts, b.counts)
    assert torch.equal(a.weights.view(torch.uint8), b.weights.view(torch.uint8))
    assert torch.equal(a.invalid, b.invalid)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize(
    ("n_steps", "n_chains", "n_classes", "n_targets"),
    [(1, 1, 1, 1), (8, 32, 3, 7), (9, 33, 3, 9), (13, 70, 40, 2), (3, 31, 65, 17), (17, 64, 33, 1)],
)
def test_fused_scan(n_steps, n_chains, n_classes, n_targets, staged, dtype, emulator):
    compute = _ops.compute_dtype(dtype)
    class_logits = (torch.randn(n_steps, n_chains, n_classes) * 2).to(dtype)
    validity = torch.randn(n_steps, n_chains).to(dtype)
    fake = torch.randn(n_steps, n_chains, 4).to(dtype)
    correction = torch.randn(n_steps, n_chains, dtype=compute)
    joint_classes = [
        JointClass((t % n_classes,), tuple({(t + 1) % n_classes} - {t % n_classes})) for t in range(n_targets)
    ]
    temperature = lambda I, J: 0.5 + 0.1 * (I[0] // 2)  # noqa: E731
    targets = pack_targets(joint_classes, n_classes, MinMax(temperature=temperature), dtype=compute)
    for more in ({}, {"fake": fake, "correction": correction}):
        cpu = ChainState.start(n_targets, n_chains, compute)
        named = {"fake": "fake_class_logits", "correction": "log_correction"}
        options = {named[key]: value for key, value in more.items()}
        numbers = {"seed": 3, "first_chain": 7, "first_step": 5}
        cpu.scan_logits(class_logits, validity, targets, proposal_class=1, **numbers, **options)
        cuda = ChainState.start(n_targets, n_chains, compute)
        params = log_weight_params(class_logits, validity, targets, **more)
        emulator.emulated_s2m_imh_scan(
            DTYPES.index(dtype), ctypes.byref(params), ctypes.byref(scan_params(cuda)), int(staged)
        )
        assert_same(cuda, cpu)


def test_log_weight_then_scan(emulator):
    class_logits, validity = torch.randn(11, 50, 70), torch.randn(11, 50)
    class_logits[4, 20, 69] = torch.nan
    targets = pack_targets([JointClass((0, 69), (64,)), JointClass((3,))], 70)
    cpu_weights = _ops.s2m_log_weight(class_logits.flatten(0, 1), validity.flatten(), None, None, *targets, 0)
    weights = torch.full((2, 11, 50), 123.0)
    params = log_weight_params(class_logits, validity, targets, log_weights=weights)
    emulator.emulated_s2m_log_weight(ctypes.byref(params))
    torch.testing.assert_close(weights, cpu_weights.view(2, 11, 50), rtol=0, atol=0, equal_nan=True)

    cpu = ChainState.start(2, 50).scan(weights, seed=3, first_chain=7, first_step=5)
    cuda = ChainState.start(2, 50)
    emulator.emulated_imh_scan(ctypes.byref(params), ctypes.byref(scan_params(cuda)))
    assert_same(cuda, cpu)
    assert int(cuda.invalid) == 9 * 50 + 20


@pytest.mark.parametrize("dim", [1, 4, 6, 81])
def test_draws(dim, emulator):
    chains, steps = torch.arange(100) * 2**31, torch.arange(100) % 7
    normal, uniform = torch.full((100, dim), 9.0), torch.full((100,), 9.0)
    params = NoiseParams(*map(pointer, (chains, steps, normal)), 100, dim, 11)
    emulator.emulated_philox_normal(ctypes.byref(params))
    assert torch.equal(normal, _ops.philox_normal(chains, steps, 11, dim))
    params = NoiseParams(*map(pointer, (chains, steps, uniform)), 100, 1, 11)
    emulator.emulated_philox_uniform(ctypes.byref(params))
    assert torch.equal(uniform, _ops.philox_uniform(chains, steps, 11))
