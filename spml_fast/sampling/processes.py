"""Chains shared out among the processes that ``torchrun`` has started.

Chain c draws the same numbers wherever it runs, so how many processes there are changes nothing; what is measured
over all chains, and decides how the run goes on, is gathered in the chains' order first.
"""

from __future__ import annotations

import atexit
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .._checks import shown
from .._processes import rank, world_size

T = TypeVar("T")

ROLL_CALL = timedelta(minutes=5)
"""How long a process waits for the others to come to the same call; they may still be loading their models."""

BLOCK = timedelta(minutes=30)
"""How long it waits for them after a block of proposals."""

PIECE_BYTES = 2**24
"""Rows that all processes get are sent in pieces of about this size, so that no process holds them twice."""


class LostProcessError(RuntimeError):
    """Another process of the run is gone."""


class FailedProcessError(RuntimeError):
    """Another process of the run raised an exception, which ended the run in all of them."""


class EndedProcess(SystemExit):
    """This process was told to end by SIGTERM, and the others know it."""


class Processes:
    """The processes that share a run; by default this one alone.

    Everything goes through gloo, over the CPU: what is exchanged is small beside the forward passes. Every
    exchange begins with a vote (:meth:`largest`), in which a process that failed says so: then all of them raise.
    """

    rank = 0
    size = 1

    def largest(self, *numbers: int) -> tuple[int, ...]:
        """The largest of each of up to three numbers over all processes."""
        return numbers

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make()`` returns in the first process; what it raises there, the others hear of."""
        return make()

    def require_same_call(self, call: dict[str, Any]) -> None:
        """An error where another process was called differently."""

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """What is raised here ends the run in all processes."""
        yield

    def all_gather(self, part: Tensor, counts: list[int]) -> Tensor:
        """Rows of all processes, on the CPU; process r has ``counts[r]`` of them, the first of its ``part``."""
        return part.cpu()

    def gather_to_first(self, part: Tensor, counts: list[int]) -> Tensor | None:
        """The same for the first process alone; None in the others."""
        return self.all_gather(part, counts)


class SeveralProcesses(Processes):
    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._came = False

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

    def largest(self, *numbers: int) -> tuple[int, ...]:
        found, failed = self._vote(numbers, False)
        if failed:
            said = self._say(None)
            process, text = next((number, text) for number, text in enumerate(said) if text is not None)
            raise FailedProcessError(
                f"S2M sampling in process {self.rank} of {self.size} ends because process {process} failed: {text}"
            )
        return found

    def _vote(self, numbers: tuple[int, ...], failed: bool) -> tuple[tuple[int, ...], bool]:
        votes = torch.zeros(4, dtype=torch.int64)
        votes[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        votes[3] = failed
        with self._together():
            dist.all_reduce(votes, dist.ReduceOp.MAX, self.group)
        return tuple(votes[: len(numbers)].tolist()), bool(votes[3])

    def _say(self, text: str | None) -> list[str | None]:
        said: list[str | None] = [None] * self.size
        with self._together():
            dist.all_gather_object(said, text, self.group)
        return said

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        try:
            yield
        except (LostProcessError, FailedProcessError, EndedProcess):
            raise
        except BaseException as error:
            try:
                self._roll_call()
                self._vote((), True)
                self._say(f"{type(error).__name__}: {error}")
            except LostProcessError as lost:
                error.add_note(str(lost))
            error.add_note(f"S2M sampling: raised in process {self.rank} of {self.size}")
            raise

    def from_first(self, make: Callable[[], T]) -> T:
        made = [make() if self.rank == 0 else None]
        self.largest()
        with self._together():
            dist.broadcast_object_list(made, dist.get_global_rank(self.group, 0), self.group)
        return made[0]

    def _roll_call(self) -> None:
        """Waits for all processes to come to the call, once."""
        if self._came:
            return
        try:
            dist.monitored_barrier(self.group, ROLL_CALL, wait_all_ranks=True)
        except RuntimeError as error:
            raise LostProcessError(_absent(self.rank, self.size, error)) from error
        self._came = True

    def require_same_call(self, call: dict[str, Any]) -> None:
        self._roll_call()
        self.largest()
        calls: list[Any] = [None] * self.size
        with self._together():
            dist.all_gather_object(calls, call, self.group)
        for number, other in enumerate(calls):
            different = [name for name in calls[0] | other if other.get(name) != calls[0].get(name)]
            if different:
                name = different[0]
                raise ValueError(
                    f"processes that share the chains of a run must make the same call: {name} is "
                    f"{shown(other.get(name))} in process {number}, {shown(calls[0].get(name))} in process 0 "
                    "(distributed=False lets each sample alone)"
                )

    def all_gather(self, part: Tensor, counts: list[int]) -> Tensor:
        mine = part[: counts[self.rank]].contiguous().cpu()
        rows = mine.new_empty(sum(counts), *mine.shape[1:])
        self.largest()
        row_bytes = math.prod(mine.shape[1:]) * mine.element_size()
        piece = max(1, PIECE_BYTES // max(row_bytes, 1))
        first = 0
        for owner, count in enumerate(counts if row_bytes else []):
            if owner == self.rank:
                rows[first : first + count] = mine
            source = dist.get_global_rank(self.group, owner)
            for at in range(first, first + count, piece):
                with self._together():
                    sent = rows[at : min(at + piece, first + count)]
                    dist.broadcast(sent.view(-1).view(torch.uint8), source, self.group)
            first += count
        return rows

    def gather_to_first(self, part: Tensor, counts: list[int]) -> Tensor | None:
        mine = part[: counts[self.rank]].contiguous().cpu()
        self.largest()
        if self.rank != 0:
            if mine.numel():
                with self._together():
                    dist.send(mine.view(-1).view(torch.uint8), group=self.group, group_dst=0)
            return None
        rows = mine.new_empty(sum(counts), *mine.shape[1:])
        rows[: counts[0]] = mine
        first = counts[0]
        for owner in range(1, self.size):
            here = rows[first : first + counts[owner]]
            if here.numel():
                with self._together():
                    dist.recv(here.view(-1).view(torch.uint8), group=self.group, group_src=owner)
            first += counts[owner]
        return rows


class Shard:
    """The chains ``first`` to ``first + n`` of ``n_chains``, those that this process runs.

    If processes outnumber chains, some duplicate a chain and discard it; ``owned`` is 0 then.
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

    def numbers(self, first_chain: int, device: torch.device) -> Tensor:
        """(n,) int64: numbers of this process's chains, those of the run counting from ``first_chain``."""
        return torch.arange(self.first, self.first + self.n, device=device) + first_chain

    def slice(self, chains: Tensor, dim: int = 0) -> Tensor:
        """This process's part of something that all chains have, along ``dim``."""
        return chains.narrow(dim, self.first, self.n)

    def all_gather(self, part: Tensor, dim: int = 0) -> Tensor:
        """What the chains of all processes have along ``dim``, in their order, on the CPU."""
        return self.processes.all_gather(part.movedim(dim, 0), self.counts).movedim(0, dim).contiguous()

    def gather_to_first(self, part: Tensor, dim: int = 0) -> Tensor | None:
        """The same for the first process alone; None in the others."""
        rows = self.processes.gather_to_first(part.movedim(dim, 0), self.counts)
        return None if rows is None else rows.movedim(0, dim).contiguous()

    def owns(self, chains: Tensor) -> Tensor:
        """Which of ``chains``, numbers of chains of the run, are this process's own."""
        return (chains >= self.first) & (chains < self.first + self.owned)

    def counts_of_all(self, n: int) -> list[int]:
        """How many rows each process has of something, of which this one has ``n``."""
        return self.processes.all_gather(torch.tensor([n]), [1] * self.processes.size).tolist()

    def all_gather_rows(self, rows: Tensor, owners: Tensor) -> Tensor:
        """Rows of all processes: each process's, in their order, where its number stands in ``owners`` (n,)."""
        if self.processes.size == 1:
            return rows
        counts = torch.bincount(owners, minlength=self.processes.size).tolist()
        gathered = self.processes.all_gather(rows, counts)
        if bool((owners.diff() >= 0).all()):
            return gathered
        return gathered[torch.argsort(torch.argsort(owners, stable=True))]

    def owner(self, chains: Tensor) -> Tensor:
        """The processes that run ``chains``."""
        return torch.searchsorted(self.ends, chains.cpu(), right=True)


_groups: dict[str, dist.ProcessGroup] = {}
"""A gloo group of our own beside the default group, by the name of that one."""

_made = itertools.count()
"""Default groups that were made here."""


def processes_of(distributed: bool) -> Processes:
    """The processes of torchrun or of an initialised process group, for a run that is to be shared out."""
    if not distributed or not dist.is_available():
        return Processes()
    for name in [name for name, group in _groups.items() if not _alive(group)]:
        del _groups[name]  # of a default group that was destroyed
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched() or world_size() == 1:
            return Processes()
        try:
            store, number, size = next(dist.rendezvous("env://", timeout=ROLL_CALL))
            # torchrun's store outlives a group, and another one would find the addresses of the one before.
            store = dist.PrefixStore(f"spml_fast {next(_made)}", store)
            dist.init_process_group("gloo", store=store, rank=number, world_size=size, timeout=ROLL_CALL)
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


def _alive(group: dist.ProcessGroup) -> bool:
    """Whether nobody has destroyed the group."""
    try:
        dist.get_process_group_ranks(group)
    except (KeyError, ValueError, RuntimeError):
        return False
    return True


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
