"""A probe of your own: the class whose mean is nearest.

Any classifier or regressor of scikit-learn is a probe already. One that fits all cells and label sets of a sweep at
once derives from `CellProbe`. From the folder of this file: clsprobe run --probes logistic,probe:CentroidProbe
"""

import numpy as np
from sklearn.base import ClassifierMixin

from clsprobe import CellProbe, check_probe


class CentroidProbe(ClassifierMixin, CellProbe):
    """The class whose mean is nearest, in standardised features."""

    def fit_cells(self, X, y, *, dev=None, strengths=None, sample_weight=None):
        """X (cell, text, dim); y (text, label set): codes 0..K-1, -1 where a text has no label in that set."""
        self.scale_ = X.std(1, keepdims=True) + 1e-6  # of train: what is fitted ends in _, and X stays as it is
        far = np.full(X.shape[2], np.inf)  # where a class without texts stands
        self.means_ = [
            [
                np.stack([cell[y[:, s] == k].mean(0) if (y[:, s] == k).any() else far for k in range(y.max() + 1)])
                for s in range(y.shape[1])
            ]
            for cell in X / self.scale_
        ]
        return self

    def predict_cells(self, X):
        """(cell, label set, text) codes."""
        return np.array(
            [
                [((x[:, None] - means) ** 2).sum(-1).argmin(-1) for means in label_sets]
                for x, label_sets in zip(X / self.scale_, self.means_, strict=True)
            ]
        )


if __name__ == "__main__":
    check_probe(CentroidProbe())
    print("CentroidProbe finds a planted signal, is at chance without one, and depends on nothing else")
