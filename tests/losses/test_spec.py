"""The spec of a loss is a value, made by functions and modules alike and applied by one function."""

import copy
import pickle

import pytest
import torch
from cases import ALL, make_batch

from spml_fast import _ops, losses
from spml_fast.losses import LossSpec
from spml_fast.losses.spec import ELEMENTWISE, RANKING, ROLE, apply, op_arguments
from spml_fast.training.linear import value_and_gradients

BY_ENTRY = [case for case in ALL if case.matrix is None and not case.whole_batch]
MODULES = {
    name: losses.make(name, **({"expected_positives": 2.5} if name in ("epr", "role") else {}),
                      **({"n_samples": 16, "n_labels": 20} if name in ("ll_cp", "em_apl") else {}))
    for name in losses.registry
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_a_spec_is_a_value(name):
    spec = MODULES[name].current_spec()
    assert spec.functor in _ops.losses
    assert spec.kind == {"role": ROLE, "pr": RANKING}.get(name, ELEMENTWISE)
    for twin in (copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):
        assert twin == spec
        assert hash(twin) == hash(spec)
    assert spec != spec._replace(eps=0.5)
    with pytest.raises(AttributeError):
        spec.eps = 0.5


def test_specs_say_what_is_computed():
    wanted = LossSpec("gr", (0.5, -2.0, 0.6125, 1.4375, 0.0, 0.01, 1.0), eps=1e-7, reduction="sum")
    module = losses.GRLoss(eps=1e-7, reduction="sum")
    module.set_epoch(3)
    assert module.current_spec() == wanted
    assert losses.EPRLoss(expected_positives=1.5).current_spec() == LossSpec("iu", lam=1.0, expected_positives=1.5)
    role = losses.ROLELoss(expected_positives=1.5, lam=0.2, loss=module, sparse=True)
    assert role.current_spec() == LossSpec("gr", wanted.hyper, 0.0, "mean", ROLE, 0.2, 1.5, sparse=True)


@pytest.mark.parametrize(
    "case", [case for case in ALL if case.matrix is None and not case.whole_batch], ids=lambda c: c.id
)
def test_one_function_applies_it(case, device):
    z, labels, _ = make_batch(case, device=device)
    spec = losses.make(case.name, **case.hyper).current_spec()
    assert torch.equal(apply(spec, z, labels), case.fused(z, labels))
    # The arguments are the op's, in its order, whoever calls it.
    arguments = op_arguments(spec, z.shape[1], compiling=False)
    assert torch.equal(torch.ops.spml_fast.loss(z, labels, *arguments), case.fused(z, labels))


def test_numbers_that_depend_on_the_number_of_labels(device):
    module = losses.WANLoss()
    for columns in (1, 2, 9):
        z, labels = torch.randn(4, columns, device=device), torch.zeros(4, dtype=torch.int64, device=device)
        wanted = losses.wan_loss(z, labels, negative_weight=1 / max(columns - 1, 1))
        for value in (module(z, labels), losses.wan_loss(z, labels), module.value_and_gradients(z, labels).value):
            assert torch.equal(value, wanted)


class Doubled(losses.ANLoss):
    """A user's loss that does something with the value of another."""

    def forward(self, logits, labels):
        return 2 * super().forward(logits, labels)


def test_a_loss_that_overrides_forward(device):
    """It is used where it is called, and refused where only its spec would be looked at."""
    z = torch.randn(4, 5, device=device, requires_grad=True)
    labels = torch.tensor([0, 1, 2, -1], device=device)
    assert torch.equal(Doubled()(z, labels), 2 * losses.an_loss(z, labels))
    message = "Doubled overrides forward, so it cannot be "
    with pytest.raises(TypeError, match=message + "computed without autograd"):
        Doubled().value_and_gradients(z, labels)
    with pytest.raises(TypeError, match=message + "computed in chunks"):
        losses.fused_linear_loss(z, torch.eye(5, device=device), None, labels, loss=Doubled())
    with pytest.raises(TypeError, match=message + "used inside ROLE"):
        losses.ROLELoss(expected_positives=1.0, loss=Doubled())
    # The linear phase of a training asks autograd.
    value, grad, _ = value_and_gradients(Doubled(), z.detach(), [labels])
    assert torch.equal(value, Doubled()(z, labels))
    assert torch.equal(grad, torch.autograd.grad(Doubled()(z, labels), z)[0])


def test_a_loss_of_ones_own(device):
    """A loss is a spec: a functor that exists, with hyper-parameters fixed otherwise."""

    def cautious_spec(alpha, reduction):
        return LossSpec("em", (alpha / 2,), reduction=reduction)

    def cautious_loss(logits, labels, *, alpha=0.2, class_weight=None, reduction="mean"):
        return apply(cautious_spec(alpha, reduction), logits, labels, class_weight=class_weight)

    class Cautious(losses.Loss):
        function, specify = staticmethod(cautious_loss), staticmethod(cautious_spec)

    z, labels = torch.randn(4, 5, device=device), torch.tensor([0, 1, 2, -1], device=device)
    module = Cautious(alpha=losses.Linear(0.4, 0.0, epochs=4))
    for epoch, alpha in ((1, 0.3), (3, 0.1)):
        module.set_epoch(epoch)
        torch.testing.assert_close(module(z, labels), losses.em_loss(z, labels, alpha=alpha / 2))
    assert torch.equal(Cautious()(z, labels), losses.em_loss(z, labels, alpha=0.1))
    assert Cautious not in losses.registry.values()
    with pytest.raises(TypeError, match="has no hyper-parameter 'eps'; it has alpha, class_weight, reduction"):
        Cautious(eps=0.1)
