"""Files of text that options name, checked before any work: the option and the file are told, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

from ..utils.files import strange_content
from .sources import READERS

_TEXT = ".txt"


def check_text_file(file: str | None, setting: str) -> None:
    """Checks that a file exists, is of a type that is read, and begins like one.

    Args:
        file: as the option gives it; None, where it is not set, is right.
        setting: name of the option.

    Raises:
        FileNotFoundError, ValueError: it does not; names the option and the file.
    """
    if file is None:
        return
    path = Path(file)
    if not path.is_file():
        what = "is a folder" if file and path.is_dir() else "does not exist"
        raise FileNotFoundError(f"`{setting}` `{file}` {what}. Name a text file.")
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix != _TEXT and suffix not in READERS:
        raise ValueError(
            f"`{setting}` `{file}` is not of a known type. Give {_TEXT}, {', '.join(READERS)}, text forms also as .gz."
        )
    strange = strange_content(path)
    if strange and not (suffix == _TEXT and "web page" in strange):  # a page may be text to calibrate on
        raise ValueError(f"`{setting}` `{file}` {strange}")
