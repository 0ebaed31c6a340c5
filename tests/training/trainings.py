"""Trainings in one line, and what several test files measure and leave out."""

from dataclasses import replace

import numpy as np
from sklearn.metrics import average_precision_score

from spml_fast import FineTuning, LinearPhase, plots, train_classifier
from spml_fast.data import MultiLabelData
from spml_fast.training import RunRecord

TRACKED = RunRecord(track_recovery=True)
"""No folder, but recovery is measured after every epoch."""


ONE_RUN = {"lr": 1e-2, "batch_size": 16, "epochs": 8}
"""Options of a short linear phase."""


def train(data, *, linear=None, finetune=None, defaults=ONE_RUN, **options):
    """``train_classifier`` on the CPU.

    Args:
        linear: options of the linear phase, laid over ``defaults``; without fine-tuning there always is one.
        finetune: options of fine-tuning.
    """
    if linear is None and finetune is None:
        linear = {}
    if linear is not None:
        linear = LinearPhase(**{**defaults, **linear})
    return train_classifier(
        data,
        linear=linear,
        finetune=None if finetune is None else FineTuning(**finetune),
        **{"accelerator": "cpu", "progress": False, **options},
    )


def first(data, n):
    """The first n rows of a split."""
    parts = {name: getattr(data, name) for name in ("x", "labels", "observed")}
    return replace(data, **{name: None if part is None else part[:n] for name, part in parts.items()})


def observed_alone(data):
    """The split without its full labels."""
    return MultiLabelData(data.x, observed=data.observed, names=data.names)


def leave_out_pictures(set_attribute=setattr):
    """Pictures take longer than short trainings."""
    for name in [name for name in vars(plots) if name.startswith("plot_")]:
        set_attribute(plots, name, lambda *args, **kwargs: None)


def sklearn_map(scores, labels):
    """Mean average precision class by class; 0 where there are no positives."""
    columns = zip(np.asarray(scores).T, np.asarray(labels).T, strict=True)
    return np.mean([average_precision_score(y, s) if y.any() else 0.0 for s, y in columns])
