"""The CUDA training kernels, run on the CPU by cuda_emulator.h: the CPU op's bits."""

import ctypes
import shutil
from pathlib import Path

import pytest
import torch

from spml_fast import _ops

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


class AdamLinearParams(ctypes.Structure):
    """csrc/training/adam_linear.h"""

    _fields_ = (
        [(name, ctypes.c_void_p) for name in ("weight", "exp_avg", "exp_avg_sq", "grad_logits", "x", "lr")]
        + [(name, ctypes.c_int64) for name in ("rows", "columns", "batch")]
        + [(name, ctypes.c_int64) for name in ("grad_batch_stride", "grad_row_stride", "x_stride", "lr_stride")]
        + [(name, ctypes.c_double) for name in ("beta1", "beta2", "eps", "correction1", "correction2")]
    )


@pytest.fixture(scope="module")
def emulator(emulate):
    loaded = emulate("training", "-fno-math-errno", "-fno-trapping-math")
    assert loaded.emulated_size() == ctypes.sizeof(AdamLinearParams)
    return loaded


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("n", "k", "d"),
    [(1, 1, 1), (0, 3, 5), (8, 20, 300), (16, 5, 128), (33, 4, 129), (64, 3, 17), (65, 9, 127), (130, 2, 257)],
)
def test_adam_linear(n, k, d, dtype, emulator):
    weight, mean = torch.randn(2, k, d, dtype=dtype)
    square = torch.rand(k, d, dtype=dtype)
    lr = torch.rand(k, dtype=dtype)
    layouts = {
        "contiguous": (torch.randn(n, k, dtype=dtype), torch.randn(n, d, dtype=dtype), lr),
        "strided": (
            torch.randn(k, n + 2, dtype=dtype)[:, :n].t(),
            torch.randn(2 * n, d + 3, dtype=dtype)[::2, 1 : d + 1],
            torch.rand(k, 2, dtype=dtype)[:, 1],
        ),
    }
    for grad_logits, x, rates in layouts.values():
        numbers = dict(beta1=0.8, beta2=0.99, eps=1e-6)
        expected = [t.clone() for t in (weight, mean, square)]
        _ops.adam_linear_(*expected, grad_logits, x, rates, 3, **numbers)
        for share in (1, 3):  # of the tiles have a block
            states = [t.clone() for t in (weight, mean, square)]
            params = AdamLinearParams(
                *(t.data_ptr() for t in (*states, grad_logits, x, rates)),
                *(k, d, n),
                *(*grad_logits.stride(), x.stride(0), rates.stride(0)),
                *numbers.values(),
                *(1 - 0.8**3.0, 1 - 0.99**3.0),
            )
            blocks = -(-emulator.emulated_tiles(ctypes.byref(params)) // share)
            emulator.emulated_adam_linear(dtype == torch.float64, ctypes.byref(params), blocks)
            for got, wanted in zip(states, expected, strict=True):
                assert torch.equal(got, wanted)
