"""The probe: G and clf called once, on two rows and on one, before anything is sampled.

It settles how they are read, finds what would go wrong before work is lost, and shows what a forward pass costs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from .._conventions import ClassifierOutput
from .._models import called_in_training, compiled_in, dtypes_in, eval_mode, seeded
from .models import BatchedModels, Found, Models
from .plan import Trace
from .results import warn

T = TypeVar("T")

SEED = 0x5EED


def probe(models: Models, speak: bool = True) -> Found:
    """Fills in ``models.found``, and what else only running G and clf can tell, if that is not known yet.

    torch's generators of random numbers are left as they were. Warns of what is likely to be misread, if it may
    speak.

    Raises:
        ValueError, TypeError: what G or clf returns cannot be read, or what G was given does not suit it and
            another value of an argument does, which is named. Other errors of G and clf are raised as they are; a
            note says what they were given.
    """
    if models.found is not None:
        return models.found
    training: list[str] = []
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002, G may draw from them
    run = _Probe(models)
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        seeded(SEED, models.device),
        eval_mode(*models.both),
        nullcontext() if run.compiled else called_in_training(training),
    ):
        try:
            models.found = run.run()
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
    if training:
        run.said.append(
            f"modules that G or clf calls were in training mode ({', '.join(dict.fromkeys(training))}), in which "
            "batch norms learn from proposals and dropout adds noise. Only modules that can be found from G and "
            "clf are put into eval mode: call .eval() on the others"
        )
    for text in dict.fromkeys(run.said) if speak else ():
        warn(text)
    return models.found


class _Probe:
    """One probe of models on its way."""

    def __init__(self, models: Models) -> None:
        self.models, self.generator = models, models.generator
        self.said: list[str] = []
        self.compiled = compiled_in(*models.both)
        plan = replace(models.plan, batch_size=2, memory_format="contiguous")
        self.found = Found(plan)
        z = models.trial_normals(2, SEED)
        if models.prior is not None and models.prior.from_normals:
            z = models.prior(z)
        elif models.prior is not None:
            z = models.prior.draw(2, torch.Generator(models.device)).to(models.dtype)
        self.z = z

    def run(self) -> Found:
        x, trace_G = self._first_x()
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise ValueError("G returned NaN or infinite numbers for latents of its prior")
        self.found = replace(self.found, x_shape=tuple(x.shape[1:]), x_bytes=x[0].numel() * x.element_size())
        output, trace_clf = self._first_output(x)
        if self.generator.conditional is None:
            # G runs with and without a label. It takes the logits of D_f to use one.
            self.generator.conditional = output.fake_class_logits is not None
            if self.generator.conditional:
                x, trace_G = self._generate(self.z)
                output, trace_clf = self._classify(x)
        if self.generator.conditional:
            self.generator.check_label(0, output)
        one_x, one_trace_G = self._one_row(lambda: self._generate(self.z[1:]))
        one_output, one_trace_clf = self._one_row(lambda: self._classify(x[:1]))
        if one_x is not None and not self.models.stochastic:
            self._warn_of_noise(x, one_x)
        n_classes = output.class_logits.shape[1]
        if one_output is not None and one_output.class_logits.shape[1] != n_classes:
            got = one_output.class_logits.shape[1]
            raise ValueError(f"clf returns {n_classes} class logits for each of two rows and {got} for one row")
        c_dim = self.generator.c_dim
        if self.generator.conditional and c_dim is not None and c_dim != n_classes:
            self.said.append(
                f"G takes labels of {c_dim} classes (c_dim), clf returns logits of {n_classes}: class i is label "
                "i of G"
            )
        least = self.found.x_bytes
        plan = self.models.plan.completed(
            trace_G.cost(one_trace_G or trace_G, self.generator.G, least),
            trace_clf.cost(one_trace_clf or trace_clf, self.models.clf, least),
            self.models.device,
        )
        return replace(self.found, plan=plan, n_classes=n_classes, has_D_f=output.fake_class_logits is not None)

    # --- calls ------------------------------------------------------------------------------------

    def _run(self) -> BatchedModels:
        return BatchedModels(self.models, 0 if self.generator.conditional else None, None, self.found)

    def _generate(self, z: Tensor) -> tuple[Tensor, Trace]:
        run, trace = self._run(), Trace()
        with nullcontext() if self.compiled else trace:
            x = run.call_G(z)
        return x.clone(), trace

    def _classify(self, x: Tensor) -> tuple[ClassifierOutput, Trace]:
        run, trace = self._run(), Trace()
        with nullcontext() if self.compiled else trace:
            output = run.call_clf(x)
        if len(x) > 1:
            told = _probabilities(output, trace)
            self.said += told
            self.found = replace(self.found, squashed=bool(told))
        return ClassifierOutput(*(None if part is None else part.clone() for part in output)), trace

    def _one_row(self, call: Callable[[], tuple[T, Trace]]) -> tuple[T, Trace] | tuple[None, None]:
        """What a call on one row gives; nothing where a model that takes two rows fails on one."""
        try:
            return call()
        except Exception:
            self.found = replace(self.found, fewest_rows=2)
            return None, None

    def _first_x(self) -> tuple[Tensor, Trace]:
        """x of the latents, by the first way of calling G that works."""
        failure: Exception | None = None
        before = self.models.z_dtype
        for dtype in dict.fromkeys((before, *dtypes_in(self.generator.G))):
            self.models.z_dtype = dtype
            for _ in self.generator.ways():
                try:
                    return self._generate(self.z)
                except Exception as error:
                    failure = failure or error
        self.models.z_dtype = before
        self._explain(failure)
        raise failure

    def _first_output(self, x: Tensor) -> tuple[ClassifierOutput, Trace]:
        """The logits of x; where clf fails on it as it is, of x in the dtype of one of its modules."""
        failure: Exception | None = None
        before = self.models.x_dtype
        for dtype in dict.fromkeys((before, *dtypes_in(self.models.clf))):
            self.models.x_dtype = dtype
            try:
                return self._classify(x)
            except Exception as error:
                failure = failure or error
        self.models.x_dtype = before
        failure.add_note(f"spml_fast called clf with x {tuple(x.shape)} {x.dtype} on {x.device}")
        raise failure

    # --- what is said -----------------------------------------------------------------------------

    def _explain(self, error: Exception) -> None:
        """Notes on an error of G what G was given; raises another error, if another ``z_dim`` would settle it."""
        z_shape, z = self.models.z_shape, self.z
        if len(z_shape) == 1:
            self.z = z.view(*z.shape, 1, 1)
            try:
                self._generate(self.z)
            except Exception:
                self.z = z
            else:
                wider = tuple(self.z.shape[1:])
                raise ValueError(
                    f"G does not take latents of shape {z_shape}, but of shape {wider}: pass z_dim={wider}"
                ) from error
        given = f"latents {tuple(z.shape)} {z.dtype} on {z.device}"
        if self.generator.conditional:
            given += " and labels (2,) torch.int64"
            if self.generator.argument is not None and self.generator.guessed:
                given += (
                    f" for its argument {self.generator.argument.name!r}; if that is no class label, pass "
                    "conditional=False, or a function of z alone for G"
                )
        error.add_note(f"spml_fast called G with {given}")

    def _warn_of_noise(self, x: Tensor, one_x: Tensor) -> None:
        if alike(x[1:], one_x):
            return
        again, _ = self._generate(self.z)
        if not alike(x, again):
            self.said.append(
                "G made two different x of the same latents, so it draws noise of its own: pass stochastic=True, "
                "or the samples are not those that the chains accepted"
            )
        else:
            self.said.append(
                "G makes another x of a latent when there are other latents in its batch (statistics over the "
                "batch?): samples depend on how proposals are batched"
            )


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two x are the same within rounding."""
    share = 0.02 if a.dtype in (torch.float16, torch.bfloat16) else 1e-3
    a, b = (torch.view_as_real(part) if part.is_complex() else part.double() for part in (a, b))
    size = float(a.abs().nan_to_num(0, 0, 0).max()) if a.numel() else 0.0
    return torch.allclose(a, b, rtol=0, atol=max(share * size, 1e-6), equal_nan=True)


def _probabilities(output: ClassifierOutput, trace: Trace) -> list[str]:
    """What is to be said of logits that are probabilities, by the operation that made them or by their look."""
    said = []
    rows = output.class_logits.double()
    sums_to_one = rows.shape[1] > 1 and bool((rows >= 0).all() and ((rows.sum(1) - 1).abs() < 1e-3).all())
    for name, head, part in zip(output._fields, ("D_r", "D_f", "D_v"), output, strict=True):
        maker = None if part is None else trace.made_by(part)
        if part is not None and maker is None and name == "class_logits" and sums_to_one:
            maker = "rows that are not negative and sum to 1"
        if maker is not None:
            remedy = f"Return logits, or say so: spml_fast.Classifiers(..., probabilities=[{head!r}])"
            if name == "class_logits" and "sigmoid" in maker:
                remedy = "A multi-label classifier goes with spml_fast.MultiLabelDensityRatio"
            said.append(f"clf's {name} is {maker}: probabilities, which will be read as logits. {remedy}")
    return said
