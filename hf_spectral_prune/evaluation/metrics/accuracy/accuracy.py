"""Accuracy: the share of predictions that equal their reference, as the Hub metric of the same name computes it."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = "Share of predictions that equal their reference: (TP + TN) / (TP + TN + FP + FN) for two classes."
_INPUTS = """
Args:
    predictions: list of int class labels (lists of labels in the `multilabel` configuration).
    references: the same, the truth.
    normalize: False returns the number of right predictions instead of their share.
    sample_weight: a weight for each example, or None.

Returns:
    accuracy: float; in `multilabel`, an example is right only if all its labels are.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class Accuracy(evaluate.Metric):
    """The shipped accuracy module."""

    def _info(self):
        label = datasets.Value("int32")
        feature = datasets.Sequence(label) if self.config_name == "multilabel" else label
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": feature, "references": feature}),
        )

    def _compute(self, predictions, references, normalize=True, sample_weight=None):
        right = np.asarray(predictions) == np.asarray(references)
        if right.ndim > 1:
            right = right.all(axis=1)
        weights = np.ones(len(right)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        total = float((right * weights).sum())
        return {"accuracy": total / float(weights.sum()) if normalize else total}
