"""The kinds of input that a command reads, a row each: the model, what prepares its inputs, and the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from .. import checks
from ..arguments import SpectralPruningArguments
from ..criteria import make_criterion
from ..data.texts import CalibrationData
from ..models.loading import load_model, load_tokenizer
from ..utils.types import Row
from .arguments import RunArguments
from .inputs_images import image_recovery_rows, load_held_out_images, load_image_data, load_image_processor, reads_images
from .inputs_labelled import labelled_recovery_rows, load_held_out_labelled, load_labelled_text
from .inputs_tensors import load_network, load_tensors, tensor_recovery_rows
from .inputs_text import load_held_out_text, load_text, text_recovery_rows

# A tokenizer or an image processor, as the kind has it; None for tensors.
Processing = Any


@dataclass(frozen=True)
class Inputs:
    """How one kind of input is read.

    Attributes:
        load_model: the model.
        load_processing: what prepares its inputs.
        load_data: calibration data, and held-out data of its own or held out of those.
        load_held_out: held-out data that is named by itself; None where none is.
        recovery_rows: rows to recover on, without what is held out; gets calibration and held-out data too.
    """

    load_model: Callable[[RunArguments], PreTrainedModel]
    load_processing: Callable[[RunArguments], Processing]
    load_data: Callable[[RunArguments, PreTrainedModel, Processing, int], tuple[CalibrationData, CalibrationData | None]]
    load_held_out: Callable[[RunArguments, PreTrainedModel, Processing, int], CalibrationData | None]
    recovery_rows: Callable[
        [RunArguments, PreTrainedModel, Processing, CalibrationData | None, CalibrationData | None, int], Sequence[Row]
    ]


TEXTS = Inputs(load_model, load_tokenizer, load_text, load_held_out_text, text_recovery_rows)
LABELLED_TEXTS = Inputs(load_model, load_tokenizer, load_labelled_text, load_held_out_labelled, labelled_recovery_rows)
IMAGES = Inputs(load_model, load_image_processor, load_image_data, load_held_out_images, image_recovery_rows)
TENSORS = Inputs(
    load_network,
    lambda run: None,
    lambda run, model, processing, seed: load_tensors(run, seed),
    lambda run, model, processing, seed: load_tensors(run, seed)[1],
    lambda run, model, processing, calibration, held_out, seed: tensor_recovery_rows(run, seed),
)


def inputs_of(run: RunArguments) -> Inputs:
    """The row of what a command names.

    Raises:
        ValueError: images are named, and the model reads text.
        FileNotFoundError, OSError: its config cannot be read.
    """
    if run.network_class is not None:
        return TENSORS
    if run.gguf_file is None and reads_images(run):
        return IMAGES
    for name in ("image_dir", "eval_image_dir"):
        if getattr(run, name):
            raise ValueError(f"`{name}` is for models that read images, and `{run.model_name_or_path}` reads text. Give text.")
    return text_inputs_of(run)


def text_inputs_of(run: RunArguments) -> Inputs:
    """The row of what a command names that works on models of text alone.

    Raises:
        ValueError: a plain network is named.
    """
    if run.network_class is not None:
        raise ValueError("`network_class` is for `cria prune`, `cria score` and `cria evaluate`. Leave it out.")
    return TEXTS if run.label_column is None else LABELLED_TEXTS


def load_data(
    inputs: Inputs, run: RunArguments, model: PreTrainedModel, processing: Processing, seed: int, *, needed: bool = True
) -> tuple[CalibrationData | None, CalibrationData | None]:
    """Calibration and held-out data.

    Args:
        needed: whether a source must be named, see `needs_data`; without one there is then no calibration data.

    Raises:
        ValueError: nothing to calibrate on is named, or it does not fit the model.
    """
    if not needed and not _names_source(run):
        return None, inputs.load_held_out(run, model, processing, seed)
    return inputs.load_data(run, model, processing, seed)


def _names_source(run: RunArguments) -> bool:
    files = run.calibration_file or run.dataset_name or run.image_dir or run.tensors_file
    return run.calibration != "dataset" or bool(files)


def needs_data(run: RunArguments, args: SpectralPruningArguments, model: PreTrainedModel) -> bool:
    """Whether anything in a run reads calibration data; a recovery does, too, where it has no file of its own."""
    recovers = args.recovery != "none" and run.recovery_file is None
    return recovers or checks.needs_data(model, args, make_criterion(args.criterion, args.criterion_options))
