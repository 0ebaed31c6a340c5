"""Builds spml_fast._C: the CPU kernels always, the CUDA kernels when they can be compiled.

Environment:
  SPML_FAST_CUDA=1 / 0   build the CUDA kernels or fail / never build them (default: when possible)
  TORCH_CUDA_ARCH_LIST   CUDA architectures, as for any PyTorch extension (default 8.0;9.0;10.0+PTX)
  MAX_JOBS               parallel compiler processes
"""

import os
import re
import sys
from pathlib import Path

import pybind11
import torch
from setuptools import setup
from torch.utils import cpp_extension

DEFAULT_CUDA_ARCHS = "8.0;9.0;10.0+PTX"

# The kernels promise the same bits on every machine (csrc/core/math.h): no contraction to fused multiply-add.
CXX_FLAGS = ["-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
# Python passes -fwrapv to every extension; with it loops over int counters vectorise badly: half the speed.
CXX_FLAGS += ["-fno-wrapv", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas"]
NVCC_FLAGS = ["-O3", "-fmad=false", "--expt-relaxed-constexpr"]


def choose_cuda() -> tuple[bool, str]:
    """Whether to build the CUDA kernels, and the sentence that says why."""
    forced = os.environ.get("SPML_FAST_CUDA", "")
    if forced not in ("", "0", "1"):
        sys.exit(f"SPML_FAST_CUDA={forced!r}: expected 0, 1 or unset")
    if forced == "0":
        return False, "CPU only: SPML_FAST_CUDA=0"
    missing = []
    if torch.version.cuda is None:
        missing.append(f"PyTorch {torch.__version__} is not a CUDA build")
    if cpp_extension.CUDA_HOME is None or not Path(cpp_extension.CUDA_HOME, "bin/nvcc").exists():
        missing.append("nvcc was not found (CUDA_HOME)")
    if missing and forced == "1":
        sys.exit("SPML_FAST_CUDA=1, but " + " and ".join(missing))
    if missing:
        return False, "CPU only: " + " and ".join(missing)
    return True, f"CPU and CUDA: PyTorch {torch.__version__} with nvcc of {cpp_extension.CUDA_HOME}"


def extension(cuda: bool, note: str):
    sources = sorted(str(p) for p in Path("csrc").rglob("*.cpp"))
    macros = {"SPML_TORCH_VERSION": torch.__version__, "SPML_BUILD_NOTE": note}
    flags = {"cxx": list(CXX_FLAGS)}
    if sys.platform == "linux":
        flags["cxx"].append("-fopenmp")  # at::parallel_for is a template over OpenMP
    build = cpp_extension.CppExtension
    if cuda:
        sources += sorted(str(p) for p in Path("csrc").rglob("*.cu"))
        archs = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_CUDA_ARCHS)
        macros["SPML_CUDA_ARCHS"] = archs
        flags["cxx"].append("-DSPML_WITH_CUDA")
        flags["nvcc"] = [*NVCC_FLAGS, "-DSPML_WITH_CUDA"]
        build = cpp_extension.CUDAExtension
    # For the C++ compiler alone: nvcc passes quotes and blanks on to its own tools less reliably.
    flags["cxx"] += [f'-D{name}="{value}"' for name, value in macros.items()]
    return build(
        "spml_fast._C",
        sources,
        include_dirs=[str(Path("csrc").resolve()), pybind11.get_include()],
        extra_compile_args=flags,
        depends=[str(p) for p in Path("csrc").rglob("*") if p.suffix in (".h", ".cuh")],
    )


build_cuda, build_note = choose_cuda()
print(f"spml-fast: {build_note}", file=sys.stderr)

# A compiled extension runs only with the PyTorch minor version that it was compiled against.
torch_minor = re.match(r"\d+\.\d+", torch.__version__).group()

setup(
    ext_modules=[extension(build_cuda, build_note)],
    cmdclass={"build_ext": cpp_extension.BuildExtension},
    install_requires=[f"torch=={torch_minor}.*", "numpy>=1.26", "tqdm>=4.60"],
)
