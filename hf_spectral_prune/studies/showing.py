"""How studies show what they found: aligned tables, and the colours, marks and legend of their plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which people with any form of colour blindness can tell apart, without its yellow (too pale on
# white) and its black (for what is no criterion). Marks differ as well, for print in black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# With more series than the palette has colours, four stand out and the others are grey: no colour stands for two.
HIGHLIGHTED = 4
GREY = "#9aa3b0"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
DPI = 150


def series_colours(labels: Sequence[str], first: Sequence[str] = ()) -> dict[str, str]:
    """{label: colour}, no colour twice; where there are more labels than colours, four have one and the others are grey.

    Args:
        first: labels that matter most, which have a colour in any case; then the others, in their order.
    """
    if len(labels) <= len(COLOURS):
        return dict(zip(labels, COLOURS, strict=False))
    chosen = [*dict.fromkeys([*(label for label in first if label in labels), *labels])][:HIGHLIGHTED]
    return {label: COLOURS[chosen.index(label)] if label in chosen else GREY for label in labels}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; sizes in inches."""
    # No pyplot: it would keep the figure in a global list and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def add_legend(figure: Figure) -> None:
    """One legend for all axes, to their right."""
    handles = {name: handle for axis in figure.axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=9, frameon=False)


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows of a Markdown table, the first of them its head, with columns of even width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        words = [row[0].ljust(widths[0]), *(word.rjust(width) for word, width in zip(row[1:], widths[1:], strict=True))]
        lines.append(f"| {' | '.join(words)} |")
    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return [lines[0], f"|{rule}|", *lines[1:]]
