"""SinglePositiveClassifier among scikit-learn's own: its checks, cloning, grids, pipelines."""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array, csr_matrix
from scipy.special import expit
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from trainings import train

from spml_fast.training import SinglePositiveClassifier

ONE_CLASS_PER_ROW = "predictions are (N, L) of independent labels, the check wants one class per row"
EXPECTED_FAILED_CHECKS = {
    "check_estimator_sparse_array": ONE_CLASS_PER_ROW,
    "check_estimator_sparse_matrix": ONE_CLASS_PER_ROW,
    "check_classifiers_classes": ONE_CLASS_PER_ROW,
    "check_classifiers_train": ONE_CLASS_PER_ROW,
    "check_decision_proba_consistency": "the check wants one column of decision_function for two classes",
}


@pytest.mark.slow
@parametrize_with_checks([SinglePositiveClassifier()], expected_failed_checks=lambda _: EXPECTED_FAILED_CHECKS)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_check_fails_but_those_that_are_expected_to():
    # With a seed: by chance, two columns are in the order of one once in 200 times.
    results = check_estimator(SinglePositiveClassifier(random_state=0), on_fail=None, on_skip=None)
    assert {r["check_name"] for r in results if r["status"] == "failed"} == set(EXPECTED_FAILED_CHECKS)


def test_what_the_failing_checks_are_about_does_work():
    """The shapes are what is in their way: two classes have two columns, each of one order in both outputs."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4))
    y = np.array(["one", "two"])[(X[:, 0] > 0).astype(int)]
    model = SinglePositiveClassifier(random_state=0).fit(csr_matrix(X), y)
    assert_array_equal(model.classes_, ["one", "two"])
    scores, p = model.decision_function(X), model.predict_proba(X)
    assert scores.shape == p.shape == model.predict(X).shape == (60, 2)
    for column in range(2):
        assert_array_equal(scores[:, column].argsort(), p[:, column].argsort())
    assert (model.classes_[p.argmax(1)] == y).mean() > 0.8


@pytest.fixture(scope="module")
def data(digits):
    """X (300, 64), y (300,) one observed positive each, full labels (300, 9); and those of 200 test rows."""
    train, test = digits.train, digits.test
    return (
        train.x[:300].numpy(),
        train.observed[:300].numpy(),
        train.labels[:300].numpy().astype(int),
        test.x[:200].numpy(),
        test.labels[:200].numpy().astype(int),
    )


def make(**options):
    return SinglePositiveClassifier(**{"epochs": 5, "random_state": 0, **options})


def one_hot(y):
    return np.eye(9, dtype=int)[y]


# --- y --------------------------------------------------------------------------------------------


def test_learns(data):
    X, y, _, X_test, labels = data
    for options in ({}, dict(loss="role", expected_positives=4.0), dict(loss="an")):
        assert make(epochs=15, **options).fit(X, y).score(X_test, labels) > labels.mean() + 0.3


def test_index_y_of_any_values_is_the_matrix(data):
    X, y, _, X_test, _ = data
    words = np.array([*"abcdefghi"])
    wanted = make().fit(X, one_hot(y))
    assert_array_equal(wanted.classes_, np.arange(9))
    for values in (np.arange(9), 7 * np.arange(9) - 3, words, words.astype(object)):
        model = make().fit(X, values[y])
        assert_array_equal(model.classes_, values)
        assert_array_equal(model.predict_proba(X_test), wanted.predict_proba(X_test))
    assert_array_equal(make().fit(X.tolist(), y.tolist()).coef_, wanted.coef_)


def test_matrix_y_with_negatives(data):
    X, y, labels, X_test, labels_test = data
    observed = one_hot(y)
    observed[np.arange(300), labels.argmin(1)] -= 1 * (labels.min(1) == 0)
    assert (observed == -1).any()
    model = make(loss="iu", epochs=20).fit(X, observed)
    without = make(loss="iu", epochs=20).fit(X, y)
    assert model.score(X_test, labels_test) > without.score(X_test, labels_test)
    for dtype in (np.int8, float):
        assert_array_equal(make(loss="iu", epochs=20).fit(X, observed.astype(dtype)).coef_, model.coef_)


def test_columns_are_labels_even_if_nothing_was_observed_of_them(data):
    X, y, _, X_test, _ = data
    model = make(loss="an", epochs=15).fit(X, one_hot(y.clip(max=5)))
    assert model.predict_proba(X_test).shape == (200, 9)
    assert (model.predict(X_test)[:, 6:] == 0).all()


def test_full_labels_for_bce(data):
    X, y, labels, X_test, labels_test = data
    for loss in ("bce", "bce_ls"):
        model = make(loss=loss, epochs=15).fit(X, labels)
        assert model.score(X_test, labels_test) > make(epochs=15).fit(X, y).score(X_test, labels_test)
    assert_array_equal(make(loss="bce").fit(X, labels.astype(bool)).coef_, make(loss="bce").fit(X, labels).coef_)
    with pytest.raises(ValueError, match=r"loss 'bce' takes full labels \(N, L\), got y of shape \(300,\)"):
        make(loss="bce").fit(X, y)
    with pytest.raises(ValueError, match=r"y\[3, 1\] is -1; a matrix holds \(0, 1\)"):
        make(loss="bce").fit(X, changed(labels, (3, 1), -1))


def changed(values, place, value):
    values = values.astype(np.result_type(values, type(value)))
    values[place] = value
    return values


def test_bad_y(data):
    X, y, labels, _, _ = data
    for value in (2, -2, 0.5):
        with pytest.raises(ValueError, match=rf"y\[3, 1\] is {value}.*; a matrix holds \(0, 1, -1\)"):
            make().fit(X, changed(labels, (3, 1), value))
    with pytest.raises(ValueError, match="NaN"):
        make().fit(X, changed(labels, (3, 1), np.nan))
    with pytest.raises(ValueError, match="NaN"):
        make().fit(X, changed(y, 3, np.nan))
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        make().fit(X, y + 0.5)
    with pytest.raises(ValueError, match=r"y has one class, (np\.int64\()?4\)?; two or more are needed"):
        make().fit(X, np.full(300, 4))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        make().fit(X, y[:-1])
    with pytest.raises(ValueError, match="dim"):
        make().fit(X, labels[None])
    with pytest.raises(ValueError, match="requires y to be passed"):
        make().fit(X, None)


def test_bad_settings(data):
    X, y, _, _, _ = data
    for options, error, match in (
        (dict(loss="grr"), ValueError, "no loss is called 'grr'; there are an,"),
        (dict(loss="role"), ValueError, "'role' needs expected_positives"),
        (dict(loss="iun"), ValueError, "'iun' needs full labels"),
        (dict(loss="gpr"), ValueError, "'gpr' needs pseudo_labels"),
        (dict(loss_options={"foo": 1}), TypeError, "no hyper-parameter 'foo'"),
        (dict(lr=-1.0), ValueError, "lr must be positive"),
        (dict(lr=(1e-2, 1e-3)), ValueError, "without validation there is nothing to choose by"),
        (dict(batch_size=0), ValueError, "batch_size must be a positive integer, got 0"),
        (dict(epochs=0), ValueError, "epochs must be a positive integer, got 0"),
        (dict(validation=1.0), ValueError, "validation must be a share"),
        (dict(random_state="x"), ValueError, "cannot be used to seed"),
    ):
        with pytest.raises(error, match=match):
            make(**options).fit(X, y)


@pytest.mark.parametrize("before", [False, True], ids=["first fit", "later fit"])
def test_a_fit_that_failed_leaves_the_model_as_it_was(before, data):
    X, y, _, X_test, _ = data
    model = make()
    if before:
        wanted = model.fit(X, y).predict_proba(X_test)
    model.set_params(lr=-1.0)
    with pytest.raises(ValueError, match="lr must be positive"):
        model.fit(X, y.clip(max=3))
    if before:
        assert_array_equal(model.predict_proba(X_test), wanted)
        assert len(model.classes_) == 9
    else:
        with pytest.raises(NotFittedError):
            model.predict(X_test)


# --- predictions ----------------------------------------------------------------------------------


def test_predictions_are_those_of_the_linear_model(data):
    X, y, _, X_test, _ = data
    model = make(threshold=0.3).fit(X, y)
    assert model.coef_.shape == (9, 64)
    assert model.intercept_.shape == (9,)
    scores = X_test.astype(float) @ model.coef_.T.astype(float) + model.intercept_
    assert_allclose(model.decision_function(X_test), scores, rtol=1e-4, atol=1e-4)
    assert_allclose(model.predict_proba(X_test), expit(scores), atol=1e-5)
    assert_array_equal(model.predict(X_test), model.predict_proba(X_test) >= 0.3)
    assert model.predict(X_test).dtype == np.int64
    model.set_params(threshold=0.0)
    assert (model.predict(X_test) == 1).all()
    model.set_params(threshold=1.1)
    assert (model.predict(X_test) == 0).all()
    exactly = model.predict_proba(X_test)[4, 2]
    model.set_params(threshold=exactly)
    assert model.predict(X_test)[4, 2] == 1


def test_it_is_train_classifier(data):
    """With its seed, standardised, all rows, the last epoch."""
    X, y, _, X_test, _ = data
    model = make(random_state=5).fit(X, y)
    seed = np.random.RandomState(5).randint(2**31 - 1)
    linear = dict(lr=1e-2, batch_size=16, epochs=5, standardize=True)
    result = train((X, y), validation=0, linear=linear, seed=int(seed))
    assert_array_equal(model.coef_, result.model.head.weight.detach().numpy())
    assert_allclose(model.predict_proba(X_test), result.predict_proba(X_test), atol=1e-5)
    assert model.metrics_["epochs"][-1]["train_loss"] == result.metrics["epochs"][-1]["train_loss"]


def test_sparse_features_are_dense_ones(data):
    X, y, _, X_test, labels = data
    dense = make(standardize=False).fit(X, y)
    for kind in (csr_matrix, csr_array, lambda x: csr_matrix(x).tocsc(), lambda x: csr_matrix(x).tocoo()):
        model = make(standardize=False).fit(kind(X), y)
        for x in (X_test, kind(X_test)):
            assert_allclose(model.predict_proba(x), dense.predict_proba(X_test), atol=1e-5)
        assert model.score(kind(X_test), labels) == pytest.approx(dense.score(X_test, labels), abs=1e-6)
    scaled = make().fit(csr_matrix(X), y)
    by_hand = make(standardize=False).fit(csr_matrix(X / np.where(X.std(0) > 0, X.std(0), 1)), y)
    assert_allclose(scaled.coef_ * np.where(X.std(0) > 0, X.std(0), 1), by_hand.coef_, atol=1e-3)


def test_score_is_mean_average_precision(data):
    X, y, _, X_test, labels = data
    model = make().fit(X, y)
    wanted = average_precision_score(labels, model.predict_proba(X_test), average="macro")
    assert model.score(X_test, labels) == pytest.approx(wanted, abs=1e-6)
    for form in (labels.astype(bool), labels.astype(float), labels.tolist()):
        assert model.score(X_test, form) == model.score(X_test, labels)
    assert model.score(X_test, np.where(labels == 1, 1, -1)) == model.score(X_test, labels)
    empty = changed(labels, (slice(None), 2), 0)  # a label without positives counts 0
    others = np.delete(np.arange(9), 2)
    p = model.predict_proba(X_test)
    wanted = 8 / 9 * average_precision_score(empty[:, others], p[:, others], average="macro")
    assert model.score(X_test, empty) == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(ValueError, match="must have the same shape"):
        model.score(X_test, labels[:, :4])


def test_score_with_index_y(data):
    X, y, _, _, _ = data
    words = np.array([*"abcdefghi"])
    model = make().fit(X, words[y])
    wanted = average_precision_score(one_hot(y), model.predict_proba(X), average="macro")
    assert model.score(X, words[y]) == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(ValueError, match=r"y holds (np\.str_\()?'z'\)?, which is none of the classes"):
        model.score(X, np.where(y == 3, "z", words[y]))


def test_not_fitted(data):
    X, _, _, _, labels = data
    model = make()
    for call in (model.predict, model.predict_proba, model.decision_function):
        with pytest.raises(NotFittedError):
            call(X)
    with pytest.raises(NotFittedError):
        model.score(X, labels)


def test_features_seen(data):
    X, y, _, X_test, _ = data
    model = make().fit(X, y)
    assert model.n_features_in_ == 64
    assert not hasattr(model, "feature_names_in_")
    with pytest.raises(ValueError, match="X has 63 features, but SinglePositiveClassifier is expecting 64"):
        model.predict(X_test[:, :-1])
    with pytest.raises(ValueError, match="NaN"):
        model.predict(changed(X_test, (3, 1), np.nan))
    with pytest.raises(ValueError, match="NaN"):
        make().fit(changed(X, (3, 1), np.nan), y)


def test_feature_names(data):
    pandas = pytest.importorskip("pandas")
    X, y, _, _, _ = data
    names = [f"pixel {i}" for i in range(64)]
    model = make().fit(pandas.DataFrame(X, columns=names), pandas.Series(y))
    assert_array_equal(model.feature_names_in_, names)
    assert_array_equal(model.coef_, make().fit(X, y).coef_)


# --- randomness, copies ---------------------------------------------------------------------------


def test_random_state(data):
    X, y, _, _, _ = data
    model = make().fit(X, y)
    first = model.coef_.copy()
    assert_array_equal(model.fit(X, y).coef_, first)
    assert_array_equal(make().fit(X, y).coef_, first)
    assert not np.array_equal(make(random_state=1).fit(X, y).coef_, first)
    generator = np.random.RandomState(3)
    drawn = [make(random_state=generator).fit(X, y).coef_ for _ in range(2)]
    assert not np.array_equal(*drawn)
    again = make(random_state=np.random.RandomState(3)).fit(X, y).coef_
    assert_array_equal(again, drawn[0])
    unseeded = make(random_state=None)
    assert not np.array_equal(unseeded.fit(X, y).coef_, make(random_state=None).fit(X, y).coef_)


def test_parameters_stay_as_they_were_given(data):
    X, y, _, _, _ = data
    given = dict(
        loss="an_ls",
        loss_options={"smoothing": 0.2},
        lr=(1e-2, 1e-3),
        batch_size=[8, 16],
        epochs=2,
        validation=0.3,
    )
    model = make(**given)
    params = model.get_params()
    assert params == {**SinglePositiveClassifier(**given).get_params(), "random_state": 0}
    fitted = model.fit(X, y)
    assert fitted is model
    assert model.get_params() == params
    assert model.loss_options == {"smoothing": 0.2}
    assert len(model.metrics_["grid"]) == 4
    assert model.metrics_["n_validation"] == 90
    copy = clone(model)
    assert copy.get_params() == params
    assert not hasattr(copy, "coef_")
    assert_array_equal(copy.fit(X, y).coef_, model.coef_)
    assert is_classifier(model)


def test_pickle(data):
    X, y, _, X_test, labels = data
    model = make().fit(X, np.array([*"abcdefghi"])[y])
    copy = pickle.loads(pickle.dumps(model))
    assert_array_equal(copy.predict_proba(X_test), model.predict_proba(X_test))
    assert_array_equal(copy.classes_, model.classes_)
    assert copy.score(X_test, labels) == model.score(X_test, labels)
    assert copy.metrics_ == model.metrics_


# --- with others ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_grid_search(data):
    X, y, labels, X_test, labels_test = data
    grid = {"loss": ["an", "gr", "role"], "lr": [1e-2, 1e-5]}
    search = GridSearchCV(make(expected_positives=4.0), grid, cv=3, error_score="raise")
    search.fit(X, y)
    scores = search.cv_results_["mean_test_score"]
    assert scores.shape == (6,)
    assert np.isfinite(scores).all()
    assert search.best_params_["lr"] == 1e-2  # the other has hardly started
    assert search.best_score_ == scores.max()
    assert search.score(X_test, labels_test) == search.best_estimator_.score(X_test, labels_test)
    assert search.predict(X_test).shape == (200, 9)
    by_matrix = GridSearchCV(make(), {"lr": [1e-2, 1e-5]}, cv=3, error_score="raise").fit(X, one_hot(y))
    assert by_matrix.best_params_ == {"lr": 1e-2}
    assert np.isfinite(cross_val_score(make(loss="bce"), X, labels, cv=3, error_score="raise")).all()


def test_in_a_pipeline_behind_a_scaler(data):
    X, y, _, X_test, labels = data
    pipeline = make_pipeline(StandardScaler(), make(standardize=False)).fit(X, y)
    own = make().fit(X, y)
    assert_allclose(pipeline.predict_proba(X_test), own.predict_proba(X_test), atol=1e-3)
    assert pipeline.score(X_test, labels) == pytest.approx(own.score(X_test, labels), abs=1e-3)
    search = GridSearchCV(pipeline, {"singlepositiveclassifier__loss": ["an", "gr"]}, cv=3, error_score="raise")
    assert np.isfinite(search.fit(X, y).cv_results_["mean_test_score"]).all()


def test_in_a_pipeline_behind_sparse_features(data):
    X, y, _, X_test, labels = data
    counts, counts_test = (csr_matrix((16 * x).round().astype(int)) for x in (X, X_test))
    tfidf = TfidfTransformer().fit(counts)
    pipeline = make_pipeline(TfidfTransformer(), make(standardize=False, epochs=15)).fit(counts, y)
    dense = make(standardize=False, epochs=15).fit(tfidf.transform(counts).toarray(), y)
    p = dense.predict_proba(tfidf.transform(counts_test).toarray())
    assert_allclose(pipeline.predict_proba(counts_test), p, atol=1e-5)
    assert pipeline.score(counts_test, labels) > labels.mean() + 0.3
