"""What the command says of the validation examples and of each row: numbers, ids and the rows' own values."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_helpers import TINY, Command

from adamshap.reference import checkpoint

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
