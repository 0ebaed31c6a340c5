"""A page about a training run, with its metrics, pictures and tables in a single file."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._checkpoint import write_atomically

LONG_TABLE = 60
"""Longer tables start folded."""

# File name, title and explanation of each picture, some of which are known from the papers.
PICTURES = (
    (
        "curves.png",
        "Training",
        "Training loss, and mAP on the validation set, over the epochs. Recovery is the mAP against the full "
        "labels of the training set itself, of which training saw one positive per instance. The ring marks the "
        "best validation mAP.",
    ),
    (
        "average_precision.png",
        "Average precision by class",
        "Each class's average precision on the test set, the best first; the dashed line is their mean, the mAP. "
        "A class without positives counts 0.",
    ),
    (
        "unobserved_positives.png",
        "Predicted probability of unobserved labels",
        "What the classifier makes of the labels of the training set that it was not given (as in Cole et al., "
        "CVPR 2021): each column is one epoch's normalised histogram of the predicted probabilities, white where "
        "there are none. Positives that are recovered move to 1, whereas true negatives should stay near 0.",
    ),
    (
        "distinguishing.png",
        "Distinguishing ability of the predictions",
        "Distributions of the predicted probability p for missing positives and for true negatives, in the first "
        "epoch and in the last (as in figure 3 of Chen et al., GR loss, 2024). The further they are apart, the "
        "higher are ROC AUC and Wasserstein distance, shown over the epochs.",
    ),
    (
        "false_negative_share.png",
        "Share of false negatives among unobserved labels",
        "FN / (FN + TN) in each interval of the predicted probability p: how many of the unobserved labels there "
        "are truly positive (as in figure 5 of Chen et al., GR loss, 2024). Faint bars stand for few labels. "
        "Where the loss has an estimate k̂(p) of this share, its curve is drawn over the last epoch.",
    ),
    (
        "grid.png",
        "Choice of learning rate and batch size",
        "Validation mAP of each setting in its best epoch; the ring marks the one chosen.",
    ),
)


def write_report(folder: str | Path) -> Path:
    """Writes ``report.html`` from the files of a run.

    The page needs nothing else: pictures are inside, there are no scripts, no fonts and no links to a network.

    Args:
        folder: folder with ``metrics.json`` and any of the pictures in ``PICTURES``. The page leaves out what the
            folder does not have.

    Returns:
        The path of ``report.html``, which appears whole or not at all.

    Raises:
        FileNotFoundError: there is no ``metrics.json``.
        ValueError: it is not a JSON object.
    """
    from jinja2 import Environment

    folder = Path(folder)
    metrics = _read(folder / "metrics.json")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE)
    html = page.render(
        title=_title(metrics),
        about=_about(metrics),
        headline=_headline(metrics),
        facts=_facts(metrics),
        pictures=_pictures(folder),
        at_k=_at_k(_part(metrics, "test")),
        classes=_classes(metrics),
        without_positives=_part(metrics, "test").get("classes_without_positives") or [],
        grid=_grid(metrics),
        epochs=_epochs(metrics),
        settings=_settings(metrics),
        version=metrics.get("spml_fast"),
        long_table=LONG_TABLE,
    )
    return write_atomically(folder / "report.html", lambda part: part.write_text(html, encoding="utf-8"))


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; a training run writes it")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(metrics, dict):
        raise ValueError(f"{path} must hold an object, got {type(metrics).__name__}")
    return metrics


def _part(metrics: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A mapping inside the metrics; an empty one where it is absent or null."""
    return metrics.get(key) or {}


# ------------------------------------------------------------------------------ numbers as text


def _number(value: Any, digits: int = 4) -> str:
    """A number as text with so many significant digits; "-" for None and NaN; anything else as it is."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _seconds(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    if value < 60:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


# ----------------------------------------------------------------------------- parts of the page


def _title(metrics: Mapping[str, Any]) -> str:
    return " · ".join(str(metrics[key]) for key in ("data", "loss") if metrics.get(key)) or "training run"


def _about(metrics: Mapping[str, Any]) -> str:
    """One line: how much data, how trained."""
    counts = {"n_train": "training instances", "n_validation": "for validation", "n_labels": "labels"}
    words = [f"{_number(metrics[key])} {name}" for key, name in counts.items() if metrics.get(key) is not None]
    modes = {
        "linear": "linear classifier",
        "finetune": "fine-tuned end to end",
        "linear_init": "linear phase, then fine-tuning",
        "linearinit": "linear phase, then fine-tuning",
    }
    if metrics.get("train_mode"):
        words.append(modes.get(str(metrics["train_mode"]).lower(), str(metrics["train_mode"])))
    return ", ".join(words)


def _headline(metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Value in %, name and meaning of each mAP that was measured."""
    names = (
        (_part(metrics, "test"), "map", "test mAP", "on the test set"),
        (_part(metrics, "selected"), "validation_map", "validation mAP", "of the epoch chosen"),
        (_part(metrics, "recovery"), "map", "recovery mAP", "training labels, from the predictions"),
        (_part(metrics, "estimates"), "map", "estimates mAP", "training labels, from the label estimator"),
    )
    return [(_percent(of[key]), name, meaning) for of, key, name, meaning in names if key in of]


def _facts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    selected, test = _part(metrics, "selected"), _part(metrics, "test")
    rows = [
        ("data set", metrics.get("data")),
        ("loss", metrics.get("loss")),
        ("mode", metrics.get("train_mode")),
        ("learning rate", selected.get("lr")),
        ("batch size", selected.get("batch_size")),
        ("epoch chosen", selected.get("epoch")),
        ("test instances", test.get("n")),
        ("seed", metrics.get("seed")),
    ]
    rows = [(name, _number(value)) for name, value in rows if value is not None]
    return rows + [(f"time, {phase}", _seconds(value)) for phase, value in _part(metrics, "seconds").items()]


def _pictures(folder: Path) -> list[dict[str, str]]:
    found = []
    for name, title, text in PICTURES:
        path = folder / name
        if path.is_file():
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            found.append({"src": f"data:image/png;base64,{data}", "title": title, "text": text})
    return found


def _at_k(test: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    precision, recall = test.get("precision_at") or {}, test.get("recall_at") or {}
    ks = sorted({*precision, *recall}, key=int)
    return [(k, _percent(precision.get(k)), _percent(recall.get(k))) for k in ks]


def _classes(metrics: Mapping[str, Any]) -> dict[str, Any] | None:
    """Average precision by class, the best first: test set, recovery and estimates, where they were measured."""
    parts = {name: _part(metrics, name).get("ap") or {} for name in ("test", "recovery", "estimates")}
    columns = [name for name, ap in parts.items() if ap]
    if not columns:
        return None

    def rank(name: str) -> float:
        value = parts[columns[0]].get(name)
        return -1 if value is None or math.isnan(value) else value

    names = dict.fromkeys(name for column in columns for name in parts[column])
    rows = [
        (name, round(100 * max(rank(name), 0), 1), [_percent(parts[column].get(name)) for column in columns])
        for name in sorted(names, key=rank, reverse=True)
    ]
    return {"columns": columns, "rows": rows}


def _grid(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The points of the grid, the best first, with a mark on the one chosen."""
    selected = _part(metrics, "selected")

    def value(point: Mapping[str, Any]) -> float:
        map_ = point.get("validation_map")
        return -1 if map_ is None or math.isnan(map_) else map_

    return [
        {
            "chosen": bool(selected) and all(point.get(key) == selected.get(key) for key in ("lr", "batch_size")),
            "cells": [_number(point.get(key)) for key in ("lr", "batch_size", "epoch")]
            + [_percent(point.get("validation_map"))],
        }
        for point in sorted(metrics.get("grid") or [], key=value, reverse=True)
    ]


def _epochs(metrics: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            _number(epoch.get("phase")),
            _number(epoch.get("epoch")),
            _number(epoch.get("train_loss")),
            _percent(epoch.get("validation_map")),
            _percent(epoch.get("recovery_map")),
            _seconds(epoch.get("seconds")),
        ]
        for epoch in metrics.get("epochs") or []
    ]


def _settings(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    def text(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else _number(value)

    options = {f"loss: {key}": value for key, value in _part(metrics, "loss_options").items()}
    return [(str(key), text(value)) for key, value in {**_part(metrics, "settings"), **options}.items()]


TEMPLATE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --page: #fbfbfa; --card: #fff; --ink: #1c1e21; --soft: #62676d; --line: #e4e5e7;
  --accent: #0072b2; --bar: #0072b21f; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --card: #1d2024; --ink: #e8e9ea; --soft: #9ba1a8;
  --line: #33373c; --accent: #5db7ec; --bar: #56b4e933; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Liberation Sans", "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
main { max-width: 64rem; margin: 0 auto; padding: 3rem 1.25rem 4rem; }
h1 { font-size: 2.1rem; line-height: 1.2; letter-spacing: -.02em; margin: 0; }
h2 { font-size: 1.3rem; letter-spacing: -.01em; margin: 3.5rem 0 1rem; }
h3 { font-size: 1.02rem; margin: 0 0 .25rem; }
p { margin: 0 0 1rem; max-width: 46rem; }
.soft, figcaption p, .tile span { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: .9rem;
  margin: 1.75rem 0; }
.tile, figure { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.tile { padding: 1rem 1.15rem; }
.tile b { display: block; font-size: 2.3rem; font-weight: 650; line-height: 1.15; letter-spacing: -.03em;
  font-variant-numeric: tabular-nums; }
.tile b small { font-size: .5em; font-weight: 500; color: var(--soft); margin-left: .15em; letter-spacing: 0; }
.tile:first-child b { color: var(--accent); }
.tile strong { display: block; font-weight: 600; }
.tile span { font-size: .85rem; line-height: 1.35; display: block; }
dl.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .9rem 1.25rem;
  margin: 0; }
dt { color: var(--soft); font-size: .82rem; }
dd { margin: 0; font-weight: 550; font-variant-numeric: tabular-nums; }
figure { margin: 0 0 1.25rem; overflow: hidden; }
figcaption { padding: 1.1rem 1.25rem .2rem; }
figcaption p { font-size: .92rem; margin-bottom: .8rem; }
.paper { background: #fff; padding: 1rem; text-align: center; }
.paper img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums;
  min-width: min(100%, 24rem); }
th, td { padding: .38rem .9rem .38rem 0; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; }
th:last-child, td:last-child { padding-right: .4rem; }
th:first-child, td:first-child, td.text { text-align: left; }
thead th { color: var(--soft); font-weight: 500; font-size: .82rem; border-bottom-color: var(--soft); }
td.bar { padding-left: .5rem; background: linear-gradient(var(--bar), var(--bar)) no-repeat 0 50% / 0 78%; }
tr.chosen td { font-weight: 650; color: var(--accent); }
table.wide { width: 100%; }
table.settings td { text-align: left; }
table.settings td:first-child { color: var(--soft); width: 14rem; }
summary { cursor: pointer; color: var(--accent); margin-bottom: .8rem; }
footer { margin-top: 4rem; padding-top: 1rem; border-top: 1px solid var(--line); font-size: .85rem;
  color: var(--soft); }
@media (max-width: 34rem) { main { padding-top: 1.75rem; } .paper { padding: .5rem; } }
@media print { :root { --page: #fff; --card: #fff; --ink: #000; --soft: #555; --line: #ccc; --accent: #005a8c; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } figure, .tile, tr { break-inside: avoid; }
  .paper img { max-height: 8.5cm; }
  h2 { break-after: avoid; margin-top: 1.75rem; } thead { display: table-header-group; }
  * { print-color-adjust: exact; } }
</style>
</head>
<body>
<main>
<header>
<h1>{{ title }}</h1>
<p class="soft">{{ about }}</p>
</header>
{% if headline %}
<section class="tiles">
{% for value, name, meaning in headline %}
<div class="tile"><b>{{ value }}{% if value != "-" %}<small>%</small>{% endif %}</b><strong>{{ name }}</strong>\
<span>{{ meaning }}</span></div>
{% endfor %}
</section>
{% endif %}
{% if facts %}
<dl class="facts">
{% for name, value in facts %}
<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
{% endfor %}
</dl>
{% endif %}
{% if pictures %}
<h2>Pictures</h2>
{% for picture in pictures %}
<figure>
<figcaption><h3>{{ picture.title }}</h3><p>{{ picture.text }}</p></figcaption>
<div class="paper"><img src="{{ picture.src }}" alt="{{ picture.title }}"></div>
</figure>
{% endfor %}
{% endif %}
{% if at_k %}
<h2>Precision and recall at k</h2>
<p class="soft">Of the k labels that each test instance scores highest: the share that is right, and the share of
the instance's positives that is among them, in %, averaged over instances.</p>
<div class="scroll"><table>
<thead><tr><th>k</th><th>precision</th><th>recall</th></tr></thead>
<tbody>
{% for k, precision, recall in at_k %}
<tr><td>{{ k }}</td><td>{{ precision }}</td><td>{{ recall }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endif %}
{% if classes %}
<h2>Classes</h2>
<p class="soft">Average precision in %, the best first.\
{% if without_positives %} Without positives in the test set, and counted 0: {{ without_positives | join(", ") }}.\
{% endif %}</p>
{% if classes.rows | length > long_table %}
<details><summary>all {{ classes.rows | length }} classes</summary>
{% endif %}
<div class="scroll"><table class="wide">
<thead><tr><th>class</th>{% for column in classes.columns %}<th>{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for name, width, cells in classes.rows %}
<tr><td class="bar" style="background-size: {{ width }}% 78%">{{ name }}</td>\
{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% if classes.rows | length > long_table %}
</details>
{% endif %}
{% endif %}
{% if grid %}
<h2>Settings tried</h2>
<p class="soft">Each by its best epoch on the validation set; the one chosen is highlighted.</p>
<div class="scroll"><table>
<thead><tr><th>learning rate</th><th>batch size</th><th>best epoch</th><th>validation mAP (%)</th></tr></thead>
<tbody>
{% for point in grid %}
<tr{% if point.chosen %} class="chosen"{% endif %}>\
{% for cell in point.cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}
{% if epochs %}
<h2>Epochs</h2>
<details><summary>all {{ epochs | length }} epochs</summary>
<div class="scroll"><table>
<thead><tr><th>phase</th><th>epoch</th><th>training loss</th><th>validation mAP (%)</th><th>recovery mAP (%)</th>\
<th>time</th></tr></thead>
<tbody>
{% for cells in epochs %}
<tr>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
</details>
{% endif %}
{% if settings %}
<h2>All settings</h2>
<div class="scroll"><table class="settings">
{% for name, value in settings %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table></div>
{% endif %}
<footer>{{ "spml-fast " ~ version if version else "spml-fast" }}</footer>
</main>
</body>
</html>
"""
