"""Generators and classifiers in closed form, so that the target distribution is known exactly."""

import itertools
import math

import numpy as np
import torch
from torch import nn

from spml_fast import MinMax, Plan, S2MSampler

# Fifteen states; which of three attributes each has: every label set twice, no attribute once.
LABELS = torch.tensor(
    [[0, 0, 0]]
    + 2 * [[1, 0, 0]]
    + 2 * [[0, 1, 0]]
    + 2 * [[0, 0, 1]]
    + 2 * [[1, 1, 0]]
    + 2 * [[1, 0, 1]]
    + 2 * [[0, 1, 1]]
    + 2 * [[1, 1, 1]],
    dtype=torch.float64,
)
N_STATES = len(LABELS)
POPULATION = torch.tensor([3, 9, 4, 8, 6, 5, 10, 9, 8, 7, 6, 5, 7, 4, 9], dtype=torch.float64)
POPULATION /= POPULATION.sum()
GENERATED = torch.tensor([6, 5, 9, 5, 9, 9, 6, 7, 12, 5, 9, 9, 5, 6, 8], dtype=torch.float64)
GENERATED /= GENERATED.sum()
CLASS_SHARES = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)  # p_data(c), where classes are picked first
IMPOSSIBLE = -1e4  # the logit of what cannot be


def true_joint_class(I, J):
    """p(x | all of I, none of J) over the states: the definition, with no density ratio in sight."""
    has = LABELS[:, list(I)].all(1) & ~LABELS[:, list(J)].any(1) if J else LABELS[:, list(I)].all(1)
    p = POPULATION * has
    return (p / p.sum()).numpy()


def class_first_gamma():
    """pi_i / p_data(i) where classes are picked first."""
    return ((POPULATION[:, None] * LABELS).sum(0) / CLASS_SHARES).numpy()


def _log(p):
    return torch.where(p > 0, p.clamp(min=1e-300).log(), IMPOSSIBLE)


class DiscreteGenerator(nn.Module):
    """x (B, 1): a state, drawn with probabilities p_G from the first latent; given a label, with p_G(. | c)."""

    z_dim = 3

    def __init__(self, dtype=torch.float64, conditional=False):
        super().__init__()
        p = GENERATED[None]
        if conditional:
            p = GENERATED * (0.3 + LABELS.T)  # each class leans to its own states
        self.register_buffer("cdf", (p / p.sum(1, keepdim=True)).cumsum(1)[:, :-1].contiguous())
        self.register_buffer("anchor", torch.zeros(1, dtype=dtype))  # tells the sampler the dtype
        if conditional:
            self.forward = self._conditional

    def density(self):
        return torch.diff(self.cdf, prepend=torch.zeros(len(self.cdf), 1), append=torch.ones(len(self.cdf), 1))

    def _states(self, z, cdf):
        return torch.searchsorted(cdf, torch.special.ndtr(z[:, :1].double()))

    def forward(self, z):
        return self._states(z, self.cdf.expand(len(z), -1).contiguous())

    def _conditional(self, z, label):
        return self._states(z, self.cdf[label].contiguous())


class DiscreteClassifier(nn.Module):
    """Exact D_r, D_v and, for a conditional generator, D_f of the states."""

    def __init__(self, G, dtype=torch.float64, class_first=False):
        super().__init__()
        if class_first:  # x ~ p(x | y_c = 1), c ~ CLASS_SHARES
            given_class = POPULATION[:, None] * LABELS
            joint = CLASS_SHARES * given_class / given_class.sum(0)
        else:  # x ~ population, c uniform among the positives of x
            joint = POPULATION[:, None] * LABELS / LABELS.sum(1, keepdim=True).clamp(min=1)
        p_data = joint.sum(1)
        p_data = p_data / p_data.sum()  # the state without any attribute has no label, so it is not in the data
        p_G = G.density().mean(0)
        self.register_buffer("class_logits", _log(joint / joint.sum(1, keepdim=True).clamp(min=1e-300)).to(dtype))
        self.register_buffer("validity", (_log(p_data) - p_G.log()).clamp(min=IMPOSSIBLE).to(dtype))
        D_f = G.density().T / G.density().sum(0)[:, None]
        self.register_buffer("fake_logits", D_f.log().to(dtype))

    def forward(self, x):
        x = x[:, 0]
        fake = self.fake_logits[x] if self.fake_logits.shape[1] > 1 else None
        return self.class_logits[x], fake, self.validity[x]


class GaussianGenerator(nn.Module):
    """x = 2 z in two dimensions."""

    z_dim = 2

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0, dtype=dtype))

    def forward(self, z):
        return self.scale * z


class GaussianClassifier(nn.Module):
    """Three classes with Gaussian p(x | y_c = 1) that overlap."""

    means = ((-1.0, 0.0), (1.0, 0.5), (0.0, 1.5))
    scale = 1.3

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.register_buffer("mean", torch.tensor(self.means, dtype=dtype))
        self.register_buffer("share", CLASS_SHARES.to(dtype))

    def log_class_density(self, x):
        squares = (x[:, None] - self.mean).square().sum(-1) / self.scale**2
        return -squares / 2 - math.log(2 * math.pi * self.scale**2)

    def forward(self, x):
        joint = self.log_class_density(x) + self.share.log()
        log_p_G = -(x / 2).square().sum(-1) / 2 - math.log(2 * math.pi * 4)
        return joint, joint.logsumexp(-1) - log_p_G


def gaussian_target(I, J, gamma, points):
    """Unnormalised p_(I,J) = (min pi_i p_i - max pi_j p_j)^+ at (n, 2) points, in float64."""
    density = GaussianClassifier().log_class_density(points).exp() * CLASS_SHARES * torch.as_tensor(gamma)
    low = density[:, list(I)].amin(1)
    high = density[:, list(J)].amax(1) if J else torch.zeros_like(low)
    return (low - high).clamp(min=0).numpy()


def gaussian_marginal_cdfs(I, J, gamma, directions, half_width=9.0, n=1501):
    """The CDF of <direction, x> under the target, on a grid: a function for each direction."""
    axis = torch.linspace(-half_width, half_width, n, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    mass = gaussian_target(I, J, gamma, points)
    mass /= mass.sum()
    cdfs = []
    for direction in directions:
        projected = (points @ torch.tensor(direction, dtype=torch.float64)).numpy()
        order = np.argsort(projected)
        at, cumulative = projected[order], np.cumsum(mass[order])
        keep = np.r_[np.diff(at) > 0, True]
        at, cumulative = at[keep], cumulative[keep]
        # Mass sits at grid points; centring it there halves the discretisation error.
        centred = (cumulative + np.r_[0, cumulative[:-1]]) / 2
        cdfs.append(lambda value, at=at, centred=centred: np.interp(value, at, centred))
    return cdfs


class SmallConvGenerator(nn.Module):
    """(B, 1, 8, 8) images from 16 latents: as real as a test can afford."""

    z_dim = 16

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(16, 16 * 4)
        nn.init.normal_(self.project.weight)
        self.net = nn.Sequential(
            nn.BatchNorm2d(4), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(4, 1, 3, padding=1), nn.Tanh()
        )

    def forward(self, z):
        return self.net(self.project(z).view(-1, 4, 4, 4))


class SmallConvClassifier(nn.Module):
    def __init__(self, n_classes=3):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5))
        self.class_head = nn.Linear(8 * 64, n_classes, bias=False)
        nn.init.normal_(self.class_head.weight)  # far from flat: every joint class has support
        self.validity_head = nn.Linear(8 * 64, 1)

    def forward(self, x):
        features = self.trunk(x)
        return self.class_head(features), self.validity_head(features)


class RowwiseGenerator(nn.Module):
    """Elementwise, so that no row depends on how rows are batched."""

    z_dim = 4

    def forward(self, z):
        return torch.stack([z[:, 0] * 1.5, z[:, 1] - 0.3 * z[:, 2], z[:, 3] * z[:, 0]], 1)


class RowwiseClassifier(nn.Module):
    def forward(self, x):
        return torch.stack([x[:, 0], x[:, 1], x[:, 2]], 1), x[:, 0] * 0.3 - x[:, 2].abs() * 0.2


class LineGenerator(nn.Module):
    """x = z on a line."""

    z_dim = 1

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.register_buffer("one", torch.ones((), dtype=dtype))

    def forward(self, z):
        return self.one * z


class TiltClassifier(nn.Module):
    """log w = tilt * x, up to a constant: of :class:`LineGenerator`, the joint class +0 is N(tilt, 1)."""

    def __init__(self, tilt):
        super().__init__()
        self.tilt = tilt

    def forward(self, x):
        return torch.stack([0 * x[:, 0], 0 * x[:, 0]], 1), self.tilt * x[:, 0]


class ConditionalGaussianGenerator(GaussianGenerator):
    """x = 2 z + an offset of the label."""

    def __init__(self, dtype=torch.float64):
        super().__init__(dtype)
        self.register_buffer("offset", torch.tensor([[-0.5, 0.3], [0.6, 0.0], [0.0, 0.8]], dtype=dtype))

    def forward(self, z, label):
        return self.scale * z + self.offset[label]

    def log_density(self, x):
        """log p_G(x | c), (n, 3)."""
        return -((x[:, None] - self.offset) / 2).square().sum(-1) / 2 - math.log(2 * math.pi * 4)


class ConditionalGaussianClassifier(GaussianClassifier):
    """With exact D_f; the weights lead to the joint classes of :class:`GaussianClassifier`."""

    def __init__(self, dtype=torch.float64):
        super().__init__(dtype)
        self.proposals = ConditionalGaussianGenerator(dtype)

    def forward(self, x):
        joint = self.log_class_density(x) + self.share.log()
        fake = self.proposals.log_density(x)
        return joint, fake, joint.logsumexp(-1) - (fake.logsumexp(-1) - math.log(3))


PROBE_ROWS = 2
"""Rows of the sampler's probe: toys that count their calls leave out those of no more."""


class Interrupted(RowwiseGenerator):
    """Ctrl-C at a call of G after the probe; with blocks of one step and one batch, the step of that number."""

    def __init__(self, at):
        super().__init__()
        self.at, self.calls = at, itertools.count()

    def forward(self, z):
        if len(z) > PROBE_ROWS and next(self.calls) == self.at:
            raise KeyboardInterrupt
        return super().forward(z)


# --- samplers of these, and their results ---------------------------------------------------------

FIELDS = ("samples", "latents", "log_weights", "chains")


def rowwise(G=None, clf=None, **options):
    return S2MSampler(G or RowwiseGenerator(), clf or RowwiseClassifier(), **options)


def in_blocks(steps):
    """A plan whose blocks of steps are short, so that a short run has several."""
    return Plan(block_steps=steps)


def discrete(dtype=torch.float64, conditional=False, class_first=True, **options):
    G = DiscreteGenerator(dtype, conditional)
    clf = DiscreteClassifier(DiscreteGenerator(torch.float64, conditional), dtype, class_first)
    gamma = class_first_gamma() if class_first else 1.0
    # These models are small: time goes into calling them.
    return S2MSampler(G, clf, **{"weight": MinMax(gamma=gamma), "plan": Plan(batch_size=2**16), **options})


def assert_same(a, b):
    for field in FIELDS:
        assert torch.equal(getattr(a, field), getattr(b, field)), field


def counts_only(d):
    """Diagnostics without what the clock says, and how the models were run."""
    return {name: value for name, value in d.to_dict().items() if "second" not in name and name != "plan"}
