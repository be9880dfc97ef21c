"""Networks and targets that cannot work on the way of channels: one clear line that names the place."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from vision import image_batch, prune, tiny_vision

from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.cria.channels import narrow
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.models.families.tracing import example_input
from hf_spectral_prune.planning import choose_units
from hf_spectral_prune.surgery import apply_plan, masked

STEM = "resnet.embedder.embedder"


class Roll(nn.Module):
    """Moves every channel to the next place, which no list of operations knows."""

    def forward(self, x):
        return x.roll(1, dims=1)


class Detached(nn.Module):
    def forward(self, x):
        return x.detach()


class Broken(nn.Module):
    def forward(self, x):
        raise TypeError("half a image\nand more")


def refused(call, *messages: str) -> None:
    with pytest.raises(ValueError, match=r"\S") as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    for message in messages:
        assert message in text, text


def test_a_failing_forward_names_the_module():
    model = tiny_vision("resnet-basic")
    model.resnet.pooler = Broken()
    refused(lambda: unit_groups(model), "`resnet.pooler`", "(1, 3, 64, 64)", "half a image")


def test_an_output_without_gradient_names_the_last_module_that_has_one():
    model = tiny_vision("resnet-basic")
    model.classifier.append(Detached())
    refused(lambda: unit_groups(model), "cannot be traced", "after `classifier.1`", "detach")


def test_an_operation_that_moves_channels_is_named_and_its_channels_stay_whole(caplog):
    from transformers.utils import logging

    model = tiny_vision("resnet-bottleneck")
    model.resnet.embedder.pooler = Roll()
    logger = logging.get_logger("hf_spectral_prune.models.families.tracing")
    level, logger.propagate = logger.level, True
    logger.setLevel("INFO")
    try:
        groups = unit_groups(model)
    finally:
        logger.setLevel(level)
    assert groups and not any(group.name.startswith(STEM) for group in groups)
    assert any("roll" in record.getMessage().lower() and STEM in record.getMessage() for record in caplog.records)


def test_a_network_in_which_nothing_can_go_says_why():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.roll, self.two = nn.Conv2d(3, 8, 3), Roll(), nn.Conv2d(8, 4, 3)

        def forward(self, x):
            return self.two(self.roll(self.one(x))).mean(dim=(2, 3))

    from hf_spectral_prune.models.torch_model import wrap

    refused(lambda: unit_groups(wrap(Small(), torch.zeros(1, 3, 8, 8))), "`Small`", "`one`", "Roll")


@pytest.mark.parametrize("family", ["resnet-basic", "resnet-bottleneck"])
def test_channels_of_a_group_norm_go_in_whole_groups(family):
    model = tiny_vision(family)
    model.resnet.embedder.embedder.normalization = nn.GroupNorm(4, 8)
    with torch.no_grad():
        model.resnet.embedder.embedder.normalization.bias.normal_()
    (stem,) = [group for group in unit_groups(model) if group.name.startswith(STEM)]
    assert (stem.size, stem.channels_per_unit) == (4, 2)
    groups = unit_groups(model)
    sizes = {group.key: group.size for group in groups} | {stem.key: 3}
    scores = {group.key: torch.rand(group.size) for group in groups}
    plan = choose_units(groups, scores, sizes, num_parameters(model), model_type="resnet")
    batch = image_batch(4)
    with masked(model, {stem.key: plan.kept_index(stem.key)}):
        expected = model(**batch).logits.detach()
    apply_plan(model, plan)
    assert model.resnet.embedder.embedder.normalization.num_groups == 3
    assert torch.allclose(model(**batch).logits, expected, atol=1e-4)


def test_group_norms_that_normalise_all_together_leave_the_channels_whole_and_say_so():
    model = tiny_vision("resnet-bottleneck")
    for module in list(model.modules()):
        if isinstance(getattr(module, "normalization", None), nn.BatchNorm2d):
            module.normalization = nn.GroupNorm(1, module.normalization.num_features)
    refused(lambda: unit_groups(model), "normalises all channels")


def test_group_norms_whose_groups_do_not_divide_alike_are_named():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1)
            self.norm, self.last = nn.GroupNorm(2, 12), nn.Conv2d(12, 4, 1)

        def forward(self, x):
            return self.last(self.norm(torch.cat([self.one(x), self.two(x)], dim=1))).mean(dim=(2, 3))

    from hf_spectral_prune.models.torch_model import wrap

    refused(lambda: unit_groups(wrap(Two(), torch.zeros(1, 3, 4, 4))), "`norm`")


def test_cutting_through_a_group_is_refused():
    with pytest.raises(ValueError, match="4 groups of 2, which tears groups apart"):
        narrow(nn.GroupNorm(4, 8), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="tears groups apart"):
        narrow(nn.Conv2d(8, 8, 3, groups=4), torch.tensor([0, 1, 2]))


def test_cuts_that_would_empty_a_layer_are_refused():
    with pytest.raises(ValueError, match="without any channel"):
        narrow(nn.Conv2d(3, 8, 3), torch.tensor([], dtype=torch.int64))
    model = tiny_vision("resnet-basic")
    groups = unit_groups(model)
    sizes = {group.key: 0 for group in groups}
    scores = {group.key: torch.rand(group.size) for group in groups}
    refused(
        lambda: choose_units(groups, scores, sizes, num_parameters(model), model_type="resnet"), "empty the layer", "embedder"
    )
    before = num_parameters(model)
    refused(lambda: prune(model, target_reduction=0.99, target_scope="all"), "would empty layers", "min_channels")
    refused(lambda: prune(model, target_reduction=0.99, target_scope="flops"), "would empty layers")
    assert num_parameters(model) == before


@pytest.mark.parametrize(
    ("family", "fields", "messages"),
    [
        ("resnet-basic", {"units": ["ffn", "heads"]}, ("`channels`",)),
        ("vit", {"units": ["channels"]}, ("`ffn`, `heads`",)),
        ("resnet-basic", {"compensation": "bias"}, ("compensation",)),
        ("resnet-basic", {"compensation": "least_squares"}, ("compensation",)),
        ("resnet-basic", {"target_scope": "non_embedding"}, ("non_embedding",)),
        ("resnet-basic", {"target_reduction": 0.001}, ("smallest step",)),
        ("resnet-basic", {"criterion_args": {"spatial": "some"}, "criterion": "spectral"}, ("spatial", "some")),
        ("resnet-basic", {"criterion_args": {"num_positions": 0}, "criterion": "spectral"}, ("num_positions",)),
        ("resnet-basic", {"criterion": "taylor", "data": [{"pixel_values": torch.randn(4, 3, 16, 16)}]}, ("labels",)),
        ("resnet-basic", {"stock_class": "mistral"}, ("mistral",)),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_cut(family, fields, messages):
    model = tiny_vision(family)
    before = copy.deepcopy(model.state_dict())
    data = fields.pop("data", None)
    refused(lambda: prune(model, data, **fields), *messages)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_flops_of_text_are_refused(batches):
    from conftest import tiny_model

    refused(lambda: prune(tiny_model(), batches, units=["ffn"], target_scope="flops"), "models that read images")


def test_images_of_the_wrong_size_are_refused_by_the_pruner():
    refused(lambda: prune(tiny_vision("vit"), [image_batch(size=20)]), "20 x 20", "16 x 16")
    refused(lambda: prune(tiny_vision("resnet-basic"), [{"pixel_values": torch.randn(2, 1, 16, 16)}]), "(1, 16, 16)")


def test_example_follows_the_config():
    assert example_input(tiny_vision("vit")).shape == (1, 3, 16, 16)
    assert example_input(tiny_vision("resnet-basic", num_channels=1)).shape == (1, 1, 64, 64)


def test_integrated_gradients_is_not_for_channels():
    with pytest.raises(ValueError, match="these units are channels"):
        prune(tiny_vision("resnet-basic"), criterion="integrated_gradients")
