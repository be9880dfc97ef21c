"""How studies show what they found: aligned tables."""

from __future__ import annotations


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows of a Markdown table, the first of them its head, with columns of even width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        words = [row[0].ljust(widths[0]), *(word.rjust(width) for word, width in zip(row[1:], widths[1:], strict=True))]
        lines.append(f"| {' | '.join(words)} |")
    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return [lines[0], f"|{rule}|", *lines[1:]]
