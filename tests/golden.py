"""Do two checkouts measure the same? Every command's tables, side by side.

    python tests/golden.py run DIR           run the commands of `COMMANDS` into DIR, with the clsprobe that is imported
    python tests/golden.py compare OLD NEW   compare two such folders; exit code 1 where they differ

Equal means bit for bit: run the same checkout twice first, to know what a machine repeats. What is compared is the
results table, the predictions, every further table, and of every answer its verdict and the tables of its exhibits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

TREC = Path(os.environ.get("CLSPROBE_DATA") or Path(__file__).parents[2] / "shared" / "data") / "trec"
COMMANDS = {
    "geometry": ["geometry"],
    "formation": ["formation"],
    "demo": ["demo"],
    "reconstruct": ["reconstruct"],
    "fine_tuning": ["fine-tuning", "--quick"],
    "trec": ["run", "--task", f"file:{TREC}", "--label-column", "coarse", "--text-column", "text"],
}


def run(folder: Path) -> None:
    """Run every command; vectors are encoded anew."""
    for name, arguments in COMMANDS.items():
        start = time.perf_counter()
        command = [sys.executable, "-m", "clsprobe", *arguments, "--out", str(folder / name), "--overwrite", "--quiet"]
        subprocess.run(command, check=True, env=os.environ | {"CLSPROBE_HOME": str(folder / "cache")})
        print(f"{name}: {time.perf_counter() - start:.0f} s")


def tables(run: Path) -> dict[str, pd.DataFrame]:
    """Every table of a run, and its verdicts, by name."""
    paths = [
        run / "results.parquet",
        run / "predictions.parquet",
        *run.glob("tables/*.parquet"),
        *run.glob("answers/*.parquet"),
    ]
    named = {path.relative_to(run).as_posix(): pd.read_parquet(path) for path in paths if path.exists()}
    for path in run.glob("answers/*.json"):
        verdict = json.loads(path.read_text())["verdict"]
        parts = verdict.pop("parts")
        rows = [{"task": "all", **verdict}, *({"task": task, **part} for task, part in parts.items())]
        named[path.relative_to(run).as_posix()] = pd.DataFrame(rows).drop(columns="parts", errors="ignore")
    return named


def differences(old: Path, new: Path) -> list[str]:
    """A sentence for every table that differs."""
    before, after = tables(old), tables(new)
    faults = [
        f"{name}: only in {side}"
        for side, a, b in ((old, before, after), (new, after, before))
        for name in a.keys() - b.keys()
    ]
    for name in sorted(before.keys() & after.keys()):
        a, b = before[name], after[name]
        try:
            pd.testing.assert_frame_equal(a, b, check_exact=True, check_categorical=False)
        except AssertionError as error:
            faults.append(f"{name}: {' '.join(str(error).split())[:160]}")
    return faults


def main() -> None:
    """The command line above."""
    action, *folders = sys.argv[1:]
    if action == "run":
        run(Path(folders[0]).absolute())
        return
    old, new = map(Path, folders)
    wrong = 0
    for name in COMMANDS:
        faults = differences(old / name, new / name)
        print(f"{name}: {'equal' if not faults else f'{len(faults)} tables differ'} ({len(tables(old / name))} tables)")
        for fault in faults:
            print(f"  {fault}")
        wrong += len(faults)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
