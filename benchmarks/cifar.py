"""CIFAR-10 and its residual networks for the benchmarks: weights, images, accuracy, and a short recovery.

The weights are state dicts of the CIFAR ResNets (`resnet20-12fca82f.th`, ...), whose shortcuts take every second position and
fill up with zero channels (option A of arXiv:1512.03385). The zeros tie the channels of a stage to places in the next, so only
the channels inside the blocks can be cut. The data folder holds lossless images, `lossless_batch_*.png`: the first 4,000 for
training and 1,000 for test, an image per row, their labels in `labels_official_order.npz`; and all images as JPEG,
`cifar10_jpeg_test.npz` and `cifar10_jpeg_train_batch1.npz` to 5 (`jpeg`, `offsets`, `labels`), which cost every network points.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from hf_spectral_prune.data.images import build_images
from hf_spectral_prune.data.texts import CalibrationData
from hf_spectral_prune.models.torch_model import wrap
from hf_spectral_prune.planning.flops import layer_macs
from hf_spectral_prune.surgery import recalibrate_norms

WEIGHTS = {20: "resnet20-12fca82f.th", 32: "resnet32-d509ac18.th", 56: "resnet56-4bfd9763.th"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NUM_CALIBRATION = 1024
BATCH_SIZE = 128


# ---- the networks


class Shortcut(nn.Module):
    """Option A: every second position, and zero channels on both sides."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.padding = (outputs - inputs) // 2

    def forward(self, maps: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / 2, W / 2)."""
        return F.pad(maps[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        same = inputs == outputs
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=1 if same else 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if same else Shortcut(inputs, outputs)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W')."""
        hidden = F.relu(self.bn1(self.conv1(maps)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(maps))


class CifarResNet(nn.Module):
    """A residual network for images of 32 x 32 with stages of 16, 32 and 64 channels."""

    def __init__(self, depth: int = 20) -> None:
        super().__init__()
        blocks, inputs = (depth - 2) // 6, 16
        self.conv1 = nn.Conv2d(3, inputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        for stage, width in enumerate((16, 32, 64), start=1):
            layers = [Block(inputs if index == 0 else width, width) for index in range(blocks)]
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
            inputs = width
        self.linear = nn.Linear(inputs, 10)

    def block_outputs(self, images: Tensor) -> list[Tensor]:
        """(B, 3, 32, 32) -> (B, channels, H, W) of every block."""
        maps, found = F.relu(self.bn1(self.conv1(images))), []
        for block in (*self.layer1, *self.layer2, *self.layer3):
            maps = block(maps)
            found.append(maps)
        return found

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32) -> logits (B, 10)."""
        return self.linear(self.block_outputs(images)[-1].mean(dim=(2, 3)))


def trained(folder: Path, depth: int) -> CifarResNet:
    """The trained network, in evaluation mode."""
    saved = torch.load(folder / WEIGHTS[depth], map_location="cpu", weights_only=True)["state_dict"]
    network = CifarResNet(depth)
    network.load_state_dict({name.removeprefix("module."): value for name, value in saved.items()})
    return network.to(memory_format=torch.channels_last).eval()


# ---- the data


@dataclass
class Data:
    """Images as bytes (N, 3, 32, 32) with their labels (N,)."""

    images: Tensor
    labels: Tensor

    def to(self, device: str) -> Data:
        """The same on a device."""
        return Data(self.images.to(device), self.labels.to(device))

    def normalised(self, index: slice | Tensor = slice(None)) -> Tensor:
        """Some of the images as the networks take them."""
        return normalise(self.images[index])


def normalise(images: Tensor) -> Tensor:
    """Bytes (B, 3, 32, 32) -> floats in the networks' scale."""
    mean, std = (torch.tensor(values, device=images.device).reshape(3, 1, 1) for values in (MEAN, STD))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def read_lossless(folder: Path, names: list[str], labels: str) -> Data:
    """Images of 1024 x 1000 pixels, one CIFAR image per row, with the first labels of that name."""
    rows = np.concatenate([np.asarray(Image.open(folder / f"lossless_batch_{name}.png").convert("RGB")) for name in names])
    images = torch.from_numpy(rows.reshape(-1, 32, 32, 3)).permute(0, 3, 1, 2).contiguous()
    known = np.load(folder / "labels_official_order.npz")[labels]
    return Data(images, torch.from_numpy(known[: len(images)]).long())


def read_lossy(file: Path, number: int | None = None) -> Data:
    """Images kept as JPEG files, one behind the other from the given offsets on; the first so many, or all."""
    held = np.load(file)
    offsets, files = held["offsets"], held["jpeg"].tobytes()
    offsets = offsets[: None if number is None else number + 1]
    rows = [np.asarray(Image.open(io.BytesIO(files[start:end])).convert("RGB")) for start, end in pairwise(offsets)]
    images = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous()
    return Data(images, torch.from_numpy(held["labels"][: len(images)]).long())


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moves every image by up to 4 pixels and mirrors half of them; bytes (B, 3, 32, 32)."""
    count = len(images)
    padded = F.pad(images, (4, 4, 4, 4))
    down, right = torch.randint(9, (2, count, 1), generator=generator)
    steps = torch.arange(32)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flip, right + 31 - steps, right + steps)
    rows = down + steps
    batch = torch.arange(count).reshape(-1, 1, 1)
    places = [index.to(images.device) for index in (batch, rows[:, :, None], columns[:, None, :])]
    return padded.permute(0, 2, 3, 1)[tuple(places)].permute(0, 3, 1, 2)


def calibration_images(data: Data, number: int, seed: int) -> CalibrationData:
    """Images drawn by the seed, moved and mirrored like those that the networks were trained on.

    Batch norms that are recalibrated on plain images cost the dense ResNet-20 three points.
    """
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(data.labels), generator=generator)[:number].to(data.labels.device)
    images = normalise(augmented(data.images[index], generator))
    return build_images((images, data.labels[index]), num_samples=number, batch_size=BATCH_SIZE, seed=seed, name="CIFAR-10 train")


@torch.inference_mode()
def accuracy(network: nn.Module, data: Data) -> float:
    """Per cent of right answers."""
    right = sum(
        int((network(data.normalised(part)).argmax(1) == data.labels[part]).sum())
        for part in torch.arange(len(data.labels)).split(500)
    )
    return round(100 * right / len(data.labels), 2)


def macs_of(network: nn.Module) -> int:
    """MACs of one image."""
    example = torch.zeros(1, 3, 32, 32, device=next(network.parameters()).device)
    return sum(layer_macs(wrap(network, example), {"pixel_values": example}).values())


# ---- recovery


def recover(network: CifarResNet, teacher: CifarResNet, data: Data, steps: int, rate: float, seed: int) -> None:
    """Teaches the cut network the outputs of the dense one's blocks, and recalibrates the batch norms on all images.

    The cuts are inside the blocks, so that every block still has an output to compare. A few hundred steps on 4,000 images
    that the dense network knows by heart go further with it than with its logits. The classifier stays as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1, cycle_momentum=False)
    network.train()
    for _ in range(steps):
        index = torch.randint(len(data.labels), (BATCH_SIZE,), generator=generator).to(data.labels.device)
        images = normalise(augmented(data.images[index], generator))
        with torch.autocast(images.device.type, torch.bfloat16):
            with torch.no_grad():
                wanted = teacher.block_outputs(images)
            found = network.block_outputs(images)
        pairs = [(one.float(), two.float()) for one, two in zip(found, wanted, strict=True)]
        errors = [(one - two).square().sum() / two.square().sum() for one, two in pairs]
        optimizer.zero_grad()
        torch.stack(errors).mean().backward()
        optimizer.step()
        schedule.step()
    network.eval()
    images = calibration_images(data, len(data.labels), seed)
    recalibrate_norms(wrap(network, images.batches[0]["pixel_values"][:1]), images.batches)
