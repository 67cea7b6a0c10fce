"""Vendor packages print by the page; this keeps it out of the user's terminal and at hand for errors.

Both wrap vendors' code only, at the seam that starts it: a warning of our own must get through.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

from mobile_o_export.errors import ExportError, LoweringError
from mobile_o_export.legible import CONTINUED

TAIL_LINES = 25


@contextlib.contextmanager
def quiet_vendor() -> Iterator[None]:
    """Runs the body without Python warnings and without log records below ERROR."""
    threshold = logging.root.manager.disable
    logging.disable(max(threshold, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(threshold)


@contextlib.contextmanager
def captured(what: str, failure: type[ExportError] = LoweringError) -> Iterator[None]:
    """Runs a vendor's code with both output streams captured, native code's included.

    Args:
        what: is done.
        failure: what a failure means: of a converter that it is broken, of a runtime that its file is.

    Raises:
        ExportError: of the kind ``failure``: the code failed; the message is ``what`` with the error and the
            log's end.
    """
    with tempfile.TemporaryFile() as log:
        try:
            with _redirected(log.fileno()), quiet_vendor():
                yield
        except (ExportError, ImportError, MemoryError, OSError):
            raise
        except BaseException as error:
            if not is_failure(error):
                raise
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()[-TAIL_LINES:]
            raise failure(
                "\n".join(
                    [
                        f"{what} failed: {type(error).__name__}: {str(error).strip()}",
                        *(f"{CONTINUED}{line}" for line in lines),
                    ]
                )
            ) from error


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Runs a vendor's code with stderr thrown away, native code's included."""
    sys.stderr.flush()
    saved, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        with contextlib.suppress(ValueError, OSError):
            sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nothing)


def is_failure(error: BaseException) -> bool:
    """Whether ``error`` is a failure of the code that raised it, and nobody's wish to stop.

    A panic of a Rust library is one, though PyO3 derives it from BaseException alone.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


@contextlib.contextmanager
def _redirected(descriptor: int) -> Iterator[None]:
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    try:
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        yield
    finally:
        with contextlib.suppress(ValueError, OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os.dup2(saved[0], 1)
        os.dup2(saved[1], 2)
        for copy in saved:
            os.close(copy)
