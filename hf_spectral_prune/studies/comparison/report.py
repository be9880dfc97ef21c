"""The report page of a comparison, from its `comparison.json` alone."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from ...publishing.card.words import machine_phrase, protocol_words
from ...publishing.formats import number
from ...publishing.report.page import Chart, Page, Section, Table, write_page
from ...publishing.report.write import REPORT_PAGE
from ...utils.files import parse_json, read_utf8
from ...utils.plot_style import PAGE_LETTERS, in_style
from ...utils.types import Json
from ...utils.words import in_a_line
from .folder import RESULTS, Record
from .plot import comparison_figure
from .results import FORMAT_VERSION, Comparison, figures, parameter_range, verdict_on
from .results import number as figure


def write_comparison_report(folder: str | Path) -> Path:
    """Writes `report.html` into the folder of a comparison and returns its path; errors as in `comparison_page`."""
    return write_page(comparison_page(Path(folder) / RESULTS[0]), Path(folder) / REPORT_PAGE)


def comparison_page(file: str | Path) -> Page:
    """The page of a comparison.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not the result of a comparison, or one of another version.
    """
    text = read_utf8(Path(file))
    try:
        whole = parse_json(text)
        version = whole["format_version"]
        if version == FORMAT_VERSION:
            return _page(whole)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        reason = f"{type(error).__name__}: {in_a_line(error)}"
        raise ValueError(
            f"`{file}` is not the result of a comparison ({reason}). Run `cria compare` again; it keeps the finished cells."
        ) from None
    raise ValueError(f"`{file}` has format {version}, this package reads {FORMAT_VERSION}. Run `cria compare` again.")


def _page(whole: Json) -> Page:
    comparison = Comparison(whole["protocol"], whole["arguments"], whole["metric"], whole["dense"], whole["cells"])
    model, metric = whole["protocol"]["model"], whole["metric"]
    labels = list(dict.fromkeys(cell["label"] for cell in comparison.cells))
    dense = figure(comparison.dense["metrics"][metric])
    failed = [f"`{cell['label']}` at {_percent(cell)}: {cell['error']}" for cell in comparison.failed]
    notes = dict.fromkeys(note for cell in comparison.cells for note in cell.get("notes") or ())
    return Page(
        title=f"{model['name'] or model['class']}: {len(labels)} {'criterion' if len(labels) == 1 else 'criteria'} compared",
        lead=f"Held-out {metric} of a `{model['class']}` after pruning, with equal parameter counts and the same data for all.",
        tiles=[
            ("Dense model", dense, f"held-out {metric}"),
            ("Parameters", number(model["parameters"]), f"in {model['dtype']}"),
            ("Pruned models", number(len(comparison.cells)), f"{len(failed)} failed" if failed else "all finished"),
        ],
        notes=[*(f"Failed: {line}" for line in failed), *notes],
        sections=[
            Section("verdict", "Verdict", _verdicts(comparison)),
            *(_block(comparison, name, cells, index) for index, (name, cells) in enumerate(comparison.blocks().items())),
            *_costs(comparison),
            _settings(whole),
        ],
        foot=f"Written by `cria report` from `comparison.json` of {whole['date'][:10]}.",
    )


def _percent(cell: Record) -> str:
    return f"-{100 * cell['target_reduction']:.4g} %"


def _block(comparison: Comparison, name: str, cells: Sequence[Record], index: int) -> Section:
    """One compensation and recovery: one line per criterion, and its numbers."""
    metric, dense = comparison.metric, comparison.dense
    found, sizes = figures(cells, metric), parameter_range(cells)
    labels, reductions = list(dict.fromkeys(cell["label"] for cell in cells)), sorted({reduction for _, reduction in found})
    head = ["Criterion", *(f"-{100 * reduction:.4g} %" for reduction in reductions)]
    counts = [_span(sizes[reduction]) if reduction in sizes else "–" for reduction in reductions]
    rows = [("parameters", *counts)]  # those of the dense model, and its figure, stand above the page
    rows += [(f"`{label}`", *(_entry(found.get((label, reduction))) for reduction in reductions)) for label in labels]
    title = name[0].upper() + name[1:]
    text = []
    if any(len(values) > 1 for values in found.values()):
        text.append("± is the standard deviation over the seeds; their number is in brackets.")
    table = Table(head, rows)
    if not any(math.isfinite(value) for values in found.values() for value in values):
        return Section(f"block-{index}", title, [*text, "None of these models has a figure to draw."], tables=[table])
    with in_style(letters=PAGE_LETTERS):
        drawn = comparison_figure({title: cells}, dense, metric)
    described = f"Held-out {metric} against parameters for {', '.join(labels)}; the star is the dense model."
    caption = "Each line joins the means of one criterion; the bars span its seeds. The star is the dense model."
    return Section(f"block-{index}", title, text, charts=[Chart(f"chart-{index}", drawn, described, caption)], tables=[table])


def _span(least_and_most: tuple[int, int]) -> str:
    least, most = least_and_most
    return number(least) if least == most else f"{number(least)} to {number(most)}"


def _entry(values: Sequence[float] | None) -> str:
    if not values:
        return "–" if values is None else "failed"
    if len(values) == 1:
        return figure(values[0])
    spread = statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
    mean = statistics.mean(values)
    return f"{figure(mean)} ± {figure(spread, like=mean)} ({len(values)})"


def _verdicts(comparison: Comparison) -> list[str]:
    return [verdict_on(name, cells, comparison.metric) for name, cells in comparison.blocks().items()]


def _costs(comparison: Comparison) -> list[Section]:
    """Seconds of every criterion, summed over its cells; nothing where none were measured."""
    seconds: dict[str, dict[str, float]] = {}
    shared = set()
    for cell in comparison.cells:
        own = seconds.setdefault(cell["label"], {})
        spent = list((cell.get("seconds") or {}).items())
        if (cell["label"], cell["seed"]) not in shared and cell.get("shared_seconds"):
            # Cells of a criterion and a seed are calibrated and scored once, and each says so.
            shared.add((cell["label"], cell["seed"]))
            spent = [*cell["shared_seconds"].items(), *spent]
        for step, value in spent:
            own[step] = own.get(step, 0.0) + value
    steps = list(dict.fromkeys(step for own in seconds.values() for step in own))
    rows = [(f"`{label}`", *(f"{own[step]:,.2f}" if step in own else "–" for step in steps)) for label, own in seconds.items()]
    if not steps:
        return []
    text = "Seconds, summed over the models of a criterion. A calibration that several criteria share is charged to the first."
    return [Section("cost", "Time", [text], tables=[Table(["Criterion", *steps], rows)])]


def _settings(whole: Json) -> Section:
    protocol = whole["protocol"]
    calibration, evaluation = (protocol_words(protocol.get(name)) for name in ("calibration", "evaluation"))
    data = [
        f"Calibrated on {calibration}." if calibration else "No criterion read calibration data.",
        f"Measured on {evaluation}.",
        f"Machine: {machine_phrase(whole['machine'])}.",
    ]
    arguments = [(f"`{name}`", json.dumps(value, ensure_ascii=False)) for name, value in whole["arguments"].items()]
    versions = [(name, str(value)) for name, value in whole["versions"].items()]
    return Section(
        "settings",
        "Data, arguments and versions",
        points=data,
        folded=[
            Table(["Argument", "value"], arguments, words=True, title=f"All {len(arguments)} arguments"),
            Table(["", ""], versions, words=True, title="Versions"),
        ],
    )
