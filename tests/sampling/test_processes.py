"""Processes that share the chains: the bits of one process, whatever their number; errors where one is lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import several
import torch
import torch.distributed as dist
from several import CASES, CONVOLUTIONAL, DIFFERENT, SHARED, Children, child, differences, rowwise
from toys import FIELDS, RowwiseClassifier, RowwiseGenerator

from spml_fast import Mixture, Run, S2MSampler, s2m_sample
from spml_fast.sampling import processes

pytestmark = [
    pytest.mark.skipif(
        not dist.is_available() or not dist.is_gloo_available(), reason="needs torch.distributed with gloo"
    ),
    pytest.mark.filterwarnings("ignore:.*never met the support"),
]
SOON = 30
"""Seconds within which a job whose process is lost must end."""


@pytest.fixture(autouse=True)
def _one_thread(threads):
    threads(1)


def torchrun(*arguments, n=2, seconds=120):
    """Exit status, stderr and seconds of ``several.py`` under torchrun."""
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(n),
        "--master-port",
        str(several.free_port()),
    ]
    command = [sys.executable, *launcher, several.__file__, *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=seconds)
    return run.returncode, run.stderr, time.monotonic() - began


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """{number of processes: folder of what each saved}: two of torchrun, three of a server."""
    folder = tmp_path_factory.mktemp("processes")
    three = Children(folder / "3", 3, several.run_and_be_absent, folder / "3", limit=2 * several.LIMIT)
    (folder / "2").mkdir()
    status, stderr, _ = torchrun("script", folder / "2")
    assert status == 0, stderr
    assert three.end() == [0, 0, 0], [three.said(rank) for rank in range(3)]
    return {2: folder / "2", 3: folder / "3"}


def saved(folder, name, n):
    return [torch.load(folder / f"{name}{rank}.pt", weights_only=False) for rank in range(n)]


@pytest.fixture(scope="module", params=[2, 3])
def found(request, everything):
    """What each process had of every case."""
    return saved(everything[request.param], "cases", request.param)


# --- the bits of one process ----------------------------------------------------------------------


def of_rank(expected, rank, size, first_chain=0):
    """The rows of a result of one process that are of chains of process ``rank``."""
    n_chains = expected["diagnostics"]["n_chains"]
    first, end = (first_chain + of * n_chains // size for of in (rank, rank + 1))
    mine = (expected["chains"] >= first) & (expected["chains"] < end)
    return expected | {name: expected[name][mine] for name in FIELDS}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_the_same_bits_as_one_process(name, found):
    expected = SHARED[name].run()
    first_chain = SHARED[name].call.get("run", Run()).first_chain
    for rank, got in enumerate(found):
        share = [of_rank(result, rank, len(found), first_chain) for result in expected]
        assert differences(got[name, True], expected) == []
        assert differences(got[name, False], share) == []


def test_cases_cover_what_they_say():
    """Or the same bits would show little."""
    auto = CASES["auto"].run()[0]["diagnostics"]
    assert auto["n_steps"] > 2 * 16  # several looks
    assert CASES["some chains without support"].run()[0]["diagnostics"]["chains_without_support"] > 0
    adapted, kept = CASES["adapt"].run()
    assert len(adapted["adaptation"]) > 1
    assert kept["adaptation"] is None
    assert all(result["chains"].numel() == 0 for result in SHARED["imh, no support"].run())


@pytest.mark.slow
@pytest.mark.parametrize("name", several.SPECIAL)
def test_special_cases(tmp_path, name):
    statuses, said = child(tmp_path, several.run_special, tmp_path, name, size=3)
    assert statuses == [0, 0, 0], said
    expected = several.SPECIAL[name].run()
    for rank, got in enumerate(saved(tmp_path, "special", 3)):
        assert differences(got[True], expected) == []
        assert differences(got[False], [of_rank(result, rank, 3) for result in expected]) == []


@pytest.mark.slow
def test_adapt_itself(found):
    expected = several.adapted()
    for got in found:
        assert differences(got["adapted"], expected) == []


@pytest.mark.slow
def test_convolutions_agree_but_for_rounding(found):
    expected = CONVOLUTIONAL.run()
    for got in found:
        assert differences(got["convolutional", True], found[0]["convolutional", True]) == []
        for a, b in zip(got["convolutional", True], expected, strict=True):
            assert torch.equal(a["chains"], b["chains"])
            same = (a["latents"] == b["latents"]).all(1)
            assert same.float().mean() > 0.98
            torch.testing.assert_close(a["samples"][same], b["samples"][same], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_seed_that_nobody_gave_is_one_seed(found):
    for got in found:
        assert differences(got["no seed"], found[0]["no seed"]) == []
    torch.manual_seed(100)  # the first process's
    assert differences(found[0]["no seed"], CASES["imh"].run(seed=None)) == []


@pytest.mark.slow
def test_they_were_several(found):
    assert [got["group"] for got in found] == [(rank, len(found), "gloo") for rank in range(len(found))]


# --- calls that are not the same ------------------------------------------------------------------


OF_PROPOSAL = {"mixture", "latents", "n_chains", "n_components", "target"}
"""Differences that show in what ``proposal`` is."""


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFERENT)
def test_other_arguments_are_refused_by_name_in_every_process(name, everything):
    for different in saved(everything[2], "different", 2):
        assert different[name] is not None, "no error"
        kind, message = different[name]
        assert kind == "ValueError"
        assert f" {'proposal' if name in OF_PROPOSAL else name} is " in message
        assert name in message or name in {"latents", "target"}
        assert "process 1" in message
        assert "process 0" in message
        assert "distributed=False" in message


@pytest.mark.slow
def test_another_share_of_the_prior_is_refused(everything):
    _undescribed(everything, "proposal", "proposal")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "named"), [("G", "G"), ("latents", "proposal")])
def test_numbers_in_another_order_are_refused(everything, name, named):
    _undescribed(everything, name, named)


def _undescribed(everything, name, named):
    for different in saved(everything[2], "undescribed", 2):
        assert different[name] is not None, "no error"
        assert different[name][0] == "ValueError"
        assert f" {named} is " in different[name][1]


STARTS = {
    "block_steps": (several.part, "block_steps"),
    "one more keyword": (several.part, "one more keyword"),
    "absent": (several.absent_from_the_first_call,),
}


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """{name: folder} of processes that may wait for each other for long, all at once."""
    folder = tmp_path_factory.mktemp("apart")
    started = [
        Children(folder / name, 2, function, folder / name, *rest, limit=6)
        for name, (function, *rest) in STARTS.items()
    ]
    return {child.folder.name: (child.folder, child.end()) for child in started}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("block_steps", "block_steps"),
        ("one more keyword", "max_components"),
    ],
)
def test_calls_that_would_part_the_processes(name, named, apart):
    folder, statuses = apart[name]
    assert statuses == [0, 0]
    for kind, message in saved(folder, "part", 2):
        assert kind == "ValueError"
        assert named in message


# --- processes that do not come, or are lost ------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3])
def test_a_process_that_does_not_come_is_named(everything, n):
    *others, last = saved(everything[n], "absent", n)
    for kind, message in others:
        assert kind == "LostProcessError"
        assert "not all processes came" in message
        assert "distributed=False" in message
    assert last is None
    assert f"Ranks {n - 1} failed to pass monitoredBarrier in 1000 ms" in others[0][1]


@pytest.mark.slow
def test_a_process_that_does_not_come_to_the_first_call(apart):
    """There is no process group yet, whose making all processes are needed for."""
    folder, statuses = apart["absent"]
    assert statuses[0] == 0
    kind, message = torch.load(folder / "absent0.pt")
    assert kind == "LostProcessError"
    assert "not all processes came" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "said"), [("die", "Signal 9 (SIGKILL)"), ("fail", "ArithmeticError: G is broken in process 1")]
)
def test_the_end_of_one_process_ends_the_job(end, said, tmp_path):
    """torchrun's agent ends the others, or they see it themselves."""
    status, stderr, _ = torchrun("long_run", tmp_path, end)
    seconds = time.time() - float((tmp_path / "1 at").read_text())
    assert status != 0
    assert seconds < SOON
    assert said in stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "lost"), [("imh", 0), ("imh", 1), ("imh", 2), ("rejection", 1), ("mala", 1), ("adapt", 1)]
)
def test_without_an_agent_the_others_see_it(tmp_path, what, lost):
    """Processes started by hand, in a group of their own making."""
    children = Children(tmp_path, 3, several.lose, tmp_path, what, lost)
    statuses = children.end()
    assert statuses[lost] == -signal.SIGKILL
    died = float((tmp_path / f"{lost} at").read_text())
    for rank in {0, 1, 2} - {lost}:
        assert statuses[rank] == 0, children.said(rank)
        (kind, message), at = torch.load(tmp_path / f"lost{rank}.pt")
        assert kind == "LostProcessError"
        assert f"process {rank} of 3" in message
        assert "another process was lost" in message
        assert "checkpoint" in message
        assert at - died < SOON


def test_an_exception_in_one_process_reaches_the_others(tmp_path):
    children = Children(tmp_path, 2, several.fail_alone, tmp_path)
    assert children.end() == [0, 1]
    assert "ArithmeticError: G is broken in process 1" in children.said(1)
    kind, message = torch.load(tmp_path / "lost0.pt")[0]
    assert kind == "FailedProcessError"
    assert message == (
        "S2M sampling in process 0 of 2 ends because process 1 failed: ArithmeticError: G is broken in process 1"
    )


# --- Ctrl-C, groups, and who speaks ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("imh", 4),
        ("rejection", 4),
        ("several samples per chain", 6),
        ("stochastic", 4),
        ("mala", 12),
        ("mala", 24),
    ],
)
def test_ctrl_c_in_one_process_ends_the_run_in_all(tmp_path, name, at):
    """With the samples of one process that was interrupted there."""
    statuses, said = child(tmp_path, several.interrupted, tmp_path, name, at, size=2)
    assert statuses == [0, 0], said
    found = saved(tmp_path, "interrupted", 2)
    assert differences(*found) == []
    n_steps = found[0][0]["diagnostics"]["n_steps"]
    assert 0 < n_steps < CASES[name].run()[0]["diagnostics"]["n_steps"]
    assert found[0][0]["diagnostics"]["interrupted"]
    if name in ("imh", "rejection", "stochastic"):
        for got, expected in zip(found[0], CASES[name].run(n_steps=n_steps), strict=True):
            assert [row for row in FIELDS if not torch.equal(got[row], expected[row])] == []


def test_ctrl_c_before_anything_was_sampled(tmp_path):
    statuses, said = child(tmp_path, several.interrupted, tmp_path, "imh", 1, size=2)
    assert statuses == [0, 0], said
    assert saved(tmp_path, "interrupted", 2) == ["KeyboardInterrupt"] * 2


@pytest.mark.slow
def test_a_group_that_is_there_is_used_and_left(tmp_path):
    statuses, said = child(tmp_path, several.in_a_group, tmp_path, size=2)
    assert statuses == [0, 0], said
    found = saved(tmp_path, "group", 2)
    expected = CASES["imh"].run()
    for rank, got in enumerate(found):
        assert got["same group"]
        assert got["works"] == 1
        assert differences(got["together"], expected) == []
        assert differences(got["share"], [of_rank(result, rank, 2) for result in expected]) == []
        assert differences(got["gathered"], s2m_sample(*several.models(), (0, 1), (2,), 50, 9, seed=0)) == []
    assert differences(found[1]["alone"], expected) == []
    assert found[0]["alone"] is None
    assert found[1]["seconds alone"] < 2  # the other one slept longer


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_group_that_its_owner_ends_is_gone(tmp_path):
    """With its threads: one that still lets go of a tensor while Python shuts down aborts the process."""
    statuses, said = child(tmp_path, several.leave_groups, tmp_path, size=2)
    assert statuses == [0, 0], said
    assert saved(tmp_path, "threads", 2) == [[0, 0], [0, 0]]


@pytest.mark.slow
@pytest.mark.parametrize("made_by", ["caller", "sampler", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_a_group_that_was_destroyed_and_made_again(tmp_path, made_by):
    """With a store of the group's own; torchrun's store is one for all groups."""
    if made_by == "torchrun":
        status, stderr, _ = torchrun("groups_again", tmp_path)
        assert status == 0, stderr
    else:
        statuses, said = child(tmp_path, several.groups_again, tmp_path, made_by, size=2, limit=20)
        assert statuses == [0, 0], said
    expected = CASES["imh"].run()
    for found in saved(tmp_path, "groups", 2):
        for again in found:
            assert differences(again, expected) == []


def test_a_group_of_one_is_no_group(tmp_path):
    statuses, said = child(tmp_path, several.group_of_one, tmp_path)
    assert statuses == [0], said
    (tmp_path / "one0.pt").rename(tmp_path / "one.pt")
    assert differences(torch.load(tmp_path / "one.pt"), CASES["imh"].run()) == []


def test_a_process_by_itself_makes_no_group():
    rowwise().sample(0, (), 10, 5)
    assert not dist.is_initialized()
    assert processes.processes_of(True).size == 1


@pytest.mark.slow
def test_only_the_first_process_speaks(everything):
    first, second = ((everything[2] / f"stderr{rank}.txt").read_text() for rank in range(2))
    assert second == ""
    assert "never met the support" in first
    assert "max_steps=17" in first
    assert "S2M sampling" in first
    assert first.count("never met the support of +0+1-2") == 1


def test_samplers_with_one_process_are_not_slowed_by_descriptions():
    """One process without a checkpoint has nothing to compare its models with."""

    class Undescribed(RowwiseGenerator):
        def state_dict(self, *_, **__):
            pytest.fail("described")

    sampler = S2MSampler(Undescribed(), RowwiseClassifier())
    sampler.sample(0, (), 10, 5)
    sampler.adapt((0, 1), how=Mixture(n_chains=64))
