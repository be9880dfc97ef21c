"""Images that a command names, with the processor of the model that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from transformers import AutoImageProcessor, BaseImageProcessor, PreTrainedModel

from ..arguments import ModelArguments
from ..data.images import build_images, load_images
from ..data.rows import training_rows
from ..data.sources import load_table
from ..data.texts import CalibrationData
from ..models.folder_files import read_config
from ..models.loading import model_name
from ..utils.types import Options, Row
from ..utils.words import first_line
from .arguments import DataArguments


def reads_images(run: ModelArguments) -> bool:
    """Whether the config of a model says that it reads images."""
    config = read_config(model_name(run), run.trust_remote_code)
    return getattr(config, "num_channels", None) is not None


def load_image_processor(run: ModelArguments) -> BaseImageProcessor:
    """The model's image processor.

    Raises:
        ValueError: the folder has none.
    """
    try:
        return AutoImageProcessor.from_pretrained(model_name(run), trust_remote_code=run.trust_remote_code)
    except Exception as error:  # a class of its own for every kind of processor
        reason = first_line(error)
        raise ValueError(
            f"`{run.model_name_or_path}` has no image processor that loads ({reason}). Put its `preprocessor_config.json` in "
            "that folder."
        ) from None


def load_image_data(
    data_args: DataArguments, model: PreTrainedModel, processor: BaseImageProcessor, seed: int
) -> tuple[CalibrationData, CalibrationData | None]:
    """Calibration and held-out images.

    Without `eval_image_dir` and `eval_split`, images are held out of the calibration source at random, a fifth at most.
    Images without labels cannot be evaluated on, so nothing is held out of them.

    Raises:
        ValueError: nothing to calibrate on is named, or it does not fit the model.
    """
    source, others = _sources(data_args, seed)
    held_out = _held_out_images(others, data_args, model, processor, seed)
    number = data_args.num_calibration_samples
    options = _image_options(data_args, seed)
    return build_images(source, processor, model.config, num_samples=number, name=_name(data_args), **options), held_out


def load_held_out_images(
    data_args: DataArguments, model: PreTrainedModel, processor: BaseImageProcessor, seed: int
) -> CalibrationData | None:
    """Images of `eval_image_dir` or `eval_split`; None where neither is named."""
    return _held_out_images(_eval_source(data_args), data_args, model, processor, seed)


def image_recovery_rows(
    data_args: DataArguments,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    calibration: CalibrationData | None,
    held_out: CalibrationData | None,
    seed: int,
) -> Sequence[Row]:
    """Images to recover on, without those that are held out."""
    source, _ = _sources(data_args, seed)
    options = _image_options(data_args, seed)
    name = f"{_name(data_args)}, to recover on"
    return training_rows(
        build_images(source, processor, model.config, num_samples=data_args.num_recovery_samples, name=name, **options)
    )


def _held_out_images(
    source: Dataset | None, data_args: DataArguments, model: PreTrainedModel, processor: BaseImageProcessor, seed: int
) -> CalibrationData | None:
    if source is None or not data_args.num_eval_samples:
        return None
    number = min(data_args.num_eval_samples, len(source))
    options = _image_options(data_args, seed)
    held_out = build_images(source, processor, model.config, num_samples=number, name=_eval_name(data_args), **options)
    return held_out if held_out.protocol["labels"] else None


def _image_options(data_args: DataArguments, seed: int) -> Options:
    return {
        "batch_size": data_args.calibration_batch_size,
        "seed": seed,
        "image_column": data_args.image_column,
        "label_column": data_args.label_column,
    }


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
