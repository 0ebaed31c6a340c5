"""fused_linear_loss is the loss of a linear head, value and gradients, without the logits ever existing."""

import re

import pytest
import torch
from cases import ONE_OF_EACH, SMALL, make_index, make_labels, value_and_grads
from torch import nn
from torch.nn.functional import linear

from spml_fast import _ops, losses, reference

GR = dict(w=1.0, b=-2.0, mu=0.5, sigma=1.0)
MODULES = {
    "an": {},
    "an-eps": dict(eps=1e-5),
    "bce": {},
    "wan": {},
    "em": {},
    "hill": {},
    "asl": {},
    "gr": {},
    "gr-fixed": dict(**GR, q=(0.5, 0.1, 2.0)),
    "pns": dict(seed=3),
    "epr": dict(expected_positives=2.5, lam=0.7),
}
OBSERVED = [id for id in MODULES if id != "bce"]
CHUNK_BYTES = 4 << 20  # csrc/losses/losses.cpp, kChunkBytes
RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-11}  # of the largest entry: sums in another order


def make_module(id, **more):
    return losses.make(id.split("-")[0], **MODULES[id], **more)


def entries(id, z, labels):
    """(N, L), the reference in the dtype of z."""
    module = make_module(id)
    hyper = {k: v for k, v in module.hyper.items() if k not in ("expected_positives", "lam", "seed")}
    s = reference.label_matrix(labels, z.shape[1], z.dtype)
    if id == "pns":
        step = torch.zeros(1, dtype=torch.int64, device=labels.device)
        return reference.pns(z, s, _ops.draw_unobserved(labels, z.shape[1], 3, step))
    return getattr(reference, "iu" if id == "epr" else module.name)(z, s, **hyper)


def expected(id, x, weight, bias, labels, class_weight=None, reduction="mean"):
    z = linear(x, weight, bias)
    value = reference.reduce(entries(id, z, labels), class_weight, reduction)
    if id == "epr":
        value = value + 0.7 * reference.epr_penalty(z, 2.5) * (z.numel() if reduction == "sum" else 1)
    return value


def problem(n, d, l, dtype, device, bias=True):
    """x, weight, bias of which the logits are about as large as those of a classifier."""
    shapes = [(n, d), (l, d), (l,)] if bias else [(n, d), (l, d)]
    return [(torch.randn(shape, dtype=torch.float64) * 1.2).to(dtype).to(device) for shape in shapes]


def head(leaves):
    return leaves if len(leaves) == 3 else (*leaves, None)


def assert_same(id, leaves, labels, class_weight=None, reduction="mean"):
    """Value and gradients are those of linear and the reference in float64."""
    dtype = leaves[0].dtype
    module = make_module(id, class_weight=class_weight, reduction=reduction).to(leaves[0].device)
    labels = labels.to(leaves[0].device)
    actual = value_and_grads(lambda *t: losses.fused_linear_loss(*head(t), labels, loss=module), *leaves)
    wide = None if class_weight is None else class_weight.double()
    wanted = value_and_grads(
        lambda *t: expected(id, *head(t), labels.cpu(), wide, reduction), *(t.cpu().double() for t in leaves)
    )
    assert actual[0].dtype == dtype
    assert actual[0].item() == pytest.approx(wanted[0].item(), rel=RELATIVE[dtype])
    for leaf, got, want in zip(leaves, actual[1:], wanted[1:], strict=True):
        assert got.shape == leaf.shape
        assert got.dtype == dtype
        assert got.is_contiguous()
        if want.numel() > 0:
            assert (got.cpu().double() - want).abs().max() <= RELATIVE[dtype] * want.abs().max() + 1e-30


def matrix_labels(id, n, l):
    case = next(case for case in ONE_OF_EACH if case.name == make_module(id).name)
    return make_labels(case, n, l)


def n_chunks(n, l, dtype):
    """The number of chunks into which run_linear_loss cuts the labels."""
    return -(-l // max(64, CHUNK_BYTES // (n * dtype.itemsize) // 64 * 64))


SIZES = [(1, 3, 5), (7, 1, 1), (1, 1, 1), (16, 12, 20), (37, 5, 81)]


# --- value and gradients --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("id", MODULES)
def test_matrix_labels(id, dtype, device):
    for n, d, l in SIZES:
        for bias in (True, False):
            assert_same(id, problem(n, d, l, dtype, device, bias), matrix_labels(id, n, l).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("id", OBSERVED)
def test_index_labels(id, dtype, device):
    for n, d, l in SIZES:
        for bias in (True, False):
            assert_same(id, problem(n, d, l, dtype, device, bias), make_index(n, l))


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("form", ["index", "matrix"])
@pytest.mark.parametrize("id", MODULES)
def test_chunks_of_labels(id, form, reduction, weighted, device):
    """Positives and negatives, class weights and the penalty find their columns in every chunk."""
    n, d, l = 9000, 3, 200
    assert n_chunks(n, l, torch.float64) == 4  # the last one has 8 columns
    if form == "index" and id == "bce":
        return
    labels = make_index(n, l) if form == "index" else matrix_labels(id, n, l)
    class_weight = torch.rand(l) * 2 if weighted else None
    assert_same(id, problem(n, d, l, torch.float64, device), labels, class_weight, reduction)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "l", "dtype"),
    [
        (2, 300_000, torch.float64),
        (128, 8191, torch.float32),
        (128, 8192, torch.float32),
        (128, 8193, torch.float32),
        (128, 4096, torch.float64),
        (128, 4097, torch.float64),
        (20_000, 64, torch.float32),
        (20_000, 65, torch.float32),
    ],
    ids=str,
)
def test_sizes_about_a_chunk(n, l, dtype, device):
    assert n_chunks(n, l, dtype) == (2 if l in (300_000, 8193, 4097, 65) else 1)
    leaves = problem(n, 2, l, dtype, device)
    assert_same("epr", leaves, make_index(n, l))
    assert_same("gr", leaves, matrix_labels("gr", n, l).to(torch.int8))


def test_positives_at_the_edges_of_chunks(device):
    n, l = 9000, 200
    assert n_chunks(n, l, torch.float64) == 4
    labels = torch.tensor([0, 63, 64, 127, 128, 191, 192, 199, -1]).repeat(n // 9)
    leaves = problem(n, 2, l, torch.float64, device)
    assert_same("an", leaves, labels)
    assert_same("an", leaves, reference.label_matrix(labels, l, torch.int8))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("id", OBSERVED)
def test_index_form_is_matrix_form_bit_for_bit(id, dtype, device):
    for n, d, l in [(37, 5, 81), (20_000, 2, 130)]:
        leaves = problem(n, d, l, dtype, device)
        labels = make_index(n, l).to(device)
        by_index, by_matrix = (
            value_and_grads(lambda *t: losses.fused_linear_loss(*t, form, loss=make_module(id)), *leaves)  # noqa: B023
            for form in (labels, reference.label_matrix(labels, l, torch.int8))
        )
        for a, b in zip(by_index, by_matrix, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("id", MODULES)
def test_within_one_chunk_it_is_linear_and_loss_on_the_same_logits(id, device):
    """The package's own loss behind linear: the same kernel on the same numbers."""
    leaves = problem(37, 12, 81, torch.float32, device)
    labels = matrix_labels(id, 37, 81).float().to(device)
    fused = value_and_grads(lambda *t: losses.fused_linear_loss(*t, labels, loss=make_module(id)), *leaves)
    apart = value_and_grads(lambda *t: make_module(id)(linear(*t), labels), *leaves)
    for a, b in zip(fused, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_loss_by_name(device):
    leaves = problem(16, 12, 20, torch.float32, device)
    labels = make_index(16, 20).to(device)
    by_name = losses.fused_linear_loss(*leaves, labels, loss="hill")
    assert torch.equal(by_name, losses.fused_linear_loss(*leaves, labels, loss=losses.HillLoss()))
    by_default = losses.fused_linear_loss(*leaves, labels)
    assert torch.equal(by_default, losses.fused_linear_loss(*leaves, labels, loss="an"))


def test_module_with_a_schedule(device):
    leaves = problem(16, 12, 20, torch.float32, device)
    labels = make_index(16, 20).to(device)
    module = losses.GRLoss()
    first = losses.fused_linear_loss(*leaves, labels, loss=module)
    module.set_epoch(8)
    last = losses.fused_linear_loss(*leaves, labels, loss=module)
    assert first != last
    assert last.item() == pytest.approx(module(linear(*leaves), labels).item(), rel=1e-5)


def test_pns_counts_its_steps(device):
    leaves = problem(16, 12, 20, torch.float32, device)
    labels = make_index(16, 20).to(device)
    fused, apart = (losses.PNSLoss().to(device) for _ in range(2))
    for _ in range(3):
        value = losses.fused_linear_loss(*leaves, labels, loss=fused)
        assert value.item() == pytest.approx(apart(linear(*leaves), labels).item(), rel=1e-5)
    assert fused.step.item() == 3


# --- half precision, strides, empty batches -------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("id", ["an", "gr-fixed", "epr"])
def test_half(id, dtype, device):
    """Logits are rounded to half as those of linear are; the loss and the gradient of x are summed in float32."""
    for n, d, l in [(37, 12, 81), (20_000, 4, 200)]:
        assert (n_chunks(n, l, dtype) > 1) == (n > 1000)
        leaves = problem(n, d, l, dtype, device)
        labels = make_index(n, l)
        actual = value_and_grads(
            lambda *t: losses.fused_linear_loss(*t, labels.to(device), loss=make_module(id)),  # noqa: B023
            *leaves,
        )
        wanted = value_and_grads(lambda *t: expected(id, *t, labels), *(t.cpu().double() for t in leaves))  # noqa: B023
        assert actual[0].dtype == torch.float32
        assert actual[0].item() == pytest.approx(wanted[0].item(), rel=1e-2)
        for leaf, got, want in zip(leaves, actual[1:], wanted[1:], strict=True):
            assert got.dtype == dtype
            assert got.shape == leaf.shape
            # A gradient of float16 has its smallest numbers at 6e-8, whatever the largest ones are.
            smallest = 6e-8 * n if dtype == torch.float16 else 0.0
            assert (got.cpu().double() - want).abs().max() <= 3e-2 * want.abs().max() + smallest


def test_strided_inputs(device):
    x, weight, bias = problem(37, 12, 81, torch.float64, device)
    labels = make_index(37, 81).to(device)
    call = lambda *t: losses.fused_linear_loss(*t, labels, loss="gr")  # noqa: E731
    plain = value_and_grads(call, x, weight, bias)
    wide = torch.stack([x, x], 2)
    spread = torch.stack([bias, bias], 1)
    strided = [wide[:, :, 1], weight.t().contiguous().t(), spread[:, 0]]
    leaves = [t.detach().requires_grad_() for t in strided]
    value = call(*leaves)
    for got, want in zip([value.detach(), *torch.autograd.grad(value, leaves)], plain, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)


def test_labels_of_other_dtypes_and_strides(device):
    n, l = 20_000, 130
    leaves = problem(n, 2, l, torch.float32, device)
    s = matrix_labels("an", n, l).to(torch.int8).to(device)
    call = lambda labels: value_and_grads(lambda *t: losses.fused_linear_loss(*t, labels), *leaves)  # noqa: E731
    wanted = call(s)
    for labels in (s.double(), s.long(), s.t().contiguous().t(), torch.stack([s, s], 2)[:, :, 1]):
        for a, b in zip(call(labels), wanted, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("id", ["an", "gr", "epr"])
def test_empty_batch(id, device):
    for n, d, l in [(0, 3, 5), (4, 3, 0), (0, 0, 0)]:
        leaves = problem(n, d, l, torch.float32, device)
        labels = torch.zeros(n, l, device=device)
        mean, *grads = value_and_grads(
            lambda *t: losses.fused_linear_loss(*t, labels, loss=make_module(id)),  # noqa: B023
            *leaves,
        )
        assert mean.isnan()
        assert [g.shape for g in grads] == [t.shape for t in leaves]
        total, *grads = value_and_grads(
            lambda *t: losses.fused_linear_loss(*t, labels, loss=make_module(id, reduction="sum")),  # noqa: B023
            *leaves,
        )
        assert total == 0
        assert all((g == 0).all() for g in grads)


def test_no_features(device):
    """D = 0: every logit is its bias."""
    assert_same("an", problem(4, 0, 5, torch.float64, device), make_index(4, 5))


# --- autograd -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
def test_only_some_require_grad(wanted, device):
    leaves = problem(37, 12, 81, torch.float64, device)
    labels = make_index(37, 81).to(device)
    everything = value_and_grads(lambda *t: losses.fused_linear_loss(*t, labels), *leaves)
    leaves = [t.requires_grad_(i in wanted) for i, t in enumerate(leaves)]
    value = losses.fused_linear_loss(*leaves, labels)
    assert torch.equal(value, everything[0])
    value.backward()
    for i, leaf in enumerate(leaves):
        if i in wanted:
            assert torch.equal(leaf.grad, everything[1 + i])
        else:
            assert leaf.grad is None


def test_without_grad(device):
    leaves = problem(37, 12, 81, torch.float64, device)
    labels = make_index(37, 81).to(device)
    alone = losses.fused_linear_loss(*leaves, labels)
    assert not alone.requires_grad
    leaves = [t.requires_grad_() for t in leaves]
    assert torch.equal(alone, losses.fused_linear_loss(*leaves, labels))
    with torch.no_grad():
        assert not losses.fused_linear_loss(*leaves, labels).requires_grad
    with torch.inference_mode():
        assert torch.equal(alone, losses.fused_linear_loss(*(t.detach() for t in leaves), labels))


@pytest.mark.parametrize("id", ["an", "epr", "pns"])
def test_second_backward(id, device):
    leaves = [t.requires_grad_() for t in problem(37, 12, 81, torch.float64, device)]
    value = losses.fused_linear_loss(*leaves, make_index(37, 81).to(device), loss=make_module(id))
    first = torch.autograd.grad(value, leaves, retain_graph=True)
    second = torch.autograd.grad(3 * value, leaves, retain_graph=True)
    third = torch.autograd.grad(value, leaves)
    for a, b, c in zip(first, second, third, strict=True):
        torch.testing.assert_close(3 * a, b, rtol=1e-12, atol=0)
        assert torch.equal(a, c)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("which", [0, 1, 2], ids=["x", "weight", "bias"])
def test_second_backward_after_a_change_in_place_is_refused(which, device):
    leaves = [t.requires_grad_() for t in problem(37, 12, 81, torch.float64, device)]
    value = losses.fused_linear_loss(*leaves, make_index(37, 81).to(device))
    torch.autograd.grad(value, leaves, retain_graph=True)
    with torch.no_grad():
        leaves[which].add_(1)
    with pytest.raises(RuntimeError, match="modified in place"):
        torch.autograd.grad(value, leaves)


def test_gradients_are_scaled_by_what_comes_in(device):
    leaves = problem(37, 12, 81, torch.float64, device)
    labels = make_index(37, 81).to(device)
    plain = value_and_grads(lambda *t: losses.fused_linear_loss(*t, labels), *leaves)
    scaled = value_and_grads(lambda *t: losses.fused_linear_loss(*t, labels).square() * 5, *leaves)
    for a, b in zip(plain[1:], scaled[1:], strict=True):
        torch.testing.assert_close(b, 10 * plain[0] * a, rtol=1e-12, atol=0)


def test_gradients_accumulate(device):
    leaves = [t.requires_grad_() for t in problem(37, 12, 81, torch.float64, device)]
    halves = [make_index(37, 81).to(device) for _ in range(2)]
    for labels in halves:
        losses.fused_linear_loss(*leaves, labels).backward()
    apart = [value_and_grads(lambda *t: losses.fused_linear_loss(*t, labels), *leaves) for labels in halves]  # noqa: B023
    for i, leaf in enumerate(leaves):
        torch.testing.assert_close(leaf.grad, apart[0][1 + i] + apart[1][1 + i], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "id", [id for id in MODULES if not id.startswith("gr")]
)  # parts of GR's gradient are none
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_gradcheck(id, bias, device):
    n, d, l = 5, 3, 7
    leaves = [t.requires_grad_() for t in problem(n, d, l, torch.float64, device, bias)]
    labels = matrix_labels(id, n, l).to(device)
    call = lambda *t: losses.fused_linear_loss(*head(t), labels, loss=make_module(id))  # noqa: E731
    assert torch.autograd.gradcheck(call, leaves)


def test_double_backward_is_refused(device):
    leaves = [t.requires_grad_() for t in problem(5, 3, 7, torch.float64, device)]
    value = losses.fused_linear_loss(*leaves, make_index(5, 7).to(device))
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(value, leaves, create_graph=True)


def test_opcheck(device):
    labels = make_index(5, 7).to(device)
    for bias in (True, False):
        leaves = [t.requires_grad_() for t in problem(5, 3, 7, torch.float32, device, bias)]
        arguments = (*head(leaves), labels, 0, _ops.losses["an"], [], 0.0, 1)
        torch.library.opcheck(torch.ops.spml_fast.linear_loss.default, arguments)


def test_compiles_without_a_graph_break(device):
    leaves = [t.requires_grad_() for t in problem(16, 12, 20, torch.float32, device)]
    labels = make_index(16, 20).to(device)
    compiled = torch.compile(
        lambda *t: losses.fused_linear_loss(*t, labels, loss="an"), fullgraph=True, backend="aot_eager"
    )
    got = [compiled(*leaves), *torch.autograd.grad(compiled(*leaves), leaves)]
    for a, b in zip(got, value_and_grads(lambda *t: losses.fused_linear_loss(*t, labels), *leaves), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(x_dtype, device):
    """As with linear, features may come out of the trunk in half precision while parameters are float32."""
    x, weight, bias = problem(37, 12, 81, torch.float32, device)
    x = x.to(x_dtype)
    labels = make_index(37, 81).to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        fused = value_and_grads(lambda *t: losses.fused_linear_loss(*t, labels), x, weight, bias)
        apart = value_and_grads(lambda *t: losses.an_loss(linear(*t), labels), x, weight, bias)
    for a, b in zip(fused, apart, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).abs().max() <= 3e-2 * b.abs().max()


def test_head_of_a_model_learns(device):
    """The same steps of SGD as with linear and loss apart."""
    x, labels = torch.randn(64, 12, device=device, dtype=torch.float64), make_index(64, 20).to(device)
    heads = [nn.Linear(12, 20, device=device, dtype=torch.float64) for _ in range(2)]
    heads[1].load_state_dict(heads[0].state_dict())
    for _ in range(5):
        losses.fused_linear_loss(x, heads[0].weight, heads[0].bias, labels, loss="hill").backward()
        losses.hill_loss(heads[1](x), labels).backward()
        for head in heads:
            for p in head.parameters():
                p.data.sub_(p.grad, alpha=0.5)
                p.grad = None
    for p, q in zip(heads[0].parameters(), heads[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("id", ["an", "gr", "epr"])
def test_memory_is_that_of_one_chunk(id, device, extra):
    """Beyond the gradients themselves an eighth of what linear and loss take at most, whatever L is."""
    n, d, l = 512, 64, 20_000
    leaves = [t.requires_grad_() for t in problem(n, d, l, torch.float32, device)]
    labels = make_index(n, l).to(device)
    gradients = sum(t.nbytes for t in leaves)
    fused = extra(lambda: losses.fused_linear_loss(*leaves, labels, loss=make_module(id)).backward(), *leaves)
    assert fused <= gradients + CHUNK_BYTES + 0.5 * CHUNK_BYTES
    apart = extra(lambda: make_module(id)(linear(*leaves), labels).backward(), *leaves)
    assert fused - gradients <= (apart - gradients) / 8


def test_memory_without_gradients(device, extra):
    leaves = problem(512, 64, 20_000, torch.float32, device)
    labels = make_index(512, 20_000).to(device)
    assert extra(lambda: losses.fused_linear_loss(*leaves, labels)) <= CHUNK_BYTES + SMALL


# --- bad input ------------------------------------------------------------------------------------


def test_reduction_none_is_refused(device):
    leaves = problem(4, 3, 5, torch.float32, device)
    with pytest.raises(ValueError, match=r'reduction="none" would need the logits'):
        losses.fused_linear_loss(*leaves, make_index(4, 5).to(device), loss=make_module("an", reduction="none"))


@pytest.mark.parametrize(
    ("name", "hyper"),
    [
        ("iun", {}),
        ("gpr", {}),
        ("em_apl", dict(n_samples=4, n_labels=5)),
        ("role", dict(expected_positives=1.0)),
        ("ll_r", {}),
        ("ll_ct", {}),
        ("ll_cp", dict(n_samples=4, n_labels=5)),
        ("pr", {}),
        ("epr", dict(expected_positives=1.0, sync=True)),
    ],
)
def test_losses_that_need_all_logits_at_once_are_refused(name, hyper, device):
    leaves = problem(4, 3, 5, torch.float32, device)
    with pytest.raises((ValueError, TypeError), match=r"(?i)chunk"):
        losses.fused_linear_loss(*leaves, make_index(4, 5).to(device), loss=losses.make(name, **hyper).to(device))


def refused(error, message, *args, **kwargs):
    with pytest.raises(error, match=re.escape(message)):
        losses.fused_linear_loss(*args, **kwargs)


def test_bad_shapes_and_dtypes(device):
    x, weight, bias = problem(4, 3, 5, torch.float32, device)
    labels = make_index(4, 5).to(device)

    refused(ValueError, "x must be a tensor of two dimensions, got shape (3,)", x[0], weight, bias, labels)
    refused(ValueError, "x must be a tensor of two dimensions, got list", [1], weight, bias, labels)
    refused(ValueError, "weight must be a tensor of two dimensions, got shape (5,)", x, bias, bias, labels)
    message = "weight must have shape (L, 3) for x of shape [4, 3], got [5, 2]"
    refused(ValueError, message, x, weight[:, 1:], None, labels)
    refused(ValueError, "bias must have shape [5], got [4]", x, weight, bias[1:], labels)
    refused(TypeError, "weight must be Float, got Double", x, weight.double(), bias, labels)
    refused(TypeError, "bias must be Float, got Double", x, weight, bias.double(), labels)
    message = "x must be float32, float64, float16 or bfloat16, got Long"
    refused(TypeError, message, x.long(), weight.long(), None, labels)
    refused(ValueError, "labels has 3 rows, logits has 4", x, weight, bias, labels[1:])
    refused(ValueError, "labels must have shape (4,) or (4, 5)", x, weight, bias, torch.zeros(4, 6, device=device))
    refused(ValueError, "no loss is called 'grr'", x, weight, bias, labels, loss="grr")
    message = "must be a name or a loss module of this package, got function"
    refused(TypeError, message, x, weight, bias, labels, loss=losses.an_loss)
    weighted = losses.ANLoss(class_weight=[1.0, 2.0]).to(device)
    refused(ValueError, "class_weight must have shape (5,), got [2]", x, weight, bias, labels, loss=weighted)
    refused(ValueError, "full labels of shape (4, 5)", x, weight, bias, labels, loss="bce")


def test_tensors_on_another_device(device):
    x, weight, bias = problem(4, 3, 5, torch.float32, device)
    labels = make_index(4, 5).to(device)
    refused(ValueError, f"weight is on meta, expected {device.type}", x, weight.to("meta"), bias, labels)
    refused(ValueError, f"bias is on meta, expected {device.type}", x, weight, bias.to("meta"), labels)
    refused(ValueError, f"labels is on meta, expected {device.type}", x, weight, bias, labels.to("meta"))


def test_labels_are_a_tensor(device):
    x, weight, bias = problem(4, 3, 5, torch.float32, device)
    refused(TypeError, "labels must be a tensor, got list", x, weight, bias, [0, 1, 2, 3])


def test_invalid_label_of_a_later_chunk_is_named_with_its_place():
    n, l = 20_000, 130
    leaves = problem(n, 2, l, torch.float32, torch.device("cpu"))
    assert n_chunks(n, l, torch.float32) == 3
    s = torch.zeros(n, l, dtype=torch.int8)
    s[5, 100] = 3
    for requires_grad in (False, True):
        leaves[1].requires_grad_(requires_grad)
        with pytest.raises(ValueError, match=r"labels\[5, 100\] is 3; expected 1"):
            losses.fused_linear_loss(*leaves, s)
    labels = make_index(n, l)
    labels[7] = l
    with pytest.raises(IndexError, match=rf"labels\[7\] is {l}; expected -1 .* -1 to {l - 1}"):
        losses.fused_linear_loss(*leaves, labels)
