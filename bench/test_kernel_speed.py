"""The ops by themselves: ``pytest bench --benchmark-only``.

``extra_info`` holds the bytes that a call must move, the bandwidth that this makes, and the instruction set of the
CPU kernels. The wrappers are left out on purpose: timed is one call of the op and, on CUDA, the wait for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from common import device_name, synchronize

from spml_fast import JointClass, _ops, losses
from spml_fast.losses.spec import ROLE, op_arguments
from spml_fast.sampling import ChainState, pack_targets

pytest.importorskip("pytest_benchmark")

STATE_BYTES = 28  # of one chain and target: four float32 and three int32
SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(range(3), n)]
CASES = {  # classes, targets
    "3": (3, [JointClass((0,), (1, 2))]),
    "40": (40, [JointClass((0, 1, 2), (3, 4, 5))]),
    "3x7": (3, [JointClass(s, tuple(sorted({0, 1, 2} - set(s)))) for s in SUBSETS]),  # one pool, seven targets
}
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def timed(benchmark, device: torch.device) -> Callable[[Callable[[], object], int], None]:
    """``timed(call, bytes_moved)`` benchmarks ``call`` up to the end of the device's work."""

    def run(call: Callable[[], object], bytes_moved: int) -> None:
        def call_and_wait() -> None:
            call()
            synchronize(device)

        with torch.inference_mode():
            call_and_wait()  # allocations and, on CUDA, loading of the kernel
            benchmark(call_and_wait)
        benchmark.extra_info.update(
            device=device_name(device),
            threads=torch.get_num_threads(),
            cpu_isa=_ops.extension.cpu_isa(),
            bytes_moved=bytes_moved,
        )
        if benchmark.stats is not None:  # None with --benchmark-disable
            benchmark.extra_info["gigabytes_per_second"] = bytes_moved / benchmark.stats.stats.median / 1e9

    return run


def logits(*shape: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Class logits of this shape and the validity logits that go with them."""
    return (
        (2 * torch.randn(*shape, device=device)).to(dtype),
        torch.randn(*shape[:-1], device=device).to(dtype),
    )


def size(*tensors: torch.Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("chains", "steps"), [(64, 1), (64, 64), (4096, 1), (4096, 64), (65536, 1)])
def test_s2m_imh_scan(timed, device, chains, steps, case, dtype):
    classes, targets = CASES[case]
    class_logits, validity = logits(steps, chains, classes, dtype=dtype, device=device)
    packed = pack_targets(targets, classes, device=device)
    state = ChainState.start(len(targets), chains, device=device)
    arguments = (class_logits, validity, None, None, *packed, 0, 1, 0, 0)
    timed(
        lambda: _ops.s2m_imh_scan(*arguments, state.weights, state.counts, state.invalid),
        size(class_logits, validity) + 2 * STATE_BYTES * chains * len(targets),
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rows", [64, 4096, 262144])
def test_s2m_log_weight(timed, device, rows, case):
    classes, targets = CASES[case]
    class_logits, validity = logits(rows, classes, dtype=torch.float32, device=device)
    packed = pack_targets(targets, classes, device=device)
    timed(
        lambda: _ops.s2m_log_weight(class_logits, validity, None, None, *packed, 0),
        size(class_logits, validity) + 4 * rows * len(targets),
    )


@pytest.mark.parametrize(("chains", "steps"), [(64, 1), (4096, 64), (65536, 16)])
def test_imh_scan(timed, device, chains, steps):
    log_weights = torch.randn(1, steps, chains, device=device)
    state = ChainState.start(1, chains, device=device)
    timed(
        lambda: _ops.imh_scan(log_weights, 1, 0, 0, state.weights, state.counts, state.invalid),
        size(log_weights) + 2 * STATE_BYTES * chains,
    )


@pytest.mark.parametrize("dim", [80, 128])
@pytest.mark.parametrize("rows", [64, 4096, 65536])
def test_philox_normal(timed, device, rows, dim):
    chains = torch.arange(rows, device=device)
    steps = torch.zeros_like(chains)
    timed(lambda: _ops.philox_normal(chains, steps, 1, dim), size(chains, steps) + 4 * rows * dim)


LOSS_SIZES = [(16, 20), (128, 80), (1024, 312), (8192, 1024)]


@pytest.mark.parametrize("form", ["index", "matrix"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["an", "em", "asl", "gr"])
@pytest.mark.parametrize(("rows", "labels"), LOSS_SIZES)
def test_loss_and_grad(timed, device, rows, labels, name, dtype, form):
    z = torch.randn(rows, labels, device=device).to(dtype)
    s = torch.randint(labels, (rows,), device=device)
    if form == "matrix":
        s = torch.zeros_like(z).scatter_(1, s[:, None], 1)
    arguments = op_arguments(losses.make(name).current_spec(), labels, compiling=False)
    timed(lambda: _ops.ops.loss_and_grad(z, s, *arguments), 2 * size(z) + size(s))


@pytest.mark.parametrize(("rows", "labels"), LOSS_SIZES)
def test_role_and_grads(timed, device, rows, labels):
    z, table = (torch.randn(rows, labels, device=device) for _ in range(2))
    s, index = torch.randint(labels, (rows,), device=device), torch.randperm(rows, device=device)
    call = (ROLE, _ops.losses["bce"], (), 0.0, 1, None, table, index, None, None, 1.0, 2.5)
    timed(lambda: _ops.ops.loss_and_grad(z, s, *call), 2 * size(z, table) + size(s, index))


@pytest.mark.parametrize(("rows", "labels"), LOSS_SIZES)
def test_large_loss_threshold(timed, device, rows, labels):
    z = torch.randn(rows, labels, device=device)
    s = torch.randint(labels, (rows,), device=device)
    timed(lambda: _ops.large_loss_threshold(z, s, None, None, 0.01), size(z, s))


@pytest.mark.parametrize("batch", [8, 16])
@pytest.mark.parametrize("rows", [20, 80, 312, 1500])  # of the weight: labels times runs
def test_adam_linear(timed, device, rows, batch):
    weight, mean = (0.1 * torch.randn(rows, 2049, device=device) for _ in range(2))
    square = torch.rand_like(weight)
    grad_logits, x = torch.randn(batch, rows, device=device), torch.randn(batch, 2049, device=device)
    lr = torch.full((rows,), 1e-4, device=device)
    timed(
        lambda: _ops.adam_linear_(weight, mean, square, grad_logits, x, lr, 10),
        2 * size(weight, mean, square) + size(grad_logits, x, lr),
    )
