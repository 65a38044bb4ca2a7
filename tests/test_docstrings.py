"""Docstrings of public names follow numpydoc: a summary, all parameters in order, the return value."""

import inspect
from importlib import import_module
from importlib.util import find_spec

import pytest
import torchvision_operators  # noqa: F401 - before transformers

numpydoc = pytest.importorskip("numpydoc.validate", reason="needs numpydoc, of the extra dev")

MODULES = (
    "adamshap.reference",
    "adamshap.gpu",
    *(("adamshap.torch",) if find_spec("torch") else ()),
    *(("adamshap.torch.hugging_face",) if find_spec("transformers") else ()),
    "adamshap.verify.implementation",
    "adamshap.verify.checking",
    "adamshap.verify.isolation",
    "adamshap.verify.diagnosis",
    "adamshap.verify.tolerance",
    "adamshap.verify.cpu_device",
)
CHECKS = {
    *("GL06", "GL07", "GL08"),  # sections known and in order; a docstring at all
    *("SS01", "SS02", "SS03", "SS04", "SS06"),  # a summary: capital, full stop, no indent, one line
    *("PR01", "PR02", "PR03", "PR04", "PR05", "PR10"),  # parameters: all, no others, in order, with types
    *("RT01", "RT02", "RT03", "RT05", "YD01"),  # return values, each with a sentence
}


def public_names(module: str) -> list[str]:
    """Return the names of a module's functions and classes, and of the classes' own methods.

    A method that overrides one of another library, such as the events of a callback, has its docstring there.
    """
    loaded = import_module(module)
    own = [name for name, member in vars(loaded).items() if getattr(member, "__module__", None) == module]
    names = []
    for name in getattr(loaded, "__all__", [name for name in own if not name.startswith("_")]):
        member = getattr(loaded, name)
        if inspect.isfunction(member) or inspect.isclass(member):
            names.append(f"{module}.{name}")
        if inspect.isclass(member):
            kinds = (classmethod, staticmethod, property)
            others = {
                method for base in member.__mro__ if not base.__module__.startswith("adamshap") for method in vars(base)
            }
            names += [
                f"{module}.{name}.{method}"
                for method, value in vars(member).items()
                if not (method.startswith("_") or method in others)
                and (inspect.isfunction(value) or isinstance(value, kinds))
            ]
    return names


@pytest.mark.parametrize("name", [name for module in MODULES for name in public_names(module)])
def test_a_docstring_says_what_a_caller_needs(name: str) -> None:
    wrong = [f"{code}: {message}" for code, message in numpydoc.validate(name)["errors"] if code in CHECKS]
    assert wrong == [], name
