"""Mulan's ARFF: the format's corners in small files, then the real ones."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix, issparse

from spml_fast.data import check_training, mulan

XML = """<?xml version="1.0" encoding="utf-8"?>
<labels xmlns="http://mulan.sourceforge.net/labels">
<label name="rock 'n' roll"><label name="plain"></label></label>
<label name="inverse"></label>
</labels>
"""

# Labels first, in the middle and last; names quoted either way, with an escape; a tab after the keyword.
HEADER = """% a comment
%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%
@RELATION 'some music'

@attribute plain {0,1}
@attribute loudness numeric
@attribute 'the key' {major, minor, 'atonal, or so'}
@attribute 'rock \\'n\\' roll' {0,1}
@attribute\tloud\t{0,1}
@ATTRIBUTE "in stereo" {1,0}
@attribute tempo real
@attribute inverse {1,0}

@data
"""
DENSE = """1, 0.5, major, 0, 1, 1, 120, 1
% between the rows

0,-1e-2,'atonal, or so',1,0,0,90,0
0,0,minor,0,0,1,-0,1
"""
# The same rows: what is left out is 0, of a nominal attribute the first value.
SPARSE = """{0 1, 1 0.5, 4 1, 6 120}
% between the rows

{1 -1e-2, 2 'atonal, or so', 3 1, 5 0, 6 90, 7 0}
{ 2 minor }
"""
FEATURES = [[0.5, 1, 0, 0, 1, 1, 120], [-0.01, 0, 0, 1, 0, 0, 90], [0, 0, 1, 0, 0, 1, 0]]
LABELS = [[0, 1, 1], [1, 0, 0], [0, 0, 1]]


@pytest.fixture
def write(tmp_path):
    def write(train=HEADER + DENSE, test=HEADER + DENSE, xml=XML, suffix=""):
        (tmp_path / f"toy-train{suffix}.arff").write_text(train)
        (tmp_path / f"toy-test{suffix}.arff").write_text(test)
        (tmp_path / "toy.xml").write_text(xml)
        return tmp_path

    return write


@pytest.mark.parametrize("sparse", [None, True, False])
@pytest.mark.parametrize("written", ["dense", "sparse", "sparse suffix", "both"])
def test_all_corners(write, written, sparse):
    if written == "dense":
        folder = write()
    elif written == "both":
        folder = write(HEADER + DENSE, HEADER + SPARSE)
    else:
        folder = write(*2 * [HEADER + SPARSE], suffix="-sparse" * (written != "sparse"))
    train, test, validation = mulan(folder, "toy", sparse=sparse)
    assert validation is None
    assert test.observed is None
    for split in (train, test):
        assert split.names == ("rock 'n' roll", "plain", "inverse")
        assert split.labels.int().tolist() == LABELS
        if sparse or (sparse is None and written.startswith("sparse")):
            assert isinstance(split.x, csr_matrix)
            x = split.x.toarray()
        else:
            x = split.x.numpy()
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, np.array(FEATURES, dtype=np.float32))
    assert train.labels.gather(1, train.observed[:, None]).all()


def test_windows_line_ends_and_no_line_end_at_the_end(write):
    folder = write((HEADER + DENSE).strip().replace("\n", "\r\n"))
    assert mulan(folder, "toy").train.labels.int().tolist() == LABELS


def test_sparse_file_is_preferred_where_sparse_is_asked_for(write):
    write(HEADER + DENSE)
    folder = write(HEADER + "{1 7}\n", HEADER + "{1 7}\n", suffix="-sparse")
    assert len(mulan(folder, "toy").train) == 3
    assert len(mulan(folder, "toy", sparse=True).train) == 1


def test_simulation(write):
    folder = write(HEADER + DENSE + "0,1,minor,0,0,1,1,0\n")
    train = mulan(folder, "toy", seed=0).train
    assert train.observed.tolist()[1:] == [0, 2, -1]
    assert train.observed.tolist() == mulan(folder, "toy", seed=0).train.observed.tolist()
    assert mulan(folder, "toy", class_weight=[1, 1, 1e-300]).train.observed.tolist() == [1, 0, 2, -1]
    negative = mulan(folder, "toy", positives=2, negatives=1).train.observed
    assert negative.dtype == torch.int8
    assert negative.tolist()[:2] == [[-1, 1, 1], [1, *negative.tolist()[1][1:]]]
    with pytest.raises(TypeError, match="positive"):
        mulan(folder, "toy", positive=2)


def test_encoding(write):
    folder = write()
    for split in ("train", "test"):
        (folder / f"toy-{split}.arff").write_bytes((HEADER + DENSE).replace("tempo", "tempó").encode("latin-1"))
    with pytest.raises(ValueError, match=r"toy-train.arff is not utf-8 .*; give its encoding"):
        mulan(folder, "toy")
    assert mulan(folder, "toy", encoding="latin-1").train.x.shape == (3, 7)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0,?,minor,0,0,1,1,1", "line 20: attribute 'loudness' is missing"),
        ("0,,minor,0,0,1,1,1", "line 20: attribute 'loudness' is missing"),
        ("0,1,minor,?,0,1,1,1", "line 20: attribute .* is missing"),
        ("0,1,?,0,0,1,1,1", "line 20: attribute 'the key' is missing"),
        ("0,nan,minor,0,0,1,1,1", "line 20: attribute 'loudness' is nan"),
        ("0,1e39,minor,0,0,1,1,1", r"line 20: attribute 'loudness' is 1e\+39"),
        ("0,loud,minor,0,0,1,1,1", "Invalid numerical value, at line 20"),
        ("0,1,flat,0,0,1,1,1", "flat not found in nominal declaration, at line 20"),
        ("0,1,minor,0,0,1,1", "line 20"),
        ("0,1,minor,0,0,1,1,1,1", "line 20"),
    ],
)
def test_bad_rows_are_named(write, row, message):
    folder = write(HEADER + DENSE + row + "\n")
    with pytest.raises(ValueError, match=f"toy-train.arff.*{message}"):
        mulan(folder, "toy")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{1 ?}", "line 20: attribute 'loudness' is missing"),
        ("{0 1, 1 nan}", "line 20: attribute 'loudness' is nan"),
        ("{8 1}", "line 20"),
        ("{1 loud}", "line 20"),
        ("{2 flat}", "line 20"),
        ("{1}", "line 20"),
        ("0,1,minor,0,0,1,1,1", "line 20"),
    ],
)
def test_bad_sparse_rows_are_named(write, row, message):
    folder = write(HEADER + SPARSE + row + "\n")
    with pytest.raises(ValueError, match=f"toy-train.arff.*{message}"):
        mulan(folder, "toy")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("@attribute plain {0,1}", "@attribute plain {0,1,2}", "label 'plain' has the values 0, 1, 2"),
        ("@attribute plain {0,1}", "@attribute plane {0,1}", "1 labels are no attributes, the first is 'plain'"),
        ("@attribute loudness numeric", "@attribute loudness string", "attribute 'loudness' is a string"),
        ("@attribute loudness numeric", "@attribute loudness colour", "Bad @ATTRIBUTE type, at line 6"),
        ("@attribute loudness numeric", "@attribute tempo numeric", "already in use"),
        ("@attribute loudness numeric", "@attribute", "line 6|unpack"),
        ("@data\n", "", "Invalid layout"),
    ],
)
def test_bad_headers_are_named(write, old, new, message):
    text = (HEADER + DENSE).replace(old, new)
    with pytest.raises(ValueError, match=f"toy-t.*{message}"):
        mulan(write(text, text), "toy")


def test_integers(write):
    text = (HEADER + DENSE).replace("loudness numeric", "loudness integer").replace("tempo real", "tempo INTEGER")
    assert mulan(write(text, text), "toy").train.x[:, 0].tolist() == pytest.approx([0.5, -0.01, 0])
    for value in ("nan", "inf"):
        bad = text.replace("0,-1e-2,", f"0,{value},")
        with pytest.raises(ValueError, match=f"toy-train.arff, line 18: attribute 'loudness' is {value}"):
            mulan(write(bad, text), "toy")


def test_numeric_labels(write):
    text = (HEADER + DENSE).replace("plain {0,1}", "plain numeric")
    assert mulan(write(text, text), "toy").train.labels.int().tolist() == LABELS
    text = text.replace("\n1, 0.5", "\n0.5, 0.5")
    with pytest.raises(ValueError, match=r"is 0.5 at \[0, 1\]; full labels are 0 or 1"):
        mulan(write(text, text), "toy")


def test_splits_with_different_attributes(write):
    with pytest.raises(ValueError, match="do not have the same attributes"):
        mulan(write(test=(HEADER + DENSE).replace("tempo", "speed")), "toy")


def test_labels_alone(write):
    text = "@relation r\n@attribute plain {0,1}\n@data\n1\n"
    with pytest.raises(ValueError, match="labels alone"):
        mulan(write(text, text, '<labels><label name="plain"/></labels>'), "toy")


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<labels>", "toy.xml does not list labels"),
        ("<labels><label/></labels>", "toy.xml does not list labels"),
        ("<labels></labels>", "it lists 0"),
        ('<labels><label name="plain"/><label name="plain"/></labels>', "it lists 2, 1 different"),
    ],
)
def test_bad_xml(write, xml, message):
    with pytest.raises(ValueError, match=message):
        mulan(write(xml=xml), "toy")


def test_missing_files_are_named(write):
    folder = write()
    with pytest.raises(FileNotFoundError, match=r"Toy.xml does not exist; .* has toy"):
        mulan(folder, "Toy")
    (folder / "toy-test.arff").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither .*toy-test.arff nor toy-test-sparse.arff exists"):
        mulan(folder, "toy")
    with pytest.raises(FileNotFoundError, match=r"nowhere has no .xml file"):
        mulan(folder / "nowhere", "toy")


# --- the real ones --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "features", "labels", "rows", "sparse", "cardinality"),
    [
        ("scene", 294, 6, (1211, 1196), False, 1.074),
        ("yeast", 103, 14, (1500, 917), False, 4.237),
        ("emotions", 72, 6, (391, 202), False, 1.869),
        ("Corel5k", 499, 374, (4500, 500), True, 3.522),
        ("bibtex", 1836, 159, (4880, 2515), True, 2.402),
        ("delicious", 500, 983, (12920, 3185), True, 19.02),
    ],
)
def test_published_sets(real_data, name, features, labels, rows, sparse, cardinality):
    """Shapes and labels per instance as the collection's own page gives them."""
    splits = mulan(real_data("mulan"), name)
    for split, n in zip(splits[:2], rows, strict=True):
        assert split.x.shape == (n, features)
        assert issparse(split.x) == sparse
        assert split.labels.shape == (n, labels)
    every = torch.cat([splits.train.labels, splits.test.labels])
    assert every.sum(dim=1).double().mean().item() == pytest.approx(cardinality, abs=0.006)
    check_training(splits.train)


@pytest.mark.slow
def test_escaped_names_are_found_where_xml_has_them(real_data):
    names = mulan(real_data("mulan"), "delicious").train.names
    assert "TAG_m\\'usica" in names
    assert "TAG_musica" in names
