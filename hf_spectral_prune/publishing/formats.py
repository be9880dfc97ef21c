"""Figures as text, as cards, report pages and the terminal show them."""

from __future__ import annotations

import math

# How metrics end that are shares of right answers; the latter three are names of lm_eval.
_SHARES = ("accuracy", "acc", "acc_norm", "exact_match")


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{share:.1%}".replace("%", " %")


def number(value: float | str | None) -> str:
    """A figure in few characters: whole numbers in full, others with 4 significant digits; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, str):  # figures that are not finite stand as words in some files
        value = float(value)
    if isinstance(value, int) or value == 0:
        return f"{value:,.0f}"
    if not math.isfinite(value):
        return str(value)
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def metric(name: str, value: float) -> str:
    """A held-out figure by its name: accuracies as percentages, others as `number` writes them."""
    return percent(value) if _is_share(name, value) else number(value)


def with_error(name: str, value: float, error: float | None) -> str:
    """`metric` with a standard error behind it, where there is one."""
    if error is None or not math.isfinite(error):
        return metric(name, value)
    return f"{metric(name, value)} ± {100 * error:.1f}" if _is_share(name, value) else f"{metric(name, value)} ± {error:.2g}"


def metric_change(name: str, before: float, after: float) -> str:
    """What a held-out figure gained or lost: accuracies in percentage points, others as a percentage of what they were."""
    if _is_share(name, before) and _is_share(name, after):
        return f"{100 * (after - before):+.1f} points"
    return change(before, after)


def _is_share(name: str, value: float) -> bool:
    return name.partition(" ")[0].endswith(_SHARES) and 0 <= value <= 1


def change(before: float, after: float) -> str:
    """What a figure gained or lost, as a percentage with one decimal; empty where there is no such share."""
    if not before or not math.isfinite(before) or not math.isfinite(after):
        return ""
    return f"{after / before - 1:+.1%}".replace("%", " %")
