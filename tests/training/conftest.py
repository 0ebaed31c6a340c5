import pytest

from spml_fast.data import digit_attributes


@pytest.fixture(scope="session")
def digits():
    """The 8x8 digits with nine attributes, as features (N, 64); one positive observed per training row."""
    return digit_attributes()
