"""The real thing: SmolLM2-135M-Instruct from PyPI, pruned by the demo and by a per-layer run (make test-slow)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

LOAD = """
import sys, json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, remote = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=remote == "yes").eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=remote == "yes")
assert "hf_spectral_prune" not in sys.modules
inputs = tokenizer("The capital of France is", return_tensors="pt")
out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
print(json.dumps({"class": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters()),
                  "new": tokenizer.decode(out[0, inputs["input_ids"].shape[1]:])}))
"""


def load_in_fresh_process(folder: Path, scratch: Path, remote: str) -> dict:
    environment = {**os.environ, "HF_MODULES_CACHE": str(scratch / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD, str(folder), remote]
    done = subprocess.run(command, capture_output=True, text=True, cwd=scratch, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_demo_leaves_a_stock_llama_that_loads_without_this_package(tmp_path):
    command = [sys.executable, "-m", "hf_spectral_prune.cli.main", "demo", "--output_dir", str(tmp_path / "cria-smollm2")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for row in ("Parameters", "Weights on disk", "Held-out perplexity", "Prefill", "Decode"):
        assert row in done.stdout
    report = json.loads((tmp_path / "cria-smollm2" / "pruning_report.json").read_text())
    before, after = report["parameters_before"], report["parameters_after"]
    embeddings = 49_152 * 576
    # One step of 8 neurons in 30 layers is 0.4 % of the parameters outside the embeddings.
    assert 0.196 <= (before - after) / (before - embeddings) <= 0.2
    # Three key/value groups a layer: measured, one is costlier than as many parameters of the FFN (perplexity 22.5, not 16.3).
    assert all(report["sizes"][f"layers.{layer}.heads"] == [3, 3] for layer in range(30))
    assert report["self_check"]["plain"]["max_abs_diff"] <= 1e-4
    # Random removal of the same share multiplies the perplexity many times over; this one stays within a quarter.
    assert report["metrics_after"]["after_perplexity"] < 1.25 * report["metrics_before"]["before_perplexity"]
    loaded = load_in_fresh_process(tmp_path / "cria-smollm2", tmp_path, "no")
    assert loaded["class"] == "LlamaForCausalLM"
    assert loaded["parameters"] == after
    assert loaded["new"].strip()


def test_per_layer_run_by_recipe_loads_as_remote_code(tmp_path):
    from hf_spectral_prune.cli.demo_run import smollm2_folder
    from hf_spectral_prune.cli.main import main

    torch.set_num_threads(2)
    folder, name = smollm2_folder()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model_name_or_path: {folder}\ngguf_file: {name}\ncalibration: python_docs\nnum_calibration_samples: 8\n"
        "max_seq_length: 256\nlayout: per_layer\nallocation: scores\ncriterion_args: {signals: loss}\n"
        "num_eval_samples: 4\ncompensation: least_squares\ntarget_reduction: 0.1\n"
    )
    assert main(["prune", str(recipe), "--output_dir", str(tmp_path / "out"), "--disable_tqdm"]) == 0
    report = json.loads((tmp_path / "out" / "pruning_report.json").read_text())
    assert set(report["self_check"]) == {"remote_code", "with_package"}
    loaded = load_in_fresh_process(tmp_path / "out", tmp_path, "yes")
    assert loaded["class"] == "CriaLlamaForCausalLM"
    assert loaded["parameters"] == report["parameters_after"]
