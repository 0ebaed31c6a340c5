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
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

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
from .adaptation import (
    AdaptationError,
    AdaptationPath,
    AdaptationStage,
    LatentMixture,
    MixtureProposal,
    candidates,
)
from .chains import ChainState
from .diagnostics import Diagnostics, Timing, diagnose, weight_summary
from .length import FIRST_LOOK, ChainLength
from .proposals import DrawLatents, DrawnProposal, GivenLatents, PriorProposal, Proposal
from .targets import JointClass, PerTarget, Targets, pack_targets

Indices = int | Iterable[int]

BLOCK_ROWS = 65536
"""Proposals whose logits are held between two accept passes, if block_steps is not given."""

WELL_SERVED = 0.05
"""Effective samples per proposal from which on the prior is kept: a fitted proposal would give more, but its
tails are lighter, and with them grows M, the largest weight, which chains have to wait for."""

MET = 4
"""Expected samples of a joint class among the proposals, below which a run is taken not to have met it."""

OFTEN_ENOUGH = 2 / 64
"""Effective samples per proposal from which on a joint class is fitted at once, not attribute by attribute."""

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
    adaptation: AdaptationPath | None = None
    """How the proposals were adapted, if they were."""

    def first(self, n: int) -> S2MResult:
        """Its first ``n`` samples."""
        names = ("samples", "latents", "log_weights", "chains")
        return replace(self, **{name: getattr(self, name)[:n] for name in names})


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
        n_steps: int | str | None = None,
        *,
        tol: float = 0.01,
        max_steps: int = 10_000,
        samples_per_chain: int = 1,
        thin: int | None = None,
        adapt: bool = False,
        seed: int | None = None,
        first_chain: int = 0,
        proposal_class: int | None = None,
        proposal: LatentMixture | DrawLatents | None = None,
        latents: Tensor | np.ndarray | None = None,
        progress: bool = False,
    ) -> list[S2MResult]:
        """Many joint classes from one pool of proposals; result t equals ``sample(*targets[t])``, bit for bit.

        Class-conditional proposals make one pool for each proposal class among the targets, adapted proposals one
        for each target. Chains of n_steps="auto" run as long as the target of their pool that needs most.

        Args:
            targets: (I, J) pairs of class indices; an int is one index; J may be empty.
            n_samples: samples per joint class, each of a chain of its own unless ``samples_per_chain`` says
                otherwise. Default 64.
            n_steps: proposals that each chain is offered before it gives its first sample. Default 200. "auto": as
                many as bring the bound (1 - 1/M)^n on the distance to every target, in total variation, down to
                ``tol``, with M estimated from the weights of all chains; at most ``max_steps``.
            tol, max_steps: of n_steps="auto".
            samples_per_chain: samples that each chain gives, ``thin`` steps apart. As many fewer chains run.
            thin: as many steps as the bound asks for, for "auto", otherwise n_steps, unless given. Fewer leave
                samples of one chain correlated.
            adapt: fit a proposal to each target that the prior serves badly (:meth:`adapt`); a pilot run of 16
                steps finds which those are. The path is ``result.adaptation``.
            seed: 64-bit integer; drawn from torch's global generator unless given.
            first_chain: number of the first chain. Chain c of one run equals chain c of any other with this seed.
            proposal_class: label of class-conditional proposals; I[0] of each target unless given.
            proposal: in place of the standard normal prior, a :class:`LatentMixture`; or ``draw(n, generator) ->
                latents (n, *z_shape)`` or ``(latents, log weights (n,))``, called once a step with n chains, the
                log weights being log p_z(z) - log p~_z(z).
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
            if isinstance(n_steps, str) or samples_per_chain != 1:
                raise ValueError(
                    f"given latents fix the number of steps: {n_steps=}, {samples_per_chain=} cannot be"
                )
            latents = self._checked_latents(latents, n_samples, n_steps)
            n_steps, n_samples = latents.shape[:2]
        n_samples = _check_count(64 if n_samples is None else n_samples, "n_samples")
        length = _chain_length(n_steps, tol, max_steps, samples_per_chain, thin)
        n_chains = -(-n_samples // samples_per_chain)
        if first_chain < 0:
            raise ValueError(f"first_chain must not be negative, got {first_chain}")
        if proposal_class is not None and not self.conditional:
            raise ValueError(
                f"proposal_class={proposal_class}, but G takes no label; "
                "pass conditional=True to S2MSampler if it does"
            )
        if adapt and (proposal is not None or latents is not None):
            raise ValueError("adapt=True fits proposals itself; give neither proposal nor latents")
        seed = int(torch.randint(2**63 - 1, ())) if seed is None else _signed(seed)
        paths: list[AdaptationPath | None] = [None] * len(joint_classes)
        if adapt:
            paths = self._adapt_where_it_pays(joint_classes, proposal_class, seed, progress)

        def make_proposal(path: AdaptationPath | None) -> Proposal:
            if latents is not None:
                return GivenLatents(latents)
            arguments = (self.z_shape, n_chains, seed, first_chain, self.dtype, self.device)
            mixture = proposal if path is None else path.mixture
            if isinstance(mixture, LatentMixture):
                return MixtureProposal(mixture, *arguments)
            if mixture is not None:
                return DrawnProposal(mixture, n_chains, seed, self.device)
            return PriorProposal(*arguments)

        # Targets share a pool if they share their proposals: those of one label, or of one adaptation.
        pools: dict[tuple[int | None, int | None], list[int]] = {}
        for t, target in enumerate(joint_classes):
            label = target.I[0] if proposal_class is None else proposal_class
            own = None if paths[t] is None else t
            pools.setdefault((label if self.conditional else None, own), []).append(t)
        results: list[S2MResult | None] = [None] * len(joint_classes)
        with (
            eval_mode(self.G, self.clf),
            tqdm(
                total=None if length.automatic else len(pools) * length.expected_steps * n_chains,
                desc="S2M sampling",
                unit=" proposals",
                unit_scale=True,
                disable=not progress,
            ) as bar,
        ):
            for (label, _), members in pools.items():
                path = paths[members[0]]
                pool = _Pool(self, [joint_classes[t] for t in members], label, make_proposal(path))
                pool_results = pool.run(n_chains, length, seed, first_chain, bar)
                for t, result in zip(members, pool_results, strict=True):
                    results[t] = replace(result.first(n_samples), adaptation=path)
        for result in results:
            _warn_of(result, length, n_samples)
        return results

    def adapt(
        self,
        I: Indices,
        J: Indices = (),
        *,
        order: Sequence[int] | None = None,
        n_chains: int = 1024,
        max_steps: int = 1000,
        proposal_class: int | None = None,
        seed: int | None = None,
        progress: bool = False,
        **fit: Any,
    ) -> AdaptationPath:
        """A proposal for a rare joint class, fitted to latents of its samples (latent adaptation).

        Where the prior meets the joint class often enough, one stage does. Otherwise attributes are added one at a
        time (repeated adaptation): each stage samples the joint class of the attributes so far from the proposal
        before, and fits the next proposal to the latents of its samples. The cost grows with the number of
        attributes, not with one over the probability of having all of them. Pass ``path.mixture`` as ``proposal``;
        weights correct for it exactly.

        Args:
            order: the attributes of I and J in the order in which they are added, beginning in I. By default the
                one that the proposals so far serve best (the largest effective sample size) is added next.
            n_chains: samples that each stage is fitted to.
            max_steps: of the chains of a stage, which run for two effective samples each.
            proposal_class, seed, progress: as in :meth:`sample_targets`.
            fit: of :meth:`LatentMixture.fit`: n_components, covariance, prior_share, ...

        Raises:
            ValueError: an order that does not fit; a stage that the chains hardly met.
            KeyboardInterrupt: on Ctrl-C.
        """
        target = _joint_class((I, J))
        _check_count(n_chains, "n_chains")
        _check_count(max_steps, "max_steps", limit=2**31 - 1)
        seed = int(torch.randint(2**63 - 1, ())) if seed is None else _signed(seed)
        if proposal_class is None and self.conditional:
            proposal_class = target.I[0]
        options = dict(n_samples=n_chains, proposal_class=proposal_class, progress=progress)
        stages: list[AdaptationStage] = []
        taken: tuple[int, ...] = ()
        while set(taken) != {*target.I, *target.J}:
            key = _stage_seed(seed, len(stages))
            run = partial(self.sample_targets, proposal=stages[-1].mixture if stages else None, **options)
            choice = candidates(target, taken, order)
            if not stages and order is None and choice != [target]:
                choice.append(target)
            looking = min(FIRST_LOOK, max_steps)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SamplingWarning)
                before = [stages[-1].joint_class] if stages else []
                looks = run([*choice, *before], n_steps=looking, seed=key)
                if looks[0].diagnostics.interrupted:
                    raise KeyboardInterrupt
                base = looks.pop().diagnostics if stages else None
                result = _next_stage(looks, target, base)
                proposals = n_chains * looking
                # Long enough for most chains to hold a sample: what is fitted need not be exact, weights mend it.
                n_steps = math.ceil(min(2 / max(_efficiency(result, base), 1e-9), max_steps))
                if n_steps > looking:
                    (result,) = run([result.joint_class], n_steps=n_steps, seed=_stage_seed(key, 1))
                    proposals += n_chains * n_steps
            if result.diagnostics.interrupted:
                raise KeyboardInterrupt
            if _efficiency(result, base) == 0 or len(result.latents) < 2:
                raise AdaptationError(
                    f"adaptation: {n_chains} chains hardly met {result.joint_class} in "
                    f"{result.diagnostics.n_steps} steps, too little to fit a proposal to; take more chains or "
                    "steps, or another order"
                )
            fitted = LatentMixture.fit(result.latents, seed=key, **fit)
            stages.append(AdaptationStage(result.joint_class, result.diagnostics, proposals, fitted))
            taken = (*result.joint_class.I, *result.joint_class.J)
        return AdaptationPath(tuple(stages))

    def _adapt_where_it_pays(
        self, joint_classes: list[JointClass], proposal_class: int | None, seed: int, progress: bool
    ) -> list[AdaptationPath | None]:
        """A path for each target of which the prior gives few effective samples, None for the others."""
        options = dict(proposal_class=proposal_class, progress=progress)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SamplingWarning)
            pilot = self.sample_targets(joint_classes, 1024, FIRST_LOOK, seed=_stage_seed(seed, 0), **options)
        if any(look.diagnostics.interrupted for look in pilot):
            raise KeyboardInterrupt
        paths: list[AdaptationPath | None] = []
        for t, (target, look) in enumerate(zip(joint_classes, pilot, strict=True)):
            paths.append(None)
            if _efficiency(look, None) < WELL_SERVED:
                try:
                    paths[t] = self.adapt(target.I, target.J, seed=_stage_seed(seed, t + 1), **options)
                except AdaptationError as error:
                    warnings.warn(f"{error}; the prior is kept", SamplingWarning, stacklevel=4)
        return paths

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
        self.done = 0  # steps
        self.snapshots: list[dict[str, Tensor]] = []  # of the chains, where they gave samples

    def run(self, n_chains: int, length: ChainLength, seed: int, first_chain: int, bar: tqdm) -> list[S2MResult]:
        start = time.perf_counter()
        plan = _Plan(length)
        interrupted = False
        with torch.inference_mode():
            while plan.next is not None and not interrupted:
                interrupted = not self._advance(plan.next, n_chains, seed, first_chain, bar)
                if not interrupted:
                    self._take(plan, n_chains)
            self.state.raise_if_invalid()
            if not self.snapshots:
                self._snapshot()
            winners = self._decode(n_chains)
        timing = Timing(
            generator=self.generator_time.seconds(),
            classifier=self.classifier_time.seconds(),
            total=time.perf_counter() - start,
        )
        burn_in = min(self.done, plan.burn_in or self.done)  # an interrupted run may not have come so far
        return [
            S2MResult(
                target,
                *winners.of_target(t),
                diagnose(self.state, t, self.done, timing, interrupted, burn_in, plan.thin),
            )
            for t, target in enumerate(self.joint_classes)
        ]

    def _advance(self, to: int, n_chains: int, seed: int, first_chain: int, bar: tqdm) -> bool:
        """Run the chains to step ``to``; False if Ctrl-C came first."""
        block_steps = self.sampler.block_steps or max(1, BLOCK_ROWS // n_chains)
        while self.done < to:
            steps = min(block_steps, to - self.done)
            try:  # of G and clf alone, which take the time: the chains are never left half updated
                latents, extra = self.proposal.block(self.done, steps)
                x, output = self._classify(latents, bar)
            except KeyboardInterrupt:
                if self.done == 0:
                    raise
                return False
            self._accept(output, extra, steps, n_chains, seed, first_chain, self.done)
            self._keep_winners(latents, x, self.done, n_chains)
            self.done += steps
        return True

    def _take(self, plan: _Plan, n_chains: int) -> None:
        """At a step of the plan: a sample of every chain, or a look at how far there is to go."""
        ratio = 0.0
        if plan.looks:
            ratio = max(
                weight_summary(self.state.weights[:, t].cpu().numpy(), self.done)[1]
                for t in range(len(self.joint_classes))
            )
        if plan.arrive(ratio):
            self._snapshot()

    def _snapshot(self) -> None:
        state = {"winner": self.state.winner, "log_weight": self.state.log_weight, **self.kept}
        self.snapshots.append({name: value.clone() for name, value in state.items()})

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
        kept = {name: torch.stack([snapshot[name] for snapshot in self.snapshots]) for name in self.snapshots[0]}
        draw, target, chain = torch.nonzero(kept["winner"] >= 0, as_tuple=True)
        step = kept["winner"][draw, target, chain].long()
        latents = kept["latents"][draw, target, chain] if "latents" in kept else self.proposal.recall(chain, step)
        if "x" in kept:
            x = kept["x"][draw, target, chain]
            row_of_x = torch.arange(len(x), device=x.device)
        else:
            proposals, row_of_x = torch.unique(step * n_chains + chain, return_inverse=True)
            first = torch.empty_like(proposals).scatter_(0, row_of_x, torch.arange(len(step), device=step.device))
            # Many generators break on an empty batch: without any winner, one latent tells the shape of x.
            rows = latents[first] if len(first) > 0 else latents.new_zeros(1, *latents.shape[1:])
            x = torch.cat([self._generate(z) for z in rows.split(self.batch_size)])
        return _Winners(target, chain, latents, kept["log_weight"][draw, target, chain], x, row_of_x)


class _Plan:
    """The next step at which chains of a given length are looked at, or give a sample."""

    def __init__(self, length: ChainLength) -> None:
        self.length = length
        self.burn_in, self.thin = length.n_steps, length.thin
        if length.automatic:
            self.next: int | None = min(FIRST_LOOK, length.max_steps)
        else:
            self.next = length.n_steps
            self.thin = length.thin or length.n_steps
        self.left = length.samples_per_chain

    @property
    def looks(self) -> bool:
        """Whether the weights are needed on arrival."""
        return self.burn_in is None

    def arrive(self, max_weight_ratio: float) -> bool:
        """At step ``next``: whether it is time for a sample; sets the next one."""
        done = self.next
        if self.burn_in is None:
            needed = self.length.needed(max_weight_ratio)
            if done < min(needed, self.length.max_steps):
                self.next = self.length.next_look(done, needed)
                return False
            self.burn_in = done
            self.thin = self.thin or int(min(needed, done))
        self.left -= 1
        self.next = done + self.thin if self.left else None
        return True


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


def _chain_length(
    n_steps: int | str | None, tol: float, max_steps: int, samples_per_chain: int, thin: int | None
) -> ChainLength:
    if isinstance(n_steps, str):
        if n_steps != "auto":
            raise ValueError(f"n_steps must be a number or 'auto', got {n_steps!r}")
    else:
        n_steps = _check_count(200 if n_steps is None else n_steps, "n_steps", limit=2**31 - 1)
    for name, value in (("max_steps", max_steps), ("samples_per_chain", samples_per_chain), ("thin", thin)):
        if value is not None:
            _check_count(value, name, limit=2**31 - 1)
    length = ChainLength(None if n_steps == "auto" else n_steps, tol, max_steps, samples_per_chain, thin)
    if length.expected_steps > 2**31 - 1:
        raise ValueError(f"the chains would take {length.expected_steps} steps, more than 2^31 - 1")
    return length


class SamplingWarning(UserWarning):
    """A run that did not bring what was asked for: chains without a sample, a length that was not enough."""


def _next_stage(looks: list[S2MResult], target: JointClass, base: Diagnostics | None) -> S2MResult:
    """The whole target where it is met often enough or nothing else is left, otherwise what is served best."""
    parts = [look for look in looks if look.joint_class != target]
    whole = looks[-1]
    if not parts or (whole.joint_class == target and _efficiency(whole, base) >= OFTEN_ENOUGH):
        return whole
    return max(parts, key=lambda look: _efficiency(look, base))


def _efficiency(look: S2MResult, base: Diagnostics | None) -> float:
    """Effective samples per proposal; 0 where the joint class was hardly met.

    Classifiers whose logits are finite give every proposal some weight, and where none belongs to the joint class
    the weights are small and alike: many effective samples of nothing. ``base`` is of a wider joint class that the
    proposals were made for (None: the prior): the ratio of mean weights is the share of its samples that belong.
    """
    d = look.diagnostics
    samples, log_mean = d.n_chains * d.n_steps, 0.0
    if base is not None:
        samples, log_mean = samples * base.ess_per_proposal, base.log_mean_weight
    return d.ess_per_proposal if samples * math.exp(min(d.log_mean_weight - log_mean, 0.0)) >= MET else 0.0


def _stage_seed(seed: int, stage: int) -> int:
    """A seed of its own for each stage; the draws of different keys are independent."""
    state = np.random.SeedSequence([seed % 2**64, stage]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def _warn_of(result: S2MResult, length: ChainLength, n_samples: int) -> None:
    d = result.diagnostics
    if d.chains_without_support > 0:
        warnings.warn(
            f"{d.chains_without_support} of {d.n_chains} chains never met the support of {result.joint_class} in "
            f"{d.n_steps} steps and have no sample",
            SamplingWarning,
            stacklevel=3,
        )
    elif len(result.samples) < n_samples:
        warnings.warn(
            f"{n_samples - len(result.samples)} of {n_samples} samples of {result.joint_class} are missing: their "
            "chains had not met its support by then, or the run was interrupted",
            SamplingWarning,
            stacklevel=3,
        )
    if d.burn_in >= length.max_steps and length.automatic and d.tv_bound > length.tol and not d.interrupted:
        warnings.warn(
            f"{result.joint_class}: after max_steps={length.max_steps} steps the bound on the distance to the "
            f"target is {d.tv_bound:.2g}, not tol={length.tol:g} (M = {d.max_weight_ratio:.0f}). Adapt the "
            "proposals (adapt=True), calibrate D_v or temper it (validity_temperature above 1), train a better "
            "generator, or take more steps",
            SamplingWarning,
            stacklevel=3,
        )


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
