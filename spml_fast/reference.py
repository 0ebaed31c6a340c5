"""The specification: every op again in plain PyTorch.

Written from the formulas, independently of the kernels, to be read and to be compared against; it runs in
float64 and is differentiable, and makes no attempt to be fast. Only tests and benchmarks use it.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

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
    log_correction: Tensor | None = None,
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
    if log_correction is not None:
        log_w = log_w + log_correction
    return log_w


def imh_scan(log_weights: Tensor, log_uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Independent Metropolis-Hastings from a state of weight zero, one step at a time.

    ``log_weights`` and ``log_uniforms`` are (steps, chains). Returns per chain the step of the last accepted
    proposal (-1: none), the log weight of the final state, and the number of accepted proposals.
    """
    n_chains = log_weights.shape[1]
    state = torch.full((n_chains,), -torch.inf, dtype=log_weights.dtype)
    accepted_step = torch.full((n_chains,), -1, dtype=torch.int64)
    accepted = torch.zeros(n_chains, dtype=torch.int64)
    for step, (proposal, log_u) in enumerate(zip(log_weights, log_uniforms, strict=True)):
        has_weight = proposal > -torch.inf
        first = has_weight & (state == -torch.inf)
        accept = first | (has_weight & (log_u <= proposal - state))
        state = torch.where(accept, proposal, state)
        accepted_step = torch.where(accept, step, accepted_step)
        accepted += accept
    return accepted_step, state, accepted


# --- training -------------------------------------------------------------------------------------


def adam_linear_(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    grad_logits: Tensor,
    x: Tensor,
    lr: Tensor,
    step: int,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> None:
    """Update ``step`` (from 1) of Adam (Kingma & Ba, 2015) for logits x weight^T, in place, from the gradient of
    the logits (N, K) and x (N, D); ``lr`` (K,) is of each row. eps is added to the root of the corrected moment.
    """
    gradient = torch.einsum("nk,nd->kd", grad_logits, x)
    exp_avg.copy_(beta1 * exp_avg + (1 - beta1) * gradient)
    exp_avg_sq.copy_(beta2 * exp_avg_sq + (1 - beta2) * gradient**2)
    mean = exp_avg / (1 - beta1**step)
    root = (exp_avg_sq / (1 - beta2**step)).sqrt()
    weight.sub_(lr[:, None] * mean / (root + eps))


# --- losses: building blocks ----------------------------------------------------------------------
#
# Every loss takes logits z (N, L) and labels s (N, L) of z's dtype, 1 observed positive, 0 unobserved,
# -1 observed negative, and returns the (N, L) matrix of its entries before any reduction. p is sigmoid(z).
# No boolean-mask indexing, no synchronisation: each is also what torch.compile is given in the benchmarks.


def label_matrix(labels: Tensor, n_labels: int, dtype: torch.dtype) -> Tensor:
    """Dense labels (N, L) from (N,) int64 indices of the one observed positive (-1: none) or from a matrix."""
    if labels.dim() == 2:
        return labels.to(dtype)
    return (labels[:, None] == torch.arange(n_labels, device=labels.device)).to(dtype)


def reduce(entries: Tensor, class_weight: Tensor | None = None, reduction: str = "mean") -> Tensor:
    """Weight the columns, then 'none', 'sum', or 'mean' over N * L whatever the weights."""
    if class_weight is not None:
        entries = entries * class_weight
    if reduction == "none":
        return entries
    if reduction == "sum":
        return entries.sum()
    if reduction == "mean":
        return entries.mean()
    raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")


def neg_log_p(z: Tensor, eps: float = 0.0) -> Tensor:
    """-log(p + eps)."""
    return -logsigmoid(z) if eps == 0 else -torch.log(torch.sigmoid(z) + eps)


def neg_log_1mp(z: Tensor, eps: float = 0.0) -> Tensor:
    """-log(1 - p + eps)."""
    return neg_log_p(-z, eps)


def robust(z: Tensor, q: float, eps: float = 0.0) -> Tensor:
    """(1 - p^q) / q for q >= 0, whose limit at q = 0 is -log(p + eps); small q keeps its precision."""
    return neg_log_p(z, eps) if q == 0 else -torch.expm1(-q * neg_log_p(z)) / q


def focal(z: Tensor, gamma: float, eps: float = 0.0) -> Tensor:
    """(1 - p)^gamma * -log(p + eps)."""
    return torch.exp(gamma * logsigmoid(-z)) * neg_log_p(z, eps)


# --- losses: per entry ----------------------------------------------------------------------------


def bce(z: Tensor, y: Tensor, eps: float = 0.0) -> Tensor:
    """Binary cross-entropy against full, possibly soft, labels y in [0, 1]."""
    return y * neg_log_p(z, eps) + (1 - y) * neg_log_1mp(z, eps)


def bce_ls(z: Tensor, y: Tensor, smoothing: float = 0.1, eps: float = 0.0) -> Tensor:
    """BCE with the share ``smoothing`` of every label moved to the other side; y in [0, 1]."""
    return (1 - smoothing) * bce(z, y, eps) + smoothing * bce(z, 1 - y, eps)


def iun(z: Tensor, s: Tensor, y: Tensor, eps: float = 0.0) -> Tensor:
    """Ignore unobserved negatives: entries not observed positive count only where the true label y is 0."""
    negative = torch.where((y == 0) | (s == -1), neg_log_1mp(z, eps), 0.0)
    return torch.where(s == 1, neg_log_p(z, eps), negative)


def iu(z: Tensor, s: Tensor, eps: float = 0.0) -> Tensor:
    """Ignore unobserved: only observed labels count."""
    return torch.where(s == 1, neg_log_p(z, eps), torch.where(s == -1, neg_log_1mp(z, eps), 0.0))


def an(z: Tensor, s: Tensor, eps: float = 0.0) -> Tensor:
    """Assume negative: unobserved is negative."""
    return torch.where(s == 1, neg_log_p(z, eps), neg_log_1mp(z, eps))


def an_ls(z: Tensor, s: Tensor, smoothing: float = 0.1, eps: float = 0.0) -> Tensor:
    """AN with label smoothing."""
    nlp, nl1mp = neg_log_p(z, eps), neg_log_1mp(z, eps)
    positive = s == 1
    return (1 - smoothing) * torch.where(positive, nlp, nl1mp) + smoothing * torch.where(positive, nl1mp, nlp)


def wan(z: Tensor, s: Tensor, negative_weight: float | None = None, eps: float = 0.0) -> Tensor:
    """Weak AN: an unobserved label weighs ``negative_weight``, 1 / (L - 1) by default; observed ones weigh 1."""
    if negative_weight is None:
        negative_weight = 1 / max(z.shape[1] - 1, 1)
    nl1mp = neg_log_1mp(z, eps)
    negative = torch.where(s == 0, negative_weight * nl1mp, nl1mp)
    return torch.where(s == 1, neg_log_p(z, eps), negative)


def pns(z: Tensor, s: Tensor, columns: Tensor, eps: float = 0.0) -> Tensor:
    """IU, with the unobserved label ``columns[n]`` (int64; -1: none) of row n taken as negative."""
    drawn = columns[:, None] == torch.arange(z.shape[1], device=z.device)
    negative = torch.where((s == -1) | drawn, neg_log_1mp(z, eps), 0.0)
    return torch.where(s == 1, neg_log_p(z, eps), negative)


def pr(z: Tensor, s: Tensor) -> Tensor:
    """Pairwise ranking: a positive i counts sum_j max(0, 1 - p_i + p_j) over the j of its row not positive.

    The hinge is never inactive, as 0 <= p <= 1, so the sum needs only the number and the total of the p_j.
    """
    others = (s != 1).to(z.dtype)
    total = (others * torch.sigmoid(z)).sum(dim=1, keepdim=True)
    return torch.where(s == 1, others.sum(dim=1, keepdim=True) * torch.sigmoid(-z) + total, 0.0)


def em(z: Tensor, s: Tensor, alpha: float = 0.2, eps: float = 0.0) -> Tensor:
    """Entropy maximisation: an unobserved label counts -alpha H(p)."""
    nlp, nl1mp = neg_log_p(z, eps), neg_log_1mp(z, eps)
    entropy = torch.sigmoid(z) * nlp + torch.sigmoid(-z) * nl1mp
    return torch.where(s == 1, nlp, torch.where(s == 0, -alpha * entropy, nl1mp))


def em_apl(
    z: Tensor, s: Tensor, pseudo: Tensor, alpha: float = 0.2, beta: float = 0.4, eps: float = 0.0
) -> Tensor:
    """EM, with beta * BCE against pseudo-labels where unobserved and ``pseudo`` (N, L) is not negative."""
    has_pseudo = (s == 0) & (pseudo >= 0)
    return torch.where(has_pseudo, beta * bce(z, pseudo.clamp(min=0), eps), em(z, s, alpha, eps))


def focal_margin(z: Tensor, s: Tensor, margin: float = 1.0, gamma: float = 2.0, eps: float = 0.0) -> Tensor:
    """Focal loss whose positives see the logit z - margin."""
    return torch.where(s == 1, focal(z - margin, gamma, eps), focal(-z, gamma, eps))


def hill(
    z: Tensor, s: Tensor, margin: float = 1.0, gamma: float = 2.0, lam: float = 1.5, eps: float = 0.0
) -> Tensor:
    """Positives as in focal_margin, all others (lam - p) p^2."""
    p = torch.sigmoid(z)
    return torch.where(s == 1, focal(z - margin, gamma, eps), (lam - p) * p**2)


def splc(
    z: Tensor,
    s: Tensor,
    margin: float = 1.0,
    gamma: float = 2.0,
    tau: float = 0.6,
    correct: bool = True,
    eps: float = 0.0,
) -> Tensor:
    """focal_margin, but if ``correct`` an unobserved label of p > tau is a positive, without the margin."""
    entries = focal_margin(z, s, margin, gamma, eps)
    if not correct:
        return entries
    return torch.where((s == 0) & (torch.sigmoid(z) > tau), focal(z, gamma, eps), entries)


def asl(
    z: Tensor,
    s: Tensor,
    gamma_pos: float = 1.0,
    gamma_neg: float = 4.0,
    margin: float = 0.05,
    eps: float = 0.0,
) -> Tensor:
    """Asymmetric loss: negatives see max(p - margin, 0); the gradient flows through the focal factors."""
    if margin == 0:
        negative = focal(-z, gamma_neg, eps)
    else:
        p = torch.sigmoid(z)
        above = ~(p <= margin)  # NaN stays NaN
        factor = torch.where(above, torch.where(above, p - margin, 1.0) ** gamma_neg, 0.0**gamma_neg)
        negative = -factor * torch.log(torch.where(above, torch.sigmoid(-z) + margin, 1.0) + eps)
    return torch.where(s == 1, focal(z, gamma_pos, eps), negative)


def gr_weight(z: Tensor, mu: float, sigma: float) -> Tensor:
    """v = exp(-(p - mu)^2 / (2 sigma^2)), without gradient."""
    return torch.exp(-((torch.sigmoid(z.detach()) - mu) ** 2) / (2 * sigma**2))


def gr(
    z: Tensor,
    s: Tensor,
    w: float,
    b: float,
    mu: float,
    sigma: float,
    q: Sequence[float] = (0.0, 0.01, 1.0),
    eps: float = 0.0,
) -> Tensor:
    """Generalized robust loss: L1(p) if positive, L3(p) if negative, else v (k L2(p) + (1 - k) L3(p)).

    L1, L2 are (1 - p^q) / q and L3 is (1 - (1 - p)^q) / q for the three q; k = sigmoid(w p + b) and
    v = exp(-(p - mu)^2 / (2 sigma^2)) are constants to the gradient.
    """
    k = torch.sigmoid(w * torch.sigmoid(z.detach()) + b)
    as_negative = robust(-z, q[2], eps)
    unobserved = gr_weight(z, mu, sigma) * (k * robust(z, q[1], eps) + (1 - k) * as_negative)
    return torch.where(s == 1, robust(z, q[0], eps), torch.where(s == 0, unobserved, as_negative))


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
    eps: float = 0.0,
) -> Tensor:
    """GR; where ``pseudo`` (N, L) is 1, the soft label rho with weight 1 - v, clamped; -1: v * -log(1 - p)."""
    v = gr_weight(z, mu, sigma)
    fit = rho * neg_log_p(z, eps) + (1 - rho) * neg_log_1mp(z, eps)
    outside = torch.where(pseudo == 1, (1 - v).clamp(*weight_range) * fit, v * neg_log_1mp(z, eps))
    return torch.where((s == 0) & (pseudo != 0), outside, gr(z, s, w, b, mu, sigma, q, eps))


def ll(z: Tensor, s: Tensor, k: int, flip: bool = False, eps: float = 0.0) -> Tensor:
    """AN, but the k unobserved labels of the largest loss in the batch are dropped, or taken as positives.

    The largest loss is the largest z. Ties with the k-th are included; a k beyond their number means all.
    """
    entries = an(z, s, eps)
    k = min(k, z.numel())
    if k <= 0:
        return entries
    unobserved = s == 0
    threshold = torch.topk(torch.where(unobserved, z.detach(), -torch.inf).flatten(), k).values[-1]
    large = unobserved & (z.detach() >= threshold)
    return torch.where(large, neg_log_p(z, eps) if flip else 0.0, entries)


# --- losses: of the whole batch -------------------------------------------------------------------


def expected_positive_count(z: Tensor) -> Tensor:
    """The mean over the batch of the number of positives that a row expects."""
    return torch.sigmoid(z).sum() / z.shape[0]


def epr_penalty(z: Tensor, k: float, k_hat: Tensor | None = None) -> Tensor:
    """((k_hat - k) / L)^2, k_hat the batch's own unless given."""
    if k_hat is None:
        k_hat = expected_positive_count(z)
    return ((k_hat - k) / z.shape[1]) ** 2


def epr(z: Tensor, s: Tensor, expected_positives: float, lam: float = 1.0, eps: float = 0.0) -> Tensor:
    """Expected positive regularisation: mean IU plus lam times the penalty; a scalar."""
    return iu(z, s, eps).mean() + lam * epr_penalty(z, expected_positives)


def role(
    z: Tensor,
    phi: Tensor,
    s: Tensor,
    expected_positives: float,
    lam: float = 1.0,
    eps: float = 0.0,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Classifier z and label estimator phi (logits, (N, L)) each taught by the other and by EPR; a scalar.

    ``loss(z, s)`` -> (N, L) replaces the two sides of the cross-entropy by its own for s = 1 and s = 0.
    """

    def taught(z: Tensor, teacher: Tensor) -> Tensor:
        pos = neg_log_p(z, eps) if loss is None else loss(z, torch.ones_like(z))
        neg = neg_log_1mp(z, eps) if loss is None else loss(z, torch.zeros_like(z))
        teacher = teacher.detach()
        cross = torch.sigmoid(teacher) * pos + torch.sigmoid(-teacher) * neg
        return cross.mean() + epr(z, s, expected_positives, lam, eps)

    return (taught(z, phi) + taught(phi, z)) / 2
