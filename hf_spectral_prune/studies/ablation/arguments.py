"""What to ablate and to score, as a dataclass for HfArgumentParser and YAML recipes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...criteria import Criterion, make_criterion
from ...models.families import FAMILIES
from ...utils.words import did_you_mean, in_a_line

_ARGS_EXAMPLE = '{"spectral-loss": {"criterion": "spectral", "signals": "loss"}}'


def _field(default: Any, help: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class AblationArguments:
    """Options of a direct ablation. `cria ablate --help` prints each with its default.

    Raises:
        ValueError: a value that cannot work; says what to set instead.
    """

    output_dir: str | None = _field(None, "Folder for the results; an ablation that lies there is continued.")
    overwrite_output_dir: bool = _field(False, "Throw away an ablation that lies in `output_dir`.")
    criteria: list[str] = _field(
        ["spectral", "energy", "activation", "magnitude", "random"],
        "Criteria to hold against the truth: names of criteria, or labels that `criteria_args` explains.",
    )
    criteria_args: dict[str, Any] | str | None = _field(
        None,
        f"Options by the names in `criteria`, as JSON; `criterion` says what a label stands for: '{_ARGS_EXAMPLE}'.",
    )
    units: list[str] = _field(["ffn", "heads"], "Kinds of unit to ablate: `ffn` neurons and `heads` (key/value groups).")
    layers: list[int] | None = _field(None, "Layers to ablate in, counted from 0; by default `num_layers` evenly spaced ones.")
    num_layers: int = _field(4, "Number of evenly spaced layers, where `layers` names none.")
    units_per_layer: int = _field(64, "Units of a kind to ablate in a layer, drawn at random; all where a layer has no more.")
    top_share: float = _field(0.25, "Share of a layer's units that counts as its least important ones, for the overlap.")
    seed: int = _field(42, "Seed of the sample, of the criteria and of the intervals.")
    disable_tqdm: bool = _field(False, "No progress bars.")

    def __post_init__(self) -> None:
        if isinstance(self.criteria_args, str):
            try:
                self.criteria_args = json.loads(self.criteria_args)
            except json.JSONDecodeError as error:
                raise ValueError(f"`criteria_args` is not JSON ({error}). Write it like '{_ARGS_EXAMPLE}'.") from None
        options = self.criteria_args or {}
        if not isinstance(options, dict) or not all(isinstance(value, dict) for value in options.values()):
            raise ValueError(f"`criteria_args` must be a JSON object of objects, like '{_ARGS_EXAMPLE}'.")
        self.criteria_args = options
        _check_list("criteria", self.criteria, str, "`spectral energy random`")
        _check_list("units", self.units, str, "`ffn heads`")
        kinds = sorted({row.kind for family in FAMILIES for row in family.kinds})
        for kind in self.units:
            if kind not in kinds:
                raise ValueError(f"`units` has `{kind}`; choose from {', '.join(f'`{name}`' for name in kinds)}.")
        if self.layers is not None:
            _check_list("layers", self.layers, int, "`0 4 8`, or leave it out for evenly spaced ones")
        for name in ("num_layers", "units_per_layer"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        if not 0 < self.top_share < 1:
            raise ValueError(f"`top_share` is {self.top_share}; it must be between 0 and 1, both excluded.")
        for label in options:
            if label not in self.criteria:
                hint = did_you_mean(label, self.criteria)
                raise ValueError(f"`criteria_args` has `{label}`, which is not among the `criteria`.{hint}")

    def make_criteria(self) -> dict[str, Criterion]:
        """{label: criterion}.

        Raises:
            ValueError: an unknown criterion, option or value, or a plug-in that cannot be loaded.
        """
        assert isinstance(self.criteria_args, dict)
        made = {}
        for label in self.criteria:
            options = dict(self.criteria_args.get(label, {}))
            try:
                made[label] = make_criterion(options.pop("criterion", label), options)
            except Exception as error:  # a plug-in's class can fail in any way
                raise ValueError(f"`{label}` of `criteria`: {in_a_line(error)}") from error
        return made

    def chosen_layers(self, count: int) -> list[int]:
        """The layers to ablate in, of a model with `count` layers: those of `layers`, else the middles of equal parts.

        Raises:
            ValueError: `layers` has one that the model does not have.
        """
        if self.layers is None:
            parts = min(self.num_layers, count)
            return [(2 * part + 1) * count // (2 * parts) for part in range(parts)]
        for layer in self.layers:
            if not 0 <= layer < count:
                raise ValueError(f"`layers` has {layer}, but the model's layers are 0 to {count - 1}.")
        return sorted(self.layers)


def _check_list(name: str, values: Any, kind: type, example: str) -> None:
    """Checks for a list of one type without repeats; `type`, not `isinstance`, since True is an int to Python."""
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise ValueError(f"`{name}` is {values!r}; give at least one, e.g. {example}.")
    for value in values:
        if type(value) is not kind:
            raise ValueError(f"`{name}` has {value!r}, which is no {kind.__name__}. Write it like {example}.")
    if len(set(values)) != len(values):
        raise ValueError(f"`{name}` is {list(values)}; give each once.")
