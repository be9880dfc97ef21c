"""Every row of the table of families computes in llama.cpp what it computes in transformers, and no row stands there untried."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import random_batch, tiny_encoder, tiny_model
from crias import BPE_VOCABULARY, CORPUS, LlamaCpp, byte_level, cria, save, word_piece
from transformers import PreTrainedModel

from hf_spectral_prune.publishing.export.gguf import export_gguf
from hf_spectral_prune.publishing.export.gguf_families import FAMILIES

TOKENIZER = byte_level()
TIED, ROPE = {"tie_word_embeddings": True}, "rope_parameters"
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5_000.0}
SCALES = {"attention_multiplier": 0.4, "embedding_multiplier": 3.0, "residual_multiplier": 0.7, "logits_scaling": 2.0}
NO_ROPE = {"num_hidden_layers": 5, "no_rope_layer_interval": 4}
CAPS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
WINDOWS = {"num_hidden_layers": 4, "sliding_window": 8, "query_pre_attn_scalar": 9}
GEMMA3_ROPES = {"sliding_attention": {"rope_type": "default", "rope_theta": 300.0}, "full_attention": LINEAR}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500.0}
LLAMA3 |= {"original_max_position_embeddings": 16}
# Factors for contexts of up to 256 tokens and for longer ones; half of each head is rotated.
LONG = {"rope_type": "longrope", "short_factor": [2.0], "long_factor": [9.0], "rope_theta": 50.0, "partial_rotary_factor": 0.5}
LONG = {ROPE: LONG, "original_max_position_embeddings": 256, "max_position_embeddings": 512}
# Of log probabilities. llama.cpp reads gelu from a table of float16, so that figures agree to three digits only.
EXACT, TABLE = 2e-5, 5e-3

# (row of the table, row of the tests' families, layout, what of the config must not get lost, tolerance)
ROWS = [
    ("llama", "llama", "uniform", {}, EXACT),
    ("llama", "llama", "uniform", {ROPE: LLAMA3}, EXACT),
    ("llama", "llama", "per_layer", {ROPE: LLAMA3}, EXACT),
    ("llama", "llama", "per_layer", {ROPE: LINEAR}, EXACT),
    ("llama", "llama-biases", "per_layer", TIED, EXACT),
    ("mistral", "mistral", "uniform", {}, EXACT),
    ("mistral", "mistral-window", "per_layer", {}, EXACT),
    ("qwen2", "qwen2", "uniform", {ROPE: LINEAR}, EXACT),
    ("qwen2", "qwen2-tied", "per_layer", {}, EXACT),
    ("qwen3", "qwen3", "uniform", {}, EXACT),
    ("qwen3", "qwen3", "per_layer", TIED | {ROPE: LINEAR}, EXACT),
    ("granite", "granite", "uniform", SCALES, EXACT),
    ("granite", "granite", "per_layer", SCALES, EXACT),
    ("granite", "granite", "per_layer", SCALES | {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}, EXACT),
    ("smollm3", "smollm3", "uniform", NO_ROPE, EXACT),
    ("gemma", "gemma", "uniform", {}, TABLE),
    ("gemma2", "gemma2", "uniform", CAPS | WINDOWS, TABLE),
    ("gemma3_text", "gemma3", "uniform", WINDOWS | {ROPE: GEMMA3_ROPES}, TABLE),
    ("phi3", "phi3", "uniform", {}, EXACT),
    ("phi3", "phi3", "per_layer", TIED, EXACT),
    ("olmo2", "olmo2", "uniform", {}, EXACT),
    ("olmo2", "olmo2", "uniform", TIED, EXACT),
    ("gpt2", "gpt2", "uniform", {}, TABLE),
    ("gpt_neox", "gpt_neox", "uniform", {}, TABLE),
    ("gpt_neox", "gpt_neox", "uniform", {"use_parallel_residual": False, "hidden_act": "gelu_new"}, TABLE),
    ("phi", "phi", "uniform", {}, TABLE),
    ("starcoder2", "starcoder2", "uniform", {}, TABLE),
    ("falcon", "falcon", "uniform", {}, TABLE),
    ("falcon", "falcon", "uniform", {"multi_query": False}, TABLE),
    ("falcon", "falcon", "uniform", {"new_decoder_architecture": True, "num_kv_heads": 4}, TABLE),
    ("stablelm", "stablelm", "uniform", {"use_qkv_bias": True}, EXACT),
    ("stablelm", "stablelm-parallel", "uniform", {}, EXACT),
    ("nemotron", "nemotron", "uniform", {}, EXACT),
    ("nemotron", "nemotron", "uniform", {"mlp_bias": True, "attention_bias": True}, EXACT),
    ("cohere", "cohere", "uniform", {"logit_scale": 0.5}, EXACT),
    ("mixtral", "mixtral", "uniform", {}, EXACT),
    ("qwen2_moe", "qwen2_moe", "uniform", {}, EXACT),
    ("qwen3_moe", "qwen3_moe", "uniform", {"mlp_only_layers": [], "norm_topk_prob": True}, EXACT),
    ("olmoe", "olmoe", "uniform", {"num_key_value_heads": 8}, EXACT),
]
FAST = {("qwen3", "per_layer"), ("gemma3_text", "uniform")}


def cases():
    for row in ROWS:
        marks = [] if row[0::2][:2] in FAST else [pytest.mark.slow]
        yield pytest.param(*row, marks=marks, id=f"{row[1]}-{row[2]}-{'-'.join(row[3])}")


def compare(file: Path, model: torch.nn.Module, start: int, stop: int, tolerance: float, context: int = 128) -> None:
    """Log probabilities of every token that is written greedily after `start` random ones."""
    judge = LlamaCpp(file, context)
    ids = random_batch(1, start)["input_ids"][0].tolist()
    while len(ids) < stop:
        found = judge.log_probabilities(ids, BPE_VOCABULARY)
        with torch.inference_mode():
            expected = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1], dim=-1)
        told = torch.isfinite(found)
        assert int(told.sum()) >= BPE_VOCABULARY - 2  # llama.cpp leaves out tokens that cannot come
        assert float((found - expected)[told].abs().max()) < tolerance
        likeliest = int(torch.where(told, expected, -torch.inf).argmax())
        assert int(torch.where(told, found, -torch.inf).argmax()) == likeliest
        ids.append(likeliest)


def shaken(model: PreTrainedModel) -> PreTrainedModel:
    """With norms that are not all alike, which would hide where they are lost or mistaken."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(("name", "family", "layout", "fields", "tolerance"), cases())
def test_llama_cpp_writes_what_transformers_writes(name, family, layout, fields, tolerance, tmp_path):
    pytest.importorskip("xllamacpp")
    whole = layout == "uniform" and FAMILIES[name].architectures[0].whole_heads
    model = shaken(tiny_model(family, vocab_size=BPE_VOCABULARY, **fields))
    pruned = cria(model, layout, **{"units": ["ffn"]} if whole else {})
    window = getattr(pruned.config, "sliding_window", None)
    stop = window - 1 if window and not FAMILIES[name].architectures[0].windows else 24
    compare(export_gguf(save(tmp_path, pruned, TOKENIZER), outtype="f32"), pruned, stop // 2, stop, tolerance)


@pytest.mark.slow
def test_long_contexts_of_phi3_take_their_own_factors(tmp_path):
    pytest.importorskip("xllamacpp")
    model = shaken(tiny_model("phi3", vocab_size=BPE_VOCABULARY, **LONG))
    file = export_gguf(save(tmp_path, model, TOKENIZER), outtype="f32")
    compare(file, model, 24, 30, EXACT, context=256)
    compare(file, model, 258, 262, EXACT, context=512)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh"])
def test_bert_has_the_hidden_states_that_it_has_in_transformers(activation, tmp_path):
    pytest.importorskip("xllamacpp")
    tokenizer = word_piece()
    model = shaken(tiny_encoder("bert", task="Model", hidden_act=activation, vocab_size=len(tokenizer)))
    pruned = cria(model, "uniform", units=["ffn"])
    judge = LlamaCpp(export_gguf(save(tmp_path, pruned, tokenizer), outtype="f32"), embeddings=True)
    for text in CORPUS[:3]:
        with torch.inference_mode():
            expected = pruned(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(judge.hidden_states(text), expected, rtol=0, atol=TABLE)


def test_every_row_is_tried_in_every_layout_that_it_takes():
    wanted = {(name, "uniform") for name in FAMILIES}
    wanted |= {(name, "per_layer") for name, row in FAMILIES.items() if any(place.per_layer for place in row.architectures)}
    assert {row[0::2][:2] for row in ROWS} | {("bert", "uniform")} == wanted
