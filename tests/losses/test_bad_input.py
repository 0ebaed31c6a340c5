"""What is wrong with an input is said at once, by an exception that names it and what was expected."""

import math
import re

import pytest
import torch
from cases import ONE_OF_EACH, make_index, make_labels, make_logits, make_matrix, move
from torch import nn

from spml_fast import labels as label_tools
from spml_fast import losses

N, L = 37, 81
GR = dict(w=1.0, b=-2.0, mu=0.5, sigma=1.0)
OBSERVED_ONLY = [case for case in ONE_OF_EACH if not case.full_labels]
WITH_MATRIX = [case for case in ONE_OF_EACH if case.matrix is not None]
every_loss = pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.id)


@pytest.fixture(autouse=True)
def _next_correct_call_works(_fixed_seed):
    z, labels = torch.randn(5, 7, requires_grad=True), torch.tensor([0, 6, -1, 3, 3])
    before = losses.an_loss(z, labels)
    yield
    after = losses.an_loss(z, labels)
    assert torch.equal(after, before)
    after.backward()
    assert z.grad.isfinite().all()


def refused(error, match, call, *args, **kwargs):
    with pytest.raises(error, match=match) as raised:
        call(*args, **kwargs)
    assert "incompatible function arguments" not in str(raised.value)


def problem(case, device="cpu", dtype=torch.float32):
    """(logits, labels, second matrix) that the loss accepts."""
    s = make_labels(case, N, L)
    z = make_logits(N, L, dtype).to(device)
    return z, s.float().to(device), move(make_matrix(case, s, dtype), device)


# --- label values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [2.0, -2.0, 0.5, math.nan, math.inf, -0.1])
@every_loss
def test_label_value_is_named_with_its_place(case, value):
    if case.full_labels and value == 0.5:
        return
    z, s, second_matrix = problem(case)
    s[30, 77] = value
    place = re.escape(f"labels[30, 77] is {value:g}; expected ")
    expected = (
        "a full label between 0 and 1" if case.full_labels else r"1 \(observed positive\), 0 \(unobserved\) or -1"
    )
    refused(ValueError, place + expected, case.fused, z, s, second_matrix)
    refused(ValueError, place + expected, case.fused, z.requires_grad_(), s.double(), second_matrix)
    refused(ValueError, place + expected, case.fused, z, s.t().contiguous().t(), second_matrix)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["an", "bce", "pr", "role", "ll_r"])
def test_label_value_of_any_dtype(name, dtype):
    case = next(c for c in ONE_OF_EACH if c.name == name)
    z, s, second_matrix = problem(case)
    s = (s == 1).to(dtype)
    s[3, 1] = 2
    refused(ValueError, r"labels\[3, 1\] is 2; expected ", case.fused, z, s, second_matrix)


def test_observed_negative_is_no_full_label():
    for function in (losses.bce_loss, losses.bce_ls_loss):
        s = torch.zeros(4, 5)
        s[2, 3] = -1
        refused(ValueError, r"labels\[2, 3\] is -1; expected a full label", function, torch.zeros(4, 5), s)


def test_the_first_of_several_invalid_labels_is_named(threads):
    s = torch.zeros(300, 200)
    s[[11, 150, 299], [199, 0, 3]] = 3
    for n_threads in (1, 2):
        threads(n_threads)
        refused(ValueError, r"labels\[11, 199\] is 3", losses.an_loss, torch.zeros(300, 200), s)


@pytest.mark.parametrize("value", [L, L + 1000, -2, 2**40])
@pytest.mark.parametrize("case", OBSERVED_ONLY, ids=lambda case: case.id)
def test_index_out_of_range(case, value):
    z, _, second_matrix = problem(case)
    labels = make_index(N, L)
    labels[35] = value
    message = rf"labels\[35\] is {value}; expected -1 \(none observed\) or a class index, -1 to {L - 1}"
    refused(IndexError, message, case.fused, z, labels, second_matrix)
    refused(IndexError, message, case.fused, z.requires_grad_(), labels, second_matrix)


def test_a_refused_batch_flips_no_label():
    flips, index = torch.zeros(6, 5, dtype=torch.uint8), torch.arange(4)
    s = torch.zeros(4, 5)
    s[3, 4] = 2
    refused(ValueError, "is 2", losses.ll_cp_loss, torch.ones(4, 5), s, flips, index, share=0.5)
    assert flips.sum() == 0


def test_a_refused_batch_is_no_step_of_pns():
    module = losses.PNSLoss()
    refused(IndexError, r"labels\[0\] is 9", module, torch.zeros(1, 5), torch.tensor([9]))
    assert module.step.item() == 0


# --- kinds of labels ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in ONE_OF_EACH if c.full_labels], ids=lambda case: case.id)
def test_index_says_too_little_for_full_labels(case, device):
    z, _, second_matrix = problem(case, device)
    message = rf"full labels of shape \({N}, {L}\); labels of shape \(N,\) name one positive"
    refused(ValueError, message, case.fused, z, make_index(N, L).to(device), second_matrix)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize("case", OBSERVED_ONLY, ids=lambda case: case.id)
def test_index_is_int64(case, dtype, device):
    z, _, second_matrix = problem(case, device)
    labels = make_index(N, L).clamp(min=0).to(dtype).to(device)
    refused(
        TypeError,
        r"labels of shape \(N,\).* must be int64, got (Int|Byte|Bool|Float)",
        case.fused,
        z,
        labels,
        second_matrix,
    )


def test_index_of_a_column_must_be_made_contiguous(device):
    pairs = torch.zeros(4, 2, dtype=torch.int64, device=device)
    refused(
        ValueError, r"labels of shape \(N,\) must be contiguous", losses.an_loss, torch.zeros(4, 5), pairs[:, 0]
    )


@pytest.mark.parametrize("dtype", [torch.int16, torch.complex64], ids=str)
@every_loss
def test_dtypes_of_no_label(case, dtype, device):
    z, s, second_matrix = problem(case, device)
    refused(
        TypeError,
        "labels has dtype (Short|ComplexFloat); expected bool, int8,",
        case.fused,
        z,
        s.to(dtype),
        second_matrix,
    )


# --- shapes ---------------------------------------------------------------------------------------


@every_loss
def test_shape_of_labels(case, device):
    z, s, second_matrix = problem(case, device)
    for labels in (s[:-1], s[:, :-1], s[None], s[0, 0], s.t(), torch.cat([s, s])):
        shapes = rf"\(({N}|N),\) or \(({N}, {L}|N, L)\)"
        message = rf"labels must have shape {shapes}.*, got \[|takes full labels of shape \({N}, {L}\);"
        refused(ValueError, message, case.fused, z, labels, second_matrix)


@pytest.mark.parametrize("case", OBSERVED_ONLY, ids=lambda case: case.id)
def test_length_of_an_index(case, device):
    z, _, second_matrix = problem(case, device)
    for n in (N - 1, N + 1, 0):
        labels = torch.zeros(n, dtype=torch.int64, device=device)
        refused(ValueError, f"labels has {n} rows, logits has {N}", case.fused, z, labels, second_matrix)


@every_loss
def test_shape_of_logits(case, device):
    z, s, second_matrix = problem(case, device)
    for logits in (z[0], z[None], z[0, 0]):
        message = rf"logits must have shape \(N, L\), got \[{', '.join(map(str, logits.shape))}\]"
        refused(ValueError, message, case.fused, logits, s, second_matrix)


@pytest.mark.parametrize("case", WITH_MATRIX, ids=lambda case: case.id)
def test_shape_of_the_second_matrix(case, device):
    z, s, second_matrix = problem(case, device)
    message = r"(second matrix|table|flips) must have shape [\[(]\d+, 81[\])], got \[37, 80\]"
    refused(ValueError, message, case.fused, z, s, second_matrix[:, :-1].contiguous())
    if case.matrix != "flips":  # a table with an index: any number of rows
        refused(
            ValueError, r"must have shape [\[(]37, 81[\])], got \[36, 81\]", case.fused, z, s, second_matrix[:-1]
        )
    index = torch.zeros(N, dtype=torch.int64, device=device)
    tables = {
        "em_apl": losses.em_apl_loss,
        "gpr": lambda *args: losses.gpr_loss(*args, **GR),
        "role": lambda *args: losses.role_loss(*args, expected_positives=1.0),
        "ll_cp": lambda *args: losses.ll_cp_loss(*args, share=0.1),
    }
    if case.name in tables:
        for table, got in (
            (second_matrix[0], r"\[81\]"),
            (second_matrix[0, 0], r"\[\]"),
            (second_matrix[None], r"\[1, 37, 81\]"),
        ):
            message = rf"(second matrix|table|flips) must have .*81[\])], got {got}"
            refused(ValueError, message, tables[case.name], z, s, table, index)


# --- types and devices ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
@every_loss
def test_dtype_of_logits(case, dtype, device):
    z, s, second_matrix = problem(case, device)
    message = "logits must be float32, float64, float16 or bfloat16, got (Long|Bool|ComplexFloat)"
    refused(TypeError, message, case.fused, z.to(dtype), s, second_matrix)


@pytest.mark.parametrize("wrong", [[[0.0, 1.0]], None, 3.0], ids=["list", "None", "float"])
@every_loss
def test_logits_are_a_tensor(case, wrong):
    _, s, second_matrix = problem(case)
    function = case.fused
    if case.name == "ll_cp":  # the helper of the cases asks the logits for their shape
        function = lambda z, s, flips: losses.ll_cp_loss(z, s, flips, torch.arange(N), share=0.1)  # noqa: E731
    refused(TypeError, f"logits.*tensor.*{type(wrong).__name__}", function, wrong, s, second_matrix)


@pytest.mark.parametrize("wrong", [[0, 1, 2], None, 3], ids=["list", "None", "int"])
@every_loss
def test_labels_are_a_tensor(case, wrong):
    z, _, second_matrix = problem(case)
    refused(TypeError, f"labels.*tensor.*{type(wrong).__name__}", case.fused, z, wrong, second_matrix)


@every_loss
def test_labels_on_another_device(case, device):
    z, s, second_matrix = problem(case, device)
    message = rf"labels is on meta, expected {device.type}"
    refused(ValueError, message, case.fused, z, s.to("meta"), second_matrix)
    refused(ValueError, message, case.fused, z.requires_grad_(), s.to("meta"), second_matrix)
    if not case.full_labels:
        refused(
            ValueError, message, case.fused, z, torch.zeros(N, dtype=torch.int64, device="meta"), second_matrix
        )


@every_loss
def test_class_weight_on_another_device(case, device):
    z, s, second_matrix = problem(case, device)
    weight = torch.ones(L, device="meta")
    message = f"class_weight is on meta, expected {device.type}"
    refused(ValueError, message, case.fused, z, s, second_matrix, class_weight=weight)


@pytest.mark.parametrize("case", WITH_MATRIX, ids=lambda case: case.id)
def test_second_matrix_on_another_device(case, device):
    z, s, second_matrix = problem(case, device)
    refused(ValueError, f"is on meta, expected {device.type}", case.fused, z, s, second_matrix.to("meta"))


@every_loss
def test_sparse_tensors(case):
    z, s, second_matrix = problem(case)
    refused(NotImplementedError, "(?i)sparse", case.fused, z.to_sparse(), s, second_matrix)
    refused(NotImplementedError, "(?i)sparse", case.fused, z, s.to_sparse(), second_matrix)
    if second_matrix is not None and case.matrix != "flips":
        refused(NotImplementedError, "(?i)sparse", case.fused, z, s, second_matrix.to_sparse())


# --- arguments that all losses have ---------------------------------------------------------------


@every_loss
def test_shape_of_class_weight(case, device):
    z, s, second_matrix = problem(case, device)
    for weight in (torch.ones(L - 1), torch.ones(L + 1), torch.ones(1, L), torch.ones(N), torch.tensor(1.0)):
        message = rf"class_weight must have shape \({L},\), got \[{', '.join(map(str, weight.shape))}\]"
        refused(ValueError, message, case.fused, z, s, second_matrix, class_weight=weight.to(device))


@every_loss
def test_reduction(case):
    z, s, second_matrix = problem(case)
    for wrong in ("avg", "", None, "Mean"):
        message = f"reduction must be 'none', 'mean' or 'sum', got {wrong!r}"
        refused(ValueError, message, case.fused, z, s, second_matrix, reduction=wrong)


@pytest.mark.parametrize("eps", [-1e-5, 1.0, 2.0, math.nan])
@pytest.mark.parametrize("case", [c for c in ONE_OF_EACH if c.has_eps], ids=lambda case: case.id)
def test_eps(case, eps):
    z, s, second_matrix = problem(case)
    refused(
        ValueError, f"eps must be at least 0 and less than 1, got {eps}", case.fused, z, s, second_matrix, eps=eps
    )


# --- hyper-parameters -----------------------------------------------------------------------------

HYPER = [
    ("gr", {**GR, "q": (0.0, -0.1, 1.0)}, r"exponents q must not be negative, got \(0.0, -0.1, 1.0\)"),
    ("gr", {**GR, "q": (0.0, math.nan, 1.0)}, "exponents q must not be negative"),
    ("gr", {**GR, "q": (0.0, 1.0)}, r"three exponents \(q1, q2, q3\), got \(0.0, 1.0\)"),
    ("gr", {**GR, "sigma": 0.0}, "sigma must be positive, got 0.0"),
    ("gr", {**GR, "sigma": -0.5}, "sigma must be positive, got -0.5"),
    ("gr", {**GR, "sigma": math.nan}, "sigma must be positive, got nan"),
    ("em", {"alpha": -0.1}, "alpha must be at least 0, got -0.1"),
    ("em", {"alpha": math.nan}, "alpha must be at least 0, got nan"),
    ("bce_ls", {"smoothing": -0.1}, "smoothing must be between 0 and 1, got -0.1"),
    ("an_ls", {"smoothing": 1.1}, "smoothing must be between 0 and 1, got 1.1"),
    ("wan", {"negative_weight": -1.0}, "negative_weight must be at least 0, got -1.0"),
    ("focal_margin", {"gamma": -1.0}, "gamma must be at least 0, got -1.0"),
    ("hill", {"gamma": -1.0}, "gamma must be at least 0, got -1.0"),
    ("splc", {"tau": 1.5}, "tau must be between 0 and 1, got 1.5"),
    ("asl", {"gamma_pos": -1.0}, "gamma_pos must be at least 0, got -1.0"),
    ("asl", {"gamma_neg": -1.0}, "gamma_neg must be at least 0, got -1.0"),
    ("asl", {"margin": 1.5}, "margin must be between 0 and 1, got 1.5"),
    ("epr", {"expected_positives": -1.0}, "expected_positives must be a finite number, at least 0, got -1.0"),
    ("epr", {"expected_positives": math.nan}, "expected_positives must be a finite number, at least 0, got nan"),
    ("epr", {"expected_positives": 1.0, "lam": -1.0}, "lam must be at least 0, got -1.0"),
    ("ll_r", {"share": 1.5}, "share must be between 0 and 1, got 1.5"),
    ("ll_ct", {"share": -0.1}, "share must be between 0 and 1, got -0.1"),
    ("ll_ct", {"share": math.nan}, "share must be between 0 and 1, got nan"),
]


@pytest.mark.parametrize(("name", "hyper", "message"), HYPER, ids=[name for name, *_ in HYPER])
def test_hyper_parameter(name, hyper, message):
    function = getattr(losses, f"{name}_loss")
    z, s = torch.zeros(4, 5), torch.zeros(4, 5)
    refused(ValueError, message, function, z, s, **hyper)
    refused(ValueError, message, lambda: losses.make(name, **hyper)(z, s))


def test_hyper_parameter_of_losses_with_a_second_matrix():
    z = torch.zeros(4, 5)
    refused(ValueError, "alpha must be at least 0, got -1", losses.em_apl_loss, z, z, z, alpha=-1)
    refused(ValueError, "beta must be at least 0, got -1", losses.em_apl_loss, z, z, z, beta=-1)
    refused(ValueError, "rho must be between 0 and 1, got 2", losses.gpr_loss, z, z, z, **GR, rho=2)
    message = r"weight_range must be two numbers in order between 0 and 1, got \(0.7, 0.4\)"
    refused(ValueError, message, losses.gpr_loss, z, z, z, **GR, weight_range=(0.7, 0.4))
    message = "expected_positives must be a finite number, at least 0, got inf"
    refused(ValueError, message, losses.role_loss, z, z, z, expected_positives=math.inf)
    flips = torch.zeros(4, 5, dtype=torch.uint8)
    message = "share must be between 0 and 1, got 2"
    refused(ValueError, message, losses.ll_cp_loss, z, z, flips, torch.arange(4), share=2)


# --- modules --------------------------------------------------------------------------------------


def test_unknown_loss():
    refused(ValueError, "no loss is called 'grr'; there are an, an_ls, asl, .*, wan", losses.make, "grr")


def test_unknown_hyper_parameter():
    refused(
        TypeError,
        "ANLoss has no hyper-parameter 'smoothing'; it has class_weight, eps, ",
        losses.make,
        "an",
        smoothing=1,
    )
    refused(TypeError, "GRLoss has no hyper-parameter 'gamma'; it has b, ", losses.GRLoss, gamma=1)
    # What belongs to a batch is no hyper-parameter.
    k_hat = torch.ones(1, dtype=torch.float64)
    message = (
        "EPRLoss has no hyper-parameter 'k_hat'; it has class_weight, eps, expected_positives, lam, reduction"
    )
    refused(TypeError, message, losses.EPRLoss, expected_positives=1.0, k_hat=k_hat)


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=lambda case: case.id)
def test_a_module_refuses_what_it_could_never_compute(case):
    """When it is made, not when the first batch comes."""
    more = dict(n_samples=4, n_labels=5) if case.name in ("ll_cp", "em_apl") else {}
    make = lambda **wrong: losses.make(case.name, **case.hyper, **more, **wrong)  # noqa: E731
    refused(ValueError, "reduction must be 'none', 'mean' or 'sum', got 'avg'", make, reduction="avg")
    if case.has_eps:
        refused(ValueError, "eps must be at least 0 and less than 1, got 1.5", make, eps=1.5)


def test_missing_hyper_parameter():
    refused(TypeError, "EPRLoss needs expected_positives", losses.make, "epr")
    refused(TypeError, "ROLELoss needs expected_positives", losses.ROLELoss)
    refused(TypeError, "'n_samples' and 'n_labels'", losses.make, "ll_cp")
    refused(TypeError, "'n_samples' and 'n_labels'", losses.make, "em_apl")
    refused(TypeError, "'expected_positives'", losses.epr_loss, torch.zeros(2, 3), torch.zeros(2, 3))
    refused(TypeError, "'b', 'mu', and 'sigma'", losses.gr_loss, torch.zeros(2, 3), torch.zeros(2, 3), w=1.0)


def test_missing_argument_of_forward():
    z, s = torch.zeros(4, 5), torch.zeros(4, 5)
    refused(TypeError, "'index'", losses.make("ll_cp", n_samples=4, n_labels=5), z, s)
    refused(TypeError, "'index'", losses.make("em_apl", n_samples=4, n_labels=5), z, s)
    refused(TypeError, "'full_labels'", losses.make("iun"), z, s)
    refused(TypeError, "'pseudo_labels'", losses.make("gpr"), z, s)
    refused(TypeError, "'table'", losses.make("role", expected_positives=1.0), z, s)


def test_none_for_a_second_matrix_names_it():
    z, s, index = torch.zeros(4, 5), torch.zeros(4, 5), torch.arange(4)
    refused((TypeError, ValueError), "full_labels", losses.iun_loss, z, s, None)
    refused((TypeError, ValueError), "pseudo_labels", losses.em_apl_loss, z, s, None)
    refused((TypeError, ValueError), "pseudo_labels", losses.gpr_loss, z, s, None, **GR)
    refused((TypeError, ValueError), "table", losses.role_loss, z, s, None, index, expected_positives=1.0)
    refused((TypeError, ValueError), "flips", losses.ll_cp_loss, z, s, None, index, share=0.1)


def test_none_for_the_index_of_a_store():
    z, s = torch.zeros(4, 5), torch.zeros(4, 5)
    flips = torch.zeros(7, 5, dtype=torch.uint8)
    refused(TypeError, "index must be a tensor", losses.ll_cp_loss, z, s, flips, None, share=0.1)
    refused(TypeError, "index must be", losses.make("ll_cp", n_samples=7, n_labels=5), z, s, None)
    module = losses.make("em_apl", n_samples=7, n_labels=5)
    refused(ValueError, r"must have shape \(4, 5\), got \[7, 5\]", module, z, s, None)


def test_schedules():
    message = r"w=\(0.0, 2.0\) changes over the epochs: how many there are must be given as epochs"
    refused(ValueError, message, losses.GRLoss, epochs=None)
    refused(ValueError, r"mu=\(0.5, 0.8\) changes", losses.GRLoss, epochs=None, w=1.0, b=2.0)
    losses.GRLoss(epochs=None, **GR)
    refused(ValueError, "over 0 epochs cannot have 0 of warm-up", losses.GRLoss, epochs=0)
    refused(ValueError, "over 3 epochs cannot have 3 of warm-up", losses.GRLoss, epochs=3, warmup=3)
    refused(ValueError, "over 3 epochs cannot have -1 of warm-up", losses.GRLoss, epochs=3, warmup=-1)
    message = "warmup must be between 1 and epochs - 1 = 9, got 10"
    refused(ValueError, message, losses.make, "em_apl", n_samples=4, n_labels=5, warmup=10)
    refused(
        ValueError, "theta must be between 0 and 1, got 2", losses.make, "em_apl", n_samples=4, n_labels=5, theta=2
    )
    for name in ("ll_r", "ll_ct"):
        refused(ValueError, "delta must be between 0 and 1, got 1.5", losses.make, name, delta=1.5)


def test_epochs_count_from_1():
    for module in (losses.GRLoss(), losses.ANLoss(), losses.make("ll_r")):
        for epoch in (0, -1):
            refused(ValueError, f"epochs are counted from 1, got {epoch}", module.set_epoch, epoch)
        assert module.epoch == 1


def test_update_of_pseudo_labels():
    module = losses.make("em_apl", n_samples=4, n_labels=5)
    message = r"probabilities must have shape \(4, 5\), got \(4, 6\)"
    refused(ValueError, message, module.update, torch.zeros(4, 6), torch.zeros(4, 5))
    message = r"labels must have shape \(4,\) or \(4, 5\), got \(3, 5\)"
    refused(ValueError, message, module.update, torch.zeros(4, 5), torch.zeros(3, 5))


# --- expected positives, ROLE ---------------------------------------------------------------------


def test_k_hat(device):
    z, s = torch.zeros(4, 5, device=device), torch.zeros(4, 5, device=device)
    one, two = torch.ones(1, dtype=torch.float64, device=device), torch.ones(2, dtype=torch.float64, device=device)
    k = dict(expected_positives=1.0)
    refused(TypeError, "k_hat must be Double, got Float", losses.epr_loss, z, s, **k, k_hat=one.float())
    refused(ValueError, r"k_hat must have shape \[1\], got \[2\]", losses.epr_loss, z, s, **k, k_hat=two)
    refused(ValueError, r"k_hat must have shape \[1\], got \[\]", losses.epr_loss, z, s, **k, k_hat=one[0])
    refused(ValueError, r"k_hat must have shape \[2\], got \[1\]", losses.role_loss, z, s, z, **k, k_hat=one)
    refused(
        ValueError, f"k_hat is on meta, expected {device.type}", losses.epr_loss, z, s, **k, k_hat=one.to("meta")
    )


def test_expected_positive_count_of_what_is_no_matrix(device):
    z = torch.zeros(4, device=device)
    refused(TypeError, "logits must be tensors, got list", losses.expected_positive_count, [0.0])
    refused(ValueError, r"logits must have shape \(N, L\), got \[4\]", losses.expected_positive_count, z)


def test_role_table(device):
    z, s = torch.zeros(4, 5, device=device), torch.zeros(4, 5, device=device)
    table, index = torch.zeros(7, 5, device=device), torch.tensor([0, 6, 3, 3], device=device)
    role = lambda *args, **kw: losses.role_loss(*args, expected_positives=1.0, **kw)  # noqa: E731
    refused(TypeError, "table must be Float for logits of Float, got Double", role, z, s, table.double(), index)
    refused(TypeError, "table must be Double for logits of Double, got Float", role, z.double(), s, table, index)
    refused(TypeError, "table must be Float for logits of Half, got Half", role, z.half(), s, table.half(), index)
    refused(ValueError, r"must have shape \(7, 5\), got \[7, 4\]", role, z, s, table[:, 1:], index)
    refused(ValueError, r"must have shape \(4, 5\), got \[7, 5\]", role, z, s, table)
    refused(TypeError, "index must be Long, got Int", role, z, s, table, index.int())
    refused(ValueError, r"index must have shape \[4\], got \[3\]", role, z, s, table, index[1:])
    refused(ValueError, "(?i)reduction=.none. is not defined", role, z, s, table, index, reduction="none")


TABLE = torch.zeros(7, 5)
WITH_INDEX = {
    "role": lambda z, s, index: losses.role_loss(z, s, TABLE, index, expected_positives=1.0),
    "em_apl": lambda z, s, index: losses.em_apl_loss(z, s, TABLE, index),
    "gpr": lambda z, s, index: losses.gpr_loss(z, s, TABLE, index, **GR),
    "ll_cp": lambda z, s, index: losses.ll_cp_loss(z, s, TABLE.byte(), index, share=0.1),
}


@pytest.mark.parametrize("call", WITH_INDEX.values(), ids=WITH_INDEX.keys())
def test_index_into_a_table(call):
    z, s = torch.zeros(4, 5), torch.zeros(4, 5)
    for value in (7, -1, 2**40):
        index = torch.tensor([0, value, 3, 3])
        refused(IndexError, rf"index\[1\] is {value}; expected a row of the table, 0 to 6", call, z, s, index)
    refused(
        ValueError, "index must be contiguous", call, z, s, torch.tensor([[0, 6], [3, 3], [4, 4], [5, 5]])[:, 0]
    )
    # Looking for values out of range must not run past the one number that there is.
    refused(ValueError, "index must be contiguous", call, z, s, torch.tensor([3]).expand(4))


def test_what_cannot_stand_in_role():
    z, s = torch.zeros(4, 5), torch.zeros(4, 5)
    role = lambda loss: losses.role_loss(z, s, z, expected_positives=1.0, loss=loss)  # noqa: E731
    refused(ValueError, "no loss is called 'grr'", role, "grr")
    refused(TypeError, "must be a name or a loss module of this package, got function", role, losses.an_loss)
    refused(TypeError, "must be a name or a loss module of this package, got BCELoss", role, nn.BCELoss())
    for name in ("pr", "pns", "iun", "em_apl", "gpr", "ll_r", "ll_ct", "ll_cp", "epr", "role"):
        more = dict(n_samples=4, n_labels=5) if name in ("ll_cp", "em_apl") else {}
        more |= dict(expected_positives=1.0) if name in ("epr", "role") else {}
        module = losses.make(name, **more)
        refused(TypeError, f"{type(module).__name__} is not a loss of one logit and its label alone", role, module)


def test_store_of_flips():
    z, s, index = torch.zeros(4, 5), torch.zeros(4, 5), torch.arange(4)
    call = lambda flips: losses.ll_cp_loss(z, s, flips, index, share=0.1)  # noqa: E731
    for dtype in (torch.bool, torch.float32, torch.int64):
        refused(TypeError, "flips must be Byte, got (Bool|Float|Long)", call, torch.zeros(7, 5, dtype=dtype))
    refused(
        ValueError, r"flips must have shape \[7, 5\], got \[7, 4\]", call, torch.zeros(7, 4, dtype=torch.uint8)
    )
    refused(ValueError, "flips must be contiguous", call, torch.zeros(5, 7, dtype=torch.uint8).t())


def test_step_of_pns():
    z, s = torch.zeros(4, 5), torch.zeros(4, 5)
    refused(TypeError, "seed must be an integer, got 1.5", losses.pns_loss, z, s, seed=1.5)
    refused(TypeError, "seed must be an integer, got None", losses.make, "pns", seed=None)
    refused(TypeError, "step must be Long, got Float", losses.pns_loss, z, s, step=torch.tensor([1.0]))
    refused(ValueError, r"step must have shape \[1\], got \[\]", losses.pns_loss, z, s, step=torch.tensor(1))
    refused(ValueError, "at least one class, got 0", losses.pns_loss, z[:, :0], s[:, :0])


# --- label estimator ------------------------------------------------------------------------------


def test_start_of_a_label_estimator():
    make = label_tools.LabelEstimator
    refused(ValueError, "labels or from probabilities; neither was given", make)
    refused(ValueError, r"labels of shape \(R,\) need n_labels", make, torch.tensor([0, 1]))
    refused(
        TypeError,
        r"labels of shape \(R,\) must be int64, got torch.int32",
        make,
        torch.tensor([0]).int(),
        n_labels=3,
    )
    message = r"labels\[1\] is 3; expected -1 \(none\) or 0 to 2"
    refused(IndexError, message, make, torch.tensor([0, 3]), n_labels=3)
    message = r"labels\[1, 0\] is 2.0; expected 1, 0 or -1"
    refused(ValueError, message, make, torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    refused(ValueError, r"labels must have shape \(R,\) or \(R, L\), got \(1, 1, 1\)", make, torch.zeros(1, 1, 1))
    refused(ValueError, r"probabilities must have shape \(R, L\), got \(3,\)", make, probabilities=torch.zeros(3))
    refused(ValueError, "probabilities must lie between 0 and 1", make, probabilities=torch.full((2, 2), 1.5))
    refused(ValueError, "probabilities must lie between 0 and 1", make, probabilities=torch.full((2, 2), math.nan))
    refused(
        TypeError, "dtype must be float32 or float64, got torch.float16", make, torch.zeros(2, 2), dtype=torch.half
    )
