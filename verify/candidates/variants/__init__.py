"""Right implementations for perceptrons that round in different ways, written from docs/method.md alone.

Each is a module-level object: ``adamshap verify adamshap.verify.candidates.variants:fused``. They find false alarms: a
bound that one of them exceeds is too small (`docs/false_alarms.py`). All agree in float64 to the last few digits.
"""

from adamshap.verify.candidates.variants.arithmetic import Arithmetic
from adamshap.verify.candidates.variants.variant import Variant

__all__ = [
    "VARIANTS",
    "backwards",
    "blocked",
    "fused",
    "paired",
    "plain",
    "scalars_in_dtype",
    "sequential",
    "wide_sums",
]

plain = Variant(Arithmetic())
sequential = Variant(
    Arithmetic(product="sequential", root="sqrt", variance="squares", gelu="erfc", tanh_slope="factors", divides=False)
)
backwards = Variant(Arithmetic(product="reversed", softmax="unshifted", sigmoid="tanh", per_sample=True))
paired = Variant(Arithmetic(product="pairwise", softmax="log", slope="gap", correction="expm1", variance="squares"))
blocked = Variant(Arithmetic(product="blocked", sigmoid="tanh", root="sqrt", slope="gap", per_sample=True))
fused = Variant(Arithmetic(product="fused", root="fused", softmax="log", tanh_slope="fused", divides=False))
wide_sums = Variant(Arithmetic(product="wide", gelu="erfc", sigmoid="tanh", softmax="unshifted", variance="squares"))
scalars_in_dtype = Variant(Arithmetic(product="sequential", scalars="dtype"))
"""In float32, an acceptable variant and not a right implementation (`adamshap.verify.acceptable`)."""

VARIANTS: dict[str, Variant] = {
    "plain": plain,
    "sequential": sequential,
    "backwards": backwards,
    "paired": paired,
    "blocked": blocked,
    "fused": fused,
    "wide_sums": wide_sums,
}
"""The right ones by name."""
