"""One recovery stage after pruning SmolLM2-135M by 20 % of its non-embedding parameters: LoRA, distillation, all weights.

    python benchmarks/smollm2_recovery.py --wikitext FOLDER [--output results.json]

FOLDER holds `train.txt.gz`, `valid.txt.gz` and `test.txt.gz` in the word-level form. Protocol: ` <unk> ` read as ` unk `, one
token stream, blocks of 512 tokens; calibration on 32 blocks of train; every recovery starts from the same pruned model and
gets the same blocks of train in the same order; it is judged on 16 blocks of valid (the better model is kept), and the
figures are perplexities on the first 16 blocks of test. Finished cells are kept in the output file.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from smollm2_wikitext import find_model
from transformers import PreTrainedModel, TrainingArguments

from hf_spectral_prune import SpectralPruner, SpectralPruningArguments
from hf_spectral_prune.data.sources import load_texts
from hf_spectral_prune.data.texts import CalibrationData, build_calibration
from hf_spectral_prune.evaluation.figures import num_parameters, perplexity
from hf_spectral_prune.recovery.recover import RecoveryArguments, recover
from hf_spectral_prune.utils.environment import library_versions, machine

# With their learning rates. The last cell trains the dense model: what of a recovery is only getting used to the text.
METHODS = {
    "lora": (RecoveryArguments("lora"), 1e-3),
    "distill": (RecoveryArguments("distill"), 2e-4),
    "distill, hidden weight 100": (RecoveryArguments("distill", distill_hidden_weight=100.0), 2e-4),
    "full": (RecoveryArguments("full"), 2e-4),
    "dense, lora": (RecoveryArguments("lora"), 1e-3),
}
ROWS_PER_STEP, BLOCK = 4, 512


def blocks(folder: Path, split: str, number: int, tokenizer: Any, shuffle: bool = False) -> CalibrationData:
    """Blocks of one split: the first ones, or drawn by seed 0."""
    (text,) = load_texts(folder / f"{split}.txt.gz")
    return build_calibration(
        [text.replace(" <unk> ", " unk ")],
        tokenizer,
        num_samples=number,
        max_seq_length=BLOCK,
        batch_size=4,
        shuffle=shuffle,
        seed=0,
        name=f"WikiText-2 {split}",
    )


def prune(model: PreTrainedModel, tokenizer: Any, folder: Path) -> PreTrainedModel:
    """The pruned model that every recovery starts from."""
    arguments = SpectralPruningArguments(
        target_reduction=0.2, target_scope="non_embedding", units=["ffn"], seed=0, disable_tqdm=True
    )
    calibration = blocks(folder, "train", 32, tokenizer, shuffle=True)
    return SpectralPruner(model, arguments, calibration, processing_class=tokenizer).prune().model


def main() -> None:
    """Runs the cells that the output file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wikitext", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "smollm2_recovery.json")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(2)
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.is_file() else {"cells": {}}
    dense, tokenizer = find_model()
    test = blocks(options.wikitext, "test", 16, tokenizer)
    valid = blocks(options.wikitext, "valid", 16, tokenizer)
    train = blocks(options.wikitext, "train", options.steps * ROWS_PER_STEP, tokenizer, shuffle=True)
    pruned = prune(copy.deepcopy(dense), tokenizer, options.wikitext)
    results |= {
        "protocol": {
            "pruning": "spectral, FFN neurons, uniform, 20 % of non-embedding parameters; calibration: 32 x 512 tokens of train",
            "recovery": f"{options.steps} steps of {ROWS_PER_STEP} x {BLOCK} tokens of train, linear schedule, bf16, seed 0",
            "measured": "perplexity on the first 16 x 512 tokens of test, float32",
        },
        "parameters": {"dense": num_parameters(dense), "pruned": num_parameters(pruned)},
        "machine": machine(),
        "versions": library_versions(),
    }
    for name, model in (("dense", dense), ("pruned", pruned)):
        if name not in results["cells"]:
            results["cells"][name] = {"perplexity": perplexity(model, test, progress=False)["perplexity"]}
            print(name, results["cells"][name], flush=True)
    for method in options.methods:
        if method in results["cells"]:
            continue
        recovery, rate = METHODS[method]
        arguments = TrainingArguments(
            output_dir=str(options.output.parent / "recovery"),
            max_steps=options.steps,
            per_device_train_batch_size=ROWS_PER_STEP,
            per_device_eval_batch_size=ROWS_PER_STEP,
            learning_rate=rate,
            warmup_steps=options.steps // 10,
            lr_scheduler_type="linear",
            weight_decay=0.01,
            bf16=True,
            use_cpu=not torch.accelerator.is_available(),
            save_strategy="no",
            logging_steps=10,
            report_to=[],
            disable_tqdm=True,
            seed=0,
        )
        began = time.perf_counter()
        start = dense if method.startswith("dense") else pruned
        out = recover(copy.deepcopy(start), recovery, arguments, train, valid, tokenizer, teacher=dense)
        results["cells"][method] = {
            "perplexity": perplexity(out.model, test, progress=False)["perplexity"],
            "kept": out.kept,
            "tokens": options.steps * ROWS_PER_STEP * BLOCK,
            "minutes": round((time.perf_counter() - began) / 60, 1),
            "learning_rate": rate,
            "valid_loss": [out.metrics["before_loss"], out.metrics["after_loss"]],
        }
        print(method, results["cells"][method], flush=True)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.output.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=1) + "\n")
        temporary.replace(options.output)


if __name__ == "__main__":
    main()
