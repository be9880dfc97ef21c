"""The kinds of input that a command reads, a row each: the model, what prepares its inputs, and the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from transformers import PreTrainedModel

from .. import checks
from ..arguments import SpectralPruningArguments
from ..criteria import make_criterion
from ..data.texts import CalibrationData
from ..models.loading import load_model, load_tokenizer
from ..utils.types import Row
from .arguments import DataArguments, RunArguments
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
        named: what it is, for messages.
        reads: options of the data that decide about it, but for the numbers of rows, which all kinds have.
    """

    load_model: Callable[[RunArguments], PreTrainedModel]
    load_processing: Callable[[RunArguments], Processing]
    load_data: Callable[[RunArguments, PreTrainedModel, Processing, int], tuple[CalibrationData, CalibrationData | None]]
    load_held_out: Callable[[RunArguments, PreTrainedModel, Processing, int], CalibrationData | None]
    recovery_rows: Callable[
        [RunArguments, PreTrainedModel, Processing, CalibrationData | None, CalibrationData | None, int], Sequence[Row]
    ]
    named: str
    reads: frozenset[str]


_NUMBERS = {"num_calibration_samples", "num_eval_samples", "num_recovery_samples", "calibration_batch_size"}
_OF_DATA_SETS = {"dataset_name", "dataset_config_name", "dataset_split", "eval_split"}
_OF_TEXTS = {"calibration", "calibration_file", "eval_file", "recovery_file", "text_column"}
_OF_TEXTS |= {"streaming", "packing", "max_seq_length"}
_OF_LABELS = {"label_column", "metric"}

TEXTS = Inputs(
    load_model,
    load_tokenizer,
    load_text,
    load_held_out_text,
    text_recovery_rows,
    "text",
    frozenset(_OF_DATA_SETS | _OF_TEXTS),
)
LABELLED_TEXTS = Inputs(
    load_model,
    load_tokenizer,
    load_labelled_text,
    load_held_out_labelled,
    labelled_recovery_rows,
    "labelled texts",
    frozenset(_OF_DATA_SETS | _OF_TEXTS | _OF_LABELS | {"text_pair_column"}),
)
IMAGES = Inputs(
    load_model,
    load_image_processor,
    load_image_data,
    load_held_out_images,
    image_recovery_rows,
    "images",
    frozenset(_OF_DATA_SETS | _OF_LABELS | {"image_dir", "image_column", "eval_image_dir"}),
)
TENSORS = Inputs(
    load_network,
    lambda run: None,
    lambda run, model, processing, seed: load_tensors(run, seed),
    lambda run, model, processing, seed: load_tensors(run, seed)[1],
    lambda run, model, processing, calibration, held_out, seed: tensor_recovery_rows(run, seed),
    "a plain network (`network_class`)",
    frozenset({"tensors_file", "eval_tensors_file"}),
)


def inputs_of(run: RunArguments) -> Inputs:
    """The row of what a command names.

    Raises:
        ValueError: an option that this kind of input does not read.
        FileNotFoundError, OSError: the model's config cannot be read.
    """
    if run.network_class is not None:
        return _checked(TENSORS, run)
    if run.gguf_file is None and reads_images(run):
        return _checked(IMAGES, run)
    return text_inputs_of(run)


def text_inputs_of(run: RunArguments) -> Inputs:
    """The row of what a command names that works on models of text alone.

    Raises:
        ValueError: an option that this kind of input does not read.
    """
    return _checked(TEXTS if run.label_column is None else LABELLED_TEXTS, run)


def _checked(inputs: Inputs, run: RunArguments) -> Inputs:
    """Tells of options of the data that would not be read, because the model reads another kind of input."""
    for entry in fields(DataArguments):
        name = entry.name
        if name not in inputs.reads | _NUMBERS and getattr(run, name) != entry.default:
            kinds = [kind.named for kind in (TEXTS, LABELLED_TEXTS, IMAGES) if name in kind.reads] or [TENSORS.named]
            raise ValueError(
                f"`{name}` is for {' and '.join(kinds)}, and `{run.model_name_or_path}` reads {inputs.named} here. Leave it out."
            )
    return inputs


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
