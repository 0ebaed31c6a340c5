"""The pieces of the sampler, for those who compose their own: log weights, chain states, the IMH scan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _ops
from .targets import JointClass, Targets, pack_targets

NO_INVALID = torch.iinfo(torch.int64).max


def s2m_log_weight(
    class_logits: Tensor,
    validity_logit: Tensor,
    I: int | Iterable[int],
    J: int | Iterable[int] = (),
    *,
    gamma=1.0,
    gamma_J=None,
    temperature: float = 1.0,
    validity_temperature: float = 1.0,
    fake_class_logits: Tensor | None = None,
    proposal_class: int = 0,
    extra_log_weight: Tensor | None = None,
) -> Tensor:
    """Log weight log p_(I,J)(x) / q(x), up to a constant, of proposals x that ``clf`` has seen.

    Args:
        class_logits: (B, N) logits of D_r, float32, float64, float16 or bfloat16.
        validity_logit: (B,) logit of D_v, v(x) = log p_data(x) / p_G(x), same dtype.
        fake_class_logits: (B, N) logits of D_f when proposals come from p_G(x | proposal_class).
        extra_log_weight: (B,) added as it is, for example log p_z(z) - log p~_z(z).

    Returns:
        (B,) in float32, or float64 for float64 logits; -inf outside the support of the target, NaN where
        ``clf`` returned NaN or an infinity. Not differentiable; ``spml_fast.reference`` is.

    Source: Cho et al., "Mining Multi-Label Samples from Single Positive Labels", NeurIPS 2022, Algorithm 1.
    """
    target = JointClass.of(I, J)
    dtype = _ops.compute_dtype(class_logits.dtype)
    packed = pack_targets(
        [target],
        class_logits.shape[-1],
        gamma=gamma,
        gamma_J=gamma_J,
        temperature=temperature,
        validity_temperature=validity_temperature,
        dtype=dtype,
        device=class_logits.device,
    )
    return _ops.s2m_log_weight(
        class_logits, validity_logit, fake_class_logits, extra_log_weight, *packed, proposal_class
    )[0]


@dataclass
class ChainState:
    """T x C independent Metropolis-Hastings chains: C chains for each of T targets.

    A chain is the log weight of its state, the step that proposed it, and running sums over all that it was
    offered, from which the diagnostics come. The scans update it in place; nothing grows with the steps.
    """

    weights: Tensor
    """(4, T, C): log weight of the state, largest log weight offered, sum of w, sum of w^2 (relative to it)."""
    counts: Tensor
    """(3, T, C) int32: step of the last accepted proposal (-1: none), accepted, offered with w > 0."""
    invalid: Tensor
    """(1,) int64: the smallest step * C + chain with a NaN or +inf weight; NO_INVALID if there is none."""

    @classmethod
    def start(
        cls,
        n_targets: int,
        n_chains: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> ChainState:
        """Chains that have no state yet: each accepts its first proposal of positive weight."""
        weights = torch.zeros(4, n_targets, n_chains, dtype=dtype, device=device)
        weights[:2] = -torch.inf
        counts = torch.zeros(3, n_targets, n_chains, dtype=torch.int32, device=device)
        counts[0] = -1
        return cls(weights, counts, torch.full((1,), NO_INVALID, device=device))

    @property
    def log_weight(self) -> Tensor:
        return self.weights[0]

    @property
    def winner(self) -> Tensor:
        return self.counts[0]

    @property
    def accepted(self) -> Tensor:
        return self.counts[1]

    @property
    def supported(self) -> Tensor:
        return self.counts[2]

    def scan(self, log_weights: Tensor, *, seed: int, first_chain: int = 0, first_step: int = 0) -> ChainState:
        """Runs the accept steps for given log weights (T, S, C), float32 or float64 as the state is.

        Chain c accepts at step k when log u(seed, c, k) <= log w' - log w; all targets share the uniforms.
        """
        _ops.imh_scan(log_weights, seed, first_chain, first_step, self.weights, self.counts, self.invalid)
        return self

    def scan_logits(
        self,
        class_logits: Tensor,
        validity_logit: Tensor,
        targets: Targets,
        *,
        seed: int,
        first_chain: int = 0,
        first_step: int = 0,
        fake_class_logits: Tensor | None = None,
        proposal_class: int = 0,
        extra_log_weight: Tensor | None = None,
    ) -> ChainState:
        """Log weights and accept steps in one pass over logits (S, C, N) and validity (S, C)."""
        _ops.s2m_imh_scan(
            class_logits,
            validity_logit,
            fake_class_logits,
            extra_log_weight,
            *targets,
            proposal_class,
            seed,
            first_chain,
            first_step,
            self.weights,
            self.counts,
            self.invalid,
        )
        return self

    def raise_if_invalid(self, first_chain: int = 0) -> None:
        """``ValueError`` if a proposal's weight was NaN or +inf; it counts chains from ``first_chain``. Waits for
        the device."""
        index = int(self.invalid)
        if index != NO_INVALID:
            step, chain = divmod(index, self.counts.shape[-1])
            raise ValueError(
                f"clf returned NaN or infinite logits for the proposal of chain {first_chain + chain} at step "
                f"{step} (or the extra log weight was NaN or +inf); every logit must be finite"
            )
