"""Same input, same bits: run after run, whatever the number of threads and the instruction set of the CPU."""

import hashlib

import pytest
import torch
from cases import (
    FLOATS,
    HALVES,
    ONE_OF_EACH,
    make_index,
    make_labels,
    make_logits,
    make_matrix,
    move,
    value_and_grads,
)
from torch.nn.functional import linear

from spml_fast import _ops, losses

N, L = 600, 131  # 154 blocks of 512 entries and a remainder; enough rows that every op has work for two threads
TABLE = 900


def outputs(case, dtype, device="cpu"):
    """{what: tensors} of everything that a loss computes."""
    torch.manual_seed(7)
    z = make_logits(N, L, dtype)
    s = make_labels(case, N, L)
    second_matrix = make_matrix(case, s, dtype)
    class_weight = torch.rand(L).to(device)
    forms = (
        {"matrix": s.to(dtype)} if case.full_labels else {"matrix": s.to(torch.int8), "index": make_index(N, L)}
    )
    leaves = [t.to(device) for t in ([z, second_matrix] if case.matrix == "table" else [z])]
    fixed = move(second_matrix, device)
    found = {}
    for form, labels in forms.items():
        for reduction in case.reductions:

            def call(z, second_matrix=fixed, labels=labels, reduction=reduction):
                return case.fused(
                    z, labels.to(device), second_matrix, reduction=reduction, class_weight=class_weight
                )

            found[f"{form} {reduction}"] = value_and_grads(call, *leaves)
    return found


def other_outputs(dtype, device="cpu"):
    """What is not in the value and gradient of a loss: draws, thresholds, flips, k_hat, gradients of a table."""
    torch.manual_seed(8)
    z = make_logits(N, L, dtype).to(device)
    case = next(case for case in ONE_OF_EACH if case.name == "an")
    forms = {"matrix": make_labels(case, N, L).to(torch.int8).to(device), "index": make_index(N, L).to(device)}
    index = torch.randint(0, TABLE, (N,)).to(device)  # some rows twice
    table = torch.randn(TABLE, L, dtype=_ops.compute_dtype(dtype)).to(device)
    found = {"k_hat": (losses.expected_positive_count(z, z.t().contiguous().t()),)}
    for form, labels in forms.items():
        flips = torch.zeros(TABLE, L, dtype=torch.uint8, device=device)
        thresholds = []
        for k in (1, 500, 4000):
            thresholds.append(_ops.large_loss_threshold(z, labels, flips, index, k / z.numel()))
            _ops.flip_labels(z, labels, flips, index, thresholds[-1])
        found[f"{form} flips"] = (*thresholds, flips)
        step = torch.tensor([5], device=device)
        found[f"{form} draws"] = (_ops.draw_unobserved(labels, L, 3, step),)
        for sparse in (False, True):

            def call(z, table, labels=labels, sparse=sparse):
                return 3 * losses.role_loss(z, labels, table, index, expected_positives=2.5, sparse=sparse)

            value, *grads = value_and_grads(call, z, table)
            found[f"{form} table sparse={sparse}"] = (value, *(g.to_dense() for g in grads))
    return found


def bits(t):
    return t.cpu().contiguous().flatten().view(torch.uint8)


def same_bits(a, b):
    assert a.keys() == b.keys()
    for what, tensors in a.items():
        for first, second in zip(tensors, b[what], strict=True):
            assert first.dtype == second.dtype
            assert torch.equal(bits(first), bits(second)), what


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.id)
def test_every_run_gives_the_same_bits(case, dtype, device):
    once = outputs(case, dtype, device)
    for _ in range(2):
        same_bits(outputs(case, dtype, device), once)


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
def test_every_run_draws_and_selects_the_same(dtype, device):
    once = other_outputs(dtype, device)
    for _ in range(2):
        same_bits(other_outputs(dtype, device), once)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.id)
def test_any_number_of_threads_gives_the_same_bits(case, dtype, threads):
    threads(1)
    alone = outputs(case, dtype)
    for n in (2, 3):
        threads(n)
        same_bits(outputs(case, dtype), alone)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16], ids=str)
def test_any_number_of_threads_draws_and_selects_the_same(dtype, threads):
    threads(1)
    alone = other_outputs(dtype)
    for n in (2, 3):
        threads(n)
        same_bits(other_outputs(dtype), alone)


def test_neighbours_do_not_matter(device):
    """An entry's bits do not depend on where in a batch it stands: lanes and remainders compute the same."""
    z = make_logits(40, 131, torch.float32).to(device)
    labels = make_index(40, 131).to(device)
    for case in ONE_OF_EACH:
        if case.whole_batch or case.matrix or case.full_labels:
            continue
        together = value_and_grads(lambda z: case.fused(z, labels, reduction="none"), z)  # noqa: B023
        for rows in (slice(0, 1), slice(7, 20), slice(39, 40)):
            alone = value_and_grads(lambda z: case.fused(z, labels[rows], reduction="none"), z[rows])  # noqa: B023
            for a, b in zip(alone, together, strict=True):
                assert torch.equal(a, b[rows]), case.id


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["an", "gr", "epr"])
def test_fused_linear_loss_gives_the_same_bits_run_after_run(name, dtype, device):
    """With one number of threads; what MKL or cuBLAS does with another one is theirs."""
    x, weight, bias = (torch.randn(shape).to(dtype).to(device) for shape in ((3000, 12), (700, 12), (700,)))
    assert linear(x, weight, bias).nbytes > 4 << 20  # several chunks
    labels = make_index(3000, 700).to(device)
    module = losses.make(name, **({"expected_positives": 2.5} if name == "epr" else {}))
    call = lambda *args: losses.fused_linear_loss(*args, labels, loss=module)  # noqa: E731
    once = value_and_grads(call, x, weight, bias)
    for _ in range(2):
        for a, b in zip(value_and_grads(call, x, weight, bias), once, strict=True):
            assert torch.equal(a, b)


# --- instruction sets -----------------------------------------------------------------------------


def fingerprints():
    """{what: hash} of all outputs, for every dtype."""
    found = {}
    for dtype in (*FLOATS, *HALVES):
        everything = {"other": other_outputs(dtype), **{case.id: outputs(case, dtype) for case in ONE_OF_EACH}}
        for who, results in everything.items():
            for what, tensors in results.items():
                data = b"".join(bits(t).numpy().tobytes() for t in tensors)
                found[f"{dtype} {who} {what}"] = hashlib.sha256(data).hexdigest()
    return found


@pytest.mark.slow
def test_every_instruction_set_gives_the_same_bits(on_every_isa):
    found = on_every_isa(__file__)
    for isa, hashes in found.items():
        assert hashes == found["baseline"], isa
    assert fingerprints() == found["baseline"]
