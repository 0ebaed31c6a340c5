"""The linear phase against a loop over torch.nn.Linear, its choice of run and epoch, its continuation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from trainings import sklearn_map

from spml_fast import losses
from spml_fast._checkpoint import load_state, save_state
from spml_fast.labels import LabelEstimator
from spml_fast.losses import Loss
from spml_fast.training import linear
from spml_fast.training.linear import (
    LinearGroup,
    LinearRun,
    LinearTask,
    ResidentFeatures,
    best_run,
    fit_linear,
    stream,
    value_and_gradients,
)

N, D, L, M = 45, 6, 5, 31  # M rows of validation; batches of 8 leave one of 5
EPOCHS = 4
OPTIONS = {
    "em_apl": dict(n_samples=N, n_labels=L, epochs=EPOCHS, warmup=2),
    "epr": dict(expected_positives=1.7),
    "gr": dict(epochs=EPOCHS),
    "ll_cp": dict(n_samples=N, n_labels=L, delta=0.05),
    "role": dict(expected_positives=1.7),
}
STATEFUL = ["gr", "role", "em_apl", "ll_cp", "pns"]


def make_loss(name):
    return losses.make(name, **OPTIONS.get(name, {}))


def make_task(name="an", validation=True, full=True, **changes):
    """A task on labels that depend on the features, with some noise."""
    g = torch.Generator().manual_seed(7)
    x, x_validation = torch.randn(N, D, generator=g), torch.randn(M, D, generator=g)
    truth = torch.randn(D, L, generator=g)
    noisy = [z @ truth + torch.randn(len(z), L, generator=g) for z in (x, x_validation)]
    full_labels, validation_labels = (z > 0 for z in noisy)
    labels = noisy[0].argmax(1)
    labels[::11] = -1
    settings = dict(
        features=ResidentFeatures(x, "cpu"),
        inputs={"labels": labels},
        n_labels=L,
        make_loss=lambda: make_loss(name),
        epochs=EPOCHS,
        seed=3,
        validation=validation,
        full_labels=full_labels if full else None,
    )
    if validation is True:
        settings["validation"] = (ResidentFeatures(x_validation, "cpu"), validation_labels)
    return LinearTask(**settings | changes)


def trained(group, epochs):
    for _ in range(epochs):
        group.train_epoch()
    return group


def same(a, b):
    """Equal bits in tensors at any depth, equal values besides; seconds are what they are."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a.keys() - {"seconds"}:
            same(a[name], b[name])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for first, second in zip(a, b, strict=True):
            same(first, second)
    else:
        assert a == b


def same_runs(a, b):
    same([vars(run) for run in a], [vars(run) for run in b])


# --- features -------------------------------------------------------------------------------------


def test_dense_features_have_a_column_of_ones():
    x = torch.randn(5, 3)
    before = x.clone()
    features = ResidentFeatures(x, "cpu")
    assert len(features) == 5
    assert features.shape == (5, 4)
    wanted = torch.cat([x, torch.ones(5, 1)], 1)
    index = torch.tensor([4, 0, 0])
    assert torch.equal(features.rows(index), wanted[index])
    assert features.rows(index[:0]).shape == (0, 4)
    weight = torch.randn(7, 4)
    torch.testing.assert_close(features.logits(weight), wanted @ weight.T)
    features.rows(index).zero_()
    assert torch.equal(features.rows(index), wanted[index])
    assert torch.equal(x, before)


@st.composite
def csr_matrices(draw):
    """With entries in parts, out of order, zeros that are stored, empty rows; whole numbers, so that sums are
    exact."""
    n, d = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(st.integers(0, d - 1), max_size=7), min_size=n, max_size=n))
    columns = [column for row in rows for column in row]
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int64]))
    values = draw(st.lists(st.integers(-9, 9), min_size=len(columns), max_size=len(columns)))
    starts = np.cumsum([0, *map(len, rows)])
    return csr_matrix((np.array(values, dtype), np.array(columns, np.int32), starts), shape=(n, d))


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(x=csr_matrices(), dense_bytes=st.sampled_from([0, linear.DENSE_BYTES]), data=st.data())
def test_sparse_features_are_the_dense_ones(x, dense_bytes, data):
    stored = x.data.copy(), x.indices.copy(), x.indptr.copy()
    sparse = ResidentFeatures(x, "cpu", dense_bytes)
    dense = ResidentFeatures(torch.from_numpy(x.toarray()).float(), "cpu")
    assert (sparse.dense is None) == (dense_bytes == 0)
    assert sparse.shape == dense.shape
    assert len(sparse) == len(dense)
    index = torch.tensor(data.draw(st.lists(st.integers(0, len(dense) - 1), max_size=9)), dtype=torch.int64)
    assert sparse.rows(index).dtype == torch.float32
    assert torch.equal(sparse.rows(index), dense.rows(index))
    weight = torch.arange(3.0 * dense.shape[1]).view(3, -1) - 4
    assert torch.equal(sparse.logits(weight), dense.logits(weight))
    for part, before in zip((x.data, x.indices, x.indptr), stored, strict=True):
        np.testing.assert_array_equal(part, before)


def test_sparse_features_beyond_dense_bytes():
    """The bound counts the column of ones; logits of all rows are computed by chunks."""
    x = csr_matrix(np.eye(6, 4, dtype=np.float32))
    assert ResidentFeatures(x, "cpu", dense_bytes=6 * 5 * 4).dense is not None
    assert ResidentFeatures(x, "cpu", dense_bytes=6 * 5 * 4 - 1).dense is None


def test_chunks_of_sparse_features_join(monkeypatch):
    monkeypatch.setattr(linear, "CHUNK_ROWS", 4)
    x = csr_matrix(np.arange(30, dtype=np.float32).reshape(10, 3) % 4)
    weight = torch.arange(8.0).view(2, 4)
    dense = torch.cat([torch.from_numpy(x.toarray()), torch.ones(10, 1)], 1)
    assert torch.equal(ResidentFeatures(x, "cpu", dense_bytes=0).logits(weight), dense @ weight.T)


@pytest.mark.parametrize("name", ["an", "role"])
def test_training_on_sparse_features_gives_the_bits_of_dense_ones(name):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(N, D, generator=g) * (torch.rand(N, D, generator=g) < 0.4)
    x[9] = 0
    runs = []
    for features in (x, csr_matrix(x.numpy())):
        for dense_bytes in (0, linear.DENSE_BYTES):
            task = make_task(name, features=ResidentFeatures(features, "cpu", dense_bytes))
            runs.append(fit_linear(task, lrs=[1e-2], batch_sizes=[8]))
    for other in runs[1:]:
        same_runs(runs[0], other)


# --- streams --------------------------------------------------------------------------------------


def numbers(*key):
    return torch.randint(2**62, (4,), generator=stream(*key)).tolist()


def test_streams_are_reproducible_and_leave_the_global_one():
    before = torch.get_rng_state()
    assert numbers(3, 1) == numbers(3, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert numbers(-3, 1) == numbers(-3, 1) != numbers(3, 1)


def test_every_key_of_a_training_has_a_stream_of_its_own():
    """Batches of each epoch, starts, label estimates, fine-tuning by epoch and process, the rest."""
    seeds = [0, 1, 2, 17, 2**32, 2**32 + 1, 2**63, -1]
    keys = [(s, 0, epoch) for s in seeds for epoch in range(1, 20)] + [(s, k) for s in seeds for k in (1, 2, 4)]
    keys += [(s, 3, epoch, rank) for s in seeds for epoch in range(5) for rank in range(3)]
    assert len({tuple(numbers(*key)) for key in keys}) == len(keys)


# --- one epoch, said in plain torch ---------------------------------------------------------------


def plain_epochs(task, weight, name, lr, batch_size, epochs):
    """What a user would write: (weight (L, D + 1), estimates or None, mean loss of each epoch), in float64."""
    model = nn.Linear(D, L, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(weight[:, :-1])
        model.bias.copy_(weight[:, -1])
    labels, x = task.inputs["labels"], task.features.dense[:, :-1].double()
    groups, table = [{"params": list(model.parameters()), "lr": lr}], None
    if name == "role":
        start = LabelEstimator(labels, n_labels=L, generator=stream(task.seed, 2))
        table = start.logits.detach().double().requires_grad_()
        groups.append({"params": [table], "lr": 10 * lr})
    adam = torch.optim.Adam(groups)
    flips, apl = torch.zeros(N, L, dtype=torch.uint8), make_loss("em_apl")
    means, step = [], 0
    for epoch in range(1, epochs + 1):
        order, total = torch.randperm(N, generator=stream(task.seed, 0, epoch)), 0.0
        for rows in order.split(batch_size):
            z, y = model(x[rows]), labels[rows]
            if name == "an":
                value = losses.an_loss(z, y)
            elif name == "gr":  # the official schedule, without warm-up
                share, moved = (epoch - 1) / EPOCHS, epoch / EPOCHS
                hyper = dict(w=2 * share, b=-2.0, mu=0.5 + 0.3 * moved, sigma=2 - 1.5 * moved)
                value = losses.gr_loss(z, y, **hyper)
            elif name == "epr":
                value = losses.epr_loss(z, y, expected_positives=1.7)
            elif name == "pns":
                value = losses.pns_loss(z, y, step=step)
            elif name == "ll_cp":
                value = losses.ll_cp_loss(z, y, flips, rows, share=0.0 if epoch == 1 else 0.05)
            elif name == "em_apl":
                value = losses.em_apl_loss(z, y, apl.pseudo_labels, rows)
            else:
                value = losses.role_loss(z, y, table, rows, expected_positives=1.7)
            adam.zero_grad()
            value.backward()
            adam.step()
            step += 1
            total += value.item() * len(rows)
        means.append(total / N)
        apl.set_epoch(epoch)
        apl.update(model(x).sigmoid(), labels)
    weight = torch.cat([model.weight, model.bias[:, None]], 1).detach()
    return weight, None if table is None else table.detach(), means


@pytest.mark.parametrize("batch_size", [8, 45, 100])
@pytest.mark.parametrize("name", ["an", "gr", "role", "epr", "pns", "ll_cp", "em_apl"])
def test_epochs_are_those_of_a_plain_loop(name, batch_size):
    task, lr = make_task(name), 1e-2
    group = LinearGroup(task, batch_size, [lr])
    start = group.weight.clone()
    trained(group, 3)
    weight, estimates, means = plain_epochs(task, start, name, lr, batch_size, epochs=3)
    assert (weight - start).abs().max() > 10 * lr / math.sqrt(batch_size)  # they have gone somewhere
    torch.testing.assert_close(group.weight.double(), weight, rtol=0, atol=1e-5)
    if name == "role":
        torch.testing.assert_close(group.estimators[0].logits.double(), estimates, rtol=0, atol=1e-5)
    assert [record["train_loss"] for record in group.runs[0].epochs] == pytest.approx(means, rel=1e-5)


def test_start_of_the_weights():
    """As torch.nn.Linear: uniform within +-1 / sqrt(D), bias too; the same for all runs of a seed."""
    x = torch.randn(3, 400)
    inputs = {"labels": torch.zeros(3, dtype=torch.int64)}
    task = make_task(features=ResidentFeatures(x, "cpu"), inputs=inputs, full_labels=None, validation=None)
    group = LinearGroup(task, 8, [1e-2, 1e-3])
    first, second = group.weight.view(2, L, 401)
    assert torch.equal(first, second)
    assert torch.equal(first, LinearGroup(task, 16, [1e-5]).weight)
    assert 0.95 / 20 < first.abs().max() <= 1 / 20
    assert first.mean().abs() < 3 / 20 / math.sqrt(3 * first.numel())
    other = LinearTask(**{**vars(task), "seed": 4})
    assert not torch.equal(LinearGroup(other, 8, [1e-2]).weight, first)


# --- runs side by side ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["an", "gr", "role", "em_apl", "ll_cp", "pns"])
def test_runs_side_by_side_are_those_alone(name):
    lrs = [1e-1, 1e-2, 1e-4]
    task = make_task(name)
    together = trained(LinearGroup(task, 8, lrs), EPOCHS)
    for i, lr in enumerate(lrs):
        alone = trained(LinearGroup(task, 8, [lr]), EPOCHS)
        run, (wanted,) = together.runs[i], alone.runs
        assert (run.lr, run.batch_size, run.epoch) == (lr, 8, wanted.epoch)
        torch.testing.assert_close(together.weight[i * L : (i + 1) * L], alone.weight, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(run.weight, wanted.weight, rtol=1e-6, atol=1e-6)
        for record, other in zip(run.epochs, wanted.epochs, strict=True):
            assert record.keys() == other.keys()
            for key in record.keys() - {"seconds"}:
                assert record[key] == pytest.approx(other[key], rel=1e-6)
        for key, value in run.loss_state.items():
            torch.testing.assert_close(value, wanted.loss_state[key], rtol=1e-6, atol=1e-6)
        if name == "role":
            torch.testing.assert_close(run.estimates, wanted.estimates, rtol=1e-6, atol=1e-6)
        else:
            assert run.estimates is None
    weights = together.weight.view(3, L, -1)
    assert not torch.equal(weights[0], weights[1])


def test_stateful_losses_of_a_grid_keep_their_own_state():
    """Runs that learn differently flip, and pseudo-label, differently."""
    for name, key in (("ll_cp", "flips"), ("em_apl", "pseudo_labels")):
        group = trained(LinearGroup(make_task(name), 8, [1e-1, 1e-4]), EPOCHS)
        first, second = (loss.state_dict()[key] for loss in group.losses)
        assert (first > 0).any(), name
        assert not torch.equal(first, second), name


# --- losses of others -----------------------------------------------------------------------------


class Foreign(nn.Module):
    """AN as somebody else would write it, nothing of this package known to it."""

    def forward(self, logits, labels):
        return binary_cross_entropy_with_logits(logits, one_hot(labels + 1, L + 1)[:, 1:].float())


class Recording(Foreign):
    """Knows epochs, and asks for rows."""

    inputs = ("logits", "labels", "index")

    def __init__(self):
        super().__init__()
        self.epochs, self.rows, self.labels, self.training_modes = [], [], [], set()

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def forward(self, logits, labels, index):
        self.rows.append(index.clone())
        self.labels.append(labels.clone())
        self.training_modes.add(self.training)
        return super().forward(logits, labels)


def test_a_foreign_loss_trains_as_the_same_loss_of_ours():
    ours = trained(LinearGroup(make_task("an"), 8, [1e-2, 1e-3]), 2)
    theirs = trained(LinearGroup(make_task(make_loss=Foreign), 8, [1e-2, 1e-3]), 2)
    torch.testing.assert_close(theirs.weight, ours.weight, rtol=1e-5, atol=1e-6)
    for a, b in zip(theirs.runs, ours.runs, strict=True):
        assert a.epochs[1]["train_loss"] == pytest.approx(b.epochs[1]["train_loss"], rel=1e-5)


def test_a_foreign_loss_is_told_epochs_and_rows():
    task = make_task(make_loss=Recording)
    group = trained(LinearGroup(task, 8, [1e-2]), 3)
    (loss,) = group.losses
    assert loss.epochs == [1, 2, 3]
    assert loss.training_modes == {True}
    rows = torch.cat(loss.rows).view(3, N)
    assert torch.equal(torch.cat(loss.labels), task.inputs["labels"][rows.flatten()])
    for i in range(3):
        assert torch.equal(rows[i].sort().values, torch.arange(N))
    assert not torch.equal(rows[0], rows[1])


def test_value_and_gradients_of_ours_and_of_others():
    z, labels = torch.randn(6, L, requires_grad=True), torch.tensor([0, 1, -1, 4, 2, 2])
    for grad_mode in (torch.enable_grad, torch.no_grad):
        with grad_mode():
            ours = value_and_gradients(losses.ANLoss(), z.detach(), [labels])
            theirs = value_and_gradients(Foreign(), z.detach(), [labels])
        assert ours[2].numel() == 0
        assert theirs[2] is None
        assert not theirs[0].requires_grad
        for a, b in zip(ours[:2], theirs[:2], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert z.grad is None


# --- schedules ------------------------------------------------------------------------------------


def test_schedules_are_those_of_the_epoch():
    group = LinearGroup(make_task("gr"), 8, [1e-2, 1e-3])
    for epoch in range(1, EPOCHS + 1):
        group.train_epoch()
        for loss in group.losses:
            assert loss.epoch == epoch
            assert loss.hyper["w"] == pytest.approx(2 * (epoch - 1) / EPOCHS)
            assert loss.hyper["mu"] == pytest.approx(0.5 + 0.3 * epoch / EPOCHS)
            assert loss.hyper["sigma"] == pytest.approx(2 - 1.5 * epoch / EPOCHS)
    for run in group.runs:
        assert int(run.loss_state["_epoch"]) == run.epoch


def test_pseudo_labels_come_from_the_probabilities_at_the_end_of_the_epoch():
    task = make_task("em_apl")
    group = LinearGroup(task, 8, [1e-2])
    (loss,) = group.losses
    for epoch in range(1, EPOCHS + 1):
        before = loss.pseudo_labels.clone()
        group.train_epoch()
        new = loss.pseudo_labels != before
        assert bool(new.any()) == (2 <= epoch < EPOCHS)  # from the warm-up to the last but one
        p = task.features.logits(group.weight).sigmoid()
        assert torch.equal(loss.pseudo_labels[new], p[new])
        observed = one_hot(task.inputs["labels"] + 1, L + 1)[:, 1:].bool()
        assert not (new & observed).any()


# --- what is kept ---------------------------------------------------------------------------------


def test_records_of_epochs():
    task = make_task("gr")
    for run in fit_linear(task, lrs=[1e-2, 1e-3], batch_sizes=[8]):
        assert [record["epoch"] for record in run.epochs] == [1, 2, 3, 4]
        assert set(run.epochs[0]) == {"epoch", "train_loss", "validation_map", "recovery_map", "seconds"}
        assert len(run.counts) == EPOCHS
        for counts in run.counts:
            assert counts.shape == (2, 100)
            assert counts.sum() == N * L - (task.inputs["labels"] >= 0).sum()
            hidden = task.full_labels & ~one_hot(task.inputs["labels"] + 1, L + 1)[:, 1:].bool()
            assert counts[0].sum() == hidden.sum()
    last = trained(LinearGroup(task, 8, [1e-2]), 1)
    p = task.features.logits(last.weight).sigmoid()
    assert last.runs[0].epochs[0]["recovery_map"] == pytest.approx(sklearn_map(p, task.full_labels), abs=1e-9)
    unknown = fit_linear(make_task(full=False, validation=None), lrs=[1e-2], batch_sizes=[8])[0]
    assert unknown.counts == []
    assert all(record["recovery_map"] is record["validation_map"] is None for record in unknown.epochs)


def test_the_epoch_of_the_best_validation_map_is_kept():
    """On labels that are noise, so that maps go up and down."""
    g = torch.Generator().manual_seed(5)
    x, labels = torch.randn(M, D, generator=g), torch.rand(M, L, generator=g) < 0.3
    task = make_task("gr", epochs=12, validation=(ResidentFeatures(x, "cpu"), labels))
    group = LinearGroup(task, 8, [0.3, 1e-2, 1e-3])
    weights = []
    for _ in range(12):
        group.train_epoch()
        weights.append(group.weight.view(3, L, -1).clone())
    for i, run in enumerate(group.runs):
        maps = [record["validation_map"] for record in run.epochs]
        assert run.validation_map == max(maps)
        assert run.epoch == 1 + maps.index(max(maps))
        assert torch.equal(run.weight, weights[run.epoch - 1][i])
        assert int(run.loss_state["_epoch"]) == run.epoch
        scores = task.validation[0].logits(run.weight)
        assert run.validation_map == pytest.approx(sklearn_map(scores, labels), abs=1e-9)
    assert any(1 < run.epoch < 12 for run in group.runs)
    best = best_run(group.runs)
    assert best.validation_map == max(run.validation_map for run in group.runs)
    assert best.summary() == {
        "lr": best.lr,
        "batch_size": 8,
        "epoch": best.epoch,
        "validation_map": best.validation_map,
    }


def test_of_epochs_and_runs_that_are_equally_good_the_first_is_kept():
    everything = (ResidentFeatures(torch.randn(M, D), "cpu"), torch.ones(M, L, dtype=torch.bool))  # mAP 1 always
    runs = fit_linear(make_task(validation=everything), lrs=[1e-2, 1e-3], batch_sizes=[8])
    assert [(run.epoch, run.validation_map) for run in runs] == [(1, 1.0)] * 2
    assert best_run(runs) is runs[0]


@pytest.mark.parametrize("name", ["gr", "role"])
def test_without_validation_the_last_epoch_is_kept(name):
    group = trained(LinearGroup(make_task(name, validation=None), 8, [1e-2, 1e-3]), EPOCHS)
    for i, run in enumerate(group.runs):
        assert run.epoch == EPOCHS
        assert run.validation_map is None
        assert torch.equal(run.weight, group.weight[i * L : (i + 1) * L])
        if name == "role":
            assert torch.equal(run.estimates, group.estimators[i].logits)


def test_what_is_kept_does_not_change_with_later_epochs():
    """Epoch 1 is the best there is: what it left is not written to."""
    everything = (ResidentFeatures(torch.randn(M, D), "cpu"), torch.ones(M, L, dtype=torch.bool))
    group = trained(LinearGroup(make_task("role", validation=everything), 8, [1e-2]), 1)
    weight, estimates = group.runs[0].weight.clone(), group.runs[0].estimates.clone()
    trained(group, 2)
    assert group.runs[0].epoch == 1
    assert torch.equal(group.runs[0].weight, weight)
    assert torch.equal(group.runs[0].estimates, estimates)
    assert not torch.equal(group.weight, weight)
    assert not torch.equal(group.estimators[0].logits, estimates)


# --- divergence -----------------------------------------------------------------------------------


def test_a_run_that_diverged_is_not_chosen():
    lrs = [1e38, 1e-2]
    runs = fit_linear(make_task("gr"), lrs=lrs, batch_sizes=[8, 16])
    for run in runs:
        diverged = run.lr == 1e38
        assert bool(run.weight.isfinite().all()) != diverged
        assert (run.validation_map == 0) == diverged
    assert best_run(runs).lr == 1e-2
    # It has not touched its neighbour.
    alone = fit_linear(make_task("gr"), lrs=[1e-2], batch_sizes=[8, 16])
    for run, wanted in zip(runs[1::2], alone, strict=True):
        torch.testing.assert_close(run.weight, wanted.weight, rtol=1e-6, atol=1e-6)


def test_a_run_that_diverges_later_keeps_what_it_had():
    class Breaks(Foreign):
        def set_epoch(self, epoch):
            self.factor = math.nan if epoch == 3 else 1.0

        def forward(self, logits, labels):
            return self.factor * super().forward(logits, labels)

    (run,) = fit_linear(make_task(make_loss=Breaks), lrs=[1e-2], batch_sizes=[8])
    assert run.epoch in (1, 2)
    assert run.weight.isfinite().all()
    assert [record["validation_map"] for record in run.epochs[2:]] == [0, 0]
    assert run.epochs[2]["train_loss"] is None
    assert run.epochs[2]["recovery_map"] is None
    assert len(run.counts) == 2
    (run,) = fit_linear(make_task(make_loss=Breaks, validation=None), lrs=[1e-2], batch_sizes=[8])
    with pytest.raises(FloatingPointError):
        best_run([run])


def test_when_all_runs_diverge_the_error_says_which():
    runs = fit_linear(make_task("an"), lrs=[1e38, 3e38], batch_sizes=[8, 16])
    tried = "lr 1e+38 with batches of 8, lr 3e+38 with batches of 8, lr 1e+38 with batches of 16"
    advice = r"every run of the grid.*smaller learning rates.*standardize"
    with pytest.raises(FloatingPointError, match=advice) as e:
        best_run(runs)
    assert tried in str(e.value)


def test_best_run_compares_validation_maps():
    def run(lr, value, weight=1.0):
        return LinearRun(lr, 8, validation_map=value, weight=torch.tensor([weight]))

    assert best_run([run(1, 0.2), run(2, 0.5), run(3, 0.5)]).lr == 2
    assert best_run([run(1, 0.9, math.nan), run(2, 0.1)]).lr == 2
    assert best_run([run(1, 0.9, math.inf), run(2, 0.0)]).lr == 2
    assert best_run([run(1, None)]).lr == 1


# --- continuation ---------------------------------------------------------------------------------

GRID = dict(lrs=[1e-1, 1e-3], batch_sizes=[8, 16])


@pytest.mark.slow
@pytest.mark.parametrize("name", STATEFUL)
def test_a_run_continued_from_any_epoch_has_the_bits_of_one_that_was_not_interrupted(name, tmp_path):
    task, saved = make_task(name), []

    def save(state):
        saved.append(tmp_path / f"{len(saved)}.pt")
        save_state(saved[-1], state)

    wanted = fit_linear(task, **GRID, save=save)
    assert len(saved) == 2 * EPOCHS
    same_runs(fit_linear(task, **GRID), wanted)  # saving changes nothing
    for done, file in enumerate(saved, start=1):
        later = []
        continued = fit_linear(task, **GRID, checkpoint=load_state(file), save=later.append)
        same_runs(continued, wanted)
        assert len(later) == len(saved) - done
    for run in wanted:
        assert len(run.epochs) == EPOCHS


def test_a_finished_grid_is_not_trained_again(tmp_path, monkeypatch):
    task = make_task("role")
    wanted = fit_linear(task, **GRID, save=lambda state: save_state(tmp_path / "state.pt", state))
    monkeypatch.setattr(LinearGroup, "train_epoch", lambda self: pytest.fail("trained again"))
    same_runs(fit_linear(task, **GRID, checkpoint=load_state(tmp_path / "state.pt")), wanted)


@pytest.mark.parametrize("name", STATEFUL)
def test_same_bits_every_time_and_other_seeds_other_runs(name):
    first = fit_linear(make_task(name), **GRID)
    torch.manual_seed(99)  # which nobody draws from
    state = torch.get_rng_state()
    same_runs(fit_linear(make_task(name), **GRID), first)
    assert torch.equal(torch.get_rng_state(), state)
    other = fit_linear(make_task(name, seed=4), **GRID)
    assert not torch.equal(other[0].weight, first[0].weight)


def test_gradient_logits_are_used(monkeypatch):
    """Losses of this package go without autograd."""
    monkeypatch.setattr(torch.autograd, "grad", lambda *_: pytest.fail("autograd was called"))
    seen = []
    run = Loss.value_and_gradients
    monkeypatch.setattr(Loss, "value_and_gradients", lambda self, *a: seen.append(1) or run(self, *a))
    trained(LinearGroup(make_task("gr"), 8, [1e-2, 1e-3]), 1)
    assert len(seen) == 2 * math.ceil(N / 8)
