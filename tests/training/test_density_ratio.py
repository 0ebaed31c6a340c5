import math
import signal

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from spml_fast import DensityRatioFit, Heads, train_density_ratio
from spml_fast.training.density_ratio import NEW_SPELLINGS, fit_temperature

pytestmark = pytest.mark.slow

# Data: two classes, N(+-1, 1) in the first coordinate, N(0, 1) in the second. Generator: N(0, s^2)
# in both, so that every log ratio has a closed form.
SCALE = 1.5


class Gaussian(nn.Module):
    """G(z) = s z; class-conditional, the label shifts the first coordinate."""

    z_dim = 2

    def __init__(self, conditional=False):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(SCALE))
        self.dropout = nn.Dropout(0.5)  # wrong unless G is run in eval mode
        if conditional:
            self.forward = self.labelled

    def forward(self, z):
        return self.dropout(self.scale * z)

    def labelled(self, z, label):
        shift = torch.stack([2.0 * label - 1, torch.zeros(len(label))], 1)
        return self.dropout(self.scale * z) + shift


def gaussians(n, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    x = rng.standard_normal((n, 2)).astype(np.float32)
    x[:, 0] += 2 * labels - 1
    return torch.from_numpy(x), torch.from_numpy(labels)


def mlp(outputs, width=32):
    return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, outputs))


def quadratic_features():
    class Features(nn.Module):
        def forward(self, x):
            return torch.cat([x, x.square()], 1)

    return nn.Sequential(Features(), nn.LazyLinear(16), nn.Tanh())


def train(*data, trunk=None, D_v=None, D_r=None, D_f=None, fit=None, **options):
    """``train_density_ratio`` for two epochs on the CPU; ``fit`` are options of the fit."""
    heads = Heads(trunk, D_v=D_v, D_r=D_r, D_f=D_f)
    fit = DensityRatioFit(**{"epochs": 2, "accelerator": "cpu", **(fit or {})})
    return train_density_ratio(*data, heads=heads, fit=fit, progress=False, **options)


def normal(x, mean=0.0, scale=1.0):
    return -((x - mean) ** 2) / (2 * scale**2) - math.log(scale) - math.log(2 * math.pi) / 2


def true_log_ratio(x):
    """log p_data(x) / p_G(x) of the unconditional generator."""
    data = torch.logaddexp(normal(x[:, 0], 1), normal(x[:, 0], -1)) - math.log(2)
    return data + normal(x[:, 1]) - normal(x, 0, SCALE).sum(1)


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)  # of the modules that a test makes


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    return train(
        Gaussian(), *gaussians(20_000), D_v=mlp(1), D_r=mlp(2), fit=dict(epochs=30, lr=1e-2, batch_size=256)
    )


def test_validity_is_the_log_ratio(trained):
    x, _ = gaussians(2000, seed=1)
    with torch.no_grad():
        _, fake, v = trained.clf(x)
    assert fake is None
    assert v.shape == (2000,)
    assert correlation(v, true_log_ratio(x)) > 0.95
    assert (v - true_log_ratio(x)).abs().mean() < 0.1


def test_class_logits_are_the_posterior(trained):
    x, _ = gaussians(2000, seed=1)
    with torch.no_grad():
        a, _, _ = trained.clf(x)
    truth = torch.sigmoid(2 * x[:, 0])  # N(1, 1) against N(-1, 1)
    assert (a.softmax(1)[:, 1] - truth).abs().mean() < 0.03


def test_report(trained):
    report = trained.report
    assert list(report.heads) == ["D_v", "D_r"]
    for name, head in report.heads.items():
        assert 1 <= head.epoch <= report.epochs <= 30
        raw, calibrated = head.log_likelihood
        assert calibrated >= raw - 1e-6
        assert all(0 <= e < 0.1 for e in head.ece)
        assert getattr(trained.clf, f"temperature_{name[-1]}") == pytest.approx(head.temperature)
        assert 0.7 < head.temperature < 1.4
        assert name in str(report)
    assert report.heads["D_v"].log_likelihood[1] > -math.log(2)
    assert len(str(report).splitlines()) == 3


def test_returned_module_is_plain(trained):
    assert not any(module.training for module in trained.clf.modules())
    assert {t.device.type for t in trained.clf.state_dict().values()} == {"cpu"}
    assert "temperature_v" in trained.clf.state_dict()


def test_conditional_generator():
    # Here p_G(x|c) = N(+-1, s^2): D_f's log odds are 2 x / s^2.
    G = Gaussian(conditional=True)
    ratio = train(G, *gaussians(8000), trunk=quadratic_features(), fit=dict(epochs=20, lr=1e-2))
    x, _ = gaussians(2000, seed=1)
    with torch.no_grad():
        a, f, v = ratio.clf(x)
    assert a.shape == f.shape == (2000, 2)
    assert v.shape == (2000,)
    truth = torch.sigmoid(2 * x[:, 0] / SCALE**2)
    assert (f.softmax(1)[:, 1] - truth).abs().mean() < 0.03
    assert list(ratio.report.heads) == ["D_v", "D_r", "D_f"]
    best = {head.epoch for head in ratio.report.heads.values()}
    assert len(best) == 1, "heads of one trunk keep one epoch"


def test_overconfident_head_is_tempered():
    class Sharp(nn.Module):
        """Right up to its scale, which training at this rate cannot mend."""

        def __init__(self):
            super().__init__()
            self.nudge = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return torch.stack([-5 * x[:, 0], 5 * x[:, 0] + self.nudge], 1)

    ratio = train(Gaussian(), *gaussians(2000), D_v=mlp(1), D_r=Sharp(), fit=dict(epochs=1, lr=1e-5))
    head = ratio.report.heads["D_r"]
    assert head.temperature == pytest.approx(5, rel=0.2)  # log odds 10 x instead of 2 x
    assert head.ece[1] < head.ece[0]


def test_same_seed_same_weights():
    def run(seed):
        torch.rand(3)  # the caller's generator does not matter
        torch.manual_seed(0)
        modules = {"D_v": mlp(1), "D_r": mlp(2)}
        torch.rand(seed + 1)
        return train(Gaussian(), *gaussians(400), **modules, seed=seed).clf.state_dict()

    first, again, other = run(3), run(3), run(4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_leaves_no_traces(tmp_path, monkeypatch, capfd, recwarn):
    monkeypatch.chdir(tmp_path)
    G, trunk = Gaussian(), nn.Linear(2, 4)
    G.dropout.eval()
    before = trunk.weight.detach().clone()
    torch.manual_seed(5)
    train(G, *gaussians(400), trunk=trunk)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3)), "the global generator was moved"
    assert G.training, "G's flags were not restored"
    assert not G.dropout.training, "G's flags were not restored"
    assert G.scale.grad is None
    assert G.scale.requires_grad
    assert torch.equal(trunk.weight, before), "the modules passed must stay as they are"
    assert not list(tmp_path.iterdir()), "nothing is written"
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)


class Pairs(Dataset):
    """Not in memory, as far as anyone can tell."""

    def __init__(self, x, labels):
        self.x, self.labels = x, labels

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row], int(self.labels[row])


def test_every_form_of_the_data():
    x, labels = gaussians(400)
    from_tensors = train(Gaussian(), x, labels, trunk=nn.Linear(2, 4)).report
    assert "D_r" in from_tensors.heads
    torch.manual_seed(0)
    trunk = nn.Linear(2, 4)
    tensors = train(Gaussian(), x, labels, trunk=trunk).clf.state_dict()
    arrays = train(Gaussian(), x.double().numpy(), labels.int().numpy(), trunk=trunk)
    stored = train(Gaussian(), TensorDataset(x, labels), trunk=trunk)
    for same in (arrays, stored):
        assert all(torch.equal(tensors[k], t) for k, t in same.clf.state_dict().items())
    lazy = train(Gaussian(), Pairs(x, labels), trunk=trunk)
    assert lazy.report.epochs == 2


def test_plain_function_as_generator_and_augmentation():
    seen = []

    def augment(x):
        seen.append(len(x))
        return x + 0.1

    ratio = train(
        lambda z: 1.5 * z, *gaussians(400), D_v=mlp(1), D_r=mlp(2), z_dim=2,
        fit=dict(augment=augment, batch_size=80),
    )  # fmt: skip
    assert ratio.clf.D_f is None
    assert seen[1:] == [160] * 8, "real and generated, in training only"


def test_patience_stops_early():
    def run(patience):
        return train(
            Gaussian(), *gaussians(100), D_v=mlp(1, 256), D_r=mlp(2, 256),
            fit=dict(epochs=40, lr=3e-2, patience=patience),
        ).report  # fmt: skip

    report = run(1)
    assert report.epochs < 40
    assert run(40).epochs == 40


class Interrupted:
    """A generator during whose nth call the user presses Ctrl+C."""

    def __init__(self, calls):
        self.calls = calls

    def __call__(self, z):
        self.calls -= 1
        if self.calls == 0:
            signal.raise_signal(signal.SIGINT)
        return SCALE * z


def test_interrupt_keeps_the_best_so_far():
    # 80 instances to train on in batches of 40, 20 held out: three calls per epoch, one to probe.
    handler = signal.getsignal(signal.SIGINT)
    arguments = {"z_dim": 2, "fit": dict(batch_size=40, epochs=9), "D_v": mlp(1), "D_r": mlp(2)}
    with pytest.warns(UserWarning, match="interrupted after 2 of 9 epochs") as warned:
        ratio = train(Interrupted(9), *gaussians(100), **arguments)
    assert warned[0].filename == __file__, "the caller is told, not the library"
    assert ratio.report.interrupted
    assert ratio.report.epochs == 2
    assert not ratio.clf.training
    with pytest.raises(KeyboardInterrupt):
        train(Interrupted(3), *gaussians(100), **arguments)
    assert signal.getsignal(signal.SIGINT) is handler, "Ctrl+C must go on working"


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_precision(precision):
    ratio = train(Gaussian(), *gaussians(400), trunk=nn.Linear(2, 4), fit=dict(precision=precision))
    assert {p.dtype for p in ratio.clf.parameters()} == {torch.float32}


def bad(x=None, labels=None, G=None, **kwargs):
    good_x, good_labels = gaussians(40)
    kwargs = {"trunk": nn.Linear(2, 4), **kwargs} if kwargs.keys() <= {"fit"} else kwargs
    return train(
        Gaussian() if G is None else G,
        good_x if x is None else x,
        good_labels if labels is None else labels,
        **kwargs,
    )


def with_nan():
    x, _ = gaussians(40)
    x[7, 1] = math.nan
    return x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(39, 2)}, r"len\(labels\) = 40, got \(39, 2\)"),
        ({"x": torch.zeros(40)}, r"got \(40,\)"),
        ({"x": with_nan()}, r"NaN or inf in 1 instances, the first is x\[7\]"),
        ({"labels": torch.zeros(40)}, "integers.*float32"),
        ({"labels": torch.zeros(40, 2, dtype=torch.int64)}, r"\(40, 2\)"),
        ({"labels": torch.arange(40) % 2 - 1}, r"labels\[0\] = -1 \(20 are outside\)"),
        ({"n_classes": 1, "D_v": mlp(1), "D_r": mlp(1)}, r"\[0, 1\), got labels\[1\] = 1"),
        ({"labels": torch.zeros(40, dtype=torch.int64)}, "at least two classes, got n_classes=1"),
        ({"n_classes": 3, "D_v": mlp(1), "D_r": mlp(3)}, "class 2 has 0"),
        ({"fit": dict(holdout=0.0)}, r"fit: holdout must be a share in \(0, 1\), got 0"),
        ({"fit": dict(holdout=1.0)}, "fit: holdout"),
        ({"fit": dict(holdout=0.01), "trunk": nn.Linear(2, 4)}, "39 to train on and 1 held out"),
        ({"fit": dict(epochs=0)}, "fit: epochs must be an integer, at least 1, got 0"),
        ({"fit": dict(batch_size=0)}, "fit: batch_size must be an integer, at least 1, got 0"),
        ({"fit": dict(patience=1.5)}, "fit: patience must be an integer, at least 1, got 1.5"),
        ({"fit": dict(lr=-1.0)}, "fit: lr must be positive, got -1"),
        ({"fit": dict(lr=math.nan)}, "fit: lr must be positive, got nan"),
        ({"fit": dict(weight_decay=-1.0)}, "fit: weight_decay must not be negative"),
        ({"D_v": mlp(1)}, r"\['D_r'\] missing"),
        ({"seed": 1}, r"\['D_v', 'D_r'\] missing"),
        ({"trunk": nn.Linear(2, 4), "D_v": mlp(1)}, "either trunk or"),
        ({"D_v": mlp(2), "D_r": mlp(2)}, r"D_v must map x to \(2,\) or \(2, 1\).*got \(2, 2\)"),
        ({"D_v": mlp(1), "D_r": mlp(3)}, r"D_r must map x to \(2, 2\).*got \(2, 3\)"),
        ({"trunk": nn.Unflatten(1, (2, 1))}, r"trunk must map x to \(B, F\)"),
        ({"G": lambda z: z}, "pass z_dim"),
        ({"z_dim": 0, "trunk": nn.Linear(2, 4)}, "z_dim must be a positive int.*got 0"),
        ({"z_dim": 2, "G": lambda z: z[:, :1], "trunk": nn.Linear(2, 4)}, r"\(2, 2\).*\(2, 1\)"),
        ({"z_dim": 2, "G": lambda z: z / 0, "trunk": nn.Linear(2, 4)}, "G returned NaN or inf"),
        ({"G": Gaussian(True), "D_v": mlp(1), "D_r": mlp(2)}, "D_f missing"),
        ({"conditional": False, "D_v": mlp(1), "D_r": mlp(2), "D_f": mlp(2)}, "conditional=False"),
        ({"fit": dict(augment=lambda x: x[:1]), "trunk": nn.Linear(2, 4)}, "augment must keep the shape"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        bad(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(40, 2, dtype=torch.uint8)}, "floating.*uint8"),
        ({"x": [[0.0, 0.0]]}, "list"),
        ({"labels": [0, 1]}, "list"),
        ({"G": 3}, "callable, got int"),
        ({"trunk": lambda x: x}, "heads: trunk must be a torch.nn.Module, got function"),
        ({"D_v": nn.Linear, "D_r": mlp(2)}, "heads: D_v must be a torch.nn.Module, got type"),
        ({"fit": dict(augment=3)}, "fit: augment must be callable, got int"),
    ],
)
def test_wrong_types(arguments, message):
    with pytest.raises(TypeError, match=message):
        bad(**arguments)


@pytest.mark.parametrize("name", NEW_SPELLINGS)
def test_an_old_keyword_says_the_new_spelling(name):
    new = rf"(heads=Heads|fit=DensityRatioFit)\(.*{name}"
    match = f"train_density_ratio no longer has the argument '{name}'; write {new}"
    with pytest.raises(TypeError, match=match):
        train_density_ratio(Gaussian(), *gaussians(40), **{name: None})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "missing 1 required keyword-only argument: 'heads'"),
        ({"heads": nn.Linear(2, 4)}, r"heads must be Heads\(\.\.\.\), got Linear"),
        (
            {"heads": Heads(nn.Linear(2, 4)), "fit": {"epochs": 2}},
            r"fit must be DensityRatioFit\(\.\.\.\), got dict",
        ),
        ({"heads": Heads(nn.Linear(2, 4)), "epohcs": 2}, "unexpected keyword argument 'epohcs'"),
    ],
)
def test_values_of_another_kind(arguments, message):
    with pytest.raises(TypeError, match=message):
        train_density_ratio(Gaussian(), *gaussians(40), **arguments)


def test_bad_datasets():
    x, labels = gaussians(40)
    with pytest.raises(ValueError, match="labels must be None"):
        train(Gaussian(), Pairs(x, labels), labels, trunk=nn.Linear(2, 4))
    with pytest.raises(ValueError, match="item 7 of the dataset"):
        train(Gaussian(), Pairs(with_nan(), labels), trunk=nn.Linear(2, 4))
    ragged = Pairs([*x[:39], torch.zeros(3)], labels)
    with pytest.raises(ValueError, match=r"item 39 has shape \(3,\)"):
        train(Gaussian(), ragged, trunk=nn.Linear(2, 4))
    with pytest.raises(ValueError, match="empty"):
        train(Gaussian(), Pairs(x[:0], labels[:0]), trunk=nn.Linear(2, 4))


def test_diverging_training_is_reported():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.scale * x if len(x) == 1 else x * self.scale / 0

    with pytest.raises(ValueError, match="D_r gives NaN or inf on held-out data after epoch 1"):
        train(Gaussian(), *gaussians(40), D_v=mlp(1), D_r=Broken())


def test_held_out_examples_that_are_all_told_apart_do_not_make_logits_grow():
    x, labels = gaussians(400)
    far = x + torch.tensor([0.0, 12.0])  # where the generator never comes
    ratio = train(
        Gaussian().eval(), far, labels, D_v=mlp(1), D_r=mlp(2), fit=dict(epochs=30, lr=1e-2, patience=30)
    )
    head = ratio.report.heads["D_v"]
    assert head.log_likelihood[1] > -0.05  # told apart, nearly or without an error
    assert head.temperature > 0.25  # maximum likelihood alone would go down to the least that it may


def test_the_temperature_is_that_of_maximum_likelihood_with_one_unseen_example_of_each_class():
    torch.manual_seed(0)
    logits = 3 * torch.randn(500, 4, dtype=torch.float64)
    targets = torch.distributions.Categorical(logits=logits / 2.5).sample()
    n, k = logits.shape
    t = torch.linspace(0.5, 5, 20_001, dtype=torch.float64)
    log_p = torch.log_softmax(logits / t[:, None, None], 2)
    smoothed = (n * functional.one_hot(targets, k) + 1) / (n + k)  # each row's targets sum to 1
    best = float(t[(log_p * smoothed).sum((1, 2)).argmax()])
    assert fit_temperature("D_r", logits, targets) == pytest.approx(best, abs=1e-3)
    assert best == pytest.approx(2.5, rel=0.15)


# --- generators and heads in the styles that others write them in -------------------------------------


class Style(Gaussian):
    """One-hot labels, as StyleGAN takes them, and x among other things."""

    c_dim = 2

    def forward(self, z, c):
        assert c.dtype == z.dtype
        x = self.dropout(self.scale * z) + (2 * c[:, 1:] - 1) * torch.tensor([1.0, 0.0], dtype=z.dtype)
        return {"image": x, "w": z}


class OptionalLabel(Gaussian):
    def forward(self, z, y=None):
        return self.labelled(z, y)


def test_generators_of_any_convention():
    x, labels = gaussians(200)
    torch.manual_seed(0)
    heads = dict(D_v=mlp(1), D_r=mlp(2), D_f=mlp(2))
    expected = train(Gaussian(conditional=True), x, labels, **heads).clf.state_dict()
    for G in (Style(), OptionalLabel(), torch.compile(Gaussian(conditional=True), backend="eager")):
        found = train(G, x, labels, **heads).clf.state_dict()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, msg=name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_generators_of_other_dtypes(dtype):
    x, labels = gaussians(200)
    clf = train(Gaussian().to(dtype), x, labels, D_v=mlp(1), D_r=mlp(2)).clf
    assert clf(x)[0].dtype == torch.float32


def test_a_generator_inside_a_function_is_in_eval_mode():
    G, seen = Gaussian(), []

    def generate(z):
        seen.append(G.training)
        return G(z)

    train(generate, *gaussians(200), D_v=mlp(1), D_r=mlp(2), z_dim=2)
    assert not any(seen)
    assert G.training


def test_latents_of_a_prior():
    seen = []

    def generate(z):
        seen.append(z)
        return 3 * z

    prior = torch.distributions.Uniform(-0.5, 0.5)
    for given in (prior, torch.distributions.Beta(1.0, 1.0)):
        seen.clear()
        train(generate, *gaussians(200), D_v=mlp(1), D_r=mlp(2), z_dim=2, fit=dict(prior=given))
        assert bool(given.support.check(torch.cat(seen)).all())
    with pytest.raises(TypeError, match=r"prior must be a torch.distributions.Distribution"):
        train(generate, *gaussians(200), D_v=mlp(1), D_r=mlp(2), z_dim=2, fit=dict(prior="uniform"))


class Squeezed(nn.Sequential):
    def forward(self, x):
        return super().forward(x).squeeze()


def test_heads_that_squeeze_a_single_row():
    """205 instances, a fifth held out, in batches of 40: the last holds one row."""
    x, labels = gaussians(205)
    torch.manual_seed(0)
    heads = dict(D_v=mlp(1), D_r=mlp(2))
    expected = train(Gaussian(), x, labels, **heads, fit=dict(batch_size=40)).clf.state_dict()
    squeezed = {name: Squeezed(*head) for name, head in heads.items()}
    clf = train(Gaussian(), x, labels, **squeezed, fit=dict(batch_size=40)).clf
    for name, tensor in expected.items():
        assert torch.equal(clf.state_dict()[name], tensor), name
    assert [part.shape for part in clf(x[:1]) if part is not None] == [(1, 2), (1,)]


def frozen(module, how):
    if how == "weights":
        module.requires_grad_(False)
    return module.eval() if how == "mode" else module


@pytest.mark.parametrize("how", ["weights", "mode", "not"])
def test_frozen_batch_norms_stay_as_they_are(how):
    trunk = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 8), nn.Tanh())
    frozen(trunk[0], how)
    clf = train(Gaussian(), *gaussians(200), trunk=trunk).clf
    learned = clf.trunk[0].num_batches_tracked > 0
    assert learned == (how == "not")
    assert (clf.trunk[0].running_mean == 0).all() == (how != "not")


def test_a_trunk_that_comes_in_eval_mode_is_trained():
    trunk = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 8), nn.Tanh()).eval()
    clf = train(Gaussian(), *gaussians(200), trunk=trunk).clf
    assert clf.trunk[0].num_batches_tracked > 0


def test_generators_of_other_devices_are_not_seeded(monkeypatch):
    """``torch.manual_seed`` would seed every device, and give none but the one in use its state back."""
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("every device was seeded"))
    train(Gaussian(), *gaussians(200), D_v=mlp(1), D_r=mlp(2))
