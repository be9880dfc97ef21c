"""Tiny random models that read images, their inputs, and folders of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments

# Row of the test matrix: stock class prefix, the image processor's class, and the config's fields. Images are 3 x 16 x 16.
VISION: dict[str, tuple[str, str, dict[str, Any]]] = {
    "resnet-basic": (
        "ResNet",
        "ConvNextImageProcessorPil",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"},
    ),
    "resnet-bottleneck": (
        "ResNet",
        "ConvNextImageProcessorPil",
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 1], "layer_type": "bottleneck"},
    ),
    "mobilenet_v2": (
        "MobileNetV2",
        "MobileNetV2ImageProcessorPil",
        {"depth_multiplier": 0.25, "min_depth": 4, "depth_divisible_by": 4, "image_size": 16, "expand_ratio": 2},
    ),
    "vit": (
        "ViT",
        "ViTImageProcessorPil",
        {
            "hidden_size": 32,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 8,
            "image_size": 16,
            "patch_size": 4,
            "initializer_range": 0.15,
        },
    ),
}
_VIT_SIZES = {name: value for name, value in VISION["vit"][2].items() if name != "intermediate_size"}
VISION["dinov2"] = (
    "Dinov2",
    "ViTImageProcessorPil",
    _VIT_SIZES | {"mlp_ratio": 2, "layerscale_value": 0.7, "use_mask_token": False},
)
# As the largest one's, its FFN is two thirds as wide as the ratio says.
VISION["dinov2-gated"] = ("Dinov2", "ViTImageProcessorPil", VISION["dinov2"][2] | {"mlp_ratio": 1, "use_swiglu_ffn": True})
CONVOLUTIONAL = tuple(name for name in VISION if not name.startswith(("vit", "dinov2")))
CLASSES = ("cat", "dog", "fox", "owl")


def tiny_vision(family: str, task: str = "ForImageClassification", **fields: Any) -> PreTrainedModel:
    """A random model of 4 classes in which every channel matters, with statistics and norms that are nowhere trivial."""
    prefix, _, special = VISION[family]
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: index for index, name in enumerate(CLASSES)}}
    config = getattr(transformers, f"{prefix}Config")(**special | names | fields)
    torch.manual_seed(0)
    model = getattr(transformers, f"{prefix}{task}")(config).eval()
    randomise(model)
    return model


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Norms and biases away from 0 and 1, as training would leave them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(0.5, 1.5)  # so that no ReLU behind it is always closed
        elif isinstance(module, nn.LayerNorm):
            module.weight.uniform_(0.5, 1.5)
        elif isinstance(module, nn.Conv2d):
            module.weight.normal_(std=(2 / module.weight[0].numel()) ** 0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and "normalization" not in name:
            parameter.normal_(std=0.3)


def is_transformer(model: PreTrainedModel) -> bool:
    """Whether its units are FFN neurons and heads, and not channels."""
    return model.config.model_type.removeprefix("cria_") in ("vit", "dinov2")


def image_batch(rows: int = 8, seed: int = 0, size: int = 16) -> dict[str, torch.Tensor]:
    """Noise with labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(CLASSES), (rows,), generator=generator)
    return {"pixel_values": torch.randn(rows, 3, size, size, generator=generator), "labels": labels}


def prune(model: PreTrainedModel, data: Any = None, **fields: Any) -> SpectralPruner:
    """A pruner that has done its work: `energy` on noise, 30 % of what can go, in steps of 2 units."""
    kinds = ["ffn", "heads"] if is_transformer(model) else ["channels"]
    options: dict[str, Any] = {"target_reduction": 0.3, "target_scope": "prunable", "units": kinds, "criterion": "energy"}
    options |= {"round_to": 2, "min_channels": 2, "min_ffn_units": 4, "disable_tqdm": True, "compensation": "none"}
    data = [image_batch(seed=seed) for seed in (0, 1)] if data is None else data
    pruner = SpectralPruner(model, SpectralPruningArguments(**options | fields), data)
    pruner.prune()
    return pruner


def random_images(number: int, seed: int = 0, size: tuple[int, int] = (20, 24)) -> list[Image.Image]:
    """Images of PIL, of random bytes."""
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(number)]


def processor_of(family: str, size: int = 16) -> Any:
    """The family's image processor, for images of 16 x 16."""
    kind = getattr(transformers, VISION[family][1])
    if family.startswith("resnet"):
        return kind(size={"shortest_edge": size}, crop_pct=1.0)
    if family.startswith(("vit", "dinov2")):
        return kind(size={"height": size, "width": size})
    return kind(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def image_folder(folder: Path, each: int = 8) -> Path:
    """A folder of images, a subfolder a class."""
    for index, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(random_images(each, index)):
            image.save(folder / name / f"{number}.png")
    return folder
