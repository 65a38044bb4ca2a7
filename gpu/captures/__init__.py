"""Captures: the arrays that one use of parameters leaves in a forward and backward pass, and that all scoring reads.

Layers create captures (`layers`); scoring depends on no layer. A parameter that is used twice has several captures:
Σ x_i and ⟨P, x_i⟩ add up over them, and so do the pairs of two passes' captures. For Σ x_i² the uses are added first,
for one sample at a time; sign(x) √|x| of several uses is refused.

==================  ==============================================  ==================================================
class               x_i of its parameter                            a use of
==================  ==============================================  ==================================================
`OuterProduct`      b_i a_iᵀ, and b_i of a bias                     a linear layer at a single position
`OuterProducts`     Σ_t b_t a_tᵀ, and Σ_t b_t of a bias             a linear layer at T positions
`WindowProducts`    Σ_t b_t a_tᵀ, and Σ_t b_t of a bias             a convolution; a_t is what its window sees
`Gather`            b_t added to row id_t                           an embedding
`Dense`             an array of its own                             any small parameter: gains, biases, positions
`Summed`            unknown, only Σ x_i                             a layer without a capture
`GradientRows`      an array of its own                             none: of the validation samples, kept or PyTorch's
==================  ==============================================  ==================================================

======  ======================  ==================================================
paper   name                    meaning
======  ======================  ==================================================
x_i     no array                contribution of sample (row) i to a gradient
a       ``a``                   inputs (n, d_in) or (n, T, d_in)
b       ``b``                   gradients in the outputs (n, d_out) or (n, T, d_out), weighted
ℓ       ``Captures.losses``     (n,), not weighted
P       ``matrix``              score matrix, by parameter
======  ======================  ==================================================
"""

from adamshap.gpu.captures.capture import Capture, Factors, RootSquares
from adamshap.gpu.captures.collection import Captures
from adamshap.gpu.captures.dense import Dense, scale
from adamshap.gpu.captures.gather import Gather
from adamshap.gpu.captures.gradient_rows import GradientRows, gradient_of, gradient_rows
from adamshap.gpu.captures.outer_product import OuterProduct
from adamshap.gpu.captures.outer_products import OuterProducts, outer_products
from adamshap.gpu.captures.summed import Summed
from adamshap.gpu.captures.sums import multiply_by_sums, sum_blocks, write_sums
from adamshap.gpu.captures.window_products import WindowProducts

__all__ = [
    "Capture",
    "Captures",
    "Dense",
    "Factors",
    "Gather",
    "GradientRows",
    "OuterProduct",
    "OuterProducts",
    "RootSquares",
    "Summed",
    "WindowProducts",
    "gradient_of",
    "gradient_rows",
    "multiply_by_sums",
    "outer_products",
    "scale",
    "sum_blocks",
    "write_sums",
]
