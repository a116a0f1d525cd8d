"""A decoder of your own: which words a text has, by ridge regression on its vector, in closed form.

A `Decoder` writes three methods: it learns from standardised vectors, says how many bits a text takes given its vector,
and writes a text. The last cell is all zeros, the blind decoder; what a vector tells is its bits less those of a cell.
For `Reconstruct` in Python: clsprobe.probes.decoders.DECODERS["ridge"] = "decoder:RidgeDecoder"
"""

import numpy as np
import torch

from clsprobe import Extractor, load, load_encoder
from clsprobe.probes.decoders.base import Decoder
from clsprobe.probes.tasks.split import sample_task


class RidgeDecoder(Decoder):
    """The set of words of a text. Fitted: weights_ (cell + 1, dim + 1, word)."""

    def _train(self, X, codes, X_dev, codes_dev, table, path):
        X, present = self._with_ones(X), self._presence(codes)
        ridge = 1000.0 * torch.eye(X.shape[2])
        ridge[-1, -1] = 0.0  # the intercept is free
        self.weights_ = torch.linalg.solve(X.mT @ X + ridge, X.mT @ present)

    def _bits(self, X, cells, codes):
        """(cell, text, 1): whether each word of the vocabulary is there, in bits."""
        probability, present = self._predict(X, cells), self._presence(codes)
        bits = -(present * probability.log2() + (1 - present) * (1 - probability).log2())
        return bits.sum(2, keepdim=True).numpy()

    def _generate(self, X, cells):
        """cell -> text -> codes of the words that are likelier than not, the likeliest first."""
        order = self._predict(X, cells).sort(descending=True)
        return [
            [words[share > 0.5].numpy() for words, share in zip(*pair, strict=True)]
            for pair in zip(order.indices, order.values, strict=True)
        ]

    def _predict(self, X, cells):  # (cell, text, word) probabilities
        return (self._with_ones(X) @ self.weights_[cells]).clamp(0.002, 0.998)

    def _with_ones(self, X):
        return torch.cat([X, torch.ones_like(X[..., :1])], 2)

    def _presence(self, codes):  # (text, word) 0 or 1
        return torch.stack([(codes == code).any(1).float() for code in range(len(self.tokens_))], 1)


if __name__ == "__main__":
    encoder = load_encoder()
    texts = list(sample_task(load("grammar:tense:2000").tasks[0], 300, seed=0).texts)
    states = Extractor(encoder, ["cls", "mean"], layers=[6])(texts)
    vectors = np.stack([states.cell(6, "cls"), states.cell(6, "mean")])
    tokens = [row.ids[~row.special].astype(np.int64) for row in encoder.tokenize(texts)]
    decoder = RidgeDecoder(slots=max(map(len, tokens)))
    decoder.fit(vectors[:, :210], tokens[:210], dev=(vectors[:, 210:255], tokens[210:255]))
    gains = decoder.blind_bits(tokens[255:]) - decoder.bits(vectors[:, 255:], tokens[255:])
    print(f"Bits of a new text that a vector tells: cls {gains[0].mean():.1f}, mean {gains[1].mean():.1f}")
