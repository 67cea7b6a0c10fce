"""What can go wrong while a Core ML package is read or evaluated."""

from __future__ import annotations

from mobile_o_export.errors import BundleError, ExportError, UnsupportedError, UsageError


class DamagedPackageError(BundleError):
    """A ``.mlpackage`` whose files are missing, cut short or contradict one another."""


class InputError(UsageError):
    """Inputs or states handed to a run that do not fit the function's signature."""


class UnsupportedOpError(UnsupportedError):
    """An operation, or one of its parameters, that the interpreter has no implementation of."""


class EvaluationError(ExportError):
    """An operation that failed, or gave another shape than the program declares.

    Either the program contradicts itself or an implementation here is wrong: a bug, never a verdict
    on the model.
    """

    exit_code = 70
