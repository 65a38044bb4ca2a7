"""Recurrent layers, step by step: PyTorch runs each layer by one kernel, in which no hook sees a step.

With z_t = W x_t + p and r_t = U h_{t−1} + q, x_i of W is Σ_t ∂ℓ/∂z_t x_tᵀ, and that of U is Σ_t ∂ℓ/∂r_t h_{t−1}ᵀ.
All z_t are one product. The gradients in all r_t arrive together, as the gradient in an array of zeros (n, T, …), of
which each r_t adds its step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from adamshap.torch.layers.rewrites import Recorder, rewrite

State = tuple[torch.Tensor, ...]
"""(h,), or (h, c) of an LSTM, each (n, width)."""

Step = Callable[[torch.Tensor, torch.Tensor, State], State]


def _lstm(z: torch.Tensor, r: torch.Tensor, state: State) -> State:
    enter, forget, new, leave = (z + r).chunk(4, 1)
    c = forget.sigmoid() * state[1] + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * c.tanh(), c


def _gru(z: torch.Tensor, r: torch.Tensor, state: State) -> State:
    (z_reset, z_update, z_new), (r_reset, r_update, r_new) = z.chunk(3, 1), r.chunk(3, 1)
    new = (z_new + (z_reset + r_reset).sigmoid() * r_new).tanh()
    return (new + (z_update + r_update).sigmoid() * (state[0] - new),)


def _tanh(z: torch.Tensor, r: torch.Tensor, state: State) -> State:
    return ((z + r).tanh(),)


def _relu(z: torch.Tensor, r: torch.Tensor, state: State) -> State:
    return ((z + r).relu(),)


STEPS: dict[str, Step] = {"LSTM": _lstm, "GRU": _gru, "RNN_TANH": _tanh, "RNN_RELU": _relu}


@rewrite(nn.LSTMCell, nn.GRUCell, nn.RNNCell)
def _cell(recorder: Recorder, input: torch.Tensor, hx: Any = None) -> Any:
    """Return h, or (h, c) of an LSTM, after one step."""
    module = recorder.module
    is_lstm = isinstance(module, nn.LSTMCell)
    kind = "LSTM" if is_lstm else "GRU" if isinstance(module, nn.GRUCell) else f"RNN_{module.nonlinearity.upper()}"
    if hx is None:
        hx = (input.new_zeros(len(input), module.hidden_size),) * 2
    state = tuple(hx) if isinstance(hx, tuple | list) else (hx,)
    for x in (input, *state):
        recorder.refuse_input(x, 0, 2)
    z = recorder.linear(input, "weight_ih", "bias_ih")
    r = recorder.linear(state[0], "weight_hh", "bias_hh")
    new = STEPS[kind](z, r, state)
    return new if is_lstm else new[0]


@rewrite(nn.LSTM, nn.GRU, nn.RNN)
def _layers(recorder: Recorder, input: Any, hx: Any = None) -> Any:
    """Return the outputs of all steps and the last state, as the module does.

    On the CPU, dropout between layers draws the same random numbers: it is applied to an array of the same shape.
    """
    module, is_lstm = recorder.module, isinstance(recorder.module, nn.LSTM)
    packing = _Packing.of(input) if isinstance(input, PackedSequence) else None
    if packing is not None:
        x = packing.padded
    else:
        recorder.refuse_input(input, 0 if module.batch_first else 1, 3)
        x = input if module.batch_first else input.transpose(0, 1)
    recorder.refuse_input(x, 0, 3)
    if torch.is_autocast_enabled(x.device.type):  # step by step, gradients of a weight would add up in a low dtype
        needs = "float32 there: `with torch.autocast(…, enabled=False):` around its call, and a float32 input"
        recorder.refuse("a call under autocast", needs)
    count = module.num_layers * (2 if module.bidirectional else 1)
    if hx is None:
        states = [_zeros(module, x) for _ in range(count)]
    else:
        sizes = None if packing is None else packing.packed.batch_sizes
        module.check_forward_args(input if packing is None else input.data, hx, sizes)
        states = list(zip(*hx, strict=True)) if is_lstm else [(h,) for h in hx]
    last: list[State] = []
    for layer in range(module.num_layers):
        if layer and module.dropout and module.training:
            x = _with_dropout(x, module.dropout, packing)
        outputs = []
        for suffix in (f"_l{layer}", f"_l{layer}_reverse")[: 2 if module.bidirectional else 1]:
            steps, state = _one_direction(recorder, x, states[len(last)], suffix, packing)
            outputs.append(steps)
            last.append(state)
        x = (torch.cat(outputs, 2) if module.bidirectional else outputs[0]).transpose(0, 1)
    output: Any = x if module.batch_first else x.transpose(0, 1)
    if packing is not None:
        output = packing.packed_again(x)
    hidden = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
    return output, hidden if is_lstm else hidden[0]


def _zeros(module: Any, x: torch.Tensor) -> State:
    c = x.new_zeros(len(x), module.hidden_size)
    if module.mode != "LSTM":
        return (c,)
    return (x.new_zeros(len(x), module.proj_size) if module.proj_size else c), c


def _one_direction(
    recorder: Recorder, x: torch.Tensor, state: State, suffix: str, packing: "_Packing | None"
) -> tuple[torch.Tensor, State]:
    """Return the outputs (T, n, …) of one layer in one direction, and its last state."""
    module, positions = recorder.module, x.shape[1]
    step = STEPS[module.mode]
    of_inputs, of_hidden = (f"bias_{kind}{suffix}" if module.bias else None for kind in ("ih", "hh"))
    z = recorder.linear(x, f"weight_ih{suffix}", of_inputs).unbind(1)
    recurrent = _AtEachStep(recorder, f"weight_hh{suffix}", of_hidden, x, positions)
    projected = None
    if getattr(module, "proj_size", 0):
        projected = _AtEachStep(recorder, f"weight_hr{suffix}", None, x, positions)
    outputs = [x] * positions
    for t in reversed(range(positions)) if suffix.endswith("_reverse") else range(positions):
        new = step(z[t], recurrent(t, state[0]), state)
        if projected is not None:
            new = (projected(t, new[0]), *new[1:])
        if packing is not None:  # a sample whose sequence has not begun, or is over, keeps its state
            here = packing.inside[:, t, None]
            new = tuple(torch.where(here, one, old) for one, old in zip(new, state, strict=True))
        state, outputs[t] = new, new[0]
    for used in (recurrent, projected):
        if used is not None:
            used.record()
    return torch.stack(outputs), state


class _AtEachStep:
    """One linear map at each step, recorded as a single use with T positions."""

    def __init__(self, recorder: Recorder, weight: str, bias: str | None, x: torch.Tensor, positions: int) -> None:
        self.recorder, self.weight, self.bias = recorder, weight, bias
        self.w = recorder.parameter(weight)
        self.p = None if bias is None else recorder.parameter(bias)
        zero = x.new_zeros((), requires_grad=torch.is_grad_enabled())
        self.zeros = zero.expand(len(x), positions, len(self.w))
        self.at_step: Sequence[torch.Tensor] = self.zeros.unbind(1)
        self.inputs = [x] * positions

    def __call__(self, t: int, h: torch.Tensor) -> torch.Tensor:
        """Return ``U h + q`` at step t."""
        self.inputs[t] = h.detach()
        return functional.linear(h, self.w, self.p) + self.at_step[t]

    def record(self) -> None:
        """Record the use, after the last step."""
        if self.zeros.requires_grad:
            self.recorder.record_linear(self.zeros, torch.stack(self.inputs, 1), self.weight, self.bias)


@dataclass(frozen=True)
class _Packing:
    """A packed sequence as one row for each sample.

    Parameters
    ----------
    packed : PackedSequence
    padded : tensor (n, T, d)
        In the order of the samples, not in that of their lengths.
    inside : bool tensor (n, T)
        Where the sequences are.
    places : tuple of integer tensors
        Row and step of each element of ``packed.data``.
    """

    packed: PackedSequence
    padded: torch.Tensor
    inside: torch.Tensor
    places: tuple[torch.Tensor, torch.Tensor] = field(repr=False)

    @staticmethod
    def of(packed: PackedSequence) -> "_Packing":
        """Return the packing of a sequence."""
        padded, lengths = pad_packed_sequence(packed, batch_first=True)
        steps = torch.arange(padded.shape[1])
        order = packed.sorted_indices
        if order is None:
            order = torch.arange(len(padded), device=padded.device)
        rows = torch.cat([order[:size] for size in packed.batch_sizes.tolist()])
        places = rows, torch.repeat_interleave(steps, packed.batch_sizes).to(padded.device)
        return _Packing(packed, padded, (steps < lengths[:, None]).to(padded.device), places)

    def data(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (n, T, d) in the order of ``packed.data``."""
        return x[self.places]

    def packed_again(self, x: torch.Tensor) -> PackedSequence:
        """Return x (n, T, d), packed."""
        return PackedSequence(
            self.data(x), self.packed.batch_sizes, self.packed.sorted_indices, self.packed.unsorted_indices
        )


def _with_dropout(x: torch.Tensor, p: float, packing: _Packing | None) -> torch.Tensor:
    """Return x (n, T, d) after dropout, with random numbers in the order of memory: steps first, or packed."""
    if packing is None:
        return functional.dropout(x, p)
    data = functional.dropout(packing.data(x), p)
    return x.new_zeros(x.shape).index_put(packing.places, data)
