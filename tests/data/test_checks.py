"""What a split is, and what training can refuse."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch.utils.data import TensorDataset

from spml_fast.data import (
    MultiLabelData,
    check_features,
    check_labels_observed,
    check_rows_observed,
    check_training,
)
from spml_fast.data.base import full_labels

X = torch.arange(12.0).reshape(4, 3)
LABELS = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=torch.bool)
OBSERVED = torch.tensor([0, 1, 1, -1])


def test_names_are_numbered_unless_given():
    assert MultiLabelData(X, LABELS).names == ("0", "1")
    data = MultiLabelData(X, observed=OBSERVED, names=("a", "b"))
    assert data.n_labels == 2
    assert len(data) == 4
    assert repr(data) == "MultiLabelData(Tensor (4, 3), 2 labels, given: observed)"
    assert "TensorDataset of 4" in repr(MultiLabelData(TensorDataset(X)))
    assert len(MultiLabelData(csr_matrix(X.numpy()))) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": LABELS[:3]}, "labels has 3 rows, x has 4"),
        ({"observed": OBSERVED[:2]}, "observed has 2 rows, x has 4"),
        ({"labels": LABELS.float()}, r"labels must be \(N, L\) bool, got torch.float32"),
        ({"labels": LABELS, "names": ("a",)}, "2 labels and 1 names"),
        ({"labels": LABELS, "names": ("a", "a")}, "names of labels must differ; 'a' stands for several"),
        ({"labels": LABELS, "pseudo_labels": LABELS[:3]}, "pseudo_labels has 3 rows, x has 4"),
        ({"labels": LABELS, "empty_labels": "drop"}, "empty_labels must be 'refuse' or 'keep', got 'drop'"),
    ],
)
def test_fields_that_do_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        MultiLabelData(X, **fields)


def test_pseudo_labels_are_a_tensor():
    guesses = LABELS.numpy().astype(int)
    assert torch.equal(MultiLabelData(X, LABELS, pseudo_labels=guesses).pseudo_labels, torch.from_numpy(guesses))
    with pytest.raises(TypeError, match="pseudo_labels must be a tensor or an array, got list"):
        MultiLabelData(X, LABELS, pseudo_labels=guesses.tolist())


@pytest.mark.parametrize("observed", [OBSERVED, torch.tensor([[1, 0], [0, 1], [-1, 1], [0, 0]], dtype=torch.int8)])
@pytest.mark.parametrize("x", [X, X.reshape(4, 3, 1, 1), csr_matrix(X.numpy()), TensorDataset(X)], ids=str)
def test_data_fit_for_training(x, observed):
    check_training(MultiLabelData(x, observed=observed, names=("a", "b")))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (MultiLabelData(X, LABELS), ValueError, "no observed labels"),
        (MultiLabelData(X, observed=OBSERVED), ValueError, "how many labels"),
        (MultiLabelData(X[:0], LABELS[:0], OBSERVED[:0]), ValueError, "no rows"),
        (MultiLabelData(X, LABELS, OBSERVED + 1), IndexError, r"observed\[1\] is 2"),
        (MultiLabelData(X, LABELS, OBSERVED.float()), TypeError, "int64"),
        (MultiLabelData(X / 0, LABELS, OBSERVED), ValueError, "row 0, column 0"),
    ],
)
def test_data_unfit_for_training(data, error, message):
    with pytest.raises(error, match=message):
        check_training(data)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_features_that_are_not_finite_are_named(bad):
    x = X.clone()
    x[2, 1] = x[3, 0] = bad
    with pytest.raises(ValueError, match=f"2 values are not, the first is {bad} at row 2, column 1"):
        check_features(x)
    with pytest.raises(ValueError, match=f"2 values are not, the first is {bad} at row 2, column 1"):
        check_features(csr_matrix(x.numpy()))
    with pytest.raises(ValueError, match=r"x\[2, 1, 0, 0\]"):
        check_features(x.reshape(4, 3, 1, 1))


def test_sparse_features_with_empty_rows():
    x = csr_matrix((np.array([1.0, np.nan]), np.array([2, 1]), np.array([0, 0, 1, 1, 2])), shape=(4, 3))
    with pytest.raises(ValueError, match="row 3, column 1"):
        check_features(x)


def test_rows_of_which_nothing_was_observed():
    check_rows_observed(OBSERVED[:3])
    check_rows_observed(torch.tensor([[0, -1], [1, 0]]))
    for observed in (OBSERVED, torch.tensor([[1, 0], [0, -1], [0, 1], [0, 0]])):
        with pytest.raises(ValueError, match="1 of 4 rows have no observed label, the first is row 3"):
            check_rows_observed(observed)


def test_labels_that_were_never_observed():
    check_labels_observed(OBSERVED, ("a", "b"))
    for observed in (OBSERVED, torch.tensor([[1, 1, -1, 0]])):
        with pytest.raises(ValueError, match=r"2 of 4 labels were never observed positive: c, d$"):
            check_labels_observed(observed, "abcd")
    with pytest.raises(ValueError, match="and 1 more"):
        check_labels_observed(torch.tensor([-1]), "abcdefghi")


def test_full_labels():
    for dtype in (torch.bool, torch.int64, torch.float32):
        assert torch.equal(full_labels(LABELS.to(dtype), "here"), LABELS)
    with pytest.raises(ValueError, match=r"here is -1 at \[0, 1\]; full labels are 0 or 1"):
        full_labels(np.array([[1, -1]]), "here")
    with pytest.raises(ValueError, match=r"here must have shape \(N, L\), got \(2,\)"):
        full_labels(np.array([1, 0]), "here")
    with pytest.raises(ValueError, match="here must be numbers"):
        full_labels(np.array([["a"]]), "here")
