"""What the folder of an ablation holds: the damage of every unit as it is measured, and the scores of every criterion."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

from ...utils.files import plain, write_text
from ...utils.types import Json
from ..study_folder import StudyFolder, read_record

_TRUTH, _SCORES = "truth", "scores"
FOLDER = StudyFolder("an ablation", (_TRUTH, _SCORES), ("ablation.json", "ablation.png"), under="ablation")


def read_fields(path: Path, names: Collection[str]) -> Json | None:
    """A record of the folder with these fields; None if there is none, or none that can be read."""
    found = read_record(path, lambda found: set(names) <= set(found))
    return None if found is None else {name: found[name] for name in names}


def truth_path(folder: str | Path, group_key: str) -> Path:
    """File with the damage of a group's units."""
    return Path(folder) / _TRUTH / f"{group_key}.json"


def scores_path(folder: str | Path, options: Json) -> Path:
    """File with the scores of a criterion; `options` is all that decides about them beside the protocol."""
    text = json.dumps(plain(options), sort_keys=True)
    return Path(folder) / _SCORES / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


def write_record(path: Path, record: Json) -> None:
    """Writes a record whole or not at all."""
    write_text(path, json.dumps(record) + "\n")
