"""What was measured: latencies of each function, memory and size of each component."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """What became of one component on one target."""

    MEASURED = "measured"
    FAILED = "failed"
    NOT_RUN = "not_run"
    """This host has no runtime for it."""


@dataclass(frozen=True)
class Call:
    """A call of the golden that is timed.

    Attributes:
        function: the function that is called.
        graph: the graph that runs it; empty in PyTorch, which has none.
        case: the golden's case, replayed from its first step.
        first: which step of the case is the first to be timed; the ones before it are run untimed.
        positions: the length of the call's sequence; None where the function has no sequence axis.
        cached: positions in the KV cache before the call.
    """

    function: str
    graph: str
    case: str
    first: int
    positions: int | None
    cached: int

    @property
    def recorded(self) -> tuple[str, int]:
        """What it replays, whatever graph runs it."""
        return self.case, self.first


@dataclass(frozen=True)
class Latency:
    """How long one function took on one graph; ``latencies_ms`` are in the order of the calls."""

    call: Call
    latencies_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """The median; of an even number of calls the mean of the middle two."""
        return statistics.median(self.latencies_ms)

    @property
    def p95_ms(self) -> float:
        """The 95th percentile by nearest rank: the least latency that 95 % of the calls do not exceed."""
        return sorted(self.latencies_ms)[math.ceil(0.95 * len(self.latencies_ms)) - 1]


@dataclass(frozen=True)
class ComponentRun:
    """One component on one target, or in PyTorch, in a process of its own.

    Attributes:
        outcome: whether it could be measured; ``reason`` says why not.
        runtime: what computed.
        threads: how many it computed with; None where the runtime chooses and does not say.
        size_bytes: of the component's files; None in PyTorch, whose checkpoint holds all components.
        peak_bytes: the largest resident size of the process, from its start to its last call.
    """

    target: str
    component: str
    outcome: Outcome
    reason: str = ""
    runtime: str = ""
    threads: int | None = None
    size_bytes: int | None = None
    peak_bytes: int | None = None
    functions: tuple[Latency, ...] = ()
