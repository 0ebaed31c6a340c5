"""Runs whose bits may never change, over a generator that is a table: no convolution, no matrix product and no
transcendental function of PyTorch's, so that they do not depend on the machine. The kernels' own are the same bits
everywhere.

    python tests/sampling/golden_cases.py --write      # records what the code at hand draws

``golden.npz`` was recorded from the code before kernels and driver were told apart. Langevin chains and mixtures
need logarithms and exponentials of PyTorch's; their cases are compared where these have the bits that they had
then.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from spml_fast import IMH, MALA, LatentMixture, MinMax, Plan, Rejection, Resample, Run, S2MSampler
from spml_fast.sampling import ChainState, JointClass, SamplingWarning, pack_targets

FILE = Path(__file__).parent / "golden.npz"
FIELDS = ("samples", "latents", "log_weights", "chains")
COUNTS = ("n_chains", "n_steps", "burn_in", "n_samples", "chains_without_support")
MEASURES = ("acceptance_rate", "support_rate", "ess_per_proposal", "max_weight_ratio", "log_mean_weight")

CUTS = [-1.53, -1.15, -0.89, -0.67, -0.49, -0.32, -0.16, 0.0, 0.16, 0.32, 0.49, 0.67, 0.89, 1.15, 1.53]
CLASS_LOGITS = [
    [(7 * s + 3 * c * c + s * c) % 11 * 0.7 - 3.1 - (40.0 if (s + c) % 4 == 0 else 0.0) for c in range(3)]
    for s in range(16)
]
VALIDITY = [(5 * s) % 7 * 0.6 - 1.7 for s in range(16)]


class Table(nn.Module):
    """x (B, 2): the state that the first latent falls into, the next one with a label, and the second latent."""

    z_dim = 3

    def __init__(self, dtype=torch.float32, conditional=False):
        super().__init__()
        self.register_buffer("cuts", torch.tensor(CUTS, dtype=dtype))
        if conditional:
            self.forward = self.with_label

    def forward(self, z):
        return torch.stack([torch.searchsorted(self.cuts, z[:, 0].contiguous()).to(z.dtype), z[:, 1]], 1)

    def with_label(self, z, label):
        x = Table.forward(self, z)
        return torch.stack([(x[:, 0] + label) % 16, x[:, 1]], 1)


class Lookup(nn.Module):
    """Logits of the states; with more classes than three they repeat, shifted."""

    def __init__(self, dtype=torch.float32, classes=3, fake=False):
        super().__init__()
        logits = torch.tensor(CLASS_LOGITS, dtype=torch.float64)
        if classes > 3:
            logits = torch.cat([logits.roll(k, 0) - 0.25 * (k % 5) for k in range(-(-classes // 3))], 1)[
                :, :classes
            ]
        self.register_buffer("logits", logits.to(dtype))
        self.register_buffer("validity", torch.tensor(VALIDITY, dtype=dtype))
        self.fake = fake

    def forward(self, x):
        s = x[:, 0].long()
        fake = self.logits.roll(3, 0)[s] * 0.125 if self.fake else None
        return self.logits[s], fake, self.validity[s]


class Plane(nn.Module):
    """x = 2 z, differentiable."""

    z_dim = 2

    def forward(self, z):
        return 2 * z


class Squares(nn.Module):
    def forward(self, x):
        a, b = x[:, 0], x[:, 1]
        return torch.stack([-(a - 1) * (a - 1), a * b, -(b + 1) * (b + 1)], 1), 0.5 * a - 0.25 * b * b


def table(dtype=torch.float32, conditional=False, classes=3, block_steps=5, stochastic=False, **weight):
    return S2MSampler(
        Table(dtype, conditional),
        Lookup(dtype, classes, conditional),
        conditional=conditional,
        stochastic=stochastic,
        weight=MinMax(**weight),
        plan=Plan(block_steps=block_steps),
    )


def plane(**weight):
    return S2MSampler(Plane(), Squares(), weight=MinMax(**weight), plan=Plan(block_steps=5))


def uniform(n, generator):
    return 6 * torch.rand(n, 3, generator=generator) - 3


def uniform_weighted(n, generator):
    z = uniform(n, generator)
    return z, -z[:, 0] * z[:, 0] * 0.5


def given(steps=20, chains=13):
    return 6 * torch.rand(steps, chains, 3, generator=torch.Generator().manual_seed(7)) - 3


def mixture(full):
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    means = torch.tensor([[0.5, -0.25, 0.0], [-1.0, 0.5, 1.0]], dtype=torch.float64)
    scales = torch.tensor([[0.5, 1.0, 0.75], [1.25, 0.5, 1.0]], dtype=torch.float64)
    if full:
        lower = torch.tensor([[0.0, 0, 0], [0.25, 0, 0], [-0.5, 0.125, 0]], dtype=torch.float64)
        scales = torch.diag_embed(scales) + lower
    return LatentMixture(weights, means, scales, prior_share=0.25)


BOTH = [((0, 1), (2,)), ((0,), ())]
THREE = [((0,), (1,)), ((1, 2), ()), ((2,), (0, 1))]


@dataclass
class Case:
    call: dict[str, Any]
    make: Callable[[], S2MSampler] = table
    targets: list = field(default_factory=lambda: BOTH)
    by_pytorch: bool = False
    """Whether PyTorch's own exponentials enter."""

    def run(self, **options):
        n = None if isinstance(self.call.get("proposal"), torch.Tensor) else 13
        call = {"n_samples": n, "seed": 2**62 + 11} | self.call | options
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SamplingWarning)
            return self.make().sample_targets(self.targets, **call)


def by_role(I, J):
    return 0.5 if len(I) > 1 else [1.0, 2.0, 0.75]


def by_size(I, J):
    return {1: 1.25, 2: 1.0, 3: 0.25}[len(I)]


CASES = {
    "imh": Case(dict(n_steps=23)),
    "imh, float64": Case(dict(n_steps=23), lambda: table(torch.float64)),
    "imh, auto": Case(dict(n_steps="auto", method=IMH(tol=0.1))),
    "imh, several samples": Case(dict(n_steps=9, method=IMH(samples_per_chain=3, thin=4))),
    "imh, first chain": Case(dict(n_steps=23, run=Run(first_chain=2**40))),
    "imh, two steps": Case(dict(n_steps=2)),
    "imh, gamma": Case(dict(n_steps=23), lambda: table(gamma=0.5, gamma_J=[1.0, 1.0, 1.5])),
    "imh, gamma and temperatures by target": Case(
        dict(n_steps=23),
        lambda: table(gamma=by_role, temperature=by_size, validity_temperature=2.0),
        [((0, 1, 2), ()), *THREE],
    ),
    "imh, 130 classes": Case(
        dict(n_steps=23), lambda: table(classes=130), [((0, 67), (128,)), ((129,), (1, 64)), ((5,), ())]
    ),
    "imh, conditional": Case(dict(n_steps=23), lambda: table(conditional=True), THREE),
    "imh, one class": Case(dict(n_steps=23, proposal_class=2), lambda: table(conditional=True), THREE),
    "imh, stochastic": Case(dict(n_steps=23), lambda: table(stochastic=True)),
    "imh, given": Case(dict(proposal=given())),
    "imh, drawn": Case(dict(n_steps=23, proposal=uniform)),
    "imh, drawn with weights": Case(dict(n_steps=23, proposal=uniform_weighted)),
    "imh, mixture": Case(dict(n_steps=23, proposal=mixture(False)), by_pytorch=True),
    "imh, full mixture": Case(dict(n_steps=23, proposal=mixture(True)), by_pytorch=True),
    "rejection": Case(dict(method="rejection")),
    "rejection, fixed": Case(dict(n_steps=23, method="rejection")),
    "rejection, loose": Case(dict(method=Rejection(tol=0.2))),
    "rejection, conditional": Case(dict(method="rejection"), lambda: table(conditional=True), THREE),
    "rejection, stochastic": Case(dict(n_steps=23, method="rejection"), lambda: table(stochastic=True)),
    "rejection, given": Case(dict(proposal=given(), method="rejection")),
    "resample": Case(dict(method="resample")),
    "resample, fixed": Case(dict(n_steps=23, method="resample")),
    "resample, loose, float64": Case(dict(method=Resample(tol=0.2)), lambda: table(torch.float64)),
    "resample, drawn with weights": Case(dict(n_steps=23, method="resample", proposal=uniform_weighted)),
    "resample, 130 classes": Case(dict(n_steps=23, method="resample"), lambda: table(classes=130)),
    "mala": Case(dict(n_steps=12, method="mala"), plane, by_pytorch=True),
    "mala, several samples": Case(
        dict(n_steps=6, method=MALA(samples_per_chain=3, thin=2)), plane, [((0, 1), ())], by_pytorch=True
    ),
}


def scans():
    """Accept steps over the table's logits, without a sampler."""
    steps, chains = 21, 17
    states = torch.arange(steps * chains).mul(2654435761) % 16
    clf = Lookup()
    class_logits, _, validity = clf(states[:, None].float())
    class_logits, validity = class_logits.view(steps, chains, 3), validity.view(steps, chains)
    targets = [JointClass(*target) for target in THREE]
    fused = ChainState.start(3, chains)
    fused.scan_logits(class_logits, validity, pack_targets(targets, 3), seed=5, first_chain=9, first_step=3)
    plain = ChainState.start(1, chains).scan(validity[None], seed=5)
    return {f"scan/{name}.{part}": getattr(state, part).numpy() for name, state in
            (("fused", fused), ("plain", plain)) for part in ("weights", "counts")}  # fmt: skip


def probe():
    """Bits of what PyTorch computes for the cases that ask it."""
    x = (torch.arange(64, dtype=torch.float32) * 0.37 - 9).requires_grad_()
    y = torch.log_softmax(x.view(16, 4), 1).square().sum() + torch.log(-torch.expm1(-x.abs() - 0.1)).sum()
    (gradient,) = torch.autograd.grad(y, x)
    d = x.detach().double()
    parts = (
        torch.log_softmax(x.detach().view(16, 4), 1).flatten().double(),
        gradient.double(),
        d.exp(),
        d.abs().log(),
    )
    solved = torch.linalg.solve_triangular(torch.eye(3, dtype=torch.float64) + 0.25, d[:3, None], upper=False)
    return torch.cat([*parts, torch.logsumexp(d.view(16, 4), 1), solved[:, 0]]).numpy()


def arrays(results):
    """What must stay the same of the results of one call, by name."""
    found = {}
    for t, result in enumerate(results):
        found |= {f"{t}.{name}": getattr(result, name).numpy() for name in FIELDS}
        d = result.diagnostics.to_dict()
        found[f"{t}.counts"] = np.array([d[name] for name in COUNTS])
        found[f"{t}.measures"] = np.array([np.nan if d[name] is None else d[name] for name in MEASURES])
    return found


def record():
    found = {"probe": probe(), **scans()}
    for name, case in CASES.items():
        found |= {f"{name}/{key}": value for key, value in arrays(case.run()).items()}
    return found


if __name__ == "__main__" and "--write" in sys.argv:
    np.savez_compressed(FILE, **record())
    print(f"{FILE}: {FILE.stat().st_size / 1024:.0f} KiB")
