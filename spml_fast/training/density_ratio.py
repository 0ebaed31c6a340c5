"""The density-ratio classifiers D_v, D_r and D_f, from single positive labels and a generator.

Source: Cho et al., "Mining Multi-Label Samples from Single Positive Labels", NeurIPS 2022.
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from .._checks import renamed
from .._conventions import Generator, as_rows, images_of, latent_shape
from .._models import eval_mode, first_tensor, modules_in, seeded
from ..sampling.proposals import LatentPrior
from .options import DensityRatioFit, Heads, check_kind
from .quiet import quiet_fit, quiet_trainer, tensor_loader

ECE_BINS = 15


class DensityRatioClassifier(nn.Module):
    """D_r, D_f and D_v in one module, in the form that the sampler takes.

    The temperatures are buffers: they travel with ``state_dict`` and divide the logits in
    ``forward``, so what comes out is calibrated.
    """

    def __init__(self, trunk: nn.Module, D_v: nn.Module, D_r: nn.Module, D_f: nn.Module | None):
        super().__init__()
        self.trunk = trunk
        self.D_v = D_v
        self.D_r = D_r
        self.D_f = D_f
        self.register_buffer("temperature_v", torch.ones(()))
        self.register_buffer("temperature_r", torch.ones(()))
        self.register_buffer("temperature_f", torch.ones(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """``x`` (B, *x_shape) -> class logits (B, L), fake-class logits (B, L) or None, v (B,)."""
        features = self.trunk(x)
        fake = None if self.D_f is None else as_rows(self.D_f(features), len(x)) / self.temperature_f
        validity = self.D_v(features).flatten() / self.temperature_v
        return as_rows(self.D_r(features), len(x)) / self.temperature_r, fake, validity


@dataclass(frozen=True)
class HeadReport:
    """One head on the held-out data, before and after its temperature.

    Attributes:
        temperature: the number that the head's logits are divided by.
        epoch: the epoch whose weights were kept.
        log_likelihood: mean per example; for D_v over equally many real and generated ones, so
            that telling nothing apart is -ln 2.
        ece: expected calibration error.
    """

    temperature: float
    epoch: int
    log_likelihood: tuple[float, float]
    ece: tuple[float, float]


@dataclass(frozen=True)
class DensityRatioReport:
    """Held-out quality of every head.

    Attributes:
        heads: reports by name of the head: "D_v", "D_r" and, if trained, "D_f".
        epochs: number of epochs trained.
        interrupted: whether Ctrl+C ended the training.
    """

    heads: dict[str, HeadReport]
    epochs: int
    interrupted: bool = False

    def __str__(self) -> str:
        titles = ("epoch kept", "temperature", "log likelihood (raw -> calibrated)")
        lines = ["{:<5}{:>13}{:>13}{:>37}{:>27}".format("head", *titles, "ECE (raw -> calibrated)")]
        for name, head in self.heads.items():
            likelihood = "{:.4f} -> {:.4f}".format(*head.log_likelihood)
            ece = "{:.4f} -> {:.4f}".format(*head.ece)
            lines.append(
                f"{name:<5}{f'{head.epoch} of {self.epochs}':>13}{head.temperature:>13.3f}"
                f"{likelihood:>37}{ece:>27}"
            )
        return "\n".join(lines)


class DensityRatio(NamedTuple):
    """What :func:`train_density_ratio` returns: the classifier and a report on its quality."""

    clf: DensityRatioClassifier
    report: DensityRatioReport


NEW_SPELLINGS = {
    "trunk": "heads=Heads(trunk)",
    "D_v": "heads=Heads(D_v=..., D_r=...)",
    "D_r": "heads=Heads(D_v=..., D_r=...)",
    "D_f": "heads=Heads(D_v=..., D_r=..., D_f=...)",
    "epochs": "fit=DensityRatioFit(epochs=...)",
    "batch_size": "fit=DensityRatioFit(batch_size=...)",
    "lr": "fit=DensityRatioFit(lr=...)",
    "weight_decay": "fit=DensityRatioFit(weight_decay=...)",
    "patience": "fit=DensityRatioFit(patience=...)",
    "holdout": "fit=DensityRatioFit(holdout=...)",
    "augment": "fit=DensityRatioFit(augment=...)",
    "accelerator": "fit=DensityRatioFit(accelerator=...)",
    "precision": "fit=DensityRatioFit(precision=...)",
}


@renamed(**NEW_SPELLINGS)
def train_density_ratio(
    G: Callable[..., Tensor],
    x: Tensor | np.ndarray | Dataset,
    labels: Tensor | np.ndarray | None = None,
    *,
    heads: Heads,
    fit: DensityRatioFit | None = None,
    n_classes: int | None = None,
    z_dim: int | Sequence[int] | None = None,
    conditional: bool | None = None,
    seed: int = 0,
    progress: bool = True,
) -> DensityRatio:
    """Train calibrated D_v, D_r (and D_f) for S2M sampling from data and a generator.

    The losses are those of the paper, a sum over

    - L_v = -E_data log D_v(x) - E_G log(1 - D_v(x)): real against generated, whose logit is
      log p_data/p_G;
    - L_r = -E_data log D_r(c|x): the single label of a real instance;
    - L_f = -E_{p_G(x,c)} log D_f(c|x): the label that a generated instance was made with, only
      for a class-conditional generator; its labels are drawn as those of the data.

    The sampler reads the three as density ratios, so memorised training data are worse than no
    training: the weights kept are those of the latest epoch whose likelihood on held-out data is
    within one standard error of the best, and a temperature per head, fitted on the same held-out
    data, is part of the returned module.

    Args:
        G: generator, ``G(z)`` or, class-conditional, ``G(z, label)``; z (B, z_dim) of the
            standard normal or ``fit.prior``, label (B,) int64, output (B, *x_shape), in all the forms that
            :class:`~spml_fast.S2MSampler` takes. Its modules are run in eval mode without gradients, on the
            training device, and given back as they came.
        x: (N, *x_shape) floating tensor or array, on the scale of G's output; or a map-style
            ``Dataset`` of (x, label) pairs, with ``labels=None``.
        labels: (N,) integers, the one observed positive class of each instance.
        heads: :class:`Heads`, the networks: ``Heads(trunk)``, or ``Heads(D_v=..., D_r=...)``.
        fit: :class:`DensityRatioFit`, how they are trained; default: as it is made without options.
        n_classes: number of classes L; default ``labels.max() + 1``.
        z_dim: latent size, an int or a shape; default ``G.z_dim``.
        conditional: whether G takes a label; default: whether it requires a second argument.
        seed: seeds the split, the heads made here, the batches, the latents and dropout; the
            global generator of torch is left as it was.
        progress: show Lightning's bar.

    Returns:
        ``.clf``, in eval mode on the CPU, which maps x to ``(class_logits (B, L),
        fake_class_logits (B, L) or None, validity_logit (B,))``, calibrated; and ``.report``.

    Raises:
        ValueError: wrong shapes or ranges, a label outside [0, n_classes), NaN or inf in x or in
            the held-out logits, a class with fewer than two instances, a G without known latent
            size or with outputs of another shape than x, or a conditional G without D_f.
        TypeError: x, labels or an option of a type that cannot be used.
        KeyboardInterrupt: on Ctrl+C within the first epoch. Later, what was best so far is
            returned, with a warning and ``report.interrupted``.
    """
    fit = DensityRatioFit() if fit is None else fit
    check_kind("heads", heads, Heads)
    check_kind("fit", fit, DensityRatioFit)
    if not callable(G):
        raise TypeError(f"G must be callable, got {type(G).__name__}")
    data, labels = _as_dataset(x, labels)
    n_classes = _check_labels(labels, n_classes)
    latent = latent_shape(G, z_dim)
    generator = _generator(G, conditional, heads.D_f)
    conditional = bool(generator.conditional)
    prior = None if fit.prior is None else LatentPrior(fit.prior, latent)
    train_rows, held_rows = _split(labels, n_classes, fit.holdout, seed)

    trainer = quiet_trainer(
        progress=progress,
        max_epochs=fit.epochs,
        accelerator=fit.accelerator,
        precision=fit.precision,
        inference_mode=False,
    )
    device = trainer.strategy.root_device
    with seeded(seed, device), _generating(G, device) as dtype:

        def generate(labels: Tensor, normals: Tensor) -> Tensor:
            latents = normals
            if prior is not None and prior.from_normals:
                latents = prior(normals)
            elif prior is not None:
                latents = prior.distribution.sample((len(normals),)).to(normals)
            with torch.no_grad():
                made = generator(latents.to(dtype), labels if conditional else None)
                # A copy: what is trained on must not change what G returned, nor G that.
                return images_of(made, len(latents)).clone()

        sample = data[0][0][None]
        _check_generated(generate, sample, latent, device)
        clf = build_classifier(sample, heads, n_classes, conditional)
        _check_augment(fit.augment, sample)
        module = _training_module(clf, generate, latent, fit, seed=seed, shared=heads.trunk is not None)
        finished = quiet_fit(
            trainer,
            module,
            _loader(data, train_rows, fit.batch_size, shuffle=True),
            _loader(data, held_rows, fit.batch_size, shuffle=False),
        )
    if not module.epochs:
        raise KeyboardInterrupt
    if not finished:
        warnings.warn(
            f"interrupted after {module.epochs} of {fit.epochs} epochs; the best so far is returned",
            stacklevel=3,  # the caller, behind the check of keywords
        )
    module.restore()
    clf.cpu().float().eval()
    report = _calibrate(clf, module.kept, module.epochs, interrupted=not finished)
    return DensityRatio(clf, report)


# ------------------------------------------------------------------------------------- training


@dataclass
class _Kept:
    """The state that will be returned of one part, with its held-out logits and targets by head.

    Held-out sets are small and single labels noisy, so the lowest held-out loss is often a lucky
    early epoch. Of the epochs that the held-out data cannot tell from the lowest (within one
    standard error of the paired difference) the latest is kept: its learning rate was smallest.
    """

    best_epoch: int = 0
    best: dict[str, Tensor] | None = None  # losses of the held-out examples by head
    epoch: int = 0
    state: dict[str, Tensor] | None = None
    held_out: dict[str, tuple[Tensor, Tensor]] | None = None

    def offer(
        self,
        epoch: int,
        module: nn.Module,
        losses: dict[str, Tensor],
        held_out: dict[str, tuple[Tensor, Tensor]],
    ) -> None:
        if self.best is not None:
            differences = [losses[head] - self.best[head] for head in losses]
            worse = sum(float(d.mean()) for d in differences)
            error = math.sqrt(sum(float(d.var()) / len(d) for d in differences))
            if worse > error:
                return
        if self.best is None or worse < 0:
            self.best_epoch, self.best = epoch, losses
        self.epoch, self.held_out = epoch, held_out
        self.state = {k: v.detach().clone() for k, v in module.state_dict().items()}


def _training_module(
    clf: DensityRatioClassifier,
    generate: Callable[[Tensor, Tensor], Tensor],
    latent: tuple[int, ...],
    fit: DensityRatioFit,
    *,
    seed: int,
    shared: bool,
) -> Any:
    """The LightningModule; a function makes it, so that Lightning is imported only when needed."""
    import lightning

    heads = ["D_v", "D_r"] + (["D_f"] if clf.D_f is not None else [])
    # Heads overfit at different times. On a shared trunk a head's best epoch is not for it to
    # choose, because the others would move its features: they are judged by the sum of losses.
    # Separate modules do not touch each other, and each keeps its own best epoch.
    parts = {"": (clf, heads)} if shared else {h: (getattr(clf, h), [h]) for h in heads}

    def with_generated(x: Tensor, labels: Tensor, latents: Tensor) -> Tensor:
        return torch.cat([x, generate(labels, latents).to(x.dtype)])

    class DensityRatioTraining(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.clf = clf
            self.kept = {name: _Kept() for name in parts}
            self.epochs = 0
            self.batches: list[dict[str, tuple[Tensor, Tensor]]] = []

        def configure_optimizers(self) -> tuple[list, list]:
            optimizer = torch.optim.AdamW(clf.parameters(), lr=fit.lr, weight_decay=fit.weight_decay)
            # Small last steps average out the noise of single labels and of fresh latents, which
            # both calibration and the choice of the best epoch suffer from.
            return [optimizer], [CosineAnnealingLR(optimizer, fit.epochs)]

        def training_step(self, batch: Any, _: int) -> Tensor:
            x, labels = batch
            both = with_generated(x, labels, torch.randn(len(x), *latent, device=x.device))
            logits = _logits_and_targets(clf, both if fit.augment is None else fit.augment(both), labels)
            return sum(_loss(head, *pair) for head, pair in logits.items())

        def validation_step(self, batch: Any, index: int) -> None:
            x, labels = batch
            # The same generated instances in every epoch, or epochs could not be compared.
            source = torch.Generator().manual_seed(seed + 1 + index)
            latents = torch.randn(len(x), *latent, generator=source).to(x.device)
            with seeded(seed + 1 + index, x.device):  # of a prior that draws by itself
                both = with_generated(x, labels, latents)
            logits = _logits_and_targets(clf, both, labels)
            self.batches.append({h: (a.float().cpu(), t.cpu()) for h, (a, t) in logits.items()})

        def on_validation_epoch_end(self) -> None:
            held_out = {h: tuple(map(torch.cat, zip(*(b[h] for b in self.batches), strict=True))) for h in heads}
            self.batches.clear()
            # Compared as they would be returned, after their temperature: heads turn overconfident
            # while they still learn to rank, and stopping there would waste what they can learn.
            losses = {h: _calibrated_losses(h, *held_out[h], self.epochs + 1) for h in heads}
            self.epochs += 1
            for name, (module, its_heads) in parts.items():
                mine = [{h: of[h] for h in its_heads} for of in (losses, held_out)]
                self.kept[name].offer(self.epochs, module, *mine)
            if all(self.epochs - kept.best_epoch >= fit.patience for kept in self.kept.values()):
                self.trainer.should_stop = True

        def restore(self) -> None:
            """Loads the state that was kept of every part."""
            for name, (module, _) in parts.items():
                module.load_state_dict(self.kept[name].state)

    return DensityRatioTraining()


def _logits_and_targets(
    clf: DensityRatioClassifier, both: Tensor, labels: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Logits and targets by head.

    Args:
        both: real instances, then as many generated ones with the same labels.
    """
    n = len(labels)
    features = clf.trunk(both)
    real = torch.arange(2 * n, device=labels.device) < n
    logits = {
        "D_v": (clf.D_v(features).flatten(), real),
        "D_r": (as_rows(clf.D_r(features[:n]), n), labels),
    }
    if clf.D_f is not None:
        logits["D_f"] = (as_rows(clf.D_f(features[n:]), n), labels)
    return logits


def _losses(head: str, logits: Tensor, targets: Tensor) -> Tensor:
    """The loss of each example. L_v has two expectations, so its mean is twice that over both halves."""
    if head == "D_v":
        targets = targets.to(logits.dtype)
        return 2 * functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return functional.cross_entropy(logits, targets, reduction="none")


def _loss(head: str, logits: Tensor, targets: Tensor) -> Tensor:
    """The mean loss: L_v, L_r or L_f."""
    return _losses(head, logits, targets).mean()


def _calibrated_losses(head: str, logits: Tensor, targets: Tensor, epoch: int) -> Tensor:
    if not logits.isfinite().all():
        raise ValueError(
            f"{head} gives NaN or inf on held-out data after epoch {epoch}: try a smaller lr or "
            f"another precision, or check {head} and what G generates"
        )
    return _losses(head, logits / fit_temperature(head, logits, targets), targets)


# ---------------------------------------------------------------------------------- calibration


def _calibrate(
    clf: DensityRatioClassifier, kept: dict[str, _Kept], epochs: int, *, interrupted: bool
) -> DensityRatioReport:
    """Fit the temperatures on the held-out logits of the kept states and bake them in."""
    reports = {}
    for part in kept.values():
        for head, (logits, targets) in part.held_out.items():
            temperature = fit_temperature(head, logits, targets)
            getattr(clf, f"temperature_{head[-1]}").fill_(temperature)
            raw = _quality(head, logits, targets)
            calibrated = _quality(head, logits / temperature, targets)
            likelihood, ece = zip(raw, calibrated, strict=True)
            reports[head] = HeadReport(temperature, part.epoch, likelihood, ece)
    return DensityRatioReport(reports, epochs, interrupted)


def fit_temperature(head: str, logits: Tensor, targets: Tensor) -> float:
    """The temperature of maximum likelihood, with one unseen example of each class counted in.

    Without these, held-out data that are told apart without an error would ask for logits without bound (Platt,
    "Probabilistic outputs for support vector machines", 1999).
    """
    from scipy.optimize import minimize_scalar

    logits = logits.double()
    n_classes = 2 if head == "D_v" else logits.shape[1]
    unseen = n_classes / (len(targets) + n_classes)

    def objective(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        loss = (1 - unseen) * float(_loss(head, scaled, targets))
        log_p = [functional.logsigmoid(z) for z in (scaled, -scaled)] if head == "D_v" else [scaled.log_softmax(1)]
        return loss - unseen * sum(float(part.mean()) for part in log_p)

    bounds = (math.log(0.05), math.log(20))
    return math.exp(minimize_scalar(objective, bounds=bounds, method="bounded").x)


def _quality(head: str, logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """Mean log likelihood per example and expected calibration error."""
    from torchmetrics.functional.classification import (
        binary_calibration_error,
        multiclass_calibration_error,
    )

    if head == "D_v":
        ece = binary_calibration_error(logits.sigmoid(), targets.long(), n_bins=ECE_BINS)
        return -float(_loss(head, logits, targets)) / 2, float(ece)
    ece = multiclass_calibration_error(logits.softmax(1), targets, num_classes=logits.shape[1], n_bins=ECE_BINS)
    return -float(_loss(head, logits, targets)), float(ece)


# ------------------------------------------------------------------------- modules and generator


def build_classifier(sample: Tensor, heads: Heads, n_classes: int, conditional: bool) -> DensityRatioClassifier:
    """Copies of the modules given, with heads made where there is a trunk; shapes are checked.

    Args:
        sample: one instance, (1, *x_shape).
    """
    sample = sample.repeat(2, *[1] * (sample.ndim - 1))  # a single row may be squeezed away
    if heads.trunk is not None:
        trunk = copy.deepcopy(heads.trunk).cpu()
        features = _probe("trunk", trunk, sample)
        if features.ndim != 2:
            raise ValueError(f"trunk must map x to (B, F), got {tuple(features.shape)} for B = 2")
        width = features.shape[1]
        D_v, D_r = nn.Linear(width, 1), nn.Linear(width, n_classes)
        D_f = nn.Linear(width, n_classes) if conditional else None
        return DensityRatioClassifier(trunk, D_v, D_r, D_f)
    if conditional and heads.D_f is None:
        raise ValueError("G is class-conditional, G(z, label): D_f missing (x -> logits (B, L))")
    copies = {}
    for name in ("D_v", "D_r", "D_f"):
        module = getattr(heads, name)
        copies[name] = None if module is None else copy.deepcopy(module).cpu()
        if module is not None:
            out = _probe(name, copies[name], sample)
            wanted, fits = f"(2, {n_classes})", as_rows(out, 2).shape == (2, n_classes)
            if name == "D_v":
                wanted, fits = "(2,) or (2, 1)", out.numel() == 2
            if not fits:
                raise ValueError(f"{name} must map x to {wanted} for B = 2, got {tuple(out.shape)}")
    return DensityRatioClassifier(nn.Identity(), **copies)


def _probe(name: str, module: nn.Module, sample: Tensor) -> Tensor:
    """The output of one forward pass in eval mode, which also gives lazy layers their shape.

    Then all of it is in training mode, but for what is frozen: modules none of whose parameters is trained, and
    those in eval mode within a module that is not.
    """
    frozen = {part for part in module.modules() if module.training and not part.training}
    module.eval()
    with torch.no_grad():
        out = module(sample)
    module.train()
    for part in module.modules():
        parameters = list(part.parameters())
        if part in frozen or (parameters and not any(p.requires_grad for p in parameters)):
            part.eval()
    if not isinstance(out, Tensor):
        raise TypeError(f"{name} must return a tensor, got {type(out).__name__}")
    return out


def _generator(G: Callable[..., Tensor], conditional: bool | None, D_f: nn.Module | None) -> Generator:
    """G under one convention; one whose label is optional is given it if there is a D_f."""
    if D_f is not None and conditional is False:
        raise ValueError("D_f is for a class-conditional G(z, label), got conditional=False")
    return Generator(G, True if D_f is not None else conditional)


@contextlib.contextmanager
def _generating(G: Callable[..., Tensor], device: torch.device) -> Iterator[torch.dtype]:
    """The modules of G in eval mode on ``device``, and the dtype of its latents; they come back as they were."""
    parameter = first_tensor(G)
    with eval_mode(G):
        if parameter is None:
            yield torch.float32
            return
        home = parameter.device
        for module in modules_in(G):
            module.to(device)
        try:
            yield parameter.dtype
        finally:
            for module in modules_in(G):
                module.to(home)


def _check_generated(
    generate: Callable[[Tensor, Tensor], Tensor], sample: Tensor, latent: tuple[int, ...], device: torch.device
) -> None:
    labels = torch.zeros(2, dtype=torch.int64, device=device)
    made = generate(labels, torch.randn(2, *latent, device=device))
    if not isinstance(made, Tensor):
        raise TypeError(f"G must return a tensor, got {type(made).__name__}")
    if made.shape != (2, *sample.shape[1:]):
        raise ValueError(
            f"G must return instances shaped like x: expected {(2, *sample.shape[1:])} "
            f"for two latents, got {tuple(made.shape)}"
        )
    if not made.isfinite().all():
        raise ValueError("G returned NaN or inf for latents of the standard normal")


def _check_augment(augment: Callable[[Tensor], Tensor] | None, sample: Tensor) -> None:
    if augment is None:
        return
    batch = sample.repeat(2, *[1] * (sample.ndim - 1))
    shape = tuple(augment(batch).shape)
    if shape != tuple(batch.shape):
        raise ValueError(f"augment must keep the shape {tuple(batch.shape)}, returned {shape}")


# ------------------------------------------------------------------------------------------ data


def _as_dataset(x: Tensor | np.ndarray | Dataset, labels: Tensor | np.ndarray | None) -> tuple[Dataset, Tensor]:
    """A dataset of (instance, label) pairs that were checked, and all labels (N,) int64."""
    if isinstance(x, Dataset):
        if labels is not None:
            raise ValueError("x is a Dataset of (x, label) pairs; labels must be None")
        if not isinstance(x, TensorDataset):
            return x, _labels_of(x)
        if len(x.tensors) != 2:
            raise ValueError(f"x must hold (x, label) pairs, got {len(x.tensors)} tensors")
        x, labels = x.tensors
    if not isinstance(x, Tensor | np.ndarray):
        raise TypeError(f"x must be a tensor, an array or a Dataset, got {type(x).__name__}")
    if not isinstance(labels, Tensor | np.ndarray):
        raise TypeError(f"labels must be a tensor or an array, got {type(labels).__name__}")
    x, labels = torch.as_tensor(x), torch.as_tensor(labels)
    if not x.is_floating_point():
        raise TypeError(f"x must be floating, on the scale of G's output, got {x.dtype}")
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.ndim != 1:
        raise ValueError(
            "labels must be (N,) integers, the index of the one positive, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}"
        )
    if x.ndim < 2 or len(x) != len(labels):
        raise ValueError(
            f"x must have shape (N, *x_shape) with N = len(labels) = {len(labels)}, got {tuple(x.shape)}"
        )
    bad = (~x.isfinite()).flatten(1).any(dim=1).nonzero()
    if len(bad):
        raise ValueError(f"x has NaN or inf in {len(bad)} instances, the first is x[{int(bad[0])}]")
    x, labels = x.detach().cpu().float(), labels.detach().cpu().long()
    return TensorDataset(x, labels), labels


def _labels_of(data: Dataset) -> Tensor:
    """The labels of a dataset that is not in memory, each pair checked in one pass over it."""
    labels, shape = [], None
    for row in range(len(data)):
        x, label = data[row]
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"the dataset must yield floating tensors, item {row} has x: {kind}")
        shape = x.shape if shape is None else shape
        if x.shape != shape:
            raise ValueError(f"item {row} has shape {tuple(x.shape)}, item 0 has {tuple(shape)}")
        if not x.isfinite().all():
            raise ValueError(f"x has NaN or inf in item {row} of the dataset")
        if int(label) != label:
            raise ValueError(f"the label of item {row} must be an integer, got {label}")
        labels.append(int(label))
    return torch.tensor(labels, dtype=torch.int64)


def _check_labels(labels: Tensor, n_classes: int | None) -> int:
    """The number of classes, once every label is inside and every class has two instances."""
    if not len(labels):
        raise ValueError("x and labels are empty")
    n_classes = int(labels.max()) + 1 if n_classes is None else n_classes
    outside = ((labels < 0) | (labels >= n_classes)).nonzero()
    if len(outside):
        row = int(outside[0])
        raise ValueError(
            f"labels must be in [0, {n_classes}), got labels[{row}] = {int(labels[row])}"
            f" ({len(outside)} are outside)"
        )
    if n_classes < 2:
        raise ValueError(f"there must be at least two classes, got n_classes={n_classes}")
    counts = torch.bincount(labels, minlength=n_classes).tolist()
    few = [c for c, count in enumerate(counts) if count < 2]
    if few:
        raise ValueError(
            "every class needs at least two instances, one to train on and one held out; "
            f"class {few[0]} has {counts[few[0]]}"
        )
    return n_classes


def _split(labels: Tensor, n_classes: int, holdout: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    held = math.ceil(holdout * len(labels))
    if min(held, len(labels) - held) < n_classes:
        raise ValueError(
            f"holdout={holdout} of {len(labels)} instances leaves {len(labels) - held} to train "
            f"on and {held} held out; both need at least one per class ({n_classes})"
        )
    return train_test_split(np.arange(len(labels)), test_size=held, stratify=labels.numpy(), random_state=seed)


def _loader(data: Dataset, rows: np.ndarray, batch_size: int, *, shuffle: bool) -> DataLoader:
    if isinstance(data, TensorDataset):
        return tensor_loader([t[rows] for t in data.tensors], batch_size, shuffle=shuffle)
    return DataLoader(
        Subset(data, rows.tolist()),
        batch_size,
        shuffle=shuffle,
        drop_last=shuffle and len(rows) > batch_size,
    )
