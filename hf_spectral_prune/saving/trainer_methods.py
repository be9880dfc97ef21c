"""What users of Trainer call on a pruner: the same names, keywords and returns, and where there is one, Trainer's own code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, ModelCard
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback
from transformers.trainer_pt_utils import log_metrics, metrics_format, save_metrics, save_state
from transformers.trainer_utils import PredictionOutput

from ..data.rows import default_collator, training_rows
from ..data.texts import CalibrationData
from ..evaluation.figures import held_out_figures
from ..models.distributed import is_first_process, of_first_process
from ..publishing import hub, write_card
from ..publishing.saved_folder import README
from ..recovery.judging import unprepared
from ..utils.plain_options import PrunerOptions
from ..utils.progress import RoundProgress, working
from ..utils.types import Collator, Json, Metrics, Preprocess, ProcessingClass
from ..utils.words import listed
from .checkpoint import RunState
from .folder import save_folder
from .output import PruningOutput, StepCosts

# Callbacks that a handler has of itself; the others are the user's.
_OWN = (DefaultFlowCallback, RoundProgress)


class TrainerMethods:
    """Callbacks, logs, evaluation, predictions, saving, card and push of a pruner. A subclass has a Trainer's attributes."""

    args: PrunerOptions
    model: PreTrainedModel
    processing_class: ProcessingClass | None
    data_collator: Collator | None
    compute_metrics: Metrics | None
    preprocess_logits_for_metrics: Preprocess | None
    costs: StepCosts
    eval_data: CalibrationData | None
    output: PruningOutput | None
    base_model: str | None
    saved_to: Path | None
    _data: Callable[[object, str], CalibrationData | None]
    # The place of the result, kept from the start of `prune()` to its saving, and the names there that may go when it comes.
    _place: ExitStack
    _replaced: frozenset[str] | None

    log_metrics = log_metrics
    metrics_format = staticmethod(metrics_format)

    def _begin_callbacks(self, callbacks: Sequence[TrainerCallback | type[TrainerCallback]] | None, max_steps: int) -> None:
        args = self.args
        self.state = RunState(
            max_steps=max_steps,
            logging_steps=args.logging_steps,
            eval_steps=args.eval_steps,
            save_steps=args.save_steps,
            is_local_process_zero=is_first_process(),
            is_world_process_zero=is_first_process(),
        )
        self.control = TrainerControl()
        self._reporting = tuple(get_reporting_integration_callbacks("none" if args.report_to == ["none"] else args.report_to))
        progress = [] if args.disable_tqdm else [RoundProgress]
        self.callback_handler = CallbackHandler(
            [DefaultFlowCallback, *self._reporting, *progress, *(callbacks or [])], self.model, self.processing_class, None, None
        )
        self._event("on_init_end")

    @property
    def own_callbacks(self) -> list[TrainerCallback]:
        """The user's callbacks, without those that print and report."""
        return [callback for callback in self.callback_handler.callbacks if not isinstance(callback, (*_OWN, *self._reporting))]

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Adds a callback (class or instance)."""
        self.callback_handler.add_callback(callback)

    def pop_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> TrainerCallback | None:
        """Removes a callback and returns it."""
        return self.callback_handler.pop_callback(callback)

    def remove_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Removes a callback."""
        self.callback_handler.remove_callback(callback)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds figures to `state.log_history` and hands them to the callbacks."""
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self._event("on_log", logs=dict(logs))

    def _event(self, name: str, **kwargs: object) -> None:
        self.control = getattr(self.callback_handler, name)(self.args, self.state, self.control, **kwargs)

    def _note_best(self, metrics: dict[str, float]) -> None:
        """Keeps the best of `metric_for_best_model` in the state, as Trainer does: early stopping goes by it."""
        name = self.args.metric_for_best_model
        if name is not None and f"eval_{name.removeprefix('eval_')}" not in metrics:
            known = listed(metrics)
            raise ValueError(f"`metric_for_best_model` is `{name}`, but the evaluation gives {known}. Choose one of those.")
        Trainer._determine_best_metric(self, metrics, None)  # type: ignore[arg-type]

    def evaluate(self, eval_dataset: object = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Held-out figures of the model as it stands.

        Loss and perplexity of a causal language model; with `compute_metrics`, or for another task, the loss and its figures (a
        classifier's accuracy by default). Labels of the data that are -100 do not count.

        Raises:
            ValueError: there is nothing to evaluate on, or the data lacks the task's targets.
        """
        data = self.eval_data if eval_dataset is None else self._data(eval_dataset, "eval_dataset")
        if data is None:
            raise ValueError("`evaluate()` has no data. Pass `eval_dataset` to it or to SpectralPruner.")
        with self.costs.of("evaluation"):
            title = f"Evaluating ({metric_key_prefix})" if metric_key_prefix in ("before", "after") else "Evaluating"
            figures = held_out_figures(
                self.model,
                data,
                self.compute_metrics,
                not self.args.disable_tqdm,
                title,
                spread=True,
                preprocess_logits_for_metrics=self.preprocess_logits_for_metrics,
            )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(metrics)
        if metric_key_prefix not in ("before", "after"):  # Trainer knows no such evaluations, nor do callbacks
            self._event("on_evaluate", metrics=metrics)
        return metrics

    def is_world_process_zero(self) -> bool:
        """Whether this process is the one that writes."""
        return is_first_process()

    def predict(
        self, test_dataset: object, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Predictions of the model as it stands, by Trainer's own `predict`: `predictions`, `label_ids`, `metrics`."""
        rows = training_rows(self._data(test_dataset, "eval_dataset"))
        arguments = TrainingArguments(
            output_dir=str(self.args.output_dir or "cria"),
            per_device_eval_batch_size=self.args.calibration_batch_size,
            use_cpu=self.model.device.type == "cpu",
            report_to="none",
            disable_tqdm=self.args.disable_tqdm,
        )
        with unprepared(self.model):
            trainer = Trainer(
                self.model,
                arguments,
                default_collator(self.model, self.processing_class),
                processing_class=self.processing_class,
                compute_metrics=self.compute_metrics,
                preprocess_logits_for_metrics=self.preprocess_logits_for_metrics,
            )
            return trainer.predict(rows, ignore_keys, metric_key_prefix)

    def save_model(self, output_dir: str | None = None) -> None:
        """Saves weights, config, tokenizer, plan, report, state and card, then reloads the folder in a fresh process.

        The folder appears whole or not at all. With `push_to_hub` it is then pushed.

        Raises:
            ValueError: no folder named, or it is not empty and `overwrite_output_dir` is off.
            RuntimeError: the reloaded model differs (says where).
            OSError: the push failed; the folder stays.
        """
        self._save(output_dir)
        if self.args.push_to_hub:
            try:
                self.push_to_hub()
            except (OSError, ValueError) as error:
                raise OSError(f"{error} The model itself is saved in `{self.saved_to}`.") from None

    def _save(self, output_dir: str | None = None) -> None:
        folder = output_dir or self.args.output_dir
        if folder is None:
            raise ValueError("There is no folder to save to. Set `output_dir`.")
        with self._place, working("Saving and reloading", show=not self.args.disable_tqdm):
            of_first_process(
                lambda: save_folder(
                    folder,
                    self.model,
                    self.processing_class,
                    state=self.state,
                    output=self.output,
                    overwrite=self.args.overwrite_output_dir,
                    self_check=self.args.self_check,
                    card_name=self.args.hub_model_id,
                    source=self.base_model,
                    replaced=self._replaced if folder == self.args.output_dir else None,
                )
            )
        self.saved_to, self._replaced = Path(folder), None

    def _check_folder(self) -> None:
        if self.args.output_dir is None or not Path(self.args.output_dir).is_dir():
            raise ValueError("There is no folder to write to yet. Set `output_dir`, and call `save_model()` first.")

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Writes `{split}_results.json` (and `all_results.json`) into `output_dir`, as Trainer does."""
        self._check_folder()
        save_metrics(self, split, metrics, combined)

    def save_state(self) -> None:
        """Writes `trainer_state.json` into `output_dir`, as Trainer does."""
        self._check_folder()
        save_state(self)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
        *,
        base_model: str | None = None,
    ) -> Path:
        """Writes the card (README.md) of the saved folder anew, or brings the one there up to date; `save_model()` does it too.

        Args:
            language, license, tags, dataset_tags: go into the card's metadata, beside what the run knows.
            model_name: title of a new card.
            finetuned_from, base_model: id on the Hub of the model that was pruned, where it was loaded from elsewhere.
            tasks, dataset, dataset_args: left out: the card has those of the run.

        Returns:
            The file.

        Raises:
            ValueError: nothing was saved yet, or a figure is missing.
        """
        if self.saved_to is None:
            raise ValueError("There is no saved folder to write a card for. Call `save_model()` first.")
        folder, name = self.saved_to, model_name or self.args.hub_model_id
        given = {"language": language, "license": license, "tags": _listed(tags), "datasets": _listed(dataset_tags)}

        def write() -> Path:
            _give(folder / README, {key: value for key, value in given.items() if value})
            return write_card(folder, name, finetuned_from or base_model)

        return of_first_process(write)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        *,
        overwrite: bool = False,
        **kwargs: Any,
    ) -> CommitInfo:
        """Pushes the saved folder to `hub_model_id` in one commit, saving it first if that was not done yet.

        Args:
            blocking: a push waits until it is done.
            token: by default `hub_token`, or that of `hf auth login` or `HF_TOKEN`.
            private: make a new repo private; by default as `hub_private_repo` says.
            overwrite: replace another model that the repo holds.
            kwargs: of `create_model_card`.

        Returns:
            The commit, which is its address too.

        Raises:
            ValueError, OSError: see `publishing.hub.push_folder`; one line, without the token.
        """
        if not blocking:
            raise ValueError("`blocking=False`: a push is checked to its end, so it waits. Leave it out.")
        if revision not in (None, "main"):
            raise ValueError(f"`revision` is `{revision}`: a pruned model is pushed to `main`. Leave it out.")
        if self.saved_to is None:
            self._save()
        assert self.saved_to is not None
        if kwargs:
            self.create_model_card(**kwargs)
        self._event("on_push_begin")
        args, folder = self.args, self.saved_to
        private = args.hub_private_repo or None if private is None else private
        token = token or args.hub_token
        return of_first_process(lambda: hub.push_folder(folder, args.hub_model_id, token, private, commit_message, overwrite))


def _give(card_file: Path, metadata: Json) -> None:
    """Puts what the user says into the metadata of a card; lists are joined."""
    if not metadata or not card_file.is_file():
        return
    card = ModelCard.load(card_file)
    for name, value in metadata.items():
        joined = [*(_listed(getattr(card.data, name, None)) or []), *value] if isinstance(value, list) else value
        setattr(card.data, name, list(dict.fromkeys(joined)) if isinstance(joined, list) else joined)
    card.save(card_file)


def _listed(value: str | list[str] | None) -> list[str] | None:
    return [value] if isinstance(value, str) else value


def name_best_checkpoint(state: TrainerState, output_dir: str) -> None:
    """Names the checkpoint of the best step in the state, where there is one, as Trainer does."""
    folder = Path(output_dir) / f"checkpoint-{state.best_global_step}"
    if folder.is_dir():
        state.best_model_checkpoint = str(folder)
