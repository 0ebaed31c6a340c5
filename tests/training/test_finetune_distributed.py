"""Two processes under torchrun fine-tune as one process does with the joined batches."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
import torch.distributed as dist
from trainings import TRACKED, leave_out_pictures
from trainings import train as train_on_cpu

from spml_fast.cli import main
from spml_fast.data import MultiLabelData, cifar_7to3
from spml_fast.labels import single_positives
from spml_fast.training.finetune import Batches, Rows, loader
from spml_fast.training.trunks import small_cnn

pytestmark = pytest.mark.slow

PROCESSES, BATCH, EPOCHS = 2, 16, 3
DATA = Path(os.environ.get("SPML_FAST_DATA", "no data"))
DATA_FILE = "SPML_FAST_TEST_DATA_FILE"
EQUAL = ("role", "gr", "epr")
"""Losses that are the same of two halves of a batch as of the whole."""
OF_THE_BATCH = ("ll_cp", "pns")
"""Those that are not: LL-Cp ranks the losses of a process's batch, PNS draws by the row's place in it."""
LOSSES = (*EQUAL, *OF_THE_BATCH)
FLIPPED = 0.02


FIELDS = ("x", "labels", "observed", "names")


@functools.cache
def data(file=None):
    """(training data, test data), from a file that :func:`save_data` wrote where it is given."""
    if file is None:
        return load()
    return [MultiLabelData(**fields) for fields in torch.load(file, weights_only=True)]


def save_data(file):
    """Once for all processes: it takes longer to read them than to train."""
    torch.save([{name: getattr(split, name) for name in FIELDS} for split in data()], file)


def load():
    """(training data, test data): 224 and 70 images of CIFAR-7to3; invented ones where there are none."""
    archive = DATA / "cifar10-jpeg.tar.gz"
    if archive.exists():
        splits = cifar_7to3(archive, limit=40)
        return splits.train, MultiLabelData(splits.test.x[::4], splits.test.labels[::4], names=splits.test.names)
    generator = torch.Generator().manual_seed(0)
    found = []
    for n in (280, 70):
        labels = torch.rand(n, 3, generator=generator) < 0.5
        labels[torch.arange(n), torch.randint(3, (n,), generator=generator)] = True
        means = torch.randn(3, 3, 32, 32, generator=generator)
        x = torch.einsum("nl,lchw->nchw", labels.float(), means) + torch.randn(n, 3, 32, 32, generator=generator)
        found.append((x.clamp(-1, 1), labels))
    (x, labels), (test_x, test_labels) = found
    return MultiLabelData(x, labels, single_positives(labels, seed=0)), MultiLabelData(test_x, test_labels)


def trunk():
    torch.manual_seed(0)
    return small_cnn(width=8, dropout=0.0)


def train(loss, *, out=TRACKED, linear=None, **finetune):
    """The runs of this file; keywords beside these are of fine-tuning."""
    found, test = data(os.environ.get(DATA_FILE))
    loss = {"name": loss, "delta": FLIPPED} if loss == "ll_cp" else loss
    finetune = dict(trunk=trunk(), epochs=EPOCHS, lr=1e-3, batch_size=BATCH) | finetune
    return train_on_cpu(found, test=test, loss=loss, seed=2, linear=linear, finetune=finetune, out=out)


class Watch(lightning.Callback):
    """What the processes must have in common after every epoch, and the indices of the rows that each has seen."""

    def __init__(self):
        self.flips, self.rows, self.weights = [], [], []

    def on_train_epoch_start(self, trainer, module):
        self.rows.append([])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.rows[-1].append(batch["index"].tolist())

    def on_train_epoch_end(self, trainer, module):
        if hasattr(module.loss, "flips"):
            self.flips.append(module.loss.flips.nonzero().tolist())
        self.weights.append([float(p.detach().double().sum()) for p in module.parameters()])


class DieIn(lightning.Callback):
    """The first process dies in the middle of an epoch; the other waits for it in an all-reduce."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1 and trainer.global_rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def summary(result, watch=None):
    found = {
        "metrics": {name: value for name, value in result.metrics.items() if name != "seconds"},
        "test": result.test_probabilities.tolist(),
        "train": result.train_probabilities.tolist(),
        "estimates": None if result.estimates is None else result.estimates.tolist(),
    }
    for record in found["metrics"]["epochs"]:
        del record["seconds"]
    if watch is not None:
        found |= {"flips": watch.flips, "rows": watch.rows, "weights": watch.weights}
    return json.loads(json.dumps(found))


# --- what the processes do ------------------------------------------------------------------------

NAME = Path(__file__).stem
SETTINGS = [
    "--data", "digits", "--finetune", f"{NAME}:digit_trunk", "--accelerator", "cpu", "--quiet",
    "--set", "data.images=true", "--set", "finetune.epochs=1", "--set", "finetune.batch_size=128",
]  # fmt: skip


def digit_trunk():
    torch.manual_seed(0)
    return small_cnn(channels=1, width=8, dropout=0.0)


def work(folder):
    """Each process writes what came out; in the end the first one dies on the way."""
    rank = os.environ["RANK"]
    found = {}
    for loss in LOSSES:
        watch = Watch()
        # A folder of its own for each process, by which it shows who writes.
        out = folder / f"{loss} of {rank}"
        result = train(loss, out=out, trainer_options={"callbacks": [watch]})
        found[loss] = summary(result, watch)
    try:
        train("gr", batch_size=15)
        found["error"] = None
    except ValueError as error:
        found["error"] = str(error)
    found["linear_init"] = summary(train("role", linear=dict(epochs=2, lr=1e-2, batch_size=32)))
    sys.path.insert(0, str(Path(__file__).parent))
    found["cli"] = main(["train", *SETTINGS, "--out", str(folder / f"cli of {rank}")])
    (folder / f"rank{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    train("role", out=folder / "killed", trainer_options={"callbacks": [DieIn(2)]})


def resume(folder):
    """The killed run, continued."""
    watch = Watch()
    result = train("role", out=folder / "killed", trainer_options={"callbacks": [watch]})
    (folder / f"resumed{os.environ['RANK']}.json").write_text(json.dumps(summary(result, watch)))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(job, folder):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(PROCESSES), "--master-port",
        str(free_port()), str(Path(__file__).resolve()), job, str(folder),
    ]  # fmt: skip
    file = folder / "data.pt"
    if not file.exists():
        save_data(file)
    env = {**os.environ, "OMP_NUM_THREADS": "1", DATA_FILE: str(file)}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of all files that the processes wrote; the last run in it is a killed one."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("needs torch.distributed with gloo")
    path = tmp_path_factory.mktemp("distributed")
    done = launch("work", path)
    assert all((path / f"rank{rank}.json").exists() for rank in range(PROCESSES)), done.stderr
    assert done.returncode != 0  # a process that dies ends the job
    assert "Signal 9 (SIGKILL)" in done.stderr
    return path


@pytest.fixture(scope="module")
def found(folder):
    """What each process found: [{loss: summary}]"""
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def resumed(folder):
    killed = folder / "killed"
    assert (killed / "finetune.ckpt").exists()
    assert not (killed / "metrics.json").exists()
    done = launch("resume", folder)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"resumed{rank}.json").read_text()) for rank in range(PROCESSES)]


@functools.cache
def alone(loss):
    """The same in this process."""
    watch = Watch()
    return summary(train(loss, trainer_options={"callbacks": [watch]}), watch)


def losses(summary):
    return [record["train_loss"] for record in summary["metrics"]["epochs"]]


def maps(summary):
    return [record["validation_map"] for record in summary["metrics"]["epochs"]]


def assert_close(a, b, atol):
    torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=0, atol=atol)


# --- one process and two --------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_half_batches_join_to_those_of_one_process(found, loss):
    """Each row once: the processes share an epoch, none trains the other's rows."""
    rows = [one[loss]["rows"] for one in found]
    expected = alone(loss)["rows"]
    assert len(expected) == EPOCHS
    for epoch in range(EPOCHS):
        joined = [sorted(a + b) for a, b in zip(rows[0][epoch], rows[1][epoch], strict=True)]
        assert joined == [sorted(batch) for batch in expected[epoch]]
        seen = [row for batch in joined for row in batch]
        assert len(seen) == len(set(seen)) == found[0][loss]["metrics"]["n_train"]
    assert rows[0][0] != rows[0][1]  # another order in each epoch


@pytest.mark.parametrize("loss", EQUAL)
def test_two_processes_learn_what_one_learns(found, loss):
    expected = alone(loss)
    for one in found:
        assert losses(one[loss])[0] == pytest.approx(losses(expected)[0], abs=1e-4)
        assert losses(one[loss]) == pytest.approx(losses(expected), abs=1e-3)
        assert_close(one[loss]["weights"][0], expected["weights"][0], 2e-3)
        assert maps(one[loss]) == pytest.approx(maps(expected), abs=0.02)
        assert_close(one[loss]["test"], expected["test"], 0.01)
    assert max(losses(expected)) - min(losses(expected)) > 0.003  # something was learned


def test_what_is_compared_could_differ():
    """Were the processes' gradients not joined, half the batch would teach something else."""
    half = summary(train("gr", batch_size=BATCH // 2))
    assert abs(losses(half)[0] - losses(alone("gr"))[0]) > 4e-4  # four times what is allowed above


@pytest.mark.parametrize("loss", OF_THE_BATCH)
def test_losses_that_rank_or_draw_within_a_process_train_too(found, loss):
    values, expected = losses(found[0][loss]), losses(alone(loss))
    assert values == pytest.approx(expected, rel=0.2)
    assert values[-1] < values[0]


@pytest.mark.parametrize("loss", LOSSES)
def test_both_processes_return_the_same(found, loss):
    first, second = ({k: v for k, v in one[loss].items() if k != "rows"} for one in found)
    assert first == second


def test_both_return_the_same_of_linear_init(found):
    assert found[0]["linear_init"] == found[1]["linear_init"]
    phases = [record["phase"] for record in found[0]["linear_init"]["metrics"]["epochs"]]
    assert phases == ["linear"] * 2 + ["finetune"] * EPOCHS


def test_flips_of_ll_cp_are_those_of_all_processes(found):
    first, second = (one["ll_cp"]["flips"] for one in found)
    assert first == second
    assert first[0] == []  # none in the first epoch
    assert 0 < len(first[1]) < len(first[2])
    assert all(flip in first[2] for flip in first[1])
    own = [{row for batch in one["ll_cp"]["rows"][1] for row in batch} for one in found]
    for rows in own:  # of rows of either process
        assert any(row in rows for row, _ in first[1])
    # Each process flips the share of its batch, at least one label: as many as one process alone, within rounding.
    batches = len(found[0]["ll_cp"]["rows"][1])
    alone_flips = alone("ll_cp")["flips"][1]
    assert len(alone_flips) <= len(first[1]) <= len(alone_flips) + PROCESSES * batches


# --- which rows a process has ---------------------------------------------------------------------


def dealt_out(monkeypatch, n, batch_size, processes=PROCESSES, **arguments):
    """[[rows of a batch] of each process]"""
    found = []
    rows = Rows(torch.arange(n, dtype=torch.float32)[:, None], torch.arange(n), {"labels": torch.zeros(n)})
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        found.append([batch["index"].tolist() for batch in loader(rows, batch_size, **arguments)])
    return found


@pytest.mark.parametrize("seed", [None, 0, 5])
@pytest.mark.parametrize(("n", "batch_size"), [(24, 8), (28, 8), (4, 4), (30, 12)])
def test_every_row_belongs_to_one_process(monkeypatch, n, batch_size, seed):
    first, second = dealt_out(monkeypatch, n, batch_size, seed=seed)
    assert sorted(row for batch in first + second for row in batch) == list(range(n))
    assert {len(batch) for batch in first[:-1]} <= {batch_size // 2}
    ((whole),) = dealt_out(monkeypatch, n, batch_size, 1, seed=seed)
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(batch) for batch in whole]
    assert (whole == [list(range(n))[i : i + batch_size] for i in range(0, n, batch_size)]) == (seed is None)


def test_no_row_is_measured_twice(monkeypatch):
    """val_map would count it twice, and depend on the number of processes."""
    first, second = dealt_out(monkeypatch, 25, 64)
    assert sorted(row for batch in first + second for row in batch) == list(range(25))


def test_a_last_batch_of_one_row_joins_the_others_in_training_only(monkeypatch):
    ((training),) = dealt_out(monkeypatch, 17, 4, 1, seed=0)
    assert [len(batch) for batch in training] == [4, 4, 4, 5]
    ((measured),) = dealt_out(monkeypatch, 17, 4, 1)
    assert [len(batch) for batch in measured] == [4, 4, 4, 4, 1]
    ((alone),) = dealt_out(monkeypatch, 1, 4, 1, seed=0)
    assert alone == [[0]]


@pytest.mark.parametrize(("n", "batches"), [(0, 0), (1, 1), (4, 1), (5, 1), (6, 2), (17, 4), (18, 5)])
def test_batches_know_how_many_they_are(n, batches):
    assert len(Batches(range(n), 4, drop_last=False)) == batches
    assert len(list(Batches(range(n), 4, drop_last=False))) == batches


class Watched(lightning.Callback):
    """The probabilities of each epoch, and the pseudo-labels in the end."""

    def __init__(self):
        self.probabilities = []

    def on_train_epoch_start(self, trainer, module):
        if module.probabilities is not None:
            self.probabilities.append(module.probabilities)

    def on_train_end(self, trainer, module):
        self.probabilities.append(module.probabilities)
        self.pseudo_labels = getattr(module.loss, "pseudo_labels", None)


@pytest.fixture(scope="module")
def watched():
    """Of 33 rows in batches of 16: the last of an epoch has no batch of its own."""
    found, test = data()
    rows = torch.arange(0, len(found), len(found) // 33)[:33]
    few = MultiLabelData(found.x[rows], found.labels[rows], found.observed[rows], found.names)
    watched = Watched()
    finetune = dict(trunk=trunk(), epochs=4, batch_size=16, trainer_options={"callbacks": [watched]})
    loss = {"name": "em_apl", "warmup": 1}
    train_on_cpu(few, validation=(test.x, test.labels), loss=loss, finetune=finetune, out=TRACKED)
    return watched


def test_the_row_without_a_batch_of_its_own_is_predicted(watched):
    assert len(watched.probabilities) == 4
    assert all((p > 0).all() for p in watched.probabilities)


def test_it_gets_no_pseudo_label_of_zero(watched):
    stored = watched.pseudo_labels
    assert (stored >= 0).any()
    assert (stored != 0).all()


# --- files, errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_only_the_first_process_writes(folder, found, loss):
    written = {path.name for path in (folder / f"{loss} of 0").iterdir()}
    assert written >= {
        "settings.json", "finetune.ckpt", "model.safetensors", "metrics.json", "predictions.npz", "report.html",
    }  # fmt: skip
    assert not [name for name in written if name.startswith(".")]
    assert not (folder / f"{loss} of 1").exists()


def test_at_the_command_line_too_only_the_first_process_writes(folder, found):
    assert [one["cli"] for one in found] == [0, 0]
    assert (folder / "cli of 0" / "config.yaml").exists()
    assert not (folder / "cli of 1").exists()


def test_a_batch_that_cannot_be_shared_is_refused(found):
    for one in found:
        assert one["error"] == "batches of 15 rows cannot be shared equally by 2 processes"


# --- resume ---------------------------------------------------------------------------------------


def test_a_job_that_was_killed_continues(found, resumed):
    for one in resumed:
        assert len(one["rows"]) == EPOCHS - 2
        assert losses(one) == pytest.approx(losses(found[0]["role"]), abs=1e-6)
        assert_close(one["test"], found[0]["role"]["test"], 1e-6)
        assert_close(one["estimates"], found[0]["role"]["estimates"], 1e-6)
        assert one["rows"] == found[resumed.index(one)]["role"]["rows"][2:]


def test_both_processes_of_a_continued_job_return_the_same(resumed):
    first, second = ({k: v for k, v in one.items() if k != "rows"} for one in resumed)
    assert first == second


if __name__ == "__main__":
    leave_out_pictures()
    torch.manual_seed(0)
    {"work": work, "resume": resume}[sys.argv[1]](Path(sys.argv[2]))
