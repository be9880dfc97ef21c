"""`cria detrimental`: removes neurons that make a model confident but not correct."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import ModelArguments
from ..studies.detrimental.arguments import DetrimentalArguments, TaskArguments
from .parsing import parse
from .screen import ScreenArguments, as_json, ending

if TYPE_CHECKING:
    from ..studies.detrimental.tasks import Example


def main(argv: Sequence[str]) -> None:
    """Removes the detrimental FFN neurons of one layer, found on about ten labelled multiple-choice examples."""
    types = [DetrimentalArguments, TaskArguments, ModelArguments, ScreenArguments]
    args, tasks, run, screen = parse(types, "detrimental", main.__doc__ or "", argv)
    from ..saving.place import check_output_dir, reserved

    if args.output_dir is None:
        raise ValueError("There is no folder for the result. Set `--output_dir`.")
    with reserved(args.output_dir):
        read = [run.model_name_or_path, tasks.task_file, tasks.held_out_file, tasks.dataset_name]
        check_output_dir(args.output_dir, args.overwrite_output_dir, inputs=[path for path in read if path])
        figures = _prune(args, tasks, run)
        print(as_json(args.output_dir) if screen.json else f"{figures}\n\n{ending(args.output_dir)}")


def _read(tasks: TaskArguments) -> tuple[list[Example], list[Example] | None]:
    """Examples to draw from, and those to measure on where they are of another source."""
    from ..data.sources import load_table
    from ..studies.detrimental.tasks import examples_from_rows, read_examples

    def of_split(split: str) -> list[Example]:
        rows = load_table(None, tasks.dataset_name, tasks.dataset_config_name, split)
        return examples_from_rows(rows, tasks.task, f"{tasks.dataset_name}:{split}")

    if tasks.task_file is not None:
        examples = read_examples(tasks.task_file, tasks.task)
    elif tasks.dataset_name is not None:
        examples = of_split(tasks.dataset_split)
    else:
        raise ValueError("There are no labelled examples. Set `--task_file` or `--dataset_name`.")
    others = None
    if tasks.held_out_file is not None:
        others = read_examples(tasks.held_out_file, tasks.task)
    elif tasks.eval_split is not None:
        others = of_split(tasks.eval_split)
    return examples, others


def _source(file: str | None, dataset_name: str | None, split: str) -> str:
    """What reports call a source: they are published, and name files without their folders."""
    return Path(file).name if file is not None else f"{dataset_name}:{split}"


def _prune(args: DetrimentalArguments, tasks: TaskArguments, run: ModelArguments) -> str:
    from ..models.loading import load_model, load_tokenizer
    from ..studies.detrimental.pruner import DetrimentalNeuronPruner, check_model
    from ..studies.detrimental.report import summary
    from ..studies.detrimental.tasks import draw_examples, layout_of

    examples, others = _read(tasks)
    adaptation, rest = draw_examples(examples, tasks.num_adaptation_examples, args.seed, tasks.draw)
    if others is not None:
        rest, _ = draw_examples(others, len(set(others)), args.seed)
        used = set(adaptation)
        rest = [example for example in rest if example not in used]
    held_out = rest[: tasks.num_held_out_examples]
    if tasks.num_held_out_examples and not held_out:
        raise ValueError(
            f"`{tasks.held_out_file or tasks.task_file or tasks.dataset_name}` has no example left to measure accuracy on. Set "
            "`--held_out_file` (or `--eval_split`), or `--num_held_out_examples 0` to measure nothing."
        )
    tokenizer = load_tokenizer(run)
    model = load_model(run)
    check_model(model)
    pruner = DetrimentalNeuronPruner(model, args, adaptation, held_out or None, tokenizer)
    drawn = {"layout": tasks.task, "wording": layout_of(tasks.task).wording, "seed": args.seed}
    drawn_from = _source(tasks.task_file, tasks.dataset_name, tasks.dataset_split)
    pruner.protocol["adaptation"] = {"source": drawn_from, **drawn, "draw": tasks.draw, "num_sequences": len(adaptation)}
    if held_out:
        named = tasks.held_out_file or tasks.task_file
        source = _source(named, tasks.dataset_name, tasks.eval_split or tasks.dataset_split)
        pruner.protocol["held_out"] = {"source": source, **drawn, "num_sequences": len(held_out)}
    pruner.prune()
    pruner.save_model()
    assert pruner.output is not None
    return summary(pruner.output.report)
