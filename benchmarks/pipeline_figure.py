"""Draws the steps of a pruning run for docs/architecture.md: `python benchmarks/pipeline_figure.py` writes the SVG file."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from hf_spectral_prune.utils.plot_style import LIGHT, in_style

INK, LINE = LIGHT["ink"], LIGHT["faint"]
PART, ENTRY, GROUND, FRAME = LIGHT["pale"], "#fdeccf", LIGHT["grid"], "#f5f6f8"
WIDTH, HEIGHT = 1.5, 0.62
# The steps of the two rows, and the value that each hands on.
ROUND = [("data", "batches"), ("calibration", "moments"), ("criteria", "scores"), ("planning", "plan"), ("surgery", "")]
AFTER = [("recovery", "trained"), ("evaluation", "figures"), ("saving", "folder"), ("publishing", "")]
STEP = 2.6
ROW_1, ROW_2 = 3.1, 1.45


def box(axes: Axes, x: float, y: float, words: str, color: str, width: float = WIDTH, height: float = HEIGHT) -> None:
    """A rounded box around (x, y) with words in it."""
    corner = (x - width / 2, y - height / 2)
    shape = FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=0.1", fc=color, ec=LINE, lw=0.8)
    axes.add_patch(shape)
    axes.text(x, y, words, ha="center", va="center", color=INK, linespacing=1.4)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], words: str = "", **style) -> None:
    """An arrow, with the value that it carries above it."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": LINE, "lw": 1.1, "shrinkA": 0, "shrinkB": 0} | style)
    if words:
        axes.text(
            (start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.1, words, ha="center", color=INK, fontsize=8.5, style="italic"
        )


def row(axes: Axes, steps: list[tuple[str, str]], first: float, y: float) -> None:
    """Steps from left to right, and what each hands to the next."""
    for index, (name, value) in enumerate(steps):
        x = first + index * STEP
        box(axes, x, y, f"{name}/", PART)
        if value:
            arrow(axes, (x + WIDTH / 2, y), (x + STEP - WIDTH / 2, y), value)


def draw() -> Figure:
    """The whole figure."""
    figure = Figure(figsize=(10.4, 5.0), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 12.9), ylim=(-0.15, 6.05))
    axes.axis("off")
    x = [1.1 + index * STEP for index in range(len(ROUND))]
    left, right = x[1] - WIDTH / 2 - 0.12, x[-1] + WIDTH / 2 + 0.12
    axes.add_patch(
        FancyBboxPatch(
            (left, ROW_1 - 0.55),
            right - left,
            1.45,
            boxstyle="round,pad=0,rounding_size=0.12",
            fc=FRAME,
            ec=LINE,
            lw=0.8,
            ls="--",
        )
    )
    axes.text(left + 0.15, ROW_1 + 0.62, "a round: the functions of rounds.py", va="center", color=INK, fontsize=9)
    arrow(axes, (x[-1], ROW_1 + HEIGHT / 2), (x[2], ROW_1 + HEIGHT / 2), connectionstyle="arc3,rad=0.12", ls="--")
    axes.text(
        x[-1] + WIDTH / 2 - 0.05, ROW_1 + 0.66, "next round", ha="right", va="center", color=INK, fontsize=8.5, style="italic"
    )
    row(axes, ROUND, x[0], ROW_1)
    row(axes, AFTER, x[1], ROW_2)
    turn = (ROW_1 + ROW_2) / 2 + 0.07
    axes.plot([x[-1], x[-1], x[1]], [ROW_1 - HEIGHT / 2, turn, turn], color=LINE, lw=1.1)
    arrow(axes, (x[1], turn), (x[1], ROW_2 + HEIGHT / 2))
    axes.text((x[1] + x[-1]) / 2, turn - 0.2, "the smaller model", ha="center", color=INK, fontsize=8.5, style="italic")
    for place, words in (
        (x[1] + 0.4, "cli/\nthe cria command"),
        (x[2] + 0.9, "pruner.py\nSpectralPruner"),
        (x[3] + 1.4, "trainer/\na callback in any Trainer"),
    ):
        box(axes, place, 5.35, words, ENTRY, width=2.5, height=0.85)
    arrow(axes, (x[1] + 0.4 + 1.25, 5.35), (x[2] + 0.9 - 1.25, 5.35))
    for place in (x[2] + 0.9, x[3] + 1.4):
        arrow(axes, (place, 5.35 - 0.425), (place, ROW_1 + 0.9))
    box(
        axes,
        (x[0] + x[-1]) / 2,
        0.35,
        "models/ (families, Cria classes, loading, losses, walking the layers)  ·  spectral/  ·  utils/  ·  arguments.py",
        GROUND,
        width=x[-1] - x[0] + WIDTH,
    )
    axes.text(
        x[0] - WIDTH / 2,
        ROW_1 + 0.55,
        "texts, images,\nlabelled rows, tensors",
        color=INK,
        fontsize=8.5,
        style="italic",
        linespacing=1.3,
    )
    return figure


def write(path: Path) -> None:
    """Writes the figure; without a date and with fixed ids the same figure gives the same file, and words stay words."""
    with in_style(), mpl.rc_context({"svg.hashsalt": "pipeline", "font.family": "sans-serif"}):
        draw().savefig(path, metadata={"Date": None})


def main() -> None:
    """Draws and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "docs" / "figures" / "pipeline.svg")
    options = parser.parse_args()
    write(options.output)
    print(f"Wrote {options.output}")


if __name__ == "__main__":
    main()
