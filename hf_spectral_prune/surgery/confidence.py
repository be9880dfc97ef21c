"""Makes a pruned language model as sure of its next token as the dense one: one factor of its logits, in its last norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..models.distributed import works_together
from ..models.families import family_of
from ..models.losses import predicts_next_token
from ..models.streams import Streams

# Newton's method needs two or three steps; the factor stays within these bounds.
_STEPS, _LEAST, _MOST = 5, 0.5, 1.2
# Positions whose logits are looked at together.
_POSITIONS = 64


@torch.no_grad()
def match_confidence(model: PreTrainedModel, streams: Streams, rows: Sequence[Tensor]) -> float:
    """Scales the last norm by the factor of the logits at which their divergence from the dense model's is least.

    What a cut has taken from a model shows at its end as noise, which makes it too sure of itself. The factor, a temperature,
    is found by Newton's method on the KL divergence, which is convex in it. The order of the tokens stays: greedy text is the
    same before and after.

    Args:
        streams: both streams of the rows, through the last layer.
        rows: (rows,) bool of every batch, the rows to measure on.

    Returns:
        the factor; 1 where it does not help, and for models that do not predict the next token or end without a norm.
    """
    norm = last_norm(model) if predicts_next_token(model) else None
    if norm is None:
        return 1.0
    factor, start = 1.0, float("nan")
    for step in range(_STEPS):
        divergence, slope, curvature = _derivatives(streams, rows, factor).tolist()
        if step == 0:
            start = divergence
        following = min(max(factor - slope / curvature, _LEAST), _MOST) if curvature > 0 else factor
        if abs(following - factor) < 1e-3:
            break
        factor = following
    if factor == 1.0 or not _derivatives(streams, rows, factor)[0] < start:
        return 1.0
    scale_norm(norm, factor)
    head = model.get_output_embeddings()
    if isinstance(bias := getattr(head, "bias", None), Tensor):
        bias.mul_(factor)
    return factor


def last_norm(model: PreTrainedModel) -> nn.Module | None:
    """The norm between the last layer and the head, or None."""
    parent = model.base_model.get_submodule(family_of(model.config).layers.rpartition(".")[0])
    children = [(name, module) for name, module in parent.named_children() if "Norm" in type(module).__name__]
    norms = [module for name, module in children if "embed" not in name and isinstance(module.weight, nn.Parameter)]
    return norms[-1] if norms else None


def scale_norm(norm: nn.Module, factor: float) -> None:
    """Multiplies what a norm gives by a factor."""
    weight = _weight(norm)
    # Some add one to their weights: what such a norm gives grows by weights that are larger by (factor - 1) * (weight + 1).
    offset = 1.0 if _adds_one(norm) else 0.0
    weight.copy_((weight.double() + offset) * factor - offset)
    if isinstance(bias := getattr(norm, "bias", None), Tensor):
        bias.mul_(factor)


def _weight(norm: nn.Module) -> Tensor:
    weight = norm.weight
    assert isinstance(weight, Tensor)
    return weight


def _adds_one(norm: nn.Module) -> bool:
    """Whether a norm with weights of zero lets anything through."""
    weight = _weight(norm)
    held = weight.detach().clone()
    values = torch.linspace(-1, 1, len(held), dtype=held.dtype, device=held.device)
    try:
        weight.zero_()
        return bool((norm.forward(values) != norm.forward(-values)).any())  # a bias is not counted
    finally:
        weight.copy_(held)


def _derivatives(streams: Streams, rows: Sequence[Tensor], factor: float) -> Tensor:
    """(3,) float64: the divergence with logits times `factor`, its slope and its curvature, in means over positions."""
    sums = torch.zeros(4, dtype=torch.float64)
    for index, chosen in enumerate(rows):
        mask = streams.batches[index].get("attention_mask")
        for row in chosen.nonzero().flatten().tolist():  # one at a time, because a vocabulary may be large
            one = torch.arange(len(chosen)) == row
            (wanted,), (given,) = (said["logits"] for said in streams.outputs(index, one))
            real = torch.ones(len(given), dtype=torch.bool) if mask is None else mask[row].bool()
            for places in real.nonzero().flatten().split(_POSITIONS):
                places = places.to(given.device)
                sums += _sums(wanted[places].float(), given[places].float(), factor)
    if works_together():
        torch.distributed.all_reduce(sums)
    return sums[:3] / sums[3]


def _sums(wanted: Tensor, given: Tensor, factor: float) -> Tensor:
    """(4,) sums over positions, and their number, of a row's logits (T, V)."""
    log_q, log_p = wanted.log_softmax(-1), (factor * given).log_softmax(-1)
    q, p = log_q.exp(), log_p.exp()
    mean = (p * given).sum(-1)
    slope = mean - (q * given).sum(-1)
    curvature = (p * given.square()).sum(-1) - mean.square()
    divergence = (q * (log_q - log_p)).sum(-1)
    found = [value.double().sum().cpu() for value in (divergence, slope, curvature)]
    return torch.stack([*found, torch.tensor(float(len(given)), dtype=torch.float64)])


__all__ = ["match_confidence"]
