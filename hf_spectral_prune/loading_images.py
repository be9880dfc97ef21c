"""Loads the image processor and the pictures that a command names.

For models of text it hands on to `loading.py`, for plain networks to `loading_networks.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel

from .arguments import ModelArguments, RunArguments, SpectralPruningArguments
from .calibration import CalibrationData, build_images, load_images
from .calibration.sources import load_table
from .flops import is_vision
from .loading import load_model as load_transformer
from .loading import load_text, load_tokenizer, model_name, recovery_rows
from .loading_networks import load_network, load_tensors, recovery_tensors
from .training_rows import training_rows


def load_model(run: RunArguments) -> PreTrainedModel:
    """The model, or the plain network of `network_class`; see `loading.load_model` and `load_network`."""
    return load_transformer(run) if run.network_class is None else load_network(run)


def load_processing_class(run: ModelArguments) -> Any:
    """The model's tokenizer, or the image processor of one that reads pictures; None for a plain network.

    Raises:
        ValueError: the folder has none.
    """
    if isinstance(run, RunArguments) and run.network_class is not None:
        return None
    if run.gguf_file is not None or not _reads_pictures(run):
        return load_tokenizer(run)
    try:
        return AutoImageProcessor.from_pretrained(model_name(run), trust_remote_code=run.trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"`{run.model_name_or_path}` has no image processor that loads ({reason}). Put its `preprocessor_config.json` in "
            "that folder."
        ) from None


def _reads_pictures(run: ModelArguments) -> bool:
    config = AutoConfig.from_pretrained(model_name(run), trust_remote_code=run.trust_remote_code)
    return getattr(config, "num_channels", None) is not None


def load_data(
    run: RunArguments, args: SpectralPruningArguments, model: PreTrainedModel, processing_class: Any
) -> tuple[CalibrationData, CalibrationData | None]:
    """Calibration and held-out data for a model of text (see `load_text`), of pictures, or a plain network (`load_tensors`).

    Without `eval_image_dir` and `eval_split`, pictures are held out of the calibration source at random, a fifth at most.
    Pictures without labels cannot be evaluated on, so nothing is held out of them.

    Raises:
        ValueError: nothing to calibrate on is named, or it does not fit the model.
    """
    if run.network_class is not None:
        return load_tensors(run, args.seed)
    if not is_vision(model):
        if run.image_dir or run.eval_image_dir:
            raise ValueError(f"`image_dir` is for models that read pictures, and this is a {type(model).__name__}. Give text.")
        return load_text(run, args, model, processing_class)
    source, others = _sources(run, args)
    options: dict[str, Any] = {
        "batch_size": run.calibration_batch_size,
        "seed": args.seed,
        "image_column": run.image_column,
        "label_column": run.label_column,
    }
    held_out = None
    if others is not None and run.num_eval_samples:
        number = min(run.num_eval_samples, len(others))
        held_out = build_images(others, processing_class, model.config, num_samples=number, name=_eval_name(run), **options)
        held_out = held_out if held_out.protocol["labels"] else None
    calibration = build_images(
        source, processing_class, model.config, num_samples=run.num_calibration_samples, name=_name(run), **options
    )
    return calibration, held_out


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
    """Pictures to calibrate on, and others to measure on."""
    if run.image_dir:
        source = load_images(run.image_dir)
    elif run.dataset_name:
        source = load_table(None, run.dataset_name, run.dataset_config_name, run.dataset_split)
    else:
        raise ValueError("There are no pictures to calibrate on. Set `image_dir` or `dataset_name`.")
    if run.eval_image_dir:
        return source, load_images(run.eval_image_dir, "eval_image_dir")
    if run.eval_split is not None:
        return source, load_table(None, run.dataset_name, run.dataset_config_name, run.eval_split)
    number = min(run.num_eval_samples or 0, len(source) // 5)
    labelled = run.label_column is not None or {"label", "labels"} & set(source.column_names)
    if number == 0 or not labelled:
        return source, None
    parts = source.train_test_split(test_size=number, seed=args.seed)
    return parts["train"], parts["test"]


def _name(run: RunArguments) -> str:
    return Path(run.image_dir).name if run.image_dir else f"{run.dataset_name}:{run.dataset_split}"


def _eval_name(run: RunArguments) -> str:
    if run.eval_image_dir:
        return Path(run.eval_image_dir).name
    return f"{run.dataset_name}:{run.eval_split}" if run.eval_split is not None else f"{_name(run)}, held out"
