"""Priors of latents other than the standard normal, as functions of standard normal latents.

The sampler works in coordinates in which the prior is standard normal: there it proposes, adapts proposals and
takes Langevin steps. What such coordinates become before G sees them is part of the generator. So any prior that
can be written as a function of normals is exact with every method, and drawn by Philox like the normal one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, Transform, constraints

from ..._models import seeded

INSIDE = 2.0**-53
"""Smallest distance of a uniform from 0 and 1: beyond, inverse distribution functions may be infinite."""


class TruncatedNormal(Distribution):
    """The standard normal distribution between two bounds: the prior of generators that truncate their latents.

    A number that falls outside is drawn again, number by number, as in BigGAN's truncation; so each is
    independent.

    Args:
        low, high: bounds, numbers; the distribution is of one number, and stands for each number of a latent.

    Raises:
        ValueError: low is not less than high, or nothing lies between them.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012, as torch has it
    has_rsample = True

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = float(low), float(high)
        if not self.low < self.high:
            raise ValueError(f"low must be less than high, got low={low!r}, high={high!r}")
        # exp(log_ndtr) keeps the digits of the lower tail, which ndtr does not. In the upper tail both are 1:
        # there the distribution is that of the negated number, turned round.
        self._sign = -1.0 if self.low > 0 else 1.0
        ends = sorted((self._sign * self.low, self._sign * self.high))
        first, last = torch.special.log_ndtr(torch.tensor(ends, dtype=torch.float64)).exp().tolist()
        self._first, self._mass = first, last - first
        if self._mass <= 0:
            raise ValueError(f"no mass of the standard normal lies between {low} and {high}")
        super().__init__(validate_args=False)

    def __repr__(self) -> str:
        return f"TruncatedNormal(low={self.low:g}, high={self.high:g})"

    @property
    def support(self) -> constraints.Constraint:
        return constraints.interval(self.low, self.high)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> TruncatedNormal:
        found = TruncatedNormal(self.low, self.high)
        found._batch_shape = torch.Size(batch_shape)
        return found

    def icdf(self, value: Tensor) -> Tensor:
        """The number below which lies a share ``value`` of the mass."""
        below = value.double() if self._sign > 0 else 1 - value.double()
        found = self._sign * torch.special.ndtri(self._first + below * self._mass)
        return found.to(value.dtype).clamp(self.low, self.high)

    def cdf(self, value: Tensor) -> Tensor:
        inside = ((torch.special.log_ndtr(self._sign * value.double()).exp() - self._first) / self._mass).clamp(
            0, 1
        )
        return (inside if self._sign > 0 else 1 - inside).to(value.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        normal = -0.5 * value.square() - 0.5 * math.log(2 * math.pi) - math.log(self._mass)
        return torch.where((value >= self.low) & (value <= self.high), normal, -torch.inf)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.icdf(torch.rand(self._extended_shape(torch.Size(sample_shape))).clamp(INSIDE))


class LatentPrior:
    """A prior of latents: a ``torch.distributions`` object, spread over the shape of a latent.

    Attributes:
        distribution: of a whole latent (z_shape).
        from_normals: whether its draws can be made of standard normals. Otherwise it is drawn by its own
            ``sample``, once a step for all chains.

    Raises:
        TypeError: no distribution.
        ValueError: a distribution of another shape than the latents'.
    """

    def __init__(self, distribution: Distribution, z_shape: tuple[int, ...]) -> None:
        if not isinstance(distribution, Distribution):
            hint = ": make one" if isinstance(distribution, type) else ""
            raise TypeError(f"prior must be a torch.distributions.Distribution, got {distribution!r}{hint}")
        own = tuple(distribution.batch_shape + distribution.event_shape)
        if own != z_shape:
            event = tuple(distribution.event_shape)
            try:
                if event and z_shape[len(z_shape) - len(event) :] != event:
                    raise ValueError
                distribution = distribution.expand(z_shape[: len(z_shape) - len(event)])
            except (ValueError, RuntimeError, NotImplementedError) as error:
                raise ValueError(
                    f"prior is of latents of shape {own}, G takes {z_shape} (z_dim): {distribution}"
                ) from error
        self.distribution, self.z_shape = distribution, z_shape
        self.from_normals = self._can_invert()

    def __call__(self, normals: Tensor) -> Tensor:
        """Latents (n, *z_shape) of the prior, from standard normals of that shape; gradients flow through it."""
        wide = normals.double()
        base = self._base
        if type(base) is MultivariateNormal:
            flat = wide.flatten(1) @ base.scale_tril.to(wide).mT
            return (base.loc.to(wide) + flat.view_as(wide)).to(normals.dtype)
        if type(base) is Normal:
            return (base.loc.to(wide) + base.scale.to(wide) * wide).to(normals.dtype)
        uniform = torch.special.log_ndtr(wide).exp().clamp(INSIDE, 1 - INSIDE)
        return base.icdf(uniform.to(self._device(normals))).to(normals)

    def _device(self, like: Tensor) -> torch.device:
        """Where the distribution's parameters are."""
        own = (getattr(self._base, name, None) for name in self._base.arg_constraints)
        return next((part.device for part in own if isinstance(part, Tensor)), like.device)

    def identity(self) -> dict[str, Any]:
        """What tells the prior from others, in plain values: its parameters and those of what it is made of."""

        def told(value: Any, depth: int) -> Any:
            if isinstance(value, Tensor):
                return value.double().flatten().tolist()
            if isinstance(value, (list, tuple)):
                return [told(item, depth) for item in value]
            if isinstance(value, (bool, int, float, str)) or value is None or not depth:
                return value if isinstance(value, (bool, int, float, str)) else type(value).__name__
            if isinstance(value, (Distribution, Transform)):
                parts = {name: told(part, depth - 1) for name, part in vars(value).items() if "cache" not in name}
                return {"class": type(value).__name__} | parts
            return type(value).__name__

        return told(self.distribution, 4)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Latents (n, *z_shape) by the distribution's own ``sample``, whose seed ``generator`` gives."""
        device = generator.device
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
        with seeded(seed, device):
            return self.distribution.sample((n,)).to(device)

    @property
    def _base(self) -> Distribution:
        base = self.distribution
        while isinstance(base, Independent):
            base = base.base_dist
        return base

    def _can_invert(self) -> bool:
        base = self._base
        if type(base) is MultivariateNormal:
            return len(self.z_shape) == 1
        if isinstance(base, Normal) and type(base) is not Normal and type(base).icdf is Normal.icdf:
            return False  # a subclass that draws in its own way
        try:
            zeros = torch.zeros(2, *self.z_shape, dtype=torch.float64)
            made = self(zeros.to(self._device(zeros)))
        except (NotImplementedError, ValueError, RuntimeError):
            return False
        return made.shape == (2, *self.z_shape)

    def __repr__(self) -> str:
        return repr(self.distribution)
