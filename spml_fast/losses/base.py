"""The module form that all losses share, and the registry of losses by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from .. import _ops
from .schedules import Schedule
from .spec import ELEMENTWISE, LossAndGradients, LossSpec, apply, apply_with_gradients, op_arguments

registry: dict[str, type[Loss]] = {}
"""Loss modules by name."""


class Loss(nn.Module):
    """Module form of a loss: keeps its hyper-parameters; :meth:`set_epoch` evaluates the schedules among them.

    A subclass names itself (``class ANLoss(Loss, name="an")``) and has two class attributes: ``function``, the
    functional form, whose keyword arguments and defaults are those of the constructor, and ``specify``, which
    makes a :class:`~spml_fast.losses.spec.LossSpec` of all hyper-parameters. A loss that reads more than logits,
    labels and class weights overrides :meth:`tensors`; one that keeps something of each batch, :meth:`remember`.

    Attributes:
        inputs: names of what the module must be called with.
        needs_observed: whether a row without any observed label costs nothing, so that it teaches nothing.
        changes_forward: whether the class overrides ``forward`` but not :meth:`tensors`: it can be called,
            but its spec does not say all that it computes.
        hyper: the given hyper-parameters by name, with their values in the current epoch.
        epoch: the current epoch, counted from 1.
        schedules: the hyper-parameters that are schedules, by name.
    """

    function: ClassVar[Callable[..., Tensor]]
    specify: ClassVar[Callable[..., LossSpec]]
    inputs: ClassVar[tuple[str, ...]]
    name: ClassVar[str]
    needs_observed: ClassVar[bool] = False
    changes_forward: ClassVar[bool] = False

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        forward = list(inspect.signature(cls.forward).parameters.values())[1:]
        cls.inputs = tuple(p.name for p in forward if p.default is p.empty)
        if "forward" in cls.__dict__ or "tensors" in cls.__dict__:
            cls.changes_forward = "tensors" not in cls.__dict__
        if name is not None:
            cls.name = name
            registry[name] = cls
        if "specify" not in cls.__dict__:
            return
        of_function = inspect.signature(cls.function).parameters
        known = inspect.signature(cls.specify).parameters
        cls._defaults = {n: of_function[n].default for n in known}
        if "__init__" not in cls.__dict__:
            shown = [p for n, p in of_function.items() if n in known or n == "class_weight"]
            cls.__signature__ = inspect.Signature(shown)

    def __init__(self, *, class_weight: Tensor | Sequence[float] | None = None, **hyper: Any) -> None:
        super().__init__()
        cls = type(self)
        for name in hyper:
            if name not in cls._defaults:
                known = ", ".join(sorted([*cls._defaults, "class_weight"]))
                raise TypeError(f"{cls.__name__} has no hyper-parameter {name!r}; it has {known}")
        missing = [n for n, v in cls._defaults.items() if v is inspect.Parameter.empty and n not in hyper]
        if missing:
            raise TypeError(f"{cls.__name__} needs {', '.join(sorted(missing))}")
        if class_weight is not None:
            class_weight = torch.as_tensor(class_weight, dtype=torch.get_default_dtype())
        self.register_buffer("class_weight", class_weight, persistent=False)
        self.schedules: dict[str, Schedule] = {n: v for n, v in hyper.items() if isinstance(v, Schedule)}
        self.hyper: dict[str, Any] = dict(hyper)
        # The same for compiled graphs: there a scheduled number is a tensor, because a graph is compiled anew for
        # another number but not for another value of a tensor. A schedule of switches (bool) makes two graphs.
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
        self._spec = self.specify(**{**self._defaults, **self.hyper})
        arguments = op_arguments(self._spec, 1, compiling=False)  # refuses a bad reduction or eps before any batch
        # The op's arguments before and after the class weight, where they are the same for every batch.
        fixed = type(self).tensors is Loss.tensors and not callable(self._spec.hyper)
        self._arguments = (arguments[:5], arguments[6:]) if fixed else None

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.schedules:
            self.set_epoch(int(self._epoch))

    def current_hyper(self) -> dict[str, Any]:
        """The given hyper-parameters in the current epoch; scheduled numbers are tensors in a compiled graph."""
        return self._compiled_hyper if self.schedules and is_compiling() else self.hyper

    def current_spec(self) -> LossSpec:
        """The spec of the loss in the current epoch."""
        if self.schedules and is_compiling():
            return self.specify(**{**self._defaults, **self._compiled_hyper})
        return self._spec

    def tensors(
        self, logits: Tensor | None, labels: Tensor, *inputs: Tensor, n_labels: int | None = None
    ) -> dict[str, Tensor | None]:
        """The tensors that the op reads beside logits and labels, by their names in ``op_arguments``.

        Args:
            logits: (N, L), or None where they are computed in chunks of labels and never exist as a whole.
            labels: (N,) or (N, L).
            inputs: what else the module is called with.
            n_labels: L, given where there are no logits to say it.
        """
        return {"class_weight": self._buffers["class_weight"]}

    def remember(self, logits: Tensor | None, labels: Tensor, tensors: Mapping[str, Tensor | None]) -> None:
        """Keep something of a batch whose loss has been computed from :meth:`tensors`; nothing by default."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of ``logits`` (N, L) for ``labels`` (N,) or (N, L)."""
        arguments = None if is_compiling() else self._arguments
        if arguments is not None and isinstance(logits, Tensor) and isinstance(labels, Tensor):
            before, after = arguments
            return _ops.loss_unparsed(logits, labels, *before, self._buffers["class_weight"], *after)
        return self.evaluate(apply, logits, labels)

    def value_and_gradients(self, logits: Tensor, labels: Tensor, *inputs: Tensor) -> LossAndGradients:
        """The value that a call of the module returns, with its gradients, computed without autograd.

        Raises:
            TypeError: a subclass overrides ``forward``; the gradients of what it does there are autograd's.
        """
        require_spec(self, "computed without autograd")
        return self.evaluate(apply_with_gradients, logits, labels, *inputs)

    def evaluate(self, how: Callable[..., Any], logits: Tensor, labels: Tensor, *inputs: Tensor) -> Any:
        """The result of ``how`` (``apply`` or ``apply_with_gradients``) for this loss and a batch."""
        tensors = self.tensors(logits, labels, *inputs)
        result = how(self.current_spec(), logits, labels, **tensors)
        self.remember(logits, labels, tensors)
        return result

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


def as_module(loss: str | Loss) -> Loss:
    """The loss module with this name, or the module itself."""
    module = make(loss) if isinstance(loss, str) else loss
    if not isinstance(module, Loss):
        raise TypeError(f"loss must be a name or a loss module of this package, got {type(module).__name__}")
    return module


def entry_spec(loss: str | Loss) -> LossSpec:
    """The spec of a loss that is a sum over entries, each of one logit and its label.

    Raises:
        TypeError: the loss reads more than that.
    """
    module = as_module(loss)
    require_spec(module, "used inside ROLE")
    spec = module.current_spec()
    if type(module).tensors is not Loss.tensors or spec.kind != ELEMENTWISE:
        raise TypeError(f"{type(module).__name__} is not a loss of one logit and its label alone")
    return spec


def require_spec(module: Loss, use: str) -> None:
    """Refuse a loss whose spec does not say all that it computes, where only the spec is looked at."""
    if module.changes_forward:
        raise TypeError(f"{type(module).__name__} overrides forward, so it cannot be {use}")


def require_logits(logits: Tensor | None, what: str) -> None:
    """Refuse logits that are computed in chunks and never exist as a whole, for ``what`` looks at all of them."""
    if logits is None:
        raise TypeError(
            f"{what} looks at all logits of the batch at once: it cannot be computed in chunks of labels"
        )
