"""Fine-tuning as a LightningModule: any model, any loss of the package, anybody's Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
import torch.distributed as dist
from torch import Tensor, nn

from .._checks import renamed
from ..labels import LabelEstimator
from ..losses import Loss, make
from ..metrics import average_precision
from .linear import ESTIMATOR_FACTOR
from .recipe import called_with


class SPMLModule(lightning.LightningModule):
    """Trains a multi-label classifier from single positive labels (Cole et al., CVPR 2021, section 5).

    Training batches are mappings with "x", "labels" (N,) int64 or (N, L), "index" (N,) int64, the rows in the
    training set, where the loss asks for it (see ``loss.inputs``), and "full_labels" or "pseudo_labels" (N, L)
    where it asks for those; or sequences (x, labels[, index]). Validation batches are mappings with "x" and
    "labels", full ones (N, L), or sequences of the two.

    Logged: ``train_loss``, and ``val_map``, the mean over classes of average precision in [0, 1], a class without
    positives counting 0.

    Args:
        model: x -> logits (N, L).
        loss: name or module of a loss; a module is used as it is and keeps its state in the checkpoint.
        head: name of the submodule of ``model`` that is new, for example "fc": it learns ``head_factor`` times as
            fast as the rest. None: everything learns alike.
        estimator: the label estimates, for ROLE; they learn ten times as fast as the trunk.
        observed: (R,) or (R, L), observed labels of the whole training set, for EM+APL.
        lr: learning rate of Adam, for the trunk.
        first_epoch: the number of the first epoch to the loss: one more than the epochs of a linear phase before.
        track_recovery: keep the predicted probabilities of each training epoch, (R, L), in ``probabilities``; NaN
            for rows that were in no batch. Needs the batches' "index".

    Raises:
        ValueError: a head that the model does not have, or an input of the loss that is missing.
    """

    @renamed(watch="track_recovery=...")
    def __init__(
        self,
        model: nn.Module,
        loss: str | Loss | nn.Module = "gr",
        *,
        head: str | None = "head",
        estimator: LabelEstimator | None = None,
        observed: Tensor | None = None,
        lr: float = 1e-5,
        head_factor: float = 10.0,
        first_epoch: int = 1,
        track_recovery: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.estimator = model, estimator
        self.loss = make(loss) if isinstance(loss, str) else loss
        self.lr, self.head_factor, self.first_epoch = lr, head_factor, first_epoch
        self.head = head
        if head is not None and head not in dict(model.named_modules()):
            children = ", ".join(name for name, _ in model.named_children()) or "none"
            raise ValueError(
                f"the model has no submodule {head!r}; it has {children}. Name the new one, or pass head=None"
            )
        self.inputs = called_with(self.loss)
        if "table" in self.inputs and estimator is None:
            raise ValueError(f"{type(self.loss).__name__} needs an estimator, LabelEstimator(labels)")
        if hasattr(self.loss, "update") and observed is None:
            raise ValueError(f"{type(self.loss).__name__} needs observed, the labels of the whole training set")
        self.track_recovery = track_recovery or hasattr(self.loss, "update")
        self.register_buffer("observed", observed, persistent=False)
        self.probabilities: Tensor | None = None
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._scored: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        """The logits (N, L)."""
        return self.model(x)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        head = [] if self.head is None else list(self.model.get_submodule(self.head).parameters())
        in_head = set(head)
        groups = [{"params": [p for p in self.model.parameters() if p not in in_head]}]
        if head:
            groups.append({"params": head, "lr": self.head_factor * self.lr})
        if self.estimator is not None:
            groups.append({"params": list(self.estimator.parameters()), "lr": ESTIMATOR_FACTOR * self.lr})
        return torch.optim.Adam([group for group in groups if group["params"]], lr=self.lr)

    # --- training ---------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        self._seen.clear()  # what an epoch that did not end left
        if hasattr(self.loss, "set_epoch"):
            self.loss.set_epoch(self.first_epoch + self.current_epoch)

    def training_step(self, batch: Mapping[str, Tensor] | Sequence[Tensor], _: int) -> Tensor:
        if not isinstance(batch, Mapping):
            batch = dict(zip(("x", "labels", "index"), batch, strict=False))
        given = dict(batch)
        needed = ["x", *(name for name in self.inputs if name != "table")]
        if self.track_recovery and "index" not in needed:
            needed.append("index")
        missing = [name for name in needed if name not in given]
        if missing:
            raise ValueError(
                f"{type(self.loss).__name__} needs {', '.join(missing)} in the batch, which has "
                f"{', '.join(sorted(given)) or 'nothing'}"
            )
        logits = self.model(given["x"])
        if self.estimator is not None:
            given["table"] = self.estimator.logits
        value = self.loss(logits, *[given[name] for name in self.inputs])
        if self.track_recovery:
            self._seen.append((given["index"], logits.detach().float().sigmoid()))
        self.log("train_loss", value, on_step=False, on_epoch=True, batch_size=len(logits), sync_dist=True)
        return value

    def on_train_batch_end(self, *_: Any) -> None:
        flips = getattr(self.loss, "flips", None)
        if flips is not None and dist.is_available() and dist.is_initialized():
            # Each process flips labels of its own rows, and DistributedDataParallel hands out those of the first.
            dist.all_reduce(flips, dist.ReduceOp.MAX)

    def on_train_epoch_end(self) -> None:
        if not self._seen:
            return
        index, p = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        rows = torch.tensor(int(index.max()) + 1, device=p.device) if self.observed is None else len(self.observed)
        distributed = dist.is_available() and dist.is_initialized()
        if distributed and isinstance(rows, Tensor):
            dist.all_reduce(rows, dist.ReduceOp.MAX)
        table = torch.full((int(rows), p.shape[1]), -1.0, device=p.device).index_copy_(0, index, p)
        if distributed:
            dist.all_reduce(table, dist.ReduceOp.MAX)
        self.probabilities = table = table.masked_fill(table < 0, torch.nan)
        if hasattr(self.loss, "update"):
            self.loss.update(table, self.observed)

    # --- validation -------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._scored.clear()

    def validation_step(self, batch: Mapping[str, Tensor] | Sequence[Tensor], _: int) -> None:
        x, labels = (batch["x"], batch["labels"]) if isinstance(batch, Mapping) else batch[:2]
        self._scored.append((self.model(x).detach().float(), labels == 1))

    def on_validation_epoch_end(self) -> None:
        logits, labels = (torch.cat(parts) for parts in zip(*self._scored, strict=True))
        self._scored.clear()
        if dist.is_available() and dist.is_initialized():
            logits, labels = _all_gather_rows(logits), _all_gather_rows(labels)
        if bool(logits.isfinite().all()):
            value = average_precision(logits, labels).mean()
        else:
            value = torch.zeros((), device=logits.device)  # a model that has diverged ranks nothing
        self.log("val_map", value.float(), prog_bar=True, rank_zero_only=False)


def _all_gather_rows(rows: Tensor) -> Tensor:
    """Joins the rows of all processes, which need not have equally many."""
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = int(max(counts))
    padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded.contiguous())
    return torch.cat([part[: int(count)] for part, count in zip(gathered, counts, strict=True)])
