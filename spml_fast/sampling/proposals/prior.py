"""Where latents come from, and latents of the prior."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from ... import _ops


class Proposal(Protocol):
    """Where the latents of one pool come from.

    The chains of this process are offered rows in order, steps outermost: row r is the proposal of its chain
    r % n_chains at step r // n_chains.
    """

    regenerates: bool
    """Whether :meth:`recall` works. Where it does not, latents of accepted proposals are kept as the run goes."""
    normal_coordinates: bool
    """Whether latents are in coordinates in which the prior is standard normal, rather than G's own."""

    def rows(self, first: int, last: int) -> tuple[Tensor, Tensor | None]:
        """Latents (last - first, *z_shape), and log p_z(z) - log p~_z(z) of that length, None where it is zero."""

    def recall(self, chains: Tensor, steps: Tensor) -> Tensor:
        """Latents (n, *z_shape) that chain ``chains[i]`` of this process was offered at ``steps[i]``."""

    def state(self, step: int) -> Any:
        """What :meth:`resume` needs to go on with ``step``, as plain values and tensors."""

    def resume(self, step: int, state: Any) -> None:
        """Go on from ``step`` of a run whose checkpoint holds ``state``."""


class Regenerated:
    """A proposal whose latents depend on the chain and the step alone, so that nothing has to be remembered."""

    regenerates = True
    normal_coordinates = False
    n_chains: int
    device: torch.device

    def rows(self, first: int, last: int) -> tuple[Tensor, Tensor | None]:
        rows = torch.arange(first, last, device=self.device)
        steps = rows // self.n_chains
        return self.recall(rows - steps * self.n_chains, steps), None

    def recall(self, chains: Tensor, steps: Tensor) -> Tensor:
        raise NotImplementedError

    def state(self, step: int) -> None:
        return None

    def resume(self, step: int, state: None) -> None:
        return None


class PriorProposal(Regenerated):
    """Standard normal latents by Philox: those of (seed, chain, step) are the same in every run, on every device,
    in batches of any size.

    Args:
        z_shape: shape of one latent.
        chains: (n_chains,) int64, the numbers that chains are known by in all runs, on the device of the latents.
        seed: 64 bits.
        dtype: of the latents.
    """

    normal_coordinates = True

    def __init__(self, z_shape: tuple[int, ...], chains: Tensor, seed: int, dtype: torch.dtype = torch.float32):
        self.z_shape = z_shape
        self.chains, self.n_chains, self.device = chains, len(chains), chains.device
        self.seed = seed
        self.dtype = dtype

    def recall(self, chains: Tensor, steps: Tensor) -> Tensor:
        return self._draw(self.chains[chains], steps).reshape(-1, *self.z_shape)

    def _draw(self, chains: Tensor, steps: Tensor) -> Tensor:
        """Latents (n, D) of n chains, by their numbers in all runs, at a step each."""
        return _ops.philox_normal(chains, steps, self.seed, torch.Size(self.z_shape).numel(), dtype=self.dtype)
