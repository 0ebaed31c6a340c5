"""Langevin steps in latent space, for joint classes that proposals from elsewhere do not reach.

Source: the Metropolis-adjusted Langevin algorithm with truncated drift (MALTA; Roberts and Tweedie, "Exponential
convergence of Langevin distributions and their discrete approximations", Bernoulli 1996), on the density
p_z(z) w(G(z)) of the latents of a joint class. The step size is tuned to accept 0.574 of the proposals (Roberts
and Rosenthal, 1998) while the chains warm up, and fixed from then on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..chains import State, along
from ..models import Offer
from ..statistics import mixing
from .base import Draws, Kernel, OneStep, Problem
from .imh import IMHState, check_thinning, glance_at, scan, start_chains, summaries

START_STEPS = 16
"""Steps of independent Metropolis-Hastings from whose states the chains start."""

TARGET_ACCEPTANCE = 0.574


@dataclass
class Points:
    """Where the chains of one target are, or would go."""

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


@dataclass
class MALAState(State):
    """The chains of all targets: first those of independent Metropolis-Hastings, then what starts from them."""

    start: IMHState
    z: Tensor = along(1)
    """(T, C, D)"""
    log_weight: Tensor = along(1)
    """(T, C)"""
    gradient: Tensor = along(1)
    """(T, C, D): gradient of log p_z + log w."""
    counts: Tensor = along(2)
    """(2, T, C) int64: accepted, offered with w > 0."""
    log_step: list[float]
    """Logarithm of the step size of each target."""
    met: list[bool]
    """Whether the start met the target."""
    trace: list[Tensor] = along(1, list)
    """Log densities (T, C) of the steps after warm-up."""

    def points(self, target: int) -> Points:
        return Points(self.z[target], self.log_weight[target], self.gradient[target])


@dataclass
class Move(OneStep):
    """One Langevin step of the chains of every target that was met; None for the others."""

    here: list[Points | None]
    forth: list[Tensor | None]
    """Means (C, D) of the proposals."""
    new: list[Points | None]
    at: int


@dataclass(frozen=True)
class MALA(Kernel):
    """Metropolis-adjusted Langevin chains, which follow the gradient of log w through G and clf.

    For joint classes that proposals do not reach. They start from 16 steps of independent Metropolis-Hastings; the
    first half of ``n_steps`` tunes their step size. A step size is tuned over all chains, so what one chain does
    depends on how many there are.

    Attributes:
        samples_per_chain: samples that each chain gives, ``thin`` steps apart. As many fewer chains run.
        thin: n_steps unless given. Fewer leave samples of one chain correlated.
    """

    samples_per_chain: int = 1
    thin: int | None = None
    name: ClassVar[str] = "mala"
    start_steps: ClassVar[int] = START_STEPS
    needs_correction: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_thinning(self)

    def init(self, problem: Problem) -> MALAState:
        shape, dim = (len(problem.joint_classes), problem.shard.n), math.prod(problem.models.z_shape)
        like = dict(dtype=problem.models.dtype, device=problem.models.device)
        return MALAState(
            start=IMHState(start_chains(problem)),
            z=torch.zeros(*shape, dim, **like),
            log_weight=torch.full(shape, -torch.inf, **like),
            gradient=torch.zeros(*shape, dim, **like),
            counts=torch.zeros(2, *shape, dtype=torch.int64, device=problem.models.device),
            log_step=[math.log(dim) / -6] * shape[0],
            met=[],
        )

    def propose(self, problem: Problem, state: MALAState, at: int, n: int) -> Offer | Move:
        if at < START_STEPS:
            return problem.offer(at, min(n, START_STEPS - at))
        noise = problem.normal(at).flatten(1)
        move = Move([], [], [], at)
        for t, met in enumerate(state.met):
            here = forth = new = None
            if met:
                size = math.exp(state.log_step[t])
                here = self._points(problem, t, state.z[t], at) if at == START_STEPS else state.points(t)
                forth = here.z + here.drift(size)
                new = self._points(problem, t, forth + size * noise.to(here.z.dtype), at)
            for parts, part in ((move.here, here), (move.forth, forth), (move.new, new)):
                parts.append(part)
        return move

    def accept(self, problem: Problem, state: MALAState, offer: Offer | Move) -> None:
        if isinstance(offer, Offer):
            scan(problem, state.start, offer)
            if offer.at + offer.steps == START_STEPS:
                self._begin(problem, state)
            return
        log_uniform = problem.log_uniform(offer.at)
        rates = torch.zeros_like(state.log_weight, dtype=torch.float64)
        densities = torch.zeros_like(rates, dtype=torch.float32)
        for t, (here, forth, new) in enumerate(zip(offer.here, offer.forth, offer.new, strict=True)):
            if here is None:
                continue
            size = math.exp(state.log_step[t])
            back = new.z + new.drift(size)
            log_ratio = new.log_density() - here.log_density()
            for sign, ahead, mean in ((1, here.z, back), (-1, new.z, forth)):
                log_ratio -= sign * (ahead.double() - mean.double()).square().sum(1) / (2 * size**2)
            # Weightless states, which rounding at the edge of a joint class may leave to start from, are left for
            # anything; weightless proposals are never accepted.
            log_ratio = torch.where(here.log_weight == -torch.inf, torch.inf, log_ratio)
            log_ratio = torch.where(new.log_weight == -torch.inf, -torch.inf, log_ratio)
            accept = log_uniform <= log_ratio
            state.z[t] = torch.where(accept[:, None], new.z, here.z)
            state.log_weight[t] = torch.where(accept, new.log_weight, here.log_weight)
            state.gradient[t] = torch.where(accept[:, None], new.gradient, here.gradient)
            state.counts[:, t] += torch.stack([accept, new.log_weight > -torch.inf])
            rates[t] = log_ratio.clamp(max=0).exp()
            densities[t] = state.points(t).log_density().float()
        done = offer.at + 1 - START_STEPS
        if done <= (problem.n_steps + 1) // 2:
            for t, rate in enumerate(problem.gather(rates, 1).numpy()):
                state.log_step[t] += (float(rate.mean()) - TARGET_ACCEPTANCE) / math.sqrt(done)
        else:
            state.trace.append(densities)

    def glance(self, problem: Problem, state: MALAState, at: int) -> dict[str, str]:
        if at <= START_STEPS:
            return glance_at(state.start.chains, at)
        rates = state.counts[0].double().mean(1).cpu() / (at - START_STEPS)
        return {"accepted": f"{float(rates.min()):.3f}"}

    def check(self, problem: Problem, state: MALAState) -> None:
        state.start.chains.raise_if_invalid(problem.first)

    def draws(self, problem: Problem, state: MALAState, at: int) -> Draws:
        if at <= START_STEPS:  # Ctrl-C came before the chains began to move
            rows = torch.nonzero(state.start.chains.accepted_step >= 0, as_tuple=True)
            log_weight, latents = state.start.chains.log_weight[rows], self._states(problem, state, *rows)
        else:
            rows = torch.nonzero(state.log_weight > -torch.inf, as_tuple=True)
            log_weight, latents = state.log_weight[rows], state.z[rows].view(-1, *problem.models.z_shape)
        return Draws(*rows, log_weight, kept={"latents": latents})

    def diagnostics(
        self, problem: Problem, state: MALAState, at: int, between: int, chosen: Draws
    ) -> list[dict[str, Any]]:
        found = summaries(problem, state.start.chains, min(at, START_STEPS))
        if at <= START_STEPS:
            return found
        n = (at - START_STEPS) * problem.shard.n_chains
        shares = problem.gather(state.counts, 2).double().sum(2) / n
        trace = torch.stack(state.trace) if state.trace else torch.zeros(0, *state.log_weight.shape)
        trace = problem.gather(trace, 2).numpy()
        for t, fields in enumerate(found):
            if not state.met[t]:
                fields |= dict.fromkeys(("n_steps", "burn_in", "thin"), START_STEPS)
                continue
            ess, r_hat = mixing(trace[:, t])
            fields |= {
                "acceptance_rate": float(shares[0, t]),
                "support_rate": float(shares[1, t]),
                "ess_per_proposal": ess,
                "r_hat": None if math.isnan(r_hat) else r_hat,
                "step_size": math.exp(state.log_step[t]),
                "chains_without_support": 0,
            }
        return found

    def _begin(self, problem: Problem, state: MALAState) -> None:
        """Places the chains where those of independent Metropolis-Hastings are; a chain that has no state there
        begins where another has its own.
        """
        step = state.start.chains.accepted_step
        places = []
        for t in range(step.shape[0]):
            chain = torch.arange(step.shape[1], device=step.device)
            latents = self._states(problem, state, torch.full_like(chain, t), chain).flatten(1)
            has_state = problem.gather(step[t]) >= 0
            everywhere = problem.gather(latents)
            states = everywhere[has_state]
            state.met.append(len(states) > 0)
            if len(states):
                everywhere = states[torch.arange(len(everywhere)) % len(states)]
                everywhere[has_state] = states
            places.append(problem.shard.slice(everywhere).to(step.device))
        state.z = torch.stack(places)
        state.gradient = torch.zeros_like(state.z)
        state.log_weight = torch.full_like(state.log_weight, -torch.inf, dtype=state.start.chains.weights.dtype)

    def _states(self, problem: Problem, state: MALAState, target: Tensor, chain: Tensor) -> Tensor:
        """Latents (n, *z_shape) of the states that the chains began from."""
        if "latents" in state.start.kept:
            return state.start.kept["latents"][target, chain]
        return problem.proposal.recall(chain, state.start.chains.accepted_step[target, chain].clamp(min=0).long())

    def _points(self, problem: Problem, target: int, z: Tensor, at: int) -> Points:
        """Log weights and gradients at z (C, D), for the proposals of step ``at``."""

        def one_batch(first: int, last: int) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                leaf = z[first:last].clone().requires_grad_()
                _, output = problem.models.classify(leaf.view(-1, *problem.models.z_shape))
                log_weight = problem.weights(output).differentiable(target, output)
                if not (log_weight < torch.inf).all():  # NaN included
                    raise ValueError(
                        f"clf returned NaN or infinite logits at Langevin step {at - START_STEPS}; a logit must "
                        "be finite, or -inf for what cannot be"
                    )
                gradient = None
                if log_weight.requires_grad:
                    (gradient,) = torch.autograd.grad(log_weight.sum(), leaf, allow_unused=True)
            if gradient is None:
                raise ValueError(
                    "method='mala' follows the gradient of clf(G(z)) with respect to z, but G or clf cuts it off "
                    "(detach, no_grad, argmax, numpy, ...)"
                )
            # Any drift is corrected for. At the edge of a joint class the gradient exceeds what float16 holds.
            gradient = torch.where(torch.isfinite(gradient), gradient, 0.0)
            return log_weight.detach(), gradient - leaf.detach()

        log_weights, gradients = zip(*problem.in_batches(len(z), one_batch), strict=True)
        return Points(z, torch.cat(log_weights), torch.cat(gradients))
