"""Files written whole or not at all, values as plain JSON, and files that are not what they should be."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEAD = 512  # bytes that tell what a file is


def plain(value: Any) -> Any:
    """The value as strict JSON can say it: numbers that are not finite become "inf" and "nan"."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


@contextmanager
def written_whole(output: Path) -> Iterator[Path]:
    """A file to write instead of `output`; it and files beside it take their places only if nothing was raised meanwhile.

    It bears the name of `output`, in a hidden folder beside it.
    """
    scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    try:
        yield scratch / output.name
        # The named file last: where it is, the others are.
        for part in sorted(scratch.iterdir(), key=lambda part: part.name == output.name):
            os.replace(part, output.parent / part.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_png(figure: Figure, path: Path, dpi: int, **options: Any) -> None:
    """Writes a matplotlib figure as a PNG, whole or not at all, without the library's version: equal figures give equal files."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=dpi, metadata={"Software": None}, **options)


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        remedy: what to do about a file that holds something else: a sentence.

    Raises:
        ValueError: it is no JSON or no object; names the file, the cause and the remedy.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"`{path}` is nested too deeply to be read. {remedy}") from None
    except ValueError as error:
        raise ValueError(f"`{path}` {strange_content(path) or f'is not JSON ({error}). {remedy}'}") from None
    if not isinstance(value, dict):
        raise ValueError(f"`{path}` holds a {type(value).__name__}, not an object of names and values. {remedy}")
    return value


def strange_content(path: Path) -> str | None:
    """What a file is that is not what its name says, and the remedy, to follow the file's name; None if it cannot be told."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return "is empty. Get it again: a copy or download broke off."
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of git-lfs, not the file itself. Run `git lfs pull` in its folder, or download it again."
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, as a refused download leaves it. Download it again."
    if not any(head):
        return "begins with nothing but zeros, as a broken copy leaves it. Get it again."
    return None
