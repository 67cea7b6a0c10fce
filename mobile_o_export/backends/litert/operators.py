"""Which runtimes have which operator in which version."""

from __future__ import annotations

NEEDS = {
    ("DEQUANTIZE", "FLOAT16"): (3, "1.15.0"),
    ("DEQUANTIZE", "INT8"): (5, "2.7.0"),
    ("DEQUANTIZE", "INT4"): (6, "2.18.0"),
    ("DEQUANTIZE", "INT16"): (3, "1.15.0"),
    ("QUANTIZE", "INT8"): (1, "1.14.0"),
    ("QUANTIZE", "INT16"): (2, "1.15.0"),
    ("EMBEDDING_LOOKUP", "INT8"): (4, "2.18.0"),
    ("EMBEDDING_LOOKUP", "INT4"): (4, "2.18.0"),
    ("FULLY_CONNECTED", "INT8"): (12, "2.17.0"),
    ("FULLY_CONNECTED", "INT4"): (12, "2.17.0"),
    ("CONV_2D", "INT8"): (5, "2.4.0"),
    ("CONV_2D", "INT4"): (7, "2.11.0"),
    ("DEPTHWISE_CONV_2D", "INT8"): (3, "1.14.0"),
    ("FULLY_CONNECTED", "INT16"): (7, "2.3.0"),
    ("CONV_2D", "INT16"): (4, "2.3.0"),
    ("DEPTHWISE_CONV_2D", "INT16"): (5, "2.3.0"),
}
"""Versions of operators, and the runtimes they came with: LiteRT's op_version.cc and runtime_version.cc."""
