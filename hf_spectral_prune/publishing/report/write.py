"""The report page of a run, `report.html` and its plots, from the JSON files of a folder alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...planning import SCORES_FILE, RoundScores, scores_from_json
from ...utils.words import listed
from ..card import words
from ..formats import percent
from ..saved_folder import PLAN, REPORT, STATE, SavedFolder, figures_told, read_folder
from .page import Page, Section, write_page

REPORT_PAGE, PLOTS = "report.html", "plots"
# Charts whose name begins so are written as PNGs too, for the card.
_FOR_THE_CARD = ("widths", "scores")


def write_report(folder: str | Path) -> Path:
    """Writes `report.html` into a saved folder, and its charts of widths and scores as PNGs into `plots/`.

    The same figures give the same files, whatever the folder's name.

    Returns:
        the page.

    Raises:
        FileNotFoundError, ValueError: the folder or a figure in it is missing or broken (says which).
    """
    from .svg import to_png  # matplotlib takes its time to import

    saved = read_folder(folder)
    with figures_told(saved.path):
        page = build_report(saved, read_scores(saved))
    plots = saved.path / PLOTS
    plots.mkdir(exist_ok=True)
    for chart in (chart for section in page.sections for chart in section.charts):
        if chart.name.startswith(_FOR_THE_CARD):
            to_png(chart.figure, plots / f"{chart.name}.png")
    return write_page(page, saved.path / REPORT_PAGE)


def read_scores(saved: SavedFolder) -> list[RoundScores]:
    """The scores of every round in short; none where the folder does not keep them.

    Raises:
        ValueError: the file is broken.
    """
    file = saved.path / SCORES_FILE
    if not file.is_file():
        return []
    try:
        return scores_from_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{file}`: {error}") from None


def build_report(saved: SavedFolder, scores: Sequence[RoundScores]) -> Page:
    """The page of a run.

    Raises:
        ValueError: a figure is missing that every run has; names the figure, the file and the remedy.
    """
    from . import sections

    base = (saved.report.base_model or {}).get("name") or words.architecture(saved)
    reduction = percent(saved.report.reduction).replace(" ", "\u00a0")
    layout = saved.report.layout.replace("_", "-")
    files = [name for name in (REPORT, PLAN, SCORES_FILE, STATE) if (saved.path / name).is_file()]
    return Page(
        title=f"{base}, pruned by {reduction}",
        lead=f"A `{words.architecture(saved)}` with a {layout} layout, cut by the criterion `{saved.plan.criterion}`.",
        tiles=_tiles(sections.comparison_rows(saved)),
        notes=saved.plan.notes,
        sections=[section for section in _all_sections(saved, scores) if not section.missing],
        foot=f"Written by `cria report` from the figures in this folder: {listed(files)}.",
    )


def _all_sections(saved: SavedFolder, scores: Sequence[RoundScores]) -> Iterator[Section]:
    """All sections, also those that this run has nothing for."""
    from . import sections
    from .bounds import bounds

    yield sections.before_and_after(saved)
    yield sections.own_words(saved)
    yield sections.widths(saved)
    yield sections.scores(saved, scores)
    yield sections.spectra(saved, scores)
    yield bounds(saved)
    yield sections.rounds(saved)
    yield sections.recovery(saved)
    yield sections.cost(saved)
    yield sections.settings(saved)


def _tiles(rows: Sequence[Sequence[str]]) -> list[tuple[str, str, str]]:
    """The figures that matter most: size, quality (a perplexity rather than its loss), speed."""
    named = {re.sub(", [kM]B$", "", row[0]): row for row in rows}
    quality = [name for name in named if name.startswith("Held-out")]
    first = [name for name in quality if not name.endswith("loss")] or quality
    chosen = ["Parameters", "Weights on disk", *first[:1], "Decode, tokens/s"]
    return [
        (name, after, f"from {before} ({change})" if change else f"from {before}")
        for name, before, after, change in (named[name] for name in chosen if name in named)
        if before != "not measured"
    ]
