"""What the report's charts are drawn with: panels in points, filled shapes and strokes, rows of layers, scales and keys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from ...utils.plot_style import LIGHT, PAGE_LETTERS, PAGE_WIDTH, SMALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

NOTE = SMALL * PAGE_LETTERS
# Above a panel stand its title and, on a line of its own, the key of its colours.
LEFT, RIGHT, TITLE, KEY, BOTTOM = 58.0, 18.0, 36.0, 22.0, 56.0
TOP = TITLE + KEY
# Scores and eigenvalues that span more than this factor are drawn on a logarithmic axis.
_LOG_FACTOR = 30.0
# Characters that a layer's name takes beside a chart at the most.
_LONGEST_NAME = 16
# Points that a character of a tick label takes.
_CHARACTER = 5.8 * PAGE_LETTERS


def new_figure(height: float, width: float = PAGE_WIDTH) -> Figure:
    # No pyplot: it would keep the figure in a global list and may look for a display.
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasAgg(figure)
    return figure


def panel(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Axes at a place given in points from the lower left corner."""
    whole_width, whole_height = figure.get_size_inches() * 72
    return figure.add_axes((left / whole_width, bottom / whole_height, width / whole_width, height / whole_height))


def panels_below_each_other(number: int, height: float, gap: float = 94.0, below: float = 0.0) -> tuple[Figure, list[Axes]]:
    """Panels of equal height below each other, the first on top, with so much more room below each."""
    gap += below
    total = TOP + number * height + (number - 1) * gap + BOTTOM + below
    figure = new_figure(total)
    bottoms = [total - TOP - (index + 1) * height - index * gap for index in range(number)]
    return figure, [panel(figure, LEFT, bottom, PAGE_WIDTH - LEFT - RIGHT, height) for bottom in bottoms]


def short_names(names: Sequence[str]) -> list[str]:
    """Names of layers for a chart: the end of long paths, or their numbers and last word, as far as that tells them apart.

    Names that neither tells apart are counted: the table below the chart has them in the same order.
    """
    paths, shared = [name.split(".") for name in names], 0
    while len(names) > 1 and all(len(path) > shared + 1 for path in paths) and len({path[-1 - shared] for path in paths}) == 1:
        shared += 1  # a last part that all of them have, such as `convolution`
    paths = [path[: len(path) - shared] for path in paths]
    ends = [_short_path(path) for path in paths]
    numbers = [_short_path([*filter(str.isdecimal, path[:-1]), path[-1]]) for path in paths]
    for short in (ends, numbers):
        if len(set(short)) == len(names):
            return short
    return [str(index) for index in range(1, len(names) + 1)]


def _short_path(parts: Sequence[str]) -> str:
    """As many parts of a path as there is room for, from its end."""
    for first in range(len(parts)):
        end = ("…" if first else "") + ".".join(parts[first:])
        if len(end) <= _LONGEST_NAME:
            return end
    return f"…{parts[-1][-_LONGEST_NAME + 1 :]}"


def reach(labels: Sequence[str]) -> float:
    """Points that the longest of the labels takes beyond what a number of three figures does."""
    return max(0.0, _CHARACTER * (max(map(len, labels), default=0) - 3))


def label_layers(axis: Axis, labels: Sequence[str], most: int) -> None:
    """Names of the layers along an axis, at most so many that they do not touch."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, len(labels)) if len(labels) <= most * step)
    shown = range(0, len(labels), step)
    axis.set_major_locator(FixedLocator([float(index) for index in shown]))
    axis.set_ticklabels([labels[index] for index in shown])
    axis.set_tick_params(length=0)


def draw_filled(axis: Axes, outlines: Sequence[Sequence[tuple[float, float]]], colour: str, alpha: float = 1.0) -> None:
    """Filled polygons as one path."""
    vertices, codes = [], []
    for outline in outlines:
        vertices += [*outline, outline[0]]
        codes += [Outline.MOVETO, *[Outline.LINETO] * (len(outline) - 1), Outline.CLOSEPOLY]
    if vertices:
        axis.add_patch(PathPatch(Outline(vertices, codes), facecolor=LIGHT[colour], linewidth=0, alpha=alpha))


def draw_strokes(axis: Axes, places: Sequence[tuple[float, float, float]], colour: str, width: float = 1.0) -> None:
    """Upright strokes (x, from, to) as one path."""
    if places:
        xs = [value for x, _, _ in places for value in (x, x, math.nan)]
        ys = [value for _, low, high in places for value in (low, high, math.nan)]
        axis.plot(xs, ys, color=LIGHT[colour], linewidth=width, solid_capstyle="butt")


def title_above_key(axis: Axes, text: str, x: float = 0.0) -> None:
    """The title of a panel, with room for a key between it and the axes."""
    axis.set_title(text, x=x, pad=7 + KEY)


def colour_key(axis: Axes, entries: Sequence[tuple[str, str]]) -> None:
    """Names of colours, above the axes on the left."""
    handles = [PathPatch(Outline([(0, 0)]), facecolor=LIGHT[colour], linewidth=0, label=name) for colour, name in entries]
    _above(axis, handles=handles, ncols=len(handles), handlelength=0.9, handleheight=0.9)


def legend(axis: Axes) -> None:
    """Names of lines and marks, above the axes on the left."""
    _above(axis, ncols=3, handlelength=1.5)


def _above(axis: Axes, **options: Any) -> None:
    axis.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        borderpad=0,
        columnspacing=1.2,
        borderaxespad=0.15,
        labelcolor=LIGHT["faint"],
        **options,
    )


def layer_rows(labels: Sequence[str], title: str, xlabel: str) -> tuple[Figure, Axes]:
    """A figure with a row for every layer, the first on top; row i reaches from y = i - 0.5 to y = i + 0.5."""
    labels, count = short_names(labels), len(labels)
    height = count * min(56.0, max(8.5, 540.0 / count))
    figure = new_figure(TOP + height + BOTTOM)
    left = LEFT + reach(labels)
    axis = panel(figure, left, BOTTOM, PAGE_WIDTH - left - RIGHT, height)
    axis.set_ylim(count - 0.5, -0.5)
    label_layers(axis.yaxis, labels, max(1, int(height / (12 * PAGE_LETTERS))))
    title_above_key(axis, title, (LEFT - left) / (PAGE_WIDTH - left - RIGHT))  # above the names too: it may be long
    axis.set_xlabel(xlabel)
    axis.annotate("layer", (0, 0), (-12, -36), "axes fraction", "offset points", ha="right", fontsize=NOTE, color=LIGHT["faint"])
    axis.spines["left"].set_visible(False)
    axis.grid(True, axis="x")
    return figure, axis


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether values are drawn on a logarithmic axis: none is negative, and those above zero span a large factor."""
    positive = [value for value in values if value > 0]
    return bool(positive) and min(values) >= 0 and max(positive) > _LOG_FACTOR * min(positive)


def set_scale(axis: Axes, values: Sequence[float], *, logarithmic: bool) -> None:
    shown = [value for value in values if value > 0] if logarithmic else list(values)
    low, high = min(shown, default=0.0), max(shown, default=1.0)
    if logarithmic:
        axis.set_xscale("log")
        margin = (high / low) ** 0.02
        axis.set_xlim(low / margin, high * margin)
        # A label every decade or every few; within two decades a few more.
        subs = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
        axis.xaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=6))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: _decade(value)))
    else:
        margin = 0.02 * (high - low) or abs(high) * 0.05 or 1.0
        axis.set_xlim(low - margin, high + margin)


_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _decade(value: float) -> str:
    exponent = math.floor(math.log10(value) + 1e-9)
    if -3 <= exponent <= 4:
        return f"{value:,g}"
    mantissa = round(value / 10**exponent)
    return f"{'' if mantissa == 1 else f'{mantissa}·'}10{str(exponent).translate(_SUPERSCRIPTS)}"
