"""The linear phase: classifiers on fixed features, resident on the device, all learning rates at once.

The recipe is that of Cole et al., "Multi-Label Learning from Single Positive Labels", CVPR 2021: Adam, a grid of
learning rates and batch sizes, of which validation mAP chooses the run and the epoch.

With a general trainer (a DataLoader, autograd, an optimiser's loop over parameters), a step on eight rows takes
several times as long as its arithmetic. Here the runs that share a batch size share their batches: one gather, one
product for the logits of all, a loss for each, and one pass over the weights that forms the gradient and takes
Adam's step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import _ops
from ..labels import LabelEstimator
from ..losses import Loss
from ..metrics import average_precision, probability_counts
from .recipe import called_with

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

DENSE_BYTES = 2**31
"""Sparse features that would be larger than this when dense stay sparse on the device; batches are made dense."""

CHUNK_ROWS = 4096
"""Number of rows whose logits are computed at a time when all rows are scored."""

ESTIMATOR_FACTOR = 10
"""How many times as fast as the classifier the label estimates learn, as in the paper."""


def finite(value: float) -> float | None:
    """The value, or None for what JSON cannot hold."""
    return value if math.isfinite(value) else None


def stream(*key: int) -> torch.Generator:
    """A random generator for each key, by which a resumed run draws what an uninterrupted one would have."""
    state = np.random.SeedSequence([part % 2**64 for part in key]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


class ResidentFeatures:
    """Features on the device with a column of ones, which makes the bias a weight like the others.

    Args:
        x: (N, D) tensor or scipy CSR matrix.
    """

    def __init__(self, x: Tensor | csr_matrix, device: torch.device | str, dense_bytes: int = DENSE_BYTES) -> None:
        self.shape = (x.shape[0], x.shape[1] + 1)
        self.dense = self.row_starts = None
        if isinstance(x, Tensor):
            self.dense = torch.ones(self.shape, dtype=torch.float32, device=device)
            self.dense[:, :-1] = x
            return
        self.row_starts, self.columns, self.values = (
            torch.from_numpy(np.ascontiguousarray(part, dtype)).to(device)
            for part, dtype in ((x.indptr, np.int64), (x.indices, np.int64), (x.data, np.float32))
        )
        if 4 * self.shape[0] * self.shape[1] <= dense_bytes:
            self.dense = self._scatter(torch.arange(len(self), device=device))

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, index: Tensor) -> Tensor:
        """The rows of this index, dense (n, D + 1)."""
        return self._scatter(index) if self.dense is None else self.dense.index_select(0, index)

    def _scatter(self, index: Tensor) -> Tensor:
        starts = self.row_starts[index]
        counts = self.row_starts[index + 1] - starts
        row = torch.repeat_interleave(counts)
        place = torch.arange(len(row), device=index.device) + (starts - counts.cumsum(0) + counts)[row]
        out = torch.zeros(len(index), self.shape[1], dtype=torch.float32, device=index.device)
        out[:, -1] = 1
        # Added, not set: a CSR matrix may hold an entry in parts.
        return out.index_put_((row, self.columns[place]), self.values[place], accumulate=True)

    def logits(self, weight: Tensor) -> Tensor:
        """The products (N, K) of all rows with weights (K, D + 1)."""
        if self.dense is not None:
            return self.dense @ weight.T
        chunks = torch.arange(len(self), device=weight.device).split(CHUNK_ROWS)
        return torch.cat([self.rows(index) @ weight.T for index in chunks])


@dataclass
class LinearRun:
    """One run of the grid.

    Attributes:
        epochs: a record of each epoch: "epoch", "train_loss", "validation_map" and "recovery_map" (None where
            unknown), "seconds" (an equal share of the time of the runs that were trained together).
        epoch: the one whose state was kept: that of the best validation mAP, the last one without validation.
        validation_map: validation mAP of that epoch.
        weight: (L, D + 1) weights of that epoch, the bias in the last column.
        estimates: (N, L) logits of the label estimator in that epoch, for ROLE.
        loss_state: the loss's state dict in that epoch.
        counts: (epochs, 2, bins) as of :func:`spml_fast.metrics.probability_counts`, where recovery is tracked.
    """

    lr: float
    batch_size: int
    epochs: list[dict[str, Any]] = field(default_factory=list)
    epoch: int = 0
    validation_map: float | None = None
    weight: Tensor | None = None
    estimates: Tensor | None = None
    loss_state: dict[str, Tensor] = field(default_factory=dict)
    counts: list[Tensor] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The run's line in the table of the grid."""
        return {
            "lr": self.lr,
            "batch_size": self.batch_size,
            "epoch": self.epoch,
            "validation_map": self.validation_map,
        }


@dataclass(frozen=True)
class LinearTask:
    """What the runs of a grid have in common.

    Attributes:
        features: features of the training rows.
        inputs: what the loss is called with beside the logits, by name, for all training rows: "labels", and
            "full_labels" or "pseudo_labels" where it asks for them.
        n_labels: L.
        make_loss: makes a new loss module, on the features' device.
        epochs: epochs of each run.
        seed: seed of the weights' start, the batches and the label estimates' start.
        validation: features and labels (N, L) bool that choose run and epoch.
        full_labels: (N, L) bool of the training rows, where recovery is to be tracked.
    """

    features: ResidentFeatures
    inputs: Mapping[str, Tensor]
    n_labels: int
    make_loss: Callable[[], nn.Module]
    epochs: int
    seed: int = 0
    validation: tuple[ResidentFeatures, Tensor] | None = None
    full_labels: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.inputs["labels"].device


def value_and_gradients(
    loss: nn.Module, logits: Tensor, arguments: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A loss, its gradient by the logits (N, L) and, for ROLE, by the estimates' rows (N, L).

    Losses of this package leave them without autograd; any other module's come from autograd.
    """
    if isinstance(loss, Loss) and not loss.changes_forward:
        return loss.value_and_gradients(logits, *arguments)
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        value = loss(leaf, *arguments)
        (grad,) = torch.autograd.grad(value, leaf)
    return value.detach(), grad, None


def recovery_map(p: Tensor, full_labels: Tensor, observed: Tensor, counts: list[Tensor]) -> float | None:
    """The mAP of the training labels recovered after an epoch; None of a model that has diverged.

    Args:
        p: (N, L) predicted probabilities of the training rows.
        counts: gets the counts of unobserved positives and negatives over p, as of
            :func:`spml_fast.metrics.probability_counts`.
    """
    if not bool(p.isfinite().all()):
        return None
    counts.append(probability_counts(p, full_labels, observed).cpu())
    return float(average_precision(p, full_labels).mean())


class LinearGroup:
    """The runs of one batch size, one for each learning rate, trained side by side."""

    def __init__(self, task: LinearTask, batch_size: int, lrs: Sequence[float]) -> None:
        self.task, self.batch_size = task, batch_size
        self.runs = [LinearRun(lr, batch_size) for lr in lrs]
        self.losses = [task.make_loss() for _ in lrs]
        columns, device = task.features.shape[1], task.device
        bound = (columns - 1) ** -0.5 if columns > 1 else 0.0  # as torch.nn.Linear starts
        start = torch.empty(task.n_labels, columns, dtype=torch.float32)
        start.uniform_(-bound, bound, generator=stream(task.seed, 1))
        self.weight = start.repeat(len(lrs), 1).to(device)
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        self.lr = torch.tensor(lrs, dtype=torch.float32).repeat_interleave(task.n_labels).to(device)
        self.epoch = self.step = 0
        self.estimators: list[LabelEstimator] = []
        self.inputs = called_with(self.losses[0])
        if "table" in self.inputs:
            labels = task.inputs["labels"].cpu()
            for _ in lrs:
                source = stream(task.seed, 2)
                estimator = LabelEstimator(labels, n_labels=task.n_labels, generator=source, device=device)
                estimator.logits.grad = torch.zeros_like(estimator.logits)
                self.estimators.append(estimator)
            groups = [
                {"params": estimator.parameters(), "lr": ESTIMATOR_FACTOR * lr}
                for estimator, lr in zip(self.estimators, lrs, strict=True)
            ]
            self.estimator_adam = torch.optim.Adam(groups, fused=True)

    @torch.no_grad()
    def train_epoch(self) -> None:
        """One pass over the training rows, of which each run gets a record."""
        began = time.perf_counter()
        task = self.task
        self.epoch += 1
        for loss in self.losses:
            loss.train()
            if hasattr(loss, "set_epoch"):
                loss.set_epoch(self.epoch)
        order = torch.randperm(len(task.features), generator=stream(task.seed, 0, self.epoch)).to(task.device)
        labels = task.inputs["labels"][order]
        values = [
            self.train_batch(rows, row_labels)
            for rows, row_labels in zip(order.split(self.batch_size), labels.split(self.batch_size), strict=True)
        ]
        sizes = torch.tensor([len(rows) for rows in order.split(self.batch_size)], device=task.device)
        means = (torch.stack([torch.stack(v) for v in values]) * sizes[:, None]).sum(0) / len(order)
        self._finish_epoch(means.tolist(), began)

    def train_batch(self, rows: Tensor, labels: Tensor) -> list[Tensor]:
        """A step of all runs on these rows, whose labels are given; returns the runs' losses."""
        task, columns = self.task, self.task.n_labels
        x = task.features.rows(rows)
        logits = x @ self.weight.T
        # All runs are given the same, except for ROLE's estimates.
        given = {"labels": labels, "index": rows}
        for name in self.inputs:
            if name not in given and name != "table":
                given[name] = task.inputs[name][rows]
        values, grads, estimate_grads = [], [], []
        for i, loss in enumerate(self.losses):
            mine = logits[:, i * columns : (i + 1) * columns]
            if self.estimators:
                given["table"] = self.estimators[i].logits
            value, grad, estimate_grad = value_and_gradients(loss, mine, [given[name] for name in self.inputs])
            values.append(value)
            grads.append(grad)
            estimate_grads.append(estimate_grad)
        self.step += 1
        grad = torch.cat(grads, 1) if len(grads) > 1 else grads[0]
        _ops.adam_linear_(self.weight, self.exp_avg, self.exp_avg_sq, grad, x, self.lr, self.step)
        if self.estimators:
            for estimator, grad in zip(self.estimators, estimate_grads, strict=True):
                estimator.logits.grad.index_copy_(0, rows, grad)
            self.estimator_adam.step()
            for estimator in self.estimators:
                estimator.logits.grad.index_fill_(0, rows, 0)
        return values

    def _finish_epoch(self, train_losses: list[float], began: float) -> None:
        task = self.task
        validation = [None] * len(self.runs)
        if task.validation is not None:
            features, labels = task.validation
            validation = self._maps(features.logits(self.weight), labels)
        for i, run in enumerate(self.runs):
            loss, recovery, observed = self.losses[i], None, task.inputs["labels"]
            if task.full_labels is not None or hasattr(loss, "update"):
                p = task.features.logits(self.weight[self._rows_of(i)]).sigmoid()
                if hasattr(loss, "update"):
                    loss.update(p, observed)
                if task.full_labels is not None:
                    recovery = recovery_map(p, task.full_labels, observed, run.counts)
            run.epochs.append(
                {
                    "epoch": self.epoch,
                    "train_loss": finite(train_losses[i]),
                    "validation_map": validation[i],
                    "recovery_map": recovery,
                }
            )
            if task.validation is None:
                better = True
            else:
                better = run.validation_map is None or validation[i] > run.validation_map
            if better:
                self._keep(i, validation[i])
        seconds = (time.perf_counter() - began) / len(self.runs)
        for run in self.runs:
            run.epochs[-1]["seconds"] = seconds

    def _rows_of(self, i: int) -> slice:
        return slice(i * self.task.n_labels, (i + 1) * self.task.n_labels)

    def _maps(self, logits: Tensor, labels: Tensor) -> list[float]:
        """The validation mAP of each run; 0 for one that has diverged."""
        by_run = logits.view(len(logits), len(self.runs), self.task.n_labels)
        sound = by_run.isfinite().all(dim=2).all(dim=0)
        ap = average_precision(logits.nan_to_num(), labels.repeat(1, len(self.runs)))
        return (ap.view(len(self.runs), -1).mean(1) * sound.to(ap)).tolist()

    def _keep(self, i: int, validation_map: float | None) -> None:
        run = self.runs[i]
        run.epoch, run.validation_map = self.epoch, validation_map
        run.weight = self.weight[self._rows_of(i)].clone()
        run.loss_state = {name: value.clone() for name, value in self.losses[i].state_dict().items()}
        if self.estimators:
            run.estimates = self.estimators[i].logits.detach().clone()

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to continue this group, as tensors and plain values."""
        state = {
            "weight": self.weight,
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "epoch": self.epoch,
            "step": self.step,
            "losses": [loss.state_dict() for loss in self.losses],
            "runs": [dict(vars(run)) for run in self.runs],
        }
        if self.estimators:
            state["estimates"] = [estimator.logits.detach() for estimator in self.estimators]
            state["estimator_adam"] = self.estimator_adam.state_dict()
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from what :meth:`state_dict` gave."""
        for name in ("weight", "exp_avg", "exp_avg_sq"):
            getattr(self, name).copy_(state[name])
        self.epoch, self.step = state["epoch"], state["step"]
        for loss, saved in zip(self.losses, state["losses"], strict=True):
            loss.load_state_dict(saved)
        self.runs = [LinearRun(**saved) for saved in state["runs"]]
        if self.estimators:
            for estimator, saved in zip(self.estimators, state["estimates"], strict=True):
                estimator.logits.copy_(saved)
            self.estimator_adam.load_state_dict(state["estimator_adam"])


class CheckpointError(ValueError):
    """A checkpoint that does not fit the run."""


def fit_linear(
    task: LinearTask,
    *,
    lrs: Sequence[float],
    batch_sizes: Sequence[int],
    checkpoint: Mapping[str, Any] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
    progress: bool = False,
) -> list[LinearRun]:
    """Train the grid.

    Args:
        checkpoint: the state to continue from, as ``save`` was last called with.
        save: called after every epoch with the state that a continuation needs: tensors and plain values.

    Returns:
        The runs; :func:`best_run` chooses.
    """
    from tqdm.auto import tqdm

    finished = [LinearRun(**saved) for saved in checkpoint["finished"]] if checkpoint else []
    done = len(finished) // len(lrs)
    with tqdm(total=len(batch_sizes) * task.epochs, unit="epoch", disable=not progress) as bar:
        bar.update(done * task.epochs)
        for batch_size in batch_sizes[done:]:
            group = LinearGroup(task, batch_size, lrs)
            if checkpoint and checkpoint["group"]:
                try:
                    group.load_state_dict(checkpoint["group"])
                except (KeyError, TypeError, RuntimeError, ValueError) as error:
                    raise CheckpointError(f"it does not fit this run: {error!r}") from error
                bar.update(group.epoch)
            checkpoint = None
            bar.set_description(f"batches of {batch_size}")
            while group.epoch < task.epochs:
                group.train_epoch()
                bar.update()
                if save is not None and group.epoch < task.epochs:
                    save({"finished": [dict(vars(run)) for run in finished], "group": group.state_dict()})
            finished += group.runs
            if save is not None:
                save({"finished": [dict(vars(run)) for run in finished], "group": None})
    return finished


def best_run(runs: Sequence[LinearRun]) -> LinearRun:
    """The run with the best validation mAP among those that have not diverged; the first of equals.

    Raises:
        FloatingPointError: all runs have diverged.
    """
    sound = [run for run in runs if bool(run.weight.isfinite().all())]
    if not sound:
        tried = ", ".join(f"lr {run.lr:g} with batches of {run.batch_size}" for run in runs)
        raise FloatingPointError(
            f"the weights became NaN or infinite in every run of the grid ({tried}): try smaller learning rates, "
            "or scale the features (standardize=True)"
        )
    return max(sound, key=lambda run: -1.0 if run.validation_map is None else run.validation_map)
