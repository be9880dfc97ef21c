"""`cria prune`: prunes a model and saves it, with its plan and report."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..arguments import SpectralPruningArguments
from .arguments import RunArguments
from .parsing import parse


def main(argv: Sequence[str]) -> None:
    """Prunes a model and saves it, with its plan and report."""
    args, run = parse([SpectralPruningArguments, RunArguments], "prune", main.__doc__ or "", argv)
    if args.output_dir is None:
        raise ValueError("There is no folder for the result. Set `--output_dir`.")
    from ..pruner import SpectralPruner
    from ..publishing.card.tables import before_after_table
    from ..saving import checkpoint
    from ..saving.folder import check_output_dir
    from .inputs import load_data, load_model, load_processing_class, load_recovery_rows
    from .inputs_text import check_named_files, metric_of

    check_named_files(run)
    check_output_dir(args.output_dir, args.overwrite_output_dir)
    resume = run.resume_from_checkpoint
    if resume == "latest":
        resume = checkpoint.latest(args.output_dir)
        if resume is None:
            print(f"`{args.output_dir}` has no checkpoint to go on from: the run begins anew.", file=sys.stderr)
    processing_class = load_processing_class(run)
    model = load_model(run)
    SpectralPruner.check_model(model, args)
    calibration, held_out = load_data(run, args, model, processing_class)
    pruner = SpectralPruner(
        model,
        args,
        calibration,
        held_out,
        processing_class,
        train_dataset=load_recovery_rows(run, args, model, processing_class, calibration, held_out),
        compute_metrics=metric_of(run),
        teacher=load_model(run) if args.recovery == "distill" else None,
    )
    pruner.prune(resume_from_checkpoint=resume)
    pruner.save_model()
    assert pruner.output is not None
    print(before_after_table(pruner.output.report))
    print(f"Saved to {args.output_dir}")
