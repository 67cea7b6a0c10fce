"""What each kind of result follows from: two results with the same parts are the same bytes."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mobile_o_export
from mobile_o_export.checkpoint import COMPONENT_PREFIXES
from mobile_o_export.digests import json_digest
from mobile_o_export.golden.record import truth_of
from mobile_o_export.members import entries

if TYPE_CHECKING:
    from mobile_o_export.backends.base import Backend, LowerRequest
    from mobile_o_export.bundle.manifest import Manifest
    from mobile_o_export.checkpoint import Checkpoint
    from mobile_o_export.golden import Golden
    from mobile_o_export.golden.requests import Requests

DISTRIBUTION = "mobile-o-export"

NUMERIC_VARIABLES = ("ATEN_", "DNNL_", "KMP_", "MKL_", "NUMBA_", "OMP_", "ONEDNN_", "OPENBLAS_")
"""How the environment variables begin that choose kernels or their number of threads."""

_CPU_LINES = re.compile(
    r"^(?:flags|Features|model name|CPU (?:implementer|part|variant))\s*:.*$", re.MULTILINE
)
"""Of ``/proc/cpuinfo``: what libraries choose their kernels by; the same lines for every core."""


def golden_parts(checkpoint: Checkpoint, requests: Requests, images: Path) -> dict[str, Any]:
    """Of a recorded golden; the requests' pictures lie in ``images``."""
    settings, tokenizer = truth_of(checkpoint)
    names = {item.image for item in requests.edit} | {item.image for item in requests.describe}
    return {
        "checkpoint": checkpoint.digest,
        "settings": settings,
        "tokenizer": tokenizer,
        "requests": requests.model_dump(mode="json"),
        "images": {name: _file_digest(images / name) for name in sorted(names)},
        **surroundings(),
    }


def read_components(vendor: Backend, component: str) -> tuple[str, ...]:
    """The components whose tensors ``vendor`` may read to lower ``component``.

    Where all of them share a folder, files of one may hold tensors of another.
    """
    return (component,) if vendor.folder(component) else tuple(COMPONENT_PREFIXES)


def lowered_parts(
    request: LowerRequest, checkpoint: Checkpoint, vendor: Backend, calibrated_on: Sequence[str]
) -> dict[str, Any]:
    """Of the files of one component.

    Not the target's name, which is for messages, nor the components that are not lowered along with it, by
    which a backend refuses. What activations are like follows from the checkpoint and from the goldens, whose
    digests are ``calibrated_on``.
    """
    component = request.component.name
    return {
        "component": component,
        "backend": vendor.name,
        "checkpoint": checkpoint.part_digest(read_components(vendor, component)),
        "files": {path.name: _file_digest(path) for path in checkpoint.files},
        "recipe": request.recipe.model_dump(mode="json"),
        "sequence": request.sequence.model_dump(mode="json"),
        "options": dict(request.options),
        "calibrated_on": list(calibrated_on) if request.recipe.calibrated else [],
        **surroundings(),
    }


def verdict_parts(
    manifest: Manifest, golden: str, target: str, component: str, files: Mapping[str, str]
) -> dict[str, Any]:
    """Of the verdict on one component.

    Args:
        manifest: what is judged.
        golden: the digest of what it is compared with.
        target: its name.
        component: its name.
        files: the digests of all files in the folder of the component's entry, by name.
    """
    entry = manifest.targets[target]
    return {
        "target": target,
        "component": component,
        "backend": entry.backend,
        "sequence": entry.sequence.model_dump(mode="json"),
        "entry": entry.components[component].model_dump(mode="json"),
        "functions": _functions(manifest)[component],
        "files": dict(sorted(files.items())),
        "golden": golden,
        **surroundings(),
    }


def chain_parts(manifest: Manifest, golden: str, target: str, files: Mapping[str, str]) -> dict[str, Any]:
    """Of the verdict on a target's chains; ``files`` are those of the target and those that it runs with."""
    return {
        "target": target,
        "entry": manifest.targets[target].model_dump(mode="json"),
        "functions": _functions(manifest),
        "files": dict(sorted(files.items())),
        "golden": golden,
        **surroundings(),
    }


def golden_digest(golden: Golden) -> str:
    """Of all that a golden says: its index has the digest of every array, which reading compares."""
    return json_digest(golden.index.model_dump(mode="json"))


@cache
def surroundings() -> Mapping[str, Any]:
    """What every result follows from as well: this package, what it calls, and the machine.

    PyTorch and the runtimes add up in another order on other processors and on other numbers of threads.
    """
    import torch

    return {
        "source": source_digest(),
        "python": platform.python_version(),
        "packages": installed_packages(),
        "machine": {
            "system": platform.system(),
            "macos": platform.mac_ver()[0],
            "libc": " ".join(platform.libc_ver()),
            "architecture": platform.machine(),
            "processor": _processor(),
            "vectors": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "variables": {
                name: value
                for name, value in sorted(os.environ.items())
                if name.startswith(NUMERIC_VARIABLES) and not name.endswith("_DIR")
            },
        },
    }


def source_digest() -> str:
    """Hex SHA-256 of every file of this package: code, gates, templates."""
    package = Path(mobile_o_export.__file__).parent
    names = [name for name, _ in entries(package) if "__pycache__" not in name.split("/")]
    return json_digest({name: _file_digest(package / name) for name in names})


def installed_packages() -> dict[str, str]:
    """The version of each installed package but this one.

    All of them, not those that this one requires: libraries look for others that they can do without, and an
    editable installation does not know of requirements that were added since.
    """
    found: dict[str, str] = {}
    for one in distributions():
        # Parsed once: each of a distribution's properties would read the file again.
        told = one.metadata
        # Of two with one name, the first on the path is imported. What pip could not remove has no name.
        found.setdefault(re.sub(r"[-_.]+", "-", str(told["Name"])).lower(), str(told["Version"]))
    found.pop(DISTRIBUTION, None)
    return dict(sorted(found.items()))


def _processor() -> str:
    """The model of the processor and a digest of what it can do, as far as the system says."""
    try:
        lines = dict.fromkeys(_CPU_LINES.findall(Path("/proc/cpuinfo").read_text()))
    except OSError:
        return platform.processor()
    return json_digest(list(lines))


def _functions(manifest: Manifest) -> dict[str, Any]:
    functions: dict[str, Any] = manifest.model_dump(mode="json", include={"functions"})["functions"]
    return functions


def _file_digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()
