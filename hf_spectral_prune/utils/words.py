"""Words for messages: names in backticks, near spellings, errors in one line."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


def install_words(extra: str) -> str:
    """How to install this package with an extra; it is on no index yet."""
    return f"run `pip install -e '.[{extra}]'` in a clone of this package's repository"


def did_you_mean(word: object, known: Iterable[str], prefix: str = "", otherwise: str = "") -> str:
    """A sentence (with a space before it) that names the nearest known word, or `otherwise` if none is near."""
    # A slip of the finger is nearer than this; words that only share letters are not, and naming one would mislead.
    match = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.75)
    return f" Did you mean `{prefix}{match[0]}`?" if match else otherwise


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without the stop at its end; its type where it has none."""
    return _unended((str(error).strip().splitlines() or [type(error).__name__])[0])


def in_a_line(error: BaseException) -> str:
    """All of an error's text, in one line, without the stop at its end; its type where it has none."""
    return _unended(" ".join(str(error).split())) or type(error).__name__


def _unended(text: str) -> str:
    """A sentence to put into another: without its stop, but with the dots of what was cut off."""
    return text if text.endswith("...") else text.removesuffix(".")


def one_line(error: Exception) -> str:
    """An error in one line, with its type where that is not plain bad input."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def shortened(text: str, most: int = 200) -> str:
    """The text, cut off after that many characters."""
    return text if len(text) <= most else f"{text[:most]}..."


def listed(names: Iterable[object]) -> str:
    """Names in backticks, with commas between them."""
    return ", ".join(f"`{name}`" for name in names)


def named(names: Collection[str], most: int = 3) -> str:
    """Names in backticks, each in one line: the first few, and how many more there are."""
    shown = [f"`{' '.join(name.split())[:100]}`" for name in list(names)[:most]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
