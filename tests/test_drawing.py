"""Figures need no backend: results are written with any MPLBACKEND, matplotlibrc and cache of matplotlib."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.font_manager import FontManager

BOTH = """
import sys
from adamshap.reference.command import main
for arguments in (["attribute", "blobs.npz", "--hidden", "4", "--out", "o"], ["show", "o", "--html", "p.html"]):
    sys.argv[1:] = arguments
    try:
        main.main()
    except SystemExit as end:
        assert end.code == 0, (arguments, end.code)
"""
SETTINGS = """
text.usetex: True
font.family: no such font
savefig.dpi: 3
figure.facecolor: red
axes.prop_cycle: nonsense
backend: nonsense
no.such.setting: 1
"""


def run(code: str, cwd: Path, **environment: str) -> str:
    """Run `code`, which must succeed, and return its output."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def run_of_the_command(cwd: Path, **environment: str) -> str:
    """Run ``attribute`` and ``show --html`` on images, check that results exist, and return the output."""
    generator = np.random.default_rng(5)
    np.savez(cwd / "blobs.npz", x=generator.normal(size=(40, 2, 3)), y=np.repeat([0, 1], 20))
    shown = run(BOTH, cwd, **environment)
    assert json.loads((cwd / "o" / "results.json").read_text(encoding="utf-8"))["status"] == "finished"
    assert "Most harmful examples" in (cwd / "p.html").read_text(encoding="utf-8")
    return shown


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the picture drawn with default settings."""
    cwd = tmp_path_factory.mktemp("drawing")
    run_of_the_command(cwd, MPLBACKEND="")
    return (cwd / "o" / "examples.png").read_bytes()


@pytest.mark.parametrize(
    "environment",
    [
        {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        {"MPLBACKEND": "no such backend"},
        {"MATPLOTLIBRC": "matplotlibrc"},
        {"MPLCONFIGDIR": "matplotlibrc"},  # a file, in which nothing can be written
        {"MPLCONFIGDIR": "damaged"},
    ],
    ids=lambda environment: " ".join(f"{name}={value}" for name, value in environment.items()),
)
def test_the_command_draws_the_same_everywhere(tmp_path: Path, plain: bytes, environment: dict[str, str]) -> None:
    (tmp_path / "matplotlibrc").write_text(SETTINGS, encoding="utf-8")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / f"fontlist-v{FontManager.__version__}.json").write_text("nonsense", encoding="utf-8")
    shown = run_of_the_command(tmp_path, **environment)
    assert shown.endswith("Written: p.html\n")
    assert "No examples.png" not in shown
    assert "No p" not in shown
    assert (tmp_path / "o" / "examples.png").read_bytes() == plain
    assert (tmp_path / "p.html").read_text(encoding="utf-8").count("<svg") == 1


def test_what_keeps_matplotlib_from_being_imported_costs_sentences(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"font.family: \xff\xfe")
    shown = run_of_the_command(tmp_path, MATPLOTLIBRC="matplotlibrc", TMPDIR=str(tmp_path))
    for what in ("No examples.png", "No plots", "No pictures"):
        assert f"{what}: matplotlib failed (UnicodeDecodeError: " in shown
    assert not (tmp_path / "o" / "examples.png").exists()


CLAIMS = """
import sys
from adamshap.reference.command import main
sys.argv[1:] = ["claims", "--only", "nothing"]
try:
    main.main()
except SystemExit as end:
    print(end.code)
"""


def test_the_claims_draw_before_they_measure_and_under_every_backend(tmp_path: Path) -> None:
    assert run(CLAIMS, tmp_path, MPLBACKEND="no such backend") == "2\n"
    (tmp_path / "matplotlibrc").write_bytes(b"font.family: \xff\xfe")
    assert run(CLAIMS, tmp_path, MATPLOTLIBRC="matplotlibrc", TMPDIR=str(tmp_path)) == "2\n"
    assert [path for path in tmp_path.iterdir() if path.name.startswith("adamshap-traceback-")]


# --- from Python -----------------------------------------------------------------------------------------------------

PLOT = """
import numpy as np
from adamshap.reference import Adam, Batch, Network, attribute
batch = Batch(np.ones((4, 3)), np.array([0, 1, 0, 1]))
run = attribute(Network((3, 2)), Adam(), batch, batch, epochs=1)
run.plot().savefig("run.png")
import os, matplotlib
print(os.environ.get("MPLBACKEND"), matplotlib.rcParams._get_backend_or_none())
"""


@pytest.mark.parametrize(("backend", "kept"), [("tkagg", "tkagg"), ("nonsense", "None")])
def test_a_plot_needs_no_backend_and_leaves_the_users_alone(tmp_path: Path, backend: str, kept: str) -> None:
    assert run(PLOT, tmp_path, MPLBACKEND=backend) == f"{backend} {kept}\n"
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_a_backend_that_the_user_has_chosen_stays(tmp_path: Path) -> None:
    chosen = "import matplotlib; matplotlib.use('pdf')" + PLOT
    assert run(chosen, tmp_path, MPLBACKEND="svg") == "svg pdf\n"
