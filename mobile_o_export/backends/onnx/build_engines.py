#!/usr/bin/env python3
"""Builds TensorRT engines from the ONNX files beside this script; run it on the Jetson itself.

    python3 build_engines.py [--out DIR] [--workspace-mib 2048] [FILE.onnx ...]

It needs only JetPack's own tensorrt package (10.3 or later, also 11). Engines are tied to this TensorRT
version and GPU: build them on the device that runs them. Each function of a graph is an optimisation
profile, in the order of profiles.json (the LLM's: 0 prefill, 1 decode).
"""

import argparse
import json
import sys
from pathlib import Path


def build(trt, source, profiles, engine, workspace_bytes):
    """Writes the engine of one ONNX file; returns False after printing why it cannot."""
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # Strongly typed: the precision of every tensor is the graph's own.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    # parse_from_file finds the external weights beside the .onnx file.
    if not parser.parse_from_file(str(source)):
        for index in range(parser.num_errors):
            print(f"{source}: {parser.get_error(index)}", file=sys.stderr)
        return False
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    for entry in profiles:
        profile = builder.create_optimization_profile()
        for name, shape in entry["shapes"].items():
            profile.set_shape(name, shape["min"], shape["opt"], shape["max"])
        if config.add_optimization_profile(profile) < 0:
            print(f"{source}: TensorRT refused the profile of {entry['function']}", file=sys.stderr)
            return False
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        print(f"{source}: TensorRT could not build an engine; see its messages above", file=sys.stderr)
        return False
    engine.parent.mkdir(parents=True, exist_ok=True)
    partial = engine.with_suffix(".partial")
    partial.write_bytes(bytes(plan))
    partial.replace(engine)
    return True


def main():
    """Builds every engine, or those named; exits with 1 if one failed, 3 without TensorRT."""
    here = Path(__file__).resolve().parent
    # Not in the bundle: verify would find files that nobody exported.
    outside = here.parent.with_name(f"{here.parent.name}-engines")
    parser = argparse.ArgumentParser(
        description="Builds TensorRT engines from the ONNX files beside this script."
    )
    parser.add_argument("files", nargs="*", help="as in profiles.json, e.g. dit/denoise.onnx; all by default")
    parser.add_argument(
        "--out", type=Path, default=outside, help=f"folder of the engines (default: {outside})"
    )
    parser.add_argument("--workspace-mib", type=int, default=2048, help="memory that building may use")
    arguments = parser.parse_args()
    try:
        import tensorrt as trt
    except ImportError:
        print("tensorrt is not installed; on a Jetson it comes with JetPack 6.1 or later", file=sys.stderr)
        return 3
    profiles = json.loads((here / "profiles.json").read_text())
    unknown = [name for name in arguments.files if name not in profiles]
    if unknown:
        print(f"{unknown[0]} is not in profiles.json; it has {', '.join(profiles)}", file=sys.stderr)
        return 2
    failed = []
    for name in arguments.files or profiles:
        engine = arguments.out / Path(name).with_suffix(".engine")
        print(f"building {engine}", flush=True)
        if not build(trt, here / name, profiles[name], engine, arguments.workspace_mib * 2**20):
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
