"""Load a model's tokenizer, so that texts get the token ids that the model was trained with.

1. Where a folder has a tokenizer.json, that file tokenizes, as it was saved. transformers 5 takes only its vocabulary,
   and rebuilds normalizer, pre-tokenizer and template after the class that the folder declares, which can give other
   ids.
2. Explicit options of tokenizer_config.json that transformers applies on top of the file (`add_bos_token`,
   `add_eos_token`, lower case, accents, a space before the text) and of sentence-transformers (`do_lower_case`) are
   applied.
3. Special tokens that a text contains stay text. Other added tokens, such as the markers of a fine-tuned model, stay
   tokens.
4. Wherever two readings of the files exist, a note says which was taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from clsprobe.probes.encoders.finding import LARGEST_VOCABULARY, read_json
from clsprobe.probes.errors import InputError

ROLES = ("cls", "sep", "pad", "unk", "mask", "bos", "eos")
# Special tokens by their usual names, also where the files do not say which token has which role.
USUAL = frozenset(
    ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]", "<s>", "</s>", "<pad>", "<unk>", "<mask>", "<cls>", "<sep>", "<bos>",
     "<eos>", "<|endoftext|>")
)  # fmt: skip
OPTIONS = (  # part and type in tokenizer.json, option of tokenizer_config.json, its name in the part, its default
    ("normalizer", "BertNormalizer", "do_lower_case", "lowercase", True),
    ("normalizer", "BertNormalizer", "strip_accents", "strip_accents", None),
    ("normalizer", "BertNormalizer", "tokenize_chinese_chars", "handle_chinese_chars", True),
    ("pre_tokenizer", "ByteLevel", "add_prefix_space", "add_prefix_space", False),
)
GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes that take tokenizer.json as it is
FROM_OPTIONS = ("Llama", "CodeLlama", "Gemma", "Cohere")  # beginnings of those that make the template from the options
# Texts on which two readings of the files are compared: capitals, accents, digits, spaces, scripts, emoji.
SAMPLES = (
    "a warm film",
    "The plot DRAGS on, don't it?",
    "Café naïve über straße, ÉCOLE",
    "In 1999 and 2023: 12345 67.8%",
    " two  spaces, a\ttab and the end ",
    "中文 and 日本語",
    "ﬁne ½ Å Ⅳ",
    "привет мир",
    "smile 😀👍🏽",
    "x_y-z / [a] (b) & c@d.e",
    "",
)

MOST_ADDED = 50_000  # tokens beside a vocabulary; real tokenizers have hundreds
_OPTIONAL: dict[str, Any] = {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "added_tokens": []}


@dataclass(frozen=True)
class LoadedTokenizer:
    """tokenizer: of transformers. special: special tokens that stay text where a text contains them. markers: added
    tokens that stay tokens. notes: which of two readings of the files was taken."""

    tokenizer: Any
    special: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<LoadedTokenizer {type(self.tokenizer).__name__}>"

    @property
    def splits_special_tokens(self) -> bool:
        """The argument `split_special_tokens` of the tokenizer. One written in Python would split the markers too."""
        return self.tokenizer.is_fast or not self.markers


def load_tokenizer(folder: Path, *, lower_case: bool = False, name_cls: bool = False) -> LoadedTokenizer:
    """The tokenizer in a model's folder. lower_case: whether texts are lowercased first (sentence-transformers).
    name_cls: whether the tokens that a template puts around every text are [CLS] and [SEP] where no token is named so.

    Raises InputError where two files give a token different ids, and the errors of transformers and tokenizers.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    path, config = folder / "tokenizer.json", read_json(folder / "tokenizer_config.json", default={})
    content = read_json(path, largest=LARGEST_VOCABULARY, default={})
    _refuse_many(path, content.get("added_tokens"))
    _refuse_many(folder / "tokenizer_config.json", config.get("added_tokens_decoder"))
    declared = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not declared.is_fast:
        return _load_python_tokenizer(declared, has_file=path.exists(), lower_case=lower_case)
    backend = declared.backend_tokenizer
    backend.no_padding()  # a saved tokenizer may pad and truncate by default
    backend.no_truncation()
    content = _OPTIONAL | (content or json.loads(backend.to_str())) | {"padding": None, "truncation": None}
    as_saved = json.dumps(content)
    notes, special = _apply_options(content, config, declared, lower_case=lower_case)
    tokenizer = Tokenizer.from_str(json.dumps(content))
    _add_tokens(tokenizer, config, declared, special, folder)
    changed = sum(_differ(tokenizer, backend, text) for text in SAMPLES)
    if changed and notes:  # is it for these reasons alone?
        saved = Tokenizer.from_str(as_saved)
        changed = sum(_differ(saved, backend, text) for text in SAMPLES)
    if changed:
        notes.append(
            f"Texts are tokenized as tokenizer.json says. transformers {version('transformers')} would rebuild it as "
            f"{type(declared).__name__}, which gives {changed} of {len(SAMPLES)} sample texts other tokens."
        )
    if name_cls:
        notes += _name_edges(content, declared)
    declared._tokenizer = tokenizer  # no public way keeps the roles of the special tokens and replaces the rest
    added = [token.content for _, token in sorted(tokenizer.get_added_tokens_decoder().items())]
    special = {token for token in special if tokenizer.token_to_id(token) is not None}
    return LoadedTokenizer(declared, tuple(sorted(special)), tuple(t for t in added if t not in special), tuple(notes))


def _refuse_many(path: Path, tokens: Any) -> None:
    """Raise InputError for more added tokens than a tokenizer has, which take minutes to add."""
    if isinstance(tokens, list | dict) and len(tokens) > MOST_ADDED:
        what = f"has {len(tokens):,} added tokens, and at most {MOST_ADDED:,} are read"
        raise InputError(str(path), what, "Use the tokenizer that was saved with the weights")


def load_preview(
    folder: Path, *, lower_case: bool = False, name_cls: bool = False
) -> tuple[Any, dict[str, str]] | None:
    """The tokenizer of tokenizer.json alone, as `tokenizers` reads it, and the token of every role; None without such
    a file.

    It does without transformers, and so without what a class of transformers knows and no file says; other than that
    it gives texts the tokens of `load_tokenizer`. Raises InputError and the errors of tokenizers.
    """
    from tokenizers import AddedToken, Tokenizer

    if not (folder / "tokenizer.json").exists():
        return None
    content = read_json(folder / "tokenizer.json", largest=LARGEST_VOCABULARY)
    _refuse_many(folder / "tokenizer.json", content.get("added_tokens"))
    content = _OPTIONAL | content | {"padding": None, "truncation": None}
    saved = Tokenizer.from_str(json.dumps(content))
    config = read_json(folder / "tokenizer_config.json", default={})
    named = read_json(folder / "special_tokens_map.json", default={}) | config
    declared = SimpleNamespace()
    for role in ROLES:
        token = named.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        token = token if isinstance(token, str) else None
        setattr(declared, f"{role}_token", token)
        setattr(declared, f"{role}_token_id", None if token is None else saved.token_to_id(token))
    _, special = _apply_options(content, config, declared, lower_case=lower_case)
    if name_cls:
        list(_name_edges(content, declared))
    tokenizer = Tokenizer.from_str(json.dumps(content))
    added = config.get("added_tokens_decoder")
    tokens = [entry.get("content") for entry in added.values()] if isinstance(added, dict) else []
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([AddedToken(t, special=t in special) for t in tokens if isinstance(t, str) and t not in known])
    tokenizer.encode_special_tokens = True  # those in a text stay text
    roles = {role: token for role in ROLES if (token := getattr(declared, f"{role}_token")) is not None}
    return tokenizer, roles


def _apply_options(
    content: dict[str, Any], config: dict[str, Any], declared: Any, *, lower_case: bool
) -> tuple[list[str], set[str]]:
    """Apply to a tokenizer.json what stands elsewhere. Returns notes, and the special tokens."""
    notes = [*_apply_normalizer_options(content, config, declared), *_apply_template_options(content, config, declared)]
    if lower_case and not _lowercases(content["normalizer"]):
        parts = _members(content["normalizer"], "normalizers")
        content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *parts]}
        notes.append("Texts are lowercased before the tokenizer reads them, as sentence_bert_config.json says.")
    special = _special_tokens(content, declared)
    for token in content["added_tokens"]:
        token["special"] = token["content"] in special
    return notes, special


def _add_tokens(tokenizer: Any, config: dict[str, Any], declared: Any, special: set[str], folder: Path) -> None:
    """Add the tokens that tokenizer_config.json has beside tokenizer.json. Raises InputError where the ids differ."""
    named = config.get("added_tokens_decoder") or {}
    vocabulary = tokenizer.get_vocab()
    tokens = {
        index: token
        for index, token in sorted(declared.added_tokens_decoder.items())
        # a role of the class that no file knows, such as [MASK], would lie beyond the embedding table
        if token.content not in vocabulary and (token.content not in special or str(index) in named)
    }
    for token in tokens.values():
        token.special = token.content in special
    tokenizer.add_tokens(list(tokens.values()))  # at once: every call goes over all of them
    for index, token in tokens.items():
        if (number := tokenizer.token_to_id(token.content)) != index:
            what = f"gives {token.content} the id {index}, tokenizer.json {number}"
            raise InputError(f"{folder}/tokenizer_config.json", what, "Save the tokenizer again")


def _name_edges(content: dict[str, Any], declared: Any) -> Iterator[str]:
    """Give the tokens that the template puts before and after every text the roles cls and sep, where no token has
    them."""
    processors = _members(content["post_processor"], "processors")
    first, last = (next(filter(None, (_edge_token(p, edge) for p in processors)), None) for edge in (0, -1))
    if first is None or declared.cls_token not in (None, first):
        return
    roles = {"cls": first} | ({"sep": last} if last else {})
    roles = {role: token for role, token in roles.items() if getattr(declared, f"{role}_token") is None}
    for role, token in roles.items():
        setattr(declared, f"{role}_token", token)
    if roles:
        listed = " and ".join(f"{token} is read as {role}" for role, token in roles.items())
        yield f"{listed}: the tokenizer's template puts it around every text, and no token is named so."


def find_tokens(tokens: Sequence[str], texts: Sequence[str]) -> Iterator[str | None]:
    """The first of these tokens in every text, the longest where several begin there; None where it has none.

    A regular expression of them would take hours where a model has as many added tokens as words.
    """
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel

    if not tokens:
        return
    other = "\0"
    finder = Tokenizer(WordLevel({other: 0}, unk_token=other))
    finder.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    for start in range(0, len(texts), 1000):
        chunk = [texts[i] for i in range(start, min(start + 1000, len(texts)))]
        for encoding in finder.encode_batch(chunk, add_special_tokens=False):
            yield next((token for token in encoding.tokens if token != other), None)


def _load_python_tokenizer(tokenizer: Any, *, has_file: bool, lower_case: bool) -> LoadedTokenizer:
    """A tokenizer that is written in Python and reads no tokenizer.json."""
    from transformers.tokenization_python import Trie

    notes = []
    if has_file:
        notes.append(f"{type(tokenizer).__name__} tokenizes, which does not read tokenizer.json.")
    if lower_case:
        tokenizer.do_lower_case = True
        notes.append("Texts are lowercased before the tokenizer reads them, as sentence_bert_config.json says.")
    special = {str(token) for role in ROLES if (token := getattr(tokenizer, f"{role}_token")) is not None} | USUAL
    markers = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    markers = [token for token in markers if token not in special]
    tokenizer.tokens_trie = Trie(markers)  # what is split off before the rest is tokenized
    return LoadedTokenizer(tokenizer, tuple(sorted(special)), tuple(markers), tuple(notes))


def _apply_normalizer_options(content: dict[str, Any], config: dict[str, Any], declared: Any) -> Iterator[str]:
    """Set the explicit options of a normalizer or pre-tokenizer, unless the declared class leaves the file as it is."""
    name = _declared_class(config, declared)
    for part, kind, option, field, default in OPTIONS if name not in GENERIC else ():
        state, value = content[part], config.get(option)
        if not state or state["type"] != kind:
            continue
        saved = state.get(field)
        if isinstance(value, bool) and value != saved:
            state[field] = value
            yield (
                f"tokenizer_config.json says {option} {json.dumps(value)}, tokenizer.json {json.dumps(saved)}; "
                f"{json.dumps(value)} is taken, as {name} did in transformers 4."
            )
        elif option not in config and saved != default:
            yield (
                f"tokenizer.json says {option} {json.dumps(saved)}, which is taken; tokenizer_config.json says "
                f"nothing, and {name} took {json.dumps(default)} in transformers 4."
            )


def _apply_template_options(content: dict[str, Any], config: dict[str, Any], declared: Any) -> Iterator[str]:
    """Add the tokens before and after a text that `add_bos_token` and `add_eos_token` ask for, and remove the others
    where the declared class does."""
    for role in ("bos", "eos"):
        option, token = f"add_{role}_token", getattr(declared, f"{role}_token")
        wanted, index = config.get(option), getattr(declared, f"{role}_token_id")
        if not isinstance(wanted, bool) or token is None or index is None:
            continue
        processors = _members(content["post_processor"], "processors")
        edge = 0 if role == "bos" else -1
        present = any(_edge_token(processor, edge) == token for processor in processors)
        fixed = any(edge_name in processor for processor in processors for edge_name in ("cls", "sep"))
        if wanted == present:
            continue
        if wanted and not fixed:
            _add_to_template(content, str(token), index, edge)
            yield f"{token} is added to every text, as {option} in tokenizer_config.json says; tokenizer.json does not."
        elif not wanted and _declared_class(config, declared).startswith(FROM_OPTIONS):
            for processor in processors:
                for pieces in (processor.get("single", []), processor.get("pair", [])):
                    pieces[:] = [piece for piece in pieces if piece.get("SpecialToken", {}).get("id") != token]
            yield f"{token} is not added to a text, as {option} in tokenizer_config.json says; tokenizer.json would."
        else:
            verb, value = ("is not", "true") if wanted else ("is", "false")
            yield (
                f"{token} {verb} added to every text, as tokenizer.json says; {option} in tokenizer_config.json is "
                f"{value}."
            )


def _declared_class(config: dict[str, Any], declared: Any) -> str:
    """The name of the tokenizer class that the folder declares, or that transformers takes for its architecture."""
    return str(config.get("tokenizer_class") or type(declared).__name__)


def _edge_token(processor: dict[str, Any], edge: int) -> str | None:
    """The special token that a post-processor puts before (0) or after (-1) a text."""
    if processor["type"] == "TemplateProcessing":
        return processor["single"][edge].get("SpecialToken", {}).get("id")
    return processor.get(("cls", "sep")[edge], [None])[0]


def _add_to_template(content: dict[str, Any], token: str, index: int, edge: int) -> None:
    """Put a token before (edge 0) or after (-1) every text of the template."""
    processors = _members(content["post_processor"], "processors")
    template = next((p for p in processors if p["type"] == "TemplateProcessing"), None)
    if template is None:
        template = {"type": "TemplateProcessing", "special_tokens": {}}
        for name, texts in (("single", "A"), ("pair", "AB")):
            template[name] = [{"Sequence": {"id": text, "type_id": "AB".index(text)}} for text in texts]
        content["post_processor"] = {"type": "Sequence", "processors": [*processors, template]}
    for name in ("single", "pair"):
        pieces = []
        for piece in template[name]:
            added = {"SpecialToken": {"id": token, "type_id": piece.get("Sequence", {}).get("type_id", 0)}}
            around = [piece, added] if edge else [added, piece]
            pieces.extend(around if "Sequence" in piece else [piece])
        template[name] = pieces
    template["special_tokens"][token] = {"id": token, "ids": [index], "tokens": [token]}


def _special_tokens(content: dict[str, Any], declared: Any) -> set[str]:
    """The tokens that have a role: those named so, those of the template, and the usual names."""
    tokens = {str(token) for role in ROLES if (token := getattr(declared, f"{role}_token")) is not None} | USUAL
    for processor in _members(content["post_processor"], "processors"):
        tokens |= set(processor.get("special_tokens", ())) if processor["type"] == "TemplateProcessing" else set()
        tokens |= {processor[edge][0] for edge in ("cls", "sep") if edge in processor}
    unknown = content["model"].get("unk_token")
    return tokens | ({unknown} if unknown else set())


def _members(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The members of a sequence of normalizers or processors; of another part, the part itself."""
    if part is None:
        return []
    return list(part[name]) if part["type"] == "Sequence" else [part]


def _lowercases(normalizer: dict[str, Any] | None) -> bool:
    parts = _members(normalizer, "normalizers")
    return any(part["type"] == "Lowercase" or part.get("lowercase") is True for part in parts)


def _differ(first: Any, second: Any, text: str) -> bool:
    """Whether two tokenizers give a text, alone or twice as a pair, different ids."""
    return any(first.encode(*texts).ids != second.encode(*texts).ids for texts in ((text,), (text, "a warm film")))
