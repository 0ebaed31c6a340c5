"""Throughput of S2M sampling against eager PyTorch, bare forward passes, the official loop and separate runs.

    python bench/imh_throughput.py [--models toy biggan96] [--quick] [--device cuda] [--threads N] [--json FILE]

Sections, each against what it claims to beat, measured side by side:

accept      the accept step given logits, a block of steps per call, against the eager formulation
end_to_end  ``S2MSampler.sample`` with a convolutional G and clf, against the bare forward passes of G and clf on
            as many proposals, and against the official sampler's loop. ``--models biggan96`` does it with models
            of the sizes that the authors published and the default plan, and against bare forward passes of each
            in the fastest of ten ways (batches of 8 to 128, contiguous and channels-last)
targets     all seven joint classes of three attributes in one pool, against seven separate runs

Rows of ``--json``: section, model, against, device, chains, classes, steps, reference_us, fused_us, speedup
(reference over fused), copy_fraction (section accept: bytes that must move per call, over the time, over the
device's copy bandwidth; above 1 where the logits come from a cache), and device_name and threads.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import eager
import torch
from common import (
    Options,
    Timing,
    copy_bandwidth,
    device_name,
    format_time,
    last_level_cache_bytes,
    median_seconds,
    option_parser,
    print_table,
    read_options,
    verdict,
    warn_if_busy,
    write_json,
)
from published_models import published_models
from torch import Tensor, nn

from spml_fast import JointClass, Plan, S2MSampler
from spml_fast.sampling import ChainState, pack_targets

Row = dict[str, str | int | float | None]

# Three attributes, one of them wanted; and CelebA's forty with the paper's largest joint class, B+M+S-A-N-W.
JOINT_CLASSES = {3: JointClass((0,), (1, 2)), 40: JointClass((0, 1, 2), (3, 4, 5))}
CHAINS = (64, 4096, 65536)
MANY_CHAINS = 1_048_576
BLOCK_STEPS = 64
BLOCK_BYTES = 768 * 2**20  # of logits in one call
QUICK_BLOCK_BYTES = 96 * 2**20  # the same on a CPU with --quick: making the logits takes longer than the run
STATE_BYTES = 28  # of one chain: four float32 and three int32

Z_DIM = 80
N_ATTRIBUTES = 3
SUBSETS = [s for n in range(1, N_ATTRIBUTES + 1) for s in itertools.combinations(range(N_ATTRIBUTES), n)]
SEVEN_TARGETS = [(s, tuple(sorted(set(range(N_ATTRIBUTES)) - set(s)))) for s in SUBSETS]


def make_row(
    options: Options,
    section: str,
    against: str,
    shape: tuple[int, int, int],
    reference_seconds: float,
    fused_seconds: float,
    copy_fraction: float | None = None,
    model: str = "toy",
) -> Row:
    chains, classes, steps = shape
    return {
        "section": section,
        "model": model,
        "against": against,
        "device": options.device.type,
        "chains": chains,
        "classes": classes,
        "steps": steps,
        "reference_us": reference_seconds * 1e6,
        "fused_us": fused_seconds * 1e6,
        "speedup": reference_seconds / fused_seconds,
        "copy_fraction": copy_fraction,
        "device_name": device_name(options.device),
        "threads": options.threads,
    }


# --- accept ---------------------------------------------------------------------------------------


class AcceptBlock:
    """The same block of logits, accepted by the fused op in one call and by the eager steps one at a time.

    Both carry their chains on from call to call. What costs nothing in a real run is done beforehand for both:
    packed targets and index tensors, views of each step.
    """

    def __init__(self, chains: int, classes: int, steps: int, device: torch.device):
        self.target = JOINT_CLASSES[classes]
        self.class_logits = torch.randn(steps, chains, classes, device=device).mul_(2)
        self.validity_logit = torch.randn(steps, chains, device=device)

        self.packed = pack_targets([self.target], classes, device=device)
        self.state = ChainState.start(1, chains, device=device)

        self.gamma = torch.ones(classes, device=device)
        self.I = torch.tensor(self.target.I, device=device)
        self.J = torch.tensor(self.target.J, device=device)
        # Of x, eager keeps the least that could name it: one number, the step that proposed it.
        step_of_x = torch.arange(steps, dtype=torch.float32, device=device)[:, None].expand(steps, chains)
        columns = (self.class_logits.unbind(0), self.validity_logit.unbind(0), step_of_x.unbind(0))
        self.proposals = list(zip(*columns, strict=True))
        self.eager_state = self.proposals[0]

    @property
    def bytes_moved(self) -> int:
        """The fewest a call can move: logits and validity read, every chain's state read and written."""
        logits = 4 * (self.class_logits.numel() + self.validity_logit.numel())
        return logits + 2 * STATE_BYTES * self.validity_logit.shape[1]

    def fused(self) -> None:
        self.state.scan_logits(self.class_logits, self.validity_logit, self.packed, seed=0)

    def eager(self) -> None:
        state = self.eager_state
        for proposal in self.proposals:
            state = eager.accept_step(state, proposal, self.gamma, self.I, self.J)
        self.eager_state = state


def rotate(calls: list[Callable[[], None]]) -> Callable[[], None]:
    """One call that takes its turn through ``calls``."""
    if len(calls) == 1:
        return calls[0]
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def accept_shapes(options: Options) -> Iterator[tuple[int, int, int]]:
    """(chains, classes, steps): single steps, and the longest block that stays within memory."""
    limit = QUICK_BLOCK_BYTES if options.quick and options.device.type == "cpu" else BLOCK_BYTES
    for chains in CHAINS if options.quick else (*CHAINS, MANY_CHAINS):
        for classes in JOINT_CLASSES:
            fitting = limit // (4 * chains * (classes + 1))
            block = BLOCK_STEPS
            while block > fitting:
                block //= 2
            for steps in (1, block) if block > 1 else (1,):
                yield chains, classes, steps


@torch.inference_mode()
def accept_rows(options: Options) -> Iterator[Row]:
    bandwidth = copy_bandwidth(options.device)
    print(f"copy bandwidth: {bandwidth / 1e9:.1f} GB/s read and written\n")
    for chains, classes, steps in accept_shapes(options):
        block = AcceptBlock(chains, classes, steps, options.device)
        blocks = [block]
        if steps > 1:
            # A GPU's cache holds a good part of a block: without a few blocks in turn, the copy fraction would
            # compare the cache with the memory. On a CPU, logits are read back from its caches in real runs too.
            cached = 4 * last_level_cache_bytes(options.device) // block.bytes_moved
            blocks += [AcceptBlock(chains, classes, steps, options.device) for _ in range(min(cached, 7))]
        calls = {"eager": rotate([b.eager for b in blocks]), "fused": rotate([b.fused for b in blocks])}
        seconds = median_seconds(calls, options.device, options.timing)
        fraction = block.bytes_moved / seconds["fused"] / bandwidth
        shape = (chains, classes, steps)
        yield make_row(options, "accept", "eager", shape, seconds["eager"], seconds["fused"], fraction)
        del block, blocks, calls  # before the next block is made, which may need the memory


# --- models ---------------------------------------------------------------------------------------


def conv_block(conv: nn.Module, channels: int) -> list[nn.Module]:
    # momentum=1: one forward pass in training mode makes the running statistics those of its batch.
    return [conv, nn.BatchNorm2d(channels, momentum=1.0), nn.ReLU(inplace=True)]


class Generator(nn.Sequential):
    """DCGAN for 32x32x3, about 19 million multiplications and additions an image, a tenth of BigGAN's."""

    def __init__(self, width: int = 64):
        super().__init__(
            nn.Unflatten(1, (Z_DIM, 1, 1)),
            *conv_block(nn.ConvTranspose2d(Z_DIM, 4 * width, 4, bias=False), 4 * width),
            *conv_block(nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1, bias=False), 2 * width),
            *conv_block(nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), width),
            nn.ConvTranspose2d(width, 3, 4, 2, 1),
            nn.Tanh(),
        )
        self.z_dim = Z_DIM


class Classifier(nn.Module):
    """A MobileNet-like trunk (depthwise, then pointwise convolutions) with heads for class and validity."""

    def __init__(self, n_classes: int = N_ATTRIBUTES, width: int = 32):
        super().__init__()
        layers = conv_block(nn.Conv2d(3, width, 3, 1, 1, bias=False), width)
        for channels, outputs, stride in ((1, 2, 2), (2, 4, 1), (4, 4, 2), (4, 8, 1), (8, 8, 2)):
            inner, outer = channels * width, outputs * width
            layers += conv_block(nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), inner)
            layers += conv_block(nn.Conv2d(inner, outer, 1, bias=False), outer)
        self.trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.class_head = nn.Linear(8 * width, n_classes)
        self.validity_head = nn.Linear(8 * width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        return self.class_head(features), self.validity_head(features)


@torch.no_grad()
def random_models(device: torch.device) -> tuple[Generator, Classifier]:
    """G and clf with random weights, in eval mode, whose logits vary as those of trained ones do.

    Without that every chain would see one and the same weight, or none: random heads hardly tell images apart.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        G, clf = Generator(), Classifier()
        z = torch.randn(256, Z_DIM)
    x = G(z)  # still in training mode: sets the statistics of the batch norms
    features = clf.trunk(x)
    for head, spread in ((clf.class_head, 2.0), (clf.validity_head, 1.0)):
        logits = head(features)
        scale = spread / logits.std(dim=0)
        head.bias.copy_((head.bias - logits.mean(dim=0)) * scale)
        head.weight.mul_(scale[:, None])
    return G.eval().to(device), clf.eval().to(device)


# --- end to end -----------------------------------------------------------------------------------


def run_shape(options: Options) -> tuple[int, int]:
    """(chains, steps) of whole runs; a GPU needs more chains to be busy."""
    if options.device.type == "cuda":
        return (1024, 50) if options.quick else (4096, 200)
    return (64, 32) if options.quick else (256, 200)


def run_timing(rounds: int) -> Timing:
    """Of whole runs, which take long enough by themselves."""
    return Timing(rounds, min_seconds=0.0)


def batch_size(options: Options) -> int:
    return 64 if options.device.type == "cpu" else 1024


@torch.inference_mode()
def bare_forwards(G: nn.Module, clf: nn.Module, batches: list[Tensor]) -> None:
    for z in batches:
        clf(G(z))


@torch.inference_mode()
def official_loop(
    G: nn.Module, clf: nn.Module, target: JointClass, chains: int, steps: int, conditional: bool = False
) -> Tensor:
    """The official sampler written plainly, one step of all chains at a time; see S2M sampling, Algorithm 1."""
    device = next(G.parameters()).device
    gamma = torch.ones(N_ATTRIBUTES, device=device)
    I, J = (torch.tensor(indices, dtype=torch.int64, device=device) for indices in (target.I, target.J))
    labels = [torch.full((chains,), target.I[0], device=device)] if conditional else []

    def weight(x: Tensor) -> Tensor:
        class_logits, *fake, validity_logit = clf(x)
        w = eager.s2m_weight(class_logits, validity_logit[:, 0], gamma, I, J)
        return w / fake[0].softmax(1)[:, target.I[0]] if fake else w

    x = G(torch.randn(chains, Z_DIM, device=device), *labels)
    for _ in range(steps):
        proposal = G(torch.randn(chains, Z_DIM, device=device), *labels)
        ratio = weight(proposal) / (weight(x) + 1e-5)
        accept = torch.bernoulli(ratio.clamp(max=1))[:, None, None, None]
        x = accept * proposal + (1 - accept) * x
    return x


def end_to_end_rows(options: Options) -> Iterator[Row]:
    chains, steps = run_shape(options)
    batch = batch_size(options)
    target = JOINT_CLASSES[N_ATTRIBUTES]
    G, clf = random_models(options.device)
    sampler = S2MSampler(G, clf, plan=Plan(batch_size=batch))
    # The sampler's blocks may end in a shorter batch; here every batch is full, in both.
    latents = list(torch.randn(chains * steps, Z_DIM, device=options.device).split(batch))
    sample = partial(sampler.sample, target.I, target.J, chains, steps, seed=0)
    calls = {
        "sampler": sample,
        "bare_forwards": partial(bare_forwards, G, clf, latents),
        "official_loop": partial(official_loop, G, clf, target, chains, steps),
    }
    seconds = median_seconds(calls, options.device, run_timing(5))
    for against in ("bare_forwards", "official_loop"):
        shape = (chains, N_ATTRIBUTES, steps)
        yield make_row(options, "end_to_end", against, shape, seconds[against], seconds["sampler"])


# --- end to end, with models of the published sizes ------------------------------------------------

PUBLISHED = "biggan96+mobilenetv2"
PUBLISHED_SHAPES = ((16, 10), (64, 10), (128, 10))  # (chains, steps)
WAYS = list(itertools.product((8, 16, 32, 64, 128), (torch.contiguous_format, torch.channels_last)))


class BestPlan:
    """Bare forward passes of G and of clf, each in the fastest of :data:`WAYS`: the bar that a plan has to meet.

    Copies of the models, which stay in that memory format: what a pass takes, and nothing else.
    """

    @torch.inference_mode()
    def __init__(self, G: nn.Module, clf: nn.Module, options: Options) -> None:
        z, labels = torch.randn(128, Z_DIM, device=options.device), torch.zeros(128, dtype=torch.int64)
        labels = labels.to(options.device)
        x = torch.cat([G(part, label) for part, label in zip(z.split(8), labels.split(8), strict=True)])
        self.ways, self.models = [], []
        for model, rows in ((G, (z, labels)), (clf, (x,))):
            copies = {fmt: copy.deepcopy(model).to(memory_format=fmt) for _, fmt in WAYS[:2]}
            calls = {
                way: partial(self._run, copies[way[1]], rows, *way)
                for way in (WAYS[:6] if options.quick else WAYS)
            }
            seconds = median_seconds(calls, options.device, run_timing(1 if options.quick else 3))
            self.ways.append(min(seconds, key=seconds.get))
            self.models.append(copies[self.ways[-1][1]])

    @torch.inference_mode()
    def _run(
        self, model: nn.Module, rows: tuple[Tensor, ...], size: int, memory_format: torch.memory_format
    ) -> list[Tensor]:
        found = []
        for batch in zip(*(part.split(size) for part in rows), strict=True):
            if batch[0].ndim == 4:
                batch = [batch[0].contiguous(memory_format=memory_format)]
            found.append(model(*batch))
        return found

    def __call__(self, z: Tensor, labels: Tensor) -> None:
        x = torch.cat(self._run(self.models[0], (z, labels), *self.ways[0]))
        self._run(self.models[1], (x,), *self.ways[1])

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {size} {str(fmt)[6:]}" for name, (size, fmt) in zip("GC", self.ways, strict=True)
        )


def published_rows(options: Options) -> Iterator[Row]:
    target = JOINT_CLASSES[N_ATTRIBUTES]
    G, clf = published_models(options.device)
    sampler = S2MSampler(G, clf)
    print(sampler.describe())
    best = BestPlan(G, clf, options)
    print(f"best plan: {best}\n")
    for chains, steps in PUBLISHED_SHAPES[:1] if options.quick else PUBLISHED_SHAPES:
        n = chains * steps
        z = torch.randn(n, Z_DIM, device=options.device)
        labels = torch.full((n,), target.I[0], device=options.device)
        pairs = list(zip(z.split(chains), labels.split(chains), strict=True))
        calls = {
            "sampler": partial(sampler.sample, target.I, target.J, chains, steps, seed=0),
            "official_loop": partial(official_loop, G, clf, target, chains, steps, conditional=True),
            "bare_forwards": partial(bare_conditional_forwards, G, clf, pairs),
            "best_plan": partial(best, z, labels),
        }
        seconds = median_seconds(calls, options.device, run_timing(1 if options.quick else 3))
        for against in ("official_loop", "bare_forwards", "best_plan"):
            times = seconds[against], seconds["sampler"]
            yield make_row(options, "end_to_end", against, (chains, N_ATTRIBUTES, steps), *times, model=PUBLISHED)


@torch.inference_mode()
def bare_conditional_forwards(G: nn.Module, clf: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> None:
    for z, labels in pairs:
        clf(G(z, labels))


# --- targets --------------------------------------------------------------------------------------


def separate_runs(sampler: S2MSampler, chains: int, steps: int) -> None:
    for I, J in SEVEN_TARGETS:
        sampler.sample(I, J, chains, steps, seed=0)


def targets_rows(options: Options) -> Iterator[Row]:
    chains, steps = run_shape(options)
    chains //= 4 if options.device.type == "cpu" else 1  # a round is eight runs
    sampler = S2MSampler(*random_models(options.device), plan=Plan(batch_size=batch_size(options)))
    calls = {
        "pool": partial(sampler.sample_targets, SEVEN_TARGETS, chains, steps, seed=0),
        "separate_runs": partial(separate_runs, sampler, chains, steps),
    }
    seconds = median_seconds(calls, options.device, run_timing(3))
    shape = (chains, N_ATTRIBUTES, steps)
    yield make_row(options, "targets", "separate_runs", shape, seconds["separate_runs"], seconds["pool"])


# --- output ---------------------------------------------------------------------------------------


def verdicts(row: Row) -> Iterator[str]:
    """What the project asks of this row, and whether it was met."""
    speedup = row["speedup"]
    if row["model"] == PUBLISHED:
        if row["against"] == "best_plan":
            yield verdict("<= 1.05x the time", speedup >= 1 / 1.05)
        elif row["against"] == "official_loop" and row["device"] == "cpu":
            wanted = 1.1 if row["chains"] == 16 else 1.6
            yield verdict(f">= {wanted}x", speedup >= wanted)
        return
    match row["against"], row["device"]:
        case "eager", "cpu" if row["chains"] in CHAINS:
            yield verdict(">= 10x", speedup >= 10)
        case "eager", "cuda" if row["chains"] == 65536:
            yield verdict(">= 50x", speedup >= 50)
            if row["steps"] >= 64:
                yield verdict(">= 60 % of copy", row["copy_fraction"] >= 0.6)
        case "bare_forwards", _:
            yield verdict("<= 1.05x the time", speedup >= 1 / 1.05)
        case "separate_runs", _:
            yield verdict(">= 5x", speedup >= 5)


HEADERS = (
    "section",
    "model",
    "against",
    "chains",
    "classes",
    "steps",
    "reference",
    "fused",
    "speedup",
    "copy",
    "target",
)


def table_cells(row: Row) -> list[str]:
    fraction = row["copy_fraction"]
    return [
        row["section"],
        row["model"],
        row["against"],
        *(f"{row[name]:,}" for name in ("chains", "classes", "steps")),
        format_time(row["reference_us"]),
        format_time(row["fused_us"]),
        f"{row['speedup']:.3g}x",
        "" if fraction is None else f"{fraction:.1%}",
        ", ".join(verdicts(row)),
    ]


def main() -> None:
    parser = option_parser("Throughput of S2M sampling.")
    models = {"toy": (accept_rows, end_to_end_rows, targets_rows), "biggan96": (published_rows,)}
    parser.add_argument("--models", nargs="+", choices=models, default=list(models), help="default: all")
    given = parser.parse_args()
    options = read_options(parser, given)
    # Few steps, by design.
    warnings.filterwarnings("ignore", message=".*chains never met the support|.*steps are too few")
    print(f"{device_name(options.device)}, {options.threads} CPU threads, PyTorch {torch.__version__}")
    warn_if_busy(options.threads)
    rows: list[Row] = []
    for section in itertools.chain.from_iterable(models[name] for name in given.models):
        new = list(section(options))
        print_table(HEADERS, [table_cells(row) for row in new])
        print()
        rows += new
        if options.json is not None:
            write_json(options.json, rows)  # after each section: what is measured stays if a later one fails


if __name__ == "__main__":
    main()
