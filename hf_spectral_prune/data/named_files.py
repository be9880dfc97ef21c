"""Files of text that options name, checked before any work: the option and the file are told, and what is wrong with it."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from pathlib import Path

from ..utils.files import strange_content
from .sources import READERS, TEXT, kind_of

_JSON = (".json", ".jsonl")
# So many brackets in a row, with at most names between them: the readers of JSON take minutes over them, or crash.
_NESTED = re.compile(rb'(?:[\[{]\s*(?:"[^"\n]{0,40}"\s*:\s*)?){200}')
_LOOKED_AT = 2**24  # bytes


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
    suffix = kind_of(path)
    if suffix != TEXT and suffix not in READERS:
        raise ValueError(
            f"`{setting}` `{file}` is not of a known type. Give {TEXT}, {', '.join(READERS)}, text forms also as .gz."
        )
    strange = strange_content(path)
    if strange and not (suffix == TEXT and "web page" in strange):  # a page may be text to calibrate on
        raise ValueError(f"`{setting}` `{file}` {strange}")
    if suffix != ".parquet":
        _check_start(path, f"`{setting}` `{file}`", suffix in _JSON)


def _check_start(path: Path, what: str, is_json: bool) -> None:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opener(path, "rb") as file:
            start = file.read(_LOOKED_AT)
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{what} is no whole gzip file ({error}). Get it again.") from None
    if is_json and (found := _NESTED.search(start)):
        line = start.count(b"\n", 0, found.start()) + 1
        raise ValueError(f"{what} is nested too deeply to be a table (line {line}). Correct the file.")
