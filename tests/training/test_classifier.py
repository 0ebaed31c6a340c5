"""From labels to a classifier: every loss, every form of data, fine-tuning, LinearInit, the folder of a run."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csc_matrix, csr_matrix
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import Dataset
from trainings import TRACKED, first, observed_alone, sklearn_map, train

from spml_fast import FineTuning, LinearPhase, losses
from spml_fast.data import MultiLabelData, digit_attributes
from spml_fast.labels import single_positives
from spml_fast.losses import Linear
from spml_fast.training import RunRecord, Validation, classifier, load_classifier
from spml_fast.training.linear import LinearGroup
from spml_fast.training.recipe import Recipe
from spml_fast.training.run_folder import RunFolder

STATEFUL = ["gr", "role", "em_apl", "ll_cp"]


def split(n):
    """(rows that are trained on, rows held out): the fifth of the paper's code."""
    parts = train_test_split(np.arange(n), test_size=-(-n // 5), random_state=1200)
    return tuple(torch.from_numpy(np.sort(part)) for part in parts)


def known(labels, share=0.5):
    """Pseudo-labels: the truth of this share of the entries."""
    return torch.where(labels, 1, -1) * (torch.rand(labels.shape, generator=torch.manual_seed(0)) < share)


@pytest.fixture(scope="module")
def small(digits):
    """240 rows to train on, 120 to test on."""
    return first(digits.train, 240), first(digits.test, 120)


@pytest.fixture(scope="module")
def by_loss(digits):
    """The result of every loss on the digits: ``by_loss("gr")``."""
    results = {}

    def result(name):
        if name not in results:
            data = replace(digits.train, pseudo_labels=known(digits.train.labels))
            options = {"out": TRACKED} if name == "gr" else {}
            results[name] = train(data, test=digits.test, loss=name, **options)
        return results[name]

    return result


# --- every loss -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", losses.registry)
def test_every_loss_learns(name, by_loss, digits):
    """A ranking by chance has the share of positives for its mAP, 0.44 here. IU, to which nothing is negative,
    ranks hardly better."""
    chance = float(digits.test.labels.float().mean())
    result = by_loss(name)
    reached = result.metrics["test"]["map"]
    if name == "iu":
        assert reached < chance + 0.15
    else:
        assert reached > chance + 0.4
    full, tolerance = by_loss("bce").metrics["test"]["map"], 0.01
    assert reached <= full + tolerance
    assert result.metrics["loss"] == name
    assert result.metrics["train_mode"] == "linear"
    assert not result.model.training
    assert (result.estimates is not None) == (name == "role")
    assert next(result.model.parameters()).device.type == "cpu"


@pytest.mark.parametrize("name", ["gr", "role", "bce", "pr"])
def test_metrics_are_those_of_sklearn(name, by_loss, digits):
    result = by_loss(name)
    p = result.predict_proba(digits.test.x)
    assert p.shape == digits.test.labels.shape
    assert torch.equal(p, result.test_probabilities)
    assert result.metrics["test"]["map"] == pytest.approx(sklearn_map(p, digits.test.labels), abs=1e-12)
    rows = result.rows
    p = result.predict_proba(digits.train.x[rows])
    assert torch.equal(p, result.train_probabilities)
    wanted = sklearn_map(p, digits.train.labels[rows])
    assert result.metrics["recovery"]["map"] == pytest.approx(wanted, abs=1e-12)
    assert list(result.metrics["recovery"]["ap"]) == list(digits.train.names)
    if name == "role":
        assert result.estimates.shape == p.shape
        wanted = sklearn_map(result.estimates, digits.train.labels[rows])
        assert result.metrics["estimates"]["map"] == pytest.approx(wanted, abs=1e-12)
        observed = result.estimates.gather(1, digits.train.observed[rows][:, None])
        assert observed.min() > 0.5  # they start at 0.995, the others between 0.4 and 0.6
        assert result.estimates.min() < 0.1
    else:
        assert result.metrics["estimates"] is None


def test_selection_is_by_the_held_out_fifth(by_loss, digits):
    result = by_loss("gr")
    n = len(digits.train)
    rows, held = split(n)
    assert torch.equal(result.rows, rows)
    assert len(held) == result.metrics["n_validation"] == -(-n // 5)
    assert len(rows) == result.metrics["n_train"]
    p = result.predict_proba(digits.train.x[held])
    selected = result.metrics["selected"]
    assert selected["validation_map"] == pytest.approx(sklearn_map(p, digits.train.labels[held]), abs=1e-6)
    maps = [record["validation_map"] for record in result.metrics["epochs"]]
    assert selected["epoch"] == 1 + maps.index(max(maps))


def test_the_best_of_the_grid_is_returned(small):
    data, test = small
    result = train(data, test=test, linear=dict(lr=(1e-2, 1e-4), batch_size=(8, 32), epochs=3))
    grid = result.metrics["grid"]
    assert [(run["lr"], run["batch_size"]) for run in grid] == [(1e-2, 8), (1e-4, 8), (1e-2, 32), (1e-4, 32)]
    best = max(grid, key=lambda run: run["validation_map"])
    assert result.metrics["selected"] == best
    alone = train(data, test=test, linear=dict(lr=best["lr"], batch_size=best["batch_size"], epochs=3))
    torch.testing.assert_close(alone.test_probabilities, result.test_probabilities, rtol=1e-5, atol=1e-6)


def test_unobserved_entries_are_counted_in_every_epoch(by_loss, digits):
    result = by_loss("gr")
    rows = result.rows
    n, l = digits.train.labels[rows].shape
    assert result.counts.shape == (8, 2, 100)
    assert (result.counts.sum((1, 2)) == n * l - (digits.train.observed[rows] >= 0).sum()).all()
    hidden = digits.train.labels[rows].sum() - (digits.train.observed[rows] >= 0).sum()
    assert (result.counts[:, 0].sum(1) == hidden).all()
    assert all(record["recovery_map"] > 0.4 for record in result.metrics["epochs"])
    assert by_loss("an").counts is None  # nobody asked
    assert all(record["recovery_map"] is None for record in by_loss("an").metrics["epochs"])


def test_a_loss_module_is_copied(small):
    loss = losses.ANLSLoss(smoothing=0.2)
    by_module = train(small[0], loss=loss)
    by_name = train(small[0], loss={"name": "an_ls", "smoothing": 0.2})
    assert torch.equal(by_module.train_probabilities, by_name.train_probabilities)
    assert by_module.metrics["loss"] == "an_ls"
    assert by_module.metrics["loss_options"] == by_name.metrics["loss_options"] == {"smoothing": 0.2}
    stateful = losses.PNSLoss(seed=1)
    train(small[0], loss=stateful)
    assert stateful.step.item() == 0


def test_a_loss_of_somebody_else(small):
    class Assume(nn.Module):
        def forward(self, logits, labels):
            targets = nn.functional.one_hot(labels, logits.shape[1]).float()
            return nn.functional.binary_cross_entropy_with_logits(logits, targets)

    theirs, ours = train(small[0], loss=Assume()), train(small[0], loss="an")
    torch.testing.assert_close(theirs.train_probabilities, ours.train_probabilities, rtol=0, atol=1e-5)
    assert theirs.metrics["loss"] == "Assume"


# --- forms of data --------------------------------------------------------------------------------


def same_predictions(a, b, x, **tolerance):
    torch.testing.assert_close(a.predict_proba(x), b.predict_proba(x), **(tolerance or dict(rtol=0, atol=0)))
    torch.testing.assert_close(a.train_probabilities, b.train_probabilities, **(tolerance or dict(rtol=0, atol=0)))


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_standardize_is_training_on_standardised_features(small, sparse):
    """By the training rows alone; columns that never change stay as they are; sparse ones are not centred."""
    data, test = small
    scale = torch.linspace(0.01, 30, data.x.shape[1])
    shift = 0.0 if sparse else 3.0
    x, x_test = data.x * scale + shift, test.x * scale + shift
    rows = split(len(data))[0]
    mean = 0.0 if sparse else x[rows].double().mean(0)
    deviation = x[rows].double().std(0, correction=0)
    assert (deviation == 0).any()
    deviation[deviation == 0] = 1
    by_hand = train((((x - mean) / deviation).float(), data.observed))
    given = csr_matrix(x.numpy()) if sparse else x
    result = train((given, data.observed), linear=dict(standardize=True))
    tolerance = dict(rtol=0, atol=2e-4)
    for z in (x, x_test):
        scaled = ((z - mean) / deviation).float()
        torch.testing.assert_close(result.predict_proba(z), by_hand.predict_proba(scaled), **tolerance)
    plain = train((x, data.observed))
    assert (plain.train_probabilities - result.train_probabilities).abs().max() > 0.05


def test_standardize_makes_huge_features_trainable(small):
    data, _ = small
    wanted = train((data.x, data.observed), linear=dict(standardize=True))
    result = train((1e30 * data.x.double(), data.observed), linear=dict(standardize=True))
    torch.testing.assert_close(result.train_probabilities, wanted.train_probabilities, rtol=0, atol=2e-4)


@pytest.mark.parametrize("scale", [1e30, 1e38])
def test_features_too_large_to_learn_from_are_an_error(small, scale):
    data, _ = small
    with pytest.raises((FloatingPointError, ValueError)):
        train((scale * data.x, data.observed))


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("name", ["gr", "role"])
def test_sparse_features_are_dense_ones(name, standardize, small):
    """Standardised they are not: dense ones are centred as well."""
    data, test = small
    parts = csr_matrix(data.x.numpy())
    results = []
    for x, x_test in (
        (parts, csr_matrix(test.x.numpy())),
        (parts.astype(np.float64), csc_matrix(test.x.numpy())),
        (csc_matrix(parts), csr_matrix(test.x.numpy())),
        *([] if standardize else [(data.x, test.x)]),
    ):
        loss = {"name": "role", "expected_positives": 4.0} if name == "role" else name
        linear = dict(standardize=standardize)
        results.append(train((x, data.observed), test=(x_test, test.labels), loss=loss, linear=linear))
    for other in results[1:]:
        torch.testing.assert_close(other.test_probabilities, results[0].test_probabilities, rtol=0, atol=1e-6)
        same_predictions(other, results[0], test.x, rtol=0, atol=1e-6)
        assert other.metrics["test"]["map"] == pytest.approx(results[0].metrics["test"]["map"], abs=1e-6)


@pytest.mark.parametrize("standardize", [False, pytest.param(True)])  # fmt: skip
@pytest.mark.filterwarnings("ignore:invalid value encountered in sqrt")
def test_sparse_entries_in_parts_are_their_sums(small, standardize):
    data, _ = small
    whole = csr_matrix(data.x.numpy())
    starts = 2 * whole.indptr
    columns, halves = whole.indices.repeat(2), (whole.data / 2).repeat(2)
    parts = csr_matrix((halves, columns, starts), shape=whole.shape)
    a, b = (train((x, data.observed), linear=dict(standardize=standardize)) for x in (whole, parts))
    same_predictions(a, b, data.x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["gr", "pns", "ll_cp"])
def test_all_forms_of_labels_and_arrays_are_one(name, small):
    data, test = small
    index = data.observed
    matrix = nn.functional.one_hot(index, data.n_labels)
    wanted = train(MultiLabelData(data.x, observed=index, names=data.names), loss=name)
    for x, observed in (
        (data.x, index),
        (data.x.numpy(), index.numpy()),
        (data.x.double(), index.int()),
        (data.x, matrix.to(torch.int8)),
        (data.x, matrix.float()),
        (data.x, matrix.bool()),
        (data.x.numpy(), matrix.numpy()),
    ):
        result = train((x, observed), loss=name)
        assert torch.equal(result.rows, wanted.rows)
        same_predictions(result, wanted, test.x)
    same_predictions(result, wanted, test.x.numpy())


def test_observed_negatives_are_learnt_from(small):
    data, test = small
    observed = single_positives(data.labels, negatives=2, seed=0)
    with_negatives = train((data.x, observed), test=(test.x, test.labels), loss="iu", linear=dict(epochs=20))
    without = train((data.x, observed.clamp(min=0)), test=(test.x, test.labels), loss="iu", linear=dict(epochs=20))
    assert with_negatives.metrics["test"]["map"] > without.metrics["test"]["map"] + 0.1


def test_names(small):
    data, test = small
    pair, labels = (data.x, data.observed), test.labels
    assert train(pair, test=(test.x, labels)).metrics["names"] == [str(j) for j in range(9)]
    result = train(observed_alone(data), test=(test.x, labels))
    assert result.metrics["names"] == list(data.names) == list(result.metrics["test"]["ap"])
    assert train(data).metrics["names"] == list(data.names)
    # L is said by names, else by test, else by the largest index.
    fewer = (data.x, data.observed.clamp(max=5))
    assert train(fewer).metrics["n_labels"] == 6
    most = data.observed.clone()
    most[split(len(data))[0][0]] = 8
    assert train((data.x, most), test=(test.x, labels)).metrics["n_labels"] == 9
    named = MultiLabelData(*fewer[:1], observed=fewer[1], names=[*"abcdefg"], empty_labels="keep")
    assert train(named).metrics["n_labels"] == 7


def test_expected_positives_are_counted_or_given(small):
    data, _ = small
    result = train(data, loss="role")
    counted = data.labels[result.rows].float().sum(1).mean()
    assert result.metrics["loss_options"]["expected_positives"] == pytest.approx(float(counted), rel=1e-6)
    given = train(data, loss={"name": "role", "expected_positives": 2.5})
    assert given.metrics["loss_options"]["expected_positives"] == 2.5
    assert not torch.equal(given.train_probabilities, result.train_probabilities)
    with pytest.raises(ValueError, match=r"'epr' needs expected_positives, k: how many positives an instance has"):
        train((data.x, data.observed), loss="epr")


def test_full_labels_of_a_pair_are_those_of_the_data(small):
    data, test = small
    for name in ("bce", "bce_ls"):
        wanted = train(data, loss=name)
        for labels in (data.labels, data.labels.numpy(), data.labels.float()):
            same_predictions(train((data.x, labels), loss=name), wanted, test.x)
    without_observed = MultiLabelData(data.x, data.labels)
    same_predictions(train(without_observed, loss="bce"), train(data, loss="bce"), test.x)


def test_pseudo_labels_are_learnt_from(small):
    data, test = small
    nothing, some, all_of_them = (
        train(replace(data, pseudo_labels=known(data.labels, share)), test=test, loss="gpr")
        for share in (0, 0.5, 1)
    )
    maps = [result.metrics["test"]["map"] for result in (nothing, some, all_of_them)]
    assert maps == sorted(maps)
    assert maps[2] > maps[0] + 0.02
    same_predictions(nothing, train(data, loss="gr"), test.x, rtol=0, atol=1e-5)
    as_array = train(replace(data, pseudo_labels=known(data.labels).numpy()), loss="gpr")
    same_predictions(as_array, some, test.x)


def test_true_labels_of_iun_are_those_of_the_rows(small):
    """A positive that nobody observed costs nothing: were the rows mixed up, it would."""
    data, test = small
    result, negative = (train(data, test=test, loss=loss, linear=dict(epochs=25)) for loss in ("iun", "an"))
    assert result.metrics["test"]["map"] > negative.metrics["test"]["map"]
    epoch = result.metrics["selected"]["epoch"]
    logits = torch.logit(result.train_probabilities.double())
    end = losses.iun_loss(logits, data.observed[result.rows], data.labels[result.rows])
    assert end < result.metrics["epochs"][epoch - 1]["train_loss"]


# --- validation -----------------------------------------------------------------------------------


def test_validation_data_of_its_own(small):
    data, test = small
    result = train(data, validation=test, linear=dict(lr=(1e-2, 1e-3)))
    assert torch.equal(result.rows, torch.arange(len(data)))
    assert result.metrics["n_validation"] == len(test)
    wanted = sklearn_map(result.predict_proba(test.x), test.labels)
    assert result.metrics["selected"]["validation_map"] == pytest.approx(wanted, abs=1e-6)
    pair = train(data, validation=(test.x.numpy(), test.labels.numpy()), linear=dict(lr=(1e-2, 1e-3)))
    same_predictions(pair, result, test.x)


def test_without_validation_all_rows_train_and_the_last_epoch_is_kept(small):
    data, _ = small
    result = train(data, validation=0)
    assert torch.equal(result.rows, torch.arange(len(data)))
    assert result.metrics["n_validation"] == 0
    assert result.metrics["selected"] == {"lr": 1e-2, "batch_size": 16, "epoch": 8, "validation_map": None}
    assert len(train(data, validation=0, linear=dict(lr=[1e-2], batch_size=(16,))).metrics["grid"]) == 1


def test_validation_by_observed_labels(small):
    data, _ = small
    full, observed = train(data), train(data, validation=Validation(0.2, labels="observed"))
    held = np.setdiff1d(np.arange(len(data)), full.rows)
    seen = nn.functional.one_hot(data.observed[held], data.n_labels)
    for result, labels in ((full, data.labels[held]), (observed, seen)):
        wanted = sklearn_map(result.predict_proba(data.x[held]), labels)
        assert result.metrics["selected"]["validation_map"] == pytest.approx(wanted, abs=1e-6)
    # Without full labels there is nothing else, whatever is asked for.
    for labels in ("full", "observed"):
        unknown = train(observed_alone(data), validation=Validation(labels=labels))
        assert unknown.metrics["selected"] == observed.metrics["selected"]
        assert unknown.metrics["recovery"] is None
    own = MultiLabelData(data.x[held], observed=data.observed[held], names=data.names)
    rows = full.rows
    rest = MultiLabelData(data.x[rows], observed=data.observed[rows], names=data.names)
    assert train(rest, validation=own).metrics["selected"] == observed.metrics["selected"]


# --- randomness -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["linear", "finetune", "linear_init"])
def test_same_seed_same_result_and_the_global_streams_are_left_alone(mode, images):
    data, _ = images
    options = dict(loss="role", **phases(mode, cnn(), dict(epochs=2), dict(epochs=2, lr=1e-3)))

    def run(seed):
        np.random.seed(5)  # noqa: NPY002
        random.seed(5)
        before = torch.get_rng_state()
        result = train(data, seed=seed, **options)
        assert torch.equal(torch.get_rng_state(), before)
        draws = np.random.random(), random.random()  # noqa: NPY002
        np.random.seed(5)  # noqa: NPY002
        random.seed(5)
        assert draws == (np.random.random(), random.random())  # noqa: NPY002
        return result

    first_run = run(3)
    torch.manual_seed(123)
    again, other = run(3), run(4)
    assert torch.equal(again.train_probabilities, first_run.train_probabilities)
    assert torch.equal(again.estimates, first_run.estimates)
    assert not torch.equal(other.train_probabilities, first_run.train_probabilities)
    assert torch.equal(other.rows, first_run.rows)  # the split does not depend on the seed


# --- fine-tuning ----------------------------------------------------------------------------------


def phases(mode, trunk, linear, finetune):
    """Arguments of ``train``: the linear phase on the trunk's features, fine-tuning, or both."""
    if mode == "linear":
        return dict(linear=dict(trunk=trunk, **linear))
    return dict(linear=linear if mode == "linear_init" else None, finetune=dict(trunk=trunk, **finetune))


def cnn(norm=True):
    torch.manual_seed(0)
    between = [nn.BatchNorm2d(8), nn.Dropout(0.1)] if norm else []
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), *between, nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten()
    )


@pytest.fixture(scope="module")
def images():
    """(train, test), 160 and 100 images of 8 x 8."""
    splits = digit_attributes(images=True)
    return first(splits.train, 160), first(splits.test, 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("mode", ["finetune", "linear_init"])
def test_trunks_learn(mode, name, images):
    data, test = images
    trunk = cnn().train()
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    # What changes from epoch to epoch by itself would hide whether the loss falls.
    fixed = {
        "gr": dict(w=1.0, mu=0.7, sigma=1.0),
        "em_apl": dict(warmup=8 if mode == "linear_init" else 5),
    }
    loss = {"name": name, **fixed.get(name, {})}
    result = train(
        data, test=test, loss=loss, out=TRACKED, **phases(mode, trunk, dict(epochs=3), dict(lr=1e-3, epochs=6))
    )
    linear_epochs = 3 if mode == "linear_init" else 0
    records = result.metrics["epochs"]
    assert [record["phase"] for record in records] == ["linear"] * linear_epochs + ["finetune"] * 6
    assert [record["epoch"] for record in records] == list(range(1, 7 + linear_epochs))
    fallen = [record["train_loss"] for record in records]
    fallen = fallen[:6] if mode == "linear_init" or name != "em_apl" else fallen[:5]
    assert fallen[-1] < fallen[linear_epochs] < fallen[0] or (linear_epochs == 0 and fallen[-1] < fallen[0])
    assert result.counts.shape == (6 + linear_epochs, 2, 100)
    assert (result.counts.sum((1, 2)) == len(result.rows) * (data.n_labels - 1)).all()
    # The best epoch of fine-tuning by validation mAP.
    selected = result.metrics["selected"]
    tuned = [record for record in records if record["phase"] == "finetune"]
    best = max(record["validation_map"] for record in tuned)
    assert selected["validation_map"] == best
    assert selected["epoch"] == next(record["epoch"] for record in tuned if record["validation_map"] == best)
    held = np.setdiff1d(np.arange(len(data)), result.rows)
    wanted = sklearn_map(result.predict_proba(data.x[held]), data.labels[held])
    assert best == pytest.approx(wanted, abs=1e-6)
    assert result.metrics["test"]["map"] == pytest.approx(sklearn_map(result.test_probabilities, test.labels))
    # The trunk is copied, and the copy was trained.
    assert trunk.training
    for key, value in trunk.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not torch.equal(result.model.trunk[0].weight, trunk[0].weight)
    assert all(parameter.grad is None for parameter in trunk.parameters())


TINY = 1e-12
OPTIONS = {
    "gr": dict(epochs=6, warmup=0),
    "em_apl": dict(epochs=6, warmup=1),
    "ll_cp": dict(delta=0.02),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_linear_init_starts_where_the_linear_phase_stopped(name, images):
    """With a learning rate that changes nothing it is the linear phase on the trunk's features."""
    data, test = images
    trunk = cnn(norm=False)  # running statistics would move
    with torch.no_grad():
        features = trunk.eval()(data.x)
    on_features = MultiLabelData(features, data.labels, data.observed, data.names)
    common = dict(loss={"name": name, **OPTIONS.get(name, {})}, linear=dict(epochs=4))
    linear = train(on_features, **common)
    result = train(data, test=test, finetune=dict(trunk=trunk, lr=TINY, epochs=2), **common)
    assert torch.equal(result.rows, linear.rows)
    torch.testing.assert_close(result.train_probabilities, linear.train_probabilities, rtol=0, atol=1e-5)
    for a, b in zip(result.metrics["epochs"][:4], linear.metrics["epochs"], strict=True):
        assert a["validation_map"] == pytest.approx(b["validation_map"], abs=1e-6)
    chosen = linear.metrics["selected"]
    assert result.metrics["epochs"][4]["validation_map"] == pytest.approx(chosen["validation_map"], abs=1e-6)
    assert result.metrics["selected"]["lr"] == chosen["lr"]
    assert result.metrics["selected"]["finetune_lr"] == TINY
    if name == "role":
        torch.testing.assert_close(result.estimates, linear.estimates, rtol=0, atol=1e-5)
        fresh = train(data, finetune=dict(trunk=trunk, lr=TINY, epochs=1), loss=name)
        assert (fresh.estimates - result.estimates).abs().max() > 0.05
    else:
        assert result.estimates is None


@pytest.mark.parametrize(("name", "key"), [("em_apl", "pseudo_labels"), ("ll_cp", "flips"), ("pns", "step")])
def test_linear_init_carries_the_state_of_the_loss(name, key, images, monkeypatch):
    """Fine-tuning is handed the loss as the chosen epoch of the chosen run left it."""
    from spml_fast.training import finetune

    class StopError(Exception):
        pass

    def stop(trainer, module, *_, **__):
        seen.update(state=module.loss.state_dict()[key].clone(), first=module.first_epoch)
        raise StopError

    def fit(*args, **kwargs):
        runs.extend(real(*args, **kwargs))
        return runs

    seen, runs, real = {}, [], classifier.fit_linear
    monkeypatch.setattr(finetune, "finetune", stop)
    monkeypatch.setattr(classifier, "fit_linear", fit)
    loss = {"name": name, **OPTIONS.get(name, {})}
    with pytest.raises(StopError):
        train(images[0], loss=loss, linear=dict(epochs=4), finetune=dict(trunk=cnn()), validation=0)
    (run,) = runs
    assert run.epoch == 4
    assert torch.equal(seen["state"], run.loss_state[key])
    assert (seen["state"] > 0).any()
    assert seen["first"] == 5


def test_epochs_of_the_loss_count_on(images):
    """GR's warm-up is the linear phase: w has its first value until then, and moves on in fine-tuning."""
    data, _ = images
    result = train(data, linear=dict(epochs=3), finetune=dict(trunk=cnn(), epochs=4), validation=0)
    assert result.metrics["selected"]["epoch"] == 7
    wanted = Linear(0.0, 2.0, epochs=7, warmup=3, delay=1)(7)
    assert result.metrics["loss_options"]["w"] == pytest.approx(wanted) == pytest.approx(1.5)
    tuned = train(data, finetune=dict(trunk=cnn(), epochs=4), validation=0)
    assert tuned.metrics["loss_options"]["w"] == pytest.approx(Linear(0.0, 2.0, epochs=4, delay=1)(4))
    linear = train(data, linear=dict(trunk=cnn(), epochs=3), validation=0)
    assert linear.metrics["loss_options"]["w"] == pytest.approx(Linear(0.0, 2.0, epochs=3, delay=1)(3))


def recipe(loss="gr", **phases):
    return Recipe(loss, phases.get("linear"), phases.get("finetune"), seed=0, accelerator="cpu", progress=False)


def test_losses_are_told_what_they_must_know():
    six, four = LinearPhase(epochs=6), FineTuning(nn.Flatten(), epochs=4)
    for phases, (epochs, warmup) in (
        (dict(linear=six), (6, 0)),
        (dict(finetune=four), (4, 0)),
        (dict(linear=six, finetune=four), (10, 6)),
    ):
        for name in ("gr", "gpr"):
            loss = recipe(name, **phases).make_loss(20, 3, None)
            assert loss.schedules["w"] == Linear(0.0, 2.0, epochs=epochs, warmup=warmup, delay=1)
            assert loss.schedules["mu"] == Linear(0.5, 0.8, epochs=epochs, warmup=warmup)
        loss = recipe("em_apl", **phases).make_loss(20, 3, None)
        assert (loss.epochs, loss.warmup) == (epochs, min(5, epochs // 2))
        assert loss.pseudo_labels.shape == (20, 3)
    assert recipe("ll_cp").make_loss(20, 3, None).flips.shape == (20, 3)
    for name in ("epr", "role", "gpr"):
        assert recipe(name).make_loss(20, 3, 1.5).hyper["expected_positives"] == 1.5
    mine = recipe({"name": "gr", "epochs": 9, "w": (0.0, 10.0), "warmup": 2}).make_loss(20, 3, None)
    assert mine.schedules["w"] == Linear(0.0, 10.0, epochs=9, warmup=2, delay=1)


def test_linear_mode_with_a_trunk_is_training_on_its_features(images):
    data, test = images
    trunk = cnn()
    with torch.no_grad():
        x, x_test = (trunk.eval()(part.x) for part in images)
    trunk.train()
    result = train(data, test=test, linear=dict(trunk=trunk))
    on_features = train(MultiLabelData(x, data.labels, data.observed, data.names))
    torch.testing.assert_close(result.predict_proba(test.x), on_features.predict_proba(x_test), rtol=0, atol=1e-5)
    for key, value in result.model.trunk.state_dict().items():
        assert torch.equal(value, trunk.state_dict()[key]), key


class Images(Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i]


DRAWS = "a DataLoader draws from torch's global stream, so the new head starts elsewhere"


@pytest.mark.slow
@pytest.mark.parametrize("mode", [
    "linear", "linear_init", pytest.param("finetune")
])  # fmt: skip
def test_a_dataset_of_images_is_the_tensor(mode, images):
    data, test = images
    options = phases(mode, cnn(), dict(epochs=2), dict(epochs=2, lr=1e-3))
    tensor = train(data, **options)
    lazy = MultiLabelData(Images(data.x), data.labels, data.observed, data.names)
    by_dataset = train(lazy, test=(Images(test.x), test.labels), **options)
    assert torch.equal(by_dataset.train_probabilities, tensor.train_probabilities)
    assert torch.equal(by_dataset.test_probabilities, tensor.predict_proba(test.x))


@pytest.mark.parametrize("form", ["tensor", pytest.param("Dataset")])  # fmt: skip
def test_predictions_leave_the_global_stream_alone(form, images):
    data, _ = images
    model = train(data, linear=dict(trunk=cnn(), epochs=1)).model
    before = torch.get_rng_state()
    model.predict_proba(data.x if form == "tensor" else Images(data.x))
    assert torch.equal(torch.get_rng_state(), before)


# --- the folder of a run --------------------------------------------------------------------------


def strict_json(path):
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


LINEAR = dict(lr=(1e-2, 1e-3), epochs=3)
RUN = dict(loss="role", linear=LINEAR)


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """(folder, result) of a run that is done; read only."""
    folder = tmp_path_factory.mktemp("run") / "new" / "folder"
    return folder, train(small[0], test=small[1], out=folder, **RUN)


@pytest.mark.slow
def test_files_of_a_run(finished):
    folder, _ = finished
    names = {path.name for path in folder.iterdir()}
    assert names >= {"settings.json", "linear.pt", "model.safetensors", "metrics.json", "predictions.npz"}
    assert names >= {"report.html", "curves.png", "grid.png", "average_precision.png", "unobserved_positives.png"}
    assert not [name for name in names if name.endswith(".part")]
    assert all((folder / name).stat().st_size > 0 for name in names)


@pytest.mark.slow
def test_the_model_of_a_run_predicts_as_the_result(finished, small):
    folder, result = finished
    model = load_classifier(folder)
    assert not model.training
    assert torch.equal(model.predict_proba(small[1].x), result.test_probabilities)


def test_predictions_of_a_run(finished, small):
    folder, result = finished
    data, test = small
    with np.load(folder / "predictions.npz", allow_pickle=False) as arrays:
        wanted = {
            "train_rows": result.rows,
            "train_probabilities": result.train_probabilities,
            "train_observed": data.observed[result.rows],
            "train_labels": data.labels[result.rows],
            "train_estimates": result.estimates,
            "test_probabilities": result.test_probabilities,
            "test_labels": test.labels,
            "counts": result.counts,
        }
        assert set(arrays.files) == {*wanted, "names"}
        for name, value in wanted.items():
            np.testing.assert_array_equal(arrays[name], value.numpy())
            assert arrays[name].dtype == value.numpy().dtype
        assert arrays["names"].tolist() == list(data.names)


def test_metrics_of_a_run(finished, small):
    folder, result = finished
    assert strict_json(folder / "metrics.json") == result.metrics
    plain = train(small[0], test=small[1], **RUN).metrics
    for metrics in (plain, result.metrics):
        # Seconds differ, and only the run with a folder tracked recovery.
        for record in metrics["epochs"]:
            record.pop("recovery_map"), record.pop("seconds")
    assert {**plain, "seconds": None} == {**result.metrics, "seconds": None}


@pytest.mark.slow
def test_metrics_of_a_run_that_diverged_late_are_json(small, tmp_path):
    class Breaks(nn.Module):
        def set_epoch(self, epoch):
            self.factor = float("nan") if epoch == 3 else 1.0

        def forward(self, logits, labels):
            return self.factor * losses.an_loss(logits, labels)

    result = train(small[0], loss=Breaks(), linear=dict(epochs=4), out=tmp_path)
    assert result.metrics["selected"]["epoch"] < 3
    assert strict_json(tmp_path / "metrics.json")["selected"] == result.metrics["selected"]


@pytest.mark.slow
def test_the_same_call_on_a_finished_run_gives_the_same_without_training(small, tmp_path, monkeypatch):
    data, test = small
    before = train(data, test=test, out=tmp_path, **RUN)
    monkeypatch.setattr(LinearGroup, "train_epoch", lambda self: pytest.fail("trained again"))
    again = train(data, test=test, out=tmp_path, **RUN)
    assert torch.equal(again.test_probabilities, before.test_probabilities)
    assert torch.equal(again.estimates, before.estimates)
    assert torch.equal(again.counts, before.counts)
    assert {**again.metrics, "seconds": None} == {**before.metrics, "seconds": None}


CHANGES = [
    ("linear.lr", dict(linear=LINEAR | dict(lr=1e-2))),
    ("linear.batch_size", dict(linear=LINEAR | dict(batch_size=8))),
    ("linear.epochs", dict(linear=LINEAR | dict(epochs=4))),
    ("linear.standardize", dict(linear=LINEAR | dict(standardize=True))),
    ("loss", dict(loss="epr")),
    ("loss", dict(loss={"name": "role", "lam": 0.5})),
    ("loss", dict(loss={"name": "role", "expected_positives": 1.0})),
    ("seed", dict(seed=1)),
    ("validation", dict(validation=0.3)),
    ("validation.labels", dict(validation=Validation(labels="observed"))),
]


@pytest.mark.parametrize(("name", "changes"), CHANGES, ids=lambda v: str(v))
def test_a_run_of_other_settings_is_not_continued(name, changes, finished, small):
    folder, _ = finished
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    data, test = small
    with pytest.raises(ValueError, match=f"holds a run of other settings .*{name} was .*, is .*resume=False"):
        train(data, test=test, out=folder, **{**RUN, **changes})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def changed(data, **changes):
    parts = dict(x=data.x, labels=data.labels, observed=data.observed, names=data.names)
    return MultiLabelData(**{**parts, **changes})


def test_a_run_of_other_data_is_not_continued(finished, small):
    folder, _ = finished
    data, test = small
    x, observed = data.x.clone(), data.observed.clone()
    x[7, 20] += 1
    rows = split(len(data))[0]
    observed[rows[0]] = -1
    for other in (changed(data, x=x), changed(data, observed=observed), first(data, 200)):
        with pytest.raises(ValueError, match=r"holds a run of other settings .*data was"):
            train(other, test=test, out=folder, **RUN)


@pytest.mark.parametrize("what", ["validation labels", "validation data", "rows of sparse features", "trunk"])
def test_a_run_of_data_that_differ_elsewhere_is_not_continued(what, small, images, tmp_path, monkeypatch):
    monkeypatch.setattr(RunFolder, "write", lambda *_: None)  # pictures take time
    data, test = small
    options = dict(linear=dict(epochs=2))
    if what == "validation labels":  # of the held out fifth, which choose the epoch
        held, labels = split(len(data))[1], data.labels.clone()
        labels[held] = ~labels[held]
        calls = [(data, {}), (changed(data, labels=labels), {})]
    elif what == "validation data":
        calls = [(data, dict(validation=test)), (data, dict(validation=(test.x, ~test.labels)))]
    elif what == "rows of sparse features":  # the same entries, one row further down
        x = csr_matrix(data.x.numpy())
        moved = csr_matrix((x.data, x.indices, np.roll(x.indptr, 1)[[1, *range(2, len(x.indptr)), 0]]), x.shape)
        moved.indptr = np.r_[0, x.indptr[:-2], x.indptr[-1]]
        calls = [(changed(data, x=x), {}), (changed(data, x=moved), {})]
    else:
        data = images[0]
        other = cnn()
        nn.init.normal_(other[0].weight)
        calls = [(data, dict(linear=dict(epochs=2, trunk=trunk))) for trunk in (cnn(), other)]
    (before, with_before), (after, with_after) = calls
    train(before, out=tmp_path, **options | with_before)
    with pytest.raises(ValueError, match="holds a run of other settings"):
        train(after, out=tmp_path, **options | with_after)


@pytest.mark.slow
def test_resume_false_starts_anew(small, tmp_path):
    data, test = small
    train(data, test=test, out=tmp_path, **RUN)
    other = dict(loss="gr", linear=dict(epochs=2))
    anew = train(data, test=test, out=RunRecord(tmp_path, resume=False), **other)
    assert torch.equal(anew.test_probabilities, train(data, test=test, **other).test_probabilities)
    assert strict_json(tmp_path / "metrics.json")["loss"] == "gr"
    assert torch.equal(load_classifier(tmp_path).predict_proba(test.x), anew.test_probabilities)
    with np.load(tmp_path / "predictions.npz") as arrays:
        assert "train_estimates" not in arrays.files
    # and that is the run which is continued from now on
    train(data, test=test, out=tmp_path, **other)
    with pytest.raises(ValueError, match="loss was 'gr', is 'role'"):
        train(data, test=test, out=tmp_path, **RUN)


@pytest.mark.slow
def test_what_does_not_matter_may_change_between_calls(finished, small, capsys):
    folder, result = finished
    again = train(small[0], test=small[1], out=RunRecord(folder, track_recovery=False, title="digits"), **RUN)
    assert torch.equal(again.test_probabilities, result.test_probabilities)


@pytest.mark.slow
def test_a_run_with_a_trunk_needs_it_to_be_loaded(images, tmp_path):
    data, test = images
    options = dict(linear=dict(epochs=2), finetune=dict(trunk=cnn(), epochs=2, lr=1e-3))
    result = train(data, test=test, out=tmp_path, **options)
    assert (tmp_path / "finetune.ckpt").exists()
    with pytest.raises(ValueError, match="pass the trunk that it was trained with"):
        load_classifier(tmp_path)
    with pytest.raises(ValueError, match="the trunk has another shape"):
        load_classifier(tmp_path, nn.Sequential(nn.Flatten()))
    trunk = cnn()
    nn.init.zeros_(trunk[0].weight)
    model = load_classifier(tmp_path, trunk)
    assert torch.equal(model.predict_proba(test.x), result.test_probabilities)
    assert strict_json(tmp_path / "metrics.json") == result.metrics


def test_a_folder_without_a_finished_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors does not exist.*holds no finished run"):
        load_classifier(tmp_path)
