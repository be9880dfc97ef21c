"""SpectralPruner: calibrate, score, plan, cut, again; then evaluate and save. Trainer's shape, on one screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from . import rounds
from .arguments import SpectralPruningArguments
from .checks import (
    check_arguments,
    check_data,
    check_judged,
    check_loss,
    check_model,
    check_offloaded,
    check_output,
    check_push,
    check_recovery,
    settle_options,
)
from .criteria import Diagnostics, Scores
from .criteria.calibrate import Evidence, calibrate
from .data.for_model import load_for_pruner, read_labelled, with_labels, wrap_for
from .data.texts import CalibrationData
from .evaluation.figures import num_parameters
from .evaluation.samples import samples_if_any
from .evaluation.tasks import check_tasks, figures_if_asked
from .models.distributed import is_first_process, join_processes, of_first_process
from .models.families import network_of
from .models.families.groups import is_vision
from .models.loading import on_one_device, source_of, without_quantisation_marks
from .models.modes import modes_kept
from .models.torch_model import check_unwrapped
from .planning import summarise
from .planning.flops import layer_macs
from .planning.reduction_target import example_image
from .planning.speed_target import with_timed_target
from .planning.stopping import check_stop_metric, stop_note
from .recovery.arguments import recovery_arguments
from .recovery.forwarding import ForwardingCallback
from .recovery.recover import RecoveryOutput, recover
from .recovery.training_data import checked_rows
from .rounds import Run
from .saving import checkpoint
from .saving.output import ModelFigures, PruningOutput, StepCosts, circumstances, pruning_report
from .saving.place import names_in, reserved
from .saving.same_run import deciding_options
from .saving.scores_file import Known, SharedScores, basis_of
from .saving.trainer_methods import TrainerMethods, name_best_checkpoint
from .surgery import as_mistral, has_batch_norms, masked, recalibrate_norms, settle_class
from .surgery.norms import norm_notes
from .surgery.plan import PruningPlan
from .trainer.pruning import SpectralPruningCallback
from .trainer.schedule import PruningSchedule
from .utils.files import num_bytes
from .utils.types import Collator, LossFunction, Metrics, Preprocess, ProcessingClass

if TYPE_CHECKING:
    from peft import PeftConfig

logger = logging.get_logger(__name__)


class SpectralPruner(TrainerMethods):
    """Prunes a Hugging Face model by structured importance, with Trainer's conventions.

    Started on several processes by `accelerate launch` or `torchrun`, all of them make a pruner of the same model and data: each
    runs its share of the batches, and the first one saves and pushes. They end with the plan and weights of a single process.

    Args:
        model: the model to prune; it is changed in place. A folder or a name on the Hub is loaded, with its processing class. A
            plain PyTorch network that turns one tensor into logits is wrapped as a `TorchModelForImageClassification`.
        args: options; the defaults remove 20 % of what can be removed.
        calibration_dataset: texts or chats, a `datasets.Dataset` of them or of tokenised rows, a stream, batches, or
            `CalibrationData`; images as `build_images` takes them for models that read those.
        eval_dataset: the same, for `evaluate()`; where given, `prune()` measures before and after. All of its images and
            tokenised rows are used, and of raw text the first 1,000 sequences of 512 tokens.
        processing_class: tokenizer or image processor; needed for raw text and images, and saved beside the model.
        callbacks: `TrainerCallback`s; a round is a step.
        train_dataset: tokenised rows, texts or chats, a stream of any of them, or `CalibrationData`, for the recovery.
        data_collator: as for Trainer, for all three data sets; see `recovery.recover`.
        teacher: see `recovery.recover`.
        compute_metrics: as for Trainer; `evaluate()` then returns its figures beside the loss.
        preprocess_logits_for_metrics: as for Trainer.
        model_init: makes the model, in place of `model`.
        compute_loss_func: as for Trainer, for the recovery.
        peft_config: a `LoraConfig` for a recovery by adapters; it stands for `recovery="lora"`.

    Example:
        ```python
        pruner = SpectralPruner(model=model, args=SpectralPruningArguments(output_dir="cria"),
                                calibration_dataset=texts, processing_class=tokenizer)
        pruner.prune()
        pruner.save_model()
        ```
    """

    args: SpectralPruningArguments
    check_model = staticmethod(check_model)

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str | Path | None = None,
        args: SpectralPruningArguments | None = None,
        calibration_dataset: object = None,
        eval_dataset: object = None,
        processing_class: ProcessingClass | None = None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] | None = None,
        *,
        train_dataset: object = None,
        data_collator: Collator | None = None,
        compute_metrics: Metrics | None = None,
        teacher: PreTrainedModel | str | Path | None = None,
        model_init: Callable[[], PreTrainedModel] | None = None,
        compute_loss_func: LossFunction | None = None,
        preprocess_logits_for_metrics: Preprocess | None = None,
        peft_config: PeftConfig | None = None,
    ) -> None:
        join_processes()
        self.args = check_arguments(args)
        if peft_config is not None:
            self.args = replace(self.args, recovery="lora")
        if not is_first_process():
            self.args = replace(self.args, disable_tqdm=True)
        loaded, self.processing_class = load_for_pruner(model, model_init, processing_class)
        check_unwrapped(loaded)
        if not isinstance(loaded, PreTrainedModel):
            loaded = wrap_for(loaded, calibration_dataset, eval_dataset, self.args)
        self.model = model = on_one_device(without_quantisation_marks(loaded))
        self.base_model = source_of(model.config)
        self.criterion = check_model(model, self.args)
        self.data_collator = data_collator
        self.calibration = self._data(calibration_dataset, "calibration_dataset")
        self.args = settle_options(self.model, self.args, self.calibration)
        check_offloaded(self.model, self.args, self.criterion)
        check_data(model, self.args, self.criterion, self.calibration)
        self.eval_data = self._data(eval_dataset, "eval_dataset")
        self.train_dataset = with_labels(train_dataset, self.processing_class, model, self.args)
        self.compute_metrics, self.teacher = compute_metrics, teacher
        self.compute_loss_func, self.peft_config = compute_loss_func, peft_config
        self.preprocess_logits_for_metrics = preprocess_logits_for_metrics
        check_recovery(self.model, self.args, train_dataset, teacher)
        check_tasks(self.model, self.processing_class, self.args)
        if self.args.recovery != "none":
            self.train_dataset = checked_rows(
                model,
                self.train_dataset,
                self.processing_class,
                self.args,
                data_collator=data_collator,
                is_judged=self.eval_data is not None,
                needs_targets=self.args.recovery in ("full", "lora") and compute_loss_func is None,
            )
        if self.args.stop_metric is not None and self.eval_data is None:
            raise ValueError(f"`stop_metric` `{self.args.stop_metric}` needs data to measure it on. Pass `eval_dataset`.")
        of_first_process(lambda: check_push(self.model, self.args))
        self.saved_to: Path | None = None
        self._place = ExitStack()  # keeps the place of the result from the start of `prune()` to its saving
        self._replaced: frozenset[str] | None = None  # what may go from there when it comes
        self.recovered: RecoveryOutput | None = None
        self.costs = StepCosts()
        self.output: PruningOutput | None = None
        self.dense = ModelFigures()
        self.scores: Scores = {}
        self.known = Known()  # of the dense model, by another run
        self.found: SharedScores | None = None  # by this run, for others
        self._begin_callbacks(callbacks, self.args.num_rounds)

    @staticmethod
    def attach(
        trainer: Trainer,
        args: SpectralPruningArguments | None = None,
        schedule: PruningSchedule | str | None = None,
        calibration_dataset: object = None,
        **options: Any,
    ) -> SpectralPruningCallback:
        """Prunes inside the training of a Trainer instead: puts a `SpectralPruningCallback` on it, and returns that.

        Example:
            ```python
            callback = SpectralPruner.attach(trainer, schedule="cubic", target_reduction=0.3, num_rounds=5)
            trainer.train()
            ```
        """
        callback = SpectralPruningCallback(args, calibration_dataset, schedule=schedule, **options)
        return callback.attach(trainer)

    # ---- the steps of a run

    def prune(self, resume_from_checkpoint: bool | str | Path | None = None) -> PruningOutput:
        """Removes units until the target is met: rounds of calibrate, score, plan, cut.

        Args:
            resume_from_checkpoint: True for the latest checkpoint in `output_dir`, or a checkpoint folder. The pruner must
                hold the original model, as it was when the run began.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: the checkpoint is damaged, or of a run with other options, data, type of weights or code; the target is
                out of reach, an activation is not finite, ... (the message says what to change).
        """
        # What is made in inference mode could never be trained again.
        with ExitStack() as place, torch.inference_mode(mode=False), modes_kept(self.model):
            of_first_process(lambda: self._reserve(place))
            output = self._prune(resume_from_checkpoint)
            self._place = place.pop_all()  # until it is saved
        return output

    train = prune  # by Trainer's name

    def take_from(self, other: SpectralPruner) -> None:
        """Takes what a run to a smaller target has found out of the dense model, and cuts within its plan."""
        assert other.output is not None
        self.known = Known(other.found, other.dense, other.output.plan)

    def _reserve(self, place: ExitStack) -> None:
        if self.args.output_dir is not None:
            place.enter_context(reserved(self.args.output_dir))
            check_output(self.model, self.args, self.base_model)
            self._replaced = names_in(self.args.output_dir, kept=[recovery_arguments(self.args)[1]["output_dir"]])

    def _prune(self, resume_from_checkpoint: bool | str | Path | None) -> PruningOutput:
        args = self.args
        options = deciding_options(args, self.model, self.criterion, self.calibration)
        saved = checkpoint.asked_for(resume_from_checkpoint, args.output_dir, options) if resume_from_checkpoint else None
        basis = basis_of(options, self.model) if args.scores or args.save_scores else {}
        if args.scores is not None:
            self.known = replace(self.known, shared=SharedScores.load(args.scores).check(basis, args.scores))
        set_seed(args.seed)
        self.dense = self.known.dense or self._measure_dense()
        check_stop_metric(args, self.dense.metrics)
        check_judged(args, self.dense.metrics)
        check_loss(self.model, self.dense.metrics, self.calibration)
        run = self._start()
        self.state.options = options
        if saved is not None:
            self._resume(run, saved)
        evidence: Evidence | None = None
        shown: Diagnostics = {}  # the report has the dense model's
        self._event("on_train_begin")
        for round_index in range(self.state.global_step + 1, args.num_rounds + 1):
            self._event("on_step_begin")
            if evidence is None:
                evidence = self._calibrate()
            diagnostics = None if run.scores else shown
            if (shared := self.known.shared) is None:
                self.scores = self._score(evidence, diagnostics)
            else:
                self.scores, run.damage = shared.scores, shared.damage
            plan = self._plan(run, round_index, evidence)
            if args.num_rounds == 1:
                self._keep_found(shared or SharedScores(self.scores, run.damage, basis))
            if self._must_stop(run, plan, round_index):
                break
            with self.costs.of("surgery"):
                # Moments are large: they are dropped as soon as no round reads them any more.
                reused = round_index % args.recalibrate_every != 0 and round_index < args.num_rounds
                evidence = rounds.cut(self.model, args, plan, evidence, reused=reused)
                if self.calibration is not None:
                    recalibrate_norms(self.model, self.calibration)
            run.add(plan, summarise(self.scores, plan, diagnostics))
            self._end_round(run, round_index)
            if self.control.should_training_stop:
                break
        evidence = None
        self._event("on_train_end")
        self._settle()
        if args.recovery != "none":
            self.recover()
        return self._finish(run, shown if run.scores else {})

    def recover(self) -> RecoveryOutput:
        """Fine-tunes the model as it stands by `recovery`, `recovery_args` and `training_args`; `prune()` ends with it.

        With `recovery="none"` all weights are trained. The result is kept only if it is no worse on the evaluation data.

        Raises:
            ValueError: there is nothing to train on, or see `recovery.recover`.
        """
        recovery_args, training = recovery_arguments(self.args)
        if self.train_dataset is None:
            raise ValueError("`recover()` has nothing to train on. Pass `train_dataset`.")
        with self.costs.of("recovery"):
            self.recovered = recover(
                self.model,
                recovery_args,
                TrainingArguments(**training),
                self.train_dataset,
                self.eval_data,
                self.processing_class,
                self.data_collator,
                self.teacher,
                self.compute_metrics,
                [ForwardingCallback(self.own_callbacks)],
                compute_loss_func=self.compute_loss_func,
                preprocess_logits_for_metrics=self.preprocess_logits_for_metrics,
                peft_config=self.peft_config,
            )
        self.state.log_history += self.recovered.log_history
        with suppress(OSError):  # the Trainer makes its folder even where it writes nothing
            Path(training["output_dir"]).rmdir()
        return self.recovered

    def score(self) -> Scores:
        """Scores every unit of the model as it stands: {group key: (n_units,)}, higher = keep."""
        return self._score(self._calibrate())

    def plan(self) -> PruningPlan:
        """The plan that a one-round `prune()` would carry out, without cutting anything."""
        run = self._start()
        evidence = self._calibrate()
        self.scores = self._score(evidence)
        return self._plan(run, self.args.num_rounds, evidence)

    # ---- steps

    def _measure_dense(self) -> ModelFigures:
        macs = layer_macs(self.model, example_image(self.model, self.calibration)) if is_vision(self.model) else {}
        return replace(self._measure("before"), num_bytes=num_bytes(self.model), macs=macs)

    def _measure(self, side: str) -> ModelFigures:
        """Held-out figures of the model as it stands, what it says itself, and its figures on the tasks of lm_eval."""
        metrics = self.evaluate(metric_key_prefix=side) if self.eval_data is not None else {}
        samples = samples_if_any(self.model, self.eval_data, self.processing_class)
        with self.costs.of("lm_eval") if self.args.lm_eval else nullcontext():
            tasks = of_first_process(lambda: figures_if_asked(self.model, self.processing_class, self.args, side))
        return ModelFigures(metrics, samples, tasks)

    def _keep_found(self, found: SharedScores) -> None:
        """Keeps scores and allocation curves of the dense model for runs to other targets."""
        if (file := self.args.save_scores) is not None:
            of_first_process(lambda: found.save(file))
        self.found = found

    def _start(self) -> Run:
        self.args, notes = with_timed_target(self.model, self.args)
        run = rounds.start(self.model, self.args, calibration=self.calibration)
        run.notes += notes
        if (within := self.known.within) is not None:
            run.most = {key: len(kept) for key, kept in within.kept.items()}
        run.notes += norm_notes(self.model, self.calibration)
        self.state.global_step = 0
        return run

    def _resume(self, run: Run, saved: checkpoint.Checkpoint) -> None:
        checkpoint.resume(self.model, self.args, run, saved, repaired=self._changes_weights())
        self.state.global_step, self.state.log_history = saved.state.global_step, saved.state.log_history
        logger.info(f"Resumed after round {saved.state.global_step} from {saved.folder}.")

    def _changes_weights(self) -> bool:
        """Whether a cut does more than remove: the plan alone does not say the weights then."""
        return self.args.compensation != "none" or has_batch_norms(self.model)

    def _calibrate(self) -> Evidence:
        with self.costs.of("calibration"):
            scored = self.known.shared is not None
            return calibrate(self.model, self.args, self.criterion, self.calibration, scored=scored)

    def _score(self, evidence: Evidence, diagnostics: Diagnostics | None = None) -> Scores:
        with self.costs.of("scoring"):
            return rounds.score(self.model, self.args, self.criterion, evidence, diagnostics)

    def _plan(self, run: Run, round_index: int, evidence: Evidence) -> PruningPlan:
        share = Fraction(round_index, self.args.num_rounds)
        with self.costs.of("allocation"):
            return rounds.decide(self.model, self.args, run, self.scores, share, self.calibration, evidence)

    def _must_stop(self, run: Run, plan: PruningPlan, round_index: int) -> bool:
        """Whether the round would worsen `stop_metric` too much: measured by masking, so that nothing must be undone."""
        args = self.args
        if args.stop_metric is None:
            return False
        with masked(self.model, plan.kept_indices()):
            note = stop_note(args, round_index, self.dense.metrics, self.evaluate())
        if note is None:
            return False
        kept = run.plan or rounds.choose(self.model, args, run, self.scores, 0)
        run.plan = replace(kept, notes=(*kept.notes, note))
        return True

    def _end_round(self, run: Run, round_index: int) -> None:
        assert run.plan is not None and run.final_sizes is not None
        self.state.global_step = round_index
        self.state.epoch = round_index / self.args.num_rounds
        self._event("on_step_end")
        if self.control.should_log:
            now = num_parameters(self.model)
            self.log({"parameters": now, "reduction": 1 - now / run.parameters_before})
        if self.control.should_evaluate and self.eval_data is not None:
            self._note_best(self.evaluate())
        # After the last round, too: recovery, evaluation and saving may fail.
        due = round_index % self.args.recalibrate_every == 0 or round_index == self.args.num_rounds
        if self.control.should_save and due:
            repaired = self.model if self._changes_weights() else None
            folder, plan, sizes = str(self.args.output_dir), run.plan, run.final_sizes
            of_first_process(lambda: checkpoint.save(folder, plan, sizes, self.state, run.scores, repaired))
            name_best_checkpoint(self.state, folder)
            self._event("on_save")

    def _settle(self) -> None:
        if self.args.stock_class == "mistral":
            self.model = as_mistral(self.model)
        self.model = settle_class(self.model)
        self.callback_handler.model = self.model

    def _finish(self, run: Run, diagnostics: Diagnostics) -> PruningOutput:
        assert run.plan is not None
        after = self._measure("after")
        happened = circumstances(self.costs, self.base_model)
        report = pruning_report(
            self.model, self.args, run, self.dense, after, diagnostics, self.recovered, self.calibration, self.eval_data, happened
        )
        for note in run.plan.notes:
            logger.warning(note)
        metrics = {name: getattr(report, name) for name in ("parameters_before", "parameters_after", "reduction")}
        self.output = PruningOutput(network_of(self.model), run.plan, metrics, report, run.scores)
        return self.output

    def _data(self, source: object, name: str) -> CalibrationData | None:
        if source is None:
            return None
        return read_labelled(source, self.processing_class, self.model, self.args, name, self.data_collator)
