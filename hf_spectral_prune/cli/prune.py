"""`cria prune`: prunes a model and saves it, with its plan and report."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..arguments import TAUGHT_RECOVERIES, SpectralPruningArguments
from ..utils.types import Options
from .arguments import RunArguments, check_recovery_is_asked_for
from .parsing import parse
from .screen import ScreenArguments, as_json, ending, ending_of_targets, quiet_warnings, say


@dataclass
class PresetArguments:
    """A named set of options."""

    preset: Literal["paper", "quality", "fast"] | None = field(
        default=None,
        metadata={
            "help": "Options that flags and recipes win over: `paper` (the published method), `quality` (a width for each layer, "
            "loss-aware scores) or `fast` (a first look)."
        },
    )


@dataclass
class OffloadArguments:
    """Where weights lie that are not in memory."""

    offload_folder: str | None = field(
        default=None,
        metadata={
            "help": "Folder on a fast disk, for models larger than memory: the weights of the layers stay on the disk, one layer "
            "at a time is loaded and cut, and cut layers wait in this folder until all is saved."
        },
    )


def main(argv: Sequence[str]) -> None:
    """Prunes a model and saves it, with its plan and report."""
    argv = _with_several_targets(argv)
    types = [SpectralPruningArguments, RunArguments, OffloadArguments, PresetArguments, ScreenArguments]
    args, run, offload, _, screen = parse(types, "prune", main.__doc__ or "", argv)
    if args.output_dir is None:
        raise ValueError("There is no folder for the result. Set `--output_dir`.")
    check_recovery_is_asked_for(run, args, "recovery", asked=args.recovery != "none")
    from ..criteria import make_criterion
    from ..evaluation.tasks import check_task_names
    from ..models.distributed import is_first_process, join_processes, of_first_process
    from ..saving.place import check_output_dir, reserved
    from .inputs_text import check_named_files

    join_processes()
    if not is_first_process():
        quiet_warnings()  # the first one warns of what all of them find
    make_criterion(args.criterion, args.criterion_options)  # a mistyped name is told before gigabytes are read
    check_named_files(run)
    check_task_names(args)
    read = [value for name, value in vars(run).items() if value and name.endswith(("_path", "_file", "_dir", "_name"))]
    recipe = [word for word in argv if word.lower().endswith((".yaml", ".yml"))]
    with ExitStack() as place:

        def reserve() -> None:
            place.enter_context(reserved(str(args.output_dir)))
            check_output_dir(str(args.output_dir), args.overwrite_output_dir, inputs=[*read, *recipe])

        of_first_process(reserve)
        try:
            _prune(args, run, offload.offload_folder)
            if is_first_process():
                print(_ending(args, for_programs=screen.json))
        except KeyboardInterrupt as stopped:
            stopped.args = (_way_on(args),)
            raise


def _ending(args: SpectralPruningArguments, *, for_programs: bool) -> str:
    """What the run gives: for several targets their table, or a JSON object in a line for each."""
    folder = str(args.output_dir)
    if not args.target_reductions:
        return as_json(folder) if for_programs else ending(folder)
    from ..studies.targets import TABLE, folder_of

    folders = [str(folder_of(folder, target)) for target in sorted(args.target_reductions)]
    if for_programs:
        return "\n".join(map(as_json, folders))
    return ending_of_targets((Path(folder) / TABLE).read_text(encoding="utf-8"), folders)


def _with_several_targets(argv: Sequence[str]) -> list[str]:
    """The words with `--target_reduction 0.1 0.2` as what it is, `--target_reductions`."""
    words = list(argv)
    for index, word in enumerate(words):
        if word == "--target_reduction":
            values = list(itertools.takewhile(_is_number, words[index + 1 :]))
            if len(values) > 1:
                words[index] = "--target_reductions"
    return words


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _way_on(args: SpectralPruningArguments) -> str:
    """How to continue a run that was stopped."""
    from ..saving import checkpoint

    if checkpoint.latest(str(args.output_dir)) is None:
        return "No round was saved: start it again, with `--save_strategy steps` to continue from the last round next time."
    return "To continue, run the same command with `--resume_from_checkpoint latest`."


def _prune(args: SpectralPruningArguments, run: RunArguments, offload_folder: str | None) -> None:
    from ..models.distributed import is_first_process, of_first_process
    from ..models.loading import load_model
    from ..planning.reduction_target import target_words
    from ..pruner import SpectralPruner
    from ..saving import checkpoint
    from ..studies.targets import prune_to_targets
    from ..utils.progress import working
    from .inputs import inputs_of, load_data, needs_data
    from .inputs_labelled import metric_for, metric_of

    if offload_folder is not None and (args.target_reductions or run.network_class is not None):
        what = "several targets" if args.target_reductions else "a plain network"
        raise ValueError(f"`offload_folder` is not for {what}, whose weights are all held in memory. Leave it out.")
    if offload_folder is not None and Path(offload_folder).exists() and not Path(offload_folder).is_dir():
        raise ValueError(f"`offload_folder` `{offload_folder}` is a file. Name a folder.")
    inputs = inputs_of(run)
    metric = metric_of(run)
    resume: str | Path | None = run.resume_from_checkpoint
    if resume == "latest":
        resume = checkpoint.latest(str(args.output_dir))
        if resume is None:
            say(f"`{args.output_dir}` has no checkpoint to continue from: the run starts over.")
    processing_class = inputs.load_processing(run)
    with working("Loading", show=not args.disable_tqdm):
        model = inputs.load_model(run) if offload_folder is None else load_model(run, offload_folder)
    metric = metric_for(model, run, metric)
    SpectralPruner.check_model(model, args)
    needed = needs_data(run, args, model)
    calibration, held_out = of_first_process(lambda: load_data(inputs, run, model, processing_class, args.seed, needed=needed))
    train = None
    if args.recovery != "none":
        train = inputs.recovery_rows(run, model, processing_class, calibration, held_out, args.seed)
    options: Options = {
        "train_dataset": train,
        "compute_metrics": metric,
        "teacher": inputs.load_model(run) if args.recovery in TAUGHT_RECOVERIES else None,
    }
    if args.target_reductions:
        if resume is not None:
            raise ValueError("`resume_from_checkpoint` is for one target, and `target_reductions` names several. Leave it out.")
        for fraction in sorted(args.target_reductions) if is_first_process() else ():
            say(target_words(model, replace(args, target_reduction=fraction), calibration))
        prune_to_targets(model, args, calibration, held_out, processing_class, **options)
        return
    pruner = SpectralPruner(model, args, calibration, held_out, processing_class, **options)
    target = target_words(pruner.model, pruner.args, calibration)
    if is_first_process():
        say(target)
    pruner.prune(resume_from_checkpoint=resume)
    pruner.save_model()
