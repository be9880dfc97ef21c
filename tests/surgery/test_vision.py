"""ResNet, MobileNetV2 and ViT: removing units gives what masking them gives, and everything that shares them goes with them."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel
from vision import CONVOLUTIONAL, VISION, image_batch, is_transformer, prune, tiny_vision

from hf_spectral_prune.calibration.signals import readers
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.planning import budget_of, choose_units
from hf_spectral_prune.planning.flops import layer_macs
from hf_spectral_prune.surgery import apply_plan, masked, settle_class
from hf_spectral_prune.surgery.plan import PruningPlan
from hf_spectral_prune.trainer.optimizer import optimizer_follows

BATCH = image_batch(4)


def random_plan(model, seed: int = 0, share: float = 0.5) -> PruningPlan:
    """Keeps a random part of every group, of a different size for each; at least one unit goes from each."""
    generator = torch.Generator().manual_seed(seed)
    groups = unit_groups(model)
    sizes = {}
    for group in groups:
        wanted = group.size * (1 - share) + group.size * share * float(torch.rand((), generator=generator))
        sizes[group.key] = min(group.size - 1, max(1, int(wanted)))
    scores = {group.key: torch.rand(group.size, generator=generator) for group in groups}
    return choose_units(groups, scores, sizes, num_parameters(model), _count(model), model_type=model.config.model_type)


def _count(model):
    return budget_of(model, unit_groups(model)).parameters if not is_transformer(model) else None


def kept_of(plan) -> dict[str, torch.Tensor]:
    return {key: plan.kept_index(key) for key in plan.kept}


@pytest.mark.proves("masked", "parameters")
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", VISION)
def test_removed_model_equals_masked_model(family, seed):
    model = tiny_vision(family).double()
    batch = {name: value.double() if value.is_floating_point() else value for name, value in BATCH.items()}
    dense = model(**batch).logits.detach()
    plan = random_plan(model, seed)
    with masked(model, kept_of(plan)):
        expected = model(**batch).logits.detach()
    settle_class(apply_plan(model, plan))
    found = model(**batch).logits
    assert num_parameters(model) == plan.parameters_after
    assert torch.allclose(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))
    # Masking must have changed something, or all of this shows nothing.
    assert float((dense - expected).abs().max()) > 0.05


@pytest.mark.parametrize(("width", "ratio", "name"), [(32, 1, "Dinov2Model"), (40, 2, "CriaDinov2Model")])
def test_dinov2_is_of_its_stock_class_where_its_ratio_can_say_the_width(width, ratio, name, tmp_path):
    model = tiny_vision("dinov2", "Model")
    groups = unit_groups(model)
    scores = {group.key: torch.rand(group.size, generator=torch.Generator().manual_seed(0)) for group in groups}
    sizes = {group.key: width if group.kind == "ffn" else 6 for group in groups}
    plan = choose_units(groups, scores, sizes, num_parameters(model), model_type="dinov2")
    cut = settle_class(apply_plan(model, plan))
    assert (type(cut).__name__, cut.config.mlp_ratio) == (name, ratio)
    cut.save_pretrained(tmp_path)
    pixels = {"pixel_values": BATCH["pixel_values"]}
    assert torch.equal(AutoModel.from_pretrained(tmp_path).eval()(**pixels)[0], cut(**pixels)[0])


def reads(model, group, unit: int, pixels) -> torch.Tensor:
    """What the consumers read of one unit of a group of single channels."""
    seen = []
    with ExitStack() as stack:
        for reader in readers(model, group, "after"):
            stack.enter_context(reader.reading(lambda value, reader=reader: seen.append(reader.rows(value)[..., unit].flatten())))
        model(pixel_values=pixels)
    return torch.cat(seen)


@pytest.mark.parametrize("family", VISION)
def test_any_single_unit_can_go_and_units_matter(family):
    """One unit of each group at a time: the cut model is the masked one, and another than the dense one."""
    model = tiny_vision(family).double()
    pixels = BATCH["pixel_values"].double()
    dense = model(pixel_values=pixels).logits.detach()
    groups = unit_groups(model)
    silent = 0
    for group in groups:
        sizes = {other.key: other.size for other in groups} | {group.key: group.size - 1}
        scores = {other.key: torch.ones(other.size) for other in groups}
        scores[group.key][group.size // 2] = 0
        plan = choose_units(groups, scores, sizes, num_parameters(model), _count(model), model_type=model.config.model_type)
        with masked(model, kept_of(plan)):
            expected = model(pixel_values=pixels).logits.detach()
        cut = apply_plan(copy.deepcopy(model), plan)
        found = cut(pixel_values=pixels).logits
        assert torch.allclose(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max())), group.key
        if float((expected - dense).abs().max()) < 1e-7:
            assert not reads(model, group, group.size // 2, pixels).any(), group.key
            silent += 1
        assert num_parameters(model) - num_parameters(cut) == group.parameters_per_unit
    assert silent < len(groups) // 4  # a ReLU may be closed on all of four images


def test_widths_of_a_stage_are_cut_jointly_across_residual_connections():
    model = tiny_vision("resnet-bottleneck")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    plan = random_plan(model)
    stage = "resnet.encoder.stages.0.layers"
    kept = plan.kept_index(f"{stage}.0.shortcut.convolution.channels")
    assert 0 < len(kept) < 16
    apply_plan(model, plan)
    cut = model.state_dict()
    # Both blocks' last layers and the shortcut add up; the next block and the next stage read the sum.
    for end in (f"{stage}.0.shortcut", f"{stage}.0.layer.2", f"{stage}.1.layer.2"):
        for name in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(cut[f"{end}.normalization.{name}"], state[f"{end}.normalization.{name}"][kept]), (end, name)
        assert cut[f"{end}.convolution.weight"].shape[0] == len(kept)
    for reader in (f"{stage}.1.layer.0", "resnet.encoder.stages.1.layers.0.shortcut", "resnet.encoder.stages.1.layers.0.layer.0"):
        rows = plan.kept.get(f"{reader}.convolution.channels")
        rows = torch.arange(state[f"{reader}.convolution.weight"].shape[0]) if rows is None else torch.tensor(rows)
        assert torch.equal(cut[f"{reader}.convolution.weight"], state[f"{reader}.convolution.weight"][rows][:, kept]), reader


def test_identity_shortcuts_tie_the_stem_to_the_first_stage():
    """With basic blocks of one width there is no convolution on the way: the stem's channels are the stage's."""
    model = tiny_vision("resnet-basic")
    (stem,) = [group for group in unit_groups(model) if "embedder" in group.name]
    outputs = {piece.path for piece in stem.slices if piece.side == "output"}
    assert "resnet.encoder.stages.0.layers.0.layer.1.convolution" in outputs


def test_depthwise_convolutions_are_cut_with_their_channels():
    model = tiny_vision("mobilenet_v2")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    plan = random_plan(model)
    apply_plan(model, plan)
    for index, block in enumerate(model.mobilenet_v2.layer):
        name = f"mobilenet_v2.layer.{index}"
        kept = plan.kept_index(f"{name}.expand_1x1.convolution.channels")
        depthwise = block.conv_3x3.convolution
        assert depthwise.groups == depthwise.in_channels == depthwise.out_channels == len(kept)
        assert torch.equal(depthwise.weight, state[f"{name}.conv_3x3.convolution.weight"][kept])
        assert block.expand_1x1.convolution.out_channels == block.reduce_1x1.convolution.in_channels == len(kept)
        assert torch.equal(block.conv_3x3.normalization.running_var, state[f"{name}.conv_3x3.normalization.running_var"][kept])


@pytest.mark.parametrize("family", CONVOLUTIONAL)
@pytest.mark.parametrize("seed", [0, 1])
def test_planned_parameters_and_macs_are_those_of_the_cut_model(family, seed):
    model = tiny_vision(family)
    plan = random_plan(model, seed)
    sizes = {key: len(kept) for key, kept in plan.kept.items()}
    budget = budget_of(model, unit_groups(model), layer_macs(model, BATCH))
    apply_plan(model, plan)
    assert budget.parameters(sizes) == num_parameters(model) == plan.parameters_after
    assert budget.macs(sizes) == sum(layer_macs(model, BATCH).values())


@pytest.mark.parametrize("family", VISION)
def test_macs_agree_with_torchs_own_counter(family):
    model = tiny_vision(family, attn_implementation="eager")
    settle_class(apply_plan(model, random_plan(model)))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(pixel_values=BATCH["pixel_values"][:1])
    assert counter.get_total_flops() == 2 * sum(layer_macs(model, BATCH).values())


@pytest.mark.proves("bfloat16")
@pytest.mark.parametrize("family", ["vit", "dinov2", "dinov2-gated"])
def test_cut_model_works_in_bfloat16(family):
    model, pixels = tiny_vision(family).to(torch.bfloat16), BATCH["pixel_values"].bfloat16()
    plan = random_plan(model)
    with masked(model, kept_of(plan)):
        expected = model(pixels).logits.detach()
    cut = settle_class(apply_plan(model, plan))
    assert cut.dtype == torch.bfloat16
    assert (cut(pixels).logits - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.proves("again")
@pytest.mark.parametrize("family", VISION)
def test_pruned_model_can_be_pruned_again(family):
    first = prune(tiny_vision(family), layout="per_layer", allocation="scores")
    middle = num_parameters(first.model)
    plan = random_plan(first.model, seed=5)
    with masked(first.model, kept_of(plan)):
        expected = first.model(**BATCH).logits.detach()
    again = apply_plan(copy.deepcopy(first.model), plan)
    assert torch.allclose(again(**BATCH).logits, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    second = prune(first.model, layout="per_layer", allocation="scores")
    assert num_parameters(second.model) == second.output.plan.parameters_after < middle
    assert type(second.model).__name__.startswith("Cria")


@pytest.mark.parametrize("family", VISION)
def test_adam_follows_the_channels_through_a_cut(family):
    model = tiny_vision(family)
    plan = random_plan(model)
    # Moments that name their own weights: after the cut each must still stand beside its weight.
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model(**BATCH).loss.backward()
    optimizer.step()
    for parameter in model.parameters():
        optimizer.state[parameter]["exp_avg"].copy_(parameter.detach())
    with optimizer_follows(optimizer, model, plan):
        apply_plan(model, plan)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}
    for name, parameter in model.named_parameters():
        assert torch.equal(optimizer.state[parameter]["exp_avg"], parameter), name
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.zero_grad()
    model(**BATCH).loss.backward()
    optimizer.step()
    assert all(not torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
