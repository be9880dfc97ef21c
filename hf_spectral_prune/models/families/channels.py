"""Convolutional networks and plain PyTorch networks: their units are channels, which `tracing.py` finds in the module graph."""

from __future__ import annotations

from .base import Family

RESNET = Family(
    name="resnet",
    model_types=("resnet", "cria_resnet"),
    layers="",
    kinds=(),
    cria="cria_resnet",
    traced=True,
)
MOBILENET_V2 = Family(
    name="mobilenet_v2",
    model_types=("mobilenet_v2", "cria_mobilenet_v2"),
    layers="",
    kinds=(),
    cria="cria_mobilenet_v2",
    traced=True,
)
# Any other network, as `TorchModel` holds it.
TORCH = Family(name="torch", model_types=("torch",), layers="", kinds=(), traced=True)

FAMILIES = (RESNET, MOBILENET_V2, TORCH)
