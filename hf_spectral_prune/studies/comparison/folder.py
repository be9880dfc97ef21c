"""What the folder of a comparison holds: a file for every finished cell, written whole or not at all."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from ...utils.files import plain, write_text
from ...utils.types import Json
from ..study_folder import StudyFolder, read_record

_CELLS = "cells"
RESULTS = ("comparison.json", "comparison.csv", "comparison.png")
FOLDER = StudyFolder("a comparison", (_CELLS,), RESULTS)

# A finished cell as it stands in its file: options, `parameters`, `widths`, `metrics`, `seconds`, `finished_at`, or `error`.
Record = Json


def read_cell(folder: str | Path, key: str) -> Record | None:
    """The record of a finished cell; None if there is none, or none that can be read."""
    return read_record(Path(folder) / _CELLS / f"{key}.json", _is_whole)


def _is_whole(record: Record) -> bool:
    return record.get("error") is not None or {"error", "metrics", "parameters", "widths", "seconds"} <= set(record)


def write_cell(folder: str | Path, key: str, record: Record) -> Record:
    """Writes a cell's record, with the time, whole or not at all; returns it as it will be read."""
    record = plain(record | {"finished_at": datetime.now(UTC).isoformat(timespec="milliseconds")})
    write_text(Path(folder) / _CELLS / f"{key}.json", json.dumps(record, indent=1) + "\n")
    return record
