"""Samplers that a command line or a folder describes, and the folder of what they drew.

A sampler's folder holds ``sampler.json`` and weights as safetensors. ``spml-fast demo`` and ``spml-fast ratio``
write one, ``spml-fast sample`` reads it. The file names callables, which are imported and called: a folder is as
trustworthy as the code that it names.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ._checkpoint import write_atomically
from ._conventions import Generator, images_of, latent_shape, parse_classifier_output
from ._loading import ModelSpec, checked_device, one_line, portable, writable_folder
from ._models import eval_mode, first_tensor, seeded
from ._processes import is_first_process
from .sampling import JointClass, MinMax, Run, S2MResult, S2MSampler
from .sampling.probe import alike

FILE = "sampler.json"
NamedTarget = tuple[Sequence[str], Sequence[str]]
"""What samples have and what not, by names or indices of classes."""
COLUMNS, MOST_ROWS = 16, 16
"""Images in a row of the grid; rows that a single joint class has at most."""


@dataclass(frozen=True)
class SamplerSpec:
    """A sampler in plain values.

    Attributes:
        generator, classifier: what S2MSampler calls G and clf.
        classes: names of the classes; None: their indices.
        weight: options of :class:`MinMax`; each a number, a list with one per class, or a mapping from the size of
            I to one of these.
        z_dim: latent size, an int or a list, where G does not say it.
        value_range: values of a pixel that are black and white; None: found from what G generates.
    """

    generator: ModelSpec
    classifier: ModelSpec
    classes: tuple[str, ...] | None = None
    weight: Mapping[str, Any] = field(default_factory=dict)
    z_dim: int | Sequence[int] | None = None
    value_range: tuple[float, float] | None = None

    @classmethod
    def read(cls, folder: str | Path) -> SamplerSpec:
        """The sampler of a folder.

        Raises:
            FileNotFoundError: it has no ``sampler.json``.
            ValueError: that file holds something else.
        """
        file = Path(folder) / FILE
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist; `spml-fast demo` or `spml-fast ratio` writes it")
        try:
            told = json.loads(file.read_text())
            models = {name: _model(told.pop(name), file.parent) for name in ("generator", "classifier")}
            classes, value_range = told.pop("classes", None), told.pop("range", None)
            return cls(
                **models,
                classes=None if classes is None else tuple(map(str, classes)),
                value_range=None if value_range is None else checked_range(value_range),
                **told,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file} does not describe a sampler: {one_line(error)}") from error

    @classmethod
    def of(
        cls,
        folder: str | Path | None,
        generator: ModelSpec,
        classifier: ModelSpec,
        *,
        weight: Mapping[str, Any],
        **changes: Any,
    ) -> SamplerSpec:
        """The sampler of a folder, if there is one, with what is given in the place of what it has.

        Args:
            generator, classifier: without a callable, those of the folder with other arguments or weights. The
                classifier's callable may be another folder, whose classifier, classes and weight are taken.
            weight: options that replace those of the folder.
            changes: other attributes, None for the folder's.

        Raises:
            ValueError: neither a folder nor a callable says what a model is.
        """
        base = None if folder is None else cls.read(folder)
        if classifier.callable and Path(classifier.callable).is_dir():
            other = cls.read(classifier.callable)
            classifier = replace(classifier, callable="")
            if base is not None:
                other = replace(other, generator=base.generator, z_dim=base.z_dim)
            base = other
        if generator.callable and base is not None:
            base = replace(base, z_dim=None)

        def chosen(name: str, given: ModelSpec) -> ModelSpec:
            if given.callable:
                return given
            if base is None:
                raise ValueError(
                    f"what is the {name}? Name a folder with {FILE}, or --{name} package.module:callable"
                )
            before: ModelSpec = getattr(base, name)
            arguments = {**before.arguments, **given.arguments}
            return replace(before, arguments=arguments, weights=given.weights or before.weights)

        models = chosen("generator", generator), chosen("classifier", classifier)
        base = cls(*models) if base is None else replace(base, generator=models[0], classifier=models[1])
        changes = {name: value for name, value in changes.items() if value is not None}
        return replace(base, weight={**base.weight, **weight}, **changes)

    def save(self, folder: Path, G: Callable[..., Tensor], clf: nn.Module) -> None:
        """Writes ``sampler.json`` and the weights of the two models, by which they are made again."""
        from safetensors.torch import save_model

        entries = {}
        for name, model in (("generator", G), ("classifier", clf)):
            spec: ModelSpec = getattr(self, name)
            entries[name] = {"callable": portable(spec.callable), "arguments": dict(spec.arguments)}
            if isinstance(model, nn.Module) and model.state_dict():
                weights = f"{name}.safetensors"
                write_atomically(folder / weights, partial(save_model, model))
                entries[name]["weights"] = weights
        told = {
            **entries,
            "classes": self.classes,
            "range": self.value_range,
            "z_dim": self.z_dim,
            "weight": dict(self.weight),
        }
        write_json(folder / FILE, told)

    def load(self) -> tuple[Callable[..., Tensor], Callable[[Tensor], object]]:
        """G and clf, modules in eval mode on the CPU."""
        return self.generator.load("generator"), self.classifier.load("classifier")


def _model(entry: Mapping[str, Any], folder: Path) -> ModelSpec:
    weights = entry.get("weights")
    return ModelSpec(
        str(entry["callable"]), dict(entry.get("arguments", {})), None if weights is None else folder / weights
    )


def min_max(weight: Mapping[str, Any]) -> MinMax:
    """The weight of plain values; see :attr:`SamplerSpec.weight`."""

    def option(name: str, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value

        def by_size(has: tuple[int, ...], has_not: tuple[int, ...]) -> Any:
            if str(len(has)) not in value:
                raise ValueError(f"weight: {name} is not known for joint classes of {len(has)} attributes")
            return value[str(len(has))]

        return by_size

    return MinMax(**{name: option(name, value) for name, value in weight.items() if value is not None})


# ------------------------------------------------------------------------------------ the models


@dataclass(frozen=True)
class Probe:
    """What a generator was found to do with a few latents.

    Attributes:
        x: what it generated, (n, *x_shape).
        conditional: whether it takes a label.
        stochastic: whether it draws noise of its own, so that the same latents gave something else.
    """

    x: Tensor
    conditional: bool
    stochastic: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    def value_range(self) -> tuple[float, float]:
        """The range that pixels seem to have, [-1, 1] or [0, 1].

        Raises:
            ValueError: values are too far from both.
        """
        low, high = float(self.x.min()), float(self.x.max())
        if low < -1.5 or high > 1.5:
            raise ValueError(
                f"the generator's values reach from {low:.3g} to {high:.3g}, which is neither [-1, 1] nor [0, 1]: "
                "say which are black and white with --range LOW HIGH"
            )
        # A decoder without a last activation goes a little below 0.
        return (-1.0, 1.0) if low < -0.3 * max(high, 0) else (0.0, 1.0)


def probe(G: Callable[..., Tensor], z_dim: int | Sequence[int] | None, n: int = 16) -> Probe:
    """Runs a generator on a few latents, the same each time.

    Raises:
        ValueError: in one line, that it failed, or returned what a sampler cannot use.
    """
    try:
        shape = latent_shape(G, z_dim)
    except ValueError as error:
        raise ValueError(one_line(str(error).replace("z_dim=...", "--z-dim N"))) from error
    weight = first_tensor(G)
    device = torch.device("cpu") if weight is None else weight.device
    z = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    z = z if weight is None else z.to(weight.dtype)
    generator = Generator(G, None)

    def made() -> Tensor:
        labels = torch.zeros(n, dtype=torch.int64, device=device) if generator.conditional else None
        return images_of(generator(z.clone(), labels), n).clone()

    with _trial(f"the generator failed for latents {tuple(z.shape)}", G):
        failure: Exception | None = None
        for _ in generator.ways():
            try:
                x = made()
                break
            except Exception as error:
                failure = failure or error
        else:
            raise failure
        again = made()
    if not x.is_floating_point() or x.ndim < 2:
        raise ValueError(
            f"the generator must return floating-point x ({n}, ...) for {n} latents, got {x.dtype} "
            f"{tuple(x.shape)}"
        )
    if not x.isfinite().all():
        raise ValueError("the generator returned NaN or inf for latents of the standard normal")
    return Probe(x, bool(generator.conditional), not alike(x, again))


@contextlib.contextmanager
def _trial(failure: str, model: object) -> Iterator[None]:
    """Tries a user's model, without gradients or traces in torch's generator; an exception becomes one line."""
    weight = first_tensor(model)
    device = torch.device("cpu") if weight is None else weight.device
    with seeded(0, device), torch.no_grad(), eval_mode(model):
        try:
            yield
        except Exception as error:
            raise ValueError(f"{failure}: {one_line(error)}") from error


def _class_names(clf: Callable[[Tensor], object], x: Tensor, names: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the classes, or their indices; the classifier is run on x to see how many there are."""
    with _trial(f"the classifier failed for {tuple(x.shape)}", clf):
        weight = first_tensor(clf) if isinstance(clf, nn.Module) else None
        given = x.clone() if weight is None else x.to(weight.dtype, copy=True)
        n = parse_classifier_output(clf(given), len(x)).class_logits.shape[1]
    if names is not None and len(names) != n:
        raise ValueError(f"the classifier returns {n} class logits, but there are names of {len(names)} classes")
    return tuple(map(str, range(n))) if names is None else tuple(names)


def checked_range(values: Sequence[float]) -> tuple[float, float]:
    """Values of black and white as a pair; ``ValueError`` if they are none."""
    low, high = map(float, values)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"a range is two numbers, the smaller first, got {low:g} {high:g}")
    return low, high


# ----------------------------------------------------------------------------------- the targets


def class_indices(chosen: Sequence[str], classes: Sequence[str]) -> tuple[int, ...]:
    """Indices of classes given by name or by index; ``ValueError`` for one that there is not."""
    for name in chosen:
        if name not in classes and not (name.isdecimal() and int(name) < len(classes)):
            raise ValueError(f"{name!r} is not a class; they are {', '.join(classes)}")
    return tuple(classes.index(name) if name in classes else int(name) for name in chosen)


def parse_target(text: str) -> tuple[list[str], list[str]]:
    """What samples have and what not: ``"A,-C"`` -> (["A"], ["C"])."""
    names = [name.strip() for name in text.split(",")]
    if not all(name.removeprefix("-") for name in names):
        raise ValueError(
            f"--targets {text}: expected names or indices with commas between them, as in A,B or A,-C"
        )
    has_not = [name[1:] for name in names if name.startswith("-")]
    return [name for name in names if not name.startswith("-")], has_not


def target_name(target: JointClass, classes: Sequence[str]) -> str:
    """A joint class in the names of its classes: ``"A+C-B"``."""
    return "+".join(classes[i] for i in target.I) + "".join(f"-{classes[j]}" for j in target.J)


def _targets(
    targets: Sequence[tuple[Sequence[str], Sequence[str]]], classes: Sequence[str]
) -> dict[str, JointClass]:
    found = {}
    for has, has_not in targets:
        target = JointClass(class_indices(has, classes), class_indices(has_not, classes))
        name = target_name(target, classes)
        if name in found:
            raise ValueError(f"{name} is asked for twice")
        found[name] = target
    return found


# -------------------------------------------------------------------------------------- sampling


def draw(
    spec: SamplerSpec,
    targets: Sequence[NamedTarget],
    out: str | Path | None = None,
    *,
    beside: str | Path = ".",
    device: str = "cpu",
    checkpoint: str | Path | None = None,
    single: bool = False,
    **options: Any,
) -> dict[str, S2MResult]:
    """Draws joint classes from one pool and writes what was drawn into a folder.

    Processes that torchrun started share the chains, and the first one writes the samples of all.

    Args:
        targets: (has, has not) by names or indices of classes.
        out: the folder; by default one named after the first target, in the folder ``beside``. It gets
            ``grid.png``, a row per joint class, ``samples.safetensors`` and ``diagnostics.json``; where proposals
            were adapted, pictures of how.
        checkpoint: file that keeps the chains as they run.
        single: write every sample as a PNG, too.
        options: n_samples, n_steps, method, proposal and seed of :meth:`S2MSampler.sample_targets`.

    Returns:
        Results by the name of the joint class, as "A+B-C".

    Raises:
        ValueError, OSError: in one line, whatever does not fit; before anything is drawn.
    """
    import matplotlib  # noqa: F401  now rather than after minutes of sampling
    import safetensors  # noqa: F401

    if spec.classes is not None:
        _targets(targets, spec.classes)
    place = checked_device(device)
    G, clf = (m.to(place) if isinstance(m, nn.Module) else m for m in spec.load())
    probed = probe(G, spec.z_dim)
    classes = _class_names(clf, probed.x, spec.classes)
    named = _targets(targets, classes)
    is_image = len(probed.shape) == 3
    value_range = spec.value_range or (probed.value_range() if is_image else None)
    first, *others = _file_names(named)
    name = f"samples_{first}" + (f"_and_{len(others)}_more" if others else "")
    folder = Path(beside) / name if out is None else Path(out)
    if is_first_process():
        writable_folder(folder)
        if is_image and spec.value_range is None:
            print(f"pixels taken to be in [{value_range[0]:g}, {value_range[1]:g}]; --range says otherwise")
        if not is_image:
            print(f"samples of shape {probed.shape} are no images: there will be no pictures")
    sampler = S2MSampler(G, clf, z_dim=spec.z_dim, weight=min_max(spec.weight), stochastic=probed.stochastic)
    pairs = [(target.I, target.J) for target in named.values()]
    drawn = sampler.sample_targets(pairs, **options, run=Run(checkpoint, gather=True), progress=True)
    results = dict(zip(named, drawn, strict=True))
    if is_first_process():
        written = _Written(folder, classes, value_range)
        if is_image:
            written.pictures(results, single)
        written.tensors(results)
        written.diagnostics(results, {"seed": options.get("seed"), "range": value_range})
        for name, result in results.items():
            print(summary(name, result))
        print(f"written to {folder}/")
    return results


def summary(name: str, result: S2MResult) -> str:
    """The diagnostics that tell most of a result, in a line."""
    d = result.diagnostics
    facts = {
        "acceptance": f"{d.acceptance_rate:.3f}",
        "support": f"{d.support_rate:.3f}",
        "ESS/proposal": f"{d.ess_per_proposal:.3f}",
        "M": f"{d.max_weight_ratio:.1f}",
        "TV bound": None if d.tv_bound is None else f"{d.tv_bound:.2g}",
        "R-hat": None if d.r_hat is None else f"{d.r_hat:.3f}",
    }
    told = ", ".join(f"{fact} {value}" for fact, value in facts.items() if value is not None)
    way = result.adaptation
    return (
        f"{len(result.samples)} samples of {name} by {d.method}, {d.n_steps} steps x {d.n_chains}"
        f"{' (interrupted)' if d.interrupted else ''}: {told}"
        + ("" if way is None else f"\nadapted to {name} with {way.proposals} proposals, in stages")
    )


class _Written:
    """The files of a folder of samples; those that an earlier call left are removed."""

    def __init__(self, folder: Path, classes: Sequence[str], value_range: tuple[float, float] | None) -> None:
        self.folder, self.classes, self.value_range = folder, classes, value_range
        self.files: list[str] = []
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            for name in json.loads((folder / "diagnostics.json").read_text())["files"]:
                if (folder / name).resolve().is_relative_to(folder.resolve()):
                    (folder / name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        self.files.append(name)
        return self.folder / name

    def pictures(self, results: Mapping[str, S2MResult], single: bool) -> None:
        from .plots import plot_adaptation, plot_samples

        images = {name: result.samples.float().cpu().numpy() for name, result in results.items()}
        rows = images
        if len(images) == 1:
            ((name, all_of_it),) = images.items()
            starts = range(0, max(1, min(len(all_of_it), COLUMNS * MOST_ROWS)), COLUMNS)
            rows = {name if k == 0 else f"… {k}": all_of_it[k : k + COLUMNS] for k in starts}
        plot_samples(rows, self._path("grid.png"), COLUMNS, self.value_range)
        for file_name, (name, result) in zip(_file_names(results), results.items(), strict=True):
            if result.adaptation is not None:
                path = self._path(f"adaptation_{file_name}.png")
                plot_adaptation(result, path, partial(target_name, classes=self.classes))
            if single:
                (self.folder / "single").mkdir(exist_ok=True)
                for k, image in enumerate(images[name]):
                    save_png(image, self._path(f"single/{file_name}_{k:05d}.png"), self.value_range)

    def tensors(self, results: Mapping[str, S2MResult]) -> None:
        from safetensors.torch import save_file

        parts = ("samples", "latents", "log_weights", "chains")
        tensors = {
            f"{name}/{part}": getattr(result, part).detach().cpu().contiguous()
            for name, result in results.items()
            for part in parts
        }
        write_atomically(self._path("samples.safetensors"), partial(save_file, tensors))

    def diagnostics(self, results: Mapping[str, S2MResult], told: Mapping[str, Any]) -> None:
        targets = [
            {
                "name": name,
                "I": [self.classes[i] for i in result.joint_class.I],
                "J": [self.classes[j] for j in result.joint_class.J],
                **result.diagnostics.to_dict(),
            }
            for name, result in results.items()
        ]
        write_json(self.folder / "diagnostics.json", {**told, "targets": targets, "files": self.files})


def _file_names(names: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Names as parts of file names, each of them once."""
    plain = [re.sub(r"[^\w+.-]+", "_", name)[:60] for name in names]
    return plain if len(set(plain)) == len(plain) else [f"{i}_{name}" for i, name in enumerate(plain)]


def save_png(image: np.ndarray, path: Path, value_range: tuple[float, float]) -> None:
    """Writes an image (channels, height, width) in its own size: three channels in colour, else their mean."""
    from PIL import Image

    low, high = value_range
    pixels = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(axis=0)
    pixels = np.clip((pixels - low) / (high - low), 0, 1) * 255
    Image.fromarray(np.rint(pixels).astype(np.uint8)).save(path)


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON, in which NaN and infinities are null."""
    text = json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda part: part.write_text(text))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
