"""What a sentence-transformers folder adds to its encoder: lower case, the longest text, prompts, and the modules that
make the vector which SentenceTransformer.encode returns.

Only JSON is read here; `probes.extraction.pooled` runs the modules. The class names in modules.json are compared with
those of sentence-transformers by their last part, and nothing is imported by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clsprobe.probes.encoders.finding import read_json
from clsprobe.probes.errors import InputError, did_you_mean
from clsprobe.probes.files import stays_inside

if TYPE_CHECKING:
    from clsprobe.probes.encoders.describing import Description

CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


@dataclass(frozen=True)
class SentenceModule:
    """One module after the encoder. kind: the last part of its class name, such as "Pooling"."""

    kind: str
    folder: Path
    config: dict[str, Any]


@dataclass(frozen=True)
class SentenceLayout:
    """The content of a sentence-transformers folder, without the encoder.

    lower_case: whether texts are lowercased first. max_length: the longest text in tokens, None for the encoder's.
    prompts: name -> text to put before every text. default_prompt: the name of the one that `encode` applies.
    """

    lower_case: bool
    max_length: int | None
    prompts: dict[str, str]
    default_prompt: str | None
    modules: tuple[SentenceModule, ...]


def read_layout(root: Path, name: str) -> SentenceLayout | None:
    """The layout of a folder that has a modules.json, None for another. name: what errors call the model.

    Raises InputError for files that are not what sentence-transformers writes.
    """
    modules = read_json(root / "modules.json", name, default=[], kind=list)
    if not modules:
        return None
    if not all(isinstance(module, dict) for module in modules):
        raise InputError(f"{name}/modules.json", "holds no list of modules", "Download it again")
    folders = [root / _module_path(module, name) for module in modules]
    configs = (read_json(folders[0] / file, name, default={}) for file in CONFIGS)
    config: dict[str, Any] = next(filter(None, configs), {})
    prompts = read_json(root / "config_sentence_transformers.json", name, default={})
    texts = prompts.get("prompts") or {}
    if not isinstance(texts, dict) or not all(isinstance(text, str | None) for text in texts.values()):
        where = f"{name}/config_sentence_transformers.json"
        raise InputError(where, "prompts is no object of names and texts", "Mend it there")
    default = prompts.get("default_prompt_name")
    if default is not None and default not in texts:
        where = f"{name}/config_sentence_transformers.json"
        raise InputError(where, f"default_prompt_name is '{default}', which is not among prompts", "Mend it there")
    limit = config.get("max_seq_length")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InputError(f"{name}/sentence_bert_config.json", "max_seq_length is no positive number", "Mend it there")
    return SentenceLayout(
        lower_case=config.get("do_lower_case") is True,
        max_length=limit,
        prompts={prompt: text for prompt, text in texts.items() if text},
        default_prompt=default if default is not None and texts[default] else None,
        modules=tuple(
            SentenceModule(str(m.get("type")).rpartition(".")[2], f, read_json(f / "config.json", name, default={}))
            for m, f in list(zip(modules, folders, strict=True))[1:]
        ),
    )


def check_layout(description: Description) -> SentenceLayout:
    """The layout of a model that is read as `pooled`. Raises InputError where it has none."""
    if description.sentence is None:
        what = f"'pooled': {description.name} is no sentence-transformers model (it has no modules.json)"
        raise InputError("--readouts", what, "Use mean, which sentence-transformers would take")
    return description.sentence


def choose_prompt(layout: SentenceLayout | None, prompt: str | None) -> tuple[str, list[str]]:
    """The text to put before every text, and notes for the reader.

    prompt: a name, a text, "" for none, or None for the model's default. Raises InputError for a mistyped name.
    """
    prompts = layout.prompts if layout else {}
    name = layout.default_prompt if layout and prompt is None else prompt
    if not name:
        listed = ", ".join(f"{key} ({text!r})" for key, text in list(prompts.items())[:5])
        return "", [
            f"The model has prompts, and none is applied: {listed}. --prompt NAME applies one."
        ] if listed else []
    if name in prompts:
        default = ", the model's default" if prompt is None else ""
        return prompts[name], [f"Every text is read after the prompt {prompts[name]!r} ({name}{default})."]
    if name.isidentifier() and (guess := did_you_mean(name, prompts)):
        raise InputError(
            f"--prompt {name}", f"no such prompt. Did you mean '{guess}'?", "A text ends in a space or colon"
        )
    return name, [f"Every text is read after the prompt {name!r}."]


def _module_path(module: dict[str, Any], name: str) -> str:
    """The folder of a module, "" for the root. Raises InputError for one that is not in the model's folder."""
    path = module.get("path", "")
    if path != "" and not stays_inside(path):
        raise InputError(
            f"{name}/modules.json", f"names {str(path)!r}, which is not in the folder", "Save the model again"
        )
    return path
