import numpy as np
import pytest

from spml_fast.data.digits import (
    DIGIT_ATTRIBUTES,
    JOINT_CLASSES,
    joint_class_name,
    load_digits,
    single_positives,
)


def test_images_are_scaled_float32():
    digits = load_digits()
    assert digits.images.shape == (len(digits.digits), 1, 8, 8)
    assert digits.images.dtype == np.float32
    assert digits.images.min() == -1
    assert digits.images.max() == 1
    assert len(digits.digits) == 1264


def test_mapping_is_that_of_cifar_7to3():
    names = [joint_class_name(*joint_class) for joint_class in JOINT_CLASSES]
    assert names == ["A-B-C", "A+B-C", "B-A-C", "B+C-A", "C-A-B", "A+C-B", "A+B+C"]


def test_labels_follow_the_digit():
    digits = load_digits()
    assert digits.labels.dtype == bool
    assert digits.digits.dtype == np.int64
    assert set(digits.digits) == set(range(7))
    for digit, labels in zip(digits.digits, digits.labels, strict=True):
        assert tuple(np.flatnonzero(labels)) == DIGIT_ATTRIBUTES[digit]


def test_joint_classes_split_the_attributes():
    assert len(set(JOINT_CLASSES)) == 7
    for has, has_not in JOINT_CLASSES:
        assert sorted(has + has_not) == [0, 1, 2]


def test_single_positive_is_a_positive_and_is_seeded():
    labels = load_digits().labels
    first = single_positives(labels, seed=3)
    assert first.dtype == np.int64
    assert first.shape == (len(labels),)
    assert labels[np.arange(len(labels)), first].all()
    np.testing.assert_array_equal(first, single_positives(labels, seed=3))
    np.testing.assert_array_equal(first, single_positives(labels, np.random.default_rng(3)))
    assert (first != single_positives(labels, seed=4)).any()


def test_single_positive_is_uniform_among_the_positives():
    labels = np.tile([1, 0, 1, 1], (30_000, 1))
    share = np.bincount(single_positives(labels, seed=0), minlength=4) / len(labels)
    np.testing.assert_allclose(share, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.01)


def test_row_without_positive_is_named():
    with pytest.raises(ValueError, match="row 1"):
        single_positives(np.array([[1, 0], [0, 0]]))


def test_labels_matrix_must_be_a_matrix():
    with pytest.raises(ValueError, match=r"\(N, L\), got \(3,\)"):
        single_positives(np.array([1, 0, 1]))


def test_no_rows():
    assert single_positives(np.zeros((0, 3)), seed=0).shape == (0,)
