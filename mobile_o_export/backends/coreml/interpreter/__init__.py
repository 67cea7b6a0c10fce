"""An interpreter for saved Core ML ML Programs that runs on any host with torch.

``load_mlpackage`` reads the bytes of a ``.mlpackage``; ``Interpreter`` evaluates one of its functions.
Importing this package loads neither coremltools nor torch.
"""

from __future__ import annotations

from mobile_o_export.backends.coreml.interpreter.errors import (
    DamagedPackageError,
    EvaluationError,
    InputError,
    UnsupportedOpError,
)
from mobile_o_export.backends.coreml.interpreter.execute import Interpreter, State
from mobile_o_export.backends.coreml.interpreter.package import load_mlpackage
from mobile_o_export.backends.coreml.interpreter.program import MilFunction, MilProgram
from mobile_o_export.backends.coreml.interpreter.rounding import Rounding
from mobile_o_export.backends.coreml.interpreter.tensor_type import Port

__all__ = [
    "DamagedPackageError",
    "EvaluationError",
    "InputError",
    "Interpreter",
    "MilFunction",
    "MilProgram",
    "Port",
    "Rounding",
    "State",
    "UnsupportedOpError",
    "load_mlpackage",
]
