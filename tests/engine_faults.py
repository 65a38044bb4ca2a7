"""Faults to plant in the engine, one at a time; `run_engine_faults.py` shows which test catches each.

A fault replaces a piece of text that occurs once among the files of `gpu/` whose path contains ``where``. Keep the
pieces short, so that few of them change when code moves; `test_engine_faults.py` fails for one that is missing.
"""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["FAULTS", "Fault", "planted"]

HOST, CUDA = "not cupy", "cupy"


@dataclass(frozen=True)
class Fault:
    """A mistake in the engine.

    Parameters
    ----------
    name : str
    old, new : str
        The text to replace, and its replacement.
    tests : str
        Test files that may catch it, the likeliest first: names without ``test_engine_`` and ``.py``.
    where : str
        Part of the file's path, if `old` occurs in several files.
    chosen : str
        Selection of the tests, as for ``pytest -k``: those on the host, unless the fault is in code for CUDA.
    """

    name: str
    old: str
    new: str
    tests: str
    where: str = ""
    chosen: str = HOST


def planted(fault: Fault, folder: Path) -> tuple[Path, str]:
    """Return the file of the engine in `folder` that has the fault, and its text with it.

    Raises
    ------
    LookupError
        If the text to replace does not occur there exactly once.
    """
    found = [
        (path, path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob("*.py"))
        if fault.where in path.relative_to(folder).as_posix()
    ]
    count = sum(text.count(fault.old) for _, text in found)
    if count != 1:
        raise LookupError(f"{fault.name}: the text to replace occurs {count} times in gpu/*{fault.where}*")
    (path, text), *_ = ((path, text) for path, text in found if fault.old in text)
    return path, text.replace(fault.old, fault.new)


_LAYERS = (
    Fault("no-bias-in-the-last-layer", "            output += bias\n", "            pass\n", "scores", "layers"),
    Fault(
        "chunks-of-biases-not-added",
        "array += capture.sum_of(xp, name, units)",
        "array[...] = capture.sum_of(xp, name, units) + (array if array.ndim == 2 else 0)",
        "scores run",
    ),
    Fault(
        "chunks-of-weights-not-added",
        "array += capture.sum_of(xp, name, units)",
        "array[...] = capture.sum_of(xp, name, units) + (array if array.ndim == 1 else 0)",
        "scores run",
    ),
    Fault(
        "backward-without-derivative",
        "            scale_by_derivative(context, self.activation, b, workspace.inputs[number], derivative)\n",
        "",
        "scores",
        "layers",
    ),
    Fault("label-not-subtracted", "xp.where(hit, -rest, e)", "xp.where(hit, total - rest, e)", "scores"),
    Fault("loss-without-its-gap", "xp.log(total) + gap, xp.log1p", "xp.log(total), xp.log1p", "scores"),
    Fault("sure-labels-lose-their-loss", "xp.log1p(rest))", "xp.log(total))", "run scores"),
    Fault("square-not-averaged", "z.dtype.type(2 / z.shape[1])", "z.dtype.type(2)", "scores"),
    Fault(
        "last-unit-of-a-block-left-out",
        "min(first + block, units.stop)",
        "min(first + block - 1, units.stop)",
        "run scores",
    ),
    Fault(
        "units-at-the-borders-of-parts-added-twice",
        "units = slice(count * low // parts, count * high // parts)",
        "units = slice(count * low // parts, count * high // parts + 1)",
        "run",
    ),
    Fault("columns-of-parts-misplaced", "out=out[:, low:high])", "out=out[:, : high - low])", "run"),
    Fault("weights-of-the-first-part-for-all", "else weight[rows]", "else weight[: rows.stop - rows.start]", "run"),
)

_THREADS = (
    Fault("remainder-of-parts-lost", "rows * i // parts for i", "rows // parts * i for i", "run cores"),
    Fault("last-part-lost", "range(parts + 1)", "range(parts)", "run cores"),
    Fault("errors-in-threads-swallowed", "            other.result()", "            other.exception()", "run"),
    Fault(
        "recorded-parts-ignored",
        "return recorded if type(recorded) is int and 1 <= recorded <= MOST_PARTS else cpu_threads()",
        "return cpu_threads()",
        "cores resume",
    ),
    Fault("blas-keeps-its-threads", "    with one_blas_thread():\n", "    if True:\n", "run cores"),
)

_NORMS = (
    Fault("rank-one-not-divided-by-n", "row.dtype.type(1 / math.sqrt(n))", "row.dtype.type(1)", "run"),
    Fault(
        "norms-of-chunks-not-added",
        "_joined(xp, norms[name], found) if name in norms else found",
        "found",
        "norms run scores",
    ),
    Fault("roots-of-chunks-not-added", "xp.hypot(one.root, other.root, out=one.root)", "other.root", "norms scores"),
    Fault("squares-that-underflow-kept", "least = 4 * n *", "least = 0 * n *", "norms"),
    Fault("squares-scaled-too-far", "math.ceil(math.log2(n))) // 4", "math.ceil(math.log2(n))) // 2", "norms"),
    Fault(
        "last-block-of-roots-lost",
        "range(low * block, min(high * block, count), block)",
        "range(low * block, max(min(high * block, count) - 2, 1), block)",
        "norms scores",
    ),
    Fault(
        "column-norms-not-rooted-numba",
        "np.sqrt(sums).astype(x.dtype)",
        "sums.astype(x.dtype)",
        "kernels ops run",
        "numba",
    ),
    Fault(
        "column-norms-not-rooted-cuda",
        "cupy.sqrt(_square_sums()(x, axis=0)).astype",
        "_square_sums()(x, axis=0).astype",
        "kernels ops",
        "cuda",
        CUDA,
    ),
    Fault("spread-with-replacement", "np.sqrt(left * f(n / (n - 1)))", "np.sqrt(left)", "kernels ops", "numpy"),
    Fault(
        "spread-with-replacement-numba",
        "unbias = n / (n - 1) if n > 1 else 0.0\n",
        "unbias = 1.0 if n > 1 else 0.0\n",
        "scores kernels ops",
        "numba",
    ),
    Fault(
        "spread-with-replacement-cuda",
        "unbias = n / (n - 1) if n > 1 else 0.0\n",
        "unbias = 1.0 if n > 1 else 0.0\n",
        "kernels ops scores",
        "cuda",
        CUDA,
    ),
    Fault("spread-not-centred", "one - own * own * per_sample", "one - zero * per_sample", "scores", "numba"),
    Fault(
        "spread-not-centred-cuda",
        "max(T(1) - own * own * per_sample, T(0))",
        "T(1)",
        "kernels ops scores",
        "cuda",
        CUDA,
    ),
)

_ADAM = (
    Fault(
        "bias-correction-of-the-next-step",
        "((b1, t), (b2, t), (b2, t - 1))",
        "((b1, t + 1), (b2, t), (b2, t - 1))",
        "scores",
    ),
    Fault("previous-denominator-of-this-step", "(b2, t), (b2, t - 1))", "(b2, t), (b2, t))", "scores"),
    Fault("decay-without-lr", "1 - adam.lr * adam.weight_decay", "1 - adam.weight_decay", "scores"),
    Fault("kappa-not-decayed", "kappa=b2 / c2", "kappa=1 / c2", "scores"),
    Fault("square-averaged-by-beta1", "d2=1 - b2", "d2=1 - b1", "scores"),
    Fault(
        "eps-inside-the-root-numba",
        "safe_root(one, math.sqrt(kappa * ve + under), root_q * abs(ge), tiny) + eps",
        "safe_root(one, math.sqrt(kappa * ve + under + eps), root_q * abs(ge), tiny)",
        "scores",
        "numba",
    ),
    Fault("m-and-v-swapped-numpy", "f(scalars.b1) * m +", "f(scalars.b1) * v +", "kernels ops", "numpy"),
    Fault(
        "v-and-m-swapped-numba",
        "w[2 * BLOCK + e] = b2 * ve + d2",
        "w[2 * BLOCK + e] = b2 * me + d2",
        "scores",
        "numba",
    ),
    Fault(
        "last-element-lost-numba",
        "w = np.empty(3 * BLOCK, real)\n        for start in range(low, high, BLOCK):",
        "w = np.empty(3 * BLOCK, real)\n        for start in range(low, high - 1, BLOCK):",
        "scores run",
        "numba",
    ),
    Fault(
        "last-element-of-the-secant-lost-numba",
        "w = np.empty(5 * BLOCK, real)\n        for start in range(low, high, BLOCK):",
        "w = np.empty(5 * BLOCK, real)\n        for start in range(low, high - 1, BLOCK):",
        "kernels scores",
        "numba",
    ),
    Fault(
        "idle-step-with-the-batch-cuda",
        "T idle = lr * (mu * m + k * decay) / (top_at_rest * sqrt(",
        "T idle = lr * (mu * m + k * decay) / (below + T(0) * sqrt(",
        "kernels ops scores",
        "cuda",
        CUDA,
    ),
    Fault(
        "point-at-the-other-end-numba",
        "(one - blend) * idle + blend * step",
        "blend * idle + (one - blend) * step",
        "scores two_term",
        "numba.py",
    ),
    Fault("point-without-decay-numba", "w[POINT + e] = kept - (", "w[POINT + e] = theta_[e] - (", "scores", "numba.py"),
    Fault(
        "point-of-the-secant-at-the-other-end",
        "(one - blend) * idle + blend * step",
        "blend * idle + (one - blend) * step",
        "kernels scores",
        "numba_steps",
    ),
    Fault(
        "point-of-the-secant-without-decay",
        "w[POINT + e] = kept - (",
        "w[POINT + e] = theta_[e] - (",
        "kernels scores",
        "numba_steps",
    ),
    Fault("point-without-decay-cuda", '"point = kept - (', '"point = theta - (', "kernels ops scores", "cuda", CUDA),
)

_SLOPES = (
    Fault("sketch-from-the-first-step", "_squares(one) > EXACT_SQUARES", "_squares(one) > 0", "run"),
    Fault("half-the-squares-of-v", "(1 + scalars.b2) / (2 -", "1 / (2 -", "run"),
    Fault("narrow-products-never-whole", "one / parts_for(one / 2)", "one / parts_for(sum(flops))", "layers"),
    Fault("path-weights-of-two", "(float(a + 1) / 2, float(b) / 2)", "(float(a + 1) / 2, float(b))", "scores"),
    Fault("half-the-normal", "w * 2 * float(aj)", "w * float(aj)", "scores"),
    Fault(
        "spread-of-independent-arrivals",
        "float(hj) * math.sqrt(tau * (1 - tau))",
        "float(hj) * math.sqrt(tau)",
        "scores",
    ),
    Fault("nodes-swapped", "_arrival_nodes(*nodes))", "_arrival_nodes(*nodes[::-1]))", "scores"),
    Fault(
        "secant-with-the-denominator-of-the-batch", "share * first / at_rest", "share * first / below", "kernels scores"
    ),
    Fault("secant-without-the-root-at-rest", "y / (length + x + tiny)", "y / (length + length)", "kernels scores"),
    Fault(
        "secant-without-the-validation-gradient",
        "w[SLOPE + e] *= gamma_[e]",
        "w[SLOPE + e] *= one",
        "kernels scores",
        "numba_steps",
    ),
    Fault("secant-with-l2-decay-as-without", "plan is SECANT_PLAN and not scalars.l2", "plan is SECANT_PLAN", "l2"),
    Fault(
        "secant-is-tangent",
        "n == 1):\n        return SECANT_PLAN",
        'n == 1):\n        return SlopePlan("nodes", (TANGENT,))',
        "scores",
    ),
    Fault(
        "zero-denominators-not-looked-for",
        'self.kind in ("linearized", "previous", "at_rest") or from_zero',
        "False",
        "run small_eps",
    ),
    Fault(
        "quotient-with-the-wrong-square",
        "kappa * (r_b * r_b + aa)",
        "kappa * (kappa + aa)",
        "kernels ops two_term",
        "numpy",
    ),
    Fault(
        "quotient-with-the-wrong-square-numba",
        "\n    X = rho2 * (aa + b * b) if",
        "\n    X = rho2 * (aa + bb) if",
        "scores",
        "numba",
    ),
    Fault(
        "quotient-with-the-wrong-square-cuda",
        "T X = ab > T(0) ? rho2 * (aa + b * b) : U;",
        "T X = ab > T(0) ? rho2 * (aa + bb) : U;",
        "kernels ops scores",
        "cuda",
        CUDA,
    ),
    Fault(
        "momentum-part-halved-cuda",
        "of_mu = mu2 * (c + rested);",
        "of_mu = T(0.5) * mu2 * (c + rested);",
        "kernels ops scores",
        "cuda",
        CUDA,
    ),
    Fault(
        "zero-over-zero-at-rest",
        "    top = top if top > tiny else tiny\n    inverse = one / top",
        "    inverse = one / top",
        "scores",
        "numba",
    ),
    Fault(
        "tables-of-nodes-keyed-by-their-number",
        "    return np.array(nodes or np.zeros((0, 4)), dtype)\n",
        """    table = np.array(nodes or np.zeros((0, 4)), dtype)
    return globals().setdefault(f"table of {len(table)} in {dtype}", table)
""",
        "scores",
        "numba",
    ),
)

_ACTIVATIONS = (
    Fault(
        "gelu-derivative-short-numba",
        "normal + x * math.exp(-half * x * x) / root_two_pi",
        "normal",
        "scores kernels ops",
        "numba",
    ),
    Fault(
        "gelu-derivative-of-singles-short-numba",
        "real(normal + x * density * DENSITY_AT_0)",
        "real(normal)",
        "ops scores kernels",
    ),
    Fault("tail-of-the-wrong-side-numba", "1.0 - tail if x > 0.0 else tail", "1.0 - tail if x < 0.0 else tail", "ops"),
    Fault(
        "exponential-cut-short-numba",
        "high = (C8 + r * C9) + r2 * (C10 + r * C11) + r4 * (C12 + r * C13)",
        "high = C8 + r * C9",
        "ops",
    ),
    Fault("silu-derivative-wrong-cuda", "up * (T(1) + x * down)", "up * (T(1) + x * up)", "kernels ops", "cuda", CUDA),
    Fault(
        "sigmoid-derivative-wrong",
        "np.multiply(up, down, out=derivative)",
        "np.multiply(up, up, out=derivative)",
        "scores",
    ),
    Fault(
        "relu-gate-open-at-0-cuda", "a > T(0) ? b : T(0)", "a >= T(0) ? b : T(0)", "kernels ops scores", "cuda", CUDA
    ),
    Fault(
        "tanh-derivative-by-subtraction",
        "np.divide(f(4) * t, (f(1) + t) ** 2, out=derivative)",
        "np.subtract(f(1), np.tanh(z) ** 2, out=derivative)",
        "kernels ops scores",
    ),
)

_STEP = (
    Fault(
        "chunk-of-one-sample-lost",
        "for low in range(0, n, size)]",
        "for low in range(0, max(n - 1, 1), size)]",
        "scores run",
    ),
    Fault(
        "validation-sample-averaged",
        "1.0 if estimator.per_validation else 1 / batch.n_val",
        "1 / batch.n_val",
        "scores",
    ),
    Fault(
        "validation-weights-missing-beside-the-batch",
        "= valid_weight, step.weight\n",
        "= step.weight, step.weight\n",
        "run",
    ),
    Fault(
        "validation-shares-a-buffer-with-the-batch",
        'stack.workspace(context, "start",',
        'stack.workspace(context, "train",',
        "scores",
    ),
    Fault("loss-of-the-last-chunk-alone", "loss = loss + captures.losses", "loss = captures.losses", "run"),
    Fault(
        "loss-averaged-over-the-last-chunk",
        "norms, loss / batch.n, factor, ",
        "norms, loss / captures.n, factor, ",
        "run",
    ),
    Fault("path-weights-missing", "batch.valid_y, weight * node_weight)", "batch.valid_y, weight)", "scores"),
    Fault("own-part-of-the-path-forgotten", "(low + tau * (high - low), weight)", "(tau, weight)", "two_term scores"),
    Fault("own-midpoint-forgotten", "blend, norms = sum(plan.segment) / 2", "blend, norms = 0.5", "two_term scores"),
    Fault("remainder-divided-by-n-val", "scores.dtype.type(batch.n)", "scores.dtype.type(batch.n_val)", "scores"),
    Fault("end-losses-in-one-buffer", "batch.valid_y).copy())", "batch.valid_y))", "scores"),
    Fault("gap-backwards", "gap = losses[0] - losses[1]", "gap = losses[1] - losses[0]", "scores"),
    Fault(
        "per-validation-transposed",
        "scores.T if plan.estimator.per_validation",
        "scores.reshape(scores.shape[::-1]) if plan.estimator.per_validation",
        "scores",
    ),
    Fault("first-node-alone-for-each-validation-sample", "slice(v, None, task.n_val)", "slice(v, v + 1)", "scores run"),
    Fault(
        "sgd-scored-with-the-path-s-nodes",
        "sgd_scorer(context, exact, forward.start,",
        "sgd_scorer(context, exact, validation,",
        "run",
    ),
    Fault(
        "sgd-without-lr",
        "forward.start, step.hyperparameters.lrs, ",
        "forward.start, dict.fromkeys(step.hyperparameters.lrs, 1.0), ",
        "run",
    ),
    Fault(
        "validation-gradient-taken-twice",
        "matrix_scorer(context, task, fused.matrix, validation)",
        "slope_scorer(context, task, validation, SlopeArrays(fused.matrix))",
        "scores",
    ),
    Fault("plain-step-not-averaged", "state.theta, y, weight)", "state.theta, y, 1.0)", "scores"),
    Fault("eps-asked-for-where-the-gradient-is-not-0", "zero &= abs(", "zero | abs(", "run"),
    Fault(
        "efficiency-starts-at-rest-unasked",
        "or estimator.efficient or slope.needs_idle",
        "or slope.needs_idle",
        "small_eps",
    ),
)

_SCORES = (
    Fault("bias-dropped-from-factors", "                out += b @ p\n", "                pass\n", "run"),
    Fault(
        "bias-in-every-network",
        "        if with_bias:\n            inner +=",
        "        if True:\n            inner +=",
        "scores",
    ),
    Fault(
        "range-not-orthonormal",
        "q = orthonormal(context, product_by_rows(context, p, basis))",
        "q = product_by_rows(context, p, basis)",
        "run",
    ),
    Fault("one-basis-for-all-validation-samples", "name: (number, group)\n", "name: (number, 0)\n", "run"),
    Fault(
        "basis-of-the-first-step-kept",
        "self.bases[key] = found[name][1]",
        "self.bases.setdefault(key, found[name][1])",
        "run",
    ),
    Fault("flat-copies-of-outputs", "if not all(array.flags.c_contiguous", "if not all(array.ndim", "kernels"),
    Fault("sketch-where-it-does-not-pay", "3 * self.rank / n < 1", "self.rank / n < 1", "run"),
    Fault("seed-of-the-sketch-ignored", "default_rng((self.seed, *key))", "default_rng(key)", "run"),
    Fault("directions-of-rounding-kept", "kept = values > UNRESOLVED * len(gram)", "kept = values > 0", "kernels ops"),
    Fault("directions-of-rounding-kept-cuda", "left > unresolved * r ?", "left > 0 ?", "kernels ops", "cuda", CUDA),
    Fault("row-dot-without-shift-numba", "b[i, j] * (z[i, j] + p[j])", "b[i, j] * z[i, j]", "scores", "numba"),
    Fault("row-dot-without-shift-cuda", '"b * (z + p)"', '"b * z"', "kernels ops scores", "cuda", CUDA),
    Fault("half-precision-scaled-once", "tops[0] * tops[1]", "tops[0]", "run", "", CUDA),
)

_CAPTURES = (
    Fault(
        "pairs-with-the-first-lr",
        "dots *= dots.dtype.type(lr)",
        "dots *= dots.dtype.type(groups[0][0])",
        "hyperparameters",
    ),
    Fault(
        "settings-of-the-first-parameter-for-all",
        "None or settings is not last",
        "None and settings is not last",
        "hyperparameters",
    ),
    Fault("second-use-of-a-parameter-lost", "for other in uses[1:]:", "for other in uses[2:]:", "captures"),
    Fault("bound-of-two-uses-as-of-one", "xp.add if self.used_twice else xp.hypot", "xp.hypot", "captures"),
)

_GAME = (
    Fault("coalition-ignored", "self.captures.weighted(mask)", "self.captures", "scores"),
    Fault("banzhaf", "1 / (n * math.comb(n - 1, s))", "1 / 2 ** (n - 1)", "scores"),
    Fault("standard-error-of-the-sum", "ddof=1) / math.sqrt(pairs)", "ddof=1) / pairs", "scores"),
    Fault("influence-frozen", 'Estimator("tangent")', 'Estimator("frozen")', "scores"),
    Fault(
        "first-order-with-the-opposite-sign", "return -float(sum(products))", "return float(sum(products))", "scores"
    ),
)

_TWO_TERM = (
    Fault("normal-rules-the-other-way-round", "for fewer in (1, 0)]", "for fewer in (0, 1)]", "two_term scores"),
    Fault("own-spread-with-n-minus-1", "math.sqrt(n - 1) / n, RIDGE", "1 / math.sqrt(n), RIDGE", "two_term scores"),
    Fault("root-without-sign", "return xp.copysign(out, array, out=out)", "return out", "two_term scores"),
    Fault("roots-of-all-layers-in-one-buffer", 'f"root {name} {weight}"', 'f"root {name}"', "two_term scores"),
    Fault("first-goes-all-the-way", "return (0.0, 1 / n) if kind", "return (0.0, 1.0) if kind", "two_term scores"),
    Fault("places-counted-from-1", "middle = (n - 1) / 2", "middle = n / 2", "two_term"),
    Fault(
        "refusal-of-nothing-found-missing",
        "return any(tau == across == 0",
        "return False and any(tau == across == 0",
        "small_eps",
    ),
    Fault(
        "pairs-of-neighbours-alone-numpy",
        "combinations(range(len(plan.own)), 2)",
        "((j, j + 1) for j in range(len(plan.own) - 1))",
        "two_term",
    ),
    Fault(
        "pairs-of-neighbours-alone-numba",
        "for other in range(j):",
        "for other in range(max(j - 1, 0), j):",
        "two_term scores",
        "numba",
    ),
    Fault(
        "pairs-without-the-last-cuda",
        "for (int i = 0; i < j; ++i)",
        "for (int i = 0; i + 1 < j; ++i)",
        "two_term scores",
        "cuda",
        CUDA,
    ),
)

_OPTIMISER = (
    Fault(
        "factor-left-out-of-the-squares",
        "    if norms is not None and factor is not None:\n",
        "    if False:\n",
        "clipping",
    ),
    Fault("factor-left-out-of-rank-one-norms", "                multiply(context, row, factor)\n", "", "clipping"),
    Fault("factor-left-out-of-sgd", "for clipped in (scores, *others):", "for clipped in (scores,):", "clipping"),
    Fault("factor-left-out-of-scores", "for clipped in (scores, *others):", "for clipped in others:", "clipping"),
    Fault("factor-left-out-of-carried-sgd", "        multiply(context, sgd, forward.factor)\n", "", "clipping"),
    Fault("factor-left-out-of-carried-scores", "        multiply(context, out, forward.factor)\n", "", "clipping"),
    Fault("factor-left-out-of-waiting-batches", "multiply(self.context, out, batch.factor)", "pass", "clipping"),
    Fault(
        "factor-lost-on-resume",
        "factors[row] = 1.0 if batch.factor is None else",
        "factors[row] = 1.0 if True else",
        "clipping",
    ),
    Fault(
        "second-term-with-c-for-its-root",
        "multiply(context, second, 1 /",
        "multiply(context, second, 1.0 if True else 1 /",
        "clipping",
    ),
    Fault(
        "norm-of-each-parameter",
        "    for array in g.values():\n        multiply(context, array, factor)\n    return factor\n",
        "    for name, array in g.items():\n"
        "        alone = _norm(context, {name: array})\n"
        "        multiply(context, array, clipped.norm / xp.maximum(alone + clipped.eps, clipped.norm))\n"
        "    return factor\n",
        "clipping",
    ),
    Fault(
        "norm-of-one-chunk",
        "    factor = clip(context, step.hyperparameters.clipped, g)\n",
        "    last = BatchGradient({name: array.copy() for name, array in g.items()})\n"
        "    write_sums(context, captures, last)\n"
        "    factor = clip(context, step.hyperparameters.clipped, last)\n"
        "    for name, array in g.items():\n"
        "        array *= array.dtype.type(1 if factor is None else factor)\n",
        "clipping",
    ),
    Fault(
        "plain-steps-not-clipped",
        "    clip(context, hyperparameters.clipped, g)\n    take_step",
        "    take_step",
        "clipping",
    ),
    Fault(
        "eps-outside-the-norm-s-sum",
        "_norm(context, g) + clipped.eps, clipped.norm)",
        "_norm(context, g), clipped.norm)",
        "clipping",
    ),
    Fault(
        "gradients-raised-to-the-norm",
        "clipped.norm / xp.maximum(_norm(context, g) + clipped.eps, clipped.norm)",
        "clipped.norm / (_norm(context, g) + clipped.eps)",
        "clipping",
    ),
    Fault(
        "squares-of-the-norm-underflow",
        "scaled = block / xp.where(top > 0, top, top.dtype.type(1))",
        "scaled, top = block * 1, top * 0 + 1",
        "clipping",
    ),
    Fault(
        "last-block-of-the-norm-lost",
        "for low in range(0, flat.size, CACHED)]",
        "for low in range(0, max(flat.size - CACHED, 1), CACHED)]",
        "clipping",
    ),
    Fault("factor-underflows", "and not factor < np.finfo(array.dtype).tiny", "", "clipping"),
    Fault(
        "held-factor-forgotten-by-the-game",
        "            multiply(context, array, self.factor)\n",
        "            pass\n",
        "clipping",
    ),
    Fault(
        "coalitions-clipped-anew-always",
        "if held.clipped is not None and not clip_each:",
        "if held.clipped is not None:",
        "clipping",
    ),
    Fault(
        "decay-charged-to-samples",
        "_received(scalars, np.zeros_like(g), state)\n    idle",
        "np.zeros_like(g)\n    idle",
        "l2",
    ),
    Fault(
        "slope-from-0-numba",
        "w[DECAY + e] = rest * inverse\n                        w[K",
        "w[DECAY + e] = zero\n                        w[K",
        "l2",
    ),
    Fault(
        "fit-from-0-numba",
        "w[DECAY + e] = rest * inverse\n                    w[K",
        "w[DECAY + e] = zero\n                    w[K",
        "l2",
    ),
    Fault("slope-from-0-cuda", "rest = root_q * (l2 * theta);", "rest = T(0);", "l2", "cuda", CUDA),
    Fault(
        "moments-without-decay-numba",
        "ge, me, ve = g_[e] + l2 * theta_[e] if decays else g_[e], m_[e], v_[e]\n                    rho",
        "ge, me, ve = g_[e], m_[e], v_[e]\n                    rho",
        "l2",
    ),
    Fault(
        "moments-without-decay-cuda", "new_m = b1 * m + d1 * received;", "new_m = b1 * m + d1 * g;", "l2", "cuda", CUDA
    ),
    Fault("rest-without-decay-numba", "lr * (first + k * rest) / (safe", "lr * first / (safe", "l2"),
    Fault("denominator-at-rest-without-decay-numba", "root_q * abs(rest), tiny) + eps)", "zero, tiny) + eps)", "l2"),
    Fault("rest-without-decay-cuda", "lr * (mu * m + k * decay) /", "lr * (mu * m) /", "l2", "cuda", CUDA),
    Fault(
        "decay-rounded-to-the-gradient",
        "a, b, c = a + w[DECAY + e], b + w[DECAY + e], c + w[DECAY + e]",
        "a, b, c = w[DECAY + e] + c + h, w[DECAY + e] + c - h, c + w[DECAY + e]",
        "l2",
    ),
    Fault("linearized-at-0", "if l2 and self.kind ==", "if False and self.kind ==", "l2"),
    Fault(
        "frozen-without-decay-numba",
        "size = root_q * abs(g_[e] + l2 * theta_[e] if decays else",
        "size = root_q * abs(g_[e] if decays else",
        "l2",
    ),
    Fault("split-without-decay-numba", "w[RECEIVED + e] = g_[e] + l2 * theta_[e]", "w[RECEIVED + e] = g_[e]", "l2"),
    Fault(
        "split-without-decay-cuda",
        '"T received = g + l2 * theta;"',
        '"T received = g + T(0) * theta;"',
        "l2",
        "cuda",
        CUDA,
    ),
    Fault(
        "decay-s-own-credit-without-slope-numba",
        "sums[3] += _dot(slope_, theta[i, part])",
        "sums[3] += _dot(gamma_, theta[i, part])",
        "l2",
    ),
    Fault(
        "decay-s-own-credit-without-slope-cuda",
        "pairs.append((slope, state.theta))",
        "pairs.append((gamma, state.theta))",
        "l2",
        "cuda",
        CUDA,
    ),
    Fault("first-order-game-without-decay", "g[key] += g[key].dtype.type(one.l2) * state.theta[key]", "pass", "l2"),
    Fault(
        "denominator-of-the-decay-not-looked-at",
        "refuse_division_by_zero(context, step.hyperparameters, state.v, None, state.theta)",
        "refuse_division_by_zero(context, step.hyperparameters, state.v, None)",
        "l2",
        "step",
    ),
    Fault(
        "settings-of-decay-change-unnoticed",
        "if scalars.l2 and scalars.b1 and name not in self.decaying:",
        "if False:",
        "l2",
    ),
)

_CARRY = (
    Fault("window-one-block-short", "len(self.blocks) > self.later", "len(self.blocks) >= self.later", "carry"),
    Fault(
        "grow-and-less-swapped",
        "RunningSum(block.owed, beta1**passed, less)",
        "RunningSum(block.owed, less, beta1**passed)",
        "carry",
    ),
    Fault("own-block-subtracted-one-step-late", "beta1 ** (-passed - 1) if", "beta1 ** (-passed) if", "carry"),
    Fault("blocks-one-step-too-near", "self.beta1**self.length)", "self.beta1 ** (self.length - 1))", "carry"),
    Fault("last-batch-closed-as-a-full-one", "closed / sizes, strict", "closed / sizes.max(), strict", "carry"),
    Fault("lost-at-the-end-of-windows-not-closed", "    if loses:\n", "    if False:\n", "carry"),
    Fault("waiting-batches-not-copied", "        return copies\n", "        return arrays\n", "carry"),
    Fault(
        "arrays-of-batches-that-left-not-copied-anew",
        "self.kept.unused.append(self.pending.popleft().arrays)",
        "self.kept.unused.append(self.pending[-1].arrays)\n            self.pending.popleft()",
        "carry",
    ),
    Fault(
        "bound-without-what-left-the-window",
        "self.truncated += momentum.exposed * xp.sqrt(square)",
        "self.truncated += 0 * xp.sqrt(square)",
        "carry",
    ),
    Fault(
        "decay-s-share-of-theta",
        "rates = {name: one.l2 or 1 - one.shrink for",
        "rates = {name: one.l2 or one.shrink for",
        "carry",
    ),
    Fault(
        "exposure-lost-on-resume",
        'momentum.exposed[...] = backend.xp.asarray(snapshot["exposed"][row])',
        "pass",
        "carry resume",
    ),
    Fault(
        "windows-paid-by-another-beta1", "self.beta1 ** (first - number - 1)", "0.9 ** (first - number - 1)", "clipping"
    ),
    Fault(
        "bias-s-credit-with-that-of-its-weight",
        "        yield replace(capture, bias=None)\n",
        "        yield capture\n",
        "clipping l2",
    ),
    Fault(
        "beta1-of-another-group",
        "beta1 = {name: one.b1 for",
        "beta1 = {name: next(iter(scalars.values())).b1 for",
        "clipping",
    ),
    Fault(
        "batches-dropped-by-the-shorter-window",
        "oldest = min(momentum.blocks[0].first if",
        "oldest = max(momentum.blocks[0].first if",
        "clipping l2",
    ),
    Fault(
        "decay-carried-nowhere",
        "                    decay[batch.number] += share *",
        "                    share *",
        "l2",
    ),
    Fault(
        "decay-carried-to-the-step-that-pays",
        "decay[batch.number] += share * self._dot(owed, batch.decays)",
        "decay[len(decay) - 1] += share * self._dot(owed, batch.decays)",
        "l2",
    ),
    Fault(
        "decay-keeps-its-block-s-past",
        "self.carried_decay[number] -= one.less",
        "self.carried_decay[number] -= 0",
        "l2",
    ),
    Fault("lost-decay-closed-twice", "own.sum() - carried_decay - scores", "own.sum() - scores", "l2"),
    Fault(
        "carried-decay-lost-on-resume",
        'self.carried_decay[...] = backend.xp.asarray(snapshot["carried_decay"])',
        "pass",
        "l2",
    ),
    Fault(
        "window-one-block-short-on-resume",
        "done // self.length - self.later)",
        "done // self.length - self.later + 1)",
        "resume carry",
    ),
    Fault("owed-not-grown-numba", "owed_[e] + w[MOMENTUM + e] * grow", "owed_[e] + w[MOMENTUM + e]", "carry", "numba"),
    Fault("owed-added-for-subtracted", "slope -= f(owed.less) * total", "slope += f(owed.less) * total", "carry"),
    Fault(
        "owed-by-this-step-alone-cuda",
        "product = slope - less * K;",
        "product = slope - less * due;",
        "carry",
        "cuda",
        CUDA,
    ),
    Fault("middle-node-counted-twice", "w * a_j / (2 if middle else 1)", "w * a_j", "carry"),
    Fault("carried-samples-not-counted", "        self.seen[step.index] += 1\n", "", "carry", "carry_account"),
)

_RUN = (
    Fault("samples-not-counted", "        self.seen[step.index] += 1\n", "", "run resume", "step_account"),
    Fault(
        "scores-overwritten",
        "self.scores[step.index] += step.scores",
        "self.scores[step.index] = step.scores",
        "run resume",
        "step_account",
    ),
    Fault(
        "epoch-of-the-next-step",
        "(completed - 1) // self.config.per_epoch",
        "completed // self.config.per_epoch",
        "run resume",
    ),
    Fault(
        "last-batch-weighted-as-a-full-one",
        "1 / batch.n if setup.config.reduction",
        "1 / setup.config.batch_size if setup.config.reduction",
        "run",
        "step_account",
    ),
    Fault(
        "v-lost-on-resume",
        "for name in names} for group in GROUPS)",
        'for name in names} for group in ("params", "m", "m"))',
        "resume",
    ),
    Fault("step-number-lost-on-resume", "next_step(completed))", "FIRST_STEP)", "resume", "run.py"),
    Fault("bases-lost-on-resume", "self.sketch.bases[number, group] = self.setup", "_ = self.setup", "resume"),
    Fault(
        "chunks-run-again-after-the-step",
        "return self.micro_batch is not None and self.micro_batch <",
        "return False and self.micro_batch <",
        "run resume",
    ),
    Fault("last-steps-not-fetched", "wait=self.state.completed == config.length", "wait=False", "run resume", "", CUDA),
    Fault("divergence-of-parameters-missed", "and not state.is_finite():", "and False:", "run resume", "step_account"),
    Fault(
        "initial-parameters-trained",
        "{name: p.copy() for name, p in setup.initial.items()}",
        "dict(setup.initial)",
        "run resume",
    ),
    Fault("micro-batch-not-among-the-settings", '{"micro_batch": self.micro_batch, **', "{**", "resume"),
    Fault(
        "gradient-kept-for-one-step-too-many",
        "is_validated(completed, self.every) or",
        "completed % (self.every + 1) == 0 or",
        "validation_every",
    ),
    Fault(
        "kept-gradient-lost-on-resume",
        'rows[name] = context.backend.real(kept[f"{group}/{name}"].copy())',
        "rows[name] = context.backend.xp.zeros_like(context.backend.real(kept[f'{group}/{name}']))",
        "validation_every",
    ),
    Fault(
        "kept-products-lost-on-resume",
        "self.products = dict(zip(context.shapes",
        "_ = dict(zip(context.shapes",
        "validation_every",
    ),
    Fault(
        "kept-gradient-of-sgd-is-the-scores",
        "self._write(context, start, self.start)",
        "self._write(context, validation, self.start)",
        "validation_every",
    ),
    Fault(
        "kept-gradients-of-validation-samples-shifted",
        "captures.rows(slice(row, None, self.rows))",
        "captures.rows(slice(0, None, self.rows))",
        "validation_every",
    ),
    Fault(
        "loss-at-theta-for-a-kept-gradient",
        "if validated and not setup.with_sgd and",
        "if not setup.with_sgd and",
        "validation_every",
    ),
    Fault("inputs-copied", 'np.require(host, self.dtype, ["C", "A"])', 'np.array(host, self.dtype, order="C")', "run"),
    Fault("overflow-of-inputs-not-refused", "            if count:\n", "            if False:\n", "problem"),
    Fault("outgrown-buffers-kept", "            del self.views[key]\n", "            break\n", "run"),
)

_POSITIONS = (
    Fault(
        "positions-summed-before-the-product",
        "xp.matmul(b.T, flat(self.a), out=out)",
        "xp.matmul(self.b.sum(axis=1)[:, units].T, self.a.sum(axis=1), out=out)",
        "position_captures layers",
        "outer_products",
    ),
    Fault(
        "bias-of-the-last-position-alone",
        "out += self.b.sum(axis=1) @ matrix[self.bias]",
        "out += self.b[:, -1] @ matrix[self.bias]",
        "position_captures layers",
    ),
    Fault("narrow-side-contracted-wrongly", "context.ops.row_dot(a, z, None, dots)", "", "position_captures layers"),
    Fault(
        "first-position-left-out-with-factors",
        "context.ops.row_dot(b @ q, a @ c.T, None, dots)",
        "context.ops.row_dot((b @ q)[1:], (a @ c.T)[1:], None, dots[1:])",
        "position_captures",
        "outer_products",
    ),
    Fault(
        "pairs-of-the-same-position-alone",
        "own = flat(one.right), flat(other.right[j : j + 1])",
        "own = flat(one.right), flat(other.right[j : j + 1, :1])",
        "position_captures",
    ),
    Fault(
        "pairs-without-a-common-token",
        "dots *= one.left.reshape(-1, 1) == other.left[j]",
        "pass",
        "position_captures layers",
    ),
    Fault(
        "pairs-of-tied-uses-lost",
        "dots *= other.left[j].T[one.left.reshape(-1)]",
        "dots *= 0",
        "position_captures layers",
    ),
    Fault(
        "pairs-of-tied-uses-lost-backward",
        "dots *= flat(one.left)[:, other.left[j]]",
        "dots *= 0",
        "position_captures layers",
    ),
    Fault(
        "own-row-of-pairs-not-summed",
        "(other.left[j].T @ own)[None]",
        "(other.left[j][:1].T @ own[:1])[None]",
        "position_captures",
    ),
    Fault("repeated-tokens-overwrite", "_at(xp, xp.add, out, ids, b)", "out[ids] = b", "position_captures layers"),
    Fault(
        "repeated-tokens-squared-apart",
        "(same & first[:, :, None])",
        "(xp.eye(same.shape[1], dtype=bool)[None] & (same | True))",
        "position_captures layers",
    ),
    Fault("tokens-of-all-samples-squared-together", "sizes * sizes)", "sizes)", "position_captures layers"),
    Fault("rows-beyond-a-shorter-sequence-left", "out[x.shape[1] :] = 0", "pass", "position_captures", "dense"),
    Fault("roots-beyond-a-shorter-sequence-left", "root[self.x.shape[1] :] = 0", "pass", "position_captures", "dense"),
    Fault(
        "gain-with-inputs-summed-apart",
        '"ntd,ntd->nd", inputs, b)',
        '"ntd,nsd->nd", inputs, b)',
        "position_captures layers",
    ),
    Fault(
        "squares-of-the-first-use-alone",
        "                for other in parts[1:]:\n",
        "                for other in parts[2:]:\n",
        "position_captures captures",
    ),
    Fault(
        "float32-squares-not-in-double", "np.multiply(x, x, dtype=np.float64)", "np.multiply(x, x)", "position_captures"
    ),
    Fault("rank-one-as-if-positions-were-one", "row * found.correction()", "row", "position_captures"),
    Fault(
        "rank-one-share-of-the-last-chunk",
        "(one.own, other.own), (one.apart, other.apart)",
        "(other.own, other.own), (other.apart, other.apart)",
        "position_captures layers",
    ),
    Fault("signed-roots-of-a-sum-taken", "    if positions > 1:\n", "    if False:\n", "position_captures layers"),
    Fault(
        "kept-inputs-not-rebuilt",
        "replace(self, ids=inputs, b=arrays",
        "replace(self, b=arrays",
        "position_captures layers",
    ),
    Fault("sketch-counts-samples", "n * products.get(name, 0)", "n * min(products.get(name, 0), 1)", "layers"),
)

_SEQUENCE_LAYERS = (
    Fault("uncounted-labels-counted", "counted = y != NOT_COUNTED", "counted = y == y", "layers"),
    Fault(
        "mean-over-all-positions", "counted.sum(axis=1, keepdims=True)", "xp.full((len(y), 1), y.shape[1])", "layers"
    ),
    Fault(
        "mean-over-the-batch's-positions", "counted.sum(axis=1, keepdims=True)", "counted.mean(axis=0).sum()", "layers"
    ),
    Fault("losses-without-their-weights", "(losses * position_weights).sum(axis=1)", "losses.sum(axis=1)", "layers"),
    Fault(
        "next-position-seen-numba",
        "seen = i % positions + 1\n            x, rest, total",
        "seen = min(i % positions + 2, positions)\n            x, rest, total",
        "ops layers",
    ),
    Fault(
        "next-position-seen",
        "xp.tri(scores.shape[-1], dtype=bool)",
        "xp.tri(scores.shape[-1], k=1, dtype=bool)",
        "ops layers",
    ),
    Fault(
        "later-positions-left-numba",
        "                x[j] /= total\n            for j in range(len(rest)):\n                rest[j] = zero\n",
        "                x[j] /= total\n",
        "ops layers",
    ),
    Fault(
        "largest-score-by-its-bits-numba",
        "ordered = bits ^ ((bits >> last_bit) & all_but_sign)",
        "ordered = bits",
        "ops",
    ),
    Fault(
        "scale-of-the-whole-width",
        "context.ops.causal_softmax(weights, 1 / math.sqrt(q.shape[-1]))",
        "context.ops.causal_softmax(weights, 1 / math.sqrt(mixed.shape[-1]))",
        "layers",
    ),
    Fault(
        "query-and-key-swapped",
        "xp.matmul(q[:, :, own], k[:, :, earlier].swapaxes(2, 3), out=weights",
        "xp.matmul(k[:, :, own], q[:, :, earlier].swapaxes(2, 3), out=weights",
        "layers",
    ),
    Fault(
        "softmax's-gradient-not-centred-numba", "(x[j] - along) * w[j] * factor", "x[j] * w[j] * factor", "ops layers"
    ),
    Fault(
        "softmax's-gradient-not-centred",
        "    s -= (s * weights).sum(axis=-1, keepdims=True)\n",
        "",
        "ops layers",
    ),
    Fault(
        "gradient-of-scores-not-scaled",
        "= 0\n        context.ops.softmax_derivative(s, weights, 1 / math.sqrt(q.shape[-1]))",
        "= 0\n        context.ops.softmax_derivative(s, weights, 1)",
        "layers",
    ),
    Fault(
        "gradient-of-values-not-transposed",
        "xp.matmul(weights[:, :, later, own].swapaxes(2, 3), g[:, :, later])",
        "xp.matmul(weights[:, :, own, later], g[:, :, later])",
        "layers",
    ),
    Fault(
        "gradients-of-query-and-key-swapped",
        "k_b[:, :, own] = xp.matmul(s[:, :, later, own].swapaxes(2, 3), q[:, :, later])",
        "k_b[:, :, own] = xp.matmul(s[:, :, own, later], q[:, :, later])",
        "layers",
    ),
    Fault(
        "blocks-see-themselves-alone",
        "slice(0, end), slice(first, positions))",
        "slice(first, end), slice(first, positions))",
        "layers",
    ),
    Fault(
        "blocks-are-seen-by-themselves-alone",
        "slice(0, end), slice(first, positions))",
        "slice(0, end), slice(first, end))",
        "layers",
    ),
    Fault(
        "heads-of-the-first-thread-for-all",
        "slice(low, high))\n\n        in_parts(heads_between",
        "slice(0, high - low))\n\n        in_parts(heads_between",
        "layers",
    ),
    Fault(
        "rows-of-parts-misplaced",
        "        xp.matmul(a[low:high], b, out=out[low:high])",
        "        xp.matmul(a[low:high], b, out=out[: high - low])",
        "layers run",
    ),
    Fault("attention-without-out-bias", "            out += params[out_bias]\n", "            pass\n", "layers"),
    Fault(
        "norm's-mean-not-in-the-gradient-numba",
        "(g_[j] * gain[j] - mean - normalised_[j] * along)",
        "(g_[j] * gain[j] - normalised_[j] * along)",
        "ops layers",
    ),
    Fault(
        "norm's-mean-not-in-the-gradient",
        "g.mean(axis=1, keepdims=True) if centred else",
        "g.mean(axis=1, keepdims=True) if False else",
        "ops layers",
    ),
    Fault("norm's-variance-not-in-the-gradient-numba", " - mean - normalised_[j] * along)", " - mean)", "ops layers"),
    Fault("norm's-variance-not-in-the-gradient", "    out -= normalised * along\n", "", "ops layers"),
    Fault("rms-norm-centred-numba", "mean = total / count * centred\n", "mean = total / count\n", "ops layers"),
    Fault(
        "rms-norm-centred", "    if centred:\n        xp.subtract", "    if True:\n        xp.subtract", "ops layers"
    ),
    Fault(
        "eps-outside-the-root-of-the-norm-numba",
        "one / math.sqrt(squares / count + eps)",
        "one / (math.sqrt(squares / count) + eps)",
        "ops layers",
    ),
    Fault(
        "eps-outside-the-root",
        "1 / xp.sqrt(variance + x.dtype.type(eps))",
        "1 / (xp.sqrt(variance) + x.dtype.type(eps))",
        "ops layers",
    ),
    Fault(
        "gain-of-inputs-not-normalised",
        'self.bias, stage["normalised"], stage["b"]',
        'self.bias, stage["x"], stage["b"]',
        "layers",
    ),
    Fault(
        "gradient-around-a-residual-lost",
        'xp.add(stage["b"], stage["g"], out=below)',
        'below[...] = stage["g"]',
        "layers",
    ),
    Fault(
        "residual's-input-overwritten",
        "plan_chain(self.layers, x, False, room)",
        "plan_chain(self.layers, x, True, room)",
        "layers",
        "chain",
    ),
    Fault(
        "residual's-gradient-overwritten",
        "plan_chain_back(stage.inner, b, False, wanted, room)",
        "plan_chain_back(stage.inner, b, True, wanted, room)",
        "layers",
    ),
    Fault("relu's-output-overwritten", 'self.function != "relu"', "True", "layers", "activation_layer"),
    Fault(
        "positions'-gradient-overwritten",
        "        return b, False\n",
        "        return b, True\n",
        "layers",
        "embedding",
    ),
    Fault(
        "positions-from-the-end",
        'params[self.weight][: stage["x"].shape[1]]',
        'params[self.weight][-stage["x"].shape[1] :]',
        "layers",
    ),
    Fault("mean-not-divided-in-the-gradient", 'stage["b"] / below.dtype.type(below.shape[1])', 'stage["b"]', "layers"),
    Fault(
        "bias-added-twice", "if self.bias is not None and not self.bias_later:", "if self.bias is not None:", "layers"
    ),
    Fault(
        "last-output-overwritten-by-its-gradient", 'last if free else room("output", last.shape[1:])', "last", "layers"
    ),
    Fault(
        "tied-bias-of-the-other-layer",
        "layer.weight, _bias_of(layer, name)",
        'layer.weight, layer.weight.replace("weight", "bias") if layer.bias else None',
        "layers",
    ),
    Fault("tokens-made-real", "return self.labels(value, integers) if integers else", "return", "layers"),
    Fault("other-lengths-joined", "rows if follow else None)", "rows)", "layers run"),
)

_IMAGE_LAYERS = (
    Fault(
        "convolution-flipped",
        "params[self.weight].reshape(self.groups",
        "params[self.weight][..., ::-1, ::-1].reshape(self.groups",
        "images",
        "convolution",
    ),
    Fault("padding-on-one-side", "(size + 2 * p - d", "(size + p - d", "images", "windows"),
    Fault(
        "strides-swapped", "zip(pixel, self.stride, strict", "zip(pixel, self.stride[::-1], strict", "images", "windows"
    ),
    Fault(
        "stride-ignored-in-the-gradient",
        "self.seen(padded, offset, places)",
        "padded[(..., *(slice(i, i + count) for i, count in zip(offset, places, strict=True)))]",
        "images",
    ),
    Fault(
        "overlapping-windows-overwrite",
        "pixels += elements[(slice(None), *offset)].swapaxes(0, 1)",
        "pixels[...] = elements[(slice(None), *offset)].swapaxes(0, 1)",
        "images",
    ),
    Fault("gradient-of-the-padding-kept", "(slice(p, p + size) for", "(slice(0, size) for", "images"),
    Fault("gradients-of-images-added-to-the-last", "        padded[...] = 0\n", "", "images"),
    Fault(
        "last-block-of-images-left-out",
        "range(0, len(images), block)",
        "range(0, max(len(images) - block, 1), block)",
        "images",
    ),
    Fault(
        "channels-and-images-mixed", "out[rows] = z.swapaxes(0, 1)", "out[rows] = z.reshape(out[rows].shape)", "images"
    ),
    Fault(
        "gradients-of-groups-swapped",
        "b[rows].swapaxes(0, 1).reshape(self.groups, self.c_out",
        "b[rows].swapaxes(0, 1)[::-1].reshape(self.groups, self.c_out",
        "images",
    ),
    Fault("convolution-without-its-bias", "z += params[bias][:, None, None]", "pass", "images"),
    Fault(
        "inputs-of-groups-swapped",
        "columns[groups].swapaxes(1, 2)",
        "columns[::-1][groups].swapaxes(1, 2)",
        "position_captures images",
    ),
    Fault(
        "whole-groups-counted-within-one",
        "whole = 0 if inside else (units.stop - start) // channels",
        "whole = (units.stop - start) // channels",
        "position_captures",
    ),
    Fault(
        "bias-gradient-of-the-last-place-alone",
        "self.b[:, units].sum(axis=(0, 2), out=out)",
        "self.b[:, units, -1].sum(axis=0, out=out)",
        "position_captures images",
    ),
    Fault(
        "bias-scored-at-the-last-place-alone",
        "out += self.b.sum(axis=2) @ matrix[self.bias]",
        "out += self.b[:, :, -1] @ matrix[self.bias]",
        "position_captures images",
    ),
    Fault(
        "places-and-images-mixed-in-dots",
        "rows.stop - rows.start, self.b.shape[2]).sum(axis=2)",
        "self.b.shape[2], rows.stop - rows.start).sum(axis=1)",
        "position_captures images",
    ),
    Fault(
        "pairs-without-a-convolution's-bias",
        "pairs[:, j] += self.b.sum(axis=2) @ x[self.bias]",
        "pass",
        "position_captures images",
    ),
    Fault(
        "groups-with-the-first-one's-inputs-for-all",
        "if exact or self.groups > 1:",
        "if exact:",
        "position_captures images",
    ),
    Fault(
        "images-of-the-kept-batch-not-rebuilt",
        'a=inputs if self.a_is_input else arrays["a"]',
        'a=self.a if self.a_is_input else arrays["a"]',
        "position_captures images",
        "window_products",
    ),
    Fault(
        "signed-roots-of-several-places-taken", "refuse_roots(int(self.b.shape[2]))", "pass", "position_captures images"
    ),
    Fault(
        "roots-of-the-first-part-alone", "            first.add_sum(other)\n", "            pass\n", "position_captures"
    ),
    Fault(
        "rank-one-of-the-first-part-alone",
        "xp.hypot(total, part, out=total)",
        "pass",
        "position_captures",
        "window_products",
    ),
    Fault("kernels-not-sketched", "if len(shape) > 1]", "if len(shape) == 2]", "images"),
    Fault("windows-summed-in-average-pooling", "        out /= out.dtype.type(len(seen))\n", "", "images"),
    Fault("average-pool's-gradient-not-divided", 'stage["b"] / below.dtype.type(len(seen))', 'stage["b"]', "images"),
    Fault("overlaps-of-averages-overwrite", "one += part", "one[...] = part", "images"),
    Fault(
        "overlaps-of-maxima-overwrite",
        "gradient += xp.where(hit, b, none)",
        "xp.copyto(gradient, b, where=hit)",
        "images",
    ),
    Fault(
        "gradient-to-all-ties",
        "hit = unassigned & (pixels == out)\n            gradient",
        "hit = pixels == out\n            gradient",
        "images",
    ),
    Fault(
        "tangent-of-all-ties",
        "hit = unassigned & (pixels == out)\n            moved",
        "hit = pixels == out\n            moved",
        "images forward_mode",
    ),
    Fault(
        "gradient-to-the-last-tie",
        'zip(self._seen(stage["x"]), self._seen(below), strict=True)',
        'zip(self._seen(stage["x"])[::-1], self._seen(below)[::-1], strict=True)',
        "images",
    ),
    Fault("maxima-overwritten-before-the-backward-pass", "(out, False)", "(out, True)", "images", "pooling"),
)

_FORWARD_MODE = (
    Fault(
        "softmax-tangent-not-centred",
        "        context.ops.softmax_derivative(s, weights, 1 / math.sqrt(q.shape[-1]))\n        mixed[...]",
        "        s *= weights * weights.dtype.type(1 / math.sqrt(q.shape[-1]))\n        mixed[...]",
        "forward_mode",
    ),
    Fault(
        "norm-tangent-without-the-mean's-term",
        "self._through_the_norm(context, flat(tangent), None,",
        "replace(self, centred=False)._through_the_norm(context, flat(tangent), None,",
        "forward_mode",
    ),
    Fault("norm-tangent-without-the-gain", "            tangent *= params[self.gain]\n", "", "forward_mode"),
    Fault(
        "gain's-direction-times-the-output",
        'out = stage["normalised"] * direction[self.gain]',
        'out = stage["out"] * direction[self.gain]',
        "forward_mode",
    ),
    Fault(
        "weight's-direction-without-the-input's",
        "if tangent is not None:\n        through",
        "if False:\n        through",
        "forward_mode",
        "layers/linear",
    ),
    Fault(
        "input's-tangent-by-the-direction",
        "product(context, tangent, params[weight].T, through)",
        "product(context, tangent, direction[weight].T, through)",
        "forward_mode",
    ),
    Fault("tangent-without-the-bias", "        out += direction[bias]\n", "        pass\n", "forward_mode"),
    Fault("later-bias-not-moved", "tangent += direction[self.bias]", "pass", "forward_mode"),
    Fault(
        "tangent-without-the-activation",
        'scale_by_derivative(context, self.function, flat(tangent), flat(stage["out"]), derivative)',
        "pass",
        "forward_mode",
    ),
    Fault(
        "perceptron's-tangent-without-the-activation",
        "scale_by_derivative(context, self.activation, tangent, activation, derivative)",
        "pass",
        "forward_mode",
    ),
    Fault(
        "tie's-direction-once",
        "product(context, a, direction[weight].T, out)",
        "product(context, a, direction[weight].T * (tangent is None), out)",
        "forward_mode",
    ),
    Fault("values-not-moved", "        mixed += xp.matmul(weights, v_moved)\n", "", "forward_mode"),
    Fault("keys-not-moved", "        s += xp.matmul(q, k_moved.swapaxes(2, 3))\n", "", "forward_mode"),
    Fault(
        "scores-tangent-not-scaled",
        "        context.ops.softmax_derivative(s, weights, 1 / math.sqrt(q.shape[-1]))\n        mixed",
        "        context.ops.softmax_derivative(s, weights, 1)\n        mixed",
        "forward_mode",
    ),
    Fault("residual's-tangent-without-the-input", "        through += tangent\n", "", "forward_mode"),
    Fault("residual's-tangent-overwritten", "None if tangent is None else tangent.copy()", "tangent", "forward_mode"),
    Fault(
        "positions'-direction-from-the-end",
        'direction[self.weight][: stage["x"].shape[1]]',
        'direction[self.weight][-stage["x"].shape[1] :]',
        "forward_mode",
    ),
    Fault("positions'-tangent-alone", "        tangent += rows\n", "", "forward_mode"),
    Fault("mean's-tangent-summed", "tangent.mean(axis=1)", "tangent.sum(axis=1)", "forward_mode"),
    Fault(
        "sgd-by-pairs-in-forward-mode",
        "if not task.forward and (task.per_validation",
        "if (task.per_validation",
        "forward_mode",
    ),
    Fault(
        "forward-mode-after-the-step",
        'if self.setup.estimator.contraction == "forward":\n            return True',
        "if False:\n            return True",
        "forward_mode",
    ),
    Fault(
        "one-sided-difference",
        "(losses_at(h) - losses_at(-h)) / (2 * h)",
        "(losses_at(h) - losses_at(0.0)) / h",
        "forward_mode",
    ),
    Fault("a-fixed-step", "for _ in range(TRIALS):", "for _ in range(1):", "forward_mode"),
    Fault("moves-of-an-absolute-size", "size = float(abs(losses_at(0.0)).max()) or 1.0", "size = 1.0", "forward_mode"),
    Fault(
        "differences-without-the-weight",
        "return slope * (slope.dtype.type(weight) if isinstance(weight, float) else weight)",
        "return slope",
        "forward_mode",
    ),
    Fault(
        "weights-of-other-rows",
        "weight = self.weight if isinstance(self.weight, float) else self.weight[which]",
        "weight = self.weight if isinstance(self.weight, float) else self.weight[: len(self.y[which])]",
        "forward_mode",
    ),
    Fault(
        "sums-of-other-rows",
        "arrays={name: array[which] for name, array in self.arrays.items()}",
        "arrays=dict(self.arrays)",
        "forward_mode",
        "summed",
    ),
    Fault("a-layer-without-a-tangent-is-not-seen", "isinstance(layer, TangentLayer) and (", "(", "forward_mode"),
)

FAULTS = (
    *_LAYERS,
    *_THREADS,
    *_NORMS,
    *_ADAM,
    *_SLOPES,
    *_ACTIVATIONS,
    *_STEP,
    *_SCORES,
    *_CAPTURES,
    *_POSITIONS,
    *_SEQUENCE_LAYERS,
    *_IMAGE_LAYERS,
    *_GAME,
    *_TWO_TERM,
    *_OPTIMISER,
    *_CARRY,
    *_RUN,
    *_FORWARD_MODE,
)
