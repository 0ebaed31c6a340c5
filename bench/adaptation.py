"""Proposals that an effective sample costs, with and without latent adaptation, by number of attributes.

    python bench/adaptation.py [--quick] [--device cuda] [--json FILE] [--plot FILE]

A toy in closed form: latents of eight standard normals, G the identity, attribute k where z_k > 0.5244, which has
probability 0.3, independently of the others; the classifiers know. The joint class has the first 2, 4, 6 or 8
attributes: 0.09 to 6.6e-5 of the prior.

With weights w over N proposals, E[w]^2 / E[w^2] effective samples come from one; its inverse is what an effective
sample costs. Of the prior that is 1 / p(joint class), exactly. Of the adapted proposal it is measured, and the
proposals that adaptation took are shared out over 4,096 effective samples.

Rows of ``--json``: section, attributes, probability, seed, prior_cost, adapted_cost (once adapted),
adaptation_proposals, total_cost (adaptation shared out), fewer (prior_cost / total_cost), stages,
max_weight_ratio, device, device_name, threads.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from common import Options, device_name, option_parser, print_table, read_options, verdict, write_json
from torch import Tensor, nn

from spml_fast import Mixture, Plan, S2MSampler

PROBABILITY, DIM = 0.3, 8
THRESHOLD = float(torch.distributions.Normal(0, 1).icdf(torch.tensor(1 - PROBABILITY, dtype=torch.float64)))
ATTRIBUTES = (2, 4, 6, 8)
SHARED_OVER = 4096  # effective samples
IMPOSSIBLE = -1e4  # the logit of what cannot be

Row = dict[str, str | int | float]


class Identity(nn.Module):
    z_dim = DIM

    def forward(self, z: Tensor) -> Tensor:
        return z


def knowing(x: Tensor) -> tuple[Tensor, Tensor]:
    """Class logits of one positive drawn among those that there are; validity: data have at least one."""
    has = x > THRESHOLD
    return torch.where(has, 0.0, IMPOSSIBLE), torch.where(has.any(dim=1), 0.0, IMPOSSIBLE)


def measure(attributes: int, seed: int, options: Options) -> Row:
    sampler = S2MSampler(Identity(), knowing, plan=Plan(device=options.device))
    target = range(attributes)
    path = sampler.adapt(target, how=Mixture(n_chains=512), seed=seed)
    d = sampler.sample(target, n_samples=SHARED_OVER, n_steps=100, proposal=path.mixture, seed=seed).diagnostics
    probability = PROBABILITY**attributes
    adapted = 1 / d.ess_per_proposal
    total = adapted + path.proposals / SHARED_OVER
    return {
        "section": "adaptation",
        "attributes": attributes,
        "probability": probability,
        "seed": seed,
        "prior_cost": 1 / probability,
        "adapted_cost": adapted,
        "adaptation_proposals": path.proposals,
        "total_cost": total,
        "fewer": 1 / probability / total,
        "stages": len(path.stages),
        "max_weight_ratio": d.max_weight_ratio,
        "device": options.device.type,
        "device_name": device_name(options.device),
        "threads": options.threads,
    }


def medians(rows: Sequence[Row]) -> Iterator[Row]:
    """A row for each number of attributes, over the seeds."""
    for attributes in sorted({row["attributes"] for row in rows}):
        mine = [row for row in rows if row["attributes"] == attributes]
        yield {
            name: statistics.median(row[name] for row in mine) if isinstance(value, int | float) else value
            for name, value in mine[0].items()
        }


HEADERS = ("attributes", "probability", "prior", "adapted", "adaptation", "adapted, all in", "fewer")


def cells(row: Row) -> list[str]:
    return [
        str(row["attributes"]),
        f"{row['probability']:.2g}",
        f"{row['prior_cost']:.4g}",
        f"{row['adapted_cost']:.3g}",
        f"{row['adaptation_proposals']:,.0f}",
        f"{row['total_cost']:.3g}",
        f"{row['fewer']:.3g}x",
    ]


def plot(rows: Sequence[Row], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2))
    axis = figure.subplots()
    x = [row["attributes"] for row in rows]
    for name, label in (
        ("prior_cost", "prior: 1 / probability"),
        ("total_cost", f"adapted, adaptation shared over {SHARED_OVER:,} samples"),
        ("adapted_cost", "adapted, adaptation not counted"),
    ):
        axis.plot(x, [row[name] for row in rows], marker="o", label=label)
    axis.set(yscale="log", xlabel="attributes, each of probability 0.3", ylabel="proposals per effective sample")
    axis.set_xticks(x)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = option_parser(__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the medians")
    parser.add_argument("--seeds", type=int, default=5, help="default: %(default)s")
    given = parser.parse_args()
    options = read_options(parser, given)
    seeds = 1 if options.quick else given.seeds
    rows = [measure(attributes, seed, options) for attributes in ATTRIBUTES for seed in range(seeds)]
    summary = list(medians(rows))
    print_table(HEADERS, [cells(row) for row in summary])
    six = next(row for row in summary if row["attributes"] == 6)
    print(f"six attributes: {verdict('20 times fewer', six['fewer'] >= 20)}")
    growth = summary[-1]["total_cost"] / summary[0]["total_cost"]
    print(f"from 2 to 8 attributes the cost grows {growth:.1f} times, that of the prior {0.3**-6:.0f} times")
    if options.json is not None:
        write_json(options.json, rows)
    if given.plot is not None:
        plot(summary, given.plot)


if __name__ == "__main__":
    main()
