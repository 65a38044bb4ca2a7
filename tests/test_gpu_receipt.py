"""Receipts of runs on a real GPU, tested without a GPU: from invented facts, in temporary folders."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from adamshap.verify import receipt
from adamshap.verify.receipt import Machine, Receipt

REPOSITORY = Path(__file__).parents[1]
RECEIPTS = REPOSITORY / "docs" / "gpu-receipts"
MACHINE = Machine(card="Made-up GPU 80GB", driver="13.2", cuda="13.0", cupy="14.2.0")


def a_receipt(**changes: Any) -> Receipt:
    fields: dict[str, Any] = {
        "date": "2026-05-31",
        "machine": MACHINE,
        "source": "0" * 64,
        "passed": 3,
        "largest_errors": {"additivity": 1e-7},
        "throughput": {"secant": 0.95},
    }
    return Receipt(**(fields | changes))


@pytest.fixture
def schema() -> Any:
    return json.loads(receipt.SCHEMA_FILE.read_text())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "gpu"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.py").write_text("a = 1\n")
    (folder / "sub" / "b.cu").write_text("// b\n")
    return folder


def test_a_receipt_comes_back_as_it_was_written(tmp_path: Path) -> None:
    file = receipt.write(tmp_path / "new" / "folder", a_receipt())
    assert file.name == "2026-05-31-made-up-gpu-80gb-00000000.json"
    assert receipt.read(file) == a_receipt()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_what_is_written_follows_the_schema(tmp_path: Path, schema: Any) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(receipt.write(tmp_path, a_receipt()).read_text()), schema)


def test_the_schema_has_the_fields_of_the_receipt(schema: Any) -> None:
    for kind, part in ((Receipt, schema), (Machine, schema["properties"]["machine"])):
        names = [field.name for field in dataclasses.fields(kind)]
        assert list(part["properties"]) == part["required"] == names


BAD_VALUES: list[tuple[str, Any]] = [
    ("date", "31.5.2026"),
    ("date", ""),
    ("source", "0" * 63),
    ("source", "G" * 64),
    ("passed", 0),
    ("largest_errors", {"x": -1.0}),
    ("throughput", {"x": "fast"}),
    ("stages", {"smoke": "fine"}),
    ("failed", [1]),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_bad_values_are_refused_by_receipt_and_schema(tmp_path: Path, schema: Any, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"Receipt\.{name}"):
        a_receipt(**{name: value})
    content = json.loads(receipt.write(tmp_path, a_receipt()).read_text()) | {name: value}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)
    (tmp_path / "bad.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"bad\.json: no receipt"):
        receipt.read(tmp_path / "bad.json")


# Receipts that agree only with the schema, or only with the checks of `Receipt`.
CONTRADICTIONS: list[tuple[str, dict[str, Any]]] = [
    ("partial", {"partial": True}),
    ("partial", {"partial": True, "stages": {"smoke": "failed"}}),
    ("partial", {"stages": {"smoke": "passed", "suite": "cut short"}}),
    ("partial", {"stages": {"smoke": "passed", "suite": "not run"}}),
    ("rehearsal", {"rehearsal": True}),
    ("rehearsal", {"machine": dataclasses.replace(MACHINE, card=receipt.EMULATED)}),
]


@pytest.mark.parametrize(("name", "changes"), CONTRADICTIONS)
def test_contradictions_are_refused(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"Receipt\.{name}"):
        a_receipt(**changes)
    file = receipt.write(tmp_path, a_receipt())
    machine = changes.get("machine", MACHINE)
    file.write_text(json.dumps(json.loads(file.read_text()) | changes | {"machine": dataclasses.asdict(machine)}))
    with pytest.raises(ValueError, match="no receipt"):
        receipt.read(file)


PARTIAL: dict[str, Any] = {"stages": {"smoke": "passed", "suite": "cut short", "edges": "not run"}, "partial": True}


def test_a_partial_receipt_comes_back_and_follows_the_schema(tmp_path: Path, schema: Any) -> None:
    partial = a_receipt(**PARTIAL, passed=0)
    file = receipt.write(tmp_path, partial)
    assert receipt.read(file) == partial
    assert partial.missing == ["suite", "edges"]
    jsonschema.validate(json.loads(file.read_text()), schema)


def test_only_a_whole_receipt_without_failures_verifies() -> None:
    assert a_receipt().verifies
    assert a_receipt(stages={"smoke": "passed"}).verifies
    assert not a_receipt(**PARTIAL).verifies
    assert not a_receipt(stages={"smoke": "failed"}, failed=["smoke: update"]).verifies


def test_a_rehearsals_receipt_is_refused_by_reader_and_schema(tmp_path: Path, schema: Any) -> None:
    machine = dataclasses.replace(MACHINE, card=receipt.EMULATED)
    file = receipt.write(tmp_path, a_receipt(machine=machine, rehearsal=True))
    assert file.name.startswith("rehearsal-")
    with pytest.raises(ValueError, match="comes from a rehearsal on CuPy on CPU; needs a run on a real GPU"):
        receipt.read(file)
    content = json.loads(file.read_text())
    for honest in ({"rehearsal": False}, {"machine": dataclasses.asdict(MACHINE)}):  # one of its two marks removed
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(content | honest, schema)
        file.write_text(json.dumps(content | honest))
        with pytest.raises(ValueError, match="no receipt"):
            receipt.read(file)


def test_an_error_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="largest_errors"):
        a_receipt(largest_errors={"x": float("nan")})


def test_a_receipt_with_a_field_missing_or_too_many_is_refused(tmp_path: Path) -> None:
    file = receipt.write(tmp_path, a_receipt())
    whole = json.loads(file.read_text())
    broken: list[object] = [{**whole, "extra": 1}, {k: v for k, v in whole.items() if k != "machine"}, []]
    for content in broken:
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match="no receipt"):
            receipt.read(file)


def test_the_newest_receipt_is_the_one_of_the_latest_date(tmp_path: Path) -> None:
    assert receipt.newest(tmp_path) is None
    for date in ("2026-02-01", "2026-10-01", "2026-09-30"):
        receipt.write(tmp_path, a_receipt(date=date))
    newest = receipt.newest(tmp_path)
    assert newest is not None
    assert newest.date == "2026-10-01"


def test_the_newest_receipt_is_one_that_verifies_if_any_does(tmp_path: Path) -> None:
    receipt.write(tmp_path, a_receipt(date="2026-10-01", **PARTIAL))
    assert receipt.newest(tmp_path) == a_receipt(date="2026-10-01", **PARTIAL)
    receipt.write(tmp_path, a_receipt(date="2026-02-01"))
    assert receipt.newest(tmp_path) == a_receipt(date="2026-02-01")


def test_the_hash_is_of_names_and_contents_of_sources(source: Path) -> None:
    before = receipt.source_hash(source)
    (source / "notes.txt").write_text("no source")
    (source / "__pycache__").mkdir()
    (source / "__pycache__" / "a.pyc").write_bytes(b"no source")
    assert receipt.source_hash(source) == before
    (source / "a.py").rename(source / "c.py")
    renamed = receipt.source_hash(source)
    (source / "c.py").write_text("a = 2\n")
    assert len({before, renamed, receipt.source_hash(source)}) == 3


def test_a_receipt_of_other_code_is_stale(source: Path) -> None:
    today = a_receipt(source=receipt.source_hash(source))
    assert receipt.why_stale(today, source) is None
    (source / "a.py").write_text("a = 3\n")
    reason = receipt.why_stale(today, source)
    assert reason is not None
    assert "2026-05-31, Made-up GPU 80GB" in reason
    assert receipt.why_stale(None, source) == "not yet verified on a GPU: there is no receipt"
    partial = a_receipt(source=receipt.source_hash(source), **PARTIAL)
    assert receipt.why_stale(partial, source) == receipt.verified_line(partial)


def test_only_a_receipt_says_verified() -> None:
    assert receipt.verified_line(None) == "not yet verified on a GPU"
    assert receipt.verified_line(a_receipt()) == "verified on a GPU: 2026-05-31, Made-up GPU 80GB"
    assert receipt.verified_line(a_receipt(**PARTIAL)) == (
        "not yet verified on a GPU: the newest receipt (2026-05-31, Made-up GPU 80GB) lacks suite, edges"
    )
    found = a_receipt(stages={"smoke": "failed"}, failed=["smoke: update", "smoke: slope sgd"])
    assert receipt.verified_line(found) == (
        "not yet verified on a GPU: the newest receipt (2026-05-31, Made-up GPU 80GB) has failed checks (2)"
    )


def test_cupy_on_the_cpu_has_no_receipt(cupy_on_cpu: Any) -> None:
    with pytest.raises(RuntimeError, match="a receipt needs a real GPU: this is CuPy on CPU"):
        receipt.this_machine()


# --- this repository's own receipts -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default:.*GPU.*:UserWarning")
def test_every_receipt_is_valid_and_an_old_one_warns(schema: Any) -> None:
    for file in RECEIPTS.glob("*.json"):
        jsonschema.validate(json.loads(file.read_text()), schema)
    reason = receipt.why_stale(receipt.newest(RECEIPTS), REPOSITORY / "gpu")
    if reason is not None:
        warnings.warn(reason, UserWarning, stacklevel=1)


def test_the_readme_says_what_the_newest_receipt_says() -> None:
    line = receipt.verified_line(receipt.newest(RECEIPTS))
    assert f"The GPU path is {line}." in (REPOSITORY / "README.md").read_text()
