"""Generators and classifiers in the styles that others write them in: nothing is misread, and nothing spoiled."""

import copy
import functools
import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from toys import (
    GENERATED,
    PROBE_ROWS,
    DiscreteClassifier,
    DiscreteGenerator,
    RowwiseClassifier,
    RowwiseGenerator,
    assert_same,
    class_first_gamma,
    true_joint_class,
)

from spml_fast import Classifiers, JointClass, MinMax, Mixture, Plan, Run, S2MSampler, TruncatedNormal
from spml_fast._models import channels_last
from spml_fast.sampling import SamplingWarning, s2m_log_weight
from spml_fast.sampling.plan import Cost, Trace

SIZES = [(1, 65), (5, 13), (64, 1)]
"""(chains, steps): one chain and 65 proposals among them, whose last batch of 64 rows holds a single row."""

PLAN = Plan(batch_size=64)


def draw(G, clf, n=64, steps=3, I=0, J=1, **options):
    options.setdefault("plan", PLAN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SamplingWarning)
        return S2MSampler(G, clf, **options).sample(I, J, n, steps, seed=0)


# --- classifiers ----------------------------------------------------------------------------------


class Output(NamedTuple):
    validity_logit: torch.Tensor  # not in the order of the plain tuple
    class_logits: torch.Tensor


@dataclass
class Record:
    class_logits: torch.Tensor
    validity_logit: torch.Tensor
    fake_class_logits: torch.Tensor | None = None


CLASSIFIERS = {
    "squeezed validity": lambda a, v: (a, v[:, None].squeeze()),
    "both squeezed": lambda a, v: (a.squeeze(), v.squeeze()),
    "images of one pixel": lambda a, v: (a[:, :, None, None], v[:, None, None, None]),
    "dict": lambda a, v: {"validity_logit": v, "class_logits": a},
    "dataclass": lambda a, v: Record(a, v),
    "named tuple": lambda a, v: Output(v, a),
    "list": lambda a, v: [a, None, v],
}


@pytest.mark.parametrize(("n", "steps"), SIZES)
@pytest.mark.parametrize("style", CLASSIFIERS)
def test_outputs_of_classifiers(style, n, steps):
    classifier = RowwiseClassifier()
    clf = lambda x: CLASSIFIERS[style](*classifier(x))  # noqa: E731
    assert_same(draw(RowwiseGenerator(), clf, n, steps), draw(RowwiseGenerator(), classifier, n, steps))


class FailsOnOneRow(RowwiseClassifier):
    def forward(self, x):
        if len(x) == 1:
            raise ValueError("expected more than one row")
        return super().forward(x)


@pytest.mark.parametrize(("n", "steps"), SIZES)
def test_a_model_that_fails_on_one_row_is_given_it_twice(n, steps):
    found = draw(RowwiseGenerator(), FailsOnOneRow(), n, steps)
    assert_same(found, draw(RowwiseGenerator(), RowwiseClassifier(), n, steps))
    assert "given twice" in S2MSampler(RowwiseGenerator(), FailsOnOneRow()).describe()


# --- generators: latents and x --------------------------------------------------------------------

GENERATORS = {
    "tuple": lambda x: (x, [torch.zeros(3)]),
    "dict": lambda x: {"features": x * 0, "sample": x},
    "dict of one": lambda x: {"fake": x},
    "dataclass": lambda x: Record(None, None, x),
    "squeezed": lambda x: x.squeeze(),
}


@pytest.mark.parametrize(("n", "steps"), SIZES)
@pytest.mark.parametrize("style", GENERATORS)
def test_outputs_of_generators(style, n, steps):
    generator = RowwiseGenerator()
    G = lambda z: GENERATORS[style](generator(z))  # noqa: E731
    assert_same(
        draw(G, RowwiseClassifier(), n, steps, z_dim=4), draw(generator, RowwiseClassifier(), n, steps, z_dim=4)
    )


def test_an_output_without_a_known_x_is_an_error():
    G = lambda z: {"a": z, "b": z}  # noqa: E731
    with pytest.raises(ValueError, match="G returned a dict with a, b, of which none is called x, sample"):
        draw(G, RowwiseClassifier(), z_dim=4)


class DCGAN(nn.Sequential):
    def __init__(self):
        super().__init__(nn.ConvTranspose2d(8, 4, 4), nn.ReLU(), nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Tanh())


class ImageClassifier(nn.Module):
    def __init__(self, n_classes=3, channels=3):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Flatten())
        self.heads = nn.ModuleList([nn.Linear(8 * 64, n_classes), nn.Linear(8 * 64, 1)])

    def forward(self, x):
        features = self.trunk(x)
        return self.heads[0](features), self.heads[1](features)


def seeded(make):
    torch.manual_seed(0)
    return make().eval()


def test_latents_of_images_of_one_pixel():
    G, clf = seeded(DCGAN), seeded(ImageClassifier)
    result = draw(G, clf, J=(), z_dim=(8, 1, 1))
    assert result.latents.shape == (64, 8, 1, 1)
    with pytest.raises(ValueError, match=r"not take latents of shape \(8,\).*pass z_dim=\(8, 1, 1\)"):
        draw(G, clf, z_dim=8)
    with pytest.raises(
        ValueError, match=r"pass z_dim=... \(\(8, 1, 1\) by the look of its first layer, ConvTransp"
    ):
        S2MSampler(G, clf)


@pytest.mark.parametrize("z_dim", [np.int64(4), torch.tensor(4), [4], (np.int32(4),), torch.Size([4])])
def test_sizes_of_latents(z_dim):
    G = lambda z: RowwiseGenerator()(z)  # noqa: E731
    assert S2MSampler(G, RowwiseClassifier(), z_dim=z_dim).models.z_shape == (4,)


@pytest.mark.parametrize("z_dim", [True, 4.0, "4", (), (4, 0), (4, True)])
def test_bad_sizes_of_latents(z_dim):
    with pytest.raises(ValueError, match="z_dim must be a positive int or a shape"):
        S2MSampler(RowwiseGenerator(), RowwiseClassifier(), z_dim=z_dim)


# --- generators: labels ---------------------------------------------------------------------------


class Embedding(nn.Module):
    """What makes a class-conditional x; without a label it fails deep inside."""

    z_dim = 4

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(3, 3, dtype=torch.float64)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]))

    def make(self, z, label):
        return z[:, :3] + 0.5 * self.embedding(label)


class OptionalLabel(Embedding):
    def forward(self, z, label=None):
        return self.make(z, label)


class LabelOfZero(Embedding):
    def forward(self, z, label=0):
        label = torch.as_tensor(label).expand(len(z))
        return self.make(z, label)


class KeywordLabel(Embedding):
    def forward(self, z, *, y):
        return self.make(z, y)


class OptionalKeyword(Embedding):
    def forward(self, z, truncation=1.0, *, class_labels=None):
        return self.make(z, class_labels)


class OddName(Embedding):
    def forward(self, z, digit=None):
        return self.make(z, digit)


class RequiredOddName(Embedding):
    def forward(self, z, digit):
        return self.make(z, digit)


class StyleGAN(Embedding):
    c_dim = 3

    def forward(self, z, c, truncation_psi=1, **synthesis):
        assert c.dtype == z.dtype
        return z[:, :3] + 0.5 * c @ self.embedding.weight


class OptionalOneHot(StyleGAN):
    def forward(self, z, c=None):
        return super().forward(z, c)


CONDITIONAL = [
    OptionalLabel,
    LabelOfZero,
    KeywordLabel,
    OptionalKeyword,
    OddName,
    RequiredOddName,
    StyleGAN,
    OptionalOneHot,
]


class WithFake(RowwiseClassifier):
    def forward(self, x):
        class_logits, validity = super().forward(x)
        return class_logits, class_logits / 2, validity


def compiled(G):
    return torch.compile(G, backend="eager")


class Wrapped(nn.DataParallel):
    """It hides the signature of what it holds; without GPUs it calls that."""


@pytest.mark.parametrize("wrap", [lambda G: G, compiled, Wrapped, lambda G: functools.partial(G)])
@pytest.mark.parametrize("kind", CONDITIONAL)
def test_labels(kind, wrap):
    G = kind().double()
    plain = lambda z, label: G.make(z, label)  # noqa: E731
    expected = draw(plain, WithFake(), z_dim=4, conditional=True)
    assert_same(draw(wrap(G), WithFake(), z_dim=4), expected)


@pytest.mark.parametrize("of", ["G", "clf", "inside"])
def test_models_compiled_as_one_graph(of):
    """What watches the probe must not be compiled with them."""
    G, clf = seeded(lambda: Half(torch.float32)), seeded(lambda: LinearClassifier(torch.float32))
    expected = draw(G, clf)
    torch._dynamo.reset()
    one = torch.compile(clf if of == "clf" else G, backend="eager", fullgraph=True)
    models = {"G": (one, clf), "clf": (G, one), "inside": (lambda z: one(z), clf)}[of]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        S2MSampler(*models, z_dim=4).describe()
    assert_same(draw(*models, z_dim=4), expected)


def test_a_generator_of_other_classes_or_of_nothing():
    class Two(StyleGAN):
        c_dim = 2

        def forward(self, z, c):
            return z[:, :3] + 0.5 * c @ self.embedding.weight[:2]

    with pytest.warns(SamplingWarning, match=r"labels of 2 classes \(c_dim\), clf returns logits of 3"):
        S2MSampler(Two(), WithFake()).describe()
    with pytest.raises(ValueError, match=r"proposal_class 2 is out of range: G.c_dim is 2"):
        draw(Two(), WithFake(), I=2, J=())
    with pytest.raises(ValueError, match="G returned NaN or infinite numbers"):
        draw(lambda z: z[:, :3] / 0, RowwiseClassifier(), z_dim=4)


def test_scripted_generators():
    for kind, conditional in ((RequiredOddName, True), (RowwiseGenerator, False)):
        G = torch.jit.script(kind().eval())
        found = draw(G, WithFake(), z_dim=4)
        assert_same(found, draw(kind(), WithFake(), z_dim=4))
        frozen = torch.jit.freeze(G)
        if not conditional:
            assert_same(draw(frozen, WithFake(), z_dim=4), found)


class Unconditional(RowwiseGenerator):
    """A StyleGAN without labels."""

    c_dim = 0

    def forward(self, z, c, truncation_psi=1):
        assert c is None
        return super().forward(z)


class Either(Embedding):
    """It runs without a label, too: then the average of classes."""

    def forward(self, z, label=None):
        return z[:, :3] if label is None else self.make(z, label)


def test_generators_without_labels():
    expected = draw(RowwiseGenerator(), RowwiseClassifier())
    assert_same(draw(Unconditional(), RowwiseClassifier()), expected)
    with pytest.raises(ValueError, match=r"conditional=True, but G.c_dim is 0"):
        S2MSampler(Unconditional(), WithFake(), conditional=True)


def test_a_label_that_may_be_left_out_is_given_where_there_is_a_D_f():  # noqa: N802
    G = Either()
    assert_same(draw(G, RowwiseClassifier()), draw(lambda z: G(z), RowwiseClassifier(), z_dim=4))
    assert_same(draw(G, WithFake()), draw(G.make, WithFake(), z_dim=4))
    assert "unconditional" in S2MSampler(G, RowwiseClassifier()).describe()
    assert_same(draw(G, WithFake(), conditional=False), draw(G, RowwiseClassifier()))


def test_what_settles_a_wrong_guess_is_named():
    with pytest.raises(ValueError, match=r"G's argument 'noise' was taken for the class label.*conditional=False"):
        draw(lambda z, noise: z[:, :3], RowwiseClassifier(), z_dim=4)
    with pytest.raises(ValueError, match="G requires the arguments z, label, noise"):
        S2MSampler(lambda z, label, noise: z, RowwiseClassifier(), z_dim=4)
    with pytest.raises(RuntimeError) as caught:
        draw(lambda z, noise: z @ noise.double(), RowwiseClassifier(), z_dim=4)
    assert (
        "labels (2,) torch.int64 for its argument 'noise'; if that is no class label" in caught.value.__notes__[0]
    )
    with pytest.raises(TypeError, match="conditional must be True, False or None, got 'yes'"):
        S2MSampler(RowwiseGenerator(), RowwiseClassifier(), conditional="yes")


# --- what is said ---------------------------------------------------------------------------------


def test_a_description():
    said = S2MSampler(KeywordLabel(), WithFake()).describe()
    assert said.startswith("G(z, y=...), class-conditional, the label an integer (B,): z (B, 4) torch.float64")
    assert "of a standard normal -> x (B, 3). clf(x): logits (B, 3) of D_r, of D_f likewise, and B of D_v." in said
    said = S2MSampler(StyleGAN(), WithFake(), prior=TruncatedNormal(-1, 1)).describe()
    assert "the label one-hot (B, 3), as G.c_dim says" in said
    assert "TruncatedNormal(low=-1, high=1)" in said
    assert "of D_f likewise (not used)" in S2MSampler(RowwiseGenerator(), WithFake()).describe()


def test_a_probe_leaves_no_trace():
    class Counts(RowwiseGenerator):
        calls = 0

        def forward(self, z):
            self.calls += 1
            torch.rand(3)
            return super().forward(z)

    G = Counts()
    state = torch.get_rng_state()
    sampler = S2MSampler(G, RowwiseClassifier())
    assert G.calls == 0
    sampler.describe()
    calls = G.calls
    assert torch.equal(state, torch.get_rng_state())
    assert sampler.describe() == sampler.describe()
    assert G.calls == calls


@pytest.mark.parametrize(
    ("clf", "said"),
    [
        (lambda a, v: (a.softmax(1), v), "class_logits is the output of a softmax"),
        (lambda a, v: (a, torch.sigmoid(v[:, None]).flatten()), "validity_logit is the output of a sigmoid"),
        (lambda a, v: (a.sigmoid(), v), "class_logits is the output of a sigmoid.*MultiLabelDensityRatio"),
        (lambda a, v: (a.exp() / a.exp().sum(1, keepdim=True), v), "class_logits is rows that are not negative"),
    ],
)
def test_probabilities_are_warned_of(clf, said):
    classifier = RowwiseClassifier()
    with pytest.warns(SamplingWarning, match=said + ("" if "Multi" in said else ".*probabilities=")):
        S2MSampler(RowwiseGenerator(), lambda x: clf(*classifier(x))).describe()


def test_probabilities_of_a_model_that_cannot_be_watched_are_warned_of():
    class Squashed(nn.Module):
        def forward(self, x):
            return x, torch.sigmoid(x[:, 0])

    with pytest.warns(SamplingWarning, match="all validity logits lie between 0.* and 0.9"):
        S2MSampler(RowwiseGenerator(), torch.jit.script(Squashed())).sample(0, (), 20, 40, seed=0)


def test_logits_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        S2MSampler(RowwiseGenerator(), RowwiseClassifier()).describe()
        # A sigmoid inside is nobody's business.
        classifier = RowwiseClassifier()
        S2MSampler(lambda z: torch.sigmoid(z[:, :3]), lambda x: classifier(x), z_dim=4).describe()


def test_noise_without_stochastic_is_warned_of():
    G = lambda z: z[:, :3] + 0.3 * torch.randn(len(z), 1)  # noqa: E731
    with pytest.warns(SamplingWarning, match="pass stochastic=True"):
        S2MSampler(G, RowwiseClassifier(), z_dim=4).describe()
    table = torch.randn(64, 1)
    with pytest.warns(SamplingWarning, match="other latents in its batch"):
        S2MSampler(lambda z: z[:, :3] + table[: len(z)], RowwiseClassifier(), z_dim=4).describe()
    with pytest.warns(SamplingWarning, match="other latents in its batch"):
        S2MSampler(lambda z: z[:, :3] - z.mean(), RowwiseClassifier(), z_dim=4).describe()


# --- separate classifiers -------------------------------------------------------------------------


class Discriminator(nn.Module):
    """It ends in a sigmoid, and works in place on what it is given."""

    def forward(self, x):
        x.mul_(2)
        return torch.sigmoid(RowwiseClassifier()(x / 2)[1])[:, None, None, None]


@dataclass
class Logits:
    logits: torch.Tensor


class Pretrained(nn.Module):
    """It wants its images normalised in its own way, and returns a record."""

    def forward(self, x):
        return Logits(RowwiseClassifier()(x * 3 + 1)[0])


@pytest.mark.parametrize(("n", "steps"), SIZES)
def test_separate_classifiers(n, steps):
    class Float64(RowwiseGenerator):
        def forward(self, z):
            return super().forward(z).double()

    clf = Classifiers(
        D_v=Discriminator(), D_r=Pretrained(), preprocess={"D_r": lambda x: (x - 1) / 3}, probabilities=["D_v"]
    )
    found = draw(Float64(), clf, n, steps)
    expected = draw(Float64(), RowwiseClassifier(), n, steps)
    assert torch.equal(found.latents, expected.latents)
    torch.testing.assert_close(found.log_weights, expected.log_weights, rtol=0, atol=1e-5)
    with_fake = Classifiers(
        D_v=lambda x: RowwiseClassifier()(x)[1],
        D_r=lambda x: RowwiseClassifier()(x)[0].softmax(1),
        D_f=lambda x: (RowwiseClassifier()(x)[0] / 2, "features"),
        probabilities=("D_r",),
    )
    found = draw(OptionalLabel(), with_fake, n, steps)
    expected = draw(OptionalLabel(), WithFake(), n, steps)
    assert torch.equal(found.latents, expected.latents)


def test_bad_separate_classifiers():
    with pytest.raises(ValueError, match="probabilities is for D_r, D_f, D_v, got D_x"):
        Classifiers(D_v=len, D_r=len, probabilities=["D_x"])
    with pytest.raises(ValueError, match="preprocess is for D_r, D_f, D_v, got 0"):
        Classifiers(D_v=len, D_r=len, preprocess={0: len})
    with pytest.raises(TypeError, match="D_r must be callable, got NoneType"):
        Classifiers(D_v=len, D_r=None)
    logit = lambda x: x[:, 0] * 100  # noqa: E731
    with pytest.raises(ValueError, match="D_v is said to return probabilities, but returned numbers from"):
        draw(RowwiseGenerator(), Classifiers(D_v=logit, D_r=lambda x: x, probabilities="D_v"))
    with pytest.raises(ValueError, match=r"D_v must return one logit for each of 2 rows, got \(2, 3\)"):
        draw(RowwiseGenerator(), Classifiers(D_v=lambda x: x, D_r=lambda x: x))


# --- training mode --------------------------------------------------------------------------------


class BatchNormGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout()

    def forward(self, z):
        return self.dropout(self.norm(z))[:, :3]

    def make(self, z):
        return self(z)


class Holder:
    def __init__(self, module):
        self.module = module

    def __call__(self, z):
        return self.module(z)


class Holding(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z):
        return self.function(z)


GLOBAL = BatchNormGenerator()


def in_a_closure(module):
    def outer(z):
        return (lambda z: module(z))(z)

    return outer


HIDDEN = {
    "closure": in_a_closure,
    "partial": functools.partial,
    "bound method": lambda module: module.make,
    "object": Holder,
    "method of an object": lambda module: Holder(module).__call__,
    "default": lambda module: lambda z, module=module: module(z),
    "a module's function": lambda module: Holding(lambda z: module(z)),
    "list": lambda module: (lambda modules: lambda z: modules[0](z))([module]),
}


@pytest.mark.parametrize("style", HIDDEN)
def test_modules_inside_functions_are_in_eval_mode(style):
    module = BatchNormGenerator()
    before = copy.deepcopy(module.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        S2MSampler(HIDDEN[style](module), RowwiseClassifier(), z_dim=4, conditional=False).sample(
            0, (), 64, 60, seed=0
        )
    assert module.training
    assert module.norm.training
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_module_that_is_a_global_name():
    draw(lambda z: GLOBAL(z), RowwiseClassifier(), z_dim=4)
    assert GLOBAL.norm.num_batches_tracked == 0
    assert GLOBAL.training


def test_a_module_that_cannot_be_found_is_warned_of():
    module = BatchNormGenerator()
    registry = {}
    exec("def get(): return registry['G']", {"registry": registry}, namespace := {})
    registry["G"] = module
    hidden = eval("lambda z: getter()(z)", {"getter": _Opaque(namespace["get"])})
    with pytest.warns(SamplingWarning, match=r"in training mode \(BatchNormGenerator, BatchNorm1d, Dropout\)"):
        S2MSampler(hidden, RowwiseClassifier(), z_dim=4).describe()
    assert module.norm.num_batches_tracked == 0
    assert module.training


class _Opaque:
    """A call that no search looks into."""

    __slots__ = ("function",)

    def __init__(self, function):
        self.function = function

    def __call__(self):
        return self.function()


# --- buffers and places ---------------------------------------------------------------------------


class TwoBuffers(nn.Module):
    """Whatever a model returns, in one of two buffers in turn, as graphs that were captured do."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls, self.held = model, 0, {}
        if hasattr(model, "z_dim"):
            self.z_dim = model.z_dim

    def forward(self, *arguments):
        outputs = self.model(*arguments)
        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        self.calls += 1
        found = []
        for place, part in enumerate(parts):
            if part is None:
                found.append(None)
                continue
            key = self.calls % 2, place, part.shape[1:]
            buffer = self.held.setdefault(key, part.new_zeros(8192, *part.shape[1:]))
            buffer[: len(part)] = part
            found.append(buffer[: len(part)])
        return tuple(found) if isinstance(outputs, tuple) else found[0]


class InPlace(nn.Module):
    """It spoils what it was given."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        if hasattr(model, "z_dim"):
            self.z_dim = model.z_dim

    def forward(self, given, *more):
        found = self.model(given.clone(), *more)
        given.zero_()
        return found


def buffered_models(style):
    G = DiscreteGenerator()
    clf = DiscreteClassifier(G, class_first=True)
    wrap = {"buffers": TwoBuffers, "in place": InPlace, "both": lambda model: InPlace(TwoBuffers(model))}[style]
    return wrap(G), wrap(clf)


@pytest.mark.parametrize("plan", [Plan(batch_size=7), Plan(batch_size=(8, 64)), Plan(batch_size=(64, 8)), None])
@pytest.mark.parametrize("method", ["imh", "rejection", "resample"])
@pytest.mark.parametrize("style", ["buffers", "in place", "both"])
def test_models_that_keep_or_spoil_what_passes_through_them(style, method, plan):
    """Exact on a discrete generator, by a chi-square test at 1e-4; x is what G makes of the latents."""
    G, clf = buffered_models(style)
    sampler = S2MSampler(G, clf, plan=plan, weight=MinMax(gamma=class_first_gamma()))
    result = sampler.sample(0, 1, 1000, 40, method=method, seed=3)
    expected = true_joint_class((0,), (1,))
    counts = np.bincount(result.samples[:, 0].long().numpy(), minlength=len(expected))
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    assert stats.chisquare(counts[kept], expected[kept] * counts.sum()).pvalue > 1e-4
    assert torch.equal(DiscreteGenerator()(result.latents), result.samples)


def test_the_users_own_latents_stay_as_they_are():
    G, clf = buffered_models("in place")
    latents = torch.randn(9, 40, 3, dtype=torch.float64)
    before = latents.clone()
    result = S2MSampler(G, clf).sample(0, 1, proposal=latents, seed=0)
    assert torch.equal(latents, before)
    assert torch.equal(DiscreteGenerator()(result.latents), result.samples)


@pytest.mark.parametrize("method", ["imh", "resample"])
def test_latents_that_a_function_drew_are_kept_as_they_were_drawn(method):
    G, clf = buffered_models("in place")

    def normal(n, generator):
        return torch.randn(n, 3, generator=generator, dtype=torch.float64)

    result = S2MSampler(G, clf).sample(0, 1, 60, 20, proposal=normal, method=method, seed=0)
    assert torch.equal(DiscreteGenerator()(result.latents), result.samples)
    assert result.latents.std() > 0.5


def test_a_stochastic_generator_whose_x_is_spoiled():
    class Noisy(RowwiseGenerator):
        def forward(self, z):
            return super().forward(z) + torch.randn(len(z), 1)

    result = draw(TwoBuffers(Noisy()), InPlace(RowwiseClassifier()), 50, 30, stochastic=True)
    log_w = s2m_log_weight(*RowwiseClassifier()(result.samples), 0, 1)
    assert torch.equal(log_w, result.log_weights)


# --- dtypes, devices, autocast --------------------------------------------------------------------


class Half(nn.Module):
    z_dim = 4

    def __init__(self, dtype):
        super().__init__()
        self.layer = nn.Linear(4, 3, dtype=dtype)

    def forward(self, z):
        return self.layer(z)


class LinearClassifier(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.layer = nn.Linear(3, 4, dtype=dtype)

    def forward(self, x):
        out = self.layer(x)
        return out[:, :3], out[:, 3]


def test_functions_say_themselves_what_their_modules_want():
    G, clf = seeded(lambda: Half(torch.bfloat16)), seeded(lambda: LinearClassifier(torch.float64))
    expected = draw(G, clf, 20, 5)
    for make_G, make_clf in (
        (lambda z: G(z), lambda x: clf(x)),
        (lambda z: G(z.bfloat16()), lambda x: clf(x.double())),
    ):
        assert_same(draw(make_G, make_clf, 20, 5, z_dim=4), expected)


def test_separate_classifiers_of_several_dtypes():
    halves = [seeded(lambda: nn.Linear(3, 1)), seeded(lambda: nn.Linear(3, 4, dtype=torch.bfloat16))]
    clf = Classifiers(D_v=halves[0], D_r=halves[1])
    class_logits, _, validity = clf(torch.randn(5, 3))
    assert class_logits.dtype == validity.dtype == torch.float32
    assert draw(RowwiseGenerator(), clf).log_weights.dtype == torch.float32


@pytest.mark.parametrize("of_clf", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("of_G", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_models_of_any_dtype_go_together(of_G, of_clf):
    G, clf = seeded(lambda: Half(of_G)), seeded(lambda: LinearClassifier(of_clf))
    result = draw(G, clf, 20, 5)
    assert result.samples.dtype == of_G
    assert result.latents.dtype == (torch.float64 if of_G == torch.float64 else torch.float32)
    with torch.no_grad():
        assert torch.equal(G(result.latents.to(of_G)), result.samples)


def test_an_enclosing_autocast_reaches_the_models_and_nothing_else():
    seen = []

    class Watching(LinearClassifier):
        def forward(self, x):
            out = self.layer(x)
            seen.append(out.dtype)
            return out[:, :3], out[:, 3]

    G, clf = seeded(lambda: Half(torch.float32)), seeded(lambda: Watching(torch.float32))
    full = "full"
    path = S2MSampler(G, clf).adapt((0, 1), how=Mixture(n_chains=64, covariance=full, n_components=1), seed=0)
    outside = S2MSampler(G, clf).sample((0, 1), (), 20, 3, proposal=path.mixture, seed=0)
    assert set(seen) == {torch.float32}
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        inside = S2MSampler(G, clf).sample((0, 1), (), 20, 3, proposal=path.mixture, seed=0)
    assert set(seen) == {torch.bfloat16}
    # Latents are those of the mixture, not rounded to 8 bits on their way.
    drawn = {tuple(row) for row in outside.latents.tolist()}
    assert any(tuple(row) in drawn for row in inside.latents.tolist())


def test_a_classifier_elsewhere_is_an_error_before_anything_is_drawn():
    G, clf = Half(torch.float32), LinearClassifier(torch.float32).to("meta")
    with pytest.raises(ValueError, match=r"clf is on meta, G on cpu.*plan=Plan\(device='cpu'\)"):
        S2MSampler(G, clf)


# --- priors ---------------------------------------------------------------------------------------


class FirstLatent(nn.Module):
    """x is the latent; a joint class is where its first number is large."""

    def __init__(self, n=3):
        super().__init__()
        self.z_dim = n

    def forward(self, z):
        return z


def of_first(x):
    """p(class 0 | x) grows with the first number; no validity."""
    logit = 3 * x[:, 0]
    return torch.stack([logit, -logit], 1), torch.zeros(len(x), dtype=x.dtype)


PRIORS = {
    "uniform": torch.distributions.Uniform(-1.0, 1.0),
    "truncated": TruncatedNormal(-0.7, 2.0),
    "normal": torch.distributions.Normal(torch.tensor([0.5, 0.0, 1.0]), torch.tensor([1.0, 2.0, 0.1])),
    "laplace": torch.distributions.Laplace(0.0, 1.0),
    "independent": torch.distributions.Independent(torch.distributions.Uniform(torch.zeros(3), torch.ones(3)), 1),
    "multivariate": torch.distributions.MultivariateNormal(
        torch.tensor([0.3, 0, 0]), torch.tensor([[1.0, 0.5, 0], [0.5, 2.0, 0], [0, 0, 1]])
    ),
    "student": torch.distributions.StudentT(5.0),  # no icdf: by its own sample
    "exponential": torch.distributions.Exponential(1.0),
}


def first_marginal(name, n=400_000):
    """Many draws of the first number, weighed with p(class 0 | x)."""
    torch.manual_seed(1)
    prior = PRIORS[name]
    x = prior.sample((n,)).double()
    x = x[:, 0] if x.ndim > 1 else x
    return x.numpy(), torch.sigmoid(6 * x).numpy()


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("method", ["imh", "resample", "mala", "mixture"])
def test_priors(name, method):
    """The first number of the samples follows its weighed prior: Kolmogorov-Smirnov at 1e-4."""
    call = {"mala": dict(method="mala", n_steps=60), "mixture": dict(proposal=Mixture(n_chains=256), n_steps=40)}
    options = call.get(method, dict(method=method, n_steps=40))
    sampler = S2MSampler(FirstLatent(), of_first, prior=PRIORS[name])
    if name == "student" and method in call:
        with pytest.raises(ValueError, match="the prior must be one that can be made of normals"):
            sampler.sample(0, (), 100, seed=0, **options)
        return
    result = sampler.sample(0, (), 1000, seed=5, **options)
    x, w = first_marginal(name)
    order = np.argsort(x)
    x, cdf = x[order], np.cumsum(w[order]) / w.sum()
    found = result.samples[:, 0].double().numpy()
    assert stats.kstest(found, lambda at: np.interp(at, x, cdf)).pvalue > 1e-4
    assert torch.equal(result.latents, result.samples)
    if hasattr(PRIORS[name], "support"):
        assert bool(PRIORS[name].support.check(result.samples).all())


def test_a_prior_gives_the_size_of_a_latent():
    assert S2MSampler(lambda z: z, of_first, prior=PRIORS["multivariate"]).models.z_shape == (3,)
    with pytest.raises(ValueError, match=r"prior is of latents of shape \(3,\), G takes \(4,\)"):
        S2MSampler(lambda z: z, of_first, z_dim=4, prior=PRIORS["multivariate"])
    with pytest.raises(TypeError, match=r"prior must be a torch.distributions.Distribution, got 'uniform'"):
        S2MSampler(lambda z: z, of_first, z_dim=4, prior="uniform")
    with pytest.raises(TypeError, match="Uniform'>: make one"):
        S2MSampler(lambda z: z, of_first, z_dim=4, prior=torch.distributions.Uniform)


def test_classes_in_the_place_of_modules():
    with pytest.raises(
        TypeError, match="clf must be a module or a function, got the class RowwiseClassifier: make"
    ):
        S2MSampler(RowwiseGenerator(), RowwiseClassifier)
    with pytest.raises(TypeError, match="G must be a module or a function, got the class RowwiseGenerator: make"):
        S2MSampler(RowwiseGenerator, RowwiseClassifier())


class Clamped(torch.distributions.Normal):
    """A normal distribution that draws in its own way."""

    def sample(self, shape=()):
        return super().sample(shape).clamp(-1, 1)


def test_a_distribution_that_draws_in_its_own_way_is_asked_to():
    sampler = S2MSampler(FirstLatent(), of_first, prior=Clamped(0.0, 1.0))
    assert sampler.sample(0, (), 200, 20, seed=0).latents.abs().max() <= 1
    with pytest.raises(ValueError, match="first_chain=8"):
        sampler.sample(0, (), 20, 5, seed=0, run=Run(first_chain=8))


def test_threads_that_draw_from_priors_of_their_own():
    def one(seed):
        return S2MSampler(FirstLatent(), of_first, prior=PRIORS["student"]).sample(0, (), 20, 60, seed=seed)

    alone = [one(seed) for seed in range(4)]
    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(one, range(4)))
    for a, b in zip(alone, together, strict=True):
        assert_same(a, b)
    assert torch.equal(state, torch.get_rng_state())


def test_draws_of_a_prior_depend_on_seed_chain_and_step_alone():
    for name in ("uniform", "student"):
        sampler = S2MSampler(FirstLatent(), of_first, prior=PRIORS[name])
        a, b = (sampler.sample(0, (), 30, 20, seed=4) for _ in range(2))
        assert_same(a, b)
    few = S2MSampler(FirstLatent(), of_first, prior=PRIORS["uniform"], plan=Plan(batch_size=3))
    sampler = S2MSampler(FirstLatent(), of_first, prior=PRIORS["uniform"])
    assert_same(few.sample(0, (), 30, 20, seed=4), sampler.sample(0, (), 30, 20, seed=4))


@pytest.mark.parametrize("name", PRIORS)
def test_a_checkpoint_and_a_plan_of_a_prior(tmp_path, name):
    def make(prior=PRIORS[name]):
        return S2MSampler(
            FirstLatent(), of_first, prior=prior, plan=Plan(batch_size=16, memory_format="contiguous")
        )

    expected = make().sample(0, (), 20, 30, seed=1)
    run = Run(tmp_path / "run")
    for _ in range(2):
        assert_same(make().sample(0, (), 20, 30, seed=1, run=run), expected)
    with pytest.raises(ValueError, match="is of a run with prior="):
        make(torch.distributions.Uniform(-2.0, 2.0)).sample(0, (), 20, 30, seed=1, run=run)
    assert make().tune() == make().models.plan


def test_truncated_normals():
    prior = TruncatedNormal(-1, 2)
    u = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    expected = stats.truncnorm(-1, 2)
    np.testing.assert_allclose(prior.icdf(u), expected.ppf(u), atol=1e-9)
    np.testing.assert_allclose(prior.cdf(prior.icdf(u)), u, atol=1e-9)
    for low, high in ((8.0, 9.0), (-9.0, -8.0), (5.0, 5.5)):
        far, its = TruncatedNormal(low, high), stats.truncnorm(low, high)
        np.testing.assert_allclose(far.icdf(u), its.ppf(u), rtol=1e-7)
        np.testing.assert_allclose(far.cdf(far.icdf(u)), u, atol=1e-7)
    np.testing.assert_allclose(prior.log_prob(prior.icdf(u)), expected.logpdf(expected.ppf(u)), atol=1e-9)
    assert prior.log_prob(torch.tensor(3.0)) == -torch.inf
    torch.manual_seed(0)
    assert stats.kstest(prior.sample((4000,)).numpy(), expected.cdf).pvalue > 1e-4
    assert prior.expand((3,)).sample((5,)).shape == (5, 3)
    for low, high in ((1, 1), (2, -2)):
        with pytest.raises(ValueError, match="low must be less than high"):
            TruncatedNormal(low, high)
    with pytest.raises(ValueError, match="no mass of the standard normal lies between 40 and 41"):
        TruncatedNormal(40, 41)


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["imh", "rejection", "resample", "mala"])
def test_masked_classes_are_never_drawn(method):
    """-inf for a class where x[:, 0] < 1: weight 0 in I, nothing in J."""

    class Masked(RowwiseClassifier):
        def forward(self, x):
            class_logits, validity = super().forward(x)
            masked = class_logits.masked_fill((x[:, :1] < 1) & (torch.arange(3) == 0), -torch.inf)
            return masked, validity

    sampler = S2MSampler(RowwiseGenerator(), Masked())
    found = sampler.sample(0, (), 60, 40, method=method, seed=0)
    assert len(found.samples) > 0
    assert (found.samples[:, 0] >= 1).all()
    in_J = sampler.sample(1, 0, 60, 40, method=method, seed=0)
    assert torch.isfinite(in_J.log_weights).all()


@pytest.mark.parametrize("size", [1e6, 1e7, 1e10])
@pytest.mark.parametrize("which", ["class", "validity", "negative validity"])
def test_logits_too_large_for_float32_are_named(which, size):
    def clf(x):
        class_logits, validity = RowwiseClassifier()(x.float())
        if which == "class":
            return class_logits * size, validity
        return class_logits, (validity.abs() + 1) * (size if which == "validity" else -size)

    G = lambda z: RowwiseGenerator()(z)  # noqa: E731
    name = which.split()[-1]
    with pytest.raises(
        ValueError, match=rf"clf's {name} logits over their temperature reach .*torch.float32 knows"
    ):
        draw(G, clf, z_dim=4)


def test_a_small_temperature_is_named():
    with pytest.raises(ValueError, match="logits over their temperature reach"):
        draw(RowwiseGenerator(), RowwiseClassifier(), weight=MinMax(temperature=1e-30))
    with pytest.raises(
        ValueError, match=r"temperature=1e-40 of \+0-1 is too small: torch.float32 cannot hold 1 over"
    ):
        draw(RowwiseGenerator(), RowwiseClassifier(), weight=MinMax(temperature=1e-40))


def test_masks_by_large_numbers_are_no_error():
    def clf(x):
        class_logits, validity = RowwiseClassifier()(x)
        return class_logits.masked_fill(torch.arange(3) == 2, -1e9), validity

    draw(RowwiseGenerator(), clf)


@pytest.mark.parametrize(
    "seed", [7, np.int8(7), np.uint64(7), np.array(7), torch.tensor(7), torch.tensor([7]), torch.tensor(7).byte()]
)
def test_seeds(seed):
    sampler = S2MSampler(RowwiseGenerator(), RowwiseClassifier())
    assert_same(sampler.sample(0, (), 10, 40, seed=seed), sampler.sample(0, (), 10, 40, seed=7))
    assert len(sampler.sample(0, (), 10, 40, seed=2**63 - 1).samples) == 10


@pytest.mark.parametrize(
    "seed", [True, np.True_, torch.tensor(True), "7", 7.0, np.float64(7), torch.tensor([7, 8]), torch.tensor(7.0)]
)
def test_what_is_no_seed(seed):
    with pytest.raises(TypeError, match="seed must be an integer"):
        S2MSampler(RowwiseGenerator(), RowwiseClassifier()).sample(0, (), 10, 5, seed=seed)


# --- a poor bound ---------------------------------------------------------------------------------


class Heavy(nn.Module):
    """One proposal in a thousand weighs a thousand times the mean."""

    def forward(self, x):
        heavy = x[:, 0] > stats.norm.ppf(1 - 1e-3)
        validity = torch.where(heavy, math.log(1e3), -4.0)
        return torch.zeros(len(x), 3), validity


def test_a_poor_bound_of_a_fixed_length_is_told_once():
    sampler = S2MSampler(lambda z: z[:, :3], Heavy(), z_dim=4)
    with pytest.warns(SamplingWarning) as caught:
        results = sampler.sample_targets([(0, ()), (1, ())], 500, 200, seed=0)
    assert len(caught) == 1
    bounds = [result.diagnostics.tv_bound for result in results]
    assert min(bounds) > 0.5
    said = str(caught[0].message)
    assert f"200 steps are too few for +0 ({bounds[0]:.2g}), +1 ({bounds[1]:.2g})" in said
    steps = int(said.split("About ")[1].split(" ")[0].replace(",", ""))
    ratio = max(result.diagnostics.max_weight_ratio for result in results)
    assert (1 - 1 / ratio) ** steps <= 0.1 < (1 - 1 / ratio) ** (steps - 1)
    with pytest.warns(SamplingWarning, match="3 steps are too few for .* About 7 steps would"):
        sampler.sample(0, (), 10, 3, method="resample", seed=0)


def test_the_progress_bar_tells_how_it_goes(capfd, monkeypatch):
    monkeypatch.setattr("spml_fast.sampling.run.BLOCK_SECONDS", 0.0)
    sampler = S2MSampler(RowwiseGenerator(), RowwiseClassifier(), plan=Plan(block_steps=5))
    for method in ("imh", "resample", "mala"):
        sampler.sample(0, 1, 50, 40, method=method, progress=True, seed=0)
        said = capfd.readouterr().err
        assert "bound=" in said or method == "mala"
        assert ("accepted=" in said) == (method != "resample")


# --- the plan -------------------------------------------------------------------------------------


def convolutional():
    return seeded(DCGAN), seeded(ImageClassifier)


def test_the_plan_comes_from_one_forward_pass():
    G, clf = convolutional()
    first, second = (S2MSampler(G, clf, z_dim=(8, 1, 1)).sample(0, (), 20, 3, seed=0) for _ in range(2))
    plan = first.diagnostics.plan
    assert plan == second.diagnostics.plan
    assert plan.memory_format == ("channels_last", "channels_last")
    assert all(size >= 8 and size & (size - 1) == 0 for size in plan.batch_size)
    assert Plan(**plan.to_dict()) == plan
    double = draw(G.double(), clf.double(), J=(), z_dim=(8, 1, 1), plan=None)
    assert double.diagnostics.plan.memory_format == ("contiguous", "contiguous")


def test_what_is_written_to_a_weight_while_it_is_borrowed_stays():
    conv = nn.Conv2d(3, 4, 3)
    other = torch.randn(4, 3, 3, 3)
    with channels_last(conv):
        conv.weight.data = other
    assert torch.equal(conv.weight, other)
    before = conv.weight.detach().clone()
    with channels_last(conv), torch.no_grad():
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)
        conv.weight.add_(1)
    assert conv.weight.is_contiguous()
    assert torch.equal(conv.weight, before + 1)


def test_models_and_samplers_can_be_copied():
    G, clf = convolutional()
    sampler = S2MSampler(G, clf, z_dim=(8, 1, 1))
    sampler.describe()
    assert copy.deepcopy(sampler).describe() == sampler.describe()


def test_modules_come_back_in_their_own_memory_format():
    G, clf = convolutional()
    G[2].weight.data = G[2].weight.data.contiguous(memory_format=torch.channels_last)
    tensors = [*G.parameters(), *clf.parameters()]
    before = [(t.data_ptr(), t.stride(), t.clone()) for t in tensors]
    draw(G, clf, J=(), z_dim=(8, 1, 1), plan=None)
    assert [(t.data_ptr(), t.stride()) for t in tensors] == [(p, s) for p, s, _ in before]
    assert all(torch.equal(t, value) for t, (_, _, value) in zip(tensors, before, strict=True))


@pytest.mark.parametrize(
    "plan",
    [
        Plan(batch_size=(4, 32)),
        Plan(batch_size=(32, 4), memory_format="channels_last"),
        Plan(batch_size=(5, None), memory_format=("channels_last", "contiguous")),
        Plan(memory_format=(None, torch.contiguous_format)),
    ],
)
def test_a_plan_changes_nothing_but_rounding(plan):
    G, clf = convolutional()
    found = draw(G, clf, 40, 12, J=(), z_dim=(8, 1, 1), plan=plan)
    used = found.diagnostics.plan
    for name in ("batch_size", "memory_format"):
        for said, ran in zip(getattr(plan, name) or (None, None), getattr(used, name), strict=True):
            assert said in (None, ran)
    expected = draw(G, clf, 40, 12, J=(), z_dim=(8, 1, 1), plan=Plan(batch_size=40, memory_format="contiguous"))
    assert (found.latents == expected.latents).flatten(1).all(1).float().mean() > 0.9
    with torch.no_grad():
        torch.testing.assert_close(found.samples, G(found.latents), rtol=1e-4, atol=1e-5)
    assert found.samples.is_contiguous()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(batch_size=(1, 2, 3)), ValueError, r"batch_size must be one value or a pair \(of G, of clf\)"),
        (dict(batch_size=(1, 0)), ValueError, "batch_size must be between"),
        (
            dict(memory_format="nhwc"),
            ValueError,
            "memory_format must be one of contiguous, channels_last, got 'nhwc'",
        ),
        (dict(memory_format=torch.preserve_format), ValueError, "memory_format must be one of"),
        (dict(precision=torch.int32), ValueError, "precision must be a floating-point dtype"),
    ],
)
def test_bad_plans(options, error, message):
    with pytest.raises(error, match=message):
        Plan(**options)


def test_tuning_measures_what_the_plan_leaves_open():
    G, clf = convolutional()
    plan = S2MSampler(G, clf, z_dim=(8, 1, 1), plan=Plan(batch_size=(16, None))).tune()
    assert plan.batch_size[0] == 16
    assert plan.batch_size[1] in (8, 16, 32, 64, 128, 256)
    fastest = {0: (64, "contiguous"), 1: (32, "channels_last")}

    def seconds(models, part, way, rows):
        return 1.0 if way == fastest[part] else 2.0 + way[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spml_fast.sampling.tuning._seconds_a_row", seconds)
        chosen = S2MSampler(G, clf, z_dim=(8, 1, 1)).tune()
    assert (chosen.batch_size, chosen.memory_format) == ((64, 32), ("contiguous", "channels_last"))
    result = draw(G, clf, J=(), z_dim=(8, 1, 1), plan=Plan(**plan.to_dict()))
    assert result.diagnostics.plan == plan


def test_the_rule(monkeypatch):
    """A quarter of the cache for the largest activation, to the nearest power of two, from 8 to 8,192 rows."""
    monkeypatch.setattr("spml_fast.sampling.plan.last_level_cache", lambda: 32 * 2**20)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    rows = {2**20: 8, 2**18: 32, 300_000: 32, 400_000: 16, 2**13: 1024, 4: 8192, 2**30: 8}
    assert {size: Cost(size, True).rows(cpu) for size in rows} == rows
    assert Cost(2**20, True).rows(cuda) == 1024
    assert Cost(1, True).memory_format(cpu) == "channels_last"
    assert Cost(1, False).memory_format(cpu) == Cost(1, True).memory_format(cuda) == "contiguous"


@pytest.mark.parametrize("groups", [1, 8, 4])
def test_what_one_forward_pass_shows(groups):
    """The largest activation is the second layer's; grouped convolutions but depthwise ones stay contiguous."""
    G = nn.Sequential(
        nn.Unflatten(1, (8, 1, 1)),
        nn.Upsample(scale_factor=16),
        nn.Conv2d(8, 16 if groups == 1 else 8, 1, groups=groups),
        nn.Conv2d(16 if groups == 1 else 8, 3, 16),
        nn.Flatten(),
    )
    trace, one = Trace(), Trace()
    for found, n in ((trace, 2), (one, 1)):
        with found:
            G(torch.randn(n, 8))
    cost = trace.cost(one, G, least=12)
    assert cost == Cost(16 * 16 * (16 if groups == 1 else 8) * 4, groups != 4)


def test_states_whose_x_is_kept(tmp_path):
    """Without a checkpoint and with default blocks G makes no x again; samples are the same."""
    calls = []

    class Counted(RowwiseGenerator):
        def forward(self, z):
            calls.append(len(z))
            return super().forward(z)

    found = {}
    for name, options in {
        "kept": {},
        "one process's checkpoint": dict(run=Run(tmp_path / "run")),
        "blocks": dict(plan=Plan(block_steps=7)),
        "many": dict(targets=[(0, ())] * 5000),
    }.items():
        sampler = S2MSampler(Counted(), RowwiseClassifier(), plan=options.pop("plan", None))
        sampler.describe()
        calls.clear()
        targets = options.pop("targets", [(0, 1)])
        found[name] = sampler.sample_targets(targets, 64, 20, seed=0, **options)[0]
        assert (sum(calls) > 64 * 20 + 4) == (name != "kept"), name
    for name in ("one process's checkpoint", "blocks"):
        assert_same(found[name], found["kept"])
    assert torch.equal(RowwiseGenerator()(found["kept"].latents), found["kept"].samples)


@pytest.mark.parametrize("at", ["G", "clf", "decoding"])
def test_out_of_memory_halves_batches_and_loses_nothing(at):
    class Small(nn.Module):
        def __init__(self, model, largest):
            super().__init__()
            self.model, self.largest = model, largest

        def forward(self, x):
            if len(x) > self.largest:
                raise torch.OutOfMemoryError
            return self.model(x)

    class Late(Small):
        """It runs out of memory once clf was called for the last time."""

        def forward(self, z):
            self.largest = 10 if at != "decoding" or clf.rows >= 2000 else 10**6
            return super().forward(z)

    class Seen(Small):
        rows = 0

        def forward(self, x):
            self.rows += len(x) if len(x) > PROBE_ROWS else 0
            return super().forward(x)

    G = Late(RowwiseGenerator(), 10) if at != "clf" else RowwiseGenerator()
    clf = Seen(RowwiseClassifier(), 10 if at == "clf" else 10**6)
    sampler = S2MSampler(G, clf, z_dim=4)
    n_steps = {"method": "resample"} if at == "decoding" else {}
    call = dict(n_samples=100, n_steps=20, seed=0) | n_steps
    result = sampler.sample(0, 1, **call)
    assert_same(result, S2MSampler(RowwiseGenerator(), RowwiseClassifier()).sample(0, 1, **call))
    assert min(result.diagnostics.plan.batch_size) <= 10
    with pytest.raises(torch.OutOfMemoryError):
        S2MSampler(G, clf, z_dim=4, plan=Plan(batch_size=64)).sample(0, 1, 100, 20, seed=0)


def test_samples_of_the_toys():
    """The toys above are what they say: the discrete generator draws its own population."""
    torch.manual_seed(0)
    states = DiscreteGenerator()(torch.randn(20_000, 3, dtype=torch.float64))[:, 0]
    counts = np.bincount(states.numpy(), minlength=len(GENERATED))
    assert stats.chisquare(counts, GENERATED.numpy() * counts.sum()).pvalue > 1e-4
    assert JointClass(0, 1) == JointClass((0,), (1,))
