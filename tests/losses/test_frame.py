"""The GR frame: every loss it claims to contain is its own kernel's, and a loss made of a user's pieces trains."""

import pytest
import torch
from cases import ELEMENTWISE, FLOATS, ids, make_index, make_labels, make_logits, value_and_grads

from spml_fast import losses, reference
from spml_fast.losses import frame
from spml_fast.losses.frame import FRAMES, Frame

FRAMED = [case for case in ELEMENTWISE if case.name in FRAMES and (case.name != "splc" or case.hyper["correct"])]
"""Before it corrects, SPLC is focal margin."""
RELATIVE = {torch.float64: 1e-10, torch.float32: 2e-5}
# Where 1 - p^q or a difference cancels, the rounding of numbers of the size of 1 remains in the frame.
ABSOLUTE = {torch.float64: 1e-14, torch.float32: 4e-7}
LABELS = 20


def make_frame(case):
    hyper = {name: value for name, value in case.hyper.items() if name != "correct"}
    if case.name == "wan" and hyper["negative_weight"] is None:
        hyper["negative_weight"] = 1 / (LABELS - 1)
    return FRAMES[case.name](**hyper)


def assert_same(actual, wanted, dtype, unit=1.0):
    for a, b in zip(actual, wanted, strict=True):
        assert a.dtype == b.dtype == dtype
        torch.testing.assert_close(a, b, rtol=RELATIVE[dtype], atol=ABSOLUTE[dtype] * unit)


def test_losses_of_the_frame():
    assert set(FRAMES) == {"an", "an_ls", "wan", "iu", "em", "focal_margin", "hill", "splc", "gr"}
    assert {case.name for case in FRAMED} == set(FRAMES)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("form", ["index", "matrix"])
@pytest.mark.parametrize("case", FRAMED, ids=ids(FRAMED))
def test_a_frame_is_the_loss_of_its_name(case, form, dtype, device):
    """Entries, mean and gradients of both, with observed positives, unobserved labels and observed negatives."""
    pieces = make_frame(case)
    for scale in (1.0, 4.0):
        z = make_logits(37, LABELS, dtype, scale).to(device)
        labels = make_index(37, LABELS) if form == "index" else make_labels(case, 37, LABELS).to(torch.int8)
        labels = labels.to(device)
        entries = value_and_grads(lambda z: pieces.entries(z, labels), z)  # noqa: B023
        fused = value_and_grads(lambda z: case.fused(z, labels, reduction="none"), z)  # noqa: B023
        assert_same(entries, fused, dtype)
        mean = value_and_grads(lambda z: pieces(z, labels), z)  # noqa: B023
        wanted = value_and_grads(lambda z: case.fused(z, labels), z)  # noqa: B023
        assert_same(mean, wanted, dtype, unit=1 / z.numel())


@pytest.mark.parametrize("case", FRAMED, ids=ids(FRAMED))
def test_a_frame_is_the_reference(case):
    z, s = make_logits(37, LABELS, torch.float64), make_labels(case, 37, LABELS)
    pieces = make_frame(case)
    actual = value_and_grads(lambda z: pieces(z, s), z)
    assert_same(actual, value_and_grads(lambda z: case.expected(z, s), z), torch.float64, unit=1 / z.numel())


def test_splc_before_it_corrects_is_focal_margin():
    z, labels = make_logits(37, LABELS, torch.float64), make_index(37, LABELS)
    pieces = frame.focal_margin(margin=0.5, gamma=1.5)
    actual = value_and_grads(lambda z: pieces(z, labels), z)
    wanted = value_and_grads(lambda z: losses.splc_loss(z, labels, margin=0.5, gamma=1.5, correct=False), z)
    assert_same(actual, wanted, torch.float64, unit=1 / z.numel())


def test_defaults_of_the_frames_are_those_of_the_losses():
    z, s = make_logits(37, LABELS, torch.float64), make_labels(FRAMED[0], 37, LABELS)
    for name in ("an", "an_ls", "iu", "em", "focal_margin", "hill", "splc"):
        torch.testing.assert_close(FRAMES[name]()(z, s), getattr(losses, f"{name}_loss")(z, s), rtol=1e-10, atol=0)


def test_known_choices_of_gr_are_other_losses():
    """k = 0, v = 1, q = (0, ., 0) is AN; q = 1 throughout, where L is 1 - p or p, is the mean absolute error."""
    z, labels = make_logits(37, LABELS, torch.float64), make_index(37, LABELS)
    s = reference.label_matrix(labels, LABELS, torch.float64)
    actual = losses.gr_loss(z, labels, w=0.0, b=-1000.0, mu=0.0, sigma=1e9, q=(0.0, 0.5, 0.0))
    torch.testing.assert_close(actual, losses.an_loss(z, labels), rtol=1e-10, atol=0)
    actual = losses.gr_loss(z, labels, w=0.0, b=-1000.0, mu=0.0, sigma=1e9, q=(1.0, 1.0, 1.0))
    torch.testing.assert_close(actual, (torch.sigmoid(z) - s).abs().mean(), rtol=1e-10, atol=0)


def test_pieces():
    z = torch.linspace(-30, 30, 61, dtype=torch.float64)
    p, n = torch.sigmoid(z), torch.sigmoid(-z)
    wanted = {
        frame.zero: 0 * p,
        frame.one: p + n,
        frame.constant(0.3): 0.3 * (p + n),
        frame.neg_log_p: -p.log(),
        frame.neg_log_1mp: -n.log(),
        frame.smoothed(frame.neg_log_p, frame.neg_log_1mp, 0.1): -0.9 * p.log() - 0.1 * n.log(),
        frame.robust(0.0): -p.log(),
        frame.robust(0.7): (1 - p**0.7) / 0.7,
        frame.robust(1.0): n,
        frame.mirrored(frame.robust(0.7)): (1 - n**0.7) / 0.7,
        frame.focal(2.0): n**2 * -p.log(),
        frame.focal(1.3, margin=1.0): torch.sigmoid(1 - z) ** 1.3 * -torch.sigmoid(z - 1).log(),
        frame.entropy: -p * p.log() - n * n.log(),
        frame.hill(1.5): (1.5 - p) * p**2,
        frame.logistic(2.0, -1.0): 1 / (1 + torch.exp(1 - 2 * p)),
        frame.above(0.6): (p > 0.6).double(),
        frame.bell(0.7, 0.3): torch.exp(-((p - 0.7) ** 2) / 0.18),
    }
    for piece, value in wanted.items():
        torch.testing.assert_close(piece(z), value, rtol=1e-9, atol=1e-12)


def test_k_and_v_get_no_gradient():
    """Twice differentiable pieces for both, and yet the gradient is that of constants."""
    z, labels = torch.randn(5, 7, dtype=torch.float64), make_index(5, 7)
    pieces = Frame(k=torch.sigmoid, v=lambda z: 1 + z**2)
    k, v = torch.sigmoid(z), 1 + z**2
    frozen = Frame(k=lambda _: k, v=lambda _: v)
    actual = value_and_grads(lambda z: pieces(z, labels), z)
    for a, b in zip(actual, value_and_grads(lambda z: frozen(z, labels), z), strict=True):
        assert torch.equal(a, b)


def test_observed_negative_costs_what_is_asked():
    z = torch.randn(2, 3, dtype=torch.float64)
    s = torch.tensor([[1, 0, -1], [-1, -1, 0]])
    plain = Frame(v=frame.constant(0.5), L3=frame.hill(1.5)).entries(z, s)
    own = Frame(v=frame.constant(0.5), L3=frame.hill(1.5), negative=frame.neg_log_1mp).entries(z, s)
    assert torch.equal(plain[s == -1], frame.hill(1.5)(z)[s == -1])
    assert torch.equal(own[s == -1], frame.neg_log_1mp(z)[s == -1])
    assert torch.equal(plain[s != -1], own[s != -1])


def test_a_loss_of_ones_own_trains(device):
    """The example of the module's docstring: six labels that come in pairs, of which one is observed."""
    loss = Frame(L1=frame.neg_log_p, k=lambda z: 0.1 * torch.sigmoid(z), L2=frame.neg_log_p, L3=frame.neg_log_1mp)
    kind = torch.randint(0, 3, (400,))
    x = torch.nn.functional.one_hot(kind, 3).float() + 0.1 * torch.randn(400, 3)
    observed = (kind + 3 * torch.randint(0, 2, (400,))).to(device)
    x = x.to(device)
    head = torch.nn.Linear(3, 6, device=device)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.1)
    values = []
    for _ in range(150):
        optimiser.zero_grad()
        value = loss(head(x), observed)
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.6 * values[0]
    best = head(x).topk(2, dim=1).indices.sort(dim=1).values.cpu()
    assert torch.equal(best, torch.stack([kind, kind + 3], dim=1))
