"""Several targets from one run: nested plans by the same scores, each saved, with a table and a plot of what they cost."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..arguments import SpectralPruningArguments
from ..pruner import SpectralPruner
from ..publishing.pruning_report import PruningReport
from ..saving.output import PruningOutput
from ..utils.files import write_png, write_text
from ..utils.option_values import at_fixed_paths
from ..utils.plot_style import DPI, LIGHT, in_style, new_figure
from ..utils.types import ProcessingClass
from .showing import aligned

TABLE, PLOT = "targets.md", "targets.png"


def prune_to_targets(
    model: PreTrainedModel,
    args: SpectralPruningArguments,
    calibration_dataset: object = None,
    eval_dataset: object = None,
    processing_class: ProcessingClass | None = None,
    **options: Any,
) -> list[PruningOutput]:
    """Prunes a model to each of `args.target_reductions`: what a larger target keeps, a smaller one keeps too.

    Calibration, scores, allocation curves and the figures of the dense model are those of one run. Every result is cut, repaired
    and recovered from the dense model, and saved to `output_dir/reduction-FRACTION` like that of a run by itself. A table
    (`targets.md`) and a plot (`targets.png`) of quality against size lie beside them.

    Args:
        model: it becomes the result of the largest target; a copy of it is held for the others.
        options: further keywords of `SpectralPruner`.

    Returns:
        The outputs by rising target.

    Raises:
        ValueError: no targets, no folder, or see `SpectralPruner`.
    """
    if not args.target_reductions or args.output_dir is None:
        raise ValueError("There is nothing to do. Set `target_reductions`, and `output_dir` for the results.")
    args = at_fixed_paths(args, "output_dir")
    assert args.output_dir is not None and args.target_reductions is not None
    targets = sorted(args.target_reductions)
    outputs: list[PruningOutput] = []
    before: SpectralPruner | None = None
    for target in targets:
        folder = folder_of(args.output_dir, target)
        single = replace(
            args,
            target_reduction=target,
            target_reductions=None,
            output_dir=str(folder),
            scores=args.scores if before is None else None,
            save_scores=args.save_scores if before is None else None,
        )
        pruned = model if target == targets[-1] else copy.deepcopy(model)
        pruner = SpectralPruner(pruned, single, calibration_dataset, eval_dataset, processing_class, **options)
        if before is not None:
            pruner.take_from(before)
        outputs.append(pruner.prune())
        pruner.save_model()
        # Read once, also where the data is a stream.
        calibration_dataset, eval_dataset, before = pruner.calibration, pruner.eval_data, pruner
    reports = [output.report for output in outputs]
    write_text(Path(args.output_dir) / TABLE, "\n".join(targets_table(targets, reports)) + "\n")
    if _metric(reports) is not None:
        with in_style():
            _draw(reports, Path(args.output_dir) / PLOT)
    return outputs


def folder_of(output_dir: str, target: float) -> Path:
    """Where the result of a target lies."""
    return Path(output_dir) / f"reduction-{target:g}"


def targets_table(targets: Sequence[float], reports: Sequence[PruningReport]) -> list[str]:
    """Lines of a Markdown table: the dense model and every target with its parameters and held-out figure."""
    metric = _metric(reports)
    first = reports[0]
    rows = [["target", "parameters", "reduction", *([] if metric is None else [metric.replace("_", " ")])]]
    rows.append(["dense", f"{first.parameters_before:,}", "", *_figure(first.metrics_before, "before", metric)])
    for target, report in zip(targets, reports, strict=True):
        figure = _figure(report.metrics_after, "after", metric)
        rows.append([f"{target:g}", f"{report.parameters_after:,}", f"{100 * report.reduction:.1f} %", *figure])
    return aligned(rows)


def _figure(metrics: dict[str, float], side: str, metric: str | None) -> list[str]:
    return [] if metric is None else [f"{metrics[f'{side}_{metric}']:.4g}"]


def _metric(reports: Sequence[PruningReport]) -> str | None:
    """The figure that is shown: perplexity, else the first that is no loss and no count, else the loss."""
    names = [name.removeprefix("after_") for name in reports[0].metrics_after]
    shown = [name for name in names if name != "loss" and not name.startswith("num_")]
    if "perplexity" in shown:
        return "perplexity"
    return next(iter(shown or names), None)


def _draw(reports: Sequence[PruningReport], path: Path) -> None:
    """Writes quality against parameters, one point per target and the dense model, as a PNG."""
    metric, first = _metric(reports), reports[0]
    figure = new_figure(6.0, 4.2)
    axis = figure.subplots()
    points = [(report.parameters_after / 1e6, report.metrics_after[f"after_{metric}"]) for report in reports]
    dense = first.parameters_before / 1e6, first.metrics_before[f"before_{metric}"]
    axis.plot(*zip(dense, *points, strict=True), color=LIGHT["kept"], marker="o")
    axis.plot(*dense, "*", color=LIGHT["ink"], markersize=13, linestyle="none")
    axis.annotate("dense", dense, textcoords="offset points", xytext=(0, -18), ha="center")  # the line comes from above
    axis.margins(0.12)
    for point, report in zip(points, reports, strict=True):
        axis.annotate(f"-{100 * report.reduction:.0f} %", point, textcoords="offset points", xytext=(6, 6))
    axis.set_xlabel("parameters, millions")
    axis.set_ylabel(f"held-out {str(metric).replace('_', ' ')}")
    axis.grid(True)
    write_png(figure, path, DPI)
