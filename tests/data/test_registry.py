"""Loaders by name; the synthetic data, which need no files."""

import inspect

import numpy as np
import pytest
import torch

from spml_fast import data
from spml_fast.data import check_labels_observed, check_rows_observed, check_training, load, synthetic
from spml_fast.data.base import Simulation
from spml_fast.data.registry import LOADERS, options_of

SMALL = {"n_train": 300, "n_test": 50, "n_features": 12, "n_labels": 6}


def test_every_loader_has_a_name_and_takes_a_simulation():
    assert set(LOADERS.values()) <= {getattr(data, name) for name in data.__all__}
    for name, loader in LOADERS.items():
        kinds = [p.kind for p in inspect.signature(loader).parameters.values()]
        assert kinds.count(inspect.Parameter.VAR_KEYWORD) == 1
        assert set(Simulation.__annotations__) < set(options_of(name))
        assert "seed" in options_of(name)


def test_load_is_the_loader():
    one = load("synthetic", **SMALL, seed=3, negatives=1)
    other = synthetic(**SMALL, seed=3, negatives=1)
    assert torch.equal(one.train.x, other.train.x)
    assert torch.equal(one.train.observed, other.train.observed)
    assert load("digits", images=True).train.x.shape == (1347, 1, 8, 8)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mulann", {}, r"no data set 'mulann', did you mean 'mulan'\? There are arrays, cifar10, "),
        ("xyz", {}, "no data set 'xyz'; There are arrays"),
        ("mulan", {"fodler": "."}, r"no option 'fodler', did you mean 'folder'\? There are folder, name, seed"),
        ("digits", {"simulation": {}}, "no option 'simulation'"),
        ("mulan", {"seed": 1}, "'mulan' needs folder and name; its options are folder, name, seed"),
    ],
)
def test_unknown_names(name, options, message):
    with pytest.raises(ValueError, match=message):
        load(name, **options)


def test_option_called_name(real_data):
    assert load("mulan", folder=real_data("mulan"), name="emotions").train.n_labels == 6


# --- synthetic ------------------------------------------------------------------------------------


def test_synthetic():
    train, test, _ = synthetic(**SMALL, positives_per_row=2.5)
    assert train.x.shape == (300, 12)
    assert test.x.shape == (50, 12)
    assert train.x.dtype == torch.float32
    per_row = train.labels.sum(dim=1)
    assert set(per_row.tolist()) == {2, 3}
    assert per_row.float().mean().item() == pytest.approx(2.5, abs=0.15)
    check_training(train)
    check_rows_observed(train.observed)
    check_labels_observed(train.observed, train.names)
    again = synthetic(**SMALL, positives_per_row=2.5)
    assert torch.equal(again.train.observed, train.observed)
    assert not torch.equal(synthetic(**SMALL, positives_per_row=2.5, seed=1).train.x, train.x)


def test_teacher_is_linear():
    train, test, _ = synthetic(3000, 500, 10, 5, 2)
    x, y = (np.asarray(v, dtype=np.float64) for v in (train.x, train.labels))
    weights = np.linalg.lstsq(x, y - y.mean(axis=0), rcond=None)[0]
    scores = test.x.double().numpy() @ weights
    right = np.take_along_axis(test.labels.numpy(), scores.argmax(axis=1)[:, None], axis=1)
    assert right.mean() > 0.95


@pytest.mark.parametrize("count", [1, 6])
def test_synthetic_extremes(count):
    train = synthetic(**SMALL | {"n_test": 0}, positives_per_row=count).train
    assert (train.labels.sum(dim=1) == count).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_train": 0}, "n_train must be at least 1, got 0"),
        ({"n_test": -1}, "n_test must be at least 0, got -1"),
        ({"n_labels": 0}, "n_labels must be at least 1"),
        ({"positives_per_row": 0.5}, "between 1 and 6, got 0.5"),
        ({"positives_per_row": 7}, "between 1 and 6, got 7"),
    ],
)
def test_synthetic_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        synthetic(**SMALL | options)
