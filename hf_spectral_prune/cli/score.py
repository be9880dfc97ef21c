"""`cria score`: scores every unit of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ..arguments import SpectralPruningArguments
from .arguments import RunArguments
from .parsing import parse


@dataclass
class ScoringArguments(SpectralPruningArguments):
    """How to score."""

    unread = frozenset(entry.name for entry in fields(SpectralPruningArguments)) - {
        *("output_dir", "units", "criterion", "criterion_args", "max_moment_gib", "seed", "disable_tqdm"),
        *("num_calibration_samples", "max_seq_length", "calibration_batch_size"),
    }


@dataclass
class ScoringRunArguments(RunArguments):
    """Which model and which data to calibrate on."""

    unread = frozenset(
        {"resume_from_checkpoint", "recovery_file", "num_recovery_samples", "num_eval_samples", "metric"}
        | {"eval_file", "eval_split", "eval_image_dir", "eval_tensors_file"}
    )


def main(argv: Sequence[str]) -> None:
    """Scores every unit of a model and writes the scores as JSON (to --output_dir, or else to the screen)."""
    args, run = parse([ScoringArguments, ScoringRunArguments], "score", main.__doc__ or "", argv)
    if args.output_dir is not None and Path(args.output_dir).is_file():
        raise ValueError(f"`output_dir` `{args.output_dir}` is a file. Name a folder.")
    args = replace(args, compensation="none", allocation="proportional")  # nothing is cut, so nothing is measured for it
    from ..pruner import SpectralPruner
    from ..utils.files import write_text
    from .inputs import inputs_of, load_data, needs_data
    from .inputs_text import check_named_files

    check_named_files(run)
    inputs = inputs_of(run)
    model = inputs.load_model(run)
    SpectralPruner.check_model(model, args)
    needed = needs_data(run, args, model)
    unmeasured, processing = replace(run, num_eval_samples=0), inputs.load_processing(run)
    calibration, _ = load_data(inputs, unmeasured, model, processing, args.seed, needed=needed)
    pruner = SpectralPruner(model, args, calibration)
    scores = {key: value.tolist() for key, value in pruner.score().items()}
    text = json.dumps(
        {
            "criterion": args.criterion,
            "criterion_args": args.criterion_args,
            "calibration": None if calibration is None else calibration.protocol,
            "scores": scores,
        }
    )
    if args.output_dir is None:
        print(text)
        return
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "scores.json", text + "\n")
    print(f"Scores of {sum(map(len, scores.values())):,} units in {len(scores)} groups: {folder / 'scores.json'}")
