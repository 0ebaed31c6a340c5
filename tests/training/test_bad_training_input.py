"""What cannot be trained with is refused before any training, by an exception that names the place."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import nn
from torch.utils.data import Dataset

from spml_fast import losses, train_classifier
from spml_fast.data import MultiLabelData
from spml_fast.training import classifier, finetune, prepare

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
ONE_RUN = dict(lr=1e-2, batch_size=8)


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


def start(train=(X, INDEX), **options):
    return train_classifier(train, progress=False, **{"accelerator": "cpu", **options})


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


def refused(name, error, match, train=(X, INDEX), **options):
    assert name not in CASES
    CASES[name] = pytest.param(error, match, train, options, id=name)


# --- labels ---------------------------------------------------------------------------------------

names = dict(names=ABC)
out_of_range = "train: observed[3] is {}; expected -1 (none) or 0 to 2"
refused("index too large", IndexError, out_of_range.format(7), (X, at(INDEX, 3, 7)), **names)
refused("index of L", IndexError, out_of_range.format(3), (X, at(INDEX, 3, 3)), **names)
refused("index below -1", IndexError, out_of_range.format(-2), (X, at(INDEX, 3, -2)))
refused(
    "index too large, numpy", IndexError, out_of_range.format(7), (X.numpy(), at(INDEX, 3, 7).numpy()), **names
)
of_data = MultiLabelData(X, observed=at(INDEX, 3, 7), names=ABC)
refused("index too large, data", IndexError, out_of_range.format(7), of_data)
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
    "train: 1 of 3 labels were never observed positive: c; leave them out, or train the others with empty_labels="
)
refused("label never observed", ValueError, never, (X, INDEX.clamp(max=1)), **names)
refused("label never observed, matrix", ValueError, never, (X, at(MATRIX, (slice(None), 2), 0)), **names)
refused("label observed as negative alone", ValueError, never, (X, at(MATRIX, (slice(None), 2), -1)), **names)
HELD = prepare.split_rows(N, 0.2)[1]
refused(
    "label observed in validation rows alone", ValueError, never, (X, at(INDEX.clamp(max=1), HELD[0], 2)), **names,
)  # fmt: skip
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
refused("nan in images", ValueError, place, (at(IMAGES, (3, 0, 2, 5), math.nan), INDEX), trunk=CNN)
too_large = 1e300 * np.ones((N, D))
finite = "train: x must be finite; 80 values are not"
refused("beyond float32", ValueError, finite, (too_large, INDEX))
refused(
    "beyond float32, sparse", ValueError, finite, (csr_matrix(too_large), INDEX),
)  # fmt: skip
refused("no rows", ValueError, "train: the data have no rows", (X[:0], INDEX[:0]), **names)
refused("no rows of a matrix", ValueError, "train: the data have no rows", (X[:0], MATRIX[:0]))
one_row = dict(names=ABC, empty_labels="keep")
refused("one row", ValueError, "validation=0.2 of 1 rows leaves none to train on", (X[:1], INDEX[:1]), **one_row)

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
        trunk=CNN, test=(IMAGES[:, :, :4], FULL))  # fmt: skip
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
refused("grid of lr without validation", ValueError, choose, validation=0, lr=(1e-2, 1e-3), batch_size=8)
refused("grid of batches without validation", ValueError, choose, validation=0, lr=1e-2)
refused("validation_labels", ValueError, "validation_labels must be 'full' or 'observed', got 'true'",
        validation_labels="true")  # fmt: skip

# --- losses ---------------------------------------------------------------------------------------

refused("unknown loss", ValueError, "no loss is called 'grr'; there are an, an_ls, asl, bce,", loss="grr")
refused("loss as a class", TypeError, "loss must be a name or a module, got type", loss=losses.GRLoss)
refused("no loss", TypeError, "loss must be a name or a module, got NoneType", loss=None)
refused("unknown option", TypeError, "GRLoss has no hyper-parameter 'foo'; it has", loss_options={"foo": 1})
refused("option out of range", ValueError, "smoothing must be between 0 and 1, got 3", loss="an_ls",
        loss_options={"smoothing": 3})  # fmt: skip
refused("options of a module", ValueError, "loss_options are for a loss given by name", loss=losses.ANLoss(),
        loss_options={"eps": 1e-5})  # fmt: skip
matrix_left = "loss_options: a loss to train with is a number; reduction='none' leaves a matrix"
for loss in ("gr", "an"):
    refused(f"no reduction, {loss}", ValueError, matrix_left, loss=loss, loss_options={"reduction": "none"})
refused("module without reduction", ValueError, "reduction='none'", loss=losses.ANLoss(reduction="none"))
refused(
    "schedule that leaves the range",
    ValueError,
    "sigma must be positive",
    loss_options={"sigma": (2.0, -1.0)},
)
refused("options as a list", TypeError, "loss_options", loss_options=[1])  # fmt: skip
refused("class_weight of other L", ValueError, "class_weight must have shape", loss="an",
        loss_options={"class_weight": [1.0, 2.0]})  # fmt: skip
refused("input that there is not", ValueError, "weather", loss=AsksForWeather())  # fmt: skip
refused("em_apl in one epoch", ValueError, "warmup must be between 1 and epochs - 1 = 0, got 1", loss="em_apl",
        epochs=1)  # fmt: skip
for loss in ("role", "epr"):
    refused(f"{loss} without k", ValueError, f"loss {loss!r} needs expected_positives, k", loss=loss)
for value in (-1, math.nan):
    refused(f"k = {value}", ValueError, f"expected_positives must be a finite number, at least 0, got {value}",
            loss="epr", expected_positives=value)  # fmt: skip
refused("gpr without pseudo-labels", ValueError, "loss 'gpr' needs pseudo_labels (N, L) in {-1, 0, 1}", loss="gpr")
refused("gpr module without pseudo-labels", ValueError, "loss 'gpr' needs pseudo_labels", loss=losses.GPRLoss())
refused("gpr with one pseudo-label too few", ValueError, "pseudo_labels must have shape (20, 3), got (20, 2)",
        loss="gpr", pseudo_labels=torch.zeros(N, 2))  # fmt: skip
for value in (0.5, 2.0, math.nan):
    refused(f"gpr with pseudo-label {value}", ValueError,
            f"pseudo_labels[3, 1] is {value}; expected one of 1, 0, -1",
            loss="gpr", pseudo_labels=at(torch.zeros(N, L), (3, 1), value))  # fmt: skip

# --- settings -------------------------------------------------------------------------------------

refused("train_mode", ValueError, "train_mode must be one of linear, finetune, linear_init, got 'lin'",
        train_mode="lin")  # fmt: skip
refused("empty_labels", ValueError, "empty_labels must be 'refuse' or 'keep', got 'drop'", empty_labels="drop")
for name, kind in (("lr", "a number or several"), ("finetune_lr", "a number")):
    for value in (0, -1.0, math.nan, math.inf, None, *([[], [1e-2, 0.0]] if name == "lr" else [])):
        refused(
            f"{name}={value}", ValueError, f"{name} must be positive, {kind}, got {value!r}", **{name: value}
        )  # fmt: skip
refused("finetune_lr of text", ValueError, "finetune_lr must be positive, a number, got '0.1'",
        finetune_lr="0.1")  # fmt: skip
for value in ("0.1", ["a"]):
    refused(f"lr={value!r}", ValueError, f"lr must be positive, a number or several, got {value!r}", lr=value)
for name in ("batch_size", "epochs", "finetune_epochs", "finetune_batch_size"):
    for value in (0, -1, 8.0, "8", None, *([[], [8, 0]] if name == "batch_size" else [])):
        refused(f"{name}={value!r}", ValueError, f"{name} must be a positive integer, got {value!r}",
                **{name: value})  # fmt: skip
tuned = dict(train_mode="finetune", trunk=HEADLESS)
for value in (-1.0, math.nan, "10"):
    refused(f"head_factor={value!r}", ValueError, "head_factor", **tuned, head_factor=value)  # fmt: skip
for name, value in (("accelerator", "abacus"), ("precision", "thirty")):
    refused(name, ValueError, name, (IMAGES, INDEX), train_mode="linear_init", trunk=CNN, **{name: value})
for mode in ("finetune", "linear_init"):
    refused(f"{mode} without trunk", ValueError, f"train_mode={mode!r} needs a trunk", train_mode=mode)
refused("function for a trunk", TypeError, "trunk must be a torch.nn.Module, got function", trunk=lambda x: x)
refused("class for a trunk", TypeError, "trunk must be a torch.nn.Module, got type", trunk=nn.Flatten)
for mode in ("linear", "finetune", "linear_init"):
    refused(f"{mode} on a trunk's images", ValueError, "trunk must map x to features (N, F), got (",
            (IMAGES, INDEX), train_mode=mode, trunk=NO_FLATTEN)  # fmt: skip
refused(
    "trunk of nan",
    ValueError,
    "features that the trunk computed",
    train_mode="linear_init",
    trunk=nn.Threshold(0.0, math.nan),
)
no_features = "train: x must be features (N, D) for a linear classifier, got rows of shape (1, 6, 6); pass a trunk"
refused("images without trunk", ValueError, no_features, (IMAGES, INDEX))
refused("Dataset without trunk", ValueError, no_features, (Images(N), INDEX))
refused("Dataset of other length", ValueError, "train: observed has 20 rows, x has 19", (Images(N - 1), INDEX),
        trunk=CNN)  # fmt: skip
dense = "train: a trunk cannot be tuned on sparse features; densify them or use train_mode='linear'"
for mode in ("finetune", "linear_init"):
    refused(f"{mode} on sparse features", ValueError, dense, (sparse(X), INDEX), train_mode=mode, trunk=HEADLESS)
refused("finetune with sparse validation", ValueError, "validation: ", **tuned, validation=(sparse(X), FULL))
refused("too few names", ValueError, "train: there are 3 labels and 2 names", (X, MATRIX), names=("a", "b"))
refused("names of data", ValueError, "names are part of the training data already", observed_only, names="abd")
refused("a name twice", ValueError, "names", (X, MATRIX), names=("a", "b", "a"))


@pytest.mark.parametrize(("error", "match", "train", "options"), CASES.values())
@pytest.mark.filterwarnings("ignore:Casting complex values", "ignore:overflow encountered in cast")
def test_refused_before_training(error, match, train, options, tmp_path):
    rng = torch.get_rng_state()
    with pytest.raises(error, match=re.escape(match)):
        start(train, **options, out=tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), rng)
    trunk_was_run = "trunk" in options and ("trunk must map" in match or "the trunk computed" in match)
    assert trunk_was_run or not (tmp_path / "run").exists()  # nothing is left of it either


EMPTY_ROW = {"index": (X, at(INDEX, 3, -1)), "matrix": (X, at(MATRIX, 3, 0))}
ACCEPTED = {
    "plain": ((X, INDEX), {}),
    "int32": ((X, INDEX.int()), {}),
    "uint8": ((X, INDEX.to(torch.uint8)), {}),
    "matrix of floats": ((X, MATRIX.float()), {}),
    "matrix of bools": ((X, MATRIX.bool()), {}),
    "float64": ((X.double(), INDEX), {}),
    "whole numbers": (((10 * X).long().numpy(), INDEX), {}),
    "label never observed, kept": ((X, INDEX.clamp(max=1)), dict(names=ABC, empty_labels="keep")),
    "row observed as negative, iu": ((X, at(at(MATRIX, 3, 0), (3, 1), -1)), dict(loss="iu")),
    "row observed as negative, pr": ((X, at(at(MATRIX, 3, 0), (3, 1), -1)), dict(loss="pr")),
    "no validation, one run": ((X, INDEX), dict(validation=0, **ONE_RUN)),
    "no validation, one run in lists": ((X, INDEX), dict(validation=0, lr=[1e-2], batch_size=[8])),
    "one row": ((X[:1], INDEX[:1]), dict(validation=0, **ONE_RUN, **one_row)),
    "sparse validation and test": ((X, INDEX), dict(validation=(sparse(X), FULL), test=(sparse(X), FULL))),
    "CSC": (MultiLabelData(csr_matrix(X.numpy()).tocsc(), observed=INDEX, names=ABC), {}),
    "Dataset and trunk": ((Images(N), INDEX), dict(trunk=CNN)),
    "finetune": ((IMAGES, INDEX), dict(train_mode="finetune", trunk=CNN)),
    "finetune has no grid": ((IMAGES, INDEX), dict(train_mode="finetune", trunk=CNN, validation=0)),
    "observed validation": ((X, INDEX), dict(validation=MultiLabelData(X, observed=INDEX, names=ABC))),
    "full labels without observed ones for bce": (MultiLabelData(X, FULL), dict(loss="bce")),
}
for loss in ("gr", "an", "em", "wan", "hill"):
    for form, data in EMPTY_ROW.items():
        ACCEPTED[f"empty row of {form}, {loss}"] = (data, dict(loss=loss))


@pytest.mark.parametrize(("train", "options"), ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(train, options):
    with pytest.raises(TrainingError):
        start(train, **options)
