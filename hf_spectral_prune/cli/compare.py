"""`cria compare`: several criteria, reductions, compensations and recoveries side by side on one model."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..studies.comparison.arguments import ComparisonArguments, comparison_cells
from .arguments import StudyRunArguments, check_recovery_is_asked_for
from .parsing import parse
from .screen import ScreenArguments, say


def main(argv: Sequence[str]) -> None:
    """Compares criteria on one model: a table, JSON, CSV, a plot and a report page; an interrupted run continues."""
    args, run, screen = parse([ComparisonArguments, StudyRunArguments, ScreenArguments], "compare", main.__doc__ or "", argv)
    from ..studies.comparison import FOLDER, compare, table, to_dict, verdict
    from ..studies.comparison.report import write_comparison_report
    from .inputs import text_inputs_of
    from .inputs_labelled import metric_for, metric_of
    from .studies import check_complete, check_study

    check_study(args, run, FOLDER)
    comparison_cells(args)
    trains = any(recovery != "none" for recovery in args.recoveries)
    check_recovery_is_asked_for(run, args, "recoveries", asked=trains)
    inputs = text_inputs_of(run)
    metric = metric_of(run)
    if metric is not None:
        metric.__qualname__ = run.metric or "accuracy"  # by this the comparison tells it from other metrics when it continues
    tokenizer = inputs.load_processing(run)
    model = inputs.load_model(run)
    metric = metric_for(model, run, metric)
    seed = args.seeds[0]
    calibration, held_out = inputs.load_data(run, model, tokenizer, seed)
    if held_out is None:
        raise ValueError(
            f"There is nothing to measure a `{type(model).__name__}` on. Causal language models are measured on held-out text "
            "(set `eval_file` if the text is too short to hold any back), classifiers of texts where `label_column` is set; for "
            "other tasks call `hf_spectral_prune.studies.comparison.compare` with labelled data."
        )
    comparison = compare(
        model,
        args,
        calibration,
        held_out,
        tokenizer,
        train_dataset=inputs.recovery_rows(run, model, tokenizer, calibration, held_out, seed) if trains else None,
        compute_metrics=metric,
        report=say,
    )
    page = write_comparison_report(args.output_dir)
    if screen.json:
        print(json.dumps(to_dict(comparison)))
    else:
        files = f"Report page: {page}; all figures as JSON and CSV, and a plot, are beside it."
        print(f"{table(comparison)}\n\n{verdict(comparison)}\n\n{files}")
    check_complete([(cell["label"], cell["error"]) for cell in comparison.failed], len(comparison.cells), "cells")
