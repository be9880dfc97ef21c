"""`cria prune`: prunes a model and saves it, with its plan and report."""

from __future__ import annotations

from collections.abc import Sequence

from ..arguments import RunArguments, SpectralPruningArguments
from .parsing import parse


def main(argv: Sequence[str]) -> None:
    """Prunes a model and saves it, with its plan and report."""
    from ..demo import before_after_table
    from ..loading import load_model, load_text, load_tokenizer, metric_of, recovery_rows
    from ..pruner import SpectralPruner
    from ..saving import check_output_dir

    args, run = parse([SpectralPruningArguments, RunArguments], "prune", main.__doc__ or "", argv)
    if args.output_dir is None:
        raise ValueError("There is no folder for the result. Set `--output_dir`.")
    check_output_dir(args.output_dir, args.overwrite_output_dir)
    tokenizer = load_tokenizer(run)
    model = load_model(run)
    SpectralPruner.check_model(model, args)
    calibration, held_out = load_text(run, args, model, tokenizer)
    pruner = SpectralPruner(
        model,
        args,
        calibration,
        held_out,
        tokenizer,
        train_dataset=recovery_rows(run, args, model, tokenizer, calibration, held_out),
        compute_metrics=metric_of(run),
        teacher=load_model(run) if args.recovery == "distill" else None,
    )
    resume = True if run.resume_from_checkpoint == "latest" else run.resume_from_checkpoint
    pruner.prune(resume_from_checkpoint=resume)
    pruner.save_model()
    assert pruner.output is not None
    print(before_after_table(pruner.output.report))
    print(f"Saved to {args.output_dir}")
