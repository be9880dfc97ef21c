"""What to compare, as a dataclass for HfArgumentParser and YAML recipes, and the cells that it makes."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import asdict, dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, cast

from ...arguments import SpectralPruningArguments, _field
from ...utils.types import Json, Options
from ...utils.words import one_line
from ..study_arguments import StudyArguments, check_list

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from ...criteria import Criterion

_COMPENSATIONS = ("none", "least_squares", "sequential")
_RECOVERIES = ("none", "full", "lora", "distill", "blocks")
# Options of a pruning run that make a cell what it is, whatever its criterion.
_CELL_OPTIONS = (
    "criterion",
    "target_reduction",
    "target_scope",
    "units",
    "layout",
    "allocation",
    "round_to",
    "min_ffn_units",
    "min_kv_groups",
    "compensation",
    "recovery",
    "seed",
)


def _as_in_prune(name: str) -> Any:
    """The field of SpectralPruningArguments: its default and its help text."""
    (entry,) = (entry for entry in dataclasses.fields(SpectralPruningArguments) if entry.name == name)
    if entry.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=entry.default_factory, metadata=entry.metadata)
    return dataclasses.field(default=entry.default, metadata=entry.metadata)


@dataclass
class ComparisonArguments(StudyArguments):
    """Options of a comparison. `cria compare --help` prints each with its default.

    Raises:
        ValueError: a value that cannot work; says what to set instead.
    """

    output_dir: str | None = _field(None, "Folder for the cells and the results; an unfinished comparison in it is continued.")
    overwrite_output_dir: bool = _field(False, "Discard the comparison in `output_dir` and start over.")
    criteria: list[str] = _field(
        ["spectral", "energy", "activation_weights", "magnitude", "random"],
        "Criteria to compare: names of criteria, or labels that `criteria_args` explains.",
    )
    reductions: list[float] = _field([0.1, 0.2, 0.3, 0.5], "Fractions of the parameters to remove, between 0 and 1.")
    compensations: list[str] = _field(["none"], "Compensations (closed form) to try: none, least_squares, sequential.")
    recoveries: list[str] = _field(["none"], "Recoveries (training) to try: none, full, lora, distill, blocks.")
    seeds: list[int] = _field(
        [42],
        "Seeds for what is random: random criteria and recoveries. Everything else, including the choice of the calibration "
        "text, uses only the first seed.",
    )

    target_scope: Literal["all", "non_embedding", "prunable"] = _as_in_prune("target_scope")
    layout: Literal["uniform", "per_layer"] = _as_in_prune("layout")
    allocation: Literal["auto", "proportional", "scores", "loss_curves", "fisher", "search"] = _as_in_prune("allocation")
    num_allocation_samples: int | None = _as_in_prune("num_allocation_samples")
    ridge: float = _as_in_prune("ridge")
    round_to: int | None = _as_in_prune("round_to")
    min_ffn_units: int = _as_in_prune("min_ffn_units")
    min_kv_groups: int = _as_in_prune("min_kv_groups")
    recovery_args: Json | str | None = _as_in_prune("recovery_args")
    training_args: Json | str | None = _as_in_prune("training_args")
    disable_tqdm: bool = _as_in_prune("disable_tqdm")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_list("reductions", self.reductions, (int, float), "`0.1 0.2`")
        check_list("compensations", self.compensations, str, "`none least_squares`", _COMPENSATIONS)
        check_list("recoveries", self.recoveries, str, "`none lora`", _RECOVERIES)
        check_list("seeds", self.seeds, int, "`0 1 2`")
        for reduction in self.reductions:
            if not 0 < reduction < 1:
                raise ValueError(f"`reductions` has {reduction}; each must be between 0 and 1, both excluded.")

    def pruning_arguments(self, **fields: Any) -> SpectralPruningArguments:
        """The options of one pruning run; `fields` wins."""
        known = {entry.name for entry in dataclasses.fields(SpectralPruningArguments)} - {"output_dir", "overwrite_output_dir"}
        # Lists and dicts are copied: each run checks and completes its own.
        shared = {name: copy.copy(value) for name, value in vars(self).items() if name in known}
        if self.allocation == "auto" and self.layout == "uniform":
            shared["allocation"] = "proportional"  # one shape for all criteria, so that only their choice of units differs
        return SpectralPruningArguments(**shared | {"seed": self.seeds[0]} | fields)


# ---- the cells


@dataclass(frozen=True)
class Cell:
    """One pruning run of a comparison.

    Attributes:
        label: the criterion's name in the table.
        criterion: the criterion with its options.
        args: the run's options.
    """

    label: str
    criterion: Criterion
    args: SpectralPruningArguments

    def options(self) -> Json:
        """All that decides about its figures, but for the model and the data."""
        args = self.args
        names = [*_CELL_OPTIONS]
        names += ["num_allocation_samples"] if args.allocation == "loss_curves" else []
        names += ["ridge"] if args.compensation == "least_squares" else []
        names += ["recovery_args", "training_args"] if args.recovery != "none" else []
        return {name: getattr(args, name) for name in names} | {"criterion_args": asdict(cast(Any, self.criterion))}


def comparison_cells(args: ComparisonArguments) -> list[Cell]:
    """All cells, criterion by criterion and seed by seed.

    Raises:
        ValueError: an unknown criterion, option or value, or a plug-in that cannot be loaded.
    """
    from ...recovery.arguments import recovery_arguments

    cells: list[Cell] = []
    labels: dict[str, str] = {}
    for label in args.criteria:
        name, options, criterion = args.named_criterion(label)
        other = labels.setdefault(f"{name} {criterion}", label)
        if other != label:
            raise ValueError(f"`{other}` and `{label}` of `criteria` are one criterion with the same options. Leave one out.")
        grid = product(args.seeds, args.reductions, args.compensations, args.recoveries)
        for seed, reduction, compensation, recovery in grid:
            if seed == args.seeds[0] or criterion.is_random or recovery != "none":
                run = args.pruning_arguments(
                    criterion=name,
                    criterion_args=options,
                    target_reduction=reduction,
                    compensation=compensation,
                    recovery=recovery,
                    seed=seed,
                )
                cells.append(Cell(label, criterion, run))
    for cell in cells:
        if cell.args.recovery != "none":
            _, training = recovery_arguments(cell.args)
            training_arguments(training)
            break
    return cells


def training_arguments(options: Options) -> TrainingArguments:
    """TrainingArguments, with one line for whatever they refuse."""
    from transformers import TrainingArguments

    try:
        return TrainingArguments(**options)
    except (TypeError, ValueError, ImportError) as error:
        raise ValueError(f"`training_args`: {one_line(error)}") from None
