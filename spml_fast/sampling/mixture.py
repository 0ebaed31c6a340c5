"""Proposals fitted to latents of target samples: a Gaussian mixture, with a share of the prior, and its weight."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _ops
from .proposals import PriorProposal

COMPONENT_KEY = 0x5A17_ED0C_0DE5_EED5
"""XORed into the seed for the draw of a component, or it would be the chain's accept uniform."""

COVARIANCES = ("diag", "full")


@dataclass(frozen=True)
class LatentMixture:
    """p~_z = prior_share N(0, 1) + (1 - prior_share) sum_k weights_k N(means_k, scales_k scales_k^T).

    The share of the prior bounds p_z/p~_z by 1/prior_share, whatever was fitted.

    Attributes:
        weights: (K,), sum to 1.
        means: (K, D).
        scales: (K, D) standard deviations, or (K, D, D) lower Cholesky factors of the covariances.
        prior_share: epsilon, more than 0 and at most 1.
        bic: of mixtures with 1, 2, ... components, where the number was chosen.
    """

    weights: Tensor
    means: Tensor
    scales: Tensor
    prior_share: float = 0.1
    bic: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.prior_share <= 1:
            raise ValueError(f"prior_share must be more than 0 and at most 1, got {self.prior_share}")

    @classmethod
    def fit(
        cls,
        latents: Tensor | np.ndarray,
        *,
        n_components: int | None = None,
        max_components: int = 5,
        covariance: str = "diag",
        prior_share: float = 0.1,
        seed: int = 0,
    ) -> LatentMixture:
        """A Gaussian mixture (scikit-learn's) fitted to ``latents`` (m, *z_shape) of target samples.

        Args:
            n_components: K; the one with the best BIC of 1 to ``max_components`` unless given.
            covariance: "diag", which needs few latents, or "full".

        Raises:
            ValueError: fewer than two latents, NaN or inf among them, or settings out of range.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture
        from threadpoolctl import threadpool_limits

        if covariance not in COVARIANCES:
            raise ValueError(f"covariance must be one of {', '.join(COVARIANCES)}, got {covariance!r}")
        z = torch.as_tensor(latents).detach().flatten(1).double().cpu().numpy()
        if len(z) < 2:
            raise ValueError(f"a mixture is fitted to at least two latents, got {len(z)}")
        if not np.isfinite(z).all():
            raise ValueError("latents must be finite")
        if max_components < 1:
            raise ValueError(f"max_components must be at least 1, got {max_components}")
        if n_components is not None and not 1 <= n_components <= len(z):
            raise ValueError(f"n_components must be between 1 and the {len(z)} latents, got {n_components}")
        tried = [n_components] if n_components else range(1, min(max_components, len(z) // 2) + 1)
        # Chains repeat their state while they reject: a floor under the variances keeps repeats from being spikes.
        options = dict(covariance_type=covariance, reg_covar=1e-3, random_state=seed % 2**32)
        with threadpool_limits(1), warnings.catch_warnings():  # sums over threads depend on how many they are
            warnings.simplefilter("ignore", ConvergenceWarning)  # of repeated latents, which reg_covar is for
            mixtures = [GaussianMixture(k, **options).fit(z) for k in tried]
            bic = tuple(float(mixture.bic(z)) for mixture in mixtures) if len(mixtures) > 1 else ()
        best = mixtures[int(np.argmin(bic))] if bic else mixtures[0]
        spread = np.sqrt(best.covariances_) if covariance == "diag" else np.linalg.cholesky(best.covariances_)
        parts = (torch.from_numpy(part) for part in (best.weights_, best.means_, spread))
        return cls(*parts, prior_share, bic)

    @property
    def dim(self) -> int:
        """D."""
        return self.means.shape[1]

    def to(self, device: torch.device | str) -> LatentMixture:
        """A copy there."""
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
        """log p_z(z) - log p~_z(z) of latents (n, D), in float64."""
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
    """Latents of a :class:`LatentMixture` by Philox: those of (seed, chain, step) are the same in every run."""

    def __init__(self, mixture: LatentMixture, z_shape: tuple[int, ...], *rest: Any, **options: Any) -> None:
        super().__init__(z_shape, *rest, **options)
        dim = torch.Size(z_shape).numel()
        if mixture.dim != dim:
            raise ValueError(f"the mixture is of latents of {mixture.dim} numbers, G takes {dim}")
        self.mixture = mixture.to(self.chains.device)

    def _draw(self, chains: Tensor, steps: Tensor) -> Tensor:
        rows = (chains.reshape(-1), steps.reshape(-1))
        normals = _ops.philox_normal(*rows, self.seed, self.mixture.dim, dtype=torch.float64)
        uniforms = _ops.philox_uniform(*rows, self.seed ^ COMPONENT_KEY, dtype=torch.float64)
        return self.mixture.place(normals, uniforms).to(self.dtype)

    def block(self, first_step: int, n_steps: int) -> tuple[Tensor, Tensor]:
        latents, _ = super().block(first_step, n_steps)
        return latents, self.mixture.log_correction(latents.flatten(1))
