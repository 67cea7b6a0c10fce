"""One component lowered by one backend: its files, and the record of what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_o_export import memory
from mobile_o_export.backends.base import Backend, GraphFile, LowerRequest
from mobile_o_export.bundle.manifest import FileEntry, file_entries
from mobile_o_export.bundle.parts import record_name
from mobile_o_export.bundle.weights import WeightsRecord
from mobile_o_export.members import MemberName
from mobile_o_export.progress import Say

if TYPE_CHECKING:
    from mobile_o_export.calibration import Calibration
    from mobile_o_export.checkpoint import Checkpoint


@dataclass(frozen=True)
class Lowered:
    """A component's graphs, and its files by their names in its folder."""

    graphs: tuple[GraphFile, ...]
    files: Mapping[MemberName, FileEntry]

    @property
    def size_bytes(self) -> int:
        """What the files take."""
        return sum(file.size_bytes for file in self.files.values())


def lower_component(
    request: LowerRequest,
    vendor: Backend,
    checkpoint: Checkpoint,
    calibration: Calibration,
    place: Path,
    say: Say,
) -> Lowered:
    """Lowers a component into the folder ``place``, which is made, and records what its files hold.

    Raises:
        ExportError: it cannot be lowered, or its files do not hold what they should.
    """
    place.mkdir(parents=True)
    component = request.component.name
    # By what is lowered beside it a request may be refused; the files do not depend on that.
    request = replace(request, absent=frozenset())
    if request.recipe.calibrated:
        request = replace(request, statistics=calibration.of(component, say))
    artifact = vendor.lower(request, checkpoint, place, say)
    memory.release()
    say("restoring its constants")
    contents = vendor.contents(artifact, place, component)
    record = WeightsRecord.of(artifact.weights, contents)
    record.write(place / record_name(component, own_folder=bool(vendor.folder(component))))
    return Lowered(artifact.graphs, {MemberName(name): file for name, file in file_entries(place).items()})
