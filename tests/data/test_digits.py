import numpy as np
import torch

from spml_fast.data.digits import (
    DIGIT_ATTRIBUTES,
    JOINT_CLASSES,
    PROPERTIES,
    digit_attributes,
    joint_class_name,
    load_digits,
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


# --- the digit attributes -------------------------------------------------------------------------


def test_properties_tell_all_digits_apart():
    table = np.array([[digit in has for has in PROPERTIES.values()] for digit in range(10)])
    assert len(PROPERTIES) >= 8
    assert table.any(axis=1).all()
    assert len(np.unique(table, axis=0)) == 10
    assert len(np.unique(table, axis=1).T) == len(PROPERTIES)
    assert table.any(axis=0).all()
    assert not table.all(axis=0).any()


def test_arithmetic_of_the_properties():
    assert PROPERTIES["prime"] == tuple(d for d in range(10) if d > 1 and all(d % k for k in range(2, d)))
    assert PROPERTIES["square"] == tuple(d for d in range(10) if round(d**0.5) ** 2 == d)
    assert PROPERTIES["multiple of three"] == tuple(range(0, 10, 3))


def test_digit_attributes():
    train, test, validation = digit_attributes(seed=0)
    assert validation is None
    assert len(train) + len(test) == 1797
    assert len(test) == 450
    assert train.x.shape == (1347, 64)
    assert train.x.dtype == torch.float32
    assert train.x.min() == 0
    assert train.x.max() == 1
    assert train.names == tuple(PROPERTIES)
    assert train.labels.any(dim=1).all()
    assert train.labels.gather(1, train.observed[:, None]).all()
    assert test.observed is None


def test_test_digits_are_stratified():
    train, test, _ = digit_attributes()
    shares = [split.labels.float().mean(dim=0) for split in (train, test)]
    torch.testing.assert_close(*shares, rtol=0, atol=0.005)


def test_seed_moves_the_observed_labels_alone():
    first, other = digit_attributes(seed=0), digit_attributes(seed=1)
    assert torch.equal(first.train.x, other.train.x)
    assert torch.equal(first.test.x, other.test.x)
    assert not torch.equal(first.train.observed, other.train.observed)


def test_digit_images():
    vectors, images = digit_attributes().train.x, digit_attributes(images=True).train.x
    assert images.shape == (1347, 1, 8, 8)
    torch.testing.assert_close(images.flatten(1), 2 * vectors - 1)
