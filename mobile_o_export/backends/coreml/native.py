"""Runs a package with Core ML itself; macOS only, and the one executor that proves a device's arithmetic."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobile_o_export.backends import versions
from mobile_o_export.backends.base import Executor
from mobile_o_export.errors import GateError, MissingToolError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.quiet import captured

OLDEST_MACOS = 15


class CoreMLExecutor(Executor):
    """Functions of one package, each loaded when it is first called, sharing one state."""

    rounds_to_half = True

    def __init__(self, package: Path, entries: Mapping[str, str], component: str) -> None:
        if versions.missing(["coremltools"]):
            raise MissingToolError(
                f"{component}: .mlpackage folders need coremltools; pip install coremltools"
            )
        release = platform.mac_ver()[0]
        if int(release.split(".")[0] or 0) < OLDEST_MACOS:
            raise MissingToolError(
                f"{component}: Core ML runs packages for iOS 18 on macOS {OLDEST_MACOS} and later, and this "
                f"is {release or 'no Mac'}"
            )
        self.runtime = f"Core ML, macOS {release}, all compute units"
        self._package = package
        self._entries = entries
        self._component = component
        self._models: dict[str, Any] = {}
        self._state: Any = None

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of one function."""
        import coremltools as ct

        with captured(f"{self._component}: Core ML running {graph}", GateError):
            if graph not in self._models:
                # A package of one function is loaded without naming it.
                name = self._entries[graph] if len(self._entries) > 1 else None
                model = ct.models.MLModel(str(self._package), function_name=name)
                self._models[graph] = model, _has_state(model, self._entries[graph])
            model, stateful = self._models[graph]
            if not stateful:
                return dict(model.predict(dict(inputs)))
            if self._state is None:
                self._state = model.make_state()
            return dict(model.predict(dict(inputs), state=self._state))

    def reset(self) -> None:
        """Forgets the state; the next call makes a zeroed one."""
        self._state = None

    def close(self) -> None:
        """Forgets the models and the state."""
        self._models.clear()
        self._state = None


def _has_state(model: Any, function: str) -> bool:
    """Whether ``function`` has states; a package of one function declares them at top level."""
    description = model.get_spec().description
    return bool(description.state) or any(
        found.name == function and found.state for found in description.functions
    )
