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
        ("=w8", "component '' is unknown."),
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
        ("", "components: is missing"),
        ("[components]", "components: give at least one"),
        ("[components]\nmcp = 'w8'", "components.mcp: give a table."),
        ("[components.mcp]\nprecision = 'w8'\nrules = 'x'", "components.mcp.rules: give a list"),
        ("[components.mcp]\nprecision = 'w8'\nimportance = 'yes'", "components.mcp.importance: give true or"),
        (
            "[components.mcp]\nprecision = 'fp16'\n[[components.mcp.rules]]\nmatch = 'x'\nprecision = 'fp16'",
            "the rule 'x' matches no weight",
        ),
        (
            "[components.mcp]\nprecision = 'w8'\n[components.mcp.gate]\nsnr_db = 5.0",
            "a gate looser than 35 dB, that of its weights' precisions, needs a reason",
        ),
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


def test_a_rule_for_another_floating_point_than_is_computed_in_is_refused(
    cli: Cli, reference_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    rule = "[[components.mcp.rules]]\nmatch = '*'\nprecision = 'fp32'"
    path.write_text(f"[components.mcp]\nprecision = 'w8'\n{rule}")
    outcome = cli("plan", reference_folder, *MCP, "--recipe", path)
    assert outcome.code == 2
    assert "a rule asks for fp32, and what is not compressed is fp16 in this component." in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say what to reach: --budget SIZE or --min-snr DB"),
        (("--budget", "1MB", "--min-snr", "30"), "one of the two"),
        (("--budget", "lots"), "--budget 'lots' is no size. Write 900MB"),
        (("--budget", "-5MB"), "is no size"),
        (("--budget", "1KB"), "more than the budget of 0.001 MB"),
        (("--budget", "9" * 400), "is no size"),
        (("--min-snr", "nan"), "--min-snr nan is no level to reach. Give dB above 0"),
        (("--min-snr", "-5"), "--min-snr -5 is no level to reach"),
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

    again = ("tune", reference_folder, *MCP, "--golden", golden, "--min-snr", "20", "--out")
    cli(*again, out).refused("exists already. Choose another name, or --overwrite it")
    assert json.loads(out.with_suffix(".json").read_text())["components"]["mcp"] == numbers
    measured = (tmp_path / "sensitivities.jsonl").read_text()
    assert cli(*again, tmp_path / "smaller.toml").code == 0
    assert cli(*again, out, "--overwrite").code == 0
    assert out.read_text() == (tmp_path / "smaller.toml").read_text()
    # Another goal, under another name: by the same sensitivities.
    assert (tmp_path / "sensitivities.jsonl").read_text() == measured


def test_places_where_a_recipe_cannot_go_are_refused_before_anything_is_measured(
    cli: Cli, reference_folder: Path, golden: Path, tmp_path: Path
) -> None:
    (tmp_path / "folder.toml").mkdir()
    arguments = ("tune", reference_folder, *MCP, "--golden", golden, "--min-snr", "30", "--out")
    for name, message in (
        ("recipe.json", "a recipe's name ends in .toml"),
        ("missing/recipe.toml", "its folder does not exist. Make it first"),
        ("folder.toml", "is a folder. Give the path of a file"),
    ):
        cli(*arguments, tmp_path / name).refused(message)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.toml"]


def test_calibration_on_another_checkpoint_s_golden_is_refused(
    cli: Cli, reference_folder: Path, tmp_path: Path
) -> None:
    another = Path(__file__).parents[2] / "golden" / "demo"
    out = tmp_path / "bundle"
    arguments = ("export", reference_folder, *MCP, "--precision", "w8a8", "--out", out)
    cli(*arguments, "--calibration", another).refused("another checkpoint")
    assert not out.exists()
