"""Distillation of networks that are pruned by channels: which parts are compared, by which formula, and that it helps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import TrainingArguments
from vision import image_batch, prune, tiny_vision

from hf_spectral_prune import RecoveryArguments, recover
from hf_spectral_prune.recovery.distillation import DistillationTrainer
from hf_spectral_prune.recovery.feature_maps import captured, feature_loss, shared_parts

pytest.importorskip("torch_pruning")


class Blocks(nn.Module):
    """Two residual blocks and a classifier; `inner` is the width inside the blocks."""

    def __init__(self, inner: int, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, inner, 3, padding=1), nn.ReLU(), nn.Conv2d(inner, width, 3, padding=1))
            for _ in range(2)
        )
        self.head = nn.Linear(width, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits."""
        maps = self.stem(images)
        for block in self.blocks:
            maps = maps + block(maps)
        return self.head(maps.mean((2, 3)))


def wrapped(inner: int) -> nn.Module:
    from hf_spectral_prune.models.torch_model import wrap

    torch.manual_seed(inner)
    return wrap(Blocks(inner), torch.zeros(1, 3, 16, 16))


INPUTS = {"pixel_values": image_batch()["pixel_values"]}


def test_blocks_are_compared_where_only_their_inside_was_cut():
    assert shared_parts(wrapped(5), wrapped(8), INPUTS) == ["network.blocks.0", "network.blocks.1"]


def test_single_layers_are_compared_where_no_block_matches():
    from hf_spectral_prune.models.torch_model import wrap

    def flat(width: int) -> nn.Module:
        layers = (nn.Conv2d(3, width, 3), nn.Conv2d(width, 6, 3), nn.Flatten(), nn.Linear(6 * 144, 4))
        return wrap(nn.Sequential(*layers), torch.zeros(1, 3, 16, 16))

    # The second convolution; what flattening makes of its maps is another tensor. The logits are not a part.
    assert shared_parts(flat(5), flat(8), INPUTS) == ["network.1", "network.2"]


def test_finding_parts_changes_no_network():
    model = tiny_vision("resnet-basic").train()
    before = copy.deepcopy(model.state_dict())
    shared_parts(model, tiny_vision("resnet-basic"), INPUTS)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_loss_of_features_is_its_formula():
    own, other = {"a": torch.randn(2, 3, 4), "b": torch.randn(5)}, {"a": torch.randn(2, 3, 4), "b": torch.randn(5)}
    expected = sum(float(((own[name] - other[name]) ** 2).sum() / (other[name] ** 2).sum()) for name in own) / 2
    assert float(feature_loss(own, other)) == pytest.approx(expected, rel=1e-6)
    assert float(feature_loss(other, other)) == 0


def training_arguments(folder, **options) -> TrainingArguments:
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    return TrainingArguments(str(folder), per_device_train_batch_size=8, **quiet, **options)


def relative_error(model, teacher, parts) -> float:
    with torch.no_grad(), captured(model, parts) as own, captured(teacher, parts) as other:
        model.eval()(**INPUTS)
        teacher(**INPUTS)
    return float(feature_loss(own, other))


def test_distillation_brings_the_blocks_to_the_teachers(tmp_path):
    teacher, student = wrapped(8).eval(), wrapped(6)
    parts = ["network.blocks.0", "network.blocks.1"]
    before = relative_error(student, teacher, parts)
    rows = [{name: value[index] for name, value in image_batch().items()} for index in range(8)]
    training = training_arguments(tmp_path, max_steps=60, learning_rate=1e-2)
    # By default labels and logits have hardly any weight, so that what falls is the features' error.
    weights = {"temperature": 1.0, "alpha": 1.0, "hidden_weight": None}
    DistillationTrainer(model=student, args=training, train_dataset=rows, teacher=teacher, **weights).train()
    assert relative_error(student, teacher, parts) < 0.1 * before


def test_networks_whose_stages_were_cut_are_distilled_by_their_logits(tmp_path):
    teacher = tiny_vision("resnet-basic")
    student = prune(tiny_vision("resnet-basic")).model
    rows = [{name: value[index] for name, value in image_batch().items()} for index in range(8)]
    training = training_arguments(tmp_path, max_steps=2)
    output = recover(student, RecoveryArguments(method="distill"), training, rows, rows, teacher=teacher)
    assert "train_loss" in output.metrics
    assert shared_parts(student, teacher, INPUTS) == []
