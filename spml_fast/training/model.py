"""The multi-label classifier that comes out of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .._models import eval_mode

if TYPE_CHECKING:
    from ..data.base import Features

PREDICT_ROWS = 64
"""Number of rows that go through a network at once."""


class MultiLabelClassifier(nn.Module):
    """A trunk and a linear head: x -> logits (N, L).

    Attributes:
        trunk: x -> features (N, F); the identity for a classifier on features.
        head: ``torch.nn.Linear(F, L)``.
    """

    def __init__(self, trunk: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))

    def predict_proba(self, x: Features, workers: int = 0) -> Tensor:
        """The probabilities (N, L), on the CPU.

        Args:
            x: a tensor, an array, a scipy CSR matrix or a ``Dataset``.
            workers: processes that load a ``Dataset``.
        """
        return over_rows(lambda batch: self(batch).sigmoid(), self, x, workers)


@torch.no_grad()
def over_rows(function: Callable[[Tensor], Tensor], module: nn.Module, x: Features, workers: int = 0) -> Tensor:
    """Applies ``function`` to all rows of x, in batches on the module's device and in eval mode.

    Returns:
        The results in a row, float32 on the CPU.
    """
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    with eval_mode(module):
        return torch.cat(
            [function(batch.to(device, torch.float32)).float().cpu() for batch in _batches(x, workers)]
        )


def _batches(x: Features, workers: int) -> Iterator[Tensor]:
    if not hasattr(x, "shape"):
        # With a generator of its own, the loader leaves torch's alone.
        yield from DataLoader(x, PREDICT_ROWS, num_workers=workers, generator=torch.Generator())
        return
    for first in range(0, max(x.shape[0], 1), PREDICT_ROWS):  # at least one batch, which gives the shape
        rows = x[first : first + PREDICT_ROWS]
        yield torch.as_tensor(rows.toarray() if hasattr(rows, "toarray") else rows)


def load_classifier(folder: str | Path, trunk: nn.Module | None = None) -> MultiLabelClassifier:
    """The classifier that a run left in its folder, in eval mode on the CPU.

    Args:
        folder: ``out`` of :func:`spml_fast.train_classifier`.
        trunk: a module of the shape that the run's trunk had, which gets its weights; None for a linear classifier
            on features.

    Raises:
        FileNotFoundError: the folder holds no finished run.
        ValueError: weights that do not fit the trunk.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(folder) / "model.safetensors"
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist: {folder} holds no finished run")
    try:
        state = load_file(file)
        n_labels, width = state["head.weight"].shape
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{file} does not hold the weights of a classifier: {error}") from error
    model = MultiLabelClassifier(nn.Identity() if trunk is None else trunk, nn.Linear(width, n_labels))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        hint = "pass the trunk that it was trained with" if trunk is None else "the trunk has another shape"
        raise ValueError(f"{file} does not fit: {hint}; {error}") from error
    return model.eval()
