"""Files that are whole or not there, and that are read without executing code."""

import multiprocessing
import os
import pickle
import time

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from spml_fast._checkpoint import digest, exclusive, load_state, save_state, write_atomically


class Touch:
    """Unpickled, it creates a file: what a stranger's checkpoint could do."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- write_atomically -----------------------------------------------------------------------------


def test_what_is_written_has_the_final_name_and_nothing_else_stays(tmp_path):
    path = write_atomically(tmp_path / "a.txt", lambda part: part.write_text("new"))
    assert path == tmp_path / "a.txt"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_a_path_may_be_a_string(tmp_path):
    assert write_atomically(str(tmp_path / "a"), lambda part: part.write_text("x")).read_text() == "x"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_writer_that_raises_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(part):
        part.write_text("half of the n")
        raise error("no space")

    with pytest.raises(error, match="no space"):
        write_atomically(path, write)
    assert path.read_text() == "old"


def test_a_writer_that_raises_leaves_nothing_under_the_final_name(tmp_path):
    def write(part):
        part.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomically(tmp_path / "a.txt", write)
    assert not (tmp_path / "a.txt").exists()
    assert not list(tmp_path.glob("[!.]*"))


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(part):
        assert part.parent == path.parent  # a rename within one file system
        assert part != path
        part.write_text("new")
        assert path.read_text() == "old"

    write_atomically(path, write)
    assert path.read_text() == "new"


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A power cut after the rename must not leave an empty file under the final name."""
    events = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: events.append(name) or real(*a))
    write_atomically(tmp_path / "a", lambda part: part.write_text("x"))
    assert events == ["fsync", "replace"]


def test_a_part_that_a_kill_left_is_written_over(tmp_path):
    parts = []
    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "a", lambda part: parts.append(part) or part.write_text("long " * 99) / 0)
    parts[0].write_text("long " * 99)
    write_atomically(tmp_path / "a", lambda part: part.write_text("x"))
    assert (tmp_path / "a").read_text() == "x"
    assert names(tmp_path) == ["a"]


def test_two_files_of_one_folder_have_parts_of_their_own(tmp_path):
    def outer(part):
        part.write_text("outer")
        write_atomically(tmp_path / "b", lambda inner: inner.write_text("inner"))

    write_atomically(tmp_path / "a", outer)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "outer", "b": "inner"}


# --- exclusive ------------------------------------------------------------------------------------


def test_a_file_is_kept_from_others_and_given_back(tmp_path):
    path = tmp_path / "a"
    for _ in range(2):
        with exclusive(path):
            with pytest.raises(ValueError, match=f"{path} is in use by another run"), exclusive(str(path)):
                pytest.fail("had twice")
            with exclusive(tmp_path / "b"):
                pass
        assert names(tmp_path) == []


def test_it_is_given_back_by_what_raises(tmp_path):
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path / "a"):
        raise ZeroDivisionError
    with exclusive(tmp_path / "a"):
        pass


def hold(path, end):
    with exclusive(path):
        path.write_text("held")
        time.sleep(30) if end == "killed" else os._exit(0)


@pytest.mark.parametrize("end", ["killed", "gone"])
def test_a_process_that_ends_gives_it_back(tmp_path, end):
    """However it ends; the file that it leaves beside is taken for no run's."""
    path = tmp_path / "a"
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(path, end))
    holder.start()
    while not path.exists():
        time.sleep(0.005)
    if end == "killed":
        with pytest.raises(ValueError, match="is in use"), exclusive(path):
            pass
        holder.kill()
    holder.join()
    assert names(tmp_path) == [".a.lock", "a"]
    with exclusive(path):
        pass
    assert names(tmp_path) == ["a"]


def test_parts_that_killed_processes_left_are_removed_and_no_others(tmp_path):
    others = [".a.part", ".a.b.12-34.part", ".aa.12-34.part", "a.12-34.part", ".a.12-34.part.txt"]
    for name in [".a.12-34.part", ".a.5-6.part", *others]:
        (tmp_path / name).write_text("half")
    with exclusive(tmp_path / "a"):
        assert names(tmp_path) == sorted([".a.lock", *others])


# --- save_state, load_state -----------------------------------------------------------------------

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]
TENSORS = st.builds(
    lambda shape, dtype, seed: (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(3).abs().to(dtype)
    ),
    st.lists(st.integers(0, 4), max_size=3),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9)
STATES = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        PLAIN | TENSORS,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=5) | st.integers(0, 9), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    max_size=4,
)


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.mark.slow
@given(STATES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nested_states_come_back_as_they_were(tmp_path, state):
    save_state(tmp_path / "state.pt", state)
    assert_same(load_state(tmp_path / "state.pt"), state)


def test_nan_and_infinity_come_back(tmp_path):
    save_state(tmp_path / "s", {"x": torch.tensor([float("nan"), float("inf"), -0.0])})
    x = load_state(tmp_path / "s")["x"]
    assert x[0].isnan()
    assert x[1] == float("inf")
    assert torch.signbit(x[2])


def test_numbers_of_numpy_come_back_as_numbers(tmp_path):
    save_state(
        tmp_path / "s", {"a": np.int64(3), "b": [np.float64(0.5), {"c": np.bool_(True)}], "d": np.float32(2)}
    )
    assert_same(load_state(tmp_path / "s"), {"a": 3, "b": [0.5, {"c": True}], "d": 2.0})


def test_what_was_loaded_is_not_tied_to_the_file(tmp_path):
    save_state(tmp_path / "s", {"x": torch.zeros(3)})
    load_state(tmp_path / "s")["x"].fill_(1)
    assert torch.equal(load_state(tmp_path / "s")["x"], torch.zeros(3))


def test_a_state_that_cannot_be_saved_leaves_the_old_one(tmp_path):
    save_state(tmp_path / "s", {"epoch": 1})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_state(tmp_path / "s", {"epoch": 2, "function": lambda: None})
    assert load_state(tmp_path / "s") == {"epoch": 1}


@pytest.mark.parametrize("where", ["top", "nested", "in a list"])
def test_code_is_refused_and_not_executed(tmp_path, where):
    marker = tmp_path / "executed"
    bomb = Touch(marker)
    torch.save({"top": bomb, "nested": {"a": {"b": bomb}}, "in a list": {"a": [1, bomb]}}[where], tmp_path / "s")
    with pytest.raises(ValueError, match=r"/s is not a checkpoint of spml-fast"):
        load_state(tmp_path / "s")
    assert not marker.exists()
    torch.load(tmp_path / "s", weights_only=False)  # which shows that the file was dangerous
    assert marker.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_is_refused_and_not_executed(tmp_path):
    (tmp_path / "s").write_bytes(pickle.dumps(Touch(tmp_path / "executed")))
    with pytest.raises(ValueError, match="/s is not a checkpoint"):
        load_state(tmp_path / "s")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "no file"])
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    path = tmp_path / "state.pt"
    save_state(path, {"x": torch.randn(999)})
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "garbage": b"\x07" * 999}.get(damage, whole))
    if damage == "no file":
        path.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=r"state\.pt"):
        load_state(path)


# --- digest ---------------------------------------------------------------------------------------

VALUES = np.arange(12, dtype=np.float32).reshape(4, 3) % 5
SPARSE = csr_matrix(VALUES)


def moved(matrix):
    """The same columns and values, one row further down."""
    starts = np.r_[0, 0, matrix.indptr[1:-2], matrix.indptr[-1]].astype(matrix.indptr.dtype)
    return csr_matrix((matrix.data, matrix.indices, starts), shape=matrix.shape)


def changed(values, place):
    values = values.copy()
    values[place] += 1
    return values


DIFFERENT = {
    "nothing": {},
    "none": {"x": None},
    "none of another name": {"xy": None},
    "twice none": {"x": None, "y": None},
    "values": {"x": torch.from_numpy(VALUES)},
    "another name": {"y": torch.from_numpy(VALUES)},
    "another value": {"x": torch.from_numpy(changed(VALUES, (3, 2)))},
    "another shape": {"x": torch.from_numpy(VALUES.reshape(3, 4))},
    "another dtype": {"x": torch.from_numpy(VALUES).double()},
    "the same bytes in another dtype": {"x": torch.from_numpy(VALUES).view(torch.int32)},
    "bfloat16": {"x": torch.from_numpy(VALUES).bfloat16()},
    "no rows": {"x": torch.zeros(0, 3)},
    "a number": {"x": torch.tensor(1.0)},
    "another number": {"x": torch.tensor(2.0)},
    "bool": {"x": torch.from_numpy(VALUES > 2)},
    "sparse": {"x": SPARSE},
    "sparse, another value": {"x": csr_matrix(changed(VALUES, (3, 2)))},
    "sparse, other rows": {"x": moved(SPARSE)},
    "sparse, more columns": {"x": csr_matrix((SPARSE.data, SPARSE.indices, SPARSE.indptr), shape=(4, 5))},
    "a list of two": {"x": [1, 2]},
    "a list of three": {"x": [1, 2, 3]},
    "two": {"x": torch.from_numpy(VALUES), "y": torch.from_numpy(VALUES)},
}


def test_digests_tell_data_apart():
    digests = {name: digest(values) for name, values in DIFFERENT.items()}
    assert len(set(digests.values())) == len(digests)


def test_digests_are_of_values_whatever_their_layout():
    x = torch.from_numpy(VALUES)
    strided = torch.full((8, 3), torch.nan)
    strided[::2] = x
    for same in (x.clone(), x.t().contiguous().t(), strided[::2], x.clone().requires_grad_()):
        assert digest({"x": same}) == digest({"x": x})
    frozen = VALUES.copy()
    frozen.flags.writeable = False
    assert digest({"x": frozen}) == digest({"x": VALUES}) == digest({"x": np.asfortranarray(VALUES)})
    assert digest({"x": SPARSE.copy()}) == digest({"x": SPARSE})
    assert len(digest({"x": x})) == 32
