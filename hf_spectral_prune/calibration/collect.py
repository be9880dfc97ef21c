"""Runs calibration batches through a model and fills the moments of its unit groups, by hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import GenerationMixin, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils.generic import find_labels

from ..architectures import UnitGroup, consumers, family_of
from .moments import GroupMoments, Moments
from .signals import ALL, Reader, Side, Spatial, num_signal_channels, readers

Batch = dict[str, Tensor]
SIDES: tuple[Side, ...] = ("before", "after")


def moved_to(model: PreTrainedModel, batch: Batch) -> Batch:
    """A batch on the model's device, its pictures in the model's dtype: convolutions do not take another."""
    moved: Batch = send_to_device(batch, model.device)
    if "pixel_values" in moved and moved["pixel_values"].is_floating_point():
        moved = {**moved, "pixel_values": moved["pixel_values"].to(model.dtype)}
    return moved


class _Pass:
    """What the hooks of one pass share: the padding mask of the batch that is running, and scratch memory."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self.workspaces: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def start(self, batch: Batch) -> None:
        """Notes the mask of the batch that runs next; images have none."""
        mask = batch.get("attention_mask")
        # The base model sees the choices of a multiple-choice batch (B, C, T) as rows.
        self.mask = None if mask is None or bool(mask.all()) else mask.bool().flatten(0, -2)

    def real(self, value: Tensor) -> Tensor:
        """The real positions (N, n) of a signal (B, T, n)."""
        value = value.detach()
        return value.flatten(0, -2) if self.mask is None else value[self.mask.to(value.device)]

    def real_to(self, sink: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        """A sink that passes the real positions on."""
        return lambda value: sink(self.real(value))

    def adder(self, moments: Moments) -> Callable[[Tensor], None]:
        """A sink that adds the real positions of a signal (B, T, n) to `moments`."""

        def add(value: Tensor) -> None:
            rows = self.real(value)
            dtype = torch.float64 if rows.dtype == torch.float64 else torch.float32
            key = (rows.shape[1], dtype, rows.device)
            if key not in self.workspaces:
                self.workspaces[key] = torch.zeros(rows.shape[1], rows.shape[1], dtype=dtype, device=rows.device)
            moments.update(rows, self.workspaces[key])

        return add


def _check_finite(moments: dict[str, GroupMoments]) -> None:
    for key, sides in moments.items():
        for name, side in sides._asdict().items():
            # One non-finite activation makes its channel's sum non-finite, so the sums alone tell.
            if side is not None and not math.isfinite(float(side.sum.sum())):
                raise ValueError(
                    f"Non-finite activations in `{key}` ({name} the transformation). Load the model in a wider `dtype` "
                    "(float32 or bfloat16) or check its weights."
                )


def collect_moments(
    model: PreTrainedModel,
    groups: Sequence[UnitGroup],
    batches: Iterable[Batch],
    *,
    sides: Collection[Side] = SIDES,
    signals: str = "activations",
    spatial: Spatial = ALL,
    progress: bool = True,
) -> dict[str, GroupMoments]:
    """Fills the moments of every group in one pass over the batches.

    Args:
        batches: dicts of tensors with `input_ids` (B, T) and `attention_mask` (B, T), or (B, C, T) for multiple choice,
            or with `pixel_values` (B, C, H, W); masked positions never count.
        sides: both, or `("after",)` for those who do not read the input side: half the memory and time.
        signals: "activations" reads the hidden states; "loss" multiplies every output-side signal by its loss gradient,
            `m_i(t) = h_i(t) * dL/dh_i(t)` (one backward pass; the batch's `labels` make the loss, or for a causal language
            model without them the next token).
        spatial: which positions of a channel's map count.

    Raises:
        ValueError: an activation is not finite (names the group), there was no unpadded position, or a loss is needed and
            `labels` are missing.
    """
    moments = {}
    shared = _Pass()
    was_training = model.training
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, was_training)
        for group in groups:
            device = consumers(model, group)[0].module.weight.device
            totals = {side: Moments.zeros(num_signal_channels(model, group, side), device) for side in sides}
            moments[group.key] = GroupMoments(totals.get("before"), totals["after"])
            for side, total in totals.items():
                add = shared.adder(total)
                for reader in readers(model, group, side, spatial):
                    sink = _as_rows(reader, add)
                    if side == "after" and signals == "loss":
                        sink = _times_gradient(sink)
                    stack.enter_context(reader.reading(sink))
        _run_batches(model, batches, shared, signals, progress)
    for total in (side for found in moments.values() for side in found if side is not None):
        total.symmetrise()
        total.all_reduce()
    _check_finite(moments)
    if any(found.after.count == 0 for found in moments.values()):
        raise ValueError("The calibration set has no unpadded position. Give text that is not empty.")
    return moments


def stream_signals(
    model: PreTrainedModel,
    groups: Sequence[UnitGroup],
    batches: Iterable[Batch],
    sinks: Mapping[str, Callable[[Tensor], None]],
    *,
    signals: str = "activations",
    spatial: Spatial = ALL,
    progress: bool = True,
) -> None:
    """Passes the real positions (N, n) of every group's output-side signal to the group's sink ({group key: sink}).

    A sink is called once a batch (and consumer) with the activations, or with `signals="loss"` once a sequence with
    `h_i(t) * dL/dh_i(t)` of the sequence's summed loss L.
    """
    shared = _Pass()
    was_training = model.training
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, was_training)
        for group in groups:
            for reader in readers(model, group, "after", spatial):
                sink = _as_rows(reader, shared.real_to(sinks[group.key]))
                stack.enter_context(reader.reading(sink if signals == "activations" else _times_gradient(sink)))
        _run_batches(model, batches, shared, signals, progress)


def _run_batches(model: PreTrainedModel, batches: Iterable[Batch], shared: _Pass, signals: str, progress: bool) -> None:
    with ExitStack() as stack:
        run = _forward
        if signals == "loss":
            check_gradients(model)
            run, batches = _forward_backward, single_sequences(batches)
            stack.enter_context(frozen(model))
        for batch in tqdm(batches, desc="Calibrating", disable=not progress, leave=False):
            shared.start(batch)
            run(model, moved_to(model, batch))


def _as_rows(reader: Reader, sink: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    return lambda value: sink(reader.rows(value.detach()))


def _times_gradient(add: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    def sink(value: Tensor) -> None:
        if value.requires_grad:
            # Detached before the hook closes over it: a hook that holds its own tensor is a cycle that only the collector frees.
            activation = value.detach()
            value.register_hook(lambda gradient: add(activation * gradient))

    return sink


@torch.inference_mode()
def _forward(model: PreTrainedModel, batch: Batch) -> None:
    # The language-model head is skipped: no signal lies behind it, and it is a fifth of a small model's work.
    targets = {"labels", *find_labels(type(model))}
    inputs = {name: value for name, value in batch.items() if name not in targets}
    if "pixel_values" in batch:  # the head of a convolutional network reads channels too, and it is small
        model(**inputs)
        return
    if batch["input_ids"].dim() == 3:  # multiple choice: (B, C, T) -> (B * C, T)
        inputs = {name: value.flatten(0, 1) for name, value in inputs.items()}
    kwargs = {"use_cache": False} if getattr(model.config, "use_cache", None) is not None else {}
    model.base_model(**inputs, **kwargs)


def predicts_next_token(model: PreTrainedModel) -> bool:
    """Whether the model is a causal language model, whose text holds its own targets."""
    # A BERT-like model with a causal head still looks ahead unless its config makes it a decoder.
    stock_type = family_of(model.config).model_types[0]
    looks_ahead = stock_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(model.config, "is_decoder", False)
    return isinstance(model, GenerationMixin) and not looks_ahead


def check_targets(model: PreTrainedModel, batch: Batch) -> None:
    """Checks that a batch holds the targets that its model's loss needs.

    Raises:
        ValueError: the model has no task head, or the batch lacks targets (names them).
    """
    if has_targets(model, batch):
        return
    names = find_labels(type(model))
    hint = 'use `allocation="scores"` and a criterion with `signals="activations"`'
    if not names:
        raise ValueError(f"`{type(model).__name__}` has no task head, so there is no loss. Load it with one, or {hint}.")
    missing = ", ".join(f"`{name}`" for name in names if name not in batch)
    raise ValueError(
        f"A loss is needed, but the calibration batches have no {missing}, which `{type(model).__name__}` cannot do without. "
        f"Add them to the calibration data, or {hint}."
    )


def has_targets(model: PreTrainedModel, batch: Batch) -> bool:
    """Whether a batch holds the targets that its model's loss needs."""
    names = find_labels(type(model))
    return predicts_next_token(model) or (bool(names) and all(name in batch for name in names))


def loss_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Sum over targets of the loss of one batch: its `labels` where given, else the next token (padding ignored).

    Raises:
        ValueError: see `check_targets`.
    """
    check_targets(model, batch)
    given = [name for name in find_labels(type(model)) if name in batch]
    if given:
        output, count = model(**batch), batch[given[0]].ne(-100).sum()
        # The mean over no target is not a number: such a batch (a truncated prompt, say) adds nothing, also to gradients.
        return output.loss * count if count else 0 * sum(value.sum() for name, value in output.items() if name.endswith("logits"))
    logits = model(**batch, use_cache=False).logits[:, :-1].float()
    targets = batch["input_ids"][:, 1:]
    if "attention_mask" in batch:
        both_real = batch["attention_mask"][:, 1:].bool() & batch["attention_mask"][:, :-1].bool()
        targets = targets.masked_fill(~both_real, -100)
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")


def _forward_backward(model: PreTrainedModel, batch: Batch) -> None:
    with torch.enable_grad():
        loss_of(model, batch).backward()


def sequence_losses(
    model: PreTrainedModel, batches: Iterable[Batch], *, limit: int | None = None, progress: bool = True
) -> Iterator[tuple[Tensor, int]]:
    """Summed loss of one sequence at a time, with its graph, and the sequence's number of real positions.

    Args:
        limit: number of sequences after which to stop.
    """
    was_training = model.training
    model.eval()
    try:
        sequences = islice(single_sequences(batches), limit)
        for batch in tqdm(sequences, desc="Differentiating", disable=not progress, leave=False):
            with torch.enable_grad():
                loss = loss_of(model, moved_to(model, batch))
            yield loss, num_positions(batch)
    finally:
        model.train(was_training)


def num_rows(batch: Batch) -> int:
    """Sequences or pictures in a batch."""
    return next(iter(batch.values())).shape[0]


def num_positions(batch: Batch) -> int:
    """Real tokens in a batch of text; of pictures, their number."""
    if "input_ids" not in batch:
        return num_rows(batch)
    return int(batch.get("attention_mask", torch.ones_like(batch["input_ids"])).sum())


def check_gradients(model: PreTrainedModel, otherwise: str = ", or choose a criterion without gradients (e.g. `energy`)") -> None:
    """Checks that a loss of the model can be differentiated.

    Args:
        otherwise: end of the message: what can be done instead.

    Raises:
        ValueError: inference mode is on or made the weights, or the weights are quantised (names the first).
    """
    if torch.is_inference_mode_enabled():
        raise ValueError(f"Loss gradients are needed, but `torch.inference_mode` is on. Leave it for this call{otherwise}.")
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise ValueError(
                f"Loss gradients are needed, but `{name}` was made under `torch.inference_mode`. Load the model outside of "
                f"it{otherwise}."
            )
        if not parameter.is_floating_point():
            raise ValueError(
                f"Loss gradients are needed, but `{name}` is quantised ({parameter.dtype}). Load the model without "
                f"quantisation{otherwise}."
            )


def single_sequences(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches of one row each: a backward pass keeps all activations of its batch, the largest thing in memory."""
    for batch in batches:
        for index in range(num_rows(batch)):
            yield {name: value[index : index + 1] for name, value in batch.items()}


def _differentiable_picture(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, kwargs | {"pixel_values": kwargs["pixel_values"].detach().requires_grad_()}


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """No weight gets a gradient, but activations do: the embedding's output, or the picture, is made to require one."""
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in required:
        parameter.requires_grad_(False)
    if getattr(model, "main_input_name", None) == "pixel_values":
        handle: Any = model.register_forward_pre_hook(_differentiable_picture, with_kwargs=True)
    else:
        handle = model.get_input_embeddings().register_forward_hook(lambda _module, _args, output: output.requires_grad_())
    try:
        yield
    finally:
        handle.remove()
        for parameter, value in required:
            parameter.requires_grad_(value)
