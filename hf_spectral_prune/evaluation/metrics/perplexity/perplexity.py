"""Perplexity from losses: the exponential of the mean negative log-likelihood of a token over the whole corpus."""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = "exp(sum of the tokens' negative log-likelihoods / number of tokens), over all sequences together."
_INPUTS = """
Args:
    predictions: list of float, the summed negative log-likelihood of each sequence in nats.
    references: list of int, the number of predicted tokens of each sequence.

Returns:
    perplexity: float over the corpus (long sequences weigh more than short ones).
    mean_perplexity: float, the mean of the sequences' own perplexities, as the Hub metric that runs a model reports it.
    loss: float, nats per token.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class Perplexity(evaluate.Metric):
    """The shipped perplexity module."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references):
        losses, counts = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        if counts.sum() == 0:
            raise ValueError("There is no predicted token to compute a perplexity of. Give longer sequences.")
        loss = losses.sum() / counts.sum()
        own = np.exp(losses[counts > 0] / counts[counts > 0])
        return {"perplexity": float(np.exp(loss)), "mean_perplexity": float(own.mean()), "loss": float(loss)}
