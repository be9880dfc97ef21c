"""What a run reports: notes, figures with their intervals, the method in words, and a summary for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from ...publishing.formats import percent
from ...publishing.pruning_report import PruningReport
from ...saving.output import Circumstances
from ...surgery.plan import PruningPlan
from ...utils.option_values import published
from ...utils.types import Json
from .arguments import DetrimentalArguments
from .attribution import Attribution
from .figures import accuracy_figures, mcnemar
from .scoring import Outcome
from .search import GridPoint

SOURCE = "arXiv:2507.09185"


@dataclass(frozen=True)
class Findings:
    """What attribution and search found.

    Attributes:
        attributions: by layer.
        points: the grid, the whole model first.
        best: the point that was chosen.
        num_examples: adaptation examples that it was chosen on.
        weights: those that went from zero to their values.
        num_attributed: examples that the attributions are the mean of.
        remark: a note of the attribution, or None.
    """

    attributions: Mapping[int, Attribution]
    points: Sequence[GridPoint]
    best: GridPoint
    num_examples: int
    weights: str
    num_attributed: int
    remark: str | None = None


def notes(found: Findings, width: int | None, tolerance: float) -> Iterator[str]:
    """Sentences for the user.

    Args:
        width: neurons that the pruned layer keeps; None if nothing is removed.
        tolerance: allowed error of completeness.
    """
    if width is None:
        yield (
            f"Nothing is removed: no point of the grid has a higher accuracy on the {found.num_examples} adaptation examples "
            f"than the whole model ({percent(found.points[0].accuracy)})."
        )
    elif width % 8:
        yield (
            f"Layer {found.best.layer} keeps {width} neurons, which is not a multiple of 8: some kernels run slower on such a "
            "width, and quantised GGUF needs multiples of 32. Set `round_to` to get one."
        )
    if found.remark is not None:
        yield found.remark
    gaps = {layer: attribution.gap for layer, attribution in found.attributions.items() if attribution.gap > tolerance}
    if gaps:
        worst = max(gaps, key=lambda layer: gaps[layer])
        yield (
            f"The attributions of {len(gaps)} of {len(found.attributions)} layers miss completeness by more than "
            f"{tolerance:.2%} even with {found.attributions[worst].steps} steps; most in layer {worst}, by {gaps[worst]:.2%}. "
            "Raise `max_steps`, or load the model in float32."
        )


def held_out_figures(before: Outcome | None, after: Outcome | None) -> Json | None:
    """Accuracy on the held-out examples before and after, and the test of their difference; None if it was not measured."""
    if before is None or after is None:
        return None
    return {
        "before": accuracy_figures(before.correct),
        "after": accuracy_figures(after.correct),
        **mcnemar(before.correct, after.correct),
    }


def method_lines(found: Findings, held_out: Json | None) -> list[str]:
    """The method in sentences, for the model card."""
    best, whole, count = found.best, found.points[0], found.num_examples
    shares = sorted({point.share for point in found.points[1:]})
    steps = max(attribution.steps for attribution in found.attributions.values())
    removed = (
        "Nothing was removed"
        if best.layer is None
        else f"{best.removed:,} FFN neurons ({100 * best.share:.0f} %) of layer {best.layer} were removed"
    )
    lines = [
        f"Detrimental neurons ({SOURCE}): {removed}. Neurons were ranked by integrated gradients of the largest logit behind the "
        f"prompt (`{found.weights}` from zero to its values, at most {steps} midpoints) on {found.num_attributed} labelled "
        "examples.",
        f"Layer and share were chosen by accuracy on the same {count} examples, among {len(found.attributions)} layers and "
        f"{len(shares)} shares from {percent(shares[0])} to {percent(shares[-1])}: {percent(whole.accuracy)} before, "
        f"{percent(best.accuracy)} after.",
    ]
    if held_out is not None:
        lines.append(f"{_held_out_line(held_out)}.")
    return [*lines, "No compensation and no training after the cut."]


def _held_out_line(held_out: Json) -> str:
    sides = (held_out["before"], held_out["after"])
    spans = [f"{percent(side['accuracy'])} [{percent(side['low'])}, {percent(side['high'])}]" for side in sides]
    return (
        f"Accuracy on {sides[0]['num_examples']} held-out examples with 95 % intervals: {spans[0]} -> {spans[1]}; "
        f"{held_out['gained']} gained, {held_out['lost']} lost, McNemar p = {held_out['p_value']:.3g}"
    )


def report(
    found: Findings,
    plan: PruningPlan,
    parameters: int,
    before: Outcome | None,
    after: Outcome | None,
    protocol: Mapping[str, Json],
    args: DetrimentalArguments,
    circumstances: Circumstances,
) -> PruningReport:
    """The report of a run.

    Args:
        parameters: of the pruned model.
        protocol: what the "adaptation" and the "held_out" examples are.
    """
    held_out = held_out_figures(before, after)
    return PruningReport(
        parameters_before=plan.parameters_before,
        parameters_after=parameters,
        reduction=plan.reduction,
        layout=plan.layout,
        sizes={key: [size, len(plan.kept[key])] for key, size in plan.sizes.items()},
        metrics_before={} if before is None else {"before_accuracy": before.accuracy},
        metrics_after={} if after is None else {"after_accuracy": after.accuracy},
        calibration=published(protocol.get("adaptation")),
        evaluation=published(protocol.get("held_out")),
        detrimental={
            "layer": found.best.layer,
            "share": found.best.share,
            "removed": found.best.removed,
            "weights": found.weights,
            "num_attributed": found.num_attributed,
            "held_out": held_out,
            "adaptation": {
                "num_examples": found.num_examples,
                "before": asdict(found.points[0]),
                "after": asdict(found.best),
            },
            "completeness": {
                str(layer): {"gap": attribution.gap, "steps": attribution.steps}
                for layer, attribution in found.attributions.items()
            },
            "grid": [asdict(point) for point in found.points],
        },
        method=method_lines(found, held_out),
        sources=[SOURCE],
        notes=list(plan.notes),
        arguments=published(args.to_dict()),
        **circumstances,
    )


def summary(report: PruningReport) -> str:
    """The report's figures in a few lines."""
    assert report.detrimental is not None
    found, adaptation = report.detrimental, report.detrimental["adaptation"]
    lines = []
    if found["layer"] is not None:
        lines.append(
            f"Removed {found['removed']:,} neurons ({100 * found['share']:.0f} %) of layer {found['layer']}: "
            f"{report.parameters_before:,} -> {report.parameters_after:,} parameters"
        )
    lines.append(
        f"Accuracy on the {adaptation['num_examples']} adaptation examples: {percent(adaptation['before']['accuracy'])} -> "
        f"{percent(adaptation['after']['accuracy'])} (layer and share were chosen on them)"
    )
    if found["held_out"] is not None:
        lines.append(_held_out_line(found["held_out"]))
    return "\n".join([*lines, *report.notes])
