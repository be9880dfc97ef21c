"""The tables of a model card, each figure from a saved folder; what was not measured is said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from ...utils.types import Json
from ..formats import change, metric, metric_change, with_error
from ..pruning_report import PruningReport
from ..saved_folder import REPORT, SavedFolder

Row = tuple[str, ...]

_NOT_MEASURED, _UNCLEAR = "not measured", "unclear"
_KINDS = {
    "ffn": "FFN neurons",
    "shared_ffn": "FFN neurons of the shared expert",
    "decoder_ffn": "FFN neurons of the decoder",
    "channels": "Channels",
}
# Figures of an evaluation that say how it ran, not how good the model is.
_PROTOCOL_FIGURES = ("num_", "runtime", "samples_per_second", "steps_per_second")


def size_rows(saved: SavedFolder) -> list[Row]:
    """(what, before, after, change) of parameters and bytes on disk."""
    before, after = saved.report.parameters_before, saved.report.parameters_after
    rows: list[Row] = [("Parameters", f"{before:,}", f"{after:,}", change(before, after))]
    if saved.report.macs is not None:
        macs = [saved.report.macs[side] for side in ("before", "after")]
        rows.append(("MACs of one image", *(f"{count:,}" for count in macs), change(*macs)))
    old, new = saved.report.size_on_disk_before, saved.report.size_on_disk
    if new is not None:
        name, unit = on_disk(new)
        rows.append(
            (
                name,
                _NOT_MEASURED if old is None else f"{old / unit:,.1f}",
                f"{new / unit:,.1f}",
                "" if old is None else change(old, new),
            )
        )
    return rows


def on_disk(size: int) -> tuple[str, float]:
    """What the row of the weights' size is called, and the bytes of its unit: small networks have none of a megabyte."""
    return ("Weights on disk, kB", 1e3) if size < 100_000 else ("Weights on disk, MB", 1e6)


def kind_name(saved: SavedFolder, kind: str) -> str:
    """What a kind of unit is called."""
    if kind == "heads":
        return "Key/value groups" if "num_key_value_heads" in saved.config else "Attention heads"
    if kind == "ffn" and any(".experts." in key for key in saved.report.sizes):
        return "FFN neurons of every expert"
    return _KINDS.get(kind, kind.capitalize())


def cut_kinds(saved: SavedFolder) -> list[str]:
    """What the kinds of units are called of which any was removed."""
    cut = (key.rpartition(".")[2] for key, (before, after) in saved.report.sizes.items() if after < before)
    return [kind_name(saved, kind) for kind in dict.fromkeys(cut)]


def width_table(saved: SavedFolder) -> tuple[list[str], list[Row]]:
    """Names of the kinds of units, and a row (layers, "before → after" per kind) for every run of equal layers."""
    layers: dict[str, dict[str, str]] = {}
    for key, (before, after) in saved.report.sizes.items():
        place, _, kind = key.rpartition(".")
        place = re.sub(r"\.mlp\.experts\.\d+$", "", place)  # all experts of a layer have one width
        layers.setdefault(place, {})[kind] = f"{before:,} → {after:,}"
    kinds = list(dict.fromkeys(kind for widths in layers.values() for kind in widths))
    cells = [(place, tuple(widths.get(kind, "–") for kind in kinds)) for place, widths in layers.items()]
    rows = [(_span([place for place, _ in run]), *widths) for widths, run in _runs(cells)]
    return [kind_name(saved, kind) for kind in kinds], rows


def _runs(cells: list[tuple[str, Row]]) -> list[tuple[Row, list[tuple[str, Row]]]]:
    return [(widths, list(run)) for widths, run in groupby(cells, key=lambda cell: cell[1])]


def _span(places: list[str]) -> str:
    """ "0–29" for layers.0 to layers.29 in a row; paths of a network as they are."""
    numbers = [place.removeprefix("layers.") for place in places]
    return numbers[0] if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"


def metrics(saved: SavedFolder) -> list[tuple[str, float, float]]:
    """(name, before, after) of every quality figure that the run measured on both models.

    Raises:
        ValueError: a figure was measured on one of them only, so one was taken out of the report.
    """
    sides = {"before": saved.report.metrics_before, "after": saved.report.metrics_after}
    figures = {side: {name.removeprefix(f"{side}_"): value for name, value in values.items()} for side, values in sides.items()}
    names = list(dict.fromkeys([*figures["before"], *figures["after"]]))
    for name in names:
        for side in ("before", "after"):
            if figures[side].get(name) is None:
                raise ValueError(
                    f"`{saved.path / REPORT}` lacks `{side}_{name}` in `metrics_{side}`, but has the other of the pair. Take the "
                    "report that the run wrote, or prune and save the model again."
                )
    return [(name, figures["before"][name], figures["after"][name]) for name in names if not name.startswith(_PROTOCOL_FIGURES)]


def metric_rows(saved: SavedFolder) -> list[Row]:
    """The metrics as cells, with the change."""
    rows: list[Row] = []
    for name, before, after in metrics(saved):
        what = name.replace("_", " ").capitalize()
        rows.append((what, metric(name, before), metric(name, after), metric_change(name, before, after)))
    return rows


def task_rows(report: PruningReport) -> list[Row]:
    """(task and metric, before, after, change) of the tasks of lm_eval, with standard errors; empty where none was asked for."""
    rows: list[Row] = []
    for task, found in (report.lm_eval or {"tasks": {}})["tasks"].items():
        for name, before in found["before"].items():
            after = found["after"][name]
            sides = [with_error(name, found[side][name], found[f"{side}_stderr"].get(name)) for side in ("before", "after")]
            rows.append((f"{task}, {name}", *sides, metric_change(name, before, after)))
    return rows


def sample_rows(saved: SavedFolder) -> tuple[list[str], list[Row]]:
    """Head and rows (text, before, after) of what both models said; no rows where the run has none."""
    found = saved.report.samples or []
    head = ["Text", "before", "after"] if pipeline_is_classifier(saved) else ["Prompt", "before", "after"]
    return head, [(one["text"], one["before"], one["after"]) for one in found]


def pipeline_is_classifier(saved: SavedFolder) -> bool:
    """Whether the model classifies texts."""
    return any(name.endswith("ForSequenceClassification") for name in saved.config.get("architectures") or ())


def speed_rows(saved: SavedFolder) -> list[Row]:
    """(what, before, after, change) of the measured speeds; empty where none was measured."""
    return [] if saved.report.latency is None else _speed_rows(saved.report.latency)


def is_unclear(rows: Sequence[Row]) -> bool:
    """Whether one of the `speed_rows` says nothing of a change."""
    return any(row[-1] == _UNCLEAR for row in rows)


def _speed_rows(latency: Json) -> list[Row]:
    rows: list[Row] = []
    for name, what in (("prefill", "Prefill, tokens/s"), ("decode", "Decode, tokens/s")):
        before, after = (latency[side][f"{name}_tokens_per_second"] for side in ("before", "after"))
        rows.append((what, f"{before:,.1f}", f"{after:,.1f}", _speed_change(latency, name)))
    return rows


def _speed_change(latency: Json, name: str) -> str:
    """The change of a median speed; unclear where the timings of both models overlap, as on a busy machine."""
    key = f"{name}_tokens_per_second"
    before, after = latency["before"], latency["after"]
    spread = [(side.get(f"{key}_min", side[key]), side.get(f"{key}_max", side[key])) for side in (before, after)]
    (low, high), (other_low, other_high) = spread
    apart = high < other_low or other_high < low
    return change(before[key], after[key]) if apart else _UNCLEAR


def before_after_table(report: PruningReport) -> str:
    """The report's figures as a table of three columns, from what was measured only."""
    rows: list[Row] = [_row("Parameters", report.parameters_before, report.parameters_after, ",.0f")]
    if report.macs is not None:
        rows.append(_row("MACs of one image", report.macs["before"], report.macs["after"], ",.0f"))
    if report.size_on_disk_before is not None and report.size_on_disk is not None:
        name, unit = on_disk(report.size_on_disk)
        rows.append(_row(name, report.size_on_disk_before / unit, report.size_on_disk / unit, ",.1f"))
    before, after = report.metrics_before, report.metrics_after
    for name in ("perplexity",) if "before_perplexity" in before else [key.removeprefix("before_") for key in before]:
        old, new = before[f"before_{name}"], after[f"after_{name}"]
        rows.append((f"Held-out {name}", metric(name, old), metric(name, new), metric_change(name, old, new)))
    rows += task_rows(report)
    if report.latency is not None:
        rows += _speed_rows(report.latency)
    widths = [max(least, *(len(row[column]) for row in rows)) for column, least in enumerate((20, 12, 12, 11))]
    head, *body = [("", "before", "after", "change"), *rows]
    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    lines = [_line(head, widths), f"|{rule}|", *(_line(row, widths) for row in body)]
    return "\n".join([*lines, "", *_shapes(report.sizes)])


def _line(cells: Row, widths: Sequence[int]) -> str:
    name, *figures = (f"{cell:{'<' if index == 0 else '>'}{widths[index]}}" for index, cell in enumerate(cells))
    return f"| {' | '.join([name, *figures])} |"


def _row(name: str, before: float, after: float, form: str) -> tuple[str, str, str, str]:
    return name, f"{before:{form}}", f"{after:{form}}", change(before, after)


def _shapes(sizes: dict[str, list[int]]) -> list[str]:
    """One line per kind of unit: how many each layer has before and after."""
    lines = []
    kinds = {
        "ffn": "FFN neurons per layer",
        "decoder_ffn": "FFN neurons per layer of the decoder",
        "heads": "Attention heads (key/value groups) per layer",
        "channels": "Channels per layer",
    }
    if any(".experts." in key for key in sizes):
        kinds |= {"ffn": "FFN neurons per expert", "shared_ffn": "FFN neurons per shared expert"}
    for kind, what in kinds.items():
        pairs = [pair for key, pair in sizes.items() if key.endswith(f".{kind}")]
        if not pairs:
            continue
        before, after = ([pair[side] for pair in pairs] for side in (0, 1))
        span = [f"{min(side)}" if min(side) == max(side) else f"{min(side)} to {max(side)}" for side in (before, after)]
        lines.append(f"{what}: {span[0]} -> {span[1]}")
    return lines
