"""PyTorch: hooks and ghost contraction for perceptrons, materialised per-sample gradients for the rest.

For the plain scores of a perceptron, hooks keep each linear layer's input a and output gradient b; a sample's gradient
is b aᵀ, never formed, and its dot product with a matrix P is bᵀ P a. μ, k, κ and q come from the optimiser's
``exp_avg``, ``exp_avg_sq`` and ``step``. Stacks of layers, the other functions and the other options of scores form
every x_i, in `torch_samples`.

    adamshap verify adamshap.verify.candidates.torch_ghost

Not supported: `update` with ``eps_root`` (PyTorch has none), settings by parameter, clipping, L2 decay.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adamshap.reference.contract import TWO_TERM, AdamState, Array, Batch, CompletedSteps, Estimator, Network, Step
from adamshap.verify.candidates import torch_samples
from adamshap.verify.candidates.parts import adam_of, network_of
from adamshap.verify.candidates.torch_adam import AdamMap, path_rule, slope_of
from adamshap.verify.candidates.torch_samples import captures, influence, marginals, utility

__all__ = ["SUPPORTS", "captures", "influence", "marginals", "scores", "update", "utility"]

SUPPORTS = ("sequential",)

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
    if not isinstance(step.net, Network):
        return torch_samples.update(step)
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


def scores(
    step: Step,
    slope: str = "random_order",
    gradient: str = "midpoint",
    efficient: bool = False,
    per_validation: bool = False,
    nodes: tuple[int, int] | None = None,
    denominator: str = "exact",
    kind: str = "shapley",
) -> Array:
    """Return ⟨Γ ⊙ S, x_i⟩, and with slope "two_term" also ⟨Γ ⊙ R, f(x_i)⟩."""
    given = Estimator(slope, gradient, efficient, per_validation, nodes, denominator, kind)  # type: ignore[arg-type]
    plain = slope != TWO_TERM and not efficient and not per_validation and denominator == "exact"
    if plain and isinstance(step.net, Network) and adam_of(step).eps_root == 0:
        return _ghost_scores(step, given)
    return torch_samples.scores(step, slope, gradient, efficient, per_validation, nodes, denominator, kind)


def _ghost_scores(step: Step, given: Estimator) -> Array:
    """Return the score of each training sample: Σ over layers of bᵀ (Γ ⊙ S) a, and b · (Γ ⊙ S) for the bias."""
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
    adams = {name: _adam_map(optimizer.param_groups[0], optimizer.state[p]) for name, p in names.items()}
    g = {name: p.grad.clone() if p.grad is not None else torch.zeros_like(p) for name, p in names.items()}
    gamma = _validation_gradient(step, model, adams, g, given)
    total = torch.zeros(step.n, dtype=next(iter(g.values())).dtype)
    for name in names:
        a, b = inputs[layers[name]], upstream[layers[name]]
        factor = a if name.endswith("weight") else None
        variance = _variance(a, b, factor, g[name])
        P = gamma[name] * slope_of(given.slope, adams[name], g[name], variance, step.n, given.nodes)
        total += (b * (a @ P.T)).sum(dim=1) if factor is not None else b @ P
    return total.numpy()


def _adam_map(group: dict[str, Any], state: dict[str, Tensor]) -> AdamMap:
    """Return A(g) of one parameter from the optimiser's state."""
    t = int(state["step"].item()) + 1
    return AdamMap(group["lr"], group["betas"], group["eps"], 0.0, t, state["exp_avg"], state["exp_avg_sq"])


def _variance(a: Tensor, b: Tensor, factor: Tensor | None, g: Tensor) -> Tensor:
    """Return n/(n − 1) Σ_i (x_i − g/n)², accumulated by sample, without an array of all per-sample gradients."""
    n = len(b)
    squares = torch.zeros_like(g)
    for i in range(n):
        x = torch.outer(b[i], a[i]) if factor is not None else b[i]
        squares += (x - g / n) ** 2
    return squares * (n / max(n - 1, 1))


def _validation_gradient(
    step: Step, model: nn.Sequential, adams: dict[str, AdamMap], g: dict[str, Tensor], given: Estimator
) -> dict[str, Tensor]:
    """Return ∇L at θ, halfway along the step, or its mean over the step by Gauss–Legendre."""
    names = _names(model)
    start = {name: p.detach().clone() for name, p in names.items()}
    adam = adam_of(step)
    shrink = 1 - adam.lr * adam.weight_decay
    rules: dict[str, list[tuple[Any, float]]] = {
        "start": [(None, 1.0)],
        "midpoint": [(0.5, 1.0)],
        "path": list(path_rule(given.nodes[0])),
    }
    gamma = {name: torch.zeros_like(p) for name, p in start.items()}
    for fraction, weight in rules[given.gradient]:
        with torch.no_grad():
            for name, p in names.items():
                if fraction is not None:
                    empty, full = adams[name].step(torch.zeros_like(g[name])), adams[name].step(g[name])
                    p.copy_(start[name] * shrink - ((1 - fraction) * empty + fraction * full))
        gradients = torch.autograd.grad(_loss(step, model, step.valid, "mean"), list(names.values()))
        for name, part in zip(names, gradients, strict=True):
            gamma[name] += weight * part
    return gamma
