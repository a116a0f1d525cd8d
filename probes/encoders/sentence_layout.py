"""What a sentence-transformers folder adds to its encoder: lower case, the longest text, prompts, and the modules that
make the vector which SentenceTransformer.encode returns.

Only JSON is read here; `probes.extraction.pooled` runs the modules. The class names in modules.json are compared with
those of sentence-transformers by their last part, and nothing is imported by them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clsprobe.probes.encoders.finding import SINGLE, read_json
from clsprobe.probes.encoders.weights import IF_REFUSED, conversion_command
from clsprobe.probes.errors import InputError, did_you_mean
from clsprobe.probes.files import stays_inside

if TYPE_CHECKING:
    from clsprobe.probes.encoders.describing import Description

CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
KINDS = ("Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")
OTHER_STATES = {  # model_type -> what its base model returns instead of the last layer that is read here
    "bart": "the states of the decoder",
    "canine": "the states of single characters",
    "funnel": "the states of the decoder",
}
USUAL_SETTINGS: dict[str, Any] = {  # of the encoder's module, other than which `encode` gives other vectors
    "transformer_task": "feature-extraction",
    "processing_kwargs": {},
    "query_expansion": None,
}
OTHERWISE = "Use mean, or encode with sentence-transformers and --vectors"


@dataclass(frozen=True)
class SentenceModule:
    """One module. kind: the last part of its class name, such as "Pooling", all of it for another library's class."""

    kind: str
    folder: Path
    config: dict[str, Any]


@dataclass(frozen=True)
class SentenceLayout:
    """The content of a sentence-transformers folder. encoder: its first module, modules: those after it.

    lower_case: whether texts are lowercased first. max_length: the longest text in tokens, None for the encoder's.
    prompts: name -> text to put before every text, "" for none. default_prompt: the name of the one that `encode`
    applies.
    """

    encoder: SentenceModule
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
    if default is not None and (not isinstance(default, str) or default not in texts):
        where = f"{name}/config_sentence_transformers.json"
        raise InputError(where, f"default_prompt_name is '{default}', which is not among prompts", "Mend it there")
    limit = config.get("max_seq_length")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InputError(f"{name}/sentence_bert_config.json", "max_seq_length is no positive number", "Mend it there")
    kinds = [str(module.get("type")) for module in modules]
    kinds = [kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind for kind in kinds]
    return SentenceLayout(
        encoder=SentenceModule(kinds[0], folders[0], config),
        lower_case=config.get("do_lower_case") is True,
        max_length=limit,
        prompts={prompt: text or "" for prompt, text in texts.items()},
        default_prompt=default,
        modules=tuple(
            SentenceModule(kind, folder, read_json(folder / "config.json", name, default={}))
            for kind, folder in list(zip(kinds, folders, strict=True))[1:]
        ),
    )


def check_layout(description: Description) -> SentenceLayout:
    """The layout of a model that is read as `pooled`.

    Raises InputError where it has none, or where `encode` does something to the states that is not known here.
    """
    layout, name = description.sentence, description.name
    if layout is None:
        what = f"'pooled': {name} is no sentence-transformers model (it has no modules.json)"
        raise InputError("--readouts", what, "Use mean, which sentence-transformers would take")
    if description.model_type in OTHER_STATES:
        what = f"'pooled': of {name}, encode pools {OTHER_STATES[description.model_type]}"
        raise InputError("--readouts", f"{what}, which clsprobe does not read", OTHERWISE)
    encoder, modules = layout.encoder, layout.modules
    unusual = [key for key, usual in USUAL_SETTINGS.items() if encoder.config.get(key, usual) not in (None, usual)]
    if unusual:
        what = f"'pooled': {name} is run otherwise ({', '.join(unusual)} in its sentence-transformers configuration)"
        raise InputError("--readouts", what, OTHERWISE)
    foreign = [encoder.kind] if "." in encoder.kind else []
    foreign += [module.kind for module in modules if module.kind not in KINDS]
    if foreign:
        what = f"'pooled': modules.json of {name} has a {foreign[0]}, which is not run"
        raise InputError("--readouts", what, OTHERWISE)
    if [module.kind for module in modules[:1]] != ["Pooling"] or any(m.kind == "Pooling" for m in modules[1:]):
        what = f"'pooled': modules.json of {name} has not one Pooling, after the encoder"
        raise InputError("--readouts", what, OTHERWISE)
    for module in modules:
        if module.kind in ("Dense", "LayerNorm") and not (module.folder / SINGLE).exists():
            what = "has no model.safetensors, and pickle weights can run code"
            mend = f"{conversion_command('pytorch_model.bin', SINGLE)}, and pass the model again. {IF_REFUSED}"
            raise InputError(f"{name}/{module.folder.name}", what, mend)
    return layout


def choose_prompt(layout: SentenceLayout | None, prompt: str | None) -> tuple[str, list[str]]:
    """The text to put before every text, and notes for the reader.

    prompt: a name, a text, "" for none, or None for the model's default. Raises InputError for a mistyped name.
    """
    prompts = layout.prompts if layout else {}
    name = layout.default_prompt if layout and prompt is None else prompt
    text = prompts.get(name, name) if name else ""
    if prompt and not text:
        return "", [f"The model's prompt {name} is empty: nothing is put before a text."]
    if not text:
        listed = ", ".join(f"{key} ({value!r})" for key, value in list(prompts.items())[:5] if value)
        return "", [
            f"The model has prompts, and none is applied: {listed}. --prompt NAME applies one."
        ] if listed else []
    if name in prompts:
        default = ", the model's default" if prompt is None else ""
        return text, [f"Every text is read after the prompt {text!r} ({name}{default})."]
    if re.fullmatch(r"[\w.-]+", text, re.ASCII):  # a name; as a text it would run into the first word
        guess = did_you_mean(text, prompts)
        known = f"Did you mean '{guess}'?" if guess else f"It has {', '.join(prompts) or 'none'}"
        what = f"the model has no prompt of this name. {known}"
        raise InputError(f"--prompt {text}", what, "A text ends in a space or colon, such as 'query: '")
    return text, [f"Every text is read after the prompt {text!r}."]


def _module_path(module: dict[str, Any], name: str) -> str:
    """The folder of a module, "" for the root. Raises InputError for one that is not in the model's folder."""
    path = module.get("path", "")
    path = "" if path == "." else path
    if path != "" and not stays_inside(path):
        raise InputError(
            f"{name}/modules.json", f"names {str(path)!r}, which is not in the folder", "Save the model again"
        )
    return path
