"""Runs a comparison cell by cell, with the steps of a pruning run, and keeps every cell as soon as it is finished."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from transformers import EvalPrediction, PreTrainedModel, set_seed
from transformers.utils import logging

from ... import rounds
from ...arguments import TAUGHT_RECOVERIES, SpectralPruningArguments
from ...calibration import GroupMoments, collect_moments
from ...calibration.collect import SIDES
from ...calibration.parts import moments_within
from ...checks import check_data
from ...criteria import Scores, collect_statistics
from ...criteria.calibrate import Evidence
from ...data.for_model import read_labelled, with_labels
from ...data.texts import CalibrationData
from ...evaluation.figures import held_out_figures, num_parameters
from ...models.families import UnitGroup, unit_groups
from ...models.loading import without_quantisation_marks
from ...models.losses import Batch
from ...models.modes import modes_kept
from ...recovery.arguments import recovery_arguments
from ...recovery.recover import lora_targets, recover
from ...surgery import settle_class
from ...surgery.plan import PruningPlan
from ...utils.option_values import at_fixed_paths
from ...utils.types import Collator, Json, ProcessingClass
from ...utils.words import one_line
from ..protocol import cell_key, study_protocol
from .arguments import Cell, ComparisonArguments, comparison_cells, training_arguments
from .folder import FOLDER, Record, read_cell, write_cell
from .results import Comparison, block_name, check_equal_parameters, number, write_results

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Shared:
    """What all cells of a comparison share: the dense model, which no cell changes, and the data."""

    model: PreTrainedModel
    calibration: CalibrationData | None
    held_out: CalibrationData
    processing_class: ProcessingClass | None
    train_dataset: Any
    data_collator: Collator | None
    compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None
    progress: bool


@dataclass
class Decided:
    """What the cells of one criterion and seed share, worked out by the first that needs it.

    Attributes:
        repair: moments of the activations, for the cells with a repair.
        batches: the calibration rows.
        damage: by repair, since measured losses are those of repaired layers.
        plans: by reduction and repair.
    """

    scores: Scores
    repair: Mapping[str, GroupMoments]
    batches: Sequence[Batch] = ()
    damage: dict[str, dict[str, torch.Tensor] | None] = field(default_factory=dict)
    plans: dict[tuple[float, str], PruningPlan] = field(default_factory=dict)

    def evidence(self, compensation: str) -> Evidence:
        """What a cut with this repair reads."""
        return Evidence({}, {}, self.repair if compensation != "none" else {}, self.batches)


def compare(
    model: PreTrainedModel,
    args: ComparisonArguments,
    calibration_dataset: object = None,
    eval_dataset: object = None,
    processing_class: ProcessingClass | None = None,
    *,
    train_dataset: Any = None,
    data_collator: Collator | None = None,
    compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
    report: Callable[[str], None] = logger.info,
) -> Comparison:
    """Prunes copies of a model by several criteria and measures each on the same held-out data.

    Every cell is what `SpectralPruner` with its options makes, in one round. Calibration passes and scores are shared: the
    moments by all criteria that read them, the scores by all cells of a criterion and seed. A cell is kept in `output_dir`
    as soon as it is finished, so that a second call runs only what is missing. At most two copies of the model are in
    memory at a time (three while it recovers).

    Args:
        model: the dense model; it stays as it is.
        calibration_dataset: as for SpectralPruner.
        eval_dataset: as for SpectralPruner.
        processing_class: as for SpectralPruner.
        train_dataset: as for SpectralPruner.
        data_collator: as for SpectralPruner.
        compute_metrics: as for SpectralPruner, whose `evaluate()` gives the same figures.
        report: gets a line for every finished cell, with the time that is left by the mean of those before.

    Raises:
        ValueError: options, data or folder that cannot work, before any work. What fails in a single cell is kept as its
            `error` instead.
        RuntimeError: cells that must have equal numbers of parameters have not.
    """
    if args.output_dir is None:
        raise ValueError("There is no folder for the results. Set `output_dir`.")
    if eval_dataset is None:
        raise ValueError("There is nothing to measure on. Pass `eval_dataset`.")
    cells = comparison_cells(args)
    args = at_fixed_paths(args, "output_dir")
    assert args.output_dir is not None
    FOLDER.check(args.output_dir)
    defaults = SpectralPruningArguments(seed=args.seeds[0])
    read = partial(read_labelled, processing_class=processing_class, model=model, args=defaults, data_collator=data_collator)
    shared = Shared(
        without_quantisation_marks(model),
        None if calibration_dataset is None else read(calibration_dataset, name="calibration_dataset"),
        read(eval_dataset, name="eval_dataset"),
        processing_class,
        with_labels(train_dataset, processing_class, model, defaults),
        data_collator,
        compute_metrics,
        not args.disable_tqdm,
    )
    _check(shared, cells)
    trains = any(recovery != "none" for recovery in args.recoveries)
    protocol = study_protocol(model, shared.calibration, shared.held_out, compute_metrics, train_dataset if trains else None)
    FOLDER.open(args.output_dir, protocol, args.overwrite_output_dir)
    with modes_kept(model):
        dense = _dense(shared, args.output_dir, cell_key(protocol, {"dense": True}))
        records = _run(shared, cells, protocol, args.output_dir, report)
    labelled = [{"label": cell.label, **record} for cell, record in zip(cells, records, strict=True)]
    options = {name: value for name, value in asdict(args).items() if name not in ("output_dir", "overwrite_output_dir")}
    comparison = Comparison(protocol, options, _main_metric(dense), dense, labelled)
    write_results(comparison, args.output_dir)
    check_equal_parameters(labelled)
    return comparison


def _check(shared: Shared, cells: Sequence[Cell]) -> None:
    """Tells of a model, data or a reduction that cannot work before any work."""
    checked = set()
    zeros = {group.key: torch.zeros(group.size) for group in unit_groups(shared.model, cells[0].args.units)}
    for cell in cells:
        args = cell.args
        check_data(shared.model, args, cell.criterion, shared.calibration)
        if args.recovery != "none" and shared.train_dataset is None:
            raise ValueError(f"`recoveries` has `{args.recovery}`, but there is nothing to train on. Pass `train_dataset`.")
        if args.recovery == "lora":
            lora_targets(shared.model, recovery_arguments(args)[0].lora_target_modules)
        if args.target_reduction not in checked:
            checked.add(args.target_reduction)
            # Whether the target can be reached does not depend on the scores: measuring loss curves for it would be work.
            probe = args if args.allocation == "proportional" else replace(args, allocation="scores")
            try:
                rounds.decide(shared.model, probe, rounds.start(shared.model, probe), zeros, 1)
            except ValueError as error:
                raise ValueError(f"The reduction {args.target_reduction} cannot be made: {error}") from None


def _dense(shared: Shared, folder: str, key: str) -> Record:
    """The record of the dense model, measured once."""
    found = read_cell(folder, key)
    if found is not None:
        return found
    began = time.perf_counter()
    metrics = held_out_figures(shared.model, shared.held_out, shared.compute_metrics, progress=shared.progress)
    record = {
        "parameters": num_parameters(shared.model),
        "widths": _widths({group.key: group.size for group in unit_groups(shared.model)}),
        "metrics": metrics,
        "seconds": {"evaluation": time.perf_counter() - began},
        "error": None,
    }
    return write_cell(folder, key, record)


def _main_metric(dense: Record) -> str:
    """The figure to show: what says most of those that were measured."""
    names = [name for name in dense["metrics"] if name not in ("loss", "num_tokens")]
    return next((name for name in ("perplexity", "accuracy") if name in names), (names or ["loss"])[0])


def _widths(sizes: Mapping[str, int]) -> dict[str, int | list[int]]:
    """{kind of unit: number in every layer}, one number where all layers agree."""
    kinds: dict[str, list[int]] = {}
    for key, size in sizes.items():
        kinds.setdefault(key.rpartition(".")[2], []).append(size)
    return {kind: values[0] if len(set(values)) == 1 else values for kind, values in kinds.items()}


# ---- cell by cell


def _run(shared: Shared, cells: Sequence[Cell], protocol: Json, folder: str, report: Callable[[str], None]) -> list[Record]:
    """The records of all cells, in their order; those that are missing or failed before are run."""
    keys = [cell_key(protocol, cell.options()) for cell in cells]
    records: dict[str, Record] = {}
    for key in keys:
        found = read_cell(folder, key)
        if found is not None and found["error"] is None:
            records[key] = found
    missing = [(cell, key) for cell, key in zip(cells, keys, strict=True) if key not in records]
    if len(missing) < len(cells):
        report(f"{len(cells) - len(missing)} of {len(cells)} cells are finished already.")
    began, done = time.perf_counter(), 0
    held: dict[str, Mapping[str, GroupMoments]] = {}
    for _, pairs in groupby(missing, lambda pair: (pair[0].label, pair[0].args.seed)):
        group = list(pairs)
        for (cell, key), record in zip(group, _run_group(shared, [cell for cell, _ in group], held), strict=False):
            records[key] = write_cell(folder, key, cell.options() | record)
            done += 1
            left = (time.perf_counter() - began) / done * (len(missing) - done)
            way = f"; {_duration(left)} left" if done < len(missing) else ""
            report(f"[{done}/{len(missing)}] {_said(cell, records[key])}{way}")
        later = {signals for cell, _ in missing[done:] for signals in _signals(cell)}
        for signals in set(held) - later:
            del held[signals]
    return [records[key] for key in keys]


def _run_group(shared: Shared, cells: Sequence[Cell], held: dict[str, Mapping[str, GroupMoments]]) -> Iterator[Record]:
    """Records of cells that share a criterion and a seed, one by one: calibrated and scored once, cut from a copy each."""
    try:
        scores, seconds = _scores(shared, cells, held)
    except Exception as error:  # a plug-in can fail in any way, and the other criteria's cells are not its business
        logger.info(f"`{cells[0].label}` failed.", exc_info=True)
        yield from ({"error": one_line(error)} for _ in cells)
        return
    batches = () if shared.calibration is None else shared.calibration.batches
    decided = Decided(scores, held.get("activations", {}), batches)
    for cell in cells:
        try:
            record = _run_cell(shared, cell, decided)
            record |= {"shared_seconds": seconds, "error": None}
        except Exception as error:
            logger.info(f"A cell of `{cell.label}` failed.", exc_info=True)
            record = {"error": one_line(error)}
        yield record


def _signals(cell: Cell) -> set[str]:
    """Which moments a cell reads: those of its criterion, and those of the activations for a repair."""
    own = {str(cell.criterion.signals)} if cell.criterion.needs_moments else set()
    return own | ({"activations"} if cell.args.compensation != "none" else set())


def _scores(
    shared: Shared, cells: Sequence[Cell], held: dict[str, Mapping[str, GroupMoments]]
) -> tuple[Scores, dict[str, float]]:
    """Scores of the dense model, and the seconds they took; moments that are not held yet are collected."""
    criterion, args = cells[0].criterion, cells[0].args
    groups = unit_groups(shared.model, args.units)
    batches = () if shared.calibration is None else shared.calibration.batches
    began = time.perf_counter()
    for signals in {signals for cell in cells for signals in _signals(cell)} - set(held):
        held[signals] = _moments(shared, groups, batches, signals)
    moments = held[criterion.signals] if criterion.needs_moments else {}
    statistics = collect_statistics(shared.model, groups, criterion, batches, moments, seed=args.seed, progress=shared.progress)
    calibrated = time.perf_counter()
    scores = rounds.score(shared.model, args, criterion, Evidence(moments, statistics, {}))
    return scores, {"calibration": calibrated - began, "scoring": time.perf_counter() - calibrated}


def _moments(shared: Shared, groups: Sequence[UnitGroup], batches: Sequence[Batch], signals: str) -> Mapping[str, GroupMoments]:
    """Moments of the dense model, which no cell changes, for all criteria; by parts where memory is short."""

    def collect(part: Sequence[UnitGroup]) -> dict[str, GroupMoments]:
        return collect_moments(shared.model, part, batches, signals=signals, progress=shared.progress)

    return moments_within(shared.model, lambda: list(groups), SIDES, collect, None)


def _plan(shared: Shared, args: SpectralPruningArguments, decided: Decided) -> PruningPlan:
    compensation, key = args.compensation, (args.target_reduction, args.compensation)
    if key not in decided.plans:
        run = rounds.start(shared.model, args)
        run.damage = decided.damage.get(compensation)
        evidence = decided.evidence(compensation)
        decided.plans[key] = rounds.decide(shared.model, args, run, decided.scores, 1, shared.calibration, evidence)
        decided.damage[compensation] = run.damage
    return decided.plans[key]


def _run_cell(shared: Shared, cell: Cell, decided: Decided) -> Record:
    """Cuts a copy of the dense model, repairs, recovers and measures it."""
    args = cell.args
    set_seed(args.seed)
    seconds = {}
    began = time.perf_counter()
    plan = _plan(shared, args, decided)
    model = copy.deepcopy(shared.model)
    rounds.cut(model, args, plan, decided.evidence(args.compensation))
    model = settle_class(model)
    seconds["cut"] = time.perf_counter() - began
    recovered = None
    if args.recovery != "none":
        began = time.perf_counter()
        recovered = _recover(shared, args, model)
        seconds["recovery"] = time.perf_counter() - began
    began = time.perf_counter()
    metrics = held_out_figures(model, shared.held_out, shared.compute_metrics, progress=shared.progress)
    seconds["evaluation"] = time.perf_counter() - began
    count = num_parameters(model)
    return {
        "parameters": count,
        "reduction": 1 - count / plan.parameters_before,
        "widths": _widths({key: len(kept) for key, kept in plan.kept.items()}),
        "metrics": metrics,
        "recovered": recovered,
        "notes": list(plan.notes),
        "seconds": seconds,
    }


def _recover(shared: Shared, args: SpectralPruningArguments, model: PreTrainedModel) -> Json:
    recovery_args, training = recovery_arguments(args)
    own = args.training_args if isinstance(args.training_args, dict) else {}
    # The Trainer wants a folder even where nothing is kept; a temporary one leaves none behind.
    with tempfile.TemporaryDirectory() as scratch:
        output = recover(
            model,
            recovery_args,
            training_arguments(training | {"output_dir": own.get("output_dir", scratch)}),
            shared.train_dataset,
            shared.held_out,
            shared.processing_class,
            shared.data_collator,
            shared.model if args.recovery in TAUGHT_RECOVERIES else None,
            shared.compute_metrics,
        )
    return output.report()


def _said(cell: Cell, record: Record) -> str:
    """A finished cell in words."""
    name = f"{cell.label}, -{100 * cell.args.target_reduction:.4g} %, {block_name(record)}, seed {cell.args.seed}"
    if record["error"] is not None:
        return f"{name}: failed ({record['error']})"
    metric = _main_metric(record)
    return f"{name}: {metric} {number(record['metrics'][metric])} ({sum(record['seconds'].values()):.0f} s)"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {math.ceil(seconds)} s"
    return f"about {math.ceil(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
