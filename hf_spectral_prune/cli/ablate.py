"""`cria ablate`: measures what removing single units really costs, and which criterion predicts it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..studies.ablation.arguments import AblationArguments
from .arguments import StudyRunArguments
from .parsing import parse
from .screen import ScreenArguments, say


class AblationRunArguments(StudyRunArguments):
    """Which model and which data; of raw text less is measured on than elsewhere, since every unit is, on all of it."""

    num_eval_texts = 16
    unread = StudyRunArguments.unread | {"recovery_file", "metric"}


def main(argv: Sequence[str]) -> None:
    """Measures the held-out loss of removing single units, and how well criteria predict it; an interrupted run continues."""
    types = [AblationArguments, AblationRunArguments, ScreenArguments]
    args, run, screen = parse(types, "ablate", main.__doc__ or "", argv)
    from ..studies.ablation import FOLDER, ablate, chosen_groups, table, to_dict, verdict
    from .inputs import text_inputs_of
    from .studies import check_complete, check_study

    check_study(args, run, FOLDER)
    readers = [label for label, criterion in args.make_criteria().items() if criterion.needs_data]
    calibrates = run.calibration != "dataset" or run.calibration_file or run.dataset_name
    if not calibrates and run.eval_file and readers:
        raise ValueError(f"There is nothing to calibrate on, and `{readers[0]}` needs it. Set `calibration_file`.")
    inputs = text_inputs_of(run)
    tokenizer = inputs.load_processing(run)
    model = inputs.load_model(run)
    chosen_groups(model, args)
    if calibrates or not run.eval_file:
        calibration, held_out = inputs.load_data(run, model, tokenizer, args.seed)
    else:
        calibration, held_out = None, inputs.load_held_out(run, model, tokenizer, args.seed)
    if held_out is None:
        raise ValueError(
            f"There is nothing to measure a `{type(model).__name__}` on. Set `eval_file` if the text is too short to hold any "
            "back, and `label_column` for a model that classifies texts; for other tasks call "
            "`hf_spectral_prune.studies.ablation.ablate` with labelled batches."
        )
    result = ablate(model, args, calibration if readers else None, held_out, tokenizer, report=say)
    if screen.json:
        print(json.dumps(to_dict(result)))
    else:
        print(f"{table(result)}\n\n{verdict(result)}\n\nEvery unit's damage and scores, as JSON and a plot: {args.output_dir}")
    check_complete(result.failed.items(), len(result.scored), "criteria")
