"""Text models inside models that see images: cut in place on text, and the whole is saved, loaded by its class and still sees."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from conftest import SEEING, image_text_batch, logits, random_batch, refused, tiny_seeing
from crias import random_plan
from products import only
from transformers import AutoModelForImageTextToText

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.arguments import ModelArguments
from hf_spectral_prune.cli.main import main
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.loading import load_model
from hf_spectral_prune.surgery import apply_plan, masked, settle_class

BATCHES = [random_batch(4, 32, seed, padding="right") for seed in range(2)]


def pruner(model, **fields) -> SpectralPruner:
    options = {"target_reduction": 0.3, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4, "disable_tqdm": True}
    return SpectralPruner(model, SpectralPruningArguments(**options | fields), BATCHES, BATCHES[:1])


@pytest.mark.proves("masked", "parameters", of=SEEING)
@pytest.mark.parametrize("name", only(["llava"], SEEING))
def test_removed_model_equals_masked_model_on_texts_and_on_images(name, tmp_path):
    model = tiny_seeing(name)
    plan = random_plan(model)
    cut = settle_class(apply_plan(copy.deepcopy(model), plan))
    assert type(cut) is type(model)
    assert num_parameters(cut) == plan.parameters_after < plan.parameters_before
    seeing = image_text_batch(model)
    unseen = seeing | {"pixel_values": 2 * seeing["pixel_values"]}
    assert (logits(model, seeing) - logits(model, unseen)).abs().max() > 1e-3, "the image must matter"
    for batch in (seeing, random_batch(), random_batch(padding="right"), random_batch(padding="left")):
        with masked(model, {key: plan.kept_index(key) for key in plan.kept}):
            expected = logits(model, batch)
        real = batch["attention_mask"].bool()
        assert (logits(cut, batch)[real] - expected[real]).abs().max() <= 1e-5
        assert (expected - logits(model, batch))[real].abs().max() > 1e-2, "the mask must change something"
    cut.save_pretrained(tmp_path)
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert type(reloaded) is type(model)
    assert torch.equal(logits(reloaded, seeing), logits(cut, seeing))


@pytest.mark.proves("generate", "reload", "again", of=SEEING)
@pytest.mark.slow
@pytest.mark.parametrize("name", SEEING)
def test_run_is_saved_reloaded_generates_and_is_pruned_again(name, tmp_path):
    first = pruner(tiny_seeing(name), output_dir=str(tmp_path / "out"), num_rounds=2, recalibrate_every=1)
    output = first.prune()
    first.save_model()  # reloads in a fresh process
    assert num_parameters(output.model) == output.plan.parameters_after < output.plan.parameters_before
    assert output.report.metrics_after["after_loss"] > 0
    report = json.loads((tmp_path / "out" / "pruning_report.json").read_text())
    assert report["self_check"]["plain"]["class"] == type(output.model).__name__
    assert report["self_check"]["plain"]["max_abs_diff"] == 0
    for cache in (None, "static"):
        options = {} if cache is None else {"cache_implementation": cache}
        inputs = random_batch(1, 6)
        generated = output.model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False, **options)
        ids = inputs["input_ids"]
        for _ in range(5):
            ids = torch.cat([ids, logits(output.model, {"input_ids": ids})[:, -1:].argmax(-1)], dim=1)
        assert torch.equal(generated, ids)
    again = pruner(load_model(ModelArguments(model_name_or_path=str(tmp_path / "out")))).prune()
    assert type(again.model) is type(output.model)
    assert num_parameters(again.model) == again.plan.parameters_after < output.plan.parameters_after


@pytest.mark.parametrize("name", only(["llava"], ["llava", "gemma3"]))
def test_command_line_cuts_the_text_model_of_a_folder_on_text(name, tmp_path, tokenizer, capsys):
    model = tiny_seeing(name)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    (tmp_path / "text.txt").write_text(" ".join(f"w{3 + index % 90}" for index in range(2_000)))
    numbers = {"round_to": 4, "min_ffn_units": 4, "target_reduction": 0.2, "max_seq_length": 32, "num_calibration_samples": 8}
    flags = [word for name, value in numbers.items() for word in (f"--{name}", str(value))]
    words = ["--model_name_or_path", "model", "--calibration_file", "text.txt", "--output_dir", "out"]
    places = [str(tmp_path / word) if at % 2 else word for at, word in enumerate(words)]
    assert main(["prune", *places, *flags, "--disable_tqdm"]) == 0
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    assert type(reloaded) is type(model) and num_parameters(reloaded) < num_parameters(model)
    assert logits(reloaded, image_text_batch(model)).isfinite().all()
    assert (tmp_path / "out" / "preprocessor_config.json").is_file()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card and "AutoProcessor.from_pretrained" in card


@pytest.mark.proves("bfloat16", of=SEEING)
@pytest.mark.slow
@pytest.mark.parametrize("name", SEEING)
def test_cut_model_works_in_bfloat16(name):
    model = tiny_seeing(name).to(torch.bfloat16)
    plan = random_plan(model)
    batch = {key: value.bfloat16() if value.is_floating_point() else value for key, value in image_text_batch(model).items()}
    with masked(model, {key: plan.kept_index(key) for key in plan.kept}):
        expected = logits(model, batch)
    cut = settle_class(apply_plan(model, plan))
    assert cut.dtype == torch.bfloat16
    assert (logits(cut, batch) - expected).abs().max() <= 0.02 * expected.abs().max()


def test_layers_of_their_own_width_are_refused():
    refused(lambda: pruner(tiny_seeing("llava"), layout="per_layer"), "no per-layer class", "uniform")
