"""How units leave a model in training: cut at once, or masked until the end where parameters cannot be replaced."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

from torch.optim import Optimizer
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging

from .. import rounds
from ..arguments import SpectralPruningArguments
from ..criteria import Scores
from ..criteria.calibrate import Evidence
from ..data.texts import CalibrationData
from ..models.distributed import of_first_process, saves_instead, saves_itself, whole_copy
from ..models.families import unit_groups
from ..planning import Sizes
from ..surgery import apply_plan, masked, recalibrate_norms, settle_class, zero_masked
from ..surgery.plan import PruningPlan
from .optimizer import optimizer_follows

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Decision:
    """What a round came to.

    Attributes:
        plan: of this round alone.
        sizes: of every group after the last round.
        scores: {group key: (n_units,)} that it went by.
        evidence: what a repair reads; None once the round is over.
    """

    plan: PruningPlan
    sizes: Sizes
    scores: Scores
    evidence: Evidence | None


# Decides by the model it is given; called where the weights are whole.
Decide = Callable[[PreTrainedModel], Decision]


class Removal(Protocol):
    """A way of removing units from a model in training, for one training."""

    def fits(self, plan: PruningPlan, model: PreTrainedModel) -> bool:
        """Whether the model is as this way leaves it by a plan."""

    def take_up(self, model: PreTrainedModel, plan: PruningPlan, optimizer: Optimizer | None) -> None:
        """Brings the model to where the rounds before this training had left it."""

    def to_score(self, model: PreTrainedModel) -> PreTrainedModel | None:
        """The pruned model on the process that scores it, None on others."""

    def round(self, model: PreTrainedModel, optimizer: Optimizer | None, decide: Decide) -> Decision:
        """Decides and removes."""

    def after_step(self, model: PreTrainedModel) -> None:
        """Called after every step of the optimizer."""

    def finish(self, model: PreTrainedModel, optimizer: Optimizer | None) -> PreTrainedModel | None:
        """Ends the training; the pruned model, where that is another one than the model in training."""

    def release(self, model: PreTrainedModel) -> None:
        """Takes back what a training that broke off has left on the model."""


class Cutting:
    """Cuts weights, config and optimizer state at every round.

    Args:
        args: how to prune.
        calibration: what the batch norms of a cut model are calibrated on.
    """

    def __init__(self, args: SpectralPruningArguments, calibration: CalibrationData | None) -> None:
        self.args, self.calibration = args, calibration

    @staticmethod
    def check(args: SpectralPruningArguments, training: TrainingArguments) -> None:
        """Raises nothing: all options can be had."""

    def fits(self, plan: PruningPlan, model: PreTrainedModel) -> bool:
        return is_cut(plan, model)

    def take_up(self, model: PreTrainedModel, plan: PruningPlan, optimizer: Optimizer | None) -> None:
        if not is_cut(plan, model):
            with optimizer_follows(optimizer, model, plan):
                apply_plan(model, plan, check_weights=False)
            settle_class(model)

    def to_score(self, model: PreTrainedModel) -> PreTrainedModel | None:
        return model

    def round(self, model: PreTrainedModel, optimizer: Optimizer | None, decide: Decide) -> Decision:
        decision = decide(model)
        assert decision.evidence is not None
        with optimizer_follows(optimizer, model, decision.plan):
            rounds.cut(model, self.args, decision.plan, decision.evidence)
        decision = replace(decision, evidence=None)  # its moments are large, and the batch norms' pass needs room
        settle(model, self.calibration)
        return decision

    def after_step(self, model: PreTrainedModel) -> None:
        pass

    def finish(self, model: PreTrainedModel, optimizer: Optimizer | None) -> PreTrainedModel | None:
        return None

    def release(self, model: PreTrainedModel) -> None:
        pass


class Masking:
    """Masks units, which then get no gradient and add nothing, and cuts them at the end of training: over several processes.

    Args:
        args, calibration: as for `Cutting`.

    Attributes:
        plan: what is masked, in the numbering of the model in training.
    """

    def __init__(self, args: SpectralPruningArguments, calibration: CalibrationData | None) -> None:
        self.args, self.calibration = args, calibration
        self.plan: PruningPlan | None = None
        self._masks = ExitStack()

    @staticmethod
    def check(args: SpectralPruningArguments, training: TrainingArguments) -> None:
        """Raises what masks cannot do."""
        if training.torch_compile:
            raise ValueError(
                "Units are masked in training over several processes, and code that `torch_compile` has compiled does not see "
                "the masks. Leave it off."
            )
        if args.repairs:
            raise ValueError(
                f"`compensation` `{args.compensation}` rewrites weights at a cut, but training over several processes "
                'only masks. Use `compensation="none"`.'
            )

    def fits(self, plan: PruningPlan, model: PreTrainedModel) -> bool:
        return is_cut(plan, model) or all(size == plan.sizes[key] for key, size in _sizes(plan, model).items())

    def take_up(self, model: PreTrainedModel, plan: PruningPlan, optimizer: Optimizer | None) -> None:
        if is_cut(plan, model):
            raise ValueError(
                "The checkpoint was written by a single process, which had cut its model; data-parallel training masks instead. "
                "Resume it in a single process."
            )
        self._mask(model, plan)

    def to_score(self, model: PreTrainedModel) -> PreTrainedModel | None:
        pruned = self._pruned_copy(model)
        return None if pruned is None else pruned.to(model.device)  # type: ignore[arg-type]

    def round(self, model: PreTrainedModel, optimizer: Optimizer | None, decide: Decide) -> Decision:
        target = self.to_score(model)

        # One process decides: sums may differ in the last digit between machines, and with them a close choice.
        def decided() -> Decision:
            assert target is not None  # the first process has it
            return replace(decide(target), evidence=None)

        decision = of_first_process(decided)
        self._mask(model, decision.plan if self.plan is None else self.plan.then(decision.plan))
        return decision

    def after_step(self, model: PreTrainedModel) -> None:
        if self.plan is not None:
            zero_masked(model, self.plan.kept_indices())  # else momentum would move them, and checkpoints show it

    def finish(self, model: PreTrainedModel, optimizer: Optimizer | None) -> PreTrainedModel | None:
        self._masks.close()
        if self.plan is not None:
            with optimizer_follows(optimizer, model, self.plan):
                apply_plan(model, self.plan, check_weights=False)
            settle(model, self.calibration)
        return None

    def release(self, model: PreTrainedModel) -> None:
        self._masks.close()

    def _mask(self, model: PreTrainedModel, plan: PruningPlan) -> None:
        self.plan = plan
        self._masks.close()
        self._masks.enter_context(masked(model, plan.kept_indices()))
        zero_masked(model, plan.kept_indices())

    def _pruned_copy(self, model: PreTrainedModel) -> PreTrainedModel | None:
        """A copy on the first process that is cut as the masks say: scoring it gives what a single process would see."""
        self._masks.close()
        pruned = whole_copy(model)
        if self.plan is not None:
            self._mask(model, self.plan)
            if pruned is not None:
                apply_plan(pruned, self.plan, check_weights=False)
        return pruned


class MaskingShards(Masking):
    """Masks units of sharded weights, which cannot be cut themselves: the pruned model is a copy."""

    def finish(self, model: PreTrainedModel, optimizer: Optimizer | None) -> PreTrainedModel | None:
        if self.plan is None:
            return None
        pruned = self._pruned_copy(model)
        pruned = None if pruned is None else settle_class(pruned)
        saves_instead(model, pruned)
        if pruned is not None:
            logger.warning(
                "The weights are sharded, so the model in training stays masked; the pruned one is the callback's "
                "`pruned_model` on this process, and `trainer.save_model` writes it."
            )
        return pruned

    def release(self, model: PreTrainedModel) -> None:
        super().release(model)
        saves_itself(model)


def is_cut(plan: PruningPlan, model: PreTrainedModel) -> bool:
    """Whether a model has the sizes that a plan leaves."""
    return all(size == len(plan.kept[key]) for key, size in _sizes(plan, model).items())


def _sizes(plan: PruningPlan, model: PreTrainedModel) -> Sizes:
    """The model's sizes, of the groups that the plan speaks of."""
    sizes = {group.key: group.size for group in unit_groups(model)}
    return {key: sizes.get(key, 0) for key in plan.kept}


def settle(model: PreTrainedModel, calibration: CalibrationData | None) -> None:
    """Gives a model that was cut its class and its batch norms new statistics."""
    settle_class(model)
    if calibration is not None:
        recalibrate_norms(model, calibration.batches)
