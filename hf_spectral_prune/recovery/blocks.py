"""Recovery block by block: each layer is trained by itself to meet the dense residual stream, fed by the recovered layers below.

No backward pass goes through more than one layer, so that it takes the memory of one, and no labels are read. Published as local
reconstruction in arXiv:2510.14444.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import PreTrainedModel, Trainer, TrainingArguments, get_scheduler

from ..models.families import layers_of
from ..models.losses import Batch, forward_base, moved_to
from ..models.streams import Reached
from ..models.suffix import starting_at
from ..utils.progress import stage
from ..utils.types import Options
from .judging import MeasuredTrainer

# What every layer reads of every batch, (rows, T, hidden size); the first one's is made by the model itself.
Stream = list[Tensor | None]


def train_blocks(
    model: PreTrainedModel, teacher: PreTrainedModel, training_args: TrainingArguments, options: Options
) -> list[dict[str, float]]:
    """Trains the layers of a pruned model from the first to the last, each toward the output of the dense model's layer.

    Optimizer, learning rate, schedule, epochs (or steps), batch size, clipping and seed are those of the `TrainingArguments`, for
    each layer anew. The loss is the mean square of what the layer's output lacks of the dense stream, over all positions that are
    no padding and as a share of what it lacks before the training. A layer that it makes worse on the held-out rows is put back.

    Memory: the gradients and the optimizer's state of one layer, and three streams (rows, T, hidden size) of all rows.

    Args:
        options: of a Trainer: `train_dataset`, `eval_dataset`, `data_collator`, ...

    Returns:
        For each layer the steps so far, and the held-out error before and after, as a share of the dense stream's mean square.
    """
    trainer = MeasuredTrainer(model=model, args=training_args, **options)
    train = _batches(trainer, options["train_dataset"], training_args.train_batch_size, shuffle=True)
    held_out = _batches(trainer, options["eval_dataset"], training_args.eval_batch_size)
    every = [*train, *held_out]
    own_stream: Stream = [None] * len(every)
    dense_stream: Stream = [None] * len(every)
    model.requires_grad_(False)
    model.eval()
    teacher.eval()
    history: list[dict[str, float]] = []
    steps = 0
    for layer in stage("Recovering blocks", range(len(layers_of(model))), show=not training_args.disable_tqdm):
        dense_stream = _taken_through(teacher, layer, dense_stream, every)
        goals = [goal for goal in dense_stream if goal is not None]
        before = _error(model, layer, own_stream[len(train) :], held_out, goals[len(train) :])
        kept = {name: value.clone() for name, value in layers_of(model)[layer].state_dict().items()}
        steps += _train(model, layer, own_stream[: len(train)], train, goals[: len(train)], training_args)
        after = _error(model, layer, own_stream[len(train) :], held_out, goals[len(train) :])
        if not after < before:  # a figure that is no number counts as worse
            layers_of(model)[layer].load_state_dict(kept)
        after = after if after < before else before
        history.append({"step": steps, "layer": layer, "block_error_before": before, "block_error_after": after})
        own_stream = _taken_through(model, layer, own_stream, every)
    return history


def stream_error(model: PreTrainedModel, teacher: PreTrainedModel, training_args: TrainingArguments, options: Options) -> float:
    """Mean square of what the last layer's output lacks of the dense model's on the held-out rows, as a share of the latter's."""
    trainer = MeasuredTrainer(model=model, args=training_args, **options)
    batches = _batches(trainer, options["eval_dataset"], training_args.eval_batch_size)
    own: Stream = [None] * len(batches)
    dense: Stream = [None] * len(batches)
    last = len(layers_of(model)) - 1
    for layer in range(last + 1):
        dense = _taken_through(teacher, layer, dense, batches)
        if layer < last:
            own = _taken_through(model, layer, own, batches)
    return _error(model, last, own, batches, [goal for goal in dense if goal is not None])


def _batches(trainer: MeasuredTrainer, rows: Dataset | IterableDataset, size: int, shuffle: bool = False) -> list[Batch]:
    """Rows as the Trainer would collate them; of a stream, those of `max_steps` batches."""
    sized = hasattr(rows, "__len__")
    loader = DataLoader(
        rows,
        batch_size=size,
        shuffle=shuffle and sized,
        generator=torch.Generator().manual_seed(trainer.args.seed),
        collate_fn=trainer._get_collator_with_removed_columns(trainer.data_collator, description="training"),
    )
    return list(loader if sized else islice(loader, max(1, trainer.args.max_steps)))


def _through(model: PreTrainedModel, layer: int, given: Tensor | None, batch: Batch) -> Tensor:
    """A layer's output (rows, T, hidden size) for what it reads; nothing behind it is computed."""
    found: list[Tensor] = []

    def sink(_module: nn.Module, _args: object, output: Tensor) -> None:
        found.append(output)
        raise Reached

    given = None if given is None else given.to(model.device, model.dtype)
    handle = layers_of(model)[layer].register_forward_hook(sink)
    try:
        with suppress(Reached), starting_at(model, layer, given):
            forward_base(model, moved_to(model, batch))
    finally:
        handle.remove()
    return found[0]


@torch.no_grad()
def _taken_through(model: PreTrainedModel, layer: int, stream: Stream, batches: Sequence[Batch]) -> Stream:
    return [_through(model, layer, given, batch).cpu() for given, batch in zip(stream, batches, strict=True)]


def _square(value: Tensor, goal: Tensor | None, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum over real positions of `|value - goal|^2` (of `|value|^2` without a goal), and the number of entries."""
    away = value.float() if goal is None else value.float() - goal.to(value.device).float()
    mask = batch.get("attention_mask")
    real = torch.ones(away.shape[:2], device=away.device) if mask is None else mask.flatten(0, -2).to(away)
    return (away.square().sum(dim=-1) * real).sum(), real.sum() * away.shape[-1]


@torch.no_grad()
def _error(model: PreTrainedModel, layer: int, given: Stream, batches: Sequence[Batch], goals: Sequence[Tensor]) -> float:
    away = whole = 0.0
    for one, batch, goal in zip(given, batches, goals, strict=True):
        away += float(_square(_through(model, layer, one, batch), goal, batch)[0])
        whole += float(_square(goal, None, batch)[0])
    return away / max(whole, 1e-30)


def _train(
    model: PreTrainedModel,
    layer: int,
    given: Stream,
    batches: Sequence[Batch],
    goals: Sequence[Tensor],
    training_args: TrainingArguments,
) -> int:
    """Trains one layer, in place, and returns the number of steps."""
    block = layers_of(model)[layer]
    block.requires_grad_(True)
    parameters = list(block.parameters())
    kind, keywords = Trainer.get_optimizer_cls_and_kwargs(training_args, model)
    groups = [
        {"params": [value for value in parameters if value.dim() > 1], "weight_decay": training_args.weight_decay},
        {"params": [value for value in parameters if value.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = kind([group for group in groups if group["params"]], **keywords)
    epochs, limit = training_args.num_train_epochs, training_args.max_steps
    steps = limit if limit > 0 else math.ceil(epochs * len(batches))
    schedule = get_scheduler(
        training_args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=training_args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=dict(training_args.lr_scheduler_kwargs or {}),  # type: ignore[arg-type]
    )
    generator = torch.Generator().manual_seed(training_args.seed)
    order: list[int] = []
    scale: float | None = None
    for _ in range(steps):
        order = order or torch.randperm(len(batches), generator=generator).tolist()
        index = order.pop()
        away, count = _square(_through(model, layer, given[index], batches[index]), goals[index], batches[index])
        loss = away / count.clamp(min=1)
        scale = scale or float(loss.detach()) or 1.0
        (loss / scale).backward()
        if training_args.max_grad_norm:
            nn.utils.clip_grad_norm_(parameters, training_args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    block.requires_grad_(False)
    return steps
