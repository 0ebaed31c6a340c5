"""Every loss on real multi-label data with one simulated positive per training instance, beside plain PyTorch.

    python bench/spml_table.py --data FOLDER [--sets scene yeast ...] [--losses an gr ...] [--seeds 3]
                               [--json FILE] [--markdown FILE] [--quick]

FOLDER holds sets of the Mulan collection (``NAME-train.arff``, ``NAME-test.arff``, ``NAME.xml``). For each set,
loss and seed, which draws the observed positives, the starts and the batches, ``train_classifier`` trains a linear
classifier: batches of 16, 25 epochs, learning rate of 1e-2, 1e-3 and 1e-4 and epoch chosen by mAP on a fifth of
the training rows, dense features standardised. Then plain PyTorch trains with the learning rate that was chosen:
a DataLoader, ``torch.nn.Linear``, the loss as its authors wrote it, Adam; its epoch is chosen alike.

bce, bce_ls and iun know the full labels: ceilings. iu has an observed negative beside the positive, as in the
paper. gpr needs pseudo-labels from a vision-language model and is left out.

Rows of ``--json`` (a run that was interrupted continues): set, loss, seed, lr, epoch, test_map, recovery_map (of
the training labels), estimates_map (of ROLE's estimates), seconds (all learning rates), eager_test_map,
eager_seconds (one learning rate), device, device_name, threads.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from common import device_name, option_parser, print_table, read_options, verdict, write_json
from eager_recipe import train_eager

from spml_fast import LinearPhase, train_classifier
from spml_fast.data import MultiLabelData, Splits, mulan
from spml_fast.labels import observed_matrix
from spml_fast.losses import registry
from spml_fast.metrics import mean_average_precision
from spml_fast.training.recipe import build_loss

SETS = ("scene", "yeast", "emotions", "Corel5k", "bibtex")
FULL = ("bce", "bce_ls", "iun")
LOSSES = (*FULL, *(name for name in registry if name not in (*FULL, "gpr")))
LRS = (1e-2, 1e-3, 1e-4)
BATCH_SIZE, EPOCHS = 16, 25

Row = dict[str, object]


def load(folder: Path, name: str, loss: str, seed: int) -> Splits:
    """The splits of a set, without training rows that have no positive: in this setting every instance has one."""
    splits = mulan(folder, name, seed=seed, negatives=int(loss == "iu"))
    rows = splits.train.labels.any(dim=1).nonzero()[:, 0]
    x = splits.train.x
    x = x[rows] if isinstance(x, torch.Tensor) else x[rows.numpy()]
    labels, observed = splits.train.labels[rows], splits.train.observed[rows]
    train = MultiLabelData(x, labels, observed, splits.train.names, empty_labels="keep")
    return splits._replace(train=train)


def measure(folder: Path, name: str, loss: str, seed: int, epochs: int) -> Row:
    splits = load(folder, name, loss, seed)
    dense = isinstance(splits.train.x, torch.Tensor)
    began = time.perf_counter()
    result = train_classifier(
        splits.train,
        test=splits.test,
        loss=loss,
        linear=LinearPhase(LRS, BATCH_SIZE, epochs, standardize=dense),
        seed=seed,
        accelerator="cpu",
        progress=False,
    )
    seconds = time.perf_counter() - began
    selected, metrics = result.metrics["selected"], result.metrics
    eager_map, eager_seconds = measure_eager(splits, loss, result.rows, selected["lr"], epochs, seed)
    return {
        "set": name,
        "loss": loss,
        "seed": seed,
        "lr": selected["lr"],
        "epoch": selected["epoch"],
        "test_map": metrics["test"]["map"],
        "recovery_map": metrics["recovery"]["map"],
        "estimates_map": metrics["estimates"] and metrics["estimates"]["map"],
        "seconds": seconds,
        "eager_test_map": eager_map,
        "eager_seconds": eager_seconds,
    }


def measure_eager(
    splits: Splits, loss: str, rows: torch.Tensor, lr: float, epochs: int, seed: int
) -> tuple[float, float]:
    """Test mAP and seconds of plain PyTorch with one learning rate."""
    train, test = splits.train, splits.test
    x, test_x = (s.x if isinstance(s.x, torch.Tensor) else torch.from_numpy(s.x.toarray()) for s in (train, test))
    held = torch.ones(len(train), dtype=torch.bool)
    held[rows] = False
    if isinstance(train.x, torch.Tensor):
        mean, deviation = x[rows].mean(0), x[rows].std(0, correction=0)
        deviation[deviation == 0] = 1
        x, test_x = (x - mean) / deviation, (test_x - mean) / deviation
    observed = observed_matrix(train.observed, train.n_labels).float()
    labels = train.labels.float()
    module = build_loss(
        loss,
        {},
        n_samples=len(rows),
        n_labels=train.n_labels,
        epochs=epochs,
        expected_positives=float(labels[rows].sum(1).mean()),
    )
    run = train_eager(
        module,
        x[rows],
        observed[rows],
        labels[rows],
        lr=lr,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        seed=seed,
        validation=(x[held], train.labels[held]),
    )
    with torch.no_grad():
        return mean_average_precision(run.classifier(test_x), test.labels), run.seconds


# --- the table ------------------------------------------------------------------------------------


def summarise(rows: Sequence[Row]) -> Iterator[dict[str, object]]:
    """A line for each set and loss, over the seeds."""
    keys = list(dict.fromkeys((row["set"], row["loss"]) for row in rows))
    for name, loss in keys:
        mine = [row for row in rows if (row["set"], row["loss"]) == (name, loss)]

        def over_seeds(key: str, mine: list[Row] = mine) -> tuple[float, float]:
            values = [100 * float(row[key]) for row in mine if row[key] is not None]
            return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0

        yield {
            "set": name,
            "loss": loss,
            "test": over_seeds("test_map"),
            "eager": over_seeds("eager_test_map"),
            "recovery": over_seeds("recovery_map"),
            "seconds": statistics.median(float(row["seconds"]) for row in mine),
            "eager_seconds": statistics.median(float(row["eager_seconds"]) for row in mine),
            "seeds": len(mine),
        }


HEADERS = ("set", "loss", "test mAP", "plain PyTorch", "difference", "recovered", "s", "plain s, one lr")


def cells(line: dict[str, object]) -> list[str]:
    mean, deviation = line["test"]
    eager, eager_deviation = line["eager"]
    recovered, recovered_deviation = line["recovery"]
    return [
        str(line["set"]),
        str(line["loss"]),
        f"{mean:.2f} ± {deviation:.2f}",
        f"{eager:.2f} ± {eager_deviation:.2f}",
        f"{mean - eager:+.2f}",
        f"{recovered:.2f} ± {recovered_deviation:.2f}",
        f"{line['seconds']:.1f}",
        f"{line['eager_seconds']:.1f}",
    ]


def verdicts(lines: Sequence[dict[str, object]]) -> Iterator[str]:
    """What the table is to show."""
    beaten, ceilings, sets = 0, 0, list(dict.fromkeys(line["set"] for line in lines))
    for name in sets:
        test = {line["loss"]: line["test"][0] for line in lines if line["set"] == name}
        deviation = {line["loss"]: line["test"][1] for line in lines if line["set"] == name}
        single = {loss: value for loss, value in test.items() if loss not in (*FULL, "iu")}
        if "an" not in single or "bce" not in test:
            return
        best = max(single, key=single.__getitem__)
        beaten += best != "an"
        ceilings += test["bce"] + deviation["bce"] >= single[best]
        yield (
            f"{name}: best from single positives {best} {single[best]:.2f}, an {single['an']:.2f}, "
            f"bce {test['bce']:.2f}"
        )
    worst = max(lines, key=lambda line: abs(line["test"][0] - line["eager"][0]))
    apart = abs(worst["test"][0] - worst["eager"][0])
    wanted = min(4, len(sets))
    yield verdict(
        f"a single-positive loss beats an on {beaten} of {len(sets)} sets, >= {wanted}", beaten >= wanted
    )
    ceiling = f"bce with full labels is the ceiling, to one standard deviation, on {ceilings} of {len(sets)} sets"
    yield verdict(ceiling, ceilings == len(sets))
    yield verdict(
        f"within 1.0 mAP of plain PyTorch; the most is {apart:.2f} ({worst['loss']} on {worst['set']})", apart <= 1
    )


def markdown(lines: Sequence[dict[str, object]], device: str) -> str:
    """The table as a document."""
    text = [
        "# Losses on the Mulan sets, one positive label per training instance",
        "",
        f"Linear classifiers, mean ± standard deviation over {lines[0]['seeds']} seeds, mAP in %; "
        f"`bench/spml_table.py` says how. Measured on {device}; seconds (of three learning rates, and of one in "
        "plain PyTorch) are wall time, and worth as much as the machine was idle.",
        "",
        "| " + " | ".join(HEADERS) + " |",
        "| --- | --- |" + " ---: |" * (len(HEADERS) - 2),
    ]
    text += ["| " + " | ".join(cells(line)) + " |" for line in lines]
    return "\n".join([*text, "", *(f"- {line}" for line in verdicts(lines)), ""])


def main() -> None:
    parser = option_parser(__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="of the Mulan files")
    parser.add_argument("--sets", nargs="+", default=SETS, metavar="NAME", help=f"default: {' '.join(SETS)}")
    parser.add_argument("--losses", nargs="+", default=LOSSES, choices=LOSSES, metavar="NAME", help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here as well")
    given = parser.parse_args()
    options = read_options(parser, given)
    if options.device.type != "cpu":
        parser.error("the table is measured on the CPU")
    sets, seeds, epochs = given.sets, given.seeds, EPOCHS
    if options.quick:
        sets, seeds, epochs = sets[:1], 1, 5
    where = {"device": "cpu", "device_name": device_name(options.device), "threads": options.threads}
    rows: list[Row] = []
    if options.json is not None and options.json.exists():
        rows = json.loads(options.json.read_text())
    done = {(row["set"], row["loss"], row["seed"]) for row in rows}
    for name in sets:
        for loss in given.losses:
            for seed in range(seeds):
                if (name, loss, seed) in done:
                    continue
                rows.append(measure(given.data, name, loss, seed, epochs) | where)
                if options.json is not None:
                    write_json(options.json, rows)
            line = [line for line in summarise(rows) if (line["set"], line["loss"]) == (name, loss)]
            print("  ".join(cells(line[0])), flush=True)
    lines = list(summarise(rows))
    print()
    print_table(HEADERS, [cells(line) for line in lines])
    for line in verdicts(lines):
        print(line)
    if given.markdown is not None:
        given.markdown.write_text(
            markdown(lines, f"{where['device_name']}, {where['threads']} thread{'s' * (where['threads'] > 1)}")
        )


if __name__ == "__main__":
    main()
