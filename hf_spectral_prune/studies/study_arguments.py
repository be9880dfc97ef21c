"""StudyArguments: what every study of criteria is asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..arguments import _field
from ..utils.types import Json
from ..utils.words import did_you_mean, listed, one_line

if TYPE_CHECKING:
    from ..criteria import Criterion

_ARGS_EXAMPLE = '{"spectral-loss": {"criterion": "spectral", "signals": "loss"}}'


@dataclass
class StudyArguments:
    """Options that the studies share; each says more of its own.

    Raises:
        ValueError: a value that cannot work; says what to set instead.
    """

    output_dir: str | None = _field(None, "Folder for the results; an unfinished study in it is continued.")
    overwrite_output_dir: bool = _field(False, "Discard the study in `output_dir` and start over.")
    criteria: list[str] = _field(
        ["spectral", "energy", "magnitude", "random"],
        "Names of criteria, or labels that `criteria_args` explains.",
    )
    criteria_args: Json | str | None = _field(
        None,
        f"Options for the names in `criteria`, as JSON; `criterion` says what a label stands for: '{_ARGS_EXAMPLE}'.",
    )
    units: list[str] = _field(["ffn", "heads"], "Kinds of unit: `ffn` neurons and `heads` (key/value groups).")
    disable_tqdm: bool = _field(False, "Show no progress bars.")

    def __post_init__(self) -> None:
        from ..models.families import FAMILIES  # late, as all that needs torch: `--help` does without

        if isinstance(self.criteria_args, str):
            try:
                self.criteria_args = json.loads(self.criteria_args)
            except json.JSONDecodeError as error:
                raise ValueError(f"`criteria_args` is not JSON ({error}). Write it like '{_ARGS_EXAMPLE}'.") from None
        options = self.criteria_args or {}
        if not isinstance(options, dict) or not all(isinstance(value, dict) for value in options.values()):
            raise ValueError(f"`criteria_args` must be a JSON object of objects, like '{_ARGS_EXAMPLE}'.")
        self.criteria_args = options
        check_list("criteria", self.criteria, str, "`spectral energy random`")
        check_list("units", self.units, str, "`ffn heads`", sorted({row.kind for family in FAMILIES for row in family.kinds}))
        for label in options:
            if label not in self.criteria:
                hint = did_you_mean(label, self.criteria)
                raise ValueError(f"`criteria_args` has `{label}`, which is not among the `criteria`.{hint}")

    def named_criterion(self, label: str) -> tuple[str, Json, Criterion]:
        """Name, options and criterion that a label stands for.

        Raises:
            ValueError: an unknown criterion, option or value, or a plug-in that cannot be loaded.
        """
        from ..criteria import make_criterion

        assert isinstance(self.criteria_args, dict)
        options = dict(self.criteria_args.get(label, {}))
        name = options.pop("criterion", label)
        try:
            return name, options, make_criterion(name, options)
        except Exception as error:  # a plug-in's class can fail in any way
            raise ValueError(f"`{label}` of `criteria`: {one_line(error)}") from error


def check_list(
    name: str, values: object, kind: type | tuple[type, ...], example: str, choices: Sequence[str] | None = None
) -> None:
    """Checks for a list of one type without repeats.

    Args:
        name: of the option.
        example: of its value, in backticks.
        choices: what an entry may be; None for anything.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(values, list) or not values:
        raise ValueError(f"`{name}` is {values!r}; it must be a list with at least one entry, like {example}.")
    for value in values:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"`{name}` has {value!r}; give entries like {example}.")
        if choices is not None and value not in choices:
            allowed = listed(choices)
            raise ValueError(f"`{name}` has `{value}`; choose from {allowed}.{did_you_mean(str(value), choices)}")
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ValueError(
            f"`{name}` has `{twice}` twice. Name each once (a criterion with other options takes a label of its own)."
        )
