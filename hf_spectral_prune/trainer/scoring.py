"""ScoreTrackingCallback: scores every unit of any Trainer's model at intervals of its training, and logs them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, Self

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .. import rounds
from ..arguments import SpectralPruningArguments
from ..checks import check_arguments, check_data, check_model, needs_data
from ..criteria import Criterion, Scores
from ..criteria.calibrate import Evidence, calibrate
from ..data.for_model import read_data
from ..data.texts import CalibrationData
from ..models.distributed import of_first_process, shards_weights, whole_copy
from ..models.families import family_of
from ..models.families.experts import check_no_experts
from ..models.torch_model import check_unwrapped
from ..utils.types import ProcessingClass
from ..utils.words import did_you_mean, listed


class LoggingCallback(TrainerCallback):
    """A callback that can log to the loggers of its Trainer, which Trainer tells no callback of."""

    _trainer: Trainer | None = None

    def attach(self, trainer: Trainer) -> Self:
        """Adds the callback to a trainer, whose loggers then get its figures.

        Given as `Trainer(callbacks=[...])` instead, it does the same work, but its figures go to `state.log_history` only.
        """
        trainer.add_callback(self)
        self._trainer = trainer
        self.on_init_end(
            trainer.args,
            trainer.state,
            trainer.control,
            model=trainer.model,  # type: ignore[arg-type]
            processing_class=trainer.processing_class,
        )
        return self

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        processing_class: ProcessingClass | None = None,
        **kwargs: Any,
    ) -> None:
        """Checks all that can be checked before training."""
        assert model is not None  # a Trainer gives it
        check_no_experts(family_of(model.config), f"`{type(self).__name__}`")
        self.check(args, model, processing_class)

    def check(self, args: TrainingArguments, model: PreTrainedModel, processing_class: ProcessingClass | None) -> None:
        """Raises what would make the training fail later."""
        raise NotImplementedError

    def log(self, figures: dict[str, float], state: TrainerState, control: TrainerControl) -> None:
        """Hands figures to the Trainer's loggers, or to `state.log_history` if the callback was not attached."""
        if self._trainer is None:
            state.log_history.append({**figures, "step": state.global_step, "epoch": state.epoch})
            return
        due = control.should_log
        self._trainer.log(figures)
        control.should_log = due  # logging takes back the Trainer's own wish to log this step


def _check_names(options: Iterable[str]) -> None:
    known = [entry.name for entry in fields(SpectralPruningArguments)]
    for name in options:
        if name not in known:
            near = did_you_mean(name, known, otherwise=" `SpectralPruningArguments` has them all.")
            raise TypeError(f"`{name}` is no option of a pruning run.{near}")


class ScoreTrackingCallback(LoggingCallback):
    """Scores the units every `score_steps` steps and logs the mean and the least score of every group; prunes nothing.

    Training itself is not touched: the weights come out as without the callback. Over several processes the first one scores
    while the others wait (`ddp_timeout`); of sharded weights it makes a temporary copy.

    Args:
        args: the criterion, the units, and what else concerns the scores.
        calibration_dataset: as for SpectralPruner; by default `num_calibration_samples` rows of the training data.
        processing_class: tokenizer for raw text; the Trainer's by default.
        score_steps: optimizer steps between scorings; None for no scoring.
        options: of `SpectralPruningArguments`, in place of `args`.

    Attributes:
        scores: {group key: (n_units,)} of the last scoring.

    Raises:
        TypeError: an option that is none.
        ValueError: at construction: `score_steps` below 1, or an option that cannot work. At the Trainer's construction or
            before the first step: an unknown family, weights sharded in a way that cannot be gathered.

    Example:
        ```python
        tracking = ScoreTrackingCallback(SpectralPruningArguments(criterion="energy"), texts, score_steps=50).attach(trainer)
        trainer.train()
        print(tracking.scores["layers.0.ffn"])
        ```
    """

    def __init__(
        self,
        args: SpectralPruningArguments | None = None,
        calibration_dataset: object = None,
        processing_class: ProcessingClass | None = None,
        score_steps: int | None = 100,
        **options: Any,
    ) -> None:
        if args is not None and options:
            names = listed(options)
            raise ValueError(f"Both `args` and {names} are given. Put all options into `args`, or give them without it.")
        _check_names(options)
        if score_steps is not None and score_steps < 1:
            raise ValueError(f"`score_steps` is {score_steps}; it must be at least 1.")
        self.args = check_arguments(SpectralPruningArguments(**options) if options else args)
        self.calibration_dataset = calibration_dataset
        self.processing_class = processing_class
        self.score_steps = score_steps
        self.scores: Scores = {}
        self._criterion: Criterion | None = None
        self._calibration: CalibrationData | None = None
        self._train_dataloader: DataLoader | None = None  # before the first step there is none
        self._sharded = False
        self._spread = False  # over several processes

    # ---- Trainer's events

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        processing_class: ProcessingClass | None = None,
        train_dataloader: DataLoader | None = None,
        **kwargs: Any,
    ) -> None:
        """Checks again: the model and what it is spread over may have changed since."""
        assert model is not None
        self._train_dataloader = train_dataloader
        self.check(args, model, processing_class)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Scores where `score_steps` says so."""
        if self.score_steps is None or state.global_step % self.score_steps:
            return
        assert model is not None
        if self._spread:
            target = self._copy(model)
            self.scores = of_first_process(lambda: self._score(target)[1])  # type: ignore[arg-type]  # the first one has it
        else:
            self.scores = self._score(model)[1]
        self.log(score_figures(self.scores), state, control)

    # ---- the scoring

    def check(self, args: TrainingArguments, model: PreTrainedModel, processing_class: ProcessingClass | None) -> None:
        """Raises what would make the scoring fail later."""
        if self.args.lm_eval is not None:
            raise ValueError(
                "`lm_eval` is measured by `SpectralPruner` and `cria evaluate`, not in the training of a Trainer. Leave it out, "
                "and measure the saved model."
            )
        check_unwrapped(model)
        self._sharded = shards_weights(model)
        self._spread = self._sharded or AcceleratorState().distributed_type != DistributedType.NO
        self._criterion = check_model(model, self.args)
        if self._calibration is None:
            self._calibration = self._read(model, self.processing_class or processing_class)
        if self._calibration is not None or self._train_dataloader is not None:  # else it comes with the training
            check_data(model, self.args, self._criterion, self._calibration)

    def _read(self, model: PreTrainedModel, processing_class: ProcessingClass | None) -> CalibrationData | None:
        """The calibration data; where none was given and something needs it, rows of the training data, once that is there."""
        assert self._criterion is not None
        if self.calibration_dataset is not None:
            return read_data(self.calibration_dataset, processing_class, model, self.args, "calibration_dataset")
        if self._train_dataloader is None or not needs_data(model, self.args, self._criterion):
            return None
        rows, collator = self._train_dataloader.dataset, self._train_dataloader.collate_fn
        return read_data(rows, processing_class, model, self.args, "train_dataset", collator)

    def _copy(self, model: PreTrainedModel) -> PreTrainedModel | None:
        """What the first process scores where training is spread: the model, or a whole copy of sharded weights (else None)."""
        if not self._sharded:
            return model
        whole = whole_copy(model)
        return None if whole is None else whole.to(model.device)  # type: ignore[arg-type]

    def _score(self, model: PreTrainedModel) -> tuple[Evidence, Scores]:
        assert self._criterion is not None
        evidence = calibrate(model, self.args, self._criterion, self._calibration)
        scores = rounds.score(model, self.args, self._criterion, evidence)
        return evidence, {key: value.cpu() for key, value in scores.items()}


def score_figures(scores: Scores) -> dict[str, float]:
    """Mean and least score of every group, by the names that loggers get."""
    return {
        f"scores/{key}/{name}": float(value)
        for key, score in scores.items()
        for name, value in (("mean", score.mean()), ("min", score.min()))
    }
