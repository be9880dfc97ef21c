"""Tasks of EleutherAI's lm_eval (an optional package), measured on a model in memory."""

from __future__ import annotations

import copy
import functools
import importlib.util
import io
import logging
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..arguments import LmEvalArguments, SpectralPruningArguments
from ..models.losses import predicts_next_token
from ..models.modes import modes_kept
from ..utils.progress import working
from ..utils.types import Json, ProcessingClass
from ..utils.words import did_you_mean, in_a_line, listed, shortened

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

# For metrics whose standard error has no closed form.
_BOOTSTRAPS = 1000
_LOGGER = "lm_eval"


@dataclass(frozen=True)
class TaskFigures:
    """What one task gave.

    Attributes:
        figures: {metric: value}, by lm_eval's names; a filter other than `none` stands behind the name in parentheses.
        stderr: {metric: standard error over the items}, where lm_eval gives one.
        items: number of items that were asked; None for a group of tasks.
        num_fewshot: solved items before each question; None for a group of tasks.
        dataset: name of its data set on the Hub, where it has one.
    """

    figures: dict[str, float]
    stderr: dict[str, float] = field(default_factory=dict)
    items: int | None = None
    num_fewshot: int | None = None
    dataset: str | None = None

    def protocol(self) -> dict[str, int | str | None]:
        """How it was measured, as reports hold it."""
        return {"items": self.items, "num_fewshot": self.num_fewshot, "dataset": self.dataset}


def check_task_names(options: LmEvalArguments) -> None:
    """Tells of a package that is missing and of tasks that it does not know, before any work.

    Raises:
        ValueError: see above; names the option and the nearest task.
    """
    if options.lm_eval is None:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(
            "`lm_eval` needs the package `lm_eval`, which is not installed. Run `pip install lm_eval`, or leave it out."
        )
    if (folder := options.lm_eval_include_path) is not None and not Path(folder).is_dir():
        raise ValueError(f"`lm_eval_include_path` `{folder}` is not a folder. Name the folder of your task files (.yaml).")
    _manager(tuple(options.lm_eval), options.lm_eval_include_path)


def check_tasks(model: PreTrainedModel, tokenizer: ProcessingClass | None, options: LmEvalArguments) -> None:
    """`check_task_names`, and tells of a model that is no decoder or has no tokenizer.

    Raises:
        ValueError: see above.
    """
    if options.lm_eval is None:
        return
    if not predicts_next_token(model):
        raise ValueError(
            f"`lm_eval` is for causal language models, and the model is a `{type(model).__name__}`. Leave it out: "
            "held-out figures of the model's own task are measured anyway."
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError("`lm_eval` asks the model questions in words, and there is no tokenizer. Pass it as `processing_class`.")
    check_task_names(options)


def task_figures(
    model: PreTrainedModel,
    tokenizer: ProcessingClass | None,
    options: LmEvalArguments,
    *,
    batch_size: int = 8,
    title: str = "lm_eval",
    progress: bool = True,
) -> dict[str, TaskFigures]:
    """{task: figures} of the tasks that `options.lm_eval` names; a tag of lm_eval gives each of its tasks.

    The prompts are those of the tasks, without a chat template. Neither the tokenizer nor the state of the random generators is
    changed.

    Raises:
        ValueError: see `check_tasks`; or lm_eval cannot run a task, e.g. because its data set cannot be downloaded.
    """
    check_tasks(model, tokenizer, options)
    assert options.lm_eval is not None
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    try:
        with modes_kept(model), working(title, show=progress), _quiet(progress), _alone(), _same_chance():
            found = lm_eval.simple_evaluate(
                # A copy, because lm_eval gives the tokenizer a padding token.
                model=HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size),
                tasks=options.lm_eval,
                task_manager=_manager(tuple(options.lm_eval), options.lm_eval_include_path),
                limit=options.lm_eval_limit,
                bootstrap_iters=_BOOTSTRAPS,
                log_samples=False,
            )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a task, its data set or its metric raises
        names = listed(options.lm_eval)
        raise ValueError(
            f"lm_eval cannot run {names}: {shortened(in_a_line(error), 400)}. Check the connection, since data "
            "sets are downloaded, or leave the task out of `lm_eval`."
        ) from error
    return _read(found, options.lm_eval)


def figures_if_asked(
    model: PreTrainedModel, tokenizer: ProcessingClass | None, args: SpectralPruningArguments, side: str
) -> dict[str, TaskFigures]:
    """`task_figures` of a pruning run; empty where it asks for no task.

    Args:
        side: "before" or "after", for the screen.
    """
    if args.lm_eval is None:
        return {}
    batch_size, progress = args.calibration_batch_size, not args.disable_tqdm
    return task_figures(model, tokenizer, args, batch_size=batch_size, title=f"lm_eval ({side})", progress=progress)


def report_of(options: LmEvalArguments, found: Mapping[str, TaskFigures]) -> Json:
    """The figures of one model, for JSON."""
    tasks = {task: one.protocol() | {"figures": one.figures, "stderr": one.stderr} for task, one in found.items()}
    return _with_protocol(options, tasks)


def paired_figures(options: LmEvalArguments, before: Mapping[str, TaskFigures], after: Mapping[str, TaskFigures]) -> Json | None:
    """The figures of both models as a report holds them; None where no task was asked for."""
    if not before:
        return None
    tasks = {
        task: one.protocol()
        | {"before": one.figures, "after": after[task].figures}
        | {"before_stderr": one.stderr, "after_stderr": after[task].stderr}
        for task, one in before.items()
    }
    return _with_protocol(options, tasks)


def _with_protocol(options: LmEvalArguments, tasks: dict[str, Json]) -> Json:
    return {"version": version("lm_eval"), "limit": options.lm_eval_limit, "tasks": tasks}


@functools.cache
def _manager(names: tuple[str, ...], folder: str | None) -> TaskManager:
    """lm_eval's index of tasks. That of its own 14,000 takes up to half a minute, so it is read only where it is needed."""
    from lm_eval.tasks import TaskManager

    with _quiet(False):
        own = None if folder is None else TaskManager(include_path=folder, include_defaults=False)
    if own is not None and set(names) <= {*own.all_subtasks}:
        return own
    with working("Reading lm_eval's index"), _quiet(False):
        manager = TaskManager(include_path=folder)
    known = manager.all_tasks
    for name in names:
        if name not in known:
            near = did_you_mean(name, known, otherwise=" `lm_eval ls tasks` lists all.")
            raise ValueError(f"`lm_eval` names `{name}`, which is no task of lm_eval.{near}")
    return manager


def _read(found: Json, asked: Sequence[str]) -> dict[str, TaskFigures]:
    """The figures of the tasks and groups that were asked for, from what `simple_evaluate` returns."""
    results: Mapping[str, Json] = found["results"]
    shown = [name for name in asked if name in results]
    within = {task for name in shown for task in found.get("group_subtasks", {}).get(name, ())}
    if len(shown) < len(asked):  # tags, which have no figures of their own
        shown = [name for name in results if name not in within]
    read = {}
    for name in shown:
        figures: dict[str, float] = {}
        stderr: dict[str, float] = {}
        for key, value in results[name].items():
            metric, comma, filtered = key.partition(",")
            if not comma or not isinstance(value, (int, float)):
                continue
            plain, is_error = metric.removesuffix("_stderr"), metric.endswith("_stderr")
            label = plain if filtered == "none" else f"{plain} ({filtered})"
            (stderr if is_error else figures)[label] = float(value)
        items = found.get("n-samples", {}).get(name, {}).get("effective")
        path = found.get("configs", {}).get(name, {}).get("dataset_path")
        dataset = path if isinstance(path, str) and path.count("/") == 1 and not Path(path).exists() else None
        read[name] = TaskFigures(figures, stderr, items, found.get("n-shot", {}).get(name), dataset)
    return read


@contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """Leaves out what lm_eval logs, and its bars where they are not wanted or nobody watches."""
    logger = logging.getLogger(_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with nullcontext() if progress and sys.stderr.isatty() else redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _alone() -> Iterator[None]:
    """Keeps lm_eval from running git, pip and others to describe the machine: git complains on the screen outside of a clone."""
    from lm_eval import evaluator

    skipped = {name: getattr(evaluator, name) for name in ("get_git_commit_hash", "add_env_info") if hasattr(evaluator, name)}
    for name in skipped:
        setattr(evaluator, name, lambda *_: None)
    try:
        yield
    finally:
        for name, function in skipped.items():
            setattr(evaluator, name, function)


@contextmanager
def _same_chance() -> Iterator[None]:
    """Gives back the state of the random generators, which lm_eval seeds."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
