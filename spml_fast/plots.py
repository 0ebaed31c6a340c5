"""Pictures; matplotlib is imported when one is drawn, and only its file backends are used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .sampling import Diagnostics


def plot_samples(rows: Mapping[str, np.ndarray], path: str | Path, n_columns: int = 16) -> None:
    """A row of images per name. Images are (n, 1 or 3, height, width), each row scaled alike from its range."""
    figure, axes = _figure(
        len(rows), n_columns, width=0.45 * n_columns + 1.2, height=0.5 * len(rows) + 0.1, squeeze=False
    )
    for row_axes, (name, images) in zip(axes, rows.items(), strict=True):
        images = np.asarray(images)
        low, high = (float(images.min()), float(images.max())) if len(images) else (0.0, 1.0)
        for i, axis in enumerate(row_axes):
            axis.set_axis_off()
            if i < len(images):
                picture = (images[i].transpose(1, 2, 0) - low) / max(high - low, 1e-12)
                axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        row_axes[0].text(-0.3, 0.5, name, transform=row_axes[0].transAxes, ha="right", va="center", fontsize=11)
    _save(figure, path)


def plot_diagnostics(diagnostics: Mapping[str, Diagnostics], path: str | Path) -> None:
    """What the proposals are worth for each joint class, and how fast the chains forget where they began."""
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


def _figure(n_rows: int, n_columns: int, *, width: float, height: float, **options):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(n_rows, n_columns, **options)


def _save(figure, path: str | Path) -> None:
    figure.savefig(path, dpi=120, bbox_inches="tight")
