"""--precision, --recipe and tune on the command line: what is refused, what comes of them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from cli_harness import Cli
from PIL import Image

MCP = ("--target", "coreml-ane", "--component", "mcp")


def size(cli: Cli, folder: Path, *arguments: object) -> int:
    outcome = cli("plan", folder, *MCP, "--json", *arguments)
    assert outcome.code == 0, outcome
    (row,) = json.loads(outcome.out)["rows"]
    return int(row["size_bytes"])


def test_plan_estimates_what_a_precision_saves(cli: Cli, reference_folder: Path) -> None:
    whole = size(cli, reference_folder, "--precision", "uncompressed")
    sizes = [size(cli, reference_folder, "--precision", name) for name in ("w8", "w6_lut_g16", "w4_lut_g16")]
    assert whole > sizes[0] > sizes[1] > sizes[2] > 0.2 * whole


def test_a_component_s_precision_comes_before_everyone_s(cli: Cli, reference_folder: Path) -> None:
    mixed = size(cli, reference_folder, "--precision", "w8", "--precision", "mcp=w4_lut")
    assert mixed == size(cli, reference_folder, "--precision", "mcp=w4_lut")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("w5_lut", "precision 'w5_lut' is unknown. Use fp32, fp16, w16"),
        ("", "precision '' is unknown."),
        ("mpc=w8", "component 'mpc' is unknown. Did you mean 'mcp'?"),
        ("mcp=", "precision '' is unknown."),
        ("mcp=w8_dyn", "coreml-ane, mcp: coreml does not do w8_dyn; it does fp32, fp16, wN_lut"),
    ],
)
def test_precisions_that_cannot_be_had(cli: Cli, reference_folder: Path, asked: str, message: str) -> None:
    outcome = cli("plan", reference_folder, *MCP, "--precision", asked)
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "components: Field required"),
        ("[components.mpc]\nprecision = 'w8'", "component 'mpc' is unknown. Did you mean 'mcp'?"),
        ("[components.mcp]\nprecision = 'w9'", "precision 'w9' is unknown"),
        ("[components.mcp]\nprecision = 'w8'\nrule = []", "rule"),
        ("components = [", "recipe.toml"),
        (
            "[components.mcp]\nprecision = 'w8'\n[[components.mcp.rules]]\n"
            "match = 'output_proj.0.wieght'\nprecision = 'fp16'",
            "the rule 'output_proj.0.wieght' matches no weight. Did you mean 'output_proj.0.weight'?",
        ),
    ],
)
def test_recipes_that_make_no_sense(
    cli: Cli, reference_folder: Path, tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(content)
    cli("plan", reference_folder, *MCP, "--recipe", path).refused(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say what to reach: --budget SIZE or --min-snr DB"),
        (("--budget", "1MB", "--min-snr", "30"), "one of the two"),
        (("--budget", "lots"), "--budget 'lots' is no size. Write 900MB"),
        (("--budget", "-5MB"), "is no size"),
        (("--budget", "1KB"), "more than the budget of 0.0 MB"),
        (("--min-snr", "30", "--candidate", "w7"), "precision 'w7' is unknown"),
        (("--min-snr", "30", "--candidate", "w8_dyn"), "w8_dyn is no candidate: coreml does not do w8_dyn"),
        (("--min-snr", "30", "--golden", "nowhere"), "nowhere"),
    ],
)
def test_goals_that_cannot_be_met(
    cli: Cli,
    reference_folder: Path,
    golden: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    recorded = () if "--golden" in arguments else ("--golden", golden)
    out = tmp_path / "recipe.toml"
    cli("tune", reference_folder, *MCP, *recorded, "--out", out, *arguments).refused(message)
    assert not out.exists()


def test_tune_leaves_a_recipe_that_plan_replays(
    cli: Cli, reference_folder: Path, golden: Path, tmp_path: Path
) -> None:
    out = tmp_path / "recipe.toml"
    tuned = cli("tune", reference_folder, *MCP, "--golden", golden, "--min-snr", "30", "--out", out)
    assert tuned.code == 0, tuned
    assert "coreml-ane mcp: tuned, " in tuned.err
    assert f"recipe: {out}" in tuned.out
    assert "mcp" in tomllib.loads(out.read_text())["components"]
    numbers = json.loads(out.with_suffix(".json").read_text())["components"]["mcp"]
    assert numbers["measured_db"] >= 30
    with Image.open(out.with_suffix(".png")) as chart:
        assert chart.width > 300
    assert size(cli, reference_folder, "--recipe", out) == pytest.approx(numbers["size_bytes"], rel=0.02)


def test_calibration_on_another_checkpoint_s_golden_is_refused(
    cli: Cli, reference_folder: Path, tmp_path: Path
) -> None:
    another = Path(__file__).parents[2] / "golden" / "demo"
    out = tmp_path / "bundle"
    arguments = ("export", reference_folder, *MCP, "--precision", "w8a8", "--out", out)
    cli(*arguments, "--calibration", another).refused("another checkpoint")
    assert not out.exists()
