"""Langevin steps in latent space, for joint classes that proposals from elsewhere do not reach.

Source: the Metropolis-adjusted Langevin algorithm with truncated drift (MALTA; Roberts and Tweedie, "Exponential
convergence of Langevin distributions and their discrete approximations", Bernoulli 1996), on the density
p_z(z) w(G(z)) of the latents of a joint class. The step size is tuned to accept 0.574 of the proposals (Roberts
and Rosenthal, 1998) while the chains warm up, and fixed from then on.
"""

from __future__ import annotations

import math
import time
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _ops, reference
from .diagnostics import Diagnostics, Timing, mixing
from .forward import FIRST_BATCH, Forward
from .pool import Plan, Pool, RunOptions
from .result import S2MResult
from .targets import Targets, pack_targets

START_STEPS = 16
"""Steps of independent Metropolis-Hastings from whose states the chains start."""

TARGET_ACCEPTANCE = 0.574


@dataclass
class _Point:
    """Where all chains are, or would go."""

    z: Tensor  # (C, D)
    log_weight: Tensor  # (C,)
    gradient: Tensor  # (C, D) of log p_z + log w

    def log_density(self) -> Tensor:
        return self.log_weight.double() - 0.5 * self.z.double().square().sum(1)

    def drift(self, step_size: float) -> Tensor:
        """Half a squared step along the gradient, never longer than the noise typically is."""
        move = 0.5 * step_size**2 * self.gradient
        longest = step_size * math.sqrt(self.z.shape[1])
        return move * (longest / move.norm(dim=1, keepdim=True).clamp(min=longest))


class LangevinChains:
    """The chains of one target, that go on from the states ``began`` of chains of independent Metropolis-Hastings.

    Chains that had no state by then begin where another has its.
    """

    def __init__(self, options: RunOptions, start: Pool, began: S2MResult) -> None:
        self.options = options
        self.start = start
        self.began = began
        self.target = began.joint_class
        self.shard = options.shard
        self.forward = Forward(start.forward.sampler, start.forward.label, start.forward.bar)
        self.forward.batch_size = start.forward.batch_size
        self.name = f"{start.name}, {self.target}"
        self.plan = Plan(options.length)
        self.done = 0
        self.interrupted = False
        self.warm_up = (options.length.n_steps + 1) // 2
        self.log_step = math.log(math.prod(self.forward.sampler.z_shape)) / -6
        self.targets: Targets | None = None
        self.point: _Point | None = None
        # Accepted, of positive weight.
        self.counts = torch.zeros(2, self.shard.n, dtype=torch.int64, device=self.forward.sampler.device)
        self.trace: list[Tensor] = []  # log densities (C,) of the steps after warm-up
        self.snapshots: list[tuple[Tensor, Tensor]] = []  # latents (C, D) and log weights (C,)
        self.started = time.perf_counter()
        self.seconds = Timing()  # of the run that this one continues

    def run(self) -> S2MResult:
        if len(self.began.latents) == 0:  # the joint class was not met: no sample, as with every other method
            return self.where_it_began()
        self._restore()
        if self.point is None:
            states, chains = self.began.latents, self.began.chains
            everywhere = states[torch.arange(self.shard.n_chains, device=states.device) % len(states)]
            everywhere[chains] = states
            interrupted = False
            try:
                self.point = self._at(self.shard.part(everywhere).flatten(1))
            except KeyboardInterrupt:
                interrupted = True
            (self.interrupted,) = self.shard.processes.agree(interrupted)
            if self.interrupted:
                return self.where_it_began()
        while self.plan.next is not None and not self.interrupted:
            self.interrupted = not self._advance(self.plan.next)
            if not self.interrupted and self.plan.arrive(0.0):
                self._snapshot()
        if self.options.checkpoint is not None:
            self._save()
        if not self.snapshots:  # Ctrl-C came first: where the chains are by now
            self._snapshot()
        return self._result()

    def where_it_began(self) -> S2MResult:
        """For Ctrl-C before the first step, and for joint classes that were not met."""
        found = len(self.began.latents)
        diagnostics = replace(
            self.began.diagnostics,
            method="mala",
            tv_bound=None,
            interrupted=found > 0,
            n_samples=min(self.options.n_samples, found),
        )
        began = self.began if self.options.gather else self.began.rows(self.shard.mine(self.began.chains))
        return replace(began.first(self.options.n_samples), diagnostics=diagnostics)

    def _advance(self, to: int) -> bool:
        checkpoint = self.options.checkpoint
        chains = (
            self.options.first_chain + self.shard.first + torch.arange(self.shard.n, device=self.point.z.device)
        )
        while self.done < to:
            interrupted, new = False, None
            step = torch.full_like(chains, START_STEPS + self.done)  # the chains' start used those before
            size = math.exp(self.log_step)
            try:
                noise = _ops.philox_normal(
                    chains, step, self.options.seed, self.point.z.shape[1], dtype=self.point.z.dtype
                )
                here = self.point.z + self.point.drift(size)
                new = self._at(here + size * noise)
            except KeyboardInterrupt:
                interrupted = True
            interrupted, due = self.shard.processes.agree(interrupted, checkpoint is not None and checkpoint.due())
            if interrupted:
                return False
            back = new.z + new.drift(size)
            log_ratio = new.log_density() - self.point.log_density()
            for sign, ahead, mean in ((1, self.point.z, back), (-1, new.z, here)):
                log_ratio -= sign * (ahead.double() - mean.double()).square().sum(1) / (2 * size**2)
            # Weightless states, which rounding at the edge of a joint class may leave to start from, are left for
            # anything; weightless proposals are never accepted.
            log_ratio = torch.where(self.point.log_weight == -torch.inf, torch.inf, log_ratio)
            log_ratio = torch.where(new.log_weight == -torch.inf, -torch.inf, log_ratio)
            log_uniform = _ops.philox_uniform(chains, step, self.options.seed, dtype=torch.float64).log()
            accept = log_uniform <= log_ratio
            supported = new.log_weight > -torch.inf
            self.point = _Point(
                torch.where(accept[:, None], new.z, self.point.z),
                torch.where(accept, new.log_weight, self.point.log_weight),
                torch.where(accept[:, None], new.gradient, self.point.gradient),
            )
            self.counts += torch.stack([accept, supported])
            self.done += 1
            if self.done <= self.warm_up:
                rate = self.shard.gather(log_ratio.clamp(max=0).exp()).cpu().numpy().mean()
                self.log_step += (float(rate) - TARGET_ACCEPTANCE) / math.sqrt(self.done)
            else:
                self.trace.append(self.point.log_density().float())
            if due:
                self._save()
        return True

    def _at(self, z: Tensor) -> _Point:
        """Log weights and gradients at z (C, D), a batch at a time."""
        log_weights: list[Tensor] = []
        gradients: list[Tensor] = []
        row = 0
        while row < len(z):
            part = z[row : row + (self.forward.batch_size or FIRST_BATCH)]
            try:
                log_weight, gradient = self._one_batch(part)
            except torch.OutOfMemoryError:
                if self.forward.sampler.batch_size is not None or len(part) == 1:
                    raise
                self.forward.batch_size = max(1, len(part) // 2)
                continue
            log_weights.append(log_weight)
            gradients.append(gradient)
            row += len(part)
        self.forward.bar.update(len(z))
        return _Point(z, torch.cat(log_weights), torch.cat(gradients))

    def _one_batch(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            leaf = z.clone().requires_grad_()
            x, output = self.forward.run(leaf.view(-1, *self.forward.sampler.z_shape))
            self.forward.choose_batch_size(x)
            class_logits, fake, validity = output
            if not all(torch.isfinite(part).all() for part in output if part is not None):
                raise ValueError(
                    f"clf returned NaN or infinite logits at Langevin step {self.done}; every logit must be finite"
                )
            dtype = _ops.compute_dtype(class_logits.dtype)
            if self.targets is None:
                ratio = self.forward.sampler.ratio
                options = dict(dtype=dtype, device=class_logits.device)
                self.targets = pack_targets([self.target], class_logits.shape[1], **ratio, **options)
            inv_temperature = self.targets.inv_temperature[0]
            log_weight = reference.s2m_log_weight(
                class_logits.to(dtype),
                validity.to(dtype),
                self.target.I,
                self.target.J,
                log_gamma=self.targets.log_gamma[0],
                temperature=1 / inv_temperature[0],
                validity_temperature=1 / inv_temperature[1],
                fake_logits=None if fake is None else fake.to(dtype),
                proposal_class=self.forward.label or 0,
            )
            gradient = None
            if log_weight.requires_grad:
                (gradient,) = torch.autograd.grad(log_weight.sum(), leaf, allow_unused=True)
            if gradient is None:
                raise ValueError(
                    "method='mala' follows the gradient of clf(G(z)) with respect to z, but G or clf cuts it off "
                    "(detach, no_grad, argmax, numpy, ...)"
                )
        # Any drift is corrected for. At the edge of a joint class the gradient grows beyond what float16 holds.
        gradient = torch.where(torch.isfinite(gradient), gradient, 0.0)
        return log_weight.detach(), gradient - z

    def _snapshot(self) -> None:
        self.snapshots.append((self.point.z, self.point.log_weight))

    def _result(self) -> S2MResult:
        options, shard = self.options, self.shard
        z, log_weight = (torch.stack(parts) for parts in zip(*self.snapshots, strict=True))
        weights = shard.gather(log_weight, 1)
        draw, chain = (part[: options.n_samples] for part in torch.nonzero(weights > -torch.inf, as_tuple=True))
        here = shard.mine(chain)
        rows = (draw[here], chain[here] - shard.first)
        latents = z[rows].view(-1, *self.forward.sampler.z_shape)
        with torch.no_grad():
            x = self.forward.decode(latents) if len(latents) else self.began.samples[:0]
        if options.gather:
            x, latents = (shard.collect(part, chain) for part in (x, latents))
            here = torch.ones_like(here)
        parts = (x, latents, weights[draw, chain][here], chain[here])
        return S2MResult(self.target, *(part.clone() for part in parts), self._diagnostics(len(chain)))

    def _diagnostics(self, n_samples: int) -> Diagnostics:
        shard = self.shard
        trace = torch.stack(self.trace) if self.trace else torch.zeros(0, shard.n)
        ess, r_hat = mixing(shard.gather(trace, 1).cpu().numpy())
        accepted, supported = shard.gather(self.counts, 1).double().sum(1).tolist()
        n = max(self.done, 1) * shard.n_chains
        timing = self._timing()
        return replace(
            self.began.diagnostics,
            n_steps=self.done,
            acceptance_rate=accepted / n,
            support_rate=supported / n,
            ess_per_proposal=ess,
            r_hat=r_hat if math.isfinite(r_hat) else None,
            step_size=math.exp(self.log_step),
            tv_bound=None,
            chains_without_support=0,
            proposals_per_second=n / timing.total,
            seconds_in_generator=timing.generator,
            seconds_in_classifier=timing.classifier,
            seconds_in_sampler=max(0.0, timing.total - timing.generator - timing.classifier),
            burn_in=min(self.done, self.plan.burn_in),
            thin=self.plan.thin,
            n_samples=n_samples,
            interrupted=self.interrupted,
            method="mala",
        )

    def _timing(self) -> Timing:
        return self.seconds.plus(self.forward, time.perf_counter() - self.started)

    def _save(self) -> None:
        gather = self.shard.gather
        state: dict[str, Any] = {
            "done": self.done,
            "seconds": list(astuple(self._timing())),
            "plan": self.plan.state(),
            "log_step": self.log_step,
            "point": [gather(part) for part in (self.point.z, self.point.log_weight, self.point.gradient)],
            "counts": gather(self.counts, 1),
            "trace": gather(torch.stack(self.trace), 1) if self.trace else None,
            "snapshots": [[gather(part) for part in snapshot] for snapshot in self.snapshots],
        }
        self.options.checkpoint.save(self.name, state)

    def _restore(self) -> None:
        checkpoint = self.options.checkpoint
        if checkpoint is None or self.name not in checkpoint.parts:
            return
        state = checkpoint.parts[self.name]

        part = partial(self.shard.restored, device=self.forward.sampler.device)
        self.done, self.log_step = state["done"], state["log_step"]
        self.seconds = Timing(*state["seconds"])
        self.plan.set_state(state["plan"])
        self.point = _Point(*map(part, state["point"]))
        self.counts = part(state["counts"], 1)
        self.trace = [] if state["trace"] is None else list(part(state["trace"], 1))
        self.snapshots = [tuple(map(part, snapshot)) for snapshot in state["snapshots"]]
