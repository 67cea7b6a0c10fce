"""``mil inspect`` and ``mil run`` on packages that coremltools wrote, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_harness import Cli
from PIL import Image

from mobile_o_export.quiet import captured

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of fp16: the scaled picture's ReLU, and its sum with another input."""
    with captured("package"):
        import coremltools as ct
        from coremltools.converters.mil import Builder as mb  # noqa: N813
        from coremltools.converters.mil.mil import types

        specs = [mb.TensorSpec((1, 3, 2, 4), dtype=types.fp16), mb.TensorSpec((1,), dtype=types.int32)]

        @mb.program(input_specs=specs, opset_version=ct.target.iOS18)
        def program(picture: Any, count: Any) -> Any:
            half = mb.mul(x=picture, y=np.float16(1 / 255), name="half")
            return mb.relu(x=half, name="bright"), mb.add(x=count, y=np.int32(1), name="next")

        path = tmp_path_factory.mktemp("mil") / "one.mlpackage"
        ct.convert(
            program,
            minimum_deployment_target=ct.target.iOS18,
            inputs=[
                ct.ImageType("picture", (1, 3, 2, 4), color_layout=ct.colorlayout.BGR),
                ct.TensorType("count", (1,), dtype=np.int32),
            ],
            package_dir=str(path),
            skip_model_load=True,
        )
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[..., 0] = 255  # red
    pixels[0, 0] = (51, 102, 204)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def count(tmp_path: Path) -> Path:
    np.save(tmp_path / "count.npy", np.array([41.0]))
    return tmp_path / "count.npy"


def test_inspect(cli: Cli, package: Path) -> None:
    plain = cli("mil", "inspect", package)
    assert plain.code == 0
    for words in ("main, CoreML8", "input   picture", "BGR", "1 × 3 × 2 × 4", "output  next", "1 relu"):
        assert words in plain.out, plain.out
    assert "cannot be run" not in plain.out
    content = json.loads(cli("mil", "inspect", package, "--json").out)
    (function,) = content["functions"]
    assert function["pictures"] == {"picture": "BGR"}
    assert function["inputs"][1] == {"name": "count", "dtype": "int32", "shape": [1]}
    assert function["lacking"] == []
    assert function["operations"]["relu"] == 1


def test_run_a_classifier(cli: Cli, tmp_path: Path) -> None:
    with captured("package"):
        import coremltools as ct
        from coremltools.converters.mil import Builder as mb  # noqa: N813

        @mb.program(input_specs=[mb.TensorSpec((7,))], opset_version=ct.target.iOS18)
        def program(x: Any) -> Any:
            return mb.softmax(x=x, axis=-1, name="shares"), mb.square(x=x, name="squares")

        path = tmp_path / "classifier.mlpackage"
        labels = ["\x1b[31mcat", *"bcdefg"]
        ct.convert(
            program,
            minimum_deployment_target=ct.target.iOS18,
            classifier_config=ct.ClassifierConfig(labels, predicted_probabilities_output="shares"),
            package_dir=str(path),
            skip_model_load=True,
        )
    np.save(tmp_path / "x.npy", np.arange(7, 0, -1.0))
    out = tmp_path / "results"
    plain = cli("mil", "run", path, "-i", f"x={tmp_path / 'x.npy'}", "--out", out)
    assert plain.code == 0, plain.err
    assert "squares" in plain.out
    assert "classLabel: \\x1b[31mcat" in plain.out
    assert "\x1b" not in plain.out
    assert "0.63" in plain.out
    assert "\nf " not in plain.out  # of seven the five most probable
    assert json.loads((out / "classLabel.json").read_text()) == labels[0]
    assert list(json.loads((out / "classLabel_probs.json").read_text())) == labels
    results = json.loads(cli("mil", "run", path, "-i", f"x={tmp_path / 'x.npy'}", "--json").out)["results"]
    assert {"name": "classLabel", "class": labels[0]} in results
    (probabilities,) = (one["probabilities"] for one in results if "probabilities" in one)
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-2)


def test_run_on_a_picture(cli: Cli, package: Path, picture: Path, count: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    inputs = ("--input", f"picture={picture}", "-i", f"count={count}")
    outcome = cli("mil", "run", package, *inputs, "--also", "half", "--out", out, "--json")
    assert outcome.code == 0, outcome.err
    rows = {row["name"]: row for row in json.loads(outcome.out)["results"]}
    assert set(rows) == {"half", "bright", "next"}
    assert rows["next"]["mean"] == 42
    bright = np.load(out / "bright.npy")
    # Blue first; red everywhere but in one corner.
    assert bright.shape == (1, 3, 2, 4)
    np.testing.assert_allclose(bright[0, :, 0, 0], [0.8, 0.4, 0.2], atol=1e-3)
    np.testing.assert_allclose(bright[0, 2].reshape(-1)[1:], 1.0, atol=1e-3)
    assert np.array_equal(np.load(out / "half.npy"), bright)
    table = cli("mil", "run", package, *inputs, "--fp32")
    assert "bright  float32  1 × 3 × 2 × 4" in table.out, table.out


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_an_output_declared_as_a_picture_is_written_as_one(
    cli: Cli, picture: Path, tmp_path: Path, layout: str
) -> None:
    with captured("package"):
        import coremltools as ct
        import torch

        class Twice(torch.nn.Module):
            def forward(self, picture: torch.Tensor) -> torch.Tensor:
                return picture * 2 - 102.4

        path = tmp_path / "drawing.mlpackage"
        ct.convert(
            torch.export.export(Twice(), (torch.zeros(1, 3, 2, 4),)).run_decompositions({}),
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision.FLOAT32,
            inputs=[ct.ImageType("picture", (1, 3, 2, 4), color_layout=ct.colorlayout.RGB)],
            outputs=[ct.ImageType("drawn", color_layout=getattr(ct.colorlayout, layout))],
            package_dir=str(path),
            skip_model_load=True,
        )
    (function,) = json.loads(cli("mil", "inspect", path, "--json").out)["functions"]
    assert function["pictures"] == {"picture": "RGB", "drawn": layout}
    assert cli("mil", "inspect", path).out.count(layout) >= 1
    out = tmp_path / "results"
    outcome = cli("mil", "run", path, "-i", f"picture={picture}", "--out", out)
    assert outcome.code == 0, outcome.err
    with Image.open(out / "drawn.png") as image:
        pixels = np.asarray(image)
    wanted = [0, 102, 255]  # 51, 102 and 204 twice, less 102.4
    assert pixels[0, 0].tolist() == (wanted if layout == "RGB" else wanted[::-1])
    assert pixels[1, 1].tolist() == ([255, 0, 0] if layout == "RGB" else [0, 0, 255])
    assert np.load(out / "drawn.npy").shape == (1, 3, 2, 4)


@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
        ((), ("also needs the inputs count, picture",)),
        (("-i", "picture"), ("--input picture: is not NAME=FILE",)),
        (("-i", "count={count}", "-i", "count={count}"), ("--input count: is given twice",)),
        (("-i", "count={picture}"), ("--input count: is an array. Give a .npy file",)),
        (("-i", "other={count}", "-i", "picture={picture}", "-i", "count={count}"), ("has no inputs other",)),
        (("-i", "picture={count}", "-i", "count={count}"), ("has shape (1, 3, 2, 4), not (1,)",)),
        (
            ("-i", "picture={large}", "-i", "count={count}"),
            ("has 5 × 2 pixels", "takes 4 × 2"),
        ),
        (("-i", "count=missing.npy"), ("missing.npy: no such file",)),
        (("-i", "count={text}"), ("is no file of numpy.save",)),
        (("--function", "other"), ("has no function other, but main",)),
        (
            ("-i", "picture={picture}", "-i", "count={count}", "--also", "no"),
            ("has no result no on the way",),
        ),
    ],
)
def test_what_cannot_be_run(
    cli: Cli,
    package: Path,
    picture: Path,
    count: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    phrases: tuple[str, ...],
) -> None:
    Image.new("RGB", (5, 2)).save(tmp_path / "large.png")
    (tmp_path / "text.npy").write_text("no array")
    places = {
        "picture": picture,
        "count": count,
        "large": tmp_path / "large.png",
        "text": tmp_path / "text.npy",
    }
    cli("mil", "run", package, *(argument.format(**places) for argument in arguments)).refused(*phrases)


def test_no_package(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.mlpackage").mkdir()
    cli("mil", "inspect", tmp_path / "x.mlpackage").refused("is no .mlpackage", code=2)


def test_an_array_of_objects_is_not_unpickled(cli: Cli, package: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    cli("mil", "run", package, "-i", f"count={tmp_path / 'x.npy'}").refused("is no file of numpy.save")
