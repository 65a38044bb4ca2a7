"""`pytest --pyargs adamshap.verify --adamshap-target ...`: items, what a failure shows, exit codes."""

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
    result.assert_outcomes(passed=4, skipped=4)  # "update" is part of "large-update"
    result.stdout.fnmatch_lines(
        [
            "*properties.py::update[[]float64[]] SKIPPED (not offered)*",
            "*properties.py::scores-sgd-start[[]float32[]] PASSED*",
        ]
    )


def test_a_failure_shows_what_the_kit_says_and_no_traceback(pytester: pytest.Pytester) -> None:
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
def test_what_cannot_be_tried_is_said(pytester: pytest.Pytester, options: tuple[str, ...], says: str) -> None:
    result = run(pytester, *options)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([says])


def test_nobody_who_does_not_ask_is_given_properties(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_mine="def test_it(): pass", properties="")
    assert pytester.runpytest_subprocess().parseoutcomes() == {"passed": 1}
