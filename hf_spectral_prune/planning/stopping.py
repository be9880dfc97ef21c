"""The stopping rule: whether a metric has fallen by more than the user allows."""

from __future__ import annotations

from ..arguments import SpectralPruningArguments, should_rise


def check_stop_metric(args: SpectralPruningArguments, before: dict[str, float]) -> None:
    """Checks that the figures `before_*` of the model before pruning have the stopping rule's metric.

    Raises:
        ValueError: they have not; names those they have.
    """
    if args.stop_metric is None or f"before_{args.stop_metric.removeprefix('eval_')}" in before:
        return
    known = ", ".join(f"`eval_{name.removeprefix('before_')}`" for name in before)
    raise ValueError(f"`stop_metric` is `{args.stop_metric}`, but the evaluation gives {known}. Choose one of those.")


def stop_note(args: SpectralPruningArguments, round_index: int, before: dict[str, float], now: dict[str, float]) -> str | None:
    """Why to stop before a round, or None to go on.

    Args:
        before: figures `before_*` of the model before pruning.
        now: figures `eval_*` with the round's units masked.
    """
    name = str(args.stop_metric).removeprefix("eval_")
    old, new = before[f"before_{name}"], now[f"eval_{name}"]
    # Where it is that of another metric, it says nothing of this one.
    watched = (args.metric_for_best_model or name).removeprefix("eval_")
    higher = args.greater_is_better if watched == name else None
    if higher is None:
        higher = should_rise(name)
    # Written so that a figure that is not a number stops the run.
    if (old - new if higher else new - old) <= args.stop_drop:
        return None
    return (
        f"Stopped before round {round_index} of {args.num_rounds}: `{args.stop_metric}` would have gone from {old:.4g} to "
        f"{new:.4g}, which is worse by more than `stop_drop` ({args.stop_drop})."
    )
