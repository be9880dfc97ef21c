"""The one style of every plot: colours in light and dark, marks, letters, sizes, and which of many series have a colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# By what they mean. The report page's style sheet gives the same names the same colours: matplotlib draws with those of light,
# and in the page they are replaced by the names, so that it follows light and dark. No two of a theme may be equal.
LIGHT = {
    "ink": "#1f2430",
    "faint": "#5b6370",
    "line": "#c3c9d2",
    "grid": "#e4e7ec",
    "pale": "#cfd9e6",
    "kept": "#2b6cb0",
    "removed": "#d9622b",
    "third": "#2f855a",
    "paper": "#fefefe",
}
DARK = {
    "ink": "#e6e9ee",
    "faint": "#a3abb8",
    "line": "#4a525f",
    "grid": "#2e343d",
    "pale": "#3a4553",
    "kept": "#63a4e6",
    "removed": "#f08c55",
    "third": "#62c08f",
    "paper": "#1c2027",
}
# For series that are compared: the palette of Okabe and Ito, which people with any form of colour blindness can tell apart,
# without its yellow (too pale on white) and its black (for what is no series). Marks differ as well, for print in black.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# With more series than the palette has colours, four stand out and the others are grey: no colour stands for two.
HIGHLIGHTED = 4
GREY = "#9aa3b0"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
# Ten classes at once, each also named in the plot.
CLASSES = ("#2b6cb0", "#d9622b", "#2f855a", "#b7791f", "#805ad5", "#c53030", "#319795", "#d53f8c", "#4a5568", "#7b9e2f")

SMALL, MEDIUM, LARGE = 9.5, 10, 10.5
# The charts of a page are laid out for a phone: as wide as this, in points, and with letters so many times as large, which can be
# read there. Where the page is wider it makes the letters smaller again, and nothing else moves.
PAGE_WIDTH, PAGE_LETTERS = 440.0, 1.5
DPI = 150
STYLE: dict[str, Any] = {
    "font.size": MEDIUM,
    # Measured with a font that comes with matplotlib; the page's own fonts are narrower, so that nothing grows.
    "font.family": ["DejaVu Sans"],
    "text.color": LIGHT["ink"],
    "text.parse_math": False,
    "axes.edgecolor": LIGHT["line"],
    "axes.labelcolor": LIGHT["faint"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.titlesize": LARGE,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "axes.unicode_minus": True,
    "xtick.color": LIGHT["line"],
    "ytick.color": LIGHT["line"],
    "xtick.labelcolor": LIGHT["faint"],
    "ytick.labelcolor": LIGHT["faint"],
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "figure.facecolor": "none",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "path.simplify": False,
}


@contextmanager
def in_style(theme: dict[str, str] = LIGHT, letters: float = 1.0) -> Iterator[None]:
    """What is drawn inside has this style, in the colours of a theme and with letters so many times as large; PNG is on white."""
    import matplotlib as mpl

    names = {value: name for name, value in LIGHT.items()}
    style: Any = {key: theme.get(names.get(str(value), ""), value) for key, value in STYLE.items()}
    style |= {key: letters * value for key, value in STYLE.items() if key.endswith("size")}
    with mpl.rc_context(style):
        yield


def series_colours(labels: Sequence[str], first: Sequence[str] = ()) -> dict[str, str]:
    """{label: colour}, no colour twice; where there are more labels than colours, four have one and the others are grey.

    Args:
        first: labels that matter most, which have a colour in any case; then the others, in their order.
    """
    if len(labels) <= len(SERIES):
        return dict(zip(labels, SERIES, strict=False))
    chosen = [*dict.fromkeys([*(label for label in first if label in labels), *labels])][:HIGHLIGHTED]
    return {label: SERIES[chosen.index(label)] if label in chosen else GREY for label in labels}


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that lays itself out; sizes in inches."""
    # No pyplot: it would keep the figure in a global list and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def add_legend(figure: Figure, columns: int | None = None) -> None:
    """One legend for all axes: to their right, or below in so many columns."""
    handles = {name: handle for axis in figure.axes for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    shown = (handles.values(), handles.keys())
    if columns is None:
        figure.legend(*shown, loc="outside right center")
    else:
        figure.legend(*shown, loc="outside lower center", ncols=columns)
