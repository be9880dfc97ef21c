"""What a comparison gives: its cells, the check of their sizes, the table, JSON, CSV and plot."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ...utils.environment import library_versions, machine
from ...utils.files import plain, write_text
from ...utils.types import Json
from ..showing import aligned
from .folder import Record
from .plot import draw

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Comparison:
    """All cells of one comparison.

    Attributes:
        protocol: model, calibration and held-out data, with digests.
        arguments: options of the run.
        metric: name of the figure that tables and plots show.
        dense: record of the model as it was given.
        cells: a record per cell, in the order asked for, each with its criterion's `label`; failed ones have an `error`.
    """

    protocol: Json
    arguments: Json
    metric: str
    dense: Record
    cells: list[Record]

    @property
    def failed(self) -> list[Record]:
        """Cells without a figure."""
        return [cell for cell in self.cells if cell["error"] is not None]

    def blocks(self) -> dict[str, list[Record]]:
        """Cells by compensation and recovery, in words."""
        found: dict[str, list[Record]] = {}
        for cell in self.cells:
            found.setdefault(block_name(cell), []).append(cell)
        return found


def block_name(cell: Record) -> str:
    """A cell's compensation and recovery in words."""
    repair = "no compensation" if cell["compensation"] == "none" else f"{cell['compensation'].replace('_', ' ')} compensation"
    return f"{repair}, no recovery" if cell["recovery"] == "none" else f"{repair}, {cell['recovery']} recovery"


def figures(cells: Iterable[Record], metric: str) -> dict[tuple[str, float], list[float]]:
    """{(label, reduction): the metric of every seed}; empty where all cells failed."""
    found: dict[tuple[str, float], list[float]] = {}
    for cell in cells:
        values = found.setdefault((cell["label"], cell["target_reduction"]), [])
        if cell["error"] is None:
            # Figures that are not finite stand as text in the file, since JSON has no word for them.
            values.append(float(cell["metrics"][metric]))
    return found


# ---- equal sizes


def parameter_range(cells: Iterable[Record]) -> dict[float, tuple[int, int]]:
    """{reduction: least and most parameters of its cells}; failed cells do not count."""
    counts: dict[float, list[int]] = {}
    for cell in cells:
        if cell["error"] is None:
            counts.setdefault(cell["target_reduction"], []).append(cell["parameters"])
    return {reduction: (min(found), max(found)) for reduction, found in counts.items()}


def check_equal_parameters(cells: Sequence[Record]) -> None:
    """Checks that all cells of a reduction ended with the same number of parameters.

    Where widths follow from the scores (`allocation` other than `proportional`) sizes agree up to one step only; such cells
    are left out here, and the range stands in the results.

    Raises:
        RuntimeError: they did not; names two cells that differ.
    """
    firsts: dict[float, Record] = {}
    for cell in cells:
        if cell["error"] is not None or cell["allocation"] != "proportional":
            continue
        first = firsts.setdefault(cell["target_reduction"], cell)
        if first["parameters"] != cell["parameters"]:
            named = " and ".join(
                f"`{one['label']}` ({block_name(one)}, seed {one['seed']}) with {one['parameters']:,}" for one in (first, cell)
            )
            raise RuntimeError(
                f"At the reduction {cell['target_reduction']} cells differ in their number of parameters: {named}. They cannot "
                "be compared; please report this."
            )


# ---- what is shown


def table(comparison: Comparison) -> str:
    """Criteria as rows and reductions as columns, one block per compensation and recovery; mean and spread over seeds."""
    dense, metric = comparison.dense, comparison.metric
    head = f"Held-out {metric}: dense {number(dense['metrics'][metric])}, {dense['parameters']:,} parameters."
    parts = [head]
    several = False
    for name, cells in comparison.blocks().items():
        found = figures(cells, metric)
        several = several or any(len(values) > 1 for values in found.values())
        parts += ["", name[0].upper() + name[1:], *_block(cells, found)]
    notes = dict.fromkeys(note for cell in comparison.cells for note in cell.get("notes", []))
    parts += ["", *notes] if notes else []
    if several:
        parts += ["", "± is the standard deviation over the seeds, whose number is in brackets."]
    if once := _ran_once(comparison):
        parts += [
            "",
            f"Without anything drawn at random, these ran once for all seeds: {', '.join(f'`{label}`' for label in once)}.",
        ]
    return "\n".join(parts)


def _ran_once(comparison: Comparison) -> list[str]:
    """Labels that have fewer seeds than were asked for, because nothing in their cells is random."""
    seeds: dict[str, set[int]] = {}
    for cell in comparison.cells:
        seeds.setdefault(cell["label"], set()).add(cell["seed"])
    return [label for label, found in seeds.items() if len(found) == 1 < len(comparison.arguments["seeds"])]


def verdict(comparison: Comparison) -> str:
    """Which criterion is best at which reduction, in a sentence for each compensation and recovery."""
    return " ".join(verdict_on(name, cells, comparison.metric) for name, cells in comparison.blocks().items())


def verdict_on(name: str, cells: Sequence[Record], metric: str) -> str:
    """The sentence on one compensation and recovery; `name` is what it is called."""
    means: dict[float, dict[str, float]] = {}
    for (label, reduction), values in figures(cells, metric).items():
        if values and all(map(math.isfinite, values)):
            means.setdefault(reduction, {})[label] = statistics.mean(values)
    lower = metric in ("perplexity", "loss") or metric.endswith(("_loss", "_error"))
    winners: dict[str, list[str]] = {}
    for reduction in sorted(means):
        best, *others = sorted(means[reduction], key=means[reduction].__getitem__, reverse=not lower)
        value = means[reduction][best]
        where = f"-{100 * reduction:.4g} % ({number(value)}"
        near = [label for label in others if abs(means[reduction][label] - value) <= 0.01 * abs(value)]
        where += f"; within 1 %: {', '.join(f'`{label}`' for label in near)})" if near else ")"
        winners.setdefault(best, []).append(where)
    name = name.replace(", ", " and ")
    if not winners:
        return f"With {name}, no model has a figure."
    best = "lowest" if lower else "highest"
    said = " and ".join(f"with `{label}` at {' and '.join(places)}" for label, places in winners.items())
    return f"With {name}, the {metric} is {best} {said}."


def _block(cells: Sequence[Record], found: Mapping[tuple[str, float], list[float]]) -> list[str]:
    labels, reductions = dict.fromkeys(cell["label"] for cell in cells), sorted({reduction for _, reduction in found})
    counts = parameter_range(cells)
    sizes = []
    for reduction in reductions:
        least, most = counts.get(reduction, (0, 0))
        sizes.append("" if not most else f"{least:,}" if least == most else f"{least:,} to {most:,}")
    rows = [["criterion", *(f"-{100 * reduction:.4g} %" for reduction in reductions)], ["parameters", *sizes]]
    rows.append(["widths", *(_widths([cell for cell in cells if cell["target_reduction"] == value]) for value in reductions)])
    rows += [[label, *(_entry(found.get((label, reduction))) for reduction in reductions)] for label in labels]
    return aligned(rows)


def _widths(cells: Sequence[Record]) -> str:
    """The widths of a layer that all these cells share, in words."""
    found = {json.dumps(cell["widths"]) for cell in cells if cell["error"] is None}
    if not found:
        return ""
    widths = json.loads(found.pop())
    if found or any(isinstance(width, list) for width in widths.values()):
        return "by layer"
    return ", ".join(f"{width} {kind}" for kind, width in widths.items())


def _entry(values: Sequence[float] | None) -> str:
    if not values:
        return "" if values is None else "failed"
    if len(values) == 1:
        return number(values[0])
    mean = statistics.mean(values)
    spread = statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan
    return f"{number(mean)} ± {number(spread, like=mean)} ({len(values)})"


def number(value: float | str, like: float | None = None) -> str:
    """A figure in at most seven characters or so, whatever its size; with as many decimals as `like` would have."""
    value = float(value)
    size = abs(value if like is None else like)
    if size >= 1e5 and math.isfinite(value):
        return f"{value:.2e}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.2f}" if size >= 1 else f"{value:.4f}"


def to_dict(comparison: Comparison) -> Json:
    """Everything as plain values: what `comparison.json` holds."""
    ranges = parameter_range(comparison.cells)
    return plain(
        {
            "format_version": FORMAT_VERSION,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "metric": comparison.metric,
            "protocol": comparison.protocol,
            "arguments": comparison.arguments,
            "machine": machine(),
            "versions": library_versions(),
            "dense": comparison.dense,
            "parameters": [
                {"target_reduction": reduction, "least": least, "most": most, "difference": most - least}
                for reduction, (least, most) in ranges.items()
            ],
            "cells": comparison.cells,
        }
    )


def to_csv(comparison: Comparison) -> str:
    """A line a cell, the dense model first."""
    options = ("target_reduction", "compensation", "recovery", "seed")
    metrics = list(comparison.dense["metrics"])
    columns = ["label", "criterion", "criterion_args", *options, "parameters", "reduction", *metrics, "seconds", "error"]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    dense = comparison.dense
    writer.writerow({"label": "dense", "parameters": dense["parameters"], "reduction": 0.0, **dense["metrics"]})
    for cell in comparison.cells:
        row = {name: cell.get(name) for name in columns if name in cell} | (cell.get("metrics") or {})
        seconds = round(sum((cell.get("seconds") or {}).values()), 3)
        writer.writerow(row | {"criterion_args": json.dumps(cell["criterion_args"]), "seconds": seconds})
    return out.getvalue()


def write_results(comparison: Comparison, folder: str | Path) -> None:
    """Writes `comparison.json`, `comparison.csv` and `comparison.png`."""
    folder = Path(folder)
    write_text(folder / "comparison.json", json.dumps(to_dict(comparison), indent=1) + "\n")
    write_text(folder / "comparison.csv", to_csv(comparison))
    draw(comparison.blocks(), comparison.dense, comparison.metric, folder / "comparison.png")
