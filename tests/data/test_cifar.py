"""CIFAR-10 with attributes, from a folder or a tar file."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from spml_fast.data import check_rows_observed, check_training, cifar10, cifar_7to3
from spml_fast.data.cifar import CLASSES
from spml_fast.data.digits import DIGIT_ATTRIBUTES

SEVEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog")


def encoded(value, suffix="jpeg", size=(32, 32)):
    file = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), value, dtype=np.uint8)).save(file, suffix)
    return file.getvalue()


def content():
    """Name -> bytes: two images a class and split; the grey level tells which."""
    return {
        f"{split}/{name}/{i:04d}.jpg": encoded(20 * c + 5 * i + (split == "test"))
        for split in ("train", "test")
        for c, name in enumerate(CLASSES)
        for i in range(2)
    }


@pytest.fixture(params=["folder", "tar", "tar.gz", "tar.xz"])
def save(request, tmp_path):
    def save(files):
        if request.param == "folder":
            for name, data in files.items():
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_bytes(data)
            return tmp_path
        path = tmp_path / f"cifar.{request.param}"
        with tarfile.open(path, f"w:{request.param.partition('.')[2]}") as archive:
            # Last names first: the rows must not depend on the order in the file.
            for name, data in reversed(files.items()):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return path

    return save


def test_rows_are_in_order(save):
    path = save(content() | {"README.md": b"text", "train/cat/list.txt": b"text"})
    train, test, _ = cifar10(path)
    for split, offset in ((train, 0), (test, 1)):
        assert split.x.shape == (20, 3, 32, 32)
        assert split.x.dtype == torch.float32
        assert split.x.is_contiguous()
        expected = torch.tensor([20 * c + 5 * i + offset for c in range(10) for i in range(2)]) / 127.5 - 1
        torch.testing.assert_close(split.x.mean(dim=(1, 2, 3)), expected, rtol=0, atol=2e-2)
        assert split.x.min() >= -1
        assert split.x.max() <= 1
        assert split.names == ("A", "B", "C")
        for row, labels in enumerate(split.labels):
            c = row // 2
            assert tuple(labels.nonzero().flatten().tolist()) == (DIGIT_ATTRIBUTES[c] if c < 7 else ())
    assert (train.observed[14:] == -1).all()
    assert train.labels[:14].gather(1, train.observed[:14, None]).all()
    check_training(train)


def test_white_is_one_and_black_minus_one(save):
    files = {name: encoded(255 * (i % 2), "png") for i, name in enumerate(content())}
    x = cifar10(save({name.replace("jpg", "PNG"): data for name, data in files.items()})).train.x
    assert (x[0::2] == -1).all()
    assert (x[1::2] == 1).all()


def test_seven_to_three(save):
    train, test, _ = cifar_7to3(save(content()), limit=1)
    assert len(train) == len(test) == 7
    joint = [tuple(row.nonzero().flatten().tolist()) for row in train.labels]
    assert joint == list(DIGIT_ATTRIBUTES)
    levels = (train.x.mean(dim=(1, 2, 3)) + 1) * 127.5
    torch.testing.assert_close(levels, 20.0 * torch.arange(7), rtol=0, atol=2)
    check_rows_observed(train.observed)


def test_attributes_of_ones_own(save):
    mapping = {"flies": ["airplane", "bird"], "animal": ["bird", "cat", "dog"], "frog": "frog"}
    train = cifar10(save(content()), mapping, classes=["bird", "frog", "ship"], negatives=1).train
    assert train.names == ("flies", "animal", "frog")
    assert train.labels.int().tolist() == 2 * [[1, 1, 0]] + 2 * [[0, 0, 1]] + 2 * [[0, 0, 0]]
    assert train.observed.dtype == torch.int8


def test_archive_with_a_folder_around_it(tmp_path):
    path = tmp_path / "c.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in content().items():
            member = tarfile.TarInfo(f"./../cifar/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("train/cat/0009.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    assert len(cifar_7to3(path).train) == 14
    assert [file.name for file in tmp_path.iterdir()] == ["c.tar"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train/lion/0000.jpg": b""}, "train/lion/0000.jpg: 'lion' is not a class of CIFAR-10"),
        ({"test/cat/0001.jpg": b"nonsense"}, "test/cat/0001.jpg cannot be used"),
        ({"test/cat/0001.jpg": encoded(3)[:300]}, "test/cat/0001.jpg cannot be used"),
        ({"test/cat/0001.jpg": encoded(3, size=(32, 16))}, "test/cat/0001.jpg .*32 x 16 pixels, expected 32 x 32"),
    ],
)
def test_bad_files_are_named(save, change, message):
    with pytest.raises(ValueError, match=message):
        cifar10(save(content() | change))


def test_missing_class_is_named(save):
    path = save({name: data for name, data in content().items() if "test/dog" not in name})
    with pytest.raises(FileNotFoundError, match="no images test/dog/"):
        cifar10(path)
    assert len(cifar10(path, classes=["cat"]).test) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mapping": "8to3"}, "mapping must be .*got '8to3'"),
        ({"mapping": {}}, "no attributes"),
        ({"mapping": {"big": ["elephant"]}}, "attribute 'big': 'elephant' is not a class"),
        ({"mapping": {"big": []}}, "attribute 'big': no classes"),
        ({"classes": ["lion"]}, "classes: 'lion' is not a class of CIFAR-10; they are airplane"),
        ({"limit": 0}, "limit must be at least 1, got 0"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        cifar10(tmp_path, **options)


def test_no_archive(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.tar does not exist"):
        cifar10(tmp_path / "nowhere.tar")
    path = tmp_path / "bad.tar.gz"
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"bad.tar.gz is not a whole tar file"):
        cifar10(path)
    with tarfile.open(path, "w:gz") as archive:
        for seed, name in enumerate(content()):
            member = tarfile.TarInfo(name)
            member.size = 5000
            archive.addfile(member, io.BytesIO(np.random.default_rng(seed).bytes(5000)))
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(ValueError, match=r"bad.tar.gz is not a whole tar file"):
        cifar10(path)


@pytest.mark.slow
def test_real_images(real_data):
    train, test, _ = cifar_7to3(real_data("cifar10-jpeg.tar.gz"), limit=20)
    assert train.x.shape == test.x.shape == (140, 3, 32, 32)
    assert train.x.std() > 0.3
    counts = train.labels.sum(dim=0)
    assert counts.tolist() == [80, 80, 80]
