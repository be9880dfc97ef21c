"""Files written whole or not at all, room for them on the disk, values as plain JSON, and files that are not what they seem."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ..utils.types import Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

_HEAD = 512  # bytes that tell what a file is
# Bytes that a folder takes besides its weights: configs, tokenizer, plan, report with its plots.
SMALL_FILES = 2**20
# Seconds to wait for another run's lock; a moment is enough to take over that of a process that has died.
LOCK_PATIENCE = 0.5


def plain(value: object) -> Any:
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


def read_within(file: Path, most: int = 2**20) -> str:
    """The text of a file that no one needs to be large.

    Raises:
        ValueError: it has more than `most` bytes, or is not UTF-8.
    """
    size = file.stat().st_size
    if size > most:
        raise ValueError(
            f"`{file}` has {size / 1e6:,.1f} MB, and no more than {most / 1e6:,.1f} MB of such a file are read. "
            "Take a smaller one."
        )
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"`{file}` is not UTF-8 (byte {error.start}). Save it in that encoding.") from None


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_png(figure: Figure, path: Path, dpi: int, **options: Any) -> None:
    """Writes a matplotlib figure as a PNG, whole or not at all, without the library's version: equal figures give equal files."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=dpi, metadata={"Software": None}, **options)


def parse_json(text: str) -> Any:
    """`json.loads`, to which text that is nested too deeply is a ValueError like any other."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_utf8(path: Path) -> str:
    """The text of a file.

    Raises:
        ValueError: it is not UTF-8; names the file.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        what = strange_content(path) or f"is not UTF-8 text (byte {error.start}). Take the file that was written first."
        raise ValueError(f"`{path}` {what}") from None


def read_object(path: Path, remedy: str) -> Json:
    """The object in a JSON file.

    Args:
        remedy: what to do about a file that holds something else: a sentence.

    Raises:
        ValueError: it is no JSON or no object; names the file, the cause and the remedy.
    """
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
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


def num_bytes(model: nn.Module) -> int:
    """Bytes that the parameters take, on disk as in memory, tied ones counted once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def check_room(what: str, place: Path, needed: int) -> None:
    """Tells of a disk that has no room for what will be written.

    Args:
        what: what the message calls it, with a capital letter.
        place: a folder, or where one will be made.
        needed: bytes.

    Raises:
        OSError: too few are free; says how many.
    """
    free = _free(place)
    if free < needed:
        raise OSError(_no_room(what, place, "there is too little room", needed, free))


@contextmanager
def room_told(what: str, place: Path, needed: int) -> Iterator[None]:
    """Tells of whatever keeps files from being written inside in one line, with the room that they need.

    Raises:
        OSError: what was raised inside, as `check_room` would tell it.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch.save, when a write fails
            raise
        reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
        raise OSError(_no_room(what, place, reason, needed, _free(place))) from error


def _free(place: Path) -> int:
    return shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free


def _no_room(what: str, place: Path, reason: str, needed: int, free: int) -> str:
    return (
        f"{what} cannot be written to `{place}` ({reason}): it needs {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free. "
        "Make room, or name a folder on another disk."
    )
