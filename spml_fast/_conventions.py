"""How generators are given their label and return x, and how classifiers return logits: one convention for all."""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ._models import Model, unwrapped

OUTPUT_NAMES = ("class_logits", "fake_class_logits", "validity_logit")

X_NAMES = ("x", "sample", "samples", "image", "images", "output", "out")
"""Names under which generators return x among other things."""

LABEL_NAME = re.compile(
    "y|ys|c|cls|cond|conditions?|category|targets?|labels?|class_?|classes|class_(ids?|idx|index|labels?)"
)
"""The name of an optional argument that is taken for the class label."""


# --- classifiers ----------------------------------------------------------------------------------


class ClassifierOutput(NamedTuple):
    class_logits: Tensor
    """(B, N) logits of D_r."""
    fake_class_logits: Tensor | None
    """(B, N) logits of D_f."""
    validity_logit: Tensor
    """(B,) logit of D_v."""


def parse_classifier_output(output: object, n_rows: int) -> ClassifierOutput:
    """Reads what ``clf(x)`` returned for ``n_rows`` proposals.

    ``(class_logits, validity_logit)``, ``(class_logits, fake_class_logits or None, validity_logit)``, or a
    mapping, dataclass or named tuple with those names; ``ValueError`` or ``TypeError`` otherwise. Dimensions of
    size one may follow, or be squeezed away for a single row.
    """
    named = by_name(output)
    if named is not None and (not isinstance(output, tuple) or set(named) & set(OUTPUT_NAMES)):
        missing = {"class_logits", "validity_logit"} - set(named)
        unknown = set(named) - set(OUTPUT_NAMES)
        if missing or unknown:
            what = "mapping with keys" if isinstance(output, Mapping) else f"{type(output).__name__} with fields"
            raise ValueError(
                f"clf returned a {what} {sorted(map(str, named))}; expected class_logits, "
                "validity_logit and, for class-conditional proposals, fake_class_logits"
            )
        parts = [named.get(name) for name in OUTPUT_NAMES]
    elif isinstance(output, (tuple, list)) and len(output) in (2, 3):
        parts = [output[0], None, output[1]] if len(output) == 2 else list(output)
    else:
        got = f"{len(output)} outputs" if isinstance(output, (tuple, list)) else type(output).__name__
        raise ValueError(
            f"clf returned {got}; expected (class_logits, validity_logit), "
            "(class_logits, fake_class_logits or None, validity_logit), or a dict with those names; modules of "
            "their own for D_v and D_r are joined by spml_fast.Classifiers"
        )
    class_logits = as_rows(_floating(parts[0], "class_logits"), n_rows)
    fake = None if parts[1] is None else as_rows(_floating(parts[1], "fake_class_logits"), n_rows)
    validity = _floating(parts[2], "validity_logit")
    if class_logits.ndim != 2 or class_logits.shape[0] != n_rows or class_logits.shape[1] < 1:
        raise ValueError(f"clf: class_logits must have shape ({n_rows}, classes), got {tuple(class_logits.shape)}")
    if fake is not None and fake.shape != class_logits.shape:
        raise ValueError(
            f"clf: fake_class_logits must have the shape of class_logits, {tuple(class_logits.shape)}, "
            f"got {tuple(fake.shape)}"
        )
    if validity.numel() != n_rows or (n_rows > 1 and validity.shape[0] != n_rows):
        raise ValueError(
            f"clf: validity_logit must have shape ({n_rows},) or ({n_rows}, 1), got {tuple(validity.shape)}"
        )
    dtype = torch.promote_types(class_logits.dtype, validity.dtype)
    if fake is not None:
        fake = fake.to(dtype)
    return ClassifierOutput(class_logits.to(dtype), fake, validity.reshape(n_rows).to(dtype))


def by_name(output: object) -> dict[str, Any] | None:
    """The parts of a mapping, a dataclass or a named tuple; None for anything else."""
    if isinstance(output, Mapping):
        return dict(output)
    if is_dataclass(output) and not isinstance(output, type):
        return {part.name: getattr(output, part.name) for part in fields(output)}
    if isinstance(output, tuple) and hasattr(output, "_asdict"):
        return output._asdict()
    return None


def as_rows(logits: Tensor, n_rows: int) -> Tensor:
    """Logits as (B, N), where dimensions of size one follow or a single row was squeezed away."""
    if n_rows == 1 and logits.ndim == 1:
        return logits[None]
    if logits.ndim > 2 and logits[0].numel() == logits.shape[1]:
        return logits.flatten(1)
    return logits


def _floating(part: object, name: str) -> Tensor:
    if not isinstance(part, Tensor):
        raise TypeError(f"clf: {name} must be a tensor, got {type(part).__name__}")
    if not part.is_floating_point():
        raise TypeError(f"clf: {name} must be floating point, got {part.dtype}")
    return part


# --- generators -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelArgument:
    """The argument by which a generator takes its label.

    Attributes:
        name: what the generator calls it.
        by_keyword: passed by keyword rather than as the second argument.
        required: whether the generator cannot be called without it.
    """

    name: str
    by_keyword: bool
    required: bool


def label_argument(G: Model) -> LabelArgument | None:
    """The argument of ``G`` that must be, or by its name is, the class label.

    Raises:
        ValueError: G requires more than two arguments.
    """
    parameters = _arguments(G)
    required = [p for p in parameters if p.default is inspect.Parameter.empty]
    positional = [p for p in required if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    following = positional[1:] + [p for p in required if p.kind is inspect.Parameter.KEYWORD_ONLY]
    if len(following) > 1:
        raise ValueError(
            f"G requires the arguments {', '.join(p.name for p in required)}; the sampler gives latents and, at "
            "most, a label: pass a function of these, for example lambda z, label: G(z, label, ...)"
        )
    if following:
        return LabelArgument(following[0].name, following[0].kind is inspect.Parameter.KEYWORD_ONLY, True)
    for p in parameters[1:]:
        if LABEL_NAME.fullmatch(p.name.lower()) and (p.default is None or type(p.default) is int):
            return LabelArgument(p.name, p.kind is not inspect.Parameter.POSITIONAL_ONLY, False)
    return None


def optional_arguments(G: Model) -> list[LabelArgument]:
    """Arguments of ``G`` after the latents whose default is None: one of them may be the label."""
    return [
        LabelArgument(p.name, p.kind is not inspect.Parameter.POSITIONAL_ONLY, False)
        for p in _arguments(G)[1:]
        if p.default is None
    ]


def _arguments(G: Model) -> list[inspect.Parameter]:
    """The arguments of a call of ``G``, without ``*args`` and ``**kwargs``; none where they cannot be known."""
    called, G = G, unwrapped(G)
    if isinstance(G, torch.jit.ScriptModule):
        schema = G.forward.schema.arguments[1:]  # without self
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        empty = inspect.Parameter.empty
        return [
            inspect.Parameter(
                a.name, kinds[a.kwarg_only], default=a.default_value if a.has_default_value() else empty
            )
            for a in schema
        ]
    function = G.forward if isinstance(G, nn.Module) else G
    if isinstance(called, partial):
        function = partial(function, *called.args, **called.keywords)
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


class Generator:
    """A user's generator under one convention: ``generator(z, labels)``, labels (B,) int64 or None.

    Attributes:
        conditional: whether G is given a label; None where only running it can tell.
        argument: the argument that the label is passed by; None: as the second one.
        c_dim: where G says so, as StyleGAN does, labels are one-hot (B, c_dim), and None where it is 0.
        guessed: whether nobody said that G takes a label but its signature.
    """

    def __init__(self, G: Model, conditional: bool | None) -> None:
        if conditional is not None and not isinstance(conditional, bool):
            raise TypeError(f"conditional must be True, False or None, got {conditional!r}")
        self.G = G
        self.argument = None if conditional is False else label_argument(G)
        c_dim = getattr(unwrapped(G), "c_dim", None)
        self.c_dim = c_dim if isinstance(c_dim, int) and not isinstance(c_dim, bool) else None
        if conditional and self.c_dim == 0:
            raise ValueError("conditional=True, but G.c_dim is 0: G was made without labels")
        self.guessed = conditional is None
        if conditional is None and self.argument is not None:
            if self.argument.required or self.c_dim is not None:
                conditional = self.c_dim != 0
        elif conditional is None:
            conditional = False
        self.conditional = conditional

    def __call__(self, z: Tensor, labels: Tensor | None) -> Any:
        """What G returns; :func:`images_of` reads it."""
        if labels is None:
            if self.c_dim == 0 and self.argument is not None and self.argument.required:
                return self.G(z, None)
            return self.G(z)
        given = labels if self.c_dim is None else one_hot(labels, self.c_dim).to(z.dtype)
        if self.argument is not None and self.argument.by_keyword:
            return self.G(z, **{self.argument.name: given})
        return self.G(z, given)

    def ways(self) -> Iterator[None]:
        """Ways of calling G, the likeliest first: each step of the iterator sets the next, for whoever tries."""
        yield
        if self.conditional and self.c_dim:  # which may be something else than StyleGAN's
            c_dim, self.c_dim = self.c_dim, None
            yield
            self.c_dim = c_dim
        if self.conditional or not self.guessed:
            return
        before = self.argument, self.conditional
        known = label_argument(self.G)
        for argument in [known] if known is not None else optional_arguments(self.G):
            self.argument, self.conditional = argument, True
            yield
        self.argument, self.conditional = before

    def check_c_dim(self, label: int | None) -> None:
        """``ValueError`` for a label that is beyond the one-hot labels that G takes."""
        if label is not None and self.c_dim is not None and label >= self.c_dim:
            raise ValueError(f"proposal_class {label} is out of range: G.c_dim is {self.c_dim}")

    def check_label(self, label: int, output: ClassifierOutput) -> None:
        """``ValueError`` if clf's logits do not go with proposals of ``label``."""
        if output.fake_class_logits is None:
            guess = ""
            if self.guessed and self.argument is not None:
                guess = (
                    f". G's argument {self.argument.name!r} was taken for the class label: if it is none, pass "
                    "conditional=False, or a function of z alone for G"
                )
            raise ValueError(
                "class-conditional proposals need the logits of D_f: clf must return "
                f"(class_logits, fake_class_logits, validity_logit){guess}"
            )
        n_classes = output.class_logits.shape[1]
        if not 0 <= label < n_classes:
            raise ValueError(f"proposal_class {label} is out of range: clf returns {n_classes} class logits")

    def __str__(self) -> str:
        """How G is called, for people."""
        if not self.conditional:
            if self.c_dim == 0:
                return "G(z, None), its c_dim being 0: unconditional"
            return "G(z), unconditional"
        name = "label" if self.argument is None else self.argument.name
        what = "an integer (B,)" if self.c_dim is None else f"one-hot (B, {self.c_dim}), as G.c_dim says"
        by = f"{name}=..." if self.argument is not None and self.argument.by_keyword else name
        return f"G(z, {by}), class-conditional, the label {what}"


def images_of(output: object, n_rows: int, x_shape: tuple[int, ...] | None = None) -> Tensor:
    """x (B, *x_shape) in what G returned for ``n_rows`` latents: a tensor, or the x in a tuple, dict or dataclass.

    Args:
        x_shape: where it is known: a single row may then come without its batch dimension.

    Raises:
        ValueError: no such x.
    """
    x = output
    named = by_name(output)
    if named is not None:
        tensors = {name: part for name, part in named.items() if isinstance(part, Tensor)}
        names = [name for name in X_NAMES if name in tensors] or (list(tensors) if len(tensors) == 1 else [])
        if not names:
            raise ValueError(
                f"G returned a {type(output).__name__} with {', '.join(map(str, named))}, of which none is called "
                f"{', '.join(X_NAMES[:-1])} or {X_NAMES[-1]}: pass a function that returns x, "
                "for example lambda z: G(z)[...]"
            )
        x = tensors[names[0]]
    elif isinstance(output, (tuple, list)) and output:
        x = output[0]
    if isinstance(x, Tensor):
        if n_rows == 1 and x_shape is not None and x.shape == x_shape:
            return x[None]
        if x.ndim > 0 and x.shape[0] == n_rows and x_shape in (None, x.shape[1:]):
            return x
    wanted = "..." if x_shape is None else ", ".join(map(str, x_shape))
    got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
    raise ValueError(f"G must return x of shape ({n_rows}, {wanted}), got {got}")


def latent_shape(G: object, z_dim: int | Sequence[int] | None) -> tuple[int, ...]:
    """The shape of one latent, from ``z_dim`` or else ``G.z_dim``."""
    z_dim = getattr(unwrapped(G), "z_dim", None) if z_dim is None else z_dim
    if z_dim is None:
        layer = first_layer(G)
        hint = "an int or a shape"
        if layer is not None:
            hint = f"{layer[1]} by the look of its first layer, {layer[0]}"
        raise ValueError(
            f"the latent size of {type(G).__name__} is not known: it has no attribute z_dim, so pass z_dim=... "
            f"({hint})"
        )
    try:
        shape = (_size(z_dim),) if not isinstance(z_dim, Sequence) else tuple(_size(n) for n in z_dim)
    except TypeError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ValueError(f"z_dim must be a positive int or a shape of them, got {z_dim!r}")
    return shape


def _size(value: object) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)  # type: ignore[arg-type]


def first_layer(G: object) -> tuple[str, int | tuple[int, ...]] | None:
    """The first layer of G that says what it takes: its class, and the z_dim that this makes likely."""
    module = unwrapped(G)
    if not isinstance(module, nn.Module):
        return None
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            return type(layer).__name__, layer.in_features
        if isinstance(layer, nn.ConvTranspose2d | nn.Conv2d):
            return type(layer).__name__, (layer.in_channels, 1, 1)
        if isinstance(layer, nn.Embedding):
            return None
    return None
