"""Tiny plain PyTorch networks, in a module of their own so that a fresh process can import their classes."""

from __future__ import annotations

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn import functional as F
from vision import CLASSES, randomise

from hf_spectral_prune.models.families.tracing import example_input
from hf_spectral_prune.models.torch_model import TorchModelForImageClassification, wrap


class Residual(nn.Module):
    """Two stages of basic blocks; the second one's shortcut is a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.one, self.two = Block(8, 8), Block(8, 16)
        self.last = nn.Linear(16, 4)

    def forward(self, maps: Tensor) -> Tensor:
        return self.last(self.two(self.one(F.relu(self.norm(self.stem(maps))))).mean(dim=(2, 3)))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(maps))))) + self.shortcut(maps))


class Vgg(nn.Module, PyTorchModelHubMixin):
    """A stack of convolutions by a list of widths ("M" halves the maps), and a classifier of two layers."""

    def __init__(self, layers: list[int | str], classes: int = 4) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        width = 3
        for layer in layers:
            if isinstance(layer, str):
                modules.append(nn.MaxPool2d(2))
            else:
                modules += [nn.Conv2d(width, layer, 3, padding=1), nn.BatchNorm2d(layer), nn.ReLU()]
                width = layer
        self.features, self.pool = nn.Sequential(*modules), nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(width, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, classes))

    def forward(self, maps: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(maps)).flatten(1))


class Dense(nn.Module):
    """A block in which every layer reads all maps before it (DenseNet), behind norms that see the concatenation."""

    def __init__(self, growth: int = 6, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        widths = [8 + growth * index for index in range(layers + 1)]
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for width in widths])
        self.convs = nn.ModuleList([nn.Conv2d(width, growth, 3, padding=1) for width in widths[:-1]])
        self.last = nn.Linear(widths[-1], 4)

    def forward(self, maps: Tensor) -> Tensor:
        maps = self.stem(maps)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            maps = torch.cat([maps, conv(F.relu(norm(maps)))], dim=1)
        return self.last(F.relu(self.norms[-1](maps)).mean(dim=(2, 3)))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 4))

    def forward(self, values: Tensor) -> Tensor:
        return self.layers(values)


class Flat(nn.Module):
    """Flattening gives every channel 16 columns of the linear layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.hidden, self.last = nn.Linear(6 * 16, 10), nn.Linear(10, 4)

    def forward(self, maps: Tensor) -> Tensor:
        maps = F.relu(self.two(F.relu(self.one(maps))))
        return self.last(F.relu(self.hidden(maps.flatten(1))))


class Sized(nn.Module):
    """Takes an argument that nobody records."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(20, width), nn.Linear(width, 4)

    def forward(self, values: Tensor) -> Tensor:
        return self.two(F.relu(self.one(values)))


class Grouped(nn.Module):
    """Channels under a group norm, 4 groups of 4 by default."""

    def __init__(self, groups: int = 4) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 16, 3), nn.GroupNorm(groups, 16), nn.Conv2d(16, 4, 3)

    def forward(self, maps: Tensor) -> Tensor:
        return self.two(F.relu(self.norm(self.one(maps)))).mean(dim=(2, 3))


# Every network with what its class is made with.
NETWORKS: dict[str, tuple[type[nn.Module], dict]] = {
    "residual": (Residual, {}),
    "vgg": (Vgg, {"layers": [8, "M", 12, 12, "M", 16]}),
    "dense": (Dense, {}),
    "mlp": (Mlp, {}),
    "flat": (Flat, {}),
}


def tiny_network(name: str) -> nn.Module:
    """A random network of 4 classes, with statistics and norms that are nowhere trivial."""
    network, arguments = NETWORKS[name]
    torch.manual_seed(0)
    made = network(**arguments).eval()
    randomise(made)
    return made


def input_batch(network: nn.Module | str, rows: int = 8, seed: int = 0) -> dict[str, Tensor]:
    """Noise with labels, in the shape that the network takes."""
    flat = network == "mlp" or isinstance(network, (Mlp, Sized))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(CLASSES), (rows,), generator=generator)
    return {"pixel_values": torch.randn(rows, *((20,) if flat else (3, 16, 16)), generator=generator), "labels": labels}


def wrapped(name: str) -> TorchModelForImageClassification:
    """The network with the face of a transformers model."""
    model = wrap(tiny_network(name), input_batch(name)["pixel_values"][:1])
    assert example_input(model).shape[1:] == input_batch(name)["pixel_values"].shape[1:]
    return model
