"""Runs of every kind that processes share and kills interrupt, and the processes to run and to kill.

Most processes are children of a server that has imported everything once, with the environment that ``torchrun``
sets; this file is also the script that ``torchrun`` itself runs.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import multiprocessing
import os
import pathlib
import random
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from toys import (
    FIELDS,
    DiscreteClassifier,
    DiscreteGenerator,
    GaussianClassifier,
    GaussianGenerator,
    RowwiseClassifier,
    RowwiseGenerator,
    SmallConvClassifier,
    SmallConvGenerator,
    class_first_gamma,
)

from spml_fast import IMH, MALA, LatentMixture, MinMax, Mixture, Plan, Rejection, Resample, Run, S2MSampler
from spml_fast.sampling import SamplingWarning, processes
from spml_fast.sampling.kernels import METHODS

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["pytest", "spml_fast.cli", "sklearn.mixture"])
LIMIT = 60
"""Seconds after which a process that was started here ends itself, whatever it waits for."""
STOPPED = 99
"""Its exit status then."""


# --- runs -----------------------------------------------------------------------------------------


class RareClassifier(RowwiseClassifier):
    """The joint class of all three attributes is rare: worth an adaptation of several stages."""

    def forward(self, x):
        return torch.cat([4 * (x - 1.6), torch.zeros(len(x), 1)], 1), x[:, 0] * 0.1


class NoClass(RowwiseClassifier):
    """All classes are alike, so nothing has one and not another."""

    def forward(self, x):
        return x * 0, x[:, 0]


class Weighted(RowwiseGenerator):
    """With parameters to tell it by."""

    def __init__(self, *scale):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def forward(self, z):
        return super().forward(z) * self.scale


def draw(n, generator):
    return 1.2 * torch.randn(n, 4, generator=generator)


def draw_weighted(n, generator):
    z = 1.2 * torch.randn(n, 4, generator=generator)
    return z, (z / 1.2).square().sum(1) / 2 - z.square().sum(1) / 2


def a_mixture(prior_share=0.3):
    means = torch.tensor([[1.0, 0.5, 0, 0], [-1.0, 0, 0.3, 1.0]], dtype=torch.float64)
    return LatentMixture(torch.tensor([0.4, 0.6], dtype=torch.float64), means, 0.5 + means.abs(), prior_share)


def latents(n_steps=24, n_chains=101):
    return torch.randn(n_steps, n_chains, 4, generator=torch.Generator().manual_seed(3))


def rowwise(clf=None, **options):
    return S2MSampler(RowwiseGenerator(), clf or RowwiseClassifier(), **({"plan": Plan(block_steps=5)} | options))


def rare():
    return S2MSampler(RowwiseGenerator(), RareClassifier())


def gaussian():
    return S2MSampler(GaussianGenerator(), GaussianClassifier(), plan=Plan(block_steps=5))


def conditional():
    G = DiscreteGenerator(conditional=True)
    return S2MSampler(
        G,
        DiscreteClassifier(G, class_first=True),
        weight=MinMax(gamma=class_first_gamma()),
        plan=Plan(block_steps=5),
        conditional=True,
    )


def convolutional():
    torch.manual_seed(0)
    return S2MSampler(SmallConvGenerator(), SmallConvClassifier(), plan=Plan(batch_size=64))


BOTH = [((0, 1), (2,)), ((0,), ())]


OF_RUN = ("checkpoint", "every", "gather", "distributed")
"""Options of a case's run that are of its Run."""


@dataclass
class Case:
    call: dict[str, Any]
    """Of ``sample_targets``."""
    make: Callable[[], S2MSampler] = rowwise
    targets: list = field(default_factory=lambda: BOTH)

    def run(self, hook=None, **options):
        """As plain values. ``hook`` is called before every call of G, those of the probe left out."""
        sampler = self.make()
        if hook is not None:
            sampler.describe()
            before(sampler.models.G, hook)
        of_run = {name: options.pop(name) for name in OF_RUN if name in options}
        given = isinstance(self.call.get("proposal"), torch.Tensor)
        call = {"seed": 5, "n_samples": None if given else 101} | self.call | options
        call["run"] = dataclasses.replace(call.get("run", Run()), **of_run)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SamplingWarning)
            return [plain(result) for result in sampler.sample_targets(self.targets, **call)]


CASES = {
    "imh": Case(dict(n_steps=33)),
    "auto": Case(dict(n_steps="auto", method=IMH(tol=0.05))),
    "several samples per chain": Case(dict(n_steps=20, method=IMH(samples_per_chain=3, thin=4))),
    "auto, several samples per chain": Case(dict(n_steps="auto", method=IMH(samples_per_chain=4))),
    "rejection": Case(dict(method="rejection")),
    "rejection of a fixed length": Case(dict(method="rejection", n_steps=40)),
    "resample": Case(dict(method="resample")),
    "mala": Case(dict(method=MALA(samples_per_chain=3, thin=5), n_steps=20), gaussian),
    "adapt": Case(dict(proposal=Mixture(), n_steps=20), rare, [((0, 1, 2), ()), ((0,), ())]),
    "adapt, resample": Case(dict(proposal=Mixture(), method="resample", n_samples=30), rare, [((0, 1, 2), ())]),
    "adapt, mala": Case(dict(proposal=Mixture(), method="mala", n_steps=6, n_samples=40), rare, [((0, 1, 2), ())]),
    "draw, mala": Case(dict(method="mala", proposal=draw_weighted, n_steps=6, n_samples=40)),
    "several pools": Case(dict(n_steps=33), conditional, [((0,), (1,)), ((1, 2), ()), ((0, 2), ()), ((2,), ())]),
    "several pools, mala": Case(
        dict(method="mala", n_steps=6, n_samples=11), gaussian, [((0,), (1,)), ((1,), ()), ((2,), (0, 1))]
    ),
    "one class for all proposals": Case(dict(n_steps=33, proposal_class=2), conditional),
    "stochastic": Case(dict(n_steps=33), functools.partial(rowwise, stochastic=True)),
    "stochastic, several samples per chain": Case(
        dict(n_steps=12, method=IMH(samples_per_chain=3)), functools.partial(rowwise, stochastic=True)
    ),
    "stochastic, rejection": Case(dict(method="rejection"), functools.partial(rowwise, stochastic=True)),
    "draw": Case(dict(n_steps=33, proposal=draw)),
    "draw with weights": Case(dict(n_steps=33, proposal=draw_weighted)),
    "draw, auto, several samples per chain": Case(
        dict(n_steps="auto", proposal=draw, method=IMH(samples_per_chain=2))
    ),
    "draw, resample": Case(dict(method="resample", proposal=draw_weighted)),
    "mixture": Case(dict(n_steps=33, proposal=a_mixture())),
    "given latents": Case(dict(proposal=latents())),
    "given latents, rejection": Case(dict(proposal=latents(), method="rejection")),
    "first_chain": Case(dict(n_steps=33, run=Run(first_chain=1000))),
    "some chains without support": Case(dict(n_steps=2)),
}
LOOSE = {  # or the few samples would take long
    "auto": {"method": IMH(tol=0.1)},
    "rejection": {"method": Rejection(tol=0.1)},
    "resample": {"method": Resample(tol=0.1)},
    "stochastic, rejection": {"method": Rejection(tol=0.1)},
}
FEW = {
    f"{name}, {n} samples": Case(
        CASES[name].call | LOOSE.get(name, {}) | {"n_samples": n}, CASES[name].make, CASES[name].targets
    )
    for n in (1, 2)
    for name in (
        "imh",
        "auto",
        "rejection",
        "resample",
        "mala",
        "several pools",
        "stochastic",
        "stochastic, rejection",
        "draw",
        "mixture",
    )
}
NOTHING = {
    f"{name}, no support": Case(
        CASES[name].call | options, functools.partial(S2MSampler, RowwiseGenerator(), NoClass()), [(0, 1)]
    )
    for name, options in {
        "imh": {},
        "rejection of a fixed length": {},
        "resample": {"n_steps": 9},
        "mala": {},
        "draw": {},
    }.items()
}
SHARED = CASES | FEW | NOTHING
CONVOLUTIONAL = Case(dict(n_steps=40, n_samples=203), convolutional, [((0,), (1,)), ((1, 2), ())])
"""Its rows may differ within rounding from one batch to another."""


def before(model, hook):
    """Calls it before every call of the model, which gets what it was called with."""

    def called(*_):
        hook()

    model.register_forward_pre_hook(called)


def plain(result):
    found = {name: getattr(result, name) for name in FIELDS}
    found["joint class"] = str(result.joint_class)
    found["diagnostics"] = result.diagnostics.to_dict()
    del found["diagnostics"]["plan"]
    found["adaptation"] = None if result.adaptation is None else result.adaptation.to_state()
    return _without_seconds(found)


def _without_seconds(value):
    if isinstance(value, dict):
        return {name: _without_seconds(part) for name, part in value.items() if "second" not in str(name)}
    return [_without_seconds(part) for part in value] if isinstance(value, list) else value


def adapted():
    """What ``S2MSampler.adapt`` itself returns."""
    return _without_seconds(rare().adapt((0, 1, 2), how=Mixture(n_chains=301), seed=5).to_state())


def differences(a, b, where=""):
    """Where two nested values are not the same bits."""
    if type(a) is not type(b):
        return [f"{where}: {type(a).__name__}, {type(b).__name__}"]
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and torch.equal(a.nan_to_num(nan=1e30), b.nan_to_num(nan=1e30))
    elif isinstance(a, dict):
        if list(a) != list(b):
            return [f"{where}: {list(a)}, {list(b)}"]
        return [found for name in a for found in differences(a[name], b[name], f"{where}.{name}")]
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            return [f"{where}: {len(a)}, {len(b)} items"]
        return [found for i in range(len(a)) for found in differences(a[i], b[i], f"{where}[{i}]")]
    else:
        same = a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b))
    return [] if same else [f"{where}: {a}, {b}"]


# --- processes ------------------------------------------------------------------------------------


def free_port():
    """A port that is free, as are the few after it: below those that the system gives to connections."""
    for port in random.sample(range(10_000, 32_000, 10), 100):
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")


def as_torchrun(rank, size, port):
    """The environment of a process that ``torchrun`` started."""
    ranks = {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
    sizes = {name: str(size) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    at = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(**ranks, **sizes, **at, TORCHELASTIC_RUN_ID="none")


def _child(rank, size, port, folder, limit, function, arguments):
    torch.set_num_threads(1)
    watch = threading.Timer(limit, os._exit, [STOPPED])
    watch.daemon = True
    watch.start()
    output = os.open(folder / f"{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    if size > 1:
        as_torchrun(rank, size, port)
    function(*arguments)
    if dist.is_initialized():
        dist.barrier()
    sys.stderr.flush()
    os._exit(0)


class Children:
    """``size`` processes as of ``torchrun`` that call ``function(*arguments)``; a result is what it saves."""

    def __init__(self, folder, size, function, *arguments, limit=LIMIT):
        folder.mkdir(exist_ok=True)
        self.folder, self.port = folder, free_port()
        self.children = [
            PROCESSES.Process(target=_child, args=(rank, size, self.port, folder, limit, function, arguments))
            for rank in range(size)
        ]
        for child in self.children:
            child.start()

    def end(self):
        """Exit statuses, when all have come to their end."""
        for child in self.children:
            child.join()
        return [child.exitcode for child in self.children]

    def said(self, rank):
        return (self.folder / f"{rank}.txt").read_text()


def child(folder, function, *arguments, size=1, limit=LIMIT):
    """Exit statuses, and what was said."""
    started = Children(folder, size, function, *arguments, limit=limit)
    return started.end(), [started.said(rank) for rank in range(size)]


def rank_here():
    return int(os.environ.get("RANK", 0))


def at_call(n, act):
    """A function that acts when it is called for the n-th time."""
    calls = itertools.count(1)
    return lambda: act() if next(calls) == n else None


# --- what processes do ----------------------------------------------------------------------------


def run_all(folder):
    """Every case, gathered and not; what an adaptation finds; a seed that nobody gave."""
    found = {}
    for name, case in SHARED.items():
        for gather in (True, False):
            found[name, gather] = case.run(gather=gather)
    found["convolutional", True] = CONVOLUTIONAL.run(gather=True)
    found["adapted"] = adapted()
    torch.manual_seed(100 + rank_here())
    found["no seed"] = CASES["imh"].run(seed=None, gather=True)
    found["group"] = (dist.get_rank(), dist.get_world_size(), dist.get_backend())
    torch.save(found, folder / f"cases{rank_here()}.pt")


def said_by(call):
    """What a call raises."""
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def _mixture_or_none(rank):
    return a_mixture() if rank else None


DIFFERENT = {
    # what the message names: the call of a rank
    "n_samples": lambda rank: rowwise().sample(0, (), 10 + rank, 5),
    "targets": lambda rank: rowwise().sample(rank, (), 10, 5),
    "n_steps": lambda rank: rowwise().sample(0, (), 10, 5 + rank),
    "method": lambda rank: rowwise().sample(0, (), 10, 5, method=("rejection", "resample")[rank]),
    "method.tol": lambda rank: rowwise().sample(0, (), 10, "auto", method=IMH(tol=0.1 + rank / 10)),
    "method.samples_per_chain": lambda rank: rowwise().sample(
        0, (), 10, 5, method=IMH(samples_per_chain=1 + rank)
    ),
    "first_chain": lambda rank: rowwise().sample(0, (), 10, 5, run=Run(first_chain=rank)),
    "gather": lambda rank: rowwise().sample(0, (), 10, 5, run=Run(gather=bool(rank))),
    "checkpoint": lambda rank: rowwise().sample(0, (), 10, 5, run=Run("never written" if rank else None)),
    "mixture": lambda rank: rowwise().sample(0, (), 10, 5, proposal=Mixture() if rank else None),
    "proposal_class": lambda rank: conditional().sample(0, (), 10, 5, proposal_class=rank),
    "proposal": lambda rank: rowwise().sample(0, (), 10, 5, proposal=_mixture_or_none(rank)),
    "latents": lambda rank: rowwise().sample(0, proposal=latents() + rank),
    "gamma": lambda rank: rowwise(weight=MinMax(gamma=0.5 + rank / 10)).sample(0, (), 10, 5),
    "gamma_J": lambda rank: rowwise(weight=MinMax(gamma_J=[1, 1, 1 + rank])).sample(0, (), 10, 5),
    "temperature": lambda rank: rowwise(weight=MinMax(temperature=1 + rank)).sample(0, (), 10, 5),
    "stochastic": lambda rank: rowwise(stochastic=bool(rank)).sample(0, (), 10, 5),
    "precision": lambda rank: rowwise(plan=Plan(precision=torch.bfloat16 if rank else None)).sample(0, (), 10, 5),
    "G": lambda rank: S2MSampler(Weighted(1.0, 1.0, 1 + rank / 10), RowwiseClassifier()).sample(0, (), 10, 5),
    "clf": lambda rank: rowwise(clf=(RowwiseClassifier, NoClass)[rank]()).sample(0, (), 9, 5),
    "order": lambda rank: rowwise().adapt((0, 1), order=[(0, 1), (1, 0)][rank]),
    "n_chains": lambda rank: rowwise().adapt((0, 1), how=Mixture(n_chains=100 + rank)),
    "n_components": lambda rank: rowwise().adapt((0, 1), how=Mixture(n_components=1 + rank)),
    "target": lambda rank: rowwise().adapt((0, 1)) if rank else rowwise().sample((0, 1), (), 9, 5),
}


UNDESCRIBED = {
    "proposal": lambda rank: rowwise().sample(0, (), 10, 5, proposal=a_mixture(0.3 + rank / 10)),
    "latents": lambda rank: rowwise().sample(0, proposal=latents().flip(0) if rank else latents()),
    "G": lambda rank: S2MSampler(Weighted(*[(1.0, 2.0, 1.0), (2.0, 1.0, 1.0)][rank]), NoClass()).sample(
        0, (), 10, 5
    ),
}
"""Likewise; values that are easily taken for one another."""


@contextlib.contextmanager
def stderr_to(path):
    before = os.dup(2)
    output = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)
        for descriptor in (before, output):
            os.close(descriptor)


def warn_and_show(folder):
    """Calls with warnings and a progress bar, stderr apart."""
    with stderr_to(folder / f"stderr{rank_here()}.txt"), warnings.catch_warnings():
        warnings.simplefilter("always")
        for options in (
            dict(n_steps=2),
            dict(n_steps="auto", method=IMH(max_steps=17, tol=1e-4)),
            dict(method="rejection"),
        ):
            rowwise().sample((0, 1), (2,), 101, seed=0, progress=True, **options)


def absent(folder):
    """The last process does not come, for longer than the others wait for it."""
    processes.ROLL_CALL = timedelta(seconds=1)
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    said = None
    if rank != last:
        said = said_by(lambda: rowwise().sample(0, (), 10, 5))
    else:
        time.sleep(3)
    torch.save(said, folder / f"absent{rank}.pt")


def run_and_be_absent(folder):
    run_all(folder)
    absent(folder)
    os._exit(0)  # the group is not to be used any more


def script(folder):
    """What torchrun runs."""
    run_all(folder)
    rank = dist.get_rank()
    for name, calls in (("different", DIFFERENT), ("undescribed", UNDESCRIBED)):
        found = {name: said_by(functools.partial(call, rank)) for name, call in calls.items()}
        torch.save(found, folder / f"{name}{rank}.pt")
    warn_and_show(folder)
    absent(folder)


def absent_from_the_first_call(folder):
    processes.ROLL_CALL = timedelta(seconds=1.5)
    if rank_here() == 0:
        torch.save(said_by(lambda: rowwise().sample(0, (), 10, 5)), folder / "absent0.pt")
        os._exit(0)
    time.sleep(4)


def part(folder, name):
    """Calls that must not part the processes: how often they meet would differ."""
    rank = rank_here()
    rowwise().sample(0, (), 10, 5)
    if name == "block_steps":
        said = said_by(lambda: rowwise(plan=Plan(block_steps=5 + 5 * rank)).sample((0, 1), (2,), 64, 20))
    else:
        said = said_by(lambda: rowwise().adapt((0, 1), how=Mixture(n_chains=64, max_components=2 if rank else 5)))
    torch.save(said, folder / f"part{rank}.pt")
    os._exit(0)


def broken_hook(folder, act, at, rank=1):
    """Before the ``at``-th call of G in process ``rank``: the end of it, or an exception."""

    def end():
        (folder / f"{rank} at").write_text(str(time.time()))
        if act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ArithmeticError(f"G is broken in process {rank}")

    return at_call(at, end) if rank_here() == rank else None


def long_run(folder, act):
    """Under torchrun: half a minute and more if nothing ends it."""
    hook = broken_hook(folder, act, 20)
    CASES["imh"].run(lambda: (time.sleep(0.02), hook and hook()), n_steps=10_000)


def lose(folder, what, lost):
    """Without torchrun: process ``lost`` is killed in the middle."""
    del os.environ["TORCHELASTIC_RUN_ID"]
    dist.init_process_group("gloo")
    hook = broken_hook(folder, "die", 4, lost)
    said = said_by(lambda: CASES[what].run(hook))
    torch.save((said, time.time()), folder / f"lost{rank_here()}.pt")
    os._exit(0)


def fail_alone(folder):
    hook = broken_hook(folder, "fail", 4)
    if rank_here() == 1:
        CASES["imh"].run(hook)
    torch.save((said_by(lambda: CASES["imh"].run(hook)), time.time()), folder / "lost0.pt")
    os._exit(0)


def interrupt():
    raise KeyboardInterrupt


def interrupted(folder, name, at):
    """Ctrl-C in process 1 alone, at its n-th call of G; what each process returns, or raises."""
    rank = rank_here()
    try:
        found = CASES[name].run(at_call(at, interrupt) if rank == 1 else None, gather=True)
    except KeyboardInterrupt:
        found = "KeyboardInterrupt"
    torch.save(found, folder / f"interrupted{rank}.pt")


class Picky(GaussianGenerator):
    """As many generators, it does not take an empty batch."""

    def forward(self, z):
        assert len(z) > 0, "an empty batch"
        return super().forward(z)


SPECIAL = {
    "mala, one step": Case(dict(method="mala", n_steps=1), gaussian),
    **{
        f"no empty batch, {method}": Case(
            dict(method=method, n_steps=5, n_samples=1), lambda: S2MSampler(Picky(), GaussianClassifier())
        )
        for method in METHODS
    },
    **{name: CASES[name] for name in ("several samples per chain", "rejection", "mala", "several pools")},
}
"""Cases that get a start of their own."""


def run_special(folder, name):
    found = {gather: SPECIAL[name].run(gather=gather) for gather in (True, False)}
    torch.save(found, folder / f"special{rank_here()}.pt")


def models():
    return RowwiseGenerator(), RowwiseClassifier()


def in_a_group(folder):
    """That the caller made; process 1 also samples alone while process 0 does something else."""
    del os.environ["TORCHELASTIC_RUN_ID"]
    dist.init_process_group("gloo")
    rank, group, found = rank_here(), dist.group.WORLD, {}
    found["together"] = CASES["imh"].run(gather=True)
    began = time.monotonic()
    if rank == 1:
        found["alone"] = CASES["imh"].run(distributed=False)
        rare().adapt((0, 1), how=Mixture(n_chains=64), run=Run(distributed=False))
    else:
        found["alone"] = None
        time.sleep(3)
    found["seconds alone"] = time.monotonic() - began
    found["share"] = CASES["imh"].run()
    found["gathered"] = S2MSampler(*models()).sample((0, 1), (2,), 50, 9, seed=0, run=Run(gather=True)).samples
    found["same group"] = dist.is_initialized() and dist.group.WORLD is group
    total = torch.tensor(float(rank))
    dist.all_reduce(total)
    found["works"] = total.item()
    torch.save(found, folder / f"group{rank}.pt")


def leave_groups(folder):
    """gloo's threads after a group of the caller's that did not sample, and after one that did."""
    del os.environ["TORCHELASTIC_RUN_ID"]
    threads = []
    tasks = pathlib.Path("/proc/self/task")
    for use in (lambda: dist.all_reduce(torch.ones(2)), CASES["imh"].run):
        os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
        dist.init_process_group("gloo")
        use()
        dist.barrier()
        dist.destroy_process_group()
        threads.append(sum("gloo" in (task / "comm").read_text() for task in tasks.iterdir()))
    torch.save(threads, folder / f"threads{rank_here()}.pt")


def groups_again(folder, made_by="torchrun"):
    """Three groups, one after another: of the caller's, or of the sampler's as torchrun launched the processes."""
    if made_by == "caller":
        del os.environ["TORCHELASTIC_RUN_ID"]
    found = []
    for _ in range(3):
        if made_by == "caller":
            os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1)
            dist.init_process_group("gloo")
        found.append(CASES["imh"].run(gather=True))
        dist.barrier()
        dist.destroy_process_group()
    torch.save(found, folder / f"groups{rank_here()}.pt")


def group_of_one(folder):
    as_torchrun(0, 1, free_port())
    dist.init_process_group("gloo")
    torch.save(CASES["imh"].run(), folder / "one0.pt")


# --- checkpoints ----------------------------------------------------------------------------------


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def _half(replace, part):
    os.truncate(part, os.path.getsize(part) // 2)
    die()


def _named(replace, part):
    replace()
    die()


AT_FILE = {"half of the part": _half, "part without a name": lambda *_: die(), "file with its name": _named}


def at_write(path, n, act, patch=setattr):
    """At the n-th time that ``path`` gets its name: ``act(the call, the part)``."""
    real, calls = os.replace, itertools.count(1)

    def replace(part, target, **options):
        if os.fspath(target) == os.fspath(path) and next(calls) == n:
            act(functools.partial(real, part, target), part)
        return real(part, target, **options)

    patch(os, "replace", replace)


def slowly(hook=None):
    time.sleep(0.02)
    if hook is not None:
        hook()


def checkpointed(path, name, moment=None, n=0, pace=None, lost=0, **options):
    """A case with a checkpoint, in children of which process ``lost`` may kill itself; they save what came out."""
    hook = None
    if moment is not None and rank_here() == lost:
        if moment == "G":
            hook = at_call(n, die)
        else:
            at_write(path, n, AT_FILE[moment])
    if pace == "slow":
        hook = functools.partial(slowly, hook)
    options = {"every": 0.0} | options
    torch.save(CASES[name].run(hook, checkpoint=path, **options), f"{path}.{rank_here()}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    globals()[sys.argv[1]](pathlib.Path(sys.argv[2]), *sys.argv[3:])
