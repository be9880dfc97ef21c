"""`cria evaluate`: held-out quality, size and speed of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..arguments import LmEvalArguments
from ..utils.types import Json
from .arguments import RunArguments
from .parsing import parse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..data.texts import CalibrationData
    from .inputs import Inputs, Processing

_SEED = 42  # that of `cria prune`, so that the same rows are held out


@dataclass
class EvaluationRunArguments(RunArguments):
    """Which model and which data; of `cria prune` all that decides what it holds out."""

    unread = frozenset({"resume_from_checkpoint", "recovery_file"})


def main(argv: Sequence[str]) -> None:
    """Measures held-out quality, size and speed of a model, and tasks of lm_eval; prints JSON.

    Quality is the perplexity of a causal language model, or loss and metric of labelled texts and images. It is measured on what
    `cria prune` with the same flags would hold out, so that the figures can be compared, or on data of its own.
    """
    run, options = parse([EvaluationRunArguments, LmEvalArguments], "evaluate", main.__doc__ or "", argv)
    if options.lm_eval is None:
        _check_source(run)
    if run.num_eval_samples == 0 and _names_source(run):
        raise ValueError("`num_eval_samples` is 0, so there is nothing to measure on. Set it to at least 1.")
    from ..evaluation.figures import held_out_figures, num_parameters
    from ..evaluation.tasks import check_task_names, check_tasks, report_of, task_figures
    from ..models.families.groups import is_vision
    from ..models.losses import predicts_next_token
    from .inputs import inputs_of
    from .inputs_labelled import metric_for, metric_of
    from .inputs_text import check_named_files

    check_named_files(run)
    check_task_names(options)
    inputs = inputs_of(run)
    metric = metric_of(run)
    model = inputs.load_model(run)
    metric = metric_for(model, run, metric)
    processing_class = inputs.load_processing(run)
    check_tasks(model, processing_class, options)
    figures: Json = {"parameters": num_parameters(model)}
    if _names_source(run):
        held_out = _held_out(inputs, run, model, processing_class)
        figures |= {"evaluation": held_out.protocol, **held_out_figures(model, held_out, metric)}
        if is_vision(model):
            figures |= _macs(model, held_out)
    if options.lm_eval is not None:
        found = task_figures(model, processing_class, options, batch_size=run.calibration_batch_size)
        figures["lm_eval"] = report_of(options, found)
    if predicts_next_token(model):
        figures |= _speed(model, run)
    print(json.dumps(figures, indent=2))


def _held_out(inputs: Inputs, run: RunArguments, model: PreTrainedModel, processing: Processing) -> CalibrationData:
    """The data that is named to measure on, else what `cria prune` holds out of its calibration source."""
    from ..models.cria import auto_class_of
    from ..models.families.groups import is_vision
    from ..models.losses import predicts_next_token
    from .inputs_text import names_eval

    if names_eval(run) or run.eval_image_dir is not None:
        held_out = inputs.load_held_out(run, model, processing, _SEED)
    else:
        _, held_out = inputs.load_data(run, model, processing, _SEED)
    if held_out is not None:
        return held_out
    if auto_class_of(type(model)) == "AutoModel":
        raise ValueError(
            f"There is nothing to evaluate: a `{type(model).__name__}` has no head, so it gives no figures. If its weights have "
            "one, set `architectures` in `config.json` to the class with that head."
        )
    if processing is not None and not is_vision(model) and not predicts_next_token(model):
        raise ValueError(
            f"There is nothing to evaluate on: a `{type(model).__name__}` is measured on rows with labels. Set `--label_column`."
        )
    raise ValueError(
        "There is nothing to evaluate on: no rows with labels, or a text too short to hold any back. Set `--eval_file` (images: "
        "`--eval_image_dir`; a plain network: `--eval_tensors_file`)."
    )


def _names_source(run: RunArguments) -> bool:
    named = (run.eval_file, run.calibration_file, run.dataset_name, run.image_dir, run.eval_image_dir, run.tensors_file)
    return run.calibration != "dataset" or any(named)


def _check_source(run: RunArguments) -> None:
    if not _names_source(run):
        raise ValueError(
            "There is nothing to evaluate on. Set `--eval_file`, `--dataset_name` or `--calibration python_docs` (images: "
            "`--eval_image_dir`), or `--lm_eval TASKS`."
        )


def _macs(model: PreTrainedModel, held_out: CalibrationData) -> dict[str, int]:
    from ..planning.flops import layer_macs
    from ..planning.reduction_target import example_image

    return {"macs": sum(layer_macs(model, example_image(model, held_out)).values())}


def _speed(model: PreTrainedModel, run: RunArguments) -> dict[str, float]:
    from ..evaluation.figures import latency
    from ..models.families import max_tokens

    positions = max_tokens(model.config) or run.max_seq_length + 32
    return latency(model, prefill_tokens=max(1, min(run.max_seq_length, positions - 32)))
