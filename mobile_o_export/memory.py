"""Memory: what is left of the machine's, this process's peak, and what happens to what it frees."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import sys
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_MACHINE = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup/memory.max")

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Of glibc's ``mallopt``, in malloc.h."""


def total_bytes() -> int:
    """The machine's."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int:
    """What programs can take without swapping, as the system estimates it; no more than a container's limit.

    On systems that do not say (macOS) it is all of the machine's memory.
    """
    found = [total_bytes()]
    try:
        lines = _MACHINE.read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        limit = _CONTAINER.read_text().strip()
        # "max" where there is no limit.
        found += [int(limit)] if limit.isdigit() else []
    except OSError:
        pass
    return min(found)


def keep_freed() -> None:
    """Keeps what is freed for what is asked for next, where the C library can (glibc), until :func:`release`.

    By default glibc maps every large tensor anew, and the system clears its pages one by one as they are
    first written to. That can take longer than what is computed.
    """
    option = _glibc("mallopt")
    if option is not None:
        option(_MMAP_MAX, 0)
        option(_TRIM_THRESHOLD, -1)


def release() -> None:
    """Collects garbage and returns freed memory to the system, where the C library can (glibc).

    Components are lowered one after the other in one process; what the allocator keeps of one would be
    counted, and be missing, while the next is lowered.
    """
    gc.collect()
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Any:
    """A function of the C library; None where it has none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def reset_peak() -> None:
    """Starts a new measurement, where the host can (Linux); elsewhere the peak is since the start."""
    try:
        _RESET.write_text("5")
    except OSError:
        return


def peak_bytes() -> int:
    """The largest resident size since :func:`reset_peak`."""
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
