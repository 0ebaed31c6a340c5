"""One run over proposals that several targets share.

Proposals of independent Metropolis-Hastings do not depend on the chain's state, so they are generated and
classified in large blocks of steps x chains, one pool of them serves every target, and only what becomes a sample
is decoded. Rejection and importance resampling choose their samples from the same pool, by the same weights.
"""

from __future__ import annotations

import math
import time
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import _ops
from .._models import ClassifierOutput
from .chains import ChainState
from .checkpoint import Checkpoint
from .diagnostics import Timing, diagnose, weight_summary
from .forward import BLOCK_ROWS, Forward
from .length import FIRST_LOOK, ChainLength
from .processes import Shard
from .proposals import Proposal
from .result import S2MResult
from .selection import RESAMPLING_BIAS, accepted, rejection_uniforms, resampled
from .targets import JointClass, Targets, pack_targets


@dataclass(frozen=True)
class RunOptions:
    """What the pools of one call have in common."""

    shard: Shard
    length: ChainLength
    n_samples: int
    method: str
    seed: int
    first_chain: int = 0
    gather: bool = False
    """Whether every process gets the samples of all."""
    checkpoint: Checkpoint | None = None


@dataclass
class Chosen:
    """The proposals that became samples, of all processes' chains: n rows, in the order of the samples."""

    target: Tensor  # (n,)
    chain: Tensor  # (n,)
    step: Tensor  # (n,)
    log_weight: Tensor  # (n,)
    draw: Tensor  # (n,) which of its chain's samples, for the snapshots

    def where(self, mask: Tensor) -> Chosen:
        return Chosen(self.target[mask], self.chain[mask], self.step[mask], self.log_weight[mask], self.draw[mask])


class Pool:
    """The chains of all targets that share their proposals."""

    def __init__(
        self, options: RunOptions, forward: Forward, joint_classes: list[JointClass], proposal: Proposal, name: str
    ) -> None:
        self.options = options
        self.shard = options.shard
        self.forward = forward
        self.joint_classes = joint_classes
        self.proposal = proposal
        self.name = name
        self.plan = Plan(options.length, FIRST_LOOK if options.method == "imh" else 1)
        self.state: ChainState | None = None
        self.targets: Targets | None = None
        self.done = 0  # steps
        self.interrupted = False
        self.seconds = Timing()  # of the run that this one continues
        # What the winners cannot be asked for again, (T, C, ...), and copies of it where the chains gave samples.
        self.kept: dict[str, Tensor] = {}
        self.snapshots: list[dict[str, Tensor]] = []
        # Of all proposals, for methods that choose at the end: log weights (T, S, C), what cannot be had again.
        self.log_weights: list[Tensor] = []
        self.offered: dict[str, list[Tensor]] = {}

    @property
    def chooses_at_the_end(self) -> bool:
        return self.options.method in ("rejection", "resample")

    def run(self, *, gradients_later: bool = False) -> list[S2MResult]:
        """``gradients_later``: tensors that G and clf keep from now on must take part in them."""
        self.started = time.perf_counter()
        with torch.no_grad() if gradients_later else torch.inference_mode():
            self._restore()
            self._go()
            chosen = self._choose()
            latents, x = self._decode(chosen)
        # Copies made outside inference mode, whose own tensors could never take part in training.
        rows = chosen if self.options.gather else chosen.where(self.shard.mine(chosen.chain))
        results = []
        for t, target in enumerate(self.joint_classes):
            mine = torch.nonzero(rows.target == t)[:, 0]
            parts = (x[mine], latents[mine], rows.log_weight[mine], rows.chain[mine])
            results.append(S2MResult(target, *parts, self._diagnose(t, chosen)))
        return results

    def _go(self) -> None:
        """Runs the chains to the end of the plan, or to Ctrl-C."""
        plan = self.plan
        while plan.next is not None and not self.interrupted:
            self.interrupted = not self._advance(plan.next)
            if not self.interrupted and plan.arrive(self._needed() if plan.looks else 0.0):
                self._snapshot()
        self.state.raise_if_invalid(self.shard.first)
        if self.options.checkpoint is not None:
            self._save()
        if not self.snapshots:  # Ctrl-C came first: what the chains have by now
            self._snapshot()
        self.all = ChainState(
            self.shard.gather(self.state.weights, 2), self.shard.gather(self.state.counts, 2), self.state.invalid
        )

    def _timing(self) -> Timing:
        return self.seconds.plus(self.forward, time.perf_counter() - self.started)

    def _advance(self, to: int) -> bool:
        """Run the chains to step ``to``; False if Ctrl-C came first."""
        checkpoint = self.options.checkpoint
        block_steps = self.forward.sampler.block_steps or max(1, BLOCK_ROWS // self.shard.largest)
        while self.done < to:
            steps = min(block_steps, to - self.done)
            interrupted = False
            before = self._proposal_state()
            try:  # of G and clf alone, which take the time: the chains are never left half updated
                latents, extra = self.proposal.block(self.done, steps)
                x, output = self.forward.classify(latents)
            except KeyboardInterrupt:
                interrupted = True
            interrupted, due = self.shard.processes.agree(interrupted, checkpoint is not None and checkpoint.due())
            if interrupted:
                if self.done == 0:
                    raise KeyboardInterrupt
                if before is not None:
                    self.proposal.set_state(before)
                return False
            self._accept(output, extra, steps)
            self._keep(latents, x, steps)
            self.done += steps
            if due:
                self._save()
        return True

    def _accept(self, output: ClassifierOutput, extra: Tensor | None, n_steps: int) -> None:
        class_logits, fake, validity = output
        dtype = _ops.compute_dtype(class_logits.dtype)
        if self.targets is None:
            self.targets = pack_targets(
                self.joint_classes,
                class_logits.shape[1],
                **self.forward.sampler.ratio,
                dtype=dtype,
                device=class_logits.device,
            )
        if self.state is None:
            self.state = ChainState.start(len(self.joint_classes), self.shard.n, dtype, class_logits.device)

        def per_step(rows: Tensor | None) -> Tensor | None:
            return None if rows is None else rows.reshape(n_steps, self.shard.n, *rows.shape[1:])

        label = self.forward.label or 0
        extra = None if extra is None else extra.to(dtype)
        counters = dict(
            seed=self.options.seed, first_chain=self.options.first_chain + self.shard.first, first_step=self.done
        )
        if self.chooses_at_the_end:
            weights = _ops.s2m_log_weight(class_logits, validity, fake, extra, *self.targets, label)
            weights = weights.view(-1, n_steps, self.shard.n)
            self.log_weights.append(weights)
            self.state.scan(weights, **counters)
        else:
            self.state.scan_logits(
                per_step(class_logits),
                per_step(validity),
                self.targets,
                fake_class_logits=per_step(fake),
                proposal_class=label,
                extra_log_weight=per_step(extra),
                **counters,
            )
        if self.done == 0 or class_logits.device.type == "cpu":
            # On a GPU only once the run is over or before it gets going.
            self.state.raise_if_invalid(self.shard.first)

    def _keep(self, latents: Tensor, x: Tensor | None, n_steps: int) -> None:
        n_chains = self.shard.n
        offered = {}
        if x is not None:
            offered["x"] = x
        if self.proposal.recall is None:
            offered["latents"] = latents
        if self.chooses_at_the_end:
            for name, tensor in offered.items():
                self.offered.setdefault(name, []).append(tensor.reshape(n_steps, n_chains, *tensor.shape[1:]))
            return
        if not offered:
            return
        won = self.state.winner >= self.done
        chain = torch.arange(n_chains, device=won.device)
        row = (self.state.winner - self.done).clamp(min=0) * n_chains + chain
        for name, tensor in offered.items():
            if name not in self.kept:
                self.kept[name] = tensor.new_zeros(*won.shape, *tensor.shape[1:])
            for t in range(won.shape[0]):
                mask = won[t].reshape(-1, *[1] * (tensor.ndim - 1))
                self.kept[name][t] = torch.where(mask, tensor[row[t]], self.kept[name][t])

    def _snapshot(self) -> None:
        state = {"winner": self.state.winner, "log_weight": self.state.log_weight, **self.kept}
        self.snapshots.append({name: value.clone() for name, value in state.items()})

    def _needed(self) -> float:
        """Steps after which the target that needs most has what was asked for, as far as the weights tell."""
        options, n = self.options, self.done * self.shard.n_chains
        weights = self.shard.gather(self.state.weights, 2).cpu().numpy()
        if options.method == "rejection":
            found = self._count_accepted(weights[1].max(1))
        needed = 0.0
        for t in range(len(self.joint_classes)):
            ess, ratio, _ = weight_summary(weights[:, t], self.done)
            if options.method == "imh":
                steps = options.length.needed(ratio)
            elif not math.isfinite(ratio):
                steps = math.inf
            elif options.method == "resample":
                steps = self.done * max(options.n_samples, RESAMPLING_BIAS / options.length.tol) / (ess * n)
            else:
                share = options.n_samples / max(found[t], 1)
                # Beyond what is expected to do, or many short looks would follow.
                steps = self.done * max(share if share <= 1 else 1.05 * share, ratio / n / options.length.tol)
            needed = max(needed, math.ceil(steps) if math.isfinite(steps) else steps)
        return needed

    def _count_accepted(self, log_bounds: np.ndarray) -> list[int]:
        """Proposals of all chains that rejection sampling accepts so far, per target."""
        weights = torch.cat(self.log_weights, 1)
        chains = self.options.first_chain + self.shard.first + torch.arange(self.shard.n, device=weights.device)
        uniforms = rejection_uniforms(chains, self.done, self.options.seed)
        per_chain = [accepted(weights[t], uniforms, float(bound)).sum(0) for t, bound in enumerate(log_bounds)]
        return self.shard.gather(torch.stack(per_chain), 1).sum(1).tolist()

    def _choose(self) -> Chosen:
        if self.chooses_at_the_end:
            return self._choose_from_all()
        winner, log_weight = (
            self.shard.gather(torch.stack([snapshot[name] for snapshot in self.snapshots]), 2)
            for name in ("winner", "log_weight")
        )
        draw, target, chain = torch.nonzero(winner >= 0, as_tuple=True)
        rows = (draw, target, chain)
        chosen = Chosen(target, chain, winner[rows].long(), log_weight[rows], draw)
        return chosen.where(_first_of_each(target, len(self.joint_classes), self.options.n_samples))

    def _choose_from_all(self) -> Chosen:
        n_samples, n_chains = self.options.n_samples, self.shard.n_chains
        weights = self.shard.gather(torch.cat(self.log_weights, 1), 2)
        device = weights.device
        chains = self.options.first_chain + torch.arange(n_chains, device=device)
        rows = []
        if self.options.method == "rejection":
            uniforms = rejection_uniforms(chains, self.done, self.options.seed)
        for t in range(len(self.joint_classes)):
            if self.options.method == "rejection":
                mask = accepted(weights[t], uniforms, float(weights[t].max()))
                index = torch.nonzero(mask.reshape(-1))[:n_samples, 0]
            else:
                # The uniforms after those of the accept steps: one moves all teeth of the comb, the others shuffle
                # what it picks in the order of the proposals, or the first samples would be of the first of them.
                tooth, *_ = self._uniforms(chains[:1], self.done)
                picked = torch.from_numpy(resampled(weights[t].reshape(-1).cpu().numpy(), n_samples, float(tooth)))
                order = torch.argsort(self._uniforms(chains[: len(picked)], self.done + 1), stable=True)
                index = picked.to(device)[order]
            rows.append((torch.full_like(index, t), index, weights[t].reshape(-1)[index]))
        target, index, log_weight = (torch.cat(parts) for parts in zip(*rows, strict=True))
        step = torch.div(index, n_chains, rounding_mode="floor")
        return Chosen(target, index % n_chains, step, log_weight, torch.zeros_like(target))

    def _uniforms(self, chains: Tensor, step: int) -> Tensor:
        return _ops.philox_uniform(chains, torch.full_like(chains, step), self.options.seed, dtype=torch.float64)

    def _decode(self, chosen: Chosen) -> tuple[Tensor, Tensor]:
        """Latents and samples of what was chosen; what several rows share is decoded once."""
        mine = chosen.where(self.shard.mine(chosen.chain))
        kept = {}
        chain = mine.chain - self.shard.first
        for name in self.kept:
            snapshots = torch.stack([snapshot[name] for snapshot in self.snapshots])
            kept[name] = snapshots[mine.draw, mine.target, chain]
        for name, blocks in self.offered.items():
            kept[name] = torch.cat(blocks)[mine.step, chain]
        latents = kept["latents"] if "latents" in kept else self.proposal.recall(chain, mine.step)
        if "x" in kept:
            x = kept["x"]
        else:
            proposals, row = torch.unique(mine.step * self.shard.n_chains + mine.chain, return_inverse=True)
            numbers = torch.arange(len(row), device=row.device)
            first = torch.empty_like(proposals).scatter_(0, row, numbers)
            # Many generators break on an empty batch: without any sample, one latent tells the shape of x.
            z = latents[first] if len(first) > 0 else latents.new_zeros(1, *latents.shape[1:])
            x = self.forward.decode(z)
            x = x[row] if len(first) > 0 else x[:0]
        if self.options.gather:
            latents, x = (self.shard.collect(part, chosen.chain) for part in (latents, x))
        return latents, x

    def _diagnose(self, t: int, chosen: Chosen):
        plan = self.plan
        burn_in = min(self.done, plan.burn_in or self.done)  # an interrupted run may not have come so far
        rows = torch.nonzero(chosen.target == t)[:, 0]
        distinct = 0
        if self.chooses_at_the_end:
            distinct = len(torch.unique(chosen.step[rows] * self.shard.n_chains + chosen.chain[rows]))
        return diagnose(
            self.all,
            t,
            self.done,
            self._timing(),
            interrupted=self.interrupted,
            burn_in=burn_in,
            thin=plan.thin,
            method=self.options.method,
            n_samples=len(rows),
            n_distinct=distinct,
        )

    # --- checkpoints: of all processes' chains, so that any number of processes can go on -----------------------

    def _save(self) -> None:
        self.state.raise_if_invalid(self.shard.first)
        gather = self.shard.gather
        state = {
            "done": self.done,
            "seconds": list(astuple(self._timing())),
            "plan": self.plan.state(),
            "weights": gather(self.state.weights, 2),
            "counts": gather(self.state.counts, 2),
            "kept": {name: gather(value, 1) for name, value in self.kept.items()},
            "snapshots": [
                {name: gather(value, 1) for name, value in snapshot.items()} for snapshot in self.snapshots
            ],
            "log_weights": [gather(torch.cat(self.log_weights, 1), 2)] if self.log_weights else [],
            "offered": {name: gather(torch.cat(blocks), 1) for name, blocks in self.offered.items()},
            "generator": self._proposal_state(),
        }
        self.options.checkpoint.save(self.name, state)

    def _proposal_state(self) -> Tensor | None:
        """Of proposals that the user draws; the others know theirs from the number of the step."""
        return self.proposal.state() if self.proposal.recall is None else None

    def _restore(self) -> None:
        checkpoint = self.options.checkpoint
        if checkpoint is None or self.name not in checkpoint.parts:
            return
        state, device = checkpoint.parts[self.name], self.forward.sampler.device

        part = partial(self.shard.restored, device=device)
        self.done = state["done"]
        self.seconds = Timing(*state["seconds"])
        self.plan.set_state(state["plan"])
        self.state = ChainState.start(len(self.joint_classes), self.shard.n, state["weights"].dtype, device)
        self.state.weights, self.state.counts = (part(state[name], 2) for name in ("weights", "counts"))
        self.kept = {name: part(value, 1) for name, value in state["kept"].items()}
        self.snapshots = [
            {name: part(value, 1) for name, value in snapshot.items()} for snapshot in state["snapshots"]
        ]
        self.log_weights = [part(value, 2) for value in state["log_weights"]]
        self.offered = {name: [part(value, 1)] for name, value in state["offered"].items()}
        if state["generator"] is not None:
            self.proposal.set_state(state["generator"])
        self.forward.bar.update(self.done * self.shard.n)


def _first_of_each(target: Tensor, n_targets: int, n: int) -> Tensor:
    """Which rows are among the first ``n`` of their target."""
    mask = torch.zeros_like(target, dtype=torch.bool)
    for t in range(n_targets):
        mask[torch.nonzero(target == t)[:n, 0]] = True
    return mask


class Plan:
    """The next step at which chains of a given length are looked at, or give a sample."""

    def __init__(self, length: ChainLength, first_look: int = FIRST_LOOK) -> None:
        self.length = length
        self.burn_in, self.thin = length.n_steps, length.thin
        if length.automatic:
            self.next: int | None = min(first_look, length.max_steps)
        else:
            self.next = length.n_steps
            self.thin = length.thin or length.n_steps
        self.left = length.samples_per_chain

    def state(self) -> dict[str, Any]:
        """For a checkpoint; the length is that of the call."""
        return {name: value for name, value in vars(self).items() if name != "length"}

    def set_state(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    @property
    def looks(self) -> bool:
        """Whether the weights are needed on arrival."""
        return self.burn_in is None

    def arrive(self, needed: float) -> bool:
        """At step ``next``, of which ``needed`` are: whether it is time for a sample; sets the next one."""
        done = self.next
        if self.burn_in is None:
            if done < min(needed, self.length.max_steps):
                self.next = self.length.next_look(done, needed)
                return False
            self.burn_in = done
            self.thin = self.thin or int(min(needed, done))
        self.left -= 1
        self.next = done + self.thin if self.left else None
        return True
