"""Distillation: a Trainer whose loss also asks a pruned model to answer, and to think, as its dense teacher does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging
from transformers.utils.generic import ModelOutput, find_labels

from ..arguments import ModelArguments
from ..models.families import family_of
from ..models.losses import decoder_mask, moved_to, predicts_next_token, with_decoder_inputs
from ..utils.types import Options
from .feature_maps import captured, feature_loss, shared_parts
from .judging import MeasuredTrainer

logger = logging.get_logger(__name__)

# Of the hidden states of transformers, and of the blocks of networks pruned by channels. What a network knows by heart, its
# labels and logits teach it little about: ResNet-56 for CIFAR-10 without half of its FLOPs goes from 85.3 % in 200 steps on 4,000
# images to 92.2 % by a weight of 1,000, to 89.3 % by 10, to 90.0 % by 0 at a tenth of the rate (dense 92.6 %, one run each).
_HIDDEN_WEIGHT, _BLOCKS_WEIGHT = 1.0, 1_000.0


def load_teacher(teacher: PreTrainedModel | str | Path | None) -> PreTrainedModel:
    """The teacher as a model; a folder or name is loaded to the accelerator, if there is one.

    Raises:
        ValueError: there is none.
    """
    if teacher is None:
        raise ValueError("Distillation needs the dense model. Pass `teacher`: a model, a folder or a name on the Hub.")
    if isinstance(teacher, PreTrainedModel):
        return teacher
    from ..models.loading import load_model

    return load_model(ModelArguments(model_name_or_path=str(teacher)))


def check_teacher(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Checks that layers and outputs of the two models match one to one.

    Raises:
        ValueError: the same model is given twice, or they differ in more than the widths inside their layers.
    """
    if teacher is student:
        raise ValueError("The teacher is the pruned model itself. Pass a copy that was made before pruning, or its folder.")
    for name in ("num_hidden_layers", "hidden_size", "vocab_size", "num_labels"):
        own, other = getattr(student.config, name, None), getattr(teacher.config, name, None)
        if own != other:
            raise ValueError(f"The teacher's `{name}` is {other}, the student's {own}. Pass the model that was pruned.")


class DistillationTrainer(MeasuredTrainer):
    """A Trainer for a pruned student and its dense teacher, which may be on another device.

    `loss = (1 - alpha) labels' loss + alpha T^2 KL(teacher || student) + hidden_weight mean(1 - cos(h_student, h_teacher))`,
    with both distributions at temperature T, over the positions that have a label, and the cosine over all positions that
    are not padding and all hidden states (embeddings, every layer). In evaluation the loss is the labels' alone.

    Networks that are pruned by channels are compared by the outputs of the parts whose width the cut left alone instead
    (`feature_loss`): the blocks of a ResNet where the channels inside were cut.
    """

    def __init__(
        self, *args: Any, teacher: PreTrainedModel, temperature: float, alpha: float, hidden_weight: float | None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher.eval()
        self.temperature, self.alpha = temperature, alpha
        self.causal = predicts_next_token(self.model)  # type: ignore[arg-type]
        self.by_channels = family_of(self.model.config).traced  # type: ignore[union-attr, arg-type]
        default = _BLOCKS_WEIGHT if self.by_channels else _HIDDEN_WEIGHT
        self.hidden_weight = default if hidden_weight is None else hidden_weight
        self.parts: list[str] | None = None  # what is compared of such a network; found at the first step

    def compute_loss(
        self, model: nn.Module, inputs: Options, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor | tuple[Tensor, ModelOutput]:
        """See the class; Trainer's contract."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.get("labels")
        inside = self.hidden_weight > 0
        wanted = inputs if self.by_channels else inputs | {"output_hidden_states": inside}
        parts = self._shared_parts(inputs) if inside and self.by_channels else []
        with captured(self.model, parts) as own, captured(self.teacher, parts) as others:  # type: ignore[arg-type]
            loss, outputs = super().compute_loss(model, wanted, True, num_items_in_batch)
            expected = self._teach(wanted)
        term, count = logits_loss(outputs, expected, labels, self.temperature, shift=self.causal)
        extra = self.alpha * term
        if parts:
            extra = extra + self.hidden_weight * feature_loss(own, others)
        elif inside and not self.by_channels:
            extra = extra + self.hidden_weight * _states_loss(outputs, expected, inputs)
        loss = (1 - self.alpha) * loss + extra * self._share(count, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _shared_parts(self, inputs: Options) -> list[str]:
        if self.parts is None:
            self.parts = shared_parts(self.model, self.teacher, self._unlabelled(inputs))  # type: ignore[arg-type]
            if not self.parts:
                logger.warning("No part of the network is as wide as the teacher's, so the logits alone are distilled.")
        return self.parts

    def _unlabelled(self, inputs: Options) -> Options:
        targets = find_labels(type(self.teacher))
        return {name: value for name, value in inputs.items() if name not in targets}

    def _teach(self, inputs: Options) -> Any:
        given = self._unlabelled(inputs)
        if self.teacher.config.is_encoder_decoder:
            given = with_decoder_inputs(self.teacher, given, inputs.get("labels"))
        with torch.no_grad():
            return self.teacher(**moved_to(self.teacher, given))

    def _share(self, count: int, num_items_in_batch: Tensor | int | None) -> Tensor | float:
        """What a mean over this micro-batch weighs in the step, in Trainer's way of scaling the labels' loss."""
        if not self.model_accepts_loss_kwargs or num_items_in_batch is None:
            return 1.0
        return count / num_items_in_batch * (self.accelerator.num_processes if self.args.average_tokens_across_devices else 1)


def logits_loss(
    outputs: ModelOutput, expected: ModelOutput, labels: Tensor | None, temperature: float, *, shift: bool = False
) -> tuple[Tensor, int]:
    """Mean `T^2 KL(teacher || student)` over labelled positions, and their number.

    Args:
        outputs, expected: the student's and the teacher's, with one or more fields `*logits` (B, C) or (B, T, C); a single
            value C = 1 (regression) is compared by its square error.
        labels: where of the shape of the positions, those at -100 do not count.
        shift: the label of a position is the next one's, as in causal language models.
    """
    terms, count = [], 0
    for name in (key for key in outputs if key.endswith("logits")):
        student, teacher = outputs[name], expected[name].to(outputs[name].device)
        if shift:
            student, teacher = student[:, :-1], teacher[:, :-1]
        if labels is not None and labels.dim() == outputs[name].dim() - 1 and labels.dim() > 1:
            chosen = (labels[:, 1:] if shift else labels) != -100
            student, teacher = student[chosen], teacher[chosen]
        student, teacher = student.flatten(0, -2).float(), teacher.flatten(0, -2).float()
        count = student.shape[0]
        if student.shape[-1] == 1:
            terms.append((student - teacher).square().sum() / max(count, 1))
            continue
        goal = nn.functional.log_softmax(teacher / temperature, dim=-1)
        said = nn.functional.log_softmax(student / temperature, dim=-1)
        divergence = nn.functional.kl_div(said, goal, log_target=True, reduction="sum")
        terms.append(temperature**2 * divergence / max(count, 1))
    return torch.stack(terms).sum(), count


def _states_loss(outputs: ModelOutput, expected: ModelOutput, inputs: Options) -> Tensor:
    """`hidden_loss` of a model, or its mean over both sides of an encoder-decoder."""
    mask = inputs.get("attention_mask")
    if "hidden_states" in outputs:
        return hidden_loss(outputs["hidden_states"], expected["hidden_states"], mask)
    sides = {"encoder": None if "input_features" in inputs else mask, "decoder": decoder_mask(inputs)}
    losses = [hidden_loss(outputs[f"{side}_hidden_states"], expected[f"{side}_hidden_states"], on) for side, on in sides.items()]
    return torch.stack(losses).mean()


def hidden_loss(student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], attention_mask: Tensor | None) -> Tensor:
    """Mean of `1 - cos` over layers and real positions of hidden states (B, T, H); layers match one to one."""
    terms = []
    for own, other in zip(student, teacher, strict=True):
        cosine = nn.functional.cosine_similarity(own.float(), other.to(own.device).float(), dim=-1)  # (B, T)
        real = torch.ones_like(cosine) if attention_mask is None else attention_mask.flatten(0, -2).to(cosine)
        terms.append(((1 - cosine) * real).sum() / real.sum().clamp(min=1))
    return torch.stack(terms).mean()
