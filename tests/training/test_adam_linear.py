"""A step of Adam for a linear layer, without its gradient: torch.optim.Adam's, and the reference's."""

import hashlib

import pytest
import torch
from torch.nn.functional import linear

from spml_fast import _ops, reference

FLOATS = [torch.float32, torch.float64]
# One step from a state of order 1; what rounding of a sum of N products of order 1 leaves.
TOLERANCE = {torch.float32: dict(rtol=2e-6, atol=5e-6), torch.float64: dict(rtol=1e-14, atol=1e-14)}
SIZES = [  # N, K, D
    (1, 1, 1),
    (0, 3, 4),
    (3, 1, 15),
    (8, 5, 17),
    (8, 20, 2049),
    (16, 11, 2049),
    (7, 4, 2113),
    (33, 6, 31),
    (17, 2, 4300),
]
every_size = pytest.mark.parametrize(("n", "k", "d"), SIZES)
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def make_problem(n, k, d, dtype=torch.float32, device="cpu"):
    """(weight, exp_avg, exp_avg_sq, grad_logits, x, lr); the state is that of a run under way."""
    weight, mean, square = torch.randn(k, d), torch.randn(k, d), torch.rand(k, d) + 0.5
    grad_logits, x, lr = torch.randn(n, k), torch.randn(n, d), torch.rand(k)
    return [t.to(dtype).to(device) for t in (weight, mean, square, grad_logits, x, lr)]


def step(problem, number=5, **options):
    """The three states after an update; the problem stays as it is."""
    states = [t.clone() for t in problem[:3]]
    assert _ops.adam_linear_(*states, *problem[3:], number, **options) is None
    return states


def same(a, b):
    for first, second in zip(a, b, strict=True):
        assert torch.equal(first, second)


# --- values ---------------------------------------------------------------------------------------


@every_size
def test_is_adam(n, k, d, device):
    weight, _, _, _, _, lr = make_problem(n, k, d, torch.float64, device)
    rows = [row.clone().requires_grad_() for row in weight]
    settings = dict(betas=(0.85, 0.99), eps=1e-5)
    adam = torch.optim.Adam(
        [{"params": [row], "lr": rate.item()} for row, rate in zip(rows, lr, strict=True)], **settings
    )
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for number in range(1, 7):
        grad_logits, x = make_problem(n, k, d, torch.float64, device)[3:5]
        for row, gradient in zip(rows, grad_logits.T @ x, strict=True):
            row.grad = gradient
        adam.step()
        _ops.adam_linear_(weight, mean, square, grad_logits, x, lr, number, 0.85, 0.99, 1e-5)
    for i, row in enumerate(rows):
        torch.testing.assert_close(weight[i], row.detach(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(mean[i], adam.state[row]["exp_avg"], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(square[i], adam.state[row]["exp_avg_sq"], rtol=1e-12, atol=1e-12)


@every_dtype
@every_size
def test_reference(n, k, d, dtype, device):
    problem = make_problem(n, k, d, dtype, device)
    for number, options in ((1, {}), (5, dict(beta1=0.0, beta2=0.5, eps=0.1)), (10**9, dict(beta2=0.0))):
        got = step(problem, number, **options)
        expected = [t.double() for t in problem]
        reference.adam_linear_(*expected, number, **options)
        for name, a, b in zip(("weight", "exp_avg", "exp_avg_sq"), got, expected, strict=False):
            tolerance = dict(TOLERANCE[dtype])
            if name == "weight" and number == 10**9:  # v = g^2 of any size: m / |g|, as far as g is known
                known = (problem[3].double().T @ problem[4].double()).abs() > 0.1
                a, b = a[known], b[known]
                tolerance["rtol"] *= 10
                tolerance["atol"] *= 100
            elif name == "exp_avg_sq":
                tolerance["rtol"] *= 10
                tolerance["atol"] *= 10
            torch.testing.assert_close(a.double(), b, **tolerance)


@every_dtype
def test_zero_gradients_and_zero_moments_leave_the_weight(dtype, device):
    weight, _, _, _, x, lr = make_problem(8, 5, 40, dtype, device)
    zeros = torch.zeros_like(weight)
    got = step((weight, zeros, zeros, torch.zeros(8, 5, dtype=dtype, device=device), x, lr), 1)
    same(got, (weight, zeros, zeros))


def test_infinite_and_nan_features_reach_their_column_alone(device):
    problem = make_problem(9, 7, 50, device=device)
    problem[4][8, 3], problem[4][2, 20] = torch.nan, torch.inf
    for t in step(problem):
        assert set((~t.isfinite()).nonzero()[:, 1].tolist()) == {3, 20}


@every_dtype
def test_strides(dtype, device):
    n, k, d = 11, 6, 75
    problem = make_problem(n, k, d, dtype, device)
    expected = step(problem)
    grad_logits, x, lr = problem[3:]

    def within(t):
        larger = torch.full((2 * t.shape[0], *(s + 3 for s in t.shape[1:])), torch.nan, dtype=dtype, device=device)
        view = larger[::2][(slice(None), *(slice(1, 1 + s) for s in t.shape[1:]))]
        view.copy_(t)
        return view

    for other_grad in (grad_logits, grad_logits.t().contiguous().t(), within(grad_logits)):
        for other_x in (x, x.t().contiguous().t(), within(x)):
            for other_lr in (lr, within(lr)):
                same(step((*problem[:3], other_grad, other_x, other_lr)), expected)
    constant = (*problem[:3], grad_logits, x[:1].expand(n, d), lr[:1].expand(k))
    same(step(constant), step([t.contiguous() for t in constant]))


@pytest.mark.parametrize("shape", [(0, 0, 0), (3, 0, 5), (3, 5, 0)])
def test_empty_weights(shape, device):
    step(make_problem(*shape, device=device))


# --- same bits ------------------------------------------------------------------------------------


@every_dtype
def test_any_number_of_threads_gives_the_same_bits(dtype, threads):
    problem = make_problem(13, 43, 2049, dtype)
    threads(1)
    alone = step(problem)
    for n in (2, 3):
        threads(n)
        same(step(problem), alone)


@every_dtype
def test_neighbours_do_not_matter(dtype, device):
    problem = make_problem(13, 23, 2200, dtype, device)
    weight, mean, square, grad_logits, x, lr = problem
    together = step(problem)
    for rows in (slice(0, 1), slice(3, 11)):
        alone = step((weight[rows], mean[rows], square[rows], grad_logits[:, rows], x, lr[rows]))
        same(alone, [t[rows] for t in together])
    columns = slice(5, 2150)
    cut = [t[:, columns].contiguous() for t in problem[:3]]
    same(step((*cut, grad_logits, x[:, columns], lr)), [t[:, columns] for t in together])


@every_size
@every_dtype
def test_every_device_gives_the_bits_of_the_cpu(n, k, d, dtype, device):
    problem = make_problem(n, k, d, dtype)
    same([t.cpu() for t in step([t.to(device) for t in problem])], step(problem))


def fingerprints():
    """{size and dtype: hash} of the states after a step."""
    found = {}
    for n, k, d in SIZES:
        for dtype in FLOATS:
            torch.manual_seed(3)
            data = b"".join(t.numpy().tobytes() for t in step(make_problem(n, k, d, dtype)))
            found[f"{n} {k} {d} {dtype}"] = hashlib.sha256(data).hexdigest()
    return found


@pytest.mark.slow
def test_every_instruction_set_gives_the_same_bits(on_every_isa):
    found = on_every_isa(__file__)
    for isa, hashes in found.items():
        assert hashes == found["baseline"], isa
    assert fingerprints() == found["baseline"]


# --- an op on data --------------------------------------------------------------------------------


@pytest.mark.parametrize("which", range(6))
def test_no_derivative(which, device):
    problem = make_problem(3, 4, 5, device=device)
    name = ("weight", "exp_avg", "exp_avg_sq", "grad_logits", "x", "lr")[which]
    before = [t.clone() for t in problem]
    problem[which].requires_grad_()
    with pytest.raises(RuntimeError, match=f"{name} requires grad, but this op has no derivative.*no_grad"):
        _ops.adam_linear_(*problem, 1)
    same([t.detach() for t in problem], before)
    with torch.no_grad():
        _ops.adam_linear_(*problem, 1)
    assert not torch.equal(problem[0].detach(), before[0])


def test_autograd_knows_that_the_weight_changed(device):
    weight, *rest = make_problem(3, 4, 5, device=device)
    weight.requires_grad_()
    x = torch.randn(2, 5, device=device, requires_grad=True)
    loss = linear(x, weight).sum()
    with torch.no_grad():
        _ops.adam_linear_(weight, *rest, 1)
    assert weight.is_leaf
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_mode(device):
    problem = make_problem(3, 4, 5, device=device)
    expected = step(problem)
    with torch.inference_mode():
        same(step(problem), expected)  # the clones are inference tensors
        weight = problem[0].clone()
        version = problem[0]._version
        _ops.adam_linear_(*problem, 5)
    assert problem[0]._version == version + 1
    same(problem[:3], expected)
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside InferenceMode"):
        _ops.adam_linear_(weight, *problem[1:], 5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@every_dtype
def test_opcheck(dtype, device):
    torch.library.opcheck(_ops.adam_linear_, (*make_problem(3, 4, 5, dtype, device), 2))
    strided = make_problem(3, 4, 5, dtype, device)
    strided[3], strided[4] = strided[3].t().contiguous().t(), strided[4].t().contiguous().t()
    torch.library.opcheck(_ops.adam_linear_, (*strided, 2), dict(beta1=0.5, beta2=0.9, eps=1e-3))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
def test_compiles(device):
    problem = make_problem(3, 4, 5, device=device)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def update(weight, mean, square, x, lr):
        _ops.adam_linear_(weight, mean, square, torch.sigmoid(x @ weight.T), x, lr, 5)
        return weight.sum()

    weight, _, _, _, x, lr = problem
    expected = step((*problem[:3], torch.sigmoid(x @ weight.T), x, lr))
    total = update(*problem[:3], x, lr)
    same(problem[:3], expected)
    assert total == expected[0].sum()


# --- bad input ------------------------------------------------------------------------------------


def refused(error, match, problem, number=1, **options):
    before = [t.clone() for t in problem]
    with pytest.raises(error, match=match):
        _ops.adam_linear_(*problem, number, **options)
    same(*zip(*((t, old) for t, old in zip(problem, before, strict=True) if not t.is_meta), strict=True))


NAMES = ["weight", "exp_avg", "exp_avg_sq", "grad_logits", "x", "lr"]


@pytest.mark.parametrize("name", NAMES)
def test_shapes(name, device):
    shapes = dict(exp_avg="4, 5", exp_avg_sq="4, 5", grad_logits="3, 4", x="3, 5", lr="4")
    problem = make_problem(3, 4, 5, device=device)
    i = NAMES.index(name)
    for wrong in (problem[i][..., :-1].contiguous(), problem[i].new_zeros(2, 2, 2)):
        changed = [wrong if j == i else t for j, t in enumerate(problem)]
        if name == "weight":
            match = r"exp_avg must have shape \[4, 4\], got \[4, 5\]|weight must have shape \(K, D\)"
        else:
            match = rf"{name} must have shape (\[{shapes[name]}\]|\(N, D\)), got "
        refused(ValueError, f"adam_linear_: {match}", changed)


def test_batches_must_agree(device):
    problem = make_problem(3, 4, 5, device=device)
    problem[3] = problem[3][:2]
    refused(ValueError, r"grad_logits must have shape \[3, 4\], got \[2, 4\]", problem)


@pytest.mark.parametrize("name", NAMES)
def test_dtypes(name, device):
    problem = make_problem(3, 4, 5, device=device)
    i = NAMES.index(name)
    problem[i] = problem[i].to(torch.bfloat16)
    expected = "must be float32 or float64, got" if name == "weight" else "must be Float, got"
    refused(TypeError, f"adam_linear_: {name} {expected} BFloat16", problem)


@pytest.mark.parametrize("name", NAMES[1:])
def test_devices(name, device):
    problem = make_problem(3, 4, 5, device=device)
    i = NAMES.index(name)
    for other in {"meta", "cpu"} - {device.type}:
        changed = [t.to(other) if j == i else t for j, t in enumerate(problem)]
        refused(ValueError, f"{name} is on {other}, expected {device.type}", changed)


@pytest.mark.parametrize("name", NAMES[:3])
def test_states_must_be_contiguous(name, device):
    problem = make_problem(3, 4, 5, device=device)
    i = NAMES.index(name)
    problem[i] = problem[i].t().contiguous().t()
    refused(ValueError, f"{name} is written in place and must be contiguous", problem)


def test_states_share_no_memory(device):
    problem = make_problem(4, 4, 4, device=device)
    for i, j in ((0, 1), (1, 2), (0, 4), (2, 3)):
        shared = list(problem)
        shared[j] = shared[i]
        refused(ValueError, "shares memory with .*, which is written in place", shared)
    weight = torch.randn(6, 4, device=device)
    refused(ValueError, "x shares memory with weight", [weight[:4], *problem[1:4], weight[2:], problem[5]])


@pytest.mark.parametrize("number", [0, -3])
def test_steps_count_from_one(number, device):
    refused(ValueError, f"step counts updates from 1, got {number}", make_problem(3, 4, 5, device=device), number)


@pytest.mark.parametrize("beta", [1.0, -0.1, float("nan"), 2.0])
@pytest.mark.parametrize("name", ["beta1", "beta2"])
def test_betas(name, beta, device):
    match = f"{name} must be at least 0 and less than 1, got "
    refused(ValueError, match, make_problem(3, 4, 5, device=device), **{name: beta})


def test_eps(device):
    for eps in (-1e-8, float("nan")):
        refused(ValueError, "eps must not be negative, got ", make_problem(3, 4, 5, device=device), eps=eps)
