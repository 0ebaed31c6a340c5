"""Simulated annotators; the label estimator: where it starts, what it gives and learns, what it refuses."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import chisquare, kstest

from spml_fast import losses
from spml_fast.data.digits import load_digits
from spml_fast.labels import LabelEstimator, check_observed, observed_matrix, single_positives

FLOATS = [torch.float32, torch.float64]


def logit(p):
    return math.log(p / (1 - p))


def signed_labels(rows, columns):
    return torch.randint(-1, 2, (rows, columns))


# --- simulated annotators -------------------------------------------------------------------------

EIGHT_ROWS = np.array(
    [
        [1, 1, 0, 1],
        [0, 1, 1, 0],
        [1, 1, 1, 1],
        [0, 0, 0, 1],
        [1, 0, 1, 1],
        [1, 1, 1, 0],
        [0, 1, 0, 1],
        [1, 1, 1, 1],
    ]
)


def test_draws_stay_what_they_were():
    """The README's figures of the demo come from these labels."""
    np.testing.assert_array_equal(single_positives(EIGHT_ROWS, seed=0), [0, 1, 1, 3, 0, 2, 3, 2])
    np.testing.assert_array_equal(single_positives(EIGHT_ROWS, seed=7), [1, 1, 0, 3, 0, 2, 3, 0])
    rng = np.random.default_rng(3)
    np.testing.assert_array_equal(single_positives(EIGHT_ROWS, seed=rng), [3, 2, 0, 3, 2, 1, 3, 1])
    np.testing.assert_array_equal(single_positives(EIGHT_ROWS, seed=rng), [1, 1, 0, 3, 0, 2, 1, 2])
    digits = single_positives(load_digits().labels, seed=0)
    np.testing.assert_array_equal(digits[:20], [0, 1, 1, 1, 2, 2, 1, 0, 0, 1, 1, 2, 2, 1, 0, 0, 1, 1, 2, 0])
    np.testing.assert_array_equal(np.bincount(digits), [410, 430, 424])


def test_equal_weights_draw_as_none():
    labels = np.random.default_rng(0).random((500, 7)) < 0.4
    plain = single_positives(labels, seed=5, empty="keep")
    np.testing.assert_array_equal(
        plain, single_positives(labels, class_weight=np.full(7, 3.0), seed=5, empty="keep")
    )
    np.testing.assert_array_equal(
        plain, single_positives(labels, instance_weight=np.ones((500, 7)), seed=5, empty="keep")
    )


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int64, torch.float32, torch.bfloat16]
)
def test_array_type_in_array_type_out(dtype, device):
    labels = torch.from_numpy(EIGHT_ROWS).to(device=device, dtype=dtype)
    observed = single_positives(labels, seed=0)
    assert observed.dtype == torch.int64
    assert observed.device == labels.device
    assert observed.tolist() == [0, 1, 1, 3, 0, 2, 3, 2]
    matrix = single_positives(labels, negatives=1, seed=0)
    assert matrix.dtype == torch.int8
    np.testing.assert_array_equal(matrix.cpu().numpy(), single_positives(EIGHT_ROWS, negatives=1, seed=0))
    assert isinstance(single_positives(EIGHT_ROWS), np.ndarray)


matrices = arrays.arrays(np.bool_, st.tuples(st.integers(0, 12), st.integers(1, 9)))


@settings(deadline=None)
@given(labels=matrices, positives=st.integers(1, 10), negatives=st.integers(0, 10), seed=st.integers(0, 9))
def test_what_every_simulation_holds(labels, positives, negatives, seed):
    observed = single_positives(labels, positives=positives, negatives=negatives, seed=seed, empty="keep")
    again = single_positives(labels, positives=positives, negatives=negatives, seed=seed, empty="keep")
    np.testing.assert_array_equal(observed, again)
    if positives == 1 and negatives == 0:
        assert observed.dtype == np.int64
        assert observed.shape == labels.shape[:1]
        np.testing.assert_array_equal(observed >= 0, labels.any(axis=1))
        assert labels[observed >= 0, observed[observed >= 0]].all()
    matrix = observed_matrix(observed, labels.shape[1])
    assert matrix.dtype == np.int8
    assert labels[matrix == 1].all()
    assert not labels[matrix == -1].any()
    np.testing.assert_array_equal((matrix == 1).sum(1), np.minimum(labels.sum(1), positives))
    np.testing.assert_array_equal((matrix == -1).sum(1), np.minimum((~labels).sum(1), negatives))


# Fixed seeds; each chi-square test would fail one exact sampler in 10,000, by its seed.
LEVEL = 1e-4


def test_positives_are_uniform():
    labels = np.tile([1, 0, 1, 1], (30_000, 1))
    counts = np.bincount(single_positives(labels, seed=0), minlength=4)
    assert counts[1] == 0
    assert chisquare(counts[[0, 2, 3]]).pvalue > LEVEL


@pytest.mark.parametrize("per", ["class", "instance", "both"])
def test_positives_follow_the_weights(per):
    labels = np.tile([1, 0, 1, 1, 1], (30_000, 1))
    weight = np.array([1.0, 9.0, 2.0, 5.0, 0.0])
    rows = np.broadcast_to(weight, labels.shape)
    weights = {
        "class": {"class_weight": torch.from_numpy(weight)},
        "instance": {"instance_weight": rows},
        "both": {"class_weight": np.sqrt(weight), "instance_weight": np.sqrt(rows)},
    }
    counts = np.bincount(single_positives(labels, **weights[per], seed=0), minlength=5)
    assert counts[1] == counts[4] == 0
    drawn = [0, 2, 3]
    assert chisquare(counts[drawn], len(labels) * weight[drawn] / weight[drawn].sum()).pvalue > LEVEL


def test_pairs_follow_the_weights():
    """Without replacement: {i, j} has probability w_i w_j / (W - w_i) / W + w_i w_j / (W - w_j) / W."""
    weight = np.array([1.0, 2.0, 4.0])
    observed = single_positives(np.ones((30_000, 3)), positives=2, class_weight=weight, seed=0)
    left_out = np.bincount(observed.argmin(axis=1), minlength=3)
    total = weight.sum()
    share = [
        weight[i] * weight[j] / total * (1 / (total - weight[i]) + 1 / (total - weight[j]))
        for i, j in ((1, 2), (0, 2), (0, 1))
    ]
    assert sum(share) == pytest.approx(1)
    assert chisquare(left_out, len(observed) * np.array(share)).pvalue > LEVEL


def test_negatives_are_uniform_whatever_the_weights():
    labels = np.tile([1, 0, 0, 0], (30_000, 1))
    observed = single_positives(labels, negatives=1, class_weight=[1.0, 1.0, 5.0, 0.0], seed=0)
    counts = (observed == -1).sum(axis=0)
    assert counts[0] == 0
    assert chisquare(counts[1:]).pvalue > LEVEL


def test_extreme_weights_are_still_weights():
    """The heavier one wins but for one draw in 1e300; weights as small as floats get are still more than 0."""
    labels = np.ones((1000, 3))
    assert (single_positives(labels, class_weight=[1e-300, 1.0, 0.0], seed=0) == 1).all()
    small = single_positives(labels, class_weight=[5e-324, 5e-324, 0.0], seed=0)
    assert set(small.tolist()) == {0, 1}


def test_no_more_than_there_is_weight():
    observed = single_positives(np.ones((3, 4)), positives=4, class_weight=[1, 1, 0, 0], seed=0)
    np.testing.assert_array_equal(observed, np.tile([1, 1, 0, 0], (3, 1)))


def test_rows_without_a_positive():
    labels = np.array([[1, 0], [0, 0], [0, 0], [0, 1]])
    with pytest.raises(ValueError, match="2 have none, the first is row 1 "):
        single_positives(labels)
    np.testing.assert_array_equal(single_positives(labels, empty="keep"), [0, -1, -1, 1])
    observed = single_positives(torch.from_numpy(labels), negatives=2, empty="keep")
    assert observed.tolist() == [[1, -1], [-1, -1], [-1, -1], [-1, 1]]


def test_row_whose_positives_have_no_weight():
    labels = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]])
    for empty in ("raise", "keep"):
        with pytest.raises(ValueError, match=r"row [12]"):
            single_positives(labels, class_weight=[1, 0, 1], empty=empty)
    with pytest.raises(ValueError, match="nonzero weight; 1 have none, the first is row 1"):
        single_positives(labels, class_weight=[1, 0, 1], empty="keep")


def test_no_rows():
    assert single_positives(np.zeros((0, 3)), seed=0).shape == (0,)
    assert single_positives(torch.zeros(0, 3), negatives=1).shape == (0, 3)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([1, 0, 1], {}, r"\(N, L\), got \(3,\)"),
        (np.zeros((2, 0)), {}, r"\(N, L\), got \(2, 0\)"),
        ([[1, -1]], {}, r"labels\[0, 1\] is -1; expected full labels"),
        ([[1.0, math.nan]], {}, r"labels\[0, 1\] is nan"),
        ([[1, 0]], {"positives": 0}, "positives must be an integer of at least 1, got 0"),
        ([[1, 0]], {"positives": 1.5}, "positives must be an integer"),
        ([[1, 0]], {"positives": True}, "positives must be an integer"),
        ([[1, 0]], {"negatives": -1}, "negatives must be an integer of at least 0, got -1"),
        ([[1, 0]], {"empty": "drop"}, "empty must be .*, got 'drop'"),
        ([[1, 0]], {"class_weight": [1, 2, 3]}, r"class_weight must have shape \(2,\), got \(3,\)"),
        ([[1, 0]], {"class_weight": [1, -2]}, r"class_weight\[1\] is -2.0"),
        ([[1, 0]], {"class_weight": [math.inf, 1]}, r"class_weight\[0\] is inf"),
        ([[1, 0]], {"instance_weight": [1, 2]}, r"instance_weight must have shape \(1, 2\), got \(2,\)"),
        ([[1, 0]], {"instance_weight": [[1, math.nan]]}, r"instance_weight\[0, 1\] is nan"),
    ],
)
@pytest.mark.parametrize("kind", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_bad_simulation(labels, options, message, kind):
    with pytest.raises(ValueError, match=message):
        single_positives(kind(labels), **options)


# --- observed labels ------------------------------------------------------------------------------


def test_observed_matrix_of_either_form(device):
    index = torch.tensor([2, -1, 0], device=device)
    matrix = observed_matrix(index, 3)
    assert matrix.dtype == torch.int8
    assert matrix.device == index.device
    assert matrix.tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert torch.equal(observed_matrix(matrix.float(), 3), matrix)
    as_array = observed_matrix(index.cpu().numpy(), 3)
    assert isinstance(as_array, np.ndarray)
    np.testing.assert_array_equal(as_array, matrix.cpu().numpy())


@pytest.mark.parametrize(
    ("observed", "error", "message"),
    [
        (torch.tensor([0, 3]), IndexError, r"observed\[1\] is 3; expected -1 \(none\) or 0 to 2"),
        (torch.tensor([-2]), IndexError, r"observed\[0\] is -2"),
        (torch.tensor([0.0]), TypeError, "must be int64, got torch.float32"),
        (torch.zeros(2, 4), ValueError, r"\(N,\) or \(N, 3\), got \(2, 4\)"),
        (torch.zeros(2, 3, 1), ValueError, r"got \(2, 3, 1\)"),
        (torch.tensor([[0, 1, 2]]), ValueError, r"observed\[0, 2\] is 2; expected 1"),
        (torch.tensor([[0, 1, 255]], dtype=torch.uint8), ValueError, r"observed\[0, 2\] is 255"),
        (torch.tensor([[0.0, 1.0, math.nan]]), ValueError, r"observed\[0, 2\] is nan"),
    ],
)
def test_bad_observed_labels(observed, error, message):
    for values in (observed, observed.numpy()):
        with pytest.raises(error, match=message):
            check_observed(values, 3)
        with pytest.raises(error, match=message):
            observed_matrix(values, 3)


# --- the start ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("label_dtype", [torch.int8, torch.int64, torch.float32, torch.bfloat16], ids=str)
def test_start_from_a_label_matrix(label_dtype, dtype, device):
    labels = signed_labels(200, 31)
    estimator = LabelEstimator(labels.to(label_dtype), dtype=dtype, device=device)
    table = estimator.logits.detach().cpu()
    assert table.shape == (200, 31)
    assert table.dtype == dtype
    assert estimator.logits.device.type == device.type
    assert torch.equal(table[labels == 1], torch.full_like(table[labels == 1], logit(0.995)))
    assert torch.equal(table[labels == -1], torch.full_like(table[labels == -1], logit(0.005)))
    assert (table[labels == 0].abs() <= logit(0.6) * (1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8], ids=str)
def test_start_from_labels_without_negatives(dtype):
    labels = torch.rand(50, 9) < 0.2
    table = LabelEstimator(labels.to(dtype)).logits.detach()
    assert torch.equal(table > 1, labels)
    assert (table[~labels].abs() <= logit(0.6) * (1 + 1e-6)).all()


def test_start_from_indices(device):
    labels = torch.randint(-1, 31, (200,), device=device)
    matrix = (labels[:, None] == torch.arange(31, device=device)).to(torch.int8)
    torch.manual_seed(1)
    by_index = LabelEstimator(labels, n_labels=31)
    torch.manual_seed(1)
    by_matrix = LabelEstimator(matrix)
    assert torch.equal(by_index.logits, by_matrix.logits)
    assert int((by_index.logits > 1).sum()) == int((labels >= 0).sum())


def test_unobserved_logits_start_uniform():
    table = LabelEstimator(torch.zeros(200, 100)).logits.detach().numpy()
    bound = logit(0.6)
    assert kstest(table.ravel(), "uniform", args=(-bound, 2 * bound)).pvalue > 1e-4
    q = 1 / (1 + np.exp(-table))
    assert 0.4 - 1e-6 <= q.min() < 0.401
    assert 0.599 < q.max() <= 0.6 + 1e-6


def test_generator_of_the_start():
    labels = torch.zeros(20, 9)

    def start(seed):
        return LabelEstimator(labels, generator=torch.Generator().manual_seed(seed)).logits

    before = torch.random.get_rng_state()
    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(LabelEstimator(labels).logits, LabelEstimator(labels).logits)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_start_from_probabilities(given, dtype, device):
    edges = torch.tensor([[0.0, 1.0, 1e-7, 1 - 1e-7, 1e-5, 0.5, 0.0, 1.0, 0.3]])
    p = torch.cat([torch.rand(50, 9), edges]).to(given)
    estimator = LabelEstimator(probabilities=p.requires_grad_(), device=device, dtype=dtype)
    clamped = p.detach().double().clamp(1e-5, 1 - 1e-5)
    wanted = (clamped / (1 - clamped)).log().to(dtype)
    torch.testing.assert_close(estimator.logits.detach().cpu(), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(estimator().detach().cpu().double(), clamped, rtol=1e-5, atol=1e-7)
    assert estimator.logits.is_leaf
    assert estimator.logits.abs().max().item() <= logit(1 - 1e-5) * (1 + 1e-6)


def test_start_is_a_copy():
    p = torch.full((2, 3), 0.5)
    estimator = LabelEstimator(probabilities=p)
    p.fill_(0.9)
    assert (estimator() == 0.5).all()


# --- what it gives --------------------------------------------------------------------------------


def test_estimates(device):
    estimator = LabelEstimator(signed_labels(20, 9)).to(device)
    index = torch.tensor([3, 3, 19, 0], device=device)
    assert torch.equal(estimator(), torch.sigmoid(estimator.logits))
    assert torch.equal(estimator(index), torch.sigmoid(estimator.logits)[index])
    assert estimator(index).requires_grad
    assert repr(estimator) == "LabelEstimator(rows=20, labels=9)"
    assert [name for name, _ in estimator.named_parameters()] == ["logits"]


def test_state_dict_round_trip(device):
    labels = signed_labels(20, 9)
    estimator = LabelEstimator(labels).to(device)
    assert set(estimator.state_dict()) == {"logits"}
    file = io.BytesIO()
    torch.save(estimator.state_dict(), file)
    file.seek(0)
    other = LabelEstimator(labels).to(device)
    assert not torch.equal(other.logits, estimator.logits)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.logits, estimator.logits)


def test_copies_and_dtypes():
    estimator = LabelEstimator(signed_labels(20, 9))
    twin = copy.deepcopy(estimator)
    assert torch.equal(twin.logits, estimator.logits)
    assert twin.logits.data_ptr() != estimator.logits.data_ptr()
    double = twin.double()
    assert double.logits.dtype == torch.float64
    assert torch.equal(double.logits, estimator.logits.double())


# --- what it learns -------------------------------------------------------------------------------


def role(estimator, z, labels, index, sparse):
    return losses.role_loss(z, labels, estimator.logits, index, expected_positives=1.5, sparse=sparse)


@pytest.mark.parametrize(
    ("table", "logits"),
    [
        (torch.float32, torch.float32),
        (torch.float32, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_gradients_of_a_table(table, logits, device):
    """Dense or sparse, only the rows of the batch, and those of repeated rows added up."""
    labels = torch.randint(0, 9, (20,))
    estimator = LabelEstimator(labels, n_labels=9, dtype=table).to(device)
    index = torch.tensor([3, 17, 3, 0, 3, 8], device=device)
    z = torch.randn(6, 9, device=device).to(logits).requires_grad_()
    observed = labels.to(device)[index]
    grads = {}
    for sparse in (False, True):
        estimator.zero_grad()
        role(estimator, z, observed, index, sparse).backward()
        grads[sparse] = estimator.logits.grad
        assert grads[sparse].dtype == table
        assert grads[sparse].is_sparse == sparse
    torch.testing.assert_close(grads[True].to_dense(), grads[False], rtol=1e-6, atol=1e-9)
    touched = grads[False].abs().sum(1).nonzero().flatten()
    assert torch.equal(touched, index.unique())
    assert z.grad.dtype == logits


def test_sparse_gradients_accumulate(device):
    labels = torch.randint(0, 9, (20,), device=device)
    estimator = LabelEstimator(labels, n_labels=9).to(device)
    z = torch.randn(20, 9, device=device)
    for sparse in (False, True):
        estimator.zero_grad()
        for index in torch.arange(20, device=device).chunk(4):
            role(estimator, z[index], labels[index], index, sparse).backward()
        if not sparse:
            wanted = estimator.logits.grad
    torch.testing.assert_close(estimator.logits.grad.to_dense(), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_sparse_adam_moves_the_rows_of_the_batch_as_adam_does(dtype, device):
    labels = torch.randint(0, 9, (20,))
    start = LabelEstimator(labels, n_labels=9, dtype=dtype).to(device)
    index = torch.tensor([3, 17, 5, 0, 3, 8], device=device)
    z = torch.randn(6, 9, device=device, dtype=dtype)
    moved = []
    for sparse, make in ((False, torch.optim.Adam), (True, torch.optim.SparseAdam)):
        estimator = copy.deepcopy(start)
        optimiser = make(estimator.parameters(), lr=0.01, eps=1e-30)  # which they add in different places
        for _ in range(5):
            optimiser.zero_grad()
            role(estimator, z, labels.to(device)[index], index, sparse).backward()
            optimiser.step()
        moved.append(estimator.logits.detach())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(moved[1], moved[0], rtol=tolerance, atol=tolerance)
    others = torch.ones(20, dtype=torch.bool, device=device)
    others[index] = False
    assert torch.equal(moved[1][others], start.logits[others])
    assert (moved[1][index] != start.logits[index]).any(1).all()


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True], ids=["Adam", "SparseAdam"])
def test_joint_training_recovers_labels_that_nobody_observed(sparse, device):
    """Two labels that always occur together, one of them observed: the estimates find the other."""
    kind = torch.randint(0, 3, (240,))
    x = torch.nn.functional.one_hot(kind, 3).float().to(device)
    observed = (kind + 3 * torch.randint(0, 2, (240,))).to(device)
    estimator = LabelEstimator(observed, n_labels=6).to(device)
    head = torch.nn.Linear(3, 6, device=device)
    loss = losses.ROLELoss(expected_positives=2.0, lam=1.0, sparse=sparse)
    optimisers = [
        torch.optim.Adam(head.parameters(), lr=0.05),
        (torch.optim.SparseAdam if sparse else torch.optim.Adam)(estimator.parameters(), lr=0.5),
    ]
    for _ in range(60):
        for index in torch.randperm(240, device=device).chunk(10):
            for optimiser in optimisers:
                optimiser.zero_grad()
            loss(head(x[index]), observed[index], estimator.logits, index).backward()
            for optimiser in optimisers:
                optimiser.step()
    truth = torch.stack([kind, kind + 3], dim=1)
    assert torch.equal(estimator().topk(2, dim=1).indices.sort(dim=1).values.cpu(), truth)
    assert estimator().sum(1).mean().item() == pytest.approx(2, abs=0.2)


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "from labels or from probabilities; neither was given"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"labels of shape \(R,\) need n_labels"),
        ({"labels": torch.zeros(3), "n_labels": 4}, TypeError, "must be int64, got torch.float32"),
        ({"labels": torch.tensor([0, 4]), "n_labels": 4}, IndexError, r"labels\[1\] is 4; expected -1 .* 0 to 3"),
        ({"labels": torch.tensor([-2, 0]), "n_labels": 4}, IndexError, r"labels\[0\] is -2"),
        ({"labels": torch.zeros(2, 3, 4)}, ValueError, r"shape \(R,\) or \(R, L\), got \(2, 3, 4\)"),
        ({"labels": torch.tensor([[0, 1], [2, 0]])}, ValueError, r"labels\[1, 0\] is 2; expected 1, 0 or -1"),
        ({"labels": torch.tensor([[0.0, 0.5]])}, ValueError, r"labels\[0, 1\] is 0\.5"),
        ({"labels": torch.tensor([[0.0, math.nan]])}, ValueError, r"labels\[0, 1\] is nan"),
        ({"probabilities": torch.zeros(3)}, ValueError, r"probabilities must have shape \(R, L\), got \(3,\)"),
        ({"probabilities": torch.tensor([[0.0, 1.1]])}, ValueError, "must lie between 0 and 1"),
        ({"probabilities": torch.tensor([[0.0, -0.1]])}, ValueError, "must lie between 0 and 1"),
        ({"probabilities": torch.tensor([[0.0, math.nan]])}, ValueError, "must lie between 0 and 1"),
        ({"labels": torch.zeros(2, 3), "dtype": torch.float16}, TypeError, r"float32 or float64, got .*float16"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        LabelEstimator(**arguments)


def test_table_of_a_dtype_that_role_does_not_take():
    estimator = LabelEstimator(torch.zeros(4, 3))
    z, labels = torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(TypeError, match="the table must be Double for logits of Double, got Float"):
        losses.role_loss(z, labels, estimator.logits, expected_positives=1.5)


def test_empty_training_set():
    assert LabelEstimator(torch.zeros(0, 3)).logits.shape == (0, 3)
    assert LabelEstimator(torch.zeros(0, dtype=torch.int64), n_labels=3)().shape == (0, 3)
