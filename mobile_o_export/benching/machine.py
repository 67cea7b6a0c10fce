"""The machine that a measurement was made on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mobile_o_export import memory

_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Machine:
    """What decides how fast a host is.

    Attributes:
        cpu: its model, or its architecture where the system does not tell the model (Linux on Arm).
        cores: logical ones that this process may use.
        memory_bytes: of the machine.
        load: processes that ran or waited for a core in the last minute, on average.
        system: the operating system with its version.
    """

    cpu: str
    cores: int
    memory_bytes: int
    load: float
    system: str
    python: str

    @classmethod
    def here(cls) -> Machine:
        """This machine, as it is now."""
        return cls(
            cpu=_cpu_model() or platform.machine(),
            cores=_usable_cores(),
            memory_bytes=memory.total_bytes(),
            load=round(os.getloadavg()[0], 2),
            system=platform.platform(),
            python=platform.python_version(),
        )


def _usable_cores() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    """The model's name as the system tells it, or an empty string."""
    try:
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    return ""
