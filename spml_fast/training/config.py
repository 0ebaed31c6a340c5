"""Trainings as a configuration: what ``spml-fast train`` reads, runs and leaves beside its results."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import data as loaders
from .._checkpoint import write_atomically
from .._processes import is_first_process
from ..metrics import evaluate
from .classifier import TrainedClassifier, train_classifier
from .model import load_classifier
from .report import write_report
from .run_folder import write_results
from .trunks import make_trunk

OF_THE_CALLER = (
    "train",
    "test",
    "names",
    "pseudo_labels",
    "out",
    "title",
    "resume",
    "progress",
    "trainer_options",
)
KEYS = ("data", *(name for name in inspect.signature(train_classifier).parameters if name not in OF_THE_CALLER))
"""Keys of a configuration: "data", a mapping with "loader" and its options or the loader's name alone, and the
arguments of :func:`spml_fast.train_classifier`."""

FILE = "config.yaml"
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def read_config(path: str | Path) -> dict[str, Any]:
    """A configuration file (YAML), its keys checked.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no YAML, no mapping, or a key that there is not; the message names file, line and key.
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
    for key, (node, _) in zip(config, tree.value, strict=False):
        if key not in KEYS:
            raise ValueError(f"{path}, line {node.start_mark.line + 1}: {_unknown(key)}")
    return {key: _numbers(value) for key, value in config.items()}


def _unknown(key: Any) -> str:
    close = difflib.get_close_matches(str(key), KEYS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(KEYS)}"
    return f"there is no setting {key!r}; {hint}"


def _numbers(value: Any) -> Any:
    """1e-3 is a string to YAML 1.1, which wants 1.0e-3."""
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    if isinstance(value, list):
        return [_numbers(v) for v in value]
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    return value


def parse_setting(text: str) -> tuple[list[str], Any]:
    """``"loss_options.alpha=0.1"`` -> (["loss_options", "alpha"], 0.1); the value is YAML.

    Raises:
        ValueError: no "=", or a key that there is not.
    """
    import yaml

    name, equals, value = text.partition("=")
    path = name.strip().split(".")
    if not equals:
        raise ValueError(f"a setting is KEY=VALUE, got {text!r}")
    if path[0] not in KEYS:
        raise ValueError(_unknown(path[0]))
    try:
        return path, _numbers(yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise ValueError(f"{name.strip()}={value} is not YAML: {error}") from error


def apply_setting(config: dict[str, Any], path: list[str], value: Any) -> None:
    """Set the entry at ``path``, making mappings on the way."""
    *parents, last = path
    place = config
    for name in parents:
        inner = place.get(name)
        if isinstance(inner, str):
            inner = {"loader" if name == "data" else "name": inner}
        place[name] = place = dict(inner or {})
    place[last] = value


def load_data(spec: str | Mapping[str, Any]) -> loaders.Splits:
    """The splits that a configuration's "data" names.

    Raises:
        ValueError: no loader, or options that it has not.
    """
    options = {"loader": spec} if isinstance(spec, str) else spec
    if not isinstance(options, Mapping) or "loader" not in options:
        raise ValueError(f"data must be a loader's name, or a mapping with 'loader' and its options, got {spec!r}")
    options = dict(options)
    return loaders.load(options.pop("loader"), **options)


def run_config(
    config: Mapping[str, Any], out: str | Path, *, resume: bool = True, progress: bool = True
) -> TrainedClassifier:
    """Train as the configuration says, into the folder ``out``, which also gets the configuration."""
    import yaml

    arguments = dict(config)
    if "data" not in arguments:
        raise ValueError("the configuration does not say what data to train on: data is missing")
    spec = arguments.pop("data")
    splits = load_data(spec)
    title = (
        spec if isinstance(spec, str) else " ".join(str(spec[key]) for key in ("loader", "name") if key in spec)
    )
    if arguments.get("trunk") is not None:
        with torch.random.fork_rng():
            torch.manual_seed(arguments.get("seed", 0))
            arguments["trunk"] = make_trunk(arguments["trunk"])
    if splits.validation is not None:
        arguments.setdefault("validation", splits.validation)
    result = train_classifier(
        splits.train, test=splits.test, out=out, title=title, resume=resume, progress=progress, **arguments
    )
    if is_first_process():
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        write_atomically(Path(out) / FILE, lambda part: part.write_text(text))
    return result


def evaluate_run(folder: str | Path, data: str | Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Measure the classifier of a finished run again, on its own test data or those of ``data``.

    With its own data, ``metrics.json`` and ``report.html`` are written anew; in either case the result goes to
    ``evaluation.json``.

    Returns:
        As :func:`spml_fast.metrics.evaluate`.
    """
    folder = Path(folder)
    if not (folder / "metrics.json").exists():
        raise FileNotFoundError(f"{folder / 'metrics.json'} does not exist: {folder} holds no finished run")
    config = read_config(folder / FILE) if (folder / FILE).exists() else {}
    spec = config.get("data") if data is None else data
    if spec is None:
        raise ValueError(f"{folder} does not say what its data are; name them with --data")
    trunk = make_trunk(config["trunk"]) if config.get("trunk") is not None else None
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
    """A finished run in a few lines."""
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
