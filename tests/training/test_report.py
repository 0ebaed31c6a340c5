"""The report: one file, everything escaped, and whatever is missing left out."""

import base64
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from spml_fast import plots
from spml_fast.training import report
from spml_fast.training.report import write_report

EVIL = "<script>alert('1')</script> & \"co\""
METRICS = {
    "spml_fast": "0.1",
    "data": "digits",
    "loss": "gr",
    "loss_options": {"w": [0, 2], "eps": 0.0},
    "train_mode": "linear",
    "n_train": 1347,
    "n_validation": 269,
    "n_labels": 3,
    "names": ["plain", EVIL, "empty"],
    "seed": 0,
    "selected": {"lr": 0.01, "batch_size": 16, "epoch": 23, "validation_map": 0.912},
    "test": {
        "n": 450,
        "map": 0.8514,
        "ap": {"plain": 0.7, EVIL: 0.9, "empty": 0.0},
        "precision_at": {"1": 0.95, "3": 0.6},
        "recall_at": {"1": None, "3": float("nan")},
        "classes_without_positives": ["empty", EVIL],
    },
    "recovery": {"map": 0.873, "ap": {"plain": 0.8, EVIL: 0.85, "empty": None}},
    "estimates": None,
    "grid": [
        {"lr": 0.001, "batch_size": 8, "epoch": 25, "validation_map": None},
        {"lr": 0.01, "batch_size": 16, "epoch": 23, "validation_map": 0.912},
    ],
    "epochs": [
        {"phase": "linear", "epoch": 1, "train_loss": 0.5, "validation_map": 0.4, "seconds": 0.1},
        {"phase": "linear", "epoch": 2, "train_loss": float("nan"), "validation_map": None, "seconds": 75.0},
    ],
    "seconds": {"linear": 3.2, "finetune": 4000.0},
    "settings": {"augment": False, "comment": EVIL, "learning_rates": [0.1, 0.01], "seed": None},
}


class Page(HTMLParser):
    """Tags with attributes, the text, and the cells of every table row."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.rows, self.open = [], "", [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(folder, metrics):
    (folder / "metrics.json").write_text(json.dumps(metrics))
    path = write_report(folder)
    assert path == folder / "report.html"
    assert not list(folder.glob("*.part"))
    return Page(path.read_text(encoding="utf-8"))


def test_what_it_says(tmp_path):
    page = page_of(tmp_path, METRICS)
    for word in ("digits · gr", "85.1", "test mAP", "91.2", "validation mAP", "87.3", "recovery mAP", "1,347"):
        assert word in page.text
    assert "estimates mAP" not in page.text
    for row in (
        ["1", "95.0", "-"],
        ["3", "60.0", "-"],
        ["class", "test", "recovery"],
        [EVIL, "90.0", "85.0"],
        ["empty", "0.0", "-"],
        ["0.01", "16", "23", "91.2"],
        ["0.001", "8", "25", "-"],
        ["linear", "1", "0.5", "40.0", "-", "0.1 s"],
        ["linear", "2", "-", "-", "-", "1 min 15 s"],
        ["augment", "False"],
        ["comment", EVIL],
        ["seed", "-"],
        ["learning_rates", "[0.1, 0.01]"],
        ["loss: w", "[0, 2]"],
    ):
        assert row in page.rows
    assert "1 h 06 min" in page.text
    assert page.rows.index([EVIL, "90.0", "85.0"]) < page.rows.index(["plain", "70.0", "80.0"])
    assert f"counted 0: empty, {EVIL}." in page.text
    assert len([attrs for attrs in page.all("tr") if attrs.get("class") == "chosen"]) == 1
    for nonsense in ("None", "nan", "NaN", "Undefined", "{{", "{%"):
        assert nonsense not in page.text


def test_it_stands_alone(tmp_path):
    plots.plot_average_precision(METRICS["test"]["ap"], tmp_path / "average_precision.png")
    plots.plot_grid(METRICS["grid"], tmp_path / "grid.png")
    page = page_of(tmp_path, METRICS)
    images = page.all("img")
    assert [image["alt"] for image in images] == [
        "Average precision by class",
        "Choice of learning rate and batch size",
    ]
    for image, name in zip(images, ("average_precision.png", "grid.png"), strict=True):
        kind, data = image["src"].split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == (tmp_path / name).read_bytes()
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert not {"href", "srcset", "action"} & attrs.keys()
        assert attrs.get("src", "data:").startswith("data:")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    assert "@import" not in html


@pytest.mark.parametrize("key", ["data", "loss", "train_mode", "names", "spml_fast"])
def test_everything_is_escaped(tmp_path, key):
    page = page_of(tmp_path, {**METRICS, key: EVIL})
    assert not page.all("script")
    assert "<script" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_keys_are_escaped(tmp_path):
    evil = {**METRICS, "settings": {EVIL: 1}, "loss_options": {EVIL: {EVIL: 1}}, "seconds": {EVIL: 1.0}}
    evil["epochs"] = [{"phase": EVIL}]
    page = page_of(tmp_path, evil)
    assert not page.all("script")
    assert [EVIL, "1"] in page.rows


@pytest.mark.slow
@pytest.mark.parametrize("missing", METRICS)
@pytest.mark.parametrize("how", ["absent", "null"])
def test_a_key_may_be_missing(tmp_path, missing, how):
    metrics = {key: value for key, value in METRICS.items() if key != missing}
    page = page_of(tmp_path, metrics if how == "absent" else {**metrics, missing: None})
    assert "None" not in page.text


@pytest.mark.parametrize("metrics", [{}, {"test": {}, "grid": [{}], "epochs": [{}], "selected": {}}])
def test_all_keys_may_be_missing(tmp_path, metrics):
    page = page_of(tmp_path, metrics)
    assert "training run" in page.text
    assert not page.all("img")


def test_long_tables_are_folded(tmp_path):
    ap = {str(i): i / 1000 for i in range(1000)}
    metrics = {"test": {"map": 0.5, "ap": ap}}
    page = page_of(tmp_path, metrics)
    assert "all 1000 classes" in page.text
    assert ["999", "99.9"] in page.rows
    assert len(page.all("details")) == 1
    few = {name: value for name, value in ap.items() if int(name) < report.LONG_TABLE}
    assert not page_of(tmp_path, {"test": {"ap": few}}).all("details")


def test_names_of_any_alphabet(tmp_path):
    page = page_of(tmp_path, {"test": {"ap": {"猫 – кошка": 0.5}}})
    assert ["猫 – кошка", "50.0"] in page.rows


def test_without_metrics(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.json does not exist"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").write_text('{"data": ')
    with pytest.raises(ValueError, match=r"metrics\.json is not JSON"):
        write_report(tmp_path)
    (tmp_path / "metrics.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"must hold an object, got list"):
        write_report(str(tmp_path))
    assert not (tmp_path / "report.html").exists()


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    page_of(tmp_path, METRICS)
    before = (tmp_path / "report.html").read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
