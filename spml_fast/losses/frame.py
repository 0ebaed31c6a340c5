"""The frame of the generalized robust loss, in plain PyTorch: pieces of which single-positive losses are made.

With p = sigmoid(z), every loss of the frame (Chen et al., IJCAI 2024, section 3) is

    L1(z)                                          where the label is an observed positive,
    v(z) [k(z) L2(z) + (1 - k(z)) L3(z)]           where it is unobserved,

k the probability that an unobserved label is positive after all, v the weight of the entry, both without
gradient, L1 and L2 losses of a positive, L3 the loss of a negative. An observed negative, of which the paper has
none, costs ``negative(z)``: L3 unless said otherwise.

To try a new loss, write its pieces as functions of z and pass labels and logits:

    >>> loss = Frame(L1=neg_log_p, k=lambda z: 0.1 * torch.sigmoid(z), L2=neg_log_p, L3=neg_log_1mp)
    >>> loss(logits, labels).backward()

That runs on any device at PyTorch's own speed. When it has proved itself and should be as fast as the others, it
becomes a functor: CONTRIBUTING.md shows the four places.

``FRAMES`` has the losses of this package that are of the frame; tests hold them to their own kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Piece = Callable[[Tensor], Tensor]


def zero(z: Tensor) -> Tensor:
    """The constant 0."""
    return torch.zeros_like(z)


def one(z: Tensor) -> Tensor:
    """The constant 1."""
    return torch.ones_like(z)


def constant(value: float) -> Piece:
    """A constant."""
    return lambda z: torch.full_like(z, value)


def neg_log_p(z: Tensor) -> Tensor:
    """-log p"""
    return -logsigmoid(z)


def neg_log_1mp(z: Tensor) -> Tensor:
    """-log(1 - p)"""
    return -logsigmoid(-z)


def smoothed(piece: Piece, other: Piece, smoothing: float) -> Piece:
    """(1 - smoothing) piece + smoothing other"""
    return lambda z: (1 - smoothing) * piece(z) + smoothing * other(z)


def robust(q: float) -> Piece:
    """(1 - p^q) / q; -log p for q = 0."""
    return neg_log_p if q == 0 else lambda z: -torch.expm1(q * logsigmoid(z)) / q


def mirrored(piece: Piece) -> Piece:
    """``piece`` with p and 1 - p exchanged."""
    return lambda z: piece(-z)


def focal(gamma: float, margin: float = 0.0) -> Piece:
    """(1 - p)^gamma (-log p) at p = sigmoid(z - margin)"""
    return lambda z: -torch.exp(gamma * logsigmoid(margin - z)) * logsigmoid(z - margin)


def entropy(z: Tensor) -> Tensor:
    """H(p)"""
    return torch.sigmoid(z) * neg_log_p(z) + torch.sigmoid(-z) * neg_log_1mp(z)


def hill(lam: float) -> Piece:
    """(lam - p) p^2"""
    return lambda z: (lam - torch.sigmoid(z)) * torch.sigmoid(z) ** 2


def logistic(w: float, b: float) -> Piece:
    """sigmoid(w p + b)"""
    return lambda z: torch.sigmoid(w * torch.sigmoid(z) + b)


def above(tau: float) -> Piece:
    """1 where p > tau, else 0"""
    return lambda z: (torch.sigmoid(z) > tau).to(z.dtype)


def bell(mu: float, sigma: float) -> Piece:
    """exp(-(p - mu)^2 / (2 sigma^2))"""
    return lambda z: torch.exp(-((torch.sigmoid(z) - mu) ** 2) / (2 * sigma**2))


@dataclass(frozen=True)
class Frame:
    """A loss made of five pieces, each a function of the logits (N, L); k and v get no gradient."""

    L1: Piece = neg_log_p
    k: Piece = zero
    v: Piece = one
    L2: Piece = neg_log_p
    L3: Piece = neg_log_1mp
    negative: Piece | None = None

    def entries(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, L) losses; labels are (N,) int64 or (N, L) with 1, 0, -1, as everywhere."""
        if labels.dim() == 1:
            positive = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
            negative = torch.zeros_like(positive)
        else:
            positive, negative = labels == 1, labels == -1
        k, v = self.k(logits.detach()), self.v(logits.detach())
        unobserved = v * (k * self.L2(logits) + (1 - k) * self.L3(logits))
        known = (self.negative or self.L3)(logits)
        return torch.where(positive, self.L1(logits), torch.where(negative, known, unobserved))

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over all N * L entries."""
        return self.entries(logits, labels).mean()


def an() -> Frame:
    """AN: an unobserved label is a negative."""
    return Frame()


def an_ls(smoothing: float = 0.1) -> Frame:
    """AN-LS: L1 is smoothed, and an unobserved label is positive with probability ``smoothing``."""
    known = smoothed(neg_log_1mp, neg_log_p, smoothing)
    return Frame(L1=smoothed(neg_log_p, neg_log_1mp, smoothing), k=constant(smoothing), negative=known)


def wan(negative_weight: float) -> Frame:
    """WAN: an unobserved label is a negative with a weight."""
    return Frame(v=constant(negative_weight))


def iu() -> Frame:
    """IU: an unobserved label costs nothing."""
    return Frame(v=zero)


def em(alpha: float = 0.2) -> Frame:
    """EM: the weight v is -alpha, so the entropy of an unobserved label is subtracted from the loss."""
    return Frame(v=constant(-alpha), L3=entropy, negative=neg_log_1mp)


def focal_margin(margin: float = 1.0, gamma: float = 2.0) -> Frame:
    """Focal loss with a margin on positives."""
    return Frame(L1=focal(gamma, margin), L3=mirrored(focal(gamma)))


def hill_loss(margin: float = 1.0, gamma: float = 2.0, lam: float = 1.5) -> Frame:
    """Hill loss: an unobserved label costs (lam - p) p^2."""
    return Frame(L1=focal(gamma, margin), L3=hill(lam))


def splc(margin: float = 1.0, gamma: float = 2.0, tau: float = 0.6) -> Frame:
    """SPLC: an unobserved label is a positive where p > tau, otherwise a negative."""
    return Frame(L1=focal(gamma, margin), k=above(tau), L2=focal(gamma), L3=mirrored(focal(gamma)))


def gr(w: float, b: float, mu: float, sigma: float, q: tuple[float, float, float] = (0.0, 0.01, 1.0)) -> Frame:
    """GR with the hyper-parameters of one epoch."""
    return Frame(robust(q[0]), logistic(w, b), bell(mu, sigma), robust(q[1]), mirrored(robust(q[2])))


FRAMES: dict[str, Callable[..., Frame]] = {
    "an": an,
    "an_ls": an_ls,
    "wan": wan,
    "iu": iu,
    "em": em,
    "focal_margin": focal_margin,
    "hill": hill_loss,
    "splc": splc,
    "gr": gr,
}
"""Functions that make the frame of a loss from its hyper-parameters, by the name of the loss."""
