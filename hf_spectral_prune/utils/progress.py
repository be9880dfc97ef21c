"""Progress of a run: a line per stage, with its name, total and estimate, on a terminal or in a notebook only."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tqdm.auto import tqdm
from transformers import TrainerCallback

from .types import Options

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

_WIDTH = 28  # of the names, so that the bars of a run stand below each other
# Within the 80 columns of a usual terminal, with counts of four figures.
_FORMAT = "{desc}{percentage:3.0f}% {bar:14} {n_fmt}/{total_fmt}{unit} {elapsed}<{remaining}"


def _without_window() -> bool:
    """Whether stderr is a terminal that has no window and so no width, as that of a job may be: tqdm would show nothing there."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns == 0
    except (OSError, ValueError, AttributeError):
        return False


def stage(
    name: str, items: Iterable[object] | None = None, *, total: int | None = None, unit: str = "", show: bool = True
) -> tqdm:
    """The bar of a stage, over `items` or moved by `update()`.

    Its line stays on the screen when the stage is over, unless it stands below another bar (a Trainer's, or that of the rounds).
    Where stderr is no terminal nothing is shown.
    """
    known = total is not None or hasattr(items, "__len__")
    size: Options = {"ncols": 80, "nrows": 24} if _without_window() else {"dynamic_ncols": True}
    return tqdm(
        items,
        desc=f"{name:{_WIDTH}}",
        total=total,
        unit=f" {unit}" if unit else "",
        disable=None if show else True,
        leave=None,
        delay=0 if known else 1,
        bar_format=_FORMAT if known else None,
        **size,
    )


@contextmanager
def working(name: str, show: bool = True) -> Iterator[None]:
    """The line of a stage whose steps cannot be counted: it is there while the work inside goes on, and stays with its time."""
    with stage(name, total=1, show=show) as bar:
        bar.refresh()
        yield
        bar.update()


class _BarCallback(TrainerCallback):
    """A bar that a run opens, moves to its step and closes."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def show(self, step: int, name: str | None = None) -> None:
        """Moves the bar, if there is one, and gives it another name."""
        if self.bar is None:
            return
        self.bar.update(step - self.bar.n)
        if name is not None:
            self.bar.set_description_str(f"{name:{_WIDTH}}")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Closes the bar; its line stays."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class RoundProgress(_BarCallback):
    """One bar over the rounds of a run that has several, with the parameters that are left; the stages stand below it."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Opens the bar."""
        if state.max_steps > 1:
            self.bar = stage("Rounds", total=state.max_steps)
            self.bar.update(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Shows what is left after a round."""
        if logs and "parameters" in logs:
            self.show(state.global_step, f"Rounds ({logs['parameters']:,} parameters)")


class RecoveryProgress(_BarCallback):
    """One bar over the steps of a training, with the last loss; it takes the place of Trainer's own, which draws in pipes too."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Opens the bar."""
        if state.is_local_process_zero:
            self.bar = stage("Recovering", total=state.max_steps, unit="steps")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        """Moves it."""
        self.show(state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Shows the loss."""
        if logs and "loss" in logs:
            self.show(state.global_step, f"Recovering (loss {float(logs['loss']):.3f})")
