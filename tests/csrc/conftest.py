import ctypes
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"


@pytest.fixture(scope="session")
def emulate(tmp_path_factory):
    """``emulate("losses", *flags)``: CUDA kernels compiled for the CPU, of emulated_losses.cpp, as a library."""

    def compile_library(name, *flags):
        library = tmp_path_factory.mktemp("emulator") / f"emulated_{name}.so"
        flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", "-Wno-unknown-pragmas", *flags]
        flags += ["-ffp-contract=off", f"-I{CSRC}", f"-I{HERE}"]
        subprocess.run(["g++", *flags, str(HERE / f"emulated_{name}.cpp"), "-o", str(library)], check=True)
        return ctypes.CDLL(str(library))

    return compile_library
