"""Cheap scores of training samples that need no scoring of a run, all oriented so that a high value means helpful.

From the data alone: the out-of-fold confidence and margin of a logistic regression, as cleanlab uses them, or minus the
squared out-of-fold residual of a ridge regression; and the exact Shapley value of a nearest-neighbour classifier
(arXiv 1908.08619). From a trained network: minus its loss, its margin, minus EL2N and minus GraNd (arXiv 2107.07075;
here after the whole run), the influence on the last layer, and TRAK (arXiv 2303.14186) of the validation loss.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict

from adamshap.reference.contract import Array, Batch, Network, Params

FOLDS = 5
NEIGHBOURS = 5
DAMPING = 1e-3  # of the mean of the diagonal
ROWS = 1000  # whose gradients are held at a time
LEAST = 1e-4  # of 1 - p, by which TRAK divides


# --- from the data alone ---------------------------------------------------------------------------------------------


def of_data(train: Batch, valid: Batch) -> dict[str, Array]:
    """Return the scores (N,) that need no network."""
    if train.y.ndim == 2:
        out = cross_val_predict(Ridge(), train.x, train.y, cv=KFold(FOLDS, shuffle=True, random_state=0))
        return {"out-of-fold residual": -((out.reshape(train.y.shape) - train.y) ** 2).mean(axis=1)}
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    model = LogisticRegression(max_iter=1000)
    p = cross_val_predict(model, train.x, train.y, cv=folds, method="predict_proba")
    classes = np.unique(train.y)
    own = p[np.arange(train.n), np.searchsorted(classes, train.y)]
    return {
        "out-of-fold confidence": own,
        "out-of-fold margin": margins(p, np.searchsorted(classes, train.y)),
        "kNN-Shapley": neighbour_shapley(train, valid),
    }


def margins(values: Array, labels: Array) -> Array:
    """Return the value (n,) of each row's label less the largest other one."""
    own = np.arange(len(values)), labels
    others = values.copy()
    others[own] = -np.inf
    found: Array = values[own] - others.max(axis=1)
    return found


def neighbour_shapley(train: Batch, valid: Batch, neighbours: int = NEIGHBOURS) -> Array:
    """Return each training sample's Shapley value (N,): of the right votes among a validation sample's neighbours."""
    total = np.zeros(train.n)
    squares = (train.x**2).sum(axis=1)
    rank = np.arange(1, train.n)
    step = np.minimum(neighbours, rank) / (neighbours * rank)
    for x, y in zip(valid.x, valid.y, strict=True):
        order = np.argsort(squares - 2 * train.x @ x, kind="stable")
        right = (train.y[order] == y).astype(float)
        last = right[-1] * min(neighbours, train.n) / (neighbours * train.n)
        # Of two neighbours in the order, the nearer has more by the difference of their votes times `step`.
        values = last + np.append(np.cumsum(((right[:-1] - right[1:]) * step)[::-1])[::-1], 0.0)
        total[order] += values
    return total / valid.n


# --- from a trained network ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Passes:
    """Each layer's inputs (n, d), and the outputs (n, k), of a batch."""

    inputs: list[Array]
    outputs: Array
    labels: Array
    regression: bool

    @classmethod
    def of(cls, network: Network, params: Params, batch: Batch) -> "Passes":
        """Return the passes of `batch` through a network of tanh units."""
        inputs = [np.asarray(batch.x, float)]
        for layer in range(network.depth):
            z = inputs[-1] @ params[f"{layer}.weight"].T + params[f"{layer}.bias"]
            inputs.append(np.tanh(z) if layer < network.depth - 1 else z)
        *inputs, outputs = inputs
        return cls(inputs, outputs, batch.y, network.loss == "mse")

    def probabilities(self) -> Array:
        """Return the softmax of the outputs."""
        p: Array = np.exp(self.outputs - self.outputs.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return p

    def errors(self) -> Array:
        """Return the derivatives (n, k) of each sample's loss by the outputs."""
        if self.regression:
            derivatives: Array = 2 * (self.outputs - self.labels) / self.outputs.shape[1]
            return derivatives
        wrong = self.probabilities()
        wrong[np.arange(len(wrong)), self.labels] -= 1
        return wrong

    def losses(self) -> Array:
        """Return each sample's loss."""
        found: Array
        if self.regression:
            found = ((self.outputs - self.labels) ** 2).mean(axis=1)
        else:
            found = -np.log(np.maximum(self.probabilities()[np.arange(len(self.labels)), self.labels], 1e-300))
        return found

    def deltas(self, params: Params, by_outputs: Array) -> list[Array]:
        """Return the derivatives (n, d) by each layer's output before its activation."""
        found = [by_outputs]
        for layer in reversed(range(1, len(self.inputs))):
            found = [(found[0] @ params[f"{layer}.weight"]) * (1 - self.inputs[layer] ** 2), *found]
        return found


def of_network(
    network: Network, params: Params, train: Batch, valid: Batch, projections: int, seed: int
) -> dict[str, Array]:
    """Return the scores (N,) of a trained network."""
    params = {name: p.astype(float) for name, p in params.items()}
    passes, validation = Passes.of(network, params, train), Passes.of(network, params, valid)
    errors = passes.errors()
    deltas = passes.deltas(params, errors)
    squares = sum((d**2).sum(axis=1) * (1 + (a**2).sum(axis=1)) for d, a in zip(deltas, passes.inputs, strict=True))
    found = {"loss": -passes.losses()}
    if not passes.regression:
        found["margin"] = margins(passes.outputs, train.y)
    return found | {
        "EL2N": -np.linalg.norm(errors, axis=1),
        "GraNd": -np.sqrt(squares),
        "last-layer influence": last_layer_influence(passes, validation),
        "TRAK": trak(params, passes, validation, projections, seed),
    }


def last_layer_influence(train: Passes, valid: Passes) -> Array:
    """Return gᵀ H⁻¹ g_i of the last layer: g of the validation loss, g_i of a sample, H damped Gauss-Newton."""
    h, h_valid = (np.column_stack([p.inputs[-1], np.ones(len(p.labels))]) for p in (train, valid))
    outputs, width = train.outputs.shape[1], h.shape[1]
    if train.regression:
        curvature = np.repeat(np.eye(outputs)[None] * (2 / outputs), len(h), axis=0)
    else:
        p = train.probabilities()
        curvature = p[:, :, None] * np.eye(outputs) - p[:, :, None] * p[:, None, :]
    hessian = np.empty((outputs, width, outputs, width))
    for a in range(outputs):
        for b in range(outputs):
            hessian[a, :, b] = (h * curvature[:, a, b, None]).T @ h / len(h)
    wanted = (valid.errors().T @ h_valid / len(h_valid)).ravel()
    solved = np.linalg.solve(damped(hessian.reshape(outputs * width, -1)), wanted).reshape(outputs, width)
    influence: Array = np.einsum("nk,kw,nw->n", train.errors(), solved, h)
    return influence


def damped(matrix: Array) -> Array:
    """Return `matrix` with `DAMPING` times the mean of its diagonal added to the diagonal."""
    found: Array = matrix + np.eye(len(matrix)) * (DAMPING * np.trace(matrix) / len(matrix))
    return found


def trak(params: Params, train: Passes, valid: Passes, projections: int, seed: int) -> Array:
    """Return ⟨g, (ΦᵀΦ)⁻¹ g_i⟩ with projected gradients: g of the validation loss, g_i of a sample's.

    Φ holds the gradients of log p/(1 − p) of the label, which are −g_i/(1 − p); in a regression those of the output.
    """
    generator = np.random.default_rng(seed)
    bases = [
        generator.standard_normal((d.shape[1] * (a.shape[1] + 1), projections), dtype=np.float32)
        for d, a in zip(train.deltas(params, train.outputs), train.inputs, strict=True)
    ]
    own = _projected(params, train, train.errors(), bases)
    if train.regression:
        features = _projected(params, train, np.ones_like(train.outputs), bases)
    else:
        wrong = 1 - train.probabilities()[np.arange(len(own)), train.labels]
        features = own / np.maximum(wrong, LEAST)[:, None]
    wanted = _projected(params, valid, valid.errors(), bases).mean(axis=0)
    kernel = damped(features.T @ features / len(features))
    found: Array = own @ np.linalg.solve(kernel, wanted)
    return found


def _projected(params: Params, passes: Passes, by_outputs: Array, bases: list[Array]) -> Array:
    """Return each sample's gradient (n, projections) after the projection, a few samples at a time."""
    found = np.zeros((len(by_outputs), bases[0].shape[1]))
    for layer, (d, a) in enumerate(zip(passes.deltas(params, by_outputs), passes.inputs, strict=True)):
        a1 = np.column_stack([a, np.ones(len(a))]).astype(np.float32)
        for at in range(0, len(a), ROWS):
            rows = slice(at, at + ROWS)
            outer = d[rows, :, None].astype(np.float32) * a1[rows, None, :]
            found[rows] += outer.reshape(len(outer), -1) @ bases[layer]
    return found
