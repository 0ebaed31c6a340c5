"""Latents that the user brings: a tensor of them, or a function that draws them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .prior import Regenerated

DrawLatents = Callable[[int, torch.Generator], Tensor | tuple[Tensor, Tensor]]
"""``draw(n, generator) -> latents (n, *z_shape)``, or ``(latents, log p_z(z) - log p~_z(z) (n,))``; p_z is the
density of the latents that G and clf are meant for, p~_z the one that z was drawn from."""


class GivenLatents(Regenerated):
    """Latents (n_steps, n_chains, *z_shape) that the user drew, for the chains that run here."""

    def __init__(self, latents: Tensor):
        self.latents, self.n_chains, self.device = latents, latents.shape[1], latents.device

    def recall(self, chains: Tensor, steps: Tensor) -> Tensor:
        return self.latents[steps, chains]


class DrawnProposal:
    """Latents from the user's own ``draw(n, generator)``, called once a step with n = n_chains, so that what it
    returns depends neither on the batches that the sampler works in nor on which of the chains run here.

    Args:
        draw: see :data:`DrawLatents`.
        z_shape: shape of one latent.
        n_chains: number of chains of the run, in all processes.
        here: the chains among them that run here.
        seed: of the generator that ``draw`` is given, on ``device``.
        needs_correction: whether latents without log p_z(z) - log p~_z(z) are an error.
        dtype: of the latents that G gets, whatever the function returns.
    """

    regenerates = False
    normal_coordinates = False

    def __init__(
        self,
        draw: DrawLatents,
        z_shape: tuple[int, ...],
        n_chains: int,
        here: slice,
        seed: int,
        device: torch.device | str,
        needs_correction: bool = False,
        dtype: torch.dtype = torch.float32,
    ):
        self.draw = draw
        self.z_shape = z_shape
        self.n_chains = n_chains
        self.here = here
        self.device = torch.device(device)
        self.needs_correction = needs_correction
        self.dtype = dtype
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._next = 0  # the step to draw next
        self._drawn: dict[int, tuple[Tensor, Tensor | None]] = {}  # of the steps that rows may be asked of again
        self._before: dict[int, Tensor] = {}  # states of the generator, by the step drawn from them
        self._corrected: bool | None = None

    def rows(self, first: int, last: int) -> tuple[Tensor, Tensor | None]:
        n = self.here.stop - self.here.start
        steps = range(first // n, -(-last // n))
        self._drawn = {step: drawn for step, drawn in self._drawn.items() if step >= steps.start}
        for step in range(self._next, steps.stop):
            self._draw(step)
        parts = [slice(max(first - step * n, 0), last - step * n) for step in steps]
        latents, corrections = zip(*(self._drawn[step] for step in steps), strict=True)
        latents = torch.cat([z[part] for z, part in zip(latents, parts, strict=True)])
        if corrections[0] is None:
            return latents, None
        return latents, torch.cat([c[part] for c, part in zip(corrections, parts, strict=True)])

    def recall(self, chains: Tensor, steps: Tensor) -> Tensor:
        raise RuntimeError("latents that a function drew cannot be drawn again")

    def state(self, step: int) -> Tensor:
        """State of the generator before ``step``; those of the steps before are forgotten."""
        self._before = {at: state for at, state in self._before.items() if at >= step}
        return self._before.get(step, self.generator.get_state())

    def resume(self, step: int, state: Tensor) -> None:
        self.generator.set_state(state)
        self._next = step

    def _draw(self, step: int) -> None:
        self._before[step] = self.generator.get_state()
        try:
            drawn = self.draw(self.n_chains, self.generator)
        except BaseException:
            self.generator.set_state(self._before[step])  # asked again, it draws the same
            raise
        z, correction = self._checked(drawn, step)
        if self._corrected not in (None, correction is not None):
            raise ValueError("the proposal returned log weights at some steps and none at others")
        self._corrected = correction is not None
        # Copies: the function may return the same buffer every time.
        self._drawn[step] = (z[self.here].clone(), None if correction is None else correction[self.here].clone())
        self._next = step + 1

    def _checked(self, drawn: object, step: int) -> tuple[Tensor, Tensor | None]:
        z, correction = drawn if isinstance(drawn, tuple) and len(drawn) == 2 else (drawn, None)
        where = f"the proposal's draw({self.n_chains}, generator) at step {step}"
        if not isinstance(z, Tensor) or z.shape != (self.n_chains, *self.z_shape):
            raise ValueError(
                f"{where} must return latents {(self.n_chains, *self.z_shape)}, or a pair of latents and log "
                f"weights ({self.n_chains},); got {_shape_or_type(drawn)}"
            )
        if correction is None and self.needs_correction:
            raise ValueError(
                f"{where} returned no log weights: Langevin chains need log p_z(z) - log p~_z(z), p_z being a "
                "standard normal: zeros where latents are drawn from that"
            )
        if correction is not None and (not isinstance(correction, Tensor) or correction.shape != (self.n_chains,)):
            got = _shape_or_type(correction)
            raise ValueError(f"{where}: log weights must have shape ({self.n_chains},), got {got}")
        return z.to(self.device, self.dtype), None if correction is None else correction.to(self.device)


def _shape_or_type(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(type(value).__name__)
