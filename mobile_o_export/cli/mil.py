"""``mil inspect`` and ``mil run``: anybody's ML Program, on any host."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from mobile_o_export.cli import screen
from mobile_o_export.cli.console import ProgressPrinter, table
from mobile_o_export.cli.paths import expanded
from mobile_o_export.errors import UsageError
from mobile_o_export.legible import legible
from mobile_o_export.parity.metrics import Array

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    from mobile_o_export.backends.coreml.interpreter import MilFunction, MilProgram, Port

app = typer.Typer(help="Look into Core ML packages and run them, without a Mac.", no_args_is_help=True)

Package = Annotated[Path, typer.Argument(help="A saved .mlpackage.", metavar="PACKAGE", callback=expanded)]


@app.command("inspect")
def inspect(
    package: Package,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print a JSON object instead of tables.")
    ] = False,
) -> None:
    """Show a package's functions: what each takes, gives and is made of, and what could not be run."""
    from mobile_o_export.backends.coreml.interpreter import load_mlpackage

    program = load_mlpackage(package)
    if json_output:
        functions = [_content(function) for function in program.functions.values()]
        screen.result_json({"schema": 1, "package": str(package), "functions": functions})
        return
    for place, function in enumerate(program.functions.values()):
        if place:
            screen.result()
        _tell(function)


def _lacking(function: MilFunction) -> list[str]:
    """Types of operations that cannot be run."""
    from mobile_o_export.backends.coreml.interpreter.ops import implemented_ops

    return sorted(set(function.op_counts()) - set(implemented_ops()))


def _content(function: MilFunction) -> dict[str, Any]:
    def ports(found: tuple[Port, ...]) -> list[dict[str, Any]]:
        return [{"name": one.name, "dtype": one.dtype, "shape": list(one.shape)} for one in found]

    return {
        "name": function.name,
        "opset": function.opset,
        "inputs": ports(function.inputs),
        "outputs": ports(function.outputs),
        "states": ports(function.states),
        "pictures": {
            name: image.colours for name, image in {**function.images, **function.image_outputs}.items()
        },
        "operations": function.op_counts(),
        "lacking": _lacking(function),
    }


def _tell(function: MilFunction) -> None:
    screen.result(f"{legible(function.name)}, {legible(function.opset)}")
    rows = []
    pictures = {"input": function.images, "state": {}, "output": function.image_outputs}
    for kind, ports in (
        ("input", function.inputs), ("state", function.states), ("output", function.outputs)
    ):  # fmt: skip
        for port in ports:
            image = pictures[kind].get(port.name)
            rows.append(
                [kind, legible(port.name), port.dtype, _shape(port.shape), image.colours if image else ""]
            )
    screen.result(table(["", "name", "dtype", "shape", "picture"], rows))
    counts = {kind: count for kind, count in function.op_counts().items() if kind != "const"}
    screen.result(
        f"{sum(counts.values())} operations: " + ", ".join(f"{n} {legible(k)}" for k, n in counts.items())
    )
    if lacking := _lacking(function):
        screen.result(f"cannot be run: {', '.join(map(legible, lacking))} not implemented")


def _shape(shape: tuple[int | None, ...]) -> str:
    return " × ".join("?" if size is None else str(size) for size in shape) or "scalar"


@app.command("run")
def run(
    package: Package,
    given: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", help="An input: a .npy file, or a picture.", metavar="NAME=FILE"),
    ] = None,
    function: Annotated[
        str | None,
        typer.Option("--function", help="Which function, where there are several.", metavar="NAME"),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option("--also", help="Give this result on the way, too.", metavar="NAME"),
    ] = None,
    fp32: Annotated[
        bool, typer.Option("--fp32", help="Compute in fp32 what the package declares as fp16.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="A folder to make, of a .npy a result; pictures are .png as well, classes .json.",
            metavar="DIR",
            callback=expanded,
        ),
    ] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print a JSON object instead of a table.")
    ] = False,
) -> None:
    """Run a function of a package on files, and say what came of it.

    Inputs are converted to the declared types; states begin as zeros.
    """
    with ProgressPrinter() as progress:
        progress("mil", "", "reading the package")
        from mobile_o_export.backends.coreml.interpreter import Interpreter, Rounding, load_mlpackage

        chosen = _function(load_mlpackage(package), function)
        inputs = _inputs(chosen, given or [], fp32=fp32)
        rounding = Rounding.FP32 if fp32 else Rounding.TYPED
        interpreter = Interpreter(chosen, component=package.name, rounding=rounding)
        progress("mil", "", f"running {chosen.name}")
        found = interpreter.run(inputs, state=interpreter.make_state(), also=also or [])
        if out is not None:
            _write(found, chosen, out, progress)
    if json_output:
        results = [_summary(name, value) for name, value in found.items()]
        screen.result_json({"schema": 1, "function": chosen.name, "results": results})
        return
    cells = [
        [legible(name), value.dtype.name, _shape(value.shape), *map(_number, _measures(value))]
        for name, value in found.items()
        if isinstance(value, np.ndarray)
    ]
    if cells:
        screen.result(table(["name", "dtype", "shape", *MEASURES], cells, right=(3, 4, 5)))
    for name, value in found.items():
        if isinstance(value, dict):
            best = sorted(value.items(), key=lambda pair: -pair[1])[:MOST_CLASSES]
            rows = [[legible(str(label)), _number(share)] for label, share in best]
            screen.result(table([legible(name), "probability"], rows, right=(1,)))
        elif not isinstance(value, np.ndarray):
            screen.result(f"{legible(name)}: {legible(str(value))}")


MEASURES = ("least", "mean", "largest")
MOST_CLASSES = 5
"""How many of a classifier's classes are shown, the most probable; JSON and files have all."""


def _measures(value: Array) -> list[float | None]:
    """Of what a result holds; None of an empty one."""
    numbers = value.astype(np.float64)
    return (
        [float(one) for one in (numbers.min(), numbers.mean(), numbers.max())] if value.size else [None] * 3
    )


def _summary(name: str, value: Any) -> dict[str, Any]:
    """A result as JSON has it, which knows neither NaN nor infinity."""
    if isinstance(value, dict):
        return {"name": name, "probabilities": value}
    if not isinstance(value, np.ndarray):
        return {"name": name, "class": value}
    numbers = [one if one is not None and math.isfinite(one) else None for one in _measures(value)]
    return {
        "name": name,
        "dtype": value.dtype.name,
        "shape": list(value.shape),
        "finite": bool(np.isfinite(value).all()),
        **dict(zip(MEASURES, numbers, strict=True)),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _function(program: MilProgram, name: str | None) -> MilFunction:
    names = list(program.functions)
    if name is None and len(names) > 1:
        raise UsageError(f"{program.path}: has the functions {', '.join(names)}. Say which with --function.")
    if name is not None and name not in names:
        raise UsageError(f"{program.path}: has no function {name}, but {', '.join(names)}.")
    return program.functions[name or names[0]]


def _inputs(function: MilFunction, given: list[str], *, fp32: bool) -> dict[str, Any]:
    """The inputs by name, from ``NAME=FILE``."""
    dtypes = {port.name: port.dtype for port in function.inputs}
    found: dict[str, Any] = {}
    for pair in given:
        name, separator, file = pair.partition("=")
        if not separator or not file:
            raise UsageError(f"--input {pair}: is not NAME=FILE.")
        if name in found:
            raise UsageError(f"--input {name}: is given twice.")
        path = expanded(Path(file))
        assert path is not None
        if path.suffix.lower() != ".npy":
            if name in dtypes and name not in function.images:
                raise UsageError(f"--input {name}: is an array. Give a .npy file, as numpy.save writes it.")
            found[name] = _picture(path)
            continue
        value = _array(path)
        wanted = dtypes.get(name, value.dtype.name)
        found[name] = value.astype("float32" if fp32 and wanted == "float16" else wanted)
    return found


def _array(path: Path) -> Array:
    try:
        value = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file.") from error
    except (OSError, ValueError, EOFError) as error:
        # NumPy's own words recommend to unpickle it.
        raise UsageError(f"{path}: is no file of numpy.save with numbers. Save the array again.") from error
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise UsageError(f"{path}: holds no array of numbers.")
    return value


def _picture(path: Path) -> Picture:
    from mobile_o_export.pipelines.preprocessing import load_picture

    return load_picture(path)


def _write(found: dict[str, Any], function: MilFunction, out: Path, progress: ProgressPrinter) -> None:
    from mobile_o_export.atomic import staged_folder

    size = sum(getattr(value, "nbytes", 0) + 1024 for value in found.values())
    with staged_folder(out, size, partial(progress.done, "disk", "")) as folder:
        for place, (name, value) in enumerate(found.items()):
            # A package may call its results what no file can be called.
            plain = name if name.replace("_", "").isalnum() and len(name) < 100 else f"result-{place}"
            if isinstance(value, np.ndarray):
                np.save(folder / f"{plain}.npy", value)
                image = function.image_outputs.get(name)
                # PNG has no floats.
                if image is not None and (picture := image.picture(value)).mode != "F":
                    picture.save(folder / f"{plain}.png")
            else:
                (folder / f"{plain}.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
