"""CuPy on the CPU: CuPy's real front end, and the CUDA C++ that it generates, run without a GPU.

Call ``install()`` before anything imports CuPy, or run ``python -m adamshap.verify.cpu_device script.py``, or
``pytest --cupy-on-cpu``. Then ``import cupy`` as usual: arrays live in host memory, kernels are compiled with g++ and
run thread by thread, and NumPy computes cuBLAS's matrix products. Anything else raises a `NotCoveredError` that names
it.

This is evidence about code, not about a GPU: races, rounding to the last digit, TF32 and speed show only on a real one.
``docs/gpu-evidence.md`` lists what each rung catches.
"""

from adamshap.verify.cpu_device.counters import Copies, Counts, Gemm, count
from adamshap.verify.cpu_device.errors import KernelError, NotCoveredError, UnavailableError
from adamshap.verify.cpu_device.installation import (
    DEVICE_NAME,
    TESTED_CUPY,
    Modes,
    current_modes,
    install,
    is_installed,
    modes,
    real_devices,
)

__all__ = [
    "DEVICE_NAME",
    "TESTED_CUPY",
    "Copies",
    "Counts",
    "Gemm",
    "KernelError",
    "Modes",
    "NotCoveredError",
    "UnavailableError",
    "count",
    "current_modes",
    "install",
    "is_installed",
    "modes",
    "real_devices",
]
