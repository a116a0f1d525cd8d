"""The exhibits and notes of a reconstruction. Every function is pure: tables in, exhibits and sentences out.

texts: a row per decoder, layer, readout, source and text (see `measure`). slots: a row per token of the chosen cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from clsprobe.analysis.answer import Exhibit
from clsprobe.analysis.reconstruction.scores import (
    BLIND,
    NOVEL,
    bin_values,
    describe_scorers,
    mark_differences,
    measure_cell_gain,
    measure_gain,
    measure_gains,
    measure_mean,
    measure_recovery,
    score_corpus,
)
from clsprobe.analysis.stats import wilson
from clsprobe.analysis.verdict import MissingEvidence

STAGES = ("vector", "re-ranked", "corrected")  # of writing a text
LENGTHS = (0, 8, 12, 16, 20, 10**9), ("1-7", "8-11", "12-15", "16-19", "20 and more")
COUNTS = (0, 1, 5, 20, 100, 10**9), ("not in train", "1-4", "5-19", "20-99", "100 and more")
DISTANCES = (0, 0.2, 0.4, 0.6, 2), ("below 0.2 (no news)", "0.2-0.4", "0.4-0.6", "0.6 and more")
FEWEST_TOKENS = 20  # for which a share is shown
BLIND_TEXTS = "the texts are the blind decoder's, as re-ranking and corrections left them"
ESTIMATES = {
    "sequence": "; the only ones that estimate information",
    "slot": "; tokens taken for independent of each other",
    "bag": "; which tokens there are, order ignored",
}


# ------------------------------------------------------------------------------------------------- rows of the tables


def select_judged(texts: pd.DataFrame) -> pd.DataFrame:
    """The rows of the judged decoder with a written text, for new test texts (for all, if fewer than ten are new)."""
    rows = texts[(texts.split == "test") & texts.text.notna() & (texts.decoder == texts.decoder.iloc[-1])]
    new = rows[rows.novelty >= NOVEL]
    return new if new.row.nunique() >= 10 else rows


def select_last_stage(rows: pd.DataFrame) -> pd.DataFrame:
    """The texts of the last stage of writing in the table, in the order of their rows. Raises MissingEvidence."""
    stages = [stage for stage in STAGES if (rows.source == stage).any()]
    if not stages:
        raise MissingEvidence("no text was written from a vector")
    return rows[rows.source == stages[-1]].sort_values("row")


def select_best_blind(rows: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows and name of the blind source most like the originals: chosen on test, which works against the claim.

    Raises MissingEvidence where there is none.
    """
    blind = rows[rows.source.isin(BLIND)]
    if blind.empty:
        raise MissingEvidence("no text was written without a vector, to compare with")
    best = str(blind.groupby("source", sort=False).likeness.mean().idxmax())
    return blind[blind.source == best].sort_values("row"), best


def describe_gate(rows: pd.DataFrame, what: str = "its gain of 0 is this rule's and not measured") -> str:
    """A sentence on the gated cells among the rows, after a space; "" without any. what: follows from it."""
    gated = rows[rows.gated].drop_duplicates(["readout", "layer"]).sort_values("layer")
    cells = [
        f"{readout} of layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"
        for readout, layers in gated.groupby("readout", sort=False).layer
    ]
    if not cells:
        return ""
    return f" Gated: from {'; '.join(cells)} the decoder gained nothing on dev, so the blind one stands in: {what}."


def tabulate_recovery(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns name, value, low, high, count: `measure_recovery` over the best blind source, for every readout."""
    shares = []
    for readout, readout_rows in rows.groupby("readout", sort=False):
        written, (blind, _) = select_last_stage(readout_rows), select_best_blind(readout_rows)
        share = measure_recovery(written.likeness.to_numpy(float), blind.likeness.to_numpy(float))
        gated = ", gated" if written.gated.all() else ""
        shares.append((f"{readout}, layer {written.layer.iloc[0]}{gated}", *share, len(written)))
    return pd.DataFrame(shares, columns=["name", "value", "low", "high", "count"])


# ----------------------------------------------------------------------------------------------------------- exhibits


def text_exhibits(texts: pd.DataFrame, margin: float) -> list[Exhibit]:
    """Recovered shares, bits over the layers, all scores, by length and novelty, and examples."""
    rows, written = select_judged(texts), texts[(texts.split == "test") & texts.text.notna()]
    return [
        Exhibit(
            "Share of what the best blind decoder gets wrong that is put right from the vector (0: nothing, 1: every "
            "text word for word), with 95 % intervals; each readout at the layer that dev chooses. Texts are compared "
            f"by the edit distance of their tokens.{describe_gate(rows, BLIND_TEXTS)}",
            tabulate_recovery(rows),
            "intervals",
            {"metric": "share put right", "reference": {"margin": margin}},
        ),
        *_gain_exhibits(texts),
        Exhibit(
            f"All scores on the {written.row.nunique():,} test texts that were written. Bits are teacher-forced: every "
            f"token given the true ones before it, 'from' and 'to' their 95 % interval per token; all else is of texts "
            f"that were written freely. No input: the blind decoder itself, whose gain is 0 by definition. Gated: the "
            f"decoder gained nothing on dev, so the blind one stands in, and its gain of 0 is this rule's and not "
            f"measured. F1 counts repeated tokens; cosine is that of the vector of what was written. "
            f"{'; '.join(describe_scorers())}.",
            _tabulate_scores(written),
        ),
        _binned_exhibit(rows, "length", *LENGTHS, "length in tokens"),
        _binned_exhibit(
            written[written.decoder == texts.decoder.iloc[-1]],
            "novelty",
            *DISTANCES,
            "edit distance to the nearest train text",
        ),
        *_example_exhibits(rows),
    ]


def _gain_exhibits(texts: pd.DataFrame) -> list[Exhibit]:
    """Bits per token gained over the layers, of every decoder, the last one first."""
    test = texts[(texts.split == "test") & (texts.source == "vector") & texts.bits.notna()]
    exhibits = []
    for decoder in reversed(list(test.decoder.unique())):
        rows = test[test.decoder == decoder]
        exhibits.append(
            Exhibit(
                f"Bits per token that the vector takes off the blind {decoder} decoder's, over the layers, with 95 % "
                f"bands{ESTIMATES.get(decoder, '')}. Bits of different decoders cannot be compared."
                f"{describe_gate(rows)}",
                measure_gains(rows, ["layer", "readout", "gated"]).drop(columns="texts"),
                "curves",
                {"metric": "bits per token gained", "baselines": {"blind": 0.0}},
            )
        )
    return exhibits


def _tabulate_scores(written: pd.DataFrame) -> pd.DataFrame:
    """Every score of every decoder, readout and source."""
    scores = []
    for (decoder, readout, source), rows in written.groupby(
        ["decoder", "readout", "source"], sort=False, observed=True
    ):
        gain = measure_cell_gain(rows) if rows.bits.notna().all() else (float("nan"),) * 3
        f1 = measure_mean(rows.f1.to_numpy())
        scores.append(
            {
                "decoder": decoder, "readout": readout, "layer": int(rows.layer.iloc[0]),
                "gated": bool(rows.gated.all()), "written by": source,
                "bits gained": gain[0], "from": gain[1], "to": gain[2],
                "precision": rows.precision.mean(), "recall": rows.recall.mean(), "F1": f1[0], "F1 from": f1[1],
                "F1 to": f1[2], "exact": rows.exact.mean(), "likeness": rows.likeness.mean(),
                **score_corpus(list(rows.original), list(rows.text)), "cosine": rows.cosine.mean(),
            }
        )  # fmt: skip
    return pd.DataFrame(scores)


def _binned_exhibit(
    rows: pd.DataFrame, column: str, edges: Sequence[float], names: Sequence[str], heading: str
) -> Exhibit:
    """Bits and scores of every readout in bins of a column, beside those of the best blind source."""
    table = []
    for readout, readout_rows in rows.groupby("readout", sort=False):
        from_vector = readout_rows[readout_rows.source == "vector"]
        parts = select_last_stage(readout_rows), select_best_blind(readout_rows)[0], from_vector
        for name in names:
            written, blind, bits = (part[bin_values(part[column].to_numpy(), edges, names) == name] for part in parts)
            if len(written):
                scores = (part[score].mean() for score in ("f1", "likeness", "exact") for part in (written, blind))
                table.append((name, readout, len(written), *measure_cell_gain(bits), *scores))
    columns = [heading, "readout", "texts", "bits gained", "from", "to"]
    columns += ["F1", "F1 blind", "likeness", "likeness blind", "exact", "exact blind"]
    caption = f"By {heading}: bits per token gained, and what was written, beside what the best blind decoder writes."
    caption += describe_gate(rows[rows.text.notna()])
    return Exhibit(caption, pd.DataFrame(table, columns=columns))


def _example_exhibits(rows: pd.DataFrame) -> list[Exhibit]:
    """The best, the middle and the worst texts of every readout."""
    exhibits = []
    for readout, readout_rows in rows.groupby("readout", sort=False):
        written = select_last_stage(readout_rows).sort_values("likeness", ascending=False, kind="stable")
        middle = len(written) // 2
        parts = {
            "best": written.head(5),
            "median": written.iloc[max(0, middle - 2) : middle + 3],
            "worst": written.tail(5),
        }
        examples = [
            (which, text.likeness, *mark_differences(text.original, text.text))
            for which, part in parts.items()
            for text in part.itertuples()
        ]
        exhibits.append(
            Exhibit(
                f"What was written from {readout} of layer {written.layer.iloc[0]}, beside the originals as the "
                f"encoder's tokenizer spells them: the best, the middle and the worst. In brackets, what the other "
                f"side lacks.{describe_gate(readout_rows, BLIND_TEXTS)}",
                pd.DataFrame(examples, columns=["which", "likeness", "original", "written"]),
            )
        )
    return exhibits


def token_exhibits(slots: pd.DataFrame) -> list[Exhibit]:
    """By position in the text, by how often train has a token, by part of speech."""
    positions = []
    for (readout, slot), rows in slots.groupby(["readout", "slot"], sort=False):
        if len(rows) >= FEWEST_TOKENS:
            share, gain = rows.hit.mean(), (rows.blind - rows.bits).mean()
            low, high = map(float, wilson(share, len(rows)))
            positions.append((int(slot) + 1, readout, share, low, high, rows.blind_hit.mean(), len(rows), gain))
    columns = ["position", "readout", "value", "low", "high", "blind", "texts", "bits gained"]
    gate = describe_gate(slots)
    slots = slots.assign(times=bin_values(slots["count"].to_numpy(), *COUNTS))
    exhibits = [
        Exhibit(
            "By position in the text: how often the token written there is the original's, with 95 % bands; blind: "
            f"without input.{gate}",
            pd.DataFrame(positions, columns=columns).sort_values(["readout", "position"], kind="stable"),
            "curves",
            {"metric": "share of right tokens", "along": "position"},
        ),
        Exhibit(
            "By how often train has a token: bits gained (0 for tokens that train lacks: they have no bits), and how "
            f"often it stands anywhere in what was written (blind: without input).{gate}",
            _tabulate_tokens(slots, "times", "times in train"),
        ),
    ]
    if len(tagged := slots[slots.tag != ""]):
        exhibits.append(
            Exhibit(
                "By part of speech, of the texts whose source knows it: bits gained, and how often a token stands "
                f"anywhere in what was written (blind: without input).{gate}",
                _tabulate_tokens(tagged, "tag", "part of speech"),
            )
        )
    return exhibits


def _tabulate_tokens(slots: pd.DataFrame, column: str, heading: str) -> pd.DataFrame:
    """Bits gained and the share of tokens written, for every readout and value of a column."""
    groups = slots.assign(gained=slots.blind - slots.bits).groupby([column, "readout"], observed=True)
    table = groups.agg(
        tokens=("gained", "size"), gained=("gained", "mean"), written=("found", "mean"), blind=("blind_found", "mean")
    )
    table = table.reset_index()
    table = table[table.tokens >= FEWEST_TOKENS]
    return table.rename(columns={column: heading, "gained": "bits gained"}).astype({heading: str})


# -------------------------------------------------------------------------------------------------------------- notes


def reconstruction_notes(texts: pd.DataFrame) -> list[str]:
    """Layer-0 [CLS], the negative control; the other readouts against [CLS]; scores by stage of writing."""
    notes = []
    vectors = texts[(texts.split == "test") & (texts.source == "vector")]
    layer0 = vectors[(vectors.layer == 0) & (vectors.readout == "cls")]
    for decoder, rows in layer0.groupby("decoder", sort=False):
        if rows.gated.all():
            notes.append(
                f"Control: from [CLS] of layer 0, the same vector for every text, the {decoder} decoder gained nothing "
                f"on dev, as it must be. The blind one stands in for it there: 0 bits by rule."
            )
        else:
            value, low, high = measure_gain(rows)
            notes.append(
                f"Control failed: from [CLS] of layer 0 the {decoder} decoder gains {value:.3f} bits a token "
                f"({low:.3f} to {high:.3f}); it should gain nothing, for it is the same vector for every text."
            )
    judged = texts.decoder.iloc[-1]
    written, bits = texts[(texts.decoder == judged) & texts.text.notna()], vectors[vectors.decoder == judged]
    layers = written.groupby("readout", sort=False).layer.first()
    bits_by_readout = {name: bits[(bits.readout == name) & (bits.layer == layer)] for name, layer in layers.items()}
    cls = bits_by_readout.get("cls", bits.iloc[:0])
    for readout, rows in bits_by_readout.items():
        gated = [name for name, cell in (("cls", cls), (readout, rows)) if cell.gated.all()]
        if readout == "cls" or len(gated) == 2:
            continue
        value, low, high = measure_gain(rows.assign(blind=cls.set_index("row").bits.loc[rows.row].to_numpy()))
        stand_in = f" For {gated[0]} the blind decoder stands in, since its own gained nothing on dev." if gated else ""
        notes.append(
            f"{readout} of layer {layers[readout]} tells {value:.2f} bits a token more than cls of layer "
            f"{layers['cls']} ({low:.2f} to {high:.2f}, over the same texts).{stand_in}"
        )
    for readout, rows in written.groupby("readout", sort=False):
        stages = [(stage, part) for stage in STAGES if len(part := rows[rows.source == stage])]
        if len(stages) > 1:
            scores = ", ".join(
                f"{stage} {part.exact.mean():.1%} / {part.f1.mean():.3f} / {part.cosine.mean():.3f}"
                for stage, part in stages
            )
            gate = describe_gate(rows, BLIND_TEXTS)
            notes.append(f"{readout}: exact matches / F1 / cosine by stage of writing: {scores}.{gate}")
    return notes
