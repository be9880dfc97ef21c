"""The report's charts: widths, scores with the line of the cut, spectra, rounds, recovery, time and memory.

Every function takes plain values and returns a matplotlib Figure in points (1/72 inch). Layers stand in rows or columns
whose size follows from their number, so that 1 layer and 100 layers are both readable. Many marks of one colour are one path:
it keeps the page small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ...planning import GroupScores
from ...utils.plot_style import LIGHT, PAGE_LETTERS, PAGE_WIDTH, in_style
from .drawing import (
    NOTE,
    TITLE,
    colour_key,
    draw_filled,
    draw_strokes,
    is_logarithmic,
    label_layers,
    layer_rows,
    legend,
    new_figure,
    panel,
    panels_below_each_other,
    reach,
    set_scale,
    short_names,
    title_above_key,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 72
# Up to so many layers, the bars say their figures; no bar is so low that it cannot be seen.
_NAMED_BARS = 12
_LEAST_BAR = 0.015


# ---- widths


@in_style(letters=PAGE_LETTERS)
def widths(kinds: Mapping[str, tuple[Sequence[str], Sequence[int], Sequence[int]]]) -> Figure:
    """Units of every layer before and after, a panel for every kind of unit.

    Args:
        kinds: {name: (names of the layers, units before, units after)}.
    """
    # Numbers stand beside each other below the bars; paths are too long for that and stand upright.
    kinds = {name: (short_names(labels), before, after) for name, (labels, before, after) in kinds.items()}
    upright = {name: reach(labels) for name, (labels, _, _) in kinds.items()}
    figure, axes = panels_below_each_other(len(kinds), 120, below=max(upright.values(), default=0.0))
    for axis, (name, (labels, before, after)) in zip(axes, kinds.items(), strict=True):
        count = len(labels)
        half = 0.42 if count <= 60 else 0.5
        least = _LEAST_BAR * max(before)
        for values, colour in ((before, "pale"), (after, "kept")):
            bars = [
                [(x - half, 0), (x - half, value), (x + half, value), (x + half, 0)]
                for x, value in enumerate(max(float(value), least if value else 0.0) for value in values)
            ]
            draw_filled(axis, bars, colour)
        if count <= _NAMED_BARS:
            for x, (old, new) in enumerate(zip(before, after, strict=True)):
                axis.annotate(f"{new:,}", (x, old), (0, 2), textcoords="offset points", ha="center", fontsize=NOTE)
        # A model of few layers must not get bars as wide as the page: its axis ends where they end.
        share = min(1.0, (count + 0.2) / (_NAMED_BARS // 2 + 0.2))
        place = axis.get_position()
        axis.set_position((place.x0, place.y0, place.width * share, place.height))
        axis.set_xlim(-0.6, count - 0.4)
        axis.set_ylim(0, max(before) * (1.2 if count <= _NAMED_BARS else 1.04))
        axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:,.0f}"))
        axis.grid(True, axis="y")
        title_above_key(axis, f"{name} per layer")
        label_layers(axis.xaxis, labels, 14 if not upright[name] else 20)
        if upright[name]:
            # They end at the axis, also where the page makes their letters smaller.
            for label in axis.get_xticklabels():
                label.set(rotation=90, rotation_mode="anchor", horizontalalignment="right", verticalalignment="center")
        axis.set_xlabel("layer")
        cut = [("pale", "removed")] if list(before) != list(after) else []
        colour_key(axis, [("kept", "kept"), *cut])
    return figure


# ---- rows of layers


@in_style(letters=PAGE_LETTERS)
def scores(title: str, layers: Mapping[str, GroupScores]) -> Figure:
    """Distribution of the scores of every layer, in two colours at the line of the cut.

    Where all scores of a layer are known (few units), each is a stroke; else the shape follows from the known ranks, as high
    in every row as the row allows.

    Args:
        layers: {name of the layer: its scores}.
    """
    values = [value for group in layers.values() for value in group.scores]
    logarithmic = is_logarithmic(values)
    figure, axis = layer_rows(
        list(layers), title, "score, logarithmic (higher = keep)" if logarithmic else "score (higher = keep)"
    )
    set_scale(axis, values, logarithmic=logarithmic)
    floor = min((value for value in values if value > 0), default=0.0)
    shapes: dict[str, list[list[tuple[float, float]]]] = {"removed": [], "kept": []}
    strokes: dict[str, list[tuple[float, float, float]]] = {"removed": [], "kept": [], "ink": []}
    for row, group in enumerate(layers.values()):
        known = [max(value, floor) for value in group.scores] if logarithmic else list(group.scores)
        cut = _cut(group, floor if logarithmic else None)
        if len(known) == group.units:
            removed = group.units - group.kept
            strokes["removed"] += [(value, row + 0.3, row - 0.3) for value in known[:removed]]
            strokes["kept"] += [(value, row + 0.3, row - 0.3) for value in known[removed:]]
        elif known[0] == known[-1]:
            strokes["kept"].append((known[0], row + 0.3, row - 0.3))
        else:
            for colour, outline in _shape(np.array(known), cut, row, logarithmic=logarithmic):
                shapes[colour].append(outline)
        if cut is not None:
            strokes["ink"].append((cut, row + 0.5, row - 0.5))
    for colour, outlines in shapes.items():
        draw_filled(axis, outlines, colour, 0.85)
    for colour in ("removed", "kept"):
        draw_strokes(axis, strokes[colour], colour, 1.4)
    draw_strokes(axis, strokes["ink"], "ink", 1.2)
    cut_key = [("removed", "removed"), ("ink", "cut")] if strokes["ink"] else []
    colour_key(axis, [("kept", "kept"), *cut_key])
    return figure


def _cut(group: GroupScores, floor: float | None) -> float | None:
    """The middle between the last score removed and the first one kept; on a logarithmic axis their geometric middle."""
    if group.largest_removed is None:
        return None
    if floor is None:
        return (group.largest_removed + group.smallest_kept) / 2
    return math.sqrt(max(group.largest_removed, floor) * max(group.smallest_kept, floor))


def _shape(known: np.ndarray, cut: float | None, row: int, *, logarithmic: bool) -> list[tuple[str, list[tuple[float, float]]]]:
    """Outlines of a layer's density left and right of the cut, in row `row`: ascending scores at even ranks (m,)."""
    place = np.log10(known) if logarithmic else known
    edges = np.linspace(place[0], place[-1], _BINS + 1)
    below = np.interp(edges, place, np.linspace(0, 1, len(place)))
    # Three bins at a time: the known ranks are hardly more than the bins, and their steps are not the scores'.
    density = np.convolve(np.diff(below), np.ones(3) / 3, mode="same")
    middles = np.concatenate([edges[:1], (edges[1:] + edges[:-1]) / 2, edges[-1:]])
    heights = np.concatenate([[0], density / density.max() * 0.88, [0]])
    if cut is None:
        return [("kept", _outline(middles, heights, row, logarithmic=logarithmic))]
    line = math.log10(cut) if logarithmic else cut
    here = np.interp(line, middles, heights)
    parts = []
    for colour, side, at in (("removed", middles < line, None), ("kept", middles > line, 0)):
        xs, ys = middles[side], heights[side]
        index = len(xs) if at is None else at
        parts.append((colour, _outline(np.insert(xs, index, line), np.insert(ys, index, here), row, logarithmic=logarithmic)))
    return parts


def _outline(places: np.ndarray, heights: np.ndarray, row: int, *, logarithmic: bool) -> list[tuple[float, float]]:
    xs = (10**places if logarithmic else places).tolist()
    ys = (row + 0.5 - heights).tolist()
    return [(xs[0], row + 0.5), *zip(xs, ys, strict=True), (xs[-1], row + 0.5)]


@in_style(letters=PAGE_LETTERS)
def spectra(title: str, layers: Mapping[str, Sequence[float]]) -> Figure:
    """Leading eigenvalues of every layer as strokes in its row, the largest in another colour.

    Args:
        layers: {name of the layer: eigenvalues, largest first}.
    """
    values = [value for found in layers.values() for value in found if value > 0]
    logarithmic = is_logarithmic(values)
    figure, axis = layer_rows(list(layers), title, "eigenvalue λ, logarithmic" if logarithmic else "eigenvalue λ")
    set_scale(axis, values or [0.0], logarithmic=logarithmic)
    rest = [(value, row + 0.3, row - 0.3) for row, found in enumerate(layers.values()) for value in found[1:] if value > 0]
    first = [(found[0], row + 0.42, row - 0.42) for row, found in enumerate(layers.values()) if found and found[0] > 0]
    draw_strokes(axis, rest, "kept", 1.1)
    draw_strokes(axis, first, "removed", 1.8)
    colour_key(axis, [("removed", "largest"), ("kept", "others")])
    return figure


# ---- curves


AFTER_ROUND, MASKED, AT_THE_END = "after the round", "with its units masked", "at the end"
# Colour, mark, line and, for a narrow page, the name in the key.
_SERIES = {
    AFTER_ROUND: ("kept", "o", "-", "each round"),
    MASKED: ("third", "s", "--", "masked"),
    AT_THE_END: ("removed", "D", "none", "at the end"),
}


@in_style(letters=PAGE_LETTERS)
def rounds(sizes: Mapping[int, int], losses: Mapping[str, Mapping[int, float]]) -> Figure:
    """Parameters after every round and, where measured, the held-out loss, below each other.

    Args:
        sizes: {round: parameters}; round 0 is the dense model.
        losses: {one of the three names above: {round: loss}}.
    """
    series = {name: points for name, points in losses.items() if points}
    figure, axes = panels_below_each_other(2 if series else 1, 110)
    last = max([*sizes, *(step for points in series.values() for step in points)])
    axes[0].plot(list(sizes), [size / 1e6 for size in sizes.values()], color=LIGHT["kept"], marker="o", markersize=4)
    axes[0].set_title("Parameters, millions")
    if series:
        for name, points in series.items():
            colour, marker, dash, label = _SERIES[name]
            axes[1].plot(
                list(points),
                list(points.values()),
                color=LIGHT[colour],
                marker=marker,
                markersize=4.5,
                linestyle=dash,
                label=label,
                clip_on=False,
            )
        title_above_key(axes[1], "Held-out loss, nats")
        if len(series) > 1:
            legend(axes[1])
    for axis in axes:
        axis.grid(True, axis="y")
        axis.set_xlim(-0.1 * max(last, 1), last * 1.05 + 0.05)
        axis.margins(y=0.15)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        axis.yaxis.set_major_locator(MaxNLocator(4))
        axis.set_xlabel("round")
    return figure


@in_style(letters=PAGE_LETTERS)
def recovery(training: Mapping[int, float], held_out: Mapping[int, float]) -> Figure:
    """Loss of the one fine-tuning stage over its steps: as trained, and held out before, meanwhile and after."""
    figure, (axis,) = panels_below_each_other(1, 150)
    axis.plot(list(training), list(training.values()), color=LIGHT["kept"], linewidth=1.5, label="training")
    axis.plot(
        list(held_out),
        list(held_out.values()),
        color=LIGHT["removed"],
        linestyle="--",
        linewidth=1.2,
        marker="o",
        markersize=4.5,
        label="held out",
        clip_on=False,
    )
    axis.grid(True, axis="y")
    axis.margins(x=0.02, y=0.12)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    title_above_key(axis, "Loss, nats")
    axis.set_xlabel("step")
    legend(axis)
    return figure


@in_style(letters=PAGE_LETTERS)
def cost(panels: Mapping[str, Mapping[str, float]]) -> Figure:
    """Horizontal bars with their figures, a panel for every quantity, below each other.

    Args:
        panels: {title: {name of the bar: value}}.
    """
    heights = [len(bars) * 24.0 for bars in panels.values()]
    figure = new_figure(sum(heights) + TITLE * len(heights) + 14)
    left, right, bottom = 152.0, 66.0, 14.0
    for (title, bars), height in reversed([*zip(panels.items(), heights, strict=True)]):
        axis = panel(figure, left, bottom, PAGE_WIDTH - left - right, height)
        bottom += height + TITLE
        most = max(bars.values()) or 1.0
        for row, (name, value) in enumerate(bars.items()):
            draw_filled(axis, [[(0, row - 0.32), (value, row - 0.32), (value, row + 0.32), (0, row + 0.32)]], "kept")
            axis.text(
                value + 0.02 * most,
                row,
                f"{value:,.0f}" if value >= 100 else f"{value:.2g}",
                va="center",
                fontsize=NOTE,
                color=LIGHT["faint"],
            )
            axis.text(-0.02 * most, row, name, va="center", ha="right", fontsize=NOTE)
        axis.set_xlim(0, most)
        axis.set_ylim(len(bars) - 0.5, -0.5)
        axis.set_axis_off()
        axis.set_title(title)
    return figure
