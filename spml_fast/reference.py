"""Every op again in plain PyTorch: the specification.

Written from the formulas, independently of the kernels, to be read and to be compared against; it runs in
float64 and is differentiable, and makes no attempt to be fast. Tests and benchmarks use it, nothing else does.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# --- counter-based randomness ---------------------------------------------------------------------


def philox(seed: int, chain: int, step: int, stream: int) -> list[int]:
    """The four 32-bit words of Philox 4x32-10 for one counter (Salmon et al., SC 2011), in Python integers."""
    mask = 0xFFFFFFFF
    seed &= 0xFFFFFFFFFFFFFFFF
    x = [chain & mask, (chain >> 32) & mask, step & mask, stream & mask]
    k = [seed & mask, seed >> 32]
    for _ in range(10):
        a = 0xD2511F53 * x[0]
        b = 0xCD9E8D57 * x[2]
        x = [(b >> 32) ^ x[1] ^ k[0], b & mask, (a >> 32) ^ x[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return x


def philox_uniform(chains: Sequence[int], steps: Sequence[int], seed: int) -> Tensor:
    """Accept uniforms (R,) in float64: word c % 4 of (c // 4, step, stream 0), centred in its interval."""
    words = [philox(seed, c // 4, k, 0)[c % 4] for c, k in zip(chains, steps, strict=True)]
    return (torch.tensor(words, dtype=torch.float64) + 0.5) * 2.0**-32


def philox_normal(chains: Sequence[int], steps: Sequence[int], seed: int, dim: int) -> Tensor:
    """Standard normals (R, dim) in float64: dimensions 4b to 4b+3 by Box-Muller from stream 1 + b."""
    rows = []
    for c, k in zip(chains, steps, strict=True):
        row = []
        for b in range(math.ceil(dim / 4)):
            w = philox(seed, c, k, 1 + b)
            for radius_word, angle_word in ((w[0], w[1]), (w[2], w[3])):
                radius = math.sqrt(-2 * math.log((radius_word + 0.5) * 2.0**-32))
                angle = 2 * math.pi * angle_word * 2.0**-32
                row += [radius * math.cos(angle), radius * math.sin(angle)]
        rows.append(row[:dim])
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), dim)


# --- S2M sampling ---------------------------------------------------------------------------------


def s2m_log_weight(
    class_logits: Tensor,
    validity_logit: Tensor,
    I: Sequence[int],
    J: Sequence[int] = (),
    *,
    log_gamma: Tensor | None = None,
    temperature: float = 1.0,
    validity_temperature: float = 1.0,
    fake_logits: Tensor | None = None,
    proposal_class: int = 0,
    extra: Tensor | None = None,
) -> Tensor:
    """log p_(I,J)(x) / q(x) up to a constant, for logits (..., N) and validity (...); see S2M Algorithm 1."""
    log_r = torch.log_softmax(class_logits / temperature, dim=-1)
    if log_gamma is not None:
        log_r = log_r + log_gamma
    log_w = log_r[..., list(I)].amin(dim=-1)
    if len(J) > 0:
        largest = log_r[..., list(J)].amax(dim=-1)
        inside = largest < log_w
        gap = torch.where(inside, largest - log_w, -1.0)
        log_w = torch.where(inside, log_w + torch.log(-torch.expm1(gap)), -torch.inf)
    log_w = log_w + validity_logit / validity_temperature
    if fake_logits is not None:
        log_w = log_w - torch.log_softmax(fake_logits, dim=-1)[..., proposal_class]
    if extra is not None:
        log_w = log_w + extra
    return log_w


def imh_scan(log_weights: Tensor, log_uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Independent Metropolis-Hastings from a state of weight zero, one step at a time.

    ``log_weights`` and ``log_uniforms`` are (steps, chains). Returns per chain the step of the last accepted
    proposal (-1: none), the log weight of the final state, and the number of accepted proposals.
    """
    n_chains = log_weights.shape[1]
    state = torch.full((n_chains,), -torch.inf, dtype=log_weights.dtype)
    winner = torch.full((n_chains,), -1, dtype=torch.int64)
    accepted = torch.zeros(n_chains, dtype=torch.int64)
    for step, (proposal, log_u) in enumerate(zip(log_weights, log_uniforms, strict=True)):
        has_weight = proposal > -torch.inf
        first = has_weight & (state == -torch.inf)
        accept = first | (has_weight & (log_u <= proposal - state))
        state = torch.where(accept, proposal, state)
        winner = torch.where(accept, step, winner)
        accepted += accept
    return winner, state, accepted


# --- the eager formulation that benchmarks measure against ----------------------------------------


def eager_weight(class_logits: Tensor, validity_logit: Tensor, gamma: Tensor, I: Tensor, J: Tensor) -> Tensor:
    """The weight in probability space, as research code writes it; I and J are int64 tensors."""
    r = gamma * torch.softmax(class_logits, dim=1)
    weight = r.index_select(1, I).min(dim=1).values
    if len(J) > 0:
        weight = (weight - r.index_select(1, J).max(dim=1).values).clamp(min=0)
    v = torch.sigmoid(validity_logit)
    return weight * v / (1 - v)


def eager_accept_step(
    state: Sequence[Tensor],
    proposal: Sequence[Tensor],
    gamma: Tensor,
    I: Tensor,
    J: Tensor,
) -> tuple[Tensor, ...]:
    """One accept step as research code writes it: both weights anew, Bernoulli, mask multiply.

    ``state`` and ``proposal`` are (class logits (C, N), validity logit (C,), what is kept of x (C, ...)).
    """
    new = eager_weight(proposal[0], proposal[1], gamma, I, J)
    old = eager_weight(state[0], state[1], gamma, I, J)
    accept = torch.bernoulli((new / (old + 1e-5)).clamp(max=1))
    refuse = 1 - accept
    keep = []
    for mine, offered in zip(state, proposal, strict=True):
        shape = (-1, *[1] * (mine.dim() - 1))
        keep.append(accept.view(shape) * offered + refuse.view(shape) * mine)
    return tuple(keep)
