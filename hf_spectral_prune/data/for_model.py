"""Data as users give it to a pruner or a callback, made into batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import RemoveColumnsCollator

from ..arguments import ModelArguments, SpectralPruningArguments
from ..models.families import max_tokens, network_of
from ..models.families.groups import is_audio, is_vision
from ..models.loading import load_model
from ..models.losses import predicts_next_token
from ..models.packing import check_documents_apart
from ..models.torch_model import TorchModelForImageClassification, check_rebuildable, importable, original_class, wrap
from ..utils.types import Collator, Options, ProcessingClass
from ..utils.words import named
from .blocks import Choice
from .images import build_images, is_batches
from .items import Stream, first_of, is_row, is_text, items_of
from .labelled import rows_of_labelled
from .labels import with_model_ids
from .rows import training_rows
from .sounds import build_sounds, check_sounds
from .texts import CalibrationData, build_calibration, unpadded_row, with_sizes

# Sequences of raw text to evaluate on at most: half a million tokens, as many as WikiText-2 and the like have to test on.
_MOST_EVAL_SEQUENCES = 1000
_TOKENS = "ForTokenClassification"
_CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification", _TOKENS)


def load_for_pruner(model: Any, model_init: Callable[[], Any] | None, processing_class: Any) -> tuple[Any, Any]:
    """The model, loaded where it is named and made where there is a `model_init`, and its processing class.

    Raises:
        ValueError, FileNotFoundError: there is none, or two; or see `models.loading.load_model`.
    """
    if isinstance(processing_class, (str, Path)):
        raise ValueError(
            f"`processing_class` is the name `{processing_class}`. Pass what it stands for: "
            f'`AutoTokenizer.from_pretrained("{processing_class}")`.'
        )
    if processing_class is not None and not hasattr(processing_class, "save_pretrained"):
        raise ValueError(
            f"`processing_class` is a `{type(processing_class).__name__}`, which cannot be saved beside the model. Pass a "
            "tokenizer or image processor of transformers, e.g. `PreTrainedTokenizerFast(tokenizer_object=...)`."
        )
    if (model is None) == (model_init is None):
        raise ValueError("Give `model`, or `model_init` that makes it: one of the two.")
    if model_init is not None:
        model = model_init()
    if not isinstance(model, (str, Path)):
        return model, processing_class
    named = ModelArguments(model_name_or_path=str(model))
    loaded = load_model(named)
    if processing_class is None:
        reader = AutoImageProcessor.from_pretrained if is_vision(loaded) else AutoTokenizer.from_pretrained
        processing_class = reader(str(model))
    return loaded, processing_class


def read_data(
    source: object,
    processing_class: Any,
    model: PreTrainedModel,
    args: SpectralPruningArguments,
    name: str,
    data_collator: Collator | None = None,
) -> CalibrationData:
    """Data as users give it, in batches; `CalibrationData` and ready batches stay as they are.

    Args:
        source: as for `build_images` where the model reads images, else as for `build_calibration`.
        args: says how many rows are a sample, how long they are, and how many make a batch.
        name: "eval_dataset" takes all images and tokenised rows, and the first 1,000 sequences of raw text or of a stream;
            "calibration_dataset" takes a sample.
        data_collator: as for Trainer: makes the batches of rows; of raw text it gets the blocks.

    Raises:
        ValueError: see `build_images` and `build_calibration`; packed rows that the model does not keep apart; token ids beyond
            its embedding; labels that its head does not have; a collator that makes no batch of tensors.
    """
    if isinstance(source, Iterator) and not is_vision(model):
        source = Stream(source)  # it can be read once only: what was looked at stays
    if isinstance(source, CalibrationData):
        data = source
    elif data_collator is None or not _has_rows(source, model):
        data = _batches(source, processing_class, model, args, name)
    else:
        data = _collated(source, processing_class, model, args, name, data_collator)
    check_ids(model, data, processing_class)
    check_labels(model, data, name)
    check_documents_apart(model, data)
    return data


def with_labels(
    source: object, processing_class: ProcessingClass | None, model: PreTrainedModel, args: SpectralPruningArguments
) -> object:
    """A data set whose labels mean what they say: by the model's numbers where they have names, and beside the tokens of their
    own text where it was not tokenised. Anything else, and the text of a causal model, as it is.

    Raises:
        ValueError: see `labels.label_ids` and `labelled.rows_of_labelled`.
    """
    if predicts_next_token(model):
        return source
    source = with_model_ids(source, model.config)
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return source
    return rows_of_labelled(source, model.config, processing_class, _length(model, args))


def read_labelled(
    source: object,
    processing_class: ProcessingClass | None,
    model: PreTrainedModel,
    args: SpectralPruningArguments,
    name: str,
    data_collator: Collator | None = None,
) -> CalibrationData:
    """`read_data` of a source `with_labels`."""
    return read_data(with_labels(source, processing_class, model, args), processing_class, model, args, name, data_collator)


def _length(model: PreTrainedModel, args: SpectralPruningArguments) -> int:
    limit = max_tokens(model.config)
    return args.max_seq_length if limit is None else min(args.max_seq_length, limit)


def _batches(
    source: Any, processing_class: Any, model: PreTrainedModel, args: SpectralPruningArguments, name: str
) -> CalibrationData:
    measured = name == "eval_dataset"
    options: Options = {"batch_size": args.calibration_batch_size, "seed": args.seed, "name": name}
    if is_audio(model):
        number = None if measured else args.num_calibration_samples
        return build_sounds(source, num_samples=number, **options)
    if is_vision(model):
        number = None if measured else args.num_calibration_samples
        return build_images(source, processing_class, model.config, num_samples=number, **options)
    limit = max_tokens(model.config)
    options |= {"max_seq_length": _length(model, args), "max_position_embeddings": limit}
    options |= {"num_samples": args.num_calibration_samples}
    if measured:
        source = items_of(source)
        limited = isinstance(source, Stream) or is_text(first_of(source))
        options |= {"shuffle": False, "num_samples": _MOST_EVAL_SEQUENCES if limited else max(1, len(source))}
    return build_calibration(source, processing_class, **options)


def _has_rows(source: object, model: PreTrainedModel) -> bool:
    """Whether it is rows or text, which a collator can make batches of, rather than ready batches or arrays."""
    if is_vision(model):
        return not isinstance(source, (Tensor, tuple)) and not is_batches(source) and isinstance(_first(source), Mapping)
    first = _first(source)
    if is_audio(model):
        return isinstance(first, Mapping) and not isinstance(first.get("input_features"), Tensor)
    return is_text(first) or is_row(first)


def _first(source: object) -> object:
    return first_of(items_of(source))


def _collated(
    source: object,
    processing_class: Any,
    model: PreTrainedModel,
    args: SpectralPruningArguments,
    name: str,
    data_collator: Collator,
) -> CalibrationData:
    """Batches that a collator makes of rows, without the columns that the model does not take, as Trainer gives them to it."""
    items = items_of(source)
    if not is_vision(model) and not is_audio(model) and is_text(first_of(items)):
        text = _batches(items, processing_class, model, args, name)
        rows: list[Any] = [unpadded_row(row) for row in training_rows(text)]
    elif isinstance(items, Stream):
        rows = list(islice(items, _MOST_EVAL_SEQUENCES if name == "eval_dataset" else args.num_calibration_samples))
    else:
        items = source if isinstance(source, Dataset) else items  # with its transform
        choice = Choice(args.num_calibration_samples, args.max_seq_length, True, args.seed)
        indices = range(len(items)) if name == "eval_dataset" else choice.indices(len(items))
        rows = [items[index] for index in indices]
    taken = ["label", "label_ids", "labels", *inspect.signature(model.forward).parameters]
    collate = RemoveColumnsCollator(data_collator, taken) if isinstance(source, (Dataset, IterableDataset)) else data_collator
    size = args.calibration_batch_size
    with torch.random.fork_rng(devices=[]):  # a collator that draws (masked words) draws the same each time
        torch.manual_seed(args.seed)
        made = [dict(collate(rows[at : at + size])) for at in range(0, len(rows), size)]
    for batch in made:
        if not batch or not all(isinstance(value, Tensor) for value in batch.values()):
            raise ValueError("`data_collator` must make a dict of tensors of the rows of `" + name + "`, as for Trainer.")
    return with_sizes(made, {"source": name, "num_samples": len(rows), "seed": args.seed})


def check_ids(model: PreTrainedModel, data: CalibrationData, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Checks that there are token ids, that the model's embedding has a row for every one, and that it finds where rows end.

    Raises:
        ValueError: there are none, or one lies beyond it; names the tokenizer and the sizes. Or the model looks for a padding
            token, and its config names none.
    """
    if is_vision(model):
        return
    if is_audio(model):
        check_sounds(model, data)
        return
    _check_padding(model, data)
    other = next((batch for batch in data if "input_ids" not in batch), None)
    if other is not None:
        raise ValueError(f"A batch holds {named(other)} and no `input_ids`, which the signals are read from. Give token ids.")
    smallest = min((int(batch["input_ids"].min()) for batch in data if batch["input_ids"].numel()), default=0)
    if smallest < 0:
        raise ValueError(f"`input_ids` holds {smallest}, which is no token. Only `labels` mark places by negative numbers.")
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    ids = (batch["input_ids"] for batch in data)
    largest = max((int(part.max()) for part in ids if part.numel()), default=0)
    if rows is None or largest < rows:
        return
    of = ""
    if tokenizer is not None:
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        token = tokenizer.convert_ids_to_tokens(largest) if largest < len(tokenizer) else None
        of = f" {f'(`{token}`) ' if token else ''}of the tokenizer `{name}` with {len(tokenizer):,} tokens"
    raise ValueError(
        f"The token id {largest:,}{of} is beyond the model's embedding, which has {rows:,} rows. Take the tokenizer that belongs "
        "to the model, or resize and train the embedding first (`model.resize_token_embeddings`)."
    )


def _check_padding(model: PreTrainedModel, data: CalibrationData) -> None:
    """Classifiers that read the last token of a row find it by the padding behind it, and refuse a batch without."""
    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    looks_for_it = "pad_token_id" in inspect.unwrap(type(model).forward).__code__.co_names
    if not type(model).__name__.endswith("ForSequenceClassification") or pad is not None or not looks_for_it:
        return
    if any(len(batch["input_ids"]) > 1 for batch in data if "input_ids" in batch):
        raise ValueError(
            f"The config of this `{type(model).__name__}` has no `pad_token_id`, by which it finds the last token of each row. "
            "Set it there (to the tokenizer's), or take one row a batch (`calibration_batch_size` 1)."
        )


def check_labels(model: PreTrainedModel, data: CalibrationData, name: str = "data") -> None:
    """Checks that a classifier's head knows the labels of its data: one whole number from 0 on a row (a token), with -100 where
    none counts; or a float for each class.

    Raises:
        ValueError: it does not; an accelerator would say so by breaking down, and only when a loss is taken.
    """
    count = model.config.num_labels or 0
    task = next((task for task in _CLASSIFIERS if type(model).__name__.endswith(task)), None)
    if task is None or count < 2 or model.config.problem_type == "regression" or network_of(model) is not model:
        return
    for batch in (batch for batch in data if "labels" in batch):
        labels = batch["labels"]
        if task == _TOKENS:
            _check_shape(labels, name, model, labels.shape == batch["input_ids"].shape and not labels.is_floating_point())
        elif model.config.problem_type == "multi_label_classification" or labels.is_floating_point():
            fits = labels.is_floating_point() and labels.shape[1:] == (count,)
            _check_shape(labels, name, model, fits and model.config.problem_type != "single_label_classification")
        else:
            _check_shape(labels, name, model, labels.dim() == 1)
        if not labels.is_floating_point():
            _check_known(labels, count, name, model)


def _check_shape(labels: Tensor, name: str, model: PreTrainedModel, fits: bool) -> None:
    if fits:
        return
    count, held = model.config.num_labels or 0, "whole numbers"
    taken = f"one whole number from 0 to {count - 1} a row, or {count} floats a row that may have several labels"
    if type(model).__name__.endswith(_TOKENS):
        taken = f"one whole number from 0 to {count - 1} a token, -100 where none counts"
    if labels.is_floating_point():
        held = "floats"
    shape = " x ".join(map(str, labels.shape[1:])) or "one"
    raise ValueError(
        f"The rows of `{name}` have {shape} {held} as labels, which `{type(model).__name__}` cannot read. Give {taken}."
    )


def _check_known(labels: Tensor, count: int, name: str, model: PreTrainedModel) -> None:
    strange = labels[((labels < 0) & (labels != -100)) | (labels >= count)]
    if not strange.numel():
        return
    label = int(strange[0])
    remedy = "Correct the rows, or load the model with as many `num_labels` as they have."
    if label == -1:
        remedy = "It marks labels that are hidden, as those of test splits are: take another split."
    raise ValueError(
        f"A row of `{name}` has the label {label}, but `{type(model).__name__}` has {count} labels (0 to {count - 1}). {remedy}"
    )


def wrap_for(
    network: nn.Module, calibration_dataset: object, eval_dataset: object, args: SpectralPruningArguments
) -> TorchModelForImageClassification:
    """A plain network for a pruning run; its data says what its inputs look like.

    Raises:
        ValueError: there is no data; or the run will save the network, and it cannot be built again or not be imported by the
            process that checks it.
    """
    source = eval_dataset if calibration_dataset is None else calibration_dataset
    name = type(network).__name__
    if source is None:
        raise ValueError(f"`{name}` is traced with one of its inputs, and there is no data. Pass `calibration_dataset`.")
    data = source if isinstance(source, CalibrationData) else build_images(source, num_samples=1)
    if args.output_dir is not None:
        check_rebuildable(network)
        if args.self_check and not importable(original_class(type(network))):
            raise ValueError(
                f"`{name}` is defined in a script or a function, where the process that checks the saved folder cannot import "
                "it. Put it into a module, or set `self_check=False`."
            )
    return wrap(network, data.batches[0]["pixel_values"][:1])
