"""The entry point: subcommands, exit codes, errors without tracebacks."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from mobile_o_export import __version__
from mobile_o_export.cli import doctor, export, golden, init_checkpoint, inspect, plan, verify
from mobile_o_export.errors import ExportError

INTERRUPTED = 130
BUG = 70

app = typer.Typer(
    name="mobile-o-export",
    help="Turns Mobile-O checkpoints into verified bundles for Core ML, LiteRT and TensorRT.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done; 1 a gate failed; 2 bad input; 3 a tool is missing; 70 a bug of ours.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"mobile-o-export {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and stop."
    ),
) -> None:
    del version


app.command("doctor")(doctor.doctor)
app.command("inspect")(inspect.inspect)
app.command("init-checkpoint")(init_checkpoint.init_checkpoint)
app.command("plan")(plan.plan)
app.add_typer(golden.app, name="golden")
app.command("export")(export.export)
app.command("verify")(verify.verify)


def main() -> None:
    """Runs the command line and exits with its code."""
    # Vendor banners that are printed while importing; each would land in the user's terminal.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        app(standalone_mode=True)
    except ExportError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.exit_code == BUG and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of a pipe went away; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print("interrupted; nothing was left behind", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception:  # noqa: BLE001 - the last resort, and it says so
        traceback.print_exc()
        print(
            "error: this is a bug of mobile-o-export; please report it with the traceback above.",
            file=sys.stderr,
        )
        sys.exit(BUG)
