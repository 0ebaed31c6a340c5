"""What cannot be trained with is refused before any training, by an exception that names the place."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import nn
from torch.utils.data import Dataset
from trainings import train

from spml_fast import losses, train_classifier
from spml_fast.data import MultiLabelData
from spml_fast.training import FineTuning, LinearPhase, RunRecord, Validation, classifier, finetune, prepare

N, D, L = 20, 4, 3
g = torch.Generator().manual_seed(0)
X = torch.randn(N, D, generator=g)
IMAGES = torch.randn(N, 1, 6, 6, generator=g)
INDEX = torch.arange(N) % L
MATRIX = nn.functional.one_hot(INDEX, L).to(torch.int8)
FULL = MATRIX.bool() | (torch.rand(N, L, generator=g) < 0.3)
ABC = ("a", "b", "c")
CNN = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())
NO_FLATTEN = nn.Conv2d(1, 2, 3)
HEADLESS = nn.Linear(D, 5)
ONE_RUN = dict(linear=dict(lr=1e-2, batch_size=8))


class TrainingError(Exception):
    """Training was reached."""


@pytest.fixture(autouse=True)
def _training_is_reached(monkeypatch):
    def reached(*_, **__):
        raise TrainingError

    monkeypatch.setattr(classifier, "fit_linear", reached)
    monkeypatch.setattr(finetune, "finetune", reached)


def at(values, place, value):
    values = values.clone()
    values[place] = value
    return values


def sparse(x):
    return csr_matrix(x.numpy())


def abc(observed, x=X):
    """Data whose labels have names, by which three of them are known."""
    return MultiLabelData(x, observed=observed, names=ABC)


def with_pseudo_labels(values):
    return MultiLabelData(X, observed=INDEX, names=ABC, pseudo_labels=values)


class Images(Dataset):
    def __init__(self, n, shape=(1, 6, 6)):
        self.n, self.item = n, torch.zeros(shape)

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return self.item


class ForeignMatrix(nn.Module):
    """No number comes out."""

    def forward(self, logits, labels):
        return logits


class AsksForWeather(nn.Module):
    inputs = ("logits", "labels", "weather")

    def forward(self, logits, labels, weather):
        return logits.sum()


CASES = {}


def refused(name, error, match, data=(X, INDEX), **options):
    assert name not in CASES
    CASES[name] = pytest.param(error, match, data, options, id=name)


# --- labels ---------------------------------------------------------------------------------------

out_of_range = "train: observed[3] is {}; expected -1 (none) or 0 to 2"
refused("index too large", IndexError, out_of_range.format(7), abc(at(INDEX, 3, 7)))
refused("index of L", IndexError, out_of_range.format(3), abc(at(INDEX, 3, 3)))
refused("index below -1", IndexError, out_of_range.format(-2), (X, at(INDEX, 3, -2)))
numpy = abc(at(INDEX, 3, 7).numpy(), X.numpy())
refused("index too large, numpy", IndexError, out_of_range.format(7), numpy)
forms = "train: labels must be (N,) integers or (N, L), got torch."
refused("float index", ValueError, forms + "float32 of shape (20,)", (X, INDEX.float()))
refused("bool index", ValueError, forms + "bool of shape (20,)", (X, INDEX == 1))
refused("labels of three dimensions", ValueError, forms + "int8 of shape (1, 20, 3)", (X, MATRIX[None]))
refused("labels without dimension", ValueError, forms + "int64 of shape ()", (X, torch.tensor(1)))
refused("list of labels", TypeError, "train: labels must be a tensor or an array, got list", (X, INDEX.tolist()))
one_of = "train: labels[3, 1] is {}; expected one of 1, 0, -1"
for value in (2, -2):
    refused(f"matrix of {value}", ValueError, one_of.format(value), (X, at(MATRIX, (3, 1), value)))
for value in (0.5, math.nan):
    refused(f"matrix of {value}", ValueError, one_of.format(value), (X, at(MATRIX.float(), (3, 1), value)))
of_data = MultiLabelData(X, observed=at(MATRIX, (3, 1), 2))
refused("matrix of 2, data", ValueError, "train: observed[3, 1] is 2; expected 1 (positive)", of_data)
refused(
    "matrix of 255", ValueError, one_of.format(255), (X, at(MATRIX.to(torch.uint8), (3, 1), 255)),
)  # fmt: skip
refused("index too short", ValueError, "train: observed has 19 rows, x has 20", (X, INDEX[:-1]))
refused("matrix too short", ValueError, "train: observed has 19 rows, x has 20", (X, MATRIX[:-1]))
refused("no observed labels", ValueError, "train: the data have no observed labels", MultiLabelData(X, FULL))
refused("no labels at all", ValueError, "train: the data have no observed labels", MultiLabelData(X))
unnamed = "train: the data do not say how many labels there are: give names"
refused("no label to count by", ValueError, unnamed, (X, torch.full((N,), -1)))
refused("no columns of labels", ValueError, unnamed, (X, MATRIX[:, :0]))
empty_row = (
    "train: 1 of 20 rows have no observed label, the first is row 3; loss {!r} learns nothing from such rows"
)
for loss in ("iu", "pr"):
    message = empty_row.format(loss)
    refused(f"empty row, {loss}", ValueError, message, (X, at(INDEX, 3, -1)), loss=loss)
    refused(f"empty row of a matrix, {loss}", ValueError, message, (X, at(MATRIX, 3, 0)), loss=loss)
    refused(f"empty row, module {loss}", ValueError, message, (X, at(INDEX, 3, -1)), loss=losses.make(loss))
never = (
    "train: 1 of 3 labels were never observed positive: c; leave them out, or train the others with "
    "MultiLabelData(..., empty_labels='keep')"
)
refused("label never observed", ValueError, never, abc(INDEX.clamp(max=1)))
refused("label never observed, matrix", ValueError, never, abc(at(MATRIX, (slice(None), 2), 0)))
refused("label observed as negative alone", ValueError, never, abc(at(MATRIX, (slice(None), 2), -1)))
HELD = prepare.split_rows(N, 0.2)[1]
held_alone = abc(at(INDEX.clamp(max=1), HELD[0], 2))
refused("label observed in validation rows alone", ValueError, never, held_alone)
refused(
    "full labels for bce, index", ValueError, "train: full labels must have shape (N, L), got (20,)", loss="bce"
)
zero_one = "train: labels[3, 1] is {}; expected one of 1, 0"
refused("-1 for bce", ValueError, zero_one.format(-1), (X, at(MATRIX, (3, 1), -1)), loss="bce")
refused(
    "soft labels for bce_ls", ValueError, zero_one.format(0.5), (X, at(FULL.float(), (3, 1), 0.5)), loss="bce_ls"
)
need_full = "train: loss {!r} needs full labels; the training data have none"
observed_only = MultiLabelData(X, observed=INDEX, names=ABC)
refused("bce of observed labels", ValueError, need_full.format("bce"), observed_only, loss="bce")
refused("iun without full labels", ValueError, need_full.format("iun"), loss="iun")

# --- features -------------------------------------------------------------------------------------

pair = "train must be MultiLabelData or a pair (x, labels), got "
refused("no pair", TypeError, pair + "Tensor", X)
refused("three of a pair", TypeError, pair + "tuple", (X, INDEX, INDEX))
refused("no data", TypeError, pair + "NoneType", None)
kinds = "train: x must be a tensor, an array, a scipy sparse matrix or a Dataset, got list"
refused("list of features", TypeError, kinds, (X.tolist(), INDEX))
refused("one dimension", ValueError, "train: x must have shape (N, D) or (N, ...), got (20,)", (X[:, 0], INDEX))
refused(
    "features of text", TypeError, "train: x", (np.full((N, D), "a"), INDEX),
)  # fmt: skip
refused(
    "complex features", TypeError, "train: x", (X.to(torch.complex64), INDEX),
)  # fmt: skip
for value in (math.nan, math.inf, -math.inf):
    wrong = at(X, (3, 1), value)
    for what, x in (("", wrong), (", numpy", wrong.numpy()), (", sparse", sparse(wrong))):
        finite = f": x must be finite; 1 values are not, the first is {value} at row 3, column 1"
        refused(f"{value} in train{what}", ValueError, "train" + finite, (x, INDEX))
        refused(f"{value} in test{what}", ValueError, "test" + finite, test=(x, FULL))
        refused(f"{value} in validation{what}", ValueError, "validation" + finite, validation=(x, FULL))
place = "train: x must be finite; 1 values are not, the first is nan at x[3, 0, 2, 5]"
refused("nan in images", ValueError, place, (at(IMAGES, (3, 0, 2, 5), math.nan), INDEX), linear=dict(trunk=CNN))
too_large = 1e300 * np.ones((N, D))
finite = "train: x must be finite; 80 values are not"
refused("beyond float32", ValueError, finite, (too_large, INDEX))
refused(
    "beyond float32, sparse", ValueError, finite, (csr_matrix(too_large), INDEX),
)  # fmt: skip
refused("no rows", ValueError, "train: the data have no rows", abc(INDEX[:0], X[:0]))
refused("no rows of a matrix", ValueError, "train: the data have no rows", (X[:0], MATRIX[:0]))
one_row = MultiLabelData(X[:1], observed=INDEX[:1], names=ABC, empty_labels="keep")
refused("one row", ValueError, "validation=0.2 of 1 rows leaves none to train on", one_row)

# --- validation and test --------------------------------------------------------------------------

for what in ("test", "validation"):
    refused(f"{what} of other L", ValueError, f"{what}: there are 2 labels, the training data have 3", (X, MATRIX),
            **{what: (X, FULL[:, :2])})  # fmt: skip
    refused(f"{what} of other D", ValueError, f"{what}: x has rows of shape (2,), the training data of (4,)",
            **{what: (X[:, :2], FULL)})  # fmt: skip
    refused(f"{what} of index labels", ValueError, f"{what}: full labels must have shape (N, L), got (20,)",
            **{what: (X, INDEX)})  # fmt: skip
    refused(f"{what} too short", ValueError, f"{what}: labels has 4 rows, x has 20", **{what: (X, FULL[:4])})
    refused(f"{what} of -1", ValueError, f"{what}: labels[3, 1] is -1; expected one of 1, 0",
            **{what: (X, at(MATRIX, (3, 1), -1))})  # fmt: skip
    refused(f"no pair for {what}", TypeError, f"{what} must be MultiLabelData or a pair", **{what: X})
    refused(
        f"{what} without rows", ValueError, f"{what}: ", **{what: (X[:0], FULL[:0])},
    )  # fmt: skip
    refused(
        f"{what} of other names", ValueError, f"{what}: ", MultiLabelData(X, observed=INDEX, names=ABC),
        **{what: MultiLabelData(X, FULL, names=("c", "b", "a"))},
    )  # fmt: skip
refused("images of other size for test", ValueError, "test: x has rows of shape (1, 4, 6)", (IMAGES, INDEX),
        linear=dict(trunk=CNN), test=(IMAGES[:, :, :4], FULL))  # fmt: skip
of_observed = MultiLabelData(X, observed=INDEX, names=ABC)
refused("test without full labels", ValueError, "test: full labels (N, L) are needed", test=of_observed)
refused("validation without labels", ValueError, "validation: ", validation=MultiLabelData(X, names=ABC))
refused("validation out of range", IndexError, "validation: observed[3] is 9",
        validation=MultiLabelData(X, observed=at(INDEX, 3, 9), names=ABC))  # fmt: skip
share = "validation must be a share of the training rows in [0, 1), or data, got {}"
for value in (1.0, -0.1, 1.5, math.nan):
    refused(f"validation={value}", ValueError, share.format(value), validation=value)
refused("validation=None", TypeError, "validation must be MultiLabelData or a pair", validation=None)
refused("validation=0.99", ValueError, "validation=0.99 of 20 rows leaves none to train on", validation=0.99)
choose = "without validation there is nothing to choose by: pass one lr and one batch_size"
refused("grid without validation", ValueError, choose, validation=0)
refused(
    "grid of lr without validation", ValueError, choose, validation=0, linear=dict(lr=(1e-2, 1e-3), batch_size=8)
)
refused("grid of batches without validation", ValueError, choose, validation=0, linear=dict(lr=1e-2))

# --- losses ---------------------------------------------------------------------------------------

refused("unknown loss", ValueError, "no loss is called 'grr'; there are an, an_ls, asl, bce,", loss="grr")
refused(
    "loss as a class",
    TypeError,
    "loss must be a name, a mapping with 'name' and options, or a module, got type",
    loss=losses.GRLoss,
)
refused(
    "no loss",
    TypeError,
    "loss must be a name, a mapping with 'name' and options, or a module, got NoneType",
    loss=None,
)
refused("unknown option", TypeError, "GRLoss has no hyper-parameter 'foo'; it has", loss={"name": "gr", "foo": 1})
refused(
    "option out of range",
    ValueError,
    "smoothing must be between 0 and 1, got 3",
    loss={"name": "an_ls", "smoothing": 3},
)
for options in ({}, {"smoothing": 0.2}, {"name": None}, {"name": losses.ANLoss()}):
    refused(f"options {list(options)} without a name, {options.get('name')!r}", ValueError,
            "loss must be a mapping with 'name' and the loss's options, got {", loss=options)  # fmt: skip
refused("unknown loss with options", ValueError, "no loss is called 'grr'", loss={"name": "grr", "w": 1.0})
matrix_left = "loss: a loss to train with is a number; reduction='none' leaves a matrix"
for loss in ("gr", "an"):
    refused(f"no reduction, {loss}", ValueError, matrix_left, loss={"name": loss, "reduction": "none"})
refused("module without reduction", ValueError, "reduction='none'", loss=losses.ANLoss(reduction="none"))
refused(
    "schedule that leaves the range",
    ValueError,
    "sigma must be positive",
    loss={"name": "gr", "sigma": (2.0, -1.0)},
)
refused("options as a list", TypeError, "loss must be a name, a mapping", loss=["gr", 1])
refused("class_weight of other L", ValueError, "class_weight must have shape",
        loss={"name": "an", "class_weight": [1.0, 2.0]})  # fmt: skip
refused("input that there is not", ValueError, "weather", loss=AsksForWeather())  # fmt: skip
refused("em_apl in one epoch", ValueError, "warmup must be between 1 and epochs - 1 = 0, got 1", loss="em_apl",
        linear=dict(epochs=1))  # fmt: skip
for loss in ("role", "epr"):
    refused(f"{loss} without k", ValueError, f"loss {loss!r} needs expected_positives, k", loss=loss)
for value in (-1, math.nan):
    refused(f"k = {value}", ValueError, f"expected_positives must be a finite number, at least 0, got {value}",
            loss={"name": "epr", "expected_positives": value})  # fmt: skip
refused("gpr without pseudo-labels", ValueError, "loss 'gpr' needs pseudo_labels (N, L) in {-1, 0, 1}", loss="gpr")
refused("gpr module without pseudo-labels", ValueError, "loss 'gpr' needs pseudo_labels", loss=losses.GPRLoss())
refused("gpr with one pseudo-label too few", ValueError, "pseudo_labels must have shape (20, 3), got (20, 2)",
        with_pseudo_labels(torch.zeros(N, 2)), loss="gpr")  # fmt: skip
for value in (0.5, 2.0, math.nan):
    refused(f"gpr with pseudo-label {value}", ValueError,
            f"pseudo_labels[3, 1] is {value}; expected one of 1, 0, -1",
            with_pseudo_labels(at(torch.zeros(N, L), (3, 1), value)), loss="gpr")  # fmt: skip

# --- settings -------------------------------------------------------------------------------------


def tuned(trunk=HEADLESS, **options):
    return dict(finetune=dict(trunk=trunk, **options))


def phases(mode, trunk):
    """A trunk in each of the three modes."""
    linear = dict(trunk=trunk) if mode == "linear" else None if mode == "finetune" else {}
    return dict(linear=linear) if mode == "linear" else dict(linear=linear, finetune=dict(trunk=trunk))


MODES = ("linear", "finetune", "linear_init")
for value in (0, -1.0, math.nan, math.inf, None, [], [1e-2, 0.0], "0.1", ["a"], True):
    refused(f"lr={value!r}", ValueError, f"linear: lr must be positive, a number or several, got {value!r}",
            linear=dict(lr=value))  # fmt: skip
for name in ("lr", "head_factor"):
    for value in (0, -1.0, math.nan, math.inf, None, "0.1", [1e-2]):
        must = f"finetune: {name} must be positive, a number, got {value!r}"
        refused(f"{name}={value!r} of fine-tuning", ValueError, must, **tuned(**{name: value}))
for name in ("batch_size", "epochs"):
    for value in (0, -1, 8.0, "8", None, True, *([[], [8, 0]] if name == "batch_size" else [])):
        must = f"{name} must be a positive integer, got {value!r}"
        refused(f"{name}={value!r}", ValueError, f"linear: {must}", linear=dict(**{name: value}))
        refused(f"{name}={value!r} of fine-tuning", ValueError, f"finetune: {must}", **tuned(**{name: value}))
for value in (-1, 1.0, "2"):
    must = f"workers must be an integer, at least 0, got {value!r}"
    refused(f"workers={value!r}", ValueError, f"linear: {must}", linear=dict(trunk=CNN, workers=value))
    refused(f"workers={value!r} of fine-tuning", ValueError, f"finetune: {must}", **tuned(workers=value))
for value in (1.0, "1", None, -(2**63) - 1):
    refused(
        f"seed={value!r}", ValueError, f"seed must be an integer, at least {-(2**63)}, got {value!r}", seed=value
    )
refused("trainer options as a list", TypeError, "finetune: trainer_options must be a mapping, got list",
        **tuned(trainer_options=[1]))  # fmt: skip
refused(
    "accelerator",
    ValueError,
    "accelerator must be one of auto, cpu, gpu, cuda, got 'abacus'",
    accelerator="abacus",
)
refused(
    "accelerator of fine-tuning", ValueError, "accelerator", (IMAGES, INDEX), accelerator="abacus", **tuned(CNN)
)
refused("precision", ValueError, "precision", (IMAGES, INDEX), **tuned(CNN, precision="thirty"))
for value, kind in ((lambda x: x, "function"), (nn.Flatten, "type"), (None, "NoneType"), ("resnet50", "str")):
    refused(
        f"{kind} for a trunk", TypeError, f"finetune: trunk must be a torch.nn.Module, got {kind}", **tuned(value)
    )
    if value is not None:
        refused(f"{kind} for a trunk of the linear phase", TypeError,
                f"linear: trunk must be a torch.nn.Module, got {kind}", linear=dict(trunk=value))  # fmt: skip
refused("two trunks", ValueError, "linear: trunk is for a linear classifier alone; with fine-tuning",
        linear=dict(trunk=CNN), **tuned(CNN))  # fmt: skip
no_trunk = "linear: workers load instances for a trunk, got workers=2 and none"
refused("workers without a trunk", ValueError, no_trunk, linear=dict(workers=2))
for mode in MODES:
    refused(f"{mode} on a trunk's images", ValueError, "trunk must map x to features (N, F), got (",
            (IMAGES, INDEX), **phases(mode, NO_FLATTEN))  # fmt: skip
refused("trunk of nan", ValueError, "features that the trunk computed",
        **phases("linear_init", nn.Threshold(0.0, math.nan)))  # fmt: skip
no_features = "train: x must be features (N, D) for a linear classifier, got rows of shape (1, 6, 6); pass a trunk"
refused("images without trunk", ValueError, no_features, (IMAGES, INDEX))
refused("Dataset without trunk", ValueError, no_features, (Images(N), INDEX))
refused("Dataset of other length", ValueError, "train: observed has 20 rows, x has 19", (Images(N - 1), INDEX),
        linear=dict(trunk=CNN))  # fmt: skip
dense = "train: a trunk cannot be tuned on sparse features; densify them, or leave finetune out"
for mode in MODES[1:]:
    refused(f"{mode} on sparse features", ValueError, dense, (sparse(X), INDEX), **phases(mode, HEADLESS))
refused("finetune with sparse validation", ValueError, "validation: ", **tuned(), validation=(sparse(X), FULL))


@pytest.mark.slow
@pytest.mark.parametrize(("error", "match", "data", "options"), CASES.values())
@pytest.mark.filterwarnings("ignore:Casting complex values", "ignore:overflow encountered in cast")
def test_refused_before_training(error, match, data, options, tmp_path):
    rng = torch.get_rng_state()
    with pytest.raises(error, match=re.escape(match)):
        train(data, defaults={}, **options, out=tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), rng)
    trunk_was_run = "trunk must map" in match or "the trunk computed" in match
    assert trunk_was_run or not (tmp_path / "run").exists()  # nothing is left of it either


OLD = {
    "loss_options": {"w": 1.0}, "expected_positives": 2.0, "pseudo_labels": MATRIX, "names": ABC,
    "empty_labels": "keep", "validation_labels": "full",
    "train_mode": "linear", "trunk": CNN, "lr": 1e-2, "batch_size": 8, "epochs": 2,
    "standardize": True, "finetune_lr": 1e-3, "finetune_batch_size": 8, "finetune_epochs": 2, "head_factor": 5.0,
    "precision": "32-true", "workers": 1, "trainer_options": {}, "watch": True, "title": "data", "resume": False,
}  # fmt: skip
"""Every keyword of train_classifier that moved into a value, with a value that it had."""


@pytest.mark.parametrize("name", OLD)
def test_an_old_keyword_says_the_new_spelling(name):
    with pytest.raises(TypeError, match=f"train_classifier no longer has the argument '{name}'; write ") as e:
        train_classifier((X, INDEX), **{name: OLD[name]})
    option = name.removeprefix("finetune_").removeprefix("validation_").replace("watch", "track_recovery")
    new = str(e.value).split("write ")[1]
    assert option in new or name in ("loss_options", "train_mode")
    if name.startswith("finetune_"):
        assert "finetune=FineTuning" in new


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(linear=dict(lr=1e-2)), r"linear must be LinearPhase\(\.\.\.\), got dict"),
        (dict(linear=FineTuning(CNN)), r"linear must be LinearPhase\(\.\.\.\), got FineTuning"),
        (dict(finetune=CNN), r"finetune must be FineTuning\(\.\.\.\), got Sequential"),
        (dict(finetune=LinearPhase()), r"finetune must be FineTuning\(\.\.\.\), got LinearPhase"),
        (dict(out=3), "out: folder must be a path, got int"),
        (dict(epohcs=3), "unexpected keyword argument 'epohcs'"),
    ],
)
def test_values_of_another_kind(options, match):
    with pytest.raises(TypeError, match=match):
        train_classifier((X, INDEX), **options)


def test_values_that_have_no_effect_are_refused():
    with pytest.raises(ValueError, match="resume=False starts the run of a folder anew; there is no folder"):
        RunRecord(resume=False)
    with pytest.raises(ValueError, match="validation: labels must be 'full' or 'observed', got 'true'"):
        Validation(labels="true")
    with pytest.raises(TypeError, match="trunk"):
        FineTuning()
    for value in (LinearPhase, FineTuning, RunRecord, Validation):
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            value(epohcs=3)


EMPTY_ROW = {"index": (X, at(INDEX, 3, -1)), "matrix": (X, at(MATRIX, 3, 0))}
ACCEPTED = {
    "plain": ((X, INDEX), {}),
    "int32": ((X, INDEX.int()), {}),
    "uint8": ((X, INDEX.to(torch.uint8)), {}),
    "matrix of floats": ((X, MATRIX.float()), {}),
    "matrix of bools": ((X, MATRIX.bool()), {}),
    "float64": ((X.double(), INDEX), {}),
    "whole numbers": (((10 * X).long().numpy(), INDEX), {}),
    "label never observed, kept": (replace(abc(INDEX.clamp(max=1)), empty_labels="keep"), {}),
    "row observed as negative, iu": ((X, at(at(MATRIX, 3, 0), (3, 1), -1)), dict(loss="iu")),
    "row observed as negative, pr": ((X, at(at(MATRIX, 3, 0), (3, 1), -1)), dict(loss="pr")),
    "no validation, one run": ((X, INDEX), dict(validation=0, **ONE_RUN)),
    "no validation, one run in lists": ((X, INDEX), dict(validation=0, linear=dict(lr=[1e-2], batch_size=[8]))),
    "one row": (one_row, dict(validation=0, **ONE_RUN)),
    "sparse validation and test": ((X, INDEX), dict(validation=(sparse(X), FULL), test=(sparse(X), FULL))),
    "CSC": (MultiLabelData(csr_matrix(X.numpy()).tocsc(), observed=INDEX, names=ABC), {}),
    "Dataset and trunk": ((Images(N), INDEX), dict(linear=dict(trunk=CNN))),
    "finetune": ((IMAGES, INDEX), tuned(CNN)),
    "finetune has no grid": ((IMAGES, INDEX), tuned(CNN) | dict(validation=0)),
    "observed validation": ((X, INDEX), dict(validation=MultiLabelData(X, observed=INDEX, names=ABC))),
    "full labels without observed ones for bce": (MultiLabelData(X, FULL), dict(loss="bce")),
}
for loss in ("gr", "an", "em", "wan", "hill"):
    for form, data in EMPTY_ROW.items():
        ACCEPTED[f"empty row of {form}, {loss}"] = (data, dict(loss=loss))


@pytest.mark.parametrize(("data", "options"), ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(data, options):
    with pytest.raises(TrainingError):
        train(data, defaults={}, **options)
