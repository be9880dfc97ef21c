"""Loads the image processor and the images that a command names.

For models of text it hands on to `loading.py`, for plain networks to `loading_networks.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoImageProcessor, PreTrainedModel

from .. import checks
from ..arguments import ModelArguments, SpectralPruningArguments
from ..criteria import make_criterion
from ..data.images import build_images, load_images
from ..data.rows import training_rows
from ..data.sources import load_table
from ..data.texts import CalibrationData
from ..models.families.groups import is_vision
from ..models.folder_files import read_config
from ..models.loading import load_model as load_transformer
from ..models.loading import load_tokenizer, model_name
from ..utils.types import ProcessingClass, Row
from ..utils.words import first_line
from .arguments import DataArguments, NetworkArguments
from .inputs_tensors import load_network, load_tensors, recovery_tensors
from .inputs_text import load_held_out_text, load_text, recovery_rows


def load_model(run: NetworkArguments, tensors_file: str | None) -> PreTrainedModel:
    """The model, or the plain network of `network_class`; see `loading.load_model` and `load_network`."""
    return load_transformer(run) if tensors_file is None else load_network(run, tensors_file)


def load_processing_class(run: NetworkArguments) -> ProcessingClass | None:
    """The model's tokenizer, or the image processor of one that reads images; None for a plain network.

    Raises:
        ValueError: the folder has none.
    """
    if run.network_class is not None:
        return None
    if run.gguf_file is not None or not _reads_images(run):
        return load_tokenizer(run)
    try:
        return AutoImageProcessor.from_pretrained(model_name(run), trust_remote_code=run.trust_remote_code)
    except Exception as error:  # a class of its own for every kind of processor
        reason = first_line(error)
        raise ValueError(
            f"`{run.model_name_or_path}` has no image processor that loads ({reason}). Put its `preprocessor_config.json` in "
            "that folder."
        ) from None


def _reads_images(run: ModelArguments) -> bool:
    config = read_config(model_name(run), run.trust_remote_code)
    return getattr(config, "num_channels", None) is not None


def load_data(
    data_args: DataArguments, model: PreTrainedModel, processing_class: Any, seed: int, *, needed: bool = True
) -> tuple[CalibrationData | None, CalibrationData | None]:
    """Calibration and held-out data for a model of text (see `load_text`), of images, or a plain network (`load_tensors`).

    Without `eval_image_dir` and `eval_split`, images are held out of the calibration source at random, a fifth at most.
    Images without labels cannot be evaluated on, so nothing is held out of them.

    Args:
        needed: whether a source must be named, see `needs_data`; without one there is then no calibration data.

    Raises:
        ValueError: nothing to calibrate on is named, or it does not fit the model.
    """
    if data_args.tensors_file is not None:
        return load_tensors(data_args, seed)
    if not _names_source(data_args) and not needed:
        return None, load_held_out(data_args, model, processing_class, seed)
    if not is_vision(model):
        _check_text_only(data_args, model)
        return load_text(data_args, model, processing_class, seed)
    source, others = _sources(data_args, seed)
    held_out = _held_out_images(others, data_args, model, processing_class, seed)
    calibration = build_images(
        source,
        processing_class,
        model.config,
        num_samples=data_args.num_calibration_samples,
        name=_name(data_args),
        **_image_options(data_args, seed),
    )
    return calibration, held_out


def load_held_out(data_args: DataArguments, model: PreTrainedModel, processing_class: Any, seed: int) -> CalibrationData | None:
    """Held-out data of `eval_file`, `eval_split` or `eval_image_dir` alone; None where none of them is named.

    Raises:
        ValueError, FileNotFoundError: they cannot be read, or do not fit the model.
    """
    if is_vision(model):
        return _held_out_images(_eval_source(data_args), data_args, model, processing_class, seed)
    _check_text_only(data_args, model)
    return load_held_out_text(data_args, model, processing_class, seed)


def _check_text_only(data_args: DataArguments, model: PreTrainedModel) -> None:
    if data_args.image_dir or data_args.eval_image_dir:
        raise ValueError(f"`image_dir` is for models that read images, and this is a {type(model).__name__}. Give text.")


def _names_source(data_args: DataArguments) -> bool:
    return data_args.calibration != "dataset" or bool(data_args.calibration_file or data_args.dataset_name or data_args.image_dir)


def needs_data(data_args: DataArguments, args: SpectralPruningArguments, model: PreTrainedModel) -> bool:
    """Whether anything in a run reads calibration data; a recovery does, too, where it has no file of its own."""
    recovers = args.recovery != "none" and data_args.recovery_file is None
    return recovers or checks.needs_data(model, args, make_criterion(args.criterion, args.criterion_options))


def _held_out_images(
    source: Dataset | None, data_args: DataArguments, model: PreTrainedModel, processing_class: Any, seed: int
) -> CalibrationData | None:
    if source is None or not data_args.num_eval_samples:
        return None
    number = min(data_args.num_eval_samples, len(source))
    options = _image_options(data_args, seed)
    held_out = build_images(source, processing_class, model.config, num_samples=number, name=_eval_name(data_args), **options)
    return held_out if held_out.protocol["labels"] else None


def _image_options(data_args: DataArguments, seed: int) -> Row:
    return {
        "batch_size": data_args.calibration_batch_size,
        "seed": seed,
        "image_column": data_args.image_column,
        "label_column": data_args.label_column,
    }


def load_recovery_rows(
    data_args: DataArguments, model: Any, processing_class: Any, calibration: Any, held_out: Any, seed: int
) -> list[Row]:
    """Rows to recover on, without those that are held out."""
    if not is_vision(model):
        return recovery_rows(data_args, model, processing_class, calibration, held_out, seed)
    if data_args.tensors_file is not None:
        return recovery_tensors(data_args, seed)
    source, _ = _sources(data_args, seed)
    data = build_images(
        source,
        processing_class,
        model.config,
        num_samples=data_args.num_recovery_samples,
        seed=seed,
        image_column=data_args.image_column,
        label_column=data_args.label_column,
        name=f"{_name(data_args)}, to recover on",
    )
    return training_rows(data)


def _sources(data_args: DataArguments, seed: int) -> tuple[Dataset, Dataset | None]:
    """Images to calibrate on, and others to measure on."""
    if data_args.image_dir:
        source = load_images(data_args.image_dir)
    elif data_args.dataset_name:
        source = load_table(None, data_args.dataset_name, data_args.dataset_config_name, data_args.dataset_split)
    else:
        raise ValueError("There are no images to calibrate on. Set `image_dir` or `dataset_name`.")
    others = _eval_source(data_args)
    if others is not None:
        return source, others
    number = min(data_args.num_eval_samples or 0, len(source) // 5)
    labelled = data_args.label_column is not None or {"label", "labels"} & set(source.column_names)
    if number == 0 or not labelled:
        return source, None
    parts = source.train_test_split(test_size=number, seed=seed)
    return parts["train"], parts["test"]


def _eval_source(data_args: DataArguments) -> Dataset | None:
    """Images that are named to measure on."""
    if data_args.eval_image_dir:
        return load_images(data_args.eval_image_dir, "eval_image_dir")
    if data_args.eval_split is not None:
        return load_table(None, data_args.dataset_name, data_args.dataset_config_name, data_args.eval_split)
    return None


def _name(data_args: DataArguments) -> str:
    return Path(data_args.image_dir).name if data_args.image_dir else f"{data_args.dataset_name}:{data_args.dataset_split}"


def _eval_name(data_args: DataArguments) -> str:
    if data_args.eval_image_dir:
        return Path(data_args.eval_image_dir).name
    return (
        f"{data_args.dataset_name}:{data_args.eval_split}"
        if data_args.eval_split is not None
        else f"{_name(data_args)}, held out"
    )
