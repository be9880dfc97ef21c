"""`cria score`: scores every unit of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..arguments import SpectralPruningArguments
from .arguments import RunArguments
from .parsing import parse


def main(argv: Sequence[str]) -> None:
    """Scores every unit of a model and writes the scores as JSON (to --output_dir, or else to the screen)."""
    args, run = parse([SpectralPruningArguments, RunArguments], "score", main.__doc__ or "", argv)
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
