"""What recovery block by block gives after the closed form: perplexity before and after, on text that the model writes itself.

    python benchmarks/recovery_blocks.py path/to/model --rows 128 --length 128 --epochs 4 --learning_rate 5e-4

Prints JSON. No text is read: calibration, recovery and test rows are sampled from the dense model with different seeds.
"""

from __future__ import annotations

import argparse
import copy
import json
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from hf_spectral_prune import RecoveryArguments, SpectralPruner, SpectralPruningArguments, recover, self_generated
from hf_spectral_prune.evaluation.figures import held_out_figures


def main() -> None:
    options = _options()
    dense = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    train, held_out, test = (
        self_generated(dense, tokenizer, num_samples=number, max_seq_length=options.length, seed=seed)
        for seed, number in enumerate((options.rows, 32, 64))
    )

    def perplexity(model: AutoModelForCausalLM) -> float:
        return held_out_figures(model, test, progress=False)["perplexity"]

    found = {"model": options.model, "rows": options.rows, "length": options.length, "dense": perplexity(dense), "cells": []}
    for reduction in options.reductions:
        args = SpectralPruningArguments(
            target_reduction=reduction, target_scope="prunable", layout="per_layer", allocation="fisher", disable_tqdm=True
        )
        began = time.perf_counter()
        model = SpectralPruner(copy.deepcopy(dense), args, train).prune().model
        cut = time.perf_counter()
        cell = {"reduction": reduction, "closed_form": perplexity(model), "seconds_closed_form": cut - began}
        for rate in options.learning_rates:
            one, began = copy.deepcopy(model), time.perf_counter()
            training = TrainingArguments(
                output_dir="recovery",
                num_train_epochs=options.epochs,
                learning_rate=rate,
                lr_scheduler_type="cosine",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            output = recover(one, RecoveryArguments("blocks"), training, train, held_out, tokenizer, teacher=dense)
            errors = [entry["block_error_after"] / entry["block_error_before"] for entry in output.log_history]
            cell[f"blocks, rate {rate:g}"] = {
                "perplexity": perplexity(one),
                "kept": output.kept,
                "error_left": errors,
                "seconds": time.perf_counter() - began,
            }
        found["cells"].append(cell)
    print(json.dumps(found, indent=2))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--reductions", type=float, nargs="+", default=[0.25, 0.5])
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[5e-4, 2e-3])
    return parser.parse_args()


if __name__ == "__main__":
    main()
