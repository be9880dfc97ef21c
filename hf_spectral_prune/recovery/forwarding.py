"""ForwardingCallback: the callbacks of a pruning run hear the recovery too, as one run that goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# The recovery is a part of the run, whose begin and end they hear once.
_OF_THE_RUN = ("on_init_end", "on_train_begin", "on_train_end")


class ForwardingCallback(TrainerCallback):
    """Hands the events of a Trainer on to callbacks of another run, all but those of a run's begin and end.

    Args:
        callbacks: what hears the events; what they set in `control` counts.
    """

    def __init__(self, callbacks: Sequence[TrainerCallback]) -> None:
        self.callbacks = list(callbacks)
        for name in vars(TrainerCallback):
            if name.startswith("on_") and name not in _OF_THE_RUN:
                setattr(self, name, self._handler(name))

    def _handler(self, name: str) -> Callable[..., TrainerControl]:
        def hand_on(args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> TrainerControl:
            for callback in self.callbacks:
                control = getattr(callback, name)(args, state, control, **kwargs) or control
            return control

        return hand_on
