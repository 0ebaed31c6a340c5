"""Images on disk; VOC and COCO as distributed, in small."""

import json
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from spml_fast.data import ImageFiles, check_training, coco2014, images, voc2012

# --- image files ----------------------------------------------------------------------------------


def gradient(path):
    pixels = np.linspace(0, 255, 40 * 30 * 3).astype(np.uint8).reshape(30, 40, 3)
    Image.fromarray(pixels).save(path)
    return path


def test_images_are_resized_and_normalised(tmp_path, write_image):
    files = [write_image(tmp_path / "a.png", 20, 10, 0), write_image(tmp_path / "b.jpg", 300, 500, 255)]
    data = ImageFiles(files, size=32)
    assert len(data) == 2
    for x, value in zip(data, (0.0, 1.0), strict=False):
        assert x.shape == (3, 32, 32)
        assert x.dtype == torch.float32
        expected = (value - torch.tensor(images.MEAN)) / torch.tensor(images.STD)
        torch.testing.assert_close(x.mean(dim=(1, 2)), expected)


def test_images_of_every_mode(tmp_path):
    for mode in ("L", "RGBA", "P", "CMYK", "1"):
        file = tmp_path / f"{mode}.tiff"
        Image.new(mode, (9, 7)).save(file)
        assert ImageFiles([file], size=8)[0].shape == (3, 8, 8)


def test_workers_read_images(tmp_path, write_image):
    data = ImageFiles([write_image(tmp_path / f"{i}.png", value=20 * i) for i in range(6)], size=8, augment=True)
    twin = pickle.loads(pickle.dumps(data))
    assert twin.files == data.files
    batches = list(DataLoader(data, batch_size=4, num_workers=2))
    assert [len(batch) for batch in batches] == [4, 2]
    assert torch.cat(batches)[:, 0, 0, 0].diff().min() > 0


def test_augmented_images_are_flipped_without_torchvision(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.transforms", None)
    file = gradient(tmp_path / "a.png")
    plain = ImageFiles([file], size=16)[0]
    data = ImageFiles([file], size=16, augment=True)
    assert isinstance(data.transform, images.Resize)
    drawn = torch.stack([data[0] for _ in range(20)])
    flipped = (drawn == plain.flip(2)).flatten(1).all(dim=1)
    straight = (drawn == plain).flatten(1).all(dim=1)
    assert (flipped ^ straight).all()
    assert flipped.any()
    assert straight.any()


def test_images_are_those_of_torchvision(tmp_path):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    file = gradient(tmp_path / "a.png")
    steps = [
        v2.Resize((16, 16)),
        v2.ToImage(),
        v2.ToDtype(torch.float32, True),
        v2.Normalize(images.MEAN, images.STD),
    ]
    expected = v2.Compose(steps)(Image.open(file))
    torch.testing.assert_close(ImageFiles([file], size=16)[0], expected.as_subclass(torch.Tensor))


def test_torchvision_augments(tmp_path):
    pytest.importorskip("torchvision.transforms.v2")
    data = ImageFiles([gradient(tmp_path / "a.png")], size=16, augment=True)
    data = pickle.loads(pickle.dumps(data))
    torch.manual_seed(0)
    drawn = torch.stack([data[0] for _ in range(20)])
    assert drawn.shape == (20, 3, 16, 16)
    assert drawn.dtype == torch.float32
    assert len(drawn.flatten(1).unique(dim=0)) > 4  # crops, and not flips alone
    torch.manual_seed(0)
    assert torch.equal(drawn[0], data[0])


def test_missing_images_are_found_at_once(tmp_path, write_image):
    there = write_image(tmp_path / "a" / "0.png")
    missing = [tmp_path / "a" / "1.png", tmp_path / "b" / "0.png"]
    with pytest.raises(FileNotFoundError, match=r"2 of 3 images do not exist, the first is .*a/1.png"):
        ImageFiles([there, *missing])


def test_images_that_are_none(tmp_path, write_image):
    torn = write_image(tmp_path / "torn.png", 200, 200)
    torn.write_bytes(torn.read_bytes()[:150])
    (tmp_path / "text.jpg").write_text("not an image")
    data = ImageFiles([torn, tmp_path / "text.jpg"])
    for i, name in enumerate(("torn.png", "text.jpg")):
        with pytest.raises(ValueError, match=f"{name} cannot be decoded"):
            data[i]
    with pytest.raises(IndexError):
        data[2]


@pytest.mark.parametrize("size", [0, -1, 2.5, "224", True])
def test_size_must_be_a_positive_integer(size):
    with pytest.raises(ValueError, match="size must be a positive integer"):
        ImageFiles([], size)


# --- VOC ------------------------------------------------------------------------------------------

VOC = {  # image -> (class, difficult) of its objects
    "train": {"2008_000008": [("horse", 0), ("person", 0)], "2008_000015": [("bottle", 0), ("bottle", 1)]},
    "val": {"2008_000002": [("tvmonitor", 0)], "2008_000003": [("train", 0), ("person", 1)], "2008_000007": []},
}


@pytest.fixture
def voc(tmp_path, write_image):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split, annotations in VOC.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in annotations))
        for name, objects in annotations.items():
            write_image(root / "JPEGImages" / f"{name}.jpg")
            described = "".join(
                f"<object><name>{kind}</name><difficult>{difficult}</difficult><bndbox><xmin>1</xmin></bndbox>"
                "<part><name>head</name></part></object>"
                for kind, difficult in objects
            )
            text = f"<annotation><filename>{name}.jpg</filename>{described}</annotation>"
            (root / "Annotations" / f"{name}.xml").write_text(text)
    return tmp_path


def present(split):
    return [[split.names[j] for j in row.nonzero().flatten().tolist()] for row in split.labels]


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc(voc, below):
    train, test, _ = voc2012(voc / below, size=8, augment=True)
    assert len(train.names) == 20
    assert list(train.names) == sorted(train.names)
    assert present(train) == [["horse", "person"], ["bottle"]]
    assert present(test) == [["tvmonitor"], ["train"], []]
    assert test.observed is None
    assert train.labels.gather(1, train.observed[:, None]).all()
    assert train.x[0].shape == (3, 8, 8)
    assert (train.x.augment, test.x.augment) == (True, False)
    check_training(train)


def test_voc_objects_that_are_difficult(voc):
    assert present(voc2012(voc, difficult=True).test) == [["tvmonitor"], ["person", "train"], []]


def test_voc_simulation(voc):
    observed = voc2012(voc, positives=2, negatives=3, seed=0).train.observed
    assert (observed == 1).sum(dim=1).tolist() == [2, 1]
    assert (observed == -1).sum(dim=1).tolist() == [3, 3]


@pytest.mark.parametrize(
    "missing", ["ImageSets/Main/val.txt", "Annotations/2008_000003.xml", "JPEGImages/2008_000015.jpg"]
)
def test_voc_names_the_missing_file(voc, missing):
    (voc / "VOCdevkit" / "VOC2012" / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        voc2012(voc)


def test_voc_names_bad_annotations(voc):
    path = voc / "VOCdevkit" / "VOC2012" / "Annotations" / "2008_000003.xml"
    path.write_text("<annotation><object><name>unicorn</name></object></annotation>")
    with pytest.raises(ValueError, match=r"2008_000003.xml: 'unicorn' is not one of the 20 classes"):
        voc2012(voc)
    path.write_text("<annotation>")
    with pytest.raises(ValueError, match=r"2008_000003.xml is not XML"):
        voc2012(voc)
    with pytest.raises(FileNotFoundError, match="expected VOCdevkit/VOC2012 or a folder above it"):
        voc2012(voc / "ImageSets")


# --- COCO -----------------------------------------------------------------------------------------

CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}]


def coco_content(split):
    def image(i):
        return {"id": i, "file_name": f"COCO_{split}_{i:012d}.jpg", "width": 20, "height": 10}

    def annotation(i, category, crowd=0):
        outline = {"counts": [1, 2], "size": [10, 20]} if crowd else [[1.0, 2.0, 3.0, 4.0]]
        return {"image_id": i, "category_id": category, "iscrowd": crowd, "segmentation": outline, "area": 3.0}

    return {
        "info": {},
        "images": [image(30), image(9), image(25)],
        "annotations": [annotation(9, 90), annotation(9, 1, 1), annotation(30, 13), annotation(30, 13)],
        "categories": CATEGORIES,
    }


@pytest.fixture
def coco(tmp_path, write_image):
    (tmp_path / "annotations").mkdir()
    for split in ("train2014", "val2014"):
        content = coco_content(split)
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        for image in content["images"]:
            write_image(tmp_path / split / image["file_name"])
    return tmp_path


def test_coco(coco):
    train, test, _ = coco2014(coco, size=8, augment=True, seed=0)
    assert list(train.names) == ["person", "stop sign", "toothbrush"]
    for split, name in ((train, "train2014"), (test, "val2014")):
        assert [file.rpartition("/")[2] for file in split.x.files] == [
            f"COCO_{name}_{i:012d}.jpg" for i in (9, 25, 30)
        ]
        assert present(split) == [["person", "toothbrush"], [], ["stop sign"]]
    assert train.observed.tolist()[1:] == [-1, 1]
    assert train.observed[0] in (0, 2)
    assert train.x[2].shape == (3, 8, 8)
    assert (train.x.augment, test.x.augment) == (True, False)


def test_coco_without_annotations(coco):
    path = coco / "annotations" / "instances_val2014.json"
    path.write_text(json.dumps(coco_content("val2014") | {"annotations": []}))
    assert not coco2014(coco).test.labels.any()


@pytest.mark.parametrize(
    "missing", ["annotations/instances_val2014.json", "train2014/COCO_train2014_000000000025.jpg"]
)
def test_coco_names_the_missing_file(coco, missing):
    (coco / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        coco2014(coco)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": CATEGORIES[:2]}, "instances_val2014.json is not as COCO writes it, it lacks 13"),
        ({"annotations": [{"image_id": 7, "category_id": 1}]}, "it lacks 7"),
        ({"images": None}, "instances_val2014.json is not as COCO writes it"),
        ({"categories": [*CATEGORIES, {"id": 91, "name": "hair brush"}]}, "do not have the same categories"),
    ],
)
def test_coco_names_bad_annotations(coco, change, message):
    path = coco / "annotations" / "instances_val2014.json"
    path.write_text(json.dumps(coco_content("val2014") | change))
    with pytest.raises(ValueError, match=message):
        coco2014(coco)


def test_coco_file_that_is_not_json(coco):
    (coco / "annotations" / "instances_train2014.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"instances_train2014.json is not JSON"):
        coco2014(coco)
