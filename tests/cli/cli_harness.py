"""Commands in processes of their own, what they answer, and target files to be spoilt."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
EVERY_COMPONENT = ("vision_encoder", "llm", "mcp", "dit", "vae_decoder")


@dataclass(frozen=True)
class Outcome:
    """What a command answered."""

    code: int
    out: str
    err: str

    def refused(self, *phrases: str, code: int = 2) -> None:
        """Asserts the exit code, a message with every phrase, nothing on stdout and no traceback."""
        assert (self.code, self.out) == (code, ""), self
        assert "Traceback" not in self.err
        assert "error: " in self.err.lower()
        for phrase in phrases:
            assert phrase in self.err, self.err


Cli = Callable[..., Outcome]


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "default"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    return subprocess.Popen(
        [sys.executable, "-m", "mobile_o_export", *map(str, arguments)],
        **{"env": environment, "stdin": subprocess.DEVNULL, **streams, **options},
    )


def finish(process: subprocess.Popen[str]) -> Outcome:
    with process:
        out, err = process.communicate(timeout=120)
    return Outcome(process.returncode, out, err)


def shown_on(terminal: int) -> str:
    """Everything that came out at our end of a pseudoterminal, which is closed."""
    received = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            break
        if not piece:
            break
        received += piece
    os.close(terminal)
    return received.decode()


@dataclass(frozen=True)
class TargetFile:
    """A target's file in parts, to be spoilt one at a time."""

    folder: Path

    def __call__(
        self,
        name: str = "mine",
        backend: str = "coreml",
        sequence: str = "lengths = [64, 384]\ncontext = 1024",
        options: str = "",
        mcp: str = 'precision = "fp16"',
        others: str = 'precision = "fp16"',
        end: str = "",
    ) -> Path:
        parts = [
            f'name = "{name}"\nbackend = "{backend}"\ndescription = "a test\'s"\nfloating = "fp16"',
            f"[sequence]\n{sequence}",
            f"[options]\n{options}",
            *(f"[components.{c}]\n{mcp if c == 'mcp' else others}" for c in EVERY_COMPONENT),
            end,
        ]
        path = self.folder / f"{name}.toml"
        path.write_text("\n".join(parts), encoding="utf-8")
        return path
