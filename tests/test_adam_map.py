"""A(g) and A[a, b] against 50-digit arithmetic, for values that break naive formulas."""

import itertools

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamshap.reference.adam import Coefficients, bias_correction, coefficients, divided_difference, update_map
from adamshap.reference.contract import Adam
from adamshap.verify.strategies import adams, step_numbers
from adamshap.verify.tolerance import assert_within, rounding

TERMS = 2
"""Number of terms in both formulas: one with k and one with μ."""

FLOOR = float(np.finfo(np.float64).tiny)
"""The smallest normal number; below it, float64 has no relative precision."""


def magnitudes(low: int, high: int) -> st.SearchStrategy[float]:
    """Return zero, and ± powers of ten: mostly of ordinary size, sometimes extreme."""
    size = st.floats(-6, 2) | st.floats(low, high)
    return st.just(0.0) | st.builds(lambda sign, e: sign * 10**e, st.sampled_from([-1.0, 1.0]), size)


@st.composite
def scalar_coefficients(draw: st.DrawFn) -> Coefficients:
    """Return one coordinate's coefficients: v from 1e-300 to 1e100 or 0, ε up to 0.1 or 0, m of either sign or 0."""
    v = abs(draw(magnitudes(-300, 100), label="v"))
    m = draw(magnitudes(-160, 50), label="m")
    adam = draw(adams(), label="adam")
    eps = draw(st.sampled_from([0.0, 1e-12, 1e-8, 0.1]) | st.just(adam.eps), label="eps")
    adam = Adam(lr=adam.lr, betas=adam.betas, eps=eps, eps_root=adam.eps_root)
    return coefficients(adam, draw(step_numbers, label="t"), np.array([m]), np.array([v]))


@st.composite
def gradients(draw: st.DrawFn) -> tuple[float, float]:
    """Return two gradients: independent, equal, opposite, nearly equal or nearly opposite, from 1e-160 to 1e+100."""
    a = draw(magnitudes(-160, 100), label="a")
    kind = draw(
        st.sampled_from(["any", "equal", "opposite", "near", "near opposite", "one is zero"]), label="kind of b"
    )
    if kind == "any":
        return a, draw(magnitudes(-160, 100), label="b")
    if kind == "one is zero":
        return a, 0.0
    relative = draw(
        st.sampled_from([0.0]) if kind in ("equal", "opposite") else st.floats(-16, -2).map(lambda e: 10**e)
    )
    return a, (-a if "opposite" in kind else a) * (1 + relative)


def exact(c: Coefficients) -> tuple[mpmath.mpf, ...]:
    """Return the coefficients as exact numbers: k, q, μ, κ, ε, η."""
    return tuple(mpmath.mpf(float(number)) for number in (c.k, c.q, c.mu[0], c.kappa[0], c.eps, c.lr))


def exact_parts(c: Coefficients, a: float, b: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """Return A[a, b] with at least 50 digits, as its k-part and μ-part, by the definition, not the tested formula."""
    with mpmath.workdps(400):  # 50 digits are left after the cancellation of (A(a) − A(b)) / (a − b) at a/b = 1e260
        k, q, mu, kappa, eps, lr = exact(c)
        a, b = mpmath.mpf(a), mpmath.mpf(b)

        def D(g: mpmath.mpf) -> mpmath.mpf:
            return mpmath.sqrt(kappa + q * g * g) + eps

        if a == b:
            r = mpmath.sqrt(kappa + q * a * a)
            slope_of_D = q * a / r if r else mpmath.mpf(0)
            return lr * k * (D(a) - a * slope_of_D) / D(a) ** 2, -lr * mu * slope_of_D / D(a) ** 2
        return (
            lr * k * (a / D(a) - b / D(b)) / (a - b),
            lr * mu * (1 / D(a) - 1 / D(b)) / (a - b),
        )


def has_denominator(c: Coefficients, *gradients: float) -> bool:
    return all(c.eps > 0 or c.kappa[0] > 0 or c.q * abs(g) > 0 for g in gradients)


@given(scalar_coefficients(), magnitudes(-160, 100))
def test_update_map_is_exact(c: Coefficients, g: float) -> None:
    if not has_denominator(c, g):
        with pytest.raises(ValueError, match=r"Adam\.eps: got 0"):
            update_map(c, np.array([g]))
        return
    with mpmath.workdps(400):
        k, q, mu, kappa, eps, lr = exact(c)
        D = mpmath.sqrt(kappa + q * mpmath.mpf(g) ** 2) + eps
        expected, size = lr * (mu + k * g) / D, lr * (abs(mu) + abs(k * g)) / D
    assert_within(update_map(c, np.array([g])), [float(expected)], rounding(float(size), TERMS) + FLOOR, "A(g)")


@given(scalar_coefficients(), gradients())
def test_divided_difference_is_exact(c: Coefficients, ab: tuple[float, float]) -> None:
    a, b = ab
    if not has_denominator(c, a, b):
        with pytest.raises(ValueError, match=r"Adam\.eps: got 0"):
            divided_difference(c, np.array([a]), np.array([b]))
        return
    k_part, mu_part = exact_parts(c, a, b)
    bound = rounding(float(abs(k_part) + abs(mu_part)), TERMS) + FLOOR
    got = divided_difference(c, np.array([a]), np.array([b]))
    assert_within(got, [float(k_part + mu_part)], bound, "A[a, b]")
    assert got == divided_difference(c, np.array([b]), np.array([a])), "A[a, b] is symmetric to the last bit"


@pytest.mark.parametrize(
    ("kappa", "eps", "a"),
    list(itertools.product([0.0, 1e-30, 1e-8], [1e-12, 1e-8, 0.1], [1e-160, 1e-9, 1e-3, 10.0, 1e100])),
)
def test_first_step_slope_keeps_its_digits(kappa: float, eps: float, a: float) -> None:
    """At t = 1 the terms in k cancel except for κ and ε: the usual form of the formula has no correct digit there."""
    c = Coefficients(mu=np.zeros(1), k=1.0, kappa=np.array([kappa]), q=1.0, eps=eps, lr=1.0)
    for b in (a, a / 2, -a / 3):
        k_part, _ = exact_parts(c, a, b)
        got = divided_difference(c, np.array([a]), np.array([b]))
        assert_within(got, [float(k_part)], rounding(abs(float(k_part)), TERMS) + FLOOR, "A[a, b]")


def test_the_kink_has_the_symmetric_derivative() -> None:
    """κ = 0 and a = b = 0: D has a kink, its symmetric derivative is 0 and A'(0) = η k / ε."""
    c = Coefficients(mu=np.array([0.5]), k=0.5, kappa=np.zeros(1), q=1.0, eps=0.25, lr=2.0)
    np.testing.assert_array_equal(divided_difference(c, np.zeros(1), np.zeros(1)), [2.0 * 0.5 / 0.25])


@given(st.floats(0, 0.9999), step_numbers)
def test_bias_correction_is_exact(beta: float, t: int) -> None:
    with mpmath.workdps(60):
        expected = float(1 - mpmath.mpf(beta) ** t)
    assert_within(bias_correction(beta, t), expected, rounding(expected, 1), "1 − β^t")
