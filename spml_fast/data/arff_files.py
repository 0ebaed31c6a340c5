"""The multi-label sets of the Mulan collection: ARFF files, with the names of the labels in an XML file.

Source: Tsoumakas et al., "Mulan: A Java Library for Multi-Label Learning", JMLR 2011.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Unpack
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor

from .base import MultiLabelData, Simulation, Splits, full_labels, training_data

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


def mulan(
    folder: str | Path,
    name: str,
    seed: int | np.random.Generator | None = 0,
    sparse: bool | None = None,
    *,
    encoding: str = "utf-8",
    **simulation: Unpack[Simulation],
) -> Splits:
    """A set of the Mulan collection in its published split.

    Numeric attributes are features as they are, and so are nominal attributes over 0 and 1; any other nominal
    attribute becomes one feature per declared value (one-hot). Training rows without a positive are kept
    with nothing observed.

    Args:
        folder: folder with ``<name>.xml``, and for each split ``<name>-train.arff`` or
            ``<name>-train-sparse.arff``.
        name: name of the set: "scene", "bibtex", ...
        seed: seed of the simulated training labels.
        sparse: whether features become a scipy CSR matrix, float32, or a dense float32 tensor; as the training
            file is written unless given.
        encoding: text encoding of the ARFF files.
        simulation: see :class:`~spml_fast.data.base.Simulation`.

    Raises:
        FileNotFoundError: a file is missing; the message names it.
        ValueError: a file that is not as described, naming file, line and attribute.
    """
    folder = Path(folder)
    names = _label_names(folder, name)
    files = [_decode(_arff_file(folder, name, split, bool(sparse)), encoding) for split in ("train", "test")]
    if files[0].attributes != files[1].attributes:
        raise ValueError(f"{files[0].path} and {files[1].path} do not have the same attributes")
    sparse = files[0].sparse if sparse is None else sparse
    train, test = ((_features(file, names, sparse), _labels(file, names)) for file in files)
    return Splits(training_data(*train, names, seed, simulation), MultiLabelData(*test, names=names))


class _Arff(NamedTuple):
    """A decoded file.

    ``values`` (N, attributes) is a float64 array, or CSR if the file is in the sparse format; nominal values are
    places in their declaration. ``attributes`` has the name of each, and the declared values of nominal ones.
    """

    path: Path
    attributes: list[tuple[str, Sequence[str] | None]]
    sparse: bool
    values: np.ndarray | csr_matrix


def _label_names(folder: Path, name: str) -> tuple[str, ...]:
    path = folder / f"{name}.xml"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in folder.glob("*.xml"))) or "no .xml file"
        raise FileNotFoundError(f"{path} does not exist; {folder} has {there}")
    try:
        root = ElementTree.parse(path).getroot()
        # Labels of a hierarchy are nested; every one of them is a label.
        names = tuple(node.attrib["name"] for node in root.iter() if node.tag.rpartition("}")[2] == "label")
    except (ElementTree.ParseError, KeyError) as error:
        raise ValueError(f"{path} does not list labels as <label name=...>: {error}") from error
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{path} must list labels, each once; it lists {len(names)}, {len(set(names))} different")
    return names


def _arff_file(folder: Path, name: str, split: str, prefer_sparse: bool) -> Path:
    candidates = [folder / f"{name}-{split}.arff", folder / f"{name}-{split}-sparse.arff"]
    for path in reversed(candidates) if prefer_sparse else candidates:
        if path.is_file():
            return path
    raise FileNotFoundError(f"neither {candidates[0]} nor {candidates[1].name} exists")


def _decode(path: Path, encoding: str) -> _Arff:
    import arff

    try:
        text = path.read_text(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not {encoding} ({error}); give its encoding") from error
    at = re.search(r"(?im)^[ \t]*@data\b.*$", text)
    header, data = (text, "") if at is None else (text[: at.end()], text[at.end() :])
    # liac-arff knows a space after @attribute, Weka a tab as well. It also leaves a whole row as text if
    # one of its integers is NaN.
    header = re.sub(r"(?m)^[ \t]*(@\w+)[ \t]+", r"\1 ", header)
    text = re.sub(r"(?im)^(@attribute .*\s)integer[ \t]*$", r"\1real", header) + data
    first = re.search(r"(?m)^[ \t]*([^%\s])", data)
    sparse = first is not None and first[1] == "{"
    try:
        content = arff.load(io.StringIO(text), encode_nominal=True, return_type=arff.LOD if sparse else arff.DENSE)
    except (arff.ArffException, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    attributes = [(name, None if isinstance(kind, str) else kind) for name, kind in content["attributes"]]
    for name, kind in content["attributes"]:
        if kind == "STRING":
            raise ValueError(f"{path}: attribute {name!r} is a string; expected numeric and nominal attributes")
    rows = content["data"]
    values, wrong = (_sparse_values if sparse else _dense_values)(rows, len(attributes))
    if wrong is not None:
        row, column = wrong
        what = "missing" if rows[row][column] is None else f"{rows[row][column]}"
        raise ValueError(
            f"{path}, line {_line(text, row)}: attribute {attributes[column][0]!r} is {what}; "
            "expected a finite value of every attribute"
        )
    return _Arff(path, attributes, sparse, values)


def _dense_values(
    rows: Sequence[Sequence[float | None]], width: int
) -> tuple[np.ndarray | None, Sequence[int] | None]:
    """Rows of values as a float64 array (N, width), or the place of the first value that is no number."""
    matrix = np.array(rows, dtype=np.float64).reshape(len(rows), width)
    wrong = np.argwhere(_not_finite(matrix)).tolist()
    return (None, wrong[0]) if wrong else (matrix, None)


def _sparse_values(
    rows: Sequence[dict[int, float | None]], width: int
) -> tuple[csr_matrix | None, Sequence[int] | None]:
    """Rows {column: value} as a CSR matrix, or the place of the first value that is no number."""
    from scipy.sparse import csr_matrix

    indptr = np.cumsum([0, *map(len, rows)])
    indices = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=indptr[-1])
    values = np.array([value for row in rows for value in row.values()], dtype=np.float64)
    wrong = np.flatnonzero(_not_finite(values))
    if wrong.size:
        return None, (int(np.searchsorted(indptr, wrong[0], side="right")) - 1, int(indices[wrong[0]]))
    matrix = csr_matrix((values, indices, indptr), shape=(len(rows), width))
    matrix.sort_indices()
    return matrix, None


def _not_finite(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return ~np.isfinite(values.astype(np.float32))


def _line(text: str, row: int) -> int:
    """The number of the line of the file that holds a data row."""
    lines = [line.strip() for line in text.split("\n")]
    start = next(i for i, line in enumerate(lines) if line.lower().startswith("@data")) + 1
    return [i for i, line in enumerate(lines[start:], start + 1) if line and line[0] != "%"][row]


def _features(file: _Arff, names: Sequence[str], sparse: bool) -> Tensor | csr_matrix:
    """The features (N, D) float32: every attribute that is no label."""
    from scipy.sparse import csr_matrix, hstack, issparse

    labels = set(_label_columns(file, names))
    columns = [j for j in range(len(file.attributes)) if j not in labels]
    blocks = []
    for plain, group in groupby(columns, key=lambda j: file.attributes[j][1] in (None, ["0", "1"])):
        group = list(group)
        if plain:
            blocks.append(file.values[:, group])
            continue
        for j in group:
            declared = file.attributes[j][1]
            blocks.append(_column_of_places(file, j, _zero_one(declared), one_hot=len(declared)))
    if not blocks:
        raise ValueError(f"{file.path} has labels alone, no features")
    if sparse:
        return csr_matrix(hstack([csr_matrix(block) for block in blocks]), dtype=np.float32)
    dense = [block.toarray() if issparse(block) else block for block in blocks]
    return torch.from_numpy(np.hstack(dense).astype(np.float32))


def _column_of_places(file: _Arff, j: int, values: np.ndarray | None, one_hot: int) -> np.ndarray:
    """The features (N, k) float64 of a nominal attribute, whose values are given as places in its declaration."""
    places = file.values[:, [j]]
    places = np.asarray(places.toarray() if file.sparse else places).ravel().astype(np.int64)
    return (np.eye(one_hot) if values is None else values[:, None])[places]


def _zero_one(declared: Sequence[str]) -> np.ndarray | None:
    """The values 0 and 1 of a nominal attribute in the order of its declaration."""
    return np.array(declared, dtype=np.float64) if set(declared) <= {"0", "1"} else None


def _labels(file: _Arff, names: Sequence[str]) -> Tensor:
    columns = _label_columns(file, names)
    values = file.values[:, columns]
    values = values.toarray() if file.sparse else values
    for place, j in enumerate(columns):
        name, declared = file.attributes[j]
        if declared in (None, ["0", "1"]):
            continue
        zero_one = _zero_one(declared)
        if zero_one is None:
            raise ValueError(f"{file.path}: label {name!r} has the values {', '.join(declared)}; expected 0 and 1")
        values[:, [place]] = _column_of_places(file, j, zero_one, one_hot=0)
    return full_labels(values, f"{file.path}: the label matrix")


def _label_columns(file: _Arff, names: Sequence[str]) -> list[int]:
    """The places of the labels among the attributes. XML has names as they are, ARFF may have escaped them."""
    exact = {name: j for j, (name, _) in enumerate(file.attributes)}
    plain = {_unescaped(name): j for name, j in exact.items()}
    missing = [name for name in names if name not in exact and _unescaped(name) not in plain]
    if missing:
        raise ValueError(f"{file.path}: {len(missing)} labels are no attributes, the first is {missing[0]!r}")
    return [exact.get(name, plain.get(_unescaped(name))) for name in names]


def _unescaped(name: str) -> str:
    return re.sub(r"\\(.)", r"\1", name)
