"""What people do with a model after it was pruned: each client runs a Cria folder, uniform and per-layer."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from conftest import encoder_batch, logits, random_batch, tiny_encoder, tiny_model
from crias import TASK, cria, save
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, pipeline

from hf_spectral_prune.models.integrations import register

LAYOUTS = pytest.mark.parametrize("layout", ["uniform", "per_layer"])


def language_model(layout: str, folder, tokenizer, **fields):
    return save(folder, cria(tiny_model(**fields), layout), tokenizer)


def encoder(layout: str, task: str = "ForSequenceClassification", **fields):
    # A BERT with fewer heads is always a Cria, so the uniform one loses FFN neurons only.
    units = {"units": ["ffn"]} if layout == "uniform" else {}
    return cria(tiny_encoder("bert", task=task, **fields), layout, **units)


# ---- pipelines


@LAYOUTS
def test_text_generation_pipeline_continues_a_text(layout, tokenizer, tmp_path):
    folder = language_model(layout, tmp_path, tokenizer)
    run = pipeline("text-generation", model=str(folder))
    texts = run(["w5 w6 w7", "w8"], max_new_tokens=6, do_sample=False, batch_size=2)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer("w5 w6 w7", return_tensors="pt", return_token_type_ids=False)
    expected = tokenizer.decode(model.generate(**ids, max_new_tokens=6, do_sample=False)[0], skip_special_tokens=True)
    # The pipeline joins the prompt and its continuation without the space between words.
    assert texts[0][0]["generated_text"].replace(" ", "") == expected.replace(" ", "")
    assert len(texts[1]) == 1


@LAYOUTS
def test_fill_mask_and_text_classification_pipelines_answer(layout, tokenizer, tmp_path):
    masking = copy.deepcopy(tokenizer)
    masking.mask_token = "w95"
    folder = save(tmp_path / "mask", encoder(layout, "ForMaskedLM"), masking)
    best = pipeline("fill-mask", model=str(folder))("w5 w95 w7")
    assert len(best) == 5 and best[0]["score"] >= best[1]["score"] > 0
    folder = save(tmp_path / "class", encoder(layout, id2label={0: "even", 1: "odd"}), tokenizer)
    (answer,) = pipeline("text-classification", model=str(folder), top_k=None)(["w5 w6 w7"])
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    batch = tokenizer("w5 w6 w7", return_tensors="pt")
    expected = torch.softmax(logits(model, {name: batch[name] for name in ("input_ids", "attention_mask")}), -1)[0]
    assert {row["label"]: round(row["score"], 5) for row in answer} == {
        "even": round(float(expected[0]), 5),
        "odd": round(float(expected[1]), 5),
    }


# ---- PEFT

STOCK = ("llama", "mistral", "qwen2", "qwen3", "bert", "roberta")


def test_peft_knows_the_default_targets_if_it_was_imported_before():
    from peft.utils import constants

    table = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    for stock in STOCK:
        table.pop(f"cria_{stock}", None)
    register()
    for stock in STOCK:
        assert table[f"cria_{stock}"] == table[stock]


@LAYOUTS
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_lora_with_default_targets_trains_and_merges(kind, layout):
    from peft import LoraConfig, get_peft_model

    model = cria(tiny_model(), layout) if kind == "llama" else encoder(layout)
    batch = random_batch() if kind == "llama" else encoder_batch(model)
    adapted = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False))
    targets = {"llama": {"q_proj", "v_proj"}, "bert": {"query", "value"}}[kind]
    assert {name.split(".")[-2] for name, _ in adapted.named_modules() if name.endswith("lora_A")} == targets
    optimizer = torch.optim.SGD([value for value in adapted.parameters() if value.requires_grad], lr=0.1)
    labels = batch["input_ids"] if kind == "llama" else torch.tensor([0, 1])
    losses = []
    for _ in range(4):
        loss = adapted(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    expected = logits(adapted, batch)
    merged = adapted.merge_and_unload()
    assert type(merged).__name__.startswith("Cria") == (layout == "per_layer")
    assert torch.allclose(logits(merged, batch), expected, atol=1e-5)


# ---- sentence-transformers


@LAYOUTS
def test_sentence_transformers_around_a_pruned_encoder_encodes_and_reloads(layout, tokenizer, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.models import Pooling, Transformer

    options = {"units": ["ffn"]} if layout == "uniform" else {}
    model = cria(tiny_encoder("bert", task="Model"), layout, allocation="scores", **options)
    transformer = Transformer(str(save(tmp_path / "bert", model, tokenizer)))
    whole = sentence_transformers.SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")
    assert type(whole[0].auto_model).__name__ == ("CriaBertModel" if layout == "per_layer" else "BertModel")
    found = whole.encode(["w5 w6 w7"], convert_to_tensor=True)[0]
    batch = tokenizer("w5 w6 w7", return_tensors="pt")
    expected = logits(model, {name: batch[name] for name in ("input_ids", "attention_mask")})[0].mean(0)
    assert torch.allclose(found, expected, atol=1e-5)
    whole.save(str(tmp_path / "whole"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "whole"), device="cpu")
    assert torch.allclose(again.encode(["w5 w6 w7"], convert_to_tensor=True)[0], found, atol=1e-6)


# ---- torch.export, vLLM


@LAYOUTS
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_torch_export_gives_the_same_outputs(kind, layout):
    model = cria(tiny_model(), layout) if kind == "llama" else encoder(layout)
    model.config.use_cache = False
    batch = random_batch()
    program = torch.export.export(model, (), dict(batch))
    with torch.inference_mode():
        assert torch.allclose(program.module()(**batch)[0], logits(model, batch), atol=1e-5)


FRESH = """
import sys
from importlib.metadata import entry_points
(plugin,) = entry_points(group="vllm.general_plugins", name="hf_spectral_prune")
plugin.load()()
from transformers import AutoConfig, AutoModelForCausalLM
sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
model = AutoModelForCausalLM.from_config(AutoConfig.for_model("cria_llama", **sizes))
print(type(model).__name__)

assert "peft" not in sys.modules, "importing the package must not import PEFT"
from peft import LoraConfig, get_peft_model
from peft.utils import constants
for name, table in vars(constants).items():
    if name.startswith("TRANSFORMERS_MODELS_TO_"):
        for stock in sys.argv[1:]:
            assert table.get(f"cria_{stock}") == table.get(stock), (name, stock)
print(sorted(get_peft_model(model, LoraConfig()).peft_config["default"].target_modules))
"""


def test_fresh_process_finds_the_vllm_plugin_and_peft_learns_the_defaults_later():
    """vLLM's entry point only: vLLM itself needs a GPU build and is not run here."""
    done = subprocess.run([sys.executable, "-c", FRESH, *STOCK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
    assert done.stdout.strip().splitlines() == ["CriaLlamaForCausalLM", "['q_proj', 'v_proj']"]


# ---- quantised after pruning


@LAYOUTS
def test_bitsandbytes_loads_a_folder_in_8_bits(layout, tokenizer, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    folder = language_model(layout, tmp_path, tokenizer)
    dense = AutoModelForCausalLM.from_pretrained(folder).eval()
    quantised = AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True)).eval()
    for layer in quantised.model.layers:
        assert isinstance(layer.mlp.down_proj, bitsandbytes.nn.Linear8bitLt)
    expected = logits(dense, random_batch())
    assert float((logits(quantised, random_batch()) - expected).abs().mean()) < 0.05 * float(expected.abs().mean())


@LAYOUTS
def test_bitsandbytes_loads_a_folder_in_4_bits(layout, tokenizer, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    # Its blocks on a CPU are 64 values of a row long.
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64, "heads": (4, 2)}
    folder = save(tmp_path, cria(tiny_model(**sizes), layout, round_to=64, min_ffn_units=64, units=["ffn"]), tokenizer)
    dense = AutoModelForCausalLM.from_pretrained(folder).eval()
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    quantised = AutoModelForCausalLM.from_pretrained(folder, quantization_config=options).eval()
    assert quantised.get_memory_footprint() < 0.5 * dense.get_memory_footprint()
    # The dense model with the very weights that four bits keep.
    for own, packed in zip(dense.model.modules(), quantised.model.modules(), strict=True):
        if isinstance(packed, bitsandbytes.nn.Linear4bit):
            kept = bitsandbytes.functional.dequantize_4bit(packed.weight.data, packed.weight.quant_state)
            assert float((kept - own.weight.data).abs().max()) < 0.2 * float(own.weight.data.abs().max())
            own.weight.data = kept.to(own.weight.dtype)
    expected = logits(dense, random_batch())
    assert float((logits(quantised, random_batch()) - expected).abs().max()) < 0.05 * float(expected.abs().max())


# ---- lm_eval


@LAYOUTS
def test_lm_eval_scores_a_local_task_as_the_model_does(layout, tokenizer, tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(40, 95, (24, 6), generator=generator).tolist()
    rows = [
        {"question": " ".join(f"w{word}" for word in row[:4]), "choices": [f"w{row[4]}", f"w{row[5]}"], "label": row[0] % 2}
        for row in words
        if row[4] != row[5]
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "cria_pairs.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    model = AutoModelForCausalLM.from_pretrained(language_model(layout, tmp_path / "model", tokenizer)).eval()
    result = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
        tasks=["cria_pairs"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    right = 0
    for row in rows:
        ids = tokenizer(row["question"], return_tensors="pt")["input_ids"]
        likely = logits(model, {"input_ids": ids})[0, -1]
        chosen = [float(likely[tokenizer.convert_tokens_to_ids(choice)]) for choice in row["choices"]]
        right += chosen.index(max(chosen)) == row["label"]
    assert result["results"]["cria_pairs"]["acc,none"] == pytest.approx(right / len(rows))
