"""SpectralPruningCallback: prunes the model of any Trainer while it trains, on a schedule, and its optimizer with it."""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from .. import rounds
from ..arguments import SpectralPruningArguments
from ..checks import check_loss
from ..criteria.calibrate import Evidence
from ..recovery.judging import check_whole
from ..rounds import Run
from ..saving.same_run import check_same_run, deciding_options
from ..surgery import add_consumer_biases, fingerprint
from ..surgery.plan import PruningPlan
from ..utils.types import Json, ProcessingClass
from .optimizer import Replacements, warn_of_untrained
from .removing import Cutting, Decision, Masking, MaskingShards, Removal, is_cut
from .resuming import narrow_on_load
from .schedule import PruningSchedule, left_to_run, round_at
from .scoring import ScoreTrackingCallback, score_figures

logger = logging.get_logger(__name__)


class SpectralPruningCallback(ScoreTrackingCallback, ExportableState):
    """Prunes inside `Trainer.train()`: rounds of calibrate, score, choose and cut at the steps of a schedule.

    A round cuts weights, config and optimizer state in place after an optimizer step, before that step's evaluation and
    checkpoint, so that both see the cut model. Works with gradient accumulation, mixed precision, gradient checkpointing
    and:

    - `resume_from_checkpoint`: build the Trainer with the dense model, as at first; the weights of a checkpoint narrow it
      as they are loaded, and the plan so far comes with the Trainer's state. Rounds that a dense run has passed by, because the
      callback was not there yet, run at once.
    - training that begins again with the same model (`auto_find_batch_size`, a second `train()`): the run goes on, and its
      rounds are not run twice. A new callback prunes further.
    - `optimizers=(...)` of your own, built from the model that the Trainer gets.
    - `load_best_model_at_end`: the best checkpoint is the best since the last cut. Each cut forgets the best so far, since a
      wider model is another model; train and evaluate on after the last round.
    - data-parallel training over several processes: there parameters cannot be replaced, so units are masked (they get no
      gradient and add nothing) until the end of training, when they are removed. Checkpoints are then of the old size. At
      each round the first process scores a temporary copy, while the others wait (`ddp_timeout`).
    - DeepSpeed up to stage 2, where every process has whole weights: likewise.
    - FSDP2, by `fsdp` or by a model that transformers sharded as it was loaded: masked too. The first process needs room for
      a whole copy of the model, on its device at each round and on its CPU at the end. The sharded model keeps its size and
      its masks; `pruned_model` is the cut one, and `trainer.save_model` writes it.

    All of these were tried with two processes on a CPU (gloo), in float32; none on several GPUs.

    Args:
        args: how to prune; one round is a step of `schedule`, `num_rounds` in all.
        calibration_dataset: as for SpectralPruner; by default `num_calibration_samples` rows of the training data.
        processing_class: tokenizer for raw text; the Trainer's by default.
        schedule: see `PruningSchedule`; its kind alone, like "cubic", takes the defaults.
        score_steps: steps between scorings that are logged; None scores at rounds alone, and logs no scores.
        options: of `SpectralPruningArguments`, in place of `args`.

    Attributes:
        plan: what was kept so far, in the original model's numbering, or None before the first round.
        scores: {group key: (n_units,)} of the last scoring.
        pruned_model: after training with sharded weights the pruned model, on the CPU of the first process; else None.

    Raises:
        ValueError: at the Trainer's construction or before the first step: an unknown family, a
            schedule that ends after training, weights sharded otherwise (DeepSpeed stage 3, FSDP1, tensor parallelism),
            an option that needs another model object.

    A method with another way of choosing is a subclass that overrides any of `check`, `begin_run` and `choose_units`, and asks
    `last_round_is_over`; each calls `super()` where it adds to what is there.

    Example:
        ```python
        callback = SpectralPruningCallback(target_reduction=0.3, num_rounds=5, schedule="cubic")
        callback.attach(trainer)  # its figures go to the trainer's loggers
        trainer.train()
        ```
    """

    def __init__(
        self,
        args: SpectralPruningArguments | None = None,
        calibration_dataset: object = None,
        processing_class: ProcessingClass | None = None,
        schedule: PruningSchedule | str | None = None,
        score_steps: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(args, calibration_dataset, processing_class, score_steps, **options)
        self.schedule = PruningSchedule(schedule) if isinstance(schedule, str) else schedule or PruningSchedule()  # type: ignore[arg-type]
        self.pruned_model: PreTrainedModel | None = None
        self.run: Run | None = None
        self._removal: Removal = Cutting(self.args, None)
        self._loading = ExitStack()
        self._replacements = Replacements()
        self._due: dict[int | None, list[int]] = {}
        self._last_round = 0  # of those that were run
        self._model: weakref.ref[PreTrainedModel] | None = None  # of the run
        self._options: Json = {}  # what the plan depends on
        self._made_ready: weakref.ref[PreTrainedModel] | None = None  # the model of `on_init_end`

    @property
    def plan(self) -> PruningPlan | None:
        """What was kept so far, in the original model's numbering."""
        return None if self.run is None else self.run.plan

    # ---- Trainer's events

    def on_init_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        processing_class: ProcessingClass | None = None,
        **kwargs: object,
    ) -> None:
        """Checks all that can be checked before training, and makes the model ready to load a pruned checkpoint."""
        assert model is not None  # a Trainer gives it
        super().on_init_end(args, state, control, model, processing_class)
        if self.args.compensation == "bias":
            add_consumer_biases(model, self.args.layout)  # before the optimizer is built
        self._loading.close()
        self._made_ready = weakref.ref(model)
        if not self._sharded:
            self._replacements = self._loading.enter_context(narrow_on_load(model))

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        processing_class: ProcessingClass | None = None,
        train_dataloader: DataLoader | None = None,
        optimizer: Optimizer | None = None,
        **kwargs: object,
    ) -> None:
        """Lays the schedule over the steps, takes up a run that was begun, and runs rounds that are due before the next step."""
        assert model is not None
        self._train_dataloader = train_dataloader
        self._loading.close()
        self._check_ready(args, state, model)
        if isinstance(_saved_states(state).get(type(self).__name__), list):
            raise ValueError(
                f"The Trainer has two callbacks of the class `{type(self).__name__}`, which would cut one model by two plans. "
                "Take one away with `remove_callback`."
            )
        self.check(args, model, processing_class)
        self._replacements.carry_over(optimizer)
        if not self._spread:  # what spreads over processes may give the optimizer parameters of its own
            warn_of_untrained(model, optimizer)
        per_epoch = _steps_per_epoch(train_dataloader, args.gradient_accumulation_steps)
        self._due = self.schedule.rounds(self.args.num_rounds, state.max_steps, per_epoch)
        self._start(model, optimizer, state)
        _saved_states(state).setdefault(type(self).__name__, self.state())  # missing if the checkpoint is older than it
        self._rounds(state.global_step, model, optimizer, state, control)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        optimizer: Optimizer | None = None,
        **kwargs: object,
    ) -> None:
        """Runs the rounds that are due, or a scoring."""
        assert model is not None
        if self.run is None:
            raise ValueError(
                f"`{type(self).__name__}` was added while the training was under way, after its rounds were laid out. Add it "
                "before `train()`: `Trainer(callbacks=[...])` or `attach(trainer)`."
            )
        self._removal.after_step(model)
        if state.global_step in self._due:
            self._rounds(state.global_step, model, optimizer, state, control)
        else:
            super().on_step_end(args, state, control, model)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        optimizer: Optimizer | None = None,
        **kwargs: object,
    ) -> None:
        """Runs the rounds of an "end" schedule, and removes what was masked."""
        assert model is not None
        self._rounds(None, model, optimizer, state, control)
        missed = [step for step in self._due if step is not None and step > state.global_step]
        if missed:
            logger.warning(f"Training ended at step {state.global_step}, before the rounds of steps {missed}: they did not run.")
        self.pruned_model = self._removal.finish(model, optimizer)

    def state(self) -> Json:
        """What a checkpoint holds of the callback: the plan so far and the sizes it goes on to."""
        run = self.run
        return {
            "args": {},
            "attributes": {
                "plan": None if run is None or run.plan is None else run.plan.to_json(),
                "final_sizes": None if run is None else run.final_sizes,
                "costs": None if run is None else run.costs,
                "last_round": self._last_round,
                "options": self._options,
            },
        }

    # ---- the steps of a run

    def _rounds(
        self, step: int | None, model: PreTrainedModel, optimizer: Optimizer | None, state: TrainerState, control: TrainerControl
    ) -> None:
        for index in self._due.get(step, []):
            self._round(self.schedule.share(index, self.args.num_rounds), model, optimizer)
            self._last_round = index
            if step is not None:
                # A wider model's figures say nothing about this one's, and its weights would not fit.
                state.best_metric = state.best_global_step = state.best_model_checkpoint = None
            assert self.plan is not None
            figures: dict[str, float] = {
                "pruning/round": index,
                "pruning/parameters": self.plan.parameters_after,
                "pruning/reduction": self.plan.reduction,
            }
            self.log(figures | (score_figures(self.scores) if self.score_steps is not None else {}), state, control)

    def _round(self, share: Fraction, model: PreTrainedModel, optimizer: Optimizer | None) -> None:
        assert self.run is not None
        decision = self._removal.round(model, optimizer, lambda whole: self._decide(whole, share))
        self.run.final_sizes, self.scores = decision.sizes, decision.scores
        self.run.add(decision.plan)

    def _decide(self, model: PreTrainedModel, share: Fraction) -> Decision:
        assert self.run is not None
        if self.plan is None:
            check_loss(model, {}, self._calibration)
        evidence, self.scores = self._score(model)
        if self.plan is None:
            self.run.fingerprint = fingerprint(model)
        plan = self.choose_units(model, share, evidence)
        assert self.run.final_sizes is not None
        return Decision(plan, self.run.final_sizes, self.scores, evidence)

    def _copy(self, model: PreTrainedModel) -> PreTrainedModel | None:
        return self._removal.to_score(model)

    @property
    def _way(self) -> type[Cutting | Masking]:
        if self._sharded:
            return MaskingShards
        return Masking if self._spread else Cutting

    def _start(self, model: PreTrainedModel, optimizer: Optimizer | None, state: TrainerState) -> None:
        """Begins a run, goes on with the one that has pruned this model, or takes up the one that a checkpoint tells of."""
        saved = _saved_states(state).get(type(self).__name__, {}).get("attributes", {}) if state.global_step else {}
        plan = PruningPlan.from_json(saved["plan"]) if saved.get("plan") else None
        self._removal.release(model)
        self._removal = self._way(self.args, self._calibration)
        self.pruned_model = None
        if self._has_pruned(model) and (plan is None or not self._removal.fits(plan, model)):
            self._go_on(model, optimizer, state)
        else:
            if self.plan is not None and plan is None:
                name = type(self).__name__
                logger.warning(f"This `{name}` has pruned another model before. It begins anew, with the same calibration data.")
            # The fingerprint is taken with the first round, of weights that a process then has whole.
            self.run = rounds.start(model, self.args, weights="", calibration=self._calibration)
            self._last_round = 0
            self._model = weakref.ref(model)
            if plan is not None:
                check_same_run(saved.get("options"), self._options, "this checkpoint")
                self._last_round = saved.get("last_round", round_at(self._due, state.global_step))
                self._take_up(plan, saved, model, optimizer)
        scheduled = round_at(self._due, state.global_step)
        if state.global_step > 0 and scheduled > self._last_round:
            logger.warning(
                f"The schedule has rounds {self._last_round + 1} to {scheduled} up to step {state.global_step}, where this run "
                "is resumed, and they were not run: the model is pruned now by their whole share at once."
            )
        self._due = left_to_run(self._due, self._last_round, state.global_step)
        self.begin_run(model, _saved_states(state).get(type(self).__name__, {}).get("attributes", {}))

    def _has_pruned(self, model: PreTrainedModel) -> bool:
        same = self._model is not None and self._model() is model
        return same and self.plan is not None and self._removal.fits(self.plan, model)

    def _go_on(self, model: PreTrainedModel, optimizer: Optimizer | None, state: TrainerState) -> None:
        """Keeps the run as it is, for a model that it has pruned and that is trained again."""
        assert self.plan is not None
        _saved_states(state)[type(self).__name__] = self.state()  # the state of a checkpoint may be that of before
        if self._spread and is_cut(self.plan, model):  # by the end of the last training: nothing is left to mask, nor to cut
            self._removal = Cutting(self.args, self._calibration)
            self._last_round = self.args.num_rounds
        self._removal.take_up(model, self.plan, optimizer)
        logger.warning(
            f"This callback has pruned the model before, and goes on after round {self._last_round} of {self.args.num_rounds}. "
            "Use a new callback to prune it further."
        )

    def _take_up(self, plan: PruningPlan, saved: Json, model: PreTrainedModel, optimizer: Optimizer | None) -> None:
        assert self.run is not None
        # The run was begun with a model that may be cut already.
        costs = tuple(saved.get("costs") or self.run.costs)
        self.run = replace(
            self.run, final_sizes=saved["final_sizes"], costs=costs, plan=plan, parameters_before=plan.parameters_before
        )
        self.run.groups = [replace(group, size=plan.sizes[group.key]) for group in self.run.groups]
        self._removal.take_up(model, plan, optimizer)

    def _check_ready(self, args: TrainingArguments, state: TrainerState, model: PreTrainedModel) -> None:
        """Tells of what `on_init_end` could not prepare, and of a checkpoint that is not whole."""
        writes, biases = args.save_strategy != "no", self.args.compensation == "bias"
        if self._made_ready is None and (writes or biases):
            raise ValueError(
                f"`{type(self).__name__}` was added to a Trainer that was built before, whose model is not ready to load a "
                "pruned checkpoint or to train new biases. Give it to `Trainer(callbacks=[...])`, or call `attach(trainer)` "
                "instead of `add_callback`."
            )
        another = self._made_ready is not None and self._made_ready() is not model
        if another and biases:
            raise ValueError(
                '`compensation="bias"` adds biases before the optimizer is built, and `model_init` makes a new model after that. '
                'Use `compensation="least_squares"`, or give the Trainer a `model`.'
            )
        if another and writes:
            logger.warning(
                "`model_init` makes a new model for every training, which cannot be made ready to load a pruned checkpoint: "
                "those of this run cannot be resumed. Give the Trainer a `model` if they should."
            )
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.global_step and folder.is_dir() and not self._spread:
            check_whole(folder, args.save_only_model)

    # ---- what a method may do in its own way

    def check(self, args: TrainingArguments, model: PreTrainedModel, processing_class: ProcessingClass | None) -> None:
        """Raises what would make the training fail later: at the Trainer's construction, and again before the first step."""
        super().check(args, model, processing_class)
        assert self._criterion is not None
        self._options = deciding_options(self.args, model, self._criterion, self._calibration)
        self._way.check(self.args, args)
        if args.restore_callback_states_from_checkpoint:
            raise ValueError(
                "`restore_callback_states_from_checkpoint` would rebuild `SpectralPruningCallback` without its calibration "
                "data. Leave it off: the callback takes up its own state when a run is resumed."
            )
        if self.args.stock_class == "mistral":
            raise ValueError('`stock_class="mistral"` makes a new model, which a running Trainer cannot take. Leave it out.')

    def begin_run(self, model: PreTrainedModel, saved: Json) -> None:
        """Called before the first step of a training, once `run` and `plan` are those that it begins or goes on with.

        Args:
            saved: the `attributes` of `state()`, where the run goes on.
        """

    def choose_units(self, model: PreTrainedModel, share: Fraction, evidence: Evidence) -> PruningPlan:
        """The plan of a round by `scores`; sets `run.final_sizes`. Over several processes the first one alone calls it.

        Args:
            model: as it stands, cut by the rounds before.
            share: of the way to the target that is gone after this round.
        """
        assert self.run is not None
        return rounds.decide(model, self.args, self.run, self.scores, share, self._calibration, evidence)

    def last_round_is_over(self, state: TrainerState) -> bool:
        """Whether no round is left to run, the one of this step included."""
        return all(step is not None and step <= state.global_step for step in self._due)


def _saved_states(state: TrainerState) -> Json:
    """{callback name: what its `state()` gave}, as a TrainerState holds it."""
    states: Any = state.stateful_callbacks  # its hint is that of before they are saved
    return states


def _steps_per_epoch(train_dataloader: DataLoader | None, accumulation: int) -> int | None:
    if train_dataloader is None:
        return None
    try:
        return max(1, -(-len(train_dataloader) // accumulation))
    except TypeError:  # a stream has no length
        return None
