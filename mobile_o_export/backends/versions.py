"""Versions of installed distributions, without importing them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable


def installed(distributions: Iterable[str]) -> dict[str, str]:
    """Version of each distribution that is installed."""
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def missing(distributions: Iterable[str]) -> list[str]:
    """The distributions that are not installed."""
    names = list(distributions)
    present = installed(names)
    return [name for name in names if name not in present]
