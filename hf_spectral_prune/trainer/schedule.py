"""PruningSchedule: at which steps of a training run the pruning rounds fall, and how much each removes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

# {step: rounds (1-based) that fall after it}; step None is the end of training.
Due = dict[int | None, list[int]]


@dataclass(frozen=True)
class PruningSchedule:
    """When the rounds of a `SpectralPruningCallback` fall.

    - "one_shot": all rounds at `start`.
    - "linear": round k of n at `start + k (end - start) / n`; each removes an equal share.
    - "cubic": the same steps; after round k the share `1 - (1 - k/n)^3` is gone, most of it early (Zhu and Gupta 2017).
    - "end": all rounds when training has ended (and the best model is loaded).

    Attributes:
        start_step, end_step: optimizer steps; 0 is before the first one.
        start_epoch, end_epoch: the same in epochs, which may be fractions. By default the start is 0, and the end of
            "linear" and "cubic" is half of the training, so that as much is left to recover.

    Raises:
        ValueError: an unknown kind, a start or end given twice or where it has no meaning, or negative.
    """

    kind: Literal["one_shot", "linear", "cubic", "end"] = "one_shot"
    start_step: int | None = None
    end_step: int | None = None
    start_epoch: float | None = None
    end_epoch: float | None = None

    def __post_init__(self) -> None:
        kinds = ("one_shot", "linear", "cubic", "end")
        if self.kind not in kinds:
            raise ValueError(f"`kind` of the schedule is `{self.kind}`; choose from {', '.join(f'`{kind}`' for kind in kinds)}.")
        has_start, has_end = self.kind != "end", self.kind in ("linear", "cubic")
        for side, has in (("start", has_start), ("end", has_end)):
            given = {name: getattr(self, name) for name in (f"{side}_step", f"{side}_epoch") if getattr(self, name) is not None}
            if given and not has:
                raise ValueError(f"A `{self.kind}` schedule has no {side}. Leave `{next(iter(given))}` out.")
            if len(given) > 1:
                raise ValueError(f"Both `{side}_step` and `{side}_epoch` are set. Give one of them.")
            for name, value in given.items():
                if value < 0:
                    raise ValueError(f"`{name}` is {value}; it must not be negative.")

    def share(self, index: int, num_rounds: int) -> Fraction:
        """Share of all that is to be removed which is gone after round `index` (1-based)."""
        share = Fraction(index, num_rounds)
        return 1 - (1 - share) ** 3 if self.kind == "cubic" else share

    def rounds(self, num_rounds: int, max_steps: int, steps_per_epoch: int | None) -> Due:
        """{step: rounds (1-based) that fall after it}; step None is the end of training.

        Args:
            steps_per_epoch: None if it is not known (a stream).

        Raises:
            ValueError: the schedule ends after training or before it starts, or epochs are given and not known.
        """
        all_rounds = list(range(1, num_rounds + 1))
        if self.kind == "end":
            return {None: all_rounds}
        start = self._step("start", 0, steps_per_epoch)
        if self.kind == "one_shot":
            self._check_within(start, max_steps, "start")
            return {start: all_rounds}
        end = self._step("end", max_steps // 2, steps_per_epoch)
        self._check_within(end, max_steps, "end")
        if start >= end:
            raise ValueError(f"The pruning schedule starts at step {start} and ends at step {end}. Let it end later.")
        due: Due = {}
        for index in all_rounds:
            due.setdefault(start + (end - start) * index // num_rounds, []).append(index)
        return due

    def _step(self, side: str, default: int, steps_per_epoch: int | None) -> int:
        step, epoch = getattr(self, f"{side}_step"), getattr(self, f"{side}_epoch")
        if epoch is None:
            return default if step is None else step
        if steps_per_epoch is None:
            raise ValueError(f"`{side}_epoch` is set, but the training data has no length. Set `{side}_step`.")
        return math.ceil(epoch * steps_per_epoch)

    def _check_within(self, step: int, max_steps: int, side: str) -> None:
        if step > max_steps:
            raise ValueError(
                f"The pruning schedule ends at step {step}, but training ends at step {max_steps}. Lower `{side}_step` (or "
                f"`{side}_epoch`), or train longer."
            )


def round_at(due: Due, step: int) -> int:
    """The last round that falls up to a step, 0 for none."""
    return max((max(rounds) for at, rounds in due.items() if at is not None and at <= step), default=0)


def left_to_run(due: Due, last_round: int, step: int) -> Due:
    """What is left of a schedule at a step: without the rounds up to `last_round`, and those that were missed as one, now."""
    left = {at: [index for index in rounds if index > last_round] for at, rounds in due.items()}
    if step > 0:
        left = {at: rounds for at, rounds in left.items() if at is None or at > step}
        if (missed := round_at(due, step)) > last_round:
            left[step] = [missed]
    return {at: rounds for at, rounds in left.items() if rounds}
