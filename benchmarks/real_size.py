"""Wall time, peak memory and size of an export at real size, per component and target.

    python benchmarks/real_size.py [--size 0.5b] [--checkpoint DIR] [--target T ...] [--work DIR]
        [--prompts FILE]

Without ``--checkpoint`` it writes a random one of ``--size`` first. One golden is recorded, of
``--prompts`` where the usual ones take too long (litert-npu, whose int16 kernels are slow), and shared; each
target is exported in a process of its own, so that one's memory is not another's. ``×weights`` is the peak
while lowering over the component's fp32 size, as ``plan`` estimates it (its constant part taken off).
Outputs that missed their gate are named below the table. For comparison: Mobile-O's own exporter, iOS only
and without any check, took 249 s and 5.8 GB on two cores at 0.5b.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from mobile_o_export import memory
from mobile_o_export.atomic import staged_folder
from mobile_o_export.checkpoint import Checkpoint
from mobile_o_export.checkpoint.initialise import init_checkpoint
from mobile_o_export.cli.console import megabytes, table
from mobile_o_export.export import ParityError, export_bundle
from mobile_o_export.golden.record import record_golden
from mobile_o_export.parity.chain import CHAIN
from mobile_o_export.parity.judge import Status
from mobile_o_export.plan import BASE_MEMORY_BYTES
from mobile_o_export.targets import load_targets, target_names


def say(*words: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}]", *words, file=sys.stderr, flush=True)


def record(checkpoint: Path, prompts: Path | None, out: Path) -> None:
    started = time.monotonic()
    with staged_folder(out, 0) as folder:
        record_golden(Checkpoint.open(checkpoint), prompts, folder, lambda *_: None)
    size = sum(path.stat().st_size for path in out.iterdir())
    elapsed = time.monotonic() - started
    print(f"golden: {megabytes(size)}, {elapsed:.0f} s, peak {megabytes(memory.peak_bytes())}", flush=True)


def export(checkpoint: Path, golden: Path, target: str, out: Path, result: Path) -> None:
    opened = Checkpoint.open(checkpoint)
    try:
        found = export_bundle(opened, load_targets([target]), (), golden, out, "0.0.0", say)
    except ParityError as error:
        say(str(error))
        found = error.result
    worst = {
        component: min(row.snr_db or 0.0 for row in found.rows if row.component == component)
        for component in {row.component for row in found.rows}
    }
    costs = [{**asdict(cost), "worst_snr_db": worst[cost.component]} for cost in found.costs]
    missed = [
        f"{row.component} {row.function} {row.case} {row.output}: {row.reason}"
        for row in found.rows
        if row.status is not Status.PASSED
    ]
    content = {
        "costs": costs,
        "chain_seconds": found.chain_seconds[target],
        "chains": chains(found.rows),
        "verdict": [f"{len(found.rows) - len(missed)} of {len(found.rows)} outputs passed", *missed],
    }
    result.write_text(json.dumps(content))


def chains(rows) -> list[str]:
    """A line a chain: how its latents drift, and what comes out."""
    lines = []
    for task, case in dict.fromkeys((row.function, row.case) for row in rows if row.component == CHAIN):
        own = [row for row in rows if (row.function, row.case) == (task, case)]
        drift = [f"{row.snr_db:.0f}" for row in own if row.step is not None]
        images = [f"PSNR {row.psnr_db:.1f} dB, SSIM {row.ssim:.4f}" for row in own if row.psnr_db is not None]
        tokens = [
            f"{row.identical_tokens} tokens the same" for row in own if row.identical_tokens is not None
        ]
        lines.append(" ".join([f"{task} {case}:", *drift, *images, *tokens]))
    return lines


def run(function, *arguments) -> None:
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{function.__name__} ended with {process.exitcode}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="0.5b", choices=["tiny", "0.5b", "1.5b"])
    parser.add_argument("--checkpoint", type=Path, help="use this one")
    parser.add_argument("--target", action="append", choices=target_names())
    parser.add_argument("--work", type=Path, help="keep checkpoint, golden and bundles here")
    parser.add_argument("--prompts", type=Path, help="what a new golden is recorded on (golden/prompts.toml)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        checkpoint = arguments.checkpoint or work / f"checkpoint-{arguments.size}"
        if not checkpoint.exists():
            say("writing", str(checkpoint))
            run(init_checkpoint, checkpoint, arguments.size, 0)
        golden = work / "golden"
        if not golden.exists():
            say("recording the golden")
            run(record, checkpoint, arguments.prompts, golden)
        parameters = {
            name: sum(tensor.parameters for tensor in Checkpoint.open(checkpoint).component_tensors(name))
            for name in ("vision_encoder", "llm", "mcp", "dit", "vae_decoder")
        }
        for target in arguments.target or target_names():
            say("exporting", target)
            result = work / f"{target}.json"
            run(export, checkpoint, golden, target, work / f"bundle-{target}", result)
            content = json.loads(result.read_text())
            costs = content["costs"]
            fp32_bytes = {name: 4 * count for name, count in parameters.items()}
            rows = [
                [
                    cost["component"],
                    megabytes(cost["size_bytes"]),
                    f"{cost['lower_seconds']:.0f} s",
                    megabytes(cost["lower_peak_bytes"]),
                    f"{(cost['lower_peak_bytes'] - BASE_MEMORY_BYTES) / fp32_bytes[cost['component']]:.1f}",
                    f"{cost['verify_seconds']:.0f} s",
                    megabytes(cost["verify_peak_bytes"]),
                    f"{cost['worst_snr_db']:.1f}",
                ]
                for cost in costs
            ]
            total = [
                "total",
                megabytes(sum(cost["size_bytes"] for cost in costs)),
                f"{sum(cost['lower_seconds'] for cost in costs):.0f} s",
                megabytes(max(cost["lower_peak_bytes"] for cost in costs)),
                "",
                f"{sum(cost['verify_seconds'] for cost in costs):.0f} s",
                megabytes(max(cost["verify_peak_bytes"] for cost in costs)),
                f"{min(cost['worst_snr_db'] for cost in costs):.1f}",
            ]
            header = [
                "component",
                "size",
                "lowered in",
                "peak",
                "×weights",
                "verified in",
                "peak",
                "worst dB",
            ]
            print(f"\n{target}\n{table(header, [*rows, total], right=range(1, 8))}", flush=True)
            print(f"whole chains: {content['chain_seconds']:.0f} s", *content["chains"], sep="\n  ")
            print(*content["verdict"], sep="\n  ", flush=True)


if __name__ == "__main__":
    main()
