"""The losses' ops under opcheck, torch.compile, torch.export and fake tensors."""

import copy
import shutil

import pytest
import torch
from cases import (
    ALL,
    ONE_OF_EACH,
    K,
    ids,
    make_batch,
    make_index,
    make_labels,
    make_logits,
    value_and_grads,
)
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from spml_fast import _ops, losses
from spml_fast.labels import LabelEstimator

# Warned of by PyTorch's own modules, which inductor imports.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")

OPS = torch.ops.spml_fast
GR = [1.0, -2.0, 0.6, 1.0, 0.0, 0.01, 1.0]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
BACKENDS = ["aot_eager", pytest.param("inductor", marks=needs_compiler)]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


# --- opcheck --------------------------------------------------------------------------------------

N, L, R = 6, 9, 11


def op_arguments():
    """{what is special: (op, arguments)}; tensors that require a gradient are given as such."""
    number = _ops.losses
    z = make_logits(N, L, torch.float32)
    an = next(case for case in ALL if case.name == "an")
    index_form = torch.tensor([0, 3, -1, 8, 2, 2])
    matrix = make_labels(an, N, L)
    rows = torch.tensor([3, 0, 3, 10, 1, 2])
    table = torch.randn(R, L)
    flips = (torch.rand(R, L) < 0.2).to(torch.uint8)
    threshold = torch.tensor([1.0])
    columns = torch.tensor([1, 1, -1, 4, 4, 4])
    k_hat = torch.tensor([1.0, 2.0], dtype=torch.float64)
    x, weight, bias = torch.randn(N, 5), torch.randn(L, 5), torch.randn(L)
    plain = (0, number["an"], [], 0.0, 1)
    gr = (0, number["gr"], GR, 0.0, 1)
    epr = (0, number["iu"], [], 0.0, 1, None, None, None, None, None, 0.7, 2.5)

    def leaf(t):
        return t.clone().requires_grad_()

    def role(*rest):
        return 1, number["an"], [], 0.0, 1, None, *rest

    loss = {
        "index form": (z, index_form, *plain),
        "gradient": (leaf(z), index_form, *plain),
        "entries": (leaf(z), index_form, 0, number["an"], [], 0.0, 0),
        "int8 matrix, sum, eps, weights": (
            leaf(z), matrix.to(torch.int8), 0, number["an"], [], 1e-5, 2, torch.rand(L)
        ),
        "bfloat16": (leaf(z.bfloat16()), index_form, *gr),
        "float16 entries": (leaf(z.half()), matrix.half(), 0, number["gr"], GR, 0.0, 0),
        "transposed float64": (leaf(z.double().t().contiguous()).t(), matrix, *gr),
        "ROLE": (leaf(z), index_form, *role(leaf(table), rows, None, None, 0.7, 2.5)),
        "ROLE, sparse": (leaf(z), index_form, *role(leaf(table), rows, None, None, 0.7, 2.5, None, True)),
        "ROLE without index": (leaf(z), index_form, *role(leaf(table[:N]), None, None, None, 0.7, 2.5)),
        "ROLE, the table only": (z, index_form, *role(leaf(table), rows, None, None, 0.7, 2.5, k_hat)),
        "ROLE, bfloat16": (leaf(z.bfloat16()), matrix, *role(leaf(table), rows, None, None, 0.7, 2.5)),
        "ranking": (leaf(z), index_form, 2, number["an"], [], 0.0, 1),
        "pseudo-negatives": (leaf(z), index_form, 0, number["iu"], [], 0.0, 1, None, None, None, columns),
        "EPR": (leaf(z), index_form, *epr),
        "large loss": (
            leaf(z), index_form, 0, number["large_loss"], [1.0], 0.0, 1, None, flips, rows, None, threshold
        ),
    }  # fmt: skip
    linear = {
        "gradient": (leaf(x), leaf(weight), leaf(bias), index_form, *plain),
        "no bias": (leaf(x), leaf(weight), None, index_form, *plain),
        "no gradient": (x, weight, bias, index_form, *plain),
        "the weight only": (x, leaf(weight), bias, index_form, *plain),
        "bfloat16": (
            leaf(x.bfloat16()), leaf(weight.bfloat16()), leaf(bias.bfloat16()), matrix, 0, number["gr"], GR, 0.0, 2
        ),
        "EPR": (leaf(x), leaf(weight), leaf(bias), index_form, *epr),
    }  # fmt: skip
    step = torch.tensor([3])

    def without_gradient(args):
        return tree_map_only(torch.Tensor, torch.Tensor.detach, args)

    return {
        **{f"loss: {what}": (OPS.loss, args) for what, args in loss.items()},
        **{f"loss_and_grad: {what}": (OPS.loss_and_grad, without_gradient(args)) for what, args in loss.items()},
        **{f"linear_loss: {what}": (OPS.linear_loss, args) for what, args in linear.items()},
        **{
            f"linear_loss_and_grad: {what}": (OPS.linear_loss_and_grad, without_gradient(args))
            for what, args in linear.items()
        },
        "sum_probabilities": (OPS.sum_probabilities, (z,)),
        "sum_probabilities: float16": (OPS.sum_probabilities, (z.half(),)),
        "draw_unobserved: index form": (OPS.draw_unobserved, (index_form, L, 7, step)),
        "draw_unobserved: matrix": (OPS.draw_unobserved, (matrix, L, 7, step)),
        "large_loss_threshold: index form": (OPS.large_loss_threshold, (z, index_form, None, None, 0.05)),
        "large_loss_threshold: flips": (OPS.large_loss_threshold, (z.bfloat16(), matrix, flips, rows, 0.05)),
        "flip_labels: index form": (OPS.flip_labels, (z, index_form, flips.clone(), rows, threshold)),
        "flip_labels: float64": (OPS.flip_labels, (z.double(), matrix, flips.clone(), rows, threshold.double())),
    }


ARGUMENTS = list(op_arguments())


def test_every_op_of_the_losses_is_checked():
    checked = {what.split(":")[0] for what in ARGUMENTS}
    others = {"s2m_log_weight", "imh_scan", "s2m_imh_scan", "philox_uniform", "philox_normal", "adam_linear_"}
    registered = {
        name.removeprefix("spml_fast::").removesuffix(".default")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("spml_fast::")
    }
    assert checked == registered - others


@pytest.mark.slow
@pytest.mark.parametrize("what", ARGUMENTS)
def test_opcheck(what, device):
    op, args = op_arguments()[what]
    args = tree_map_only(torch.Tensor, lambda t: t.detach().to(device).requires_grad_(t.requires_grad), args)
    torch.library.opcheck(op.default, args)


# --- fake tensors ---------------------------------------------------------------------------------


def properties(result):
    return tree_map_only(
        torch.Tensor, lambda t: (t.shape, t.stride(), t.dtype, t.layout, t.device, t.requires_grad), result
    )


@pytest.mark.parametrize("what", ARGUMENTS)
def test_fake_outputs_are_as_the_real_ones(what, device):
    op, args = op_arguments()[what]
    args = tree_map_only(torch.Tensor, lambda t: t.detach().to(device).requires_grad_(t.requires_grad), args)
    real = properties(op(*args))
    with FakeTensorMode() as mode:
        fake = op(*tree_map_only(torch.Tensor, mode.from_tensor, args))
    assert properties(fake) == real


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=ids(ONE_OF_EACH))
def test_fake_losses(case, dtype, device):
    """Functions as users call them, forwards and backwards, without any data."""
    batch = make_batch(case, device=device, dtype=dtype)
    for reduction in case.reductions:

        def run(z, labels, second_matrix):
            value = case.fused(z, labels, second_matrix, reduction=reduction)  # noqa: B023
            return value, *torch.autograd.grad(value.sum(), z)

        z, *rest = batch
        real = properties(run(z.clone().requires_grad_(), *rest))
        with FakeTensorMode() as mode:
            z, *rest = tree_map_only(torch.Tensor, mode.from_tensor, batch)
            assert properties(run(z.requires_grad_(), *rest)) == real


# --- torch.compile --------------------------------------------------------------------------------


def assert_all_equal(actual, wanted):
    for a, b in zip(actual, wanted, strict=True):
        assert a.layout == b.layout
        assert torch.equal(a.to_dense(), b.to_dense())


def assert_compiled_is_eager(function, *tensors, backend="aot_eager"):
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    assert_all_equal(value_and_grads(compiled, *tensors), value_and_grads(function, *tensors))


@pytest.mark.slow
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=ids(ONE_OF_EACH))
def test_compiled_function(case, device):
    z, labels, second_matrix = make_batch(case, form="matrix" if case.full_labels else "index", device=device)
    tensors = (z,) if case.matrix != "table" else (z, second_matrix)
    assert_compiled_is_eager(lambda z, table=second_matrix: case.fused(z, labels, table), *tensors)


def test_compiled_function_without_gradient(device):
    z, labels, _ = make_batch(ONE_OF_EACH[0], device=device)
    value = torch.compile(losses.bce_loss, fullgraph=True, backend="aot_eager")(z, labels)
    assert not value.requires_grad
    assert torch.equal(value, losses.bce_loss(z, labels))


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in ONE_OF_EACH if "none" in c.reductions], ids=lambda c: c.id)
def test_compiled_entries(case, device):
    z, labels, second_matrix = make_batch(case, device=device)
    weight = torch.full((20,), 2.0, device=device)
    assert_compiled_is_eager(
        lambda z: case.fused(z, labels, second_matrix, reduction="none", class_weight=weight), z
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["an", "role", "ll_cp"])
def test_compiled_dtypes(name, dtype, device):
    case = next(case for case in ALL if case.name == name)
    z, labels, second_matrix = make_batch(case, device=device, dtype=dtype)
    assert_compiled_is_eager(lambda z: case.fused(z, labels, second_matrix) * 3, z)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("name", ["an", "gr", "role"])
def test_compiled_by_inductor(name, device):
    """What comes before and after the loss is inductor's, the loss between them is the op."""
    case = next(case for case in ALL if case.name == name)
    z, labels, second_matrix = make_batch(case, device=device)

    def step(z, table=second_matrix):
        return 3 * case.fused(z * 2, labels, table) + 1

    tensors = (z,) if case.matrix != "table" else (z, second_matrix)
    assert_compiled_is_eager(step, *tensors, backend="inductor")


MODULES = {
    "pns": (losses.PNSLoss, {}),
    "ll_cp": (losses.LLCpLoss, dict(n_samples=30, n_labels=20, share=0.1)),
    "em_apl": (losses.EMAPLLoss, dict(n_samples=30, n_labels=20)),
    "gr": (losses.GRLoss, dict(class_weight=[0.5] * 20)),
    "epr": (losses.EPRLoss, dict(expected_positives=K, sync=True)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_compiled_module_keeps_its_state(name, device):
    """Steps, flips and stores move as they do in eager mode."""
    make, hyper = MODULES[name]
    eager = make(**hyper).to(device)
    twin = copy.deepcopy(eager)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        z, labels = make_logits(16, 20, torch.float32).to(device), make_index(16, 20).to(device)
        index = [torch.randperm(30, device=device)[:16]] if name in ("ll_cp", "em_apl") else []
        wanted = value_and_grads(lambda z: eager(z, labels, *index), z)  # noqa: B023
        assert_all_equal(value_and_grads(lambda z: compiled(z, labels, *index), z), wanted)  # noqa: B023
    assert set(twin.state_dict()) == set(eager.state_dict())
    for key, value in eager.state_dict().items():
        assert torch.equal(twin.state_dict()[key], value)


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_role_with_an_estimator(backend, sparse, device):
    labels, index = make_index(16, 20).to(device), torch.randint(0, 30, (16,), device=device)
    table = LabelEstimator(make_index(30, 20), n_labels=20).logits.detach().to(device)
    z = make_logits(16, 20, torch.float32).to(device)
    assert_compiled_is_eager(
        lambda z, table: losses.role_loss(z, labels, table, index, expected_positives=K, sparse=sparse),
        z,
        table,
        backend=backend,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", ["an", losses.GRLoss(), losses.EPRLoss(expected_positives=K)], ids=["an", "gr", "epr"]
)
def test_compiled_linear_loss(loss, device):
    x, weight, bias = (torch.randn(shape, device=device) for shape in ((16, 5), (20, 5), (20,)))
    labels = make_index(16, 20).to(device)
    assert_compiled_is_eager(lambda *head: losses.fused_linear_loss(*head, labels, loss=loss), x, weight, bias)


@pytest.mark.slow
@pytest.mark.parametrize("case", ONE_OF_EACH, ids=ids(ONE_OF_EACH))
def test_any_batch_size_needs_two_graphs(case, device):
    """The first size is compiled as such, the second for all sizes."""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(case.fused, fullgraph=True, backend=counter)
    for n in (16, 12, 3):
        z, labels, second_matrix = make_batch(case, n, device=device)
        actual = value_and_grads(lambda z: compiled(z, labels, second_matrix), z)  # noqa: B023
        assert_all_equal(actual, value_and_grads(lambda z: case.fused(z, labels, second_matrix), z))  # noqa: B023
    assert counter.frame_count == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    [
        losses.GRLoss(epochs=12),
        losses.GPRLoss(epochs=12),
        losses.LLRLoss(delta=0.01),
        losses.LLCtLoss(delta=0.01),
        losses.LLCpLoss(n_samples=16, n_labels=20, delta=0.01),
        losses.SPLCLoss(start_epoch=3),
    ],
    ids=lambda module: module.name,
)
def test_schedule_over_twelve_epochs(module, device):
    """Each epoch has its own numbers; a long schedule stays below dynamo's limit on recompilations."""
    module = copy.deepcopy(module).to(device)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    z, labels = make_logits(16, 20, torch.float32).to(device), make_index(16, 20).to(device)
    extra = {
        "gpr": [torch.randint(-1, 2, (16, 20), device=device)],
        "ll_cp": [torch.arange(16, device=device)],
    }.get(module.name, [])
    values = []
    for epoch in range(1, 13):
        module.set_epoch(epoch)
        eager = copy.deepcopy(module)
        wanted = value_and_grads(lambda z: eager(z, labels, *extra), z)  # noqa: B023
        assert_all_equal(value_and_grads(lambda z: compiled(z, labels, *extra), z), wanted)
        values.append(wanted[0].item())
    assert len(set(values)) == {"splc": 2}.get(module.name, 12)


@pytest.mark.slow
def test_compiled_training_step(device):
    """A model, its loss and backward in one graph train as they do in eager mode."""
    model = nn.Linear(5, 20, device=device)
    twin = copy.deepcopy(model)
    loss = losses.GRLoss().to(device)

    def step(model, x, labels):
        return loss(model(x), labels)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    optimisers = [torch.optim.SGD(m.parameters(), lr=0.5) for m in (model, twin)]
    for _ in range(3):
        x, labels = torch.randn(16, 5, device=device), make_index(16, 20).to(device)
        for function, m, optimiser in zip((step, compiled), (model, twin), optimisers, strict=True):
            optimiser.zero_grad()
            function(m, x, labels).backward()
            optimiser.step()
    assert torch.equal(model.weight, twin.weight)


def test_invalid_labels_raise_under_compile():
    compiled = torch.compile(losses.an_loss, fullgraph=True, backend="aot_eager")
    z = torch.zeros(2, 3, requires_grad=True)
    compiled(z, torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"labels\[1, 2\] is 5"):
        compiled(z, torch.tensor([[0.0, 0, 0], [0, 0, 5]]))


# --- torch.export ---------------------------------------------------------------------------------


class ModelWithLoss(nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.head, self.loss = nn.Linear(5, 20), loss

    def forward(self, x, labels):
        return self.loss(self.head(x), labels)


@pytest.mark.parametrize(
    "loss",
    [
        losses.GRLoss(),
        losses.ANLoss(class_weight=[0.5] * 20),
        losses.WANLoss(),
        losses.PRLoss(),
        losses.EPRLoss(expected_positives=K),
        losses.LLRLoss(share=0.1),
    ],
    ids=lambda loss: loss.name,
)
def test_export_for_any_batch_size(loss, device):
    model = ModelWithLoss(loss).to(device)
    x, labels = torch.randn(16, 5, device=device), make_index(16, 20).to(device)
    rows = torch.export.Dim("rows")
    exported = torch.export.export(model, (x, labels), strict=False, dynamic_shapes=({0: rows}, {0: rows}))
    assert any(node.target is OPS.loss.default for node in exported.graph.nodes)
    for n in (16, 7):
        assert torch.equal(exported.module()(x[:n], labels[:n]), model(x[:n], labels[:n]))
