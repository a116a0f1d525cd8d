"""What a model's tokenizer makes of texts, before torch and transformers are imported.

A run checks its texts again with the tokenizer that it loads. `TokenizerPreview` finds the same faults without the
weights: a foreign tokenizer, tokens that the embedding table lacks, texts that are too long, readouts of a token that
no text has. So `--dry-run` refuses what the run would refuse.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from clsprobe.probes.encoders.configuration import CAUSAL
from clsprobe.probes.encoders.messages import as_input_error
from clsprobe.probes.encoders.tokenizer_files import load_preview
from clsprobe.probes.errors import InputError, quote
from clsprobe.probes.tasks.texts import PAIRED, parts

if TYPE_CHECKING:
    from clsprobe.probes.encoders.describing import Description

CHUNK = 1000  # texts that are tokenized together


@dataclass(frozen=True, eq=False)
class TokenizerPreview:
    """The tokenizer of a description. tokenizer: of the library tokenizers. roles: "cls", "sep", ... -> token."""

    description: Description
    tokenizer: Any
    roles: Mapping[str, str]

    @classmethod
    def of(cls, description: Description) -> TokenizerPreview | None:
        """The preview of a model with a tokenizer.json, None for another.

        Raises InputError for a tokenizer that cannot be read or is another model's.
        """
        lower_case = bool(description.sentence and description.sentence.lower_case)
        with as_input_error(description.name, "its tokenizer cannot be loaded"):
            loaded = load_preview(
                description.tokenizer_folder, lower_case=lower_case, name_cls=description.model_type not in CAUSAL
            )
        if loaded is None:
            return None
        preview = cls(description, *loaded)
        added = {token.content for token in preview.tokenizer.get_added_tokens_decoder().values()}
        refuse_foreign_tokenizer(description, preview.tokenizer.get_vocab(), added, preview.around)
        return preview

    @cached_property
    def around(self) -> list[int]:
        """The ids that an empty text has, without a prompt."""
        return self.encode("")

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without a prompt."""
        with as_input_error(self.description.name, "its tokenizer cannot read a text"):
            ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    @property
    def missing(self) -> set[str]:
        """Those of "cls" and "sep" of which no text has the token; their readouts are refused."""
        adapter = self.description.adapter
        present = {self.tokenizer.id_to_token(number) for number in self.around}
        missing = set()
        for name, attribute in (("cls", adapter.cls), ("sep", adapter.sep)):
            role = attribute.removesuffix("_token_id")
            others = {token for other, token in self.roles.items() if other != role}
            # the class of a tokenizer may know the token of a role that no file names
            is_present = self.roles[role] in present if role in self.roles else bool(present - others)
            missing |= set() if is_present else {name}
        return missing

    def lengths(self, texts: Sequence[str], limit: int) -> np.ndarray:
        """(text,) tokens of every text, prompt and special ones included; 0 for a text that is shorter than `limit` by
        its bytes, of which it has no fewer than tokens.

        Raises InputError for a text with a token that the embedding table lacks.
        """
        prompt, table_size = self.description.prompt, self.description.config.get("vocab_size")
        margin = len(self.around) + len(prompt.encode())
        largest = max(self.tokenizer.get_vocab().values(), default=0)
        if table_size is not None and largest >= table_size:
            margin = limit + 1  # every text is read
        long = [i for i in range(len(texts)) if len(texts[i].encode("utf-8", "surrogatepass")) + margin > limit]
        lengths = np.zeros(len(texts), np.int64)
        for start in range(0, len(long), CHUNK):
            rows = long[start : start + CHUNK]
            read = [prompt + texts[i] for i in rows]
            inputs = [tuple(parts(text)) if PAIRED in text else text for text in read]
            with as_input_error(self.description.name, "its tokenizer cannot read a text"):
                encodings = self.tokenizer.encode_batch_fast(inputs)
            for i, encoding in zip(rows, encodings, strict=True):
                lengths[i] = len(encoding.ids)
                if table_size is not None and max(encoding.ids, default=0) >= table_size:
                    number = max(encoding.ids)
                    raise beyond_table(self.description, texts[i], self.tokenizer.id_to_token(number), number)
        return lengths


def check_room(description: Description, limit: int, added: int) -> None:
    """Raise InputError where the tokens of the prompt and special ones leave no room for text. limit: of tokens.
    added: tokens of an empty text."""
    if limit > added:
        return
    kind = "tokens of the prompt and special ones" if description.prompt else "special tokens"
    mend = f"Pass {added + 1} or more"
    if added >= description.longest:
        mend = f"Shorten the prompt: {description.name} takes {description.longest} tokens"
    raise InputError(f"--max-length {limit}", f"{added} {kind} leave no room for text", mend)


def beyond_table(description: Description, text: str, token: str, number: int) -> InputError:
    """The error for a text with a token that the embedding table lacks."""
    table_size = description.config["vocab_size"]
    what = f"the text {quote(text)} has the token {quote(token)}, number {number:,} of a table of {table_size:,}"
    mend = "Leave such texts out, or save the model with as many (model.resize_token_embeddings)"
    return InputError(description.name, what, mend)


def refuse_foreign_tokenizer(
    description: Description,
    vocabulary: Mapping[str, int],
    added: Collection[str] = (),
    around: Sequence[int] = (),
) -> None:
    """Raise InputError where a tokenizer is another model's: its vocabulary goes beyond the embedding table, or leaves
    much of the table unused, or every text would have a token that the table lacks.

    Tokens that were added to the model's own tokenizer, and one of its vocabulary, may lie beyond the table: a text
    that has one is refused when it is read. vocabulary: token -> id. added: those of its tokens that were added.
    around: the ids that an empty text has.
    """
    size = max(vocabulary.values(), default=-1) + 1
    table_size = description.config.get("vocab_size", size)
    own = max((number for token, number in vocabulary.items() if token not in added), default=-1)
    if own > table_size or abs(table_size - size) > max(1024, table_size // 50):
        what = f"its tokenizer knows {size:,} tokens, its embedding table {table_size:,}"
        raise InputError(description.name, what, "Use its own tokenizer")
    if beyond := [number for number in around if number >= table_size]:
        token = next(token for token, number in vocabulary.items() if number == beyond[0])
        what = f"its tokenizer adds {token} to every text, number {beyond[0]:,} of an embedding table of {table_size:,}"
        raise InputError(description.name, what, "Use the tokenizer that was saved with the weights")
