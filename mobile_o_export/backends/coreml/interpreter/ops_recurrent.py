"""Recurrent layers (defs/iOS15/recurrent.py, defs/iOS18/recurrent.py): x [steps, batch, inputs].

``direction="reverse"`` goes through the steps from the last on, and gives its outputs in that order; of
``"bidirectional"`` each step's two outputs stand side by side. So do coremltools' tests have it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mobile_o_export.backends.coreml.interpreter.registry import Call, Result, implements

Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""(one step of x, states) → states; the first is what the step gives."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "scaled_tanh": lambda x: 1.7159 * torch.tanh(2 / 3 * x),
    "sigmoid": torch.sigmoid,
    "hard_sigmoid": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "sigmoid_hard": lambda x: (0.2 * x + 0.5).clamp(0, 1),
    "relu": torch.relu,
    "linear": lambda x: x,
}


def _activation(call: Call, name: str, default: str) -> Callable[[Tensor], Tensor]:
    chosen = call.text(name, default)
    if chosen.lower() not in _ACTIVATIONS:
        raise call.unsupported(f"{name} {chosen!r}")
    return _ACTIVATIONS[chosen.lower()]


def _run(step: Step, x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Every step's output [steps, batch, H], and the last states."""
    outputs = []
    for given in x:
        states = step(given, states)
        outputs.append(states[0])
    return torch.stack(outputs), states


def _one_way(call: Call, step: Step, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    direction, x = call.text("direction", "forward"), call.tensor("x")
    if direction not in ("forward", "reverse"):
        raise call.unsupported(f"direction {direction!r}")
    outputs, states = _run(step, x.flip(0) if direction == "reverse" else x, states)
    return (outputs if call.flag("output_sequence", False) else outputs[-1:], *states)


@implements("rnn", "x initial_h weight_ih weight_hh", "bias direction output_sequence activation")
def _rnn(call: Call) -> Result:
    activation, bias = _activation(call, "activation", "tanh"), call.optional("bias")
    inner, outer = call.tensor("weight_ih"), call.tensor("weight_hh")

    def step(x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (activation(functional.linear(x, inner, bias) + functional.linear(states[0], outer)),)

    return _one_way(call, step, (call.tensor("initial_h"),))


@implements(
    "gru",
    "x initial_h weight_ih weight_hh",
    "bias direction output_sequence recurrent_activation activation reset_after input_bias",
)
def _gru(call: Call) -> Result:
    """Gates in the order reset, output, update.

    The reset gate works on the hidden state before its product, as coremltools' test has it and its
    documentation has not; with ``reset_after``, from iOS 18 on, on the product with its ``bias`` (PyTorch's).
    """
    gate, activation = (
        _activation(call, "recurrent_activation", "sigmoid"),
        _activation(call, "activation", "tanh"),
    )
    inner, outer = call.tensor("weight_ih"), call.tensor("weight_hh")
    zeros = torch.zeros(outer.shape[0])
    bias, input_bias = (
        zeros if (found := call.optional(n)) is None else found for n in ("bias", "input_bias")
    )
    _, outer_out, _ = outer.chunk(3)
    after = call.flag("reset_after", False)

    def step(x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (hidden,) = states
        given = functional.linear(x, inner, input_bias).chunk(3, -1)
        kept = functional.linear(hidden, outer, bias).chunk(3, -1)
        reset, update = gate(given[0] + kept[0]), gate(given[2] + kept[2])
        if after:
            out = activation(given[1] + reset * kept[1])
        else:
            out = activation(given[1] + functional.linear(reset * hidden, outer_out, bias.chunk(3)[1]))
        return ((1 - update) * out + update * hidden,)

    return _one_way(call, step, (call.tensor("initial_h"),))


def _lstm_step(call: Call, suffix: str) -> Step:
    """Gates in the order input, forget, output, cell."""
    gate = _activation(call, "recurrent_activation", "sigmoid")
    cell_activation, activation = (_activation(call, n, "tanh") for n in ("cell_activation", "activation"))
    inner, outer = call.tensor(f"weight_ih{suffix}"), call.tensor(f"weight_hh{suffix}")
    bias, peephole = call.optional(f"bias{suffix}"), call.optional(f"peephole{suffix}")
    peeps = torch.zeros(3 * outer.shape[1]) if peephole is None else peephole
    of_input, of_forget, of_output = peeps.chunk(3)
    clip = call.number("clip", float("inf"))

    def step(x: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, cell = states
        gates = functional.linear(x, inner, bias) + functional.linear(hidden, outer)
        i, f, o, z = gates.chunk(4, -1)
        cell = gate(f + of_forget * cell) * cell + gate(i + of_input * cell) * cell_activation(z)
        cell = cell.clamp(-clip, clip)
        return gate(o + of_output * cell) * activation(cell), cell

    return step


@implements(
    "lstm",
    "x initial_h initial_c weight_ih weight_hh",
    "bias peephole weight_ih_back weight_hh_back bias_back peephole_back direction output_sequence "
    "recurrent_activation cell_activation activation clip",
)
def _lstm(call: Call) -> Result:
    hidden, cell = call.tensor("initial_h"), call.tensor("initial_c")
    if call.text("direction", "forward") != "bidirectional":
        return _one_way(call, _lstm_step(call, ""), (hidden, cell))
    x, whole = call.tensor("x"), call.flag("output_sequence", False)
    (hidden_on, hidden_back), (cell_on, cell_back) = hidden.chunk(2, -1), cell.chunk(2, -1)
    on, ended_on = _run(_lstm_step(call, ""), x, (hidden_on, cell_on))
    back, ended_back = _run(_lstm_step(call, "_back"), x.flip(0), (hidden_back, cell_back))
    outputs = (on, back.flip(0)) if whole else (on[-1:], back[-1:])
    ended = (torch.cat(pair, -1) for pair in zip(ended_on, ended_back, strict=True))
    return (torch.cat(outputs, -1), *ended)
