"""Names of files in a bundle that more than one room needs."""

from __future__ import annotations

TOKENIZER_FILE = "tokenizer.json"
LICENCE_NOTICE = "LICENCE-WEIGHTS.txt"
