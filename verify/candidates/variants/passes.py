"""Forward and backward passes of a perceptron, by hand, with what each layer's gradients are made of."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from adamshap.reference.contract import Array, Batch, Network, Params
from adamshap.verify.candidates.variants.arithmetic import Arithmetic

__all__ = ["Captures", "captures_of", "mean_loss", "sample_losses"]


@dataclass(frozen=True)
class Captures:
    """A batch's losses ℓ_i (n,), and per layer the output gradients b (n, d_out) of ℓ_i and the inputs a (n, d_in)."""

    net: Network
    losses: Array
    b: list[Array]
    a: list[Array]

    def times(self, factor: float) -> "Captures":
        """Return the captures of ``factor`` ℓ_i."""
        scaled = [(b * factor).astype(b.dtype) for b in self.b]
        return Captures(self.net, self.losses * factor, scaled, self.a)

    def each(self) -> Params:
        """Return every sample's gradient: (n, …) per parameter."""
        weights = {
            f"{j}.weight": b[:, :, None] * a[:, None, :] for j, (b, a) in enumerate(zip(self.b, self.a, strict=True))
        }
        return weights | ({f"{j}.bias": b for j, b in enumerate(self.b)} if self.net.bias else {})

    def summed(self, how: Arithmetic) -> Params:
        """Return the sum over samples of their gradients."""
        if how.per_sample:
            return {name: how.total(x) for name, x in self.each().items()}
        weights = {f"{j}.weight": how.multiply(b.T, a) for j, (b, a) in enumerate(zip(self.b, self.a, strict=True))}
        return weights | ({f"{j}.bias": how.total(b) for j, b in enumerate(self.b)} if self.net.bias else {})

    def squared(self, how: Arithmetic) -> Params:
        """Return the sum over samples of their squared gradients."""
        squares = Captures(self.net, self.losses, [b * b for b in self.b], [a * a for a in self.a])
        return squares.summed(how)

    def dots(self, how: Arithmetic, P: Mapping[str, Array]) -> Array:
        """Return ⟨P, x_i⟩ of each sample: (n,)."""
        total = np.zeros(len(self.losses), self.losses.dtype)
        if how.per_sample:
            for name, x in self.each().items():
                total += how.multiply(x.reshape(len(x), -1), P[name].reshape(-1, 1))[:, 0]
            return total
        for j, (b, a) in enumerate(zip(self.b, self.a, strict=True)):
            total += how.total((how.multiply(a, P[f"{j}.weight"].T) * b).T)
            if self.net.bias:
                total += how.multiply(b, P[f"{j}.bias"][:, None])[:, 0]
        return total


def captures_of(how: Arithmetic, net: Network, params: Params, batch: Batch) -> Captures:
    """Return losses and captures of `batch`."""
    inputs, slopes, a = [], [], batch.x
    for j in range(net.depth):
        inputs.append(a)
        z = how.multiply(a, params[f"{j}.weight"].T)
        if net.bias:
            z = z + params[f"{j}.bias"]
        a, slope = how.activation(net.activation if j < net.depth - 1 else "identity", z)
        slopes.append(slope)
    if net.loss == "cross_entropy":
        losses, b = how.cross_entropy(a, batch.y)
    else:
        off = a - batch.y
        losses, b = how.total((off * off).T) / off.shape[1], off * off.dtype.type(2 / off.shape[1])
    upstream = [b]
    for j in range(net.depth - 1, 0, -1):
        b = how.multiply(b, params[f"{j}.weight"]) * slopes[j - 1]
        upstream.insert(0, b)
    return Captures(net, losses, upstream, inputs)


def sample_losses(how: Arithmetic, net: Network, params: Params, batch: Batch) -> Array:
    """Return ℓ_i of each sample of `batch`."""
    return captures_of(how, net, params, batch).losses


def mean_loss(how: Arithmetic, net: Network, params: Params, batch: Batch) -> float:
    """Return L."""
    return float(how.total(sample_losses(how, net, params, batch)[:, None])[0]) / batch.n
