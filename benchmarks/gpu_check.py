"""What pruning costs on one accelerator, and that it is right there: models of random weights, JSON on stdout.

    python benchmarks/gpu_check.py --device cuda > gpu_check.json

Four parts, each also run by the tests on the CPU with `--shape tiny`:

- `prune`: an 8B-shaped Llama in bfloat16, 20 % of what can be removed, `spectral`, uniform, no repair. Time beside a forward
  pass over the same calibration tokens, and peak memory beside the weights. Random weights cost what trained ones cost.
- `sequential`: the same with sequential compensation.
- `agreement`: scores of one layer's width on the CPU and on the device, from the same moments.
- `train`: a 1B-shaped one pruned by the callback while a Trainer trains it in bfloat16, then recovered; the removed model
  against the masked one; text generated with a compiled static cache; speed before and after at batch 1 and 32.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from hf_spectral_prune import (
    PruningSchedule,
    RecoveryArguments,
    SpectralPruner,
    SpectralPruningArguments,
    SpectralPruningCallback,
    apply_plan,
    masked,
    recover,
)
from hf_spectral_prune.criteria.spectral import NUM_SPECTRUM_VALUES
from hf_spectral_prune.evaluation.figures import num_parameters
from hf_spectral_prune.spectral import correlation, distortion_spectrum, knn_graph, participation, squared_distances

# Widths that fill an accelerator's tiles; other multiples of 8 are slower than the dense model.
TILE = 64

SHAPES: dict[str, dict[str, dict[str, int]]] = {
    "full": {
        "prune": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "vocab_size": 128256},
        "train": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "vocab_size": 32000},
        "text": {"rows": 128, "length": 512, "batch": 8, "channels": 8192},
    },
    "tiny": {
        "prune": {"hidden_size": 64, "intermediate_size": 448, "num_hidden_layers": 2, "num_attention_heads": 8}
        | {"num_key_value_heads": 4, "vocab_size": 256},
        "train": {"hidden_size": 64, "intermediate_size": 448, "num_hidden_layers": 2, "num_attention_heads": 8}
        | {"num_key_value_heads": 4, "vocab_size": 256},
        "text": {"rows": 8, "length": 32, "batch": 4, "channels": 128},
    },
}


def make_model(shape: dict[str, int], device: torch.device) -> LlamaForCausalLM:
    """A Llama of random bfloat16 weights, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        config = LlamaConfig(**shape, max_position_embeddings=2048, tie_word_embeddings=False, initializer_range=0.02)
        return LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).eval()


def make_batches(text: dict[str, int], vocabulary: int, device: torch.device) -> list[dict[str, Tensor]]:
    """Random token ids: (rows / batch) batches of (batch, length)."""
    generator = torch.Generator().manual_seed(0)
    shape = (text["batch"], text["length"])
    rows = (torch.randint(0, vocabulary, shape, generator=generator).to(device) for _ in range(text["rows"] // text["batch"]))
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows]


def timed(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds until the device is done, and what the function returned."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def peak_gib(device: torch.device) -> float | None:
    """Largest memory that tensors took on an accelerator since the last reset; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


@torch.inference_mode()
def forward(model: LlamaForCausalLM, batches: list[dict[str, Tensor]]) -> None:
    for batch in batches:
        model.model(**batch, use_cache=False)


def check_prune(
    shapes: dict[str, dict[str, int]], device: torch.device, compensation: Literal["none", "sequential"]
) -> dict[str, Any]:
    """Cost of one round against the forward pass over the same tokens."""
    model = make_model(shapes["prune"], device)
    batches = make_batches(shapes["text"], shapes["prune"]["vocab_size"], device)
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters()) / 2**30
    forward(model, batches[:1])
    seconds, _ = timed(lambda: forward(model, batches), device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    args = SpectralPruningArguments(target_reduction=0.2, target_scope="prunable", units=["ffn", "heads"])
    args.compensation, args.allocation, args.disable_tqdm, args.round_to = compensation, "proportional", True, TILE
    before = num_parameters(model)
    pruner = SpectralPruner(model, args, batches)
    total, output = timed(pruner.prune, device)
    return {
        "shape": shapes["prune"],
        "tokens": sum(batch["input_ids"].numel() for batch in batches),
        "weights_gib": weights,
        "forward_seconds": seconds,
        "prune_seconds": total,
        "times_forward": total / seconds,
        "seconds": output.report["timings"],
        "peak_gib": peak_gib(device),
        "parameters": [before, num_parameters(model)],
    }


def check_agreement(shapes: dict[str, dict[str, int]], device: torch.device) -> dict[str, Any]:
    """Exact scores from the same moments on both devices."""
    channels, positions = shapes["text"]["channels"], 2 * shapes["text"]["channels"]
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(64, channels, generator=generator)
    signal = torch.randn(positions, 64, generator=generator) @ mixing + torch.randn(positions, channels, generator=generator)
    after = torch.nn.functional.silu(signal)

    def score(on: torch.device) -> tuple[Tensor, dict[str, float]]:
        sides = [(rows.to(on).T @ rows.to(on) / positions).double() for rows in (signal, after)]
        shape, mean = sides[0].cpu().to(on), signal.mean(0).double().to(on)
        inside, input_graph = timed(lambda: knn_graph(squared_distances(correlation(shape, mean))), on)
        outside, output_graph = timed(lambda: knn_graph(squared_distances(sides[1])), on)
        exact, scores = timed(lambda: participation(input_graph, output_graph, method="exact"), on)
        report, _ = timed(lambda: distortion_spectrum(input_graph, output_graph, NUM_SPECTRUM_VALUES), on)
        return scores.cpu(), {"graphs": inside + outside, "participation": exact, "spectrum": report}

    score(device)  # warms up
    (found, seconds), (expected, _) = score(device), score(torch.device("cpu"))
    ranks = torch.stack([found.argsort().argsort(), expected.argsort().argsort()]).double()
    kept = [set(values.topk(channels * 4 // 5).indices.tolist()) for values in (found, expected)]
    return {
        "channels": channels,
        "seconds": seconds,
        "rank_correlation": float(torch.corrcoef(ranks)[0, 1]),
        "same_of_the_kept": len(kept[0] & kept[1]) / len(kept[0]),
    }


def check_training(shapes: dict[str, dict[str, int]], device: torch.device, folder: str) -> dict[str, Any]:
    """Callback, removed against masked, generation, and speed."""
    model = make_model(shapes["train"], device)
    dense = deepcopy(model)
    text = shapes["text"]
    batches = make_batches(text | {"rows": 2 * text["batch"]}, shapes["train"]["vocab_size"], device)
    rows = [{"input_ids": ids, "labels": ids} for batch in batches for ids in batch["input_ids"].cpu()]
    args = SpectralPruningArguments(target_reduction=0.3, target_scope="prunable", units=["ffn"], num_rounds=2)
    args.compensation, args.disable_tqdm, args.round_to = "none", True, TILE
    callback = SpectralPruningCallback(args, batches, schedule=PruningSchedule("linear", start_step=1, end_step=2))
    training = TrainingArguments(
        output_dir=folder,
        max_steps=6,
        per_device_train_batch_size=2,
        learning_rate=1e-5,
        bf16=True,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
    )
    trainer = Trainer(model=model, args=training, train_dataset=rows, callbacks=[callback])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert callback.plan is not None
    plan, model = callback.plan, model.eval()
    recovered = recover(model, RecoveryArguments("lora"), replace(training, max_steps=4, learning_rate=1e-4), rows, rows[:4])

    reference, removed = deepcopy(dense), deepcopy(dense)
    apply_plan(removed, plan, check_weights=False)
    # In float32: rounding of bfloat16 would hide a small difference, and near ties of random weights would write other tokens.
    reference, removed = reference.float(), removed.float()
    with torch.inference_mode(), masked(reference, {key: plan.kept_index(key) for key in plan.kept}):
        expected = reference(**batches[0]).logits
    with torch.inference_mode():
        found = removed(**batches[0]).logits
    prompt = batches[0]["input_ids"][:1, :16]
    options = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    plain = removed.generate(prompt, **options)
    static = removed.generate(prompt, cache_implementation="static", **options)
    return {
        "shape": shapes["train"],
        "losses": losses,
        "recovery": {"kept": recovered.kept, **recovered.metrics},
        "masked_against_removed": float((found - expected).abs().max() / expected.abs().max()),
        "static_cache_tokens_equal": bool(torch.equal(plain, static)),
        "parameters": [num_parameters(dense), num_parameters(model)],
        "speed": {str(size): speed(dense, model, size, text, device) for size in (1, 32)},
    }


@torch.inference_mode()
def speed(
    dense: LlamaForCausalLM, pruned: LlamaForCausalLM, size: int, text: dict[str, int], device: torch.device
) -> dict[str, float]:
    """How many times faster the pruned model reads a prompt and writes a token; medians of five turns."""
    ids = torch.randint(0, dense.config.vocab_size, (size, text["length"]), device=device)
    ratios: dict[str, list[float]] = {"prefill": [], "decode": []}
    for turn in range(6):
        seconds: dict[str, list[float]] = {"prefill": [], "decode": []}
        for model in (dense, pruned):
            seconds["prefill"].append(timed(partial(model, ids, use_cache=False, logits_to_keep=1), device)[0])
            write = partial(model.generate, ids[:, :16], min_new_tokens=16, max_new_tokens=16, do_sample=False, pad_token_id=0)
            seconds["decode"].append(timed(write, device)[0])  # as many tokens by both: a random model may end its text
        if turn:  # the first warms up
            for name, (old, new) in seconds.items():
                ratios[name].append(old / new)
    return {name: sorted(values)[len(values) // 2] for name, values in ratios.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the figures as JSON; progress goes to stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shape", choices=list(SHAPES), default="full")
    options = parser.parse_args(argv)
    device, shapes = torch.device(options.device), SHAPES[options.shape]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    result: dict[str, Any] = {"device": name, "torch": torch.__version__, "transformers": transformers.__version__}
    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "agreement": lambda: check_agreement(shapes, device),
            "prune": lambda: check_prune(shapes, device, "none"),
            "sequential": lambda: check_prune(shapes, device, "sequential"),
            "train": lambda: check_training(shapes, device, folder),
        }
        for part, check in parts.items():
            start = time.perf_counter()
            try:
                result[part] = check()
            except (RuntimeError, ValueError) as error:  # an accelerator out of memory, say: the other parts still count
                result[part] = {"error": f"{type(error).__name__}: {error}"}
            if device.type == "cuda":
                torch.cuda.empty_cache()
            print(f"{part}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
