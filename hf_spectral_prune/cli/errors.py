"""What an exception says at the command line: one line, and the exit status."""

from __future__ import annotations

import traceback
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
# Messages of libraries may quote a whole file, or list every name they know.
_MOST_CHARACTERS = 1500
_WHOLE = "`CRIA_TRACEBACK=1` shows the whole traceback"
_LESS_MEMORY = (
    "Lower `calibration_batch_size`, `max_seq_length` or `max_moment_gib`, use `--dtype bfloat16`, or a machine with more memory."
)


def told(error: Exception) -> tuple[str, int]:
    """The line of an exception, and the exit status that goes with it.

    2 is for what the user can mend: bad input, a file or a connection that fails, a package that is missing, too little memory.
    1 is for a run that failed by itself (this package says so by a RuntimeError) and for everything else, which is a fault of
    the package and to be reported.
    """
    text = _flat(str(error))
    place, own = _place(error)
    if _is_a(error, "MemoryError", "OutOfMemoryError") or "can't allocate memory" in text:
        return f"There is not enough memory ({place}{f': {text}' if text else ''}). {_LESS_MEMORY}", 2
    if isinstance(error, ImportError):
        return f"{text} (needed by {place}). Install what is missing, e.g. `pip install {error.name or 'PACKAGE'}`.", 2
    if (own and isinstance(error, (ValueError, OSError))) or _is_a(error, "HfHubHTTPError"):
        return text, 2
    if own and type(error) is RuntimeError:
        return text, 1
    kind = type(error).__name__
    if isinstance(error, (ValueError, OSError)):
        # A library's own words about its input, which rarely say what it was.
        return f"{text.rstrip('.') or kind} ({kind} in {place}; {_WHOLE}).", 2
    return (
        f"{kind} in {place}: {text.rstrip('.')}. This is a fault of the package: please report it with the command and the "
        f"traceback ({_WHOLE})."
    ), 1


def _is_a(error: Exception, *names: str) -> bool:
    # By name: torch and huggingface_hub are not imported to answer a mistyped flag.
    return any(cls.__name__ in names for cls in type(error).__mro__)


def _flat(text: str) -> str:
    """One line of bounded length, without characters that would move the cursor of a terminal."""
    line = " ".join(text[: 4 * _MOST_CHARACTERS].split())
    line = "".join(character if character.isprintable() else repr(character)[1:-1] for character in line)
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}..."


def _place(error: Exception) -> tuple[str, bool]:
    """`folder/file.py:line` of the last line of this package that ran, and whether it raised the exception itself."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        path = Path(frame.filename)
        if path.is_relative_to(_PACKAGE):
            return f"{path.relative_to(_PACKAGE)}:{frame.lineno}", frame is frames[-1]
    return "the command line", False
