"""Every loss beside its reference, with hyper-parameters to try, and makers of logits and labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import eager as eager_losses
import torch
from torch import Tensor

from spml_fast import _ops, losses, reference

FLOATS = [torch.float32, torch.float64]
HALVES = [torch.bfloat16, torch.float16]
EPS = 1e-5
K = 2.5  # expected positives
SHARE = 0.1  # of large losses
SMALL = 64 * 1024  # bytes: scalars, a row of weights, a GPU's workspace


@dataclass(frozen=True)
class Case:
    """One loss with hyper-parameters.

    Attributes:
        name: in the registry.
        fused: (logits, labels, second matrix or None, keyword arguments) -> what the package computes.
        entries: (z, s, second matrix, eps) -> (N, L), the reference, all in z's dtype.
        penalty: likewise, what is added to the mean.
        eager: (z, s, second matrix, eps) -> mean, as authors write it; labels are 1 and 0 only.
        hyper: hyper-parameters of the module.
        matrix: what the second matrix holds: "full" labels, "soft" or "ternary" pseudo-labels, "flips", "table".
        full_labels: labels are full, soft ones included; the index form is refused.
        has_eps: the loss takes ``eps``.
        whole_batch: an entry depends on others of the batch.
        smooth: the gradient is the derivative of the value: nothing is held fixed, nothing jumps.
    """

    id: str
    name: str
    fused: Callable[..., Tensor]
    entries: Callable[..., Tensor]
    eager: Callable[..., Tensor] | None = None
    penalty: Callable[..., Tensor] | None = None
    hyper: dict[str, Any] = field(default_factory=dict)
    matrix: str | None = None
    full_labels: bool = False
    has_eps: bool = True
    whole_batch: bool = False
    smooth: bool = True

    def expected(
        self,
        z: Tensor,
        s: Tensor,
        second_matrix: Tensor | None = None,
        *,
        eps: float = 0.0,
        class_weight: Tensor | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """The reference, reduced."""
        value = reference.reduce(self.entries(z, s, second_matrix, eps), class_weight, reduction)
        if self.penalty is not None:
            value = value + self.penalty(z, second_matrix) * (z.numel() if reduction == "sum" else 1)
        return value

    @property
    def reductions(self) -> list[str]:
        return ["mean", "sum"] if self.penalty is not None else ["none", "mean", "sum"]


def _simple(id, name, function, entries, eager, hyper=None, *, as_is=None, **flags) -> Case:
    """A case of a loss that takes logits, labels and maybe a second matrix."""
    hyper = hyper or {}
    has_eps, with_matrix = flags.get("has_eps", True), "matrix" in flags

    def fused(z, labels, second_matrix=None, **kwargs):
        return function(z, labels, *([second_matrix] if with_matrix else []), **hyper, **kwargs)

    def by_reference(wanted):
        def call(z, s, second_matrix, eps):
            eps = {"eps": eps} if has_eps else {}
            return wanted(z, s, *([second_matrix] if with_matrix else []), **hyper, **eps)

        return call

    return Case(
        id, name, fused, by_reference(entries), by_reference(eager) if eager else None, hyper=hyper, **flags
    )


def pns_columns(labels: Tensor, n_labels: int, step: int = 3) -> Tensor:
    return _ops.draw_unobserved(labels, n_labels, 7, torch.tensor([step], device=labels.device))


def _pns_entries(z, s, second_matrix, eps):
    return reference.pns(z, s, pns_columns(s, z.shape[1]), eps)


def _epr_entries(z, s, second_matrix, eps):
    return reference.iu(z, s, eps)


def role_entries(z, s, second_matrix, eps, loss=None):
    """Both sides of ROLE, each entry; what is left is the penalty."""

    def side(a, teacher):
        pos = reference.neg_log_p(a, eps) if loss is None else loss(a, torch.ones_like(a))
        neg = reference.neg_log_1mp(a, eps) if loss is None else loss(a, torch.zeros_like(a))
        q = torch.sigmoid(teacher.detach())
        return q * pos + torch.sigmoid(-teacher.detach()) * neg + reference.iu(a, s, eps)

    return (side(z, second_matrix) + side(second_matrix, z)) / 2


def _rows(z):
    return torch.arange(z.shape[0] if z.dim() else 1, device=z.device)


def _ll_k(z):
    return -int(-z.numel() * SHARE // 1)  # the ceiling


def _ll_entries(flip):
    return lambda z, s, second_matrix, eps: reference.ll(z, s, _ll_k(z), flip)


def _ll_cp_entries(z, s, second_matrix, eps):
    """A label that was flipped before is an observed positive."""
    return reference.ll(z, torch.where((s == 0) & (second_matrix > 0), 1.0, s.double()).to(s), _ll_k(z), True)


_EPOCH_1 = dict(w=0.0, b=-2.0, mu=0.5375, sigma=1.8125)
_EPOCH_5 = dict(w=1.0, b=-2.0, mu=0.6875, sigma=1.0625)
_COCO = dict(w=6.0, b=-5.0, mu=0.7, sigma=0.3)

GR = {
    "gr-epoch1": _EPOCH_1,
    "gr-epoch5": _EPOCH_5,
    "gr-zeros": dict(**_EPOCH_5, q=(0.0, 0.0, 0.0)),
    "gr-ones": dict(**_COCO, q=(1.0, 1.0, 1.0)),
    "gr-other-q": dict(**_COCO, q=(0.7, 0.3, 1.5)),
    "gr-zero-q2": dict(**_COCO, q=(0.0, 0.0, 1.0)),
    "gr-unit-q2": dict(**_COCO, q=(0.0, 1.0, 1.0)),
    "gr-twos": dict(**_COCO, q=(2.0, 2.0, 2.0)),
    "gr-narrow": dict(w=10.0, b=-8.0, mu=0.8, sigma=0.05),
    "gr-falling-k": dict(w=-4.0, b=3.0, mu=-0.2, sigma=0.5),
}

no_eps = dict(has_eps=False)

ELEMENTWISE = [
    _simple("bce", "bce", losses.bce_loss, reference.bce, eager_losses.bce, full_labels=True),
    *(
        _simple(
            f"bce_ls-{x}",
            "bce_ls",
            losses.bce_ls_loss,
            reference.bce_ls,
            eager_losses.bce_ls,
            {"smoothing": x},
            full_labels=True,
        )
        for x in (0.1, 0.0)
    ),
    _simple("iun", "iun", losses.iun_loss, reference.iun, eager_losses.iun, matrix="full"),
    _simple("iu", "iu", losses.iu_loss, reference.iu, eager_losses.iu),
    _simple("an", "an", losses.an_loss, reference.an, eager_losses.an),
    *(
        _simple(f"an_ls-{x}", "an_ls", losses.an_ls_loss, reference.an_ls, eager_losses.an_ls, {"smoothing": x})
        for x in (0.1, 0.35)
    ),
    *(
        _simple(f"wan-{x}", "wan", losses.wan_loss, reference.wan, eager_losses.wan, {"negative_weight": x})
        for x in (None, 0.3)
    ),
    *(_simple(f"em-{x}", "em", losses.em_loss, reference.em, eager_losses.em, {"alpha": x}) for x in (0.2, 0.01)),
    *(
        _simple(
            f"focal_margin-{m}-{g}",
            "focal_margin",
            losses.focal_margin_loss,
            reference.focal_margin,
            eager_losses.focal_margin,
            {"margin": m, "gamma": g},
            **no_eps,
        )
        for m, g in ((1.0, 2.0), (0.5, 1.3), (0.0, 0.0))
    ),
    *(
        _simple(
            f"hill-{m}-{g}-{lam}",
            "hill",
            losses.hill_loss,
            reference.hill,
            eager_losses.hill,
            {"margin": m, "gamma": g, "lam": lam},
            **no_eps,
        )
        for m, g, lam in ((1.0, 2.0, 1.5), (0.3, 1.0, 2.0))
    ),
    *(
        _simple(
            f"splc-{tau}-{correct}",
            "splc",
            losses.splc_loss,
            reference.splc,
            eager_losses.splc,
            {"tau": tau, "correct": correct},
            smooth=False,
            **no_eps,
        )
        for tau, correct in ((0.6, True), (0.2, True), (0.6, False))
    ),
    *(
        _simple(
            f"asl-{gp}-{gn}-{m}",
            "asl",
            losses.asl_loss,
            reference.asl,
            lambda z, s, **hyper: eager_losses.asl(z, s, **hyper, eps=1e-30),
            {"gamma_pos": gp, "gamma_neg": gn, "margin": m},
            **no_eps,
        )
        for gp, gn, m in ((1.0, 4.0, 0.05), (0.0, 2.5, 0.2), (1.0, 3.0, 0.0))
    ),
    *(
        _simple(id, "gr", losses.gr_loss, reference.gr, eager_losses.gr, hyper, smooth=False)
        for id, hyper in GR.items()
    ),
    *(
        _simple(
            f"em_apl-{a}-{b}",
            "em_apl",
            losses.em_apl_loss,
            reference.em_apl,
            eager_losses.em_apl,
            {"alpha": a, "beta": b},
            matrix="soft",
        )
        for a, b in ((0.2, 0.02), (0.1, 0.9))
    ),
    _simple(
        "gpr-voc",
        "gpr",
        losses.gpr_loss,
        reference.gpr,
        eager_losses.gpr,
        dict(**_EPOCH_5, rho=0.9, weight_range=(0.4, 0.7)),
        matrix="ternary",
        smooth=False,
    ),
    _simple(
        "gpr-cub",
        "gpr",
        losses.gpr_loss,
        reference.gpr,
        eager_losses.gpr,
        dict(**_COCO, q=(0.5, 0.1, 2.0), rho=0.8, weight_range=(0.2, 0.8)),
        matrix="ternary",
        smooth=False,
    ),
]

WHOLE_BATCH = [
    Case(
        "pns",
        "pns",
        lambda z, labels, second_matrix=None, **kw: losses.pns_loss(z, labels, seed=7, step=3, **kw),
        _pns_entries,
        hyper={"seed": 7},
        whole_batch=True,
    ),
    Case(
        "pr",
        "pr",
        lambda z, labels, second_matrix=None, **kw: losses.pr_loss(z, labels, **kw),
        lambda z, s, second_matrix, eps: reference.pr(z, s),
        lambda z, s, second_matrix, eps: eager_losses.pr(z, s),
        has_eps=False,
        whole_batch=True,
    ),
    Case(
        "epr",
        "epr",
        lambda z, labels, second_matrix=None, **kw: losses.epr_loss(
            z, labels, expected_positives=K, lam=0.7, **kw
        ),
        _epr_entries,
        lambda z, s, second_matrix, eps: eager_losses.epr(z, s, K, 0.7, eps),
        lambda z, second_matrix: 0.7 * reference.epr_penalty(z, K),
        hyper={"expected_positives": K, "lam": 0.7},
        whole_batch=True,
    ),
    Case(
        "role",
        "role",
        lambda z, labels, second_matrix, **kw: losses.role_loss(
            z, labels, second_matrix, expected_positives=K, lam=0.7, **kw
        ),
        role_entries,
        lambda z, s, second_matrix, eps: eager_losses.role(z, second_matrix, _rows(z), s, K, 0.7, eps),
        lambda z, second_matrix: 0.35 * (reference.epr_penalty(z, K) + reference.epr_penalty(second_matrix, K)),
        hyper={"expected_positives": K, "lam": 0.7},
        matrix="table",
        whole_batch=True,
        smooth=False,
    ),
    *(
        Case(
            name,
            name,
            lambda z, labels, second_matrix=None, function=function, **kw: function(z, labels, share=SHARE, **kw),
            _ll_entries(flip),
            lambda z, s, second_matrix, eps, flip=flip: eager_losses.ll(z, s, SHARE, flip),
            hyper={"share": SHARE},
            has_eps=False,
            whole_batch=True,
            smooth=False,
        )
        for name, function, flip in (("ll_r", losses.ll_r_loss, False), ("ll_ct", losses.ll_ct_loss, True))
    ),
    Case(
        "ll_cp",
        "ll_cp",
        lambda z, labels, second_matrix, **kw: losses.ll_cp_loss(
            z, labels, second_matrix.clone(), _rows(z), share=SHARE, **kw
        ),
        _ll_cp_entries,
        hyper={"share": SHARE},
        matrix="flips",
        has_eps=False,
        whole_batch=True,
        smooth=False,
    ),
]


def _with_defaults(name: str) -> Case:
    """The case of a loss that has none above, with its default hyper-parameters."""
    function = getattr(losses, f"{name}_loss")
    entries, eager = getattr(reference, name), getattr(eager_losses, name, None)
    return _simple(name, name, function, entries, eager, has_eps="eps" in inspect.signature(function).parameters)


_known = {case.name for case in (*ELEMENTWISE, *WHOLE_BATCH)}
ELEMENTWISE += [_with_defaults(name) for name in losses.registry if name not in _known]
ALL = [*ELEMENTWISE, *WHOLE_BATCH]
ONE_OF_EACH = list({case.name: case for case in reversed(ALL)}.values())[::-1]
WITH_EPS = [case for case in ALL if case.has_eps]


def ids(cases: list[Case]) -> list[str]:
    return [case.id for case in cases]


# --- logits and labels ----------------------------------------------------------------------------


def make_logits(n: int, l: int, dtype: torch.dtype, scale: float = 3.0) -> Tensor:
    return (torch.randn(n, l, dtype=torch.float64) * scale).to(dtype)


def make_labels(case: Case, n: int, l: int, negatives: bool = True) -> Tensor:
    """(N, L) float64: 1, 0 and -1, or full labels, some of them soft."""
    s = (torch.rand(n, l) < min(0.3, 2 / l)).double()
    if case.full_labels:
        return torch.where(torch.rand(n, l) < 0.3, torch.randint(0, 9, (n, l)) / 8.0, s) if negatives else s
    if negatives:
        s[(s == 0) & (torch.rand(n, l) < 0.2)] = -1
    return s


def make_index(n: int, l: int) -> Tensor:
    """(N,) int64 with a few -1."""
    labels = torch.randint(0, l, (n,))
    labels[torch.rand(n) < 0.1] = -1
    return labels


def make_matrix(case: Case, s: Tensor, dtype: torch.dtype = torch.float64) -> Tensor | None:
    """What the loss reads beside labels ``s`` (N, L)."""
    if case.matrix == "full":
        return ((s == 1) | (torch.rand(s.shape) < 0.2)).to(dtype)
    if case.matrix == "soft":
        soft = torch.randint(0, 9, s.shape) / 8.0
        return torch.where(torch.rand(s.shape) < 0.5, soft, -1.0).to(dtype)
    if case.matrix == "ternary":
        return torch.randint(-1, 2, s.shape).to(dtype)
    if case.matrix == "flips":
        return (torch.rand(s.shape) < 0.05).to(torch.uint8)
    if case.matrix == "table":
        return torch.randn(s.shape, dtype=torch.float64).to(_ops.compute_dtype(dtype))
    return None


def make_batch(
    case: Case,
    n: int = 16,
    l: int = 20,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    form: str = "matrix",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(logits, labels in the "index" or "matrix" form, second matrix or None)"""
    z = make_logits(n, l, dtype)
    labels = make_index(n, l) if form == "index" else make_labels(case, n, l).float()
    s = reference.label_matrix(labels, l, torch.float64)
    return z.to(device), labels.to(device), move(make_matrix(case, s, dtype), device)


def move(t: Tensor | None, device: torch.device) -> Tensor | None:
    return None if t is None else t.to(device)


def value_and_grads(function: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, ...]:
    """(value, gradients...) of function(*tensors); the value is summed up first if it is a matrix."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    value = function(*leaves)
    return value.detach(), *torch.autograd.grad(value.sum(), leaves)
