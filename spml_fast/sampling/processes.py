"""Chains shared out among the processes that ``torchrun`` has started.

Chain c draws the same numbers wherever it runs, so how many processes there are changes nothing; what is measured
over all chains, and decides how the run goes on, is gathered in the chains' order first.
"""

from __future__ import annotations

import atexit
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .._processes import rank, world_size

T = TypeVar("T")

ROLL_CALL = timedelta(minutes=5)
"""How long a process waits for the others to come to the same call; they may still be loading their models."""

BLOCK = timedelta(minutes=30)
"""How long it waits for them after a block of proposals."""


class LostProcessError(RuntimeError):
    """Another process of the run is gone."""


class Processes:
    """The processes that share a run; by default this one alone.

    Everything goes through gloo, over the CPU: what is exchanged is small beside the forward passes.
    """

    rank = 0
    size = 1

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, raised by any process."""
        return flags

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make()`` returns, or raises, in the first process."""
        return make()

    def same(self, call: dict[str, Any]) -> None:
        """An error where another process was called differently."""

    def gather(self, part: Tensor, counts: list[int]) -> Tensor:
        """Rows of all processes, of which process r has ``counts[r]``; the first ones of its ``part``."""
        return part


class SeveralProcesses(Processes):
    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    @property
    def group(self) -> dist.ProcessGroup:
        """Looked up, not kept: a group that somebody holds outlives its end, and its threads the interpreter."""
        return _groups.get(dist.group.WORLD.group_name, dist.group.WORLD)

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise LostProcessError(
                f"S2M sampling in process {self.rank} of {self.size}: another process was lost ({error}). A run "
                "needs the chains of all of them; start it again: with a checkpoint it goes on from there"
            ) from error

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        raised = torch.tensor(flags, dtype=torch.int32)
        with self._together():
            dist.all_reduce(raised, dist.ReduceOp.MAX, self.group)
        return tuple(map(bool, raised))

    def from_first(self, make: Callable[[], T]) -> T:
        made: list[Any] = [None, None]
        if self.rank == 0:
            try:
                made[0] = make()
            except Exception as error:  # for all processes, or the others would wait for nothing
                made[1] = error
        with self._together():
            dist.broadcast_object_list(made, dist.get_global_rank(self.group, 0), self.group)
        if made[1] is not None:
            raise made[1]
        return made[0]

    def same(self, call: dict[str, Any]) -> None:
        try:
            dist.monitored_barrier(self.group, ROLL_CALL, wait_all_ranks=True)
        except RuntimeError as error:
            raise LostProcessError(_absent(self.rank, self.size, error)) from error
        calls: list[Any] = [None] * self.size
        with self._together():
            dist.all_gather_object(calls, call, self.group)
        for number, other in enumerate(calls):
            different = [name for name in calls[0] | other if other.get(name) != calls[0].get(name)]
            if different:
                name = different[0]
                raise ValueError(
                    f"processes that share the chains of a run must make the same call: {name} is "
                    f"{other.get(name)!r} in process {number}, {calls[0].get(name)!r} in process 0 "
                    "(distributed=False lets each sample alone)"
                )

    def gather(self, part: Tensor, counts: list[int]) -> Tensor:
        shape = part.shape[1:]
        mine = part[: counts[self.rank]].contiguous().cpu()
        row_bytes = math.prod(shape) * part.element_size()
        if row_bytes == 0:
            return part.new_empty(sum(counts), *shape)
        padded = torch.zeros(max(counts), row_bytes, dtype=torch.uint8)
        padded[: len(mine)] = mine.reshape(-1).view(torch.uint8).view(len(mine), row_bytes)
        parts = [torch.empty_like(padded) for _ in counts]
        with self._together():
            dist.all_gather(parts, padded, self.group)
        rows = torch.cat([rows[:count] for rows, count in zip(parts, counts, strict=True)])
        return rows.view(part.dtype).reshape(len(rows), *shape).to(part.device)


class Shard:
    """The chains ``first`` to ``first + n`` of ``n_chains``, those that this process runs.

    With fewer chains than processes, some run a chain of another's along, and ``owned`` is 0.
    """

    def __init__(self, n_chains: int, processes: Processes) -> None:
        bounds = [r * n_chains // processes.size for r in range(processes.size + 1)]
        self.n_chains = n_chains
        self.processes = processes
        self.counts = [end - start for start, end in pairwise(bounds)]
        self.ends = torch.tensor(bounds[1:])
        self.owned = self.counts[processes.rank]
        self.first = min(bounds[processes.rank], n_chains - 1)
        self.n = max(self.owned, 1)
        self.largest = max(self.counts)

    def part(self, chains: Tensor, dim: int = 0) -> Tensor:
        """This process's part of something that all chains have, along ``dim``."""
        return chains.narrow(dim, self.first, self.n)

    def restored(self, chains: Tensor, dim: int = 0, *, device: torch.device) -> Tensor:
        """This process's part of what a checkpoint has, to go on with: a copy."""
        return self.part(chains, dim).to(device, copy=True).contiguous()

    def gather(self, part: Tensor, dim: int = 0) -> Tensor:
        """What the chains of all processes have, in their order."""
        if self.processes.size == 1:
            return part
        return self.processes.gather(part.movedim(dim, 0), self.counts).movedim(0, dim).contiguous()

    def mine(self, chains: Tensor) -> Tensor:
        """Which of ``chains``, numbers of chains of the run, are this process's own."""
        return (chains >= self.first) & (chains < self.first + self.owned)

    def collect(self, rows: Tensor, chains: Tensor) -> Tensor:
        """Rows of all of ``chains`` (n,), from each process those of its own chains, in their order among them."""
        if self.processes.size == 1:
            return rows
        owner = torch.searchsorted(self.ends, chains.cpu(), right=True)
        order = torch.argsort(owner, stable=True)
        counts = torch.bincount(owner, minlength=self.processes.size).tolist()
        if max(counts) == 0:
            return rows
        gathered = self.processes.gather(rows, counts)
        return torch.empty_like(gathered).index_copy_(0, order.to(gathered.device), gathered)


_groups: dict[str, dist.ProcessGroup] = {}
"""A gloo group of our own beside the default group, by the name of that one."""


def processes_of(distributed: bool) -> Processes:
    """Those that torchrun started, or that share an initialised process group, if the run is to be shared out."""
    if not distributed or not dist.is_available():
        return Processes()
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched() or world_size() == 1:
            return Processes()
        try:
            dist.init_process_group("gloo", timeout=ROLL_CALL)
        except RuntimeError as error:
            raise LostProcessError(_absent(rank(), world_size(), error)) from error
        atexit.register(_close)
        _own_group()
    if dist.get_world_size() == 1:
        return Processes()
    if dist.get_backend() != "gloo":
        _own_group()  # made by all processes together
    return SeveralProcesses()


def _own_group() -> None:
    name = dist.group.WORLD.group_name
    if name not in _groups:
        atexit.register(_groups.clear)
        _groups[name] = dist.new_group(backend="gloo", timeout=BLOCK)


def _close() -> None:
    """While Python shuts down, a thread of gloo's that lets go of a tensor would abort the process."""
    _groups.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


def _absent(rank: int, size: int, error: Exception) -> str:
    return (
        f"S2M sampling in process {rank} of {size}: not all processes came ({error}). Under torchrun they share "
        "the chains, so all must make the same calls; distributed=False lets one process sample alone"
    )
