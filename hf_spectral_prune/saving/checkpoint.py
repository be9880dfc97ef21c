"""Checkpoints of a pruning run: the plan so far, from which the run continues on the original model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel, TrainerState

from ..arguments import SpectralPruningArguments
from ..planning import SCORES_FILE, RoundScores, Sizes, scores_from_json, scores_to_json
from ..surgery.plan import PruningPlan

_PLAN, _STATE, _SIZES, _WEIGHTS = "pruning_plan.json", "pruner_state.json", "final_sizes.json", "repaired.safetensors"
_FILES = {_PLAN, _STATE, _SIZES, _WEIGHTS, SCORES_FILE}

# Options that decide which units a run removes, and what it makes of the weights that stay.
_DECIDING = (
    "target_reduction",
    "target_scope",
    "units",
    "layout",
    "criterion",
    "criterion_args",
    "allocation",
    "num_allocation_samples",
    "num_rounds",
    "recalibrate_every",
    "compensation",
    "ridge",
    "round_to",
    "min_ffn_units",
    "min_kv_groups",
    "min_channels",
    "stock_class",
    "seed",
)


def deciding_options(args: SpectralPruningArguments) -> dict[str, Any]:
    """The options that decide the plan of a run, as JSON gives them back."""
    options: dict[str, Any] = json.loads(json.dumps({name: getattr(args, name) for name in _DECIDING}))
    return options


def check_same_run(options: dict[str, Any] | None, args: SpectralPruningArguments, where: str) -> None:
    """Checks that a run goes on with the options that it began with.

    Args:
        options: of the run so far; None for a checkpoint that was written before they were kept.
        where: what the message calls the checkpoint.

    Raises:
        ValueError: one differs; names it and both values.
    """
    for name, now in deciding_options(args).items():
        before = (options or {}).get(name, now)
        if before != now:
            raise ValueError(
                f"`{name}` is {now!r}, but the run of {where} began with {before!r}, and its plan hangs on it. Set it to "
                f"{before!r} again, or begin anew without `resume_from_checkpoint`."
            )


@dataclass
class RunState(TrainerState):
    """A pruner's state. Its `deciding_options` go with it into every checkpoint."""

    options: dict[str, Any] = field(default_factory=dict)


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
        """Loads repaired weights into the cut model, if the run repairs any."""
        if (self.folder / _WEIGHTS).is_file():
            load_model(model, self.folder / _WEIGHTS)


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
    """
    target = Path(output_dir) / f"checkpoint-{state.global_step}"
    temporary = target.with_name(target.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    plan.save(temporary / _PLAN)
    state.save_to_json(str(temporary / _STATE))
    (temporary / _SIZES).write_text(json.dumps(final_sizes), encoding="utf-8")
    (temporary / SCORES_FILE).write_text(scores_to_json(scores, plan.criterion), encoding="utf-8")
    if repaired is not None:
        save_model(repaired, str(temporary / _WEIGHTS))
    shutil.rmtree(target, ignore_errors=True)
    temporary.replace(target)
    return target


def load(folder: str | Path) -> Checkpoint:
    """Reads a checkpoint folder.

    Raises:
        FileNotFoundError: the folder is not a checkpoint of a pruning run.
    """
    folder = Path(folder)
    for name in (_PLAN, _STATE, _SIZES, SCORES_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"`{folder}` is no checkpoint of a pruning run: it has no `{name}`.")
    sizes = json.loads((folder / _SIZES).read_text(encoding="utf-8"))
    state: RunState = RunState.load_from_json(str(folder / _STATE))
    scores = scores_from_json((folder / SCORES_FILE).read_text(encoding="utf-8"))
    return Checkpoint(PruningPlan.load(folder / _PLAN), sizes, state, scores, folder)


def is_own(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a pruning run, or what a run left that was killed while it wrote one.

    The name does not tell: a Trainer's checkpoints are called the same.
    """
    if not (re.fullmatch(r"checkpoint-\d+(\.tmp)?", folder.name) and folder.is_dir()):
        return False
    names = {path.name for path in folder.iterdir()}
    return names <= _FILES if folder.suffix == ".tmp" else {_PLAN, _SIZES} <= names


def latest(output_dir: str | Path) -> Path:
    """The checkpoint of the most rounds under `output_dir`.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [path for path in Path(output_dir).glob("checkpoint-*") if is_own(path) and path.suffix != ".tmp"]
    if not found:
        raise FileNotFoundError(f"`resume_from_checkpoint` is set, but `{output_dir}` has no checkpoint. Start without it.")
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]))
