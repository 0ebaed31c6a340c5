"""Measuring how G and clf are best run, where the plan's rule is not good enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .._models import channels_last
from .models import BatchedModels, Models
from .plan import FORMATS, Plan

SIZES = (8, 16, 32, 64, 128, 256)

ROUNDS = 3


def tune(models: Models, progress: bool) -> Plan:
    """The plan with the batch sizes and memory formats, of those tried, that took the least time a row.

    Candidates take turns, so that drift of the machine reaches all alike; what the user's plan says stays.
    """
    sizes, formats = models.plan.batch_size or (None, None), models.plan.memory_format or (None, None)
    chosen: list[tuple[int, str]] = []
    z = models.trial_normals(max(SIZES), 0)
    with torch.no_grad():
        run = models.given(0 if models.conditional else None)
        z, x = run.latents(z), run.generate(z).clone()
        for part in range(2):
            tried = [
                (size, memory_format)
                for size in ((sizes[part],) if sizes[part] else SIZES)
                for memory_format in ((formats[part],) if formats[part] else FORMATS)
            ]
            seconds: dict[tuple[int, str], list[float]] = {way: [] for way in tried}
            for round_ in tqdm(range(ROUNDS + 1), desc=("G", "clf")[part], disable=not progress, leave=False):
                for way in tried if round_ % 2 else reversed(tried):
                    if way in seconds:
                        try:
                            taken = _seconds_a_row(models, part, way, (z, x)[part])
                        except torch.OutOfMemoryError:
                            del seconds[way]
                            continue
                        if round_:  # the first round warms up
                            seconds[way].append(taken)
            chosen.append(min(seconds, key=lambda way: median(seconds[way])))
    return replace(
        models.plan, batch_size=tuple(size for size, _ in chosen), memory_format=tuple(way for _, way in chosen)
    )


def _seconds_a_row(models: Models, part: int, way: tuple[int, str], rows: Tensor) -> float:
    """Seconds that a row of one batch takes in G (part 0) or in clf (part 1)."""
    size, memory_format = way
    found = models.found
    plan = replace(found.plan, batch_size=size, memory_format=memory_format)
    run = BatchedModels(models, 0 if models.conditional else None, None, replace(found, plan=plan))
    call: Callable[[Tensor], object] = run.generate if part == 0 else run.call_clf
    batch = rows[:size]
    with channels_last(models.both[part]) if memory_format == "channels_last" else nullcontext():
        _wait(models.device)
        start = time.perf_counter()
        call(batch)
        _wait(models.device)
        return (time.perf_counter() - start) / len(batch)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
