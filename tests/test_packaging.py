"""The wheel carries everything that the package reads."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys; from hatchling.builders.wheel import WheelBuilder as W; "
    code += "print(next(W(sys.argv[1]).build(directory=sys.argv[2])))"
    command = [sys.executable, "-c", code, str(ROOT), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


def test_wheel_carries_targets_goldens_and_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"mobile_o_export/data/targets/{path.name}" for path in (ROOT / "targets").glob("*.toml")}
    expected |= {
        f"mobile_o_export/data/golden/{name}" for name in ("prompts.toml", "still-life.png", "harbour.png")
    }
    expected |= {
        "mobile_o_export/parity/gates.toml",
        "mobile_o_export/backends/onnx/tensorrt_operators.json",
        "mobile_o_export/backends/onnx/build_engines.py",
        "mobile_o_export/checkpoint/data/sana-600m-512/transformer/config.json",
    }
    assert expected <= names


def test_installed_package_finds_its_targets(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import mobile_o_export, sys\n"
        "from mobile_o_export.targets import load_target, target_names\n"
        "from mobile_o_export.golden.requests import load_requests\n"
        "assert mobile_o_export.__file__.startswith(sys.argv[1]), mobile_o_export.__file__\n"
        "requests, folder = load_requests(None)\n"
        "assert all((folder / item.image).is_file() for item in requests.describe)\n"
        "print(*[load_target(name).name for name in target_names()])\n"
    )
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)],
        env={"PYTHONPATH": str(site), "PATH": ""},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [
        "coreml-ane",
        "coreml-gpu",
        "litert-cpu",
        "litert-gpu",
        "litert-npu",
        "mobile-o-app",
        "onnx-cpu",
        "tensorrt-orin",
        "tensorrt-orin-int8",
    ]
