"""Hypothesis profiles: `--hypothesis-profile quick | ci | thorough`; `ci` is the default.

`quick` and `ci` draw the same cases every time, so that failures come from changes and not from chance; `thorough`
draws new ones, and is meant for an occasional run.
"""

from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, settings

from adamshap.verify import cpu_device

# Before any test imports CuPy. If it is impossible (no g++, another platform, a real device), the tests that need it
# are skipped with the reason. With --cupy-on-cpu it is installed already, in modes that another call would reset.
if not cpu_device.is_installed():
    with suppress(cpu_device.UnavailableError):
        cpu_device.install()

settings.register_profile("quick", max_examples=20, deadline=None, derandomize=True)
settings.register_profile(
    "ci",
    max_examples=100,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", parent=settings.get_profile("ci"), max_examples=2000, derandomize=False)
settings.load_profile("ci")


@pytest.fixture(autouse=True, scope="session")
def exact_squares() -> Iterator[int]:
    """Let low-rank scores begin with the first step, so that short runs have them; yield the usual number."""
    from adamshap.gpu import sketch

    with pytest.MonkeyPatch.context() as patch:
        number = sketch.EXACT_SQUARES
        assert number > 0
        patch.setattr(sketch, "EXACT_SQUARES", 0)
        yield number
