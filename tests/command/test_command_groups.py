"""``--group COLUMN``: groups are read as they are meant, scored with intervals that hold, and shown alike."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_helpers import TINY, Command
from rich.console import Console
from scipy import stats

from adamshap.reference.command import folder, report
from adamshap.reference.command.groups import GroupScore, group_rows, over_examples, over_seeds
from adamshap.reference.contract import Array

Refused = Callable[..., None]
CONFIDENCE = 0.95


# --- the numbers -----------------------------------------------------------------------------------------------------


def columns_of(generator: np.random.Generator, sizes: dict[str, int], **means: float) -> dict[str, Array]:
    names = np.repeat(list(sizes), list(sizes.values()))
    score = generator.normal(size=len(names)) + np.array([means.get(name, 0.0) for name in names])
    return {"group": names, "score": score}


def named(groups: tuple[GroupScore, ...]) -> dict[str, GroupScore]:
    return {group.name: group for group in groups}


def test_numbers_of_a_group_are_those_of_scipy() -> None:
    columns = columns_of(np.random.default_rng(1), {"a": 7, "b": 30, "c": 12}, b=1.0)
    columns["total"] = 3 * columns["score"]
    level = 1 - (1 - CONFIDENCE) / 3  # of each, so that all three hold together
    scores = over_examples("source", columns)
    assert [group.mean for group in scores.groups] == sorted(group.mean for group in scores.groups)
    for name, group in named(scores.groups).items():
        own, others = (columns["score"][mask] for mask in (columns["group"] == name, columns["group"] != name))
        interval = stats.ttest_1samp(own, 0).confidence_interval(level)
        difference = stats.ttest_ind(own, others, equal_var=False).confidence_interval(level)
        assert (group.low, group.high) == pytest.approx(tuple(interval))
        assert (group.others_low, group.others_high) == pytest.approx(tuple(difference))
        assert (group.mean, group.others) == pytest.approx((own.mean(), others.mean()))
        assert (group.examples, group.harmful) == (len(own), int((own < 0).sum()))
        assert group.total == pytest.approx(3 * own.sum())


def test_over_seeds_only_the_runs_vary() -> None:
    generator = np.random.default_rng(2)
    runs = [columns_of(generator, {"a": 5, "b": 9}, a=-1.0) for _ in range(4)]
    level = 1 - (1 - CONFIDENCE) / 2
    scores = over_seeds("source", runs)
    assert (scores.over, scores.runs) == ("seeds", 4)
    for name, group in named(scores.groups).items():
        means, rests = (
            np.array([run["score"][(run["group"] == name) == own].mean() for run in runs]) for own in (True, False)
        )
        assert (group.low, group.high) == pytest.approx(tuple(stats.ttest_1samp(means, 0).confidence_interval(level)))
        paired = stats.ttest_1samp(means - rests, 0).confidence_interval(level)
        assert (group.others_low, group.others_high) == pytest.approx(tuple(paired))
        average = np.mean([run["score"] for run in runs], axis=0)[runs[0]["group"] == name]
        assert (group.mean, group.total) == pytest.approx((average.mean(), average.sum()))
        assert group.harmful == int((average < 0).sum())


def test_groups_alike_are_told_apart_as_rarely_as_the_confidence_says() -> None:
    """400 tables of six groups alike: in 5 % any of them stands out, and not, as for single intervals, in 26 %."""
    generator = np.random.default_rng(3)
    sizes = {name: 20 + 10 * number for number, name in enumerate("abcdef")}
    effect = others = 0
    for _ in range(400):
        groups = over_examples("source", columns_of(generator, sizes)).groups
        effect += any(group.effect != "unclear" for group in groups)
        others += any(group.against_others != "unclear" for group in groups)
    assert 0.02 < effect / 400 < 0.08
    assert 0.02 < others / 400 < 0.08


def test_what_can_be_told_and_what_cannot() -> None:
    sizes = {"bad": 200, "good": 200, "one": 1, "same": 200}
    columns = columns_of(np.random.default_rng(4), sizes, bad=-1.0, good=1.0, one=-90.0)
    groups = named(over_examples("source", columns).groups)
    told = {name: (group.effect, group.against_others) for name, group in groups.items()}
    assert told["good"] == ("helps", "better")
    assert told["bad"] == ("hurts", "worse")
    assert told["one"] == ("unclear", "unclear")  # a single example has no spread
    assert groups["one"].low is None
    assert groups["one"].others_low is None


def test_a_group_that_is_all_that_was_trained_on_has_no_others() -> None:
    columns = columns_of(np.random.default_rng(5), {"a": 30}, a=5.0)
    for scores in (over_examples("source", columns), over_seeds("source", [columns, columns])):
        (group,) = scores.groups
        assert (group.effect, group.against_others) == ("helps", "unclear")
        assert group.others is None
        json.dumps(scores.as_json(), allow_nan=False)


def test_of_many_groups_the_table_has_the_worst_and_the_best() -> None:
    sizes = {f"g{number:02}": 2 for number in range(50)}
    means = {name: float(place) for place, name in enumerate(sizes)}
    columns = {"group": np.repeat(list(sizes), 2), "score": np.repeat(list(means.values()), 2)}
    title, _, rows, _ = group_rows(over_examples("month", columns))
    assert "20 of 50" in title
    assert [row[0] for row in rows] == [f"g{number:02}" for number in (*range(10), *range(40, 50))]


@pytest.mark.parametrize("name", ["grp{:03}", "annotator-{:03}@example.com"])
def test_names_of_groups_are_whole_whatever_the_intervals(name: str) -> None:
    """Of 200 groups of two examples, whose intervals are hundreds of times the means, in 80 columns."""
    names = np.repeat([name.format(number) for number in range(200)], 2)
    score = np.random.default_rng(0).normal(size=400)
    scores = over_examples("annotator", {"group": names, "score": score, "total": score / 1e5})
    output = io.StringIO()
    report.groups(Console(file=output, width=80), scores)
    text = output.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    first = text.splitlines()[5:]
    shown = "".join(line.split()[0] for line in first[:2]) if "@" in name else first[0].split()[0]
    assert shown.startswith(scores.groups[0].name)
    assert "Not shown, for want of width: 'harmful'" in text
    assert re.search(r"± \d{3,}  ", text)  # no decimals


def test_a_narrow_terminal_leaves_columns_out_before_it_breaks_short_names() -> None:
    scores = over_examples("site", {"group": np.repeat(["northern", "southern"], 9), "score": np.arange(18.0) / 9})
    for width, hidden in ((80, ""), (65, "'harmful'"), (60, "'harmful', 'others'"), (50, "'sum', 'harmful', 'others'")):
        output = io.StringIO()
        report.groups(Console(file=output, width=width), scores)
        text = output.getvalue()
        assert re.search("^ northern .* ± ", text, re.M)
        assert max(map(len, text.splitlines())) <= width
        assert (f"Not shown, for want of width: {hidden} mean: " in " ".join(text.split())) == bool(hidden)


# --- the decision ----------------------------------------------------------------------------------------------------


def planted(path: Path, seed: int) -> None:
    """Write a table of four sources, in which the labels of "partner" are random."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(600, 3))
    source = np.array(["app", "partner", "shop", "web"])[generator.integers(0, 4, 600)]
    y = x @ [2.0, -1.0, 1.0] > 0
    bad = source == "partner"
    y[bad] = generator.random(bad.sum()) < 0.5
    rows = [f"{a:.5f},{b:.5f},{c:.5f},{s},{'yes' if k else 'no'}" for (a, b, c), s, k in zip(x, source, y, strict=True)]
    path.write_text("\n".join(["a,b,c,source,churned", *rows]) + "\n")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_source_with_random_labels_comes_out_worst(command: Command, here: Path, seed: int) -> None:
    planted(here / "churn.csv", seed)
    result = command(
        *("attribute", "churn.csv", "--label", "churned", "--group", "source", "--hidden", "16", "--epochs", 3),
        *("--seed", seed, "--json"),
    )
    groups = json.loads(result.stdout)["by_group"]["groups"]
    assert [groups[0]["name"], groups[0]["against_others"]] == ["partner", "worse"]
    assert [group["against_others"] for group in groups[1:]].count("worse") == 0
    assert all(group["effect"] == "helps" for group in groups[1:])


# --- reading ---------------------------------------------------------------------------------------------------------


def table(path: str, group: list[str], head: str = "source") -> None:
    rows = [f"{number % 7},{name},{'xy'[number % 2]}" for number, name in enumerate(group)]
    Path(path).write_text("\n".join([f"a,{head},label", *rows]) + "\n")


def groups_kept(path: Path) -> list[str]:
    with np.load(path / "scores.npz", allow_pickle=False) as archive:
        return [str(name) for name in archive["group"]]


def test_a_group_is_kept_as_text_beside_its_example_and_is_no_feature(command: Command, here: Path) -> None:
    names = ["007", "7", "NA", "web"] * 10
    table("t.csv", names)
    result = command("attribute", "t.csv", "--group", "source", *TINY, "--out", "run")
    assert "Groups by source: 4; it is no feature." in result.stdout
    config = json.loads((here / "run" / "config.json").read_text())
    assert config["dataset"]["features"] == ["a"]
    assert config["options"]["group"] == "source"
    assert config["dataset"]["groups"] == ["(no value)", "007", "7", "web"]
    index = folder.read(here / "run").columns["index"]
    assert groups_kept(here / "run") == [names[row].replace("NA", "(no value)") for row in index]
    with (here / "run" / "scores.csv").open(newline="") as file:
        assert [row["group"] for row in csv.DictReader(file)] == groups_kept(here / "run")


def test_a_group_that_is_one_hot_too_is_a_feature(command: Command, here: Path) -> None:
    table("t.csv", ["app", "web"] * 20)
    result = command("attribute", "t.csv", "--group", "source", "--one-hot", "source", *TINY, "--out", "run")
    assert "it is also a feature" in result.stdout
    assert json.loads((here / "run" / "config.json").read_text())["dataset"]["features"] == [
        "a",
        "source=app",
        "source=web",
    ]


def test_groups_follow_the_rows_that_remain(command: Command, here: Path) -> None:
    names = ["app", "web", "shop", "web"] * 10
    table("t.csv", names)
    text = Path("t.csv").read_text().splitlines()
    text[3] = text[3].replace("2,", ",", 1)  # row 2, a shop's, has no value of a
    Path("t.csv").write_text("\n".join(text) + "\n")
    command("attribute", "t.csv", "--group", "source", "--missing", "drop", *TINY, "--out", "run")
    index = folder.read(here / "run").columns["index"]
    assert 2 not in index
    assert groups_kept(here / "run") == [names[row] for row in index]


def test_the_validation_file_needs_no_groups(command: Command, here: Path) -> None:
    table("t.csv", ["app", "web"] * 10)
    table("same.csv", ["other", "values"] * 10)
    Path("without.csv").write_text("a,label\n1,x\n2,y\n")
    for number, valid in enumerate(("same.csv", "without.csv")):
        assert command("attribute", "t.csv", "--group", "source", "--valid", valid, *TINY, "--out", f"{number}")
        assert groups_kept(here / str(number)) == ["app", "web"] * 10


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array(["app", "web"] * 10), ["app", "web"] * 10),
        (np.array([3, 12] * 10, np.int16), ["3", "12"] * 10),
        (np.array([2024.0, np.nan] * 10), ["2024", "(no value)"] * 10),
        (np.array([True, False] * 10), ["True", "False"] * 10),
    ],
)
def test_an_array_of_an_archive_is_a_group(command: Command, here: Path, values: Array, expected: list[str]) -> None:
    x = np.arange(40.0).reshape(20, 2)
    np.savez("t.npz", x=x, y=[0, 1] * 10, who=values)
    np.savez("v.npz", x=x, y=[0, 1] * 10)
    command("attribute", "t.npz", "--group", "who", "--valid", "v.npz", *TINY, "--out", "run")
    assert groups_kept(here / "run") == expected


def test_a_column_of_a_parquet_file_is_a_group(command: Command, here: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="extra `tables`: pandas")
    frame = pandas.DataFrame({"a": range(20), "month": [1, 2] * 10, "label": ["x", "y"] * 10})
    frame.to_parquet("t.parquet")
    command("attribute", "t.parquet", "--group", "month", *TINY, "--out", "run")
    index = folder.read(here / "run").columns["index"]
    assert groups_kept(here / "run") == [str(1 + row % 2) for row in index]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("t.csv", "--group", "town"), ("--group: got 'town'", "'a', 'source', 'label'")),
        (("t.csv", "--group", "label"), ("--group: got 'label', the label column",)),
        (("t.csv", "--group", "same"), ("--group: got 'same'",)),
        (("one.csv", "--group", "source"), ("'source'", "has 1 different value; needs 2 to 1000")),
        (("ids.csv", "--group", "source"), ("'source'", "has 1040 different values; needs 2 to 1000")),
        (("t.npz", "--group", "who"), ("--group: got 'who'; needs one of 'x', 'y', 'short'",)),
        (("t.npz", "--group", "short"), ("'short'", "shape (3,)", "(20,)")),
        (("x.npy,y.npy", "--group", "who"), ("--group: got 'who' with 'x.npy,y.npy'", ".npz")),
        (("wine", "--group", "origin", "--valid", "t.csv"), ("--group: got 'origin' with 'wine'",)),
        (("only.csv", "--group", "source"), ("got only columns of labels and groups",)),
    ],
)
def test_groups_that_cannot_be(
    here: Path, refused: Refused, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    del here
    table("t.csv", ["app", "web"] * 10)
    table("one.csv", ["app"] * 20)
    table("ids.csv", list(map(str, range(1040))))
    Path("only.csv").write_text("source,label\napp,x\nweb,y\n")
    np.savez("t.npz", x=np.zeros((20, 2)), y=[0, 1] * 10, short=[1, 2, 3])
    refused(("attribute", *arguments, *TINY), *words)


# --- showing ---------------------------------------------------------------------------------------------------------


def by_group(command: Command, *arguments: object) -> Any:
    return json.loads(command(*arguments, "--json").stdout)["by_group"]


def test_terminal_json_and_page_agree(command: Command, here: Path) -> None:
    table("t.csv", ["<app>", "web", "shop"] * 15)
    run = command("attribute", "t.csv", "--group", "source", *TINY, "--out", "run")
    found = by_group(command, "show", "run")
    columns = folder.read(here / "run").columns
    expected = over_examples("source", columns).as_json()
    assert found == expected
    assert (found["column"], found["interval_over"], len(found["groups"])) == ("source", "examples", 3)
    shown = command("show", "run")
    command("show", "run", "--html", "page.html")
    page = (here / "page.html").read_text()
    _, _, rows, reading = group_rows(over_examples("source", columns))
    for text in (run.stdout, shown.stdout):
        lines = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
        assert [line for line in lines if line[0] in columns["group"]] == rows
        assert " ".join(reading) in " ".join(text.split())
    assert "&lt;app&gt;" in page
    assert "<app>" not in page
    assert 'aria-label="Mean scores of the groups by source"' in page
    assert [row[2] in page for row in rows] == [True] * 3


@pytest.mark.parametrize("data", ["t.csv", "t.npz"])
def test_examples_have_their_group_beside_their_label(command: Command, here: Path, data: str) -> None:
    names = np.array(["app", "web"])[np.arange(60) // 7 % 2]
    table("t.csv", names.tolist())
    np.savez("t.npz", x=np.arange(120.0).reshape(60, 2), y=[0, 1] * 30, source=names)
    command("attribute", data, "--group", "source", *TINY, "--out", "run")
    place = "line" if data == "t.csv" else "index"
    for row in json.loads(command("show", "run", "--json").stdout)["helpful"]:
        assert row["group"] == names[row["index"]]
    lines = [line.split() for line in command("show", "run").stdout.splitlines()]
    heads = [line for line in lines if line[:1] == [place]]
    assert [line[:4] for line in heads] == [[place, "label", "source", "score"]] * 2
    assert [line.count("source") for line in heads] == [1, 1]
    shown = [line for line in lines if len(line) > 5 and line[0].isdigit()]
    assert len(shown) == 20
    assert [line[2] for line in shown] == [names[int(line[0]) - 2 * (place == "line")] for line in shown]
    command("show", "run", "--html", "page.html")
    assert (here / "page.html").read_text().count(">source</th>") == 2


def test_over_seeds_the_intervals_are_those_of_the_runs(command: Command, here: Path) -> None:
    """Of three runs, as the terminal of ``--seeds 3`` and ``show`` of its folder have them."""
    table("t.csv", ["app", "web", "shop"] * 15)
    ran = command("attribute", "t.csv", "--group", "source", *TINY, "--seeds", 3, "--out", "all", "--json")
    assert ran.exit_code == 0, ran.stderr
    runs = [folder.read(here / "all" / f"seed-{seed}").columns for seed in range(3)]
    expected = over_seeds("source", runs).as_json()
    assert (expected["interval_over"], expected["runs"], len(expected["groups"])) == ("seeds", 3, 3)
    assert json.loads(ran.stdout)["by_group"] == expected
    assert by_group(command, "show", "all") == expected
    assert "over the 3 runs" in " ".join(command("show", "all").stdout.split())
    for group in expected["groups"]:
        means = [run["score"][run["group"] == group["name"]].mean() for run in runs]
        assert group["low"] < np.mean(means) < group["high"]


def test_a_run_without_groups_has_none(command: Command) -> None:
    table("t.csv", ["0", "1"] * 10)
    run = command("attribute", "t.csv", *TINY, "--out", "run")
    assert "Groups" not in run.stdout
    assert by_group(command, "show", "run") is None
    assert "Groups" not in command("show", "run").stdout


def test_a_resumed_run_keeps_its_groups(command: Command, here: Path) -> None:
    table("t.csv", ["app", "web"] * 10)
    command("attribute", "t.csv", "--group", "source", *TINY, "--out", "whole")
    command("attribute", "t.csv", "--group", "source", *TINY, "--out", "part")
    for name in ("results.json", "scores.csv"):
        (here / "part" / name).unlink()
    for path in (here / "part" / "checkpoints").iterdir():
        path.unlink()
    assert command("attribute", "--resume", "part").exit_code == 0
    assert by_group(command, "show", "part") == by_group(command, "show", "whole")


def test_a_run_of_a_version_without_groups_can_be_resumed(command: Command, here: Path) -> None:
    np.savez("t.npz", x=np.arange(40.0).reshape(20, 2), y=[0, 1] * 10)
    command("attribute", "t.npz", *TINY, "--out", "old")
    path = here / "old" / "config.json"
    config = json.loads(path.read_text())
    del config["options"]["group"], config["dataset"]["groups"]
    path.write_text(json.dumps(config))
    for name in ("results.json", "scores.csv", "scores.npz"):
        (here / "old" / name).unlink()
    digest = folder.checkpoint.digest(path.read_bytes())
    folder.checkpoint.write(here / "old" / "scores.npz", {"step": np.array(0)}, digest)
    for kept in ("checkpoints", "history"):
        for sealed in (here / "old" / kept).iterdir():
            sealed.unlink()
    result = command("attribute", "--resume", "old")
    assert result.exit_code == 0, result.stderr
