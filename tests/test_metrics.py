"""The metrics against scikit-learn, torchmetrics, sums by hand and slow loops."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics.functional.classification import multilabel_average_precision
from torchmetrics.retrieval import RetrievalPrecision, RetrievalRecall

from spml_fast import metrics
from spml_fast.metrics import (
    average_precision,
    evaluate,
    mean_average_precision,
    precision_recall_at,
    probability_counts,
    separation,
)


def problem(n, n_labels, positives=0.2, seed=0, levels=0):
    """Scores in [0, 1] float32 and labels; ``levels``: so many different scores at most."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, n_labels, generator=g)
    if levels:
        scores = (scores * levels).floor() / levels
    return scores, torch.rand(n, n_labels, generator=g) < positives


def by_sklearn(scores, labels):
    """A class at a time; 0 where there are no positives."""
    columns = zip(scores.T.numpy(), labels.T.numpy(), strict=True)
    return np.array([average_precision_score(y, s) if y.any() else 0.0 for s, y in columns])


# ----------------------------------------------------------------------------- average precision


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 40),
    n_labels=st.integers(1, 8),
    positives=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    levels=st.sampled_from([0, 1, 2, 5]),
    seed=st.integers(0, 2**31),
)
def test_average_precision_is_that_of_sklearn_and_torchmetrics(n, n_labels, positives, levels, seed):
    scores, labels = problem(n, n_labels, positives, seed, levels)
    ap = average_precision(scores, labels)
    assert ap.dtype == torch.float64
    np.testing.assert_allclose(ap, metrics.by_one_sort(scores, labels), rtol=0, atol=1e-12)
    np.testing.assert_allclose(ap, by_sklearn(scores, labels), rtol=0, atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics', for classes without positives
        theirs = multilabel_average_precision(
            scores, labels.long(), n_labels, average=None, thresholds=None, validate_args=False
        )
    np.testing.assert_allclose(ap, theirs.nan_to_num(0.0), rtol=0, atol=1e-6)


def test_average_precision_of_logits_that_saturate():
    """Only the order counts: sigmoid would make all of these 1."""
    scores = torch.tensor([[50.0], [60.0], [-math.inf], [math.inf]])
    assert average_precision(scores, torch.tensor([[True], [False], [False], [True]])).item() == (1 + 2 / 3) / 2


def test_average_precision_by_hand():
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.8, 0.5, 0.2], [0.7, 0.5, 0.3]])
    labels = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])
    ap = average_precision(scores, labels)
    torch.testing.assert_close(ap, torch.tensor([(1 + 2 / 3) / 2, 1 / 3, 0.0], dtype=torch.float64))
    assert mean_average_precision(scores, labels) == pytest.approx(float(ap.mean()), abs=1e-15)


def test_average_precision_over_blocks(monkeypatch):
    scores, labels = problem(50, 23, levels=7)
    whole = average_precision(scores, labels)
    monkeypatch.setattr(metrics, "BLOCK", 120)
    assert torch.equal(average_precision(scores, labels), whole)
    monkeypatch.setattr(metrics, "GPU_BLOCK", 120)
    torch.testing.assert_close(metrics.by_one_sort(scores, labels), whole, rtol=0, atol=1e-12)
    monkeypatch.setattr(metrics, "BLOCK", 1)
    assert torch.equal(average_precision(scores, labels), whole)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_average_precision_of_other_dtypes_and_arrays(dtype):
    scores, labels = problem(30, 4)
    scores = scores.to(dtype)
    expected = by_sklearn(scores.float() if dtype == torch.bfloat16 else scores, labels)
    np.testing.assert_allclose(average_precision(scores.requires_grad_(), labels), expected, rtol=0, atol=1e-12)
    if dtype != torch.bfloat16:
        array = scores.detach().numpy()[::-1]
        array.flags.writeable = False
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = average_precision(array, labels.numpy()[::-1])
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_average_precision_on_any_device(device, dtype):
    scores, labels = problem(300, 40, levels=50)
    scores = scores.to(dtype)
    scores[:2, 0] = torch.tensor([math.inf, -math.inf])
    expected = evaluate(scores, labels)
    ap = average_precision(scores.to(device), labels)
    assert ap.device.type == "cpu"
    np.testing.assert_allclose(ap, list(expected["ap"].values()), rtol=0, atol=1e-12)
    assert evaluate(scores.to(device), labels.to(device))["recall_at"] == expected["recall_at"]
    scores[3, 4] = math.nan
    with pytest.raises(ValueError, match=r"NaN: 1 are, the first is scores\[3, 4\]"):
        average_precision(scores.to(device), labels)


@pytest.mark.parametrize("transposed", [False, True])
def test_arguments_stay_as_they_are(transposed):
    scores, labels = problem(30, 30)
    scores = scores.T if transposed else scores
    before = scores.clone()
    evaluate(scores, labels)
    assert torch.equal(scores, before)


def test_nothing_is_printed_about_classes_without_positives(recwarn, capfd):
    scores, labels = problem(20, 3, positives=0.0)
    assert average_precision(scores, labels).tolist() == [0, 0, 0]
    assert average_precision(scores, ~labels).tolist() == [1, 1, 1]
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("metric", [average_precision, mean_average_precision, precision_recall_at, evaluate])
def test_bad_input(metric):
    scores, labels = problem(5, 3)
    with pytest.raises(TypeError, match=r"scores must be floating, got int64"):
        metric(scores.long(), labels)
    with pytest.raises(TypeError, match=r"labels must be bool.*got int64"):
        metric(scores, labels.long())
    with pytest.raises(ValueError, match=r"\(5, 3\) and \(5, 2\)"):
        metric(scores, labels[:, :2])
    with pytest.raises(ValueError, match=r"\(3,\) and \(3,\)"):
        metric(scores[0], labels[0])
    for empty in ((0, 3), (5, 0)):
        with pytest.raises(ValueError, match=rf"\({empty[0]}, {empty[1]}\); there must be a row and a class"):
            metric(torch.empty(empty), torch.empty(empty, dtype=torch.bool))
    scores[3, 1] = scores[4, 2] = math.nan
    with pytest.raises(ValueError, match=r"NaN: 2 are, the first is scores\[3, 1\]"):
        metric(scores, labels)


# -------------------------------------------------------------------- precision and recall at k


def test_precision_and_recall_at_by_hand():
    scores = torch.tensor([[0.9, 0.8, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.5, 0.5]])
    labels = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    at = precision_recall_at(scores, labels, ks=(3, 1, 2, 5))
    # Row 2 is all ties: the class of lower index comes first. Row 1 has no positives.
    assert at["precision_at"] == pytest.approx({1: (1 + 0 + 0) / 3, 2: (1 + 0 + 1) / 6, 3: (2 + 0 + 1) / 9})
    assert at["recall_at"] == pytest.approx({1: (1 / 3 + 0) / 2, 2: (1 / 3 + 1) / 2, 3: (2 / 3 + 1) / 2})


@pytest.mark.parametrize("positives", [0.05, 0.4])
def test_precision_and_recall_at_are_those_of_torchmetrics(monkeypatch, positives):
    scores, labels = problem(60, 11, positives)
    monkeypatch.setattr(metrics, "BLOCK", 100)
    at = precision_recall_at(scores, labels, ks=range(1, 12))
    row = torch.arange(60)[:, None].expand(60, 11).flatten()
    for k in range(1, 12):
        precision = RetrievalPrecision(empty_target_action="neg", top_k=k)(scores.flatten(), labels.flatten(), row)
        recall = RetrievalRecall(empty_target_action="skip", top_k=k)(scores.flatten(), labels.flatten(), row)
        assert at["precision_at"][k] == pytest.approx(float(precision), abs=1e-6)
        assert at["recall_at"][k] == pytest.approx(float(recall), abs=1e-6)


def test_precision_and_recall_at_without_positives_or_ks():
    scores, labels = problem(4, 3, positives=0.0)
    at = precision_recall_at(scores, labels, ks=[2])
    assert at["precision_at"] == {2: 0.0}
    assert math.isnan(at["recall_at"][2])
    assert precision_recall_at(scores, labels, ks=[4]) == {"precision_at": {}, "recall_at": {}}
    with pytest.raises(ValueError, match="ks must be at least 1, got 0"):
        precision_recall_at(scores, labels, ks=[1, 0])


# -------------------------------------------------------------------------------------- evaluate


def test_evaluate():
    scores, labels = problem(40, 4)
    labels[:, 2] = False
    result = evaluate(scores, labels, ["a", "<b>", "c", "d"])
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result["ap"].values()) == average_precision(scores, labels).tolist()
    assert result["map"] == mean_average_precision(scores, labels)
    assert result["classes_without_positives"] == ["c"]
    assert result["n"] == 40
    assert list(result["precision_at"]) == list(result["recall_at"]) == ["1", "3"]
    assert list(evaluate(scores, labels)["ap"]) == ["0", "1", "2", "3"]


def test_evaluate_without_any_positive_is_json():
    result = evaluate(*problem(3, 6, positives=0.0))
    assert result["recall_at"] == {"1": None, "3": None, "5": None}
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "a"]])
def test_evaluate_wants_a_name_of_its_own_for_every_class(names):
    with pytest.raises(ValueError, match="names must be 3 different names"):
        evaluate(*problem(5, 3), names)


# ------------------------------------------------------------------------- counts of probability


def counts_by_loop(p, labels, observed, bins):
    counts = np.zeros((2, bins), dtype=np.int64)
    for i in range(p.shape[0]):
        for j in range(p.shape[1]):
            seen = observed[i] == j if observed.ndim == 1 else observed[i, j] != 0
            if not seen:
                counts[0 if labels[i, j] else 1, min(int(p[i, j] * bins), bins - 1)] += 1
    return counts


@pytest.mark.parametrize("bins", [1, 7, 100])
@pytest.mark.parametrize("kind", ["index", torch.int8, torch.float32])
def test_probability_counts_are_those_of_a_loop(monkeypatch, kind, bins):
    p, labels = problem(37, 9)
    p[0, :3] = torch.tensor([0.0, 1.0, 0.5])
    p[1, :3] = torch.tensor([1.0, 0.0, 0.29])
    observed = torch.randint(-1, 9, (37,)) if kind == "index" else torch.randint(-1, 2, (37, 9)).to(kind)
    expected = counts_by_loop(p, labels, observed, bins)
    counts = probability_counts(p, labels, observed, bins)
    assert counts.dtype == torch.int64
    np.testing.assert_array_equal(counts, expected)
    monkeypatch.setattr(metrics, "BLOCK", 20)
    np.testing.assert_array_equal(probability_counts(p, labels, observed, bins), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_probability_counts_of_other_dtypes(dtype):
    p, labels = problem(20, 5)
    p = p.to(dtype)
    observed = torch.randint(-1, 5, (20,))
    expected = counts_by_loop(p.float() if dtype.itemsize == 2 else p, labels, observed, 100)
    np.testing.assert_array_equal(probability_counts(p, labels, observed), expected)


def test_probability_counts_on_any_device(device):
    p, labels = problem(30, 5)
    observed = torch.randint(-1, 5, (30,))
    expected = probability_counts(p, labels, observed)
    assert torch.equal(probability_counts(p.to(device), labels, observed), expected)
    assert torch.equal(probability_counts(p.to(device), labels.to(device), observed.to(device)), expected)


def test_probability_counts_of_nothing():
    counts = probability_counts(torch.empty(0, 4), torch.empty(0, 4).bool(), torch.empty(0).long(), bins=3)
    assert counts.tolist() == [[0] * 3] * 2


def test_probability_counts_refuses():
    p, labels = problem(4, 3)
    observed = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"labels bool, got torch\.float32 and torch\.int64"):
        probability_counts(p, labels.long(), observed)
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(4, 2\)"):
        probability_counts(p, labels[:, :2], observed)
    with pytest.raises(ValueError, match=r"\(4,\) or \(4, 3\), got \(3,\)"):
        probability_counts(p, labels, observed[:3])
    with pytest.raises(ValueError, match="bins must be at least 1"):
        probability_counts(p, labels, observed, bins=0)
    with pytest.raises(TypeError, match=r"int64, got torch\.float32"):
        probability_counts(p, labels, observed.float())
    with pytest.raises(IndexError, match=r"observed\[2\] is 3; expected -1 \(none\) or 0 to 2"):
        probability_counts(p, labels, torch.tensor([0, -1, 3, 0]))
    with pytest.raises(ValueError, match=r"observed\[1, 2\] is 2; expected 1, 0 or -1"):
        probability_counts(p, labels, torch.tensor([[0, 0, 1], [0, 0, 2], [1, 0, 0], [0, 0, 0]]))
    for wrong in (1.5, -0.1, math.nan):
        p[2, 1] = wrong
        with pytest.raises(ValueError, match=r"\[0, 1\], got probabilities\[2, 1\] = "):
            probability_counts(p, labels, observed)


def test_separation_is_that_of_sklearn_and_scipy():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 30, (3, 2, 20))
    auc, distance = separation(counts)
    centres = (np.arange(20) + 0.5) / 20
    for t in range(3):
        positive, negative = counts[t]
        truth = np.repeat([1, 0], [positive.sum(), negative.sum()])
        place = np.concatenate([np.repeat(centres, positive), np.repeat(centres, negative)])
        assert auc[t] == pytest.approx(roc_auc_score(truth, place), abs=1e-12)
        assert distance[t] == pytest.approx(wasserstein_distance(centres, centres, positive, negative), abs=1e-12)


def test_separation_without_positives_or_of_another_shape(recwarn):
    counts = torch.tensor([[[0, 0], [1, 2]], [[1, 0], [0, 1]]])
    auc, distance = separation(counts)
    np.testing.assert_array_equal(auc, [math.nan, 0])
    np.testing.assert_array_equal(distance, [math.nan, 0.5])
    assert not recwarn.list
    with pytest.raises(ValueError, match=r"\(T, 2, bins\), got \(2, 2\)"):
        separation(counts[0])
