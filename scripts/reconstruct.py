"""Is it possible to get back the original sequence from [CLS]?

    clsprobe reconstruct --task file:reviews.csv --layers 0,3,6 --readouts cls,mean

1. Texts are dealt out anew to train, dev and test, whatever sides their source has: labels are not asked for, and a
   split that keeps words apart, as that of the built-in sentences, could be decoded by no one.
2. Three decoders read every (layer, readout): which tokens (bag), which token where (slot), and the text word for word
   (sequence). Beside each stands the same decoder that reads nothing.
3. The layer of a readout is the one with the fewest dev bits of the sequence decoder. There texts are written, by
   beams, then by encoding the candidates again, then by rounds of correction.
4. The verdict: what share of what the blind decoders miss [CLS] puts right, on test texts that are new.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from clsprobe.analysis.reconstruction.inputs import ReconstructionInputs, read_reconstruction
from clsprobe.analysis.settings import Device, FileOfVectors, ModelSettings, Names, Specs, TextSettings
from clsprobe.analysis.study import Exhibit, Measured, Study, Verdict, counted
from clsprobe.probes.encoders.devices import check_device
from clsprobe.probes.encoders.finding import find_causal
from clsprobe.probes.errors import InputError, unknown

if TYPE_CHECKING:
    import pandas as pd

    from clsprobe.analysis.folder import RunFolder

DECODERS = ("bag", "slot", "sequence")
PRIVACY = (
    "Treat stored vectors as the texts themselves: what is read back here was read from vectors alone, and whoever has "
    "the encoder and texts of the same kind can do the same."
)


class Reconstruct(ModelSettings, FileOfVectors, TextSettings, Study):
    """Whether the text can be got back from [CLS]."""

    question: ClassVar[str] = "Is it possible to get back the original sequence from [CLS]?"
    claim: ClassVar[str] = (
        "From [CLS] alone a decoder puts right at least half of what it gets wrong without it, in texts that are new"
    )
    margin: ClassVar[float] = 0.5
    judged: ClassVar[str] = "reconstructions"

    task: Specs = Field(("grammar:tense",), description="SPEC of texts: grammar:tense, file:PATH ...; repeatable")
    vectors: str | None = Field(
        None,
        description="a .safetensors file with a vector for every row of file:PATH, made by --model, in tensors named "
        "layer.06/cls",
    )
    text_column: str | None = Field(None, description="file, hf: the column with the texts [default: text]")
    max_texts: int | None = Field(None, ge=50, le=10**7, description="at most so many texts, seeded")
    layers: str | None = Field(
        None, description="all, 0,3,6 or 1-12; 0 is the embedding output [default: the first, middle and last]"
    )
    readouts: Names = Field(("cls", "mean"), description="what to read at every layer; cls is judged")
    decoders: Names = Field(DECODERS, description="bag, slot, sequence; the last named one of these writes the texts")
    decoder: str | None = Field(
        None, description="the sequence decoder: a causal model, folder or hub name, instead of our own"
    )
    frozen: bool = Field(False, description="--decoder: learn the prefix only, not the model")
    slots: int | None = Field(
        None, ge=1, le=512, description="tokens of the longest text [default: as needed, up to 64]"
    )
    long_rows: Literal["error", "drop"] = Field("error", description="what to do with longer texts")
    beams: int = Field(5, ge=1, le=64, description="candidates of a text")
    corrections: int = Field(3, ge=0, le=100, description="rounds of changing a word and encoding again")
    written: int = Field(200, ge=10, le=10**6, description="test texts that are written, seeded")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="moves the sides, the decoders, the written texts")
    device: Device = Field("auto", description="where encoder and decoders run")
    cache: str | None = Field(
        None, exclude=True, description="where vectors are kept [default: $CLSPROBE_HOME, else ~/.cache/clsprobe]"
    )

    @cached_property
    def inputs(self) -> ReconstructionInputs:
        """Texts read and names checked. Raises InputError; imports no torch."""
        check_device(self.device)
        for name in self.decoders:
            if name not in DECODERS:
                raise unknown("--decoders", "decoder", name, DECODERS)
        if not self.decoders or len(set(self.decoders)) < len(self.decoders):
            raise InputError("--decoders", "name each decoder once", f"Choose among {', '.join(DECODERS)}")
        if self.decoder is not None and "sequence" not in self.decoders:
            raise InputError("--decoder", "names a sequence decoder, and --decoders has none", "Add sequence to it")
        if self.frozen and self.decoder is None:
            raise InputError("--frozen", "our own decoder has learned nothing before", "Name a model with --decoder")
        if self.decoder is not None:
            find_causal(self.decoder)
        return read_reconstruction(self)

    def settings(self) -> dict[str, Any]:
        """The fields, and the digests of what they do not tell."""
        contents = dict(self.inputs.contents)
        return super().settings() | ({"contents": contents} if contents else {})

    def prepare(self) -> list[str]:
        """Read and check; what a run would take."""
        inputs = self.inputs
        cells = counted(len(inputs.layers) * len(inputs.readouts), "cell")
        return [
            f"{counted(len(inputs.texts), 'different text')}, {inputs.description.name}, {cells}",
            f"decoders: {', '.join(self.decoders)}; texts are written for {self.written:,} of test",
        ]

    def measure(self, folder: RunFolder | None = None) -> Measured:
        """Tables reconstructions (a row per decoder, cell, source and text) and slots (a row per token).

        `source` says who wrote a text: the decoder's best "vector", "re-ranked", "corrected", the blind ones "no
        input", "mean vector", "shuffled vectors", and "nearest neighbour".
        """
        from clsprobe.analysis.reconstruction.measure import measure_reconstruction

        return measure_reconstruction(self, self.inputs, folder)

    def judge(self, rows: pd.DataFrame) -> Verdict:
        """The share of what the best blind decoder misses that is put right from [CLS]: yes above the margin."""
        from clsprobe.analysis.reconstruction.exhibits import best_blind, judged_texts, last_stage
        from clsprobe.analysis.reconstruction.scores import gained, recovered

        judged = judged_texts(rows)
        cls = judged[judged.readout == "cls"]
        written, (blind, blind_name) = last_stage(cls), best_blind(cls)
        effect, low, high = recovered(written.likeness.to_numpy(float), blind.likeness.to_numpy(float))
        layer, decoder = int(written.layer.iloc[0]), written.decoder.iloc[0]
        bits = rows[(rows.decoder == decoder) & (rows.source == "vector") & (rows.split == "test")]
        bits = bits[(bits.readout == "cls") & (bits.layer == layer)]
        gain, lower, upper = gained(bits)
        because = (
            f"From [CLS] of layer {layer} the {decoder} decoder writes {written.exact.mean():.1%} of {len(written):,} "
            f"new test texts word for word and gets {written.f1.mean():.2f} of the tokens (F1; {blind.f1.mean():.2f} "
            f"blind: {blind_name}). [CLS] tells {gain:.2f} bits a token ({lower:.2f} to {upper:.2f}) of "
            f"{bits.blind.sum() / bits.tokens.sum():.2f}."
        )
        return Verdict.decide(because, effect, low, high, threshold=self.margin)

    def show(self, measured: Measured, task: str) -> list[Exhibit]:
        """Recovered shares, bits over the layers, all scores, by length and novelty, examples; then token by token."""
        from clsprobe.analysis.reconstruction.exhibits import text_exhibits, token_exhibits

        texts, slots = measured.tables["reconstructions"], measured.tables["slots"]
        return [*text_exhibits(texts, self.margin), *token_exhibits(slots)]

    def note(self, measured: Measured) -> list[str]:
        """What follows for whoever stores vectors."""
        return [PRIVACY]


if __name__ == "__main__":
    from clsprobe.cli import main

    main(["reconstruct"])
