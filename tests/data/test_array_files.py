"""The literature's formatted_*.npy files, and anyone's arrays."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, save_npz

from spml_fast.data import ImageFiles, arrays, check_training, formatted

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 5))
LABELS = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0], [0, 0, 1], [1, 1, 0]], dtype=np.float64)
ONE_POSITIVE = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 1], [0, 1, 0]], dtype=np.float64)
ONE_OF_EACH = ONE_POSITIVE - np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
INDEX = [0, 1, 2, -1, 2, 1]


@pytest.fixture
def folder(tmp_path, write_image):
    for split, rows in (("train", 6), ("val", 4)):
        names = [f"{split}2014/{i}.jpg" for i in range(rows)]
        np.save(tmp_path / f"formatted_{split}_labels.npy", LABELS[:rows])
        np.save(tmp_path / f"formatted_{split}_labels_obs.npy", ONE_POSITIVE[:rows])
        np.save(tmp_path / f"formatted_{split}_images.npy", np.array(names))
        np.save(tmp_path / f"{split}_features_imagenet_resnet50.npy", X[:rows].astype(np.float32))
        for name in names:
            write_image(tmp_path / "images" / name)
    return tmp_path


def test_formatted_features(folder):
    train, test, validation = formatted(folder)
    assert validation is None
    assert len(train) == 6
    assert len(test) == 4
    torch.testing.assert_close(train.x, torch.from_numpy(X).float())
    assert torch.equal(train.labels, torch.from_numpy(LABELS).bool())
    assert train.observed.dtype == torch.int64
    assert train.observed.tolist() == INDEX
    assert test.observed is None
    assert train.names == ("0", "1", "2")
    assert formatted(folder, names=("a", "b", "c")).test.names == ("a", "b", "c")
    check_training(train)


def test_formatted_images(folder):
    train, test, _ = formatted(folder, images=folder / "images", size=8, augment=True)
    assert isinstance(train.x, ImageFiles)
    assert train.x[5].shape == (3, 8, 8)
    assert train.x.augment
    assert not test.x.augment
    assert test.x.files[0].endswith("images/val2014/0.jpg")
    assert train.observed.tolist() == INDEX


def test_formatted_with_observed_negatives(folder):
    np.save(folder / "formatted_train_labels_obs.npy", ONE_OF_EACH)
    observed = formatted(folder).train.observed
    assert observed.dtype == torch.int8
    np.testing.assert_array_equal(observed.numpy(), ONE_OF_EACH)


def test_formatted_without_observed_labels_is_simulated(folder):
    (folder / "formatted_train_labels_obs.npy").unlink()
    train = formatted(folder, seed=0, class_weight=[1, 1e-300, 1e-300]).train
    assert train.observed.tolist()[:4] == [0, 1, 0, -1]
    (folder / "formatted_train_uniform_labels_obs.npy").touch()
    with pytest.raises(FileNotFoundError, match=r"but formatted_train_uniform_labels_obs.npy: rename the one"):
        formatted(folder)


def test_formatted_kinds_of_features(folder):
    for split, rows in (("train", 6), ("val", 4)):
        np.save(folder / f"{split}_features_clip.npy", X[:rows, :2])
    with pytest.raises(
        ValueError, match="more than one kind of features: give one of 'clip', 'imagenet_resnet50'"
    ):
        formatted(folder)
    assert formatted(folder, features="clip").train.x.shape == (6, 2)
    assert formatted(folder, features="imagenet_resnet50").test.x.shape == (4, 5)


@pytest.mark.parametrize(
    "missing",
    ["formatted_train_labels.npy", "formatted_val_labels.npy", "train_features_*.npy", "val_features_*.npy"],
)
def test_formatted_names_the_missing_file(folder, missing):
    for file in list(folder.glob(missing)):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=missing.replace("*", r"\*")):
        formatted(folder)


@pytest.mark.parametrize("missing", ["formatted_train_images.npy", "images/val2014/2.jpg"])
def test_formatted_names_missing_images(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        formatted(folder, images=folder / "images")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("formatted_train_labels.npy", LABELS - 1, r"is -1.0 at \[0, 1\]; full labels are 0 or 1"),
        ("formatted_train_labels.npy", LABELS[0], r"must have shape \(N, L\), got \(3,\)"),
        ("formatted_val_labels.npy", LABELS, "imagenet_resnet50.npy has 4 rows, formatted_val_labels.npy has 6"),
        ("formatted_train_labels_obs.npy", ONE_POSITIVE[:5], "has 5 rows, formatted_train_labels.npy has 6"),
        ("formatted_train_labels_obs.npy", 2 * ONE_POSITIVE, r"observed\[0, 0\] is 2.0"),
        ("formatted_train_labels_obs.npy", ONE_POSITIVE[:, :2], r"got \(6, 2\)"),
        (
            "formatted_train_labels_obs.npy",
            ONE_POSITIVE[::-1],
            "contradicts the full labels in 4 places.*row 0, label 1",
        ),
        ("formatted_train_labels_obs.npy", ONE_POSITIVE - LABELS[::-1], "contradicts the full labels"),
        ("train_features_imagenet_resnet50.npy", X[0], r"\(N, D\) or \(N, C, H, W\), got \(5,\)"),
        ("train_features_imagenet_resnet50.npy", X.astype(complex), "must be real numbers, got complex128"),
        ("train_features_imagenet_resnet50.npy", X.astype(object), "not an array in NumPy's format"),
        ("train_features_imagenet_resnet50.npy", X.astype(str), "must be real numbers"),
    ],
)
def test_formatted_names_bad_files(folder, file, content, message):
    np.save(folder / file, content)
    with pytest.raises(ValueError, match=f"{file.split('.')[0] if 'rows' not in message else ''}.*{message}"):
        formatted(folder)


def test_formatted_other_mistakes(folder):
    with pytest.raises(ValueError, match=r"give features \('clip'\) or images \('here'\), not both"):
        formatted(folder, features="clip", images="here")
    with pytest.raises(ValueError, match="nothing is simulated: negatives would have no effect"):
        formatted(folder, negatives=1)
    np.save(folder / "formatted_train_images.npy", np.arange(6))
    with pytest.raises(ValueError, match=r"formatted_train_images.npy must be \(N,\) file names, got int64"):
        formatted(folder, images=folder / "images")
    (folder / "formatted_val_labels.npy").write_bytes(b"\x93NUMPY nonsense")
    with pytest.raises(ValueError, match=r"formatted_val_labels.npy is not an array in NumPy's format"):
        formatted(folder)


# --- arrays ---------------------------------------------------------------------------------------

FULL = {"x_train": X, "labels_train": LABELS, "x_test": X[:4], "labels_test": LABELS[:4]}


@pytest.fixture(params=["npz", "folder"])
def save(request, tmp_path):
    def save(**content):
        if request.param == "npz":
            np.savez(tmp_path / "mine.npz", **content)
            return tmp_path / "mine.npz"
        for key, value in content.items():
            np.save(tmp_path / f"{key}.npy", value)
        return tmp_path

    return save


def test_arrays(save):
    names = np.array(["sky", "sea", "sand"])
    train, test, validation = arrays(save(**FULL, names=names, observed_train=np.array(INDEX, dtype=np.int32)))
    assert validation is None
    torch.testing.assert_close(train.x, torch.from_numpy(X).float())
    assert torch.equal(test.labels, torch.from_numpy(LABELS[:4]).bool())
    assert train.observed.tolist() == INDEX
    assert train.names == test.names == ("sky", "sea", "sand")
    check_training(train)


def test_arrays_with_validation_are_simulated(save):
    path = save(**FULL, x_validation=X[4:], labels_validation=LABELS[4:])
    splits = arrays(path, seed=1)
    assert splits.train.observed.tolist()[3] == -1
    assert splits.train.observed.tolist() == arrays(path, seed=1).train.observed.tolist()
    assert splits.validation.labels.shape == (2, 3)
    assert arrays(path, positives=2).train.observed.shape == (6, 3)


def test_arrays_without_full_training_labels(save):
    content = {key: value for key, value in FULL.items() if key != "labels_train"}
    train = arrays(save(**content, observed_train=ONE_OF_EACH)).train
    assert train.labels is None
    np.testing.assert_array_equal(train.observed.numpy(), ONE_OF_EACH)
    assert train.names == ("0", "1", "2")


def test_arrays_for_training_alone(save):
    splits = arrays(
        save(x_train=X.reshape(6, 1, 5, 1), observed_train=np.array(INDEX), names=np.array(["a", "b", "c"]))
    )
    assert splits.test is None
    assert splits.train.x.shape == (6, 1, 5, 1)
    assert splits.train.n_labels == 3


def test_arrays_with_sparse_features(save, tmp_path):
    sparse = csr_matrix(np.where(X > 0, X, 0))
    path = save(**{key: value for key, value in FULL.items() if key != "x_train"})
    save_npz(tmp_path / "x_train.npz", sparse.tocsc())
    train = arrays(path).train
    assert isinstance(train.x, csr_matrix)
    assert train.x.dtype == np.float32
    np.testing.assert_allclose(train.x.toarray(), sparse.toarray(), rtol=1e-6)
    (tmp_path / "x_train.npz").write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match=r"x_train.npz is not a sparse matrix"):
        arrays(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x_train": None},
            "has labels_test, labels_train, x_test; expected x_train and labels_train or observed",
        ),
        ({"labels_train": None}, "expected x_train and labels_train or observed_train"),
        ({"labels_test": None}, "expected x_test and labels_test$"),
        ({"x_test": None}, "expected x_test and labels_test$"),
        ({"labels_train": LABELS[:5]}, "x_train has 6 rows, labels_train has 5"),
        ({"observed_train": np.array([1])}, "x_train has 6 rows, observed_train has 1"),
        ({"labels_test": LABELS[:4, :2]}, "labels_test has 2 labels, expected 3"),
        ({"labels_test": LABELS[:4] / 2}, r"labels_test is 0.5 at \[0, 0\]"),
        ({"names": np.array(["a"])}, "labels_train has 3 labels, expected 1"),
        ({"names": np.array("abc")}, r"names must have shape \(L,\), got \(\)"),
        ({"observed_train": np.array([0, 1, 2, 3, 0, 0])}, r"observed_train: observed\[3\] is 3"),
        (
            {"observed_train": np.array([1, 1, 1, 1, 2, 0])},
            "contradicts the full labels in 2 places.*row 0, label 1",
        ),
        ({"observed_train": np.zeros(6)}, "observed_train: .*must be int64, got torch.float64"),
        ({"observed_train": np.array(["a"] * 6)}, "observed_train must be numbers"),
        ({"x_train": np.array([["a"]] * 6)}, "x_train must be real numbers"),
    ],
)
def test_arrays_that_do_not_fit(save, change, message):
    content = {key: value for key, value in (FULL | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        arrays(save(**content))


def test_arrays_that_do_not_say_how_many_labels(save):
    with pytest.raises(ValueError, match="does not say how many labels there are"):
        arrays(save(x_train=X, observed_train=np.array(INDEX)))


def test_arrays_nowhere(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"mine.npz does not exist"):
        arrays(tmp_path / "mine.npz")
    with pytest.raises(ValueError, match="has no arrays"):
        arrays(tmp_path)
    np.save(tmp_path / "one.npy", X)
    with pytest.raises(ValueError, match=r"one.npy is one array; expected an .npz file"):
        arrays(tmp_path / "one.npy")
