"""What a pruning returns and reports, and what each of its steps cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypedDict

from transformers import PreTrainedModel

from ..arguments import SpectralPruningArguments
from ..criteria import Diagnostics
from ..criteria.passes.ndi_bounds import plan_bounds
from ..data.texts import CalibrationData
from ..evaluation.figures import num_parameters
from ..evaluation.samples import paired
from ..evaluation.tasks import TaskFigures, paired_figures
from ..models.families.groups import is_vision
from ..planning import RoundScores
from ..planning.reduction_target import macs_report
from ..publishing.card.base_model import base_model_facts
from ..publishing.card.tables import before_after_table
from ..publishing.pruning_report import PruningReport
from ..recovery.recover import RecoveryOutput
from ..rounds import Run
from ..surgery.plan import PruningPlan
from ..utils.environment import library_versions, machine, peak_memory
from ..utils.option_values import published
from ..utils.types import Json


@dataclass
class PruningOutput:
    """What `prune()` returns, as TrainOutput is for Trainer.

    Attributes:
        model: the pruned model, or the plain network that was given.
        plan: what was kept, in the original model's numbering.
        metrics: figures of the run (parameters, reduction, seconds).
        report: everything that `pruning_report.json` holds.
        scores: of every round, in short, as in `pruning_scores.json`.
    """

    model: Any
    plan: PruningPlan
    metrics: dict[str, float]
    report: PruningReport
    scores: list[RoundScores] = field(default_factory=list)

    def summary(self) -> str:
        """The plan in a few lines, and the table of figures before and after."""
        return f"{self.plan.summary()}\n\n{before_after_table(self.report)}"

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return f"<PruningOutput: {type(self.model).__name__}, {self.plan.summary().splitlines()[0]}>"


@dataclass
class StepCosts:
    """Seconds and growth of the peak memory, step by step.

    Attributes:
        seconds: {step: seconds of all its turns}.
        growth: bytes that the peak had reached before the run (`start`), and by which each step raised it; they add up to
            the peak.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    growth: dict[str, dict[str, int]] = field(default_factory=lambda: {"start": peak_memory()})

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        """Adds what happens inside to a step."""
        start, before = time.perf_counter(), peak_memory()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start
        growth = self.growth.setdefault(step, dict.fromkeys(before, 0))
        for place, peak in peak_memory().items():
            growth[place] += max(0, peak - before[place])


@dataclass(frozen=True)
class ModelFigures:
    """What a run measures of a model, once before the first cut and once at the end.

    Attributes:
        metrics: held-out figures `before_*` or `after_*`; empty where there is no evaluation data.
        samples: {text: what the model makes of it}.
        tasks: {task of lm_eval: figures}.
        num_bytes: of the weights; of the dense model alone.
        macs: {path of a layer: MACs of one image}; of the dense model alone, where it reads images.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    samples: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, TaskFigures] = field(default_factory=dict)
    num_bytes: int = 0
    macs: dict[str, int] = field(default_factory=dict)


def pruning_report(
    model: PreTrainedModel,
    args: SpectralPruningArguments,
    run: Run,
    before: ModelFigures,
    after: ModelFigures,
    diagnostics: Diagnostics,
    recovered: RecoveryOutput | None,
    calibration: CalibrationData | None,
    evaluation: CalibrationData | None,
    circumstances: Circumstances,
) -> PruningReport:
    """The report of a run of SpectralPruner.

    Args:
        model: pruned.
        before, after: of the dense model and of this one.
        diagnostics: of the scores of the dense model.

    Raises:
        RuntimeError: see `planning.reduction_target.macs_report`.
    """
    assert run.plan is not None
    parameters = num_parameters(model)
    sizes = {group.key: [group.size, len(run.plan.kept[group.key])] for group in run.groups}
    bounds = plan_bounds(diagnostics, run.plan.kept)
    macs = None
    if is_vision(model):
        macs = macs_report(model, run.target, {key: left for key, (_, left) in sizes.items()}, before.macs, calibration)
    return PruningReport(
        parameters_before=run.parameters_before,
        parameters_after=parameters,
        reduction=1 - parameters / run.parameters_before,
        target_reduction=args.target_reduction if run.target.unit != "bytes" else 1 - run.target.goal / run.target.now,
        target_scope=args.target_scope,
        layout=args.layout,
        sizes=sizes,
        metrics_before=before.metrics,
        metrics_after=after.metrics,
        recovery=None if recovered is None else recovered.report(),
        calibration=None if calibration is None else published(calibration.protocol) | {"digest": calibration.digest},
        evaluation=None if evaluation is None else published(evaluation.protocol) | {"digest": evaluation.digest},
        notes=list(run.plan.notes),
        arguments=published(args.to_dict()),
        size_on_disk_before=before.num_bytes,
        bounds=None if bounds is None else dict(bounds),
        macs=macs,
        samples=paired(before.samples, after.samples) or None,
        lm_eval=paired_figures(args, before.tasks, after.tasks),
        **circumstances,
    )


class Circumstances(TypedDict):
    """What every report says of a run, whatever was pruned: its costs, where it ran, and where the model came from."""

    timings: dict[str, float]
    peak_memory: dict[str, int]
    peak_memory_growth: dict[str, dict[str, int]]
    machine: dict[str, str | int]
    base_model: Json
    versions: dict[str, str]


def circumstances(costs: StepCosts, base_model: str | None) -> Circumstances:
    """The circumstances of a run that ends now."""
    return {
        "timings": costs.seconds,
        "peak_memory": peak_memory(),
        "peak_memory_growth": costs.growth,
        "machine": machine(),
        "base_model": base_model_facts(base_model),
        "versions": library_versions(),
    }
