"""Mistakes of a loop, and models that are not supported: each gives a sentence, and none a number."""

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch_loops import Loop, Twice, labels, tokens

from adamshap import reference

torch = pytest.importorskip("torch", reason="extra `torch`")
nn, F = torch.nn, torch.nn.functional
from adamshap.torch import Attribution  # noqa: E402


class Broken:
    """Steps of a loop, the last of them with a mistake."""

    def __init__(self, **options: Any) -> None:
        self.loop = Loop(count=12, **options)
        self.index = torch.arange(5)

    def right(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.loop.step(self.index)

    def finish(self) -> None:
        self.loop.adam.step()
        self.loop.adam.zero_grad()


def forgotten_samples(broken: Broken) -> None:
    broken.loop.loss(broken.index).backward()
    broken.finish()


def one_part_forgotten(broken: Broken) -> None:
    broken.loop.passes(broken.index)
    broken.loop.loss(broken.index).backward()
    broken.finish()


def nothing_inside(broken: Broken) -> None:
    with broken.loop.attribution.samples(broken.index):
        pass
    broken.loop.adam.step()


def backward_outside(broken: Broken) -> None:
    with broken.loop.attribution.samples(broken.index):
        loss = broken.loop.loss(broken.index)
    loss.backward()
    broken.finish()


def zero_grad_before_the_step(broken: Broken, **options: Any) -> None:
    broken.loop.passes(broken.index)
    broken.loop.adam.zero_grad(**options)
    broken.loop.adam.step()


def zero_grad_to_zeros_before_the_step(broken: Broken) -> None:
    zero_grad_before_the_step(broken, set_to_none=False)


def no_zero_grad(broken: Broken) -> None:
    """In two steps, of which the second has the first one's gradient too."""
    for _ in range(2):
        broken.loop.passes(broken.index)
        broken.loop.adam.step()


def zero_grad_between_the_parts(broken: Broken) -> None:
    broken.loop.passes(broken.index[:3])
    with broken.loop.attribution.samples(broken.index[3:]):
        broken.loop.adam.zero_grad()
        broken.loop.loss(broken.index[3:]).backward()
    broken.finish()


def clipping_after_the_step(broken: Broken) -> None:
    broken.loop.passes(broken.index)
    broken.loop.adam.step()
    nn.utils.clip_grad_norm_(broken.loop.model.parameters(), 0.01)
    broken.loop.passes(broken.index)


def clipping_by_value(broken: Broken) -> None:
    broken.loop.passes(broken.index)
    nn.utils.clip_grad_value_(broken.loop.model.parameters(), 0.003)
    broken.finish()


def one_buffer_for_all_inputs(broken: Broken) -> None:
    loop, buffer = broken.loop, broken.loop.x[:2].clone()
    for part in broken.index[:4].split(2):
        buffer.copy_(loop.x[part])
        with loop.attribution.samples(part):
            loop.each(loop.model(buffer), loop.y[part]).sum().backward()
    broken.finish()


def another_sign(broken: Broken) -> None:
    broken.loop.passes(broken.index)
    for p in broken.loop.model.parameters():
        p.grad.neg_()
    broken.finish()


def an_edit_in_place(broken: Broken) -> None:
    broken.loop.passes(broken.index)
    with torch.no_grad():
        broken.loop.model[0].weight.clamp_(-0.3, 0.3)
    broken.finish()


def an_edit_of_data(broken: Broken) -> None:
    broken.loop.passes(broken.index)
    broken.loop.model[0].weight.data.clamp_(-0.3, 0.3)
    broken.finish()


def eval_before_the_step(broken: Broken) -> None:
    broken.loop.passes(broken.index)
    broken.loop.model.eval()
    broken.finish()


def another_optimizer(broken: Broken) -> None:
    """A hook of the user's that scales one gradient in the optimiser, after it was scored."""

    def hook(optimizer: Any, args: Any, kwargs: Any) -> None:
        broken.loop.model[0].weight.grad.mul_(0.5)

    broken.loop.adam.register_step_pre_hook(hook)
    broken.right()


def a_closure(broken: Broken) -> None:
    broken.loop.passes(broken.index)
    broken.loop.adam.step(lambda: 0.0)


def a_sample_in_two_parts(broken: Broken) -> None:
    broken.loop.passes(broken.index)
    broken.loop.passes(broken.index[:2])


def one_inside_another(broken: Broken) -> None:
    with broken.loop.attribution.samples([0]), broken.loop.attribution.samples([1]):
        pass


def gradients_of_nan(broken: Broken) -> None:
    broken.loop.passes(broken.index)
    broken.loop.model[0].bias.grad.fill_(torch.nan)
    broken.finish()


def a_term_of_no_sample(broken: Broken) -> None:
    with broken.loop.attribution.samples(broken.index):
        penalty = sum(p.abs().sum() for p in broken.loop.model.parameters())
        (broken.loop.loss(broken.index) + penalty).backward()
    broken.finish()


def a_step_of_another_optimizer(broken: Broken) -> None:
    other = torch.optim.AdamW(broken.loop.model.parameters(), lr=0.01)
    broken.loop.passes(broken.index)
    other.step()
    other.zero_grad()


def unfrozen_later(broken: Broken) -> None:
    broken.loop.model[0].weight.requires_grad_(True)
    broken.right()


def frozen_first(model: Any) -> None:
    model[0].weight.requires_grad_(False)


def rows_of_another_number(broken: Broken) -> None:
    with broken.loop.attribution.samples(broken.index[:4]):
        broken.loop.loss(broken.index).backward()


STEPS: dict[str, tuple[Callable[[Broken], None], str]] = {
    "forgotten samples": (forgotten_samples, "optimizer.step: got a step without samples (step 4)"),
    "a part without samples": (one_part_forgotten, "optimizer.step: got a backward pass outside `samples`, which"),
    "nothing inside": (nothing_inside, "attribution.samples: got samples [0, 1, 2, 3, 4] without a backward pass"),
    "backward outside": (backward_outside, "optimizer.step: got a backward pass outside `samples`, which reached"),
    "zero_grad before the step": (zero_grad_before_the_step, "gradient of '0.weight': got None at step 4, where"),
    "zeros before the step": (zero_grad_to_zeros_before_the_step, "optimizer: got gradients of 0 at step 4, where"),
    "no zero_grad": (no_zero_grad, "zero_grad() in another place than right after step()"),
    "zero_grad between the parts": (zero_grad_between_the_parts, "compared parameters are off); needs one factor"),
    "clipping after the step": (clipping_after_the_step, "optimizer.step: got gradients that were edited after step 4"),
    "clipping by value": (clipping_by_value, "clipping by value"),
    "one buffer": (one_buffer_for_all_inputs, "model module '0': got an input that was edited in place after its"),
    "another sign": (another_sign, "optimizer: got gradients of the opposite sign at step 4"),
    "an edit in place": (an_edit_in_place, "model parameter '0.weight': got an edit in place between the forward pass"),
    "an edit of data": (an_edit_of_data, "model parameter '0.weight': got an edit in place between the forward pass"),
    "eval before the step": (eval_before_the_step, "optimizer.step: got another mode of 'the model' than in `samples`"),
    "another optimizer": (another_optimizer, "parameter '0.weight': got after step 4 a value"),
    "a closure": (a_closure, "optimizer.step: got a closure; needs no argument"),
    "a sample in two parts": (a_sample_in_two_parts, "index: got sample 0 again before the step"),
    "one inside another": (one_inside_another, "attribution.samples: got a call inside another"),
    "NaN": (gradients_of_nan, "gradient of '0.bias': got a number that is not finite at step 4"),
    "a penalty": (a_term_of_no_sample, "a term of the loss that is no sample's"),
    "rows": (rows_of_another_number, "model module '0': got Linear with an input of shape (5, 4) for 4 samples; needs"),
}


ONLY_IN_FULL_CHECKS = ("an edit of data", "another optimizer")
"""Mistakes that a comparison of the vectors alone does not show."""


@pytest.mark.parametrize("check_every", [1, 50])
@pytest.mark.parametrize("mistake", STEPS)
def test_a_mistake_in_the_loop_is_a_sentence_and_no_number(mistake: str, check_every: int) -> None:
    """At the fourth step, which is checked in full or not."""
    plant, message = STEPS[mistake]
    broken = Broken(options={"check_every": 1 if mistake in ONLY_IN_FULL_CHECKS else check_every})
    broken.right(steps=3)
    before = broken.loop.attribution.result()
    with pytest.raises((ValueError, FloatingPointError), match=re.escape(message)):
        plant(broken)
    scores = broken.loop.attribution._totals.scores
    later = ("no zero_grad", "clipping after the step", "another optimizer")  # found after a step that was scored
    assert mistake in later or np.array_equal(scores, before.scores)
    if not message.startswith(("index", "model module '0': got Linear", "attribution.samples: got a call")):
        with pytest.raises(ValueError, match="got a loop that was refused before"):
            broken.loop.attribution.result()


@pytest.mark.parametrize("steps", [0, 3])
def test_a_step_of_an_optimizer_that_the_attribution_does_not_have_is_refused(steps: int) -> None:
    """Else all these samples would have scores of 0."""
    broken = Broken()
    broken.right(steps)
    a_step_of_another_optimizer(broken)
    message = re.escape("optimizer: got no step() after samples [0, 1, 2, 3, 4], but '0.weight' changed")
    with pytest.raises(ValueError, match=message):
        broken.loop.attribution.result()
    with pytest.raises(ValueError, match=message):
        broken.loop.passes(broken.index)


@pytest.mark.parametrize("detached", [False, True])
def test_samples_whose_step_was_given_up_are_forgotten(detached: bool) -> None:
    """As by a loop that goes back to its last checkpoint where a loss is not finite, or that ends its attribution."""
    broken = Broken()
    broken.right(steps=2)
    attribution, model, adam = broken.loop.attribution, broken.loop.model, broken.loop.adam
    states = [copy.deepcopy(one.state_dict()) for one in (model, adam, attribution)]
    before = attribution.result().scores
    broken.loop.passes(broken.index)
    adam.zero_grad()
    if detached:
        attribution.detach()
        adam.step()
    for one, state in zip((model, adam, attribution)[: 2 if detached else 3], states, strict=False):
        one.load_state_dict(state)
    assert np.array_equal(attribution.result().scores, before)
    if not detached:
        broken.right()
        assert attribution.result().seen[0] == 3


def test_a_parameter_unfrozen_later_is_refused() -> None:
    broken = Broken(change=frozen_first)
    broken.right()
    with pytest.raises(ValueError, match="got 1 parameters with a gradient that were frozen"):
        unfrozen_later(broken)


INDICES: dict[str, tuple[Any, str]] = {
    "too large": ([0, 12], "index: got 12; needs numbers from 0 to 11, as n_samples is 12"),
    "negative": ([0, -1], "index: got -1; needs numbers from 0 to 11"),
    "twice": ([3, 1, 3], "index: got sample 3 2 times; needs each sample once in a step"),
    "empty": ([], "index: got float64 of shape (0,); needs the numbers of the batch's samples"),
    "a mask": (np.ones(12, bool), "index: got bool of shape (12,); needs"),
    "a matrix": (np.ones((3, 1), int), "index: got int64 of shape (3, 1); needs"),
}


@pytest.mark.parametrize("case", INDICES)
def test_a_wrong_index_is_refused(case: str) -> None:
    index, message = INDICES[case]
    loop = Loop(count=12)
    with pytest.raises((ValueError, TypeError), match=re.escape(message)), loop.attribution.samples(index):
        pass


def test_samples_of_a_step_that_was_skipped_have_no_step() -> None:
    """As with a GradScaler that found an infinity: zero_grad() without step()."""
    loop = Loop(count=12)
    loop.passes(torch.arange(5))
    loop.adam.zero_grad()
    loop.step(torch.arange(5, 9))
    assert loop.attribution.result().seen.tolist() == [0] * 5 + [1] * 4 + [0] * 3


def test_a_first_part_without_gradients_belongs_to_the_step() -> None:
    """σ² depends on n: samples whose labels are all ignored count, and are not taken for those of a skipped step."""
    loop = Loop(count=12, parts=3)
    loop.weights[:7] = 0  # of the first part of two
    index = torch.arange(5, 9)
    wanted = reference.scores(loop.oracle_step(index))
    loop.step(index)
    run = loop.attribution.result()
    assert run.seen[index].tolist() == [1] * 4
    np.testing.assert_allclose(run.scores[index], wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


def test_a_pass_outside_is_no_mistake_once_its_gradient_is_gone() -> None:
    loop = Loop(count=12)
    loop.loss(torch.arange(3)).backward()
    loop.adam.zero_grad()
    loop.step(torch.arange(5))
    assert loop.attribution.result().seen.sum() == 5


# --- uses that no hook sees ------------------------------------------------------------------------------------------


class HandTied(Twice):
    """An output layer by F.linear with the embedding's weight."""

    def forward(self, x: Any) -> Any:
        hidden = self.norm(self.mix(self.embedding(x))).mean(1)
        return (
            F.linear(hidden, self.embedding.weight) + self.head(hidden).sum(1, keepdim=True) + self.start.weight.sum()
        )


class Functional(Twice):
    """A linear layer that is only used as a function."""

    def forward(self, x: Any) -> Any:
        x = self.embedding(x) + self.start(torch.zeros(1, 1, dtype=torch.long))
        return self.head(self.norm(F.linear(x, self.mix.weight)).mean(1))


class TimeFirst(Twice):
    """Positions along the first axis."""

    def forward(self, x: Any) -> Any:
        return self.head(self.norm(self.mix(self.embedding(x.T))).mean(0)) + self.start.weight.sum()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (HandTied, "use of the parameter that no hook sees"),
        (Functional, "gradient of 'mix.weight': got one at step 1 that no capture explains, in mix (Linear)"),
        (TimeFirst, "model module 'embedding': got Embedding with an input of shape (4, 6) for 6 samples"),
        (TimeFirst, "such as relative positions, contraction='forward' or a frozen weight (requires_grad_(False))"),
    ],
)
def test_a_use_that_no_hook_sees_is_refused(model: Any, message: str) -> None:
    torch.manual_seed(0)
    built = model().double()
    for p in (built.start.weight, built.mix.bias):
        p.requires_grad_(model is Twice)
    adam = torch.optim.AdamW([p for p in built.parameters() if p.requires_grad])
    x, y = tokens(6), labels(6)
    attribution = Attribution(built, adam, validation=lambda: F.cross_entropy(built(x), y), n_samples=6)

    def step() -> None:
        with attribution.samples(range(6)):
            F.cross_entropy(built(x), y).backward()
        adam.step()

    with pytest.raises(ValueError, match=re.escape(message)):
        step()


# --- at construction -------------------------------------------------------------------------------------------------


def one_layer(layer: Any) -> Any:
    return nn.Sequential(nn.Linear(4, 4), layer)


class BareParameter(nn.Module):  # type: ignore[name-defined,misc]
    def __init__(self) -> None:
        super().__init__()
        self.positions, self.head = nn.Parameter(torch.zeros(1, 4)), nn.Linear(4, 3)


def with_another_output(attention: Any) -> Any:
    attention.out_proj = nn.Linear(4, 4)
    return attention


REFUSED_MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "attention": (
        lambda: one_layer(type("Mine", (nn.MultiheadAttention,), {})(4, 2)),
        "model parameter '1.in_proj_weight': got a parameter of 1, a module of class Mine, which has no captures",
    ),
    "another output layer": (
        lambda: one_layer(with_another_output(nn.MultiheadAttention(4, 2))),
        "model module '1': got MultiheadAttention with an out_proj of class Linear; needs its own out_proj",
    ),
    "bare": (BareParameter, "'positions': got a parameter of the model itself, a module of class BareParameter"),
    "subclass": (lambda: one_layer(type("Mine", (nn.Linear,), {})(4, 4)), "a module of class Mine, which has no"),
    "no axes": (
        lambda: nn.ParameterDict({"scale": torch.tensor(1.0)}),
        "model parameter 'scale': got a parameter without axes, shape (); needs one of shape (1,)",
    ),
    "weight norm": (lambda: one_layer(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))), "has no captures"),
    "max_norm": (lambda: one_layer(nn.Embedding(4, 4, max_norm=1.0)), "max_norm=1.0, which edits the weight"),
    "sparse": (lambda: one_layer(nn.Embedding(4, 4, sparse=True)), "Embedding with sparse=True; needs sparse=False"),
    "bag": (lambda: one_layer(nn.EmbeddingBag(4, 4, max_norm=1.0)), "EmbeddingBag with max_norm=1.0, which edits"),
    "sparse bag": (lambda: one_layer(nn.EmbeddingBag(4, 4, sparse=True, mode="sum")), "EmbeddingBag with sparse=True"),
    "sync": (lambda: one_layer(nn.SyncBatchNorm(4)), "model module '1': got SyncBatchNorm; needs nn.BatchNorm1d"),
    "half": (lambda: one_layer(nn.Linear(4, 4)).bfloat16(), "model parameter '0.weight': got bfloat16; needs float32"),
    "meta": (lambda: one_layer(nn.Linear(4, 4, device="meta")), "model parameter '1.weight': got a tensor on meta"),
    "two dtypes": (lambda: one_layer(nn.Linear(4, 4).double()), "model: got parameters of float32, float64; needs"),
    "frozen": (lambda: nn.Linear(4, 4).requires_grad_(False), "model: got no trainable parameter"),
}


@pytest.mark.parametrize("case", REFUSED_MODELS)
def test_a_model_without_captures_is_refused_at_construction(case: str) -> None:
    build, message = REFUSED_MODELS[case]
    model = build()
    adam = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=re.escape(message)):
        Attribution(model, adam, validation=lambda: torch.zeros(()), n_samples=3)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def options_of(model: Any) -> dict[str, Any]:
    return {"optimizer": torch.optim.AdamW(model.parameters())}


REFUSED_OPTIONS: dict[str, tuple[Callable[[Any], dict[str, Any]], str]] = {
    "SGD": (
        lambda model: {"optimizer": torch.optim.SGD(model.parameters(), 0.1)},
        "optimizer: got SGD; needs torch.optim.Adam or torch.optim.AdamW",
    ),
    "NAdam": (lambda model: {"optimizer": torch.optim.NAdam(model.parameters())}, "optimizer: got NAdam; needs"),
    "amsgrad": (
        lambda model: {"optimizer": torch.optim.Adam(model.parameters(), amsgrad=True)},
        "optimizer.param_groups[0]['amsgrad']: got True; needs False",
    ),
    "maximize": (
        lambda model: {"optimizer": torch.optim.AdamW(model.parameters(), maximize=True)},
        "optimizer.param_groups[0]['maximize']: got True; needs False",
    ),
    "a part": (
        lambda model: {"optimizer": torch.optim.AdamW(model[0].parameters())},
        "optimizer: got no parameter '2.weight' of the model; needs an optimiser that has every trainable parameter",
    ),
    "more": (
        lambda model: {"optimizer": torch.optim.AdamW([*model.parameters(), nn.Parameter(torch.ones(2))])},
        "optimizer: got 1 parameters that are not the model's",
    ),
    "validation": (lambda model: {"validation": None}, "validation: got None; needs a function that returns"),
    "a loss": (lambda model: {"validation": 1.5}, "validation: got 1.5; needs a function that returns"),
    "slope": (lambda model: {"slope": "steep"}, "slope: got 'steep'; needs one of sgd"),
    "n_samples": (lambda model: {"n_samples": 0}, "n_samples: got 0; needs an integer of at least 1"),
    "check_every": (lambda model: {"check_every": 0}, "check_every: got 0; needs an integer of at least 1"),
    "model": (lambda model: {"model": 3}, "model: got int; needs a Module"),
    "axes": (lambda model: {"samples_axis": 1}, "samples_axis: got 1; needs a mapping from names of modules to 0 or 1"),
    "axis of another": (
        lambda model: {"samples_axis": {"lstm": 1}},
        "samples_axis: got 'lstm'; needs names of modules",
    ),
    "axis": (lambda model: {"samples_axis": {"0": 2}}, "samples_axis['0']: got 2; needs 0 or 1"),
    "channels": (
        lambda model: (
            options_of(images := nn.Sequential(nn.Conv1d(4, 4, 1))) | {"model": images, "samples_axis": {"": 1}}
        ),
        "model module '0': got Conv1d with samples along axis 1, as the module around it; needs samples_axis={'0': 0}",
    ),
}


@pytest.mark.parametrize("case", REFUSED_OPTIONS)
def test_a_wrong_argument_is_refused(case: str) -> None:
    change, message = REFUSED_OPTIONS[case]
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    given = {"model": model, "validation": lambda: None, "n_samples": 3} | options_of(model) | change(model)
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        Attribution(given.pop("model"), given.pop("optimizer"), **given)


def test_the_previous_denominator_is_refused_at_the_first_step() -> None:
    loop = Loop(options={"slope": "linearized", "denominator": "previous"})
    with pytest.raises(ValueError, match="denominator: got 'previous' at the first step"):
        loop.step(torch.arange(5))


def test_two_term_is_refused_for_sequences() -> None:
    loop = Loop("gpt", options={"slope": "two_term"})
    with pytest.raises(ValueError, match="slope: got 'two_term' for"):
        loop.step(torch.arange(5))


# --- the validation function -----------------------------------------------------------------------------------------


def with_backward(loop: Loop) -> Any:
    loss = Loop.validation(loop)
    loss.backward(retain_graph=True)
    return loss


VALIDATIONS: dict[str, tuple[Callable[[Loop], Any], str]] = {
    "a number": (lambda loop: 3.0, "validation(): got 3.0; needs one number, the mean validation loss, as a tensor"),
    "a loss of each": (lambda loop: torch.ones(3), "validation(): got a tensor of shape (3,); needs one number"),
    "detached": (lambda loop: Loop.validation(loop).detach(), "validation(): got a tensor without a graph"),
    "infinite": (lambda loop: Loop.validation(loop) / 0, "validation(): got inf; needs a finite loss"),
    "a copy": (
        lambda loop: F.cross_entropy(copy.deepcopy(loop.model)(loop.valid_x), loop.valid_y),
        "validation(): got a loss that depends on no parameter of the model",
    ),
    "backward": (with_backward, "validation(): got a function that changed the gradient of '0.weight'"),
}


@pytest.mark.parametrize("case", VALIDATIONS)
def test_a_wrong_validation_function_is_refused(case: str) -> None:
    function, message = VALIDATIONS[case]
    loop = Loop()
    object.__setattr__(loop.attribution._stack, "loss", lambda: function(loop))
    with pytest.raises((ValueError, TypeError, FloatingPointError), match=re.escape(message)):
        loop.step(torch.arange(5))


def test_samples_that_interact_are_refused() -> None:
    loop = Loop("image")
    loop.model.train()
    with pytest.raises(ValueError, match="model module 'batch_norm': got BatchNorm2d in training mode, where samples"):
        loop.passes(torch.arange(5))


def test_a_validation_pass_that_moves_running_statistics_is_refused() -> None:
    loop = Loop("image")

    def validation() -> Any:
        loop.model.train()
        return Loop.validation(loop)

    object.__setattr__(loop.attribution._stack, "loss", validation)
    with pytest.raises(ValueError, match="got a function that changed the buffer 'batch_norm"):
        loop.step(torch.arange(5))


class RelativePositions(Twice):
    """An embedding of pairs of positions, shared by all samples."""

    def forward(self, x: Any) -> Any:
        pairs = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        weights = self.start(torch.zeros_like(pairs)).sum(2).softmax(1) + pairs
        return self.head(self.norm(self.mix(weights @ self.embedding(x))).mean(1))


class Centred(Twice):
    """The mean over samples is subtracted."""

    def forward(self, x: Any) -> Any:
        hidden = self.mix(self.embedding(x)) + self.start.weight
        return self.head(self.norm(hidden - hidden.mean(0)).mean(1))


@pytest.mark.parametrize(("model", "path"), [(RelativePositions, "start"), (TimeFirst, "norm"), (Centred, "mix")])
def test_as_many_positions_as_samples_are_no_samples(model: Any, path: str) -> None:
    """Shapes fit, and Σ x_i is the gradient: only the pass itself shows which rows are whose."""
    torch.manual_seed(0)
    built = model().double()
    built.start.weight.requires_grad_(model is RelativePositions)
    adam = torch.optim.AdamW([p for p in built.parameters() if p.requires_grad])
    x, y = tokens(4), labels(4)
    attribution = Attribution(built, adam, validation=lambda: F.cross_entropy(built(x), y), n_samples=4)
    message = rf"model module '{path}': got \w+ with rows of which other samples' outputs depend"
    with pytest.raises(ValueError, match=message), attribution.samples(range(4)):
        F.cross_entropy(built(x), y).backward()


class ByHead(Twice):
    """Positions (1, T, d) that are added to (n, h, T, d): their first axis meets the heads'."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, 4, 2))

    def forward(self, x: Any) -> Any:
        heads = self.embedding(x).reshape(len(x), 4, 4, 2) + self.bias
        return self.head(self.norm(self.mix(heads.reshape(len(x), 4, 8))).mean(1)) + self.start.weight.sum()


class Summed(ByHead):
    """Positions whose sum is used too."""

    def forward(self, x: Any) -> Any:
        return self.head(self.norm(self.mix(self.embedding(x))).mean(1)) + self.start.weight.sum() + self.bias.sum()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ByHead, "model module '': got ByHead with rows of which other samples' outputs depend"),
        (
            Summed,
            "parameter 'bias': got a parameter of the model itself that is used in another way than one row",
        ),
    ],
)
def test_a_row_that_is_not_one_of_each_sample_is_refused(model: Any, message: str) -> None:
    torch.manual_seed(0)
    built = model().double()
    built.start.weight.requires_grad_(False)
    adam = torch.optim.AdamW([p for p in built.parameters() if p.requires_grad])
    x, y = tokens(4), labels(4)
    attribution = Attribution(built, adam, validation=lambda: F.cross_entropy(built(x), y), n_samples=4)
    with pytest.raises(ValueError, match=re.escape(message)), attribution.samples(range(4)):
        F.cross_entropy(built(x), y).backward()
    assert isinstance(built.bias, nn.Parameter)


def test_ids_that_may_be_positions_or_samples_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(4, 5), nn.Linear(5, 3))
    adam = torch.optim.AdamW(model.parameters())
    attribution = Attribution(model, adam, validation=lambda: model(torch.arange(4)).sum(), n_samples=4)
    message = r"got Embedding with ids 0 … 3 for 4 samples; needs ids of shape \(1, T\)"
    with pytest.raises(ValueError, match=message), attribution.samples(range(4)):
        model(torch.arange(4)).sum().backward()
