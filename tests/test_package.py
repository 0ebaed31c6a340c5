"""The package as users meet it: imports from anywhere, the console script, what a build says of itself."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import spml_fast
from spml_fast import _ops, cli, losses

ROOT = Path(__file__).resolve().parent.parent


def python(code, cwd):
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("where", [ROOT, ROOT / "tests", Path(ROOT.anchor)])
def test_import_from_anywhere(where):
    run = python("import spml_fast; print(spml_fast.s2m_sample, spml_fast._ops.extension.cpu_isa())", where)
    assert run.returncode == 0, run.stderr
    assert "function s2m_sample" in run.stdout


@pytest.mark.slow
def test_a_source_folder_without_extension_uses_the_installed_one(tmp_path):
    """What happens in the root of a checkout after `pip install .`: a copy of the sources comes first."""
    package = tmp_path / "spml_fast"
    package.mkdir()
    for source in (ROOT / "spml_fast").rglob("*.py"):
        copy = package / source.relative_to(ROOT / "spml_fast")
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(source.read_text())
    run = python("import spml_fast; print(spml_fast.__file__, spml_fast._ops.extension.__file__)", tmp_path)
    installed = Path(_ops.extension.__file__).parent
    if any(str(installed) == str(Path(entry, "spml_fast")) for entry in sys.path):
        assert run.returncode == 0, run.stderr
        assert run.stdout.split() == [str(package / "__init__.py"), _ops.extension.__file__]
    else:  # an editable install has no second folder to find
        assert "was found neither in" in run.stderr
        assert "pip install ." in run.stderr


@pytest.mark.slow
def test_importing_is_light():
    """What only training, plots or the demo need is not imported before it is used."""
    heavy = ["lightning", "sklearn", "scipy", "matplotlib", "torchmetrics", "safetensors"]
    run = python(f"import spml_fast, sys; print([m for m in {heavy} if m in sys.modules])", ROOT)
    assert run.stdout.strip() == "[]", run.stderr


def test_public_names():
    for name in spml_fast.__all__:
        assert getattr(spml_fast, name) is not None
    assert dir(spml_fast) == sorted(spml_fast.__all__)
    assert (Path(spml_fast.__file__).parent / "py.typed").exists()


def test_functional_losses_are_in_their_module_only():
    for name in (n for n in losses.__all__ if n.endswith("_loss")):
        with pytest.raises(AttributeError, match=f"no attribute '{name}'; it is spml_fast.losses.{name}$"):
            getattr(spml_fast, name)
    assert hasattr(spml_fast.losses, "gr_loss")


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match=r"module 'spml_fast' has no attribute 'gr_los'$"):
        _ = spml_fast.gr_los


def test_info(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    assert spml_fast.__version__ in out
    assert torch.__version__ in out
    assert _ops.extension.cpu_isa() in out
    assert _ops.extension.build_note in out


@pytest.mark.slow
def test_an_unknown_instruction_set_is_refused():
    run = subprocess.run(
        [sys.executable, "-c", "import spml_fast; spml_fast._ops.extension.cpu_isa()"],
        env={"SPML_FAST_ISA": "mmx"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "SPML_FAST_ISA=mmx: expected baseline" in run.stderr or "only baseline exists" in run.stderr
