"""Memory of this process: its peak over a stretch of work, and giving back what that left behind."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def release() -> None:
    """Collects garbage and returns freed memory to the system, where the C library can (glibc).

    Components are lowered one after the other in one process; what the allocator keeps of one would be
    counted, and be missing, while the next is lowered.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


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
