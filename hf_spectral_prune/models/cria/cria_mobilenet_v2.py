"""MobileNetV2 whose convolutions have the widths that its config gives.

This file is shipped beside the weights, so it imports torch, transformers and huggingface_hub only.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import MobileNetV2Config, MobileNetV2ForImageClassification, MobileNetV2Model

from .channels import CriaChannelsMixin


@strict
class CriaMobileNetV2Config(MobileNetV2Config):
    """MobileNetV2Config with the widths of the layers that are narrower than it says, by their paths in the base model."""

    model_type = "cria_mobilenet_v2"
    cria_channels: dict[str, dict[str, int]] | None = None


class CriaMobileNetV2Model(CriaChannelsMixin, MobileNetV2Model):
    """MobileNetV2Model with convolutions of any width."""

    config_class = CriaMobileNetV2Config


class CriaMobileNetV2ForImageClassification(CriaChannelsMixin, MobileNetV2ForImageClassification):
    """MobileNetV2ForImageClassification with convolutions of any width."""

    config_class = CriaMobileNetV2Config
