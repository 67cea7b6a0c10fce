"""Damages every file that the product reads, by chance from a seed, and counts what its readers make of that.

    python benchmarks/fuzz.py [--inputs 5000] [--seed 0] [--only READER]

Each input has to be read, or be refused by an error that says why and has the exit code 1, 2 or 3, within
``LONGEST`` seconds. Anything else is a bug of ours: its traceback is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fuzz_readers import Reader, readers

from mobile_o_export.cli.console import table
from mobile_o_export.errors import ExportError

LONGEST = 20
"""Seconds that reading one input may take, many times what the longest does."""

SHOWN = 5
"""Tracebacks of each reader that are printed."""


class TooLongError(BaseException):
    """Reading did not end in time; no Exception, so that no reader takes it for damage."""


@dataclass
class Count:
    """What a reader made of its inputs.

    Attributes:
        refused: by the error's kind.
        bugs: what it failed with, each with the input's seed and place.
    """

    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    bugs: list[str] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        return self.accepted + self.refused.total() + len(self.bugs)


def fuzz(reader: Reader, inputs: int, seed: int) -> Count:
    """Gives ``inputs`` damaged files to ``reader``; leaves its files as they were."""
    found = Count()
    chance = random.Random(f"{reader.name} {seed}")
    whole = {path: path.read_bytes() for file in reader.files for path in _beside(file)}
    reader.read()
    for number in range(inputs):
        path = chance.choice(reader.files)
        mutator = chance.choice(reader.mutators)
        try:
            path.write_bytes(mutator(whole[path], chance))
            reader.sign()
            _read(
                reader,
                found,
                f"{reader.name}, input {number} of seed {seed} ({mutator.__name__} {path.name})",
            )
        finally:
            for file, content in whole.items():
                file.write_bytes(content)
    return found


def _beside(file: Path) -> Iterator[Path]:
    """The file, and what signing it writes."""
    names = {file.name, "manifest.sha256", "golden.json"}
    yield from (path for path in file.parent.iterdir() if path.name in names and path.is_file())


def _read(reader: Reader, found: Count, where: str) -> None:
    try:
        with _limited(LONGEST):
            reader.read()
        found.accepted += 1
    except ExportError as error:
        if error.exit_code in (1, 2, 3):
            found.refused[type(error).__name__] += 1
        else:
            found.bugs.append(f"{where}:\n{traceback.format_exc()}")
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - that is what is looked for
        found.bugs.append(f"{where}:\n{traceback.format_exc()}")


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(_number: int, _frame: FrameType | None) -> None:
        raise TooLongError(f"not read after {seconds} s")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def campaign(found: Iterable[Reader], inputs: int, seed: int) -> dict[str, Count]:
    """What each reader made of ``inputs`` damaged files."""
    return {reader.name: fuzz(reader, inputs, seed) for reader in found}


def _kinds(refused: Counter[str]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in refused.most_common())


def main() -> int:
    parser = argparse.ArgumentParser(description="Damages files and reads them.")
    parser.add_argument("--inputs", type=int, default=5000, help="of all readers together (default: 5000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="readers whose name holds this")
    arguments = parser.parse_args()
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as place:
        chosen = [reader for reader in readers(Path(place)) if (arguments.only or "") in reader.name]
        counts: dict[str, Count] = {}
        for reader in chosen:
            print(f"{reader.name} …", file=sys.stderr, flush=True)
            counts |= campaign([reader], -(-arguments.inputs // len(chosen)), arguments.seed)
    lines = [
        (name, count.inputs, count.accepted, _kinds(count.refused), len(count.bugs))
        for name, count in counts.items()
    ]
    all_refused = sum((count.refused for count in counts.values()), Counter[str]())
    sums = [sum(line[column] for line in lines) for column in (1, 2, 4)]
    lines.append(("all", sums[0], sums[1], _kinds(all_refused), sums[2]))
    print(table(("reader", "inputs", "read", "refused", "tracebacks"), lines, right=(1, 2, 4)))
    bugs = [bug for count in counts.values() for bug in count.bugs[:SHOWN]]
    for bug in bugs:
        print(f"\n{bug}")
    return 1 if bugs else 0


if __name__ == "__main__":
    sys.exit(main())
