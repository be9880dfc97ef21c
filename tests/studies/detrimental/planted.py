"""A model that is right until neurons that are known to hurt are planted into one layer."""

from __future__ import annotations

import torch
from conftest import tiny_model
from transformers import PreTrainedModel

from hf_spectral_prune import Example

LAYER, NEURONS, CHOICES = 1, (2, 7, 11, 20), ("w10", "w20")


def questions(model: PreTrainedModel, number: int = 60, seed: int = 0) -> list[Example]:
    """Random prompts whose right choice is the one that the model prefers, as many of either."""
    generator = torch.Generator().manual_seed(seed)
    sides: tuple[list[Example], list[Example]] = ([], [])
    while min(map(len, sides)) < number // 2:
        ids = torch.randint(40, 96, (6,), generator=generator)
        with torch.no_grad():
            last = model(input_ids=ids[None]).logits[0, -1]
        label = int(last[20] > last[10])
        sides[label].append(Example(" ".join(f"w{word}" for word in ids.tolist()), CHOICES, label))
    return [example for pair in zip(*sides, strict=False) for example in pair][:number]


def plant(model: PreTrainedModel) -> PreTrainedModel:
    """Makes four neurons of one layer push the first choice's logit up, whatever the prompt is; they did nothing before.

    With equal gate and up rows a neuron gives silu(z) z, which is never negative.
    """
    mlp = model.model.layers[LAYER].mlp
    head = model.lm_head.weight.detach()
    with torch.no_grad():
        for neuron in NEURONS:
            mlp.gate_proj.weight[neuron] = mlp.up_proj.weight[neuron] = 3 * mlp.up_proj.weight[neuron]
            mlp.down_proj.weight[:, neuron] = 8 * (head[10] - head[20]) / (head[10] - head[20]).norm()
    return model


def sound_model(family: str = "llama") -> PreTrainedModel:
    """The model before planting: the four neurons add nothing."""
    model = tiny_model(family)
    with torch.no_grad():
        model.model.layers[LAYER].mlp.down_proj.weight[:, list(NEURONS)] = 0
    return model
