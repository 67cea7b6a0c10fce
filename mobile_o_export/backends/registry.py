"""Backends by name: each is a folder of this package with a ``BACKEND``."""

from __future__ import annotations

import importlib

from mobile_o_export.backends.base import Backend
from mobile_o_export.errors import ConfigError
from mobile_o_export.strict import nearest

MODULES = {
    "coreml": "coreml",
    "litert": "litert",
    "onnx": "onnx",
    "mobile-o-app": "mobile_o_app",
}
"""Where each lies."""

BACKEND_NAMES = tuple(MODULES)


def backend(name: str) -> Backend:
    """The backend called ``name``.

    Raises:
        ConfigError: there is none.
    """
    if name not in BACKEND_NAMES:
        known = ", ".join(BACKEND_NAMES)
        raise ConfigError(f"backend {name!r} is unknown.{nearest(name, BACKEND_NAMES)} Use one of {known}.")
    found: Backend = importlib.import_module(f"mobile_o_export.backends.{MODULES[name]}.backend").BACKEND
    return found
