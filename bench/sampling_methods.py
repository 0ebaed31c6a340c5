"""What a sample costs by each method, at which error: on a toy in closed form, and on the digits of the demo.

    python bench/sampling_methods.py [--quick] [--demo FOLDER] [--device cuda] [--json FILE] [--markdown FILE]

Section "error": latents of two standard normals, G the identity, the target a narrower normal off the centre
(M = 21.7, about what the digits have). Every method draws 1,000 samples with 4 to 200 proposals for each, over and
over. ``bias`` is the distance (total variation, over 20 cells) of all draws together from the target, of which
``noise`` is what as many independent samples would show; ``tv_bound`` is what the diagnostics say, the mean over
the runs. ``worth`` is by how many independent samples the runs' histograms are as good as, per sample asked for:
bias, dependence and missing samples all lower it. A step of Langevin chains takes a gradient, about three forward
passes.

Section "rare": eight latents, and a target where the weight of a proposal is 3e8 times the mean at most: chains
that wait for such proposals wait in vain.

Section "digits", with the folder of ``spml-fast demo``: samples a second of the seven joint classes, and the
judge's accuracy, against plain chains of 200 steps, which serve all seven from one pool too.

Rows of ``--json``: section, method, proposals (per sample), bias, noise, tv_bound, r_hat, returned, worth, runs;
or section, method, options, seconds, samples_per_second, speedup, accuracy, worst_accuracy, steps; and device,
device_name, threads.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from common import (
    Options,
    device_name,
    option_parser,
    print_table,
    read_options,
    synchronize,
    verdict,
    warn_if_busy,
    write_json,
)
from torch import Tensor

from spml_fast import IMH, Mixture, Plan, S2MSampler
from spml_fast.sampling import SamplingWarning

CELLS, ASKED = 20, 1000
PROPOSALS = (4, 8, 16, 32, 64, 200)
LANGEVIN_STEPS = (16, 64, 200)

PLAIN = "imh, 200 steps"
DIGITS = {
    PLAIN: dict(n_steps=200),
    "imh, auto": dict(n_steps="auto"),
    "imh, auto, 4 per chain": dict(n_steps="auto", method=IMH(samples_per_chain=4)),
    "rejection, auto": dict(method="rejection"),
    "resample, auto": dict(method="resample"),
    "resample, auto, adapted": dict(method="resample", proposal=Mixture()),
}

Row = dict[str, str | int | float]


@dataclass(frozen=True)
class Toy:
    """Standard normal latents, G the identity, a target of independent normals; a clf that knows."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]

    @property
    def z_dim(self) -> int:
        return len(self.mean)

    def __call__(self, z: Tensor) -> Tensor:
        return z

    def clf(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """One class, and log target - log prior as the validity."""
        mean, scale = (torch.tensor(values, device=x.device) for values in (self.mean, self.scale))
        log_ratio = 0.5 * x.square() - 0.5 * ((x - mean) / scale).square() - scale.log()
        return torch.zeros(len(x), 1, device=x.device), log_ratio.sum(1)

    def cells(self, x: Tensor) -> Tensor:
        """How many samples (n, D) are in each cell along the first latent, all of which the target fills alike."""
        u = torch.special.ndtr((x[:, 0].double() - self.mean[0]) / self.scale[0])
        return torch.bincount((u * CELLS).long().clamp(max=CELLS - 1), minlength=CELLS).double()


TOYS = {"error": Toy((1.8, 0.0), (0.5, 0.8)), "rare": Toy((1.5,) * 8, (0.3,) * 8)}


def measure_error(section: str, method: str, proposals: int, runs: int, options: Options) -> Row:
    toy = TOYS[section]
    sampler = S2MSampler(toy, toy.clf, plan=Plan(device=options.device))
    squares, pooled, returned = 0.0, torch.zeros(CELLS, dtype=torch.float64), 0
    diagnostics = []
    for seed in range(runs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SamplingWarning)  # too few samples are a column of the table
            result = sampler.sample(0, n_samples=ASKED, n_steps=proposals, method=method, seed=seed)
        n = len(result.samples)
        counts = toy.cells(result.samples.cpu())
        squares += float((counts / max(n, 1) - 1 / CELLS).square().sum())
        pooled += counts
        returned += n
        diagnostics.append(result.diagnostics)
    independent = 1 - 1 / CELLS  # E sum (p^ - p)^2 of one independent sample
    cell = math.sqrt((1 / CELLS) * (1 - 1 / CELLS) / returned)
    return {
        "section": section,
        "method": method,
        "proposals": proposals,
        "bias": 0.5 * float((pooled / returned - 1 / CELLS).abs().sum()),
        "noise": 0.5 * CELLS * cell * math.sqrt(2 / math.pi),
        "tv_bound": None if method == "mala" else statistics.mean(d.tv_bound for d in diagnostics),
        "r_hat": statistics.mean(d.r_hat for d in diagnostics) if method == "mala" else None,
        "returned": returned / runs / ASKED,
        "worth": independent / (squares / runs) / ASKED,
        "runs": runs,
    }


def measure_digits(folder: Path, options: Options) -> Iterator[Row]:
    from spml_fast.data.digits import JOINT_CLASSES
    from spml_fast.demo import demo_sampler, load_demo

    G, clf, judge = (module.to(options.device) for module in load_demo(folder))
    sampler = demo_sampler(G, clf)
    n_samples, rounds = (500, 1) if options.quick else (4096, 3)
    sampler.sample_targets([([0], [])], 256, 8, seed=0)  # warm
    seconds: dict[str, list[float]] = {name: [] for name in DIGITS}
    results = {}
    for _ in range(rounds):
        for name, how in DIGITS.items():
            synchronize(options.device)
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SamplingWarning)
                results[name] = sampler.sample_targets(JOINT_CLASSES, n_samples, seed=0, **how)
            synchronize(options.device)
            seconds[name].append(time.perf_counter() - start)
    per_second = {
        name: sum(len(result.samples) for result in results[name]) / statistics.median(seconds[name])
        for name in DIGITS
    }
    for name, how in DIGITS.items():
        with torch.inference_mode():
            accuracies = [
                float((judge(result.samples).argmax(1) == digit).float().mean())
                for digit, result in enumerate(results[name])
            ]
        yield {
            "section": "digits",
            "method": name,
            "options": str(how),
            "seconds": statistics.median(seconds[name]),
            "samples_per_second": per_second[name],
            "speedup": per_second[name] / per_second[PLAIN],
            "accuracy": statistics.mean(accuracies),
            "worst_accuracy": min(accuracies),
            "steps": max(result.diagnostics.n_steps for result in results[name]),
        }


ERROR_HEADERS = (
    "target",
    "method",
    "proposals per sample",
    "bias",
    "noise",
    "bound",
    "R-hat",
    "returned",
    "worth",
)


def error_cells(row: Row) -> list[str]:
    return [
        "normal" if row["section"] == "error" else "rare",
        row["method"],
        str(row["proposals"]),
        f"{row['bias']:.4f}",
        f"{row['noise']:.4f}",
        "" if row["tv_bound"] is None else f"{row['tv_bound']:.2g}",
        "" if row["r_hat"] is None else f"{row['r_hat']:.2f}",
        f"{row['returned']:.0%}",
        f"{row['worth']:.2f}",
    ]


DIGITS_HEADERS = ("method", "proposals per sample", "time", "samples/s", "ratio", "accuracy", "worst class")


def digits_cells(row: Row) -> list[str]:
    return [
        row["method"],
        str(row["steps"]),
        f"{row['seconds']:.2f} s",
        f"{row['samples_per_second']:,.0f}",
        f"{row['speedup']:.1f}x",
        f"{row['accuracy']:.4f}",
        f"{row['worst_accuracy']:.4f}",
    ]


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headers, ["---", *["---:"] * (len(headers) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main() -> None:
    parser = option_parser(__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, metavar="FOLDER", help="that spml-fast demo wrote: section digits")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here as well")
    given = parser.parse_args()
    options = read_options(parser, given)
    warn_if_busy(options.threads)
    runs = 20 if options.quick else 400
    tables = []
    about = {"device": options.device.type, "device_name": device_name(options.device), "threads": options.threads}

    plan = [("error", method, n, runs) for method in ("imh", "rejection", "resample") for n in PROPOSALS]
    plan += [("error", "mala", n, runs // 4) for n in (LANGEVIN_STEPS[:1] if options.quick else LANGEVIN_STEPS)]
    plan += [("rare", method, 200, max(2, runs // 40)) for method in ("imh", "rejection", "resample", "mala")]
    errors = [measure_error(*row, options) for row in plan]
    tables.append((ERROR_HEADERS, [error_cells(row) for row in errors]))
    print_table(*tables[-1])
    digits: list[Row] = []
    if given.demo is not None:
        digits = list(measure_digits(given.demo, options))
        tables.append((DIGITS_HEADERS, [digits_cells(row) for row in digits]))
        print()
        print_table(*tables[-1])
        plain = digits[0]["accuracy"]
        good = [row for row in digits if row["speedup"] >= 5 and abs(row["accuracy"] - plain) <= 0.01]
        print(verdict("5 times as many samples a second at the same accuracy (0.01)", bool(good)))
    if options.json is not None:
        write_json(options.json, [{**row, **about} for row in (*errors, *digits)])
    if given.markdown is not None:
        head = (
            f"{about['device_name']}, {about['threads']} threads; bench/sampling_methods.py says what this is.\n"
        )
        given.markdown.write_text("\n".join([head, *(markdown(*table) for table in tables)]))


if __name__ == "__main__":
    main()
