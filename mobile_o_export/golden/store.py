"""The golden folder: ``golden.json`` and one safetensors file a component. Reading it needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from mobile_o_export.components.base import FunctionSpec
from mobile_o_export.errors import GoldenError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.strict import Strict, read_json

INDEX = "golden.json"
SCHEMA = 1


class Step(Strict):
    """One call of a case: which stored tensor each input and each compared output is.

    ``outputs`` is empty for a step that only moves the sequence on.
    """

    function: str
    inputs: dict[str, str]
    outputs: dict[str, str]


class Case(Strict):
    """Calls in order, from a fresh sequence."""

    name: str
    steps: tuple[Step, ...]


class ComponentGolden(Strict):
    """One component's contracts and cases; ``sha256`` is of its tensors' file."""

    functions: tuple[FunctionSpec, ...]
    cases: tuple[Case, ...]
    file: str
    sha256: str


class GoldenIndex(Strict):
    """``golden.json``.

    Attributes:
        schema_version: of this file's layout.
        checkpoint: digest of the checkpoint that it was recorded from.
        recorded_with: versions of what computed it.
        components: by name.
    """

    schema_version: int
    checkpoint: str
    recorded_with: dict[str, str]
    components: dict[str, ComponentGolden]


class Golden:
    """An opened golden folder; tensors are read when asked for."""

    def __init__(self, path: Path, index: GoldenIndex) -> None:
        self.path = path
        self.index = index

    @classmethod
    def open(cls, path: Path) -> Golden:
        """The golden in folder ``path``.

        Raises:
            GoldenError: it is missing, damaged, or of another schema version.
        """
        if not (path / INDEX).is_file():
            raise GoldenError(
                f"{path}: no golden here ({INDEX} is missing). Make one with 'mobile-o-export golden record'."
            )
        index = read_json(path / INDEX, GoldenIndex, GoldenError)
        if index.schema_version != SCHEMA:
            raise GoldenError(
                f"{path}: golden schema {index.schema_version}, and this version reads {SCHEMA}. "
                "Record it again."
            )
        for name, component in index.components.items():
            file = path / component.file
            if not file.is_file() or sha256(file.read_bytes()).hexdigest() != component.sha256:
                raise GoldenError(f"{file}: missing or changed ({name}). Record the golden again.")
        return cls(path, index)

    def functions(self, component: str) -> tuple[FunctionSpec, ...]:
        """The contracts of ``component``."""
        return self._component(component).functions

    def cases(self, component: str) -> tuple[Case, ...]:
        """The cases of ``component``."""
        return self._component(component).cases

    def tensors(self, component: str) -> dict[str, Array]:
        """The stored tensors of ``component``, by key."""
        from safetensors.numpy import load_file

        tensors: dict[str, Array] = load_file(self.path / self._component(component).file)
        return tensors

    def require_checkpoint(self, digest: str) -> None:
        """Raises GoldenError unless this golden was recorded from the checkpoint of that digest."""
        if self.index.checkpoint != digest:
            raise GoldenError(
                f"{self.path}: recorded from another checkpoint ({self.index.checkpoint[:19]}…, not "
                f"{digest[:19]}…). Record it again, or leave --golden out."
            )

    def _component(self, name: str) -> ComponentGolden:
        if name not in self.index.components:
            raise GoldenError(f"{self.path}: holds nothing of {name}. Record the golden again.")
        return self.index.components[name]


class Recorder:
    """Collects cases and writes a golden folder; equal tensors are stored once."""

    def __init__(self) -> None:
        self._cases: dict[str, list[Case]] = {}
        self._tensors: dict[str, dict[str, Array]] = {}

    def add(
        self, component: str, case: str, calls: list[tuple[str, Mapping[str, Array], Mapping[str, Array]]]
    ) -> None:
        """A case of (function, inputs, outputs to compare) calls."""
        steps = tuple(
            Step(
                function=function,
                inputs={name: self._store(component, value) for name, value in inputs.items()},
                outputs={name: self._store(component, value) for name, value in outputs.items()},
            )
            for function, inputs, outputs in calls
        )
        self._cases.setdefault(component, []).append(Case(name=case, steps=steps))

    def _store(self, component: str, value: Array) -> str:
        value = np.array(value, order="C")
        if not np.isfinite(value).all():
            raise GoldenError(
                f"{component}: the PyTorch model itself computes NaN or infinity. The checkpoint is unusable."
            )
        key = sha256(f"{value.dtype}{value.shape}".encode() + value.tobytes()).hexdigest()[:16]
        self._tensors.setdefault(component, {})[key] = value
        return key

    def write(
        self,
        folder: Path,
        checkpoint: str,
        recorded_with: Mapping[str, str],
        functions: Mapping[str, tuple[FunctionSpec, ...]],
    ) -> None:
        """Writes everything into the existing, empty ``folder``."""
        from safetensors.numpy import save

        components = {}
        for name, cases in self._cases.items():
            content = save(dict(sorted(self._tensors[name].items())))
            (folder / f"{name}.safetensors").write_bytes(content)
            components[name] = ComponentGolden(
                functions=functions[name],
                cases=tuple(cases),
                file=f"{name}.safetensors",
                sha256=sha256(content).hexdigest(),
            )
        index = GoldenIndex(
            schema_version=SCHEMA,
            checkpoint=checkpoint,
            recorded_with=dict(recorded_with),
            components=components,
        )
        data: Any = index.model_dump(mode="json")
        (folder / INDEX).write_text(json.dumps(data, indent=1) + "\n")
