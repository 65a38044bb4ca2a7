"""Folders of test vectors: they follow their schema, they are installed, and a damaged one is one error."""

import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamshap.verify.cases import dumps
from adamshap.verify.vectors.edition import EDITIONS, LATEST, SUMS, Edition
from adamshap.verify.vectors.folder import Folder, VectorError, export, read
from adamshap.verify.vectors.vector import vector_to_json

ROOT = Path(__file__).parent.parent.parent
CONTENTS = {version: read(edition.folder) for version, edition in EDITIONS.items()}
SCHEMAS = {
    version: json.loads((edition.folder / "schema.json").read_text(encoding="utf-8"))
    for version, edition in EDITIONS.items()
}
every_edition = pytest.mark.parametrize("edition", EDITIONS.values(), ids=lambda edition: f"v{edition.version}")


def count(content: Folder) -> int:
    return len(content.vectors) + len(content.refusals)


# --- the files -------------------------------------------------------------------------------------------------------


@every_edition
def test_the_files_follow_their_schema(edition: Edition) -> None:
    checker = jsonschema.Draft202012Validator
    checker.check_schema(SCHEMAS[edition.version])
    vectors = 0
    for name in set(edition.files) - {"README.md", "schema.json", "faults.json", "variants.json"}:
        file = json.loads((edition.folder / name).read_text(encoding="utf-8"))
        checker(SCHEMAS[edition.version]).validate(file)
        vectors += len(file["vectors"])
    assert vectors == count(CONTENTS[edition.version])


@every_edition
def test_the_files_are_small(edition: Edition) -> None:
    assert sum(path.stat().st_size for path in edition.folder.iterdir()) < 5e6


@every_edition
@pytest.mark.parametrize(
    "spoil",
    [
        lambda vector: vector.pop("bound"),
        lambda vector: vector["bound"].update(values=[-1.0]),
        lambda vector: vector["expected"].update(scores=[1.0]),
        lambda vector: vector["case"]["options"].pop("slope"),
        lambda vector: vector["case"]["options"].update(slope="steep"),
        lambda vector: vector["case"]["params"].update({"0.weight": "none"}),
        lambda vector: vector["case"]["adam"].update(betas=[0.9, 1.0]),
        lambda vector: vector["case"].update(function="update"),
        lambda vector: vector.update(exposes="sign"),
    ],
)
def test_the_schema_refuses_invalid_files(edition: Edition, spoil: Callable[[Any], Any]) -> None:
    (given,) = [one for one in CONTENTS[edition.version].vectors if one.name == "scores-000"]
    vector = vector_to_json(given, edition.version)
    file = {"format": "adamshap-vectors", "version": edition.version, "function": "scores", "vectors": [vector]}
    checker = jsonschema.Draft202012Validator(SCHEMAS[edition.version])
    assert checker.is_valid(file)
    spoil(vector)
    assert not checker.is_valid(file)


@every_edition
def test_the_vectors_are_installed(edition: Edition) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["adamshap.verify"]
    packaged = {str(path.relative_to(ROOT / "verify")) for each in patterns for path in (ROOT / "verify").glob(each)}
    assert {f"vectors/v{edition.version}/{name}" for name in (*edition.files, SUMS)} <= packaged
    assert sorted(path.name for path in edition.folder.iterdir()) == sorted((*edition.files, SUMS))


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    export(tmp_path / "v")
    return tmp_path / "v"


@every_edition
def test_an_export_is_the_same_to_the_last_byte(edition: Edition, tmp_path: Path) -> None:
    export(tmp_path / "v", edition)
    assert {path.name: path.read_bytes() for path in (tmp_path / "v").iterdir()} == {
        path.name: path.read_bytes() for path in edition.folder.iterdir()
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
        (lambda folder: changed(folder, "scores.json", lambda v: v.update(version=1)), "version 2, for scores"),
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
        (
            lambda folder: changed(folder, "influence.json", lambda v: v["vectors"][0].update(needs=["conv2d"])),
            "got the flag and needs",
        ),
        (
            lambda folder: changed(folder, "must_refuse.json", lambda v: v["vectors"][0].update(flag="valid")),
            "must_refuse.json, vector 0: got the flag 'valid'",
        ),
    ],
)
def test_a_damaged_folder_is_one_error(copied: Path, damage: Callable[[Path], Any], says: str) -> None:
    assert count(read(copied)) == count(CONTENTS[2])
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
    assert f"wrote {CONTENTS[2].counted} to " in done.stdout
    done = vectors("check", tmp_path / "v")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{CONTENTS[2].counted}, 0 disagreements" in done.stdout

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
    assert count(read(tmp_path / "v")) == count(CONTENTS[2])


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_file_is_never_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Damage to a bit, a byte or the end of any file is found before the folder is used."""
    folder = tmp_path_factory.getbasetemp() / "damaged"
    if not folder.exists():
        export(folder)
    path = folder / data.draw(st.sampled_from(sorted((*LATEST.files, SUMS))), label="file")
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
