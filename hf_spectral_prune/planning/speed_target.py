"""How much must go for a model to decode at a wanted speed, found by timing cut copies of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from ..arguments import SpectralPruningArguments
from ..evaluation.figures import num_parameters, paired_latency
from ..models.distributed import of_first_process
from ..models.families import unit_groups
from ..surgery import apply_plan, settle_class
from ..utils.progress import stage
from .allocate import Sizes, uniform_sizes
from .choose import choose_units
from .limits import limits_for
from .reduction_target import set_target

# What is timed: one sequence, decoded behind a short prompt.
_PROMPT, _STEPS, _REPEATS = 64, 32, 5
# Reductions that are tried, in per cent.
_LEAST, _MOST = 1, 95


@dataclass(frozen=True)
class Timed:
    """The least reduction that is fast enough.

    Attributes:
        reduction: fraction to remove, in whole per cent.
        dense, cut: tokens per second of the model as it is, and of a copy without that fraction.
    """

    reduction: float
    dense: float
    cut: float

    def note(self, wanted: float) -> str:
        """A sentence for the plan."""
        return (
            f"{wanted:,.1f} tokens/s were asked for: without {self.reduction:.0%} a copy decoded {self.cut:,.1f} tokens/s here, "
            f"the whole model {self.dense:,.1f} (batch 1, medians of {_REPEATS})."
        ).replace("%", " %", 1)


def with_timed_target(model: PreTrainedModel, args: SpectralPruningArguments) -> tuple[SpectralPruningArguments, list[str]]:
    """The options with the `target_reduction` that `target_tokens_per_second` takes in its place, and notes on it.

    Raises:
        ValueError: see `reduction_for_speed`.
    """
    wanted = args.target_tokens_per_second
    if wanted is None:
        return args, []
    timed = of_first_process(lambda: reduction_for_speed(model, args, wanted))
    return replace(args, target_reduction=timed.reduction, target_tokens_per_second=None), [timed.note(wanted)]


def reduction_for_speed(model: PreTrainedModel, args: SpectralPruningArguments, wanted: float) -> Timed:
    """The least reduction, to a per cent, at which decoding reaches the `wanted` tokens per second.

    What is timed are copies with equal shares removed, timed in turn with the model itself; which units they have does not
    matter for their speed. Memory: one copy at a time.

    Raises:
        ValueError: the model is as fast already, or not so fast without all that may go; or it does not generate text.
    """
    shapes = {percent: sizes for percent in range(_LEAST, _MOST + 1) if (sizes := _sizes(model, args, percent)) is not None}
    known: dict[int, tuple[float, float]] = {}

    def is_fast(percent: int) -> bool:
        known[percent] = _speeds(model, args, shapes[percent])
        bar.update()
        return known[percent][1] >= wanted

    with stage("Timing cut copies", unit="copies", show=not args.disable_tqdm) as bar:
        low, high = 0, max(shapes, default=0)
        if not high or not is_fast(high):
            dense, cut = known.get(high, (float("nan"),) * 2)
            raise ValueError(
                f"`target_tokens_per_second` is {wanted:,.1f}, and even without {high} % the model decodes {cut:,.1f} tokens/s "
                f"here ({dense:,.1f} as it is). Lower it."
            )
        if known[high][0] >= wanted:
            raise ValueError(
                f"`target_tokens_per_second` is {wanted:,.1f}, and the model decodes {known[high][0]:,.1f} already. Raise it."
            )
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if is_fast(middle) else (middle, high)
    return Timed(high / 100, *known[high])


def _sizes(model: PreTrainedModel, args: SpectralPruningArguments, percent: int) -> Sizes | None:
    """Equal shares without that many per cent; None where the floors do not allow it."""
    now = num_parameters(model)
    target = set_target(model, replace(args, target_reduction=percent / 100), now, now, None)
    try:
        return uniform_sizes(target.groups, target.now, target.goal, limits_for(model, args, target))
    except ValueError:
        return None


def _speeds(model: PreTrainedModel, args: SpectralPruningArguments, sizes: Sizes) -> tuple[float, float]:
    """Tokens per second of the model, and of a copy cut to these sizes."""
    groups = unit_groups(model, args.units)
    scores = {group.key: torch.zeros(group.size) for group in groups}
    plan = choose_units(groups, scores, sizes, num_parameters(model), model_type=model.config.model_type)
    cut = settle_class(apply_plan(copy.deepcopy(model), plan, compensation="none", progress=False))
    timed = {"dense": model, "cut": cut}
    found = paired_latency(timed, prefill_tokens=_PROMPT, decode_tokens=_STEPS, repeats=_REPEATS)
    return found["dense"]["decode_tokens_per_second"], found["cut"]["decode_tokens_per_second"]


__all__ = ["Timed", "reduction_for_speed", "with_timed_target"]
