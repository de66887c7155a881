#!/usr/bin/env python3
"""Fails if more than 3 % of the doc comments open with a question word (CONTRIBUTING.md, "Language")."""

import pathlib
import re
import sys

MAX_PERCENT = 3
FOLDERS = ["src", "tests", "benches", "fuzz/fuzz_targets"]
DOC = re.compile(r"\s*(///|//!)\s?(.*)")
QUESTION = re.compile(r"(what|how|why|where|when|who|whom|whose|which|whether)\b", re.IGNORECASE)

root = pathlib.Path(__file__).resolve().parents[2]
total, found = 0, []
for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.rs")):
    inside = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        doc = DOC.match(line)
        if doc and not inside:
            total += 1
            if QUESTION.match(doc[2]):
                found.append(f"{path.relative_to(root)}:{number}: {doc[2]}")
        inside = bool(doc)

percent = 100 * len(found) / total
print(f"doc comments that open with a question word: {len(found)} of {total} ({percent:.1f} %, at most {MAX_PERCENT} %)")
if percent > MAX_PERCENT:
    print(*found, sep="\n")
    sys.exit(1)
