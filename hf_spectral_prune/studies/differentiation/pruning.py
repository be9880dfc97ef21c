"""NDPCallback: neural differentiation pruning inside any Trainer, ranked anew at every round, with targeted fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import nn
from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

from ... import rounds
from ...arguments import SpectralPruningArguments, _field
from ...models.families import parts, unit_groups
from ...surgery.plan import PruningPlan
from ...trainer.pruning import SpectralPruningCallback
from ...utils.types import Json, ProcessingClass

# Options that the method is defined with.
_OF_THE_METHOD = (("criterion", "ndi"), ("layout", "per_layer"), ("allocation", "scores"), ("reallocate", True))


@dataclass
class NDPArguments(SpectralPruningArguments):
    """Options of neural differentiation pruning: those of `SpectralPruningArguments` with the method's own defaults.

    Raises:
        ValueError: another criterion, layout or allocation than the method has, or a value that cannot work.
    """

    criterion: str = _field("ndi", "`ndi`: index times relative weight norm (eq. 22 and 36).")
    layout: Literal["uniform", "per_layer"] = _field("per_layer", "`per_layer`: one ranking for the whole network.")
    allocation: Literal["auto", "proportional", "scores", "loss_curves", "fisher", "search"] = _field(
        "scores", "`scores`: the least importance per parameter goes first, down to the floors of `min_ffn_units` and the like."
    )
    num_rounds: int = _field(4, "Rounds of score, rank and cut over the schedule.")
    reallocate: bool = _field(True, "True: the ranking is made anew in every round.")
    finetune_share: float | None = _field(
        None,
        "Targeted fine-tuning after the last round: of the groups that lost units, the share whose weights go on learning, those "
        "that lost the largest part of their units first. None trains the whole model on.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, own in _OF_THE_METHOD:
            if getattr(self, name) != own:
                raise ValueError(
                    f"`{name}` is `{getattr(self, name)}`, but NDP is defined with `{own}`. Leave it out, or use "
                    "`SpectralPruningCallback` with `SpectralPruningArguments`."
                )
        if self.finetune_share is not None and not 0 < self.finetune_share <= 1:
            raise ValueError(f"`finetune_share` is {self.finetune_share}; it must be above 0 and at most 1, or None.")


class NDPCallback(SpectralPruningCallback):
    """Neural differentiation pruning while any Trainer trains (Wang and Jiang, CVPR 2026).

    At every round of the schedule all units of the network are ranked anew by importance (NDI times relative weight norm, eq. 36)
    per parameter, and the lowest go until the round's share of the target is met, no group below its floor: how much a layer
    loses follows the state of training. Batch norms then get new statistics. After the last round training goes on, with
    `finetune_share` for the most affected groups alone: all other weights then stand still.

    The paper's abstract asks for "targeted fine-tuning"; that the most affected groups are the target is this package's reading.
    The gradients of all weights still count in `max_grad_norm`.

    Arguments, attributes and errors are those of `SpectralPruningCallback`; `args` must be `NDPArguments`. A target that the
    floors put out of reach is told before the first step.
    """

    args: NDPArguments

    def __init__(self, args: NDPArguments, *more: Any, **options: Any) -> None:
        if not isinstance(args, NDPArguments):
            raise ValueError(f"`args` of `NDPCallback` is a {type(args).__name__}. Give `NDPArguments`.")
        super().__init__(args, *more, **options)
        self._learning: set[nn.Parameter] | None = None

    def check(self, args: TrainingArguments, model: PreTrainedModel, processing_class: ProcessingClass | None) -> None:
        """Raises what would make the training fail later."""
        super().check(args, model, processing_class)
        if self.args.finetune_share is not None and AcceleratorState().distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                "`finetune_share` takes gradients away before the optimizer's step, but DeepSpeed keeps gradients of its own. "
                "Leave it out, or train data-parallel."
            )

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: object,
    ) -> None:
        """Takes the gradients of weights that stand still, so that the optimizer leaves them and their state alone."""
        if self.args.finetune_share is None or self.plan is None or not self.last_round_is_over(state):
            return
        if self._learning is None:
            assert model is not None
            self._learning = affected_parameters(model, self.plan, self.args.finetune_share)
        assert model is not None  # a Trainer gives it
        for parameter in model.parameters():
            if parameter not in self._learning:
                parameter.grad = None

    def begin_run(self, model: PreTrainedModel, saved: Json) -> None:
        """Tells of a target that the floors put out of reach."""
        self._learning = None
        assert self.run is not None
        if self.plan is None:
            equal = {group.key: torch.ones(group.size) for group in unit_groups(model, self.args.units)}
            rounds.reallocated(model, self.args, self.run, equal, 1)


def affected_parameters(model: PreTrainedModel, plan: PruningPlan, share: float) -> set[nn.Parameter]:
    """Weights, biases and norms that make or read the units of the groups that a plan cut most.

    Args:
        model: before or after the cut, or masked.
        share: of the groups that lost units, rounded up; those that lost the largest part of their units come first.
    """
    lost = {key: 1 - len(kept) / plan.sizes[key] for key, kept in plan.kept.items() if len(kept) < plan.sizes[key]}
    chosen = sorted(lost, key=lambda key: -lost[key])[: math.ceil(share * len(lost))]
    groups = [group for group in unit_groups(model) if group.key in chosen]
    return {parameter for group in groups for part in parts(model, group) for parameter in part.module.parameters(recurse=False)}
