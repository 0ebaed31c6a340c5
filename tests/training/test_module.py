"""SPMLModule in anybody's Trainer."""

import copy
import warnings

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

import spml_fast as sf
from spml_fast.labels import LabelEstimator
from spml_fast.losses import make
from spml_fast.metrics import average_precision
from spml_fast.training import SPMLModule

N, D, L, ROWS_OF_BATCH = 48, 6, 5, 8
LR = 1e-3
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]


class Net(nn.Module):
    """Whose last layer is not called "head", and lies deeper."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(D, 16), nn.Tanh())
        self.top = nn.ModuleDict({"scores": nn.Linear(16, L)})

    def forward(self, x):
        return self.top["scores"](self.body(x))


HEAD = "top.scores"


def net():
    torch.manual_seed(7)
    return Net()


def data():
    """x, full labels (N, L) bool, the observed positive of each row."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(N, D, generator=g)
    full = (x @ torch.randn(D, L, generator=g)) > 0.5
    full[torch.arange(N), torch.randint(L, (N,), generator=g)] = True
    return x, full, full.float().multinomial(1, generator=g).squeeze(1)


X, FULL, OBSERVED = data()
EXTRA = {"iun": "full_labels", "gpr": "pseudo_labels"}


def batches(kind="mapping", rows=N, loss="gr"):
    """The training rows in a fixed order, which is not that of the training set."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(5))
    found = []
    for index in order.split(ROWS_OF_BATCH):
        x, labels = X[index], OBSERVED[index]
        if kind == "mapping":
            batch = {"x": x, "labels": labels, "index": index}
            if loss in EXTRA:
                batch[EXTRA[loss]] = FULL[index].float()
        elif kind == "matrix":
            batch = {"x": x, "labels": nn.functional.one_hot(labels, L).to(torch.int8), "index": index}
        else:
            batch = {"tuple": tuple, "list": list}[kind]((x, labels, index))
        found.append(batch)
    return found


VALIDATION = [{"x": X[:20], "labels": FULL[:20]}, {"x": X[20:31], "labels": FULL[20:31]}]


def make_trainer(epochs=1, **arguments):
    defaults = dict(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Trainer(**(defaults | arguments))


def fit(module, found, validation=None, *, trainer=None, **options):
    """Batches as they are; to Lightning a bare list would be several loaders."""
    (trainer or make_trainer()).fit(module, as_loader(found), validation and as_loader(validation), **options)


def as_loader(found):
    return DataLoader(found, batch_size=None, collate_fn=lambda batch: batch)


HYPER = {
    "role": dict(expected_positives=1.5),
    "epr": dict(expected_positives=1.5),
    "ll_cp": dict(n_samples=N, n_labels=L, delta=0.05),
    "em_apl": dict(n_samples=N, n_labels=L, epochs=4, warmup=1),
    "gr": dict(epochs=4),
    "gpr": dict(epochs=4, expected_positives=1.5),
}


def loss_of(name):
    known = HYPER.get(name, {})
    try:
        return make(name, **known)
    except TypeError:
        return make(name, **{k: v for k, v in known.items() if k != "expected_positives"})


def estimator():
    return LabelEstimator(OBSERVED, n_labels=L, generator=torch.Generator().manual_seed(11))


def module_of(name, **arguments):
    """Ready to train with the loss called ``name``."""
    loss = loss_of(name)
    if "table" in loss.inputs:
        arguments.setdefault("estimator", estimator())
    if name == "em_apl":
        arguments.setdefault("observed", OBSERVED)
    return SPMLModule(net(), loss, **(dict(head=HEAD, lr=LR) | arguments))


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def assert_same(a, b, atol=1e-6):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=atol)


class Seen(Callback):
    """What happened: losses logged, by epoch."""

    def __init__(self):
        self.losses, self.maps = [], []

    def on_train_epoch_end(self, trainer, module):
        self.losses.append(float(trainer.callback_metrics["train_loss"]))
        if "val_map" in trainer.callback_metrics:
            self.maps.append(float(trainer.callback_metrics["val_map"]))


# --- parameter groups -----------------------------------------------------------------------------


def groups_of(module):
    """[(lr, the parameters' ids)]"""
    groups = module.configure_optimizers().param_groups
    return [(group["lr"], {id(p) for p in group["params"]}) for group in groups]


def ids(module):
    return {id(p) for p in module.parameters()}


def test_head_and_estimates_learn_ten_times_as_fast():
    module = module_of("role", lr=3e-4)
    trunk, head, estimates = groups_of(module)
    assert trunk == (pytest.approx(3e-4), ids(module.model.body))
    assert head == (pytest.approx(3e-3), ids(module.model.top))
    assert estimates == (pytest.approx(3e-3), ids(module.estimator))


def test_head_factor_is_the_heads_alone():
    module = module_of("role", lr=1e-3, head_factor=2.0)
    assert [lr for lr, _ in groups_of(module)] == pytest.approx([1e-3, 2e-3, 1e-2])


def test_without_a_head_everything_learns_alike():
    module = module_of("gr", head=None)
    assert groups_of(module) == [(LR, ids(module.model))]


def test_a_model_that_is_all_head():
    module = SPMLModule(nn.Sequential(nn.Linear(D, L)), "gr", head="0", lr=LR)
    assert groups_of(module) == [(pytest.approx(10 * LR), ids(module.model))]


def test_every_parameter_is_in_one_group():
    """A weight that trunk and head share, too."""
    model = net()
    model.body.add_module("shared", nn.Linear(16, 16))
    model.top["scores"] = nn.Sequential(model.body.shared, nn.Linear(16, L))
    groups = groups_of(SPMLModule(model, "gr", head=HEAD))
    assert not groups[0][1] & groups[1][1]
    assert groups[0][1] | groups[1][1] == ids(model)


def test_the_optimiser_is_adam():
    assert type(module_of("gr").configure_optimizers()) is torch.optim.Adam


# --- what is learned ------------------------------------------------------------------------------


def learn_by_hand(name, epochs, first_epoch=1):
    """What a plain loop learns: (weights of model and estimates, loss of each epoch, the loss module)."""
    model, loss = net(), loss_of(name)
    table = estimator().logits if name == "role" else None
    groups = [
        {"params": model.body.parameters(), "lr": LR},
        {"params": model.top.parameters(), "lr": 10 * LR},
    ]
    if table is not None:
        groups.append({"params": [table], "lr": 10 * LR})
    optimizer, values = torch.optim.Adam(groups), []
    for epoch in range(first_epoch, first_epoch + epochs):
        loss.set_epoch(epoch)
        total = 0.0
        for batch in batches(loss=name):
            logits = model(batch["x"])
            rest = [batch["labels"]]
            if name == "role":
                rest += [table, batch["index"]]
            elif name in EXTRA:
                rest += [batch[EXTRA[name]]]
            elif name == "ll_cp":
                rest += [batch["index"]]
            value = loss(logits, *rest)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            total += value.item() * len(logits) / N
        values.append(total)
    learned = list(model.parameters()) + ([] if table is None else [table])
    return [p.detach() for p in learned], values, loss


@pytest.mark.slow
@pytest.mark.parametrize("first_epoch", [1, 3])
@pytest.mark.parametrize("name", ["gr", "role", "an", "ll_cp", "pns", "iun", "gpr", "epr", "splc"])
def test_training_is_a_plain_loop(name, first_epoch):
    module, seen = module_of(name, first_epoch=first_epoch), Seen()
    fit(module, batches(loss=name), trainer=make_trainer(2, callbacks=[seen]))
    learned, values, loss = learn_by_hand(name, 2, first_epoch)
    assert_same(weights(module), learned)
    assert seen.losses == pytest.approx(values, abs=1e-6)
    assert loss.state_dict().keys() == module.loss.state_dict().keys()
    assert_same(module.loss.state_dict().values(), loss.state_dict().values())


def test_the_loop_above_learns():
    before, (after, *_) = net().parameters(), learn_by_hand("gr", 1)
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("kind", ["tuple", "list", "matrix"])
@pytest.mark.parametrize("name", ["gr", "role", "ll_cp"])
def test_forms_of_batches_teach_the_same(name, kind):
    first, second = module_of(name), module_of(name)
    fit(first, batches("mapping"))
    fit(second, batches(kind))
    assert_same(weights(first), weights(second))


def test_a_pair_is_enough_where_no_index_is_asked_for():
    first, second = module_of("gr"), module_of("gr")
    fit(first, batches())
    fit(second, [batch[:2] for batch in batches("tuple")])
    assert_same(weights(first), weights(second))


def test_what_a_batch_has_beside_is_left_alone():
    first, second = module_of("gr"), module_of("gr")
    fit(first, batches())
    fit(second, [batch | {"path": ["a.jpg"] * len(batch["x"])} for batch in batches()])
    assert_same(weights(first), weights(second))


def test_a_loss_by_name():
    first, second = SPMLModule(net(), "an", head=HEAD, lr=LR), module_of("an")
    fit(first, batches())
    fit(second, batches())
    assert_same(weights(first), weights(second), atol=0)


def test_a_data_loader():
    rows = [{"x": X[i], "labels": OBSERVED[i], "index": torch.tensor(i)} for i in range(N)]
    module, expected = module_of("role"), module_of("role")
    make_trainer().fit(module, DataLoader(rows, ROWS_OF_BATCH))
    parts = torch.arange(N).split(ROWS_OF_BATCH)
    fit(expected, [{"x": X[i], "labels": OBSERVED[i], "index": i} for i in parts])
    assert_same(weights(module), weights(expected))


class Counting(sf.losses.GRLoss):
    """Remembers the epochs that it was told."""

    def __init__(self, **hyper):
        super().__init__(**hyper)
        self.told = []

    def set_epoch(self, epoch):
        super().set_epoch(epoch)
        if hasattr(self, "told"):
            self.told.append(epoch)


@pytest.mark.parametrize("first_epoch", [1, 4])
def test_the_loss_is_told_the_epoch(first_epoch):
    module = SPMLModule(net(), Counting(epochs=9), head=HEAD, first_epoch=first_epoch)
    fit(module, batches(), trainer=make_trainer(3))
    assert module.loss.told == [first_epoch, first_epoch + 1, first_epoch + 2]


class Foreign(nn.Module):
    """Somebody's loss: no ``inputs``, no ``set_epoch``; with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, logits, labels):
        target = nn.functional.one_hot(labels, L).float()
        return self.scale * nn.functional.binary_cross_entropy_with_logits(logits, target)


def test_a_loss_of_somebody_else():
    module = SPMLModule(net(), Foreign(), head=HEAD, lr=LR)
    fit(module, batches())
    model, loss = net(), Foreign()
    optimizer = torch.optim.Adam(
        [{"params": model.body.parameters()}, {"params": model.top.parameters(), "lr": 1e-2}], LR
    )
    for batch in batches():
        optimizer.zero_grad()
        loss(model(batch["x"]), batch["labels"]).backward()
        optimizer.step()
    assert_same(weights(module.model), weights(model))


def test_bf16_mixed_precision():
    for name in ("gr", "role"):
        module = module_of(name)
        before = weights(module)
        seen = Seen()
        fit(module, batches(), VALIDATION, trainer=make_trainer(2, precision="bf16-mixed", callbacks=[seen]))
        after = weights(module)
        assert all(w.dtype == torch.float32 and w.isfinite().all() for w in after)
        assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        exact, values = Seen(), module_of(name)
        fit(values, batches(), VALIDATION, trainer=make_trainer(2, callbacks=[exact]))
        assert seen.losses == pytest.approx(exact.losses, rel=0.02)
        assert seen.losses != exact.losses  # it did compute in bfloat16


# --- validation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mapping", "tuple"])
def test_val_map_is_the_mean_average_precision_of_the_validation_data(kind):
    module = module_of("gr")
    found = VALIDATION if kind == "mapping" else [(batch["x"], batch["labels"]) for batch in VALIDATION]
    logged = make_trainer().validate(module, as_loader(found), verbose=False)
    expected = average_precision(module(X[:31]), FULL[:31]).mean()
    assert logged[0]["val_map"] == pytest.approx(float(expected), abs=1e-6)


def test_val_map_of_every_epoch_is_its_own():
    module, seen = module_of("gr", lr=1e-2), Seen()
    maps = []

    class Measure(Callback):
        def on_validation_epoch_end(self, trainer, module):
            maps.append(float(average_precision(module(X[:31]).detach(), FULL[:31]).mean()))

    fit(module, batches(), VALIDATION, trainer=make_trainer(3, callbacks=[seen, Measure()]))
    assert seen.maps == pytest.approx(maps, abs=1e-6)
    assert len(set(maps)) > 1


def test_val_map_after_a_sanity_check_is_not_of_its_rows():
    module, seen = module_of("gr"), Seen()
    fit(module, batches(), VALIDATION, trainer=make_trainer(1, num_sanity_val_steps=1, callbacks=[seen]))
    expected = average_precision(module(X[:31]).detach(), FULL[:31]).mean()
    assert seen.maps == pytest.approx([float(expected)], abs=1e-6)


@pytest.mark.parametrize("labels", [FULL.to(torch.int8), FULL.float(), FULL.long()])
def test_validation_labels_of_other_dtypes(labels):
    module = module_of("gr")
    logged = make_trainer().validate(module, as_loader([(X, labels)]), verbose=False)
    assert logged[0]["val_map"] == pytest.approx(float(average_precision(module(X), FULL).mean()), abs=1e-6)


def test_a_class_without_positives_counts_zero():
    labels = FULL.clone()
    labels[:, 2] = False
    module = module_of("gr")
    logged = make_trainer().validate(module, as_loader([(X, labels)]), verbose=False)
    ap = average_precision(module(X), labels)
    assert ap[2] == 0
    assert logged[0]["val_map"] == pytest.approx(float(ap.sum() / L), abs=1e-6)


def test_a_model_that_diverged_has_a_val_map_of_zero():
    module = module_of("gr")
    with torch.no_grad():
        module.model.body[0].weight.fill_(float("nan"))
    assert make_trainer().validate(module, as_loader(VALIDATION), verbose=False)[0]["val_map"] == 0


# --- recovery -------------------------------------------------------------------------------------


def test_probabilities_of_the_epoch_by_row():
    module, said = module_of("gr", track_recovery=True), {}
    real = module.model.forward

    def forward(x):
        logits = real(x)
        for row in range(len(x)):
            said[int((x[row] == X).all(1).nonzero())] = logits[row].detach().sigmoid()
        return logits

    module.model.forward = forward
    fit(module, batches())
    assert module.probabilities.shape == (N, L)
    assert_same(module.probabilities, [said[row] for row in range(N)])


def test_a_second_epoch_replaces_the_first():
    module = module_of("gr", track_recovery=True, lr=1e-2)
    tables = []

    class Keep(Callback):
        def on_train_epoch_start(self, trainer, module):
            tables.append(module.probabilities)

    fit(module, batches(), trainer=make_trainer(3, callbacks=[Keep()]))
    first, second, third = *tables[1:], module.probabilities
    assert (first - second).abs().max() > 1e-3
    assert (second - third).abs().max() > 1e-3


class Stop(Callback):
    """Ends the first training or validation after its first batch."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        raise ZeroDivisionError

    on_validation_batch_end = on_train_batch_end


def test_an_interrupted_epoch_leaves_nothing_in_the_next():
    module, expected = module_of("gr", track_recovery=True), module_of("gr", track_recovery=True)
    with pytest.raises(ZeroDivisionError):
        fit(module, batches(), trainer=make_trainer(callbacks=[Stop()]))
    expected.load_state_dict(module.state_dict())
    half = batches(rows=24)
    fit(module, half)
    fit(expected, half)
    torch.testing.assert_close(module.probabilities, expected.probabilities)


def test_an_interrupted_validation_leaves_nothing_in_the_next():
    module = module_of("gr")
    with pytest.raises(ZeroDivisionError):
        make_trainer(callbacks=[Stop()]).validate(module, as_loader(VALIDATION[1:]), verbose=False)
    logged = make_trainer().validate(module, as_loader(VALIDATION[:1]), verbose=False)
    expected = average_precision(module(X[:20]).detach(), FULL[:20]).mean()
    assert logged[0]["val_map"] == pytest.approx(float(expected), abs=1e-6)


def test_nothing_is_kept_unless_asked_for():
    module = module_of("gr")
    fit(module, batches())
    assert module.probabilities is None


@pytest.mark.parametrize("form", ["index", "matrix"])
def test_pseudo_labels_of_em_apl_are_those_of_the_epochs_predictions(form):
    observed = OBSERVED if form == "index" else nn.functional.one_hot(OBSERVED, L).to(torch.int8)
    module, kept = module_of("em_apl", observed=observed), []

    class Keep(Callback):
        def on_train_epoch_end(self, trainer, module):
            kept.append(module.loss.pseudo_labels.clone())

        def on_train_epoch_start(self, trainer, module):
            if module.probabilities is not None:
                fresh = (module.loss.pseudo_labels >= 0) & (kept[-1] < 0)
                assert torch.equal(module.loss.pseudo_labels[fresh], module.probabilities[fresh])
                assert fresh.sum() > 0

    fit(module, batches("mapping" if form == "index" else "matrix"), trainer=make_trainer(4, callbacks=[Keep()]))
    stored = module.loss.pseudo_labels >= 0
    assert not stored[torch.arange(N), OBSERVED].any()
    # theta = 0.9 of the unobserved, in three steps each rounded down
    unobserved = N - torch.bincount(OBSERVED, minlength=L)
    assert torch.equal(stored.sum(0), 3 * (0.9 * unobserved / 3).long())


# --- errors ---------------------------------------------------------------------------------------


def test_a_head_that_the_model_has_not():
    with pytest.raises(
        ValueError, match=r"no submodule 'fc'; it has body, top\. Name the new one, or pass head=None"
    ):
        SPMLModule(net(), "gr", head="fc")


def test_the_default_head_is_asked_for_too():
    with pytest.raises(ValueError, match="no submodule 'head'"):
        SPMLModule(net(), "gr")


def test_role_without_estimates():
    with pytest.raises(ValueError, match="ROLELoss needs an estimator"):
        SPMLModule(net(), loss_of("role"), head=HEAD)


def test_em_apl_without_the_observed_labels():
    with pytest.raises(ValueError, match="EMAPLLoss needs observed"):
        SPMLModule(net(), loss_of("em_apl"), head=HEAD)


def test_an_unknown_loss():
    with pytest.raises(ValueError, match="no loss is called 'grr'"):
        SPMLModule(net(), "grr", head=HEAD)


def without(name, found):
    return [{key: value for key, value in batch.items() if key != name} for batch in found]


@pytest.mark.parametrize(
    ("loss", "missing"),
    [("ll_cp", "index"), ("em_apl", "index"), ("iun", "full_labels"), ("gpr", "pseudo_labels"), ("gr", "labels")],
)
def test_what_a_batch_lacks_is_named(loss, missing):
    with pytest.raises(ValueError, match=rf"Loss needs {missing} in the batch, which has "):
        fit(module_of(loss), without(missing, batches(loss=loss)))


def test_an_old_keyword_says_the_new_spelling():
    with pytest.raises(
        TypeError, match=r"SPMLModule no longer has the argument 'watch'; write track_recovery=\.\.\."
    ):
        SPMLModule(net(), head=HEAD, watch=True)


def test_tracking_recovery_needs_the_index():
    with pytest.raises(ValueError, match="needs index in the batch, which has labels"):
        fit(module_of("gr", track_recovery=True), without("index", batches()))


@pytest.mark.parametrize("rows", [ROWS_OF_BATCH, N])
def test_role_needs_the_index(rows):
    """A batch of all rows would be taken to lie in the order of the training set."""
    whole = {"x": X.flip(0), "labels": OBSERVED.flip(0)}
    with pytest.raises(ValueError, match="needs index"):
        fit(module_of("role"), [{name: value[:rows] for name, value in whole.items()}])


@pytest.mark.parametrize("kind", [pytest.param("mapping"), "tuple"])
def test_a_batch_without_x_or_labels_is_refused_by_name(kind):
    found = without("x", batches()) if kind == "mapping" else [batch[:1] for batch in batches("tuple")]
    with pytest.raises(ValueError, match=r"needs (x|labels) in the batch"):
        fit(module_of("gr"), found)


# --- checkpoints and copies -----------------------------------------------------------------------

STATEFUL = ("gr", "role", "ll_cp", "em_apl", "pns")


@pytest.mark.slow
@pytest.mark.parametrize("name", STATEFUL)
def test_lightnings_own_checkpoint_continues(tmp_path, name):
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = module_of(name)
    fit(whole, batches(), trainer=make_trainer(4, callbacks=[keep], enable_checkpointing=True))
    assert len(list(tmp_path.glob("*.ckpt"))) == 4
    resumed, told = module_of(name), Seen()
    fit(
        resumed,
        batches(),
        ckpt_path=tmp_path / "epoch=1.ckpt",
        weights_only=True,
        trainer=make_trainer(4, callbacks=[told]),
    )
    assert len(told.losses) == 2
    assert_same(weights(resumed), weights(whole))
    assert_same(resumed.loss.state_dict().values(), whole.loss.state_dict().values())
    assert resumed.loss.epoch == whole.loss.epoch == 4


@pytest.mark.parametrize("name", ["ll_cp", "em_apl", "pns"])
def test_a_checkpoint_has_the_losss_state(tmp_path, name):
    module = module_of(name)
    trainer = make_trainer(3)
    fit(module, batches(), trainer=trainer)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    field = {"ll_cp": "flips", "em_apl": "pseudo_labels", "pns": "step"}[name]
    assert torch.equal(state[f"loss.{field}"], getattr(module.loss, field))
    assert not torch.equal(state[f"loss.{field}"], getattr(loss_of(name), field))
    assert "observed" not in state  # it can be large, and the user has it


@pytest.mark.slow
@pytest.mark.parametrize("name", STATEFUL)
def test_a_copy_learns_on_its_own(name):
    module = module_of(name)
    before = weights(module)
    twin = copy.deepcopy(module)
    fit(twin, batches(), trainer=make_trainer(2))
    assert_same(weights(module), before, atol=0)
    assert_same(module.loss.state_dict().values(), loss_of(name).state_dict().values(), atol=0)
    fit(module, batches(), trainer=make_trainer(2))
    assert_same(weights(module), weights(twin))


def test_a_copy_of_a_trained_one():
    module = module_of("role")
    fit(module, batches())
    twin = copy.deepcopy(module)
    fit(module, batches())
    fit(twin, batches())
    assert_same(weights(module), weights(twin))


def test_the_module_is_the_model():
    module = module_of("gr")
    assert torch.equal(module(X), module.model(X))
