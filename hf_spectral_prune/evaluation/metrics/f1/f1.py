"""F1: the harmonic mean of precision and recall, with the averages of the Hub metric of the same name."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = "F1 = 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall; 0 where that is 0 / 0."
_INPUTS = """
Args:
    predictions: list of int class labels.
    references: the same, the truth.
    labels: classes to count, in the order of the result; None takes all that occur, sorted.
    pos_label: the positive class of `average="binary"`.
    average: "binary" (the positive class alone), "micro" (all counts together), "macro" (mean over classes), "weighted" (mean
        over classes, each weighted by its number of references), or None (one value per class).
    sample_weight: a weight for each example, or None.

Returns:
    f1: float, or an array with one value per class for `average=None`.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class F1(evaluate.Metric):
    """The shipped F1 module."""

    def _info(self):
        label = datasets.Value("int32")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": label, "references": label}),
        )

    def _compute(self, predictions, references, labels=None, pos_label=1, average="binary", sample_weight=None):
        predictions, references = np.asarray(predictions), np.asarray(references)
        occurring = np.union1d(predictions, references)
        if average not in ("binary", "micro", "macro", "weighted", None):
            raise ValueError(f"`average` is {average!r}. Choose from 'binary', 'micro', 'macro', 'weighted' and None.")
        if average == "binary" and (len(occurring) > 2 or (len(occurring) == 2 and pos_label not in occurring)):
            raise ValueError(
                f'The labels are {occurring.tolist()}, so `average="binary"` with `pos_label` {pos_label} has no meaning. '
                "Choose another `average` or `pos_label`."
            )
        classes = [pos_label] if average == "binary" else occurring.tolist() if labels is None else list(labels)
        weights = np.ones(len(references)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        counts = np.array([_counts(predictions == c, references == c, weights) for c in classes]).reshape(-1, 3)
        if average == "micro":
            counts = counts.sum(axis=0, keepdims=True)
        hits, said, true = counts.T
        scores = np.divide(2 * hits, said + true, out=np.zeros(len(counts)), where=said + true > 0)
        if average is None:
            return {"f1": scores}
        if average == "weighted":
            return {"f1": float((scores * true).sum() / true.sum()) if true.sum() > 0 else 0.0}
        return {"f1": float(scores.mean())}


def _counts(said, true, weights):
    """Weighted numbers of true positives, predicted positives and actual positives."""
    return (weights * (said & true)).sum(), (weights * said).sum(), (weights * true).sum()
