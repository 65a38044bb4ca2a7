"""What one training step is: the contract that the oracle, the engine and the harness share. No mathematics.

Everything here is a frozen dataclass that refuses bad input when it is made: the error names the field, what it got and
what it needs. Arrays are kept without a copy, as read-only views in the dtype that came; inputs are never changed.

Letters, here and everywhere: ``n`` samples of a batch, ``n_val`` validation samples, ``N`` samples of a data set,
``d_in`` and ``d_out`` the widths of a layer's input and output.

===========  ===========================  =======================================================
paper        name                         meaning
===========  ===========================  =======================================================
θ            ``Step.params``              parameters before the step
m, v         ``AdamState.m``, ``.v``      Adam's moments before the step
t            ``AdamState.step + 1``       number of the step that is taken
η, β1, β2    ``Adam.lr``, ``.betas``      learning rate, decay of the two moments
ε, ε_root    ``Adam.eps``, ``.eps_root``  added outside and inside the square root
λ            ``Adam.weight_decay``        decoupled weight decay
B            ``Step.train``               the step's batch; a coalition S is a boolean mask over it
L            loss on ``Step.valid``       mean validation loss
===========  ===========================  =======================================================
"""

import json
import logging
import math
import operator
import re
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import asdict, dataclass, is_dataclass, replace
from itertools import islice
from typing import Any, Final, Literal, NoReturn, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from adamshap.reference.blas import arithmetic, one_blas_thread
from adamshap.reference.refusal import refuse, refuse_masked
from adamshap.reference.rows import Rows, parts

__all__ = [
    "ACTIVATIONS",
    "CREDITS",
    "DENOMINATORS",
    "GRADIENTS",
    "LOSSES",
    "MARGINALS",
    "MARGINAL_LOSSES",
    "REDUCTIONS",
    "SCORE_SLOPES",
    "SLOPES",
    "TWO_TERM",
    "Adam",
    "AdamState",
    "Array",
    "Batch",
    "Checkpointer",
    "Diverged",
    "Marginals",
    "Network",
    "Params",
    "Progress",
    "Rows",
    "Run",
    "RunConfig",
    "Snapshot",
    "Step",
    "adam_in",
    "batch_order",
    "check_batch",
    "check_callable",
    "check_kind",
    "coalition_mask",
    "first_not_finite",
    "float64_step",
    "logged",
    "of_kind",
    "one_blas_thread",
    "one_of",
    "permutations_of",
    "positive_integer",
    "quadrature_nodes",
    "recorded_arithmetic",
    "refuse",
    "refuse_overflow",
    "refuse_zero_denominator",
    "resumed",
    "run_settings",
    "seed_of",
    "shown",
    "true_or_false",
]


LOGGER = logging.getLogger("adamshap")
LOGGER.addHandler(logging.NullHandler())  # silent, until a program that uses this sets up logging

Array = npt.NDArray[Any]
Kind = TypeVar("Kind")
Params = dict[str, Array]

Activation = Literal["relu", "tanh", "gelu", "silu", "sigmoid", "identity"]
Loss = Literal["cross_entropy", "mse"]
Reduction = Literal["mean", "sum"]
Slope = Literal["sgd", "frozen", "linearized", "tangent", "secant", "random_order"]
ScoreSlope = Literal[Slope, "two_term"]
Gradient = Literal["start", "midpoint", "path"]
Denominator = Literal["exact", "previous"]
Credit = Literal["step", "carry"]
MarginalKind = Literal["first", "last", "shapley"]
MarginalLoss = Literal["exact", "first_order"]

ACTIVATIONS: tuple[str, ...] = get_args(Activation)
LOSSES: tuple[str, ...] = get_args(Loss)
REDUCTIONS: tuple[str, ...] = get_args(Reduction)
SLOPES: tuple[str, ...] = get_args(Slope)
SCORE_SLOPES: tuple[str, ...] = get_args(ScoreSlope)
GRADIENTS: tuple[str, ...] = get_args(Gradient)
DENOMINATORS: tuple[str, ...] = get_args(Denominator)
CREDITS: tuple[str, ...] = get_args(Credit)
MARGINALS: tuple[str, ...] = get_args(MarginalKind)
MARGINAL_LOSSES: tuple[str, ...] = get_args(MarginalLoss)

TWO_TERM: Final = "two_term"
"""The one of `SCORE_SLOPES` that is no single slope, and has a `kind`."""


# --- refusing bad input ----------------------------------------------------------------------------------------------

MOST_LETTERS = 200
MOST_STEPS = 1 << 40  # of a run, and permutations of a batch: more would take centuries
MOST_SEEDS = (1 << 128) - 1


def shown(value: object) -> str:
    """Return `value` as an error shows it: its repr, on one line, cut where it is long."""
    try:
        text = re.sub(r"\s*\n\s*", " ", repr(value))
    except Exception:  # an integer of too many digits, or an object whose repr is broken
        return f"a value of type {type(value).__name__} that cannot be printed"
    return text if len(text) <= MOST_LETTERS else text[:MOST_LETTERS] + "…"


def one_of(field: str, value: object, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        refuse(field, shown(value), "one of " + ", ".join(choices))
    return value


def of_kind(field: str, value: Any, kind: type[Kind]) -> Kind:
    """Return `value` if it is one of `kind`, a class of this contract."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        refuse(field, type(value).__name__, f"{article} {kind.__name__}", TypeError)
    return value


def check_callable(field: str, value: object) -> None:
    """Refuse what is neither None nor can be called."""
    if value is not None and not callable(value):
        refuse(field, shown(value), "a function, or None", TypeError)


def true_or_false(field: str, value: object) -> bool:
    """Return `value` as a bool, if it is one of Python's or of NumPy's."""
    if not isinstance(value, bool | np.bool_):
        refuse(field, shown(value), "True or False", TypeError)
    return bool(value)


def positive_integer(field: str, value: object, minimum: int = 1, maximum: int | None = sys.maxsize) -> int:
    """Return `value` as an int from `minimum` to `maximum`; booleans and floats are refused."""
    if isinstance(value, bool | np.bool_):
        refuse(field, shown(value), f"an integer of at least {minimum}", TypeError)
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        refuse(field, shown(value), f"an integer of at least {minimum}", TypeError)
    if number < minimum:
        refuse(field, shown(number), f"an integer of at least {minimum}")
    if maximum is not None and number > maximum:
        refuse(field, shown(number), f"an integer of at most {maximum}")
    return number


def seed_of(value: object) -> int:
    """Return `value` as a seed of NumPy's: an integer of up to 128 bits, and not negative."""
    return positive_integer("seed", value, minimum=0, maximum=MOST_SEEDS)


def permutations_of(value: object) -> int:
    """Return `value` as a number of permutations: even, as orders come in pairs, and two pairs for a standard error."""
    number = positive_integer("permutations", value, minimum=4, maximum=MOST_STEPS)
    if number % 2:
        refuse("permutations", number, "an even number, since orders come in pairs")
    return number


def quadrature_nodes(value: object, slope: str) -> tuple[int, int]:
    """Return ``nodes=(path, normal)`` as two ints; the normal rule needs two nodes to have one beside zero.

    None is (4, 4), and for "two_term", which gains more from places than from the normal's nodes, (8, 2).
    """
    if value is None:
        return (8, 2) if slope == TWO_TERM else (4, 4)
    if not isinstance(value, tuple | list) or len(value) != 2:
        refuse("nodes", shown(value), "two integers (path, normal), or None", TypeError)
    return positive_integer("nodes[0]", value[0]), positive_integer("nodes[1]", value[1], minimum=2)


def check_kind(slope: str, kind: object) -> None:
    """Refuse a `kind` that is none, or that only "two_term" could follow."""
    if one_of("kind", kind, MARGINALS) != "shapley" and slope != TWO_TERM:
        refuse("kind", f"{kind!r} with slope {slope!r}", f"slope {TWO_TERM!r}, which alone is made for one marginal")


def coalition_mask(coalition: object, n: int) -> Array:
    """Return `coalition` as a boolean mask of shape (n,)."""
    needs = f"a boolean mask of shape ({n},)"
    mask: Array = _on_host(_array("coalition", coalition, needs))
    if mask.dtype != np.bool_:
        refuse("coalition", f"dtype {mask.dtype}", needs, TypeError)
    if mask.shape != (n,):
        refuse("coalition", f"shape {mask.shape}", needs)
    return mask


def _real_number(field: str, value: object, needs: str) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        refuse(field, shown(value), needs, TypeError)
    try:
        number = float(value)
    except OverflowError:  # an integer beyond float64
        number = math.inf if value > 0 else -math.inf
    if not math.isfinite(number):
        refuse(field, shown(number), needs)
    return number


def _not_negative(field: str, value: object) -> float:
    needs = "a finite real number of at least 0"
    number = _real_number(field, value, needs)
    if number < 0:
        refuse(field, shown(number), needs)
    return number


CUDA = 2
"""DLPack's number for the memory of a CUDA device."""


REAL = "real numbers (a float or integer dtype)"
LABELS = "integer labels of shape (n,), or real targets of shape (n, d_out)"


def _array(field: str, value: Any, needs: str = REAL) -> Any:
    """Return `value` as an array, NumPy's or, on a CUDA device, CuPy's; without a copy where it already is one."""
    refuse_masked(field, value)
    try:
        if not isinstance(value, np.ndarray) and hasattr(value, "__dlpack_device__"):
            if value.__dlpack_device__()[0] == CUDA:
                import cupy  # whoever has such an array has it

                return value if isinstance(value, cupy.ndarray) else cupy.from_dlpack(value)
            # Torch tensors and their like: DLPack shares their memory, and refuses what would be wrong (autograd).
            return np.from_dlpack(value)
        array = np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:  # another library's, of any kind
        name, why = type(value).__name__, " ".join(str(error).split())
        raise TypeError(f"{field}: got {name} that is no array here ({why}); needs {needs}") from error
    if array.dtype == object:
        _refuse_objects(field, value, array, needs)
    return array


def _refuse_objects(field: str, value: Any, array: Array, needs: str) -> NoReturn:
    name = type(value).__name__
    if hasattr(value, "toarray"):
        refuse(field, f"{name}, a sparse matrix", f"{needs}, such as its `toarray()`", TypeError)
    if hasattr(value, "to_numpy"):
        hint = "such as its `to_numpy(float)`, or for labels `to_numpy(int)`"
        refuse(field, f"{name} of dtype object", f"{needs}, {hint}", TypeError)
    refuse(field, f"dtype object of shape {array.shape}" if array.ndim else name, needs, TypeError)


def _real_array(field: str, value: object, shape: tuple[int | None, ...], needs: str = REAL) -> Any:
    """Return `value` as a finite real array of `shape` (None: any length, but not 0), read-only, not copied."""
    array = value if isinstance(value, Rows) else _array(field, value, needs)
    wanted = "(" + ", ".join("any" if length is None else str(length) for length in shape) + ")"
    if array.dtype.kind not in "iuf":
        refuse(field, f"dtype {array.dtype}", needs, TypeError)
    if array.ndim != len(shape) or any(
        have == 0 if want is None else have != want for have, want in zip(array.shape, shape, strict=True)
    ):
        refuse(field, f"shape {array.shape}", f"shape {wanted}, not empty")
    count = sum(int(part.size - np.count_nonzero(np.isfinite(part))) for part in parts(array))
    if count:
        refuse(field, f"{count} values that are NaN or infinite", "finite numbers only")
    return _read_only(array)


def _read_only(array: Any) -> Any:
    if not isinstance(array, np.ndarray):
        return array  # CuPy's and Rows have no such flag
    view = array.view()
    view.flags.writeable = False
    return view


def _on_host(array: Any) -> Any:
    if isinstance(array, Rows):
        return array[:]
    return array if isinstance(array, np.ndarray) else array.get()


def _named_arrays(field: str, value: object, shapes: Mapping[str, tuple[int, ...]]) -> Params:
    """Return the mapping `value` with exactly the names and shapes of `shapes`, in their order."""
    if not isinstance(value, Mapping):
        refuse(field, type(value).__name__, "a mapping from parameter name to array", TypeError)
    if set(value) != set(shapes):
        refuse(field, f"the names {sorted(map(str, value))}", f"exactly the names {list(shapes)}")
    arrays = {name: _array(f"{field}[{name!r}]", value[name]) for name in shapes}
    return {name: _real_array(f"{field}[{name!r}]", arrays[name], shape) for name, shape in shapes.items()}


# --- what a step is made of ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A multilayer perceptron: linear layers with one activation between them, none after the last.

    Parameters
    ----------
    sizes : tuple of int
        Widths from input to output, at least two; layer ``l`` maps ``sizes[l]`` to ``sizes[l + 1]``.
    activation : {"relu", "tanh", "gelu", "silu", "sigmoid", "identity"}
        As in PyTorch: ReLU's derivative at 0 is 0, GELU is the exact one (with the error function).
    loss : {"cross_entropy", "mse"}
        "cross_entropy" takes integer labels (n,) and logits; "mse" takes targets (n, d_out), and a sample's loss is the
        *mean* over outputs of the squared error, as in PyTorch.
    bias : bool
        Whether the layers have biases.
    """

    sizes: tuple[int, ...]
    activation: Activation = "tanh"
    loss: Loss = "cross_entropy"
    bias: bool = True

    def __post_init__(self) -> None:
        zero_dimensional = isinstance(self.sizes, np.ndarray) and self.sizes.ndim == 0
        no_sequence = isinstance(self.sizes, str | Set | Mapping)
        if no_sequence or zero_dimensional or not hasattr(self.sizes, "__iter__"):
            refuse("Network.sizes", shown(self.sizes), "at least two positive integers", TypeError)
        sizes = tuple(positive_integer(f"Network.sizes[{i}]", size) for i, size in enumerate(self.sizes))
        if len(sizes) < 2:
            refuse("Network.sizes", shown(self.sizes), "at least two positive integers")
        object.__setattr__(self, "sizes", sizes)
        one_of("Network.activation", self.activation, ACTIVATIONS)
        one_of("Network.loss", self.loss, LOSSES)
        object.__setattr__(self, "bias", true_or_false("Network.bias", self.bias))

    @property
    def depth(self) -> int:
        """Number of linear layers."""
        return len(self.sizes) - 1

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each parameter: ``"0.weight"`` (d_out, d_in), ``"0.bias"`` (d_out,), ``"1.weight"``, ..."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, (d_in, d_out) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            shapes[f"{layer}.weight"] = (d_out, d_in)
            if self.bias:
                shapes[f"{layer}.bias"] = (d_out,)
        return shapes

    def init(self, seed: int = 0) -> Params:
        """Return fresh float64 parameters, uniform on ±1/√d_in as PyTorch's ``nn.Linear`` (not its random numbers).

        Parameters
        ----------
        seed : int
            Of the random numbers.

        Returns
        -------
        dict of arrays
            One a parameter, with the names and shapes of `shapes`.
        """
        generator = np.random.default_rng(seed_of(seed))
        bounds = {layer: 1 / math.sqrt(d_in) for layer, d_in in enumerate(self.sizes[:-1])}
        return {
            name: generator.uniform(-bounds[int(name.split(".")[0])], bounds[int(name.split(".")[0])], shape)
            for name, shape in self.shapes.items()
        }


@dataclass(frozen=True)
class Adam:
    """Adam's settings; the defaults are PyTorch's.

    Parameters
    ----------
    lr : float
        η, at least 0.
    betas : tuple of two floats
        (β1, β2), each in [0, 1).
    eps : float
        ε, added to the root (Kingma & Ba, PyTorch), at least 0.
    eps_root : float
        ε_root, added inside the root, to v̂ (optax), at least 0.
    weight_decay : float
        λ, decoupled as in AdamW: ``θ`` loses ``η λ θ``; at least 0.

    Notes
    -----
    A step has these numbers as its dtype holds them. An ε or ε_root below the dtype's smallest normal number, 1.2e-38
    in float32, counts as 0; a number beyond the dtype's largest is refused.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    eps_root: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "eps_root", "weight_decay"):
            object.__setattr__(self, name, _not_negative(f"Adam.{name}", getattr(self, name)))
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            refuse("Adam.betas", shown(self.betas), "two numbers (β1, β2) in [0, 1)", TypeError)
        betas = []
        for i, beta in enumerate(self.betas):
            number = _real_number(f"Adam.betas[{i}]", beta, "a number in [0, 1)")
            if not 0 <= number < 1:
                refuse(f"Adam.betas[{i}]", number, "a number in [0, 1)")
            betas.append(number)
        object.__setattr__(self, "betas", tuple(betas))


def adam_in(adam: Adam, dtype: npt.DTypeLike) -> Adam:
    """Return Adam's settings as `dtype` holds them: ε and ε_root below its smallest normal number are 0.

    What is smaller has few digits, and processors and libraries may flush it to 0. The other settings keep all digits;
    the smaller the others are, the less they do, and nothing is divided by them.
    """
    limits, name = np.finfo(dtype), np.dtype(dtype).name
    most, least = float(limits.max), float(limits.smallest_normal)
    for field in ("lr", "eps", "eps_root", "weight_decay"):
        if getattr(adam, field) > most:
            refuse(f"Adam.{field}", getattr(adam, field), f"at most {most:.2g}, the largest number of {name}")
    if adam.lr * adam.weight_decay > most:
        got = f"{adam.weight_decay} with lr {adam.lr}"
        refuse("Adam.weight_decay", got, f"a product with lr of at most {most:.2g}, the largest number of {name}")
    eps, eps_root = (value if value >= least else 0.0 for value in (adam.eps, adam.eps_root))
    return replace(adam, eps=eps, eps_root=eps_root)


def refuse_zero_denominator(count: int, where: str) -> None:
    """Refuse Adam's division by 0 at `count` coordinates, if there are any; `where` says what is 0 there."""
    if count:
        refuse(
            "Adam.eps",
            f"0, or less than the dtype holds, with a denominator of 0 at {count} coordinates where {where}",
            "eps > 0, in float32 at least 1.2e-38",
        )


@dataclass(frozen=True, eq=False)
class AdamState:
    """Adam's memory between two steps.

    Parameters
    ----------
    step : int
        Completed steps; the next step has t = step + 1.
    m, v : dict of arrays
        First and second moment, without bias correction (PyTorch's ``exp_avg`` and ``exp_avg_sq``), one array a
        parameter, of its shape; ``v`` is nowhere negative.
    """

    step: int
    m: Params
    v: Params

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", positive_integer("AdamState.step", self.step, minimum=0))
        if not isinstance(self.m, Mapping):
            refuse("AdamState.m", type(self.m).__name__, "a mapping from parameter name to array", TypeError)
        shapes = {name: np.shape(_array(f"AdamState.m[{name!r}]", array)) for name, array in self.m.items()}
        object.__setattr__(self, "m", _named_arrays("AdamState.m", self.m, shapes))
        object.__setattr__(self, "v", _named_arrays("AdamState.v", self.v, shapes))
        for name, v in self.v.items():
            if (v < 0).any():
                refuse(f"AdamState.v[{name!r}]", f"a value of {v.min()}", "no negative value")

    @classmethod
    def unchecked(cls, step: int, m: Params, v: Params) -> "AdamState":
        """Return a state as it is, finite or not: what a run that broke off has to show.

        Parameters
        ----------
        step : int
        m, v : dict of arrays
            Not copied, and not looked at.

        Returns
        -------
        AdamState
            Of these very arrays.
        """
        state = object.__new__(cls)
        for name, value in (("step", step), ("m", m), ("v", v)):
            object.__setattr__(state, name, value)
        return state

    @classmethod
    def zeros(cls, params: Mapping[str, Any]) -> "AdamState":
        """Return the state before the first step, for parameters like `params`.

        Parameters
        ----------
        params : dict of arrays
            Whose names, shapes and dtypes the moments take.

        Returns
        -------
        AdamState
            Of step 0, with moments of 0.
        """
        if not isinstance(params, Mapping):
            refuse("params", type(params).__name__, "a mapping from parameter name to array", TypeError)
        arrays = {name: _array(f"params[{name!r}]", p) for name, p in params.items()}
        return cls(0, *({name: np.zeros_like(p) for name, p in arrays.items()} for _ in range(2)))


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples: inputs with labels, or with targets.

    Parameters
    ----------
    x : array or `Rows` (n, d_in)
        Inputs, finite.
    y : int array (n,), or array (n, d_out)
        Labels for the loss "cross_entropy", real targets for "mse".
    """

    x: Array
    y: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", _real_array("Batch.x", self.x, (None, None)))
        y = self.y if isinstance(self.y, Rows) else _array("Batch.y", self.y, LABELS)
        if y.ndim == 1:
            if y.dtype.kind not in "iu":
                refuse("Batch.y", f"dtype {y.dtype} of shape {y.shape}", LABELS, TypeError)
            y = _read_only(y)
        else:
            y = _real_array("Batch.y", y, (None, None), LABELS)
        if len(y) != len(self.x):
            refuse("Batch.y", f"{len(y)} rows", f"as many as Batch.x, {len(self.x)}")
        object.__setattr__(self, "y", y)

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.x)

    def take(self, index: Array) -> "Batch":
        """Return some of the samples, at least one.

        Parameters
        ----------
        index : int array, or bool array (n,)
            Which samples, in which order; or a mask.

        Returns
        -------
        Batch
            Those samples.
        """
        where = _array("index", index, f"integers, or a mask of shape ({self.n},)")
        if where.ndim != 1 or where.dtype.kind not in "iub" or (where.dtype.kind == "b" and len(where) != self.n):
            got = f"dtype {where.dtype} of shape {where.shape}"
            refuse("index", got, f"integers of shape (any,), or a mask of shape ({self.n},)", TypeError)
        if not (where.any() if where.dtype.kind == "b" else len(where)):
            refuse("index", "no sample", "at least one")
        if where.dtype.kind != "b" and not -self.n <= where.min() <= where.max() < self.n:
            refuse("index", f"samples from {where.min()} to {where.max()}", f"samples from {-self.n} to {self.n - 1}")
        return Batch(self.x[where], self.y[where])


@dataclass(frozen=True, eq=False)
class Step:
    """One training step, before it is taken, and the validation samples that judge it.

    Parameters
    ----------
    net : Network
    params : dict of arrays
        θ, with exactly the names and shapes of ``net.shapes``.
    adam : Adam
    state : AdamState
        Of the same names and shapes.
    train : Batch
        B, of n samples.
    valid : Batch
        n_val samples; L is their mean loss, whatever `reduction`.
    reduction : {"mean", "sum"}
        Whether a sample contributes ``∇ℓ/n`` or ``∇ℓ`` to the batch gradient. The divisor stays n for every coalition.
    """

    net: Network
    params: Params
    adam: Adam
    state: AdamState
    train: Batch
    valid: Batch
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        kinds = {"net": Network, "adam": Adam, "state": AdamState, "train": Batch, "valid": Batch}
        for field, kind in kinds.items():
            of_kind(f"Step.{field}", getattr(self, field), kind)
        one_of("Step.reduction", self.reduction, REDUCTIONS)
        shapes = self.net.shapes
        object.__setattr__(self, "params", _named_arrays("Step.params", self.params, shapes))
        if {name: m.shape for name, m in self.state.m.items()} != shapes:
            have = {name: m.shape for name, m in self.state.m.items()}
            refuse("Step.state", f"names and shapes {have}", f"those of the network, {shapes}")
        for field in ("train", "valid"):
            check_batch(f"Step.{field}", getattr(self, field), self.net)

    @property
    def n(self) -> int:
        """Number of training samples, the size of B."""
        return self.train.n

    @property
    def n_val(self) -> int:
        """Number of validation samples."""
        return self.valid.n

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the step is taken in: float32 where θ, m or v has fewer bits than float64, whatever the data's dtype."""
        arrays = [a for group in (self.params, self.state.m, self.state.v) for a in group.values()]
        narrow = any(a.dtype.kind == "f" and a.dtype.itemsize < 8 for a in arrays)
        return np.dtype(np.float32 if narrow else np.float64)

    def as_float64(self) -> "Step":
        """Return this step with every real array in float64 and all of them NumPy's.

        Returns
        -------
        Step
            Itself, where it already is so. Adam's settings stay as this step's `dtype` holds them.
        """
        adam = adam_in(self.adam, self.dtype)
        groups = (self.params, self.state.m, self.state.v)
        batches = (self.train, self.valid)
        reals = [a for group in groups for a in group.values()] + [b.x for b in batches]
        labels = [b.y for b in batches]
        reals += [y for y in labels if y.ndim == 2]
        if all(a.dtype == np.float64 for a in reals) and all(isinstance(a, np.ndarray) for a in (*reals, *labels)):
            return self if adam == self.adam else replace(self, adam=adam)
        params, m, v = ({name: _on_host(a).astype(np.float64) for name, a in group.items()} for group in groups)
        train, valid = (
            Batch(
                _on_host(b.x).astype(np.float64), _on_host(b.y).astype(np.float64) if b.y.ndim == 2 else _on_host(b.y)
            )
            for b in batches
        )
        state = AdamState(self.state.step, m, v)
        return Step(self.net, params, adam, state, train, valid, self.reduction)


def float64_step(step: object) -> Step:
    """Return ``step.as_float64()``, once `step` is known to be one."""
    return of_kind("step", step, Step).as_float64()


def check_batch(field: str, batch: Batch, net: Network) -> None:
    """Refuse a batch whose widths, or whose labels, `net` cannot take."""
    d_in, d_out = net.sizes[0], net.sizes[-1]
    if batch.x.shape[1] != d_in:
        refuse(f"{field}.x", f"shape {batch.x.shape}", f"shape ({batch.n}, {d_in}) for a network of sizes {net.sizes}")
    if net.loss == "mse":
        if batch.y.shape != (batch.n, d_out):
            refuse(f"{field}.y", f"shape {batch.y.shape}", f"targets of shape ({batch.n}, {d_out}) for loss 'mse'")
        return
    if batch.y.ndim != 1:
        refuse(f"{field}.y", f"shape {batch.y.shape}", f"labels of shape ({batch.n},) for loss 'cross_entropy'")
    low, high = int(batch.y.min()), int(batch.y.max())
    if low < 0 or high >= d_out:
        refuse(f"{field}.y", f"labels from {low} to {high}", f"labels from 0 to {d_out - 1}")


# --- results ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Marginals:
    """What each sample adds to the step's utility.

    Parameters
    ----------
    values : array (n,)
        In units of the validation loss; positive means that the sample lowered it.
    empty : float
        U(∅): what the momentum step taken even without data achieves, the paper's sample-independent history term.
    total : float
        U(B): what the step achieves.
    standard_error : array (n,)
        Of each value where coalitions were sampled, 0 where all were counted.
    """

    values: Array
    empty: float
    total: float
    standard_error: Array


@dataclass(frozen=True, eq=False)
class RunConfig:
    """What a training run is made of, enough to train again; refuses what does not fit together.

    Parameters
    ----------
    network : Network
    adam : Adam
    train, valid : Batch
        N training samples and n_val validation samples.
    epochs, batch_size, seed : int
        As for `batch_order`; the parameters start at ``network.init(seed)``, the moments at 0.
    reduction : {"mean", "sum"}
        As for `Step`.
    steps : int, optional
        The run ends after so many, if `epochs` do not end before.
    """

    network: Network
    adam: Adam
    train: Batch
    valid: Batch
    epochs: int
    batch_size: int
    seed: int
    reduction: Reduction = "mean"
    steps: int | None = None

    def __post_init__(self) -> None:
        for field, kind in {"network": Network, "adam": Adam, "train": Batch, "valid": Batch}.items():
            of_kind(field, getattr(self, field), kind)
        for field in ("train", "valid"):
            check_batch(field, getattr(self, field), self.network)
        one_of("reduction", self.reduction, REDUCTIONS)
        object.__setattr__(self, "epochs", positive_integer("epochs", self.epochs, maximum=None))  # see below
        object.__setattr__(self, "batch_size", positive_integer("batch_size", self.batch_size))
        object.__setattr__(self, "seed", seed_of(self.seed))
        if self.steps is not None:
            object.__setattr__(self, "steps", positive_integer("steps", self.steps))
        if self.length > MOST_STEPS:
            most = MOST_STEPS // self.per_epoch
            refuse("epochs", shown(self.epochs), f"at most {most}, so that the steps can be counted")

    @property
    def per_epoch(self) -> int:
        """Number of steps of a whole epoch."""
        return -(-self.train.n // self.batch_size)

    @property
    def length(self) -> int:
        """Number of steps of the run."""
        of_epochs = self.epochs * self.per_epoch
        return of_epochs if self.steps is None else min(self.steps, of_epochs)

    def order(self) -> Iterator[tuple[int, Array]]:
        """Yield what each step is made of.

        Returns
        -------
        iterator of (int, int array)
            The epoch, and the samples of the batch.
        """
        order = batch_order(self.train.n, batch_size=self.batch_size, epochs=self.epochs, seed=self.seed)
        return islice(order, self.steps)


@dataclass(frozen=True, eq=False)
class Run:
    """A training run with its attribution.

    With ``credit="carry"``, ``scores.sum(axis=0) + decay.sum(axis=0)`` is the validation loss before the run less that
    after it, up to rounding (docs/method.md 6).

    Parameters
    ----------
    initial_params, params : dict of arrays
        θ before the first step and after the last.
    state : AdamState
        After the last step.
    scores : array (N,), or (N, n_val) with ``per_validation``
        Each training sample's score, summed over the steps that it took part in; positive means helpful.
    sgd_scores : array of the same shape
        The same run judged by SGD's formula, ``slope="sgd", gradient="start"``.
    seen : int array (N,)
        In how many steps each sample took part.
    history : dict of arrays (steps,)
        ``epoch``; ``train_loss``, the batch's mean loss, and ``valid_loss``, both before the step.
    config : RunConfig, optional
        What the run is made of; `retrained` and `metagradient` train again from it.
    credit : {"step", "carry"}
        Who was credited with the momentum steps: nobody, or the earlier samples that the momentum is made of.
    decay : array (steps,), or (steps, n_val) with ``per_validation``; "carry" only
        How much weight decay lowered the loss in each step; no sample's doing.
    closed : array of the same shape; "carry" only
        The part of each step's change of the loss that slope and validation gradient leave open, and that the scores
        of its batch hold in equal parts.
    truncated : array (N,); the engine's "carry" only
        Bound on what each score lacks because later steps came after its batches had left the window.
    """

    initial_params: Params
    params: Params
    state: AdamState
    scores: Array
    sgd_scores: Array
    seen: Array
    history: dict[str, Array]
    config: RunConfig | None = None
    credit: Credit = "step"
    decay: Array | None = None
    closed: Array | None = None
    truncated: Array | None = None

    def to_frame(self) -> Any:
        """Return the scores as a table.

        Returns
        -------
        pandas.DataFrame
            One row a training sample. Its columns are ``score``, ``sgd_score`` and ``seen``; with ``per_validation``
            ``score[0]`` and so on, one for each validation sample.

        Raises
        ------
        ImportError
            Without pandas, which the extra ``tables`` brings.
        """
        from adamshap.reference.run_views import frame  # where it is used: it imports this module

        return frame(self)

    def plot(self) -> Any:
        """Return the run as a figure; ``run.plot().savefig("run.png")`` writes it.

        Returns
        -------
        matplotlib.figure.Figure
            A histogram of the scores, the scores beside SGD's, and the losses.

        Raises
        ------
        ImportError
            Without matplotlib, which the extra ``demo`` brings.
        """
        from adamshap.reference.run_views import figure  # as above

        return figure(self.scores, self.sgd_scores, self.history)


@dataclass(frozen=True)
class Progress:
    """What a run tells after each step.

    Parameters
    ----------
    step, steps : int
        Steps taken, of how many.
    epoch : int
        Counted from 0.
    train_loss, valid_loss : float
        Mean losses of the batch and of the validation samples, before the step.
    """

    step: int
    steps: int
    epoch: int
    train_loss: float
    valid_loss: float


def logged(on_step: Callable[[Progress], None] | None, about: str) -> Callable[[Progress], None] | None:
    """Return `on_step`, which also writes a run's coarse events to the logger "adamshap", where that listens.

    At level INFO: the start, with `about`, what is trained and by what; the last step of each epoch, with its losses;
    and the end. Without a listener this is `on_step` itself, so that a run does not wait for losses that nobody reads.
    """
    if not LOGGER.isEnabledFor(logging.INFO):
        return on_step
    LOGGER.info("training starts: %s", about)
    last: Progress | None = None

    def log(progress: Progress) -> None:
        nonlocal last
        if last is not None and progress.epoch > last.epoch:
            _log_epoch(last)
        if progress.step == progress.steps:
            _log_epoch(progress)
            LOGGER.info("training ends after %d steps", progress.steps)
        last = progress
        if on_step is not None:
            on_step(progress)

    return log


def _log_epoch(last: Progress) -> None:
    LOGGER.info(
        "epoch %d ends at step %d of %d: training loss %.6g, validation loss %.6g, both before the step",
        last.epoch + 1,
        last.step,
        last.steps,
        last.train_loss,
        last.valid_loss,
    )


def batch_order(count: int, *, batch_size: int, epochs: int, seed: int) -> Iterator[tuple[int, Array]]:
    """Yield (epoch, sample indices) for each step of a run: every epoch a new permutation, its last batch the rest.

    The order of the samples is part of the contract: two implementations of a run can only be compared on the same one.
    """
    count = positive_integer("count", count)
    batch_size = positive_integer("batch_size", batch_size)
    generator = np.random.default_rng(seed_of(seed))
    for epoch in range(positive_integer("epochs", epochs)):
        order = generator.permutation(count)
        for start in range(0, count, batch_size):
            yield epoch, order[start : start + batch_size]


# --- runs that stop and go on ----------------------------------------------------------------------------------------

Snapshot = dict[str, Array]
"""All that a run needs to go on, as named NumPy arrays: ``step``, ``settings`` (`run_settings`), ``params/0.weight``,
``m/...``, ``v/...``, ``scores``, ``sgd_scores``, ``seen``, ``history/train_loss``, ``history/valid_loss``, and what
else a trainer has, under names of its own. Those in ``history/`` have a row for each step, which later ones leave as it
is."""

Checkpointer = Callable[[int, Callable[[], Snapshot]], None]
"""Is given the number of completed steps, and a function that copies the run's state when it is called."""


class Diverged(FloatingPointError):
    """A run that stopped where a number was no longer finite.

    Parameters
    ----------
    step, steps : int
        The step at which that was found, counted from 1, and how many there should have been; ``steps + 1`` where it
        was found after the last.
    tensor : str
        The name of what was not finite.
    value : float
        NaN or infinity.
    run : Run
        The run without that step: scores, ``seen`` and ``history`` of the steps before it, all finite. Only ``params``
        and ``state`` are as the step left them (on a device, as the steps computed meanwhile left them) and may be not
        finite. With ``credit="carry"``, the engine's scores are those paid by then, without ``closed``.
    advice : str
        What may help.
    """

    def __init__(self, step: int, steps: int, tensor: str, value: float, run: Run, advice: str) -> None:
        where = f"at step {step} of {steps}" if step <= steps else f"after the last of {steps} steps"
        super().__init__(f"{tensor}: got {value} {where}; needs finite numbers: {advice} may help")
        self.step, self.steps, self.tensor, self.value, self.run = step, steps, tensor, value, run


def first_not_finite(arrays: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the first name whose array has a value that is NaN or infinite, and that value; None if there is none."""
    for name, array in arrays.items():
        bad = ~np.isfinite(array)  # CuPy's own, for CuPy's arrays
        if bad.any():
            return name, float(array[bad][0] if np.ndim(array) else array)
    return None


def refuse_overflow(found: Mapping[str, Any], dtype: npt.DTypeLike) -> None:
    """Refuse a step whose results, keyed by their names, `dtype` does not hold."""
    bad = first_not_finite(found)
    if bad is not None:
        wider = "" if np.dtype(dtype) == np.float64 else ", or dtype='float64'"
        got = f"a step with {bad[1]} in its {bad[0]}, beyond {np.dtype(dtype).name}"
        refuse("step", got, f"finite results: smaller inputs or a smaller lr{wider} may help")


ARITHMETIC = "arithmetic"
"""The name in a run's settings of what its last digits depend on."""


def run_settings(train: Batch, valid: Batch, own_arithmetic: Mapping[str, Any] | None = None, **settings: Any) -> str:
    """Return as text all that decides what a run computes: a state made with other settings is none of this run.

    Under `ARITHMETIC` it also says what decides the last digits alone.

    Parameters
    ----------
    train, valid : Batch
        Enter by shape, dtype and checksum.
    own_arithmetic : mapping, optional
        What the last digits depend on besides NumPy and BLAS.
    **settings
        Plain values and the contract's dataclasses.
    """
    settings[ARITHMETIC] = arithmetic() | dict(own_arithmetic or {})
    plain = {name: asdict(value) if is_dataclass(value) else value for name, value in settings.items()}  # type: ignore[arg-type]
    for name, batch in (("train", train), ("valid", valid)):
        plain[name] = {part: _checksum(getattr(batch, part)) for part in ("x", "y")}
    return json.dumps(plain, sort_keys=True, default=str)


def _checksum(array: Any) -> str:
    value = 0
    for part in parts(array):
        value = zlib.crc32(_on_host(part).tobytes(), value)
    return f"{array.dtype} {array.shape} {value:08x}"


def resumed(
    resume: object, settings: str, like: Mapping[str, Any], *, steps: int, optional: Mapping[str, Any] | None = None
) -> Snapshot:
    """Return the snapshot `resume` once it is one of this run.

    Parameters
    ----------
    resume : mapping from name to array
    settings : str
        This run's.
    like : mapping from name to array
        A fresh run's arrays, whose names, shapes and dtypes the snapshot must have; those of ``history/`` as long as
        `steps`.
    steps : int
        Of the whole run.
    optional : mapping from name to array
        What a snapshot may have besides.

    Warns
    -----
    UserWarning
        The snapshot was computed with other versions or on another kind of processor, so that last digits may differ.
    """
    if not isinstance(resume, Mapping):
        refuse("resume", type(resume).__name__, "a mapping from name to array", TypeError)
    optional = {} if optional is None else optional
    needed = ["step", "settings", *(name for name in like if name not in ("step", "settings"))]
    if any(name not in resume for name in needed) or any(name not in (*needed, *optional) for name in resume):
        refuse("resume", f"the names {sorted(map(str, resume))}", f"exactly the names {needed}")
    given = {name: _kept(name, resume[name]) for name in resume}
    theirs, step = given["settings"], given["step"]
    differ = _difference(str(theirs), settings) if theirs.shape == () else NO_SETTINGS
    if differ:
        refuse("resume", f"the state of another run, {differ}", "one of this run")
    if step.shape != () or step.dtype.kind != "i" or not 0 <= step <= steps:
        refuse("resume['step']", shown(step), f"an integer from 0 to {steps}")
    found: Snapshot = {"step": step, "settings": theirs}
    for name in (name for name in (*needed[2:], *optional) if name in resume):
        array = like[name] if name in like else optional[name]
        have = given[name]
        shape = (int(step), *array.shape[1:]) if name.startswith("history/") else array.shape
        if have.shape != shape or have.dtype != array.dtype:
            refuse(f"resume[{name!r}]", f"{have.dtype} of shape {have.shape}", f"{array.dtype} of shape {shape}")
        if not np.isfinite(have).all():
            refuse(f"resume[{name!r}]", "values that are NaN or infinite", "finite numbers only")
        found[name] = have
    before, now = recorded_arithmetic(resume), recorded_arithmetic({"settings": settings})
    changed = [name for name in before | now if before.get(name) != now.get(name)]
    if changed:
        warnings.warn(
            f"resume: the state was computed with another {', '.join(changed)}; the run continues, and its last digits "
            "may differ from those of an uninterrupted run",
            stacklevel=3,
        )
    return found


NO_SETTINGS = "without settings"


def _kept(name: str, value: object) -> Array:
    field = f"resume[{name!r}]"
    refuse_masked(field, value)
    try:
        return np.asarray(value)
    except Exception as error:  # another library's, of any kind
        refuse(
            field, f"{type(value).__name__} that is no array ({' '.join(str(error).split())})", "an array", TypeError
        )


def _difference(theirs: str, ours: str) -> str:
    """Say in which of the settings two runs differ; "" where it is in none but the arithmetic."""
    one, other = _parsed(theirs), _parsed(ours)
    if not one:
        return NO_SETTINGS
    names = [name for name in one | other if name != ARITHMETIC and one.get(name) != other.get(name)]
    return f"which differs in {', '.join(names)}" if names else ""


def recorded_arithmetic(resume: object) -> dict[str, Any]:
    """Return what the last digits of the run depended on that the snapshot `resume` is of; {} if it does not say."""
    settings = resume.get("settings", "") if isinstance(resume, Mapping) else ""
    found = _parsed(str(settings)).get(ARITHMETIC)
    return found if isinstance(found, dict) else {}


def _parsed(settings: str) -> dict[str, Any]:
    try:
        found = json.loads(settings)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
