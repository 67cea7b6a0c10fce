"""The errors a user can meet, each with the exit code that the command line gives it.

Exit codes: 0 done; 1 a parity or verification gate failed; 2 usage, configuration or bad input;
3 a tool or host is missing; 70 a bug of ours (anything that is not an ``ExportError``).
"""

from __future__ import annotations


class ExportError(Exception):
    """Base of every error that a user can cause or mend.

    The message says what failed, on which component and target, and ends with what to do next.
    """

    exit_code: int = 2


class UsageError(ExportError):
    """A command-line value or combination of values that cannot be carried out."""


class PromptTooLongError(UsageError):
    """A prompt of more tokens than a target takes."""


class ConfigError(ExportError):
    """A target file, recipe or configuration that breaks its own rules."""


class CheckpointError(ExportError):
    """A checkpoint that is missing, damaged, incomplete or not a Mobile-O checkpoint."""


class GoldenError(ExportError):
    """A golden folder that is missing, damaged or does not belong to the checkpoint."""


class BundleError(ExportError):
    """A bundle that cannot be written, or that is no bundle at all."""


class OutOfSpaceError(ExportError):
    """The disk has no room for the output."""


class OutOfMemoryError(ExportError):
    """A process was killed, as systems do when memory runs out."""


class UnsupportedError(ExportError):
    """A component, precision or option that a backend refuses before any work starts."""


class GateError(ExportError):
    """A gate failed: a file changed, a row drifted, or nothing was compared."""

    exit_code = 1


class MissingToolError(ExportError):
    """A package or host that this step needs is not here."""

    exit_code = 3


class LoweringError(ExportError):
    """A vendor converter failed on one component; the end of its log is in the message."""

    exit_code = 70
