"""Bad inputs among the checkpoints that a run is resumed from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from stage import DAMAGES, JSON_DAMAGES, Fault, Stage, change, drop_json, set_json

PLAN, STATE, SIZES, SCORES = "pruning_plan.json", "pruner_state.json", "final_sizes.json", "pruning_scores.json"
REPAIRED = "repaired.safetensors"
SAME = {"num_rounds": 2, "save_strategy": "steps", "compensation": "least_squares"}
GROUP = "layers.0.ffn"


def resumed(name: str, act: Callable[[Path], Any], *says: str, harmless: bool = False, **more: Any) -> Fault:
    def make(stage: Stage) -> list[str]:
        folder = stage.copy("checkpoint")
        act(folder)
        return stage.words("prune", **SAME | {"resume_from_checkpoint": folder} | more)

    return Fault(name, make, says or ("checkpoint",), harmless)


def faults() -> Iterator[Fault]:
    for file in (PLAN, STATE, SIZES, SCORES):
        for how, damage in JSON_DAMAGES.items():
            yield resumed(f"{file}: {how}", lambda folder, file=file, damage=damage: change(folder / file, damage), file)
        yield resumed(f"{file}: absent", lambda folder, file=file: (folder / file).unlink(), file)
    for how, damage in DAMAGES.items():
        yield resumed(f"{REPAIRED}: {how}", lambda folder, damage=damage: change(folder / REPAIRED, damage), REPAIRED)
    yield resumed(f"{REPAIRED}: absent", lambda folder: (folder / REPAIRED).unlink(), REPAIRED)
    yield resumed(
        f"{REPAIRED}: another model's",
        lambda folder: save_file({"a": torch.zeros(2)}, folder / REPAIRED),
        REPAIRED,
    )
    yield from _values()
    yield from _other_runs()


def _values() -> Iterator[Fault]:
    values: dict[tuple[str, ...], list[Any]] = {
        (PLAN, "kept"): [None, [], "all", 3, {}],
        (PLAN, "kept", GROUP): [
            None,
            "all",
            [],
            [0.5, 1.5],
            [True, 5],
            ["0", "1"],
            [3, 1],
            [0, 0],
            [-1, 2],
            [0, 99],
            {"0": 1},
            [None],
        ],
        (PLAN, "sizes"): [None, [], {}, 3],
        (PLAN, "sizes", GROUP): [None, "24", 0, -1, 2.5, True, [24]],
        (PLAN, "parameters_before"): [None, "many", 0, -1, [], True, 2.5],
        (PLAN, "parameters_after"): [None, "many", 0, -1, []],
        (PLAN, "layout"): [None, 3, []],
        (PLAN, "model_type"): [None, 3, []],
        (PLAN, "seed"): ["x", [], None],
        (PLAN, "notes"): [None, 3, [3], {}],
        (PLAN, "versions"): [3, []],
        (PLAN, "criterion"): [None, 3, []],
        (PLAN, "criterion_args"): [3, "x", []],
        (PLAN, "fingerprint"): [3, []],
        (PLAN, "format_version"): [None, 2, "1", []],
        (STATE, "global_step"): [None, "1", -1, 0, 3, 99, 2.5, 10**9, [], True],
        (STATE, "log_history"): ["x", 3, {}, [3], [None]],
        (STATE, "options"): ["x", 3, []],
        (STATE, "options", "target_reduction"): [0.9, "x", None],
        (SIZES, GROUP): [None, "12", 0, -1, 2.5, 99, [], True],
        (SCORES, "rounds"): [None, 3, {}, "x", [3], [{GROUP: 3}], [{GROUP: {"units": "x"}}]],
        (SCORES, "format_version"): [None, 9, "x"],
    }
    for (file, *names), options in values.items():
        for value in options:
            yield resumed(
                f"{file}: {'.'.join(names)} = {json.dumps(value)}"[:100],
                lambda folder, file=file, names=names, value=value: set_json(folder / file, *names, to=value),
            )
    for file, name in (
        (PLAN, "kept"),
        (PLAN, "sizes"),
        (PLAN, "model_type"),
        (PLAN, "format_version"),
        (SCORES, "rounds"),
        (SIZES, GROUP),
    ):
        yield resumed(f"{file} without {name}", lambda folder, file=file, name=name: drop_json(folder / file, name))
    yield resumed(
        f"{PLAN} without a group",
        lambda folder: (drop_json(folder / PLAN, "kept", GROUP), drop_json(folder / PLAN, "sizes", GROUP)),
    )
    yield resumed(f"{PLAN} with a field too many", lambda folder: set_json(folder / PLAN, "extra", to=1))
    yield resumed(f"{SIZES} with a group too many", lambda folder: set_json(folder / SIZES, "layers.9.ffn", to=1))


def _other_runs() -> Iterator[Fault]:
    """Options that decide the result must be those that the run began with."""
    others: dict[str, Any] = {
        "target_reduction": 0.4,
        "target_scope": "all",
        "units": "ffn",
        "layout": "per_layer",
        "criterion": "magnitude",
        "allocation": "fisher",
        "num_rounds": 3,
        "recalibrate_every": 2,
        "compensation": "none",
        "ridge": 0.5,
        "round_to": 2,
        "min_ffn_units": 8,
        "min_kv_groups": 2,
        "seed": 1,
    }
    for name, value in others.items():
        yield resumed(f"resumed with --{name} {value}", lambda folder: None, f"`{name}`", **{name: value})

    def other_model(stage: Stage) -> list[str]:
        folder = stage.copy("checkpoint")
        return stage.words(
            "prune", **SAME | {"resume_from_checkpoint": folder, "model_name_or_path": stage.sources / "bert", "units": "ffn"}
        )

    yield Fault("resumed with another model", other_model, ("units",))

    def moved(to: str) -> Callable[[Stage], list[str]]:
        def make(stage: Stage) -> list[str]:
            folder = stage.copy("checkpoint")
            if to == "a file":
                return stage.words("prune", **SAME | {"resume_from_checkpoint": folder / PLAN})
            if to == "a model":
                return stage.words("prune", **SAME | {"resume_from_checkpoint": stage.sources / "llama"})
            if to == "an empty folder":
                shutil.rmtree(folder)
                folder.mkdir()
            if to == "a Trainer's":
                shutil.rmtree(folder)
                folder.mkdir()
                (folder / "trainer_state.json").write_text('{"global_step": 3}')
            return stage.words("prune", **SAME | {"resume_from_checkpoint": folder})

        return make

    for to in ("a file", "a model", "an empty folder", "a Trainer's"):
        yield Fault(f"resumed from {to}", moved(to))
