"""Detrimental neurons (arXiv:2507.09185) on SmolLM2-135M-Instruct: does their removal help, and more than a random one?

    python benchmarks/detrimental_smollm2.py --boolq FILE --copa FILE --sst2 FILE --sst5 FILE [--output results.json]

The files hold labelled rows: BoolQ and Balanced COPA as .jsonl.gz, SST-2 and SST-5 as .tsv.gz with a header. Protocol, for
each task: three draws of 10 adaptation examples with labels in turn; 300 held-out examples that are in none of the draws;
zero-shot, plain prompts without the chat template, a choice's score is the summed log-probability of its tokens. BoolQ keeps
questions with prompts of at most 320 characters, so that it runs in minutes. The grid is every fourth layer from layer 1 with
5, 10, 20, 30 and 50 % of the neurons; 20 midpoints, at most 60. "random" takes as many neurons from the same layer at random.
Finished cells are kept in the output file, so that a killed run continues.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from smollm2_wikitext import find_model
from transformers import PreTrainedModel

from hf_spectral_prune import DetrimentalArguments, DetrimentalNeuronPruner, Example, read_examples
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.planning import choose_units
from hf_spectral_prune.studies.detrimental.figures import accuracy_figures, mcnemar
from hf_spectral_prune.studies.detrimental.scoring import Questions, evaluate, tokenise
from hf_spectral_prune.studies.detrimental.tasks import draw_examples, layout_of
from hf_spectral_prune.surgery import apply_plan, settle_class
from hf_spectral_prune.utils.environment import library_versions, machine

TASKS = ("copa", "sst2", "sst5", "boolq")
DRAWS = (0, 1, 2)
NUM_ADAPTATION, NUM_HELD_OUT = 10, 300
MAX_CHARACTERS = 320
GRID: dict[str, Any] = {"layers": list(range(1, 30, 4)), "shares": [0.05, 0.1, 0.2, 0.3, 0.5], "num_steps": 20, "max_steps": 60}


def split(examples: Sequence[Example]) -> tuple[list[list[Example]], list[Example]]:
    """The draws of adaptation examples, and the held-out examples that are in none of them."""
    draws = [draw_examples(examples, NUM_ADAPTATION, seed)[0] for seed in DRAWS]
    used = {example for draw in draws for example in draw}
    rest = [example for example in dict.fromkeys(examples) if example not in used]
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(0)).tolist()
    return draws, [rest[index] for index in order[:NUM_HELD_OUT]]


def held_out_figures(model: PreTrainedModel, held_out: Questions, dense: str | None = None) -> dict[str, Any]:
    """Accuracy with its interval, the answers as a string of 0 and 1, and the test against the dense model's."""
    correct = evaluate(model, held_out, progress=False).correct
    figures: dict[str, Any] = {**accuracy_figures(correct), "answers": "".join(str(int(right)) for right in correct)}
    if dense is not None:
        figures |= mcnemar([right == "1" for right in dense], correct)
    return figures


def without_random_neurons(model: PreTrainedModel, layer: int, removed: int, seed: int) -> PreTrainedModel:
    """A copy of the model without some neurons of one layer."""
    groups = unit_groups(model)
    generator = torch.Generator().manual_seed(seed)
    scores = {group.key: torch.rand(group.size, dtype=torch.float64, generator=generator) for group in groups}
    sizes = {group.key: group.size - removed * (group.key == f"layers.{layer}.ffn") for group in groups}
    plan = choose_units(groups, scores, sizes, num_parameters(model), model_type=model.config.model_type, layout="per_layer")
    return settle_class(apply_plan(copy.deepcopy(model), plan))


def run_draw(
    model: PreTrainedModel, tokenizer: Any, adaptation: list[Example], held_out: Questions, dense: str, seed: int
) -> dict[str, Any]:
    """One cell: the neurons found on one draw, and the same number at random."""
    start, cpu = time.perf_counter(), time.process_time()
    args = DetrimentalArguments(**GRID, seed=seed, self_check=False)
    output = DetrimentalNeuronPruner(copy.deepcopy(model), args, adaptation, None, tokenizer).prune()
    found = output.report.detrimental
    figures = {
        "layer": found["layer"],
        "share": found["share"],
        "removed": found["removed"],
        "adaptation": [found["adaptation"][side]["accuracy"] for side in ("before", "after")],
        "largest_gap": max(entry["gap"] for entry in found["completeness"].values()),
        "grid": found["grid"],
        "detrimental": held_out_figures(output.model, held_out, dense),
    }
    if found["layer"] is not None:
        other = without_random_neurons(model, found["layer"], found["removed"], seed)
        figures["random"] = held_out_figures(other, held_out, dense)
    timings = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu, **output.report.timings}
    return {**figures, "timings": timings}


def table(cells: dict[str, Any]) -> str:
    """The finished cells, one line each, and the means of tasks that are done."""
    lines = [
        "| task | draw | layer, share | adaptation | dense | detrimental (95 %) | p | random |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        dense = cells.get(f"{task} dense")
        draws = [cells[f"{task} draw {draw}"] for draw in DRAWS if f"{task} draw {draw}" in cells]
        if dense is None:
            continue
        for draw, cell in zip(DRAWS, draws, strict=False):
            mine, other = cell["detrimental"], cell.get("random", cell["detrimental"])
            place = "nothing removed" if cell["layer"] is None else f"{cell['layer']}, {cell['share']:.0%}"
            adaptation = f"{cell['adaptation'][0]:.1f} -> {cell['adaptation'][1]:.1f}"
            accuracy = f"{mine['accuracy']:.3f} [{mine['low']:.3f}, {mine['high']:.3f}] | {mine['p_value']:.3f}"
            lines.append(
                f"| {task} | {draw} | {place} | {adaptation} | {dense['accuracy']:.3f} | {accuracy} | {other['accuracy']:.3f} |"
            )
        if len(draws) == len(DRAWS):
            found = [cell["detrimental"]["accuracy"] for cell in draws]
            others = [cell.get("random", cell["detrimental"])["accuracy"] for cell in draws]
            lines.append(
                f"| {task} | mean | | | {dense['accuracy']:.3f} [{dense['low']:.3f}, {dense['high']:.3f}] "
                f"| {mean(found):.3f} (spread {stdev(found):.3f}) | | {mean(others):.3f} (spread {stdev(others):.3f}) |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for task in TASKS:
        parser.add_argument(f"--{task}", type=Path, help=f"labelled file in the `{task}` layout")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/detrimental_smollm2.json"))
    parser.add_argument("--max_cells", type=int, default=10**6, help="stop after so many new cells")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    files = {task: getattr(options, task) for task in TASKS if getattr(options, task) is not None}
    if not files:
        parser.error("give at least one task file")
    results = json.loads(options.output.read_text()) if options.output.is_file() else {"cells": {}}
    if results.get("grid", GRID) != GRID:
        parser.error(f"{options.output} holds cells of another grid; name another file")
    asked = {task: read_examples(file, task) for task, file in files.items()}  # told before the model is loaded
    torch.set_num_threads(options.threads)
    model, tokenizer = find_model()
    cells, made = results["cells"], 0
    for task, examples in asked.items():
        kept = [example for example in examples if task != "boolq" or len(example.prompt) <= MAX_CHARACTERS]
        draws, rest = split(kept)
        held_out = tokenise(rest, tokenizer)
        results.setdefault("protocol", {})[task] = {
            "file": files[task].name,
            "wording": layout_of(task).wording,
            "examples": len(kept),
            "of": len(examples),
            "held_out": len(rest),
            "label_counts": [sum(example.label == label for example in rest) for label in range(len(rest[0].choices))],
        }
        for name in [f"{task} dense", *(f"{task} draw {draw}" for draw in DRAWS)]:
            if name in cells or made == options.max_cells:
                continue
            if name.endswith("dense"):
                cells[name] = held_out_figures(model, held_out)
            else:
                draw = int(name.rpartition(" ")[2])
                cells[name] = run_draw(model, tokenizer, draws[draw], held_out, cells[f"{task} dense"]["answers"], draw)
            made += 1
            results |= {"grid": GRID, "machine": machine(), "versions": library_versions()}
            temporary = options.output.with_suffix(".tmp")
            temporary.write_text(json.dumps(results, indent=1) + "\n")
            temporary.replace(options.output)
            print(
                name,
                {key: value for key, value in cells[name].items() if key in ("accuracy", "layer", "share", "timings")},
                flush=True,
            )
    print(table(cells))


if __name__ == "__main__":
    main()
