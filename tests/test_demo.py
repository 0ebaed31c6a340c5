"""The main job in miniature; CI runs it in full."""

import json
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spml_fast import cli, demo, sampling
from spml_fast.sampling import adaptation

pytestmark = pytest.mark.slow


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


@pytest.mark.filterwarnings("ignore::spml_fast.sampling.SamplingWarning")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "resample", "--steps", "20"], "by resample"),
        (["--method", "rejection", "--steps", "40"], "by rejection, 40 steps"),
        (["--method", "mala", "--steps", "8"], "R-hat"),
        (["--steps", "auto", "--tol", "0.3", "--per-chain", "2", "--thin", "5"], "x 6: "),
    ],
)
def test_other_ways_to_sample(options, said, folder, tmp_path, capsys):
    command = ["sample", str(folder), "--i", "A", "-n", "12", "--seed", "1", "--out", str(tmp_path / "a.png")]
    assert cli.main([*command, *options]) == 0
    assert said in capsys.readouterr().out
    n = len(np.load(tmp_path / "a.npz")["samples"])
    assert n == 12 or (n < 12 and "rejection" in options)  # with classifiers trained so little, M is large


def test_a_checkpoint_is_gone_on_from(folder, tmp_path, capsys):
    command = ["sample", str(folder), "--i", "A", "-n", "12", "--steps", "5", "--checkpoint", str(tmp_path / "c")]
    for name in ("first", "again"):  # without a seed: the file's
        assert cli.main([*command, "--out", str(tmp_path / f"{name}.png")]) == 0
    first, again = (np.load(tmp_path / f"{name}.npz") for name in ("first", "again"))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert cli.main([*command, "--steps", "6"]) == 1
    assert "is of a run with n_steps=5, not 6" in capsys.readouterr().err


def test_the_way_to_adapted_proposals_is_drawn(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(adaptation, "KEEP_PRIOR_ESS", 2.0)  # whatever the prior is worth,
    monkeypatch.setattr(adaptation, "MIN_EXPECTED_HITS", 0)  # and however little classifiers so poor tell
    monkeypatch.setattr(sampling, "Mixture", partial(sampling.Mixture, n_chains=64, max_steps=20))
    command = ["sample", str(folder), "--i", "A", "B", "-n", "8", "--adapt", "--seed", "2"]
    assert cli.main([*command, "--out", str(tmp_path / "ab.png")]) == 0
    assert "adapted to A+B with" in capsys.readouterr().out
    assert (tmp_path / "ab_adaptation.png").stat().st_size > 3000


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
