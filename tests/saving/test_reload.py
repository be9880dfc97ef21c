"""A saved folder loads in a fresh process, bit for bit, with and without this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import FFN_ONLY, logits, random_batch, tiny_model
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.saving import reload

PLAIN = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
folder, probe, out, mode = sys.argv[1:]
if mode == "package":
    import hf_spectral_prune
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=mode != "package").eval()
if mode == "resaved":  # as shipped code saves itself
    model.save_pretrained(f"{folder}-again")
    model = AutoModelForCausalLM.from_pretrained(f"{folder}-again", dtype="auto", trust_remote_code=True).eval()
assert ("hf_spectral_prune" in sys.modules) == (mode == "package")
batch = load_file(probe)
with torch.inference_mode():
    logits = model(**batch).logits
generated = model.generate(**batch, max_new_tokens=4, do_sample=False)
save_file({"logits": logits.contiguous(), "generated": generated}, out)
print(type(model).__name__)
"""


def pruned(tmp_path: Path, family: str, batches, tokenizer=None, **fields) -> SpectralPruner:
    args = SpectralPruningArguments(
        output_dir=str(tmp_path / "out"),
        target_reduction=0.3,
        target_scope="prunable",
        round_to=4,
        min_ffn_units=4,
        disable_tqdm=True,
        units=["ffn"] if family in FFN_ONLY else ["ffn", "heads"],
        **fields,
    )
    pruner = SpectralPruner(tiny_model(family), args, batches, processing_class=tokenizer)
    pruner.prune()
    pruner.save_model()
    return pruner


def run_fresh(folder: Path, scratch: Path, mode: str, run=subprocess.run) -> tuple[str, dict[str, torch.Tensor]]:
    save_file(random_batch(), scratch / "probe.safetensors")
    # An isolated place without this package: the working folder is elsewhere and the checkout is not on the path.
    environment = {**os.environ, "HF_MODULES_CACHE": str(scratch / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", PLAIN, str(folder), str(scratch / "probe.safetensors"), str(scratch / "result"), mode]
    done = run(command, capture_output=True, text=True, cwd=scratch, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1], load_file(scratch / "result")


@pytest.mark.proves("reload")
@pytest.mark.parametrize(
    ("family", "layout", "mode"),
    [
        ("llama", "uniform", "plain"),
        ("llama-tied", "per_layer", "package"),
        ("llama", "per_layer", "remote"),
        ("llama", "per_layer", "resaved"),
        pytest.param("mistral", "per_layer", "remote", marks=pytest.mark.slow),
        ("qwen2", "uniform", "plain"),
        ("qwen2", "per_layer", "package"),
        ("qwen3", "per_layer", "remote"),
        pytest.param("granite", "per_layer", "remote", marks=pytest.mark.slow),
        ("smollm3", "uniform", "plain"),
        pytest.param("gemma", "uniform", "plain", marks=pytest.mark.slow),
        ("gemma2", "per_layer", "package"),
        ("gemma3", "uniform", "plain"),
        ("gemma3", "per_layer", "remote"),
        ("phi3", "uniform", "plain"),
        ("olmo2", "per_layer", "remote"),
        pytest.param("olmo3", "uniform", "plain", marks=pytest.mark.slow),
        ("qwen3_5", "uniform", "plain"),
        ("qwen3_5", "per_layer", "remote"),
        pytest.param("phi3", "per_layer", "remote", marks=pytest.mark.slow),
        pytest.param("starcoder2", "uniform", "plain", marks=pytest.mark.slow),
        pytest.param("nemotron", "per_layer", "package", marks=pytest.mark.slow),
        ("cohere", "per_layer", "remote"),
        pytest.param("cohere2", "uniform", "plain", marks=pytest.mark.slow),
        pytest.param("glm", "per_layer", "package", marks=pytest.mark.slow),
        ("glm4", "per_layer", "remote"),
        pytest.param("phi", "uniform", "plain", marks=pytest.mark.slow),
        ("phi", "per_layer", "remote"),
        pytest.param("stablelm", "per_layer", "remote", marks=pytest.mark.slow),
        ("opt", "per_layer", "remote"),
        pytest.param("gpt_neox", "per_layer", "remote", marks=pytest.mark.slow),
        pytest.param("falcon", "uniform", "plain", marks=pytest.mark.slow),
        ("falcon", "per_layer", "remote"),
        pytest.param("bloom", "per_layer", "remote", marks=pytest.mark.slow),
        ("gpt2", "uniform", "plain"),
        ("gpt2", "per_layer", "remote"),
    ],
)
def test_fresh_process_gives_the_same_logits_bit_for_bit(family, layout, mode, batches, forks, tmp_path):
    """One folder a layout in an interpreter that starts anew; the others in one that has imported torch already."""
    pruner = pruned(tmp_path, family, batches, layout=layout, self_check=False)
    run = subprocess.run if (family, mode) in (("llama", "plain"), ("llama", "remote")) else forks.run
    name, result = run_fresh(tmp_path / "out", tmp_path, mode, run)
    assert name == type(pruner.model).__name__
    assert torch.equal(result["logits"], logits(pruner.model, random_batch()))
    assert torch.equal(result["generated"], pruner.model.generate(**random_batch(), max_new_tokens=4, do_sample=False))


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_trainer_saves_a_folder_that_stands_alone(family, batches, forks, tmp_path):
    pruner = pruned(tmp_path, family, batches, layout="per_layer", self_check=False)
    training = TrainingArguments(output_dir=str(tmp_path / "training"), report_to="none", use_cpu=True)
    Trainer(model=pruner.model, args=training).save_model(str(tmp_path / "own"))
    name, result = run_fresh(tmp_path / "own", tmp_path, "remote", forks.run)
    assert name == type(pruner.model).__name__
    assert torch.equal(result["logits"], logits(pruner.model, random_batch()))


def test_bias_repaired_mistral_needs_and_gets_a_cria_class(batches, tmp_path):
    pruner = pruned(tmp_path, "mistral", batches, layout="per_layer", compensation="bias")
    assert pruner.model.config.consumer_bias == ["mlp.down_proj", "self_attn.o_proj"]
    report = json.loads((tmp_path / "out" / "pruning_report.json").read_text())
    assert set(report["self_check"]) == {"remote_code", "with_package"}
    assert report["self_check"]["remote_code"]["max_abs_diff"] == 0.0


def test_output_folder_holds_everything(batches, tokenizer, tmp_path):
    pruned(tmp_path, "llama", batches, tokenizer)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    wanted = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "pruning_plan.json",
        "pruning_report.json",
        "pruner_state.json",
    }
    assert wanted <= names
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing half-written is left beside the folder"


def test_pruned_folder_can_be_pruned_again(batches, tmp_path):
    from transformers import AutoModelForCausalLM

    first = pruned(tmp_path, "llama", batches, layout="per_layer", self_check=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    args = SpectralPruningArguments(
        output_dir=str(tmp_path / "second"),
        target_reduction=0.3,
        target_scope="prunable",
        round_to=4,
        min_ffn_units=4,
        layout="per_layer",
        disable_tqdm=True,
    )
    second = SpectralPruner(model, args, batches)
    output = second.prune()
    second.save_model()
    whole = first.output.plan.then(output.plan)
    assert whole.parameters_after == output.plan.parameters_after < first.output.plan.parameters_after


def test_self_check_tells_a_folder_that_differs(batches, tmp_path):
    from hf_spectral_prune.saving.reload import check_in_fresh_process

    pruner = pruned(tmp_path, "llama", batches, self_check=False)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= 1.01
    save_file(weights, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=r"model\.layers\.1\.mlp\.down_proj\.weight"):
        check_in_fresh_process(tmp_path / "out", pruner.model)


def test_failed_self_check_leaves_no_result_but_the_model_beside_it(batches, tmp_path, monkeypatch):
    from hf_spectral_prune.saving import folder as saving

    def broken(folder, model):
        raise RuntimeError("differs")

    monkeypatch.setattr(saving, "check_in_fresh_process", broken)
    with pytest.raises(RuntimeError, match="differs"):
        pruned(tmp_path, "llama", batches)
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]


def test_folder_that_is_not_empty_is_refused_and_kept(batches, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="overwrite_output_dir"):
        pruned(tmp_path, "llama", batches)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"
    pruned(tmp_path, "llama", batches, overwrite_output_dir=True)
    assert not (tmp_path / "out" / "thesis.txt").exists()


def test_the_check_finds_the_package_where_this_process_has_it(tmp_path, batches, monkeypatch):
    """A notebook may have put it into `sys.path` itself, which no other process knows of."""
    seen: list[dict[str, str]] = []

    def run(command, environment):
        seen.append(environment)
        return subprocess.CompletedProcess(command, 1, "", "stopped here")

    monkeypatch.setattr(reload, "_run_beside", run)
    monkeypatch.setattr(sys, "path", ["/a/notebook/added/this", *sys.path])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(RuntimeError, match="stopped here"):
        reload.check_in_fresh_process(tmp_path, tiny_model())
    assert seen[0]["PYTHONPATH"].split(os.pathsep)[0] == "/a/notebook/added/this"


def test_code_of_other_models_in_the_cache_is_not_taken_for_the_folders(tmp_path, batches, monkeypatch):
    # `evaluate` puts the user's cache of remote code into `sys.path`; it holds the code of models loaded before.
    (tmp_path / "modules" / "transformers_modules").mkdir(parents=True)
    (tmp_path / "modules" / "transformers_modules" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    pruned(tmp_path, "llama", batches, layout="per_layer")
    assert "remote_code" in json.loads((tmp_path / "out" / "pruning_report.json").read_text())["self_check"]


def test_code_that_came_with_a_model_and_was_not_used_is_not_asked_for(tmp_path, batches):
    """As in Phi-3's config: the class is one of transformers, and `auto_map` names a file that the result does not hold."""
    model = tiny_model()
    model.config.auto_map = {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    args = SpectralPruningArguments(output_dir=str(tmp_path / "out"), target_reduction=0.2, disable_tqdm=True)
    pruner = SpectralPruner(model, args, batches)
    pruner.prune()
    pruner.save_model()
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
