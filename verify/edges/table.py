"""All edges, as plain data, one dimension at a time, so that each case stays small."""

from itertools import product
from typing import Any

from adamshap.reference.contract import ACTIVATIONS
from adamshap.verify.edges.edge import Edge
from adamshap.verify.models import SEQUENTIAL
from adamshap.verify.models.kind import EDGES as SIZES

__all__ = ["BEYOND", "EDGES", "REFUSED", "STACK_EDGES"]

MANY = 2**16 + 1
"""More samples than a 16-bit integer counts."""


def _sizes() -> tuple[Edge, ...]:
    found = []
    for dimension in ("input", "hidden", "outputs", "n", "n_val"):
        loss = {"loss": "mse"} if dimension == "outputs" else {}
        found += [Edge(dimension, str(size), {dimension: size}, loss) for size in SIZES]
    found += [Edge("classes", str(size), {"outputs": size}, {"loss": "cross_entropy"}) for size in SIZES]
    found += [Edge("coalition", str(size), {"n": 258, "coalition": size}, calls=("utility",)) for size in SIZES]
    for dimension in ("n", "n_val"):
        sizes = {dimension: MANY, "input": 1, "outputs": 2, "depth": 1}
        found.append(Edge(dimension, str(MANY), sizes, calls=("update", "utility", "random_order", "influence")))
    for depth in (1, 9, 10, 11, 12, 101):
        # Equal widths: with others, layers in a wrong order do not fit together.
        sizes = {"depth": depth, "input": 2, "hidden": 2, "outputs": 2}
        found.append(Edge("depth", str(depth), sizes, {"activation": "tanh"}))
    # One matrix on either side of 2⁸ rows, 2⁸ columns and 2¹⁶ numbers.
    for rows, columns in product((255, 256, 257), repeat=2):
        sizes = {"depth": 1, "input": columns, "outputs": rows, "n": 2, "n_val": 2}
        found.append(Edge("matrix", f"{rows}x{columns}", sizes, calls=("update", "scores", "influence")))
    return tuple(found)


def _squares() -> tuple[Edge, ...]:
    """Return steps in which several dimensions are equal, or differ by 1: there a transposed array fits."""
    found = []
    for d in (2, 3, 8):
        for rows, columns in ((d, d), (d, d + 1), (d + 1, d)):
            sizes = {"depth": 1, "input": columns, "outputs": rows, "n": 3, "n_val": 2}
            found.append(Edge("square", f"{rows}x{columns}", sizes))
        every = dict.fromkeys(("input", "hidden", "outputs", "n", "n_val"), d)
        for loss in ("mse", "cross_entropy"):
            found.append(Edge("square", f"all-{d}-{loss}", every, {"loss": loss}))
        for other in ("input", "outputs", "n_val"):
            found.append(Edge("square", f"n={other}={d}", {"n": d, other: d}))
            found.append(Edge("square", f"n={other}+1={d}", {"n": d, other: d - 1}))
    return tuple(found)


COMPLETED = (
    *(0, 1, 2, 126, 127, 128, 254, 255, 256),
    *(9_999, 10_000, 32_766, 32_767, 32_768, 65_534, 65_535, 65_536),
    *(2**24 - 1, 2**24, 2**24 + 1, 2**31 - 2, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40 - 1),
)
"""Completed steps around the ends of 8-, 16- and 32-bit integers and of float32's, up to t = 2⁴⁰."""


def _counts() -> tuple[Edge, ...]:
    found = []
    for completed in COMPLETED:
        found.append(Edge("t", str(completed + 1), completed=completed))
        if completed > 10:
            # 1 − β^t depends on t only while β is within some 1/t of 1.
            near = 1 - 2.0 ** -(completed.bit_length() - 1)
            found.append(Edge("t", f"{completed + 1}-beta2-near-1", adam={"betas": (0.9, near)}, completed=completed))
            found.append(Edge("t", f"{completed + 1}-beta1-near-1", adam={"betas": (near, near)}, completed=completed))
    return tuple(found)


def _settings() -> tuple[Edge, ...]:
    settings: dict[str, tuple[dict[str, Any], ...]] = {
        "lr": ({"lr": 0.0}, {"lr": 1e-12}, {"lr": 1.0}, {"lr": 10.0}),
        "weight_decay": (
            *({"weight_decay": 0.0}, {"weight_decay": 1e-12}, {"weight_decay": 1.0}),
            *({"weight_decay": 4.0, "lr": 0.25}, {"weight_decay": 6.0, "lr": 0.25}, {"weight_decay": 40.0, "lr": 0.25}),
        ),
        "eps": (
            *({"eps": 0.0}, {"eps": 1e-30}, {"eps": 1e-16}, {"eps": 1.0}, {"eps": 1e3}),
            *({"eps": 0.0, "eps_root": 1e-8}, {"eps": 0.0, "eps_root": 1.0}, {"eps_root": 0.0}, {"eps_root": 10.0}),
        ),
        "betas": (
            *({"betas": (0.0, 0.999)}, {"betas": (0.9, 0.0)}, {"betas": (0.0, 0.0)}, {"betas": (0.5, 0.5)}),
            *({"betas": (1 - 2.0**-20, 0.999)}, {"betas": (0.9, 1 - 2.0**-20)}, {"betas": (1e-9, 1e-9)}),
            *({"betas": (0.9, 0.9)}, {"betas": (0.999, 0.9)}),
        ),
    }
    found = []
    for group, changes in settings.items():
        for change in changes:
            label = ",".join(f"{name}={value}".replace(" ", "") for name, value in change.items())
            found.append(Edge(group, label, adam=change, completed=7))
            if change.get("eps") != 0.0 or "eps_root" in change:  # with v = 0, ε = 0 divides by 0
                found.append(Edge(group, f"{label},t=1", adam=change, completed=0))
    return tuple(found)


def _values() -> tuple[Edge, ...]:
    at_zero = ("units at 0",)
    # ReLU alone has a derivative to choose at 0.
    found = [
        Edge("kink", f"{depth}-layers", {"depth": depth, "hidden": 3}, {"activation": "relu"}, arrangements=at_zero)
        for depth in (2, 3)
    ]
    found += [
        Edge(
            "zero", f"before-{activation}", {"depth": 2, "hidden": 3}, {"activation": activation}, arrangements=at_zero
        )
        for activation in ACTIVATIONS
    ]
    each = {
        "zero": (
            *("inputs at 0", "inputs at -0", "validation inputs at 0", "one sample at 0", "parameters at 0"),
            *("m at 0", "v at 0", "both moments at 0", "some parameters at 0", "some of v at 0", "no loss"),
            *("no validation loss", "labels at 0", "validation labels at 0"),
        ),
        "equal": (
            *("equal samples", "two equal samples", "equal validation samples", "two equal validation samples"),
            *("equal inputs with other labels", "equal validation inputs with other labels"),
            *("validation samples are training samples", "some validation samples are training samples"),
            *("equal labels", "equal parameters", "equal moments"),
            *("moments of the gradient", "equal features", "parameters at 1"),
        ),
        "opposite": (
            *("samples cancel", "momentum cancels the gradient", "opposite inputs", "opposite validation samples"),
            "alternating moments",
        ),
        "size": (
            *("tiny inputs", "very tiny inputs", "large inputs", "tiny moments", "denormal moments", "denormal inputs"),
            *("denormal parameters", "large moments", "one large sample", "one tiny sample", "large parameters"),
        ),
    }
    for group, names in each.items():
        for name in names:
            # Saturated units and labels have derivatives far below rounding, of which libraries leave anything.
            net = {"activation": "relu", "loss": "mse"} if "large" in name else {}
            found.append(Edge(group, name.replace(" ", "-"), net=net, arrangements=(name,)))
    for name in ("samples cancel", "equal samples", "one sample at 0"):
        found.append(Edge("opposite", f"{name},t=1".replace(" ", "-"), completed=0, arrangements=(name,)))
    return tuple(found)


def _layouts() -> tuple[Edge, ...]:
    sizes = {"input": 3, "hidden": 2, "outputs": 3, "depth": 2, "n": 4, "n_val": 3}
    return (
        *(Edge("layout", layout, sizes, layout=layout) for layout in ("writeable", "fortran", "strided")),
        Edge("layout", "int32-labels", sizes, {"loss": "cross_entropy"}, layout="int32"),
    )


EDGES: tuple[Edge, ...] = (*_sizes(), *_squares(), *_counts(), *_settings(), *_values(), *_layouts())
"""The edges of perceptrons."""


_LAYERS = {
    "vocab": "embedding",
    "outputs": "linear",
    "positions": "positions",
    "heads": "attention",
    "depth": "linear",
}
"""The layer that has a dimension; width and the numbers of samples are every stack's."""


def _stack(group: str, label: str, *layers: str, **fields: Any) -> Edge:
    return Edge(f"stack-{group}", label, model=SEQUENTIAL, layers=frozenset(layers), **fields)


def _stacks() -> tuple[Edge, ...]:
    """Return the edges of small transformers; attention keeps (T, T) numbers for each head and sample, so to 33."""
    few = tuple(size for size in SIZES if size <= 33)
    of = {"vocab": SIZES[1:], "outputs": SIZES[1:], "n": SIZES, "n_val": SIZES}
    of |= {"width": few, "positions": few, "heads": few, "depth": (7, 8, 9, 10, 97)}
    calls = ("update", "random_order", "per_validation")
    needed = {name: (_LAYERS[name],) if name in _LAYERS else () for name in of}
    found = [
        _stack(name, str(size), *needed[name], sizes={name: size}, calls=calls)
        for name, sizes in of.items()
        for size in sizes
    ]
    for d in (2, 3, 8):
        sizes = dict.fromkeys(("vocab", "width", "positions", "outputs", "n", "n_val"), d)
        found.append(_stack("square", f"all-{d}", sizes=sizes))
        for name in ("vocab", "width", "positions", "n"):
            found.append(_stack("square", f"all-{d}-but-{name}", *needed[name], sizes=sizes | {name: d + 1}))
    for name in ("equal samples", "equal validation samples", "two equal validation samples", "parameters at 0"):
        found.append(_stack("values", name.replace(" ", "-"), arrangements=(name,)))
    for name in ("one counted label", "one repeated token", "the last token alone", "the first token alone"):
        layers = ("embedding", "linear") if "label" in name else ("embedding",)
        sizes = {"positions": 5, "vocab": 4}
        found.append(_stack("values", name.replace(" ", "-"), *layers, sizes=sizes, arrangements=(name,)))
    for layout in ("writeable", "fortran", "strided", "int32"):
        found.append(_stack("layout", layout, layout=layout))
    return tuple(found)


STACK_EDGES: tuple[Edge, ...] = _stacks()
"""The edges of stacks of layers."""

REFUSED: tuple[Edge, ...] = (
    Edge("refused", "denominator-0", {"depth": 1}, adam={"eps": 0.0}, arrangements=("inputs at 0", "v at 0")),
    Edge("refused", "previous-at-t=1", completed=0, calls=("previous",)),
)
"""Steps at which no answer exists: a candidate has to refuse them."""

BEYOND: tuple[Edge, ...] = (
    Edge("refused", "beta1=1", completed=7, arrangements=("beta1 of 1",)),
    Edge("refused", "beta2=1", completed=7, arrangements=("beta2 of 1",)),
)
"""The same for settings beyond their ends, which the contract refuses too: no file of cases can hold them."""
