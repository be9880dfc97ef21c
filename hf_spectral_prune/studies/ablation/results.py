"""What an ablation gives: agreement of every criterion with the truth, by layer and over layers; table and JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np

from ...utils.environment import library_versions, machine
from ...utils.files import plain, write_text
from ...utils.types import Json
from ..showing import aligned
from .plot import Panel, Series, draw
from .scoring import Scored
from .statistics import CONFIDENCE, NUM_RESAMPLES, Agreement, Array, Chance, agreement, chance, interval, num_lowest, spearman
from .truth import Damage

FORMAT_VERSION = 1
KINDS = {
    "ffn": "FFN neurons",
    "shared_ffn": "FFN neurons of shared experts",
    "decoder_ffn": "FFN neurons of the decoder",
    "heads": "attention heads (key/value groups)",
    "channels": "channels",
}
_DIRECTION = (
    "A higher score says keep; damage is the loss without the unit minus the loss with all, in nats per target, below zero "
    "where removal helps; shift is the root mean square of that change over batches, which does not let texts cancel each other."
)
# What scores are held against, and its name in tables.
Truth = Literal["damage", "shift"]
TRUTHS: dict[Truth, str] = {"damage": "true damage", "shift": "size of the change, either way"}


@dataclass(frozen=True)
class Summary:
    """A figure over layers, those where it is undefined left out.

    Attributes:
        mean, std, least, most: over layers; `std` is None for one layer, all are None for none.
        interval: bootstrap interval of the mean, units drawn anew within each layer.
        layers: number of layers that have the figure.
    """

    mean: float | None
    std: float | None
    least: float | None
    most: float | None
    interval: list[float] | None
    layers: int


@dataclass(frozen=True)
class AblationResult:
    """True damage of a sample of units, and every criterion's scores of the same units.

    Attributes:
        protocol: model, calibration and held-out data, with digests.
        arguments: options of the run.
        damage: by unit group, in the order of kinds and layers.
        scored: by label.
    """

    protocol: Json
    arguments: Json
    damage: list[Damage]
    scored: dict[str, Scored]

    @property
    def failed(self) -> dict[str, str]:
        """{label: why it failed}."""
        return {label: scored.error for label, scored in self.scored.items() if scored.error is not None}

    @property
    def labels(self) -> list[str]:
        """Criteria that have scores."""
        return [label for label in self.scored if label not in self.failed]

    @property
    def kinds(self) -> list[str]:
        """Kinds of unit, in the order asked for."""
        return list(dict.fromkeys(str(damage.group.kind) for damage in self.damage))

    def of_kind(self, kind: str) -> list[Damage]:
        """Damage of one kind of unit, layer by layer."""
        return [damage for damage in self.damage if damage.group.kind == kind]

    def scores(self, label: str, damage: Damage) -> Array:
        """(m,) scores of the sampled units of one group."""
        return np.array(self.scored[label].scores[damage.group.key])[damage.units]

    @cached_property
    def agreement(self) -> dict[str, dict[str, Agreement]]:
        """{group key: {label: agreement with the true damage}}."""
        return self._agreement("damage")

    @cached_property
    def shift_agreement(self) -> dict[str, dict[str, Agreement]]:
        """The same with how far the loss moves, whichever way, as the truth."""
        return self._agreement("shift")

    def _agreement(self, truth: Truth) -> dict[str, dict[str, Agreement]]:
        share = self.arguments["top_share"]
        return {
            damage.group.key: {
                label: agreement(self.scores(label, damage), _truth_of(damage, truth), share, self._seed(damage))
                for label in self.labels
            }
            for damage in self.damage
        }

    def agreement_with(self, truth: Truth) -> dict[str, dict[str, Agreement]]:
        """{group key: {label: agreement with this truth}}."""
        return self.agreement if truth == "damage" else self.shift_agreement

    @cached_property
    def chance(self) -> dict[str, Chance]:
        """{group key: what random orders give}."""
        share = self.arguments["top_share"]
        return {damage.group.key: chance(damage.mean, share, self._seed(damage)) for damage in self.damage}

    def _seed(self, damage: Damage) -> int:
        digest = hashlib.sha256(f"{self.arguments['seed']}/{damage.group.key}/intervals".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def summary(self, kind: str, label: str, figure: str, truth: Truth = "damage") -> Summary:
        """`figure` ("spearman" or "overlap") of one criterion over the layers of one kind of unit."""
        found = [self.agreement_with(truth)[damage.group.key][label] for damage in self.of_kind(kind)]
        found = [one for one in found if getattr(one, figure) is not None]
        return summarise([getattr(one, figure) for one in found], [getattr(one, f"{figure}_draws") for one in found])

    def pooled(self, kind: str, label: str, truth: Truth = "damage") -> float | None:
        """Rank correlation over the units of all layers together: whether scores compare across layers."""
        parts = self.of_kind(kind)
        scores = [self.scores(label, part) for part in parts]
        return spearman(np.concatenate(scores), np.concatenate([_truth_of(part, truth) for part in parts]))


def _truth_of(damage: Damage, truth: Truth) -> Array:
    return damage.mean if truth == "damage" else damage.shift


def _reliability_of(damage: Damage, truth: Truth) -> float | None:
    return damage.reliability if truth == "damage" else damage.shift_reliability


def summarise(values: Sequence[float], draws: Sequence[Array | None]) -> Summary:
    """Mean and spread of a figure over layers, with the interval of the mean from the layers' own draws."""
    if not values:
        return Summary(None, None, None, None, None, 0)
    known = [one for one in draws if one is not None]
    # All layers, or the interval would be that of another mean.
    span = interval(np.mean(known, axis=0)) if len(known) == len(values) else None
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(float(np.mean(values)), spread, min(values), max(values), span, len(values))


# ---- JSON


def to_dict(result: AblationResult) -> Json:
    """Everything as plain values: what `ablation.json` holds."""
    return plain(
        {
            "format_version": FORMAT_VERSION,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "direction": _DIRECTION,
            "intervals": f"{CONFIDENCE:.0%}, bootstrap over a layer's sampled units, {NUM_RESAMPLES} resamples; those of chance "
            "are over random orders",
            "protocol": result.protocol,
            "arguments": result.arguments,
            "machine": machine(),
            "versions": library_versions(),
            "criteria": {
                label: scored.options | {"seconds": scored.seconds, "error": scored.error}
                for label, scored in result.scored.items()
            },
            "seconds": {"truth": sum(damage.seconds for damage in result.damage)},
            "summary": {kind: _summary_dict(result, kind) for kind in result.kinds},
            "groups": {damage.group.key: _group_dict(result, damage) for damage in result.damage},
        }
    )


def _summary_dict(result: AblationResult, kind: str) -> Json:
    return {
        label: {
            "spearman": asdict(result.summary(kind, label, "spearman")),
            "overlap": asdict(result.summary(kind, label, "overlap")),
            "pooled_spearman": result.pooled(kind, label),
            "shift_spearman": asdict(result.summary(kind, label, "spearman", "shift")),
            "pooled_shift_spearman": result.pooled(kind, label, "shift"),
        }
        for label in result.labels
    }


def _group_dict(result: AblationResult, damage: Damage) -> Json:
    group = damage.group
    errors = damage.standard_error
    return {
        "layer": group.layer,
        "kind": group.kind,
        "size": group.size,
        "units": damage.units,
        "clean_loss": damage.clean,
        "targets": damage.targets.tolist(),
        "damage": damage.mean.tolist(),
        "standard_error": None if errors is None else errors.tolist(),
        "loss_added_by_batch": damage.sums.tolist(),
        "reliability": damage.reliability,
        "shift": damage.shift.tolist(),
        "shift_reliability": damage.shift_reliability,
        "seconds": damage.seconds,
        "scores": {label: result.scores(label, damage).tolist() for label in result.labels},
        "chance": asdict(result.chance[group.key]),
        "agreement": {label: _agreement_dict(one) for label, one in result.agreement[group.key].items()},
        "shift_agreement": {label: _agreement_dict(one) for label, one in result.shift_agreement[group.key].items()},
    }


def _agreement_dict(one: Agreement) -> Json:
    return {
        "spearman": one.spearman,
        "spearman_interval": interval(one.spearman_draws),
        "overlap": one.overlap,
        "overlap_interval": interval(one.overlap_draws),
        "note": one.note,
    }


# ---- what is shown


def table(result: AblationResult) -> str:
    """For every kind of unit, criteria as rows and layers as columns: rank correlation, then overlap."""
    lines: list[str] = []
    for kind in result.kinds:
        parts = result.of_kind(kind)
        sizes = " or ".join(dict.fromkeys(f"{len(part.units)} of {part.group.size}" for part in parts))
        share = result.arguments["top_share"]
        counts = " or ".join(dict.fromkeys(str(num_lowest(len(part.units), share)) for part in parts))
        name = KINDS.get(kind, kind)
        for truth, said in TRUTHS.items():
            lines += [f"{name[0].upper()}{name[1:]}, {sizes} per layer: rank correlation of score and {said} (Spearman)", ""]
            lines += [*_block(result, kind, "spearman", truth), ""]
        lines += [f"Share of the {counts} least damaging units among the {counts} lowest-scored", ""]
        lines += [*_block(result, kind, "overlap"), ""]
    notes = _notes(result)
    return "\n".join([*lines, *notes]).rstrip()


def verdict(result: AblationResult) -> str:
    """Which criterion's order of the units is most like that of their true damage, in a sentence for each kind of unit."""
    return " ".join(_verdict_on(result, kind) for kind in result.kinds)


def _verdict_on(result: AblationResult, kind: str) -> str:
    name = KINDS.get(kind, kind)
    found = {label: result.summary(kind, label, "spearman") for label in result.labels}
    ranked = sorted((label for label in found if found[label].mean is not None), key=lambda label: -_or_least(found[label].mean))
    if not ranked:
        return f"Verdict on {name}: no criterion has a rank correlation here."
    best, *others = ranked
    first = found[best].interval
    figure = f"rank correlation {_number(found[best].mean)}" + (f", 95 % interval {_span(first)}" if first else "")
    if first is None:
        return f"Verdict on {name}: too few units to tell the criteria from chance; `{best}` comes nearest ({figure})."
    if first[0] <= 0:
        return f"Verdict on {name}: no criterion predicts the damage better than chance; `{best}` comes nearest ({figure})."
    close = [label for label in others if _overlaps(found[label].interval, first)]
    rest = f"; {', '.join(f'`{label}`' for label in close)} cannot be distinguished from it on this sample" if close else ""
    return f"Verdict on {name}: `{best}` predicts the damage best ({figure}){rest}."


def _overlaps(one: Sequence[float] | None, first: Sequence[float] | None) -> bool:
    return one is None or first is None or one[1] >= first[0]


def _block(result: AblationResult, kind: str, figure: str, truth: Truth = "damage") -> list[str]:
    parts = result.of_kind(kind)
    ranked = sorted(result.labels, key=lambda label: -_or_least(result.summary(kind, label, figure, truth).mean))
    head = ["criterion", *(f"layer {part.group.layer}" for part in parts), "mean ± std", "95 % of the mean"]
    rows = [head + (["all layers as one"] if figure == "spearman" else [])]
    for label in ranked:
        summary = result.summary(kind, label, figure, truth)
        values = [getattr(result.agreement_with(truth)[part.group.key][label], figure) for part in parts]
        spread = "" if summary.std is None else f" ± {summary.std:.2f}"
        row = [label, *map(_number, values), _number(summary.mean) + spread, _span(summary.interval)]
        rows.append(row + ([_number(result.pooled(kind, label, truth))] if figure == "spearman" else []))
    chances = [result.chance[part.group.key] for part in parts]
    spans = [getattr(one, f"{figure}_interval") for one in chances]
    expected = np.mean([getattr(one, figure) for one in chances])
    rows.append(["chance, 95 %", *map(_span, spans), _number(float(expected)), ""] + ([""] if figure == "spearman" else []))
    itself = [_reliability_of(part, truth) for part in parts]
    if figure == "spearman" and any(value is not None for value in itself):
        rows.append(["truth with itself", *map(_number, itself), "", "", ""])
    return aligned(rows)


def _notes(result: AblationResult) -> list[str]:
    errors = [damage.standard_error for damage in result.damage]
    first = result.damage[0]
    typical = float(np.median(np.abs(np.concatenate([damage.mean for damage in result.damage]))))
    noise = [error for error in errors if error is not None]
    said = f"; its standard error over {len(first.targets)} batches is {np.median(np.concatenate(noise)):.2g}" if noise else ""
    lines = [
        f"True damage is the change of the held-out loss ({first.clean:.4f}) over {int(first.targets.sum()):,} targets without "
        f"the unit. Its size is {typical:.2g} (median of absolute values){said}.",
        "Removing a unit often helps on one text and harms on another. The size of the change is the root mean square over "
        "batches, so that the two do not cancel: how much a unit matters, whichever way.",
    ]
    if any(damage.reliability is not None for damage in result.damage):
        lines.append(
            "`truth with itself`: expected rank correlation with the same truth on as much other text; a perfect score can "
            "reach about its square root."
        )
    undefined = []
    for key, found in result.agreement.items():
        for note in dict.fromkeys(one.note for one in found.values() if one.note is not None):
            labels = [f"`{label}`" for label, one in found.items() if one.note == note]
            who = "every criterion" if len(labels) == len(found) else ", ".join(labels)
            undefined.append(f"{who} in `{key}`: {note}")
    lines += [f"A rank correlation is undefined (-) for {'; '.join(undefined)}."] if undefined else []
    return lines


def _or_least(value: float | None) -> float:
    return -2.0 if value is None else value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _span(edges: Sequence[float] | None) -> str:
    return "" if edges is None else f"{edges[0]:.2f} to {edges[1]:.2f}"


# ---- files


def panels(result: AblationResult) -> list[Panel]:
    """What `draw` shows: a panel for every kind of unit and truth."""
    found: list[Panel] = []
    for kind, truth in product(result.kinds, TRUTHS):
        parts = result.of_kind(kind)
        chances = [result.chance[part.group.key].spearman_interval for part in parts]
        itself = [_reliability_of(part, truth) for part in parts]
        ceilings = [None if value is None else value**0.5 for value in itself]
        series = []
        for label in result.labels:
            summary = result.summary(kind, label, "spearman", truth)
            values = [result.agreement_with(truth)[part.group.key][label].spearman for part in parts]
            series.append(Series(label, values, summary.mean, summary.interval))
        size = max(len(part.units) for part in parts)
        name = f"{KINDS.get(kind, kind)}, {size} per layer"
        found.append(Panel(name, TRUTHS[truth], [part.group.layer for part in parts], series, chances, ceilings))
    return found


def write_results(result: AblationResult, folder: str | Path) -> None:
    """Writes `ablation.json` and `ablation.png`."""
    folder = Path(folder)
    write_text(folder / "ablation.json", json.dumps(to_dict(result), indent=1) + "\n")
    if not result.labels:
        return
    draw(panels(result), folder / "ablation.png")
