"""The plot of a comparison: quality against parameters, one line per criterion, one panel per compensation and recovery."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...utils.files import write_png
from ...utils.plot_style import DPI, GREY, LIGHT, MARKERS, PAGE_WIDTH, add_legend, in_style, new_figure, series_colours
from .folder import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Characters of a legend that fit below a figure for a page, with room for the marks between its columns.
_LEGEND, _MARK = 50, 4
# A perplexity that spans more than this factor is drawn on a logarithmic axis.
_LOG_FACTOR = 3.0


def draw(panels: Mapping[str, Sequence[Record]], dense: Record, metric: str, path: str | Path) -> None:
    """Writes `comparison_figure` as a PNG, whole or not at all."""
    with in_style():
        write_png(comparison_figure(panels, dense, metric), Path(path), DPI)


def comparison_figure(panels: Mapping[str, Sequence[Record]], dense: Record, metric: str) -> Figure:
    """The cells' figures against their parameters, one panel per compensation and recovery, as a matplotlib Figure.

    A line joins a criterion's means over the seeds; where there are several seeds, a bar reaches from the lowest to the
    highest. Figures that are not finite, and failed cells, are left out.

    Args:
        panels: {title: records of its cells, see `folder`}.
        dense: record of the model before the cut.
        metric: name of the figure to draw.
    """
    labels = list(dict.fromkeys(cell["label"] for cells in panels.values() for cell in cells))
    alone = len(panels) == 1  # as on the report page, which phones show too: the legend is below it
    width = PAGE_WIDTH / 72
    figure = new_figure(width, width) if alone else new_figure(4.6 * len(panels) + 2.2, 4.6)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    colours = series_colours(labels, _best(panels, metric))
    heights = [float(dense["metrics"][metric])]
    for axis, (title, cells) in zip(axes, panels.items(), strict=True):
        for index, label in enumerate(labels):
            points = _points([cell for cell in cells if cell["label"] == label], metric)
            heights += [edge for _, low, _, high in points for edge in (low, high)]
            _line(axis, points, label, colours[label], MARKERS[index % len(MARKERS)])
        axis.plot(dense["parameters"] / 1e6, heights[0], "*", color=LIGHT["ink"], markersize=13, linestyle="none", label="dense")
        axis.axhline(heights[0], color=LIGHT["ink"], linewidth=0.6, alpha=0.4, zorder=0)
        axis.set_title(title if alone else title.replace("; ", "\n"))  # panels beside each other are narrow
        axis.set_xlabel("parameters, millions")
        axis.grid(True)
    lower_is_better = metric in ("perplexity", "loss")
    words = f"held-out {metric}\n({'lower' if lower_is_better else 'higher'} is better)"
    if metric == "perplexity" and max(heights) > _LOG_FACTOR * min(heights):
        _logarithmic(axes[0], max(heights) / min(heights))
        words = f"{words[:-1]}, log scale)"
    axes[0].set_ylabel(words)
    add_legend(figure, max(1, min(3, _LEGEND // (max(map(len, labels)) + _MARK))) if alone else None)
    return figure


def _best(panels: Mapping[str, Sequence[Record]], metric: str) -> list[str]:
    """Labels by their mean rank over all panels and reductions, best first; this package's own criterion leads."""
    ranks: dict[str, list[int]] = {}
    for cells in panels.values():
        by_size: dict[float, dict[str, list[float]]] = {}
        for cell in cells:
            if cell["error"] is None:
                values = by_size.setdefault(cell["target_reduction"], {}).setdefault(cell["label"], [])
                values.append(float(cell["metrics"][metric]))
        for found in by_size.values():
            means = {label: statistics.mean(values) for label, values in found.items()}
            ordered = sorted(means, key=means.__getitem__, reverse=metric not in ("perplexity", "loss"))
            for rank, label in enumerate(ordered):
                ranks.setdefault(label, []).append(rank)
    return sorted(ranks, key=lambda label: (label != "spectral", statistics.mean(ranks[label])))


def _points(cells: Sequence[Record], metric: str) -> list[tuple[float, float, float, float]]:
    """(millions of parameters, lowest, mean, highest) for every reduction, smallest model first."""
    found: dict[float, list[tuple[int, float]]] = {}
    for cell in cells:
        if cell["error"] is None and math.isfinite(float(cell["metrics"][metric])):
            entry = (cell["parameters"], float(cell["metrics"][metric]))
            found.setdefault(cell["target_reduction"], []).append(entry)
    points = []
    for pairs in found.values():
        sizes, values = zip(*pairs, strict=True)
        points.append((statistics.mean(sizes) / 1e6, min(values), statistics.mean(values), max(values)))
    return sorted(points)


def _line(axis: Axes, points: Sequence[tuple[float, float, float, float]], label: str, colour: str, marker: str) -> None:
    if not points:
        return
    sizes, lows, means, highs = zip(*points, strict=True)
    down = [mean - low for mean, low in zip(means, lows, strict=True)]
    up = [high - mean for mean, high in zip(means, highs, strict=True)]
    axis.errorbar(
        sizes,
        means,
        yerr=(down, up) if any(down) or any(up) else None,
        label=label,
        color=colour,
        marker=marker,
        zorder=1.5 if colour == GREY else 2,
        markersize=5,
        linewidth=1.5,
        elinewidth=1,
        capsize=3,
    )


def _logarithmic(axis: Axes, span: float) -> None:
    """A logarithmic axis with plain numbers at its ticks, few decades finely and many coarsely."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if span < 1e3 else (1.0,)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:,.0f}" if 1 <= value < 1e9 else f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
