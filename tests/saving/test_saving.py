"""What a run saves and where: folders that are spared, what is left where something fails, and what is told before any cut."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import logits, random_batch, refused, tiny_model
from products import only
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM, PreTrainedModel
from vision import image_batch, tiny_vision

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments, rounds
from hf_spectral_prune.data.texts import CalibrationData
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.cria import auto_class_of
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.saving import checkpoint
from hf_spectral_prune.saving import folder as saving
from hf_spectral_prune.saving.place import check_output_dir
from hf_spectral_prune.saving.reload import probe_inputs
from hf_spectral_prune.surgery import as_mistral

SMALL = {"target_reduction": 0.3, "target_scope": "prunable", "round_to": 4, "min_ffn_units": 4, "criterion": "magnitude"}
SMALL |= {"compensation": "none"}
STEPS = {"max_steps": 1, "use_cpu": True}


class MyLlama(LlamaForCausalLM):
    """A user's own class."""


def make_pruner(model: PreTrainedModel, batches=None, *, teacher=None, train_dataset=None, eval_dataset=None, **fields):
    args = SpectralPruningArguments(**{"disable_tqdm": True, "self_check": False} | SMALL | fields)
    data = {"train_dataset": train_dataset, "teacher": teacher, "eval_dataset": eval_dataset}
    return SpectralPruner(model, args, batches or [random_batch(4, 16)], **data)


def as_checkpoint(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("weeks of work")
    return folder


# ---- folders that are spared


def test_checkpoints_of_a_trainer_are_not_replaced(tmp_path):
    foreign = as_checkpoint(tmp_path / "run" / "checkpoint-500", "model.safetensors", "optimizer.pt")
    refused(lambda: make_pruner(tiny_model(), output_dir=str(tmp_path / "run")).prune(), "not empty", "`checkpoint-500`")
    refused(lambda: check_output_dir(tmp_path / "run", overwrite=False), "not empty")
    assert (foreign / "optimizer.pt").read_text() == "weeks of work"
    assert checkpoint.latest(tmp_path / "run") is None
    as_checkpoint(tmp_path / "run" / "checkpoint-2", "pruning_plan.json", "final_sizes.json")
    assert checkpoint.latest(tmp_path / "run").name == "checkpoint-2"


def test_checkpoints_of_a_run_go_when_its_result_comes(tmp_path):
    out = tmp_path / "out"
    pruner = make_pruner(tiny_model(), output_dir=str(out), num_rounds=2, save_strategy="steps")
    pruner.prune()
    as_checkpoint(out / "checkpoint-2.tmp", "pruning_plan.json")  # of a run that was killed
    as_checkpoint(out / "runs", "events")
    assert {path.name for path in out.iterdir()} == {"checkpoint-1", "checkpoint-2", "checkpoint-2.tmp", "runs"}
    pruner.save_model()
    assert not list(out.glob("checkpoint-*"))
    assert (out / "runs" / "events").is_file() and (out / "model.safetensors").is_file()


def test_folder_with_the_source_model_inside_is_refused_even_to_overwrite(tmp_path):
    source = tmp_path / "run" / "checkpoint-500"
    tiny_model().save_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source)
    options = {"output_dir": str(tmp_path / "run"), "overwrite_output_dir": True}
    refused(lambda: make_pruner(model, **options).prune(), "holds the model to prune", str(source))
    pruner = make_pruner(model, output_dir=str(tmp_path / "other"), overwrite_output_dir=True)
    refused(lambda: pruner.save_model(str(tmp_path / "run")), "holds the model to prune")
    assert (source / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("patch", "place", "message"),
    [
        ({"path.ismount": lambda _: True}, "out", "is a mount point"),
        ({"access": lambda *_: False}, "out", "is not writable"),
        ({"access": lambda *_: False}, "new/deep/out", "is not writable"),
        ({}, "file/out", "`{folder}/file` is a file"),
    ],
)
def test_places_that_cannot_be_written_are_told_before_any_work(patch, place, message, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "out").mkdir()
    for name, value in patch.items():
        monkeypatch.setattr(f"os.{name}", value)
    for overwrite in (False, True):
        words = message.format(folder=tmp_path)
        refused(lambda: check_output_dir(tmp_path / place, overwrite), "`output_dir`", words)  # noqa: B023
    refused(lambda: make_pruner(tiny_model(), output_dir=str(tmp_path / place)).prune(), words)


def test_a_link_stays_and_the_folder_behind_it_is_replaced(tmp_path):
    as_checkpoint(tmp_path / "real", "old.txt")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    pruner = make_pruner(tiny_model(), output_dir=str(tmp_path / "link"), overwrite_output_dir=True)
    pruner.prune()
    pruner.save_model()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "model.safetensors").is_file() and not (tmp_path / "real" / "old.txt").exists()


def test_full_folder_is_told_before_pruning_and_taken_if_it_may_be_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    refused(lambda: make_pruner(tiny_model(), output_dir=str(tmp_path)).prune(), "not empty", "`overwrite_output_dir`")
    make_pruner(tiny_model(), output_dir=str(tmp_path), overwrite_output_dir=True).prune()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# ---- what is left where something fails


@pytest.mark.parametrize("compensation", only(["sequential"], ["none", "sequential", "bias"]))
def test_run_whose_recovery_fails_goes_on_from_its_last_round(compensation, batches, tmp_path, monkeypatch):
    rows = [{"input_ids": ids} for batch in batches for ids in batch["input_ids"]]
    fields = {"num_rounds": 3, "save_strategy": "steps", "save_steps": 2, "layout": "per_layer", "allocation": "scores"}
    fields |= {"compensation": compensation, "criterion": "energy", "recovery": "full", "training_args": STEPS}
    more = {"train_dataset": rows, "eval_dataset": batches, "teacher": None}
    whole = make_pruner(tiny_model(), batches, output_dir=str(tmp_path / "whole"), **fields, **more).prune()

    def broken(*_args, **_kwargs):
        raise RuntimeError("out of memory")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("hf_spectral_prune.pruner.recover", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            make_pruner(tiny_model(), batches, output_dir=str(out), **fields, **more).prune()
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    pruner = make_pruner(tiny_model(), batches, output_dir=str(out), **fields, **more)
    with monkeypatch.context() as patch:
        patch.setattr(rounds, "cut", broken)  # no round is left
        resumed = pruner.prune(resume_from_checkpoint=True)
    assert resumed.plan.kept == whole.plan.kept
    assert torch.equal(logits(resumed.model, random_batch()), logits(whole.model, random_batch()))
    assert resumed.metrics == whole.metrics
    assert resumed.report["recovery"]["kept"] == whole.report["recovery"]["kept"]
    pruner.save_model()
    assert type(resumed.model).__name__ == "CriaLlamaForCausalLM"
    assert torch.equal(logits(type(resumed.model).from_pretrained(out), random_batch()), logits(whole.model, random_batch()))


def test_model_that_fails_its_self_check_is_kept_beside_its_place(tmp_path, monkeypatch):
    def broken(folder, model):
        raise ValueError("Cannot handle\nthis.")

    monkeypatch.setattr(saving, "check_in_fresh_process", broken)
    umask = os.umask(0)
    os.umask(umask)
    out = tmp_path / "out"
    pruner = make_pruner(tiny_model(), output_dir=str(out), self_check=True)
    output = pruner.prune()
    for kept in ("out.partial", "out.partial-2"):
        with pytest.raises(RuntimeError, match=r"Self-check failed: Cannot handle this\. `") as caught:
            pruner.save_model()
        assert f"`{out}` was not written" in str(caught.value) and f"`{tmp_path / kept}`" in str(caught.value)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / kept)
        assert torch.equal(logits(loaded, random_batch()), logits(output.model, random_batch()))
        assert json.loads((tmp_path / kept / "pruning_plan.json").read_text()) == json.loads(output.plan.to_json())
        assert (tmp_path / kept).stat().st_mode & 0o777 == 0o777 & ~umask
    assert sorted(os.listdir(tmp_path)) == ["out.partial", "out.partial-2"]
    assert pruner.saved_to is None


# ---- what is told before any cut


@pytest.fixture
def uncut(monkeypatch):
    """Any cut is a failure."""

    def cut(*_args, **_kwargs):
        raise AssertionError("a cut was made")

    monkeypatch.setattr(rounds, "cut", cut)


def my_llama() -> MyLlama:
    return MyLlama(tiny_model().config)


def test_classes_that_cannot_hold_the_result_are_told(uncut):
    words = ["`MyLlama` has no per-layer class", "LlamaForCausalLM"]
    refused(lambda: make_pruner(my_llama(), layout="per_layer", allocation="scores"), *words)
    refused(lambda: make_pruner(my_llama(), stock_class="mistral"), "`MyLlama`", "Leave `stock_class` out")
    segmenting = tiny_vision("mobilenet_v2", "ForSemanticSegmentation")
    words = ["`MobileNetV2ForSemanticSegmentation` has no per-layer class", "MobileNetV2ForImageClassification"]
    refused(lambda: make_pruner(segmenting, [image_batch()], units=["channels"], min_channels=2), *words)
    both = {"stock_class": "mistral", "compensation": "bias"}
    refused(lambda: make_pruner(tiny_model(), **both), '`compensation="bias"`', '`stock_class="mistral"`', "least_squares")


def test_a_class_of_the_users_own_is_pruned_uniformly_and_checked_by_the_stock_class(new_processes, tmp_path):
    pruner = make_pruner(my_llama(), output_dir=str(tmp_path / "out"), self_check=True)
    pruner.prune()
    pruner.save_model()
    assert pruner.output.report["self_check"]["plain"]["class"] == "LlamaForCausalLM"


def test_teachers_that_cannot_teach_are_told(uncut, tmp_path):
    rows = [{"input_ids": ids} for ids in random_batch(8)["input_ids"]]
    fields = {"recovery": "distill", "training_args": STEPS, "train_dataset": rows}
    tiny_model(num_hidden_layers=2).save_pretrained(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    for teacher, *words in (
        ("/no/such/folder", "`teacher` `/no/such/folder`", "folder of the dense model"),
        (tmp_path / "empty", f"`teacher` `{tmp_path / 'empty'}`"),
        (tmp_path / "other", "The teacher's `num_hidden_layers` is 2"),
        (tiny_model(num_hidden_layers=2), "The teacher's `num_hidden_layers` is 2"),
        (torch.nn.Linear(2, 2), "`Linear`"),
    ):
        refused(lambda: make_pruner(tiny_model(), teacher=teacher, **fields), *words)  # noqa: B023
    tiny_model().save_pretrained(tmp_path / "teacher")
    make_pruner(tiny_model(), teacher=str(tmp_path / "teacher"), **fields)


def test_options_of_generation_that_transformers_would_not_save_are_kept(tmp_path):
    model = tiny_model()
    model.generation_config = GenerationConfig(do_sample=False, temperature=0.6, top_p=0.9, bos_token_id=1)
    own = model.generation_config
    pruner = make_pruner(model, output_dir=str(tmp_path / "out"))
    pruner.prune()
    pruner.save_model()
    assert pruner.model.generation_config is own
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
    assert (loaded.do_sample, loaded.temperature, loaded.top_p, loaded.bos_token_id) == (False, 0.6, 0.9, 1)


def test_options_of_generation_that_do_not_load_are_told(uncut, tmp_path):
    model = tiny_model()
    model.generation_config.num_return_sequences = 3
    words = ["`generation_config` cannot be saved", "num_return_sequences"]
    refused(lambda: make_pruner(model, output_dir=str(tmp_path / "out")).prune(), *words)
    make_pruner(model)  # nothing will be saved


def test_weights_that_are_nowhere_are_told(uncut):
    with torch.device("meta"):
        empty = type(tiny_vision("resnet-basic"))(tiny_vision("resnet-basic").config)
    refused(lambda: unit_groups(empty), "`resnet.embedder.", "not in memory")


# ---- the self-check, and classes


def test_one_row_is_compared_where_sequences_have_no_known_end():
    model = tiny_model(task="ForSequenceClassification", num_labels=2)
    assert probe_inputs(model)["input_ids"].shape == (2, 64)
    model.config.pad_token_id = None
    inputs = probe_inputs(model)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (1, 64)
    assert logits(model, inputs).shape == (1, 2)
    other = tiny_model()
    other.config.pad_token_id = None
    assert probe_inputs(other)["input_ids"].shape == (2, 64)


def test_masked_image_modelling_passes_its_self_check(tmp_path):
    fields = {"output_dir": str(tmp_path / "out"), "layout": "per_layer", "allocation": "scores", "self_check": True}
    model = tiny_vision("vit", "ForMaskedImageModeling", encoder_stride=4)
    pruner = make_pruner(model, [{"pixel_values": image_batch()["pixel_values"]}], **fields)
    pruner.prune()
    pruner.save_model()
    checked = pruner.output.report["self_check"]
    assert {way: check["class"] for way, check in checked.items()} == dict.fromkeys(checked, "CriaViTForMaskedImageModeling")
    assert {check["max_abs_diff"] for check in checked.values()} == {0.0}


def test_auto_class_of_a_derived_class_is_that_of_the_one_it_is_derived_from():
    assert auto_class_of(MyLlama) == "AutoModelForCausalLM"
    assert auto_class_of(torch.nn.Linear) == "AutoModel"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_mistral_takes_the_weights_without_making_any(family, dtype, monkeypatch):
    made = []

    class Watched(transformers.MistralForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            made.extend(self.parameters())

    monkeypatch.setattr(transformers, "MistralForCausalLM", Watched)
    model = tiny_model(family).to(dtype)
    # As it is loaded: its frequencies stay in float32.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    converted = as_mistral(model)
    assert made and all(parameter.is_meta for parameter in made)
    own, theirs = model.state_dict(), converted.state_dict()
    assert own.keys() == theirs.keys()
    assert all(value.data_ptr() == theirs[name].data_ptr() for name, value in own.items())
    assert converted.model.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(logits(converted, random_batch()), logits(model, random_batch()))


@pytest.mark.parametrize("value", [np.int64(3), Path("a"), torch.ones(2), {np.int64(0): "a"}])
def test_a_config_that_cannot_be_written_is_told_before_the_work(value, tmp_path, batches):
    model = tiny_model()
    model.config.extra = value
    pruner = SpectralPruner(model, SpectralPruningArguments(output_dir=str(tmp_path / "out"), disable_tqdm=True), batches)
    refused(pruner.prune, "`extra`", type(value).__name__)
    assert num_parameters(model) == num_parameters(tiny_model())


def test_options_of_generation_that_cannot_be_written_are_told_before_the_work(tmp_path, batches):
    model = tiny_model()
    model.generation_config.pad_token_id = np.int64(0)
    pruner = SpectralPruner(model, SpectralPruningArguments(output_dir=str(tmp_path / "out"), disable_tqdm=True), batches)
    refused(pruner.prune, "`generation_config` cannot be saved")


def test_a_protocol_that_json_cannot_hold_costs_no_model(tmp_path, batches):
    data = CalibrationData(tuple(batches), {"source": Path("a"), "rows": np.int64(3)})
    args = SpectralPruningArguments(output_dir=str(tmp_path / "out"), disable_tqdm=True, self_check=False)
    pruner = SpectralPruner(tiny_model(), args, data)
    pruner.prune()
    pruner.save_model()
    assert json.loads((tmp_path / "out" / "pruning_report.json").read_text())["calibration"]["source"] == "a"


def test_a_tokenizer_that_cannot_be_saved_is_told_before_the_work(batches, tokenizer):
    bare = tokenizer.backend_tokenizer
    refused(
        lambda: SpectralPruner(tiny_model(), calibration_dataset=batches, processing_class=bare), "`Tokenizer`", "cannot be saved"
    )
