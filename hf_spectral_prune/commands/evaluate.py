"""`cria evaluate`: held-out quality, size and speed of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..arguments import RunArguments, SpectralPruningArguments
from .parsing import parse


def main(argv: Sequence[str]) -> None:
    """Measures held-out perplexity (or the metric of labelled texts), size and speed of a model; prints JSON."""
    from ..evaluation import latency, num_parameters, perplexity, task_metrics
    from ..loading import load_model, load_text, load_tokenizer, metric_of

    (run,) = parse([RunArguments], "evaluate", main.__doc__ or "", argv)
    if run.eval_file is None and run.calibration == "dataset" and not (run.calibration_file or run.dataset_name):
        raise ValueError("There is nothing to evaluate on. Set `--eval_file`, `--dataset_name` or `--calibration python_docs`.")
    metric = metric_of(run)
    model = load_model(run)
    if run.eval_file is not None:
        # Only the held-out side is read.
        run.calibration, run.calibration_file = ("dataset", run.eval_file) if metric is not None else ("python_docs", None)
    _, held_out = load_text(run, SpectralPruningArguments(), model, load_tokenizer(run))
    if held_out is None:
        raise ValueError("There is nothing to evaluate on: the text is too short to hold any back. Set `--eval_file`.")
    figures: dict[str, Any] = {"parameters": num_parameters(model), "evaluation": held_out.protocol}
    if metric is not None:
        print(json.dumps(figures | task_metrics(model, held_out, metric), indent=2))
        return
    positions = getattr(model.config, "max_position_embeddings", None) or run.max_seq_length + 32
    speed = latency(model, prefill_tokens=max(1, min(run.max_seq_length, positions - 32)))
    print(json.dumps(figures | perplexity(model, held_out) | speed, indent=2))
