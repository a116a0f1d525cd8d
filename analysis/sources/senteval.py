"""``senteval:PATH``: a probing file of SentEval, as it is (Conneau et al. 2018, https://aclanthology.org/P18-1198).

1. Every line is a row of tab-separated fields, without a header and without quoting: ``tr``, ``va`` or ``te``; the
   label; whatever else; the sentence.
2. The sentences are tokenised ("do n't", " ,"), which no encoder was trained on: with --detokenise they are written
   as English is, by the rules of `detokenised`.

One of the published tasks has a test part identical to its validation part in five languages; that is noted.
"""

from __future__ import annotations

import re
from array import array
from hashlib import blake2b
from pathlib import Path

import numpy as np

from clsprobe.analysis.sources import Loaded, SourceOptions
from clsprobe.analysis.sources.lines import find, read_lines
from clsprobe.analysis.sources.tables import Findings, Texts, shown
from clsprobe.probes.errors import InputError
from clsprobe.probes.tasks.task import Task

PARTS = {"tr": "train", "va": "dev", "te": "test"}


def load(rest: str, options: SourceOptions) -> Loaded:
    """The task of one file. Raises InputError, naming up to ten lines, for rows that are none."""
    path = find(rest, "senteval:past_present.txt")
    if path.is_dir():
        files = ", ".join(sorted(file.name for file in path.iterdir() if file.suffix in (".txt", ".tsv"))[:10])
        raise InputError(str(path), "is a folder", f"Name one of its files: {files}" if files else "Name a file")
    findings, texts = Findings(path), Texts()
    sides, codes, classes = array("b"), array("i"), dict[str, int]()
    digests = {part: [0, 0] for part in PARTS}  # rows, and the sum of their hashes: the same in any order
    names, width, rows, empty = list(PARTS), 0, 0, 0
    for number, line in read_lines(path):
        if not line.strip():
            continue
        rows += 1
        part, *fields = line.split("\t")
        width = width or len(fields)
        if part not in PARTS:
            findings.problem(number, f"starts with {shown(part)}, not with tr, va or te and a tab", _HEADER, "part")
        elif len(fields) != width or width < 2:
            need = "at least 3 are needed" if width < 2 else f"the first row has {width + 1}"
            findings.problem(number, f"{len(fields) + 1} fields, {need}", "A sentence must not hold a tab", "fields")
        elif not (label := fields[0].strip()):
            findings.problem(number, "the label is empty", "Fill it in")
        elif not (text := fields[-1].strip()):
            empty += 1
            if not options.drop_empty:
                findings.problem(number, "the sentence is empty", "Fill it in, or pass --drop-empty")
        else:
            texts.append(detokenised(text) if options.detokenise else text)
            codes.append(classes.setdefault(label, len(classes)))
            sides.append(names.index(part))
            digest = digests[part]
            digest[0] += 1
            digest[1] += int.from_bytes(blake2b(f"{label}\t{text}".encode(), digest_size=16).digest(), "big")
    findings.check()
    if missing := [part for part in ("tr", "te") if not digests[part][0]]:
        raise InputError(path.name, f"no {missing[0]} rows", "A SentEval file has tr, va and te rows")
    notes = []
    if digests["va"] == digests["te"]:
        notes.append(f"test is identical to validation ({digests['te'][0]:,} rows)")
    task = Task(
        f"senteval:{Path(path.name.removesuffix('.gz')).stem}",
        texts.finish(),
        np.array(list(classes))[np.frombuffer(codes, np.intc)],
        split=np.array(list(PARTS.values()))[np.frombuffer(sides, np.int8)],
    )
    return Loaded([task], rows, {"empty text": empty} if empty else {}, notes)


_HEADER = "A SentEval file has no header: part, label and sentence, separated by tabs"


def detokenised(text: str) -> str:
    """An English sentence in the way of the Penn Treebank or of Moses ("do n't", "`` so ''"), written as usual."""
    written, glued, quoted = "", True, False
    for token in text.split():
        token = _BRACKETS.get(token, token)
        if token in ('"', "``", "''"):
            quoted = token == "``" or (token == '"' and not quoted)  # straight ones open and close in turn
            token, left, right = '"', not quoted, quoted
        else:
            left = bool(_GLUED.fullmatch(token)) or (token in ("'", "’") and written.endswith("s"))
            right = token in ("(", "[", "{", "$", "#")
        written += token if left or glued else f" {token}"
        glued = right
    return written


_BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}
_GLUED = re.compile(r"[.,;:!?%)\]}]+|n['’]t|['’](s|re|ve|ll|d|m)", re.IGNORECASE)
