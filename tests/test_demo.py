"""The main job in miniature; CI runs it in full."""

import json
import warnings
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from spml_fast import cli, demo, sampling
from spml_fast.data.digits import JOINT_CLASSES
from spml_fast.sample_folder import SamplerSpec, min_max
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
    for name in ("samples.png", "diagnostics.png", "generator.safetensors", "classifier.safetensors", demo.JUDGE):
        assert (folder / name).stat().st_size > 1000


@pytest.mark.filterwarnings("ignore:.*never met the support")
def test_sample_again(folder, capsys):
    command = ["sample", str(folder), "--i", "A", "B", "--j", "C", "-n", "20", "--steps", "50", "--seed", "1"]
    assert cli.main(command) == 0
    assert "samples of A+B-C" in capsys.readouterr().out
    drawn = load_file(folder / "samples_A+B-C" / "samples.safetensors")
    drawn = {name.removeprefix("A+B-C/"): tensor for name, tensor in drawn.items()}
    assert drawn["samples"].shape[1:] == (1, 8, 8)
    assert len(drawn["samples"]) == len(drawn["latents"]) == len(drawn["log_weights"])
    G, clf, _ = demo.load_demo(folder)
    with torch.no_grad():
        torch.testing.assert_close(G(drawn["latents"]), drawn["samples"])
    # Bit for bit what the demo's own sampler draws: nothing is lost on the way through sampler.json.
    again = demo.demo_sampler(G, clf).sample([0, 1], [2], 20, 50, seed=1)
    assert torch.equal(again.samples, drawn["samples"])
    assert torch.equal(again.log_weights, drawn["log_weights"])


def test_the_folder_tells_its_sampler(folder):
    told = json.loads((folder / "sampler.json").read_text())
    assert told["generator"]["callable"] == "spml_fast.demo:DigitGenerator"
    assert told["classes"] == ["A", "B", "C"]
    spec = SamplerSpec.read(folder)
    for I, J in JOINT_CLASSES:
        assert spec.value_range == (-1, 1)
        values = min_max(spec.weight).values(sampling.JointClass(I, J))
        assert values["temperature"] == demo.paper_temperature(I, J)
        assert (values["gamma"], values["gamma_J"]) == (demo.GAMMA_I, demo.GAMMA_J)
    with pytest.raises(ValueError, match="temperature is not known for joint classes of 4 attributes"):
        min_max(spec.weight).values(sampling.JointClass(range(4)))


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
    command = ["sample", str(folder), "--i", "A", "-n", "12", "--seed", "1", "--out", str(tmp_path / "a")]
    assert cli.main([*command, *options]) == 0
    assert said in capsys.readouterr().out
    n = len(load_file(tmp_path / "a" / "samples.safetensors")["A/samples"])
    assert n == 12 or (n < 12 and "rejection" in options)  # with classifiers trained so little, M is large


def test_a_checkpoint_is_gone_on_from(folder, tmp_path, capsys):
    command = ["sample", str(folder), "--i", "A", "-n", "12", "--steps", "5", "--checkpoint", str(tmp_path / "c")]
    for name in ("first", "again"):  # without a seed: the file's
        assert cli.main([*command, "--out", str(tmp_path / name)]) == 0
    first, again = (load_file(tmp_path / name / "samples.safetensors") for name in ("first", "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert cli.main([*command, "--steps", "6"]) == 1
    assert "is of a run with n_steps=5, not 6" in capsys.readouterr().err


def test_the_way_to_adapted_proposals_is_drawn(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(adaptation, "KEEP_PRIOR_ESS", 2.0)  # whatever the prior is worth,
    monkeypatch.setattr(adaptation, "MIN_EXPECTED_HITS", 0)  # and however little classifiers so poor tell
    monkeypatch.setattr(sampling, "Mixture", partial(sampling.Mixture, n_chains=64, max_steps=20))
    command = ["sample", str(folder), "--i", "A", "B", "-n", "8", "--adapt", "--seed", "2"]
    assert cli.main([*command, "--out", str(tmp_path / "ab")]) == 0
    assert "adapted to A+B with" in capsys.readouterr().out
    assert (tmp_path / "ab" / "adaptation_A+B.png").stat().st_size > 3000


def test_bad_commands(folder, tmp_path, capsys):
    assert cli.main(["sample", str(folder), "--i", "D"]) == 1
    assert "'D' is not a class; they are A, B, C" in capsys.readouterr().err
    assert cli.main(["sample", str(folder), "--i", "A", "--j", "A"]) == 1
    assert "index 0 is in both" in capsys.readouterr().err
    assert cli.main(["sample", str(tmp_path), "--i", "A"]) == 1
    assert "sampler.json does not exist; `spml-fast demo` or" in capsys.readouterr().err
    (tmp_path / "sampler.json").write_text((folder / "sampler.json").read_text())
    assert cli.main(["sample", str(tmp_path), "--i", "A"]) == 1
    assert "generator.safetensors do not exist" in capsys.readouterr().err
    save_file({"unrelated": torch.zeros(1)}, tmp_path / "generator.safetensors")
    assert cli.main(["sample", str(tmp_path), "--i", "A"]) == 1
    assert "does not fit generator spml_fast.demo:DigitGenerator: of its tensors" in capsys.readouterr().err
