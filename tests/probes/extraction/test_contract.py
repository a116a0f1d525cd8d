"""`check_readout` over every shipped readout, and over broken twins, each of which it has to catch."""

from __future__ import annotations

import pytest
import torch

import clsprobe
from clsprobe import Readout, Weighted, check_readout
from clsprobe.probes.encoders.loading import load_encoder
from clsprobe.probes.extraction.readouts import DEFAULT, NAMED, OF_TOKENS, Mean, Placed, Position, parse_readouts

pytestmark = pytest.mark.usefixtures("one_thread")

COMPOSED = ("token[-2]", "cls+norm", "flatten[3]", "cat(cls,token[2],max)", "cat(mean,random)+norm", "last4(cls)")
SHIPPED = sorted({*DEFAULT, *NAMED, *OF_TOKENS, *COMPOSED} - {"pooled"})


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_readout_passes(name):
    for seed in range(3):
        check_readout(parse_readouts([name])[0], seed=seed)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_readout_of_fine_tuning_passes(place):
    check_readout(Placed(f"new@{place}", place))
    check_readout(Placed(f"copy@{place}", place, 2))


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.mark.parametrize("name", ["pooled", "cls", "sep", "mean", "flatten_projected"])
def test_a_readout_passes_on_an_encoder(name, encoder):
    check_readout(parse_readouts([name])[0], encoder)


def test_a_readout_that_needs_an_encoder_says_so():
    with pytest.raises(AssertionError, match=r"checked with check_readout\(readout, encoder\)"):
        check_readout(parse_readouts(["pooled"])[0])


class Squares(Readout):
    """Sound: the mean square of every coordinate over the content tokens."""

    name = "squares"

    def present(self, batch):
        return batch.content.any(1)

    def read(self, hidden, batch):
        squares = (hidden.float() ** 2).where(batch.content[..., None], 0).sum(1)
        return (squares / batch.content.sum(1)[:, None]).where(self.present(batch)[:, None], torch.nan)


class LateTokens(Weighted):
    """Sound: later tokens weigh more."""

    name = "late"

    def weights(self, batch):
        weights = batch.content.cumsum(1) * batch.content
        return weights / weights.sum(1, keepdim=True).clamp(min=1)


class QuestionMark(Position):
    """Sound: a token whose id only the encoder knows."""

    name = "question_mark"
    token_id = None

    def bind(self, encoder):
        bound = QuestionMark()
        bound.token_id = encoder.tokenizer.convert_tokens_to_ids("?")
        return bound

    def position(self, batch):
        return batch.nth(batch.real & (batch.ids == self.token_id), batch.lengths * 0 + 1)


def test_a_sound_readout_passes(encoder):
    check_readout(Squares())
    check_readout(LateTokens())
    check_readout(QuestionMark(), encoder)


# ------------------------------------------------------------------------------------------------------- broken twins


class TimesMask(Squares):
    def read(self, hidden, batch):
        squares = (hidden.float() ** 2 * batch.content[..., None]).sum(1)
        return (squares / batch.content.sum(1)[:, None]).where(self.present(batch)[:, None], torch.nan)


class MeanOverPadding(Squares):
    def read(self, hidden, batch):
        squares = (hidden.float() ** 2).where(batch.content[..., None], 0).mean(1)
        return squares.where(self.present(batch)[:, None], torch.nan)


class LastColumn(Readout):
    name = "last"

    def read(self, hidden, batch):
        return hidden[:, -1].nan_to_num(0.0, 0.0, 0.0).clamp(max=100)


class StandardisedOverTheBatch(Readout):
    name = "standardised"

    def read(self, hidden, batch):
        first = hidden[:, 0].float()
        return first - first.mean(0) / 3 if len(first) > 1 else first


class RowNumber(Readout):
    name = "numbered"

    def read(self, hidden, batch):
        return hidden[:, 0].float() + 1e-3 * torch.arange(len(hidden))[:, None] * (len(hidden) > 25)


class Unseeded(Squares):
    def read(self, hidden, batch):
        return super().read(hidden, batch) + torch.rand((), generator=torch.Generator().manual_seed(id(hidden)))


class GlobalRandom(Squares):
    def read(self, hidden, batch):
        return super().read(hidden, batch) + 0 * torch.rand(())


class ChangesTheProcess(Squares):
    def read(self, hidden, batch):
        torch.set_num_threads(torch.get_num_threads() + 1)
        return super().read(hidden, batch)


class KeepsTheLastBatch(Squares):
    last = 0.0

    def read(self, hidden, batch):
        vectors = super().read(hidden, batch) + self.last
        self.last = float(vectors[-1, 0].nan_to_num(1.0)) * (len(hidden) > 1)
        return vectors


class AlwaysPresent(Squares):
    def present(self, batch):
        return batch.real.any(1)

    def read(self, hidden, batch):
        return (hidden.float() ** 2).where(batch.content[..., None], 0).sum(1) / batch.content.sum(1)[:, None]


class NeverPresent(Squares):
    def present(self, batch):
        return batch.content.sum(1) > 1000


class ZerosWhereAbsent(Squares):
    def read(self, hidden, batch):
        return super().read(hidden, batch).nan_to_num(0.0)


class PresentByLength(Squares):
    def present(self, batch):
        return batch.content.any(1) & (batch.ids.shape[1] < 44)

    def read(self, hidden, batch):
        return super().read(hidden, batch).where(self.present(batch)[:, None], torch.nan)


class PresentOfAllTexts(Squares):
    def present(self, batch):
        return batch.content.any()

    def read(self, hidden, batch):
        return hidden[:, 0].float()


class WrongWidth(Squares):
    def width(self, dim):
        return 2 * dim


class WidthOfTheBatch(Squares):
    def read(self, hidden, batch):
        return hidden[..., 0]


class Tokens(Readout):
    name = "tokens"

    def read(self, hidden, batch):
        return hidden


class Signs(Squares):
    def read(self, hidden, batch):
        return (hidden[:, 0] > 0).long()


class AltersHidden(Squares):
    def read(self, hidden, batch):
        hidden *= 2
        return super().read(hidden, batch)


class AltersTheBatch(Squares):
    def read(self, hidden, batch):
        batch.special[:] = False
        return hidden[:, 0].float()


class Constant(Readout):
    name = "constant"

    def read(self, hidden, batch):
        return torch.ones(len(hidden), hidden.shape[2])


class SumsToTwo(LateTokens):
    def weights(self, batch):
        return 2 * super().weights(batch)


class NegativeWeights(LateTokens):
    def weights(self, batch):
        weights = super().weights(batch)
        return 2 * weights - batch.content / batch.content.sum(1, keepdim=True).clamp(min=1)


class SoftmaxOverPadding(Weighted):
    name = "softmax"

    def weights(self, batch):
        return batch.real.float().softmax(1)

    def read(self, hidden, batch):
        return (hidden.float() * self.weights(batch)[..., None]).where(batch.real[..., None], 0).sum(1)


class NaNWeights(LateTokens):
    def weights(self, batch):
        weights = batch.content.cumsum(1) * batch.content
        return weights / weights.sum(1, keepdim=True)


class WeightsOfAnother(Mean):
    name = "another"

    def weights(self, batch):
        return batch.real * batch.seeds[:, None].sign() / batch.lengths[:, None] * 0 + LateTokens().weights(batch)

    def present(self, batch):
        return batch.content.any(1)

    def read(self, hidden, batch):
        return Mean().read(hidden, batch).where(self.present(batch)[:, None], torch.nan)


class OneWeightForAll(LateTokens):
    def present(self, batch):
        return batch.content.any(1)

    def read(self, hidden, batch):
        return Weighted.read(LateTokens(), hidden, batch)

    def weights(self, batch):
        return super().weights(batch)[0]


class FloatsOnly(Squares):
    def read(self, hidden, batch):
        if hidden.dtype == torch.bfloat16:
            return super().read(hidden @ torch.eye(hidden.shape[2]), batch)
        return super().read(hidden, batch)


class FailsOnTheEmptyText(Squares):
    def read(self, hidden, batch):
        if not batch.content.any():
            raise IndexError("no content")
        return super().read(hidden, batch)


class TakesAName(Squares):
    name = "cls"


class NameOfTwoWords(Squares):
    name = "mean of squares, or so"


class Bare:
    name = "bare"

    def read(self, hidden, batch):
        return hidden[:, 0]


TWINS = {
    TimesMask: "on padding changes the vector: exclude padding",
    MeanOverPadding: "padding or the other texts of a batch move a vector.*batch.lengths",
    LastColumn: "hidden state of .* on padding changes the vector|padding or the other texts",
    StandardisedOverTheBatch: "other texts of a batch move a vector.*take nothing from other rows",
    RowNumber: "of a batch move a vector|order of the batch",
    Unseeded: "same batch twice gives two results: draw from batch.seeds",
    ChangesTheProcess: "the torch settings of the process",
    GlobalRandom: "global random state of torch is moved",
    KeepsTheLastBatch: "same batch twice gives two results.*keep nothing between two calls",
    AlwaysPresent: r"`present` holds NaN or inf: let `present\(batch\)` be False",
    NeverPresent: "none of .* texts has this readout",
    ZerosWhereAbsent: "not `present`, and yet has a vector of numbers: return NaN",
    PresentByLength: "change whether a text is `present`|not `present`, and yet",
    PresentOfAllTexts: r"`present` gives .*not \(batch,\) booleans",
    WrongWidth: r"not \(batch, width\) numbers.*let `width\(dim\)` say its size",
    WidthOfTheBatch: r"not \(batch, width\) numbers",
    Tokens: r"not \(batch, width\) numbers.*one vector for every text",
    Signs: "not floating-point numbers: begin with",
    AltersHidden: "alters the hidden states or the batch.*makes a new tensor",
    AltersTheBatch: "alters the hidden states or the batch",
    Constant: "other hidden states give the same vector: read `hidden`",
    SumsToTwo: "no distribution over the tokens .*2.000.*divide by their sum",
    NegativeWeights: "no distribution over the tokens.*0 or more",
    SoftmaxOverPadding: "gives padding a weight: multiply by batch.real, or fill with -inf|move a vector",
    NaNWeights: "not `present` has weights: they are all 0, not NaN; divide by",
    WeightsOfAnother: "`read` is not the mean with these `weights`: leave `read`",
    OneWeightForAll: r"`weights` gives .*not \(batch, token\) numbers",
    FloatsOnly: "`read` raised RuntimeError|bfloat16",
    FailsOnTheEmptyText: "`read` raised IndexError: no content; texts may be empty",
    TakesAName: "is the name of a readout of clsprobe.*choose a name of your own",
    NameOfTwoWords: "the name of a readout is a value of a column.*letters, digits",
    Bare: "is no readout: derive its class from clsprobe.Readout",
}


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.__name__)
def test_a_broken_twin_is_caught(twin):
    for seed in range(2):
        with pytest.raises(AssertionError, match=TWINS[twin]) as caught:
            check_readout(twin(), seed=seed)
        fault, _, mend = str(caught.value).rpartition(": ")  # the fault, and how to mend it
        assert len(fault) > 20
        assert len(mend) > 20


def test_a_class_is_no_readout():
    with pytest.raises(AssertionError, match="pass an instance"):
        check_readout(Squares)


def test_a_fault_that_only_an_encoder_shows_is_caught(encoder):
    class BindsToNothing(QuestionMark):
        def bind(self, encoder):
            return QuestionMark()

    with pytest.raises(AssertionError, match=r"none of .* texts has this readout"):
        check_readout(BindsToNothing(), encoder)
    assert clsprobe.check_readout is check_readout
