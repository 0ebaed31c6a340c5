"""S2M sampling: thousands of independent Metropolis-Hastings chains at once.

Source: Cho, Kim, Khan and Choo, "Mining Multi-Label Samples from Single Positive Labels", NeurIPS 2022,
Algorithm 1. Proposals of independent Metropolis-Hastings do not depend on the chain's state, so they are
generated and classified in large batches, one pool of them serves every joint class, and only each chain's last
accepted proposal is decoded.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._models import first_tensor, latent_shape, takes_label
from . import adaptation
from .adaptation import AdaptationPath
from .checkpoint import Checkpoint, describe
from .length import ChainLength
from .mixture import LatentMixture
from .pool import RunOptions
from .processes import Processes, Shard, processes_of
from .proposals import DrawLatents
from .result import S2MResult, warn
from .selection import METHODS
from .session import Session
from .targets import JointClass, PerTarget

Indices = int | Iterable[int]


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

    Results depend on (seed, chain, step) alone: not on batch_size, block_steps, threads, processes, or the number
    of other chains (but where a length, a bound or a step size is found over all of them), provided that G and clf
    compute each row alike however rows are batched. Convolutions and matrix
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
        n_steps: int | str | None = None,
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
        method: str = "imh",
        tol: float = 0.01,
        max_steps: int = 10_000,
        samples_per_chain: int = 1,
        thin: int | None = None,
        adapt: bool | Mapping[str, Any] = False,
        seed: int | None = None,
        first_chain: int = 0,
        proposal_class: int | None = None,
        proposal: LatentMixture | DrawLatents | None = None,
        latents: Tensor | np.ndarray | None = None,
        distributed: bool = True,
        gather: bool = False,
        checkpoint: str | Path | None = None,
        checkpoint_every: float = 60.0,
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
                ``tol``, with M estimated from the weights of all chains; at most ``max_steps``. Of "rejection" and
                "resample": proposals per sample, by default "auto": until there are ``n_samples`` of every target
                (effective samples, of "resample") and ``diagnostics.tv_bound`` is at most ``tol``.
            method: "imh", independent chains: every sample is independent of the others. "rejection" and
                "resample" take their samples from all proposals of the run, and so need fewer: rejection (Azadi et
                al., "Discriminator Rejection Sampling", ICLR 2019) accepts a proposal with probability w / max w,
                the maximum being that of the whole run; importance resampling (Rubin, 1987) draws proposals with
                probability proportional to w, some more than once. ``diagnostics.tv_bound`` is their bias. "mala":
                chains that follow the gradient of log w through G and clf, for joint classes that proposals do not
                reach; they start from 16 steps of "imh", and the first half of ``n_steps`` tunes their step size.
                "rejection" and "resample" keep the weights of all proposals, and for a stochastic G all that it
                makes. Bounds and lengths are those of the weights that were met: where heavier ones exist that no
                proposal came upon, every method is further off than it can tell.
            tol, max_steps: of n_steps="auto".
            samples_per_chain: samples that each chain gives, ``thin`` steps apart. As many fewer chains run.
            thin: as many steps as the bound asks for, for "auto", otherwise n_steps, unless given. Fewer leave
                samples of one chain correlated.
            adapt: fit a proposal to each target that the prior serves badly (:meth:`adapt`); a pilot run of 16
                steps finds which those are. The path is ``result.adaptation``. A dict holds options of
                :meth:`adapt`: ``dict(max_steps=200, covariance="full")``.
            seed: 64-bit integer; drawn from torch's global generator unless given.
            first_chain: number of the first chain. Chain c of a run equals chain c of any other with this seed, of
                method "imh" and a fixed number of steps; what is decided over all chains depends on all of them.
            proposal_class: label of class-conditional proposals; I[0] of each target unless given.
            proposal: in place of the standard normal prior, a :class:`LatentMixture`; or ``draw(n, generator) ->
                latents (n, *z_shape)`` or ``(latents, log weights (n,))``, called once a step with n chains, the
                log weights being log p_z(z) - log p~_z(z). "mala" needs them, and p_z is the standard normal.
            latents: (n_steps, n_samples, *z_shape) proposals drawn elsewhere; they fix n_steps and n_samples.
            distributed: under ``torchrun``, or in an initialised process group, share the chains out: all
                processes make this call alike, and each returns the samples of its own chains, bit for bit what
                one process would draw. False: this process runs them all.
            gather: each process returns the samples of all of them, in the order of the chains.
            checkpoint: file that the chains are written to every ``checkpoint_every`` seconds, and at the end. If
                it is there, the run goes on from it, in any number of processes, and ends with the same samples.
            progress: show a tqdm bar.

        Returns:
            One :class:`S2MResult` per target, in order. A chain that never met the support of its target has no
            sample; ``diagnostics.chains_without_support`` counts them and a warning says so.

        Raises:
            ValueError, TypeError: for arguments that do not fit, before anything is drawn.
            LostProcessError: another process of the run is gone.

        Ctrl-C, once the first block is over, ends the call with what its chains have by then, and with no samples
        of pools that have not begun; ``diagnostics.interrupted`` is set.
        """
        joint_classes = [_joint_class(target) for target in targets]
        if not joint_classes:
            raise ValueError("targets is empty: expected at least one (I, J) pair")
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        if proposal is not None and latents is not None:
            raise ValueError("give either proposal or latents, not both")
        if latents is not None:
            if isinstance(n_steps, str) or samples_per_chain != 1 or method == "mala":
                raise ValueError(
                    f"given latents fix the number of steps: {n_steps=}, {samples_per_chain=}, {method=} cannot be"
                )
            latents = self._checked_latents(latents, n_samples, n_steps)
            n_steps, n_samples = latents.shape[:2]
        n_samples = _check_count(64 if n_samples is None else n_samples, "n_samples")
        length = _chain_length(n_steps, tol, max_steps, samples_per_chain, thin, method)
        if method == "mala" and self.stochastic:
            raise ValueError("method='mala' follows gradients through G, which must not draw noise of its own")
        n_chains = -(-n_samples // samples_per_chain)
        first_chain = operator.index(first_chain)
        if first_chain < 0:
            raise ValueError(f"first_chain must not be negative, got {first_chain}")
        self._check_proposal_class(proposal_class)
        how_to_adapt = dict(adapt) if isinstance(adapt, Mapping) else {}
        adapt = isinstance(adapt, Mapping) or bool(adapt)
        unknown = set(how_to_adapt) - _ADAPT_OPTIONS
        if unknown:
            raise TypeError(
                f"adapt: {sorted(unknown)[0]!r} is no option; they are {', '.join(sorted(_ADAPT_OPTIONS))}"
            )
        if adapt and (proposal is not None or latents is not None):
            raise ValueError("adapt=True fits proposals itself; give neither proposal nor latents")
        seed = None if seed is None else _signed(seed)

        processes = processes_of(distributed)
        call: dict[str, Any] = {}
        if processes.size > 1 or checkpoint is not None:
            call = self._describe(
                targets=[str(target) for target in joint_classes],
                n_samples=n_samples,
                n_steps="auto" if length.automatic else length.n_steps,
                **{name: getattr(length, name) for name in ("tol", "max_steps", "samples_per_chain", "thin")},
                method=method,
                adapt=how_to_adapt or adapt,
                seed=seed,
                first_chain=first_chain,
                proposal_class=proposal_class,
                proposal=proposal,
                latents=latents,
            )
        processes.same(
            {**call, "gather": gather, "checkpoint": checkpoint is not None, "block_steps": self.block_steps}
        )
        seed = _common_seed(seed, processes)
        saved = None
        if checkpoint is not None:
            saved = Checkpoint(checkpoint, call, seed, checkpoint_every, processes)
            seed = saved.seed
        session = Session(self, processes, proposal_class, progress and processes.rank == 0)

        paths: list[AdaptationPath | None] = [None] * len(joint_classes)
        if adapt and saved is not None and "adaptation" in saved.parts:
            paths = [
                None if path is None else AdaptationPath.from_state(path) for path in saved.parts["adaptation"]
            ]
        elif adapt:
            paths = adaptation.adapt_where_it_pays(session, joint_classes, seed, **how_to_adapt)
            if saved is not None:
                saved.save("adaptation", [None if path is None else path.to_state() for path in paths])

        run = RunOptions(Shard(n_chains, processes), length, n_samples, method, seed, first_chain, gather, saved)
        results = session.draw(joint_classes, run, proposal, latents, paths)
        if processes.rank == 0:
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
        distributed: bool = True,
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
            proposal_class, seed, distributed, progress: as in :meth:`sample_targets`.
            fit: of :meth:`LatentMixture.fit`: n_components, covariance, prior_share, ...

        Raises:
            ValueError: an order that does not fit; a stage that the chains hardly met.
            KeyboardInterrupt: on Ctrl-C.
        """
        target = _joint_class((I, J))
        self._check_proposal_class(proposal_class)
        _check_count(n_chains, "n_chains")
        _check_count(max_steps, "max_steps", limit=2**31 - 1)
        seed = None if seed is None else _signed(seed)
        processes = processes_of(distributed)
        if processes.size > 1:
            given = dict(target=str(target), order=order, n_chains=n_chains, max_steps=max_steps, seed=seed, **fit)
            processes.same(self._describe(proposal_class=proposal_class, block_steps=self.block_steps, **given))
        seed = _common_seed(seed, processes)
        session = Session(self, processes, proposal_class, progress and processes.rank == 0)
        return adaptation.adapt(session, target, seed, order, n_chains, max_steps, **fit)

    def _describe(self, **call: Any) -> dict[str, Any]:
        """What must be the same in all processes, and in a run that goes on from a checkpoint, in plain values."""
        models = dict(G=self.G, clf=self.clf, z_shape=self.z_shape, conditional=self.conditional)
        how = dict(stochastic=self.stochastic, dtype=str(self.dtype), autocast=str(self.autocast_dtype))
        return {name: describe(value) for name, value in {**models, **how, **self.ratio, **call}.items()}

    def _check_proposal_class(self, proposal_class: int | None) -> None:
        if proposal_class is not None and not self.conditional:
            raise ValueError(
                f"proposal_class={proposal_class}, but G takes no label; "
                "pass conditional=True to S2MSampler if it does"
            )

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
    n_steps: int | str | None = None,
    **options: Any,
) -> Tensor:
    """Samples of the joint class that has all attributes in I and none in J: (n_samples, *x_shape), on G's device.

    The short form of :class:`S2MSampler` and its :meth:`~S2MSampler.sample`, whose arguments ``options`` are; use
    the class for diagnostics, latents and weights. Fewer rows come back, with a warning, if chains never met the
    joint class; under ``torchrun`` those of this process's chains, or of all with ``gather=True``.

    >>> x = spml_fast.s2m_sample(G, clf, I=[0, 2], J=1)  # doctest: +SKIP
    """
    of_sampler = {name: options.pop(name) for name in _SAMPLER_OPTIONS & set(options)}
    return S2MSampler(G, clf, **of_sampler).sample(I, J, n_samples, n_steps, **options).samples


_ADAPT_OPTIONS = frozenset(
    name
    for function in (adaptation.adapt, LatentMixture.fit)
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.default is not parameter.empty and name != "seed"
)
_SAMPLER_OPTIONS = frozenset(inspect.signature(S2MSampler).parameters)


def _joint_class(target: object) -> JointClass:
    if isinstance(target, JointClass):
        return target
    if not isinstance(target, (tuple, list)) or len(target) != 2:
        raise ValueError(f"each target must be a pair (I, J), got {target!r}")
    return JointClass.of(*target)


def _chain_length(
    n_steps: int | str | None, tol: float, max_steps: int, samples_per_chain: int, thin: int | None, method: str
) -> ChainLength:
    of_chains = method in ("imh", "mala")
    if n_steps is None:
        n_steps = 200 if of_chains else "auto"
    if isinstance(n_steps, str):
        if n_steps != "auto":
            raise ValueError(f"n_steps must be a number or 'auto', got {n_steps!r}")
        if method == "mala":
            raise ValueError("method='mala' has no bound to stop at: n_steps must be a number, got 'auto'")
    else:
        n_steps = _check_count(n_steps, "n_steps", limit=2**31 - 1)
    if not of_chains and (samples_per_chain != 1 or thin is not None):
        raise ValueError(
            f"samples of method={method!r} do not belong to chains: {samples_per_chain=}, {thin=} cannot be"
        )
    counts = {"max_steps": max_steps, "samples_per_chain": samples_per_chain, "thin": thin}
    for name, value in counts.items():
        counts[name] = None if value is None else _check_count(value, name, limit=2**31 - 1)
    length = ChainLength(None if n_steps == "auto" else n_steps, float(tol), **counts)
    if length.expected_steps > 2**31 - 1:
        raise ValueError(f"the chains would take {length.expected_steps} steps, more than 2^31 - 1")
    return length


def _warn_of(result: S2MResult, length: ChainLength, n_samples: int) -> None:
    d = result.diagnostics
    if d.n_steps == 0:
        warn(f"there are no samples of {result.joint_class}: Ctrl-C came before its chains began")
    elif d.chains_without_support > 0:
        warn(
            f"{d.chains_without_support} of {d.n_chains} chains never met the support of {result.joint_class} in "
            f"{d.n_steps} steps and have no sample"
        )
    elif d.method == "resample" and d.ess_per_proposal * d.n_chains * d.n_steps < n_samples and length.automatic:
        warn(
            f"{n_samples} samples of {result.joint_class} were resampled from proposals that are worth "
            f"{d.ess_per_proposal * d.n_chains * d.n_steps:.0f} independent ones; take more steps (max_steps="
            f"{length.max_steps} was the budget)"
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
    if d.burn_in >= length.max_steps and length.automatic and d.tv_bound > length.tol and not d.interrupted:
        advice = "Calibrate D_v" if result.adaptation else "Adapt the proposals (adapt=True), calibrate D_v"
        warn(
            f"{result.joint_class}: after max_steps={length.max_steps} steps the bound on the distance to the "
            f"target is {d.tv_bound:.2g}, not tol={length.tol:g} (M = {d.max_weight_ratio:.0f}). {advice} or "
            "temper it (validity_temperature above 1), train a better generator, or take more steps"
        )


def _common_seed(seed: int | None, processes: Processes) -> int:
    """The seed, or one from torch's global generator: that of the first process, for all."""
    drawn = int(torch.randint(2**63 - 1, ())) if seed is None else seed
    return processes.from_first(lambda: drawn)


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
