"""From single positive labels to a multi-label classifier: the linear phase, fine-tuning, LinearInit."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._checkpoint import exclusive
from .._checks import renamed
from .._processes import is_first_process, local_rank
from .._version import __version__
from ..data.base import check_features
from ..labels import LabelEstimator
from ..losses import Loss
from .linear import CheckpointError, LinearRun, LinearTask, ResidentFeatures, best_run, fit_linear, stream
from .model import MultiLabelClassifier, over_rows
from .options import FineTuning, LinearPhase, RunRecord, Validation
from .prepare import TrainingData, prepare, take
from .recipe import Recipe
from .result import TrainedClassifier
from .run_folder import CHECKPOINTS, RunFolder, fingerprint

if TYPE_CHECKING:
    from ..data.base import Split


LARGEST_FEATURE = 1e15
"""Larger features have squared gradients that float32 cannot hold."""

NEW_SPELLINGS = {
    "loss_options": 'loss={"name": ..., option: value}',
    "expected_positives": 'loss={"name": ..., "expected_positives": k}',
    "pseudo_labels": "MultiLabelData(..., pseudo_labels=...) for the training data",
    "names": "MultiLabelData(..., names=...) for the training data",
    "empty_labels": "MultiLabelData(..., empty_labels=...) for the training data",
    "validation_labels": "validation=Validation(0.2, labels=...)",
    "train_mode": "linear=LinearPhase(...), finetune=FineTuning(...) or both: the mode follows",
    "trunk": "finetune=FineTuning(trunk), or linear=LinearPhase(trunk=...) to train on its features alone",
    "lr": "linear=LinearPhase(lr=...)",
    "batch_size": "linear=LinearPhase(batch_size=...)",
    "epochs": "linear=LinearPhase(epochs=...)",
    "standardize": "linear=LinearPhase(standardize=...)",
    "finetune_lr": "finetune=FineTuning(trunk, lr=...)",
    "finetune_batch_size": "finetune=FineTuning(trunk, batch_size=...)",
    "finetune_epochs": "finetune=FineTuning(trunk, epochs=...)",
    "head_factor": "finetune=FineTuning(trunk, head_factor=...)",
    "precision": "finetune=FineTuning(trunk, precision=...)",
    "workers": "finetune=FineTuning(trunk, workers=...)",
    "trainer_options": "finetune=FineTuning(trunk, trainer_options=...)",
    "watch": "out=RunRecord(folder, track_recovery=...)",
    "title": "out=RunRecord(folder, title=...)",
    "resume": "out=RunRecord(folder, resume=...)",
}


@renamed(**NEW_SPELLINGS)
def train_classifier(
    train: Split,
    *,
    test: Split | None = None,
    validation: float | Split | Validation = 0.2,
    loss: str | Mapping[str, Any] | nn.Module = "gr",
    linear: LinearPhase | None = None,
    finetune: FineTuning | None = None,
    out: str | Path | RunRecord | None = None,
    seed: int = 0,
    accelerator: str = "auto",
    progress: bool = True,
) -> TrainedClassifier:
    """Train a multi-label classifier from single positive labels.

    The recipes are those of Cole et al., "Multi-Label Learning from Single Positive Labels", CVPR 2021. Which one
    it is follows from the phases given:

    - ``linear`` alone, or neither: a linear classifier on fixed features. Validation mAP chooses learning rate,
      batch size and epoch;
    - ``finetune`` alone: a trunk and a new linear head end to end, the head (and ROLE's label estimates) at ten
      times the trunk's learning rate;
    - both, LinearInit: the linear phase on the features of the trunk as it comes, then end to end from its
      weights, its label estimates and its loss's state; epochs count on. GR's warm-up with a frozen trunk is the
      linear phase then.

    Args:
        train: :class:`spml_fast.data.MultiLabelData`, or a pair (x, observed labels). x is features (N, D), a
            tensor, an array or a scipy CSR matrix, which stays sparse until it reaches the device; or instances
            for the trunk, a float tensor (N, ...) or a map-style ``Dataset`` that yields one tensor each. Labels
            are (N,) integers, the index of the one observed positive (-1: none), or (N, L) with 1 observed
            positive, 0 unobserved, -1 observed negative.
        test: the same with full labels (N, L); measured once, at the end.
        validation: a share of the training rows, or data of its own; 0 for none, which needs a single learning
            rate and batch size, and keeps the last epoch. :class:`Validation` says by which labels to choose, too.
        loss: a name (see :data:`spml_fast.losses.registry`), a mapping with "name" and the loss's options, such as
            ``{"name": "role", "expected_positives": 1.5}``, or a loss module. What a loss called by its name has
            to know of the data (rows, labels, epochs, expected positives where full labels are known) is filled
            in; a module is copied as it is.
        linear: :class:`LinearPhase`, the options of the linear phase.
        finetune: :class:`FineTuning`, the trunk and the options of fine-tuning.
        out: the folder for the classifier, its metrics, pictures, report and checkpoints; :class:`RunRecord` also
            takes the report's title and says whether to resume a run and to track recovery.
        seed: seed of starts and batches; the split into training and validation rows does not depend on it.
        accelerator: "auto", "cpu" or "gpu"; for fine-tuning any that Lightning knows.
        progress: show progress bars.

    Returns:
        The classifier, its metrics and its predictions. Under ``torchrun``, the processes share fine-tuning;
        each returns the same, the first one writes.

    Raises:
        ValueError, TypeError, IndexError: data or settings that cannot be trained with, before training starts;
            the message says what was passed, what was expected and where; a folder that another run is using.
        FloatingPointError: the loss diverged in every run of the grid.
        KeyboardInterrupt: on Ctrl+C; with ``out``, the same call continues.
    """
    record = out if isinstance(out, RunRecord) else RunRecord(out)
    validation = validation if isinstance(validation, Validation) else Validation(validation)
    recipe = Recipe(loss, linear, finetune, seed, accelerator, progress)
    if record.folder is not None:  # what the end needs, now rather than after the training
        import matplotlib  # noqa: F401
        import safetensors  # noqa: F401
    trainer = None
    if finetune is not None:
        from .finetune import make_trainer

        trainer = make_trainer(
            epochs=finetune.epochs,
            batch_size=finetune.batch_size,
            accelerator=accelerator,
            precision=finetune.precision,
            progress=progress,
            **(finetune.trainer_options or {}),
        )
    data = prepare(train, test, validation, recipe)
    folder = None
    with contextlib.ExitStack() as stack:
        if record.folder is not None:
            if is_first_process():
                record.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(exclusive(record.folder))
            folder = RunFolder(record.folder, fingerprint(recipe, validation, data), record.resume)
        stack.enter_context(torch.random.fork_rng())
        torch.manual_seed(stream(recipe.seed, 4).initial_seed())
        return _Training(recipe, data, record, folder, trainer).run()


@dataclass
class _Training:
    recipe: Recipe
    data: TrainingData
    record: RunRecord
    folder: RunFolder | None
    trainer: Any
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> TrainedClassifier:
        recipe, data = self.recipe, self.data
        trunk = nn.Identity() if recipe.trunk is None else copy.deepcopy(recipe.trunk)
        runs, chosen, phases, counts = [], None, [], []
        estimates = None
        if recipe.linear is not None:
            began = time.perf_counter()
            runs, scale = self._linear_phase(trunk)
            chosen = best_run(runs)
            head = _head(chosen.weight.cpu(), scale)
            estimates = chosen.estimates
            phases += [{"phase": "linear", **record} for record in chosen.epochs]
            counts += chosen.counts
            self.seconds["linear"] = time.perf_counter() - began
        else:
            head = nn.Linear(self._feature_width(trunk), data.n_labels)
        model = MultiLabelClassifier(trunk, head)
        selected = {} if chosen is None else chosen.summary()
        if recipe.finetune is not None:
            began = time.perf_counter()
            end, estimates = self._finetune(model, chosen)
            phases += [{"phase": "finetune", **record} for record in end.epochs]
            counts += end.counts
            selected |= {
                "finetune_lr": recipe.finetune.lr,
                "finetune_batch_size": recipe.finetune.batch_size,
                "epoch": end.epoch,
                "validation_map": end.validation_map,
            }
            self.seconds["finetune"] = time.perf_counter() - began
        return self._finish(model.eval(), selected, runs, phases, counts, estimates)

    # --- the linear phase -------------------------------------------------------------------------

    def _features(self, trunk: nn.Module) -> tuple[Any, Any]:
        """Features of training and validation rows, computed once where there is a trunk."""
        data = self.data
        parts = [take(data.train.x, data.rows)]
        if data.validation is not None:
            parts.append(take(data.validation.x, data.validation_rows))
        if self.recipe.trunk is not None:
            trunk.to(self._device())
            parts = [over_rows(trunk, trunk, part, self.recipe.workers) for part in parts]
            for part in parts:
                if part.dim() != 2:
                    raise ValueError(f"trunk must map x to features (N, F), got {tuple(part.shape)}")
                try:
                    check_features(part)
                except ValueError as error:
                    raise ValueError(f"features that the trunk computed: {error}") from None
            trunk.cpu()
        return parts[0], parts[1] if len(parts) > 1 else None

    def _linear_phase(self, trunk: nn.Module) -> tuple[list[LinearRun], tuple[Tensor, Tensor] | None]:
        """The runs of the grid, and the scale of the features that they were trained on."""
        options, data, folder, device = self.recipe.linear, self.data, self.folder, self._device()
        checkpoint = None if folder is None else folder.load_linear()
        if checkpoint and len(checkpoint["finished"]) == len(options.lr) * len(options.batch_size):
            return [LinearRun(**saved) for saved in checkpoint["finished"]], checkpoint["scale"]
        x, validation_x = self._features(trunk)
        scale = _scale(x) if options.standardize else None
        if scale is not None:
            x, validation_x = (None if part is None else _scaled(part, scale) for part in (x, validation_x))
        largest = float(abs(x).max())
        if largest > LARGEST_FEATURE:
            raise ValueError(
                f"train: features reach {largest:.3g}, which Adam's squared gradients in float32 do not bear; "
                "scale them (linear=LinearPhase(standardize=True))"
            )
        measured = None
        if validation_x is not None:
            measured = (ResidentFeatures(validation_x, device), data.validation_labels.to(device))
        full_labels = self._tracked_labels()
        task = LinearTask(
            features=ResidentFeatures(x, device),
            inputs={name: value.to(device) for name, value in data.inputs.items()},
            n_labels=data.n_labels,
            make_loss=lambda: self._make_loss().to(device),
            epochs=options.epochs,
            seed=self.recipe.seed,
            validation=measured,
            full_labels=None if full_labels is None else full_labels.to(device),
        )
        try:
            runs = fit_linear(
                task,
                lrs=options.lr,
                batch_sizes=options.batch_size,
                checkpoint=checkpoint,
                save=None if folder is None else lambda state: folder.save_linear(state | {"scale": scale}),
                progress=self.recipe.progress,
            )
        except CheckpointError as error:
            raise ValueError(f"{folder.path / CHECKPOINTS[0]}: {error}") from error
        return runs, scale

    def _make_loss(self) -> nn.Module:
        data = self.data
        return self.recipe.make_loss(len(data.rows), data.n_labels, data.expected_positives)

    def _tracked_labels(self) -> Tensor | None:
        """Full labels of the training rows, where their recovery is to be measured after every epoch."""
        return self.data.full_labels if self.record.track_recovery else None

    def _device(self) -> torch.device:
        if self.recipe.accelerator == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", local_rank())

    # --- fine-tuning ------------------------------------------------------------------------------

    def _feature_width(self, trunk: nn.Module) -> int:
        features = over_rows(trunk, trunk, take(self.data.train.x, torch.arange(1)))
        if features.dim() != 2:
            raise ValueError(f"trunk must map x to features (N, F), got {tuple(features.shape)} for one instance")
        return features.shape[1]

    def _finetune(self, model: MultiLabelClassifier, chosen: LinearRun | None) -> tuple[Any, Tensor | None]:
        from .finetune import EpochEnd, Rows, finetune
        from .module import SPMLModule

        recipe, data, options = self.recipe, self.data, self.recipe.finetune
        loss, estimator = self._make_loss(), None
        labels = data.inputs["labels"]
        if "table" in recipe.inputs:
            source = stream(recipe.seed, 2)
            estimator = LabelEstimator(labels, n_labels=data.n_labels, generator=source)
        if chosen is not None:
            loss.load_state_dict(chosen.loss_state)
            if estimator is not None:
                estimator.logits.data.copy_(chosen.estimates)
        module = SPMLModule(
            model,
            loss,
            estimator=estimator,
            observed=labels,
            lr=options.lr,
            head_factor=options.head_factor,
            first_epoch=recipe.linear_epochs + 1,
            track_recovery=self._tracked_labels() is not None,
        )
        validation = None
        if data.validation is not None:
            held = data.validation_rows
            held = torch.arange(len(data.validation)) if held is None else held
            validation = Rows(data.validation.x, held, {"labels": data.validation_labels})
        start = None
        if chosen is not None and chosen.validation_map is not None:  # which fine-tuning may fail to improve on
            state = {name: value.detach().clone() for name, value in module.state_dict().items()}
            start = chosen.epoch, chosen.validation_map, state
        end = EpochEnd(
            recipe.seed,
            None if self.folder is None else self.folder.path / CHECKPOINTS[1],
            labels,
            self._tracked_labels(),
            module.first_epoch,
            start,
            resume=self.record.resume,
        )
        finetune(
            self.trainer,
            module,
            Rows(data.train.x, data.rows, data.inputs),
            validation,
            end,
            batch_size=options.batch_size,
            workers=options.workers,
        )
        return end, None if estimator is None else estimator.logits.detach().cpu()

    # --- the end ----------------------------------------------------------------------------------

    def _finish(
        self,
        model: MultiLabelClassifier,
        selected: dict[str, Any],
        runs: list[LinearRun],
        epochs: list[dict[str, Any]],
        counts: list[Tensor],
        estimates: Tensor | None,
    ) -> TrainedClassifier:
        from ..metrics import average_precision, evaluate

        recipe, data = self.recipe, self.data
        loss = self._make_loss()
        if isinstance(loss, Loss) and "epoch" in selected:
            loss.set_epoch(selected["epoch"])
        model.to(self._device())
        train_p = model.predict_proba(take(data.train.x, data.rows), recipe.workers)
        test_p = None if data.test is None else model.predict_proba(data.test.x, recipe.workers)
        metrics: dict[str, Any] = {
            "spml_fast": __version__,
            "data": self.record.title,
            "loss": recipe.loss_name,
            "loss_options": {
                n: v for n, v in getattr(loss, "hyper", {}).items() if isinstance(v, int | float | str)
            },
            "train_mode": recipe.mode,
            "n_train": len(data.rows),
            "n_validation": 0 if data.validation_labels is None else len(data.validation_labels),
            "n_labels": data.n_labels,
            "names": list(data.names),
            "seed": recipe.seed,
            "selected": selected,
            "test": None if test_p is None else evaluate(test_p, data.test.labels, data.names),
            "recovery": None,
            "estimates": None,
            "grid": [run.summary() for run in runs],
            "epochs": epochs,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }
        if estimates is not None:
            estimates = estimates.cpu().sigmoid()
        if data.full_labels is not None:
            for name, p in (("recovery", train_p), ("estimates", estimates)):
                if p is not None:
                    ap = average_precision(p, data.full_labels)
                    metrics[name] = {
                        "map": float(ap.mean()),
                        "ap": dict(zip(data.names, ap.tolist(), strict=True)),
                    }
        model.cpu()
        result = TrainedClassifier(
            model, metrics, data.rows, train_p, estimates, test_p, torch.stack(counts) if counts else None
        )
        if self.folder is not None:
            self.folder.write(result, data)
        return result


def _scale(x: Any) -> tuple[Tensor, Tensor]:
    """(mean, standard deviation) of every column; mean 0 for sparse features, which centring would fill."""
    from sklearn.preprocessing import StandardScaler

    sparse = not isinstance(x, Tensor)
    scaler = StandardScaler(with_mean=not sparse).fit(x if sparse else x.numpy())
    deviation = torch.from_numpy(scaler.scale_).float()
    return torch.zeros_like(deviation) if sparse else torch.from_numpy(scaler.mean_).float(), deviation


def _scaled(x: Any, scale: tuple[Tensor, Tensor]) -> Any:
    mean, deviation = scale
    return (x - mean) / deviation if isinstance(x, Tensor) else (x @ _diagonal(1 / deviation)).tocsr()


def _diagonal(values: Tensor) -> Any:
    from scipy.sparse import diags

    return diags(values.numpy())


def _head(weight: Tensor, scale: tuple[Tensor, Tensor] | None) -> nn.Linear:
    """A linear layer for unscaled features that does what weights (L, D + 1) do for scaled ones."""
    weight, bias = weight[:, :-1], weight[:, -1]
    if scale is not None:
        mean, deviation = scale
        weight = weight / deviation
        bias = bias - weight @ mean
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head
