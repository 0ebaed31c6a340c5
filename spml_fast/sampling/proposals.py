"""Where proposals' latents come from.

A proposal hands out latents in blocks of steps x chains. The log weight's correction, log p_z(z) - log p~_z(z),
goes with them when they are not drawn from the generator's prior.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .. import _ops

DrawLatents = Callable[[int, torch.Generator], Tensor | tuple[Tensor, Tensor]]
"""``draw(n, generator) -> latents (n, *z_shape)``, or ``(latents, extra log weights (n,))``."""


class Proposal(Protocol):
    recall: Callable[[Tensor, Tensor], Tensor] | None
    """``recall(chains, steps)`` -> latents (n, *z_shape) that chain ``chains[i]`` of the run met at ``steps[i]``.
    None where latents cannot be had again: then those of accepted proposals are kept as the run goes."""

    def block(self, first_step: int, n_steps: int) -> tuple[Tensor, Tensor | None]:
        """Latents (n_steps * n_chains, *z_shape), steps outermost, and log weights of that length or None."""


class PriorProposal:
    """Standard normal latents by Philox: those of (seed, chain, step) are the same in every run, on every
    device, in batches of any size, so nothing but the step has to be remembered."""

    def __init__(
        self,
        z_shape: tuple[int, ...],
        n_chains: int,
        seed: int,
        first_chain: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        self.z_shape = z_shape
        self.seed = seed
        self.dtype = dtype
        self.chains = torch.arange(first_chain, first_chain + n_chains, device=device)

    def _draw(self, chains: Tensor, steps: Tensor) -> Tensor:
        """Latents (n, D) of n chains, by their numbers in all runs, at a step each."""
        rows = (chains.reshape(-1), steps.reshape(-1))
        return _ops.philox_normal(*rows, self.seed, torch.Size(self.z_shape).numel(), dtype=self.dtype)

    def block(self, first_step: int, n_steps: int) -> tuple[Tensor, Tensor | None]:
        steps = torch.arange(first_step, first_step + n_steps, device=self.chains.device)
        latents = self._draw(*torch.broadcast_tensors(self.chains, steps[:, None]))
        return latents.reshape(-1, *self.z_shape), None

    def recall(self, chains: Tensor, steps: Tensor) -> Tensor:
        return self._draw(self.chains[chains], steps).reshape(-1, *self.z_shape)


class GivenLatents:
    """Latents (n_steps, n_chains, *z_shape) that the user drew, of the chains that run here."""

    def __init__(self, latents: Tensor):
        self.latents = latents

    def block(self, first_step: int, n_steps: int) -> tuple[Tensor, None]:
        return self.latents[first_step : first_step + n_steps].flatten(0, 1), None

    def recall(self, chains: Tensor, steps: Tensor) -> Tensor:
        return self.latents[steps, chains]


class DrawnProposal:
    """Latents from the user's own ``draw(n, generator)``, called once a step with n = n_chains, so that what it
    returns depends neither on the blocks that the sampler works in nor on which of the chains run here."""

    recall = None

    def __init__(
        self,
        draw: DrawLatents,
        n_chains: int,
        seed: int,
        device: torch.device | str,
        here: slice = slice(None),
        weighted: bool = False,
    ):
        """``weighted``: latents without log weights are an error."""
        self.draw = draw
        self.n_chains = n_chains
        self.device = torch.device(device)
        self.here = here
        self.weighted = weighted
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def block(self, first_step: int, n_steps: int) -> tuple[Tensor, Tensor | None]:
        latents, log_weights = [], []
        for step in range(first_step, first_step + n_steps):
            z, extra = self._checked(self.draw(self.n_chains, self.generator), step)
            latents.append(z[self.here])
            log_weights.append(extra if extra is None else extra[self.here])
        given = [extra is not None for extra in log_weights]
        if any(given) and not all(given):
            raise ValueError("the proposal returned log weights at some steps and none at others")
        return torch.cat(latents), torch.cat(log_weights) if all(given) else None

    def state(self) -> Tensor:
        """Of the generator, to go on with in another process."""
        return self.generator.get_state()

    def set_state(self, state: Tensor) -> None:
        self.generator.set_state(state)

    def _checked(self, drawn: object, step: int) -> tuple[Tensor, Tensor | None]:
        z, extra = drawn if isinstance(drawn, tuple) and len(drawn) == 2 else (drawn, None)
        where = f"the proposal's draw({self.n_chains}, generator) at step {step}"
        if not isinstance(z, Tensor) or z.ndim < 1 or z.shape[0] != self.n_chains:
            raise ValueError(
                f"{where} must return latents (n, *z_shape), or a pair of latents and log weights (n,); "
                f"got {_describe(drawn)}"
            )
        if extra is None and self.weighted:
            raise ValueError(
                f"{where} returned no log weights: Langevin chains need log p_z(z) - log p~_z(z), p_z being a "
                "standard normal: zeros where latents are drawn from that"
            )
        if extra is not None and (not isinstance(extra, Tensor) or extra.shape != (self.n_chains,)):
            raise ValueError(f"{where}: log weights must have shape ({self.n_chains},), got {_describe(extra)}")
        return z.to(self.device), extra if extra is None else extra.to(self.device)


def _describe(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(type(value).__name__)
