"""G and clf over many latents: in batches that fit, under the sampler's precision, timed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .._models import ClassifierOutput, Stopwatch, parse_classifier_output

if TYPE_CHECKING:
    from .s2m import S2MSampler

BLOCK_ROWS = 65536
"""Proposals whose logits are held between two accept passes, if block_steps is not given."""

FIRST_BATCH = 64
"""Proposals in the batch that shows the size of x, and in none fewer after it, if batch_size is not given."""

BATCH_ELEMENTS = {"cpu": 2**16, "cuda": 2**24}
"""Elements of x in one batch, if batch_size is not given: about what keeps the device busy from its cache."""


class Forward:
    """The models of ``sampler``, given ``label`` where G is class-conditional."""

    def __init__(self, sampler: S2MSampler, label: int | None, bar: tqdm) -> None:
        self.sampler = sampler
        self.label = label
        self.bar = bar
        self.batch_size = sampler.batch_size
        self.generator_time = Stopwatch(sampler.device)
        self.classifier_time = Stopwatch(sampler.device)

    def classify(self, latents: Tensor) -> tuple[Tensor | None, ClassifierOutput]:
        """G and clf over latents, a batch at a time; x only where samples are kept."""
        n_rows = latents.shape[0]
        outputs: list[ClassifierOutput] = []
        samples: list[Tensor] = []
        row = 0
        while row < n_rows:
            z = latents[row : row + (self.batch_size or FIRST_BATCH)]
            try:
                x, output = self.run(z)
            except torch.OutOfMemoryError:
                if self.sampler.batch_size is not None or z.shape[0] == 1:
                    raise
                self.batch_size = max(1, z.shape[0] // 2)
                continue
            self.choose_batch_size(x)
            if self.sampler.stochastic:
                samples.append(x)
            outputs.append(output)
            row += z.shape[0]
            self.bar.update(z.shape[0])
        x = torch.cat(samples) if samples else None
        if len(outputs) == 1:
            return x, outputs[0]
        class_logits, fake, validity = zip(*outputs, strict=True)
        return x, ClassifierOutput(
            torch.cat(class_logits), None if fake[0] is None else torch.cat(fake), torch.cat(validity)
        )

    def decode(self, latents: Tensor) -> Tensor:
        """x of latents, a batch at a time."""
        return torch.cat([self.generate(z) for z in latents.split(self.batch_size or FIRST_BATCH)])

    def run(self, z: Tensor) -> tuple[Tensor, ClassifierOutput]:
        """One batch."""
        x = self.generate(z)
        with self.classifier_time, self._autocast():
            output = self.sampler.clf(x)
        output = parse_classifier_output(output, z.shape[0])
        if self.label is None:
            output = output._replace(fake_class_logits=None)
        elif output.fake_class_logits is None:
            raise ValueError(
                "class-conditional proposals need the logits of D_f: clf must return "
                "(class_logits, fake_class_logits, validity_logit)"
            )
        n_classes = output.class_logits.shape[1]
        if self.label is not None and not 0 <= self.label < n_classes:
            raise ValueError(f"proposal_class {self.label} is out of range: clf returns {n_classes} class logits")
        return x, output

    def generate(self, z: Tensor) -> Tensor:
        arguments = [z]
        if self.label is not None:
            arguments.append(torch.full((z.shape[0],), self.label, device=z.device))
        with self.generator_time, self._autocast():
            x = self.sampler.G(*arguments)
            if self.sampler.channels_last and isinstance(x, Tensor) and x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
        if not isinstance(x, Tensor) or x.ndim < 1 or x.shape[0] != z.shape[0]:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"G must return x of shape ({z.shape[0]}, ...), got {got}")
        return x

    def choose_batch_size(self, x: Tensor) -> None:
        """From the first samples that are seen, if the sampler was not given one."""
        if self.batch_size is None:
            elements = BATCH_ELEMENTS.get(x.device.type, BATCH_ELEMENTS["cuda"])
            per_batch = 2 ** int(math.log2(max(1, elements // max(1, x[0].numel()))))
            self.batch_size = min(max(per_batch, FIRST_BATCH), BLOCK_ROWS)

    def _autocast(self):
        dtype = self.sampler.autocast_dtype
        return torch.autocast(self.sampler.device.type, dtype=dtype, enabled=dtype is not None)
