"""Pictures of samples, of the sampler's diagnostics and of trainings, written to files.

matplotlib is imported when a picture is drawn, and only its file backends are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from .metrics import separation
from .sampling import Diagnostics, JointClass, S2MResult

# Colours of Okabe and Ito, which the colour-blind tell apart.
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
INK, GREY, LINE = "#222222", "#707070", "#E3E3E3"
DPI = 120
NAMED_CLASSES = 60
"""The largest number of classes for which each has a bar with its name."""


def plot_samples(
    rows: Mapping[str, np.ndarray],
    path: str | Path,
    n_columns: int = 16,
    value_range: tuple[float, float] | None = None,
) -> None:
    """A row of images per name, written as a PNG.

    Args:
        rows: images (n, channels, height, width) by name, all of one shape, of which the first ``n_columns`` are
            shown: three channels in colour, any other number as the mean of its channels.
        path: where the PNG is written.
        value_range: values that are black and white; by default those of each row's darkest and lightest pixel.
    """
    pictures = {name: as_pictures(np.asarray(images)[:n_columns], value_range) for name, images in rows.items()}
    columns = max([1, *map(len, pictures.values())])
    canvas = _contact_sheet(list(pictures.values()), columns)
    longer = max(canvas.shape[0] / len(pictures), canvas.shape[1] / columns)
    inches = max(0.5 / longer, 1 / DPI)  # of a pixel
    figure, axis = _figure(1, 1, width=inches * canvas.shape[1], height=inches * canvas.shape[0])
    axis.set_position([0, 0, 1, 1])
    axis.set_axis_off()
    edges = (0, 1, len(pictures), 0)
    axis.imshow(canvas, extent=edges, aspect="auto", interpolation="antialiased")
    for i, name in enumerate(pictures):
        axis.annotate(
            _plain(name), (0, i + 0.5), (-6, 0), textcoords="offset points", ha="right", va="center", fontsize=11
        )
    _save(figure, path)


def as_pictures(images: Any, value_range: tuple[float, float] | None = None, most: int = 128) -> np.ndarray:
    """Images (n, channels, height, width) as RGB (n, height, width, 3) in [0, 1].

    Args:
        value_range: values that become 0 and 1; by default the smallest and the largest of all images.
        most: pixels of the longer side; larger images are reduced to that.
    """
    x = torch.as_tensor(images).detach().cpu().float()
    low, high = value_range or ((float(x.min()), float(x.max())) if len(x) else (0.0, 1.0))
    x = (x if x.shape[1] == 3 else x.mean(dim=1, keepdim=True)).expand(-1, 3, -1, -1)
    height, width = x.shape[2:]
    if max(height, width) > most:
        size = [max(1, round(side * most / max(height, width))) for side in (height, width)]
        x = functional.interpolate(x, size, mode="area") if len(x) else x.new_empty(0, 3, *size)
    return ((x - low) / max(high - low, 1e-12)).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def _contact_sheet(rows: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """One picture of rows of pictures (n, height, width, 3), white between them and where a row has no more."""
    height, width = rows[0].shape[1:3]
    gap = max(1, round(max(height, width) / 24))
    canvas = np.ones((len(rows), columns, height + gap, width + gap, 3), dtype=np.float32)
    for i, row in enumerate(rows):
        canvas[i, : len(row), :height, :width] = row
    return canvas.transpose(0, 2, 1, 3, 4).reshape(len(rows) * (height + gap), columns * (width + gap), 3)


def plot_diagnostics(diagnostics: Mapping[str, Diagnostics], path: str | Path) -> None:
    """Support and acceptance rates, effective samples per proposal, and the bound on the distance to the target by
    step, for each joint class."""
    names = list(diagnostics)
    values = list(diagnostics.values())
    figure, (rates, efficiency, bounds) = _figure(1, 3, width=13, height=3.6)

    place = np.arange(len(names))
    rates.bar(place - 0.2, [d.support_rate for d in values], 0.4, label="support")
    rates.bar(place + 0.2, [d.acceptance_rate for d in values], 0.4, label="acceptance")
    rates.set_title("share of proposals")
    rates.legend()
    efficiency.bar(place, [d.ess_per_proposal for d in values])
    efficiency.set_title("effective samples per proposal")
    for axis in (rates, efficiency):
        axis.set_xticks(place, names, rotation=45, ha="right")

    for name, d in diagnostics.items():
        if np.isfinite(d.max_weight_ratio):
            steps = np.arange(1, d.n_steps + 1)
            bounds.plot(steps, (1 - 1 / d.max_weight_ratio) ** steps, label=name)
    bounds.set(title="bound on the distance to the target", xlabel="steps", yscale="log", ylim=(1e-4, 1.2))
    bounds.legend(fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def plot_adaptation(
    result: S2MResult, path: str | Path, name: Callable[[JointClass], str] = str, n_columns: int = 16
) -> None:
    """The stages of an adapted proposal: samples of each stage's joint class, and proposals per effective sample.

    Source: Cho et al., "Mining Multi-Label Samples from Single Positive Labels", NeurIPS 2022, the figure on
    repeated adaptation. The last row is the result itself.

    Args:
        result: images (channels, height, width) of a run whose proposals were adapted.
        name: says what a joint class is called in the picture.

    Raises:
        ValueError: the proposals of ``result`` were not adapted.
    """
    if result.adaptation is None:
        raise ValueError(f"the proposals of {result.joint_class} were not adapted: there is no path to draw")
    stages = result.adaptation.stages
    rows = [(name(stage.joint_class), stage.samples, stage.diagnostics) for stage in stages]
    rows.append(("result", result.samples[:n_columns], result.diagnostics))
    titles = ["from the prior", *(f"adapted to {row[0]}" for row in rows[:-1])]
    height = 0.55 * len(rows) + 0.9
    figure, (pictures, costs) = _figure(
        1, 2, width=0.5 * n_columns + 5, height=height, width_ratios=(0.5 * n_columns, 3.2)
    )

    place = np.arange(len(rows))
    canvas = _contact_sheet([as_pictures(images[:n_columns]) for _, images, _ in rows], n_columns)
    edges = (-0.5, n_columns - 0.5, len(rows) - 0.5, -0.5)
    pictures.imshow(canvas, extent=edges, aspect="auto", interpolation="antialiased")
    pictures.set_xticks([])
    pictures.set_yticks(place, [_plain(row[0]) for row in rows], fontsize=10, color=INK)
    pictures.tick_params(length=0)
    for spine in pictures.spines.values():
        spine.set_visible(False)

    cost = np.array([1 / d.ess_per_proposal if d.ess_per_proposal else np.nan for _, _, d in rows])
    costs.barh(place, cost, color=[GREY, *[BLUE] * (len(rows) - 1)], height=0.55)
    for y, (value, title) in enumerate(zip(cost, titles, strict=True)):
        costs.text(
            value if np.isfinite(value) else 1, y, f"  {value:,.0f}, {_plain(title)}", va="center", fontsize=9
        )
    costs.set(xscale="log", ylim=(len(rows) - 0.5, -0.5), yticks=[])
    _dress(costs, title="proposals per effective sample", grid="x")
    costs.set_xlim(1, np.nanmax([*cost, 10]) * 60)
    figure.tight_layout()
    _save(figure, path)


def plot_curves(epochs: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Training loss and mAP over the epochs of all phases, in the order given.

    Args:
        epochs: a record of each epoch: "phase", "epoch", "train_loss", "validation_map", "recovery_map"; what is
            absent, None or NaN leaves a gap. mAPs are in [0, 1].
        path: where the PNG is written.

    Raises:
        ValueError: there are no epochs.
    """
    if not epochs:
        raise ValueError("epochs is empty: there is nothing to draw")
    loss = _column(epochs, "train_loss")
    validation, recovery = 100 * _column(epochs, "validation_map"), 100 * _column(epochs, "recovery_map")
    with_map = bool(np.isfinite(validation).any() or np.isfinite(recovery).any())
    figure, axes = _figure(1, 1 + with_map, width=10, height=3.6, squeeze=False)
    step = np.arange(1, len(epochs) + 1)
    marker = {"marker": "o", "markersize": 3.5} if len(epochs) <= 40 else {}

    axes[0, 0].plot(step, loss, color=INK, lw=1.8, **marker)
    _dress(axes[0, 0], title="Training loss", xlabel="epoch", ylabel="loss")
    if with_map:
        axis = axes[0, 1]
        for values, label, color in ((validation, "validation", BLUE), (recovery, "recovery", VERMILION)):
            if np.isfinite(values).any():
                axis.plot(step, values, color=color, lw=1.8, label=label, **marker)
        if np.isfinite(validation).any():
            best = int(np.nanargmax(validation))
            axis.plot(step[best], validation[best], "o", ms=10, mfc="none", mec=BLUE, mew=1.5)
            axis.annotate(
                f"{validation[best]:.1f}",
                (step[best], validation[best]),
                (0, -17 if np.isfinite(recovery).any() else 9),
                textcoords="offset points",
                ha="center",
                color=BLUE,
                fontweight="bold",
                fontsize=9,
            )
        _dress(axis, title="Mean average precision", xlabel="epoch", ylabel="mAP (%)")
        _legend(axis, loc="lower right")
    for axis in axes[0]:
        axis.margins(y=0.14)
        _mark_phases(axis, [str(epoch.get("phase", "")) for epoch in epochs])
    figure.tight_layout(w_pad=2.5)
    _save(figure, path)


def plot_average_precision(ap: Mapping[str, float], path: str | Path) -> None:
    """Average precision of every class, the best first, and their mean.

    Args:
        ap: AP in [0, 1] by class name. Up to ``NAMED_CLASSES`` are bars with names; more are a curve with a few.
        path: where the PNG is written.

    Raises:
        ValueError: there are no classes.
    """
    if not ap:
        raise ValueError("ap is empty: there is nothing to draw")
    values = 100 * np.array([np.nan if value is None else value for value in ap.values()], dtype=float)
    mean = float(values.mean())
    order = np.argsort(-np.nan_to_num(values, nan=-1), kind="stable")
    values, names = values[order], [_plain(list(ap)[i]) for i in order]
    place = np.arange(len(values))

    if len(values) <= NAMED_CLASSES:
        figure, axis = _figure(1, 1, width=8, height=0.23 * len(values) + 1.2)
        axis.barh(place, values, color=BLUE, height=0.68)
        for y, value in zip(place, values, strict=True):
            if np.isfinite(value):
                axis.text(101, y, f"{value:.1f}", va="center", fontsize=8, color=GREY)
        axis.axvline(mean, color=VERMILION, lw=1.5, ls="--", zorder=2)
        axis.text(mean, -0.62, f"mAP {mean:.1f}", ha="center", va="bottom", color=VERMILION, fontweight="bold")
        _dress(axis, xlabel="average precision (%)", grid="x")
        axis.set(xlim=(0, 106), ylim=(len(values) - 0.4, -0.6), xticks=range(0, 101, 20))
        axis.set_yticks(place, names, fontsize=9)
        axis.tick_params(axis="y", length=0)
    else:
        figure, axis = _figure(1, 1, width=10, height=4.2)
        axis.fill_between(place + 1, values, color=BLUE, alpha=0.15, lw=0)
        axis.plot(place + 1, values, color=BLUE, lw=2)
        axis.axhline(mean, color=VERMILION, lw=1.5, ls="--")
        axis.text(
            len(values), mean + 1.2, f"mAP {mean:.1f}", ha="right", va="bottom", color=VERMILION, fontweight="bold"
        )
        for i in np.linspace(0, len(values) - 1, 7).round().astype(int)[:-1]:
            axis.plot(i + 1, values[i], "o", ms=4, color=BLUE)
            axis.annotate(
                names[i],
                (i + 1, values[i]),
                (5, 6),  # above and right of a falling curve, which it cannot hide there
                textcoords="offset points",
                fontsize=8,
                color=INK,
                bbox={"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75},
            )
        _dress(axis, xlabel=f"the {len(values)} classes, best first", ylabel="average precision (%)")
        axis.set(xlim=(1, len(values)), ylim=(0, 112), yticks=range(0, 101, 20))
    _save(figure, path)


def plot_unobserved_positives(counts: np.ndarray, path: str | Path) -> None:
    """The predicted probabilities of unobserved positives and of true negatives, epoch by epoch.

    A column is the normalised histogram of one epoch, white where it is zero, as in the figure of Cole et al.,
    CVPR 2021; here with the median, and with the true negatives beside the unobserved positives.

    Args:
        counts: (T, 2, bins), ``metrics.probability_counts`` of T epochs.
        path: where the PNG is written.
    """
    from matplotlib.colors import LogNorm

    counts = _as_counts(counts)
    n_epochs, _, bins = counts.shape
    edges = np.linspace(0, 1, bins + 1)
    total = counts.sum(axis=2, keepdims=True)
    share = np.ma.masked_equal(counts / np.maximum(total, 1), 0)
    figure, axes = _figure(1, 2, width=10, height=4, sharey=True)
    figure.set_layout_engine("constrained")
    for axis, of_kind, n, title in zip(
        axes, share.swapaxes(0, 1), counts.swapaxes(0, 1), ("Unobserved positives", "True negatives"), strict=True
    ):
        mesh = axis.pcolormesh(
            np.arange(n_epochs + 1) + 0.5, edges, of_kind.T, cmap="YlGnBu", norm=LogNorm(1e-4, 1), rasterized=True
        )
        median = [histogram_quantile(row, 0.5) for row in n]
        axis.plot(np.arange(1, n_epochs + 1), median, color=VERMILION, lw=2, marker="o", ms=3, label="median")
        most = int(n[0].sum())
        _dress(axis, title=f"{title} ({most:,})", xlabel="epoch", grid="")
        axis.set(xlim=(0.5, n_epochs + 0.5), ylim=(0, 1))
        _whole_epochs(axis)
    axes[0].set_ylabel("predicted probability")
    _legend(axes[0], loc="upper left", frameon=True)
    bar = figure.colorbar(mesh, ax=axes, pad=0.015, aspect=28)
    bar.set_label("share of the epoch's labels", color=INK)
    bar.outline.set_visible(False)
    _save(figure, path)


def plot_false_negative_share(
    counts: np.ndarray, path: str | Path, k_hat: Callable[[np.ndarray], np.ndarray] | None = None
) -> None:
    """The share of positives, FN / (FN + TN), among the unobserved labels of each interval of p.

    Figure 5 of Chen et al., "Boosting Single Positive Multi-label Classification with Generalized Robust Loss":
    the first epoch and the last. Intervals without labels are left blank, those with few are faint.

    Args:
        counts: (T, 2, bins), ``metrics.probability_counts`` of T epochs.
        path: where the PNG is written.
        k_hat: the loss's estimate of that share at the end of training, an array of p to an array; drawn over the
            last epoch. sigmoid(w p + b) for GR.
    """
    counts = _as_counts(counts)
    n_epochs, _, bins = counts.shape
    edges = np.linspace(0, 1, bins + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    shown = [0, n_epochs - 1] if n_epochs > 1 else [0]
    figure, axes = _figure(
        2,
        len(shown),
        width=10,
        height=4.6,
        squeeze=False,
        sharex=True,
        sharey="row",
        gridspec_kw={"height_ratios": [4, 1], "hspace": 0.1, "wspace": 0.1},
    )
    for axis, below, epoch in zip(axes[0], axes[1], shown, strict=True):
        positives, n = counts[epoch, 0], counts[epoch].sum(axis=0)
        full = np.flatnonzero(n)
        share = 100 * positives[full] / n[full]
        # A share of one label is 0 or 100 %: from 1 label to 1000, bars go from faint to solid.
        opacity = np.clip(0.15 + 0.85 * np.log10(np.maximum(n[full], 1)) / 3, 0.15, 1)
        for x, y, alpha in zip(centres[full], share, opacity, strict=True):
            axis.bar(x, y, width=0.9 / bins, color=SKY, alpha=alpha, lw=0)
        if n.sum():
            overall = 100 * positives.sum() / n.sum()
            axis.axhline(overall, color=GREY, lw=1.2, ls=":", label=f"all unobserved labels: {overall:.1f} %")
        if k_hat is not None and epoch == n_epochs - 1:
            p = np.linspace(0, 1, 201)
            axis.plot(p, 100 * np.asarray(k_hat(p)), color=VERMILION, lw=2.2, label=r"$\hat{k}(p)$ of the loss")
        _dress(axis, title="First epoch" if epoch == 0 else f"Last epoch ({n_epochs})")
        axis.set(xlim=(0, 1), ylim=(0, 130), yticks=range(0, 101, 20))
        _legend(axis, loc="upper left")
        below.bar(centres[full], n[full], width=0.9 / bins, color=GREY, lw=0)
        _dress(below, xlabel="predicted probability p")
        below.set(yscale="log", ylim=(0.5, max(10, 2 * counts[shown].sum(axis=1).max())))
    axes[0, 0].set_ylabel("FN / (FN + TN)  (%)")
    axes[1, 0].set_ylabel("labels")
    figure.align_ylabels(axes[:, 0])
    _save(figure, path)


def plot_distinguishing(counts: np.ndarray, path: str | Path) -> None:
    """The separation of missing positives from true negatives by their predicted probabilities, over the epochs.

    Figure 3 of Chen et al. (see :func:`plot_false_negative_share`): the distributions of p in the first and in the
    last epoch; over the epochs, their Wasserstein distance and the ROC AUC, both from the counts.

    Args:
        counts: (T, 2, bins), ``metrics.probability_counts`` of T epochs.
        path: where the PNG is written.
    """
    counts = _as_counts(counts)
    n_epochs, _, bins = counts.shape
    edges = np.linspace(0, 1, bins + 1)
    shown = [0, n_epochs - 1] if n_epochs > 1 else [0]
    figure, axes = _figure(1, len(shown) + 1, width=10, height=3.6)
    auc, distance = separation(counts)
    for axis, epoch in zip(axes, shown, strict=False):
        for n, name, color in (
            (counts[epoch, 1], "true negatives", BLUE),
            (counts[epoch, 0], "missing positives", VERMILION),
        ):
            # On a logarithmic axis: most labels lie close to 0. An empty bin is far below what is shown.
            density = np.where(n > 0, n / max(n.sum(), 1) * bins, np.nan)
            axis.stairs(np.nan_to_num(density, nan=1e-9), edges, baseline=1e-9, fill=True, color=color, alpha=0.25)
            axis.stairs(np.nan_to_num(density, nan=1e-9), edges, baseline=1e-9, color=color, lw=1.3, label=name)
        _dress(
            axis,
            title="First epoch" if epoch == 0 else f"Last epoch ({n_epochs})",
            xlabel="predicted probability p",
        )
        axis.set(yscale="log", xlim=(0, 1), ylim=(1e-3, 2 * bins))
    axes[0].set_ylabel("density")
    _legend(axes[0], loc="upper right")

    step = np.arange(1, n_epochs + 1)
    for values, name, color, style in (
        (auc, "ROC AUC", GREEN, "-"),
        (distance, "Wasserstein distance", PURPLE, "--"),
    ):
        axes[-1].plot(step, values, color=color, ls=style, lw=1.8, marker="o", ms=3, label=name)
    _dress(axes[-1], title="Separation", xlabel="epoch")
    axes[-1].set(xlim=(0.5, n_epochs + 0.5), ylim=(0, 1.02))
    _whole_epochs(axes[-1])
    _legend(axes[-1], loc="best")
    figure.tight_layout(w_pad=1.5)
    _save(figure, path)


def plot_grid(grid: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Validation mAP of every learning rate, a line per batch size; the best is ringed.

    Args:
        grid: a record of each run: "lr", "batch_size" and "validation_map"; None or NaN, where the run diverged,
            leaves a gap.
        path: where the PNG is written.

    Raises:
        ValueError: the grid is empty.
    """
    if not grid:
        raise ValueError("grid is empty: there is nothing to draw")
    lr, value = _column(grid, "lr"), 100 * _column(grid, "validation_map")
    sizes = np.array([point["batch_size"] for point in grid])
    figure, axis = _figure(1, 1, width=7, height=3.8)
    styles = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"), (SKY, "P"))
    for i, size in enumerate(np.unique(sizes)):
        mine = np.flatnonzero(sizes == size)
        mine = mine[np.argsort(lr[mine], kind="stable")]
        color, marker = styles[i % len(styles)]
        line = "-" if i < len(styles) else "--"
        axis.plot(lr[mine], value[mine], line, color=color, marker=marker, ms=6, lw=1.8, label=f"{size}")
    if np.isfinite(value).any():
        best = int(np.nanargmax(value))
        axis.plot(lr[best], value[best], "o", ms=14, mfc="none", mec=INK, mew=1.5)
        axis.annotate(
            f"{value[best]:.1f}",
            (lr[best], value[best]),
            (0, 11),
            textcoords="offset points",
            ha="center",
            fontweight="bold",
            color=INK,
        )
    _dress(axis, xlabel="learning rate", ylabel="validation mAP (%)")
    axis.set_xscale("log")
    rates = np.unique(lr)
    axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axis.set_xticks([], minor=True)
    axis.set_xlim(rates[0] / 1.8, rates[-1] * 1.8)
    axis.margins(y=0.16)
    _legend(axis, title="batch size", loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def _as_counts(counts: Any) -> np.ndarray:
    counts = np.stack([np.asarray(of_epoch) for of_epoch in counts]) if len(counts) else np.empty((0, 2, 1))
    if counts.ndim != 3 or counts.shape[1] != 2 or not counts.size:
        raise ValueError(f"counts must have shape (T, 2, bins) with an epoch and a bin, got {counts.shape}")
    return counts


def histogram_quantile(counts: np.ndarray, q: float) -> float:
    """The q-quantile of a histogram over [0, 1], each bin's labels spread over it evenly; NaN if it is empty."""
    total = counts.sum()
    if not total:
        return float("nan")
    cumulative = np.concatenate([[0], counts.cumsum()]) / total
    i = max(int(cumulative.searchsorted(q)) - 1, 0)
    return float((i + (q - cumulative[i]) / (cumulative[i + 1] - cumulative[i])) / len(counts))


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    return np.array([np.nan if row.get(key) is None else row[key] for row in rows], dtype=float)


def _plain(name: str, longest: int = 32) -> str:
    """A label's name as matplotlib shows it: cut if long, and a dollar sign not taken for mathematics."""
    name = name if len(name) <= longest else name[: longest - 1] + "…"
    return name.replace("$", r"\$")


def _dress(axis, *, title: str = "", xlabel: str = "", ylabel: str = "", grid: str = "y") -> None:
    """The common look: no box, faint grid lines behind the data, the title on the left."""
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)
    axis.set_axisbelow(True)
    axis.tick_params(colors=GREY, labelcolor=INK, labelsize=9)
    if grid:
        axis.grid(axis=grid, color=LINE, lw=0.8)
    if title:
        axis.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axis.set_xlabel(xlabel, color=INK)
    axis.set_ylabel(ylabel, color=INK)


def _legend(axis, **options) -> None:
    if axis.get_legend_handles_labels()[0]:
        axis.legend(**{"frameon": False, "fontsize": 9, **options})


def _whole_epochs(axis) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _mark_phases(axis, phases: Sequence[str]) -> None:
    """Whole epochs on the x axis, and a line with a name where a phase begins, if there is more than one."""
    _whole_epochs(axis)
    axis.set_xlim(0.5, len(phases) + 0.5)
    starts = [i for i in range(len(phases)) if i == 0 or phases[i] != phases[i - 1]]
    if len(starts) < 2:
        return
    names = {"linear": "linear", "finetune": "fine-tuning"}
    for number, start in enumerate(starts):
        end = starts[number + 1] if number + 1 < len(starts) else len(phases)
        if number % 2:
            axis.axvspan(start + 0.5, end + 0.5, color=GREY, alpha=0.09, lw=0, zorder=0)
        axis.text(
            start + 0.5,
            0.98,
            "  " + _plain(names.get(phases[start], phases[start])),
            fontsize=8.5,
            color=GREY,
            transform=axis.get_xaxis_transform(),
            va="top",
            ha="left",
        )


def _figure(n_rows: int, n_columns: int, *, width: float, height: float, **options):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(n_rows, n_columns, **options)


def _save(figure, path: str | Path) -> None:
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
