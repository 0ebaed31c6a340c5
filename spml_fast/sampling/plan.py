"""How G and clf are run: batch sizes and memory formats, by rule from one forward pass, or as the user says."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .._checks import count
from .._models import modules_in, unwrapped

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

CACHE_SHARE = 1 / 4
"""Share of a CPU's last-level cache that the largest activation of a batch fills. More, and layers wait for memory
(and for the pages of buffers that the allocator gives back after each layer); much less, and they wait for
threads."""

CACHE_BYTES = 32 * 2**20
"""Last-level cache where the system does not tell."""

CUDA_BYTES = 2**30
"""Bytes of the largest activation of a batch on a GPU."""

UNSEEN = 32
"""Largest activation of a compiled model, in sizes of x: what it does cannot be watched."""

FEWEST_ROWS = 8
"""Proposals in a batch at least: fewer leave the cores idle between layers."""

MOST_ROWS = {"cpu": 8192, "cuda": 65536}
"""Proposals in a batch at most: Ctrl-C and checkpoints wait for the end of a batch."""

Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Plan:
    """How G and clf are run.

    Batch size and memory format that are not given are chosen by a rule from one forward pass, never by timing, so
    that one machine always draws the same bits: as many rows as keep the largest activation in about a quarter
    of the last-level cache, and channels-last format for convolutions on a CPU. :meth:`S2MSampler.tune` measures
    instead.

    Attributes:
        batch_size: proposals per forward pass: one number, or a pair (of G, of clf).
        block_steps: steps per accept pass; by default as many as make about 65,536 proposals or take a second.
        device: where to work; G and clf are moved there if given. Default: where G (or clf) is.
        precision: run G and clf under ``torch.autocast`` in this dtype; weights are float32 all the same.
        memory_format: "contiguous" or "channels_last" (or torch's own), or a pair (of G, of clf). Weights are in
            it while the sampler runs, and come back as they were.

    Raises:
        ValueError, TypeError: an option out of range.
    """

    batch_size: int | tuple[int | None, int | None] | None = None
    block_steps: int | None = None
    device: torch.device | str | None = None
    precision: torch.dtype | None = None
    memory_format: Any = None

    def __post_init__(self) -> None:
        put = functools.partial(object.__setattr__, self)
        put("batch_size", _pair(self.batch_size, _rows, "batch_size"))
        put("memory_format", _pair(self.memory_format, _format, "memory_format"))
        if self.block_steps is not None:
            put("block_steps", count(self.block_steps, "block_steps"))
        if self.device is not None:
            try:
                put("device", str(torch.device(self.device)))
            except (RuntimeError, TypeError) as error:
                raise ValueError(f"device must be one of PyTorch's, got {self.device!r}") from error
        if isinstance(self.precision, str):
            put("precision", getattr(torch, self.precision.removeprefix("torch."), self.precision))
        if self.precision is not None and not isinstance(self.precision, torch.dtype):
            raise TypeError(f"precision must be a torch.dtype, for example torch.bfloat16, got {self.precision!r}")
        if self.precision is not None and not self.precision.is_floating_point:
            raise ValueError(f"precision must be a floating-point dtype, got {self.precision}")

    def to_dict(self) -> dict[str, Any]:
        """The plan in plain values, for a JSON file; ``Plan(**plain)`` makes it again."""
        plain = {name: list(part) if isinstance(part, tuple) else part for name, part in asdict(self).items()}
        plain["precision"] = None if self.precision is None else str(self.precision).removeprefix("torch.")
        return plain

    def completed(self, generator: Cost, classifier: Cost, device: torch.device) -> Plan:
        """The plan with batch sizes and memory formats that were left open, by rule."""
        costs = (generator, classifier)
        sizes = self.batch_size or (None, None)
        formats = self.memory_format or (None, None)
        return replace(
            self,
            batch_size=tuple(s or cost.rows(device) for s, cost in zip(sizes, costs, strict=True)),
            memory_format=tuple(f or cost.memory_format(device) for f, cost in zip(formats, costs, strict=True)),
        )


def _pair(value: Any, check: Callable[[Any, str], Any], name: str) -> Pair | None:
    """A pair (of G, of clf) of what ``check`` lets pass, from one value for both or a pair."""
    if value is None:
        return None
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name} must be one value or a pair (of G, of clf), got {value!r}")
        pair = tuple(None if part is None else check(part, name) for part in value)
        return None if pair == (None, None) else pair
    return check(value, name), check(value, name)


def _rows(value: Any, name: str) -> int:
    return count(value, name)


def _format(value: Any, name: str) -> str:
    for known, own in FORMATS.items():
        if value is own or value == known:
            return known
    if isinstance(value, (torch.memory_format, str)):
        raise ValueError(f"{name} must be one of {', '.join(FORMATS)}, got {value!r}")
    raise TypeError(f"{name} must be a torch.memory_format or one of {', '.join(FORMATS)}, got {value!r}")


# --- what a forward pass costs --------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What one forward pass of a model showed.

    Attributes:
        row_bytes: bytes of the largest activation of one row.
        convolves: whether it has two-dimensional convolutions that channels-last format serves.
    """

    row_bytes: int
    convolves: bool

    def rows(self, device: torch.device) -> int:
        """A power of two: the batch size by rule."""
        kind = "cpu" if device.type == "cpu" else "cuda"
        room = CACHE_SHARE * last_level_cache() if kind == "cpu" else CUDA_BYTES
        fit = 2 ** round(math.log2(max(1.0, room / max(1, self.row_bytes))))
        return min(max(fit, FEWEST_ROWS), MOST_ROWS[kind])

    def memory_format(self, device: torch.device) -> str:
        """By rule: measured to be right on CPUs; on a GPU left as the model is."""
        return "channels_last" if self.convolves and device.type == "cpu" else "contiguous"


class Trace(TorchFunctionMode):
    """Watches the operations of a forward pass.

    Attributes:
        sizes: bytes of the output of each, in order.
        convolutions: (dtype, groups, channels of the output) of each two-dimensional one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.convolutions: list[tuple[torch.dtype, int, int]] = []
        self._squashed: list[tuple[str, Tensor, int]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        first = out[0] if isinstance(out, (tuple, list)) and out else out
        if isinstance(first, Tensor):
            self.sizes.append(first.numel() * first.element_size())
            name = getattr(function, "__name__", "").strip("_")
            if name in ("sigmoid", "softmax"):
                self._squashed.append((name, first, first._version))
            if name in ("conv2d", "conv_transpose2d"):  # both have the groups in the seventh place
                groups = kwargs.get("groups", args[6] if len(args) > 6 else 1)
                self.convolutions.append((first.dtype, groups, first.shape[1]))
        return out

    def made_by(self, logits: Tensor) -> str | None:
        """The operation whose output, perhaps seen in another shape, ``logits`` are, if it makes probabilities."""
        address = logits.untyped_storage().data_ptr()
        for name, out, version in self._squashed:
            if out.untyped_storage().data_ptr() == address and out._version == version:
                return f"the output of a {name}"
        return None

    def cost(self, fewer: Trace, model: Any, least: int) -> Cost:
        """The cost that this pass, over two rows, shows: an output that does not grow with rows is no activation.

        Args:
            fewer: the same pass over one row.
            least: bytes of a row of x.
        """
        if not self.sizes:
            return Cost(UNSEEN * least, False)
        grown = [size // 2 for size in self.sizes]
        if fewer is not self and len(self.sizes) == len(fewer.sizes):
            grown = [two - one for two, one in zip(self.sizes, fewer.sizes, strict=True)]
        return Cost(max([least, *grown]), self._serves_channels_last(model))

    def _serves_channels_last(self, model: Any) -> bool:
        compiled = any(
            unwrapped(module) is not module or isinstance(module, torch.jit.ScriptModule)
            for root in modules_in(model)
            for module in root.modules()
        )
        if compiled or not self.convolutions or not torch.backends.mkldnn.is_available():
            return False
        # Grouped convolutions, but for depthwise ones, are slower in it; float64 has no kernels for it.
        return all(
            dtype in (torch.float32, torch.bfloat16) and groups in (1, channels)
            for dtype, groups, channels in self.convolutions
        )


@functools.cache
def last_level_cache() -> int:
    """Bytes of this machine's largest cache."""
    units = {"K": 2**10, "M": 2**20}
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text[:-1].isdigit() and text[-1] in units:
            sizes.append(int(text[:-1]) * units[text[-1]])
    return max(sizes) or CACHE_BYTES
