"""What to ablate and to score, as a dataclass for HfArgumentParser and YAML recipes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...arguments import _field
from ..study_arguments import StudyArguments, check_list

if TYPE_CHECKING:
    from ...criteria import Criterion


@dataclass
class AblationArguments(StudyArguments):
    """Options of a direct ablation. `cria ablate --help` prints each with its default.

    Raises:
        ValueError: a value that cannot work; says what to set instead.
    """

    output_dir: str | None = _field(None, "Folder for the results; an unfinished ablation in it is continued.")
    overwrite_output_dir: bool = _field(False, "Discard the ablation in `output_dir` and start over.")
    criteria: list[str] = _field(
        ["spectral", "energy", "activation", "magnitude", "random"],
        "Criteria to compare with the measured cost: names of criteria, or labels that `criteria_args` explains.",
    )
    units: list[str] = _field(["ffn", "heads"], "Kinds of unit to ablate: `ffn` neurons and `heads` (key/value groups).")
    layers: list[int] | None = _field(None, "Layers to ablate in, counted from 0; by default `num_layers` evenly spaced layers.")
    num_layers: int = _field(4, "Number of evenly spaced layers, if `layers` is not set.")
    units_per_layer: int = _field(64, "Units of each kind to ablate per layer, drawn at random; all if a layer has no more.")
    top_share: float = _field(
        0.25, "Share of a layer's units that counts as its least important ones when the overlap is computed."
    )
    seed: int = _field(42, "Seed of the sample, of the criteria and of the intervals.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None:
            check_list("layers", self.layers, int, "`0 4 8`, or leave it out for evenly spaced ones")
        for name in ("num_layers", "units_per_layer"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 1.")
        if not 0 < self.top_share < 1:
            raise ValueError(f"`top_share` is {self.top_share}; it must be between 0 and 1, both excluded.")

    def make_criteria(self) -> dict[str, Criterion]:
        """{label: criterion}.

        Raises:
            ValueError: an unknown criterion, option or value, or a plug-in that cannot be loaded.
        """
        return {label: self.named_criterion(label)[2] for label in self.criteria}

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
