"""Saved folders of models that read images load in a fresh process, with the package and without it."""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification
from vision import VISION, image_batch, prune, tiny_vision

# All folders in one process: starting one costs far more than loading a tiny model.
FRESH = """
import copy, json, sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification
torch.set_num_threads(1)
place, mode, families = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if mode == "package":
    import hf_spectral_prune
names = {}
for family in families:
    folder = f"{place}/{family}"
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=mode != "package").eval()
    if mode == "resaved":  # as shipped code saves itself
        model.save_pretrained(f"{folder}-again")
        model = AutoModelForImageClassification.from_pretrained(f"{folder}-again", trust_remote_code=True).eval()
    # A mapped file is not aligned as fresh memory is, and a product may then take another kernel.
    model = copy.deepcopy(model)
    with torch.inference_mode():
        output = model(**load_file(f"{place}/{family}.probe")).logits
    save_file({"logits": output.contiguous()}, f"{place}/{family}.result")
    names[family] = type(model).__name__
assert ("hf_spectral_prune" in sys.modules) == (mode == "package")
assert "torch_pruning" not in sys.modules
print(json.dumps(names))
"""


@pytest.mark.proves("reload", of=VISION)
@pytest.mark.parametrize("mode", ["package", "resaved"])
def test_fresh_process_gives_the_same_outputs_bit_for_bit(mode, forks, tmp_path):
    """The second time without the package, by the code beside the weights, loaded and saved and loaded again."""
    expected = {}
    for family in VISION:
        model = prune(tiny_vision(family), layout="per_layer", allocation="scores").model.eval()
        assert type(model).__name__.startswith("Cria")
        model.save_pretrained(tmp_path / family)
        save_file({"pixel_values": image_batch(3)["pixel_values"]}, tmp_path / f"{family}.probe")
        with torch.inference_mode():
            expected[family] = (type(model).__name__, model(pixel_values=image_batch(3)["pixel_values"]).logits)
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", FRESH, str(tmp_path), mode, json.dumps(list(VISION))]
    done = forks.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    names = json.loads(done.stdout.strip().splitlines()[-1])
    for family, (name, logits) in expected.items():
        assert names[family] == name
        assert torch.equal(load_file(tmp_path / f"{family}.result")["logits"], logits), family


@pytest.mark.parametrize("family", VISION)
def test_base_model_and_tracing_work_on_a_reloaded_folder(family, tmp_path):
    model = prune(tiny_vision(family), layout="per_layer", allocation="scores").model
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    second = prune(reloaded, layout="per_layer", allocation="scores")
    assert second.output.plan.parameters_after < model.num_parameters()
    base = AutoModel.from_pretrained(tmp_path).eval()
    pixels = image_batch(2)["pixel_values"]
    assert torch.allclose(base(pixels)[0], model.eval().base_model(pixels)[0], atol=1e-4)


WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch_pruning":
            raise ModuleNotFoundError("No module named 'torch_pruning'", name="torch_pruning")
sys.meta_path.insert(0, Blocked())
sys.path[:0] = sys.argv[1:]
from conftest import random_batch, tiny_model
from vision import prune, tiny_vision
prune(tiny_model(), [random_batch(4, 32)], units=["ffn", "heads"])
try:
    prune(tiny_vision("resnet-basic"))
except ValueError as error:
    print(error)
"""


def test_only_traced_networks_need_torch_pruning(forks):
    command = [sys.executable, "-c", WITHOUT, os.path.dirname(os.path.dirname(__file__))]
    done = forks.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "`pip install -e '.[vision]'`" in done.stdout.strip().splitlines()[-1]
