"""The installed package matches the folders, and the folders respect the import contracts."""

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("reference", "gpu", "verify")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_installed() -> None:
    """A subfolder missing from pyproject.toml works in a checkout, but is missing from the wheel."""
    folders = {init.parent.relative_to(ROOT) for folder in FOLDERS for init in (ROOT / folder).rglob("__init__.py")}
    have = {f"adamshap.{'.'.join(folder.parts)}".replace("adamshap.gpu.torch", "adamshap.torch") for folder in folders}
    assert have == set(PROJECT["tool"]["setuptools"]["packages"])
    assert all((ROOT / folder / "py.typed").is_file() for folder in (*FOLDERS, "gpu/torch"))
    assert version("adamshap") == PROJECT["project"]["version"]


def test_the_engine_may_import_nothing_of_the_oracle_but_the_contract() -> None:
    """A module missing from the import contract could be shared unnoticed.

    One module asks the oracle: that which compares a PyTorch model's scores with exact marginals.
    """
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    contract, no_torch = (one for one in contracts if one["source_modules"] == ["adamshap.gpu"])
    assert {"adamshap.reference.*", "adamshap.verify"} <= set(contract["forbidden_modules"])
    own = [f"adamshap.{name} -> adamshap.reference.contract" for name in ("gpu.**", "torch.**", "torch")]
    asks = [f"adamshap.{name}.oracle.comparison -> adamshap.reference.*" for name in ("gpu.torch", "torch")]
    assert contract["ignore_imports"] == own + asks
    assert {"adamshap.torch", "torch"} <= set(no_torch["forbidden_modules"])


def test_the_oracle_needs_only_the_base_dependencies() -> None:
    """Extras are imported only when used."""
    heavy = ("sklearn", "matplotlib", "pandas", "pyarrow", "numba", "cupy", "torch", "jax", "hypothesis", "scipy")
    code = f"import sys, adamshap.reference; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
