"""The examples as a user runs them, with budgets that leave their code and not their quality."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spml_fast import cli

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = [pytest.mark.filterwarnings("ignore::spml_fast.sampling.SamplingWarning"), pytest.mark.slow]


@pytest.fixture
def example(monkeypatch, tmp_path):
    """``example(name)``: the module of that name, and the working directory is an empty one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # --factory adds to it

    def load(name):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_vae(example, capsys):
    example("vae_generator").main(
        ["--vae-steps", "400", "--epochs", "5", "-n", "30", "--steps", "30", "--out", "vae.png"]
    )
    printed = capsys.readouterr().out
    means = [float(line.split()[1]) for line in printed.splitlines() if line.startswith("mean  ") and "." in line]
    assert means[0] > 0.4  # chance is a seventh
    assert re.findall(r"^mean.* +([14]) +-\d", printed, re.MULTILINE) == ["1", "4", "1", "4"]
    assert Path("vae.png").stat().st_size > 1000


def test_six_attributes(example, capsys):
    six = example("six_attributes")
    six.main(["--steps", "400", "--epochs", "12", "-n", "20", "--out", "six.png"])
    printed = capsys.readouterr().out
    assert "9 joint classes say something of all six" in printed
    rows = re.findall(r"^(\d|5, 7) +\d\.\d+ +(\d\.\d+) +(\d\.\d+) ", printed, re.MULTILINE)
    assert sorted(row[0] for row in rows) == ["0", "1", "2", "3", "4", "5, 7", "6", "8", "9"]
    _, real, drawn = zip(*rows, strict=True)
    assert np.mean([float(share) for share in real]) > 0.4
    assert np.mean([float(share) for share in drawn]) > 0.25  # chance is a ninth
    assert Path("six.png").stat().st_size > 1000


def test_joint_classes_that_density_ratios_tell(example, capsys):
    """Against counting sets of digits: nothing of the sampler."""
    six = example("six_attributes")
    has = six.TABLE.numpy()
    whole = six.check_assumption()
    assert {six.title(target) for target in whole} == {"0", "1", "2", "3", "4", "5, 7", "6", "8", "9"}
    n = even = 0
    for target in six.joint_classes():
        inside = [d for d in range(10) if has[d, list(target.I)].all() and not has[d, list(target.J)].any()]
        n += bool(inside)
        even += len({int(has[d].sum()) for d in inside}) == 1
    assert f"{n} hold a digit" in capsys.readouterr().out.replace("\n", " ")
    capsys.readouterr()
    six.check_assumption()
    printed = " ".join(capsys.readouterr().out.split())
    assert f"in {n} of them; in {even} they weigh" in printed


def test_own_models(example, capsys):
    """The commands that the example prints, as they are pasted, but for less of everything."""
    example("own_models").main(["--steps", "60", "--out", "own models"])
    printed = capsys.readouterr().out.replace("\\\n", "")
    commands = [shlex.split(line)[1:] for line in printed.splitlines() if line.startswith("spml-fast ")]
    assert [command[0] for command in commands] == ["ratio", "sample"]
    for command, less in zip(commands, (["--epochs", "2"], ["--steps", "5"]), strict=True):
        assert cli.main([*command, *less]) == 0
    assert {path.name for path in Path("own models/samples").iterdir()} == {
        "grid.png", "samples.safetensors", "diagnostics.json",
    }  # fmt: skip


# -------------------------------------------------------------------------- a pretrained generator


def dcgan_weights(prefix=""):
    """32 x 32 pixels, ngf = 8, as the public example names them: written out here, not by the code under test."""
    layers = []
    for narrow, wide, stride, padding in ((20, 32, 1, 0), (32, 16, 2, 1), (16, 8, 2, 1)):
        layers += [
            nn.ConvTranspose2d(narrow, wide, 4, stride, padding, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
        ]
    main = nn.Sequential(*layers, nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False), nn.Tanh())
    return main.eval(), {f"{prefix}main.{name}": tensor for name, tensor in main.state_dict().items()}


def write_images(n=120, size=32):
    """Attribute k is a bright half: 0 the left one, 1 the right one. Labels are one of those that an image has."""
    rng = np.random.default_rng(0)
    has = np.array([(1, 0), (0, 1), (1, 1)])[rng.integers(3, size=n)]
    images = rng.integers(0, 60, (n, size, size, 3), dtype=np.uint8)
    images[:, :, : size // 2] += (has[:, 0] * 180).astype(np.uint8)[:, None, None, None]
    images[:, :, size // 2 :] += (has[:, 1] * 180).astype(np.uint8)[:, None, None, None]
    labels = np.array([rng.choice(np.flatnonzero(row)) for row in has])
    np.savez("labelled.npz", images=images, labels=labels, names=np.array(["left", "right"]))


def test_dcgan_from_safetensors(example):
    main, state = dcgan_weights()
    save_file(state, "netG.safetensors")
    z = torch.randn(3, 20, 1, 1)
    loaded = example("pretrained_generator").load_dcgan(Path("netG.safetensors")).eval()
    assert torch.equal(loaded(z), main(z))


def test_dcgan(example, capsys):
    run = example("pretrained_generator").main
    file = "netG.pth"
    main, state = dcgan_weights(prefix="module.")
    torch.save(state, file)
    write_images()
    few = ["-n", "8", "--steps", "20", "--adapt-steps", "6", "--i", "left", "right"]
    run(["--generator", file, "--images", "labelled.npz", "--epochs", "1", "--out", "first", *few])
    assert "latents (20, 1, 1) -> images (3, 32, 32)" in capsys.readouterr().out
    drawn = np.load("first/samples.npz")
    assert drawn["samples"].shape == (8, 3, 32, 32)
    with torch.no_grad():
        expected = main(torch.from_numpy(drawn["latents"])).numpy()
    np.testing.assert_allclose(drawn["samples"], expected, atol=1e-5)
    assert Path("first/samples.png").stat().st_size > 1000

    saved = ["--classifier", "first/classifier.safetensors", "--out", "again"]
    run(["--generator", file, *saved, *few])
    np.testing.assert_array_equal(np.load("again/samples.npz")["samples"], drawn["samples"])
    with pytest.raises(SystemExit, match="'blond' is not an attribute"):
        run(["--generator", file, *saved, "--i", "blond"])


FACTORY = """
import torch

class Halves(torch.nn.Module):
    def forward(self, z):  # a half is bright where its latent is positive
        x = -0.75 + 1.4 * (z[:, :2] > 0).float().reshape(-1, 1, 1, 2).repeat_interleave(4, 3).expand(-1, 3, 8, -1)
        return x + 0.2 * torch.tanh(z[:, 2:].reshape(-1, 3, 8, 8))

def load(path):
    assert path.read_text() == "weights"
    return Halves()
"""


def test_generator_by_factory(example, capsys):
    """What is drawn is what was asked for, from a generator without weights, latent size or shape of its own."""
    Path("halves_of_an_image.py").write_text(FACTORY)
    Path("weights.bin").write_text("weights")
    write_images(600, size=8)
    run = example("pretrained_generator").main
    command = ["--generator", "weights.bin", "--factory", "halves_of_an_image:load", "--images", "labelled.npz"]
    command += ["--i", "0", "--j", "right"]
    with pytest.raises(SystemExit, match="Halves does not say its latent size: pass"):
        run(command)
    run([*command, "--z-dim", "194", "--epochs", "6", "-n", "64", "--steps", "60", "--out", "out"])
    assert "TV bound" in capsys.readouterr().out
    x = np.load("out/samples.npz")["samples"]
    right = (x[..., :4].mean((1, 2, 3)) > 0) & (x[..., 4:].mean((1, 2, 3)) < 0)
    assert right.sum() > 0.7 * 64  # chance is a quarter
    with pytest.raises(SystemExit, match="halves_of_an_image:lod is not an importable"):
        run([*command[:3], "halves_of_an_image:lod", *command[4:]])


def test_wrong_weights_are_named(example):
    run = example("pretrained_generator").main

    def error(file, content, save=torch.save):
        save(content, file)
        with pytest.raises(SystemExit) as failed:
            run(["--generator", file, "--images", "none.npz", "--i", "0"])
        return str(failed.value)

    discriminator = {"main.0.weight": torch.zeros(8, 3, 4, 4), "main.2.weight": torch.zeros(16, 8, 4, 4)}
    told = error("netD.pt", discriminator)
    assert "netD.pt is no generator of the DCGAN example" in told
    assert "expected: main.0.weight (nz, w, 4, 4)" in told
    assert "found: main.0.weight (8, 3, 4, 4), main.2.weight (16, 8, 4, 4)" in told

    _, state = dcgan_weights()
    del state["main.4.running_var"]
    assert 'Missing key(s) in state_dict: "main.4.running_var"' in error("part.safetensors", state, save_file)
    assert "holds a dict with netG, epoch; expected a state dict" in error(
        "nested.pt", {"netG": state, "epoch": 3}
    )
    assert "If it holds a whole module, save its state_dict()" in error("module.pt", nn.Linear(2, 2))
    assert "cannot be read as weights alone" in error(
        "text.pt", "no weights", lambda text, file: Path(file).write_text(text)
    )
    with pytest.raises(SystemExit, match="does not exist"):
        run(["--generator", "nowhere.pt", "--images", "none.npz", "--i", "0"])
    torch.save(dcgan_weights()[1], "whole.pt")
    with pytest.raises(SystemExit, match="No such file or directory: 'none"):
        run(["--generator", "whole.pt", "--images", "none.npz", "--i", "0"])
