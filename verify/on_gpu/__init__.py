"""A run on a real GPU: all checks and measurements in stages, with a receipt at the end.

``python -m adamshap.verify.on_gpu --out DIR --minutes 12`` starts it; ``--rehearse`` runs everything, with small sizes,
on CuPy on the CPU. `plan` lists the stages, `conductor` runs each in child processes and writes the results, `child` is
such a process, and every other module is a stage with a function `tasks`, which lists its checks in order.
docs/gpu-evidence.md explains the files of a run and the value of a receipt.
"""
