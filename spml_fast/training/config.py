"""Trainings from a configuration, which ``spml-fast train`` reads, runs and writes beside its results."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import data as loaders
from .._checkpoint import write_atomically
from .._processes import is_first_process
from ..metrics import evaluate
from .classifier import train_classifier
from .model import load_classifier
from .options import FineTuning, LinearPhase, RunRecord, Validation
from .report import write_report
from .result import TrainedClassifier
from .run_folder import write_results
from .trunks import make_trunk

KEYS = ("data", "loss", "validation", "linear", "finetune", "seed", "accelerator", "track_recovery")
"""Keys of a configuration: "data" is a loader's name, or a mapping with "loader" and its options; the others are
arguments of :func:`spml_fast.train_classifier`, where a mapping stands for a value of options."""

INNER_KEYS = {
    "linear": ("lr", "batch_size", "epochs", "standardize", "trunk", "workers"),
    "finetune": ("trunk", "lr", "batch_size", "epochs", "head_factor", "precision", "workers"),
    "validation": ("share", "labels"),
}
"""Keys inside the mappings of these settings; mappings of others take the options of a loader or a loss."""

NEW_SPELLINGS = {
    "loss_options": "loss: {name: NAME, OPTION: VALUE} (loss.OPTION with --set)",
    "expected_positives": "loss: {name: NAME, expected_positives: K} (loss.expected_positives with --set)",
    "train_mode": "linear: {...}, finetune: {trunk: ...} or both; the mode follows",
    "trunk": "finetune.trunk, or linear.trunk to train on its features alone",
    "lr": "linear.lr",
    "batch_size": "linear.batch_size",
    "epochs": "linear.epochs",
    "standardize": "linear.standardize",
    "finetune_lr": "finetune.lr",
    "finetune_batch_size": "finetune.batch_size",
    "finetune_epochs": "finetune.epochs",
    "head_factor": "finetune.head_factor",
    "precision": "finetune.precision",
    "workers": "finetune.workers",
    "validation_labels": "validation.labels",
    "empty_labels": "data.empty_labels",
    "watch": "track_recovery",
}
"""Keys of earlier versions, and what to write instead."""

SHORT_FORMS = {"data": "loader", "loss": "name", "trunk": "name", "validation": "share"}
"""Settings that may be a single value, and the key that this value has in the mapping."""

FILE = "config.yaml"
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def read_config(path: str | Path) -> dict[str, Any]:
    """A configuration file (YAML), its keys checked.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no YAML, no mapping, or an unknown key; the message names file, line and key.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        text = path.read_text()
        config, tree = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a mapping of settings, got {type(config).__name__}")
    for (key, value), (node, value_node) in zip(config.items(), tree.value, strict=False):
        places = [([key], node)]
        if isinstance(value, dict):
            places += [([key, inner], child) for inner, (child, _) in zip(value, value_node.value, strict=False)]
        for keys, place in places:
            try:
                _check_path(keys)
            except ValueError as error:
                raise ValueError(f"{path}, line {place.start_mark.line + 1}: {error}") from None
    return {key: _numbers(value) for key, value in config.items()}


def _check_path(path: list[Any]) -> None:
    """Raises ValueError for an unknown key, on the top or inside a mapping; says what was probably meant."""
    key = path[0]
    if key in NEW_SPELLINGS:
        raise ValueError(f"there is no setting {key!r} any more; write {NEW_SPELLINGS[key]}")
    if key not in KEYS:
        raise ValueError(_unknown(key, KEYS))
    if len(path) > 1 and key in INNER_KEYS and path[1] not in INNER_KEYS[key]:
        raise ValueError(_unknown(path[1], INNER_KEYS[key], f"{key}."))


def _unknown(key: Any, known: Sequence[str], inside: str = "") -> str:
    close = difflib.get_close_matches(str(key), known, n=1)
    name = f"{inside}{key}" if inside else key
    hint = f"did you mean {inside + close[0]!r}?" if close else f"there are {', '.join(inside + k for k in known)}"
    return f"there is no setting {name!r}; {hint}"


def _numbers(value: Any) -> Any:
    """The value with numbers like 1e-3 as numbers, which are strings to YAML 1.1: it wants 1.0e-3."""
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    return value


def parse_setting(text: str) -> tuple[list[str], Any]:
    """The path and the value of a setting: ``"loss.alpha=0.1"`` -> (["loss", "alpha"], 0.1); the value is YAML.

    Raises:
        ValueError: no "=", or an unknown key.
    """
    import yaml

    name, equals, value = text.partition("=")
    path = name.strip().split(".")
    if not equals:
        raise ValueError(f"a setting is KEY=VALUE, got {text!r}")
    _check_path(path)
    try:
        return path, _numbers(yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise ValueError(f"{name.strip()}={value} is not YAML: {error}") from error


def apply_setting(config: dict[str, Any], path: list[str], value: Any) -> None:
    """Set the entry at ``path``; mappings on the way are made where there are none."""
    *parents, last = path
    place = config
    for name in parents:
        inner = place.get(name)
        if inner is not None and not isinstance(inner, Mapping) and name in SHORT_FORMS:
            inner = {SHORT_FORMS[name]: inner}
        place[name] = place = dict(inner or {})
    place[last] = value


def load_data(spec: str | Mapping[str, Any]) -> loaders.Splits:
    """The splits of a configuration's "data"; an option "empty_labels" goes to the training split.

    Raises:
        ValueError: no loader, or options that the loader does not have.
    """
    options = {"loader": spec} if isinstance(spec, str) else spec
    if not isinstance(options, Mapping) or "loader" not in options:
        raise ValueError(f"data must be a loader's name, or a mapping with 'loader' and its options, got {spec!r}")
    options = dict(options)
    empty_labels = options.pop("empty_labels", None)
    splits = loaders.load(options.pop("loader"), **options)
    if empty_labels is not None:
        splits = splits._replace(train=dataclasses.replace(splits.train, empty_labels=empty_labels))
    return splits


def run_config(
    config: Mapping[str, Any], out: str | Path, *, resume: bool = True, progress: bool = True
) -> TrainedClassifier:
    """Train as the configuration says, into the folder ``out``, which also gets the configuration.

    Raises:
        ValueError: an unknown key, or a value that does not fit its key.
    """
    import yaml

    for key, value in config.items():
        _check_path([key])
        for inner in value if isinstance(value, Mapping) else ():
            _check_path([key, inner])
    if "data" not in config:
        raise ValueError("the configuration does not say what data to train on: data is missing")
    spec = config["data"]
    splits = load_data(spec)
    title = (
        spec if isinstance(spec, str) else " ".join(str(spec[key]) for key in ("loader", "name") if key in spec)
    )
    linear, finetune = (_phase(config, name) for name in ("linear", "finetune"))
    if finetune is not None and "trunk" not in finetune:
        raise ValueError("finetune needs a trunk: finetune: {trunk: NAME}")
    result = train_classifier(
        splits.train,
        test=splits.test,
        validation=_validation(config.get("validation"), splits),
        linear=None if linear is None else LinearPhase(**linear),
        finetune=None if finetune is None else FineTuning(**finetune),
        out=RunRecord(out, title=title, resume=resume, track_recovery=config.get("track_recovery")),
        progress=progress,
        **{name: config[name] for name in ("loss", "seed", "accelerator") if name in config},
    )
    if is_first_process():
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        write_atomically(Path(out) / FILE, lambda part: part.write_text(text))
    return result


def _phase(config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The options of a phase with its trunk made, or None where the configuration has no such phase."""
    options = config.get(name)
    if options is None:
        return None
    if not isinstance(options, Mapping):
        known = ", ".join(INNER_KEYS[name])
        raise ValueError(f"{name} must be a mapping of some of {known}, got {options!r}")
    options = dict(options)
    if options.get("trunk") is not None:
        with torch.random.fork_rng():
            torch.manual_seed(config.get("seed", 0))
            options["trunk"] = make_trunk(options["trunk"])
    return options


def _validation(setting: Any, splits: loaders.Splits) -> Validation:
    """The data and labels to choose by: the share that is set, or the loader's split, or the default share."""
    options = dict(setting) if isinstance(setting, Mapping) else {"share": setting}
    share = options.pop("share", None)
    if share is not None:
        return Validation(share, **options)
    return Validation(**options) if splits.validation is None else Validation(splits.validation, **options)


def evaluate_run(folder: str | Path, data: str | Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Measure the classifier of a finished run again, on the run's own test data or on those of ``data``.

    The result is written to ``evaluation.json``; with the run's own data, ``metrics.json`` and ``report.html`` are
    written anew as well.

    Returns:
        The metrics, as :func:`spml_fast.metrics.evaluate` returns them.
    """
    folder = Path(folder)
    if not (folder / "metrics.json").exists():
        raise FileNotFoundError(f"{folder / 'metrics.json'} does not exist: {folder} holds no finished run")
    config = read_config(folder / FILE) if (folder / FILE).exists() else {}
    spec = config.get("data") if data is None else data
    if spec is None:
        raise ValueError(f"{folder} does not say what its data are; name them with --data")
    specs = [(config.get(name) or {}).get("trunk") for name in ("linear", "finetune")]
    trunk = next((make_trunk(spec) for spec in specs if spec is not None), None)
    model = load_classifier(folder, trunk)
    test = load_data(spec).test
    if test is None or test.labels is None:
        raise ValueError("the data have no test split with full labels")
    if test.n_labels != model.head.out_features:
        raise ValueError(f"the data have {test.n_labels} labels, the classifier {model.head.out_features}")
    if trunk is None:
        width = test.x.shape[1:] if hasattr(test.x, "shape") else ()
        if tuple(width) != (model.head.in_features,):
            raise ValueError(
                f"the data have rows of shape {tuple(width)}, the classifier takes ({model.head.in_features},)"
            )
    result = evaluate(model.predict_proba(test.x), test.labels, test.names)
    text = json.dumps(result, indent=2) + "\n"
    write_atomically(folder / "evaluation.json", lambda part: part.write_text(text))
    if data is None:
        metrics = json.loads((folder / "metrics.json").read_text()) | {"test": result}
        write_results(folder, metrics, None)
        write_report(folder)
    return result


def summary(metrics: Mapping[str, Any]) -> str:
    """The results of a finished run in a few lines of text."""
    lines = []
    selected = metrics.get("selected") or {}
    if selected:
        chosen = ", ".join(
            f"{name.replace('_', ' ')} {value:.4g}" for name, value in selected.items() if value is not None
        )
        lines.append(f"selected        {chosen}")
    test = metrics.get("test")
    if test:
        lines.append(f"test mAP        {100 * test['map']:.2f}")
        for name in ("precision_at", "recall_at"):
            values = ", ".join(f"@{k} {100 * value:.1f}" for k, value in test[name].items())
            lines.append(f"{name.split('_')[0]:<15} {values}")
        if test["classes_without_positives"]:
            lines.append(f"counted as 0    {len(test['classes_without_positives'])} labels without positives")
    for name, what in (("recovery", "recovered mAP"), ("estimates", "estimates mAP")):
        if metrics.get(name):
            lines.append(f"{what:<15} {100 * metrics[name]['map']:.2f} (training labels)")
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in metrics["seconds"].items())
    lines.append(f"time            {seconds}")
    return "\n".join(lines)
