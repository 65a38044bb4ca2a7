"""The engine: the oracle's functions on CuPy arrays, or NumPy arrays with Numba, without per-sample gradients."""
