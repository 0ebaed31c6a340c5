import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REAL = os.environ.get("SPML_FAST_DATA")  # a folder with mulan/ and cifar10-jpeg.tar.gz


@pytest.fixture
def real_data():
    """``real_data("mulan")``: a path among the real data, or the test is skipped."""

    def find(name):
        if not REAL or not Path(REAL, name).exists():
            pytest.skip(f"no {name} in SPML_FAST_DATA={REAL}")
        return Path(REAL, name)

    return find


@pytest.fixture
def write_image():
    """``write_image(path, width, height, value)``: an image, by the suffix of the path, of one grey level."""

    def write(path, width=20, height=10, value=128):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((height, width, 3), value, dtype=np.uint8)).save(path)
        return path

    return write
