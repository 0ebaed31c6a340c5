"""spml-fast ratio and spml-fast sample with models of one's own, as a user runs them: small models, few steps."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from spml_fast import _loading, cli, sample_folder
from spml_fast.sampling import Diagnostics

pytestmark = pytest.mark.filterwarnings("ignore::spml_fast.sampling.SamplingWarning")

MODELS = """
import torch
from torch import nn

class Colours(nn.Module):
    \"\"\"z -> plain images (3, height, width) in [0, 1], of any colour.\"\"\"

    def __init__(self, height=8, width=8, z_dim=3):
        super().__init__()
        self.size, self.z_dim = (height, width), z_dim
        self.scale = nn.Parameter(torch.full((z_dim, 1, 1), 2.0))

    def forward(self, z):
        colour = torch.sigmoid(self.scale * z[..., None, None])
        return colour.expand(-1, -1, *self.size)

class Named(Colours):  # takes a label
    def forward(self, z, label):
        return super().forward(z) + 0 * label[:, None, None, None]

class Classifier(nn.Module):
    \"\"\"Channel k is bright: class k.\"\"\"

    def __init__(self, classes=3):
        super().__init__()
        self.classes = classes

    def forward(self, x):
        bright = x.flatten(2).mean(2).sub(0.5).mul(9)
        return bright[:, : self.classes], x.new_zeros(len(x))

class Noisy(Colours):
    def forward(self, z):
        return super().forward(z) + 0.1 * torch.rand(len(z), 3, *self.size)

class Unsized(Colours):
    def __init__(self):
        super().__init__()
        del self.z_dim

class Bytes(Colours):
    def forward(self, z):
        return 255 * super().forward(z)

class Fails(Colours):
    def forward(self, z):
        return z @ torch.zeros(7, 7)

class Flat(nn.Module):
    z_dim = 2

    def forward(self, z):
        return 1.2 * z

class FlatClassifier(nn.Module):
    def forward(self, x):
        return 3 * x, x.new_zeros(len(x))

def function():
    return Colours().forward

def trunk():
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(18, 16), nn.ReLU())

def flat_trunk():
    return nn.Linear(5, 2)

def broken():
    raise RuntimeError("of\\ntwo lines")

there = Colours()
number = 3
colours_z_dim = 3
"""
NAMES = ("red", "green", "blue")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty working directory with a module ``mine``, which other tests have not imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("mine.py").write_text(MODELS)
    yield tmp_path
    for name in [name for name in sys.modules if name == "mine" or name.startswith(str(tmp_path))]:
        del sys.modules[name]


def write_images(n=60, mode="RGB", size=(10, 12)):
    """Plain images of any colour in ``photos``, each with a channel that is bright in ``labels.csv``."""
    rng = np.random.default_rng(0)
    Path("photos").mkdir()
    lines = ["file,photographer,label"]
    for i in range(n):
        colour = rng.integers(0, 256, 3)
        while colour.max() < 128:
            colour = rng.integers(0, 256, 3)
        label = rng.choice(np.flatnonzero(colour >= 128))
        Image.fromarray(np.full((*size, 3), colour, dtype=np.uint8)).convert(mode).save(f"photos/{i}.png")
        lines.append(f"{i}.png,me,{NAMES[label]}")
    Path("labels.csv").write_text("\n".join(lines) + "\n")


RATIO = ["ratio", "--generator", "mine:Colours", "--images", "photos", "--labels", "labels.csv", "--out", "ratio"]
SAMPLE = ["sample", "--generator", "mine:Colours", "--classifier", "mine:Classifier", "--i", "0", "--seed", "1"]
FEW = ["-n", "6", "--steps", "8", "--out", "out"]


@pytest.fixture
def error(capsys):
    """``error(command)``: the one line that a command ends with, without a traceback."""

    def run(command):
        capsys.readouterr()
        assert cli.main(command) == 1
        told = capsys.readouterr().err.strip().splitlines()
        assert len(told) == 1, told
        assert told[0].startswith(f"spml-fast {command[0]}: ")
        return told[0].partition(": ")[2]

    return run


def strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(Path(path).read_text(), parse_constant=refuse)


# ------------------------------------------------------------------------------ from images to samples


@pytest.mark.slow
def test_from_images_to_samples(capsys):
    """What is drawn is what was asked for."""
    write_images(400, size=(9, 16))
    torch.save({"state_dict": {"module.scale": torch.full((3, 1, 1), 2.5)}}, "weights.pt")
    assert cli.main([*RATIO, "--weights", "weights.pt", "--epochs", "8", "--flip", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "images (3, 8, 8), pixels taken to be in [0, 1]" in printed
    assert "400, one label each of blue, green, red" in printed
    assert "D_v" in printed
    report = strict_json("ratio/ratio.json")
    assert report["heads"].keys() == {"D_v", "D_r"}
    assert sum(report["images"].values()) == 400
    told = strict_json("ratio/sampler.json")
    assert told["generator"] == {"callable": "mine:Colours", "arguments": {}, "weights": "generator.safetensors"}
    assert told["classes"] == ["blue", "green", "red"]
    assert told["range"] == [0, 1]

    Path("weights.pt").unlink()  # the folder has its own
    command = ["sample", "ratio", "--targets", "red,-green", "green,red,-blue", "-n", "40", "--steps", "60"]
    assert cli.main([*command, "--seed", "0", "--single", "--out", "out"]) == 0
    assert "40 samples of red-green by imh, 60 steps x 40" in capsys.readouterr().out
    drawn = load_file("out/samples.safetensors")
    parts = ("samples", "latents", "log_weights", "chains")
    assert set(drawn) == {f"{name}/{part}" for name in ("red-green", "green+red-blue") for part in parts}
    x = drawn["red-green/samples"]
    assert x.shape == (40, 3, 8, 8)
    red, green, _ = (x.mean((2, 3)) > 0.5).unbind(1)
    assert (red & ~green).float().mean() > 0.75  # chance is a quarter
    torch.testing.assert_close(torch.sigmoid(2.5 * drawn["red-green/latents"]), x[:, :, 0, 0])

    assert np.array(Image.open("out/grid.png")).std() > 10
    singles = sorted(Path("out/single").iterdir())
    assert len(singles) == 80
    assert singles[0].name == "green+red-blue_00000.png"
    pixels = np.array(Image.open("out/single/red-green_00003.png"))
    np.testing.assert_array_equal(pixels, np.rint(255 * x[3].permute(1, 2, 0).numpy()))
    told = strict_json("out/diagnostics.json")
    assert [target["name"] for target in told["targets"]] == ["red-green", "green+red-blue"]
    assert told["targets"][1]["I"] == ["green", "red"]
    assert told["targets"][0]["n_samples"] == 40

    # One joint class alone is the same; what the first call left and this one did not write is gone.
    command = ["sample", "ratio", "--i", "red", "--j", "1", "-n", "40", "--steps", "60", "--seed", "0"]
    assert cli.main([*command, "--out", "out"]) == 0
    alone = load_file("out/samples.safetensors")
    assert set(alone) == {f"red-green/{part}" for part in parts}
    for name in alone:  # a sigmoid rounds differently from one place in a batch to another
        torch.testing.assert_close(alone[name], drawn[name], rtol=0, atol=1e-6 if "samples" in name else 0)
    assert not list(Path("out/single").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("generator", "options", "mode", "heads"),
    [
        ("mine:Named", [], "RGB", ["D_f", "D_r", "D_v"]),
        ("mine.py:Colours", ["--trunk", "mine.py:trunk", "--generator-arg", "height=12"], "P", ["D_r", "D_v"]),
        ("mine:there", ["--trunk", "small_cnn", "--range", "0", "1"], "L", ["D_r", "D_v"]),
    ],
)
def test_other_generators_and_trunks(generator, options, mode, heads, capsys, monkeypatch):
    write_images(30, mode)
    command = [*RATIO, "--epochs", "1", *options]
    command[2] = generator
    assert cli.main(command) == 0
    assert sorted(strict_json("ratio/ratio.json")["heads"]) == heads
    if ".py" in generator:
        Path("elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
        folder = "../ratio"
    else:
        folder = "ratio"
    assert cli.main(["sample", folder, "--i", "red", "blue", "--j", "green", *FEW]) == 0
    x = load_file("out/samples.safetensors")["red+blue-green/samples"]
    assert x.shape[2:] == ((12, 8) if "height=12" in options else (8, 8))


@pytest.mark.slow
def test_a_folder_with_another_generator(capsys):
    """The classifier of a folder, and everything else from flags."""
    write_images(30)
    assert cli.main([*RATIO, "--epochs", "1"]) == 0
    save_file({"scale": torch.full((3, 1, 1), 0.5)}, "other.safetensors")
    models = ["--generator", "mine:Colours", "--weights", "other.safetensors", "--classifier", "ratio"]
    for options in (models, ["ratio", "--weights", "other.safetensors"], ["ratio", *models[:4]]):
        assert cli.main(["sample", *options, "--i", "red", "--seed", "1", *FEW]) == 0
        drawn = load_file("out/samples.safetensors")
        colours = torch.sigmoid(0.5 * drawn["red/latents"])
        torch.testing.assert_close(drawn["red/samples"][:, :, 0, 0], colours)


# ------------------------------------------------------------------------------ models from flags alone


def test_models_from_flags(capsys):
    assert cli.main([*SAMPLE, *FEW]) == 0
    assert "pixels taken to be in [0, 1]; --range says otherwise" in capsys.readouterr().out
    assert load_file("out/samples.safetensors")["0/samples"].shape == (6, 3, 8, 8)
    assert cli.main([*SAMPLE, "--classes", "a/b", "$x", "c", "--j", "$x", "--single", *FEW]) == 0
    assert len(load_file("out/samples.safetensors")["a/b-$x/samples"]) == 6
    assert Path("out/single/a_b-_x_00000.png").exists()

    command = [*SAMPLE[:5], "--targets", "0", "1,-2", *FEW[:4]]
    assert cli.main(command) == 0
    assert Path("samples_0_and_1_more/grid.png").exists()


def test_flags_of_the_weight():
    def drawn(*options):
        assert cli.main([*SAMPLE, "--j", "1", "-n", "40", "--steps", "8", "--out", "out", *options]) == 0
        return load_file("out/samples.safetensors")["0-1/samples"].mean((2, 3)).mean(0)

    plain, strict = drawn(), drawn("--gamma", "0.1", "--gamma-j", "1", "--temperature", "0.5")
    assert strict[0] - strict[1] > plain[0] - plain[1]


def test_noise_of_the_generators_own_is_seen():
    """Samples of such a generator are those that the classifier saw, not others of the same latents."""
    command = [*SAMPLE, *FEW]
    command[2] = "mine:Noisy"
    assert cli.main(command) == 0
    drawn = load_file("out/samples.safetensors")
    off = drawn["0/samples"] - torch.sigmoid(2 * drawn["0/latents"])[:, :, None, None]
    assert off.min() >= 0
    assert 0.05 < off.max() < 0.1


def test_samples_that_are_no_images(capsys):
    command = ["sample", "--generator", "mine:Flat", "--classifier", "mine:FlatClassifier", "--i", "0", "--single"]
    assert cli.main([*command, *FEW]) == 0
    assert "samples of shape (2,) are no images: there will be no pictures" in capsys.readouterr().out
    assert sorted(os.listdir("out")) == ["diagnostics.json", "samples.safetensors"]


def test_chains_without_samples(capsys):
    """No proposal is in the joint class: nothing is drawn, and the files say so."""
    assert cli.main([*SAMPLE, "--j", "1", "--gamma", "1e-9", "--gamma-j", "1", *FEW]) == 0
    target = strict_json("out/diagnostics.json")["targets"][0]
    assert target["chains_without_support"] == 6
    assert target["max_weight_ratio"] is None
    assert load_file("out/samples.safetensors")["0-1/samples"].shape == (0, 3, 8, 8)
    assert Path("out/grid.png").exists()


def test_what_a_diagnostics_file_names_outside_stays(tmp_path):
    kept, out = tmp_path / "kept.txt", tmp_path / "out"
    out.mkdir()
    kept.write_text("")
    (out / "old.png").write_text("")
    (out / "diagnostics.json").write_text(json.dumps({"files": ["old.png", "../kept.txt", str(kept)]}))
    sample_folder._Written(out, ["a"], None)
    assert kept.exists()
    assert not (out / "old.png").exists()


def test_ranges_are_told_apart():
    for low, high, found in (
        (-0.99, 0.98, (-1, 1)),
        (-1, -0.2, (-1, 1)),
        (-0.1, 0.1, (-1, 1)),
        (0, 1, (0, 1)),
        (0.3, 0.6, (0, 1)),
        (-0.2, 1.1, (0, 1)),
    ):
        assert sample_folder.Probe(torch.tensor([low, high]), False, False).value_range() == found


def test_strict_json():
    path = Path("a.json")
    values = Diagnostics(1, 1, max_weight_ratio=float("inf"), log_mean_weight=float("-inf")).to_dict()
    sample_folder.write_json(path, {"x": (values, [float("nan"), 1.5])})
    (told, numbers) = strict_json(path)["x"]
    assert (told["max_weight_ratio"], told["log_mean_weight"], told["acceptance_rate"]) == (None, None, None)
    assert numbers == [None, 1.5]


# ---------------------------------------------------------------------------------------------- errors

MODEL_ERRORS = {
    "no module": ({"--generator": "nowhere.mine:Colours"}, "generator 'nowhere.mine:Colours' cannot be imported"),
    "no file": ({"--generator": "nowhere.py:Colours"}, "nowhere.py does not exist"),
    "syntax": ({"--generator": "wrong.py:G"}, "generator 'wrong.py:G' cannot be imported: SyntaxError"),
    "script": ({"--generator": "exits.py:G"}, "generator 'exits.py:G' cannot be imported: SystemExit: 2"),
    "no callable": ({"--generator": "mine:Colors"}, "generator 'mine:Colors': there is no Colors in mine"),
    "not callable": ({"--generator": "mine:number"}, "generator 'mine:number' is a int, which cannot be called"),
    "no spec": ({"--generator": "mine"}, "generator must be package.module:callable or path/to/file.py:callable"),
    "argument": ({"--generator-arg": "depth=3"}, "generator mine:Colours(depth=3) failed: TypeError"),
    "no argument": ({"--generator-arg": "depth"}, "--generator-arg depth: expected KEY=VALUE"),
    "instance": ({"--generator": "mine:there", "--generator-arg": "z_dim=3"}, "is a module already"),
    "raises": ({"--generator": "mine:broken"}, "generator mine:broken() failed: RuntimeError: of two lines"),
    "function with weights": (
        {"--generator": "mine:function", "--weights": "good.pt"},
        "returned a method, which is no torch.nn.Module: the weights good.pt cannot be loaded",
    ),
    "no weights": ({"--weights": "none.pt"}, "weights none.pt do not exist"),
    "other weights": (
        {"--weights": "other.safetensors"},
        "does not fit generator mine:Colours: of its tensors 1 missing (scale) and 1 not known (w)",
    ),
    "other shape": ({"--weights": "shape.pt"}, "does not fit generator mine:Colours: size mismatch for scale"),
    "no state": ({"--weights": "list.pt"}, "list.pt holds a dict with epoch; expected a state dict"),
    "whole module": ({"--weights": "module.pt"}, "module.pt cannot be read as weights alone:"),
    "text": ({"--weights": "labels.csv"}, "labels.csv cannot be read as weights alone:"),
    "no z_dim": ({"--generator": "mine:Unsized"}, "it has no attribute z_dim, so pass --z-dim N"),
    "failing": ({"--generator": "mine:Fails"}, "the generator failed for latents (16, 3): RuntimeError: mat1"),
    "range": ({"--generator": "mine:Bytes"}, "which is neither [-1, 1] nor [0, 1]: say which are black and white"),
    "bad range": ({"--range": "1 0"}, "a range is two numbers, the smaller first, got 1 0"),
    "device": ({"--device": "gpu"}, "device 'gpu' cannot be used:"),
}  # fmt: skip


def with_flags(command, flags):
    """The command with flags set, in place or at its end."""
    command = list(command)
    for flag, value in flags.items():
        if flag in command:
            command[command.index(flag) + 1] = value
        else:
            command += [flag, *value.split(" ")]
    return command


@pytest.mark.slow  # Lightning is imported
def test_models_that_cannot_be_used(error):
    write_images(12)
    Path("wrong.py").write_text("def G(:")
    Path("exits.py").write_text("import sys; sys.exit(2)")
    torch.save({"scale": torch.ones(3, 1, 1)}, "good.pt")
    torch.save({"scale": torch.ones(4, 1, 1)}, "shape.pt")
    torch.save({"epoch": 3}, "list.pt")
    torch.save(torch.nn.Linear(2, 2), "module.pt")
    save_file({"w": torch.ones(3)}, "other.safetensors")
    for flags, told in MODEL_ERRORS.values():
        for command in (RATIO, [*SAMPLE, *FEW]):
            assert told in error(with_flags(command, flags)), command[0]
    for flags, told in {
        "trunk": ({"--trunk": "mine:nowhere"}, "trunk 'mine:nowhere': there is no nowhere in mine"),
        "trunk's input": (
            {"--trunk": "mine:flat_trunk"},
            "trunk 'mine:flat_trunk' failed for images (2, 3, 8",
        ),
        "images": ({"--generator": "mine:Flat"}, "the generator makes (2,), not images (1 or 3, height, width)"),
        "noise": ({"--noise": "-1"}, "noise must not be negative, got -1"),
        "epochs": ({"--epochs": "0"}, "fit: epochs must be an integer, at least 1, got 0"),
    }.values():
        assert told in error(with_flags(RATIO, flags))
    assert not Path("ratio/sampler.json").exists()


def test_targets_that_cannot_be_drawn(error):
    def told(*options, **flags):
        return error([*with_flags(SAMPLE[:5], flags), *FEW, *options])

    for options, message in {
        "--i 4": "'4' is not a class; they are 0, 1, 2",
        "--i red": "'red' is not a class; they are 0, 1, 2",
        "--targets red,-cyan --classes red green blue": "'cyan' is not a class; they are red, green, blue",
        "--i 0 --classes a b": "the classifier returns 3 class logits, but there are names of 2 classes",
        "--targets 0,1 0,1": "0+1 is asked for twice",
        "--targets 0,": "--targets 0,: expected names or indices with commas between them, as in A,B or A,-C",
        "--i 0 --j 0": "index 0 is in both I=(0,) and J=(0,)",
        "--i 0 --targets 1": "name one joint class with --i and --j, or several with --targets",
        "--targets 1 --j 0": "name one joint class with --i and --j, or several with --targets",
        "": "name one joint class with --i and --j, or several with --targets",
        "--i 0 --gamma -1": "gamma must be positive and finite",
        "--i 0 --method mala --tol 0.1": "--method mala has no --tol",
        "--i 0 --classifier-arg classes=x": "the classifier failed for (16, 3, 8, 8): TypeError",
    }.items():
        assert message in told(*options.split())
    Path("file").write_text("")
    for out in ("file", "file/out"):
        assert "file" in error([*SAMPLE, "--out", out])
    assert "what is the generator? Name a folder with sampler.json, or --generator" in error(
        ["sample", "--i", "0"]
    )
    assert "what is the classifier?" in error([*SAMPLE[:3], "--i", "0"])


def test_folders_that_are_none(error):
    Path("folder").mkdir()
    assert "folder/sampler.json does not exist" in error(["sample", "folder", "--i", "0"])
    for text in ("{", "[]", "{}", '{"generator": {"callable": "a:b"}, "classifier": {}}', '{"generator": 3}'):
        Path("folder/sampler.json").write_text(text)
        assert "folder/sampler.json does not describe a sampler:" in error(["sample", "folder", "--i", "0"])


LABEL_ERRORS = {
    "no CSV": ("", "labels.csv has no column 'file'; its header is ''"),
    "no column": ("file,class\n0.png,red\n", "labels.csv has no column 'label'; its header is 'file,class'"),
    "no rows": ("file,label\n", "labels.csv has a header, but names no image"),
    "no file": ("file,label\n0.png,a\nnone.png,b\n", "labels.csv, line 3: photos/none.png does not exist"),
    "no label": ("file,label\n0.png,a\n1.png,\n", "labels.csv, line 3: the label is empty"),
    "short row": ("file,label\n0.png\n", "labels.csv, line 2: the label is empty"),
    "no name": ("file,label\n,a\n", "labels.csv, line 2: the file is empty"),
    "twice": ("file,label\n0.png,a\n0.png,b\n", "labels.csv, line 3: 0.png has a label already, in line 2"),
    "one class": ("file,label\n0.png,a\n1.png,a\n", "labels.csv has one label alone, 'a'"),
    "few": ("file,label\n0.png,a\n1.png,a\n2.png,b\n", "class 'b' has 1 image; every class needs two"),
    "few by index": ("file,label\n0.png,0\n1.png,0\n2.png,2\n3.png,2\n", "class '1' has 0 images"),
    "no text": (b"file,label\n\xff.png,a\n", "labels.csv is no CSV"),
}


@pytest.mark.parametrize(("text", "told"), LABEL_ERRORS.values(), ids=LABEL_ERRORS.keys())
def test_labels_that_cannot_be_used(text, told, error):
    write_images(6)
    Path("labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert told in error(RATIO)


@pytest.mark.slow  # Lightning is imported
def test_images_that_cannot_be_used(error):
    write_images(12)
    assert "line 3: 'blue' is not a class; they are red, green" in error([*RATIO, "--classes", "red", "green"])
    assert "--images nowhere is no folder" in error(with_flags(RATIO, {"--images": "nowhere"}))
    assert "none.csv" in error(with_flags(RATIO, {"--labels": "none.csv"}))
    Path("photos/3.png").write_text("no image")
    assert "photos/3.png cannot be read as an image" in error(RATIO)
    Path("file").write_text("")
    assert "file" in error(with_flags(RATIO, {"--out": "file"}))


def test_labels_by_name_and_by_index():
    from spml_fast.ratio import read_labels

    write_images(6)

    def read(labels, classes=None):
        rows = [f" {i}.png , {label}" for i, label in enumerate(labels)]
        Path("labels.csv").write_text("\ufefffile,label\n" + "\n".join(rows) + "\n")
        table = read_labels("labels.csv", "photos", classes)
        return table.labels.tolist(), table.classes

    assert read("abcabc") == ([0, 1, 2, 0, 1, 2], ("a", "b", "c"))
    assert read("abcabc", ["c", "b", "a"]) == ([2, 1, 0, 2, 1, 0], ("c", "b", "a"))
    assert read("0a1110", ["a", "b"]) == ([0, 0, 1, 1, 1, 0], ("a", "b"))
    assert read("010101") == ([0, 1, 0, 1, 0, 1], ("0", "1"))


# --------------------------------------------------------------------------------------------- weights


def test_state_dicts_are_found():
    state = {"scale": torch.ones(3, 1, 1)}
    for number, kept in enumerate(
        [state, {"model": state, "epoch": 3}, {"g": {}, "g_ema": {f"module.{k}": v for k, v in state.items()}}]
    ):
        torch.save(kept, f"{number}.pt")
        assert _loading.load_weights(f"{number}.pt").keys() == {"scale"}


def test_tied_weights_fit():
    from safetensors.torch import save_model

    def tied():
        module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        module[1].weight = module[0].weight
        return module

    saved, loaded = tied(), tied()
    save_model(saved, "tied.safetensors")
    _loading.fit_weights(loaded, "tied.safetensors", "generator")
    assert torch.equal(loaded[1].weight, saved[0].weight)
    assert loaded[1].weight is loaded[0].weight


def test_arguments():
    texts = ["width=3", "name=wide", "sizes=[1, 2]", "deep=true", "path=a=b"]
    assert _loading.parse_arguments(texts, "--generator-arg") == {
        "width": 3, "name": "wide", "sizes": [1, 2], "deep": True, "path": "a=b",
    }  # fmt: skip
