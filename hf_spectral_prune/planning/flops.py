"""Multiply-accumulates (MACs) of a model, layer by layer, counted on a real forward pass. One MAC is two FLOPs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..models.cria.channels import MATRICES, weight_of
from ..models.families import family_of, layers_of, module_of, network_of
from ..models.losses import moved_to
from ..models.modes import evaluating

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def layer_macs(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, int]:
    """{path: MACs} of one forward pass of the batch's first row, by the layers that ran, in their order in the model.

    Convolutions and linear layers are counted, and the two products of every attention (queries with keys, weights with
    values) under the path of the attention. Norms, activations, pooling and embeddings are not, as is usual; nor are weights
    that a model uses without calling their module.
    """
    network = network_of(model)
    paths = {module: name for name, module in network.named_modules()}
    found: dict[str, int] = {}

    def note(name: str, macs: int) -> None:
        found[name] = found.get(name, 0) + macs

    def count(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, _TRANSPOSED):
            note(paths[module], args[0].numel() * module.weight.numel() // module.in_channels)
        else:
            note(paths[module], output.numel() * (module.weight.numel() // len(weight_of(module))))

    handles = [module.register_forward_hook(count) for module in paths if isinstance(module, (*MATRICES, *_TRANSPOSED))]
    for path, consumer in _attentions(model, paths):
        # (B, T, heads * head size): every position takes a product with every other, twice.
        handles.append(
            consumer.register_forward_pre_hook(
                lambda _module, args, path=path: note(path, 2 * args[0].numel() * args[0].shape[1])
            )
        )
    try:
        with evaluating(model), torch.no_grad():  # weights that FSDP shards cannot be gathered in inference mode
            model(**moved_to(model, {name: value[:1] for name, value in batch.items() if name != "labels"}))
    finally:
        for handle in handles:
            handle.remove()
    order = {name: index for index, name in enumerate(paths.values())}
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def _attentions(model: PreTrainedModel, paths: Mapping[nn.Module, str]) -> list[tuple[str, nn.Module]]:
    rows = [row for row in family_of(model.config).kinds if row.kind == "heads"]
    found = []
    for row in rows:
        for layer in range(len(layers_of(model))):
            consumer = module_of(model, layer, row.consumer)
            found.append((attention_path(paths[consumer]), consumer))
    return found


def attention_path(consumer: str) -> str:
    """Path of the attention that a projection of heads (`...attention.o_proj`) belongs to."""
    return consumer.rpartition(".")[0]
