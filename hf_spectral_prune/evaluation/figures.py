"""Figures of a model: perplexity, latency, parameters and size on disk."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import EvalPrediction, GenerationMixin, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.trainer_pt_utils import nested_concat, nested_numpify
from transformers.utils.generic import find_labels

from ..data.texts import Batch, CalibrationData
from ..models.cria import stock_type
from ..models.losses import check_targets, moved_to

# Positions whose log-softmax is taken at once: with a vocabulary of 256k, 128 MiB in float32.
_POSITIONS_AT_ONCE = 128


def perplexity(model: PreTrainedModel, data: CalibrationData | Iterable[Batch], progress: bool = True) -> dict[str, float]:
    """Perplexity of a causal language model over batches of `input_ids` and, where padded, `attention_mask` (B, T).

    Every row is run by itself, without its padding: so padding on either side changes nothing for any kind of position
    encoding, and the logits of one row are all that is ever in memory. Each row's first token is never predicted.

    Returns:
        `loss`: mean negative log-likelihood of a token given those before it, in nats, summed in float64;
        `perplexity`: its exponential; `num_tokens`: the number of predicted tokens.

    Raises:
        ValueError: the model is not a causal language model, or no row has two tokens.
    """
    _check_causal(model)
    total, count = 0.0, 0
    was_training = model.training
    model.eval()
    try:
        for batch in tqdm(data, desc="Perplexity", disable=not progress, leave=False):
            mask = batch.get("attention_mask")
            for index, ids in enumerate(batch["input_ids"]):
                row = ids if mask is None else ids[mask[index].bool()]
                if len(row) > 1:
                    total += _negative_log_likelihood(model, row.to(model.device))
                    count += len(row) - 1
    finally:
        model.train(was_training)
    if count == 0:
        raise ValueError("There is no token to predict: no row of the evaluation data has two tokens. Give longer text.")
    loss = total / count
    # exp() raises from about 709 nats on, and a broken model should give a figure too.
    return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf, "num_tokens": count}


def _check_causal(model: PreTrainedModel) -> None:
    # A BERT-like model with a causal head still looks ahead unless its config makes it a decoder.
    masked = stock_type(model.config.model_type) in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    looks_ahead = masked and not getattr(model.config, "is_decoder", False)
    if not isinstance(model, GenerationMixin) or model.config.is_encoder_decoder or looks_ahead:
        raise ValueError(
            f"`{type(model).__name__}` is not a causal language model, and perplexity is defined for those only. "
            "Evaluate it with a metric of its task."
        )


@torch.inference_mode()
def _negative_log_likelihood(model: PreTrainedModel, ids: Tensor) -> float:
    """Sum over the tokens but the first of one row (T,), in nats."""
    # An autocast context around the call must not change the figure: the model is measured in its own dtype.
    with torch.autocast(ids.device.type, enabled=False):
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]  # (T-1, V)
    parts = zip(logits.split(_POSITIONS_AT_ONCE), ids[1:].split(_POSITIONS_AT_ONCE), strict=True)
    return sum(nn.functional.cross_entropy(part.float(), goal, reduction="none").double().sum().item() for part, goal in parts)


def task_metrics(
    model: PreTrainedModel,
    data: CalibrationData | Iterable[Batch],
    compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
    progress: bool = True,
) -> dict[str, float]:
    """Loss of a model with a task head over batches with targets, and what `compute_metrics` makes of its predictions.

    Args:
        compute_metrics: as for Trainer: gets an `EvalPrediction` with the outputs and targets of all batches (-100 where
            padded), as arrays. What it gives beside single numbers is left out.

    Returns:
        `loss`: mean over targets; and the metrics by their names.

    Raises:
        ValueError: a batch lacks the targets of the model's task.
    """
    names = find_labels(type(model))
    total, count = 0.0, 0
    outputs: Any = None
    targets: Any = None
    was_training = model.training
    model.eval()
    try:
        for batch in tqdm(data, desc="Evaluating", disable=not progress, leave=False):
            check_targets(model, batch)
            if not any(name in batch for name in names):
                batch = batch | {"labels": _next_token_labels(batch)}
            given = [batch[name] for name in names if name in batch]
            with torch.inference_mode():
                output = model(**moved_to(model, batch))
            weight = int(given[0].ne(-100).sum())
            if weight:  # the mean over no target is not a number
                total, count = total + float(output.loss) * weight, count + weight
            if compute_metrics is not None:
                logits = tuple(value for name, value in output.items() if name.endswith("logits"))
                outputs = _joined(outputs, nested_numpify(logits[0] if len(logits) == 1 else logits))
                targets = _joined(targets, nested_numpify(given[0] if len(given) == 1 else tuple(given)))
    finally:
        model.train(was_training)
    if count == 0:
        raise ValueError("There is no target to evaluate on. Give batches with labels that are not -100.")
    figures = {"loss": total / count}
    if compute_metrics is not None:
        # Lists and matrices (one value a class, a confusion matrix) are no figures to compare or to stop by.
        found = compute_metrics(EvalPrediction(outputs, targets))
        figures |= {name: float(value) for name, value in found.items() if np.ndim(value) == 0}
    return figures


def default_metrics(model: PreTrainedModel) -> Callable[[EvalPrediction], dict[str, float]] | None:
    """`compute_metrics` of the model's task where one goes without saying: the accuracy of a classifier of pictures."""
    if not type(model).__name__.endswith("ForImageClassification"):
        return None
    return _accuracy


def _accuracy(found: EvalPrediction) -> dict[str, float]:
    predictions: Any = found.predictions
    return {"accuracy": float((predictions.argmax(-1) == found.label_ids).mean())}


def _joined(sofar: Any, new: Any) -> Any:
    return new if sofar is None else nested_concat(sofar, new, padding_index=-100)


def _next_token_labels(batch: Batch) -> Tensor:
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    return batch["input_ids"].masked_fill(mask == 0, -100)


def latency(
    model: PreTrainedModel,
    *,
    prefill_tokens: int = 512,
    decode_tokens: int = 32,
    batch_size: int = 1,
    repeats: int = 5,
    warmup: int = 1,
    seed: int = 0,
) -> dict[str, float]:
    """Speed of a causal language model in tokens a second, as `paired_latency` measures it, for one model alone."""
    models = {"model": model}
    return paired_latency(
        models,
        prefill_tokens=prefill_tokens,
        decode_tokens=decode_tokens,
        batch_size=batch_size,
        repeats=repeats,
        warmup=warmup,
        seed=seed,
    )["model"]


def paired_latency(
    models: Mapping[str, PreTrainedModel],
    *,
    prefill_tokens: int = 512,
    decode_tokens: int = 32,
    batch_size: int = 1,
    repeats: int = 5,
    warmup: int = 1,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Speeds of several models, timed in turn (A B A B ...): a machine's speed drifts, and so it drifts for all alike.

    A measurement is one pass over `prefill_tokens` random tokens a row, then `decode_tokens` steps of one token a row
    with the key/value cache. All models read the same tokens, from the smallest of their vocabularies.

    Returns:
        for each model `prefill_tokens_per_second` and `decode_tokens_per_second`, tokens of all rows together, medians
        over `repeats`, and the same names with `_min` and `_max`.

    Raises:
        ValueError: a model is not a causal language model or has too few positions, or a setting is below its least.
    """
    least = {"prefill_tokens": 1, "decode_tokens": 1, "batch_size": 1, "repeats": 1, "warmup": 0}
    given = (prefill_tokens, decode_tokens, batch_size, repeats, warmup)
    for (setting, minimum), value in zip(least.items(), given, strict=True):
        if value < minimum:
            raise ValueError(f"`{setting}` is {value}, but must be at least {minimum}.")
    length = prefill_tokens + decode_tokens
    for model in models.values():
        _check_causal(model)
        _check_length(model, length)
    vocab_size = min(model.config.get_text_config().vocab_size for model in models.values())
    ids = torch.randint(vocab_size, (batch_size, length), generator=torch.Generator().manual_seed(seed))  # (B, T)
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for repeat in tqdm(range(warmup + repeats), desc="Timing", delay=1, leave=False):
        for name, model in models.items():
            prefill, decode = _time_once(model, ids.to(model.device), prefill_tokens)
            if repeat >= warmup:
                speeds[name].append((batch_size * prefill_tokens / prefill, batch_size * decode_tokens / decode))
    return {name: _summary(pairs) for name, pairs in speeds.items()}


def _check_length(model: PreTrainedModel, length: int) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ValueError(
            f"`prefill_tokens` + `decode_tokens` is {length}, but `{type(model).__name__}` takes at most {positions} "
            "positions. Lower one of them."
        )


def _summary(speeds: list[tuple[float, float]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for part, values in zip(("prefill", "decode"), zip(*speeds, strict=True), strict=True):
        key = f"{part}_tokens_per_second"
        figures |= {key: statistics.median(values), f"{key}_min": min(values), f"{key}_max": max(values)}
    return figures


@torch.inference_mode()
def _time_once(model: PreTrainedModel, ids: Tensor, prefill_tokens: int) -> tuple[float, float]:
    """Seconds for the prefill and for all decoding steps of one run over ids (B, T)."""
    was_training = model.training
    model.eval()
    # As in `generate`: only the last position's logits are needed after the prefill.
    last = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
    try:
        start = _now(ids.device)
        cache = model(input_ids=ids[:, :prefill_tokens], use_cache=True, **last).past_key_values
        middle = _now(ids.device)
        for position in range(prefill_tokens, ids.shape[1]):
            step = ids[:, position : position + 1]
            cache = model(input_ids=step, past_key_values=cache, use_cache=True).past_key_values
        return middle - start, _now(ids.device) - middle
    finally:
        model.train(was_training)


def _now(device: torch.device) -> float:
    # An accelerator runs behind the program: without waiting for it, only the launching would be timed.
    current = torch.accelerator.current_accelerator()
    if current is not None and current.type == device.type:
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def num_parameters(model: nn.Module) -> int:
    """Parameters of the model, tied ones counted once, embeddings included."""
    return sum(parameter.numel() for parameter in model.parameters())


def num_non_embedding_parameters(model: PreTrainedModel) -> int:
    """Parameters without the token embedding and the output projection onto the vocabulary, tied ones counted once.

    Raises:
        NotImplementedError: the model has no token embedding (a vision model).
    """
    output = model.get_output_embeddings()
    modules = [model.get_input_embeddings()] + ([output] if output is not None else [])
    embeddings = {id(parameter) for module in modules for parameter in module.parameters()}
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in embeddings)


def size_on_disk(folder: str | Path) -> int:
    """Bytes of the safetensors files directly in a model folder.

    Raises:
        FileNotFoundError: the folder has none.
    """
    sizes = [file.stat().st_size for file in Path(folder).glob("*.safetensors")]
    if not sizes:
        raise FileNotFoundError(f"{folder} has no .safetensors file. Give a folder that `save_pretrained` wrote.")
    return sum(sizes)
