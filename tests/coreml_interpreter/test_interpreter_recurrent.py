"""Recurrent layers next to PyTorch's, random numbers, and what moves between batch and space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobile_o_export.backends.coreml.interpreter import Interpreter, Rounding, load_mlpackage

mb = pytest.importorskip("coremltools.converters.mil").Builder

STEPS, BATCH, INPUTS, HIDDEN = 5, 3, 4, 6
RNG = np.random.default_rng(0)
X = RNG.normal(size=(STEPS, BATCH, INPUTS)).astype(np.float32)
H, C = (RNG.normal(size=(BATCH, HIDDEN)).astype(np.float32) for _ in range(2))


@pytest.fixture
def evaluated(build_program: Any, save_program: Any, tmp_path: Path) -> Any:
    """All that an operator makes of inputs, in a package of its own."""

    def run(operator: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        path = tmp_path / "one.mlpackage"
        save_program(build_program(inputs, {"it": operator}), path)
        function = load_mlpackage(path).functions["main"]
        outputs = Interpreter(function, component="one", rounding=Rounding.FP32).run(inputs)
        return [np.asarray(outputs[f"out_it_{place}"]) for place in range(len(outputs))]

    return run


def close(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def weights(layer: torch.nn.Module, order: list[int], suffix: str = "") -> dict[str, np.ndarray]:
    """A layer's weights, its gates in Core ML's ``order``."""

    def ordered(name: str) -> np.ndarray:
        value = layer.state_dict()[f"{name}_l0{suffix}"].numpy()
        return np.concatenate([np.split(value, len(order))[gate] for gate in order])

    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return {name: ordered(name) for name in names}


def by_torch(
    layer: torch.nn.Module, direction: str, *states: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    given = torch.from_numpy(X).flip(0) if direction == "reverse" else torch.from_numpy(X)
    first = tuple(torch.from_numpy(state)[None] for state in states)
    with torch.no_grad():
        outputs, last = layer(given, first if len(first) > 1 else first[0])
    last = last if isinstance(last, tuple) else (last,)
    return outputs.numpy(), [state[0].numpy() for state in last]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("whole", [True, False])
def test_rnn(evaluated: Any, direction: str, whole: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.RNN(INPUTS, HIDDEN)
    own = weights(layer, [0])
    found = evaluated(
        lambda x, h: mb.rnn(
            x=x,
            initial_h=h,
            weight_ih=own["weight_ih"],
            weight_hh=own["weight_hh"],
            bias=own["bias_ih"] + own["bias_hh"],
            direction=direction,
            output_sequence=whole,
        ),
        {"x": X, "h": H},
    )
    outputs, last = by_torch(layer, direction, H)
    close(found, [outputs if whole else outputs[-1:], *last])


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("whole", [True, False])
def test_lstm(evaluated: Any, direction: str, whole: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.LSTM(INPUTS, HIDDEN)
    own = weights(layer, [0, 1, 3, 2])
    found = evaluated(
        lambda x, h, c: mb.lstm(
            x=x,
            initial_h=h,
            initial_c=c,
            weight_ih=own["weight_ih"],
            weight_hh=own["weight_hh"],
            bias=own["bias_ih"] + own["bias_hh"],
            direction=direction,
            output_sequence=whole,
        ),
        {"x": X, "h": H, "c": C},
    )
    outputs, last = by_torch(layer, direction, H, C)
    close(found, [outputs if whole else outputs[-1:], *last])


@pytest.mark.parametrize("whole", [True, False])
def test_lstm_in_both_directions(evaluated: Any, whole: bool) -> None:
    torch.manual_seed(0)
    layer = torch.nn.LSTM(INPUTS, HIDDEN, bidirectional=True)
    on, back = (weights(layer, [0, 1, 3, 2], suffix) for suffix in ("", "_reverse"))
    both = {name: np.concatenate([state, -state], axis=1) for name, state in (("h", H), ("c", C))}
    found = evaluated(
        lambda x, h, c: mb.lstm(
            x=x,
            initial_h=h,
            initial_c=c,
            weight_ih=on["weight_ih"],
            weight_hh=on["weight_hh"],
            bias=on["bias_ih"] + on["bias_hh"],
            weight_ih_back=back["weight_ih"],
            weight_hh_back=back["weight_hh"],
            bias_back=back["bias_ih"] + back["bias_hh"],
            direction="bidirectional",
            output_sequence=whole,
        ),
        {"x": X, **both},
    )
    states = tuple(torch.from_numpy(np.stack([state, -state])) for state in (H, C))
    with torch.no_grad():
        outputs, last = layer(torch.from_numpy(X), states)
    sequence = outputs.numpy()
    if not whole:
        sequence = np.concatenate([sequence[-1:, :, :HIDDEN], sequence[:1, :, HIDDEN:]], axis=2)
    close(found, [sequence, *(np.concatenate(list(state.numpy()), axis=1) for state in last)])


def test_lstm_clips_its_cell_and_peeps_into_it(evaluated: Any) -> None:
    torch.manual_seed(0)
    own = weights(torch.nn.LSTM(INPUTS, HIDDEN, bias=True), [0, 1, 3, 2])
    peeps = RNG.normal(size=3 * HIDDEN).astype(np.float32)
    found = evaluated(
        lambda x, h, c: mb.lstm(
            x=x,
            initial_h=h,
            initial_c=c,
            weight_ih=own["weight_ih"],
            weight_hh=own["weight_hh"],
            peephole=peeps,
            clip=np.float32(0.25),
            cell_activation="relu",
            activation="linear",
        ),
        {"x": X, "h": H, "c": C},
    )
    hidden, cell = H.astype(np.float64), C.astype(np.float64)
    p_i, p_f, p_o = np.split(peeps.astype(np.float64), 3)

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    for x in X.astype(np.float64):
        i, f, o, z = np.split(x @ own["weight_ih"].T + hidden @ own["weight_hh"].T, 4, axis=1)
        cell = sigmoid(f + p_f * cell) * cell + sigmoid(i + p_i * cell) * np.maximum(z, 0)
        cell = np.clip(cell, -0.25, 0.25)
        hidden = sigmoid(o + p_o * cell) * cell
    close(found, [hidden[None], hidden, cell])


@pytest.mark.parametrize("after", [False, True])
def test_gru(evaluated: Any, after: bool) -> None:
    """PyTorch's resets after the product; before it, the one of coremltools' own test."""
    torch.manual_seed(0)
    layer = torch.nn.GRU(INPUTS, HIDDEN)
    own = weights(layer, [0, 2, 1])
    biases = (
        {"bias": own["bias_hh"], "input_bias": own["bias_ih"], "reset_after": True}
        if after
        else {"bias": own["bias_hh"]}
    )
    found = evaluated(
        lambda x, h: mb.gru(
            x=x,
            initial_h=h,
            weight_ih=own["weight_ih"],
            weight_hh=own["weight_hh"],
            output_sequence=True,
            **biases,
        ),
        {"x": X, "h": H},
    )
    if after:
        outputs, last = by_torch(layer, "forward", H)
        close(found, [outputs, *last])
        return
    hidden, steps = H.astype(np.float64), []
    (w_r, w_o, w_z), (u_r, u_o, u_z) = (
        np.split(own[n].astype(np.float64), 3) for n in ("weight_ih", "weight_hh")
    )
    b_r, b_o, b_z = np.split(own["bias_hh"].astype(np.float64), 3)
    for x in X.astype(np.float64):
        reset = 1 / (1 + np.exp(-(x @ w_r.T + hidden @ u_r.T + b_r)))
        update = 1 / (1 + np.exp(-(x @ w_z.T + hidden @ u_z.T + b_z)))
        out = np.tanh(x @ w_o.T + (reset * hidden) @ u_o.T + b_o)
        hidden = (1 - update) * out + update * hidden
        steps.append(hidden)
    close(found, [np.stack(steps), hidden])


# --- moved about ---


@pytest.mark.parametrize(("along", "across"), [(0, 1), (1, 0), (2, 0), (0, 2)])
def test_sequences_reversed_as_far_as_they_go(evaluated: Any, along: int, across: int) -> None:
    x = RNG.normal(size=(3, 4, 5)).astype(np.float32)
    lengths = np.array([0, 2, x.shape[along], 1, 3][: x.shape[across]], np.int32)
    (found,) = evaluated(
        lambda x, n: mb.reverse_sequence(x=x, lengths=n, seq_axis=along, batch_axis=across),
        {"x": x, "n": lengths},
    )
    wanted = x.copy()
    for place, length in enumerate(lengths):
        part = [slice(None)] * 3
        part[across], part[along] = slice(place, place + 1), slice(0, length)
        wanted[tuple(part)] = np.flip(x[tuple(part)], along)
    np.testing.assert_array_equal(found, wanted)


def test_space_to_batch_and_back(evaluated: Any) -> None:
    x = np.arange(2 * 1 * 3 * 5, dtype=np.float32).reshape(2, 1, 3, 5)
    block, pads = np.array([2, 3], np.int32), np.array([[1, 0], [0, 1]], np.int32)

    def both(x: Any) -> Any:
        there = mb.space_to_batch(x=x, block_shape=block, paddings=pads)
        return there, mb.batch_to_space(x=there, block_shape=block, crops=pads)

    there, back = evaluated(both, {"x": x})
    padded = np.pad(x, ((0, 0), (0, 0), (1, 0), (0, 1)))
    # Offsets first, then pictures.
    wanted = np.concatenate([padded[:, :, i::2, j::3] for i in range(2) for j in range(3)])
    np.testing.assert_array_equal(there, wanted)
    np.testing.assert_array_equal(back, x)


# --- by chance ---


def test_random_numbers_are_of_their_distribution_and_repeat_by_their_seed(evaluated: Any) -> None:
    shape, logits = [40, 50], np.log(np.array([[0.1, 0.2, 0.7], [0.5, 0.5, 1e-9]], np.float32))

    def all_kinds(x: Any) -> Any:
        return (
            mb.random_uniform(shape=shape, low=-1.0, high=3.0, seed=1),
            mb.random_uniform(shape=shape, low=-1.0, high=3.0, seed=1),
            mb.random_uniform(shape=shape, low=-1.0, high=3.0),
            mb.random_normal(shape=shape, mean=2.0, stddev=0.5, seed=1),
            mb.random_bernoulli(shape=shape, prob=0.3, seed=1),
            mb.random_categorical(x=x, size=2000, seed=1),
        )

    uniform, again, other, normal, bernoulli, classes = evaluated(all_kinds, {"x": logits})
    assert np.array_equal(uniform, again)
    assert not np.array_equal(uniform, other)
    assert (uniform >= -1).all()
    assert (uniform < 3).all()
    assert abs(uniform.mean() - 1) < 0.1
    assert abs(normal.mean() - 2) < 0.05
    assert abs(normal.std() - 0.5) < 0.05
    assert set(np.unique(bernoulli)) == {0.0, 1.0}
    assert abs(bernoulli.mean() - 0.3) < 0.04
    shares = [(classes[0] == kind).mean() for kind in range(3)]
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.7], atol=0.04)
    assert 2 not in classes[1]
