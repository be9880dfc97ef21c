"""One recovery stage after the closed form: SmolLM2-135M without 20 % of attention and FFN, trained in several ways.

    python benchmarks/smollm2_recovery.py --wikitext FOLDER --c4 FILE [--device cuda] [--steps 488] [--output results.json]

Pruning, calibration and held-out texts are those of `frontier.py`: 128 rows of 512 tokens drawn from WikiText-2 train, widths and
score by Fisher information, sequential compensation; the figures are perplexities on the first 16 rows of WikiText-2 test and of
C4. Every recovery starts from the same pruned model and gets the same rows of WikiText-2 train in the same order (488 steps of 8
are two million tokens); it is judged on 16 rows of valid, and the better model is kept. Two cells train the dense model in the
same way: what of a recovery is only getting used to the text. Finished cells are kept in the output file.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from frontier import TEST_ROWS, TOKENS, Texts, measure
from smollm2_wikitext import find_model
from transformers import PreTrainedModel, TrainingArguments

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data.texts import CalibrationData
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.recovery.recover import RecoveryArguments, recover
from hf_spectral_prune.utils.environment import library_versions, machine
from hf_spectral_prune.utils.files import write_text

# With their learning rates.
METHODS = {
    "blocks": (RecoveryArguments("blocks"), 2e-4),
    "lora": (RecoveryArguments("lora"), 1e-3),
    "distill": (RecoveryArguments("distill"), 2e-4),
    "distill, hidden weight 100": (RecoveryArguments("distill", distill_hidden_weight=100.0), 2e-4),
    "full": (RecoveryArguments("full"), 2e-4),
    "dense, lora": (RecoveryArguments("lora"), 1e-3),
    "dense, full": (RecoveryArguments("full"), 2e-4),
}


def prune(model: PreTrainedModel, tokenizer: Any, calibration: CalibrationData) -> PreTrainedModel:
    """The pruned model that every recovery starts from."""
    arguments = SpectralPruningArguments(
        target_reduction=0.2,
        target_scope="prunable",
        layout="per_layer",
        criterion="fisher",
        allocation="fisher",
        compensation="sequential",
        seed=0,
        disable_tqdm=True,
    )
    return SpectralPruner(model, arguments, calibration, processing_class=tokenizer).prune().model


def train(
    method: str, model: PreTrainedModel, dense: PreTrainedModel, rows: CalibrationData, valid: CalibrationData, options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A copy of the model after one recovery, and what is said of it."""
    recovery, rate = METHODS[method]
    arguments = TrainingArguments(
        output_dir=str(options.output.parent / "recovery"),
        max_steps=options.steps,
        per_device_train_batch_size=options.rows_per_step,
        per_device_eval_batch_size=options.rows_per_step,
        learning_rate=rate,
        warmup_steps=options.steps // 10,
        lr_scheduler_type="linear",
        weight_decay=0.01,
        bf16=True,
        use_cpu=options.device == "cpu",
        save_strategy="no",
        logging_steps=10,
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    began = time.perf_counter()
    out = recover(copy.deepcopy(model), recovery, arguments, rows, valid, teacher=dense)
    return out.model, {
        "kept": out.kept,
        "tokens": options.steps * options.rows_per_step * TOKENS,
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "learning_rate": rate,
        "valid_loss": [out.metrics["before_loss"], out.metrics["after_loss"]],
    }


def main() -> None:
    """Runs the cells that the output file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wikitext", type=Path, required=True)
    parser.add_argument("--c4", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "smollm2_recovery.json")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rows", type=int, default=128, help="Calibration rows of 512 tokens.")
    parser.add_argument("--batch_size", type=int, default=16, help="Of calibration.")
    parser.add_argument("--steps", type=int, default=488)
    parser.add_argument("--rows_per_step", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(2)
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.is_file() else {"cells": {}}
    dense, tokenizer = find_model(options.device)
    texts = Texts(options, tokenizer)
    valid = texts.rows(texts.wikitext("valid"), "WikiText-2 valid", TEST_ROWS, shuffle=False)
    rows = texts.rows(texts.wikitext("train"), "WikiText-2 train", options.steps * options.rows_per_step, seed=0)
    pruned = prune(copy.deepcopy(dense), tokenizer, texts.calibration("wikitext", 0))
    results |= {
        "protocol": {
            "pruning": "fisher, per layer, sequential, 20 % of attention and FFN; "
            f"{options.rows} x {TOKENS} tokens of WikiText-2 train",
            "recovery": f"{options.steps} steps of {options.rows_per_step} x {TOKENS} tokens of train, linear schedule, bf16",
            "measured": "perplexity on the first 16 x 512 tokens of WikiText-2 test and of the last fifth of C4, float32",
        },
        "parameters": {"dense": num_parameters(dense), "pruned": num_parameters(pruned)},
        "machine": machine(),
        "device": torch.cuda.get_device_name() if dense.device.type == "cuda" else "cpu",
        "versions": library_versions(),
    }
    for method in ("dense", "pruned", *options.methods):
        if method in results["cells"]:
            continue
        model, said = dense if method.startswith("dense") else pruned, {}
        if method in METHODS:
            model, said = train(method, model, dense, rows, valid, options)
        results["cells"][method] = {"perplexity": measure(model, texts), **said}
        print(method, results["cells"][method], flush=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.output, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
