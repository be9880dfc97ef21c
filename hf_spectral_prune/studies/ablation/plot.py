"""The plot of an ablation: rank correlation of every criterion with the truth, layer by layer and their mean."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...utils.files import write_png
from ...utils.plot_style import DPI, LIGHT, MARKERS, add_legend, in_style, new_figure, series_colours
from ...utils.types import Options

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAND = LIGHT["line"]


@dataclass(frozen=True)
class Series:
    """One criterion: its value in every layer (None where undefined), their mean, and the mean's interval."""

    label: str
    values: list[float | None]
    mean: float | None
    interval: list[float] | None


@dataclass(frozen=True)
class Panel:
    """One kind of unit and truth: what random orders lie within, and the most that a perfect score could reach, by layer."""

    title: str
    truth: str
    layers: list[int]
    series: list[Series]
    chance: list[list[float] | None]
    ceiling: list[float | None]


def draw(panels: Sequence[Panel], path: str | Path) -> None:
    """Draws one panel below the other and writes a PNG, whole or not at all."""
    with in_style():
        write_png(ablation_figure(panels), Path(path), DPI)


def ablation_figure(panels: Sequence[Panel]) -> Figure:
    """One panel below the other, with one legend."""
    columns = max(len(panel.layers) for panel in panels) + 1
    column_width = max(1.0, 0.13 * max(len(panel.series) for panel in panels))
    figure = new_figure(column_width * columns + 3, 3.9 * len(panels))
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    labels = list(dict.fromkeys(one.label for panel in panels for one in panel.series))
    colours = series_colours(labels, _best(panels))
    for axis, panel in zip(axes, panels, strict=True):
        _panel(axis, panel, colours)
    axes[-1].set_xlabel("layer")
    add_legend(figure)
    return figure


def _best(panels: Sequence[Panel]) -> list[str]:
    """Labels by their mean over all panels, best first; this package's own criterion leads."""
    means: dict[str, list[float]] = {}
    for one in (one for panel in panels for one in panel.series):
        means.setdefault(one.label, []).append(-1.0 if one.mean is None else one.mean)
    return sorted(means, key=lambda label: (label != "spectral", -statistics.mean(means[label])))


def _panel(axis: Axes, panel: Panel, colours: Mapping[str, str]) -> None:
    """Each layer is a column in which the criteria stand side by side; the last column is the mean."""
    mean_at = len(panel.layers)
    for index, one in enumerate(panel.series):
        offset = (index + 0.5) / len(panel.series) * 0.84 - 0.42
        style: Options = {"color": colours[one.label], "marker": MARKERS[index % len(MARKERS)]}
        points = [(at + offset, value) for at, value in enumerate(one.values) if value is not None]
        for at, value in points:
            axis.plot([at, at], [0, value], color=style["color"], linewidth=1, alpha=0.6, zorder=2)
        axis.plot(*(zip(*points, strict=True) if points else ((), ())), **style, linestyle="none", markersize=5, label=one.label)
        if one.mean is not None:
            axis.plot(mean_at + offset, one.mean, **style, linestyle="none", markersize=6, zorder=3)
        if one.interval is not None:
            axis.plot([mean_at + offset] * 2, one.interval, color=style["color"], linewidth=1.5, zorder=3)
    for at, (span, ceiling) in enumerate(zip(panel.chance, panel.ceiling, strict=True)):
        if span is not None:
            axis.fill_between([at - 0.46, at + 0.46], span[0], span[1], color=_BAND, alpha=0.35, linewidth=0, zorder=0)
        if ceiling is not None:
            axis.plot([at - 0.46, at + 0.46], [ceiling] * 2, color=LIGHT["ink"], linewidth=1.2, linestyle=":", zorder=1)
    axis.fill_between([], [], [], color=_BAND, alpha=0.35, linewidth=0, label="95 % of random orders")
    axis.plot([], [], color=LIGHT["ink"], linewidth=1.2, linestyle=":", label="limit set by the\nnoise of the truth")
    axis.axhline(0, color=LIGHT["ink"], linewidth=0.8, zorder=1)
    axis.axvline(mean_at - 0.5, color=LIGHT["ink"], linewidth=0.8)
    axis.set_xticks(range(mean_at + 1), [*map(str, panel.layers), "mean\n(bars: 95 %)"])
    axis.set_xlim(-0.5, mean_at + 0.5)
    axis.set_ylim(-1.05, 1.05)
    axis.set_ylabel(f"rank correlation with\n{panel.truth}")
    # In two lines where it has brackets: with few layers the legend is near.
    axis.set_title((panel.title[0].upper() + panel.title[1:]).replace(" (", "\n("))
    axis.grid(True, axis="y")
