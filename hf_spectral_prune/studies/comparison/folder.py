"""The folder of a comparison: its protocol, and a file for every finished cell, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ...utils.files import plain, write_text

logger = logging.get_logger(__name__)

RESULTS = ("comparison.json", "comparison.csv", "comparison.png")
_PROTOCOL, _CELLS = "protocol.json", "cells"
# What must be the same for all cells of a folder, with the words of the error where it is not.
_FIXED = {
    "model": "another model",
    "calibration": "other calibration data",
    "evaluation": "other held-out data or metrics",
    "package": "another version of this package",
}

# A finished cell as it stands in its file: options, `parameters`, `widths`, `metrics`, `seconds`, `finished_at`, or `error`.
Record = dict[str, Any]


def check_folder(folder: str | Path, overwrite: bool = False) -> None:
    """Checks, before any work, that a folder is new, empty, or holds a comparison.

    Raises:
        ValueError: it is a file or holds something else, or a comparison by files that cannot be read.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"`output_dir` `{folder}` is a file. Name a folder.")
    # A run that was killed while it wrote leaves a temporary file, which says nothing.
    names = sorted(path.name for path in folder.iterdir() if not _is_temporary(path)) if folder.exists() else []
    if not names:
        return
    if not (folder / _PROTOCOL).is_file():
        raise ValueError(
            f"`output_dir` `{folder}` holds something else than a comparison (it has `{names[0]}`). Name another folder."
        )
    if not overwrite:
        _read_protocol(folder)


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix in (".tmp", ".partial")


def _read_protocol(folder: Path) -> dict[str, Any]:
    """What tells the folder's model and data from others, by the names in `_FIXED`."""
    try:
        protocol = json.loads((folder / _PROTOCOL).read_text(encoding="utf-8"))
        return {name: _identity(protocol[name]) for name in _FIXED}
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        raise ValueError(
            f"`{folder / _PROTOCOL}` is not the protocol of a comparison. Name another folder or set `overwrite_output_dir`."
        ) from None


def open_folder(folder: str | Path, protocol: Mapping[str, Any], overwrite: bool = False) -> None:
    """Makes the folder, or makes sure that the comparison in it is this one; `overwrite` throws its cells away.

    Raises:
        ValueError: see `check_folder`; or the comparison in it is of another model, calibration or held-out data.
    """
    folder = Path(folder)
    check_folder(folder, overwrite)
    if overwrite:
        for path in [*folder.glob(f"{_CELLS}/*"), *(folder / name for name in RESULTS)]:
            path.unlink(missing_ok=True)
    elif (folder / _PROTOCOL).is_file():
        before = _read_protocol(folder)
        differing = [words for name, words in _FIXED.items() if before[name] != _identity(protocol[name])]
        if differing:
            raise ValueError(
                f"`output_dir` `{folder}` holds a comparison of {' and '.join(differing)}, and its cells cannot stand beside new "
                "ones. Name another folder, or set `overwrite_output_dir` to start anew."
            )
    folder.mkdir(parents=True, exist_ok=True)
    # The protocol first: it is what tells the folder from any other, also after a kill.
    write_text(folder / _PROTOCOL, json.dumps(protocol, indent=2) + "\n")
    (folder / _CELLS).mkdir(exist_ok=True)


def _identity(part: Any) -> Any:
    """What tells a model or data from another: its digest."""
    return part["digest"] if isinstance(part, dict) else part


def read_cell(folder: str | Path, key: str) -> Record | None:
    """The record of a finished cell; None if there is none, or none that can be read."""
    path = Path(folder) / _CELLS / f"{key}.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["error"] is not None or {"metrics", "parameters", "widths", "seconds"} <= set(record):
            return record
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError):
        pass
    logger.warning(f"`{path}` is damaged, so its cell is run again.")
    return None


def write_cell(folder: str | Path, key: str, record: Record) -> Record:
    """Writes a cell's record, with the time, whole or not at all; returns it as it will be read."""
    record = plain(record | {"finished_at": datetime.now(UTC).isoformat(timespec="milliseconds")})
    write_text(Path(folder) / _CELLS / f"{key}.json", json.dumps(record, indent=1) + "\n")
    return record
