"""Forward mode in a PyTorch loop: scores of models of any modules, and the second opinion on captures."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch_loops import (
    CLASSES,
    MODELS,
    VOCAB,
    WIDTH,
    Loop,
    T,
    assert_oracle_agrees,
    cross_entropy,
    freeze_some,
    labels,
    tokens,
)

from adamshap import reference
from adamshap.gpu.captures import Dense, outer_products

torch = pytest.importorskip("torch", reason="extra `torch`")
nn = torch.nn
from adamshap.torch import Attribution, register  # noqa: E402
from adamshap.torch.forward_mode.step import ForwardStep  # noqa: E402
from adamshap.torch.layers.registry import LAYERS  # noqa: E402
from adamshap.torch.memory import array_of  # noqa: E402

FORWARD = {"contraction": "forward", "slope": "secant"}


class Cube(torch.autograd.Function):  # type: ignore[name-defined,misc]
    """A function without a forward derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Any) -> Any:
        return x**3

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        (x,) = ctx.saved_tensors
        return 3 * x * x * gradient


class Bare(nn.Module):  # type: ignore[name-defined,misc]
    """Parameters of its own in einsum, positions along the first axis, scales without an axis for samples."""

    cubes = False

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Parameter(torch.randn(VOCAB, WIDTH)), nn.Parameter(torch.randn(2, WIDTH, WIDTH) / 3)
        self.scale, self.head = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.randn(CLASSES, WIDTH))

    def forward(self, x: Any) -> Any:
        x = self.table[x].transpose(0, 1) * self.scale
        x = torch.einsum("tnd,hed->tnhe", x, self.mix)
        x = Cube.apply(x) / 9 if self.cubes else x.tanh()
        return torch.einsum("tnhe,ce->nc", x, self.head) / x[:, 0].numel()


class WithCubes(Bare):
    cubes = True


class Encoder(nn.Module):  # type: ignore[name-defined,misc]
    """An encoder layer, with the processor's own attention, which has no forward derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.encoder = nn.TransformerEncoderLayer(WIDTH, 2, 6, 0.0, batch_first=True)

    def forward(self, x: Any) -> Any:
        return self.head(self.encoder(self.embedding(x)).mean(1))


class Recurrent(nn.Module):  # type: ignore[name-defined,misc]
    """An LSTM, which keeps its weights in a list of its own, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.drop = nn.Embedding(VOCAB, WIDTH), nn.Dropout(0.5)
        self.lstm, self.head = nn.LSTM(WIDTH, 3, batch_first=True), nn.Linear(3, CLASSES)

    def forward(self, x: Any) -> Any:
        return self.head(self.lstm(self.drop(self.embedding(x)))[0].mean(1))


@pytest.fixture(autouse=True)
def own_models() -> Iterator[None]:
    own = {"bare": Bare, "cubes": WithCubes, "encoder": Encoder, "recurrent": Recurrent}
    MODELS.update({name: (build, tokens, labels) for name, build in own.items()})
    yield
    for name in own:
        del MODELS[name]


# --- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of the oracle's own vmap
@pytest.mark.parametrize("name", [*MODELS, "bare", "encoder"])
def test_the_scores_of_each_model_are_the_oracle_s(name: str) -> None:
    """The third step, which is not checked in full, takes the factor from a direction."""
    loop = Loop(name, options=FORWARD | {"gradient": "path", "nodes": (2, 4)}, clip=0.05)
    assert_oracle_agrees(loop)
    assert loop.attribution.differences is None
    assert (loop.attribution.result().history["forward_error"] == 0).all()


def in_groups(model: Any) -> Any:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0, "betas": (0.8, 0.99), "lr": 0.03}]
    return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1, eps=1e-6)


LOOPS: dict[str, dict[str, Any]] = {
    "accumulated": {"parts": 3},
    "accumulated and clipped": {"parts": 2, "clip": 0.05, "name": "bare"},
    "class weights": {"each": cross_entropy(weight=torch.tensor([0.2, 1.0, 3.0]).double())},
    "groups": {"optimizer": in_groups},
    "L2": {"optimizer": lambda model: torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.1)},
    "frozen": {"change": freeze_some},
    "one sample": {"count": 3},
    "SGD": {"options": {"slope": "sgd", "gradient": "start"}},
    "linearized": {"options": {"slope": "linearized", "efficient": True}},
    "tangent": {"options": {"slope": "tangent", "gradient": "start"}},
}


@pytest.mark.parametrize("loop", LOOPS)
def test_the_scores_of_each_loop_are_the_oracle_s(loop: str) -> None:
    options = FORWARD | LOOPS[loop].get("options", {})
    assert_oracle_agrees(Loop(**LOOPS[loop] | {"options": options}), n=1 if loop == "one sample" else 5)


def test_differences_err_by_no_more_than_they_say() -> None:
    """Both in each step: Cube has no forward derivative, and its scores are the oracle's."""
    loop = Loop("cubes", options=FORWARD | {"gradient": "start"}, parts=2, clip=0.05)
    before = np.zeros(loop.count)
    for index in loop.batches(4):
        step = loop.oracle_step(index)
        wanted = reference.scores(step, "secant", "start")
        loop.step(index)
        scores = loop.attribution.result().scores
        error = loop.attribution.result().history["forward_error"][-1]
        got, before = (scores - before)[index], scores
        assert 0 < error < 1e-6
        assert abs(got - wanted).max() <= error * abs(wanted).max()
    assert str(loop.attribution.differences).startswith("You must implement the jvp function for custom")


def test_differences_in_float32() -> None:
    runs = []
    for dtype in (torch.float64, torch.float32):
        loop = Loop("cubes", options=FORWARD, dtype=dtype)
        for index in (torch.arange(6), torch.arange(6, 12)):
            loop.step(index)
        runs.append(loop.attribution.result())
    error = runs[1].history["forward_error"].max()
    assert 1e-5 < error < 3e-2
    assert abs(runs[1].scores - runs[0].scores).max() < error * abs(runs[0].scores).max()
    assert np.corrcoef(runs[0].scores, runs[1].scores)[0, 1] > 0.9999


def test_a_direction_in_which_the_samples_cancel_does_not_give_the_factor() -> None:
    loop = Loop(options=FORWARD)
    loop.passes(torch.arange(5))
    gradients = {name: p.grad.mul_(0.5).numpy() for name, p in loop.trained.items()}
    generator = np.random.default_rng(0)
    direction = {name: generator.standard_normal(g.shape) for name, g in gradients.items()}
    along = sum(float((g * direction[name]).sum()) for name, g in gradients.items())
    square = sum(float((g * g).sum()) for g in gradients.values())
    for name, g in gradients.items():
        direction[name] -= (1 - 1e-9) * along / square * g
    attribution = loop.attribution
    step = ForwardStep(attribution._derivatives, attribution._pending.blocks, loop.trained, gradients, 3)
    step.add_dots(attribution._scorer.context, direction, np.zeros(5))
    assert step.factor == pytest.approx(0.5, rel=1e-12)


def materialised(loop: Loop, losses: Any) -> Any:
    """Return SGD's score of each of these losses' gradients, with Γ at θ."""
    tensors = list(loop.trained.values())
    loop.model.eval()
    gamma = torch.autograd.grad(loop.validation(), tensors)
    loop.model.train()
    rows = (torch.autograd.grad(loss, tensors, retain_graph=True) for loss in losses)
    return np.array([0.01 * sum((one * two).sum() for one, two in zip(gamma, x, strict=True)).item() for x in rows])


@pytest.mark.parametrize("check_every", [1, 50])
def test_a_dropout_mask_is_that_of_the_backward_pass(check_every: int) -> None:
    """Two parts with random numbers of their own, in the third step."""
    options = {"slope": "sgd", "gradient": "start", "contraction": "forward", "check_every": check_every}
    loop = Loop("recurrent", options=options)

    def validation() -> Any:
        loop.model.eval()
        return Loop.validation(loop)

    loop.attribution._stack = replace(loop.attribution._stack, loss=validation)
    for _ in range(2):
        loop.step(torch.arange(8, 12))
    parts = torch.arange(7).split(4)
    state = torch.get_rng_state()
    expected = np.concatenate([materialised(loop, loop.losses(part)) for part in parts])
    torch.set_rng_state(state)
    for part in parts:
        with loop.attribution.samples(part, losses=lambda part=part: loop.losses(part)):
            loop.losses(part).sum().backward()
    after = torch.get_rng_state()
    loop.adam.step()
    assert torch.equal(torch.get_rng_state(), after)
    scores = loop.attribution.result().scores[:7]
    assert abs(scores - expected).max() < 1e-9 * abs(expected).max()
    assert loop.attribution.differences is None


def test_a_recurrent_layer_in_float32_has_forward_derivatives() -> None:
    """In PyTorch's own loops: oneDNN's layer, which the loop uses, has none."""
    loop = Loop("recurrent", options=FORWARD, dtype=torch.float32)
    loop.model.eval()
    for index in loop.batches(3):
        loop.step(index)
    assert loop.attribution.differences is None


@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("options", [FORWARD, {"slope": "secant"}])
def test_a_reentrant_checkpoint_is_refused(layer: int, options: dict[str, Any]) -> None:
    """The graph of a first layer's checkpoint has no parameter, and would give gradients of 0."""
    loop = Loop(options=options)
    inner = loop.model[layer].forward
    loop.model[layer].forward = lambda x: torch.utils.checkpoint.checkpoint(
        inner, x if x.requires_grad else x.detach().requires_grad_(), use_reentrant=True
    )
    with pytest.raises(ValueError, match=r"(losses|validation)\(\): got a reentrant checkpoint, whose parameters"):
        loop.step(torch.arange(5))


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_model_has_differences() -> None:
    scores = []
    for compiled in (False, True):
        torch._dynamo.reset()
        loop = Loop("bare", options=FORWARD)
        if compiled:
            called = torch.compile(loop.model, backend="aot_eager")
            loop.losses = lambda index, loop=loop, called=called: (
                loop.weights[index] * loop.each(called(loop.x[index]), loop.y[index])
            )
        loop.step(torch.arange(5))
        scores.append(loop.attribution.result().scores)
    assert loop.attribution.differences is not None
    assert 0 < abs(scores[1] - scores[0]).max() < 1e-6 * abs(scores[0]).max()


def test_a_gradient_scaler_is_a_factor() -> None:
    runs = []
    for scaled in (False, True):
        loop = Loop("bare", options=FORWARD)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for index in loop.batches(3):
            with loop.attribution.samples(index, lambda loop=loop, index=index: 3 * loop.losses(index)):
                scaler.scale(loop.loss(index)).backward()
            scaler.unscale_(loop.adam)
            nn.utils.clip_grad_norm_(loop.model.parameters(), 0.05)
            scaler.step(loop.adam)
            scaler.update()
            loop.adam.zero_grad()
        runs.append(loop.attribution.result())
    np.testing.assert_allclose(runs[1].scores, runs[0].scores, rtol=1e-9)
    np.testing.assert_allclose(runs[1].history["factor"], runs[0].history["factor"], rtol=1e-9)
    assert (runs[0].history["factor"] < 1 / 3).all()


def test_the_loop_is_the_same_with_and_without_an_attribution() -> None:
    params = []
    for attributed in (False, True):
        loop = Loop("cubes", options=FORWARD)
        if not attributed:
            loop.attribution.detach()
        for index in loop.batches(3):
            loop.passes(index, captured=attributed)
            loop.adam.step()
            loop.adam.zero_grad()
        params.append([p.detach().clone() for p in loop.model.parameters()] + [torch.get_rng_state()])
    assert all(torch.equal(one, other) for one, other in zip(*params, strict=True))


def test_beside_an_attribution_by_captures() -> None:
    """Two attributions of one loop: the second does not see the first one's edits of parameters, in forward mode."""
    loop = Loop(options=FORWARD)
    other = Attribution(
        loop.model, loop.adam, validation=loop.validation, n_samples=loop.count, slope="secant", check_every=1
    )
    for index in loop.batches(4):
        with other.samples(index):
            loop.passes(index)
        loop.adam.step()
        loop.adam.zero_grad()
    scores = other.result().scores
    assert abs(loop.attribution.result().scores - scores).max() < 1e-9 * abs(scores).max()


def test_as_many_positions_as_samples_and_other_memory() -> None:
    """Positions of shape (T,) are all samples' in common, T = n."""
    assert_oracle_agrees(Loop("gpt", options=FORWARD), n=T)
    change = {"change": lambda model: model.to(memory_format=torch.channels_last)}
    assert_oracle_agrees(Loop("image", options=FORWARD, **change))


def test_a_resumed_loop_ends_with_the_same_scores() -> None:
    whole, first, second = (Loop("bare", options=FORWARD) for _ in range(3))
    indices = list(whole.batches(4))
    for loop, some in ((whole, indices), (first, indices[:3])):
        for index in some:
            loop.step(index)
    for part in ("model", "adam", "attribution"):
        getattr(second, part).load_state_dict(getattr(first, part).state_dict())
    second.step(indices[3])
    runs = [loop.attribution.result() for loop in (whole, second)]
    np.testing.assert_array_equal(runs[1].scores, runs[0].scores)
    for name, values in runs[0].history.items():
        np.testing.assert_array_equal(runs[1].history[name], values)


# --- mistakes --------------------------------------------------------------------------------------------------------


def with_losses(losses: Callable[[Loop, Any], Any]) -> Callable[[Loop, Any], None]:
    """Return a step with another function of losses."""

    def step(loop: Loop, index: Any) -> None:
        with loop.attribution.samples(index, lambda: losses(loop, index)):
            loop.loss(index).backward()
        loop.adam.step()
        loop.adam.zero_grad()

    return step


def bound_late(loop: Loop, index: Any) -> None:
    for part in index.split(3):
        with loop.attribution.samples(part, lambda: loop.losses(part)):  # noqa: B023
            loop.loss(part).backward()
    loop.adam.step()


def nothing_inside(loop: Loop, index: Any) -> None:
    with loop.attribution.samples(index, lambda: loop.losses(index)):
        pass
    loop.adam.step()


def outside(loop: Loop, index: Any) -> None:
    loop.passes(index)
    loop.loss(index).backward()
    loop.adam.step()


def another_sign(loop: Loop, index: Any) -> None:
    loop.passes(index)
    for p in loop.model.parameters():
        p.grad.neg_()
    loop.adam.step()


def without_zero_grad(loop: Loop, index: Any) -> None:
    loop.passes(torch.arange(6, 12))
    loop.adam.step()
    loop.passes(index)
    loop.adam.step()


def one_frozen_part(loop: Loop, index: Any) -> Any:
    """Return losses in which one parameter is detached."""
    names = dict(loop.model.named_parameters())
    names["0.weight"] = names["0.weight"].detach()
    outputs = torch.func.functional_call(loop.model, names, (loop.x[index],))
    return loop.weights[index] * loop.each(outputs, loop.y[index])


AT_ANY_STEP: dict[str, tuple[Callable[[Loop, Any], None], str]] = {
    "the mean": (
        with_losses(lambda loop, index: loop.loss(index)),
        "losses(): got a tensor of shape (); needs the losses of the 6 samples of `index`, a tensor of shape (6,)",
    ),
    "a number": (with_losses(lambda loop, index: 3.0), "losses(): got 3.0; needs the losses of the 6 samples"),
    "detached": (
        with_losses(lambda loop, index: loop.losses(index).detach()),
        "losses(): got a tensor without a graph; needs the losses as computed, without detach or no_grad",
    ),
    "infinite": (
        with_losses(lambda loop, index: loop.losses(index) / 0),
        "losses(): got a number that is not finite; needs finite losses",
    ),
    "another batch": (
        with_losses(lambda loop, index: loop.losses((index + 3) % 12)),
        "lambda x=x, y=y: …",
    ),
    "other weights": (
        with_losses(lambda loop, index: loop.losses(index) / loop.weights[index] ** 2),
        "weights of samples or a mean of parts of a batch that backward() has and the losses have not",
    ),
    "other random numbers": (
        with_losses(lambda loop, index: loop.losses(index) * torch.rand(6)),
        "random numbers that are drawn in another order than in `samples`",
    ),
    "late": (bound_late, "losses of other samples than the block's (in a lambda, x and y are those of the last block"),
    "nothing inside": (nothing_inside, "attribution.samples: got samples [0, 1, 2, 3, 4, 5] without a backward pass"),
    "outside": (outside, "optimizer.step: got a backward pass outside `samples`, which reached"),
    "another sign": (another_sign, "optimizer: got gradients"),
    "no zero_grad": (without_zero_grad, "likely: "),
    "none": (
        lambda loop, index: loop.attribution.samples(index).__enter__(),
        "losses: got None; needs a function that returns the losses of the block's samples: samples(index, losses=",
    ),
    "no function": (
        lambda loop, index: loop.attribution.samples(index, 3).__enter__(),  # type: ignore[arg-type]
        "losses: got 3; needs a function",
    ),
}


@pytest.mark.parametrize("check_every", [1, 50])
@pytest.mark.parametrize("mistake", AT_ANY_STEP)
def test_a_mistake_is_a_sentence_and_no_number(mistake: str, check_every: int) -> None:
    """At the fourth step, which is checked in full or not: then two directions disagree."""
    plant, message = AT_ANY_STEP[mistake]
    loop = Loop(options=FORWARD | {"check_every": check_every})
    for _ in range(3):
        loop.step(torch.arange(6))
    before = loop.attribution.result().scores
    with pytest.raises((ValueError, TypeError, FloatingPointError), match=re.escape(message)):
        plant(loop, torch.arange(6))
    assert mistake == "no zero_grad" or np.array_equal(loop.attribution._totals.scores, before)


def test_a_part_that_backward_sees_and_the_losses_do_not() -> None:
    loop = Loop(options=FORWARD)
    message = r"gradient of '0.weight': got a gradient of norm .*likely: a function that leaves out a part of the model"
    with pytest.raises(ValueError, match=message):
        with_losses(one_frozen_part)(loop, torch.arange(6))


class Centred(Bare):
    """The mean over samples is subtracted, by a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.flat = nn.Linear(WIDTH, WIDTH), nn.Flatten(0, 1)

    def forward(self, x: Any) -> Any:
        x = self.first(self.flat(self.table[x] * self.scale)).reshape(len(x), T, WIDTH)
        x = x - self.mixed(x)
        return torch.einsum("ntd,hed,ce->nc", x, self.mix, self.head)

    def mixed(self, x: Any) -> Any:
        return x.mean(0)


class Apart(Centred):
    """Positions of every sample are flattened into the first axis, and the width is that of the batch."""

    def mixed(self, x: Any) -> Any:
        return 0


@pytest.mark.parametrize(("model", "interact"), [(Centred, True), (Apart, False)])
def test_samples_that_interact_are_refused(model: Any, interact: bool) -> None:
    MODELS["own"] = (model, tokens, labels)
    loop = Loop("own", options=FORWARD)
    del MODELS["own"]
    message = "model module 'first': got Linear with an output of which the first sample's loss needs other samples'"
    with pytest.raises(ValueError, match=message) if interact else nullcontext():
        loop.step(torch.arange(WIDTH))


@pytest.mark.parametrize("options", [FORWARD, {"verify_ghost": True}])
def test_a_loss_over_pairs_is_refused(options: dict[str, Any]) -> None:
    def each(outputs: Any, y: Any) -> Any:
        return cross_entropy()(outputs - outputs.mean(0), y)

    with pytest.raises(ValueError, match="of which the first sample's loss needs other samples' parts; needs samples"):
        Loop(each=each, options=options).step(torch.arange(5))


class OneLogit(nn.Module):  # type: ignore[name-defined,misc]
    """A model whose output has no axis but that of the samples, and ends in a module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.last = nn.Parameter(torch.randn(4)), nn.Tanh()

    def forward(self, x: Any) -> Any:
        return self.last(x @ self.weight)


def test_outputs_of_one_number_each() -> None:
    torch.manual_seed(0)
    model, x, y = OneLogit().double(), torch.randn(9, 4).double(), torch.rand(9).double()

    def losses(rows: Any) -> Any:
        return (model(x[rows]) - y[rows]).square()

    adam, rows = torch.optim.AdamW(model.parameters(), lr=0.01), torch.arange(6)
    attribution = Attribution(model, adam, validation=lambda: losses(slice(6, 9)).mean(), n_samples=6, **FORWARD)
    theta, of_valid = model.weight.detach().clone(), losses(slice(6, 9)).mean()
    with attribution.samples(rows, lambda: losses(rows)):
        losses(rows).mean().backward()
    x_i = torch.autograd.functional.jacobian(lambda w: ((x[:6] @ w).tanh() - y[:6]).square(), theta) / 6
    gamma = torch.autograd.grad(of_valid, model.weight)[0]
    adam.step()
    assert not torch.equal(theta, model.weight)
    np.testing.assert_allclose(attribution.result().sgd_scores, (0.01 * x_i @ gamma).numpy(), rtol=1e-12)


def test_batch_statistics_are_refused() -> None:
    loop = Loop("image", options=FORWARD)
    loop.model.train()
    with pytest.raises(ValueError, match="model module 'batch_norm': got BatchNorm2d with statistics of the batch, by"):
        loop.step(torch.arange(5))


def test_differences_without_a_digit_are_refused() -> None:
    loop = Loop("cubes", options=FORWARD, dtype=torch.float32)
    rounded = with_losses(lambda loop, index: loop.losses(index).bfloat16().float())
    with pytest.raises((ValueError, FloatingPointError), match=r"losses\(\): got losses whose differences are .* jvp"):
        rounded(loop, torch.arange(6))


def test_autocast_is_refused() -> None:
    loop = Loop(options=FORWARD, dtype=torch.float32)

    def losses(index: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            outputs = loop.model(loop.x[index])
        return loop.each(outputs.float(), loop.y[index])

    def steps() -> None:
        for index in loop.batches(4):
            with loop.attribution.samples(index, lambda index=index: losses(index)):
                losses(index).sum().backward()
            loop.adam.step()
            loop.adam.zero_grad()

    with pytest.raises(ValueError, match="autocast to a low dtype"):
        steps()


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "random_order": (
        {"contraction": "forward"},
        "slope: got 'random_order' with contraction 'forward', which needs Σ x_i² of parameters without captures; needs"
        " 'secant', the nearest to it; or 'tangent', 'linearized', 'frozen', 'sgd'",
    ),
    "auto": (
        {"contraction": "forward", "slope": "auto"},
        "slope: got 'auto' with contraction 'forward', which needs Σ",
    ),
    "two_term": ({"contraction": "forward", "slope": "two_term"}, "contraction: got 'forward' with slope 'two_term'"),
    "rank": (FORWARD | {"rank": 2}, "contraction: got 'forward' with rank=2; needs 'ghost', or rank=None"),
    "verified forward": (FORWARD | {"verify_ghost": True}, "verify_ghost: got True with contraction 'forward'; needs"),
    "verified two_term": ({"slope": "two_term", "verify_ghost": True}, "verify_ghost: got True with slope 'two_term'"),
    "verify_ghost": ({"verify_ghost": 3}, "verify_ghost: got 3; needs True or False"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_wrong_option_is_refused(case: str) -> None:
    options, message = OPTIONS[case]
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        Loop(options=options)


# --- verify_ghost ----------------------------------------------------------------------------------------------------

VERIFIED: dict[str, dict[str, Any]] = {
    "perceptron": {"options": {"slope": "secant", "gradient": "start"}, "clip": 0.05},
    "gpt": {"parts": 2, "options": {"rank": 2}},
    "image": {"options": {"per_validation": True}},
    "twice": {"options": {"gradient": "path"}, "dtype": torch.float32},
    "patches": {"dtype": torch.float32, "clip": 0.01, "parts": 2},
    "resnet": {"dtype": torch.float32},
}


@pytest.mark.parametrize("name", VERIFIED)
def test_both_contractions_agree_and_scores_stay_what_they_are(name: str) -> None:
    scores = []
    for verified in (False, True):
        given = VERIFIED[name]
        options = given.get("options", {}) | {"verify_ghost": verified}
        loop = Loop(name, **given | {"options": options})
        for index in loop.batches(3):
            loop.step(index)
        scores.append(loop.attribution.result().scores)
    np.testing.assert_array_equal(*scores)


class Rolled(nn.Linear):  # type: ignore[name-defined,misc]
    """A linear layer whose captures are the next sample's."""


@contextmanager
def registered(classes: type, captures: Any) -> Iterator[None]:
    register(classes)(captures)
    try:
        yield
    finally:
        del LAYERS[classes]


def rolled(use: Any) -> Any:
    a, b = (array_of(one.roll(1, 0)) for one in (use.a, use.b))
    yield outer_products(use.names["weight"], None, a, b)
    yield Dense(use.names["bias"], b)


def test_captures_of_another_sample_are_found() -> None:
    """Their sum is right, so that the self-check passes."""
    MODELS["rolled"] = (lambda: nn.Sequential(Rolled(4, 5), nn.Tanh(), nn.Linear(5, 3)), *MODELS["perceptron"][1:])
    with registered(Rolled, rolled):
        Loop("rolled").step(torch.arange(5))
        loop = Loop("rolled", options={"verify_ghost": True})
        with pytest.raises(
            ValueError, match=r"verify_ghost: got .* as the score of sample \d by captures and .* by its"
        ):
            loop.step(torch.arange(5))
    del MODELS["rolled"]


def test_losses_in_another_order_are_found_and_none_is_refused() -> None:
    loop = Loop(options={"verify_ghost": True})
    with pytest.raises(ValueError, match=r"losses\(\): got losses of which the first depends on row 4 of the"):
        with_losses(lambda loop, index: loop.losses(index).flip(0))(loop, torch.arange(5))
    with pytest.raises(ValueError, match="losses: got None; needs a function that returns the losses of the block's"):
        Loop(options={"verify_ghost": True}).attribution.samples([0]).__enter__()
