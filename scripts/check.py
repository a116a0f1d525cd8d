"""`clsprobe check MODEL`: can it be read, how, and what would a run cost? In seconds, as plain text for an issue."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clsprobe.limits import check_memory_limit
from clsprobe.probes.errors import InputError
from clsprobe.terminal import echo

if TYPE_CHECKING:
    from clsprobe.probes.encoders.adapters import Point
    from clsprobe.probes.encoders.describing import Description
    from clsprobe.probes.encoders.encoder import Encoder

Facts = list[tuple[str, str]]  # names and values, one a line
ODD_TEXTS = {
    "empty": "",
    "emoji, combining": "\N{OWL}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET} cafe\N{COMBINING ACUTE ACCENT}",
    "a long word": "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft",
    "written [SEP], [CLS]": "to the end [SEP] and </s> [CLS]",
    "right to left, CJK": "\N{HEBREW LETTER SHIN}\N{HEBREW LETTER LAMED}\N{HEBREW LETTER VAV} 漢字かな",
}
SHOWN_TOKENS = 16
TIMED_TEXTS, TOKENS, TEXTS = 32, 20, 1_000  # timed; of a text; in the estimate
CHECKS = {"padded": "padding", "order": "order", "twice": "repetition"}  # of `self_check`
MEND = "Report it with the model's config.json"


def check(
    model: Annotated[
        str | None, typer.Argument(help="a folder or a hub name, NAME@REVISION; default: the embedded MiniLM")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="text before every text, or its name in the model")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16")] = "float32",
    quiet: Annotated[bool, typer.Option("--quiet", help="say in one line whether it can be read")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    """Can a model be read, how, and what would a run cost?"""
    from clsprobe.probes.encoders.describing import describe
    from clsprobe.probes.encoders.devices import check_device
    from clsprobe.probes.encoders.loading import load_encoder

    check_memory_limit()
    check_device(device)
    description = describe(model, prompt=prompt)
    encoder = load_encoder(description, device=device, dtype=dtype)
    verdict = judge_self_check(encoder)
    if not quiet:
        for heading, facts in (
            ("", describe_model(encoder)),
            ("Tokens", show_tokens(encoder)),
            ("Self-check: the largest change, as a share of the largest number of a layer", list_checks(encoder)),
            ("A run", estimate_run(encoder)),
        ):
            _print_facts(heading, facts)
        for note in (*description.notes, *encoder.loaded_tokenizer.notes):
            echo(f"Note: {note}")
    echo(f"{description.name}: {verdict}")


def judge_self_check(encoder: Encoder) -> str:
    """Whether the encoder can be read, and how. Raises InputError where the self-check fails."""
    checked, name = encoder.checked, encoder.name
    if not checked:
        limit = encoder.description.max_length
        raise InputError(name, f"has no room for a text: {limit} tokens, special ones included", "Shorten the prompt")
    if infinite := [CHECKS[key] for key in CHECKS if checked[key] is None]:
        raise InputError(name, f"gives numbers that are not finite (self-check of {infinite[0]})", MEND)
    for key in ("order", "twice"):
        if checked[key] > checked["tolerance"]:
            what = f"does not give a text the same vectors twice (self-check of {CHECKS[key]}: {checked[key]:.1e})"
            raise InputError(name, what, MEND)
    if checked["leaks"]:
        return f"can be read, in batches of one length: {encoder.adapter.leaks or 'padding changes its vectors'}"
    return "can be read; the self-check passes"


def describe_model(encoder: Encoder) -> Facts:
    """What the files say, and by which adapter the layers are read."""
    from clsprobe.probes.encoders.adapters import ADAPTERS

    description, adapter = encoder.description, encoder.adapter
    known = "" if description.model_type in ADAPTERS else " (guessed, and confirmed by the self-check)"
    limit = f"{description.longest:,} tokens"
    if description.max_length < description.longest:
        limit += f"; by default {description.max_length:,}"
    facts = [
        ("model", description.name),
        ("revision", description.revision or "none: no snapshot of the hub"),
        ("digest", description.digest[:16]),
        ("architecture", f"{description.model_type}, {type(encoder.model).__name__}{known}"),
        ("layers", f"0..{description.layers} of {description.dim:,} dimensions"),
        ("read at", f"{_describe_point(0, encoder.points)} ... {_describe_point(-1, encoder.points)}"),
        ("final norm", adapter.norm or "none"),
        ("longest input", limit),
        ("special tokens", _describe_special_tokens(encoder)),
        ("sentence-transformers", _describe_layout(description)),
        ("prompts", _describe_prompts(description)),
        ("run on", f"{encoder.device.type}, {str(encoder.dtype).removeprefix('torch.')}"),
    ]
    notes = [*([adapter.note] if adapter.note else []), *description.notes, *encoder.loaded_tokenizer.notes]
    return facts + [("to know", note) for note in notes]


def _describe_point(layer: int, points: list[Point]) -> str:
    """ "layer 6 out of encoder.layer.5"; layer: -1 is the last."""
    module, side = points[layer]
    return f"layer {layer % len(points)} {'into' if side == 'in' else 'out of'} {module}"


def _describe_special_tokens(encoder: Encoder) -> str:
    row = encoder.tokenize([""])[0]
    added = " ".join(_name_tokens(encoder, row.ids)) or "none"
    lacking = [name for name, token in (("cls", encoder.cls_id), ("sep", encoder.sep_id)) if token not in row.ids]
    return f"{added} around a text" + (f"; no {' and no '.join(lacking)}" if lacking else "")


def _describe_layout(description: Description) -> str:
    layout = description.sentence
    if layout is None:
        return "no (no modules.json)"
    kinds = [layout.encoder.kind, *(module.kind for module in layout.modules)]
    return ", ".join(kinds) + ("; lower case" if layout.lower_case else "")


def _describe_prompts(description: Description) -> str:
    prompts = description.sentence.prompts if description.sentence else {}
    listed = ", ".join(f"{name} ({text!r})" for name, text in prompts.items()) or "none"
    return listed + (f"; applied: {description.prompt!r}" if description.prompt else "")


def show_tokens(encoder: Encoder) -> Facts:
    """The tokens of the five odd texts, the first `SHOWN_TOKENS` of each."""
    facts = []
    unknown = getattr(encoder.tokenizer, "unk_token_id", None)
    for name, text in ODD_TEXTS.items():
        row = encoder.tokenize([text])[0]
        tokens = _name_tokens(encoder, row.ids)
        count = int(((row.ids == unknown) & ~row.special).sum()) if unknown is not None else 0
        value = " ".join(tokens[:SHOWN_TOKENS])
        value += f" ... ({len(tokens)} tokens)" if len(tokens) > SHOWN_TOKENS else ""
        facts.append((name, value + (f" ({count} unknown)" if count else "")))
    return facts


def _name_tokens(encoder: Encoder, ids: Any) -> list[str]:
    return [str(token) for token in encoder.tokenizer.convert_ids_to_tokens(ids.tolist())]


def list_checks(encoder: Encoder) -> Facts:
    """The changes that the self-check measured, against its tolerance."""
    checked = encoder.checked
    comparison = {True: "within", False: "beyond"}
    tolerance = checked["tolerance"]
    return [
        (name, f"{checked[key]:.1e} ({comparison[checked[key] <= tolerance]} {tolerance:.0e})")
        for key, name in CHECKS.items()
    ]


def estimate_run(encoder: Encoder) -> Facts:
    """The readouts that the encoder has, and what encoding takes on this machine, from a few texts."""
    from clsprobe.probes.extraction.extractor import Extractor
    from clsprobe.probes.extraction.readouts import DEFAULT, READOUTS, Normed

    names = dict.fromkeys([*DEFAULT, *READOUTS.built_in, f"mean{Normed.suffix}"])
    readouts = []
    for name in names:
        try:
            readouts.append(Extractor(encoder, [name]).readouts[0].name)
        except InputError:
            continue
    limit = min(TOKENS, encoder.description.max_length)
    extract = Extractor(encoder, [name for name in DEFAULT if name in readouts], max_length=limit, long_rows="truncate")
    texts = ["the cat sees the dog " * 5] * TIMED_TEXTS
    extract(texts)  # the first run takes longer
    start = time.perf_counter()
    states = extract(texts)
    seconds = (time.perf_counter() - start) * TEXTS / TIMED_TEXTS
    megabytes = sum(4 * states.width(readout) for _, readout in states.cells) * TEXTS / 1e6
    size = f"{len(states.layers)} layers x {len(states.readouts)} readouts"
    cost = (
        f"about {seconds:.1f} s here and {megabytes:,.0f} MB of vectors ({size}), as much again for an untrained twin"
    )
    cost += "; probes come on top"
    return [("readouts", ", ".join(readouts)), (f"{TEXTS:,} texts of {limit} tokens", cost)]


def _print_facts(heading: str, facts: Facts) -> None:
    if heading:
        echo()
        echo(heading)
    width = max(len(name) for name, _ in facts)
    indent = "  " if heading else ""
    for name, value in facts:
        echo(f"{indent}{name:<{width}}  {value}")
