"""The losses in autograd: gradcheck, incoming gradients, several backward passes, autocast, copies and state."""

import copy
import io
import pickle

import pytest
import torch
from cases import (
    ALL,
    EPS,
    ONE_OF_EACH,
    K,
    ids,
    make_batch,
    make_index,
    make_logits,
    value_and_grads,
)
from torch import nn

from spml_fast import losses

SMOOTH = [case for case in ALL if case.smooth]
ONE_SMOOTH = [case for case in ONE_OF_EACH if case.smooth]
PER_ENTRY = [case for case in ONE_OF_EACH if "none" in case.reductions]
FORMS = [
    (case, form) for case in SMOOTH for form in ("index", "matrix") if form == "matrix" or not case.full_labels
]
N, L = 5, 7


# --- the gradient is the derivative of the value --------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "form", "reduction"),
    [(case, form, reduction) for case, form in FORMS for reduction in case.reductions],
    ids=lambda value: getattr(value, "id", value),
)
def test_gradcheck(case, form, reduction, device):
    z, labels, second_matrix = make_batch(case, N, L, torch.float64, device, form)
    torch.autograd.gradcheck(
        lambda z: case.fused(z, labels, second_matrix, reduction=reduction), z.requires_grad_()
    )


@pytest.mark.parametrize(
    ("case", "reduction"),
    [(case, reduction) for case in ONE_SMOOTH for reduction in case.reductions if reduction != "sum"],
    ids=lambda value: getattr(value, "id", value),
)
def test_gradcheck_with_eps_and_class_weight(case, reduction, device):
    z, labels, second_matrix = make_batch(case, N, L, torch.float64, device)
    kwargs = {"eps": EPS} if case.has_eps else {}
    kwargs.update(class_weight=torch.rand(L, device=device) * 3, reduction=reduction)
    torch.autograd.gradcheck(lambda z: case.fused(z, labels, second_matrix, **kwargs), z.requires_grad_())


@pytest.mark.slow
@pytest.mark.parametrize("case", ONE_SMOOTH, ids=ids(ONE_SMOOTH))
def test_gradcheck_of_strided_logits(case, device):
    z, labels, second_matrix = make_batch(case, N, L, torch.float64, device)
    views = [
        (lambda t: t.t(), (L, N)),
        (lambda t: t[::2, ::3], (2 * N, 3 * L - 2)),
        (lambda t: t[:, 1:-1], (N, L + 2)),
    ]
    for view, shape in views:
        base = torch.zeros(shape, dtype=torch.float64, device=device)
        view(base).copy_(z)
        torch.autograd.gradcheck(lambda t: case.fused(view(t), labels, second_matrix), base.requires_grad_())  # noqa: B023


def test_k_hat_of_all_processes_gives_the_gradient_of_the_joined_batch(device):
    """The mean of the processes' gradients, as DistributedDataParallel takes it."""
    z = make_logits(6, L, torch.float64).to(device)
    labels = make_index(6, L).to(device)
    _, wanted = value_and_grads(lambda z: losses.epr_loss(z, labels, expected_positives=K), z)
    k_hat = losses.expected_positive_count(z)

    def gradient(z, labels):
        return value_and_grads(lambda z: losses.epr_loss(z, labels, expected_positives=K, k_hat=k_hat), z)[1]

    processes = [gradient(*batch) for batch in zip(z.chunk(2), labels.chunk(2), strict=True)]
    torch.testing.assert_close(torch.cat(processes) / 2, wanted, rtol=1e-12, atol=1e-15)


# --- incoming gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=ids(ONE_OF_EACH))
def test_gradient_is_multiplied_by_the_incoming_one(case, device):
    z, labels, second_matrix = make_batch(case, 16, 20, torch.float32, device)
    leaves = [z] if case.matrix != "table" else [z, second_matrix]

    def loss(z, table=second_matrix):
        return case.fused(z, labels, table)

    value, *grads = value_and_grads(loss, *leaves)
    three = value_and_grads(lambda *leaves: 3 * loss(*leaves), *leaves)
    minus = value_and_grads(lambda *leaves: -loss(*leaves), *leaves)
    zero = value_and_grads(lambda *leaves: 0 * loss(*leaves), *leaves)
    square = value_and_grads(lambda *leaves: loss(*leaves) ** 2, *leaves)
    for i, grad in enumerate(grads, 1):
        assert torch.equal(three[i], 3 * grad)
        assert torch.equal(minus[i], -grad)
        assert torch.equal(zero[i], torch.zeros_like(grad))
        assert torch.equal(square[i], 2 * value * grad)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=ids(ONE_OF_EACH))
def test_loss_used_twice(case, device):
    z, labels, second_matrix = make_batch(case, 16, 20, torch.float32, device)

    def twice(z):
        value = case.fused(z, labels, second_matrix)
        return value + 3 * value

    _, grad = value_and_grads(lambda z: case.fused(z, labels, second_matrix), z)
    assert torch.equal(value_and_grads(twice, z)[1], 4 * grad)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=ids(ONE_OF_EACH))
def test_two_losses_of_the_same_logits(case, device):
    z, labels, second_matrix = make_batch(case, 16, 20, torch.float32, device)
    index = make_index(16, 20).to(device)
    _, first = value_and_grads(lambda z: case.fused(z, labels, second_matrix), z)
    _, second = value_and_grads(lambda z: losses.hill_loss(z, index), z)
    leaf = z.clone().requires_grad_()
    (case.fused(leaf, labels, second_matrix) + losses.hill_loss(leaf, index)).backward()
    assert torch.equal(leaf.grad, first + second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", PER_ENTRY, ids=ids(PER_ENTRY))
def test_each_entry_has_a_weight(case, dtype, device):
    """reduction="none", weighted in Python: the derivative of the weighted sum, as autograd has it."""
    z, labels, second_matrix = make_batch(case, 16, 20, dtype, device)
    weight = torch.randn(16, 20, device=device)
    s, wide = labels.cpu().double(), None if second_matrix is None else second_matrix.cpu().double()
    fused = value_and_grads(lambda z: case.fused(z, labels, second_matrix, reduction="none") * weight, z)
    expected = value_and_grads(
        lambda z: case.expected(z, s, wide, reduction="none") * weight.cpu(), z.cpu().double()
    )
    actual, wanted = fused[1].cpu(), expected[1]
    assert actual.dtype == dtype
    # In half precision the entry's derivative is rounded, and its product with the weight again.
    rtol = {torch.float32: 1e-5, torch.float64: 1e-10, torch.bfloat16: 2**-7}[dtype]
    size = wanted.abs().max().item()
    torch.testing.assert_close(actual.double(), wanted, rtol=rtol, atol=rtol * 0.1 * size)


def test_each_entry_of_role_has_a_weight(device):
    """Without the penalty ROLE has entries; the weights reach the classifier and the rows of the table."""
    z = make_logits(6, 20, torch.float64).to(device)
    table = make_logits(4, 20, torch.float64).to(device)
    labels, index = make_index(6, 20).to(device), torch.tensor([3, 0, 3, 1, 1, 3], device=device)
    weight = torch.rand(6, 20, dtype=torch.float64, device=device)

    def loss(z, table, reduction):
        return losses.role_loss(z, labels, table, index, expected_positives=K, lam=0.0, reduction=reduction)

    _, of_z, of_rows = value_and_grads(
        lambda z, rows: losses.role_loss(z, labels, rows, expected_positives=K, lam=0.0, reduction="none"),
        z,
        table[index],
    )
    _, grad, table_grad = value_and_grads(lambda *leaves: loss(*leaves, "none") * weight, z, table)
    torch.testing.assert_close(grad, of_z * weight)
    torch.testing.assert_close(table_grad, torch.zeros_like(table).index_add(0, index, of_rows * weight))
    _, summed, table_summed = value_and_grads(lambda *leaves: loss(*leaves, "sum"), z, table)
    torch.testing.assert_close(summed, of_z)
    torch.testing.assert_close(table_summed, torch.zeros_like(table).index_add(0, index, of_rows))


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=ids(ONE_OF_EACH))
def test_gradient_scaling_in_float16(case, device):
    """A GradScaler's 65536 keeps small derivatives in float16's range: as PyTorch's own losses, which compute in
    float32 and round the scaled gradient."""
    z, labels, second_matrix = make_batch(case, 128, 81, torch.float16, device)
    _, half = value_and_grads(lambda z: 65536 * case.fused(z, labels, second_matrix), z)
    _, single = value_and_grads(lambda z: 65536 * case.fused(z, labels, second_matrix), z.float())
    assert half.dtype == torch.float16
    within = single.abs() < 65504
    # Twice the rounding of a normal float16 and 16 steps of a subnormal one; the largest is about 6.
    torch.testing.assert_close(half[within].float(), single[within], rtol=2**-10, atol=2**-20)


# --- several backward passes ----------------------------------------------------------------------


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=ids(ONE_OF_EACH))
def test_backward_again_with_retain_graph(case, device):
    z, labels, second_matrix = make_batch(case, 16, 20, torch.float32, device)
    leaves = [t.clone().requires_grad_() for t in ([z] if case.matrix != "table" else [z, second_matrix])]
    value = case.fused(leaves[0], labels, leaves[1] if len(leaves) == 2 else second_matrix)
    first = torch.autograd.grad(value, leaves, grad_outputs=torch.tensor(5.0, device=device), retain_graph=True)
    second = torch.autograd.grad(value, leaves, retain_graph=True)
    third = torch.autograd.grad(value, leaves)
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a, 5 * b)
        assert torch.equal(b, c)
        assert b.data_ptr() != c.data_ptr()
    with pytest.raises(RuntimeError, match="backward through a loss a second time"):
        torch.autograd.grad(value, leaves)


@pytest.mark.parametrize("case", PER_ENTRY, ids=ids(PER_ENTRY))
def test_backward_again_through_entries(case, device):
    z, labels, second_matrix = make_batch(case, 16, 20, torch.float32, device)
    leaf = z.requires_grad_()
    value = case.fused(leaf, labels, second_matrix, reduction="none")
    weights = torch.rand(2, 16, 20, device=device)
    (first,) = torch.autograd.grad(value, leaf, weights[0], retain_graph=True)
    torch.autograd.grad(value, leaf, weights[1], retain_graph=True)
    (again,) = torch.autograd.grad(value, leaf, weights[0])
    assert torch.equal(first, again)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=ids(ONE_OF_EACH))
def test_backward_again_without_retain_graph_raises(case, device):
    z, labels, second_matrix = make_batch(case, 16, 20, torch.float32, device)
    value = case.fused(z.requires_grad_(), labels, second_matrix)
    value.backward()
    with pytest.raises(RuntimeError, match="Specify retain_graph=True"):
        value.backward()


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=ids(ONE_OF_EACH))
def test_double_backward_is_refused(case, device):
    z, labels, second_matrix = make_batch(case, 16, 20, torch.float32, device)
    for reduction in case.reductions:
        leaf = z.clone().requires_grad_()
        value = case.fused(leaf, labels, second_matrix, reduction=reduction).sum()
        with pytest.raises(RuntimeError, match=r"differentiated once: create_graph=True .* is not supported"):
            torch.autograd.grad(value, leaf, create_graph=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # PyTorch's own, of jvp
def test_forward_mode_is_refused_not_silently_zero(device):
    z, labels = torch.randn(4, 3, device=device), torch.tensor([0, 1, 2, -1], device=device)
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(lambda z: losses.an_loss(z, labels), (z,), (torch.ones_like(z),))


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=ids(ONE_OF_EACH))
def test_logits_changed_in_place(case, device):
    """The first backward has its gradient already; a later one would compute with other logits, and raises."""
    z, labels, second_matrix = make_batch(case, 16, 20, torch.float32, device)
    _, wanted = value_and_grads(lambda z: case.fused(z, labels, second_matrix), z)
    leaf = z.clone().requires_grad_()
    value = case.fused(leaf, labels, second_matrix)
    with torch.no_grad():
        leaf.mul_(0.5)
    (first,) = torch.autograd.grad(value, leaf, retain_graph=True)
    assert torch.equal(first, wanted)
    with pytest.raises(RuntimeError, match="modified in place"):
        torch.autograd.grad(value, leaf)


def changeable(name):
    """(a tensor that may be changed, logits, the loss) of a loss computed from ``name`` beside its logits."""
    z = torch.randn(4, 3, requires_grad=True)
    labels, index = torch.tensor([0, 1, 2, -1]), torch.tensor([5, 1, 1, 0])
    matrix, table, row = torch.eye(4, 3), torch.randn(6, 3), torch.ones(3)
    head = torch.eye(3)
    k_hat = torch.ones(1, dtype=torch.float64)
    tensor, loss = {
        "labels": (labels, lambda: losses.an_loss(z, labels)),
        "label matrix": (matrix, lambda: losses.an_loss(z, matrix)),
        "class_weight": (row, lambda: losses.an_loss(z, labels, class_weight=row)),
        "pseudo-labels": (matrix, lambda: losses.em_apl_loss(z, labels, matrix)),
        "k_hat": (k_hat, lambda: losses.epr_loss(z, labels, expected_positives=K, k_hat=k_hat)),
        "table": (table, lambda: losses.role_loss(z, labels, table, index, expected_positives=K)),
        "index": (index, lambda: losses.role_loss(z, labels, table, index, expected_positives=K)),
        "weight of the head": (head, lambda: losses.fused_linear_loss(z, head, row, labels)),
        "bias of the head": (row, lambda: losses.fused_linear_loss(z, head, row, labels)),
    }[name]
    return tensor, z, loss()


@pytest.mark.parametrize(
    "name",
    [
        "labels",
        "label matrix",
        "class_weight",
        "pseudo-labels",
        "k_hat",
        "table",
        "index",
        "weight of the head",
        "bias of the head",
    ],
)
def test_other_inputs_changed_in_place(name):
    """A second backward computes anew, so it has to notice a change of whatever the loss was computed from."""
    tensor, z, value = changeable(name)
    torch.autograd.grad(value, z, retain_graph=True)
    tensor.zero_()
    with pytest.raises(RuntimeError, match="modified in place"):
        torch.autograd.grad(value, z)


@pytest.mark.parametrize("case", [c for c in ONE_OF_EACH if not c.whole_batch], ids=lambda c: c.id)
def test_micro_batches_accumulate(case, device):
    z, labels, second_matrix = make_batch(case, 12, 20, torch.float32, device)
    _, wanted = value_and_grads(lambda z: case.fused(z, labels, second_matrix, reduction="sum"), z)
    leaf = z.clone().requires_grad_()
    for rows in torch.arange(12, device=device).chunk(4):
        case.fused(
            leaf[rows], labels[rows], None if second_matrix is None else second_matrix[rows], reduction="sum"
        ).backward()
    assert torch.equal(leaf.grad, wanted)


def test_micro_batches_accumulate_in_the_weights(device):
    head = nn.Linear(5, 20, device=device, dtype=torch.float64)
    x = torch.randn(12, 5, dtype=torch.float64, device=device)
    labels = make_index(12, 20).to(device)
    loss = losses.GRLoss()
    loss(head(x), labels).backward()
    wanted = [p.grad for p in head.parameters()]
    head.zero_grad()
    for part, y in zip(x.chunk(4), labels.chunk(4), strict=True):
        (loss(head(part), y) / 4).backward()
    for p, grad in zip(head.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-12, atol=1e-15)


# --- where the logits come from -------------------------------------------------------------------


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=ids(ONE_OF_EACH))
def test_logits_of_a_linear_layer(case, device):
    _, labels, second_matrix = make_batch(case, 16, 20, torch.float32, device)
    head = nn.Linear(5, 20, device=device)
    x = torch.randn(16, 5, device=device, requires_grad=True)
    z = head(x)
    z.retain_grad()
    case.fused(z, labels, second_matrix).backward()
    _, wanted = value_and_grads(lambda z: case.fused(z, labels, second_matrix), z)
    assert torch.equal(z.grad, wanted)
    torch.testing.assert_close(head.weight.grad, wanted.t() @ x)
    torch.testing.assert_close(head.bias.grad, wanted.sum(0))
    torch.testing.assert_close(x.grad, wanted @ head.weight)


def test_checkpointed_logits(device):
    head = nn.Linear(5, 20, device=device)
    x, labels = torch.randn(16, 5, device=device), make_index(16, 20).to(device)
    gradients = []
    for run in (
        lambda f, x: f(x),
        lambda f, x: torch.utils.checkpoint.checkpoint(f, x, use_reentrant=False),
    ):
        head.zero_grad()
        run(lambda x: losses.an_loss(head(x), labels), x).backward()
        gradients.append(head.weight.grad.clone())
    assert torch.equal(*gradients)


def test_hooks(device):
    z, labels = torch.randn(4, 3, device=device), torch.tensor([0, 1, 2, -1], device=device)
    _, grad = value_and_grads(lambda z: losses.an_loss(z, labels), z)
    leaf = z.clone().requires_grad_()
    leaf.register_hook(lambda g: g + 1)
    value = losses.an_loss(leaf, labels)
    assert value.grad_fn.name() == "SpmlFastLossBackward"
    value.register_hook(lambda g: 2 * g)
    value.grad_fn.register_prehook(lambda grads: tuple(5 * g for g in grads))
    value.backward()
    assert torch.equal(leaf.grad, 10 * grad + 1)


def test_backward_hook_of_a_module(device):
    z, labels = torch.randn(4, 3, device=device), torch.tensor([0, 1, 2, -1], device=device)
    _, grad = value_and_grads(lambda z: losses.an_loss(z, labels), z)
    seen = []
    module = losses.ANLoss()
    module.register_full_backward_hook(lambda module, of_inputs, of_outputs: seen.append((of_inputs, of_outputs)))
    (2 * module(z.requires_grad_(), labels)).backward()
    assert len(seen) == 1
    (of_logits, *_), (of_value,) = seen[0]
    assert torch.equal(of_logits, 2 * grad)
    assert of_value == 2


def test_only_what_is_asked_for(device):
    """ROLE differentiates by logits and table; each alone gets what it gets beside the other."""
    z, table = torch.randn(6, 20, device=device), torch.randn(9, 20, device=device)
    labels, index = make_index(6, 20).to(device), torch.tensor([8, 0, 0, 3, 8, 1], device=device)

    def loss(z, table):
        return losses.role_loss(z, labels, table, index, expected_positives=K)

    _, of_z, of_table = value_and_grads(loss, z, table)
    leaves = z.clone().requires_grad_(), table.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(loss(*leaves), leaves[0])[0], of_z)
    assert torch.equal(torch.autograd.grad(loss(*leaves), leaves[1])[0], of_table)
    assert torch.equal(torch.autograd.grad(loss(z, leaves[1]), leaves[1])[0], of_table)
    assert torch.equal(torch.autograd.grad(loss(leaves[0], table), leaves[0])[0], of_z)
    value = loss(*leaves)
    (a,) = torch.autograd.grad(value, leaves[1], retain_graph=True)
    (b,) = torch.autograd.grad(value, leaves[0])
    assert torch.equal(a, of_table)
    assert torch.equal(b, of_z)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=ids(ONE_OF_EACH))
def test_no_grad_and_detached_logits(case, device):
    z, labels, second_matrix = make_batch(case, 16, 20, torch.float32, device)
    leaf = z.clone().requires_grad_()
    wanted = case.fused(leaf, labels, second_matrix)
    assert wanted.requires_grad
    with torch.no_grad():
        assert not case.fused(leaf, labels, second_matrix).requires_grad
    for value in (case.fused(leaf.detach(), labels, second_matrix), case.fused(z, labels, second_matrix)):
        assert not value.requires_grad
        assert torch.equal(value, wanted)
        with pytest.raises(RuntimeError, match="does not require grad"):
            value.backward()


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=ids(ONE_OF_EACH))
def test_anomaly_mode(case, device):
    z, labels, second_matrix = make_batch(case, 16, 20, torch.float32, device)
    _, wanted = value_and_grads(lambda z: case.fused(z, labels, second_matrix), z)
    with torch.autograd.detect_anomaly():
        _, grad = value_and_grads(lambda z: case.fused(z, labels, second_matrix), z)
    assert torch.equal(grad, wanted)


@pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected")
def test_anomaly_mode_names_the_loss(device):
    z = torch.tensor([[torch.nan, 0.0]], device=device, requires_grad=True)
    with (
        torch.autograd.detect_anomaly(),
        pytest.raises(RuntimeError, match=r"SpmlFastLossBackward.* returned nan values"),
    ):
        losses.an_loss(z, torch.tensor([0], device=device)).backward()


# --- autocast -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=ids(ONE_OF_EACH))
def test_autocast(case, device):
    _, labels, second_matrix = make_batch(case, 16, 20, torch.float32, device)
    head = nn.Linear(5, 20, device=device)
    x = torch.randn(16, 5, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        z = head(x)
        assert z.dtype == torch.bfloat16
        z.retain_grad()
        value = case.fused(z, labels, second_matrix)
    assert value.dtype == torch.float32
    value.backward()
    outside, grad = value_and_grads(lambda z: case.fused(z, labels, second_matrix), z)
    assert torch.equal(value, outside)
    assert z.grad.dtype == torch.bfloat16
    assert torch.equal(z.grad, grad)
    assert head.weight.grad.dtype == torch.float32
    torch.testing.assert_close(head.weight.grad, (grad.float().t() @ x), rtol=2e-2, atol=1e-4)


def test_float32_logits_under_autocast(device):
    z, labels = torch.randn(4, 3, device=device), torch.tensor([0, 1, 2, -1], device=device)
    with torch.autocast(device.type, torch.bfloat16):
        value, grad = value_and_grads(lambda z: losses.an_loss(z, labels), z)
    wanted = value_and_grads(lambda z: losses.an_loss(z, labels), z)
    assert torch.equal(value, wanted[0])
    assert torch.equal(grad, wanted[1])


# --- modules: copies, dtypes, state ---------------------------------------------------------------

ROWS = 24
STORES = {"pns": {"step"}, "em_apl": {"pseudo_labels"}, "ll_cp": {"flips"}}
SCHEDULED = {
    "gr": {},
    "gpr": {},
    "splc": {},
    "ll_r": {"delta": 0.1},
    "ll_ct": {"delta": 0.1},
    "ll_cp": {"delta": 0.1},
}
"""Losses whose hyper-parameters move from epoch to epoch, with what else they are given."""


def make_module(case, **overrides):
    """The loss with its schedule where it has one, and weights of the classes."""
    hyper = SCHEDULED.get(case.name, case.hyper)
    if case.name in ("em_apl", "ll_cp"):
        hyper = {**hyper, "n_samples": ROWS, "n_labels": 20}
    return losses.make(case.name, class_weight=torch.linspace(0.5, 1.5, 20), **hyper, **overrides)


def module_batch(case, dtype, device):
    """(logits, labels, what else the module is called with)"""
    z, labels, second_matrix = make_batch(case, 16, 20, dtype, device)
    index = torch.randperm(ROWS, device=device)[:16]
    if case.name in ("em_apl", "ll_cp"):
        return z, labels, index
    if case.name == "role":
        return z, labels, torch.randn(ROWS, 20, dtype=second_matrix.dtype, device=device), index
    return (z, labels) if second_matrix is None else (z, labels, second_matrix)


def use(module, case, batch, device):
    """Epochs and a step, so that everything that the module keeps has moved; then its value and gradient."""
    module.set_epoch(3)
    if case.name == "em_apl":
        module.set_epoch(6)
        module.update(torch.rand(ROWS, 20, device=device), torch.zeros(ROWS, 20, device=device))
    module(*batch)


def outcome(module, batch):
    z, *rest = batch
    return value_and_grads(lambda z: copy.deepcopy(module)(z, *rest), z)


def assert_same_outcome(a, b, batch):
    for x, y in zip(outcome(a, batch), outcome(b, batch), strict=True):
        assert torch.equal(x, y)


def duplicates(module):
    yield copy.deepcopy(module)
    yield pickle.loads(pickle.dumps(module))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    yield torch.load(file, weights_only=False)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=ids(ONE_OF_EACH))
def test_copies_and_pickles_of_a_module(case, device):
    batch = module_batch(case, torch.float32, device)
    module = make_module(case).to(device)
    use(module, case, batch, device)
    for twin in duplicates(module):
        assert type(twin) is type(module)
        assert twin.epoch == module.epoch
        assert twin.hyper == module.hyper
        assert repr(twin) == repr(module)
        assert torch.equal(twin.class_weight, module.class_weight)
        assert_same_outcome(module, twin, batch)
        for own, other in zip(module.buffers(), twin.buffers(), strict=True):
            assert own.data_ptr() != other.data_ptr()
        twin.set_epoch(1)
    assert module.epoch == (6 if case.name == "em_apl" else 3)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=ids(ONE_OF_EACH))
def test_module_of_another_dtype(case, device):
    """What counts stays an integer; a module moved to float64 is exact for float64 logits."""
    batch = module_batch(case, torch.float64, device)
    module = make_module(case).to(device)
    use(module, case, module_batch(case, torch.float32, device), device)
    wanted = outcome(module, batch)
    moved = copy.deepcopy(module).double()
    assert moved.class_weight.dtype == torch.float64
    for name, own in module.named_buffers():
        if not own.is_floating_point():
            assert moved.get_buffer(name).dtype == own.dtype
    for a, b in zip(outcome(moved, batch), wanted, strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    for dtype in (torch.float16, torch.bfloat16):
        value, grad = outcome(copy.deepcopy(module).to(dtype), module_batch(case, dtype, device))
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert grad.dtype == dtype


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=ids(ONE_OF_EACH))
def test_state_dict_round_trip(case, device):
    batch = module_batch(case, torch.float32, device)
    module = make_module(case).to(device)
    use(module, case, batch, device)
    state = module.state_dict()
    assert set(state) == STORES.get(case.name, set()) | ({"_epoch"} if case.name in SCHEDULED else set())
    assert "class_weight" not in state

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    restored = make_module(case).to(device)
    restored.load_state_dict(torch.load(file, weights_only=True))
    if case.name in SCHEDULED:
        assert restored.epoch == 3
        assert restored.hyper == module.hyper
        assert restored.hyper != make_module(case).hyper
    for name, fresh in make_module(case).to(device).state_dict().items():
        assert not torch.equal(fresh, state[name])
        assert torch.equal(restored.state_dict()[name], state[name])
    restored.set_epoch(module.epoch)
    assert_same_outcome(module, restored, batch)


def test_state_dict_of_a_loss_inside_a_model(device):
    model = nn.ModuleDict({"head": nn.Linear(5, 20), "loss": losses.GRLoss()}).to(device)
    model["loss"].set_epoch(5)
    other = nn.ModuleDict({"head": nn.Linear(5, 20), "loss": losses.GRLoss()}).to(device)
    other.load_state_dict(model.state_dict())
    assert other["loss"].epoch == 5
    assert other["loss"].hyper == model["loss"].hyper
    assert other["loss"].hyper["sigma"] == pytest.approx(2 - 1.5 * 5 / 8)


def test_pseudo_labels_of_a_module_of_another_dtype(device):
    """update() takes probabilities of any floating-point dtype into a store of any other."""
    labels = torch.zeros(ROWS, 20, device=device)
    for store in (torch.float32, torch.float64, torch.bfloat16):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            module = losses.EMAPLLoss(n_samples=ROWS, n_labels=20, epochs=3, warmup=1).to(device, store)
            p = torch.rand(ROWS, 20, device=device).to(dtype)
            added = module.update(p, labels)
            chosen = module.pseudo_labels >= 0
            assert added == int(chosen.sum()) == 20 * int(0.9 * ROWS / 2)
            assert torch.equal(module.pseudo_labels[chosen], p[chosen].float().to(store))


def test_index_of_the_table_must_stay_until_backward(device):
    z, table = torch.randn(4, 5, device=device), torch.randn(9, 5, device=device, requires_grad=True)
    labels, index = torch.tensor([0, 1, 2, -1], device=device), torch.arange(4, device=device)
    value = losses.role_loss(z, labels, table, index, expected_positives=K)
    index += 4
    with pytest.raises(RuntimeError, match="modified in place"):
        value.backward()
