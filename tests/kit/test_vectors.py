"""The portable test vectors: they are reproducible; they expose every fault; a damaged folder is one error."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamshap.reference.contract import (
    ACTIVATIONS,
    GRADIENTS,
    LOSSES,
    MARGINAL_LOSSES,
    MARGINALS,
    REDUCTIONS,
    SCORE_SLOPES,
)
from adamshap.verify.cases import case_to_json, dumps
from adamshap.verify.faults import BY_NAME
from adamshap.verify.implementation import FUNCTIONS
from adamshap.verify.oracle import bounds, expected
from adamshap.verify.tolerance import assert_within
from adamshap.verify.vector_cases import COMPLETED, planned
from adamshap.verify.vector_files import (
    FILES,
    FOLDER,
    SUMS,
    VectorError,
    disagreements,
    export,
    make,
    misses,
    read,
    vector_to_json,
    write,
)

ROOT = Path(__file__).parent.parent.parent
COMMITTED = ROOT / "verify" / "vectors" / "v1"
VECTORS = sorted(read(COMMITTED), key=lambda vector: vector.seed)  # in the order of the plan
PARTS = 12
"""Number of tests over which the vectors are spread: one test per function would take from seconds to a minute."""
in_parts = pytest.mark.parametrize("part", range(PARTS))
SCHEMA = json.loads((COMMITTED / "schema.json").read_text(encoding="utf-8"))


def of(function: str) -> list[Any]:
    return [vector for vector in VECTORS if vector.query.function == function]


# --- reproduced ------------------------------------------------------------------------------------------------------


def test_the_inputs_are_reproduced_to_the_last_bit() -> None:
    plans = list(planned())
    assert [(plan.name, plan.seed) for plan in plans] == [(vector.name, vector.seed) for vector in VECTORS]
    for plan, vector in zip(plans, VECTORS, strict=True):
        assert dumps(case_to_json(plan.step, plan.query)) == dumps(case_to_json(vector.step, vector.query)), plan.name


def test_the_oracle_reproduces_every_answer() -> None:
    assert disagreements(VECTORS) == []


@in_parts
def test_the_answers_are_also_within_bounds_measured_again(part: int) -> None:
    """Bounds are spreads of rounding errors, which differ between machines; the answers must be within both."""
    for vector in VECTORS[part::PARTS]:
        again, bound = (
            ask(vector.step, vector.query, *more) for ask, more in ((expected, ()), (bounds, (np.float64,)))
        )
        for name, array in vector.expected.items():
            assert bound[name].shape == vector.bound[name].shape
            assert_within(array, again[name], bound[name], f"{vector.name}, {name}")


def test_a_wrong_answer_is_reported() -> None:
    vector = of("scores")[0]
    wrong = {"values": vector.expected["values"] + 2 * vector.bound["values"]}
    (sentence,) = disagreements([replace(vector, expected=wrong), *VECTORS[1:3]])
    assert sentence.startswith("scores-000, values[")
    (sentence,) = disagreements([replace(vector, expected={"values": np.zeros(vector.step.n + 1)})])
    assert "names or shapes" in sentence


def test_what_is_written_is_what_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = list(planned())[::57]
    monkeypatch.setattr("adamshap.verify.vector_files.planned", lambda: few)
    monkeypatch.setattr("adamshap.verify.vector_files.FAULTS", (BY_NAME["sign"], BY_NAME["betas-swapped"]))
    write(tmp_path / "new", make())
    by_name = {vector.name: vector for vector in VECTORS}
    for vector in read(tmp_path / "new"):
        committed = by_name[vector.name]
        assert dumps(case_to_json(vector.step, vector.query)) == dumps(case_to_json(committed.step, committed.query))
        assert set(vector.exposes) == {"sign", "betas-swapped"} & set(committed.exposes)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {*FILES, SUMS}


# --- coverage --------------------------------------------------------------------------------------------------------


def test_the_vectors_are_many_and_small() -> None:
    assert len(VECTORS) >= 300
    assert sum(path.stat().st_size for path in COMMITTED.iterdir()) < 5e6


def test_every_kind_of_case_is_covered() -> None:
    def seen(of: Callable[[Any], Any], function: str | None = None) -> set[Any]:
        return {of(vector) for vector in VECTORS if function in (None, vector.query.function)}

    for function in (*FUNCTIONS, None):
        assert seen(lambda v: (v.step.net.activation, v.step.net.loss), function) == {
            (activation, loss) for activation in ACTIVATIONS for loss in LOSSES
        }
        assert seen(lambda v: (v.step.net.bias, v.step.reduction), function) == {
            (bias, reduction) for bias in (True, False) for reduction in REDUCTIONS
        }
        assert seen(lambda v: v.step.n_val, function) == {1, 2, 3, 4}
        assert seen(lambda v: v.step.net.depth, function) == {1, 2, 3}
        assert seen(lambda v: v.step.adam.betas[0] == 0, function) == {True, False}
        assert seen(lambda v: v.step.adam.weight_decay == 0, function) == {True, False}
        assert seen(lambda v: v.step.adam.eps_root == 0, function) == {True, False}
        assert {1, 7} <= seen(lambda v: v.step.n, function) or function == "marginals"
    assert seen(lambda v: v.step.state.step) == {0, *COMPLETED}
    assert seen(lambda v: (v.query.options["slope"], v.query.options["gradient"]), "scores") == {
        (slope, gradient) for slope in SCORE_SLOPES for gradient in GRADIENTS
    }
    for option in ("efficient", "per_validation"):
        assert seen(lambda v, option=option: (v.query.options["slope"], v.query.options[option]), "scores") == {
            (slope, flag) for slope in SCORE_SLOPES for flag in (True, False)
        }
    assert seen(lambda v: v.query.options["denominator"], "scores") == {"exact", "previous"}
    assert len(seen(lambda v: v.query.options["nodes"], "scores")) == 6
    assert seen(lambda v: v.query.options.get("kind"), "scores") == {None, *MARGINALS}
    assert seen(lambda v: (v.query.options["kind"], v.query.options["loss"]), "marginals") == {
        (kind, loss) for kind in MARGINALS for loss in MARGINAL_LOSSES
    }
    shares = seen(lambda v: v.query.options["coalition"].mean(), "utility")
    assert {0.0, 1.0} < shares
    zeros = seen(lambda v: any((v_i == 0).any() for v_i in v.step.state.v.values()) and v.step.state.step > 0)
    assert zeros == {True, False}


def test_every_fault_is_exposed_and_explained() -> None:
    assert {name for vector in VECTORS for name in vector.exposes} == set(BY_NAME)
    explained = json.loads((COMMITTED / "faults.json").read_text(encoding="utf-8"))
    assert explained == {f.name: {"sentence": f.sentence, "source": f.source} for f in BY_NAME.values()}


@in_parts
def test_the_faults_that_a_vector_names_fail_it(part: int) -> None:
    for vector in VECTORS[part::PARTS]:
        for name in vector.exposes:
            missed = misses(BY_NAME[name], vector.step, vector.query, vector.expected, vector.bound)
            assert missed, f"{name} passes {vector.name}"


# --- the files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_files_follow_their_schema(function: str) -> None:
    checker = jsonschema.Draft202012Validator
    checker.check_schema(SCHEMA)
    file = json.loads((COMMITTED / f"{function}.json").read_text(encoding="utf-8"))
    checker(SCHEMA).validate(file)
    assert len(file["vectors"]) == len(of(function))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda vector: vector.pop("bound"),
        lambda vector: vector["bound"].update(values=[-1.0]),
        lambda vector: vector["expected"].update(scores=[1.0]),
        lambda vector: vector["case"]["options"].pop("slope"),
        lambda vector: vector["case"]["options"].update(slope="steep"),
        lambda vector: vector["case"]["params"].update(weight=[[1.0]]),
        lambda vector: vector["case"]["adam"].update(betas=[0.9, 1.0]),
        lambda vector: vector["case"].update(function="update"),
        lambda vector: vector.update(exposes="sign"),
    ],
)
def test_the_schema_refuses_invalid_files(spoil: Callable[[Any], Any]) -> None:
    vector = vector_to_json(of("scores")[0])
    file = {"format": "adamshap-vectors", "version": 1, "function": "scores", "vectors": [vector]}
    checker = jsonschema.Draft202012Validator(SCHEMA)
    assert checker.is_valid(file)
    spoil(vector)
    assert not checker.is_valid(file)


def test_the_vectors_are_installed() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["adamshap.verify"]
    packaged = {str(path.relative_to(ROOT / "verify")) for each in patterns for path in (ROOT / "verify").glob(each)}
    assert {f"vectors/v1/{name}" for name in (*FILES, SUMS)} <= packaged
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted((*FILES, SUMS))


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    export(tmp_path / "v")
    return tmp_path / "v"


def test_an_export_is_the_same_to_the_last_byte(copied: Path) -> None:
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == {
        path.name: path.read_bytes() for path in COMMITTED.iterdir()
    }


def cut(folder: Path) -> None:
    content = (folder / "scores.json").read_bytes()
    (folder / "scores.json").write_bytes(content[: len(content) // 2])


def flip(folder: Path) -> None:
    content = bytearray((folder / "update.json").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "update.json").write_bytes(content)


def summed(folder: Path, name: str, content: str) -> None:
    """Replace a file and its checksum."""
    old, new = (hashlib.sha256(data).hexdigest() for data in ((folder / name).read_bytes(), content.encode()))
    (folder / name).write_bytes(content.encode())
    (folder / SUMS).write_text((folder / SUMS).read_text().replace(old, new))


def changed(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    value = json.loads((folder / name).read_text(encoding="utf-8"))
    change(value)
    summed(folder, name, dumps(value))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "scores.json is damaged"),
        (flip, "update.json is damaged"),
        (lambda folder: (folder / "utility.json").unlink(), "utility.json is missing"),
        (lambda folder: (folder / "schema.json").write_text("{}"), "schema.json is damaged"),
        (lambda folder: (folder / "mine.json").write_text("{}"), "mine.json is not listed in SHA256SUMS"),
        (lambda folder: (folder / SUMS).unlink(), "has no SHA256SUMS"),
        (lambda folder: (folder / SUMS).write_text("nothing"), "SHA256SUMS is damaged"),
        (lambda folder: shutil.rmtree(folder), "cannot read"),
        (lambda folder: summed(folder, "scores.json", "{"), "scores.json: is not JSON"),
        (lambda folder: summed(folder, "scores.json", "[]"), "scores.json: is not a file of adamshap-vectors"),
        (lambda folder: changed(folder, "scores.json", lambda v: v.update(version=2)), "version 1, for scores"),
        (
            lambda folder: changed(folder, "scores.json", lambda v: v["vectors"][3]["case"].pop("adam")),
            "vector 3: case",
        ),
        (lambda folder: changed(folder, "scores.json", lambda v: v["vectors"][3].pop("bound")), "'bound' is missing"),
        (
            lambda folder: changed(folder, "scores.json", lambda v: v["vectors"].append(v["vectors"][0])),
            "the same name",
        ),
        (
            lambda folder: changed(folder, "scores.json", lambda v: v["vectors"][0]["exposes"].append("laziness")),
            "exposes 'laziness'",
        ),
        (
            lambda folder: changed(folder, "influence.json", lambda v: v["vectors"][0]["bound"].update(values=[])),
            "differ in names or shapes",
        ),
    ],
)
def test_a_damaged_folder_is_one_error(copied: Path, damage: Callable[[Path], Any], says: str) -> None:
    assert len(read(copied)) == len(VECTORS)
    damage(copied)
    with pytest.raises(VectorError, match=says):
        read(copied)


def vectors(*arguments: object) -> subprocess.CompletedProcess[str]:
    code = "from adamshap.reference.command.main import main; main()"
    command = [sys.executable, "-c", code, "vectors", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_exports_and_checks(tmp_path: Path) -> None:
    done = vectors("export", tmp_path / "v")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"wrote {len(VECTORS)} vectors" in done.stdout
    done = vectors("check", tmp_path / "v")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{len(VECTORS)} vectors, 0 disagreements" in done.stdout

    changed(tmp_path / "v", "utility.json", lambda v: v["vectors"][5]["expected"].update(values=1.0))
    done = vectors("check", tmp_path / "v")
    assert (done.returncode, done.stderr) == (1, "")
    assert "utility-005, values: got 1.0" in done.stdout

    flip(tmp_path / "v")
    for arguments, says in (
        (("check", tmp_path / "v"), "update.json is damaged"),
        (("check", tmp_path / "nowhere"), "cannot read"),
        (("export", tmp_path / "v"), "exists and is not an empty folder"),
        (("export", tmp_path / "no" / "where"), "its parent folder does not exist"),
        (("export", tmp_path / "v" / SUMS), "exists and is not an empty folder"),
    ):
        done = vectors(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["v"]


def test_an_empty_folder_may_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    export(tmp_path / "v")
    assert len(read(tmp_path / "v")) == len(VECTORS)


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_file_is_never_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Damage to a bit, a byte or the end of any file is found before the folder is used."""
    folder = tmp_path_factory.getbasetemp() / "damaged"
    if not folder.exists():
        export(folder)
    path = folder / data.draw(st.sampled_from(sorted((*FILES, SUMS))), label="file")
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1), label="place")
    bit = data.draw(st.integers(0, 7), label="bit")
    flipped = whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :]
    path.write_bytes(data.draw(st.sampled_from([flipped, whole[:place], whole + whole[place:]]), label="content"))
    try:
        with pytest.raises(VectorError) as caught:
            read(folder)
    finally:
        path.write_bytes(whole)
    assert len(str(caught.value).splitlines()) == 1


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        if path.name == SUMS:
            raise OSError(28, "No space left on device")
        with path.open("wb") as file:
            return file.write(content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(VectorError, match=r"cannot write to .*: No space left on device"):
        export(tmp_path / "v")
    assert list(tmp_path.iterdir()) == []
