"""Runs a package with the MIL interpreter: what the saved bytes say, on any host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobile_o_export import __version__, memory
from mobile_o_export.backends import versions
from mobile_o_export.backends.base import Executor
from mobile_o_export.errors import GateError, MissingToolError
from mobile_o_export.parity.metrics import Array
from mobile_o_export.quiet import captured


class InterpreterExecutor(Executor):
    """Functions of one package, sharing one state; each result is rounded to its MIL type, or is ``fp32``."""

    rounds_to_half = True

    def __init__(
        self, package: Path, entries: Mapping[str, str], component: str, *, fp32: bool = False
    ) -> None:
        try:
            with captured(f"{component}: importing coremltools"):
                import torch

                from mobile_o_export.backends.coreml.interpreter import Rounding, load_mlpackage
        except ImportError as error:
            raise MissingToolError(
                f"{component}: .mlpackage folders need coremltools; pip install coremltools"
            ) from error
        how = "in fp32" if fp32 else "rounding to MIL types"
        self.runtime = f"MIL interpreter {__version__}, torch {_torch()} ({how})"
        self.threads = torch.get_num_threads()
        memory.keep_freed()
        self._program = load_mlpackage(package)
        self._rounding = Rounding.FP32 if fp32 else Rounding.TYPED
        self._entries = entries
        self._component = component
        self._interpreters: dict[str, Any] = {}
        self._state: Any = None

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of one function."""
        from mobile_o_export.backends.coreml.interpreter import Interpreter

        if graph not in self._interpreters:
            name = self._entries[graph]
            if name not in self._program.functions:
                raise GateError(f"{self._component}: the package holds no function {name!r}")
            self._interpreters[graph] = Interpreter(
                self._program.functions[name], rounding=self._rounding, component=self._component
            )
        interpreter = self._interpreters[graph]
        if self._state is None and interpreter.function.states:
            self._state = interpreter.make_state()
        outputs: dict[str, Array] = interpreter.run(dict(inputs), state=self._state)
        return outputs

    def reset(self) -> None:
        """Forgets the state; the next call makes a zeroed one."""
        self._state = None

    def close(self) -> None:
        """Forgets the functions, the state and the weights, and gives their memory back."""
        self._interpreters.clear()
        self._state = None
        self._program.weights.drop()
        memory.release()


def _torch() -> str:
    """The version of torch, which computes what the interpreter asks for; without what build it is."""
    return versions.installed(["torch"]).get("torch", "").partition("+")[0]
