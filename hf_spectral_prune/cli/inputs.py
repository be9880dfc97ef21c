"""Loads the image processor and the images that a command names.

For models of text it hands on to `loading.py`, for plain networks to `loading_networks.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoImageProcessor, PreTrainedModel

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
from ..surgery import has_batch_norms
from ..utils.words import first_line
from .arguments import RunArguments
from .inputs_tensors import load_network, load_tensors, recovery_tensors
from .inputs_text import load_held_out_text, load_text, recovery_rows


def load_model(run: RunArguments) -> PreTrainedModel:
    """The model, or the plain network of `network_class`; see `loading.load_model` and `load_network`."""
    return load_transformer(run) if run.network_class is None else load_network(run)


def load_processing_class(run: ModelArguments) -> Any:
    """The model's tokenizer, or the image processor of one that reads images; None for a plain network.

    Raises:
        ValueError: the folder has none.
    """
    if isinstance(run, RunArguments) and run.network_class is not None:
        return None
    if run.gguf_file is not None or not _reads_pictures(run):
        return load_tokenizer(run)
    try:
        return AutoImageProcessor.from_pretrained(model_name(run), trust_remote_code=run.trust_remote_code)
    except Exception as error:  # a class of its own for every kind of processor
        reason = first_line(error)
        raise ValueError(
            f"`{run.model_name_or_path}` has no image processor that loads ({reason}). Put its `preprocessor_config.json` in "
            "that folder."
        ) from None


def _reads_pictures(run: ModelArguments) -> bool:
    config = read_config(model_name(run), run.trust_remote_code)
    return getattr(config, "num_channels", None) is not None


def load_data(
    run: RunArguments, args: SpectralPruningArguments, model: PreTrainedModel, processing_class: Any
) -> tuple[CalibrationData | None, CalibrationData | None]:
    """Calibration and held-out data for a model of text (see `load_text`), of images, or a plain network (`load_tensors`).

    Without `eval_image_dir` and `eval_split`, images are held out of the calibration source at random, a fifth at most.
    Images without labels cannot be evaluated on, so nothing is held out of them. Where no source is named and nothing in
    `args` needs one, there is no calibration data.

    Raises:
        ValueError: nothing to calibrate on is named, or it does not fit the model.
    """
    if run.network_class is not None:
        return load_tensors(run, args.seed)
    if not _names_source(run) and not _needs_data(run, args, model):
        return None, load_held_out(run, args, model, processing_class)
    if not is_vision(model):
        _check_text_only(run, model)
        return load_text(run, args, model, processing_class)
    source, others = _sources(run, args)
    held_out = _held_out_images(others, run, args, model, processing_class)
    calibration = build_images(
        source,
        processing_class,
        model.config,
        num_samples=run.num_calibration_samples,
        name=_name(run),
        **_image_options(run, args),
    )
    return calibration, held_out


def load_held_out(
    run: RunArguments, args: SpectralPruningArguments, model: PreTrainedModel, processing_class: Any
) -> CalibrationData | None:
    """Held-out data of `eval_file`, `eval_split` or `eval_image_dir` alone; None where none of them is named.

    Raises:
        ValueError, FileNotFoundError: they cannot be read, or do not fit the model.
    """
    if is_vision(model):
        return _held_out_images(_eval_source(run), run, args, model, processing_class)
    _check_text_only(run, model)
    return load_held_out_text(run, args, model, processing_class)


def _check_text_only(run: RunArguments, model: PreTrainedModel) -> None:
    if run.image_dir or run.eval_image_dir:
        raise ValueError(f"`image_dir` is for models that read images, and this is a {type(model).__name__}. Give text.")


def _names_source(run: RunArguments) -> bool:
    return run.calibration != "dataset" or bool(run.calibration_file or run.dataset_name or run.image_dir)


def _needs_data(run: RunArguments, args: SpectralPruningArguments, model: PreTrainedModel) -> bool:
    """Whether anything in a run reads calibration data: also batch norms after a cut, and the size of the images for FLOPs."""
    return (
        make_criterion(args.criterion, args.criterion_options).needs_data
        or args.repairs
        or args.allocation in ("loss_curves", "fisher")
        or args.target_scope == "flops"
        or has_batch_norms(model)
        or (args.recovery != "none" and run.recovery_file is None)
    )


def _held_out_images(
    source: Dataset | None, run: RunArguments, args: SpectralPruningArguments, model: PreTrainedModel, processing_class: Any
) -> CalibrationData | None:
    if source is None or not run.num_eval_samples:
        return None
    number = min(run.num_eval_samples, len(source))
    options = _image_options(run, args)
    held_out = build_images(source, processing_class, model.config, num_samples=number, name=_eval_name(run), **options)
    return held_out if held_out.protocol["labels"] else None


def _image_options(run: RunArguments, args: SpectralPruningArguments) -> dict[str, Any]:
    return {
        "batch_size": run.calibration_batch_size,
        "seed": args.seed,
        "image_column": run.image_column,
        "label_column": run.label_column,
    }


def load_recovery_rows(
    run: RunArguments, args: SpectralPruningArguments, model: Any, processing_class: Any, calibration: Any, held_out: Any
) -> list[dict[str, Any]] | None:
    """Rows to recover on, without those that are held out; None where no recovery is asked for."""
    if args.recovery == "none" or not is_vision(model):
        return recovery_rows(run, args, model, processing_class, calibration, held_out)
    if run.network_class is not None:
        return recovery_tensors(run, args.seed)
    source, _ = _sources(run, args)
    data = build_images(
        source,
        processing_class,
        model.config,
        num_samples=run.num_recovery_samples,
        seed=args.seed,
        image_column=run.image_column,
        label_column=run.label_column,
        name=f"{_name(run)}, to recover on",
    )
    return training_rows(data)


def _sources(run: RunArguments, args: SpectralPruningArguments) -> tuple[Dataset, Dataset | None]:
    """Images to calibrate on, and others to measure on."""
    if run.image_dir:
        source = load_images(run.image_dir)
    elif run.dataset_name:
        source = load_table(None, run.dataset_name, run.dataset_config_name, run.dataset_split)
    else:
        raise ValueError("There are no images to calibrate on. Set `image_dir` or `dataset_name`.")
    others = _eval_source(run)
    if others is not None:
        return source, others
    number = min(run.num_eval_samples or 0, len(source) // 5)
    labelled = run.label_column is not None or {"label", "labels"} & set(source.column_names)
    if number == 0 or not labelled:
        return source, None
    parts = source.train_test_split(test_size=number, seed=args.seed)
    return parts["train"], parts["test"]


def _eval_source(run: RunArguments) -> Dataset | None:
    """Images that are named to measure on."""
    if run.eval_image_dir:
        return load_images(run.eval_image_dir, "eval_image_dir")
    if run.eval_split is not None:
        return load_table(None, run.dataset_name, run.dataset_config_name, run.eval_split)
    return None


def _name(run: RunArguments) -> str:
    return Path(run.image_dir).name if run.image_dir else f"{run.dataset_name}:{run.dataset_split}"


def _eval_name(run: RunArguments) -> str:
    if run.eval_image_dir:
        return Path(run.eval_image_dir).name
    return f"{run.dataset_name}:{run.eval_split}" if run.eval_split is not None else f"{_name(run)}, held out"
