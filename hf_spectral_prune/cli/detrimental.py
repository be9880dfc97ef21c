"""`cria detrimental`: removes neurons that make a model confident but not correct."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..arguments import ModelArguments
from ..studies.detrimental.arguments import DetrimentalArguments, TaskArguments
from .parsing import parse
from .screen import ScreenArguments, as_json, ending


def main(argv: Sequence[str]) -> None:
    """Removes the detrimental FFN neurons of one layer, found on about ten labelled multiple-choice examples."""
    types = [DetrimentalArguments, TaskArguments, ModelArguments, ScreenArguments]
    args, tasks, run, screen = parse(types, "detrimental", main.__doc__ or "", argv)
    from ..saving.place import check_output_dir, reserved

    if args.output_dir is None:
        raise ValueError("There is no folder for the result. Set `--output_dir`.")
    with reserved(args.output_dir):
        read = [run.model_name_or_path, tasks.task_file, tasks.held_out_file]
        check_output_dir(args.output_dir, args.overwrite_output_dir, inputs=[path for path in read if path])
        figures = _prune(args, tasks, run)
        print(as_json(args.output_dir) if screen.json else f"{figures}\n\n{ending(args.output_dir)}")


def _prune(args: DetrimentalArguments, tasks: TaskArguments, run: ModelArguments) -> str:
    from ..models.loading import load_model, load_tokenizer
    from ..studies.detrimental.pruner import DetrimentalNeuronPruner, check_model
    from ..studies.detrimental.report import summary
    from ..studies.detrimental.tasks import draw_examples, layout_of, read_examples

    if tasks.task_file is None:
        raise ValueError("There are no labelled examples. Set `--task_file`.")
    adaptation, rest = draw_examples(read_examples(tasks.task_file, tasks.task), tasks.num_adaptation_examples, args.seed)
    if tasks.held_out_file is not None:
        others = read_examples(tasks.held_out_file, tasks.task)
        rest, _ = draw_examples(others, len(set(others)), args.seed)
        used = set(adaptation)
        rest = [example for example in rest if example not in used]
    held_out = rest[: tasks.num_held_out_examples]
    if tasks.num_held_out_examples and not held_out:
        raise ValueError(
            f"`{tasks.held_out_file or tasks.task_file}` has no example left to measure accuracy on. Set `--held_out_file`, or "
            "`--num_held_out_examples 0` to measure nothing."
        )
    tokenizer = load_tokenizer(run)
    model = load_model(run)
    check_model(model)
    pruner = DetrimentalNeuronPruner(model, args, adaptation, held_out or None, tokenizer)
    drawn = {"layout": tasks.task, "wording": layout_of(tasks.task).wording, "seed": args.seed}
    pruner.protocol["adaptation"] = {"source": Path(tasks.task_file).name, **drawn, "num_sequences": len(adaptation)}
    if held_out:
        source = Path(tasks.held_out_file or tasks.task_file).name
        pruner.protocol["held_out"] = {"source": source, **drawn, "num_sequences": len(held_out)}
    pruner.prune()
    pruner.save_model()
    assert pruner.output is not None
    return summary(pruner.output.report)
