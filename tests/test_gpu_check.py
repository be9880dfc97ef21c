"""The accelerator's check runs whole on the CPU, on tiny models."""

import importlib
import json
from pathlib import Path


def test_every_part_of_the_check_passes_on_the_cpu(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    importlib.import_module("gpu_check").main(["--device", "cpu", "--shape", "tiny"])
    printed = capsys.readouterr().out
    result = json.loads(printed[printed.index("\n{\n") :])
    assert [part for part in ("agreement", "prune", "sequential", "train") if "error" in result[part]] == []
    assert result["agreement"]["same_of_the_kept"] == 1
    assert result["prune"]["parameters"][1] < result["prune"]["parameters"][0]
    assert result["train"]["masked_against_removed"] < 1e-5
    assert result["train"]["static_cache_tokens_equal"]
    assert result["train"]["recovery"]["kept"] in ("recovered", "unrecovered")
