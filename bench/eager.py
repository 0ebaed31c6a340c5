"""The losses and the accept step as research code writes them, in eager PyTorch: what benchmarks measure against.

Functions are named as in ``spml_fast.reference``. A loss returns the mean over its entries and is written with a
sigmoid, ``zeros_like``, indexing by boolean masks and ``.mean()``. Its labels s are 1 and 0, what the authors'
code expects; only IU and PNS also know -1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

# --- S2M sampling ---------------------------------------------------------------------------------


def s2m_weight(class_logits: Tensor, validity_logit: Tensor, gamma: Tensor, I: Tensor, J: Tensor) -> Tensor:
    """The weight in probability space, as research code writes it; I and J are int64 tensors."""
    r = gamma * torch.softmax(class_logits, dim=1)
    weight = r.index_select(1, I).min(dim=1).values
    if len(J) > 0:
        weight = (weight - r.index_select(1, J).max(dim=1).values).clamp(min=0)
    v = torch.sigmoid(validity_logit)
    return weight * v / (1 - v)


def accept_step(
    state: Sequence[Tensor],
    proposal: Sequence[Tensor],
    gamma: Tensor,
    I: Tensor,
    J: Tensor,
) -> tuple[Tensor, ...]:
    """One accept step as research code writes it: both weights anew, Bernoulli, mask multiply.

    ``state`` and ``proposal`` are (class logits (C, N), validity logit (C,), what is kept of x (C, ...)).
    """
    new = s2m_weight(proposal[0], proposal[1], gamma, I, J)
    old = s2m_weight(state[0], state[1], gamma, I, J)
    accept = torch.bernoulli((new / (old + 1e-5)).clamp(max=1))
    refuse = 1 - accept
    keep = []
    for mine, offered in zip(state, proposal, strict=True):
        shape = (-1, *[1] * (mine.dim() - 1))
        keep.append(accept.view(shape) * offered + refuse.view(shape) * mine)
    return tuple(keep)


# --- losses ---------------------------------------------------------------------------------------


def _neg_log(x: Tensor, eps: float) -> Tensor:
    """-log(x + eps), as the authors write it."""
    return -torch.log(x + eps)


def bce(z: Tensor, y: Tensor, eps: float = 1e-5) -> Tensor:
    """Mean of bce; y is 0 or 1."""
    preds = torch.sigmoid(z)
    pos, neg = y == 1, y == 0
    loss = torch.zeros_like(preds)
    loss[pos] = _neg_log(preds[pos], eps)
    loss[neg] = _neg_log(1 - preds[neg], eps)
    return loss.mean()


def bce_ls(z: Tensor, y: Tensor, smoothing: float = 0.1, eps: float = 1e-5) -> Tensor:
    """Mean of bce_ls; y is 0 or 1."""
    preds = torch.sigmoid(z)
    pos, neg = y == 1, y == 0
    p, n = preds[pos], preds[neg]
    loss = torch.zeros_like(preds)
    loss[pos] = (1 - smoothing) * _neg_log(p, eps) + smoothing * _neg_log(1 - p, eps)
    loss[neg] = (1 - smoothing) * _neg_log(1 - n, eps) + smoothing * _neg_log(n, eps)
    return loss.mean()


def iun(z: Tensor, s: Tensor, y: Tensor, eps: float = 1e-5) -> Tensor:
    """Mean of iun; true labels y are 0 or 1, and 1 wherever s is."""
    preds = torch.sigmoid(z)
    pos, neg = s == 1, y == 0
    loss = torch.zeros_like(preds)
    loss[pos] = _neg_log(preds[pos], eps)
    loss[neg] = _neg_log(1 - preds[neg], eps)
    return loss.mean()


def iu(z: Tensor, s: Tensor, eps: float = 1e-5) -> Tensor:
    """Mean of iu."""
    preds = torch.sigmoid(z)
    pos, neg = s == 1, s == -1
    loss = torch.zeros_like(preds)
    loss[pos] = _neg_log(preds[pos], eps)
    loss[neg] = _neg_log(1 - preds[neg], eps)
    return loss.mean()


def an(z: Tensor, s: Tensor, eps: float = 1e-5) -> Tensor:
    """Mean of an."""
    return bce(z, s, eps)


def an_ls(z: Tensor, s: Tensor, smoothing: float = 0.1, eps: float = 1e-5) -> Tensor:
    """Mean of an_ls."""
    return bce_ls(z, s, smoothing, eps)


def wan(z: Tensor, s: Tensor, negative_weight: float | None = None, eps: float = 1e-5) -> Tensor:
    """Mean of wan."""
    if negative_weight is None:
        negative_weight = 1 / max(z.shape[1] - 1, 1)
    preds = torch.sigmoid(z)
    pos, neg = s == 1, s == 0
    loss = torch.zeros_like(preds)
    loss[pos] = _neg_log(preds[pos], eps)
    loss[neg] = negative_weight * _neg_log(1 - preds[neg], eps)
    return loss.mean()


def pns(z: Tensor, s: Tensor, eps: float = 1e-5) -> Tensor:
    """Mean of pns, one unobserved label drawn per row; every row must have one."""
    preds = torch.sigmoid(z)
    drawn = torch.multinomial((s == 0).to(preds.dtype), 1)
    negatives = (s == -1).scatter(1, drawn, True)
    pos = s == 1
    loss = torch.zeros_like(preds)
    loss[pos] = _neg_log(preds[pos], eps)
    loss[negatives] = _neg_log(1 - preds[negatives], eps)
    return loss.mean()


def pr(z: Tensor, s: Tensor) -> Tensor:
    """Mean of pr, all positives of the batch at once."""
    preds = torch.sigmoid(z)
    pos = s == 1
    rows = torch.nonzero(pos)[:, 0]
    hinge = torch.clamp(1 - preds[pos].unsqueeze(1) + preds[rows], min=0)
    loss = torch.zeros_like(preds)
    loss[pos] = (hinge * ~pos[rows]).sum(1)
    return loss.mean()


def epr(z: Tensor, s: Tensor, expected_positives: float, lam: float = 1.0, eps: float = 1e-5) -> Tensor:
    """Same as epr."""
    preds = torch.sigmoid(z)
    pos = s == 1
    loss = torch.zeros_like(preds)
    loss[pos] = _neg_log(preds[pos], eps)
    penalty = (preds.sum(1).mean() - expected_positives) ** 2 / z.shape[1] ** 2
    return loss.mean() + lam * penalty


def role(
    z: Tensor,
    table: Tensor,
    idx: Tensor,
    s: Tensor,
    expected_positives: float,
    lam: float = 1.0,
    eps: float = 1e-5,
) -> Tensor:
    """Same as role with phi = table[idx]."""
    preds = torch.sigmoid(z)
    estimates = torch.sigmoid(table[idx])
    pos = s == 1
    k = expected_positives
    # the classifier
    loss_pos_1 = torch.zeros_like(preds)
    loss_pos_1[pos] = _neg_log(preds[pos], eps)
    target = estimates.detach()
    loss_cross_1 = target * _neg_log(preds, eps) + (1 - target) * _neg_log(1 - preds, eps)
    reg_1 = (preds.sum(1).mean() - k) ** 2 / z.shape[1] ** 2
    # the label estimator
    loss_pos_2 = torch.zeros_like(preds)
    loss_pos_2[pos] = _neg_log(estimates[pos], eps)
    target = preds.detach()
    loss_cross_2 = target * _neg_log(estimates, eps) + (1 - target) * _neg_log(1 - estimates, eps)
    reg_2 = (estimates.sum(1).mean() - k) ** 2 / z.shape[1] ** 2
    loss = 0.5 * (loss_pos_1 + loss_pos_2) + 0.5 * (loss_cross_1 + loss_cross_2)
    return loss.mean() + lam * 0.5 * (reg_1 + reg_2)


def em(z: Tensor, s: Tensor, alpha: float = 0.2, eps: float = 1e-5) -> Tensor:
    """Mean of em."""
    preds = torch.sigmoid(z)
    pos, unobserved = s == 1, s == 0
    p = preds[unobserved]
    loss = torch.zeros_like(preds)
    loss[pos] = _neg_log(preds[pos], eps)
    loss[unobserved] = -alpha * (p * _neg_log(p, eps) + (1 - p) * _neg_log(1 - p, eps))
    return loss.mean()


def em_apl(
    z: Tensor, s: Tensor, pseudo: Tensor, alpha: float = 0.2, beta: float = 0.4, eps: float = 1e-5
) -> Tensor:
    """Mean of em_apl."""
    preds = torch.sigmoid(z)
    pos = s == 1
    labelled = (s == 0) & (pseudo >= 0)
    unobserved = (s == 0) & (pseudo < 0)
    loss = torch.zeros_like(preds)
    loss[pos] = _neg_log(preds[pos], eps)
    p = preds[unobserved]
    loss[unobserved] = -alpha * (p * _neg_log(p, eps) + (1 - p) * _neg_log(1 - p, eps))
    p, target = preds[labelled], pseudo[labelled]
    loss[labelled] = beta * (target * _neg_log(p, eps) + (1 - target) * _neg_log(1 - p, eps))
    return loss.mean()


def _power_loss(x: Tensor, q: float, eps: float) -> Tensor:
    """(1 - x^q) / q; -log(x + eps) for q = 0."""
    return _neg_log(x, eps) if q == 0 else (1 - torch.pow(x, q)) / q


def gr(
    z: Tensor,
    s: Tensor,
    w: float,
    b: float,
    mu: float,
    sigma: float,
    q: Sequence[float] = (0.0, 0.01, 1.0),
    eps: float = 1e-7,
) -> Tensor:
    """Mean of gr, with K and V as matrices."""
    preds = torch.sigmoid(z)
    K = 1 / (1 + torch.exp(-(w * preds.detach() + b)))
    V = torch.exp(-0.5 * ((preds.detach() - mu) / sigma) ** 2)
    pos, unobserved = s == 1, s == 0
    p, k, v = preds[unobserved], K[unobserved], V[unobserved]
    loss = torch.zeros_like(preds)
    loss[pos] = _power_loss(preds[pos], q[0], eps)
    loss[unobserved] = v * (k * _power_loss(p, q[1], eps) + (1 - k) * _power_loss(1 - p, q[2], eps))
    return loss.mean()


def gpr(
    z: Tensor,
    s: Tensor,
    pseudo: Tensor,
    w: float,
    b: float,
    mu: float,
    sigma: float,
    q: Sequence[float] = (0.0, 0.01, 1.0),
    rho: float = 0.9,
    weight_range: Sequence[float] = (0.4, 0.7),
    eps: float = 1e-7,
) -> Tensor:
    """Mean of gpr, with K and V as matrices."""
    preds = torch.sigmoid(z)
    K = 1 / (1 + torch.exp(-(w * preds.detach() + b)))
    V = torch.exp(-0.5 * ((preds.detach() - mu) / sigma) ** 2)
    pos = s == 1
    undefined = (s == 0) & (pseudo == 0)
    likely, unlikely = (s == 0) & (pseudo == 1), (s == 0) & (pseudo == -1)
    loss = torch.zeros_like(preds)
    loss[pos] = _power_loss(preds[pos], q[0], eps)
    p, k, v = preds[undefined], K[undefined], V[undefined]
    loss[undefined] = v * (k * _power_loss(p, q[1], eps) + (1 - k) * _power_loss(1 - p, q[2], eps))
    p, v = preds[likely], (1 - V[likely]).clamp(*weight_range)
    loss[likely] = v * (rho * _neg_log(p, eps) + (1 - rho) * _neg_log(1 - p, eps))
    loss[unlikely] = V[unlikely] * _neg_log(1 - preds[unlikely], eps)
    return loss.mean()


def focal_margin(z: Tensor, s: Tensor, margin: float = 1.0, gamma: float = 2.0) -> Tensor:
    """Mean of focal_margin."""
    logits = torch.where(s == 1, z - margin, z)
    preds = torch.sigmoid(logits)
    pt = (1 - preds) * s + preds * (1 - s)
    loss = -(s * logsigmoid(logits) + (1 - s) * logsigmoid(-logits))
    return (loss * pt**gamma).mean()


def hill(z: Tensor, s: Tensor, margin: float = 1.0, gamma: float = 2.0, lam: float = 1.5) -> Tensor:
    """Mean of hill."""
    logits_margin = z - margin
    preds_pos, preds_neg = torch.sigmoid(logits_margin), torch.sigmoid(z)
    focal_weight = ((1 - preds_pos) * s + (1 - s)) ** gamma
    loss = -s * logsigmoid(logits_margin) + (1 - s) * (lam - preds_neg) * preds_neg**2
    return (loss * focal_weight).mean()


def splc(
    z: Tensor, s: Tensor, margin: float = 1.0, gamma: float = 2.0, tau: float = 0.6, correct: bool = True
) -> Tensor:
    """Mean of splc."""
    logits = torch.where(s == 1, z - margin, z)
    preds = torch.sigmoid(logits)
    targets = torch.where(preds > tau, 1.0, s) if correct else s
    pt = (1 - preds) * targets + preds * (1 - targets)
    loss = -(targets * logsigmoid(logits) + (1 - targets) * logsigmoid(-logits))
    return (loss * pt**gamma).mean()


def asl(
    z: Tensor,
    s: Tensor,
    gamma_pos: float = 1.0,
    gamma_neg: float = 4.0,
    margin: float = 0.05,
    eps: float = 1e-8,
) -> Tensor:
    """Mean of asl; eps bounds the logarithms' arguments from below."""
    preds_pos = torch.sigmoid(z)
    preds_neg = (1 - preds_pos + margin).clamp(max=1)
    not_s = 1 - s
    loss = s * torch.log(preds_pos.clamp(min=eps)) + not_s * torch.log(preds_neg.clamp(min=eps))
    pt = preds_pos * s + preds_neg * not_s
    return -(loss * torch.pow(1 - pt, gamma_pos * s + gamma_neg * not_s)).mean()


def ll(z: Tensor, s: Tensor, share: float, flip: bool = False) -> Tensor:
    """Mean of ll with k = ceil(N * L * share), which must not exceed the number of unobserved labels."""
    loss = binary_cross_entropy_with_logits(z, s, reduction="none")
    k = math.ceil(z.numel() * share)
    if k == 0:
        return loss.mean()
    unobserved_loss = (s == 0) * loss
    threshold = torch.topk(unobserved_loss.flatten(), k).values[-1]
    other = binary_cross_entropy_with_logits(z, 1 - s, reduction="none") if flip else torch.zeros_like(loss)
    return torch.where(unobserved_loss < threshold, loss, other).mean()
