"""Losses that look at more than one entry at a time, or keep something from batch to batch.

Notation as in :mod:`spml_fast.losses.elementwise`; N and L are the rows and columns of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from .. import _ops
from .base import Loss, entry_spec, require_logits
from .elementwise import Value, documented, gr_hyper, gr_schedules
from .schedules import From, Growing, Schedule
from .spec import RANKING, ROLE, LossSpec, apply, at_least, check_inputs, in_unit_interval

__all__ = [
    "EMAPLLoss",
    "EPRLoss",
    "GPRLoss",
    "LLCpLoss",
    "LLCtLoss",
    "LLRLoss",
    "PNSLoss",
    "PRLoss",
    "ROLELoss",
    "em_apl_loss",
    "epr_loss",
    "expected_positive_count",
    "gpr_loss",
    "ll_cp_loss",
    "ll_ct_loss",
    "ll_r_loss",
    "pns_loss",
    "pr_loss",
    "role_loss",
]

# --- a sampled negative, a ranking ----------------------------------------------------------------


def _pns_spec(seed: int, eps: float, reduction: str) -> LossSpec:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed must be an integer, got {seed!r}")
    return LossSpec("iu", (), eps, reduction)


@documented()
def pns_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
    step: int | Tensor = 0,
    class_weight: Tensor | None = None,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Pseudo-negative sampling (CVPR 2021): -log p if s = 1, -log(1 - p) if s = -1 and for one unobserved label of
    each row, drawn anew; **any other 0 costs nothing**.

    The draw is Philox 4x32-10 with key ``seed`` and counter (row, ``step``): the same on CPU and GPU. ``step`` is
    a number or an int64 tensor of shape (1,) on the logits' device, which a CUDA graph can change between replays.
    """
    columns = check_inputs(logits, labels)[1]
    if not isinstance(step, Tensor):
        step = torch.tensor([step], device=labels.device)
    spec = _pns_spec(seed, eps, reduction)
    negatives = _ops.draw_unobserved(labels, columns, seed, step)
    return apply(spec, logits, labels, class_weight=class_weight, negatives=negatives)


class PNSLoss(Loss, name="pns"):
    """Module form of :func:`pns_loss`; counts the steps itself, in training mode. In a distributed job, give each
    process another seed.

    Attributes:
        step: (1,) int64, batches seen so far; part of the state dict.
    """

    function = staticmethod(pns_loss)
    specify = staticmethod(_pns_spec)

    def __init__(self, *, seed: int = 0, **hyper: object) -> None:
        super().__init__(seed=seed, **hyper)
        self.register_buffer("step", torch.zeros(1, dtype=torch.int64))

    def tensors(
        self, logits: Tensor | None, labels: Tensor, n_labels: int | None = None
    ) -> dict[str, Tensor | None]:
        if logits is not None:
            _, n_labels = check_inputs(logits, labels)
        negatives = _ops.draw_unobserved(labels, n_labels, self.hyper["seed"], self.step.clone())
        return {"class_weight": self._buffers["class_weight"], "negatives": negatives}

    def remember(self, logits: Tensor | None, labels: Tensor, tensors: Mapping[str, Tensor | None]) -> None:
        if self.training:
            self.step += 1


def _pr_spec(reduction: str) -> LossSpec:
    return LossSpec("an", reduction=reduction, kind=RANKING)  # ranking uses no functor


@documented()
def pr_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    class_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Pairwise ranking (CVPR 2021 code): for each observed positive i of a row, the sum of
    max(0, 1 - p_i + p_j) over all labels j of the row that are not observed positives. **0 should rank below the
    positive.**

    The sum is multiplied by the ``class_weight`` of i. With ``reduction="none"`` it stands in entry i.
    """
    return apply(_pr_spec(reduction), logits, labels, class_weight=class_weight)


class PRLoss(Loss, name="pr"):
    """Module form of :func:`pr_loss`."""

    function = staticmethod(pr_loss)
    specify = staticmethod(_pr_spec)
    needs_observed = True


# --- expected positives ---------------------------------------------------------------------------


def expected_positive_count(*logits: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The expected number of positives per row, k_hat: sum of sigmoid(logits) over the batch, divided by N.

    In a distributed job it is taken over the batches of all processes of ``group``, which all have to call it.

    Args:
        logits: one or more tensors (N, L).

    Returns:
        (number of tensors,) float64 without gradient: what ``k_hat`` of :func:`epr_loss` and :func:`role_loss`
        takes.
    """
    for z in logits:
        if not isinstance(z, Tensor):
            raise TypeError(f"logits must be tensors, got {type(z).__name__}")
    sums = [_ops.sum_probabilities(z.detach()) for z in logits]
    rows = torch.full((1,), float(logits[0].shape[0]), dtype=torch.float64, device=logits[0].device)
    total = torch.cat([*sums, rows])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total, group=group)
    return total[:-1] / total[-1]


def _check_penalty(value: float, lam: float) -> None:
    """Refuse a number of expected positives, or a factor of their penalty, that is out of range."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"expected_positives must be a finite number, at least 0, got {value}")
    at_least("lam", lam, 0)


def _epr_spec(expected_positives: float, lam: float, eps: float, reduction: str) -> LossSpec:
    _check_penalty(expected_positives, lam)
    return LossSpec("iu", (), eps, reduction, lam=lam, expected_positives=expected_positives)


@documented()
def epr_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    expected_positives: float,
    lam: float = 1.0,
    k_hat: Tensor | None = None,
    class_weight: Tensor | None = None,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Expected positive regularisation (CVPR 2021, eq. 8 to 10): :func:`iu_loss` + lam ((k_hat - k) / L)^2.
    **0 costs nothing by itself; the batch as a whole should have k positives a row.**

    k is ``expected_positives``: 1.5 on VOC, 2.5 (later 2.9) on COCO, 1.9 on NUS, 31.4 on CUB. k_hat is the
    batch's own mean of the rows' sums of p. In a distributed job every process has its own batch and its own
    k_hat, which is not the loss of the joined batch; ``k_hat=losses.expected_positive_count(logits)`` makes it so,
    and :class:`EPRLoss` does that with ``sync=True``. ``reduction="none"`` is not defined; "sum" is N * L times
    the mean.
    """
    spec = _epr_spec(expected_positives, lam, eps, reduction)
    return apply(spec, logits, labels, class_weight=class_weight, k_hat=k_hat)


class EPRLoss(Loss, name="epr"):
    """Module form of :func:`epr_loss`.

    Args:
        sync: take k_hat over the batches of all processes (one all-reduce of two numbers).
    """

    function = staticmethod(epr_loss)
    specify = staticmethod(_epr_spec)

    def __init__(self, *, sync: bool = False, **hyper: object) -> None:
        super().__init__(**hyper)
        self.sync = sync

    def tensors(
        self, logits: Tensor | None, labels: Tensor, n_labels: int | None = None
    ) -> dict[str, Tensor | None]:
        k_hat = None
        if self.sync:
            require_logits(logits, "k_hat of all processes")
            k_hat = expected_positive_count(logits)
        return {"class_weight": self._buffers["class_weight"], "k_hat": k_hat}


# --- ROLE -----------------------------------------------------------------------------------------


_CROSS_ENTROPY = LossSpec("an")


def _role_spec(
    expected_positives: float, lam: float, loss: str | Loss, sparse: bool, eps: float, reduction: str
) -> LossSpec:
    _check_penalty(expected_positives, lam)
    inner = _CROSS_ENTROPY if loss == "an" else entry_spec(loss)
    return LossSpec(inner.functor, inner.hyper, eps, reduction, ROLE, lam, expected_positives, sparse)


@documented()
def role_loss(
    logits: Tensor,
    labels: Tensor,
    table: Tensor,
    index: Tensor | None = None,
    *,
    expected_positives: float,
    lam: float = 1.0,
    loss: str | Loss = "an",
    sparse: bool = False,
    k_hat: Tensor | None = None,
    class_weight: Tensor | None = None,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Regularised online label estimation (CVPR 2021, eq. 11 to 13): the classifier and a table of label estimates
    teach each other. **0 is estimated.**

    With the classifier's p and the estimates q = sigmoid(table[index]),
    L'(p | q) = mean cross entropy(p, q held fixed) + EPR(p) and ROLE = (L'(p | q) + L'(q | p)) / 2.

    Args:
        table: (R, L) logits of the estimates, float32 (float64 for float64 logits); see
            :class:`spml_fast.labels.LabelEstimator`. Gradients flow to it and to ``logits``.
        index: (N,) int64, the row of the table for each row of the batch; None: the table is (N, L) already.
        loss: elementwise loss in place of the cross entropy, by name or as a module: q L(z | s = 1) +
            (1 - q) L(z | s = 0). Its eps and weights are not used, those given here are.
        sparse: the table's gradient is a sparse tensor of the batch's rows, for SparseAdam and large tables.
        expected_positives, lam, k_hat: as in :func:`epr_loss`; k_hat has two entries,
            ``losses.expected_positive_count(logits, table[index])``.
    """
    spec = _role_spec(expected_positives, lam, loss, sparse, eps, reduction)
    return apply(spec, logits, labels, class_weight=class_weight, second_matrix=table, index=index, k_hat=k_hat)


class ROLELoss(Loss, name="role"):
    """Module form of :func:`role_loss`; called with (logits, labels, table, index).

    The table is an argument, not a part: it is as large as the training set, and its learning rate is ten times
    that of the classifier. ``ROLELoss(...)(logits, labels, estimator.logits, index)``.

    Args:
        sync: take k_hat over the batches of all processes.
    """

    function = staticmethod(role_loss)
    specify = staticmethod(_role_spec)

    def __init__(self, *, sync: bool = False, **hyper: object) -> None:
        super().__init__(**hyper)
        self.sync = sync

    def current_spec(self) -> LossSpec:
        if isinstance(self.hyper.get("loss"), Loss):  # its own schedules may have moved it
            return self.specify(**{**self._defaults, **self.current_hyper()})
        return super().current_spec()

    def tensors(
        self,
        logits: Tensor,
        labels: Tensor,
        table: Tensor,
        index: Tensor | None = None,
        n_labels: int | None = None,
    ) -> dict[str, Tensor | None]:
        k_hat = None
        if self.sync:
            k_hat = expected_positive_count(logits, table if index is None else table[index])
        return {
            "class_weight": self._buffers["class_weight"],
            "second_matrix": table,
            "index": index,
            "k_hat": k_hat,
        }

    def forward(self, logits: Tensor, labels: Tensor, table: Tensor, index: Tensor | None = None) -> Tensor:
        return self.evaluate(apply, logits, labels, table, index)


# --- large losses ---------------------------------------------------------------------------------


def _rejection_spec(share: float, reduction: str) -> LossSpec:
    in_unit_interval("share", share)
    return LossSpec("large_loss", (0.0,), 0.0, reduction)


def _correction_spec(share: float, reduction: str) -> LossSpec:
    in_unit_interval("share", share)
    return LossSpec("large_loss", (1.0,), 0.0, reduction)


def _threshold(
    logits: Tensor, labels: Tensor, share: float, flips: Tensor | None = None, index: Tensor | None = None
) -> Tensor:
    """The logit from which on the unobserved labels of a batch are among the ``share`` of largest losses."""
    check_inputs(logits, labels)
    logits = logits.detach()
    if isinstance(share, Tensor):
        return _ops.large_loss_threshold(logits, labels, flips, index, 0.0, share)
    return _ops.large_loss_threshold(logits, labels, flips, index, share)


@documented()
def ll_r_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    share: float,
    class_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Large loss rejection (Kim et al., "Large Loss Matters in Weakly Supervised Multi-Label Classification", CVPR
    2022): :func:`an_loss`, but the unobserved labels with the ceil(N L ``share``) largest losses of the batch cost
    nothing. **0 is taken for a negative unless its loss is among the largest.**

    Ties with the last of them are rejected too. The selection is a radix search over the logits, without a copy,
    a sort or a host synchronisation.
    """
    spec = _rejection_spec(share, reduction)
    return apply(spec, logits, labels, class_weight=class_weight, threshold=_threshold(logits, labels, share))


@documented()
def ll_ct_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    share: float,
    class_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Large loss correction, temporary (Kim et al., CVPR 2022): as :func:`ll_r_loss`, but the labels with the
    largest losses are taken for positives in this step: -log p."""
    spec = _correction_spec(share, reduction)
    return apply(spec, logits, labels, class_weight=class_weight, threshold=_threshold(logits, labels, share))


@documented()
def ll_cp_loss(
    logits: Tensor,
    labels: Tensor,
    flips: Tensor,
    index: Tensor,
    *,
    share: float,
    remember: bool = True,
    class_weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Large loss correction, permanent (Kim et al., CVPR 2022): as :func:`ll_ct_loss`, and the labels stay
    positives from then on.

    Args:
        remember: write the labels that are flipped in this batch into ``flips``.
        flips: (R, L) uint8, contiguous: 1 where a label of the training set was flipped. **Changed in place.**
        index: (N,) int64, the row of ``flips`` for each row of the batch.
    """
    spec = _correction_spec(share, reduction)
    tensors = _flips_and_threshold(logits, labels, share, flips, index)
    value = apply(spec, logits, labels, class_weight=class_weight, **tensors)
    if remember:
        _ops.flip_labels(logits.detach(), labels, flips, index, tensors["threshold"])
    return value


def _flips_and_threshold(
    logits: Tensor, labels: Tensor, share: float, flips: Tensor, index: Tensor
) -> dict[str, Tensor]:
    """The tensors of LL-Cp: labels flipped before, the batch's rows of them, and the threshold."""
    for name, value in (("flips", flips), ("index", index)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    threshold = _threshold(logits, labels, share, flips, index)
    return {"second_matrix": flips, "index": index, "threshold": threshold}


class _LargeLoss(Loss):
    """The base of LL-R and LL-Ct, which find the threshold of large losses anew for each batch."""

    def tensors(
        self, logits: Tensor | None, labels: Tensor, n_labels: int | None = None
    ) -> dict[str, Tensor | None]:
        require_logits(logits, "the selection of large losses")
        threshold = _threshold(logits, labels, self.current_hyper()["share"])
        return {"class_weight": self._buffers["class_weight"], "threshold": threshold}


class LLRLoss(_LargeLoss, name="ll_r"):
    """Module form of :func:`ll_r_loss`: in epoch t the share is ``delta`` (t - 1).

    The authors use delta 0.001 to 0.005; a number given as ``share`` stays.
    """

    function = staticmethod(ll_r_loss)
    specify = staticmethod(_rejection_spec)

    def __init__(self, *, delta: float = 0.005, share: float | Schedule | None = None, **hyper: object) -> None:
        in_unit_interval("delta", delta)
        super().__init__(share=Growing(delta) if share is None else share, **hyper)


class LLCtLoss(_LargeLoss, name="ll_ct"):
    """Module form of :func:`ll_ct_loss`: in epoch t the share is ``delta`` (t - 1)."""

    function = staticmethod(ll_ct_loss)
    specify = staticmethod(_correction_spec)

    def __init__(self, *, delta: float = 0.002, share: float | Schedule | None = None, **hyper: object) -> None:
        in_unit_interval("delta", delta)
        super().__init__(share=Growing(delta) if share is None else share, **hyper)


class LLCpLoss(Loss, name="ll_cp"):
    """Module form of :func:`ll_cp_loss`; called with (logits, labels, index). From epoch 2 on the share is
    ``delta``. Labels are flipped for good in training mode only.

    Args:
        n_samples, n_labels: size of the training set's labels.

    Attributes:
        flips: (n_samples, n_labels) uint8, the labels flipped so far; part of the state dict.
    """

    function = staticmethod(ll_cp_loss)
    specify = staticmethod(_correction_spec)

    def __init__(
        self,
        *,
        n_samples: int,
        n_labels: int,
        delta: float = 0.001,
        share: float | Schedule | None = None,
        **hyper: object,
    ) -> None:
        in_unit_interval("delta", delta)
        super().__init__(share=From(2, before=0.0, after=delta) if share is None else share, **hyper)
        self.register_buffer("flips", torch.zeros(n_samples, n_labels, dtype=torch.uint8))

    def tensors(
        self, logits: Tensor, labels: Tensor, index: Tensor, n_labels: int | None = None
    ) -> dict[str, Tensor | None]:
        share = self.current_hyper()["share"]
        tensors = _flips_and_threshold(logits, labels, share, self.flips, index)
        return {"class_weight": self._buffers["class_weight"], **tensors}

    def remember(self, logits: Tensor | None, labels: Tensor, tensors: Mapping[str, Tensor | None]) -> None:
        if self.training:
            _ops.flip_labels(logits.detach(), labels, self.flips, tensors["index"], tensors["threshold"])

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        return self.evaluate(apply, logits, labels, index)


# --- pseudo-labels --------------------------------------------------------------------------------


def _em_apl_spec(alpha: float, beta: float, eps: float, reduction: str) -> LossSpec:
    at_least("alpha", alpha, 0)
    at_least("beta", beta, 0)
    return LossSpec("em_apl", (alpha, beta), eps, reduction)


@documented()
def em_apl_loss(
    logits: Tensor,
    labels: Tensor,
    pseudo_labels: Tensor,
    index: Tensor | None = None,
    *,
    alpha: float = 0.2,
    beta: float = 0.02,
    class_weight: Tensor | None = None,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Entropy maximisation with asymmetric pseudo-labels (Zhou et al., "Acknowledging the Unknown for Multi-Label
    Learning with Single Positive Labels", ECCV 2022): :func:`em_loss`, but an unobserved label with a
    pseudo-label y costs beta (-y log p - (1 - y) log(1 - p)). **0 is unknown unless it has a pseudo-label.**

    Args:
        pseudo_labels: (N, L), or (R, L) with ``index``: y between 0 and 1, or a negative number for none.
        index: (N,) int64, the row of ``pseudo_labels`` for each row of the batch.
    """
    spec = _em_apl_spec(alpha, beta, eps, reduction)
    return apply(spec, logits, labels, class_weight=class_weight, second_matrix=pseudo_labels, index=index)


class EMAPLLoss(Loss, name="em_apl"):
    """Module form of :func:`em_apl_loss` with its store; called with (logits, labels, index).

    After each epoch from ``warmup`` on, :meth:`update` adds pseudo-labels: in every class, the unobserved labels
    with the lowest p that have none yet get their current p. By the last epoch a share ``theta`` of the unobserved
    labels of a class has a pseudo-label.

    Args:
        n_samples, n_labels: size of the training set's labels.
        epochs, warmup, theta: T, T_w and theta of the paper. The authors use alpha, beta, warmup 0.2, 0.02, 5 on
            VOC, 0.1, 0.9, 5 on COCO, 0.1, 0.2, 4 on NUS and 0.01, 0.4, 3 on CUB.

    Attributes:
        pseudo_labels: (n_samples, n_labels) float32, -1 for none; part of the state dict.
    """

    function = staticmethod(em_apl_loss)
    specify = staticmethod(_em_apl_spec)

    def __init__(
        self,
        *,
        n_samples: int,
        n_labels: int,
        epochs: int = 10,
        warmup: int = 5,
        theta: float = 0.9,
        **hyper: object,
    ) -> None:
        super().__init__(**hyper)
        in_unit_interval("theta", theta)
        if not 0 < warmup < epochs:
            raise ValueError(f"warmup must be between 1 and epochs - 1 = {epochs - 1}, got {warmup}")
        self.theta, self.epochs, self.warmup = theta, epochs, warmup
        self.register_buffer("pseudo_labels", torch.full((n_samples, n_labels), -1.0))

    def tensors(
        self, logits: Tensor, labels: Tensor, index: Tensor, n_labels: int | None = None
    ) -> dict[str, Tensor | None]:
        return {"class_weight": self._buffers["class_weight"], "second_matrix": self.pseudo_labels, "index": index}

    def forward(self, logits: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        return self.evaluate(apply, logits, labels, index)

    @torch.no_grad()
    def update(self, probabilities: Tensor, labels: Tensor) -> int:
        """Add pseudo-labels after an epoch; before ``warmup`` and after ``epochs`` - 1 nothing happens.

        Args:
            probabilities: (n_samples, n_labels), the classifier's p for the whole training set.
            labels: observed labels of the whole training set, (n_samples,) or (n_samples, n_labels).

        Returns:
            How many were added.
        """
        store = self.pseudo_labels
        if probabilities.shape != store.shape:
            raise ValueError(
                f"probabilities must have shape {tuple(store.shape)}, got {tuple(probabilities.shape)}"
            )
        if labels.shape not in (store.shape, store.shape[:1]):
            raise ValueError(
                f"labels must have shape {tuple(store.shape[:1])} or {tuple(store.shape)}, "
                f"got {tuple(labels.shape)}"
            )
        if not self.warmup <= self.epoch < self.epochs:
            return 0
        if labels.dim() == 1:
            unobserved = torch.arange(store.shape[1], device=store.device) != labels[:, None]
        else:
            unobserved = labels == 0
        per_class = (self.theta * unobserved.sum(0) / (self.epochs - self.warmup)).long()
        candidates = probabilities.float().masked_fill(~(unobserved & (store < 0)), torch.inf)
        order = candidates.argsort(dim=0, stable=True)
        rank = order.argsort(dim=0)
        chosen = (rank < per_class) & candidates.isfinite()
        store[chosen] = candidates[chosen].to(store.dtype)
        return int(chosen.sum())


def _gpr_spec(
    w: float,
    b: float,
    mu: float,
    sigma: float,
    q: Sequence[float],
    rho: float,
    weight_range: Sequence[float],
    lam: float,
    expected_positives: float,
    eps: float,
    reduction: str,
) -> LossSpec:
    _check_penalty(expected_positives, lam)
    in_unit_interval("rho", rho)
    lowest, highest = weight_range
    if not 0 <= lowest <= highest <= 1:
        raise ValueError(f"weight_range must be two numbers in order between 0 and 1, got {weight_range!r}")
    hyper = (*gr_hyper(w, b, mu, sigma, q), rho, lowest, highest)
    return LossSpec("gpr", hyper, eps, reduction, lam=lam, expected_positives=expected_positives)


@documented()
def gpr_loss(
    logits: Tensor,
    labels: Tensor,
    pseudo_labels: Tensor,
    index: Tensor | None = None,
    *,
    w: float,
    b: float,
    mu: float,
    sigma: float,
    q: Sequence[float] = (0.0, 0.01, 1.0),
    rho: float = 0.9,
    weight_range: Sequence[float] = (0.4, 0.7),
    lam: float = 0.0,
    expected_positives: float = 0.0,
    class_weight: Tensor | None = None,
    eps: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Generalized pseudo-label robust loss (Tran et al., "More Reliable Pseudo-labels, Better Performance", ICCV
    2025): :func:`gr_loss` with pseudo-labels from outside for what is unobserved.

    A pseudo-label of 1 costs (1 - v), clamped to ``weight_range``, times rho (-log p) + (1 - rho) (-log(1 - p));
    one of -1 costs v (-log(1 - p)). **0 without a pseudo-label is unobserved, as in GR.** ``lam`` adds
    :func:`epr_loss`'s penalty on expected positives, as the authors do (0.05 on VOC, 0.001 on COCO and NUS, 0.01
    on CUB).

    Args:
        pseudo_labels: (N, L), or (R, L) with ``index``, in {-1, 0, 1}.
        index: (N,) int64, the row of ``pseudo_labels`` for each row of the batch.
        weight_range: lowest and highest weight of a positive pseudo-label: (0.4, 0.7) on VOC, (0.5, 0.7) on COCO
            and NUS, (0.2, 0.8) on CUB.
    """
    spec = _gpr_spec(w, b, mu, sigma, q, rho, weight_range, lam, expected_positives, eps, reduction)
    return apply(spec, logits, labels, class_weight=class_weight, second_matrix=pseudo_labels, index=index)


class GPRLoss(Loss, name="gpr"):
    """Module form of :func:`gpr_loss` with the schedule of :class:`GRLoss`; called with
    (logits, labels, pseudo_labels, index)."""

    function = staticmethod(gpr_loss)
    specify = staticmethod(_gpr_spec)

    def __init__(
        self,
        *,
        epochs: int = 8,
        warmup: int = 0,
        w: Value = (0.0, 2.0),
        b: Value = (-2.0, -2.0),
        mu: Value = (0.5, 0.8),
        sigma: Value = (2.0, 0.5),
        **hyper: object,
    ) -> None:
        super().__init__(**gr_schedules(epochs, warmup, w, b, mu, sigma), **hyper)

    def tensors(
        self,
        logits: Tensor,
        labels: Tensor,
        pseudo_labels: Tensor,
        index: Tensor | None = None,
        n_labels: int | None = None,
    ) -> dict[str, Tensor | None]:
        return {"class_weight": self._buffers["class_weight"], "second_matrix": pseudo_labels, "index": index}

    def forward(
        self, logits: Tensor, labels: Tensor, pseudo_labels: Tensor, index: Tensor | None = None
    ) -> Tensor:
        return self.evaluate(apply, logits, labels, pseudo_labels, index)
