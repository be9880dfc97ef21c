"""Moments are the sums they claim to be: of the right signals, over real positions only, however the data is cut."""

from __future__ import annotations

import pytest
import torch
from conftest import FAMILIES, random_batch, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_spectral_prune.calibration import Moments, collect_moments, unit_channels
from hf_spectral_prune.models.families import unit_groups


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1_000), positions=st.integers(1, 40), channels=st.sampled_from([1, 5, 513, 600]))
def test_moments_are_the_sums_whatever_the_cut(seed, positions, channels):
    signal = torch.randn(positions, channels, generator=torch.Generator().manual_seed(seed))
    moments = Moments.zeros(channels)
    for part in signal.split(7):
        moments.update(part)
    moments.symmetrise()
    assert moments.count == positions
    torch.testing.assert_close(moments.second_moment, signal.double().T @ signal.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(moments.sum, signal.double().sum(0), rtol=1e-5, atol=1e-5)


def test_merged_moments_are_those_of_all_positions():
    signal = torch.randn(20, 6, dtype=torch.float64)
    parts = []
    for part in (signal[:9], signal[9:]):
        moments = Moments.zeros(6)
        moments.update(part)
        parts.append(moments.symmetrise())
    merged = parts[0].merge(parts[1])
    assert merged.count == 20
    torch.testing.assert_close(merged.raw(), signal.T @ signal / 20)
    torch.testing.assert_close(merged.mean(), signal.mean(0))


def test_selected_channels_are_the_sub_block():
    moments = Moments.zeros(6)
    moments.update(torch.randn(10, 6))
    moments.symmetrise()
    chosen = unit_channels(torch.tensor([0, 2]), 2)
    assert chosen.tolist() == [0, 1, 4, 5]
    assert torch.equal(moments.select(chosen).second_moment, moments.second_moment[chosen][:, chosen])


def reference_signals(model, batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Both sides of every group, recomputed from the layers' inputs and weights instead of read by the package's hooks."""
    seen = {}
    handles = []
    for index, layer in enumerate(model.model.layers):
        for name, module in (("mlp", layer.mlp), ("attention", layer.self_attn), ("output", layer.self_attn.o_proj)):

            def keep(_module, args, kwargs, key=(index, name)):
                seen[key] = args[0] if args else kwargs["hidden_states"]

            handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    signals = {}
    for index, layer in enumerate(model.model.layers):
        x = seen[index, "mlp"]
        gate, up = layer.mlp.gate_proj(x), layer.mlp.up_proj(x)
        signals[f"layers.{index}.ffn"] = (gate, torch.nn.functional.silu(gate) * up)
        signals[f"layers.{index}.heads"] = (layer.self_attn.v_proj(seen[index, "attention"]), seen[index, "output"])
    return signals


@pytest.mark.parametrize("padding", [None, "left", "right"], ids=str)
@pytest.mark.parametrize("family", ["llama", "llama-biases", "mistral-window", "qwen2", "qwen3"])
def test_moments_are_those_of_the_real_positions_of_the_right_signals(family, padding):
    model = tiny_model(family)
    batch = random_batch(3, 12, padding=padding)
    moments = collect_moments(model, unit_groups(model), [batch], progress=False)
    real = batch["attention_mask"].bool()
    for key, sides in reference_signals(model, batch).items():
        for signal, measured in zip(sides, moments[key], strict=True):
            rows = signal[real].double()
            assert measured.count == int(real.sum())
            torch.testing.assert_close(measured.second_moment, rows.T @ rows, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(measured.sum, rows.sum(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_left_and_right_padding_give_the_moments_of_the_bare_text(family):
    model = tiny_model(family)
    groups = unit_groups(model)
    bare = random_batch(1, 8)
    right = {"input_ids": torch.cat([bare["input_ids"], torch.zeros(1, 4, dtype=torch.int64)], 1)}
    left = {"input_ids": torch.cat([torch.zeros(1, 4, dtype=torch.int64), bare["input_ids"]], 1)}
    right["attention_mask"] = torch.tensor([[1] * 8 + [0] * 4])
    left["attention_mask"] = torch.tensor([[0] * 4 + [1] * 8])
    expected = collect_moments(model, groups, [bare], progress=False)
    for padded in (right, left):
        measured = collect_moments(model, groups, [padded], progress=False)
        for key, sides in expected.items():
            for side, other in zip(sides, measured[key], strict=True):
                assert side.count == other.count == 8
                torch.testing.assert_close(side.second_moment, other.second_moment, rtol=1e-4, atol=1e-4)


def test_loss_signals_are_the_hidden_state_times_its_gradient():
    model = tiny_model()
    batch = random_batch(2, 10, padding="right")
    groups = unit_groups(model, ["ffn"])
    moments = collect_moments(model, groups, [batch], signals="loss", progress=False)
    kept = {}
    handles = []
    for index, layer in enumerate(model.model.layers):

        def keep(_module, args, index=index):
            args[0].retain_grad()
            kept[index] = args[0]

        handles.append(layer.mlp.down_proj.register_forward_pre_hook(keep))
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    loss = model(**batch, labels=labels).loss * labels[:, 1:].ne(-100).sum()
    loss.backward()
    real = batch["attention_mask"].bool()
    for index in range(3):
        rows = (kept[index] * kept[index].grad).detach()[real].double()
        torch.testing.assert_close(moments[f"layers.{index}.ffn"].after.second_moment, rows.T @ rows, rtol=1e-3, atol=1e-5)
    for handle in handles:
        handle.remove()


def test_loss_signals_leave_no_gradients_and_no_hooks():
    model = tiny_model()
    collect_moments(model, unit_groups(model), [random_batch()], signals="loss", progress=False)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_calibration_keeps_the_training_mode():
    model = tiny_model().train()
    collect_moments(model, unit_groups(model), [random_batch()], progress=False)
    assert model.training


def test_text_of_padding_only_is_an_error():
    batch = random_batch(1, 4)
    batch["attention_mask"].zero_()
    with pytest.raises(ValueError, match="no unpadded position"):
        collect_moments(tiny_model(), unit_groups(tiny_model()), [batch], progress=False)
