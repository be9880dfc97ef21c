"""ResNet whose convolutions have the widths that its config gives.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

from .channels import CriaChannelsMixin


@strict
class CriaResNetConfig(ResNetConfig):
    """ResNetConfig with the widths of the layers that are narrower than it says, by their paths in the base model."""

    model_type = "cria_resnet"
    cria_channels: dict[str, dict[str, int]] | None = None


class CriaResNetModel(CriaChannelsMixin, ResNetModel):
    """ResNetModel with convolutions of any width."""

    config_class = CriaResNetConfig


class CriaResNetForImageClassification(CriaChannelsMixin, ResNetForImageClassification):
    """ResNetForImageClassification with convolutions of any width."""

    config_class = CriaResNetConfig
