"""The CUDA loss kernels, run on the CPU by cuda_emulator.h: the CPU op's bits, and its sums within rounding."""

import ctypes
import itertools
import math
import shutil
from pathlib import Path

import pytest
import torch

from spml_fast import _ops

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ELEMENTS = {dtype: i for i, dtype in enumerate([*DTYPES, torch.int8, torch.uint8, torch.int32, torch.int64])}
ELEMENTS[torch.bool] = ELEMENTS[torch.uint8]
NONE, MEAN, SUM = 0, 1, 2
RELATIVE = {torch.float32: 1e-6, torch.float64: 1e-13}
NO_INVALID = 2**63 - 1

pytestmark = [pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"), pytest.mark.slow]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


# --- csrc/losses/params.h -------------------------------------------------------------------------


def structure(name, **fields):
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


def named(names, kind):
    return dict.fromkeys(names.split(), kind)


POINTER, INT, LONG, DOUBLE = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_double
Matrix = structure(
    "Matrix",
    data=POINTER,
    element=INT,
    **named("row_stride column_stride", LONG),
    index=POINTER,
    data_rows=LONG,
)
Labels = structure("Labels", matrix=Matrix, **named("positives negatives", POINTER))
LossParams = structure(
    "LossParams",
    logits=Matrix,
    labels=Labels,
    aux=Matrix,
    **named("class_weight threshold k_hat values grad aux_grad", POINTER),
    element=INT,
    **named("rows columns first_column label_columns", LONG),
    hyper=DOUBLE * 10,
    **named("eps scale out_scale expected_positives penalty penalty_slope", DOUBLE),
    **named("loss kind", INT),
    **named("partial out invalid workspace", POINTER),
)
SelectParams = structure(
    "SelectParams",
    logits=Matrix,
    labels=Labels,
    flips=Matrix,
    **named("rows columns k", LONG),
    **named("threshold flip_table", POINTER),
    seed=ctypes.c_uint64,
    **named("step workspace", POINTER),
)


class Emulator:
    """The compiled kernels; keeps what they point to alive."""

    def __init__(self, library):
        self.library = library
        size = library.emulated_size
        assert [size(i) for i in range(3)] == [ctypes.sizeof(t) for t in (Matrix, LossParams, SelectParams)]
        # Garbage, as in fresh memory of a GPU: what kernels do not set they must not use.
        self.workspace = torch.full((max(size(3), size(4)),), 0x7B, dtype=torch.uint8)
        self.invalid = torch.full((1,), NO_INVALID)

    def take_invalid(self):
        invalid = self.invalid.item()
        self.invalid.fill_(NO_INVALID)
        return invalid

    def __getattr__(self, name):
        function = getattr(self.library, f"emulated_{name}")

        def call(*args):
            return function(*(ctypes.byref(a) if isinstance(a, ctypes.Structure) else value_of(a) for a in args))

        return call


def value_of(argument):
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, float):
        return ctypes.c_double(argument)
    return ctypes.c_int64(argument)


@pytest.fixture(scope="module")
def emulator(emulate):
    return Emulator(emulate("losses", "-fno-math-errno", "-fno-trapping-math"))


def pointer(tensor):
    return None if tensor is None else tensor.data_ptr()


def matrix(tensor, index=None):
    if tensor is None:
        return Matrix()
    return Matrix(tensor.data_ptr(), ELEMENTS[tensor.dtype], *tensor.stride(), pointer(index), tensor.shape[0])


def label_view(labels, negatives=None):
    if labels.dim() == 1:
        return Labels(Matrix(), labels.data_ptr(), pointer(negatives))
    return Labels(matrix(labels), None, pointer(negatives))


# --- losses ---------------------------------------------------------------------------------------

GR = (1.0, -2.0, 0.5, 1.0)
HYPER = {
    "an": (),
    "bce": (),
    "asl": (1.0, 4.0, 0.05),
    "gr": (*GR, 0.5, 0.1, 2.0),
    "gr_standard": (*GR, 0.0, 0.01, 1.0),
    "em_apl": (0.2, 0.02),
    "large_loss": (1.0,),
    "role": (),
}
every_loss = pytest.mark.parametrize("name", HYPER)
KINDS = {"role": 1, "pr": 2}


def functor(name):
    return {"role": "an", "pr": "an"}.get(name, name)


def by_cpu(name, z, labels, *, eps=0.0, reduction=NONE, hyper=None, **options):
    """(value, gradient, gradient of the table's rows) of the op."""
    hyper = HYPER.get(name, ()) if hyper is None else hyper
    number = _ops.losses[
        "gr" if name == "gr_standard" else functor(name)
    ]  # the op sees by itself that it is standard
    return torch.ops.spml_fast.loss_and_grad(
        z, labels, KINDS.get(name, 0), number, hyper, eps, reduction, **options
    )


def by_kernel(
    emulator, name, z, labels, *, blocks=1, packed=None, eps=0.0, reduction=NONE, hyper=None, class_weight=None,
    aux=None, index=None, negatives=None, threshold=None, lam=0.0, expected_positives=0.0, k_hat=None,
    first_column=0, label_columns=None,
):  # fmt: skip
    """The same from the CUDA kernel; launched as csrc/losses/losses_cuda.cu does."""
    n, l = z.shape
    columns = label_columns or l
    compute = _ops.compute_dtype(z.dtype)
    value = torch.full(z.shape if reduction == NONE else (), 77.0, dtype=z.dtype if reduction == NONE else compute)
    grad = torch.full(z.shape, 77.0, dtype=z.dtype)
    aux_grad = torch.full(z.shape if name == "role" else (0,), 77.0, dtype=compute)
    class_weight = None if class_weight is None else class_weight.to(compute)
    later = reduction == MEAN and z.dtype == torch.float16  # the gradient is that of the sum
    p = LossParams(
        logits=matrix(z),
        labels=label_view(labels, negatives),
        aux=matrix(aux, index),
        class_weight=pointer(class_weight),
        threshold=pointer(threshold),
        k_hat=pointer(k_hat),
        values=pointer(value) if reduction == NONE else None,
        grad=grad.data_ptr(),
        aux_grad=aux_grad.data_ptr() if name == "role" else None,
        element=ELEMENTS[z.dtype],
        rows=n,
        columns=l,
        first_column=first_column,
        label_columns=columns,
        eps=eps,
        scale=1 / (n * columns) if reduction == MEAN and not later else 1.0,
        out_scale=1 / (n * columns) if later else 1.0,
        expected_positives=expected_positives,
        loss=_ops.losses[functor(name)],
        kind=KINDS.get(name, 0),
        out=None if reduction == NONE else value.data_ptr(),
        invalid=emulator.invalid.data_ptr(),
        workspace=emulator.workspace.data_ptr(),
    )
    p.hyper[: len(HYPER.get(name, ()))] = HYPER.get(name, ()) if hyper is None else hyper
    if lam:
        p.penalty = (
            lam / columns**2 * (n * columns if reduction == SUM or later else 1) * (0.5 if name == "role" else 1)
        )
        p.penalty_slope = 2 * p.penalty / n
    if name == "pr":
        emulator.ranking(ELEMENTS[z.dtype], p, blocks)
    else:
        whole = z.is_contiguous() and z.data_ptr() % 16 == 0 if packed is None else packed
        assert emulator.loss(ELEMENTS[z.dtype], p, int(whole), blocks)
    return value, grad, aux_grad


def same_bits(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.isnan(), b.isnan())
        a, b = a.nan_to_num(nan=1.0), b.nan_to_num(nan=1.0)
        assert torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))


def same(actual, expected, dtype):
    """The gradients bit for bit, the reduced value within rounding."""
    tolerance = RELATIVE[_ops.compute_dtype(dtype)]
    torch.testing.assert_close(actual[0], expected[0], rtol=tolerance, atol=tolerance, equal_nan=True)
    same_bits(actual[1:], expected[1:])


def make_problem(name, n, l, dtype):
    """(logits, labels in every form that the loss takes, what else it takes)"""
    compute = _ops.compute_dtype(dtype)
    z = (torch.randn(n, l) * 3).to(dtype)
    s = (torch.rand(n, l) < min(0.3, 2 / l)).double()
    if name == "bce":
        return z, [torch.where(torch.rand(n, l) < 0.5, torch.rand(n, l), s.float()).to(dtype)], {}
    s[(s == 0) & (torch.rand(n, l) < 0.2)] = -1
    index = torch.randint(-1, l, (n,))
    more = {}
    if name == "em_apl":
        more["aux"] = torch.where(torch.rand(n, l) < 0.5, torch.rand(n, l), -1.0).to(dtype)
    if name == "large_loss":
        more["threshold"] = torch.tensor([1.0], dtype=compute)
        more["aux"] = (torch.rand(2 * n, l) < 0.1).to(torch.uint8)
        more["index"] = torch.randint(0, 2 * n, (n,))
    if name == "role":
        more["aux"] = torch.randn(n + 3, l, dtype=compute)
        more["index"] = torch.randint(0, n + 3, (n,))
    return z, [s.to(torch.int8), index], more


SIZES = [(1, 1), (23, 3), (7, 13), (37, 81), (3, 700)]


@every_dtype
@every_loss
def test_values_and_gradients(name, dtype, emulator):
    for (n, l), blocks in zip(SIZES, (1, 1, 2, 2, 3), strict=True):
        z, forms, more = make_problem(name, n, l, dtype)
        for labels in forms:
            same_bits(by_kernel(emulator, name, z, labels, blocks=blocks, **more), by_cpu(name, z, labels, **more))
    assert emulator.take_invalid() == NO_INVALID


@every_dtype
@every_loss
def test_mean_and_sum(name, dtype, emulator):
    z, forms, more = make_problem(name, 37, 81, dtype)
    for labels, (reduction, blocks) in itertools.product(forms, ((MEAN, 3), (SUM, 1))):
        actual = by_kernel(emulator, name, z, labels, reduction=reduction, blocks=blocks, **more)
        same(actual, by_cpu(name, z, labels, reduction=reduction, **more), dtype)


@every_dtype
@pytest.mark.parametrize("name", ["an", "gr", "role"])
def test_logits_that_are_not_packed(name, dtype, emulator):
    n, l = 23, 61
    z, forms, more = make_problem(name, n, l, dtype)
    expected = [by_cpu(name, z, labels, **more) for labels in forms]
    flat = torch.zeros(n * l + 1, dtype=dtype)
    misaligned = flat[1:].view(n, l).copy_(z)
    assert misaligned.data_ptr() % 16 != 0
    views = {
        "packed, one by one": z,
        "misaligned": misaligned,
        "columns of a wider matrix": torch.cat([z, z, z], 1)[:, l : 2 * l],
        "transposed": z.t().contiguous().t(),
        "every second": torch.stack([z, z], 2)[:, :, 1],
    }
    for what, view in views.items():
        assert torch.equal(view, z), what
        for labels, wanted in zip(forms, expected, strict=True):
            same_bits(by_kernel(emulator, name, view, labels, packed=False, blocks=2, **more), wanted)


@pytest.mark.parametrize("label_dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, *DTYPES], ids=str)
def test_labels_of_every_dtype_and_strides(label_dtype, emulator):
    z, (s, _), _ = make_problem("an", 7, 61, torch.float32)
    s = (s == 1).to(label_dtype)
    expected = by_cpu("an", z, s)
    for labels in (s, s.t().contiguous().t(), torch.stack([s, s], 2)[:, :, 1]):
        same_bits(by_kernel(emulator, "an", z, labels), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["an", "gr", "gr_standard", "em_apl", "role"])
def test_eps(name, dtype, emulator):
    """Zero or not is decided at run time here, at compile time on the CPU."""
    z, forms, more = make_problem(name, 7, 61, dtype)
    for labels in forms:
        same_bits(
            by_kernel(emulator, name, z, labels, eps=1e-5, **more), by_cpu(name, z, labels, eps=1e-5, **more)
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@every_loss
def test_class_weights(name, dtype, emulator):
    z, forms, more = make_problem(name, 37, 81, dtype)
    more["class_weight"] = torch.rand(81) * 2
    for labels in forms:
        same_bits(by_kernel(emulator, name, z, labels, blocks=2, **more), by_cpu(name, z, labels, **more))
        actual = by_kernel(emulator, name, z, labels, blocks=2, reduction=MEAN, **more)
        same(actual, by_cpu(name, z, labels, reduction=MEAN, **more), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["an", "asl", "gr"])
def test_sampled_negatives(name, dtype, emulator):
    for n, l in ((41, 1), (23, 3), (37, 81)):
        z, forms, _ = make_problem(name, n, l, dtype)
        negatives = torch.randint(-1, l, (n,))  # some where a positive is: that one stays
        for labels in forms:
            actual = by_kernel(emulator, name, z, labels, negatives=negatives, blocks=2)
            same_bits(actual, by_cpu(name, z, labels, negatives=negatives))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["an", "role"])
def test_penalty_on_expected_positives(name, dtype, emulator):
    z, forms, more = make_problem(name, 37, 81, dtype)
    more |= dict(lam=0.7, expected_positives=2.5)
    more["k_hat"] = torch.tensor([3.25, 40.5][: 2 if name == "role" else 1], dtype=torch.float64)
    for labels, reduction in itertools.product(forms, (MEAN, SUM)):
        actual = by_kernel(emulator, name, z, labels, reduction=reduction, blocks=2, **more)
        same(actual, by_cpu(name, z, labels, reduction=reduction, **more), dtype)


@pytest.mark.parametrize("q", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (2.0, 4.0, 0.3), (0.0, 1.0, 1.0)], ids=str)
def test_exponents_of_gr(q, emulator):
    z, forms, _ = make_problem("gr", 7, 61, torch.float32)
    for labels in forms:
        actual = by_kernel(emulator, "gr", z, labels, hyper=(*GR, *q))
        same_bits(actual, by_cpu("gr", z, labels, hyper=(*GR, *q)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_losses_dropped_or_flipped_or_flipped_for_good(dtype, emulator):
    z, forms, more = make_problem("large_loss", 37, 81, dtype)
    for labels, flip in itertools.product(forms, (0.0, 1.0)):
        for options in (more, {"threshold": more["threshold"]}):
            actual = by_kernel(emulator, "large_loss", z, labels, hyper=(flip,), blocks=2, **options)
            same_bits(actual, by_cpu("large_loss", z, labels, hyper=(flip,), **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["an", "bce", "gr"])
def test_a_chunk_of_a_wider_matrix(name, dtype, emulator):
    """As fused_linear_loss launches it: logits of some columns, labels of all."""
    n, l = 23, 90
    z, forms, _ = make_problem(name, n, l, dtype)
    class_weight = torch.rand(l)
    negatives = None if name == "bce" else torch.randint(-1, l, (n,))
    for labels in forms:
        whole = by_cpu(name, z, labels, class_weight=class_weight, negatives=negatives)
        for first, end in ((0, 32), (32, 64), (64, 90), (89, 90)):
            columns = slice(first, end)
            part = by_kernel(
                emulator, name, z[:, columns].contiguous(), labels if labels.dim() == 1 else labels[:, columns],
                class_weight=class_weight[columns], negatives=negatives, first_column=first, label_columns=l,
            )  # fmt: skip
            same_bits(part[:2], [t[:, columns].contiguous() for t in whole[:2]])
    assert emulator.take_invalid() == NO_INVALID


@every_dtype
@pytest.mark.parametrize("name", ["an", "gr", "asl", "em_apl", "role"])
def test_nan_and_infinity(name, dtype, emulator):
    z, forms, more = make_problem(name, 7, 61, dtype)
    special = torch.tensor([math.nan, -math.nan, math.inf, -math.inf, 1e4, -1e4, 0.0, -0.0]).to(dtype)
    z.view(-1)[torch.randperm(z.numel())[: 10 * len(special)]] = special.repeat(10)
    for labels in forms:
        actual = by_kernel(emulator, name, z, labels, **more)
        same_bits(actual, by_cpu(name, z, labels, **more))
        assert actual[0].isnan().any()
        assert by_kernel(emulator, name, z, labels, reduction=MEAN, blocks=2, **more)[0].isnan()
    assert emulator.take_invalid() == NO_INVALID


def test_sums_do_not_depend_on_the_order_of_blocks(emulator):
    """Whichever block ends last adds the others up, in their order."""
    z, (s, index), _ = make_problem("gr", 37, 181, torch.float32)
    forwards = [by_kernel(emulator, "gr", z, labels, reduction=MEAN, blocks=7) for labels in (s, index)]
    emulator.block_order(1)
    try:
        backwards = [by_kernel(emulator, "gr", z, labels, reduction=MEAN, blocks=7) for labels in (s, index)]
    finally:
        emulator.block_order(0)
    for a, b in zip(forwards, backwards, strict=True):
        same_bits(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_invalid_label_is_nan_and_reported(dtype, emulator):
    n, l = 7, 61
    z, (s, index), _ = make_problem("an", n, l, dtype)
    for wrong in (2.0, -2.0, 0.5, math.nan):
        labels = s.float()
        labels[4, 33] = wrong
        values, _, _ = by_kernel(emulator, "an", z, labels, blocks=2)
        assert emulator.take_invalid() == 4 * l + 33
        valid = by_cpu("an", z, s)[0]
        valid[4, 33] = math.nan
        same_bits([values], [valid])
        assert by_kernel(emulator, "an", z, labels, blocks=2, reduction=MEAN)[0].isnan()
        assert emulator.take_invalid() == 4 * l + 33
    valid = by_cpu("an", z, index)[0]
    valid[5] = math.nan
    for wrong in (l, -2, 2**40, -(2**40)):
        labels = index.clone()
        labels[5] = wrong
        same_bits(by_kernel(emulator, "an", z, labels, blocks=2)[:1], [valid])
        assert emulator.take_invalid() == -1 - 5
    full = torch.rand(n, l)
    full[6, 60] = -1
    assert by_kernel(emulator, "bce", z, full, reduction=MEAN)[0].isnan()
    assert emulator.take_invalid() == 6 * l + 60


@pytest.mark.parametrize("name", ["role", "em_apl", "large_loss"])
def test_an_invalid_row_of_a_table_is_not_read_and_reported(name, emulator):
    n, l = 7, 61
    z, forms, more = make_problem(name, n, l, torch.float32)
    more["index"] = torch.arange(n)
    for labels in forms:
        valid = by_cpu(name, z, labels, **more)[0]
        valid[3] = math.nan
        for wrong in (-1, more["aux"].shape[0], 2**40):
            index = more["index"].clone()
            index[3] = wrong
            values, _, _ = by_kernel(emulator, name, z, labels, **{**more, "index": index})
            same_bits([values], [valid])
            assert emulator.take_invalid() == -1 - 3


# --- ranking --------------------------------------------------------------------------------------


@every_dtype
def test_ranking(dtype, emulator):
    close = {"rtol": RELATIVE[dtype], "atol": RELATIVE[dtype]} if dtype in RELATIVE else {}
    for (n, l), blocks in zip([(1, 1), (9, 3), (7, 61), (2, 700)], (1, 2, 3, 1), strict=True):
        z, (s, index), _ = make_problem("pr", n, l, dtype)
        actual, expected = by_kernel(emulator, "pr", z, index, blocks=blocks), by_cpu("pr", z, index)
        torch.testing.assert_close(actual[0], expected[0], **close)
        same_bits(actual[1:], expected[1:])  # one positive in a row: no sum to round
        more = {"class_weight": torch.rand(l)}
        for reduction in (NONE, MEAN):
            actual = by_kernel(emulator, "pr", z, s, blocks=blocks, reduction=reduction, **more)
            for a, b in zip(actual, by_cpu("pr", z, s, reduction=reduction, **more), strict=True):
                torch.testing.assert_close(a, b, **close)
    assert emulator.take_invalid() == NO_INVALID


def test_ranking_reports_an_invalid_label(emulator):
    z, (s, index), _ = make_problem("pr", 7, 61, torch.float32)
    index[2] = 61
    values, _, _ = by_kernel(emulator, "pr", z, index, blocks=2)
    assert emulator.take_invalid() == -1 - 2
    assert values[2].isnan().all()
    assert values[torch.arange(7) != 2].isfinite().all()
    s[6, 60] = 3
    assert by_kernel(emulator, "pr", z, s, blocks=2, reduction=MEAN)[0].isnan()
    assert emulator.take_invalid() == 6 * 61 + 60


# --- the sum of p ---------------------------------------------------------------------------------


@every_dtype
def test_probability_sum(dtype, emulator):
    float64 = int(dtype == torch.float64)
    z = (torch.randn(37, 81) * 3).to(dtype)
    out = torch.full((1,), 77.0, dtype=torch.float64)
    for view, blocks in ((z, 1), (z, 4), (z.t().contiguous().t(), 3)):
        emulator.probability_sum(float64, matrix(view), *view.shape, 0.5, out, emulator.workspace, blocks)
        torch.testing.assert_close(
            out, _ops.sum_probabilities(z) / 2, rtol=RELATIVE[_ops.compute_dtype(dtype)], atol=0
        )


def test_probability_sum_of_rows_of_a_table(emulator):
    table = torch.randn(9, 81)
    index = torch.tensor([3, 8, 3, 0, -1, 9, 2**40])  # the last three are no rows: the loss that follows says so
    out = torch.zeros(1, dtype=torch.float64)
    emulator.probability_sum(0, matrix(table, index), 7, 81, 1.0, out, emulator.workspace, 2)
    torch.testing.assert_close(out, _ops.sum_probabilities(table[index[:4]]), rtol=1e-6, atol=0)


# --- what backward does ---------------------------------------------------------------------------


@every_dtype
def test_scale(dtype, emulator):
    compute = _ops.compute_dtype(dtype)
    for n, blocks, factor in ((1, 1, 3.7), (1000, 2, -0.3), (1000, 5, 0.0), (257, 1, 1.0)):
        grad = torch.randn(n).to(dtype)
        expected = (grad.to(compute) * torch.tensor(factor, dtype=compute)).to(dtype)
        emulator.scale(ELEMENTS[dtype], grad, n, torch.tensor(factor, dtype=compute), blocks)
        same_bits([grad], [expected])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("l", [1, 300])
def test_scatter_rows(l, dtype, emulator):
    index = torch.tensor([4, 0, 4, 7, 4, 0, 3])
    rows = torch.randn(len(index), l, dtype=dtype)
    expected = torch.zeros(8, l, dtype=dtype)
    for row, target in zip(rows, index.tolist(), strict=True):
        expected[target] += row
    table = torch.zeros(8, l, dtype=dtype)
    emulator.scatter_rows(int(dtype == torch.float64), rows, index, len(index), l, table, 8)
    same_bits([table], [expected])


def test_scatter_rows_leaves_out_what_is_no_row(emulator):
    index = torch.tensor([1, -1, 3, 2**40])
    table = torch.zeros(3, 5)
    emulator.scatter_rows(0, torch.ones(4, 5), index, 4, 5, table, 3)
    assert torch.equal(table.sum(1), torch.tensor([0.0, 5.0, 0.0]))


# --- draws, thresholds, flips ---------------------------------------------------------------------


def select_params(emulator, z, labels, flips=None, index=None, **more):
    columns = labels.shape[1] if z is None else z.shape[1]
    workspace = emulator.workspace.data_ptr()
    view = label_view(labels)
    more |= dict(rows=labels.shape[0], columns=columns, workspace=workspace)
    return SelectParams(logits=matrix(z), labels=view, flips=matrix(flips, index), **more)


@pytest.mark.parametrize("l", [1, 3, 90])
def test_draw_unobserved(l, emulator):
    """Rows with no, one and many unobserved labels, over more than one block."""
    n = 300
    dense = torch.where(torch.rand(n, l) < 0.9, 1, 0).to(torch.int8)
    dense[::2] = (torch.rand(150, l) < 0.1).to(torch.int8)
    out = torch.full((n,), 77)
    for labels, step in ((dense, 5), (dense, 2**40 + 3), (torch.randint(-1, l, (n,)), 5)):
        step = torch.tensor([step])
        p = select_params(
            emulator, None if labels.dim() == 2 else torch.empty(n, l), labels, seed=11, step=step.data_ptr()
        )
        emulator.draw_unobserved(p, out)
        assert torch.equal(out, _ops.draw_unobserved(labels, l, 11, step))


@every_dtype
def test_large_loss_threshold_and_flips(dtype, emulator):
    n, l = 23, 91
    float64 = int(dtype == torch.float64)
    z, (s, labels), _ = make_problem("an", n, l, dtype)
    z[z.abs() < 0.4] = 0.0  # ties
    z[3, 7], z[4, 8], z[5, 9] = math.nan, math.inf, -math.inf
    index = torch.randperm(2 * n)[:n]
    for form, k, with_flips in itertools.product((s, labels), (1, 200, 3000), (True, False)):
        flips = (torch.rand(2 * n, l) < 0.2).to(torch.uint8)
        table = (flips, index) if with_flips else (None, None)
        threshold = torch.full((1,), 77.0, dtype=_ops.compute_dtype(dtype))
        emulator.large_loss_threshold(float64, select_params(emulator, z, form, *table, k=k), threshold, 3)
        same_bits([threshold], [_ops.large_loss_threshold(z, form, *table, min(k / z.numel(), 1.0))])
        if with_flips:
            expected = flips.clone()
            _ops.flip_labels(z, form, expected, index, threshold)
            assert k == 1 or not torch.equal(flips, expected)
            pointers = dict(threshold=threshold.data_ptr(), flip_table=flips.data_ptr())
            emulator.flip_labels(float64, select_params(emulator, z, form, flips, index, **pointers), 2)
            assert torch.equal(flips, expected)


def test_threshold_where_nothing_is_unobserved(emulator):
    z, labels, threshold = torch.randn(5, 7), torch.ones(5, 7), torch.zeros(1)  # the parameters hold pointers only
    emulator.large_loss_threshold(0, select_params(emulator, z, labels, k=3), threshold, 2)
    assert threshold.item() == math.inf


def test_rows_that_are_none_are_neither_counted_nor_flipped(emulator):
    z, labels = torch.randn(4, 7), torch.zeros(4, dtype=torch.int64)
    flips, index = torch.zeros(3, 7, dtype=torch.uint8), torch.tensor([1, -1, 3, 2**40])
    threshold = torch.zeros(1)
    emulator.large_loss_threshold(0, select_params(emulator, z, labels, flips, index, k=6), threshold, 1)
    assert threshold == z[0, 1:].min()
    pointers = dict(threshold=threshold.data_ptr(), flip_table=flips.data_ptr())
    emulator.flip_labels(0, select_params(emulator, z, labels, flips, index, **pointers), 1)
    assert torch.equal(flips.sum(1), torch.tensor([0, 6, 0]))
