"""Trainings as a configuration, and ``spml-fast train`` and ``evaluate``, which read it."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from trainings import leave_out_pictures

from spml_fast import LinearPhase
from spml_fast.cli import main
from spml_fast.data import digit_attributes
from spml_fast.metrics import evaluate
from spml_fast.training import RunRecord, Validation, finetune, load_classifier, train_classifier
from spml_fast.training.config import (
    INNER_KEYS,
    KEYS,
    NEW_SPELLINGS,
    apply_setting,
    evaluate_run,
    load_data,
    parse_setting,
    read_config,
    run_config,
    summary,
)
from spml_fast.training.trunks import small_cnn

FAST = {"lr": 0.01, "batch_size": 64, "epochs": 2}
IMAGES = {"loader": "digits", "images": True}
CNN = {"name": "small_cnn", "channels": 1, "width": 8}
TUNE = {"trunk": CNN, "epochs": 2, "batch_size": 128, "lr": 0.001}


@pytest.fixture
def write(tmp_path):
    """``write("loss: gr")``: a file of settings."""

    def write_text(text, name="run.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_text


@pytest.fixture
def no_pictures(monkeypatch):
    leave_out_pictures(monkeypatch.setattr)


# --- read_config ----------------------------------------------------------------------------------


def test_a_file_is_its_settings(write):
    path = write(
        "# a comment: with a colon\n"
        "data:\n  loader: digits\n  images: true\n"
        "loss:\n  name: role\n  lam: 2\n"
        "linear:\n  lr: [1e-2, 1.0e-3, .5E-4, 1]\nvalidation: 2e-1\nseed: 3\n"
    )
    assert read_config(path) == {
        "data": {"loader": "digits", "images": True},
        "loss": {"name": "role", "lam": 2},
        "linear": {"lr": [0.01, 0.001, 0.00005, 1]},
        "validation": 0.2,
        "seed": 3,
    }
    assert read_config(str(path)) == read_config(path)


@given(st.floats(min_value=1e-30, max_value=1e30), st.integers(0, 6), st.sampled_from(["linear.lr", "loss.w"]))
def test_numbers_in_any_spelling(value, digits, where):
    for spelling in (repr(value), f"{value:.{digits}e}", f"{value:.{digits}E}", f"-{value:.{digits}e}"):
        name, text = (where, spelling) if where == "linear.lr" else (where, f"{{a: [{spelling}], b: {spelling}}}")
        found = parse_setting(f"{name}={text}")[1]
        if where == "linear.lr":
            assert found == float(spelling)
            assert isinstance(found, float)
        else:
            assert found == {"a": [float(spelling)], "b": float(spelling)}


@pytest.mark.parametrize("text", ["e5", "1e", "1e5x", "0x1e5", "a1e5", "v1e-3"])
def test_what_only_looks_like_a_number_stays_text(text):
    assert parse_setting(f"data={text}")[1] in (text, yaml.safe_load(text))
    assert not isinstance(parse_setting(f"data={text}")[1], float)


def test_a_typo_is_named_with_file_line_and_what_was_meant(write):
    for text, typo, meant in (
        ("data: digits\nloss: gr\n\nliner: {}\n", "liner", "linear"),
        ("data: digits\nlinear:\n  lr: 1\n  epohcs: 3\n", "linear.epohcs", "linear.epochs"),
    ):
        path = write(text)
        with pytest.raises(ValueError, match=rf"no setting '{typo}'; did you mean '{meant}'\?") as e:
            read_config(path)
        assert str(e.value).startswith(f"{path}, line 4: ")


@pytest.mark.parametrize("key", NEW_SPELLINGS)
def test_an_old_key_says_the_new_one(write, key):
    said = f"there is no setting '{key}' any more; write "
    with pytest.raises(ValueError, match=f"line 2: {said}") as e:
        read_config(write(f"data: digits\n{key}: 3\n"))
    with pytest.raises(ValueError, match=said):
        parse_setting(f"{key}=3")
    with pytest.raises(ValueError, match=said):
        run_config({"data": "digits", key: 3}, "run")
    path = str(e.value).split("write ")[1].split(",")[0].split(":")[0].split(".")
    assert path[0] in (*KEYS, "data")
    assert path[0] not in INNER_KEYS or len(path) == 1 or path[1] in INNER_KEYS[path[0]]


def test_a_key_that_resembles_none_lists_those_that_there_are(write):
    with pytest.raises(ValueError, match=r"line 1: there is no setting 'zzz'") as e:
        read_config(write("zzz: 3"))
    assert all(key in str(e.value) for key in KEYS)


@pytest.mark.parametrize("key", ["train", "test", "out", "resume", "progress", "names", "trainer_options"])
def test_what_is_the_callers_is_no_setting(write, key):
    with pytest.raises(ValueError, match=f"no setting '{key}'"):
        read_config(write(f"{key}: 3"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("loss: gr\n'epohcs': 3\n", 2),
        ('loss: gr\n"epohcs": 3\n', 2),
        ("loss: gr\nlinear: {lr: 1,\n  epohcs: 3}\n", 3),
        ("data:\n  path: a\n  loader: arrays\nloss: gr\npath: b\n", 5),
        ("loss: gr\n3: 4\n", 2),
        ("# epohcs: 3\nloss: gr\nepohcs: 3", 3),
        ("loss: gr\n\n\nepohcs : 3", 4),
    ],
)
def test_the_line_is_that_of_the_key(write, text, line):
    with pytest.raises(ValueError, match=rf"run\.yaml, line {line}: "):
        read_config(write(text))


@pytest.mark.parametrize("text", ["loss: [gr", "a: b: c", "\tloss: gr", "loss: 'gr"])
def test_what_is_no_yaml_is_named_with_file_and_line(write, text):
    path = write(f"data: digits\n{text}\n")
    with pytest.raises(ValueError, match=r"is not YAML: [\s\S]*line [23]") as e:
        read_config(path)
    assert str(e.value).startswith(str(path))


@pytest.mark.parametrize(
    ("text", "kind"), [("- a\n- b", "list"), ("digits", "str"), ("3", "int"), ("", "NoneType")]
)
def test_what_is_no_mapping_is_named(write, text, kind):
    with pytest.raises(ValueError, match=rf"run\.yaml must hold a mapping of settings, got {kind}"):
        read_config(write(text))


def test_yaml_executes_nothing(write, tmp_path):
    with pytest.raises(ValueError, match=r"run\.yaml is not YAML"):
        read_config(write(f"loss: !!python/object/apply:builtins.open ['{tmp_path}/executed', 'w']"))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_a_file_that_is_not_there(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / name))):
        read_config(tmp_path / name)


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"loss: \xff\xfe")
    with pytest.raises(ValueError, match=r"run\.yaml"):
        read_config(tmp_path / "run.yaml")


# --- KEY=VALUE ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linear.lr=1e-3", (["linear", "lr"], 0.001)),
        ("linear.lr=[1e-2,1e-3]", (["linear", "lr"], [0.01, 0.001])),
        ("linear.epochs = 3", (["linear", "epochs"], 3)),
        ("linear.standardize=true", (["linear", "standardize"], True)),
        ("linear={}", (["linear"], {})),
        ("loss=an_ls", (["loss"], "an_ls")),
        ("track_recovery=", (["track_recovery"], None)),
        ("data.folder=a=b", (["data", "folder"], "a=b")),
        ("data.classes=[cat, dog]", (["data", "classes"], ["cat", "dog"])),
        ("loss.alpha=0.1", (["loss", "alpha"], 0.1)),
        ("finetune.trunk={name: small_cnn, width: 8}", (["finetune", "trunk"], {"name": "small_cnn", "width": 8})),
        ("validation.labels=observed", (["validation", "labels"], "observed")),
    ],
)
def test_a_setting_is_a_path_and_a_value(text, expected):
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["", "lr", "lr 3", "lr:3"])
def test_a_setting_needs_an_equals_sign(text):
    with pytest.raises(ValueError, match=re.escape(f"a setting is KEY=VALUE, got {text!r}")):
        parse_setting(text)


def test_a_setting_that_there_is_not():
    with pytest.raises(ValueError, match=r"no setting 'los'; did you mean 'loss'\?"):
        parse_setting("los.alpha=1")
    with pytest.raises(ValueError, match=r"no setting 'finetune.trainer_options'; there are finetune\.trunk, "):
        parse_setting("finetune.trainer_options={}")


@pytest.mark.parametrize("text", ["linear.lr=[1e-2", "linear.lr={a", "loss='gr", "data.folder=a: b: c"])
def test_a_value_that_is_no_yaml(text):
    with pytest.raises(ValueError, match=text.split("=")[0]):
        parse_setting(text)


@pytest.mark.parametrize(
    ("config", "text", "expected"),
    [
        ({}, "loss=gr", {"loss": "gr"}),
        ({"loss": "an"}, "loss=gr", {"loss": "gr"}),
        ({}, "linear.lr=1", {"linear": {"lr": 1}}),
        ({"linear": {"epochs": 2}}, "linear.lr=1", {"linear": {"epochs": 2, "lr": 1}}),
        ({"linear": None}, "linear.lr=1", {"linear": {"lr": 1}}),
        ({"loss": "gr"}, "loss.alpha=1", {"loss": {"name": "gr", "alpha": 1}}),
        ({"loss": {"name": "gr", "w": 2}}, "loss.alpha=1", {"loss": {"name": "gr", "w": 2, "alpha": 1}}),
        ({"validation": 0.3}, "validation.labels=observed", {"validation": {"share": 0.3, "labels": "observed"}}),
        ({"data": "mulan"}, "data.folder=d", {"data": {"loader": "mulan", "folder": "d"}}),
        ({"data": {"loader": "x", "folder": "c"}}, "data.folder=d", {"data": {"loader": "x", "folder": "d"}}),
        ({"finetune": {"trunk": "small_cnn"}}, "finetune.trunk.channels=1",
         {"finetune": {"trunk": {"name": "small_cnn", "channels": 1}}}),
        ({"data": {"loader": "x", "class_weight": [1]}}, "data.a.b=2",
         {"data": {"loader": "x", "class_weight": [1], "a": {"b": 2}}}),
    ],
)  # fmt: skip
def test_settings_lie_over_the_configuration(config, text, expected):
    apply_setting(config, *parse_setting(text))
    assert config == expected


def test_what_a_setting_changes_is_the_configuration_alone():
    """Not the mapping that somebody else's configuration holds too."""
    options = {"alpha": 1}
    config = {"loss": options}
    apply_setting(config, ["loss", "alpha"], 2)
    assert options == {"alpha": 1}
    assert config == {"loss": {"alpha": 2}}


# --- load_data ------------------------------------------------------------------------------------


def test_data_by_name_or_with_options():
    assert torch.equal(load_data("digits").train.observed, digit_attributes().train.observed)
    splits = load_data({"loader": "digits", "images": True, "seed": 4})
    assert splits.train.x.shape[1:] == (1, 8, 8)
    assert torch.equal(splits.train.observed, digit_attributes(seed=4).train.observed)


def test_data_say_what_becomes_of_labels_never_observed():
    assert load_data("digits").train.empty_labels == "refuse"
    splits = load_data({"loader": "digits", "empty_labels": "keep"})
    assert splits.train.empty_labels == "keep"
    assert torch.equal(splits.train.x, digit_attributes().train.x)
    with pytest.raises(ValueError, match="empty_labels must be 'refuse' or 'keep', got 'drop'"):
        load_data({"loader": "digits", "empty_labels": "drop"})


@pytest.mark.parametrize("spec", [None, 3, ["digits"], {}, {"folder": "x"}])
def test_data_without_a_loader(spec):
    with pytest.raises(ValueError, match="data must be a loader's name, or a mapping with 'loader'"):
        load_data(spec)


@pytest.mark.parametrize(
    "spec", ["digit", {"loader": "digits", "imags": True}, {"loader": "mulan"}, {"loader": None}]
)
def test_loaders_and_options_that_there_are_not(spec):
    with pytest.raises(ValueError, match=r"did you mean|needs folder|There are"):
        load_data(spec)


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(configuration, folder, result) of a finished run on the digits, pictures and all."""
    folder = tmp_path_factory.mktemp("runs") / "a" / "run"
    config = {
        "data": {"loader": "digits", "seed": 1},
        "loss": {"name": "gr", "q": [0.0, 0.1, 1.0]},
        "linear": FAST,
    }
    return config, folder, run_config(config, folder, progress=False)


def plain(metrics):
    """Without what no two runs share."""
    metrics = json.loads(json.dumps(metrics))
    del metrics["seconds"]
    for record in metrics["epochs"]:
        del record["seconds"]
    return metrics


def metrics_of(folder):
    return plain(json.loads((folder / "metrics.json").read_text()))


@pytest.mark.slow
def test_a_run_is_a_training_with_these_settings(run):
    _, folder, result = run
    splits = digit_attributes(seed=1)
    direct = train_classifier(
        splits.train, test=splits.test, loss={"name": "gr", "q": [0.0, 0.1, 1.0]}, linear=LinearPhase(**FAST),
        out=RunRecord(title="digits", track_recovery=True), progress=False,
    )  # fmt: skip
    assert plain(result.metrics) == plain(direct.metrics)
    assert torch.equal(result.test_probabilities, direct.test_probabilities)
    assert metrics_of(folder) == plain(result.metrics)


@pytest.mark.slow
def test_the_folder_has_everything(run):
    names = {path.name for path in run[1].iterdir()}
    assert names >= {
        "config.yaml", "settings.json", "metrics.json", "model.safetensors", "predictions.npz", "report.html",
        "curves.png", "average_precision.png",
    }  # fmt: skip
    assert not [name for name in names if name.startswith(".")]


def test_the_configuration_is_left_beside_the_results(run, tmp_path, no_pictures):
    """And trains the same again."""
    config, folder, result = run
    assert read_config(folder / "config.yaml") == config
    again = run_config(read_config(folder / "config.yaml"), tmp_path / "again", progress=False)
    assert plain(again.metrics) == plain(result.metrics)
    assert torch.equal(again.test_probabilities, result.test_probabilities)


def test_the_written_configuration_continues_its_own_run(run, no_pictures, monkeypatch):
    from spml_fast.training.linear import LinearGroup

    _, folder, result = run
    monkeypatch.setattr(LinearGroup, "train_epoch", lambda self: pytest.fail("a finished run was trained again"))
    again = run_config(read_config(folder / "config.yaml"), folder, progress=False)
    assert plain(again.metrics) == plain(result.metrics)


class Links(HTMLParser):
    """What a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found += [
            v for k, v in attributes if k in ("src", "href", "srcset", "data", "action", "poster") and v
        ]


def test_the_report_needs_no_other_file(run):
    text = (run[1] / "report.html").read_text()
    links = Links(text).found
    assert len(links) >= 3  # the pictures are there
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "<script" not in text
    assert not re.search(r"url\((?!['\"]?(data:|#))|@import", text)


def test_the_report_tells_what_was_measured(run):
    _, folder, result = run
    text = (folder / "report.html").read_text()
    assert f"{100 * result.metrics['test']['map']:.1f}" in text
    assert all(name in text for name in result.metrics["names"])


def test_the_summary_tells_the_same(run):
    text = summary(run[2].metrics)
    assert f"test mAP        {100 * run[2].metrics['test']['map']:.2f}\n" in text
    assert "lr 0.01" in text
    assert "recovered mAP" in text


def test_configurations_that_cannot_be_run(tmp_path):
    with pytest.raises(ValueError, match="data is missing"):
        run_config({"loss": "gr"}, tmp_path / "run")
    for config, match in (
        ({"liner": {}}, r"no setting 'liner'; did you mean 'linear'\?"),
        ({"linear": {"epohcs": 3}}, r"no setting 'linear.epohcs'; did you mean 'linear.epochs'\?"),
        ({"linear": 3}, "linear must be a mapping of some of lr, batch_size, epochs, .*, got 3"),
        ({"finetune": {"lr": 1e-3}}, "finetune needs a trunk"),
        ({"validation": {"share": 1.5}}, "validation must be a share of the training rows"),
        ({"validation": {"labels": "true"}}, "labels must be 'full' or 'observed', got 'true'"),
    ):
        with pytest.raises(ValueError, match=match):
            run_config({"data": "digits", **config}, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_running_leaves_the_configuration_as_it_was(tmp_path, no_pictures):
    config = {"data": {"loader": "digits"}, "loss": "an", "linear": dict(FAST)}
    before = json.dumps(config)
    run_config(config, tmp_path / "run", progress=False)
    assert json.dumps(config) == before


# --- evaluate_run ---------------------------------------------------------------------------------


def test_evaluating_measures_the_same_again(run, no_pictures):
    _, folder, result = run
    before = metrics_of(folder)
    again = evaluate_run(folder)
    assert again == json.loads((folder / "evaluation.json").read_text())
    assert again["map"] == pytest.approx(result.metrics["test"]["map"], abs=1e-12)
    assert again["ap"] == pytest.approx(result.metrics["test"]["ap"])
    assert metrics_of(folder) == before


def test_evaluating_mends_the_test_results(run, no_pictures):
    _, folder, result = run
    text = (folder / "metrics.json").read_text()
    (folder / "metrics.json").write_text(json.dumps(json.loads(text) | {"test": None}))
    evaluate_run(folder)
    assert metrics_of(folder) == plain(result.metrics)


@pytest.fixture
def other_data(tmp_path):
    """A file of test data, half of the digits' own."""
    splits = digit_attributes()
    path = tmp_path / "other.npz"
    np.savez(
        path, x_train=splits.train.x[:9], labels_train=splits.train.labels[:9], x_test=splits.test.x[::2],
        labels_test=splits.test.labels[::2], names=np.array(splits.test.names),
    )  # fmt: skip
    return path


def test_evaluating_on_other_data(run, other_data):
    _, folder, result = run
    before = metrics_of(folder)
    found = evaluate_run(folder, {"loader": "arrays", "path": str(other_data)})
    splits = digit_attributes()
    expected = evaluate(result.predict_proba(splits.test.x[::2]), splits.test.labels[::2], splits.test.names)
    assert found["n"] == 225
    assert found["map"] == pytest.approx(expected["map"])
    assert metrics_of(folder) == before  # which are of the run's own data


def test_evaluating_an_unfinished_run(tmp_path, no_pictures):
    for folder in (tmp_path / "absent", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"metrics\.json does not exist: .* holds no finished run"):
            evaluate_run(folder)
    (tmp_path / "linear.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        evaluate_run(tmp_path)


def test_evaluating_a_run_of_the_library(tmp_path, no_pictures, other_data):
    """Which leaves no configuration."""
    splits = digit_attributes()
    train_classifier(splits.train, progress=False, out=tmp_path / "run", linear=LinearPhase(**FAST))
    with pytest.raises(ValueError, match="does not say what its data are; name them with --data"):
        evaluate_run(tmp_path / "run")
    assert evaluate_run(tmp_path / "run", "digits")["n"] == 450


def arrays(path, width=64, labels=9, test=True):
    generator = np.random.default_rng(0)
    given = {}
    for split in ("train", "test")[: 2 if test else 1]:
        given[f"x_{split}"] = generator.random((20, width))
        given[f"labels_{split}"] = generator.random((20, labels)) < 0.5
    np.savez(path, **given)
    return {"loader": "arrays", "path": str(path)}


def test_evaluating_on_data_that_do_not_fit(run, tmp_path):
    with pytest.raises(ValueError, match="no test split with full labels"):
        evaluate_run(run[1], arrays(tmp_path / "a.npz", test=False))
    with pytest.raises(ValueError, match="the data have 4 labels, the classifier 9"):
        evaluate_run(run[1], arrays(tmp_path / "b.npz", labels=4))


def test_evaluating_on_features_of_another_width(run, tmp_path):
    with pytest.raises(ValueError, match="50"):
        evaluate_run(run[1], arrays(tmp_path / "a.npz", width=50))


def test_evaluating_damaged_weights(run, tmp_path):
    for name in ("metrics.json", "config.yaml"):
        (tmp_path / name).write_bytes((run[1] / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((run[1] / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        evaluate_run(tmp_path)


# --- trunks ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """(configuration, folder, result) of fine-tuning small_cnn on digit images."""
    folder = tmp_path_factory.mktemp("tuned")
    config = {"data": IMAGES, "loss": "role", "finetune": TUNE}
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch.setattr)
        return config, folder, run_config(config, folder, progress=False)


def test_a_trunk_is_tuned_on_images(tuned):
    _, _, result = tuned
    assert [record["phase"] for record in result.metrics["epochs"]] == ["finetune"] * 2
    assert result.test_probabilities.shape == (450, 9)
    assert isinstance(result.model.trunk, torch.nn.Sequential)
    assert result.model.head.in_features == 32
    assert result.model.trunk[0].weight.shape == (8, 1, 3, 3)


def test_its_weights_load_into_a_trunk_of_the_same_shape(tuned, no_pictures):
    _, folder, result = tuned
    model = load_classifier(folder, small_cnn(1, 8))
    x = digit_attributes(images=True).test.x
    assert torch.equal(model.predict_proba(x), result.test_probabilities)
    assert evaluate_run(folder)["map"] == pytest.approx(result.metrics["test"]["map"], abs=1e-12)
    for trunk in (None, small_cnn(1, 16)):
        with pytest.raises(ValueError, match=r"model\.safetensors does not fit"):
            load_classifier(folder, trunk)


def test_a_configuration_with_a_trunk_trains_the_same_again(tuned, tmp_path, no_pictures):
    _, folder, result = tuned
    again = run_config(read_config(folder / "config.yaml"), tmp_path / "again", progress=False)
    assert plain(again.metrics) == plain(result.metrics)


def test_linear_init_continues_with_the_trunk_it_started_with(tmp_path, no_pictures, monkeypatch):
    """Whose features the classifier in linear.pt is for: its weights start fine-tuning on them."""
    config = {"data": IMAGES, "loss": "gr", "linear": FAST, "finetune": TUNE}
    trunks = []

    def stop(trainer, module, *_, **__):
        trunks.append(module.model.trunk[0].weight.detach().clone())
        raise ZeroDivisionError

    monkeypatch.setattr(finetune, "finetune", stop)
    for _ in range(2):  # the second continues after the linear phase of the first
        with pytest.raises(ZeroDivisionError):
            run_config(config, tmp_path / "run", progress=False)
    assert torch.equal(*trunks)


# --- the command line -----------------------------------------------------------------------------

QUICK = ["--set", "linear.epochs=1", "--set", "linear.lr=0.01", "--set", "linear.batch_size=64", "--quiet"]


def shell(capsys, *arguments):
    """(exit status, what it printed, what it complained of)"""
    capsys.readouterr()
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as error:
        status = error.code
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_train_and_evaluate(tmp_path, capsys, no_pictures, write, other_data):
    config = write(
        "data: {loader: digits, seed: 2}\nloss: role\nlinear: {lr: [1e-2], batch_size: 64, epochs: 9}\n"
    )
    out = tmp_path / "run"
    status, printed, complaints = shell(
        capsys, "train", config, "--out", out, "--quiet", "--set", "linear.epochs=2", "--set",
        "loss.lam=0.5", "--set", "data.positives=2",
    )  # fmt: skip
    assert (status, complaints) == (0, "")
    metrics = json.loads((out / "metrics.json").read_text())
    assert f"test mAP        {100 * metrics['test']['map']:.2f}" in printed
    assert str(out / "report.html") in printed
    assert (metrics["loss"], metrics["loss_options"]["lam"], len(metrics["epochs"])) == ("role", 0.5, 2)
    assert read_config(out / "config.yaml") == {
        "data": {"loader": "digits", "seed": 2, "positives": 2}, "loss": {"name": "role", "lam": 0.5},
        "linear": {"lr": [0.01], "batch_size": 64, "epochs": 2},
    }  # fmt: skip

    status, printed, complaints = shell(capsys, "evaluate", out)
    assert (status, complaints) == (0, "")
    last = printed.splitlines()[-1]
    assert re.fullmatch(rf"mAP +{100 * metrics['test']['map']:.2f} on 450 instances", last)
    assert all(name in printed for name in metrics["names"])

    status, printed, complaints = shell(
        capsys, "evaluate", out, "--data", "arrays", "--set", f"data.path={other_data}"
    )
    assert (status, complaints) == (0, "")
    assert "on 225 instances" in printed


def test_train_twice_restart_and_other_settings(tmp_path, capsys, no_pictures, monkeypatch):
    from spml_fast.training.linear import LinearGroup

    trained, real = [], LinearGroup.train_epoch
    monkeypatch.setattr(LinearGroup, "train_epoch", lambda self: trained.append(1) or real(self))
    command = ["train", "--data", "digits", "--out", tmp_path, *QUICK]
    counts = []
    for more in ([], [], ["--restart"]):
        status, _, complaints = shell(capsys, *command, *more)
        assert (status, complaints) == (0, "")
        counts.append(len(trained))
    assert counts == [1, 1, 2]
    status, _, complaints = shell(capsys, *command, "--seed", 5)
    assert status == 1
    assert complaints.startswith(f"spml-fast train: {tmp_path} holds a run of other settings (seed was 0, is 5)")
    assert len(trained) == 2
    assert shell(capsys, *command, "--seed", 5, "--restart")[0] == 0
    assert len(trained) == 3
    assert json.loads((tmp_path / "metrics.json").read_text())["seed"] == 5


def test_train_a_trunk(tmp_path, capsys, no_pictures):
    status, printed, complaints = shell(
        capsys, "train", "--data", "digits", "--set", "data.images=true", "--finetune", "small_cnn", "--set",
        "finetune.trunk.channels=1", "--set", "finetune.trunk.width=8", "--set", "finetune.epochs=1", "--set",
        "finetune.batch_size=256", "--accelerator", "cpu", "--out", tmp_path, "--quiet",
    )  # fmt: skip
    assert (status, complaints) == (0, "")
    assert "test mAP" in printed
    trunk = {"name": "small_cnn", "channels": 1, "width": 8}
    assert read_config(tmp_path / "config.yaml")["finetune"] == {"trunk": trunk, "epochs": 1, "batch_size": 256}
    status, again, complaints = shell(capsys, "evaluate", tmp_path)
    assert (status, complaints) == (0, "")
    map_of = json.loads((tmp_path / "metrics.json").read_text())["test"]["map"]
    assert f"{100 * map_of:.2f} on 450 instances" in again


COMPLAINTS = {
    # name: (arguments of train, what is said)
    "unknown loss": (["--data", "digits", "--loss", "grr"], "no loss is called 'grr'"),
    "unknown data": (["--data", "digit"], "no data set 'digit', did you mean 'digits'?"),
    "unknown option": (
        ["--data", "digits", "--set", "data.image=true"],
        "no option 'image', did you mean 'images'?",
    ),
    "missing option": (["--data", "mulan"], "'mulan' needs folder"),
    "missing folder": (["--data", "arrays", "--set", "data.path=absent.npz"], "absent.npz"),
    "no data": (["--loss", "gr"], "data is missing"),
    "data without loader": (["--set", "data.images=true"], "data must be a loader's name"),
    "unknown setting": (["--data", "digits", "--set", "liner={}"], "no setting 'liner'; did you mean 'linear'?"),
    "old setting": (
        ["--data", "digits", "--set", "epochs=3"],
        "no setting 'epochs' any more; write linear.epochs",
    ),
    "no value": (["--data", "digits", "--set", "seed"], "a setting is KEY=VALUE, got 'seed'"),
    "unknown loss option": (
        ["--data", "digits", "--loss", "gr", "--set", "loss.alpa=1"],
        "no hyper-parameter 'alpa'",
    ),
    "unknown trunk": (["--data", "digits", "--finetune", "a.b:c"], "trunk 'a.b:c' cannot be imported"),
    "no trunk": (
        ["--data", "digits", "--set", "finetune.lr=0.1"],
        "finetune needs a trunk: finetune: {trunk: NAME}",
    ),
    "no epochs": (
        ["--data", "digits", "--set", "linear.epochs=0"],
        "linear: epochs must be a positive integer, got 0",
    ),
    "a loss without a name": (["--data", "digits", "--set", "loss.w=1"], "loss must be a mapping with 'name'"),
    "absent file": (["absent.yaml"], "absent.yaml does not exist"),
    "several rates, no validation": (["--data", "digits", "--set", "validation=0"], "pass one lr"),
}


@pytest.mark.parametrize("name", COMPLAINTS)
def test_mistakes_are_told_in_a_line(tmp_path, capsys, name):
    arguments, said = COMPLAINTS[name]
    status, printed, complaints = shell(capsys, "train", *arguments, "--out", tmp_path / "run", "--quiet")
    assert status == 1
    assert printed == ""
    assert complaints.startswith("spml-fast train: ")
    assert complaints.count("\n") == 1
    assert said in complaints
    assert not (tmp_path / "run").exists()


def test_a_typo_in_the_file_is_told_with_its_place(tmp_path, capsys, write):
    path = write("data: digits\nlos: gr\n")
    status, _, complaints = shell(capsys, "train", path, "--out", tmp_path / "run")
    assert status == 1
    assert complaints == f"spml-fast train: {path}, line 2: there is no setting 'los'; did you mean 'loss'?\n"


def test_a_value_that_is_no_yaml_is_told_in_a_line(tmp_path, capsys):
    status, _, complaints = shell(
        capsys, "train", "--data", "digits", "--set", "linear.lr=[1", "--out", tmp_path / "run"
    )
    assert status == 1
    assert "linear.lr" in complaints


@pytest.mark.parametrize("name", ["gppu", "tpu"])
def test_an_accelerator_that_there_is_not(tmp_path, capsys, no_pictures, name):
    status, _, complaints = shell(
        capsys, "train", "--data", "digits", "--accelerator", name, "--out", tmp_path / "run", *QUICK
    )
    assert status == 1
    assert name in complaints


def test_train_needs_a_folder(capsys):
    status, _, complaints = shell(capsys, "train", "--data", "digits")
    assert status == 2
    assert "--out" in complaints


@pytest.mark.parametrize(
    ("flag", "value", "new"),
    [
        ("--train-mode", "linear_init", "--finetune TRUNK, and --linear"),
        ("--trunk", "small_cnn", "--finetune TRUNK"),
        ("--epochs", "3", "--set linear.epochs=N"),
    ],
)
def test_an_old_flag_says_the_new_one(tmp_path, capsys, flag, value, new):
    status, _, complaints = shell(capsys, "train", "--data", "digits", flag, value, "--out", tmp_path / "run")
    assert status == 2
    assert f"there is no {flag} any more; write {new}" in complaints
    assert flag not in shell(capsys, "train", "--help")[1].split()


@pytest.mark.parametrize(
    ("flags", "phases"),
    [
        ([], {"linear"}),
        (["--finetune", "small_cnn"], {"finetune"}),
        (["--linear", "--finetune", "small_cnn"], {"linear", "finetune"}),
    ],
)
def test_the_mode_follows_from_the_flags(tmp_path, capsys, no_pictures, flags, phases):
    settings = ["data.images=true", "finetune.trunk.channels=1", "finetune.trunk.width=8"] if flags else []
    settings += ["finetune.epochs=1", "finetune.batch_size=512"] if flags else []
    if "linear" in phases:
        settings += ["linear.epochs=1", "linear.batch_size=512", "linear.lr=0.01"]
    more = [part for setting in settings for part in ("--set", setting)]
    command = ["train", "--data", "digits", *flags, *more, "--accelerator", "cpu", "--quiet", "--out", tmp_path]
    assert shell(capsys, *command)[0] == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {record["phase"] for record in metrics["epochs"]} == phases
    assert metrics["train_mode"] == ("linear_init" if len(phases) == 2 else phases.pop())


def test_a_share_and_labels_to_choose_by(tmp_path, no_pictures):
    """The same as in Python; a loader's own split gives way to a share alone."""
    config = {"data": "digits", "linear": FAST, "validation": {"share": 0.4, "labels": "observed"}}
    result = run_config(config, tmp_path, progress=False)
    splits = digit_attributes()
    given = Validation(0.4, labels="observed")
    direct = train_classifier(splits.train, validation=given, linear=LinearPhase(**FAST), progress=False)
    assert result.metrics["selected"] == direct.metrics["selected"]
    assert result.metrics["n_validation"] == direct.metrics["n_validation"] == -(-4 * len(splits.train) // 10)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "holds no finished run"),
        (["--set", "zzz=1"], "no setting 'zzz'"),
    ],
)
def test_evaluate_without_a_finished_run(tmp_path, capsys, more, said):
    status, printed, complaints = shell(capsys, "evaluate", tmp_path, *more)
    assert (status, printed) == (1, "")
    assert complaints.startswith("spml-fast evaluate: ")
    assert said in complaints


def test_evaluate_refuses_settings_that_it_has_no_use_for(run, capsys, no_pictures):
    status, _, complaints = shell(capsys, "evaluate", run[1], "--set", "loss=role")
    assert status == 1
    assert "loss" in complaints


def test_evaluate_on_features_of_another_width_is_told_in_a_line(run, tmp_path, capsys):
    spec = arrays(tmp_path / "a.npz", width=50)
    status, _, complaints = shell(
        capsys, "evaluate", run[1], "--data", "arrays", "--set", f"data.path={spec['path']}"
    )
    assert status == 1
    assert "50" in complaints


def test_interrupted_is_130(tmp_path, capsys, monkeypatch):
    from spml_fast.training.linear import LinearGroup

    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(LinearGroup, "train_epoch", stop)
    status, printed, complaints = shell(capsys, "train", "--data", "digits", "--out", tmp_path, *QUICK)
    assert (status, printed) == (130, "")
    assert complaints.strip() == "spml-fast train: interrupted; the same command continues"


def test_an_interrupted_restart_does_not_advise_to_restart(tmp_path, capsys, monkeypatch):
    from spml_fast.training.linear import LinearGroup

    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(LinearGroup, "train_epoch", stop)
    _, _, complaints = shell(capsys, "train", "--data", "digits", "--restart", "--out", tmp_path, *QUICK)
    assert complaints.strip() != "spml-fast train: interrupted; the same command continues"


def test_help_names_the_commands(capsys):
    for command in ("train", "evaluate"):
        status, printed, _ = shell(capsys, command, "--help")
        assert status == 0
        assert "--set KEY=VALUE" in printed
