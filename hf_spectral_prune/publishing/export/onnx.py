"""Exports a model to ONNX by transformers' own exporter, and keeps the file only if onnxruntime agrees with PyTorch."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import onnx_ir
import onnxruntime
import onnxscript  # noqa: F401  (transformers' exporter needs it; so it is missed here, with a clear name)
import torch
import transformers
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.exporters import OnnxExporter
from transformers.exporters.exporter_onnx import OnnxConfig

from ...models.cria import AUTO_CLASSES
from ...models.losses import predicts_next_token
from ...utils.files import written_whole
from ...utils.types import Row
from ...utils.words import first_line
from .common import choose_output, read_config
from .onnx_batches import CACHED_SHAPES, SHAPES, answers, feed, free_axes, name_axes, name_cache, random_batch, seen

# Largest difference allowed, relative to the largest output: two float32 implementations of the same graph.
_TOLERANCE = 1e-4
# Weights beyond this go into a file of their own (NAME.onnx.data): one protobuf message ends at 2 GiB.
_LARGEST_SINGLE_FILE = 1_900_000_000


@dataclass(frozen=True)
class ONNXExport:
    """What was written, and how far it is from PyTorch.

    Attributes:
        file: the ONNX file.
        inputs, outputs: names in the graph.
        max_abs_diff: largest difference of any output on any of the batches, at places that are not masked.
        allowed: what it may be.
        shapes: of the batches that were compared.
    """

    file: Path
    inputs: list[str]
    outputs: list[str]
    max_abs_diff: float
    allowed: float
    shapes: list[tuple[int, ...]]


def export_onnx(folder: str | Path, output_file: str | Path | None = None, *, use_cache: bool = False) -> ONNXExport:
    """Writes a model folder as ONNX in float32, with free batch and sequence axes (of images, the batch).

    Args:
        folder: of a pruned or any other model that transformers' exporter takes.
        output_file: by default `model.onnx` in the folder.
        use_cache: for a causal language model, take and give the key/value cache too, so that every further token of a text
            costs one token's work. Without it a sequence goes in and logits for every position come out.

    Raises:
        FileNotFoundError, ValueError: there is no such model (says what is missing).
        RuntimeError: the model cannot be traced, or onnxruntime gives other outputs than PyTorch. Nothing is written.
    """
    config = read_config(folder)
    output = choose_output(folder, output_file, "model.onnx", ".onnx")
    model = _load(Path(folder), config)
    if use_cache and not predicts_next_token(model):
        raise ValueError(f"`use_cache` is for causal language models, and `{folder}` holds a `{type(model).__name__}`.")
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = use_cache
    batches = [random_batch(model, *shape) for shape in (CACHED_SHAPES if use_cache else SHAPES)]
    with written_whole(output) as temporary:
        with _quiet():
            options = OnnxConfig(dynamic=True, dynamic_shapes=free_axes(batches[0], config))
            try:
                program = OnnxExporter().export(model, copy.deepcopy(batches[0]), config=options).program
            except Exception as error:  # whatever the traced code or the tracer raises
                reason = first_line(error)
                raise RuntimeError(f"transformers' exporter cannot trace `{type(model).__name__}`: {reason}.") from error
        name = name_cache if use_cache else name_axes
        name(program.graph.inputs, program.graph.outputs)
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        data = f"{temporary.name}.data" if size > _LARGEST_SINGLE_FILE else None
        onnx_ir.save(program, temporary, external_data=data)
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        difference, largest = _compare(model, session, batches)
        allowed = _TOLERANCE * max(1.0, largest)
        if not difference <= allowed:  # so that a figure that is not a number fails
            raise RuntimeError(
                f"onnxruntime gives outputs that differ from PyTorch's by {difference:.3g} (allowed {allowed:.3g}). Nothing was "
                "written."
            )
    return ONNXExport(
        output,
        [entry.name for entry in session.get_inputs()],
        [entry.name for entry in session.get_outputs()],
        difference,
        allowed,
        [tuple(batch[model.main_input_name].shape) for batch in batches],
    )


def _load(folder: Path, config: PreTrainedConfig) -> PreTrainedModel:
    architecture = (config.architectures or [""])[0]
    named = next((auto for ending, auto in AUTO_CLASSES.items() if architecture.endswith(ending)), "AutoModel")
    auto = getattr(transformers, named) if type(config) in getattr(transformers, named)._model_mapping else transformers.AutoModel
    # Weights that do not fit would be made up at random with no more than a warning.
    options = {"dtype": "float32", "use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    try:
        with _quiet():
            model, info = auto.from_pretrained(folder, **options)
    except SafetensorError as error:
        raise ValueError(f"The weights in `{folder}` are no safetensors file ({error}). Save the model again.") from None
    if type(model).__name__ != architecture:
        raise ValueError(f"`{folder}` names the class `{architecture}`, which it is not: it loads as `{type(model).__name__}`.")
    odd = sorted({*info["missing_keys"], *info["unexpected_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if odd:
        raise ValueError(
            f"`{odd[0]}` is in the weights of `{folder}` or in its config, not alike in both. Weights and config do not belong "
            "together: was a file changed by hand? Save the model again."
        )
    model.eval()
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """While open, the exporter's progress and its remarks on packages of no concern here are not shown."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _compare(model: PreTrainedModel, session: onnxruntime.InferenceSession, batches: list[Row]) -> tuple[float, float]:
    """Largest difference of any output at any place that is not masked, and largest magnitude of any."""
    difference = largest = 0.0
    names = [entry.name for entry in session.get_inputs()]
    for batch in batches:
        arrays = session.run(None, feed(batch, names))
        for expected, found in zip(answers(model, batch), map(torch.from_numpy, arrays), strict=True):
            if found.shape != expected.shape:
                raise RuntimeError(f"onnxruntime gives outputs of shape {tuple(found.shape)}, PyTorch {tuple(expected.shape)}.")
            found, expected = seen(found, batch), seen(expected, batch)
            # Of a NaN on either side comes a NaN, which `max` would lose.
            difference = torch.maximum(torch.tensor(difference), (found - expected).abs().max()).item()
            largest = max(largest, float(expected.abs().max()))
    return difference, largest
