#!/usr/bin/env bash
# coremltools 9.0: ct.convert takes outputs=[ImageType] for a MIL program and makes an array of it, without a word.
#
# Behaviour: of a program that was built with coremltools' own Builder, inputs=[ImageType] is obeyed and the package
# declares a picture; outputs=[ImageType] is ignored, no matter which colours, and the package declares an array. The
# same arguments on a PyTorch program give a picture. Nothing is raised or warned of, and an app finds no pixel buffer.
#
# Output seen:
#     MIL program: input imageType, output multiArrayType
#     PyTorch program: input imageType, output imageType
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 coremltools==9.0 torch==2.13.0

cat > "$work/run.py" <<'PYTHON'
import warnings

import coremltools as ct
import torch
from coremltools.converters.mil import Builder as mb

warnings.simplefilter("error", UserWarning)
SHAPE = (1, 3, 4, 4)


@mb.program(input_specs=[mb.TensorSpec(SHAPE)], opset_version=ct.target.iOS16)
def mil(picture):
    return mb.mul(x=picture, y=0.5, name="drawn")


class Half(torch.nn.Module):
    def forward(self, picture):
        return picture * 0.5


programs = {"MIL": mil, "PyTorch": torch.export.export(Half(), (torch.zeros(SHAPE),)).run_decompositions({})}
for name, program in programs.items():
    model = ct.convert(
        program,
        minimum_deployment_target=ct.target.iOS16,
        inputs=[ct.ImageType("picture", SHAPE, color_layout=ct.colorlayout.RGB)],
        outputs=[ct.ImageType("drawn", color_layout=ct.colorlayout.RGB)],
        skip_model_load=True,
    )
    description = model.get_spec().description
    kinds = [feature.type.WhichOneof("Type") for feature in (description.input[0], description.output[0])]
    print(f"{name} program: input {kinds[0]}, output {kinds[1]}")
PYTHON

seen=$("$work/venv/bin/python" "$work/run.py" 2>/dev/null)
wanted="MIL program: input imageType, output multiArrayType
PyTorch program: input imageType, output imageType"
echo "$seen"
[ "$seen" = "$wanted" ] || { echo "this has changed"; exit 1; }
