"""Mistakes in layers of sequences; answers for perceptrons stay right.

The vectors v1 have perceptrons only, so none of these can show there: vectors of stacks of layers have to expose them.
A gradient is left out by `constant`: the value stays, and autograd sees no dependence.
"""

import math
from collections.abc import Callable
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defvjp, primitive

from adamshap.reference import adam, layers, losses, models, perceptron, scoring, slopes, two_term
from adamshap.reference.contract import NOT_COUNTED, TWO_TERM, Array, Params, Sequential, Step
from adamshap.reference.losses import constant
from adamshap.verify.faults.fault import SEEN, Fault, Wrap, changes_scores, computes_with
from adamshap.verify.faults.model import dropping
from adamshap.verify.implementation import Ask, Query

Layer = Callable[..., Any]
"""A layer's function of the oracle: of its description, the parameters, its name and its inputs."""


# --- ways to plant ---------------------------------------------------------------------------------------------------


def with_weight(name: str, change: Callable[[Any, Any], Any]) -> Callable[[Layer], Layer]:
    """Return a wrong layer that sees ``change(layer, parameter)`` for its parameter `name`."""

    def make(right: Layer) -> Layer:
        def wrong(layer: Any, params: Any, own: str, x: Any) -> Any:
            full = f"{own}.{name}"
            return right(layer, {**params, full: change(layer, params[full])}, own, x)

        return wrong

    return make


def _only(mask: Array, x: Any) -> Any:
    """Return x, with a gradient where `mask` is true only."""
    return anp.where(mask, x, constant(x))


def _no_gradient(layer: Any, p: Any) -> Any:
    return constant(p)


# --- products at positions -------------------------------------------------------------------------------------------


def _weight_gradient(
    wrong: Callable[[Array, Array], Array], of_batch: Callable[[Array, Array], Array] | None = None
) -> Wrap:
    """Return a fault that computes a weight's gradient from a (n, T, d_in) and b (n, T, d_out) by `wrong`: (n, …).

    The gradient of a batch's mean loss is the sum of the samples' ones, or that of `of_batch`, without n.
    """

    @primitive  # type: ignore[untyped-decorator]
    def at_positions(weight: Array, a: Array) -> Array:
        exact: Array = a.reshape(len(a), -1, a.shape[-1]) @ np.swapaxes(weight, -2, -1)
        return exact.reshape(*a.shape[:-1], -1)

    def rows(x: Array) -> Array:
        return x.reshape(len(x), -1, x.shape[-1])

    def weight_back(ans: Array, weight: Array, a: Array) -> Callable[[Array], Array]:
        def back(b: Array) -> Array:
            if weight.ndim == 2 and of_batch is not None:
                return of_batch(rows(a), rows(b))
            each = wrong(rows(a), rows(b))
            return each if weight.ndim == 3 else each.sum(axis=0)

        return back

    defvjp(at_positions, weight_back, lambda ans, weight, a: lambda b: (rows(b) @ weight).reshape(a.shape))

    def make(right: Any) -> Any:
        return lambda weight, a: right(weight, a) if a.ndim == 2 else at_positions(weight, a)

    return computes_with(perceptron.product, make)


def _pairs(a: Array, b: Array) -> Array:
    products: Array = np.einsum("nto,nti->noi", b, a)
    return products


def _summed_over_samples(a: Array, b: Array) -> Array:
    """Return the batch's gradient from Σ_j a_jt and Σ_j b_jt at each position t; b has the weight 1/n of the mean."""
    return b.sum(axis=0).T @ a.sum(axis=0)  # type: ignore[no-any-return]


def _of_equal_positions(step: Step, query: Query, result: Array, ask: Ask) -> Array:
    """Return scores with Σ_t ⟨P_t, x_it⟩ for ⟨Σ_t P_t, Σ_t x_it⟩ where a weight has products at positions t."""
    estimator = query.estimator
    if not isinstance(step.net, Sequential) or estimator.slope == TWO_TERM:
        return result
    x, c = models.sample_gradients(step), models.batch_clip_factor(step)
    g = {name: x_i.sum(axis=0) for name, x_i in x.items()}
    lengths = {0}

    def at(positions: slice) -> tuple[Params, Params]:
        """Return P and x from these positions alone, and from uses of parameters that have no positions."""

        def pairs(a: Array, b: Array) -> Array:
            lengths.add(a.shape[1])
            return _pairs(a[:, positions], b[:, positions])

        def computed(step: Step, query: Query) -> tuple[Params, Params]:
            ((_, P),) = scoring.score_matrices(step, estimator, x, g)  # the slopes are those of the right x and g
            return P, {name: c * x_i for name, x_i in models.unclipped_gradients(step).items()}

        return _weight_gradient(pairs)(computed)(step, query)  # type: ignore[no-any-return]

    none, whole = at(slice(0, 0)), at(slice(None))

    def product(positions: tuple[Params, Params]) -> Array:
        P, x_i = ({name: one[name] - other[name] for name in one} for one, other in zip(positions, none, strict=True))
        return scoring.dot_products(x_i, P)

    change = sum((product(at(slice(t, t + 1))) for t in range(max(lengths))), -product(whole))
    if estimator.efficient:
        change = change - change.mean(axis=0)
    wrong: Array = result + (change if estimator.per_validation else change[:, 0])
    return wrong


def _squares_by_position() -> Wrap:
    """Return a fault with Σ_i Σ_t (b_t a_tᵀ)² for Σ_i x_i², x_i = Σ_t b_t a_tᵀ, in the variances over the batch."""
    seen: list[tuple[Array, Array]] = []

    def pairs(a: Array, b: Array) -> Array:
        each = _pairs(a, b)
        seen.append((each, _pairs(a**2, b**2).sum(axis=0)))
        return each

    def squares(x: Array) -> Array:
        """Return the wrong Σ_i x_i² of contributions that are a multiple of gradients seen, else the right one."""
        for each, wrong in seen:
            if each.shape == x.shape and each.any():
                place = np.unravel_index(np.argmax(np.abs(each)), each.shape)
                factor = x[place] / each[place]
                if np.allclose(x, factor * each, rtol=1e-9, atol=0.0):
                    found: Array = factor**2 * wrong
                    return found
        return (x**2).sum(axis=0)  # type: ignore[no-any-return]

    def deviation(right: Any) -> Any:
        def wrong(x: Array, g: Array) -> Array:
            variance: Array = len(x) / (len(x) - 1) * np.maximum(squares(x) - g**2 / len(x), 0.0)
            return np.sqrt(variance)

        return wrong

    def spread(right: Any) -> Any:
        return lambda x: np.sqrt(np.maximum(squares(x) / len(x) - x.mean(axis=0) ** 2, 0.0))

    products = _weight_gradient(pairs)

    def wrap(ask: Any) -> Any:
        inner = computes_with(slopes.partial_sum_deviation, deviation)(computes_with(two_term.own_spread, spread)(ask))

        def faulty(step: Any, query: Any) -> Any:
            seen.clear()
            return products(inner)(step, query)

        return faulty

    return wrap


def _bias_of_one_position(right: Any) -> Any:
    def along_last(p: Any, x: Any) -> Any:
        added = right(p, x)
        if x.ndim == 2:
            return added
        last = np.arange(x.shape[1])[:, None] == x.shape[1] - 1
        return _only(last, added + np.zeros((*x.shape[:2], 1)) if x.ndim == 3 else added)

    return along_last


# --- embedding and positions -----------------------------------------------------------------------------------------


def _embedding(counted: Callable[[Array], Array]) -> Wrap:
    """Return a fault in which only the tokens (n, T) of the mask `counted` have a gradient."""

    def make(right: Layer) -> Layer:
        return lambda layer, params, name, x: _only(counted(x)[..., None], right(layer, params, name, x))

    return computes_with(layers.embedding, make)


def _last_of_its_token(tokens: Array) -> Array:
    later = tokens[:, :, None] == tokens[:, None, :]
    last: Array = ~np.triu(later, 1).any(axis=2)
    return last


def _shared_positions(layer: Any, p: Any) -> Any:
    return p if p.ndim == 2 else anp.mean(p, axis=0, keepdims=True) * np.ones((len(p), 1, 1))


# --- norms -----------------------------------------------------------------------------------------------------------


def _gain_of_the_input(right: Layer) -> Layer:
    def norm(layer: Any, params: Any, name: str, x: Any) -> Any:
        gain = params[f"{name}.weight"]
        y = right(layer, {**params, f"{name}.weight": constant(gain)}, name, x)
        return y + constant(x) * layers.along_last(gain - constant(gain), x)

    return norm


def _norm_with(root: Callable[[Any, float], Any], centred: bool = True, axis: int = -1) -> Callable[[Any], Any]:
    def make(right: Any) -> Any:
        def norm(x: Any, eps: float) -> Any:
            along = axis if x.ndim > 2 else -1
            terms = x - anp.mean(x, axis=along, keepdims=True) if centred else x
            return terms / root(anp.mean(terms**2, axis=along, keepdims=True), eps)

        return norm

    return make


def _inside(square: Any, eps: float) -> Any:
    return anp.sqrt(square + eps)


def _outside(square: Any, eps: float) -> Any:
    return anp.sqrt(square + 1e-300) + eps


def _by_one_less(right: Any) -> Any:
    def norm(x: Any, eps: float) -> Any:
        terms, d = x - anp.mean(x, axis=-1, keepdims=True), x.shape[-1]
        return terms / anp.sqrt(anp.sum(terms**2, axis=-1, keepdims=True) / max(d - 1, 1) + eps)

    return norm


def _fixed_statistics(right: Any) -> Any:
    def norm(x: Any, eps: float) -> Any:
        fixed = constant(x)
        terms = fixed - fixed.mean(axis=-1, keepdims=True)
        return (x - fixed.mean(axis=-1, keepdims=True)) / np.sqrt((terms**2).mean(axis=-1, keepdims=True) + eps)

    return norm


# --- attention -------------------------------------------------------------------------------------------------------


def _softmax(seen: Callable[[int], Array]) -> Callable[[Any], Any]:
    """Return a softmax over the positions of the mask `seen` (T, T)."""

    def make(right: Any) -> Any:
        def softmax(scores: Any) -> Any:
            scores = anp.where(seen(scores.shape[-1]), scores, -np.inf)
            e = anp.exp(scores - np.max(constant(scores), axis=-1, keepdims=True))
            return e / anp.sum(e, axis=-1, keepdims=True)

        return softmax

    return make


def _scaled_queries(factor: Callable[[Any], float]) -> Wrap:
    """Return a fault whose scores Q Kᵀ/√d are `factor` times the right ones."""

    def rows(layer: Any) -> Array:
        return np.where(np.arange(3 * layer.width) < layer.width, factor(layer), 1.0)

    def make(right: Layer) -> Layer:
        def wrong(layer: Any, params: Any, name: str, x: Any) -> Any:
            changed = dict(params)
            changed[f"{name}.in_proj_weight"] = params[f"{name}.in_proj_weight"] * rows(layer)[:, None]
            if layer.bias:
                changed[f"{name}.in_proj_bias"] = params[f"{name}.in_proj_bias"] * rows(layer)
            return right(layer, changed, name, x)

        return wrong

    return computes_with(layers.attention, make)


def _projected_rows(order: Callable[[Any], Array]) -> Wrap:
    """Return a fault that reads the rows of query, key and value in another order."""

    def make(right: Layer) -> Layer:
        def wrong(layer: Any, params: Any, name: str, x: Any) -> Any:
            changed = dict(params)
            changed[f"{name}.in_proj_weight"] = params[f"{name}.in_proj_weight"][..., order(layer), :]
            if layer.bias:
                changed[f"{name}.in_proj_bias"] = params[f"{name}.in_proj_bias"][..., order(layer)]
            return right(layer, changed, name, x)

        return wrong

    return computes_with(layers.attention, make)


def _swapped(layer: Any) -> Array:
    parts = np.arange(3 * layer.width).reshape(3, -1)
    return parts[[1, 0, 2]].ravel()


def _by_head(layer: Any) -> Array:
    """Return where a layout (heads, 3, d) keeps the rows of (3, heads, d)."""
    places = np.arange(3 * layer.width).reshape(layer.heads, 3, -1)
    return places.transpose(1, 0, 2).ravel()


# --- losses and ends -------------------------------------------------------------------------------------------------


def _token_losses(reduced: Callable[[Any, Array], Any]) -> Wrap:
    """Return a fault that reduces losses (n, T), those of token 0 where not counted, by `reduced`, given a mask."""

    def make(right: Any) -> Any:
        def loss(logits: Any, labels: Array) -> Any:
            counted = labels != NOT_COUNTED
            each = [
                right(logits[:, t : t + 1], np.where(counted, labels, 0)[:, t : t + 1]) for t in range(labels.shape[1])
            ]
            return reduced(anp.stack(each, axis=1) if len(each) > 1 else each[0][:, None], counted)

        return loss

    return computes_with(losses.mean_cross_entropy, make)


def _shifted(right: Any) -> Any:
    def loss(logits: Any, labels: Array) -> Any:
        moved = np.concatenate([labels[:, 1:], labels[:, -1:]], axis=1)
        none = (moved == NOT_COUNTED).all(axis=1)
        return right(logits, np.where(none[:, None], labels, moved))

    return loss


def _branch_only(right: Layer) -> Layer:
    def residual(layer: Any, params: Any, name: str, x: Any) -> Any:
        return right(layer, params, name, x) - x + constant(x)

    return residual


def _skip_only(right: Layer) -> Layer:
    def residual(layer: Any, params: Any, name: str, x: Any) -> Any:
        return x + right(layer, params, name, constant(x)) - constant(x)

    return residual


def _one_dimensional(name: str, step: Any) -> bool:
    return name.endswith("weight") and step.params[name].ndim == 1


def _matrices_decayed(right: Any) -> Any:
    def decayed(step: Step) -> Params:
        # In a perceptron it is the known mistake "decay-not-of-biases".
        kept = {name for name, p in step.params.items() if p.ndim == 1 and isinstance(step.net, Sequential)}
        return {name: step.params[name] if name in kept else p for name, p in right(step).items()}

    return decayed


FAULTS: tuple[Fault, ...] = (
    Fault(
        "positions-summed-separately",
        "activations and gradients summed over positions before their product",
        "Σ_t b_t times Σ_t a_t for Σ_t b_t a_tᵀ: a sum taken too early",
        _weight_gradient(lambda a, b: b.sum(axis=1)[:, :, None] * a.sum(axis=1)[:, None, :]),
    ),
    Fault(
        "positions-averaged",
        "weight gradients averaged over positions instead of summed",
        "the loss is a mean over positions already",
        _weight_gradient(lambda a, b: _pairs(a, b) / a.shape[1]),
    ),
    Fault(
        "last-position-only",
        "weight gradients of the last position only",
        "a hook written for classifiers keeps the last token",
        _weight_gradient(lambda a, b: _pairs(a[:, -1:], b[:, -1:])),
    ),
    Fault(
        "first-position-only",
        "weight gradients of the first position only",
        "a[:, 0], as of a [CLS] token",
        _weight_gradient(lambda a, b: _pairs(a[:, :1], b[:, :1])),
    ),
    Fault(
        "positions-reversed",
        "activations and gradients of opposite positions multiplied",
        "one of the two is kept in order of the backward pass",
        _weight_gradient(lambda a, b: _pairs(a[:, ::-1], b)),
    ),
    Fault(
        "positions-mixed-between-samples",
        "activations multiplied by the gradients of the next sample",
        "a (T, n, d) array read as (n, T, d)",
        _weight_gradient(lambda a, b: _pairs(np.roll(a, 1, axis=0), b)),
    ),
    Fault(
        "equal-positions-only",
        "products with the validation gradient summed over equal positions t = s alone",
        "Σ_t (b_t·β_t)(a_t·α_t) for all pairs of positions t, s of the two sequences",
        changes_scores(_of_equal_positions),
    ),
    Fault(
        "validation-summed-first",
        "activations and gradients of the validation sequences summed over samples before their product",
        "GhostSuite issue 8, at every position",
        _weight_gradient(_pairs, _summed_over_samples),
    ),
    Fault(
        "squares-by-position",
        "the squares of each position's products summed in the variance, without their cross terms",
        "squares of b and a contracted over positions, as for a single one",
        _squares_by_position(),
    ),
    Fault(
        "bias-of-one-position",
        "bias gradients of the last position only",
        "the bias is summed over samples, as in a perceptron, not over positions",
        computes_with(layers.along_last, _bias_of_one_position),
    ),
    Fault(
        "tied-weight-counted-once",
        "a tied weight's gradient without its use in the output",
        "where ghost products are kept by parameter, each module's capture overwrites the other's",
        computes_with(
            layers.tied_linear,
            lambda right: (
                lambda layer, params, name, x: right(
                    layer, {**params, layer.weight: constant(params[layer.weight])}, name, x
                )
            ),
        ),
    ),
    Fault(
        "repeated-tokens-overwritten",
        "an embedding's gradient of only the last use of each token in a sequence",
        "NumPy's x[ids] += b adds once for each distinct id",
        _embedding(_last_of_its_token),
    ),
    Fault(
        "token-0-as-padding",
        "no gradient for token 0 of an embedding",
        "padding_idx=0 of nn.Embedding",
        _embedding(lambda tokens: tokens != 0),
    ),
    Fault(
        "embedding-dropped",
        "no gradient for embeddings",
        "only linear weights are hooked",
        computes_with(layers.embedding, with_weight("weight", _no_gradient)),
    ),
    Fault(
        "embedding-scaled",
        "embeddings multiplied by √width",
        "as in the first Transformer (arXiv 1706.03762, 3.4)",
        computes_with(
            layers.embedding,
            lambda right: lambda layer, params, name, x: math.sqrt(layer.width) * right(layer, params, name, x),
        ),
    ),
    Fault(
        "positions-dropped",
        "no gradient for learned positions",
        "a parameter that no module's hook sees",
        computes_with(layers.positions, with_weight("weight", _no_gradient)),
    ),
    Fault(
        "positions-shared-by-samples",
        "each sample given the batch's mean gradient of learned positions",
        "ids of shape (1, T) lose the axis of the samples",
        computes_with(layers.positions, with_weight("weight", _shared_positions)),
    ),
    Fault(
        "gain-of-the-input",
        "LayerNorm's gain with its input in place of the normalised one",
        "a hook keeps the module's input",
        computes_with(layers.layer_norm, _gain_of_the_input),
    ),
    Fault(
        "rms-gain-of-the-input",
        "RMSNorm's gain with its input in place of the normalised one",
        "a hook keeps the module's input",
        computes_with(layers.rms_norm, _gain_of_the_input),
    ),
    Fault(
        "norm-over-positions",
        "LayerNorm's mean and variance over positions",
        "axis=1 for the last axis",
        computes_with(layers.standardized, _norm_with(_inside, axis=1)),
    ),
    Fault(
        "rms-over-positions",
        "RMSNorm's mean square over positions",
        "axis=1 for the last axis",
        computes_with(layers.over_root_mean_square, _norm_with(_inside, centred=False, axis=1)),
    ),
    Fault(
        "norm-eps-outside",
        "LayerNorm's ε added outside the root",
        "as in Adam's denominator",
        computes_with(layers.standardized, _norm_with(_outside)),
    ),
    Fault(
        "rms-eps-outside",
        "RMSNorm's ε added outside the root",
        "as in Adam's denominator",
        computes_with(layers.over_root_mean_square, _norm_with(_outside, centred=False)),
    ),
    Fault(
        "norm-variance-by-d-minus-1",
        "LayerNorm's variance divided by d − 1",
        "torch.var's default",
        computes_with(layers.standardized, _by_one_less),
    ),
    Fault(
        "norm-not-centred",
        "LayerNorm without subtracting the mean",
        "RMSNorm for LayerNorm",
        computes_with(layers.standardized, _norm_with(_inside, centred=False)),
    ),
    Fault(
        "rms-centred",
        "RMSNorm of inputs minus their mean",
        "LayerNorm for RMSNorm",
        computes_with(layers.over_root_mean_square, _norm_with(_inside)),
    ),
    Fault(
        "norm-statistics-fixed",
        "LayerNorm's backward pass with mean and variance as constants",
        "right for BatchNorm in evaluation mode only",
        computes_with(layers.standardized, _fixed_statistics),
    ),
    Fault(
        "norm-gains-dropped",
        "gains of norms left out of the scores",
        "only matrices are hooked",
        dropping(_one_dimensional),
    ),
    Fault(
        "decay-of-matrices-alone",
        "weight decay of matrices alone, not of biases and the gains of norms",
        "a hidden rule for parameters of one dimension, as in nanoGPT's groups",
        computes_with(adam.decayed, _matrices_decayed),
    ),
    Fault(
        "in-projection-dropped",
        "attention's input projection left out of the scores",
        "nn.MultiheadAttention keeps it as a parameter of its own, without a module",
        dropping(lambda name, step: "in_proj" in name),
    ),
    Fault(
        "mask-off-by-one",
        "a causal mask that shows the next position too",
        "tril with diagonal=1",
        computes_with(layers.causal_softmax, _softmax(lambda T: np.tril(np.ones((T, T), bool), 1))),
    ),
    Fault(
        "no-causal-mask",
        "attention without a causal mask",
        "is_causal is False by default",
        computes_with(layers.causal_softmax, _softmax(lambda T: np.ones((T, T), bool))),
    ),
    Fault(
        "attention-weights-fixed",
        "attention without a gradient through its softmax",
        "weights kept from the forward pass as constants",
        computes_with(layers.causal_softmax, lambda right: lambda scores: constant(right(scores))),
    ),
    Fault(
        "scale-of-the-model",
        "attention scaled by √width of the model instead of the head",
        "equal for one head",
        _scaled_queries(lambda layer: 1 / math.sqrt(layer.heads)),
    ),
    Fault(
        "attention-not-scaled",
        "attention without the factor 1/√d",
        "as in Luong's (arXiv 1508.04025) and T5's (arXiv 1910.10683) attention",
        _scaled_queries(lambda layer: math.sqrt(layer.width / layer.heads)),
    ),
    Fault(
        "query-and-key-swapped",
        "query and key swapped",
        "equal in norms, not in scores",
        _projected_rows(_swapped),
    ),
    Fault(
        "projection-by-head",
        "query, key and value read head by head",
        "GPT-NeoX's layout (heads, 3, d)",
        _projected_rows(_by_head),
    ),
    Fault(
        "residual-branch-only",
        "no gradient through a residual's identity",
        SEEN,
        computes_with(layers.residual, _branch_only),
    ),
    Fault(
        "residual-identity-only",
        "no gradient through a residual's layers to what is below",
        SEEN,
        computes_with(layers.residual, _skip_only),
    ),
    Fault(
        "uncounted-as-token-0",
        "labels of −100 counted as token 0",
        "ids clipped to the vocabulary",
        _token_losses(lambda each, counted: anp.mean(each, axis=1)),
    ),
    Fault(
        "mean-over-all-positions",
        "a mean over all positions, also those that are not counted",
        "reduction='none', then mean()",
        _token_losses(lambda each, counted: anp.mean(each * counted, axis=1)),
    ),
    Fault(
        "sum-over-positions",
        "losses summed over positions",
        "reduction='sum'",
        _token_losses(lambda each, counted: anp.sum(each * counted, axis=1)),
    ),
    Fault(
        "mean-over-the-batch-s-tokens",
        "samples weighted by their share of the batch's tokens",
        "cross_entropy over (n T, vocab), PyTorch's mean",
        _token_losses(lambda each, counted: anp.sum(each * counted, axis=1) * (len(counted) / counted.sum())),
    ),
    Fault(
        "labels-shifted-again",
        "labels shifted by one position",
        "Hugging Face's models shift the labels themselves",
        computes_with(losses.mean_cross_entropy, _shifted),
    ),
    Fault(
        "positions-summed-at-the-end",
        "the sum over positions in place of their mean",
        "sum pooling",
        computes_with(layers.mean_over_positions, lambda right: lambda layer, params, name, x: anp.sum(x, axis=1)),
    ),
    Fault(
        "last-position-at-the-end",
        "the last position in place of the mean over positions",
        "GPT's pooling",
        computes_with(layers.mean_over_positions, lambda right: lambda layer, params, name, x: x[:, -1]),
    ),
)
