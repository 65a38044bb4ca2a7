"""PyTorch: hooks and ghost contraction, with the state of ``torch.optim.AdamW``.

Hooks keep each linear layer's input a and output gradient b; a sample's gradient is b aᵀ, never formed, and its dot
product with a matrix P is bᵀ P a. μ, k, κ and q come from the optimiser's ``exp_avg``, ``exp_avg_sq`` and ``step``.

    adamshap verify adamshap.verify.candidates.torch_ghost

Not supported: ``eps_root`` (PyTorch has none), ``per_validation``, ``efficient``, ``denominator="previous"``.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adamshap.reference.contract import AdamState, Array, Batch, CompletedSteps, Step
from adamshap.verify.candidates.parts import adam_of, network_of

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


def _tensor(array: Array) -> Tensor:
    return torch.tensor(np.array(array))


def _model(step: Step) -> nn.Sequential:
    net, dtype = network_of(step), getattr(torch, step.dtype.name)
    modules: list[nn.Module] = []
    for layer, (d_in, d_out) in enumerate(zip(net.sizes, net.sizes[1:], strict=False)):
        linear = nn.Linear(d_in, d_out, net.bias, dtype=dtype)
        linear.load_state_dict({kind: _tensor(step.params[f"{layer}.{kind}"]) for kind, _ in linear.named_parameters()})
        modules += [linear, _ACTIVATIONS[net.activation]()]
    return nn.Sequential(*modules[:-1])


def _names(model: nn.Sequential) -> dict[str, nn.Parameter]:
    """Return the model's parameters by the contract's names; every second module is linear."""
    linears = [model[place] for place in range(0, len(model), 2)]
    return {f"{layer}.{kind}": p for layer, linear in enumerate(linears) for kind, p in linear.named_parameters()}


def _optimizer(step: Step, model: nn.Sequential) -> torch.optim.AdamW:
    adam = adam_of(step)
    if adam.eps_root > 0:
        raise NotImplementedError("eps_root: PyTorch has none")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=adam.lr, betas=adam.betas, eps=adam.eps, weight_decay=adam.weight_decay
    )
    for name, p in _names(model).items():
        optimizer.state[p] = {
            # PyTorch's own counter is float32 by default, which stops at 2²⁴.
            "step": torch.tensor(float(step.state.step), dtype=torch.float64),
            "exp_avg": _tensor(step.state.m[name]),
            "exp_avg_sq": _tensor(step.state.v[name]),
        }
    return optimizer


def _loss(step: Step, model: nn.Sequential, batch: Batch, reduction: str) -> Tensor:
    """Return the sum or mean over samples of the mean over outputs; ``mse_loss`` sums over outputs too."""
    outputs, targets = model(_tensor(batch.x)), _tensor(batch.y)
    if network_of(step).loss == "cross_entropy":
        losses = nn.functional.cross_entropy(outputs, targets.long(), reduction="none")
    else:
        losses = nn.functional.mse_loss(outputs, targets, reduction="none").mean(dim=1)
    return losses.sum() if reduction == "sum" else losses.mean()


def update(step: Step) -> tuple[dict[str, Array], AdamState]:
    """Take the step: ``loss.backward(); optimizer.step()``."""
    model = _model(step)
    optimizer = _optimizer(step, model)
    _loss(step, model, step.train, step.reduction).backward()
    optimizer.step()
    names, state = _names(model), optimizer.state
    return (
        {name: p.detach().numpy() for name, p in names.items()},
        AdamState(
            CompletedSteps(step.state.next_step),
            {name: state[p]["exp_avg"].numpy() for name, p in names.items()},
            {name: state[p]["exp_avg_sq"].numpy() for name, p in names.items()},
        ),
    )


class _Adam:
    """A(g) = η (μ + k g) / (√(κ + q g²) + ε) of one parameter, from the optimiser's state, and its slope."""

    def __init__(self, group: dict[str, Any], state: dict[str, Tensor]) -> None:
        (beta1, beta2), t = group["betas"], state["step"].item() + 1
        c1, c2 = 1 - beta1**t, 1 - beta2**t
        self.lr, self.eps = group["lr"], group["eps"]
        self.mu, self.k = beta1 * state["exp_avg"] / c1, (1 - beta1) / c1
        self.kappa, self.q = beta2 * state["exp_avg_sq"] / c2, (1 - beta2) / c2

    def root(self, g: Tensor) -> Tensor:
        return torch.hypot(self.kappa.sqrt(), self.q**0.5 * g)

    def step(self, g: Tensor) -> Tensor:
        return self.lr * (self.mu + self.k * g) / (self.root(g) + self.eps)

    def slope(self, a: Tensor, b: Tensor) -> Tensor:
        """Return (A(a) − A(b)) / (a − b), with the terms in k collected so that they do not cancel for a small κ."""
        r_a, r_b = self.root(a), self.root(b)
        product, total = self.q * a * b, torch.where(r_a + r_b > 0, r_a + r_b, 1.0)
        beside = r_a * r_b + product.clamp(min=0)
        positive = self.kappa * (self.kappa + self.q * (a * a + b * b)) / torch.where(beside > 0, beside, 1.0)
        gap = torch.where(product > 0, positive, r_a * r_b - product)
        numerator = self.k * (self.eps + (self.kappa + gap) / total) - self.mu * self.q * ((a + b) / total)
        return self.lr * numerator / (r_a + self.eps) / (r_b + self.eps)


def _slope(kind: str, adam: _Adam, g: Tensor, variance: Tensor, n: int, nodes: tuple[int, int]) -> Tensor:
    zero = torch.zeros_like(g)
    if kind == "sgd":
        return zero + adam.lr
    if kind == "frozen":
        return adam.lr * adam.k / (adam.root(g) + adam.eps)
    if kind == "linearized":
        return adam.lr * adam.k / (adam.root(zero) + adam.eps)
    if kind == "tangent":
        return adam.slope(g, g)
    if kind == "secant" or n == 1:
        return adam.slope(g, zero)
    result = zero
    path, path_weights = np.polynomial.legendre.leggauss(nodes[0])
    normal, normal_weights = np.polynomial.hermite_e.hermegauss(nodes[1])
    upper = slice((nodes[1] + 1) // 2, None)
    for tau, w in zip((path + 1) / 2, path_weights / 2, strict=True):
        spread = (tau * (1 - tau) * variance).sqrt()
        for h, a in zip(normal[upper], normal_weights[upper] / (2 * np.pi) ** 0.5, strict=True):
            result = result + w * 2 * a * h * h * adam.slope(tau * g + h * spread, tau * g - h * spread)
    return result


def scores(
    step: Step,
    slope: str = "random_order",
    gradient: str = "midpoint",
    efficient: bool = False,
    per_validation: bool = False,
    nodes: tuple[int, int] = (4, 4),
    denominator: str = "exact",
) -> Array:
    """Return the score of each training sample: Σ over layers of bᵀ (Γ ⊙ S) a, and b · (Γ ⊙ S) for the bias."""
    for option, wanted in (("efficient", efficient), ("per_validation", per_validation)):
        if wanted:
            raise NotImplementedError(option)
    if denominator != "exact":
        raise NotImplementedError("denominator='previous'")
    model = _model(step)
    optimizer = _optimizer(step, model)
    inputs: dict[nn.Module, Tensor] = {}
    upstream: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
        inputs[module] = arguments[0].detach()
        output.register_hook(lambda gradient: upstream.update({module: gradient}))

    hooks = [module.register_forward_hook(keep) for module in model if isinstance(module, nn.Linear)]
    _loss(step, model, step.train, step.reduction).backward()  # b already carries the weight 1/n or 1
    for hook in hooks:
        hook.remove()
    names = _names(model)
    layers = {name: model[2 * int(name.split(".")[0])] for name in names}
    adams = {name: _Adam(optimizer.param_groups[0], optimizer.state[p]) for name, p in names.items()}
    g = {name: p.grad.clone() if p.grad is not None else torch.zeros_like(p) for name, p in names.items()}
    gamma = _validation_gradient(step, model, adams, g, gradient, nodes[0])
    total = torch.zeros(step.n, dtype=next(iter(g.values())).dtype)
    for name in names:
        a, b = inputs[layers[name]], upstream[layers[name]]
        factor = a if name.endswith("weight") else None
        P = gamma[name] * _slope(slope, adams[name], g[name], _variance(a, b, factor, g[name]), step.n, nodes)
        total += (b * (a @ P.T)).sum(dim=1) if factor is not None else b @ P
    return total.numpy()


def _variance(a: Tensor, b: Tensor, factor: Tensor | None, g: Tensor) -> Tensor:
    """Return n/(n − 1) Σ_i (x_i − g/n)², accumulated by sample, without an array of all per-sample gradients."""
    n = len(b)
    squares = torch.zeros_like(g)
    for i in range(n):
        x = torch.outer(b[i], a[i]) if factor is not None else b[i]
        squares += (x - g / n) ** 2
    return squares * (n / max(n - 1, 1))


def _validation_gradient(
    step: Step, model: nn.Sequential, adams: dict[str, _Adam], g: dict[str, Tensor], kind: str, nodes: int
) -> dict[str, Tensor]:
    """Return ∇L at θ, halfway along the step, or its mean over the step by Gauss–Legendre."""
    names = _names(model)
    start = {name: p.detach().clone() for name, p in names.items()}
    adam = adam_of(step)
    shrink = 1 - adam.lr * adam.weight_decay
    path, path_weights = np.polynomial.legendre.leggauss(nodes)
    rules: dict[str, tuple[Any, Any]] = {
        "start": ([None], [1.0]),
        "midpoint": ([0.5], [1.0]),
        "path": ((path + 1) / 2, path_weights / 2),
    }
    points, weights = rules[kind]
    gamma = {name: torch.zeros_like(p) for name, p in start.items()}
    for fraction, weight in zip(points, weights, strict=True):
        with torch.no_grad():
            for name, p in names.items():
                if fraction is not None:
                    empty, full = adams[name].step(torch.zeros_like(g[name])), adams[name].step(g[name])
                    p.copy_(start[name] * shrink - ((1 - fraction) * empty + fraction * full))
        gradients = torch.autograd.grad(_loss(step, model, step.valid, "mean"), list(names.values()))
        for name, part in zip(names, gradients, strict=True):
            gamma[name] += weight * part
    return gamma
