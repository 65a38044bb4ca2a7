"""The properties as items of pytest: ``pytest --pyargs adamshap.verify --adamshap-target package.module:object``.

One item for each property and dtype, such as ``scores-secant-start[float32]``; pytest selects (``-k``), stops (``-x``),
distributes (``-n``) and writes JUnit files (``--junit-xml``). A failure shows the kit's message without a traceback,
which would show nothing of the candidate's code. Properties that are not offered or not supported are skipped with the
reason.

The candidate runs in a process of its own. It stays in this one with ``--adamshap-in-process``, and with CuPy on the
CPU, which replaces a device in this process only.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from adamshap.verify.checking import Outcome, Patience, check, with_answers
from adamshap.verify.diagnosis import diagnose
from adamshap.verify.implementation import Implementation, LoadError, load
from adamshap.verify.isolation import isolated
from adamshap.verify.layers.properties import LAYER_PROPERTIES
from adamshap.verify.optimisers.properties import OPTIMISER_PROPERTIES
from adamshap.verify.properties import PROPERTIES, Property
from adamshap.verify.report import TRIED
from adamshap.verify.reproduction import snippet

DTYPES = ("float64", "float32")

_outcomes = pytest.StashKey[dict[str, list[Outcome]]]()
_candidate = pytest.StashKey[Implementation]()
_patience = pytest.StashKey[Patience]()
_time_limit = pytest.StashKey[float | None]()
"""Time limit of a call in this process; None for a candidate in its own process, which has its own limit."""


class Broken(Exception):
    """A property that does not hold; the message explains the failure."""


class Properties(pytest.File):
    """All properties, for the candidate named by ``--adamshap-target``."""

    def collect(self) -> Iterator["PropertyItem"]:
        """Yield an item for each property and dtype.

        Raises
        ------
        CollectError
            No target is given, or it cannot be loaded.
        """
        config = self.config
        target = config.getoption("--adamshap-target")
        if target is None:
            raise self.CollectError(
                "adamshap.verify tests an implementation of yours: it needs --adamshap-target"
                " package.module, package.module:object, or an entry point of the group adamshap.implementations"
            )
        here = str(config.invocation_params.dir)
        if here not in sys.path:
            sys.path.insert(0, here)  # as with `python -m pytest` and `adamshap verify`
        try:
            _load(config, target)
        except LoadError as error:
            raise self.CollectError(f"--adamshap-target: {error}") from error
        config.stash[_patience] = Patience()
        declared = [
            one for one in (*LAYER_PROPERTIES, *OPTIMISER_PROPERTIES) if one.is_declared_by(config.stash[_candidate])
        ]
        for one in (*PROPERTIES, *declared):
            for dtype in DTYPES:
                yield PropertyItem.from_parent(self, name=f"{one.name}[{dtype}]", one=one, dtype=dtype)


def _load(config: pytest.Config, target: str) -> None:
    cpu_device = sys.modules.get("adamshap.verify.cpu_device")
    seconds: float = config.getoption("--adamshap-timeout")
    if config.getoption("--adamshap-in-process") or (cpu_device is not None and cpu_device.is_installed()):
        config.stash[_candidate], config.stash[_time_limit] = load(target), seconds
        return
    stack = ExitStack()
    config.stash[_candidate], config.stash[_time_limit] = stack.enter_context(isolated(target, seconds)), None
    config.add_cleanup(stack.close)


class PropertyItem(pytest.Item):
    """One property in one dtype."""

    def __init__(self, *, one: Property, dtype: str, **more: Any) -> None:
        super().__init__(**more)
        self.one, self.dtype = one, dtype
        self.keywords[dtype] = self.keywords[one.kind] = True

    def runtest(self) -> None:
        """Check the property on the random cases of the profile."""
        config = self.config
        candidate = config.stash[_candidate]
        (outcome,) = check(
            candidate,
            [self.one],
            profile=config.getoption("--adamshap-profile"),
            dtype=self.dtype,
            seed=config.getoption("--adamshap-seed"),
            timeout=config.stash[_time_limit],
            patience=config.stash[_patience],
        )
        self.user_properties += [("cases", outcome.examples), ("largest_share_of_bound", outcome.share)]
        config.stash.setdefault(_outcomes, {}).setdefault(self.dtype, []).append(outcome)
        if outcome.variant is not None:
            self.user_properties.append(("acceptable", outcome.variant.name))
        elif outcome.finding is not None:
            code = snippet(outcome.finding.case, config.getoption("--adamshap-target"))
            raise Broken(f"{self.one.sentence}\n{self.one.equation}\n{outcome.finding.sentence}\n\n{code}")
        if outcome.status not in TRIED:
            reasons = ", ".join(reason for reason, _ in outcome.unsupported)
            pytest.skip(f"{outcome.status}{': ' if reasons else ''}{reasons}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return the kit's message; for an error of the kit itself, its traceback."""
        return str(excinfo.value) if isinstance(excinfo.value, Broken) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Return the item's name for the heading of a failure."""
        return self.path, None, self.name


def summarize(terminalreporter: Any, config: pytest.Config) -> None:
    """Write, for each dtype, the acceptable variants followed and the known mistake that explains the failures."""
    for dtype, outcomes in config.stash.get(_outcomes, {}).items():
        for variant in dict.fromkeys(outcome.variant for outcome in outcomes):
            if variant is not None:
                count = sum(outcome.variant == variant for outcome in outcomes)
                terminalreporter.write_line(f"Acceptable ({dtype}): {variant.sentence}, in {count} properties")
        diagnosis = diagnose(
            config.stash[_candidate], with_answers(outcomes), dtype=dtype, timeout=config.stash[_time_limit]
        )
        if diagnosis is not None:
            layer = f"; layer: {diagnosis.layer}" if diagnosis.layer else ""
            terminalreporter.write_line(f"Diagnosis ({dtype}): {diagnosis.sentence}{layer}")
