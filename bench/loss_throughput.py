"""Time and memory of the losses against eager PyTorch, torch.compile, and a linear head with a separate loss.

    python bench/loss_throughput.py [--quick] [--device cuda] [--threads N] [--json FILE] [--plot FILE]
                                    [--losses NAME...] [--compile NAME...] [--index-labels]

Sections, each measured side by side:

losses  every loss, called as a module, against the same loss as research code writes it (``bench/eager.py``:
        sigmoid, boolean masks) and, if named by --compile (default: all; with --quick: gr), against
        ``torch.compile`` of the formula written with ``where``; GR and ROLE at all sizes, the others at two
linear  ``fused_linear_loss`` against ``F.linear`` and the eager loss, for so many labels that logits are large

All get the same dense floating-point labels, as research code has them; with --index-labels the fused losses
that can take (N,) indices do. "forward" is the loss alone under ``no_grad``, as in validation; "forward+backward"
a training step's loss and its gradients, those of the step before dropped first. ROLE's table and what other
losses keep of the training set has as many rows as the batch: more would be the same work more for all.

Rows of ``--json``: section, loss, rows, labels, features (section linear), dtype, device, device_name, threads,
pass, index_labels, eager_us, compile_us, fused_us, speedup_eager and speedup_compile (their time over the fused
one), bytes (the fewest that must move: inputs read once, gradients written once), copy_fraction (those bytes, over
the time, over the device's copy bandwidth; null where they would stay in its cache), extra_memory_fused and
extra_memory_eager (the allocator's peak above the start over the size of the logits; gradients of the losses
count, those of x, weight and bias in section linear, which both return, do not).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import eager as eager_losses
import torch
from common import (
    Options,
    Timing,
    copy_bandwidth,
    device_name,
    format_time,
    median_seconds,
    option_parser,
    peak_memory,
    print_table,
    read_options,
    verdict,
    warn_if_busy,
    working_set_cache_bytes,
    write_json,
)
from torch import Tensor
from torch.nn.functional import linear

from spml_fast import reference
from spml_fast.losses import Loss, fused_linear_loss, make, registry

Row = dict[str, str | int | float | bool | None]
Size = tuple[int, int]

SIZES = ((16, 20), (128, 80), (1024, 312), (8192, 1024))
GPU_SIZE = (65536, 1024)
COMMON_SIZES = ((128, 80), (1024, 312))  # of the losses that are not in the foreground
FOREGROUND = ("gr", "role")
QUICK_SIZES = SIZES[:2]
QUICK_LOSSES = ("an", "epr", "em", "asl", "ll_r")
DTYPES = {"cpu": (torch.float32,), "cuda": (torch.float32, torch.bfloat16)}

LINEAR_SHAPE = (256, 512, 200_000)  # rows, features, labels
QUICK_LINEAR_SHAPE = (256, 512, 20_000)
LINEAR_LOSSES = ("an", "gr")

# Speed-ups wanted of forward+backward on the CPU, by size.
EAGER_TARGETS = {"gr": dict(zip(SIZES, (15, 20, 50, 60), strict=True)),
                 "role": dict(zip(SIZES, (15, 10, 10, 20), strict=True))}  # fmt: skip
COMPILE_TARGETS = {"gr": 3}
SMALL_GPU_TARGET = 10  # over eager, at the smallest size
COPY_TARGET = 0.85  # at GPU_SIZE
MEMORY_TARGETS = {"gr": 1.05}
LINEAR_MEMORY_TARGET = 1 / 8

EPOCH = 5  # of the schedules: all hyper-parameters at work
EXPECTED_POSITIVES = 2.5
SHARE = 0.01  # of the batch's labels whose loss is large


# --- the losses, three ways -----------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One loss of the same inputs, computed three ways."""

    inputs: tuple[Tensor, ...]
    """The tensors that must be read, in the form that the fused loss takes."""
    leaves: tuple[Tensor, ...]
    """The inputs that get a gradient."""
    fused: Callable[[], Tensor]
    eager: Callable[[], Tensor]
    where: Callable[..., Tensor]
    """The formula without masked indexing, called with ``where_inputs``."""
    where_inputs: tuple[Tensor, ...]


def one_positive(rows: int, labels: int, device: torch.device) -> Tensor:
    return torch.randint(labels, (rows,), device=device)


def keep_known(function: Callable, hyper: Mapping[str, object]) -> dict[str, object]:
    """The hyper-parameters that the function takes."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in hyper.items() if name in known}


def loss_module(name: str, rows: int, labels: int, device: torch.device) -> Loss:
    match name:
        case "epr" | "role":
            module = make(name, expected_positives=EXPECTED_POSITIVES)
        case "ll_r" | "ll_ct":
            module = make(name, share=SHARE)
        case "ll_cp":
            module = make(name, n_samples=rows, n_labels=labels, share=SHARE)
        case "em_apl":
            module = make(name, n_samples=rows, n_labels=labels)
        case _:
            module = make(name)
    module.set_epoch(EPOCH)
    return module.to(device)


def make_case(name: str, size: Size, dtype: torch.dtype, device: torch.device, index_labels: bool) -> Case:
    rows, labels = size
    positive = one_positive(rows, labels, device)
    z = torch.randn(rows, labels, device=device).to(dtype).requires_grad_()
    s = torch.zeros(rows, labels, dtype=dtype, device=device).scatter_(1, positive[:, None], 1)
    known = positive if index_labels else s  # what the fused loss is told
    index = torch.randperm(rows, device=device)
    module = loss_module(name, rows, labels, device)

    def case(inputs, fused, eager_inputs, where_inputs=None, *, leaves=(z,), eager=None, where=None) -> Case:
        """The case of this loss; ``eager_inputs`` is a function where preparing them takes time."""
        eager, where = eager or getattr(eager_losses, name), where or getattr(reference, name)
        eager_hyper = keep_known(eager, module.hyper)
        where_hyper = keep_known(where, module.hyper)
        prepared = eager_inputs if callable(eager_inputs) else lambda: eager_inputs
        return Case(
            inputs,
            leaves,
            fused,
            lambda: eager(*prepared(), **eager_hyper),
            lambda *tensors: where(*tensors, **where_hyper).mean(),
            where_inputs or eager_inputs,
        )

    match name:
        case "bce" | "bce_ls":
            y = s.clone().masked_fill_(torch.rand_like(s, dtype=torch.float32) < 2 / labels, 1)
            return case((z, y), lambda: module(z, y), (z, y))
        case "iun":
            y = s.clone().masked_fill_(torch.rand_like(s, dtype=torch.float32) < 2 / labels, 1)
            return case((z, known, y), lambda: module(z, known, y), (z, s, y))
        case "iu":
            s.scatter_(1, ((positive + 1) % labels)[:, None], -1)
            return case((z, s), lambda: module(z, s), (z, s))
        case "pns":

            def where_pns(z: Tensor, s: Tensor) -> Tensor:
                return reference.pns(z, s, torch.multinomial((s == 0).to(z.dtype), 1)[:, 0])

            return case((z, known), lambda: module(z, known), (z, s), where=where_pns)
        case "role":
            table = torch.randn(rows, labels, device=device, requires_grad=True)

            def where_role(z: Tensor, table: Tensor, index: Tensor, s: Tensor, **hyper: float) -> Tensor:
                return reference.role(z, table[index], s, EXPECTED_POSITIVES)

            return case(
                (z, known, table, index),
                lambda: module(z, known, table, index),
                (z, table, index, s),
                leaves=(z, table),
                where=where_role,
            )
        case "ll_r" | "ll_ct":
            return large_loss_case(case, name, (z, known), lambda: module(z, known), (z, s))
        case "ll_cp":
            # All labels unflipped before each call, at the fused loss's expense; eager does not even remember.
            def fused() -> Tensor:
                module.flips.zero_()
                return module(z, known, index)

            return large_loss_case(case, name, (z, known, module.flips, index), fused, (z, s))
        case "em_apl":
            pseudo = torch.rand(rows, labels, device=device)
            module.pseudo_labels.copy_(pseudo.where(pseudo < 0.05, -1))
            return pseudo_case(case, module.pseudo_labels, z, known, s, index, lambda: module(z, known, index))
        case "gpr":
            pseudo = torch.randint(-1, 2, (rows, labels), device=device, dtype=torch.int8)
            pseudo.mul_(torch.rand(rows, labels, device=device) < 0.1)
            return pseudo_case(case, pseudo, z, known, s, index, lambda: module(z, known, pseudo, index))
        case _:
            return case((z, known), lambda: module(z, known), (z, s))


def large_loss_case(case: Callable[..., Case], name: str, inputs, fused, eager_inputs) -> Case:
    flip = name != "ll_r"

    def eager(z: Tensor, s: Tensor) -> Tensor:
        return eager_losses.ll(z, s, SHARE, flip)

    def where(z: Tensor, s: Tensor) -> Tensor:
        return reference.ll(z, s, math.ceil(z.numel() * SHARE), flip)

    return case(inputs, fused, eager_inputs, eager=eager, where=where)


def pseudo_case(case: Callable[..., Case], store: Tensor, z, known, s, index, fused) -> Case:
    """The case of a loss that reads the batch's rows of pseudo-labels."""
    dense = store[index].to(z.dtype)
    return case((z, known, store, index), fused, lambda: (z, s, store[index].to(z.dtype)), (z, s, dense))


# --- measuring ------------------------------------------------------------------------------------


def training_step(loss: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Callable[[], None]:
    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    return step


def compiled(case: Case) -> Callable[[], Tensor]:
    torch.compiler.reset()  # a graph of this size only, not one for all sizes
    function = torch.compile(case.where, dynamic=False)
    return lambda: function(*case.where_inputs)


def measure(
    steps: Mapping[str, Callable[[], object]],
    leaves: Sequence[Tensor],
    logit_bytes: int,
    options: Options,
    timing: Timing,
    returned_bytes: int = 0,
) -> Row:
    """The columns of a row that come from measuring; ``returned_bytes`` of memory are not counted."""
    for step in steps.values():
        step()
    seconds = median_seconds(steps, options.device, timing)
    row: Row = {
        f"{key}_us": seconds[key] * 1e6 if key in seconds else None for key in ("eager", "compile", "fused")
    }
    for key in ("eager", "compile"):
        row[f"speedup_{key}"] = seconds[key] / seconds["fused"] if key in seconds else None
    for key in ("fused", "eager"):
        for leaf in leaves:
            leaf.grad = None
        row[f"extra_memory_{key}"] = (peak_memory(steps[key], options.device) - returned_bytes) / logit_bytes
    return row


def row_head(options: Options, section: str, loss: str, size: Size, dtype: torch.dtype, **more: object) -> Row:
    """The columns of a row that say what was measured."""
    return {
        "section": section,
        "loss": loss,
        "rows": size[0],
        "labels": size[1],
        "dtype": str(dtype).removeprefix("torch."),
        "device": options.device.type,
        "device_name": device_name(options.device),
        "threads": options.threads,
        **more,
    }


def number_of_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def loss_rows(options: Options, settings: Settings) -> Iterator[Row]:
    bandwidth = copy_bandwidth(options.device)
    cache = working_set_cache_bytes(options.device)
    for name, size, dtype in settings.shapes:
        torch.manual_seed(0)
        case = make_case(name, size, dtype, options.device, settings.index_labels)
        calls = {"eager": case.eager, "fused": case.fused}
        if name in settings.compile:
            calls["compile"] = compiled(case)
        passes = {
            "forward": {key: torch.no_grad()(call) for key, call in calls.items()},
            "forward+backward": {key: training_step(call, case.leaves) for key, call in calls.items()},
        }
        for kind, steps in passes.items():
            row = row_head(options, "losses", name, size, dtype, features=None, index_labels=settings.index_labels)
            row["pass"] = kind
            row |= measure(steps, case.leaves, number_of_bytes(case.leaves[:1]), options, options.timing)
            gradients = case.leaves if kind != "forward" else ()
            row["bytes"] = number_of_bytes((*case.inputs, *gradients))
            in_cache = row["bytes"] <= 4 * cache
            row["copy_fraction"] = None if in_cache else row["bytes"] / (row["fused_us"] * 1e-6) / bandwidth
            yield row


def linear_rows(options: Options) -> Iterator[Row]:
    rows, features, labels = QUICK_LINEAR_SHAPE if options.quick else LINEAR_SHAPE
    device, size = options.device, (rows, labels)
    timing = options.timing if device.type == "cuda" else Timing(rounds=3, min_seconds=0)  # of seconds each
    x = torch.randn(rows, features, device=device, requires_grad=True)
    weight = (torch.randn(labels, features, device=device) / features**0.5).requires_grad_()
    bias = torch.zeros(labels, device=device, requires_grad=True)
    leaves = (x, weight, bias)
    positive = one_positive(rows, labels, device)
    s = torch.zeros(rows, labels, device=device).scatter_(1, positive[:, None], 1)
    for name in LINEAR_LOSSES:
        module = loss_module(name, rows, labels, device)
        eager = getattr(eager_losses, name)
        eager = partial(eager, **keep_known(eager, module.hyper))
        calls = {
            "eager": lambda eager=eager: eager(linear(x, weight, bias), s),
            "fused": partial(fused_linear_loss, x, weight, bias, positive, loss=module),
        }
        steps = {key: training_step(call, leaves) for key, call in calls.items()}
        row = row_head(options, "linear", name, size, torch.float32, features=features, index_labels=True)
        row["pass"] = "forward+backward"
        row |= measure(steps, leaves, 4 * rows * labels, options, timing, number_of_bytes(leaves))
        row |= {"bytes": 2 * number_of_bytes(leaves), "copy_fraction": None}
        yield row


# --- output ---------------------------------------------------------------------------------------


def verdicts(row: Row) -> Iterator[str]:
    """The targets of this row, and whether they were met."""
    if row["section"] == "linear":
        yield verdict(">= 1x", row["speedup_eager"] >= 1)
        if row["labels"] == LINEAR_SHAPE[2]:
            share = row["extra_memory_fused"] / row["extra_memory_eager"]
            yield verdict(f"{share:.3f} of eager's memory, <= 1/8", share <= LINEAR_MEMORY_TARGET)
        return
    if row["pass"] == "forward":
        return
    name, size = row["loss"], (row["rows"], row["labels"])
    if row["device"] == "cpu":
        if wanted := EAGER_TARGETS.get(name, {}).get(size):
            yield verdict(f">= {wanted}x", row["speedup_eager"] >= wanted)
    elif size == SIZES[0]:
        yield verdict(f">= {SMALL_GPU_TARGET}x", row["speedup_eager"] >= SMALL_GPU_TARGET)
    elif size == GPU_SIZE and row["copy_fraction"] is not None:
        yield verdict(f">= {COPY_TARGET:.0%} of copy", row["copy_fraction"] >= COPY_TARGET)
    if name in COMPILE_TARGETS and row["speedup_compile"] is not None:
        wanted = COMPILE_TARGETS[name]
        yield verdict(f">= {wanted}x compiled", row["speedup_compile"] >= wanted)
    if name in MEMORY_TARGETS and size in SIZES[2:]:
        wanted = MEMORY_TARGETS[name]
        yield verdict(f"<= {wanted} logits of memory", row["extra_memory_fused"] <= wanted)


HEADERS = (
    "loss", "pass", "rows", "labels", "dtype", "eager", "compile", "fused", "x eager", "x compile", "copy",
    "memory", "target",
)  # fmt: skip


def table_cells(row: Row) -> list[str]:
    def speedup(key: str) -> str:
        return "" if row[key] is None else f"{row[key]:.3g}x"

    fraction = row["copy_fraction"]
    return [
        row["loss"] if row["features"] is None else f"linear + {row['loss']}",
        row["pass"],
        *(f"{row[name]:,}" for name in ("rows", "labels")),
        row["dtype"],
        *("" if row[key] is None else format_time(row[key]) for key in ("eager_us", "compile_us", "fused_us")),
        speedup("speedup_eager"),
        speedup("speedup_compile"),
        "" if fraction is None else f"{fraction:.0%}",
        f"{row['extra_memory_fused']:.2f}/{row['extra_memory_eager']:.2f}",
        ", ".join(verdicts(row)),
    ]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Speed-up of forward+backward over the number of entries, a line for each loss measured at several sizes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    training = [r for r in rows if r["section"] == "losses" and r["pass"] == "forward+backward"]
    for name, dtype in dict.fromkeys((r["loss"], r["dtype"]) for r in training):
        mine = [r for r in training if (r["loss"], r["dtype"]) == (name, dtype)]
        entries = [r["rows"] * r["labels"] for r in mine]
        front = name in FOREGROUND
        style = {"marker": "o", "linewidth": 2} if front else {"marker": ".", "linewidth": 0.7, "color": "0.7"}
        label = name if dtype == "float32" else f"{name}, {dtype}"
        (line,) = axes.plot(
            entries, [r["speedup_eager"] for r in mine], **style, label=f"{label}, over eager" if front else None
        )
        if front and all(r["speedup_compile"] is not None for r in mine):
            axes.plot(
                entries,
                [r["speedup_compile"] for r in mine],
                marker="s",
                linestyle="--",
                color=line.get_color(),
                label=f"{label}, over torch.compile",
            )
    if any(name not in FOREGROUND for name in {r["loss"] for r in training}):
        axes.plot([], [], marker=".", color="0.7", label="the other losses, over eager")
    axes.axhline(1, color="0.5", linewidth=0.8)
    axes.set_xlabel("entries of the batch, N L")
    axes.set_ylabel("speed-up of forward + backward")
    axes.set_title(f"Fused losses on {rows[0]['device_name']}, {rows[0]['threads']} threads", fontsize=10)
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


@dataclass(frozen=True)
class Settings:
    """The losses, sizes and dtypes to measure in section losses."""

    shapes: Sequence[tuple[str, Size, torch.dtype]]
    compile: Sequence[str]
    index_labels: bool


def choose_shapes(names: Sequence[str], options: Options) -> Iterator[tuple[str, Size, torch.dtype]]:
    on_gpu = options.device.type == "cuda"
    for name in names:
        if options.quick:
            sizes = QUICK_SIZES
        elif name in FOREGROUND:
            sizes = (*SIZES, GPU_SIZE) if on_gpu else SIZES
        else:
            sizes = (SIZES[0], GPU_SIZE) if on_gpu else COMMON_SIZES
        for dtype in DTYPES[options.device.type]:
            for size in sizes:
                yield name, size, dtype


def parse(arguments: Sequence[str] | None = None) -> tuple[Options, Settings, Path | None]:
    parser = option_parser("Time and memory of the losses.")
    parser.add_argument("--losses", nargs="+", metavar="NAME", help=f"some of: {', '.join(registry)}")
    parser.add_argument(
        "--compile", nargs="*", default=None, metavar="NAME", help="measure torch.compile for these"
    )
    parser.add_argument("--index-labels", action="store_true", help="give the fused losses (N,) labels")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw speed-up over size (needs matplotlib)")
    given = parser.parse_args(arguments)
    options = read_options(parser, given)
    foreground_first = [*FOREGROUND, *(name for name in registry if name not in FOREGROUND)]
    names = given.losses or ([*FOREGROUND, *QUICK_LOSSES] if options.quick else foreground_first)
    compile = given.compile if given.compile is not None else ["gr"] if options.quick else names
    for name in [*names, *compile]:
        if name not in registry:
            parser.error(f"no loss is called {name!r}; there are {', '.join(registry)}")
    shapes = list(choose_shapes(names, options))
    return options, Settings(shapes, compile, given.index_labels), given.plot


def main() -> None:
    options, settings, picture = parse()
    print(f"{device_name(options.device)}, {options.threads} CPU threads, PyTorch {torch.__version__}")
    warn_if_busy(options.threads)
    rows: list[Row] = []
    for section in (loss_rows(options, settings), linear_rows(options)):
        new = []
        for row in section:
            new.append(row)
            if options.json is not None:
                write_json(options.json, rows + new)  # what is measured stays if a later loss fails
        print_table(HEADERS, [table_cells(row) for row in new])
        print()
        rows += new
    if picture is not None:
        plot(rows, picture)


if __name__ == "__main__":
    main()
