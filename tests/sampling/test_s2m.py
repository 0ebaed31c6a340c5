"""The sampler: calling conventions, invariances, bookkeeping, bad input."""

import itertools
import threading
import time
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from toys import (
    PROBE_ROWS,
    DiscreteClassifier,
    DiscreteGenerator,
    RowwiseClassifier,
    RowwiseGenerator,
    SmallConvClassifier,
    SmallConvGenerator,
    assert_same,
    rowwise,
)

import spml_fast
from spml_fast import MinMax, Plan, Run, S2MSampler, reference
from spml_fast.sampling import s2m_log_weight

ALL_TARGETS = [((0,), (1, 2)), ((1,), (0, 2)), ((2,), (0, 1)), ((0, 1), (2,)), ((0, 2), (1,)), ((1, 2), (0,))]
ALL_TARGETS.append(((0, 1, 2), ()))


def on(device, **plan):
    return rowwise(plan=Plan(device=device, **plan))


# --- what the user types --------------------------------------------------------------------------


def test_s2m_sample(device):
    G, clf = SmallConvGenerator().to(device), SmallConvClassifier().to(device)
    x = spml_fast.s2m_sample(G, clf, [0, 2], 1, n_samples=10, n_steps=30, seed=0)
    assert x.shape == (10, 1, 8, 8)
    assert x.device.type == device.type


def test_result_fields(device):
    G, clf = SmallConvGenerator().to(device), SmallConvClassifier().to(device)
    result = S2MSampler(G, clf, weight=MinMax(temperature=0.7)).sample(0, (1, 2), n_samples=50, n_steps=40, seed=1)
    G.eval(), clf.eval()
    with torch.no_grad():
        torch.testing.assert_close(G(result.latents), result.samples)
        class_logits, validity = clf(result.samples)
    log_w = s2m_log_weight(class_logits, validity[:, 0], 0, (1, 2), weight=MinMax(temperature=0.7))
    torch.testing.assert_close(log_w, result.log_weights, rtol=1e-4, atol=1e-4)
    assert result.joint_class == spml_fast.JointClass((0,), (1, 2))
    d = result.diagnostics
    assert (d.n_chains, d.n_steps, d.chains_without_support, d.interrupted) == (50, 40, 0, False)
    assert 0 < d.acceptance_rate <= d.support_rate <= 1
    assert 0 < d.ess_per_proposal <= 1 <= d.max_weight_ratio
    assert d.tv_bound == pytest.approx((1 - 1 / d.max_weight_ratio) ** 40)
    assert d.proposals_per_second > 0
    assert set(d.to_dict()) >= {"acceptance_rate", "seconds_in_generator", "seconds_in_classifier"}


def test_samples_can_be_trained_on():
    result = S2MSampler(SmallConvGenerator(), SmallConvClassifier()).sample(0, (), 8, 10, seed=1)
    layer = nn.Linear(64, 1)
    layer(result.samples.flatten(1)).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("form", ["two", "three", "none", "dict", "column", "numpy-free list"])
def test_classifier_conventions(form):
    plain = RowwiseClassifier()

    def clf(x):
        a, v = plain(x)
        return {
            "two": (a, v),
            "three": (a, a, v),
            "none": (a, None, v),
            "dict": {"class_logits": a, "validity_logit": v},
            "column": (a, v[:, None]),
            "numpy-free list": [a, None, v],
        }[form]

    expected = rowwise().sample(0, 1, 20, 30, seed=2)
    assert_same(S2MSampler(RowwiseGenerator(), clf).sample(0, 1, 20, 30, seed=2), expected)


class OfficialGenerator(nn.Module):
    """The calling convention of the official S2M code: G(z, label), latent size known to the module."""

    z_dim = 4

    def __init__(self):
        super().__init__()
        self.shared = nn.Embedding(3, 2)
        self.linear = nn.Linear(6, 3 * 4 * 4)

    def forward(self, z, label):
        return self.linear(torch.cat([z, self.shared(label)], 1)).view(-1, 3, 4, 4)


class OfficialClassifier(nn.Module):
    """Returns (real_logits, fake_logits or None, validity of shape (B,))."""

    def __init__(self, with_fake=True):
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU())
        self.validity, self.real, self.fake = nn.Linear(16, 1), nn.Linear(16, 3), nn.Linear(16, 3)
        self.with_fake = with_fake

    def forward(self, x):
        h = self.trunk(x)
        return self.real(h), self.fake(h) if self.with_fake else None, self.validity(h).squeeze(1)


def test_official_modules_drop_in(device):
    G, clf = OfficialGenerator().to(device), OfficialClassifier().to(device)
    result = S2MSampler(G, clf).sample((1, 2), (0,), 40, 60, seed=0)
    assert result.samples.shape == (40, 3, 4, 4)
    label = torch.full((40,), 1, device=device)
    with torch.no_grad():
        torch.testing.assert_close(G(result.latents, label), result.samples)
        real, fake, validity = clf(result.samples)
    expected = reference.s2m_log_weight(
        real.double(), validity.double(), (1, 2), (0,), fake_logits=fake.double(), proposal_class=1
    )
    torch.testing.assert_close(result.log_weights.double(), expected, rtol=1e-3, atol=1e-3)
    other = S2MSampler(G, clf).sample((1, 2), (0,), 40, 60, seed=0, proposal_class=2)
    assert not torch.equal(other.samples, result.samples)


def test_conditional_pools_equal_separate_runs():
    G, clf = DiscreteGenerator(conditional=True), DiscreteClassifier(DiscreteGenerator(conditional=True))
    sampler = S2MSampler(G, clf)
    together = sampler.sample_targets(ALL_TARGETS, 30, 80, seed=5)
    for target, result in zip(ALL_TARGETS, together, strict=True):
        assert_same(sampler.sample(*target, 30, 80, seed=5), result)


def test_a_label_with_a_default_is_not_required():
    class G(RowwiseGenerator):
        def forward(self, z, label=None):
            assert label is None
            return super().forward(z)

    assert_same(
        S2MSampler(G(), RowwiseClassifier()).sample(0, 1, 5, 5, seed=0), rowwise().sample(0, 1, 5, 5, seed=0)
    )


@pytest.mark.parametrize("z_dim", [4, (4,), (2, 2)])
def test_latent_shapes(z_dim):
    generator = RowwiseGenerator()
    result = S2MSampler(lambda z: generator(z.flatten(1)), RowwiseClassifier(), z_dim=z_dim).sample(
        0, 1, 20, 20, seed=0
    )
    assert result.latents.shape == (20, *(z_dim if isinstance(z_dim, tuple) else (z_dim,)))
    assert torch.equal(result.samples, rowwise().sample(0, 1, 20, 20, seed=0).samples)


# --- same seed, same samples ----------------------------------------------------------------------


@pytest.mark.slow
def test_same_samples_whatever_the_batches(device, threads):
    results = []
    for n_threads, batch_size, block_steps in itertools.product((1, 2), (64, 1000, 10**6), (1, 7, 200)):
        threads(n_threads)
        sampler = on(device, batch_size=batch_size, block_steps=block_steps)
        results.append(sampler.sample((0, 1), 2, 150, 200, seed=3))
    for result in results[1:]:
        assert_same(result, results[0])
        assert result.diagnostics.ess_per_proposal == results[0].diagnostics.ess_per_proposal
    assert_same(on(device).sample((0, 1), 2, 150, 200, seed=3), results[0])


def test_chain_5_of_10_is_chain_5_of_10000(device):
    few = on(device).sample(0, 1, 10, 50, seed=4)
    many = on(device).sample(0, 1, 10_000, 50, seed=4)
    shifted = on(device).sample(0, 1, 5, 50, seed=4, run=Run(first_chain=5))
    assert torch.equal(few.samples, many.samples[:10])
    assert torch.equal(shifted.samples, few.samples[5:])


def test_one_pool_equals_separate_runs(device):
    sampler = rowwise(
        plan=Plan(device=device), weight=MinMax(gamma=0.5, gamma_J=1.0, temperature=lambda I, J: 1.0 / len(I))
    )
    together = sampler.sample_targets(ALL_TARGETS, 40, 60, seed=8)
    for target, result in zip(ALL_TARGETS, together, strict=True):
        assert_same(sampler.sample(*target, 40, 60, seed=8), result)


def test_seeds_differ_and_the_default_follows_torch():
    sampler = rowwise()
    a, b = (sampler.sample(0, 1, 20, 40, seed=s).samples for s in (0, 1))
    assert not torch.equal(a, b)
    torch.manual_seed(3)
    c = sampler.sample(0, 1, 20, 40).samples
    d = sampler.sample(0, 1, 20, 40).samples
    torch.manual_seed(3)
    assert torch.equal(sampler.sample(0, 1, 20, 40).samples, c)
    assert not torch.equal(c, d)
    assert torch.equal(
        sampler.sample(0, 1, 5, 40, seed=2**64 - 1).samples, sampler.sample(0, 1, 5, 40, seed=-1).samples
    )


# --- proposals ------------------------------------------------------------------------------------


def test_explicit_latents(device):
    drawn = on(device).sample(0, 1, 30, 25, seed=1)
    z = torch.randn(25, 30, 4, device=device)
    given = on(device).sample(0, 1, proposal=z, seed=1)
    assert given.diagnostics.n_chains == 30
    assert given.diagnostics.n_steps == 25
    chains = given.chains
    assert all((z[:, c] == latent).all(1).any() for c, latent in zip(chains, given.latents, strict=True))
    assert not torch.equal(given.samples, drawn.samples)
    assert_same(on(device).sample(0, 1, proposal=z.cpu().numpy(), seed=1), given)


@pytest.mark.parametrize("block_steps", [1, 4, 50])
def test_proposal_callable(block_steps, device):
    def draw(n, generator):
        return torch.randn(n, 4, generator=generator, device=generator.device) * 1.1

    result = on(device, block_steps=block_steps).sample(0, 1, 30, 50, seed=1, proposal=draw)
    assert torch.equal(RowwiseGenerator()(result.latents), result.samples)
    assert_same(on(device).sample(0, 1, 30, 50, seed=1, proposal=draw), result)


@pytest.mark.parametrize("block_steps", [1, 4, 50])
def test_a_stochastic_generator_keeps_its_samples(block_steps):
    seen = []

    class Noisy(RowwiseGenerator):
        def forward(self, z):
            x = super().forward(z) + torch.randn(len(z), 1)
            seen.append(x)
            return x

    sampler = S2MSampler(Noisy(), RowwiseClassifier(), stochastic=True, plan=Plan(block_steps=block_steps))
    sampler.describe()
    seen.clear()  # of the probe
    result = sampler.sample_targets([(0, 1), (1, 0)], 20, 50, seed=0)[1]
    offered = torch.cat(seen)
    assert len(offered) == 20 * 50  # nothing is generated again
    assert all((offered == x).all(1).any() for x in result.samples)
    log_w = s2m_log_weight(*RowwiseClassifier()(result.samples), 1, 0)
    assert torch.equal(log_w, result.log_weights)


# --- modules are left as they were ----------------------------------------------------------------


def test_eval_mode_is_used_and_restored():
    G, clf = SmallConvGenerator(), SmallConvClassifier()
    clf.trunk.eval()
    modes = [m.training for m in (*G.modules(), *clf.modules())]
    before = {k: v.clone() for k, v in G.state_dict().items()}
    S2MSampler(G, clf).sample(0, (), 10, 5, seed=0)
    assert [m.training for m in (*G.modules(), *clf.modules())] == modes
    assert all(torch.equal(before[k], v) for k, v in G.state_dict().items())  # batch norm saw nothing

    def broken(x):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        S2MSampler(G, broken).sample(0, (), 10, 5)
    assert G.training


def test_two_threads_share_a_model():
    """The first to come is the first to go: the other's model stays in eval mode until it is done, too."""
    begun, over = threading.Event(), threading.Event()
    modes = []

    class Shared(RowwiseGenerator):
        def forward(self, z):
            if len(z) <= PROBE_ROWS:
                pass
            elif threading.current_thread() is not first:
                begun.set()
                assert over.wait(30)
                modes.append(self.training)
            else:
                assert begun.wait(30)
            return super().forward(z)

    def sample():
        S2MSampler(G, RowwiseClassifier()).sample(0, (), 10, 5, seed=0)

    G = Shared()
    first, second = threading.Thread(target=sample), threading.Thread(target=sample)
    first.start()
    while G.training:
        time.sleep(0.001)
    second.start()
    first.join(30)
    over.set()
    second.join(30)
    assert modes
    assert not any(modes)
    assert G.training


# --- nothing that a model returned is kept without a copy -----------------------------------------


@pytest.mark.parametrize("method", ["imh", "rejection", "resample"])
def test_a_classifier_may_work_in_place_on_what_is_kept(method):
    """The samples of a stochastic G are what G returned, not what clf made of it."""

    class InPlace(RowwiseClassifier):
        def forward(self, x):
            return super().forward(x.mul_(2).sub_(0.1))

    def draw(clf):
        return rowwise(clf=clf, stochastic=True).sample(0, (), 30, 8, seed=0, method=method)

    result = draw(InPlace())
    assert torch.equal(result.samples, RowwiseGenerator()(result.latents))


def test_autocast_and_channels_last(device):
    seen = {}

    class Clf(SmallConvClassifier):
        def forward(self, x):
            out = super().forward(x)
            seen["dtype"], seen["layout"] = out[0].dtype, x.is_contiguous(memory_format=torch.channels_last)
            return out

    plan = Plan(device=device, precision=torch.bfloat16, memory_format=torch.channels_last)
    sampler = S2MSampler(SmallConvGenerator(), Clf(), plan=plan)
    result = sampler.sample(0, 1, 20, 20, seed=0)
    assert seen == {"dtype": torch.bfloat16, "layout": True}
    assert result.log_weights.dtype == torch.float32


def test_progress_counts_every_proposal(capsys):
    rowwise().sample(0, 1, 10, 100, seed=0, progress=True)
    assert "1.00k/1.00k" in capsys.readouterr().err


# --- chains without support, interruption ---------------------------------------------------------


def test_chains_that_never_meet_the_support_have_no_sample():
    def clf(x):  # only rare proposals have positive weight
        a = torch.stack([torch.where(x[:, 0] > 3.2, 5.0, -5.0), torch.zeros(len(x))], 1)
        return a, torch.zeros(len(x))

    sampler = S2MSampler(RowwiseGenerator(), clf)
    with pytest.warns(UserWarning, match=r"of 100 chains never met the support of \+0-1 in 20 steps"):
        result = sampler.sample(0, 1, 100, 20, seed=0)
    lost = result.diagnostics.chains_without_support
    assert 0 < lost < 100
    assert result.samples.shape == (100 - lost, 3)
    assert (result.samples[:, 0] > 3.2).all()
    assert len(set(result.chains.tolist())) == 100 - lost
    with pytest.warns(UserWarning, match="100 of 100"):
        empty = S2MSampler(RowwiseGenerator(), lambda x: (x * 0, x[:, 0])).sample(0, 1, 100, 5, seed=0)
    assert empty.samples.shape == (0, 3)
    assert empty.latents.shape == (0, 4)
    assert empty.diagnostics.tv_bound == 1.0
    assert empty.diagnostics.ess_per_proposal == 0.0


@pytest.mark.parametrize("method", ["imh", "rejection"])
@pytest.mark.parametrize(
    ("call", "n_steps", "steps_of_two"), [(3, 20, (15, 0)), (6, 30, (30, 0)), (6, 20, (20, 10))]
)
def test_ctrl_c_keeps_pools_that_are_finished(call, n_steps, steps_of_two, method):
    """Of three pools, one for each proposal class, in blocks of five steps."""
    calls = itertools.count()
    targets = [((0,), (1,)), ((1,), ()), ((2,), ())]

    class Interrupted(DiscreteClassifier):
        def forward(self, x):
            if len(x) > PROBE_ROWS and next(calls) == call:
                raise KeyboardInterrupt
            return super().forward(x)

    def draw(clf, n_steps):
        sampler = S2MSampler(G, clf, plan=Plan(batch_size=10**6, block_steps=5))
        return sampler.sample_targets(targets, 40, n_steps, seed=0, method=method)

    G = DiscreteGenerator(conditional=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = draw(Interrupted(G), n_steps)
    assert [result.diagnostics.n_steps for result in found] == [*steps_of_two, 0]
    assert found[0].diagnostics.interrupted == (steps_of_two[0] < n_steps)
    assert found[-1].diagnostics.interrupted
    assert any("Ctrl-C came before" in str(warning.message) for warning in caught)
    assert all(len(result.samples) == result.diagnostics.n_samples for result in found)
    assert found[-1].samples.shape == (0, *found[0].samples.shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(found[0], draw(DiscreteClassifier(G), found[0].diagnostics.n_steps)[0])


def test_ctrl_c_keeps_what_there_is():
    calls = itertools.count()

    class Interrupted(RowwiseClassifier):
        def forward(self, x):
            if len(x) > PROBE_ROWS and next(calls) == 7:
                raise KeyboardInterrupt
            return super().forward(x)

    sampler = rowwise(clf=Interrupted(), plan=Plan(batch_size=10**6, block_steps=5))
    result = sampler.sample(0, 1, 30, 100, seed=0)
    assert result.diagnostics.interrupted
    assert result.diagnostics.n_steps == 35
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(result, rowwise().sample(0, 1, 30, 35, seed=0))


# --- bad input ------------------------------------------------------------------------------------


def logits(x):
    return torch.zeros(len(x), 3)


BAD_CLASSIFIERS = [
    (lambda x: logits(x), "clf returned Tensor"),
    (lambda x: (logits(x),), "clf returned 1 outputs"),
    (lambda x: (logits(x),) * 4, "clf returned 4 outputs"),
    (lambda x: {"logits": logits(x)}, r"keys \['logits'\]"),
    (lambda x: (logits(x), logits(x)), r"validity_logit must have shape \(2,\) or \(2, 1\), got \(2, 3\)"),
    (lambda x: (logits(x)[:1], x[:, 0]), r"class_logits must have shape \(2, classes\), got \(1, 3\)"),
    (lambda x: (logits(x), logits(x)[:, :2], x[:, 0]), "fake_class_logits must have the shape"),
    (lambda x: (logits(x) / 0, x[:, 0]), "NaN or infinite logits for the proposal of chain 0 at step 0"),
    (lambda x: (logits(x), x[:, 0] * torch.inf), "NaN or infinite logits"),
    (lambda x: (logits(x)[:, :1], x[:, 0]), "index 1 in J=.* is out of range: clf returns 1 class logits"),
]


@pytest.mark.parametrize("case", range(len(BAD_CLASSIFIERS)))
def test_bad_classifier_output(case):
    clf, message = BAD_CLASSIFIERS[case]
    with pytest.raises(ValueError, match=message):
        S2MSampler(RowwiseGenerator(), clf).sample(0, 1, 4, 5)


def test_classifier_output_of_wrong_type():
    for clf in (lambda x: (logits(x).numpy(), x[:, 0]), lambda x: (logits(x).long(), x[:, 0])):
        with pytest.raises(TypeError, match="clf: class_logits must be"):
            S2MSampler(RowwiseGenerator(), clf).sample(0, 1, 4, 5)


def test_a_classifier_that_changes_its_mind_about_the_classes():
    calls = itertools.count()

    def clf(x):
        return x[:, : 3 if len(x) <= PROBE_ROWS or next(calls) < 2 else 2], x[:, 0]

    with pytest.raises(ValueError, match=r"class_logits of a proposal has shape \(2,\), .* before \(3,\)"):
        rowwise(clf=clf, plan=Plan(batch_size=50)).sample(0, (), 100, 4)


def test_nan_late_in_the_run_names_its_place():
    def clf(x):
        a, v = RowwiseClassifier()(x)
        return a, torch.where((x == poisoned).all(1), torch.nan, v)

    poisoned = torch.full((3,), torch.inf)
    good = rowwise(clf=clf, plan=Plan(batch_size=10, block_steps=1))
    latents = torch.randn(30, 10, 4)
    good.sample(0, 1, proposal=latents)
    poisoned = RowwiseGenerator()(latents[21, 6:7])
    with pytest.raises(ValueError, match="chain 6 at step 21"):
        good.sample(0, 1, proposal=latents)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(I=[], J=[]), ValueError, "I is empty"),
        (dict(I=[0, 1], J=[1]), ValueError, "index 1 is in both"),
        (dict(I=[5], J=[]), ValueError, r"index 5 in I=\(5,\) is out of range"),
        (dict(I=0, n_steps=0), ValueError, "n_steps must be between 1 and"),
        (dict(I=0, n_samples=0), ValueError, "n_samples must be between 1 and"),
        (dict(I=0, n_samples=2.5), TypeError, "n_samples must be an integer, got 2.5"),
        (dict(I=0, seed=2**64), ValueError, "seed must fit into 64 bits"),
        (dict(I=0, proposal_class=1), ValueError, "G takes no label"),
        (dict(I=0, proposal=np.zeros((5, 4))), ValueError, r"latents must have shape \(n_steps, n_samples, 4\)"),
        (dict(I=0, proposal=np.zeros((5, 6, 4)), n_steps=7), ValueError, r"\(7, n_samples, 4\), got \(5, 6, 4\)"),
        (dict(I=0, run="run.pt"), TypeError, r"run must be a spml_fast.Run, got 'run.pt'"),
        (
            dict(I=0, run=Run(first_chain=5), proposal=print),
            ValueError,
            "first_chain=5 with a function that draws",
        ),
        (dict(I=0, seed=1.5), TypeError, "seed must be an integer, got 1.5"),
        (dict(I=0, proposal_class=0.5), TypeError, "proposal_class must be an integer, got 0.5"),
        (dict(I=0, proposal=lambda n, g: torch.zeros(n + 1, 4)), ValueError, "must return latents"),
        (
            dict(I=0, n_samples=6, proposal=lambda n, g: torch.zeros(n, 5)),
            ValueError,
            r"must return latents \(6, 4\), or a pair .* got shape \(6, 5\)",
        ),
        (
            dict(I=0, proposal=lambda n, g: (torch.zeros(n, 4), torch.zeros(n, 1))),
            ValueError,
            "log weights must have",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        rowwise().sample(**arguments)


def test_bad_sampler_arguments():
    with pytest.raises(ValueError, match="latent size of function is not known"):
        S2MSampler(lambda z: z, RowwiseClassifier())
    with pytest.raises(ValueError, match="z_dim must be a positive int"):
        S2MSampler(RowwiseGenerator(), RowwiseClassifier(), z_dim=0)
    with pytest.raises(TypeError, match="clf must be callable, got NoneType"):
        S2MSampler(RowwiseGenerator(), None)
    for name, value, kind in (("weight", 0.5, "MinMax"), ("plan", 64, "Plan")):
        with pytest.raises(TypeError, match=f"{name} must be a spml_fast.{kind}, got {value}"):
            rowwise(**{name: value})
    with pytest.raises(ValueError, match="targets is empty"):
        rowwise().sample_targets([])
    with pytest.raises(ValueError, match=r"each target must be a pair \(I, J\), got 3"):
        rowwise().sample_targets([3])
    with pytest.raises(ValueError, match=r"G must return x of shape \(2, ...\), got \(3, 3\)"):
        S2MSampler(lambda z: torch.zeros(3, 3), RowwiseClassifier(), z_dim=4).sample(0, 1, 10, 5)
    with pytest.raises(ValueError, match="need the logits of D_f"):
        S2MSampler(OfficialGenerator(), OfficialClassifier(with_fake=False)).sample(0, 1, 10, 5)
    generator = OfficialGenerator()
    any_label = S2MSampler(lambda z, label: generator(z, label * 0), OfficialClassifier(), z_dim=4)
    with pytest.raises(ValueError, match="proposal_class 3 is out of range"):
        any_label.sample(0, 1, 10, 5, proposal_class=3)


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (Plan, dict(batch_size=0), ValueError, "batch_size must be between"),
        (Plan, dict(block_steps=1.5), TypeError, "block_steps must be an integer, got 1.5"),
        (Plan, dict(device="nowhere"), ValueError, "device must be one of PyTorch's, got 'nowhere'"),
        (Plan, dict(precision="bf16"), TypeError, "precision must be a torch.dtype"),
        (
            Plan,
            dict(memory_format=True),
            TypeError,
            "memory_format must be a torch.memory_format or one of contiguous, .*, got True",
        ),
        (Run, dict(first_chain=-1), ValueError, "first_chain must be between 0 and"),
        (Run, dict(every=-1), ValueError, "every must be a number of seconds, 0 or more, got -1"),
        (Run, dict(every="2 s"), ValueError, "every must be a number of seconds, 0 or more, got '2 s'"),
        (Run, dict(gather="yes"), TypeError, "gather must be True or False, got 'yes'"),
        (Run, dict(checkpoint=3), TypeError, "checkpoint must be a path, got 3"),
    ],
)
def test_bad_options(make, options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


NOW = {  # old keyword: what the error says to write
    "gamma": r"weight=spml_fast.MinMax\(gamma=...\)",
    "gamma_J": r"weight=spml_fast.MinMax\(gamma_J=...\)",
    "temperature": r"weight=spml_fast.MinMax\(temperature=...\)",
    "validity_temperature": r"weight=spml_fast.MinMax\(validity_temperature=...\)",
    "batch_size": r"plan=spml_fast.Plan\(batch_size=...\)",
    "block_steps": r"plan=spml_fast.Plan\(block_steps=...\)",
    "device": r"plan=spml_fast.Plan\(device=...\)",
    "autocast_dtype": r"plan=spml_fast.Plan\(precision=...\)",
    "channels_last": r"plan=spml_fast.Plan\(memory_format=torch.channels_last\)",
}
NOW_OF_CALLS = {
    "tol": r"method=spml_fast.IMH\(tol=...\), spml_fast.Rejection\(tol=...\) or spml_fast.Resample\(tol=...\)",
    "max_steps": r"method=spml_fast.IMH\(max_steps=...\)",
    "samples_per_chain": r"method=spml_fast.IMH\(samples_per_chain=...\) or spml_fast.MALA\(samples_per_chain=",
    "thin": r"method=spml_fast.IMH\(thin=...\)",
    "adapt": r"proposal=spml_fast.Mixture\(...\)",
    "latents": "proposal=latents",
    "first_chain": r"run=spml_fast.Run\(first_chain=...\)",
    "distributed": r"run=spml_fast.Run\(distributed=...\)",
    "gather": r"run=spml_fast.Run\(gather=...\)",
    "checkpoint": r"run=spml_fast.Run\(checkpoint=...\)",
    "checkpoint_every": r"run=spml_fast.Run\(every=...\)",
}


@pytest.mark.parametrize("name", NOW)
def test_old_keywords_of_the_sampler(name):
    with pytest.raises(TypeError, match=f"^S2MSampler no longer has the argument '{name}'; write {NOW[name]}"):
        rowwise(**{name: 1})
    with pytest.raises(TypeError, match=f"^s2m_sample no longer has the argument '{name}'; write .*{NOW[name]}"):
        spml_fast.s2m_sample(RowwiseGenerator(), RowwiseClassifier(), 0, **{name: 1})


@pytest.mark.parametrize("name", NOW_OF_CALLS)
def test_old_keywords_of_a_call(name):
    match = f"no longer has the argument '{name}'; write .*{NOW_OF_CALLS[name]}"
    with pytest.raises(TypeError, match=match):
        rowwise().sample(0, **{name: 1})
    with pytest.raises(TypeError, match=match):
        rowwise().sample_targets([(0, 1)], **{name: 1})
    with pytest.raises(TypeError, match=match):
        spml_fast.s2m_sample(RowwiseGenerator(), RowwiseClassifier(), 0, **{name: 1})
