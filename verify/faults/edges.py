"""Mistakes that show at the edges alone: other steps leave the answers right.

They are apart from the other faults, since the vectors v1 have no such steps. Most are caught by the usual properties
at seed 0 or 1, since these draw edges; the rest by ``adamshap verify --edges`` alone (`tests/kit/test_edge_faults.py`).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import autograd.numpy as anp
import numpy as np

from adamshap.reference import adam, models, perceptron, slopes
from adamshap.reference.contract import AdamState, Array, Batch, Network, Params, Step
from adamshap.verify.faults.fault import Fault, Wrap, computes_with, returns, sees
from adamshap.verify.implementation import Ask, Query
from adamshap.verify.models.perceptron import network_of
from adamshap.verify.replacing import replaced
from adamshap.verify.steps import adam_of

# --- helpers ----------------------------------------------------------------------------------------------------------


def _relu_with(at_zero: float) -> Wrap:
    """Return ReLU with another derivative at exactly 0."""
    right = perceptron.ACTIVATION_FUNCTIONS["relu"]

    def relu(z: Any) -> Any:
        return anp.where(z > 0, z, 0.0) + at_zero * anp.where(z == 0, z, 0.0)

    def wrap(ask: Ask) -> Ask:
        def faulty(step: Step, query: Query) -> Any:
            with replaced("relu", right, relu):
                return ask(step, query)

        return faulty

    return wrap


def _t(change: Callable[[int], int]) -> Wrap:
    """Return bias correction with another t."""
    return computes_with(adam.bias_correction, lambda right: lambda beta, t: _corrected(beta, change(int(t))))


def _corrected(beta: float, t: int) -> float:
    with np.errstate(all="ignore"):
        return float(1 - np.float64(beta) ** t) or 1.0


def _signed(bits: int) -> Callable[[int], int]:
    return lambda t: (t + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)


def _settings(**changes: Callable[[Any], Any]) -> Wrap:
    def change(step: Step) -> Step:
        given = adam_of(step)
        return replace(step, adam=replace(given, **{name: f(given) for name, f in changes.items()}))

    return sees(change)


def kept(size: int, tile: int) -> int:
    """Return a size without its last, partial tile; a size within one tile is unchanged."""
    return size - size % tile if size > tile else size


def _without_rest(axis: int, tile: int, parameters: str = "weight") -> Wrap:
    """Return the oracle with a lost remainder along one axis of each sample's gradient: 0 is the sample."""

    def make(right: Any) -> Any:
        def gradients(step: Step) -> Params:
            x = {name: x_i.copy() for name, x_i in right(step).items()}
            for name, x_i in x.items():
                if x_i.ndim > axis and (axis == 0 or name.endswith(parameters)):
                    np.moveaxis(x_i, axis, 0)[kept(x_i.shape[axis], tile) :] = 0.0
            return x

        return gradients

    return computes_with(models.sample_gradients, make)


def _valid_as(change: Callable[[Batch], Array]) -> Wrap:
    """Return the oracle with some of the validation samples, by their indices; `per_validation` stays as it is."""

    def wrap(ask: Ask) -> Ask:
        def faulty(step: Step, query: Query) -> Any:
            if query.options.get("per_validation"):
                return ask(step, query)
            return ask(replace(step, valid=step.valid.take(change(step.valid))), query)

        return faulty

    return wrap


def _train_weights(change: Callable[[Step], Array]) -> Wrap:
    """Return the oracle with a weight for each sample's gradient."""

    def make(right: Any) -> Any:
        def gradients(step: Step) -> Params:
            weight = change(step)
            return {name: x * weight.reshape(-1, *[1] * (x.ndim - 1)) for name, x in right(step).items()}

        return gradients

    return computes_with(models.sample_gradients, make)


def _first_of_equal(rows: Array) -> Array:
    return np.sort(np.unique(rows.reshape(len(rows), -1), axis=0, return_index=True)[1])


def _with_labels(batch: Batch) -> Array:
    return np.column_stack([batch.x.reshape(batch.n, -1), batch.y.reshape(batch.n, -1)])


def _sorted_names(ask: Ask) -> Ask:
    """Pair the sorted names of the parameters with the arrays in the order of the layers, where the shapes allow it."""

    def faulty(step: Step, query: Query) -> Any:
        if query.function == "update":
            return ask(step, query)
        names = list(step.params)

        def paired(arrays: Params) -> Params:
            by_layer = sorted(names, key=lambda name: name.split(".")[0])
            other = dict(zip(by_layer, (arrays[name] for name in names), strict=True))
            fits = all(other[name].shape == arrays[name].shape for name in names)
            return other if fits else arrays

        state = AdamState(step.state.step, paired(step.state.m), paired(step.state.v))
        return ask(replace(step, state=state), query)

    return faulty


def _in_place(ask: Ask) -> Ask:
    """Write the new parameters into the arrays of the old ones, where they can be written."""

    def faulty(step: Step, query: Query) -> Any:
        result = ask(step, query)
        if query.function == "update":
            for name, p in result[0].items():
                if step.params[name].flags.writeable:
                    step.params[name][...] = p
        return result

    return faulty


def _by_memory(ask: Ask) -> Ask:
    """Read every matrix in the order of its memory."""

    def faulty(step: Step, query: Query) -> Any:
        def read(array: Array) -> Array:
            return np.array(array.ravel(order="K")).reshape(array.shape)

        return ask(replace(step, params={name: read(p) for name, p in step.params.items()}), query)

    return faulty


def _same_buffer(ask: Ask) -> Ask:
    """Return scores in one buffer for each shape."""
    buffers: dict[tuple[int, ...], Array] = {}

    def faulty(step: Step, query: Query) -> Any:
        result = ask(step, query)
        if query.function not in ("scores", "influence"):
            return result
        buffer = buffers.setdefault(result.shape, np.empty(result.shape))
        buffer[...] = result
        return buffer

    return faulty


def _cached_by_shape(ask: Ask) -> Ask:
    """Take the moments of the first step with parameters of these shapes."""
    seen: dict[Any, AdamState] = {}

    def faulty(step: Step, query: Query) -> Any:
        key = (step.state.step, str(query), *((name, p.shape) for name, p in step.params.items()))
        state = seen.setdefault(key, step.as_float64().state)
        return ask(replace(step, state=state), query)

    return faulty


def _untouched_where_zero(step: Step, query: Query, result: Any, ask: Ask) -> Any:
    params, state = result
    return {name: np.where(step.params[name] == 0, 0.0, p) for name, p in params.items()}, state


FIRST: tuple[Fault, ...] = (
    Fault("relu-derivative-one", "ReLU's derivative 1 at exactly 0", "z ≥ 0 for z > 0", _relu_with(1.0)),
    Fault("relu-derivative-half", "ReLU's derivative ½ at exactly 0", "autograd's maximum", _relu_with(0.5)),
    Fault("t-int8", "t in an 8-bit integer", "a small dtype for a counter", _t(_signed(8))),
    Fault("t-int16", "t in a 16-bit integer", "a small dtype for a counter", _t(_signed(16))),
    Fault("t-int32", "t in a 32-bit integer", "optax counts so", _t(_signed(32))),
    Fault("t-float32", "t in float32", "PyTorch counts so", _t(lambda t: int(np.float32(t)))),
    Fault("t-clamped", "t held at 10⁴", "β^t taken as 0 from there on", _t(lambda t: min(t, 10**4))),
    *(
        Fault(
            f"rest-of-{tile}-{what}",
            f"the remainder of a tile of {tile} {what} dropped",
            "a kernel without its tail",
            _without_rest(axis, tile),
        )
        for what, axis, tile in (
            *(("rows", 1, 32), ("rows", 1, 128), ("columns", 2, 64), ("columns", 2, 256)),
            *(("samples", 0, 32), ("samples", 0, 128), ("samples", 0, 256)),
        )
    ),
    Fault(
        "rest-of-64-validation-samples",
        "the remainder of a tile of 64 validation samples dropped",
        "a kernel without its tail",
        _valid_as(lambda batch: np.arange(kept(batch.n, 64))),
    ),
    Fault("names-as-strings", "parameters sorted as strings, 10 before 2", "sorted(params)", _sorted_names),
    Fault("eps-zero-unset", "ε = 0 taken as 1e-8", "eps or 1e-8", _settings(eps=lambda adam: adam.eps or 1e-8)),
    Fault("lr-zero-unset", "η = 0 taken as 1e-3", "lr or 1e-3", _settings(lr=lambda adam: adam.lr or 1e-3)),
    Fault(
        "beta-zero-unset",
        "β = 0 taken as PyTorch's default",
        "beta or 0.9",
        _settings(betas=lambda adam: (adam.betas[0] or 0.9, adam.betas[1] or 0.999)),
    ),
    Fault(
        "decay-beyond-one",
        "weight decay held at ηλ = 1",
        "max(0, 1 − ηλ)",
        _settings(weight_decay=lambda adam: min(adam.weight_decay, 1 / adam.lr if adam.lr else adam.weight_decay)),
    ),
    Fault(
        "equal-validation-merged",
        "equal validation samples counted once",
        "np.unique on rows",
        _valid_as(lambda batch: _first_of_equal(_with_labels(batch))),
    ),
    Fault(
        "equal-validation-inputs-merged",
        "validation samples of equal inputs counted once, whatever their labels",
        "a dict keyed by the input",
        _valid_as(lambda batch: _first_of_equal(batch.x)),
    ),
    Fault("in-place", "the new parameters written into the arrays of the old", "p -= step", _in_place, guarded=True),
    Fault(
        "memory-order", "matrices read in the order of memory", "a pointer without strides", _by_memory, guarded=True
    ),
    Fault("same-buffer", "every result in the buffer of the last one", "out= of a class", _same_buffer, guarded=True),
    Fault("cached-by-shape", "the moments of an earlier step of the same shapes", "a cache by shape", _cached_by_shape),
    Fault(
        "pruned",
        "parameters of exactly 0 kept at 0",
        "a mask of pruned weights",
        returns(_untouched_where_zero, "update"),
    ),
)
"""Written together with the edges."""


# --- written after the edges ------------------------------------------------------------------------------------------


def _transposed_if_square(right: Any) -> Any:
    def gradients(step: Step) -> Params:
        return {
            name: np.swapaxes(x, 1, 2) if x.ndim == 3 and x.shape[1] == x.shape[2] else x
            for name, x in right(step).items()
        }

    return gradients


def _weighted_along_outputs(right: Any) -> Any:
    """Weigh the bias's gradients (n, d_out) by a vector (n,), which broadcasts along the outputs where n = d_out."""

    def gradients(step: Step) -> Params:
        x, weight = right(step), np.linspace(0.5, 1.5, step.n)
        return {
            name: x_i * weight / weight[:, None] if x_i.ndim == 2 and x_i.shape[1] == step.n else x_i
            for name, x_i in x.items()
        }

    return gradients


def _matrix_transposed(step: Step, query: Query, result: Any, ask: Ask) -> Any:
    return result.T if result.ndim == 2 and step.n == step.n_val else result


def _depth_by_first_digit(right: Any) -> Any:
    """Take the gradient of layer 1 for those of the layers from 10 on, where the shapes allow it."""

    def gradients(step: Step) -> Params:
        x = right(step)
        other = {name: f"{name[0]}.{name.split('.')[-1]}" for name in x}
        return {name: x[other[name]] if x[other[name]].shape == x_i.shape else x_i for name, x_i in x.items()}

    return gradients


def _quotient(right: Any) -> Any:
    """Compute A[a, b] as a quotient of differences, 0 where a = b."""

    def difference(c: Any, a: Array, b: Array) -> Array:
        same = np.broadcast_arrays(a, b)[0] == np.broadcast_arrays(a, b)[1]
        return np.where(same, 0.0, right(c, a, b))

    return difference


def _lazy(step: Step, query: Query, result: Any, ask: Ask) -> Any:
    """Leave parameters alone whose gradient is exactly 0, as sparse optimisers do."""
    params, state = result
    g = models.batch_gradient(step)
    return {name: np.where(g[name] == 0, step.params[name], p) for name, p in params.items()}, state


def _fresh_where_m_is_zero(step: Step) -> Step:
    """Take a state without momentum for the state before the first step."""
    if any(m.any() for m in step.state.m.values()):
        return step
    return replace(step, state=AdamState(0, step.state.m, step.state.v))


def _small_as_zero(right: Any) -> Any:
    return lambda step: {name: np.where(np.abs(x) < 1e-12, 0.0, x) for name, x in right(step).items()}


def _deviation_of_none(right: Any) -> Any:
    """Take one unit where the samples do not vary, against a division by 0."""
    return lambda x, g: np.where(right(x, g) == 0, 1e-3, right(x, g))


def _members_by_uint8(step: Step, query: Query) -> Query:
    mask = np.zeros(step.n, bool)
    mask[np.flatnonzero(query.options["coalition"]).astype(np.uint8)] = True
    return Query(query.function, {"coalition": mask})


def _uint8_members(ask: Ask) -> Ask:
    return lambda step, query: ask(step, _members_by_uint8(step, query) if query.function == "utility" else query)


def _labels_in_int8(ask: Ask) -> Ask:
    def faulty(step: Step, query: Query) -> Any:
        if not isinstance(step.net, Network) or step.net.loss != "cross_entropy":
            return ask(step, query)
        classes = network_of(step).sizes[-1]
        train, valid = (
            Batch(batch.x, batch.y.astype(np.int8).astype(int) % classes) for batch in (step.train, step.valid)
        )
        return ask(replace(step, train=train, valid=valid), query)

    return faulty


def _leaking(step: Step) -> Step:
    """Leave out validation samples that are training samples too, unless these are all."""
    rows = {row.tobytes() for row in step.train.x}
    other = np.array([row.tobytes() not in rows for row in step.valid.x])
    return replace(step, valid=step.valid.take(other)) if other.any() else step


def _unless_per_validation(change: Callable[[Step], Step]) -> Wrap:
    return lambda ask: lambda step, query: ask(step if query.options.get("per_validation") else change(step), query)


def _wrong_at(when: Callable[[Step], bool], factor: float = 0.5) -> Wrap:
    """Return scores and influences with a factor, for some steps only."""
    return returns(lambda step, query, result, ask: result * factor if when(step) else result, "scores", "influence")


AFTERWARDS: tuple[Fault, ...] = (
    Fault(
        "square-gradient-transposed",
        "the gradients of square matrices transposed",
        "only on others the shapes do not fit",
        computes_with(models.sample_gradients, _transposed_if_square),
    ),
    Fault(
        "weights-along-outputs",
        "the samples' weights broadcast along the outputs where their numbers are equal",
        "(n, d) * (n,) for n = d",
        computes_with(models.sample_gradients, _weighted_along_outputs),
    ),
    Fault(
        "square-scores-transposed",
        "the matrix by validation samples transposed where it is square",
        "only on others the shapes do not fit",
        returns(_matrix_transposed, "scores"),
    ),
    Fault(
        "layers-by-first-digit",
        "layer 1 for the layers from 10 on",
        "name[0] for the layer",
        computes_with(models.sample_gradients, _depth_by_first_digit),
    ),
    Fault(
        "slope-zero-where-equal",
        "slopes of 0 where both ends are equal",
        "a quotient of differences, with its NaN replaced",
        computes_with(adam.divided_difference, _quotient),
    ),
    Fault("lazy", "no step where the gradient is exactly 0", "sparse optimisers", returns(_lazy, "update")),
    Fault(
        "fresh-without-momentum",
        "a state with m = 0 taken as that before the first step",
        "`if not m.any()`",
        sees(_fresh_where_m_is_zero),
    ),
    Fault(
        "small-as-zero",
        "gradients below 1e-12 taken as 0",
        "a threshold against noise",
        computes_with(models.sample_gradients, _small_as_zero),
    ),
    Fault(
        "deviation-floor",
        "a variance of 0 replaced, where all samples are equal",
        "a guard against division by 0",
        computes_with(slopes.partial_sum_deviation, _deviation_of_none),
    ),
    Fault("members-uint8", "the members of a coalition in 8-bit integers", "a small dtype for indices", _uint8_members),
    Fault("labels-int8", "labels in 8-bit integers", "a small dtype for labels", _labels_in_int8),
    Fault(
        "equal-samples-merged",
        "equal samples of a batch counted once in its gradient",
        "a set of samples",
        _train_weights(
            lambda step: np.isin(np.arange(step.n), _first_of_equal(_with_labels(step.train))).astype(float)
        ),
    ),
    Fault(
        "zero-samples-not-counted",
        "the mean over the samples that are not 0",
        "a mask of padding for a count",
        _train_weights(
            lambda step: np.full(
                step.n, step.n / max(int(step.train.x.any(axis=1).sum()), 1) if step.reduction == "mean" else 1.0
            )
        ),
    ),
    Fault(
        "validation-without-training-samples",
        "validation samples left out that are training samples",
        "a guard against leaks",
        _unless_per_validation(_leaking),
    ),
    Fault(
        "n-uint8",
        "n counted in an 8-bit integer",
        "a small dtype for a counter",
        _train_weights(
            lambda step: np.full(step.n, step.n / (step.n % 256 or 256) if step.reduction == "mean" else 1.0)
        ),
    ),
    Fault(
        "n-uint16",
        "n counted in a 16-bit integer",
        "a small dtype for a counter",
        _train_weights(
            lambda step: np.full(step.n, step.n / (step.n % 65536 or 65536) if step.reduction == "mean" else 1.0)
        ),
    ),
    Fault(
        "one-validation-sample-squeezed",
        "half the score for a single validation sample",
        "an axis of length 1 squeezed",
        _wrong_at(lambda step: step.n_val == 1),
    ),
    Fault(
        "small-root-unset",
        "ε_root of 0 taken as 1e-12 where ε is 0",
        "a guard against division by 0",
        _settings(eps_root=lambda adam: adam.eps_root or (0.0 if adam.eps else 1e-12)),
    ),
    Fault(
        "decay-skipped-at-zero",
        "no decay where ηλ is 1 or more",
        "a guard against divergence",
        _settings(weight_decay=lambda adam: adam.weight_decay if adam.lr * adam.weight_decay < 1 else 0.0),
    ),
    Fault(
        "numbers-16-bit",
        "gradients left out beyond the first 2¹⁶ numbers of a matrix",
        "a small dtype for indices",
        computes_with(
            models.sample_gradients,
            lambda right: (
                lambda step: {
                    name: np.where(np.arange(x[0].size).reshape(x.shape[1:]) < 2**16, x, 0.0)
                    for name, x in right(step).items()
                }
            ),
        ),
    ),
)
"""Mistakes that were written after the edges: the edges were not drawn for them."""

FAULTS: tuple[Fault, ...] = (*FIRST, *AFTERWARDS)
