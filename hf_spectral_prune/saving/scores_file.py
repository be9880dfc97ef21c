"""Scores and allocation curves of a run, for other targets of the same model: read instead of being computed again."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..criteria import Scores
from ..surgery.plan import PruningPlan
from ..utils.digests import data_digest
from ..utils.files import parse_json, written_whole
from ..utils.types import Json
from ..utils.words import in_a_line
from .output import ModelFigures

_FORMAT = 1
# Options that decide what is cut, but neither the scores nor what cutting costs.
_OF_THE_TARGET = (
    *("target_reduction", "target_bytes", "target_context", "target_tokens_per_second"),
    *("round_to", "min_ffn_units", "min_kv_groups", "min_channels"),
    "stock_class",
)


@dataclass(frozen=True)
class SharedScores:
    """What runs share that differ in their target alone.

    Attributes:
        scores: {group key: (n_units,)} of the dense model, higher = keep.
        damage: {group key: (n_units + 1,)}, see `rounds.Run`; None where widths do not depend on it.
        basis: {name: value} of all that they follow from, see `basis_of`.
    """

    scores: Scores
    damage: dict[str, Tensor] | None
    basis: Json

    def save(self, path: str | Path) -> None:
        """Writes them to a file, whole or not at all."""
        parts = {"scores": self.scores, "damage": self.damage or {}}
        arrays: dict[str, Any] = {
            f"{part}/{key}": value.cpu().numpy() for part, found in parts.items() for key, value in found.items()
        }
        about = json.dumps({"format": _FORMAT, "basis": self.basis})
        with written_whole(Path(path)) as temporary, temporary.open("wb") as file:
            numpy.savez_compressed(file, about=numpy.frombuffer(about.encode(), dtype=numpy.uint8), **arrays)

    @classmethod
    def load(cls, path: str | Path) -> SharedScores:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is something else.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"`scores` `{path}` does not exist. Name a file that a run with `save_scores` wrote.")
        try:
            with numpy.load(path, allow_pickle=False) as file:
                about = parse_json(file["about"].tobytes().decode())
                if about["format"] != _FORMAT:
                    raise ValueError(f"it has format {about['format']}, and {_FORMAT} is read")
                found: dict[str, dict[str, Tensor]] = {"scores": {}, "damage": {}}
                for name in (name for name in file.files if name != "about"):
                    part, _, key = name.partition("/")
                    found[part][key] = torch.from_numpy(file[name])
                basis = dict(about["basis"])
        except (ValueError, TypeError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"`scores` `{path}` holds no scores of a run ({in_a_line(error)}). Name a file that a run with "
                "`save_scores` wrote."
            ) from None
        return cls(found["scores"], found["damage"] or None, basis)

    @classmethod
    def check_place(cls, path: str | Path) -> None:
        """Tells before the work of a file of scores that cannot be written, or would take the place of something else.

        Raises:
            ValueError: there is a folder, or a file that no run with `save_scores` wrote.
        """
        if Path(path).is_dir():
            raise ValueError(f"`save_scores` `{path}` is a folder. Name a file in it, e.g. `{Path(path) / 'scores.npz'}`.")
        if Path(path).exists():
            try:
                cls.load(path)
            except (ValueError, OSError):
                raise ValueError(
                    f"`save_scores` `{path}` is there already and holds no scores of a run, so it is not replaced. Name "
                    "another file."
                ) from None

    def check(self, basis: Json, place: str) -> SharedScores:
        """These scores, if they are of this model, these data and options.

        Raises:
            ValueError: one differs; names it and both values.
        """
        for name in basis.keys() | self.basis.keys():
            if basis.get(name) != self.basis.get(name):
                raise ValueError(
                    f"`scores` `{place}` was written by a run whose `{name}` was {self.basis.get(name)!r}, and it is "
                    f"{basis.get(name)!r} now. Use the old value, or leave `scores` out."
                )
        return self


@dataclass(frozen=True)
class Known:
    """What is known of a dense model before a run: from a run to another target, or from a file of scores.

    Attributes:
        shared: scores and allocation curves; None where they are still to be computed.
        dense: its figures; None where they are still to be taken.
        within: plan of a smaller target, whose removed units stay away.
    """

    shared: SharedScores | None = None
    dense: ModelFigures | None = None
    within: PruningPlan | None = None


def basis_of(options: Json, model: PreTrainedModel) -> Json:
    """What scores follow from: `deciding_options` without those of the target, and the digest of the weights."""
    kept = {name: value for name, value in options.items() if name not in _OF_THE_TARGET}
    return kept | {"weights": data_digest([model.state_dict()])}
