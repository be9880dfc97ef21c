"""Steps of a round (score, allocate, choose, cut), as SpectralPruner and SpectralPruningCallback call them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction

from torch import Tensor
from transformers import PreTrainedModel

from .arguments import SpectralPruningArguments
from .calibration.parts import MomentsByPart
from .criteria import Criterion, Diagnostics, Scores, score_units
from .criteria.calibrate import Evidence
from .criteria.fisher import INFORMATION
from .data.texts import CalibrationData
from .evaluation.figures import num_parameters
from .models.distributed import of_first_process
from .models.families import UnitGroup, family_of, unit_groups
from .models.families.structure import structure_note
from .models.losses import Batch, num_targets, single_sequences
from .planning import Limits, RoundScores, Sizes, choose_units, per_layer_sizes, share_sizes, sizes_after_round, uniform_sizes
from .planning.allocate import ALIGNMENT, at_most, within_sizes
from .planning.damage import fisher_damage, loss_curves, score_damage
from .planning.limits import limits_for
from .planning.reduction_target import Target, cost_of, set_target
from .planning.search import fisher_sizes, search_per_layer, search_uniform
from .planning.settled import settle_allocation
from .surgery import add_consumer_biases, apply_plan, fingerprint
from .surgery.plan import PruningPlan
from .utils.environment import library_versions

# Loss curves are measured on as many rows as have this many targets (four blocks of 512 tokens), and on no more rows than that.
_ALLOCATION_TARGETS, _MOST_ALLOCATION_SAMPLES = 2000, 256
# A search repairs on three quarters of its rows and judges by the rest.
_SEARCH_TARGETS = 4 * _ALLOCATION_TARGETS
# Allocations that begin with the Fisher information of single units.
_BY_INFORMATION = ("fisher", "search")


@dataclass
class Run:
    """What the rounds of one run share: the original model's groups, the target, and the plan so far.

    Attributes:
        damage: {group key: (n_units + 1,)} cost of removing the 0, 1, ... lowest-scored units, where widths depend on it. The
            target has no part in it, so runs which differ in nothing else may share it.
        costs: of the model before the first round and wanted after the last, in the target's unit.
        final_sizes: units of every group after the last round; with `reallocate` after the round that was decided last.
        most: units that each group may keep at the most, where the plan is to lie within another.
    """

    groups: list[UnitGroup]
    limits: Limits
    parameters_before: int
    target: Target
    fingerprint: str
    costs: tuple[int, int]
    damage: dict[str, Tensor] | None = None
    final_sizes: Sizes | None = None
    most: Sizes = field(default_factory=dict)
    plan: PruningPlan | None = None
    notes: list[str] = field(default_factory=list)
    scores: list[RoundScores] = field(default_factory=list)

    def add(self, plan: PruningPlan, scores: RoundScores | None = None) -> None:
        """Appends a round's plan, and its scores in short where they are kept."""
        self.plan = plan if self.plan is None else self.plan.then(plan)
        if scores is not None:
            self.scores.append(scores)


def start(
    model: PreTrainedModel,
    args: SpectralPruningArguments,
    weights: str | None = None,
    calibration: CalibrationData | None = None,
) -> Run:
    """Measures the original model and sets the target; gives the consumers their biases where the compensation needs them.

    Args:
        weights: the fingerprint of the weights, where it is known or taken later; None takes it now.
        calibration: its first image is what FLOPs are counted on.
    """
    before = num_parameters(model)
    weights = fingerprint(model) if weights is None else weights
    target = set_target(model, args, before, before, calibration)
    if args.compensation == "bias":
        add_consumer_biases(model, args.layout)
        target = replace(set_target(model, args, before, num_parameters(model), calibration), goal=target.goal)
    family = family_of(model.config)
    notes = [structure_note(family)] if family.by_structure else []
    limits = limits_for(model, args, target)
    if args.round_to is None and limits.round_to < ALIGNMENT:
        step = f"a step of {ALIGNMENT} would be more than half of the target"
        kept = f"kept at multiples of {limits.round_to}" if limits.round_to > 1 else "not rounded"
        notes.append(f"FFN widths are {kept}: {step}.")
    return Run(
        notes=notes,
        groups=unit_groups(model, args.units),
        limits=limits,
        parameters_before=before,
        target=target,
        fingerprint=weights,
        costs=(target.now, target.goal),
    )


def score(
    model: PreTrainedModel,
    args: SpectralPruningArguments,
    criterion: Criterion,
    evidence: Evidence,
    diagnostics: Diagnostics | None = None,
) -> Scores:
    """{group key: (n_units,)} scores of the model as it stands, higher = keep; fills `diagnostics`, see `score_units`."""
    scores = score_units(
        model,
        unit_groups(model, args.units),
        criterion,
        evidence.moments or None,
        statistics=evidence.statistics,
        diagnostics=diagnostics,
        seed=args.seed,
        progress=not args.disable_tqdm,
    )
    if isinstance(evidence.moments, MomentsByPart):
        evidence.moments.let_go()
    return scores


def decide(
    model: PreTrainedModel,
    args: SpectralPruningArguments,
    run: Run,
    scores: Scores,
    share: Fraction | int,
    calibration: CalibrationData | None = None,
    evidence: Evidence | None = None,
) -> PruningPlan:
    """The plan of a round after which `share` of the way from the original sizes to `run.final_sizes` is gone.

    The first round of a run fixes the final sizes, by what it costs to remove units; `run.notes` then tells of head counts. With
    `reallocate` every round fixes those that it leaves itself.

    Args:
        run: with `damage` of another run of the same scores and repair, nothing is measured.
        scores: {group key: (n_units,)} of the model as it stands.
        calibration: what loss curves are measured on.
        evidence: with it, loss curves are those of layers repaired as the cut will repair them.

    Raises:
        ValueError: the target is out of reach, or less than the smallest step.
    """
    if args.reallocate:
        run.final_sizes = reallocated(model, args, run, scores, share, calibration, evidence)
        return choose(model, args, run, scores, 1)
    if run.final_sizes is None:
        args = settle_allocation(model, args, calibration)
        if run.damage is None:
            run.damage = _measure_damage(model, args, run.groups, scores, calibration, evidence)
        sizes = _allocate(model, args, run, scores, calibration)
        _check_removed(args, run, sizes)
        run.final_sizes = sizes if not run.most else _within(args, run, sizes)
    return choose(model, args, run, scores, share)


def reallocated(
    model: PreTrainedModel,
    args: SpectralPruningArguments,
    run: Run,
    scores: Scores,
    share: Fraction | int,
    calibration: CalibrationData | None = None,
    evidence: Evidence | None = None,
) -> Sizes:
    """Sizes that a round leaves after which `share` of the way to the target is gone, allocated for the model as it stands.

    Args:
        model: perhaps cut already; see `decide` for the others.

    Raises:
        ValueError: see `decide`.
    """
    args = settle_allocation(model, args, calibration)
    groups = unit_groups(model, args.units)
    costs = {group.key: group.parameters_per_unit for group in run.target.groups}
    costed = [replace(group, parameters_per_unit=costs[group.key]) for group in groups]
    before, wanted = run.costs
    sizes = {group.key: group.size for group in groups}
    target = replace(run.target, groups=costed, now=cost_of(run.target, sizes), goal=before - int(share * (before - wanted)))
    limits = replace(run.limits, whole={group.key: group.size for group in run.groups})
    damage = _measure_damage(model, args, groups, scores, calibration, evidence)
    now = replace(run, groups=groups, target=target, limits=limits, damage=damage, notes=[])
    sizes = _allocate(model, args, now, scores, calibration)
    if share == 1:
        _check_removed(args, run, sizes)
        run.notes += now.notes
    return sizes


def _within(args: SpectralPruningArguments, run: Run, sizes: Sizes) -> Sizes:
    """The sizes, none of them above `run.most`."""
    target = run.target
    free = args.layout == "per_layer" and target.count is None
    return within_sizes(target.groups, target.now, target.goal, run.limits, sizes, run.most, run.damage if free else None)


def _measure_damage(
    model: PreTrainedModel,
    args: SpectralPruningArguments,
    groups: list[UnitGroup],
    scores: Scores,
    calibration: CalibrationData | None,
    evidence: Evidence | None,
) -> dict[str, Tensor] | None:
    """See `Run.damage`; None where widths do not depend on it."""
    if args.allocation == "scores":
        return score_damage(scores)
    if args.allocation == "proportional" or (args.allocation == "search" and args.layout == "uniform"):
        return None
    assert calibration is not None
    if args.allocation in _BY_INFORMATION:
        if (known := _information(evidence, groups)) is not None:
            return score_damage(known)
        data = calibration.batches
        return of_first_process(lambda: fisher_damage(model, groups, data, progress=not args.disable_tqdm))
    batches = _first_sequences(model, calibration, args.num_allocation_samples)
    # A sequential repair is measured as one of each layer alone: how it will fare depends on all the cuts before.
    repairs = args.compensation in ("least_squares", "sequential")
    repair = evidence.repair or None if evidence is not None and repairs else None
    by_kind = args.layout == "uniform"
    if by_kind and isinstance(repair, MomentsByPart):
        repair = None  # every measurement repairs all layers, and moments that are not kept would be collected anew for each
    progress = not args.disable_tqdm
    return loss_curves(model, groups, scores, batches, by_kind=by_kind, repair=repair, ridge=args.ridge, progress=progress)


def _information(evidence: Evidence | None, groups: list[UnitGroup]) -> Scores | None:
    """{group key: (n_units,)} Fisher information, where the scores were made of it in the same pass over the data."""
    statistics = {} if evidence is None else evidence.statistics
    if any(INFORMATION not in statistics.get(group.key, {}) for group in groups):
        return None
    return {group.key: statistics[group.key][INFORMATION].cpu() for group in groups}


def _untried(args: SpectralPruningArguments, run: Run, goal: int) -> Sizes:
    """Sizes just above a goal, by `run.damage` alone."""
    target, damage, limits = replace(run.target, goal=goal), run.damage, run.limits
    if args.layout == "uniform":
        if target.count is not None:
            return share_sizes(target.groups, target.now, goal, limits, target.count)
        return uniform_sizes(target.groups, target.now, goal, limits, damage)
    assert damage is not None
    if args.rank_by == "importance":  # the ranking divides by the cost of a unit
        costs = {group.key: group.parameters_per_unit for group in target.groups}
        damage = {key: curve * costs[key] for key, curve in damage.items()}
    if args.allocation in _BY_INFORMATION:
        return fisher_sizes(target, limits, damage)
    return per_layer_sizes(target.groups, target.now, goal, limits, damage, target.count)


def _allocate(
    model: PreTrainedModel, args: SpectralPruningArguments, run: Run, scores: Scores, calibration: CalibrationData | None
) -> Sizes:
    """Sizes that the last round will leave, by `run.damage` or a search; adds notes about head counts to `run`."""
    target, damage = run.target, run.damage
    if target.unit == "bytes":
        sizes = at_most(target.goal, lambda goal: _untried(args, run, goal), lambda sizes: cost_of(target, sizes))
        cache = f" and the key/value cache at {args.target_context:,} positions" if args.target_context else ""
        left = cost_of(target, sizes)
        run.notes.append(f"The target was {target.goal:,} bytes of weights{cache}: {left:,} of {target.now:,} stay.")
    elif args.allocation == "search":
        assert calibration is not None
        rows = _first_sequences(model, calibration, args.num_allocation_samples, _SEARCH_TARGETS)
        progress = not args.disable_tqdm
        if damage is None:
            sizes = of_first_process(lambda: search_uniform(model, target, run.limits, scores, rows, progress))
        else:
            curves = damage
            sizes = of_first_process(lambda: search_per_layer(model, target, run.limits, curves, scores, rows, progress))
    else:
        sizes = _untried(args, run, target.goal)
    if args.layout == "uniform" and target.count is None and target.unit != "bytes" and args.allocation != "search":
        anywhere = Limits(run.limits.round_to, run.limits.min_units)
        free = uniform_sizes(target.groups, target.now, target.goal, anywhere, damage)
        run.notes += _head_notes(run.groups, sizes, free, fixed=family_of(model.config).stock_heads == "fixed")
    return sizes


def _check_removed(args: SpectralPruningArguments, run: Run, sizes: Sizes) -> None:
    """Checks that a run removes anything."""
    if all(sizes[group.key] == group.size for group in run.groups):
        unit, (before, wanted) = run.target.unit, run.costs
        step = min(run.limits.step(group) * group.parameters_per_unit for group in run.target.groups)
        raise ValueError(
            f"`target_reduction` is {args.target_reduction}, {before - wanted:,} {unit}, which is less than "
            f"the smallest step of this layout ({step:,} {unit} per layer). Raise the target or lower `round_to`."
        )


def _first_sequences(
    model: PreTrainedModel, calibration: CalibrationData, number: int | None, least_targets: int = _ALLOCATION_TARGETS
) -> list[Batch]:
    """The first rows, as many as asked for; without a number as many as give enough targets, within a bound."""
    batches: list[Batch] = []
    count = targets = 0
    for batch in calibration.batches:
        taken = 0
        for row in single_sequences([batch]):
            enough = targets >= least_targets or count + taken == _MOST_ALLOCATION_SAMPLES
            if enough if number is None else count + taken == number:
                break
            taken, targets = taken + 1, targets + num_targets(model, row)
        if not taken:
            break
        batches.append({name: value[:taken] for name, value in batch.items()})
        count += taken
    return batches


def choose(
    model: PreTrainedModel, args: SpectralPruningArguments, run: Run, scores: Scores, share: Fraction | int
) -> PruningPlan:
    """`decide`, once the final sizes are known."""
    assert run.final_sizes is not None
    return choose_units(
        unit_groups(model, args.units),
        scores,
        sizes_after_round(run.groups, run.final_sizes, share, run.limits),
        num_parameters(model),
        None if run.target.budget is None else run.target.budget.parameters,
        model_type=model.config.model_type,
        layout=args.layout,
        criterion=args.criterion,
        criterion_args=args.criterion_options,
        seed=args.seed,
        fingerprint=run.fingerprint if run.plan is None else None,
        notes=tuple(run.notes),
        versions=library_versions(),
    )


def cut(
    model: PreTrainedModel, args: SpectralPruningArguments, plan: PruningPlan, evidence: Evidence, *, reused: bool = False
) -> Evidence | None:
    """Cuts the model by a round's plan, with the compensation asked for.

    Args:
        reused: whether the next round scores by the same evidence; what is left of it is then returned, else None.

    Raises:
        RuntimeError: the cut model has another number of parameters than the plan says.
    """
    groups = unit_groups(model, args.units)
    kept = {group.key: plan.kept_index(group.key) for group in groups}
    apply_plan(
        model,
        plan,
        compensation="none" if args.compensation == "auto" else args.compensation,
        moments=evidence.repair or None,
        ridge=args.ridge,
        batches=evidence.batches,
        check_weights=False,
        progress=not args.disable_tqdm,
    )
    if num_parameters(model) != plan.parameters_after:
        raise RuntimeError(
            f"The cut model has {num_parameters(model):,} parameters, but the plan predicted {plan.parameters_after:,}. "
            "This is a fault of the family table; please report it."
        )
    return evidence.select(groups, kept) if reused else None


def _head_notes(groups: list[UnitGroup], sizes: Sizes, free: Sizes, *, fixed: bool) -> list[str]:
    """Says where a head count was moved to one that the stock config accepts."""
    moved = next((group for group in groups if group.kind == "heads" and sizes[group.key] != free[group.key]), None)
    if moved is None:
        return []
    if fixed:
        return [
            f"All {moved.size} heads per layer are kept instead of {free[moved.key]}: the stock config cannot hold fewer. "
            '`layout="per_layer"` would allow it.'
        ]
    return [
        f"{sizes[moved.key]} key/value groups per layer are kept instead of {free[moved.key]}: the stock config refuses that "
        'head count (`hidden_size` must be a multiple of it). `stock_class="mistral"` or `layout="per_layer"` would allow it.'
    ]
