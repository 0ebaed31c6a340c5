"""S2M sampling: thousands of independent Metropolis-Hastings chains at once.

Source: Cho, Kim, Khan and Choo, "Mining Multi-Label Samples from Single Positive Labels", NeurIPS 2022,
Algorithm 1. Proposals of independent Metropolis-Hastings do not depend on the chain's state, so they are
generated and classified in large batches, one pool of them serves every joint class, and only each chain's last
accepted proposal is decoded.
"""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import tqdm

from .._checks import count, renamed, shown
from .._conventions import Generator, latent_shape
from .._models import DRAWING, eval_mode, seeded
from .adaptation import adapt, adapt_where_it_pays, check_order
from .checkpoint import identity, opened, outputs_of
from .fingerprints import of_model
from .kernels import IMH, METHODS, Kernel, Problem
from .length import MAX_STEPS, Schedule, bound_steps
from .models import BatchedModels, Models
from .plan import Plan
from .probe import probe
from .processes import Shard, processes_of
from .proposals import (
    DrawLatents,
    DrawnProposal,
    GivenLatents,
    LatentMixture,
    LatentPrior,
    Mixture,
    MixtureProposal,
    PriorProposal,
    Proposal,
)
from .results import AdaptationPath, S2MResult, warn
from .run import Driver, NotBegun, Run, Signals
from .tuning import tune
from .weights import NOW_OF_WEIGHTS, Indices, JointClass, MinMax, joint_class

ProposalOption = LatentMixture | Mixture | DrawLatents | Tensor | np.ndarray | None
"""What ``proposal=`` takes; None is the standard normal prior."""


def _now(value: str, *names: str) -> dict[str, str]:
    return {name: value.format(name) for name in names}


# The spelling of keywords that were arguments before they became options of a value.
_NOW_OF_PLAN = (
    _now("plan=spml_fast.Plan({}=...)", "batch_size", "block_steps", "device")
    | _now("plan=spml_fast.Plan(precision=...)", "autocast_dtype")
    | _now("plan=spml_fast.Plan(memory_format=torch.channels_last)", "channels_last")
)
_NOW_OF_METHODS = _now(
    "method=spml_fast.IMH({0}=...), spml_fast.Rejection({0}=...) or spml_fast.Resample({0}=...)",
    "tol",
    "max_steps",
) | _now("method=spml_fast.IMH({0}=...) or spml_fast.MALA({0}=...)", "samples_per_chain", "thin")
_NOW_OF_REST = (
    _now("proposal=spml_fast.Mixture(...)", "adapt")
    | _now("proposal=latents", "latents")
    | _now("run=spml_fast.Run({}=...)", "first_chain", "distributed", "gather", "checkpoint")
    | _now("run=spml_fast.Run(every=...)", "checkpoint_every")
)
_NOW_OF_CALLS = _NOW_OF_METHODS | _NOW_OF_REST
_NOW_OF_ADAPT = _now(
    "how=spml_fast.Mixture({}=...)",
    "n_chains",
    "max_steps",
    "n_components",
    "max_components",
    "covariance",
    "prior_share",
) | _now("run=spml_fast.Run(distributed=...)", "distributed")
_NOW_OF_S2M_SAMPLE = (
    NOW_OF_WEIGHTS
    | _NOW_OF_METHODS
    | _now("spml_fast.S2MSampler(G, clf, {}=...).sample(I, J).samples", "conditional", "stochastic", "plan")
    | _now(
        "spml_fast.S2MSampler(G, clf).sample(I, J, {}=...).samples",
        "proposal",
        "proposal_class",
        "run",
        "progress",
    )
    | {name: f"spml_fast.S2MSampler(G, clf, {now}).sample(I, J).samples" for name, now in _NOW_OF_PLAN.items()}
    | {name: f"spml_fast.S2MSampler(G, clf).sample(I, J, {now}).samples" for name, now in _NOW_OF_REST.items()}
)


class S2MSampler:
    """A sampler of joint classes (has all attributes in I, none in J) from an existing generator.

    Args:
        G: ``G(z) -> x`` or, class-conditional, ``G(z, label) -> x``, with x (B, *x_shape) for z (B, *z_shape) and
            label (B,) int64, or one-hot (B, c_dim) where G has ``c_dim`` (None where that is 0). x may come in a
            tuple, dict or dataclass. A generator with a second argument that it requires, fails without or calls
            "label" or the like is taken as class-conditional; ``conditional`` says it where that guess is wrong.
        clf: ``clf(x) -> (class_logits, validity_logit)`` or ``(class_logits, fake_class_logits or None,
            validity_logit)``, or a dict or dataclass with those names: logits (B, N) of D_r, (B, N) of D_f (needed
            for class-conditional proposals) and B of D_v. A logit of -inf says "never". They are used as density
            ratios, so they must be calibrated; :func:`spml_fast.train_density_ratio` makes such a clf, and
            :class:`Classifiers` joins separate modules.
        z_dim: latent size, an int or a shape; ``G.z_dim`` unless given.
        prior: distribution of the latents that G was trained with, a ``torch.distributions`` object of one number
            or of a whole latent; the standard normal unless given. Normal, uniform, truncated
            (:class:`TruncatedNormal`) and whatever has an ``icdf`` is drawn by Philox and goes with every method;
            others are drawn by their own ``sample``, once a step, and go with neither MALA nor Mixture.
        weight: gamma and temperatures, a :class:`MinMax`; all 1 unless given.
        plan: how the models are run: batch size, memory format, device, precision; a :class:`Plan`.
        conditional: whether G takes a label.
        stochastic: G draws noise of its own, so a latent does not determine x: keep samples as the chains run
            instead of decoding the latents of their states at the end.

    Results depend on (seed, chain, step) alone: not on the plan, threads, processes, or the number of other chains
    (but where a length, a bound or a step size is found over all of them), provided that G and clf compute each
    row alike however rows are batched. Convolutions and matrix products round a little differently from one batch
    size to the next; with them, chains agree but for rare proposals whose accept decision falls within that
    rounding.

    Raises:
        ValueError, TypeError: for anything malformed, before sampling starts or with the first batch.
    """

    @renamed(**NOW_OF_WEIGHTS | _NOW_OF_PLAN)
    def __init__(
        self,
        G: Callable[..., Tensor],
        clf: Callable[[Tensor], object],
        *,
        z_dim: int | Sequence[int] | None = None,
        weight: MinMax | None = None,
        plan: Plan | None = None,
        prior: Distribution | None = None,
        conditional: bool | None = None,
        stochastic: bool = False,
    ):
        for name, value in (("G", G), ("clf", clf)):
            if not callable(value):
                raise TypeError(f"{name} must be callable, got {type(value).__name__}")
            if isinstance(value, type):
                raise TypeError(f"{name} must be a module or a function, got the class {value.__name__}: make one")
        for name, value, kind in (("weight", weight, MinMax), ("plan", plan, Plan)):
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{name} must be a spml_fast.{kind.__name__}, got {shown(value)}")
        if z_dim is None and isinstance(prior, Distribution):
            z_dim = tuple(prior.batch_shape + prior.event_shape) or None
        z_shape = latent_shape(G, z_dim)
        self.weight = weight or MinMax()
        self.models = Models(
            Generator(G, conditional),
            clf,
            z_shape,
            stochastic,
            plan or Plan(),
            None if prior is None else LatentPrior(prior, z_shape),
        )

    def describe(self) -> str:
        """How G and clf are read and run, in a few sentences; runs each on two rows and on one, the first time.

        Raises:
            ValueError, TypeError: what cannot be read; the message names the argument that would settle it.
        """
        found, models = probe(self.models), self.models
        z = ", ".join(map(str, ("B", *models.z_shape)))
        x = ", ".join(map(str, ("B", *found.x_shape)))
        prior = "a standard normal" if models.prior is None else str(models.prior)
        noise = ", drawing noise of its own" if models.stochastic else ""
        D_f = "" if not found.has_D_f else ", of D_f likewise" + ("" if models.conditional else " (not used)")
        twice = " A batch of one row is given twice, since one row alone fails." if found.fewest_rows == 2 else ""
        sizes, formats = found.plan.batch_size, found.plan.memory_format
        how = [
            f"{name} in batches of {size}, {memory_format.replace('_', ' ')}"
            for name, size, memory_format in zip(("G", "clf"), sizes, formats, strict=True)
        ]
        precision = "" if found.plan.precision is None else f", under autocast to {found.plan.precision}"
        return (
            f"{models.generator}: z ({z}) {models.dtype} of {prior} -> x ({x}){noise}. "
            f"clf(x): logits (B, {found.n_classes}) of D_r{D_f}, and B of D_v.{twice} "
            f"Run on {models.device}: {', '.join(how)}{precision}."
        )

    def tune(self, progress: bool = False) -> Plan:
        """The plan with batch sizes and memory formats that are fastest here, measured; what the plan says stays.

        Pass it on: ``S2MSampler(G, clf, plan=plan)``; ``plan.to_dict()`` keeps it. Measuring is never exact:
        another call may choose otherwise, and other batches round differently.

        Args:
            progress: show a tqdm bar.
        """
        probe(self.models)
        with eval_mode(*self.models.both), seeded(0, self.models.device):
            return tune(self.models, progress)

    @renamed(**_NOW_OF_CALLS)
    def sample(
        self,
        I: Indices,
        J: Indices = (),
        n_samples: int | None = None,
        n_steps: int | str | None = None,
        *,
        method: str | Kernel = "imh",
        proposal: ProposalOption = None,
        proposal_class: int | None = None,
        seed: int | None = None,
        run: Run | None = None,
        progress: bool = False,
    ) -> S2MResult:
        """Samples of one joint class; arguments as in :meth:`sample_targets`."""
        (result,) = self.sample_targets(
            [(I, J)],
            n_samples,
            n_steps,
            method=method,
            proposal=proposal,
            proposal_class=proposal_class,
            seed=seed,
            run=run,
            progress=progress,
        )
        return result

    @renamed(**_NOW_OF_CALLS)
    def sample_targets(
        self,
        targets: Iterable[tuple[Indices, Indices]],
        n_samples: int | None = None,
        n_steps: int | str | None = None,
        *,
        method: str | Kernel = "imh",
        proposal: ProposalOption = None,
        proposal_class: int | None = None,
        seed: int | None = None,
        run: Run | None = None,
        progress: bool = False,
    ) -> list[S2MResult]:
        """Many joint classes from one pool of proposals; result t equals ``sample(*targets[t])``, bit for bit.

        Class-conditional proposals make one pool for each proposal class among the targets, adapted proposals one
        for each target. Chains of n_steps="auto" run as long as the target of their pool that needs most.

        Args:
            targets: (I, J) pairs of class indices; an int is one index; J may be empty.
            n_samples: samples per joint class, each of a chain of its own unless ``samples_per_chain`` of the
                method says otherwise. Default 64.
            n_steps: proposals that each chain is offered before it gives its first sample, by default 200; for
                :class:`Rejection` and :class:`Resample` proposals per sample, by default "auto". "auto": as many
                as bring the bound on the distance to every target down to the method's ``tol``.
            method: :class:`IMH`, :class:`Rejection`, :class:`Resample`, :class:`MALA`, or a kernel of one's own;
                the strings "imh", "rejection", "resample" and "mala" stand for them with their default options.
                Rejection and resampling take their samples from all proposals of the run, and so need fewer; MALA
                is for joint classes that proposals do not reach. Bounds and lengths are those of the weights that
                were met: where heavier ones exist that no proposal came upon, every method is further off than it
                can tell.
            proposal: in place of the standard normal prior,

                * :class:`Mixture`: a proposal fitted to each target that the prior serves badly, and how;
                  ``result.adaptation`` is the path to it, None for a target that the prior serves well enough: its
                  proposals stay those of the prior;
                * :class:`LatentMixture`: a mixture of latents of G's size that was fitted before (:meth:`adapt`);
                * ``draw(n, generator) -> latents (n, *z_shape)`` or ``(latents, log weights (n,))``, called once a
                  step for the n chains of all processes, with a ``torch.Generator`` on the device of G. A log
                  weight is log p_z(z) - log p~_z(z), up to a constant: p_z the density of the latents that G and
                  clf are meant for, p~_z the one that z was drawn from. Without them the two are taken to be the
                  same. MALA needs them, with p_z the standard normal;
                * latents (n_steps, n_samples, *z_shape), tensor or array: chain c is offered [k, c] at step k.
                  They must be draws of p_z, and fix n_steps and n_samples.
            proposal_class: label of class-conditional proposals; I[0] of each target unless given.
            seed: 64-bit integer; drawn from torch's global generator unless given.
            run: checkpoint, processes, number of the first chain; a :class:`Run`.
            progress: show a tqdm bar.

        Returns:
            One :class:`S2MResult` per target, in order. A chain that never met the support of its target has no
            sample; ``diagnostics.chains_without_support`` counts them and a warning says so.

        Raises:
            ValueError, TypeError: for arguments that do not fit, before anything is drawn.
            LostProcessError: another process of the run is gone.
            FailedProcessError: another process of the run raised an exception.

        Ctrl-C, once the first step is over, ends the call with what its chains have by then, and with no samples
        of pools that have not begun; ``diagnostics.interrupted`` is set. A second Ctrl-C raises at once.
        """
        joint_classes = [joint_class(target) for target in targets]
        if not joint_classes:
            raise ValueError("targets is empty: expected at least one (I, J) pair")
        run = run or Run()
        if not isinstance(run, Run):
            raise TypeError(f"run must be a spml_fast.Run, got {shown(run)}")
        kernel = _kernel(method)
        if isinstance(proposal, (Tensor, np.ndarray)):
            proposal = self._checked_latents(proposal, n_samples, n_steps, kernel)
            n_steps, n_samples = proposal.shape[:2]
        call = Call(
            joint_classes=joint_classes,
            n_samples=count(64 if n_samples is None else n_samples, "n_samples"),
            n_steps=_checked_steps(n_steps, kernel),
            kernel=kernel,
            proposal=proposal,
            proposal_class=proposal_class,
            seed=None if seed is None else _signed(seed),
        )
        self._check(call, run)
        with self._driver(call, run, progress) as (driver, call):
            checkpoint, paths = driver.checkpoint, [None] * len(joint_classes)
            if isinstance(proposal, Mixture):
                if checkpoint is not None and "adaptation" in checkpoint.parts:
                    saved = checkpoint.parts["adaptation"]
                    paths = [None if path is None else AdaptationPath.from_state(path) for path in saved]
                else:
                    draw = self._draw_chains(driver, call)
                    paths = adapt_where_it_pays(draw, driver.processes, joint_classes, call.seed, proposal)
                    if checkpoint is not None:
                        state = [None if path is None else path.to_state() for path in paths]
                        checkpoint.save("adaptation", state)
            results = self._run(driver, call, run.first_chain, paths)
            if driver.signals.interrupted and not any(result.diagnostics.interrupted for result in results):
                # Ctrl-C came while the last of them were decoded.
                said = [replace(result.diagnostics, interrupted=True) for result in results]
                results = [replace(result, diagnostics=d) for result, d in zip(results, said, strict=True)]
            if driver.processes.rank == 0:
                for result in results:
                    _warn_of(result, call)
                _warn_of_bounds(results, call)
        return results

    @renamed(**_NOW_OF_ADAPT)
    def adapt(
        self,
        I: Indices,
        J: Indices = (),
        how: Mixture | None = None,
        *,
        order: Sequence[int] | None = None,
        proposal_class: int | None = None,
        seed: int | None = None,
        run: Run | None = None,
        progress: bool = False,
    ) -> AdaptationPath:
        """A proposal for a rare joint class, fitted to latents of its samples (latent adaptation).

        Where the prior meets the joint class often enough, one stage does. Otherwise attributes are added one at a
        time (repeated adaptation): each stage samples the joint class of the attributes so far from the proposal
        before, and fits the next proposal to the latents of its samples. The cost grows with the number of
        attributes, not with one over the probability of having all of them. Pass ``path.mixture`` as ``proposal``;
        weights correct for it exactly.

        Args:
            I, J, proposal_class, seed, progress: as in :meth:`sample_targets`.
            how: the mixture, and what its stages may cost.
            order: the attributes of I and J in the order in which they are added, beginning in I. By default the
                one that the proposals so far serve best (the largest effective sample size) is added next.
            run: ``Run(distributed=False)`` keeps other processes out of it; nothing else of it applies.

        Raises:
            ValueError: an order that does not fit; a stage that the chains hardly met.
            KeyboardInterrupt: on Ctrl-C.
        """
        target, how = JointClass(I, J), how or Mixture()
        if not isinstance(how, Mixture):
            raise TypeError(f"how must be a spml_fast.Mixture, got {shown(how)}")
        run = run or Run()
        if run != Run(distributed=run.distributed):
            raise ValueError(f"an adaptation has no checkpoint, gathers always, and no first chain: got {run}")
        check_order(target, order)
        seed = None if seed is None else _signed(seed)
        call = Call([target], how.n_chains, None, IMH(), how, proposal_class, seed, order)
        self._check(call, run)
        with self._driver(call, run, progress) as (driver, call):
            draw = self._draw_chains(driver, call)
            path = adapt(draw, driver.processes, target, call.seed, how, order)
            if any(driver.processes.largest(driver.signals.interrupted)):
                raise KeyboardInterrupt  # it came while the last stage was decoded or fitted
        return path

    @contextlib.contextmanager
    def _driver(self, call: Call, run: Run, progress: bool) -> Iterator[tuple[Driver, Call]]:
        """What runs the call: processes that agree on it, its checkpoint, a bar; and the call with a seed."""
        models, processes = self.models, processes_of(run.distributed)
        signals = Signals(wait_for_checkpoint=run.checkpoint is not None)
        with contextlib.ExitStack() as stack:
            stack.enter_context(signals.noted())
            stack.enter_context(processes.failing_together())
            probe(models, speak=processes.rank == 0)
            self._check_label(call)
            stack.enter_context(models.borrowed())
            told = self._identity(call) if processes.size > 1 or run.checkpoint is not None else {}
            told["first_chain"] = run.first_chain
            processes.require_same_call(
                {
                    **told,
                    "gather": run.gather,
                    "checkpoint": run.checkpoint is not None,
                    "block_steps": models.plan.block_steps,
                }
            )

            with DRAWING:
                # Before G and clf are tried for the checkpoint: that sets torch's generator back, and a seed that
                # another thread drew meanwhile would be drawn again. A checkpoint may have one of its own.
                drawn = int(torch.randint(2**63 - 1, ())) if call.seed is None else call.seed

            def seed() -> int:
                return processes.from_first(lambda: drawn)

            def outputs() -> list[float]:
                return outputs_of(models, [label for label, _ in self._pools(call)])

            total = None
            if call.n_steps is not None:
                steps = call.schedule().expected_steps + call.kernel.start_steps
                total = steps * Shard(call.n_chains, processes).n * len(self._pools(call))
            bar = tqdm(
                total=total,
                desc="S2M sampling",
                unit=" proposals",
                unit_scale=True,
                disable=not (progress and processes.rank == 0),
            )
            with bar:
                checkpoint = None
                if run.checkpoint is not None:
                    file = opened(run.checkpoint, told, outputs, seed, run.every, processes)
                    checkpoint = stack.enter_context(file)
                call = replace(call, seed=seed() if checkpoint is None else checkpoint.seed)
                yield Driver(processes, signals, bar, checkpoint, run.gather), call
                processes.largest()  # or a process that fails at the very end would not be heard

    def _run(
        self, driver: Driver, call: Call, first_chain: int = 0, paths: Sequence[AdaptationPath | None] = ()
    ) -> list[S2MResult]:
        """Samples of each joint class; ``paths`` are the adaptations of their proposals, where there are any."""
        results: dict[int, S2MResult] = {}
        shard = Shard(call.n_chains, driver.processes)
        for number, ((label, path), members) in enumerate(self._pools(call, paths).items()):
            adapted = None if path is None else paths[path].mixture
            proposal = self._proposal(call, shard, first_chain, adapted)
            problem = Problem(
                joint_classes=tuple(call.joint_classes[t] for t in members),
                weight=self.weight,
                models=self.models.given(label, proposal),
                proposal=proposal,
                shard=shard,
                seed=call.seed,
                first_chain=first_chain,
                n_samples=call.n_samples,
                n_steps=call.n_steps,
            )
            try:
                found = driver.run(call.kernel, problem, call.schedule(), f"pool {number}")
            except NotBegun:
                if not results:
                    raise KeyboardInterrupt from None
                break
            if number == 0 and driver.processes.rank == 0:
                _warn_of_unit_logits(problem.models, call.n_chains * found[0].diagnostics.n_steps)
            for t, result in zip(members, found, strict=True):
                results[t] = result if path is None else replace(result, adaptation=paths[path])
            if found[0].diagnostics.interrupted:
                break
        begun = next(iter(results.values()))
        return [results.get(t) or _not_begun(target, begun) for t, target in enumerate(call.joint_classes)]

    def _draw_chains(self, driver: Driver, call: Call) -> Callable[..., list[S2MResult]]:
        """The function by which an adaptation draws chains: those of all processes, without a checkpoint."""
        driver = replace(driver, checkpoint=None, gather=True, normal_latents=True)

        def draw(
            joint_classes: Sequence[JointClass],
            n_chains: int,
            n_steps: int,
            seed: int,
            proposal: LatentMixture | None,
            label: int | None,
        ) -> list[S2MResult]:
            if call.proposal_class is not None or not self.models.conditional:
                label = call.proposal_class
            chains = Call(joint_classes, n_chains, n_steps, IMH(), proposal, label, seed)
            results = self._run(driver, chains)
            if any(result.diagnostics.interrupted for result in results):
                raise KeyboardInterrupt
            return results

        return draw

    def _pools(
        self, call: Call, paths: Sequence[AdaptationPath | None] = ()
    ) -> dict[tuple[int | None, int | None], list[int]]:
        """The targets that share proposals, by the label of these and the target that they were adapted to."""
        pools: dict[tuple[int | None, int | None], list[int]] = {}
        for t, target in enumerate(call.joint_classes):
            label = None
            if self.models.conditional:
                label = target.I[0] if call.proposal_class is None else call.proposal_class
            own = t if paths and paths[t] is not None else None
            pools.setdefault((label, own), []).append(t)
        return pools

    def _proposal(self, call: Call, shard: Shard, first_chain: int, adapted: LatentMixture | None) -> Proposal:
        given = adapted or call.proposal
        if isinstance(given, Tensor):
            return GivenLatents(shard.slice(given, 1))
        chains = shard.numbers(first_chain, self.models.device)
        arguments = (self.models.z_shape, chains, call.seed, self.models.dtype)
        if isinstance(given, LatentMixture):
            return MixtureProposal(given, *arguments)
        prior = self.models.prior
        if given is None and prior is not None and not prior.from_normals:
            given = prior.draw
        if given is None or isinstance(given, Mixture):
            return PriorProposal(*arguments)
        here = slice(shard.first, shard.first + shard.n)
        needs = call.kernel.needs_correction
        return DrawnProposal(
            given,
            self.models.z_shape,
            shard.n_chains,
            here,
            call.seed,
            self.models.device,
            needs,
            self.models.dtype,
        )

    def _check(self, call: Call, run: Run) -> None:
        """Errors of arguments that cannot be combined, before anything is drawn."""
        if call.proposal_class is not None:
            count(call.proposal_class, "proposal_class", least=0)
        self._check_label(call)
        prior = self.models.prior
        if prior is not None:
            fits = isinstance(call.proposal, (Mixture, LatentMixture))
            if not prior.from_normals and (fits or call.kernel.needs_correction):
                what = "fitted proposals" if fits else f"method={call.kernel.name!r}"
                raise ValueError(f"for {what} the prior must be one that can be made of normals, not {prior}")
            if call.kernel.needs_correction and call.proposal is not None and not fits:
                raise ValueError(
                    f"method={call.kernel.name!r} with a prior of its own takes proposals of the prior or of a "
                    "mixture, not latents from elsewhere"
                )
        if call.schedule().expected_steps > MAX_STEPS:
            raise ValueError(f"the chains would take {call.schedule().expected_steps} steps, more than 2^31 - 1")
        if call.kernel.name == "mala" and self.models.stochastic:
            raise ValueError("method='mala' follows gradients through G, which must not draw noise of its own")
        proposal = call.proposal
        known = (LatentMixture, Mixture, Tensor)
        drawing = callable(proposal) and not isinstance(proposal, type)  # not Mixture for Mixture()
        if proposal is not None and not isinstance(proposal, known) and not drawing:
            raise TypeError(
                "proposal must be a LatentMixture, a Mixture, latents, or a function draw(n, generator), "
                f"got {shown(proposal)}"
            )
        if isinstance(proposal, Mixture) and (proposal.n_components or 0) > proposal.n_chains:
            raise ValueError(
                f"n_components={proposal.n_components} components cannot be fitted to "
                f"n_chains={proposal.n_chains} samples"
            )
        if isinstance(proposal, LatentMixture) and proposal.dim != math.prod(self.models.z_shape):
            raise ValueError(
                f"the mixture is of latents of {proposal.dim} numbers, G takes {math.prod(self.models.z_shape)}"
            )
        own_draws = proposal is None and prior is not None and not prior.from_normals
        if run.first_chain and (callable(proposal) or own_draws):
            raise ValueError(
                f"first_chain={run.first_chain} with a function that draws proposals: what it draws depends on "
                "the order of its calls, not on the number of a chain. Pass latents, or let first_chain be 0"
            )
        for target in call.joint_classes:
            self.weight.values(target)

    def _check_label(self, call: Call) -> None:
        """``ValueError`` for a proposal class where G takes none, as far as that is known."""
        if call.proposal_class is not None and self.models.conditional is False:
            raise ValueError(
                f"proposal_class={call.proposal_class}, but G takes no label; "
                "pass conditional=True to S2MSampler if it does"
            )

    def _identity(self, call: Call) -> dict[str, Any]:
        """What must be the same in all processes, and in a run that goes on from a checkpoint, in plain values."""
        models, kind = self.models, self.models.device.type
        told = dict(
            G=of_model(models.G),
            clf=of_model(models.clf),
            prior=None if models.prior is None else models.prior.identity(),
            z_shape=models.z_shape,
            conditional=models.conditional,
            stochastic=models.stochastic,
            dtype=str(models.dtype),
            precision=str(models.plan.precision),
            autocast=str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None,
            targets=[str(target) for target in call.joint_classes],
            proposal=call.proposal,
            n_samples=call.n_samples,
            n_steps="auto" if call.n_steps is None else call.n_steps,
            order=call.order,
            proposal_class=call.proposal_class,
            seed=call.seed,
        )
        weights = [self.weight.values(target) for target in call.joint_classes]
        told |= {name: [values[name].tolist() for values in weights] for name in weights[0]}
        told = {name: identity(value) for name, value in told.items()}
        method = identity(call.kernel)
        return told | {"method": method.pop("name")} | {f"method.{name}": part for name, part in method.items()}

    def _checked_latents(
        self, latents: Tensor | np.ndarray, n_samples: int | None, n_steps: int | str | None, kernel: Kernel
    ) -> Tensor:
        if isinstance(n_steps, str) or kernel.samples_per_chain != 1 or kernel.needs_correction:
            raise ValueError(
                f"given latents fix the number of steps: {n_steps=}, method={kernel.name!r}, "
                f"samples_per_chain={kernel.samples_per_chain} cannot be"
            )
        latents = torch.as_tensor(latents)
        expected = tuple(
            given if given is not None else name
            for given, name in ((n_steps, "n_steps"), (n_samples, "n_samples"))
        )
        matches = latents.ndim == 2 + len(self.models.z_shape) and all(
            isinstance(want, str) or want == got
            for want, got in zip((*expected, *self.models.z_shape), latents.shape, strict=True)
        )
        if not matches:
            shape = ", ".join(map(str, (*expected, *self.models.z_shape)))
            raise ValueError(f"proposal=latents must have shape ({shape}), got {tuple(latents.shape)}")
        latents = latents.to(device=self.models.device, dtype=self.models.dtype)
        bad = torch.nonzero(~torch.isfinite(latents.flatten(2)).all(2))
        if len(bad):
            step, chain = bad[0].tolist()
            raise ValueError(
                f"proposal=latents must be finite, got NaN or inf in the latent of chain {chain} at step {step}"
            )
        return latents


@dataclass(frozen=True)
class Call:
    """One call of the sampler, checked.

    Attributes:
        n_steps: None: "auto".
        seed: None until one is drawn.
        order: of an adaptation.
    """

    joint_classes: Sequence[JointClass]
    n_samples: int
    n_steps: int | None
    kernel: Kernel
    proposal: LatentMixture | Mixture | DrawLatents | Tensor | None = field(repr=False)
    proposal_class: int | None
    seed: int | None
    order: Sequence[int] | None = None

    @property
    def n_chains(self) -> int:
        return -(-self.n_samples // self.kernel.samples_per_chain)

    def schedule(self) -> Schedule:
        kernel = self.kernel
        options = (kernel.max_steps, kernel.samples_per_chain, kernel.thin, kernel.first_look)
        return Schedule.of(self.n_steps, *options)


@renamed(**_NOW_OF_S2M_SAMPLE)
def s2m_sample(
    G: Callable[..., Tensor],
    clf: Callable[[Tensor], object],
    I: Indices,
    J: Indices = (),
    n_samples: int = 64,
    n_steps: int | str | None = None,
    *,
    z_dim: int | Sequence[int] | None = None,
    weight: MinMax | None = None,
    method: str | Kernel = "imh",
    seed: int | None = None,
) -> Tensor:
    """Samples of the joint class that has all attributes in I and none in J: (n_samples, *x_shape), on G's device.

    The short form of :class:`S2MSampler` and its :meth:`~S2MSampler.sample_targets`, where the arguments are
    explained; use the class for diagnostics, latents, weights and more options. Fewer rows come back, with a
    warning, if chains never met the joint class; under ``torchrun`` those of this process's chains. A warning says
    if Ctrl-C ended the run early.

    >>> x = spml_fast.s2m_sample(G, clf, I=[0, 2], J=1)  # doctest: +SKIP
    """
    sampler = S2MSampler(G, clf, z_dim=z_dim, weight=weight)
    result = sampler.sample(I, J, n_samples, n_steps, method=method, seed=seed)
    d = result.diagnostics
    if d.interrupted and d.n_steps:
        warn(f"Ctrl-C ended the run of {result.joint_class} after {d.n_steps} steps, perhaps before all of them")
    return result.samples


def _kernel(method: str | Kernel) -> Kernel:
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, or a kernel, got {method!r}")
        return METHODS[method]()
    if not isinstance(method, Kernel):
        hint = f"; write {method.__name__}()" if isinstance(method, type) and issubclass(method, Kernel) else ""
        raise TypeError(f"method must be one of {', '.join(METHODS)}, or a kernel, got {shown(method)}{hint}")
    kind = type(method)
    for name in ("init", "accept", "draws", *(["needed"] if method.automatic else [])):
        if getattr(kind, name) is getattr(Kernel, name):
            raise TypeError(f"{kind.__name__} is no whole kernel: it has no method {name}()")
    count(method.samples_per_chain, "samples_per_chain", most=MAX_STEPS)
    if method.thin is not None:
        count(method.thin, "thin", most=MAX_STEPS)
    return method


def _checked_steps(n_steps: int | str | None, kernel: Kernel) -> int | None:
    if n_steps is None:
        return kernel.steps
    if isinstance(n_steps, str):
        if n_steps != "auto":
            raise ValueError(f"n_steps must be a number or 'auto', got {shown(n_steps)}")
        if not kernel.automatic:
            raise ValueError(
                f"method={kernel.name!r} has no bound to stop at: n_steps must be a number, got 'auto'"
            )
        return None
    return count(n_steps, "n_steps", most=MAX_STEPS)


def _not_begun(target: JointClass, other: S2MResult) -> S2MResult:
    """The empty result of a joint class before whose pool Ctrl-C came; shapes are those of another's."""
    diagnostics = replace(
        other.diagnostics,
        n_steps=0,
        burn_in=0,
        thin=0,
        n_samples=0,
        acceptance_rate=0.0,
        support_rate=0.0,
        ess_per_proposal=0.0,
        max_weight_ratio=math.inf,
        log_mean_weight=-math.inf,
        tv_bound=None if other.diagnostics.tv_bound is None else 1.0,
        chains_without_support=other.diagnostics.n_chains,
        proposals_per_second=0.0,
        seconds_in_generator=0.0,
        seconds_in_classifier=0.0,
        seconds_in_sampler=0.0,
        interrupted=True,
    )
    return replace(other.first(0), joint_class=target, diagnostics=diagnostics, adaptation=None)


def _warn_of(result: S2MResult, call: Call) -> None:
    d, kernel, n_samples = result.diagnostics, call.kernel, call.n_samples
    if d.n_steps == 0:
        warn(f"there are no samples of {result.joint_class}: Ctrl-C came before its chains began")
    elif d.chains_without_support > 0:
        warn(
            f"{d.chains_without_support} of {d.n_chains} chains never met the support of {result.joint_class} in "
            f"{d.n_steps} steps and have no sample"
        )
    elif (
        d.method == "resample" and d.ess_per_proposal * d.n_chains * d.n_steps < n_samples and call.n_steps is None
    ):
        warn(
            f"{n_samples} samples of {result.joint_class} were resampled from proposals that are worth "
            f"{d.ess_per_proposal * d.n_chains * d.n_steps:.0f} independent ones; take more steps (max_steps="
            f"{kernel.max_steps} was the budget)"
        )
    elif d.n_samples < n_samples:
        warn(
            f"{n_samples - d.n_samples} of {n_samples} samples of {result.joint_class} are missing: "
            + (
                f"rejection accepted too few of {d.n_chains * d.n_steps} proposals (M = {d.max_weight_ratio:.0f})"
                if d.method == "rejection"
                else "their chains had not met its support by then, or the run was interrupted"
            )
        )
    short = d.burn_in >= kernel.max_steps and d.tv_bound is not None and d.tv_bound > kernel.tol
    if call.n_steps is None and short and not d.interrupted:
        advice = (
            "Calibrate D_v" if result.adaptation else "Adapt the proposals (proposal=Mixture()), calibrate D_v"
        )
        warn(
            f"{result.joint_class}: after max_steps={kernel.max_steps} steps the bound on the distance to the "
            f"target is {d.tv_bound:.2g}, not tol={kernel.tol:g} (M = {d.max_weight_ratio:.0f}). {advice} or "
            "temper it (validity_temperature above 1), train a better generator, or take more steps"
        )
    elif call.n_steps is None and kernel.samples_per_chain > 1 and d.tv_bound is not None and not d.interrupted:
        ratio = d.max_weight_ratio
        bound = d.tv_bound if kernel.thin is None else (1 - 1 / ratio) ** d.burn_in  # of the first samples
        if bound > kernel.tol:
            warn(
                f"{result.joint_class}: heavier weights came after the chains' length was found: the bound on "
                f"the distance to the target is {bound:.2g}, not tol={kernel.tol:g} (M = {ratio:.0f}). "
                f"n_steps={bound_steps(ratio, kernel.tol)} would bring it there"
            )


MANY, SPREAD = 64, 0.1
"""Proposals whose validity logits, all between 0 and 1 and at least so far apart, are taken for probabilities."""


def _warn_of_unit_logits(models: BatchedModels, n: int) -> None:
    """Warns where validity logits look like probabilities, if the probe could not tell from how they are made."""
    if models.largest is None or models.found.squashed or n < MANY:
        return
    _, highest, negated = models.largest.tolist()
    if -negated >= 0 and -negated + SPREAD < highest <= 1:
        warn(
            f"all validity logits lie between {-negated:.3g} and {highest:.3g}: they seem to be probabilities, "
            "and were read as logits. Return logits, or say so: spml_fast.Classifiers(..., probabilities=['D_v'])"
        )


FAR = 0.1
"""Bound on the distance to a target from which on a fixed number of steps is called too few."""


def _warn_of_bounds(results: Sequence[S2MResult], call: Call) -> None:
    """Warns, once for all targets, where a fixed number of steps leaves samples far from their targets."""
    found, needed = [], 0.0
    for result in results:
        d = result.diagnostics
        # Without any weight there is a warning of its own.
        if call.n_steps is None or d.interrupted or d.tv_bound is None or not math.isfinite(d.max_weight_ratio):
            continue
        bound, steps = d.tv_bound, d.n_steps * d.tv_bound / FAR
        if d.method == "imh":  # of the first samples: how far apart the others are is the user's choice
            bound, steps = (1 - 1 / d.max_weight_ratio) ** d.burn_in, bound_steps(d.max_weight_ratio, FAR)
        if bound <= FAR:
            continue
        found.append(f"{result.joint_class} ({bound:.2g})")
        needed = max(needed, steps)
    if found:
        names = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
        other = "method='resample', which needs fewer steps" if call.kernel.name == "imh" else "n_steps='auto'"
        fit = "" if isinstance(call.proposal, Mixture) else "fitted proposals (proposal=Mixture()), "
        warn(
            f"{call.n_steps} steps are too few for {names}: samples may be as far from their target, in total "
            f"variation, as the bound in brackets. About {math.ceil(needed):,} steps would bring it to {FAR:g}. "
            f"Try first {fit}{other}, a higher validity_temperature if D_v is overconfident, or a better generator"
        )


def _signed(seed: int) -> int:
    """The int64 with the bits of a seed between -2^63 and 2^64."""
    try:
        if isinstance(seed, (bool, np.bool_)) or (isinstance(seed, Tensor) and seed.dtype == torch.bool):
            raise TypeError
        seed = operator.index(seed)
    except TypeError:
        raise TypeError(f"seed must be an integer, got {shown(seed)}") from None
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must fit into 64 bits, got {seed}")
    return seed - 2**64 if seed >= 2**63 else seed
