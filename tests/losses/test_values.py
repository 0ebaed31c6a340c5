"""Values and gradients of every loss against the reference in float64: dtypes, label forms, views, extremes."""

import math

import pytest
import torch
from cases import (
    ALL,
    EPS,
    FLOATS,
    HALVES,
    ONE_OF_EACH,
    WHOLE_BATCH,
    WITH_EPS,
    K,
    ids,
    make_index,
    make_labels,
    make_logits,
    make_matrix,
    move,
    value_and_grads,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from spml_fast import _ops, losses, reference

RELATIVE = {torch.float32: 2e-6, torch.float64: 1e-10}
# Where terms cancel (p - margin, 2 lam - 3 p, -log p + log(1 - p), k_hat - k) their rounding remains: p, 1 - p and
# their products are of the size of 1, so an absolute error of a few units in the last place of 1 must be allowed.
ABSOLUTE = {torch.float32: 4e-7, torch.float64: 1e-14}

SIZES = [(1, 1), (16, 20), (37, 81), (128, 312)]
LABEL_DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.int64,
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
]


def assert_close(actual, expected, dtype, unit=1.0):
    """``unit``: the factor of what has the size of 1: class weight, 1 / (N L)."""
    actual, expected = actual.detach().cpu().double(), expected.detach()
    assert actual.shape == expected.shape
    error = (actual - expected).abs()
    allowed = RELATIVE[dtype] * expected.abs() + ABSOLUTE[dtype] * unit
    wrong = ~(error <= allowed)
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        pytest.fail(
            f"{int(wrong.sum())} of {wrong.numel()} wrong, first at {at}: {actual[at].item()!r}, "
            f"expected {expected[at].item()!r}, error {error[at]:.3g}, allowed {allowed[at]:.3g}"
        )


def compare(case, z, labels, second_matrix, device, *, s=None, eps=0.0, class_weight=None, reduction="mean"):
    """Value and gradients of the fused loss equal those of the reference on the same logits in float64."""
    dtype = _ops.compute_dtype(z.dtype)
    n, l = z.shape
    s = reference.label_matrix(labels, l, torch.float64) if s is None else s.double()
    kwargs = {"reduction": reduction}
    if eps:
        kwargs["eps"] = eps
    weight64 = None
    if class_weight is not None:
        kwargs["class_weight"] = class_weight.to(device)
        weight64 = class_weight.double()
    leaves = [z.to(device)] + ([second_matrix.to(device)] if case.matrix == "table" else [])
    fixed = move(second_matrix, device)

    def fused(z, table=fixed):
        return case.fused(z, labels.to(device), table, **kwargs)

    wide = None if second_matrix is None else second_matrix.double()

    def expected(z, table=wide):
        return case.expected(z, s, table, eps=eps, class_weight=weight64, reduction=reduction)

    actual = value_and_grads(fused, *leaves)
    wanted = value_and_grads(expected, *(t.detach().cpu().double() for t in leaves))
    unit = (1 / (n * l) if reduction == "mean" else 1.0) * (
        1.0 if weight64 is None else weight64.abs().max().item()
    )
    if case.name == "pr":  # sums over a row
        unit *= l
    if eps:  # (1 - p) / (1 - p + eps) and the like, with an error of p in both
        unit *= 2
    if reduction == "none":
        assert actual[0].dtype == z.dtype
        assert_close(actual[0], wanted[0], dtype, unit)
    else:
        assert actual[0].dtype == dtype
        entries = case.expected(z.double(), s, wide, eps=eps, class_weight=weight64, reduction="sum").abs()
        absolute = case.entries(z.detach().double(), s, wide, eps).abs()
        if weight64 is not None:
            absolute = absolute * weight64
        scale = absolute.sum() * (1 / (n * l) if reduction == "mean" else 1.0)
        # Entries of both signs cancel in the sum (EM); the error is relative to the sum of their magnitudes.
        error = abs(actual[0].item() - wanted[0].item())
        assert error <= RELATIVE[dtype] * max(scale.item(), abs(wanted[0].item())) + ABSOLUTE[dtype] * unit, (
            entries
        )
    for got, want in zip(actual[1:], wanted[1:], strict=True):
        assert got.is_contiguous()
        assert_close(got, want, dtype, unit)


NAMES = """
    bce bce_ls iun iu pr an an_ls wan pns epr role gr em em_apl focal_margin hill splc asl ll_r ll_ct ll_cp gpr
"""


def test_registry_has_the_losses_of_the_field():
    assert set(losses.registry) >= set(NAMES.split())
    assert {case.name for case in ALL} == set(losses.registry)


def test_ids_are_unique():
    assert len(set(ids(ALL))) == len(ALL)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", ALL, ids=ids(ALL))
def test_matrix_form(case, dtype, device):
    for n, l in SIZES:
        s = make_labels(case, n, l)
        z = make_logits(n, l, dtype)
        compare(case, z, s.to(dtype), make_matrix(case, s, dtype), device)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("case", [c for c in ALL if not c.full_labels], ids=lambda c: c.id)
def test_index_form(case, dtype, device):
    for n, l in SIZES:
        labels = make_index(n, l)
        z = make_logits(n, l, dtype)
        s = reference.label_matrix(labels, l, torch.float64)
        compare(case, z, labels, make_matrix(case, s, dtype), device)


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("case", ALL, ids=ids(ALL))
def test_reductions_and_class_weight(case, reduction, weighted, device):
    if reduction not in case.reductions:
        z = torch.zeros(2, 3, device=device)
        with pytest.raises(ValueError, match='reduction="none" is not defined'):
            case.fused(z, z, z, reduction=reduction)
        return
    for dtype in FLOATS:
        n, l = 37, 81
        s = make_labels(case, n, l)
        class_weight = torch.rand(l) * 3 if weighted else None
        z = make_logits(n, l, dtype)
        second_matrix = make_matrix(case, s, dtype)
        compare(case, z, s.to(dtype), second_matrix, device, class_weight=class_weight, reduction=reduction)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["an", "gr", "em", "role", "pr"])
def test_large_batch(name, device):
    case = next(c for c in ALL if c.name == name)
    n, l = 4096, 1000
    labels = make_index(n, l)
    z = make_logits(n, l, torch.float32)
    second_matrix = torch.randn(n, l) if case.matrix else None
    for form in (labels, reference.label_matrix(labels, l, torch.int8)) if name == "gr" else (labels,):
        compare(case, z, form, second_matrix, device)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=str)
@pytest.mark.parametrize("case", ALL, ids=ids(ALL))
def test_label_dtypes_bit_for_bit(case, dtype, device):
    """Whatever the dtype of the labels, the same bits; -1 where the dtype and the loss have it."""
    n, l = 37, 81
    signed = dtype not in (torch.bool, torch.uint8)
    s = make_labels(case, n, l, negatives=signed and not case.full_labels)
    z = make_logits(n, l, torch.float32).to(device)
    second_matrix = move(make_matrix(case, s, torch.float32), device)
    wanted = value_and_grads(lambda z: case.fused(z, s.to(device), second_matrix), z)
    actual = value_and_grads(lambda z: case.fused(z, s.to(dtype).to(device), second_matrix), z)
    for a, b in zip(actual, wanted, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int64, *FLOATS, *HALVES], ids=str)
def test_dtypes_of_the_second_matrix(dtype, device):
    n, l = 16, 20
    z = make_logits(n, l, torch.float32).to(device)
    labels = make_index(n, l).to(device)
    for case in ALL:
        if case.matrix in ("full", "flips") or (case.matrix == "ternary" and dtype.is_signed):
            second_matrix = make_matrix(case, torch.zeros(n, l), torch.float32).to(device)
            if case.matrix == "flips" and dtype != torch.uint8:
                continue  # flips are written to as well: one dtype
            assert torch.equal(
                case.fused(z, labels, second_matrix.to(dtype)), case.fused(z, labels, second_matrix)
            ), case.id


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in ALL if not c.full_labels], ids=lambda c: c.id)
@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16], ids=str)
def test_index_form_is_matrix_form_bit_for_bit(case, dtype, device):
    for n, l in [(1, 1), (37, 81), (5, 1300)]:
        labels = make_index(n, l).to(device)
        z = make_logits(n, l, dtype).to(device)
        matrix = reference.label_matrix(labels, l, torch.int8)
        second_matrix = move(make_matrix(case, matrix.cpu().double(), dtype), device)
        for reduction in case.reductions:
            by_index = value_and_grads(lambda z: case.fused(z, labels, second_matrix, reduction=reduction), z)  # noqa: B023
            by_matrix = value_and_grads(lambda z: case.fused(z, matrix, second_matrix, reduction=reduction), z)  # noqa: B023
            for a, b in zip(by_index, by_matrix, strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("case", ALL, ids=ids(ALL))
def test_half_is_float32_rounded_once(case, dtype, device):
    n, l = 37, 81
    s = make_labels(case, n, l).float().to(device)
    z = make_logits(n, l, dtype).to(device)
    second_matrix = move(make_matrix(case, s.cpu(), torch.float32), device)
    for reduction in case.reductions:
        half = value_and_grads(lambda z: case.fused(z, s, second_matrix, reduction=reduction), z)  # noqa: B023
        single = value_and_grads(lambda z: case.fused(z, s, second_matrix, reduction=reduction), z.float())  # noqa: B023
        assert half[0].dtype == (dtype if reduction == "none" else torch.float32)
        assert half[1].dtype == dtype
        if dtype == torch.float16 and reduction == "mean":  # the gradient is stored before 1 / (N L) makes it tiny
            torch.testing.assert_close(half[0], single[0], rtol=1e-6, atol=0)
            torch.testing.assert_close(half[1].float(), single[1], rtol=2**-10, atol=2**-24)
            continue
        for a, b in zip(half, single, strict=True):
            assert torch.equal(a, b.to(a.dtype))


def strided_views(z):
    """The same numbers in other memory."""
    n, l = z.shape
    wide = torch.full((n, l + 7), 99.0, dtype=z.dtype)
    wide[:, 3 : 3 + l] = z
    spread = torch.full((2 * n, 3 * l), 99.0, dtype=z.dtype)
    spread[1::2, ::3] = z
    cube = torch.full((n, l, 4), 99.0, dtype=z.dtype)
    cube[:, :, 2] = z
    channels_last = torch.full((n, 5, l), 99.0, dtype=z.dtype).permute(0, 2, 1)
    channels_last[:, :, 1] = z
    yield "transposed", z.t().contiguous().t()
    yield "columns of a wider matrix", wide[:, 3 : 3 + l]
    yield "every second row, every third column", spread[1::2, ::3]
    yield "slice of (N, L, H)", cube[:, :, 2]
    yield "slice of (N, H, L), permuted", channels_last[:, :, 1]
    yield "flipped", z.flip(0).contiguous()[torch.arange(n - 1, -1, -1)]


@pytest.mark.parametrize("case", ALL, ids=ids(ALL))
def test_strided_views(case, device):
    n, l = 13, 81
    s = make_labels(case, n, l).float()
    z = make_logits(n, l, torch.float32)
    second_matrix = make_matrix(case, s.double(), torch.float32)
    on_device = move(second_matrix, device)
    wanted = value_and_grads(lambda z: case.fused(z, s.to(device), on_device), z.to(device))

    def check(z, s, second_matrix, what):
        z = z.requires_grad_()
        value = case.fused(z, s, second_matrix)
        (grad,) = torch.autograd.grad(value, z)
        assert torch.equal(value, wanted[0]), what
        assert torch.equal(grad, wanted[1]), what

    if device.type == "cpu":
        for what, view in strided_views(z):
            check(view.detach(), s, second_matrix, what)
        for what, view in strided_views(s):
            check(z.detach(), view, second_matrix, f"labels: {what}")
        if second_matrix is not None and case.matrix != "flips":
            for what, view in strided_views(second_matrix):
                check(z.detach(), s, view, f"second matrix: {what}")
    check(z.to(device).t().contiguous().t().detach(), s.to(device), on_device, "transposed")


def test_expanded_logits_and_labels(device):
    row = torch.randn(1, 20, device=device)
    labels = torch.tensor([[1.0, 0.0, -1.0, 0.0] * 5], device=device)
    together = losses.an_loss(row.expand(6, 20), labels.expand(6, 20), reduction="none")
    alone = losses.an_loss(row, labels, reduction="none")
    assert torch.equal(together, alone.expand(6, 20))


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
@pytest.mark.parametrize("case", ALL, ids=ids(ALL))
def test_large_logits_stay_finite(case, dtype, device):
    values = torch.tensor([-1e4, -1000.0, -120.0, -90.0, 0.0, 90.0, 120.0, 1000.0, 1e4])
    z = values.repeat(5, 3).to(dtype)
    n = z.shape[0]
    s = torch.tensor([1.0, 0.0, -1.0]).repeat_interleave(9).repeat(n, 1)
    if case.full_labels:
        s = s.abs()
    s[3] = 0
    s[4] = 1
    second_matrix = make_matrix(case, s.double(), dtype)
    if case.matrix == "table":
        second_matrix = values.repeat_interleave(3).repeat(n, 1).to(_ops.compute_dtype(dtype))
    for eps in (0.0, EPS) if case.has_eps else (0.0,):
        kwargs = {"eps": eps} if eps else {}
        leaf = z.to(device).requires_grad_()
        value = case.fused(leaf, s.to(device), move(second_matrix, device), **kwargs)
        value.backward()
        assert value.isfinite()
        assert leaf.grad.isfinite().all()
        if dtype in FLOATS and (case.name != "asl" or case.hyper["margin"] == 0):
            wanted = case.expected(
                z.double(), s.double(), None if second_matrix is None else second_matrix.double(), eps=eps
            )
            torch.testing.assert_close(value.cpu().double(), wanted, rtol=RELATIVE[dtype] * 10, atol=0)


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
@pytest.mark.parametrize("case", ALL, ids=ids(ALL))
def test_empty_batch(case, dtype, device):
    for shape in [(0, 7), (0, 0), (4, 0)] if case.name not in ("pns", "ll_cp") else [(0, 7)]:
        z = torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)
        labels = torch.zeros(shape, device=device)
        second_matrix = move(make_matrix(case, torch.zeros(shape), dtype), device)
        forms = [labels] if case.full_labels or shape[0] else [labels, labels.sum(1).long()]
        for form in forms:
            mean = case.fused(z, form, second_matrix)
            assert mean.shape == ()
            assert mean.isnan()
            (grad,) = torch.autograd.grad(mean, z)
            assert grad.shape == shape
            assert grad.dtype == dtype
            total = case.fused(z, form, second_matrix, reduction="sum")
            assert total.item() == 0
            (grad,) = torch.autograd.grad(total, z)
            assert grad.shape == shape
            if "none" in case.reductions:
                assert case.fused(z, form, second_matrix, reduction="none").shape == shape


@pytest.mark.parametrize("case", ALL, ids=ids(ALL))
def test_one_label(case, device):
    """L = 1: nothing to divide by L - 1, rows without an unobserved label."""
    for dtype in FLOATS:
        s = make_labels(case, 9, 1)
        compare(case, make_logits(9, 1, dtype), s.to(dtype), make_matrix(case, s, dtype), device)
        if not case.full_labels:
            labels = torch.tensor([0, -1, 0, 0, -1, -1, 0, -1, 0])
            second_matrix = make_matrix(case, s * 0, dtype)
            compare(case, make_logits(9, 1, dtype), labels, second_matrix, device)


@pytest.mark.parametrize("case", WITH_EPS, ids=ids(WITH_EPS))
def test_eps_against_the_reference(case, device):
    for dtype in FLOATS:
        s = make_labels(case, 37, 81)
        z = make_logits(37, 81, dtype)
        second_matrix = make_matrix(case, s, dtype)
        for eps in (EPS, 1e-7) if dtype == torch.float64 else (EPS,):
            compare(case, z, s.to(dtype), second_matrix, device, eps=eps)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in ALL if c.eager is not None], ids=lambda c: c.id)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_as_the_authors_write_it(case, dtype, device):
    """The eager form in float64 on the same logits, with eps inside the logarithms and labels 1 and 0."""
    n, l = 128, 81
    s = make_labels(case, n, l, negatives=False)
    z = make_logits(n, l, dtype, scale=2.0)
    second_matrix = make_matrix(case, s, dtype)
    kwargs = {"eps": EPS} if case.has_eps else {}
    fixed = move(second_matrix, device)
    actual = value_and_grads(lambda z: case.fused(z, s.to(device), fixed, **kwargs), z.to(device))
    wide = None if second_matrix is None else second_matrix.double()
    wanted = value_and_grads(lambda z: case.eager(z, s, wide, EPS), z.double())
    # 1e-6 of the value; EM's parts have both signs, its error is relative to the larger part.
    size = max(abs(wanted[0].item()), case.entries(z.double(), s, wide, EPS).abs().mean().item())
    tolerance = 1e-6 if dtype == torch.float32 else 1e-10
    assert abs(actual[0].item() - wanted[0].item()) <= tolerance * size
    error = (actual[1].cpu().double() - wanted[1]).abs()
    assert (error <= 5 * tolerance * wanted[1].abs() + tolerance / (n * l)).all()


NANS = [math.nan, -math.nan]


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
@pytest.mark.parametrize("case", [c for c in ALL if not c.whole_batch], ids=lambda c: c.id)
def test_nan_stays_where_it_is(case, dtype, device):
    """A NaN logit makes what its entry costs NaN, and its gradient, but no other entry's."""
    n, l = 9, 131
    s = make_labels(case, n, l)
    z = make_logits(n, l, dtype)
    second_matrix = make_matrix(case, s, dtype)
    bad = torch.rand(n, l) < 0.1
    z[bad] = torch.tensor(math.nan, dtype=dtype)
    z[0, 0] = torch.tensor(-math.nan).copysign(torch.tensor(-1.0)).to(dtype)
    bad = z.isnan()
    wide = None if second_matrix is None else second_matrix.double()
    wanted = case.expected(z.double(), s, wide, reduction="none").isnan()
    assert wanted.any()

    def check(marked):
        marked = marked.isnan().cpu()
        assert marked[wanted].all()
        assert not marked[~bad].any()

    on_device = z.to(device), s.to(device), move(second_matrix, device)
    value, grad = value_and_grads(lambda z: case.fused(z, *on_device[1:], reduction="none"), on_device[0])
    assert torch.equal(value.isnan().cpu(), wanted)
    check(grad)
    mean, grad = value_and_grads(lambda z: case.fused(z, *on_device[1:]), on_device[0])
    assert mean.isnan()
    check(grad)


@pytest.mark.parametrize("case", WHOLE_BATCH, ids=ids(WHOLE_BATCH))
def test_nan_in_a_batch_loss(case, device):
    s = make_labels(case, 9, 31).float()
    s[2, 4] = 1
    z = make_logits(9, 31, torch.float32)
    second_matrix = make_matrix(case, s.double(), torch.float32)
    z[2, 4] = math.nan
    value, grad = value_and_grads(lambda z: case.fused(z, s.to(device), move(second_matrix, device)), z.to(device))
    assert value.isnan()
    assert grad[2, 4].isnan()


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
@pytest.mark.parametrize("case", ALL, ids=ids(ALL))
def test_infinite_logits_do_not_crash(case, dtype, device):
    s = make_labels(case, 5, 31).float()
    second_matrix = make_matrix(case, s.double(), dtype)
    z = make_logits(5, 31, dtype)
    z[torch.rand(5, 31) < 0.2] = math.inf
    z[torch.rand(5, 31) < 0.2] = -math.inf
    value, grad = value_and_grads(lambda z: case.fused(z, s.to(device), move(second_matrix, device)), z.to(device))
    assert value.shape == ()
    assert grad.shape == z.shape


@pytest.mark.parametrize("case", ALL, ids=ids(ALL))
def test_value_without_gradient_is_the_same(case, device):
    s = make_labels(case, 37, 81).float().to(device)
    z = make_logits(37, 81, torch.float32).to(device)
    second_matrix = move(make_matrix(case, s.cpu().double(), torch.float32), device)
    alone = case.fused(z, s, second_matrix)
    assert not alone.requires_grad
    assert torch.equal(alone, case.fused(z.requires_grad_(), s, second_matrix))


@pytest.mark.parametrize("case", [c for c in ALL if c.name not in ("pns", "ll_cp")], ids=lambda c: c.id)
def test_module_is_the_function(case, device):
    hyper = dict(case.hyper)
    weight = torch.rand(20)
    if case.name == "em_apl":
        module = losses.make("em_apl", n_samples=16, n_labels=20, class_weight=weight, **hyper)
    elif case.name == "splc":
        module = losses.make("splc", class_weight=weight, **hyper)
    else:
        module = losses.make(case.name, class_weight=weight, **hyper)
    module = module.to(device)
    s = make_labels(case, 16, 20).float()
    z = make_logits(16, 20, torch.float32).to(device)
    second_matrix = make_matrix(case, s.double(), torch.float32)
    args = [] if second_matrix is None else [second_matrix.to(device)]
    if case.name == "em_apl":
        module.pseudo_labels.copy_(second_matrix)
        args = [torch.arange(16, device=device)]
    expected = case.fused(z, s.to(device), move(second_matrix, device), class_weight=weight.to(device))
    assert torch.equal(module(z, s.to(device), *args), expected)


def test_class_weight_is_a_buffer_of_any_dtype(device):
    z = torch.randn(4, 3, device=device, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, -1], device=device)
    module = losses.ANLoss(class_weight=[1, 2, 3]).to(device)
    assert "class_weight" not in module.state_dict()
    wanted = losses.an_loss(z, labels, class_weight=torch.tensor([1.0, 2.0, 3.0], device=device))
    assert module(z, labels) == wanted
    assert module.double()(z, labels) == wanted
    integers = torch.tensor([1, 2, 3], device=device)
    assert losses.an_loss(z, labels, class_weight=integers) == wanted


def test_mean_divides_by_all_entries_whatever_the_weights(device):
    z = torch.zeros(2, 2, device=device)
    labels = torch.tensor([0, 1], device=device)
    weight = torch.tensor([0.0, 10.0], device=device)
    assert losses.an_loss(z, labels, class_weight=weight).item() == pytest.approx(20 * math.log(2) / 4)


def test_inference_mode(device):
    with torch.inference_mode():
        z = torch.randn(4, 3, device=device)
        labels = torch.tensor([0, 1, 2, -1], device=device)
        value = losses.gr_loss(z, labels, w=1.0, b=-2.0, mu=0.5, sigma=1.0)
    assert value.isfinite()


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_property(data):
    """Any shape, strides and label form: the fused loss is the reference."""
    case = data.draw(st.sampled_from(ONE_OF_EACH))
    n, l = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 700))
    dtype = data.draw(st.sampled_from(FLOATS))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    z = make_logits(n, l, dtype, scale=data.draw(st.sampled_from([0.1, 3.0, 20.0])))
    views = list(strided_views(z))
    _, z = views[data.draw(st.integers(0, len(views) - 1))]
    index_form = data.draw(st.booleans()) and not case.full_labels
    if index_form:
        labels = make_index(n, l)
        s = reference.label_matrix(labels, l, torch.float64)
    else:
        signed = data.draw(st.booleans())
        s = make_labels(case, n, l, negatives=signed)
        soft = case.full_labels and signed
        kinds = FLOATS if soft else LABEL_DTYPES if not signed else [torch.int8, torch.int64, *FLOATS, *HALVES]
        labels = s.to(data.draw(st.sampled_from(kinds)))
        views = list(strided_views(labels))
        _, labels = views[data.draw(st.integers(0, len(views) - 1))]
    second_matrix = make_matrix(case, s, dtype)
    reduction = data.draw(st.sampled_from(case.reductions))
    class_weight = torch.rand(l) * 2 if data.draw(st.booleans()) else None
    compare(
        case, z, labels, second_matrix, torch.device("cpu"), s=s, reduction=reduction, class_weight=class_weight
    )


def test_expected_positives_is_the_mean_row_sum(device):
    for dtype in (*FLOATS, *HALVES):
        z, other = make_logits(37, 81, dtype).to(device), make_logits(37, 81, dtype).to(device)
        actual = losses.expected_positive_count(z, other.t().contiguous().t())
        assert actual.dtype == torch.float64
        wanted = torch.stack([reference.expected_positive_count(t.cpu().double()) for t in (z, other)])
        torch.testing.assert_close(actual.cpu(), wanted, rtol=1e-6 if dtype != torch.float64 else 1e-12, atol=0)
    value = losses.epr_loss(z.float(), torch.full((37,), -1, device=device), expected_positives=K)
    excess = (losses.expected_positive_count(z.float()).item() - K) / 81
    assert value.item() == pytest.approx(excess**2, rel=1e-5)
