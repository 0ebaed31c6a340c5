"""Fine-tuning end to end: Lightning's loop, with batches and checkpoints that survive a kill."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler

from .._checkpoint import load_state, part_of, take_name
from .._processes import local_world_size, rank, world_size
from .linear import finite, recovery_map, stream
from .module import SPMLModule
from .quiet import quiet_fit, quiet_trainer

Batch = dict[str, Tensor]


class Rows(Dataset):
    """Rows of a data set as batches for :class:`SPMLModule`.

    Args:
        x: tensor (N, ...) or map-style Dataset of tensors.
        rows: (n,) int64, the rows of x that there are.
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


class Batches(BatchSampler):
    """Batches of a sampler; a single row that is left in the end joins the last batch.

    Batch normalisation would fail on a batch of one row.
    """

    def __iter__(self) -> Iterator[list[int]]:
        waiting: list[int] | None = None
        for batch in super().__iter__():
            if waiting is not None and len(batch) == 1:
                batch = waiting + batch
            elif waiting is not None:
                yield waiting
            waiting = batch
        if waiting is not None:
            yield waiting

    def __len__(self) -> int:
        n = len(self.sampler)
        return max(super().__len__() - (n % self.batch_size == 1), min(n, 1))


class EpochLoader(DataLoader):
    """A loader whose rows and random numbers depend on seed and epoch alone, in a resumed run, too.

    Lightning tells samplers the epoch only after it has begun to load the first one. The loader has a generator of
    its own, so that dropout draws what it would without a loader.

    Attributes:
        seed: seed of the order of rows and of the processes that load them.
        epoch: the epoch to be loaded next, counted from 0.
    """

    seed, epoch = 0, 0

    def __iter__(self) -> Iterator[Batch]:
        self.generator.manual_seed(stream(self.seed, 5, rank(), self.epoch).initial_seed())
        if isinstance(self.batch_sampler.sampler, DistributedSampler):
            self.batch_sampler.sampler.set_epoch(self.epoch)
        return super().__iter__()


def loader(data: Rows, batch_size: int, *, seed: int | None = None, workers: int = 0) -> EpochLoader:
    """Batches of ``batch_size`` rows over all processes together, shuffled in each epoch if ``seed`` is given.

    The processes deal out one permutation between them, so that their batches join to those of a single process.
    In training all get equally many rows, a few of them twice if need be; in validation no row goes to two.
    """
    world, here = world_size(), rank()
    mine = batch_size // world
    if seed is None:
        batches = BatchSampler(range(here, len(data), world), mine, drop_last=False)
    else:
        batches = Batches(DistributedSampler(data, world, here, shuffle=True, seed=seed), mine, drop_last=False)
    return EpochLoader(
        data, batch_sampler=batches, num_workers=workers, collate_fn=_as_it_is, generator=torch.Generator()
    )


def make_trainer(
    *,
    epochs: int,
    batch_size: int,
    accelerator: str = "auto",
    precision: str = "32-true",
    progress: bool = True,
    **options: Any,
) -> lightning.Trainer:
    """The trainer for :func:`finetune`, on all processes that ``torchrun`` has started.

    Raises:
        ValueError: a batch size that the processes cannot share equally, or what Lightning does not know.
    """
    world = world_size()
    if batch_size % world:
        raise ValueError(f"batches of {batch_size} rows cannot be shared equally by {world} processes")
    local = local_world_size()
    several = dict(devices=local, num_nodes=world // local, strategy="ddp") if world > 1 else {}
    try:
        return quiet_trainer(
            progress=progress,
            max_epochs=epochs,
            accelerator=accelerator,
            precision=precision,
            use_distributed_sampler=False,
            **several,
            **options,
        )
    except MisconfigurationException as error:
        raise ValueError(f"Lightning: {error}") from error


def finetune(
    trainer: lightning.Trainer,
    module: SPMLModule,
    train: Rows,
    validation: Rows | None,
    end: EpochEnd,
    *,
    batch_size: int,
    workers: int = 0,
) -> None:
    """Fit ``module``, continuing from the checkpoint of ``end`` if there is one, and leave it in its best state.

    Args:
        batch_size: rows per step, of all processes together.

    Raises:
        KeyboardInterrupt: on Ctrl+C; the checkpoint stays.
        FloatingPointError: the loss diverged.
    """
    trainer.callbacks.append(end)
    end.loader = loader(train, batch_size, seed=end.seed, workers=workers)
    loaders = [end.loader]
    if validation is not None:
        loaders.append(loader(validation, max(batch_size, 64 * world_size()), workers=workers))
    resume, finished = {}, 0
    if end.checkpoint is not None and end.resume and end.checkpoint.exists():
        finished = end.finished_epochs()
        resume = dict(ckpt_path=str(end.checkpoint), weights_only=True)
    end.loader.seed, end.loader.epoch = end.seed, finished
    if not quiet_fit(trainer, module, *loaders, **resume):
        raise KeyboardInterrupt
    module.load_state_dict(end.best)
    if not all(bool(p.isfinite().all()) for p in module.parameters()):
        raise FloatingPointError(f"the weights became NaN or infinite in epoch {end.epoch}: try a smaller lr")


class EpochEnd(Checkpoint):
    """The callback that keeps the best epoch's state, records every epoch and writes the checkpoint.

    It is a ``Checkpoint``, because Lightning calls these after the module's own end of an epoch, and all other
    callbacks before.

    Args:
        checkpoint: file of the checkpoint, or None.
        observed: observed labels of the training rows.
        full_labels: full labels of the training rows, where recovery is to be tracked.
        first_epoch: the module's ``first_epoch``.
        start: (epoch, validation mAP, state) of the linear phase, the best so far.
        resume: continue from the checkpoint where it exists.

    Attributes:
        epochs: a record of each epoch, as in the linear phase.
        epoch: the one whose state is ``best``: that of the best ``val_map``, the last one without validation.
        counts: counts of each epoch, as of :func:`spml_fast.metrics.probability_counts`, with ``full_labels``.
    """

    def __init__(
        self,
        seed: int,
        checkpoint: Path | None,
        observed: Tensor,
        full_labels: Tensor | None,
        first_epoch: int,
        start: tuple[int, float | None, dict[str, Tensor]] | None = None,
        resume: bool = True,
    ) -> None:
        self.seed, self.checkpoint, self.first_epoch, self.resume = seed, checkpoint, first_epoch, resume
        self.observed, self.full_labels = observed, full_labels
        self.epochs: list[dict[str, Any]] = []
        self.counts: list[Tensor] = []
        self.epoch, self.validation_map, self.best = (0, None, None) if start is None else start

    def finished_epochs(self) -> int:
        """Number of epochs that the checkpoint holds.

        Raises:
            ValueError: it is not a checkpoint of fine-tuning.
        """
        state = load_state(self.checkpoint)
        try:
            return len(state["callbacks"][self.state_key]["epochs"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.checkpoint} is not a checkpoint of fine-tuning: {error!r}") from error

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: SPMLModule) -> None:
        # Dropout and augmentation of an epoch do not depend on whether the run was resumed before it.
        torch.manual_seed(stream(self.seed, 3, trainer.current_epoch, trainer.global_rank).initial_seed())
        self.began = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: SPMLModule) -> None:
        metrics = trainer.callback_metrics
        recovery = None
        if self.full_labels is not None and module.probabilities is not None:
            recovery = recovery_map(module.probabilities.cpu(), self.full_labels, self.observed, self.counts)
        value = float(metrics["val_map"]) if "val_map" in metrics else None
        self.epochs.append(
            {
                "epoch": self.first_epoch + trainer.current_epoch,
                "train_loss": finite(float(metrics["train_loss"])),
                "validation_map": value,
                "recovery_map": recovery,
                "seconds": time.perf_counter() - self.began,
            }
        )
        if value is None or self.validation_map is None or value > self.validation_map:
            self.epoch, self.validation_map = self.epochs[-1]["epoch"], value
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
        self.loader.epoch = trainer.current_epoch + 1
        if self.checkpoint is not None:
            trainer.save_checkpoint(part_of(self.checkpoint))  # called by every process, written by one
            if trainer.is_global_zero:
                take_name(self.checkpoint)

    def state_dict(self) -> dict[str, Any]:
        names = ("epochs", "counts", "epoch", "validation_map", "best")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)
