"""The recovery's judge: held-out figures as they are measured everywhere, and a model left as it was found."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerState, TrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from ..evaluation.figures import held_out_figures
from ..models.modes import modes_kept
from ..utils.files import SMALL_FILES, check_room, room_told
from ..utils.progress import RecoveryProgress
from ..utils.types import Options


class MeasuredTrainer(Trainer):
    """A Trainer whose evaluation is `held_out_figures`: a sum over targets, which no batch size changes.

    Every process measures all of the rows.

    Args:
        measured: the model whose figures are taken, where adapters wrap it; by default the one that is trained.
    """

    def __init__(self, *args: Any, measured: PreTrainedModel | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for own in (DEFAULT_PROGRESS_CALLBACK, PrinterCallback):
            self.remove_callback(own)
        if not self.args.disable_tqdm:
            self.add_callback(RecoveryProgress())
        self.measured: PreTrainedModel = self.model if measured is None else measured  # type: ignore[assignment]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Trainer's, which says nothing of the disk when it is full, and leaves what it has begun."""
        step = self.state.global_step
        place = Path(str(self.args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        what, needed = f"The checkpoint of the recovery's step {step}", self._checkpoint_bytes() + SMALL_FILES
        check_room(what, place, needed)
        try:
            with room_told(what, place, needed):
                super()._save_checkpoint(model, trial)
        except OSError:
            shutil.rmtree(place, ignore_errors=True)
            raise

    def _checkpoint_bytes(self) -> int:
        states = [] if self.args.save_only_model or self.optimizer is None else list(self.optimizer.state.values())
        tensors = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
        # Adapters are saved without the model that they are for.
        assert self.model is not None
        tensors += [value for value in self.model.parameters() if value.requires_grad or self.model is self.measured]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def evaluate(
        self, eval_dataset: object = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Trainer's contract; `ignore_keys` has no meaning here."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        batches = DataLoader(
            rows,  # type: ignore[arg-type]
            batch_size=self.args.per_device_eval_batch_size,
            collate_fn=self._get_collator_with_removed_columns(self.data_collator, description="evaluation"),
        )
        # A collator that draws (masked words) must draw the same each time.
        with _in_own_type(self.measured), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.args.seed)
            figures = held_out_figures(
                self.measured,
                batches,
                self.compute_metrics,
                not self.args.disable_tqdm,
                preprocess_logits_for_metrics=self.preprocess_logits_for_metrics,
            )
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def check_trainable(model: PreTrainedModel, method: str) -> None:
    """Checks that something is left to train where a recovery trains the model's own weights.

    Raises:
        ValueError: all weights are frozen.
    """
    if method in ("full", "distill") and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f'All weights are frozen, so `recovery="{method}"` has nothing to train. Call `model.requires_grad_(True)`, or use '
            '`recovery="lora"`.'
        )


@contextmanager
def _in_own_type(model: nn.Module) -> Iterator[None]:
    """The model's own `forward`, without the mixed precision that accelerate has put around it for the training."""
    own, wrapped = vars(model).get("_original_forward"), vars(model).get("forward")
    if own is not None:
        model.forward = own
    try:
        yield
    finally:
        if own is not None:
            model.forward = wrapped  # type: ignore[assignment]


def judged_by(training_args: TrainingArguments) -> str:
    """Name of the held-out figure that says whether a recovery made it worse."""
    return (training_args.metric_for_best_model or "loss").removeprefix("eval_")


def no_worse(before: float, after: float, training_args: TrainingArguments, name: str) -> bool:
    """Whether a figure has not worsened."""
    higher = training_args.greater_is_better
    if higher is None:
        higher = not name.endswith("loss")
    # Written so that a figure that is not a number counts as worse.
    return bool(after >= before if higher else after <= before)


def held_out_metrics(model: PreTrainedModel, training_args: TrainingArguments, prefix: str, options: Options) -> dict[str, float]:
    """Held-out figures by a Trainer without loggers, which brings the model to its device.

    Raises:
        ValueError: they lack the one that the recovery is judged by.
    """
    quiet = copy.copy(training_args)
    quiet.report_to = []
    quiet.push_to_hub = False
    with unprepared(model):
        metrics = MeasuredTrainer(model=model, args=quiet, **options).evaluate(metric_key_prefix=prefix)
    check_judge(judged_by(training_args), metrics, prefix)
    return metrics


def check_judge(name: str, figures: dict[str, float], prefix: str) -> None:
    """Checks that the held-out figures `<prefix>_*` have the one that a recovery is judged by.

    Raises:
        ValueError: they lack it; names those they have.
    """
    if f"{prefix}_{name}" not in figures:
        known = ", ".join(f"`{key.removeprefix(prefix + '_')}`" for key in figures)
        raise ValueError(
            f"The held-out data gives no `{name}` to judge the recovery by, only {known}. Give rows with labels, or set "
            "`metric_for_best_model` to a name that `compute_metrics` returns."
        )


@contextmanager
def left_as_it_was(model: PreTrainedModel) -> Iterator[None]:
    """Undoes what a Trainer and adapters leave on a model beside its weights."""
    use_cache = getattr(model.config, "use_cache", None)
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        with modes_kept(model):
            yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])
        if use_cache is not None:
            model.config.use_cache = use_cache


@contextmanager
def unprepared(model: PreTrainedModel) -> Iterator[None]:
    """A model for one Trainer to prepare: it comes unmarked, and what accelerate sets on the instance is undone afterwards.

    accelerate marks a model that it has prepared, and does not wrap a marked one again: a model that a Trainer has evaluated
    would then be trained on each process apart. Mixed precision wraps `forward`; the model must compute in its own type.
    """
    names = ("forward", "_original_forward", "_is_accelerate_prepared")
    before = {name: vars(model)[name] for name in names if name in vars(model)}
    vars(model).pop("_is_accelerate_prepared", None)
    try:
        yield
    finally:
        for name in names:
            vars(model).pop(name, None)
        vars(model).update(before)


@contextmanager
def trained_in_float32(model: PreTrainedModel) -> Iterator[bool]:
    """While open, float16 weights are float32, and rounded back afterwards; yields whether there are any.

    Adam's steps and the squares of gradients leave float16's range, and the weights become no numbers.
    """
    halves = [value for value in (*model.parameters(), *model.buffers()) if value.dtype == torch.float16]
    for value in halves:
        value.data = value.data.float()
    try:
        yield bool(halves)
    finally:
        for value in halves:
            value.data = value.data.half()


def checkpoint_to_resume(training_args: TrainingArguments) -> str | None:
    """The Trainer's checkpoint that `resume_from_checkpoint` asks for; None where it asks for the latest and there is none.

    Raises:
        ValueError: the checkpoint is not whole, as a run that was killed while it wrote leaves it.
    """
    wanted = training_args.resume_from_checkpoint
    output_dir = str(training_args.output_dir)
    folder = (get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None) if wanted is True else wanted
    if not folder:
        return None
    check_whole(Path(folder), training_args.save_only_model)
    return str(folder)


def check_whole(folder: Path, only_model: bool = False) -> None:
    """Checks that a Trainer's checkpoint has all that it writes, its state last.

    Args:
        only_model: whether `save_only_model` leaves the optimizer out.

    Raises:
        ValueError: a part is missing or cut short.
    """
    remedy = "It was left half-written: delete it and resume from an earlier one, or begin anew without `resume_from_checkpoint`."
    parts = ["trainer_state.json"] + ([] if only_model else ["optimizer.pt", "scheduler.pt"])
    missing = next((name for name in parts if not (folder / name).is_file()), None)
    if missing is not None:
        raise ValueError(f"The checkpoint `{folder}` of the training has no `{missing}`. {remedy}")
    try:
        TrainerState.load_from_json(str(folder / parts[0]))
        for path in folder.glob("*.safetensors"):
            with safe_open(path, framework="pt"):
                pass
    except (ValueError, TypeError, OSError, SafetensorError) as error:
        raise ValueError(
            f"The checkpoint `{folder}` of the training cannot be read ({' '.join(str(error).split())}). {remedy}"
        ) from None
