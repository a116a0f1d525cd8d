"""Folders of models that are broken, foreign or hostile, made from hostile_models.yaml over a copy of a whole model."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import yaml
from inputs import lay_out

CASES: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(
    Path(__file__).with_name("hostile_models.yaml").read_text("utf-8")
)


def make(case: dict[str, Any], folder: Path, model: Path) -> str:
    """Write the folder of a case, or what its advice changes in it. Returns what to check. model: a whole one."""
    if not case.get("empty") and not (folder / "m").exists():
        shutil.copytree(model, folder / "m")
    for copy in case.get("copies", ()):
        shutil.copytree(model, folder / copy)
    for name in case.get("without", ()):
        (folder / name).unlink(missing_ok=True)
    files = {name: _expand(spec, folder / name) for name, spec in case.get("files", {}).items()}
    for name, spec in files.items():
        if isinstance(spec, dict) and "pipe" in spec:
            (folder / name).unlink(missing_ok=True)
    lay_out({"files": {name: spec for name, spec in files.items() if spec is not None}}, folder, model)
    return str(case.get("check", "./m"))


def _expand(spec: Any, path: Path) -> Any:
    """What `inputs.lay_out` can write, None where it is written already."""
    if not isinstance(spec, dict):
        return spec
    if "header" in spec:
        header = json.dumps(spec["header"]).encode()
        raw = struct.pack("<Q", len(header)) + header + bytes(spec["data"])
        return {"bytes": raw.decode("latin-1")}
    if "config" in spec:
        content = json.loads(path.read_text("utf-8")) | spec["config"]
        return json.dumps({key: value for key, value in content.items() if value is not None})
    if "added" in spec:
        content = json.loads(path.read_text("utf-8"))
        first = 1 + max(content["model"]["vocab"].values())
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        more = [{"id": first + i, "content": f"[unused{i}]"} | flags for i in range(spec["added"])]
        return json.dumps(content | {"added_tokens": content["added_tokens"] + more})
    if "many" in spec:
        path.mkdir()
        for i in range(spec["many"]):
            (path / f"{i}.json").touch()
        return None
    return spec
