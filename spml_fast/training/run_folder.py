"""The folder of a run: its settings, its checkpoints, its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .._checkpoint import digest, load_state, save_state, write_atomically
from .._processes import is_first_process
from .._version import __version__
from .options import Validation
from .prepare import TrainingData
from .recipe import Recipe
from .result import TrainedClassifier

CHECKPOINTS = ("linear.pt", "finetune.ckpt")
RESULTS = (
    "model.safetensors", "metrics.json", "predictions.npz", "evaluation.json", "report.html",
    "curves.png", "average_precision.png", "grid.png", "unobserved_positives.png", "false_negative_share.png",
    "distinguishing.png",
)  # fmt: skip


class RunFolder:
    """The folder where a run leaves its checkpoints and its results.

    Args:
        path: an existing folder, which no other run may use at the same time.
        settings: the settings that a run must share with the one that it continues.
        resume: continue the run in ``path``; otherwise its files are removed.

    Raises:
        ValueError: ``path`` holds a run of other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool) -> None:
        self.path, self.resume = path, resume
        if is_first_process():
            self._claim(path / "settings.json", settings)

    def _claim(self, file: Path, settings: dict[str, Any]) -> None:
        if not self.resume:
            for name in (*CHECKPOINTS, *RESULTS, file.name):
                (self.path / name).unlink(missing_ok=True)
        if not file.exists():
            text = json.dumps(settings, indent=2) + "\n"
            write_atomically(file, lambda part: part.write_text(text))
            return
        try:
            before = json.loads(file.read_text())
        except ValueError as error:
            raise ValueError(f"{file} does not hold the settings of a run: {error}") from error
        differing = sorted(n for n in before.keys() | settings if before.get(n) != settings.get(n))
        if differing:
            changes = "; ".join(f"{n} was {before.get(n)!r}, is {settings.get(n)!r}" for n in differing)
            raise ValueError(
                f"{self.path} holds a run of other settings ({changes}); choose another folder, or start anew "
                "(RunRecord(resume=False), --restart)"
            )

    def load_linear(self) -> dict[str, Any] | None:
        """The checkpoint of the linear phase, if there is one to continue.

        Raises:
            ValueError: the file holds something else.
        """
        file = self.path / CHECKPOINTS[0]
        if not (self.resume and file.exists()):
            return None
        state = load_state(file)
        if not isinstance(state, dict) or not {"finished", "group", "scale"} <= state.keys():
            raise ValueError(f"{file} is not a checkpoint of a linear phase")
        return state

    def save_linear(self, state: dict[str, Any]) -> None:
        """Writes the checkpoint of the linear phase."""
        if is_first_process():
            save_state(self.path / CHECKPOINTS[0], state)

    def write(self, result: TrainedClassifier, data: TrainingData) -> None:
        """Writes the classifier, the metrics, the predictions, the pictures and the report."""
        if not is_first_process():
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
    """Writes ``metrics.json`` and the pictures of a run."""
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
    """The function k(p) of GR in the last epoch, for the figure of false negatives."""
    if metrics["loss"] not in ("gr", "gpr") or not metrics["epochs"]:
        return None
    w, b = (metrics["loss_options"][name] for name in ("w", "b"))
    return lambda p: 1 / (1 + np.exp(-(w * p + b)))


def fingerprint(recipe: Recipe, validation: Validation, data: TrainingData) -> dict[str, Any]:
    """The settings of a run as plain values, with hashes of the data and of the trunk before training."""
    settings = recipe.settings() | {"validation.labels": validation.labels}
    if isinstance(validation.data, int | float):
        settings["validation"] = validation.data
    settings |= {"names": list(data.names), "empty_labels": data.train.empty_labels}
    plain = {
        name: value if isinstance(value, str | int | float | bool | None) else repr(value)
        for name, value in settings.items()
    }
    parts = {
        "x": data.train.x,
        **{f"input {name}": data.inputs[name] for name in sorted(data.inputs)},
        "full labels": data.full_labels,
        "validation labels": data.validation_labels,
        "validation rows": data.validation_rows,
    }
    if data.validation is not None and data.validation is not data.train:
        parts["validation x"] = data.validation.x
    trunk = {} if recipe.trunk is None else recipe.trunk.state_dict()
    return {"spml_fast": __version__, **plain, "data": digest(parts), "trunk": digest(trunk)}
