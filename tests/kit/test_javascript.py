"""An implementation in another language, written from docs/method.md, passes the vectors and the kit.

Needs Node 20 or newer; without it, deselect these tests with ``-m "not node"``.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = ROOT / "tests" / "javascript"
VECTORS = ROOT / "verify" / "vectors"

pytestmark = pytest.mark.node


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node")
    assert found is not None, 'no node: install Node 20 or newer, or leave these tests out with -m "not node"'
    return found


def run_vectors(node: str, scripts: Path, version: str = "v2") -> subprocess.CompletedProcess[str]:
    command = [node, str(scripts / "run_vectors.mjs"), str(VECTORS / version)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def verify(node: str, scripts: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from adamshap.reference.command.main import main; main()"
    command = f"'{node}' '{scripts / 'command.mjs'}' {{case}} {{result}}"
    return subprocess.run(
        [sys.executable, "-c", code, "verify", "--command", command, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


KIT = (
    "update",
    "utility",
    "marginals-shapley-exact",
    "marginals-last-first_order",
    "scores-random_order-path",
    "scores-tangent-midpoint",
    "scores-efficient",
    "scores-auto",
    "influence",
    "symmetry",
    "large-additivity",
)

LAYERS = (
    "linear",
    "tied_linear",
    "embedding",
    "positions",
    "layer_norm",
    "rms_norm",
    "attention",
    "residual",
    "activation",
    "flatten",
    "mean_over_positions",
)
"""All but convolution and pooling."""

DECLARED = tuple(word for name in LAYERS for word in ("--supports", name))

OF_STACKS = (
    "sequential-captures-sum",
    "sequential-captures-dot",
    "sequential-captures-squares",
    "sequential-update",
    "sequential-utility",
    "sequential-marginals-shapley-exact",
    "sequential-scores-random_order",
    "sequential-scores-per-validation",
    "sequential-influence",
    "sequential-null-sample",
)


def changed(folder: Path, script: str, *changes: tuple[str, str]) -> Path:
    """Return `folder` with a copy of the scripts, one of them changed."""
    for one in SCRIPTS.iterdir():
        shutil.copy(one, folder)
    source = (SCRIPTS / script).read_text(encoding="utf-8")
    for right, wrong in changes:
        assert source.count(right) == 1
        source = source.replace(right, wrong)
    (folder / script).write_text(source, encoding="utf-8")
    return folder


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Return a copy with one mistake: ε inside the root."""
    inside = ("+ eps_root,", "+ eps_root + eps,")
    return changed(tmp_path, "adamshap.mjs", inside, ("    eps,\n    mu:", "    eps: 0,\n    mu:"))


def test_it_has_no_dependency() -> None:
    for script in SCRIPTS.iterdir():
        lines = [line for line in script.read_text(encoding="utf-8").split("\n") if line.startswith("import")]
        assert all('from "node:' in line or 'from "./' in line for line in lines)


@pytest.mark.parametrize(("version", "most", "unsupported"), [("v1", 398, 18), ("v2", 731, 261)])
def test_it_passes_the_vectors(node: str, version: str, most: int, unsupported: int) -> None:
    """It has neither convolution and pooling nor "two_term" nor groups, schedules, clipping and L2 decay."""
    done = run_vectors(node, SCRIPTS, version)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout == f"{most} passed, 0 failed, {unsupported} not supported\n"


def test_a_number_for_a_case_to_refuse_is_a_failure(node: str, tmp_path: Path) -> None:
    lenient = changed(tmp_path, "checks.mjs", ("beta >= 0 && beta < 1", "beta >= 0"))
    done = run_vectors(node, lenient)
    assert done.returncode == 1
    assert "must_refuse-beta2-is-1: answered, although with β = 1 the moments never change" in done.stdout


def test_an_accepted_variant_is_reported(node: str, tmp_path: Path) -> None:
    keras = ("    eps,\n    mu:", "    eps: eps / Math.sqrt(c2),\n    mu:")
    done = run_vectors(node, changed(tmp_path, "adamshap.mjs", keras))
    assert done.returncode == 1  # by the vectors whose cases say where ε is
    assert "scores-epsilon_before_correction-000: follows the variant epsilon-before-correction" in done.stdout


def test_a_mistake_in_it_fails_vectors_that_name_the_mistake(node: str, broken: Path) -> None:
    done = run_vectors(node, broken)
    assert done.returncode == 1
    failures = [line for line in done.stdout.split("\n") if "; exposes " in line]
    assert len(failures) > 100
    naming = [line for line in failures if "eps-inside-root" in line]
    # A vector names a fault only if it fails by a wide margin, so a few failures may not name it.
    assert len(naming) > len(failures) / 2


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("w: p / (kappa + p + eps ** 2)", "w: p / (kappa + p)"),
        ("w: p / (kappa + p + eps ** 2)", "w: 1"),
        ("w * z ** 2", "w * z"),
        ("p = q * g ** 2 + 2 ** -1022", "p = q * g ** 2"),
        ("z: p / (kappa + p)", "z: p / kappa"),
        ("[name, randomOrderWeight(step, name)]", "[name, randomOrderWeight(step, Object.keys(step.g)[0])]"),
    ],
)
def test_a_mistake_in_its_slope_auto_fails_vectors_of_that_slope(
    node: str, tmp_path: Path, right: str, wrong: str
) -> None:
    done = run_vectors(node, changed(tmp_path, "adamshap.mjs", (right, wrong)))
    assert done.returncode == 1
    *failures, _ = done.stdout.splitlines()
    assert all(line.startswith("scores-auto") for line in failures)


def test_it_passes_the_kit(node: str) -> None:
    """Every function and kind of property; the whole kit takes minutes, and the vectors are tested above."""
    done = verify(node, SCRIPTS, "--supports", "auto", *(word for name in KIT for word in ("--only", name)))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "failed" not in done.stdout


def test_a_mistake_in_it_is_named_by_the_kit(node: str, broken: Path) -> None:
    done = verify(node, broken, "--only", "scores-secant-start", "--only", "update")
    assert (done.returncode, done.stderr) == (1, "")
    assert "ε inside the square root" in done.stdout
    assert "cat > case.json" in done.stdout


def test_its_layers_pass_the_kit(node: str) -> None:
    chosen = (word for name in OF_STACKS for word in ("--only", name))
    done = verify(node, SCRIPTS, *DECLARED, "--offers", "captures", *chosen)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.count("passed") >= len(OF_STACKS)


def test_a_mistake_in_its_losses_of_sequences_is_named_by_the_kit(node: str, tmp_path: Path) -> None:
    broken = changed(tmp_path, "model.mjs", ("labels.filter((label) => label !== -100).length", "1"))
    done = verify(node, broken, *DECLARED, "--only", "sequential-utility", "--only", "sequential-influence")
    assert (done.returncode, done.stderr) == (1, "")
    assert "losses summed over positions" in " ".join(done.stdout.split())


def test_a_command_that_declares_no_stacks_gets_none(node: str) -> None:
    done = verify(node, SCRIPTS, "--only", "sequential-update")
    assert done.returncode == 2
    assert "no property could be tried" in done.stderr
