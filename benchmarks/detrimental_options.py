"""The options of `cria detrimental` beside each other on SmolLM2-135M-Instruct: which weights, how many examples, which ones.

    python benchmarks/detrimental_options.py --copa FILE --sst2 FILE --mmlu FILE [--output results.json]

The files are those of `detrimental_smollm2.py`, and the protocol is too, with 200 held-out examples in none of the draws:
zero-shot, plain prompts; MMLU keeps questions with prompts of at most 320 characters, as BoolQ does there. One option at a time
differs from the published method's 10 balanced examples, `gate_proj` and attribution on all of them. The grid is every twelfth
layer from layer 1 with 5, 20 and 50 % of the neurons; 10 midpoints. Finished cells are kept in the output file, so that a
killed run continues.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detrimental_smollm2 import MAX_CHARACTERS, held_out_figures, without_random_neurons
from smollm2_wikitext import find_model
from transformers import PreTrainedModel

from hf_spectral_prune import DetrimentalArguments, DetrimentalNeuronPruner, Example, read_examples
from hf_spectral_prune.studies.detrimental.scoring import Questions, tokenise
from hf_spectral_prune.studies.detrimental.tasks import draw_examples
from hf_spectral_prune.utils.environment import library_versions, machine
from hf_spectral_prune.utils.files import write_text

BASE: dict[str, Any] = {"weights": "gate_proj", "examples": 10, "draw": "balanced", "attribute_on": "all"}
FEW: dict[str, dict[str, Any]] = {
    "base": {},
    "up_proj": {"weights": "up_proj"},
    "down_proj": {"weights": "down_proj"},
    "random draw": {"draw": "random"},
    "only wrong": {"attribute_on": "wrong"},
    "5 examples": {"examples": 5},
    "20 examples": {"examples": 20},
}
MANY: dict[str, dict[str, Any]] = {"50 examples": {"examples": 50}, "100 examples": {"examples": 100}}
# Attribution on long prompts takes most of the time.
OPTIONS = {"copa": FEW | MANY, "sst2": FEW, "mmlu": {"base": {}}}
DRAWS = (0, 1, 2)
GRID: dict[str, Any] = {"layers": [1, 13, 25], "shares": [0.05, 0.2, 0.5], "num_steps": 10, "max_steps": 10}
NUM_HELD_OUT = 200


def split(examples: Sequence[Example], options: dict[str, dict[str, Any]]) -> tuple[dict[tuple[str, int], Any], list[Example]]:
    """{(option, draw): adaptation examples}, and held-out examples that are in none of them."""
    draws = {
        (name, seed): draw_examples(examples, (BASE | option)["examples"], seed, (BASE | option)["draw"])[0]
        for name, option in options.items()
        for seed in DRAWS
    }
    used = {example for drawn in draws.values() for example in drawn}
    rest = [example for example in dict.fromkeys(examples) if example not in used]
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(0)).tolist()
    return draws, [rest[index] for index in order[:NUM_HELD_OUT]]


def run_cell(
    model: PreTrainedModel,
    tokenizer: Any,
    option: dict[str, Any],
    adaptation: list[Example],
    held_out: Questions,
    dense: str,
    seed: int,
) -> dict[str, Any]:
    """Neurons found with one option on one draw, and as many at random where the option is the base."""
    began = time.process_time()
    chosen = {name: (BASE | option)[name] for name in ("weights", "attribute_on")}
    args = DetrimentalArguments(**GRID, **chosen, seed=seed, self_check=False, disable_tqdm=True)
    output = DetrimentalNeuronPruner(copy.deepcopy(model), args, adaptation, None, tokenizer).prune()
    found = output.report.detrimental
    figures: dict[str, Any] = {
        "layer": found["layer"],
        "share": found["share"],
        "removed": found["removed"],
        "adaptation": [found["adaptation"][side]["accuracy"] for side in ("before", "after")],
        "largest_gap": max(entry["gap"] for entry in found["completeness"].values()),
        "detrimental": held_out_figures(output.model, held_out, dense),
    }
    if found["layer"] is not None and not option:
        figures["random"] = held_out_figures(
            without_random_neurons(model, found["layer"], found["removed"], seed), held_out, dense
        )
    return figures | {"cpu_seconds": round(time.process_time() - began, 1)}


def table(cells: dict[str, Any]) -> str:
    """A line per task and option: held-out accuracy before and after, mean and range over the draws."""
    lines = [
        "| task | option | draws | adaptation examples | held out, dense | without the neurons | as many at random | places |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task, options in OPTIONS.items():
        for name in options:
            found = [cells[key] for draw in DRAWS if (key := f"{task}, {name}, draw {draw}") in cells]
            if not found:
                continue
            adaptation = [statistics.mean(100 * cell["adaptation"][side] for cell in found) for side in (0, 1)]
            after = spread([100 * cell["detrimental"]["accuracy"] for cell in found])
            others = [100 * cell.get("random", cell["detrimental"])["accuracy"] for cell in found] if name == "base" else []
            places = "; ".join("none" if cell["layer"] is None else f"{cell['layer']}: {cell['share']:.0%}" for cell in found)
            lines.append(
                f"| {task} | {name} | {len(found)} | {adaptation[0]:.0f} -> {adaptation[1]:.0f} "
                f"| {100 * cells[f'{task} dense']['accuracy']:.1f} | {after} | {spread(others) if others else ''} | {places} |"
            )
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean and range."""
    words = f"{statistics.mean(values):.1f}"
    return words if len(values) == 1 else f"{words} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    """Runs the cells that the output file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for task in OPTIONS:
        parser.add_argument(f"--{task}", type=Path, help=f"labelled file in the `{task}` layout")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "detrimental_options.json")
    parser.add_argument("--draws", type=int, nargs="+", default=list(DRAWS), choices=DRAWS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    files = {task: getattr(options, task) for task in OPTIONS if getattr(options, task) is not None}
    if not files:
        parser.error("give at least one task file")
    asked = {task: read_examples(file, task) for task, file in files.items()}  # told before the model is loaded
    torch.set_num_threads(options.threads)
    model, tokenizer = find_model(options.device)
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.is_file() else {"cells": {}}
    results |= {"grid": GRID, "base": BASE, "machine": machine(), "device": options.device, "versions": library_versions()}
    cells = results["cells"]
    for task, examples in asked.items():
        kept = [example for example in examples if task != "mmlu" or len(example.prompt) <= MAX_CHARACTERS]
        drawn, rest = split(kept, OPTIONS[task])
        held_out = tokenise(rest, tokenizer)
        results.setdefault("protocol", {})[task] = {"examples": len(kept), "of": len(examples), "held_out": len(rest)}
        if f"{task} dense" not in cells:
            cells[f"{task} dense"] = held_out_figures(model, held_out)
        for draw in options.draws:
            for name, option in OPTIONS[task].items():
                key = f"{task}, {name}, draw {draw}"
                if key in cells:
                    continue
                dense = cells[f"{task} dense"]["answers"]
                cells[key] = run_cell(model, tokenizer, option, drawn[name, draw], held_out, dense, draw)
                write_text(options.output, json.dumps(results, indent=1) + "\n")
                print(key, {side: cells[key][side] for side in ("layer", "share", "cpu_seconds")}, flush=True)
    print(table(cells))


if __name__ == "__main__":
    main()
