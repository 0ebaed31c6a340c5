"""The folder of a run: its settings, its checkpoints, its results."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .._version import __version__
from .checkpoint import load_state, save_state, write_atomically
from .prepare import TrainingData

if TYPE_CHECKING:
    from .classifier import TrainedClassifier


class RunFolder:
    """Where a run leaves its checkpoints and its results."""

    def __init__(self, path: Path, fingerprint: dict[str, Any], resume: bool) -> None:
        self.path = path
        self.writes = int(os.environ.get("RANK", 0)) == 0
        file = path / "settings.json"
        if self.writes:
            path.mkdir(parents=True, exist_ok=True)
            if not resume:
                for name in ("linear.pt", "finetune.ckpt", "settings.json"):
                    (path / name).unlink(missing_ok=True)
        if file.exists():
            before = json.loads(file.read_text())
            differing = sorted(n for n in before.keys() | fingerprint if before.get(n) != fingerprint.get(n))
            if differing:
                changes = "; ".join(f"{n} was {before.get(n)!r}, is {fingerprint.get(n)!r}" for n in differing)
                raise ValueError(
                    f"{path} holds a run of other settings ({changes}); choose another folder, or start anew with "
                    "resume=False"
                )
        elif self.writes:
            text = json.dumps(fingerprint, indent=2) + "\n"
            write_atomically(file, lambda part: part.write_text(text))

    def load_linear(self) -> dict[str, Any] | None:
        file = self.path / "linear.pt"
        return load_state(file) if file.exists() else None

    def save_linear(self, state: dict[str, Any]) -> None:
        if self.writes:
            save_state(self.path / "linear.pt", state)

    def write(self, result: TrainedClassifier, data: TrainingData) -> None:
        if not self.writes:
            return
        from safetensors.torch import save_model

        from .report import write_report

        path = self.path
        write_atomically(path / "model.safetensors", lambda part: save_model(result.model, str(part)))
        arrays = {
            "train_rows": result.rows,
            "train_probabilities": result.train_probabilities,
            "train_observed": data.inputs["labels"],
            "train_labels": data.full_labels,
            "train_estimates": result.estimates,
            "test_probabilities": result.test_probabilities,
            "test_labels": None if data.test is None else data.test.labels,
            "counts": result.counts,
        }
        arrays = {name: value.numpy() for name, value in arrays.items() if value is not None}
        arrays["names"] = np.array(data.names)

        def save_arrays(part: Path) -> None:
            with part.open("wb") as file:
                np.savez_compressed(file, **arrays)

        write_atomically(path / "predictions.npz", save_arrays)
        write_results(path, result.metrics, result.counts)
        write_report(path)


def write_results(folder: Path, metrics: dict[str, Any], counts: Tensor | None) -> None:
    """``metrics.json`` and the pictures of a run."""
    from .. import plots

    text = json.dumps(metrics, indent=2, default=str) + "\n"
    write_atomically(folder / "metrics.json", lambda part: part.write_text(text))
    plots.plot_curves(metrics["epochs"], folder / "curves.png")
    if metrics.get("test"):
        plots.plot_average_precision(metrics["test"]["ap"], folder / "average_precision.png")
    if len(metrics["grid"]) > 1:
        plots.plot_grid(metrics["grid"], folder / "grid.png")
    if counts is not None:
        plots.plot_unobserved_positives(counts, folder / "unobserved_positives.png")
        plots.plot_false_negative_share(counts, folder / "false_negative_share.png", _k_hat(metrics))
        plots.plot_distinguishing(counts, folder / "distinguishing.png")


def _k_hat(metrics: dict[str, Any]) -> Any:
    """GR's k(p) in the last epoch, for its figure."""
    if metrics["loss"] not in ("gr", "gpr") or not metrics["epochs"]:
        return None
    w, b = (metrics["loss_options"][name] for name in ("w", "b"))
    return lambda p: 1 / (1 + np.exp(-(w * p + b)))


def fingerprint(settings: Mapping[str, Any], data: TrainingData) -> dict[str, Any]:
    """The settings as JSON has them, and a digest of the data."""
    digest = hashlib.blake2b(digest_size=8)
    for value in (data.train.x, *(data.inputs[name] for name in sorted(data.inputs))):
        if isinstance(value, Tensor):
            digest.update(np.ascontiguousarray(value.numpy()))
        elif hasattr(value, "indptr"):
            digest.update(np.ascontiguousarray(value.indices))
            digest.update(np.ascontiguousarray(value.data))
        else:
            digest.update(str(len(value)).encode())
    plain = {
        name: value if isinstance(value, str | int | float | bool | None) else repr(value)
        for name, value in settings.items()
        if name != "validation" or isinstance(value, int | float)
    }
    return {"spml_fast": __version__, **plain, "data": digest.hexdigest()}
