"""What is installed, told without importing it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

from mobile_o_export.backends.base import Probe


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


def probe(backend: str, runtime: str, packages: tuple[str, ...]) -> Probe:
    """What ``backend`` can do on this host, going by the ``packages`` that it needs."""
    absent = missing(packages)
    return Probe(
        backend=backend,
        runtime=runtime,
        versions=installed(packages),
        problem=f"not installed: {', '.join(absent)}" if absent else "",
        remedy=f"pip install {' '.join(absent)}" if absent else "",
    )
