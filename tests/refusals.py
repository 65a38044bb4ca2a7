"""All refused calls, one a line: asserted by test_refusals, and printed as docs/refusals.md by docs/refusals.py."""

import math
from contextlib import chdir
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from typer import Typer
from typer.testing import CliRunner, Result

from adamshap import gpu, reference
from adamshap.reference import Adam, AdamState, Batch, LazyRows, Network, Run, Step
from adamshap.reference.command.main import GROUP, build

NET = Network((3, 4, 2))
LINEAR = Network((3, 4, 2), "identity")
PARAMS = NET.init(0)
X, Y = np.ones((5, 3)), np.array([0, 1, 0, 1, 1])


def batch() -> Batch:
    return Batch(X, Y)


def step(**changes: Any) -> Step:
    fields: dict[str, Any] = {
        "net": NET,
        "params": PARAMS,
        "adam": Adam(),
        "state": AdamState.zeros(PARAMS),
        "train": batch(),
        "valid": batch(),
    }
    return Step(**(fields | changes))


def long_step() -> Step:
    """Return a step with too many samples to enumerate all coalitions."""
    return step(train=Batch(np.ones((13, 3)), np.arange(13) % 2))


def narrow(**changes: Any) -> Step:
    """Return a step whose parameters are in float32."""
    return step(params={name: array.astype(np.float32) for name, array in PARAMS.items()}, **changes)


def run() -> Run:
    return reference.attribute(NET, Adam(), batch(), batch(), epochs=1)


def with_param(name: str, value: Any) -> dict[str, Any]:
    return {**PARAMS, name: value}


def with_element(array: Any, value: float) -> Any:
    changed = array.astype(np.float64)
    changed.flat[1] = value
    return changed


@dataclass(frozen=True)
class Refusal:
    """A refused call: the argument named in its message, the call, and the type of the error."""

    field: str
    call: str
    error: type[Exception]

    def message(self) -> str:
        """Return the message with which the call is refused."""
        try:
            eval(self.call, NAMES)
        except self.error as error:
            if type(error) is self.error:
                return str(error)
            raise
        raise AssertionError(f"not refused: {self.call}")


NAMES = {
    **{kind.__name__: kind for kind in (Adam, AdamState, Batch, Network, LazyRows, Step)},
    **{function.__name__: function for function in (batch, step, narrow, long_step, run, with_param, with_element)},
    **{
        "np": np,
        "math": math,
        "gpu": gpu,
        "reference": reference,
        "NET": NET,
        "LINEAR": LINEAR,
        "PARAMS": PARAMS,
        "X": X,
        "Y": Y,
    },
}
"""Names available to the calls."""

REFUSALS = (
    Refusal("Network.sizes", "Network((3,))", ValueError),
    Refusal("Network.sizes", "Network(())", ValueError),
    Refusal("Network.sizes", "Network('34')", TypeError),
    Refusal("Network.sizes", "Network(3)", TypeError),
    Refusal("Network.sizes[1]", "Network((3, 0))", ValueError),
    Refusal("Network.sizes[0]", "Network((3.0, 2))", TypeError),
    Refusal("Network.sizes[0]", "Network((True, 2))", TypeError),
    Refusal("Network.activation", "Network((3, 2), 'swish')", ValueError),
    Refusal("Network.activation", "Network((3, 2), None)", ValueError),
    Refusal("Network.loss", "Network((3, 2), loss='l1')", ValueError),
    Refusal("Network.bias", "Network((3, 2), bias=1)", TypeError),
    Refusal("seed", "NET.init(-1)", ValueError),
    Refusal("seed", "NET.init(0.5)", TypeError),
    Refusal("Adam.lr", "Adam(lr=-0.001)", ValueError),
    Refusal("Adam.lr", "Adam(lr=math.nan)", ValueError),
    Refusal("Adam.lr", "Adam(lr='0.1')", TypeError),
    Refusal("Adam.lr", "Adam(lr=True)", TypeError),
    Refusal("Adam.lr", "Adam(lr=-(10**5000))", ValueError),
    Refusal("epochs", "reference.attribute(NET, Adam(), batch(), batch(), epochs=10**5000)", ValueError),
    Refusal("epochs", "gpu.attribute(NET, Adam(), batch(), batch(), epochs=10**20)", ValueError),
    Refusal("Adam.lr", "Adam(lr=1j)", TypeError),
    Refusal("Adam.betas", "Adam(betas=0.9)", TypeError),
    Refusal("Adam.betas", "Adam(betas=(0.9,))", TypeError),
    Refusal("Adam.betas[0]", "Adam(betas=(1.0, 0.9))", ValueError),
    Refusal("Adam.betas[1]", "Adam(betas=(0.9, -0.1))", ValueError),
    Refusal("Adam.betas[1]", "Adam(betas=(0.9, math.inf))", ValueError),
    Refusal("Adam.betas[0]", "Adam(betas=(None, 0.9))", TypeError),
    Refusal("Adam.eps", "Adam(eps=-1e-08)", ValueError),
    Refusal("Adam.eps_root", "Adam(eps_root=-1)", ValueError),
    Refusal("Adam.weight_decay", "Adam(weight_decay=math.inf)", ValueError),
    Refusal("AdamState.step", "AdamState(-1, PARAMS, PARAMS)", ValueError),
    Refusal("AdamState.step", "AdamState(1.5, PARAMS, PARAMS)", TypeError),
    Refusal("AdamState.m", "AdamState(1, [1.0], PARAMS)", TypeError),
    Refusal("AdamState.v", "AdamState(1, {'a': X}, {'b': X})", ValueError),
    Refusal("AdamState.v['a']", "AdamState(1, {'a': X}, {'a': -X})", ValueError),
    Refusal("AdamState.v['a']", "AdamState(1, {'a': X}, {'a': X[:2]})", ValueError),
    Refusal("AdamState.m['a']", "AdamState(1, {'a': with_element(X, math.nan)}, {'a': X})", ValueError),
    Refusal("Batch.x", "Batch(X[0], Y)", ValueError),
    Refusal("Batch.x", "Batch(X[:0], Y[:0])", ValueError),
    Refusal("Batch.x", "Batch(with_element(X, math.inf), Y)", ValueError),
    Refusal("Batch.x", "Batch(X.astype(str), Y)", TypeError),
    Refusal("Batch.x", "Batch(X.astype(complex), Y)", TypeError),
    Refusal("Batch.x", "Batch(LazyRows(with_element(X, math.inf)), Y)", ValueError),
    Refusal("LazyRows.source", "LazyRows([[1.0, 2.0]])", TypeError),
    Refusal("LazyRows.source", "LazyRows(X.astype(str))", TypeError),
    Refusal("LazyRows.source", "LazyRows(X[0])", ValueError),
    Refusal("LazyRows.source", "LazyRows(X[:0])", ValueError),
    Refusal("LazyRows.index", "LazyRows(X, Y[:0])", ValueError),
    Refusal("LazyRows.index", "LazyRows(X, [True, False])", ValueError),
    Refusal("LazyRows.index", "LazyRows(X, [0, 5])", ValueError),
    Refusal("LazyRows.mean", "LazyRows(X, mean=X[0, :2])", ValueError),
    Refusal("LazyRows.mean", "LazyRows(X, mean=[0, math.nan, 0])", ValueError),
    Refusal("LazyRows.scale", "LazyRows(X, scale=[1, 1, 0])", ValueError),
    Refusal("Batch.x", "Batch(X.astype(bool), Y)", TypeError),
    Refusal("Batch.x", "Batch(X.astype(object), Y)", TypeError),
    Refusal("Batch.x", "Batch([[1.0, 2.0], [1.0]], Y)", TypeError),
    Refusal("Batch.x", "Batch(np.ma.masked_equal(X, 1), Y)", TypeError),
    Refusal("Batch.y", "Batch(X, np.ma.masked_equal(Y, 1))", TypeError),
    Refusal("LazyRows.source", "LazyRows(np.ma.masked_equal(X, 1))", TypeError),
    Refusal("LazyRows.index", "LazyRows(X, np.ma.masked_equal(Y, 1))", TypeError),
    Refusal("Batch.y", "Batch(X, Y.astype(float))", TypeError),
    Refusal("Batch.y", "Batch(X, Y.astype(bool))", TypeError),
    Refusal("Batch.y", "Batch(X, Y[:4])", ValueError),
    Refusal("Batch.y", "Batch(X, with_element(X, math.nan))", ValueError),
    Refusal("Step.net", "step(net=(3, 4, 2))", TypeError),
    Refusal("Step.adam", "step(adam=None)", TypeError),
    Refusal("Step.train", "step(train=(X, Y))", TypeError),
    Refusal("Step.reduction", "step(reduction='none')", ValueError),
    Refusal("Step.params", "step(params={})", ValueError),
    Refusal("Step.params", "step(params=with_param('2.weight', X))", ValueError),
    Refusal("Step.params['0.bias']", "step(params=with_param('0.bias', np.ones(3)))", ValueError),
    Refusal("Step.params['0.bias']", "step(params=with_param('0.bias', [math.nan] * 4))", ValueError),
    Refusal("Step.state", "step(state=AdamState.zeros(Network((3, 2)).init(0)))", ValueError),
    Refusal("Step.train.x", "step(train=Batch(X[:, :2], Y))", ValueError),
    Refusal("Step.train.y", "step(train=Batch(X, Y + 1))", ValueError),
    Refusal("Step.valid.y", "step(valid=Batch(X, Y - 1))", ValueError),
    Refusal("Step.valid.y", "step(valid=Batch(X, X))", ValueError),
    Refusal("Step.train.y", "step(net=Network((3, 4, 2), loss='mse'))", ValueError),
    Refusal("coalition", "reference.utility(step(), np.ones(5))", TypeError),
    Refusal("coalition", "reference.utility(step(), np.ones(4, bool))", ValueError),
    Refusal("coalition", "reference.utility(step(), [0, 1, 2])", TypeError),
    Refusal("Adam.eps", "reference.utility(step(adam=Adam(eps=0.0)), np.zeros(5, bool))", ValueError),
    Refusal("coalition", "reference.utility(step(), np.ma.masked_equal(Y, 1))", TypeError),
    Refusal("Step.params['0.bias']", "step(params=with_param('0.bias', np.ma.zeros(4)))", TypeError),
    Refusal("AdamState.m['a']", "AdamState(1, {'a': np.ma.array(X)}, {'a': X})", TypeError),
    Refusal("params", "AdamState.zeros(3)", TypeError),
    Refusal("index", "batch().take([5])", ValueError),
    Refusal("index", "batch().take(0.5)", TypeError),
    Refusal("Adam.eps", "gpu.scores(step(adam=Adam(eps=1e-46)), dtype='float32')", ValueError),
    Refusal("Adam.eps", "reference.scores(narrow(adam=Adam(eps=1e-46)))", ValueError),
    Refusal("Adam.eps", "reference.scores(narrow(adam=Adam(eps=0.0, eps_root=1e-50)))", ValueError),
    Refusal("Adam.eps", "reference.scores(step(adam=Adam(eps=0.0)), 'secant', 'start')", ValueError),
    Refusal("Adam.lr", "reference.scores(narrow(adam=Adam(lr=1e39)))", ValueError),
    Refusal("Adam.weight_decay", "reference.update(narrow(adam=Adam(lr=1e3, weight_decay=1e37)))", ValueError),
    Refusal("Step.train.x", "gpu.scores(step(train=Batch(1e39 * X, Y)), dtype='float32')", ValueError),
    Refusal("step", "gpu.update(step(net=LINEAR, train=Batch(1e30 * X, Y)), dtype='float32')", ValueError),
    Refusal("slope", "reference.scores(step(), 'adam')", ValueError),
    Refusal("gradient", "reference.scores(step(), gradient='end')", ValueError),
    Refusal("denominator", "reference.scores(step(), 'linearized', denominator='next')", ValueError),
    Refusal("denominator", "reference.scores(step(), 'secant', denominator='previous')", ValueError),
    Refusal("denominator", "reference.scores(step(), 'linearized', denominator='previous')", ValueError),
    Refusal(
        "denominator", "reference.scores(step(adam=Adam(l2=0.1)), 'linearized', denominator='previous')", ValueError
    ),
    Refusal("kind", "reference.scores(step(), 'two_term', kind='banzhaf')", ValueError),
    Refusal("kind", "reference.scores(step(), 'secant', kind='first')", ValueError),
    Refusal("efficient", "reference.scores(step(), efficient='yes')", TypeError),
    Refusal("per_validation", "reference.scores(step(), per_validation=None)", TypeError),
    Refusal("nodes", "reference.scores(step(), nodes=4)", TypeError),
    Refusal("nodes[0]", "reference.scores(step(), nodes=(0, 4))", ValueError),
    Refusal("nodes[1]", "reference.scores(step(), nodes=(4, 1))", ValueError),
    Refusal("kind", "reference.marginals(step(), 'middle')", ValueError),
    Refusal("loss", "reference.marginals(step(), 'first', 'second_order')", ValueError),
    Refusal("permutations", "reference.marginals(long_step(), 'shapley', permutations=2)", ValueError),
    Refusal("permutations", "reference.marginals(long_step(), 'shapley', permutations=5)", ValueError),
    Refusal("seed", "reference.marginals(long_step(), 'shapley', permutations=4, seed=-1)", ValueError),
    Refusal("permutations", "reference.marginals(step(), permutations=10**400)", ValueError),
    Refusal("run", "reference.retrained(3, [0])", TypeError),
    Refusal("samples", "reference.retrained(run(), 3)", TypeError),
    Refusal("samples[0]", "reference.retrained(run(), [5])", ValueError),
    Refusal("samples[0]", "reference.retrained(run(), [0.5])", TypeError),
    Refusal("run", "reference.metagradient(3)", TypeError),
    Refusal("step", "reference.marginals(5, 'shapley')", TypeError),
    Refusal("step", "reference.scores(3)", TypeError),
    Refusal("step", "reference.update(3)", TypeError),
    Refusal("step", "reference.influence(3)", TypeError),
    Refusal("step", "reference.marginals(3)", TypeError),
    Refusal("step", "reference.utility(3, [True])", TypeError),
    Refusal("network", "reference.attribute(3, Adam(), batch(), batch())", TypeError),
    Refusal("adam", "reference.attribute(NET, 1e-3, batch(), batch())", TypeError),
    Refusal("train", "reference.attribute(NET, Adam(), (X, Y), batch())", TypeError),
    Refusal("train.x", "reference.attribute(NET, Adam(), Batch(X[:, :2], Y), batch())", ValueError),
    Refusal("valid.y", "reference.attribute(NET, Adam(), batch(), Batch(X, Y + 4))", ValueError),
    Refusal("epochs", "reference.attribute(NET, Adam(), batch(), batch(), epochs=0)", ValueError),
    Refusal("batch_size", "reference.attribute(NET, Adam(), batch(), batch(), batch_size=2.0)", TypeError),
    Refusal("seed", "reference.attribute(NET, Adam(), batch(), batch(), seed=-1)", ValueError),
    Refusal("slope", "reference.attribute(NET, Adam(), batch(), batch(), slope='steep')", ValueError),
    Refusal("reduction", "reference.attribute(NET, Adam(), batch(), batch(), reduction='max')", ValueError),
    Refusal("micro_batch", "reference.attribute(NET, Adam(), batch(), batch(), micro_batch=0)", ValueError),
    Refusal("nodes[1]", "reference.attribute(NET, Adam(), batch(), batch(), nodes=(4, 1))", ValueError),
    Refusal("resume", "reference.attribute(NET, Adam(), batch(), batch(), resume=7)", TypeError),
    Refusal("resume", "reference.attribute(NET, Adam(), batch(), batch(), resume={})", ValueError),
    Refusal("on_step", "reference.attribute(NET, Adam(), batch(), batch(), on_step=3)", TypeError),
    Refusal("on_checkpoint", "reference.attribute(NET, Adam(), batch(), batch(), on_checkpoint=3)", TypeError),
    Refusal("steps", "reference.attribute(NET, Adam(), batch(), batch(), steps=0)", ValueError),
    Refusal("credit", "reference.attribute(NET, Adam(), batch(), batch(), credit='loan')", ValueError),
    Refusal("slope", "reference.attribute(NET, Adam(), batch(), batch(), credit='carry', slope='sgd')", ValueError),
    Refusal(
        "slope", "reference.attribute(NET, Adam(), batch(), batch(), credit='carry', slope='two_term')", ValueError
    ),
    Refusal("slope", "reference.attribute(NET, Adam(), batch(), batch(), credit='carry', slope='auto')", ValueError),
    Refusal("slope", "reference.attribute(NET, Adam(), batch(), batch(), slope='auto')", ValueError),
    Refusal(
        "keep_step_scores",
        "reference.attribute(NET, Adam(), batch(), batch(), credit='carry', keep_step_scores=True)",
        ValueError,
    ),
    Refusal("kind", "reference.attribute(NET, Adam(), batch(), batch(), kind='last')", ValueError),
    Refusal("resume", "reference.attribute(NET, Adam(), batch(), batch(), credit='carry', resume={})", ValueError),
    Refusal("run", "reference.weighted(run())", ValueError),
    Refusal("run", "reference.weighted(run().scores)", TypeError),
    Refusal("weighting", "reference.weighted(run(), 'loud')", ValueError),
    Refusal("sgd", "reference.weighted(run(), sgd='yes')", TypeError),
    Refusal("slope", "gpu.scores(step(), 'adam')", ValueError),
    Refusal("gradient", "gpu.scores(step(), gradient='end')", ValueError),
    Refusal("denominator", "gpu.scores(step(), 'linearized', denominator='next')", ValueError),
    Refusal("denominator", "gpu.scores(step(), 'secant', denominator='previous')", ValueError),
    Refusal("denominator", "gpu.scores(step(), 'linearized', denominator='previous')", ValueError),
    Refusal("denominator", "gpu.scores(step(adam=Adam(l2=0.1)), 'linearized', denominator='previous')", ValueError),
    Refusal("kind", "gpu.scores(step(), 'two_term', kind='banzhaf')", ValueError),
    Refusal("kind", "gpu.scores(step(), 'secant', kind='first')", ValueError),
    Refusal("rank", "gpu.scores(step(), 'two_term', rank=4)", ValueError),
    Refusal("contraction", "gpu.scores(step(), contraction='backward')", ValueError),
    Refusal("contraction", "gpu.scores(step(), 'two_term', contraction='forward')", ValueError),
    Refusal("contraction", "gpu.scores(step(), rank=4, contraction='forward')", ValueError),
    Refusal("contraction", "reference.scores(step(), 'two_term', contraction='forward')", ValueError),
    Refusal(
        "direction",
        "reference.directional_derivatives(NET, PARAMS, batch(), {'0.weight': PARAMS['0.weight']})",
        ValueError,
    ),
    Refusal("efficient", "gpu.scores(step(), efficient='yes')", TypeError),
    Refusal("per_validation", "gpu.scores(step(), per_validation=None)", TypeError),
    Refusal("nodes", "gpu.scores(step(), nodes=4)", TypeError),
    Refusal("nodes[0]", "gpu.scores(step(), nodes=(0, 4))", ValueError),
    Refusal("nodes[1]", "gpu.scores(step(), nodes=(4, 1))", ValueError),
    Refusal("kind", "gpu.marginals(step(), 'middle')", ValueError),
    Refusal("loss", "gpu.marginals(step(), 'first', 'second_order')", ValueError),
    Refusal("permutations", "gpu.marginals(long_step(), 'shapley', permutations=2)", ValueError),
    Refusal("permutations", "gpu.marginals(long_step(), 'shapley', permutations=5)", ValueError),
    Refusal("seed", "gpu.marginals(long_step(), 'shapley', permutations=4, seed=-1)", ValueError),
    Refusal("step", "gpu.marginals(5, 'shapley')", TypeError),
    Refusal("step", "gpu.scores(3)", TypeError),
    Refusal("step", "gpu.update(3)", TypeError),
    Refusal("step", "gpu.influence(3)", TypeError),
    Refusal("step", "gpu.marginals(3)", TypeError),
    Refusal("step", "gpu.utility(3, [True])", TypeError),
    Refusal("network", "gpu.attribute(3, Adam(), batch(), batch())", TypeError),
    Refusal("adam", "gpu.attribute(NET, 1e-3, batch(), batch())", TypeError),
    Refusal("train", "gpu.attribute(NET, Adam(), (X, Y), batch())", TypeError),
    Refusal("train.x", "gpu.attribute(NET, Adam(), Batch(X[:, :2], Y), batch())", ValueError),
    Refusal("valid.y", "gpu.attribute(NET, Adam(), batch(), Batch(X, Y + 4))", ValueError),
    Refusal("epochs", "gpu.attribute(NET, Adam(), batch(), batch(), epochs=0)", ValueError),
    Refusal("batch_size", "gpu.attribute(NET, Adam(), batch(), batch(), batch_size=2.0)", TypeError),
    Refusal("seed", "gpu.attribute(NET, Adam(), batch(), batch(), seed=-1)", ValueError),
    Refusal("slope", "gpu.attribute(NET, Adam(), batch(), batch(), slope='steep')", ValueError),
    Refusal("reduction", "gpu.attribute(NET, Adam(), batch(), batch(), reduction='max')", ValueError),
    Refusal("micro_batch", "gpu.attribute(NET, Adam(), batch(), batch(), micro_batch=0)", ValueError),
    Refusal("nodes[1]", "gpu.attribute(NET, Adam(), batch(), batch(), nodes=(4, 1))", ValueError),
    Refusal("resume", "gpu.attribute(NET, Adam(), batch(), batch(), resume=7)", TypeError),
    Refusal("resume", "gpu.attribute(NET, Adam(), batch(), batch(), resume={})", ValueError),
    Refusal("on_step", "gpu.attribute(NET, Adam(), batch(), batch(), on_step=3)", TypeError),
    Refusal("on_checkpoint", "gpu.attribute(NET, Adam(), batch(), batch(), on_checkpoint=3)", TypeError),
    Refusal("steps", "gpu.attribute(NET, Adam(), batch(), batch(), steps=0)", ValueError),
    Refusal("credit", "gpu.attribute(NET, Adam(), batch(), batch(), credit='loan')", ValueError),
    Refusal("slope", "gpu.attribute(NET, Adam(), batch(), batch(), credit='carry', slope='sgd')", ValueError),
    Refusal("slope", "gpu.attribute(NET, Adam(), batch(), batch(), credit='carry', slope='two_term')", ValueError),
    Refusal("keep_step_scores", "gpu.attribute(NET, Adam(), batch(), batch(), keep_step_scores=1)", TypeError),
    Refusal("slope", "gpu.attribute(NET, Adam(), batch(), batch(), credit='carry', slope='auto')", ValueError),
    Refusal("slope", "gpu.attribute(NET, Adam(), batch(), batch(), slope='auto')", ValueError),
    Refusal("with_sgd", "gpu.attribute(NET, Adam(), batch(), batch(), with_sgd=1)", TypeError),
    Refusal("validation_every", "gpu.attribute(NET, Adam(), batch(), batch(), validation_every=0)", ValueError),
    Refusal("validation_every", "gpu.attribute(NET, Adam(), batch(), batch(), validation_every=2.0)", TypeError),
    Refusal(
        "validation_every",
        "gpu.attribute(NET, Adam(), batch(), batch(), gradient='path', validation_every=2)",
        ValueError,
    ),
    Refusal(
        "validation_every",
        "gpu.attribute(NET, Adam(), batch(), batch(), credit='carry', validation_every=2)",
        ValueError,
    ),
    Refusal(
        "keep_step_scores",
        "gpu.attribute(NET, Adam(), batch(), batch(), credit='carry', keep_step_scores=True)",
        ValueError,
    ),
    Refusal("kind", "gpu.attribute(NET, Adam(), batch(), batch(), kind='last')", ValueError),
    Refusal("rank", "gpu.attribute(NET, Adam(), batch(), batch(), slope='two_term', rank=4)", ValueError),
    Refusal("resume", "gpu.attribute(NET, Adam(), batch(), batch(), credit='carry', resume={})", ValueError),
    Refusal("carry_window", "gpu.attribute(NET, Adam(), batch(), batch(), carry_window=3)", ValueError),
    Refusal("rank", "gpu.attribute(NET, Adam(), batch(), batch(), credit='carry', rank=4)", ValueError),
    Refusal(
        "contraction", "gpu.attribute(NET, Adam(), batch(), batch(), credit='carry', contraction='forward')", ValueError
    ),
    Refusal(
        "contraction",
        "reference.attribute(NET, Adam(), batch(), batch(), credit='carry', contraction='forward')",
        ValueError,
    ),
    Refusal("rank", "reference.attribute(NET, Adam(), batch(), batch(), rank=4)", ValueError),
    Refusal("rank", "reference.attribute(NET, Adam(), batch(), batch(), rank=np.zeros(3))", ValueError),
    Refusal("device_arrays", "gpu.scores(step(), device_arrays='yes')", TypeError),
    Refusal("dtype", "reference.attribute(NET, Adam(), batch(), batch(), dtype='float32')", ValueError),
    Refusal("device", "reference.attribute(NET, Adam(), batch(), batch(), device='cuda')", ValueError),
    Refusal("rank", "gpu.scores(step(), rank=0)", ValueError),
    Refusal("micro_batch", "gpu.scores(step(), micro_batch=1.5)", TypeError),
    Refusal("variance", "gpu.scores(step(), variance='none')", ValueError),
    Refusal("score_dtype", "gpu.scores(step(), score_dtype='int8')", ValueError),
    Refusal("score_dtype", "gpu.scores(step(), score_dtype='tf32', device='cpu')", ValueError),
    Refusal("device", "gpu.scores(step(), device='tpu')", ValueError),
    Refusal("dtype", "gpu.scores(step(), dtype='float16')", ValueError),
    Refusal("rank", "gpu.attribute(NET, Adam(), batch(), batch(), rank='all')", TypeError),
)


# --- the command -----------------------------------------------------------------------------------------------------

FILES = {
    "empty.csv": "",
    "short.csv": "a,b,label\n1,2,x\n3,y\n",
    "text.csv": "a,label\nmany,x\n2,y\n",
    "unnamed.csv": "a,,label\n1,2,x\n",
    "one.csv": "a,label\n1,x\n2,x\n",
    "quantity.csv": "a,label\n1,0.1\n2,0.2\n3,0.3\n",
    "semicolons.csv": "a;label\n1,500;x\n2,500;y\n",
    "thousands.csv": 'a,label\n"22,967.35",x\n2,y\n',
    "gaps.csv": "a,label\n,x\n2,y\n",
    "dates.csv": "a,label\n2024-01-31,x\n2024-02-01,y\n",
    "unlabelled.csv": "a,label\n1,x\n2,NA\n",
    "headless.csv": "70,22967.35,1\n71,3,0\n",
    "single.csv": "a,label\n1,x\n2,y\n3,y\n",
    "codes.csv": "a,label\n1,007\n2,08\n",
    "numbers.csv": "a,label\n1,7\n2,8\n3,7\n4,8\n",
    "notes.txt": "hello",
    "notes.npz": "hello",
    "full/mine.txt": "mine",
    "run/config.json": "{}",
}
"""Files in the folder in which the commands run."""

COMMANDS = (
    "adamshap train",
    "adamshap --nonsense",
    "adamshap attribute",
    "adamshap attribute wine more",
    "adamshap attribute wine --nonsense 1",
    "adamshap attribute wine --slope steep",
    "adamshap attribute wine --gradient end",
    "adamshap attribute wine --credit loan",
    "adamshap attribute wine --slope sgd --credit carry",
    "adamshap attribute wine --kind first",
    "adamshap attribute wine --epochs 0",
    "adamshap attribute wine --epochs many",
    "adamshap attribute wine --epochs 1000000000000000",
    "adamshap attribute wine --steps 0",
    "adamshap attribute wine --epochs 2 --steps 9",
    "adamshap attribute wine --batch-size -1",
    "adamshap attribute wine --seed -1",
    "adamshap attribute wine --seeds 0",
    "adamshap attribute wine --lr fast",
    "adamshap attribute wine --lr -1",
    "adamshap attribute wine --lr nan",
    "adamshap attribute wine --betas 0.9",
    "adamshap attribute wine --betas 0.9,1",
    "adamshap attribute wine --eps -1",
    "adamshap attribute wine --weight-decay -1",
    "adamshap attribute wine --schedule steps",
    "adamshap attribute wine --warmup 900",
    "adamshap attribute wine --activation cubic",
    "adamshap attribute wine --device tpu",
    "adamshap attribute wine --model forest",
    "adamshap attribute wine --model convnet",
    "adamshap attribute wine --width 8",
    "adamshap attribute wine digits",
    "adamshap attribute wine --model transformer",
    "adamshap attribute wine --context 8",
    "adamshap attribute notes.txt --model mlp",
    "adamshap attribute notes.txt --heads 3",
    "adamshap attribute notes.txt --valid notes.txt --flip-labels 0.1",
    "adamshap attribute notes.txt --examples line",
    "adamshap attribute digits --model convnet --hidden 8",
    "adamshap attribute digits --model convnet --depth 0",
    "adamshap attribute wine --hidden 64,0",
    "adamshap attribute wine --hidden 64,",
    "adamshap attribute wine --hidden big",
    "adamshap attribute wine --flip-labels 1",
    "adamshap attribute wine --flip-labels -0.1",
    "adamshap attribute wine --flip-labels nan",
    "adamshap attribute wine --flip-labels 0.001",
    "adamshap attribute wine --flip-labels 0.999",
    "adamshap attribute wine --label kind",
    "adamshap attribute wine --task ranking",
    "adamshap attribute wine --valid-fraction 1",
    "adamshap attribute wine --valid nothing.csv",
    "adamshap attribute wine --valid-limit 0",
    "adamshap attribute wine --valid wine --valid-limit 50",
    "adamshap attribute wine --checkpoint-seconds -1",
    "adamshap attribute wine --checkpoint-seconds nan",
    "adamshap attribute wine --out full",
    "adamshap attribute wine --out .",
    "adamshap attribute wine --resume run",
    "adamshap attribute --resume run",
    "adamshap attribute --resume nowhere",
    "adamshap attribute --resume run --epochs 3",
    "adamshap attribute nothing.csv",
    "adamshap attribute notes.npz",
    "adamshap attribute simulated_sources --group scanner",
    "adamshap attribute trusted_digits --group source",
    "adamshap attribute notes.txt",
    "adamshap attribute full",
    "adamshap attribute empty.csv",
    "adamshap attribute short.csv",
    "adamshap attribute text.csv",
    "adamshap attribute unnamed.csv",
    "adamshap attribute one.csv",
    "adamshap attribute one.csv --label kind",
    "adamshap attribute quantity.csv",
    "adamshap attribute semicolons.csv",
    "adamshap attribute thousands.csv",
    "adamshap attribute gaps.csv",
    "adamshap attribute dates.csv",
    "adamshap attribute unlabelled.csv",
    "adamshap attribute headless.csv",
    "adamshap attribute single.csv",
    "adamshap attribute numbers.csv --valid codes.csv",
    "adamshap attribute numbers.csv --drop b",
    "adamshap attribute numbers.csv --one-hot label",
    "adamshap attribute numbers.csv --group town",
    "adamshap attribute wine --per-validation --credit carry",
    "adamshap attribute numbers.csv --group label",
    "adamshap attribute wine --group origin",
    "adamshap attribute numbers.csv --sep ;;",
    "adamshap attribute wine --missing mean",
    "adamshap attribute table.xlsx",
    "adamshap show nowhere",
    "adamshap show run",
    "adamshap verify nothing.mine",
    "adamshap verify --command ./mine --in-process",
    "adamshap verify engine --offers two_term",
    "adamshap verify --command mine --offers everything",
    "adamshap verify engine --supports linear",
    "adamshap verify --command mine --supports rope",
    "adamshap vectors check nowhere",
)


@cache
def application() -> Typer:
    """Return the command-line application, built once."""
    return build(entry_points(group=GROUP))


def invoke(*arguments: str) -> Result:
    """Run the command in this process; unexpected exceptions propagate."""
    return CliRunner().invoke(application(), arguments, catch_exceptions=False)


def refused_line(command: str) -> str:
    """Return the one-line refusal of a command, run in a folder with `FILES`, which it must not change."""
    with TemporaryDirectory() as folder, chdir(folder):
        for name, content in FILES.items():
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(content, encoding="utf-8")
        before = sorted(Path().rglob("*"))
        result = invoke(*command.split()[1:])
        assert sorted(Path().rglob("*")) == before
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    return result.stderr.removeprefix("adamshap: ").removesuffix("\n").replace(folder, "…")
