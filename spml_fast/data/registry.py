"""Loaders by name, for the command line and for configuration files."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from .arff_files import mulan
from .array_files import arrays, formatted
from .base import Simulation, Splits
from .cifar import cifar10, cifar_7to3
from .digits import digit_attributes
from .generated import synthetic
from .image_sets import coco2014, voc2012

LOADERS: dict[str, Callable[..., Splits]] = {
    "arrays": arrays,
    "cifar10": cifar10,
    "cifar_7to3": cifar_7to3,
    "coco2014": coco2014,
    "digits": digit_attributes,
    "formatted": formatted,
    "mulan": mulan,
    "synthetic": synthetic,
    "voc2012": voc2012,
}


def load(dataset: str, /, **options: Any) -> Splits:
    """The splits of a data set by the name of its loader.

    >>> load("mulan", folder="data/mulan", name="scene")  # mulan("data/mulan", "scene")

    Raises:
        ValueError: an unknown data set or option, or one that is missing; says what there is.
    """
    loader = LOADERS.get(dataset)
    if loader is None:
        raise ValueError(f"there is no data set {_unknown(dataset, LOADERS)}")
    known = options_of(dataset)
    for option in options:
        if option not in known:
            raise ValueError(f"data set {dataset!r} has no option {_unknown(option, known)}")
    required = [name for name, default in known.items() if default is inspect.Parameter.empty]
    missing = [name for name in required if name not in options]
    if missing:
        raise ValueError(f"data set {dataset!r} needs {' and '.join(missing)}; its options are {', '.join(known)}")
    return loader(**options)


def options_of(dataset: str) -> dict[str, Any]:
    """Options of a data set with their defaults, ``inspect.Parameter.empty`` where they have none."""
    parameters = inspect.signature(LOADERS[dataset]).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}
    simulated = {"positives": 1, "negatives": 0, "class_weight": None, "instance_weight": None}
    assert simulated.keys() == Simulation.__annotations__.keys()
    return own | simulated


def _unknown(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    meant = f", did you mean {close[0]!r}?" if close else ";"
    return f"{name!r}{meant} There are {', '.join(known)}"
