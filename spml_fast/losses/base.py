"""What all losses share: the call of the op, the module, the registry."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from .. import _ops
from .schedules import Schedule

ELEMENTWISE, ROLE, RANKING = 0, 1, 2  # LossKind in csrc/losses/params.h
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


class Call(NamedTuple):
    """The arguments of the op beside logits and labels, in its order."""

    kind: int
    loss: int
    hyper: Sequence[float]
    eps: float
    reduction: int
    class_weight: Tensor | None
    aux: Tensor | None
    index: Tensor | None
    negatives: Tensor | None
    threshold: Tensor | None
    lam: float
    expected_positives: float
    k_hat: Tensor | None
    sparse: bool
    scheduled: list[Tensor] | None


class Logits:
    """What may stand for logits in a call of a loss: something that takes the call and does its own with it.

    Attributes:
        shape: (N, L).
        whole: the logits themselves, where they exist as a whole.
    """

    shape: tuple[int, int]
    whole: Tensor | None = None

    def run(self, labels: Tensor, call: Call) -> Any:
        raise NotImplementedError


def run(
    logits: Tensor | Logits,
    labels: Tensor,
    name: str,
    hyper: Sequence[float] = (),
    *,
    eps: float = 0.0,
    reduction: str = "mean",
    class_weight: Tensor | None = None,
    kind: int = ELEMENTWISE,
    aux: Tensor | None = None,
    index: Tensor | None = None,
    negatives: Tensor | None = None,
    threshold: Tensor | None = None,
    lam: float = 0.0,
    expected_positives: float = 0.0,
    k_hat: Tensor | None = None,
    sparse: bool = False,
) -> Any:
    """Call the op on the functor ``name`` of csrc/losses/table.h."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")
    if eps != 0 and not 0 < eps < 1:
        raise ValueError(f"eps must be at least 0 and less than 1, got {eps}")
    loss, mode = _ops.losses[name], REDUCTIONS[reduction]
    compiling, scheduled = is_compiling(), None
    if compiling:
        scheduled = [value for value in hyper if isinstance(value, Tensor)]
        hyper = [math.nan if isinstance(value, Tensor) else value for value in hyper]
    if isinstance(logits, Tensor):
        if not isinstance(labels, Tensor):
            raise TypeError(f"labels must be a tensor, got {type(labels).__name__}")
        op = _ops.loss if compiling else _ops.loss_unparsed
        # Positional: names cost a small batch more than its loss.
        return op(
            logits, labels, kind, loss, hyper, eps, mode, class_weight, aux, index, negatives, threshold, lam,
            expected_positives, k_hat, sparse, scheduled,
        )  # fmt: skip
    if not isinstance(logits, Logits):
        raise TypeError(f"logits must be a tensor, got {type(logits).__name__}")
    return logits.run(
        labels,
        Call(kind, loss, hyper, eps, mode, class_weight, aux, index, negatives, threshold, lam, expected_positives,
             k_hat, sparse, scheduled),
    )  # fmt: skip


def check_inputs(logits: Tensor | Logits, labels: Tensor) -> tuple[int, int]:
    """(N, L), for a loss that needs them before the op has looked at its arguments."""
    if isinstance(logits, Logits):
        return logits.shape
    for name, value in (("logits", logits), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if logits.dim() != 2:
        raise ValueError(f"logits must have shape (N, L), got {list(logits.shape)}")
    n, l = logits.shape
    if labels.dim() == 1 and labels.shape[0] != n:
        raise ValueError(f"labels has {labels.shape[0]} rows, logits has {n}")
    if labels.dim() != 1 and labels.shape != logits.shape:
        raise ValueError(
            f"labels must have shape ({n},) or ({n}, {l}) to go with the logits, got {list(labels.shape)}"
        )
    return n, l


def whole(logits: Tensor | Logits, what: str) -> Tensor:
    """The logits without gradient, refused where they never exist as a whole."""
    tensor = logits.whole if isinstance(logits, Logits) else logits
    if tensor is None:
        raise TypeError(
            f"{what} looks at all logits of the batch at once: it cannot be computed in chunks of labels"
        )
    return tensor.detach()


class GradientLogits(Logits):
    """Logits whose loss also leaves its gradients, without autograd: for loops that do their own backward pass.

    Attributes:
        grad: (N, L), of the logits, once a loss was called with a reduction "mean" or "sum"; in float32 of a mean
            over float16 logits, which float16 could not hold.
        aux_grad: (N, L), for ROLE of the estimates' rows; otherwise empty.
    """

    def __init__(self, logits: Tensor) -> None:
        self.whole, self.shape = logits, logits.shape

    def run(self, labels: Tensor, call: Call) -> Tensor:
        value, self.grad, self.aux_grad = _ops.loss_and_grad(self.whole, labels, *call)
        if self.whole.dtype == torch.float16 and call.reduction == REDUCTIONS["mean"]:
            entries = max(self.grad.numel(), 1)  # by which the op leaves it to the backward pass to divide
            self.grad, self.aux_grad = self.grad.float() / entries, self.aux_grad / entries
        return value


class _Description(Logits):
    """Hands the call itself back, and remembers whether the shape was asked for."""

    def __init__(self, shape: tuple[int, int] = (1, 1)) -> None:
        self._shape, self.asked = shape, False

    @property
    def shape(self) -> tuple[int, int]:
        self.asked = True
        return self._shape

    def run(self, labels: Tensor, call: Call) -> Call:
        return call


def describe(loss: str | Loss, shape: tuple[int, int] = (1, 1)) -> Call:
    """The op's arguments for a loss of single entries, given by name or as a module, of logits of this shape."""
    module = make(loss) if isinstance(loss, str) else loss
    if not isinstance(module, Loss):
        raise TypeError(f"loss must be a name or a loss module of this package, got {type(module).__name__}")
    problem = f"{type(module).__name__} is not a loss of one logit and its label alone"
    try:
        call = module(_Description(shape), None)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise TypeError(problem) from error
    alone = isinstance(call, Call) and call.kind == ELEMENTWISE and call.lam == 0
    if not alone or call.negatives is not None or call.threshold is not None:
        raise TypeError(problem)
    return call


# --- modules --------------------------------------------------------------------------------------

registry: dict[str, type[Loss]] = {}
"""Loss modules by name."""


class Loss(nn.Module):
    """Module form of a loss: its hyper-parameters, kept; schedules among them, evaluated by :meth:`set_epoch`.

    Subclasses name themselves (``class ANLoss(Loss, name="an")``) and give the functional form as ``function``,
    whose keyword arguments are those of the constructor.

    Attributes:
        inputs: names of what the module must be called with.
        needs_observed: whether a row of which nothing was observed costs nothing, so that it teaches nothing.
        hyper: the hyper-parameters in force, by name.
        epoch: the epoch that they are of, counted from 1.
        schedules: those of them that are schedules, by name.
    """

    function: ClassVar[Callable[..., Tensor]]
    inputs: ClassVar[tuple[str, ...]]
    name: ClassVar[str]
    needs_observed: ClassVar[bool] = False

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        forward = list(inspect.signature(cls.forward).parameters.values())[1:]
        cls.inputs = tuple(p.name for p in forward if p.default is p.empty)
        if name is None:
            return
        cls.name = name
        registry[name] = cls
        if "__init__" not in cls.__dict__:
            parameters = inspect.signature(cls.function).parameters.values()
            cls.__signature__ = inspect.Signature([p for p in parameters if p.kind is p.KEYWORD_ONLY])

    def __init__(self, *, class_weight: Tensor | Sequence[float] | None = None, **hyper: Any) -> None:
        super().__init__()
        cls = type(self)
        parameters = inspect.signature(cls.function).parameters
        known = {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
        for name in hyper:
            if name not in known:
                raise TypeError(
                    f"{cls.__name__} has no hyper-parameter {name!r}; it has {', '.join(sorted(known))}"
                )
        required = {n for n in known if parameters[n].default is inspect.Parameter.empty}
        missing = sorted(required - set(hyper))
        if missing:
            raise TypeError(f"{cls.__name__} needs {', '.join(missing)}")
        if class_weight is not None:
            class_weight = torch.as_tensor(class_weight, dtype=torch.get_default_dtype())
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.schedules: dict[str, Schedule] = {n: v for n, v in hyper.items() if isinstance(v, Schedule)}
        self.hyper: dict[str, Any] = dict(hyper)
        # The same for compiled graphs, which would be compiled anew for every epoch's numbers but not for tensors.
        # A schedule of switches (bool) stays one: two graphs.
        self._compiled_hyper: dict[str, Any] = dict(hyper)
        if self.schedules:
            self.register_buffer("_epoch", torch.tensor(1))
        self.set_epoch(1)

    def set_epoch(self, epoch: int) -> None:
        """Evaluate the schedules for ``epoch``, counted from 1; without schedules nothing changes."""
        if epoch < 1:
            raise ValueError(f"epochs are counted from 1, got {epoch}")
        self.epoch = int(epoch)
        for name, schedule in self.schedules.items():
            value = schedule(self.epoch)
            self.hyper[name] = value
            tensor = self._compiled_hyper[name]
            if isinstance(value, bool):
                self._compiled_hyper[name] = value
            elif isinstance(tensor, Tensor):
                tensor.fill_(value)
            else:
                self._compiled_hyper[name] = torch.tensor(value, dtype=torch.float64, device="cpu")
        if self.schedules:
            self._epoch.fill_(self.epoch)
        self._call = self._prepare_call() if type(self).forward is Loss.forward else None

    def _prepare_call(self) -> tuple[tuple, tuple] | None:
        """The op's arguments before and after the class weight, where they are the same for every batch."""
        description = _Description()
        try:
            call = self.function(description, None, **self.hyper)
        except TypeError:  # large losses have to be found first
            return None
        return None if description.asked else (call[:5], call[6:])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.schedules:
            self.set_epoch(int(self._epoch))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of ``logits`` (N, L) for ``labels`` (N,) or (N, L)."""
        call = None if is_compiling() else self._call
        if call is not None and isinstance(logits, Tensor) and isinstance(labels, Tensor):
            before, after = call
            return _ops.loss_unparsed(logits, labels, *before, self._buffers["class_weight"], *after)
        return self.function(logits, labels, class_weight=self._buffers["class_weight"], **self.current_hyper())

    def current_hyper(self) -> dict[str, Any]:
        """Keyword arguments of the function."""
        return self._compiled_hyper if self.schedules and is_compiling() else self.hyper

    def extra_repr(self) -> str:
        return ", ".join(f"{n}={self.schedules.get(n, v)!r}" for n, v in self.hyper.items())


def make(name: str, **hyper: Any) -> Loss:
    """The loss module registered as ``name``, with these hyper-parameters.

    >>> make("an_ls", smoothing=0.1)

    Raises:
        ValueError: no loss has this name; the message lists those that there are.
    """
    if name not in registry:
        raise ValueError(f"no loss is called {name!r}; there are {', '.join(sorted(registry))}")
    return registry[name](**hyper)


# --- checks of hyper-parameters -------------------------------------------------------------------
#
# A tensor is a scheduled number in a graph that is being compiled; its values are not known then.


def at_least(name: str, value: float, lowest: float) -> None:
    if not isinstance(value, Tensor) and not value >= lowest:
        raise ValueError(f"{name} must be at least {lowest:g}, got {value}")


def positive(name: str, value: float) -> None:
    if not isinstance(value, Tensor) and not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")


def in_unit_interval(name: str, value: float) -> None:
    if not isinstance(value, Tensor) and not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
