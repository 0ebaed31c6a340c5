"""Losses of a whole batch, or with a memory: draws, rankings, penalties, tables, large losses, schedules."""

import math

import numpy as np
import pytest
import torch
from cases import (
    ELEMENTWISE,
    EPS,
    FLOATS,
    HALVES,
    ONE_OF_EACH,
    K,
    ids,
    make_index,
    make_labels,
    make_logits,
    role_entries,
    value_and_grads,
)
from scipy.stats import chi2_contingency, chisquare

from spml_fast import _ops, losses, reference
from spml_fast.labels import LabelEstimator

AN = next(case for case in ONE_OF_EACH if case.name == "an")
LEVEL = 1e-4  # of the tests of randomness; their seeds are fixed, so they pass always or never


# --- pseudo-negative sampling ---------------------------------------------------------------------


def draw(labels, n_labels, seed=0, step=0):
    return _ops.draw_unobserved(labels, n_labels, seed, torch.tensor([step], device=labels.device))


def test_drawn_label_is_unobserved(device):
    s = make_labels(AN, 400, 9)
    s[:100] = torch.where(s[:100] == 0, 1.0, s[:100])  # nothing left to draw
    s[100:200] = -1
    s[torch.arange(100, 200), torch.randint(0, 9, (100,))] = 0  # one
    rows = torch.arange(100, 400, device=device)
    s = s.to(device)
    for step in range(50):
        columns = draw(s, 9, step=step)
        assert columns.dtype == torch.int64
        assert (columns[:100] == -1).all()
        assert (s[rows, columns[100:]] == 0).all()
        columns = draw(labels := make_index(400, 9).to(device), 9, step=step)
        assert ((columns >= 0) & (columns < 9) & (columns != labels)).all()
    assert (draw(torch.zeros(4, dtype=torch.int64, device=device), 1) == -1).all()


@pytest.mark.parametrize("observed", [1, 5, 9], ids=lambda n: f"{n} of 11 observed")
def test_draw_is_uniform_over_unobserved_labels(observed, device):
    """Over rows and over steps; also where the first try misses most of the time."""
    labels = torch.zeros(11)
    labels[torch.randperm(11)[:observed]] = torch.randint(0, 2, (observed,)) * 2.0 - 1
    unobserved = (labels == 0).numpy()
    matrix = labels.expand(20_000, 11).to(device)
    over_rows = draw(matrix, 11, seed=1, step=5)
    over_steps = torch.cat([draw(matrix[:3], 11, seed=1, step=step)[2:] for step in range(3000)])
    for columns in (over_rows, over_steps):
        counts = np.bincount(columns.cpu(), minlength=11)
        assert counts[~unobserved].sum() == 0
        assert chisquare(counts[unobserved]).pvalue > LEVEL


def test_draws_of_neighbours_are_independent(device):
    """Draws of one row and the next, one step and the next, one seed and the next."""
    labels = torch.full((20_000,), -1, device=device)
    one = draw(labels, 6).cpu()
    pairs = {
        "row": (one[:-1], one[1:]),
        "four rows": (one[:-4], one[4:]),
        "step": (one, draw(labels, 6, step=1).cpu()),
        "far step": (one, draw(labels, 6, step=2**32).cpu()),
        "seed": (one, draw(labels, 6, seed=1).cpu()),
        "far seed": (one, draw(labels, 6, seed=2**32).cpu()),
    }
    for what, (a, b) in pairs.items():
        table = np.bincount(6 * a + b, minlength=36).reshape(6, 6)
        assert chi2_contingency(table).pvalue > LEVEL, what


def test_draw_of_a_row_depends_on_row_step_and_seed_alone(threads):
    s = make_labels(AN, 5000, 31)
    threads(1)
    alone = draw(s, 31, seed=3, step=4)
    for n in (2, 3):
        threads(n)
        assert torch.equal(draw(s, 31, seed=3, step=4), alone)
    assert torch.equal(draw(s[:7], 31, seed=3, step=4), alone[:7])
    assert torch.equal(draw(s.to(torch.int8).t().contiguous().t(), 31, seed=3, step=4), alone)


def test_index_and_matrix_form_draw_the_same(device):
    labels = make_index(500, 31).to(device)
    matrix = reference.label_matrix(labels, 31, torch.int8)
    for step in range(5):
        assert torch.equal(draw(labels, 31, step=step), draw(matrix, 31, step=step))
    z = make_logits(500, 31, torch.float32).to(device)
    assert losses.pns_loss(z, labels, seed=2, step=3) == losses.pns_loss(z, matrix, seed=2, step=3)


def test_drawn_label_costs_as_a_negative(device):
    z, s = make_logits(50, 9, torch.float64), make_labels(AN, 50, 9)
    columns = draw(s.to(device), 9, seed=5, step=6).cpu()
    actual = losses.pns_loss(z.to(device), s.to(device), seed=5, step=6, reduction="none").cpu()
    for row in range(50):
        for column in range(9):
            label = -1 if column == columns[row] else s[row, column].item()
            p = torch.sigmoid(z[row, column]).item()
            wanted = {1: -math.log(p), -1: -math.log1p(-p), 0: 0.0}[label]
            assert actual[row, column].item() == pytest.approx(wanted, rel=1e-10)


def test_step_may_be_a_tensor(device):
    z, labels = make_logits(50, 9, torch.float32).to(device), make_index(50, 9).to(device)
    values = [losses.pns_loss(z, labels, step=step).item() for step in range(4)]
    step = torch.zeros(1, dtype=torch.int64, device=device)
    for value in values:
        assert losses.pns_loss(z, labels, step=step).item() == value
        step += 1
    assert len(set(values)) == 4
    assert len({losses.pns_loss(z, labels, seed=seed).item() for seed in range(4)}) == 4


def test_pns_module_counts_its_steps(device):
    z, labels = make_logits(50, 9, torch.float32).to(device), make_index(50, 9).to(device)
    module = losses.PNSLoss(seed=7).to(device)
    for step in range(3):
        assert module.step.item() == step
        assert module(z, labels) == losses.pns_loss(z, labels, seed=7, step=step)
    other = losses.PNSLoss(seed=7).to(device)
    other.load_state_dict(module.state_dict())
    assert other.step.item() == 3
    assert other(z, labels) == losses.pns_loss(z, labels, seed=7, step=3)
    assert module.step.item() == 3


def test_later_steps_leave_an_earlier_gradient_alone(device):
    """A second backward draws as the first did, whatever the module's step is by then."""
    z, labels = make_logits(50, 9, torch.float32).to(device).requires_grad_(), make_index(50, 9).to(device)
    module = losses.PNSLoss().to(device)
    value = module(z, labels)
    (first,) = torch.autograd.grad(value, z, retain_graph=True)
    module(z, labels)
    (second,) = torch.autograd.grad(value, z)
    assert torch.equal(first, second)


# --- pairwise ranking -----------------------------------------------------------------------------


@pytest.mark.slow
def test_ranking_is_a_double_loop(device):
    for n, l in [(5, 1), (6, 7), (3, 700)]:
        z, s = make_logits(n, l, torch.float64), make_labels(AN, n, l)
        weight = torch.rand(l, dtype=torch.float64)
        leaf = z.clone().requires_grad_()
        p = torch.sigmoid(leaf)
        total = torch.zeros((), dtype=torch.float64)
        for row in range(n):
            for i in (s[row] == 1).nonzero().flatten().tolist():
                for j in (s[row] != 1).nonzero().flatten().tolist():
                    total = total + weight[i] * (1 - p[row, i] + p[row, j]).clamp(min=0)
        wanted = torch.zeros_like(z) if total.grad_fn is None else torch.autograd.grad(total, leaf)[0]
        actual = value_and_grads(
            lambda z: losses.pr_loss(z, s.to(device), class_weight=weight.to(device), reduction="sum"),  # noqa: B023
            z.to(device),
        )
        torch.testing.assert_close(actual[0].cpu(), total.detach(), rtol=1e-10, atol=0)
        torch.testing.assert_close(actual[1].cpu(), wanted, rtol=1e-10, atol=1e-14)


# --- expected positives ---------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_penalty_of_epr_is_its_formula(reduction, device):
    """lam ((k_hat - k) / L)^2 and its gradient 2 lam (k_hat - k) / L^2 p (1 - p) / N, for any k_hat."""
    n, l, lam = 6, 9, 0.7
    z, labels = make_logits(n, l, torch.float64).to(device), make_index(n, l).to(device)
    value, grad = value_and_grads(lambda z: losses.iu_loss(z, labels, reduction=reduction), z)
    slope = torch.sigmoid(z) * torch.sigmoid(-z) / n
    factor = n * l if reduction == "sum" else 1
    own = losses.expected_positive_count(z)
    torch.testing.assert_close(own, torch.sigmoid(z).sum()[None] / n, rtol=1e-12, atol=0)
    for k_hat in (None, own, torch.tensor([0.0]), torch.tensor([K]), torch.tensor([31.4])):
        k_hat = None if k_hat is None else k_hat.double().to(device)
        excess = ((own if k_hat is None else k_hat) - K)[0]
        kwargs = dict(expected_positives=K, lam=lam, k_hat=k_hat, reduction=reduction)
        actual = value_and_grads(lambda z: losses.epr_loss(z, labels, **kwargs), z)  # noqa: B023
        torch.testing.assert_close(actual[0], value + factor * lam * (excess / l) ** 2, rtol=1e-12, atol=0)
        wanted = grad + factor * 2 * lam * excess / l**2 * slope
        torch.testing.assert_close(actual[1], wanted, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
def test_k_hat_of_the_batch_changes_nothing(dtype, device):
    z, labels = make_logits(37, 81, dtype).to(device), make_index(37, 81).to(device)
    table = make_logits(50, 81, _ops.compute_dtype(dtype)).to(device)
    index = torch.randint(0, 50, (37,), device=device)

    def epr(z, k_hat=None):
        return losses.epr_loss(z, labels, expected_positives=K, k_hat=k_hat)

    def role(z, table, k_hat=None):
        return losses.role_loss(z, labels, table, index, expected_positives=K, k_hat=k_hat)

    k_hat = losses.expected_positive_count(z)
    for a, b in zip(value_and_grads(epr, z), value_and_grads(lambda z: epr(z, k_hat), z), strict=True):
        assert torch.equal(a, b)
    k_hats = losses.expected_positive_count(z, table[index])
    assert k_hats.shape == (2,)
    own = value_and_grads(role, z, table)
    given = value_and_grads(lambda z, table: role(z, table, k_hats), z, table)
    for a, b in zip(own, given, strict=True):
        assert torch.equal(a, b)


def test_penalties_of_role_are_its_formula(device):
    n, l, lam = 6, 9, 0.7
    z, table = make_logits(n, l, torch.float64).to(device), make_logits(n, l, torch.float64).to(device)
    labels = make_index(n, l).to(device)
    k_hat = torch.tensor([4.0, 1.5], dtype=torch.float64, device=device)

    def loss(z, table, lam, k_hat=None):
        return losses.role_loss(z, labels, table, expected_positives=K, lam=lam, k_hat=k_hat)

    value, *grads = value_and_grads(lambda *leaves: loss(*leaves, 0.0), z, table)
    actual = value_and_grads(lambda *leaves: loss(*leaves, lam, k_hat), z, table)
    wanted = value + lam / 2 * (((k_hat - K) / l) ** 2).sum()
    torch.testing.assert_close(actual[0], wanted, rtol=1e-12, atol=0)
    for i, logits in enumerate((z, table)):
        slope = torch.sigmoid(logits) * torch.sigmoid(-logits) / n
        wanted = grads[i] + lam * (k_hat[i] - K) / l**2 * slope
        torch.testing.assert_close(actual[i + 1], wanted, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", ["epr", "role"])
def test_sync_of_one_process_changes_nothing(name, device):
    z, labels = make_logits(16, 20, torch.float32).to(device), make_index(16, 20).to(device)
    rest = []
    if name == "role":
        rest = [torch.randn(30, 20, device=device), torch.randint(0, 30, (16,), device=device)]
    modules = [losses.make(name, expected_positives=K, sync=sync) for sync in (False, True)]
    for a, b in zip(*(value_and_grads(lambda z: m(z, labels, *rest), z) for m in modules), strict=True):  # noqa: B023
        assert torch.equal(a, b)


# --- ROLE -----------------------------------------------------------------------------------------


def role_batch(dtype, device, n=16, l=20, rows=11):
    """(logits, labels, table, index with repeated rows)"""
    z, labels = make_logits(n, l, dtype).to(device), make_index(n, l).to(device)
    table = make_logits(rows, l, _ops.compute_dtype(dtype)).to(device)
    index = torch.randint(0, rows - 1, (n,), device=device)
    assert len(index.unique()) < n
    return z, labels, table, index


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
def test_rows_of_the_table_gather_their_gradients(dtype, device):
    z, labels, table, index = role_batch(dtype, device)
    value, of_z, of_rows = value_and_grads(
        lambda z, rows: losses.role_loss(z, labels, rows, expected_positives=K), z, table[index]
    )
    actual = value_and_grads(
        lambda z, table: losses.role_loss(z, labels, table, index, expected_positives=K), z, table
    )
    wanted = torch.zeros_like(table)
    for row, grad in zip(index.tolist(), of_rows, strict=True):
        wanted[row] += grad
    assert torch.equal(actual[0], value)
    assert torch.equal(actual[1], of_z)
    assert torch.equal(actual[2], wanted)
    assert not wanted[-1].any()


@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
def test_sparse_gradient_is_the_dense_one(dtype, device):
    z, labels, table, index = role_batch(dtype, device)

    def loss(z, table, sparse):
        return 3 * losses.role_loss(z, labels, table, index, expected_positives=K, sparse=sparse)

    dense = value_and_grads(lambda *leaves: loss(*leaves, False), z, table)
    sparse = value_and_grads(lambda *leaves: loss(*leaves, True), z, table)
    assert torch.equal(dense[0], sparse[0])
    assert torch.equal(dense[1], sparse[1])
    assert sparse[2].layout == torch.sparse_coo
    assert sparse[2].shape == table.shape
    assert sparse[2].dtype == table.dtype
    assert torch.equal(sparse[2]._indices()[0], index)
    torch.testing.assert_close(sparse[2].to_dense(), dense[2], rtol=1e-6, atol=1e-9)
    assert torch.equal(sparse[2].coalesce().indices()[0], index.unique())


def test_table_of_any_strides(device):
    z, labels, table, index = role_batch(torch.float32, device)

    def loss(z, table):
        return losses.role_loss(z, labels, table, index, expected_positives=K)

    wanted = value_and_grads(loss, z, table)
    leaf = table.t().contiguous().requires_grad_()
    value = loss(z, leaf.t())
    (grad,) = torch.autograd.grad(value, leaf)
    assert torch.equal(value, wanted[0])
    assert torch.equal(grad.t(), wanted[2])


STAND_INS = [case for case in ELEMENTWISE if case.matrix is None]


def compare_stand_in(case, hyper, stand_in, device):
    """``loss=stand_in`` in ROLE is the reference of ``case`` with ``hyper`` in place of the cross entropy."""
    z, table = make_logits(6, 9, torch.float64), make_logits(6, 9, torch.float64)
    s = make_labels(AN, 6, 9)
    eps = EPS if case.has_eps else 0.0

    def loss(z, s):
        return getattr(reference, case.name)(z, s, **hyper, eps=eps)

    def expected(z, table):
        penalty = reference.epr_penalty(z, K) + reference.epr_penalty(table, K)
        return role_entries(z, s, table, eps, loss).mean() + 0.35 * penalty

    def fused(z, table):
        kwargs = dict(expected_positives=K, lam=0.7, eps=eps, loss=stand_in)
        return losses.role_loss(z, s.to(device), table, **kwargs)

    actual = value_and_grads(fused, z.to(device), table.to(device))
    for a, b in zip(actual, value_and_grads(expected, z, table), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("case", STAND_INS, ids=ids(STAND_INS))
def test_another_loss_in_place_of_the_cross_entropy(case, device):
    """q L(z | s = 1) + (1 - q) L(z | s = 0) on both sides, whatever elementwise loss L is."""
    compare_stand_in(case, case.hyper, losses.make(case.name, **case.hyper), device)


@pytest.mark.parametrize("name", sorted({case.name for case in STAND_INS}))
def test_another_loss_by_name(name, device):
    """The loss with its defaults, as a call of it with these logits would have them."""
    case = next(case for case in STAND_INS if case.name == name)
    compare_stand_in(case, losses.make(name).hyper, name, device)


@pytest.mark.parametrize("loss", ["an", "bce", "bce_ls"])
def test_role_takes_observed_labels_whatever_its_loss(loss, device):
    """A loss of full labels in place of the cross entropy does not make ROLE's labels full ones."""
    z, table = torch.randn(2, 3, device=device), torch.randn(2, 3, device=device)
    observed = torch.tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]], device=device)
    assert losses.role_loss(z, observed, table, expected_positives=K, loss=loss).isfinite()
    soft = observed.clone()
    soft[1, 1] = 0.5
    if device.type == "cpu":
        with pytest.raises(ValueError, match=r"labels\[1, 1\] is 0\.5"):
            losses.role_loss(z, soft, table, expected_positives=K, loss=loss)


def test_role_module_is_the_function(device):
    z, labels, _, index = role_batch(torch.float32, device)
    estimator = LabelEstimator(make_index(11, 20), n_labels=20).to(device)
    weight = torch.rand(20)
    hyper = dict(expected_positives=K, lam=0.7, loss="an_ls", eps=EPS)
    module = losses.ROLELoss(**hyper, class_weight=weight).to(device)
    module(z, labels, estimator.logits, index).backward()
    _, wanted = value_and_grads(
        lambda table: losses.role_loss(z, labels, table, index, **hyper, class_weight=weight.to(device)),
        estimator.logits,
    )
    assert torch.equal(estimator.logits.grad, wanted)


@pytest.mark.parametrize(
    "inner", [losses.GRLoss(epochs=4), losses.ANLSLoss(smoothing=losses.Linear(0.2, 0.0, epochs=4))]
)
def test_role_follows_the_schedule_of_its_loss(inner, device):
    """A loss inside ROLE moves with its own ``set_epoch``, whatever ROLE's epoch is."""
    z, labels, table, index = role_batch(torch.float32, device)
    module = losses.ROLELoss(expected_positives=K, loss=inner)
    values = []
    for epoch in (1, 3, 4):
        inner.set_epoch(epoch)
        fixed = losses.make(inner.name, **inner.hyper)
        values.append(module(z, labels, table, index).item())
        assert values[-1] == losses.role_loss(z, labels, table, index, expected_positives=K, loss=fixed).item()
        assert values[-1] == module.value_and_gradients(z, labels, table, index).value.item()
    assert len(set(values)) == 3


def test_classifier_and_estimator_teach_each_other(device):
    """With nothing observed and no penalty, each is drawn to what the other says, and stays where they agree."""
    labels = torch.full((1,), -1, device=device)
    z = torch.tensor([[2.0, -2.0, 1.0]], device=device)
    table = torch.tensor([[-2.0, 2.0, 1.0]], device=device)
    _, of_z, of_table = value_and_grads(
        lambda z, table: losses.role_loss(z, labels, table, expected_positives=0.0, lam=0.0), z, table
    )
    assert of_z[0, 0] > 0 > of_z[0, 1]
    assert of_table[0, 1] > 0 > of_table[0, 0]
    assert of_z[0, 2].abs() < 1e-7
    assert of_table[0, 2].abs() < 1e-7


# --- large losses ---------------------------------------------------------------------------------


def test_share_zero_is_an_and_share_one_is_everything(device):
    z, s = make_logits(16, 20, torch.float32).to(device), make_labels(AN, 16, 20).float().to(device)
    an = losses.an_loss(z, s, reduction="none")
    flipped = losses.an_loss(z, torch.where(s == 0, 1.0, s), reduction="none")
    for loss in (losses.ll_r_loss, losses.ll_ct_loss):
        assert torch.equal(loss(z, s, share=0.0, reduction="none"), an)
    assert torch.equal(losses.ll_r_loss(z, s, share=1.0, reduction="none"), torch.where(s == 0, 0.0, an))
    assert torch.equal(losses.ll_ct_loss(z, s, share=1.0, reduction="none"), flipped)
    flips = torch.zeros(16, 20, dtype=torch.uint8, device=device)
    rows = torch.arange(16, device=device)
    assert torch.equal(losses.ll_cp_loss(z, s, flips, rows, share=0.0, reduction="none"), an)
    assert not flips.any()
    assert torch.equal(losses.ll_cp_loss(z, s, flips, rows, share=1.0, reduction="none"), flipped)
    assert torch.equal(flips == 1, s == 0)


@pytest.mark.parametrize(
    ("share", "k"), [(0.0, 0), (1e-9, 1), (1 / 21, 1), (0.05, 2), (0.1, 3), (0.5, 11), (0.96, 21), (1.0, 21)]
)
def test_share_counts_all_entries_and_is_rounded_up(share, k, device):
    z = torch.randperm(21).reshape(7, 3).float().to(device)
    labels = torch.full((7,), -1, device=device)
    entries = losses.ll_r_loss(z, labels, share=share, reduction="none")
    assert torch.equal(entries == 0, z >= 21 - k)
    labels = torch.zeros(7, dtype=torch.int64, device=device)  # 14 entries that are unobserved
    entries = losses.ll_r_loss(z, labels, share=share, reduction="none")
    order = z[:, 1:].flatten().sort(descending=True).values
    rejected = z[:, 1:] >= (order[min(k, 14) - 1] if k else math.inf)
    assert torch.equal(entries[:, 1:] == 0, rejected)
    assert (entries[:, 0] > 0).all()


def test_ties_with_the_last_are_selected_too(device):
    z = torch.tensor([[3.0, 2.0, 2.0, 1.0], [2.0, 0.0, -1.0, 2.0]], device=device)
    labels = torch.full((2,), -1, device=device)
    for k, threshold in ((1, 3), (2, 2), (4, 2), (5, 2), (6, 1), (7, 0), (8, -1)):
        entries = losses.ll_r_loss(z, labels, share=k / 8, reduction="none")
        assert torch.equal(entries == 0, z >= threshold)


def select_by_sorting(z, candidates, k):
    """Which candidates are among the k largest, ties included."""
    chosen = np.zeros(z.shape, dtype=bool)
    values = np.sort(z[candidates])[::-1]
    if k > 0 and values.size > 0:
        chosen[candidates] = z[candidates] >= values[min(k, values.size) - 1]
    return chosen


@pytest.mark.parametrize("form", ["index", "matrix"])
@pytest.mark.parametrize("ties", ["few", "many", "almost all"])
@pytest.mark.parametrize("dtype", [*FLOATS, *HALVES], ids=str)
def test_selection_is_that_of_a_sort(dtype, ties, form, device):
    steps = {"few": 1000, "many": 4, "almost all": 0.3}[ties]
    for n, l in [(1, 1), (16, 20), (61, 173)]:
        for share in (0.001, 0.01, 0.2, 0.9):
            z = ((make_logits(n, l, torch.float64) * steps).round() / steps).to(dtype)
            labels = make_index(n, l) if form == "index" else make_labels(AN, n, l).to(torch.int8)
            s = reference.label_matrix(labels, l, torch.float64)
            flips = (torch.rand(n + 3, l) < 0.1).to(torch.uint8)
            index = torch.randperm(n + 3)[:n]
            candidates = ((s == 0) & (flips[index] == 0)).numpy()
            k = math.ceil(n * l * share)
            numbers = z.double().numpy()
            z, labels = z.to(device), labels.to(device)

            rejected = select_by_sorting(numbers, (s == 0).numpy(), k)
            an = losses.an_loss(z, labels, reduction="none")
            ll_r = losses.ll_r_loss(z, labels, share=share, reduction="none")
            assert torch.equal(ll_r, torch.where(torch.from_numpy(rejected).to(device), 0, an))

            flipped = flips.to(device)
            losses.ll_cp_loss(z, labels, flipped, index.to(device), share=share)
            wanted = flips.clone()
            wanted[index] |= torch.from_numpy(select_by_sorting(numbers, candidates, k)).to(torch.uint8)
            assert torch.equal(flipped.cpu(), wanted)


def test_nan_is_not_taken_for_a_large_loss_of_others(device):
    z = make_logits(16, 20, torch.float32).to(device)
    z[3, 4] = math.nan
    labels = torch.full((16,), -1, device=device)
    flips = torch.zeros(16, 20, dtype=torch.uint8, device=device)
    losses.ll_cp_loss(z, labels, flips, torch.arange(16, device=device), share=10 / 320)
    assert flips[3, 4] == 0
    assert int(flips.sum()) == 9
    assert z[flips == 1].min() > z[(flips == 0) & ~z.isnan()].max()


@pytest.mark.parametrize("name", ["ll_r", "ll_ct"])
def test_share_grows_from_the_second_epoch_on(name, device):
    z, labels = make_logits(16, 20, torch.float32).to(device), make_index(16, 20).to(device)
    function = getattr(losses, f"{name}_loss")
    module = losses.make(name, delta=0.02)
    fixed = losses.make(name, share=0.1)
    for epoch in range(1, 61):
        module.set_epoch(epoch)
        fixed.set_epoch(epoch)
        share = min(0.02 * (epoch - 1), 1)
        assert module.hyper["share"] == pytest.approx(share, abs=1e-12)
        assert module(z, labels) == function(z, labels, share=module.hyper["share"])
        assert fixed.hyper["share"] == 0.1
    assert losses.make(name)(z, labels) == losses.an_loss(z, labels)


def test_ll_cp_flips_for_good(device):
    """From epoch 2 on a share ``delta`` of each batch, only what is unobserved and only in the batch's rows."""
    module = losses.LLCpLoss(n_samples=40, n_labels=20, delta=0.05).to(device)
    s = make_labels(AN, 40, 20).to(device)
    before = module.flips.clone()
    for epoch in range(1, 5):
        module.set_epoch(epoch)
        assert module.hyper["share"] == (0 if epoch == 1 else 0.05)
        for index in torch.randperm(40, device=device).chunk(4):
            z = make_logits(10, 20, torch.float32).to(device)
            old = module.flips.clone()
            value = module(z, s[index], index)
            new = module.flips != old
            others = torch.ones(40, dtype=torch.bool, device=device)
            others[index] = False
            assert not new[others].any()
            assert int(new.sum()) == (0 if epoch == 1 else 10)
            assert (module.flips >= old).all()
            as_positive = torch.where(module.flips[index] == 1, 1.0, s[index])
            assert value == losses.an_loss(z, as_positive)
    assert not module.flips[s != 0].any()
    assert int((module.flips != before).sum()) == 3 * 4 * 10


def test_flips_by_index_and_by_matrix_are_the_same(device):
    labels, index = make_index(16, 20).to(device), torch.randperm(30, device=device)[:16]
    z = make_logits(16, 20, torch.float32).to(device)
    flips = [torch.zeros(30, 20, dtype=torch.uint8, device=device) for _ in range(2)]
    forms = labels, reference.label_matrix(labels, 20, torch.int8)
    values = [losses.ll_cp_loss(z, form, f, index, share=0.1) for form, f in zip(forms, flips, strict=True)]
    assert torch.equal(*values)
    assert torch.equal(*flips)
    assert int(flips[0].sum()) == 32


# --- EM with pseudo-labels ------------------------------------------------------------------------


def add_pseudo_labels(store, p, unobserved, theta, epochs, warmup):
    """One update in plain numpy: of each class, the unobserved labels of lowest p that have none yet."""
    for column in range(store.shape[1]):
        many = int(theta * unobserved[:, column].sum() / (epochs - warmup))
        free = np.flatnonzero(unobserved[:, column] & (store[:, column] < 0))
        for row in free[np.argsort(p[free, column])][:many]:
            store[row, column] = p[row, column]


@pytest.mark.parametrize("form", ["index", "matrix"])
def test_pseudo_labels_are_those_of_a_plain_loop(form, device):
    rows, columns, epochs, warmup, theta = 90, 11, 7, 3, 0.8
    labels = make_index(rows, columns) if form == "index" else make_labels(AN, rows, columns)
    unobserved = reference.label_matrix(labels, columns, torch.float64).numpy() == 0
    plan = dict(theta=theta, epochs=epochs, warmup=warmup)
    module = losses.EMAPLLoss(n_samples=rows, n_labels=columns, **plan).to(device)
    wanted = np.full((rows, columns), -1, dtype=np.float32)
    for epoch in range(1, epochs + 3):
        module.set_epoch(epoch)
        p = torch.rand(rows, columns)
        before = int((wanted >= 0).sum())
        if warmup <= epoch < epochs:
            add_pseudo_labels(wanted, p.numpy(), unobserved, **plan)
        added = module.update(p.to(device), labels.to(device))
        assert np.array_equal(module.pseudo_labels.cpu().numpy(), wanted)
        assert added == (wanted >= 0).sum() - before
    share = (wanted >= 0).sum(0) / unobserved.sum(0)
    assert ((share <= theta) & (share > theta - (epochs - warmup) / unobserved.sum(0))).all()
    assert (wanted[~unobserved] == -1).all()


def test_pseudo_labels_are_used_and_kept(device):
    module = losses.EMAPLLoss(n_samples=30, n_labels=20, epochs=3, warmup=1, alpha=0.1, beta=0.9).to(device)
    z, labels = make_logits(8, 20, torch.float64), make_index(8, 20)
    all_labels = make_index(30, 20)
    index = torch.randperm(30)[:8]
    args = z.to(device), labels.to(device), index.to(device)
    start = module(*args)
    torch.testing.assert_close(start, losses.em_loss(*args[:2], alpha=0.1))
    assert module.update(torch.rand(30, 20, device=device), all_labels.to(device)) > 0
    s = reference.label_matrix(labels, 20, torch.float64)
    pseudo = module.pseudo_labels.cpu().double()[index]
    wanted = reference.em_apl(z, s, pseudo, 0.1, 0.9).mean()
    torch.testing.assert_close(module(*args).cpu(), wanted, rtol=1e-10, atol=0)
    other = losses.EMAPLLoss(n_samples=30, n_labels=20, epochs=3, warmup=1, alpha=0.1, beta=0.9).to(device)
    other.load_state_dict(module.state_dict())
    assert other(*args) == module(*args) != start


# --- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0, 1, 3])
@pytest.mark.parametrize("epochs", [4, 8, 10])
@pytest.mark.parametrize("name", ["gr", "gpr"])
def test_official_schedule_of_gr(name, epochs, warmup):
    ends = dict(w=(0.0, 10.0), b=(-2.0, -8.0), mu=(0.5, 0.8), sigma=(2.0, 0.5))
    module = losses.make(name, epochs=epochs, warmup=warmup, **ends)
    for t in range(1, epochs + 1):
        module.set_epoch(t)
        late, early = (max(t - warmup - d, 0) / (epochs - warmup) for d in (1, 0))
        for key, share in dict(w=late, b=late, mu=early, sigma=early).items():
            first, last = ends[key]
            assert module.hyper[key] == pytest.approx(first + (last - first) * share, rel=1e-12, abs=1e-12)
    assert (module.hyper["mu"], module.hyper["sigma"]) == pytest.approx((0.8, 0.5))
    assert module.hyper["w"] < 10
    last = dict(module.hyper)
    module.set_epoch(epochs + 5)
    assert {k: module.hyper[k] for k in ("mu", "sigma")} == {k: last[k] for k in ("mu", "sigma")}
    assert (module.hyper["w"], module.hyper["b"]) == (10.0, -8.0)


def test_default_schedule_of_gr_in_numbers(device):
    """LOSSES.md's defaults: w 0 to 2, b -2, mu 0.5 to 0.8, sigma 2 to 0.5 over 8 epochs, q = (0, 0.01, 1)."""
    z, labels = make_logits(16, 20, torch.float64).to(device), make_index(16, 20).to(device)
    module = losses.GRLoss()
    w = [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    mu = [0.5375, 0.575, 0.6125, 0.65, 0.6875, 0.725, 0.7625, 0.8]
    sigma = [1.8125, 1.625, 1.4375, 1.25, 1.0625, 0.875, 0.6875, 0.5]
    for epoch, (w_t, mu_t, sigma_t) in enumerate(zip(w, mu, sigma, strict=True), 1):
        module.set_epoch(epoch)
        wanted = losses.gr_loss(z, labels, w=w_t, b=-2.0, mu=mu_t, sigma=sigma_t, q=(0.0, 0.01, 1.0))
        torch.testing.assert_close(module(z, labels), wanted, rtol=1e-12, atol=0)
    fresh = losses.GRLoss()
    fresh.set_epoch(1)
    assert fresh(z, labels) == losses.GRLoss()(z, labels)


def test_numbers_and_schedules_beside_pairs():
    module = losses.GRLoss(epochs=4, w=1.5, sigma=losses.From(3, before=2.0, after=0.5))
    values = []
    for epoch in range(1, 5):
        module.set_epoch(epoch)
        values.append((module.hyper["w"], module.hyper["b"], module.hyper["sigma"]))
    assert values == [(1.5, -2.0, 2.0), (1.5, -2.0, 2.0), (1.5, -2.0, 0.5), (1.5, -2.0, 0.5)]
    smoothing = losses.ANLSLoss(smoothing=losses.Linear(0.2, 0.0, epochs=4))
    smoothing.set_epoch(3)
    assert smoothing.hyper["smoothing"] == pytest.approx(0.05)


def test_a_schedule_of_the_users_own(device):
    class Halving(losses.Schedule):
        def __call__(self, epoch):
            return 0.8 * 0.5**epoch

    z, labels = make_logits(4, 3, torch.float32).to(device), torch.tensor([0, 1, 2, -1], device=device)
    module = losses.EMLoss(alpha=Halving())
    for epoch in (1, 2, 3):
        module.set_epoch(epoch)
        assert module(z, labels) == losses.em_loss(z, labels, alpha=0.8 * 0.5**epoch)


@pytest.mark.parametrize("start", [1, 2, 4])
def test_splc_corrects_from_its_epoch_on(start, device):
    z, labels = make_logits(16, 20, torch.float32).to(device), make_index(16, 20).to(device)
    module = losses.SPLCLoss(start_epoch=start, tau=0.7)
    for epoch in range(1, 6):
        module.set_epoch(epoch)
        assert module(z, labels) == losses.splc_loss(z, labels, tau=0.7, correct=epoch >= start)
    without = losses.splc_loss(z, labels, tau=0.7, correct=False)
    assert without == losses.focal_margin_loss(z, labels)
    assert without != module(z, labels)
    assert losses.SPLCLoss().schedules["correct"] == losses.From(2, before=False, after=True)


@pytest.mark.parametrize("epoch", [0, -1])
@pytest.mark.parametrize("name", ["an", "gr"])
def test_epochs_are_counted_from_one(name, epoch):
    module = losses.make(name)
    module.set_epoch(3)
    hyper = dict(module.hyper)
    with pytest.raises(ValueError, match=f"counted from 1, got {epoch}"):
        module.set_epoch(epoch)
    assert module.epoch == 3
    assert module.hyper == hyper
