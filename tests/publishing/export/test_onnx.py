"""Exported ONNX files compute in onnxruntime what the models compute in PyTorch, for any batch and length."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import ENCODERS, logits, random_batch, tiny_encoder, tiny_model
from crias import cria
from vision import CONVOLUTIONAL, VISION, image_batch, prune, tiny_vision

from hf_spectral_prune.cli.main import main

onnxruntime = pytest.importorskip("onnxruntime")
onnx_export = pytest.importorskip("hf_spectral_prune.publishing.export.onnx")

PLAIN = [family for family in ENCODERS if family != "modernbert-biases"]
OTHERS = ["mistral", "qwen2", "qwen3", "granite", "smollm3", "gemma", "gemma2", "gemma3"]


def check(folder, model, names: list[str]) -> None:
    result = onnx_export.export_onnx(folder)
    assert result.file == folder / "model.onnx"
    assert result.inputs == names
    assert result.max_abs_diff <= result.allowed
    session = onnxruntime.InferenceSession(str(result.file))
    for entry in session.get_inputs():
        assert entry.shape == ["batch", "sequence"], "both axes are free"
    assert session.get_outputs()[0].shape[0] == "batch"
    for rows, length in ((1, 5), (4, 31)):
        batch = random_batch(rows, length, seed=rows, padding="right")
        inputs = {name: batch.get(name, batch["input_ids"] * 0).numpy() for name in names}
        expected = logits(model, batch).numpy()
        found = session.run(None, inputs)[0]
        assert found.shape == expected.shape
        kept = batch["attention_mask"].bool().numpy() if expected.ndim == 3 else slice(None)
        assert np.abs(found - expected)[kept].max() < 1e-4


def test_per_layer_llama_runs_on_onnxruntime(tmp_path):
    model = cria(tiny_model(num_hidden_layers=2))
    model.save_pretrained(tmp_path)
    check(tmp_path, model, ["input_ids", "attention_mask"])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize(
    "family", ["llama", "bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "modernbert"]
)
def test_every_layout_runs_on_onnxruntime(family, layout, tmp_path):
    fields = {"layout": layout, "units": ["ffn"]} if layout == "uniform" else {"layout": layout}
    dense = tiny_model() if family == "llama" else tiny_encoder(family, task="ForSequenceClassification")
    model = cria(dense, **fields)
    model.save_pretrained(tmp_path)
    names = ["input_ids", "attention_mask"]
    check(tmp_path, model, [*names, "token_type_ids"] if family in ("bert", "electra") else names)


def greedy(session, ids: np.ndarray, steps: int) -> np.ndarray:
    """The prompt and `steps` tokens after it, one at a time through the cache."""
    cache = {
        entry.name: np.zeros((len(ids), entry.shape[1], 0, entry.shape[3]), np.float32)
        for entry in session.get_inputs()
        if entry.name.startswith("past_key_values")
    }
    text, new = ids, ids
    for _ in range(steps):
        positions = np.arange(text.shape[1])[None].repeat(len(ids), 0)
        inputs = {"input_ids": new, "attention_mask": np.ones_like(text), "position_ids": positions[:, -new.shape[1] :]}
        scores, *present = session.run(None, inputs | cache)
        cache = dict(zip(cache, present, strict=True))
        new = scores[:, -1:].argmax(-1)
        text = np.concatenate([text, new], 1)
    return text


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        "llama",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("mistral", "qwen2", "qwen3", "granite", "smollm3", "gemma", "gemma2", "gemma3")
        ),
    ],
)
def test_key_value_cache_writes_the_text_that_transformers_writes(family, tmp_path, capsys):
    # With a window of eight, later tokens no longer see the first ones.
    dense = tiny_model(family, num_hidden_layers=2, **({"sliding_window": 8} if family == "mistral" else {}))
    model = cria(dense, units=["heads"], target_reduction=0.2)
    model.save_pretrained(tmp_path)
    assert main(["export", "onnx", str(tmp_path), "--use_cache"]) == 0
    assert "(3, 13)" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    inputs = [entry.name for entry in session.get_inputs()]
    assert inputs[:5] == ["input_ids", "attention_mask", "position_ids", "past_key_values.0.key", "past_key_values.0.value"]
    assert [entry.name for entry in session.get_outputs()][:3] == ["logits", "present.0.key", "present.0.value"]
    assert session.get_inputs()[3].shape[0::2] == ["batch", "past_sequence"]
    assert len({entry.shape[1] for entry in session.get_inputs()[3:]}) > 1, "layers differ in their heads"
    prompt = random_batch(2, 5)["input_ids"]
    model.generation_config.eos_token_id = None
    expected = model.generate(prompt, max_new_tokens=12, do_sample=False)
    assert greedy(session, prompt.numpy(), 12).tolist() == expected.tolist()


@pytest.mark.slow
def test_cache_that_is_wrong_is_noticed(tmp_path, monkeypatch):
    tiny_model(num_hidden_layers=1).save_pretrained(tmp_path)
    load = onnx_export.onnxruntime.InferenceSession

    class ForgetsTheCache(load):
        def run(self, names, inputs):
            return super().run(names, {name: value * (not name.startswith("past")) for name, value in inputs.items()})

    monkeypatch.setattr(onnx_export.onnxruntime, "InferenceSession", ForgetsTheCache)
    with pytest.raises(RuntimeError, match="differ from PyTorch's"):
        onnx_export.export_onnx(tmp_path, use_cache=True)
    assert not (tmp_path / "model.onnx").exists()


def test_cache_of_a_model_that_has_none_is_refused(tmp_path, capsys):
    tiny_encoder("bert", task="ForSequenceClassification", num_hidden_layers=1).save_pretrained(tmp_path)
    assert main(["export", "onnx", str(tmp_path), "--use_cache"]) == 2
    assert "`BertForSequenceClassification`" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("family", VISION)
def test_models_of_images_run_on_onnxruntime(family, tmp_path):
    fields = {} if family in CONVOLUTIONAL else {"layout": "per_layer", "allocation": "scores"}
    model = prune(tiny_vision(family), **fields).model.eval()
    assert type(model).__name__.startswith("Cria")
    model.save_pretrained(tmp_path)
    session = onnxruntime.InferenceSession(str(onnx_export.export_onnx(tmp_path).file))
    free = ["height", "width"] if family.startswith("resnet") else [16, 16]
    assert session.get_inputs()[0].shape == ["batch", 3, *free]
    assert session.get_outputs()[0].shape[0] == "batch"
    # A ResNet takes images of any size.
    for rows, size in ((1, 16), (5, 44 if family.startswith("resnet") else 16)):
        pixels = image_batch(rows, seed=1, size=size)["pixel_values"]
        with torch.inference_mode():
            expected = model(pixels).logits.numpy()
        assert np.abs(session.run(None, {"pixel_values": pixels.numpy()})[0] - expected).max() < 1e-4


@pytest.mark.slow
def test_large_weights_lie_beside_the_file(tmp_path, monkeypatch):
    model = tiny_model(num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(onnx_export, "_LARGEST_SINGLE_FILE", 1_000)
    result = onnx_export.export_onnx(tmp_path)
    assert (tmp_path / "model.onnx.data").stat().st_size > 0.9 * 4 * sum(value.numel() for value in model.parameters())
    batch = random_batch(2, 7)
    found = onnxruntime.InferenceSession(str(result.file)).run(None, {name: batch[name].numpy() for name in result.inputs})[0]
    assert np.abs(found - logits(model, batch).numpy()).max() < 1e-4


@pytest.mark.slow
def test_every_output_is_compared(tmp_path, monkeypatch):
    tiny_encoder("bert", task="ForQuestionAnswering", num_hidden_layers=1).save_pretrained(tmp_path)
    load = onnx_export.onnxruntime.InferenceSession

    class OneOutputWrong(load):
        def run(self, names, inputs):
            start, end = super().run(names, inputs)
            return [start, end + 1]

    monkeypatch.setattr(onnx_export.onnxruntime, "InferenceSession", OneOutputWrong)
    with pytest.raises(RuntimeError, match="differ from PyTorch's by 1"):
        onnx_export.export_onnx(tmp_path)


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({"intermediate_size": 8}, ["`model.layers.0.mlp.down_proj.weight`", "changed by hand"]),
        ({"num_hidden_layers": 4}, ["`model.layers.3.input_layernorm.weight`", "changed by hand"]),
        ({"num_hidden_layers": 2}, ["`model.layers.2.input_layernorm.weight`", "changed by hand"]),
        ({"architectures": ["T5ForConditionalGeneration"]}, ["T5ForConditionalGeneration", "loads as `LlamaModel`"]),
        ({"architectures": None}, ["`architectures`", "Save the model again"]),
        ({"rms_norm_eps": "small"}, ["cannot be read", "rms_norm_eps", "float"]),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, ["quantised"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_config_that_does_not_fit_is_refused(fields, messages, tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    before = sorted(tmp_path.iterdir())
    assert main(["export", "onnx", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("cria export:") == 1 and "Traceback" not in error
    assert all(message in error for message in messages), error
    assert sorted(tmp_path.iterdir()) == before


def test_weights_that_are_none_are_refused(tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_text("junk")
    assert main(["export", "onnx", str(tmp_path)]) == 2
    assert "no whole safetensors file" in capsys.readouterr().err


def test_outputs_that_differ_leave_nothing(tmp_path, monkeypatch, capsys):
    tiny_model(num_hidden_layers=1).save_pretrained(tmp_path)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(onnx_export, "_TOLERANCE", 1e-12)
    assert main(["export", "onnx", str(tmp_path)]) == 1
    assert "differ from PyTorch's" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["--output_file", "model.bin"], ["must end in `.onnx`"]),
        (["--outtype", "f16"], ["`--outtype` is no flag of `cria export onnx"]),
    ],
)
def test_words_that_make_no_sense_are_refused(words, messages, tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path)
    assert main(["export", "onnx", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("cria export:") == 1
    assert all(message in error for message in messages), error


def test_folder_that_is_no_model_is_refused(tmp_path, capsys):
    assert main(["export", "onnx", str(tmp_path)]) == 2
    assert "no `config.json`" in capsys.readouterr().err
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_model"}))
    assert main(["export", "onnx", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["export", "onnx"]) == 2
    assert "There is no folder" in capsys.readouterr().err
