"""Hypothesis profiles: `--hypothesis-profile quick | ci | thorough`; `ci` is the default.

`quick` and `ci` draw the same cases every time, so that a change is judged, not the luck of the draw; `thorough` draws
new ones, and is what to run now and then.
"""

from hypothesis import HealthCheck, settings

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
