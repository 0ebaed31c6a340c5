"""The main job in miniature; CI runs it in full."""

import json
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spml_fast import cli, demo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with little training: everything but the quality is real."""
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*never met the support")
        patch.setattr(demo, "train_generator", partial(demo.train_generator, steps=100))
        patch.setattr(demo, "train_classifiers", partial(demo.train_classifiers, epochs=5))
        metrics = demo.run_demo(out, seed=3, progress=False, n_samples=40, n_steps=60)
    assert json.loads(json.dumps(metrics)) == json.loads((out / "metrics.json").read_text())
    return out


def test_metrics(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["seed"] == 3
    assert metrics["judge_accuracy"] >= 0.97
    names = [entry["name"] for entry in metrics["joint_classes"]]
    assert names == ["A-B-C", "A+B-C", "B-A-C", "B+C-A", "C-A-B", "A+C-B", "A+B+C"]
    for entry in metrics["joint_classes"]:
        assert {"I", "J", "accuracy", "acceptance_rate", "support_rate", "ess_per_proposal", "tv_bound"} <= set(
            entry
        )
        assert 0 <= entry["accuracy"] <= 1
    assert sum(entry["share"] for entry in metrics["joint_classes"]) == pytest.approx(1)
    table = demo.metrics_table(metrics)
    assert all(name in table for name in names)


def test_pictures_and_weights_are_written(folder):
    for name in ("samples.png", "diagnostics.png", *demo.FILES):
        assert (folder / name).stat().st_size > 1000


@pytest.mark.filterwarnings("ignore:.*never met the support")
def test_sample_again(folder, capsys):
    command = ["sample", str(folder), "--i", "A", "B", "--j", "C", "-n", "20", "--steps", "50", "--seed", "1"]
    assert cli.main(command) == 0
    assert "samples of A+B-C" in capsys.readouterr().out
    drawn = np.load(folder / "samples_A+B-C.npz")
    assert drawn["samples"].shape[1:] == (1, 8, 8)
    assert len(drawn["samples"]) == len(drawn["latents"]) == len(drawn["log_weights"])
    G, _, _ = demo.load_demo(folder)
    with torch.no_grad():
        torch.testing.assert_close(G(torch.from_numpy(drawn["latents"])), torch.from_numpy(drawn["samples"]))


def test_bad_commands(folder, tmp_path, capsys):
    assert cli.main(["sample", str(folder), "--i", "D"]) == 1
    assert "'D' is not an attribute of the digits; they are A, B, C" in capsys.readouterr().err
    assert cli.main(["sample", str(folder), "--i", "A", "--j", "A"]) == 1
    assert "index 0 is in both" in capsys.readouterr().err
    assert cli.main(["sample", str(tmp_path), "--i", "A"]) == 1
    assert "generator.safetensors" in capsys.readouterr().err
    save_file({"unrelated": torch.zeros(1)}, tmp_path / "generator.safetensors")
    assert cli.main(["sample", str(tmp_path), "--i", "A"]) == 1
    assert "does not hold" in capsys.readouterr().err
