"""Files from practice: each is read as it is meant, or refused in one line with advice."""

import csv
import datetime
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import TINY, Command
from hypothesis import given
from hypothesis import strategies as st

from adamshap.reference.command.datasets import load, load_valid
from adamshap.reference.command.errors import CommandError
from adamshap.reference.command.table import Reading
from adamshap.verify.tolerance import assert_within, rounding

pandas = pytest.importorskip("pandas", reason="extra `tables`: pandas")
pytest.importorskip("pyarrow", reason="extra `tables`: pyarrow")

Refused = Callable[..., None]
PLAIN = "a,b,label\n1,2,x\n3,4,y\n5,6,x\n7,8,y\n"
NUMBERS = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]
COMMAS = PLAIN.replace(",", ";").replace("1", "1,5")
COLOURS = "colour,b,label\nred,2,x\nblue,,y\nred,6,x\ngreen,10,y\n"


def write(name: str, content: str | bytes) -> None:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)


# --- separators, decimal marks, encodings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "first", "note"),
    [
        ("d.csv", PLAIN, 1.0, ""),
        ("d.tsv", PLAIN.replace(",", "\t"), 1.0, ""),
        ("D.TSV", PLAIN.replace(",", "\t"), 1.0, ""),
        ("d.tsv", PLAIN, 1.0, "columns are separated by ','"),
        ("d.csv", PLAIN.replace(",", "\t"), 1.0, "columns are separated by '\\t'"),
        ("d.csv", PLAIN.replace(",", "|"), 1.0, "columns are separated by '|'"),
        ("d.csv", COMMAS, 1.5, "columns are separated by ';', the decimal mark is ','"),
        ("d.csv", "sep=;\r\n" + COMMAS.replace("\n", "\r\n"), 1.5, "the decimal mark is ','"),
        ("d.csv", "\ufeffsep=;\n" + COMMAS, 1.5, "columns are separated by ';'"),
        ("d.csv", PLAIN.replace("1", '"1,5"'), 1.5, "the decimal mark is ','"),
        ("d.csv", PLAIN.replace(",", ";").replace("1", "0.125"), 0.125, "columns are separated by ';'"),
        ("d.csv", PLAIN.encode("utf-16"), 1.0, "UTF-16"),
        ("d.csv", PLAIN.replace("\n", "\r\n"), 1.0, ""),
        ("d.csv", PLAIN.replace("\n", "\r"), 1.0, ""),
        ("d.csv", "\n,,\n" + PLAIN, 1.0, ""),
        ("d.csv", "\n;;\n" + COMMAS, 1.5, "columns are separated by ';'"),
        ("d.csv", PLAIN.rstrip(), 1.0, ""),
        ("d.csv", PLAIN.replace("\n", ",\n"), 1.0, ""),
        ("d.csv", PLAIN.replace("\n", ",,\n"), 1.0, ""),
        ("d.csv", PLAIN + ",,\n,,\n", 1.0, ""),
        ("d.csv", PLAIN.replace(",", ", ").replace("label", '"label"'), 1.0, ""),
        ("d.csv", PLAIN.replace("1", "+1"), 1.0, ""),
        ("d.csv", PLAIN.replace("1", "True"), None, "--one-hot"),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_table_in_many_forms(name: str, content: str | bytes, first: float | None, note: str) -> None:
    write(name, content)
    if first is None:
        with pytest.raises(CommandError, match=note):
            load(name)
        return
    dataset = load(name)
    assert np.array_equal(dataset.x, [[first, 2.0], *NUMBERS[1:]])
    assert (dataset.features, dataset.classes, dataset.y.tolist()) == (("a", "b"), ("x", "y"), [0, 1, 0, 1])
    assert (len(dataset.notes) == 1) == bool(note)
    assert note in "".join(dataset.notes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PLAIN.replace(",", " "), ["--sep"]),
        ("label,b;label\n1,2;x\n3,4;y\n", ["',' or ';'", "--sep"]),
        (COMMAS.replace("1,5", "1,500"), ["'1,500'", "--decimal"]),
        (COMMAS.replace("1,5", "1.500"), ["'1.500'", "--decimal"]),
        (PLAIN.replace("1", '"22,967"'), ["'22,967'", "--decimal"]),
        (COMMAS.replace("2", "2.5"), ["'1,5' and '2.5'", "the same decimal mark"]),
        (COMMAS.replace("2", "2.500,5"), ["line 2, column 'b'", "thousands separators: 2500,5"]),
        (COMMAS.replace("5;6", "5"), ["line 4: got 2 cells; needs 3"]),
        (PLAIN.replace("1", '"22,967.35"'), ["thousands separators: 22967.35"]),
        (PLAIN.replace("1", '"1,234,567"'), ["thousands separators: 1234567"]),
        (PLAIN.replace("1", "22'967.35"), ["thousands separators: 22967.35"]),
        (PLAIN.replace("1", "22 967.35"), ["thousands separators: 22967.35"]),
        (PLAIN.replace(",", ";").replace("1", "22 967,35"), ["thousands separators: 22967,35", "--decimal ,"]),
        (PLAIN.replace("1", "1_000"), ["thousands separators: 1000"]),
        (PLAIN.replace("1", "$1.50"), ["without currency"]),
        (PLAIN.replace("1", "1.50 €"), ["without currency"]),
        (PLAIN.replace("1", "5%"), ["percent sign"]),
        (PLAIN.replace("1", "\u22121"), ["plain minus sign"]),
        (PLAIN.replace("1", "2024-01-31"), ["line 2, column 'a'", "days since", "--drop a"]),
        (PLAIN.replace("1", "31.01.2024"), ["days since", "--drop a"]),
        (PLAIN.replace("1", "red"), ["'red'", "--one-hot a", "--id a", "--drop a"]),
        (PLAIN.replace("a", "my colour", 1).replace("1", "red"), ["--one-hot 'my colour'"]),
        (PLAIN.replace("1", "yes"), ["'yes'", "--one-hot a"]),
        (PLAIN.replace("1", "0x1F"), ["'0x1F'", "needs a number"]),
        (PLAIN.replace("1", ""), ["line 2, column 'a'", "no value", "--missing mean", "--missing drop"]),
        (PLAIN.replace("1", "NA"), ["'NA', no value", "--missing mean"]),
        (PLAIN.replace("1", "#N/A"), ["'#N/A', no value", "--missing mean"]),
        (PLAIN.replace("1", "?"), ["'?', no value", "--missing mean"]),
        (PLAIN.replace("x", "NA"), ["line 2, column 'label'", "'NA', no label", "--missing drop"]),
        (PLAIN.replace("\n3", "\n,,\n3"), ["line 3, column 'a'", "no value"]),
        (PLAIN.replace("\n", ",\n").replace("label,", "label"), ["line 2: got 4 cells; needs 3"]),
        ("70,22967.35,1\n71,3,0\n72,4,1\n73,5,0\n", ["'70', '22967.35'", "line 1 is an example", "header"]),
        ("Unnamed: 0," + PLAIN.replace("\n", "\n0,").rstrip("0,"), ["'Unnamed: 0'", "index=False", "--drop"]),
        (PLAIN.replace("b", "", 1), ["column 2 has no name", "--drop ''"]),
        ("# by me\n" + PLAIN, ["'# by me'", "line 1"]),
        (PLAIN.replace("x", "Küche").encode("latin-1"), ["not UTF-8", "iconv -f LATIN1 -t UTF-8"]),
        (PLAIN.encode("utf-16-le"), ["UTF-16", "needs UTF-8"]),
        (PLAIN.encode("utf-32"), ["UTF-32", "needs UTF-8"]),
        (gzip.compress(PLAIN.encode(), mtime=0), ["gzip", "gunzip"]),
        (b"PK\x03\x04" + bytes(99), ["spreadsheet", ".csv"]),
        (b"PAR1\x15" + bytes(99), ["Parquet", ".parquet"]),
        (b" \n\n", ["empty"]),
        ("a,label\n" + "".join(f"{k},{k}.50\n" for k in range(6)), ["--task regression"]),
    ],
)
def test_tables_that_are_refused(here: Path, refused: Refused, content: str | bytes, words: list[str]) -> None:
    write(str(here / "d.csv"), content)
    refused(("attribute", "d.csv"), "'d.csv'", *words)


def test_only_a_column_of_distinct_values_is_advised_as_an_id(here: Path, command: Command) -> None:
    many = "name,label\n" + "".join(f"u{k},{k % 2}\n" for k in range(1200))
    for content, options, advised in (
        (PLAIN.replace("1", "red"), (), True),
        (PLAIN.replace("1", "red").replace("3", "red"), (), False),
        (many, (), True),
        (many, ("--one-hot", "name"), True),
        (many + "u0,1\n", ("--one-hot", "name"), False),
    ):
        write(str(here / "d.csv"), content)
        error = command("attribute", "d.csv", *options).stderr
        assert "leaves it out" in error
        assert ("names the rows by it" in error) == advised
        assert ("scores its groups" in error) == (not advised)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("d.csv.gz", [".csv", "gunzip"]),
        ("d.xlsx", ["export the sheet as .csv"]),
        ("d.dat", [".csv or .tsv"]),
    ],
)
def test_files_of_other_kinds(refused: Refused, data: str, words: list[str]) -> None:
    refused(("attribute", data), repr(data), *words)


def test_a_refusal_of_a_long_cell_is_short(here: Path, command: Command) -> None:
    for content in (PLAIN.replace("1", "x" * 100_000), "x" * 100_000):
        write(str(here / "d.csv"), content)
        assert 0 < len(command("attribute", "d.csv").stderr) < 500


def test_hints_about_lines_are_for_text(here: Path, refused: Refused, command: Command) -> None:
    pandas.DataFrame({"1": [1, 2]}).to_parquet(here / "d.parquet")
    refused(("attribute", "d.parquet"), "no column 'label'", "names one of '1'\n")
    (here / "d.csv").write_text("a\n1\n2\n")
    assert "--sep" in command("attribute", "d.csv").stderr


@pytest.mark.usefixtures("here")
def test_a_first_line_that_is_an_example_is_no_header() -> None:
    for label in ("1", "setosa"):
        write("d.csv", f"70,22967.35,{label}\n71,3,0\n72,4,{label}\n73,5,0\n")
        with pytest.raises(CommandError, match=r"line 1 .*looks like an example"):
            load("d.csv", label)
    write("d.csv", "0,1,2\n5,7,2\n3,4,1\n5,6,2\n7,8,1\n")  # pandas' default names
    assert load("d.csv", "2").features == ("0", "1")


ROWS = st.lists(
    st.tuples(st.floats(-1e4, 1e4), st.floats(allow_nan=False, allow_infinity=False), st.integers(-9999, 9999)),
    min_size=4,
    max_size=6,
)


@given(ROWS, st.sampled_from(",;\t|"), st.sampled_from(".,"), st.sampled_from(["d.csv", "d.tsv"]))
def test_every_separator_and_decimal_mark(
    scratch: Path, rows: list[tuple[Any, ...]], separator: str, decimal: Any, name: str
) -> None:
    """With both options a table is read as written; without them it is read the same, or refused as ambiguous."""
    path = scratch / name
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(["a", "b", "c", "label"])
        for place, row in enumerate(rows):
            writer.writerow([*(repr(value).replace(".", decimal) for value in row), "xy"[place % 2]])
    given_options = load(str(path), reading=Reading(sep=separator, decimal=decimal))
    assert given_options.x.tolist() == [list(map(float, row)) for row in rows]
    try:
        found = load(str(path))
    except CommandError as error:
        if "--decimal" not in str(error):
            raise
        return
    assert np.array_equal(found.x, given_options.x)
    usual = {"d.csv": ",", "d.tsv": "\t"}[name]
    assert (f"separated by {separator!r}" in "".join(found.notes)) == (separator != usual)


@pytest.mark.usefixtures("here")
def test_true_and_false_are_one_and_zero_in_every_file() -> None:
    flags = np.array([True, False, True, False])
    table = pandas.DataFrame({"flag": flags, "label": list("xxyy")})
    table.to_csv("d.csv", index=False)
    table.to_parquet("d.parquet")
    write("lower.csv", Path("d.csv").read_text().replace("True", "TRUE").replace("False", "false"))
    np.savez("d.npz", x=flags[:, None], y=table["label"].to_numpy().astype(str))
    for data in ("d.csv", "lower.csv", "d.parquet", "d.npz"):
        assert load(data).x.tolist() == [[1.0], [0.0], [1.0], [0.0]], data


@pytest.mark.usefixtures("here")
def test_what_was_taken_is_said(command: Command) -> None:
    write("d.csv", COMMAS)
    result = command("attribute", "d.csv", *TINY, "--out", "o")
    said = "d.csv: columns are separated by ';', the decimal mark is ','"
    assert said in " ".join(result.stdout.split())
    assert json.loads(Path("o/config.json").read_text())["dataset"]["notes"] == [said]


# --- labels of two files ---------------------------------------------------------------------------------------------


def labelled(name: str, labels: list[Any]) -> str:
    table = pandas.DataFrame({"a": np.arange(float(len(labels))), "label": labels})
    table.to_parquet(name) if name.endswith(".parquet") else table.to_csv(name, index=False)
    return name


@pytest.mark.parametrize(
    ("train", "valid", "expected"),
    [
        (("d.csv", ["True", "False"]), ("v.parquet", [False, True]), [0, 1]),
        (("d.csv", [1, 0]), ("v.parquet", [False, True]), [0, 1]),
        (("d.parquet", [True, False]), ("v.csv", [0, 1]), [0, 1]),
        (("d.parquet", [True, False]), ("v.csv", ["false", "true"]), [0, 1]),
        (("d.csv", [3, 5]), ("v.csv", ["3.0", "5.0"]), [0, 1]),
        (("d.parquet", [3.0, 5.0]), ("v.csv", [3.0, 5.0]), [0, 1]),
        (("d.csv", ["007", "7"]), ("v.csv", ["7", "007"]), [1, 0]),
        (("d.csv", [0, 1, 2]), ("v.parquet", [False, True]), "'False' may be '0'"),
        (("d.csv", [7, 8]), ("v.csv", ["007", "8"]), "'007' may be '7'"),
        (("d.csv", ["007", "7"]), ("v.parquet", [7, 7]), "needs text in both"),
        (("d.csv", ["007", "08"]), ("v.parquet", [7, 8]), "needs text in both"),
        (("d.csv", ["1E2", "1E3"]), ("v.csv", [100, 1000]), "'100' may be '1E2'"),
        (("d.csv", [0, 1]), ("v.csv", ["1", "True"]), "'True' may be '1'"),
        (("d.csv", ["Cat", "dog"]), ("v.csv", ["cat", "dog"]), "'cat' may be 'Cat'"),
        (("d.csv", [2**53, 2**53 + 1]), ("v.csv", [2**53 + 2, 2**53]), "9007199254740994"),
    ],
)
@pytest.mark.usefixtures("here")
def test_one_class_in_two_spellings(
    train: tuple[str, list[Any]], valid: tuple[str, list[Any]], expected: list[int] | str
) -> None:
    dataset = load(labelled(train[0], train[1] * 2))
    name = labelled(*valid)
    if isinstance(expected, str):
        with pytest.raises(CommandError, match=expected):
            load_valid(name, None, dataset)
    else:
        assert load_valid(name, None, dataset).y.tolist() == expected


@pytest.mark.usefixtures("here")
def test_two_classes_that_look_like_one_are_named() -> None:
    write("d.csv", "a,label\n" + "1,007\n2,7\n3,08\n" * 2)
    assert load("d.csv").notes == ("d.csv: '007' and '7' are two classes, as they are spelled",)


@pytest.mark.parametrize("labels", ["1.50 2.25 3.125 4.0", "1 2 3 4", "1,50 2,25 3,125 4"])
@pytest.mark.usefixtures("here")
def test_targets_of_a_regression_may_be_spelled_in_any_way(labels: str) -> None:
    write("d.csv", "a;label\n" + "".join(f"{place};{label}\n" for place, label in enumerate(labels.split())))
    expected = [[float(label.replace(",", "."))] for label in labels.split()]
    assert load("d.csv", task="regression").y.tolist() == expected


# --- a class with one example ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_a_class_with_one_example_and_a_validation_file(command: Command, refused: Refused) -> None:
    write("d.csv", "a,label\n1,x\n2,y\n3,y\n")
    write("v.csv", "a,label\n1,x\n2,y\n")
    refused(("attribute", "d.csv"), "class 'x' has one example", "--valid")
    done = command("attribute", "d.csv", "--valid", "v.csv", *TINY, "--out", "o")
    assert done.exit_code == 0, done.stderr
    config = json.loads(Path("o/config.json").read_text())["dataset"]
    assert (config["train_examples"], config["validation_examples"]) == (3, 2)
    write("one.csv", "a,label\n1,x\n")
    refused(("attribute", "one.csv", "--valid", "v.csv"), "needs two classes")


@pytest.mark.usefixtures("here")
def test_pictures_are_shown_of_a_class_with_one_example(command: Command) -> None:
    np.savez("d.npz", x=np.arange(12.0).reshape(3, 2, 2), y=[0, 1, 1])
    assert command("attribute", "d.npz", "--valid", "d.npz", *TINY, "--out", "o").exit_code == 0
    assert command("show", "o", "--html", "o.html").exit_code == 0
    assert "No pictures" not in Path("o.html").read_text()


# --- categories, columns left out, missing values --------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_categories_are_those_of_pandas() -> None:
    generator = np.random.default_rng(3)
    table = pandas.DataFrame(
        {
            "month": generator.integers(1, 13, 40),
            "n": generator.normal(size=40),
            "colour": generator.choice(["red", "blue", "light green"], 40),
            "label": np.arange(40) % 2,
        }
    )
    table.to_csv("d.csv", index=False)
    table.astype({"colour": "category"}).to_parquet("d.parquet")
    expected = pandas.get_dummies(table, columns=["month", "colour"], prefix_sep="=", dtype=float)
    for data in ("d.csv", "d.parquet"):
        dataset = load(data, reading=Reading(one_hot=("colour", "month")))
        assert sorted(dataset.features) == sorted(set(expected) - {"label"})
        assert np.array_equal(dataset.x, expected[list(dataset.features)])
    assert dataset.features[:3] == ("month=1", "month=2", "month=3")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.usefixtures("here")
def test_missing_values_have_the_mean_of_the_training_data(suffix: str) -> None:
    write("d.csv", COLOURS)
    write("v.csv", "label,b,colour\nx,,green\ny,1,red\nx,2,\n")
    for name in "dv":
        pandas.read_csv(f"{name}.csv").to_parquet(f"{name}.parquet")
    reading = Reading(one_hot=("colour",), missing="mean")
    dataset = load("d" + suffix, reading=reading)
    assert dataset.features == ("colour=blue", "colour=green", "colour=red", "b")
    assert dataset.x.tolist() == [[0, 0, 1, 2], [1, 0, 0, 6], [0, 0, 1, 6], [0, 1, 0, 10]]
    valid = load_valid("v" + suffix, None, dataset, reading)
    assert valid.x.tolist() == [[0, 1, 0, 6], [0, 0, 1, 1], [0.25, 0.25, 0.5, 2]]
    assert "missing values in 2 of 3 rows" in "".join(valid.notes)


@pytest.mark.usefixtures("here")
def test_held_out_examples_have_no_part_in_the_mean(command: Command, refused: Refused) -> None:
    generator = np.random.default_rng(5)
    table = pandas.DataFrame({"a": generator.normal(size=30), "b": np.arange(30.0), "label": list("xyz") * 10})
    table.loc[::4, "a"] = np.nan
    table.to_csv("d.csv", index=False)
    assert command("attribute", "d.csv", *TINY, "--missing", "mean", "--out", "o").exit_code == 0
    config = json.loads(Path("o/config.json").read_text())
    train = pandas.read_csv("o/scores.csv")["index"]
    values = table["a"][train]
    # Mean and sum of squares with gaps filled by the mean, computed without filling them.
    mean, scale = values.mean(), values.std(ddof=0) * np.sqrt(values.count() / len(values))
    found = config["standardisation"]
    assert_within(found["mean"][0], mean, rounding(np.abs(values).max(), 30), "mean")
    assert_within(found["scale"][0], scale, rounding(np.abs(values).max(), 30), "scale")
    assert found["mean"][0] != table["a"].mean()
    table.loc[~table.index.isin(config["dataset"]["validation_index"]), "b"] = np.nan
    table.to_csv("d.csv", index=False)
    refused(("attribute", "d.csv", *TINY, "--missing", "mean"), "'b' has no value in all training examples", "--drop")


@pytest.mark.usefixtures("here")
def test_rows_with_missing_values_are_left_out_and_the_others_keep_their_numbers(command: Command) -> None:
    generator = np.random.default_rng(4)
    table = pandas.DataFrame({"a": generator.normal(size=30), "b": np.arange(30.0), "label": list("xyz") * 10})
    gone = [0, 7, 8, 29]
    table.loc[gone[:2], "a"] = np.nan
    table.loc[gone[2:], "label"] = None
    table.to_csv("d.csv", index=False)
    assert command("attribute", "d.csv", *TINY, "--missing", "drop", "--out", "o").exit_code == 0
    config = json.loads(Path("o/config.json").read_text())["dataset"]
    scores = pandas.read_csv("o/scores.csv")
    kept = sorted([*scores["index"], *config["validation_index"]])
    assert kept == [row for row in range(30) if row not in gone]
    assert scores["label"].tolist() == table["label"][scores["index"]].tolist()
    assert config["notes"] == ["d.csv: 4 of 30 rows have missing values and are left out"]
    kept_table = table.dropna()
    kept_table[:9].to_csv("v.csv")
    dataset = load("d.csv", reading=Reading(missing="drop"))
    assert np.array_equal(dataset.x, kept_table[["a", "b"]])
    assert dataset.rows is not None
    assert dataset.rows.tolist() == kept_table.index.tolist()


@pytest.mark.usefixtures("here")
def test_a_row_of_the_file_is_named_where_others_are_left_out() -> None:
    write("d.csv", "a,label\n1,1\n,2\n3,x\n4,4\n")
    with pytest.raises(CommandError, match="label, row 2: got 'x'"):
        load("d.csv", task="regression", reading=Reading(missing="drop"))


@pytest.mark.usefixtures("here")
def test_columns_are_left_out_of_both_files() -> None:
    write("d.csv", PLAIN)
    write("v.csv", "b,label\n9,x\n")
    reading = Reading(drop=("a",))
    dataset = load("d.csv", reading=reading)
    assert dataset.features == ("b",)
    assert load_valid("v.csv", None, dataset, reading).x.tolist() == [[9.0]]
    write("d.csv", PLAIN.replace("a,b", "a,a"))  # a dropped column needs no unique name
    with pytest.raises(CommandError, match="only the label"):
        load("d.csv", reading=reading)
    write("d.csv", PLAIN.replace("b", "", 1))
    assert load("d.csv", reading=Reading(drop=("",))).features == ("a",)


@pytest.mark.usefixtures("here")
def test_a_category_that_the_training_data_lack() -> None:
    write("d.csv", COLOURS.replace(",,", ",4,"))
    reading = Reading(one_hot=("colour",))
    dataset = load("d.csv", reading=reading)
    write("v.csv", "colour,b,label\npink,1,x\nred,2,y\n")
    valid = load_valid("v.csv", None, dataset, reading)
    assert valid.x.tolist() == [[0, 0, 0, 1], [0, 0, 1, 2]]
    assert "'pink' (1 of 2 rows) is no category of the training data" in "".join(valid.notes)
    write("both.csv", COLOURS.replace(",,", ",4,").replace("green", "Red"))
    assert load("both.csv", reading=reading).notes == (
        "both.csv: column 'colour': 'Red' and 'red' are two categories, as they are spelled",
    )
    write("v.csv", "colour,b,label\nRed,1,x\n")
    with pytest.raises(CommandError, match="'Red', the training data 'red'; needs one spelling"):
        load_valid("v.csv", None, dataset, reading)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--drop", "c"), ["--drop: got 'c'", "'colour', 'b', 'label'"]),
        (("--one-hot", "c"), ["--one-hot: got 'c'", "'colour', 'b', 'label'"]),
        (("--drop", "label"), ["--drop", "the label column"]),
        (("--one-hot", "label"), ["--one-hot", "the label column"]),
        (("--drop", "colour", "--one-hot", "colour"), ["--one-hot", "--drop", "one of the two"]),
        (("--drop", "colour", "--drop", "b"), ["only the label column"]),
        (("--one-hot", "colour"), ["line 3, column 'b'", "--missing mean"]),
        (("--missing", "median"), ["--missing", "median", "mean"]),
        (("--decimal", "x"), ["--decimal", "x"]),
        (("--sep", ";;"), ["--sep", "';;'", "one character"]),
        (("--sep", ""), ["--sep", "one character"]),
        (("--sep", ";"), ["no column 'label'", "'colour,b,label'"]),
    ],
)
def test_options_about_columns(here: Path, refused: Refused, options: tuple[str, ...], words: list[str]) -> None:
    write(str(here / "d.csv"), COLOURS)
    refused(("attribute", "d.csv", *options), *words)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--one-hot", "a"), ("--drop", "a"), ("--missing", "mean"), ("--sep", ";"), ("--decimal", ",")],
)
@pytest.mark.parametrize("data", ["wine", "d.npz", "x.npy,y.npy"])
def test_options_about_columns_need_columns(refused: Refused, data: str, option: str, value: str) -> None:
    refused(("attribute", data, option, value), option, repr(value), repr(data), ".csv")


@pytest.mark.parametrize(
    ("content", "reading", "words"),
    [
        ("a,b,label\n,2,x\n,4,y\n", Reading(missing="mean"), "'a': got no value at all; --drop a"),
        ("a,b,label\n,2,x\n,4,y\n", Reading(missing="drop"), "no row without missing values"),
        (COLOURS.replace("red", ""), Reading(one_hot=("colour",)), "line 2, column 'colour': got '', no value"),
        ("c,c=r,label\nr,2,x\ns,4,y\n", Reading(one_hot=("c",)), "'c=r' more than once"),
        ("c,label\n" + "".join(f"n{k},x\n" for k in range(1001)), Reading(one_hot=("c",)), "1001 categories"),
        ("a,label\n-1.7e308,x\n1.7e308,x\n,y\n", Reading(missing="mean"), "mean is beyond float64"),
    ],
)
@pytest.mark.usefixtures("here")
def test_columns_that_cannot_be_mended(content: str, reading: Reading, words: str) -> None:
    write("d.csv", content)
    with pytest.raises(CommandError, match=words):
        load("d.csv", reading=reading)


@pytest.mark.usefixtures("here")
def test_a_run_goes_on_with_the_same_reading(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: Refused
) -> None:
    """Also from another folder: the options and the recognised format are those of the start."""
    generator = np.random.default_rng(6)
    lines = [
        f"{colour};{number:.2f};{place};{'xy'[place % 2]}".replace(".", ",") if place % 7 else f"{colour};;0;x"
        for place, (colour, number) in enumerate(
            zip(generator.choice(["red", "blue"], 40), generator.normal(size=40), strict=True)
        )
    ]
    write("d.csv", "colour;n;id;label\n" + "\n".join(lines) + "\n")
    options = ("--one-hot", "colour", "--drop", "id", "--missing", "mean", "--sep", ";", "--decimal", ",")
    run = ("attribute", "d.csv", "--valid", "d.csv", *TINY, *options, "--out", "o")
    assert command(*run).exit_code == 0
    folder = Path("o").absolute()
    asked = json.loads((folder / "config.json").read_text())["options"]
    kept = {name: asked[name] for name in ("one_hot", "drop", "missing", "sep", "decimal")}
    assert kept == {"one_hot": ["colour"], "drop": ["id"], "missing": "mean", "sep": ";", "decimal": ","}
    with np.load(folder / "scores.npz") as scores:
        whole = scores["score"]
    (folder / "results.json").unlink()  # the last file written: as if killed just before it
    refused(("attribute", "--resume", "o", "--missing", "drop"), "--missing", "--resume")
    monkeypatch.chdir(tmp_path)
    done = command("attribute", "--resume", folder)
    assert done.exit_code == 0, done.stderr
    assert "resumed from step" in (folder / "log.txt").read_text()
    with np.load(folder / "scores.npz") as scores:
        assert np.array_equal(scores["score"], whole)


# --- arrays ----------------------------------------------------------------------------------------------------------

X = np.arange(8.0).reshape(4, 2)
Y = np.array([0, 1, 0, 1])


@pytest.mark.parametrize("dtype", [float, int, bool, np.float32])
@pytest.mark.parametrize("y", [np.eye(2)[Y], Y[:, None]], ids=["one-hot", "column"])
@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_whole_numbers_in_columns_are_asked_about(
    here: Path, refused: Refused, y: np.ndarray[Any, Any], dtype: type, suffix: str
) -> None:
    np.savez(here / "d.npz", x=X, y=y.astype(dtype))
    np.save(here / "x.npy", X)
    np.save(here / "y.npy", y.astype(dtype))
    data = "d.npz" if suffix == ".npz" else "x.npy,y.npy"
    refused(("attribute", data), "y: got shape", "--task regression", "--task classification")
    assert np.array_equal(load(data, task="regression").y, y)
    assert load(data, task="classification").y.tolist() == Y.tolist()


@pytest.mark.usefixtures("here")
def test_whole_numbers_that_are_no_classes_and_fractions() -> None:
    np.savez("d.npz", x=X, y=np.array([[3.0, 1.0], [2.0, 2.0], [5.0, 0.0], [0.0, 0.0]]))
    with pytest.raises(CommandError, match=r"--task regression .* or one label for each row"):
        load("d.npz")
    np.savez("d.npz", x=X, y=X / 4)
    assert load("d.npz").task == "regression"


@pytest.mark.parametrize("names", [("X", "Y"), ("X", "y"), ("x", "Y")])
@pytest.mark.usefixtures("here")
def test_arrays_may_be_named_by_capitals(names: tuple[str, str]) -> None:
    np.savez("d.npz", **dict(zip(names, (X, Y), strict=True)))
    assert np.array_equal(load("d.npz").x, X)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_train": X, "y_train": Y, "x_test": X}, ['x=old["x_train"], y=old["y_train"]', "--valid"]),
        ({"train_x": X, "train_y": Y}, ['x=old["train_x"], y=old["train_y"]']),
        ({"data": X, "target": Y}, ["'data', 'target'", "numpy.savez"]),
        ({"data": X, "indices": Y, "indptr": Y, "shape": Y}, ["toarray()"]),
        ({"x": np.where(X == 5, np.nan, X), "y": Y}, ["row 2, x[1]: got nan", "--missing", ".csv"]),
    ],
)
def test_arrays_that_are_refused(here: Path, refused: Refused, arrays: dict[str, Any], words: list[str]) -> None:
    np.savez(here / "d.npz", **arrays)
    refused(("attribute", "d.npz"), "'d.npz'", *words)


@pytest.mark.parametrize(
    ("shape", "image"), [((8, 8, 3), (8, 8, 3)), ((8, 6, 1), (8, 6)), ((1, 8, 6), (8, 6)), ((2, 2, 2, 2), None)]
)
@pytest.mark.usefixtures("here")
def test_images_with_channels(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    shape: tuple[int, ...],
    image: tuple[int, ...] | None,
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, *shape), np.uint8)
    np.save("x.npy", x)
    np.save("y.npy", np.arange(20) % 2)
    dataset = load("x.npy,y.npy")
    assert np.array_equal(dataset.x[:], x.reshape(20, -1))
    assert dataset.image_shape == image
    assert dataset.features[1] == "x[" + ",".join(map(str, np.unravel_index(1, shape))) + "]"
    assert bool(dataset.notes) == (image is None or len(image) == 3)
    assert command("attribute", "x.npy,y.npy", *TINY, "--out", "o").exit_code == 0
    assert Path("o/examples.png").exists() == (image is not None)
    folder = Path("o").absolute()
    (folder / "results.json").unlink()  # as if killed just before it
    monkeypatch.chdir(tmp_path)
    done = command("attribute", "--resume", folder)
    assert done.exit_code == 0, done.stderr


@pytest.mark.usefixtures("here")
def test_the_index_of_a_parquet_is_named() -> None:
    table = pandas.DataFrame({"a": [1.0, 2, 3, 4], "label": list("xyxy")}, index=pandas.Index(range(4, 8), name="age"))
    table.to_parquet("d.parquet")
    assert load("d.parquet").notes == ("d.parquet: its index 'age' is no feature",)
    table.reset_index(drop=True).set_index("label").to_parquet("d.parquet")
    assert (load("d.parquet").classes, load("d.parquet").features) == (("x", "y"), ("a",))


VALUES = {
    "date": (datetime.date(2024, 1, 1), "got values of type date; needs numbers, such as the days since"),
    "bytes": (b"x", "got values of type bytes; needs numbers; --drop a leaves"),
    "list": ([1, 2], "got values of type ndarray; needs numbers; --drop a leaves"),
    "dict": ({"p": 1}, "got values of type dict; needs numbers; --drop a leaves"),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_column_of_other_objects_is_refused_by_the_type_of_its_values(
    here: Path, refused: Refused, name: str
) -> None:
    value, says = VALUES[name]
    table = pandas.DataFrame({"a": [value] * 8, "b": np.arange(8.0), "label": list("xy") * 4})
    table.to_parquet("d.parquet")
    refused(("attribute", "d.parquet"), f"column 'a': {says}")
    text = "needs numbers or text, as pandas' astype(str) makes"
    refused(("attribute", "d.parquet", "--one-hot", "a"), f"{says.split(';')[0]}; {text}")
    table.drop(columns="label").to_parquet("d.parquet")
    refused(("attribute", "d.parquet", "--label", "a"), f"{says.split(';')[0]}; {text}")
