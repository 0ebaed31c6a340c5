import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REAL = Path(os.environ.get("SPML_FAST_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.fixture
def real_data():
    """``real_data("mulan")``: a path among the real data, or the test is skipped."""

    def find(name):
        path = REAL / name
        if not path.exists():
            pytest.skip(f"{path} is not here (SPML_FAST_DATA says where real data are)")
        return path

    return find


@pytest.fixture
def write_image():
    """``write_image(path, width, height, value)``: an image, by the suffix of the path, of one grey level."""

    def write(path, width=20, height=10, value=128):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((height, width, 3), value, dtype=np.uint8)).save(path)
        return path

    return write
