"""`pytest --pyargs adamshap.verify --adamshap-target ...`: items, failure messages, exit codes."""

from xml.etree import ElementTree

import pytest

pytest_plugins = ["pytester"]

MINE = """
from adamshap import reference

class Right:
    scores = staticmethod(reference.scores)

class Wrong:
    @staticmethod
    def scores(step, **options):
        return -step.n * reference.scores(step, **options)
"""


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(mine=MINE)
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    return pytester.runpytest_subprocess("--pyargs", "adamshap.verify", *arguments)


def test_each_property_is_an_item_in_each_dtype(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--adamshap-target", "mine:Right", "-rs", "-v", "-k", "scores-sgd-start or update or limit")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=4, skipped=10)  # "update" is part of other names, such as "large-update"
    result.stdout.fnmatch_lines(
        [
            "*properties.py::update[[]float64[]] SKIPPED (not offered)*",
            "*properties.py::scores-sgd-start[[]float32[]] PASSED*",
        ]
    )


@pytest.mark.parametrize("more", [(), ("-n", "1")])
def test_a_target_without_the_properties_is_refused(pytester: pytest.Pytester, more: tuple[str, ...]) -> None:
    pytester.makepyfile(mine=MINE, test_other="def test_other(): pass")
    result = pytester.runpytest_subprocess("--adamshap-target", "mine:Right", *more)
    assert result.ret not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    says = "--adamshap-target: got 'mine:Right' in a run without the properties; needs --pyargs adamshap.verify as well"
    assert says in result.stdout.str() + result.stderr.str()


def test_a_failure_shows_the_kits_message_without_a_traceback(pytester: pytest.Pytester) -> None:
    options = ("-k", "scores-sgd-start and float64", "--junit-xml", "result.xml")
    result = run(pytester, "--adamshap-target", "mine:Wrong", *options)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "_* scores-sgd-start[[]float64[]] _*",
            "Scores with slope 'sgd' and gradient 'start' are the oracle's.",
            "score_i = ⟨Γ ⊙ S, x_i⟩, S = η",
            "scores(step, slope='sgd', gradient='start'): values[[]0[]] is *, should be *; off by *",
            "print(candidate.Wrong.scores(step, slope='sgd', gradient='start'))",
            "Diagnosis (float64): your answers are right but for the factor −n*",
            "FAILED *properties.py::scores-sgd-start[[]float64[]]*",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*conformance.py*")
    assert 'name="scores-sgd-start[float64]"' in (pytester.path / "result.xml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "*it needs --adamshap-target package.module*"),
        (("--adamshap-target", "mine:Nothing"), "*--adamshap-target: cannot load 'mine:Nothing': AttributeError*"),
    ],
)
def test_a_target_that_cannot_be_tried_is_reported(
    pytester: pytest.Pytester, options: tuple[str, ...], says: str
) -> None:
    result = run(pytester, *options)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([says])


def test_other_runs_collect_no_properties(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_mine="def test_it(): pass", properties="")
    assert pytester.runpytest_subprocess().parseoutcomes() == {"passed": 1}


# --- candidates that misbehave ----------------------------------------------------------------------------------------

RUDE = """
import asyncio, ctypes, os, signal, sys, time, warnings
import numpy as np, pytest
from adamshap import reference

NOT_IN_PROCESS = {NOT_IN_PROCESS}

def update(step):
    sys.exit(0)

def utility(step, coalition):
    os._exit(0)

def influence(step):
    with np.errstate(all="ignore"):
        answer = reference.influence(step)
    sys.stdout.close(); os.close(1); os.close(2); os.chdir("/"); np.seterr(all="raise"); warnings.simplefilter("ignore")
    return answer

def marginals(step, kind, loss):
    if (kind, loss) == ("first", "exact"):
        raise KeyboardInterrupt
    if (kind, loss) == ("last", "exact"):
        raise GeneratorExit
    if (kind, loss) == ("first", "first_order"):
        pytest.exit("no")
    if (kind, loss) == ("last", "first_order"):
        pytest.skip("no")
    if (kind, loss) == ("shapley", "exact"):
        step.params["mine"] = 1
    raise ValueError(chr(0xD800) + chr(0) + chr(27))

def scores(step, slope, gradient, **options):
    if slope in NOT_IN_PROCESS:
        return reference.scores(step, slope, gradient)
    if (slope, gradient) == ("sgd", "start"):
        ctypes.CDLL(None)._exit(0)
    if (slope, gradient) == ("sgd", "midpoint"):
        os.kill(os.getpid(), signal.SIGKILL)
    if (slope, gradient) == ("sgd", "path"):
        os.closerange(0, 256)
    if (slope, gradient) == ("secant", "start"):
        return (0.0 for _ in range(step.n))
    if (slope, gradient) == ("secant", "midpoint"):
        print("a" * 100_000)
        raise asyncio.CancelledError
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            pass
"""

SAYS = {
    "update": "raised SystemExit: 0",
    "utility": "raised Exited: os._exit(0)",
    "marginals-first-exact": "raised KeyboardInterrupt",
    "marginals-last-exact": "raised GeneratorExit",
    "marginals-first-first_order": "raised Exit: no",
    "marginals-last-first_order": "raised Skipped: no",
    "marginals-shapley-exact": "changed its input: the names in step.params",
    "marginals-shapley-first_order": r"raised ValueError: \ud800\x00\x1b",
    "scores-secant-start": "returned values as a generator",
    "scores-secant-midpoint": "raised CancelledError",
    "scores-secant-path": "gave no answer within 5 s",
}
ALSO_IN_ITS_OWN_PROCESS = {
    "scores-sgd-start": "ended with exit status 0",
    "scores-sgd-midpoint": "was ended by SIGKILL",
    "scores-sgd-path": "ended with exit status",
}


OTHERS = ("two_term", "large", "edges", "memory", "refused", "forward")
"""Parts of the names of properties that would fail as well."""


@pytest.mark.parametrize("here", [False, True])
def test_pytest_continues_after_any_misbehaviour(pytester: pytest.Pytester, here: bool) -> None:
    pytester.makepyfile(mine=RUDE.replace("{NOT_IN_PROCESS}", "{'sgd'}" if here else "set()"))
    # Each shrunk case would need a new process.
    pytester.makeconftest(
        "from functools import partial\nfrom adamshap.verify import conformance\n"
        "conformance.check = partial(conformance.check, shrink_seconds=0)\n"
    )
    says = SAYS | ({} if here else ALSO_IN_ITS_OWN_PROCESS)
    result = pytester.runpytest_subprocess(
        *(
            "--pyargs",
            "adamshap.verify",
            "--adamshap-target",
            "mine",
            "--junit-xml",
            "result.xml",
            "-p",
            "no:cacheprovider",
        ),
        *("--adamshap-timeout", "5", *(["--adamshap-in-process"] if here else [])),
        *(
            "-k",
            f"float64 and (influence or {' or '.join(says)}) and not ({' or '.join(OTHERS)})",
        ),
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=len(says), passed=1)
    text = result.stdout.str()
    for name, sentence in says.items():
        assert f"{name}[float64]" in text
        assert sentence in text
    cases = ElementTree.parse(pytester.path / "result.xml").getroot().iter("testcase")
    failures = {case.attrib["name"]: case.find("failure") for case in cases}
    assert failures.pop("influence[float64]") is None
    assert {name for name, failure in failures.items() if failure is not None} == {f"{name}[float64]" for name in says}
    assert not (pytester.path / ".hypothesis").exists()


@pytest.mark.parametrize("options", [(), ("--adamshap-in-process",)])
@pytest.mark.parametrize("code", ["import sys; sys.exit(0)", "import os; os._exit(0)", "raise KeyboardInterrupt"])
def test_a_module_that_ends_the_process_at_import_is_reported(
    pytester: pytest.Pytester, code: str, options: tuple[str, ...]
) -> None:
    pytester.makepyfile(mine=code)
    result = pytester.runpytest_subprocess("--pyargs", "adamshap.verify", "--adamshap-target", "mine", *options)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*--adamshap-target: cannot load 'mine': *"])


def test_a_module_that_kills_its_process_at_import_is_reported(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(mine="import os; os.kill(os.getpid(), 9)")
    result = pytester.runpytest_subprocess("--pyargs", "adamshap.verify", "--adamshap-target", "mine")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*--adamshap-target: cannot load 'mine': it was ended by SIGKILL*"])
