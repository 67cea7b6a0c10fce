#!/usr/bin/env bash
# ai-edge-litert 1.1.2 to 1.3.0 (TensorFlow Lite 2.19) on a CPU: garbage from a convolution of an fp16 filter.
#
# Behaviour: XNNPACK takes the bias of CONV_2D for fp16 where the filter is fp16 behind a DEQUANTIZE, whatever type
# the bias has. One of fp32 is read as halves: numbers of any size, no error, no warning. Zeros hide it, as they
# are zeros in both types. DEPTHWISE_CONV_2D with such a pair is not loaded ("failed to delegate"), and
# FULLY_CONNECTED is right. 1.0.1 and 1.4.0 and later compute all of it, as does LiteRT's kernel without XNNPACK.
# Converters that round every constant to fp16 (TensorFlow's own) never write such a pair; a converter that rounds
# weights and keeps biases does. With the bias in fp16 behind a DEQUANTIZE as well, every version is right.
#
# Output seen:
#     1.3.0 bias float32: differs by 5.1e+02 of 23.1
#     1.3.0 bias float16: differs by 2.9e-06 of 23.1
#     1.4.0 bias float32: differs by 0.0e+00 of 23.1
#     1.4.0 bias float16: differs by 2.9e-06 of 23.1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip=("$work/venv/bin/pip" install -q --disable-pip-version-check)
"${pip[@]}" numpy==2.4.6 flatbuffers==25.12.19
for version in 1.3.0 1.4.0 2.3.0; do
  "${pip[@]}" --no-deps --target "$work/$version" "ai-edge-litert==$version"
done

cat > "$work/write.py" <<'PYTHON'
import sys

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

types, kinds = schema.TensorType, schema.BuiltinOperator
random = np.random.default_rng(0)
filters = random.standard_normal((8, 3, 3, 8)).astype(np.float16)
bias = random.standard_normal(8).astype(np.float16)
for half_bias in (False, True):
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, model.operatorCodes = 3, [schema.BufferT()], []
    graph.tensors, graph.operators = [], []
    for code, version in ((kinds.DEQUANTIZE, 3), (kinds.CONV_2D, 1)):
        entry = schema.OperatorCodeT()
        entry.builtinCode = entry.deprecatedBuiltinCode = code
        entry.version = version
        model.operatorCodes.append(entry)

    def tensor(name, shape, kind, content=None):
        entry = schema.TensorT()
        entry.name, entry.shape, entry.type, entry.buffer = name, list(shape), kind, 0
        if content is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(content.tobytes(), np.uint8)
            model.buffers.append(buffer)
            entry.buffer = len(model.buffers) - 1
        graph.tensors.append(entry)
        return len(graph.tensors) - 1

    def operator(index, inputs, output):
        entry = schema.OperatorT()
        entry.opcodeIndex, entry.inputs, entry.outputs = index, inputs, [output]
        graph.operators.append(entry)
        return entry

    def restored(name, content):
        half = tensor(name + ".half", content.shape, types.FLOAT16, content)
        whole = tensor(name, content.shape, types.FLOAT32)
        operator(0, [half], whole)
        return whole

    x = tensor("x", (1, 6, 6, 8), types.FLOAT32)
    own = restored("bias", bias) if half_bias else tensor("bias", (8,), types.FLOAT32, bias.astype(np.float32))
    y = tensor("y", (1, 6, 6, 8), types.FLOAT32)
    convolution = operator(1, [x, restored("filter", filters), own], y)
    convolution.builtinOptionsType = schema.BuiltinOptions.Conv2DOptions
    convolution.builtinOptions = options = schema.Conv2DOptionsT()
    options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
    graph.inputs, graph.outputs, model.subgraphs = [x], [y], [graph]
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    with open(f"{sys.argv[1]}/{'float16' if half_bias else 'float32'}.tflite", "wb") as file:
        file.write(builder.Output())
PYTHON
PYTHONPATH="$work/2.3.0" "$work/venv/bin/python" "$work/write.py" "$work"

cat > "$work/run.py" <<'PYTHON'
import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

folder, version, *wrong = sys.argv[1:]
x = np.random.default_rng(1).standard_normal((1, 6, 6, 8)).astype(np.float32)
for bias in ("float32", "float16"):
    results = []
    for resolver in (OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES, OpResolverType.AUTO):
        interpreter = Interpreter(f"{folder}/{bias}.tflite", experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        interpreter.invoke()
        results.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    plain, fast = results
    difference = np.abs(fast - plain).max()
    print(f"{version} bias {bias}: differs by {difference:.1e} of {np.abs(plain).max():.1f}")
    assert (difference > 1e-3) == (bias in wrong), "it is otherwise now"
PYTHON
for version in 1.3.0 1.4.0 2.3.0; do
  wrong=$([ "$version" = 1.3.0 ] && echo float32 || true)
  PYTHONPATH="$work/$version" "$work/venv/bin/python" "$work/run.py" "$work" "$version" $wrong 2>/dev/null
done
