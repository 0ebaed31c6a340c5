"""The example of CONTRIBUTING.md still fits the sources."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_diff_applies():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (diff,) = re.findall(r"^```diff\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    places = re.findall(r"^\+\+\+ b/(.*)$", diff, re.MULTILINE)
    assert len(places) == 5, "four places, and the benchmark's"
    assert "bench/eager.py" in places
    applied = subprocess.run(
        ["git", "apply", "--check", "-"], input=diff, cwd=ROOT, capture_output=True, text=True
    )
    assert applied.returncode == 0, applied.stderr
