"""A cut model's logits get the factor at which it is as sure as the dense one; greedy text stays what it was."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import CORE, FAMILIES, FFN_ONLY, logits, random_batch, tiny_encoder, tiny_model
from products import only

from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.surgery import confidence, sequential
from hf_spectral_prune.surgery.confidence import last_norm, scale_norm
from hf_spectral_prune.surgery.sequential import cut_sequentially

DECODERS = [*FAMILIES, *FFN_ONLY]
WITHOUT = ["opt-post-norm"]  # its norms are all inside the layers


def cut(model, batches):
    model = copy.deepcopy(model)
    cut_sequentially(model, {group.key: torch.arange(0, group.size, 2) for group in unit_groups(model)}, batches, progress=False)
    return model.eval()


def away(dense, pruned, batches) -> float:
    """KL divergence from the dense model, a position."""
    total, count = 0.0, 0
    for batch in batches:
        q, p = (logits(model, batch)[batch["attention_mask"].bool()].double().log_softmax(-1) for model in (dense, pruned))
        total, count = total + float((q.exp() * (q - p)).sum()), count + len(q)
    return total / count


@pytest.mark.parametrize("family", only(CORE, [name for name in DECODERS if name not in WITHOUT]))
def test_the_factor_lowers_the_divergence_and_leaves_greedy_text_alone(family, monkeypatch):
    model, batches = tiny_model(family).eval(), [random_batch(4, 32, seed, "right") for seed in range(20)]
    found = cut(model, batches[:16])
    monkeypatch.setattr(sequential, "match_confidence", lambda *_args: 1.0)
    plain = cut(model, batches[:16])
    # Some of these random models stay so near to the dense one that no factor helps.
    before, after = (away(model, one, batches[16:]) for one in (plain, found))
    assert after <= before and (after < before or before < 0.02)
    for batch in batches[16:]:
        assert torch.equal(logits(found, batch).argmax(-1), logits(plain, batch).argmax(-1))


@pytest.mark.parametrize("family", only(CORE, DECODERS))
def test_the_last_norm_is_found_and_scaled(family):
    model, batch = tiny_model(family).eval(), random_batch(2, 8, 0)
    norm = last_norm(model)
    assert (norm is None) == (family in WITHOUT)
    if norm is None:
        return
    given = []
    norm.register_forward_hook(lambda _module, _args, output: given.append(output))  # which `forward` does not call
    logits(model, batch)
    with torch.no_grad():
        scale_norm(norm, 0.8)
    logits(model, batch)
    torch.testing.assert_close(given[1], 0.8 * given[0], rtol=1e-4, atol=1e-5)


def test_the_factor_is_the_best_of_all():
    wanted, given = torch.randn(50, 30, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    noisy = wanted + torch.randn(50, 30, generator=given)
    factor = 1.0
    for _ in range(6):
        _, slope, curvature, _ = confidence._sums(wanted, noisy, factor).tolist()
        factor -= slope / curvature
    tried = {value / 100: float(confidence._sums(wanted, noisy, value / 100)[0]) for value in range(30, 121)}
    assert factor == pytest.approx(min(tried, key=tried.__getitem__), abs=0.01) and factor < 0.95


def test_models_that_predict_no_next_token_are_left_alone():
    model = tiny_encoder(task="ForSequenceClassification")
    assert confidence.match_confidence(model, None, []) == 1.0  # type: ignore[arg-type]
