"""One run on a real card: every check and every measurement in stages, with a receipt at the end.

``python -m adamshap.verify.on_gpu --out DIR --minutes 12`` runs it; ``--rehearse`` runs all of it, with small sizes, on
CuPy on the CPU. `plan` lists the stages, `conductor` runs each in child processes and writes the results, `child` is
one such process, and every other module is a stage: it has a function `tasks`, which lists its checks in order.
docs/gpu-evidence.md explains what the run writes and what a receipt is worth.
"""
