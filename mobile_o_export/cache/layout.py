"""What lies at the root of a cache, in its folder and in its copies: the version of its layout."""

from __future__ import annotations

import json
from typing import Final

from mobile_o_export.errors import ExportError

LAYOUT: Final = 1
MARKER = "cache.json"
"""The file that says the version."""


class CacheError(ExportError):
    """A cache that cannot be used: damaged, or written by a newer version."""


def marker() -> bytes:
    """The content of ``MARKER``."""
    return (json.dumps({"schema_version": LAYOUT}) + "\n").encode()


def require_known(place: str, version: int) -> None:
    """Raises CacheError where the cache at ``place`` has a layout that this version does not know."""
    if version > LAYOUT:
        raise CacheError(
            f"{place}: this cache was written by a newer version (layout {version}, and this version knows "
            f"{LAYOUT}). Choose another folder, or use the version that wrote it."
        )
