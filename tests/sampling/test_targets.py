import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spml_fast import MinMax
from spml_fast.sampling import JointClass, pack_targets


def test_an_int_is_one_index():
    assert JointClass(2, 0) == JointClass((2,), (0,))
    assert JointClass(np.int64(1), torch.tensor(3)) == JointClass((1,), (3,))
    assert JointClass(range(2), {5}) == JointClass((0, 1), (5,))
    assert JointClass(np.array([0, 2])) == JointClass((0, 2))
    assert str(JointClass([0, 2], 1)) == "+0+2-1"


@pytest.mark.parametrize(
    ("I", "J", "error", "message"),
    [
        ([], [], ValueError, "I is empty"),
        ([0, 1], [1], ValueError, r"index 1 is in both I=\(0, 1\) and J=\(1,\)"),
        ([0, 3, 3], [], ValueError, "index 3 is repeated in I"),
        ([0], [2, 2], ValueError, "index 2 is repeated in J"),
        ([-1], [], ValueError, "index -1 in I is negative"),
        ([0.5], [], TypeError, "I must hold integers, got 0.5"),
        ("01", [], TypeError, "I must be class indices"),
        (True, [], TypeError, "I must be class indices"),
        (None, [], TypeError, "I must be class indices"),
    ],
)
def test_bad_joint_classes(I, J, error, message):
    with pytest.raises(error, match=message):
        JointClass(I, J)


def test_an_index_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"index 7 in J=\(1, 7\) is out of range: clf returns 3 class logits"):
        pack_targets([JointClass((0,), (1, 7))], 3)


@given(st.integers(1, 200), st.data())
def test_masks_hold_exactly_the_indices(n_classes, data):
    I = data.draw(st.sets(st.integers(0, n_classes - 1), min_size=1))
    J = data.draw(st.sets(st.integers(0, n_classes - 1))) - I
    masks = pack_targets([JointClass(I, J)], n_classes).masks.numpy().view(np.uint64)[0]
    for indices, words in zip((I, J), masks, strict=True):
        assert {c for c in range(64 * len(words)) if int(words[c // 64]) >> (c % 64) & 1} == indices


def test_gamma_plays_its_role():
    target = JointClass((0, 3), (1,))
    log_gamma = pack_targets([target], 4, MinMax(gamma=[0.5, 2, 3, 4], gamma_J=1.5)).log_gamma
    assert torch.allclose(log_gamma.exp(), torch.tensor([[0.5, 1.5, 3, 4]]))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (dict(gamma=0), "gamma must be positive"),
        (dict(gamma=[1, 2]), r"gamma must be a number or one number per class \(3,\), got \(2,\)"),
        (dict(gamma_J=float("nan")), "gamma_J must be positive"),
        (dict(temperature=0), "temperature must be positive and finite, got 0"),
        (dict(temperature=lambda I, J: -1.0), "temperature must be positive"),
        (dict(validity_temperature=float("inf")), "validity_temperature must be positive"),
    ],
)
def test_bad_ratios_and_temperatures(option, message):
    with pytest.raises(ValueError, match=message):
        pack_targets([JointClass((0,))], 3, MinMax(**option))
