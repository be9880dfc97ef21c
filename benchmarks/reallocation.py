"""Several rounds with the shares of layers allocated once, or anew in every round: perplexity of a small Llama on stories.

    python benchmarks/reallocation.py --model FOLDER --text FILE [--output results.json]

FOLDER holds a causal language model (measured with stories260K), FILE a text like the one that it was trained on, of which the
first half is calibrated on and the second half measured on. Finished cells are kept in the output file.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data.sources import load_texts
from hf_spectral_prune.data.texts import build_calibration
from hf_spectral_prune.utils.environment import library_versions, machine
from hf_spectral_prune.utils.files import write_text

LENGTH, ROWS, TEST_ROWS, ROUNDS = 256, 32, 64, 4
# Allocation with the criterion that chooses inside the layers.
METHODS = (("scores", "fisher"), ("loss_curves", "spectral"), ("fisher", "spectral"))
COMPENSATIONS = ("none", "least_squares")


def run_cell(folder: Path, calibration: Any, test: Any, cell: dict[str, Any]) -> dict[str, float]:
    """Perplexity before and after, and seconds."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    args = SpectralPruningArguments(
        layout="per_layer", num_rounds=ROUNDS, round_to=4, min_ffn_units=4, disable_tqdm=True, logging_strategy="no", **cell
    )
    report = SpectralPruner(model, args, calibration, test).prune().report
    seconds = sum(report.timings.values())
    return {
        "before": report.metrics_before["before_perplexity"],
        "after": report.metrics_after["after_perplexity"],
        "parameters": report.parameters_after,
        "seconds": round(seconds, 1),
    }


def table(cells: list[dict[str, Any]]) -> str:
    """Perplexities by draw, both ways beside each other."""
    lines = ["| removed | allocation | compensation | allocated once | anew in every round |", "|---|---|---|---|---|"]
    rows: dict[tuple[Any, ...], dict[bool, list[float]]] = {}
    for cell in cells:
        key = (cell["target_reduction"], cell["allocation"], cell["compensation"])
        rows.setdefault(key, {}).setdefault(cell["reallocate"], []).append(cell["after"])
    for (share, allocation, compensation), found in rows.items():
        words = [", ".join(f"{value:.2f}" for value in found.get(way, [])) for way in (False, True)]
        lines.append(f"| {share:.0%} | {allocation} | {compensation} | {' | '.join(words)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the cells that the output file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "reallocation.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    (text,) = load_texts(options.text)
    half = len(text) // 2
    shape = {"max_seq_length": LENGTH, "batch_size": 8}
    test = build_calibration([text[half:]], tokenizer, num_samples=TEST_ROWS, shuffle=False, name="second half", **shape)
    results = json.loads(options.output.read_text()) if options.output.is_file() else {"cells": []}
    results["protocol"] = {
        "model": options.model.name,
        "calibration": f"{ROWS} rows of {LENGTH} tokens of the first half of {options.text.name}, drawn by the seed",
        "pruning": f"FFN neurons and key/value groups, per layer, {ROUNDS} rounds, share of their parameters",
        "measured": f"perplexity on the first {TEST_ROWS} rows of the second half, float32",
    }
    results["machine"], results["versions"] = machine(), library_versions()
    names = ("target_reduction", "allocation", "criterion", "compensation", "seed", "reallocate")
    done = {tuple(cell[name] for name in names) for cell in results["cells"]}
    for seed, share, compensation, (allocation, criterion) in product(options.seeds, (0.3, 0.5), COMPENSATIONS, METHODS):
        draw = build_calibration([text[:half]], tokenizer, num_samples=ROWS, seed=seed, name="first half", **shape)
        for reallocate in (False, True):
            key = (share, allocation, criterion, compensation, seed, reallocate)
            if key in done:
                continue
            cell = dict(zip(names, key, strict=True))
            results["cells"].append(cell | run_cell(options.model, draw, test, cell))
            write_text(options.output, json.dumps(results, indent=1) + "\n")
            print(results["cells"][-1], flush=True)
    print(table(results["cells"]))


if __name__ == "__main__":
    main()
