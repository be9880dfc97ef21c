"""Checkpoints of a pruning run: the plan so far, from which the run continues on the original model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel, TrainerState

from .planning import SCORES_FILE, PruningPlan, RoundScores, Sizes, scores_from_json, scores_to_json

_PLAN, _STATE, _SIZES, _WEIGHTS = "pruning_plan.json", "pruner_state.json", "final_sizes.json", "repaired.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stood before a calibration pass.

    Attributes:
        plan: composed plan of the rounds done.
        final_sizes: sizes that the last round will leave.
        state: log history and round counter.
        scores: of the rounds done, in short.
        folder: where it lies; it holds weights only if a repair has changed them.
    """

    plan: PruningPlan
    final_sizes: Sizes
    state: TrainerState
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
    state = TrainerState.load_from_json(str(folder / _STATE))
    scores = scores_from_json((folder / SCORES_FILE).read_text(encoding="utf-8"))
    return Checkpoint(PruningPlan.load(folder / _PLAN), sizes, state, scores, folder)


def latest(output_dir: str | Path) -> Path:
    """The checkpoint of the most rounds under `output_dir`.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    if not found:
        raise FileNotFoundError(f"`resume_from_checkpoint` is set, but `{output_dir}` has no checkpoint. Start without it.")
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]))
