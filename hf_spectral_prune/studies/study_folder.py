"""The folder of a study: its protocol, and a JSON file for everything that is finished, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..utils.files import plain, write_text
from ..utils.types import Json

logger = logging.get_logger(__name__)

_PROTOCOL = "protocol.json"
# What must be the same for all that lies in a folder, with the words of the error where it is not.
_FIXED = {
    "model": "another model",
    "calibration": "other calibration data",
    "evaluation": "other held-out data or metrics",
    "package": "another version of this package",
}


@dataclass(frozen=True)
class StudyFolder:
    """A kind of folder.

    Attributes:
        holds: what lies in it, with its article.
        parts: its subfolders.
        results: the files that a finished study leaves.
        under: the name that its protocol stands under in the file; without one, it is the file's own object.
    """

    holds: str
    parts: tuple[str, ...]
    results: tuple[str, ...]
    under: str | None = None

    def check(self, folder: str | Path) -> None:
        """Checks, before any work, that a folder is new, empty, or one of this kind.

        Raises:
            ValueError: it is a file or holds something else, or its protocol cannot be read.
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
                f"`output_dir` `{folder}` holds something else than {self.holds} (it has `{names[0]}`). Name another folder."
            )
        self._read_protocol(folder)

    def _read_protocol(self, folder: Path) -> Json:
        """What tells the folder's model and data from others, by the names in `_FIXED`."""
        try:
            protocol = json.loads((folder / _PROTOCOL).read_text(encoding="utf-8"))
            protocol = protocol if self.under is None else protocol[self.under]
            return {name: _identity(protocol[name]) for name in _FIXED}
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"`{folder / _PROTOCOL}` is not the protocol of {self.holds}. Name another folder.") from None

    def open(self, folder: str | Path, protocol: Json, overwrite: bool = False) -> None:
        """Makes the folder, or makes sure that what lies in it belongs to this study; `overwrite` throws that away.

        Raises:
            ValueError: see `check`; or what lies in it is of another model, calibration or held-out data.
        """
        folder = Path(folder)
        self.check(folder)
        if overwrite:
            old = [path for part in self.parts for path in folder.glob(f"{part}/*") if path.is_file()]
            for path in [*old, *(folder / name for name in (*self.results, _PROTOCOL))]:
                path.unlink(missing_ok=True)
        elif (folder / _PROTOCOL).is_file():
            before = self._read_protocol(folder)
            differing = [words for name, words in _FIXED.items() if before[name] != _identity(protocol[name])]
            if differing:
                raise ValueError(
                    f"`output_dir` `{folder}` holds {self.holds} of {' and '.join(differing)}, whose figures cannot be compared "
                    "with new ones. Name another folder, or set `overwrite_output_dir` to start anew."
                )
        folder.mkdir(parents=True, exist_ok=True)
        # The protocol first: it is what tells the folder from any other, also after a kill.
        content = plain(protocol if self.under is None else {self.under: protocol})
        write_text(folder / _PROTOCOL, json.dumps(content, indent=2) + "\n")
        for part in self.parts:
            (folder / part).mkdir(exist_ok=True)


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix in (".tmp", ".partial")


def _identity(part: Any) -> Any:
    """What tells a model or data from another: its digest."""
    return part["digest"] if isinstance(part, dict) else part


def read_record(path: Path, is_whole: Callable[[Json], bool]) -> Json | None:
    """The object in a record's file; None if there is none, or none that can be read and is whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and is_whole(found):
            return found
    except FileNotFoundError:
        return None
    except ValueError:
        pass
    logger.warning(f"`{path}` is damaged, so what it held is measured again.")
    return None
