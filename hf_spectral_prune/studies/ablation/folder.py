"""The folder of an ablation: its protocol, the damage of every unit as it is measured, and the scores of every criterion."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ...utils.files import plain, write_text

logger = logging.get_logger(__name__)

RESULTS = ("ablation.json", "ablation.png")
_PROTOCOL, _TRUTH, _SCORES = "protocol.json", "truth", "scores"
# What must be the same for all that lies in a folder, with the words of the error where it is not.
_FIXED = {
    "model": "another model",
    "calibration": "other calibration data",
    "evaluation": "other held-out data",
    "package": "another version of this package",
}


def check_folder(folder: str | Path) -> None:
    """Checks, before any work, that a folder is new, empty, or holds an ablation.

    Raises:
        ValueError: it is a file or holds something else, or its protocol cannot be read.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"`output_dir` `{folder}` is a file. Name a folder.")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / _PROTOCOL).is_file():
        other = sorted(path.name for path in folder.iterdir())[0]
        raise ValueError(
            f"`output_dir` `{folder}` holds something else than an ablation (it has `{other}`). Name another folder."
        )
    _read_protocol(folder)


def _read_protocol(folder: Path) -> dict[str, Any]:
    try:
        protocol = json.loads((folder / _PROTOCOL).read_text(encoding="utf-8"))
        return {name: protocol["ablation"][name] for name in _FIXED}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"`{folder / _PROTOCOL}` is not the protocol of an ablation. Name another folder.") from None


def open_folder(folder: str | Path, protocol: Mapping[str, Any], overwrite: bool = False) -> None:
    """Makes the folder, or makes sure that the ablation in it is this one; `overwrite` throws it away.

    Raises:
        ValueError: see `check_folder`; or the ablation in it is of another model, calibration or held-out data.
    """
    folder = Path(folder)
    check_folder(folder)
    if overwrite:
        old = [path for part in (_TRUTH, _SCORES) for path in folder.glob(f"{part}/*.json")]
        for path in [*old, *(folder / name for name in (*RESULTS, _PROTOCOL))]:
            path.unlink(missing_ok=True)
    if (folder / _PROTOCOL).is_file():
        before = _read_protocol(folder)
        differing = [words for name, words in _FIXED.items() if _identity(before[name]) != _identity(protocol[name])]
        if differing:
            raise ValueError(
                f"`output_dir` `{folder}` holds an ablation of {' and '.join(differing)}, whose figures cannot stand beside new "
                "ones. Name another folder, or set `overwrite_output_dir` to start anew."
            )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / _PROTOCOL, json.dumps({"ablation": plain(protocol)}, indent=2) + "\n")
    for part in (_TRUTH, _SCORES):
        (folder / part).mkdir(exist_ok=True)


def _identity(part: Any) -> Any:
    """What tells a model or data from another: its digest."""
    return part["digest"] if isinstance(part, dict) else part


def read_record(path: Path, names: Collection[str]) -> dict[str, Any] | None:
    """A record of the folder with these fields; None if there is none, or none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in names}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        logger.warning(f"`{path}` is damaged, so what it held is measured again.")
        return None


def truth_path(folder: str | Path, group_key: str) -> Path:
    """File with the damage of a group's units."""
    return Path(folder) / _TRUTH / f"{group_key}.json"


def scores_path(folder: str | Path, options: Mapping[str, Any]) -> Path:
    """File with the scores of a criterion; `options` is all that decides about them beside the protocol."""
    text = json.dumps(plain(options), sort_keys=True)
    return Path(folder) / _SCORES / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record whole or not at all."""
    write_text(path, json.dumps(record) + "\n")
