"""What the figures promise: perplexity as an independent computation gives it, fair timings, exact counts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_spectral_prune.data.texts import build_calibration
from hf_spectral_prune.evaluation import figures as evaluation
from hf_spectral_prune.evaluation.figures import (
    latency,
    num_non_embedding_parameters,
    num_parameters,
    paired_latency,
    perplexity,
    size_on_disk,
    task_metrics,
)
from hf_spectral_prune.models import losses
from hf_spectral_prune.models.losses import loss_of

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
}


def make_llama(**changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    # A wide initial spread, so that the loss of a token depends on the tokens before it.
    return LlamaForCausalLM(LlamaConfig(**SIZES | {"initializer_range": 0.3, "max_position_embeddings": 512} | changes))


def make_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3))


def make_rows(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(64, (length,), generator=generator) for length in lengths]


def pad(rows: list[Tensor], side: str) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), 7), torch.zeros(len(rows), width, dtype=torch.int64)
    for index, row in enumerate(rows):
        place = slice(width - len(row), None) if side == "left" else slice(len(row))
        ids[index, place], mask[index, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def reference_loss(model: PreTrainedModel, rows: list[Tensor]) -> float:
    model.eval()
    with torch.no_grad():
        losses = [float(model(row[None], labels=row[None]).loss) * (len(row) - 1) for row in rows if len(row) > 1]
    return sum(losses) / sum(len(row) - 1 for row in rows)


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
@pytest.mark.parametrize("side", ["left", "right"])
def test_perplexity_is_the_models_own_loss_whatever_the_padding(make, side: str) -> None:
    model, rows = make(), make_rows(12, 5, 1, 20)
    figures = perplexity(model, [pad(rows[:2], side), pad(rows[2:], side)], progress=False)
    expected = reference_loss(model, rows)
    assert figures["loss"] == pytest.approx(expected, rel=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    assert figures["num_tokens"] == 11 + 4 + 0 + 19


def test_perplexity_counts_every_position_of_long_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = make_llama(), make_rows(300, 300)
    expected = reference_loss(model, rows)
    for positions in (128, 7, 1000):
        monkeypatch.setattr(losses, "_POSITIONS_AT_ONCE", positions)
        figures = perplexity(model, build_calibration([torch.stack(rows)]), progress=False)
        assert figures["loss"] == pytest.approx(expected, rel=1e-5) and figures["num_tokens"] == 598


def test_perplexity_never_holds_the_logits_of_a_whole_batch() -> None:
    model, shapes = make_llama(), []
    model.lm_head.register_forward_hook(lambda _module, _args, output: shapes.append(output.shape[0]))
    perplexity(model, [pad(make_rows(9, 9, 9), "right")], progress=False)
    assert shapes == [1, 1, 1]


def test_perplexity_of_uniform_predictions_is_the_vocabulary_size() -> None:
    model = make_llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    assert perplexity(model, [{"input_ids": torch.stack(make_rows(9, 9))}])["perplexity"] == pytest.approx(64)


def test_perplexity_takes_no_dropout_no_autocast_and_restores_the_mode() -> None:
    model, batch = make_llama(attention_dropout=0.5), pad(make_rows(30), "right")
    expected = reference_loss(model, make_rows(30))
    model.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        figures = perplexity(model, [batch], progress=False)
    assert figures["loss"] == pytest.approx(expected, rel=1e-6)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    perplexity(model, [batch], progress=False)
    assert not model.training


def test_a_hopeless_model_has_infinite_perplexity() -> None:
    model = make_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    figures = perplexity(model, [pad(make_rows(30), "right")], progress=False)
    assert figures["perplexity"] == math.inf and math.isfinite(figures["loss"])


BERT = BertConfig(**SIZES)


@pytest.mark.parametrize(
    "model",
    [
        BertForMaskedLM(BERT),
        BertLMHeadModel(BERT),
        T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_models_that_look_ahead_have_no_perplexity(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match=f"`{type(model).__name__}` is not a causal language model"):
        perplexity(model, [pad(make_rows(9), "right")])
    with pytest.raises(ValueError, match="is not a causal language model"):
        latency(model)


def test_a_bert_decoder_has_a_perplexity() -> None:
    torch.manual_seed(0)
    model = BertLMHeadModel(BertConfig(**SIZES, is_decoder=True))
    rows = make_rows(9, 5)
    assert perplexity(model, [pad(rows, "left")])["loss"] == pytest.approx(reference_loss(model, rows), rel=1e-5)


def test_nothing_to_predict_is_an_error() -> None:
    with pytest.raises(ValueError, match="no token to predict"):
        perplexity(make_llama(), [pad(make_rows(1, 1), "right")])


# ---- latency


class Clock:
    """A clock that only the models move: the time of a forward pass is what the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.log: list[tuple[str, int, bool]] = []
        monkeypatch.setattr(evaluation.time, "perf_counter", lambda: self.now)

    def drive(self, model: PreTrainedModel, name: str, prefill: list[float], decode: float) -> None:
        waiting = iter(prefill)

        def hook(_module: object, _args: object, kwargs: dict, _output: object) -> None:
            length = kwargs["input_ids"].shape[1]
            self.log.append((name, length, bool(kwargs.get("past_key_values"))))
            self.now += next(waiting) if length > 1 else decode

        model.register_forward_hook(hook, with_kwargs=True)


def test_latency_is_the_median_after_warmup_in_tokens_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, model = Clock(monkeypatch), make_llama()
    clock.drive(model, "a", prefill=[100.0, 1.0, 2.0, 4.0], decode=0.5)
    figures = latency(model, prefill_tokens=8, decode_tokens=3, batch_size=2, repeats=3)
    assert figures == {
        "prefill_tokens_per_second": 8.0,
        "prefill_tokens_per_second_min": 4.0,
        "prefill_tokens_per_second_max": 16.0,
        "decode_tokens_per_second": 4.0,
        "decode_tokens_per_second_min": 4.0,
        "decode_tokens_per_second_max": 4.0,
    }
    assert clock.log == [("a", 8, False), ("a", 1, True), ("a", 1, True), ("a", 1, True)] * 4


def test_paired_models_are_timed_in_turn_on_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seen = Clock(monkeypatch), []
    models = {"dense": make_llama(), "pruned": make_llama(vocab_size=32)}
    for speed, (name, model) in enumerate(models.items(), start=1):
        clock.drive(model, name, prefill=[1.0 / speed] * 3, decode=1.0 / speed)
        model.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    figures = paired_latency(models, prefill_tokens=4, decode_tokens=1, repeats=2, warmup=1)
    assert [name for name, length, _ in clock.log if length > 1] == ["dense", "pruned"] * 3
    assert figures["pruned"]["prefill_tokens_per_second"] == 2 * figures["dense"]["prefill_tokens_per_second"] == 8
    assert all(torch.equal(seen[0], ids) for ids in seen if ids.shape[1] > 1)
    assert max(int(ids.max()) for ids in seen) < 32


def test_decoding_through_the_cache_reads_the_tokens_in_place() -> None:
    model, logits = make_llama().eval(), []
    model.lm_head.register_forward_hook(lambda _module, _args, output: logits.append(output[:, -1].clone()))
    ids = torch.stack(make_rows(12))
    evaluation._time_once(model, ids, prefill_tokens=9)
    with torch.no_grad():
        expected = model(ids).logits[:, 8:]
    torch.testing.assert_close(torch.stack(logits[:-1], dim=1), expected)


def test_latency_settings_out_of_range_are_named() -> None:
    model = make_llama(max_position_embeddings=16)
    model.train()
    with pytest.raises(ValueError, match=r"`prefill_tokens` . `decode_tokens` is 17, but .* at most 16 positions"):
        latency(model, prefill_tokens=15, decode_tokens=2)
    with pytest.raises(ValueError, match="`repeats` is 0, but must be at least 1"):
        latency(model, prefill_tokens=8, decode_tokens=2, repeats=0)
    with pytest.raises(ValueError, match="`warmup` is -1"):
        latency(model, prefill_tokens=8, decode_tokens=2, warmup=-1)
    assert latency(model, prefill_tokens=8, decode_tokens=2, repeats=1, warmup=0)["decode_tokens_per_second"] > 0
    assert model.training


# ---- sizes


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_once(tied: bool) -> None:
    model = make_llama(tie_word_embeddings=tied)
    layer = 4 * 32 * 32 + 3 * 32 * 48 + 2 * 32
    assert num_non_embedding_parameters(model) == 2 * layer + 32
    assert num_parameters(model) == 2 * layer + 32 + (1 if tied else 2) * 64 * 32


def test_size_on_disk_counts_the_weight_files(tmp_path: Path) -> None:
    model = make_llama()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = list(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    assert size_on_disk(tmp_path) == sum(len(shard.read_bytes()) for shard in shards)
    assert size_on_disk(str(tmp_path)) > 4 * num_parameters(model)
    with pytest.raises(FileNotFoundError, match=r"no \.safetensors file"):
        size_on_disk(tmp_path / "nowhere")


def test_batches_without_a_target_add_nothing() -> None:
    """The model's mean loss over no target is not a number; truncated prompts make such rows."""
    model = make_llama()
    batch = pad(make_rows(9, 7), "right")
    real, empty = (batch | {"labels": labels} for labels in (batch["input_ids"], torch.full_like(batch["input_ids"], -100)))
    alone, both = (task_metrics(model, data, progress=False)["loss"] for data in ([real], [real, empty]))
    assert both == alone
    with torch.enable_grad():
        loss = loss_of(model, empty)
        loss.backward()
    assert float(loss.detach()) == 0
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_metrics_that_are_no_single_number_are_left_out() -> None:
    batch = pad(make_rows(9, 7), "right")
    figures = task_metrics(make_llama(), [batch], lambda _: {"each": [0.5, 1.0], "one": torch.tensor(0.25)}, progress=False)
    assert figures == {"loss": figures["loss"], "one": 0.25}
