"""What the benchmark scripts share: fair timing, the device's copy bandwidth and name, tables and JSON."""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or PyTorch's profiler writes two lines for each use

import torch

COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}  # of one buffer: far beyond every cache


@dataclass(frozen=True)
class Options:
    """What every benchmark script takes on its command line."""

    device: torch.device
    threads: int
    quick: bool
    json: Path | None

    @property
    def timing(self) -> Timing:
        return Timing(rounds=5, min_seconds=3e-3) if self.quick else Timing(rounds=11, min_seconds=2e-2)


@dataclass(frozen=True)
class Timing:
    rounds: int
    """Odd, so that the median is one of the measurements."""
    min_seconds: float
    """Each measurement repeats the call until it has run for about so long."""


def parse_options(description: str, arguments: Sequence[str] | None = None) -> Options:
    parser = option_parser(description)
    return read_options(parser, parser.parse_args(arguments))


def option_parser(description: str) -> argparse.ArgumentParser:
    """The options of every script, for one that adds its own; :func:`read_options` checks them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch (default: PyTorch's own choice)")
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds: within a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here as well")
    return parser


def read_options(parser: argparse.ArgumentParser, given: argparse.Namespace) -> Options:
    device = torch.device(given.device)
    if device.type not in COPY_BYTES:
        parser.error(f"--device {given.device}: expected cpu or cuda")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            parser.error(f"--device {given.device}: PyTorch sees no CUDA device")
        torch.cuda.set_device(device)
    if given.threads is not None:
        if given.threads < 1:
            parser.error(f"--threads {given.threads}: expected at least 1")
        torch.set_num_threads(given.threads)
    return Options(device, torch.get_num_threads(), given.quick, given.json)


# --- timing ---------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Wall time of one of ``repeats`` calls, launches and the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


def median_seconds(
    candidates: Mapping[str, Callable[[], object]], device: torch.device, timing: Timing
) -> dict[str, float]:
    """Median time of one call of each candidate.

    The candidates take turns within every round, in an order that is reversed from round to round, so that drift
    of the machine (clocks, neighbours, heat) reaches all of them alike.
    """
    repeats = {name: _warm_up(call, device, timing.min_seconds) for name, call in candidates.items()}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        for i in range(timing.rounds):
            order = list(candidates) if i % 2 == 0 else list(reversed(candidates))
            for name in order:
                seconds[name].append(seconds_per_call(candidates[name], repeats[name], device))
    finally:
        if was_collecting:
            gc.enable()
    return {name: statistics.median(measured) for name, measured in seconds.items()}


def _warm_up(call: Callable[[], object], device: torch.device, min_seconds: float) -> int:
    """Calls until caches, allocator and clocks have settled; returns how many calls make ``min_seconds``."""
    once = seconds_per_call(call, 1, device)  # the first call also loads and allocates: never the estimate
    if once > 1:
        return 1
    repeats, elapsed = 1, 0.0
    while elapsed < min_seconds:
        once = seconds_per_call(call, repeats, device)
        elapsed = once * repeats
        repeats *= 2
    return max(1, math.ceil(min_seconds / once))


# --- the device -----------------------------------------------------------------------------------


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read plus written per second by a large device-to-device copy.

    Into memory that is already there: the page faults of a fresh clone would make the CPU look slow, and every
    fraction of its bandwidth good.
    """
    source = torch.ones(COPY_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    timing = Timing(rounds=5, min_seconds=0.1)  # long enough to raise an idle GPU's clocks before it counts
    seconds = median_seconds({"copy": lambda: target.copy_(source)}, device, timing)["copy"]
    return 2 * source.numel() * source.element_size() / seconds


def device_name(device: torch.device) -> str:
    """Model of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def warn_if_busy(threads: int) -> None:
    """Says so when other work has the processors: OpenMP's threads then wait for one another in every operation,
    eager PyTorch with its many small ones above all, and every ratio comes out far too good."""
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    if load + threads > processors + 0.5:
        print(
            f"WARNING: load {load:.1f} on {processors} processors before this benchmark starts {threads} threads: "
            "not figures to quote"
        )


def last_level_cache_bytes(device: torch.device) -> int:
    """Of a GPU; 0 on the CPU, where it is not asked for."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


def working_set_cache_bytes(device: torch.device) -> int:
    """Of the largest cache that a working set may stay in; 0 where the system does not say."""
    if device.type == "cuda":
        return last_level_cache_bytes(device)
    sizes = (path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    scale = {"K": 2**10, "M": 2**20}
    return max((int(size[:-1]) * scale[size[-1]] for size in sizes if size[-1:] in scale), default=0)


# --- memory ---------------------------------------------------------------------------------------


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Bytes that PyTorch's allocator holds at the worst moment of the call, beyond those that it held before.

    On a GPU the allocator's own peak, on the CPU the largest running sum of what the profiler saw allocated and
    freed. Call it once before: what a first call keeps would count. Never around what is timed.
    """
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]"]
    changes.sort(key=lambda change: change[0])  # stable: of one moment, in the order that they were recorded
    return max(itertools.accumulate((size for _, size in changes), initial=0))


# --- output ---------------------------------------------------------------------------------------


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their longest cell; all but the first two, which are names, flush right."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, ["-" * width for width in widths], *rows):
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip(), flush=True)


def verdict(wanted: str, met: bool) -> str:
    """What was asked for, and whether it was met."""
    return f"{wanted}: {'met' if met else 'NOT MET'}"


def format_time(microseconds: float) -> str:
    for unit, scale in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= scale:
            return f"{microseconds / scale:.3g} {unit}"
    return f"{microseconds:.3g} us"


def write_json(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(list(rows), indent=1) + "\n")
