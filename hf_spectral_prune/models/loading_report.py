"""Judges what transformers says of a load: weights that it made up, could not use or left in the file are told in one line."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, modeling_gguf_pytorch_utils

from ..utils.types import Json
from ..utils.words import listed
from .cria import AUTO_CLASSES, auto_class_of

# Counters of batches that no evaluation reads; checkpoints from before 2018 lack them.
_HARMLESS = re.compile(r"(^|\.)num_batches_tracked$")
# What quantised layers keep in place of, or beside, their weight.
_QUANTISED = re.compile(r"\.(qweight|qzeros|g_idx|scales|weight_scale|weight_packed|weight_scale_inv|SCB|absmax|quant_map)$")
_SHOWN = 3


@contextmanager
def quiet_report() -> Iterator[None]:
    """While open, transformers' own table of odd weights is not printed: the judgement here says the same in one line."""
    logger = logging.getLogger("transformers.modeling_utils")

    # Not by the logger's level: one that is set makes transformers look for layers that are not split over processes.
    def only_errors(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(only_errors)
    try:
        yield
    finally:
        logger.removeFilter(only_errors)


@contextmanager
def quiet_conversion() -> Iterator[None]:
    """While open, transformers shows no bar of its own for the tensors of a GGUF file, which it draws in a pipe too."""
    drawn = modeling_gguf_pytorch_utils.tqdm
    modeling_gguf_pytorch_utils.tqdm = partial(drawn, disable=True)
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = drawn


def check_loaded(model: PreTrainedModel, info: Json, where: str) -> None:
    """Checks that a model has all of its weights from the checkpoint, and the checkpoint no others.

    Weights that are tied, counters, and the pooler of a model without a task head may be missing. Heads of other tasks may be
    left over where the model has a head of its own (BERT's next-sentence head beside its language model).

    Args:
        info: what `from_pretrained` returns with `output_loading_info=True`.
        where: folder or name of the checkpoint.

    Raises:
        ValueError: one line with the first names, the number of the others, and what to do.
    """
    bare = auto_class_of(type(model)) == "AutoModel"
    mismatched = sorted(info["mismatched_keys"])
    missing = sorted(name for name in info["missing_keys"] if not (_HARMLESS.search(name) or (bare and is_pooler(name))))
    left_over = sorted(info["unexpected_keys"])
    if missing or left_over:
        _check_names(model, missing, left_over, where)
    if mismatched:
        name, stored, expected = mismatched[0]
        more = f", and {len(mismatched) - 1} more differ" if len(mismatched) > 1 else ""
        raise ValueError(
            f"`{name}` in `{where}` has the shape {tuple(stored)}, but {tuple(expected)} by `config.json`{more}. Weights and "
            "config do not belong together: get both from one place."
        )
    for name, value in model.named_parameters():
        if (value.is_floating_point() and value.element_size() < 2) or not value.is_floating_point():
            raise ValueError(
                f"`{name}` in `{where}` is stored as {str(value.dtype).removeprefix('torch.')}: the model is quantised and "
                "cannot be cut. Load the model that it was made from."
            )


def _check_names(model: PreTrainedModel, missing: list[str], left_over: list[str], where: str) -> None:
    cls = type(model).__name__
    if quantised := [name for name in left_over if _QUANTISED.search(name)]:
        raise ValueError(
            f"`{where}` holds quantised weights ({named(quantised)}), which cannot be cut. Load the model that it was made from "
            "and quantise after pruning."
        )
    if prefix := _wrapper(missing, left_over):
        raise ValueError(
            f"`{prefix}` is in the names of {len(left_over):,} weights in `{where}`, as a wrapper leaves them, so `{cls}` would "
            f"get none of those ({named(missing)} would be made up at random). Take `{prefix}` out of the names in the weight "
            "files, or save the model that is inside the wrapper."
        )
    if missing:
        layers = _absent_layers(missing, model)
        hint = f" {layers}" if layers else ""
        raise ValueError(
            f"`{where}` does not hold all weights of `{cls}`: {named(missing)} would be made up at random.{hint} Get the whole "
            "checkpoint, or correct `config.json`."
        )
    strange = [name for name in left_over if not _is_other_head(model, name)]
    if strange:
        raise ValueError(
            f"`{where}` holds weights that `{cls}` has no place for and would lose: {named(strange)}."
            f"{_head_hint(model, strange)} Correct `config.json` (`architectures`, `num_hidden_layers`), or take them out."
        )


def named(names: Iterable[str]) -> str:
    """The first of some names in backticks, and how many more there are."""
    names = list(names)
    first = listed(names[:_SHOWN])
    return first if len(names) <= _SHOWN else f"{first} and {len(names) - _SHOWN:,} more"


def _wrapper(missing: list[str], left_over: list[str]) -> str | None:
    """What a wrapper has put into every name that is left over, at its front or anywhere in it; None where that does not explain
    them all."""
    expected = set(missing)
    parts = left_over[0].split(".") if left_over else []
    runs = (parts[start:end] for start in range(len(parts)) for end in range(start + 1, len(parts)))
    for piece in dict.fromkeys(".".join(run) + "." for run in runs):
        if all(_without(name, piece) in expected for name in left_over):
            return piece
    return None


def _without(name: str, piece: str) -> str:
    """A name without all that a wrapper has put between its dots, or before the first."""
    return f".{name}".replace(f".{piece}", ".")[1:]


def _absent_layers(missing: list[str], model: PreTrainedModel) -> str:
    """A sentence where whole layers are missing."""
    lists = {match[1] for name in missing if (match := re.match(r"(.*?\.\d+)\.", name))}
    names = [name for name, _ in model.named_parameters()]
    whole = [layer for layer in sorted(lists) if all(name in missing for name in names if name.startswith(f"{layer}."))]
    count = getattr(model.config, "num_hidden_layers", None)
    if not whole or count is None:
        return ""
    return f"Nothing of {named(whole)} is in it, and the config says `num_hidden_layers` {count}."


def is_pooler(name: str) -> bool:
    """Whether a weight is of the layer over the first token, which belongs to some heads although it lies in the base model."""
    return "pooler" in name.split(".")


def _is_other_head(model: PreTrainedModel, name: str) -> bool:
    """Whether a name belongs to the head of another task of this model's type; to lose it is harmless only beside a head."""
    if auto_class_of(type(model)) == "AutoModel":
        return False
    return any(name in head_names(cls, model.config) for cls in task_classes_of(model.config))


def _head_hint(model: PreTrainedModel, names: list[str]) -> str:
    classes = [cls.__name__ for cls in task_classes_of(model.config) if set(names) <= set(head_names(cls, model.config))]
    return f" They are those of `{classes[0]}`: set `architectures` in `config.json` to it." if classes else ""


def task_classes_of(config: PreTrainedConfig) -> list[type[PreTrainedModel]]:
    """The classes with a task head that transformers has for a config, causal language models first."""
    found: list[type[PreTrainedModel]] = []
    for auto in dict.fromkeys(AUTO_CLASSES.values()):
        mapping = getattr(transformers, auto)._model_mapping
        if type(config) in mapping:
            classes = mapping[type(config)]
            found += classes if isinstance(classes, (list, tuple)) else [classes]
    return list(dict.fromkeys(found))


def head_names(cls: type[PreTrainedModel], config: PreTrainedConfig) -> dict[str, bool]:
    """{name of a weight outside the base model (a pooler counts as outside): whether it is tied to another}; without memory."""
    with torch.device("meta"):
        model = cls._from_config(config)
    prefix = f"{cls.base_model_prefix}."
    names = (name for name in model.state_dict() if not name.startswith(prefix) or is_pooler(name))
    return {name: name in model.all_tied_weights_keys for name in names if not _HARMLESS.search(name)}
