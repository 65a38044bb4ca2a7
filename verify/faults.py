"""Known mistakes: each is the oracle with one thing wrong, a name, a sentence, and where it was seen.

A fault wraps the oracle's answers. It changes the step that the oracle sees, replaces one of the oracle's functions
while it answers, or changes the result; so two faults can be had at once by wrapping twice. Each has three uses: the
harness must catch it, test vectors must expose it, and a candidate's wrong numbers are compared with its.
"""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import autograd.numpy as anp
import numpy as np
import numpy.typing as npt
from autograd.extend import defvjp, primitive

from adamshap.reference import adam, game, models, perceptron, scoring, slopes, two_term, validation
from adamshap.reference.adam import Coefficients, bias_correction
from adamshap.reference.contract import AdamState, Array, Batch, Marginals, Network, Params, Step, quadrature_nodes
from adamshap.verify.implementation import FUNCTIONS, Ask, Implementation, Query
from adamshap.verify.oracle import ORACLE
from adamshap.verify.replacing import replaced

Wrap = Callable[[Ask], Ask]


@dataclass(frozen=True)
class Fault:
    """One mistake.

    Parameters
    ----------
    name : str
        As vectors and reports call it.
    sentence : str
        Completes "your answers equal the oracle's with ...".
    source : str
        Where it was seen, or why it is easily made.
    wrap : callable
        From an implementation's `ask` to one that makes the mistake.
    """

    name: str
    sentence: str
    source: str
    wrap: Wrap

    def implementation(self) -> Implementation:
        """Return the oracle with this mistake."""
        return Implementation(self.name, frozenset(FUNCTIONS), self.wrap(ORACLE.ask), ORACLE.extras, guard=None)


# --- ways of being wrong ----------------------------------------------------------------------------------------------


def _sees(change: Callable[[Step], Step]) -> Wrap:
    """The oracle is given another step than the one that was asked about."""
    return lambda ask: lambda step, query: ask(change(step.as_float64()), query)


def _returns(change: Callable[[Step, Query, Any, Ask], Any], *functions: str) -> Wrap:
    """The result is changed, for calls of `functions`: ``change(step, query, result, ask)``."""

    def wrap(ask: Ask) -> Ask:
        def faulty(step: Step, query: Query) -> Any:
            result = ask(step, query)
            return change(step.as_float64(), query, result, ask) if query.function in functions else result

        return faulty

    return wrap


def _scores(change: Callable[[Step, Query, Array, Ask], Array]) -> Wrap:
    return _returns(change, "scores")


def _with(original: Callable[..., Any], make: Callable[[Any], Callable[..., Any]]) -> Wrap:
    """The oracle uses ``make(original)`` for its function `original`."""
    name = original.__name__

    def wrap(ask: Ask) -> Ask:
        def faulty(step: Step, query: Query) -> Any:
            # Read now, not at definition: a fault may wrap another one of the same function.
            now = getattr(sys.modules[original.__module__], name)
            with replaced(name, now, make(now)):
                return ask(step, query)

        return faulty

    return wrap


def _coefficients(change: Callable[[Coefficients, Any, int, Array, Array], Coefficients]) -> Wrap:
    """The oracle uses other coefficients: ``change(right ones, adam, t, m, v)``."""

    def make(right: Any) -> Any:
        return lambda settings, t, m, v: change(right(settings, t, m, v), settings, t, m, v)

    return _with(adam.coefficients, make)


def _settings(**changes: Callable[[Any], Any]) -> Wrap:
    """The oracle is given other settings of Adam."""
    return _sees(
        lambda step: replace(step, adam=replace(step.adam, **{name: f(step.adam) for name, f in changes.items()}))
    )


def _corrected_with(change: Callable[[int], int]) -> Wrap:
    return _with(adam.bias_correction, lambda right: lambda beta, t: right(beta, max(change(t), 1)))


def _state(change: Callable[[Step], tuple[Params, Params]]) -> Wrap:
    """The oracle is given another m and v."""
    return _sees(lambda step: replace(step, state=AdamState(step.state.step, *change(step))))


def _slope(right: Callable[..., Any], wrong: Callable[[slopes.SlopeInput], Array]) -> Wrap:
    """The oracle uses `wrong` for the slope `right`."""
    return _with(right, lambda now: wrong)


def _x(step: Step) -> Params:
    return models.sample_gradients(step)


def _partial(ask: Ask, step: Step, query: Query, keep: Callable[[str], bool]) -> Array:
    """The scores that only the parameters whose names `keep` says yes to would give."""
    kept = scoring.dot_products

    def some(x: Params, P: Params) -> Array:
        names = [name for name in x if keep(name)]
        if not names:
            first = next(iter(x))
            return np.zeros((len(x[first]), len(P[first])))
        return kept({name: x[name] for name in names}, P)

    with replaced("dot_products", kept, some):
        return ask(step, query)  # type: ignore[no-any-return]


def _dropping(drop: Callable[[str, Step], bool]) -> Wrap:
    return _scores(lambda step, query, result, ask: _partial(ask, step, query, lambda name: not drop(name, step)))


# --- single mistakes that need more than a line -----------------------------------------------------------------------


def _advanced_v(step: Step) -> tuple[Params, Params]:
    beta2, g = step.adam.betas[1], models.batch_gradient(step)
    return step.state.m, {name: beta2 * v + (1 - beta2) * g[name] ** 2 for name, v in step.state.v.items()}


def _advanced_state(step: Step) -> tuple[Params, Params]:
    _, state = adam.update(step)
    return state.m, state.v


def _coupled_gradients(right: Any) -> Any:
    def gradients(step: Step) -> Params:
        weight = 1 / step.n if step.reduction == "mean" else 1.0
        penalty = step.adam.weight_decay
        return {name: x + weight * penalty * step.params[name] for name, x in right(step).items()}

    return gradients


def _coupled(ask: Ask) -> Ask:
    inner = _with(adam.decayed, lambda _: lambda step: dict(step.params))(ask)
    return _with(models.sample_gradients, _coupled_gradients)(inner)


def _summed_separately(right: Any) -> Any:
    """GhostSuite issue 8: Σ_j b_j times Σ_j a_j for Σ_j b_j a_jᵀ; right for one validation sample, wrong for two."""

    def gradient(net: Network, params: Params, batch: Batch) -> Params:
        true: Params = right(net, params, batch)
        with_bias = dataclasses.replace(net, bias=True)
        padded = {name: params.get(name, np.zeros(shape)) for name, shape in with_bias.shapes.items()}
        each = models.each_gradient(with_bias, padded, batch)
        wrong = dict(true)
        for layer in range(net.depth):
            a = batch.x
            if layer:
                below = Network(net.sizes[: layer + 1], net.activation, "mse")
                a = perceptron.ACTIVATION_FUNCTIONS[net.activation](models.outputs(below, padded, batch.x))
            b = each[f"{layer}.bias"]
            wrong[f"{layer}.weight"] = np.outer(b.sum(axis=0), a.sum(axis=0)) / batch.n
        return wrong

    return gradient


def _last_micro_batch(size: int) -> Callable[[Any], Any]:
    """Micro-batches of `size` whose means are averaged, the last one counting as much as a full one."""

    def make(right: Any) -> Any:
        def gradients(step: Step) -> Params:
            if step.reduction == "sum" or step.n <= size:
                return right(step)  # type: ignore[no-any-return]
            chunks = -(-step.n // size)
            last = step.n - (chunks - 1) * size
            weight = np.full(step.n, step.n / (chunks * size))
            weight[(chunks - 1) * size :] = step.n / (chunks * last)
            return {name: x * weight.reshape(-1, *[1] * (x.ndim - 1)) for name, x in right(step).items()}

        return gradients

    return make


def _ghost_bias(step: Step, query: Query, result: Array, ask: Ask) -> Array:
    """The activations are extended by a 1 for the bias, also where the network has none."""
    if step.net.bias:
        return result
    net = dataclasses.replace(step.net, bias=True)

    def extend(arrays: Params) -> Params:
        return {name: arrays.get(name, np.zeros(shape)) for name, shape in net.shapes.items()}

    state = AdamState(step.state.step, extend(step.state.m), extend(step.state.v))
    padded = Step(net, extend(step.params), step.adam, state, step.train, step.valid, step.reduction)
    return ask(padded, query)  # type: ignore[no-any-return]


def _transposed(right: Any) -> Any:
    def dot_products(x: Params, P: Params) -> Array:
        turned = {name: p.swapaxes(1, 2) if p.ndim == 3 and p.shape[1] == p.shape[2] else p for name, p in P.items()}
        return right(x, turned)  # type: ignore[no-any-return]

    return dot_products


def _own_coalition_size(right: Any) -> Any:
    def gradient(x: Params, coalition: Array) -> Params:
        size = max(int(coalition.sum()), 1)
        return {name: g * (len(coalition) / size) for name, g in right(x, coalition).items()}

    return gradient


def _frozen_game(step: Step, query: Query, result: Any, ask: Ask) -> Any:
    """Every coalition's update is divided by the whole batch's denominator."""
    full = models.batch_gradient(step)
    denominators = {name: adam.denominator(c, full[name]) for name, c in adam.step_coefficients(step).items()}
    queue: list[Array] = []

    def make(right: Any) -> Any:
        def update_map(c: Coefficients, g: Array) -> Array:
            if not queue:
                queue.extend(denominators.values())
            wrong: Array = c.lr * (c.mu + c.k * g) / queue.pop(0)
            return wrong

        return update_map

    return _with(adam.update_map, make)(ask)(step, query)


def _banzhaf(right: Any) -> Any:
    def values(U: game.Game, n: int) -> Array:
        members = (np.arange(2**n)[:, None] >> np.arange(n)) & 1 == 1
        utilities = np.array([U(coalition) for coalition in members])
        return np.array([utilities[members[:, i]].mean() - utilities[~members[:, i]].mean() for i in range(n)])

    return values


def _first_and_last(right: Any) -> Any:
    def values(U: game.Game, n: int) -> Array:
        everybody, nobody = np.ones(n, bool), np.zeros(n, bool)
        alone = np.eye(n, dtype=bool)
        return np.array([(U(i) - U(nobody) + U(everybody) - U(~i)) / 2 for i in alone])

    return values


def _momentum_gain(step: Step, query: Query) -> Array:
    """⟨Γ, A(0)⟩ for each column of the scores: what the momentum step does to the loss, to first order."""
    g = models.batch_gradient(step)
    gradient, slope = query.options.get("gradient", "midpoint"), query.options.get("slope", "random_order")
    nodes = quadrature_nodes(query.options.get("nodes"), slope)
    each = bool(query.options.get("per_validation", False))
    part = scoring.part_of(slope, query.options.get("kind", "shapley"), step.n)
    gamma = validation.validation_gradients(step, gradient, g, nodes, each=each, part=part)
    gain: Array = scoring.dot_products({name: A[None] for name, A in adam.momentum_step(step).items()}, gamma)[0]
    return gain if each else gain[:1]  # one number for all samples, or one a column


def _with_history(marginals: Marginals) -> Marginals:
    return replace(marginals, values=marginals.values + marginals.empty)


@primitive  # type: ignore[untyped-decorator]
def _tanh_by_output(z: Array) -> Array:
    return np.tanh(z)


# φ'(a) for φ'(z): the derivative is taken at the activation, as if it had not been applied yet.
defvjp(_tanh_by_output, lambda a, z: lambda upstream: upstream / anp.cosh(a) ** 2)


@primitive  # type: ignore[untyped-decorator]
def _silu_short(z: Array) -> Array:
    a: Array = z / (1 + np.exp(-z))
    return a


defvjp(_silu_short, lambda a, z: lambda upstream: upstream / (1 + anp.exp(-z)))


@primitive  # type: ignore[untyped-decorator]
def _sigmoid_by_output(z: Array) -> Array:
    a: Array = 1 / (1 + np.exp(-z))
    return a


defvjp(_sigmoid_by_output, lambda a, z: lambda upstream: upstream / (2 + anp.exp(a) + anp.exp(-a)))


def _activation(name: str, wrong: Callable[[Any], Any]) -> Wrap:
    def wrap(ask: Ask) -> Ask:
        def faulty(step: Step, query: Query) -> Any:
            with replaced(name, perceptron.ACTIVATION_FUNCTIONS[name], wrong):
                return ask(step, query)

        return faulty

    return wrap


def _scaled_squares(factor: Callable[[int], float]) -> Wrap:
    """The squared error, times `factor` of the number of outputs."""

    def make(right: Any) -> Any:
        def losses(net: Network, params: Params, batch: Batch) -> Any:
            values = right(net, params, batch)
            return values * factor(net.sizes[-1]) if net.loss == "mse" else values

        return losses

    return _with(models.sample_losses, make)


def _proportionally(step: Step, query: Query, result: Array, ask: Ask) -> Array:
    if not query.options.get("efficient"):
        return result
    plain = ask(step, Query("scores", dict(query.options) | {"efficient": False}))
    size = np.abs(plain).sum(axis=0)
    share = np.divide(np.abs(plain), size, out=np.full_like(plain, 1 / step.n), where=size > 0)
    spread: Array = plain + (result.sum(axis=0) - plain.sum(axis=0)) * share
    return spread


def _to_the_whole_gain(step: Step, query: Query, result: Array, ask: Ask) -> Array:
    if not query.options.get("efficient"):
        return result
    if query.options.get("per_validation"):
        singles = [replace(step, valid=step.valid.take(np.array([j]))) for j in range(step.n_val)]
        empty = np.array([game.utility(single, np.zeros(step.n, bool)) for single in singles])
        return result + empty / step.n
    return result + game.utility(step, np.zeros(step.n, bool)) / step.n


def _random_order_with(spread: Callable[[Array, float], Array], weight: float = 1.0, rule: Any = None) -> Wrap:
    """`random_order` with another standard deviation of the partial sums, or another rule for the normal."""

    def wrong(given: slopes.SlopeInput) -> Array:
        if len(given.x) == 1:
            return slopes.secant(given)
        sigma = slopes.partial_sum_deviation(given.x, given.g)
        slope = np.zeros_like(given.g)
        for tau, w in zip(*slopes.unit_interval_rule(given.nodes[0]), strict=True):
            s = spread(sigma, tau)
            for h, a in zip(*(rule or slopes.positive_normal_rule)(given.nodes[1]), strict=True):
                ends = tau * given.g + h * s, tau * given.g - h * s
                slope += weight * w * 2 * a * h**2 * adam.divided_difference(given.c, *ends)
        return slope

    return _slope(slopes.random_order, wrong)


def _physicists_rule(count: int) -> tuple[Array, Array]:
    nodes, weights = np.polynomial.hermite.hermgauss(count)
    positive = np.arange(count) >= (count + 1) // 2
    return nodes[positive], weights[positive] / np.sqrt(np.pi)


def _chord_to_the_origin(given: slopes.SlopeInput) -> Array:
    """A(g)/g, which forgets that the step starts at A(0)."""
    full = adam.update_map(given.c, given.g)
    return np.divide(full, given.g, out=slopes.linearized(given), where=given.g != 0)


def _per_sample_squares(given: slopes.SlopeInput) -> Array:
    c, squares = given.c, (given.x**2).sum(axis=0)
    wrong: Array = c.lr * c.k / (np.sqrt(c.kappa + c.q * squares) + c.eps)
    return wrong


def _between_with(change: Callable[[Step, str, Array, Array, float], Array]) -> Wrap:
    """The point of `midpoint` and `path`: ``change(step, name, A(0), A(g), fraction)``."""

    def make(right: Any) -> Any:
        def between(given: validation.GradientInput, fraction: float) -> Params:
            c = adam.step_coefficients(given.step)
            return {
                name: change(
                    given.step,
                    name,
                    adam.update_map(c[name], np.zeros_like(g)),
                    adam.update_map(c[name], g),
                    fraction,
                )
                for name, g in given.g.items()
            }

        return between

    return _with(validation.between, make)


def _decayed(step: Step, name: str) -> Array:
    return step.params[name] * (1 - step.adam.lr * step.adam.weight_decay)


def _results_in(dtype: npt.DTypeLike) -> Wrap:
    """Results rounded to `dtype`."""

    def rounded(result: Any) -> Any:
        with np.errstate(over="ignore"):  # what float16 cannot hold is infinite: part of the mistake
            return np.asarray(result).astype(dtype).astype(np.float64)

    def change(step: Step, query: Query, result: Any, ask: Ask) -> Any:
        if isinstance(result, Marginals):
            return replace(result, values=rounded(result.values))
        return rounded(result)

    return _returns(change, "scores", "marginals", "influence", "utility")


def _floored_denominator(right: Any) -> Any:
    return lambda c, g: np.maximum(adam.root(c, g), c.eps)


def _floored_difference(right: Any) -> Any:
    """A[a, b] of A(g) = η (μ + k g) / max(r(g), ε); the denominator is replaced already."""

    def difference(c: Coefficients, a: Array, b: Array) -> Array:
        a, b = np.broadcast_arrays(a, b)
        low_a, low_b = (adam.root(c, g) < c.eps for g in (a, b))
        with np.errstate(divide="ignore", invalid="ignore"):
            # Not taken where a = b: then both are low, or neither is.
            across = (adam.update_map(c, a) - adam.update_map(c, b)) / (a - b)
            above = right(replace(c, eps=0.0), a, b)
            below = c.lr * c.k / np.float64(c.eps)
        return np.where(low_a & low_b, below, np.where(low_a | low_b, across, above))

    return difference


def _floored(ask: Ask) -> Ask:
    inner = _with(adam.denominator, _floored_denominator)(ask)
    return _with(adam.divided_difference, _floored_difference)(inner)


def _weights_decayed(right: Any) -> Any:
    def decayed(step: Step) -> Params:
        return {name: p if name.endswith("weight") else step.params[name] for name, p in right(step).items()}

    return decayed


def _nothing_for_nobody(step: Step, query: Query, result: Any, ask: Ask) -> Any:
    return result if np.any(query.options["coalition"]) else 0.0


def _unnormalized_rule(right: Any) -> Any:
    def rule(count: int) -> tuple[Array, Array]:
        nodes, weights = right(count)
        return nodes, weights * np.sqrt(2 * np.pi)

    return rule


def _with_nodes(change: Callable[[Query], tuple[int, int] | None]) -> Wrap:
    """The oracle is asked for other numbers of quadrature nodes."""
    return _scores(
        lambda step, query, result, ask: ask(step, Query("scores", {**query.options, "nodes": change(query)}))
    )


def _nodes_asked(query: Query) -> tuple[int, int]:
    slope = query.options.get("slope", "random_order")
    return quadrature_nodes(query.options.get("nodes"), slope)


def _swapped_nodes(query: Query) -> tuple[int, int]:
    path, normal = _nodes_asked(query)
    return normal, max(path, 2)


def other_nodes(path: int, normal: int) -> "Fault":
    """Return the mistake of taking `path` and `normal` quadrature nodes whatever is asked for."""
    return Fault(
        f"nodes-{path}-{normal}",
        f"({path}, {normal}) quadrature nodes, whatever is asked for",
        "a number of nodes of its own",
        _with_nodes(lambda query: (path, normal)),
    )


def _influence_with(gamma_at: str, slope: Callable[..., Array]) -> Wrap:
    def change(step: Step, query: Query, result: Array, ask: Ask) -> Array:
        x, g = _x(step), models.batch_gradient(step)
        params = adam.update(step)[0] if gamma_at == "after" else step.params
        gamma, c = models.loss_gradient(step.net, params, step.valid), adam.step_coefficients(step)
        P = {name: (gamma[name] * slope(c[name], g[name]))[None] for name in x}
        return scoring.dot_products(x, P)[:, 0]

    return _returns(change, "influence")


def _decay_last(step: Step, query: Query, result: Any, ask: Ask) -> Any:
    params, state = result
    shrink = 1 - step.adam.lr * step.adam.weight_decay
    wrong = {name: (p - _decayed(step, name) + step.params[name]) * shrink for name, p in params.items()}
    return wrong, state


def _state_with(m: Callable[..., Array], v: Callable[..., Array], steps: int = 1) -> Wrap:
    """`update` returns another state: ``m(m, g, β1)`` and ``v(v, x, g, β2)``."""

    def change(step: Step, query: Query, result: Any, ask: Ask) -> Any:
        x, g, (beta1, beta2) = _x(step), models.batch_gradient(step), step.adam.betas
        state = AdamState(
            step.state.step + steps,
            {name: m(step.state.m[name], g[name], beta1) for name in g},
            {name: v(step.state.v[name], x[name], g[name], beta2) for name in g},
        )
        return result[0], state

    return _returns(change, "update")


def _right_m(m: Array, g: Array, beta: float) -> Array:
    return beta * m + (1 - beta) * g


def _right_v(v: Array, x: Array, g: Array, beta: float) -> Array:
    return beta * v + (1 - beta) * g**2


_SEEN = "seen when the method is re-implemented"
_LESS = "LESS (arXiv 2402.04333) preconditions so"

FLOAT32 = "float32-results"
"""The fault of results in float32; the diagnosis gives its name to computations in float32 too."""

FAULTS: tuple[Fault, ...] = (
    # Adam's coefficients
    Fault(
        "eps-inside-root",
        "ε inside the square root",
        _LESS,
        _settings(eps_root=lambda a: a.eps_root + a.eps, eps=lambda a: 0.0),
    ),
    Fault("eps-root-ignored", "ε_root left out", "PyTorch has none", _settings(eps_root=lambda a: 0.0)),
    Fault(
        "eps-root-before-correction",
        "ε_root added to v before its bias correction",
        "optax adds it after",
        _coefficients(
            lambda c, a, t, m, v: replace(c, kappa=(a.betas[1] * v + a.eps_root) / bias_correction(a.betas[1], t))
        ),
    ),
    Fault(
        "eps-before-correction",
        "ε/√c2 for ε: ε added to √v before its bias correction",
        "Keras (TensorFlow) does so",
        _coefficients(lambda c, a, t, m, v: replace(c, eps=a.eps / np.sqrt(bias_correction(a.betas[1], t)))),
    ),
    Fault(
        "eps-as-floor",
        "max(√, ε) for √ + ε in the denominator",
        "ε as a guard against division by 0",
        _floored,
    ),
    Fault(
        "no-bias-correction",
        "no bias correction",
        _LESS,
        _with(adam.bias_correction, lambda right: lambda beta, t: 1.0),
    ),
    Fault(
        "bias-correction-of-m-only",
        "bias correction of m but not of v",
        _SEEN,
        _coefficients(lambda c, a, t, m, v: replace(c, kappa=a.betas[1] * v + a.eps_root, q=1 - a.betas[1])),
    ),
    Fault(
        "bias-correction-previous",
        "bias correction with t − 1",
        "the step counter is read before it is advanced",
        _corrected_with(lambda t: t - 1),
    ),
    Fault(
        "bias-correction-next",
        "bias correction with t + 1",
        "the step counter is read after scoring",
        _corrected_with(lambda t: t + 1),
    ),
    Fault(
        "bias-correction-capped",
        "bias correction that ends at t = 100",
        "large t: a table or a float16 power",
        _corrected_with(lambda t: min(t, 100)),
    ),
    Fault(
        "state-already-corrected",
        "m and v taken as bias-corrected already",
        "some libraries store m̂ and v̂",
        _coefficients(lambda c, a, t, m, v: replace(c, mu=a.betas[0] * m, kappa=a.betas[1] * v + a.eps_root)),
    ),
    Fault("v-after-the-step", "v_t for v_{t−1}", "v is updated before scoring", _state(_advanced_v)),
    Fault(
        "state-after-the-step",
        "m and v of after the step",
        "the state is updated before scoring",
        _state(_advanced_state),
    ),
    Fault("betas-swapped", "β1 and β2 swapped", "argument order", _settings(betas=lambda a: a.betas[::-1])),
    Fault(
        "v-not-decayed",
        "√v without the factor β2 and the bias correction",
        "the state's root is at hand",
        _coefficients(lambda c, a, t, m, v: replace(c, kappa=v + a.eps_root)),
    ),
    Fault(
        "m-not-decayed",
        "μ without the factor β1",
        _SEEN,
        _coefficients(lambda c, a, t, m, v: replace(c, mu=m / bias_correction(a.betas[0], t))),
    ),
    Fault(
        "gradient-not-averaged",
        "k without the factor 1 − β1",
        "momentum as in SGD",
        _coefficients(lambda c, a, t, m, v: replace(c, k=1 / bias_correction(a.betas[0], t))),
    ),
    Fault(
        "square-not-averaged",
        "q without the factor 1 − β2",
        _SEEN,
        _coefficients(lambda c, a, t, m, v: replace(c, q=1 / bias_correction(a.betas[1], t))),
    ),
    Fault(
        "no-momentum",
        "m left out",
        "the momentum term is dropped as sample-independent",
        _coefficients(lambda c, a, t, m, v: replace(c, mu=np.zeros_like(m))),
    ),
    Fault(
        "square-left-out",
        "the batch's own g² left out of the denominator",
        "the variance is held fixed",
        _coefficients(lambda c, a, t, m, v: replace(c, q=1e-300)),
    ),
    # weight decay
    Fault("decay-coupled", "weight decay coupled (L2 in the loss)", "torch.optim.Adam's weight_decay", _coupled),
    Fault(
        "decay-without-lr",
        "weight decay not multiplied by the learning rate",
        "the AdamW paper's own form",
        _with(
            adam.decayed,
            lambda _: lambda step: {name: p * (1 - step.adam.weight_decay) for name, p in step.params.items()},
        ),
    ),
    Fault(
        "decay-not-of-biases",
        "weight decay of the weights alone, not of the biases",
        "parameter groups without decay, as for transformers",
        _with(adam.decayed, _weights_decayed),
    ),
    Fault("decay-left-out", "weight decay left out", _SEEN, _settings(weight_decay=lambda a: 0.0)),
    Fault("decay-after-the-step", "weight decay applied after Adam's step", _SEEN, _returns(_decay_last, "update")),
    # the state that `update` returns
    Fault(
        "m-without-decay", "m⁺ = m + (1 − β1) g", _SEEN, _state_with(lambda m, g, beta: m + (1 - beta) * g, _right_v)
    ),
    Fault(
        "v-of-per-sample-squares",
        "v⁺ made of Σ x_i² for g²",
        "per-sample g² for batch g²",
        _state_with(_right_m, lambda v, x, g, beta: beta * v + (1 - beta) * (x**2).sum(axis=0)),
    ),
    Fault("step-not-counted", "a step counter that does not advance", _SEEN, _state_with(_right_m, _right_v, steps=0)),
    # reduction and coalitions
    Fault(
        "sum-for-mean",
        "sum for mean",
        "the loss's reduction is not undone",
        _sees(lambda step: replace(step, reduction="sum")),
    ),
    Fault(
        "mean-for-sum",
        "mean for sum",
        "the loss's reduction is not undone",
        _sees(lambda step: replace(step, reduction="mean")),
    ),
    Fault(
        "coalition-size-as-divisor",
        "|S| as the divisor of a coalition's gradient",
        "the mean over the coalition is at hand",
        _with(game.coalition_gradient, _own_coalition_size),
    ),
    Fault(
        "last-micro-batch-full",
        "the last, partial micro-batch weighted as a full one",
        "gradient accumulation",
        _with(models.sample_gradients, _last_micro_batch(4)),
    ),
    # the game
    Fault(
        "sign",
        "the opposite sign",
        "arXiv 2406.11011 has the opposite sign",
        _returns(
            lambda step, query, result, ask: (
                replace(result, values=-result.values) if isinstance(result, Marginals) else -result
            ),
            "scores",
            "marginals",
            "influence",
            "utility",
        ),
    ),
    Fault(
        "history-in-first",
        "U(∅) left in the marginals",
        "the paper's marginal utility holds it",
        _returns(lambda step, query, result, ask: _with_history(result), "marginals"),
    ),
    Fault(
        "nothing-for-nobody",
        "U(∅) taken as 0",
        "without data no step is taken, and the momentum's is forgotten",
        _returns(_nothing_for_nobody, "utility"),
    ),
    Fault(
        "frozen-denominator-in-the-game",
        "the whole batch's denominator for every coalition",
        "batch g² for the coalition's",
        _returns(_frozen_game, "utility", "marginals"),
    ),
    Fault(
        "banzhaf",
        "the Banzhaf value for the Shapley value",
        "all coalitions weigh the same",
        _with(game.shapley_values, _banzhaf),
    ),
    Fault(
        "first-and-last",
        "the mean of first and last for the Shapley value",
        "a cheap stand-in",
        _with(game.shapley_values, _first_and_last),
    ),
    Fault(
        "utility-without-decay",
        "weight decay left out of the utility",
        _SEEN,
        _returns(
            lambda step, query, result, ask: ask(replace(step, adam=replace(step.adam, weight_decay=0.0)), query),
            "utility",
            "marginals",
        ),
    ),
    # the network
    Fault(
        "derivative-at-the-output",
        "tanh's derivative taken at its output",
        "φ'(a) for φ'(z)",
        _activation("tanh", _tanh_by_output),
    ),
    Fault(
        "silu-derivative-short",
        "SiLU's derivative without the term z σ'(z)",
        "the product rule forgotten",
        _activation("silu", _silu_short),
    ),
    Fault(
        "sigmoid-derivative-at-the-output",
        "sigmoid's derivative taken at its output",
        "σ'(a) for σ'(z)",
        _activation("sigmoid", _sigmoid_by_output),
    ),
    Fault(
        "gelu-by-tanh",
        "GELU by its tanh approximation",
        "jax.nn.gelu's default",
        _activation("gelu", lambda z: 0.5 * z * (1 + anp.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))),
    ),
    Fault(
        "squares-summed",
        "squared errors summed over outputs",
        "the mean over outputs is PyTorch's",
        _scaled_squares(float),
    ),
    Fault("squares-halved", "half the squared error", "textbooks' loss", _scaled_squares(lambda d_out: 0.5)),
    Fault(
        "bias-dropped",
        "bias gradients dropped from the scores",
        "only linear weights are hooked",
        _dropping(lambda name, step: name.endswith("bias")),
    ),
    Fault(
        "first-layer-skipped",
        "the first layer skipped",
        "its input has no gradient, so its hook is not called",
        _dropping(lambda name, step: name.startswith("0.") and step.net.depth > 1),
    ),
    Fault(
        "last-layer-skipped",
        "the last layer skipped",
        _SEEN,
        _dropping(lambda name, step: name.startswith(f"{step.net.depth - 1}.") and step.net.depth > 1),
    ),
    Fault(
        "bias-where-there-is-none",
        "a bias term in networks without bias",
        "activations are extended by 1",
        _scores(_ghost_bias),
    ),
    Fault(
        "transposed",
        "P transposed on square layers",
        "on others the shapes would not fit",
        _with(scoring.dot_products, _transposed),
    ),
    # validation
    Fault(
        "validation-summed",
        "the validation loss summed, not averaged",
        "the loss's reduction",
        _scores(
            lambda step, query, result, ask: result if query.options.get("per_validation") else result * step.n_val
        ),
    ),
    Fault(
        "per-validation-averaged",
        "columns of per_validation divided by n_val",
        "the mean's weight kept",
        _scores(
            lambda step, query, result, ask: result / step.n_val if query.options.get("per_validation") else result
        ),
    ),
    Fault(
        "summed-separately",
        "summed activations times summed gradients of the validation batch",
        "GhostSuite issue 8",
        _with(models.loss_gradient, _summed_separately),
    ),
    Fault(
        "validated-on-the-batch",
        "the training batch for the validation samples",
        _SEEN,
        _sees(lambda step: replace(step, valid=step.train)),
    ),
    # slopes
    Fault(
        "sgd-for-all",
        "SGD's slope for every slope",
        "Adam runs scored by SGD's dot product",
        _scores(
            lambda step, query, result, ask: ask(
                step,
                Query(
                    "scores",
                    {name: value for name, value in query.options.items() if name not in ("denominator", "kind")}
                    | {"slope": "sgd"},
                ),
            )
        ),
    ),
    Fault(
        "lr-left-out",
        "the learning rate left out of the scores",
        "a dot product of gradients",
        _scores(lambda step, query, result, ask: result / step.adam.lr),
    ),
    Fault(
        "momentum-per-sample",
        "the momentum step counted for every sample",
        "A(g_i) for A(g_i) − A(0)",
        _scores(lambda step, query, result, ask: result + _momentum_gain(step, query)),
    ),
    Fault(
        "momentum-shared",
        "the momentum step shared out among the samples",
        "scores that sum to U(B)",
        _scores(lambda step, query, result, ask: result + _momentum_gain(step, query) / step.n),
    ),
    Fault(
        "linearized-at-the-batch",
        "`linearized` with the batch's denominator D(g)",
        "the optimiser's own denominator",
        _slope(slopes.linearized, slopes.frozen),
    ),
    Fault("frozen-at-zero", "`frozen` with the denominator D(0)", _SEEN, _slope(slopes.frozen, slopes.linearized)),
    Fault(
        "frozen-by-per-sample-squares",
        "`frozen` with Σ x_i² for g² in the denominator",
        "per-sample g² for batch g²",
        _slope(slopes.frozen, _per_sample_squares),
    ),
    Fault(
        "tangent-is-frozen",
        "`tangent` without the derivative of the denominator",
        "the denominator counted as a constant",
        _slope(slopes.tangent, slopes.frozen),
    ),
    Fault("secant-to-the-origin", "`secant` as A(g)/g", "A(0) forgotten", _slope(slopes.secant, _chord_to_the_origin)),
    Fault("secant-is-tangent", "`tangent` for `secant`", _SEEN, _slope(slopes.secant, slopes.tangent)),
    Fault(
        "previous-not-corrected",
        'v̂_{t−1} without bias correction in denominator="previous"',
        _SEEN,
        _with(
            slopes.linearized_previous,
            lambda _: (
                lambda step: {
                    name: step.adam.lr * c.k / (np.sqrt(step.state.v[name] + step.adam.eps_root) + step.adam.eps)
                    for name, c in adam.step_coefficients(step).items()
                }
            ),
        ),
    ),
    Fault(
        "variance-uncentred",
        "`random_order` with Σ x_i² for the variance",
        "the mean is not subtracted",
        _with(slopes.partial_sum_deviation, lambda right: lambda x, g: right(x, np.zeros_like(g))),
    ),
    Fault(
        "variance-with-replacement",
        "`random_order` without the factor n/(n − 1)",
        "drawn with replacement",
        _with(slopes.partial_sum_deviation, lambda right: lambda x, g: right(x, g) * np.sqrt((len(x) - 1) / len(x))),
    ),
    Fault(
        "spread-constant",
        "`random_order` without the factor τ(1 − τ)",
        "the whole batch's spread at every τ",
        _random_order_with(lambda sigma, tau: sigma),
    ),
    Fault(
        "spread-of-independent-arrivals",
        "`random_order` with variance τ for τ(1 − τ)",
        "drawn with replacement",
        _random_order_with(lambda sigma, tau: np.sqrt(tau) * sigma),
    ),
    Fault(
        "physicists-hermite",
        "`random_order` with the physicists' Hermite nodes",
        "numpy's hermgauss for hermegauss",
        _random_order_with(lambda sigma, tau: np.sqrt(tau * (1 - tau)) * sigma, rule=_physicists_rule),
    ),
    Fault(
        "hermite-weights-not-normalised",
        "`random_order` with Hermite weights that sum to √(2π)",
        "numpy's hermegauss as it is",
        _with(slopes.positive_normal_rule, _unnormalized_rule),
    ),
    Fault(
        "nodes-ignored",
        "the default numbers of quadrature nodes, whatever is asked for",
        "the option is not handed on",
        _with_nodes(lambda query: None),
    ),
    Fault(
        "nodes-swapped",
        "nodes = (normal, path)",
        "argument order",
        _with_nodes(_swapped_nodes),
    ),
    other_nodes(8, 8),
    Fault(
        "half-the-normal",
        "`random_order` with the positive half of the normal only",
        "the factor 2 forgotten",
        _random_order_with(lambda sigma, tau: np.sqrt(tau * (1 - tau)) * sigma, weight=0.5),
    ),
    Fault(
        "one-term",
        "`two_term` without its second term",
        "a ghost dot product has one slope",
        _with(two_term.two_coefficients, lambda right: lambda *given: (right(*given)[0], np.zeros_like(given[2][0]))),
    ),
    Fault(
        "root-without-sign",
        "`two_term` with a second term without x's sign",
        "the sign is lost under the root",
        _with(two_term.signed_root, lambda right: lambda x: np.abs(right(x))),
    ),
    Fault(
        "own-spread-with-n-minus-1",
        "`two_term` with n − 1 for n in the samples' own variance",
        "numpy's ddof, a sample's variance for a population's",
        _with(two_term.own_spread, lambda right: lambda x: right(x) * np.sqrt(len(x) / max(len(x) - 1, 1))),
    ),
    Fault(
        "two-term-at-the-middle",
        "`two_term` with the gradient on all of the way for `first` and `last`",
        "the same midpoint for all slopes",
        _with(two_term.part_of_the_way, lambda right: lambda kind, n: (0.0, 1.0)),
    ),
    Fault(
        "two-term-always-shapley",
        "`two_term` with the slopes of the Shapley value for `first` and `last`",
        "the kind is handed on to the gradient only",
        _with(two_term.two_coefficients, lambda right: lambda kind, *given: right("shapley", *given)),
    ),
    Fault(
        "found-with-replacement",
        "`two_term` with what a sample finds drawn with replacement",
        "τ N for τ(1 − τ) N²/(N − 1)",
        _with(two_term.found_variance, lambda right: lambda tau, others: tau * others),
    ),
    # validation gradients, closing, influence
    Fault(
        "midpoint-without-momentum",
        "`midpoint` at θ − η λ θ − A(g)/2",
        "the segment starts at θ",
        _between_with(lambda step, name, empty, full, f: _decayed(step, name) - f * full),
    ),
    Fault(
        "midpoint-without-decay",
        "`midpoint` and `path` without weight decay",
        _SEEN,
        _between_with(lambda step, name, empty, full, f: step.params[name] - (1 - f) * empty - f * full),
    ),
    Fault(
        "midpoint-backwards",
        "`midpoint` and `path` on the other side of θ",
        "the sign of the update",
        _between_with(lambda step, name, empty, full, f: _decayed(step, name) + (1 - f) * empty + f * full),
    ),
    Fault(
        "start-for-all",
        "the gradient at θ for `midpoint` and `path`",
        "one validation gradient for all",
        _scores(
            lambda step, query, result, ask: ask(step, Query("scores", dict(query.options) | {"gradient": "start"}))
        ),
    ),
    Fault(
        "closed-proportionally",
        "what is missing spread in proportion to the scores",
        "efficient=True",
        _scores(_proportionally),
    ),
    Fault(
        "closed-to-the-whole-gain",
        "scores closed to U(B) for U(B) − U(∅)",
        "efficient=True",
        _scores(_to_the_whole_gain),
    ),
    Fault(
        "influence-at-theta",
        "`influence` with the gradient at θ",
        "the gradient at hand",
        _influence_with("before", lambda c, g: adam.divided_difference(c, g, g)),
    ),
    Fault(
        "influence-frozen",
        "`influence` without the derivative of the denominator",
        "the denominator counted as a constant",
        _influence_with("after", lambda c, g: c.lr * c.k / adam.denominator(c, g)),
    ),
    # precision
    Fault(
        "float16-results",
        "results in float16",
        "mixed precision without a float32 sum",
        _results_in(np.float16),
    ),
    Fault(
        FLOAT32,
        "results in float32",
        "a framework's default dtype",
        _results_in(np.float32),
    ),
)

BY_NAME: dict[str, Fault] = {fault.name: fault for fault in FAULTS}
