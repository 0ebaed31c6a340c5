"""Fine-tuning end to end: Lightning's loop, our sampler of rows and a checkpoint after every epoch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ..metrics import average_precision, probability_counts
from .checkpoint import write_atomically
from .linear import stream
from .module import SPMLModule
from .quiet import quiet_fit, quiet_trainer

Batch = dict[str, Tensor]


class Rows(Dataset):
    """Rows of a data set as batches for :class:`SPMLModule`.

    Args:
        x: tensor (N, ...) or map-style Dataset of tensors.
        rows: (n,) int64, which of them.
        inputs: tensors of n rows, by name.
    """

    def __init__(self, x: Tensor | Dataset, rows: Tensor, inputs: Mapping[str, Tensor]) -> None:
        self.x, self.rows, self.inputs = x, rows, inputs

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, index: list[int]) -> Batch:
        places = torch.tensor(index)
        rows = self.rows[places]
        x = self.x[rows] if isinstance(self.x, Tensor) else torch.stack([self.x[int(row)] for row in rows])
        return {"x": x, "index": places, **{name: value[places] for name, value in self.inputs.items()}}

    def __getitem__(self, index: int) -> Batch:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}


def _as_it_is(batch: Batch) -> Batch:
    return batch


def loader(data: Rows, batch_size: int, *, seed: int | None = None, workers: int = 0) -> DataLoader:
    """Batches of ``batch_size`` rows over all processes together, shuffled in each epoch if ``seed`` is given.

    The processes deal out one permutation between them, so that their batches join to those of a single process.
    """
    world, rank = processes()
    sampler = DistributedSampler(data, world, rank, shuffle=seed is not None, seed=seed or 0)
    mine = batch_size // world
    return DataLoader(
        data,
        mine,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_as_it_is,
        persistent_workers=workers > 0,
        # A last batch of one row would break batch normalisation.
        drop_last=seed is not None and len(sampler) > mine and len(sampler) % mine == 1,
    )


def processes() -> tuple[int, int]:
    """How many processes ``torchrun`` has started, and which of them this is; (1, 0) without it."""
    return int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))


def finetune(
    module: SPMLModule,
    train: Rows,
    validation: Rows | None,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    accelerator: str = "auto",
    precision: str = "32-true",
    workers: int = 0,
    checkpoint: Path | None = None,
    full_labels: Tensor | None = None,
    progress: bool = True,
    report: Callable[[dict[str, Any]], None] | None = None,
    **trainer_options: Any,
) -> EpochEnd:
    """Fit ``module``, from ``checkpoint`` where that file exists, and leave it in its best epoch's state.

    Args:
        batch_size: of all processes together.
        full_labels: (n, L) bool of the training rows, where known: what is recovered is watched.

    Returns:
        What was recorded.

    Raises:
        ValueError: a batch size that the processes cannot share equally.
        KeyboardInterrupt: on Ctrl+C; the checkpoint stays.
        FloatingPointError: the loss diverged.
    """
    world, _ = processes()
    if batch_size % world:
        raise ValueError(f"batches of {batch_size} rows cannot be shared equally by {world} processes")
    end = EpochEnd(seed, checkpoint, train.inputs["labels"], full_labels, module.first_epoch, report)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    options = dict(devices=local, num_nodes=world // local, strategy="ddp") if world > 1 else {}
    trainer = quiet_trainer(
        progress=progress,
        max_epochs=epochs,
        accelerator=accelerator,
        precision=precision,
        use_distributed_sampler=False,
        **options,
        **trainer_options,
    )
    trainer.callbacks.append(end)
    loaders = [loader(train, batch_size, seed=seed, workers=workers)]
    if validation is not None:
        loaders.append(loader(validation, max(batch_size, 64 * world), workers=workers))
    resume = {}
    if checkpoint is not None and checkpoint.exists():
        resume = dict(ckpt_path=str(checkpoint), weights_only=True)
    if not quiet_fit(trainer, module, *loaders, **resume):
        raise KeyboardInterrupt
    module.load_state_dict(end.best)
    if not all(bool(p.isfinite().all()) for p in module.parameters()):
        raise FloatingPointError(f"the weights became NaN or infinite in epoch {end.epoch}: try a smaller lr")
    return end


class EpochEnd(Checkpoint):
    """Keeps the best epoch's state, records every epoch, writes the checkpoint.

    A ``Checkpoint``, because Lightning calls those after the module's own end of an epoch, all others before.

    Attributes:
        epochs: records as those of the linear phase.
        epoch: whose state is ``best``: that of the best ``val_map``, the last one without validation.
        counts: of each epoch, as of :func:`spml_fast.metrics.probability_counts`, where full labels are known.
    """

    def __init__(
        self,
        seed: int,
        checkpoint: Path | None,
        observed: Tensor,
        full_labels: Tensor | None,
        first_epoch: int,
        report: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.seed, self.checkpoint, self.first_epoch, self.report = seed, checkpoint, first_epoch, report
        self.observed, self.full_labels = observed, full_labels
        self.epochs: list[dict[str, Any]] = []
        self.counts: list[Tensor] = []
        self.epoch = 0
        self.validation_map: float | None = None
        self.best: dict[str, Tensor] | None = None

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: SPMLModule) -> None:
        # Dropout and augmentation of an epoch do not depend on whether the run was resumed before it.
        torch.manual_seed(stream(self.seed, 3, trainer.current_epoch, trainer.global_rank).initial_seed())
        self.began = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: SPMLModule) -> None:
        metrics = trainer.callback_metrics
        recovery = None
        if self.full_labels is not None and module.probabilities is not None:
            p = module.probabilities.cpu()
            if bool(p.isfinite().all()):
                recovery = float(average_precision(p, self.full_labels).mean())
                self.counts.append(probability_counts(p, self.full_labels, self.observed).cpu())
        value = float(metrics["val_map"]) if "val_map" in metrics else None
        self.epochs.append(
            {
                "epoch": self.first_epoch + trainer.current_epoch,
                "train_loss": float(metrics["train_loss"]),
                "validation_map": value,
                "recovery_map": recovery,
                "seconds": time.perf_counter() - self.began,
            }
        )
        if value is None or self.validation_map is None or value > self.validation_map:
            self.epoch, self.validation_map = self.epochs[-1]["epoch"], value
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
        if self.report is not None and trainer.is_global_zero:
            self.report(self.epochs[-1])
        if self.checkpoint is not None:
            part = self.checkpoint.with_name(f".{self.checkpoint.name}.part")
            trainer.save_checkpoint(part)  # called by every process, written by one
            if trainer.is_global_zero:
                write_atomically(self.checkpoint, lambda _: None)

    def state_dict(self) -> dict[str, Any]:
        names = ("epochs", "counts", "epoch", "validation_map", "best")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)
