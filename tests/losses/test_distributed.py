"""Two processes with half a batch each learn what one process learns from the joined batch."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from cases import ONE_OF_EACH, K, make_index, make_labels, make_matrix
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spml_fast import losses

pytestmark = pytest.mark.slow

N, D, L, ROWS = 24, 5, 31, 40
PROCESSES = 2
# Not the same by design: PNS draws by the row's number in its batch, LL-* rank the losses of a batch.
OF_THE_BATCH = ("pns", "ll_r", "ll_ct", "ll_cp", "epr", "role")
CASES = [case for case in ONE_OF_EACH if case.name not in OF_THE_BATCH]


class Model(nn.Module):
    """A linear classifier and the label estimates that ROLE trains with it."""

    def __init__(self, with_table):
        super().__init__()
        self.head = nn.Linear(D, L, dtype=torch.float64)
        self.table = nn.Parameter(torch.randn(ROWS, L, dtype=torch.float64)) if with_table else None

    def forward(self, x):
        return (self.head(x),) if self.table is None else (self.head(x), self.table)


def losses_to_try():
    """{name: (loss of (logits, labels, second matrix, index), or of ROLE with its table; the case of its data)}"""
    found = {
        case.id: (lambda z, s, second_matrix, index, case=case: case.fused(z, s, second_matrix), case)
        for case in CASES
    }
    for name in ("epr", "role"):
        case = next(case for case in ONE_OF_EACH if case.name == name)
        for sync in (True, False):
            module = losses.make(name, expected_positives=K, lam=5.0, sync=sync)
            if name == "epr":
                call = lambda z, s, second_matrix, index, module=module: module(z, s)  # noqa: E731
            else:
                call = lambda z, table, s, second_matrix, index, module=module: module(z, s, table, index)  # noqa: E731
            found[f"{name} sync={sync}"] = call, case
    return found


def batches(case):
    """The joined batch in both forms of labels: {form: (x, labels, second matrix, rows of the table)}"""
    torch.manual_seed(5)
    x = torch.randn(N, D, dtype=torch.float64)
    x[N // 2 :] += 2  # the halves expect different numbers of positives
    s = make_labels(case, N, L)
    second_matrix = make_matrix(case, s)
    index = torch.randperm(ROWS)[:N]
    forms = {"matrix": s} if case.full_labels else {"matrix": s, "index": make_index(N, L)}
    return {form: (x, labels, second_matrix, index) for form, labels in forms.items()}


def learn(call, case, batch, rank=None):
    """Value and gradients of one step, of the process's part of the batch or of all of it."""
    torch.manual_seed(6)
    model = Model(case.name == "role")
    parallel = model
    if rank is not None:
        parallel = DistributedDataParallel(model)
        part = slice(rank * N // PROCESSES, (rank + 1) * N // PROCESSES)
        batch = [None if t is None else t[part] for t in batch]
    x, *rest = batch
    value = call(*parallel(x), *rest)
    value.backward()
    mean = value.detach().clone()
    if rank is not None:
        dist.all_reduce(mean)
        mean /= PROCESSES
    return [mean.item(), *(p.grad.flatten().tolist() for p in model.parameters())]


def work():
    """What each process does; the first one writes what came out."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    found = {
        f"{name} {form}": learn(call, case, batch, rank)
        for name, (call, case) in losses_to_try().items()
        for form, batch in batches(case).items()
    }
    if rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    # Models in reference cycles keep the group and its threads beyond its end: one that still lets go of a tensor
    # while Python shuts down aborts the process.
    gc.collect()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def in_two_processes(tmp_path_factory, environment):
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("needs torch.distributed with gloo")
    out = tmp_path_factory.mktemp("distributed") / "out.json"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    command = [sys.executable, *launcher, str(Path(__file__).resolve()), str(out)]
    env = {**environment, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    return json.loads(out.read_text())


def assert_same(a, b):
    for first, second in zip(a, b, strict=True):
        assert first == pytest.approx(second, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("name", [name for name in losses_to_try() if "sync=False" not in name])
def test_half_batches_learn_what_the_joined_batch_teaches(name, in_two_processes):
    call, case = losses_to_try()[name]
    for form, batch in batches(case).items():
        assert_same(in_two_processes[f"{name} {form}"], learn(call, case, batch))


def largest_difference(a, b):
    """The largest difference of gradients, as a share of the largest gradient."""
    a, b = (torch.cat([torch.tensor(grad, dtype=torch.float64) for grad in grads]) for grads in (a[1:], b[1:]))
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("name", ["epr", "role"])
def test_without_sync_every_process_has_its_own_k_hat(name, in_two_processes):
    """Without ``sync`` the processes do not compute the loss of the joined batch."""
    call, case = losses_to_try()[f"{name} sync=False"]
    for form, batch in batches(case).items():
        joined = learn(call, case, batch)
        assert largest_difference(in_two_processes[f"{name} sync=False {form}"], joined) > 1e-3
        assert largest_difference(in_two_processes[f"{name} sync=True {form}"], joined) < 1e-10


def test_without_processes_sync_changes_nothing():
    z, labels = torch.randn(N, L, dtype=torch.float64), make_index(N, L)
    values = [losses.make("epr", expected_positives=K, sync=sync)(z, labels) for sync in (True, False)]
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-14)


if __name__ == "__main__":
    work()
