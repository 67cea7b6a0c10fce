"""Which way imports go, where vendors' packages may appear, and what starts without them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mobile_o_export"
MODULES = sorted(PACKAGE.rglob("*.py"))
OWN = "mobile_o_export"

VENDORS = {
    "coremltools": "coreml",
    "litert_torch": "litert",
    "ai_edge_torch": "litert",
    "ai_edge_litert": "litert",
    "ai_edge_quantizer": "litert",
    "onnx": "onnx",
    "onnx_ir": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "tensorrt": "onnx",
}
"""A vendor's package, and the one folder of ``backends`` that may import it."""

HEAVY = ("torch", "transformers", "diffusers", *VENDORS)

FORBIDDEN = {
    "components": (
        "backends",
        "bundle",
        "cli",
        "export",
        "exporting",
        "golden",
        "parity",
        "pipelines",
        "session",
        "targets",
    ),
    "model": (
        "backends",
        "bundle",
        "cli",
        "components",
        "export",
        "exporting",
        "golden",
        "parity",
        "pipelines",
        "targets",
    ),
    "cache": ("cli", "export", "exporting", "model", "plan", "report", "session", "tuning"),
    "lowered": (
        "cache",
        "cli",
        "components",
        "export",
        "exporting",
        "golden",
        "model",
        "plan",
        "session",
        "targets",
    ),
    "checkpoint": (
        "backends",
        "bundle",
        "cache",
        "cli",
        "components",
        "export",
        "exporting",
        "golden",
        "parity",
        "pipelines",
    ),
    "backends": (
        "bundle",
        "cache",
        "checkpoint",
        "cli",
        "export",
        "exporting",
        "golden",
        "model",
        "pipelines",
        "plan",
        "session",
    ),
    "parity": (
        "backends",
        "bundle",
        "cli",
        "components",
        "export",
        "exporting",
        "golden",
        "model",
        "pipelines",
        "session",
    ),
    "compression": (
        "backends",
        "bundle",
        "checkpoint",
        "cli",
        "components",
        "export",
        "exporting",
        "golden",
        "model",
        "pipelines",
        "plan",
        "report",
        "session",
    ),
    "report": ("checkpoint", "cli", "export", "exporting", "golden", "model", "plan", "session"),
    "evaluation": (
        "checkpoint",
        "cli",
        "components",
        "export",
        "exporting",
        "golden",
        "model",
        "plan",
        "report",
        "session",
    ),
    "benching": (
        "cache",
        "cli",
        "components.registry",
        "evaluation",
        "export",
        "exporting",
        "model",
        "plan",
        "report",
        "tuning",
    ),
    "exporting": ("cli", "export", "model", "report", "session", "tuning"),
    "jobs": ("backends", "bundle", "cache", "checkpoint", "cli", "components", "export", "exporting", "plan"),
    "workers": (
        "backends",
        "bundle",
        "cache",
        "checkpoint",
        "cli",
        "components",
        "export",
        "exporting",
        "jobs",
    ),
    "golden": ("bundle", "cache", "cli", "export", "exporting", "plan", "session", "targets"),
    "pipelines": (
        "backends",
        "bundle",
        "cli",
        "components",
        "export",
        "exporting",
        "golden",
        "model",
        "targets",
    ),
    "bundle": ("cache", "cli", "export", "exporting", "model", "plan"),
    "tokenizer": ("backends", "bundle", "checkpoint", "cli", "components", "golden", "model", "pipelines"),
    "tensors": ("backends", "bundle", "checkpoint", "cli", "components", "golden", "model", "parity"),
}
"""What each room may not import while it runs; names for type checkers alone are no import."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path, node: ast.AST | None = None) -> Iterator[str]:
    """Every module that the file imports, inside functions too, but not for type checkers alone."""
    node = node or ast.parse(path.read_text())
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{path}: a relative import"
            assert child.module is not None
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif not is_type_checking(child):
            yield from imports(path, child)


def within(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}.")


def test_the_walk_sees_imports_in_functions_and_skips_those_of_type_checkers(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nimport a.b\n"
        "if TYPE_CHECKING:\n    import hidden\n"
        "def f():\n    from c import d\n    try:\n        import e\n    except ImportError:\n        pass\n"
    )
    assert list(imports(path)) == ["typing.TYPE_CHECKING", "a.b", "c.d", "e"]


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_go_one_way(room: str) -> None:
    place = PACKAGE / room
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    wrong = [
        f"{name_of(path)} imports {name}"
        for path in files
        for name in imports(path)
        if any(within(name, f"{OWN}.{other}") for other in FORBIDDEN[room])
    ]
    assert files
    assert wrong == []


def test_backends_know_no_component() -> None:
    allowed = (f"{OWN}.components.base", f"{OWN}.components.building")
    wrong = [
        f"{name_of(path)} imports {name}"
        for path in (PACKAGE / "backends").rglob("*.py")
        for name in imports(path)
        if within(name, f"{OWN}.components")
        and name != f"{OWN}.components.building"
        and not any(within(name, module) for module in allowed)
    ]
    assert wrong == []


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendor_s_package_stays_in_its_backend(vendor: str) -> None:
    wrong = [
        name_of(path)
        for path in MODULES
        if any(within(name, vendor) for name in imports(path))
        and not path.is_relative_to(PACKAGE / "backends" / VENDORS[vendor])
    ]
    assert wrong == []


def test_torch_s_onnx_exporter_stays_in_its_backend() -> None:
    found = [name_of(path) for path in MODULES if "torch.onnx" in path.read_text()]
    assert [name for name in found if not within(name, f"{OWN}.backends.onnx")] == []


def test_one_module_of_the_command_line_prints() -> None:
    """Whatever is shown goes through it: text of others must not move the cursor or colour itself."""
    # The script that a bundle carries to the device is a command line of its own.
    modules = [path for path in MODULES if path.name != "build_engines.py"]
    printing = {
        name_of(path)
        for path in modules
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing == {f"{OWN}.cli.screen"}
    streams = {name_of(path) for path in modules if re.search(r"sys\.(stdout|stderr)", path.read_text())}
    # console has the progress, main opens and flushes the streams, quiet keeps vendors' output back.
    allowed = {"cli.screen", "cli.console", "cli.main", "quiet"}
    assert streams <= {f"{OWN}.{name}" for name in allowed}
    writing = {
        name_of(path)
        for path in modules
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in WRITING
    }
    assert writing == set()


WRITING = ("sys.stdout.write", "sys.stderr.write", "typer.echo", "click.echo", "traceback.print_exception")


def test_no_file_holds_a_second_idea() -> None:
    """500 lines; past that, it is in there somewhere."""
    files = [*MODULES, *Path(__file__).parent.rglob("*.py")]
    assert [str(path) for path in files if len(path.read_text().splitlines()) > 500] == []


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.slow
def test_every_module_can_be_the_first_one_imported() -> None:
    """No cycle that an import order hides; and no warning."""
    code = f"""
import importlib, sys, warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch, diffusers, transformers
for name in {[name_of(path) for path in MODULES if path.stem != "__main__"]!r}:
    for known in [known for known in sys.modules if known.split(".")[0] == {OWN!r}]:
        del sys.modules[known]
    importlib.import_module(name)
"""
    result = python(code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_no_module_imports_a_vendor_s_package_on_its_own_import() -> None:
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({list(VENDORS)!r}))
for name in {[name_of(path) for path in MODULES if path.stem != "__main__"]!r}:
    importlib.import_module(name)
"""
    result = python(code)
    assert (result.returncode, result.stderr) == (0, "")


NEEDS_TORCH = (
    "backends.coreml.convert",
    "backends.coreml.encode",
    "backends.coreml.interpreter",
    "backends.coreml.rewrites",
    "backends.coreml.write",
    "backends.decompose",
    "backends.litert.convert",
    "backends.litert.encode",
    "backends.litert.write",
    "backends.lowering",
    "backends.mobile_o_app.connector",
    "backends.onnx.convert",
    "backends.onnx.encode",
    "backends.onnx.write",
    "backends.tracing",
    "components",
    "compression.activations",
    "compression.compress",
    "compression.palettes",
    "compression.placeholders",
    "compression.placed",
    "model",
    "tuning",
)
"""What computes with PyTorch, or traces it."""


def test_only_what_computes_with_torch_imports_it() -> None:
    names = [name_of(path) for path in MODULES if path.stem != "__main__"]
    free = [n for n in names if not any(within(n, f"{OWN}.{part}") for part in NEEDS_TORCH)]
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({HEAVY!r}))
for name in {free!r}:
    importlib.import_module(name)
"""
    result = python(code)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("command", [[], ["export"], ["verify"], ["golden", "record"], ["cache", "verify"]])
def test_help_answers_without_torch_or_a_vendor_s_package(command: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", OWN, *command, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout
    imported = {
        line.rsplit("|", 1)[1].strip().split(".")[0] for line in result.stderr.splitlines() if "|" in line
    }
    assert OWN in imported
    assert imported.isdisjoint(HEAVY)
