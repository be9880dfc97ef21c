"""Metrics as `evaluate` modules that come with the package, so that they work offline; others load by their Hub name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ...utils.words import first_line, listed

if TYPE_CHECKING:
    import evaluate

SHIPPED = ("accuracy", "f1", "perplexity")


def load_metric(
    name_or_path: str, config_name: str | None = None, *, trust_remote_code: bool = False, **options: Any
) -> evaluate.EvaluationModule:
    """An `evaluate` module: the shipped one of that name, else `evaluate.load(name_or_path)`, which runs its Python code.

    Args:
        trust_remote_code: whether that code, from the Hub or a folder, may run.
        options: further arguments of `evaluate.load`.

    Raises:
        ValueError: it is none of the shipped ones and not to be trusted; or the Hub has none or cannot be reached.

    Example:
        ```python
        accuracy = load_metric("accuracy")
        accuracy.compute(predictions=[0, 1, 1], references=[0, 1, 0])  # {"accuracy": 0.666...}
        ```
    """
    import evaluate

    shipped = name_or_path in SHIPPED and config_name is None
    if not shipped and not trust_remote_code:
        known = listed(SHIPPED)
        raise ValueError(
            f"The metric `{name_or_path}` is Python code that does not come with this package. Give one of {known}, or set "
            "`trust_remote_code` to run it."
        )
    path = str(Path(__file__).with_name(name_or_path)) if shipped else name_or_path
    try:
        return evaluate.load(path, config_name, **{"keep_in_memory": True} | options)
    except (FileNotFoundError, ConnectionError) as error:
        known = listed(SHIPPED)
        raise ValueError(
            f"There is no metric `{name_or_path}` here or on the Hub ({first_line(error)}). Shipped: {known}; give one "
            "of them, a Hub name, or the path of a module."
        ) from None


def regression_figures(predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """Mean squared error, and Pearson's correlation where both vary, of a regression: (N,) each."""
    predictions, references = np.asarray(predictions, np.float64), np.asarray(references, np.float64)
    figures = {"mse": float(np.square(predictions - references).mean())}
    if predictions.std() > 0 and references.std() > 0:
        figures["pearsonr"] = float(np.corrcoef(predictions, references)[0, 1])
    return figures


def multi_label_figures(logits: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """Share of rows whose labels are all right, and F1 over all labels (micro), where a row may have several: (N, C) each.

    A label is predicted where its logit is above 0, which is a probability above one half.
    """
    said, true = np.asarray(logits) > 0, np.asarray(references) > 0.5
    count = int(said.sum() + true.sum())
    return {"accuracy": float((said == true).all(axis=1).mean()), "f1": 2 * int((said & true).sum()) / count if count else 0.0}


def token_losses(logits: ArrayLike, labels: ArrayLike) -> tuple[list[float], list[int]]:
    """What the shipped `perplexity` computes from, for a causal language model's predictions.

    Args:
        logits: (B, T, V); position t predicts token t + 1.
        labels: (B, T); those at -100 do not count.

    Returns:
        for each sequence the summed negative log-likelihood in nats, and its number of predicted tokens.
    """
    logits, labels = np.asarray(logits)[:, :-1], np.asarray(labels)[:, 1:]
    losses, counts = [], []
    for row, goal in zip(logits, labels, strict=True):
        real = goal != -100
        row = row[real].astype(np.float64)  # (n, V)
        top = row.max(axis=-1, keepdims=True, initial=-np.inf)
        log_sum = np.log(np.exp(row - top).sum(axis=-1)) + top[:, 0]
        losses.append(float((log_sum - row[np.arange(len(row)), goal[real]]).sum()))
        counts.append(int(real.sum()))
    return losses, counts
