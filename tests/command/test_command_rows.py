"""What the command says of the validation examples and of each row: numbers, ids and the rows' own values."""

import csv
import json
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import TINY, Command

from adamshap.reference import checkpoint
from adamshap.reference.command import folder
from adamshap.reference.command.datasets import load, load_valid
from adamshap.reference.command.examples import Field
from adamshap.reference.command.file_rows import FileRows, from_arrays, to_arrays
from adamshap.reference.command.report import fitting
from adamshap.reference.command.table import Reading

Refused = Callable[..., None]

# --- the number of validation examples -------------------------------------------------------------------------------


def many(count: int, name: str = "d.npz") -> str:
    y = np.arange(count) % 4 // 3  # three of class 0 to one of class 1
    np.savez(name, x=np.random.default_rng(0).normal(size=(count, 2)) + y[:, None], y=y)
    return name


@pytest.mark.parametrize(
    ("options", "count"),
    [((), 500), (("--valid-limit", "20"), 20), (("--valid-fraction", "0.3"), 900), (("--valid-limit", "2000"), 600)],
)
@pytest.mark.usefixtures("here")
def test_the_number_of_validation_examples(command: Command, options: tuple[str, ...], count: int) -> None:
    result = command("attribute", many(3000), "--steps", "1", "--hidden", "", *options, "--out", "o")
    assert (result.exit_code, result.stderr) == (0, "")
    said = " ".join(result.stdout.split())
    dataset = json.loads(Path("o/config.json").read_text())["dataset"]
    held_out = np.array(dataset["validation_index"])
    assert (len(held_out), dataset["train_examples"]) == (count, 3000 - count)
    assert np.sum(held_out % 4 == 3) == count // 4
    assert (f"At most {count} examples are held out" in said) == (count in (20, 500))


@pytest.mark.usefixtures("here")
def test_a_large_validation_file_is_taken_whole_and_its_cost_is_named(command: Command) -> None:
    for count in (2000, 2001):
        result = command("attribute", many(40), "--valid", many(count, "v.npz"), *TINY, "--out", f"o{count}")
        assert f" {count} for validation" in " ".join(result.stdout.split())
        assert (f"Every step looks at all {count} validation examples" in result.stdout) == (count > 2000)


@pytest.mark.usefixtures("here")
def test_a_run_of_an_older_version_without_the_limit_goes_on(command: Command) -> None:
    config = Path("o/config.json")
    assert command("attribute", many(3000), "--steps", "1", "--hidden", "", "--valid-fraction", "0.2", "--out", "o")
    older = json.loads(config.read_text())
    del older["options"]["valid_limit"]
    owner = checkpoint.digest(json.dumps(older).encode())
    config.write_text(json.dumps(older))
    for name in ("results.json", "scores.csv"):
        Path("o", name).unlink()
    for sealed in Path("o").rglob("*.npz"):
        with np.load(sealed) as archive:
            arrays = dict(archive)
        checkpoint.write(sealed, arrays, owner)
    assert command("attribute", "--resume", "o").exit_code == 0
    assert json.loads(Path("o/results.json").read_text())["status"] == "finished"


# --- the rows of a file ----------------------------------------------------------------------------------------------

READ = ("--label", "left", "--one-hot", "plan", "--drop", "note")


def shop(name: str = "shop.csv", rows: int = 40, first: str = "", end: str = "\n") -> list[dict[str, str]]:
    """Write a table of customers, some with a note of two lines and a blank line after it, and return its rows."""
    generator = np.random.default_rng(1)
    made = [
        {
            "customer": f"C-{1000 + row}",
            "plan": str(generator.choice(["basic", "premium"])),
            "score": f"{generator.normal():.2f}",
            "months": str(row),
            "note": f'"two"{end}lines' if row % 5 == 0 else "",
            "left": "yes" if generator.random() < 0.5 else "no",
        }
        for row in range(rows)
    ]
    with Path(name).open("w", newline="") as file:
        file.write(first)
        writer = csv.DictWriter(file, list(made[0]), lineterminator=end)
        writer.writeheader()
        for row in made:
            writer.writerow(row)
            file.write(end * (row["note"] != ""))
    return made


def scores(place: str) -> list[dict[str, str]]:
    with Path(place, "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("first", ["", "sep=,\n"])
@pytest.mark.usefixtures("here")
def test_a_line_is_that_of_an_editor(command: Command, first: str, end: str) -> None:
    shop(first=first, end=end)
    lines = Path("shop.csv").read_bytes().decode().splitlines()
    result = command("attribute", "shop.csv", *READ, "--id", "customer", *TINY, "--out", "o")
    assert (result.exit_code, result.stderr) == (0, "")
    for row in scores("o"):
        assert lines[int(row["line"]) - 1].startswith(f"{row['id']},")
    told = json.loads(command("show", "o", "--json").stdout)
    for example in (*told["helpful"], *told["harmful"]):
        assert lines[example["line"] - 1].startswith(f"{example['id']},")
        assert re.search(rf"^ *{example['line']} +{example['id']} ", result.stdout, re.M)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.usefixtures("here")
def test_each_row_has_its_own_values(command: Command, suffix: str) -> None:
    """In scores.csv, in the JSON and on the page; a name that is taken gets another one."""
    pandas = pytest.importorskip("pandas", reason="extra `tables`: pandas")
    rows = shop()
    if suffix == ".parquet":
        pandas.read_csv("shop.csv", dtype={"score": str}).astype({"score": float}).to_parquet("shop.parquet")
    result = command("attribute", f"shop{suffix}", *READ, "--id", "customer", *TINY, "--out", "o")
    assert (result.exit_code, result.stderr) == (0, "")
    Path(f"shop{suffix}").unlink()  # the folder has its own copy
    written = scores("o")
    for row in written:
        own = rows[int(row["index"])]
        assert (row["id"], row["label"], row["plan"], row["months"], row["note"]) == tuple(
            own[name] for name in ("customer", "left", "plan", "months", "note")
        )
        assert float(row["score (DATA)"]) == float(own["score"])
        assert float(row["score"]) != float(own["score"])
        assert ("line" in row) == (suffix == ".csv")
    told = json.loads(command("show", "o", "--json").stdout)
    assert command("show", "o", "--html", "o.html").exit_code == 0
    page = Path("o.html").read_text()
    for example in told["harmful"]:
        own = rows[example["index"]]
        assert example["id"] == own["customer"]
        assert list(example["values"]) == ["plan", "score", "months", "note"]
        assert (example["values"]["plan"], example["values"]["note"]) == (own["plan"], own["note"])
        assert f">{own['customer']}</td>" in page
    assert "features" in told["config"]["dataset"]
    assert told["config"]["dataset"]["features"] == ["plan=basic", "plan=premium", "score", "months"]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.usefixtures("here")
def test_as_many_columns_are_shown_as_fit(command: Command, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shop()
    result = command("attribute", "shop.csv", *READ, "--id", "customer", *TINY, "--out", "o")
    heads = [line.split() for line in result.stdout.splitlines() if line.split()[:2] == ["line", "customer"]]
    assert heads[0] == heads[1]
    assert heads[0][:4] == ["line", "customer", "label", "score"]
    tables = result.stdout.split("Most helpful")[1].split("Validation")[0]
    assert max(map(len, tables.splitlines())) <= width
    shown = {60: ["seen", "plan"], 80: ["plan", "score", "months", "note"]}.get(
        width, ["SGD", "score", "seen", "plan", "score", "months", "note"]
    )
    assert heads[0][4 : 4 + len(shown)] == shown
    assert ("for want of width" in tables) == (width < 120)


def test_room_that_is_left_goes_to_the_longest_values_first() -> None:
    own = [Field("a", ["1"], own=True), Field("b", ["x" * 30], own=True), Field("c", ["x" * 99], own=True)]
    fields = [Field("index", ["0"]), *own, Field("minor", ["0"], minor=True)]
    assert fitting(fields, 50) == {0: None, 1: 1, 2: 16, 3: 16}
    assert fitting(fields, 81) == {0: None, 1: 1, 2: 30, 3: 33}
    assert fitting(fields, 146) == {0: None, 1: 1, 2: 30, 3: 98}
    assert fitting(fields, 155) == {0: None, 1: 1, 2: 30, 3: 99, 4: None}


@pytest.mark.usefixtures("here")
def test_a_cell_cannot_move_the_cursor_or_widen_the_table(command: Command) -> None:
    with Path("d.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "t\nwo", "label"])
        writer.writerows([k, "\x1b[2J\r\n" + "wide " * 99, "xy"[k % 2]] for k in range(20))
    result = command("attribute", "d.csv", "--drop", "t\nwo", *TINY, "--out", "o")
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert max(map(len, result.stdout.split("Most helpful")[1].split("Validation")[0].splitlines())) <= 80
    assert "[2J wide wide" in result.stdout
    assert len({row["t\nwo"] for row in scores("o")}) == 1
    assert scores("o")[0]["t\nwo"] == "\x1b[2J\r\n" + ("wide " * 99).strip()


@pytest.mark.usefixtures("here")
def test_rows_that_are_left_out_take_nothing_along(command: Command) -> None:
    rows = shop()
    text = Path("shop.csv").read_text()
    for row in rows[::7]:
        text = text.replace(f"{row['customer']},{row['plan']},", f"{row['customer']},,")
    Path("shop.csv").write_text(text)
    options = (*READ, "--id", "customer", "--missing", "drop")
    assert command("attribute", "shop.csv", *options, *TINY, "--out", "o").exit_code == 0
    lines = text.splitlines()
    for row in scores("o"):
        assert row["id"] == rows[int(row["index"])]["customer"]
        assert lines[int(row["line"]) - 1].startswith(f"{row['id']},{row['plan']},")


# --- ids -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_an_id_is_no_feature_in_either_file() -> None:
    shop()
    reading = Reading(one_hot=("plan",), drop=("note", "customer"), id="customer")
    dataset = load("shop.csv", "left", reading=reading)
    assert dataset.features == ("plan=basic", "plan=premium", "score", "months")
    assert dataset.notes == ()
    text = Path("shop.csv").read_text()
    Path("v.csv").write_text(re.sub("C-[0-9]+", "C-1", text))  # in a validation file they may repeat
    assert np.array_equal(load_valid("v.csv", "left", dataset, reading).x, dataset.x)
    Path("v.csv").write_text(re.sub("^(C-[0-9]+|customer),", "", text, flags=re.M))
    assert np.array_equal(load_valid("v.csv", "left", dataset, reading).x, dataset.x)


@pytest.mark.usefixtures("here")
def test_ids_that_repeat_are_named_and_missing_ones_are_not(command: Command) -> None:
    shop()
    text = Path("shop.csv").read_text().replace("C-1003", "C-1001").replace("C-1004", "").replace("C-1006", "")
    Path("shop.csv").write_text(text)
    result = command("attribute", "shop.csv", *READ, "--id", "customer", *TINY, "--out", "o")
    assert result.exit_code == 0
    said = "shop.csv: the ids of 'customer' are not unique: 'C-1001' is on 2 rows"
    assert said in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--id", "name"), ["--id: got 'name'", "'customer'"]),
        (("--id", "left"), ["--id: got 'left', the label column"]),
        (("--id", "plan"), ["--one-hot: got 'plan' with --id"]),
    ],
)
def test_ids_that_are_refused(refused: Refused, options: tuple[str, ...], words: list[str]) -> None:
    shop()
    refused(("attribute", "shop.csv", *READ, *options), *words)


def test_an_id_needs_a_file_with_columns(refused: Refused) -> None:
    refused(("attribute", "wine", "--id", "name"), "--id: got 'name' with 'wine'", ".csv")


# --- what is kept in the folder --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [None, np.array([2, 5])])
@pytest.mark.parametrize("ids", [None, ["é", ""]])
def test_rows_survive_as_arrays(lines: Any, ids: Any) -> None:
    rows = FileRows({"a": ["", "ü\n\U0001f600"], "text[0]": ["x", ""], "lone": ["\ud800", "y"]}, lines, ids)
    again = from_arrays(to_arrays(rows))
    assert (again.columns, again.ids) == (rows.columns, rows.ids)
    assert np.array_equal(again.lines, lines) if lines is not None else again.lines is None
    assert from_arrays(to_arrays(rows.take(np.array([1])))).row(0) == rows.row(1)


@pytest.mark.usefixtures("here")
def test_a_resumed_run_writes_the_same_rows(command: Command) -> None:
    shop()
    assert command("attribute", "shop.csv", *READ, "--id", "customer", *TINY, "--out", "o").exit_code == 0
    before = Path("o/scores.csv").read_bytes()
    for name in ("results.json", "scores.csv"):
        Path("o", name).unlink()
    unfinished = folder.read(Path("o"))
    assert unfinished.in_file is not None
    assert command("attribute", "--resume", "o").exit_code == 0
    assert Path("o/scores.csv").read_bytes() == before
    Path("o/results.json").unlink()
    damage(Path("o/rows.npz"))
    assert command("attribute", "--resume", "o").exit_code == 0  # which writes the rows again
    assert Path("o/scores.csv").read_bytes() == before
    assert folder.read(Path("o")).in_file is not None


@pytest.mark.usefixtures("here")
def test_rows_damaged_during_a_run_cost_no_results(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    shop()
    assert command("attribute", "shop.csv", *READ, "--id", "customer", *TINY, "--out", "o").exit_code == 0
    with closing(folder.open_to_write(Path("o"), "a test")) as opened:
        damage(Path("o/rows.npz"))
        assert opened.in_file() is None
    assert "rows.npz' is damaged, or not a file of adamshap; scores.csv lacks the values" in capsys.readouterr().err


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# --- the length of the lists -----------------------------------------------------------------------------------------


def test_the_lists_are_as_long_as_asked(here: Path, command: Command) -> None:
    shown = command("attribute", "wine", *TINY, "--out", "o", "--top", 3).stdout
    assert len(re.findall(r"^ +\d+ +class_", shown, re.M)) == 6
    assert len(re.findall(r"^ +\d+ +class_", command("show", "o", "--top", "17").stdout, re.M)) == 34
    for call in (("show", "o"), ("attribute", "--resume", "o")):
        told = json.loads(command(*call, "--json", "--top", 4).stdout)
        assert (len(told["helpful"]), len(told["harmful"])) == (4, 4)
    assert command("show", "o", "--html", "o.html", "--top", "5").exit_code == 0
    page = (here / "o.html").read_text()
    assert len(re.findall(r'<tr><td>\d+</td><td class="word short">class_', page)) == 10


def test_what_a_score_means_comes_first(here: Path, command: Command) -> None:
    shown = " ".join(command("attribute", "wine", *TINY, "--out", "o").stdout.split())
    meaning = "A positive score means that the example lowered the loss on the validation examples."
    assert meaning + " Every step counts alike" in shown.split("Most helpful")[0]
    assert meaning + " Every step counts alike" in " ".join(command("show", "o").stdout.split())
    assert command("show", "o", "--html", "o.html").exit_code == 0
    page = (here / "o.html").read_text()
    assert page.index(meaning) < page.index("<svg")
    assert page.count("A positive score") == 1


def test_show_measures_the_network_as_the_run_did(here: Path, command: Command) -> None:
    shown = command("attribute", "wine", *TINY, "--out", "o").stdout
    part = shown.split("Validation ")[1].splitlines()[:7]
    assert [line.split()[0] for line in part if line.strip()][2:] == ["loss", "accuracy", "ROC"]
    assert command("show", "o").stdout.split("Validation ")[1].splitlines()[:7] == part
    assert command("show", "o", "--html", "o.html").exit_code == 0
    found = json.loads((here / "o" / "results.json").read_text())
    assert f"<td>{found['after']['roc_auc']:.4f}</td>" in (here / "o.html").read_text()


def test_no_column_of_the_file_takes_the_place_of_another(command: Command, here: Path) -> None:
    """A file may have columns named as those that a taken name becomes."""
    names = ["score", "score (DATA)", "score (DATA) (DATA)"]
    rows = [f"{n},{100 + n},{200 + n},{'yn'[n % 2]}" for n in range(20)]
    (here / "t.csv").write_text("\n".join([",".join([*names, "label"]), *rows]))
    assert command("attribute", "t.csv", *TINY, "--out", "o").exit_code == 0
    with (here / "o" / "scores.csv").open(newline="") as file:
        header, *found = csv.reader(file)
    assert header[-3:] == ["score (DATA) (DATA) (DATA)", *names[1:]]
    assert len(set(header)) == len(header)
    assert all([int(cell) for cell in row[-3:]] == [int(row[0]) + shift for shift in (0, 100, 200)] for row in found)


def test_no_code_of_the_data_reaches_the_terminal(command: Command, here: Path) -> None:
    """Labels, ids and groups with escape sequences and line breaks."""
    rows = [f'{n},"\x1b[3{n % 3}mg\nx","id\x1b[2J{n}","{"ab"[n % 2]}\x1b[1m\nl"' for n in range(40)]
    (here / "t.csv").write_text("\n".join(["a,source,id,label", *rows]))
    options = ("--group", "source", "--id", "id", "--out", "o")
    outputs = [command("attribute", "t.csv", *TINY, *options).stdout, command("show", "o").stdout]
    row = folder.read(here / "o").config["dataset"]["validation_index"][0]
    outputs.append(command("show", "o", "--explain", row).stdout)
    for text in outputs:
        assert "\x1b" not in text
        assert "[1m l" in text
    assert "[31mg x" in outputs[0]
