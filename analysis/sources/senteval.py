"""``senteval:PATH``: a probing file of SentEval, as it is (Conneau et al. 2018, https://aclanthology.org/P18-1198).

1. Every line is a row of tab-separated fields, without header and quoting: the part (``tr``, ``va`` or ``te``), the
   label, optional further fields, the sentence.
2. The sentences are tokenised ("do n't", " ,"), unlike the training texts of encoders. --detokenise undoes this by the
   rules of `detokenise`.

One of the published tasks has identical test and validation parts in five languages; a note says so.
"""

from __future__ import annotations

import re
from array import array
from hashlib import blake2b
from pathlib import Path

import numpy as np

from clsprobe.analysis.sources import Loaded, SourceOptions
from clsprobe.analysis.sources.lines import find_path, read_lines
from clsprobe.probes.errors import InputError, quote
from clsprobe.probes.tasks.places import Places
from clsprobe.probes.tasks.rows import Findings
from clsprobe.probes.tasks.task import Task
from clsprobe.probes.tasks.texts import Texts

PARTS = {"tr": "train", "va": "dev", "te": "test"}


def load(rest: str, options: SourceOptions) -> Loaded:
    """Load the task of one file. Raises InputError with up to ten lines for invalid rows."""
    path = find_path(rest, "senteval:past_present.txt")
    if path.is_dir():
        files = ", ".join(sorted(file.name for file in path.iterdir() if file.suffix in (".txt", ".tsv"))[:10])
        raise InputError(str(path), "is a folder", f"Name one of its files: {files}" if files else "Name a file")
    findings, texts = Findings(path.name), Texts()
    sides, codes, classes = array("b"), array("i"), dict[str, int]()
    digests = {part: [0, 0] for part in PARTS}  # rows and the sum of their hashes, which ignores their order
    names, n_fields, n_rows = list(PARTS), 0, 0
    numbers, empty = array("q"), array("q")  # lines, of the rows and of those without a sentence
    for number, line in read_lines(path):
        if not line.strip():
            continue
        n_rows += 1
        part, *fields = line.split("\t")
        n_fields = n_fields or len(fields)
        if part not in PARTS:
            findings.add(number, f"starts with {quote(part)}, not with tr, va or te and a tab", _HEADER, "part")
        elif len(fields) != n_fields or n_fields < 2:
            expected = "at least 3 are needed" if n_fields < 2 else f"the first row has {n_fields + 1}"
            findings.add(number, f"{len(fields) + 1} fields, {expected}", "A sentence must not hold a tab", "fields")
        elif not (label := fields[0].strip()):
            findings.add(number, "the label is empty", "Fill it in")
        elif not (text := fields[-1].strip()):
            empty.append(number)
            if not options.drop_empty:
                findings.add(number, "the sentence is empty", "Fill it in, or pass --drop-empty")
        else:
            texts.append(detokenise(text) if options.detokenise else text)
            codes.append(classes.setdefault(label, len(classes)))
            sides.append(names.index(part))
            numbers.append(number)
            digest = digests[part]
            digest[0] += 1
            digest[1] += int.from_bytes(blake2b(f"{label}\t{text}".encode(), digest_size=16).digest(), "big")
    findings.raise_problems()
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
        places=Places.of(findings, np.frombuffer(numbers, "q")),
    )
    excluded = {"empty text": Places.of(findings, np.frombuffer(empty, "q"))} if empty else {}
    return Loaded([task], n_rows, {"empty text": len(empty)} if empty else {}, notes, excluded={task.name: excluded})


_HEADER = "A SentEval file has no header: part, label and sentence, separated by tabs"


def detokenise(text: str) -> str:
    """Undo the English tokenisation of the Penn Treebank or of Moses ("do n't", "`` so ''")."""
    sentence, join, in_quotes = "", True, False
    for token in text.split():
        token = _BRACKETS.get(token, token)
        if token in ('"', "``", "''"):
            in_quotes = token == "``" or (token == '"' and not in_quotes)  # straight quotes alternately open and close
            token, joins_left, joins_right = '"', not in_quotes, in_quotes
        else:
            joins_left = bool(_JOINS_LEFT.fullmatch(token)) or (token in ("'", "’") and sentence.endswith("s"))
            joins_right = token in ("(", "[", "{", "$", "#")
        sentence += token if joins_left or join else f" {token}"
        join = joins_right
    return sentence


_BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}
_JOINS_LEFT = re.compile(r"[.,;:!?%)\]}]+|n['’]t|['’](s|re|ve|ll|d|m)", re.IGNORECASE)
