"""A pytest plugin: coremltools' own tests, which predict on macOS alone, with the MIL interpreter to predict.

coremltools takes this machine for a Mac, and where it would load its native runtime it finds a stand-in that
evaluates the saved package. Nothing on disk is changed. Each test's fate is one line of JSON in the file that
``CONFORMANCE_OUT`` names, by worker; see :mod:`conformance`, which runs it, for the names of fates.

Environment:
    CONFORMANCE_OUT    where the lines go.
    CONFORMANCE_CASES  how many cases of each test function and compute precision are run; 0: all of them.
    CONFORMANCE_TESTS  how many tests are run in all; 0: no limit.
    CONFORMANCE_SEED   chooses the cases.
    CONFORMANCE_SHARD  "1/2": of the chosen ones, those that the second of two processes runs.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import platform
import random
import re
import signal
import sys
import types
import unittest.mock
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coremltools  # noqa: F401
import numpy as np
import pytest
from coremltools import _deps
from coremltools.models import model as models
from coremltools.models import utils
from PIL import Image

from mobile_o_export.backends.coreml.interpreter import (
    DamagedPackageError,
    InputError,
    Interpreter,
    Rounding,
    UnsupportedOpError,
    load_mlpackage,
)

OUT = Path(os.environ["CONFORMANCE_OUT"])
CASES, TESTS, SEED = (int(os.environ.get(f"CONFORMANCE_{name}", "0")) for name in ("CASES", "TESTS", "SEED"))
SHARD, SHARDS = map(int, os.environ.get("CONFORMANCE_SHARD", "0/1").split("/"))
LONGEST = 120
"""Seconds that one test may take."""

MACOS = (15, 4)
"""The newest that coremltools 9.0 has tests for."""


HALF_TOLERANCE = 5e-3
"""Relative and absolute, for what a program with fp16 values gives; for fp16 tests allow ten times that."""


PATH = re.compile(r"(?<!\w)/\w[^\s'\"]*")
"""An absolute path, as messages have them."""


class BeyondError(Exception):
    """What is no matter of the interpreter: another kind of model, another part of Core ML."""


class SlowError(BaseException):
    """A test took too long; not to be caught by what it tests."""


class PredictionError(RuntimeError):
    """What the native runtime raises, and what tests of errors expect."""


class Now:
    """What happened in the test that is running."""

    def __init__(self) -> None:
        self.predicted = 0
        self.half = False
        self.operators: set[str] = set()
        self.error: BaseException | None = None


now = Now()


# --- the stand-in ---


class State:
    """Stands in for the native states of a model."""

    def __init__(self, interpreter: Interpreter) -> None:
        self._types = {port.name: port.dtype for port in interpreter.function.states}
        self.values = interpreter.make_state()

    def read_state(self, name: str) -> Any:
        return self.values[name].numpy().astype(self._types[name])

    def write_state(self, name: str, value: Any) -> None:
        import torch

        held = self.values[name]
        given = torch.from_numpy(np.asarray(value).astype(self._types[name])).to(held.dtype)
        if given.shape != held.shape:
            raise RuntimeError(f"state {name} has the shape {tuple(held.shape)}")
        self.values[name] = given.clone()


class Proxy:
    """Stands in for ``coremltools.libcoremlpython._MLModelProxy``."""

    def __init__(self, path: str, _units: str = "", function: str = "", *_: Any) -> None:
        self._failure: BaseException | None = None
        try:
            self._load(Path(path), function)
        except Exception as error:  # noqa: BLE001  # a test that never predicts must not fail for it
            self._failure = error

    @staticmethod
    def maximum_supported_specification_version() -> int:
        return 10

    def _load(self, path: Path, name: str) -> None:
        spec = utils.load_spec(str(path))
        if spec.WhichOneof("Type") != "mlProgram":
            raise BeyondError(f"a {spec.WhichOneof('Type')}, no ML Program")
        name = name or spec.description.defaultFunctionName or "main"
        interfaces = {one.name: one for one in spec.description.functions} or {"main": spec.description}
        self._inputs = {feature.name: feature.type for feature in interfaces[name].input}
        self._function = load_mlpackage(path).functions[name]
        now.operators |= self._function.op_counts().keys() - {"const"}
        now.half = now.half or "float16" in types_of(self._function.block)
        self._interpreter = Interpreter(self._function, component="it", rounding=Rounding.TYPED)

    def newState(self) -> State:  # noqa: N802
        return State(self._usable())

    def predict(self, data: dict[str, Any], state: State | None = None) -> dict[str, Any]:
        interpreter = self._usable()
        try:
            given = {port.name: self._array(port, data) for port in self._function.inputs}
            found = interpreter.run(given, state=None if state is None else state.values)
        except Exception as error:
            now.error = error
            raise PredictionError(str(error)) from error
        now.predicted += 1
        return {name: self._result(name, value) for name, value in found.items()}

    def batchPredict(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:  # noqa: N802
        return [self.predict(data) for data in batch]

    def __getattr__(self, name: str) -> Any:
        raise BeyondError(f"{name} of the native runtime")

    def _usable(self) -> Interpreter:
        if self._failure is not None:
            now.error = self._failure
            raise PredictionError(str(self._failure)) from self._failure
        return self._interpreter

    def _array(self, port: Any, data: dict[str, Any]) -> Any:
        """What Core ML makes of an app's value before the program gets it."""
        kind = self._inputs[port.name]
        if port.name not in data:
            if not kind.isOptional:
                raise PredictionError(f"Feature {port.name} is required but not specified.")
            field = kind.multiArrayType.WhichOneof("defaultOptionalValue")
            value = getattr(kind.multiArrayType, field) if field else 0
            return np.full([size or 1 for size in port.shape], value, port.dtype)
        value = data[port.name]
        if isinstance(value, Image.Image):
            return value
        value = np.asarray(value).astype(port.dtype)
        return value.reshape(1) if value.shape == () and port.shape == (1,) else value

    def _result(self, name: str, value: Any) -> Any:
        if name in self._function.image_outputs:
            return self._function.image_outputs[name].picture(value)
        # Core ML's arrays have one axis at least.
        return value.reshape(1) if isinstance(value, np.ndarray) and value.shape == () else value


def types_of(block: Any) -> set[str]:
    """The element types of what a block computes, nested ones included."""
    found = {output.type.dtype for operation in block.operations for output in operation.outputs}
    return found.union(*(types_of(inner) for operation in block.operations for inner in operation.blocks))


_allclose = np.testing.assert_allclose


def assert_allclose(actual: Any, desired: Any, rtol: float = 1e-7, atol: float = 0.0, **options: Any) -> None:
    """NumPy's, not closer than fp16 is: many tests give fp16 to programs that they compare as fp32."""
    least = HALF_TOLERANCE if now.half else 0.0
    _allclose(actual, desired, max(rtol, least), max(atol, least), **options)


np.testing.assert_allclose = assert_allclose


# --- a Mac, to coremltools ---

_machine = platform.machine


def _apple() -> str:
    asking = sys._getframe(1).f_globals.get("__name__", "")
    return "arm64" if asking.startswith("coremltools") else _machine()


platform.machine = _apple
_deps._IS_MACOS = True
for _name in (
    "models.utils",
    "models.model",
    "models._compiled_model",
    "models.neural_network.quantization_utils",
):
    _module: Any = importlib.import_module(f"coremltools.{_name}")
    if hasattr(_module, "_is_macos"):
        _module._is_macos = lambda: True
    if hasattr(_module, "_macos_version"):
        _module._macos_version = lambda: MACOS
models._MLModelProxy = Proxy


class Absent(types.ModuleType):
    """A package that tests import at their top and few of them use; those are skipped."""

    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        pytest.skip(f"{self.__name__} is not here")


sys.modules.setdefault("torchvision", Absent("torchvision"))
# The standard library has it since Python 3.3.
sys.modules.setdefault("mock", unittest.mock)


# --- which tests, and what became of them ---


def function_of(item: pytest.Item) -> str:
    """A test function's name below coremltools: what its cases have in common."""
    package = Path(utils.__file__).parents[1]
    names = [
        item.path.relative_to(package).as_posix(),
        item.cls.__name__ if item.cls else "",
        item.originalname,
    ]
    return "::".join(name for name in names if name)


def precision_of(item: pytest.Item) -> str:
    backend = getattr(getattr(item, "callspec", None), "params", {}).get("backend")
    if isinstance(backend, tuple | list):
        return "/".join(map(str, backend))
    return f"{backend.backend}/{backend.precision}" if hasattr(backend, "backend") else str(backend)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    groups: dict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
    for item in items:
        if isinstance(item, pytest.Function) and not precision_of(item).startswith("neuralnetwork"):
            groups[function_of(item), precision_of(item)].append(item)
    # One generator a group: which cases it gives does not depend on what else is asked for.
    chosen = {
        item
        for key, group in groups.items()
        for item in random.Random(f"{SEED} {key}").sample(group, min(CASES or len(group), len(group)))
    }
    kept = [item for item in items if item in chosen]
    if TESTS and len(kept) > TESTS:
        some = set(random.Random(SEED).sample(kept, TESTS))
        kept = [item for item in kept if item in some]
    # Every second one: cases of one function take alike.
    kept = kept[SHARD::SHARDS]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept
    # coremltools collects garbage after each conversion, seconds where so much is loaded.
    gc.collect()
    gc.freeze()
    gc.collect = lambda _generation=2: 0  # type: ignore[assignment]


def _late(*_: Any) -> None:
    raise SlowError(f"longer than {LONGEST} s")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    global now
    now = Now()
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(LONGEST)
    try:
        return (yield)
    finally:
        signal.alarm(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Iterator[None]:
    report = yield
    if report.when == "call" or report.outcome != "passed":
        error = call.excinfo.value if call.excinfo else None
        fate = fate_of(report, error)
        line = {
            "id": item.nodeid.rpartition("::")[2],
            "function": function_of(item),
            "fate": fate,
            "operators": sorted(now.operators),
            "reason": reason_of(error) if fate not in ("passed", "silent") else "",
        }
        with OUT.with_suffix(f".{SHARD}.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
    return report


def cause(error: BaseException | None) -> BaseException | None:
    """What stopped the interpreter, where that is what failed the test."""
    return now.error if isinstance(error, PredictionError) else error


def fate_of(report: Any, error: BaseException | None) -> str:
    if report.outcome == "passed":
        return "passed" if now.predicted else "silent"
    if report.outcome == "skipped":
        return "skipped"
    match cause(error):
        case BeyondError() | SlowError():
            return "beyond"
        case UnsupportedOpError():
            return "lacking"
        case DamagedPackageError() | InputError():
            return "refused"
        case _ if isinstance(error, PredictionError):
            return "crashed"
    if not now.predicted:
        return "before"
    numbers = any("tolerance" in str(each) or "not equal" in str(each) for each in (error, error.__cause__))
    return "wrong" if isinstance(error, AssertionError) and numbers else "after"


def reason_of(error: BaseException | None) -> str:
    found = cause(error)
    # The record is of every machine: no path of this one.
    text = PATH.sub("…", " ".join(str(found).split()))
    return f"{type(found).__name__}: {text[:300]}"
