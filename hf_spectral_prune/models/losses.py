"""Batches, their targets, and the one loss that every room measures by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils.generic import find_labels

from ..utils.types import Options
from ..utils.words import listed
from .cria import stock_type
from .packing import Batch, goes_on

# Positions whose log-softmax is taken at once: with a vocabulary of 256k, 128 MiB in float32.
_POSITIONS_AT_ONCE = 128


def moved_to(model: PreTrainedModel, batch: Batch) -> Batch:
    """A batch on the model's device, its images and sounds in the model's dtype: convolutions do not take another."""
    moved: Batch = send_to_device(batch, model.device)
    for name in ("pixel_values", "input_features"):
        if name in moved and moved[name].is_floating_point():
            moved = {**moved, name: moved[name].to(model.dtype)}
    return moved


@torch.inference_mode()
def run_base(model: PreTrainedModel, batch: Batch) -> None:
    """Runs a model on a batch as far as there are signals to read, without gradients."""
    forward_base(model, batch)


def forward_base(model: PreTrainedModel, batch: Batch) -> None:
    """`run_base` with gradients, where they are on."""
    # The language-model head is skipped: no signal lies behind it, and it is a fifth of a small model's work.
    targets = {"labels", *find_labels(type(model))}
    inputs = {name: value for name, value in batch.items() if name not in targets}
    if "pixel_values" in batch:  # the head of a convolutional network reads channels too, and it is small
        model(**inputs)
        return
    if "input_ids" in batch and batch["input_ids"].dim() == 3:  # multiple choice: (B, C, T) -> (B * C, T)
        inputs = {name: value.flatten(0, 1) for name, value in inputs.items()}
    if model.config.is_encoder_decoder:
        inputs = with_decoder_inputs(model, inputs, batch.get("labels"))
    kwargs = {"use_cache": False} if getattr(model.config, "use_cache", None) is not None else {}
    model.base_model(**inputs, **kwargs)


def check_outputs_have_names(model: PreTrainedModel) -> None:
    """Checks that a model gives its outputs by name, as losses and signals are read.

    Raises:
        ValueError: its config asks for tuples.
    """
    if getattr(model.config, "return_dict", True) is False:
        raise ValueError(
            "The model's config has `return_dict` false, so that outputs have no names by which to know them. Set it to true."
        )


def with_decoder_inputs(model: PreTrainedModel, inputs: Batch, labels: Tensor | None = None) -> Batch:
    """Inputs of an encoder-decoder with what its decoder reads: the labels (B, T) one place later, or the text itself."""
    if "decoder_input_ids" in inputs:
        return inputs
    config = model.config
    targets = labels if labels is not None and labels.dim() == 2 else inputs["input_ids"]
    # Not every config class has all of them: those of T5 have no bos token.
    first, bos, pad = (getattr(config, f"{name}_token_id", None) for name in ("decoder_start", "bos", "pad"))
    pad = pad or 0
    start = next((value for value in (first, bos) if value is not None), pad)
    ids = torch.cat([torch.full_like(targets[:, :1], start), targets[:, :-1]], dim=1)
    return inputs | {"decoder_input_ids": ids.masked_fill(ids == -100, pad)}


def decoder_mask(batch: Batch) -> Tensor | None:
    """(B, T) the positions of a decoder behind an encoder that have a target, as `with_decoder_inputs` makes them."""
    labels = batch.get("labels")
    if "decoder_input_ids" in batch:
        return batch.get("decoder_attention_mask")
    return batch.get("attention_mask") if labels is None or labels.dim() != 2 else labels != -100


def predicts_next_token(model: PreTrainedModel) -> bool:
    """Whether the model is a causal language model, whose text holds its own targets."""
    # A BERT-like model with a causal head still looks ahead unless its config makes it a decoder.
    masked = stock_type(model.config.model_type) in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    looks_ahead = masked and not getattr(model.config, "is_decoder", False)
    return isinstance(model, GenerationMixin) and not model.config.is_encoder_decoder and not looks_ahead


def check_targets(model: PreTrainedModel, batch: Batch, otherwise: str = "") -> None:
    """Checks that a batch holds the targets that its model's loss needs.

    Args:
        otherwise: end of the message: what can be done instead.

    Raises:
        ValueError: the model has no task head, or the batch lacks targets (names them).
    """
    if has_targets(model, batch):
        return
    names = find_labels(type(model))
    if not names:
        raise ValueError(f"`{type(model).__name__}` has no task head, so there is no loss. Load it with one{otherwise}.")
    missing = listed(name for name in names if name not in batch)
    raise ValueError(
        f"A loss is needed, but the data has no {missing}, which `{type(model).__name__}` cannot do without. Add them to its "
        f"rows{otherwise}."
    )


def has_targets(model: PreTrainedModel, batch: Batch) -> bool:
    """Whether a batch holds the targets that its model's loss needs."""
    names = find_labels(type(model))
    return predicts_next_token(model) or (bool(names) and all(name in batch for name in names))


def next_token_targets(batch: Batch) -> Tensor:
    """(B, T) what a causal language model must say at every place, given those before it; -100 where nothing counts.

    The `labels`, where there is one per token, else the ids. No padding counts, and no token without one of its own text before
    it: the first of a row, the one behind padding, and the first of each document in a packed row.
    """
    ids = batch["input_ids"]
    labels = batch.get("labels", ids)
    if labels.shape != ids.shape:  # a class of the whole row is the target of another task
        labels = ids
    return labels.masked_fill(~goes_on(batch), -100)


def targets_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """What the loss of a batch is taken over: `next_token_targets`, or the first of the targets that another task takes.

    Raises:
        ValueError: see `check_targets`.
    """
    if predicts_next_token(model):
        return next_token_targets(batch)
    check_targets(model, batch)
    return next(batch[name] for name in find_labels(type(model)) if name in batch)


def num_targets(model: PreTrainedModel, batch: Batch) -> int:
    """How many targets `loss_of` sums over."""
    return _count(targets_of(model, batch))


def _count(targets: Tensor) -> int:
    # -100 is a class that losses leave out; of values to regress it is one like any other.
    return targets.numel() if targets.is_floating_point() else int(targets.ne(-100).sum())


def loss_of(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Loss of one batch, summed over `targets_of` it, in nats for classes and tokens; with its graph.

    Raises:
        ValueError: see `check_targets`.
    """
    return loss_and_outputs(model, batch)[0]


def loss_and_outputs(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Any]:
    """`loss_of` a batch, and what the model gave for it.

    The model is run in its own type: a context of mixed precision around the call changes nothing.
    """
    targets = targets_of(model, batch)
    with torch.autocast(model.device.type, enabled=False):
        if predicts_next_token(model):
            inputs = {name: value for name, value in batch.items() if name not in find_labels(type(model))}
            outputs = model(**inputs, use_cache=False)  # with a cache, transformers would not look for packed documents
            return _next_token_loss(outputs.logits[:, :-1], targets[:, 1:]), outputs
        outputs, count = model(**batch), _count(targets)
    if count == 0:
        # The mean over no target is not a number: such a batch adds nothing, also to gradients.
        return 0 * sum(value.sum() for name, value in outputs.items() if name.endswith("logits")), outputs
    return outputs.loss * count, outputs


def _next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed in float64 over targets (B, T) that are not -100, from logits (B, T, V), a few positions at a time."""
    parts = zip(logits.flatten(0, 1).split(_POSITIONS_AT_ONCE), targets.flatten().split(_POSITIONS_AT_ONCE), strict=True)
    losses = (nn.functional.cross_entropy(part.float(), goal, reduction="none").double().sum() for part, goal in parts)
    return sum(losses, logits.new_zeros((), dtype=torch.float64))


def num_rows(batch: Batch) -> int:
    """Sequences or images in a batch."""
    return next(iter(batch.values())).shape[0]


def num_positions(batch: Batch) -> int:
    """Real tokens in a batch of text; of images, their number."""
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


def _differentiable_image(_module: nn.Module, args: tuple[object, ...], kwargs: Options) -> tuple[tuple[object, ...], Options]:
    return args, kwargs | {"pixel_values": kwargs["pixel_values"].detach().requires_grad_()}


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """No weight gets a gradient, but activations do: the embedding's output, or the image, is made to require one."""
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in required:
        parameter.requires_grad_(False)
    if getattr(model, "main_input_name", None) == "pixel_values":
        handles = [model.register_forward_pre_hook(_differentiable_image, with_kwargs=True)]
    else:
        sides = (model.get_encoder(), model.get_decoder()) if model.config.is_encoder_decoder else (model,)
        embeddings = {side.get_input_embeddings() for side in sides}
        handles = [module.register_forward_hook(lambda _module, _args, output: output.requires_grad_()) for module in embeddings]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, value in required:
            parameter.requires_grad_(value)
