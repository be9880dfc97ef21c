"""Runtimes for CPUs: OpenVINO reads the exported ONNX file, CTranslate2 converts the folder itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_model
from crias import cria, save

from hf_spectral_prune.publishing.export.onnx import export_onnx
from hf_spectral_prune.surgery import as_mistral, settle_class

PROMPT = [5, 6, 7, 8, 9]
NEW = 12


def greedy(model, ids: torch.Tensor) -> list[list[int]]:
    model.generation_config.eos_token_id = None
    return model.generate(ids, max_new_tokens=NEW, do_sample=False)[:, ids.shape[1] :].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
def test_openvino_writes_the_text_that_transformers_writes(family, layout, tmp_path):
    openvino = pytest.importorskip("openvino")
    model = cria(tiny_model(family), layout, **({"units": ["heads"], "target_reduction": 0.2} if layout == "per_layer" else {}))
    model.save_pretrained(tmp_path)
    file = export_onnx(tmp_path, use_cache=True).file
    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = [entry.get_any_name() for entry in compiled.inputs]
    text = random_batch(2, 5)["input_ids"]
    shapes = [entry.get_partial_shape() for entry in compiled.inputs[3:]]
    cache = [np.zeros((len(text), shape[1].get_length(), 0, shape[3].get_length()), np.float32) for shape in shapes]
    assert layout == "uniform" or len({part.shape[1] for part in cache}) > 1
    expected, new, found = greedy(model, text), text.numpy(), []
    for step in range(NEW):
        length = text.shape[1] + step
        positions = np.arange(length)[None, -new.shape[1] :].repeat(len(text), 0)
        scores, *cache = compiled([new, np.ones((len(text), length), np.int64), positions, *cache]).values()
        new = scores[:, -1:].argmax(-1)
        found.append(new)
    assert names[:3] == ["input_ids", "attention_mask", "position_ids"]
    assert np.concatenate(found, 1).tolist() == expected


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama without neurons", "llama as mistral", "mistral", "qwen2 without neurons"])
def test_ctranslate2_writes_the_text_that_transformers_writes(case, tokenizer, tmp_path):
    converters = pytest.importorskip("ctranslate2.converters")
    family, *_ = case.split()
    # Of these classes, its converter asks Mistral's config alone for the size of a head.
    model = cria(tiny_model(family), "uniform", **({"units": ["ffn"]} if "neurons" in case else {}))
    if case == "llama as mistral":
        model = settle_class(as_mistral(model))
    folder = save(tmp_path / "cria", model, tokenizer)
    converters.TransformersConverter(str(folder)).convert(str(tmp_path / "ct2"))
    generator = pytest.importorskip("ctranslate2").Generator(str(tmp_path / "ct2"), compute_type="float32", intra_threads=1)
    words = tokenizer.convert_ids_to_tokens(PROMPT)
    (answer,) = generator.generate_batch([words], max_length=NEW, beam_size=1, include_prompt_in_result=False, end_token=[])
    assert answer.sequences_ids == greedy(model, torch.tensor([PROMPT]))
