"""Time of training against the same training in plain PyTorch.

    python bench/training_throughput.py [--quick] [--device cuda] [--threads N] [--json FILE] [--losses NAME...]

Sections, each measured side by side in one run:

linear    ``train_classifier`` in the linear phase, the grid of the paper (2 batch sizes x 4 learning rates x 25
          epochs; --quick: 2 epochs) on 5,717 x 2,048 random features with 20 labels, against the same grid run by
          run with a DataLoader, ``torch.nn.Linear``, the loss as its authors wrote it and Adam; both choose by
          mAP on a fifth of the rows, after every epoch
finetune  (on a GPU) a step of fine-tuning a ResNet-18-size network on 32 x 32 images with three labels, fused loss
          against eager loss, everything else the same, by batch size

Rows of ``--json``: section, loss, device, device_name, threads, rows, labels, features or batch_size, epochs,
eager_seconds and fused_seconds (of the whole grid) or eager_us and fused_us (of a step), speedup, and in section
linear eager_test_map and fused_test_map.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from common import (
    Options,
    device_name,
    median_seconds,
    option_parser,
    print_table,
    read_options,
    verdict,
    warn_if_busy,
    write_json,
)
from eager_recipe import EagerLoss, train_eager
from torch import Tensor, nn

from spml_fast import LinearPhase, train_classifier
from spml_fast.data import synthetic
from spml_fast.labels import observed_matrix
from spml_fast.metrics import mean_average_precision
from spml_fast.training.prepare import split_rows
from spml_fast.training.recipe import build_loss, takes_expected_positives

LRS, BATCH_SIZES, EPOCHS = (1e-2, 1e-3, 1e-4, 1e-5), (8, 16), 25
EXPECTED_POSITIVES = 1.5
FINETUNE_BATCHES = (16, 128)

Row = dict[str, str | int | float | None]


def with_expected_positives(loss: str) -> str | dict[str, str | float]:
    """The loss, with the expected number of positives where it asks for it: the same in both columns."""
    return {"name": loss, "expected_positives": EXPECTED_POSITIVES} if takes_expected_positives(loss) else loss


def linear_row(loss: str, epochs: int) -> Row:
    """The grid of the linear phase, by train_classifier and in plain PyTorch."""
    splits = synthetic(positives_per_row=EXPECTED_POSITIVES)
    train, test = splits.train, splits.test
    began = time.perf_counter()
    result = train_classifier(
        train,
        test=test,
        loss=with_expected_positives(loss),
        linear=LinearPhase(LRS, BATCH_SIZES, epochs),
        accelerator="cpu",
        progress=False,
    )
    fused_seconds = time.perf_counter() - began

    began = time.perf_counter()
    rows, held = split_rows(len(train), 0.2)
    observed, labels = observed_matrix(train.observed, train.n_labels).float(), train.labels.float()
    runs = []
    for batch_size in BATCH_SIZES:
        for lr in LRS:
            module = build_loss(
                loss,
                {},
                n_samples=len(rows),
                n_labels=train.n_labels,
                epochs=epochs,
                expected_positives=EXPECTED_POSITIVES,
            )
            run = train_eager(
                module,
                train.x[rows],
                observed[rows],
                labels[rows],
                lr=lr,
                batch_size=batch_size,
                epochs=epochs,
                seed=0,
                validation=(train.x[held], train.labels[held]),
            )
            runs.append(run)
    best = max(runs, key=lambda run: run.validation_map)
    with torch.no_grad():
        eager_map = mean_average_precision(best.classifier(test.x), test.labels)
    eager_seconds = time.perf_counter() - began
    return {
        "section": "linear",
        "loss": loss,
        "rows": len(train),
        "labels": train.n_labels,
        "features": train.x.shape[1],
        "epochs": epochs,
        "eager_seconds": eager_seconds,
        "fused_seconds": fused_seconds,
        "speedup": eager_seconds / fused_seconds,
        "eager_test_map": eager_map,
        "fused_test_map": result.metrics["test"]["map"],
    }


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, wider, 3, stride, 1, bias=False),
            nn.BatchNorm2d(wider),
            nn.ReLU(),
            nn.Conv2d(wider, wider, 3, 1, 1, bias=False),
            nn.BatchNorm2d(wider),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or channels != wider:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, wider, 1, stride, bias=False), nn.BatchNorm2d(wider))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.convolutions(x) + self.shortcut(x))


def resnet18(n_labels: int) -> nn.Module:
    """ResNet-18 as it is used for 32 x 32 images: a 3 x 3 convolution first, no pooling before the blocks."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    channels = 64
    for wider, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(channels, wider, stride), Block(wider, wider, 1)]
        channels = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, n_labels))


def finetune_row(loss: str, batch_size: int, options: Options) -> Row:
    """A step of fine-tuning with the fused loss and with the eager one: forward, loss, backward, Adam."""
    device, n_labels = options.device, 3
    torch.manual_seed(0)
    x = torch.randn(batch_size, 3, 32, 32, device=device)
    observed = torch.randint(n_labels, (batch_size,), device=device)
    dense = observed_matrix(observed, n_labels).float()
    rows = torch.arange(batch_size, device=device)

    def step(fused: bool) -> Callable[[], None]:
        model = resnet18(n_labels).to(device)
        module = build_loss(
            loss,
            {},
            n_samples=batch_size,
            n_labels=n_labels,
            epochs=10,
            expected_positives=EXPECTED_POSITIVES,
        ).to(device)
        eager = EagerLoss(module, dense, seed=0)
        optimizer = torch.optim.Adam(model.parameters(), 1e-5, fused=True)

        def run() -> None:
            z = model(x)
            value = module(z, observed) if fused else eager(z, dense, dense, rows)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

        return run

    seconds = median_seconds({"fused": step(True), "eager": step(False)}, device, options.timing)
    return {
        "section": "finetune",
        "loss": loss,
        "labels": n_labels,
        "batch_size": batch_size,
        "eager_us": 1e6 * seconds["eager"],
        "fused_us": 1e6 * seconds["fused"],
        "speedup": seconds["eager"] / seconds["fused"],
    }


def measure(options: Options, losses: Sequence[str]) -> Iterator[Row]:
    where = {
        "device": options.device.type,
        "device_name": device_name(options.device),
        "threads": options.threads,
    }
    if options.device.type == "cpu":
        for loss in losses:
            yield linear_row(loss, 2 if options.quick else EPOCHS) | where
        return
    for loss in losses:
        for batch_size in FINETUNE_BATCHES:
            yield finetune_row(loss, batch_size, options) | where


HEADERS = ("section", "loss", "eager", "fused", "speed-up", "test mAP eager", "fused")


def cells(row: Row) -> list[str]:
    if row["section"] == "linear":
        times = [f"{row['eager_seconds']:.1f} s", f"{row['fused_seconds']:.1f} s"]
        maps = [f"{100 * row['eager_test_map']:.2f}", f"{100 * row['fused_test_map']:.2f}"]
    else:
        times, maps = [f"{row['eager_us']:.0f} us", f"{row['fused_us']:.0f} us"], ["", ""]
    return [str(row["section"]), str(row["loss"]), *times, f"{row['speedup']:.1f}x", *maps]


def main() -> None:
    parser = option_parser(__doc__.splitlines()[0])
    default = ("an", "gr", "role")
    parser.add_argument(
        "--losses", nargs="+", default=default, metavar="NAME", help=f"default: {' '.join(default)}"
    )
    given = parser.parse_args()
    options = read_options(parser, given)
    losses = given.losses[:1] if options.quick else given.losses
    if options.device.type == "cuda":
        losses = [loss for loss in losses if loss != "role"]  # a step of which has its table's optimiser too
    warn_if_busy(options.threads)
    # Imports and first calls, at nobody's expense.
    one_epoch = LinearPhase(epochs=1)
    train_classifier(synthetic(64, 0, 8, 4).train, loss="an", linear=one_epoch, accelerator="cpu", progress=False)
    rows = []
    for row in measure(options, losses):
        rows.append(row)
        print("  ".join(cells(row)), flush=True)
    print()
    print_table(HEADERS, [cells(row) for row in rows])
    for row in rows:
        if row["section"] == "linear":
            apart = 100 * abs(row["eager_test_map"] - row["fused_test_map"])
            same = verdict("same mAP to 0.5", apart <= 0.5)
            print(f"{row['loss']}: {verdict('>= 5x', row['speedup'] >= 5)}, {same}")
    if options.json is not None:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
