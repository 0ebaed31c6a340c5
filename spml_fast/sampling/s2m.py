"""S2M sampling: thousands of independent Metropolis-Hastings chains at once.

Source: Cho, Kim, Khan and Choo, "Mining Multi-Label Samples from Single Positive Labels", NeurIPS 2022,
Algorithm 1. Proposals of independent Metropolis-Hastings do not depend on the chain's state, so they are
generated and classified in large batches, one pool of them serves every joint class, and only each chain's last
accepted proposal is decoded.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .._models import (
    ClassifierOutput,
    Stopwatch,
    eval_mode,
    first_tensor,
    latent_shape,
    parse_classifier_output,
    takes_label,
)
from .._ops import compute_dtype
from .chains import ChainState
from .diagnostics import Diagnostics, Timing, diagnose
from .proposals import DrawLatents, DrawnProposal, GivenLatents, PriorProposal, Proposal
from .targets import JointClass, PerTarget, Targets, pack_targets

Indices = int | Iterable[int]

BLOCK_ROWS = 65536
"""Proposals whose logits are held between two accept passes, if block_steps is not given."""

FIRST_BATCH = 64
"""Proposals in the batch that shows the size of x, and in none fewer after it, if batch_size is not given."""

BATCH_ELEMENTS = {"cpu": 2**16, "cuda": 2**24}
"""Elements of x in one batch, if batch_size is not given: about what keeps the device busy from its cache."""


@dataclass(frozen=True)
class S2MResult:
    """Samples of one joint class. Chains that never met its support have no row."""

    joint_class: JointClass
    samples: Tensor
    """(n, *x_shape)"""
    latents: Tensor
    """(n, *z_shape): ``G(latents)`` are the samples, for a deterministic G."""
    log_weights: Tensor
    """(n,) log p_(I,J)(x) / q(x) of the samples, up to a constant."""
    chains: Tensor
    """(n,) int64: the chain that each row is the state of."""
    diagnostics: Diagnostics


class S2MSampler:
    """Draws samples of joint classes (has all attributes in I, none in J) from an existing generator.

    Args:
        G: ``G(z) -> x`` or, class-conditional, ``G(z, label) -> x``, with x (B, *x_shape) for z (B, *z_shape) and
            label (B,) int64. A generator that requires a second argument is taken as class-conditional;
            ``conditional`` says it where that guess is wrong.
        clf: ``clf(x) -> (class_logits, validity_logit)`` or ``(class_logits, fake_class_logits or None,
            validity_logit)``, or a dict with those names: logits (B, N) of D_r, (B, N) of D_f (needed for
            class-conditional proposals) and (B,) or (B, 1) of D_v. They are used as density ratios, so they
            must be calibrated; :func:`spml_fast.train_density_ratio` makes such a clf.
        z_dim: latent size, an int or a shape; ``G.z_dim`` unless given.
        gamma: gamma_i = pi_i / p_data(i), a number, one per class (N,), or a function of (I, J) returning either.
            1 is right when each instance's label was drawn uniformly among its positives. If classes were picked
            first and instances drawn from p(x | y_c = 1), gamma_i = pi_i / p_data(i), and pi is yours to give.
        gamma_J: the same for the attributes in J where it differs. ``gamma=0.5, gamma_J=1`` is the official
            setting on CIFAR-10: below 1 on I, gamma is a margin against noise in D_r.
        temperature: of the class logits, a number or a function of (I, J).
        validity_temperature: of the validity logit, likewise.
        batch_size: proposals per forward pass of G and clf; by default from the size of x and the device.
        block_steps: steps per accept pass; by default as many as make about 65,536 proposals.
        device: where to work; G and clf are moved there if given. Default: where G (or clf) is.
        autocast_dtype: run G and clf under ``torch.autocast`` in this dtype; weights are float32 all the same.
        channels_last: convert G and clf to the channels-last memory format.
        stochastic: G draws noise of its own, so a latent does not determine x: keep samples as the chains run
            instead of decoding the winners' latents at the end.

    Results depend on (seed, chain, step) alone: not on batch_size, block_steps, threads, or the number of other
    chains, provided that G and clf compute each row alike however rows are batched. Convolutions and matrix
    products round a little differently from one batch size to the next; with them, chains agree but for rare
    proposals whose accept decision falls within that rounding.

    Raises:
        ValueError, TypeError: for anything malformed, before sampling starts or with the first batch.
    """

    def __init__(
        self,
        G: Callable[..., Tensor],
        clf: Callable[[Tensor], object],
        *,
        z_dim: int | Sequence[int] | None = None,
        gamma: PerTarget = 1.0,
        gamma_J: PerTarget | None = None,
        temperature: PerTarget = 1.0,
        validity_temperature: PerTarget = 1.0,
        conditional: bool | None = None,
        stochastic: bool = False,
        batch_size: int | None = None,
        block_steps: int | None = None,
        device: torch.device | str | None = None,
        autocast_dtype: torch.dtype | None = None,
        channels_last: bool = False,
    ):
        for name, value in (("G", G), ("clf", clf)):
            if not callable(value):
                raise TypeError(f"{name} must be callable, got {type(value).__name__}")
        for name, value in (("batch_size", batch_size), ("block_steps", block_steps)):
            if value is not None:
                _check_count(value, name)
        self.G = G
        self.clf = clf
        self.z_shape = latent_shape(G, z_dim)
        self.ratio = {
            "gamma": gamma,
            "gamma_J": gamma_J,
            "temperature": temperature,
            "validity_temperature": validity_temperature,
        }
        self.conditional = takes_label(G) if conditional is None else conditional
        self.stochastic = stochastic
        self.batch_size = batch_size
        self.block_steps = block_steps
        self.autocast_dtype = autocast_dtype
        self.channels_last = channels_last
        for model in (G, clf):
            if isinstance(model, nn.Module):
                if device is not None:
                    model.to(device)
                if channels_last:
                    model.to(memory_format=torch.channels_last)
        parameter = first_tensor(G, clf)
        self.device = torch.device(device or (parameter.device if parameter is not None else "cpu"))
        self.dtype = torch.float32  # of the latents
        if parameter is not None and parameter.dtype == torch.float64:
            self.dtype = torch.float64

    def sample(
        self,
        I: Indices,
        J: Indices = (),
        n_samples: int | None = None,
        n_steps: int | None = None,
        **options,
    ) -> S2MResult:
        """One joint class; arguments as in :meth:`sample_targets`."""
        return self.sample_targets([(I, J)], n_samples, n_steps, **options)[0]

    def sample_targets(
        self,
        targets: Iterable[tuple[Indices, Indices]],
        n_samples: int | None = None,
        n_steps: int | None = None,
        *,
        seed: int | None = None,
        first_chain: int = 0,
        proposal_class: int | None = None,
        proposal: DrawLatents | None = None,
        latents: Tensor | np.ndarray | None = None,
        progress: bool = False,
    ) -> list[S2MResult]:
        """Many joint classes from one pool of proposals; result t equals ``sample(*targets[t])``, bit for bit.

        Class-conditional proposals make one pool for each proposal class among the targets.

        Args:
            targets: (I, J) pairs of class indices; an int is one index; J may be empty.
            n_samples: chains, and so samples, per joint class. Default 64.
            n_steps: proposals that each chain is offered. Default 200.
            seed: 64-bit integer; drawn from torch's global generator unless given.
            first_chain: number of the first chain. Chain c of one run equals chain c of any other with this seed.
            proposal_class: label of class-conditional proposals; I[0] of each target unless given.
            proposal: ``draw(n, generator) -> latents (n, *z_shape)`` or ``(latents, log weights (n,))``, in
                place of the standard normal prior; the log weights are log p_z(z) - log p~_z(z).
            latents: (n_steps, n_samples, *z_shape) proposals drawn elsewhere; they fix n_steps and n_samples.
            progress: show a tqdm bar.

        Returns:
            One :class:`S2MResult` per target, in order. A chain that never met the support of its target has no
            sample; ``diagnostics.chains_without_support`` counts them and a warning says so.

        Ctrl-C ends the pool that is running, after its first block, with what it has; ``diagnostics.interrupted``
        is set.
        """
        joint_classes = [_joint_class(target) for target in targets]
        if not joint_classes:
            raise ValueError("targets is empty: expected at least one (I, J) pair")
        if proposal is not None and latents is not None:
            raise ValueError("give either proposal or latents, not both")
        if latents is not None:
            latents = self._checked_latents(latents, n_samples, n_steps)
            n_steps, n_samples = latents.shape[:2]
        n_samples = _check_count(64 if n_samples is None else n_samples, "n_samples")
        n_steps = _check_count(200 if n_steps is None else n_steps, "n_steps", limit=2**31 - 1)
        if first_chain < 0:
            raise ValueError(f"first_chain must not be negative, got {first_chain}")
        if proposal_class is not None and not self.conditional:
            raise ValueError(
                f"proposal_class={proposal_class}, but G takes no label; "
                "pass conditional=True to S2MSampler if it does"
            )
        seed = int(torch.randint(2**63 - 1, ())) if seed is None else _signed(seed)

        def make_proposal() -> Proposal:
            if latents is not None:
                return GivenLatents(latents)
            if proposal is not None:
                return DrawnProposal(proposal, n_samples, seed, self.device)
            return PriorProposal(self.z_shape, n_samples, seed, first_chain, self.dtype, self.device)

        pools: dict[int | None, list[int]] = {}
        for t, target in enumerate(joint_classes):
            label = target.I[0] if proposal_class is None else proposal_class
            pools.setdefault(label if self.conditional else None, []).append(t)
        results: list[S2MResult | None] = [None] * len(joint_classes)
        with (
            eval_mode(self.G, self.clf),
            tqdm(
                total=len(pools) * n_steps * n_samples,
                desc="S2M sampling",
                unit=" proposals",
                unit_scale=True,
                disable=not progress,
            ) as bar,
        ):
            for label, members in pools.items():
                pool = _Pool(self, [joint_classes[t] for t in members], label, make_proposal())
                pool_results = pool.run(n_samples, n_steps, seed, first_chain, bar)
                for t, result in zip(members, pool_results, strict=True):
                    results[t] = result
        for result in results:
            lost = result.diagnostics.chains_without_support
            if lost > 0:
                warnings.warn(
                    f"{lost} of {n_samples} chains never met the support of {result.joint_class} in "
                    f"{result.diagnostics.n_steps} steps and have no sample",
                    stacklevel=2,
                )
        return results

    def _checked_latents(self, latents: Tensor | np.ndarray, n_samples: int | None, n_steps: int | None) -> Tensor:
        latents = torch.as_tensor(latents)
        expected = tuple(
            given if given is not None else name
            for given, name in ((n_steps, "n_steps"), (n_samples, "n_samples"))
        )
        matches = latents.ndim == 2 + len(self.z_shape) and all(
            isinstance(want, str) or want == got
            for want, got in zip((*expected, *self.z_shape), latents.shape, strict=True)
        )
        if not matches:
            shape = ", ".join(map(str, (*expected, *self.z_shape)))
            raise ValueError(f"latents must have shape ({shape}), got {tuple(latents.shape)}")
        return latents.to(device=self.device, dtype=self.dtype)


def s2m_sample(
    G: Callable[..., Tensor],
    clf: Callable[[Tensor], object],
    I: Indices,
    J: Indices = (),
    n_samples: int = 64,
    n_steps: int = 200,
    *,
    seed: int | None = None,
    proposal_class: int | None = None,
    progress: bool = False,
    **sampler_options,
) -> Tensor:
    """Samples of the joint class that has all attributes in I and none in J: (n_samples, *x_shape), on G's device.

    The short form of :class:`S2MSampler`, whose arguments ``sampler_options`` are; use the class for diagnostics,
    latents and weights. Fewer rows come back, with a warning, if chains never met the joint class.

    >>> x = spml_fast.s2m_sample(G, clf, I=[0, 2], J=1)  # doctest: +SKIP
    """
    sampler = S2MSampler(G, clf, **sampler_options)
    result = sampler.sample(I, J, n_samples, n_steps, seed=seed, proposal_class=proposal_class, progress=progress)
    return result.samples


class _Pool:
    """One run: the chains of all targets that share their proposals."""

    def __init__(
        self,
        sampler: S2MSampler,
        joint_classes: list[JointClass],
        label: int | None,
        proposal: Proposal,
    ):
        self.sampler = sampler
        self.joint_classes = joint_classes
        self.label = label
        self.proposal = proposal
        self.batch_size = sampler.batch_size
        self.generator_time = Stopwatch(sampler.device)
        self.classifier_time = Stopwatch(sampler.device)
        self.state: ChainState | None = None
        self.targets: Targets | None = None
        self.kept: dict[str, Tensor] = {}  # what the winners cannot be asked for again, (T, C, ...)

    def run(self, n_chains: int, n_steps: int, seed: int, first_chain: int, bar: tqdm) -> list[S2MResult]:
        start = time.perf_counter()
        block_steps = self.sampler.block_steps or max(1, BLOCK_ROWS // n_chains)
        done = 0
        interrupted = False
        with torch.inference_mode():
            while done < n_steps:
                steps = min(block_steps, n_steps - done)
                try:  # of G and clf alone, which take the time: the chains are never left half updated
                    latents, extra = self.proposal.block(done, steps)
                    x, output = self._classify(latents, bar)
                except KeyboardInterrupt:
                    if done == 0:
                        raise
                    interrupted = True
                    break
                self._accept(output, extra, steps, n_chains, seed, first_chain, done)
                self._keep_winners(latents, x, done, n_chains)
                done += steps
            self.state.raise_if_invalid()
            winners = self._decode(n_chains)
        timing = Timing(
            generator=self.generator_time.seconds(),
            classifier=self.classifier_time.seconds(),
            total=time.perf_counter() - start,
        )
        return [
            S2MResult(target, *winners.of_target(t), diagnose(self.state, t, done, timing, interrupted))
            for t, target in enumerate(self.joint_classes)
        ]

    def _classify(self, latents: Tensor, bar: tqdm) -> tuple[Tensor | None, ClassifierOutput]:
        """G and clf over a block's latents, a batch at a time; x only where samples are kept."""
        n_rows = latents.shape[0]
        outputs: list[ClassifierOutput] = []
        samples: list[Tensor] = []
        row = 0
        while row < n_rows:
            z = latents[row : row + (self.batch_size or FIRST_BATCH)]
            try:
                x, output = self._forward(z)
            except torch.OutOfMemoryError:
                if self.sampler.batch_size is not None or z.shape[0] == 1:
                    raise
                self.batch_size = max(1, z.shape[0] // 2)
                continue
            if self.batch_size is None:
                elements = BATCH_ELEMENTS.get(x.device.type, BATCH_ELEMENTS["cuda"])
                per_batch = 2 ** int(math.log2(max(1, elements // max(1, x[0].numel()))))
                self.batch_size = min(max(per_batch, FIRST_BATCH), BLOCK_ROWS)
            if self.sampler.stochastic:
                samples.append(x)
            outputs.append(output)
            row += z.shape[0]
            bar.update(z.shape[0])
        x = torch.cat(samples) if samples else None
        if len(outputs) == 1:
            return x, outputs[0]
        class_logits, fake, validity = zip(*outputs, strict=True)
        return x, ClassifierOutput(
            torch.cat(class_logits), None if fake[0] is None else torch.cat(fake), torch.cat(validity)
        )

    def _forward(self, z: Tensor) -> tuple[Tensor, ClassifierOutput]:
        x = self._generate(z)
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
        return x, output

    def _generate(self, z: Tensor) -> Tensor:
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

    def _autocast(self):
        dtype = self.sampler.autocast_dtype
        return torch.autocast(self.sampler.device.type, dtype=dtype, enabled=dtype is not None)

    def _accept(
        self,
        output: ClassifierOutput,
        extra: Tensor | None,
        n_steps: int,
        n_chains: int,
        seed: int,
        first_chain: int,
        first_step: int,
    ) -> None:
        class_logits, fake, validity = output
        n_classes = class_logits.shape[1]
        dtype = compute_dtype(class_logits.dtype)
        if self.state is None:
            if self.label is not None and not 0 <= self.label < n_classes:
                raise ValueError(
                    f"proposal_class {self.label} is out of range: clf returns {n_classes} class logits"
                )
            device = class_logits.device
            self.targets = pack_targets(
                self.joint_classes, n_classes, **self.sampler.ratio, dtype=dtype, device=device
            )
            self.state = ChainState.start(len(self.joint_classes), n_chains, dtype, device)

        def per_step(rows: Tensor | None) -> Tensor | None:
            return None if rows is None else rows.reshape(n_steps, n_chains, *rows.shape[1:])

        self.state.scan_logits(
            per_step(class_logits),
            per_step(validity),
            self.targets,
            seed=seed,
            first_chain=first_chain,
            first_step=first_step,
            fake_class_logits=per_step(fake),
            proposal_class=self.label or 0,
            extra_log_weight=per_step(None if extra is None else extra.to(dtype)),
        )
        if first_step == 0 or class_logits.device.type == "cpu":
            self.state.raise_if_invalid()  # on a GPU only once the run is over or before it gets going

    def _keep_winners(self, latents: Tensor, x: Tensor | None, first_step: int, n_chains: int) -> None:
        offered = {}
        if x is not None:
            offered["x"] = x
        if self.proposal.recall is None:
            offered["latents"] = latents
        if not offered:
            return
        won = self.state.winner >= first_step
        chain = torch.arange(n_chains, device=won.device)
        row = (self.state.winner - first_step).clamp(min=0) * n_chains + chain
        for name, tensor in offered.items():
            if name not in self.kept:
                self.kept[name] = tensor.new_zeros(*won.shape, *tensor.shape[1:])
            for t in range(won.shape[0]):
                mask = won[t].reshape(-1, *[1] * (tensor.ndim - 1))
                self.kept[name][t] = torch.where(mask, tensor[row[t]], self.kept[name][t])

    def _decode(self, n_chains: int) -> _Winners:
        """Latents and samples of all chains that have a state; what several targets share is decoded once."""
        target, chain = torch.nonzero(self.state.winner >= 0, as_tuple=True)
        step = self.state.winner[target, chain].long()
        if "latents" in self.kept:
            latents = self.kept["latents"][target, chain]
        else:
            latents = self.proposal.recall(chain, step)
        if "x" in self.kept:
            x = self.kept["x"][target, chain]
            row_of_x = torch.arange(len(x), device=x.device)
        else:
            proposals, row_of_x = torch.unique(step * n_chains + chain, return_inverse=True)
            first = torch.empty_like(proposals).scatter_(0, row_of_x, torch.arange(len(step), device=step.device))
            # Many generators break on an empty batch: without any winner, one latent tells the shape of x.
            rows = latents[first] if len(first) > 0 else latents.new_zeros(1, *latents.shape[1:])
            x = torch.cat([self._generate(z) for z in rows.split(self.batch_size)])
        return _Winners(target, chain, latents, self.state.log_weight[target, chain], x, row_of_x)


@dataclass
class _Winners:
    """The last accepted proposals of all chains of all targets, n of them."""

    target: Tensor  # (n,)
    chain: Tensor  # (n,)
    latents: Tensor  # (n, *z_shape)
    log_weight: Tensor  # (n,)
    x: Tensor  # (m, *x_shape), m <= n
    row_of_x: Tensor  # (n,)

    def of_target(self, t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Copies, and made outside inference mode, whose own tensors could never take part in training."""
        mine = torch.nonzero(self.target == t)[:, 0]
        return self.x[self.row_of_x[mine]], self.latents[mine], self.log_weight[mine], self.chain[mine]


def _joint_class(target: object) -> JointClass:
    if isinstance(target, JointClass):
        return target
    if not isinstance(target, (tuple, list)) or len(target) != 2:
        raise ValueError(f"each target must be a pair (I, J), got {target!r}")
    return JointClass.of(*target)


def _check_count(value: object, name: str, limit: int = 2**62) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if not 1 <= value <= limit:
        raise ValueError(f"{name} must be between 1 and {limit}, got {value}")
    return int(value)


def _signed(seed: int) -> int:
    """The int64 with the bits of a seed between -2^63 and 2^64."""
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must fit into 64 bits, got {seed}")
    return seed - 2**64 if seed >= 2**63 else int(seed)
