"""The sections of a run's report, each from the figures in a saved folder; a section without any is `missing`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from ...planning import SCORES_FILE, GroupScores, RoundScores
from ...utils.types import Json
from ..card import tables as card_tables
from ..card import words
from ..formats import change, metric, metric_change, number, percent
from ..saved_folder import SavedFolder
from . import charts
from .drawing import is_logarithmic
from .page import Chart, Section, Table

NOT_MEASURED = "Not measured in this run"
# Eigenvalues that the table names, counted from the largest; the chart has all that were kept.
_EIGENVALUES = (1, 2, 3, 5, 10, 24)
_STEPS = {"start": "before the run", "surgery": "cut, compensation", "lm_eval": "lm_eval"}


def _missing(id: str, title: str, reason: str) -> Section:
    return Section(id, title, [f"{NOT_MEASURED}. {reason}"], missing=True)


def _by_kind(keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """{kind: {name of the layer: group key}}, in order."""
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        place, _, kind = key.rpartition(".")
        found.setdefault(kind, {})[place.removeprefix("layers.")] = key
    return found


def _name(*parts: str) -> str:
    """A name for ids and files."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts)


def _span(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


# ---- before and after


def comparison_rows(saved: SavedFolder) -> list[tuple[str, str, str, str]]:
    """(what, before, after, change) of size, quality and speed, as far as they were measured.

    Raises:
        ValueError: a figure of a pair is missing.
    """
    rows = [tuple(row) for row in card_tables.size_rows(saved)]
    for name, before, after in card_tables.metrics(saved):
        what = f"Held-out {name.replace('_', ' ')}"
        rows.append((what, metric(name, before), metric(name, after), metric_change(name, before, after)))
    return [*rows, *card_tables.task_rows(saved.report), *card_tables.speed_rows(saved)]  # type: ignore[list-item]


def before_and_after(saved: SavedFolder) -> Section:
    """The table of all pairs of figures."""
    text = []
    evaluation = words.protocol_words(saved.report.evaluation)
    if not card_tables.metrics(saved):
        text.append("Quality was not measured in this run: there was no held-out data.")
    elif evaluation:
        text.append(f"Held-out figures were measured on {evaluation}.")
    if tasks := words.lm_eval_words(saved.report):
        text.append(tasks)
    speeds = card_tables.speed_rows(saved)
    if not speeds:
        text.append("Speed was not measured in this run.")
    elif card_tables.is_unclear(speeds):
        text.append("A change of speed is unclear where the timings of both models overlap, as on a busy machine.")
    table = Table(["", "before", "after", "change"], comparison_rows(saved))
    return Section("before-and-after", "Before and after", text, tables=[table])


def own_words(saved: SavedFolder) -> Section:
    """What both models make of three held-out texts, side by side."""
    title, (head, rows) = "In its own words", card_tables.sample_rows(saved)
    if not rows:
        return _missing("words", title, "The model was not asked to continue or to classify any text.")
    text = (
        "Greedy continuations of at most 40 tokens; the prompts are from three held-out texts."
        if head[0] == "Prompt"
        else "The most likely label of three held-out texts, with its probability."
    )
    return Section("words", title, [text], tables=[Table(head, [[entry or "–" for entry in row] for row in rows], words=True)])


# ---- widths


def widths(saved: SavedFolder) -> Section:
    """Units of every layer before and after."""
    sizes = saved.report.sizes
    kinds, tables, spans = {}, [], []
    for kind, keys in _by_kind(sizes).items():
        name = card_tables.kind_name(saved, kind)
        pairs = [sizes[key] for key in keys.values()]
        before, after = ([pair[side] for pair in pairs] for side in (0, 1))
        kinds[name] = (list(keys), before, after)
        tables += [
            (name, layer, number(old), number(new), change(old, new)) for layer, old, new in zip(keys, before, after, strict=True)
        ]
        spans.append(f"{name} per layer: {_span(before)} before, {_span(after)} after")
    if not kinds:
        return _missing("widths", "Widths per layer", "The report names no layers.")
    text = f"Bars of {len(next(iter(kinds.values()))[0])} layers. {'. '.join(spans)}."
    caption = "A bar is a layer's width before pruning: the blue part was kept, the grey part removed."
    numbers = Table(["Units", "layer", "before", "after", "change"], tables)
    return Section("widths", "Widths per layer", charts=[Chart("widths", charts.widths(kinds), text, caption, numbers)])


# ---- scores


def scores(saved: SavedFolder, rounds: Sequence[RoundScores]) -> Section:
    """Distributions of the scores with the line of the cut, in the last round and, if there were more, in the first."""
    title = "Scores and the cut"
    if not rounds:
        return _missing("scores", title, f"The folder has no `{SCORES_FILE}`.")
    shown = {len(rounds): rounds[-1]} | ({1: rounds[0]} if len(rounds) > 1 else {})
    text = [
        f"The criterion `{saved.plan.criterion}` gives every unit a score; in each layer the units with the lowest scores "
        "are removed. Each row is a layer; the line across it is the cut."
    ]
    if len(rounds) > 1:
        text.append(
            f"There were {len(rounds)} rounds, each with new scores for the remaining units. The last and the first are shown."
        )
    drawn = [
        _score_chart(saved, kind, {layer: groups[key] for layer, key in keys.items()}, index, len(rounds))
        for index, groups in shown.items()
        for kind, keys in _by_kind(groups).items()
    ]
    return Section("scores", title, text, charts=drawn, folded=_cuts_by_round(rounds) if len(rounds) > 1 else [])


def _score_chart(saved: SavedFolder, kind: str, layers: Mapping[str, GroupScores], index: int, total: int) -> Chart:
    name = card_tables.kind_name(saved, kind)
    when = f", round {index} of {total}" if total > 1 else ""
    removed = sum(group.units - group.kept for group in layers.values())
    units = sum(group.units for group in layers.values())
    values = [value for group in layers.values() for value in group.scores]
    text = (
        f"Scores of the {name.lower()} of {len(layers)} layers{when}, from {number(min(values))} to {number(max(values))}; "
        f"{removed:,} of {units:,} are left of the cut in their layer and were removed."
    )
    full = all(len(group.scores) == group.units for group in layers.values())
    caption = (
        "Every stroke is one unit."
        if full
        else f"Each shape is drawn from {max(len(group.scores) for group in layers.values())} scores at even ranks; heights are "
        "relative within a row."
    )
    if is_logarithmic(values) and min(values) == 0:
        caption += " Scores of zero are at the left edge."
    head = ["layer", "units", "removed", "smallest", "median", "largest", "largest removed", "smallest kept"]
    rows = [
        (
            layer,
            number(group.units),
            number(group.units - group.kept),
            *(number(value) for value in (group.scores[0], group.scores[len(group.scores) // 2], group.scores[-1])),
            number(group.largest_removed),
            number(group.smallest_kept),
        )
        for layer, group in layers.items()
    ]
    figure = charts.scores(f"{name}{when}", layers)
    chart_name = _name("scores", kind) if index == total else _name("scores", kind, "first")
    return Chart(chart_name, figure, text, caption, Table(head, rows))


def _cuts_by_round(rounds: Sequence[RoundScores]) -> list[Table]:
    """The line of the cut of every layer in every round."""
    head = ["Group", *(f"round {index}" for index in range(1, len(rounds) + 1))]
    rows = [
        (
            f"`{key}`",
            *(
                "none removed"
                if group.largest_removed is None
                else f"{number(group.largest_removed)} | {number(group.smallest_kept)}"
                for group in (groups[key] for groups in rounds)
            ),
        )
        for key in rounds[0]
    ]
    return [Table(head, rows, title="The cut in each round: largest score removed | smallest score kept")]


# ---- spectra


def spectra(saved: SavedFolder, rounds: Sequence[RoundScores]) -> Section:
    """The leading part of every layer's distortion spectrum, before anything was cut."""
    title = "Distortion spectrum"
    groups = {key: group for key, group in rounds[0].items() if group.spectrum} if rounds else {}
    if not groups:
        reason = f"The criterion `{saved.plan.criterion}` has no such spectrum, or the folder does not keep it."
        return _missing("spectrum", title, reason)
    text = [
        "Two neighbour graphs of a layer's channels, one of the signals before the layer and one of those after it, have the "
        "Laplacians `L_in` and `L_out`. The eigenvalues λ of `L_in v = λ (L_out + ε) v` say how far the layer pulls neighbours "
        "apart along a direction v; a unit's score is its share in all of them."
    ]
    if len(rounds) > 1:
        text.append("The first round is shown: the dense model.")
    drawn = []
    for kind, keys in _by_kind(groups).items():
        layers = {layer: groups[key].spectrum for layer, key in keys.items()}
        name, most = card_tables.kind_name(saved, kind), max(map(len, layers.values()))
        shown = [rank for rank in _EIGENVALUES if rank <= most]
        rows = [
            (layer, *(number(found[rank - 1]) if rank <= len(found) else "–" for rank in shown))
            for layer, found in layers.items()
        ]
        largest = [found[0] for found in layers.values()]
        described = (
            f"The {most} largest eigenvalues of {len(layers)} layers, {name.lower()}. A layer's largest is {_span(largest)}."
        )
        caption = f"The {most} largest eigenvalues of every layer. A long gap means that a few directions carry the distortion."
        numbers = Table(["layer", *(f"λ {rank}" for rank in shown)], rows)
        drawn.append(Chart(_name("spectrum", kind), charts.spectra(name, layers), described, caption, numbers))
    return Section("spectrum", title, text, charts=drawn)


# ---- rounds


def rounds(saved: SavedFolder) -> Section:
    """Size and, where measured, held-out loss after every round."""
    log = saved.state.get("log_history") or []
    before = saved.report.parameters_before
    sizes = {0: before} | {entry["step"]: entry["parameters"] for entry in log if "parameters" in entry}
    last = max(sizes)
    if last < 2:  # one round is what all of the page is about
        return _missing("rounds", "Rounds", "The run logged nothing about several rounds.")
    after, masked = _losses(saved, log, last)
    start, end = saved.report.metrics_before.get("before_loss"), saved.report.metrics_after.get("after_loss")
    if start is not None:
        after = {0: start, **after}
    final = {} if end is None else {last: end}
    series = {charts.AFTER_ROUND: after, charts.MASKED: masked, charts.AT_THE_END: final}
    head = ["Round", "parameters", "change", *(name for name, points in series.items() if points)]
    rows = [
        (
            "dense" if step == 0 else str(step),
            f"{size:,}",
            change(before, size) if step else "",
            *(number(points.get(step)) for points in series.values() if points),
        )
        for step, size in sizes.items()
    ]
    text = [f"{last} rounds; each scored the remaining units again."]
    if not after and not final:
        text.append("The held-out loss was not measured in this run.")
    elif len(after) < 2 and not masked:
        text.append(
            "The held-out loss was measured only before and after the run; `eval_strategy=steps` measures it in every round."
        )
    if saved.report.recovery:
        text.append("The loss at the end was measured after recovery.")
    table = Table(head, rows)
    described = f"{last} rounds: from {before:,} to {sizes[last]:,} parameters."
    if end is not None and start is not None:
        described += f" Held-out loss from {number(start)} to {number(end)}."
    chart = Chart("rounds", charts.rounds(sizes, series), described, "Size and held-out loss after every round.", table)
    return Section("rounds", "Rounds", text, charts=[chart])


def _losses(saved: SavedFolder, log: Sequence[Json], last: int) -> tuple[dict[int, float], dict[int, float]]:
    """Held-out losses {round: loss} after a round's cut, and with its units masked before it (under a stopping rule)."""
    logged: dict[int, list[float]] = {}
    for entry in log:
        if "eval_loss" in entry:
            logged.setdefault(entry["step"], []).append(entry["eval_loss"])
    arguments = saved.report.arguments
    masked = {}
    if arguments.get("stop_metric"):
        # A stopping rule tries the next round last of all, when the step is still that of the round before.
        for step in [step for step in logged if step < arguments["num_rounds"]]:
            masked[step + 1] = logged[step].pop()
    # The round that the rule refused has no size to stand beside.
    return {step: found[-1] for step, found in logged.items() if found}, {k: v for k, v in masked.items() if k <= last}


# ---- recovery


def recovery(saved: SavedFolder) -> Section:
    """The loss of the one fine-tuning stage over its steps."""
    title, found = "Recovery", saved.report.recovery
    if not found:
        return _missing("recovery", title, "There was no training after the cut.")
    metrics, log = found["metrics"], found.get("log_history") or []
    training = {entry["step"]: entry["loss"] for entry in log if "loss" in entry}
    last = max((entry["step"] for entry in log), default=0)
    held_out = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
    before, after = metrics.get("before_loss"), metrics.get("after_loss")
    held_out = ({} if before is None else {0: before}) | held_out | ({} if after is None else {last: after})
    kept = (
        "The recovered weights were kept."
        if found["kept"] == "recovered"
        else "The recovered weights were no better and were not kept."
    )
    text = [
        f"One stage (`{saved.report.arguments['recovery']}`) of {last:,} steps. Held-out loss {number(before)} before, "
        f"{number(after)} after. {kept}",
        *found.get("notes", []),
    ]
    if not training:
        text.append("The Trainer logged no curve; `logging_steps` in `training_args` sets how often it logs.")
        return Section("recovery", title, text)
    steps = sorted({*training, *held_out})
    rows = [(f"{step:,}", number(training.get(step)), number(held_out.get(step))) for step in steps]
    numbers = Table(["step", "training loss", "held-out loss"], rows)
    described = f"Training loss over {last:,} steps, from {number(training[min(training)])} to {number(training[max(training)])}."
    caption = (
        "The training loss is what the Trainer minimised (for distillation it has its own terms); the held-out one is the task's."
    )
    return Section(
        "recovery", title, text, charts=[Chart("recovery", charts.recovery(training, held_out), described, caption, numbers)]
    )


# ---- cost


def cost(saved: SavedFolder) -> Section:
    """Where time and memory went."""
    title = "Time and memory"
    timings, peak, growth = saved.report.timings, saved.report.peak_memory or {}, saved.report.peak_memory_growth or {}
    if not timings:
        return _missing("cost", title, "The report has no timings.")
    total = sum(timings.values())
    panels = {"Seconds": {_step(name): seconds for name, seconds in timings.items()}}
    places = {"host": "Peak memory, MiB", "accelerator": "Accelerator, MiB"}
    used = {place: what for place, what in places.items() if growth and peak.get(place)}
    for place, what in used.items():
        panels[what] = {_step(name): found.get(place, 0) / 2**20 for name, found in growth.items()}
    names = list(dict.fromkeys([*growth, *timings]))
    rows = [
        (
            _step(name),
            number(timings.get(name)),
            percent(timings[name] / total) if name in timings and total else "–",
            *(f"{growth.get(name, {}).get(place, 0) / 2**20:,.0f}" for place in used),
        )
        for name in names
    ]
    most = [f"{bytes / 2**30:.2f} GiB on the {place}" for place, bytes in peak.items() if bytes]
    memory = f" Peak memory was {' and '.join(most)}." if most else ""
    text = [f"The steps of the run took {total:,.1f} s, not counting loading, saving and the self-check.{memory}"]
    caption = "Seconds per step"
    if used:
        caption += ", and by how many MiB each step raised the peak memory"
    numbers = Table(["Step", "seconds", "share", *used.values()], rows)
    described = f"Seconds per step, {total:,.1f} in all; most went to {_step(max(timings, key=lambda name: timings[name]))}."
    return Section("cost", title, text, charts=[Chart("cost", charts.cost(panels), described, f"{caption}.", numbers)])


def _step(name: str) -> str:
    return _STEPS.get(name, name.replace("_", " "))


# ---- settings


def settings(saved: SavedFolder) -> Section:
    """Method, data, machine, arguments and versions."""
    protocols = {"calibration": saved.report.calibration, "evaluation": saved.report.evaluation}
    data = [(name, words.protocol_words(protocol) or "none") for name, protocol in protocols.items()]
    arguments = [(f"`{name}`", json.dumps(value, ensure_ascii=False)) for name, value in saved.report.arguments.items()]
    versions = [(name, str(version)) for name, version in saved.report.versions.items()]
    return Section(
        "settings",
        "Arguments and versions",
        # The notes stand at the top of the page.
        points=[*(line for line in words.method_lines(saved) if line not in saved.plan.notes), words.self_check_words(saved)],
        tables=[Table(["", ""], [*data, ("machine", words.machine_words(saved))], words=True)],
        folded=[
            Table(["Argument", "value"], arguments, words=True, title=f"All {len(arguments)} arguments"),
            Table(["Library", "version"], versions, words=True, title="Versions"),
        ],
    )
