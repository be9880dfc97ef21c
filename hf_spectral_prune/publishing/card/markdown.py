"""Text of others as Markdown: in one line, and never read as markup or HTML."""

from __future__ import annotations

import json
import re

_SPECIAL = re.compile(r"[\\`*\[\]<|]")
_SPAN = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)")


def flat(text: str) -> str:
    """One line of printable characters, in which no comment begins."""
    line = "".join(part if part.isprintable() else " " for part in " ".join(text.split()))
    return line.replace("<!--", "< !--")


def escaped(text: str) -> str:
    """Plain text: whatever Markdown would take for markup stands for itself."""
    return _SPECIAL.sub(r"\\\g<0>", flat(text))


def code(text: str) -> str:
    """A code span, whatever backticks are in it."""
    line = flat(text)
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    pad = " " if "`" in line[:1] + line[-1:] else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def prose(text: str) -> str:
    """A sentence of ours with `code` in it, which may quote others: no links and no HTML but in code, where they are text."""
    line = flat(text)
    parts, end = [], 0
    for span in _SPAN.finditer(line):
        parts += [_without_markup(line[end : span.start()]), span[0]]
        end = span.end()
    return "".join([*parts, _without_markup(line[end:])])


def _without_markup(text: str) -> str:
    return re.sub(r"[\\`<]|\](?=[(\[:])", r"\\\g<0>", text)


def cell(text: str) -> str:
    """A cell of a table."""
    return prose(text).replace("|", "\\|")


def link(words: str, address: str) -> str | None:
    """A link to a page of the web; None for an address of another kind."""
    if re.fullmatch(r"https?://[^\s<>\"\\]+", address) is None:
        return None
    return f"[{words}](<{address}>)" if re.search(r"[()]", address) else f"[{words}]({address})"


def string(text: str) -> str:
    """A Python string literal for a block of code."""
    return json.dumps(text, ensure_ascii=False).replace("<", "\\u003c")
