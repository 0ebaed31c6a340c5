"""The linear phase as research code runs it: DataLoader, torch.nn.Linear, an eager loss, autograd, Adam.

What ``spml_table.py`` and ``training_throughput.py`` compare with. Start, batches and label estimates are drawn as
the package draws them, so that what differs is how the same training is computed.
"""

from __future__ import annotations

import inspect
import math
import time
from dataclasses import dataclass

import eager
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from spml_fast.labels import LabelEstimator
from spml_fast.losses import Loss
from spml_fast.metrics import mean_average_precision
from spml_fast.training.linear import ESTIMATOR_FACTOR, stream


@dataclass(frozen=True)
class EagerRun:
    """One run: the classifier of its best epoch, or of its last without validation."""

    classifier: nn.Linear
    validation_map: float | None
    epoch: int
    seconds: float


class Instances(Dataset):
    """x, observed labels as a dense row, full labels, and the row's number."""

    def __init__(self, x: Tensor, observed: Tensor, labels: Tensor) -> None:
        self.x, self.observed, self.labels = x, observed, labels

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, Tensor, int]:
        return self.x[row], self.observed[row], self.labels[row], row


class EagerLoss:
    """``eager.NAME`` with the hyper-parameters of a loss module, and what the loss keeps of the data."""

    def __init__(self, module: Loss, observed: Tensor, seed: int) -> None:
        self.module, self.name = module, type(module).name
        parameters = inspect.signature(type(module).function).parameters.values()
        self.defaults = {p.name: p.default for p in parameters if p.default not in (p.empty, None)}
        self.observed = observed.clone()
        self.parameters: list[nn.Parameter] = []
        if self.name == "role":
            self.table = LabelEstimator(observed, generator=stream(seed, 2)).logits
            self.parameters = [self.table]

    def __call__(self, z: Tensor, s: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        name = self.name
        if name in ("bce", "bce_ls"):
            return self._eager(name, z, y)
        if name == "iun":
            return self._eager("iun", z, s, y)
        if name == "role":
            return self._eager("role", z, self.table, rows, s)
        if name == "em_apl":
            return self._eager("em_apl", z, s, self.module.pseudo_labels[rows])
        if name in ("ll_r", "ll_ct"):
            return eager.ll(z, s, self.module.hyper["share"], name == "ll_ct")
        if name == "ll_cp":
            return self._flip_for_good(z, rows)
        return self._eager(name, z, s)

    def _eager(self, name: str, *tensors: Tensor) -> Tensor:
        function = getattr(eager, name)
        known = inspect.signature(function).parameters
        hyper = self.defaults | self.module.hyper
        return function(*tensors, **{n: v for n, v in hyper.items() if n in known and n != "eps"})

    def _flip_for_good(self, z: Tensor, rows: Tensor) -> Tensor:
        s = self.observed[rows]
        loss = nn.functional.binary_cross_entropy_with_logits(z, s, reduction="none")
        k = math.ceil(z.numel() * self.module.hyper["share"])
        if k:
            candidates = ((s == 0) * loss).detach()
            flipped = (candidates >= torch.topk(candidates.flatten(), k).values[-1]) & (s == 0)
            s = torch.where(flipped, 1.0, s)
            self.observed[rows] = s
        return nn.functional.binary_cross_entropy_with_logits(z, s)

    def end_epoch(self, classifier: nn.Linear, x: Tensor) -> None:
        if self.name == "em_apl":
            with torch.no_grad():
                self.module.update(classifier(x).sigmoid(), self.observed)


def train_eager(
    module: Loss,
    x: Tensor,
    observed: Tensor,
    labels: Tensor,
    *,
    lr: float,
    batch_size: int,
    epochs: int,
    seed: int,
    validation: tuple[Tensor, Tensor] | None = None,
) -> EagerRun:
    """One run of the recipe.

    Args:
        module: whose hyper-parameters and schedules the eager loss has.
        x: (N, D) features.
        observed, labels: (N, L) float, what is observed and what is true.
        validation: features and labels (N, L) bool.
    """
    began = time.perf_counter()
    n_labels = labels.shape[1]
    classifier = nn.Linear(x.shape[1], n_labels)
    start = torch.empty(n_labels, x.shape[1] + 1)
    start.uniform_(-(x.shape[1] ** -0.5), x.shape[1] ** -0.5, generator=stream(seed, 1))
    with torch.no_grad():
        classifier.weight.copy_(start[:, :-1])
        classifier.bias.copy_(start[:, -1])
    loss = EagerLoss(module, observed, seed)
    groups = [{"params": classifier.parameters()}]
    if loss.parameters:
        groups.append({"params": loss.parameters, "lr": ESTIMATOR_FACTOR * lr})
    optimizer = torch.optim.Adam(groups, lr=lr)
    instances = Instances(x, observed, labels)
    best: tuple[float, int, dict[str, Tensor]] | None = None
    for epoch in range(1, epochs + 1):
        module.set_epoch(epoch)
        order = torch.randperm(len(x), generator=stream(seed, 0, epoch))
        for batch, s, y, rows in DataLoader(instances, batch_size, sampler=order.tolist()):
            value = loss(classifier(batch), s, y, rows)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        loss.end_epoch(classifier, x)
        score = 0.0
        if validation is not None:
            with torch.no_grad():
                score = mean_average_precision(classifier(validation[0]), validation[1])
        if validation is None or best is None or score > best[0]:
            best = score, epoch, {name: value.clone() for name, value in classifier.state_dict().items()}
    score, epoch, state = best
    classifier.load_state_dict(state)
    return EagerRun(classifier, None if validation is None else score, epoch, time.perf_counter() - began)
