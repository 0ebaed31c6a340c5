"""A variational autoencoder as the generator: all that S2M asks of one is a standard normal latent.

    pip install ".[train]" && python examples/vae_generator.py

The decoder of a small VAE on 8x8 digits takes the place of the demo's GAN; classifiers, judge and table are the
demo's. What is particular to a VAE is how D_v sees it: the mean of p(x | z) is blurred, and a draw from it has
specks that no scan has. As far as D_v tells them from real images, a few proposals that happen to look real carry
the weight: M grows, the effective sample size falls, chains stay where they are.

The second table compares both, as they are and with ``validity_temperature=4``, which trusts D_v less: chains mix,
and what is drawn is closer to the generator than to the data. Where D_v tells everything apart (a log D_v near 0)
there is no ratio to be read, and no temperature helps as much as the other G.
"""

import argparse
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

import spml_fast as sf
from spml_fast.data.digits import JOINT_CLASSES, joint_class_name, load_digits
from spml_fast.demo import (
    GAMMA_I,
    GAMMA_J,
    DigitGenerator,
    judge_samples,
    metrics_table,
    paper_temperature,
    train_classifiers,
    train_judge,
)
from spml_fast.labels import single_positives
from spml_fast.plots import plot_samples
from spml_fast.sampling import S2MResult, SamplingWarning

Z_DIM = 8
KL_WEIGHT = 4.0
"""Above 1, latents of different digits leave fewer gaps between them, which the prior would fill with no digit."""


class Decoder(nn.Module):
    """G: z -> the mean of p(x | z), or a draw from it, whose noise the sampler has to be told of (stochastic)."""

    def __init__(self, mean: nn.Module, noise: float = 0.0):
        super().__init__()
        self.mean, self.noise, self.z_dim = mean, noise, Z_DIM

    def forward(self, z: Tensor) -> Tensor:
        x = self.mean(z)
        return x + self.noise * torch.randn_like(x) if self.noise else x


def train_vae(images: Tensor, steps: int, seed: int) -> tuple[nn.Module, float]:
    """The decoder's mean and the standard deviation of its noise."""
    torch.manual_seed(seed)
    encoder = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(256, 2 * Z_DIM),
    )
    mean = DigitGenerator(Z_DIM)
    optimizer = torch.optim.Adam([*encoder.parameters(), *mean.parameters()])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for _ in range(steps):
        x = images[torch.randint(len(images), (64,))]
        centre, log_variance = encoder(x + 0.1 * torch.randn_like(x)).chunk(2, dim=1)
        z = centre + (log_variance / 2).exp() * torch.randn_like(centre)
        squared_error = (mean(z) - x).square().mean()
        kl = (centre.square() + log_variance.exp() - 1 - log_variance).sum(1).mean() / 2
        # -log N(x; mean, s^2) at the s that is best for the batch, which spares a weight to be tuned.
        loss = x[0].numel() / 2 * squared_error.log() + KL_WEIGHT * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return mean.eval(), float(squared_error.detach().sqrt())


def comparison(
    name: str, ratio: sf.DensityRatio, temperature: float, metrics: dict, drawn: list[S2MResult]
) -> str:
    """A line of the second table: the worst of the joint classes, but for the accuracy."""
    d = [result.diagnostics for result in drawn]
    return (
        f"{name:<18}{temperature:>6.0f}{ratio.report.heads['D_v'].log_likelihood[1]:>12.3f}"
        f"{metrics['mean_accuracy']:>11.3f}{min(x.ess_per_proposal for x in d):>14.4f}"
        f"{max(x.max_weight_ratio for x in d):>9.0f}{max(x.tv_bound for x in d):>11.1e}"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae-steps", type=int, default=2000, help="batches of the VAE")
    parser.add_argument("--epochs", type=int, default=80, help="of the classifiers")
    parser.add_argument("-n", type=int, default=300, help="chains per joint class")
    parser.add_argument("--steps", type=int, default=200, help="proposals per chain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("vae_generator.png"), metavar="PNG")
    args = parser.parse_args(argv)
    options = {"seed": args.seed, "accelerator": "cpu", "progress": False}

    digits = load_digits()
    images = torch.from_numpy(digits.images)
    labels = torch.from_numpy(single_positives(digits.labels, seed=args.seed))
    judge, _ = train_judge(digits, **options)
    mean, noise = train_vae(images, args.vae_steps, args.seed)

    first, lines = None, []
    for name, G in (("mean", Decoder(mean)), (f"mean + {noise:.2f} noise", Decoder(mean, noise))):
        # sf.train_density_ratio, with the demo's networks and settings. D_v is about one G: each needs its own.
        ratio = train_classifiers(G, images, labels, epochs=args.epochs, **options)
        for temperature in (1.0, 4.0):
            sampler = sf.S2MSampler(
                G,
                ratio.clf,
                weight=sf.MinMax(GAMMA_I, GAMMA_J, paper_temperature, validity_temperature=temperature),
                stochastic=G.noise > 0,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SamplingWarning)  # of chains without a sample, which are misses
                drawn = sampler.sample_targets(JOINT_CLASSES, args.n, args.steps, seed=args.seed)
            metrics = judge_samples(G, judge, drawn, args.seed)
            lines.append(comparison(name, ratio, temperature, metrics, drawn))
            if first is None:
                first = drawn
                print(f"The decoder's mean as G\n\n{ratio.report}\n\n{metrics_table(metrics)}\n")

    print(
        "Both decoders. log D_v is -0.693 where nothing is told apart; ESS, M and bound of the worst joint class"
    )
    titles = ("T_v", "log D_v", "accuracy", "ESS/proposal", "M", "TV bound")
    print("{:<18}{:>6}{:>12}{:>11}{:>14}{:>9}{:>11}".format("G", *titles), *lines, sep="\n")
    named = {joint_class_name(r.joint_class.I, r.joint_class.J): r.samples.numpy() for r in first}
    plot_samples(named, args.out)
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
