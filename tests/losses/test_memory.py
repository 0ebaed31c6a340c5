"""A loss allocates its gradient and next to nothing else: no temporary of the logits' size, no dense labels."""

import eager as eager_losses
import pytest
import torch
from cases import ONE_OF_EACH, SMALL, make_index, make_labels, make_logits, make_matrix, move

from spml_fast import losses, reference

SIZES = [(1024, 312), (4096, 1000)]
GR = dict(w=1.0, b=-2.0, mu=0.5, sigma=1.0)
LOSSES = {
    "an": losses.an_loss,
    "gr": lambda z, labels: losses.gr_loss(z, labels, **GR),
    "epr": lambda z, labels: losses.epr_loss(z, labels, expected_positives=2.5),
}


def without_grad(call):
    with torch.no_grad():
        call()


def test_the_measure_sees_the_temporaries_of_eager_code(device, extra):
    z = torch.randn(1024, 312, device=device, requires_grad=True)
    s = reference.label_matrix(make_index(1024, 312), 312, torch.float32).to(device)
    assert extra(lambda: eager_losses.gr(z, s, **GR).backward(), z) > 8 * z.nbytes
    assert extra(lambda: without_grad(lambda: torch.sigmoid(z).sum()), z) >= z.nbytes


@pytest.mark.slow
@pytest.mark.parametrize("form", ["index", "int8", "float32"])
@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_only_the_gradient(loss, shape, form, device, extra):
    z = torch.randn(shape, device=device, requires_grad=True)
    labels = make_index(*shape)
    if form != "index":
        labels = reference.label_matrix(labels, shape[1], getattr(torch, form))
    labels = labels.to(device)
    assert extra(lambda: loss(z, labels).backward(), z) <= 1.05 * z.nbytes
    assert extra(lambda: (3 * loss(z, labels)).backward(), z) <= 1.05 * z.nbytes  # scaled where it lies
    assert extra(lambda: without_grad(lambda: loss(z, labels)), z) <= SMALL


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.id)
def test_every_loss(case, dtype, device, extra):
    n, l = 1024, 1000
    s = make_labels(case, n, l).to(torch.float32 if case.full_labels else torch.int8)
    forms = [s] if case.full_labels else [s, make_index(n, l)]
    second_matrix = move(make_matrix(case, s, dtype), device)
    flips = (second_matrix.nbytes if case.matrix == "flips" else 0) + SMALL  # the case hands over a copy
    z = make_logits(n, l, dtype).to(device).requires_grad_()
    for labels in (t.to(device) for t in forms):
        gradients = z.nbytes + (second_matrix.nbytes if case.matrix == "table" else 0)
        assert extra(lambda: case.fused(z, labels, second_matrix).backward(), z) <= gradients + flips  # noqa: B023
        assert extra(lambda: without_grad(lambda: case.fused(z, labels, second_matrix)), z) <= flips  # noqa: B023


def test_reduction_none_makes_the_values_and_the_gradient(device, extra):
    z = torch.randn(1024, 1000, device=device, requires_grad=True)
    labels = make_index(1024, 1000).to(device)
    assert extra(lambda: losses.gr_loss(z, labels, **GR, reduction="none"), z) <= 2 * z.nbytes + SMALL
    call = lambda: losses.gr_loss(z, labels, **GR, reduction="none")  # noqa: E731
    assert extra(lambda: without_grad(call), z) <= z.nbytes + SMALL


def test_index_labels_are_never_expanded(device, extra):
    """A matrix of labels would take a byte an entry at least; bits, an eighth."""
    n, l = 512, 20_000
    z = torch.randn(n, l, device=device)
    labels = make_index(n, l).to(device)
    table = torch.zeros(n, l, device=device)
    calls = {
        **LOSSES,
        "pns": losses.pns_loss,
        "pr": losses.pr_loss,
        "ll_r": lambda z, labels: losses.ll_r_loss(z, labels, share=0.01),
        "role": lambda z, labels: losses.role_loss(z, labels, table, expected_positives=2.5),
    }
    for name, call in calls.items():
        assert extra(lambda: call(z, labels)) <= n * l / 100, name  # noqa: B023


def test_strided_logits_are_not_copied(device, extra):
    wide = torch.randn(1024, 2, 1000, device=device)
    labels = make_index(1024, 1000).to(device)
    for view in (wide[:, 1], wide[:, 0].t().contiguous().t()):
        z = view.detach().requires_grad_()
        call = lambda: torch.autograd.grad(losses.gr_loss(z, labels, **GR), z)  # noqa: B023, E731
        assert extra(call) <= 1.05 * z.numel() * 4


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_role_makes_both_gradients(shape, device, extra):
    n, l = shape
    rows = 3 * n
    z = torch.randn(n, l, device=device, requires_grad=True)
    table = torch.randn(rows, l, device=device, requires_grad=True)
    labels, index = make_index(n, l).to(device), torch.randperm(rows)[:n].to(device)

    def loss(z, table, index=index, sparse=False):
        return losses.role_loss(z, labels, table, index, expected_positives=2.5, sparse=sparse)

    slack = 0.05 * z.nbytes + SMALL
    own = table.detach()[:n].clone().requires_grad_()
    two = 2 * z.nbytes + slack
    assert extra(lambda: loss(z, table, sparse=True).backward(), z, table) <= two  # of the batch's rows only
    assert extra(lambda: loss(z, table).backward(), z, table) <= two + table.nbytes
    assert extra(lambda: loss(z, table.detach()).backward(), z) <= two
    assert extra(lambda: torch.autograd.grad(loss(z, own, None), (z, own))) <= two  # (N, L) itself
    assert extra(lambda: without_grad(lambda: loss(z, table))) <= SMALL


def test_backward_takes_what_forward_made(device, extra):
    z = torch.randn(1024, 1000, device=device, requires_grad=True)
    labels = make_index(1024, 1000).to(device)
    values = iter([losses.an_loss(z, labels) for _ in range(2)])
    assert extra(lambda: (3 * next(values)).backward(), z) <= SMALL


def test_a_second_backward_computes_one_gradient_anew(device, extra):
    z = torch.randn(1024, 1000, device=device, requires_grad=True)
    value = losses.an_loss(z, make_index(1024, 1000).to(device))
    value.backward(retain_graph=True)
    assert extra(lambda: value.backward(retain_graph=True), z) <= 1.05 * z.nbytes
