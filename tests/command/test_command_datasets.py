"""DATA: files are read back as written; unusable data is refused in one line with the reason."""

import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
from hypothesis import example, given
from hypothesis import strategies as st

from adamshap.reference.command.datasets import Dataset, load
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.sources import BUNDLED
from adamshap.reference.command.table import Reading

Refused = Callable[..., None]

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
# Without surrounding blanks, which are stripped, and without characters that no text file can hold.
WORDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(lambda word: word == word.strip())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


NAMES = WORDS.filter(lambda word: not _is_number(word))


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[float]], list[str]]:
    """Draw (column names, the label's last; rows of numbers; a class name for each row)."""
    columns = draw(st.lists(WORDS, min_size=2, max_size=5, unique=True), label="columns")
    classes = draw(st.lists(NAMES, min_size=2, max_size=3, unique=True), label="classes")
    labels = draw(st.permutations(classes * draw(st.integers(2, 3), label="of each class")), label="labels")
    row = st.lists(FLOATS, min_size=len(columns) - 1, max_size=len(columns) - 1)
    return columns, draw(st.lists(row, min_size=len(labels), max_size=len(labels)), label="rows"), labels


def _names(dataset: Dataset) -> list[str]:
    return [dataset.classes[label] for label in dataset.y]


def _is_a_dataset_or_refused(path: Path, reading: Reading | None = None) -> None:
    try:
        dataset = load(str(path), reading=reading)
    except CommandError:
        return
    assert dataset.x.shape == (len(dataset.y), len(dataset.features))
    assert np.isfinite(dataset.x).all()
    assert len(dataset.classes) >= 2


# --- round trips -----------------------------------------------------------------------------------------------------


# Not "\n" with as few quotes as possible: then Python's own writer leaves a lone "\r" bare.
DIALECTS = st.sampled_from([("\n", csv.QUOTE_ALL), ("\n", csv.QUOTE_NONNUMERIC), ("\r\n", csv.QUOTE_MINIMAL)])


@given(tables(), DIALECTS, st.booleans())
def test_csv_round_trip(
    scratch: Path, table: tuple[list[str], list[list[float]], list[str]], dialect: tuple[str, Any], bom: bool
) -> None:
    columns, rows, labels = table
    path = scratch / "table.csv"
    with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as file:
        writer = csv.writer(file, lineterminator=dialect[0], quoting=dialect[1])
        writer.writerow(columns)
        writer.writerows([*row, label] for row, label in zip(rows, labels, strict=True))
    dataset = load(str(path), label=columns[-1])
    assert dataset.x.dtype == np.float64
    assert dataset.x.tolist() == rows
    assert _names(dataset) == labels
    assert dataset.features == tuple(columns[:-1])
    assert (dataset.name, dataset.image_shape) == ("table", None)


@given(
    st.integers(1, 4), st.integers(1, 3), st.sampled_from(["f2", "f4", "f8", "u1", "i8", "?"]), st.booleans(), st.data()
)
def test_npz_round_trip(scratch: Path, width: int, height: int, dtype: str, images: bool, data: st.DataObject) -> None:
    y = np.array(data.draw(st.permutations([3, 3, 8, 8, -1, -1]), label="y"))
    shape = (len(y), height, width) if images else (len(y), width)
    x = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    np.savez(scratch / "data.npz", x=x, y=y)
    dataset = load(str(scratch / "data.npz"))
    assert dataset.x.dtype == np.float64
    assert np.array_equal(dataset.x, x.reshape(len(y), -1))
    assert dataset.classes == ("-1", "3", "8")
    assert _names(dataset) == [str(label) for label in y]
    assert dataset.image_shape == ((height, width) if images else None)


@pytest.mark.parametrize(
    ("written", "classes", "y"),
    [
        (["10", "2", "10", "2"], ("2", "10"), [1, 0, 1, 0]),  # by size
        (["b", "10", "10.0", "b", "10", "10.0"], ("10", "10.0", "b"), [2, 0, 1, 2, 0, 1]),
        (["007", "7", "08"] * 2, ("007", "7", "08"), [0, 1, 2] * 2),
        (["1E2", "1E3", "100"] * 2, ("1E2", "100", "1E3"), [0, 2, 1] * 2),
        (["0.0", "1.0"] * 2, ("0.0", "1.0"), [0, 1] * 2),
        (["+1", "-1"] * 2, ("-1", "+1"), [1, 0] * 2),
        (["0.5", "1.5", "0.5", "1.5"], ("0.5", "1.5"), [0, 1, 0, 1]),
        (["9007199254740992", "9007199254740993"] * 2, ("9007199254740992", "9007199254740993"), [0, 1, 0, 1]),
    ],
)
def test_csv_labels_may_be_numbers(here: Path, written: list[str], classes: tuple[str, ...], y: list[int]) -> None:
    (here / "a.csv").write_text("label,a\n" + "".join(f"{label},1\n" for label in written))
    dataset = load("a.csv")
    assert dataset.classes == classes
    assert dataset.y.tolist() == y


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (np.array([0.0, 1.0, 1.0, 0.0]), ("0", "1")),
        (np.array([False, True, True, False]), ("False", "True")),
        (np.array(["007", "7", "7", "007"]), ("007", "7")),
        (np.array([2**53, 2**53 + 1, 2**53 + 1, 2**53]), ("9007199254740992", "9007199254740993")),
    ],
)
def test_npz_labels_of_every_dtype(here: Path, y: np.ndarray[Any, Any], classes: tuple[str, ...]) -> None:
    np.savez(here / "a.npz", x=np.ones((4, 1)), y=y)
    assert load("a.npz").classes == classes
    assert load("a.npz").y.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("name", "shape", "classes", "image_shape"),
    [("digits", (1797, 64), 10, (8, 8)), ("breast_cancer", (569, 30), 2, None), ("wine", (178, 13), 3, None)],
)
def test_bundled_data(name: str, shape: tuple[int, int], classes: int, image_shape: tuple[int, int] | None) -> None:
    dataset = load(name)
    x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    assert np.array_equal(dataset.x, x)
    assert dataset.x.shape == shape
    assert len(dataset.classes) == classes
    assert len(dataset.features) == shape[1]
    assert dataset.image_shape == image_shape
    # The same grouping, whatever the order of the names.
    assert len(set(zip(y.tolist(), dataset.y.tolist(), strict=True))) == classes


# --- arbitrary bytes -------------------------------------------------------------------------------------------------


def _npz_bytes(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


GOOD_CSV = b'a,b,label\n1,2,x\n3,4,"y"\n5,6,x\n7,8,y\n'
GOOD_NPZ = _npz_bytes(x=np.arange(8.0).reshape(4, 2), y=np.array([0, 1, 0, 1]))


READINGS = st.builds(
    Reading,
    st.sampled_from([None, ",", ";", " ", "a"]),
    st.sampled_from([None, ".", ","]),
    st.sampled_from([(), ("a",), ("b", "a")]),
    st.sampled_from([(), ("b",), ("",)]),
    st.sampled_from([None, "mean", "drop"]),
)


@given(st.binary(), READINGS)
@example(b"", Reading())
@example(b"\xff\xfe", Reading())
@example(b"label,a\n\x00,1\n\x00,1\n", Reading())
@example(b'label,a\n"x,1\n', Reading())
@example(b"label,a\n" + b"x" * 200_000 + b",1\n", Reading())
def test_any_bytes_as_csv(scratch: Path, content: bytes, reading: Reading) -> None:
    (scratch / "any.csv").write_bytes(content)
    _is_a_dataset_or_refused(scratch / "any.csv", reading)


CELLS = st.sampled_from(
    ["1", "2", "1,5", "2.5", "1.000", "x", "y", "", "NA", "True", "false", "007", '"', "2024-01-31", "inf"]
)


@given(st.lists(st.lists(CELLS, min_size=2, max_size=4), max_size=6), st.sampled_from(",;\t| "), READINGS)
def test_any_cells_as_csv(scratch: Path, rows: list[list[str]], separator: str, reading: Reading) -> None:
    lines = [separator.join(row) for row in [["a", "b", "label"], *rows]]
    (scratch / "any.csv").write_text("\n".join(lines))
    _is_a_dataset_or_refused(scratch / "any.csv", reading)


@given(st.binary())
@example(b"")
@example(b"PK\x03\x04")
@example(b"PK\x05\x06" + b"\x00" * 18)
@example(b"\x93NUMPY\x01\x00")
def test_any_bytes_as_npz(scratch: Path, content: bytes) -> None:
    (scratch / "any.npz").write_bytes(content)
    _is_a_dataset_or_refused(scratch / "any.npz")


@given(st.sampled_from([("a.csv", GOOD_CSV), ("a.npz", GOOD_NPZ)]), st.data())
def test_a_good_file_with_a_changed_part(scratch: Path, file: tuple[str, bytes], data: st.DataObject) -> None:
    name, good = file
    at = data.draw(st.integers(0, len(good)), label="at")
    drop = data.draw(st.integers(0, 4), label="bytes dropped")
    put = data.draw(st.binary(max_size=4), label="bytes put there")
    (scratch / name).write_bytes(good[:at] + put + good[at + drop :])
    _is_a_dataset_or_refused(scratch / name)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["empty", "header"]),
        ("label,a\n", ["no rows"]),
        ("kind,a\nx,1\n", ["no column 'label'", "'kind', 'a'", "--label"]),
        ("label\nx\ny\n", ["only the label column"]),
        ("label,a,a\nx,1,1\n", ["'a' more than once"]),
        (",label,a\n0,x,1\n", ["column 1 has no name", "index=False"]),
        ("label,a\nx,1\ny,1,2\n", ["line 3", "3 cells", "needs 2"]),
        ("label,a\nx,1\ny\n", ["line 3", "1 cells", "needs 2"]),
        ("label,a\n\nx,1\ny,one\n", ["line 4", "column 'a'", "'one'", "number"]),
        ('label,a\n"x\nx",1\ny,one\n', ["line 4", "column 'a'"]),
        ("label,a\nx,\n", ["line 2", "column 'a'", "''"]),
        ("label,a\nx,nan\n", ["line 2", "column 'a'", "'nan'"]),
        ("label,a\nx,-inf\n", ["line 2", "column 'a'", "'-inf'"]),
        ("label,a\nx,1e400\n", ["line 2", "column 'a'", "'1e400'"]),
        ("label,a\nx,1_000\n", ["line 2", "column 'a'", "'1_000'"]),
        ("label,a\n ,1\n", ["line 2", "column 'label'", "no label"]),
        ("label,a\n1,1\nnan,1\n", ["line 3, column 'label'", "'nan', no label", "--missing drop"]),
        ("label,a\n1,1\ninf,1\n", ["infinity as a label"]),
        ("label,a\nx,1\nx,2\n", ["all 2 examples", "'x'", "two classes"]),
        ("label,a\nx,1\nx,2\ny,3\n", ["class 'y' has one example"]),
        ("label,a\n" + "".join(f"{k}.25,1\n" * 3 for k in range(30)), ["30 different numbers", "regression"]),
        ("label,a\n" + "".join(f"{k},1\n" for k in range(5)), ["5 different numbers in 5 examples", "regression"]),
        ("label,a\n" + "".join(f"{k},1\n" * (1 + 2 * (k > 0)) for k in range(30)), ["regression"]),
        ('label,a\n"x"y,1\n', ["line 2", "not valid CSV"]),
    ],
)
def test_csv_refusals(here: Path, refused: Refused, content: str, words: list[str]) -> None:
    (here / "data.csv").write_text(content)
    refused(("attribute", "data.csv"), "'data.csv'", *words)


def test_a_csv_that_is_no_utf8(here: Path, refused: Refused) -> None:
    (here / "data.csv").write_bytes("label,a\nKüche,1\n".encode("latin-1"))
    refused(("attribute", "data.csv"), "UTF-8")


X = np.arange(8.0).reshape(4, 2)
Y = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X}, ["no array 'y'", "among 'x'"]),
        ({"y": Y}, ["no array 'x'"]),
        ({}, ["no array 'x', 'y'"]),
        ({"x": X[0], "y": Y}, ["x:", "(2,)"]),
        ({"x": X[:0], "y": Y[:0]}, ["x:", "not empty"]),
        ({"x": X[:, :0], "y": Y}, ["x:", "not empty"]),
        ({"x": X, "y": Y[:3]}, ["y:", "(3,)", "(4,)"]),
        ({"x": X, "y": Y[:, None]}, ["y:", "(4, 1)"]),
        ({"x": X.astype(object), "y": Y}, ["got Python objects"]),
        ({"x": X, "y": Y.astype(object)}, ["got Python objects", "y.astype(str)"]),
        ({"x": X.astype(str), "y": Y}, ["x:", "dtype <U"]),
        ({"x": X.astype(complex), "y": Y}, ["x:", "complex128"]),
        ({"x": X, "y": Y.astype(complex)}, ["y:", "complex128"]),
        ({"x": np.where(X == 5, np.nan, X), "y": Y}, ["x, row 2", "x[1]", "nan"]),
        ({"x": np.where(X == 5, np.inf, X), "y": Y}, ["x, row 2", "x[1]", "inf"]),
        ({"x": X, "y": np.where(Y == 1, np.nan, 0.0)}, ["y, row 1", "NaN"]),
        ({"x": X, "y": np.array(["x", "nan", "x", "y"])}, ["y, row 1", "'nan', no label"]),
        ({"x": X, "y": np.array([b"x", b"y"] * 2)}, ["dtype |S1", "y.astype(str)"]),
        ({"x": X, "y": 0 * Y}, ["all 4 examples", "'0'"]),
        ({"x": X, "y": np.array([0, 1, 1, 1])}, ["class '0' has one example"]),
        ({"x": X, "y": np.array([0.5, 1.25, 0.3, 7.5])}, ["regression"]),
    ],
)
def test_npz_refusals(here: Path, refused: Refused, arrays: dict[str, Any], words: list[str]) -> None:
    (here / "data.npz").write_bytes(_npz_bytes(**arrays))
    refused(("attribute", "data.npz"), "'data.npz'", *words)


def test_numbers_beyond_float64_are_refused(here: Path, refused: Refused) -> None:
    np.savez(here / "data.npz", x=np.full((4, 2), np.longdouble("1e400")), y=Y)
    refused(("attribute", "data.npz"), "inf", "finite")


@pytest.mark.parametrize("content", [b"", GOOD_NPZ[:-30], b"not a zip", GOOD_NPZ.replace(b"\x93NUMPY", b"\x93NUMPX")])
def test_a_broken_npz(here: Path, refused: Refused, content: bytes) -> None:
    (here / "data.npz").write_bytes(content)
    refused(("attribute", "data.npz"), "'data.npz'", "x and y")


def test_a_single_array_named_npz(here: Path, refused: Refused) -> None:
    with (here / "data.npz").open("wb") as file:
        np.save(file, X)
    refused(("attribute", "data.npz"), "single array")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("iris", ["'iris'", *BUNDLED, ".npz", ".csv"]),
        ("data.txt", ["cannot read 'data.txt'", "No such file"]),
        ("", ["''", *BUNDLED]),
        (".", ["'.', a folder without text"]),
        ("missing.csv", ["cannot read 'missing.csv'", "No such file"]),
        ("missing.npz", ["cannot read 'missing.npz'", "No such file"]),
        ("x" * 5000 + ".csv", ["cannot read", "name too long"]),
    ],
)
def test_data_that_is_not_there(refused: Refused, data: str, words: list[str]) -> None:
    refused(("attribute", data), *words)


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_a_folder_with_the_name_of_a_file(here: Path, refused: Refused, suffix: str) -> None:
    (here / f"data{suffix}").mkdir()
    refused(("attribute", f"data{suffix}"), "cannot read", "directory")


@pytest.mark.parametrize("data", ["wine", "data.npz"])
def test_a_label_column_only_for_csv(refused: Refused, data: str) -> None:
    refused(("attribute", data, "--label", "kind"), "--label", "'kind'", ".csv")


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    refused(("attribute", "wine"), 'pip install "adamshap[demo]"')
