"""What an exported graph is fed: random batches, which of their axes are free, and PyTorch's answers to them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel

from ...utils.types import Json

if TYPE_CHECKING:
    pass

# (rows, tokens) that the check runs; the export sees the first, so the others prove that both axes are free.
SHAPES = ((2, 8), (1, 1), (3, 13), (1, 24))
# The same with a key/value cache: (rows, new tokens, tokens in the cache). A prompt, and steps that go on from one.
CACHED_SHAPES = ((2, 8, 4), (3, 13, 0), (1, 1, 0), (1, 1, 24), (3, 1, 7))


# What the model reads: tensors, and the cache of what it has read before.
Inputs = Json


def random_batch(model: PreTrainedModel, rows: int, length: int, past: int | None = None) -> Inputs:
    """Random arguments of the model: (rows, length) token ids with one end of a row masked, or (rows, C, H, W) images.

    With `past`, a cache of as many random keys and values, and ids that go on from it; the row's beginning is masked.
    """
    config, generator = model.config, torch.Generator().manual_seed(rows + length)
    if model.main_input_name == "pixel_values":
        # ResNet takes any size and its config has none.
        size = getattr(config, "image_size", None) or 32 * (rows + 1)
        return {"pixel_values": torch.randn(rows, config.num_channels, size, size, generator=generator)}
    choices = (rows, 2) if type(model).__name__.endswith("ForMultipleChoice") else (rows,)
    ids = torch.randint(0, config.vocab_size, (*choices, length), generator=generator)
    if past is not None:
        return _going_on(model, ids, past, generator)
    mask = torch.ones_like(ids)
    mask[0, ..., length - length // 3 :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = (torch.arange(length) >= length // 2).long().expand(ids.shape).contiguous()
    return inputs


def _going_on(model: PreTrainedModel, ids: Tensor, past: int, generator: torch.Generator) -> Inputs:
    rows, length = ids.shape
    mask = torch.ones(rows, past + length, dtype=torch.long)
    mask[0, : (past + length) // 3] = 0
    cache: Any = DynamicCache()
    with torch.inference_mode():
        layers = model(ids[:1, :1], use_cache=True).past_key_values.layers
    for index, layer in enumerate(layers):  # layers may differ in their number of heads
        (_, heads, _, width), (*_, value_width) = layer.keys.shape, layer.values.shape
        sizes = ((rows, heads, past, width), (rows, heads, past, value_width))
        cache.update(*(torch.randn(size, generator=generator) for size in sizes), index)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:].contiguous()
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}


def free_axes(batch: Inputs, config: PreTrainedConfig) -> Inputs:
    """The axes of a batch's tensors that the graph leaves free, as `torch.export` takes them."""
    rows = torch.export.Dim("batch")
    if "pixel_values" in batch:
        sizes = {} if getattr(config, "image_size", None) else {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
        return {"pixel_values": {0: rows} | sizes}
    cached = "past_key_values" in batch
    # Models with a cache turn their keys by position, which has no end.
    sequence = torch.export.Dim("sequence", max=None if cached else _most_tokens(config))
    axes: Inputs = {name: {0: rows, value.ndim - 1: sequence} for name, value in batch.items() if isinstance(value, Tensor)}
    if cached:
        axes["attention_mask"] = {0: rows, 1: torch.export.Dim.AUTO}  # a sum of the others
        axes["past_key_values"] = [{0: rows, 2: torch.export.Dim("past_sequence")}] * len(_tensors(batch["past_key_values"]))
    return axes


def _most_tokens(config: PreTrainedConfig) -> int | None:
    """Tokens for which the model has positions; None for a model without that limit."""
    positions = getattr(config, "max_position_embeddings", None)
    # RoBERTa and its kin count from behind their pad token; any model is exported, so that there may be no family to ask.
    offset = config.pad_token_id + 1 if config.model_type.endswith(("roberta", "camembert")) else 0
    return positions - offset if positions else None


def _tensors(value: object) -> list[Tensor]:
    """The tensors of one argument or output; of a cache, keys and values layer by layer."""
    if isinstance(value, Tensor):
        return [value]
    layers: Any = value.layers if isinstance(value, Cache) else ()
    return [tensor for layer in layers for tensor in (layer.keys, layer.values)]


def name_axes(inputs: list[Any], outputs: list[Any]) -> None:
    """Gives the free axes of a graph without a cache names in place of the tracer's symbols: `batch`, `sequence`, ..."""
    names: dict[str, str] = {}
    for value in inputs:
        last = len(value.shape) - 1
        known = {2: "height", 3: "width"} if value.name == "pixel_values" else {last: "sequence"}
        names |= {str(value.shape[axis]): name for axis, name in ({0: "batch"} | known).items() if _is_free(value.shape[axis])}
    for value in (*inputs, *outputs):
        for axis, size in enumerate(value.shape):
            if _is_free(size):
                value.shape[axis] = names.get(str(size), size)


def _is_free(size: object) -> bool:
    return not isinstance(size, int)


def name_cache(inputs: list[Any], outputs: list[Any]) -> None:
    """Gives a graph with a cache the names that ONNX runtimes know: `past_key_values.0.key`, `present.0.key`, ..."""
    for values, given, name, length in (
        (inputs, 3, "past_key_values", "past_sequence"),
        (outputs, 1, "present", "total_sequence"),
    ):
        for index, value in enumerate(values[given:]):
            value.name = f"{name}.{index // 2}.{('key', 'value')[index % 2]}"
            value.shape[0], value.shape[2] = "batch", length
    for value in (*inputs[:3], outputs[0]):
        value.shape[0], value.shape[1] = "batch", "total_sequence" if value.name == "attention_mask" else "sequence"


def feed(batch: Inputs, names: list[str]) -> Inputs:
    """The batch as a session of onnxruntime takes it."""
    tensors = [tensor for value in batch.values() for tensor in _tensors(value)]
    return {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}


def answers(model: PreTrainedModel, batch: Inputs) -> list[Tensor]:
    """What PyTorch computes from the batch, in the order of the graph's outputs."""
    with torch.inference_mode():
        outputs = model(**copy.deepcopy(batch))  # the model adds to the cache
    return [tensor for value in outputs.to_tuple() for tensor in _tensors(value)]


def seen(value: Tensor, batch: Inputs) -> Tensor:
    """The part of an output that belongs to places which are not masked; what is computed for others means nothing."""
    mask = batch.get("attention_mask")
    if mask is None:
        return value
    if "past_key_values" in batch:
        if value.ndim == 4:  # keys or values (rows, heads, past and new tokens, width)
            return value.transpose(1, 2)[mask.bool()]
        mask = mask[:, -batch["input_ids"].shape[1] :]
    return value[mask.bool()] if value.shape[: mask.ndim] == mask.shape else value
