"""The sampling ops against reference.py, on every device, dtype and instruction set at hand."""

import hashlib
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from spml_fast import MinMax, _ops, reference
from spml_fast.sampling import ChainState, JointClass, pack_targets, s2m_log_weight
from spml_fast.sampling.chains import NO_INVALID

FLOATS = [torch.float32, torch.float64]
LOGIT_DTYPES = [*FLOATS, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}

TARGETS = {  # classes -> joint classes that touch the first and last class and every word of the mask
    1: [((0,), ())],
    3: [((0,), ()), ((0, 1), (2,)), ((2,), (0, 1)), ((0, 1, 2), ())],
    40: [((0, 39), (7,)), ((3,), tuple(range(10, 30)))],
    64: [((0, 63), (31,)), ((63,), (62,))],
    65: [((64,), (0, 63)), ((0, 64), ())],
    200: [((5, 70, 130, 199), (64, 127, 128)), ((199,), ())],
}


def make_logits(n_rows, n_classes, dtype, device, scale=2.0):
    class_logits = (torch.randn(n_rows, n_classes) * scale).to(dtype)
    validity = torch.randn(n_rows).to(dtype)
    return class_logits.to(device), validity.to(device)


def assert_log_weights(actual, expected, before_max, compute):
    """Equal weights, with the error measured against the weight before the max over J is taken off: where min
    and max nearly cancel, rounding of the logits themselves is all that is left."""
    error = (actual.cpu().double().exp() - expected.exp()).abs() / before_max.exp()
    assert error.max() < TOLERANCE[compute]


@pytest.mark.parametrize("dtype", LOGIT_DTYPES)
@pytest.mark.parametrize("n_classes", list(TARGETS))
def test_log_weight(n_classes, dtype, device):
    class_logits, validity = make_logits(333, n_classes, dtype, device)
    compute = _ops.compute_dtype(dtype)
    wide = class_logits.cpu().double(), validity.cpu().double()
    terms = dict(temperature=1.3, validity_temperature=0.7)
    for I, J in TARGETS[n_classes]:
        actual = s2m_log_weight(class_logits, validity, I, J, weight=MinMax(**terms))
        assert actual.dtype == compute
        expected = reference.s2m_log_weight(*wide, I, J, **terms)
        assert torch.equal(torch.isneginf(actual).cpu(), torch.isneginf(expected))
        assert_log_weights(actual, expected, reference.s2m_log_weight(*wide, I, **terms), compute)


@pytest.mark.parametrize("dtype", FLOATS)
def test_log_weight_with_every_term(dtype, device):
    class_logits, validity = make_logits(200, 5, dtype, device)
    fake = torch.randn(200, 7, dtype=dtype, device=device)
    correction = torch.randn(200, dtype=dtype, device=device)
    gamma = torch.rand(5) + 0.3
    terms = dict(temperature=0.2, validity_temperature=1.5)
    actual = s2m_log_weight(
        class_logits,
        validity,
        (1, 4),
        (0,),
        weight=MinMax(gamma=gamma, gamma_J=2.0, **terms),
        fake_class_logits=fake,
        proposal_class=6,
        log_correction=correction,
    )
    log_gamma = gamma.double().log()
    log_gamma[0] = math.log(2.0)
    wide = class_logits.double().cpu(), validity.double().cpu()
    terms |= dict(
        log_gamma=log_gamma,
        fake_logits=fake.double().cpu(),
        proposal_class=6,
        log_correction=correction.double().cpu(),
    )
    expected = reference.s2m_log_weight(*wide, (1, 4), (0,), **terms)
    assert_log_weights(actual, expected, reference.s2m_log_weight(*wide, (1, 4), **terms), dtype)


@pytest.mark.parametrize("dtype", LOGIT_DTYPES)
def test_log_weight_is_finite_for_large_logits(dtype, device):
    values = torch.tensor([-1e4, -100.0, -1.0, 0.0, 1e-4, 1.0, 100.0, 1e4])
    rows = torch.tensor(list(itertools.product(values, repeat=3))).to(device=device, dtype=dtype)
    validity = values.repeat(len(rows) // len(values)).to(device=device, dtype=dtype)
    for I, J in TARGETS[3]:
        actual = s2m_log_weight(rows, validity, I, J)
        expected = reference.s2m_log_weight(rows.double(), validity.double(), I, J)
        assert torch.equal(torch.isneginf(actual), torch.isneginf(expected))
        live = torch.isfinite(expected)
        magnitude = 1 + rows.double().abs().amax(1) + validity.double().abs()
        error = (actual.double() - expected).abs() / magnitude
        assert error[live].max() < 2e-6  # a few units in the last place of the largest term


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_log_weight_property(data):
    """Any logits, any joint class: the kernel is the reference within rounding of the largest term."""
    n_classes = data.draw(st.integers(1, 70))
    roles = data.draw(st.lists(st.sampled_from("IJ-"), min_size=n_classes, max_size=n_classes))
    I = [c for c, role in enumerate(roles) if role == "I"] or [0]
    J = [c for c, role in enumerate(roles) if role == "J" and c not in I]
    logit = st.floats(-50, 50, allow_nan=False, width=32)
    logits = torch.tensor([data.draw(st.lists(logit, min_size=n_classes, max_size=n_classes))]).double()
    validity = torch.tensor([data.draw(logit)]).double()
    actual = s2m_log_weight(logits, validity, I, J)
    expected = reference.s2m_log_weight(logits, validity, I, J)
    gap = logits[0, I].min() - logits[0, J].max() if J else torch.tensor(1.0)
    if gap > 1e-6 or gap <= -1e-12:
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-8)


def test_per_target_ratios_and_temperatures(device):
    """A list of targets with their own gamma and temperatures equals each target alone."""
    class_logits, validity = make_logits(130, 3, torch.float32, device)
    joint_classes = [JointClass(*t) for t in TARGETS[3]]
    weight = MinMax(
        gamma=lambda I, J: 0.5 if J else [0.9, 1.1, 1.2],
        gamma_J=lambda I, J: 1.0 + len(I),
        temperature=lambda I, J: {1: 1.2, 2: 1.0, 3: 0.2}[len(I)],
        validity_temperature=lambda I, J: 1.0 + 0.1 * len(J),
    )
    packed = pack_targets(joint_classes, 3, weight, device=device)
    together = _ops.s2m_log_weight(class_logits, validity, None, None, *packed, 0)
    for t, target in enumerate(joint_classes):
        alone = s2m_log_weight(class_logits, validity, target.I, target.J, weight=weight)
        assert torch.equal(together[t], alone)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_logit_of_minus_infinity_is_a_legal_never(dtype, device):
    """Weight 0 for a class in I and for D_v; nothing for a class in J, or in neither."""
    never, class_logits = -torch.inf, torch.tensor([[0.5, -1.0, 2.0, 0.0]], dtype=dtype, device=device)
    validity = torch.tensor([0.25], dtype=dtype, device=device)

    def masked(*classes):
        logits = class_logits.clone()
        logits[:, list(classes)] = never
        return logits

    assert s2m_log_weight(masked(0), validity, (0, 2), 3) == -torch.inf
    assert s2m_log_weight(masked(0, 3), validity, (0,), 3) == -torch.inf
    assert s2m_log_weight(class_logits, torch.full_like(validity, never), 2) == -torch.inf
    kept = class_logits[:, [0, 2]].double()
    expected = reference.s2m_log_weight(kept, validity.double(), (1,), (0,))
    found = s2m_log_weight(masked(1, 3), validity, (2,), (0, 1, 3))
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    alone = s2m_log_weight(masked(1, 3), validity, (2,), (1, 3))
    torch.testing.assert_close(
        alone.double(), reference.s2m_log_weight(kept, validity.double(), (1,)), rtol=1e-6, atol=1e-6
    )
    fake = masked(3)
    given = s2m_log_weight(class_logits, validity, 2, fake_class_logits=fake, proposal_class=0)
    wanted = reference.s2m_log_weight(
        class_logits.double(), validity.double(), (2,), fake_logits=fake.double(), proposal_class=0
    )
    torch.testing.assert_close(given.double(), wanted, rtol=1e-6, atol=1e-6)
    # D_f that excludes what was proposed, and a row without any class, are errors.
    assert not s2m_log_weight(class_logits, validity, 2, fake_class_logits=masked(0)) < torch.inf
    assert not s2m_log_weight(masked(0, 1, 2, 3), validity, 2) < torch.inf


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["class", "unused class", "validity", "fake"])
def test_non_finite_logits_give_nan(bad, which, device):
    class_logits, validity = make_logits(100, 4, torch.float32, device)
    fake = torch.zeros(100, 4, device=device)
    tensor, column = {"class": (class_logits, 0), "unused class": (class_logits, 3), "fake": (fake, 2)}.get(
        which, (validity, None)
    )
    if column is None:
        tensor[17] = bad
    else:
        tensor[17, column] = bad
    log_w = s2m_log_weight(class_logits, validity, (0,), (), fake_class_logits=fake)
    assert not log_w[17] < torch.inf or torch.isnan(log_w[17])
    assert torch.isfinite(log_w[torch.arange(100) != 17]).all()

    state = ChainState.start(1, 10, device=device)
    targets = pack_targets([JointClass((0,))], 4, device=device)
    blocks = [tensor.reshape(10, 10, -1) for tensor in (class_logits, validity, fake)]
    state.scan_logits(blocks[0], blocks[1][..., 0], targets, seed=0, fake_class_logits=blocks[2], first_step=40)
    assert int(state.invalid) == 41 * 10 + 7
    with pytest.raises(ValueError, match="chain 7 at step 41"):
        state.raise_if_invalid()


# --- randomness -----------------------------------------------------------------------------------


def test_philox_known_answers():
    """The vectors of the Random123 distribution."""
    ones = 0xFFFFFFFF
    assert reference.philox(0, 0, 0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert reference.philox(2**64 - 1, 2**64 - 1, ones, ones) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = reference.philox(0x299F31D0A4093822, 0x85A308D3243F6A88, 0x13198A2E, 0x03707344)
    assert pi == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 + 12345])
def test_draws_match_reference(seed, dtype, device):
    chains = torch.tensor([0, 1, 5, 2**31, 2**33 + 7, 63, 64])
    steps = torch.tensor([0, 199, 2**31 - 1, 3, 0, 7, 1])
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    uniform = _ops.philox_uniform(chains.to(device), steps.to(device), seed, dtype=dtype)
    expected = reference.philox_uniform(chains.tolist(), steps.tolist(), seed)
    torch.testing.assert_close(uniform.cpu().double(), expected, rtol=0, atol=tolerance)
    for dim in (1, 3, 4, 11):
        normal = _ops.philox_normal(chains.to(device), steps.to(device), seed, dim, dtype=dtype)
        expected = reference.philox_normal(chains.tolist(), steps.tolist(), seed, dim)
        torch.testing.assert_close(normal.cpu().double(), expected, rtol=0, atol=4 * tolerance)


def test_draws_are_uniform_and_normal(device):
    chains = torch.arange(200_000, device=device)
    steps = torch.full_like(chains, 3)
    uniform = _ops.philox_uniform(chains, steps, 5, dtype=torch.float64).cpu()
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    normal = _ops.philox_normal(chains, steps, 5, 6).cpu()
    for d in range(6):
        assert stats.kstest(normal[:, d], "norm").pvalue > 1e-3
    correlation = torch.corrcoef(torch.cat([normal.T.double(), uniform[None]]))
    assert (correlation - torch.eye(7)).abs().max() < 5 / 200_000**0.5


def test_draws_do_not_depend_on_the_batch(device):
    chains = torch.arange(1000, device=device)
    steps = chains % 17
    whole = _ops.philox_normal(chains, steps, 9, 10)
    for size in (1, 63, 64, 65, 999):
        parts = [
            _ops.philox_normal(c, s, 9, 10) for c, s in zip(chains.split(size), steps.split(size), strict=True)
        ]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(_ops.philox_normal(chains, steps, 9, 7), whole[:, :7])


# --- the scan -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_scan_matches_reference(dtype, device):
    n_steps, n_chains = 40, 150
    log_weights = torch.randn(2, n_steps, n_chains, dtype=dtype) * 2
    log_weights[torch.rand(log_weights.shape) < 0.6] = -torch.inf
    log_weights[1, :, 5] = -torch.inf  # a chain that never meets the support
    state = ChainState.start(2, n_chains, dtype, device).scan(log_weights.to(device), seed=3, first_chain=70)
    chains, steps = torch.meshgrid(torch.arange(70, 70 + n_chains), torch.arange(n_steps), indexing="xy")
    uniforms = reference.philox_uniform(chains.flatten().tolist(), steps.flatten().tolist(), 3)
    for t in range(2):
        accepted_step, log_weight, accepted = reference.imh_scan(
            log_weights[t].double(), uniforms.reshape(n_steps, n_chains).log()
        )
        assert torch.equal(state.accepted_step[t].cpu().long(), accepted_step)
        assert torch.equal(state.log_weight[t].cpu().double(), log_weight)
        assert torch.equal(state.accepted[t].cpu().long(), accepted)
        w = log_weights[t].double().exp()
        scale = state.weights[1, t].cpu().double().exp()
        torch.testing.assert_close(state.weights[2, t].cpu().double() * scale, w.sum(0), rtol=1e-5, atol=0)
        torch.testing.assert_close(state.weights[3, t].cpu().double() * scale**2, (w**2).sum(0), rtol=1e-5, atol=0)
        assert torch.equal(state.supported[t].cpu(), (w > 0).sum(0).int())
    assert state.accepted_step[1, 5] == -1
    assert int(state.invalid) == NO_INVALID


@pytest.mark.parametrize("dtype", LOGIT_DTYPES)
@pytest.mark.parametrize("n_classes", [3, 40, 65, 200])
def test_fused_scan_equals_log_weight_then_scan(n_classes, dtype, device):
    n_steps, n_chains = 9, 77
    class_logits, validity = make_logits(n_steps * n_chains, n_classes, dtype, device)
    compute = _ops.compute_dtype(dtype)
    joint_classes = [JointClass(*t) for t in TARGETS[n_classes]] * 5  # more than one block of targets
    targets = pack_targets(joint_classes, n_classes, MinMax(temperature=0.8), dtype=compute, device=device)
    fake = torch.randn(n_steps * n_chains, n_classes, device=device).to(dtype)
    correction = torch.randn(n_steps * n_chains, dtype=compute, device=device)
    log_weights = _ops.s2m_log_weight(class_logits, validity, fake, correction, *targets, 1)
    two_ops = ChainState.start(len(joint_classes), n_chains, compute, device)
    two_ops.scan(log_weights.reshape(-1, n_steps, n_chains), seed=4, first_chain=3, first_step=2)
    fused = ChainState.start(len(joint_classes), n_chains, compute, device)
    fused.scan_logits(
        class_logits.reshape(n_steps, n_chains, -1),
        validity.reshape(n_steps, n_chains),
        targets,
        seed=4,
        first_chain=3,
        first_step=2,
        fake_class_logits=fake.reshape(n_steps, n_chains, -1),
        proposal_class=1,
        log_correction=correction.reshape(n_steps, n_chains),
    )
    assert torch.equal(fused.weights, two_ops.weights)
    assert torch.equal(fused.counts, two_ops.counts)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_scan_does_not_depend_on_blocks_threads_or_company(n_threads, threads, device):
    threads(n_threads)
    n_steps, n_chains = 20, 5000
    class_logits, validity = make_logits(n_steps * n_chains, 3, torch.float32, device)
    class_logits, validity = class_logits.reshape(n_steps, n_chains, 3), validity.reshape(n_steps, n_chains)
    targets = pack_targets([JointClass((0,), (1,))], 3, device=device)

    def scan(first, last, blocks, c0=0, c1=n_chains):
        state = ChainState.start(1, c1 - c0, device=device)
        for start in range(first, last, blocks):
            rows = slice(start, min(start + blocks, last))
            block = class_logits[rows, c0:c1], validity[rows, c0:c1]  # not contiguous for some of the chains
            state.scan_logits(*block, targets, seed=1, first_chain=c0, first_step=start)
        return torch.cat([state.weights, state.counts.to(state.weights)])

    whole = scan(0, n_steps, n_steps)
    for blocks in (1, 7):
        assert torch.equal(scan(0, n_steps, blocks), whole)
    for c0, c1 in ((0, 1), (100, 170), (4999, 5000)):
        assert torch.equal(scan(0, n_steps, n_steps, c0, c1), whole[:, :, c0:c1])


def fingerprints():
    """Hashes of what the kernels leave."""
    torch.manual_seed(0)
    bits = []
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        compute = _ops.compute_dtype(dtype)
        logits, validity = (torch.randn(3, 150, 11) * 3).to(dtype), torch.randn(3, 150).to(dtype)
        targets = pack_targets(
            [JointClass((0, 3), (1,)), JointClass((2,))], 11, MinMax(temperature=0.7), dtype=compute
        )
        state = ChainState.start(2, 150, compute).scan_logits(logits, validity, targets, seed=1)
        bits += [state.weights, state.counts]
    chains = torch.arange(99)
    for dtype in (torch.float32, torch.float64):
        bits.append(_ops.philox_normal(chains, chains, 1, 9, dtype=dtype))
        bits.append(_ops.philox_uniform(chains, chains, 1, dtype=dtype))
    return [hashlib.sha256(b.numpy().tobytes()).hexdigest() for b in bits]


@pytest.mark.slow
def test_every_instruction_set_gives_the_same_bits(on_every_isa):
    found = on_every_isa(__file__)
    assert "baseline" in found
    assert len({tuple(hashes) for hashes in found.values()}) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", LOGIT_DTYPES)
def test_cpu_and_gpu_give_the_same_bits(dtype):
    compute = _ops.compute_dtype(dtype)
    for n_classes in (3, 40, 200):
        class_logits, validity = make_logits(50 * 300, n_classes, dtype, "cpu")
        class_logits, validity = class_logits.reshape(50, 300, -1), validity.reshape(50, 300)
        states = {}
        for where in ("cpu", "cuda"):
            joint_classes = [JointClass(*t) for t in TARGETS[n_classes]]
            targets = pack_targets(joint_classes, n_classes, MinMax(temperature=0.7), dtype=compute, device=where)
            state = ChainState.start(len(joint_classes), 300, compute, where)
            states[where] = state.scan_logits(class_logits.to(where), validity.to(where), targets, seed=2)
        assert torch.equal(states["cpu"].counts, states["cuda"].counts.cpu())
        assert torch.equal(states["cpu"].weights, states["cuda"].weights.cpu())
    chains = torch.arange(10_000)
    for draw in (lambda c: _ops.philox_uniform(c, c, 1, dtype=compute), lambda c: _ops.philox_normal(c, c, 1, 9)):
        assert torch.equal(draw(chains), draw(chains.cuda()).cpu())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_scan_inside_a_cuda_graph():
    class_logits, validity = make_logits(8 * 100, 3, torch.float32, "cuda")
    block = class_logits.reshape(8, 100, 3), validity.reshape(8, 100)
    targets = pack_targets([JointClass((0,), (1,))], 3, device="cuda")
    eager = ChainState.start(1, 100, device="cuda").scan_logits(*block, targets, seed=0)
    captured = ChainState.start(1, 100, device="cuda")
    start = captured.weights.clone(), captured.counts.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.scan_logits(*block, targets, seed=0)
    captured.weights.copy_(start[0])
    captured.counts.copy_(start[1])
    graph.replay()
    assert torch.equal(captured.weights, eager.weights)
    assert torch.equal(captured.counts, eager.counts)


# --- torch citizenship and bad input --------------------------------------------------------------


def op_arguments(device):
    class_logits, validity = make_logits(12, 3, torch.float32, device)
    targets = pack_targets([JointClass((0,), (1,)), JointClass((2,))], 3, device=device)
    correction = torch.randn(12, device=device)
    rows = torch.arange(6, device=device)

    def state():
        chains = ChainState.start(2, 4, device=device)
        return chains.weights, chains.counts, chains.invalid

    block = class_logits.reshape(3, 4, 3), validity.reshape(3, 4)
    return [
        (_ops.s2m_log_weight, (class_logits, validity, None, None, *targets, 0), {}),
        (_ops.s2m_log_weight, (class_logits, validity, class_logits, correction, *targets, 2), {}),
        (_ops.imh_scan, (torch.randn(2, 3, 4, device=device), 1, 0, 0, *state()), {}),
        (_ops.s2m_imh_scan, (*block, None, None, *targets, 0, 1, 0, 0, *state()), {}),
        (_ops.s2m_imh_scan, (*block, block[0], correction.reshape(3, 4), *targets, 1, 1, 0, 0, *state()), {}),
        (_ops.philox_uniform, (rows, rows, 3), {"dtype": torch.float64}),
        (_ops.philox_normal, (rows, rows, 3, 5), {}),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("case", range(7))
def test_opcheck(case, device):
    op, args, kwargs = op_arguments(device)[case]
    torch.library.opcheck(op, args, kwargs)


def test_compile_fullgraph(device):
    op, args, _ = op_arguments(device)[1]

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(*args):
        return op(*args) * 2

    assert torch.equal(compiled(*args), op(*args) * 2)


def test_empty_batches(device):
    empty = torch.empty(0, 3, device=device), torch.empty(0, device=device)
    assert s2m_log_weight(*empty, 0).shape == (0,)
    rows = torch.empty(0, dtype=torch.int64, device=device)
    assert _ops.philox_normal(rows, rows, 0, 4).shape == (0, 4)
    state = ChainState.start(1, 0, device=device)
    targets = pack_targets([JointClass((0,))], 3, device=device)
    state.scan_logits(torch.empty(5, 0, 3, device=device), torch.empty(5, 0, device=device), targets, seed=0)


def test_autograd_is_refused_not_silently_zero():
    logits = torch.randn(4, 3, requires_grad=True)
    log_w = s2m_log_weight(logits, torch.zeros(4), 0)
    with pytest.raises(RuntimeError, match="not implemented"):
        log_w.sum().backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({0: torch.zeros(4, 3, dtype=torch.int64)}, TypeError, "class_logits must be float32"),
        ({0: torch.zeros(4)}, ValueError, "class_logits must have 2 dimensions"),
        ({1: torch.zeros(5)}, ValueError, r"validity_logit must have shape \[4\], got \[5\]"),
        ({1: torch.zeros(4).double()}, TypeError, "validity_logit must be Float, got Double"),
        ({2: torch.zeros(4, 3), 7: 3}, IndexError, "proposal_class 3 is outside the 3 classes"),
        ({3: torch.zeros(4, 1)}, ValueError, "log_correction must have shape"),
        ({4: torch.zeros(1, 2, 2, dtype=torch.int64)}, ValueError, "masks must have shape"),
        ({4: torch.full((1, 2, 1), 8)}, IndexError, "masks name a class beyond the 3 of class_logits"),
        ({5: torch.zeros(1, 4)}, ValueError, "log_gamma must have shape"),
    ],
)
def test_bad_arguments(change, error, message):
    targets = pack_targets([JointClass((0,))], 3)
    args = [torch.zeros(4, 3), torch.zeros(4), None, None, *targets, 0]
    for index, value in change.items():
        args[index] = value
    with pytest.raises(error, match=message):
        _ops.s2m_log_weight(*args)


def test_state_must_fit():
    targets = pack_targets([JointClass((0,))], 3)
    state = ChainState.start(1, 5)
    with pytest.raises(ValueError, match=r"weights must have shape \[4, 1, 4\], got \[4, 1, 5\]"):
        state.scan_logits(torch.zeros(2, 4, 3), torch.zeros(2, 4), targets, seed=0)
    with pytest.raises(TypeError, match="weights must be Double"):
        state.scan(torch.zeros(1, 2, 5, dtype=torch.float64), seed=0)
    with pytest.raises(ValueError, match="outside 0 to"):
        state.scan(torch.zeros(1, 2, 5), seed=0, first_step=2**31 - 2)
