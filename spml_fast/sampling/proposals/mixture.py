"""Gaussian mixtures as proposals: fitted to latents of target samples, with a share of the prior."""

from __future__ import annotations

import math
import threading
import warnings
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import _ops
from ..._checks import keep_count, renamed, shown
from .prior import PriorProposal

COMPONENT_KEY = 0x5A17_ED0C_0DE5_EED5
"""XORed into the seed for the draw of a component, or it would be the chain's accept uniform."""

COVARIANCES = ("diag", "full")

_FITTING = threading.Lock()


@dataclass(frozen=True)
class Mixture:
    """Proposals adapted to each target that the prior serves badly: a Gaussian mixture fitted to latents of its
    samples, which :meth:`spml_fast.S2MSampler.adapt` finds; a pilot run of 16 steps tells which targets those are.
    Where it finds none, nothing is adapted.

    Attributes:
        n_chains: samples that each stage of the adaptation is fitted to.
        max_steps: limit on the steps of a stage, whose chains run for two effective samples each.
        n_components: K; the one with the best BIC of 1 to ``max_components`` unless given.
        max_components: largest K that is tried.
        covariance: "diag", which needs few latents, or "full".
        prior_share: epsilon, the share of the prior in the proposal, more than 0 and at most 1.

    Raises:
        ValueError, TypeError: an option out of range.
    """

    n_chains: int = 1024
    max_steps: int = 1000
    n_components: int | None = None
    max_components: int = 5
    covariance: str = "diag"
    prior_share: float = 0.1

    def __post_init__(self) -> None:
        keep_count(self, "n_chains", least=2)
        for name in ("max_steps", "n_components", "max_components"):
            if getattr(self, name) is not None or name != "n_components":
                keep_count(self, name, most=2**31 - 1)
        if self.covariance not in COVARIANCES:
            raise ValueError(f"covariance must be one of {', '.join(COVARIANCES)}, got {self.covariance!r}")
        _check_prior_share(self.prior_share)


@dataclass(frozen=True)
class LatentMixture:
    """p~_z = prior_share N(0, 1) + (1 - prior_share) sum_k weights_k N(means_k, scales_k scales_k^T).

    The share of the prior bounds p_z/p~_z by 1/prior_share, whatever was fitted. What is given in half precision
    is kept in float64.

    Attributes:
        weights: (K,), sum to 1.
        means: (K, D).
        scales: (K, D) standard deviations, or (K, D, D) lower Cholesky factors of the covariances.
        prior_share: epsilon, more than 0 and at most 1.
        bic: BIC of mixtures with 1, 2, ... components, where the number was chosen.

    Raises:
        ValueError: shapes that do not fit each other, NaN or inf, weights that are negative or do not sum to 1,
            standard deviations that are not positive, or scales (K, D, D) that are no lower Cholesky factors
            (covariances themselves, for example).
    """

    weights: Tensor
    means: Tensor
    scales: Tensor
    prior_share: float = 0.1
    bic: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_prior_share(self.prior_share)
        for name in ("weights", "means", "scales"):
            part = getattr(self, name)
            if not isinstance(part, Tensor) or not part.is_floating_point():
                got = part.dtype if isinstance(part, Tensor) else type(part).__name__
                raise TypeError(f"{name} must be a floating-point tensor, got {got}")
            if part.dtype.itemsize < 4:  # draws and their densities would be of two mixtures
                object.__setattr__(self, name, part := part.double())
            if not torch.isfinite(part).all():
                raise ValueError(f"{name} must be finite, got NaN or inf in {shown(part)}")
        k, d = self.means.shape if self.means.ndim == 2 else (0, 0)
        if k < 1 or d < 1 or self.weights.shape != (k,) or self.scales.shape not in ((k, d), (k, d, d)):
            shapes = ", ".join(
                f"{name} {tuple(getattr(self, name).shape)}" for name in ("weights", "means", "scales")
            )
            raise ValueError(f"expected weights (K,), means (K, D) and scales (K, D) or (K, D, D), got {shapes}")
        total = float(self.weights.double().sum())
        if not (self.weights >= 0).all() or abs(total - 1) > 1e-5:
            raise ValueError(
                f"weights must not be negative and must sum to 1, got {shown(self.weights)} (sum {total:g})"
            )
        full = self.scales.ndim == 3
        if full and self.scales.triu(1).any():
            raise ValueError(
                "scales (K, D, D) must be lower Cholesky factors of the covariances, got entries above the "
                "diagonal: pass torch.linalg.cholesky(covariances)"
            )
        deviations = self.scales.diagonal(dim1=1, dim2=2) if full else self.scales
        if not (deviations > 0).all():
            what = "diagonals of the Cholesky factors" if full else "standard deviations"
            raise ValueError(f"scales: the {what} must be positive, got {float(deviations.min()):g}")

    @classmethod
    @renamed(
        **{
            name: f"how=spml_fast.Mixture({name}=...)"
            for name in ("n_components", "max_components", "covariance", "prior_share")
        }
    )
    def fit(cls, latents: Tensor | np.ndarray, how: Mixture | None = None, seed: int = 0) -> LatentMixture:
        """A Gaussian mixture (scikit-learn's) fitted to ``latents`` (m, *z_shape) of target samples.

        Args:
            how: components, covariance and share of the prior; what it says of chains and steps is not used.
            seed: of scikit-learn's start.

        Raises:
            ValueError: fewer than two latents, fewer than ``n_components``, or NaN or inf among them.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture
        from threadpoolctl import threadpool_limits

        how = how or Mixture()
        z = torch.as_tensor(latents).detach().flatten(1).double().cpu().numpy()
        if len(z) < 2:
            raise ValueError(f"a mixture is fitted to at least two latents, got {len(z)}")
        if not np.isfinite(z).all():
            raise ValueError("latents must be finite")
        if how.n_components is not None and how.n_components > len(z):
            raise ValueError(
                f"n_components must be at most the number of latents, {len(z)}, got {how.n_components}"
            )
        tried = [how.n_components] if how.n_components else range(1, min(how.max_components, len(z) // 2) + 1)
        # Chains repeat their state while they reject: a floor under the variances keeps repeats from being spikes.
        options = dict(covariance_type=how.covariance, reg_covar=1e-3, random_state=seed % 2**32)
        # Sums over threads depend on how many they are; and two threads must not set warnings back in turns.
        with _FITTING, threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of repeated latents, which reg_covar is for
            mixtures = [GaussianMixture(k, **options).fit(z) for k in tried]
            bic = tuple(float(mixture.bic(z)) for mixture in mixtures) if len(mixtures) > 1 else ()
        best = mixtures[int(np.argmin(bic))] if bic else mixtures[0]
        spread = np.sqrt(best.covariances_) if how.covariance == "diag" else np.linalg.cholesky(best.covariances_)
        parts = (torch.from_numpy(part) for part in (best.weights_, best.means_, spread))
        return cls(*parts, how.prior_share, bic)

    @property
    def dim(self) -> int:
        """D, the size of a latent."""
        return self.means.shape[1]

    def to(self, device: torch.device | str) -> LatentMixture:
        """A copy on ``device``."""
        parts = (part.to(device) for part in (self.weights, self.means, self.scales))
        return LatentMixture(*parts, self.prior_share, self.bic)

    def place(self, normals: Tensor, uniforms: Tensor) -> Tensor:
        """Latents (n, D) from standard normals (n, D) and the uniforms (n,) that choose their components.

        A uniform below ``prior_share`` leaves its row of normals as it is: a draw from the prior.
        """
        ends = self.prior_share + (1 - self.prior_share) * self.weights.cumsum(0)
        component = torch.searchsorted(ends, uniforms.to(ends), right=True).clamp(max=len(ends) - 1)
        scales, means = self.scales[component], self.means[component]
        normals = normals.to(means)
        moved = normals * scales if scales.dim() == 2 else (scales @ normals[:, :, None])[:, :, 0]
        return torch.where((uniforms < self.prior_share)[:, None], normals, means + moved)

    def log_correction(self, z: Tensor) -> Tensor:
        """log p_z(z) - log p~_z(z) of latents (n, D), in the dtype of the means."""
        z = z.to(self.means)
        if self.scales.dim() == 2:
            whitened = (z[:, None] - self.means) / self.scales
            log_scale = self.scales.log().sum(1)
        else:
            offset = (z[:, None] - self.means)[..., None]
            whitened = torch.linalg.solve_triangular(self.scales, offset, upper=False)[..., 0]
            log_scale = self.scales.diagonal(dim1=1, dim2=2).log().sum(1)
        # The factor (2 pi)^(-D/2) is common to all. One logsumexp: logaddexp rounds differently in larger batches.
        log_prior = -0.5 * z.square().sum(1)
        log_weights = self.weights.log() + (math.log1p(-self.prior_share) if self.prior_share < 1 else -math.inf)
        parts = [log_weights - log_scale - 0.5 * whitened.square().sum(2)]
        parts.append(math.log(self.prior_share) + log_prior[:, None])
        return log_prior - torch.logsumexp(torch.cat(parts, 1), dim=1)


class MixtureProposal(PriorProposal):
    """Latents of a :class:`LatentMixture` by Philox: those of (seed, chain, step) are the same in every run.

    ``arguments`` are those of :class:`PriorProposal`.
    """

    def __init__(self, mixture: LatentMixture, *arguments: Any) -> None:
        super().__init__(*arguments)
        dim = torch.Size(self.z_shape).numel()
        if mixture.dim != dim:
            raise ValueError(f"the mixture is of latents of {mixture.dim} numbers, G takes {dim}")
        self.mixture = mixture.to(self.chains.device)

    def _draw(self, chains: Tensor, steps: Tensor) -> Tensor:
        normals = _ops.philox_normal(chains, steps, self.seed, self.mixture.dim, dtype=torch.float64)
        uniforms = _ops.philox_uniform(chains, steps, self.seed ^ COMPONENT_KEY, dtype=torch.float64)
        return self.mixture.place(normals, uniforms).to(self.dtype)

    def rows(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        latents, _ = super().rows(first, last)
        return latents, self.mixture.log_correction(latents.flatten(1))


def _check_prior_share(prior_share: float) -> None:
    if isinstance(prior_share, bool) or not isinstance(prior_share, Real):
        raise TypeError(f"prior_share must be a number more than 0 and at most 1, got {shown(prior_share)}")
    if not 0 < prior_share <= 1:
        raise ValueError(f"prior_share must be more than 0 and at most 1, got {prior_share}")
