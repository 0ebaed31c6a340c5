"""A sampling method of one's own: preconditioned Crank-Nicolson moves in latent space.

    python examples/own_kernel.py
    torchrun --nproc-per-node 2 examples/own_kernel.py
    python examples/own_kernel.py --checkpoint run.pt      # killed and started again, it goes on

A chain at z proposes sqrt(1 - b^2) z + b e, e a standard normal. The prior N(0, 1) does not notice such moves, so
accepting with probability min(1, w'/w) keeps prior times weight as it is (Cotter, Roberts, Stuart and White, "MCMC
Methods for Functions: Modifying Old Algorithms to Make Them Faster", Statistical Science 2013). Small moves find
what independent proposals seldom meet, and no gradient of G or clf is needed. docs/own_kernel.md goes through it.
"""

import argparse
import math
from dataclasses import dataclass

import torch

import spml_fast as sf
from spml_fast.sampling import Draws, Kernel, OneStep, State, along


@dataclass
class Walk(State):
    z: torch.Tensor = along(1)  # (T, C, *z_shape): C chains for each of T targets
    log_weight: torch.Tensor = along(1)  # (T, C)
    accepted: torch.Tensor = along(1)  # (T, C)


@dataclass
class Move(OneStep):
    at: int
    z: torch.Tensor
    log_weight: torch.Tensor


@dataclass(frozen=True)
class CrankNicolson(Kernel):
    size: float = 0.3  # b, from 0 (stay) to 1 (independent proposals)
    name = "pcn"

    def init(self, problem):
        shape, like = (len(problem.joint_classes), len(problem.chains)), problem.normal(0)
        weightless = like.new_full(shape, -math.inf)
        return Walk(like.new_zeros(shape + like.shape[1:]), weightless, torch.zeros_like(weightless))

    def propose(self, problem, state, at, n):
        e = problem.normal(at)
        near = math.sqrt(1 - self.size**2) * state.z + self.size * e
        lost = (state.log_weight == -math.inf).view(near.shape[:2] + (1,) * (near.ndim - 2))
        z = torch.where(lost, e, near)  # a chain without a state is offered draws of the prior
        return Move(at, z, torch.stack([problem.log_weights(t, rows) for t, rows in enumerate(z)]))

    def accept(self, problem, state, move):
        accept = problem.log_uniform(move.at) <= move.log_weight - state.log_weight
        state.z[accept] = move.z[accept]
        state.log_weight[accept] = move.log_weight[accept].to(state.log_weight)
        state.accepted += accept

    def draws(self, problem, state, at):
        rows = torch.nonzero(state.log_weight > -math.inf, as_tuple=True)
        return Draws(*rows, state.log_weight[rows], kept={"latents": state.z[rows]})

    def diagnostics(self, problem, state, at, between, chosen):
        accepted = problem.gather(state.accepted, 1).sum(1) / (at * problem.shard.n_chains)
        return [{"acceptance_rate": float(rate)} for rate in accepted]


# --- a generator far from its data, told apart exactly: x ~ N(0, 1) in eight dimensions, data N(1.2, 1) ----------


class FarGenerator(torch.nn.Module):
    z_dim = 8

    def forward(self, z):
        return z


def exact(x):
    return torch.zeros(len(x), 1), (1.2 * x - 0.72).sum(1)  # D_r of one class, and log p_data(x) / p_G(x)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Chains of one's own, beside independent ones.")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--checkpoint")
    options = parser.parse_args(arguments)
    sampler = sf.S2MSampler(FarGenerator(), exact)
    run = sf.Run(checkpoint=options.checkpoint, every=1, gather=True)
    pcn = sampler.sample(0, (), 1000, options.steps, method=CrankNicolson(), seed=0, run=run, progress=True)
    imh = sampler.sample(0, (), 1000, options.steps, seed=0, run=sf.Run(gather=True))
    for result in (pcn, imh):
        d = result.diagnostics
        mean = result.samples.mean().item()
        print(f"{d.method}: acceptance {d.acceptance_rate:.2f}, mean of the samples {mean:.3f} (data: 1.2)")
    return pcn


if __name__ == "__main__":
    main()
