"""Data as users give it to a pruner or a callback, made into batches."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..arguments import SpectralPruningArguments
from ..models.families import max_tokens
from ..models.families.groups import is_vision
from ..models.packing import check_documents_apart
from ..models.torch_model import TorchModelForImageClassification, check_rebuildable, importable, original_class, wrap
from .images import build_images
from .items import Stream, first_of, is_text, items_of
from .texts import CalibrationData, build_calibration

# Length of a row of text in tokens, if the model takes as many.
_SEQUENCE_LENGTH = 512
# Sequences of raw text to evaluate on at most: half a million tokens, as many as WikiText-2 and the like have to test on.
_MOST_EVAL_SEQUENCES = 1000


def read_data(source: Any, processing_class: Any, model: PreTrainedModel, seed: int, name: str) -> CalibrationData:
    """Data as users give it, in batches; `CalibrationData` stays as it is.

    Args:
        source: as for `build_images` where the model reads images, else as for `build_calibration`.
        name: "eval_dataset" takes all images and tokenised rows, and the first 1,000 sequences of raw text or of a stream;
            "calibration_dataset" takes a sample.

    Raises:
        ValueError: see `build_images` and `build_calibration`; packed rows that the model does not keep apart; token ids beyond
            its embedding.
    """
    data = _batches(source, processing_class, model, seed, name)
    check_ids(model, data, processing_class)
    check_documents_apart(model, data)
    return data


def _batches(source: Any, processing_class: Any, model: PreTrainedModel, seed: int, name: str) -> CalibrationData:
    if isinstance(source, CalibrationData):
        return source
    measured = name == "eval_dataset"
    if is_vision(model):
        pictures: dict[str, Any] = {"num_samples": None} if measured else {}
        return build_images(source, processing_class, model.config, seed=seed, name=name, **pictures)
    limit = max_tokens(model.config)
    length = _SEQUENCE_LENGTH if limit is None else min(_SEQUENCE_LENGTH, limit)
    options: dict[str, Any] = {"max_seq_length": length, "max_position_embeddings": limit, "seed": seed, "name": name}
    if measured:
        source = items_of(source)
        limited = isinstance(source, Stream) or is_text(first_of(source))
        options |= {"shuffle": False, "num_samples": _MOST_EVAL_SEQUENCES if limited else max(1, len(source))}
    return build_calibration(source, processing_class, **options)


def check_ids(model: PreTrainedModel, data: CalibrationData, tokenizer: Any = None) -> None:
    """Checks that the model's embedding has a row for every token id.

    Raises:
        ValueError: an id lies beyond it; names the tokenizer and the sizes.
    """
    if is_vision(model):
        return
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    ids = (batch["input_ids"] for batch in data if "input_ids" in batch)
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


def wrap_for(
    network: nn.Module, calibration_dataset: Any, eval_dataset: Any, args: SpectralPruningArguments
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
