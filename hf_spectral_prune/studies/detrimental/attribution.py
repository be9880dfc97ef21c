"""How much each FFN neuron adds to the model's confidence: integrated gradients by weight interpolation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...criteria.passes.interpolation import Integral, integrate, path_slopes, without_group
from ...models.families import Signal, UnitGroup, unit_groups
from ...models.losses import check_gradients, frozen
from ...models.modes import evaluating
from ...models.suffix import walk
from ...utils.progress import stage

# Weights that go from zero to their values, by the signal whose scaling is theirs. A neuron's part of `down_proj` is a column.
PATHS = {
    "gate_proj": Signal("mlp.gate_proj", "output"),
    "up_proj": Signal("mlp.up_proj", "output"),
    "down_proj": Signal("mlp.down_proj", "input"),
}


@dataclass(frozen=True)
class Attribution:
    """Integrated gradients of one layer's neurons.

    Attributes:
        values: (n_units,) float64, mean over the examples.
        steps: midpoints that the example with most of them took.
        gap: error of completeness, `sum |sum_j IG_j - (F(W) - F(0))| / sum |F(W) - F(0)|` over the examples.
    """

    values: Tensor
    steps: int
    gap: float


def confidence(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Largest logit behind the last token, (B,) float64 from (B, T) without padding."""
    hidden = model.base_model(input_ids=input_ids, use_cache=False)[0]
    return model.get_output_embeddings()(hidden[:, -1]).amax(dim=-1).double()


def _of_copies(model: PreTrainedModel, input_ids: Tensor, copies: int) -> Tensor:
    return confidence(model, input_ids.expand(copies, -1))


def attribute(
    model: PreTrainedModel,
    contexts: Sequence[Tensor],
    layers: Collection[int],
    *,
    weights: str = "gate_proj",
    steps: int = 20,
    max_steps: int = 180,
    tolerance: float = 0.01,
    batch_tokens: int = 2048,
    progress: bool = True,
) -> dict[int, Attribution]:
    """Attributions of the neurons of each of the `layers` (arXiv:2507.09185).

    F is the largest logit behind an example's context. One layer's weights W (and biases) are interpolated from 0, with the rest
    of the model intact: `IG_j = sum_i W_ji * mean_alpha dF(alpha W)/dW_ji`, alpha at the midpoints of `steps` equal parts. More
    are taken where F bends (the largest logit may change hands on the way), up to `max_steps`, until an example's attributions
    add up to `F(W) - F(0)` with an error of at most `tolerance` times the examples' mean change.

    Only the interpolated layer and those after it are run, from the cached input of that layer.

    Args:
        contexts: (T,) token ids of each example.
        weights: which of the layer's weights W is; a name of `PATHS`.
        batch_tokens: tokens that run together: copies of one context with different alphas.

    Raises:
        ValueError: gradients cannot be had of this model.
    """
    check_gradients(model, otherwise="")
    groups = {group.layer: group for group in unit_groups(model, ["ffn"]) if group.layer in layers}
    rows = [context.to(model.device)[None] for context in contexts]
    found = {}
    with evaluating(model), frozen(model), stage("Attributing", total=len(groups), unit="layers", show=progress) as bar:
        with torch.no_grad():
            whole = [float(confidence(model, ids)) for ids in rows]
        runs = [partial(confidence, model, ids) for ids in rows]
        for layer, given in walk(model, runs, last=max(groups)):
            if layer in groups:
                limits = (steps, max_steps, tolerance)
                found[layer] = _layer(model, groups[layer], PATHS[weights], rows, given, whole, limits, batch_tokens)
                bar.update()
    return found


def _layer(
    model: PreTrainedModel,
    group: UnitGroup,
    signal: Signal,
    rows: Sequence[Tensor],
    given: Sequence[Tensor | None],
    whole: Sequence[float],
    limits: tuple[int, int, float],
    batch_tokens: int,
) -> Attribution:
    """One layer's attribution.

    Args:
        rows: (1, T) token ids of each example.
        given: what the layer reads for each, (1, T, hidden size).
        whole: F(W) of each.
        limits: steps, max_steps, tolerance.
    """

    functions = [partial(_of_copies, model, ids) for ids in rows]
    absent = [without_group(model, group, cached, function, signal) for function, cached in zip(functions, given, strict=True)]
    size = sum(abs(value - other) for value, other in zip(whole, absent, strict=True))
    allowed = limits[2] * size / len(rows)
    integrals: list[Integral] = []
    for ids, function, cached, ends in zip(rows, functions, given, zip(absent, whole, strict=True), strict=True):
        path = partial(path_slopes, model, group, cached, function, max(1, batch_tokens // ids.shape[1]), signal=signal)
        integrals.append(integrate(path, ends, steps=limits[0], max_steps=limits[1], tolerance=allowed))
    return Attribution(
        values=torch.stack([integral.values for integral in integrals]).mean(dim=0),
        steps=max(integral.steps for integral in integrals),
        gap=sum(integral.error for integral in integrals) / max(size, torch.finfo(torch.float64).tiny),
    )
