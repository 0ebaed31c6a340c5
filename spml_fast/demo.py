"""The demo: a small GAN on 8x8 digits, single labels, and all seven joint classes drawn from it.

Digits 0 ... 6 stand for the seven joint classes of three attributes (see ``data.digits``). The
GAN sees the images alone, the density-ratio classifiers one attribute of each image. A judge,
trained on the full digit labels and used for nothing else, counts how many of the images drawn
for a joint class are of the digit that stands for it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from ._checkpoint import write_atomically
from ._loading import ModelSpec
from .data.digits import (
    ATTRIBUTES,
    DIGIT_ATTRIBUTES,
    JOINT_CLASSES,
    Digits,
    joint_class_name,
    load_digits,
)
from .labels import single_positives
from .sample_folder import SamplerSpec, min_max
from .sampling import S2MResult, S2MSampler
from .training.density_ratio import DensityRatio, DensityRatioClassifier, train_density_ratio
from .training.options import DensityRatioFit, Heads
from .training.quiet import quiet_fit, quiet_trainer, tensor_loader

Z_DIM = 32
GAMMA_I, GAMMA_J = 0.5, 1.0
JUDGE_FLOOR = 0.97
JUDGE = "judge.safetensors"
PAPER_TEMPERATURE = {"1": 1.2, "2": 1.0, "3": 0.2}
"""The temperatures that the paper uses, by the number of attributes in I."""

SPEC = SamplerSpec(
    ModelSpec("spml_fast.demo:DigitGenerator"),
    ModelSpec("spml_fast.demo:make_classifier"),
    classes=ATTRIBUTES,
    weight={"gamma": GAMMA_I, "gamma_J": GAMMA_J, "temperature": PAPER_TEMPERATURE},
    value_range=(-1.0, 1.0),
)
"""The demo's sampler, as its folder tells it."""


def paper_temperature(has: tuple[int, ...], has_not: tuple[int, ...]) -> float:
    """The temperature that the paper uses for a joint class of one, two or three attributes."""
    return PAPER_TEMPERATURE[str(len(has))]


def run_demo(
    out: str | Path,
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
    n_samples: int = 500,
    n_steps: int = 200,
) -> dict[str, Any]:
    """Trains everything, draws the seven joint classes, judges what was drawn, prints a table.

    Args:
        out: folder for ``samples.png``, ``diagnostics.png``, ``metrics.json``, what ``spml-fast sample`` reads
            (``sampler.json`` and the weights of generator and classifiers) and the judge; made if missing.
        seed: seeds the labels, every training and the sampling; one seed, one result.
        device: "cpu", "cuda", ...
        progress: show progress bars.
        n_samples: chains per joint class.
        n_steps: proposals per chain.

    Returns:
        The metrics, as written to ``metrics.json``.
    """
    # What the demo needs beyond the bare package, now rather than after minutes of training.
    import matplotlib  # noqa: F401
    from safetensors.torch import save_model

    from .plots import plot_diagnostics, plot_samples

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    accelerator = "gpu" if torch.device(device).type == "cuda" else "cpu"
    options = {"seed": seed, "accelerator": accelerator, "progress": progress}
    clock = _Clock()

    digits = load_digits()
    images = torch.from_numpy(digits.images)
    labels = torch.from_numpy(single_positives(digits.labels, seed=seed))
    _say("generator: a GAN on the images alone", progress)
    G = train_generator(images, **options)
    clock.lap("generator")
    _say("classifiers: real or generated, and which attribute, from one label an image", progress)
    ratio = train_classifiers(G, images, labels, **options)
    if ratio.report.interrupted:
        raise KeyboardInterrupt
    clock.lap("classifiers")
    _say("judge: which digit, from the full labels; used for nothing but judging", progress)
    judge, judge_accuracy = train_judge(digits, **options)
    clock.lap("judge")
    SPEC.save(out, G, ratio.clf)
    write_atomically(out / JUDGE, partial(save_model, judge))

    G, clf, judge = (module.to(device) for module in (G, ratio.clf, judge))
    results = demo_sampler(G, clf).sample_targets(JOINT_CLASSES, n_samples, n_steps, seed=seed, progress=progress)
    clock.lap("sampling")

    named = {joint_class_name(*target): result for target, result in zip(JOINT_CLASSES, results, strict=True)}
    metrics = {
        **judge_samples(G, judge, results, seed),
        "seed": seed,
        "judge_accuracy": judge_accuracy,
        "calibration": {name: vars(head) for name, head in ratio.report.heads.items()},
        "seconds": clock.laps,
    }
    plot_samples({name: result.samples.cpu().numpy() for name, result in named.items()}, out / "samples.png")
    plot_diagnostics({name: result.diagnostics for name, result in named.items()}, out / "diagnostics.png")
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"\n{ratio.report}\n\n{metrics_table(metrics)}\n\nwritten to {out}/")
    return metrics


def demo_sampler(G: nn.Module, clf: nn.Module) -> S2MSampler:
    return S2MSampler(G, clf, weight=min_max(SPEC.weight))


def load_demo(out: str | Path) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The generator, the classifier and the judge that ``run_demo(out)`` saved, in eval mode."""
    judge = ModelSpec(f"{__name__}:make_judge", weights=Path(out) / JUDGE)
    return *SamplerSpec.read(out).load(), judge.load("judge")


# ------------------------------------------------------------------------------------- generator


class DigitGenerator(nn.Module):
    """z (B, z_dim) -> images (B, 1, 8, 8) in [-1, 1]."""

    def __init__(self, z_dim: int = Z_DIM, width: int = 32):
        super().__init__()
        self.z_dim = z_dim
        self.net = nn.Sequential(
            nn.Linear(z_dim, 2 * width * 16),
            nn.Unflatten(1, (2 * width, 4, 4)),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 1, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z)


class DigitDiscriminator(nn.Module):
    """Images (B, 1, 8, 8) -> logits (B,). Without batch norm, which R1 does not go with."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(16 * width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).flatten()


def train_generator(
    images: Tensor,
    *,
    steps: int = 4000,
    batch_size: int = 64,
    lr: float = 2e-3,
    r1: float = 1.0,
    r1_every: int = 4,
    decay: float = 0.999,
    seed: int = 0,
    accelerator: str = "auto",
    progress: bool = True,
) -> DigitGenerator:
    """A GAN with the non-saturating loss and a lazy R1 penalty; the averaged generator is returned.

    Args:
        images: (N, 1, 8, 8) float32 in [-1, 1].
        r1: weight of the squared gradient norm, taken every ``r1_every`` steps.
        decay: of the exponential moving average of the generator's weights.
    """
    import lightning

    class DigitGAN(lightning.LightningModule):
        automatic_optimization = False  # two optimisers take turns

        def __init__(self) -> None:
            super().__init__()
            self.G = DigitGenerator()
            self.D = DigitDiscriminator()
            # Buffers too, or the averaged weights would meet batch statistics that are not theirs.
            self.averaged = AveragedModel(self.G, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

        def configure_optimizers(self) -> tuple[list, list]:
            optimizers = [torch.optim.Adam(net.parameters(), lr, betas=(0.0, 0.99)) for net in (self.G, self.D)]
            # Constant for the first half, then down to zero, so that the average settles.
            return optimizers, [LambdaLR(o, lambda k: min(1, 2 - 2 * k / steps)) for o in optimizers]

        def generate(self, n: int) -> Tensor:
            return self.G(torch.randn(n, self.G.z_dim, device=self.device))

        def training_step(self, batch: list[Tensor], index: int) -> None:
            (real,) = batch
            for_G, for_D = self.optimizers()
            self.descend(for_D, self.discriminator_loss(real, penalise=index % r1_every == 0))
            self.toggle_optimizer(for_G)  # no gradients for D's weights
            self.descend(for_G, functional.softplus(-self.D(self.generate(len(real)))).mean())
            self.untoggle_optimizer(for_G)
            self.averaged.update_parameters(self.G)
            for schedule in self.lr_schedulers():
                schedule.step()

        def discriminator_loss(self, real: Tensor, penalise: bool) -> Tensor:
            with torch.no_grad():
                fake = self.generate(len(real))
            both = torch.cat([real, fake]).requires_grad_(penalise)
            logits = self.D(both)
            on_real, on_fake = logits.chunk(2)
            loss = functional.softplus(-on_real).mean() + functional.softplus(on_fake).mean()
            if penalise:
                (slope,) = torch.autograd.grad(logits.sum(), both, create_graph=True)
                loss = loss + r1 * r1_every / 2 * slope.square().flatten(1).sum(1).mean()
            return loss

        def descend(self, optimizer: Any, loss: Tensor) -> None:
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = DigitGAN()
        loader = tensor_loader([images], batch_size, steps=steps)
        _fit(module, loader, accelerator, progress)
    return module.averaged.module.cpu().eval()


# ----------------------------------------------------------------------------------- classifiers


def train_classifiers(
    G: DigitGenerator,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int = 120,
    seed: int = 0,
    accelerator: str = "auto",
    progress: bool = True,
) -> DensityRatio:
    """D_v and D_r, a small CNN each, calibrated on a tenth of the data.

    Two networks instead of one trunk: D_v has an unlimited supply of generated images and D_r a
    thousand single labels, so they are best at different epochs. A tenth instead of the usual
    fifth held out: with so few labels, D_r gains more from them than its temperature does.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        D_v, D_r = _density_ratio_heads()
    return train_density_ratio(
        G,
        images,
        labels,
        heads=Heads(D_v=D_v, D_r=D_r),
        fit=DensityRatioFit(
            epochs,
            lr=3e-3,
            weight_decay=0.05,
            patience=epochs,  # none: the learning rate must come down before epochs can be compared
            holdout=0.1,
            augment=jitter,
            accelerator=accelerator,
        ),
        n_classes=len(ATTRIBUTES),
        seed=seed,
        progress=progress,
    )


def _density_ratio_heads() -> tuple[nn.Module, nn.Module]:
    return _cnn(16, 1), _cnn(32, len(ATTRIBUTES))


def make_classifier() -> DensityRatioClassifier:
    """The classifiers, untrained, as the sampler takes them."""
    return DensityRatioClassifier(nn.Identity(), *_density_ratio_heads(), None)


def jitter(x: Tensor, turn: float = 0.2, scale: float = 0.12, shift: float = 0.25, noise: float = 0.1) -> Tensor:
    """Small random turns (radians), scalings, shifts (1 is half an image) and pixel noise.

    A thousand single labels are few: without this the heads learn them by heart. The noise also
    hides from D_v that real pixels have 17 grey levels and generated ones do not.
    """
    n = len(x)

    def uniform(size: float, *shape: int) -> Tensor:
        return (2 * torch.rand(n, *shape, device=x.device) - 1) * size

    angle, scales, offset = uniform(turn), uniform(scale, 2).exp(), uniform(shift, 2, 1)
    cos, sin = angle.cos(), angle.sin()
    turned = torch.stack([cos, -sin, sin, cos], 1).view(n, 2, 2) * scales[:, :, None]
    grid = functional.affine_grid(torch.cat([turned, offset], 2), x.shape, align_corners=False)
    # grid_sample pads with 0; the background of the digits is -1.
    moved = functional.grid_sample(x + 1, grid, align_corners=False) - 1
    return moved + noise * torch.randn_like(moved)


def _cnn(width: int, outputs: int) -> nn.Sequential:
    """A small CNN, images (B, 1, 8, 8) -> logits (B, outputs)."""
    layers, channels = [], 1
    for wider, kernel, stride in ((width, 3, 1), (2 * width, 4, 2), (4 * width, 4, 2)):
        conv = nn.Conv2d(channels, wider, kernel, stride=stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(wider), nn.ReLU()]
        channels = wider
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * channels, outputs))


# ----------------------------------------------------------------------------------------- judge


def train_judge(
    digits: Digits,
    *,
    steps: int = 600,
    batch_size: int = 64,
    seed: int = 0,
    accelerator: str = "auto",
    progress: bool = True,
) -> tuple[nn.Sequential, float]:
    """A digit classifier from the full labels, and its accuracy on a fifth it did not see.

    Raises:
        RuntimeError: if that accuracy is below 97 %, too little to judge by.
    """
    import lightning
    from sklearn.model_selection import train_test_split

    images, targets = torch.from_numpy(digits.images), torch.from_numpy(digits.digits)
    train, held = train_test_split(torch.arange(len(targets)), test_size=0.2, stratify=targets, random_state=seed)

    class JudgeTraining(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.judge = make_judge()

        def configure_optimizers(self) -> tuple[list, list]:
            optimizer = torch.optim.AdamW(self.judge.parameters(), weight_decay=0.01)
            schedule = OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            x, digit = batch
            return functional.cross_entropy(self.judge(jitter(x)), digit)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = JudgeTraining()
        loader = tensor_loader([images[train], targets[train]], batch_size, steps=steps)
        _fit(module, loader, accelerator, progress)
    judge = module.judge.cpu().eval()
    with torch.no_grad():
        accuracy = float((judge(images[held]).argmax(1) == targets[held]).float().mean())
    if accuracy < JUDGE_FLOOR:
        raise RuntimeError(f"the judge is right on {accuracy:.1%} of held-out digits, too few")
    return judge, accuracy


def make_judge() -> nn.Sequential:
    """The judge, untrained."""
    return _cnn(16, len(DIGIT_ATTRIBUTES))


@torch.inference_mode()
def judge_samples(G: DigitGenerator, judge: nn.Module, results: Sequence[S2MResult], seed: int) -> dict[str, Any]:
    """Share of the images drawn for each joint class that show its digit, beside that of unconditional draws."""
    source = torch.Generator().manual_seed(seed)
    unconditional = G(torch.randn(10_000, G.z_dim, generator=source).to(next(G.parameters()).device))
    shares = torch.bincount(judge(unconditional).argmax(1), minlength=len(results)) / len(unconditional)
    joint_classes = []
    for digit, result in enumerate(results):
        d = result.diagnostics
        shown = judge(result.samples).argmax(1) if len(result.samples) else torch.empty(0)
        joint_classes.append(
            {
                "name": joint_class_name(result.joint_class.I, result.joint_class.J),
                "I": list(result.joint_class.I),
                "J": list(result.joint_class.J),
                "share": float(shares[digit]),
                # A chain without a sample is a miss.
                "accuracy": float((shown == digit).sum()) / d.n_chains,
                **{
                    key: None if value in (math.inf, -math.inf) else value  # JSON has no infinity
                    for key, value in d.to_dict().items()
                },
            }
        )
    accuracies = [entry["accuracy"] for entry in joint_classes]
    return {"joint_classes": joint_classes, "mean_accuracy": sum(accuracies) / len(accuracies)}


def metrics_table(metrics: dict[str, Any]) -> str:
    """The demo's result as text; ``share`` is that of the joint class among unconditional draws."""
    columns = {
        "joint class": ("name", ""),
        "share": ("share", ".3f"),
        "accuracy": ("accuracy", ".3f"),
        "acceptance": ("acceptance_rate", ".3f"),
        "support": ("support_rate", ".3f"),
        "ESS/proposal": ("ess_per_proposal", ".3f"),
        "M": ("max_weight_ratio", ".1f"),
        "TV bound": ("tv_bound", ".1e"),
    }
    rows = [list(columns)]
    for entry in metrics["joint_classes"]:
        rows.append(
            [format(entry[key], spec) if entry[key] is not None else "-" for key, spec in columns.values()]
        )
    rows.append(["mean", "", format(metrics["mean_accuracy"], ".3f"), "", "", "", "", ""])
    return "\n".join(
        "".join(cell.ljust(12) if i == 0 else cell.rjust(14) for i, cell in enumerate(row)).rstrip()
        for row in rows
    )


def _say(what: str, progress: bool) -> None:
    if progress:
        print(what, flush=True)


def _fit(module: Any, loader: DataLoader, accelerator: str, progress: bool) -> None:
    trainer = quiet_trainer(progress=progress, max_epochs=1, accelerator=accelerator)
    if not quiet_fit(trainer, module, loader):
        raise KeyboardInterrupt


class _Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self.last, 2)
        self.last = now
