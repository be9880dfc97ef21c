"""PruningPlan: which units stay, on disk and in memory; the only thing that surgery reads."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import TypeGuard, get_type_hints

import torch
from torch import Tensor

from ..utils.files import parse_json, read_utf8, write_text
from ..utils.option_types import fitted
from ..utils.types import Json

FORMAT_VERSION = 1


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return _is_whole(value) and value >= 1


@dataclass(frozen=True)
class PruningPlan:
    """Which units stay, and the figures that were known when it was made.

    Attributes:
        model_type: `config.model_type` of the model it was made for.
        sizes: units per group before the cut.
        kept: indices of the kept units per group, ascending, in the numbering before the cut.
        parameters_before: exact count of the model, tied weights once.
        parameters_after: exact count of the rewritten model, predicted before the cut.
        layout: "uniform" or "per_layer".
        criterion: name of the criterion, with its options in `criterion_args`.
        seed: seed of the run.
        fingerprint: digest of the weights it was made for, or None.
        notes: sentences for the user, e.g. about a head count that was moved to a loadable one.
        versions: library versions of the run.
    """

    model_type: str
    sizes: dict[str, int]
    kept: dict[str, tuple[int, ...]]
    parameters_before: int
    parameters_after: int
    layout: str = "uniform"
    criterion: str = ""
    criterion_args: Json = field(default_factory=dict)
    seed: int = 42
    fingerprint: str | None = None
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(_is_count(size) for size in self.sizes.values()):
            raise ValueError("The plan's sizes are not all whole numbers of at least 1. Make the plan again.")
        for key, kept in self.kept.items():
            if not kept:
                raise ValueError(
                    f"The plan's kept units of `{key}` are none, which would empty the layer, not ascending indices. Keep some."
                )
            ascending = all(map(_is_whole, kept)) and all(a < b for a, b in pairwise(kept))
            if not ascending or kept[0] < 0 or kept[-1] >= self.sizes[key]:
                raise ValueError(
                    f"The plan's kept units of `{key}` are not ascending indices within 0..{self.sizes[key] - 1}. "
                    "Make the plan again instead of editing it."
                )

    @property
    def reduction(self) -> float:
        """Fraction of all parameters that leaves the model."""
        return 1 - self.parameters_after / self.parameters_before

    def summary(self) -> str:
        """The plan in a few lines: parameters, and the units of each kind."""
        figures = f"{self.parameters_before:,} -> {self.parameters_after:,} parameters (-{100 * self.reduction:.1f} %)"
        lines = [f"{figures}, layout `{self.layout}`, criterion `{self.criterion}`"]
        kinds: dict[str, list[str]] = {}
        for key in self.kept:
            kinds.setdefault(key.rpartition(".")[2] if key.startswith("layers.") else "channels", []).append(key)
        for kind, keys in kinds.items():
            widths = [len(self.kept[key]) for key in keys]
            before = sum(self.sizes[key] for key in keys)
            lines.append(
                f"{kind}: {before:,} -> {sum(widths):,} units in {len(keys)} groups, {min(widths):,} to {max(widths):,} in each"
            )
        return "\n".join([*lines, *self.notes])

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return f"<PruningPlan: {self.summary().splitlines()[0]}>"

    def kept_index(self, key: str) -> Tensor:
        """(n_kept,) int64 indices of one group."""
        return torch.tensor(self.kept[key], dtype=torch.int64)

    def kept_indices(self) -> dict[str, Tensor]:
        """{group key: (n_kept,) int64 indices} of all groups."""
        return {key: self.kept_index(key) for key in self.kept}

    def then(self, later: PruningPlan) -> PruningPlan:
        """This plan followed by `later`, as one plan in this plan's numbering."""
        if set(self.kept) != set(later.kept) or any(len(self.kept[key]) != later.sizes[key] for key in self.kept):
            raise ValueError("The later plan does not start where this plan ends: its groups or sizes differ.")
        kept = {key: tuple(self.kept[key][index] for index in later.kept[key]) for key in self.kept}
        return replace(
            later,
            model_type=self.model_type,
            sizes=self.sizes,
            kept=kept,
            parameters_before=self.parameters_before,
            fingerprint=self.fingerprint,
            notes=(*self.notes, *(note for note in later.notes if note not in self.notes)),
        )

    def to_json(self) -> str:
        """JSON text, one group a line."""
        payload = {"format_version": FORMAT_VERSION, **asdict(self)}
        kept = payload.pop("kept")
        head = json.dumps(payload, indent=2)[:-2]
        rows = ",\n".join(f"    {json.dumps(key)}: {json.dumps(list(kept[key]))}" for key in kept)
        return f'{head},\n  "kept": {{\n{rows}\n  }}\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: not a plan, or a format of another version.
        """
        try:
            payload = parse_json(text)
            version = payload.pop("format_version")
        except (ValueError, AttributeError, TypeError, KeyError) as error:
            raise ValueError(f"This is not a pruning plan ({error}). Give the `pruning_plan.json` of a run.") from None
        if version != FORMAT_VERSION:
            raise ValueError(f"The plan has format {version}, this package reads {FORMAT_VERSION}. Make the plan again.")
        try:
            payload["kept"] = {key: tuple(kept) for key, kept in payload["kept"].items()}
            payload["notes"] = tuple(fitted("notes", payload["notes"], list[str]))
            hints = get_type_hints(cls)
            for name in payload.keys() & hints.keys() - {"kept", "notes"}:
                fitted(name, payload[name], hints[name])
            plan = cls(**payload)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"The plan lacks or misnames a field ({error}). Make the plan again.") from None
        if not (_is_count(plan.parameters_before) and _is_count(plan.parameters_after)):
            raise ValueError("The plan's parameters are not whole numbers of at least 1. Make the plan again.")
        return plan

    def save(self, path: str | Path) -> None:
        """Writes the plan to a file, whole or not at all."""
        write_text(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Reads a plan file."""
        return cls.from_json(read_utf8(Path(path)))
