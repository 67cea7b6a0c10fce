"""How much error each weight at each precision causes at its component's outputs, on a golden's inputs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from mobile_o_export.components import building
from mobile_o_export.compression.activations import Statistics, layers, quantize_inputs, scale_inputs
from mobile_o_export.compression.check import require_near
from mobile_o_export.compression.compress import compress, weights_of
from mobile_o_export.compression.form import Form
from mobile_o_export.errors import GateError
from mobile_o_export.precision import Activations, Precision
from mobile_o_export.progress import Say
from mobile_o_export.quiet import quiet_vendor
from mobile_o_export.reference import TorchRunner
from mobile_o_export.strict import parse_json
from mobile_o_export.tensors import DType

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.components.base import Component, GraphOptions
    from mobile_o_export.golden import Golden
    from mobile_o_export.golden.store import Case

VERSION = 4
"""Of how sensitivities are measured: another one makes those of before invalid."""

FEW = 4
"""Cases of each function that a single weight's error is measured on; a whole allocation's is on all."""

Noise = Mapping[str, float]
"""Noise power over signal power by output, ``function.output``: of a golden's worst call, as gates go."""

NOT_FINITE = 1e30
"""The noise of what is not a number, or not a form that an export lets pass: worse than any other."""


def worst(noise: Noise) -> float:
    """Of the output that suffers most."""
    return max(noise.values(), default=0.0)


@dataclass(frozen=True)
class Option:
    """One weight at one precision.

    Attributes:
        size_bytes: what it takes.
        noise: what it alone adds.
    """

    precision: Precision
    size_bytes: int
    noise: Noise


class Bench:
    """A component in PyTorch as a target's files compute it, whose weights can be swapped.

    Args:
        component: what is measured.
        checkpoint: its weights.
        options: how the target prepares it.
        golden: the inputs, and what should come of them.
        statistics: of its layers, for precisions whose activations are calibrated.
    """

    def __init__(
        self,
        component: Component,
        checkpoint: Checkpoint,
        options: GraphOptions,
        golden: Golden,
        statistics: Statistics,
    ) -> None:
        # fp16 on a CPU is slow, and its rounding is not what is looked for.
        options = replace(options, compute_dtype=DType.FLOAT32)
        with quiet_vendor():
            self.module: nn.Module = building.prepare(component, component.load(checkpoint), options)
        self._runner = TorchRunner(component.reference(self.module, checkpoint))
        self._golden = golden
        self._statistics = statistics
        self._layers = layers(self.module)
        self._cases = golden.cases(component.name)
        self.weights: Mapping[str, nn.Parameter] = dict(weights_of(self.module))
        self.others = sum(p.numel() for p in self.module.parameters()) - sum(
            weight.numel() for weight in self.weights.values()
        )
        self._base = {few: self._measured(few=few) for few in (False, True)}

    def noise(self, *, few: bool = False) -> Noise:
        """Of the module as it is now, less what it has with its own weights.

        Args:
            few: on ``FEW`` cases of each function instead of all of the golden's.
        """
        now = self._measured(few=few)
        return {
            output: max(0.0, value - self._base[few][output]) if math.isfinite(value) else NOT_FINITE
            for output, value in now.items()
        }

    @contextmanager
    def swapped(self, forms: Mapping[str, Form]) -> Iterator[None]:
        """The module with the weights named in ``forms`` restored from them, and inputs rounded likewise.

        Raises:
            GateError: a weight is further from its source than its precision can excuse.
        """
        own = {name: self.weights[name].data for name in forms}
        rounded = []
        try:
            for name, form in forms.items():
                compressed = compress(name, own[name].float().numpy(), form)
                restored = compressed.restored()
                require_near(compressed, compressed.pieces(), name)
                self.weights[name].data = torch.from_numpy(restored).to(own[name].dtype)
                if handle := self._round_inputs(name, form.precision):
                    rounded.append(handle)
            yield
        finally:
            for handle in rounded:
                handle.remove()
            for name, data in own.items():
                self.weights[name].data = data

    def _round_inputs(self, weight: str, precision: Precision) -> RemovableHandle | None:
        """What has the layer of ``weight`` compute with integers, where it does at ``precision``."""
        layer, known = self._layers.get(weight), self._statistics.get(weight)
        if layer is None:
            return None
        if precision.activations is Activations.DYNAMIC:
            return scale_inputs(layer)
        bits = precision.calibrated_bits
        if bits and known and known.positions:
            return quantize_inputs(layer, known.inputs.scale(bits), bits)
        return None

    def _measured(self, *, few: bool) -> dict[str, float]:
        worst_call: dict[str, float] = {}
        for case in _spread(self._cases) if few else self._cases:
            for step in case.steps:
                outputs = self._runner.run(step.function, self._golden.inputs(step))
                for name, key in step.outputs.items():
                    wanted = self._golden.tensor(key).astype(np.float64)
                    signal = float(np.square(wanted).sum())
                    noise = float(np.square(outputs[name] - wanted).sum())
                    # An output that is all zero says nothing of a relative error.
                    if signal > 0:
                        output, relative = f"{step.function}.{name}", noise / signal
                        worst_call[output] = float(np.maximum(worst_call.get(output, 0.0), relative))
        return worst_call


def _spread(cases: Sequence[Case]) -> list[Case]:
    """``FEW`` cases that begin with each function, evenly over their order: a DiT's from all timesteps."""
    by_function: dict[str, list[Case]] = {}
    for case in cases:
        by_function.setdefault(case.steps[0].function, []).append(case)
    return [
        own[index * len(own) // min(FEW, len(own))]
        for own in by_function.values()
        for index in range(min(FEW, len(own)))
    ]


class Sensitivities:
    """Measured sensitivities in a file of JSON lines, so that a later run goes on and nothing is done twice.

    A line is valid for the same bytes of the same weight, in the same component on the same golden; a run
    that was interrupted leaves at most its last line unfinished.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Noise] = {}
        if path.is_file():
            content = path.read_text(encoding="utf-8", errors="replace")
            if content and not content.endswith("\n"):
                # Cut off in the middle of a line: the next one must not continue it.
                self._append("\n")
            for line in content.splitlines():
                try:
                    entry = parse_json(line)
                    self._known[entry["key"]] = {str(k): float(v) for k, v in entry["noise"].items()}
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue

    def get(self, key: str) -> Noise | None:
        """What was measured under ``key``."""
        return self._known.get(key)

    def add(self, key: str, component: str, weight: str, precision: Precision, noise: Noise) -> None:
        """Keeps a measurement; names are for readers."""
        self._known[key] = noise
        entry = {
            "key": key,
            "component": component,
            "weight": weight,
            "precision": str(precision),
            "noise": noise,
        }
        self._append(json.dumps(entry) + "\n")

    def _append(self, text: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text)


@dataclass(frozen=True)
class Question:
    """How much error one weight at one precision causes.

    Attributes:
        weight: its name.
        candidate: as it was offered.
        form: how the weight is stored at it.
        key: of the answer among sensitivities.
    """

    weight: str
    candidate: Precision
    form: Form
    key: str


def questions(
    bench: Bench, component: str, golden: Golden, candidates: Sequence[Precision]
) -> Iterator[Question]:
    """One for each weight of ``component`` and each of ``candidates`` that makes it smaller, by weight."""
    for name, weight in bench.weights.items():
        shape = tuple(weight.shape)
        digest = sha256(weight.detach().contiguous().numpy().tobytes()).hexdigest()
        for candidate in candidates:
            form = Form.saving(candidate, shape)
            if form is not None:
                content = (
                    f"{component} {name} {golden.index.sha256} {digest} {shape} {form.precision} {VERSION}"
                )
                yield Question(name, candidate, form, sha256(content.encode()).hexdigest())


def answer(bench: Bench, question: Question) -> Noise:
    """What the weight alone adds, on ``FEW`` cases of each function."""
    try:
        with bench.swapped({question.weight: question.form}):
            return bench.noise(few=True)
    except GateError:
        return {"weight": NOT_FINITE}


def measure_options(
    bench: Bench,
    component: str,
    floating: Precision,
    asked: Sequence[Question],
    known: Sensitivities,
    say: Say,
) -> dict[str, tuple[Option, ...]]:
    """For each weight its options: floating point, and those asked for that an export would let pass."""
    found = {
        name: [Option(floating, weight.numel() * floating.weight_bits // 8, {})]
        for name, weight in bench.weights.items()
    }
    for index, question in enumerate(asked):
        noise = known.get(question.key)
        if noise is None:
            say(f"{question.candidate} of a weight, {index + 1} of {len(asked)}")
            noise = answer(bench, question)
            known.add(question.key, component, question.weight, question.form.precision, noise)
        if worst(noise) < NOT_FINITE:
            found[question.weight].append(Option(question.candidate, question.form.size_bytes, noise))
    return {name: tuple(options) for name, options in found.items()}
