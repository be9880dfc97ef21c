"""A page of tables and charts as one HTML file that fetches nothing: inline SVG, inline style, no script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from ...utils.files import write_text
from ...utils.plot_style import DARK, LIGHT, PAGE_LETTERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TEMPLATE = "page_template.html"


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Attributes:
        head: names of the columns.
        rows: as many cells each.
        words: the cells are words, not figures: aligned left.
        title: what stands over it.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False
    title: str = ""


@dataclass(frozen=True)
class Chart:
    """A plot with its text alternative and its numbers.

    Attributes:
        name: for ids and file names; letters, digits and hyphens.
        figure: of matplotlib.
        text: what it shows, for those who do not see it.
        caption: how to read it.
        numbers: the figures that it draws; None where a table of the section has them.
    """

    name: str
    figure: Figure
    text: str
    caption: str
    numbers: Table | None = None

    @property
    def svg(self) -> Markup:
        """The plot as an element of the page."""
        from .svg import to_svg

        return Markup(to_svg(self.figure, self.name, self.text))


@dataclass(frozen=True)
class Section:
    """A part of the page; one that is `missing` says in its text why there is nothing to show, and is left out."""

    id: str
    title: str
    text: Sequence[str] = ()
    points: Sequence[str] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    folded: Sequence[Table] = ()
    missing: bool = False


@dataclass(frozen=True)
class Page:
    """All of it.

    Attributes:
        title: of the page.
        lead: one sentence below it.
        tiles: (name, figure, remark): the figures that matter most.
        notes: sentences of the run for the user.
        sections: in order.
        foot: the last line.
    """

    title: str
    lead: str
    tiles: Sequence[tuple[str, str, str]] = ()
    notes: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=list)
    foot: str = ""


def render(page: Page) -> str:
    """The page as HTML. Every text is escaped; only `backticks` become code."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _code
    environment.filters["unbroken"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    environment.globals |= {"light": LIGHT, "dark": DARK, "letters": f"{1 / PAGE_LETTERS:.3g}"}
    return environment.get_template(_TEMPLATE).render(page=page)


def _code(text: str) -> Markup:
    """Text with what stands between backticks as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a stray one
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part) for index, part in enumerate(parts)
    )


def write_page(page: Page, path: str | Path) -> Path:
    """Writes the page, whole or not at all."""
    path = Path(path)
    write_text(path, render(page))
    return path
