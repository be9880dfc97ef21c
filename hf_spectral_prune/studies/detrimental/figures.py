"""What a count of right answers says: Wilson's interval, and McNemar's test of two models on the same examples."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import binomtest

from ...utils.types import Json


def accuracy_figures(correct: Sequence[bool]) -> dict[str, float]:
    """`accuracy`, its 95 % confidence interval by Wilson's score (`low`, `high`), and `num_examples`."""
    interval = binomtest(sum(correct), len(correct)).proportion_ci(confidence_level=0.95, method="wilson")
    return {
        "accuracy": sum(correct) / len(correct),
        "low": float(interval.low),
        "high": float(interval.high),
        "num_examples": len(correct),
    }


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> Json:
    """Examples `gained` and `lost` from one model to the other, and the exact two-sided `p_value` of McNemar's test.

    Under the hypothesis that neither is better, an example that changed sides is as likely gained as lost; 1.0 if none has.
    """
    pairs = list(zip(before, after, strict=True))
    gained = sum(new and not old for old, new in pairs)
    lost = sum(old and not new for old, new in pairs)
    p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return {"gained": gained, "lost": lost, "p_value": p_value}
