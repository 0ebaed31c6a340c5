"""The loop that runs any kernel: schedule, processes, checkpoints, Ctrl-C, progress, and samples at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .._checks import keep_count, shown
from .chains import State
from .checkpoint import Checkpoint
from .kernels import Draws, Kernel, Problem, Steps, Stopped
from .length import Schedule
from .models import BLOCK_ROWS
from .processes import EndedProcess, LostProcessError, Processes
from .results import Diagnostics, S2MResult

KEPT_BYTES = 2**21
"""Memory for the x of the chains' states, of all targets: where it suffices they are kept, none is made again."""

BLOCK_SECONDS = 1.0
"""A block of steps ends after about this long: then checkpoints are due and processes agree."""


@dataclass(frozen=True)
class Run:
    """How a run is run.

    Attributes:
        checkpoint: file that the chains are written to every ``every`` seconds, and at the end. If it is there,
            the run goes on from it, in any number of processes, and ends with the same samples. One run at a time
            may use it. SIGTERM ends the process once it is written.
        every: seconds.
        gather: each process returns the samples of all of them, in the order of the chains.
        distributed: under ``torchrun``, or in an initialised process group, share the chains out: all processes
            make the call alike, and each returns the samples of its own chains, bit for bit what one process would
            draw. False: this process runs them all.
        first_chain: number of the first chain. Chain c of a run equals chain c of any other with this seed, of
            method "imh" and a fixed number of steps; what is decided over all chains depends on all of them.

    A call without ``seed`` whose checkpoint is there takes the seed of the file: after the run is over, the same
    call returns the same samples again. For others, give another file.
    """

    checkpoint: str | Path | None = None
    every: float = 60.0
    gather: bool = False
    distributed: bool = True
    first_chain: int = 0

    def __post_init__(self) -> None:
        if self.checkpoint is not None and not isinstance(self.checkpoint, (str, Path)):
            raise TypeError(f"checkpoint must be a path, got {self.checkpoint!r}")
        if not isinstance(self.every, Real) or not self.every >= 0:
            raise ValueError(f"every must be a number of seconds, 0 or more, got {self.every!r}")
        for name in ("gather", "distributed"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        keep_count(self, "first_chain", least=0)


class NotBegun(Exception):  # noqa: N818, no error: how a run that did nothing says so
    """Ctrl-C came before the first step of a run, in all processes."""


class Signals:
    """Ctrl-C and SIGTERM, noted while a run goes on and acted upon between whole states.

    A second Ctrl-C raises ``KeyboardInterrupt`` at once. SIGTERM is noted where there is a checkpoint to write
    first; this process ends by it then.

    Attributes:
        interrupted: whether Ctrl-C came, or was raised by G or clf.
        terminated: whether SIGTERM came.
    """

    def __init__(self, wait_for_checkpoint: bool) -> None:
        self.interrupted = self.terminated = False
        self.wait_for_checkpoint = wait_for_checkpoint

    @property
    def stop(self) -> bool:
        return self.interrupted or self.terminated

    @contextlib.contextmanager
    def noted(self) -> Iterator[Signals]:
        before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():  # no other can
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
            if self.wait_for_checkpoint and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.end_if_terminated()

    def end_if_terminated(self) -> None:
        if self.terminated:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)

    def _interrupt(self, *_: object) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def _terminate(self, *_: object) -> None:
        self.terminated = True


@dataclass
class Clock:
    """Seconds of a run, those before it was picked up from a checkpoint included."""

    problem: Problem
    total: float = 0.0
    generator: float = 0.0
    classifier: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def read(self) -> list[float]:
        """[in all, in G, in clf]"""
        models = self.problem.models
        parts = (
            time.perf_counter() - self.started,
            models.generator_time.seconds(),
            models.classifier_time.seconds(),
        )
        return [a + b for a, b in zip((self.total, self.generator, self.classifier), parts, strict=True)]


@dataclass
class Driver:
    """The circumstances of one call of the sampler, in which it runs kernels.

    Attributes:
        gather: whether every process gets the samples of all.
        normal_latents: whether results hold latents in the coordinates in which the prior is standard normal.
    """

    processes: Processes
    signals: Signals
    bar: tqdm
    checkpoint: Checkpoint | None = None
    gather: bool = False
    normal_latents: bool = False

    def run(self, kernel: Kernel, problem: Problem, schedule: Schedule, name: str) -> list[S2MResult]:
        """One result for each target of ``problem``; ``name`` is its part of the checkpoint.

        Raises:
            NotBegun: Ctrl-C came before the first step.
        """
        # A caller's inference mode, in which no kernel could follow gradients, and autocast, which is for G and
        # clf.
        with torch.inference_mode(False), torch.autocast(problem.models.device.type, enabled=False):
            return _PoolRun(self, kernel, problem, schedule, name).results()


class _PoolRun:
    """One pool of proposals on its way through the loop."""

    def __init__(self, driver: Driver, kernel: Kernel, problem: Problem, schedule: Schedule, name: str) -> None:
        self.driver, self.kernel, self.problem, self.schedule, self.name = driver, kernel, problem, schedule, name
        self.signals, self.processes, self.shard = driver.signals, driver.processes, problem.shard
        self.state = kernel.init(problem)
        self.done = 0  # steps, those of the start included
        self.samples: list[Draws] = []  # at each of the schedule's steps
        self.interrupted = False
        self.clock = Clock(problem)
        self.proposal_state: Any = None
        self.deadline = self.shown = 0.0
        problem.stop = self._must_stop
        asked = problem.models.models.plan.block_steps
        self.block_steps = asked or max(1, BLOCK_ROWS // self.shard.largest)
        states = len(problem.joint_classes) * self.shard.n_chains * max(1, problem.models.found.x_bytes)
        if kernel.keeps_states and states <= KEPT_BYTES and not asked and driver.checkpoint is None:
            problem.classified.keeps_x = True
            self.block_steps = min(self.block_steps, 16 * KEPT_BYTES // states)
        if not isinstance(self.state, State):
            raise TypeError(f"{_name(kernel)}.init() must return a State, got {shown(self.state)}")
        self.kinds = self.state.kinds()
        self._check_state()  # an error now rather than after the first steps

    def results(self) -> list[S2MResult]:
        with torch.no_grad():
            self._restore()
            while self.schedule.next is not None and not self.interrupted:
                self._advance(to := self.kernel.start_steps + self.schedule.next)
                if self.done < to:  # Ctrl-C
                    break
                looks = self.schedule.looks
                if self.schedule.arrive(self.kernel.needed(self.problem, self.state, self.done) if looks else 0.0):
                    self._take()
            self._check()
            self._save()
            self._end_if_terminated()
            if self.interrupted and self.done == 0:
                raise NotBegun
            if not self.samples:  # Ctrl-C came first: what the chains have by now
                self._take()
            return self._collect()

    def _check_state(self) -> None:
        """``TypeError`` for a state that a checkpoint could not hold, or would not give back."""
        if self.driver.checkpoint is None:
            return
        self.state.map_chains(lambda tensor, dim: tensor).to_plain()
        now = self.state.kinds()
        for name in self.kinds.keys() | now.keys():
            if self.kinds.get(name) != now.get(name):
                raise TypeError(
                    f"{type(self.state).__name__}.{name}: init() must give a field that holds a state one of the "
                    "same class, or a checkpoint could not be read"
                )

    def _must_stop(self, some_step: bool) -> bool:
        return self.signals.stop or (some_step and time.monotonic() > self.deadline)

    def _advance(self, to: int) -> None:
        """Runs the chains to step ``to``, or to Ctrl-C."""
        checkpoint = self.driver.checkpoint
        while self.done < to and not self.interrupted:
            self.deadline = time.monotonic() + BLOCK_SECONDS
            offer = self._propose(min(self.block_steps, to - self.done))
            due = checkpoint is not None and checkpoint.due()
            stop, due, negative = self.processes.largest(
                self._stop_vote(), due, 0 if offer is None else -offer.steps
            )
            if (steps := -negative) > 0:
                self.kernel.accept(self.problem, self.state, offer.first(steps))
                if self.done == 0:
                    self._check_state()
                self.done += steps
                self._show_progress(steps)
                self.proposal_state = self.problem.proposal.state(self.done)
                if self.done == steps or self.problem.models.device.type == "cpu":
                    # On a GPU only once the run is over or before it gets going.
                    self._check()
            self.interrupted = stop > 0
            if due and not stop:
                self._save()

    def _show_progress(self, steps: int) -> None:
        bar = self.driver.bar
        bar.update(steps * self.shard.n)
        if not bar.disable and time.monotonic() - self.shown >= BLOCK_SECONDS:
            self.shown = time.monotonic()
            bar.set_postfix(self.kernel.glance(self.problem, self.state, self.done))

    def _check(self) -> None:
        self.problem.check_logits()
        self.kernel.check(self.problem, self.state)

    def _propose(self, steps: int) -> Steps | None:
        """Proposals of up to ``steps`` steps: those that G and clf came to, which nothing else interrupts."""
        for _ in range(2):
            try:
                offer = self.kernel.propose(self.problem, self.state, self.done, steps)
                if not isinstance(getattr(offer, "steps", None), int):
                    raise TypeError(
                        f"{_name(self.kernel)}.propose() must return proposals that say their number of steps (an "
                        f"Offer, or a OneStep of your own), got {shown(offer)}"
                    )
                return offer
            except KeyboardInterrupt:
                if self.signals.interrupted:  # the second Ctrl-C
                    raise
                self.signals.interrupted = True  # raised by G or clf; asked again, what is classified comes
            except Stopped:
                return None
        return None

    def _stop_vote(self) -> int:
        return 2 if self.signals.terminated else int(self.signals.interrupted)

    def _end_if_terminated(self) -> None:
        """Ends the process if it got SIGTERM, and the run of the others if another one did."""
        if self.interrupted and self.processes.largest(self._stop_vote())[0] == 2:
            if self.signals.terminated:
                raise EndedProcess  # to where the signal is given its way
            raise LostProcessError(
                f"S2M sampling in process {self.processes.rank} of {self.processes.size}: another process was "
                "told to end (SIGTERM); start the run again, and it goes on from its checkpoint"
            )

    def _take(self) -> None:
        drawn = self.kernel.draws(self.problem, self.state, self.done)
        self._check_draws(drawn)
        if drawn.order is None:
            drawn.order = drawn.chain + self.shard.first
        drawn.order = drawn.order + len(self.samples) * self.shard.n_chains
        if self.schedule.next is not None:  # the chains go on, perhaps in place
            drawn = drawn.map_chains(lambda tensor, _: tensor.clone())
        owned = drawn.chain < self.shard.owned
        self.samples.append(drawn if bool(owned.all()) else drawn.rows(owned))

    def _check_draws(self, drawn: Draws) -> None:
        name, models = f"{_name(self.kernel)}.draws()", self.problem.models
        if not isinstance(drawn, Draws):
            raise TypeError(f"{name} must return Draws, got {shown(drawn)}")
        if "latents" not in drawn.kept and (drawn.step is None or not self.problem.proposal.regenerates):
            why = "without the step that proposed them" if drawn.step is None else "that a function drew"
            raise ValueError(
                f'{name} must return Draws(..., kept={{"latents": ...}}): latents {why} cannot be made again'
            )
        if models.stochastic and "x" not in drawn.kept:
            raise ValueError(
                f"{name} must return Draws(..., kept={{'latents': ..., 'x': ...}}): what a stochastic G made is "
                "not made again"
            )

    # --- checkpoints: the chains of all processes, so that any number of them can go on -----------------------

    def _save(self) -> None:
        checkpoint = self.driver.checkpoint
        if checkpoint is None or self.done == 0:
            return
        self.kernel.check(self.problem, self.state)
        self._check_state()
        state = self.state.map_chains(self.shard.gather_to_first)
        samples = [self._rows_of_all(drawn, self.processes.gather_to_first) for drawn in self.samples]
        checkpoint.save(
            self.name,
            {
                "done": self.done,
                "seconds": self.clock.read(),
                "schedule": self.schedule.to_plain(),
                "batch_sizes": list(self.problem.models.batch_sizes),
                "proposal": self.proposal_state,
                "state": state.to_plain(),
                "samples": [drawn.to_plain() for drawn in samples],
            },
        )

    def _restore(self) -> None:
        checkpoint = self.driver.checkpoint
        saved = None if checkpoint is None else checkpoint.taken(self.name)
        if saved is None:
            return
        device = self.problem.models.device

        def mine(tensor: Tensor, dim: int) -> Tensor:
            return self.shard.slice(tensor, dim).to(device, copy=True).contiguous()

        self.done = saved["done"]
        self.clock = Clock(self.problem, *saved["seconds"])
        self.schedule = Schedule(**saved["schedule"])
        self.state = self.state.from_plain(saved["state"]).map_chains(mine, lambda tensor: tensor.to(device))
        for drawn in (Draws(**plain) for plain in saved["samples"]):
            here = drawn.rows(self.shard.owns(drawn.chain)).map_chains(lambda tensor, _: tensor.to(device))
            here.chain = here.chain - self.shard.first
            self.samples.append(here)
        self.proposal_state = saved["proposal"]
        self.problem.proposal.resume(self.done, self.proposal_state)
        after = self.schedule.last + (self.kernel.start_steps if self.schedule.last else 0)
        self.problem.classified.resume(self.done, saved["batch_sizes"], after)
        self.driver.bar.update(self.done * self.shard.n)

    # --- samples ----------------------------------------------------------------------------------------------

    def _rows_of_all(self, drawn: Draws, gather: Callable[[Tensor, list[int]], Any]) -> Draws:
        """The rows of all processes, whose chains are numbered over all of them, on the CPU."""
        counts = self.shard.counts_of_all(len(drawn.chain))
        rows = replace(drawn, chain=drawn.chain + self.shard.first)
        return rows.map_chains(lambda tensor, _: gather(tensor, counts))

    def _collect(self) -> list[S2MResult]:
        """The first samples of each target in their order, decoded."""
        mine = Draws.join(self.samples)
        everything = self._rows_of_all(replace(mine, kept={}), self.processes.all_gather)
        chosen, here = [], []
        owned = self.shard.owns(everything.chain)
        number = torch.cumsum(owned, 0) - 1  # of this process's rows among its own
        for t in range(len(self.problem.joint_classes)):
            rows = torch.nonzero(everything.target == t)[:, 0]
            rows = rows[torch.argsort(everything.order[rows], stable=True)][: self.problem.n_samples]
            chosen.append(rows)
            here.append(number[rows[owned[rows]]])
        mine = mine.rows(torch.cat(here).to(mine.chain.device))
        latents, samples = self._decode(mine, [len(rows) for rows in here])
        results = []
        taken = everything.rows(torch.cat(chosen))
        diagnostics = self._diagnostics(taken)
        for t, rows in enumerate(chosen):
            chains = everything.chain[rows]
            parts = [samples[t], latents[t], everything.log_weight[rows], chains]
            if self.driver.gather:
                owners = self.shard.owner(chains)
                parts[:2] = (self.shard.all_gather_rows(part, owners).to(part.device) for part in parts[:2])
            else:
                parts[2:] = (part[self.shard.owns(chains)] for part in parts[2:])
            device = samples[t].device
            parts[2:] = (part.to(device, copy=True) for part in parts[2:])
            parts[3] = parts[3] + self.problem.first_chain
            results.append(S2MResult(self.problem.joint_classes[t], *parts, diagnostics[t]))
        return results

    def _decode(self, drawn: Draws, counts: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Latents and samples of each target, of which there are ``counts``; equal proposals are decoded once."""
        problem, models = self.problem, self.problem.models
        latents = drawn.kept.get("latents")
        if latents is None:
            latents = problem.proposal.recall(drawn.chain, drawn.step)
        if "x" in drawn.kept:
            return _apart(self._results_latents(latents), counts), _apart(drawn.kept["x"], counts)
        if drawn.step is None:
            row = order = torch.arange(len(drawn.chain), device=drawn.chain.device)
            first = ends = row
        else:
            proposal, row = torch.unique(drawn.step * self.shard.n + drawn.chain, return_inverse=True)
            order = torch.argsort(row, stable=True)
            ends = torch.cumsum(torch.bincount(row, minlength=len(proposal)), 0)
            first = order[ends - torch.bincount(row, minlength=len(proposal))]
        samples: list[Tensor] = []
        # Many generators break on an empty batch: without any sample, one latent tells the shape of x.
        n = max(len(first), 1)
        z = latents if len(first) else torch.zeros(1, *models.z_shape, dtype=models.dtype, device=models.device)
        first = first if len(first) else torch.zeros(1, dtype=torch.int64, device=z.device)
        local = torch.cat([torch.arange(k) for k in counts]).to(first.device)
        for a, b, x in models.batches(0, n, lambda a, b: models.generate(z[first[a:b]]), decoding=True):
            samples = samples or [x.new_empty(k, *x.shape[1:]) for k in counts]
            if not sum(counts):
                break
            rows = order[(ends[a - 1] if a else 0) : ends[b - 1]] if drawn.step is not None else order[a:b]
            for t, sample in enumerate(samples):
                of_t = rows[drawn.target[rows] == t]
                sample[local[of_t]] = x[row[of_t] - a]
        return _apart(self._results_latents(latents), counts), samples

    def _results_latents(self, latents: Tensor) -> Tensor:
        return latents if self.driver.normal_latents else self.problem.models.latents(latents)

    def _diagnostics(self, chosen: Draws) -> list[Diagnostics]:
        kernel, schedule, n_chains = self.kernel, self.schedule, self.shard.n_chains
        steps = self.done - kernel.start_steps if self.done > kernel.start_steps else self.done
        burn_in = min(steps, schedule.burn_in or steps)  # an interrupted run may not have come so far
        thin = schedule.thin or burn_in
        total, generator, classifier = self.clock.read()
        between = burn_in if kernel.samples_per_chain == 1 else min(burn_in, thin)
        fields = dict(
            n_chains=n_chains,
            n_steps=steps,
            burn_in=burn_in,
            thin=thin,
            method=kernel.name,
            interrupted=self.interrupted,
            proposals_per_second=n_chains * steps / total,
            seconds_in_generator=generator,
            seconds_in_classifier=classifier,
            seconds_in_sampler=max(0.0, total - generator - classifier),
            plan=replace(self.problem.models.plan, batch_size=self.problem.models.batch_sizes),
        )
        found = kernel.diagnostics(self.problem, self.state, self.done, between, chosen)
        n_targets = len(self.problem.joint_classes)
        if (
            not isinstance(found, (list, tuple))
            or len(found) != n_targets
            or not all(isinstance(f, dict) for f in found)
        ):
            raise TypeError(
                f"{_name(kernel)}.diagnostics() must return {n_targets} dicts, one for each target, in a list"
            )
        n_samples = torch.bincount(chosen.target, minlength=n_targets).tolist()
        return [Diagnostics(**{**fields, "n_samples": n, **own}) for n, own in zip(n_samples, found, strict=True)]


def _name(kernel: Kernel) -> str:
    return type(kernel).__name__


def _apart(rows: Tensor, counts: list[int]) -> list[Tensor]:
    """The rows of each target, none of which holds the memory of all."""
    return [rows] if len(counts) == 1 else [part.clone() for part in rows.split(counts)]
