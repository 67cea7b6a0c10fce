"""What an export takes from the cache and leaves in it: goldens, lowered components, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from mobile_o_export.backends.base import Backend, GraphFile, LowerRequest
from mobile_o_export.bundle.manifest import CONFIG_FOLDER, TOKENIZER_FOLDER, FileEntry, Manifest, file_digest
from mobile_o_export.bundle.outcomes import Outcome, OutcomeWriter
from mobile_o_export.cache.entry import Entry, EntryError
from mobile_o_export.cache.keys import (
    chain_parts,
    golden_digest,
    golden_parts,
    lowered_parts,
    verdict_parts,
)
from mobile_o_export.cache.store import Store
from mobile_o_export.errors import BundleError
from mobile_o_export.golden import Golden
from mobile_o_export.golden.requests import load_requests
from mobile_o_export.golden.store import GOLDEN_FILES
from mobile_o_export.lowered import Lowered
from mobile_o_export.members import MemberName, Members, entries
from mobile_o_export.parity.judge import Row, Status, verdict
from mobile_o_export.strict import ModelT, Strict, parse_json

if TYPE_CHECKING:
    from mobile_o_export.checkpoint import Checkpoint

ResultT = TypeVar("ResultT")

GOLDEN, LOWERED, VERDICT, CHAINS = "golden", "lowered", "verdict", "chains"
"""The kinds of entries."""

FILES = "files"
"""The folder of an entry that holds the files of a bundle; what is said of them lies beside it."""

GRAPHS, ROWS, OUTCOMES = "graphs.json", "rows.json", "outcomes.json"


class _Graphs(Strict):
    graphs: tuple[GraphFile, ...]


class _Rows(Strict):
    rows: tuple[Row, ...]


class _Outcomes(Strict):
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class Found(Generic[ResultT]):
    """What the cache has of one result.

    Attributes:
        result: None where it has none.
        keep: keeps one that was made, where there is a cache.
    """

    result: ResultT | None
    keep: Callable[[ResultT], None]


class ExportCache:
    """The cache in one export; without a store everything is made anew, and nothing is kept.

    Args:
        store: where results are kept; None for nowhere.
        checkpoint: what is exported.
        require_unchanged: raises where a file that results follow from has changed since it was opened. Such
            a result belongs under no key, and the export is at its end.
    """

    def __init__(
        self, store: Store | None, checkpoint: Checkpoint, require_unchanged: Callable[[], None]
    ) -> None:
        self._store = store
        self._checkpoint = checkpoint
        self.require_unchanged = require_unchanged
        self._digests: dict[Path, str] = {}
        self._goldens: dict[Path, str] = {}

    def golden(self, place: Path, record: Callable[[], object]) -> bool:
        """Makes the folder ``place`` with the golden on the shipped prompts; whether it was in the cache.

        ``record`` records it there, into an empty folder.
        """
        if self._store is None:
            place.mkdir()
            record()
            return False
        parts = golden_parts(self._checkpoint, *load_requests(None))
        if self._store.get(GOLDEN, parts, lambda entry: entry.copy(FILES, place)) is not None:
            return True
        place.mkdir()
        record()
        self.require_unchanged()
        self._store.put(GOLDEN, parts, {f"{FILES}/{name}": place / name for name in GOLDEN_FILES})
        return False

    def lowered(
        self, place: Path, request: LowerRequest, vendor: Backend, calibrated_on: Sequence[Golden]
    ) -> Found[Lowered]:
        """A component's files, in the folder ``place``, which is made if they are in the cache.

        What is kept has to lie in ``place``, and to be lowered from that part of the checkpoint that the key
        covers (``read_components``).
        """
        if self._store is None:
            return Found(None, lambda _: None)
        store = self._store
        digests = [self._golden_digest(golden) for golden in calibrated_on]
        parts = lowered_parts(request, self._checkpoint, vendor, digests)

        def keep(made: Lowered) -> None:
            self.require_unchanged()
            files: dict[str, Path | bytes] = {f"{FILES}/{name}": place / name for name in made.files}
            store.put(LOWERED, parts, {**files, GRAPHS: _json(_Graphs(graphs=made.graphs))})

        return Found(store.get(LOWERED, parts, lambda entry: _lowered(entry, place)), keep)

    def placed(self, folder: Path, files: Mapping[MemberName, FileEntry]) -> None:
        """Says that ``files`` lie below ``folder`` now, so that they are not hashed once more."""
        self._digests |= {folder / name: file.sha256 for name, file in files.items()}

    def verdict(
        self, folder: Path, manifest: Manifest, golden: Golden, target: str, component: str
    ) -> Found[list[Row]]:
        """The rows of one component of the bundle in ``folder``; only what passed is kept."""
        if self._store is None:
            return Found(None, lambda _: None)
        store = self._store
        files = self._digests_below(folder, manifest.targets[target].components[component].folder)
        parts = verdict_parts(manifest, self._golden_digest(golden), target, component, files)

        def keep(rows: list[Row]) -> None:
            if verdict(rows) is Status.PASSED:
                store.put(VERDICT, parts, {ROWS: _json(_Rows(rows=tuple(rows)))})

        return Found(store.get(VERDICT, parts, _rows), keep)

    def chains(
        self,
        folder: Path,
        manifest: Manifest,
        golden: Golden,
        target: str,
        outcomes: OutcomeWriter,
    ) -> Found[list[Row]]:
        """The rows of a target's chains; if they are in the cache, what came out is added to ``outcomes``.

        Only what passed is kept, with what ``outcomes`` has of it by then.
        """
        if self._store is None:
            return Found(None, lambda _: None)
        store = self._store
        files: dict[str, str] = {}
        for below in (target, CONFIG_FOLDER, TOKENIZER_FOLDER):
            files |= self._digests_below(folder, below)
        parts = chain_parts(manifest, self._golden_digest(golden), target, files)

        def keep(rows: list[Row]) -> None:
            if verdict(rows) is Status.PASSED:
                added = outcomes.of(target)
                drawn = [outcome.picture for outcome in added if outcome.picture is not None]
                pictures: dict[str, Path | bytes] = {f"{FILES}/{name}": folder / name for name in drawn}
                told = {ROWS: _json(_Rows(rows=tuple(rows))), OUTCOMES: _json(_Outcomes(outcomes=added))}
                store.put(CHAINS, parts, {**pictures, **told})

        found = store.get(CHAINS, parts, _chained)
        if found is None:
            return Found(None, keep)
        rows, made = found
        for outcome, picture in made:
            outcomes.add_again(outcome, picture)
        return Found(rows, keep)

    def _digests_below(self, folder: Path, below: str) -> dict[str, str]:
        """The digest of each file of the bundle in ``folder`` that lies below ``below``, by its name."""
        members = Members(folder, BundleError)
        found = {}
        for inner, _ in entries(folder / below):
            name = f"{below}/{inner}"
            found[name] = self._digests.get(folder / name) or file_digest(members, name).sha256
        return found

    def _golden_digest(self, golden: Golden) -> str:
        if golden.path not in self._goldens:
            self._goldens[golden.path] = golden_digest(golden)
        return self._goldens[golden.path]


def _lowered(entry: Entry, place: Path) -> Lowered:
    graphs = _read(entry, GRAPHS, _Graphs).graphs
    return Lowered(graphs, entry.copy(FILES, place))


def _rows(entry: Entry) -> list[Row]:
    return list(_read(entry, ROWS, _Rows).rows)


def _chained(entry: Entry) -> tuple[list[Row], list[tuple[Outcome, bytes | None]]]:
    outcomes = _read(entry, OUTCOMES, _Outcomes).outcomes
    return _rows(entry), [
        (outcome, None if outcome.picture is None else entry.read(f"{FILES}/{outcome.picture}"))
        for outcome in outcomes
    ]


def _json(content: Strict) -> bytes:
    return content.model_dump_json().encode()


def _read(entry: Entry, name: str, model: type[ModelT]) -> ModelT:
    """The content that :func:`_json` wrote, in a file that was compared with its digest.

    Raises:
        EntryError: the file is missing or changed.
    """
    try:
        return model.model_validate(parse_json(entry.read(name)))
    except ValueError as error:
        raise EntryError(f"{entry.folder / name}: cannot be read ({error}).") from error
