"""A readout of your own: a mean in which later tokens weigh more (Muennighoff 2022, https://arxiv.org/abs/2202.08904).

A `Weighted` readout is a distribution over the real tokens of a text; everything else is written. What is no mean
derives from `Readout` and writes `read`. From the folder of this file: clsprobe run --readouts cls,readout:LateTokens
"""

from clsprobe import Batch, Extractor, Weighted, check_readout, load, load_encoder, sweep


class LateTokens(Weighted):
    """The mean of all tokens, each weighted by its position."""

    name = "late"  # how tables call it

    def weights(self, batch: Batch):
        """(batch, token), rows sum to 1, 0 on padding."""
        positions = batch.real.cumsum(1) * batch.real  # 1, 2, 3 ... on the real tokens of a text, 0 on padding
        return positions / positions.sum(1, keepdim=True).clamp(min=1)


if __name__ == "__main__":
    check_readout(LateTokens())

    (task,) = load("grammar:tense:120").tasks
    states = Extractor(load_encoder(), ["mean", LateTokens()], layers=[6])(task.texts)
    results = sweep(task, states, "logistic", controls=[])
    scores = results[(results.split == "test") & (results.metric == "accuracy") & (results.control == "none")]
    print(scores[["layer", "readout", "value", "low", "high"]].round(3).to_string(index=False))
