"""``Loss.value_and_gradients``: value and gradients as autograd has them, bit for bit; losses that learn nothing
from a row without an observed label."""

import copy

import pytest
import torch
from cases import ALL, FLOATS, K, make_index, make_labels, make_logits, make_matrix
from hypothesis import given, settings
from hypothesis import strategies as st

from spml_fast import _ops, losses, reference
from spml_fast.losses.spec import apply_with_gradients

N, L, R = 13, 81, 20  # R rows of tables, of which a batch sees N
every_case = pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)


def make_module(case, rows=R, n_labels=L, **options):
    hyper = dict(case.hyper)
    if case.name in ("em_apl", "ll_cp"):
        hyper.update(n_samples=rows, n_labels=n_labels)
    return losses.make(case.name, **hyper, **options)


def problem(case, n=N, l=L, dtype=torch.float32, index_form=False):
    """(logits, labels, {name: what else the module is called with}); tables have R rows, ``index`` says which."""
    if index_form:
        labels = make_index(n, l)
        s = reference.label_matrix(labels, l, torch.float64)
    else:
        s = make_labels(case, n, l)
        labels = s.to(dtype)
    extra = {"index": torch.randperm(R)[:n]}
    if case.matrix == "table":
        extra["table"] = torch.randn(R, l, dtype=_ops.compute_dtype(dtype))
    elif case.matrix is not None:
        name = {"full": "full_labels", "soft": "pseudo_labels", "ternary": "pseudo_labels", "flips": "flips"}
        matrix = make_matrix(case, s, dtype)
        if case.name == "gpr":  # takes index too; given here is what the trainer gives, the batch's rows
            extra.pop("index")
        extra[name[case.matrix]] = matrix
    return make_logits(n, l, dtype), labels, extra


def prepare(module, case, extra):
    """Puts what the module stores into it; the arguments beside logits and labels."""
    if case.name == "em_apl":
        module.pseudo_labels[extra["index"]] = extra["pseudo_labels"].float()
    if case.name == "ll_cp":
        module.flips[extra["index"]] = extra["flips"]
    names = [name for name in module.inputs if name not in ("logits", "labels")]
    if case.name == "role":
        names.append("index")
    return [extra[name] for name in names]


def compare(case, z, labels, extra, **options):
    by_autograd = make_module(case, **options)
    arguments = prepare(by_autograd, case, extra)
    without = copy.deepcopy(by_autograd)

    leaf = z.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    given_table = [a.clone().requires_grad_() if a is extra.get("table") else a for a in arguments]
    value = by_autograd(leaf, labels, *given_table)
    value.backward()

    mine = without.value_and_gradients(z, labels, *arguments)
    assert not mine.value.requires_grad
    assert not mine.logits_grad.requires_grad
    assert mine.logits_grad.dtype == z.dtype
    assert torch.equal(mine.value, value.detach())
    assert torch.equal(mine.logits_grad, leaf.grad)
    if case.matrix == "table":
        (table,) = [a for a in given_table if a is not extra["index"]]
        assert mine.table_grad.shape == z.shape
        assert mine.table_grad.count_nonzero() > 0
        assert torch.equal(mine.table_grad, table.grad[extra["index"]])
    else:
        assert mine.table_grad.numel() == 0
    # What a loss keeps from batch to batch it has kept either way.
    for name, kept in by_autograd.state_dict().items():
        assert torch.equal(without.state_dict()[name], kept), name
    return value.detach(), leaf.grad, mine


@pytest.mark.parametrize("dtype", [*FLOATS, torch.bfloat16], ids=str)
@every_case
def test_value_and_gradient_are_those_of_autograd(case, dtype):
    for index_form in (False,) if case.full_labels else (False, True):
        z, labels, extra = problem(case, dtype=dtype, index_form=index_form)
        _, grad, _ = compare(case, z, labels, extra)
        assert grad.count_nonzero() > 0


@every_case
def test_float16(case):
    z, labels, extra = problem(case, dtype=torch.float16)
    compare(case, z, labels, extra, reduction="sum")


@pytest.mark.parametrize("name", ["an", "role", "ll_ct"])
def test_float16_mean(name):
    """Gradients come in float32: float16 could not hold 1 / (N L)."""
    case = next(case for case in ALL if case.name == name)
    z, labels, extra = problem(case, dtype=torch.float16)
    module = make_module(case)
    arguments = prepare(module, case, extra)
    exact = copy.deepcopy(module).value_and_gradients(z.float(), labels, *arguments)
    mine = module.value_and_gradients(z, labels, *arguments)
    assert mine.logits_grad.dtype == torch.float32
    torch.testing.assert_close(mine.logits_grad, exact.logits_grad, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(mine.table_grad, exact.table_grad, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@every_case
def test_class_weight_and_reduction(case, reduction):
    z, labels, extra = problem(case)
    weight = torch.rand(L) * 3
    weighted, _, _ = compare(case, z, labels, extra, class_weight=weight, reduction=reduction)
    plain, _, _ = compare(case, z, labels, extra, reduction=reduction)
    assert weighted != plain


@every_case
def test_strided_logits(case):
    """A run's logits are columns of the product that all runs share."""
    z, labels, extra = problem(case)
    wanted, _, contiguous = compare(case, z, labels, extra)
    wide = torch.full((N, 3 * L), 99.0)
    wide[:, L : 2 * L] = z
    spread = torch.full((2 * N, 3 * L), 99.0)
    spread[1::2, ::3] = z
    for view in (wide[:, L : 2 * L], spread[1::2, ::3], z.t().contiguous().t()):
        assert not view.is_contiguous()
        value, _, mine = compare(case, view, labels, extra)
        assert torch.equal(value, wanted)
        assert torch.equal(mine.logits_grad, contiguous.logits_grad)
    assert (wide[:, :L] == 99).all()


@every_case
def test_inside_no_grad_and_inference_mode(case):
    z, labels, extra = problem(case)
    module = make_module(case)
    arguments = prepare(module, case, extra)
    found = []
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            found.append(copy.deepcopy(module).value_and_gradients(z, labels, *arguments))
    for other in found[1:]:
        assert torch.equal(other.value, found[0].value)
        assert torch.equal(other.logits_grad, found[0].logits_grad)


@pytest.mark.parametrize("name", ["epr", "role"])
def test_expected_positives_of_all_processes(name):
    """``sync`` passes k_hat in; of one process it is the batch's own, up to rounding."""
    case = next(case for case in ALL if case.name == name)
    z, labels, extra = problem(case)
    value, _, mine = compare(case, z, labels, extra, sync=True)
    own, _, mine_own = compare(case, z, labels, extra)
    torch.testing.assert_close(value, own, rtol=1e-6, atol=0)
    torch.testing.assert_close(mine.logits_grad, mine_own.logits_grad, rtol=1e-6, atol=1e-9)
    # and somebody else's k_hat is another loss
    module = make_module(case)
    tensors = module.tensors(z, labels, *prepare(module, case, extra))
    tensors["k_hat"] = torch.full((2,) if name == "role" else (1,), K + 1.0, dtype=torch.float64)
    other = apply_with_gradients(module.current_spec(), z, labels, **tensors)
    assert other.value != own
    assert not torch.equal(other.logits_grad, mine_own.logits_grad)


@pytest.mark.parametrize("name", ["an", "em", "hill", "gr"])
def test_losses_inside_role(name):
    case = next(case for case in ALL if case.name == "role")
    inner = losses.make(name, **(dict(epochs=4) if name == "gr" else {}))
    z, labels, extra = problem(case)
    compare(case, z, labels, extra, loss=inner)


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("name", ["an", "gr", "epr", "ll_ct"])
def test_small_batches(name, n):
    """The sum over no rows is 0, and its gradient is empty."""
    case = next(case for case in ALL if case.name == name)
    z, labels = make_logits(n, L, torch.float32), make_index(n, L)
    _, grad, _ = compare(case, z, labels, {}, reduction="sum")
    assert grad.shape == (n, L)


# --- rows that teach nothing ----------------------------------------------------------------------

# What the others are called with says something of every row: full labels, or an estimate of all labels.
UNTOLD = [case for case in ALL if case.matrix in (None, "soft", "flips") and not case.full_labels]
TOLD = {"bce", "bce_ls", "iun", "role", "gpr"}
LEARN_NOTHING = {"iu", "pr"}


def test_every_loss_is_told_or_untold():
    assert {case.name for case in UNTOLD} | TOLD == set(losses.registry)
    assert {name for name, loss in losses.registry.items() if loss.needs_observed} == LEARN_NOTHING


def of_empty_rows(case, z, labels):
    """Value and gradient of a fresh module, which stores nothing yet."""
    module = make_module(case, rows=len(z), n_labels=z.shape[1])
    arguments = [torch.arange(len(z))] if "index" in module.inputs else []
    mine = module.value_and_gradients(z, labels, *arguments)
    return mine.value, mine.logits_grad


def nothing_observed(n, l):
    return st.sampled_from([torch.full((n,), -1), torch.zeros(n, l), torch.zeros(n, l, dtype=torch.int8)])


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(data=st.data())
@pytest.mark.parametrize("case", [c for c in UNTOLD if c.name in LEARN_NOTHING], ids=lambda case: case.id)
def test_nothing_is_learnt_from_nothing(case, data):
    n, l = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    numbers = st.floats(-1e4, 1e4, width=32)
    z = torch.tensor(data.draw(st.lists(numbers, min_size=n * l, max_size=n * l))).view(n, l)
    value, grad = of_empty_rows(case, z, data.draw(nothing_observed(n, l)))
    assert value == 0
    assert not grad.any()


@pytest.mark.parametrize("case", [c for c in UNTOLD if c.name in LEARN_NOTHING], ids=lambda case: case.id)
def test_nothing_is_learnt_from_such_rows_among_others(case):
    z, labels = make_logits(8, 5, torch.float32), torch.tensor([0, -1, 4, -1, -1, 2, 1, 3])
    _, grad = of_empty_rows(case, z, labels)
    assert torch.equal(grad.any(dim=1), labels >= 0)


@pytest.mark.parametrize("case", [c for c in UNTOLD if c.name not in LEARN_NOTHING], ids=lambda case: case.id)
def test_all_others_learn_from_rows_without_an_observed_label(case):
    z = make_logits(4, 5, torch.float32)
    for labels in (torch.full((4,), -1), torch.zeros(4, 5)):
        value, grad = of_empty_rows(case, z, labels)
        assert value != 0
        assert grad.any(dim=1).all()
