"""Loops and models of an adversary: right ones get the oracle's scores, wrong ones a sentence."""

import copy
import gc
import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch_loops import CLASSES, CLOSE, MODELS, VOCAB, WIDTH, Loop, assert_oracle_agrees, labels, tokens

torch = pytest.importorskip("torch", reason="extra `torch`")
nn, F = torch.nn, torch.nn.functional
from adamshap.torch import Attribution  # noqa: E402


def refuses(message: str) -> Any:
    return pytest.raises((ValueError, TypeError), match=re.escape(message))


def attributed(model: Any, x: Any, y: Any, **options: Any) -> tuple[Any, Attribution]:
    """Return an optimiser of the model with an attribution, whose validation samples are the first three."""
    adam = torch.optim.AdamW(model.parameters())
    options.setdefault("validation", lambda: F.cross_entropy(model(x[:3]), y[:3]))
    return adam, Attribution(model, adam, n_samples=len(x), **options)


def step(model: Any, adam: Any, attribution: Attribution, x: Any, y: Any) -> None:
    with attribution.samples(range(len(x))):
        F.cross_entropy(model(x), y).backward()
    adam.step()
    adam.zero_grad()


# --- samples that interact -------------------------------------------------------------------------------------------


class Mixing(nn.Module):  # type: ignore[name-defined,misc]
    """A parameter of shape (1, d, d) that is a matrix: only the first of n equal rows would be used."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.mix = nn.Parameter(torch.randn(1, WIDTH, WIDTH))

    def forward(self, x: Any) -> Any:
        return self.head((self.embedding(x) @ self.mix[0]).mean(1))


class Relative(nn.Module):  # type: ignore[name-defined,misc]
    """All samples relative to one of them."""

    def __init__(self, row: int) -> None:
        super().__init__()
        self.embedding, self.head, self.row = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, CLASSES), row

    def forward(self, x: Any) -> Any:
        z = self.embedding(x).mean(1)
        return self.head(torch.tanh(z - z[self.row]))


@pytest.mark.parametrize("model", [Mixing, lambda: Relative(0), lambda: Relative(-1)])
def test_outputs_that_depend_on_one_row_are_refused(model: Callable[[], Any]) -> None:
    """On the first row, the first output's gradient is 0 in all other rows."""
    torch.manual_seed(0)
    built, x, y = model(), tokens(6), labels(6)
    adam, attribution = attributed(built, x, y)
    with refuses("with rows of which other samples' outputs depend"):
        step(built, adam, attribution, x, y)


# --- right loops -----------------------------------------------------------------------------------------------------


def test_a_gradient_of_the_inputs_alone_is_no_samples_pass() -> None:
    """As in adversarial training: gradients that reach no parameter have no part in p.grad."""

    class Adversarial(Loop):
        def losses(self, index: Any) -> Any:
            if self.attribution._hooks.block is not None:
                x = self.x[index].clone().requires_grad_()
                torch.autograd.grad(self.each(self.model(x), self.y[index]).sum(), x)
            return super().losses(index)

    assert_oracle_agrees(Adversarial())


def test_gradients_by_autograd_grad_are_captured() -> None:
    """A loop may ask for the gradients and put them into p.grad itself."""

    class Assigned(Loop):
        def passes(self, index: Any, captured: bool = True) -> None:
            parameters = list(self.model.parameters())
            with self.attribution.samples(index):
                found = torch.autograd.grad(self.loss(index), parameters)
            for p, gradient in zip(parameters, found, strict=True):
                p.grad = gradient

    assert_oracle_agrees(Assigned())


def test_a_layer_that_is_a_reentrant_checkpoint_is_captured() -> None:
    """Its output's own graph has no parameters; validation() runs it without."""
    plain, loop = Loop(), Loop()
    forward = loop.model[3].forward

    def checkpointed(x: Any) -> Any:
        if loop.attribution._hooks.block is None:
            return forward(x)
        return torch.utils.checkpoint.checkpoint(forward, x, use_reentrant=True)

    loop.model[3].forward = checkpointed
    for one in (plain, loop):
        one.step(torch.arange(5))
    assert np.allclose(loop.attribution.result().scores, plain.attribution.result().scores, rtol=CLOSE)


def test_a_lazy_module_is_refused() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    adam = torch.optim.AdamW(model.parameters())
    with refuses("model parameter '0.weight': got one without a shape, of a lazy module"):
        Attribution(model, adam, validation=lambda: model(torch.ones(2, 4)).mean(), n_samples=3)


@pytest.mark.parametrize("name", ["perceptron", "patches"])
def test_a_parameter_may_be_frozen_later(name: str) -> None:
    """Once the attribution began."""
    loop = Loop(name)
    first = next(iter(loop.model.parameters())) if name == "perceptron" else loop.model.positions
    first.requires_grad_(False)
    assert_oracle_agrees(loop)


def test_another_hook_may_change_the_output_of_a_layer() -> None:
    """x_i is of the layer's own output, not of what the hook made of it."""
    loop = Loop(change=lambda model: model[0].register_forward_hook(lambda module, args, output: 2 * output))
    assert_oracle_agrees(loop)


# --- copies of the model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["perceptron", "patches"])
def test_copies_of_the_model_are_not_captured(name: str) -> None:
    """By deepcopy inside a block, and by pickle."""
    loop, alone = Loop(name), Loop(name)
    for one in (loop, alone):
        index = torch.arange(5)
        with one.attribution.samples(index):
            if one is loop:
                copied = copy.deepcopy(one.model)
                one.each(copied(one.x[:3]), one.y[:3]).sum().backward()
            one.loss(index).backward()
        one.adam.step()
    assert loop.attribution.result().scores.tolist() == alone.attribution.result().scores.tolist()
    file = io.BytesIO()
    torch.save(loop.model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(loop.x), loop.model(loop.x))


def test_a_copy_inside_a_block_runs_recurrent_layers_as_they_are() -> None:
    torch.manual_seed(0)
    model, x = nn.LSTM(4, 3, batch_first=True), torch.randn(6, 2, 4)
    adam = torch.optim.AdamW(model.parameters())
    attribution = Attribution(model, adam, validation=lambda: model(x)[0].square().mean(), n_samples=6)
    with attribution.samples(range(6)):
        copied = copy.deepcopy(model)
        copied(x[:3])
        model(x)[0].square().mean().backward()
        assert copied(x[:3])[0].shape == (3, 2, 3)
    assert not attribution._hooks._listeners[0][0].__dict__.get("forward")


# --- the validation function -----------------------------------------------------------------------------------------


def edit(model: Any) -> None:
    with torch.no_grad():
        model[0].weight.add_(0.1)


EFFECTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an edit": (edit, "validation(): got a function that changed the parameter '0.weight'"),
    "freezing": (lambda model: model[0].requires_grad_(False), "that changed requires_grad of '0.weight'"),
    "freezing all": (lambda model: model.requires_grad_(False), "that changed requires_grad of '0.weight'"),
    "zero_grad": (lambda model: model.zero_grad(), "that changed the gradient of '0.weight'"),
}


@pytest.mark.parametrize("effect", EFFECTS)
def test_a_validation_function_that_changes_the_model_is_refused(effect: str) -> None:
    change, message = EFFECTS[effect]
    loop = Loop()
    plain = loop.validation

    def validation() -> Any:
        change(loop.model)
        return plain()

    object.__setattr__(loop.attribution._stack, "loss", validation)
    with refuses(message):
        loop.step(torch.arange(5))


def test_a_validation_function_with_a_backward_pass_is_refused() -> None:
    torch.manual_seed(0)
    model, x, y = MODELS["perceptron"][0](), torch.randn(6, 4), labels(6)

    def validation() -> Any:
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    adam, attribution = attributed(model, x, y, validation=validation)
    with refuses("validation(): got a function that changed the gradient of '0.weight'"):
        step(model, adam, attribution, x, y)


def test_a_validation_loss_of_another_model_is_refused() -> None:
    torch.manual_seed(0)
    model, x, y = MODELS["perceptron"][0](), torch.randn(6, 4), labels(6)
    other = copy.deepcopy(model)
    adam, attribution = attributed(model, x, y, validation=lambda: F.cross_entropy(other(x), y))
    with refuses("validation(): got a loss that depends on no parameter of the model"):
        step(model, adam, attribution, x, y)


def test_a_validation_function_may_switch_gradients_off_at_its_end() -> None:
    torch.manual_seed(0)
    model, x, y = MODELS["perceptron"][0](), torch.randn(6, 4), labels(6)

    def validation() -> Any:
        loss = F.cross_entropy(model(x), y)
        torch.set_grad_enabled(False)
        return loss

    adam, attribution = attributed(model, x, y, validation=validation)
    step(model, adam, attribution, x, y)
    assert torch.is_grad_enabled()
    assert attribution.result().scores.any()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_a_validation_loss_that_is_no_real_number_is_refused(dtype: Any) -> None:
    torch.manual_seed(0)
    model, x, y = MODELS["perceptron"][0](), torch.randn(6, 4), labels(6)
    adam, attribution = attributed(model, x, y, validation=lambda: F.cross_entropy(model(x), y).to(dtype))
    with refuses(f"validation(): got a tensor of shape () and {dtype}"):
        step(model, adam, attribution, x, y)


# --- changes on the way ----------------------------------------------------------------------------------------------


def test_steps_of_other_optimizers_are_none_of_its_business() -> None:
    loop, copied = Loop(), copy.deepcopy(Loop().model)
    others = [torch.optim.SGD(one.parameters(), lr=0.1) for one in (loop.model, copied)]
    loop.step(torch.arange(5))
    others[0].step()  # between two steps, and without gradients
    loop.passes(torch.arange(5))
    copied(loop.x).sum().backward()
    others[1].step()
    loop.adam.step()
    assert loop.attribution.result().seen.sum() == 10
    loop.adam.zero_grad()
    loop.loss(torch.arange(5)).backward()  # goes on without attribution
    others[0].step()


def test_a_parameter_taken_from_the_optimizer_is_refused() -> None:
    loop = Loop()
    loop.adam.param_groups[0]["params"].pop(0)
    with refuses("optimizer: got no parameter '0.weight' any more"):
        loop.step(torch.arange(5))


def test_a_parameter_given_to_the_optimizer_is_refused() -> None:
    loop = Loop()
    loop.model.append(nn.Linear(3, 3).double())
    loop.adam.add_param_group({"params": list(loop.model[-1].parameters())})
    with refuses("optimizer: got 2 parameters with a gradient that were frozen, or not its own, when the attribution"):
        loop.step(torch.arange(5))


def test_samples_after_detach_are_refused() -> None:
    loop = Loop()
    loop.step(torch.arange(5))
    loop.attribution.detach()
    assert loop.attribution.result().seen.sum() == 5
    with refuses("attribution.samples: got a call after detach()"):
        loop.step(torch.arange(5))


def test_an_interrupted_validation_has_its_name_in_the_next_error() -> None:
    loop = Loop()

    def validation() -> Any:
        raise KeyboardInterrupt

    object.__setattr__(loop.attribution._stack, "loss", validation)
    with pytest.raises(KeyboardInterrupt):
        loop.step(torch.arange(5))
    with refuses("got a loop that was refused before (KeyboardInterrupt)"):
        loop.step(torch.arange(5))


def test_gradients_of_an_interrupted_block_need_zero_grad() -> None:
    """Else they would pass for a factor, if the next samples are the same."""

    def interrupt(loop: Loop) -> None:
        with loop.attribution.samples(torch.arange(5)):
            loop.loss(torch.arange(5)).backward()
            raise KeyboardInterrupt

    loop = Loop()
    with pytest.raises(KeyboardInterrupt):
        interrupt(loop)
    loop.adam.zero_grad()
    loop.step(torch.arange(5))
    assert loop.attribution.result().seen.sum() == 5
    with pytest.raises(KeyboardInterrupt):
        interrupt(loop)
    with refuses("optimizer.step: got a backward pass outside `samples`, which reached"):
        loop.step(torch.arange(5))


@pytest.mark.parametrize("index", [[[0], [1, 2]], {0, 1}, slice(0, 2), None])
def test_an_index_that_is_no_list_of_numbers_is_refused(index: Any) -> None:
    loop = Loop()
    with refuses(f"index: got {index!r}; needs the numbers"), loop.attribution.samples(index):
        pass


def test_a_part_of_a_state_is_refused() -> None:
    attribution = Loop().attribution
    state = attribution.state_dict()
    state.pop("totals")
    with refuses("needs the state_dict() of an Attribution"):
        attribution.load_state_dict(state)


@pytest.mark.parametrize("row", [0, -1])
def test_losses_that_depend_on_one_sample_are_refused_in_forward_mode(row: int) -> None:
    torch.manual_seed(0)
    model, x, y = Relative(row), tokens(6), labels(6)
    adam, attribution = attributed(model, x, y, contraction="forward", slope="secant")

    def losses() -> Any:
        return F.cross_entropy(model(x), y, reduction="none")

    with attribution.samples(range(6), losses):
        losses().sum().backward()
    with refuses("sample's loss needs other samples' parts"):
        adam.step()


def test_gradients_by_torch_func_are_refused() -> None:
    loop, index = Loop(), torch.arange(5)
    parameters = dict(loop.model.named_parameters())
    with loop.attribution.samples(index):
        found = torch.func.grad(
            lambda given: loop.each(
                torch.func.functional_call(loop.model, given, (loop.x[index],)), loop.y[index]
            ).sum()
        )(parameters)
    for name, p in parameters.items():
        p.grad = found[name]
    with refuses("without a backward pass; needs forward and backward pass inside, without torch.func"):
        loop.adam.step()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, while it compiles
def test_compiled_code_leaves_the_scores_to_python() -> None:
    """optimizer.step may be compiled; Dynamo would trace into the attribution."""
    loop, plain = Loop(dtype=torch.float32), Loop(dtype=torch.float32)
    compiled = torch.compile(loop.adam.step, backend="eager")
    for one, step in ((loop, compiled), (plain, plain.adam.step)):
        one.passes(torch.arange(5))
        step()
    assert loop.attribution.result().scores.tolist() == plain.attribution.result().scores.tolist()


def test_an_attribution_takes_its_hooks_along() -> None:
    model = MODELS["perceptron"][0]()
    adam = torch.optim.AdamW(model.parameters())
    for _ in range(3):  # as in a notebook, whose cell runs again
        attribution = Attribution(model, adam, validation=lambda: model(torch.ones(2, 4)).mean(), n_samples=3)
    gc.collect()
    counts = [len(hooks) for hooks in (model[0]._forward_hooks, adam._optimizer_step_pre_hooks)]
    assert counts == [1, 1]
    assert attribution.result().seen.sum() == 0
