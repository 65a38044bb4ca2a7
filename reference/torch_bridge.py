"""Conversion of a PyTorch model and its optimiser, between two steps, to the parts of a `Step`.

==================================  =======================================================
PyTorch                             here
==================================  =======================================================
``nn.Sequential`` of ``nn.Linear``  ``Network``: sizes, one activation, with or without bias
the tensors of its parameters       ``Step.params``, θ
``lr``, ``betas``, ``eps``          ``Adam``: η, (β1, β2), ε; ε_root is 0
``weight_decay`` of AdamW           ``Adam.weight_decay``, λ
``weight_decay`` of Adam            ``Adam.l2``, λ₂
groups with their own settings      ``AdamGroups``
``exp_avg``, ``exp_avg_sq``         ``AdamState.m``, ``.v``
``step``                            ``AdamState.step``, t − 1
==================================  =======================================================

Nothing is guessed. A parameter's moments are found by the identity of its tensor in the optimiser; names stored in the
optimiser must be the model's; anything that would make PyTorch's next step differ from `update` is refused. PyTorch is
imported when used.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from adamshap.reference.contract import (
    LOSSES,
    ActivationName,
    Adam,
    AdamGroups,
    AdamState,
    Array,
    Batch,
    CompletedSteps,
    Loss,
    Network,
    Params,
    Reduction,
    Step,
    needed,
    one_of,
    refuse,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["TorchSnapshot", "from_torch"]

MODEL_NEEDS = (
    "an nn.Sequential of nn.Linear layers with one kind of activation between them"
    " (nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, or none) and none after the last;"
    " adamshap.torch.Attribution scores other models, in their own loop"
)
GROUP_SETTINGS = ("lr", "betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay")


@dataclass(frozen=True, eq=False)
class TorchSnapshot:
    """Copy of a model and its optimiser between two steps; continued training does not change it.

    Parameters
    ----------
    net : Network
    params : dict of arrays
        θ, by this package's names, in the model's dtype.
    adam : Adam or AdamGroups
    state : AdamState
    torch_names : dict of str
        The model's own name of each parameter: ``{"1.weight": "2.weight"}`` if an activation lies between.
    """

    net: Network
    params: Params
    adam: Adam | AdamGroups
    state: AdamState
    torch_names: dict[str, str]

    def step(self, train: Batch, valid: Batch, reduction: Reduction = "mean") -> Step:
        """Return the next step of the optimiser with the gradient of the loss on `train`.

        Parameters
        ----------
        train, valid : Batch
            The next batch, of n samples, and n_val validation samples.
        reduction : {"mean", "sum"}
            Reduction of the training loss over the batch.
        """
        return Step(self.net, self.params, self.adam, self.state, train, valid, reduction)


def from_torch(model: "nn.Module", optimizer: "torch.optim.Optimizer", *, loss: Loss) -> TorchSnapshot:
    """Return the network, parameters, Adam's settings and its state, from a PyTorch model and its optimiser.

    Call it before ``optimizer.step()``: it returns the state from which that step starts. To score a checkpoint, load
    it first: ``model.load_state_dict(...)``, ``optimizer.load_state_dict(...)``.

    Parameters
    ----------
    model : torch.nn.Sequential
        ``nn.Linear`` layers with one kind of activation between them, and none after the last; nested sequences are
        flattened, and an ``nn.Flatten()`` before the first layer is skipped (`Batch.x` is flat).
    optimizer : torch.optim.Adam or torch.optim.AdamW
        Optimiser of exactly the model's parameters, in one group or several. Adam adds its ``weight_decay`` to the
        gradient: that is ``Adam(l2=…)``. ``amsgrad`` and ``maximize`` are refused.
    loss : {"cross_entropy", "mse"}
        Training loss, as in `torch.nn.functional`; a model does not record it.

    Returns
    -------
    TorchSnapshot
        Network, parameters, Adam's settings and its state; with a batch it gives a `Step`.

    Raises
    ------
    ValueError, TypeError
        PyTorch's next step would differ from `update`; the message names the cause.
    ImportError
        Without PyTorch.

    Notes
    -----
    Changes of the gradient between ``backward`` and ``step`` are not detected: with gradient accumulation or a weighted
    loss, the scores belong to another step than the one taken; so they do with clipping, unless the step's ``adam`` is
    replaced by ``Clipped(snapshot.adam, norm)``. `adamshap.torch.Attribution` follows all of these, and other models.
    Moments loaded with ``optimizer.load_state_dict`` are matched to parameters by position, as in PyTorch; construct
    the optimiser with ``model.named_parameters()``, and the names are saved with them and compared here.

    Examples
    --------
    >>> snapshot = from_torch(model, optimizer, loss="cross_entropy")  # doctest: +SKIP
    >>> scores(snapshot.step(Batch(x, y), Batch(valid_x, valid_y)))  # doctest: +SKIP
    """
    with needed("PyTorch", by="from_torch", extra="torch"):
        import torch

    one_of("loss", loss, LOSSES)
    linears, activation = _layers(model)
    net = Network(_sizes(linears), activation, loss, linears[0].bias is not None)
    tensors = _parameters(model, linears, net)
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        refuse("optimizer", type(optimizer).__name__, "torch.optim.Adam or torch.optim.AdamW", TypeError)
    _check_members(model, optimizer)
    adam = _optimiser(optimizer, tensors, isinstance(optimizer, torch.optim.AdamW))
    state = _state(optimizer, tensors)
    params = {name: _array(f"model parameter {torch_name}", p) for name, (torch_name, p) in tensors.items()}
    return TorchSnapshot(net, params, adam, state, {name: torch_name for name, (torch_name, _) in tensors.items()})


# --- the model -------------------------------------------------------------------------------------------------------


def _layers(model: "nn.Module") -> tuple[list["nn.Linear"], ActivationName]:
    """Return the linear layers and the one activation between them."""
    from torch import nn

    kinds: dict[type, ActivationName] = {
        nn.ReLU: "relu",
        nn.Tanh: "tanh",
        nn.GELU: "gelu",
        nn.SiLU: "silu",
        nn.Sigmoid: "sigmoid",
        nn.Identity: "identity",
    }
    linears: list[nn.Linear] = []
    between: list[list[ActivationName]] = []
    for name, module in _modules(model):
        _refuse_hooks(name, module)
        # By exact type: a subclass or a parametrised layer may compute something else.
        if type(module) is nn.Linear:
            linears.append(module)
            between.append([])
        elif type(module) is nn.Flatten and not linears and (module.start_dim, module.end_dim) == (1, -1):
            continue
        elif type(module) in kinds and linears:
            if isinstance(module, nn.GELU) and module.approximate != "none":
                refuse(f"model module {name}", f"GELU with approximate={module.approximate!r}", "the exact GELU")
            between[-1].append(kinds[type(module)])
        else:
            refuse(f"model module {name}", repr(module), MODEL_NEEDS, TypeError)
    if not linears:
        refuse("model", "no nn.Linear layer", MODEL_NEEDS)
    if between.pop():
        refuse("model", "an activation after the last layer", MODEL_NEEDS + ": the loss takes its outputs as they are")
    activations = {tuple(kind for kind in kinds_ if kind != "identity") or ("identity",) for kinds_ in between}
    if len(activations) > 1 or any(len(kinds_) > 1 for kinds_ in activations):
        seen = [" then ".join(kinds_) or "none" for kinds_ in between]
        refuse("model", f"the activations {', '.join(seen)}", MODEL_NEEDS)
    return linears, activations.pop()[0] if activations else "identity"


def _modules(model: "nn.Module", prefix: str = "") -> list[tuple[str, "nn.Module"]]:
    from torch import nn

    if type(model) is not nn.Sequential:
        where = f"model module {prefix}" if prefix else "model"
        refuse(where, type(model).__name__, MODEL_NEEDS, TypeError)
    _refuse_hooks(prefix or "model", model)
    found: list[tuple[str, nn.Module]] = []
    for name, child in model._modules.items():  # named_children() would skip a repeated layer
        name = f"{prefix}.{name}" if prefix else name
        if child is not None:
            found += _modules(child, name) if isinstance(child, nn.Sequential) else [(name, child)]
    return found


def _refuse_hooks(name: str, module: "nn.Module") -> None:
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        refuse(f"model module {name}", "a module with hooks", "none: they may change its output")


def _sizes(linears: list["nn.Linear"]) -> tuple[int, ...]:
    for earlier, later in pairwise(linears):
        if earlier.out_features != later.in_features:
            refuse("model", f"layers {earlier} and {later}", "layers that fit each other")
        if (earlier.bias is None) != (later.bias is None):
            refuse("model", f"layers {earlier} and {later}", "biases in all layers or in none")
    return (linears[0].in_features, *(layer.out_features for layer in linears))


def _parameters(model: "nn.Module", linears: list["nn.Linear"], net: Network) -> dict[str, tuple[str, "torch.Tensor"]]:
    """Return (the model's name, the tensor) of each of the network's parameters, checked."""
    torch_names = {id(p): name for name, p in model.named_parameters()}
    if len(torch_names) < len(net.shapes):
        refuse("model", f"{len(torch_names)} parameters for {len(net.shapes)} needed", "layers that share no parameter")
    tensors: dict[str, tuple[str, torch.Tensor]] = {}
    for name, shape in net.shapes.items():
        layer, kind = name.split(".")
        tensor = getattr(linears[int(layer)], kind)
        torch_name = torch_names[id(tensor)]
        if tuple(tensor.shape) != shape:
            refuse(f"model parameter {torch_name}", f"shape {tuple(tensor.shape)}", f"shape {shape}, its layer's")
        if not tensor.requires_grad:
            refuse(f"model parameter {torch_name}", "requires_grad=False", "a parameter that is trained")
        tensors[name] = (torch_name, tensor)
    return tensors


# --- the optimiser ---------------------------------------------------------------------------------------------------


def _check_members(model: "nn.Module", optimizer: "torch.optim.Optimizer") -> None:
    """Refuse an optimiser whose parameters, or their names, are not the model's."""
    names = {id(p): name for name, p in model.named_parameters()}
    found: set[int] = set()
    for number, group in enumerate(optimizer.param_groups):
        members = group["params"]
        called = group.get("param_names", [names.get(id(p)) for p in members])
        if len(called) != len(members):
            refuse(f"optimizer.param_groups[{number}]", f"{len(called)} param_names", f"one for each of {len(members)}")
        for p, name in zip(members, called, strict=True):
            if id(p) not in names:
                refuse("optimizer", f"a parameter of shape {tuple(p.shape)} that is not the model's", "the model's own")
            if name != names[id(p)]:
                refuse(
                    "optimizer",
                    f"the name {name!r} for the model's {names[id(p)]!r}",
                    "the model's names: the saved state is of another order, or of another model",
                )
            found.add(id(p))
    missing = [name for id_, name in names.items() if id_ not in found]
    if missing:
        refuse("optimizer", f"no parameter {', '.join(missing)}", "all of the model's parameters")


def _optimiser(
    optimizer: "torch.optim.Optimizer", tensors: dict[str, tuple[str, "torch.Tensor"]], is_adamw: bool
) -> Adam | AdamGroups:
    """Return the settings: one Adam if all groups share them, else one for each group that has parameters."""
    names, groups = {id(tensor): name for name, (_, tensor) in tensors.items()}, []
    for number, group in enumerate(optimizer.param_groups):
        adam, members = _adam(number, group, is_adamw), tuple(names[id(p)] for p in group["params"])
        if members:
            groups.append((members, adam))
    if all(adam == groups[0][1] for _, adam in groups):
        return groups[0][1]
    return AdamGroups(tuple(groups))


def _adam(number: int, group: dict[str, Any], is_adamw: bool) -> Adam:
    """Return the settings of the group of this number."""
    have = _settings(group, is_adamw)
    for name in ("amsgrad", "maximize"):
        if have[name]:
            refuse(f"optimizer.param_groups[{number}] {name}", "True", "False: the method covers plain Adam only")
    decay = {"weight_decay" if have["decoupled_weight_decay"] else "l2": have["weight_decay"]}
    return Adam(have["lr"], have["betas"], have["eps"], **decay)


def _settings(group: dict[str, Any], is_adamw: bool) -> dict[str, Any]:
    # Before PyTorch had this setting, AdamW was a separate class.
    values = {"decoupled_weight_decay": is_adamw, **group}
    plain: dict[str, Any] = {name: values[name] for name in GROUP_SETTINGS}
    plain["betas"] = tuple(float(beta) for beta in plain["betas"])  # these and lr may be tensors
    for name in ("lr", "eps", "weight_decay"):
        plain[name] = float(plain[name])
    return plain


def _state(optimizer: "torch.optim.Optimizer", tensors: dict[str, tuple[str, "torch.Tensor"]]) -> AdamState:
    """Return Adam's state: zeros if the optimiser has taken no step."""
    memory = {name: optimizer.state.get(tensor, {}) for name, (_, tensor) in tensors.items()}
    if not any(memory.values()):
        return AdamState.zeros({name: _array(torch_name, p) for name, (torch_name, p) in tensors.items()})
    steps: dict[str, int] = {}
    m: dict[str, Array] = {}
    v: dict[str, Array] = {}
    for name, (torch_name, tensor) in tensors.items():
        where = f"optimizer.state of {torch_name}"
        missing = [key for key in ("step", "exp_avg", "exp_avg_sq") if key not in memory[name]]
        if missing:
            refuse(where, f"no {', '.join(missing)}", "step, exp_avg and exp_avg_sq, as the other parameters have")
        for moments, key in ((m, "exp_avg"), (v, "exp_avg_sq")):
            moments[name] = _array(f"{where}: {key}", memory[name][key])
            if moments[name].shape != tuple(tensor.shape):
                refuse(f"{where}: {key}", f"shape {moments[name].shape}", f"shape {tuple(tensor.shape)}")
        steps[torch_name] = _whole(f"{where}: step", memory[name]["step"])
    if len(set(steps.values())) > 1:
        refuse("optimizer.state: step", f"{steps}", "one number of steps for all parameters")
    return AdamState(CompletedSteps(next(iter(steps.values()))), m, v)


def _whole(field: str, value: Any) -> int:
    number = float(value)
    if not number.is_integer() or number < 0:
        refuse(field, number, "an integer of at least 0")
    return int(number)


def _array(field: str, tensor: "torch.Tensor") -> Array:
    """Return a copy on the CPU: the next step changes the tensor in place."""
    import torch

    if tensor.dtype not in (torch.float32, torch.float64):
        refuse(field, f"dtype {tensor.dtype}", "torch.float32 or torch.float64", TypeError)
    return tensor.detach().cpu().numpy().copy()
