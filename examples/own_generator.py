"""S2M sampling with a generator and classifiers of one's own, in two dimensions: runs in ten seconds on a CPU.

    pip install ".[train]" && python examples/own_generator.py

Three discs overlap in the plane; a point has attribute k if it lies in disc k. Each training point carries one of
its attributes, never two. The generator knows nothing of attributes: it draws from a wide Gaussian.
"""

import numpy as np
import torch
from torch import nn

import spml_fast as sf
from spml_fast.labels import single_positives

CENTRES = np.array([[-0.6, 0.0], [0.6, 0.0], [0.0, 1.0]])
RADIUS = 1.0


def attributes(points: np.ndarray) -> np.ndarray:
    """(n, 2) points -> (n, 3) bool: which discs they lie in."""
    return np.linalg.norm(points[:, None] - CENTRES, axis=2) < RADIUS


def training_data(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points in the union of the discs, and one attribute each."""
    points = rng.uniform(-2.5, 2.5, (10 * n, 2)).astype(np.float32)
    points = points[attributes(points).any(axis=1)][:n]
    return points, single_positives(attributes(points), seed=rng)


class Generator(nn.Module):
    """A stand-in for any pretrained generator: all that is asked of it is z_dim and forward(z)."""

    z_dim = 2

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return 1.2 * z


def main() -> None:
    torch.manual_seed(0)
    x, labels = training_data(6000, np.random.default_rng(0))
    G = Generator()
    trunk = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU())
    fit = sf.DensityRatioFit(epochs=60, lr=3e-3, accelerator="cpu")
    ratio = sf.train_density_ratio(G, x, labels, heads=sf.Heads(trunk), fit=fit, progress=False)
    print(ratio.report, "\n")

    sampler = sf.S2MSampler(G, ratio.clf, weight=sf.MinMax(gamma=0.7, gamma_J=1.0))
    targets = [((0,), (1, 2)), ((0, 1), (2,)), ((0, 1, 2), ())]
    for result in sampler.sample_targets(targets, n_samples=2000, n_steps=200, seed=0):
        I, J = result.joint_class.I, result.joint_class.J
        has = attributes(result.samples.numpy())
        right = has[:, list(I)].all(axis=1) & ~has[:, list(J)].any(axis=1)
        d = result.diagnostics
        quality = f"M {d.max_weight_ratio:.0f}, TV bound {d.tv_bound:.1e}"
        print(f"has {I}, not {J}: {right.mean():.1%} of samples right, {quality}")


if __name__ == "__main__":
    main()
