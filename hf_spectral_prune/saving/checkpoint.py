"""Checkpoints of a pruning run: the plan so far, from which the run continues on the original model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel, TrainerState

from ..arguments import SpectralPruningArguments
from ..planning import SCORES_FILE, RoundScores, Sizes, scores_from_json, scores_to_json, sizes_after_round
from ..rounds import Run
from ..surgery import apply_plan
from ..surgery.plan import PruningPlan
from ..utils.files import SMALL_FILES, check_room, num_bytes, room_told
from ..utils.types import Json
from ..utils.words import in_a_line, shortened
from .same_run import check_same_run

_PLAN, _STATE, _SIZES, _WEIGHTS = "pruning_plan.json", "pruner_state.json", "final_sizes.json", "repaired.safetensors"
_PARTS = (_PLAN, _STATE, _SIZES, SCORES_FILE)
_FILES = {*_PARTS, _WEIGHTS}
_REMEDY = "Resume from an earlier checkpoint, or begin anew without `resume_from_checkpoint`."


@dataclass
class RunState(TrainerState):
    """A pruner's state. Its `deciding_options` go with it into every checkpoint."""

    options: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stood before a calibration pass.

    Attributes:
        plan: composed plan of the rounds done.
        final_sizes: sizes that the last round will leave.
        state: log history, round counter and the run's options.
        scores: of the rounds done, in short.
        folder: where it lies; it holds weights only if a repair has changed them.
    """

    plan: PruningPlan
    final_sizes: Sizes
    state: RunState
    scores: list[RoundScores]
    folder: Path

    def load_weights(self, model: PreTrainedModel) -> None:
        """Loads the weights that the run's repairs have left into the cut model.

        Raises:
            ValueError: they are missing, cut short, or those of another model.
        """
        file = self.folder / _WEIGHTS
        if not file.is_file():
            raise ValueError(f"`{self.folder}` is not whole: the run compensates weights, and it has no `{_WEIGHTS}`. {_REMEDY}")
        try:
            load_model(model, file)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise ValueError(f"`{file}` cannot be loaded into this model: {_first_words(error)}. {_REMEDY}") from None


def save(
    output_dir: str,
    plan: PruningPlan,
    final_sizes: Sizes,
    state: TrainerState,
    scores: Sequence[RoundScores],
    repaired: PreTrainedModel | None,
) -> Path:
    """Writes `checkpoint-<rounds>` under `output_dir`, whole or not at all.

    Args:
        repaired: the cut model if a repair changed its weights, else None (the plan then says it all).

    Raises:
        OSError: there is no room on the disk; says how much is needed. The checkpoints of earlier rounds stay.
    """
    target = Path(output_dir) / f"checkpoint-{state.global_step}"
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    what, needed = f"The checkpoint of round {state.global_step}", SMALL_FILES
    if repaired is not None:
        needed += num_bytes(repaired)
    check_room(what, target, needed)
    try:
        with room_told(what, target, needed):
            temporary.mkdir(parents=True)
            plan.save(temporary / _PLAN)
            state.save_to_json(str(temporary / _STATE))
            (temporary / _SIZES).write_text(json.dumps(final_sizes), encoding="utf-8")
            (temporary / SCORES_FILE).write_text(scores_to_json(scores, plan.criterion), encoding="utf-8")
            if repaired is not None:
                save_model(repaired, str(temporary / _WEIGHTS))
        shutil.rmtree(target, ignore_errors=True)
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def load(folder: str | Path) -> Checkpoint:
    """Reads a checkpoint folder.

    Raises:
        FileNotFoundError: the folder is not a checkpoint of a pruning run.
        ValueError: it is one that lacks a part, or holds what no run wrote.
    """
    folder = Path(folder)
    missing = [name for name in _PARTS if not (folder / name).is_file()]
    if len(missing) == len(_PARTS):
        raise FileNotFoundError(
            f"`{folder}` is no checkpoint of a pruning run: it has no `{missing[0]}`. Name a `checkpoint-N` in the `output_dir` "
            "of one."
        )
    if missing:
        raise ValueError(f"`{folder}` is not whole: it has no `{missing[0]}`. {_REMEDY}")
    plan = _read(folder / _PLAN, PruningPlan.from_json)
    sizes = _read(folder / _SIZES, _sizes_from_json)
    state = _read(folder / _STATE, _state_from_json)
    scores = _read(folder / SCORES_FILE, scores_from_json)
    if sizes.keys() != plan.kept.keys() or any(sizes[key] > len(kept) for key, kept in plan.kept.items()):
        raise ValueError(f"`{folder}` is not of one run: `{_SIZES}` does not go on from `{_PLAN}`. {_REMEDY}")
    if state.global_step != len(scores):
        raise ValueError(
            f"`{folder}` cannot be: `{_STATE}` counts {state.global_step} rounds, and `{SCORES_FILE}` has {len(scores)}. "
            f"{_REMEDY}"
        )
    return Checkpoint(plan, sizes, state, scores, folder)


def asked_for(resume: bool | str | Path, output_dir: str | None, options: Json) -> Checkpoint:
    """The checkpoint that a run is to go on from.

    Args:
        resume: True for the latest one in `output_dir`, or a checkpoint folder.
        options: `deciding_options` of the run.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of a run with other options.
    """
    folder = latest(str(output_dir)) if resume is True else Path(str(resume))
    if folder is None:
        raise FileNotFoundError(f"`resume_from_checkpoint` is set, but `{output_dir}` has no checkpoint. Start without it.")
    saved = load(folder)
    check_same_run(saved.state.options, options, f"`{folder}`")
    return saved


def resume(model: PreTrainedModel, args: SpectralPruningArguments, run: Run, saved: Checkpoint, *, repaired: bool) -> None:
    """Cuts the dense model as the rounds of a checkpoint did, and takes their plan, sizes and scores into the run.

    Args:
        repaired: whether those rounds changed weights, so that the plan alone does not say them.

    Raises:
        ValueError: see `check_step` and `Checkpoint.load_weights`.
    """
    # With `reallocate` the sizes in a checkpoint are those of its own round.
    share = Fraction(1) if args.reallocate else Fraction(saved.state.global_step, args.num_rounds)
    check_step(saved, args.num_rounds, sizes_after_round(run.groups, saved.final_sizes, share, run.limits))
    apply_plan(model, saved.plan)
    if repaired:
        saved.load_weights(model)
    run.plan, run.final_sizes, run.scores = saved.plan, saved.final_sizes, saved.scores


def check_step(checkpoint: Checkpoint, num_rounds: int, expected: Sizes) -> None:
    """Checks that the plan is what the rounds that a checkpoint counts have left.

    Args:
        expected: the sizes after that many rounds.

    Raises:
        ValueError: it is not, or there are more rounds than the run has.
    """
    step = checkpoint.state.global_step
    if step > num_rounds or any(len(kept) != expected[key] for key, kept in checkpoint.plan.kept.items()):
        raise ValueError(
            f"`{checkpoint.folder}` cannot be: it counts {step} of {num_rounds} rounds, and its plan is not what they leave. "
            f"{_REMEDY}"
        )


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"`{path}` cannot be read: {_first_words(error)}. {_REMEDY}") from None


def _sizes_from_json(text: str) -> Sizes:
    sizes = json.loads(text)
    if not isinstance(sizes, dict) or not all(type(value) is int and value >= 0 for value in sizes.values()):
        raise ValueError("it holds no sizes of groups")
    return sizes


def _state_from_json(text: str) -> RunState:
    state = RunState(**json.loads(text))
    if type(state.global_step) is not int or state.global_step < 1:
        raise ValueError(f"`global_step` is {state.global_step!r}")
    for name, kind in (("log_history", list), ("options", dict)):
        if not isinstance(getattr(state, name), kind):
            raise ValueError(f"`{name}` is no {kind.__name__}")
    if not all(isinstance(entry, dict) for entry in state.log_history):
        raise ValueError("`log_history` holds something else than tables of figures")
    return state


def _first_words(error: BaseException) -> str:
    return shortened(in_a_line(error), 300)


def is_own(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a pruning run, or what a run left that was killed while it wrote one.

    The name does not tell: a Trainer's checkpoints are called the same.
    """
    if not (re.fullmatch(r"checkpoint-\d+(\.tmp)?", folder.name) and folder.is_dir()):
        return False
    # Hidden: a file of ours that was not whole yet.
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    return names <= _FILES if folder.suffix == ".tmp" else not names.isdisjoint(_PARTS)


def latest(output_dir: str | Path) -> Path | None:
    """The checkpoint of the most rounds under `output_dir`, whole or not (`load` tells); None if there is none."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    # A Trainer's checkpoints are called the same.
    own = [path for path in found if any((path / name).is_file() for name in _PARTS)]
    return max(own, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
